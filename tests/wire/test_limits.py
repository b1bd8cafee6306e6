"""Every limit by its name: a client that goes beyond it is told, is counted once, and nobody else notices.

docs/limits.md says what each is, and is held by this. What the floods of one kind do in detail, the tests of each protocol
have.
"""

from __future__ import annotations

import asyncio
import gzip
import re
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from mvccstore.server import ServerOptions, TransportLimits, node, serve
from mvccstore.server.auth import gate, passwords
from mvccstore.server.auth.gate import AuthOptions
from mvccstore.server.flags import parse
from mvccstore.server.gateway.gateway import Gateway
from mvccstore.server.messages import election, json, lock, rpc
from mvccstore.server.node import REFUSED_ABOVE, UNDER_WAY_BYTES_MAX, RequestLimits
from mvccstore.server.process import plan
from mvccstore.server.services import cluster, lease, txn_answer, watch_stream
from mvccstore.server.transport import port
from mvccstore.server.transport.call import Call, Peer
from mvccstore.server.transport.dates import Dates
from mvccstore.server.transport.exchange import TEXT, Exchange
from mvccstore.server.transport.frames import PREFACE, ErrorCode
from mvccstore.server.transport.http1 import http_factory
from mvccstore.server.transport.page_stream import Pages
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.server.writer import UNDER_WAY_MAX
from tests.fuzz import target_http1
from tests.wire.client import Client, Endpoint, RpcFailure
from tests.wire.http1_kit import Wire
from tests.wire.http2_kit import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Session,
    literal_block,
    message,
    open_stream,
    pack,
    ping,
    request_fields,
    reset,
    settings,
    unary,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "limits.md").read_text()
ROWS = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.M)}
"""By name: default, flag, whether it is counted, what the client sees."""
HOLD = open_stream(1, b"/t.T/Hold")
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v3/%b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"

Case = Callable[[TransportLimits], str]
"""Goes beyond a limit; returns what the client sees."""
CASES: dict[str, tuple[dict[str, Any], Case]] = {}


def beyond(**limits: Any) -> Callable[[Case], Case]:
    """Note what goes beyond the limit that it is named after, and the limits that hold for it."""

    def note(case: Case) -> Case:
        CASES[case.__name__] = limits, case
        return case

    return note


def seen(session: Session, stream: int = 1) -> str:
    """Say what the client of a connection was told."""
    if session.goaway is not None:
        return f"GOAWAY {ErrorCode(session.goaway.code).name}"
    if session.transport.is_aborted:
        return "cut"
    answer = session.answers[stream]
    if answer.status is not None and answer.status[0]:
        return f"status {Code(answer.status[0]).name}"
    return f"RST_STREAM {ErrorCode(answer.reset or 0).name}"


# HTTP/2


@beyond(message_bytes_max=100)
def message_bytes_max(limits: TransportLimits) -> str:
    session = Session(limits)
    session.send(unary(1, b"/t.T/Echo", bytes(100)))
    assert session.answers[1].status == (0, "")
    bomb = message(gzip.compress(bytes(101), mtime=0), 1)
    session.send(open_stream(3, b"/t.T/Echo", (b"grpc-encoding", b"gzip")) + pack(DATA, END_STREAM, 3, bomb))
    return seen(session, 3)


@beyond(header_bytes_max=2_000)
def header_bytes_max(limits: TransportLimits) -> str:
    """As decoded; one byte of the block names 600 of the table."""
    session = Session(limits)
    long = b"\x40\x01a\x7f" + (600 - 127 & 127 | 128).to_bytes() + (600 - 127 >> 7).to_bytes() + b"x" * 600
    session.send(pack(HEADERS, END_HEADERS | END_STREAM, 1, literal_block(request_fields()) + long + b"\xbe" * 3))
    return seen(session)


@beyond(continuations_max=4)
def continuations_max(limits: TransportLimits) -> str:
    session = Session(limits)
    session.send(pack(HEADERS, 0, 1), pack(CONTINUATION, 0, 1) * 4)
    assert session.goaway is None
    session.send(pack(CONTINUATION, 0, 1))
    return seen(session)


@beyond(streams_max=2)
def streams_max(limits: TransportLimits) -> str:
    session = Session(limits)
    session.send(HOLD, open_stream(3, b"/t.T/Hold"), open_stream(5, b"/t.T/Hold"))
    return seen(session, 5)


@beyond(streams_open_max=2)
def streams_open_max(limits: TransportLimits) -> str:
    session = Session(limits)
    session.send(HOLD, open_stream(3, b"/t.T/Hold"), open_stream(5, b"/t.T/Hold"))
    return seen(session, 5)


@beyond(received_bytes_max=30_000)
def received_bytes_max(limits: TransportLimits) -> str:
    session = Session(limits)
    for stream in (1, 3, 5):
        assert session.goaway is None
        session.send(open_stream(stream), pack(DATA, 0, stream, message(bytes(50_000))[:12_000]))
    return seen(session)


