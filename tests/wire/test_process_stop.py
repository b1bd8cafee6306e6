"""How the process ends: watches are told, clients that hang are cut after a while, a second signal cuts them at once."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from mvccstore.server.messages import rpc
from tests.wire.client import Client, Endpoint, RpcFailure
from tests.wire.http2_kit import GOAWAY, open_stream, pack, settings
from tests.wire.test_process import READY, get, put, running

SECONDS = 20
WATCH, LEASE = "/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HALF_A_REQUEST = b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
SETTINGS = 4
PATIENT = (
    sys.executable,
    "-c",
    "import sys\n"
    "from mvccstore.server import process, server\n"
    "close = server.Port.close\n"
    "server.Port.close = lambda port, grace_seconds: close(port, 600.0)\n"
    "sys.exit(process.main(sys.argv[1:]))",
)
"""Gives calls under way ten minutes to end: a test of this process that ends has seen them cut."""


def endpoint_of(process: Any) -> Endpoint:
    parts = urlsplit(process.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return Endpoint(parts.hostname, parts.port)


@contextmanager
def connected(process: Any, data: bytes) -> Iterator[socket.socket]:
    """A connection that has said this, and says no more."""
    endpoint = endpoint_of(process)
    with socket.create_connection((endpoint.host, endpoint.port), SECONDS) as connection:
        connection.sendall(data)
        yield connection


def rest(connection: socket.socket) -> bytes:
    """Return all that comes until the server ends the connection."""
    received = b""
    try:
        while data := connection.recv(65_536):
            received += data
    except ConnectionResetError:
        pass
    return received


def kinds(data: bytes) -> list[int]:
    """Return the kinds of the frames in some bytes."""
    found = []
    while data:
        found.append(data[3])
        data = data[9 + int.from_bytes(data[:3]) :]
    return found


def next_line(process: Any, text: str) -> str:
    """Return the next line of the log with a text in it."""
    for line in process.stderr:
        process.lines.append(line)
        if text in line:
            return str(line)
    pytest.fail("".join(process.lines))


def ended(process: Any) -> int:
    return int(process.wait(SECONDS))


def watching(key: bytes) -> rpc.WatchRequest:
    return rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_open_watches_are_told_and_closed(number: signal.Signals) -> None:
    with running("--memory", program=PATIENT) as process, Client(endpoint_of(process)) as client:
        streams = [client.stream(WATCH) for _ in range(3)]
        for stream in streams:
            stream.send(watching(b"k"), watching(b"l"))
            assert [response.created for response in stream.take(2)] == [True, True]
        process.send_signal(number)
        for stream in streams:
            with pytest.raises(RpcFailure) as told:
                stream.receive(SECONDS)
            assert (told.value.code, told.value.message) == ("UNAVAILABLE", "etcdserver: server stopped")
        assert ended(process) == 0


def test_watches_over_json_are_told_too() -> None:
    with running("--memory", program=PATIENT) as process, Client(endpoint_of(process)) as client:
        with client.lines("/v3/watch", {"create_request": {"key": "aw=="}}, timeout=SECONDS) as lines:
            assert lines.receive()["result"]["created"]
            process.send_signal(signal.SIGTERM)
            assert lines.receive()["error"]["message"] == "etcdserver: server stopped"
        assert ended(process) == 0


def test_who_is_idle_is_told_to_go_and_does_not_keep_it() -> None:
    with (
        running("--memory", program=PATIENT) as process,
        connected(process, b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n") as kept,
        connected(process, b"") as silent,
    ):
        assert kept.recv(65_536).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        assert (rest(kept), rest(silent)) == (b"", b"")
        assert ended(process) == 0


def test_clients_that_hang_have_a_while_and_are_cut() -> None:
    call = PREFACE + settings() + open_stream(1, b"/etcdserverpb.KV/Range") + pack(0, 0, 1, b"\0\0\0")
    with (
        running("--memory") as process,
        connected(process, call) as grpc_client,
        connected(process, HALF_A_REQUEST) as http_client,
    ):
        assert kinds(grpc_client.recv(65_536))[0] == SETTINGS
        assert put(process.url, b"k", b"1") == 2  # and what they have said has come, too
        process.send_signal(signal.SIGTERM)
        assert kinds(rest(grpc_client)).count(GOAWAY) >= 1, "told, before it was cut"
        rest(http_client)
        assert ended(process) == 0


def test_a_second_signal_cuts_them_at_once() -> None:
    call = PREFACE + settings() + open_stream(1, b"/etcdserverpb.KV/Range")
    with (
        running("--memory", program=PATIENT) as process,
        connected(process, call) as grpc_client,
        connected(process, HALF_A_REQUEST) as http_client,
        Client(endpoint_of(process)) as client,
        client.stream(f"{LEASE}/LeaseKeepAlive") as alive,
    ):
        granted = client.unary(f"{LEASE}/LeaseGrant", rpc.LeaseGrantRequest(TTL=600))
        alive.send(rpc.LeaseKeepAliveRequest(ID=granted.ID))
        assert alive.receive().TTL == 600
        process.send_signal(signal.SIGTERM)
        next_line(process, "stopping")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        for connection in (grpc_client, http_client):
            rest(connection)
        with pytest.raises(RpcFailure) as cut:
            alive.receive(SECONDS)
        assert cut.value.code == "UNAVAILABLE"
        assert ended(process) == 0
        assert "told again to stop" in next_line(process, "told again")


def test_what_was_answered_before_the_second_signal_is_there(tmp_path: Any) -> None:
    folder = str(tmp_path / "data")
    with running("--data-dir", folder, program=PATIENT) as process, connected(process, HALF_A_REQUEST):
        assert put(process.url, b"k", b"1") == 2
        process.send_signal(signal.SIGTERM)
        next_line(process, "stopping")
        process.send_signal(signal.SIGINT)
        assert ended(process) == 0
    with running("--data-dir", folder) as process:
        assert any(READY in line for line in process.lines)
        assert get(process.url, b"k") == b"1"


def test_a_signal_before_anybody_has_come_ends_it() -> None:
    with running("--memory", program=PATIENT) as process:
        process.send_signal(signal.SIGTERM)
        assert ended(process) == 0
        assert [line for line in process.stderr if "stopped" in line]
