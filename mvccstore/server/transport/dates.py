"""The `Date` of answers."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate


class Dates:
    """The `Date` field, made anew once a second."""

    def __init__(self, time_ms: Callable[[], int]) -> None:
        self._time_ms = time_ms
        self._at = -1
        self._field = (b"Date", b"")

    def field(self) -> tuple[bytes, bytes]:
        """Return it."""
        seconds = self._time_ms() // 1_000
        if seconds != self._at:
            self._at = seconds
            self._field = (b"Date", formatdate(seconds, usegmt=True).encode())
        return self._field
