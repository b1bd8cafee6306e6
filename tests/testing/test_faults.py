"""Faults: each befalls what it is for, as often as it says, and leaves the rest alone."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from mvccstore import LeaseNotFoundError
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
