"""The node and the services on it that are no matter of the wire: what several requests at once do to each other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mvccstore import KeyRange, Store
from mvccstore.clock import SystemClock
from mvccstore.server import node as node_module
from mvccstore.server.member import Identity
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node, RequestLimits
from mvccstore.server.services import kv
from mvccstore.server.services.cluster import Cluster
from mvccstore.server.services.lease import LeaseService
from mvccstore.server.transport.status import RpcError
from mvccstore.types import DeleteRequest, PutRequest, Result
from tests.wire.plain_call import PlainCall

SECONDS = 30


class Asked(PlainCall):
    """A call as far as these services need one; `answered` is done when it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.answered: asyncio.Future[bytes | str] = asyncio.get_running_loop().create_future()

    def reply(self, message: bytes) -> None:
        self.answered.set_result(message)

    def fail(self, error: RpcError) -> None:
        self.answered.set_result(str(error))

    fail_with = fail

    def run(self, work: Any, _cost: int = 0) -> None:
        """As `Call.run`, of what does not fail."""
        asyncio.ensure_future(work).add_done_callback(lambda task: self.reply(task.result()))


def new_node(store: Store) -> Node:
    return Node(store, Identity(), RequestLimits(), clock=SystemClock())


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store(engine="memory")


def test_what_waits_to_be_written_is_bounded_in_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "UNDER_WAY_BYTES_MAX", 100)

    async def main() -> None:
        node = new_node(store)

        def submit(size: int) -> asyncio.Future[bytes | str]:
            call: Any = Asked()
            node.submit(call, PutRequest(b"k", b"v"), lambda result: b"%d" % result.revision, size_bytes=size)
            answered: asyncio.Future[bytes | str] = call.answered
            return answered

        # What brings it above the bound is let in, so that one of any size is.
        first = [submit(60), submit(1_000)]
        with pytest.raises(RpcError, match="too many requests"):
            submit(1)
        assert node.tally.proposals_failed == 1
        assert await asyncio.wait_for(asyncio.gather(*first), SECONDS) == [b"2", b"3"]
        assert await asyncio.wait_for(submit(1), SECONDS) == b"4"
        await node.stop()

    asyncio.run(main())


def test_i1_the_raft_index_of_a_killed_server_does_not_go_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "_INDEX_SLACK", 10)

    async def command(node: Node) -> None:
        call: Any = Asked()

        def then(_: Result) -> bytes:
            return b""

        node.submit(call, DeleteRequest(b"not there"), then)
        await asyncio.wait_for(call.answered, SECONDS)

    async def main() -> None:
        reached = 0
        for commands, revisions in ((0, 0), (0, 50), (50, 0), (23, 17), (3, 100), (0, 0)):
            node = new_node(store)
            assert node.raft_index > reached, (commands, revisions)
            for _ in range(revisions):
                store.put(b"k", b"v")
            for _ in range(commands):
                await command(node)
            reached = node.raft_index
            await node.writer.stop()  # and nothing is noted

    asyncio.run(main())


def test_a_raft_index_noted_without_a_revision_is_read(store: Store) -> None:
    async def main() -> None:
        store.set_attributes({"etcd/raft": b"7 1000"})
        node = new_node(store)
        assert (node.raft_term, node.raft_index) == (8, 1001)
        await node.stop()

    asyncio.run(main())


def test_members_added_at_once_are_judged_one_after_the_other(store: Store) -> None:
    def outcome(answer: bytes | str) -> int | str:
        return answer if isinstance(answer, str) else len(rpc.MemberAddResponse.FromString(answer).members)

    async def main() -> None:
        node = new_node(store)
        cluster = Cluster(node)
        calls: list[Any] = []
        for url in ("http://a:1", "http://b:1"):
            calls.append(Asked())
            cluster.add(calls[-1], rpc.MemberAddRequest(peerURLs=[url], isLearner=True))
        answers = [await asyncio.wait_for(call.answered, SECONDS) for call in calls]
        assert [outcome(answer) for answer in answers] == [
            2,
            "FAILED_PRECONDITION: etcdserver: too many learner members in cluster",
        ]
        await node.stop()

    asyncio.run(main())


class Noting:
    """Calls a function, and notes on which threads."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.threads: set[int] = set()

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.threads.add(threading.get_ident())
        return self._function(*args, **options)


@pytest.mark.pure("replaces a method")
def test_what_takes_long_is_done_beside_the_loop(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = store.grant(60)
    for number in range(100):
        store.put(b"k%02d" % number, b"v", lease=lease)
    encode, look_up = Noting(kv.range_response), Noting(type(lease).keys)
    monkeypatch.setattr(kv, "range_response", encode)
    monkeypatch.setattr(type(lease), "keys", lambda self: look_up(self))

    async def main() -> None:
        node = new_node(store)
        sorted_call: Any = Asked()
        keys = rpc.RangeRequest(key=b"k", range_end=b"l", sort_target=rpc.RangeRequest.MOD, sort_order=2)
        assert kv.KV(node).range(sorted_call, keys) is None
        answer = rpc.RangeResponse.FromString(await asyncio.wait_for(sorted_call.answered, SECONDS))
        assert [row.key for row in answer.kvs] == [row.key for row in reversed(store.range(KeyRange(b"k", b"l")).kvs)]
        assert (answer.count, answer.header.revision) == (100, 101)
        lease_call: Any = Asked()
        assert LeaseService(node).time_to_live(lease_call, rpc.LeaseTimeToLiveRequest(ID=lease.id, keys=True)) is None
        told = rpc.LeaseTimeToLiveResponse.FromString(await asyncio.wait_for(lease_call.answered, SECONDS))
        assert (len(told.keys), told.grantedTTL, told.header.revision) == (100, 60, 101)
        for noting in (encode, look_up):
            assert noting.threads
            assert threading.get_ident() not in noting.threads
        await node.stop()

    asyncio.run(main())
