"""gRPC over the frames: messages, compression, deadlines, cancellation, and how calls end."""

from __future__ import annotations

import gzip
from itertools import pairwise

import pytest
from hypothesis import given, strategies

from mvccstore.server.transport.frames import ErrorCode
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.status import Code, RpcError
from tests.wire.http2_kit import DATA, END_STREAM, Session, gzipped, message, open_stream, pack, reset, unary

GZIP = (b"grpc-encoding", b"gzip")
LIMIT = 1_000


def data(stream: int, body: bytes, flags: int = 0) -> bytes:
    return pack(DATA, flags, stream, body)


@given(
    strategies.lists(strategies.binary(max_size=300), max_size=6),
    strategies.lists(strategies.integers(0, 2_000), max_size=12),
)
def test_messages_are_found_however_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    bodies = [body for body in bodies if body not in {b"finish", b"fail", b"raise", b"bug", b"\xff"}]
    stream = b"".join(map(message, bodies))
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    session = Session()
    session.send(open_stream(1, b"/t.T/Chat"))
    for start, stop in pairwise(edges):
        session.send(data(1, stream[start:stop]))
    assert session.connection._memory.received == 0
    session.send(data(1, b"", END_STREAM))
    assert session.answers[1].messages == [(0, body) for body in bodies]
    assert session.answers[1].status == (0, "")


UNARY = [
    # what the body is, the status, its text
    ("nothing", b"", (13, "cardinality violation: received no request message from non-client-streaming RPC")),
    ("an empty message", message(b""), (0, "")),
    ("half a prefix", message(b"abc")[:3], (13, "unexpected EOF")),
    ("half a message", message(b"abc")[:7], (13, "unexpected EOF")),
    ("two messages", message(b"a") + message(b"b"), (13, "Too many messages for a unary call")),
    ("as large as may be", message(bytes(LIMIT)), (0, "")),
    ("one byte too many", message(bytes(LIMIT + 1)), (8, "grpc: received message larger than max (1001 vs. 1000)")),
    ("4 GB announced", b"\0\xff\xff\xff\xff", (8, "grpc: received message larger than max (4294967295 vs. 1000)")),
    ("compressed, not announced", gzipped(b"a"), (13, "grpc: compressed flag set with identity or empty encoding")),
    ("an unknown flag", message(b"a", 2), (13, "grpc: received unexpected payload format 2")),
    ("no request", message(b"\xff"), (13, "grpc: error unmarshalling request: not a request")),
]


@pytest.mark.parametrize(("what", "body", "status"), UNARY, ids=[case[0] for case in UNARY])
@pytest.mark.parametrize("is_split", [False, True])
def test_bodies_of_unary_calls(what: str, body: bytes, status: tuple[int, str], is_split: bool) -> None:
    session = Session(TransportLimits(message_bytes_max=LIMIT))
    pieces = [body[at : at + 1] for at in range(len(body))] if is_split else [body]
    session.send(open_stream(1) + b"".join(data(1, piece) for piece in pieces) + data(1, b"", END_STREAM))
    assert session.answers[1].status == status, what
    assert session.connection._memory.received == 0
    assert session.connection._streams == {}


PLAIN = b"plain" * 50
MEMBER = gzip.compress(PLAIN, mtime=0)
COMPRESSED = [
    ("gzip", gzipped(PLAIN), (0, "")),
    ("gzip announced and not used", message(PLAIN), (0, "")),
    ("two members", message(MEMBER + MEMBER, 1), (0, "")),
    ("as many members as may be", message(MEMBER + 15 * gzip.compress(b"", mtime=0), 1), (0, "")),
    (
        "more",
        message(MEMBER + 16 * gzip.compress(b"", mtime=0), 1),
        (13, "grpc: failed to read decompressed data: more than 16 members"),
    ),
    ("as large as may be", gzipped(bytes(LIMIT)), (0, "")),
    ("a bomb", gzipped(bytes(500_000)), (8, "grpc: received message after decompression larger than max 1000")),
    (
        "a bomb in members",
        message(gzip.compress(bytes(LIMIT), mtime=0) + gzip.compress(b"1", mtime=0), 1),
        (8, "grpc: received message after decompression larger than max 1000"),
    ),
    ("cut off", message(MEMBER[:-1], 1), (13, "grpc: failed to read decompressed data: unexpected EOF")),
    ("nothing", message(b"", 1), (13, "grpc: failed to read decompressed data: unexpected EOF")),
    (
        "empty members",
        message(gzip.compress(b"", mtime=0) * 20, 1),
        (13, "grpc: failed to read decompressed data: more than 16 members"),
    ),
]


