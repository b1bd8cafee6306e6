"""Time, behind a protocol, so that a test can hold it still.

The only module that imports `time`. Everything that depends on time takes a `Clock`; what a command
needs of it is written into the command before it is submitted, so applying stays deterministic.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable


class Clock(Protocol):
    """Where a store gets its time from."""

    def time_ms(self) -> int:
        """Milliseconds since the Unix epoch; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...


@runtime_checkable
class MovableClock(Clock, Protocol):
    """A clock that is moved by hand, and tells of it: a store then does at once what has become due."""

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have something called after each move, in the thread that moves it."""
        ...

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Undo `add_listener`."""
        ...


monotonic = time.monotonic
"""The system's, for who asks with each request: half the cost of `SystemClock.monotonic`."""


class SystemClock:
    """The operating system's clocks."""

    __slots__ = ()

    def time_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    monotonic = staticmethod(time.monotonic)
    """Seconds from an arbitrary start. The function itself, as it is asked twice for each write of a server."""
