"""Recording an etcd and replaying it: clients see the same, gaps are told, damage is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mvccstore.server.messages import rpc
from mvccstore.testing import etcd
from mvccstore.testing.cassette import CassetteError, read
from mvccstore.testing.etcd_server import Etcd
from mvccstore.testing.recorder import Recorder
from mvccstore.testing.replay import Replay
from tests.oracle.process import running_etcd
from tests.wire.client import Client, Endpoint, RpcFailure

KV, WATCH, LEASE = "/etcdserverpb.KV/", "/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/"


@pytest.fixture
def cassette(tmp_path: Path) -> Path:
    return tmp_path / "x.cassette"


@pytest.fixture(params=["ours", pytest.param("real", marks=pytest.mark.etcd)])
def upstream(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "ours":
        with etcd() as server:
            yield server.endpoint
    else:
        with running_etcd(tmp_path / "real") as process:
            yield f"{process.host}:{process.port}"


def client_of(server: Recorder | Replay) -> Client:
    return Client(Endpoint(server.host, server.port))


def put(client: Client, key: bytes, value: bytes) -> Any:
    return client.unary(f"{KV}Put", rpc.PutRequest(key=key, value=value))


def get(client: Client, key: bytes) -> Any:
    return client.unary(f"{KV}Range", rpc.RangeRequest(key=key))


def program(client: Client) -> list[Any]:
    """What a program under test does; its answers."""
    seen = [get(client, b"a")]
    watch = client.stream(WATCH)
    watch.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"a")))
    seen.append(watch.receive())
    for value in (b"1", b"2"):
        seen += [put(client, b"a", value), watch.receive(), get(client, b"a")]
    watch.cancel()
    seen.append(client.unary(f"{LEASE}LeaseGrant", rpc.LeaseGrantRequest(ID=7, TTL=60)))
    beats = client.stream(f"{LEASE}LeaseKeepAlive")
    beats.send(rpc.LeaseKeepAliveRequest(ID=7))
    seen.append(beats.receive())
    beats.cancel()
    with pytest.raises(RpcFailure) as failure:
        client.unary(f"{KV}Compact", rpc.CompactionRequest(revision=99))
    return [*seen, str(failure.value)]


def test_what_was_recorded_is_replayed(upstream: str, cassette: Path) -> None:
    with Recorder(upstream, cassette) as recorder, client_of(recorder) as client:
        recorded = program(client)
    with Replay(cassette) as replay, client_of(replay) as client:
        assert program(client) == recorded
        replay.assert_complete()


def recorded(server: Etcd, cassette: Path) -> None:
    with Recorder(server.endpoint, cassette) as recorder, client_of(recorder) as client:
        put(client, b"a", b"1")


def test_what_was_not_recorded_is_a_gap(server: Etcd, cassette: Path) -> None:
    recorded(server, cassette)
    with Replay(cassette) as replay, client_of(replay) as client:
        assert replay.unused() == ['/etcdserverpb.KV/Put(key: "a" value: "1")']
        with pytest.raises(RpcFailure, match="not in the cassette") as failure:
            put(client, b"b", b"1")
        assert failure.value.code == "UNIMPLEMENTED"
        put(client, b"a", b"1")
        with pytest.raises(RpcFailure, match="not in the cassette"):
            put(client, b"a", b"1")
        gaps = [f'/etcdserverpb.KV/Put(key: "{key}" value: "1")' for key in "ba"]
        assert replay.gaps == gaps
        assert replay.unused() == []
        with pytest.raises(AssertionError, match=r'not in the cassette: .*key: "b"'):
            replay.assert_complete()


def test_watch_tells_of_a_write_when_it_was_asked_for(server: Etcd, cassette: Path) -> None:
    create = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"a"))
    with Recorder(server.endpoint, cassette) as recorder, client_of(recorder) as client:
        watch = client.stream(WATCH)
        watch.send(create)
        watch.receive()
        put(client, b"a", b"1")
        watch.receive()
        watch.cancel()
    with Replay(cassette) as replay, client_of(replay) as client:
        watch = client.stream(WATCH)
        watch.send(create)
        assert watch.receive().created
        assert len(replay.unused()) == 2
        put(client, b"a", b"1")
        assert watch.receive().events[0].kv.value == b"1"


def test_passwords_are_left_out_unless_asked_for(server: Etcd, cassette: Path) -> None:
    for has_secrets in (False, True):
        with (
            Recorder(server.endpoint, cassette, has_secrets=has_secrets) as recorder,
            client_of(recorder) as client,
        ):
            request = rpc.AuthUserAddRequest(name=f"u{has_secrets}", password="secret-word")
            client.unary("/etcdserverpb.Auth/UserAdd", request)
        assert ("secret-word" in cassette.read_text()) is has_secrets
        with Replay(cassette) as replay, client_of(replay) as client:
            client.unary("/etcdserverpb.Auth/UserAdd", request)
            replay.assert_complete()


def test_upstream_that_dies_is_unavailable_and_the_cassette_stays(cassette: Path) -> None:
    with etcd() as server, Recorder(server.endpoint, cassette) as recorder, client_of(recorder) as client:
        put(client, b"a", b"1")
        server.stop()
        with pytest.raises(RpcFailure) as failure:
            put(client, b"a", b"2")
        assert failure.value.code == "UNAVAILABLE"
    assert [take.steps[-1].code.name for take in read(cassette).takes] == ["OK", "UNAVAILABLE"]


KILLED = """
import sys
from mvccstore.testing.recorder import Recorder
with Recorder(sys.argv[1], sys.argv[2]) as recorder:
    print(recorder.endpoint, flush=True)
    sys.stdin.read()