@beyond(received_bytes_max=40_000, message_bytes_max=10_000, all_received_bytes_max=58_000)
def all_received_bytes_max(limits: TransportLimits) -> str:
    """Of two that hold the same, it is the one who wants more than is free that goes."""
    sessions = [Session(limits), Session(limits)]
    for stream in (1, 3, 5, 7):
        for session in sessions:
            session.send(open_stream(stream), pack(DATA, 0, stream, message(bytes(9_000))[:6_000]))
    (cut,) = (session for session in sessions if session.goaway)
    (other,) = (session for session in sessions if not session.goaway)
    other.send(*(pack(DATA, END_STREAM, stream, bytes(3_005)) for stream in (1, 3, 5, 7)))
    assert [answer.status for answer in other.answers.values()] == [(0, "")] * 4
    other.hang_up()
    return seen(cut)


@beyond(queued_bytes_max=100_000)
def queued_bytes_max(limits: TransportLimits) -> str:
    session = Session(limits)
    session.send(unary(1, b"/t.T/Big", b"90000"))
    assert not session.transport.is_aborted
    session.send(unary(3, b"/t.T/Big", b"90000"))
    return seen(session)


@beyond(message_bytes_max=10_000, all_queued_bytes_max=500_000)
def all_queued_bytes_max(limits: TransportLimits) -> str:
    """Nobody reads; who wants more than is free goes, and who wants little is served all the same."""
    sessions = [Session(limits), Session(limits), Session(limits)]
    for stream in (1, 3):
        for session in sessions[:2]:
            session.send(unary(stream, b"/t.T/Big", b"130000"))
    assert limits.totals.queued <= 500_000
    sessions[2].send(unary(1, b"/t.T/Big", b"60000"))
    assert sessions[2].answers[1].status == (0, "")
    (cut,) = (session for session in sessions if session.transport.is_aborted)
    for session in sessions:
        if session is not cut:
            session.hang_up()
    return seen(cut)


@beyond(unread_bytes_max=10_000)
def unread_bytes_max(limits: TransportLimits) -> str:
    """Answers without DATA, of calls that were under way before it ceased to read."""
    session = Session(limits)
    calls = _unread(session, 5)
    for call in calls[:4]:
        call.fail(RpcError(Code.ABORTED, "x" * 2_000))
    session.step()
    assert not session.transport.is_aborted
    calls[4].fail(RpcError(Code.ABORTED, "x" * 2_000))
    session.step()
    return seen(session)


def _unread(session: Session, number: int) -> list[Call]:
    """Have a client not read; return calls that were under way before."""
    for each in range(number):
        session.send(unary(2 * each + 1, b"/t.T/Later", b"%d" % each))
    session.transport.is_read, session.transport.unread = False, 300_000
    session.connection.pause_writing()
    return list(session.services.calls.values())


@beyond(gzip_members_max=3)
def gzip_members_max(limits: TransportLimits) -> str:
    session = Session(limits)
    for stream, number in ((1, 3), (3, 4)):
        body = message(gzip.compress(b"x", mtime=0) * number, 1)
        field = (b"grpc-encoding", b"gzip")
        session.send(open_stream(stream, b"/t.T/Echo", field) + pack(DATA, END_STREAM, stream, body))
    assert session.answers[1].messages == [(1, session.answers[1].messages[0][1])]
    return seen(session, 3)


@beyond(resets_max=10)
def resets_max(limits: TransportLimits) -> str:
    session = Session(limits)
    session.send(*(open_stream(stream, b"/t.T/Hold") + reset(stream) for stream in range(1, 23, 2)))
    return seen(session)


@beyond(control_frames_max=10)
def control_frames_max(limits: TransportLimits) -> str:
    session = Session(limits)
    session.send(settings() * 10)
    return seen(session)


@beyond(ping_strikes_max=2)
def ping_strikes_max(limits: TransportLimits) -> str:
    session = Session(limits)
    session.send(HOLD, *[ping()] * 3)
    assert session.goaway is None
    session.send(ping())
    return seen(session)


@beyond()
def keepalive_timeout_seconds(limits: TransportLimits) -> str:
    session = Session(limits)
    for seconds in (limits.keepalive_seconds + 1, limits.keepalive_timeout_seconds + 1):
        session.loop.advance(seconds)
        session.connection.look_after(session.loop.now)
        session.step()
    return seen(session)


@beyond()
def handshake_seconds(limits: TransportLimits) -> str:
    session = Session(limits, greeting=b"PRI * HTTP")
    session.loop.advance(limits.handshake_seconds + 1)
    session.connection.look_after(session.loop.now)
    return seen(session)


def _looked_after(session: Session, seconds: float) -> None:
    session.loop.advance(seconds)
    session.connection.look_after(session.loop.now)
    session.step()


@beyond()
def message_seconds(limits: TransportLimits) -> str:
    """What that means for which calls, `test_http2_unfinished` has."""
    session = Session(limits)
    session.send(open_stream(1))
    _looked_after(session, limits.message_seconds + 1)
    return seen(session)


