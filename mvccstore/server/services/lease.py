"""The Lease service."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import suppress

from mvccstore.errors import LeaseNotFoundError
from mvccstore.lease import TTL_SECONDS_MAX
from mvccstore.mvcc.etcd_encoding import int_field
from mvccstore.server.auth.gate import Check, Judge
from mvccstore.server.auth.permissions import READ, WRITE
from mvccstore.server.errors import Refusal
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node
from mvccstore.server.transport.call import Call, Method
from mvccstore.types import DeleteResult, LeaseGrantRequest, LeaseRevokeRequest, Result

_GRANT_COST_BYTES = 64
_SMALL_LEASES = 1_000
"""No more are listed on the loop: a million take seconds."""
_LISTED_COST = 500
"""What a list of more counts for among the work of a connection, as a large range."""
WAITING_MAX = 1_000
"""Of requests of one stream to keep leases alive whose keys are looked at first; one more ends the stream."""


class LeaseService:
    """etcd's Lease service."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._store = node.store
        self._grants_left = 0
        """How many may be granted before the leases are counted again."""

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
        node.auth.check_user(call)
        node.alarms.check_write(_GRANT_COST_BYTES)
        if message.TTL > TTL_SECONDS_MAX:
            raise Refusal.LEASE_TTL_TOO_LARGE.error()
        self._check_number()
        ttl = max(message.TTL, node.limits.lease_ttl_min)
        lease_id = message.ID or self._store.new_lease_id()

        def answer(_: Result) -> bytes:
            node.tally.leases_granted += 1
            node.tally.lease_seconds.observe(float(ttl))
            return node.header() + rpc.LeaseGrantResponse(ID=lease_id, TTL=ttl).SerializeToString()

        node.submit(call, LeaseGrantRequest(lease_id, ttl * 1000), answer)

    def _check_number(self) -> None:
        """Raise if there are too many leases: they are held in memory, and are small on disk, so no quota stops them."""
        if not self._grants_left:
            left = self._node.limits.leases_max - self._store.stats().leases
            if left <= 0:
                raise Refusal.TOO_MANY_REQUESTS.error(limit="leases_max")
            self._grants_left = left
        self._grants_left -= 1

    def revoke(self, call: Call, message: rpc.LeaseRevokeRequest) -> None:
        """End a lease and delete its keys, as one revision."""
        node = self._node
        gate = node.auth
        if gate.is_changing:
            gate.defer(call, lambda: self.revoke(call, message))
            return
        caller = gate.check_user(call)
        node.alarms.check_write()
        check = gate.lease_check(caller, [message.ID], WRITE)
        node.submit(call, LeaseRevokeRequest(message.ID), self._revoked, check)

    def _revoked(self, result: Result) -> bytes:
        assert isinstance(result, DeleteResult)
        self._node.tally.leases_revoked += 1
        return self._node.headers.at(result.revision)

    def time_to_live(self, call: Call, message: rpc.LeaseTimeToLiveRequest) -> bytes | None:
        """Say how long a lease has, and which keys; of an unknown one that it has -1 seconds."""
        gate = self._node.auth
        caller = gate.check_user(call)
        if not message.keys:
            return self._node.header() + self._told(message, None)
        judge = gate.keys_judge(caller)
        judged_at = 0 if judge is None else gate.accounts.revision
        call.run(self._told_beside(message, judge, judged_at))  # each key is a lookup
        return None

    async def _told_beside(self, message: rpc.LeaseTimeToLiveRequest, judge: Judge | None, judged_at: int) -> bytes:
        told = await asyncio.get_running_loop().run_in_executor(None, self._told, message, judge)
        self._node.auth.check_unchanged(judged_at)
        return self._node.header() + told

    def _told(self, message: rpc.LeaseTimeToLiveRequest, judge: Judge | None) -> bytes:
        response = rpc.LeaseTimeToLiveResponse(ID=message.ID, TTL=-1)
        try:
            lease = self._store.lease(message.ID)
            keys = lease.keys() if message.keys else []
            if judge is not None:
                for key in keys:
                    judge.check(READ, key)
            response.grantedTTL = math.ceil(lease.ttl)
            response.TTL = int(lease.remaining())
            response.keys.extend(keys)
        except LeaseNotFoundError:
            response = rpc.LeaseTimeToLiveResponse(ID=message.ID, TTL=-1)
        return response.SerializeToString()

    def leases(self, call: Call, _message: rpc.LeaseLeasesRequest) -> bytes | None:
        """List the leases, the one that ends first at the head."""
        gate = self._node.auth
        caller = gate.check_user(call)
        found: list[int] = []
        check = gate.lease_check(caller, found, READ)
        if check is None and self._store.stats().leases <= _SMALL_LEASES:
            return self._node.header() + self._listed(found, None)
        call.run(self._listed_beside(found, check, 0 if check is None else gate.accounts.revision), _LISTED_COST)
        return None

    async def _listed_beside(self, found: list[int], check: Check | None, judged_at: int) -> bytes:
        listed = await asyncio.get_running_loop().run_in_executor(None, self._listed, found, check)
        self._node.auth.check_unchanged(judged_at)
        return self._node.header() + listed

    def _listed(self, found: list[int], check: Check | None) -> bytes:
        found += (lease.id for lease in self._store.leases())
        if check is not None:
            check()
        response = rpc.LeaseLeasesResponse()
        for lease_id in found:
            response.leases.add().ID = lease_id
        return response.SerializeToString()


class KeepAlive:
    """One stream of keep-alives, for any number of leases."""

    __slots__ = ("_call", "_is_ended", "_node", "_waiting")

    def __init__(self, node: Node, call: Call) -> None:
        self._node = node
        self._call = call
        self._waiting: deque[int] = deque()
        self._is_ended = False

    def message(self, request: rpc.LeaseKeepAliveRequest) -> None:
        """Give a lease its whole time again; one that is not there has 0 seconds."""
        if not self._waiting and not self._node.auth.is_enabled:
            self._keep(request.ID)
            return
        if len(self._waiting) >= WAITING_MAX:
            raise Refusal.TOO_MANY_REQUESTS.error(limit="keep_alives_waiting_max")
        self._waiting.append(request.ID)  # the request may be 2 MB, of fields that nobody knows
        if len(self._waiting) == 1:
            self._call.run(self._keep_waiting())

    async def _keep_waiting(self) -> None:
        """Keep those alive that may be, in order: who may not write all keys of a lease may not."""
        gate = self._node.auth
        loop = asyncio.get_running_loop()
        while self._waiting:
            lease_id = self._waiting[0]
            caller = gate.check_user(self._call)
            check = gate.lease_check(caller, [lease_id], WRITE)
            if check is not None:
                judged_at = gate.accounts.revision
                await loop.run_in_executor(None, check)
                gate.check_unchanged(judged_at)
            self._keep(lease_id)
            self._waiting.popleft()
        if self._is_ended:
            self._call.finish()

    def _keep(self, lease_id: int) -> None:
        header = self._node.header()
        ttl = 0
        with suppress(LeaseNotFoundError):
            ttl = math.ceil(self._node.store.lease(lease_id).keep_alive())
            self._node.tally.leases_renewed += 1
        self._call.send(header + int_field(2, lease_id) + int_field(3, ttl))

    def end(self) -> None:
        """The client has none to keep alive any more."""
        self._is_ended = True
        if not self._waiting:
            self._call.finish()
