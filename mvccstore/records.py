"""The stored history as it is: what files of other formats are made of.

`history` and `log` tell events; here are the records behind them, with the place of each in its transaction,
and the leases, all of one moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple, Self

from mvccstore.codec import entry_of, log_key_floor, unpack_log_key, unpack_record
from mvccstore.mvcc.history import is_survivor
from mvccstore.mvcc.lease import granted
from mvccstore.mvcc.read import check_readable
from mvccstore.mvcc.state import FIRST_REVISION, load
from mvccstore.tables import Table
from mvccstore.types import KeyValue, check_revision
from mvccstore.upkeep import Upkeep

PAGE_ROWS_MIN, PAGE_ROWS_MAX = 2, 32
PAGE_BYTES_MAX = 4 << 20


class Record(NamedTuple):
    """One change of one key, as it is stored."""

    main: int
    """Its revision."""
    sub: int
    """Its place among the changes of that revision, from 0."""
    is_tombstone: bool
    kv: KeyValue
    """Of a tombstone, only key and mod_revision are set."""


class Records:
    """All records of a store up to a revision, and its leases; pinned until it is closed. A context manager.

    What compaction made invisible is left out, however far reclaiming is: of each key, what is older than the
    newest record at or below the compact revision, and that itself if it is a tombstone below it. Writes and
    compactions meanwhile change nothing. Leases are those of the moment it is made, whatever the revision.

    Args:
        store: The store.
        revision: The last to show; 0 for the current one.

    Raises:
        CompactedError: `revision` is below the compact revision.
        FutureRevisionError: `revision` is above the current one.

    Of a store that is open read-only, another process may compact what is not yet shown; iterating then raises
    `CompactedError`.

    Cost: memory for the leases and a page of at most 32 records, fewer where they are large; iterating reads each
    record once, and seeks for those at or below the compact revision.
    """

    def __init__(self, store: Upkeep, revision: int = 0) -> None:
        check_revision(revision)
        self._store = store
        # Before the look that decides what is shown: what is compacted from here on stays in the tables.
        self._release = store._hold_history(0)[1]
        self._is_open = True
        try:
            with closing(store._cut(0).txn) as txn:
                state = load(txn, store._path)
                if revision:
                    check_readable(revision, state.revision, state.floor)
                self.leases = list(granted(txn, store._path))
        except BaseException:
            self.close()
            raise
        self.revision = revision or state.revision
        self.compact_revision = state.floor
        """-1 on a store that was never compacted."""

    def __iter__(self) -> Iterator[Record]:
        floor, end = max(self.compact_revision, FIRST_REVISION), log_key_floor(self.revision + 1)
        start: bytes | None = b""
        limit = PAGE_ROWS_MIN
        while start is not None:
            rows = []
            with closing(self._store._cut_pinned(floor).txn) as txn:
                page = txn.page(Table.LOG, start, end, limit)
                for log_key, packed in page:
                    kv = unpack_record(packed, self._store._path)
                    main, sub, is_tombstone, _, _ = unpack_log_key(log_key)
                    if main > floor or is_survivor(txn, kv.key, entry_of(log_key, kv), floor):
                        rows.append(Record(main, sub, is_tombstone, kv))
            start = page[-1][0] + b"\0" if len(page) == limit else None
            size_bytes = sum(len(packed) for _, packed in page)
            # The next are taken to be as large as these, so only a sudden change exceeds what a page may have.
            limit = max(1, min(2 * limit, PAGE_ROWS_MAX, PAGE_BYTES_MAX * len(page) // max(size_bytes, 1)))
            del page
            yield from rows

    def close(self) -> None:
        """Let compaction have the history. Closing twice is harmless."""
        if self._is_open:
            self._is_open = False
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
