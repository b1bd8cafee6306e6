"""The changes of a key or range, a page at a time: what watches, `history` and `log` show of the past.

What compaction made invisible is never shown, so no answer depends on how far reclaiming is.
"""

from __future__ import annotations

from operator import itemgetter

from mvccstore.codec import (
    UNPACK_ERRORS,
    entry_floor,
    entry_main,
    entry_of,
    is_live,
    log_key_floor,
    main_of,
    new_event,
    new_row,
    unpack_record,
    unpack_row,
)
from mvccstore.mvcc.read import PAGE_BYTES, Entries, get, rows, rows_within
from mvccstore.tables import ReadTxn, Table
from mvccstore.types import Event, KeyRange, Keys, KeyValue

_STEP_RECORDS_FIRST = 16
_ROW_LENGTHS = {len(KeyValue._fields)}
_FIRST = itemgetter(0)


class History:
    """The changes of a key or range between two revisions, a page at a time, oldest first.

    Args:
        keys: A key or range.
        start_revision: The first revision to show; 0 for everything kept, that is the version of each key
            that compaction left at or below `floor`, then all after it.
        last: The last revision to show.
        floor: The compact revision, at least 1.

    What is below the floor but not yet reclaimed is never shown, so the answer does not depend on how far
    reclaiming is. Cost: for one key a lookup a change; for a range every record of the log between.
    """

    __slots__ = ("_first", "_floor", "_keys", "_last")

    def __init__(self, keys: Keys, start_revision: int, last: int, floor: int) -> None:
        self._keys = keys
        self._first = start_revision
        self._last = last
        self._floor = floor

    def start(self, txn: ReadTxn) -> bytes | None:
        """Return where the first page begins."""
        if isinstance(self._keys, KeyRange):
            return log_key_floor(self._first)
        if self._first > self._floor:
            return _entry_before(entry_floor(self._first - 1))
        survivor = txn.newest_at(self._keys, entry_floor(self._floor))
        if survivor is not None and self._survives(survivor) and entry_main(survivor) >= self._first:
            return survivor
        return _entry_before(entry_floor(self._floor))

    def page(self, txn: ReadTxn, first: bytes, limit: int) -> tuple[list[Event], bytes | None]:
        """Return the changes from `first` on, and where to go on; None at the end.

        At most `limit` of them, and fewer if they are large: no more once they have `PAGE_BYTES`.
        """
        if isinstance(self._keys, KeyRange):
            return self._range_page(txn, self._keys, first, limit)
        entries = txn.entries(self._keys, first, limit, reverse=True)
        resume = _entry_before(entries[-1]) if len(entries) == limit else None
        end = entry_floor(self._last)
        kept = [(self._keys, entry) for entry in entries if entry >= end]
        if len(kept) < len(entries):
            resume = None
        kvs = rows_within(txn, kept, PAGE_BYTES)
        if len(kvs) < len(kept):
            resume = kept[len(kvs)][1]
        return [_event(kv, entry) for kv, (_, entry) in zip(kvs, kept, strict=False)], resume

    def _range_page(self, txn: ReadTxn, keys: KeyRange, first: bytes, limit: int) -> tuple[list[Event], bytes | None]:
        records, resume = _log_within(txn, first, log_key_floor(self._last + 1), limit, PAGE_BYTES)
        if records and main_of(records[0][0]) <= self._floor:
            return self._kept(txn, keys, records), resume
        start, end = keys.start, keys.end
        # The bit is that of a tombstone. All written out: it is where the time of a replay goes, 0.7 us an event.
        events = [
            new_event(("delete" if log_key[11] & 1 else "put", kv, None))
            for (log_key, _), kv in zip(records, _unpacked(records), strict=True)
            if start <= kv.key and (end is None or kv.key < end)
        ]
        return events, resume

    def _kept(self, txn: ReadTxn, keys: KeyRange, records: Entries) -> list[Event]:
        """Return the changes of a page in which some may be at or below the floor, in the order of the records."""
        events = []
        for log_key, record in records:
            kv = unpack_record(record)
            if kv.key in keys:
                entry = entry_of(log_key, kv)
                if main_of(log_key) > self._floor or self._is_survivor(txn, kv.key, entry):
                    events.append(_event(kv, entry))
        return events

    def _is_survivor(self, txn: ReadTxn, key: bytes, entry: bytes) -> bool:
        return is_survivor(txn, key, entry, self._floor)

    def _survives(self, entry: bytes) -> bool:
        return _may_survive(entry, self._floor)


