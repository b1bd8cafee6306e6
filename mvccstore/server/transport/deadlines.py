"""Deadlines of calls: thousands at once, nearly all of which are never reached.

Kept in buckets of 1/20 second by one timer, so that noting a deadline and forgetting it are one set operation each; a
deadline is acted on up to that much late, and never early.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

_log = logging.getLogger("mvccstore.server")

_BUCKETS_A_SECOND = 20
SECONDS_MAX = 10 * 365 * 86_400.0
"""What is further away is not noted at all."""


class Timed(Protocol):
    """What has a deadline."""

    bucket: set[Timed] | None
    """Where it is noted; None if it is not."""

    def expire(self) -> None:
        """The deadline has passed."""
        ...


class Deadlines:
    """The deadlines of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets: dict[int, set[Timed]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0

    def add(self, timed: Timed, seconds: float) -> None:
        """Have `expire` called when so many seconds are over, unless it is removed before."""
        if seconds > SECONDS_MAX:
            return
        number = int((self._loop.time() + seconds) * _BUCKETS_A_SECOND) + 1
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = set()
            if self._timer is None or number < self._next:
                self._set_timer(number)
        bucket.add(timed)
        timed.bucket = bucket

    @staticmethod
    def remove(timed: Timed) -> None:
        """Forget a deadline. Harmless if there is none."""
        if timed.bucket is not None:
            timed.bucket.discard(timed)
            timed.bucket = None

    def close(self) -> None:
        """Forget all."""
        self._stop_timer()
        self._buckets.clear()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, number: int) -> None:
        self._stop_timer()
        self._next = number
        self._timer = self._loop.call_at(number / _BUCKETS_A_SECOND, self._tick)

    def _tick(self) -> None:
        self._stop_timer()
        now = self._loop.time() * _BUCKETS_A_SECOND
        for number in [number for number in self._buckets if number <= now]:
            for timed in list(self._buckets.pop(number)):
                timed.bucket = None
                try:
                    timed.expire()
                except Exception:  # noqa: BLE001 - costs no other its deadline
                    _log.exception("a call could not be ended at its deadline")
        # An empty bucket costs one tick when its time comes, and is gone.
        if self._buckets and self._timer is None:
            self._set_timer(min(self._buckets))
