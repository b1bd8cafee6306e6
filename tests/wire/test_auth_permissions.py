"""What users may do with authentication on, RPC by RPC: etcd and ours answer alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mvccstore.server.messages import rpc
from tests.wire.auth_calls import (
    COST,
    ENABLED,
    READ,
    READWRITE,
    ROOT,
    WRITE,
    OperationT,
    as_root,
    authenticate,
    disable,
    enable,
    grant_permission,
    grant_role,
    revoke_role,
    role_add,
    showing,
    showing_text,
    user_add,
    user_delete,
)
from tests.wire.calls import (
    KV,
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
    text,
    time_to_live,
    txn,
    watching,
)
from tests.wire.client import Client, Endpoint, RpcFailure
from tests.wire.differential import (
    Case,
    Do,
    End,
    HalfClose,
    Http,
    Operation,
    Post,
    Send,
    Streaming,
    Take,
    Unary,
)
from tests.wire.etcdctl_kit import running_twins
from tests.wire.pair import NEEDS_ORACLE, Pair

pytestmark = NEEDS_ORACLE


BOB, AMY = 2, 3
"""The numbers of their tokens after `USERS`."""
ROLES = (
    *(role_add("r"), role_add("w"), role_add("s"), user_add("bob", "b"), user_add("amy", "a"), user_add("guest")),
    *(grant_permission("r", READ, b"c", b"e"), grant_permission("w", READWRITE, b"a", b"c")),
    *(
        grant_permission("w", WRITE, b"k"),
        grant_permission("r", READ, b"m"),
        grant_permission("w", READWRITE, b"w", b"\0"),
    ),
    *(grant_permission("s", READWRITE, b"\0", b"\0"), grant_role("bob", "r"), grant_role("bob", "w")),
)
"""Bob reads [a, e), m and [w, ...), and writes [a, c), k and [w, ...); Amy may do nothing."""
DATA = (
    *(grant(600, 1), grant(600, 2), grant(600, 3), grant(600, 4), put(b"a", lease=1), put(b"b", lease=1)),
    *(put(b"c", lease=2), put(b"d"), put(b"k", lease=3), put(b"m"), put(b"n"), put(b"w"), put(b"x", lease=1)),
)
USERS: tuple[Operation, ...] = (*ROLES, *DATA, *ENABLED, authenticate("bob", "b"), authenticate("amy", "a"))


def as_everybody(*operations: OperationT) -> list[OperationT]:
    """Return each operation as nobody, with a bad token, and as Amy, Bob and root."""
    return [
        shown
        for operation in operations
        for shown in (
            operation,
            showing_text("nonsense.1", operation),
            *(showing(number, operation) for number in (AMY, BOB, ROOT)),
        )
    ]


# None that ends before it begins: whether etcd permits that depends on the shape of its tree.
RANGES: Sequence[tuple[bytes, bytes]] = (
    *(
        (key, b"")
        for key in (b"a", b"b", b"bzz", b"c", b"d", b"e", b"k", b"k\0", b"m", b"n", b"w", b"zz", b"\0", b"\xff")
    ),
    *((b"a", end) for end in (b"a", b"b", b"c", b"d", b"e", b"e\0", b"f", b"\0", b"\xff")),
    *((b"b", end) for end in (b"b", b"c", b"e", b"f")),
    *((b"k", end) for end in (b"k", b"k\0", b"l")),
    *((b"m", end) for end in (b"m\0", b"n")),
    *((b"w", end) for end in (b"w", b"x", b"\0", b"\xff")),
    *((b"\0", end) for end in (b"\0", b"a", b"b")),
    *((b"v", end) for end in (b"\0", b"w", b"x")),
    *((b"n", b"n"), (b"xx", b"\0")),
)
NESTED = rpc.RequestOp(request_txn=rpc.TxnRequest(success=[get_op(b"a")], failure=[get_op(b"n")]))
TXNS = (
    *(
        txn(),
        txn(get_op(b"a")),
        txn(get_op(b"n")),
        txn(failure=[get_op(b"n")]),
        txn(get_op(b"a"), failure=[get_op(b"d")]),
    ),
    *(txn(compare=[rpc.Compare(key=b"n")]), txn(compare=[rpc.Compare(key=b"d")]), txn(compare=[rpc.Compare(key=b"k")])),
    *(txn(compare=[rpc.Compare(key=b"d", range_end=b"f")]), txn(compare=[rpc.Compare(key=b"n", result=9)])),
    *(
        txn(compare=[rpc.Compare(key=b"n", target=9)]),
        txn(put_op(b"a")),
        txn(put_op(b"c")),
        txn(failure=[put_op(b"c")]),
    ),
    *(txn(put_op(b"k")), txn(put_op(b"k", prev_kv=True)), txn(put_op(b"a", prev_kv=True)), txn(delete_op(b"zz"))),
    *(txn(delete_op(b"k")), txn(delete_op(b"c")), txn(delete_op(b"y", b"z")), txn(delete_op(b"b", b"d"))),
    txn(rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"k", prev_kv=True))),
    *(
        txn(NESTED),
        txn(failure=[NESTED]),
        txn(put_op(b"a", lease=1)),
        txn(put_op(b"a", lease=2)),
        txn(put_op(b"b", lease=404)),
    ),
    *(txn(get_op(b"")), txn(put_op(b"n", lease=404)), txn(put_op(b"a"), put_op(b"a")), txn(rpc.RequestOp())),
    txn(rpc.RequestOp(request_txn=rpc.TxnRequest(compare=[rpc.Compare(key=b"n")]))),
    txn(rpc.RequestOp(request_txn=rpc.TxnRequest(success=[put_op(b"a", lease=2)]))),
)
STEPS_OF_A_WATCH = (
    create(b"a"),
    create(b"n"),
    create(b"a", b"e"),
    create(b"a", b"f"),
    create(b"", b"\0"),
    create(b"w", b"\0"),
)

PERMISSIONS = (
    Case("ranges that are read", (*USERS, *as_everybody(*(get(key, end) for key, end in RANGES), get(b"")))),
    Case("ranges that are deleted", (*USERS, *as_everybody(*(delete(key, end) for key, end in RANGES), delete(b"")))),
    Case(
        "reading in other ways",
        (
            *USERS,
            *as_everybody(
                *(get(b"a", b"f", count_only=True), get(b"a", b"e", keys_only=True), get(b"a", serializable=True)),
                *(get(b"n", serializable=True), get(b"a", revision=1), get(b"n", revision=99), get(b"a", revision=99)),
                *(get(b"a", sort_order=9), get(b"n", limit=1), get(b"a", b"e", sort_order=2, limit=2)),
                *(delete(b"k", prev_kv=True), delete(b"n", prev_kv=True), delete(b"a", prev_kv=True)),
            ),
        ),
    ),
    Case(
        "puts",
        (
            *USERS,
            *as_everybody(
                *(put(key) for key in (b"a", b"c", b"k", b"m", b"n", b"w", b"zz", b"", b"\0")),
                *(put(b"k", prev_kv=True), put(b"a", prev_kv=True), put(b"n", prev_kv=True)),
                *(put(b"a", lease=lease) for lease in (1, 2, 3, 4, 404)),
                *(put(b"n", lease=404), put(b"a", ignore_value=True, value=b""), put(b"n", b"", ignore_value=True)),
                *(
                    put(b"n", ignore_value=True),
                    put(b"a", lease=1, ignore_lease=True),
                    put(b"n", b"", ignore_lease=True),
                ),
            ),
            *as_root(everything()),
        ),
    ),
    Case("txns", (*USERS, *as_everybody(*TXNS), *as_root(everything()))),
    Case(
        "leases",
        (
            *USERS,
            *as_everybody(
                *(time_to_live(lease) for lease in (1, 2, 3, 4, 404)),
                *(time_to_live(lease, keys=False) for lease in (1, 2, 404)),
                *(leases(), grant(600, 7), grant(9_000_000_001, 8), grant(600, 1)),
                *(keep_alive(alive(lease), Take(1), HalfClose(), End()) for lease in (1, 2, 3, 4, 404)),
                keep_alive(alive(1), alive(404), alive(4), alive(2), HalfClose(), End()),
                keep_alive(HalfClose(), End()),
            ),
            *as_everybody(*(revoke(lease) for lease in (404, 2, 3, 4, 1, 0))),
            *as_root(everything(), leases()),
        ),
    ),
    Case(
        "a lease that a user has to itself",
        (
            *USERS,
            *(showing(AMY, one) for one in (grant(600, 9), time_to_live(9), keep_alive(alive(9), Take(1)), revoke(9))),
            *(showing(BOB, one) for one in (grant(600, 9), put(b"a", lease=9), time_to_live(9), leases())),
            *(showing(AMY, one) for one in (time_to_live(9), time_to_live(9, keys=False), revoke(9), leases())),
            *(showing(BOB, one) for one in (keep_alive(alive(9), Take(1)), revoke(9), get(b"a"))),
        ),
    ),
    Case(
        "watches",
        (
            *USERS,
            *as_everybody(watching(*STEPS_OF_A_WATCH, Take(6)), watching(create(b"n", start_revision=-1), Take(1))),
            *as_everybody(watching(create(b"n", b"a"), create(b"a", b"a"), create(b"n", watch_id=5), Take(3))),
            showing(
                BOB,
                watching(
                    create(b"a"),
                    Take(1),
                    Do(showing(ROOT, put(b"a"))),
                    Take(1),
                    Do(showing(ROOT, put(b"b"))),
                    create(b"m"),
                    Take(1),
                ),
            ),
            showing(
                BOB,
                watching(
                    *(create(b"a", start_revision=1), Take(2), Do(showing(ROOT, revoke_role("bob", "w")))),
                    *(create(b"a"), Take(1), Do(showing(ROOT, put(b"a"))), Take(1)),
                    *(
                        Do(showing(ROOT, user_delete("bob"))),
                        create(b"a"),
                        Take(1),
                        Do(showing(ROOT, put(b"a"))),
                        Take(1),
                    ),
                    *(Do(showing(ROOT, disable())), create(b"a"), Take(1), Do(put(b"a")), Take(2)),
                ),
            ),
        ),
    ),
    Case(
        "maintenance",
        (
            *USERS,
            *as_everybody(
                *(
                    status(),
                    members(),
                    members(linearizable=True),
                    alarm(),
                    alarm(0, 1),
                    raise_alarm(1),
                    disarm(1),
                    alarm(1),
                ),
                *(
                    hash_kv(),
                    maintenance("Hash", rpc.HashRequest()),
                    maintenance("Defragment", rpc.DefragmentRequest()),
                ),
                *(maintenance("MoveLeader", rpc.MoveLeaderRequest(targetID=1)), downgrade(0, "3.5"), downgrade(0, "x")),
                *(downgrade(2), downgrade(9), compact(99), compact(-1), compact(2), compact(2)),
                *(cluster("Add", rpc.MemberAddRequest(peerURLs=urls)) for urls in ([], ["x"])),
                cluster("Remove", rpc.MemberRemoveRequest(ID=404)),
                cluster("Update", rpc.MemberUpdateRequest(ID=404, peerURLs=["x"])),
                cluster("Promote", rpc.MemberPromoteRequest(ID=404)),
            ),
        ),
    ),
    Case(
        "what needs no user",
        (
            *USERS,
            *(
                Unary("/grpc.health.v1.Health/Check", b""),
                *(Http("GET", path) for path in ("/health", "/version", "/livez", "/readyz")),
            ),
            authenticate("bob", "b"),
        ),
    ),
    Case(
        "a refusal changes nothing, and comes after what is malformed and before what is not there",
        (
            *USERS,
            *(raise_alarm(2), *as_root(raise_alarm(2))),
            *as_everybody(
                *(
                    put(b"n"),
                    delete(b"n"),
                    txn(put_op(b"n")),
                    txn(get_op(b"n")),
                    compact(2),
                    grant(600, 77),
                    revoke(1),
                    put(b""),
                )
            ),
            *as_root(disarm(2), raise_alarm(1)),
            *as_everybody(
                *(put(b"n"), delete(b"q"), txn(put_op(b"n")), txn(get_op(b"n")), compact(99), grant(600, 78), put(b""))
            ),
            *as_root(disarm(1), everything(), leases()),
        ),
    ),
    Case(
        "through JSON",
        (
            *USERS,
            *as_everybody(
                Post("/v3/kv/range", {"key": text(b"a")}),
                Post("/v3/kv/range", {"key": text(b"n")}),
                Post("/v3/kv/range", {"key": text(b"a"), "range_end": text(b"f")}),
                Post("/v3/kv/put", {"key": text(b"a"), "value": text(b"2")}),
                Post("/v3/kv/put", {"key": text(b"c"), "value": text(b"2")}),
                Post("/v3/kv/deleterange", {"key": text(b"d")}),
                Post("/v3/kv/txn", {"success": [{"requestPut": {"key": text(b"d")}}]}),
                Post("/v3/kv/compaction", {"revision": "2"}),
                Post("/v3/lease/grant", {"ID": 55, "TTL": 600}),
                Post("/v3/lease/revoke", {"ID": 2}),
                Post("/v3/lease/timetolive", {"ID": 2, "keys": True}),
                Post("/v3/lease/leases"),
                *(Post(f"/v3/maintenance/{path}") for path in ("status", "alarm", "hash", "defragment")),
                Post("/v3/cluster/member/list"),
            ),
        ),
    ),
    Case(
        "roles that come and go are seen at once",
        (
            *USERS,
            *(
                showing(AMY, get(b"n")),
                *as_root(grant_role("amy", "s")),
                showing(AMY, get(b"n")),
                showing(AMY, put(b"n")),
            ),
            *(
                *as_root(role_add("t"), revoke_role("amy", "s")),
                showing(AMY, get(b"n")),
                *as_root(grant_role("amy", "t")),
            ),
            *(showing(AMY, get(b"n")), *as_root(grant_permission("t", READ, b"n", b"p")), showing(AMY, get(b"n"))),
            *(showing(AMY, put(b"n")), *as_root(grant_permission("t", WRITE, b"n", b"p")), showing(AMY, put(b"n"))),
            *(
                showing(AMY, get(b"n")),
                *as_root(grant_role("amy", "root")),
                showing(AMY, everything()),
                showing(AMY, compact(3)),
            ),
            *(*as_root(disable()), get(b"n"), enable(), showing(AMY, get(b"n")), get(b"n")),
        ),
    ),
)


@pytest.mark.parametrize("case", PERMISSIONS, ids=str)
def test_permissions(auth_pair: Pair, case: Case) -> None:
    judge(auth_pair, case)


@pytest.mark.parametrize("who", [None, AMY, BOB])
def test_a_snapshot_is_for_root(auth_pair: Pair, who: int | None) -> None:
    auth_pair.play(*USERS)
    streaming = Streaming("/etcdserverpb.Maintenance/Snapshot", (Send(rpc.SnapshotRequest()), End()))
    ((_, ended),) = auth_pair.play(streaming if who is None else showing(who, streaming))
    assert ended["end"]["error"]["code"] == ("INVALID_ARGUMENT" if who is None else "PERMISSION_DENIED")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v3/watch", {"create_request": {"key": text(b"n")}}),
        ("/v3/lease/keepalive", {"ID": 2}),
        ("/v3/maintenance/snapshot", {}),
    ],
)
def test_streams_through_json(auth_pair: Pair, path: str, body: dict[str, object]) -> None:
    auth_pair.play(*USERS)
    said: list[list[object]] = []
    for player in auth_pair.players:
        said.append([])
        for token in (None, "no.1", player.names.value("token", AMY)):
            headers = {} if token is None else {"Authorization": token}
            with player.client.lines(path, body, headers) as lines:
                found = lines.receive()
                error, result = found.get("error", {}), found.get("result", {})
                said[-1].append((lines.status, error.get("code"), error.get("message"), result.get("cancel_reason")))
    assert said[0] == said[1]
    assert "permission denied" in str(said[0][2])


def test_the_name_of_the_user_counts_for_the_size_of_a_request(tmp_path: Path) -> None:
    name = "n" * 2000
    found = []
    with running_twins(tmp_path, bcrypt_cost=COST) as twins:  # of the same member id, which counts, too
        for target in (twins.theirs.endpoint, twins.ours.endpoint):
            host, _, port = target.rpartition(":")
            with Client(Endpoint(host, int(port))) as client:
                for operation in (*ENABLED[:2], user_add(name, "b"), grant_role(name, "root"), enable()):
                    client.unary(operation.method, operation.request)  # type: ignore[union-attr,arg-type]
                operation = authenticate(name, "b")
                token = client.unary(operation.method, operation.request).token  # type: ignore[arg-type]
                found.append(_largest_value(client, token))
    assert found[0] == found[1]
    assert 1_572_864 - 2_100 < found[0] < 1_572_864 - 2_000


def _largest_value(client: Client, token: str) -> int:
    """Return how many bytes a value may have."""
    fits, does_not = 1_572_864 - 2_100, 1_572_864
    while does_not - fits > 1:
        size = (fits + does_not) // 2
        try:
            client.unary(f"{KV}/Put", rpc.PutRequest(key=b"k", value=bytes(size)), [("token", token)])
        except RpcFailure:
            does_not = size
        else:
            fits = size
    return fits
