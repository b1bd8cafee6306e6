"""Metadata that grpcio does not let through: bytes that are no UTF-8, as any other client may send them."""

from __future__ import annotations

import socket

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, TrailersReceived

from tests.wire.client import Endpoint
from tests.wire.pair import NEEDS_ORACLE, Pair

pytestmark = NEEDS_ORACLE
GET_A = b"\0\0\0\0\x03\x0a\x01a"


def status(endpoint: Endpoint, *metadata: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Get a key with some metadata; return the status and its message."""
    connection = H2Connection(H2Configuration(header_encoding=None, validate_outbound_headers=False))
    with socket.create_connection((endpoint.host, endpoint.port), 20) as wire:
        connection.initiate_connection()
        head = [
            *((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/etcdserverpb.KV/Range")),
            *((b":authority", b"here"), (b"te", b"trailers"), (b"content-type", b"application/grpc")),
        ]
        connection.send_headers(1, [*head, *metadata])
        connection.send_data(1, GET_A, end_stream=True)
        found: dict[bytes, bytes] = {}
        while True:
            wire.sendall(connection.data_to_send())
            for event in connection.receive_data(wire.recv(65_536)):
                match event:
                    case ResponseReceived(headers=headers) | TrailersReceived(headers=headers):
                        found |= dict(headers)
                    case StreamEnded():
                        return found[b"grpc-status"], found.get(b"grpc-message", b"")
                    case DataReceived():
                        pass


@pytest.mark.parametrize(
    "metadata",
    [
        (b"client-api-version", b"\xff"),
        (b"client-api-version", b"3.6\xc3"),
        (b"client-api-version", "ü".encode()),
        (b"token", b"\xff"),
        (b"authorization", b"\xff\xfe"),
        (b"hasleader", b"\xff"),
        (b"anything", b"\x80"),
    ],
    ids=str,
)
def test_what_is_no_text_is_answered_as_by_etcd(pair: Pair, metadata: tuple[bytes, bytes]) -> None:
    expected, given = (status(player.client.endpoint, metadata) for player in pair.players)
    assert given == expected
