"""Flow control, both ways: windows of every size, readers that stop, and what waits for them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies

from mvccstore.server.transport.call import WRITABLE_BYTES
from mvccstore.server.transport.frames import ErrorCode
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.status import Code, RpcError
from tests.wire.http2_kit import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    LARGE,
    PADDED,
    RST_STREAM,
    WINDOW_UPDATE,
    Session,
    message,
    open_stream,
    pack,
    pattern,
    ping,
    reset,
    settings,
    unary,
    window,
)


def wide() -> Session:
    """A client that takes whatever comes."""
    session = Session()
    session.change(initial_window=LARGE)
    session.grant(0, LARGE - 65_535)
    return session


@pytest.mark.parametrize("size", [0, 1, 16_378, 16_379, 16_380, 65_530, 65_531, 70_000, 1_000_003, 5_000_000])
@pytest.mark.parametrize("frame_bytes_max", [16_384, 20_001, 2**24 - 1])
def test_answers_of_every_size_arrive(size: int, frame_bytes_max: int) -> None:
    session = wide()
    session.change(frame_bytes_max=frame_bytes_max)
    session.send(unary(1, b"/t.T/Big", b"%d" % size))
    answer = session.answers[1]
    assert answer.messages == [(0, pattern(size))]
    assert answer.status == (0, "")
    assert session.frames[-1].flags == END_HEADERS | END_STREAM
    assert session.connection._memory.queued == 0


@pytest.mark.parametrize("limited", ["stream", "connection", "both"])
@pytest.mark.parametrize(
    ("size", "first", "step"), [(40, 0, 1), (3_000, 1, 77), (500_000, 4_999, 30_011), (100, 105, 1)]
)
def test_no_more_is_sent_than_a_window_allows(limited: str, size: int, first: int, step: int) -> None:
    session = Session()
    # The connection's window cannot be made smaller: what it has at first is used up by another stream.
    session.change(initial_window=65_535)
    session.send(unary(1, b"/t.T/Big", b"%d" % (65_530 - first)))
    assert session.windows[0] == first
    session.change(initial_window=first if limited != "connection" else LARGE)
    if limited == "stream":
        session.grant(0, LARGE - first)
    session.send(unary(3, b"/t.T/Big", b"%d" % size))
    answer = session.answers[3]
    received = first
    while answer.trailers is None:
        assert len(answer.body) == min(received, size + 5)
        if limited != "connection":
            session.grant(3, step)
        if limited != "stream":
            session.grant(0, step)
        received += step
    assert answer.messages == [(0, pattern(size))]
    assert not session.connection._pending


def test_a_window_below_zero_is_filled_up_first() -> None:
    session = Session()
    session.grant(0, 1_000_000)
    session.send(unary(1, b"/t.T/Big", b"100000"))
    assert session.windows[1] == 0
    session.change(initial_window=100)
    assert session.windows[1] == 100 - 65_535
    session.grant(1, 65_435)
    assert len(session.answers[1].body) == 65_535
    session.grant(1, 1)
    assert len(session.answers[1].body) == 65_536
    session.change(initial_window=200_000)
    assert session.answers[1].messages == [(0, pattern(100_000))]


def test_a_window_may_go_below_zero_while_the_connection_waits() -> None:
    """The stream waits for the connection's window only; then its own is taken from it."""
    session = Session()
    session.change(initial_window=200_000)
    session.send(unary(1, b"/t.T/Big", b"100000"))
    assert session.windows == {0: 0, 1: 200_000 - 65_535}
    session.change(initial_window=0)
    session.grant(0, 1_000_000)
    assert len(session.answers[1].body) == 65_535
    session.grant(1, 65_535)
    assert len(session.answers[1].body) == 65_535
    session.grant(1, 100_000)
    assert session.answers[1].messages == [(0, pattern(100_000))]


