"""A file of what was committed but is not in the tables yet: the redo log before a file that is costly to commit to.

One record is one commit. It is written and synced before anybody sees the commit, which is one write in one place,
where a tree syncs twice and writes nine pages in nine places. When the tables have been written and synced, the file
is marked as empty, and that is synced too before anything else changes the tables. So a crash at any instant leaves a
journal that fits: carrying it out again, in order, on tables that have some of it changes nothing.

    head     magic 8, number of the tables' last transaction 8, number of the first commit 8 or 0 for an empty file,
             salt 4, CRC-32 of all these 4; written with the first record
    record   magic 4, length of the payload 4, number of the commit 8, CRC-32 of salt, number and payload 4; payload

A payload is a msgpack array: operation, key, value, operation, key, value, ...

The file is not cut when it is emptied, but written over, and it grows by zeros ahead of the records: a sync of what
does not change a file's length has no work of the file system's in it, and does not wait for that of others. So old
records lie behind the new ones. They have lower numbers and another salt, which nobody can know whose values are in
the file: no value can be taken for a record.

Invariants:

* I1. The numbers of the records count up by one.
* I2. Behind the last whole record there is at most a part of one that nobody was told of, before old ones and zeros.
* I3. The head names the tables' transaction on which the records stand. No other can follow while the file has
  records but those that carry out records. A journal beside other tables is refused.

There are two files, written to in turn: while the records of one are carried out, commits go to the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Any, Final, NoReturn
from zlib import crc32

from mvccstore.codec import UNPACK_ERRORS, pack, unpack
from mvccstore.engine.disk import fsync_directory, translated
from mvccstore.errors import CorruptError, FormatError, StorageError

DELETE: Final = 100
ADD: Final = 200
"""Operations; numbers below are puts to the table with that number, from DELETE on deletes."""

_HEAD = Struct(">8sQQI")
_HEAD_MAGIC = b"mvccjrn2"
_HEAD_BYTES = _HEAD.size + 4
_STEP_BYTES = 256 << 10
"""The file grows by so much: a commit in some hundred pays for it."""
_SEARCH_TIMES = 500
_ZEROS = memoryview(bytes(_STEP_BYTES))
_RECORD = Struct(">4sIQI")
_RECORD_MAGIC = b"\xf0JR\x01"
_OPERATION_PARTS = 3
_CARRIED_MAX = 100
"""So many transactions of the tables may have followed on what a file stands on: one that carried it out or two, and
one for each time that opening was cut short."""
Operations = list[tuple[int, bytes, Any]]
_datasync = getattr(os, "fdatasync", os.fsync)


def journal_names(path: str) -> tuple[str, str]:
    """Return the names of the two files that the journal of the store at `path` is written to in turn."""
    return f"{path}-journal-a", f"{path}-journal-b"


def is_journal_left(path: str) -> bool:
    """Say whether the store at `path` has a journal that was not carried out. A few system calls."""
    return any(_first_of(name) != 0 for name in journal_names(path))


def _first_of(name: str) -> int | None:
    """Return the number of the first commit in a file, 0 if there is none; None if that cannot be told."""
    try:
        with Path(name).open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return 0
    if len(head) < _HEAD_BYTES or not any(head):
        return 0
    return _HEAD.unpack_from(head)[2] if _is_whole(head) else None


def remove_journal(path: str) -> None:
    """Remove the journal of the store at `path`, if there is one, durably."""
    left = [Path(name) for name in journal_names(path) if Path(name).exists()]
    for name in left:
        name.unlink()
    if left:
        fsync_directory(path)


class Journal:
    """One of the two files of the journal of a store that is open for writing.

    Args:
        path: The store's.
        name: The file's. It is made, or emptied.
        sync_commits: Whether records are to be synced.

    Raises:
        StorageError: It cannot be opened or made.
    """

    def __init__(self, path: str, name: str, *, sync_commits: bool) -> None:
        self._path = path
        self._name = name
        self._sync_commits = sync_commits
        self._failure: StorageError | None = None
        self._salt = 0
        self.size_bytes = 0
        """How long the file is."""
        try:
            self._fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise translated(path, error) from error
        if sync_commits:
            self.sync()
            fsync_directory(path)

    @property
    def sync_fd(self) -> int | None:
        """What has to be synced before a record counts; None if that is not asked for."""
        return self._fd if self._sync_commits else None

    def write(self, end: int, number: int, operations: Sequence[object], base: int) -> int:
        """Write a commit, which is none before it is synced; return where the record ends. One write.

        Args:
            end: Where the record before ends; 0 if there is none.
            number: The commit's.
            operations: What it does.
            base: The tables' last transaction.

        Raises:
            StorageFullError: There is no room. Nothing is written.
            StorageError: The disk failed, now or before; then nothing more is taken, as what a failed sync has
                written is not known.
        """
        self.check()
        payload = pack(operations)
        head = b"" if end else self._new_head(base, number)
        record = _RECORD.pack(_RECORD_MAGIC, len(payload), number, _checksum(self._salt, number, payload))
        parts = [head, record, payload]
        size = sum(map(len, parts))
        stop = end + size
        try:
            if stop > self.size_bytes:
                written = os.pwritev(self._fd, [*parts, _ZEROS[: -stop % _STEP_BYTES]], end)
                self.size_bytes = end + written
            else:
                written = os.pwritev(self._fd, parts, end)
            if written < size:
                _write_all(self._fd, b"".join(parts)[written:], end + written)
                self.size_bytes = max(self.size_bytes, stop)
        except OSError as error:
            self.retract(end)
            raise translated(self._path, error) from error
        return stop

    def _new_head(self, base: int, first: int) -> bytes:
        self._salt = int.from_bytes(os.urandom(4))
        head = _HEAD.pack(_HEAD_MAGIC, base, first, self._salt)
        return head + crc32(head).to_bytes(4)

    def sync(self) -> None:
        """Make all of it survive a power cut.

        Raises:
            StorageError: As `write`.
        """
        self.check()
        try:
            _datasync(self._fd)
        except OSError as error:
            self.fail(error)

    def check(self) -> None:
        """Raise if a sync has failed.

        Raises:
            StorageError: As `write`.
        """
        if self._failure is not None:
            raise self._failure

    def fail(self, error: OSError) -> NoReturn:
        """Take nothing more, as a sync has failed.

        Raises:
            StorageError: It says so.
        """
        self._failure = StorageError(self._path, f"its journal could not be synced: {error.strerror}; open it again")
        raise self._failure from error

    def retract(self, end: int) -> None:
        """Take back what was written behind the last record of a commit that is not one."""
        try:
            os.ftruncate(self._fd, end)
        except OSError as error:
            raise translated(self._path, error) from error
        self.size_bytes = end

    def empty(self) -> None:
        """Forget all records, durably: the tables have them. One write and one sync.

        Raises:
            StorageError: As `write`.
        """
        try:
            _write_all(self._fd, self._new_head(0, 0), 0)
        except OSError as error:
            raise translated(self._path, error) from error
        self.size_bytes = max(self.size_bytes, _HEAD_BYTES)
        if self._sync_commits:
            self.sync()

    def close(self, *, is_done: bool) -> None:
        """Close it; if it is done with, remove it."""
        os.close(self._fd)
        if is_done:
            Path(self._name).unlink(missing_ok=True)


def left_records(path: str, base: int) -> Iterator[tuple[int, Operations]]:
    """Iterate over the commits that the journal of the store at `path` has, each with its operations.

    Args:
        path: The store's.
        base: The tables' last transaction.

    Raises:
        FormatError: It is not the journal of these tables.
        CorruptError: It is damaged: behind what cannot be read there is more.
        StorageError: It cannot be read.

    Cost: each file is read once, as a whole.
    """
    last = None
    files = sorted(filter(None, (_records_of(path, name, base) for name in journal_names(path))))
    for place, records in enumerate(files):
        # What was taken back from the older file, and written again to the younger one, may still be in the older.
        stop = files[place + 1][0][0] if place + 1 < len(files) else None
        for number, payload in records:
            if number == stop:
                break
            if last is not None and number != last + 1:  # I1
                raise CorruptError(path, f"its journal goes on from commit {last} to {number}")
            yield number, _operations(path, payload)
            last = number


def _records_of(path: str, name: str, base: int) -> list[tuple[int, bytes]]:
    """Return number and payload of each record of a file."""
    try:
        content = Path(name).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise translated(path, error) from error
    head = content[:_HEAD_BYTES]
    if len(head) < _HEAD_BYTES:
        return []  # it was cut short as it was begun
    magic, stands_on, first, salt = _HEAD.unpack_from(head)
    if not any(head):
        return []  # what was to be written there first has not arrived
    if magic != _HEAD_MAGIC and 0 not in magic:  # else it was cut short before zeros
        raise FormatError(path, f"{name} is not a journal of this version")
    if not _is_whole(head):
        if _RECORD_MAGIC in content:
            raise CorruptError(path, f"the head of {name} is damaged")
        return []  # it was cut short
    if first == 0:
        return []
    found: list[tuple[int, bytes]] = []
    offset = _HEAD_BYTES
    while (record := _record_at(content, offset, salt)) is not None and record[0] == first + len(found):
        found.append(record)
        offset += _RECORD.size + len(record[1])
    _check_rest(path, content, offset + 1, salt, first + len(found))
    if found and not 0 <= base - stands_on <= _CARRIED_MAX:  # I3
        reason = f"{name} is of another file, or of another state of this one; remove it to go without"
        raise FormatError(path, reason)
    return found


def _is_whole(head: bytes) -> bool:
    return head.startswith(_HEAD_MAGIC) and crc32(head[: _HEAD.size]) == int.from_bytes(head[_HEAD.size :])


def _record_at(content: bytes, offset: int, salt: int) -> tuple[int, bytes] | None:
    """Return number and payload of the record at a place; None if there is no whole one."""
    if len(content) - offset < _RECORD.size:
        return None
    magic, length, number, checksum = _RECORD.unpack_from(content, offset)
    payload = content[offset + _RECORD.size : offset + _RECORD.size + length]
    if magic != _RECORD_MAGIC or len(payload) < length or checksum != _checksum(salt, number, payload):
        return None
    return number, payload


def _check_rest(path: str, content: bytes, offset: int, salt: int, number: int) -> None:
    """Raise if there is a whole record behind what cannot be read: that was no part of the last one. I2.

    Old records and values may look like many: the search ends when it has looked at the content so many times.
    """
    left = _SEARCH_TIMES * len(content)
    last = number + len(content) // _RECORD.size
    while left > 0 and (offset := content.find(_RECORD_MAGIC, offset)) >= 0:
        if len(content) - offset >= _RECORD.size:
            _, length, named, _ = _RECORD.unpack_from(content, offset)
            if number <= named <= last and length <= len(content) - offset - _RECORD.size:
                if _record_at(content, offset, salt) is not None:
                    raise CorruptError(path, f"its journal is damaged before byte {offset:,}, and goes on there")
                left -= length
        offset += 1


def _operations(path: str, payload: bytes) -> Operations:
    try:
        flat = unpack(payload)
        return list(zip(*(flat[part::_OPERATION_PARTS] for part in range(_OPERATION_PARTS)), strict=True))
    except UNPACK_ERRORS as error:
        raise CorruptError(path, f"a record of its journal cannot be read: {error}") from error


def _checksum(salt: int, number: int, payload: bytes) -> int:
    return crc32(payload, salt ^ (number & 0xFFFFFFFF))


def _write_all(fd: int, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(fd, content, offset)
        content, offset = content[written:], offset + written