@pytest.mark.parametrize(("what", "body", "status"), COMPRESSED, ids=[case[0] for case in COMPRESSED])
def test_compressed_requests(what: str, body: bytes, status: tuple[int, str]) -> None:
    session = Session(TransportLimits(message_bytes_max=LIMIT))
    session.send(open_stream(1, b"/t.T/Echo", GZIP) + data(1, body, END_STREAM))
    assert session.answers[1].status == status, what
    if status[0] == 0:
        assert session.answers[1].head[b"grpc-encoding"] == b"gzip"
        ((flag, answer),) = session.answers[1].messages
        assert flag == 1
        assert gzip.decompress(answer) in {PLAIN, PLAIN + PLAIN, bytes(LIMIT)}


def test_bytes_that_are_no_gzip_are_refused() -> None:
    session = Session()
    session.send(open_stream(1, b"/t.T/Echo", GZIP) + data(1, message(b"junk", 1), END_STREAM))
    status = session.answers[1].status
    assert status is not None
    assert status[0] == Code.INTERNAL
    assert status[1].startswith("grpc: failed to read decompressed data: ")


def test_large_answers_are_not_compressed() -> None:
    session = Session()
    session.change(initial_window=10_000_000)
    session.grant(0, 10_000_000)
    session.send(unary(1, b"/t.T/Big", b"1048577", GZIP) + unary(3, b"/t.T/Big", b"1048576", GZIP))
    session.send(unary(5, b"/t.T/Parts", b"50000,20000", GZIP))
    assert [[flag for flag, _ in session.answers[stream].messages] for stream in (1, 3, 5)] == [[0], [1], [0]]


# Deadlines


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"4000m", 4.0),
        (b"5000000u", 5.0),
        (b"60000000n", 0.06),
        (b"00000001S", 1.0),
    ],
)
@pytest.mark.parametrize("path", [b"/t.T/Later", b"/t.T/Hold"])
def test_a_call_ends_at_its_deadline(path: bytes, text: bytes, seconds: float) -> None:
    if len(text) > 9:
        text = text[1:]
    session = Session()
    session.send(open_stream(1, path, (b"grpc-timeout", text)) + data(1, message(b"a"), END_STREAM))
    session.loop.advance(seconds - 0.001)
    session.step()
    assert session.answers.get(1) is None
    session.loop.advance(0.052)
    session.step()
    assert session.answers[1].status == (4, "context deadline exceeded")
    assert [event for event in session.services.events if event.startswith("cancel")] in (["cancel a"], ["cancel hold"])
    assert session.connection._streams == {}
    session.loop.advance(10)
    assert session.loop.timers == []


@pytest.mark.parametrize("begun", [b"", data(1, b"\0\0")])
def test_a_deadline_does_not_wait_for_the_request(begun: bytes) -> None:
    session = Session()
    session.send(open_stream(1, b"/t.T/Echo", (b"grpc-timeout", b"1S")) + begun)
    session.loop.advance(1.1)
    session.step()
    assert session.answers[1].status == (4, "context deadline exceeded")
    assert session.answers[1].reset == 0  # the rest is not to be sent
    assert (session.connection._streams, session.connection._memory.received) == ({}, 0)


def test_deadlines_are_forgotten_with_their_calls() -> None:
    session = Session()
    for stream in range(1, 2_001, 2):
        session.send(unary(stream, b"/t.T/Later", b"%d" % stream, (b"grpc-timeout", b"%dS" % (1 + stream % 50))))
        session.services.calls[b"%d" % stream].reply(b"ok")
    session.send(unary(3_001, b"/t.T/Echo", b"x", (b"grpc-timeout", b"99999999H")))
    assert not any(session.deadlines._buckets.values())
    session.loop.advance(60)
    assert session.deadlines._buckets == {}
    assert session.services.events == []


def test_a_deadline_drops_what_waits() -> None:
    session = Session()
    session.change(initial_window=10)
    session.send(unary(1, b"/t.T/Later", b"a", (b"grpc-timeout", b"1S")))
    session.services.calls[b"a"].send(bytes(100_000))
    session.step()
    session.loop.advance(2)
    session.step()
    assert session.answers[1].status == (4, "context deadline exceeded")
    assert session.connection._memory.queued == 0
    session.grant(0, 10)


def test_one_that_fails_at_its_deadline_costs_no_other_its_own(caplog: pytest.LogCaptureFixture) -> None:
    session = Session()
    for stream in range(1, 9, 2):
        session.send(unary(stream, b"/t.T/Later", b"%d" % stream, (b"grpc-timeout", b"1S")))

    def fail() -> None:
        raise RuntimeError

    session.services.calls[b"3"].on_cancel = fail
    session.loop.advance(2)
    session.step()
    assert [session.answers[stream].status for stream in range(1, 9, 2)] == [(4, "context deadline exceeded")] * 4
    assert "RuntimeError" in caplog.text