_STEP = strategies.one_of(
    strategies.tuples(strategies.just("connection"), strategies.integers(1, 50_000)),
    strategies.tuples(strategies.sampled_from([1, 3, 5]), strategies.integers(1, 50_000)),
    strategies.tuples(strategies.just("window"), strategies.sampled_from([0, 1, 5, 100, 16_384, 65_535, 100_003])),
    strategies.tuples(strategies.just("frame"), strategies.integers(16_384, 70_000)),
    strategies.tuples(strategies.just("stop"), strategies.just(0)),
    strategies.tuples(strategies.just("read"), strategies.just(0)),
)


@given(
    strategies.lists(
        strategies.tuples(strategies.integers(0, 150_000), strategies.integers(3_000, 60_000)), min_size=3, max_size=3
    ),
    strategies.sampled_from([0, 1, 17, 65_535]),
    strategies.lists(_STEP, max_size=25),
)
def test_every_byte_arrives_in_order_whatever_the_windows_do(
    sizes: list[tuple[int, int]], initial_window: int, steps: list[tuple[str | int, int]]
) -> None:
    session = Session()
    session.change(initial_window=initial_window)
    for number, (total, part) in enumerate(sizes):
        session.send(unary(2 * number + 1, b"/t.T/Parts", b"%d,%d" % (total, part)))
    for name, value in steps:
        if name == "connection":
            session.grant(0, value)
        elif name == "window":
            session.change(initial_window=value)
        elif name == "frame":
            session.change(frame_bytes_max=value)
        elif name == "stop":
            session.transport.is_read = False
        elif name == "read":
            session.transport.read_again()
        elif session.answers[int(name)].trailers is None:
            session.grant(int(name), value)
    session.transport.read_again()
    session.step()
    session.grant(0, 10_000_000)
    session.change(initial_window=10_000_000)
    for number, (total, _) in enumerate(sizes):
        assert session.answers[2 * number + 1].messages == [(0, pattern(total))]
        assert session.answers[2 * number + 1].status == (0, "")
    session.hang_up()
    session.check_clean()


def test_many_streams_share_a_window() -> None:
    session = Session()
    session.change(initial_window=1_000_000)
    streams = range(1, 41, 2)
    session.send(*(unary(stream, b"/t.T/Big", b"200000") for stream in streams))
    before = {stream: len(session.answers[stream].body) for stream in streams}
    session.grant(0, 20 * 2 * 16_384)
    gained = {len(session.answers[stream].body) - before[stream] for stream in streams}
    # Each has two frames, in turn, and one more or less by where the turns begin and end.
    assert max(gained) - min(gained) <= 2 * 16_384
    while any(session.answers[stream].trailers is None for stream in streams):
        session.grant(0, 100_000)
    assert {session.answers[stream].body for stream in streams} == {message(pattern(200_000))}


# Readers that stop


def test_a_client_that_does_not_read_is_sent_no_more_than_a_buffer() -> None:
    session = wide()
    session.transport.is_read = False
    session.send(unary(1, b"/t.T/Big", b"5000000"))
    assert not session.connection.is_writable
    assert session.transport.unread < 600_000
    assert session.connection._memory.queued > 4_000_000
    session.transport.read_again()
    session.step()
    assert session.answers[1].messages == [(0, pattern(5_000_000))]
    assert session.connection._memory.queued == 0


def test_many_small_answers_to_a_client_that_does_not_read_wait_in_their_streams() -> None:
    """Also those of requests that came in one read."""
    session = wide()
    session.transport.is_read = False
    requests = b"".join(unary(stream, b"/t.T/Big", b"16000") for stream in range(1, 4_001, 2))
    session.send(requests)
    assert session.transport.unread < 8_000_000
    session.transport.read_again()
    session.step()
    assert all(session.answers[stream].messages == [(0, pattern(16_000))] for stream in range(1, 4_001, 2))


