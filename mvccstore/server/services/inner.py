"""Calls of the server to itself: Lock and Election are made of gets, txns and watches in the name of their caller.

An `InnerCall` goes to the handlers that calls from outside go to, with the metadata and certificate of the outer call. So
permissions, quota, alarms and limits hold as for the client itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar

from mvccstore.errors import CompactedError
from mvccstore.hub import WatchBatch
from mvccstore.server.errors import Refusal, translate
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node
from mvccstore.server.services.kv import KV
from mvccstore.server.services.lease import LeaseService
from mvccstore.server.transport.call import Call, Metadata, Method, Peer, Router
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.types import KeyRange, Keys
from mvccstore.watch import Watcher

T = TypeVar("T")
P = ParamSpec("P")

_ROUTER = Router({}, translate=translate)
_NOBODY = Peer("the server itself")


class InnerCall(Call, Generic[T]):
    """A unary call that comes from the server itself; `answered` has what it ends with."""

    __slots__ = ("_decode", "_parts", "answered")

    def __init__(self, method: Method, metadata: Metadata, peer: Peer, decode: Callable[[bytes], T]) -> None:
        super().__init__(_ROUTER, method, metadata, peer)
        self._decode = decode
        self._parts: list[bytes] = []
        self.answered: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    @property
    def queued_bytes(self) -> int:
        """Nothing waits."""
        return 0

    def reply(self, message: bytes) -> None:
        """Take the answer."""
        self.is_done = True
        if not self.answered.done():  # else nobody waits any more
            self.answered.set_result(self._decode(message))

    def fail(self, error: RpcError) -> None:
        """Take the error."""
        self.is_done = True
        if not self.answered.done():
            # Without the frames in which it was raised: they hold this call, and what it asks for.
            self.answered.set_exception(error.with_traceback(None))

    def send(self, message: bytes) -> None:
        """Take the only one of several answers that unary calls have."""
        self._parts.append(message)

    def begin(self, length: int) -> None:
        """Take an answer in parts."""
        del length

    def send_part(self, part: bytes) -> None:
        """Take the next part."""
        self._parts.append(part)

    def finish(self) -> None:
        """Take the end of the parts."""
        self.reply(b"".join(self._parts))


class Named:
    """What a call of Lock or Election keeps while it is under way, for as long as it wants: its name, and its value.

    Raises:
        RpcError: When it is entered: there are too many of them.
    """

    def __init__(self, node: Node, *parts: bytes) -> None:
        self._node = node
        self._size = sum(map(len, parts))

    def __enter__(self) -> None:
        node = self._node
        if node.name_bytes + self._size > node.limits.name_bytes_max:
            raise Refusal.TOO_MANY_REQUESTS.error(limit="name_bytes_max")
        node.name_bytes += self._size

    def __exit__(self, *_: object) -> None:
        self._node.name_bytes -= self._size


class Inner:
    """The services, called from inside. Belongs to one loop."""

    def __init__(self, node: Node) -> None:
        self._node = node
        services = (KV(node), LeaseService(node))
        self._methods = {method.path: method for service in services for method in service.methods()}

    def _call(self, outer: Call | None, path: str, request: Any, decode: Callable[[bytes], T]) -> asyncio.Future[T]:
        metadata, peer = (Metadata(), _NOBODY) if outer is None else (outer.metadata, outer.peer)
        inner = InnerCall(self._methods[path], metadata, peer, decode)
        inner.serve(request)
        return inner.answered

    async def get(self, outer: Call, request: rpc.RangeRequest) -> rpc.RangeResponse:
        """Get a range."""
        return await self._call(outer, "/etcdserverpb.KV/Range", request, rpc.RangeResponse.FromString)

    async def txn(self, outer: Call, request: rpc.TxnRequest) -> rpc.TxnResponse:
        """Run a txn."""
        return await self._call(outer, "/etcdserverpb.KV/Txn", request, rpc.TxnResponse.FromString)

    async def stand_in_line(self, outer: Call, key: bytes, request: rpc.TxnRequest) -> rpc.TxnResponse:
        """Run a txn that makes a key, if it succeeds; if the outer call ends before it is answered, the key goes again."""
        answered = self._call(outer, "/etcdserverpb.KV/Txn", request, rpc.TxnResponse.FromString)
        try:
            return await asyncio.shield(answered)
        except asyncio.CancelledError:
            answered.add_done_callback(lambda done: self._step_out(key, done))
            raise
        finally:
            del answered  # its error holds this frame

    def _step_out(self, key: bytes, done: asyncio.Future[rpc.TxnResponse]) -> None:
        if not done.cancelled() and done.exception() is None and done.result().succeeded:
            self.clean_up(deleting(key, done.result().header.revision))

    async def delete(self, outer: Call, key: bytes) -> rpc.DeleteRangeResponse:
        """Delete a key."""
        request = rpc.DeleteRangeRequest(key=key)
        return await self._call(outer, "/etcdserverpb.KV/DeleteRange", request, rpc.DeleteRangeResponse.FromString)

    def clean_up(self, request: rpc.TxnRequest) -> None:
        """Run a txn of the server's own, and wait for nothing. With authentication on, it may do nothing: etcd's too."""
        answered = self._call(None, "/etcdserverpb.KV/Txn", request, bytes)
        answered.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, so not logged

    async def session(self, outer: Call, lease: int, ttl: int = 60) -> int:
        """Return a lease to hold something with: the one that is given, or if that is 0 a new one of a minute."""
        if lease:
            return lease
        request = rpc.LeaseGrantRequest(TTL=ttl)
        granted = self._call(outer, "/etcdserverpb.Lease/LeaseGrant", request, rpc.LeaseGrantResponse.FromString)
        return (await granted).ID

    async def changes(self, outer: Call, keys: Keys, start_revision: int) -> AsyncGenerator[WatchBatch]:
        """Iterate over the changes of keys; close it (`aclosing`), as it has a watcher.

        Raises:
            RpcError: They may not be watched, or the history was compacted.
        """
        key, end = (keys.start, keys.end or b"\0") if isinstance(keys, KeyRange) else (keys, b"")
        try:
            self._node.auth.check_watch(outer, key, end)
        except RpcError as error:
            # As the watch of etcd's own client says it.
            code = error.code.name.title().replace("_", "")
            raise RpcError(Code.UNKNOWN, f"rpc error: code = {code} desc = {error.message}") from error
        try:
            with self._node.store.watch(keys, start_revision=start_revision) as watcher:
                while True:
                    yield await self._next(watcher)
        except CompactedError:
            raise Refusal.COMPACTED.error() from None

    async def _next(self, watcher: Watcher) -> WatchBatch:
        loop = self._node.loop
        while True:
            batch = watcher.poll()
            if batch is not None:
                return batch
            woken = loop.create_future()

            def wake(woken: asyncio.Future[None] = woken) -> None:
                loop.call_soon_threadsafe(_set, woken)

            if watcher.listen(wake):
                try:
                    await woken
                finally:
                    watcher.unlisten()

    async def until_alone(self, outer: Call, prefix: bytes, key: bytes, create_revision: int) -> bool:
        """Wait until no key of a prefix is left that was created before one's own; return whether that is there.

        False as soon as one's own is gone, by its lease or otherwise. (etcd has one wait on for those before it.)
        """
        alone = asyncio.ensure_future(self._until_first(outer, prefix, create_revision))
        gone = asyncio.ensure_future(self._until_gone(outer, key, create_revision))
        try:
            await asyncio.wait((alone, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                gone.result()
                return False
            alone.result()
            return True
        finally:
            alone.cancel()
            gone.cancel()
            await asyncio.gather(alone, gone, return_exceptions=True)
            del alone, gone  # their errors hold this frame

    async def _until_first(self, outer: Call, prefix: bytes, create_revision: int) -> None:
        request = rpc.RangeRequest(
            key=prefix,
            range_end=prefix_end(prefix),
            max_create_revision=create_revision - 1,
            sort_order=rpc.RangeRequest.DESCEND,
            sort_target=rpc.RangeRequest.CREATE,
            limit=1,
        )
        # 0 would be no bound at all, and nothing was created before the first revision.
        while create_revision > 1:
            found = await self.get(outer, request)
            if not found.kvs:
                return
            await self._until_deleted(outer, found.kvs[0].key, found.header.revision)

    async def _until_gone(self, outer: Call, key: bytes, create_revision: int) -> None:
        while True:
            found = await self.get(outer, rpc.RangeRequest(key=key))
            if not found.kvs or found.kvs[0].create_revision != create_revision:
                return
            await self._until_deleted(outer, key, found.header.revision + 1)

    async def _until_deleted(self, outer: Call, key: bytes, start_revision: int) -> None:
        async with aclosing(self.changes(outer, key, start_revision)) as changes:
            async for batch in changes:
                if any(event.type == "delete" for event in batch.events):
                    return


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range that all keys of a prefix are in, one that ends in a slash."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def first_created(prefix: bytes) -> rpc.RangeRequest:
    """Return the request for the key of a prefix that was created first."""
    return rpc.RangeRequest(
        key=prefix,
        range_end=prefix_end(prefix),
        sort_order=rpc.RangeRequest.ASCEND,
        sort_target=rpc.RangeRequest.CREATE,
        limit=1,
    )


def session_key(prefix: bytes, lease: int) -> bytes:
    """Return the key that a lease holds below a prefix."""
    return prefix + b"%x" % lease


def created_at(key: bytes, revision: int) -> rpc.Compare:
    """Return the condition that a key was created at a revision; 0 for one that is not there."""
    return rpc.Compare(key=key, target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, create_revision=revision)


def plainly(work: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Have a method raise as etcd's services over its own client do: without a code, only the words."""

    @wraps(work)
    async def plain(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await work(*args, **kwargs)
        except RpcError as error:
            raise RpcError(Code.UNKNOWN, error.message, error.limit) from error

    return plain


def deleting(key: bytes, created: int) -> rpc.TxnRequest:
    """Return the txn that deletes a key if it is still the one that was created at a revision."""
    delete = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
    return rpc.TxnRequest(compare=[created_at(key, created)], success=[delete])
