"""What a client may do how often, each limit just below and just beyond; and how connections end."""

from __future__ import annotations

import pytest

from mvccstore.server.transport.frames import PREFACE, ErrorCode
from mvccstore.server.transport.limits import TransportLimits
from tests.wire.http2_kit import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    LARGE,
    PADDED,
    PING,
    PRIORITY,
    SETTINGS,
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

CALM = ErrorCode.ENHANCE_YOUR_CALM
LATE = pack(HEADERS, END_HEADERS | END_STREAM, 1, literal_block([(b"a", b"b")]))
HOLD = open_stream(1, b"/t.T/Hold")
FLOODS = [
    # what, frames to begin with, the frame of which there are many
    ("PING", b"", ping()),
    ("SETTINGS", b"", settings()),
    ("PRIORITY", b"", pack(PRIORITY, 0, 9, bytes(5))),
    ("empty DATA", HOLD, pack(DATA, 0, 1)),
    ("DATA of padding", HOLD, pack(DATA, PADDED, 1, bytes((3,)) + bytes(3))),
    ("empty DATA on a stream that is over", HOLD + reset(1), pack(DATA, 0, 1)),
    ("RST_STREAM of a stream that is over", HOLD + reset(1), reset(1)),
]


@pytest.mark.parametrize(("what", "first", "frame"), FLOODS, ids=[case[0] for case in FLOODS])
def test_floods_of_frames_that_cost_nothing(what: str, first: bytes, frame: bytes) -> None:
    limits = TransportLimits(control_frames_max=100, ping_strikes_max=10_000)
    used = 1  # the settings that begin a connection
    session = Session(limits)
    session.send(first, frame * (100 - used))
    assert session.goaway is None, what
    session.send(frame)
    assert session.goaway is not None
    assert session.goaway.code == CALM
    # Not so many at once are no flood.
    session = Session(limits)
    session.send(first)
    for _ in range(10):
        session.send(frame * 90)
        session.loop.advance(10.5)
    assert session.goaway is None


def test_late_headers_are_bounded() -> None:
    limits = TransportLimits(control_frames_max=50)
    for count, code in ((50, None), (51, ErrorCode.STREAM_CLOSED)):
        session = Session(limits)
        session.send(HOLD + reset(1), LATE * count)
        assert (session.goaway and session.goaway.code) == code


def test_a_change_of_many_windows_has_its_price() -> None:
    limits = TransportLimits(control_frames_max=200)
    session = Session(limits)
    session.send(*(open_stream(stream, b"/t.T/Hold") for stream in range(1, 1_281, 2)))
    for number in range(17):
        session.send(settings((4, 1_000 + number)))
    assert session.goaway is None
    for number in range(5):
        session.send(settings((4, 2_000 + number)))
    assert session.goaway is not None
    assert session.goaway.code == CALM


@pytest.mark.parametrize("kind", ["taken back", "broken"])
def test_calls_taken_back_are_bounded(kind: str) -> None:
    def once(stream: int) -> bytes:
        end = reset(stream) if kind == "taken back" else pack(8, 0, stream, bytes(4))
        return open_stream(stream, b"/t.T/Hold") + end

    session = Session(TransportLimits(resets_max=50))
    session.send(*(once(stream) for stream in range(1, 101, 2)))
    assert session.goaway is None
    session.send(once(101))
    assert session.goaway is not None
    assert session.goaway.code == CALM
    assert session.services.events.count("cancel hold") == 51
    slow = Session(TransportLimits(resets_max=50))
    for stream in range(1, 401, 2):
        slow.send(once(stream))
        slow.loop.advance(0.25)
    assert slow.goaway is None


@pytest.mark.parametrize(
    ("count", "size", "is_too_much"), [(64, 10, False), (65, 10, True), (10, 2_000, False), (10, 2_100, True)]
)
def test_header_blocks_are_bounded(count: int, size: int, is_too_much: bool) -> None:
    session = Session(TransportLimits(header_bytes_max=20_500))
    session.send(pack(HEADERS, 0, 1, b""), *(pack(CONTINUATION, 0, 1, bytes(size)) for _ in range(count)))
    assert (session.goaway is not None) == is_too_much
    if session.goaway is not None:
        assert session.goaway.code == CALM


