"""When leases end, if nobody keeps them alive. In memory only: a store that is opened gives each its whole time.

Times are seconds of a clock that never goes back, and come in with each call. Kept are whole microseconds, as
tenths of seconds do not add up: 0.2 + 0.1 > 0.3.
"""

from __future__ import annotations

from sortedcontainers import SortedList


class LeaseTable:
    """The leases of one store by their ids, in the order in which they end."""

    __slots__ = ("_ends", "_order", "_ttls")

    def __init__(self) -> None:
        self._ttls: dict[int, int] = {}  # milliseconds
        self._ends: dict[int, int] = {}  # microseconds
        self._order = SortedList()  # of (microseconds, id)

    def __len__(self) -> int:
        return len(self._ttls)

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._ttls

    def add(self, lease_id: int, ttl_ms: int, now: float) -> None:
        """Begin a lease, or begin it anew. O(log leases)."""
        self.remove(lease_id)
        self._ttls[lease_id] = ttl_ms
        self._set_end(lease_id, now)

    def remove(self, lease_id: int) -> None:
        """Forget a lease, if there is one. O(log leases)."""
        if self._ttls.pop(lease_id, None) is not None:
            self._order.remove((self._ends.pop(lease_id), lease_id))

    def renew(self, lease_id: int, now: float) -> None:
        """Give a lease its whole time again. O(log leases)."""
        self._order.remove((self._ends[lease_id], lease_id))
        self._set_end(lease_id, now)

    def ttl_ms(self, lease_id: int) -> int | None:
        """Return what a lease was granted; None if there is no such lease."""
        return self._ttls.get(lease_id)

    def end(self, lease_id: int) -> float | None:
        """Return when a lease ends; None if there is no such lease."""
        end_us = self._ends.get(lease_id)
        return None if end_us is None else end_us / 1_000_000

    def next_end(self) -> float | None:
        """Return when the first lease ends; None if there is none."""
        return self._order[0][0] / 1_000_000 if self._order else None

    def due(self, now: float) -> list[int]:
        """Return the leases that have ended, in the order in which they did."""
        return [lease_id for _, lease_id in self._order.irange(maximum=(_us(now), 2**63))]

    def ids(self) -> list[int]:
        """Return all leases, in the order in which they end."""
        return [lease_id for _, lease_id in self._order]

    def _set_end(self, lease_id: int, now: float) -> None:
        end_us = self._ends[lease_id] = _us(now) + self._ttls[lease_id] * 1_000
        self._order.add((end_us, lease_id))


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)
