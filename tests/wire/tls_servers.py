"""Servers with TLS as processes of their own, ours and the real one; and a client of HTTP/2 over TLS."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset

from tests.oracle.choice import find_oracle
from tests.oracle.process import free_ports
from tests.wire.tls_kit import SECONDS, Authority, client_context

READY = "ready to serve client requests"


@contextmanager
def running(*arguments: str) -> Iterator[dict[str, str]]:
    """Start a server; yield its addresses by what it says of them."""
    command = [sys.executable, "-m", "mvccstore.server.etcd_shim", "--memory", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    addresses: dict[str, str] = {}
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            with suppress(ValueError):
                entry = json.loads(line)
                if "address" in entry:
                    addresses[entry["msg"]] = entry["address"]
                if "client-url" in entry:
                    addresses[entry["msg"]] = entry["client-url"]
            if READY in line:
                break
        else:
            pytest.fail("".join(said))
        yield addresses
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def port_of(addresses: dict[str, str], message: str) -> int:
    return int(addresses[message].rpartition(":")[2])


SECURELY = "serving client traffic securely"
INSECURELY = "serving client traffic insecurely; this is strongly discouraged!"


@contextmanager
def running_etcd_with_tls(folder: Path, *arguments: str) -> Iterator[int]:
    """Start the real one; yield its port."""
    port, peer_port = free_ports(2)
    client, peer = f"https://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    process = subprocess.Popen(
        [
            *(find_oracle().etcd, f"--data-dir={folder}", f"--listen-client-urls={client}"),
            *(f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"),
            *(f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}", *arguments),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        assert any(SECURELY in line for line in process.stderr)
        yield port
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


class Http2Client:
    """One connection that has chosen HTTP/2 where it could have had HTTP/1.1."""

    def __init__(self, port: int, authority: Authority) -> None:
        plain = socket.create_connection(("127.0.0.1", port), SECONDS)
        context = client_context(authority, alpn=["http/1.1", "h2"])
        self._socket = context.wrap_socket(plain, server_hostname="127.0.0.1")
        assert self._socket.selected_alpn_protocol() == "h2"
        self._connection = H2Connection(H2Configuration(header_encoding="latin-1"))
        self._connection.initiate_connection()
        self._send()

    def _send(self) -> None:
        self._socket.sendall(self._connection.data_to_send())

    def begin(self, method: str, path: str, body: bytes | None = None, fields: Sequence[tuple[str, str]] = ()) -> int:
        """Send a request; return its stream."""
        stream: int = self._connection.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "https"), (":authority", "127.0.0.1"), (":path", path)]
        self._connection.send_headers(stream, [*pseudo, *fields], end_stream=body is None)
        while body:
            while not (room := self._connection.local_flow_control_window(stream)):
                self._take()
            part, body = body[: min(room, 16_384)], body[min(room, 16_384) :]
            self._connection.send_data(stream, part, end_stream=not body)
            self._send()
        self._send()
        return stream

    def _take(self) -> list[object]:
        data = self._socket.recv(65_536)
        assert data, "the server has gone"
        events: list[object] = self._connection.receive_data(data)
        for event in events:
            if isinstance(event, DataReceived):
                self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self._send()
        return events

    def read(self, stream: int, until: bytes | None = None) -> tuple[dict[str, str], bytes]:
        """Return head and body of an answer: all of it, or as far as some bytes."""
        head: dict[str, str] = {}
        body = b""
        while True:
            for event in self._take():
                if isinstance(event, ResponseReceived) and event.stream_id == stream:
                    head = dict(event.headers)
                elif isinstance(event, DataReceived) and event.stream_id == stream:
                    body += event.data
                elif isinstance(event, StreamReset) and event.stream_id == stream:
                    pytest.fail(f"the stream was reset: {event.error_code}")
                elif isinstance(event, StreamEnded) and event.stream_id == stream:
                    return head, body
            if until is not None and until in body:
                return head, body

    def ask(
        self, method: str, path: str, body: bytes | None = None, fields: Sequence[tuple[str, str]] = ()
    ) -> tuple[dict[str, str], bytes]:
        """Send a request and read the whole answer."""
        return self.read(self.begin(method, path, body, fields))

    def close(self) -> None:
        self._socket.close()
