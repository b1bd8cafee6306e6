"""The rules of HTTP/1.1, byte by byte against the protocol: no sockets, no waiting."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvccstore.server.transport.call import WRITABLE_BYTES, Peer
from mvccstore.server.transport.dates import Dates
from mvccstore.server.transport.exchange import BodyReceiver, Exchange, HttpHandler
from mvccstore.server.transport.http1 import Http1Connection, http_factory
from mvccstore.server.transport.limits import TransportLimits
from tests.wire.http1_kit import Wire

LIMITS = TransportLimits()
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
DATE = b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"


class Echo:
    """Answers with the method, the path and the body of the request."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.body = b""

    @property
    def pending_bytes(self) -> int:
        return len(self.body)

    def data(self, data: bytes) -> None:
        self.body += data

    def end(self) -> None:
        request = self.exchange.request
        self.exchange.respond(200, (), f"{request.method} {request.path} ".encode() + self.body)


def connect(handler: HttpHandler, limits: TransportLimits = LIMITS) -> Wire:
    """Return the wire of a new connection."""
    lost: list[object] = []
    wire = Wire()
    protocol = http_factory(handler, limits, Dates(lambda: 999))(Peer("test"), lost.append)
    assert isinstance(protocol, Http1Connection)
    wire.connection = protocol
    protocol.connection_made(wire)
    return wire


def run(test: Callable[[], object]) -> None:
    """Run a test that needs a loop, but nothing of it."""

    async def main() -> None:
        test()
        await asyncio.sleep(0)

    asyncio.run(main())


def answer(body: bytes, *more: bytes) -> bytes:
    """Return the bytes of an answer with 200."""
    return OK + b"Content-Length: %d\r\n" % len(body) + DATE + b"".join(more) + b"\r\n" + body


def exchange_of(wire: Wire, request: bytes = GET, limits: TransportLimits = LIMITS) -> tuple[Wire, Exchange]:
    """Return a connection with a request that is not answered."""
    got: list[Exchange] = []
    wire = connect(lambda exchange: got.append(exchange), limits)
    wire.connection.data_received(request)
    return wire, got[0]


CHUNKED = (
    b"POST /b?q=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nTrailer: t\r\n\r\n"
)
SIZED = b"POST /c%20d HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
TWO = CHUNKED + SIZED + GET
ANSWERS = answer(b"POST /b abcdefg") + answer(b"POST /c d hello") + answer(b"GET /a ")


def test_requests_are_answered_in_order_wherever_they_are_cut_in_two() -> None:
    def test() -> None:
        for cut in range(1, len(TWO)):
            wire = connect(Echo)
            wire.connection.data_received(TWO[:cut])
            wire.connection.data_received(TWO[cut:])
            assert wire.written == ANSWERS
            assert not wire.is_closed

    run(test)


def test_requests_are_answered_byte_by_byte() -> None:
    def test() -> None:
        wire = connect(Echo)
        for byte in TWO:
            wire.connection.data_received(bytes((byte,)))
        assert wire.written == ANSWERS

    run(test)


@given(cuts=st.lists(st.integers(0, len(TWO)), max_size=12), noise=st.binary(max_size=40))
def test_no_input_raises_whatever_it_is_and_however_it_is_cut(cuts: list[int], noise: bytes) -> None:
    def test() -> None:
        wire = connect(Echo)
        data = TWO + noise
        places = sorted({0, *cuts, len(data)})
        for start, stop in itertools.pairwise(places):
            if not wire.is_closed:
                wire.connection.data_received(data[start:stop])
        assert wire.written.startswith(ANSWERS)

    run(test)


@given(st.lists(st.sampled_from([b"GET ", b"/", b" HTTP/1.1", b"\r\n", b"\n", b"Host: x", b":", b"\0", b"0", b"\r"])))
def test_no_nonsense_raises(pieces: list[bytes]) -> None:
    def test() -> None:
        wire = connect(Echo)
        for piece in pieces:
            if not wire.is_closed:
                wire.connection.data_received(piece)

    run(test)