class NewestFirst(History):
    """The changes of a key or range, newest first. What is shown is the same."""

    __slots__ = ()

    def start(self, _txn: ReadTxn) -> bytes | None:
        """Return where the first page begins."""
        if isinstance(self._keys, KeyRange):
            return log_key_floor(self._last + 1)
        return entry_floor(self._last)

    def page(self, txn: ReadTxn, first: bytes, limit: int) -> tuple[list[Event], bytes | None]:
        """Return the changes from `first` back, and where to go on; None at the end."""
        if isinstance(self._keys, KeyRange):
            return self._log_page(txn, self._keys, first, limit)
        entries = txn.entries(self._keys, first, limit)
        resume = (int.from_bytes(entries[-1]) + 1).to_bytes(len(entries[-1])) if len(entries) == limit else None
        kept = [(self._keys, entry) for entry in entries if self._is_shown(txn, self._keys, entry)]
        if len(kept) < len(entries):
            resume = None
        events = [_event(kv, entry) for kv, (_, entry) in zip(rows(txn, kept), kept, strict=True)]
        return events, resume

    def _log_page(self, txn: ReadTxn, keys: KeyRange, end: bytes, limit: int) -> tuple[list[Event], bytes | None]:
        records = txn.page(Table.LOG, log_key_floor(self._first), end, limit, reverse=True)
        return self._kept(txn, keys, records), records[-1][0] if len(records) == limit else None

    def _is_shown(self, txn: ReadTxn, key: bytes, entry: bytes) -> bool:
        main = entry_main(entry)
        return main >= self._first and (main > self._floor or self._is_survivor(txn, key, entry))


def is_survivor(txn: ReadTxn, key: bytes, entry: bytes, floor: int) -> bool:
    """Say whether a version at or below the compact revision, at least 1, is one that compaction leaves. A seek."""
    return _may_survive(entry, floor) and txn.newest_at(key, entry_floor(floor)) == entry


def _may_survive(entry: bytes, floor: int) -> bool:
    return bool(is_live(entry)) or entry_main(entry) == floor


def _unpacked(records: Entries) -> list[KeyValue]:
    """Return the rows of log records. Of their types, only what the answer would trip over is checked."""
    try:
        kvs = list(map(new_row, map(unpack_row, [record for _, record in records])))
        if set(map(len, kvs)) <= _ROW_LENGTHS and set(map(type, map(_FIRST, kvs))) <= {bytes}:
            return kvs
    except UNPACK_ERRORS:
        pass
    return [unpack_record(record) for _, record in records]  # says what is wrong


def _entry_before(entry: bytes) -> bytes:
    return (int.from_bytes(entry) - 1).to_bytes(len(entry))


def _event(kv: KeyValue, entry: bytes) -> Event:
    return Event("put" if is_live(entry) else "delete", kv)


def prev_kv(txn: ReadTxn, event: Event, compact_revision: int) -> KeyValue | None:
    """Return the key as it was before the revision of an event; None if it was not, or is compacted."""
    before = event.kv.mod_revision - 1
    if before < compact_revision:
        return None
    return get(txn, event.kv.key, entry_floor(before))


def _log_within(
    txn: ReadTxn, first: bytes, end: bytes, limit: int, bytes_max: int
) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    """Return records of the log, at most `limit` and no more once they have `bytes_max` bytes; and where to go on."""
    step = min(limit, _STEP_RECORDS_FIRST)
    records = found = txn.page(Table.LOG, first, end, step)
    size = sum(len(record) for _, record in found)
    while len(found) == step and len(records) < limit and size < bytes_max:
        step = min(limit - len(records), max(1, (bytes_max - size) * len(records) // size))
        found = txn.page(Table.LOG, records[-1][0] + b"\0", end, step)
        size += sum(len(record) for _, record in found)
        records = records + found
    return records, records[-1][0] + b"\0" if len(found) == step else None
