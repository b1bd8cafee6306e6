"""The compactor: has the store of a server compacted as its policy says, by the server's clock.

Time that passes by itself has a timer on the loop, and the writer compacts. Time that is moved by hand has whoever
moves it do what is due, as stores do: all looks that there would have been, one after the other, so that nothing is left
to wait for when the clock has been moved.

Invariants:

* I1. There is one look, and one compaction, at a time.
* I2. With a clock that is moved, every look that was due is made, as of the time it was due at; but not those that come
  when there is nothing left to do, of which there may be millions.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from mvccstore.clock import Clock, MovableClock
from mvccstore.errors import ClosedError, CompactedError, FutureRevisionError, StoreError, TxnError
from mvccstore.server.autocompaction import AutoCompaction, Course
from mvccstore.server.node import Node
from mvccstore.types import CompactRequest, Result

_SLIGHT = 1e-6
"""Seconds: what a clock counts in, as tenths of seconds do not add up."""


class Compactor:
    """Compacts while it runs: from when it is made to `stop`. Made and stopped on the loop."""

    def __init__(self, node: Node, policy: AutoCompaction) -> None:
        self._node = node
        self._policy = policy
        self._clock: Clock = node.clock
        self._lock = threading.RLock()  # guards the three below; held while a moved clock has the store compacted
        self._course: Course
        self._next = 0.0
        self._is_stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._begin()
        node.at_rewind(self._begin)
        if isinstance(self._clock, MovableClock):
            self._clock.add_listener(self._moved)
        else:
            self._set_timer()

    def stop(self) -> None:
        """Compact no more. Stopping twice is harmless."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._is_stopped and isinstance(self._clock, MovableClock):
            self._clock.remove_listener(self._moved)
        self._is_stopped = True

    def _begin(self) -> None:
        with self._lock:
            now = self._clock.monotonic()
            self._course = self._policy.begin(now, self._node.revision)
            self._next = now + self._policy.interval

    # Time that passes by itself

    def _set_timer(self) -> None:
        if not self._is_stopped:
            self._timer = self._node.loop.call_later(self._policy.interval, self._look)

    def _look(self) -> None:
        now, course = self._clock.monotonic(), self._course
        try:
            wanted = course.look(now, self._node.revision)
        except ClosedError:
            return
        if wanted is None:
            self._set_timer()
            return

        def done(result: Result | StoreError) -> None:
            if not isinstance(result, StoreError) or isinstance(result, CompactedError):
                course.done(now, wanted)
                self._node.count_command()
            self._set_timer()  # I1; other trouble is tried again then

        self._node.writer.submit(CompactRequest(wanted, force=True), done)

    # Time that is moved

    def _moved(self) -> None:
        with self._lock, suppress(ClosedError):
            self._look_until_now()

    def _look_until_now(self) -> None:
        node = self._node
        while not self._is_stopped and self._next <= self._clock.monotonic() + _SLIGHT:
            now = self._next
            self._next += self._policy.interval
            wanted = self._course.look(now, node.revision)
            if wanted is not None:
                try:
                    self._compact(now, wanted)
                except TxnError:
                    # In a transaction block of this thread, which would wait for itself: when that has ended.
                    self._tell(partial(self._compact_later, self._course, now, wanted))
                    return
                except StoreError:
                    self._skip()
                    raise
            if self._course.is_settled(node.revision):
                self._skip()  # I2

    def _compact(self, now: float, wanted: int) -> None:
        try:
            self._node.store.compact(wanted, force=True)
        except CompactedError:
            pass  # somebody else was first
        except FutureRevisionError:
            return  # the store went back meanwhile, and there is a new course
        self._course.done(now, wanted)
        self._tell(self._node.count_command)

    def _compact_later(self, course: Course, now: float, wanted: int) -> None:
        def done(result: Result | StoreError) -> None:
            if not isinstance(result, StoreError) or isinstance(result, CompactedError):
                course.done(now, wanted)
                self._node.count_command()
                self._node.loop.run_in_executor(None, self._go_on)

        self._node.writer.submit(CompactRequest(wanted, force=True), done)

    def _go_on(self) -> None:
        with suppress(StoreError):  # tried again when the clock is moved again
            self._moved()

    def _tell(self, callback: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._node.loop.call_soon_threadsafe(callback)

    def _skip(self) -> None:
        """Go on with the first look after now."""
        interval, left = self._policy.interval, self._clock.monotonic() + _SLIGHT - self._next
        if left >= 0:
            self._next += interval * (left // interval + 1)
