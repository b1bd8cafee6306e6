"""Reading: what a store, a snapshot and a transaction block have in common.

A *cut* is one short engine view together with the revision it is read at. `get`, `range` and `count` take
one cut. `scan` and `history` take one a page, all at one revision that is pinned while the iterator is
open, so that compaction leaves it alone; no engine view stays open between pages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from mvccstore.codec import entry_floor
from mvccstore.errors import ClosedError, CompactedError, FutureRevisionError
from mvccstore.mvcc import history, read
from mvccstore.mvcc.state import FIRST_REVISION
from mvccstore.tables import ReadTxn
from mvccstore.types import (
    Event,
    Keys,
    KeyValue,
    Op,
    RangeRequest,
    RangeResult,
    SortTarget,
    check_keys,
    check_revision,
)

T = TypeVar("T")
_PAGE_ROWS_FIRST = 50
PAGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Page:
    """The next rows of a range."""

    revision: int
    """The revision that was read: the one asked for, or the one current then."""
    kvs: tuple[KeyValue, ...]
    resume: bytes | None
    """Where the next page begins; None if there is none."""


class Cut(NamedTuple):
    """One engine view, at a revision."""

    txn: ReadTxn
    at: bytes
    """The index entry to seek."""
    revision: int
    """The reader's current revision; the cut may be at an older one."""
    floor: int
    """The compact revision, for this reader."""


class ReadView(Protocol):
    """What `Store`, `Snapshot` and `Txn` can all be asked."""

    @property
    def revision(self) -> int:
        """The current revision."""
        ...

    def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """Return one key."""
        ...

    def range(
        self,
        keys: Keys,
        *,
        revision: int = 0,
        limit: int = 0,
        order_by: SortTarget = "key",
        descending: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
    ) -> RangeResult:
        """Return the keys of a range."""
        ...

    def scan(self, keys: Keys, *, revision: int = 0, keys_only: bool = False) -> Scan[KeyValue]:
        """Iterate over the keys of a range."""
        ...

    def count(self, keys: Keys, *, revision: int = 0) -> int:
        """Count the keys of a range."""
        ...

    def history(
        self, keys: Keys, *, start_revision: int = 0, end_revision: int = 0, prev_kv: bool = False
    ) -> Scan[Event]:
        """Iterate over the changes of a key or range."""
        ...