@beyond()
def frame_seconds(limits: TransportLimits) -> str:
    """A frame that drips; one after the other in time is none."""
    session = Session(limits)
    whole = ping(flags=1)
    for _ in range(3):
        session.send(whole[:9])
        _looked_after(session, limits.frame_seconds - 10)
        session.send(whole[9:])
        _looked_after(session, 20)
        assert not session.transport.is_aborted
    session.send(whole[:9])
    _looked_after(session, 1)
    for byte in whole[9:-1]:
        session.send(bytes((byte,)))
        _looked_after(session, limits.frame_seconds / 7 + 1)
    return seen(session)


def test_a_header_block_that_drips_is_given_up() -> None:
    limits = TransportLimits()
    session = Session(limits)
    session.send(pack(HEADERS, 0, 1, literal_block(request_fields())))
    for _ in range(3):
        session.send(pack(CONTINUATION, 0, 1))
        _looked_after(session, limits.frame_seconds / 3 - 1)
    assert not session.transport.is_aborted
    session.send(pack(CONTINUATION, 0, 1))
    _looked_after(session, 4)
    assert session.transport.is_aborted
    assert limits.cuts.by_limit == {"frame_seconds": 1}
    session.check_clean()


def test_large_heads_of_open_calls_are_counted() -> None:
    limits = TransportLimits(received_bytes_max=120_000)
    session = Session(limits)
    long = [(b"x%d" % number, b"y" * 120) for number in range(250)]
    for stream in (1, 3):
        session.send(_opened(stream, long))
    assert 76_000 < limits.totals.received < 80_000
    session.send(reset(1))
    assert 38_000 < limits.totals.received < 40_000
    session.send(_opened(5, long), _opened(7, long))
    assert session.goaway is None
    session.send(_opened(9, long))
    assert seen(session) == "GOAWAY ENHANCE_YOUR_CALM"
    session.step()
    session.check_clean()
    assert limits.totals.received == 0


def test_what_no_window_holds_back_counts_among_what_all_do_not_read() -> None:
    limits = TransportLimits(message_bytes_max=1_000, all_queued_bytes_max=30_000)
    sessions = [Session(limits) for _ in range(2)]
    calls = [_unread(session, 6) for session in sessions]
    for session, under_way in zip(sessions, calls, strict=True):
        for call in under_way[:5] if session is sessions[0] else under_way[:3]:
            call.fail(RpcError(Code.ABORTED, "x" * 2_000))
        session.step()
        assert not session.transport.is_aborted
    assert 8 * 2_000 < limits.totals.queued < 8 * 2_100
    calls[1][3].fail(RpcError(Code.ABORTED, "x" * 6_000))
    sessions[1].step()
    assert sessions[1].transport.is_aborted
    assert limits.cuts.by_limit == {"all_queued_bytes_max": 1}
    sessions[0].transport.read_again()
    assert limits.totals.queued == 0
    sessions[0].hang_up()
    for session in sessions:
        session.check_clean()


def test_heads_that_are_large_when_decoded_are_not_kept() -> None:
    session = Session()
    block = literal_block(request_fields(b"/t.T/Hold"))
    added = b"\x40\x01a\x7f" + (900 - 127 & 127 | 128).to_bytes() + (900 - 127 >> 7).to_bytes() + b"x" * 900
    session.send(pack(HEADERS, END_HEADERS, 1, block + added))
    for stream, number in ((3, 1), (5, 7), (7, 20)):
        session.send(pack(HEADERS, END_HEADERS, stream, block + b"\xbe" * number))
    assert sorted(len(kept) - len(block) for kept in session.connection._heads._kept) == [1, 7]


@pytest.mark.parametrize("end", ["reset", "answered", "lost"])
def test_pages_over_http2_are_counted_as_calls_are(end: str) -> None:
    limits = TransportLimits(streams_open_max=2, all_queued_bytes_max=500_000, message_bytes_max=10_000)
    held: list[Exchange] = []
    session = Session(limits, pages=Pages(held.append, Dates(lambda: 999)))
    fields = [(b":method", b"POST"), (b":scheme", b"https"), (b":path", b"/a"), *((b"x", b"y" * 120),) * 20]
    for stream in (1, 3, 5):
        session.send(pack(HEADERS, END_HEADERS, stream, literal_block(fields)))
    assert limits.cuts.by_limit == {"streams_open_max": 1}
    assert seen(session, 5) == "RST_STREAM REFUSED_STREAM"
    assert 2 * 20 * 121 < limits.totals.received < 7_000
    held[0].begin(200, TEXT)
    held[0].write(bytes(100_000))
    assert limits.totals.queued == 100_000 - 65_535
    match end:
        case "reset":
            session.send(reset(1), reset(3))
        case "answered":
            held[1].respond(200, TEXT, b"")
            session.grant(0, 100_000)
            session.grant(1, 100_000)
            held[0].finish()
            session.loop.advance(limits.http_linger_seconds + 1)
            session.step()
            assert limits.cuts.by_limit == {"streams_open_max": 1, "http_linger_seconds": 2}
        case _:
            session.hang_up()
    assert (limits.totals.queued, limits.totals.received) == (0, 0)
    if end != "lost":
        session.hang_up()
    session.check_clean()