def test_a_client_that_never_reads_what_it_asks_for_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    session = Session(TransportLimits(queued_bytes_max=1_000_000))
    session.change(initial_window=0)
    session.send(unary(1, b"/t.T/Big", b"999995"))
    assert session.lost == 0
    with caplog.at_level("WARNING", "mvccstore.server"):
        session.send(unary(3, b"/t.T/Stream", b"9,9,9"))
    assert session.transport.is_aborted
    assert [record.getMessage() for record in caplog.records] == ["test takes nothing of what it asks for: closed"]
    session.check_clean()


@pytest.mark.parametrize(
    "frames",
    [
        b"".join(ping() for _ in range(50)),
        b"".join(settings((3, 5)) for _ in range(80)),
        b"".join(unary(stream, b"/nowhere", b"") for stream in range(1, 41, 2)),
        b"".join(unary(stream, b"/t.T/Fail", b"x" * 90) for stream in range(1, 41, 2)),
        b"".join(open_stream(stream, b"/t.T/Chat", (b"bad name", b"")) for stream in range(1, 201, 2)),
        b"".join(unary(stream, b"/t.T/Stream", b"") for stream in range(1, 41, 2)),
    ],
)
def test_a_client_that_does_not_read_is_not_read_from(frames: bytes) -> None:
    """No window holds back statuses and acknowledgements: nothing is carried out that would be answered with more."""
    limits = TransportLimits(unread_bytes_max=2_000, ping_strikes_max=1_000, waiting_bytes_max=len(frames) - 1)
    session = Session(limits)
    session.connection.pause_writing()
    assert session.send(frames) == []
    assert session.transport.is_paused
    session.connection.resume_writing()
    answers = session.step()
    assert not session.transport.is_paused

    reading = Session(limits)
    assert [(one.kind, one.stream) for one in reading.send(frames)] == [(one.kind, one.stream) for one in answers]
    assert len(answers) >= 20


def test_what_ends_by_itself_does_not_pile_up_for_a_client_that_does_not_read() -> None:
    """No window holds statuses back either, so they have a limit of their own."""
    session = Session(TransportLimits(unread_bytes_max=2_000))
    calls = session.services.calls
    session.send(*(unary(2 * number + 1, b"/t.T/Later", b"%d" % number) for number in range(40)))
    for _ in range(2):
        session.connection.pause_writing()
        for name in list(calls)[:10]:
            calls.pop(name).fail(RpcError(Code.ABORTED, "x" * 60))
        session.step()
        assert session.lost == 0  # what was not read counts until it is
        session.connection.resume_writing()
    session.connection.pause_writing()
    for call in calls.values():
        call.fail(RpcError(Code.ABORTED, "x" * 60))
    session.step()
    assert session.transport.is_aborted
    session.check_clean()


def test_a_service_is_told_when_its_client_takes_more() -> None:
    session = Session()
    session.grant(0, 10_000_000)
    session.send(unary(1, b"/t.T/Later", b"a"))
    call = session.services.calls[b"a"]
    told: list[int] = []
    call.on_writable = lambda: told.append(call.queued_bytes)
    call.send(bytes(65_530))
    assert call.is_writable
    assert call.queued_bytes == 0
    call.send(bytes(WRITABLE_BYTES - 5))
    assert call.is_writable
    call.send_part(b"x")
    assert not call.is_writable
    session.step()
    assert told == []
    session.grant(1, 1)
    assert told == [WRITABLE_BYTES]
    session.grant(1, 1_000)
    assert told == [WRITABLE_BYTES]
    session.grant(1, 10_000_000)
    call.send_part(bytes(1_000_000))
    session.step()
    assert call.is_writable
    # Again, each time it was not writable.
    call.send_part(bytes(12_000_000))
    session.grant(0, 20_000_000)
    session.grant(1, 20_000_000)
    assert len(told) >= 2
    call.finish()
    session.step()
    assert session.answers[1].status == (0, "")


