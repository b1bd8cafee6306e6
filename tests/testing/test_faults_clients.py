"""Every fault, and what client libraries make of it: as they come, and where they were told to try again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aetcd
import grpc
import pytest

from mvccstore.testing import etcd
from mvccstore.testing.etcd_server import Etcd
from mvccstore.testing.faults import Fault, Faults
from tests.testing.fault_clients import ATTEMPTS, LIBRARIES, SECONDS, Aetcd, Failed, FaultClient, Gateway

Make = Callable[[Faults], Fault]


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> type[FaultClient]:
    return LIBRARIES[request.param]


@pytest.fixture(params=[False, True], ids=["plain", "retrying"])
def client(request: pytest.FixtureRequest, server: Etcd, library: type[FaultClient]) -> Iterator[FaultClient]:
    with library(server, retries=request.param) as client:
        yield client


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of one call of a client."""

    works: bool
    calls: int
    """How often the server was asked."""
    version: int = 0
    """Of the key that is put: how often it was."""


ONCE, NEVER = Outcome(True, 1, 1), Outcome(False, 1)
PUTS: dict[str, tuple[Make, Outcome, Outcome]] = {
    "fails before": (lambda faults: faults.fail("Put", times=2), NEVER, Outcome(True, 3, 1)),
    # Whoever retries what may have been carried out has it carried out again; the server does nothing twice.
    "fails after": (
        lambda faults: faults.fail("Put", times=2, when="after"),
        Outcome(False, 1, 1),
        Outcome(True, 3, 3),
    ),
    "fails for good": (lambda faults: faults.fail("KV"), NEVER, Outcome(False, ATTEMPTS)),
    "fails by its own fault": (lambda faults: faults.fail("Put", "invalid_argument", "no"), NEVER, NEVER),
    "is late": (lambda faults: faults.delay("Put", 0.01), ONCE, ONCE),
    "is dropped before": (lambda faults: faults.drop("Put", times=2), NEVER, Outcome(True, 3, 1)),
    "is dropped after": (
        lambda faults: faults.drop("Put", times=2, when="after"),
        Outcome(False, 1, 1),
        Outcome(True, 3, 3),
    ),
    "finds no leader": (lambda faults: faults.no_leader(times=2), NEVER, Outcome(True, 3, 1)),
    "sees the leader change": (lambda faults: faults.leader_changed(times=1), NEVER, Outcome(True, 2, 1)),
    "finds no space": (lambda faults: faults.no_space(), NEVER, NEVER),
    "finds a corrupt store": (lambda faults: faults.corrupt(), NEVER, NEVER),
    "is no matter of watches": (lambda faults: faults.stall_watches(), ONCE, ONCE),
    "is no matter of keep-alives": (lambda faults: faults.stall_keep_alives(), ONCE, ONCE),
}
GETS: dict[str, tuple[Make, Outcome, Outcome]] = {
    "fails": (lambda faults: faults.fail("Range", times=2), NEVER, Outcome(True, 3)),
    "fails for good": (lambda faults: faults.fail("Range"), NEVER, Outcome(False, ATTEMPTS)),
    "is dropped": (lambda faults: faults.drop("Range", times=2, when="after"), NEVER, Outcome(True, 3)),
    "finds no leader": (lambda faults: faults.no_leader(times=3), NEVER, Outcome(True, 4)),
    "needs no space": (lambda faults: faults.no_space(), Outcome(True, 1), Outcome(True, 1)),
    "reads what is corrupt": (lambda faults: faults.corrupt(), Outcome(True, 1), Outcome(True, 1)),
}


def works(call: Callable[[], object]) -> bool:
    try:
        call()
    except Failed:
        return False
    return True


def _goes_on(server: Etcd, client: FaultClient) -> None:
    """Hold that others are served. Whether this client's next call finds its connection gone is its own affair."""
    with type(client)(server, retries=False) as other:
        other.put(b"k", b"afterwards")
        assert other.get(b"k") == b"afterwards"


@pytest.mark.parametrize("name", PUTS)
def test_a_put(server: Etcd, client: FaultClient, name: str) -> None:
    make, plain, retrying = PUTS[name]
    expected = retrying if client.retries else plain
    with make(server.faults) as fault:
        has_worked = works(lambda: client.put(b"k", b"v"))
    kv = server.store.get(b"k")
    assert Outcome(has_worked, len(server.calls("Put")), 0 if kv is None else kv.version) == expected
    # Each time that it was carried out was one call, whether or not its client was told.
    assert server.store.revision == 1 + expected.version
    if fault.count:
        assert fault.count == sum(bool(call.fault) for call in server.calls)
    _goes_on(server, client)


@pytest.mark.parametrize("name", GETS)
def test_a_get(server: Etcd, client: FaultClient, name: str) -> None:
    make, plain, retrying = GETS[name]
    expected = retrying if client.retries else plain
    server.store.put(b"k", b"v")
    with make(server.faults):
        has_worked = works(lambda: client.get(b"k"))
    assert Outcome(has_worked, len(server.calls("Range"))) == expected
    _goes_on(server, client)


def test_faults_at_random(server: Etcd, client: FaultClient) -> None:
    with server.faults.random(11, rate=0.3, kinds=("before", "delay")) as fault:
        has_worked = [works(lambda number=number: client.put(b"%d" % number, b"v")) for number in range(30)]  # type: ignore[misc]
    assert fault.count >= 5
    assert all(has_worked) == client.retries
    there = [server.store.get(b"%d" % number) for number in range(30)]
    assert [kv is not None for kv in there] == has_worked
    assert {kv.version for kv in there if kv is not None} == {1}