def test_a_frame_that_waits_for_its_turn_or_its_client_does_not_drip() -> None:
    limits = TransportLimits(keepalive_timeout_seconds=1e6)
    session = Session(limits)
    session.transport.is_read, session.transport.unread = False, 300_000
    session.connection.pause_writing()
    session.send(unary(1, b"/t.T/Echo", b"x") + ping()[:12])
    for _ in range(3):
        _looked_after(session, limits.frame_seconds - 1)
    assert not session.transport.is_aborted
    session.transport.read_again()
    session.step()
    assert session.answers[1].messages == [(0, b"x")]
    _looked_after(session, 1)
    _looked_after(session, limits.frame_seconds + 1)
    assert limits.cuts.by_limit == {"frame_seconds": 1}


def _opened(stream: int, fields: list[tuple[bytes, bytes]]) -> bytes:
    """Open a stream by a block of several frames."""
    block = literal_block(request_fields(b"/t.T/Hold", *fields))
    parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    frames = [pack(CONTINUATION, 0, stream, part) for part in parts[1:-1]]
    return b"".join((pack(HEADERS, 0, stream, parts[0]), *frames, pack(CONTINUATION, END_HEADERS, stream, parts[-1])))


# HTTP/1.1 and WebSockets: each case runs on a loop


def connected(limits: TransportLimits, handler: Any = None) -> Wire:
    wire = Wire()
    router = replace(target_http1._ROUTER, cuts=limits.cuts)
    make = http_factory(handler or Gateway(router, limits).serve, limits, Dates(lambda: 999))
    protocol = make(Peer("test"), lambda _: None)
    wire.connection = protocol
    protocol.connection_made(wire)
    return wire


def told(wire: Wire) -> str:
    """Say what the client of a connection sees."""
    answer = wire.written.rpartition(b"HTTP/1.1 ")[2]
    if answer[:3].isdigit() and answer[:3] not in {b"200", b"101"}:
        return f"HTTP {answer[:3].decode()}"
    return "cut" if wire.is_aborted else "closed" if wire.is_closed or wire.has_written_eof else "open"


def _pass_time(wire: Wire, seconds: float) -> None:
    wire.connection.look_after(asyncio.get_running_loop().time() + seconds)


@beyond(http_head_bytes_max=1_000)
def http_head_bytes_max(limits: TransportLimits) -> str:
    wire = connected(limits)
    wire.connection.data_received(GET[:-2] + b"a: b\r\n" * 500)
    return told(wire)


@beyond(http_pipelined_bytes_max=1_000)
def http_pipelined_bytes_max(limits: TransportLimits) -> str:
    """What follows an answer that did not wait for the body."""
    wire = connected(limits)
    wire.connection.data_received(POST % (b"nothing", 5_000, bytes(900)))
    assert told(wire) == "HTTP 404"
    assert not wire.has_written_eof
    wire.connection.data_received(bytes(200))
    wire.written = b""
    return told(wire)


@beyond()
def http_idle_seconds(limits: TransportLimits) -> str:
    wire = connected(limits)
    _pass_time(wire, limits.http_idle_seconds + 1)
    return told(wire)


@beyond()
def http_head_seconds(limits: TransportLimits) -> str:
    wire = connected(limits)
    wire.connection.data_received(GET[:-1])
    _pass_time(wire, limits.http_head_seconds + 1)
    return told(wire)


@beyond()
def http_body_seconds(limits: TransportLimits) -> str:
    wire = connected(limits)
    wire.connection.data_received(POST % (b"kv/range", 20, b"{"))
    _pass_time(wire, limits.http_body_seconds + 1)
    return told(wire)


def _hold(exchange: Exchange) -> None:
    exchanges.append(exchange)


exchanges: list[Exchange] = []


@beyond()
def http_stall_seconds(limits: TransportLimits) -> str:
    wire = connected(limits, lambda exchange: exchange.respond(200, (), bytes(300_000)))
    wire.is_stuck = True
    wire.connection.data_received(GET)
    _pass_time(wire, limits.http_stall_seconds + 1)
    return told(wire)


@beyond()
def http_linger_seconds(limits: TransportLimits) -> str:
    wire = connected(limits, _hold)
    wire.connection.data_received(GET)
    assert wire.connection.eof_received()
    _pass_time(wire, limits.http_linger_seconds + 1)
    return told(wire)


@beyond(message_bytes_max=1_000)
def http_body_bytes_max(limits: TransportLimits) -> str:
    wire = connected(limits)
    wire.connection.data_received(POST % (b"kv/range", 2_001, bytes(2_001)))
    return told(wire)


@beyond()
def json_depth_max(limits: TransportLimits) -> str:
    wire = connected(limits)
    depth = json.DEPTH_MAX // 2 + 1
    body = b'{"success":[{"requestTxn":' * depth + b"{}" + b"}]}" * depth
    wire.connection.data_received(POST % (b"kv/txn", len(body), body))
    return told(wire)