def test_a_call_that_has_ended_is_not_told_to_go_on(caplog: pytest.LogCaptureFixture) -> None:
    session = Session()
    session.grant(0, 10_000_000)
    session.send(unary(1, b"/t.T/Later", b"a") + unary(3, b"/t.T/Later", b"b"))
    told: list[str] = []
    for name in (b"a", b"b"):
        call = session.services.calls[name]
        call.on_writable = lambda name=name: told.append(name.decode())
        call.send(bytes(400_000))
    # The window opens and the stream ends before the loop's next turn.
    session.connection.data_received(window(1, 10_000_000) + window(3, 10_000_000) + reset(1))
    session.has_windows = False
    session.step()
    assert told == ["b"]

    def fail() -> None:
        raise RuntimeError

    call.on_writable = fail
    call.send(bytes(20_000_000))
    session.send(window(0, 20_000_000) + window(3, 20_000_000))
    assert "RuntimeError" in caplog.text
    assert session.lost == 0


# Receiving


def chunks(stream: int, count: int, size: int) -> list[bytes]:
    return [pack(DATA, 0, stream, bytes(size)) for _ in range(count)]


def test_windows_are_refilled_as_a_request_comes() -> None:
    session = Session()
    body = pattern(1_900_000)
    session.send(open_stream(1))
    framed, sent = message(body), 0
    windows = {0: 16 << 20, 1: 1 << 20}
    while sent < len(framed):
        size = min(16_384, windows[0], windows[1], len(framed) - sent)
        assert size, "the client may not send, and waits for ever"
        for frame in session.send(pack(DATA, 0, 1, framed[sent : sent + size])):
            if frame.kind == WINDOW_UPDATE:
                windows[frame.stream] += int.from_bytes(frame.payload)
        for each in windows:
            windows[each] -= size
        sent += size
    session.change(initial_window=LARGE)
    session.grant(0, LARGE - 65_535)
    session.send(pack(DATA, END_STREAM, 1))
    assert session.answers[1].messages == [(0, body)]
    assert session.answers[1].reset is None


def test_a_client_that_overruns_its_stream_loses_it() -> None:
    session = Session()
    session.send(open_stream(1, b"/t.T/Hold"))
    call = session.services.calls[b"hold"]
    session.change(initial_window=0)
    call.send(bytes(WRITABLE_BYTES))  # it takes no answers, so it may send no more requests
    session.send(*chunks(1, 64, 16_384))
    assert [frame for frame in session.of(WINDOW_UPDATE) if frame.stream] == []
    assert session.of(RST_STREAM) == []
    session.send(pack(DATA, 0, 1, b"x"))
    assert [(frame.stream, frame.code) for frame in session.of(RST_STREAM)] == [(1, ErrorCode.FLOW_CONTROL_ERROR)]
    assert session.services.events[-1] == "cancel hold"
    assert session.goaway is None


def test_a_stream_held_back_goes_on_when_its_answers_are_taken() -> None:
    session = Session()
    session.send(open_stream(1, b"/t.T/Hold"))
    call = session.services.calls[b"hold"]
    session.change(initial_window=0)
    call.send(bytes(WRITABLE_BYTES))
    session.send(*chunks(1, 64, 16_384))
    session.grant(1, 100)
    updates = [frame for frame in session.of(WINDOW_UPDATE) if frame.stream == 1]
    assert [int.from_bytes(frame.payload) for frame in updates] == [1 << 20]


