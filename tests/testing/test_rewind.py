"""A live server goes back: clients stay, watches are cut, all else is as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mvccstore
from mvccstore import StoreError
from mvccstore.server.messages import rpc
from mvccstore.testing import etcd
from mvccstore.testing.etcd_server import Etcd
from tests.wire.client import Client, Endpoint, RpcFailure

PUT, RANGE, WATCH = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.Watch/Watch"
ALARM, MEMBERS = "/etcdserverpb.Maintenance/Alarm", "/etcdserverpb.Cluster/MemberList"


def client_of(server: Etcd) -> Client:
    return Client(Endpoint(server.host, server.port))


def put(client: Client, key: bytes, value: bytes = b"") -> int:
    return int(client.unary(PUT, rpc.PutRequest(key=key, value=value)).header.revision)


def get(client: Client, key: bytes) -> Any:
    return client.unary(RANGE, rpc.RangeRequest(key=key))


def create(key: bytes, start_revision: int = 0, watch_id: int = 0) -> rpc.WatchRequest:
    return rpc.WatchRequest(
        create_request=rpc.WatchCreateRequest(key=key, start_revision=start_revision, watch_id=watch_id)
    )


def test_clients_stay_connected_and_see_the_state_of_the_mark() -> None:
    with etcd(contents={"a": "0"}) as server, client_of(server) as client:
        begun = server.mark()
        for _ in range(3):
            assert put(client, b"a", b"1") == 3
            assert put(client, b"b", b"1") == 4
            server.rewind(begun)
            found = get(client, b"a")
            assert (found.header.revision, found.kvs[0].value, found.kvs[0].version) == (2, b"0", 1)
            assert get(client, b"b").count == 0
        assert server.call(lambda: server.server.connections) == 1


def test_watches_are_cancelled_as_by_a_compaction_and_their_streams_go_on() -> None:
    with etcd() as server, client_of(server) as client, client.stream(WATCH) as stream:
        begun = server.mark()
        for watch_id, start in ((1, 0), (2, 2), (3, 1_000)):
            stream.send(create(b"a", start, watch_id))
            assert stream.receive().created
        put(client, b"a", b"1")
        assert [stream.receive().events[0].kv.mod_revision for _ in range(2)] == [2, 2]
        server.rewind(begun)
        cut = [stream.receive() for _ in range(3)]
        assert sorted(one.watch_id for one in cut) == [1, 2, 3]
        assert {(one.canceled, one.compact_revision) for one in cut} == {(True, 2)}
        stream.send(create(b"a", 2, watch_id=9))
        assert stream.receive().created
        put(client, b"a", b"again")
        response = stream.receive()
        assert (response.watch_id, response.events[0].kv.value, response.events[0].kv.version) == (9, b"again", 1)


def test_alarms_members_and_leases_are_those_of_the_mark() -> None:
    with etcd(clock="virtual") as server, client_of(server) as client:
        client.unary("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest(ID=7, TTL=60))
        before = client.unary(MEMBERS, rpc.MemberListRequest()).members
        begun = server.mark()
        member = before[0].ID
        client.unary(ALARM, rpc.AlarmRequest(action=1, memberID=member, alarm=1))
        with pytest.raises(RpcFailure, match="database space exceeded"):
            put(client, b"a")
        client.unary("/etcdserverpb.Cluster/MemberAdd", rpc.MemberAddRequest(peerURLs=["http://x:1"], isLearner=True))
        client.unary("/etcdserverpb.Cluster/MemberUpdate", rpc.MemberUpdateRequest(ID=member, peerURLs=["http://y:1"]))
        server.clock.advance(61)
        server.rewind(begun)
        assert put(client, b"a") == 2
        assert client.unary(MEMBERS, rpc.MemberListRequest()).members == before
        left = client.unary("/etcdserverpb.Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=7))
        assert (left.TTL, left.grantedTTL) == (60, 60)


def test_the_raft_index_never_goes_back() -> None:
    status = ("/etcdserverpb.Maintenance/Status", rpc.StatusRequest())
    with etcd() as server, client_of(server) as client:
        begun = server.mark()
        for _ in range(10):
            put(client, b"a")
        before = client.unary(*status).raftIndex
        server.rewind(begun)
        assert client.unary(*status).raftIndex >= before


def test_reset_brings_back_the_first_contents_and_forgets_the_calls() -> None:
    with etcd(contents={"a": "1"}) as server, client_of(server) as client:
        first = server.snapshot()
        for _ in range(2):
            put(client, b"b")
            assert len(server.calls) == 1
            server.reset()
            assert server.snapshot() == first
            assert len(server.calls) == 0


def test_only_a_store_in_memory_goes_back(tmp_path: Path) -> None:
    with mvccstore.open(tmp_path / "store.db") as store, etcd(store=store) as server:
        for what in (server.reset, server.mark):
            with pytest.raises(StoreError, match="only a store in memory can"):
                what()
    with etcd() as one, etcd() as other, pytest.raises(StoreError, match="of another store"):
        one.rewind(other.mark())
