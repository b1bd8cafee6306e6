"""Pages and the gateway over HTTP/2: what is no gRPC is answered as over HTTP/1.1, within the windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvccstore.server.transport.call import WRITABLE_BYTES
from mvccstore.server.transport.counts import Cuts, Totals
from mvccstore.server.transport.dates import Dates
from mvccstore.server.transport.exchange import TEXT, BodyReceiver, Exchange
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.page_stream import Pages
from tests.wire.http2_kit import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Answer,
    Session,
    literal_block,
    pack,
    pattern,
    reset,
    unary,
)

PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, CANCEL, ENHANCE_YOUR_CALM = 1, 2, 3, 8, 11
LIMITS = TransportLimits(window_bytes=65_535, http_body_seconds=30.0, http_linger_seconds=2.0)


class Echo:
    """Answers with method, path, host and body."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.body = b""

    @property
    def pending_bytes(self) -> int:
        return len(self.body)

    def data(self, data: bytes) -> None:
        if data == b"bug":
            raise RuntimeError
        self.body += data

    def end(self) -> None:
        request = self.exchange.request
        host = (request.headers.get(b"host") or b"none").decode()
        shown = f"{request.method} {request.path}?{request.query} {host} {request.is_secure} "
        self.exchange.respond(200, TEXT, shown.encode() + self.body)


class Later(Echo):
    """Answers when it is told to."""

    def end(self) -> None:
        pass


