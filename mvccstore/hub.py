"""The one way out for every change: from the commit to those who watch.

After each commit, in the writer's turn, `Hub.publish` is told what changed. For each *topic*, a key or range
that at least one watcher has, it makes the batch of a revision once, puts it into the topic's tail, and wakes
the watchers that wait. A watcher is a cursor over the tail of its topic; it takes batches at its own pace,
without a lock. One that falls behind the tail reads the log, and comes back to the tail when it has caught up.

Invariants:

* I1. A topic's tail has every batch of its keys above its `floor`, and none at or below it.
* I2. What is published was committed as durably as the store promises, and is published once, in order.
* I3. The tails of all topics together hold at most `TAIL_EVENTS_MAX` events of `TAIL_BYTES_MAX` bytes, and the
  newest batch of the last commit; the oldest give way, whatever any watcher does. So a writer waits for nobody.
* I4. Of a topic that is gone, only its places in `_order` may be left, `_dead` of them: never more than the others.
* I5. Whoever is to be woken is in `waiting` of their topic; they looked once more after they came there.

Example, a watcher of prefix `a`, with a tail that has room for two batches:

    put a1, put b1, put a2     tail [2: a1, 4: a2]     floor 1   cursor 1
    watcher takes a batch      tail the same                     cursor 2
    put a3                     tail [4: a2, 5: a3]     floor 2   cursor 2: still in the tail
    put a4                     tail [5: a3, 6: a4]     floor 4   cursor 2: reads revisions 3 to 6 from the log

Why the last watcher of a topic leaves its places in `_order`: looking for them there, for each watcher that
leaves, would hold up the writer for as long as all the other tails are. So they are passed over when they become
the oldest, and taken out together once they are the greater part, which is a few steps for each batch there was.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from mvccstore.mvcc.apply import Changes, Row
from mvccstore.mvcc.watch_index import WatchIndex
from mvccstore.types import Event, Keys, KeyValue

_log = logging.getLogger("mvccstore")

TAIL_EVENTS_MAX = 20_000
TAIL_BYTES_MAX = 16 << 20
_EVENT_BYTES = 200
"""What CPython needs for an event besides key and value."""


class WatchBatch(NamedTuple):
    """The changes that one revision made to what is watched; none at all as a sign of progress."""

    revision: int
    """Everything up to it has been delivered; watching goes on at the next one."""
    events: tuple[Event, ...]
    """In the order in which they were made."""


class Waiter(Protocol):
    """Who can be woken."""

    def wake(self) -> None:
        """Look again whether there is something. From any thread; must not wait."""
        ...

    def cut(self, revision: int) -> None:
        """End as if everything below a revision were compacted."""
        ...


class Topic:
    """A key or range that is watched, and the tail of its batches."""

    __slots__ = ("batches", "bytes", "end", "events", "floor", "keys", "start", "waiting", "watchers")

    def __init__(self, keys: Keys, floor: int) -> None:
        self.keys = keys
        self.floor = floor
        self.watchers: set[weakref.ref[Waiter]] = set()
        # By number: taking the next is one lookup, also where others are dropped meanwhile.
        self.batches: dict[int, WatchBatch] = {}
        self.start = 0
        self.end = 0
        self.events = 0  # in all batches, and their bytes
        self.bytes = 0
        self.waiting: dict[Waiter, None] = {}  # a set in the order they came

    def add(self, batch: WatchBatch, size: int) -> None:
        """Put the batch of a newer revision into the tail."""
        self.batches[self.end] = batch
        self.end += 1
        self.events += len(batch.events)
        self.bytes += size

    def drop_oldest(self, size: int) -> WatchBatch:
        """Take the oldest batch out of the tail."""
        batch = self.batches.pop(self.start)
        self.start += 1
        self.floor = batch.revision
        self.events -= len(batch.events)
        self.bytes -= size
        return batch

    def empty(self) -> None:
        """Take all batches out of the tail."""
        self.batches = {}
        self.events = self.bytes = 0

    def number_after(self, revision: int) -> int:
        """Return the number of the first batch above a revision, which is not below the floor. O(log tail)."""
        low, high = self.start, self.end
        while low < high:
            middle = (low + high) // 2
            if self.batches[middle].revision <= revision:
                low = middle + 1
            else:
                high = middle
        return low


class Hub:
    """The topics of one store.

    Args:
        revision: The store's revision.
        look: For a store that another process writes: returns its revision now.
    """

    def __init__(self, revision: int, look: Callable[[], int] | None = None) -> None:
        # Guards all below; taken last, and held for one commit's matching, or for a few instructions.
        self.mutex = threading.RLock()
        self.revision = revision
        """Everything up to it was published."""
        self.is_closed = False
        self._look = look
        self._topics: dict[Keys, Topic] = {}
        self._index: WatchIndex[Topic] = WatchIndex()
        self._order: deque[tuple[Topic, int]] = deque()  # each batch in a tail, and its bytes
        self._dead = 0  # of these, those that are in no tail any more
        self._events = 0
        self._bytes = 0
        self._gone: deque[tuple[Topic, weakref.ref[Waiter]]] = deque()

    @property
    def is_remote(self) -> bool:
        """Whether another process writes, so that nothing is published here."""
        return self._look is not None

    def __len__(self) -> int:
        with self.mutex:
            self._let_go()
            return sum(len(topic.watchers) for topic in self._topics.values())

    # The writer's side

    def publish(self, changes: Changes, revision: int) -> None:
        """Tell what a commit changed, and the revision it led to. In the writer's turn.

        Cost: O(changed keys x those who watch them); with nobody watching, nothing.
        """
        woken: list[Waiter] = []
        with self.mutex:
            if self._topics and changes.rows:
                self._let_go()
                for topic in self._match(changes.rows):
                    if topic.waiting:
                        woken += topic.waiting
                        topic.waiting = {}
                self._shrink()
            # Last: if this is interrupted, nobody must believe to have seen it before `lost` is called.
            self.revision = revision
        _wake(woken)

    def _match(self, rows: list[Row]) -> dict[Topic, None]:
        matches = self._index.matches
        touched: dict[Topic, None] = {}
        found: dict[Topic, list[Event]] = {}
        revision = 0
        for row in rows:  # in the order of their revisions
            topics = matches(row[0])
            if not topics:
                continue
            if row[2] != revision:
                self._add_found(found, revision)
                found, revision = {}, row[2]
            event = Event("put" if row[3] else "delete", KeyValue._make(row))
            for topic in topics:
                found.setdefault(topic, []).append(event)
                touched[topic] = None
        self._add_found(found, revision)
        return touched

    def _add_found(self, found: dict[Topic, list[Event]], revision: int) -> None:
        for topic, events in found.items():
            self._add(topic, WatchBatch(revision, tuple(events)))

    def _add(self, topic: Topic, batch: WatchBatch) -> None:
        size = sum(len(kv.key) + len(kv.value) + _EVENT_BYTES for _, kv, _ in batch.events)
        topic.add(batch, size)
        self._order.append((topic, size))
        self._events += len(batch.events)
        self._bytes += size

    def _shrink(self) -> None:
        order = self._order
        while (self._events > TAIL_EVENTS_MAX or self._bytes > TAIL_BYTES_MAX) and len(order) - self._dead > 1:
            topic, size = order.popleft()
            if not topic.batches:  # I4: nobody adds to a topic that is gone
                self._dead -= 1
                continue
            self._events -= len(topic.drop_oldest(size).events)
            self._bytes -= size
        self._bury()

    def lost(self, revision: int) -> None:
        """Have everybody read the log up to a revision: what was committed last could not be published."""
        with self.mutex:
            self._begin_anew(max(self.revision, revision))
        self.wake_all()

    def rewound(self, revision: int) -> None:
        """Go back to a revision, and end every watcher: what they have seen was not to be. In the writer's turn."""
        with self.mutex:
            self._let_go()
            for topic in list(self._topics.values()):
                for ref in list(topic.watchers):
                    waiter = ref()
                    if waiter is not None:
                        waiter.cut(revision + 1)
            self._begin_anew(revision)
        self.wake_all()

    def _begin_anew(self, revision: int) -> None:
        self.revision = revision
        for topic in self._topics.values():
            topic.floor = revision
            # A number that no watcher waits for: what is added next does not follow on what they have.
            topic.start = topic.end = topic.end + 2
            topic.empty()
        self._order.clear()
        self._events = self._bytes = self._dead = 0

    def wake_all(self) -> None:
        """Wake everybody, to look at what has changed."""
        with self.mutex:
            # Not `waiting`, from where one may have been taken but not woken, if `publish` was interrupted.
            woken = [waiter for topic in self._topics.values() for ref in topic.watchers if (waiter := ref())]
            for topic in self._topics.values():
                topic.waiting = {}
        _wake(woken)

    def close(self) -> None:
        """Have every watcher raise `ClosedError`, promptly."""
        self.is_closed = True
        self.wake_all()

    def forget(self) -> None:
        """Close in a child after a fork, where the threads that waited are not."""
        self.mutex = threading.RLock()
        self.is_closed = True

    # The watchers' side

    def join(self, keys: Keys, waiter: weakref.ref[Waiter]) -> tuple[Topic, int]:
        """Count a watcher in; return the topic, which has all above its floor from now on, and the revision now."""
        with self.mutex:
            self._let_go()
            topic = self._topics.get(keys)
            if topic is None:
                topic = Topic(keys, self.revision)
                # First: a topic that is known but cannot be found would miss everything, if this is interrupted.
                self._index.add(keys, topic)
                self._topics[keys] = topic
            topic.watchers.add(waiter)
            return topic, self.revision

    def leave(self, topic: Topic, waiter: weakref.ref[Waiter]) -> None:
        """Count a watcher out; the last one takes the tail along. May be repeated."""
        self.leave_later(topic, waiter)
        with self.mutex:
            self._let_go()

    def leave_later(self, topic: Topic, waiter: weakref.ref[Waiter]) -> None:
        """Count a watcher out soon. For one that is collected, which can happen in the middle of anything."""
        self._gone.append((topic, waiter))

    def _let_go(self) -> None:
        while self._gone:
            topic, waiter = self._gone.popleft()
            topic.watchers.discard(waiter)
            if not topic.watchers and self._topics.get(topic.keys) is topic:
                del self._topics[topic.keys]
                self._index.remove(topic.keys)
                self._empty(topic)

    def _empty(self, topic: Topic) -> None:
        self._events -= topic.events
        self._bytes -= topic.bytes
        self._dead += len(topic.batches)
        topic.empty()
        self._bury()

    def _bury(self) -> None:
        if self._dead > len(self._order) // 2:  # I4
            self._order = deque(place for place in self._order if place[0].batches)
            self._dead = 0

    def current(self) -> int:
        """Return the revision up to which there is something to deliver."""
        if self._look is not None:
            return self._look()
        return self.revision


def _wake(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        try:
            waiter.wake()
        except Exception:  # noqa: BLE001 - a callback's; neither the writer nor the others can help it
            _log.exception("%r could not be woken", waiter)
