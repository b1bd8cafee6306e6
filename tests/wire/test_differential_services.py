"""Lease, Maintenance, Cluster, Health, metadata and headers: etcd and ours answer alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mvccstore.server.messages import health, rpc
from tests.wire.calls import (
    CLUSTER,
    HEALTH,
    KV,
    LEASE,
    MAINTENANCE,
    WATCH,
    alarm,
    alive,
    cluster,
    compact,
    create,
    delete,
    delete_op,
    disarm,
    downgrade,
    everything,
    get,
    get_op,
    grant,
    hash_kv,
    judge,
    keep_alive,
    leases,
    maintenance,
    members,
    put,
    put_op,
    raise_alarm,
    revoke,
    status,
    time_to_live,
    txn,
    watching,
)
from tests.wire.client import StreamEnd
from tests.wire.differential import Case, Do, End, HalfClose, Http, Operation, Send, Streaming, Take, Unary
from tests.wire.pair import NEEDS_ORACLE, OPTIONS, Pair, running_pair

pytestmark = NEEDS_ORACLE

NOSPACE, CORRUPT = 1, 2
TTL_MAX = 9_000_000_000
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

LEASES = (
    Case(
        "ids that clients choose",
        (
            *(grant(600 + number, lease) for number, lease in enumerate((5, -5, -1, INT64_MAX, INT64_MIN))),
            leases(),
            *(time_to_live(lease) for lease in (5, -5, -1, INT64_MAX, INT64_MIN)),
            keep_alive(alive(-5), alive(INT64_MIN), Take(2)),
            put(b"l", lease=-5),
            put(b"m", lease=INT64_MIN),
            get(b"l", b"n"),
            hash_kv(),
            *(revoke(lease) for lease in (5, -5, -1, INT64_MAX, INT64_MIN, INT64_MIN)),
            leases(),
        ),
    ),
    Case("an id that the server chooses", (grant(600), leases(), grant(700), leases())),
    Case("TTL is raised to a minimum", tuple(grant(ttl, 100 + ttl) for ttl in (-1, 0, 1, 2, 3))),
    Case("TTL of a number far below", (grant(INT64_MIN, 99),)),
    Case("the largest TTL", (grant(TTL_MAX, 5), time_to_live(5), grant(TTL_MAX + 1, 6), grant(INT64_MAX, 6))),
    Case(
        "too large a TTL is refused before an id that is taken",
        (grant(600, 5), grant(TTL_MAX + 1, 5), grant(600, 5), grant(-1, 5), time_to_live(5)),
    ),
    Case("leases that are not there", (revoke(404), revoke(0), time_to_live(404), time_to_live(0), time_to_live(-4))),
    Case(
        "keep alive",
        (
            grant(600, 5),
            grant(700, 6),
            keep_alive(alive(5), alive(404), alive(6), alive(0), alive(5), alive(-7), Take(6), HalfClose(), End()),
            keep_alive(HalfClose(), End()),
            keep_alive(alive(5), HalfClose(), Take(1), End()),
            keep_alive(alive(5), Take(1), Do(revoke(5)), alive(5), Take(1), Do(put(b"a")), alive(6), Take(1)),
        ),
    ),
    Case("leases are listed by what ends first", (grant(900, 1), grant(300, 2), grant(600, 3), leases())),
    Case(
        "a lease that was renewed is listed by its new end",
        (grant(500, 1), grant(400, 2), keep_alive(alive(2), Take(1)), leases()),
    ),
    Case(
        "keys move, leave and come back",
        (
            *(grant(600, 1), grant(600, 2), put(b"a", lease=1), put(b"b", lease=1), put(b"c", lease=1)),
            *(time_to_live(1), time_to_live(1, keys=False), put(b"a", lease=2), time_to_live(1), time_to_live(2)),
            *(put(b"b"), time_to_live(1), put(b"c", ignore_lease=True), time_to_live(1), delete(b"c")),
            *(time_to_live(1), put(b"b", lease=1), txn(put_op(b"b", lease=2), put_op(b"d", lease=1))),
            *(time_to_live(1), time_to_live(2), txn(delete_op(b"b"), put_op(b"d")), time_to_live(1), time_to_live(2)),
            *(revoke(2), revoke(1), everything(), hash_kv()),
        ),
    ),
    Case(
        "keys of a txn that is not carried out are not attached",
        (
            *(grant(600, 1), txn(put_op(b"a", lease=1), put_op(b"b", lease=404)), time_to_live(1)),
            txn(failure=[put_op(b"a", lease=404)]),
            everything(),
        ),
    ),
    Case(
        "revoking deletes all keys in one revision",
        (
            *(grant(600, 1), put(b"z", lease=1), put(b"a", lease=1), put(b"m", lease=1), put(b"free")),
            watching(create(b"\0", b"\0", prev_kv=True), Take(1), Do(revoke(1)), Take(1)),
            *(everything(), time_to_live(1), put(b"a", lease=1), txn(put_op(b"a", lease=1)), grant(600, 1)),
            *(revoke(1), get(b"a"), grant(600, 2), put(b"a", lease=2), delete(b"a"), revoke(2), hash_kv()),
        ),
    ),
    Case(
        "a revoked lease's id may be granted again, without its keys",
        (grant(600, 1), put(b"a", lease=1), revoke(1), grant(700, 1), time_to_live(1), leases()),
    ),
    Case(
        "granting and revoking without keys is no revision",
        (grant(600, 1), everything(), revoke(1), everything(), put(b"a")),
    ),
    Case(
        "keys of a lease after compaction",
        (
            *(grant(600, 1), put(b"a", lease=1), put(b"a", lease=1), put(b"b", lease=1), compact(3)),
            *(time_to_live(1), revoke(1), everything(), hash_kv()),
        ),
    ),
    Case(
        "ignore_lease of a key whose lease is gone",
        (
            *(grant(600, 1), put(b"a", lease=1), put(b"a", b"2", ignore_lease=True), get(b"a")),
            *(put(b"a", ignore_lease=True, lease=1), put(b"no", ignore_lease=True), put(b"no", lease=404)),
            put(b"no", lease=404, ignore_value=True),
        ),
    ),
)


@pytest.mark.parametrize("case", LEASES, ids=str)
def test_leases(fresh_pair: Pair, case: Case) -> None:
    judge(fresh_pair, case)


ALL_WRITES: tuple[Operation, ...] = (
    *(put(b""), put(b"a"), put(b"a", ignore_value=True), put(b"b", lease=404), put(b"a", lease=1)),
    *(delete(b""), delete(b"none"), delete(b"b")),
    *(txn(), txn(get_op(b"a")), txn(get_op(b"")), txn(put_op(b"")), txn(put_op(b"a")), txn(delete_op(b"b"))),
    *(txn(failure=[put_op(b"x")]), txn(put_op(b"x"), compare=[rpc.Compare(key=b"a", version=9)])),
    *(txn(put_op(b"a"), put_op(b"a")), txn(*[put_op(b"%d" % number) for number in range(129)])),
    txn(rpc.RequestOp(request_txn=rpc.TxnRequest(success=[get_op(b"a")]))),
    *(compact(-1), compact(99), compact(2), compact(2)),
    *(grant(600, 1), grant(600, 9), grant(TTL_MAX + 1), revoke(404), revoke(2), time_to_live(1), leases()),
    *(keep_alive(alive(1), alive(404), Take(2)), get(b"a"), get(b""), get(b"a", revision=1), get(b"a", revision=99)),
    *(get(b"a", serializable=True), hash_kv(), status(), members()),
    watching(create(b"a", start_revision=3), Take(2)),
    *(maintenance("Defragment", rpc.DefragmentRequest()), maintenance("Hash", rpc.HashRequest())),
    *(cluster("Remove", rpc.MemberRemoveRequest(ID=404)), cluster("Promote", rpc.MemberPromoteRequest(ID=404))),
    *(Http("GET", path) for path in ("/health", "/livez", "/readyz", "/readyz?verbose", "/version")),
    *(Http("GET", f"/health?exclude={kind}") for kind in ("NOSPACE", "CORRUPT", "OTHER")),
)
"""Of each way to write one that is good and some that are bad; and what is no write."""

WRITES_OF_TWO_ALARMS = tuple(
    operation
    for operation in ALL_WRITES
    if operation not in (Http("GET", "/health"), Http("GET", "/health?exclude=OTHER"))
)
"""With two alarms, /health gives as its reason the first that Go's map happens to give."""

