"""etcd's database file, damaged in any way: whatever it is, reading it ends, and says what is wrong."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import mvccstore
from mvccstore.errors import StorageError
from mvccstore.etcd_file import read_etcd_file
from mvccstore.etcd_file.bbolt import PAGE_BYTES, _fnv
from mvccstore.etcd_file.buckets import AlarmRecord, AuthRecords, ClusterRecords, MemberRecord
from mvccstore.etcd_file.writer import write_database_file
from tests.fuzz.choices import Choices

_BODY_AT, _BODY_BYTES = 16, 56
_ELEMENTS_MAX = 100_000


@functools.cache
def _original() -> bytes:
    """A file with a bit of everything, in trees of two levels."""
    with mvccstore.open(engine="memory") as store, tempfile.TemporaryFile() as file:
        for number in range(60):
            store.put(b"key/%03d" % number, b"v" * 90, lease=store.grant(ttl=60, lease_id=7) if number == 9 else 0)
        store.delete(b"key/001")
        store.compact(5, physical=True)
        member = MemberRecord(1, ("http://a:1",), "m", ("http://a:2",))
        auth = AuthRecords(is_enabled=True, revision=4, users={b"u": b"\n\1u"}, roles={b"r": b"\n\1r"})
        cluster = ClusterRecords((member,), (2,), (AlarmRecord(1, 1),), auth)
        write_database_file(store, file, cluster=cluster)
        file.seek(0)
        return file.read()


@functools.cache
def _path() -> str:
    shared = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="mvccstore-fuzz-", dir=shared if shared.is_dir() else None)
    return str(Path(folder) / f"{os.getpid()}.db")


def run(data: bytes) -> None:
    """Read a file: the input itself, or the original with changes; then most often with checksums that match."""
    choices = Choices(data)
    mode = choices.byte()
    content = bytearray(choices.rest() if mode & 1 else _changed(choices))
    if not mode & 2:
        _set_checksums(content)
    path = Path(_path())
    path.write_bytes(content)
    try:
        with read_etcd_file(path) as file:
            file.cluster()
            assert sum(1 for _ in file.records()) < _ELEMENTS_MAX
            assert sum(1 for _ in file.leases()) < _ELEMENTS_MAX
            file.status()
    except StorageError:
        pass
    finally:
        path.unlink()


def _changed(choices: Choices) -> bytearray:
    """Change bytes of the original: at heads of pages and elements, where it matters, or anywhere."""
    content = bytearray(_original())
    while choices:
        page, at, size = choices.byte(), choices.number(2), choices.byte() % 9
        position = page % (len(content) // PAGE_BYTES) * PAGE_BYTES + (at % 128 if page & 0x80 else at % PAGE_BYTES)
        if size == 8:
            del content[position:]
            return content
        change = choices.take(size)
        content[position : position + len(change)] = change
    return content


def _set_checksums(content: bytearray) -> None:
    for at in (0, PAGE_BYTES):
        body = bytes(content[at + _BODY_AT : at + _BODY_AT + _BODY_BYTES])
        if len(body) == _BODY_BYTES:
            content[at + _BODY_AT + _BODY_BYTES : at + _BODY_AT + _BODY_BYTES + 8] = _fnv(body).to_bytes(8, "little")


SEEDS = (
    b"\0",
    bytes((0, 0x80, 0, 32, 8, 3, 0, 0, 0, 0, 0, 0, 0)),
    bytes((0, 0x83, 0, 16, 4, 1, 0, 0, 0, 0x84, 0, 8, 2, 2, 0)),
    bytes((0, 2, 0, 16, 4, 255, 255, 255, 255)),
    bytes((2, 4, 1, 0, 8)),
    bytes((0, 0x85, 0, 24, 1, 9, 0x82, 0, 10, 1, 255)),
)