@pytest.mark.parametrize("end", ["lost", "too late", "answered", "broken"])
def test_what_the_body_of_a_request_holds_is_given_back(end: str) -> None:
    limits = TransportLimits()

    async def play() -> None:
        wire = connected(limits)
        body = b"TRANSFER-Encoding: chunked\r\n\r\n3\r\n{ }\r\n"
        wire.connection.data_received(b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\n" + body)
        assert limits.totals.received == 3
        match end:
            case "lost":
                wire.close()
            case "too late":
                _pass_time(wire, limits.http_body_seconds + 1)
            case "answered":
                wire.connection.data_received(b"0\r\n\r\n")
            case _:
                wire.connection.data_received(b"zz\r\n")
        assert limits.totals.received == 0

    asyncio.run(play())


def test_bodies_of_http1_are_bounded_for_all_connections() -> None:
    limits = TransportLimits(message_bytes_max=1_000, all_received_bytes_max=3_000)

    async def play() -> None:
        wires = [connected(limits) for _ in range(3)]
        for wire, length in zip(wires, (1_900, 1_900, 9_000), strict=True):
            wire.connection.data_received(POST % (b"kv/range", length, b" " * 1_000))
        for wire in wires[:2]:
            wire.connection.data_received(b" " * 899)  # one request always fits
            assert told(wire) == "open"
        wire = connected(limits)
        wire.connection.data_received(POST % (b"watch", 30_000, b" " * 2_500))  # a stream's is the service's
        assert told(wire) == "open"
        assert limits.cuts.by_limit == {}
        wires[2].connection.data_received(b" " * 1_100)  # no request is so large
        assert told(wires[2]) == "HTTP 503"
        assert limits.totals.received == 2 * 1_899

    asyncio.run(play())
    assert limits.cuts.by_limit == {"all_received_bytes_max": 1}


def _frame(head: int, payload: bytes) -> bytes:
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes((head,)) + length + bytes(4) + payload


def _upgraded(limits: TransportLimits) -> Wire:
    wire = connected(limits)
    wire.connection.data_received(target_http1.UPGRADE % b"watch")
    assert b"101" in wire.written
    return wire


def _closed(wire: Wire) -> str:
    head, size = wire.written[-wire.written[::-1].index(b"\x88") - 1 :][:2]
    assert (head, size > 1) == (0x88, True)
    return f"close {int.from_bytes(wire.written[wire.written.rindex(bytes((head, size))) + 2 :][:2])}"


@beyond(websocket_fragments_max=5)
def websocket_fragments_max(limits: TransportLimits) -> str:
    wire = _upgraded(limits)
    wire.connection.data_received(_frame(1, b"{") + _frame(0, b"") * 4)
    assert not wire.has_written_eof
    wire.connection.data_received(_frame(0, b""))
    return _closed(wire)


@beyond()
def websocket_message_seconds(limits: TransportLimits) -> str:
    wire = _upgraded(limits)
    wire.connection.data_received(_frame(1, b"{"))
    _pass_time(wire, limits.websocket_message_seconds + 1)
    return _closed(wire)


@pytest.mark.parametrize(
    ("data", "limit", "code"),
    [
        (_frame(0x89, b"") * 11, "control_frames_max", 1008),
        (_frame(0x8A, b"") * 11, "control_frames_max", 1008),
        (_frame(1, b"{") + _frame(0, b" " * 1_100) * 2, "http_body_bytes_max", 1009),
        (b"\x81\xff" + (2**62).to_bytes(8) + bytes(4) + bytes(2_100), "http_body_bytes_max", 1009),
    ],
    ids=["pings", "pongs", "fragments", "one frame"],
)
def test_floods_of_a_websocket(data: bytes, limit: str, code: int) -> None:
    limits = TransportLimits(message_bytes_max=1_000, control_frames_max=10)

    async def play() -> None:
        wire = _upgraded(limits)
        for start in range(0, len(data), 100):
            wire.connection.data_received(data[start : start + 100])
        assert _closed(wire) == f"close {code}"
        assert wire.has_written_eof

    asyncio.run(play())
    assert limits.cuts.by_limit == {limit: 1}
    assert limits.cuts.by_told == {("websocket", str(code)): 1}


ON_A_LOOP = {name for name in CASES if name.startswith(("http_", "json_", "websocket_"))}


@pytest.mark.parametrize("name", CASES)
def test_who_goes_beyond_a_limit_is_told_and_counted(name: str) -> None:
    settings_, case = CASES[name]
    limits = TransportLimits(**settings_)

    async def on_a_loop() -> str:
        found = case(limits)
        await asyncio.sleep(0)
        return found

    saw = asyncio.run(on_a_loop()) if name in ON_A_LOOP else case(limits)
    assert limits.cuts.by_limit == {name: 1}
    assert f"`{saw}`" in ROWS[name][3]
    following = Session(limits)  # of the same server
    following.send(unary(1, b"/t.T/Echo", b"next"))
    assert following.answers[1].messages == [(0, b"next")]


# A server

PUT, TXN, GRANT = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Txn", "/etcdserverpb.Lease/LeaseGrant"
WATCH, KEEP_ALIVE = "/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"
SMALL = RequestLimits(
    max_request_bytes=2_000,
    max_txn_ops=2,
    leases_max=3,
    watches_max=2,
    watch_key_bytes_max=50,
    name_bytes_max=50,
)
SERVER_CASES: dict[str, Callable[[Client, pytest.MonkeyPatch], str]] = {}


def served(case: Callable[[Client, pytest.MonkeyPatch], str]) -> Callable[[Client, pytest.MonkeyPatch], str]:
    """Note what goes beyond the limit that it is named after, at a server with small ones."""
    SERVER_CASES[case.__name__] = case
    return case


def refused(client: Client, method: str, request: Any) -> str:
    with pytest.raises(RpcFailure) as caught:
        client.unary(method, request)
    return f"status {caught.value.code}"


@served
def max_request_bytes(client: Client, _patch: pytest.MonkeyPatch) -> str:
    client.unary(PUT, rpc.PutRequest(key=b"k", value=bytes(1_800)))
    return refused(client, PUT, rpc.PutRequest(key=b"k", value=bytes(2_000)))


@served
def max_txn_ops(client: Client, _patch: pytest.MonkeyPatch) -> str:
    puts = [rpc.RequestOp(request_put=rpc.PutRequest(key=b"%d" % number)) for number in range(3)]
    client.unary(TXN, rpc.TxnRequest(success=puts[:2]))
    return refused(client, TXN, rpc.TxnRequest(success=puts))


@served
def txn_ops_all_max(client: Client, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(node, "_TXN_OPS_FACTOR", 3)  # 6 in all
    leaf = rpc.RequestOp(request_range=rpc.RangeRequest(key=b"k"))
    nested = rpc.RequestOp(request_txn=rpc.TxnRequest(success=[leaf], failure=[leaf]))
    client.unary(TXN, rpc.TxnRequest(success=[nested], failure=[nested]))
    return refused(client, TXN, rpc.TxnRequest(success=[nested], failure=[nested, leaf]))


@served
def txn_answer_bytes_max(client: Client, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(txn_answer, "ANSWER_BYTES_MAX", 200)
    client.unary(PUT, rpc.PutRequest(key=b"k"))
    reads = [rpc.RequestOp(request_range=rpc.RangeRequest(key=b"k", range_end=b"l"))] * 2
    client.unary(TXN, rpc.TxnRequest(success=reads[:1], failure=reads[1:]))
    return refused(client, TXN, rpc.TxnRequest(success=reads))


@served
def leases_max(client: Client, _patch: pytest.MonkeyPatch) -> str:
    granted = [client.unary(GRANT, rpc.LeaseGrantRequest(TTL=60)).ID for _ in range(3)]
    saw = refused(client, GRANT, rpc.LeaseGrantRequest(TTL=60))
    client.unary("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeRequest(ID=granted[0]))
    client.unary(GRANT, rpc.LeaseGrantRequest(TTL=60))
    return saw


@served
def watches_max(client: Client, _patch: pytest.MonkeyPatch) -> str:
    create = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k"))
    first, second = client.stream(WATCH, [create]), client.stream(WATCH, [create])
    assert not first.receive().canceled
    assert not second.receive().canceled
    second.send(create)
    answer = second.receive()
    assert (answer.created, answer.canceled, answer.cancel_reason) == (True, True, "etcdserver: too many requests")
    first.send(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=0)))
    assert first.receive().canceled
    second.send(create)
    assert not second.receive().canceled
    return "canceled"


@served
def watch_filters_max(client: Client, _patch: pytest.MonkeyPatch) -> str:
    def create(count: int) -> Any:
        return rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k", filters=[0] * count))

    stream = client.stream(WATCH, [create(watch_stream.FILTERS_MAX), create(watch_stream.FILTERS_MAX + 1)])
    assert not stream.receive().canceled
    answer = stream.receive()
    assert (answer.created, answer.canceled, answer.cancel_reason) == (True, True, "mvcc: too many filters")
    return "canceled"


@served
def member_urls_max(client: Client, _patch: pytest.MonkeyPatch) -> str:
    urls = [f"http://a:{number}" for number in range(cluster.URLS_MAX + 1)]
    client.unary("/etcdserverpb.Cluster/MemberAdd", rpc.MemberAddRequest(peerURLs=urls[1:]))
    return refused(client, "/etcdserverpb.Cluster/MemberAdd", rpc.MemberAddRequest(peerURLs=urls))


@served
def json_values_max(client: Client, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(json, "VALUES_MAX", 3)
    assert client.post("/v3/kv/range", {"key": "YQ==", "x": [1, 2]}).status == 200
    return f"HTTP {client.post('/v3/kv/range', {'key': 'YQ==', 'x': [1, 2, 3]}).status}"


@served
def watch_key_bytes_max(client: Client, _patch: pytest.MonkeyPatch) -> str:
    def create(key: bytes, range_end: bytes = b"") -> Any:
        return rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key, range_end=range_end))

    stream = client.stream(WATCH, [create(b"k" * 20, b"l" * 20), create(b"k" * 11)])
    assert not stream.receive().canceled
    answer = stream.receive()
    assert (answer.created, answer.canceled, answer.cancel_reason) == (True, True, "etcdserver: too many requests")
    stream.send(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=0)))
    assert stream.receive().canceled
    stream.send(create(b"k" * 50))
    assert not stream.receive().canceled
    return "canceled"


