"""Leases: keys that go when nobody keeps them alive.

That a lease exists, and which keys it has, is stored, and changes by commands like all else. When it ends is
known to the open store only: opening a store gives each lease its whole time again (etcd's rule), so none
ends early because nobody was there to keep it alive.

Invariants:

* I1. A lease that is being ended (`_ending`) cannot be kept alive any more.
* I2. The table has the leases that the last commit left, as `on_commit` tells it.

Locks: `_mutex` is a leaf. `_expiry`, held while leases are ended, is taken before the writer's turn.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Self

from mvccstore.clock import Clock
from mvccstore.errors import ClosedError, LeaseExistsError, LeaseNotFoundError
from mvccstore.mvcc.lease import granted
from mvccstore.mvcc.lease_table import LeaseTable, in_order
from mvccstore.tables import ReadTxn
from mvccstore.types import DeleteResult, LeaseGrantRequest, LeaseRevokeRequest, Result, WriteRequest

TTL_SECONDS_MAX = 9_000_000_000
"""As etcd has it: 285 years."""


class Lease:
    """A lease, which `put` takes as `lease=`. Get one from `Store.grant` or `Store.lease`.

    As a context manager it is revoked at the end.
    """

    __slots__ = ("__weakref__", "_keys", "_leases", "id")

    def __init__(self, leases: Leases, lease_id: int, keys: Callable[[int], list[bytes]]) -> None:
        self._leases = leases
        self._keys = keys
        self.id = lease_id
        """A signed 64-bit number."""

    @property
    def ttl(self) -> float:
        """Seconds it was granted.

        Raises:
            LeaseNotFoundError: It has ended.
            ClosedError: The store is closed; so for the methods.
        """
        return self._leases.ttl(self.id)

    @property
    def is_alive(self) -> bool:
        """Whether it has neither expired nor been revoked."""
        return self._leases.is_alive(self.id)

    def remaining(self) -> float:
        """Return the seconds until it ends; 0 if it is about to.

        Raises:
            LeaseNotFoundError: It has ended.
        """
        return self._leases.remaining(self.id)

    def keep_alive(self) -> float:
        """Give it its whole time again, and return that in seconds. Nothing is written.

        Raises:
            LeaseNotFoundError: It has ended.
        """
        return self._leases.keep_alive(self.id)

    def keys(self) -> list[bytes]:
        """Return the keys attached to it, in order. One lookup a key.

        Raises:
            LeaseNotFoundError: It has ended.
        """
        return self._keys(self.id)

    def revoke(self) -> int:
        """End it now, and delete its keys, as one revision. Return how many. One commit.

        Raises:
            LeaseNotFoundError: It has ended.
        """
        return self._leases.revoke(self.id)

    def __index__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lease) and other.id == self.id and other._leases is self._leases

    def __hash__(self) -> int:
        return hash(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(LeaseNotFoundError):
            self.revoke()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}{'' if self.is_alive else ', ended'}>"


class Leases:
    """The leases of an open store, and when they end.

    Args:
        clock: By which they end.
        submit: Carries out a write.
        on_sooner: Told when the first of them ends sooner than before.
    """

    def __init__(self, clock: Clock, submit: Callable[[WriteRequest], Result], on_sooner: Callable[[], None]) -> None:
        self._clock = clock
        self._submit = submit
        self._on_sooner = on_sooner
        self._mutex = threading.RLock()
        self._expiry = threading.RLock()
        self._table = LeaseTable()
        self._ending: set[int] = set()
        self._kept: dict[int, weakref.ref[Lease]] = {}
        self._last_id = 0
        self._is_closed = False

    def load(self, txn: ReadTxn, path: str) -> None:
        """Make the table right: leases that it does not have begin now. O(leases)."""
        stored = dict(granted(txn, path))
        now = self._clock.monotonic()
        with self._mutex:
            for lease_id in self._table.ids():
                if stored.get(lease_id) != self._table.ttl_ms(lease_id):  # gone, or another one by now
                    self._table.remove(lease_id)
                    self._kept.pop(lease_id, None)
            for lease_id, ttl_ms in stored.items():
                if lease_id not in self._table:
                    self._table.add(lease_id, ttl_ms, now)

    def left(self) -> dict[int, float]:
        """Return what each lease has left, in seconds. O(leases)."""
        now = self._clock.monotonic()
        with self._mutex:
            return {lease_id: max(0.0, (self._table.end(lease_id) or now) - now) for lease_id in self._table.ids()}

    def begin_anew(self, txn: ReadTxn, path: str, left: Mapping[int, float]) -> None:
        """Have the leases that are stored, and no others; each has `left`, or if that does not know it its whole time."""
        with self._mutex:
            self._table = LeaseTable()
            self._kept.clear()
            self._ending.clear()
            self.load(txn, path)
            now = self._clock.monotonic()
            for lease_id, seconds in left.items():
                if lease_id in self._table:
                    self._table.set_left(lease_id, seconds, now)

    def on_commit(self, changes: list[LeaseGrantRequest | LeaseRevokeRequest]) -> None:
        """Take over what a commit granted and revoked."""
        now = self._clock.monotonic()
        with self._mutex:
            before = self._table.next_end()
            for change in changes:
                if isinstance(change, LeaseGrantRequest):
                    self._table.add(change.lease_id, change.ttl_ms, now)
                else:
                    self._table.remove(change.lease_id)
                    self._ending.discard(change.lease_id)
                    self._kept.pop(change.lease_id, None)
            after = self._table.next_end()
        if after is not None and (before is None or after < before):
            self._on_sooner()

    def grant(self, ttl: float, lease_id: int) -> int:
        """Create a lease; return its id."""
        request_ms = ttl_ms(ttl)
        if lease_id:
            self._submit(LeaseGrantRequest(lease_id, request_ms))
            return lease_id
        while True:
            lease_id = self.new_id()
            with suppress(LeaseExistsError):
                self._submit(LeaseGrantRequest(lease_id, request_ms))
                return lease_id

    def new_id(self) -> int:
        """Return a number for a lease: ascending, and not used before unless the clock goes back."""
        with self._mutex:
            self._last_id = max(self._last_id + 1, self._clock.time_ms() << 20)
            return self._last_id

    def keep(self, lease: Lease) -> None:
        """Keep a lease alive as long as its object lives, without anybody's doing."""
        with self._mutex:
            if lease.id in self._table:
                self._kept[lease.id] = weakref.ref(lease)

    def is_alive(self, lease_id: int) -> bool:
        """Say whether there is such a lease."""
        with self._mutex:
            return lease_id in self._table and lease_id not in self._ending

    def ttl(self, lease_id: int) -> float:
        """Return the seconds a lease was granted."""
        with self._mutex:
            self._check_open()
            granted_ms = self._table.ttl_ms(lease_id)
            if granted_ms is None:
                raise LeaseNotFoundError(lease_id)
            return granted_ms / 1000

    def remaining(self, lease_id: int) -> float:
        """Return the seconds a lease has left."""
        with self._mutex:
            self._check_open()
            end = self._table.end(lease_id)
            if end is None:
                raise LeaseNotFoundError(lease_id)
            return max(0.0, end - self._clock.monotonic())

    def keep_alive(self, lease_id: int) -> float:
        """Give a lease its whole time again; return that."""
        with self._mutex:
            self._check_open()
            if lease_id not in self._table or lease_id in self._ending:
                raise LeaseNotFoundError(lease_id)
            self._table.renew(lease_id, self._clock.monotonic())
            return self.ttl(lease_id)

    def revoke(self, lease_id: int) -> int:
        """End a lease; return how many keys went with it."""
        result = self._submit(LeaseRevokeRequest(lease_id))
        assert isinstance(result, DeleteResult)
        return result.deleted

    def ids(self) -> list[int]:
        """Return all leases, the one that ends first at the head."""
        with self._mutex:
            ends, ending = self._table.ends(), set(self._ending)
        return [lease_id for lease_id in in_order(ends) if lease_id not in ending]  # nobody waits for that

    def next_in(self) -> float | None:
        """Return the seconds until the first lease ends; None if there is none."""
        with self._mutex:
            end = self._table.next_end()
            return None if end is None else max(0.0, end - self._clock.monotonic())

    def expire(self) -> None:
        """End the leases whose time is over, each as one revision."""
        with self._expiry:
            try:
                for lease_id in self._due():
                    with suppress(LeaseNotFoundError):  # revoked just now
                        self._submit(LeaseRevokeRequest(lease_id))
            finally:
                with self._mutex:
                    self._ending.clear()  # if the disk is full they live on, and are tried again

    def _due(self) -> list[int]:
        now = self._clock.monotonic()
        with self._mutex:
            due = []
            for lease_id in self._table.due(now):
                kept = self._kept.get(lease_id)
                if kept is not None and kept() is not None:
                    self._table.renew(lease_id, now)
                else:
                    due.append(lease_id)
            self._ending.update(due)
            return due

    def close(self) -> None:
        """Have what needs the open store raise `ClosedError`."""
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError

    def forget(self) -> None:
        """Close in a child after a fork, with locks of its own."""
        self._is_closed = True
        self._mutex = threading.RLock()
        self._expiry = threading.RLock()


def ttl_ms(ttl: float) -> int:
    """Return a time to live in milliseconds, at least 1.

    Raises:
        TypeError, ValueError: It is no positive number of seconds, or over `TTL_SECONDS_MAX`.
    """
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        msg = f"ttl is a {type(ttl).__name__}, not a number of seconds"
        raise TypeError(msg)
    if not 0 < ttl <= TTL_SECONDS_MAX:
        msg = f"ttl is {ttl}; it is a number of seconds above 0, {TTL_SECONDS_MAX:,} at most"
        raise ValueError(msg)
    return max(1, math.ceil(round(ttl * 1000, 6)))  # 16.1 times 1000 is a little more than 16,100
