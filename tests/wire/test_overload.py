"""More than can be done at once: a client that sends it waits, others are served, and what waits is bounded."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import mvccstore
from benchmarks.wire_client import Connection, data_frame
from mvccstore import Durability, KeyRange, Store
from mvccstore.clock import SystemClock
from mvccstore.errors import StoreError
from mvccstore.server import ServerOptions, Serving, serve
from mvccstore.server.member import Identity
from mvccstore.server.messages import election, lock, rpc
from mvccstore.server.node import UNDER_WAY_BYTES_MAX, Node, RequestLimits
from mvccstore.server.services import kv as kv_service
from mvccstore.server.services.inner import InnerCall
from mvccstore.server.serving import new_event_loop
from mvccstore.server.transport.call import Router
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.port import Port
from mvccstore.server.transport.status import RpcError
from mvccstore.server.writer import UNDER_WAY_MAX
from tests.wire.client import Client, Endpoint, RpcFailure
from tests.wire.http2_kit import END_HEADERS, HEADERS, Session, literal_block, pack, request_fields
from tests.wire.requests import get

PUT, RANGE, TXN = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn"
UPDATE, OWN = "/etcdserverpb.Cluster/MemberUpdate", 0x8E9E05C52164694D
PUTS = 10_000
SLICE = TransportLimits().slice_frames
SECONDS = 60


@pytest.fixture
def server(open_store: Callable[..., Store]) -> Iterator[Serving]:
    with serve(open_store(engine="lmdb")) as serving:
        yield serving


def test_a_client_that_pipelines_ten_megabytes_of_puts_is_answered_and_no_other_waits_for_it(server: Serving) -> None:
    """Twice as many calls as there may be writes under way: they wait, where nothing would be left for others."""
    calls = [data_frame(rpc.PutRequest(key=b"k/%05d" % n, value=bytes(1_000)).SerializeToString()) for n in range(PUTS)]
    beside: list[int] = []
    with (
        Connection(server.port, PUT) as heavy,
        Connection(server.port, RANGE) as reader,
        Connection(server.port, PUT) as writer,
    ):
        sender = threading.Thread(target=heavy.send, args=(calls,))
        sender.start()
        ended = 0
        while ended < PUTS:
            ended += heavy.receive()
            if ended < PUTS:
                for other, request in (
                    (reader, rpc.RangeRequest(key=b"k/00000")),
                    (writer, rpc.PutRequest(key=b"light", value=b"1")),
                ):
                    other.send([data_frame(request.SerializeToString())])
                    while not other.receive():
                        pass
                beside.append(ended)
        sender.join(SECONDS)
    assert heavy.data_bytes >= PUTS * 20  # a refusal has no DATA
    assert server.store.count(KeyRange.prefix(b"k/")) == PUTS
    assert reader.data_bytes >= len(beside) * 20
    assert writer.data_bytes >= len(beside) * 20
    assert len(beside) >= 5, beside  # others were served again and again while it waited


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, new_event_loop])
def test_all_who_connect_at_once_are_taken_in_a_few_turns_of_the_loop(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """However long a turn is: a thousand clients that come back are not one a turn."""

    async def main() -> None:
        port = Port(Router({}), TransportLimits())
        number = await port.listen("127.0.0.1", 0)
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(socket.create_connection(("127.0.0.1", number)))
            turns = 0
            while len(port) < 200 and turns < 30:
                turns += 1
                await asyncio.sleep(0)
            taken = len(port)
            await port.close()
            assert taken == 200
            late = stack.enter_context(socket.socket())
            assert late.connect_ex(("127.0.0.1", number)) != 0  # nobody listens any more

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def test_a_connection_may_have_half_as_much_work_under_way_as_there_is_room_for_more(
    open_store: Callable[..., Store],
) -> None:
    async def main() -> None:
        node = Node(open_store(), Identity(), RequestLimits(), clock=SystemClock())
        shares = []
        for under_way in (0, 1, UNDER_WAY_MAX // 2, UNDER_WAY_MAX - 1, UNDER_WAY_MAX, UNDER_WAY_MAX + 7):
            node.writer.under_way = under_way
            shares.append(node.share())
        assert shares == [UNDER_WAY_BYTES_MAX >> 17, UNDER_WAY_BYTES_MAX >> 17, 1_250, 1, 1, 1]
        node.writer.under_way = 0
        node._bytes_under_way = UNDER_WAY_BYTES_MAX - (6 << 16)
        assert node.share() == 3
        node._bytes_under_way = UNDER_WAY_BYTES_MAX + 1
        assert node.share() == 1
        await node.stop()

    asyncio.run(main())


def test_connections_that_ask_for_all_there_is_leave_room_for_each_other(open_store: Callable[..., Store]) -> None:
    """As their shares are taken from what is left, thirty of them have as much as each other, and not all."""

    async def main() -> None:
        node = Node(open_store(), Identity(), RequestLimits(), clock=SystemClock())
        held = [0] * 30
        for round_number in range(300):
            for number in range(30):  # as a connection does: a slice, if it has not its share
                taken = min(SLICE, max(0, node.share() - held[number]))
                held[number] += taken
                node.writer.under_way += taken
            assert node.share() > 1, "who comes now would be refused"
            if round_number % 3 == 0:
                done = held[round_number % 30]
                held[round_number % 30] = 0
                node.writer.under_way -= done
        assert min(held) > 10
        assert max(held) < UNDER_WAY_MAX // 10
        node.writer.under_way = 0
        await node.stop()

    asyncio.run(main())


LARGE = bytes(100_000)


@pytest.mark.pure("replaces a method")
@pytest.mark.parametrize(
    ("method", "make"),
    [
        (PUT, lambda key: rpc.PutRequest(key=key, value=LARGE)),
        ("/etcdserverpb.KV/DeleteRange", lambda key: rpc.DeleteRangeRequest(key=key + LARGE)),
        (TXN, lambda key: rpc.TxnRequest(compare=[rpc.Compare(key=key + LARGE)])),
        (TXN, lambda key: rpc.TxnRequest(success=[rpc.RequestOp(request_range=get(key))] * 128)),
        (TXN, lambda key: rpc.TxnRequest(failure=[rpc.RequestOp(request_range=get(key + LARGE))])),
        (UPDATE, lambda key: rpc.MemberUpdateRequest(ID=OWN, peerURLs=[f"http://{key.decode()}{'a' * 100_000}:1"])),
    ],
    ids=["put", "delete", "compare", "operations", "range", "member"],
)
def test_large_requests_count_for_more(
    server: Serving, monkeypatch: pytest.MonkeyPatch, method: str, make: Callable[[bytes], Any]
) -> None:
    """So what waits to be written is bounded in bytes too, and nobody is refused for it."""
    monkeypatch.setattr("mvccstore.server.node.UNDER_WAY_BYTES_MAX", 1 << 20)
    calls = [make(b"%d" % n).SerializeToString() for n in range(40)]
    node, most = server._server.node, 0
    begin_work = node.begin_work

    def noted(*args: Any, **kwargs: Any) -> None:
        nonlocal most
        begin_work(*args, **kwargs)
        most = max(most, node._bytes_under_way)

    monkeypatch.setattr(node, "begin_work", noted)
    with Client(Endpoint(server.host, server.port)) as client:
        ask = client._dialled().unary_unary(method)
        for answer in [ask.future(call, timeout=SECONDS) for call in calls]:
            answer.result()
    assert node._bytes_under_way == 0
    assert 1 << 16 <= most < 1 << 20


@pytest.mark.pure("replaces a method")
def test_large_ranges_keep_little_of_their_rows_in_all(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that find no room read their rows again, and are answered as well."""
    with server.store.begin() as txn:
        for number in range(3_000):
            txn.put(b"r/%04d" % number, bytes(100))
    monkeypatch.setattr(kv_service, "_ALL_KEPT_BYTES_MAX", 500_000)
    most, given_up = 0, 0
    add = kv_service._Kept.add

    def noted(kept: Any, part: bytes) -> None:
        nonlocal most, given_up
        add(kept, part)
        most = max(most, kept._total[0])
        given_up += kept.has_given_up

    monkeypatch.setattr(kv_service._Kept, "add", noted)
    request = get(b"r/", b"r0").SerializeToString()
    with Client(Endpoint(server.host, server.port)) as client:
        ranges = client._dialled().unary_unary(RANGE)
        futures = [ranges.future(request, timeout=SECONDS) for _ in range(8)]
        answers = {future.result() for future in futures}
    assert len(answers) == 1
    (answer,) = answers
    assert len(rpc.RangeResponse.FromString(answer).kvs) == 3_000
    assert 300_000 < most <= 500_000
    assert given_up