def test_padding_counts_against_both_windows() -> None:
    session = Session()
    session.send(open_stream(1, b"/t.T/Hold"))
    padded = pack(DATA, PADDED, 1, bytes((255,)) + bytes(255))
    session.send(padded * (524_288 // 256))
    assert not any(frame.stream for frame in session.of(WINDOW_UPDATE))
    session.send(padded)
    assert [int.from_bytes(frame.payload) for frame in session.of(WINDOW_UPDATE) if frame.stream] == [524_288 + 256]


def test_a_stream_that_is_over_gets_no_window() -> None:
    session = Session()
    session.send(open_stream(1, b"/t.T/Chat"))
    body = message(bytes(520_000))
    sent = b"".join(pack(DATA, 0, 1, body[at : at + 16_384]) for at in range(0, len(body), 16_384))
    session.send(sent)
    # The frame that would refill the window is the one that ends the call; `Session` sees a window that comes too late.
    session.send(pack(DATA, 0, 1, message(b"finish") + message(bytes(10_000))))
    assert session.answers[1].reset in {None, ErrorCode.NO_ERROR}
    session.send(*(pack(DATA, 0, 1, bytes(16_384)) for _ in range(10)))
    assert session.goaway is None


def test_a_client_that_overruns_the_connection_loses_it() -> None:
    session = Session()
    session.connection._receive_window = 10_000
    session.connection._window_bytes = 10_000
    session.send(open_stream(1, b"/t.T/Hold"))
    session.send(pack(DATA, 0, 1, bytes(10_001)))
    assert session.goaway is not None
    assert session.goaway.code == ErrorCode.FLOW_CONTROL_ERROR


def test_data_for_streams_that_are_over_gives_its_window_back() -> None:
    session = Session()
    session.send(open_stream(1, b"/t.T/Hold") + reset(1))
    for _ in range(2_000):
        session.send(pack(DATA, 0, 1, bytes(16_384)))
    assert session.goaway is None
    assert sum(int.from_bytes(frame.payload) for frame in session.of(WINDOW_UPDATE)) > 2_000 * 16_384 - (8 << 20)


def test_requests_that_never_end_are_bounded() -> None:
    limits = TransportLimits(received_bytes_max=100_000)
    for extra, code in ((0, None), (1, ErrorCode.ENHANCE_YOUR_CALM)):
        session = Session(limits)
        for stream in range(1, 21, 2):
            session.send(open_stream(stream) + pack(DATA, 0, stream, (b"\0" + (50_000).to_bytes(4) + bytes(9_995))))
        session.send(open_stream(21) + pack(DATA, 0, 21, bytes(extra)))
        assert (session.goaway and session.goaway.code) == code
        session.hang_up()
        session.check_clean()


def test_whole_requests_whose_streams_do_not_end_are_bounded() -> None:
    limits = TransportLimits(received_bytes_max=100_000)
    for extra, code in ((0, None), (1, ErrorCode.ENHANCE_YOUR_CALM)):
        session = Session(limits)
        for stream in range(1, 21, 2):
            session.send(open_stream(stream) + pack(DATA, 0, stream, message(bytes(10_000))))
        session.send(open_stream(21) + pack(DATA, 0, 21, message(bytes(extra))))
        assert (session.goaway and session.goaway.code) == code
        if code is None:
            session.send(pack(DATA, END_STREAM, 1), reset(3))
            assert session.answers[1].messages == [(0, bytes(10_000))]
            assert session.connection._memory.received == 80_000
        session.hang_up()
        session.check_clean()


def test_what_is_held_is_let_go_when_a_call_ends_in_the_middle() -> None:
    session = Session()
    two = message(b"one") + message(b"finish") + message(b"after") + message(b"part")[:6]
    for stream, end in ((1, b""), (3, reset(3))):
        session.send(open_stream(stream, b"/t.T/Chat") + pack(DATA, 0, stream, two[:2]))
        assert session.connection._memory.received == 2
        session.send(pack(DATA, 0, stream, two[2:] if stream == 1 else two[2:12]) + end)
        assert session.connection._memory.received == 0
    assert session.answers[1].messages == [(0, b"one")]
    assert session.connection._streams == {}


def test_a_reset_while_trailers_wait_leaves_nothing() -> None:
    session = Session()
    session.change(initial_window=3)
    session.send(unary(1, b"/t.T/Big", b"1000") + unary(3, b"/t.T/Later", b"a"))
    session.services.calls[b"a"].reply(bytes(1_000))
    assert session.connection._memory.queued == 2 * 1_005 - 6
    session.send(reset(1) + reset(3))
    assert session.services.events == []
    assert session.connection._memory.queued == 0
    assert session.answers[1].trailers is None
    session.grant(0, 1_000)
    assert session.frames[-1].kind in {DATA, HEADERS}
    session.hang_up()
    session.check_clean()
