"""etcd's database file, read: what `etcdctl snapshot save` wrote, or `member/snap/db` of an etcd that is stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self, TypeVar

from mvccstore.engine.disk import translated
from mvccstore.errors import CorruptError, FormatError
from mvccstore.etcd_file import buckets
from mvccstore.etcd_file.bbolt import Database
from mvccstore.etcd_file.buckets import AuthRecords, ClusterRecords, LeaseRecord
from mvccstore.mvcc.crc32c import extend
from mvccstore.records import Record

_SECTOR_BYTES = 512
_DIGEST_BYTES = 32
_PIECE_BYTES = 1 << 20
_NEVER_COMPACTED = -1

T = TypeVar("T")
Stored = TypeVar("Stored")


@dataclass(frozen=True, slots=True)
class EtcdFileStatus:
    """What `etcdutl snapshot status` says of a file."""

    hash: int
    """CRC-32C over the names, keys and values of all buckets."""
    revision: int
    """That of the last record; 0 if there is none."""
    keys: int
    """Keys that exist at this revision: the `totalKey` of etcd 3.6."""
    entries: int
    """Entries of all buckets: the `totalKey` of etcd 3.5."""
    size_bytes: int
    """Of the database, without digest and without what is unused at the end."""
    version: str
    """The storage version; empty before etcd 3.6."""


def read_etcd_file(path: str | os.PathLike[str], *, verify_digest: bool = True) -> EtcdFile:
    """Open an etcd database file for reading.

    Args:
        path: The file, with a digest at its end or without. It must not be an etcd's that is running.
        verify_digest: Hold the file against its digest, if it has one. Nothing else sees a change within a value.

    Raises:
        StorageError: It cannot be read.
        FormatError: It is no bbolt database, or not an etcd's.
        CorruptError: It is damaged. So for the methods, as damage may be anywhere.

    Cost: if there is a digest to verify, the file is read once; otherwise a page.
    """
    return EtcdFile(path, verify_digest=verify_digest)


class EtcdFile:
    """An etcd database file, open for reading. Get one from `read_etcd_file`.

    A context manager. Used by one thread. Nothing is kept: each method reads what it returns.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify_digest: bool) -> None:
        self.path = os.fspath(path)
        try:
            size_bytes = Path(self.path).stat().st_size
        except OSError as error:
            raise translated(self.path, error) from error
        rest = size_bytes % _SECTOR_BYTES
        self.has_digest = rest == _DIGEST_BYTES
        """Whether the file ends with the SHA-256 of what is before."""
        self._database = Database(self.path, trailer_bytes=_DIGEST_BYTES if self.has_digest else 0)
        try:
            if rest not in {0, _DIGEST_BYTES}:
                raise CorruptError(self.path, f"{rest} bytes follow the last sector, which are no digest")
            if self.has_digest and verify_digest:
                self._verify_digest(size_bytes - _DIGEST_BYTES)
            if buckets.KEY not in [bucket.name for bucket in self._database.buckets()]:
                raise FormatError(self.path, "a bbolt database, but not an etcd's: it has no bucket of keys")
            meta = dict(self._database.items(buckets.META))
            self.compact_revision = self._decoded(buckets.META, meta, _compact_revision)
            """The oldest revision that its etcd answered for; -1 if it was never compacted."""
        except BaseException:
            self.close()
            raise

    def _verify_digest(self, size_bytes: int) -> None:
        digest = sha256()
        try:
            with Path(self.path).open("rb") as file:
                while size_bytes and (piece := file.read(min(_PIECE_BYTES, size_bytes))):
                    digest.update(piece)
                    size_bytes -= len(piece)
                matches = not size_bytes and file.read(_DIGEST_BYTES) == digest.digest()
        except OSError as error:
            raise translated(self.path, error) from error
        if not matches:
            raise CorruptError(self.path, "it does not match the digest at its end")

    def records(self) -> Iterator[Record]:
        """Iterate over the history, in the order it happened.

        What is in the file is shown: it may have more below the compact revision than a store shows, if etcd was
        in the middle of a compaction.

        Cost: 10 us a record.
        """
        for name, value in self._database.items(buckets.KEY):
            record = self._decoded(buckets.KEY, (name, value), _record)
            if record is not None:
                yield record

    def leases(self) -> Iterator[LeaseRecord]:
        """Iterate over the leases, by id, negative ones last."""
        for item in self._database.items(buckets.LEASE):
            yield self._decoded(buckets.LEASE, item, lambda item: buckets.decode_lease(*item))

    def cluster(self) -> ClusterRecords:
        """Return what is in the file beside keys and leases, in memory."""
        meta = dict(self._database.items(buckets.META))
        versions = dict(self._database.items(buckets.CLUSTER))
        return ClusterRecords(
            members=tuple(self._all(buckets.MEMBERS, lambda item: buckets.decode_member(*item))),
            removed_members=tuple(self._all(buckets.MEMBERS_REMOVED, lambda item: buckets.decode_member_id(item[0]))),
            alarms=tuple(self._all(buckets.ALARM, lambda item: buckets.decode_alarm(item[0]))),
            auth=self._auth(),
            index=self._decoded(buckets.META, meta.get(buckets.CONSISTENT_INDEX, bytes(8)), _number),
            term=self._decoded(buckets.META, meta.get(buckets.TERM, bytes(8)), _number),
            cluster_version=self._decoded(buckets.CLUSTER, versions.get(buckets.CLUSTER_VERSION, b""), bytes.decode),
            storage_version=self._decoded(buckets.META, meta.get(buckets.STORAGE_VERSION, b""), bytes.decode),
        )

    def _auth(self) -> AuthRecords | None:
        found = dict(self._database.items(buckets.AUTH))
        users, roles = (dict(self._database.items(name)) for name in (buckets.AUTH_USERS, buckets.AUTH_ROLES))
        if not (found or users or roles):
            return None
        revision = self._decoded(buckets.AUTH, found.get(buckets.AUTH_REVISION, bytes(8)), _number)
        return AuthRecords(found.get(buckets.AUTH_ENABLED) == b"\1", revision, users, roles)

    def _all(self, bucket: bytes, decode: Callable[[tuple[bytes, bytes]], T]) -> list[T]:
        return [self._decoded(bucket, item, decode) for item in self._database.items(bucket)]

    def status(self) -> EtcdFileStatus:
        """Return what `etcdutl snapshot status` says, having read and checked all of the file but the messages.

        Cost: 5 us an entry, and 35 ns a byte or, with `google-crc32c` installed, next to none. Memory for the
        names of the keys that exist.
        """
        checksum = revision = entries = 0
        keys: set[bytes] = set()
        version = b""
        for bucket, items in self._database.everything():
            checksum = extend(checksum, bucket.name)
            for name, value in items:
                checksum = extend(extend(checksum, name), value)
                entries += 1
                if bucket.name == buckets.KEY:
                    revision, _, is_tombstone = self._decoded(buckets.KEY, name, buckets.decode_revision)
                    key = self._decoded(buckets.KEY, value, buckets.decode_key_value).key
                    (keys.discard if is_tombstone else keys.add)(key)
                elif bucket.name == buckets.META and name == buckets.STORAGE_VERSION:
                    version = value
        found = self._decoded(buckets.META, version, bytes.decode)
        return EtcdFileStatus(checksum, revision, len(keys), entries, self._database.size_bytes, found)

    def _decoded(self, bucket: bytes, stored: Stored, decode: Callable[[Stored], T]) -> T:
        try:
            return decode(stored)
        except ValueError as error:
            raise CorruptError(self.path, f"bucket {bucket.decode()}: {error}") from error

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _record(item: tuple[bytes, bytes]) -> Record | None:
    return buckets.decode_record(*item)


def _number(packed: bytes) -> int:
    if len(packed) != 8:
        msg = f"{packed!r:.80} is no number of 8 bytes"
        raise ValueError(msg)
    return int.from_bytes(packed)


def _compact_revision(meta: dict[bytes, bytes]) -> int:
    """Return the higher of both: one that is scheduled but not finished hides history all the same."""
    found = [meta[name] for name in (buckets.SCHEDULED_COMPACT, buckets.FINISHED_COMPACT) if name in meta]
    return max((buckets.decode_revision(name)[0] for name in found), default=_NEVER_COMPACTED)