def test_connections_that_were_dropped_are_made_again(server: Etcd, client: FaultClient) -> None:
    client.put(b"k", b"1")
    assert server.drop_connections() >= 1
    server.settle()
    # Whoever has noticed connects again, whoever has not is told by the call, and tries that again if it may.
    has_worked = works(lambda: client.get(b"k"))
    assert has_worked or not client.retries
    with type(client)(server, retries=False) as other:
        assert other.get(b"k") == b"1"


def test_while_connections_are_refused_nothing_goes(server: Etcd, library: type[FaultClient]) -> None:
    with library(server, retries=False) as client:
        client.put(b"k", b"1")
        with server.faults.refuse_connections():
            assert not works(lambda: client.put(b"k", b"2"))
    with library(server, retries=False) as client:
        assert client.get(b"k") == b"1"


def test_a_token_that_has_expired_takes_a_new_one(library: type[FaultClient]) -> None:
    with etcd(auth={"alice": "pw"}) as server:
        with library(server, retries=True, credentials=("alice", "pw")) as client:
            client.put(b"k", b"1")
            assert server.faults.expire_token("alice") == 1
            assert not works(lambda: client.get(b"k"))
            assert len(server.calls("Range")) == 1  # which nobody tries again
        with library(server, retries=True, credentials=("alice", "pw")) as client:
            assert client.get(b"k") == b"1"


# Watches and leases, as aetcd has them


@pytest.fixture
def aetcd_client(server: Etcd) -> Iterator[Aetcd]:
    with Aetcd(server, retries=False) as client:
        yield client


class Watching:
    """A watch of aetcd's, and what it has shown."""

    def __init__(self, client: Aetcd, key: bytes) -> None:
        self._run = client.run
        self._events = aiter(client.run(client.client.watch(key)))

    def next(self) -> bytes:
        async def work() -> bytes:
            return (await anext(self._events)).kv.value

        found: bytes = self._run(work())
        return found


def test_a_stalled_watch_shows_everything_afterwards(server: Etcd, aetcd_client: Aetcd) -> None:
    watching = Watching(aetcd_client, b"k")
    with server.faults.stall_watches() as fault:
        for number in range(5):
            server.store.put(b"k", b"%d" % number)
            server.settle()
        assert fault.count >= 1
        assert len(server.calls("Watch")[0].answers) == 1  # that it was created
    assert [watching.next() for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_compaction_under_a_watch_is_told(server: Etcd, aetcd_client: Aetcd) -> None:
    watching = Watching(aetcd_client, b"k")
    server.store.put(b"k", b"1")
    assert watching.next() == b"1"
    assert server.faults.cancel_watches(compact_revision=7) == 1
    with pytest.raises(aetcd.RevisionCompactedError, match="below 7"):
        watching.next()


def test_a_watch_whose_connection_drops_ends_with_an_error(server: Etcd, aetcd_client: Aetcd) -> None:
    watching = Watching(aetcd_client, b"k")
    server.store.put(b"k", b"1")
    assert watching.next() == b"1"
    server.drop_connections()
    with pytest.raises((aetcd.ClientError, grpc.RpcError)):
        watching.next()
    with Aetcd(server, retries=False) as other:
        again = Watching(other, b"k")
        server.store.put(b"k", b"2")
        assert again.next() == b"2"


def test_a_lease_that_has_expired_is_told_when_it_is_refreshed(server: Etcd, aetcd_client: Aetcd) -> None:
    lease = aetcd_client.run(aetcd_client.client.lease(60))
    assert aetcd_client.run(lease.refresh()).TTL == 60
    server.store.put(b"k", lease=lease.id)
    assert server.faults.expire_lease(lease.id) == 1
    assert aetcd_client.run(lease.refresh()).TTL == 0


def test_a_lease_whose_keep_alives_stall_ends() -> None:
    with etcd(clock="virtual") as server, Aetcd(server, retries=False) as client:
        lease = client.run(client.client.lease(60))
        with server.faults.stall_keep_alives() as fault:

            async def refresh_too_late() -> Any:
                refreshing = asyncio.ensure_future(lease.refresh())
                while not fault.count:
                    await asyncio.to_thread(server.settle)
                await asyncio.to_thread(server.clock.advance, 60)
                await asyncio.to_thread(fault.end)
                return await refreshing

            assert client.run(refresh_too_late()).TTL == 0


# As etcd3gw has them


@pytest.fixture
def gateway(server: Etcd) -> Iterator[Gateway]:
    with Gateway(server, retries=False) as client:
        yield client


def test_a_stalled_watch_of_json_shows_everything_afterwards(server: Etcd, gateway: Gateway) -> None:
    events, cancel = gateway.client.watch("k")
    try:
        while not server.calls.under_way() or not server.calls("Watch")[0].answers:
            server.settle()
        with server.faults.stall_watches() as fault:
            server.store.put(b"k", b"1")
            server.store.put(b"k", b"2")
            while not fault.count:
                server.settle()
        assert [next(events)["kv"]["value"] for _ in range(2)] == [b"1", b"2"]
    finally:
        cancel()


def test_a_lease_of_json_whose_keep_alives_stall_ends() -> None:
    with etcd(clock="virtual") as server, Gateway(server, retries=False) as client:
        lease = client.client.lease(60)
        assert lease.refresh() == 60
        found: list[int] = []
        with server.faults.stall_keep_alives() as fault:
            thread = threading.Thread(target=lambda: found.append(lease.refresh()))
            thread.start()
            while not fault.count:
                server.settle()
            server.clock.advance(60)
        thread.join(SECONDS)
        assert found == [-1]  # so it calls a TTL that JSON leaves out
