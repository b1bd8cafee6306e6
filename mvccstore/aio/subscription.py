"""Durable subscriptions for tasks: deliveries are taken on the loop, acknowledgements share commits with other writes.

Invariants:

* I1. A delivery is taken after the last await of the call that returns it, and an acknowledgement is noted before
  the first of the call that makes it. So a task that is cancelled has lost neither.
* I2. While no task waits, the hub does not know of the subscription's watcher as a waiting one.
* I3. What writes and then changes the subscription to match (`seek`, `skip`, `delete`, opening it) does so in one
  job of the writer: all of it, or nothing.

A subscription is opened on the writer's thread, by a task that may not live to see it: then the next job there
closes it, before any other can ask for the same name.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar

from mvccstore.aio.live import BATCHES_A_TURN, woken
from mvccstore.aio.worker import Courier, Worker
from mvccstore.errors import ClosedError, SubscriptionNotFoundError
from mvccstore.store import Store
from mvccstore.subscribing import SubscriptionInfo
from mvccstore.subscription import Subscription
from mvccstore.types import Event, Keys, Result, WriteRequest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AsyncDelivery:
    """As `Delivery`, acknowledged with `await`."""

    revision: int
    events: tuple[Event, ...]
    """In the order in which they were made."""
    subscription: AsyncSubscription

    async def ack(self, *, durable: bool = True) -> None:
        """As `Delivery.ack`."""
        await self.subscription.ack_one(self.revision, durable=durable)


class AsyncSubscription:
    """A cursor that is kept in the store: as `Subscription`, for `async for`. Get one from `AsyncStore.subscription`.

    Several tasks may share it, and each delivery goes to one of them. One that is cancelled while it waits has
    taken nothing; what it acknowledges is acknowledged also if it does not wait until that is stored. For
    `async with`, which closes it; the subscription itself remains.
    """

    def __init__(self, subscription: Subscription, host: AsyncSubscribing) -> None:
        self._subscription = subscription
        self._host = host
        self._in_a_row = 0

    @property
    def name(self) -> str:
        """As `Subscription.name`."""
        return self._subscription.name

    @property
    def keys(self) -> Keys:
        """As `Subscription.keys`."""
        return self._subscription.keys

    @property
    def revision(self) -> int:
        """As `Subscription.revision`."""
        return self._subscription.revision

    @property
    def lag(self) -> int:
        """As `Subscription.lag`."""
        return self._subscription.lag

    @property
    def is_closed(self) -> bool:
        """As `Subscription.is_closed`."""
        return self._subscription.is_closed

    # Taking

    async def next_batch(self, timeout: float | None = None) -> AsyncDelivery | None:  # noqa: ASYNC109 - as `Subscription` has it
        """As `Subscription.next_batch`. Cancelled, it has taken nothing."""
        if timeout is not None and not timeout >= 0:
            msg = f"timeout is {timeout!r}, not a number of seconds from 0 up"
            raise ValueError(msg)
        self._host._check_loop()
        subscription = self._subscription
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        self._in_a_row += 1
        if self._in_a_row > BATCHES_A_TURN:
            self._in_a_row = 0
            await asyncio.sleep(0)
        while True:
            if not subscription.catch_up():
                await asyncio.sleep(0)
                continue
            delivery = subscription.poll()
            if delivery is not None:
                return AsyncDelivery(delivery.revision, delivery.events, self)
            left = None
            if deadline is not None:
                left = deadline - loop.time()
                if left <= 0:
                    return None
            self._in_a_row = 0
            await woken(self._host._courier, left, subscription.listen, subscription.unlisten)

    def __aiter__(self) -> AsyncIterator[AsyncDelivery]:
        return self

    async def __anext__(self) -> AsyncDelivery:
        try:
            delivery = await self.next_batch()
        except ClosedError:
            if not self.is_closed:
                raise
            raise StopAsyncIteration from None
        assert delivery is not None
        return delivery

    # Acknowledging

    async def ack(self, revision: int, *, durable: bool = True) -> None:
        """As `Subscription.ack`. Cost: its share of a commit."""
        self._host._check_loop()
        if self._subscription.note_ack(revision, durable=durable):
            await self.save()

    async def ack_one(self, revision: int, *, durable: bool = True) -> None:
        """As `Subscription.ack_one`. Cost: its share of a commit."""
        self._host._check_loop()
        if self._subscription.note_ack_one(revision, durable=durable):
            await self.save()

    async def save(self) -> None:
        """As `Subscription.save`. Cost: its share of a commit, or nothing."""
        self._host._check_loop()
        request = self._subscription.unsaved()
        if request is not None:
            await self._host._submit(request)
            self._subscription.saved(request)

    # Moving

    async def rewind(self) -> None:
        """As `Subscription.rewind`."""
        self._host._check_loop()
        self._subscription.rewind()

    async def seek(self, start_revision: int) -> None:
        """As `Subscription.seek`. If the task is cancelled, it has happened, or has not."""
        await self._call(partial(self._subscription.seek, start_revision))

    async def skip(self) -> int:
        """As `Subscription.skip`. If the task is cancelled, it has happened, or has not."""
        return await self._call(self._subscription.skip)

    # Ending

    async def delete(self) -> None:
        """As `Subscription.delete`. If the task is cancelled, it has happened, or has not."""
        await self._call(self._subscription.delete)

    async def _call(self, step: Callable[[], T]) -> T:
        self._host._writable()
        return await self._host._writer.call(step)  # I3

    async def aclose(self) -> None:
        """Store how far it is, and stop taking, as `Subscription.close`; a task that waits in it is woken.

        If the task is cancelled here, it is closed all the same.
        """
        self._host._check_loop()
        try:
            if not self.is_closed:
                with suppress(ClosedError, SubscriptionNotFoundError):
                    await self.save()
        finally:
            self._subscription.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Async{repr(self._subscription)[1:]}"


class AsyncSubscribing(ABC):
    """The part of `AsyncStore` that has subscriptions."""

    __slots__ = ()

    _writer: Worker
    _courier: Courier

    @abstractmethod
    def _check_loop(self) -> None:
        """Raise on another event loop."""

    @abstractmethod
    def _view(self) -> Store:
        """Return what to ask; raise if this loop may not, or if it is closed."""

    @abstractmethod
    def _writable(self) -> Store:
        """Return what to write to; raise if this loop may not, or if it is closed or read-only."""

    @abstractmethod
    async def _submit(self, request: WriteRequest) -> Result:
        """Have a write carried out."""

    async def subscription(
        self,
        name: str,
        keys: Keys | None = None,
        *,
        start_revision: int = 0,
        hold_revisions: int | None = None,
        hold_seconds: float | None = None,
        latest_only: bool = False,
    ) -> AsyncSubscription:
        """As `Store.subscription`.

        A task that is cancelled here may have created the subscription; it has not left it open.

        >>> import asyncio
        >>> from mvccstore import KeyRange, aio
        >>> async def main():
        ...     async with aio.open() as store, await store.subscription("mailer", KeyRange.prefix(b"orders/")) as mailer:
        ...         await store.put(b"orders/1", b"2 apples")
        ...         async for delivery in mailer:
        ...             await delivery.ack()
        ...             return [event.kv.value for event in delivery.events], mailer.lag
        >>> asyncio.run(main())
        ([b'2 apples'], 0)
        """
        opened: list[Subscription] = []
        subscribe = partial(
            self._writable().subscription,
            name,
            keys,
            start_revision=start_revision,
            hold_revisions=hold_revisions,
            hold_seconds=hold_seconds,
            latest_only=latest_only,
        )

        def open_it() -> None:
            opened.append(subscribe())

        def close_it() -> None:
            for subscription in opened:
                subscription.end()

        try:
            await self._writer.call(open_it)
        except asyncio.CancelledError:
            # Perhaps while it was being opened: nobody else would close it before it is collected.
            self._writer.call(close_it)
            raise
        return AsyncSubscription(opened[0], self)

    async def subscriptions(self) -> list[SubscriptionInfo]:
        """As `Store.subscriptions`."""
        return self._view().subscriptions()
