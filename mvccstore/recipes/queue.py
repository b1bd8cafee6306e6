"""A queue of which each item is handled at least once.

Layout, under the queue's key:

    items/NUMBER      the value; numbers ascend in the order of revisions
    claims/NUMBER     while a consumer has the item; attached to the consumer's lease

Invariants:

* I1. An item is committed with a number above those of all items that are there. So the order of keys, in which
  consumers look, is the order of revisions.
* I2. An item is claimed only while it has no claim, and removed only together with the claim of who removes it.
* I3. A claim ends with its consumer's lease; then the item can be claimed again, at its old place.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import Self

from mvccstore.errors import LeaseNotFoundError, StoreError
from mvccstore.recipes.host import Blocking, Deadline, Host, HostLease, RecipeView, changed, key_of, run
from mvccstore.types import Compare, KeyRange, KeyValue, Op

_DIGITS = 20


class ItemSteps:
    """What the two faces of an item have in common."""

    def __init__(self, host: Host, item: KeyValue, claim_key: bytes, claimed: int, lease: HostLease) -> None:
        self._host = host
        self._item = item
        self._claim_key = claim_key
        self._claimed = claimed
        self._lease = lease
        self._is_settled = False

    @property
    def value(self) -> bytes:
        """What was put."""
        return self._item.value

    @property
    def revision(self) -> int:
        """The revision that put it."""
        return self._item.create_revision

    def fence(self) -> Compare:
        """Return the compare that holds as long as the item is this consumer's: one for a txn."""
        return Compare.create_revision(self._claim_key, "==", self._claimed)

    async def _ack(self) -> None:
        await self._settle(self._item.key, self._claim_key)

    async def _nack(self) -> None:
        await self._settle(self._claim_key)

    async def _settle(self, *keys: bytes) -> None:
        if self._is_settled:
            return
        result = await self._host.txn(compare=[self.fence()], success=[Op.delete(key) for key in keys])
        self._is_settled = True
        if not result.succeeded:
            raise LeaseNotFoundError(self._lease.__index__())

    async def _end(self, error: BaseException | None) -> None:
        if error is None:
            await self._ack()
        else:
            with suppress(LeaseNotFoundError):  # it has gone back by itself
                await self._nack()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.value!r} put at {self.revision}>"


class QueueSteps:
    """What the two faces of a queue have in common."""

    def __init__(self, host: Host, name: str | bytes, ttl: float) -> None:
        self._host = host
        self._ttl = ttl
        root = key_of("queue", name) + b"/"
        self._all = KeyRange.prefix(root)
        self._items = KeyRange.prefix(root + b"items/")
        self._claims = KeyRange.prefix(root + b"claims/")
        self._lease: HostLease | None = None
        self._tokens = count()

    async def _put(self, value: bytes) -> int:
        revision = self._host.revision
        while True:
            key = b"%s%0*d" % (self._items.start, _DIGITS, revision)
            none_after = Compare.version(KeyRange(key, self._items.end), "==", 0)  # I1
            result = await self._host.txn(compare=[none_after], success=[Op.put(key, value)])
            if result.succeeded:
                return result.revision
            revision = result.revision

    async def _size(self) -> int:
        return (await self._host.range(self._items, count_only=True)).count

    async def _claim(self, deadline: Deadline) -> tuple[KeyValue, bytes, int, HostLease] | None:
        """Claim the first free item, waiting for one; return what an item is made of."""
        while True:
            claims = await self._host.range(self._claims, keys_only=True)
            taken = {kv.key[-_DIGITS:] for kv in claims}
            first = await self._host.first(self._items, len(taken) + 1)
            item = next((kv for kv in first if kv.key[-_DIGITS:] not in taken), None)
            if item is None:
                if not await changed(self._host, self._all, claims.revision, deadline):
                    return None
                continue
            lease = self._lease = self._lease or await self._host.grant(self._ttl)
            key = self._claims.start + item.key[-_DIGITS:]
            try:
                claimed = await self._try(item, key, lease)
            except LeaseNotFoundError:
                self._lease = None
                continue
            if claimed:
                return item, key, claimed, lease

    async def _try(self, item: KeyValue, key: bytes, lease: HostLease) -> int:
        """Claim an item; return the revision that did it, 0 if somebody else was quicker."""
        there = Compare.create_revision(item.key, "==", item.create_revision)
        free = Compare.version(key, "==", 0)
        token = b"%d" % next(self._tokens)
        try:
            result = await self._host.txn(compare=[there, free], success=[Op.put(key, token, lease=lease)])
        except LeaseNotFoundError:
            raise
        except BaseException:
            # Interrupted or cancelled, perhaps when it was done: nobody would settle it.
            ours = [Compare.value(key, "==", token), Compare.lease(key, "==", lease)]
            with suppress(StoreError):
                await self._host.txn(compare=ours, success=[Op.delete(key)])
            raise
        return result.revision if result.succeeded else 0

    async def _close(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            with suppress(LeaseNotFoundError):
                await self._host.revoke(lease)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._all.start!r}>"