BAD = {
    "garbage": (b"xyz\r\n\r\n", 400),
    "three spaces": (b"GET / HTTP/1.1 x\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "a space before the colon": (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "a bare return": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400),
    "zero in a value": (b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", 400),
    "bad escape": (b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "length and encoding": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "encoding and length": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
    "a list of lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 4\r\n\r\nabc", 400),
    "signed length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc", 400),
    "negative length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\nabc", 400),
    "huge length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\nabc", 400),
    "other encoding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nabc", 501),
    "two encodings": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "disguised encoding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "encoding twice": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        501,
    ),
    "encoding of 1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "bad chunk size": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n", 400),
    "signed chunk size": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n", 400),
    "hex prefix": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n", 400),
    "chunk without an end": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
    "endless chunk size": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 21 + b"1\r\na\r\n",
        400,
    ),
    "unknown expectation": (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: pigs\r\n\r\n", 417),
    "other version": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "long head that does not end": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000, 431),
    "long head that ends": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", 431),
    "many small fields": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 20_000, 431),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_request_is_refused_and_ends_the_connection(name: str) -> None:
    data, status = BAD[name]

    def test() -> None:
        served: list[BodyReceiver] = []

        def handler(exchange: Exchange) -> BodyReceiver:
            served.append(Echo(exchange))
            return served[-1]

        wire = connect(handler)
        wire.connection.data_received(GET + data)
        first = answer(b"GET /a ")
        assert wire.written.startswith(first)
        refusal = wire.written[len(first) :]
        assert refusal.startswith(b"HTTP/1.1 %d " % status), refusal
        assert b"Connection: close\r\n" in refusal
        # It stays half open for the client to read that, and what the client adds is not looked at.
        assert wire.has_written_eof
        wire.connection.data_received(GET)
        assert wire.written == first + refusal
        assert not wire.is_closed
        wire.connection.look_after(asyncio.get_running_loop().time() + LIMITS.http_linger_seconds + 1)
        assert wire.is_closed

    run(test)


