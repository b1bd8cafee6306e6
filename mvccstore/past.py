"""History as data: who changed what and when, what differs, and the way back.

What git gives for commits, for revisions: `log`, `diff`, `blame`, `bisect`, `revert`; and `at`, which finds the
revision of a time. All of it stands on two things that a store keeps anyway: the index, which holds the
versions of each key, and the log, which holds the changes of each revision.

Times are known to 10 ms, and for a revision below the compact one perhaps not at all; what is said of them does
not depend on how far reclaiming is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import NamedTuple

from mvccstore.codec import (
    entry_floor,
    pack_lease_id,
    pack_u64,
    unpack_u64,
)
from mvccstore.difference import Difference, differences
from mvccstore.errors import CompactedError, FutureRevisionError
from mvccstore.mvcc import read, times
from mvccstore.mvcc.history import History, NewestFirst, prev_kv
from mvccstore.mvcc.state import FIRST_REVISION
from mvccstore.tables import ReadTxn, Table
from mvccstore.types import Event, KeyRange, Keys, KeyValue, check_keys, check_limit, check_revision
from mvccstore.view import Cut, Scan, Snapshot, View
from mvccstore.write import WritableView

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_ALL = KeyRange.all()


class Change(NamedTuple):
    """One change of one key, as `Past.log` tells it."""

    revision: int
    """The revision that made it."""
    time_ms: int | None
    """When it was made, to 10 ms, in milliseconds since the epoch; None if that is compacted."""
    event: Event
    """What it was, with `prev_kv` where the key existed before and is not compacted."""

    @property
    def time(self) -> datetime | None:
        """When it was made, in UTC."""
        return _datetime(self.time_ms)


class Blame(NamedTuple):
    """Who is to blame for a key being as it is."""

    key: bytes
    revision: int
    """The revision that last set it."""
    version: int
    """How many puts there were since it was created."""
    time_ms: int | None
    """When that was, to 10 ms, in milliseconds since the epoch; None if that is compacted."""
    kv: KeyValue

    @property
    def time(self) -> datetime | None:
        """When it was last set, in UTC."""
        return _datetime(self.time_ms)


@dataclass(frozen=True, slots=True)
class RevertResult:
    """What a revert did."""

    revision: int
    """The revision of the revert; the current one if nothing differed."""
    put: int
    """Keys that were set to what they had been."""
    deleted: int
    """Keys that had not existed."""


class RevertibleView(WritableView):
    """What can be written to, back to what it was."""

    __slots__ = ()

    @property
    @abstractmethod
    def revision(self) -> int:
        """The current revision."""

    def revert(self, keys: Keys, *, to: int) -> RevertResult:
        """Write the state of an earlier revision forward, for the keys given, as part of the block.

        As `Store.revert`, with one thing more to know: a put that is refused raises, and what was reverted
        before it stays in the block, which is then best rolled back.

        Cost: a `diff` between the revisions, and a put or delete for each key that differs.
        """
        _check_target(to)
        put = deleted = 0
        with differences(self, keys, 0, to) as found:
            leases = {0: True}
            for key, now, then in found:
                if then is None:
                    self.delete(key)
                    deleted += 1
                    continue
                if then.lease not in leases:
                    leases[then.lease] = _has_lease(self, then.lease)
                lease = then.lease if leases[then.lease] else 0
                if now is None or (now.value, now.lease) != (then.value, lease):
                    self.put(key, then.value, lease=lease)
                    put += 1
        return RevertResult(self.revision, put, deleted)


class Past(View):
    """History as data; a part of `Store`."""

    __slots__ = ()

    @abstractmethod
    def begin(self) -> AbstractContextManager[RevertibleView]:
        """Begin a transaction block."""

    def log(
        self,
        key: Keys,
        *,
        start_revision: int = 0,
        end_revision: int = 0,
        limit: int = 0,
        newest_first: bool = True,
    ) -> Scan[Change]:
        """Iterate over the versions of a key, or of the keys of a range, the newest first; deletes included.

        The events are those of `history(key, prev_kv=True)`, in the other order, and with the time of each.
        Writes and compactions meanwhile do not change what it yields.

        Args:
            key: A key or a `KeyRange`.
            start_revision: The first revision to show, 0 for all that is kept.
            end_revision: The last revision to show; 0 for the one current now.
            limit: Changes at most, 0 for all: the newest ones, or the oldest without `newest_first`.
            newest_first: Begin at `end_revision` and go back; otherwise the other way.

        Raises:
            CompactedError: `start_revision` is below the compact revision.
            FutureRevisionError: `start_revision` or `end_revision` is above the current one.
            ValueError: `start_revision` is above `end_revision`.
            ClosedError: This is closed, or is closed before the iteration has ended.

        Cost: for one key four lookups for each change shown; for a range also every record of the log from
        where it begins to where you stop. Memory for a page of at most 1,000 changes.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> store.put(b"k", b"1"), store.put(b"k", b"2"), store.delete(b"k")
        (2, 3, 1)
        >>> [(change.revision, change.event.type, change.event.kv.value) for change in store.log(b"k", limit=2)]
        [(4, 'delete', b''), (3, 'put', b'2')]
        """
        check_revision(start_revision)
        check_revision(end_revision)
        check_limit(limit)
        check_keys(key)
        _check_order("start_revision", start_revision, "end_revision", end_revision)
        cut, release = self._hold_history(start_revision)
        floor = max(cut.floor, FIRST_REVISION)
        last = end_revision or cut.revision
        try:
            if last > cut.revision:
                raise FutureRevisionError(last, cut.revision)
            pages = (NewestFirst if newest_first else History)(key, start_revision, last, floor)
            first = self._cut_pinned(floor)
            try:
                start = pages.start(first.txn)
            finally:
                self._release(first.txn)
        except BaseException:
            release()
            raise
        left = limit

        def next_page(resume: bytes, rows: int) -> tuple[list[Change], bytes | None]:
            nonlocal left
            page = self._cut_pinned(floor)
            try:
                events, following = pages.page(page.txn, resume, rows)
                if limit:
                    events = events[:left]
                    left -= len(events)
                    following = following if left else None
                timed_from = _timed_from(page.txn, floor)
                changes = [
                    Change(
                        event.revision,
                        _time_of(page.txn, event.revision, timed_from),
                        event._replace(prev_kv=prev_kv(page.txn, event, floor)),
                    )
                    for event in events
                ]
            finally:
                self._release(page.txn)
            return changes, following

        return Scan(next_page, start, release)

    def diff(self, revision_from: int, revision_to: int = 0, keys: Keys = _ALL) -> Scan[Difference]:
        """Iterate over the keys that differ between two revisions, in key order.

        A key differs if it exists at one of them only, or has another value or another lease. One that was
        written again, or deleted and made again, as it was before, does not: as with files in git, it is the
        content that counts. Writes and compactions meanwhile do not change what it yields.

        Args:
            revision_from: The one that `before` is read at; 0 for the current revision.
            revision_to: The one that `after` is read at; it may also be the older one.
            keys: The key or range to compare; all keys by default.

        Raises:
            CompactedError: One of the revisions is below the compact revision.
            FutureRevisionError: One of the revisions is above the current one.
            ClosedError: This is closed, or is closed before the iteration has ended.

        Cost: an index step for each key in the range and revision, or, where that is less and they are not more
        than 20,000, a record for each change between the revisions; and two lookups for each key that was
        written in between. Memory for a page of at most 1,000 keys, and for the keys changed.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> store.put(b"a", b"1"), store.put(b"b", b"1"), store.put(b"a", b"2"), store.delete(b"b")
        (2, 3, 4, 1)
        >>> for found in store.diff(3, 5):
        ...     print(found.kind, found.key, found.before.value)
        changed b'a' b'1'
        removed b'b' b'1'
        """
        return differences(self, keys, revision_from, revision_to)

    def blame(self, keys: Keys, *, revision: int = 0) -> Scan[Blame]:
        """Iterate over the keys of a range in key order, with the revision that set each of them, and when.

        A put counts also if it left the value as it was. Writes and compactions meanwhile do not change what it
        yields.

        Args:
            keys: A key or a `KeyRange`.
            revision: Look at the keys as they were then; 0 for now.

        Raises:
            CompactedError: `revision` is below the compact revision.
            FutureRevisionError: `revision` is above the current one.
            ClosedError: This is closed, or is closed before the iteration has ended.

        Cost: what `scan` costs, and a lookup a key.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> store.put(b"a", b"1"), store.put(b"b", b"1"), store.put(b"a", b"2")
        (2, 3, 4)
        >>> [(found.key, found.revision, found.version) for found in store.blame(mvccstore.KeyRange.all())]
        [(b'a', 4, 2), (b'b', 3, 1)]
        """
        check_revision(revision)
        check_keys(keys)
        # Not only the revision: the times of what it shows go back to the compact one.
        cut, release = self._hold_history(revision)
        floor = max(cut.floor, FIRST_REVISION)
        at = entry_floor(revision) if revision else cut.at
        start, end = read.bounds(keys)

        def next_page(resume: bytes, limit: int) -> tuple[list[Blame], bytes | None]:
            if end is not None and resume >= end:
                return [], None
            page = self._cut_pinned(floor)
            try:
                entries, following = read.live_page(page.txn, resume, end, at, limit)
                timed_from = _timed_from(page.txn, floor)
                found = [
                    Blame(kv.key, kv.mod_revision, kv.version, _time_of(page.txn, kv.mod_revision, timed_from), kv)
                    for kv in read.rows(page.txn, entries)
                ]
            finally:
                self._release(page.txn)
            return found, following

        return Scan(next_page, start, release)

    def at(self, time: datetime | float) -> int:
        """Return the revision that was current at a time, to 10 ms: the last one written at or before it.

        Before the first write that is the empty store, revision 1; in the future, the current revision.

        Args:
            time: A `datetime` with a time zone, or seconds since the epoch.

        Raises:
            CompactedError: What was current then is compacted. Its `revision` is the newest compacted one, as
                which one it was may be forgotten.
            ValueError: A `datetime` without a time zone, which could mean another hour; or not a finite number.

        Cost: a lookup for each bit of the current revision's number.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> store.put(b"k", b"1")
        2
        >>> change = next(store.log(b"k"))
        >>> store.at(change.time), store.at(change.time_ms / 1000 - 1)
        (2, 1)
        """
        time_ms = _milliseconds(time)
        cut = self._cut(0)
        try:
            found = times.revision_at(cut.txn, time_ms, cut.revision)
        finally:
            self._release(cut.txn)
        if found is None:
            found = FIRST_REVISION  # before all that is known; below the floor, unless nothing was forgotten
        if found < cut.floor:
            # Not with `found`: how exact it is depends on how far reclaiming is.
            raise CompactedError(cut.floor - 1, cut.floor)
        return min(found, cut.revision)

    def revert(self, keys: Keys, *, to: int) -> RevertResult:
        """Write the state of an earlier revision forward, for the keys given: one atomic step, one new revision.

        Keys that did not exist then are deleted, those with another value or lease are put; the others are left
        alone, and if there is no other, no revision is written. History stays as it is, so a revert can be
        reverted. A lease that is gone is not brought back: the key is then attached to none.

        Args:
            keys: A key or a `KeyRange`.
            to: The revision to go back to, from the compact one to the current one.

        Raises:
            CompactedError: `to` is below the compact revision.
            FutureRevisionError: `to` is above the current one.
            KeyTooLargeError, ValueTooLargeError: The limits are lower than they were; nothing happened.
            StorageFullError: Disk or quota is full; nothing happened.
            TxnError: This thread is in a transaction block; it has a `revert` of its own.

        Cost: a `diff` between the revisions, a put or delete for each key that differs, and one commit; other
        writers wait. Memory for all that is written.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> store.put(b"a", b"1"), store.put(b"a", b"2"), store.put(b"b", b"1")
        (2, 3, 4)
        >>> store.revert(mvccstore.KeyRange.all(), to=2)
        RevertResult(revision=5, put=1, deleted=1)
        >>> store.get(b"a").value, store.get(b"b")
        (b'1', None)
        """
        _check_target(to)
        check_keys(keys)
        with self.begin() as block:
            return block.revert(keys, to=to)

    def bisect(self, predicate: Callable[[Snapshot], bool], *, low: int = 0, high: int = 0) -> int | None:
        """Return the first revision at which something holds; None if it does not hold at `high`.

        It is taken to begin to hold at some revision and to hold ever after. If it comes and goes, the answer is
        a revision at which it holds and one before which it does not, but not always the first.

        Args:
            predicate: Called with a view pinned at a revision, which is closed when the call ends.
            low: Where to begin; 0 for the oldest revision that can be read. Returned if it holds there already.
            high: Where to end; 0 for the revision current now.

        Raises:
            CompactedError: `low` or `high` is below the compact revision. While it runs, no compaction takes
                anything from it.
            FutureRevisionError: `low` or `high` is above the current one.
            ValueError: `low` is above `high`.
            ClosedError: This is closed meanwhile.

        And whatever `predicate` raises.

        Cost: calls `predicate` twice, and once more for each bit of `high - low`.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> for size in range(100):
        ...     revision = store.put(b"k", b"x" * size)
        >>> store.bisect(lambda view: (kv := view.get(b"k")) is not None and len(kv.value) > 30)
        33
        """
        check_revision(low)
        check_revision(high)
        _check_order("low", low, "high", high)
        cut, release = self._hold(low) if low else self._hold_history(0)
        try:
            false_at = low or max(cut.floor, FIRST_REVISION)
            true_at = high or cut.revision
            read.check_readable(true_at, cut.revision, cut.floor)
            held = _Held(self, false_at)
            if not held.holds(predicate, true_at):
                return None
            if held.holds(predicate, false_at):
                return false_at
            while true_at - false_at > 1:
                middle = (false_at + true_at) // 2
                if held.holds(predicate, middle):
                    true_at = middle
                else:
                    false_at = middle
            return true_at
        finally:
            release()


class _Held(View):
    """A view in which every revision from a pinned one on can be pinned, also those compacted since.

    Pinning the oldest of them again holds them all.
    """

    __slots__ = ("_oldest", "_view")

    def __init__(self, view: View, oldest: int) -> None:
        self._view = view
        self._oldest = oldest

    def holds(self, predicate: Callable[[Snapshot], bool], revision: int) -> bool:
        """Say whether something holds at a revision."""
        with Snapshot(self, revision, self._pin(revision)) as snapshot:
            return bool(predicate(snapshot))

    def _cut(self, revision: int) -> Cut:
        return self._view._cut(revision)

    def _pin(self, revision: int) -> Callable[[], None]:
        return self._view._pin(min(revision, self._oldest))

    def _cut_pinned(self, revision: int) -> Cut:
        return self._view._cut_pinned(revision)


def _has_lease(view: View, lease_id: int) -> bool:
    cut = view._cut(0)
    try:
        return cut.txn.get(Table.LEASES, pack_lease_id(lease_id)) is not None
    finally:
        view._release(cut.txn)


def _timed_from(txn: ReadTxn, floor: int) -> int:
    """Return the revision from which on times are known, however far reclaiming is. One lookup."""
    found = txn.page(Table.TIMES, b"", pack_u64(floor + 1), 1, reverse=True)
    return unpack_u64(found[0][0]) if found else 0


def _time_of(txn: ReadTxn, revision: int, timed_from: int) -> int | None:
    return times.time_of(txn, revision) if revision >= timed_from else None


def _check_target(to: int) -> None:
    check_revision(to)
    if to == 0:
        msg = "to is 0; to go back takes the number of a revision"
        raise ValueError(msg)


def _check_order(low_name: str, low: int, high_name: str, high: int) -> None:
    if high and low > high:
        msg = f"{low_name} {low} is above {high_name} {high}"
        raise ValueError(msg)


def _datetime(time_ms: int | None) -> datetime | None:
    return None if time_ms is None else _EPOCH + timedelta(milliseconds=time_ms)


def _milliseconds(time: datetime | float) -> int:
    if isinstance(time, datetime):
        if time.utcoffset() is None:
            msg = f"{time} has no time zone; give it one, as with datetime.now(UTC) or time.astimezone()"
            raise ValueError(msg)
        return round((time - _EPOCH) / _MILLISECOND)
    if type(time) is not int and type(time) is not float:
        msg = f"time is a {type(time).__name__}, neither a datetime nor seconds since the epoch"
        raise TypeError(msg)
    if not isfinite(time):
        msg = f"time is {time}, not a number of seconds"
        raise ValueError(msg)
    return round(time * 1000)
