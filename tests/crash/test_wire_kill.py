"""A server that is killed again and again under ten clients: they notice a pause, and nothing else."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pytest

import mvccstore
from mvccstore import KeyRange
from mvccstore.server.messages import rpc
from mvccstore.testing import check_history
from tests.crash.wire_load import TTL, Load
from tests.oracle.process import free_ports
from tests.wire.client import Client, Endpoint

READY = b"ready to serve client requests"
STATUS, TIME_TO_LIVE = "/etcdserverpb.Maintenance/Status", "/etcdserverpb.Lease/LeaseTimeToLive"
CALLS_MAX = 150
"""That are answered between two kills, at most."""

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@contextmanager
def running(folder: Path, endpoint: Endpoint, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is killed in the end, if it was not before."""
    url = f"http://{endpoint.target}"
    command = [
        *(sys.executable, "-m", "mvccstore.server.etcd_shim", "--data-dir", str(folder)),
        *("--listen-client-urls", url, "--advertise-client-urls", url, *arguments),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    log = cast("IO[bytes]", process.stderr)
    try:
        lines = []
        for line in log:
            lines.append(line)
            if READY in line:
                break
        else:
            pytest.fail(b"".join(lines).decode())
        yield process
    finally:
        process.kill()
        process.communicate()


def look(endpoint: Endpoint, load: Load) -> tuple[int, int]:
    """Check that leases live, and those that were revoked do not; return the server's term and index."""
    leases = dict(load.leases)
    revoked = set(load.revoked)
    with Client(endpoint) as client:
        for lease, key in leases.items():
            found = client.unary(TIME_TO_LIVE, rpc.LeaseTimeToLiveRequest(ID=lease, keys=True))
            assert found.grantedTTL == TTL, f"lease {lease:x} is lost"
            assert 0 < found.TTL <= TTL
            if key is not None:
                assert list(found.keys) == [key]
        for lease in revoked:
            assert client.unary(TIME_TO_LIVE, rpc.LeaseTimeToLiveRequest(ID=lease)).TTL == -1
        status = client.unary(STATUS, rpc.StatusRequest())
        return status.raftTerm, status.raftIndex


def kill_repeatedly(folder: Path, kills: int, seed: int) -> None:
    seeded = random.Random(seed)
    endpoint = Endpoint("127.0.0.1", free_ports(1)[0])
    load = Load(endpoint, seed)
    term = index = 0
    for _ in range(kills):
        with running(folder, endpoint) as process:
            last_term, last_index = term, index
            term, index = look(endpoint, load)
            assert term > last_term
            assert index >= last_index
            load.go_on()
            load.wait_for(seeded.randrange(1, CALLS_MAX))
            load.hold_back()
            process.kill()
            process.wait()
        known = max((call.revision for call in load.recording.operations), default=0)
        with mvccstore.open(folder / "store.mvcc", durability="os") as store:
            assert store.check() == []
            assert store.revision >= known
    with running(folder, endpoint) as process:
        look(endpoint, load)
        load.go_on()
        load.wait_for(CALLS_MAX)
        load.end()
        process.terminate()
        assert process.wait(60) == 0
    check_history(load.recording)
    check_store(folder / "store.mvcc", load)
    calls = load.recording.operations
    print(
        f"\n{kills} kills, seed {seed}: {len(calls)} calls, {load.unanswered} without an answer, "
        f"{len(load.leases)} leases, {load.resumed} watches resumed"
    )
    assert load.resumed >= kills, "the watches were not cut"


def check_store(path: Path, load: Load) -> None:
    """Hold every acknowledged write against the history of the store."""
    with mvccstore.open(path, durability="os") as store:
        assert store.check() == []
        kept = {event.revision: event for event in store.history(KeyRange.all())}
        for call in load.recording.operations:
            if call.is_write:
                event = kept.get(call.revision)
                assert event is not None, f"{call} is lost"
                assert (event.type, event.kv.key) == (call.kind, call.key)
                assert call.kind == "delete" or event.kv.value == call.value


def test_a_server_killed_under_ten_clients_loses_nothing(tmp_path: Path) -> None:
    kill_repeatedly(tmp_path / "data", 5, seed=1)


@pytest.mark.soak
def test_a_server_killed_two_hundred_times(tmp_path: Path) -> None:
    kill_repeatedly(tmp_path / "data", 200, seed=2)
