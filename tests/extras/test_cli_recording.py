"""`mvccstore record` and `mvccstore replay`, each a process: what they say, how they end, how much memory they take."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mvccstore.server.messages import rpc
from mvccstore.testing import etcd
from mvccstore.testing.cassette import read_cassette
from mvccstore.testing.etcd_server import Etcd
from tests.extras.cli_kit import environment, spawn
from tests.oracle.process import free_ports
from tests.testing.recording_kit import KV, SNAPSHOT, WATCH, create, get, put
from tests.wire.client import Client, Endpoint, RpcFailure, StreamEnd

SECONDS = 60


class Running:
    """A command that serves, until it is told to stop."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mvccstore", *arguments],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        self.first = self._process.stderr.readline()
        found = re.match(r"mvccstore: http://(\S+):(\d+) ", self.first)
        if found is None:
            self._process.kill()
            raise AssertionError(self.first + self._process.communicate()[1])
        self.endpoint = Endpoint(found[1], int(found[2]))

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self._process.send_signal(number)
        out, err = self._process.communicate(timeout=SECONDS)
        return self._process.returncode, out, err

    def peak_kb(self) -> int:
        """Return the most memory it has ever had."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1])

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def running(*arguments: str) -> Iterator[Running]:
    process = Running(*arguments)
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture
def upstream() -> Iterator[Etcd]:
    with etcd() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.jsonl"


def record(upstream: Etcd, path: Path, *more: str) -> tuple[str, ...]:
    return ("record", "--upstream", upstream.url, "--cassette", str(path), *more)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_completes_the_cassette(upstream: Etcd, path: Path, number: int) -> None:
    with running(*record(upstream, path)) as recorder, Client(recorder.endpoint) as client:
        assert f"passes on to {upstream.url}, etcd {read_cassette(path).etcd}, into {path}" in recorder.first
        client.unary(KV + "Put", put(b"a", b"1"))
        client.stream(WATCH, [create(b"a")]).receive()
        code, out, err = recorder.stop(number)
    assert (code, out, err) == (0, "", f"mvccstore: 2 calls in {path}\n")
    calls = read_cassette(path).calls
    assert [(call.path, call.ended_by) for call in calls] == [(KV + "Put", None), (WATCH, "recorder")]


def test_replay_serves_it_and_says_what_was_missing(upstream: Etcd, path: Path) -> None:
    with running(*record(upstream, path)) as recorder, Client(recorder.endpoint) as client:
        for key in (b"a", b"b"):
            client.unary(KV + "Put", put(key, b"1"))
        recorder.stop()
    (port,) = free_ports(1)
    with running("replay", str(path), "--listen", f"127.0.0.1:{port}") as replay, Client(replay.endpoint) as client:
        assert replay.endpoint.port == port
        assert "2 calls of etcd 3.6" in replay.first
        client.unary(KV + "Put", put(b"a", b"1"))
        code, out, err = replay.stop(signal.SIGINT)
    assert (code, out, err) == (0, 'unused: line 4: KV.Put(key: "b" value: "1")\n', "")
    with running("replay", str(path), "--json") as replay, Client(replay.endpoint) as client:
        with pytest.raises(RpcFailure, match="FAILED_PRECONDITION"):
            client.unary(KV + "Put", put(b"a", b"2"))
        code, out, _ = replay.stop()
    assert code == 1
    assert json.loads(out) == {
        "gaps": [
            {
                "asked": 'KV.Put(key: "a" value: "2")',
                "nearest": 'the nearest is line 3: KV.Put(key: "a" value: "1")',
                "times": 1,
            }
        ],
        "unused": [
            {"line": 3, "call": 'KV.Put(key: "a" value: "1")'},
            {"line": 4, "call": 'KV.Put(key: "b" value: "1")'},
        ],
    }
    with running("replay", str(path), "--strict") as replay:
        assert replay.stop()[0] == 1


def test_what_was_not_recorded_is_said(upstream: Etcd, path: Path) -> None:
    with running(*record(upstream, path)) as recorder:
        with socket.create_connection((recorder.endpoint.host, recorder.endpoint.port), SECONDS) as sock:
            sock.sendall(b"this is no protocol\r\n\r\n")
            while sock.recv(1_000):
                pass
        code, _, err = recorder.stop()
    assert code == 1
    assert "a connection is not recorded any further" in err


def test_secrets_are_kept_if_one_asks_for_that(path: Path) -> None:
    with etcd(auth={"alice": "hunter2"}) as upstream, running(*record(upstream, path, "--keep-secrets")) as recorder:
        with Client(recorder.endpoint) as client:
            assert client.post("/v3/auth/authenticate", {"name": "alice", "password": "hunter2"}).status == 200
        recorder.stop()
    assert "hunter2" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("record", "--upstream", "x", "--cassette", "c"), 2, "'x' is not host:port"),
        (("record", "--cassette", "c"), 2, "Missing option '--upstream'"),
        (("record", "--upstream", "x:1", "--cassette", "c", "--cert", "a"), 2, "a certificate and its key go together"),
        (("record", "--upstream", "127.0.0.1:1", "--cassette", "c"), 3, "http://127.0.0.1:1 cannot be reached"),
        (("replay", "none.jsonl"), 3, "none.jsonl: No such file"),
        (("replay", "none.jsonl", "--listen", "here"), 2, "'here' is not host:port"),
        (("replay", "/etc/passwd"), 3, "/etc/passwd, line 1: not JSON"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = spawn(*arguments)
    assert (done.code, said in done.err) == (code, True), done.err
    assert "Traceback" not in done.err


def test_a_file_that_is_there(upstream: Etcd, path: Path) -> None:
    path.write_text("mine")
    done = spawn(*record(upstream, path))
    assert (done.code, done.err) == (3, f"mvccstore: error: {path}: exists already (--overwrite replaces it)\n")
    with running(*record(upstream, path, "--overwrite")) as recorder:
        recorder.stop()
    assert read_cassette(path).calls == ()


def test_large_streams_take_no_more_memory_than_small_ones(upstream: Etcd, path: Path) -> None:
    """Events of 64 MiB and a snapshot of them leave a recorder as large as it was, but for a few messages."""
    block = bytes(range(256)) * 2_048
    with running(*record(upstream, path)) as recorder, Client(recorder.endpoint) as client:
        client.unary(KV + "Range", get(b"large/1"))
        before = recorder.peak_kb()
        with client.stream(WATCH, [create(b"large/", range_end=b"large0")]) as watch:
            watch.receive()
            for number in range(128):
                upstream.store.put(b"large/%d" % number, block)
                assert watch.receive().events[0].kv.value == block
        size = 0
        with client.stream(SNAPSHOT, [rpc.SnapshotRequest()]) as snapshot:
            try:
                while True:
                    size += len(snapshot.receive().blob)
            except StreamEnd:
                pass
        grown = recorder.peak_kb() - before
        recorder.stop()
    assert size > 64 << 20
    assert path.stat().st_size > 150 << 20
    assert grown < 32 << 10
