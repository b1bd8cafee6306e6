"""The recipes as methods of an asyncio store. Their steps are those of `mvccstore.recipes`, awaited."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar, overload

from mvccstore.aio.live import AsyncLease, AsyncWatcher
from mvccstore.aio.reading import AsyncScan, AsyncView
from mvccstore.errors import ClosedError, CompactedError
from mvccstore.recipes.barrier import AsyncBarrier
from mvccstore.recipes.codecs import Codec, JsonCodec
from mvccstore.recipes.counter import AsyncCounter
from mvccstore.recipes.election import AsyncElection
from mvccstore.recipes.host import HostLease, RecipeView
from mvccstore.recipes.lock import AsyncLock
from mvccstore.recipes.mapping import Callbacks, Entries, ItemChange, TxnParts, watch_again
from mvccstore.recipes.mirror import AsyncMirror
from mvccstore.recipes.queue import AsyncQueue
from mvccstore.types import Compare, KeyRange, Keys, KeyValue, RangeResult, Request, SortTarget, TxnResult
from mvccstore.watch import WatchFilter

K = TypeVar("K", bound=str | bytes)
T = TypeVar("T")
D = TypeVar("D")
_REQUIRED = object()


class AsyncRecipes(AsyncView):
    """What is built of puts, txns, leases and watches; a part of `AsyncStore`. See `Recipes`.

    The methods are not awaited themselves; those of what they return are.
    """

    __slots__ = ()

    @abstractmethod
    def _view(self) -> RecipeView:
        """Return what to ask; raise if this loop may not, or if it is closed."""

    @property
    @abstractmethod
    def revision(self) -> int:
        """The current revision."""

    @abstractmethod
    async def txn(
        self, *, compare: Sequence[Compare] = (), success: Sequence[Request] = (), failure: Sequence[Request] = ()
    ) -> TxnResult:
        """Run one of two branches, as one atomic step."""

    @abstractmethod
    def watch(self, keys: Keys, *, start_revision: int = 0, filters: Collection[WatchFilter] = ()) -> AsyncWatcher:
        """Watch a key or range."""

    @abstractmethod
    async def grant(self, ttl: float, *, keep_alive: bool = False) -> AsyncLease:
        """Create a lease."""

    def lock(self, name: str | bytes, *, ttl: float = 10) -> AsyncLock:
        """As `Store.lock`, for `async with`."""
        return AsyncLock(AsyncHost(self), name, ttl)

    def election(self, name: str | bytes, *, ttl: float = 10) -> AsyncElection:
        """As `Store.election`."""
        return AsyncElection(AsyncHost(self), name, ttl)

    def counter(self, name: str | bytes) -> AsyncCounter:
        """As `Store.counter`."""
        return AsyncCounter(AsyncHost(self), name)

    def queue(self, name: str | bytes, *, ttl: float = 30) -> AsyncQueue:
        """As `Store.queue`."""
        return AsyncQueue(AsyncHost(self), name, ttl)

    def barrier(self, name: str | bytes) -> AsyncBarrier:
        """As `Store.barrier`."""
        return AsyncBarrier(AsyncHost(self), name)

    def mirror(self, prefix: bytes) -> AsyncMirror:
        """As `Store.mirror`: it is looked at like a dict, without `await`."""
        return AsyncMirror(self._view(), AsyncHost(self), prefix)

    @overload
    def mapping(self, prefix: str) -> AsyncStoreMapping[str, object]: ...
    @overload
    def mapping(self, prefix: bytes) -> AsyncStoreMapping[bytes, object]: ...
    @overload
    def mapping(self, prefix: str, *, codec: Codec[T]) -> AsyncStoreMapping[str, T]: ...
    @overload
    def mapping(self, prefix: bytes, *, codec: Codec[T]) -> AsyncStoreMapping[bytes, T]: ...
    def mapping(
        self, prefix: str | bytes, *, codec: Codec[T] | None = None
    ) -> AsyncStoreMapping[str, T] | AsyncStoreMapping[bytes, T]:
        """As `Store.mapping`, with methods in place of `[]`: `await users.set("ann", 7)`, `await users.get("ann")`."""
        chosen: Codec[T] = JsonCodec() if codec is None else codec
        if isinstance(prefix, str):
            return AsyncStoreMapping(self, prefix, chosen)
        return AsyncStoreMapping(self, prefix, chosen)


class AsyncHost:
    """An asyncio store as a `Host` of recipes."""

    __slots__ = ("_store",)

    def __init__(self, store: AsyncRecipes) -> None:
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
        return await self._store.range(
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
        found: list[KeyValue] = []
        async with self._store.scan(keys) as scan:
            async for kv in scan:
                found.append(kv)
                if len(found) == limit:
                    break
        return found

    async def txn(
        self, *, compare: Sequence[Compare] = (), success: Sequence[Request] = (), failure: Sequence[Request] = ()
    ) -> TxnResult:
        """Run one of two branches, as one atomic step."""
        return await self._store.txn(compare=compare, success=success, failure=failure)

    async def grant(self, ttl: float) -> AsyncLease:
        """Create a lease that is kept alive as long as the returned object lives."""
        return await self._store.grant(ttl, keep_alive=True)

    async def revoke(self, lease: HostLease) -> int:
        """End a lease, and delete its keys; return how many."""
        assert isinstance(lease, AsyncLease)
        return await lease.revoke()

    def watch(self, keys: Keys, *, start_revision: int, filters: Collection[WatchFilter] = ()) -> AsyncWatcher:
        """Watch a key or range."""
        return self._store.watch(keys, start_revision=start_revision, filters=filters)


class _Mapped(Generic[T]):
    """What is made of the rows of a scan. No generator: one that is not exhausted would be closed by the loop, some day."""

    __slots__ = ("_make", "_scan")

    def __init__(self, scan: AsyncScan[KeyValue], make: Callable[[KeyValue], T]) -> None:
        self._scan = scan
        self._make = make

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return self._make(await anext(self._scan))


class AsyncStoreMapping(Generic[K, T]):
    """A mutable mapping of Python values, kept in the store: as `StoreMapping`, awaited. Get one from `AsyncStore.mapping`."""

    def __init__(self, store: AsyncRecipes, prefix: K, codec: Codec[T]) -> None:
        self._store = store
        self._entries: Entries[K, T] = Entries(prefix, codec)
        self._callbacks: Callbacks[K, T] = Callbacks(self._entries)
        self._watcher: AsyncWatcher | None = None
        self._task: asyncio.Task[None] | None = None

    @overload
    async def get(self, key: K, /) -> T | None: ...
    @overload
    async def get(self, key: K, /, default: T) -> T: ...
    @overload
    async def get(self, key: K, /, default: D) -> T | D: ...
    async def get(self, key: K, /, default: object = None) -> object:
        """Return the value of a key; `default` if it is missing. One lookup."""
        kv = await self._store.get(self._entries.raw(key))
        return default if kv is None else self._entries.value(kv)

    async def has(self, key: K) -> bool:
        """Say whether there is such a key. One lookup."""
        return await self._store.get(self._entries.raw(key)) is not None

    async def set(self, key: K, value: T) -> None:
        """Set an item. One commit."""
        await self._txn(self._entries.put(key, value))

    async def delete(self, key: K) -> None:
        """Delete an item. One commit.

        Raises:
            KeyError: There is none.
        """
        if self._entries.deleted(await self._txn(self._entries.delete(key))) is None:
            raise KeyError(key)

    async def count(self) -> int:
        """Return how many items there are. An index step each."""
        return await self._store.count(self._entries.keys)

    def __aiter__(self) -> AsyncIterator[K]:
        entries = self._entries
        return _Mapped(self._store.scan(entries.keys, keys_only=True), lambda kv: entries.key(kv.key))

    def items(self) -> AsyncIterator[tuple[K, T]]:
        """Iterate over the items, for `async for`: in the order of keys, all as of one revision."""
        return _Mapped(self._store.scan(self._entries.keys), self._entries.item)

    def keys(self) -> AsyncIterator[K]:
        """Iterate over the keys, for `async for`: in their order, all as of one revision."""
        return aiter(self)

    def values(self) -> AsyncIterator[T]:
        """Iterate over the values, for `async for`: in the order of keys, all as of one revision."""
        return _Mapped(self._store.scan(self._entries.keys), self._entries.value)

    @overload
    async def setdefault(self: AsyncStoreMapping[K, T | None], key: K, default: None = None, /) -> T | None: ...
    @overload
    async def setdefault(self, key: K, default: T, /) -> T: ...
    async def setdefault(self, key: K, default: T | None = None, /) -> T | None:
        """As `StoreMapping.setdefault`."""
        kv = self._entries.was_set(await self._txn(self._entries.setdefault(key, default)))  # type: ignore[arg-type]
        return default if kv is None else self._entries.value(kv)

    @overload
    async def pop(self, key: K, /) -> T: ...
    @overload
    async def pop(self, key: K, /, default: T) -> T: ...
    @overload
    async def pop(self, key: K, /, default: D) -> T | D: ...
    async def pop(self, key: K, /, default: object = _REQUIRED) -> object:
        """As `StoreMapping.pop`."""
        kv = self._entries.deleted(await self._txn(self._entries.delete(key)))
        if kv is not None:
            return self._entries.value(kv)
        if default is _REQUIRED:
            raise KeyError(key)
        return default

    async def popitem(self) -> tuple[K, T]:
        """As `StoreMapping.popitem`."""
        async with self._store.scan(self._entries.keys, keys_only=True) as scan:
            async for found in scan:
                kv = self._entries.deleted(await self._txn(self._entries.delete(self._entries.key(found.key))))
                if kv is not None:  # or somebody was quicker
                    return self._entries.item(kv)
        msg = "the mapping is empty"
        raise KeyError(msg)

    async def clear(self) -> None:
        """As `StoreMapping.clear`."""
        await self._txn(self._entries.clear())

    async def update(self, *args: Mapping[K, T] | Iterable[tuple[K, T]], **named: T) -> None:
        """As `StoreMapping.update`."""
        items: dict[K, T] = dict(*args)
        items.update(named)  # type: ignore[arg-type]
        if items:
            await self._txn(self._entries.update(items))

    async def _txn(self, parts: TxnParts) -> TxnResult:
        return await self._store.txn(compare=parts.compare, success=parts.success, failure=parts.failure)

    # Being told

    def on_change(self, callback: Callable[[ItemChange[K, T]], object]) -> Callable[[], None]:
        """As `StoreMapping.on_change`; the callbacks, plain functions, are called by a task on the loop."""
        if self._watcher is None or self._watcher.is_closed:
            self._watcher = self._store.watch(self._entries.keys)
            self._task = asyncio.get_running_loop().create_task(self._tell(self._watcher))
        return partial(self._undo, self._callbacks.add(callback, self._store.revision))

    def _undo(self, remove: Callable[[], None]) -> None:
        remove()
        if not self._callbacks and self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    async def _tell(self, watcher: AsyncWatcher) -> None:
        while True:
            try:
                async for batch in watcher.batches():
                    self._callbacks.tell(batch.events)
            except CompactedError as error:
                self._callbacks.missed(error)
                await asyncio.sleep(0)  # a new watcher counts its turns anew
                if self._watcher is not watcher:  # undone meanwhile
                    return
                try:
                    watcher = self._watcher = watch_again(self._store.watch, self._entries.keys, error)
                except ClosedError:
                    return
                continue
            except ClosedError:  # the store
                return
            return

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._entries.keys.start!r}>"
