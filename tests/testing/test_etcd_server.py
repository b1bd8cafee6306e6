"""An etcd for a test: starts, is found, is looked into, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

import mvccstore
from mvccstore.server.autocompaction import ByRevision
from mvccstore.server.compactor import Compactor
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node
from mvccstore.server.server import Server, ServerOptions
from mvccstore.server.transport.status import Code
from mvccstore.store import Store
from mvccstore.testing import FakeClock, etcd
from mvccstore.testing.etcd_server import Etcd
from tests.wire.client import Client, Endpoint, RpcFailure

PUT, RANGE, WATCH = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.Watch/Watch"


def client_of(server: Etcd) -> Client:
    return Client(Endpoint(server.host, server.port))


def put(client: Client, key: bytes, value: bytes = b"", lease: int = 0) -> Any:
    return client.unary(PUT, rpc.PutRequest(key=key, value=value, lease=lease))


class Held:
    """What the process holds: threads, tasks of the servers' loop, open sockets and files, temporary folders, objects."""

    def __init__(self, server: Etcd) -> None:
        gc.collect()
        opened = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        self.threads = Counter(thread.name for thread in threading.enumerate())
        self.tasks = server.call(lambda: len(asyncio.all_tasks()))
        self.sockets = sum(name.startswith("socket:") for name in opened)
        self.files = len(opened) - self.sockets
        self.folders = Counter(path.name for path in Path(gettempdir()).glob("mvccstore-*"))
        kinds = {Server, Node, Store, Compactor, FakeClock}
        self.objects = Counter(type(one).__name__ for one in gc.get_objects() if type(one) in kinds)

    def more_than(self, before: Held) -> dict[str, Any]:
        """Return what there is more of; what others have let go of meanwhile does not matter."""
        grown: dict[str, Any] = {}
        for name, now in vars(self).items():
            left = now - vars(before)[name]
            if left if isinstance(left, Counter) else left > 0:
                grown[name] = left
        return grown


def test_a_client_and_the_test_see_the_same() -> None:
    with etcd() as server, client_of(server) as client:
        assert put(client, b"a", b"1").header.revision == 2
        assert server.store.put(b"b", b"2") == 3
        assert client.unary(RANGE, rpc.RangeRequest(key=b"a", range_end=b"c")).count == 2
        assert server.endpoint == f"127.0.0.1:{server.port}"
        assert server.url == f"http://{server.endpoint}"


SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"clock": "virtual", "options": ServerOptions(grace_seconds=0.0, auto_compaction=ByRevision(1))},
    {"auth": {"alice": "pw"}},
    {"contents": {"a": "1"}},
)


def test_five_hundred_in_a_row_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # of which nobody else makes use meanwhile

    def one(number: int) -> None:
        settings = SETTINGS[number % len(SETTINGS)] | ({"tls": True} if number % 100 == 0 else {})
        with (
            etcd(**settings) as server,
            socket.create_connection((server.host, server.port), 10) as connection,
        ):
            # Each is left in the middle of something.
            body = b'{"create_request": {"key": "YQ=="}}'
            head = b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)
            if "tls" not in settings:
                assert connection.recv(1000).startswith(b"HTTP/1.1 200" if "auth" not in settings else b"HTTP/1.1")
            server.store.put(b"a", lease=server.store.grant(60))
            server.faults.fail("Put")
            server.stop()

    with etcd() as keeper:  # or the loop would go with each of them
        for number in range(10):
            one(number)
        before = Held(keeper)
        for number in range(500):
            one(number)
        after = Held(keeper)
        assert after.more_than(before) == {}


def test_many_at_once_share_a_thread() -> None:
    servers = [Etcd() for _ in range(100)]
    threads = threading.active_count()
    for server in servers:
        server.start()
    try:
        assert threading.active_count() == threads + 1
        assert len({server.port for server in servers}) == len(servers)
        for number, server in enumerate(servers):
            with client_of(server) as client:
                put(client, b"number", b"%d" % number)
        values = [kv.value for server in servers if (kv := server.store.get(b"number")) is not None]
        assert values == [b"%d" % number for number in range(100)]
    finally:
        for server in servers:
            server.stop()
    assert threading.active_count() == threads


