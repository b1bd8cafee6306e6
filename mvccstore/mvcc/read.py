"""What a read sees: one key, a range, a scan, at any revision that is kept.

Every function takes `at`, the index entry to seek (`codec.entry_floor(revision)`): the first entry of a
key at or after it is the newest version visible at that revision. Tombstones are told by a bit of the
entry, so counting and skipping deleted keys never touches the log.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import ge, le
from typing import Final

from mvccstore.codec import (
    COMPLEMENT,
    UNPACK_ERRORS,
    entry_main,
    is_live,
    log_key_of,
    new_row,
    unpack_entry,
    unpack_record,
    unpack_row,
)
from mvccstore.errors import CompactedError, FutureRevisionError
from mvccstore.tables import LOG_KEY_BYTES, ReadTxn, Table
from mvccstore.types import KeyRange, Keys, KeyValue, RangeRequest, RangeResult

PAGE_ROWS: Final = 1_000
PAGE_BYTES = 4 << 20
"""Once the records of a page of history have so many bytes, it ends."""
_STEP_ROWS_FIRST = 16
_LOG: Final = Table.LOG

Entries = list[tuple[bytes, bytes]]


def check_readable(revision: int, current: int, compact_revision: int) -> None:
    """Raise unless `revision` can be read: it is not above the current one nor below the compact one."""
    if revision > current:
        raise FutureRevisionError(revision, current)
    if revision < compact_revision:
        raise CompactedError(revision, compact_revision)


def bounds(keys: Keys) -> tuple[bytes, bytes | None]:
    """Return start and end of a key or range."""
    if isinstance(keys, KeyRange):
        return keys.start, keys.end
    return keys, keys + b"\0"


def live_entry(txn: ReadTxn, key: bytes, at: bytes) -> bytes | None:
    """Return the index entry of a key that exists as of `at`. One lookup, or two if it was changed since."""
    entry = txn.newest(key)
    if entry is not None and entry < at:
        entry = txn.newest_at(key, at)
    return entry if entry is not None and is_live(entry) else None


def get(txn: ReadTxn, key: bytes, at: bytes, *, is_old: bool = False) -> KeyValue | None:
    """Return the key as of `at`.

    Cost: two lookups, or three if it was changed since, which `is_old` expects and then saves.
    """
    if is_old:
        entry = txn.newest_at(key, at)
        if entry is not None and not is_live(entry):
            entry = None
    else:
        entry = live_entry(txn, key, at)
    if entry is None:
        return None
    try:
        return new_row(unpack_row(txn.get(_LOG, log_key_of(entry))))  # type: ignore[arg-type]
    except UNPACK_ERRORS:
        return row(txn, entry)  # says what is wrong


def row(txn: ReadTxn, entry: bytes) -> KeyValue:
    """Return the row an entry points to, its record checked. One lookup."""
    return unpack_record(txn.get(_LOG, log_key_of(entry)))


def rows(txn: ReadTxn, entries: Entries) -> list[KeyValue]:
    """Return the rows that entries point to. One lookup each."""
    records = txn.get_many(_LOG, [entry[:LOG_KEY_BYTES].translate(COMPLEMENT) for _, entry in entries])
    try:
        return list(map(new_row, map(unpack_row, records)))  # type: ignore[arg-type]
    except UNPACK_ERRORS:
        return [unpack_record(record) for record in records]  # says what is wrong


def live_page(txn: ReadTxn, start: bytes, end: bytes | None, at: bytes, limit: int) -> tuple[Entries, bytes | None]:
    """Return live entries of one page of keys, and the key to go on from (None at the end of the range)."""
    page = txn.newest_page(start, end, at, limit)
    resume = page[-1][0] + b"\0" if len(page) == limit else None
    return [found for found in page if found[1][11] & 1], resume


def live_entries(txn: ReadTxn, keys: Keys, at: bytes, limit: int | None = None) -> tuple[Entries, bytes | None]:
    """Return the live entries in a range, at least `limit` of them if there are; and where to go on."""
    start, end = bounds(keys)
    found: Entries = []
    resume: bytes | None = start
    while resume is not None and not (end is not None and resume >= end):
        page_rows = PAGE_ROWS if limit is None else min(PAGE_ROWS, limit - len(found) + 1)
        live, resume = live_page(txn, resume, end, at, page_rows)
        found += live
        if limit is not None and len(found) >= limit:
            return found, resume
    return found, None


def bounded(txn: ReadTxn, keys: Keys, at: bytes, limit: int, bytes_max: int) -> tuple[list[KeyValue], bytes | None]:
    """Return the first rows of a range, at most `limit` and no more once they have `bytes_max` bytes; and where to go on."""
    # One more than asked for, so that a range of just `limit` rows is known to end there.
    entries, resume = live_entries(txn, keys, at, limit + 1)
    if len(entries) > limit:
        resume = entries[limit][0]
        del entries[limit:]
    kvs = rows_within(txn, entries, bytes_max)
    if len(kvs) < len(entries):
        resume = entries[len(kvs)][0]
    return kvs, resume


def rows_within(txn: ReadTxn, entries: Entries, bytes_max: int) -> list[KeyValue]:
    """Return the rows of the first entries, no more once they have `bytes_max` bytes; at least one.

    Records are read a few at a time, more while they turn out to be small.
    """
    kvs: list[KeyValue] = []
    size, step = 0, _STEP_ROWS_FIRST
    while len(kvs) < len(entries):
        read = rows(txn, entries[len(kvs) : len(kvs) + step])
        kvs += read
        size += sum(len(kv.key) + len(kv.value) for kv in read)
        if size >= bytes_max:
            break
        step = max(1, (bytes_max - size) * len(kvs) // (2 * size)) if size else PAGE_ROWS
    return kvs


def count(txn: ReadTxn, keys: Keys, at: bytes) -> int:
    """Count the keys in a range. Cost: one index step a key; no record is read."""
    start, end = bounds(keys)
    return _count_from(txn, start, end, at)


def _count_from(txn: ReadTxn, start: bytes | None, end: bytes | None, at: bytes) -> int:
    total = 0
    while start is not None and not (end is not None and start >= end):
        live, start = live_page(txn, start, end, at, PAGE_ROWS)
        total += len(live)
    return total


def find(txn: ReadTxn, request: RangeRequest, at: bytes, current: int) -> RangeResult:
    """Answer a range request as of `at`. The steps and their order are etcd's.

    The limit cuts before the sort if no order was asked for, and after it otherwise; filters leave `count`
    alone; values are emptied last, so keys-only can be sorted by value.
    """
    start, end = bounds(request.keys)
    if end is not None and start >= end:
        return RangeResult(current, (), 0, more=False)
    if request.count_only:
        return RangeResult(current, (), _count_from(txn, start, end, at), more=False)
    limit = max(request.limit, 0)
    needs_all = request.sort_order != "none" or _has_filters(request)
    entries, resume = live_entries(txn, request.keys, at, None if needs_all or not limit else limit + 1)
    total = len(entries) + _count_from(txn, resume, end, at)
    if limit and not needs_all:
        del entries[limit + 1 :]
    kvs, more = _select(txn, request, entries, limit)
    if request.keys_only:
        kvs = [kv._replace(value=b"") for kv in kvs]
    return RangeResult(current, tuple(kvs), total, more)


def _has_filters(request: RangeRequest) -> bool:
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def _select(txn: ReadTxn, request: RangeRequest, entries: Entries, limit: int) -> tuple[list[KeyValue], bool]:
    """Filter, sort and cut, by the entries alone, so that only records that are shown are read.

    Except when sorting by value: then all are.
    """
    for bound, number, keeps in (
        (request.min_mod_revision, _mod, ge),
        (request.max_mod_revision, _mod, le),
        (request.min_create_revision, _create, ge),
        (request.max_create_revision, _create, le),
    ):
        if bound:
            entries = [found for found in entries if keeps(number(found), bound)]
    is_descending = request.sort_order == "descend"
    if request.sort_target == "value":
        kvs = sorted(rows(txn, entries), key=_value, reverse=is_descending)
        return (kvs[:limit], True) if limit and len(kvs) > limit else (kvs, False)
    if request.sort_target != "key":
        entries.sort(key=_NUMBERS[request.sort_target], reverse=is_descending)
    elif is_descending:
        entries.reverse()
    if limit and len(entries) > limit:
        return rows(txn, entries[:limit]), True
    return rows(txn, entries), False


def _mod(found: tuple[bytes, bytes]) -> int:
    return entry_main(found[1])


def _create(found: tuple[bytes, bytes]) -> int:
    return unpack_entry(found[1]).create_revision


def _version(found: tuple[bytes, bytes]) -> int:
    return unpack_entry(found[1]).version


def _value(kv: KeyValue) -> bytes:
    return kv.value


_NUMBERS: dict[str, Callable[[tuple[bytes, bytes]], int]] = {"mod": _mod, "create": _create, "version": _version}