def test_header_lists_are_bounded_as_decoded() -> None:
    """A few bytes may name a field of the table that is long, again and again."""
    added = b"\x40\x01a\x7f" + (2_000 - 127 & 127 | 128).to_bytes() + (2_000 - 127 >> 7).to_bytes() + b"x" * 2_000
    for count, is_too_much in ((7, False), (10, True)):
        session = Session(TransportLimits(header_bytes_max=20_000))
        block = literal_block(request_fields()) + added + b"\xbe" * count
        session.send(pack(HEADERS, END_HEADERS | END_STREAM, 1, block))
        assert (session.goaway is not None) == is_too_much
        if session.goaway is not None:
            assert session.goaway.code == CALM


def test_calls_at_once_are_bounded() -> None:
    session = Session(TransportLimits(streams_max=2))
    session.send(HOLD + open_stream(3, b"/t.T/Hold") + open_stream(5, b"/t.T/Hold"))
    assert session.answers[5].reset == ErrorCode.REFUSED_STREAM
    session.send(reset(1) + unary(7, b"/t.T/Echo", b"x"))
    assert session.answers[7].status == (0, "")


def test_a_window_below_what_all_begin_with_is_no_limit() -> None:
    with pytest.raises(ValueError, match="window_bytes is 65534"):
        TransportLimits(window_bytes=65_534)


@pytest.mark.parametrize(
    "name", ["slice_frames", "slice_bytes", "slice_messages", "http_turn_requests", "http_turn_messages"]
)
def test_nobody_may_be_given_turns_in_which_nothing_is_done(name: str) -> None:
    assert TransportLimits(**{name: 1})
    with pytest.raises(ValueError, match=f"{name} is 0"):
        TransportLimits(**{name: 0})


# Pings of the client


@pytest.mark.parametrize(("is_busy", "interval"), [(True, 5.0), (False, 7_200.0)])
def test_pings_that_come_too_often(is_busy: bool, interval: float) -> None:
    session = Session()
    session.send(HOLD if is_busy else b"")
    for _ in range(10):
        session.send(ping())
        session.loop.advance(interval)
    assert session.goaway is None
    for _ in range(3):
        session.send(ping())
        session.loop.advance(interval - 0.1)
    assert session.goaway is None
    session.send(ping())
    assert session.goaway is not None
    assert session.goaway.payload[8:] == b"too_many_pings"
    assert session.goaway.code == CALM


def test_pings_that_follow_answers_are_free() -> None:
    session = Session()
    for stream in range(1, 61, 2):
        session.send(unary(stream, b"/t.T/Echo", b"x") + ping())
    assert session.goaway is None


# Silence


def test_a_client_that_is_silent_is_pinged_and_then_given_up() -> None:
    session = Session()
    session.frames.clear()
    look_after = session.connection.look_after
    session.loop.advance(7_200)
    look_after(session.loop.now)
    assert session.step() == []
    session.loop.advance(1)
    look_after(session.loop.now)
    (frame,) = session.step()
    assert (frame.kind, frame.flags) == (PING, 0)
    session.loop.advance(19)
    look_after(session.loop.now)
    session.send(pack(PING, ACK, 0, frame.payload))
    session.loop.advance(5)
    look_after(session.loop.now)
    assert session.lost == 0
    session.loop.advance(7_200)
    look_after(session.loop.now)
    assert len(session.step()) == 1
    session.loop.advance(20.5)
    look_after(session.loop.now)
    session.step()
    assert session.transport.is_aborted
    session.check_clean()
    look_after(session.loop.now)


