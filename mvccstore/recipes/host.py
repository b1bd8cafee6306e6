"""What a recipe stands on: a store whose every call is awaited, so that each recipe is written once.

The steps of a recipe are a coroutine over a `Host`. On asyncio the host is the asyncio store, and the steps are
awaited. For threads it is `Blocking`, whose calls wait where they stand and never suspend; so `run` has the whole
coroutine done in one go, in the calling thread, and no event loop is needed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Coroutine, Sequence
from contextlib import suppress
from itertools import islice
from typing import Protocol, TypeVar

from mvccstore.clock import SystemClock
from mvccstore.errors import CompactedError
from mvccstore.hub import WatchBatch
from mvccstore.lease import Lease
from mvccstore.types import Compare, KeyRange, Keys, KeyValue, RangeResult, Request, SortTarget, TxnResult
from mvccstore.view import View
from mvccstore.watch import Watcher, WatchFilter

T = TypeVar("T")

_ROOT = b"_mvccstore/"
_real_time = SystemClock()


class HostLease(Protocol):
    """A lease that is kept alive as long as the object lives."""

    @property
    def is_alive(self) -> bool:
        """Whether it has neither expired nor been revoked."""
        ...

    def __index__(self) -> int: ...


class HostWatcher(Protocol):
    """A watcher whose batches are awaited."""

    async def next_batch(self, timeout: float | None = None) -> WatchBatch | None:  # noqa: ASYNC109 - as there
        """As `Watcher.next_batch`."""
        ...

    def close(self) -> None:
        """As `Watcher.close`."""
        ...


class Host(Protocol):
    """A store, as the steps of a recipe see it. The names do what they do in `Store`."""

    @property
    def revision(self) -> int:
        """The current revision."""
        ...

    async def range(
        self,
        keys: Keys,
        *,
        limit: int = 0,
        order_by: SortTarget = "key",
        descending: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        max_create_revision: int = 0,
    ) -> RangeResult:
        """Return the keys of a range."""
        ...

    async def first(self, keys: KeyRange, limit: int) -> list[KeyValue]:
        """Return the first keys of a range, without looking at the others."""
        ...

    async def txn(
        self, *, compare: Sequence[Compare] = (), success: Sequence[Request] = (), failure: Sequence[Request] = ()
    ) -> TxnResult:
        """Run one of two branches, as one atomic step."""
        ...

    async def grant(self, ttl: float) -> HostLease:
        """Create a lease that is kept alive as long as the returned object lives."""
        ...

    async def revoke(self, lease: HostLease) -> int:
        """End a lease, and delete its keys; return how many."""
        ...

    def watch(self, keys: Keys, *, start_revision: int, filters: Collection[WatchFilter] = ()) -> HostWatcher:
        """Watch a key or range."""
        ...


class RecipeView(View):
    """What a store must have for its recipes, beside reading."""

    __slots__ = ()

    @property
    @abstractmethod
    def revision(self) -> int:
        """The current revision."""

    @abstractmethod
    def txn(
        self, *, compare: Sequence[Compare] = (), success: Sequence[Request] = (), failure: Sequence[Request] = ()
    ) -> TxnResult:
        """Run one of two branches, as one atomic step."""

    @abstractmethod
    def watch(self, keys: Keys, *, start_revision: int = 0, filters: Collection[WatchFilter] = ()) -> Watcher:
        """Watch a key or range."""

    @abstractmethod
    def grant(self, ttl: float, *, keep_alive: bool = False) -> Lease:
        """Create a lease."""


class Blocking:
    """A store as a `Host` that never suspends: each call waits in the calling thread. For `run`."""

    __slots__ = ("_store",)

    def __init__(self, store: RecipeView) -> None:
        self._store = store

    @property
    def revision(self) -> int:
        """The current revision."""
        return self._store.revision

    async def range(
        self,
        keys: Keys,
        *,
        limit: int = 0,
        order_by: SortTarget = "key",
        descending: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        max_create_revision: int = 0,
    ) -> RangeResult:
        """Return the keys of a range."""
        return self._store.range(
            keys,
            limit=limit,
            order_by=order_by,
            descending=descending,
            keys_only=keys_only,
            count_only=count_only,
            max_create_revision=max_create_revision,
        )

    async def first(self, keys: KeyRange, limit: int) -> list[KeyValue]:
        """Return the first keys of a range, without looking at the others."""
        with self._store.scan(keys) as scan:
            return list(islice(scan, limit))

    async def txn(
        self, *, compare: Sequence[Compare] = (), success: Sequence[Request] = (), failure: Sequence[Request] = ()
    ) -> TxnResult:
        """Run one of two branches, as one atomic step."""
        return self._store.txn(compare=compare, success=success, failure=failure)

    async def grant(self, ttl: float) -> Lease:
        """Create a lease that is kept alive as long as the returned object lives."""
        return self._store.grant(ttl, keep_alive=True)

    async def revoke(self, lease: HostLease) -> int:
        """End a lease, and delete its keys; return how many."""
        assert isinstance(lease, Lease)
        return lease.revoke()

    def watch(self, keys: Keys, *, start_revision: int, filters: Collection[WatchFilter] = ()) -> BlockingWatcher:
        """Watch a key or range."""
        return BlockingWatcher(self._store.watch(keys, start_revision=start_revision, filters=filters))


class BlockingWatcher:
    """A watcher as a `HostWatcher` that never suspends."""

    __slots__ = ("_watcher",)

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    async def next_batch(self, timeout: float | None = None) -> WatchBatch | None:  # noqa: ASYNC109 - as there
        """As `Watcher.next_batch`."""
        return self._watcher.next_batch(timeout)

    def close(self) -> None:
        """As `Watcher.close`."""
        self._watcher.close()


def run(steps: Coroutine[object, None, T]) -> T:
    """Have the steps of a recipe done over a `Blocking` host; return what they return, raise what they raise."""
    try:
        steps.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    steps.close()
    msg = "a step has suspended, though its host blocks"
    raise AssertionError(msg)


class Deadline:
    """Until when to wait. In real time, whatever the store's clock: a thread waits in no other.

    Args:
        timeout: Seconds from 0 up; None waits as long as it takes.
    """

    __slots__ = ("_end",)

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not timeout >= 0:
            msg = f"timeout is {timeout!r}, not a number of seconds from 0 up"
            raise ValueError(msg)
        self._end = None if timeout is None else _real_time.monotonic() + timeout

    def left(self) -> float | None:
        """Return the seconds left, at least 0; None if there is no end."""
        return None if self._end is None else max(0.0, self._end - _real_time.monotonic())


async def changed(host: Host, keys: Keys, after: int, deadline: Deadline, *, by_delete: bool = False) -> bool:
    """Wait until something in `keys` has changed, or been deleted, after a revision; return False at the deadline."""
    filters: tuple[WatchFilter, ...] = ("noput",) if by_delete else ()
    with suppress(CompactedError):  # what came after is not known any more: the caller looks again
        watcher = host.watch(keys, start_revision=after + 1, filters=filters)
        try:
            return await watcher.next_batch(deadline.left()) is not None
        finally:
            watcher.close()
    return True


def key_of(kind: str, name: str | bytes) -> bytes:
    """Return the key under which a recipe of this name is kept: `_mvccstore/KIND/NAME`.

    `/` in a name becomes `%2F` and `%` becomes `%25`, so that no name is the beginning of another.

    Raises:
        TypeError, ValueError: The name is neither text nor bytes, or is empty.
    """
    if not isinstance(name, str | bytes):
        msg = f"name is a {type(name).__name__}, neither str nor bytes"
        raise TypeError(msg)
    if not name:
        msg = "name is empty"
        raise ValueError(msg)
    raw = name.encode() if isinstance(name, str) else name
    return _ROOT + kind.encode() + b"/" + raw.replace(b"%", b"%25").replace(b"/", b"%2F")
