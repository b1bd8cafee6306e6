"""What is counted of calls and connections: plain integers, as they are counted with each call.

Nothing here is locked: each is written on one thread, and whoever reads them may see one a moment before another.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

_CODES = 17


class Histogram:
    """How many observations were at or below each of some bounds.

    >>> histogram = Histogram((1.0, 2.0))
    >>> for value in (0.5, 1.0, 3.0):
    ...     histogram.observe(value)
    >>> histogram.counts, histogram.total
    ([2, 0, 1], 4.5)
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """Between one bound and the next; the last is above all."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value. Cost: a fraction of a microsecond."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class MethodCounts:
    """Of one method: its calls and their messages."""

    __slots__ = ("codes", "now", "received", "received_bytes", "seconds", "sent", "sent_bytes", "started", "succeeded")

    def __init__(self) -> None:
        self.started = 0
        """Calls that were decoded and begun: what a client breaks before is none."""
        self.succeeded = 0
        self.codes = [0] * _CODES
        """Calls that ended otherwise, by code."""
        self.received = 0
        """Messages of streams; a unary call has one if it was started."""
        self.sent = 0
        """Messages of streams."""
        self.received_bytes = 0
        self.sent_bytes = 0
        self.seconds: Histogram | None = None
        """How long calls took, if anybody wants to know."""
        self.now: Callable[[], float] | None = None
        """Set with `seconds`."""

    def end(self, began_at: float, code: int) -> None:
        """Count the end of a call that was started; `began_at` is 0 if nobody wants to know how long it took."""
        if code:
            self.codes[code] += 1
        else:
            self.succeeded += 1
        if self.seconds is not None and self.now is not None:
            self.seconds.observe(self.now() - began_at)


class Totals:
    """What all connections hold together, in bytes."""

    __slots__ = ("queued", "received")

    def __init__(self) -> None:
        self.queued = 0
        """Of answers that wait for their clients."""
        self.received = 0
        """Of requests that are not complete."""


class Cuts:
    """How many clients have lost a call or their connection, and by what."""

    __slots__ = ("by_limit", "by_told")

    def __init__(self) -> None:
        self.by_limit: dict[str, int] = {}
        """By the name of a limit that was passed."""
        self.by_told: dict[tuple[str, str], int] = {}
        """By the protocol, and what the client was told in its way: an error's name, a status, a code."""

    def note(self, limit: str) -> None:
        """Count one who passed a limit."""
        self.by_limit[limit] = self.by_limit.get(limit, 0) + 1

    def note_told(self, protocol: str, told: str) -> None:
        """Count one who was told by its protocol that it is at fault, or we are."""
        self.by_told[protocol, told] = self.by_told.get((protocol, told), 0) + 1
