"""Subscriptions as they are stored: a name, the keys, how far is acknowledged, how much history may be held.

A subscription is a record of META under `subscription/` and its name. It is no key of the user's: changing it
makes no revision and no event. `revision` is the cursor; everything up to it is acknowledged.

One *holds* history, so that compaction must leave revision `revision + 1` and all after it, as long as:

* it wants any: something was written after its cursor,
* it has lost nothing yet: what comes after its cursor can still be read, and
* it is within its limits: at most `hold_revisions` were written after its cursor, and the first of them was
  written at most `hold_ms` ago.

All of that is in the tables and the command, so everybody who applies a compaction decides the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

from mvccstore.codec import UNPACK_ERRORS, keys_fields, keys_of, pack, unpack
from mvccstore.errors import (
    CompactedError,
    CorruptError,
    FutureRevisionError,
    SubscriptionNotFoundError,
)
from mvccstore.mvcc.state import FIRST_REVISION, State
from mvccstore.mvcc.times import time_of
from mvccstore.tables import ReadTxn, Table, WriteTxn
from mvccstore.types import (
    Keys,
    SubscriptionAckRequest,
    SubscriptionDeleteRequest,
    SubscriptionRequest,
    SubscriptionSaveRequest,
)

META_PREFIX = b"subscription/"
META_END = b"subscription0"
PAGE_ROWS = 1_000


class Record(NamedTuple):
    """A subscription."""

    name: str
    keys: Keys
    revision: int
    """Everything up to it is acknowledged."""
    hold_revisions: int | None
    hold_ms: int | None


def load(txn: ReadTxn, name: str, path: str = "") -> Record | None:
    """Read a subscription; None if there is none of this name. One lookup."""
    packed = txn.get(Table.META, META_PREFIX + name.encode())
    return None if packed is None else _unpacked(name, packed, path)


def packed_records(txn: ReadTxn) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over the stored records, in the order of names."""
    resume: bytes | None = META_PREFIX
    while resume is not None:
        page = txn.page(Table.META, resume, META_END, PAGE_ROWS)
        yield from page
        resume = page[-1][0] + b"\0" if len(page) == PAGE_ROWS else None


def records(txn: ReadTxn, path: str = "") -> Iterator[Record]:
    """Iterate over the subscriptions, in the order of their names."""
    for meta_name, packed in packed_records(txn):
        yield unpack_record(meta_name, packed, path)


def unpack_record(meta_name: bytes, packed: bytes, path: str = "") -> Record:
    """Return a subscription as it is stored.

    Raises:
        CorruptError: It contradicts itself.
    """
    try:
        name = meta_name.removeprefix(META_PREFIX).decode()
    except UnicodeDecodeError as error:
        raise CorruptError(path, f"a subscription is called {meta_name!r}, which is not UTF-8") from error
    return _unpacked(name, packed, path)


def _unpacked(name: str, packed: bytes, path: str) -> Record:
    if packed[:4] != crc32(packed[4:]).to_bytes(4):
        raise CorruptError(path, f"the record of subscription {name!r} does not match its checksum")
    try:
        fields, revision, hold_revisions, hold_ms = unpack(packed[4:])
        # Holds the fields against their types and bounds, as it did when they came in.
        request = SubscriptionSaveRequest(name, keys_of(fields), revision, hold_revisions, hold_ms)
    except UNPACK_ERRORS as error:
        raise CorruptError(path, f"the record of subscription {name!r} cannot be read: {error}") from error
    if type(revision) is not int:
        raise CorruptError(path, f"the record of subscription {name!r} has {revision!r} for a revision")
    return Record(name, request.keys, revision, hold_revisions, hold_ms)


def save(txn: WriteTxn, record: Record) -> None:
    """Store a subscription."""
    packed = pack((keys_fields(record.keys), record.revision, record.hold_revisions, record.hold_ms))
    txn.put(Table.META, META_PREFIX + record.name.encode(), crc32(packed).to_bytes(4) + packed)


def change(txn: WriteTxn, state: State, request: SubscriptionRequest) -> None:
    """Carry out a request.

    Raises:
        SubscriptionNotFoundError: There is none of this name, and the request does not create one.
        CompactedError: It is to start below the compact revision.
        FutureRevisionError: It is to start, or to be acknowledged, behind what was written.
    """
    before = load(txn, request.name)
    if isinstance(request, SubscriptionSaveRequest):
        if request.start_revision is None:
            if before is None:
                raise SubscriptionNotFoundError(request.name)
            revision = before.revision
        else:
            revision = _cursor(state, request.start_revision)
        save(txn, Record(request.name, request.keys, revision, request.hold_revisions, request.hold_ms))
        return
    if before is None:
        raise SubscriptionNotFoundError(request.name)
    if isinstance(request, SubscriptionDeleteRequest):
        txn.delete(Table.META, [META_PREFIX + request.name.encode()])
        return
    assert isinstance(request, SubscriptionAckRequest)
    if request.revision > state.revision:
        raise FutureRevisionError(request.revision, state.revision)
    if request.revision > before.revision:
        save(txn, before._replace(revision=request.revision))


def _cursor(state: State, start_revision: int) -> int:
    if start_revision == 0:
        return state.revision
    if start_revision > state.revision + 1:
        raise FutureRevisionError(start_revision, state.revision)
    if start_revision < state.floor:
        raise CompactedError(start_revision, state.floor)
    return start_revision - 1


def is_holding(txn: ReadTxn, record: Record, revision: int, floor: int, time_ms: int) -> bool:
    """Say whether a subscription holds history, at a revision, compact revision and time. Two lookups at most."""
    wanted = record.revision + 1
    if wanted > revision or wanted < floor:
        return False
    if record.hold_revisions is not None and revision - record.revision > record.hold_revisions:
        return False
    if record.hold_ms is None:
        return True
    # Nobody writes the first revision, so that it has no time.
    written_ms = time_of(txn, max(wanted, FIRST_REVISION + 1))
    return written_ms is not None and time_ms - written_ms <= record.hold_ms


def first_held(txn: ReadTxn, revision: int, floor: int, time_ms: int, path: str = "") -> Record | None:
    """Return the subscription that holds the oldest revision; None if none holds any. O(subscriptions)."""
    holding = [record for record in records(txn, path) if is_holding(txn, record, revision, floor, time_ms)]
    return min(holding, key=lambda record: record.revision, default=None)