class Site:
    """A handler; notes what is cancelled."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.exchanges: list[Exchange] = []
        self.writable = 0

    def serve(self, exchange: Exchange) -> BodyReceiver | None:
        self.exchanges.append(exchange)
        exchange.on_cancel = self._cancel
        exchange.on_writable = self._write
        match exchange.request.path.split("/")[1]:
            case "big":
                exchange.respond(200, TEXT, pattern(int(exchange.request.query)))
            case "no":
                exchange.respond(404, TEXT, b"no\n")
            case "bug":
                raise RuntimeError
            case "later":
                return Later(exchange)
            case "open":
                exchange.is_open_ended = True
                exchange.begin(200, TEXT)
                return Echo(exchange)
            case _:
                return Echo(exchange)
        return None

    def _cancel(self) -> None:
        self.cancelled += 1

    def _write(self) -> None:
        self.writable += 1


def connect(limits: TransportLimits = LIMITS, *, is_alone: bool = False) -> tuple[Session, Site]:
    site = Site()
    return Session(limits, pages=Pages(site.serve, Dates(lambda: 1_000), is_alone)), site


def ask(
    stream: int, path: bytes = b"/a", *more: tuple[bytes, bytes], method: bytes = b"GET", end: bool = True
) -> bytes:
    fields = [(b":method", method), (b":scheme", b"https"), (b":path", path), (b":authority", b"there"), *more]
    return pack(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, literal_block(fields))


def post(stream: int, body: bytes, *more: tuple[bytes, bytes]) -> bytes:
    return ask(stream, b"/a", *more, method=b"POST", end=False) + pack(DATA, END_STREAM, stream, body)


def answer_of(session: Session, stream: int = 1) -> Answer:
    """Return an answer, which has to be whole and not reset."""
    found = session.answers[stream]
    assert found.trailers == {}
    assert found.reset is None
    return found


def test_a_page_is_answered_with_its_length_and_date() -> None:
    session, _ = connect()
    session.send(ask(1, b"/a%20b?q=%41"))
    found = answer_of(session)
    assert found.body == b"GET /a b?q=%41 there True "
    assert found.head == {
        b":status": b"200",
        b"content-type": b"text/plain; charset=utf-8",
        b"x-content-type-options": b"nosniff",
        b"content-length": b"26",
        b"date": b"Thu, 01 Jan 1970 00:00:01 GMT",
    }
    session.hang_up()
    session.check_clean()


def test_a_host_field_counts_more_than_the_authority() -> None:
    session, _ = connect()
    session.send(ask(1, b"/a", (b"host", b"here")))
    assert answer_of(session).body == b"GET /a? here True "


def test_head_has_no_body() -> None:
    session, _ = connect()
    session.send(ask(1, b"/big?70000", method=b"HEAD"))
    found = answer_of(session)
    assert (found.head[b"content-length"], found.body) == (b"70000", b"")


def test_calls_and_pages_take_turns_on_one_connection() -> None:
    session, _ = connect()
    session.send(unary(1, b"/t.T/Echo", b"one") + ask(3) + unary(5, b"/t.T/Echo", b"two"))
    assert [session.answers[stream].messages for stream in (1, 5)] == [[(0, b"one")], [(0, b"two")]]
    assert answer_of(session, 3).body.startswith(b"GET /a")


def test_a_body_of_any_size_comes_through_its_window() -> None:
    session, _ = connect()
    body = pattern(300_000)
    session.send(ask(1, method=b"POST", end=False))
    sent, window = 0, 65_535
    while sent < len(body):
        part = body[sent : sent + min(window, 16_384)]
        assert part, "no window is granted"
        sent += len(part)
        window -= len(part)
        for frame in session.send(pack(DATA, END_STREAM if sent == len(body) else 0, 1, part)):
            if frame.kind == 8 and frame.stream == 1:
                window += int.from_bytes(frame.payload)
    session.grant(0, 1 << 20)
    session.grant(1, 1 << 20)
    assert answer_of(session).body == b"POST /a? there True " + body
    session.hang_up()
    session.check_clean()


def test_more_than_the_window_ends_the_stream() -> None:
    session, site = connect()
    session.send(ask(1, b"/open", method=b"POST", end=False))
    site.exchanges[0].write(bytes(400_000))  # which it does not take; so it is granted nothing
    session.send(*(pack(DATA, 0, 1, bytes(16_384)) for _ in range(4)))
    assert session.answers[1].reset == FLOW_CONTROL_ERROR
    assert site.cancelled == 1


def test_an_answer_waits_for_both_windows() -> None:
    session, site = connect()
    session.send(ask(1, b"/big?200000"))
    assert len(session.answers[1].body) == 65_535
    session.grant(1, 100_000)
    assert len(session.answers[1].body) == 65_535  # the connection's is used up, too
    session.grant(0, 1_000_000)
    assert len(session.answers[1].body) == 165_535
    session.grant(1, 100_000)
    assert answer_of(session).body == pattern(200_000)
    assert site.cancelled == 0
    session.hang_up()
    session.check_clean()


def test_who_writes_is_told_when_its_client_reads_again() -> None:
    session, site = connect()
    session.send(ask(1, b"/open"))
    exchange = site.exchanges[0]
    exchange.write(bytes(400_000))
    assert exchange.queued_bytes == 400_000 - 65_535
    session.grant(0, 1 << 20)
    assert site.writable == 0
    session.grant(1, 300_000)
    assert (site.writable, exchange.queued_bytes) == (1, 400_000 - 365_535)
    session.grant(1, 300_000)
    exchange.finish()
    session.step()
    assert len(answer_of(session).body) == 400_000


@pytest.mark.parametrize("size", [0, 4])
def test_a_reset_tells_who_answers(size: int) -> None:
    session, site = connect()
    session.send(ask(1, method=b"POST", end=False) + (pack(DATA, 0, 1, b"part") if size else b""))
    session.send(reset(1))
    assert site.cancelled == 1
    session.hang_up()
    session.check_clean()


def test_a_lost_connection_tells_who_answers() -> None:
    session, site = connect()
    session.send(ask(1, b"/open") + ask(3, method=b"POST", end=False))
    site.exchanges[0].write(bytes(400_000))
    session.hang_up()
    assert site.cancelled == 2
    session.check_clean()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (post(1, b"four", (b"content-length", b"3")), PROTOCOL_ERROR),
        (post(1, b"four", (b"content-length", b"5")), PROTOCOL_ERROR),
        (post(1, b"four", (b"content-length", b"x")), PROTOCOL_ERROR),
        (post(1, b"four", (b"content-length", b"9" * 20)), PROTOCOL_ERROR),
        (post(1, b"four", (b"content-length", b"4"), (b"content-length", b"5")), PROTOCOL_ERROR),
        (ask(1, b"/a", (b"content-length", b"4")), PROTOCOL_ERROR),
    ],
)
def test_a_length_that_is_none_ends_the_stream(request_: bytes, code: int) -> None:
    session, _ = connect()
    session.send(request_ + unary(3, b"/t.T/Echo", b"well"))
    assert session.answers[1].reset == code
    assert session.answers[1].body == b""
    assert session.answers[3].messages == [(0, b"well")]


def test_the_right_length_is_right() -> None:
    session, _ = connect()
    session.send(post(1, b"four", (b"content-length", b"4")))
    assert answer_of(session).body.endswith(b" four")


def test_a_body_that_takes_too_long_is_given_up() -> None:
    session, site = connect(replace(LIMITS, cuts=Cuts()))
    session.send(ask(1, method=b"POST", end=False) + pack(DATA, 0, 1, b"p"))
    session.loop.advance(29.0)
    session.step()
    assert 1 not in session.answers
    session.loop.advance(2.0)
    session.step()
    assert session.answers[1].head[b":status"] == b"408"
    assert session.limits.cuts.by_limit == {"http_body_seconds": 1}
    assert site.cancelled == 1
    session.loop.advance(3.0)  # the rest of it may be on its way so long
    session.step()
    assert session.answers[1].reset == 0
    session.hang_up()
    session.check_clean()


def test_a_stream_may_take_for_ever() -> None:
    session, _ = connect()
    session.send(ask(1, b"/open", method=b"POST", end=False))
    session.loop.advance(3_600.0)
    session.send(pack(DATA, END_STREAM, 1, b"late"))
    assert session.answers[1].reset is None


def pass_time(session: Session, seconds: float) -> None:
    session.loop.advance(seconds)
    session.step()


@pytest.mark.parametrize("end", [True, False])
def test_an_answer_that_is_not_read_is_given_up(end: bool) -> None:
    session, site = connect(replace(LIMITS, cuts=Cuts(), totals=Totals()))
    session.send(ask(1, b"/big?400000", method=b"POST", end=end) + unary(3, b"/t.T/Later", b"x"))
    pass_time(session, LIMITS.http_stall_seconds - 1)
    assert session.answers[1].reset is None
    pass_time(session, 2.0)
    assert (session.answers[1].reset, session.limits.totals.queued) == (CANCEL, 0)
    assert session.limits.cuts.by_limit == {"http_stall_seconds": 1}
    assert site.cancelled == 0
    session.grant(0, 1 << 20)
    session.services.calls[b"x"].reply(b"x")
    session.step()
    assert session.answers[3].messages == [(0, b"x")]
    session.hang_up()
    session.check_clean()


def test_an_answer_that_drips_is_given_up() -> None:
    session, _ = connect(replace(LIMITS, cuts=Cuts()))
    session.send(ask(1, b"/big?700000"))
    session.grant(0, 1 << 20)
    for _ in range(3):
        assert session.answers[1].reset is None
        session.grant(1, WRITABLE_BYTES // 3)
        pass_time(session, LIMITS.http_stall_seconds / 2 - 5)
    assert session.answers[1].reset == CANCEL


def test_an_answer_may_take_for_ever_that_is_read_and_a_stream_that_is_not() -> None:
    session, site = connect(replace(LIMITS, cuts=Cuts()))
    session.send(ask(1, b"/big?%d" % (65_535 + 3 * WRITABLE_BYTES)) + ask(3, b"/open"))
    site.exchanges[1].write(bytes(400_000))
    session.grant(0, 1 << 21)
    for _ in range(3):
        pass_time(session, LIMITS.http_stall_seconds - 1)
        session.grant(1, WRITABLE_BYTES)
    assert answer_of(session).body == pattern(65_535 + 3 * WRITABLE_BYTES)
    pass_time(session, 1e4)
    assert (session.answers[3].reset, session.limits.cuts.by_limit) == (None, {})
    site.exchanges[1].finish()  # the rest of it is an answer as any other
    pass_time(session, LIMITS.http_stall_seconds + 1)
    assert (session.answers[3].reset, session.limits.cuts.by_limit) == (CANCEL, {"http_stall_seconds": 1})
    session.hang_up()
    session.check_clean()


def test_what_was_read_late_lingers_no_longer_for_it() -> None:
    session, _ = connect(replace(LIMITS, cuts=Cuts()))
    session.send(ask(1, b"/big?70000", method=b"POST", end=False))
    pass_time(session, LIMITS.http_stall_seconds - 1)
    session.grant(0, 70_000)
    session.grant(1, 70_000)
    pass_time(session, LIMITS.http_linger_seconds + 0.1)
    assert (session.answers[1].reset, session.limits.cuts.by_limit) == (0, {"http_linger_seconds": 1})
    session.hang_up()
    session.check_clean()


def test_what_nobody_wants_of_a_body_is_waited_for_before_the_stream_is_reset() -> None:
    session, _ = connect()
    session.send(ask(1, b"/no", method=b"POST", end=False) + ask(3, b"/no", method=b"POST", end=False))
    assert (session.answers[1].body, session.answers[3].body) == (b"no\n", b"no\n")
    session.send(pack(DATA, 0, 1, bytes(10_000)), pack(DATA, END_STREAM, 1, b"x"))
    session.loop.advance(5.0)
    session.step()
    assert (session.answers[1].reset, session.answers[3].reset) == (None, 0)
    session.hang_up()
    session.check_clean()


def test_bodies_that_are_not_complete_are_bounded_together() -> None:
    session, _ = connect(TransportLimits(received_bytes_max=100_000))
    for stream in range(1, 15, 2):
        session.send(ask(stream, method=b"POST", end=False), pack(DATA, 0, stream, bytes(16_000)))
    assert session.goaway is not None
    assert session.goaway.code == ENHANCE_YOUR_CALM
    session.check_clean()


def test_bodies_that_are_not_answered_count_as_well() -> None:
    session, site = connect(TransportLimits(received_bytes_max=100_000))
    for stream in range(1, 13, 2):
        session.send(ask(stream, b"/later", method=b"POST", end=False), pack(DATA, END_STREAM, stream, bytes(16_000)))
    for exchange in site.exchanges[:3]:
        exchange.respond(200, TEXT, b"")
    for stream in range(13, 19, 2):
        session.send(ask(stream, b"/later", method=b"POST", end=False), pack(DATA, END_STREAM, stream, bytes(16_000)))
    assert session.goaway is None
    session.send(ask(19, b"/later", method=b"POST", end=False), pack(DATA, END_STREAM, 19, bytes(16_000)))
    assert session.goaway is not None
    assert session.goaway.code == ENHANCE_YOUR_CALM
    session.check_clean()


@pytest.mark.parametrize("sent", [ask(1, b"/bug"), post(1, b"bug")])
def test_an_error_of_ours_ends_no_other_stream(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    session, _ = connect()
    session.send(sent + ask(3))
    assert answer_of(session).head[b":status"] == b"500"
    assert answer_of(session, 3).head[b":status"] == b"200"
    assert "ended by an error of ours" in caplog.text


def test_a_bad_escape_is_refused() -> None:
    session, site = connect()
    session.send(ask(1, b"/%zz"))
    found = answer_of(session)
    assert (found.head[b":status"], found.body) == (b"400", b"400 Bad Request: bad escape in the path\n")
    assert site.exchanges == []


GRPC = (b"content-type", b"application/grpc")


@pytest.mark.parametrize(
    ("sent", "status", "body"),
    [
        (ask(1, b"/t.T/Echo", GRPC), b"405", b'invalid gRPC request method "GET"\n'),
        (
            ask(1, b"/t.T/Echo", (b"content-type", b"application/grpcfoo"), method=b"POST"),
            b"415",
            b'invalid gRPC request content-type "application/grpcfoo"\n',
        ),
        (
            ask(1, b"/t.T/Echo", GRPC, (b"grpc-timeout", b"x"), method=b"POST"),
            b"400",
            b'malformed grpc-timeout: transport: timeout string is too short: "x"\n',
        ),
        (ask(1, b"/v3/kv/range", GRPC, method=b"POST"), b"200", b"POST /v3/kv/range? there True "),
        (ask(1, b"/t.T/Echo", method=b"POST"), b"200", b"POST /t.T/Echo? there True "),
    ],
)
def test_what_is_for_grpc_is_told_from_what_is_not(sent: bytes, status: bytes, body: bytes) -> None:
    session, _ = connect()
    session.send(sent)
    found = answer_of(session)
    assert (found.head[b":status"], found.body) == (status, body)


def test_an_unknown_method_is_grpcs_to_refuse() -> None:
    session, _ = connect()
    session.send(unary(1, b"/t.T/Nope", b""))
    assert session.answers[1].status == (12, "unknown method Nope for service t.T")


def test_where_there_is_no_grpc_everything_is_for_a_page() -> None:
    session, _ = connect(is_alone=True)
    session.send(ask(1, b"/t.T/Echo", GRPC, method=b"POST"))
    assert answer_of(session).body == b"POST /t.T/Echo? there True "


def test_without_pages_grpc_refuses_what_is_not_for_it() -> None:
    session = Session()
    session.send(ask(1, b"/health"))
    assert session.answers[1].head[b":status"] == b"415"
    assert session.answers[1].status == (3, 'invalid gRPC request content-type ""')


_PATHS = [b"/a", b"/later", b"/open", b"/no", b"/bug", b"/big?70000", b"/%zz", b"/t.T/Echo"]
_LENGTHS = [(), ((b"content-length", b"5"),), ((b"content-length", b"400000"),)]
_STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(_PATHS), st.sampled_from(_LENGTHS), st.booleans()),
    st.tuples(st.just("data"), st.integers(0, 5), st.integers(0, 16_384), st.booleans()),
    st.tuples(st.just("reset"), st.integers(0, 5)),
    st.tuples(st.just("grant"), st.integers(0, 5), st.integers(1, 100_000)),
    st.tuples(st.just("window"), st.integers(0, 200_000)),
    st.tuples(st.just("time"), st.floats(0.1, 400.0)),
    st.tuples(st.just("write"), st.integers(0, 5), st.integers(0, 100_000)),
    st.tuples(st.just("finish"), st.integers(0, 5)),
    st.tuples(st.just("read"), st.booleans()),
)


@given(st.lists(_STEPS, max_size=40))
def test_whatever_a_client_does_nothing_is_left_of_it(steps: list[Any]) -> None:
    limits = TransportLimits(window_bytes=65_535, http_body_seconds=30.0, received_bytes_max=200_000)
    session, site = connect(limits)
    session.change(initial_window=100_000)
    opened = 0
    for step in steps:
        stream = 2 * step[1] + 1 if step[0] in {"data", "reset", "grant"} else 0
        match step:
            case ("ask", path, lengths, is_end):
                opened += 1
                session.send(ask(2 * opened - 1, path, *lengths, method=b"POST", end=is_end))
            case ("data", number, size, is_end) if number < opened:
                session.send(pack(DATA, END_STREAM if is_end else 0, stream, bytes(size)))
            case ("reset", number) if number < opened:
                session.send(reset(stream))
                session._closed.add(stream)
            case ("grant", number, increment) if number < opened:
                session.grant(stream, increment)
                session.grant(0, increment)
            case ("window", size):
                session.change(initial_window=size)
            case ("time", seconds):
                session.loop.advance(seconds)
                session.step()
            case ("write", number, size) if number < len(site.exchanges) and site.exchanges[number].has_begun:
                site.exchanges[number].write(bytes(size))
                session.step()
            case ("finish", number) if number < len(site.exchanges) and site.exchanges[number].has_begun:
                site.exchanges[number].finish()
                session.step()
            case ("read", True):
                session.transport.read_again()
                session.step()
            case ("read", False):
                session.transport.is_read = False
            case _:
                pass
    session.hang_up()
    session.check_clean()
    assert session.goaway is None or session.goaway.code != INTERNAL_ERROR
    # Who was served and did not answer was told, once.
    answered = sum(exchange.is_done for exchange in site.exchanges)
    assert answered == len(site.exchanges)
