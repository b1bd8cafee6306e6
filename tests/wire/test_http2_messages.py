"""Many messages of gRPC in one frame: they are carried out some in a slice, in order, and others have their turns in between."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, strategies

from mvccstore.server.transport.frames import ErrorCode
from mvccstore.server.transport.limits import TransportLimits
from tests.wire.http2_kit import (
    DATA,
    END_STREAM,
    PADDED,
    WINDOW_UPDATE,
    Session,
    gzipped,
    message,
    open_stream,
    pack,
    ping,
    reset,
    unary,
)

TURN = 8
LIMITS = TransportLimits(slice_messages=TURN, window_bytes=65_535, turn_seconds=1.0)
HOLD, CHAT = b"/t.T/Hold", b"/t.T/Chat"


def numbers(first: int, stop: int) -> bytes:
    return b"".join(message(b"%d" % number) for number in range(first, stop))


def texts(first: int, stop: int) -> list[str]:
    return [str(number) for number in range(first, stop)]


def data(stream: int, body: bytes, flags: int = 0) -> bytes:
    return pack(DATA, flags, stream, body)


def padded(stream: int, body: bytes, flags: int = 0) -> bytes:
    return pack(DATA, flags | PADDED, stream, bytes((50,)) + body + bytes(50))


def connected(limits: TransportLimits = LIMITS, beside: Session | None = None) -> Session:
    """Connect a client to a port where a turn of the loop has time for one slice."""
    session = Session(limits, beside=beside)
    session.loop.run()
    session.loop.looks_cost = 1.1
    return session


def go_round(session: Session, stop: int) -> list[int]:
    """Have the loop go round until the service has had so many; return how many in each turn."""
    events = session.services.events
    found = [len(events)]
    while len(events) < stop:
        session.loop.turn()
        found.append(len(events) - sum(found))
        assert len(found) <= stop
    assert max(found) <= TURN
    return found


@pytest.mark.parametrize("framed", [data, padded])
def test_others_have_their_turns_while_many_messages_are_carried_out(framed: Callable[..., bytes]) -> None:
    heavy = connected()
    light = connected(beside=heavy)
    heavy.connection.data_received(open_stream(1, HOLD) + framed(1, numbers(0, 100), END_STREAM))
    assert len(heavy.services.events) == TURN
    turns = 0
    while len(heavy.services.events) < 101:
        light.connection.data_received(unary(2 * turns + 1, b"/t.T/Echo", b"light"))
        light.take()
        assert light.answers[2 * turns + 1].messages == [(0, b"light")]
        heavy.loop.turn()
        turns += 1
    assert turns == 100 // TURN
    assert heavy.services.events == [*texts(0, 100), "end"]
    heavy.hang_up()
    heavy.check_clean()
    assert heavy.turns.waiting_bytes == len(heavy.turns) == 0


def test_empty_messages_are_messages() -> None:
    session = connected()
    session.connection.data_received(open_stream(1, HOLD) + data(1, message(b"") * 3_000))
    assert set(go_round(session, 3_000)) == {TURN}


def test_messages_of_one_frame_each_are_as_many_as_frames() -> None:
    session = connected()
    session.connection.data_received(open_stream(1, HOLD) + b"".join(data(1, numbers(n, n + 1)) for n in range(40)))
    assert session.services.events == texts(0, 40)


def test_streams_of_a_connection_share_a_slice() -> None:
    session = connected()
    session.send(*(open_stream(stream, HOLD) for stream in range(1, 21, 2)))
    sent = b"".join(data(2 * n + 1, numbers(10 * n, 10 * n + 10)) for n in range(10))
    session.connection.data_received(sent)
    assert go_round(session, 100) == [TURN] * 12 + [4]
    assert session.services.events == texts(0, 100)


def test_a_frame_may_begin_and_end_in_the_middle_of_a_message() -> None:
    session = connected()
    body, later = numbers(0, 30), numbers(30, 40)
    session.connection.data_received(
        open_stream(1, HOLD) + data(1, body[:3]) + data(1, body[3:] + later[:2]) + data(1, later[2:])
    )
    assert go_round(session, 40) == [TURN] * 5
    assert session.services.events == texts(0, 40)
    assert session.limits.totals.received == 0


def test_compressed_messages_are_counted_as_others_are() -> None:
    session = connected()
    body = b"".join(gzipped(b"%d" % number) for number in range(20))
    session.connection.data_received(open_stream(1, HOLD, (b"grpc-encoding", b"gzip")) + data(1, body))
    assert go_round(session, 20) == [TURN, TURN, 4]
    assert session.services.events == texts(0, 20)


def test_a_length_that_was_said_is_that_of_all() -> None:
    session = connected()
    body = numbers(0, 30)
    for stream, length in ((1, len(body)), (3, len(body) - 1)):
        said = (b"content-length", b"%d" % length)
        session.connection.data_received(open_stream(stream, HOLD, said) + data(stream, body, END_STREAM))
        session.step()
    assert session.services.events == [*texts(0, 30), "end", "cancel hold"]
    assert session.answers[3].reset == ErrorCode.PROTOCOL_ERROR
    assert 1 not in session.answers


def test_windows_open_as_messages_are_handed_on() -> None:
    """Of what has not been, the stream's window has no byte more; nothing is lost in the end."""
    session = connected()
    session.connection.data_received(open_stream(1, HOLD))
    session.step()
    before = len(session.of(WINDOW_UPDATE))
    sent = numbers(1_000, 8_000)
    size = len(message(b"1000"))
    assert len(sent) < LIMITS.window_bytes
    for start in range(0, len(sent), 16_000):
        session.connection.data_received(data(1, sent[start : start + 16_000]))
    granted = 0
    while len(session.services.events) < 7_000:
        session.loop.turn()
        session.take()
        granted = sum(int.from_bytes(one.payload) for one in session.of(WINDOW_UPDATE)[before:] if one.stream == 1)
        assert granted <= len(session.services.events) * size
    assert session.services.events == texts(1_000, 8_000)
    assert granted >= LIMITS.window_bytes // 2
    assert session.connection._receive_window == session.connection._window_bytes - len(sent)