TXNS_OF_RANGES: tuple[Operation, ...] = (
    *(txn(get_op(b"a"), failure=[get_op(b"b")]), txn(get_op(b"a"), get_op(b"b", count_only=True))),
    txn(get_op(b"a"), compare=[rpc.Compare(key=b"a", version=9)], failure=[get_op(b"b")]),
    txn(compare=[rpc.Compare(key=b"a", version=9)]),
    *(txn(get_op(b"a", serializable=True)), txn(get_op(b"a", revision=2)), txn(get_op(b"a", revision=99))),
    *(txn(get_op(b"a"), failure=[put_op(b"x")]), txn(get_op(b"a"), failure=[delete_op(b"none")])),
    *(txn(rpc.RequestOp()), txn(rpc.RequestOp(request_txn=rpc.TxnRequest()))),
)
"""Txns of ranges alone, which etcd keeps out of its log; and some in which something else, never run, is not."""

SOME_DATA: tuple[Operation, ...] = (
    *(grant(600, 1), grant(600, 2), put(b"a", lease=1), put(b"b", lease=2), put(b"c", lease=2), put(b"a")),
)

ALARMS = (
    Case(
        "are listed, raised and disarmed",
        (
            *(alarm(), alarm(0, NOSPACE), raise_alarm(NOSPACE), raise_alarm(NOSPACE), raise_alarm(CORRUPT, 8)),
            *(raise_alarm(NOSPACE, 8), raise_alarm(0, 7), raise_alarm(NOSPACE, 0)),
            *(alarm(), alarm(0, NOSPACE), alarm(0, CORRUPT), alarm(0, CORRUPT, 7), alarm(0, 5), status()),
            *(disarm(CORRUPT, 7), disarm(0, 7), disarm(5, 7), disarm(NOSPACE, 9)),
            *(disarm(NOSPACE, 8), alarm(), disarm(CORRUPT, 8), disarm(NOSPACE, 0), alarm(), disarm(NOSPACE), alarm()),
            *(disarm(NOSPACE), status()),
        ),
    ),
    Case("of nobody known are as good as our own", (raise_alarm(NOSPACE, 0), put(b"a"), disarm(NOSPACE, 0), put(b"a"))),
    Case("NOSPACE and every method", (*SOME_DATA, raise_alarm(NOSPACE), *ALL_WRITES, disarm(NOSPACE), *ALL_WRITES)),
    Case("CORRUPT and every method", (*SOME_DATA, raise_alarm(CORRUPT), *ALL_WRITES, disarm(CORRUPT), *ALL_WRITES)),
    Case(
        "CORRUPT and txns that read alone",
        (*SOME_DATA, raise_alarm(CORRUPT), *TXNS_OF_RANGES, disarm(CORRUPT), *TXNS_OF_RANGES),
    ),
    Case(
        "both, and then one",
        (
            *(*SOME_DATA, raise_alarm(NOSPACE), raise_alarm(CORRUPT), *WRITES_OF_TWO_ALARMS),
            *(disarm(CORRUPT), put(b"a"), delete(b"a"), Http("GET", "/health"), Http("GET", "/health?exclude=NOSPACE")),
            *(disarm(NOSPACE), put(b"a")),
        ),
    ),
    Case(
        "both, and then the other",
        (raise_alarm(CORRUPT), raise_alarm(NOSPACE), disarm(NOSPACE), *ALL_WRITES, disarm(CORRUPT), *ALL_WRITES),
    ),
)