FAILING: dict[str, tuple[str, Any]] = {
    "put": (PUT, rpc.PutRequest(key=b"k", lease=7)),
    "txn": (TXN, rpc.TxnRequest(success=[rpc.RequestOp(request_put=rpc.PutRequest(key=b"k", lease=7))])),
    "update": ("/etcdserverpb.Cluster/MemberUpdate", rpc.MemberUpdateRequest(ID=7, peerURLs=["http://a:1"])),
    "lock": ("/v3lockpb.Lock/Lock", lock.LockRequest(name=b"l", lease=7)),
    "campaign": ("/v3electionpb.Election/Campaign", election.CampaignRequest(name=b"e", lease=7)),
    "large lock": ("/v3lockpb.Lock/Lock", lock.LockRequest(name=bytes(1_900))),
    "large proclaim": (
        "/v3electionpb.Election/Proclaim",
        election.ProclaimRequest(leader=election.LeaderKey(key=b"k", lease=7), value=bytes(1_900)),
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_nothing_of_a_call_that_has_failed_waits_for_the_collector(name: str) -> None:
    """It would be a long time: a request may be 1.5 MB, and a million of them are as many objects as a few small ones."""
    options = ServerOptions(requests=RequestLimits(max_request_bytes=2_000))
    with serve(options=options) as server, Client(Endpoint(server.host, server.port)) as client:
        with pytest.raises(RpcFailure):
            client.unary(*FAILING[name])
        gc.collect()
        gc.disable()
        others = set(map(id, _failures()))  # errors that modules of tests have
        try:
            with pytest.raises(RpcFailure):
                client.unary(*FAILING[name])
            client.unary(RANGE, rpc.RangeRequest(key=b"k"))  # the loop goes on
            left = [each for each in _failures() if id(each) not in others]
        finally:
            gc.enable()
    assert left == []


def _failures() -> list[object]:
    kinds = (StoreError, RpcError, InnerCall)
    return [each for each in gc.get_objects() if issubclass(type(each), kinds)]  # not all can be asked what they are


def test_a_million_tiny_calls_are_no_more_than_are_held() -> None:
    """Each would cost some kilobytes for as long as it lasts."""
    limits = TransportLimits(resets_max=10**7, streams_open_max=1_000)
    session = Session(limits)
    block = literal_block(request_fields(b"/t.T/Hold"))
    for first in range(1, 40_001, 2_000):
        session.send(*(pack(HEADERS, END_HEADERS, stream, block) for stream in range(first, first + 2_000, 2)))
        assert len(session.connection._streams) == 1_000
    assert limits.cuts.by_limit == {"streams_open_max": 19_000}
    session.hang_up()
    session.check_clean()


def test_leases_granted_without_end_meet_the_quota(tmp_path: Path) -> None:
    limits = TransportLimits()
    options = ServerOptions(transport=limits, quota_bytes=256 << 10)
    with (
        mvccstore.open(tmp_path / "store", durability=Durability.OS) as store,
        serve(store, options=options) as server,
        Client(Endpoint(server.host, server.port)) as client,
    ):
        answered = ""
        for _ in range(100_000):
            try:
                client.unary("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest(TTL=3_600))
            except RpcFailure as failure:
                answered = failure.code
                break
        assert answered == "RESOURCE_EXHAUSTED"
        assert limits.cuts.by_limit == {"quota_bytes": 1}
        client.unary(RANGE, rpc.RangeRequest(key=b"k"))
