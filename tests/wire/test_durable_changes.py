"""Changes of alarms, members and downgrades: judged one after the other, and of effect when they are written, not before."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mvccstore import Store
from mvccstore.clock import SystemClock
from mvccstore.errors import StorageFullError
from mvccstore.server.member import Identity
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node, RequestLimits
from mvccstore.server.persona import V3_4, V3_6, Persona
from mvccstore.server.services.cluster import Cluster
from mvccstore.server.services.kv import KV
from mvccstore.server.services.maintenance import Maintenance
from mvccstore.server.transport.call import Router
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.port import Port
from mvccstore.server.transport.status import RpcError
from mvccstore.types import WriteRequest
from tests.wire.plain_call import PlainCall

SECONDS = 30
NOSPACE, CORRUPT = 1, 2
Open = Callable[..., Store]


class Asked(PlainCall):
    """A call as far as these services need one."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: asyncio.Future[bytes | str] = asyncio.get_running_loop().create_future()

    def reply(self, message: bytes) -> None:
        self.ended.set_result(message)

    def fail(self, error: RpcError) -> None:
        self.ended.set_result(str(error))

    def fail_with(self, error: Exception) -> None:
        self.ended.set_result(str(error) if isinstance(error, RpcError) else type(error).__name__)


def ask(handler: Callable[[Any, Any], bytes | None], request: Any) -> asyncio.Future[bytes | str]:
    """Call a handler as a transport does."""
    call = Asked()
    try:
        answer = handler(call, request)
    except RpcError as error:
        call.fail(error)
    else:
        if answer is not None:
            call.reply(answer)
    return call.ended


async def text(ended: asyncio.Future[bytes | str]) -> str:
    """Return the error that a call has ended with, or `ok`."""
    found = await asyncio.wait_for(ended, SECONDS)
    return "ok" if isinstance(found, bytes) else found


@asynccontextmanager
async def running(store: Store, persona: Persona = V3_6, quota_bytes: int = 0) -> AsyncIterator[Node]:
    clock = SystemClock()
    node = Node(store, Identity(), RequestLimits(), clock=clock, persona=persona, quota_bytes=quota_bytes)
    try:
        yield node
    finally:
        await node.stop()


