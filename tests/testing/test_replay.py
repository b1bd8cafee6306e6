"""Programs of others, played to a real etcd while it is recorded, and again to the cassette: they see the same."""

from __future__ import annotations

import asyncio
import base64
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aetcd
import grpc
import pytest
from etcd3gw.client import Etcd3Client

from mvccstore.server.messages import METHODS, rpc
from mvccstore.testing import etcd, record
from tests.oracle.process import QUICK_ELECTION, EtcdProcess, running_etcd
from tests.testing.recording_kit import (
    AUTH,
    KEEP_ALIVE,
    KV,
    LEASE,
    SNAPSHOT,
    STATUS,
    WATCH,
    all_of,
    cancel,
    create,
    get,
    outcome,
    put,
    run,
)
from tests.wire.client import SECONDS, Client, Endpoint

Program = Callable[[str, int], Any]


@pytest.fixture
def oracle(tmp_path: Path) -> Iterator[EtcdProcess]:
    with running_etcd(tmp_path / "etcd", QUICK_ELECTION) as process:
        yield process


def both(oracle: EtcdProcess, path: Path, program: Program) -> tuple[Any, Any]:
    """Return what a program says when it is recorded, and when it is played again; nothing is missing or left over."""
    with record(oracle.target, path) as recorder:
        first = program(recorder.host, recorder.port)
    assert recorder.notes == []
    oracle.kill()
    with etcd(replay=path, port=recorder.port) as server:
        second = program(server.host, server.port)
        server.assert_replayed()
    return first, second


def calls_of_all_kinds(host: str, port: int) -> list[bytes | str]:
    said: list[bytes | str] = []
    with Client(Endpoint(host, port)) as client:

        def call(method: str, request: Any) -> Any:
            said.append(outcome(lambda: client.unary(method, request)))
            return said[-1]

        call(KV + "Put", put(b"a", b"1"))
        call(KV + "Put", put(b"a", b"\xff\0", prev_kv=True))
        call(KV + "Range", get(b"a"))
        call(KV + "Range", get(b"a", revision=2))
        call(KV + "Range", get(b"a", revision=99))
        call(KV + "Put", put(b""))
        compare = rpc.Compare(key=b"a", target=rpc.Compare.VERSION, version=2)
        op = rpc.RequestOp(request_put=put(b"b", b"1"))
        call(KV + "Txn", rpc.TxnRequest(compare=[compare], success=[op]))
        call(KV + "Txn", rpc.TxnRequest(compare=[rpc.Compare(key=b"a", target=rpc.Compare.VERSION)], success=[op]))
        call(KV + "DeleteRange", rpc.DeleteRangeRequest(key=b"b"))
        call(KV + "Compact", rpc.CompactionRequest(revision=3))
        call(KV + "Range", get(b"a", revision=2))
        call(STATUS, rpc.StatusRequest())
        call("/etcdserverpb.Cluster/MemberList", rpc.MemberListRequest())
        call("/no.Such/Method", b"")
        lease = rpc.LeaseGrantResponse.FromString(call(LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=77))).ID
        call(KV + "Put", put(b"l", b"1", lease=lease))
        with client.stream(KEEP_ALIVE, [rpc.LeaseKeepAliveRequest(ID=lease)], half_close=True) as stream:
            said += all_of(stream)
        with client.stream(WATCH, [create(b"a", range_end=b"z", prev_kv=True)]) as watch:
            said.append(outcome(watch.receive))
            call(LEASE + "LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease))
            said.append(outcome(watch.receive))
            watch.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
            said.append(outcome(watch.receive))
            watch.send(create(b"a", start_revision=1))  # which is compacted
            said += [outcome(watch.receive) for _ in range(2)]
            watch.send(cancel(0))
            said.append(outcome(watch.receive))
        said += all_of(client.stream(SNAPSHOT, [rpc.SnapshotRequest()]))
        said += all_of(client.stream(KV + "RangeStream", [get(b"a")]))
        call("/v3lockpb.Lock/Lock", METHODS["/v3lockpb.Lock/Lock"].request(name=b"lock"))
        call(AUTH + "UserAdd", rpc.AuthUserAddRequest(name="root", password="hunter2"))
        call(AUTH + "UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root"))
        call(AUTH + "AuthEnable", rpc.AuthEnableRequest())
        call(KV + "Range", get(b"a"))
        call(AUTH + "Authenticate", rpc.AuthenticateRequest(name="root", password="wrong"))
    return said


def test_calls_of_all_kinds_to_the_byte(oracle: EtcdProcess, tmp_path: Path) -> None:
    first, second = both(oracle, tmp_path / "c.jsonl", calls_of_all_kinds)
    assert len(first) > 30
    assert second == first
    assert "hunter2" not in (tmp_path / "c.jsonl").read_text()


