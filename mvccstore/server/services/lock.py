"""The Lock service: a lock is held by whose key below its name was created first.

Its errors have no code of their own, as etcd's have none: they come from a client inside the server.
"""

from __future__ import annotations

import asyncio

from mvccstore.server.messages import lock as messages
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node
from mvccstore.server.services.inner import Inner, Named, created_at, deleting, first_created, plainly, session_key
from mvccstore.server.transport.call import Call, Method
from mvccstore.server.transport.status import Code, RpcError

_EXPIRED = "mutex: session is expired"


class Lock:
    """etcd's Lock service."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._inner = Inner(node)

    def methods(self) -> list[Method]:
        """Return the handlers."""
        return [
            Method("/v3lockpb.Lock/Lock", messages.LockRequest.FromString, self.lock),
            Method("/v3lockpb.Lock/Unlock", messages.UnlockRequest.FromString, self.unlock),
        ]

    def lock(self, call: Call, message: messages.LockRequest) -> None:
        """Take a lock; answered when it is held. If the call ends before, its place is given up."""
        call.run(self._lock(call, message))

    @plainly
    async def _lock(self, call: Call, message: messages.LockRequest) -> bytes:
        with Named(self._node, message.name):
            return await self._take(call, message)

    async def _take(self, call: Call, message: messages.LockRequest) -> bytes:
        inner = self._inner
        prefix = message.name + b"/"
        lease = await inner.session(call, message.lease)
        key = session_key(prefix, lease)
        get, get_owner = (
            rpc.RequestOp(request_range=request) for request in (rpc.RangeRequest(key=key), first_created(prefix))
        )
        taken = await inner.stand_in_line(
            call,
            key,
            rpc.TxnRequest(
                compare=[created_at(key, 0)],
                success=[rpc.RequestOp(request_put=rpc.PutRequest(key=key, lease=lease)), get_owner],
                failure=[get, get_owner],
            ),
        )
        revision = taken.header.revision
        if not taken.succeeded:
            revision = taken.responses[0].response_range.kvs[0].create_revision
        owners = taken.responses[1].response_range.kvs
        header = taken.header
        if owners and owners[0].create_revision != revision:
            try:
                is_held = await inner.until_alone(call, prefix, key, revision)
                own = await inner.get(call, rpc.RangeRequest(key=key))
            except (RpcError, asyncio.CancelledError):
                inner.clean_up(deleting(key, revision))
                raise
            if not is_held or not own.kvs:
                raise RpcError(Code.UNKNOWN, _EXPIRED)
            header = own.header
        return messages.LockResponse(header=header, key=key).SerializeToString()

    def unlock(self, call: Call, message: messages.UnlockRequest) -> None:
        """Give a lock up: delete its key."""
        call.run(self._unlock(call, message))

    @plainly
    async def _unlock(self, call: Call, message: messages.UnlockRequest) -> bytes:
        deleted = await self._inner.delete(call, message.key)
        return messages.UnlockResponse(header=deleted.header).SerializeToString()