@pytest.mark.parametrize("case", ALARMS, ids=str)
def test_alarms(fresh_pair: Pair, case: Case) -> None:
    judge(fresh_pair, replace(case, since=(3, 5, 7)))


def test_quota_gate_comes_before_everything_else(tmp_path: Path) -> None:
    with running_pair(
        tmp_path, engine="memory", arguments=["--quota-backend-bytes=1"], options=replace(OPTIONS, quota_bytes=1)
    ) as pair:
        before = (txn(), txn(get_op(b"a")), txn(get_op(b"")), delete(b"a"), revoke(404), alarm())
        judge(
            pair,
            Case("", (*before, put(b""), alarm(), *ALL_WRITES, disarm(NOSPACE), *before, put(b"a")), since=(3, 5, 7)),
        )


MAINTENANCE_CASES = (
    Case("status", (status(), put(b"a"), status())),
    Case(
        "hashes",
        (
            *(hash_kv(), hash_kv(-1), hash_kv(INT64_MIN), hash_kv(1), hash_kv(2), put(b"a"), put(b"b"), delete(b"a")),
            *(hash_kv(), hash_kv(1), hash_kv(2), hash_kv(3), hash_kv(4), hash_kv(5)),
            *(txn(put_op(b"c"), put_op(b"d"), delete_op(b"b")), hash_kv(), hash_kv(4), hash_kv(5)),
        ),
    ),
    Case(
        "hashes after a compaction",
        (
            *(put(b"a"), put(b"b"), put(b"a"), delete(b"b"), put(b"c")),
            *(compact(3), hash_kv(2), hash_kv(4), hash_kv(5), hash_kv(), hash_kv(-1), hash_kv(99)),
            *(compact(5), hash_kv(4), hash_kv(6), hash_kv()),
        ),
        since=(3, 6, 0),
    ),
    Case("hash", (maintenance("Hash", rpc.HashRequest()),)),
    Case("defragment", (put(b"a"), maintenance("Defragment", rpc.DefragmentRequest()), get(b"a"))),
    Case(
        "the lead may be moved to itself",
        (
            members(),
            maintenance("MoveLeader", lambda names: rpc.MoveLeaderRequest(targetID=names.value("member"))),
            maintenance("MoveLeader", rpc.MoveLeaderRequest(targetID=404)),
            maintenance("MoveLeader", rpc.MoveLeaderRequest()),
        ),
    ),
    Case(
        "downgrade: what is valid",
        tuple(
            downgrade(0, version)
            for version in (
                *("3.5", "3.5.0", "3.5.1", "3.5.99", "3.6", "3.6.0", "3.7", "3.4", "2.5", "4.0", "", "3", "3.5.", "x"),
                *(
                    "v3.5",
                    "3.5-rc",
                    "3.5.0-rc.1",
                    "3.5.0+x",
                    " 3.5",
                    "3.05",
                    "3.5.0.0",
                    "-3.5",
                    "03.5",
                    "3..5",
                    "3.5.x",
                ),
                "٣.5",
            )
        ),
        since=(3, 6, 0),
    ),
    Case(
        "downgrade: enabled and cancelled",
        (
            *(downgrade(2), downgrade(2, "x"), downgrade(1, "3.4"), downgrade(1, "x"), downgrade(7, "3.5")),
            *(downgrade(1, "3.5.0"), status(), downgrade(0, "3.5.0"), downgrade(1, "3.5"), downgrade(0, "x")),
            *(downgrade(0, "3.6"), downgrade(2), status(), downgrade(1, "3.5"), status(), downgrade(2)),
        ),
        since=(3, 6, 0),
    ),
)


