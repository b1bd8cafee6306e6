"""HTTP/2 frames against one connection, with limits so small that inputs reach them."""

from __future__ import annotations

from mvccstore.server.transport.dates import Dates
from mvccstore.server.transport.exchange import TEXT, Exchange
from mvccstore.server.transport.frames import PREFACE, WINDOW_BYTES
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.page_stream import Pages
from tests.fuzz.choices import Choices
from tests.fuzz.faults import no_faults
from tests.wire.http2_kit import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    Session,
    gzipped,
    literal_block,
    message,
    open_stream,
    pack,
    ping,
    request_fields,
    reset,
    settings,
    unary,
    window,
)

LIMITS = {
    "message_bytes_max": 4_096,
    "header_bytes_max": 8_192,
    "continuations_max": 4,
    "streams_open_max": 8,
    "received_bytes_max": 20_000,
    "all_received_bytes_max": 24_000,
    "queued_bytes_max": 200_000,
    "all_queued_bytes_max": 300_000,
    "unread_bytes_max": 50_000,
    "window_bytes": WINDOW_BYTES,
    "resets_max": 12,
    "control_frames_max": 60,
    "gzip_members_max": 3,
    "waiting_bytes_max": 10_000,
    "slice_frames": 16,
    "slice_messages": 2,
}
PATHS = (b"Echo", b"Later", b"Fail", b"Big", b"Parts", b"Stream", b"Chat", b"Hold", b"Deny", b"None")
BODIES = (b"", b"x", b"finish", b"fail", b"raise", b"\xff", b"30000", b"9000,100", b"1,2,70000", b"y" * 5_000)
FIELDS = (
    (b"grpc-timeout", b"3S"),
    (b"grpc-timeout", b"0n"),
    (b"grpc-encoding", b"gzip"),
    (b"content-type", b"text/html"),
    (b"shut", b"1"),
    (b"te", b"x"),
    (b"connection", b"close"),
    (b"content-length", b"6"),
    (b"long", b"l" * 120),
)


class _Body:
    """Answers with what came, or in the middle of it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange, self._body = exchange, b""

    @property
    def pending_bytes(self) -> int:
        return len(self._body)

    def data(self, data: bytes, /) -> None:
        self._body += data
        if len(self._body) > 4_096:
            self._exchange.respond(413, TEXT, b"large")

    def end(self) -> None:
        self._exchange.respond(200, TEXT, self._body * 30)


_PAGES = Pages(_Body, Dates(lambda: 999))


def run(data: bytes) -> None:
    """Play an input: of the first byte's bits, whether it is plain bytes, without a preface, and with pages beside calls."""
    choices = Choices(data)
    mode = choices.byte()
    limits = TransportLimits(**LIMITS)  # type: ignore[arg-type]
    with no_faults():
        session = Session(limits, greeting=b"" if mode & 2 else None, pages=_PAGES if mode & 4 else None)
        session.has_windows = False
        if mode & 1:
            _send(session, choices.rest(), choices.byte())
        else:
            _program(session, choices)
        session.loop.advance(4)
        session.step()
        if not session.transport.is_closed:
            session.hang_up()
        elif not session.lost:
            session.transport.abort()  # what it was told before the end was not read
            session.step()
        session.check_clean()
        assert (limits.totals.received, limits.totals.queued) == (0, 0)
        following = Session(limits)
        following.send(unary(1, b"/t.T/Echo", b"and I"))
        assert following.answers[1].messages == [(0, b"and I")]


def _send(session: Session, data: bytes, size: int) -> None:
    for start in range(0, len(data), size or len(data) or 1):
        _pass(session, data[start : start + (size or len(data))])


def _pass(session: Session, data: bytes) -> None:
    """Send bytes, as far as they are read."""
    session.send(*([] if session.transport.is_paused else [data]))
    _check_bounds(session, len(data))