@served
def name_bytes_max(client: Client, _patch: pytest.MonkeyPatch) -> str:
    campaign, observe = "/v3electionpb.Election/Campaign", "/v3electionpb.Election/Observe"
    request = election.CampaignRequest(name=b"e", value=bytes(40))
    client.unary(campaign, request)
    observing = client.stream(observe, [election.LeaderRequest(name=b"e" * 10)])  # while nobody is elected there
    client.unary(campaign, election.CampaignRequest(name=b"e" * 10, value=b"v"))
    assert observing.receive().kv.value == b"v"
    saw = refused(client, campaign, request)
    observing.cancel()
    client.unary("/v3lockpb.Lock/Lock", lock.LockRequest(name=b"l" * 50))
    return saw


@served
def progress_asked_max(client: Client, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(watch_stream, "ASKED_MAX", 0)
    stream = client.stream(WATCH, [rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k"))])
    stream.receive()
    stream.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
    stream.send(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=0)))
    assert stream.receive().canceled
    return "nothing"


@served
def under_way_max(client: Client, patch: pytest.MonkeyPatch) -> str:
    """Who waits for a change of users that is under way."""
    patch.setattr(gate, "UNDER_WAY_MAX", 0)
    patch.setattr(gate.Gate, "is_changing", property(lambda _: True, lambda *_: None), raising=False)
    return refused(client, PUT, rpc.PutRequest(key=b"k"))


@served
def refused_above(client: Client, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(node, "REFUSED_ABOVE", -1)
    return refused(client, PUT, rpc.PutRequest(key=b"k"))


@served
def under_way_bytes_max(client: Client, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(node, "UNDER_WAY_BYTES_MAX", -1)
    return refused(client, PUT, rpc.PutRequest(key=b"k"))


@served
def passwords_waiting_max(client: Client, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(passwords, "WAITING_MAX", 0)
    return refused(client, "/etcdserverpb.Auth/UserAdd", rpc.AuthUserAddRequest(name="u", password="p"))


@served
def keep_alives_waiting_max(client: Client, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(lease, "WAITING_MAX", 0)
    client.unary("/etcdserverpb.Auth/UserAdd", rpc.AuthUserAddRequest(name="root", password="p"))
    client.unary("/etcdserverpb.Auth/RoleAdd", rpc.AuthRoleAddRequest(name="root"))
    client.unary("/etcdserverpb.Auth/UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root"))
    client.unary("/etcdserverpb.Auth/AuthEnable", rpc.AuthEnableRequest())
    login = rpc.AuthenticateRequest(name="root", password="p")
    token = client.unary("/etcdserverpb.Auth/Authenticate", login).token
    stream = client.stream(KEEP_ALIVE, [rpc.LeaseKeepAliveRequest(ID=1)], [("token", token)])
    with pytest.raises(RpcFailure) as caught:
        stream.receive()
    return f"status {caught.value.code}"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.pure("replaces an attribute")] if name == "under_way_max" else [])
        for name in SERVER_CASES
    ],
)
def test_who_asks_for_too_much_is_told_and_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = TransportLimits()
    options = ServerOptions(requests=SMALL, transport=limits, auth=AuthOptions(bcrypt_cost=4))
    with serve(options=options) as server, Client(Endpoint(server.host, server.port)) as client:
        saw = SERVER_CASES[name](client, monkeypatch)
        assert limits.cuts.by_limit == {name: 1}
        assert f"`{saw}`" in ROWS[name][3]
        page = client.request("GET", "/metrics").body.decode()
        assert f'mvccstore_server_refused_total{{limit="{name}"}} 1.0' in page
        assert client.post("/v3/auth/authenticate", {"name": "nobody"}).status in {400, 500}


