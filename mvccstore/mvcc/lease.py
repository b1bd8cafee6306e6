"""Which keys a lease takes along when it goes.

The ATTACHED table has a record for each attached key: the lease id, then the log key of the key's newest
record. It names the record rather than the key, so its size does not depend on the key's, and it moves
with every put of the key.
"""

from __future__ import annotations

from collections.abc import Iterator

from mvccstore.codec import UNPACK_ERRORS, pack_lease_id, unpack, unpack_lease_id, unpack_record
from mvccstore.errors import CorruptError
from mvccstore.mvcc.read import PAGE_ROWS
from mvccstore.tables import ReadTxn, Table, WriteTxn
from mvccstore.types import KeyValue


def granted(txn: ReadTxn, path: str) -> Iterator[tuple[int, int]]:
    """Iterate over all leases, by id: id and milliseconds granted.

    Raises:
        CorruptError: One cannot be read.
    """
    start: bytes | None = b""
    while start is not None:
        page = txn.page(Table.LEASES, start, None, PAGE_ROWS)
        for name, packed in page:
            try:
                yield unpack_lease_id(name), unpack(packed)[0]
            except (*UNPACK_ERRORS, IndexError) as error:
                raise CorruptError(path, f"a lease cannot be read: {error}") from error
        start = page[-1][0] + b"\0" if len(page) == PAGE_ROWS else None


def attach(txn: WriteTxn, lease_id: int, log_key: bytes) -> None:
    """Attach the key whose newest record is at `log_key`. One write."""
    txn.put(Table.ATTACHED, pack_lease_id(lease_id) + log_key, b"")


def detach(txn: WriteTxn, lease_id: int, log_key: bytes) -> None:
    """Undo `attach`. One write."""
    txn.delete(Table.ATTACHED, [pack_lease_id(lease_id) + log_key])


def attached(txn: ReadTxn, lease_id: int) -> list[tuple[KeyValue, bytes]]:
    """Return the attached keys as they are now with their log keys, in key order. One lookup a key."""
    packed_id = pack_lease_id(lease_id)
    found = []
    start: bytes | None = packed_id
    end = packed_id + b"\xff" * 17
    while start is not None:
        page = txn.page(Table.ATTACHED, start, end, PAGE_ROWS)
        for name, _ in page:
            log_key = name[len(packed_id) :]
            found.append((unpack_record(txn.get(Table.LOG, log_key)), log_key))
        start = page[-1][0] + b"\0" if len(page) == PAGE_ROWS else None
    return sorted(found, key=lambda pair: pair[0].key)
