"""The Cluster service, of a cluster of one."""

from __future__ import annotations

from mvccstore.attributes import AttributesRequest
from mvccstore.etcd_file.buckets import MemberRecord
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node
from mvccstore.server.transport.call import Call, Method
from mvccstore.types import Result


class Cluster:
    """etcd's Cluster service. Its headers have no revision."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._members = node.members

    def methods(self) -> list[Method]:
        """Return the handlers."""
        service = "/etcdserverpb.Cluster/"
        return [
            Method(service + "MemberAdd", rpc.MemberAddRequest.FromString, self.add),
            Method(service + "MemberRemove", rpc.MemberRemoveRequest.FromString, self.remove),
            Method(service + "MemberUpdate", rpc.MemberUpdateRequest.FromString, self.update),
            Method(service + "MemberList", rpc.MemberListRequest.FromString, self.list),
            Method(service + "MemberPromote", rpc.MemberPromoteRequest.FromString, self.promote),
        ]

    def add(self, call: Call, message: rpc.MemberAddRequest) -> None:
        """Add a member, which never comes up."""
        seconds = self._node.clock.time_ms() // 1000
        member, changes = self._members.add(message.peerURLs, seconds, is_learner=message.isLearner)

        def answer(_: Result) -> bytes:
            response = rpc.MemberAddResponse()
            _fill(response.member, member)
            self._fill_all(response)
            return self._encode(response)

        self._node.submit(call, AttributesRequest(tuple(changes.items())), answer)

    def remove(self, call: Call, message: rpc.MemberRemoveRequest) -> None:
        """Remove a member that was added."""
        changes = self._members.remove(message.ID)
        self._change(call, changes, rpc.MemberRemoveResponse())

    def update(self, call: Call, message: rpc.MemberUpdateRequest) -> None:
        """Give a member other peer URLs."""
        changes = self._members.update(message.ID, message.peerURLs)
        self._change(call, changes, rpc.MemberUpdateResponse())

    def promote(self, _call: Call, message: rpc.MemberPromoteRequest) -> None:
        """Refuse to promote a learner: none is ever in sync."""
        self._members.promote(message.ID)

    def list(self, _call: Call, _message: rpc.MemberListRequest) -> bytes:
        """List the members, by id."""
        response = rpc.MemberListResponse()
        self._fill_all(response)
        return self._encode(response)

    def _change(
        self,
        call: Call,
        changes: dict[str, bytes | None],
        response: rpc.MemberRemoveResponse | rpc.MemberUpdateResponse,
    ) -> None:
        def answer(_: Result) -> bytes:
            self._fill_all(response)
            return self._encode(response)

        self._node.submit(call, AttributesRequest(tuple(changes.items())), answer)

    def _fill_all(
        self,
        response: rpc.MemberAddResponse | rpc.MemberRemoveResponse | rpc.MemberUpdateResponse | rpc.MemberListResponse,
    ) -> None:
        for member in self._members.all():
            _fill(response.members.add(), member)

    def _encode(
        self,
        response: rpc.MemberAddResponse | rpc.MemberRemoveResponse | rpc.MemberUpdateResponse | rpc.MemberListResponse,
    ) -> bytes:
        return self._node.headers.at(0) + response.SerializeToString()


def _fill(message: rpc.Member, member: MemberRecord) -> None:
    message.ID = member.id
    message.name = member.name
    message.peerURLs.extend(member.peer_urls)
    message.clientURLs.extend(member.client_urls)
    message.isLearner = member.is_learner
