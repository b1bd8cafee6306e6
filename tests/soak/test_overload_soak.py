"""Five thousand connections that ask for more than can be done: latency grows, memory does not, nobody is left out.

Most of them have a few calls in flight each, and the next when one is answered; some send puts as fast as their sockets
take them, whatever is answered; some take nothing of what they ask for. One more asks for a key and a PING, a few
times a second: how long that takes, and how much memory the server has, is what is measured.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mvccstore
from mvccstore.server.messages import rpc
from tests.oracle.process import free_ports
from tests.soak.crowd import Crowd, NextCall, Peer
from tests.soak.test_server_soak import private_kib
from tests.wire.client import Client, Endpoint

SECONDS = float(os.environ.get("OVERLOAD_SOAK_SECONDS", "60"))
CONNECTIONS = int(os.environ.get("OVERLOAD_SOAK_CONNECTIONS", "5000"))
GREEDY, DEAF = CONNECTIONS // 50, CONNECTIONS // 50
DEPTH = 8
FILES_SPARE = 200
GROWTH_MIB_MAX = 400
"""Over what it has with the connections alone: what may wait of them, their answers, and a commit of 5,000 puts."""
LATE_GROWTH_MIB_MAX = 60
"""Of the second half of the time over the first: the hub's tail fills, and what malloc keeps."""
PROBE_SHARE_MAX = 0.5
"""How long a small range and a PING take, of what the calls take that the others have in flight; medians. It is no
number of seconds, as the machine has the clients too, and whatever else."""
KEYS = 2_000
PUT, RANGE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"

pytestmark = pytest.mark.soak


def mixed(seeded: random.Random) -> NextCall:
    """Half of it puts; small ranges, and now and then one of a hundred keys."""
    value = bytes(256)

    def call() -> tuple[str, bytes]:
        key = b"k/%05d" % seeded.randrange(KEYS)
        chance = seeded.random()
        if chance < 0.5:
            return PUT, rpc.PutRequest(key=key, value=value).SerializeToString()
        if chance < 0.98:
            return RANGE, rpc.RangeRequest(key=key).SerializeToString()
        return RANGE, rpc.RangeRequest(key=key, range_end=b"k0", limit=100).SerializeToString()

    return call


def puts() -> tuple[str, bytes]:
    return PUT, rpc.PutRequest(key=b"greedy", value=bytes(1_000)).SerializeToString()


def ranges() -> tuple[str, bytes]:
    return RANGE, rpc.RangeRequest(key=b"k/", range_end=b"k0", limit=1_000).SerializeToString()


def allow_files(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        if hard != resource.RLIM_INFINITY and hard < number:
            pytest.skip(f"{number} files are needed, and no more than {hard} are allowed: raise `ulimit -Hn`")
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


@contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "mvccstore.server.etcd_shim", "--data-dir", str(folder), "--log-level", "error"),
        *("--listen-client-urls", url, "--advertise-client-urls", url),
    ]
    process = subprocess.Popen(command)
    try:
        with Client(Endpoint("127.0.0.1", port)) as client:
            for number in range(KEYS):
                client.unary(PUT, rpc.PutRequest(key=b"k/%05d" % number, value=bytes(256)), timeout=30)
        yield process, port
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_stays_while_five_thousand_connections_ask_for_too_much(
    tmp_path: Path, summarize: Callable[[str], None]
) -> None:
    allow_files(CONNECTIONS + FILES_SPARE)
    with served(tmp_path / "data") as (process, port):
        alone = private_kib(process.pid) / 1024
        peers = []
        for number in range(CONNECTIONS - 1):
            if number < GREEDY:
                peers.append(Peer(port, puts, 0))
            elif number < GREEDY + DEAF:
                peers.append(Peer(port, ranges, 0, is_reading=False))
            else:
                peers.append(Peer(port, mixed(random.Random(number)), DEPTH))
        crowd = Crowd(peers)
        try:
            idle = private_kib(process.pid) / 1024
            probe = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.probe", str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            sizes = measure(crowd, process.pid)
            assert probe.stdin is not None
            probe.stdin.write(b"\n")
            probe.stdin.flush()
            refused = finish(crowd)
        finally:
            crowd.close()
        answers = sum((peer.answers for peer in peers), Counter[str]())
        lost = sum(peer.is_lost for peer in peers)
        waits = sorted(json.loads(probe.communicate(timeout=120)[0]))
        summarize(
            f"{CONNECTIONS} connections ({GREEDY} that pipeline puts without end, {DEAF} that read nothing), "
            f"{SECONDS:g} s: {dict(answers)}, {lost} lost; a small range and a PING beside them {len(waits)} times, "
            f"median {statistics.median(waits) * 1e3:.0f} ms, longest {waits[-1] * 1e3:.0f} ms; "
            f"private MiB: {alone:.0f} alone, {idle:.0f} with idle connections, "
            f"{sizes[0]:.0f} first, {sizes[-1]:.0f} last, {max(sizes):.0f} at most"
        )
        assert set(answers) <= {"ok", "too many requests"}, answers
        assert refused < answers["ok"] / 10
        assert lost == 0
        assert len(waits) > 10
        others = peers[GREEDY + DEAF :]
        summarize(fairness(others))
        others_wait = SECONDS * DEPTH / statistics.median(peer.answered for peer in others)
        assert statistics.median(waits) < PROBE_SHARE_MAX * others_wait
        assert max(sizes) - idle < GROWTH_MIB_MAX, sizes
        half = len(sizes) // 2
        assert max(sizes[half:]) <= max(sizes[:half]) + LATE_GROWTH_MIB_MAX, sizes
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with mvccstore.open(tmp_path / "data" / "store.mvcc") as store:
        assert store.check() == []


def measure(crowd: Crowd, pid: int) -> list[float]:
    """Drive the load for its time; return the memory of the server, now and then."""
    sizes: list[float] = []
    begun = time.monotonic()
    while (now := time.monotonic()) < begun + SECONDS:
        crowd.turn(0.01)
        if now > begun + len(sizes) * SECONDS / 24:
            sizes.append(private_kib(pid) / 1024)
    return sizes


def finish(crowd: Crowd) -> int:
    """Wait until everything that was sent is answered; return how much was refused."""
    give_up = time.monotonic() + 120
    while any(crowd.end()):
        assert time.monotonic() < give_up, "some of what was asked for is not answered"
        crowd.turn(0.1)
    return sum(peer.answers["too many requests"] for peer in crowd.peers)


def fairness(peers: list[Peer]) -> str:
    """Hold that those who ask for the same get about the same, and tell."""
    done = sorted(peer.answered for peer in peers)
    median = done[len(done) // 2]
    assert done[0] >= median / 3, done[:50]
    assert done[-1] <= median * 3, done[-50:]
    return f"answers of a connection with {DEPTH} calls in flight: {done[0]} to {done[-1]}, median {median}"
