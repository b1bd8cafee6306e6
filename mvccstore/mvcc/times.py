"""When revisions were written.

The TIMES table has an entry (revision, milliseconds) for a revision that comes at least
`RESOLUTION_MS` after the entry before it, so a store that is written to now and then knows the time of
each revision, and one written to 100,000 times a second pays for 100 entries. Times never fall from one
entry to the next, also when the clock does.
"""

from __future__ import annotations

from typing import Final

from mvccstore.codec import pack_u64, unpack_u64
from mvccstore.options import Retention
from mvccstore.tables import ReadTxn, Table, WriteTxn

RESOLUTION_MS: Final = 10


def note(txn: WriteTxn, revision: int, time_ms: int, last_ms: int) -> int:
    """Keep the time of a revision if it is due one. Return the last time kept."""
    if time_ms < last_ms + RESOLUTION_MS and last_ms:
        return last_ms
    txn.append(Table.TIMES, pack_u64(revision), pack_u64(time_ms))
    return time_ms


def time_of(txn: ReadTxn, revision: int) -> int | None:
    """Return when a revision was written, to `RESOLUTION_MS`; None if it is too old to be known. One lookup."""
    found = txn.page(Table.TIMES, b"", pack_u64(revision + 1), 1, reverse=True)
    return unpack_u64(found[0][1]) if found else None


def revision_at(txn: ReadTxn, time_ms: int, current: int) -> int | None:
    """Return the last revision written at or before a time; None if that is before all that is known.

    Cost: a lookup for each bit of the current revision's number.
    """
    oldest = txn.page(Table.TIMES, b"", None, 1)
    if not oldest or unpack_u64(oldest[0][1]) > time_ms:
        return None
    low, high = unpack_u64(oldest[0][0]), current  # time_of(low) <= time_ms
    while low < high:
        middle = (low + high + 1) // 2
        written_ms = time_of(txn, middle)
        if written_ms is not None and written_ms <= time_ms:
            low = middle
        else:
            high = middle - 1
    return low


def retained(txn: ReadTxn, retention: Retention, now_ms: int, current: int) -> int:
    """Return the revision to compact to so that what a retention keeps stays; 0 for none. Cost: as `revision_at`."""
    targets = []
    if retention.revisions is not None:
        targets.append(current - retention.revisions)
    if retention.seconds is not None:
        targets.append(revision_at(txn, now_ms - round(retention.seconds * 1000), current) or 0)
    return min(targets)
