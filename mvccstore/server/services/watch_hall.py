"""What all streams of the Watch service share: turns, groups, replays, and the intervals of progress."""

from __future__ import annotations

import heapq
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Protocol

from mvccstore.clock import MovableClock
from mvccstore.server.metrics.tally import Watches
from mvccstore.server.node import Node
from mvccstore.server.services.watch_group import Groups
from mvccstore.server.services.watch_replay import Replays
from mvccstore.server.services.watch_turns import Turns
from mvccstore.server.transport.call import Call

Permit = Callable[[Call, bytes, bytes], None]
"""Is given the call, key and range end of a watch that is to be created; raises `RpcError` if it may not be."""

_JITTER = 0.1
_GOLDEN = 0.618033988749895
"""Of whatever number of streams, its multiples are spread evenly over the jitter."""
_SECONDS_MIN = 0.1
"""The shortest interval etcd has."""
_FORGOTTEN_MAX = 100
_TIMER_SECONDS_MAX = 86_400
"""Not every loop can count further."""


class OpenStream(Protocol):
    """A stream, as the others know it."""

    def fail(self, error: Exception) -> None:
        """End it."""
        ...

    def tick(self) -> None:
        """Tell how far it is."""
        ...

    def cut(self, revision: int) -> None:
        """Cancel all watches as if everything below a revision were compacted."""
        ...

    def cancel_all(self, reason: str, compact_revision: int) -> int:
        """Cancel all watches as the server's own doing; return how many."""
        ...


class Ticks:
    """One timer for the signs of progress of all streams, each at an interval of its own from its first watch on."""

    __slots__ = ("_clock", "_heap", "_loop", "_node", "_number", "_streams", "_timer")

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = node.loop
        self._clock = node.clock
        self._streams: dict[OpenStream, float] = {}  # and their intervals
        self._heap: list[tuple[float, int, OpenStream]] = []
        self._number = 0
        self._timer: TimerHandle | None = None
        if isinstance(self._clock, MovableClock):
            self._clock.add_listener(self._moved)

    def add(self, stream: OpenStream) -> None:
        """Have a stream told at intervals from now on."""
        jitter = _JITTER * (self._number * _GOLDEN % 1)
        interval = max(self._node.limits.progress_notify_seconds, _SECONDS_MIN) * (1 + jitter)
        self._streams[stream] = interval
        self._push(stream, self._clock.monotonic() + interval)
        self._set_timer()

    def remove(self, stream: OpenStream) -> None:
        """Undo `add`, if there was one."""
        self._streams.pop(stream, None)
        if len(self._heap) > 2 * len(self._streams) + _FORGOTTEN_MAX:
            self._heap = [entry for entry in self._heap if entry[2] in self._streams]
            heapq.heapify(self._heap)

    def stop(self) -> None:
        """Tell nobody any more."""
        self._streams.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if isinstance(self._clock, MovableClock):
            self._clock.remove_listener(self._moved)

    def _push(self, stream: OpenStream, due: float) -> None:
        self._number += 1
        heapq.heappush(self._heap, (due, self._number, stream))

    def _moved(self) -> None:
        self._loop.call_soon_threadsafe(self._tick)

    def _set_timer(self) -> None:
        if self._timer is None and self._heap:
            seconds = self._heap[0][0] - self._clock.monotonic()
            self._timer = self._loop.call_later(min(max(seconds, 0), _TIMER_SECONDS_MAX), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._tick()

    def _tick(self) -> None:
        now = self._clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            _, _, stream = heapq.heappop(self._heap)
            interval = self._streams.get(stream)
            if interval is not None:
                stream.tick()
                self._push(stream, now + interval)
        self._set_timer()


class Hall:
    """Where the streams of a server watch."""

    __slots__ = ("groups", "node", "number", "permit", "replays", "streams", "ticks", "turns")

    def __init__(self, node: Node, permit: Permit) -> None:
        self.node = node
        self.permit = permit
        self.streams: dict[OpenStream, None] = {}
        self.number = 0
        """How many watches the streams have."""
        self.turns = Turns(node.loop)
        self.groups = Groups(node, self.turns)
        self.replays = Replays(self.groups)
        self.ticks = Ticks(node)
        node.at_rewind(self._cut)
        node.cancel_watches = self._cancel_all

    def watches(self) -> Watches:
        """Count streams, watches, and those of them that have not been sent everything. Cost: O(groups)."""
        watches, synced = self.groups.tally()
        return Watches(len(self.streams), watches, watches - synced)

    def _cancel_all(self, reason: str, compact_revision: int) -> int:
        return sum(stream.cancel_all(reason, compact_revision) for stream in list(self.streams))

    def _cut(self) -> None:
        """Cancel every watch, as if what comes next for it were compacted: the store went back."""
        for stream in list(self.streams):
            stream.cut(self.node.revision + 1)
