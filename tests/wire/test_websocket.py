"""The JSON gateway over WebSockets: frames, limits and ends."""

from __future__ import annotations

import json
import socket
from base64 import b64encode
from collections.abc import Iterator

import pytest
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    TextMessage,
)

from mvccstore import KeyRange
from mvccstore.server import ServerOptions, Serving, TransportLimits, serve
from tests.wire.websocket_kit import Socket

LIMITS = TransportLimits(message_bytes_max=5_000)
KEY = b64encode(b"k").decode()


@pytest.fixture
def server() -> Iterator[Serving]:
    with serve(options=ServerOptions(transport=LIMITS, grace_seconds=0.2)) as server:
        yield server


def opened(server: Serving, path: str, *, step: int = 0) -> Socket:
    return Socket(server.host, server.port, path, step=step)


def test_a_watch_is_a_conversation(server: Serving) -> None:
    with opened(server, "/v3/watch") as web:
        assert isinstance(web.opening, AcceptConnection)
        web.ask({"create_request": {"key": KEY}})
        assert web.answer()["result"]["created"] is True
        revision = server.store.put(b"k", b"1")
        found = web.answer()["result"]
        assert found["header"]["revision"] == str(revision)
        assert found["events"][0]["kv"]["key"] == KEY
        web.ask({"create_request": {"key": KEY, "watch_id": 7}})
        assert web.answer()["result"]["watch_id"] == "7"
        web.ask({"cancel_request": {"watch_id": 7}})
        assert web.answer()["result"]["canceled"] is True


@pytest.mark.parametrize("step", [1, 3, 7])
def test_frames_may_come_in_pieces(server: Serving, step: int) -> None:
    with opened(server, "/v3/lease/keepalive", step=step) as web:
        for lease in (1, 2):
            server.store.grant(ttl=60, lease_id=lease)
            web.ask({"ID": lease})
            assert web.answer()["result"] | {"header": 0} == {"header": 0, "ID": str(lease), "TTL": "60"}


def test_messages_may_be_fragmented(server: Serving) -> None:
    with opened(server, "/v3/watch") as web:
        text = json.dumps({"create_request": {"key": KEY}})
        web.send(TextMessage(text[:5], message_finished=False))
        web.send(Ping(b"between"))
        web.send(TextMessage(text[5:]))
        assert web.receive() == Pong(b"between")
        assert web.answer()["result"]["created"] is True


def test_one_that_goes_takes_its_watches_along(server: Serving) -> None:
    with opened(server, "/v3/watch") as web:
        web.ask({"create_request": {"key": KEY}})
        assert web.answer()["result"]["created"] is True
        assert len(server.store._hub) == 1
        web.send(CloseConnection(1000))
        assert isinstance(web.receive(), CloseConnection)
    assert server.store.range(KeyRange.all()).count == 0
    for _ in range(1_000):
        if not len(server.store._hub):
            break
        with opened(server, "/v3/kv/range") as another:  # gives the loop turns
            another.ask({"key": KEY})
            another.answer()
    assert len(server.store._hub) == 0


def test_a_message_that_is_too_large_closes_it_and_nothing_else(server: Serving) -> None:
    with opened(server, "/v3/watch") as other, opened(server, "/v3/watch") as web:
        other.ask({"create_request": {"key": KEY}})
        assert other.answer()["result"]["created"] is True
        web.send(TextMessage("x" * (LIMITS.http_body_bytes_max + 1)))
        event = web.receive()
        while isinstance(event, TextMessage):
            event = web.receive()
        assert isinstance(event, CloseConnection)
        server.store.put(b"k", b"1")
        assert other.answer()["result"]["events"]


@pytest.mark.parametrize(
    "data", [b"\x81\x05hello", b"\xf1\x80\0\0\0\0", b"\x83\x80\0\0\0\0", b"\x89\xfe\x00\x80" + bytes(200)]
)
def test_frames_that_break_the_rules_close_it(server: Serving, data: bytes) -> None:
    # Not masked; reserved bits; an unknown opcode; a ping that is too large.
    with opened(server, "/v3/watch") as web:
        web.send_bytes(data)
        event = web.receive()
        assert isinstance(event, CloseConnection)
        assert event.code == 1002
    assert server.store.put(b"k", b"1") > 1


def test_bad_json_is_told(server: Serving) -> None:
    with opened(server, "/v3/watch") as web:
        web.send(TextMessage("{nope"))
        web.send(TextMessage("}"))
        assert web.answer()["error"]["code"] == 3


def test_bytes_are_as_good_as_text(server: Serving) -> None:
    with opened(server, "/v3/watch") as web:
        web.send(BytesMessage(json.dumps({"create_request": {"key": KEY}}).encode()))
        assert web.answer()["result"]["created"] is True


def test_the_server_says_goodbye() -> None:
    with serve(options=ServerOptions(grace_seconds=0.2)) as server:
        web = opened(server, "/v3/watch")
        web.ask({"create_request": {"key": KEY}})
        assert web.answer()["result"]["created"] is True
    event = web.receive()
    while isinstance(event, TextMessage):
        event = web.receive()
    assert isinstance(event, CloseConnection)
    web.close()


def test_what_is_no_web_socket_is_refused(server: Serving) -> None:
    with socket.create_connection((server.host, server.port), timeout=20) as connection:
        connection.sendall(
            b"GET /v3/watch HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 4")
