"""The store as a live thing: watching it, and leases. What `Store` is beside reading and writing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from contextlib import closing
from typing import SupportsIndex

from mvccstore.clock import Clock
from mvccstore.engine import Engine
from mvccstore.errors import LeaseNotFoundError
from mvccstore.hub import Hub
from mvccstore.lease import Lease, Leases
from mvccstore.mvcc import lease as rules
from mvccstore.types import Keys, check_lease_id, lease_id_of
from mvccstore.view import View
from mvccstore.watch import Watcher, WatchFilter, check_watch


class LiveView(View):
    """What changes by itself, or tells that it has changed."""

    __slots__ = ()

    _hub: Hub
    _leases: Leases
    _clock: Clock
    _engine: Engine

    @abstractmethod
    def _check_open(self) -> None:
        """Raise if the store is closed."""

    @abstractmethod
    def _check_writable(self) -> None:
        """Raise if the store is closed or read-only."""

    def watch(
        self,
        keys: Keys,
        *,
        start_revision: int = 0,
        prev_kv: bool = False,
        filters: Collection[WatchFilter] = (),
        progress: float | None = None,
    ) -> Watcher:
        """Watch a key or range: get every change of it, in order, from any revision on.

        Nothing is left out, however slow the watcher is, and no writer waits for it: what it does not take at
        once it gets from the log, until that is compacted away. Watching does not hold compaction back.

        Args:
            keys: A key or a `KeyRange`.
            start_revision: The first revision to show, past, present or future; 0 for what comes after now.
            prev_kv: Give each event the key as it was before its revision, where that is not compacted.
            filters: "noput" leaves puts out, "nodelete" deletes.
            progress: Seconds after which `next_batch` and `batches` give a batch without events, if nothing
                was to be told for so long; its `revision` is one to go on from.

        Raises:
            CompactedError: `start_revision` is below the compact revision.
            ClosedError: The store is closed.

        Cost: a small object while it is open; a put pays for those who watch its key, not for the others. On a
        store that another process writes, the file is looked at 20 times a second.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> with store.watch(b"k") as watcher:
        ...     revision = store.put(b"k", b"1")
        ...     event = next(watcher)
        >>> event.type, event.kv.value, event.revision == watcher.revision == revision
        ('put', b'1', True)
        """
        self._check_open()
        check_watch(keys, start_revision, filters, progress)
        return Watcher(
            self,
            self._hub,
            self._clock,
            keys,
            start_revision=start_revision,
            prev_kv=prev_kv,
            filters=filters,
            progress=progress,
        )

    def grant(self, ttl: float, *, lease_id: int = 0, keep_alive: bool = False) -> Lease:
        """Create a lease: the keys put with it are deleted when nobody has kept it alive for `ttl` seconds.

        It outlives the store's closing; when it is opened again, each lease has its whole time.

        Args:
            ttl: Seconds above 0, to the millisecond.
            lease_id: A number to know it by; 0 has one chosen.
            keep_alive: Keep it alive as long as the returned object and the open store live.

        Raises:
            LeaseExistsError: There is one with this id.
            ValueError: `ttl` is not above 0, or above 9,000,000,000.

        Cost: one commit. No revision.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> with store.grant(ttl=10) as lease:
        ...     _ = store.put(b"workers/7", b"up", lease=lease)
        ...     lease.keys()
        [b'workers/7']
        >>> store.get(b"workers/7") is None
        True
        """
        self._check_writable()
        check_lease_id(lease_id)
        lease = Lease(self._leases, self._leases.grant(ttl, lease_id), self._lease_keys)
        if keep_alive:
            self._leases.keep(lease)
        return lease

    def new_lease_id(self) -> int:
        """Return a number that no lease has had, for who submits a `LeaseGrantRequest`. For servers."""
        return self._leases.new_id()

    def lease(self, lease_id: SupportsIndex) -> Lease:
        """Return a lease by its id.

        Raises:
            LeaseNotFoundError: There is none with this id.
        """
        self._check_writable()
        number = lease_id_of(lease_id)
        if not self._leases.is_alive(number):
            raise LeaseNotFoundError(number)
        return Lease(self._leases, number, self._lease_keys)

    def leases(self) -> list[Lease]:
        """Return all leases, the one that ends first at the head. O(leases)."""
        self._check_writable()
        return [Lease(self._leases, lease_id, self._lease_keys) for lease_id in self._leases.ids()]

    def _lease_keys(self, lease_id: int) -> list[bytes]:
        self._check_open()
        if not self._leases.is_alive(lease_id):
            raise LeaseNotFoundError(lease_id)
        with closing(self._engine.read()) as txn:
            return [kv.key for kv, _ in rules.attached(txn, lease_id)]
