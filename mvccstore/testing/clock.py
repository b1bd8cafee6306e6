"""A clock that stands still until it is moved."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from mvccstore.errors import StoreError

_START_MS = 1_700_000_000_000


class FakeClock:
    """Time for tests: `mvccstore.open(clock=FakeClock())`, then `clock.advance(30)`.

    When `advance` returns, everything that was to happen by then has: leases have expired and their keys are
    deleted, retention has compacted, watchers that asked for progress are told. Only what is due while this
    thread is in a transaction block happens later, by another thread, when the block has ended.

    Args:
        time_ms: Milliseconds since the epoch to begin at.

    >>> import mvccstore
    >>> clock = FakeClock()
    >>> store = mvccstore.open(clock=clock)
    >>> revision = store.put(b"k", b"v", lease=store.grant(ttl=10))
    >>> clock.advance(10)
    >>> store.get(b"k") is None
    True
    """

    def __init__(self, time_ms: int = _START_MS) -> None:
        self._mutex = threading.Lock()
        self._start_ms = time_ms
        self._elapsed_us = 0  # a whole number, as tenths of seconds do not add up
        self._listeners: list[Callable[[], None]] = []

    def time_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return self._start_ms + self._elapsed_us // 1000

    def monotonic(self) -> float:
        """Seconds since it was made."""
        return self._elapsed_us / 1_000_000

    def advance(self, seconds: float) -> None:
        """Move on, and have done what is due by then.

        Raises:
            ValueError: `seconds` is below 0, or not finite.
            StoreError: What was due could not be done, as on a full disk. The clock has moved all the same.
        """
        if not 0 <= seconds < math.inf:
            msg = f"a clock does not go back, nor to the end: {seconds!r}"
            raise ValueError(msg)
        with self._mutex:
            self._elapsed_us += round(seconds * 1_000_000)
        errors: list[StoreError] = []
        for listener in list(self._listeners):
            try:
                listener()
            except StoreError as error:  # of one store; the others are to be told, too
                errors.append(error)
        if errors:
            raise errors[0]

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Have something called after each move. Stores add themselves."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Undo `add_listener`."""
        self._listeners.remove(listener)