def test_connections_are_bounded() -> None:
    limits = TransportLimits(connections_max=2)
    with serve(options=ServerOptions(transport=limits)) as server:
        address = (server.host, server.port)
        with (
            socket.create_connection(address, 20) as first,
            socket.create_connection(address, 20) as second,
        ):
            for client in (first, second):
                client.sendall(GET.replace(b"/a", b"/health"))
                assert b"true" in client.recv(1_000)
            with socket.create_connection(address, 20) as third:
                assert is_cut(third)
            first.sendall(GET.replace(b"/a", b"/health"))
            assert b"true" in first.recv(1_000)
        assert limits.cuts.by_limit == {"connections_max": 1}
    assert "`cut`" in ROWS["connections_max"][3]


def is_cut(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def test_connections_are_as_many_as_there_are_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((1_024, 874), (200, 100), (resource.RLIM_INFINITY, sys.maxsize)):
        monkeypatch.setattr(port.resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert port._files_max() == most


# What protocols tell those who break their rules


@pytest.mark.parametrize(
    ("protocol", "told", "data"),
    [
        ("http2", "PROTOCOL_ERROR", PREFACE + ping()),
        ("http2", "FRAME_SIZE_ERROR", PREFACE + settings() + ping(b"1")),
        ("http2", "FLOW_CONTROL_ERROR", PREFACE + settings((4, 2**31))),
        ("http2", "COMPRESSION_ERROR", PREFACE + settings() + pack(HEADERS, END_HEADERS, 1, b"\x80")),
        ("http1", "400", b"GET / HTTP/1.1\r\n\r\n"),
        ("http1", "501", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n"),
        ("websocket", "1002", target_http1.UPGRADE % b"watch" + b"\x81\x01a"),
        ("websocket", "1007", target_http1.UPGRADE % b"watch" + _frame(1, b"\xff")),
    ],
)
def test_who_breaks_a_protocol_is_counted(protocol: str, told: str, data: bytes) -> None:
    limits = TransportLimits()
    with serve(options=ServerOptions(transport=limits)) as server:
        with socket.create_connection((server.host, server.port), 20) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1_000):
                pass
        with Client(Endpoint(server.host, server.port)) as following:
            page = following.request("GET", "/metrics").body.decode()
    assert limits.cuts.by_told == {(protocol, told): 1}
    assert f'mvccstore_server_protocol_errors_total{{protocol="{protocol}",told="{told}"}} 1.0' in page
    assert limits.cuts.by_limit == {}


# The page

CONSTANTS: dict[str, float] = {
    "under_way_max": UNDER_WAY_MAX,
    "refused_above": REFUSED_ABOVE,
    "under_way_bytes_max": UNDER_WAY_BYTES_MAX,
    "passwords_waiting_max": passwords.WAITING_MAX,
    "keep_alives_waiting_max": lease.WAITING_MAX,
    "txn_answer_bytes_max": txn_answer.ANSWER_BYTES_MAX,
    "member_urls_max": cluster.URLS_MAX,
    "watch_filters_max": watch_stream.FILTERS_MAX,
    "progress_asked_max": watch_stream.ASKED_MAX,
    "txn_ops_all_max": RequestLimits().txn_ops_all_max,
    "json_depth_max": json.DEPTH_MAX,
    "json_values_max": json.VALUES_MAX,
    "http_body_bytes_max": TransportLimits().http_body_bytes_max,
    "quota_bytes": ServerOptions().quota_bytes,
}
NO_LIMITS = {"cuts", "totals", "election_timeout_ms", "progress_notify_seconds"}


def _defaults() -> Iterator[tuple[str, float]]:
    for values in (TransportLimits(), RequestLimits()):
        for field in fields(values):
            if field.name not in NO_LIMITS:
                yield field.name, getattr(values, field.name)
    yield from CONSTANTS.items()


def test_the_page_has_every_limit_and_its_default() -> None:
    defaults = dict(_defaults())
    assert set(ROWS) == set(defaults)
    for name, value in defaults.items():
        unit = " s" if name.endswith("seconds") or "_seconds_" in name else ""
        assert ROWS[name][0] == f"{value:,.12g}{unit}", name


def test_the_page_says_what_is_counted() -> None:
    counted = {name for name, row in ROWS.items() if row[2] == "yes"}
    elsewhere = {"quota_bytes", "connections_max", "tls_handshake_seconds"}
    assert counted == {*CASES, *SERVER_CASES, *elsewhere}
    sources = "".join(path.read_text() for path in (ROOT / "mvccstore" / "server").rglob("*.py"))
    named = set(re.findall(r'(?:note|_give_up|_cut|_calm|limit=)\(?"(\w+)"', sources))
    assert named <= counted


FLAGS = {
    "max-request-bytes": ("2000000", 2_000_000),
    "max-txn-ops": ("7", 7),
    "max-learners": ("7", 7),
    "max-concurrent-streams": ("5", 5),
    "grpc-keepalive-min-time": ("7s", 7.0),
    "grpc-keepalive-interval": ("7m", 420.0),
    "grpc-keepalive-timeout": ("9s", 9.0),
    "quota-backend-bytes": ("99999", 99_999),
}


def test_the_page_has_the_flags() -> None:
    flags = {name: re.findall(r"--([\w-]+)", row[1]) for name, row in ROWS.items()}
    assert {flag for found in flags.values() for flag in found} == set(FLAGS)
    for name, found in flags.items():
        for flag in found:
            given, value = FLAGS[flag]
            options = plan(parse([f"--{flag}={given}"], {})).options
            for holder in (options, options.requests, options.transport):
                if hasattr(holder, name):
                    assert getattr(holder, name) == value + (512 * 1024 if name == "message_bytes_max" else 0)