class Scan(Generic[T]):
    """A lazy answer: an iterator that reads a page at a time, all at one revision.

    It holds that revision back from compaction until it is exhausted, closed, or collected. Used by one
    thread.
    """

    __slots__ = ("_is_cut_off", "_next_page", "_page_rows", "_release", "_resume", "_rows")

    def __init__(
        self,
        next_page: Callable[[bytes, int], tuple[list[T], bytes | None]],
        start: bytes | None,
        release: Callable[[], None],
    ) -> None:
        self._next_page = next_page
        self._resume = start
        self._is_cut_off = False
        self._release: Callable[[], None] | None = release
        self._rows: deque[T] = deque()
        self._page_rows = _PAGE_ROWS_FIRST  # small at first, for those who want a few rows only

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while not self._rows:
            if self._resume is None:
                if self._is_cut_off:
                    what = "scan"
                    raise ClosedError(what)
                self.close()
                raise StopIteration
            rows, self._resume = self._next_page(self._resume, self._page_rows)
            self._rows.extend(rows)
            self._page_rows = min(self._page_rows * 4, read.PAGE_ROWS)
        return self._rows.popleft()

    def close(self) -> None:
        """Stop, and let compaction have the revision. Closing twice is harmless.

        Going on with a scan that was closed before its end raises `ClosedError`: it must not look complete.
        """
        self._is_cut_off = self._is_cut_off or self._resume is not None or bool(self._rows)
        self._resume = None
        self._rows.clear()
        if self._release is not None:
            release, self._release = self._release, None
            release()

    def __enter__(self) -> Scan[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_release", None) is not None:
            self.close()


class View(ABC):
    """The reading half of `Store`, `Snapshot` and `Txn`."""

    __slots__ = ()

    @abstractmethod
    def _cut(self, revision: int) -> Cut:
        """Begin a cut at `revision`, 0 for the current one; raise if it cannot be read."""

    @abstractmethod
    def _pin(self, revision: int) -> Callable[[], None]:
        """Hold a revision back from compaction; return what undoes that."""

    def _release(self, txn: ReadTxn) -> None:
        """End the engine view of a cut."""
        txn.close()

    def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """Return the key as it is, or was at `revision`; None if it does not exist then.

        Sees every write that was acknowledged before the call.

        Args:
            key: One key, not empty.
            revision: From the compact revision to the current one; 0 for the current one.

        Raises:
            CompactedError: `revision` is below the compact revision.
            FutureRevisionError: `revision` is above the current one.
            ClosedError: This was closed.

        Cost: two lookups, at any revision and however many versions the key has.
        """
        check_revision(revision)
        if type(key) is not bytes:
            check_keys(key)
            msg = "get takes one key; range, scan and count take ranges"
            raise TypeError(msg)
        check_keys(key)
        cut = self._cut(revision)
        try:
            return read.get(cut.txn, key, cut.at, is_old=revision != 0)
        finally:
            self._release(cut.txn)

    def range(
        self,
        keys: Keys,
        *,
        revision: int = 0,
        limit: int = 0,
        order_by: SortTarget = "key",
        descending: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
    ) -> RangeResult:
        """Return the keys of a range, all as of one revision, in memory.

        Args:
            keys: A key or a `KeyRange`.
            revision: As for `get`.
            limit: Rows at most, 0 for all; `more` then says whether there were more. Cut after sorting.
            order_by: What to sort by; ties stay in key order.
            descending: Sort from the greatest down.
            keys_only: Leave the values empty.
            count_only: Leave the rows out; limit and filters then have no effect.
            min_mod_revision: Leave out keys last changed before it; likewise the other three. 0 for no
                filter. `count` counts all keys in the range all the same.

        Raises:
            CompactedError: `revision` is below the compact revision.
            FutureRevisionError: `revision` is above the current one.
            ClosedError: This was closed.

        Cost: an index step for each key in the range (also past the limit: `count` counts them; `scan`
        stops where you stop), a lookup for each row returned, for all of them if sorted by version,
        create or value.
        """
        request = Op.range(
            keys,
            revision=revision,
            limit=limit,
            order_by=order_by,
            descending=descending,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        cut = self._cut(revision)
        try:
            return read.find(cut.txn, request, cut.at, cut.revision)
        finally:
            self._release(cut.txn)

    def find(self, request: RangeRequest) -> RangeResult:
        """Answer a range request by etcd's rules for numbers that `range` refuses. For servers.

        A negative `revision` is the current one, a negative limit is none, a negative filter is one.

        Raises, Cost: as `range`.
        """
        revision = max(request.revision, 0)
        cut = self._cut(revision)
        try:
            return read.find(cut.txn, request, cut.at, cut.revision)
        finally:
            self._release(cut.txn)

    def page(self, keys: Keys, *, revision: int = 0, limit: int = read.PAGE_ROWS, bytes_max: int = PAGE_BYTES) -> Page:
        """Return the first rows of a range in key order, and where the next page begins.

        To go on: `page(KeyRange(page.resume, end), revision=page.revision)`. Nothing is held between two pages:
        hold a `snapshot` where compaction must not come in between.

        Args:
            keys: A key or a `KeyRange`.
            revision: As for `get`.
            limit: Rows at most, from 1 up.
            bytes_max: The page ends with the row that brings keys and values to so many bytes.

        Raises: what `range` raises.

        Cost: an index step and a lookup a row; a few rows beyond `bytes_max` are read at worst.

        >>> import mvccstore
        >>> from mvccstore import KeyRange
        >>> store = mvccstore.open()
        >>> _ = [store.put(key, b"") for key in (b"a", b"b", b"c")]
        >>> page = store.page(KeyRange.all(), limit=2)
        >>> [kv.key for kv in page.kvs], page.resume
        ([b'a', b'b'], b'c')
        """
        check_revision(revision)
        check_keys(keys)
        if limit < 1 or bytes_max < 0:
            msg = f"limit is {limit} and bytes_max {bytes_max}; they are from 1 and from 0 up"
            raise ValueError(msg)
        cut = self._cut(revision)
        try:
            kvs, resume = read.bounded(cut.txn, keys, cut.at, limit, bytes_max)
            return Page(revision or cut.revision, tuple(kvs), resume)
        finally:
            self._release(cut.txn)

    def count(self, keys: Keys, *, revision: int = 0) -> int:
        """Return the number of keys in a range.

        Raises what `range` raises.

        Cost: an index step a key; no record is read.
        """
        check_revision(revision)
        check_keys(keys)
        cut = self._cut(revision)
        try:
            return read.count(cut.txn, keys, cut.at)
        finally:
            self._release(cut.txn)

    def scan(self, keys: Keys, *, revision: int = 0, keys_only: bool = False) -> Scan[KeyValue]:
        """Iterate over the keys of a range in key order, all as of one revision: the one current now, or `revision`.

        Writes and compactions during the scan do not change what it yields.

        Raises:
            CompactedError: `revision` is below the compact revision.
            FutureRevisionError: `revision` is above the current one.
            ClosedError: This is closed, or is closed before the scan has ended.

        Cost: what `range` costs, a page at a time; memory for a page of at most 1,000 rows.
        """
        check_revision(revision)
        check_keys(keys)
        cut, release = self._hold(revision)
        at = cut.at
        pinned = revision or cut.revision
        start, end = read.bounds(keys)

        def next_page(resume: bytes, limit: int) -> tuple[list[KeyValue], bytes | None]:
            if end is not None and resume >= end:
                return [], None
            page = self._cut_pinned(pinned)
            try:
                entries, following = read.live_page(page.txn, resume, end, at, limit)
                rows = read.rows(page.txn, entries)
            finally:
                self._release(page.txn)
            return [kv._replace(value=b"") for kv in rows] if keys_only else rows, following

        return Scan(next_page, start, release)

    def history(
        self, keys: Keys, *, start_revision: int = 0, end_revision: int = 0, prev_kv: bool = False
    ) -> Scan[Event]:
        """Iterate over the changes of a key or range in the order they were made, deletes included.

        Args:
            keys: A key or a `KeyRange`.
            start_revision: The first revision to show. 0 for all that is kept: of each key the version that
                was current at the compact revision, then everything after.
            end_revision: The last revision to show; 0 for the one current now.
            prev_kv: Give each event the key as it was before.

        Raises:
            CompactedError: `start_revision` is below the compact revision.
            FutureRevisionError: `start_revision` or `end_revision` is above the current one.
            ClosedError: This is closed, or is closed before the iteration has ended.

        Cost: for one key a lookup for each of its changes; for a range the whole log between the two
        revisions is read. Memory for a page of at most 1,000 changes.
        """
        check_revision(start_revision)
        check_revision(end_revision)
        check_keys(keys)
        cut, release = self._hold_history(start_revision)
        floor = max(cut.floor, FIRST_REVISION)
        last = end_revision or cut.revision
        try:
            if last > cut.revision:
                raise FutureRevisionError(last, cut.revision)
            pages = history.History(keys, start_revision, last, floor)
            first = self._cut_pinned(floor)
            try:
                start = pages.start(first.txn)
            finally:
                self._release(first.txn)
        except BaseException:
            release()
            raise

        def next_page(resume: bytes, limit: int) -> tuple[list[Event], bytes | None]:
            page = self._cut_pinned(floor)
            try:
                events, following = pages.page(page.txn, resume, limit)
                if prev_kv:
                    events = [event._replace(prev_kv=history.prev_kv(page.txn, event, floor)) for event in events]
            finally:
                self._release(page.txn)
            return events, following

        return Scan(next_page, start, release)

    @abstractmethod
    def _cut_pinned(self, revision: int) -> Cut:
        """Begin a cut at a revision that `_pin` holds."""

    def _hold(self, revision: int) -> tuple[Cut, Callable[[], None]]:
        """Pin a revision, 0 for the current one. Return a cut at it, closed, and what undoes the pin."""
        while True:
            cut = self._cut(revision)
            self._release(cut.txn)
            try:
                return cut, self._pin(revision or cut.revision)
            except CompactedError:  # just now, between the cut and the pin
                if revision:
                    raise

    def _hold_history(self, start_revision: int) -> tuple[Cut, Callable[[], None]]:
        """Pin the compact revision, so that all later history stays."""
        while True:
            cut = self._cut(0)
            self._release(cut.txn)
            if start_revision:
                read.check_readable(start_revision, cut.revision, cut.floor)
            try:
                return cut, self._pin(max(cut.floor, FIRST_REVISION))
            except CompactedError:
                continue  # just now; the next look sees the new floor


class Snapshot(View):
    """A view of the store pinned at one revision, which compaction leaves alone while it is open.

    Get one from `Store.snapshot`. Any thread may use it. A context manager; also closed when collected.
    """

    __slots__ = ("_is_open", "_revision", "_store", "_unpin")

    def __init__(self, store: View, revision: int, unpin: Callable[[], None]) -> None:
        self._store = store
        self._revision = revision
        self._unpin = unpin
        self._is_open = True

    @property
    def revision(self) -> int:
        """The revision it is pinned at."""
        return self._revision

    def close(self) -> None:
        """Let compaction have the revision. Closing twice is harmless."""
        if self._is_open:
            self._is_open = False
            self._unpin()

    def _cut(self, revision: int) -> Cut:
        if not self._is_open:
            what = "snapshot"
            raise ClosedError(what)
        cut = self._store._cut_pinned(self._revision)
        floor = min(cut.floor, self._revision)
        if revision:
            try:
                read.check_readable(revision, self._revision, floor)
            except BaseException:
                cut.txn.close()
                raise
        return Cut(cut.txn, entry_floor(revision or self._revision), self._revision, floor)

    def _pin(self, revision: int) -> Callable[[], None]:
        return self._store._pin(revision)

    def _cut_pinned(self, revision: int) -> Cut:
        if not self._is_open:
            what = "snapshot"
            raise ClosedError(what)
        return self._store._cut_pinned(revision)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_is_open", False):
            self.close()
