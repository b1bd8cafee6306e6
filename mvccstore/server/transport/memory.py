"""What connections hold of the server's memory: each by itself, and all together.

A client that reads nothing, or sends requests that it does not complete, is bounded by its own limits; a thousand of
them are bounded by what all may hold together. That is shared so that who holds much is cut before who holds little:
a connection may hold no more than what is free. The first may so take half of the whole, the next a third, and so on,
and something is always free for one that holds less. What one request needs each may hold, whatever the others do.

Invariants:

* I1. `Totals` has the sums of what its connections hold: each gives back what it took, at the latest when it is lost.
* I2. All together hold at most the shared limit, and for each connection one request more.
"""

from __future__ import annotations

from mvccstore.server.transport.counts import Totals
from mvccstore.server.transport.limits import TransportLimits


class Memory:
    """What one connection holds. Used on the loop's thread."""

    __slots__ = ("_limits", "_totals", "_unread", "queued", "received")

    def __init__(self, limits: TransportLimits) -> None:
        self._limits = limits
        self._totals: Totals = limits.totals
        self.queued = 0
        """Bytes of answers that wait for the client."""
        self._unread = 0
        """Those of them that no window holds back."""
        self.received = 0
        """Bytes of requests that are not complete, and of large heads of calls under way."""

    def receive(self, count: int) -> str | None:
        """Hold more of requests, or, negative, less. Return the limit that would be passed; then nothing is held."""
        if count > 0:
            limits, totals, held = self._limits, self._totals, self.received + count
            if held > limits.received_bytes_max:
                return "received_bytes_max"
            if held > max(limits.http_body_bytes_max, limits.all_received_bytes_max - totals.received):
                return "all_received_bytes_max"
        self.received += count
        self._totals.received += count
        return None

    def queue(self, count: int) -> str | None:
        """Hold more of answers, or, negative, less. Return the limit that is passed by it; it is held all the same."""
        self.queued += count
        self._totals.queued += count
        if count > 0:
            limits = self._limits
            if self.queued > limits.queued_bytes_max:
                return "queued_bytes_max"
            if self.queued > max(limits.http_body_bytes_max, limits.all_queued_bytes_max - self._totals.queued):
                return "all_queued_bytes_max"
        return None

    def requeue(self, size: int) -> str | None:
        """As `queue`, told the whole of what waits."""
        return self.queue(size - self.queued)

    def leave(self, count: int) -> str | None:
        """Hold more of what a client does not read though no window holds it back; return the limit that is passed."""
        self._unread += count
        passed = self.queue(count)
        return "unread_bytes_max" if self._unread > self._limits.unread_bytes_max else passed

    def read(self) -> None:
        """Note that the client reads, or has gone: what was left is left no more."""
        self.queue(-self._unread)
        self._unread = 0