def etcd3gw(host: str, port: int) -> list[Any]:
    client = Etcd3Client(host=host, port=port)
    said: list[Any] = [client.put("k", "1"), client.get("k"), client.create("k", "2"), client.replace("k", "1", "3")]
    lease = client.lease(ttl=100)
    said += [lease.id, client.put("leased", b"\xff", lease=lease), lease.keys(), lease.ttl(), lease.refresh()]
    events, stop = client.watch("w")
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    reader = threading.Thread(target=lambda: [found.put(event) for event in events])
    reader.start()
    said.append(client.put("w", "1"))
    said.append(found.get(timeout=SECONDS))
    said.append(client.delete("w"))
    said.append(found.get(timeout=SECONDS))
    stop()
    reader.join(SECONDS)
    transaction = {
        "compare": [{"key": base64.b64encode(b"t").decode(), "target": "CREATE", "create_revision": 0}],
        "success": [{"request_put": {"key": base64.b64encode(b"t").decode(), "value": ""}}],
    }
    said += [client.transaction(transaction), lease.revoke(), client.get_all(), client.status(), client.members()]
    client.session.close()
    return said


def test_etcd3gw(oracle: EtcdProcess, tmp_path: Path) -> None:
    first, second = both(oracle, tmp_path / "c.jsonl", etcd3gw)
    assert second == first


def etcdctl_of(oracle: EtcdProcess) -> Program:
    def program(host: str, port: int) -> list[str]:
        assert oracle.oracle.etcdctl is not None
        base = (str(oracle.oracle.etcdctl), f"--endpoints={host}:{port}")
        return [
            run(*base, *words.split())
            for words in (
                "put a 1",
                "get a -w json",
                "get --prefix x/ --keys-only",
                "lease grant 50",
                "lease list",
                "del a",
                "get a",
                "member list",
                "get a --rev=1000",
                "endpoint status -w json",
                "get a --consistency=s",
                "compaction 2",
                "role add r",
                "user add u --new-user-password=hunter2",
                "lock l echo held",
            )
        ]

    return program


def test_etcdctl(oracle: EtcdProcess, tmp_path: Path) -> None:
    if oracle.oracle.etcdctl is None:
        pytest.skip("this oracle has no etcdctl")
    first, second = both(oracle, tmp_path / "c.jsonl", etcdctl_of(oracle))
    # But for lines of its log, which have the time.
    assert [said for said in second if "retry_interceptor" not in said] == [
        said for said in first if "retry_interceptor" not in said
    ]
    assert "held" in second[-1]


async def play_aetcd(host: str, port: int) -> list[Any]:
    said: list[Any] = []
    async with aetcd.Client(host, port, timeout=20) as client:
        await client.put(b"k", b"1")
        found = await client.get(b"k")
        said.append((found.value, found.mod_revision))
        events = await client.watch(b"k")
        arriving = events.__aiter__()
        await client.put(b"k", b"2")
        said.append((await asyncio.wait_for(anext(arriving), SECONDS)).kv.value)
        await events.cancel()
        lease = await client.lease(100)
        said += [lease.id, (await lease.refresh()).TTL, await lease.keys()]
        await lease.revoke()
        said.append((await client.status()).version)
    return said


def test_aetcd(oracle: EtcdProcess, tmp_path: Path) -> None:
    first, second = both(oracle, tmp_path / "c.jsonl", lambda host, port: asyncio.run(play_aetcd(host, port)))
    assert second == first


def locks_and_elections(host: str, port: int) -> list[Any]:
    """Two workers that wait for one another: the answers have to wait, too, or both have the lock."""
    said: list[Any] = []
    holding = threading.Lock()
    campaign = METHODS["/v3electionpb.Election/Campaign"].request
    observe = METHODS["/v3electionpb.Election/Observe"].request
    resign = METHODS["/v3electionpb.Election/Resign"].request
    lock, unlock = METHODS["/v3lockpb.Lock/Lock"].request, METHODS["/v3lockpb.Lock/Unlock"].request

    def work(name: bytes, ready: threading.Event) -> None:
        with Client(Endpoint(host, port)) as client:
            lease = client.unary(LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=60)).ID
            ready.set()
            for _ in range(3):
                held = client.unary("/v3lockpb.Lock/Lock", lock(name=b"lock", lease=lease))
                assert holding.acquire(blocking=False)
                client.unary(KV + "Put", put(b"held/" + name))
                holding.release()
                client.unary("/v3lockpb.Lock/Unlock", unlock(key=held.key))

    threads = []
    for name in (b"a", b"b"):  # one after the other, so that each has the lease that it had
        ready = threading.Event()
        threads.append(threading.Thread(target=work, args=(name, ready)))
        threads[-1].start()
        ready.wait(SECONDS)
    for thread in threads:
        thread.join(SECONDS)
    with Client(Endpoint(host, port)) as client:
        leader = client.unary("/v3electionpb.Election/Campaign", campaign(name=b"e", value=b"1")).leader
        with client.stream("/v3electionpb.Election/Observe", [observe(name=b"e")]) as observer:
            said.append(observer.receive().kv.value)
            client.unary("/v3electionpb.Election/Resign", resign(leader=leader))
            client.unary("/v3electionpb.Election/Campaign", campaign(name=b"e", value=b"2"))
            said.append(observer.receive().kv.value)
    return said


