"""The Election service: the leader is whose key below the election's name was created first; its value is what it says.

Its errors have no code of their own, as etcd's have none: they come from a client inside the server.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from mvccstore.server.messages import election, kv, rpc
from mvccstore.server.node import Node
from mvccstore.server.services.inner import (
    Inner,
    Named,
    created_at,
    deleting,
    first_created,
    plainly,
    prefix_end,
    session_key,
)
from mvccstore.server.transport.call import Call, Method
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.types import KeyRange, KeyValue

_MISSING_LEADER = '"leader" field must be provided'
_NOT_LEADER = "election: not leader"
_NO_LEADER = "election: no leader"


class Election:
    """etcd's Election service."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._inner = Inner(node)

    def methods(self) -> list[Method]:
        """Return the handlers."""
        return [
            Method("/v3electionpb.Election/Campaign", election.CampaignRequest.FromString, self.campaign),
            Method("/v3electionpb.Election/Proclaim", election.ProclaimRequest.FromString, self.proclaim),
            Method("/v3electionpb.Election/Leader", election.LeaderRequest.FromString, self.leader),
            Method(
                "/v3electionpb.Election/Observe",
                election.LeaderRequest.FromString,
                self.observe,
                is_server_streaming=True,
            ),
            Method("/v3electionpb.Election/Resign", election.ResignRequest.FromString, self.resign),
        ]

    # Being elected

    def campaign(self, call: Call, message: election.CampaignRequest) -> None:
        """Stand for election; answered when elected. If the call ends before, the candidate resigns."""
        call.run(self._campaign(call, message))

    @plainly
    async def _campaign(self, call: Call, message: election.CampaignRequest) -> bytes:
        with Named(self._node, message.name, message.value):
            return await self._stand(call, message)

    async def _stand(self, call: Call, message: election.CampaignRequest) -> bytes:
        inner = self._inner
        prefix = message.name + b"/"
        lease = await inner.session(call, message.lease)
        key = session_key(prefix, lease)
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=message.value, lease=lease))
        get = rpc.RequestOp(request_range=rpc.RangeRequest(key=key))
        stand = rpc.TxnRequest(compare=[created_at(key, 0)], success=[put], failure=[get])
        stood = await inner.stand_in_line(call, key, stand)
        header, revision = stood.header, stood.header.revision
        if not stood.succeeded:
            own = stood.responses[0].response_range.kvs[0]
            revision = own.create_revision
            if own.value != message.value:
                try:
                    await self._say(call, key, revision, message.value, lease)
                except RpcError:
                    inner.clean_up(deleting(key, revision))
                    raise
        try:
            is_standing = await inner.until_alone(call, prefix, key, revision)
        except asyncio.CancelledError:
            inner.clean_up(deleting(key, revision))
            raise
        if not is_standing:
            raise RpcError(Code.UNKNOWN, _NOT_LEADER)
        leader = election.LeaderKey(name=message.name, key=key, rev=revision, lease=lease)
        return election.CampaignResponse(header=header, leader=leader).SerializeToString()

    def proclaim(self, call: Call, message: election.ProclaimRequest) -> None:
        """Say something else as the leader."""
        call.run(self._proclaim(call, message))

    @plainly
    async def _proclaim(self, call: Call, message: election.ProclaimRequest) -> bytes:
        leader = _leader_of(message)
        lease = await self._inner.session(call, leader.lease)
        said = await self._say(call, leader.key, leader.rev, message.value, lease)
        return election.ProclaimResponse(header=said.header).SerializeToString()

    async def _say(self, call: Call, key: bytes, revision: int, value: bytes, lease: int) -> rpc.TxnResponse:
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))
        said = await self._inner.txn(call, rpc.TxnRequest(compare=[created_at(key, revision)], success=[put]))
        if not said.succeeded:
            raise RpcError(Code.UNKNOWN, _NOT_LEADER)
        return said

    def resign(self, call: Call, message: election.ResignRequest) -> None:
        """Step down; who was not elected does nothing."""
        call.run(self._resign(call, message))

    @plainly
    async def _resign(self, call: Call, message: election.ResignRequest) -> bytes:
        leader = _leader_of(message)
        await self._inner.session(call, leader.lease)
        resigned = await self._inner.txn(call, deleting(leader.key, leader.rev))
        return election.ResignResponse(header=resigned.header).SerializeToString()

    # Looking who is

    def leader(self, call: Call, message: election.LeaderRequest) -> None:
        """Answer who leads, and what they say."""
        call.run(self._leader(call, message))

    @plainly
    async def _leader(self, call: Call, message: election.LeaderRequest) -> bytes:
        found = await self._inner.get(call, first_created(message.name + b"/"))
        if not found.kvs:
            raise RpcError(Code.UNKNOWN, _NO_LEADER)
        return election.LeaderResponse(header=found.header, kv=found.kvs[0]).SerializeToString()

    def observe(self, call: Call, message: election.LeaderRequest) -> None:
        """Tell who leads, and whatever they say, and who leads after them, until the call ends."""
        call.run(self._observe(call, message.name + b"/"))

    async def _observe(self, call: Call, prefix: bytes) -> None:
        try:
            with Named(self._node, prefix):
                while True:
                    await self._observe_one(call, prefix)
        except RpcError:
            # etcd's client only closes its channel.
            call.finish()

    async def _observe_one(self, call: Call, prefix: bytes) -> None:
        """Tell of one leader, from when there is one until it is gone."""
        found = await self._inner.get(call, first_created(prefix))
        if found.kvs:
            key, revision = found.kvs[0].key, found.header.revision
            self._tell(call, revision, found.kvs[0])
        else:
            first = await self._first_put(call, prefix, found.header.revision)
            key, revision = first.key, first.mod_revision
            self._tell(call, revision, _message_of(first))
        async with aclosing(self._inner.changes(call, key, revision + 1)) as changes:
            async for batch in changes:
                for event in batch.events:
                    if event.type == "delete":
                        return
                    self._tell(call, batch.revision, _message_of(event.kv))
                    await call.drained()

    async def _first_put(self, call: Call, prefix: bytes, start_revision: int) -> KeyValue:
        keys = KeyRange(prefix, prefix_end(prefix))
        async with aclosing(self._inner.changes(call, keys, start_revision)) as changes:
            async for batch in changes:
                for event in batch.events:
                    if event.type == "put":
                        return event.kv
        raise AssertionError  # it has no end

    def _tell(self, call: Call, revision: int, row: kv.KeyValue) -> None:
        call.send(self._node.header(revision) + election.LeaderResponse(kv=row).SerializeToString())


def _leader_of(message: election.ProclaimRequest | election.ResignRequest) -> election.LeaderKey:
    if not message.HasField("leader"):
        raise RpcError(Code.UNKNOWN, _MISSING_LEADER)
    return message.leader


def _message_of(row: KeyValue) -> kv.KeyValue:
    message = kv.KeyValue()
    message.key, message.create_revision, message.mod_revision, message.version, message.value, message.lease = row
    return message
