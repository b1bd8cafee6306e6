"""Watching: a cursor over the changes of some keys, from any revision on.

A watcher takes whole revisions from the tail of its topic in the hub while that reaches back to its cursor,
and reads them from the store's log while it does not. Both are the same to whoever watches.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Literal, Self

from mvccstore.clock import Clock, SystemClock
from mvccstore.codec import entry_main, main_of
from mvccstore.errors import ClosedError, CompactedError
from mvccstore.hub import Hub, Waiter, WatchBatch
from mvccstore.mvcc.history import History, prev_kv
from mvccstore.mvcc.state import FIRST_REVISION
from mvccstore.types import Event, KeyRange, Keys, check_keys, check_revision
from mvccstore.view import Cut, View

WatchFilter = Literal["noput", "nodelete"]
_DROPPED: dict[str, str] = {"noput": "put", "nodelete": "delete"}

PAGE_EVENTS = 1_001
"""One more than a thousand revisions of one change each: the last of a page waits, as it may go on in the next."""
POLL_SECONDS = 0.05
"""How often the store of another process is looked at."""
_WHAT = "watcher"
_new_batch = partial(tuple.__new__, WatchBatch)
_real_time = SystemClock()


class Watcher:
    """The changes of a key or range, as they are committed. Get one from `Store.watch`.

    Iterating over it waits for each next change; `batches` and `next_batch` give whole revisions. One thread
    at a time takes from it; any may close it. A context manager; also closed when collected.

    What it promises, and tests hold for each watcher: events come in the order of revisions, and within one in
    the order of its operations; none comes twice and none is left out; those of one revision are in one batch;
    a watcher begun at `revision + 1` goes on where this one is.
    """

    _cut: CompactedError | None = None  # on the class, as hardly any is ever cut

    def __init__(
        self,
        view: View,
        hub: Hub,
        clock: Clock,
        keys: Keys,
        *,
        start_revision: int,
        prev_kv: bool,
        filters: Collection[WatchFilter],
        progress: float | None,
    ) -> None:
        self._view = view
        self._hub = hub
        self._clock = clock
        self._keys = keys
        self._prev_kv = prev_kv
        self._dropped = frozenset(_DROPPED[name] for name in filters)
        self._progress = progress
        self._is_closed = False
        self._gate = threading.Lock()
        self._gate.acquire()
        self._on_wake: Callable[[], None] | None = None
        # Both are made when there is something to hold: an empty deque is larger than all the rest.
        self._read: deque[WatchBatch] | None = None  # from the log, not yet taken; not empty
        self._read_to = 0  # revision
        self._events: deque[Event] | None = None  # of the batch that is iterated over; not empty
        self._before = 0  # the revision before that batch
        self._number = -1  # of the next batch in the topic's tail
        self._ref: weakref.ref[Waiter] = weakref.ref(self)
        self._topic, now = hub.join(keys, self._ref)
        try:
            cut = view._cut(0)
            view._release(cut.txn)
            self._check_start(start_revision, cut.floor)
        except BaseException:
            self.close()
            raise
        self._cursor = start_revision - 1 if start_revision else max(now, cut.revision)
        self._active_at = clock.monotonic()

    @property
    def revision(self) -> int:
        """Every change up to it has been handed out: a watcher with `start_revision=revision + 1` goes on from here.

        It grows also while nothing that is watched changes.
        """
        return self._before if self._events else self._cursor

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or has ended because its history was compacted away."""
        return self._is_closed

    def next_batch(self, timeout: float | None = None) -> WatchBatch | None:
        """Return the changes of the next revision that has any, waiting for it if there is none yet.

        Args:
            timeout: Seconds to wait at most; 0 does not wait. None waits as long as it takes.

        Returns: The batch; one without events if `progress` was asked for and is due; None after the timeout.

        Raises:
            CompactedError: The history that comes next was compacted away. The watcher has ended; `.revision`
                and `.compact_revision` say what is missing.
            ClosedError: The watcher or its store was closed, also while this waited.

        Cost: in the tail, a lookup. Behind it, what `Store.history` costs, a page of 1,000 changes at a time.
        """
        if timeout is not None and not timeout >= 0:
            msg = f"timeout is {timeout!r}, not a number of seconds from 0 up"
            raise ValueError(msg)
        deadline = None if timeout is None else _real_time.monotonic() + timeout
        while True:
            batch = self.poll()
            if batch is not None:
                return batch
            wait = -1.0
            if deadline is not None:
                wait = deadline - _real_time.monotonic()
                if wait <= 0:
                    return None
            look_in = self.look_again_in()
            if look_in is not None:
                wait = min(wait, look_in) if wait >= 0 else look_in
            if self.listen(None):
                is_woken = False
                try:
                    is_woken = self._gate.acquire(timeout=min(wait, threading.TIMEOUT_MAX))
                finally:
                    if not is_woken:
                        self.unlisten()

    def poll(self) -> WatchBatch | None:
        """Return what `next_batch` would without waiting: `next_batch(timeout=0)`, only quicker."""
        if self._events:
            events = tuple(self._events)
            self._events = None
            return WatchBatch(events[-1].revision, events)
        batch = self._take()
        if self._progress is not None:
            now = self._clock.monotonic()
            if batch is not None:
                self._active_at = now
            elif self._is_progress_due(now):
                self._active_at = now
                return WatchBatch(self._cursor, ())
        return batch

    def batches(self) -> Iterator[WatchBatch]:
        """Iterate over whole revisions, waiting for each next one; ends when the watcher is closed."""
        while True:
            try:
                batch = self.next_batch()
            except ClosedError:
                if self._hub.is_closed:
                    raise
                return
            if batch is not None:
                yield batch

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while not self._events:
            before = self._cursor
            try:
                batch = self.poll() or self.next_batch()
            except ClosedError:
                if self._hub.is_closed:
                    raise
                raise StopIteration from None
            if batch is not None:
                if len(batch.events) == 1:
                    return batch.events[0]
                if not batch.events:
                    continue
                self._before = max(before, batch.revision - 1)
                self._events = deque(batch.events)
        event = self._events.popleft()
        if not self._events:
            self._events = None
        return event

    def close(self) -> None:
        """Stop watching. A thread that waits in it is woken. Closing twice is harmless; from any thread."""
        self._is_closed = True
        with self._hub.mutex:
            self._topic.waiting.pop(self, None)
        self._hub.leave(self._topic, self._ref)
        self.wake()

    # For the hub, and for those who wait in other ways than a thread

    def cut(self, revision: int) -> None:
        """End with `CompactedError`, as if everything below a revision were compacted."""
        self._cut = CompactedError(min(self._cursor + 1, revision - 1), revision)

    def listen(self, on_wake: Callable[[], None] | None) -> bool:
        """Be woken when there is something: by a call of `on_wake`, from another thread, or by the gate.

        Returns: False if there is something already.
        """
        topic = self._topic
        with self._hub.mutex:
            if self._is_closed or self._hub.is_closed or self._cut is not None:
                return False
            if not self._hub.is_remote and (topic.end > self._number or self._cursor < topic.floor):
                return False
            if self._progress is not None and self._is_progress_due(self._clock.monotonic()):
                return False
            self._on_wake = on_wake
            topic.waiting[self] = None
            return True

    def unlisten(self) -> None:
        """Undo `listen`. While it listens, the hub keeps the watcher alive."""
        with self._hub.mutex:
            self._on_wake = None
            self._topic.waiting.pop(self, None)

    def wake(self) -> None:
        """End the wait of whoever takes from it, if they wait."""
        on_wake, self._on_wake = self._on_wake, None
        if on_wake is not None:
            on_wake()
        elif self._gate.locked():
            try:
                self._gate.release()
            except RuntimeError:  # another thread was quicker
                return

    def _is_progress_due(self, now: float) -> bool:
        # Rounded, as three tenths less two tenths are less than one tenth.
        return self._progress is not None and round(now - self._active_at, 6) >= self._progress

    def look_again_in(self) -> float | None:
        """Return the seconds after which to `poll` again without having been woken; None if there is no need to."""
        waits = [POLL_SECONDS] if self._hub.is_remote else []
        if self._progress is not None:
            waits.append(max(self._active_at + self._progress - self._clock.monotonic(), 0.001))
        return min(waits, default=None)

    @property
    def has_batch(self) -> bool:
        """Whether the next `poll` has something to look at without reading the log."""
        return self._read is not None or self._number in self._topic.batches

    def catch_up(self) -> bool:
        """Read a page of the log, if it is that far behind. True if `poll` need not read one, either.

        For those who have something else to do between two pages: where nothing in the log is for this watcher,
        `poll` reads all of it.
        """
        hub = self._hub
        if self.has_batch or self._is_closed or hub.is_closed or self._cut is not None:
            return True
        if self._rejoin() or (hub.is_remote and hub.current() <= self._cursor):
            return True
        self._read_log()
        return self._read is not None

    def _check_start(self, start_revision: int, floor: int) -> None:
        if start_revision and start_revision < floor:
            raise CompactedError(start_revision, floor)

    def _take(self) -> WatchBatch | None:
        """Return the next batch, if there is one now."""
        hub, topic = self._hub, self._topic
        while True:
            if self._cut is not None and not self._is_closed:
                self.close()
                raise self._cut
            if self._is_closed:
                raise ClosedError(_WHAT)
            if hub.is_closed:
                raise ClosedError
            if self._read:
                batch = self._read.popleft()
                if self._read:
                    self._cursor = batch.revision
                else:
                    self._read = None
                    self._cursor = max(batch.revision, self._read_to)
                return batch
            found = topic.batches.get(self._number)
            if found is not None:
                dressed = None
                if found.revision > self._cursor:  # not seen in the log already, nor before the start
                    # Dressed first: what raises here is not lost.
                    dressed = self._dressed(found)
                    self._cursor = found.revision
                self._number += 1
                if dressed is not None:
                    return dressed
                continue
            if not self._rejoin():
                if hub.is_remote and hub.current() <= self._cursor:
                    return None
                self._read_log()
            elif self._number == topic.end:
                return None

    def _rejoin(self) -> bool:
        """Take the place in the tail that the cursor has; False if that begins later."""
        hub, topic = self._hub, self._topic
        with hub.mutex:
            if hub.is_remote or self._cursor < topic.floor:
                return False
            self._number = topic.number_after(self._cursor)
            if self._number == topic.end:
                self._cursor = max(self._cursor, hub.revision)
            return True

    def _dressed(self, batch: WatchBatch) -> WatchBatch | None:
        """Return a batch as it was asked for; None if nothing is left of it."""
        events = batch.events
        if self._dropped:
            events = tuple(event for event in events if event.type not in self._dropped)
            if not events:
                return None
        if self._prev_kv:
            cut = self._view._cut(0)
            try:
                events = self._with_prev(cut, events)
            finally:
                self._view._release(cut.txn)
        return batch if events is batch.events else WatchBatch(batch.revision, events)

    def _with_prev(self, cut: Cut, events: tuple[Event, ...]) -> tuple[Event, ...]:
        return tuple(
            # Also of one that is created: a block may delete a key and create it anew.
            event._replace(prev_kv=prev_kv(cut.txn, event, cut.floor))
            for event in events
        )

    def _read_log(self) -> None:
        """Read a page of the log behind the cursor: whole revisions into `_read`, or at least the cursor further."""
        cut = self._view._cut(0)
        try:
            first = self._cursor + 1
            if first < cut.floor:
                self.close()
                raise CompactedError(first, cut.floor)
            pages = History(self._keys, first, cut.revision, max(cut.floor, FIRST_REVISION))
            resume = pages.start(cut.txn)
            events: list[Event] = []
            read_to = cut.revision
            while resume is not None:
                page, resume = pages.page(cut.txn, resume, PAGE_EVENTS)
                events += page
                if resume is not None:
                    # The last revision may go on in the next page.
                    read_to = (main_of(resume) if isinstance(self._keys, KeyRange) else entry_main(resume)) - 1
                    if read_to > self._cursor:
                        break
                    read_to = cut.revision
            while events and events[-1].revision > read_to:
                events.pop()
            batches = _by_revision(events)
            if self._dropped or self._prev_kv:
                batches = [dressed for batch in batches if (dressed := self._dressed_at(cut, batch)) is not None]
            self._read = deque(batches) if batches else None
        finally:
            self._view._release(cut.txn)
        self._read_to = read_to
        if not self._read:
            self._cursor = max(self._cursor, read_to)

    def _dressed_at(self, cut: Cut, batch: WatchBatch) -> WatchBatch | None:
        events = tuple(event for event in batch.events if event.type not in self._dropped)
        if not events:
            return None
        return WatchBatch(batch.revision, self._with_prev(cut, events) if self._prev_kv else events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        topic = getattr(self, "_topic", None)
        if topic is not None and not self._is_closed:
            self._hub.leave_later(topic, self._ref)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._keys!r} at {self.revision}{', closed' if self._is_closed else ''}>"


def check_watch(keys: Keys, start_revision: int, filters: Collection[WatchFilter], progress: float | None) -> None:
    """Raise `TypeError` or `ValueError` for what cannot be watched."""
    check_keys(keys)
    check_revision(start_revision)
    if isinstance(keys, KeyRange) and keys == KeyRange.empty():
        msg = "an empty range has nothing to watch"
        raise ValueError(msg)
    if isinstance(filters, str) or not set(filters) <= _DROPPED.keys():
        msg = f"filters are {filters!r}; they may have 'noput' and 'nodelete'"
        raise ValueError(msg)
    if progress is not None and not progress > 0:
        msg = f"progress is {progress!r}, not a positive number of seconds"
        raise ValueError(msg)


def _by_revision(events: list[Event]) -> list[WatchBatch]:
    revisions = [event.kv.mod_revision for event in events]
    if len(set(revisions)) == len(revisions):
        return list(map(_new_batch, zip(revisions, zip(events, strict=True), strict=True)))
    starts = [i for i, revision in enumerate(revisions) if not i or revisions[i - 1] != revision]
    ends = [*starts[1:], len(events)]
    return [_new_batch((revisions[i], tuple(events[i:j]))) for i, j in zip(starts, ends, strict=True)]
