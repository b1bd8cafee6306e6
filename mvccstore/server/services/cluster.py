"""The Cluster service, of a cluster of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mvccstore.etcd_file.buckets import MemberRecord
from mvccstore.server.errors import Refusal
from mvccstore.server.members import check_urls
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node
from mvccstore.server.transport.call import Call, Method

URLS_MAX = 1_000
"""Of a member."""
_Change = rpc.MemberAddResponse | rpc.MemberRemoveResponse | rpc.MemberUpdateResponse


class Cluster:
    """etcd's Cluster service. Its headers have no revision.

    A change is judged on the writer's thread, where no other comes between that and its writing.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._store = node.store
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
        _check_number(message.peerURLs)
        check_urls(message.peerURLs)
        self._node.auth.check_root(call)
        seconds = self._node.clock.time_ms() // 1000

        def work() -> rpc.MemberAddResponse:
            member, changes = self._members.add(message.peerURLs, seconds, is_learner=message.isLearner)
            self._store.set_attributes(changes)
            response = rpc.MemberAddResponse()
            _fill(response.member, member)
            return response

        self._change(call, work, message.ByteSize())

    def remove(self, call: Call, message: rpc.MemberRemoveRequest) -> None:
        """Remove a member that was added."""
        self._node.auth.check_root(call)

        def work() -> rpc.MemberRemoveResponse:
            self._store.set_attributes(self._members.remove(message.ID))
            return rpc.MemberRemoveResponse()

        self._change(call, work, message.ByteSize())

    def update(self, call: Call, message: rpc.MemberUpdateRequest) -> None:
        """Give a member other peer URLs."""
        _check_number(message.peerURLs)
        self._node.auth.check_root(call)

        def work() -> rpc.MemberUpdateResponse:
            self._store.set_attributes(self._members.update(message.ID, message.peerURLs))
            return rpc.MemberUpdateResponse()

        self._change(call, work, message.ByteSize())

    def promote(self, call: Call, message: rpc.MemberPromoteRequest) -> None:
        """Refuse to promote a learner: none is ever in sync."""
        self._node.auth.check_root(call)
        self._members.promote(message.ID)

    def list(self, call: Call, _message: rpc.MemberListRequest) -> bytes:
        """List the members, by id."""
        self._node.auth.check_user(call)
        response = rpc.MemberListResponse()
        self._fill_all(response)
        return self._encode(response)

    def _change(self, call: Call, work: Callable[[], _Change], size_bytes: int) -> None:
        def done(answer: _Change | Exception) -> None:
            self._node.end_work(call, size_bytes)
            if isinstance(answer, Exception):
                call.fail_with(answer)
                return
            self._node.count_command()
            self._fill_all(answer)
            call.reply(self._encode(answer))

        self._node.begin_work(call, size_bytes)
        self._node.writer.call(work, done)

    def _fill_all(self, response: _Change | rpc.MemberListResponse) -> None:
        for member in self._members.all():
            _fill(response.members.add(), member)

    def _encode(self, response: _Change | rpc.MemberListResponse) -> bytes:
        return self._node.headers.at(0) + response.SerializeToString()


def _check_number(urls: Sequence[str]) -> None:
    if len(urls) > URLS_MAX:
        raise Refusal.BAD_MEMBER_URLS.error(limit="member_urls_max")


def _fill(message: rpc.Member, member: MemberRecord) -> None:
    message.ID = member.id
    message.name = member.name
    message.peerURLs.extend(member.peer_urls)
    message.clientURLs.extend(member.client_urls)
    message.isLearner = member.is_learner
