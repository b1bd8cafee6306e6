"""What compaction takes away, and in which steps, so that it can stop after any of them.

Compacting to revision R forgets, at once, everything below R for readers; *reclaiming* then removes what
nobody can see any more:

* Of every key, the newest version at or below R stays if it is a put. If it is a tombstone it goes, except
  one exactly at R, which a watch from R must still show (etcd 3.5.16 and later).
* Everything older than that version goes. Everything above R stays.

A *pass* looks only at keys that changed since the last one: it reads the log from the last reclaimed
revision (included, for the tombstones kept exactly there) to its target. If that turns out to be much of
the log, it goes over to looking at every key in order, which costs half as much a version. Each step is
planned from a view and carried out in one short write transaction:

1. `plan` reads a piece of the log, or of the keys, and finds the versions to drop.
2. `drop` takes them out of the index, notes their log keys in DROPS, and moves the cursor.
3. When enough are noted, or the pass has read everything, `sweep` deletes them from the log, sorted, so that
   neighbours go together, and `forget_noted` empties DROPS.

Deleting from the log in the order in which the index finds victims would touch a page for every record:
in a store whose keys are overwritten in random order, sorting makes it 20 times fewer pages.

Invariants (`mvccstore.mvcc.check` holds them):

* A record of the log is in the index, or its log key is in DROPS.
* A crash between any two steps loses nothing: the cursor says what was looked at, DROPS what is left to sweep,
  and every step can be done again.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from struct import Struct

from mvccstore.codec import (
    COMPLEMENT,
    UNPACK_ERRORS,
    entry_floor,
    entry_main,
    is_live,
    log_key_floor,
    pack_u64,
    unpack_record,
    unpack_row,
)
from mvccstore.errors import CorruptError
from mvccstore.mvcc.state import Compaction, load_compaction, save_compaction
from mvccstore.tables import ENTRY_BYTES, LOG_KEY_BYTES, ReadTxn, Table, WriteTxn

SWEEP_AT = 250_000
"""Dropped records that are noted before they are swept: 4 MB of log keys."""
_BY_KEY = b"\1"
"""Before the next key, the cursor of a pass in key order; log keys begin with a zero byte."""
TIMES_AT_ONCE = 2_000
_OLDEST = b"\xff" * ENTRY_BYTES
_LOG_KEYS = Struct(f"{LOG_KEY_BYTES}s")


@dataclass(frozen=True, slots=True)
class Step:
    """What one write transaction of a pass does."""

    compaction: Compaction
    """How far it will be afterwards."""
    victims: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    """Keys, and the index entries to take from each."""


def begin_pass(compaction: Compaction, target: int) -> Compaction | None:
    """Return the compaction with a pass under way up to `target`; None if there is nothing to do.

    An interrupted pass goes on with its own target: keys that it has passed were dropped to that one.
    """
    if compaction.target > compaction.reclaimed:
        return compaction
    if target <= compaction.reclaimed:
        return None
    return replace(compaction, target=target, cursor=log_key_floor(max(compaction.reclaimed, 0)))


def is_in_key_order(compaction: Compaction) -> bool:
    """Say whether a pass goes over the keys, not over the log."""
    return compaction.cursor.startswith(_BY_KEY)


def in_key_order(compaction: Compaction) -> Compaction:
    """Return the pass begun anew in key order, which is better when it has most of the log to look at.

    Then neighbours in the index go together, and no record has to be read.
    """
    return compaction if is_in_key_order(compaction) else replace(compaction, cursor=_BY_KEY)


def plan(txn: ReadTxn, compaction: Compaction, limit: int, noted: Container[bytes]) -> Step | None:
    """Find what to drop for the next `limit` records of the log, or keys; None when the pass is through.

    Args:
        txn: A view of the store.
        compaction: How far the pass is.
        limit: Records or keys to look at, and versions to drop, at most.
        noted: Log keys that the pass has dropped and not swept: their keys need no second look.

    Cost: in log order one record read each, and a seek for each of their keys that is new to the pass and
    for each survivor; in key order a seek for each key. And a step for each version dropped.
    """
    floor = entry_floor(compaction.target)
    is_by_key = is_in_key_order(compaction)
    if is_by_key:
        page = txn.newest_page(compaction.cursor[len(_BY_KEY) :], None, floor, limit)
        keys = [key for key, _ in page]
        cursor = _BY_KEY + keys[-1] + b"\0" if keys else b""
    else:
        records = txn.page(Table.LOG, compaction.cursor, log_key_floor(compaction.target + 1), limit)
        keys = sorted({_key(record) for log_key, record in records if log_key not in noted})
        cursor = records[-1][0] + b"\0" if records else b""
    if not cursor:
        return None
    victims: list[tuple[bytes, tuple[bytes, ...]]] = []
    room = limit
    for key in keys:
        entries = txn.entries(key, floor, room + 1)
        has_more = len(entries) > room
        if has_more:
            # The oldest first: without its tombstone, an older put would be seen again.
            doomed = txn.entries(key, _OLDEST, room, reverse=True)
        else:
            doomed = entries[1:] if entries and _survives(entries[0], compaction.target) else entries
        if doomed:
            victims.append((key, tuple(doomed)))
        room -= len(doomed)
        if has_more or room <= 0:
            # Enough for one step. In key order the next one goes on from here; in log order it looks at the
            # same piece again, where the keys that are done have no more to drop.
            here = _BY_KEY + key + (b"" if has_more else b"\0")
            return Step(replace(compaction, cursor=here) if is_by_key else compaction, tuple(victims))
    return Step(replace(compaction, cursor=cursor), tuple(victims))


def _key(record: bytes) -> bytes:
    try:
        key: bytes = unpack_row(record)[0]
    except UNPACK_ERRORS:
        key = unpack_record(record).key  # says what is wrong
    return key


def _survives(entry: bytes, target: int) -> bool:
    return bool(is_live(entry)) or entry_main(entry) == target


def drop(txn: WriteTxn, step: Step) -> list[bytes]:
    """Take the victims out of the index, note and return their log keys. Cost: one delete each."""
    log_keys: list[bytes] = []
    for key, entries in step.victims:
        txn.remove(key, list(entries))
        log_keys += [entry[:LOG_KEY_BYTES].translate(COMPLEMENT) for entry in entries]
    if log_keys:
        last = txn.page(Table.DROPS, b"", None, 1, reverse=True)
        number = int.from_bytes(last[0][0]) + 1 if last else 0
        txn.put(Table.DROPS, pack_u64(number), b"".join(log_keys))
    # The revision may have been raised since the step was planned.
    current = load_compaction(txn, "").revision
    save_compaction(txn, replace(step.compaction, revision=max(current, step.compaction.revision)))
    return log_keys


def noted(txn: ReadTxn) -> list[bytes]:
    """Return the log keys waiting to be swept, sorted. Bounded by `SWEEP_AT` and one step."""
    log_keys: list[bytes] = []
    for _, joined in txn.page(Table.DROPS, b"", None, SWEEP_AT):
        if len(joined) % LOG_KEY_BYTES:
            path = ""
            raise CorruptError(path, f"a note of dropped records has {len(joined)} bytes")
        log_keys += [log_key for (log_key,) in _LOG_KEYS.iter_unpack(joined)]
    return sorted(log_keys)


def sweep(txn: WriteTxn, log_keys: list[bytes]) -> None:
    """Delete dropped records from the log. Cost: one delete each."""
    txn.delete(Table.LOG, log_keys)


def forget_noted(txn: WriteTxn) -> None:
    """Drop the notes, once everything they name is swept."""
    txn.delete(Table.DROPS, [name for name, _ in txn.page(Table.DROPS, b"", None, SWEEP_AT)])


def finish_pass(txn: WriteTxn, target: int) -> None:
    """Mark the pass as done, once everything is swept, and drop the times that are of no use any more."""
    assert not txn.length(Table.DROPS)
    # The revision may have been raised since the pass was begun.
    save_compaction(txn, Compaction(load_compaction(txn, "").revision, reclaimed=target))
    # The entry that tells the time of the target itself stays, and keeps its revision.
    keep = txn.page(Table.TIMES, b"", pack_u64(target + 1), 1, reverse=True)
    if keep:
        # What is too much for one transaction waits for the next pass.
        old = txn.page(Table.TIMES, b"", keep[0][0], TIMES_AT_ONCE)
        txn.delete(Table.TIMES, [revision for revision, _ in old])