def test_little_is_read_behind_what_waits() -> None:
    session = connected(TransportLimits(slice_messages=TURN, turn_seconds=1.0, waiting_bytes_max=20_000))
    session.connection.data_received(open_stream(1, HOLD) + data(1, message(b"") * 3_000))
    assert not session.transport.is_paused
    session.connection.data_received(data(1, message(b"") * 3_000))
    assert session.transport.is_paused
    assert session.turns.waiting_bytes < 2 * 16_384
    assert session.limits.totals.received == 0
    session.step()
    assert len(session.services.events) == 6_000
    assert not session.transport.is_paused
    assert session.turns.waiting_bytes == 0


def test_who_does_not_read_is_asked_nothing_more() -> None:
    session = connected()
    session.connection.data_received(open_stream(1, CHAT) + data(1, numbers(0, TURN + 1)))
    session.take()
    session.transport.is_read = False
    session.connection.pause_writing()
    session.connection.data_received(data(1, numbers(TURN + 1, 100)))
    session.step()
    assert len(session.turns) == 0
    assert [body for _, body in session.answers[1].messages] == [b"%d" % number for number in range(TURN)]
    session.transport.is_read = True
    session.connection.resume_writing()
    session.step()
    assert [body for _, body in session.answers[1].messages] == [b"%d" % number for number in range(100)]


def test_a_reset_behind_messages_comes_behind_them() -> None:
    session = connected()
    session.connection.data_received(open_stream(1, HOLD) + data(1, numbers(0, 20)) + reset(1) + ping())
    go_round(session, 21)
    session.step()
    assert session.services.events == [*texts(0, 20), "cancel hold"]
    assert session.connection._streams == {}


@pytest.mark.parametrize("how", ["finish", "fail", "raise", "bug", "\xff"])
def test_a_call_that_ends_takes_what_waits_along(how: str) -> None:
    session = connected()
    body = numbers(0, 20) + message(how.encode("latin-1")) + numbers(20, 100)
    session.connection.data_received(open_stream(1, CHAT) + data(1, body, END_STREAM) + unary(3, b"/t.T/Echo", b"next"))
    session.step()
    assert [body for _, body in session.answers[1].messages] == [b"%d" % number for number in range(20)]
    assert session.answers[1].status is not None
    assert session.answers[1].reset is None  # it has ended its half
    assert session.answers[3].messages == [(0, b"next")]
    assert session.goaway is None
    session.hang_up()
    session.check_clean()


@pytest.mark.parametrize("how", ["deadline", "finish", "lost"])
def test_a_call_that_ends_in_between_takes_what_waits_along(how: str) -> None:
    session = connected()
    opened = open_stream(1, HOLD, (b"grpc-timeout", b"2S"))
    session.connection.data_received(opened + data(1, numbers(0, 50), END_STREAM))
    assert len(session.turns) == 1
    match how:
        case "deadline":
            session.loop.advance(3)
        case "finish":
            session.services.calls[b"hold"].finish()
        case _:
            session.hang_up()
    session.step()
    noted = session.services.events
    if how == "deadline":
        assert session.answers[1].status == (4, "context deadline exceeded")
        noted = noted[:-1] if noted[-1] == "cancel hold" else noted
    elif how == "lost":
        assert noted.pop() == "cancel hold"
    assert "end" not in noted
    assert noted == texts(0, len(noted))
    assert session.goaway is None
    if how != "lost":
        session.hang_up()
    session.check_clean()
    assert session.turns.waiting_bytes == 0


@given(
    strategies.lists(strategies.binary(max_size=30), max_size=40),
    strategies.lists(strategies.integers(0, 700), max_size=8),
    strategies.integers(1, 5),
    strategies.booleans(),
)
def test_messages_arrive_in_order_however_they_are_cut(
    bodies: list[bytes], cuts: list[int], most: int, is_padded: bool
) -> None:
    bodies = [body for body in bodies if body not in {b"finish", b"fail", b"raise", b"bug", b"\xff"}]
    sent = b"".join(map(message, bodies))
    edges = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    session = connected(TransportLimits(slice_messages=most, turn_seconds=1.0))
    framed = padded if is_padded else data
    frames = [framed(1, sent[start:stop]) for start, stop in pairwise(edges)]
    session.send(open_stream(1, CHAT) + b"".join(frames) + data(1, b"", END_STREAM))
    assert session.answers[1].messages == [(0, body) for body in bodies]
    assert session.answers[1].status == (0, "")
    connection = session.connection
    received = sum(len(one) - 9 for one in frames)
    assert connection._receive_window == connection._window_bytes - received
    assert connection._memory.received == session.turns.waiting_bytes == 0