# Cancellation


def test_a_reset_cancels_a_call_once_whenever_it_comes() -> None:
    session = Session()
    session.send(open_stream(1, b"/t.T/Later") + reset(1))
    assert session.services.events == []  # it had not begun
    session.send(unary(3, b"/t.T/Later", b"a") + reset(3) + reset(3))
    assert session.services.events == ["cancel a"]
    call = session.services.calls[b"a"]
    call.send(b"x")
    call.reply(b"x")
    call.fail(RpcError(Code.INTERNAL, "x"))
    assert session.step() == []
    session.send(unary(5, b"/t.T/Later", b"b"))
    session.services.calls[b"b"].reply(b"done")
    session.send(reset(5))
    session.send(unary(7, b"/t.T/Later", b"c"))
    session.services.calls[b"c"].begin(10)
    session.services.calls[b"c"].send_part(b"12345")
    session.send(reset(7))
    session.hang_up()
    assert session.services.events == ["cancel a", "cancel c"]
    session.check_clean()


def test_a_lost_connection_cancels_every_call_once(caplog: pytest.LogCaptureFixture) -> None:
    session = Session()
    for stream in range(1, 9, 2):
        session.send(unary(stream, b"/t.T/Later", b"%d" % stream))

    def fail() -> None:
        raise RuntimeError

    session.services.calls[b"3"].on_cancel = fail
    session.hang_up()
    assert session.services.events == ["cancel 1", "cancel 5", "cancel 7"]
    assert "RuntimeError" in caplog.text
    session.check_clean()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (message(b"\xff"), (13, "grpc: error unmarshalling request: not a request")),
        (message(b"raise"), (15, "raised")),
        (message(b"bug"), (2, "internal error: RuntimeError")),
        (message(bytes(2_000)), (8, "grpc: received message larger than max (2000 vs. 1000)")),
        (message(b"x", 1), (13, "grpc: compressed flag set with identity or empty encoding")),
    ],
)
def test_a_stream_that_is_broken_off_is_cancelled(body: bytes, status: tuple[int, str]) -> None:
    """Its service learns of it, however it ends: else its watches would stay."""
    for split in (0, 3):
        session = Session(TransportLimits(message_bytes_max=LIMIT))
        session.send(open_stream(1, b"/t.T/Chat") + data(1, body[:split]) + data(1, body[split:]))
        assert session.answers[1].status == status
        assert session.answers[1].reset == ErrorCode.NO_ERROR
        assert session.services.events == ["cancel chat"]
    cut = Session()
    cut.send(open_stream(1, b"/t.T/Chat") + data(1, b"\0\0", END_STREAM))
    assert cut.answers[1].status == (13, "unexpected EOF")
    assert cut.services.events == ["cancel chat"]


def test_a_stream_that_its_service_ends_is_not_cancelled() -> None:
    for word, status in ((b"finish", (0, "")), (b"fail", (10, "as told"))):
        session = Session()
        session.send(open_stream(1, b"/t.T/Chat") + data(1, message(b"a") + message(word) + message(b"b")))
        assert session.answers[1].messages == [(0, b"a")]
        assert session.answers[1].status == status
        assert session.answers[1].reset == ErrorCode.NO_ERROR
        session.hang_up()
        assert session.services.events == []
        session.check_clean()


def test_calls_that_are_refused_by_the_gate_or_their_handler() -> None:
    session = Session()
    shut = (b"shut", b"1")
    session.send(unary(1, b"/t.T/Echo", b"x", shut) + open_stream(3, b"/t.T/Chat", shut) + open_stream(5, b"/t.T/Deny"))
    session.send(unary(7, b"/t.T/Bug", b"x") + unary(9, b"/t.T/Fail", "50% möglich".encode()))
    assert [session.answers[stream].status for stream in range(1, 11, 2)] == [
        (16, "shut"),
        (16, "shut"),
        (7, "denied"),
        (2, "internal error: RuntimeError"),
        (5, "50%25 m%C3%B6glich"),
    ]
    assert all(answer.head[b"grpc-status"] for answer in session.answers.values())  # trailers only


def test_answers_of_one_turn_are_one_write() -> None:
    session = Session()
    session.connection.data_received(b"".join(unary(stream, b"/t.T/Echo", b"x") for stream in range(1, 41, 2)))
    assert len(session.transport.written) == 1
    session.step()
    session.send(b"".join(unary(stream, b"/t.T/Later", b"%d" % stream) for stream in range(41, 81, 2)))
    for stream in range(41, 81, 2):
        session.services.calls[b"%d" % stream].reply(b"x")
    assert session.transport.written == []
    session.loop.run()
    assert len(session.transport.written) == 1
    session.step()
    assert all(session.answers[stream].status == (0, "") for stream in range(1, 81, 2))
