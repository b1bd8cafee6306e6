"""A server that is killed again and again under ten clients: they notice a pause, and nothing else.

Killed as it runs, on a disk that syncs slowly, on one that is full (for the journal as well, or for the store's file
alone), or when its quota is used up.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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

ROOT = Path(__file__).parents[2]
READY = b"ready to serve client requests"
STATUS, TIME_TO_LIVE = "/etcdserverpb.Maintenance/Status", "/etcdserverpb.Lease/LeaseTimeToLive"
ALARM = "/etcdserverpb.Maintenance/Alarm"
CALLS_MAX = 150
"""That are answered between two kills, at most."""
ROOM_BYTES = 400_000
"""By which the files may grow until the disk is full, or the quota used up."""
VALUE_BYTES = 3_000
"""Of values where there is little room."""
REFUSALS_MAX = 20

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@dataclass(frozen=True)
class Trouble:
    """What is wrong with the disk of a server until it is killed."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """For `faulty_server`."""
    arguments: tuple[str, ...] = ()
    has_little_room: bool = False
    calls_max: int = CALLS_MAX


def trouble(name: str, folder: Path) -> Trouble:
    """Return a kind of trouble, as it is for what is in the folder."""
    largest = max((path.stat().st_size for path in folder.glob("*")), default=0)
    match name:
        case "none":
            return Trouble(name)
        case "slow":
            return Trouble(name, {"FAULT_SYNC_MS": "40"}, calls_max=CALLS_MAX // 5)
        case "full" | "fixed":
            full = {"FAULT_FILE_BYTES": str(largest + ROOM_BYTES)}
            if name == "full":  # else the journal has all room there is, and what it has does not fit where it belongs
                full["FAULT_GROWTH_BYTES"] = str(ROOM_BYTES)
            return Trouble(name, full, has_little_room=True)
        case _:
            assert name == "quota"
            return Trouble(name, {}, (f"--quota-backend-bytes={largest + ROOM_BYTES}",), has_little_room=True)


@contextmanager
def running(folder: Path, endpoint: Endpoint, disk: Trouble | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is killed in the end, if it was not before."""
    url = f"http://{endpoint.target}"
    disk = disk or Trouble("none")
    command = [
        *(sys.executable, "-m", "tests.crash.faulty_server", "--data-dir", str(folder)),
        *("--listen-client-urls", url, "--advertise-client-urls", url, *disk.arguments),
    ]
    environment = {**os.environ, **disk.environment, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, cwd=ROOT)
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
        for alarm in client.unary(ALARM, rpc.AlarmRequest()).alarms:  # of the disk before
            disarm = rpc.AlarmRequest(action=2, memberID=alarm.memberID, alarm=alarm.alarm)
            client.unary(ALARM, disarm)
        status = client.unary(STATUS, rpc.StatusRequest())
        return status.raftTerm, status.raftIndex


def kill_repeatedly(folder: Path, kills: int, seed: int, disks: Sequence[str] = ("none",)) -> str:
    """Return what was done."""
    seeded = random.Random(seed)
    endpoint = Endpoint("127.0.0.1", free_ports(1)[0])
    load = Load(endpoint, seed, 0 if disks == ("none",) else VALUE_BYTES)
    term = index = 0
    for number in range(kills):
        disk = trouble(disks[number % len(disks)], folder)
        with running(folder, endpoint, disk) as process:
            last_term, last_index = term, index
            term, index = look(endpoint, load)
            assert term > last_term
            assert index >= last_index
            load.go_on()
            if disk.has_little_room:
                load.wait_for_refusals(seeded.randrange(1, REFUSALS_MAX))
            else:
                load.wait_for(seeded.randrange(1, disk.calls_max))
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
    assert load.resumed >= kills, "the watches were not cut"
    return (
        f"{kills} kills ({', '.join(dict.fromkeys(disks))}), seed {seed}: {len(calls)} calls, {load.unanswered} without an answer, "
        f"{load.refused} refused, {len(load.leases)} leases, {load.resumed} watches resumed; nothing lost"
    )


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


@pytest.mark.parametrize("disk", ["slow", "full", "fixed", "quota"])
def test_a_server_killed_on_a_disk_in_trouble_loses_nothing(tmp_path: Path, disk: str) -> None:
    kill_repeatedly(tmp_path / "data", 2, seed=3, disks=(disk,))


@pytest.mark.soak
def test_a_server_killed_two_hundred_times(tmp_path: Path, summarize: Callable[[str], None]) -> None:
    summarize(kill_repeatedly(tmp_path / "data", 200, seed=2))


@pytest.mark.soak
def test_a_server_killed_two_hundred_times_on_disks_in_trouble(
    tmp_path: Path, summarize: Callable[[str], None]
) -> None:
    disks = ("full", "slow", "quota", "none") * 6 + (
        "fixed",
    )  # which leaves 20 MB, and everything is checked each time
    summarize(kill_repeatedly(tmp_path / "data", 200, seed=4, disks=disks))
