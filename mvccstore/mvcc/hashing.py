"""HashKV: one number for the whole history, equal to etcd's for the same history.

Two stores that answer with the same number at the same revision hold the same keys, values, revisions and
leases. The bytes hashed are etcd's stored ones, so they are made here from ours: a 17-byte revision
(18 with a `t` for a tombstone) and the KeyValue in canonical protobuf.
"""

from __future__ import annotations

from mvccstore.codec import entry_floor, entry_of, log_key_floor, unpack_log_key, unpack_record
from mvccstore.mvcc.crc32c import extend
from mvccstore.mvcc.etcd_encoding import bytes_field, key_value, revision_key
from mvccstore.mvcc.read import PAGE_ROWS, live_entries
from mvccstore.options import HashResult
from mvccstore.tables import ReadTxn, Table
from mvccstore.types import KeyRange

_SEED = b"key"


def hash_kv(txn: ReadTxn, revision: int, compact_revision: int) -> HashResult:
    """Hash the history up to `revision`.

    Cost: every record up to it is read and encoded; those below the compact revision take a seek more.
    """
    at, floor = entry_floor(revision), entry_floor(max(compact_revision, 0))
    has_live_keys = bool(live_entries(txn, KeyRange.all(), at, 1)[0])
    checksum = extend(0, _SEED)
    first: bytes | None = b""
    while first is not None:
        page = txn.page(Table.LOG, first, log_key_floor(revision + 1), PAGE_ROWS)
        for log_key, record in page:
            position = unpack_log_key(log_key)
            kv = unpack_record(record)
            if position.main <= compact_revision:
                entry = entry_of(log_key, kv)
                # Not what is compacted but not reclaimed yet, nor, etcd's rule, a tombstone at the floor.
                if position.is_tombstone or txn.newest_at(kv.key, floor) != entry:
                    continue
                if has_live_keys and txn.newest_at(kv.key, at) != entry:
                    continue
            checksum = extend(checksum, revision_key(position.main, position.sub, is_tombstone=position.is_tombstone))
            checksum = extend(checksum, bytes_field(1, kv.key) if position.is_tombstone else key_value(kv))
        first = page[-1][0] + b"\0" if len(page) == PAGE_ROWS else None
    return HashResult(checksum, compact_revision, revision)