def test_on_an_event_loop() -> None:
    async def main() -> bytes:
        async with etcd() as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(b"GET /version HTTP/1.0\r\n\r\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

    assert b'"etcdserver"' in asyncio.run(main())


def test_a_subprocess_finds_it_by_its_environment() -> None:
    program = "import os, urllib.request as r; print(r.urlopen('http://' + os.environ['ETCDCTL_ENDPOINTS'] + '/health').read())"
    with etcd() as server:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **server.env},
            capture_output=True,
            check=True,
            timeout=60,
        )
    assert b'"health":"true"' in done.stdout


def test_what_it_is_given_it_leaves_open(tmp_path: Path) -> None:
    with mvccstore.open(tmp_path / "store.db") as store:
        with etcd(store=store) as server, client_of(server) as client:
            put(client, b"a", b"1")
        assert store.put(b"b", b"2") == 3


def test_it_is_started_once_and_stopped_as_often_as_one_likes() -> None:
    server = Etcd()
    with pytest.raises(RuntimeError, match="not running"):
        server.port  # noqa: B018
    server.start()
    with pytest.raises(RuntimeError, match="running already"):
        server.start()
    server.stop()
    server.stop()
    with pytest.raises(RuntimeError, match="not running"):
        server.store  # noqa: B018
    with server:
        assert server.store.revision == 1


def test_a_port_that_is_taken_is_told_and_leaves_nothing_behind() -> None:
    with etcd() as first:
        threads = threading.active_count()
        with pytest.raises(OSError, match="in use"):
            Etcd(port=first.port).start()
        assert threading.active_count() == threads
    assert threading.active_count() == threads - 1


# Time


def test_virtual_time_ends_leases_and_a_client_sees_it_at_once() -> None:
    with etcd(clock="virtual") as server, client_of(server) as client, client.stream(WATCH) as stream:
        create = rpc.WatchCreateRequest(key=b"a", prev_kv=True)
        stream.send(rpc.WatchRequest(create_request=create))
        assert stream.receive().created
        client.unary("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest(ID=7, TTL=60))
        put(client, b"a", b"1", lease=7)
        server.clock.advance(59)
        assert client.unary(RANGE, rpc.RangeRequest(key=b"a")).count == 1
        server.clock.advance(1)
        assert client.unary(RANGE, rpc.RangeRequest(key=b"a")).count == 0
        kinds = [event.type for _ in range(2) for event in stream.receive().events]
        assert kinds == [0, 1]


def test_a_clock_of_the_test_may_be_shared() -> None:
    clock = FakeClock()
    with etcd(clock=clock) as one, etcd(clock=clock) as other:
        for server in (one, other):
            server.store.put(b"a", lease=server.store.grant(ttl=5))
        one.clock.advance(5)
        assert one.store.get(b"a") is None
        assert other.store.get(b"a") is None


def test_real_time_is_not_moved() -> None:
    with etcd() as server, pytest.raises(RuntimeError, match="clock='virtual'"):
        server.clock  # noqa: B018
    with pytest.raises(ValueError, match="neither 'real' nor 'virtual'"):
        Etcd(clock="fake")  # type: ignore[arg-type]


# Calls


def test_calls_are_recorded_with_what_was_asked_and_answered() -> None:
    with etcd(clock="virtual") as server, client_of(server) as client:
        put(client, b"a", b"1")
        with pytest.raises(RpcFailure):
            put(client, b"")
        first, second = server.calls("Put")
        assert (first.method, first.service, first.request.key, first.is_ok) == ("Put", "KV", b"a", True)
        assert first.answer.header.revision == 2
        assert (second.code, second.message) == (Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
        assert second.answer is None
        assert server.calls(service="KV") == list(server.calls) == [server.calls[0], server.calls[-1]]
        assert server.calls("Range") == []
        server.calls.clear()
        assert len(server.calls) == 0


def test_streams_are_recorded_as_they_go_on() -> None:
    with etcd() as server, client_of(server) as client:
        with client.stream(WATCH) as stream:
            stream.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"a")))
            assert stream.receive().created
            put(client, b"a", b"1")
            assert stream.receive().events[0].kv.value == b"1"
            (watch,) = server.calls.under_way()
            assert (watch.method, watch.request.create_request.key, len(watch.answers)) == ("Watch", b"a", 2)
        server.drop_connections()
        server.settle()
        assert server.calls.under_way() == []
        assert watch.code is Code.CANCELLED


def test_connections_are_cut_and_clients_come_again() -> None:
    with etcd() as server, client_of(server) as client, client.stream(WATCH) as stream:
        stream.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"a")))
        assert stream.receive().created
        assert server.drop_connections() == 1
        with pytest.raises(RpcFailure):
            stream.receive()
        assert put(client, b"a").header.revision == 2
