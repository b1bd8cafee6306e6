"""Work on the loop in shares: what is woken by the writer, or takes long, is done a bounded part a turn.

Invariants:

* I1. A piece of work is in the queue at most once; each in it gets its turn before any gets a second one.
* I2. However much is woken by one commit, the loop is called once for it.
* I3. A turn ends after `STEPS_A_TURN` steps or a little more; the next begins when the loop has done its other things.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque

STEPS_A_TURN = 500
"""A step is what takes about 2 us: to send an event to one watch, or to encode one."""


class Work(ABC):
    """Something to be done in shares."""

    __slots__ = ("is_queued",)

    def __init__(self) -> None:
        self.is_queued = False
        """Whether it waits for its turn; for `Turns`."""

    @abstractmethod
    def advance(self, share: int) -> int:
        """Do about as many steps; return how many were done, at least 1. Adds itself again if there is more to do."""


class Turns:
    """The work that waits for its turn. Used on the loop's thread, but for `ring`."""

    __slots__ = ("_is_scheduled", "_is_told", "_loop", "_queue", "_rung")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[Work] = deque()
        self._is_scheduled = False
        self._rung: deque[Work] = deque()
        self._is_told = False

    def add(self, work: Work) -> None:
        """Have some work done soon."""
        if work.is_queued:
            return  # I1
        work.is_queued = True
        self._queue.append(work)
        self._schedule()

    def ring(self, work: Work) -> None:
        """As `add`, from any thread."""
        self._rung.append(work)
        # Whoever reads True here has put theirs in before `_answer` begins to take.
        if not self._is_told:
            self._is_told = True
            try:
                self._loop.call_soon_threadsafe(self._answer)  # I2
            except RuntimeError:  # the loop is closed: nobody watches any more
                self._rung.clear()

    def _answer(self) -> None:
        self._is_told = False
        rung = self._rung
        while rung:
            work = rung.popleft()
            if not work.is_queued:
                work.is_queued = True
                self._queue.append(work)
        self._take_turn()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._scheduled)

    def _scheduled(self) -> None:
        self._is_scheduled = False
        self._take_turn()

    def _take_turn(self) -> None:
        queue = self._queue
        left = STEPS_A_TURN
        while queue and left > 0:  # I3
            work = queue.popleft()
            work.is_queued = False
            try:
                left -= work.advance(left)
            except Exception as error:  # noqa: BLE001 - of this one; the others go on
                left -= 1
                self._loop.call_exception_handler({"message": f"{work!r} failed", "exception": error})
        if queue:
            self._schedule()
