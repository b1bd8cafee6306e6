"""A server beside the program that uses its store: on a thread, on an event loop, on a unix socket, many at once."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import socket
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

import mvccstore
from mvccstore import KeyRange
from mvccstore.server import Server, Serving, serve
from mvccstore.server.messages import METHODS, rpc
from tests.wire.client import Client, Endpoint, RpcFailure

PUT, RANGE, WATCH = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.Watch/Watch"
SERVERS = 50


def client_of(server: Serving) -> Client:
    return Client(Endpoint(server.host, server.port))


def watching(key: bytes, range_end: bytes = b"", start_revision: int = 0) -> rpc.WatchRequest:
    create = rpc.WatchCreateRequest(key=key, range_end=range_end, start_revision=start_revision)
    return rpc.WatchRequest(create_request=create)


def call(port_or_target: str, method: str, request: Any) -> Any:
    """Call once, on a channel of its own."""
    with grpc.insecure_channel(port_or_target) as channel:
        function = channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=METHODS[method].response.FromString,
        )
        return function(request, timeout=20, wait_for_ready=True)


def test_program_and_client_see_the_same_revisions_and_watches(store: mvccstore.Store) -> None:
    with serve(store) as server, client_of(server) as client:
        assert server.store is store
        with store.watch(KeyRange.all()) as watcher, client.stream(WATCH) as stream:
            stream.send(watching(b"\0", b"\0"))
            assert stream.receive().created
            assert store.put(b"mine", b"1") == 2
            assert client.unary(PUT, rpc.PutRequest(key=b"theirs", value=b"2")).header.revision == 3
            assert store.delete(b"mine") == 1
            assert [(event.type, event.kv.key) for event in (next(watcher) for _ in range(3))] == [
                ("put", b"mine"),
                ("put", b"theirs"),
                ("delete", b"mine"),
            ]
            events: list[Any] = []
            while len(events) < 3:
                events += stream.receive().events
            assert [(event.type, event.kv.key, event.kv.mod_revision) for event in events] == [
                (0, b"mine", 2),
                (0, b"theirs", 3),
                (1, b"mine", 4),
            ]
        lease = store.grant(ttl=100)
        granted = client.unary("/etcdserverpb.Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=lease.id))
        assert granted.grantedTTL == 100
        found = client.unary(RANGE, rpc.RangeRequest(key=b"theirs"))
        assert found.kvs[0].value == b"2"
        assert store.revision == found.header.revision == 4
    assert store.put(b"after", b"it stays open") == 5


def writer_threads() -> int:
    return sum(thread.name == "mvccstore-server-writer" for thread in threading.enumerate())


def test_a_store_in_memory_needs_a_thread_only_for_what_may_take_long() -> None:
    before = writer_threads()
    with mvccstore.open() as store, serve(store) as server, client_of(server) as client:
        client.unary("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest(ID=7, TTL=60))
        assert client.unary(PUT, rpc.PutRequest(key=b"a", lease=7)).header.revision == 2
        with pytest.raises(RpcFailure, match="requested lease not found"):
            client.unary(PUT, rpc.PutRequest(key=b"a", lease=8))
        create = rpc.Compare(key=b"b", target=rpc.Compare.CREATE)
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=b"b"))
        assert client.unary("/etcdserverpb.KV/Txn", rpc.TxnRequest(compare=[create], success=[put])).succeeded
        assert client.unary("/etcdserverpb.KV/DeleteRange", rpc.DeleteRangeRequest(key=b"b")).deleted == 1
        assert writer_threads() == before
        everything = rpc.DeleteRangeRequest(key=b"\0", range_end=b"\0")
        assert client.unary("/etcdserverpb.KV/DeleteRange", everything).deleted == 1
        assert writer_threads() == before + 1
        assert client.unary(PUT, rpc.PutRequest(key=b"a")).header.revision == 6
    assert writer_threads() == before


def test_a_block_of_the_program_holds_up_writes_and_nothing_else() -> None:
    with mvccstore.open() as store, serve(store) as server, client_of(server) as client, client_of(server) as other:
        with store.begin() as txn:
            txn.put(b"k", b"block")
            pending = threading.Thread(target=client.unary, args=(PUT, rpc.PutRequest(key=b"k", value=b"client")))
            pending.start()
            while not server_has_request(server):
                assert other.unary(RANGE, rpc.RangeRequest(key=b"k")).count == 0
        pending.join(60)
        found = other.unary(RANGE, rpc.RangeRequest(key=b"k")).kvs[0]
        assert (found.value, found.version) == (b"client", 2)


def server_has_request(server: Serving) -> bool:
    """Say whether a write is under way."""
    assert server._server is not None
    return server._server.node.writer.under_way > 0


def test_what_goes_wrong_as_it_stops_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Server.stop

    async def stop_and_fail(server: Server) -> None:
        await stop(server)
        raise OSError(5, "as told")

    monkeypatch.setattr(Server, "stop", stop_and_fail)
    serving = serve()
    serving.__enter__()
    store = serving.store
    with pytest.raises(OSError, match="as told"):
        serving.__exit__(None, None, None)
    with pytest.raises(mvccstore.ClosedError):
        store.put(b"a")


def test_on_the_running_loop(store: mvccstore.Store) -> None:
    async def main() -> None:
        async with serve(store) as server:
            async with grpc.aio.insecure_channel(server.endpoint) as channel:
                put = channel.unary_unary(PUT, rpc.PutRequest.SerializeToString, METHODS[PUT].response.FromString)
                answers = await asyncio.gather(*(put(rpc.PutRequest(key=b"%d" % n)) for n in range(100)))
                assert sorted(answer.header.revision for answer in answers) == list(range(2, 102))
            assert store.count(KeyRange.all()) == 100
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main(), debug=True)
    assert store.put(b"after", b"it stays open") == 102


def test_one_server_after_the_other(store: mvccstore.Store) -> None:
    terms, indexes = [], []
    serving = serve(store)
    for number in range(3):
        with serving as server, client_of(server) as client:
            revision = client.unary(PUT, rpc.PutRequest(key=b"k", value=b"%d" % number)).header.revision
            status = client.unary("/etcdserverpb.Maintenance/Status", rpc.StatusRequest())
            assert revision == number + 2
            terms.append(status.raftTerm)
            indexes.append(status.raftIndex)
    assert terms == [2, 3, 4]
    assert indexes == sorted(set(indexes))


def test_two_servers_at_once_on_one_store(store: mvccstore.Store) -> None:
    with (
        serve(store) as one,
        serve(store) as other,
        client_of(one) as here,
        client_of(other) as there,
        there.stream(WATCH) as stream,
    ):
        stream.send(watching(b"k"))
        assert stream.receive().created
        here.unary(PUT, rpc.PutRequest(key=b"k", value=b"1"))
        assert stream.receive().events[0].kv.value == b"1"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208 - not their names


def test_many_servers_leave_nothing_behind() -> None:
    def round_of_servers() -> None:
        servers = [serve() for _ in range(SERVERS)]
        for server in servers:
            server.__enter__()
        ports = {server.port for server in servers}
        assert len(ports) == SERVERS
        for server in servers[::10]:
            with client_of(server) as client:
                assert client.post("/v3/kv/put", {"key": "aw=="}).status == 200
        for server in servers:
            server.__exit__(None, None, None)

    round_of_servers()  # what is made once, such as the executor of a loop, is there now
    gc.collect()
    threads, files = threading.active_count(), descriptors()
    round_of_servers()
    gc.collect()
    assert threading.active_count() == threads
    assert descriptors() == files


def test_many_servers_on_one_loop_leave_no_tasks() -> None:
    async def main() -> None:
        threads = 0
        for attempt in range(2):
            servers = [serve() for _ in range(SERVERS)]
            await asyncio.gather(*(server.start() for server in servers))
            assert len({server.port for server in servers}) == SERVERS
            await asyncio.gather(*(server.stop() for server in servers))
            assert asyncio.all_tasks() == {asyncio.current_task()}
            if attempt:
                assert threading.active_count() <= threads
            threads = threading.active_count()

    asyncio.run(main())


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serve(unix=str(path)) as server:
        assert server.endpoint == f"unix:{path}"
        assert call(server.endpoint, PUT, rpc.PutRequest(key=b"k", value=b"1")).header.revision == 2
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(path))
            raw.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 200")
        members = call(server.endpoint, "/etcdserverpb.Cluster/MemberList", rpc.MemberListRequest()).members
        assert list(members[0].clientURLs) == [f"unix://{path}"]
    assert not path.exists()
    with serve(unix=str(path)):
        assert path.is_socket()


def test_a_port_in_use_is_said_and_the_store_is_left_alone(store: mvccstore.Store) -> None:
    with serve() as server:
        for _ in range(2):
            with pytest.raises(OSError, match="in use"), serve(store, port=server.port):
                pytest.fail("it is not reached")
    assert store.put(b"k", b"1") == 2
    with serve(store) as server, client_of(server) as client:
        assert client.unary(RANGE, rpc.RangeRequest(key=b"k")).count == 1


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.mvcc"
    with mvccstore.open(path) as store:
        store.put(b"k", b"1")
    with (
        mvccstore.open(path, read_only=True) as store,
        pytest.raises(mvccstore.StorageError, match="opened read-only"),
        serve(store),
    ):
        pytest.fail("it is not reached")
    with pytest.raises(mvccstore.ClosedError), serve(store):
        pytest.fail("it is not reached")


def test_a_server_does_not_run_twice() -> None:
    serving = serve()
    with pytest.raises(RuntimeError, match="not running"):
        _ = serving.store
    with serving as server:
        with pytest.raises(RuntimeError, match="running already"), serving:
            pytest.fail("it is not reached")
        with client_of(server) as client:
            assert client.unary(RANGE, rpc.RangeRequest(key=b"k")).count == 0
    with pytest.raises(RuntimeError, match="not running"):
        _ = serving.server


def test_a_store_closed_under_the_server_makes_every_call_unavailable() -> None:
    store = mvccstore.open()
    with serve(store) as server, client_of(server) as client:
        client.unary(PUT, rpc.PutRequest(key=b"k", value=b"1"))
        with client.stream(WATCH) as stream:
            stream.send(watching(b"k"))
            assert stream.receive().created
            store.close()
            for method, request in (
                (PUT, rpc.PutRequest(key=b"k")),
                (RANGE, rpc.RangeRequest(key=b"k")),
                ("/etcdserverpb.KV/Txn", rpc.TxnRequest()),
                ("/etcdserverpb.KV/DeleteRange", rpc.DeleteRangeRequest(key=b"k")),
                ("/etcdserverpb.KV/Compact", rpc.CompactionRequest(revision=2)),
                ("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest(TTL=10)),
                ("/etcdserverpb.Lease/LeaseLeases", rpc.LeaseLeasesRequest()),
                ("/etcdserverpb.Maintenance/Status", rpc.StatusRequest()),
                ("/etcdserverpb.Maintenance/HashKV", rpc.HashKVRequest()),
                ("/etcdserverpb.Maintenance/Defragment", rpc.DefragmentRequest()),
                ("/etcdserverpb.Maintenance/Alarm", rpc.AlarmRequest(action=1, alarm=1)),
                ("/etcdserverpb.Cluster/MemberAdd", rpc.MemberAddRequest(peerURLs=["http://h:1"])),
            ):
                with pytest.raises(RpcFailure) as refused:
                    client.unary(method, request)
                assert (refused.value.code, refused.value.message) == ("UNAVAILABLE", "etcdserver: server stopped"), (
                    method
                )
            with pytest.raises(RpcFailure) as ended:
                stream.receive()
            assert ended.value.code == "UNAVAILABLE"
        assert client.request("GET", "/health").status == 503


def test_stopping_tells_watches_and_answers_writes(store: mvccstore.Store) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    serving = serve(store)
    serving.__enter__()
    with client_of(serving) as client, grpc.insecure_channel(serving.endpoint) as channel:
        with client.stream(WATCH) as stream:
            stream.send(watching(b"k"))
            assert stream.receive().created
            put = channel.unary_unary(PUT, rpc.PutRequest.SerializeToString, METHODS[PUT].response.FromString)
            is_going = threading.Event()
            number = 500

            def answered(future: Any) -> None:
                answers.put(future)
                is_going.set()

            for n in range(number):
                future = put.future(rpc.PutRequest(key=b"%d" % n), timeout=20)
                future.add_done_callback(answered)
            assert is_going.wait(20)
            serving.__exit__(None, None, None)
            with pytest.raises(RpcFailure) as ended:
                stream.receive()
            assert (ended.value.code, ended.value.message) == ("UNAVAILABLE", "etcdserver: server stopped")
        futures = [answers.get(timeout=20) for _ in range(number)]
        written = [future for future in futures if future.exception() is None]
        assert {future.code().name for future in futures if future.exception() is not None} <= {"UNAVAILABLE"}
        # What was acknowledged is there; what was not acknowledged was not carried out.
        assert len(written) == store.count(KeyRange.all())
        assert store.revision == len(written) + 1
