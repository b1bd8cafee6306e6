"""Faults: each befalls what it is for, as often as it says, and leaves the rest alone."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mvccstore import LeaseNotFoundError
from mvccstore.server import ServerOptions
from mvccstore.server.auth.gate import AuthOptions
from mvccstore.server.messages import rpc
from mvccstore.server.transport.status import Code
from mvccstore.testing import etcd
from mvccstore.testing.etcd_server import Etcd
from tests.wire.client import Client, Endpoint, RpcFailure

KV, WATCH = "/etcdserverpb.KV", "/etcdserverpb.Watch/Watch"


def put(client: Client, key: bytes, value: bytes = b"") -> Any:
    return client.unary(f"{KV}/Put", rpc.PutRequest(key=key, value=value))


def get(client: Client, key: bytes, **options: Any) -> Any:
    return client.unary(f"{KV}/Range", rpc.RangeRequest(key=key, **options))


def create(key: bytes, watch_id: int = 0) -> rpc.WatchRequest:
    return rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key, watch_id=watch_id))


def test_the_next_calls_fail_and_are_not_carried_out(server: Etcd, client: Client) -> None:
    fault = server.faults.fail("Put", "unavailable", "gone", times=2)
    for _ in range(2):
        with pytest.raises(RpcFailure) as found:
            put(client, b"a")
        assert (found.value.code, found.value.message) == ("UNAVAILABLE", "gone")
    assert put(client, b"a").header.revision == 2
    assert (fault.count, fault.is_over, server.faults.active) == (2, True, [])
    assert [call.fault for call in server.calls("Put")] == ["fail before", "fail before", ""]


def test_after_they_took_effect_once(server: Etcd, client: Client) -> None:
    with server.faults.fail("KV", Code.DEADLINE_EXCEEDED, when="after", times=1), pytest.raises(RpcFailure):
        put(client, b"a", b"1")
    found = get(client, b"a").kvs[0]
    assert (found.value, found.version) == (b"1", 1)


def test_a_block_ends_it_and_others_are_left_alone(server: Etcd, client: Client) -> None:
    with server.faults.fail("/etcdserverpb.KV/Put") as fault:
        assert get(client, b"a").count == 0
        with pytest.raises(RpcFailure):
            put(client, b"a")
    put(client, b"a")
    assert fault.count == 1
    with server.faults.fail(), pytest.raises(RpcFailure):
        get(client, b"a")
    server.faults.fail("Range")
    server.faults.clear()
    assert get(client, b"a").count == 1


def test_streams_fail_too(server: Etcd, client: Client) -> None:
    with server.faults.fail("Watch", times=1), client.stream(WATCH) as stream:
        stream.send(create(b"a"))
        with pytest.raises(RpcFailure, match="timed out"):
            stream.receive()
    with client.stream(WATCH) as stream:
        stream.send(create(b"a"))
        assert stream.receive().created


def test_late_calls_are_carried_out_later(server: Etcd, client: Client) -> None:
    server.faults.delay("Put", 0.01, times=1)
    assert put(client, b"a").header.revision == 2
    assert server.calls("Put")[0].fault == "delay"


def test_without_a_leader_only_serializable_reads_go_on(server: Etcd, client: Client) -> None:
    with server.faults.no_leader():
        for call in (lambda: put(client, b"a"), lambda: get(client, b"a")):
            with pytest.raises(RpcFailure, match="etcdserver: no leader"):
                call()
        assert get(client, b"a", serializable=True).count == 0
        client.unary("/etcdserverpb.Maintenance/Status", rpc.StatusRequest())
    with server.faults.leader_changed(times=1), pytest.raises(RpcFailure, match="etcdserver: leader changed"):
        put(client, b"a")
    put(client, b"a")


def test_alarms_last_as_long_as_the_fault(server: Etcd, client: Client) -> None:
    with server.faults.no_space(), pytest.raises(RpcFailure, match="database space exceeded"):
        put(client, b"a")
    with server.faults.corrupt(), pytest.raises(RpcFailure, match="corrupt cluster"):
        client.unary(f"{KV}/DeleteRange", rpc.DeleteRangeRequest(key=b"a"))
    put(client, b"a")
    assert server.store.attributes("etcd/alarm/") == {}


def test_refused_connections_are_cut_until_it_ends(server: Etcd) -> None:
    with (
        server.faults.refuse_connections(),
        Client(Endpoint(server.host, server.port)) as client,
        pytest.raises((ConnectionError, OSError)),
    ):
        client.request("GET", "/version")
    with Client(Endpoint(server.host, server.port)) as client:
        assert client.request("GET", "/version").status == 200


def test_stalled_watches_are_sent_everything_in_order_afterwards(server: Etcd, client: Client) -> None:
    with client.stream(WATCH) as stream:
        stream.send(create(b"a"))
        assert stream.receive().created
        fault = server.faults.stall_watches()
        for number in range(5):
            put(client, b"a", b"%d" % number)
        server.settle()
        assert stream.pending() == []
        fault.end()
        values: list[bytes] = []
        while len(values) < 5:
            values += [event.kv.value for event in stream.receive().events]
        assert values == [b"0", b"1", b"2", b"3", b"4"]
        put(client, b"a", b"5")
        assert stream.receive().events[0].kv.value == b"5"


def test_cancelled_watches_are_told_why_and_their_stream_goes_on(server: Etcd, client: Client) -> None:
    with client.stream(WATCH) as stream:
        for watch_id in (1, 2):
            stream.send(create(b"a", watch_id))
            assert stream.receive().created
        assert server.faults.cancel_watches("as told", compact_revision=7) == 2
        told = [stream.receive() for _ in range(2)]
        assert {(one.canceled, one.cancel_reason, one.compact_revision) for one in told} == {(True, "as told", 7)}
        stream.send(create(b"a", 1))
        assert stream.receive().created
        put(client, b"a", b"1")
        assert stream.receive().watch_id == 1
        assert server.faults.cancel_watches() == 1


@pytest.mark.parametrize(("when", "is_there"), [("before", False), ("after", True)])
def test_the_connection_of_a_call_is_cut_and_of_no_other(server: Etcd, when: Any, is_there: bool) -> None:
    endpoint = Endpoint(server.host, server.port)
    with Client(endpoint) as one, Client(endpoint) as other, other.stream(WATCH) as stream:
        stream.send(create(b"a"))
        assert stream.receive().created
        get(one, b"a")
        fault = server.faults.drop("Put", times=1, when=when)
        with pytest.raises(RpcFailure) as cut:
            put(one, b"a")
        assert cut.value.code == "UNAVAILABLE"
        assert (fault.count, fault.is_over, server.store.get(b"a") is not None) == (1, True, is_there)
        (call,) = server.calls("Put")
        assert (call.fault, call.code, call.message) == (f"drop {when}", Code.CANCELLED, "the connection was dropped")
        put(other, b"a", b"1")  # whose connection is still that of the watch
        while stream.receive().events[-1].kv.value != b"1":
            pass
    with Client(endpoint) as again:  # the first one may yet have to find out
        assert put(again, b"a").header.revision == server.store.revision


@pytest.mark.parametrize("when", ["before", "after"])
def test_connections_of_json_are_cut_too(server: Etcd, client: Client, when: Any) -> None:
    with server.faults.drop("KV", when=when) as fault, pytest.raises((ConnectionError, OSError)):
        client.post("/v3/kv/put", {"key": "aw=="})
    assert fault.count == 1
    assert client.post("/v3/kv/put", {"key": "aw=="}).status == 200
    assert server.store.revision == (3 if when == "after" else 2)


def test_streams_are_cut_as_they_begin(server: Etcd, client: Client) -> None:
    with server.faults.drop("Watch", times=1), client.stream(WATCH) as stream:
        stream.send(create(b"a"))
        with pytest.raises(RpcFailure) as cut:
            stream.receive()
    assert cut.value.code == "UNAVAILABLE"
    with Client(Endpoint(server.host, server.port)) as again, again.stream(WATCH) as stream:
        stream.send(create(b"a"))
        assert stream.receive().created


LEASE = "/etcdserverpb.Lease"


def test_stalled_keep_alives_let_leases_end() -> None:
    with (
        etcd(clock="virtual") as server,
        Client(Endpoint(server.host, server.port)) as client,
        client.stream(f"{LEASE}/LeaseKeepAlive") as alive,
    ):
        for number in (1, 2):
            client.unary(f"{LEASE}/LeaseGrant", rpc.LeaseGrantRequest(ID=number, TTL=10 * number))
        alive.send(rpc.LeaseKeepAliveRequest(ID=1))
        assert alive.receive().TTL == 10
        fault = server.faults.stall_keep_alives()
        server.clock.advance(6)
        with client.stream(f"{LEASE}/LeaseKeepAlive") as other:
            alive.send(rpc.LeaseKeepAliveRequest(ID=1), rpc.LeaseKeepAliveRequest(ID=2))
            other.send(rpc.LeaseKeepAliveRequest(ID=2))
            assert client.unary(f"{LEASE}/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=1)).TTL == 4
            server.clock.advance(6)
            while fault.count < 3:
                server.settle()
            assert (alive.pending(), other.pending()) == ([], [])
            fault.end()
            assert [(told.ID, told.TTL) for told in alive.take(2)] == [(1, 0), (2, 20)]
            assert other.receive().TTL == 20
        alive.send(rpc.LeaseKeepAliveRequest(ID=2))
        assert alive.receive().TTL == 20


def test_stalled_answers_of_keep_alives_do_not() -> None:
    with (
        etcd(clock="virtual") as server,
        Client(Endpoint(server.host, server.port)) as client,
        client.stream(f"{LEASE}/LeaseKeepAlive") as alive,
    ):
        client.unary(f"{LEASE}/LeaseGrant", rpc.LeaseGrantRequest(ID=1, TTL=10))
        server.clock.advance(6)
        with server.faults.stall_keep_alives(when="after") as fault, server.faults.stall_watches():
            alive.send(rpc.LeaseKeepAliveRequest(ID=1))
            while not fault.count:
                server.settle()
            server.clock.advance(6)
            assert client.unary(f"{LEASE}/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=1)).TTL == 4
            assert alive.pending() == []
        assert alive.receive().TTL == 10


def test_of_two_stalls_the_last_to_end_lets_go(server: Etcd, client: Client) -> None:
    with client.stream(WATCH) as stream:
        stream.send(create(b"a"))
        assert stream.receive().created
        first, second = server.faults.stall_watches(), server.faults.stall_watches()
        put(client, b"a", b"1")
        server.settle()
        first.end()
        put(client, b"a", b"2")
        server.settle()
        assert stream.pending() == []
        second.end()
        values: list[bytes] = []
        while len(values) < 2:
            values += [event.kv.value for event in stream.receive().events]
        assert values == [b"1", b"2"]


@pytest.mark.parametrize("kind", ["simple", "jwt"])
def test_tokens_expire_and_their_users_may_come_again(kind: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32)
    token = kind if kind == "simple" else f"jwt,sign-method=HS256,priv-key={tmp_path / 'key'}"
    options = ServerOptions(grace_seconds=0.0, auth=AuthOptions(token, bcrypt_cost=4))

    def shown(client: Client, name: str) -> list[tuple[str, str]]:
        request = rpc.AuthenticateRequest(name=name, password="pw")
        return [("token", client.unary("/etcdserverpb.Auth/Authenticate", request).token)]

    with (
        etcd(auth={"alice": "pw", "bob": "pw"}, options=options) as server,
        Client(Endpoint(server.host, server.port)) as client,
    ):
        alice, bob = shown(client, "alice"), shown(client, "bob")
        request = rpc.RangeRequest(key=b"a")
        assert server.faults.expire_token("nobody") == 0
        assert server.faults.expire_token("alice") == 1
        with pytest.raises(RpcFailure, match="UNAUTHENTICATED: etcdserver: invalid auth token"):
            client.unary(f"{KV}/Range", request, alice)
        client.unary(f"{KV}/Range", request, bob)
        alice = shown(client, "alice")
        client.unary(f"{KV}/Range", request, alice)
        assert server.faults.expire_token() == 2
        for old in (alice, bob):
            with pytest.raises(RpcFailure, match="invalid auth token"):
                client.unary(f"{KV}/Range", request, old)
        assert server.faults.expire_token() == 0
        client.unary(f"{KV}/Range", request, shown(client, "bob"))


def test_history_is_compacted_and_leases_expire(server: Etcd, client: Client) -> None:
    for value in (b"1", b"2"):
        put(client, b"a", value)
    assert server.faults.compact() == 3
    with pytest.raises(RpcFailure, match="required revision has been compacted"):
        get(client, b"a", revision=2)
    lease = server.store.grant(ttl=600)
    server.store.put(b"b", lease=lease)
    assert server.faults.expire_lease(lease) == 1
    assert get(client, b"b").count == 0
    with pytest.raises(LeaseNotFoundError):
        server.faults.expire_lease(404)


def test_faults_at_random_are_those_of_their_seed(capsys: pytest.CaptureFixture[str]) -> None:
    def befallen(seed: int) -> list[str]:
        with etcd() as server, Client(Endpoint(server.host, server.port)) as client:
            server.faults.random(seed, rate=0.5)
            for number in range(30):
                with suppress(RpcFailure):
                    put(client, b"%d" % number)
            assert {call.code for call in server.calls} == {Code.OK, Code.UNAVAILABLE}
            for call in server.calls("Put"):
                is_there = server.store.get(call.request.key) is not None
                assert is_there == (call.fault != "random before")
            return [call.fault for call in server.calls]

    first = befallen(5)
    assert first == befallen(5) != befallen(6)
    assert {"", "random before", "random after", "random delay"} == set(first)
    assert "seed 5" in capsys.readouterr().out


def test_what_is_no_fault_is_told(server: Etcd) -> None:
    for make, message in (
        (lambda: server.faults.fail("Put", "none"), "there is no code 'none'"),
        (lambda: server.faults.fail("Put", when="during"), "when is 'during'"),  # type: ignore[arg-type]
        (lambda: server.faults.fail("Put", times=0), "times is 0"),
        (lambda: server.faults.drop("Put", times=0), "times is 0"),
        (lambda: server.faults.drop("Put", when="during"), "when is 'during'"),  # type: ignore[arg-type]
        (lambda: server.faults.stall_keep_alives(when="during"), "when is 'during'"),  # type: ignore[arg-type]
        (lambda: server.faults.delay("Put", 0), "seconds is 0"),
        (lambda: server.faults.random(rate=2), "the rate is from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    assert server.faults.active == []


def test_they_end_with_the_server() -> None:
    with etcd() as server:
        fault = server.faults.no_space()
    assert fault.is_over
