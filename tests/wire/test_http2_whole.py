"""Calls that come as a whole are served on a shorter way; nobody can tell by the answers."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mvccstore.server.transport.http2 import Http2Connection
from mvccstore.server.transport.limits import TransportLimits
from tests.wire.http2_kit import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    Session,
    literal_block,
    message,
    open_stream,
    pack,
    request_fields,
    unary,
)

LIMIT = 1_000
ECHO, CHAT, LATER = b"/t.T/Echo", b"/t.T/Chat", b"/t.T/Later"
BODIES = [b"", b"a", b"finish", b"fail", b"raise", b"bug", b"\xff", bytes(LIMIT), bytes(LIMIT + 1), b"x" * 300]
TIMEOUT, GZIP = (b"grpc-timeout", b"10S"), (b"grpc-encoding", b"gzip")


def padded(stream: int, body: bytes) -> bytes:
    head = pack(HEADERS, END_HEADERS | PADDED, stream, b"\x02" + literal_block(request_fields()) + b"\0\0")
    return head + pack(DATA, END_STREAM | PADDED, stream, b"\x03" + message(body) + bytes(3))


def of_another_stream(stream: int, body: bytes) -> bytes:
    return open_stream(stream) + pack(DATA, END_STREAM, stream + 2, message(body))


SHAPES: dict[str, Callable[[int, bytes], bytes]] = {
    "plain": lambda stream, body: unary(stream, ECHO, body),
    "with a deadline": lambda stream, body: unary(stream, ECHO, body, TIMEOUT),
    "gzip announced": lambda stream, body: unary(stream, ECHO, body, GZIP),
    "of a stream of requests": lambda stream, body: unary(stream, CHAT, body),
    "of an unknown method": lambda stream, body: unary(stream, b"/t.T/None", body),
    "refused": lambda stream, body: unary(stream, ECHO, body, (b"content-type", b"text/plain")),
    "answered later": lambda stream, body: unary(stream, LATER, body),
    "without an end": lambda stream, body: open_stream(stream) + pack(DATA, 0, stream, message(body)),
    "two messages": lambda stream, body: open_stream(stream) + pack(DATA, 1, stream, message(body) + message(b"b")),
    "cut short": lambda stream, body: open_stream(stream) + pack(DATA, END_STREAM, stream, message(body)[:-1]),
    "an unknown flag": lambda stream, body: open_stream(stream) + pack(DATA, END_STREAM, stream, message(body, 2)),
    "no message": lambda stream, body: open_stream(stream) + pack(DATA, END_STREAM, stream),
    "in two frames": lambda stream, body: (
        open_stream(stream) + pack(DATA, 0, stream, message(body)) + pack(DATA, END_STREAM, stream)
    ),
    "padded": padded,
    "data of another stream": of_another_stream,
    "an even stream": lambda stream, body: unary(stream + 1, ECHO, body),
    "a stream again": lambda stream, body: unary(stream - 2, ECHO, body),
}


def played(conversation: list[bytes], *, is_cut: bool) -> object:
    """Return all that is answered."""
    session = Session(TransportLimits(message_bytes_max=LIMIT, streams_max=20))
    for piece in conversation:
        if session.transport.is_closed:
            break
        if is_cut:
            # After the first frame, so that no call comes as a whole.
            first = 9 + int.from_bytes(piece[:3])
            session.send(piece[:first])
            if not session.transport.is_closed:
                session.send(piece[first:])
        else:
            session.send(piece)
    connection = session.connection
    return (
        session.frames,
        sorted(connection._streams),
        connection._receive_window,
        connection._memory.received,
        session.transport.is_closed,
    )


@pytest.mark.parametrize("seed", range(60))
def test_answers_are_those_of_the_same_frames_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    names = list(SHAPES) if rng.random() < 0.5 else ["plain", "answered later", "gzip announced", "with a deadline"]
    conversation = []
    for number in range(30):
        shape = SHAPES[rng.choice(names) if rng.random() < 0.6 else "plain"]
        conversation.append(shape(2 * number + 1, rng.choice(BODIES)))
    assert played(conversation, is_cut=False) == played(conversation, is_cut=True)


@pytest.mark.pure("replaces a method")
def test_it_is_taken_from_the_second_call_on(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = Http2Connection._take_whole

    def counted(self: Http2Connection, number: int, block: bytes, data: bytes, position: int) -> int:
        size = take(self, number, block, data, position)
        taken.append(size)
        return size

    monkeypatch.setattr(Http2Connection, "_take_whole", counted)
    session = Session()
    session.send(b"".join(unary(stream, ECHO, b"abc") for stream in (1, 3, 5)))
    assert [size > 0 for size in taken] == [False, True, True]
    assert [session.answers[stream].messages for stream in (1, 3, 5)] == [[(0, b"abc")]] * 3


def test_no_more_calls_at_once_than_allowed_either_way() -> None:
    session = Session(TransportLimits(streams_max=2))
    session.send(b"".join(unary(stream, LATER, b"") for stream in (1, 3, 5, 7)))
    assert len(session.connection._streams) == 2