@pytest.mark.parametrize(
    "data",
    [
        b"HEAD /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: x\r\nExpect: pigs\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_a_refusal_of_head_has_no_body(data: bytes) -> None:
    def test() -> None:
        wire = connect(Echo)
        wire.connection.data_received(data)
        head, _, body = wire.written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 4")
        assert body == b""
        assert wire.has_written_eof

    run(test)


def test_a_refusal_shows_nothing_of_what_the_client_sent() -> None:
    def test() -> None:
        wire = connect(Echo)
        wire.connection.data_received(b"<script> / HTTP/1.1\r\n\r\n")
        assert b"script" not in wire.written

    run(test)


def test_a_client_that_waits_to_send_its_body_is_told_to_go_on() -> None:
    def test() -> None:
        wire = connect(Echo)
        wire.connection.data_received(
            b"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert wire.written == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.connection.data_received(b"hi" + GET)
        assert wire.written.endswith(answer(b"POST /a hi") + answer(b"GET /a "))

    run(test)


def test_an_answer_before_a_body_that_was_asked_about_ends_the_connection() -> None:
    def refuse(exchange: Exchange) -> None:
        exchange.respond(404, (), b"no")

    def test() -> None:
        wire = connect(refuse)
        wire.connection.data_received(
            b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        )
        assert b"100" not in wire.written
        assert wire.written.endswith(b"Connection: close\r\n\r\nno")
        assert wire.has_written_eof

    run(test)


def test_a_body_that_nobody_takes_is_passed_over() -> None:
    def refuse(exchange: Exchange) -> None:
        exchange.respond(404, (), exchange.request.path.encode())

    def test() -> None:
        wire = connect(refuse)
        wire.connection.data_received(SIZED[:-2])
        assert wire.written.endswith(b"/c d")
        wire.connection.data_received(b"lo" + GET)
        assert wire.written.endswith(b"/a")
        assert not wire.is_closed

    run(test)


def test_a_body_that_nobody_takes_must_end_some_time() -> None:
    def refuse(exchange: Exchange) -> None:
        exchange.respond(404, (), b"no")

    def test() -> None:
        wire = connect(refuse)
        wire.connection.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n")
        for _ in range(5):
            assert not wire.has_written_eof
            wire.connection.data_received(b"x" * (LIMITS.http_pipelined_bytes_max // 5))
        wire.connection.data_received(b"xxxxxxxx")
        assert wire.has_written_eof

    run(test)


def test_head_has_the_length_and_no_body() -> None:
    def test() -> None:
        wire = connect(Echo)
        wire.connection.data_received(GET.replace(b"GET", b"HEAD") + GET)
        assert wire.written == OK + b"Content-Length: 8\r\n" + DATE + b"\r\n" + answer(b"GET /a ")

    run(test)


def test_a_stream_is_chunked_one_chunk_for_each_part() -> None:
    async def main() -> None:
        wire, exchange = exchange_of(Wire())
        exchange.begin(200, ())
        exchange.write(b"one\n")
        exchange.write(b"")
        exchange.write(b"two\n")
        await asyncio.sleep(0)
        head = OK + DATE + b"Transfer-Encoding: chunked\r\n\r\n"
        assert wire.written == head + b"4\r\none\n\r\n4\r\ntwo\n\r\n"
        exchange.finish()
        exchange.write(b"late")
        exchange.finish()
        assert wire.written.endswith(b"0\r\n\r\n")
        assert not wire.is_closed

    asyncio.run(main())


def test_a_stream_over_http_1_0_ends_with_its_connection() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire(), b"GET / HTTP/1.0\r\n\r\n")
        exchange.begin(200, ())
        exchange.write(b"one\n")
        exchange.finish()
        assert wire.written == OK + DATE + b"Connection: close\r\n\r\none\n"
        assert wire.is_closed

    run(test)


def test_a_pipelined_request_waits_for_the_answer_to_the_one_before() -> None:
    def test() -> None:
        got: list[Exchange] = []
        wire = connect(lambda exchange: got.append(exchange))
        wire.connection.data_received(GET + SIZED[:10])
        wire.connection.data_received(SIZED[10:])
        assert [exchange.request.path for exchange in got] == ["/a"]
        got[0].respond(200, (), b"first")
        assert [exchange.request.path for exchange in got] == ["/a", "/c d"]
        got[1].respond(200, (), b"second")
        assert wire.written == answer(b"first") + answer(b"second")

    run(test)


def test_a_burst_of_requests_leaves_turns_to_other_connections() -> None:
    async def main() -> None:
        wire = connect(Echo)
        count = 3 * LIMITS.http_turn_requests + 1
        wire.connection.data_received(GET * count)
        assert wire.written == answer(b"GET /a ") * LIMITS.http_turn_requests
        wire.connection.data_received(SIZED)
        for _ in range(4):
            await asyncio.sleep(0)
        assert wire.written == answer(b"GET /a ") * count + answer(b"POST /c d hello")

    asyncio.run(main())


def test_what_waits_behind_a_request_is_bounded() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire())
        burst = GET * (LIMITS.http_pipelined_bytes_max // len(GET))
        for start in range(0, len(burst), 10_000):
            wire.connection.data_received(burst[start : start + 10_000])
        assert wire.is_reading
        wire.connection.data_received(GET * 2)
        assert not wire.is_reading
        exchange.respond(200, (), b"")
        assert wire.is_reading

    run(test)


def test_a_client_that_does_not_read_makes_the_answer_unwritable_and_is_not_read_from() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire())
        exchange.is_open_ended = True
        woken: list[int] = []
        exchange.on_writable = lambda: woken.append(exchange.queued_bytes)
        exchange.begin(200, ())
        wire.is_stuck = True
        while exchange.queued_bytes <= WRITABLE_BYTES:
            exchange.write(b"x" * 20_000)
        assert not wire.is_reading
        assert woken == []
        wire.unstick()
        assert woken == [0]
        assert wire.is_reading

    run(test)


def test_answers_that_are_not_read_end_the_connection_at_a_limit() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire(), GET, replace(LIMITS, queued_bytes_max=1_000_000))
        cancelled: list[bool] = []
        exchange.on_cancel = lambda: cancelled.append(True)
        exchange.begin(200, ())
        wire.is_stuck = True
        for _ in range(60):
            exchange.write(b"x" * 20_000)
        assert wire.is_aborted
        assert cancelled == [True]

    run(test)


def test_a_client_that_goes_cancels_its_request_once() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire())
        cancelled: list[bool] = []
        exchange.on_cancel = lambda: cancelled.append(True)
        wire.connection.connection_lost(None)
        exchange.respond(200, (), b"late")
        assert cancelled == [True]
        assert wire.written == b""

    run(test)


def test_an_answer_that_was_given_is_not_cancelled() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire())
        exchange.on_cancel = lambda: pytest.fail("cancelled")
        exchange.respond(200, (), b"")
        wire.connection.connection_lost(None)

    run(test)


def test_a_client_that_closed_its_half_still_gets_its_answer() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire())
        assert wire.connection.eof_received()
        exchange.respond(200, (), b"here")
        assert wire.written == answer(b"here", b"Connection: close\r\n")
        assert wire.is_closed

    run(test)


def test_a_client_that_closed_its_half_may_be_gone_so_its_request_is_cancelled_in_the_end() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire())
        cancelled: list[bool] = []
        exchange.on_cancel = lambda: cancelled.append(True)
        wire.connection.eof_received()
        wire.connection.look_after(later(LIMITS.http_linger_seconds - 1))
        assert cancelled == []
        wire.connection.look_after(later(LIMITS.http_linger_seconds + 1))
        assert cancelled == [True]

    run(test)


def test_a_stream_ends_with_the_client_s_half() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire())
        exchange.is_open_ended = True
        assert not wire.connection.eof_received()

    run(test)


@pytest.mark.parametrize("data", [b"GE", CHUNKED[:-10]])
def test_a_client_that_closes_in_the_middle_of_a_request_gets_nothing(data: bytes) -> None:
    def test() -> None:
        wire = connect(Echo)
        wire.connection.data_received(data)
        assert not wire.connection.eof_received()
        assert wire.written == b""

    run(test)