@pytest.mark.parametrize("case", MAINTENANCE_CASES, ids=str)
def test_maintenance(fresh_pair: Pair, case: Case) -> None:
    judge(fresh_pair, case)


def learner(*urls: str) -> Unary:
    return cluster("Add", rpc.MemberAddRequest(peerURLs=urls, isLearner=True))


def voter(*urls: str) -> Unary:
    return cluster("Add", rpc.MemberAddRequest(peerURLs=urls))


def own(method: str, number: int = 1, **fields: object) -> Unary:
    kind = getattr(rpc, f"Member{method}Request")
    return cluster(method, lambda names: kind(ID=names.value("member", number), **fields))


BAD_URLS = (
    *((), ("",), ("x",), ("127.0.0.1:1",), ("ftp://127.0.0.1:1",), ("http://127.0.0.1",), ("http://127.0.0.1:1/path",)),
    *(("http://127.0.0.1:1/",), ("http://:1",), ("http://",), ("http://127.0.0.1:x",), ("http://127.0.0.1:1?q",)),
    *(("http://127.0.0.1:1", "x"), ("http://[::1",), ("http://127.0.0.1:1#f",), (" ",), ("http://a b:1",)),
    *(("unix://",), ("http://127.0.0.1:%zz",), ("//127.0.0.1:1",), ("http:127.0.0.1:1",)),
)
ONE, TWO, THREE = (f"http://127.0.0.1:{port}" for port in (1, 2, 3))