class Disk:
    """Has what a store writes wait, or fail."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self._store = store
        self._monkeypatch = monkeypatch
        self._submit_many = store.submit_many
        self._may_go = threading.Event()

    def hold(self) -> None:
        """Have writes wait until `go`."""

        def submit_many(requests: Sequence[WriteRequest]) -> Any:
            assert self._may_go.wait(SECONDS)
            return self._submit_many(requests)

        self._monkeypatch.setattr(self._store, "submit_many", submit_many)

    def hold_and_fail(self) -> None:
        """Have writes wait until `go`, and fail then."""

        def submit_many(_: Sequence[WriteRequest]) -> Any:
            assert self._may_go.wait(SECONDS)
            return self.fail()

        self._monkeypatch.setattr(self._store, "submit_many", submit_many)

    def go(self) -> None:
        """Let them through."""
        self._may_go.set()

    def fail(self, *_: Any, **__: Any) -> Any:
        """Be a write that fails."""
        raise StorageFullError(self._store.path, "as told")

    def is_full(self) -> None:
        """Have all writes fail."""
        for name in ("submit_many", "set_attributes"):
            self._monkeypatch.setattr(self._store, name, self.fail)

    def is_well(self) -> None:
        """Undo it."""
        self._monkeypatch.undo()


@pytest.fixture
def store(open_store: Open) -> Store:
    return open_store(engine="lmdb")


@pytest.fixture
def disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(store, monkeypatch)


# Alarms


def alarm(action: int, kind: int = NOSPACE) -> rpc.AlarmRequest:
    return rpc.AlarmRequest(action=action, alarm=kind)


def kinds(found: bytes | str) -> list[int]:
    assert isinstance(found, bytes)
    return [one.alarm for one in rpc.AlarmResponse.FromString(found).alarms]


def test_an_alarm_is_there_when_it_is_written_and_who_asks_meanwhile_waits(store: Store, disk: Disk) -> None:
    async def main() -> None:
        async with running(store) as node:
            service = Maintenance(node)
            disk.hold()
            raised = ask(service.alarm, alarm(1))
            listed = ask(service.alarm, alarm(0, 0))
            status = ask(service.status, rpc.StatusRequest())
            await asyncio.sleep(0)
            assert (node.alarms.all(), node.alarms.is_nospace) == ([], False)
            assert not any(call.done() for call in (raised, listed, status))
            disk.go()
            assert kinds(await asyncio.wait_for(listed, SECONDS)) == [NOSPACE]
            found = await asyncio.wait_for(status, SECONDS)
            assert isinstance(found, bytes)
            assert list(rpc.StatusResponse.FromString(found).errors) == ["alarm:NOSPACE "]
            assert kinds(await raised) == [NOSPACE]
            assert node.alarms.is_nospace

    asyncio.run(main())


def test_an_alarm_that_was_not_written_is_not_there_and_one_that_could_not_be_disarmed_is(
    store: Store, disk: Disk
) -> None:
    async def main() -> None:
        async with running(store) as node:
            service = Maintenance(node)
            assert await text(ask(service.alarm, alarm(1, CORRUPT))) == "ok"
            disk.is_full()
            assert await text(ask(service.alarm, alarm(1))) == "StorageFullError"
            assert await text(ask(service.alarm, alarm(2, CORRUPT))) == "StorageFullError"
            disk.is_well()
            assert kinds(await ask(service.alarm, alarm(0, 0))) == [CORRUPT]
            assert (node.alarms.is_nospace, node.alarms.is_corrupt) == (False, True)

    asyncio.run(main())


def test_of_two_who_disarm_an_alarm_one_has_done_it(store: Store) -> None:
    async def main() -> None:
        async with running(store) as node:
            service = Maintenance(node)
            calls = [ask(service.alarm, alarm(action)) for action in (2, 1, 1, 2, 2)]
            found = [kinds(await asyncio.wait_for(call, SECONDS)) for call in calls]
            assert found == [[], [NOSPACE], [NOSPACE], [NOSPACE], []]
            assert store.attributes("etcd/alarm/") == {}

    asyncio.run(main())


def test_the_quota_raises_its_alarm_once_and_again_if_it_was_not_written(store: Store, disk: Disk) -> None:
    async def main() -> None:
        async with running(store, quota_bytes=1) as node:
            service, kv = Maintenance(node), KV(node)
            put = rpc.PutRequest(key=b"k", value=b"v")
            refused = "RESOURCE_EXHAUSTED: etcdserver: mvcc: database space exceeded"
            disk.hold_and_fail()
            assert [await text(ask(kv.put, put)) for _ in range(3)] == [refused] * 3
            assert (node.alarms.under_way, node.alarms.is_nospace, node.alarms.all()) == (1, True, [])
            disk.go()
            assert kinds(await asyncio.wait_for(ask(service.alarm, alarm(0)), SECONDS)) == []
            assert not node.alarms.is_nospace
            disk.is_well()
            assert await text(ask(kv.put, put)) == refused
            assert node.alarms.is_nospace
            assert kinds(await asyncio.wait_for(ask(service.alarm, alarm(0)), SECONDS)) == [NOSPACE]
            assert len(store.attributes("etcd/alarm/")) == 1

    asyncio.run(main())


# Members


def test_peer_urls_that_were_not_written_are_not_the_members(store: Store, disk: Disk) -> None:
    async def main() -> None:
        async with running(store) as node:
            service = Cluster(node)
            update = rpc.MemberUpdateRequest(ID=node.member_id, peerURLs=["http://b:1"])
            disk.is_full()
            assert await text(ask(service.update, update)) == "StorageFullError"
            disk.is_well()
            assert node.members.own.peer_urls == ("http://localhost:2380",)
            (member,) = node.members.all()
            assert member == node.members.own
            assert await text(ask(service.update, update)) == "ok"
            assert node.members.own.peer_urls == ("http://b:1",)
            assert node.members.own.name == "default"

    asyncio.run(main())


# Downgrades

IN_PROGRESS = "FAILED_PRECONDITION: etcdserver: cluster has a downgrade job in progress"
ENABLE, CANCEL = 1, 2


def downgrade(action: int, version: str = "3.5") -> rpc.DowngradeRequest:
    return rpc.DowngradeRequest(action=action, version=version)


@pytest.mark.parametrize("engine", ["lmdb", "memory"])
def test_of_two_who_begin_a_downgrade_at_once_one_does(open_store: Open, engine: str) -> None:
    async def main() -> None:
        async with running(open_store(engine=engine)) as node:
            service = Maintenance(node)
            calls = [ask(service.downgrade, downgrade(action)) for action in (ENABLE, ENABLE, CANCEL, ENABLE, ENABLE)]
            assert [await text(call) for call in calls] == ["ok", IN_PROGRESS, "ok", "ok", IN_PROGRESS]

    asyncio.run(main())


def test_of_two_servers_of_one_store_one_begins_a_downgrade(store: Store) -> None:
    async def main() -> None:
        async with running(store) as one, running(store) as other:
            services = [Maintenance(node) for node in (one, other)]
            calls = [ask(service.downgrade, downgrade(ENABLE)) for service in services]
            assert sorted([await text(call) for call in calls]) == [IN_PROGRESS, "ok"]

    asyncio.run(main())


def test_where_cancelling_nothing_is_refused_one_of_two_is(store: Store) -> None:
    persona = V3_4 if V3_4.refuses_idle_cancel else V3_6
    assert persona.refuses_idle_cancel

    async def main() -> None:
        async with running(store, persona) as node:
            service = Maintenance(node)
            store.set_attributes({"etcd/downgrade": b"3.4.0"})
            calls = [ask(service.downgrade, downgrade(CANCEL)) for _ in range(2)]
            refused = "FAILED_PRECONDITION: etcdserver: no inflight downgrade job"
            assert [await text(call) for call in calls] == ["ok", refused]

    asyncio.run(main())


# Ports


class Connection:
    def __init__(self, port: Port, error: Exception | None) -> None:
        self._port = port
        self._error = error
        self.looks = 0
        self.is_aborted = False

    def look_after(self, now: float) -> None:
        self.looks += 1
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        self.is_aborted = True
        self._port.part(self)

    drain = abort


def test_a_connection_that_cannot_be_looked_after_goes_and_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: told.append(context))
        looks: list[Callable[[], None]] = []
        monkeypatch.setattr(
            loop, "call_later", lambda _, callback: looks.append(callback) or asyncio.TimerHandle(0, callback, (), loop)
        )
        port = Port(Router({}), TransportLimits())
        connections = [Connection(port, ValueError() if number == 1 else None) for number in range(3)]
        for connection in connections:
            port.greet(connection)
        for _ in range(2):
            (look,) = looks
            looks.clear()
            look()
        assert [connection.looks for connection in connections] == [2, 1, 2]
        assert [connection.is_aborted for connection in connections] == [False, True, False]
        assert [type(context["exception"]) for context in told] == [ValueError]
        await port.close()

    asyncio.run(main())
