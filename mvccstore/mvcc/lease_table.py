"""When leases end, if nobody keeps them alive. In memory only: a store that is opened gives each its whole time.

Times are seconds of a clock that never goes back, and come in with each call. Kept are whole microseconds, as
tenths of seconds do not add up: 0.2 + 0.1 > 0.3.

Invariants:

* I1. `_heap` is a heap of (end, id), and has for each lease an entry at or before its end.
* I2. It has at most twice as many entries as there are leases, and a few.

A lease is one entry of one dict, and what is no longer true in the heap stays there until it comes to the top:
so keeping a lease alive is one step, which a thread cannot be interrupted in the middle of.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush, heapreplace, merge
from itertools import islice

_SPARE_ENTRIES = 64
_RUN_LEASES = 10_000


class LeaseTable:
    """The leases of one store by their ids, in the order in which they end."""

    __slots__ = ("_heap", "_leases")

    def __init__(self) -> None:
        self._leases: dict[int, tuple[int, int]] = {}  # milliseconds granted, microsecond of the end
        self._heap: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._leases

    def add(self, lease_id: int, ttl_ms: int, now: float) -> None:
        """Begin a lease, or begin it anew. O(log leases)."""
        self._set_end(lease_id, ttl_ms, _end_us(ttl_ms, now))

    def remove(self, lease_id: int) -> None:
        """Forget a lease, if there is one. O(1), seldom O(leases)."""
        self._leases.pop(lease_id, None)
        self._tidy()

    def renew(self, lease_id: int, now: float) -> None:
        """Give a lease its whole time again. O(1); O(log leases) where that is less than it had left."""
        ttl_ms, before_us = self._leases[lease_id]
        end_us = _end_us(ttl_ms, now)
        if end_us < before_us:
            self._set_end(lease_id, ttl_ms, end_us)
        else:
            self._leases[lease_id] = (ttl_ms, end_us)

    def set_left(self, lease_id: int, left: float, now: float) -> None:
        """Have a lease end in so many seconds, whatever it was granted. O(log leases)."""
        ttl_ms, _ = self._leases[lease_id]
        self._set_end(lease_id, ttl_ms, _us(now) + _us(left))

    def ttl_ms(self, lease_id: int) -> int | None:
        """Return what a lease was granted; None if there is no such lease."""
        lease = self._leases.get(lease_id)
        return None if lease is None else lease[0]

    def end(self, lease_id: int) -> float | None:
        """Return when a lease ends; None if there is no such lease."""
        lease = self._leases.get(lease_id)
        return None if lease is None else lease[1] / 1_000_000

    def next_end(self) -> float | None:
        """Return when the first lease ends; None if there is none. O(log leases) for each that was renewed."""
        heap = self._heap
        while heap:
            end_us, lease_id = heap[0]
            lease = self._leases.get(lease_id)
            if lease is None:
                heappop(heap)
            elif lease[1] != end_us:
                heapreplace(heap, (lease[1], lease_id))
            else:
                return end_us / 1_000_000
        return None

    def due(self, now: float) -> list[int]:
        """Return the leases that have ended, in the order in which they did. O(those whose entries have)."""
        heap, now_us = self._heap, _us(now)
        found: set[tuple[int, int]] = set()
        places = [0]
        while places:
            place = places.pop()
            if place < len(heap) and heap[place][0] <= now_us:
                places += (2 * place + 1, 2 * place + 2)
                lease_id = heap[place][1]
                lease = self._leases.get(lease_id)
                if lease is not None and lease[1] <= now_us:
                    found.add((lease[1], lease_id))
        return [lease_id for _, lease_id in sorted(found)]

    def ids(self) -> list[int]:
        """Return all leases, in the order in which they end."""
        return in_order(self._leases)

    def ends(self) -> dict[int, tuple[int, int]]:
        """Return a copy of what there is, for `in_order`: that takes long, and a copy does not."""
        return self._leases.copy()

    def _set_end(self, lease_id: int, ttl_ms: int, end_us: int) -> None:
        heappush(self._heap, (end_us, lease_id))  # I1: before it ends then, which may be sooner than its entry says
        self._leases[lease_id] = (ttl_ms, end_us)
        self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._leases) + _SPARE_ENTRIES:  # I2
            heap = [(end_us, lease_id) for lease_id, (_, end_us) in self._leases.items()]
            heapify(heap)
            self._heap = heap


def in_order(ends: Mapping[int, tuple[int, int]]) -> list[int]:
    """Return leases in the order in which they end.

    Cost: a microsecond or two a lease. Other threads run in between: a million sorted at once keep them off for a second.
    """
    pairs = ((end_us, lease_id) for lease_id, (_, end_us) in ends.items())
    runs: list[list[tuple[int, int]]] = []
    while run := sorted(islice(pairs, _RUN_LEASES)):
        runs.append(run)
    return [lease_id for _, lease_id in merge(*runs)]


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _end_us(ttl_ms: int, now: float) -> int:
    return _us(now) + ttl_ms * 1_000
