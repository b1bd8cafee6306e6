"""A store, or its past, as etcd's database file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from mvccstore.engine.disk import translated
from mvccstore.etcd_file import buckets
from mvccstore.etcd_file.bbolt import Items, write_database
from mvccstore.etcd_file.buckets import ClusterRecords, LeaseRecord
from mvccstore.mvcc.etcd_encoding import revision_key
from mvccstore.records import Records
from mvccstore.store import Store
from mvccstore.transfer import finished_file

_PIECE_BYTES = 1 << 20
_NEVER_COMPACTED = -1


def write_etcd_file(
    store: Store,
    path: str | os.PathLike[str],
    *,
    revision: int = 0,
    cluster: ClusterRecords | None = None,
    has_digest: bool = True,
    overwrite: bool = False,
) -> int:
    """Write a store to a file as `etcdctl snapshot save` does, while it is used; return the revision written.

    It has the history from the compact revision on, the leases, and what `cluster` gives. `etcdutl snapshot
    restore` makes an etcd of it that goes on at this revision.

    Args:
        store: The store.
        path: The file. It appears under this name when it is complete and on disk.
        revision: The last to write; 0 for the current one. Leases are written as they are now.
        cluster: Members, alarms, users, and the like; by default none. A restore makes members of its own.
        has_digest: End the file with its SHA-256. Without, a restore asks for `--skip-hash-check`.
        overwrite: Replace the file if it exists.

    Raises:
        CompactedError: `revision` is below the compact revision.
        FutureRevisionError: `revision` is above the current one.
        StorageError: The file exists, or cannot be written; as `StorageFullError`, for want of room.
        LockedError: It is a store that is open.

    Cost: a read and a write a record, 10 us; with a digest, the file is read once. Memory for the leases, some
    records, and a page.
    """
    target = os.fspath(path)
    with finished_file(target, overwrite=overwrite) as partial:
        try:
            with Path(partial).open("w+b") as file:
                written = write_database_file(store, file, revision=revision, cluster=cluster)
                if has_digest:
                    file.write(_digest(file))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise translated(target, error) from error
    return written


def write_database_file(
    store: Store, file: BinaryIO, *, revision: int = 0, cluster: ClusterRecords | None = None
) -> int:
    """Write a store's database to an empty file open for it, without a digest; return the revision written.

    The file is left at its end, unsynced: for those who stream it and throw it away. Its size is a multiple of
    4,096 bytes.

    Raises:
        CompactedError, FutureRevisionError: As `write_etcd_file`.
        OSError: What writing it raises.

    Cost: as `write_etcd_file`.
    """
    with Records(store, revision) as records:
        write_database(file, _buckets(records, cluster or ClusterRecords()))
        return records.revision


def _buckets(records: Records, cluster: ClusterRecords) -> Iterator[tuple[bytes, Items]]:
    """Iterate over all buckets that an etcd has, in the order of their names."""
    auth = cluster.auth
    states = {}
    if auth is not None:
        states = {
            buckets.AUTH_ENABLED: bytes((auth.is_enabled,)),
            buckets.AUTH_REVISION: auth.revision.to_bytes(8),
        }
    yield buckets.ALARM, sorted((buckets.encode_alarm(alarm), b"") for alarm in cluster.alarms)
    yield buckets.AUTH, sorted(states.items())
    yield buckets.AUTH_ROLES, sorted(auth.roles.items()) if auth is not None else ()
    yield buckets.AUTH_USERS, sorted(auth.users.items()) if auth is not None else ()
    yield buckets.CLUSTER, [(buckets.CLUSTER_VERSION, cluster.cluster_version.encode())]
    yield buckets.KEY, map(buckets.encode_record, records)
    yield buckets.LEASE, _leases(records.leases)
    yield buckets.MEMBERS, sorted(map(buckets.encode_member, cluster.members))
    removed = map(buckets.encode_member_id, cluster.removed_members)
    yield buckets.MEMBERS_REMOVED, sorted((name, buckets.REMOVED) for name in removed)
    yield buckets.META, sorted(_meta(records, cluster).items())


def _leases(leases: list[tuple[int, int]]) -> Iterable[tuple[bytes, bytes]]:
    # In etcd's order, negative ones last. A part of a second is one more.
    names = sorted((lease_id.to_bytes(8, signed=True), ttl_ms) for lease_id, ttl_ms in leases)
    for name, ttl_ms in names:
        yield buckets.encode_lease(LeaseRecord(int.from_bytes(name, signed=True), -(-ttl_ms // 1_000)))


def _meta(records: Records, cluster: ClusterRecords) -> dict[bytes, bytes]:
    found = {
        buckets.CONSISTENT_INDEX: (cluster.index or records.revision).to_bytes(8),
        buckets.TERM: cluster.term.to_bytes(8),
    }
    if cluster.storage_version:  # none is written by an etcd before 3.6
        found[buckets.STORAGE_VERSION] = cluster.storage_version.encode()
    if cluster.members:
        state: dict[str, object] = {"voters": [m.id for m in cluster.members if not m.is_learner]}
        learners = [member.id for member in cluster.members if member.is_learner]
        if learners:
            state["learners"] = learners
        found[buckets.CONF_STATE] = buckets.encode_json({**state, "auto_leave": False})
    if records.compact_revision != _NEVER_COMPACTED:
        compacted = revision_key(records.compact_revision, 0, is_tombstone=False)
        found[buckets.SCHEDULED_COMPACT] = found[buckets.FINISHED_COMPACT] = compacted
    return found


def _digest(file: BinaryIO) -> bytes:
    """Return the SHA-256 of all that is in a file, and leave it at its end."""
    digest = sha256()
    file.seek(0)
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
    return digest.digest()