CLUSTERS = (
    Case("the list", (members(), members(linearizable=True))),
    *(Case(f"bad URLs {urls}", (voter(*urls), members())) for urls in BAD_URLS),
    Case("bad URLs of a learner and in an update", (members(), learner(), learner("x"), own("Update"))),
    Case("an update with a bad URL", (members(), own("Update", peerURLs=["x"]))),
    Case(
        "members that are not there",
        (
            cluster("Remove", rpc.MemberRemoveRequest(ID=404)),
            cluster("Remove", rpc.MemberRemoveRequest()),
            cluster("Update", rpc.MemberUpdateRequest(ID=404, peerURLs=[ONE])),
            cluster("Update", rpc.MemberUpdateRequest(ID=404)),
            cluster("Promote", rpc.MemberPromoteRequest(ID=404)),
        ),
    ),
    Case("the only member", (members(), own("Remove"), own("Promote"), members())),
    Case(
        "a learner",
        (
            *(members(), learner(ONE), members(), learner(TWO), learner(ONE), voter(ONE), own("Promote", 2)),
            *(own("Update", 2, peerURLs=[TWO]), members(), own("Update", 1, peerURLs=[TWO]), own("Promote", 1)),
            *(own("Remove", 1), own("Remove", 2), members(), own("Remove", 2), own("Promote", 2)),
            *(own("Update", 2, peerURLs=[ONE]), learner(TWO), members(), put(b"a")),
        ),
    ),
    Case(
        "URLs of several schemes", (learner("https://localhost:9", "http://127.0.0.1:8", " http://b.c:8 "), members())
    ),
    Case("the same URL twice", (learner(ONE, ONE), members())),
    Case("a URL of a unix socket", (learner("unix://somewhere:1"), members())),
    Case("a URL without a port number", (learner("http://127.0.0.1:"), members())),
    Case(
        "new URLs of the only member",
        (members(), own("Update", 1, peerURLs=[ONE]), own("Update", 1, peerURLs=[ONE]), members(), learner(ONE)),
    ),
    # What comes after a second voter is left out: a real cluster has lost its majority then.
    Case("a second voter", (members(), voter(ONE), members())),
)


@pytest.mark.parametrize("case", CLUSTERS, ids=str)
def test_members(fresh_pair: Pair, case: Case) -> None:
    judge(fresh_pair, case)


@pytest.mark.parametrize("most", [0, 2])
def test_as_many_learners_as_the_flag_says(tmp_path: Path, most: int) -> None:
    options = replace(OPTIONS, requests=replace(OPTIONS.requests, learners_max=most))
    with running_pair(
        tmp_path / "pair", engine="memory", arguments=[f"--max-learners={most}"], options=options
    ) as pair:
        pair.play(*(learner(f"http://127.0.0.1:{number}") for number in (9, 10, 11)), members())


