"""Whose turn it is: what the connections of a port want carried out beyond a slice each, one slice after the other.

What it owns: the connections that wait for their turn. All of them, and those of other servers on the same thread, read
into the same memory.

How it is fair: what a connection sends is carried out at once as far as one slice goes (`slice_frames`). Who has sent
more waits here, and each turn of the loop goes round those who wait for `turn_seconds`, a slice of each. While anybody
waits, or when many send at once (`begun_max`), who comes waits behind them, but for those who ask for little
(`light_bytes`): they are served in the turn of the loop in which they ask. So a client that sends ten megabytes of puts
gets all that is left over, and a ping of another one waits for a few milliseconds; with thousands it is the same.

Invariants:

* I1. Who waits longest is next. Nobody waits twice.
* I2. While somebody waits, a turn of the loop is planned in which that goes on; between two of them the loop has
  looked what came from others.
* I3. `waiting_bytes` is what all connections have read and not begun to carry out. Once that is much, little is read
  at a time: so it does not grow with the number of connections that send more than can be done.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Protocol

from mvccstore.clock import SystemClock
from mvccstore.server.transport.limits import TransportLimits

_READ_BYTES = 256 * 1024
_READ_BYTES_SMALL = 4 * 1024


class _OfThread(threading.local):
    """What the loops of a thread read into, all servers of it: what is there is taken before another read."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(_READ_BYTES))


_of_thread = _OfThread()


class Waiting(Protocol):
    """What has more to be carried out."""

    def go_on(self) -> bool:
        """Carry out a slice; return whether there is more that can be. Does not raise."""
        ...


class Turns:
    """Of the connections of a port. `now` is in seconds."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: TransportLimits,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._now = now or SystemClock().monotonic
        self._queue: dict[Waiting, None] = {}
        self._is_planned = False
        self._begun = 0
        """How often something has come since the last turn of those who wait, or what is as good as that."""
        self.waiting_bytes = 0
        """Of all connections, whatever they wait for."""

    def __len__(self) -> int:
        return len(self._queue)

    def is_at_once(self, size: int) -> bool:
        """Say whether what has come of a connection, so many bytes, is begun without waiting for a turn."""
        self._begun += 1
        return size <= self._limits.light_bytes or (not self._queue and self._begun <= self._limits.begun_max)

    def join(self, connection: Waiting) -> None:
        """Have a connection go on when it is its turn."""
        self._queue[connection] = None
        self._plan()

    def leave(self, connection: Waiting) -> None:
        """Forget it. Harmless if it does not wait."""
        self._queue.pop(connection, None)

    def buffer(self) -> memoryview:
        """Return where the next bytes of any connection are read into. They are `taken` before any others come."""
        memory = _of_thread.memory
        return memory if self.waiting_bytes < self._limits.all_waiting_bytes_max else memory[:_READ_BYTES_SMALL]

    def taken(self, size: int) -> bytes:
        """Return a copy of what was read."""
        return bytes(_of_thread.memory[:size])

    def _plan(self) -> None:
        if self._queue and not self._is_planned:
            self._is_planned = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        # If nobody waits there is no turn, and the count goes on: then one waits for the next turn who need not.
        self._begun = 0
        until = self._now() + self._limits.turn_seconds
        queue = self._queue
        while queue:
            connection = next(iter(queue))
            del queue[connection]
            if connection.go_on():
                queue[connection] = None
            if self._now() >= until:
                break
        self._is_planned = False
        self._plan()
