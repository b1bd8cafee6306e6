"""What a server finds again when it is started anew on its store: alarms, members, ids, the term, and room after NOSPACE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from mvccstore import Store
from mvccstore.server import ServerOptions, serve
from mvccstore.server.auth.gate import AuthOptions
from mvccstore.server.member import Identity
from mvccstore.server.messages import rpc
from mvccstore.server.persona import V3_6
from tests.wire.client import Client, Endpoint, RpcFailure

CLUSTER, KV, MAINTENANCE = "/etcdserverpb.Cluster", "/etcdserverpb.KV", "/etcdserverpb.Maintenance"
NOSPACE, CORRUPT = 1, 2
GET, ACTIVATE, DEACTIVATE = 0, 1, 2
OPTIONS = ServerOptions(grace_seconds=0.0, auth=AuthOptions(bcrypt_cost=4))
Open = Callable[..., Store]


class Restarted:
    """One store, and a server on it that is started anew whenever somebody asks for it."""

    def __init__(self, open_store: Open, engine: str) -> None:
        self._open_store = open_store
        self._engine = engine
        self.store = open_store(engine=engine)

    @contextmanager
    def run(self, options: ServerOptions = OPTIONS) -> Iterator[Client]:
        """Start a server, on the store as it is on disk."""
        if self._engine != "memory":
            self.store.close()
            self.store = self._open_store(engine=self._engine)
        with (
            serve(self.store, options=options) as server,
            Client(Endpoint(server.host, server.port)) as client,
        ):
            yield client


@pytest.fixture
def restarted(open_store: Open, engine: str) -> Restarted:
    return Restarted(open_store, engine)


def put(client: Client, key: bytes, value: bytes = b"1") -> int:
    return int(client.unary(f"{KV}/Put", rpc.PutRequest(key=key, value=value)).header.revision)


def status(client: Client) -> Any:
    return client.unary(f"{MAINTENANCE}/Status", rpc.StatusRequest())


def alarm(client: Client, action: int = GET, kind: int = 0, member: int = 0) -> list[tuple[int, int]]:
    request = rpc.AlarmRequest(action=action, alarm=kind, memberID=member)
    return [(found.memberID, found.alarm) for found in client.unary(f"{MAINTENANCE}/Alarm", request).alarms]


def members(client: Client) -> list[Any]:
    return list(client.unary(f"{CLUSTER}/MemberList", rpc.MemberListRequest()).members)


def test_the_term_grows_and_the_index_does_not_go_back(restarted: Restarted) -> None:
    seen = []
    for _ in range(4):
        with restarted.run() as client:
            put(client, b"k")
            found = status(client)
            assert found.raftAppliedIndex == found.raftIndex
            seen.append((found.raftTerm, found.raftIndex, found.header.revision))
    assert [term for term, _, _ in seen] == [2, 3, 4, 5]
    assert [revision for _, _, revision in seen] == [2, 3, 4, 5]
    indexes = [index for _, index, _ in seen]
    assert indexes == sorted(set(indexes))


def test_ids_stay_those_of_the_first_start_and_follow_what_the_server_is_told(restarted: Restarted) -> None:
    seen = []
    for _ in range(3):
        with restarted.run() as client:
            found = status(client)
            assert found.leader == found.header.member_id
            (own,) = members(client)
            assert found.leader == own.ID
            seen.append((found.header.cluster_id, found.leader, own.name, tuple(own.peerURLs)))
    assert set(seen) == {(0xCDF818194E3A8C32, 0x8E9E05C52164694D, "default", ("http://localhost:2380",))}
    other = replace(OPTIONS, identity=Identity("m", ("http://h:1",), token="other"))
    with restarted.run(other) as client:
        assert status(client).leader == other.identity.member_id
        assert [member.name for member in members(client)] == ["m"]


def test_alarms_hold_until_they_are_disarmed(restarted: Restarted) -> None:
    with restarted.run() as client:
        own = status(client).leader
        alarm(client, ACTIVATE, NOSPACE, own)
        alarm(client, ACTIVATE, CORRUPT, 7)
    with restarted.run() as client:
        assert sorted(alarm(client)) == sorted([(own, NOSPACE), (7, CORRUPT)])
        assert sorted(status(client).errors) == sorted([f"memberID:{own} alarm:NOSPACE ", "memberID:7 alarm:CORRUPT "])
        with pytest.raises(RpcFailure, match="DATA_LOSS: etcdserver: corrupt cluster"):
            put(client, b"k")
        assert alarm(client, DEACTIVATE, CORRUPT, 7) == [(7, CORRUPT)]
    with restarted.run() as client:
        assert alarm(client) == [(own, NOSPACE)]
        with pytest.raises(RpcFailure, match="RESOURCE_EXHAUSTED: etcdserver: mvcc: database space exceeded"):
            put(client, b"k")
        assert alarm(client, DEACTIVATE, NOSPACE, own) == [(own, NOSPACE)]
    with restarted.run() as client:
        assert alarm(client) == []
        assert put(client, b"k") == 2


def test_members_that_were_added_changed_and_removed_stay_so(restarted: Restarted) -> None:
    with restarted.run() as client:
        own = status(client).leader
        request = rpc.MemberAddRequest(peerURLs=["http://a:1"], isLearner=True)
        added = client.unary(f"{CLUSTER}/MemberAdd", request).member.ID
        client.unary(f"{CLUSTER}/MemberUpdate", rpc.MemberUpdateRequest(ID=own, peerURLs=["http://b:1"]))
    with restarted.run() as client:
        found = {member.ID: (list(member.peerURLs), member.isLearner) for member in members(client)}
        assert found == {own: (["http://b:1"], False), added: (["http://a:1"], True)}
        client.unary(f"{CLUSTER}/MemberUpdate", rpc.MemberUpdateRequest(ID=added, peerURLs=["http://c:1"]))
        client.unary(f"{CLUSTER}/MemberRemove", rpc.MemberRemoveRequest(ID=added))
    with restarted.run() as client:
        (left,) = members(client)
        assert (left.ID, list(left.peerURLs), len(left.clientURLs)) == (own, ["http://b:1"], 1)
        assert left.clientURLs[0] == f"http://{client.endpoint.target}"
        with pytest.raises(RpcFailure, match="etcdserver: member not found"):
            client.unary(f"{CLUSTER}/MemberRemove", rpc.MemberRemoveRequest(ID=added))


def test_a_downgrade_stays_under_way(restarted: Restarted) -> None:
    version = "3.5"
    assert V3_6.release.startswith("3.6.")

    def downgrade(client: Client, action: int) -> None:
        client.unary(f"{MAINTENANCE}/Downgrade", rpc.DowngradeRequest(action=action, version=version))

    with restarted.run() as client:
        downgrade(client, 1)
    with restarted.run() as client:
        found = status(client).downgradeInfo
        assert (found.enabled, found.targetVersion) == (True, "3.5.0")
        with pytest.raises(RpcFailure, match="cluster has a downgrade job in progress"):
            downgrade(client, 1)
        downgrade(client, 2)
    with restarted.run() as client:
        assert not status(client).downgradeInfo.enabled
        downgrade(client, 1)


def test_users_and_whether_they_are_asked_stay(restarted: Restarted) -> None:
    auth = "/etcdserverpb.Auth"
    with restarted.run() as client:
        client.unary(f"{auth}/UserAdd", rpc.AuthUserAddRequest(name="root", password="pw"))
        client.unary(f"{auth}/RoleAdd", rpc.AuthRoleAddRequest(name="root"))
        client.unary(f"{auth}/UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root"))
        client.unary(f"{auth}/AuthEnable", rpc.AuthEnableRequest())
        request = rpc.AuthenticateRequest(name="root", password="pw")
        old = client.unary(f"{auth}/Authenticate", request).token
    with restarted.run() as client:
        with pytest.raises(RpcFailure, match="etcdserver: user name is empty"):
            put(client, b"k")
        with pytest.raises(RpcFailure, match="etcdserver: invalid auth token"):
            client.unary(f"{auth}/UserList", rpc.AuthUserListRequest(), metadata=[("token", old)])
        token = client.unary(f"{auth}/Authenticate", request).token
        found = client.unary(f"{auth}/UserList", rpc.AuthUserListRequest(), metadata=[("token", token)])
        assert list(found.users) == ["root"]


QUOTA_BYTES = 1 << 20
FULL = replace(OPTIONS, quota_bytes=QUOTA_BYTES)
VALUE = b"x" * 10_000


def fill(client: Client) -> int:
    """Write until there is no room; return how many keys have gone in."""
    for number in range(QUOTA_BYTES // len(VALUE) * 2):
        try:
            put(client, b"%d" % (number % 10), VALUE)
        except RpcFailure as failure:
            if failure.message != "etcdserver: mvcc: database space exceeded":
                raise
            return number
    pytest.fail("the quota was never met")


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_a_full_store_stays_full_until_room_is_made_and_the_alarm_is_disarmed(restarted: Restarted) -> None:
    with restarted.run(FULL) as client:
        assert fill(client) > 10
        own = status(client).leader
        assert alarm(client) == [(own, NOSPACE)]  # who was refused finds it
    with restarted.run(FULL) as client:
        with pytest.raises(RpcFailure, match="database space exceeded"):
            put(client, b"k")
        with pytest.raises(RpcFailure, match="database space exceeded"):
            client.unary("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest(TTL=60))
        # What makes room, and what reads, is let through.
        revision = client.unary(f"{KV}/DeleteRange", rpc.DeleteRangeRequest(key=b"0", range_end=b":")).header.revision
        client.unary(f"{KV}/Compact", rpc.CompactionRequest(revision=revision, physical=True))
        # Disarmed too early it is raised again.
        assert alarm(client, DEACTIVATE, NOSPACE, own) == [(own, NOSPACE)]
        with pytest.raises(RpcFailure, match="database space exceeded"):
            put(client, b"k", VALUE * 20)
        assert alarm(client) == [(own, NOSPACE)]
        client.unary(f"{MAINTENANCE}/Defragment", rpc.DefragmentRequest())
        with pytest.raises(RpcFailure, match="database space exceeded"):
            put(client, b"k")
    with restarted.run(FULL) as client:
        assert status(client).dbSize < QUOTA_BYTES // 2
        assert alarm(client, DEACTIVATE, NOSPACE, own) == [(own, NOSPACE)]
        assert put(client, b"k", VALUE) == revision + 1
    with restarted.run(FULL) as client:
        assert alarm(client) == []
        assert put(client, b"k") == revision + 2
    with restarted.run(replace(FULL, quota_bytes=0)) as client:
        for number in range(200):
            put(client, b"%d" % number, VALUE)
    with restarted.run(FULL) as client, pytest.raises(RpcFailure, match="database space exceeded"):
        put(client, b"k")
