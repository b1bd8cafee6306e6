"""Calls that have every field of every request and answer, played to a real etcd and to ours: docs/compatibility.md.

What no such call can have is in `REASONS`. `tools/compatibility.py` writes the page from both.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import bcrypt
from google.protobuf.message import Message

from mvccstore.server import AuthOptions
from mvccstore.server.messages import METHODS, election, health, lock, rpc
from tests.oracle.choice import Oracle
from tests.wire.auth_calls import (
    COST,
    READWRITE,
    WRITE,
    auth_status,
    authenticate,
    change_password,
    disable,
    enable,
    grant_permission,
    grant_role,
    revoke_permission,
    revoke_role,
    role_add,
    role_delete,
    role_get,
    role_list,
    showing,
    user_add,
    user_add_without_password,
    user_delete,
    user_get,
    user_list,
)
from tests.wire.calls import (
    HEALTH,
    alarm,
    alive,
    cancel,
    cluster,
    compact,
    create,
    delete,
    delete_op,
    disarm,
    downgrade,
    get,
    get_op,
    grant,
    hash_kv,
    keep_alive,
    leases,
    maintenance,
    members,
    progress,
    put,
    put_op,
    raise_alarm,
    revoke,
    status,
    time_to_live,
    txn,
    watching,
)
from tests.wire.differential import Difference, Do, Operation, Send, Streaming, Take, Unary
from tests.wire.pair import OPTIONS, Pair, running_pair

LOCK, ELECTION = "/v3lockpb.Lock", "/v3electionpb.Election"
PEER, OTHER_PEER = "http://127.0.0.1:1", "http://127.0.0.1:2"
HASHED = base64.b64encode(bcrypt.hashpw(b"new", bcrypt.gensalt(COST))).decode()
LEASE, NOSPACE = 0xABC, 1
LARGE = 700_000
"""Bytes of a value; three of these events are more than a response may have."""


def _compare(**fields: Any) -> rpc.Compare:
    return rpc.Compare(key=b"k/a", **fields)


KV: tuple[Operation, ...] = (
    *(grant(600, LEASE), put(b"k/a", b"1", lease=LEASE), put(b"k/a", b"2", prev_kv=True, ignore_lease=True)),
    *(put(b"k/a", ignore_value=True), put(b"k/b"), put(b"k/c"), put(b"k/d", lease=LEASE)),
    *(get(b"k/", b"k0", limit=2), get(b"k/", b"k0", revision=3), get(b"k/", b"k0", sort_order=2, sort_target=4)),
    *(get(b"k/", b"k0", serializable=True, keys_only=True), get(b"k/", b"k0", count_only=True)),
    get(b"k/", b"k0", min_mod_revision=3, max_mod_revision=5, min_create_revision=1, max_create_revision=9),
    *(txn(put_op(b"k/x"), compare=[_compare(**field)]) for field in ({"version": 3}, {"create_revision": 2})),
    *(txn(put_op(b"k/x"), compare=[_compare(**field)]) for field in ({"mod_revision": 4, "result": 1, "target": 2},)),
    txn(get_op(b"k/a"), compare=[_compare(value=b"2", target=3, result=3), _compare(lease=LEASE, target=4)]),
    txn(
        *(get_op(b"k/a"), put_op(b"k/e", prev_kv=True), delete_op(b"k/c")),
        rpc.RequestOp(request_txn=rpc.TxnRequest(success=[get_op(b"k/b")])),
        compare=[rpc.Compare(key=b"k/", range_end=b"k0", version=0, result=1)],
        failure=[get_op(b"k/z")],
    ),
    txn(failure=[get_op(b"k/z")], compare=[_compare(version=99)]),
    *(delete(b"k/b", prev_kv=True), Unary("/etcdserverpb.KV/DeleteRange", rpc.DeleteRangeRequest(key=b"k/x"))),
    *(hash_kv(3), compact(3), hash_kv()),
    Unary("/etcdserverpb.KV/DeleteRange", rpc.DeleteRangeRequest(key=b"k/d", range_end=b"k/f", prev_kv=True)),
)

LEASES: tuple[Operation, ...] = (
    *(grant(700, LEASE + 1), put(b"l/a", lease=LEASE + 1), time_to_live(LEASE + 1), leases()),
    *(keep_alive(alive(LEASE + 1), Take(1)), revoke(LEASE + 1)),
)

WATCHES: tuple[Operation, ...] = (
    watching(
        create(b"w/", b"w0", watch_id=7, prev_kv=True, progress_notify=True),
        *(Take(1), Do(put(b"w/a")), Take(1), Do(delete(b"w/a")), Take(1), progress(), Take(1)),
        *(cancel(7), Take(1)),
    ),
    watching(create(b"w/", b"w0", filters=[0]), Take(1), Do(put(b"w/a")), Do(delete(b"w/a")), Take(1)),
    watching(create(b"w/", start_revision=2), Take(2)),
    watching(create(b"b", b"a"), Take(1)),
    *(put(b"large", b"v" * LARGE) for _ in range(3)),
    Unary("/etcdserverpb.KV/Range", rpc.RangeRequest(key=b"large", keys_only=True)),
)


_RACES_MAX = 5


def _large_watch(pair: Pair) -> Operation:
    """Return a watch whose first response comes in fragments."""
    (found,) = pair.play(Unary("/etcdserverpb.KV/Range", rpc.RangeRequest(key=b"large", keys_only=True)))
    first = found["ok"]["kvs"][0]["create_revision"]
    return watching(create(b"large", start_revision=first, fragment=True), Take(3))


LOCKS: tuple[Operation, ...] = (
    grant(600, LEASE + 2),
    Unary(f"{LOCK}/Lock", lock.LockRequest(name=b"m", lease=LEASE + 2)),
    Unary(f"{LOCK}/Unlock", lock.UnlockRequest(key=b"m/abe")),
    Unary(f"{ELECTION}/Campaign", election.CampaignRequest(name=b"e", lease=LEASE + 2, value=b"1")),
    Unary(f"{ELECTION}/Leader", election.LeaderRequest(name=b"e")),
    Streaming(f"{ELECTION}/Observe", (Send(election.LeaderRequest(name=b"e")), Take(1))),
)


def _leader_calls(pair: Pair) -> tuple[Operation, ...]:
    """Return calls with what Leader said."""
    (found,) = pair.play(Unary(f"{ELECTION}/Leader", election.LeaderRequest(name=b"e")))
    key = election.LeaderKey(name=b"e", key=b"e/abe", rev=found["ok"]["kv"]["create_revision"], lease=LEASE + 2)
    return (
        Unary(f"{ELECTION}/Proclaim", election.ProclaimRequest(leader=key, value=b"2")),
        Unary(f"{ELECTION}/Resign", election.ResignRequest(leader=key)),
    )


def _own(method: str, number: int, **fields: Any) -> Unary:
    kind = getattr(rpc, f"Member{method}Request")
    return cluster(method, lambda names: kind(ID=names.value("member", number), **fields))


CLUSTER: tuple[Operation, ...] = (
    *(members(), members(linearizable=True), status(), Unary(f"{HEALTH}/Check", health.HealthCheckRequest())),
    *(Unary(f"{HEALTH}/Check", health.HealthCheckRequest(service=name)) for name in ("", "etcdserverpb.Health")),
    *(maintenance("Defragment", rpc.DefragmentRequest()), maintenance("Hash", rpc.HashRequest())),
    maintenance("MoveLeader", lambda names: rpc.MoveLeaderRequest(targetID=names.value("member"))),
    Streaming("/etcdserverpb.Maintenance/Snapshot", (Send(rpc.SnapshotRequest()), Take(1))),
    cluster("Add", rpc.MemberAddRequest(peerURLs=[PEER], isLearner=True)),
    *(members(), _own("Promote", 2), _own("Remove", 2), members(), _own("Update", 1, peerURLs=[OTHER_PEER])),
    *(raise_alarm(NOSPACE), status(), alarm(), disarm(NOSPACE), status()),
)

HEALTH_LIST: tuple[Operation, ...] = (Unary(f"{HEALTH}/List", health.HealthListRequest()),)
DOWNGRADES: tuple[Operation, ...] = (downgrade(0, "3.5.0"), downgrade(1, "3.5.0"), status(), downgrade(2), status())
DOWNGRADES_OF_3_5: tuple[Operation, ...] = (downgrade(0, "3.4.0"), downgrade(2))

AUTH: tuple[Operation, ...] = (
    *(user_add("root", "pw"), user_add_without_password("guest"), user_add("alice", hashedPassword=HASHED)),
    *(role_add("root"), role_add("reader"), grant_role("root", "root"), grant_role("alice", "reader")),
    *(grant_permission("reader", READWRITE, b"a", b"c"), grant_permission("reader", WRITE, b"x"), role_get("reader")),
    *(change_password("alice", "other"), change_password("alice", hashed=HASHED), auth_status(), enable()),
    *(authenticate("root", "pw"), authenticate("alice", "new"), authenticate("alice", "wrong")),
    *(showing(1, operation) for operation in (auth_status(), user_get("alice"), user_list(), role_list())),
    *(showing(2, operation) for operation in (put(b"b"), put(b"d"), get(b"a", b"c"), user_list())),
    *(showing(1, operation) for operation in (revoke_permission("reader", b"a", b"c"), revoke_role("alice", "reader"))),
    *(showing(1, operation) for operation in (role_delete("reader"), user_delete("alice"), disable())),
)

SECOND_MEMBER = "needs a second member that runs: this server is one member"
UNSET = "neither sets it"
LATE = "etcd sets it some seconds after it has begun to answer, ours at once"
NEWER = "etcd has it since 3.7, and no 3.6 to compare with does; ours offers it as 3.6"

REASONS: Mapping[str, str] = {
    "grpc.health.v1.HealthListEntry.key": "empty: etcd tells of no service by itself",
    "etcdserverpb.RangeStreamResponse.range_response": NEWER,
    "etcdserverpb.LeaseGrantResponse.error": UNSET,
    "etcdserverpb.DefragmentResponse.header": UNSET,
    "etcdserverpb.MoveLeaderResponse.header": UNSET,
    "etcdserverpb.SnapshotResponse.header": UNSET,
    "etcdserverpb.StatusResponse.isLearner": SECOND_MEMBER,
    "etcdserverpb.StatusResponse.storageVersion": LATE,
    "etcdserverpb.SnapshotResponse.version": LATE,
    "etcdserverpb.MemberPromoteResponse.header": SECOND_MEMBER,
    "etcdserverpb.MemberPromoteResponse.members": SECOND_MEMBER,
}
"""Fields that no call of the table has, and why."""


def fields_of(message: Message) -> Iterator[str]:
    """Give the fields that are set in a message, and in those that are in it."""
    for field, value in message.ListFields():
        yield f"{message.DESCRIPTOR.full_name}.{field.name}"
        if field.message_type is not None:
            for member in value if field.is_repeated else [value]:
                yield from fields_of(member)


def fields_of_form(form: Any, descriptor: Any) -> Iterator[str]:
    """Give the fields of an answer in the form of `mvccstore.testing.normal`."""
    for name, value in form.items():
        field = descriptor.fields_by_name[name]
        yield f"{descriptor.full_name}.{name}"
        if field.message_type is not None:
            for member in value if isinstance(value, list) else [value]:
                yield from fields_of_form(member, field.message_type)


def play(folder: Path, oracle: Oracle) -> set[str]:
    """Play all calls to an etcd and to ours as its version; return the fields that both had alike.

    Raises:
        Difference: One was answered differently.
    """
    is_new = oracle.version >= (3, 6, 0)
    version = ".".join(map(str, oracle.version[:2]))
    options = replace(OPTIONS, auth=AuthOptions(bcrypt_cost=COST), version=version)
    arguments = (f"--bcrypt-cost={COST}",)
    with running_pair(folder, engine="memory", arguments=arguments, options=options, oracle=oracle) as pair:
        found: set[str] = set()
        for operations in (KV, LEASES, WATCHES):
            found |= _played(pair, operations)
        found |= _large_watch_played(pair)
        found |= _played(pair, LOCKS)
        found |= _played(pair, _leader_calls(pair))
        for operations in (CLUSTER, DOWNGRADES if is_new else DOWNGRADES_OF_3_5, HEALTH_LIST if is_new else (), AUTH):
            found |= _played(pair, operations)
        return found


def _large_watch_played(pair: Pair) -> set[str]:
    # What etcd has put together before it says `created` it sends in one piece: then it is asked again.
    for _ in range(_RACES_MAX - 1):
        with suppress(Difference):
            return _played(pair, (_large_watch(pair),))
    return _played(pair, (_large_watch(pair),))


def _played(pair: Pair, operations: Iterable[Operation]) -> set[str]:
    found: set[str] = set()
    for operation in operations:
        (answer,) = pair.play(operation)
        found |= set(_requested(pair, operation)) | set(_answered(operation, answer))
    return found


def _requested(pair: Pair, operation: Operation) -> Iterator[str]:
    """Give the fields of the requests of an operation that was played."""
    player = pair.players[0]
    match operation:
        case Unary(_, request):
            message = player.request(request)
            assert isinstance(message, Message)
            yield from fields_of(message)
        case Streaming(_, steps):
            for step in steps:
                if isinstance(step, Send):
                    message = player.request(step.request)
                    assert isinstance(message, Message)
                    yield from fields_of(message)
                elif isinstance(step, Do):
                    yield from _requested(pair, step.operation)


def _answered(operation: Operation, answer: Any) -> Iterator[str]:
    """Give the fields of the answers to an operation."""
    assert isinstance(operation, Unary | Streaming)
    descriptor = METHODS[operation.method].response.DESCRIPTOR
    if isinstance(operation, Unary):
        yield from fields_of_form(answer.get("ok", {}), descriptor)
        return
    for step, form in zip(operation.steps, answer, strict=True):
        if isinstance(step, Do):
            yield from _answered(step.operation, form)
        elif isinstance(step, Take):
            assert "then" not in form, form
            for part in form.values():
                for response in part:
                    if isinstance(response, dict):
                        yield from fields_of_form(response, descriptor)
