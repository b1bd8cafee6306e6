"""A server that stops while calls are under way: each ends, and no task, thread or connection is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from mvccstore import Store
from mvccstore.server import Server, ServerOptions
from mvccstore.server.messages import METHODS, election, health, lock, rpc
from mvccstore.testing import FakeClock

SECONDS = 30
Open = Callable[..., Store]
STOPPED = ("UNAVAILABLE", "etcdserver: server stopped")
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]


@asynccontextmanager
async def running(store: Store, grace_seconds: float) -> AsyncIterator[tuple[Server, Any]]:
    """A server, and a channel to it."""
    async with Server(store, ServerOptions(grace_seconds=grace_seconds), FakeClock()) as server:
        port = await server.listen()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
            yield server, channel


def stream(channel: Any, path: str) -> Any:
    method = METHODS[path]
    return channel.stream_stream(
        path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )()


def unary(channel: Any, path: str, request: Any) -> Any:
    return channel.unary_unary(
        path,
        request_serializer=type(request).SerializeToString,
        response_deserializer=METHODS[path].response.FromString,
    )(request)


async def begin(call: Any, request: Any) -> Any:
    """Send the first request of a stream, and return its answer."""
    await call.write(request)
    return await asyncio.wait_for(call.read(), SECONDS)


async def end_of(call: Any) -> tuple[str, str]:
    """Return how a call has ended."""
    code = await asyncio.wait_for(call.code(), SECONDS)
    return code.name, await call.details()


async def no_more_tasks() -> None:
    """Return when only the test's own task is left, and those of grpcio."""
    async with asyncio.timeout(SECONDS):
        while ours := [task for task in asyncio.all_tasks() if "mvccstore" in str(task.get_coro())]:
            await asyncio.wait(ours)


class Counted:
    """In place of a function that is called on the loop: says when it was called so often."""

    def __init__(self, function: Callable[..., Any], number: int) -> None:
        self._function = function
        self._left = number
        self.reached = asyncio.Event()

    def __call__(self, *args: Any, **options: Any) -> Any:
        self._left -= 1
        if not self._left:
            self.reached.set()
        return self._function(*args, **options)


@pytest.mark.parametrize("engine", ["memory", "lmdb"])
def test_streams_that_are_open_end(open_store: Open, engine: str) -> None:
    store = open_store(engine=engine)

    async def main() -> None:
        async with running(store, 600.0) as (server, channel):
            watch = stream(channel, "/etcdserverpb.Watch/Watch")
            create = rpc.WatchCreateRequest(key=b"k")
            assert (await begin(watch, rpc.WatchRequest(create_request=create))).created
            checks = stream(channel, "/grpc.health.v1.Health/Watch")
            await checks.write(health.HealthCheckRequest())
            await checks.done_writing()
            assert (await asyncio.wait_for(checks.read(), SECONDS)).status == 1
            stopping = asyncio.create_task(server.stop())
            assert await end_of(watch) == STOPPED
            assert (await asyncio.wait_for(checks.read(), SECONDS)).status == 2
            checks.cancel()  # which goes on, to tell when it serves again
            await asyncio.wait_for(stopping, SECONDS)
            assert server.connections == 0
            await no_more_tasks()

    before = set(threading.enumerate())
    asyncio.run(main())
    left = set(threading.enumerate()) - before
    assert [thread.name for thread in left if thread.name.startswith("mvccstore-server")] == []
    assert threading.active_count() <= len(before) + 1  # the poller of grpcio


@pytest.mark.parametrize("engine", ["memory", "lmdb"])
def test_calls_that_wait_for_somebody_are_cut(open_store: Open, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(engine=engine)

    async def main() -> None:
        async with running(store, 0.0) as (server, channel):
            granted = [store.grant(600) for _ in range(2)]
            first = lock.LockRequest(name=b"l", lease=granted[0].id)
            held = await unary(channel, "/v3lockpb.Lock/Lock", first)
            watching = Counted(store.watch, 2)
            monkeypatch.setattr(store, "watch", watching)
            waiting = unary(channel, "/v3lockpb.Lock/Lock", lock.LockRequest(name=b"l", lease=granted[1].id))
            observing = stream(channel, "/v3electionpb.Election/Observe")
            await observing.write(election.LeaderRequest(name=b"e"))
            alive = stream(channel, "/etcdserverpb.Lease/LeaseKeepAlive")
            assert (await begin(alive, rpc.LeaseKeepAliveRequest(ID=granted[0].id))).TTL == 600
            await asyncio.wait_for(watching.reached.wait(), SECONDS)
            await asyncio.wait_for(server.stop(), SECONDS)
            for call in (waiting, observing, alive):
                assert (await end_of(call))[0] == "UNAVAILABLE"
            await no_more_tasks()
            assert server.connections == 0
            assert store.get(held.key) is not None

    before = set(threading.enumerate())
    asyncio.run(main())
    left = set(threading.enumerate()) - before
    assert [thread.name for thread in left if thread.name.startswith("mvccstore-server")] == []


@pytest.mark.pure("replaces a method")
def test_writes_under_way_are_carried_out_and_answered(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(engine="lmdb")
    may_go, is_held = threading.Event(), threading.Event()

    def hold() -> None:
        with store.begin() as txn:
            txn.put(b"block")
            is_held.set()
            assert may_go.wait(SECONDS)

    async def main() -> None:
        async with running(store, 600.0) as (server, channel):
            thread = threading.Thread(target=hold)
            thread.start()
            assert await asyncio.to_thread(is_held.wait, SECONDS)
            submit = Counted(server.node.writer.submit, 10)
            monkeypatch.setattr(server.node.writer, "submit", submit)
            puts = [unary(channel, "/etcdserverpb.KV/Put", rpc.PutRequest(key=b"%d" % n)) for n in range(10)]
            await asyncio.wait_for(submit.reached.wait(), SECONDS)
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0)
            assert not stopping.done()
            may_go.set()
            answers = await asyncio.wait_for(asyncio.gather(*puts), SECONDS)
            assert sorted(answer.header.revision for answer in answers) == list(range(3, 13))
            await asyncio.wait_for(stopping, SECONDS)
            thread.join(SECONDS)

    asyncio.run(main())
    assert store.revision == 12


def test_a_snapshot_that_is_not_read_is_cut_and_its_file_is_gone(open_store: Open, tmp_path: Any) -> None:
    store = open_store(engine="lmdb")
    for number in range(40):
        store.put(b"%d" % number, b"x" * 100_000)

    async def main() -> None:
        async with running(store, 0.0) as (server, channel):
            path = "/etcdserverpb.Maintenance/Snapshot"
            call = channel.unary_stream(path, rpc.SnapshotRequest.SerializeToString, METHODS[path].response.FromString)
            snapshot = call(rpc.SnapshotRequest())
            assert await asyncio.wait_for(snapshot.read(), SECONDS)
            await asyncio.wait_for(server.stop(), SECONDS)
            await no_more_tasks()

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir() if "snapshot" in path.name] == []


def test_stopping_twice_and_at_once_is_harmless(open_store: Open) -> None:
    store = open_store(engine="memory")

    async def main() -> None:
        async with running(store, 0.0) as (server, channel):
            await unary(channel, "/etcdserverpb.KV/Put", rpc.PutRequest(key=b"k"))
            await asyncio.gather(server.stop(), server.stop())
            await server.stop()
            assert server.connections == 0

    asyncio.run(main())
