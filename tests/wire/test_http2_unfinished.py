"""Requests of gRPC that do not come to their end: they have their time, whatever is dripped in it, and streams may be idle."""

from __future__ import annotations

import pytest

from mvccstore.server.transport.frames import ErrorCode
from mvccstore.server.transport.limits import TransportLimits
from tests.wire.http2_kit import (
    DATA,
    END_STREAM,
    WINDOW_UPDATE,
    Session,
    message,
    open_stream,
    pack,
    ping,
    reset,
    unary,
)

TOO_LATE = (4, "the request takes too long")
BODY = message(b"abcdef")


def data(stream: int, body: bytes, flags: int = 0) -> bytes:
    return pack(DATA, flags, stream, body)


def let_pass(session: Session, seconds: float) -> None:
    """Let time pass, in which the port looks after its connections."""
    end = session.loop.now + seconds
    while session.loop.now < end:
        session.loop.advance(min(1.0, end - session.loop.now))
        session.connection.look_after(session.loop.now)
        session.step()


def begun() -> Session:
    return Session(TransportLimits(message_seconds=60.0, window_bytes=65_535))


@pytest.mark.parametrize(
    "sent",
    [b"", data(1, b""), data(1, BODY[:3]), data(1, BODY[:7]), data(1, BODY)],
    ids=["the head", "an empty frame", "half a prefix", "half a message", "all but the end"],
)
@pytest.mark.parametrize("path", [b"/t.T/Echo", b"/t.T/Later", b"/t.T/Stream"])
def test_a_call_whose_request_stops_coming_is_ended(path: bytes, sent: bytes) -> None:
    session = begun()
    session.send(open_stream(1, path) + sent)
    let_pass(session, 59)
    assert 1 not in session.answers
    let_pass(session, 3)
    answer = session.answers[1]
    assert (answer.status, answer.reset) == (TOO_LATE, ErrorCode.NO_ERROR)
    assert session.limits.cuts.by_limit == {"message_seconds": 1}
    assert session.services.calls == {}
    session.send(data(1, BODY, END_STREAM) + unary(3, b"/t.T/Echo", b"next"))  # the rest may still be under way
    assert session.answers[3].messages == [(0, b"next")]
    session.hang_up()
    session.check_clean()
    assert len(session.connection._unfinished) == 0


def test_a_call_has_no_more_time_for_each_byte() -> None:
    session = begun()
    session.send(open_stream(1))
    for byte in message(bytes(5)):
        let_pass(session, 7)
        session.send(data(1, bytes((byte,))))
    assert 1 in session.answers
    assert session.answers[1].status == TOO_LATE


@pytest.mark.parametrize("rest", [data(1, BODY, END_STREAM), data(1, BODY) + data(1, b"", END_STREAM)])
def test_a_request_that_comes_in_time_may_be_answered_late(rest: bytes) -> None:
    session = begun()
    session.send(open_stream(1, b"/t.T/Later"))
    let_pass(session, 59)
    session.send(rest)
    let_pass(session, 1_000)
    session.services.calls[b"abcdef"].reply(b"answer")
    session.step()
    assert session.answers[1].messages == [(0, b"answer")]


def test_a_whole_call_is_never_noted() -> None:
    session = begun()
    for stream in (1, 3):
        session.send(unary(stream, b"/t.T/Later", b"%d" % stream))
        session.send(open_stream(stream + 100, b"/t.T/Hold") + data(stream + 100, BODY))
        assert len(session.connection._unfinished) == 0


def test_a_stream_may_be_silent_between_messages() -> None:
    session = begun()
    session.send(open_stream(1, b"/t.T/Chat"))
    let_pass(session, 200)
    session.send(data(1, BODY))
    let_pass(session, 200)
    session.send(data(1, BODY[:4]))
    session.send(data(1, BODY[4:]))
    let_pass(session, 200)
    session.send(data(1, BODY + BODY))
    let_pass(session, 200)
    session.send(data(1, b"", END_STREAM))
    assert session.answers[1].messages == [(0, b"abcdef")] * 4
    assert session.answers[1].status == (0, "")


