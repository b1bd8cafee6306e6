"""The store as a live thing, for tasks: watching it, and leases.

An `AsyncWatcher` takes from a `Watcher` of its own without waiting, and where there is nothing has itself woken
by the hub, through the courier: the wake-ups of a thousand watchers by one commit cost the loop one.

Invariants:

* I1. Nothing is taken from the watcher before the last await of the call that returns it. So a task that is
  cancelled has lost nothing.
* I2. While no task waits, the hub does not know of the watcher as a waiting one, and does not keep it alive.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Protocol, Self

from mvccstore.aio.worker import Courier
from mvccstore.errors import ClosedError, LeaseNotFoundError
from mvccstore.hub import Hub, WatchBatch
from mvccstore.lease import Lease
from mvccstore.types import DeleteResult, Event, LeaseRevokeRequest, Result, WriteRequest
from mvccstore.watch import Watcher

BATCHES_A_TURN = 100
"""How many batches in a row are given without letting the loop do something else."""
WAIT_SECONDS_MAX = 86_400
"""A timer's; not every loop can count to infinity."""


class Submit(Protocol):
    """How a lease has itself revoked."""

    async def __call__(self, request: WriteRequest) -> Result:
        """Have a write carried out."""
        ...


async def woken(
    courier: Courier,
    seconds: float | None,
    listen: Callable[[Callable[[], None]], bool],
    unlisten: Callable[[Callable[[], None]], None],
) -> None:
    """Return when a watcher or subscription may have something to take, or after some time."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    # The hub must keep nobody alive for this, only what it has to wake.
    def wake() -> None:
        courier.post((future, None, None))

    if not listen(wake):
        return
    timer = None if seconds is None else loop.call_later(min(seconds, WAIT_SECONDS_MAX), wake)
    try:
        await future
    finally:
        if timer is not None:
            timer.cancel()
        unlisten(wake)  # I2


class AsyncWatcher:
    """The changes of a key or range, as they are committed: as `Watcher`, for `async for`. Get one from `AsyncStore.watch`.

    One task at a time takes from it. A task that is cancelled while it waits loses nothing: the next one goes
    on with the same batch. Also for `async with`; also closed when collected.
    """

    def __init__(self, watcher: Watcher, hub: Hub, courier: Courier, check_loop: Callable[[], None]) -> None:
        self._watcher = watcher
        self._hub = hub
        self._courier = courier
        self._check_loop = check_loop
        self._is_taken_from = False
        self._in_a_row = 0
        self._events: deque[Event] = deque()  # of the batch that is iterated over
        self._before = 0  # the revision before that batch

    @property
    def revision(self) -> int:
        """As `Watcher.revision`: watching goes on from `revision + 1`."""
        return self._before if self._events else self._watcher.revision

    @property
    def is_closed(self) -> bool:
        """As `Watcher.is_closed`."""
        return self._watcher.is_closed

    async def next_batch(self, timeout: float | None = None) -> WatchBatch | None:  # noqa: ASYNC109 - as `Watcher` has it
        """As `Watcher.next_batch`. Cancelled, it has taken nothing.

        Raises:
            RuntimeError: Another task waits for this watcher; or it belongs to another event loop.
        """
        if timeout is not None and not timeout >= 0:
            msg = f"timeout is {timeout!r}, not a number of seconds from 0 up"
            raise ValueError(msg)
        self._check_loop()
        if self._is_taken_from:
            msg = "another task waits for this watcher"
            raise RuntimeError(msg)
        self._is_taken_from = True
        try:
            return await self._next_batch(timeout)
        finally:
            self._is_taken_from = False

    async def _next_batch(self, seconds: float | None) -> WatchBatch | None:
        if self._events:
            events = tuple(self._events)
            self._events.clear()
            return WatchBatch(self._watcher.revision, events)
        watcher = self._watcher
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        self._in_a_row += 1
        if self._in_a_row > BATCHES_A_TURN:
            self._in_a_row = 0
            await asyncio.sleep(0)
        while True:
            if not watcher.catch_up():
                await asyncio.sleep(0)
                continue
            batch = watcher.poll()
            if batch is not None:
                return batch
            wait = watcher.look_again_in()
            if deadline is not None:
                left = deadline - loop.time()
                if left <= 0:
                    return None
                wait = left if wait is None else min(left, wait)
            self._in_a_row = 0
            await woken(self._courier, wait, watcher.listen, lambda _: watcher.unlisten())

    def batches(self) -> AsyncIterator[WatchBatch]:
        """As `Watcher.batches`, for `async for`."""
        return _Batches(self)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            before = self._watcher.revision
            batch = await self._next_or_stop()
            self._before = max(before, batch.revision - 1)
            self._events.extend(batch.events)
        return self._events.popleft()

    async def _next_or_stop(self) -> WatchBatch:
        try:
            batch = await self.next_batch()
        except ClosedError:
            if self._hub.is_closed:
                raise
            raise StopAsyncIteration from None
        assert batch is not None
        return batch

    def close(self) -> None:
        """As `Watcher.close`: a task that waits in it is woken. From any thread."""
        self._watcher.close()

    async def aclose(self) -> None:
        """As `close`, for those who close with `await`."""
        self._watcher.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._watcher.close()

    def __repr__(self) -> str:
        return f"<Async{repr(self._watcher)[1:]}"


class _Batches:
    """The batches of a watcher. No generator: one that is not exhausted would be closed by the loop, some day."""

    __slots__ = ("_watcher",)

    def __init__(self, watcher: AsyncWatcher) -> None:
        self._watcher = watcher

    def __aiter__(self) -> AsyncIterator[WatchBatch]:
        return self

    async def __anext__(self) -> WatchBatch:
        return await self._watcher._next_or_stop()


class AsyncLease:
    """A lease, which `put` takes as `lease=`: as `Lease`, awaited. Get one from `AsyncStore.grant` or `AsyncStore.lease`.

    With `async with` it is revoked at the end.
    """

    __slots__ = ("_check_loop", "_lease", "_submit")

    def __init__(self, lease: Lease, submit: Submit, check_loop: Callable[[], None]) -> None:
        self._lease = lease
        self._submit = submit
        self._check_loop = check_loop

    @property
    def id(self) -> int:
        """A signed 64-bit number."""
        return self._lease.id

    @property
    def ttl(self) -> float:
        """As `Lease.ttl`."""
        return self._lease.ttl

    @property
    def is_alive(self) -> bool:
        """As `Lease.is_alive`."""
        return self._lease.is_alive

    async def remaining(self) -> float:
        """As `Lease.remaining`."""
        self._check_loop()
        return self._lease.remaining()

    async def keep_alive(self) -> float:
        """As `Lease.keep_alive`."""
        self._check_loop()
        return self._lease.keep_alive()

    async def keys(self) -> list[bytes]:
        """As `Lease.keys`."""
        self._check_loop()
        return self._lease.keys()

    async def revoke(self) -> int:
        """As `Lease.revoke`. It is revoked also if the task is cancelled meanwhile."""
        result = await self._submit(LeaseRevokeRequest(self.id))
        assert isinstance(result, DeleteResult)
        return result.deleted

    def __index__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncLease) and other._lease == self._lease

    def __hash__(self) -> int:
        return hash(self._lease)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with suppress(LeaseNotFoundError):
            await self.revoke()

    def __repr__(self) -> str:
        return f"<Async{repr(self._lease)[1:]}"
