"""How long a client leaves unread what waits for it."""

from __future__ import annotations

from mvccstore.server.transport.call import WRITABLE_BYTES


class Stall:
    """A client that does not read, or slowly. Each `WRITABLE_BYTES` that it takes begin its time anew.

    >>> stall = Stall(10.0, 1 << 20)
    >>> stall.has_lasted(19.0, 5.0, 1 << 20)
    True
    >>> stall.has_lasted(19.0, 5.0, 1 << 19), stall.has_lasted(23.0, 5.0, (1 << 19) - 1), stall.since
    (False, False, 19.0)
    """

    __slots__ = ("_queued", "since")

    def __init__(self, now: float, queued: int) -> None:
        self.since = now
        self._queued = queued

    def has_lasted(self, now: float, seconds: float, queued: int) -> bool:
        """Say whether it has not taken so much for more than `seconds`; `queued` bytes wait now."""
        if queued <= self._queued - WRITABLE_BYTES:
            self.since, self._queued = now, queued
        return now - self.since > seconds