def test_snapshot_has_the_same_shape(fresh_pair: Pair) -> None:
    """The length of the file is each one's own: first, last and what holds between are compared."""
    shapes = []
    for player in fresh_pair.players:
        with player.client.stream(f"{MAINTENANCE}/Snapshot", [rpc.SnapshotRequest()]) as stream:
            responses = [stream.receive()]
            while responses[-1].blob and len(responses[-1].blob) != 32:
                responses.append(stream.receive())
            blobs = [response.blob for response in responses]
            left, chunk = sum(map(len, blobs[:-1])), max(map(len, blobs))
            assert chunk <= 32 * 1024
            for response in responses[:-1]:
                left -= len(response.blob)
                assert response.remaining_bytes == left
            with pytest.raises(StreamEnd):
                stream.receive()
            shapes.append(
                (
                    sum(map(len, blobs[:-1])) % 512,
                    responses[-1].remaining_bytes,
                    {response.HasField("header") for response in responses},
                )
            )
            # etcd 3.6 says none until it has marked its file.
            assert {response.version for response in responses} <= {"", "3.6.0"}
    assert shapes[0] == shapes[1]


def check(service: str = "") -> Unary:
    return Unary(f"{HEALTH}/Check", health.HealthCheckRequest(service=service))


def watch_health(service: str = "") -> Streaming:
    return Streaming(f"{HEALTH}/Watch", (Send(health.HealthCheckRequest(service=service)), Take(1)))


OTHERS = (
    Case("health", (check(), check("etcdserverpb.KV"), check("x"), watch_health(), watch_health("x"))),
    Case(
        "what there is not",
        tuple(
            Unary(path, b"")
            for path in (
                *(f"{KV}/Nope", f"{LEASE}/Nope", "/foo.Bar/Nope", "/Nope", "/", "//", "/a/b/c", f"{KV}/", f"{KV}/put"),
                *("/etcdserverpb.Watch/Nope", "/etcdserverpb.kv/Put", "/mvccpb.KV/Put", f"{HEALTH}/Nope"),
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            )
        ),
    ),
    Case(
        "bytes that are no message",
        tuple(
            Unary(path, b"\xff\xff", is_free_text=True)
            for path in (f"{LEASE}/LeaseGrant", f"{MAINTENANCE}/Alarm", f"{CLUSTER}/MemberAdd", f"{HEALTH}/Check")
        ),
    ),
    Case(
        "metadata",
        (
            Unary(f"{KV}/Range", rpc.RangeRequest(key=b"a"), [("client-api-version", "3.6")]),
            Unary(f"{KV}/Range", rpc.RangeRequest(key=b"a"), [("client-api-version", "")]),
            Unary(f"{KV}/Range", rpc.RangeRequest(key=b"a"), [("hasleader", "true")]),
            Unary(f"{KV}/Range", rpc.RangeRequest(key=b"a"), [("hasleader", "x"), ("hasleader", "true")]),
            Unary(f"{KV}/Range", rpc.RangeRequest(key=b"a"), [("token", "nonsense")]),
            Unary(f"{KV}/Range", rpc.RangeRequest(key=b"a"), [("authorization", "Bearer nonsense")]),
            Unary(f"{KV}/Put", rpc.PutRequest(), [("token", "")]),
            Streaming(WATCH, (create(b"a"), Take(1)), [("hasleader", "true"), ("client-api-version", "3.6")]),
        ),
        since=(3, 6, 0),
    ),
    Case(
        "headers",
        (
            *(put(b"h"), get(b"h"), delete(b"h"), txn(put_op(b"h"), get_op(b"h"), delete_op(b"h2")), compact(2)),
            txn(rpc.RequestOp(request_txn=rpc.TxnRequest(success=[get_op(b"h")]))),
            *(grant(600, 1), time_to_live(1), leases(), keep_alive(alive(1), Take(1)), revoke(1)),
            *(status(), alarm(), raise_alarm(0), raise_alarm(NOSPACE), disarm(NOSPACE), hash_kv()),
            maintenance("Hash", rpc.HashRequest()),
            maintenance("Defragment", rpc.DefragmentRequest()),
            *(members(), members(linearizable=True), learner(ONE), own("Update", 2, peerURLs=[TWO]), own("Remove", 2)),
            watching(create(b"h"), Take(1), Do(put(b"h")), Take(1)),
            watching(create(b"h", start_revision=1), Take(2)),
        ),
    ),
)


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_what_is_common_to_all(fresh_pair: Pair, case: Case) -> None:
    judge(fresh_pair, case)
