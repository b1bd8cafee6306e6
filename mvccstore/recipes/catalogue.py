"""The recipes as methods of a store."""

from __future__ import annotations

from typing import TypeVar, overload

from mvccstore.recipes.barrier import Barrier
from mvccstore.recipes.codecs import Codec, JsonCodec
from mvccstore.recipes.counter import Counter
from mvccstore.recipes.election import Election
from mvccstore.recipes.host import RecipeView
from mvccstore.recipes.lock import Lock
from mvccstore.recipes.mapping import StoreMapping
from mvccstore.recipes.mirror import Mirror
from mvccstore.recipes.queue import Queue

T = TypeVar("T")


class Recipes(RecipeView):
    """What is built of puts, txns, leases and watches; a part of `Store`.

    All but `mirror` and `mapping` go by a name, text or bytes. Whoever uses the same name of the same kind on the
    same store has the same one, from any thread; it is kept under `_mvccstore/KIND/NAME`.
    """

    __slots__ = ()

    def lock(self, name: str | bytes, *, ttl: float = 10) -> Lock:
        """Return a handle to a lock; use it in `with`, or `acquire` and `release` it.

        Args:
            name: Its name, not empty.
            ttl: Seconds after which it is free if who holds it is gone: its process, or the `Lock` itself.

        Cost: nothing is written before it is acquired.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> with store.lock("deploy", ttl=10) as lock:
        ...     done = store.txn(compare=[lock.fence()], success=[mvccstore.Op.put(b"version", b"7")])
        ...     store.lock("deploy").acquire(timeout=0)
        False
        >>> done.succeeded, lock.is_held
        (True, False)
        """
        return Lock(self, name, ttl)

    def election(self, name: str | bytes, *, ttl: float = 10) -> Election:
        """Return a handle to an election: to campaign in it, or to see who leads.

        Args:
            name: Its name, not empty.
            ttl: Seconds after which the next one leads if the leader is gone: its process, or the `Election` itself.

        Cost: nothing is written before there is a campaign.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> mine, others = store.election("primary"), store.election("primary")
        >>> mine.campaign(b"node-1"), others.campaign(b"node-2", timeout=0)
        (True, False)
        >>> others.leader().value
        b'node-1'
        >>> mine.resign()
        >>> others.leader() is None
        True
        """
        return Election(self, name, ttl)

    def counter(self, name: str | bytes) -> Counter:
        """Return a handle to a counter, which begins at 0.

        >>> import mvccstore
        >>> hits = mvccstore.open().counter("hits")
        >>> hits.add(), hits.add(41), hits.value()
        (1, 42, 42)
        """
        return Counter(self, name)

    def queue(self, name: str | bytes, *, ttl: float = 30) -> Queue:
        """Return a handle to a queue of bytes, first in first out, of which each item is handled at least once.

        Args:
            name: Its name, not empty.
            ttl: Seconds after which an item comes back if who has it is gone: its process, or the `Queue` and `Item`.

        Cost: nothing is written before it is used.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> jobs = store.queue("jobs")
        >>> jobs.put(b"resize 1.png"), jobs.put(b"resize 2.png")
        (2, 3)
        >>> with jobs.get(timeout=5) as item:
        ...     print(item.value, store.queue("jobs").get(timeout=0).value)
        b'resize 1.png' b'resize 2.png'
        >>> jobs.qsize()
        1
        """
        return Queue(self, name, ttl)

    def barrier(self, name: str | bytes) -> Barrier:
        """Return a handle to a barrier.

        >>> import mvccstore
        >>> barrier = mvccstore.open().barrier("ready")
        >>> barrier.hold()
        >>> barrier.wait(timeout=0)
        False
        >>> barrier.release()
        >>> barrier.wait()
        True
        """
        return Barrier(self, name)

    def mirror(self, prefix: bytes) -> Mirror:
        """Return the keys that begin with a prefix as a read-only mapping in memory, always current.

        Raises:
            ClosedError: The store is closed.

        Cost: a `range` over them, and their memory; then a dict's lookup for each look, and for each change one
        more when it is next looked at. On a store that another process writes, each look takes one at the file.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> with store.mirror(b"config/") as config:
        ...     _ = store.put(b"config/size", b"3")
        ...     config[b"config/size"].value, len(config)
        (b'3', 1)
        """
        return Mirror(self, prefix)

    @overload
    def mapping(self, prefix: str) -> StoreMapping[str, object]: ...
    @overload
    def mapping(self, prefix: bytes) -> StoreMapping[bytes, object]: ...
    @overload
    def mapping(self, prefix: str, *, codec: Codec[T]) -> StoreMapping[str, T]: ...
    @overload
    def mapping(self, prefix: bytes, *, codec: Codec[T]) -> StoreMapping[bytes, T]: ...
    def mapping(
        self, prefix: str | bytes, *, codec: Codec[T] | None = None
    ) -> StoreMapping[str, T] | StoreMapping[bytes, T]:
        """Return the keys that begin with a prefix as a mutable mapping of Python values.

        Args:
            prefix: As text, it makes the mapping's keys text; as bytes, bytes. They are without it.
            codec: Turns values into bytes and back; JSON unless said otherwise. `JsonCodec[int]()` also tells the
                type checker what the values are.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> users = store.mapping("users/")
        >>> users["ann"] = {"age": 36}
        >>> users.update(bob={"age": 7}, cid=None)
        >>> users["ann"], list(users), store.get(b"users/bob").value
        ({'age': 36}, ['ann', 'bob', 'cid'], b'{"age":7}')
        """
        chosen: Codec[T] = JsonCodec() if codec is None else codec
        if isinstance(prefix, str):
            return StoreMapping(self, prefix, chosen)
        return StoreMapping(self, prefix, chosen)
