"""The asyncio face of a store: the same names and signatures, awaited.

Who does what:

    the loop's thread    reads, watchers, what can be said of a request without the store
    the writer           writes, those that wait together in one commit; transactions
    the helper           what takes long: backup, check, reclaiming, hashing, bisecting

Invariants:

* I1. Nothing on the loop's thread waits for the disk, for a writer, or for another thread's lock for long.
* I2. `_closing` is set once; then nothing new is begun, what was asked for before is done, and the store closes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from datetime import datetime
from functools import partial
from inspect import isawaitable, iscoroutine
from typing import Literal, Self, SupportsIndex, TypeVar, overload

from mvccstore.aio.live import AsyncLease, AsyncWatcher
from mvccstore.aio.reading import AsyncScan, AsyncSnapshot
from mvccstore.aio.recipes import AsyncRecipes
from mvccstore.aio.subscription import AsyncSubscribing
from mvccstore.aio.worker import Courier, Worker
from mvccstore.attributes import Attributes, AttributesResult, attributes_request
from mvccstore.clock import Clock
from mvccstore.difference import Difference
from mvccstore.engine import Engine
from mvccstore.errors import ClosedError, LeaseExistsError, StoreError
from mvccstore.lease import Lease, ttl_ms
from mvccstore.mvcc.validate import check_keys_size, check_put, check_txn
from mvccstore.opening import open_store
from mvccstore.options import Durability, HashResult, Limits, Retention, StoreStats
from mvccstore.past import Blame, Change, RevertResult
from mvccstore.replicator import Replicator
from mvccstore.store import Store
from mvccstore.transfer import Progress
from mvccstore.txn import Txn
from mvccstore.types import (
    Compare,
    DeleteRequest,
    DeleteResult,
    KeyRange,
    Keys,
    LeaseGrantRequest,
    PutRequest,
    PutResult,
    Request,
    Result,
    TxnRequest,
    TxnResult,
    WriteRequest,
    check_lease_id,
    lease_id_of,
)
from mvccstore.view import Snapshot
from mvccstore.watch import WatchFilter

T = TypeVar("T")
_ALL = KeyRange.all()


class AsyncStore(AsyncRecipes, AsyncSubscribing):
    """An open store, for the tasks of one event loop. Get one from `mvccstore.aio.open`.

    For `async with`. What is not said here of a method is as in `Store`: what it observes, makes durable, raises
    and costs. Every method raises `ClosedError` once it is closed, and `RuntimeError` on another event loop.

    Reads run at once. Writes of all tasks go to one thread, where those that wait share a commit. A task that is
    cancelled while it waits for a write leaves nothing half done, but the write may happen, or have happened.
    """

    def __init__(self, store: Store, writer: Worker, courier: Courier) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._courier = courier
        self._writer = writer
        self._helper = Worker(self._loop, courier, "mvccstore-helper")
        self._closing: asyncio.Future[None] | None = None
        writer.serve(store.submit_many)

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            msg = "this store was opened on another event loop; open it on this one, or use it there"
            raise RuntimeError(msg)

    def _view(self) -> Store:
        self._check_loop()
        if self._closing is not None:
            raise ClosedError
        return self._store

    def _writable(self) -> Store:
        store = self._view()
        store._check_writable()
        return store

    async def _submit(self, request: WriteRequest) -> Result:
        store = self._writable()
        if store._replicator is not None:
            # It takes one at a time, and may raise anything.
            return await self._writer.call(partial(store.submit, request))
        return await self._writer.write(request)

    # Facts

    @property
    def path(self) -> str:
        """As `Store.path`."""
        return self._store.path

    @property
    def revision(self) -> int:
        """As `Store.revision`."""
        return self._view().revision

    @property
    def compact_revision(self) -> int:
        """As `Store.compact_revision`."""
        return self._view().compact_revision

    @property
    def limits(self) -> Limits:
        """As `Store.limits`."""
        return self._store.limits

    async def stats(self) -> StoreStats:
        """As `Store.stats`."""
        return self._view().stats()

    # Reading; and what `AsyncView` has

    def snapshot(self, *, revision: int = 0) -> AsyncSnapshot:
        """As `Store.snapshot`, for `async with`; not awaited itself."""
        return AsyncSnapshot(self._view().snapshot(revision=revision), self._check_loop)

    def log(
        self,
        key: Keys,
        *,
        start_revision: int = 0,
        end_revision: int = 0,
        limit: int = 0,
        newest_first: bool = True,
    ) -> AsyncScan[Change]:
        """As `Store.log`, for `async for`; not awaited itself."""
        return AsyncScan(
            self._view().log(
                key,
                start_revision=start_revision,
                end_revision=end_revision,
                limit=limit,
                newest_first=newest_first,
            )
        )

    def diff(self, revision_from: int, revision_to: int = 0, keys: Keys = _ALL) -> AsyncScan[Difference]:
        """As `Store.diff`, for `async for`; not awaited itself."""
        return AsyncScan(self._view().diff(revision_from, revision_to, keys))

    def blame(self, keys: Keys, *, revision: int = 0) -> AsyncScan[Blame]:
        """As `Store.blame`, for `async for`; not awaited itself."""
        return AsyncScan(self._view().blame(keys, revision=revision))

    async def at(self, time: datetime | float) -> int:
        """As `Store.at`."""
        return self._view().at(time)

    async def bisect(self, predicate: Callable[[Snapshot], bool], *, low: int = 0, high: int = 0) -> int | None:
        """As `Store.bisect`; `predicate` is a plain function, and is called on another thread."""
        return await self._helper.call(partial(self._view().bisect, predicate, low=low, high=high))

    # Writing

    @overload
    async def put(
        self,
        key: bytes,
        value: bytes = ...,
        *,
        lease: SupportsIndex = ...,
        prev_kv: Literal[False] = ...,
        ignore_value: bool = ...,
        ignore_lease: bool = ...,
    ) -> int: ...
    @overload
    async def put(
        self,
        key: bytes,
        value: bytes = ...,
        *,
        lease: SupportsIndex = ...,
        prev_kv: Literal[True],
        ignore_value: bool = ...,
        ignore_lease: bool = ...,
    ) -> PutResult: ...
    async def put(
        self,
        key: bytes,
        value: bytes = b"",
        *,
        lease: SupportsIndex = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
    ) -> int | PutResult:
        """As `Store.put`. Cost: its share of a commit with what other tasks write meanwhile."""
        request = PutRequest(key, value, lease_id_of(lease), prev_kv, ignore_value, ignore_lease)
        check_put(request, self._store.limits)
        result = await self._submit(request)
        assert isinstance(result, PutResult)
        return result if prev_kv else result.revision

    @overload
    async def delete(self, keys: Keys, *, prev_kv: Literal[False] = ...) -> int: ...
    @overload
    async def delete(self, keys: Keys, *, prev_kv: Literal[True]) -> DeleteResult: ...
    async def delete(self, keys: Keys, *, prev_kv: bool = False) -> int | DeleteResult:
        """As `Store.delete`. Cost: its share of a commit."""
        request = DeleteRequest(keys, prev_kv)
        check_keys_size(keys, self._store.limits)
        result = await self._submit(request)
        assert isinstance(result, DeleteResult)
        return result if prev_kv else result.deleted

    async def txn(
        self,
        *,
        compare: Sequence[Compare] = (),
        success: Sequence[Request] = (),
        failure: Sequence[Request] = (),
    ) -> TxnResult:
        """As `Store.txn`. Cost: its share of a commit."""
        request = TxnRequest(tuple(compare), tuple(success), tuple(failure))
        check_txn(request, self._store.limits)
        result = await self._submit(request)
        assert isinstance(result, TxnResult)
        return result

    async def submit(self, request: WriteRequest) -> Result:
        """As `Store.submit`. Cost: its share of a commit."""
        return await self._submit(request)

    async def submit_many(self, requests: Sequence[WriteRequest]) -> list[Result | StoreError]:
        """As `Store.submit_many`. Cost: its share of a commit."""
        store = self._writable()
        if store._replicator is not None:
            return await self._writer.call(partial(store.submit_many, list(requests)))
        answers = await asyncio.gather(*map(self._writer.write, requests), return_exceptions=True)
        return [_result_or_refusal(answer) for answer in answers]

    async def transact(self, fn: Callable[[Txn], T]) -> T:
        """Call `fn` with a transaction block (`Store.begin`), and return what it returns when that is committed.

        It runs on the writer thread, so that no await can hold the store's exclusive turn: other writers wait
        until it ends, readers and the loop do not. All it writes commits as one revision; if it raises, nothing
        happened. If the task is cancelled before it begins, it does not.

        Args:
            fn: A plain function. Its context variables are the caller's.

        Raises:
            TypeError: `fn` returns an awaitable; nothing happened.

        And whatever `fn` raises, and `Txn.commit`.

        Cost: one commit.
        """
        return await self._writer.call(partial(_transact, self._writable(), fn))

    async def revert(self, keys: Keys, *, to: int) -> RevertResult:
        """As `Store.revert`."""
        return await self._writer.call(partial(self._writable().revert, keys, to=to))

    # Watching, and leases

    def watch(
        self,
        keys: Keys,
        *,
        start_revision: int = 0,
        prev_kv: bool = False,
        filters: Collection[WatchFilter] = (),
        progress: float | None = None,
    ) -> AsyncWatcher:
        """As `Store.watch`, for `async for`; not awaited itself. It watches from this call on."""
        store = self._view()
        watcher = store.watch(keys, start_revision=start_revision, prev_kv=prev_kv, filters=filters, progress=progress)
        return AsyncWatcher(watcher, store._hub, self._courier, self._check_loop)

    async def grant(self, ttl: float, *, lease_id: int = 0, keep_alive: bool = False) -> AsyncLease:
        """As `Store.grant`. Cost: its share of a commit.

        A task that is cancelled here may leave a lease that nobody knows; it ends after `ttl`.
        """
        store = self._writable()
        check_lease_id(lease_id)
        leases = store._leases
        number = lease_id or leases.new_id()
        granted_ms = ttl_ms(ttl)
        while True:
            try:
                await self._submit(LeaseGrantRequest(number, granted_ms))
                break
            except LeaseExistsError:
                if lease_id:
                    raise
                number = leases.new_id()
        lease = Lease(leases, number, store._lease_keys)
        if keep_alive:
            leases.keep(lease)
        return self._lease(lease)

    async def new_lease_id(self) -> int:
        """As `Store.new_lease_id`."""
        return self._writable().new_lease_id()

    async def lease(self, lease_id: SupportsIndex) -> AsyncLease:
        """As `Store.lease`."""
        return self._lease(self._view().lease(lease_id))

    async def leases(self) -> list[AsyncLease]:
        """As `Store.leases`."""
        return [self._lease(lease) for lease in self._view().leases()]

    def _lease(self, lease: Lease) -> AsyncLease:
        return AsyncLease(lease, self._submit, self._check_loop)

    # Attributes

    async def attribute(self, name: str) -> bytes | None:
        """As `Store.attribute`."""
        return self._view().attribute(name)

    async def attributes(self, prefix: str = "") -> Attributes:
        """As `Store.attributes`."""
        return self._view().attributes(prefix)

    async def set_attributes(self, changes: Mapping[str, bytes | None], *, base: int | None = None) -> int:
        """As `Store.set_attributes`. Cost: its share of a commit."""
        result = await self._submit(attributes_request(changes, base))
        assert isinstance(result, AttributesResult)
        return result.version

    # Upkeep

    async def compact(
        self,
        revision: int | None = None,
        *,
        keep_revisions: int | None = None,
        keep_seconds: float | None = None,
        physical: bool = False,
        force: bool = False,
    ) -> None:
        """As `Store.compact`."""
        compact = partial(
            self._view().compact,
            revision,
            keep_revisions=keep_revisions,
            keep_seconds=keep_seconds,
            physical=physical,
            force=force,
        )
        # Reclaiming lets writers in between, so it must not have their thread.
        await (self._helper if physical else self._writer).call(compact)

    async def enforce(self, retention: Retention) -> None:
        """As `Store.enforce`."""
        await self._helper.call(partial(self._view().enforce, retention))

    async def reclaim(self) -> None:
        """As `Store.reclaim`."""
        await self._helper.call(self._view().reclaim)

    async def sync(self) -> None:
        """As `Store.sync`."""
        await self._writer.call(self._view().sync)

    async def defragment(self) -> None:
        """As `Store.defragment`. If cancelled after it has begun, it goes on."""
        await self._helper.call(self._view().defragment)

    async def backup(
        self,
        path: str | os.PathLike[str],
        *,
        engine: str | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """As `Store.backup`; `progress` is called on another thread. If cancelled after it has begun, it goes on."""
        backup = self._view().backup
        await self._helper.call(partial(backup, path, engine=engine, overwrite=overwrite, progress=progress))

    async def check(self, *, structure: bool = True, progress: Progress | None = None) -> list[str]:
        """As `Store.check`; `progress` is called on another thread."""
        return await self._helper.call(partial(self._view().check, structure=structure, progress=progress))

    async def hash_kv(self, *, revision: int = 0) -> HashResult:
        """As `Store.hash_kv`."""
        return await self._helper.call(partial(self._view().hash_kv, revision=revision))

    # Closing

    async def aclose(self) -> None:
        """Do what was asked for before, then close the store: sync, release the file. Closing twice is harmless.

        Watchers raise `ClosedError` at once, also those that are waited for. If the task is cancelled here, the
        store is closed all the same.
        """
        self._check_loop()
        if self._closing is None:
            self._closing = self._writer.call(partial(_close, self._store, self._helper))
            self._helper.stop()
            self._writer.stop()
            self._store._hub.close()
        await asyncio.shield(self._closing)
        self._writer.join()  # which is at its last instruction

    async def __aenter__(self) -> Self:
        self._view()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_helper", None) is not None and self._closing is None:
            # The threads end. The store, if nobody else has it, is closed with it, and says that it was forgotten.
            self._helper.abandon()
            self._writer.abandon()

    def __repr__(self) -> str:
        return f"<Async{repr(self._store)[1:]}"


def _result_or_refusal(answer: Result | BaseException) -> Result | StoreError:
    if isinstance(answer, BaseException) and not isinstance(answer, StoreError):
        raise answer
    return answer


def _transact(store: Store, fn: Callable[[Txn], T]) -> T:
    with store.begin() as txn:
        result = fn(txn)
        if isawaitable(result):
            if iscoroutine(result):
                result.close()
            msg = "transact takes a plain function; an await in it would hold up all other writers"
            raise TypeError(msg)
        return result


def _close(store: Store, helper: Worker) -> None:
    helper.join()
    store.close()


class Opening:
    """A store that is to be opened: by `await`, or by `async with`, which closes it at the end."""

    __slots__ = ("_open", "_store")

    def __init__(self, open_it: Callable[[], Store]) -> None:
        self._open = open_it
        self._store: AsyncStore | None = None

    def __await__(self) -> Generator[object, None, AsyncStore]:
        return self._opened().__await__()

    async def _opened(self) -> AsyncStore:
        loop = asyncio.get_running_loop()
        courier = Courier(loop)
        writer = Worker(loop, courier, "mvccstore-writer")
        opened: list[Store] = []

        def open_it() -> None:
            opened.append(self._open())

        def close_it() -> None:
            for store in opened:
                store.close()

        try:
            await writer.call(open_it)
            return AsyncStore(opened[0], writer, courier)
        except BaseException:
            # Cancelled, perhaps while it was being opened: nobody else would close it.
            writer.call(close_it)
            writer.stop()
            raise

    async def __aenter__(self) -> AsyncStore:
        self._store = await self._opened()
        return self._store

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._store is not None
        await self._store.aclose()


def open(
    path: str | os.PathLike[str] | None = None,
    *,
    engine: str | Engine | None = None,
    read_only: bool = False,
    create: bool = True,
    durability: Durability | Literal["fsync", "interval", "os"] = Durability.FSYNC,
    sync_interval: float = 1.0,
    limits: Limits | None = None,
    quota_bytes: int = 0,
    retention: Retention | None = None,
    journal: bool = False,
    clock: Clock | None = None,
    replicator: Callable[[Store], Replicator] | None = None,
) -> Opening:
    """Open a store as `mvccstore.open` does, for the running event loop: `await` this, or use it in `async with`.

    Cost: two threads at most, the first one of them at once; the second by what takes long.

    >>> import asyncio
    >>> async def main():
    ...     async with open() as store:
    ...         watcher = store.watch(b"k")
    ...         await asyncio.gather(*(store.put(b"k", b"%d" % number) for number in range(3)))
    ...         await store.transact(lambda txn: txn.put(b"k", txn.get(b"k").value + b"!"))
    ...         print((await store.get(b"k")).value, (await anext(watcher)).kv.value)
    >>> asyncio.run(main())
    b'2!' b'0'
    """
    return Opening(
        partial(
            open_store,
            path,
            engine=engine,
            read_only=read_only,
            create=create,
            durability=durability,
            sync_interval=sync_interval,
            limits=limits,
            quota_bytes=quota_bytes,
            retention=retention,
            journal=journal,
            clock=clock,
            replicator=replicator,
        )
    )
