"""Clients that others wrote, against a server of ours: etcd3gw over JSON, aetcd over gRPC, and bare grpcio stubs."""

from __future__ import annotations

import asyncio
import base64
import queue
import threading
from collections.abc import Iterator
from typing import Any

import aetcd
import grpc
import pytest
from etcd3gw.client import Etcd3Client

from mvccstore.server import Serving, serve
from mvccstore.server.messages import METHODS, rpc

SECONDS = 20.0


@pytest.fixture
def server() -> Iterator[Serving]:
    with serve() as server:
        yield server
        assert server.store.check() == []


# etcd3gw


@pytest.fixture
def gateway(server: Serving) -> Iterator[Etcd3Client]:
    client = Etcd3Client(host=server.host, port=server.port)
    yield client
    client.session.close()


def test_etcd3gw_reads_and_writes(gateway: Etcd3Client) -> None:
    assert gateway.api_path == "/v3/"
    assert gateway.put("k", "1")
    assert gateway.get("k") == [b"1"]
    assert gateway.create("k", "2") is False
    assert gateway.create("new", "2") is True
    assert gateway.replace("k", "1", "3") is True
    assert gateway.replace("k", "1", "4") is False
    assert [value for value, _ in gateway.get_all()] == [b"3", b"2"]
    assert [value for value, _ in gateway.get_prefix("n")] == [b"2"]
    assert gateway.delete("k") is True
    assert gateway.delete("k") is False
    assert gateway.delete_prefix("n") is True
    assert gateway.get_all() == []
    assert gateway.status()["version"].startswith("3.6.")
    assert len(gateway.members()) == 1


def test_etcd3gw_leases_and_locks(gateway: Etcd3Client) -> None:
    lease = gateway.lease(ttl=100)
    gateway.put("leased", "1", lease=lease)
    assert lease.keys() == [b"leased"]
    assert 0 < lease.ttl() <= 100
    assert lease.refresh() == 100
    assert lease.revoke() is True
    assert gateway.get("leased") == []
    with gateway.lock("l", ttl=100) as lock:
        assert lock.is_acquired()
        assert gateway.lock("l", ttl=100).acquire() is False
        assert lock.refresh() == 100
    assert not lock.is_acquired()


def test_etcd3gw_keeps_what_is_not_text(gateway: Etcd3Client) -> None:
    value = bytes(range(256))
    gateway.put(b"\xff\0key", value)
    assert gateway.get(b"\xff\0key") == [value]
    assert gateway.get(b"none") == []


def test_etcd3gw_runs_transactions(gateway: Etcd3Client) -> None:
    def b64(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    created = {
        "compare": [{"key": b64("t"), "result": "EQUAL", "target": "CREATE", "create_revision": 0}],
        "success": [{"request_put": {"key": b64("t"), "value": b64("1")}}],
        "failure": [{"request_range": {"key": b64("t")}}],
    }
    assert gateway.transaction(created)["succeeded"] is True
    again = gateway.transaction(created)
    assert again.get("succeeded", False) is False
    assert again["responses"][0]["response_range"]["kvs"][0]["value"] == b64("1")


def test_etcd3gw_watches(gateway: Etcd3Client) -> None:
    gateway.put("w", "1")
    events, cancel = gateway.watch("w", start_revision=2)
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    reader = threading.Thread(target=lambda: [found.put(event) for event in events])
    reader.start()
    try:
        assert found.get(timeout=SECONDS)["kv"]["value"] == b"1"
        gateway.put("w", "2")
        assert found.get(timeout=SECONDS)["kv"]["value"] == b"2"
        gateway.delete("w")
        assert found.get(timeout=SECONDS)["type"] == "DELETE"
    finally:
        cancel()
        reader.join(SECONDS)
    assert not reader.is_alive()


# aetcd


async def play_aetcd(server: Serving) -> None:
    async with aetcd.Client(server.host, server.port, timeout=20) as client:
        await client.put(b"k", b"1")
        found = await client.get(b"k")
        assert (found.value, found.mod_revision) == (b"1", 2)
        events = await client.watch(b"k", start_revision=2)
        arriving = events.__aiter__()
        assert (await asyncio.wait_for(anext(arriving), SECONDS)).kv.value == b"1"
        is_done, _ = await client.transaction(
            compare=[client.transactions.value(b"k") == b"1"],
            success=[client.transactions.put(b"k", b"2")],
            failure=[client.transactions.delete(b"k")],
        )
        assert is_done
        assert (await asyncio.wait_for(anext(arriving), SECONDS)).kv.value == b"2"
        await events.cancel()
        lease = await client.lease(100)
        await client.put(b"leased", b"1", lease=lease)
        assert (await lease.refresh()).TTL == 100
        assert await lease.keys() == [b"leased"]
        await lease.revoke()
        assert await client.get(b"leased") is None
        async with client.lock(b"l", ttl=100) as lock:
            assert await lock.is_acquired()
        assert (await client.status()).version.startswith("3.6.")
        assert len([member async for member in client.members()]) == 1
        await client.compact(3)
        late = await client.watch(b"k", start_revision=2)
        with pytest.raises(aetcd.exceptions.RevisionCompactedError):
            await asyncio.wait_for(anext(late.__aiter__()), SECONDS)


def test_aetcd(server: Serving) -> None:
    asyncio.run(play_aetcd(server))


# grpcio


def test_grpcio_stubs_lock_as_gos_mutex_does(server: Serving) -> None:
    with grpc.insecure_channel(server.endpoint) as channel:

        def call(method: str, request: Any) -> Any:
            path = f"/etcdserverpb.{method}"
            stub = channel.unary_unary(path, type(request).SerializeToString, METHODS[path].response.FromString)
            return stub(request, timeout=SECONDS)

        def take(lease: int) -> Any:
            key = b"lock/%x" % lease
            return call(
                "KV/Txn",
                rpc.TxnRequest(
                    compare=[rpc.Compare(key=key, target=rpc.Compare.CREATE, create_revision=0)],
                    success=[
                        rpc.RequestOp(request_put=rpc.PutRequest(key=key, lease=lease)),
                        rpc.RequestOp(
                            request_range=rpc.RangeRequest(
                                key=b"lock/",
                                range_end=b"lock0",
                                limit=1,
                                sort_target=rpc.RangeRequest.CREATE,
                                sort_order=rpc.RangeRequest.ASCEND,
                            )
                        ),
                    ],
                ),
            )

        first, second = (call("Lease/LeaseGrant", rpc.LeaseGrantRequest(TTL=100)).ID for _ in range(2))
        assert take(first).responses[1].response_range.kvs[0].lease == first
        assert take(second).responses[1].response_range.kvs[0].lease == first
        path = "/etcdserverpb.Watch/Watch"
        watch = channel.stream_stream(path, rpc.WatchRequest.SerializeToString, METHODS[path].response.FromString)
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        create = rpc.WatchCreateRequest(key=b"lock/%x" % first)
        requests.put(rpc.WatchRequest(create_request=create))
        answers = watch(iter(requests.get, None), timeout=SECONDS)
        assert next(answers).created
        call("Lease/LeaseRevoke", rpc.LeaseRevokeRequest(ID=first))
        assert next(answers).events[0].type == 1
        requests.put(None)
        answers.cancel()
        assert take(second).succeeded is False  # it has it