@pytest.mark.parametrize("whole", [0, 1, 3])
def test_a_stream_is_ended_in_the_middle_of_a_message(whole: int) -> None:
    session = begun()
    session.send(open_stream(1, b"/t.T/Chat"))
    let_pass(session, 100)
    session.send(data(1, whole * BODY + BODY[:1]))
    for byte in BODY[1:6]:
        let_pass(session, 11)
        session.send(data(1, bytes((byte,))))
    assert session.answers[1].status is None if whole else 1 not in session.answers
    let_pass(session, 7)
    answer = session.answers[1]
    assert (answer.status, answer.reset) == (TOO_LATE, ErrorCode.NO_ERROR)
    assert answer.messages == [(0, b"abcdef")] * whole
    assert session.services.events == ["cancel chat"]
    assert session.connection._memory.received == 0


def test_each_message_of_a_stream_has_its_time() -> None:
    session = begun()
    session.send(open_stream(1, b"/t.T/Chat") + data(1, BODY[:5]))
    for _ in range(5):
        let_pass(session, 50)
        session.send(data(1, BODY[5:] + BODY[:5]))
    assert session.answers[1].messages == [(0, b"abcdef")] * 5
    let_pass(session, 62)
    assert session.answers[1].status == TOO_LATE


def test_each_call_is_ended_in_its_own_time() -> None:
    session = begun()
    for stream in range(1, 21, 2):
        session.send(open_stream(stream))
        let_pass(session, 5)
    session.send(reset(3) + data(5, BODY, END_STREAM))
    ended: list[int] = []
    for _ in range(20):
        let_pass(session, 5)
        ended += [stream for stream in session.answers if stream not in ended]
        assert len(ended) <= 10
    assert ended == [5, 1, 7, 9, 11, 13, 15, 17, 19]
    assert session.limits.cuts.by_limit == {"message_seconds": 8}


def test_thousands_that_are_due_at_once_are_ended_some_at_a_look() -> None:
    session = begun()
    session.send(*(open_stream(stream) for stream in range(1, 3_001, 2)))
    looks = 0
    session.loop.advance(61)
    while len(session.answers) < 1_500:
        before = len(session.answers)
        session.connection.look_after(session.loop.now)
        session.step()
        assert 0 < len(session.answers) - before <= 500
        looks += 1
    assert looks == 3


def test_one_that_ends_others_with_it() -> None:
    session = begun()
    session.send(open_stream(1, b"/t.T/Hold") + data(1, BODY[:3]) + open_stream(3) + open_stream(5))
    session.services.calls[b"hold"].on_cancel = lambda: session.connection.data_received(reset(3))
    let_pass(session, 62)
    assert {stream: answer.status for stream, answer in session.answers.items()} == {1: TOO_LATE, 5: TOO_LATE}
    session.hang_up()
    session.check_clean()


def test_what_waits_for_its_turn_is_not_late() -> None:
    """Time begins when it has none of that any more."""
    session = begun()
    session.services.share = 1
    session.send(open_stream(1) + unary(3, b"/t.T/Work", b"work") + data(1, BODY, END_STREAM))
    let_pass(session, 100)
    assert 1 not in session.answers
    session.services.finish_work(b"work")
    session.step()
    assert session.answers[1].messages == [(0, b"abcdef")]
    session.send(open_stream(5) + unary(7, b"/t.T/Work", b"work") + ping())
    let_pass(session, 100)
    session.services.finish_work(b"work")
    session.step()
    let_pass(session, 59)
    assert 5 not in session.answers
    let_pass(session, 2)
    assert session.answers[5].status == TOO_LATE


def test_who_does_not_read_does_not_keep_its_calls_by_that() -> None:
    session = begun()
    session.send(open_stream(1))
    session.connection.pause_writing()
    session.send(ping())  # waits for its reading
    let_pass(session, 62)
    session.connection.resume_writing()
    session.step()
    assert session.answers[1].status == TOO_LATE


