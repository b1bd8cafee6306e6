"""What clients of an etcd did and saw, and whether that is what an etcd promises. For any etcd, real or ours.

    recording = Recording()
    with recording.put("client 1", b"k", b"v") as call:
        call.revision = client.put(b"k", b"v").header.revision
    with recording.get("client 2", b"k") as call:
        answer = client.get(b"k")
        call.revision, call.value, call.mod_revision = answer.header.revision, answer.value, answer.mod_revision
    watch = recording.watch(b"k", start_revision=1)
    watch.batch(revision, [WatchedEvent("put", b"k", b"v", 2)])
    check_history(recording)

Everything that is written has to be recorded, by whomever, and every call, also one that fails: one that raises, or sets
no revision, may have been carried out or not.

What is held:

* Linearizable: what ended before something else began has no higher revision than that; writes have one each, of
  their own. A read answers with the last write at or below its revision.
* Watches are *ordered* (revisions ascend), *unique* (no event twice), *atomic* (the events of a revision come at once),
  *reliable* (every acknowledged write between the first and the last revision is there), *resumable* (nothing below
  `start_revision` comes, and from there on everything) and *bookmarkable* (after a sign of progress nothing at or below
  its revision comes).
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from mvccstore.clock import Clock, SystemClock

PROBLEMS_SHOWN = 20


@dataclass(slots=True, eq=False)
class Operation:
    """A call of one client, with what it is about and what was answered."""

    client: str
    kind: str
    """`put`, `delete` or `get`, of one key."""
    key: bytes
    value: bytes | None = None
    """Of a put, what is written; of a get, what was answered: None if there is no such key."""
    began: float = 0.0
    ended: float = math.inf
    revision: int = 0
    """Of the answer's header; 0 if there was none, so that nobody knows whether it was carried out."""
    mod_revision: int = 0
    """Of a get, of the key."""
    is_serializable: bool = False
    """A get that may be old."""
    deleted: int = 1
    """Of a delete, how many keys went: with 0, it has no revision of its own."""

    @property
    def is_write(self) -> bool:
        """Whether it is known to have changed something."""
        return self.revision > 0 and (self.kind == "put" or (self.kind == "delete" and self.deleted > 0))

    @property
    def may_be_write(self) -> bool:
        """Whether it may have changed something, and nobody knows."""
        return self.revision == 0 and self.kind != "get"

    def __str__(self) -> str:
        value = "" if self.value is None else f" {self.value!r}"
        end = f"revision {self.revision}" if self.revision else "no answer"
        return f"{self.kind} {self.key!r}{value} by {self.client} -> {end}"


class WatchedEvent(NamedTuple):
    """An event, as a watcher was told of it."""

    kind: str
    """`put` or `delete`."""
    key: bytes
    value: bytes
    revision: int
    """Its mod_revision."""


@dataclass(slots=True, eq=False)
class RecordedWatch:
    """What one watcher was told."""

    key: bytes
    range_end: bytes | None
    start_revision: int
    """0 if it watched from when it was made."""
    batches: list[tuple[int, list[WatchedEvent]]] = field(default_factory=list)

    def batch(self, revision: int, events: Sequence[WatchedEvent] = ()) -> None:
        """Note a response: its header's revision and its events; without any, it is a sign of progress."""
        self.batches.append((revision, list(events)))

    def covers(self, key: bytes) -> bool:
        """Say whether it is told of a key."""
        if self.range_end is None:
            return key == self.key
        return key >= self.key and (self.range_end == b"\0" or key < self.range_end)


