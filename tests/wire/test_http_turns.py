"""Turns between connections over HTTP/1.1, WebSockets and pages over HTTP/2: who sends many small things at once waits."""

from __future__ import annotations

import asyncio
import json
import threading
from base64 import b64encode
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from mvccstore.server import ServerOptions, serve
from mvccstore.server.gateway.call import INLINE_BYTES
from mvccstore.server.gateway.gateway import Gateway
from mvccstore.server.gateway.splitter import JsonSplitter
from mvccstore.server.gateway.upgrade import FirstObject
from mvccstore.server.messages import rpc
from mvccstore.server.transport.call import WRITABLE_BYTES, Call, Method, Peer, Router
from mvccstore.server.transport.dates import Dates
from mvccstore.server.transport.exchange import Exchange
from mvccstore.server.transport.http1 import http_factory
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.page_stream import Pages
from mvccstore.server.transport.status import Code, RpcError
from tests.wire.http1_kit import Wire
from tests.wire.http2_kit import DATA, END_HEADERS, END_STREAM, HEADERS, Session, literal_block, pack
from tests.wire.watch_kit import until
from tests.wire.websocket_kit import Socket

TURN = 8
LIMITS = TransportLimits(http_turn_messages=TURN, window_bytes=65_535, message_bytes_max=10_000)
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v3/lease/keepalive HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /v3/lease/keepalive HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = rpc.LeaseKeepAliveResponse(ID=1).SerializeToString()
UPGRADE = (
    b"GET /v3/lease/keepalive HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Leases:
    """Keeps leases alive, and notes which; answers each as often as it is told to, and the end."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.ended = self.cancelled = 0
        self.answers = 0
        self.fails_at = -1
        self.finishes_at = -1

    def open(self, call: Call) -> _KeepAlive:
        call.on_cancel = self._cancel
        return _KeepAlive(self, call)

    def _cancel(self) -> None:
        self.cancelled += 1

    def handler(self, limits: TransportLimits) -> Callable[[Exchange], Any]:
        method = Method(KEEP_ALIVE, rpc.LeaseKeepAliveRequest.FromString, stream_handler=self.open)
        return Gateway(Router({KEEP_ALIVE: method}), limits).serve


class _KeepAlive:
    def __init__(self, leases: Leases, call: Call) -> None:
        self.leases, self.call = leases, call

    def message(self, request: rpc.LeaseKeepAliveRequest, /) -> None:
        leases = self.leases
        leases.seen.append(request.ID)
        if leases.fails_at == request.ID:
            raise RpcError(Code.ABORTED, "as told")
        for _ in range(leases.answers):
            self.call.send(ANSWER)
        if leases.finishes_at == request.ID:
            self.call.finish()

    def end(self) -> None:
        self.leases.ended += 1
        self.call.send(ANSWER)
        self.call.finish()


def connected(handler: Any, limits: TransportLimits = LIMITS) -> Wire:
    wire = Wire()
    wire.connection = http_factory(handler, limits, Dates(lambda: 999))(Peer("test"), lambda _: None)
    wire.connection.connection_made(wire)
    return wire


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def objects(first: int, stop: int) -> bytes:
    return b"".join(b'{"ID":%d}' % number for number in range(first, stop))


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def frames(*messages: bytes) -> bytes:
    """Text messages, each of one frame, with a mask that changes nothing."""
    found = b""
    for message in messages:
        size = len(message)
        found += b"\x81" + (bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)) + bytes(4) + message
    return found


async def take_turns(seen: list[int], count: int, most: int = TURN) -> list[int]:
    """Have the loop go round until so many are seen; return how many were in each turn."""
    found = [len(seen)]
    while sum(found) < count:
        await asyncio.sleep(0)
        found.append(len(seen) - sum(found))
        assert len(found) < 10 * count
    assert max(found) <= most
    assert seen == list(range(count))
    return found


def as_body(count: int) -> bytes:
    body = objects(0, count)
    return POST % len(body) + body


def as_chunks(count: int) -> bytes:
    return CHUNKED + chunks(*(objects(number, number + 1) for number in range(count))) + b"0\r\n\r\n"


def as_chunks_of_some(count: int) -> bytes:
    return CHUNKED + chunks(*(objects(number, number + 5) for number in range(0, count, 5))) + b"0\r\n\r\n"


@pytest.mark.parametrize("sent", [as_body, as_chunks, as_chunks_of_some])
def test_messages_of_a_body_are_carried_out_some_in_a_turn(sent: Callable[[int], bytes]) -> None:
    async def test() -> None:
        leases, others = Leases(), Leases()
        wire, other = connected(leases.handler(LIMITS)), connected(others.handler(LIMITS))
        wire.connection.data_received(sent(100))
        assert len(leases.seen) == TURN
        other.connection.data_received(as_body(1))
        assert others.seen == [0]
        await take_turns(leases.seen, 100)
        await asyncio.sleep(0)
        assert leases.ended == 1
        assert wire.is_reading
        wire.connection.data_received(GET)  # the connection goes on
        assert b"HTTP/1.1 404 " in wire.written

    run(test)


def test_nothing_is_read_of_a_body_while_more_has_come_than_is_carried_out() -> None:
    async def test() -> None:
        leases = Leases()
        wire = connected(leases.handler(LIMITS))
        wire.connection.data_received(CHUNKED + chunks(objects(0, TURN)))
        assert wire.is_reading  # all of it is carried out
        wire.connection.data_received(chunks(objects(TURN, TURN + 1)))  # in the same turn
        assert (len(leases.seen), wire.is_reading) == (TURN, False)
        wire.connection.data_received(chunks(objects(TURN + 1, 30)))
        await take_turns(leases.seen, 30)
        await asyncio.sleep(0)
        assert wire.is_reading
        assert leases.ended == 0
        wire.connection.data_received(chunks(objects(30, 31)) + b"0\r\n\r\n")
        assert (leases.seen[-1], leases.ended) == (30, 1)

    run(test)


@pytest.mark.parametrize("cut", [3, 17, 20])
def test_what_comes_of_a_request_while_a_turn_is_planned_keeps_its_place(cut: int) -> None:
    async def test() -> None:
        paths: list[str] = []

        def handler(exchange: Exchange) -> None:
            paths.append(exchange.request.path)
            exchange.respond(200, (), b"")

        wire = connected(handler)
        last = GET.replace(b"/a", b"/last")
        wire.connection.data_received(GET * LIMITS.http_turn_requests + last[:cut])
        wire.connection.data_received(last[cut:])
        for _ in range(3):
            await asyncio.sleep(0)
        assert paths == ["/a"] * LIMITS.http_turn_requests + ["/last"]
        wire.connection.data_received(GET * LIMITS.http_turn_requests)
        wire.connection.data_received(last[:cut])
        await asyncio.sleep(0)
        wire.connection.look_after(asyncio.get_running_loop().time() + LIMITS.http_head_seconds + 1)
        assert b"HTTP/1.1 408 " in wire.written

    run(test)


def test_tiny_chunks_leave_turns_to_others() -> None:
    """Also of a body that is no stream."""

    async def test() -> None:
        class Body:
            def __init__(self) -> None:
                self.parts: list[int] = []

            @property
            def pending_bytes(self) -> int:
                return len(self.parts)

            def data(self, data: bytes) -> None:
                self.parts.append(int(data))

            def end(self) -> None:
                got.respond(200, (), b"")

        body = Body()
        got: Any = None

        def handler(exchange: Exchange) -> Body:
            nonlocal got
            got = exchange
            return body

        wire = connected(handler)
        sent = CHUNKED + chunks(*(b"%d" % number for number in range(50))) + b"0\r\n\r\n"
        wire.connection.data_received(sent[:300])
        wire.connection.data_received(sent[300:-4])
        wire.connection.data_received(sent[-4:])
        await take_turns(body.parts, 50)
        await asyncio.sleep(0)
        assert wire.written.startswith(b"HTTP/1.1 200 ")

    run(test)


@pytest.mark.parametrize("size", [1, 5, 200])
def test_messages_of_a_web_socket_are_carried_out_some_in_a_turn(size: int) -> None:
    async def test() -> None:
        leases, others = Leases(), Leases()
        wire, other = connected(leases.handler(LIMITS)), connected(others.handler(LIMITS))
        for each in (wire, other):
            each.connection.data_received(UPGRADE)
            each.written = b""
        wire.connection.data_received(
            frames(*(objects(at, at + size) for at in range(0, 200, size))) + b"\x89\x80" + bytes(4)
        )
        assert len(leases.seen) == TURN
        other.connection.data_received(b"\x89\x80" + bytes(4) + frames(objects(0, 1)))
        assert (other.written, others.seen) == (b"\x8a\0", [0])
        wire.connection.data_received(frames(objects(200, 201)))
        await take_turns(leases.seen, 201)
        await asyncio.sleep(0)
        assert wire.written == b"\x8a\0"
        assert wire.is_reading

    run(test)


def test_little_is_read_of_a_web_socket_that_waits_for_its_turn() -> None:
    async def test() -> None:
        limits = TransportLimits(http_turn_messages=TURN, http_pipelined_bytes_max=1_000)
        wire = connected(Leases().handler(limits), limits)
        wire.connection.data_received(UPGRADE)
        pong = b"\x8a\x80" + bytes(4)
        wire.connection.data_received(pong * 2 * TURN)
        wire.connection.data_received(pong * 100)
        assert wire.is_reading
        wire.connection.data_received(pong * 100)
        assert not wire.is_reading
        await asyncio.sleep(0)
        assert not wire.is_reading  # more than is carried out in a turn was there before
        await asyncio.sleep(0)
        assert wire.is_reading
        wire.connection.data_received(b"\x81\x01a" + pong * 300)  # without a mask
        assert not wire.is_reading
        for _ in range(30):
            await asyncio.sleep(0)
        assert wire.has_written_eof
        assert wire.is_reading  # for the end of what it sends
        assert wire.written.count(b"\x88") == 1

    run(test)


@pytest.mark.parametrize(
    ("head", "tiny"),
    [
        (CHUNKED, b"1\r\n \r\n"),
        (GET, GET),
        (UPGRADE, b"\x81\x81" + bytes(4) + b" "),
    ],
    ids=["chunks", "pipelined", "frames"],
)
def test_who_sends_faster_than_is_carried_out_fills_its_socket_and_no_memory(head: bytes, tiny: bytes) -> None:
    async def test() -> None:
        limits = TransportLimits(http_turn_messages=1, http_turn_requests=1, http_pipelined_bytes_max=1_000)
        wire = connected(Leases().handler(limits), limits)
        wire.connection.data_received(head)
        reads = 0
        for _ in range(200):
            if wire.is_reading:
                reads += 1
                wire.connection.data_received(tiny * 100)
            await asyncio.sleep(0)
        assert not wire.is_closed
        assert 2 <= reads <= 10  # each turn one of the hundred goes

    run(test)


def test_who_sends_much_is_read_from_once_in_a_turn() -> None:
    async def test() -> None:
        wire = connected(Leases().handler(TransportLimits()), TransportLimits())
        wire.connection.data_received(POST % 1_000_000)
        wire.connection.data_received(b" " * 1_000)
        assert wire.is_reading
        for _ in range(3):
            wire.connection.data_received(b" " * 100_000)
            assert not wire.is_reading
            await asyncio.sleep(0)
            assert wire.is_reading
        wire.connection.data_received(b" " * 100_000)
        wire.close()
        await asyncio.sleep(0)

    run(test)


@pytest.mark.parametrize("is_socket", [True, False])
def test_who_does_not_read_is_asked_nothing_more(is_socket: bool) -> None:
    async def test() -> None:
        leases = Leases()
        leases.answers = WRITABLE_BYTES // TURN // 20
        wire = connected(leases.handler(LIMITS))
        sent = (UPGRADE + frames(objects(0, 50))) if is_socket else as_body(50)
        wire.is_stuck = True
        wire.connection.data_received(sent)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(leases.seen) == TURN
        wire.unstick()
        leases.answers = 0
        await take_turns(leases.seen, 50)

    run(test)


@pytest.mark.parametrize("is_socket", [True, False])
@pytest.mark.parametrize("how", ["fails", "finishes", "lost", "lost while it does not read"])
def test_a_call_that_ends_takes_what_waits_along(how: str, is_socket: bool) -> None:
    async def test() -> None:
        leases = Leases()
        count = TURN
        match how:
            case "fails":
                leases.fails_at, count = 20, 21
            case "finishes":
                leases.finishes_at, count = 20, 21
            case "lost while it does not read":
                leases.answers = WRITABLE_BYTES // TURN // 20
        wire = connected(leases.handler(LIMITS))
        wire.is_stuck = leases.answers > 0
        wire.connection.data_received((UPGRADE + frames(objects(0, 50))) if is_socket else as_body(50))
        assert len(leases.seen) == TURN
        if how.startswith("lost"):
            wire.abort()
        for _ in range(10):
            await asyncio.sleep(0)
        assert leases.seen == list(range(count))
        assert (leases.ended, leases.cancelled) == (0, how != "finishes")
        if not wire.is_closed:
            assert wire.is_reading

    run(test)


LARGE = b'{"ID":%d,"x":"' + b"x" * INLINE_BYTES + b'"}'
MARKS = b'{"ID":0,"x":[' + b'{"":""},' * 50_000 + b"0]}"


@pytest.mark.parametrize("is_socket", [True, False])
def test_a_large_message_is_decoded_beside_the_loop(is_socket: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those behind it keep their places."""
    threads: list[str] = []

    def decode(body: bytes) -> Any:
        threads.append(threading.current_thread().name)
        return rpc.LeaseKeepAliveRequest.FromString(body)

    async def test() -> None:
        leases = Leases()
        method = Method(KEEP_ALIVE, decode, stream_handler=leases.open)
        wire = connected(Gateway(Router({KEEP_ALIVE: method}), TransportLimits()).serve, TransportLimits())
        sent = objects(0, 1) + LARGE % 1 + objects(2, 3) + LARGE % 3 + objects(4, 5)
        wire.connection.data_received(UPGRADE + frames(sent) if is_socket else POST % len(sent) + sent)
        assert leases.seen == [0]
        await until(lambda: len(leases.seen) == 5)
        await asyncio.sleep(0)
        assert leases.seen == [0, 1, 2, 3, 4]
        assert leases.ended == (not is_socket)

    run(test)
    mine = threading.current_thread().name
    assert [name == mine for name in threads] == [True, False, True, False, True]


@pytest.mark.parametrize("how", ["wrong", "lost"])
def test_a_call_ends_while_a_large_message_of_it_is_decoded(how: str) -> None:
    async def test() -> None:
        leases = Leases()
        wire = connected(leases.handler(TransportLimits()), TransportLimits())
        sent = LARGE.replace(b"%d", b"[]" if how == "wrong" else b"1") + objects(2, 3)
        wire.connection.data_received(POST % 100_000 + sent)
        if how == "lost":
            wire.close()
        await until(lambda: bool(leases.cancelled))
        await asyncio.get_running_loop().shutdown_default_executor()
        await asyncio.sleep(0)
        assert (leases.seen, leases.cancelled) == ([], 1)
        assert how == "lost" or b"400 Bad Request" in wire.written

    run(test)


def test_a_message_of_many_marks_leaves_turns_to_others() -> None:
    """Also one that comes at once, over a WebSocket."""

    async def test() -> None:
        leases = Leases()
        wire = connected(leases.handler(TransportLimits()), TransportLimits())
        wire.connection.data_received(UPGRADE)
        wire.connection.data_received(b"\x81\xff" + len(MARKS).to_bytes(8) + bytes(4) + MARKS)
        assert await until(lambda: leases.seen == [0]) > MARKS.count(b'"') // 4_096

    run(test)


def test_the_end_of_a_first_object_of_many_marks_is_looked_for_in_turns() -> None:
    async def test() -> None:
        body = _Body()
        first = FirstObject(body)
        first.data(b" ")
        first.data(MARKS[:100_000])
        first.data(MARKS[100_000:] + b"{")
        assert await until(lambda: body.has_ended) > MARKS.count(b'"') // 4_096
        first.data(b"}")
        assert body.taken == b" " + MARKS + b"{"
        body = _Body()
        FirstObject(body).data(b"[")
        assert body.has_ended

    run(test)


class _Body:
    def __init__(self) -> None:
        self.taken = b""
        self.has_ended = False
        self.pending_bytes = 0

    def data(self, data: bytes, /) -> None:
        self.taken += data

    def end(self) -> None:
        assert not self.has_ended
        self.has_ended = True


@pytest.mark.parametrize("is_end", [True, False])
def test_messages_over_http2_are_carried_out_some_in_a_turn(is_end: bool) -> None:
    async def test() -> None:
        leases = Leases()
        session = Session(LIMITS, pages=Pages(leases.handler(LIMITS), Dates(lambda: 999)))
        path = (b":path", b"/v3/lease/keepalive")
        fields = [(b":method", b"POST"), (b":scheme", b"https"), path, (b":authority", b"x")]
        session.send(pack(HEADERS, END_HEADERS, 1, literal_block(fields)))
        body = objects(0, 4_000)
        for start in range(0, len(body), 10_000):
            is_last = is_end and start + 10_000 >= len(body)
            session.send(pack(DATA, END_STREAM if is_last else 0, 1, body[start : start + 10_000]))
        assert len(leases.seen) == TURN
        assert len(body) > LIMITS.window_bytes // 2
        assert session.of(8)[1:] == []  # no window, while it waits
        assert LIMITS.totals.received == len(body) - len(objects(0, TURN))
        await take_turns(leases.seen, 4_000)
        await asyncio.sleep(0)
        session.step()
        assert leases.ended == is_end
        assert LIMITS.totals.received == 0
        granted = sum(int.from_bytes(frame.payload) for frame in session.of(8)[1:])
        assert granted == (0 if is_end else len(body))
        session.hang_up()
        session.check_clean()

    run(test)


def test_objects_that_were_not_asked_for_are_the_next_ones() -> None:
    splitter = JsonSplitter()
    found = splitter.feed(b' {"a":1}{"b"')
    assert next(found) == b'{"a":1}'
    splitter.feed(b':"{"}\n{}{}')
    assert next(splitter.feed(b"")) == b'{"b":"{"}'
    assert list(splitter.feed(b"{")) == [b"{}", b"{}"]
    assert splitter.rest == b"{"


def test_a_server_answers_all_of_many_small_messages() -> None:
    with serve(options=ServerOptions()) as server, Socket(server.host, server.port, "/v3/watch") as web:
        create = json.dumps({"create_request": {"key": b64encode(b"k").decode()}})
        for size in (1, 100):
            for _ in range(0, 500, size):
                web.ask((create * size).encode())
        found = [int(web.answer()["result"].get("watch_id", 0)) for _ in range(1_000)]
        assert found == list(range(1_000))