def test_what_waits_for_its_client_to_read_has_its_time_from_when_it_does() -> None:
    """What came long ago is carried out only then: a head, and the beginning of a message."""
    session = begun()
    session.send(open_stream(1, b"/t.T/Chat"))
    session.connection.pause_writing()
    session.send(data(1, BODY[:3]) + open_stream(3))
    let_pass(session, 1_000)
    session.connection.resume_writing()
    session.step()
    let_pass(session, 59)
    assert session.answers == {}
    let_pass(session, 2)
    assert {stream: answer.status for stream, answer in session.answers.items()} == {1: TOO_LATE, 3: TOO_LATE}


@pytest.mark.parametrize("sent", [message(b"x", 2), message(b"x", 1), BODY + BODY, BODY + message(b"x", 2), BODY[:-1]])
def test_a_request_that_breaks_off_at_its_end_is_forgotten(sent: bytes) -> None:
    session = begun()
    session.send(open_stream(1) + data(1, sent, END_STREAM))
    assert session.answers[1].status is not None
    assert len(session.connection._unfinished) == 0
    let_pass(session, 100)
    assert session.send(unary(3, b"/t.T/Echo", b"next"))
    assert session.answers[3].messages == [(0, b"next")]


def test_a_client_without_a_window_is_not_late() -> None:
    """A stream whose answers are not read has no window for the rest of a message."""
    session = begun()
    session.send(open_stream(1, b"/t.T/Chat"))
    session.send(*(data(1, message(bytes(15_000))) for _ in range(22)))  # more than is kept of what it does not read
    large = message(bytes(30_000))
    session.send(data(1, large[:10_000]), data(1, large[10_000:20_000]))
    windows = len(session.of(WINDOW_UPDATE))
    let_pass(session, 200)
    session.grant(0, 1_000_000)
    session.grant(1, 1_000_000)
    assert len(session.of(WINDOW_UPDATE)) == windows + 1
    let_pass(session, 60)
    assert session.answers[1].status is None
    let_pass(session, 2)
    assert session.answers[1].status == TOO_LATE


def test_a_deadline_that_is_sooner_holds() -> None:
    session = begun()
    session.send(open_stream(1, b"/t.T/Echo", (b"grpc-timeout", b"10S")))
    session.send(open_stream(3, b"/t.T/Echo", (b"grpc-timeout", b"1H")))
    let_pass(session, 11)
    assert session.answers[1].status == (4, "context deadline exceeded")
    let_pass(session, 51)
    assert session.answers[3].status == TOO_LATE
    assert len(session.connection._unfinished) == 0


@pytest.mark.parametrize("end", ["reset", "lost", "finish", "broken", "eof"])
def test_nothing_is_left_of_one_that_ends_otherwise(end: str) -> None:
    session = begun()
    session.send(open_stream(1) + data(1, BODY[:2]) + open_stream(3, b"/t.T/Hold") + data(3, BODY + BODY[:2]))
    assert len(session.connection._unfinished) == 2
    match end:
        case "reset":
            session.send(reset(1) + reset(3))
        case "finish":
            session.services.calls[b"hold"].finish()
            session.send(data(1, b"\0\0\1x", END_STREAM))
        case "broken":
            session.send(data(1, b"\xff" * 6) + data(3, b"\xff" * 6))
        case "eof":
            session.send(data(1, b"", END_STREAM) + data(3, b"", END_STREAM))
        case _:
            session.hang_up()
    session.step()
    assert len(session.connection._unfinished) == 0
    let_pass(session, 100)
    assert session.limits.cuts.by_limit.get("message_seconds") is None


def test_one_that_has_ended_and_whose_answer_waits_is_not_ended_again() -> None:
    session = begun()
    session.change(initial_window=10)
    session.send(open_stream(1, b"/t.T/Hold") + data(1, BODY[:3]))
    session.services.calls[b"hold"].send(b"more than its window")
    session.services.calls[b"hold"].finish()
    assert len(session.connection._unfinished) == 0
    let_pass(session, 100)
    session.grant(1, 100)
    assert session.answers[1].status == (0, "")