class Recording:
    """Of what clients do at once; any thread may add to it."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()  # guards the lists
        self.operations: list[Operation] = []
        self.watches: list[RecordedWatch] = []

    def put(self, client: str, key: bytes, value: bytes) -> AbstractContextManager[Operation]:
        """Record a put during a block, which sets `revision`."""
        return self._operation(Operation(client, "put", key, value))

    def delete(self, client: str, key: bytes) -> AbstractContextManager[Operation]:
        """Record a delete during a block, which sets `revision` and `deleted`."""
        return self._operation(Operation(client, "delete", key))

    def get(self, client: str, key: bytes, *, is_serializable: bool = False) -> AbstractContextManager[Operation]:
        """Record a get during a block, which sets `revision` and, if the key is there, `value` and `mod_revision`."""
        return self._operation(Operation(client, "get", key, is_serializable=is_serializable))

    @contextmanager
    def _operation(self, operation: Operation) -> Iterator[Operation]:
        operation.began = self._clock.monotonic()
        with self._lock:
            self.operations.append(operation)
        yield operation  # what is raised leaves it without an answer
        operation.ended = self._clock.monotonic()

    def watch(self, key: bytes, range_end: bytes | None = None, *, start_revision: int = 0) -> RecordedWatch:
        """Record a watch; tell it each response with `batch`."""
        watch = RecordedWatch(key, range_end, start_revision)
        with self._lock:
            self.watches.append(watch)
        return watch


def check_history(recording: Recording) -> None:
    """Raise unless everything in a recording is as an etcd promises.

    Raises:
        AssertionError: It is not; lists the first problems.

    Cost: O(n log n), with n operations and events.
    """
    problems = history_problems(recording)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:PROBLEMS_SHOWN])
        more = f"\n  ... {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        msg = f"{len(problems)} problems in the history:\n{shown}{more}"
        raise AssertionError(msg)


def history_problems(recording: Recording) -> list[str]:
    """Return what `check_history` would raise, one by one."""
    truth = _Truth(recording.operations)
    found = [*truth.problems, *_order_problems(recording.operations)]
    for operation in recording.operations:
        if operation.kind == "get" and operation.revision:
            found += truth.read_problems(operation)
    for watch in recording.watches:
        found += _watch_problems(watch, truth)
    return found


class _Truth:
    """What was written, as far as it is known."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.problems: list[str] = []
        self.at: dict[int, Operation] = {}
        """The write of each revision."""
        self.of: dict[bytes, list[Operation]] = defaultdict(list)
        """The writes of each key, by revision."""
        self.perhaps: dict[bytes, list[Operation]] = defaultdict(list)
        for operation in operations:
            if operation.is_write:
                other = self.at.setdefault(operation.revision, operation)
                if other is not operation:
                    self.problems.append(f"two writes have the same revision: {other}; {operation}")
                self.of[operation.key].append(operation)
            elif operation.may_be_write:
                self.perhaps[operation.key].append(operation)
        for writes in self.of.values():
            writes.sort(key=lambda write: write.revision)

    def read_problems(self, read: Operation) -> Iterator[str]:
        """Say what is wrong with what was read."""
        last = self._last(read.key, read.revision)
        if read.value is None:
            if last is not None and last.kind == "put" and not self._perhaps("delete", read, None):
                yield f"{read}: there is no such key, but {last}"
            return
        if read.mod_revision > read.revision:
            yield f"{read}: the key is of revision {read.mod_revision}, above the answer's"
        write = self.at.get(read.mod_revision)
        if write is None:
            if not self._perhaps("put", read, read.value):
                yield f"{read}: nobody wrote that at revision {read.mod_revision}"
        elif (write.kind, write.key, write.value) != ("put", read.key, read.value):
            yield f"{read}: of revision {read.mod_revision}, but {write}"
        if last is not None and last.revision > read.mod_revision:
            yield f"{read}: is of revision {read.mod_revision}, older than {last}"

    def _last(self, key: bytes, revision: int) -> Operation | None:
        found = None
        for write in self.of.get(key, ()):
            if write.revision > revision:
                break
            found = write
        return found

    def _perhaps(self, kind: str, read: Operation, value: bytes | None) -> bool:
        """Say whether a call that was never answered explains what was read."""
        return any(
            call.kind == kind and call.began < read.ended and (value is None or call.value == value)
            for call in self.perhaps.get(read.key, ())
        )


def _order_problems(operations: Sequence[Operation]) -> Iterator[str]:
    """Hold revisions against time: a later call does not see, or make, an earlier state."""
    answered = [one for one in operations if one.revision and not one.is_serializable]
    ended: list[tuple[float, int]] = []
    newest: Operation | None = None
    for number, operation in sorted(enumerate(answered), key=lambda pair: pair[1].began):
        while ended and ended[0][0] < operation.began:
            before = answered[heapq.heappop(ended)[1]]
            if newest is None or before.revision > newest.revision:
                newest = before
        if newest is not None and (
            operation.revision < newest.revision or (operation.is_write and operation.revision == newest.revision)
        ):
            yield f"{operation}: began after this had ended: {newest}"
        heapq.heappush(ended, (operation.ended, number))


def _watch_problems(watch: RecordedWatch, truth: _Truth) -> Iterator[str]:
    name = f"watch of {watch.key!r}{'' if watch.range_end is None else f' to {watch.range_end!r}'}"
    newest, bookmark = watch.start_revision - 1, 0
    seen: set[tuple[int, bytes, str]] = set()
    for revision, events in watch.batches:
        first = events[0].revision if events else 0
        if events and first <= newest:
            yield f"{name}: revision {first} comes after {newest}"  # not ordered, or in two batches
        before = 0
        for event in events:
            if event.revision < before:
                yield f"{name}: revision {event.revision} comes after {before} in one batch"
            before = event.revision
            if event.revision <= bookmark:
                yield f"{name}: revision {event.revision} comes after a sign of progress at {bookmark}"
            if not watch.covers(event.key):
                yield f"{name}: is told of {event.key!r}"
            if (event.revision, event.key, event.kind) in seen:
                yield f"{name}: the {event.kind} of {event.key!r} at revision {event.revision} comes twice"
            seen.add((event.revision, event.key, event.kind))
            yield from _event_problems(name, event, truth)
        newest = max(newest, before)
        if not events:
            bookmark = max(bookmark, revision)
    yield from _missing(name, watch, truth, seen, max(newest, bookmark))


def _event_problems(name: str, event: WatchedEvent, truth: _Truth) -> Iterator[str]:
    write = truth.at.get(event.revision)
    if write is not None:
        value = event.value if event.kind == "put" else None
        if (write.kind, write.key, write.value) != (event.kind, event.key, value):
            yield f"{name}: {event} is not {write}"
    elif not any(
        call.kind == event.kind and (event.kind == "delete" or call.value == event.value)
        for call in truth.perhaps.get(event.key, ())
    ):
        yield f"{name}: nobody asked for {event}"


def _missing(
    name: str, watch: RecordedWatch, truth: _Truth, seen: set[tuple[int, bytes, str]], newest: int
) -> Iterator[str]:
    start = watch.start_revision
    if not start:  # from now on: what is missing before the first that came may have been before it was made
        start = min((revision for revision, _, _ in seen), default=newest + 1)
    for revision, write in sorted(truth.at.items()):
        told = (revision, write.key, write.kind) in seen
        if start <= revision <= newest and watch.covers(write.key) and not told:
            yield f"{name}: was never told of {write}, and is at {newest}"
