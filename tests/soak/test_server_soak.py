"""A mixed load on a server process: memory stays flat, and after a kill nothing that was acknowledged is missing.

Run by `make soak` for a minute; `SERVER_SOAK_SECONDS` makes it longer. Half of the time settles what is bounded (the
hub's tail, LMDB's page cache, Python's arenas); what the process has of its own is then held against that.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import mvccstore
from mvccstore.server.messages import rpc
from tests.oracle.process import free_ports
from tests.wire.client import Client, Endpoint, RpcFailure

SECONDS = float(os.environ.get("SERVER_SOAK_SECONDS", "60"))
WRITERS = 5
WATCHERS = 4
"""And one who compacts: ten clients."""
GROWTH_MAX = 0.15
KEYS = 500
KV, WATCH, LEASE = "/etcdserverpb.KV", "/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease"

pytestmark = pytest.mark.soak


class Load:
    """Clients that put, delete, range, txn, lease, compact and watch; and what they were told."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.stopping = threading.Event()
        self.errors: list[BaseException] = []
        self.acknowledged: list[dict[bytes, tuple[bytes | None, int]]] = [{} for _ in range(WRITERS)]
        self.calls = 0
        self.events = 0
        self.revision = 0
        self._threads = [
            *(threading.Thread(target=self._run, args=(self._write, number)) for number in range(WRITERS)),
            *(threading.Thread(target=self._run, args=(self._watch, number)) for number in range(WATCHERS)),
            threading.Thread(target=self._run, args=(self._compact, 0)),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _run(self, work: Any, number: int) -> None:
        try:
            with Client(self.endpoint) as client:
                while not self.stopping.is_set():
                    work(client, number)
        except RpcFailure as failure:
            if not (self.stopping.is_set() and failure.code == "UNAVAILABLE"):  # the kill
                self.errors.append(failure)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.errors.append(error)

    def _write(self, client: Client, number: int) -> None:
        seeded = random.Random(f"{number}/{self.calls}")
        own = self.acknowledged[number]
        lease = client.unary(f"{LEASE}/LeaseGrant", rpc.LeaseGrantRequest(TTL=600)).ID
        leased: set[bytes] = set()
        for step in range(200):
            if self.stopping.is_set():
                break
            key = b"%d/%03d" % (number, seeded.randrange(KEYS))
            value = b"%d" % step * seeded.randrange(1, 100)
            kind = seeded.randrange(6)
            if kind != 1:
                own.pop(key, None)  # until it is answered, either may be there
                leased.discard(key)
            match kind:
                case 0:
                    answer = client.unary(f"{KV}/DeleteRange", rpc.DeleteRangeRequest(key=key))
                    own[key] = (None, answer.header.revision)
                case 1:
                    answer = client.unary(
                        f"{KV}/Range", rpc.RangeRequest(key=b"%d/" % number, range_end=b"%d0" % number)
                    )
                    assert answer.count == len(answer.kvs)
                case 2:
                    put = rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, prev_kv=True))
                    answer = client.unary(f"{KV}/Txn", rpc.TxnRequest(success=[put]))
                    own[key] = (value, answer.header.revision)
                case _:
                    is_leased = step % 7 == 0
                    if is_leased:
                        leased.add(key)
                    request = rpc.PutRequest(key=key, value=value, lease=lease if is_leased else 0)
                    answer = client.unary(f"{KV}/Put", request)
                    own[key] = (value, answer.header.revision)
            self.calls += 1
            self.revision = max(self.revision, answer.header.revision)
        if not self.stopping.is_set():
            for key in leased:
                own.pop(key, None)
            client.unary(f"{LEASE}/LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease))

    def _watch(self, client: Client, number: int) -> None:
        create = rpc.WatchCreateRequest(key=b"%d/" % number, range_end=b"%d0" % number, prev_kv=True)
        with client.stream(WATCH, [rpc.WatchRequest(create_request=create)]) as stream:
            last = stream.receive().header.revision
            for _ in range(500):
                if self.stopping.is_set():
                    return
                with suppress(TimeoutError):
                    response = stream.receive(timeout=1)
                    for event in response.events:
                        assert event.kv.mod_revision >= last, "out of order"
                        last = event.kv.mod_revision
                    self.events += len(response.events)

    def _compact(self, client: Client, _: int) -> None:
        if self.revision > 2_000:
            with suppress(RpcFailure):
                client.unary(f"{KV}/Compact", rpc.CompactionRequest(revision=self.revision - 1_000, physical=True))
        self.stopping.wait(1)


def private_kib(pid: int) -> int:
    """Return what a process has of its own: resident, without the pages of files."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_server_under_load_stays_flat_and_loses_nothing_when_killed(
    tmp_path: Path, summarize: Callable[[str], None]
) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "mvccstore.server.etcd_shim", "--data-dir", str(tmp_path / "data")),
        *("--listen-client-urls", url, "--advertise-client-urls", url, "--log-level", "error"),
    ]
    process = subprocess.Popen(command)
    load = Load(Endpoint("127.0.0.1", port))
    try:
        load.start()
        sizes: list[int] = []
        for _ in range(12):
            time.sleep(SECONDS / 12)
            assert load.errors == []
            sizes.append(private_kib(process.pid))
        print(
            f"\nprivate MiB: {', '.join(f'{size / 1024:.1f}' for size in sizes)}; {load.calls} calls, {load.events} events"
        )
        summarize(
            f"ten clients, {SECONDS:g} s: {load.calls} calls to revision {load.revision}, {load.events} events; private MiB "
            f"{sizes[0] / 1024:.1f} first, {sizes[-1] / 1024:.1f} last"
        )
        load.stopping.set()
        process.send_signal(signal.SIGKILL)
        process.wait()
        load.stop()
        assert load.errors == []
        settled = max(sizes[:6])
        assert max(sizes[6:]) <= settled * (1 + GROWTH_MAX), sizes
        process = subprocess.Popen(command)
        with Client(load.endpoint) as client:
            for own in load.acknowledged:
                for key, (value, revision) in own.items():
                    answer = client.unary(f"{KV}/Range", rpc.RangeRequest(key=key))
                    assert answer.header.revision >= load.revision
                    found = answer.kvs[0] if answer.kvs else None
                    assert (found.value if found else None) == value, (key, revision)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    with mvccstore.open(tmp_path / "data" / "store.mvcc") as store:
        assert store.check() == []
