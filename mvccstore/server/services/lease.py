"""The Lease service."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

from mvccstore.errors import LeaseNotFoundError
from mvccstore.lease import TTL_SECONDS_MAX
from mvccstore.mvcc.etcd_encoding import int_field
from mvccstore.server.errors import Refusal
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node
from mvccstore.server.transport.call import Call, Method, Receiver
from mvccstore.types import DeleteResult, LeaseGrantRequest, LeaseRevokeRequest, Result

_GRANT_COST_BYTES = 64


class LeaseService:
    """etcd's Lease service."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._store = node.store

    def methods(self) -> list[Method]:
        """Return the handlers."""
        return [
            Method("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest.FromString, self.grant),
            Method("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeRequest.FromString, self.revoke),
            Method(
                "/etcdserverpb.Lease/LeaseKeepAlive",
                rpc.LeaseKeepAliveRequest.FromString,
                stream_handler=lambda call: KeepAlive(self._node, call),
                is_server_streaming=True,
            ),
            Method("/etcdserverpb.Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest.FromString, self.time_to_live),
            Method("/etcdserverpb.Lease/LeaseLeases", rpc.LeaseLeasesRequest.FromString, self.leases),
        ]

    def grant(self, call: Call, message: rpc.LeaseGrantRequest) -> None:
        """Create a lease, with a number of ours if it names none, for at least etcd's shortest time."""
        node = self._node
        node.alarms.admit(_GRANT_COST_BYTES)
        node.alarms.check_write(_GRANT_COST_BYTES)
        if message.TTL > TTL_SECONDS_MAX:
            raise Refusal.LEASE_TTL_TOO_LARGE.error()
        ttl = max(message.TTL, node.limits.lease_ttl_min)
        lease_id = message.ID or self._store.new_lease_id()

        def answer(_: Result) -> bytes:
            return node.header() + rpc.LeaseGrantResponse(ID=lease_id, TTL=ttl).SerializeToString()

        node.submit(call, LeaseGrantRequest(lease_id, ttl * 1000), answer)

    def revoke(self, call: Call, message: rpc.LeaseRevokeRequest) -> None:
        """End a lease and delete its keys, as one revision."""
        self._node.alarms.check_write()
        self._node.submit(call, LeaseRevokeRequest(message.ID), self._revoked)

    def _revoked(self, result: Result) -> bytes:
        assert isinstance(result, DeleteResult)
        return self._node.headers.at(result.revision)

    def time_to_live(self, call: Call, message: rpc.LeaseTimeToLiveRequest) -> bytes | None:
        """Say how long a lease has, and which keys; of an unknown one that it has -1 seconds."""
        if not message.keys:
            return self._node.header() + self._told(message)
        call.run(self._told_beside(message))  # each key is a lookup
        return None

    async def _told_beside(self, message: rpc.LeaseTimeToLiveRequest) -> bytes:
        told = await asyncio.get_running_loop().run_in_executor(None, self._told, message)
        return self._node.header() + told

    def _told(self, message: rpc.LeaseTimeToLiveRequest) -> bytes:
        response = rpc.LeaseTimeToLiveResponse(ID=message.ID, TTL=-1)
        try:
            lease = self._store.lease(message.ID)
            keys = lease.keys() if message.keys else []
            response.grantedTTL = math.ceil(lease.ttl)
            response.TTL = int(lease.remaining())
            response.keys.extend(keys)
        except LeaseNotFoundError:
            response = rpc.LeaseTimeToLiveResponse(ID=message.ID, TTL=-1)
        return response.SerializeToString()

    def leases(self, _call: Call, _message: rpc.LeaseLeasesRequest) -> bytes:
        """List the leases, the one that ends first at the head."""
        response = rpc.LeaseLeasesResponse()
        for lease in self._store.leases():
            response.leases.add().ID = lease.id
        return self._node.header() + response.SerializeToString()


class KeepAlive(Receiver):
    """One stream of keep-alives, for any number of leases."""

    __slots__ = ("_call", "_node")

    def __init__(self, node: Node, call: Call) -> None:
        self._node = node
        self._call = call

    def message(self, request: rpc.LeaseKeepAliveRequest) -> None:
        """Give a lease its whole time again; one that is not there has 0 seconds."""
        header = self._node.header()
        ttl = 0
        with suppress(LeaseNotFoundError):
            ttl = math.ceil(self._node.store.lease(request.ID).keep_alive())
        self._call.send(header + int_field(2, request.ID) + int_field(3, ttl))

    def end(self) -> None:
        """The client has none to keep alive any more."""
        self._call.finish()