def later(seconds: float) -> float:
    """Return a time that so many seconds have to pass for."""
    return asyncio.get_running_loop().time() + seconds


def test_a_head_that_drips_is_refused() -> None:
    def test() -> None:
        wire = connect(Echo)
        wire.connection.data_received(GET + b"GET / HT")
        wire.connection.look_after(later(LIMITS.http_head_seconds - 1))
        wire.connection.data_received(b"TP/1.1\r\nA: b")
        assert not wire.has_written_eof
        wire.connection.look_after(later(LIMITS.http_head_seconds + 1))
        assert b"HTTP/1.1 408 Request Timeout\r\n" in wire.written
        assert wire.has_written_eof

    run(test)


def test_a_body_that_drips_is_refused_and_its_call_cancelled() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire(), SIZED[:-1])
        cancelled: list[bool] = []
        exchange.on_cancel = lambda: cancelled.append(True)
        wire.connection.look_after(later(LIMITS.http_body_seconds - 1))
        assert cancelled == []
        wire.connection.look_after(later(LIMITS.http_body_seconds + 1))
        assert cancelled == [True]
        assert wire.written.startswith(b"HTTP/1.1 408 ")

    run(test)


def test_a_stream_may_take_for_ever() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire(), CHUNKED[:-10])
        exchange.is_open_ended = True
        wire.connection.look_after(later(1e6))
        exchange.begin(200, ())
        wire.is_stuck = True
        exchange.write(b"x" * (WRITABLE_BYTES + 1))
        wire.connection.look_after(later(1e6))
        assert not wire.is_closed

    run(test)


def test_an_answer_may_take_for_ever_to_be_made_but_not_to_be_read() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire())
        wire.connection.look_after(later(1e6))
        wire.is_stuck = True
        exchange.respond(200, (), b"x" * (WRITABLE_BYTES + 1))
        wire.connection.look_after(later(LIMITS.http_stall_seconds - 1))
        assert not wire.is_closed
        wire.connection.look_after(later(LIMITS.http_stall_seconds + 1))
        assert wire.is_aborted

    run(test)


def test_an_answer_may_take_for_ever_that_is_read_slowly() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire())
        wire.is_stuck = True
        exchange.respond(200, (), bytes(4 * WRITABLE_BYTES))
        now = later(0.0)
        for _ in range(2):
            now += LIMITS.http_stall_seconds - 1
            wire.waiting -= WRITABLE_BYTES
            wire.connection.look_after(now)
        wire.waiting -= WRITABLE_BYTES - 1
        wire.connection.look_after(now + LIMITS.http_stall_seconds - 1)
        assert not wire.is_closed
        wire.connection.look_after(now + LIMITS.http_stall_seconds + 1)
        assert wire.is_aborted

    run(test)


@pytest.mark.parametrize("before", [GET, GET + SIZED])
def test_an_idle_connection_is_closed_in_the_end(before: bytes) -> None:
    def test() -> None:
        wire = connect(Echo)
        wire.connection.data_received(before)
        written = wire.written
        wire.connection.look_after(later(LIMITS.http_idle_seconds - 1))
        assert not wire.is_closed
        wire.connection.look_after(later(LIMITS.http_idle_seconds + 1))
        assert wire.is_closed
        assert wire.written == written

    run(test)


def test_draining_closes_an_idle_connection() -> None:
    def test() -> None:
        wire = connect(Echo)
        wire.connection.drain()
        assert wire.is_closed

    run(test)


def test_draining_lets_the_request_under_way_be_answered_and_takes_no_other() -> None:
    def test() -> None:
        wire, exchange = exchange_of(Wire(), GET + GET)
        wire.connection.drain()
        assert not wire.is_closed
        exchange.respond(200, (), b"last")
        assert wire.written == answer(b"last", b"Connection: close\r\n")
        assert wire.is_closed

    run(test)


def test_an_error_of_the_handler_is_answered_with_500(caplog: pytest.LogCaptureFixture) -> None:
    def broken(exchange: Exchange) -> None:
        raise RuntimeError(exchange.request.path)

    def test() -> None:
        wire = connect(broken)
        wire.connection.data_received(GET)
        assert wire.written.startswith(b"HTTP/1.1 500 ")
        assert b"/a" not in wire.written

    run(test)
    assert "error of ours" in caplog.text


def test_the_target_may_be_absolute() -> None:
    def test() -> None:
        wire = connect(Echo)
        wire.connection.data_received(GET.replace(b"/a", b"http://h:1/a/b?c"))
        assert wire.written == answer(b"GET /a/b ")

    run(test)
