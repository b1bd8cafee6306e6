"""Faults, and what etcd's own Go client makes of them: it retries reads, and never what may have been written.

Where Go is not installed there is none, and this module is empty.
"""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from mvccstore.testing import etcd
from mvccstore.testing.etcd_server import Etcd
from mvccstore.testing.faults import Fault, Faults
from tests.oracle.build import find_go
from tests.testing.go_client.build import build

SECONDS = 30
Make = Callable[[Faults], Fault]


class GoClient:
    """The client as a process, which is told what to do line by line."""

    def __init__(self, server: Etcd) -> None:
        self._process = subprocess.Popen(
            [build(), server.endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self.next() == "ready"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))

    def next(self) -> str:
        """Return the next line that it says."""
        return self._lines.get(timeout=SECONDS)

    def tell(self, *words: str) -> str:
        """Give it a command; return what it says then."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self.next()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join(SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


if find_go() is not None:

    @pytest.fixture(scope="module")
    def shared() -> Iterator[tuple[Etcd, GoClient]]:
        with etcd() as server, GoClient(server) as client:
            yield server, client

    @pytest.fixture
    def server(shared: tuple[Etcd, GoClient]) -> Etcd:
        """The module's server, as it was when it was started; its client stays connected."""
        server, _ = shared
        server.reset()
        return server

    @pytest.fixture
    def client(shared: tuple[Etcd, GoClient]) -> GoClient:
        return shared[1]

    @pytest.mark.parametrize(
        ("make", "calls"),
        [
            (lambda faults: faults.fail("Range", times=5), 6),
            (lambda faults: faults.fail("Range", times=5, when="after"), 6),
            (lambda faults: faults.drop("Range", times=2), 3),
            (lambda faults: faults.drop("Range", times=2, when="after"), 3),
            (lambda faults: faults.no_leader(times=3), 4),
            (lambda faults: faults.leader_changed(times=3), 4),
        ],
    )
    def test_reads_are_tried_until_they_work(server: Etcd, client: GoClient, make: Make, calls: int) -> None:
        server.store.put(b"k", b"v")
        with make(server.faults) as fault:
            assert client.tell("get", "k") == "ok v"
        assert (len(server.calls("Range")), fault.count) == (calls, calls - 1)

    @pytest.mark.parametrize(
        ("make", "says", "version"),
        [
            (lambda faults: faults.fail("Put"), "error etcdserver: request timed out", 0),
            (lambda faults: faults.fail("Put", when="after"), "error etcdserver: request timed out", 1),
            (lambda faults: faults.drop("Put"), "error rpc error: code = Unavailable", 0),
            (lambda faults: faults.drop("Put", when="after"), "error rpc error: code = Unavailable", 1),
            (lambda faults: faults.no_leader(), "error etcdserver: no leader", 0),
            (lambda faults: faults.leader_changed(), "error etcdserver: leader changed", 0),
            (
                lambda faults: faults.no_space(),
                "error etcdserver: mvcc: database space exceeded",
                0,
            ),
            (lambda faults: faults.corrupt(), "error etcdserver: corrupt cluster", 0),
            (lambda faults: faults.delay("Put", 0.01), "ok 2", 1),
        ],
    )
    def test_puts_are_not_and_none_is_carried_out_twice(
        server: Etcd, client: GoClient, make: Make, says: str, version: int
    ) -> None:
        with make(server.faults):
            said = client.tell("put", "k", "v")
        assert says in said or says.replace("error rpc error: code = Unavailable", "error Unknown") in said
        assert len(server.calls("Put")) == 1
        kv = server.store.get(b"k")
        assert (0 if kv is None else kv.version, server.store.revision) == (version, 1 + version)
        assert client.tell("put", "k", "afterwards") == f"ok {2 + version}"

    def test_at_random_no_put_is_carried_out_twice_or_untold(server: Etcd, client: GoClient) -> None:
        said: list[str] = []
        with server.faults.random(7, rate=0.4) as fault:
            said += [client.tell("put", f"k{number}", "v") for number in range(40)]
            assert all(client.tell("get", f"k{number}").startswith("ok") for number in range(40))
        assert fault.count > 20
        for number, answer in enumerate(said):
            kv = server.store.get(b"k%d" % number)
            assert kv is None or kv.version == 1
            if answer.startswith("ok"):
                assert kv is not None
                assert answer == f"ok {kv.mod_revision}"
        assert len(server.calls("Put")) == 40
        assert {answer.split()[0] for answer in said} == {"ok", "error"}

    def test_watches_go_on_where_they_were_over_lost_connections(server: Etcd) -> None:
        with GoClient(server) as client:
            assert client.tell("watch", "k") == "created"
            for number in range(3):
                server.store.put(b"k", b"before %d" % number)
                assert client.next() == f"PUT before {number}"
                with server.faults.stall_watches():
                    server.store.put(b"k", b"lost %d" % number)
                    server.settle()
                    server.drop_connections()
                assert client.next() == f"PUT lost {number}"

    def test_watches_whose_history_is_compacted_are_told(server: Etcd) -> None:
        with GoClient(server) as client:
            assert client.tell("watch", "k") == "created"
            server.store.put(b"k", b"1")
            assert client.next() == "PUT 1"
            assert server.faults.cancel_watches(compact_revision=7) == 1
            assert client.next() == "cancelled etcdserver: mvcc: required revision has been compacted"
            assert client.next() == "closed"

    def test_leases_are_kept_alive_until_they_expire(server: Etcd) -> None:
        with GoClient(server) as client:
            said, number = client.tell("lease", "2").split()
            assert (said, client.tell("kept")) == ("ok", "ok")
            server.faults.expire_lease(int(number))
            while (said := client.tell("kept")) == "ok":
                pass
            assert said == "lost"