def test_a_client_that_says_anything_after_a_ping_is_there() -> None:
    session = Session()
    session.loop.advance(7_201)
    session.connection.look_after(session.loop.now)
    session.loop.advance(19)
    session.send(unary(1, b"/t.T/Echo", b"x"))
    session.loop.advance(19)
    session.connection.look_after(session.loop.now)
    assert session.lost == 0


def test_a_client_that_begins_byte_by_byte_is_given_up() -> None:
    session = Session(greeting=b"")
    for byte in PREFACE:
        session.send(bytes((byte,)))
        session.loop.advance(5)
        session.connection.look_after(session.loop.now)
    session.loop.advance(1)
    session.connection.look_after(session.loop.now)
    session.step()
    assert session.lost == 1


def test_a_connection_that_cannot_be_closed_in_peace_is_aborted() -> None:
    session = Session()
    session.transport.is_read = False
    session.transport.unread = 1
    session.send(pack(PING, 0, 1, bytes(8)))
    assert session.transport.is_closed
    assert session.lost == 0
    session.connection.look_after(session.loop.now)
    session.loop.advance(20)
    session.connection.look_after(session.loop.now)
    session.step()
    assert session.lost == 0
    session.loop.advance(1)
    session.connection.look_after(session.loop.now)
    session.step()
    session.check_clean()


def test_an_error_ends_the_calls_under_way_at_once() -> None:
    session = Session()
    session.transport.is_read = False
    session.transport.unread = 1
    session.send(HOLD + ping(b"short"))
    assert session.services.events == ["cancel hold"]
    session.services.calls[b"hold"].reply(b"too late")
    session.step()


# Draining


def _drained(session: Session) -> list[tuple[int, int]]:
    return [(int.from_bytes(frame.payload[:4]), frame.code) for frame in session.of(GOAWAY)]


@pytest.mark.parametrize("is_answered", [True, False])
def test_draining_lets_calls_end_and_takes_no_new_ones(is_answered: bool) -> None:
    session = Session()
    session.send(unary(1, b"/t.T/Later", b"a"))
    session.connection.drain()
    session.connection.drain()
    session.step()
    assert _drained(session) == [(LARGE, 0)]
    probe = session.of(PING)[-1]
    # What was on its way is served.
    session.send(unary(3, b"/t.T/Later", b"b") + unary(5, b"/t.T/Echo", b"x"))
    assert session.answers[5].status == (0, "")
    if is_answered:
        session.send(ping(probe.payload, ACK))
    else:
        session.loop.advance(1.1)
        session.step()
    assert _drained(session) == [(LARGE, 0), (5, 0)]
    session.send(unary(7, b"/t.T/Echo", b"x") + pack(DATA, 0, 7, message(b"y")) + reset(7))
    assert 7 not in session.answers
    session.services.calls[b"a"].reply(b"done")
    session.step()
    assert not session.transport.is_closed
    session.services.calls[b"b"].reply(b"done")
    session.step()
    assert (session.answers[1].status, session.answers[3].status) == ((0, ""), (0, ""))
    assert session.transport.is_closed
    session.check_clean()
    session.loop.advance(5)


@pytest.mark.parametrize("end", [reset(1), pack(8, 0, 1, bytes(4))], ids=["taken back", "broken"])
def test_draining_ends_with_the_last_call_however_it_ends(end: bytes) -> None:
    session = Session()
    session.send(HOLD)
    session.connection.drain()
    session.loop.advance(1.1)
    session.send(end)
    assert session.transport.is_closed
    session.check_clean()


def test_draining_an_idle_connection_closes_it() -> None:
    for is_lost_first in (False, True):
        session = Session()
        session.connection.drain()
        if is_lost_first:
            session.hang_up()
        session.loop.advance(1.1)
        session.step()
        session.check_clean()
        session.connection.drain()
        session.connection.abort()
        assert session.loop.timers == []


def test_settings_of_the_client_may_come_again() -> None:
    session = Session()
    session.send(settings((3, 1)), settings((3, 1)))
    assert len([frame for frame in session.of(SETTINGS) if frame.flags == ACK]) == 3