def test_locks_and_elections(oracle: EtcdProcess, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with record(oracle.target, path) as recorder:
        first = locks_and_elections(recorder.host, recorder.port)
    with etcd(replay=path) as server:
        assert locks_and_elections(server.host, server.port) == first == [b"1", b"2"]
        server.assert_replayed()


@pytest.mark.parametrize("kind", ["lock", "election"])
def test_who_came_one_after_the_other_may_come_at_once(oracle: EtcdProcess, tmp_path: Path, kind: str) -> None:
    """And in another order: who is first has it until it lets go."""
    path = "/v3lockpb.Lock/Lock" if kind == "lock" else "/v3electionpb.Election/Campaign"
    end = "/v3lockpb.Lock/Unlock" if kind == "lock" else "/v3electionpb.Election/Resign"

    def get(client: Client, lease: int) -> Any:
        return client.unary(path, METHODS[path].request(name=b"n", lease=lease))

    def let_go(client: Client, got: Any) -> None:
        name = "key" if kind == "lock" else "leader"
        client.unary(end, METHODS[end].request(**{name: getattr(got, name)}))

    def leases(client: Client) -> list[int]:
        return [client.unary(LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=60)).ID for _ in range(2)]

    def look(client: Client) -> Any:
        return client.unary(KV + "Range", rpc.RangeRequest(key=b"fence"))

    cassette = tmp_path / "c.jsonl"
    with record(oracle.target, cassette) as recorder, Client(Endpoint(recorder.host, recorder.port)) as client:
        look(client)
        for lease in leases(client):
            let_go(client, get(client, lease))
    order: list[str] = []
    with etcd(replay=cassette) as server, Client(Endpoint(server.host, server.port)) as client:
        first, second = leases(client)
        got = get(client, second)

        def come() -> None:
            with Client(Endpoint(server.host, server.port)) as other:
                look(other)
                begun.set()
                late = get(other, first)
                order.append("first got it")
                let_go(other, late)

        begun = threading.Event()
        thread = threading.Thread(target=come)
        thread.start()
        assert begun.wait(SECONDS)
        for _ in range(50):  # it would be answered meanwhile
            look(client)
        order.append("second lets go")
        let_go(client, got)
        thread.join(SECONDS)
        server.assert_replayed()
    assert order == ["second lets go", "first got it"]


def test_clients_at_once(oracle: EtcdProcess, tmp_path: Path) -> None:
    def program(host: str, port: int) -> dict[int, list[bytes | str]]:
        said: dict[int, list[bytes | str]] = {}

        def work(number: int) -> None:
            key = b"%d/" % number
            found = said[number] = []
            with Client(Endpoint(host, port)) as client, client.stream(WATCH, [create(key)]) as watch:
                watch.receive()
                for value in range(25):
                    client.unary(KV + "Put", put(key, b"%d" % value))
                    found += [event.kv.value for event in watch.receive().events]
                    found.append(client.unary(KV + "Range", get(key)).kvs[0].value)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return said

    first, second = both(oracle, tmp_path / "c.jsonl", program)
    assert first[5] == [b"%d" % value for value in range(25) for _ in range(2)]
    assert second == first


def test_the_end_of_a_lease_is_told_though_no_time_goes_by(oracle: EtcdProcess, tmp_path: Path) -> None:
    def program(host: str, port: int) -> bytes | str:
        with Client(Endpoint(host, port)) as client:
            client.unary(LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=1, ID=7))
            with client.stream(WATCH, [create(b"leased")]) as watch:
                watch.receive()
                client.unary(KV + "Put", put(b"leased", b"1", lease=7))
                watch.receive()
                return outcome(watch.receive)  # that it is gone

    with record(oracle.target, tmp_path / "c.jsonl") as recorder:
        first = program(recorder.host, recorder.port)
    with etcd(replay=tmp_path / "c.jsonl", clock="virtual") as server:
        assert program(server.host, server.port) == first
        server.assert_replayed()


def test_channels_of_grpcio_are_answered_with_the_same_metadata(oracle: EtcdProcess, tmp_path: Path) -> None:
    def program(host: str, port: int) -> list[Any]:
        with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(KV + "Put", None, None)
            calls = [call.future(b"\n\1m"), call.future(b"")]
            return [(each.code(), each.details(), each.initial_metadata(), each.trailing_metadata()) for each in calls]

    first, second = both(oracle, tmp_path / "c.jsonl", program)
    assert second == first