class Item(ItemSteps):
    """An item that is this consumer's to handle. Get one from `Queue.get`.

    A context manager: acknowledged at the end of the block, given back if the block raises.
    """

    def ack(self) -> None:
        """Remove the item from the queue: it is done. Harmless if it was acknowledged or given back.

        Raises:
            LeaseNotFoundError: The consumer's lease has ended before, so another may have been given the item.

        Cost: one commit.
        """
        run(self._ack())

    def nack(self) -> None:
        """Give the item back: it is the next one to be handed out. Raises and costs what `ack` does."""
        run(self._nack())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, *_: object) -> None:
        run(self._end(exc))


class Queue(QueueSteps):
    """A queue that is known by its name. Get one from `Store.queue`. Each handle is a producer and a consumer.

    First in, first out, in the order of revisions. An item that was got is hidden from the others until it is
    acknowledged; it comes back when it is given back or when the consumer's lease ends, so it may be handled more
    than once. The lease is kept alive as long as this object or one of its items, and the open store live.
    """

    def __init__(self, store: RecipeView, name: str | bytes, ttl: float) -> None:
        super().__init__(Blocking(store), name, ttl)

    def put(self, value: bytes) -> int:
        """Add an item at the end; return the revision.

        Cost: one commit; another round for each who puts at the same time and is quicker.
        """
        return run(self._put(value))

    def get(self, timeout: float | None = None) -> Item | None:
        """Take the first item that nobody has, waiting for one; None after the timeout.

        Args:
            timeout: Seconds to wait at most, 0 not to wait; None waits as long as it takes.

        Raises:
            TxnError: This thread is in a transaction block.

        Cost: one commit, the first time two; a lookup for each item that somebody has.
        """
        claimed = run(self._claim(Deadline(timeout)))
        return None if claimed is None else Item(self._host, *claimed)

    def qsize(self) -> int:
        """Return how many items are not acknowledged, those that somebody has included. An index step each."""
        return run(self._size())

    def close(self) -> None:
        """Give back all items that this handle has. It can go on being used. One commit."""
        run(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncItem(ItemSteps):
    """`Item`, awaited. Get one from `AsyncQueue.get`. An async context manager."""

    async def ack(self) -> None:
        """As `Item.ack`."""
        await self._ack()

    async def nack(self) -> None:
        """As `Item.nack`."""
        await self._nack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, *_: object) -> None:
        await self._end(exc)


class AsyncQueue(QueueSteps):
    """`Queue`, awaited. Get one from `AsyncStore.queue`. An async context manager."""

    async def put(self, value: bytes) -> int:
        """As `Queue.put`."""
        return await self._put(value)

    async def get(self, timeout: float | None = None) -> AsyncItem | None:  # noqa: ASYNC109 - as Queue.get has it
        """As `Queue.get`. Cancelled as it claims an item, it gives that back."""
        claimed = await self._claim(Deadline(timeout))
        return None if claimed is None else AsyncItem(self._host, *claimed)

    async def qsize(self) -> int:
        """As `Queue.qsize`."""
        return await self._size()

    async def close(self) -> None:
        """As `Queue.close`."""
        await self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