def _program(session: Session, choices: Choices) -> None:
    waiting = b""
    while choices:
        action = choices.byte()
        if action & 0x80:  # as one read with what follows
            waiting += _frame(choices, action & 0x0F)
            continue
        match action & 0x1F:
            case 16:
                session.loop.advance(choices.byte() / 16)
                session.connection.look_after(session.loop.now)
            case 17:
                session.transport.is_read = False
            case 18:
                session.transport.read_again()
            case 19:
                for call in list(session.services.calls.values()):
                    call.reply(choices.pick(BODIES))
            case 20:
                session.connection.drain()
            case 21:
                session.loop.advance(400.0)
                session.connection.look_after(session.loop.now)
            case _:
                waiting += _frame(choices, action & 0x0F)
        cut = choices.byte() if action & 0x40 else 0
        _pass(session, waiting[:cut])
        _pass(session, waiting[cut:])
        waiting = b""


def _frame(choices: Choices, kind: int) -> bytes:
    """Make a frame, mostly one that is allowed somewhere."""
    stream = choices.byte()
    path = b"/t.T/" + PATHS[stream % len(PATHS)]
    match kind:
        case 10:
            return open_stream(stream, path, choices.pick(FIELDS), is_end=bool(stream & 0x40))
        case 11:
            return unary(stream, path, choices.pick(BODIES))
        case 12:
            flags, body, how = choices.pick((0, END_STREAM)), choices.pick(BODIES), choices.byte()
            return pack(DATA, flags, stream, message(body, how & 1) * (1 + (how >> 1 & 7)))
        case 13:
            return choices.pick((ping(), ping(flags=ACK), settings(), settings((4, choices.number(4)))))
        case 14:
            return choices.pick((reset(stream), window(stream, choices.number(4)), window(0, choices.number(4))))
        case 15:
            block = literal_block(request_fields(path, choices.pick(FIELDS)))
            cut = choices.byte()
            first = pack(HEADERS, choices.pick((0, END_STREAM)), stream, block[:cut])
            return first + pack(CONTINUATION, choices.pick((END_HEADERS, 0)), stream, block[cut:])
        case 9:
            return open_stream(stream, path, FIELDS[2]) + pack(
                DATA, PADDED, stream, b"\3" + gzipped(b"x") * 3 + bytes(3)
            )
        case _:
            return pack(kind, choices.byte(), stream, choices.chunk())


def _check_bounds(session: Session, last_bytes: int) -> None:
    """Hold that what the connection keeps is bounded."""
    connection, limits = session.connection, session.limits
    assert len(connection._streams) <= limits.streams_open_max
    assert 0 <= connection._memory.received <= limits.received_bytes_max
    assert connection._memory.queued <= limits.queued_bytes_max + 100_000  # the part that passed it
    assert len(connection._rest) <= (limits.waiting_bytes_max + last_bytes if connection._is_waiting else 16_384 + 9)
    assert connection._block is None or len(connection._block[2]) <= limits.header_bytes_max + 16_384
    assert len(connection._heads._kept) <= 64
    assert connection._unfinished._requests.keys() <= connection._streams.keys()
    assert connection.out == []


SEEDS = (
    b"\x01" + unary(1, b"/t.T/Echo", b"x") + open_stream(3, b"/t.T/Chat") + pack(DATA, 0, 3, message(b"hello")) + b"\0",
    b"\x03" + PREFACE + settings((4, 70_000)) + ping() + unary(1, b"/t.T/Stream", b"1,2,30000") + b"\x07",
    bytes((0, 11, 1, 1, 11, 3, 1, 10, 7, 7, 14, 7, 0, 12, 6, 0, 1)),
    bytes((0, 17, 11, 15, 7, 11, 25, 7, 18, 16, 9, 13, 2, 19, 1)),
    bytes((0, 15, 1, 0, 40, 0, 0, 9, 6, 0, 20, 21)),
    bytes((4, 10, 1, 3, 12, 0, 1, 0, 1, 10, 67, 3, 17, 10, 5, 3, 12, 1, 5, 9, 0, 18, 14, 5, 0)),
)