"""


def test_recorder_that_is_killed_leaves_what_it_saw(server: Etcd, cassette: Path) -> None:
    command = [sys.executable, "-c", KILLED, server.endpoint, str(cassette)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        host, port = process.stdout.readline().strip().split(":")
        with Client(Endpoint(host, int(port))) as client:
            put(client, b"a", b"1")
            os.kill(process.pid, signal.SIGKILL)
    with Replay(cassette) as replay, client_of(replay) as client:
        assert put(client, b"a", b"1").header.revision == 2


def test_last_line_without_its_end_is_left_out(server: Etcd, cassette: Path) -> None:
    recorded(server, cassette)
    whole = cassette.read_bytes()
    cassette.write_bytes(whole[:-3])
    found = read(cassette)
    assert found.is_torn
    assert [step.kind for step in found.takes[0].steps] == ["request", "answer"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no header"),
        ("what\n", "line 1"),
        ("[]\n", "line 1: is not the header"),
        ('{"cassette":9}\n', "line 1: version 9"),
        ('{"cassette":1}\n{"call":1,"ms":0,"method":"/a/B"}\n', "line 2: no method '/a/B'"),
        ('{"cassette":1}\n{"call":1,"ms":0,"status":"OK"}\n', "line 2"),
        (
            '{"cassette":1}\n{"call":1,"method":"/etcdserverpb.KV/Put"}\n{"call":1,"request":{"kee":""}}\n',
            "line 3: .*kee",
        ),
        ('{"cassette":1}\n{"call":1,"method":"/etcdserverpb.KV/Put"}\n{"call":1}\n', "line 3: has nothing"),
    ],
)
def test_damage_is_told_with_its_line(cassette: Path, text: str, told: str) -> None:
    cassette.write_text(text)
    with pytest.raises(CassetteError, match=told):
        read(cassette)


def test_cassette_is_lines_of_json(server: Etcd, cassette: Path) -> None:
    recorded(server, cassette)
    lines = [json.loads(line) for line in cassette.read_text().splitlines()]
    assert lines[0] == {"cassette": 1, "secrets": False}
    assert [set(line) - {"call", "ms"} for line in lines[1:]] == [{"method"}, {"request"}, {"answer"}, {"status"}]
    assert lines[2]["request"] == {"key": "YQ==", "value": "MQ=="}
