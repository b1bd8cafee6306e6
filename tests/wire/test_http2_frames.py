"""RFC 9113, sections 3 to 8, case by case: what a client may not send, and what ends by it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import h2.connection
import h2.events
import pytest
from hypothesis import given, strategies

from mvccstore.server.transport.frames import PREFACE, ErrorCode
from mvccstore.server.transport.limits import TransportLimits
from tests.wire.http2_kit import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    LARGE,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
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
    window,
)

NO, PROTOCOL, FLOW, CLOSED, SIZE, COMPRESSION = (
    ErrorCode.NO_ERROR,
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.FLOW_CONTROL_ERROR,
    ErrorCode.STREAM_CLOSED,
    ErrorCode.FRAME_SIZE_ERROR,
    ErrorCode.COMPRESSION_ERROR,
)
HOLD = open_stream(1, b"/t.T/Hold")
HALF = open_stream(1, b"/t.T/Later") + pack(DATA, END_STREAM, 1, message(b"one"))
DONE = unary(1, b"/t.T/Echo", b"x")
BLOCK = literal_block(request_fields())


def request(*fields: tuple[bytes, bytes]) -> bytes:
    """Headers of these fields, and nothing else."""
    return pack(HEADERS, END_HEADERS, 3, literal_block(fields))


def with_field(name: bytes, value: bytes) -> bytes:
    return request(*request_fields(), (name, value))


def without(name: bytes) -> bytes:
    return request(*(field for field in request_fields() if field[0] != name))


CONNECTION_ERRORS = [
    # section, what, the input, the code
    ("3.4", "another preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", PROTOCOL),
    ("3.4", "no SETTINGS first", PREFACE + ping(), PROTOCOL),
    ("3.4", "an acknowledgement first", PREFACE + pack(SETTINGS, ACK, 0), PROTOCOL),
    ("4.2", "DATA of 16,385 bytes", HOLD + pack(DATA, 0, 1, bytes(16_385)), SIZE),
    ("4.2", "an unknown frame of 16,385 bytes", pack(77, 0, 0, bytes(16_385)), SIZE),
    ("4.3", "an index of 0", pack(HEADERS, END_HEADERS, 1, b"\x80"), COMPRESSION),
    ("4.3", "an index beyond the tables", pack(HEADERS, END_HEADERS, 1, b"\xff\x7f"), COMPRESSION),
    ("4.3", "a block that is cut off", pack(HEADERS, END_HEADERS, 1, BLOCK[:-1]), COMPRESSION),
    ("4.3", "a table larger than allowed", pack(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f" + BLOCK), COMPRESSION),
    ("4.3", "a table size after a field", pack(HEADERS, END_HEADERS, 1, b"\x83\x20" + BLOCK), COMPRESSION),
    ("4.3", "wrong trailers are decoded too", HOLD + pack(HEADERS, END_HEADERS | END_STREAM, 1, b"\x80"), COMPRESSION),
    ("4.3", "a wrong block on a stream that is over", DONE + pack(HEADERS, END_HEADERS, 1, b"\x80"), COMPRESSION),
    ("4.3", "Huffman padding of zeros", pack(HEADERS, END_HEADERS, 1, b"\x00\x81\x00\x00"), COMPRESSION),
    ("5.1", "DATA on an idle stream", pack(DATA, 0, 1, b"x"), PROTOCOL),
    ("5.1", "RST_STREAM on an idle stream", reset(1), PROTOCOL),
    ("5.1", "WINDOW_UPDATE on an idle stream", window(1, 5), PROTOCOL),
    ("5.1", "CONTINUATION on an idle stream", pack(CONTINUATION, END_HEADERS, 1, BLOCK), PROTOCOL),
    ("5.1.1", "an even stream id", open_stream(2), PROTOCOL),
    ("5.1.1", "DATA on an even stream id", HOLD + pack(DATA, 0, 2, b"x"), PROTOCOL),
    ("5.1.1", "a request on a lower id, which was skipped", open_stream(5) + open_stream(3), PROTOCOL),
    ("5.1.1", "a request on an id that was used", DONE + open_stream(1), PROTOCOL),
    ("5.1.1", "a request on an id that was reset", HOLD + reset(1) + open_stream(1), PROTOCOL),
    ("6.1", "DATA on stream 0", pack(DATA, 0, 0, b"x"), PROTOCOL),
    ("6.1", "padding as long as the payload", HOLD + pack(DATA, PADDED, 1, b"\x05abcd"), PROTOCOL),
    ("6.1", "padded DATA without a length", HOLD + pack(DATA, PADDED, 1), SIZE),
    ("6.2", "HEADERS on stream 0", pack(HEADERS, END_HEADERS, 0, BLOCK), PROTOCOL),
    ("6.2", "HEADERS with too much padding", pack(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + BLOCK), PROTOCOL),
    ("6.2", "padded HEADERS without a length", pack(HEADERS, END_HEADERS | PADDED, 1), SIZE),
    ("6.2", "HEADERS shorter than its priority", pack(HEADERS, END_HEADERS | HAS_PRIORITY, 1, bytes(4)), SIZE),
    ("6.2", "another frame within a header block", pack(HEADERS, 0, 1, BLOCK) + ping(), PROTOCOL),
    ("6.2", "an unknown frame within a header block", pack(HEADERS, 0, 1, BLOCK) + pack(99, 0, 1), PROTOCOL),
    ("6.2", "HEADERS of another stream within", pack(HEADERS, 0, 1, BLOCK) + open_stream(3), PROTOCOL),
    ("6.3", "PRIORITY on stream 0", pack(PRIORITY, 0, 0, bytes(5)), PROTOCOL),
    ("6.3", "PRIORITY of 4 bytes, on a stream that cannot be reset", pack(PRIORITY, 0, 1, bytes(4)), PROTOCOL),
    ("6.4", "RST_STREAM on stream 0", reset(0), PROTOCOL),
    ("6.4", "RST_STREAM of 5 bytes", HOLD + pack(RST_STREAM, 0, 1, bytes(5)), SIZE),
    ("6.4", "RST_STREAM of 3 bytes", HOLD + pack(RST_STREAM, 0, 1, bytes(3)), SIZE),
    ("6.5", "SETTINGS on a stream", pack(SETTINGS, 0, 1), PROTOCOL),
    ("6.5", "SETTINGS of 5 bytes", pack(SETTINGS, 0, 0, bytes(5)), SIZE),
    ("6.5", "an acknowledgement with settings", pack(SETTINGS, ACK, 0, bytes(6)), SIZE),
    ("6.5.2", "ENABLE_PUSH of 2", settings((2, 2)), PROTOCOL),
    ("6.5.2", "a window of 2^31", settings((4, 2**31)), FLOW),
    ("6.5.2", "a window of 2^31, and then another", settings((4, 2**31), (4, 5)), FLOW),
    ("6.5.2", "frames of 16,383", settings((5, 16_383)), PROTOCOL),
    ("6.5.2", "frames of 2^24", settings((5, 2**24)), PROTOCOL),
    ("6.6", "PUSH_PROMISE", HOLD + pack(PUSH_PROMISE, END_HEADERS, 1, (2).to_bytes(4) + BLOCK), PROTOCOL),
    ("6.7", "PING on a stream", pack(PING, 0, 1, bytes(8)), PROTOCOL),
    ("6.7", "PING of 7 bytes", ping(bytes(7)), SIZE),
    ("6.7", "PING of 9 bytes", ping(bytes(9)), SIZE),
    ("6.8", "GOAWAY on a stream", pack(GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    ("6.8", "GOAWAY of 7 bytes", pack(GOAWAY, 0, 0, bytes(7)), SIZE),
    ("6.9", "WINDOW_UPDATE of 3 bytes", pack(WINDOW_UPDATE, 0, 0, bytes(3)), SIZE),
    ("6.9", "WINDOW_UPDATE of 5 bytes on a stream", HOLD + pack(WINDOW_UPDATE, 0, 1, bytes(5)), SIZE),
    ("6.9", "WINDOW_UPDATE of the connection by 0", window(0, 0), PROTOCOL),
    ("6.9", "WINDOW_UPDATE by the reserved bit", window(0, 2**31), PROTOCOL),
    ("6.9.1", "a connection's window beyond 2^31 - 1", window(0, LARGE), FLOW),
    ("6.9.2", "settings that make a window too large", HOLD + window(1, LARGE - 65_535) + settings((4, 65_536)), FLOW),
    ("6.10", "CONTINUATION on stream 0", pack(CONTINUATION, END_HEADERS, 0, BLOCK), PROTOCOL),
    ("6.10", "CONTINUATION after END_HEADERS", HOLD + pack(CONTINUATION, END_HEADERS, 1, BLOCK), PROTOCOL),
    (
        "6.10",
        "CONTINUATION of another stream",
        pack(HEADERS, 0, 1, BLOCK[:9]) + pack(CONTINUATION, END_HEADERS, 3, BLOCK[9:]),
        PROTOCOL,
    ),
]


@pytest.mark.parametrize(("section", "what", "data", "code"), CONNECTION_ERRORS, ids=lambda value: str(value)[:60])
def test_what_ends_the_connection(section: str, what: str, data: bytes, code: ErrorCode) -> None:
    session = Session(greeting=b"" if data.startswith(b"PRI") else None)
    session.send(data)
    assert session.goaway is not None, (section, what)
    assert session.goaway.code == code
    assert session.frames[-1] == session.goaway
    assert session.transport.is_closed
    # Nothing is heard any more, whatever comes.
    session.connection.data_received(ping())
    assert session.step() == []
    session.check_clean()


STREAM_ERRORS = [
    # section, what, the input, the stream, the code
    ("5.1", "DATA on a stream half closed", HALF + pack(DATA, 0, 1, b"x"), 1, CLOSED),
    ("5.1", "HEADERS on a stream half closed", HALF + pack(HEADERS, 5, 1, literal_block([(b"a", b"b")])), 1, CLOSED),
    ("5.1.2", "too many calls", b"".join(open_stream(n, b"/t.T/Hold") for n in range(1, 9, 2)), 7, 7),
    ("6.3", "PRIORITY of 6 bytes", HOLD + pack(PRIORITY, 0, 1, bytes(6)), 1, SIZE),
    ("6.9", "WINDOW_UPDATE of a stream by 0", HOLD + window(1, 0), 1, PROTOCOL),
    ("6.9.1", "a stream's window beyond 2^31 - 1", HOLD + window(1, LARGE), 1, FLOW),
    (
        "8.1",
        "HEADERS within a request",
        HOLD + pack(HEADERS, END_HEADERS, 1, literal_block([(b"a", b"b")])),
        1,
        PROTOCOL,
    ),
    ("8.1", "a pseudo-header in trailers", HOLD + pack(HEADERS, 5, 1, literal_block([(b":path", b"/")])), 1, PROTOCOL),
    ("8.2.1", "an upper case name in trailers", HOLD + pack(HEADERS, 5, 1, literal_block([(b"A", b"b")])), 1, PROTOCOL),
    ("8.2.1", "an upper case name", with_field(b"Upper", b"x"), 3, PROTOCOL),
    ("8.2.1", "an empty name", with_field(b"", b"x"), 3, PROTOCOL),
    ("8.2.1", "a space in a name", with_field(b"a b", b"x"), 3, PROTOCOL),
    ("8.2.1", "a byte of 0x7f in a name", with_field(b"a\x7f", b"x"), 3, PROTOCOL),
    ("8.2.1", "a colon in a name", with_field(b"a:b", b"x"), 3, PROTOCOL),
    ("8.2.1", "a line break in a value", with_field(b"a", b"b\r\nc: d"), 3, PROTOCOL),
    ("8.2.1", "a NUL in a value", with_field(b"a", b"b\0"), 3, PROTOCOL),
    ("8.2.1", "a space before a value", with_field(b"a", b" b"), 3, PROTOCOL),
    ("8.2.1", "a tab after a value", with_field(b"a", b"b\t"), 3, PROTOCOL),
    (
        "8.2.1",
        "a line break in a pseudo-header",
        without(b":path")[:0] + request(*request_fields(b"/t\n/u")),
        3,
        PROTOCOL,
    ),
    ("8.2.2", "connection", with_field(b"connection", b"close"), 3, PROTOCOL),
    ("8.2.2", "keep-alive", with_field(b"keep-alive", b"5"), 3, PROTOCOL),
    ("8.2.2", "proxy-connection", with_field(b"proxy-connection", b"x"), 3, PROTOCOL),
    ("8.2.2", "transfer-encoding", with_field(b"transfer-encoding", b"chunked"), 3, PROTOCOL),
    ("8.2.2", "upgrade", with_field(b"upgrade", b"h2c"), 3, PROTOCOL),
    ("8.2.2", "te that is not trailers", with_field(b"te", b"gzip"), 3, PROTOCOL),
    ("8.3", "an unknown pseudo-header", request((b":fragment", b"x"), *request_fields()), 3, PROTOCOL),
    ("8.3", "a pseudo-header of answers", request((b":status", b"200"), *request_fields()), 3, PROTOCOL),
    ("8.3", "a pseudo-header after others", with_field(b":protocol", b"x"), 3, PROTOCOL),
    ("8.3.1", "two methods", request((b":method", b"POST"), *request_fields()), 3, PROTOCOL),
    ("8.3.1", "two paths", request((b":path", b"/t.T/Echo"), *request_fields()), 3, PROTOCOL),
    ("8.3.1", "two schemes", request((b":scheme", b"http"), *request_fields()), 3, PROTOCOL),
    ("8.3.1", "two authorities", request((b":authority", b"x"), *request_fields()), 3, PROTOCOL),
    ("8.3.1", "no method", without(b":method"), 3, PROTOCOL),
    ("8.3.1", "no scheme", without(b":scheme"), 3, PROTOCOL),
    ("8.3.1", "no path", without(b":path"), 3, PROTOCOL),
    ("8.3.1", "an empty path", request(*request_fields(b"")), 3, PROTOCOL),
    ("8.3.1", "no fields at all", pack(HEADERS, END_HEADERS, 3), 3, PROTOCOL),
    (
        "8.1.1",
        "less than its length",
        with_field(b"content-length", b"7") + pack(DATA, 1, 3, message(b"x")),
        3,
        PROTOCOL,
    ),
    (
        "8.1.1",
        "more than its length",
        with_field(b"content-length", b"5") + pack(DATA, 0, 3, message(b"x")),
        3,
        PROTOCOL,
    ),
    ("8.1.1", "a length that is none", with_field(b"content-length", b"+6"), 3, PROTOCOL),
    (
        "8.1.1",
        "two lengths",
        request(*request_fields(), (b"content-length", b"6"), (b"content-length", b"7")),
        3,
        PROTOCOL,
    ),
]


@pytest.mark.parametrize(
    ("section", "what", "data", "stream", "code"), STREAM_ERRORS, ids=lambda value: str(value)[:60]
)
def test_what_ends_a_stream(section: str, what: str, data: bytes, stream: int, code: int) -> None:
    session = Session(TransportLimits(streams_max=3))
    session.send(data)
    found = [(frame.stream, frame.code) for frame in session.of(RST_STREAM)]
    assert found == [(stream, code)], (section, what)
    # The connection goes on, and its header table is in step.
    if stream != 7:
        session.send(unary(101, b"/t.T/Echo", b"still here"))
        assert session.answers[101].messages == [(0, b"still here")]
    assert session.goaway is None
    session.hang_up()
    session.check_clean()


@dataclass(frozen=True, slots=True)
class _Allowed:
    section: str
    what: str
    data: bytes


ALLOWED = [
    _Allowed("3.4", "settings that nobody knows", settings((0, 7), (4_000, LARGE), (8, 1), (9, 1))),
    _Allowed("4.1", "the reserved bit of a stream id", pack(PING, 0, 2**31, bytes(8))),
    _Allowed("4.1", "flags that mean nothing there", pack(PING, 0xFE, 0, bytes(8)) + pack(SETTINGS, 0xFE, 0)),
    _Allowed("4.2", "an unknown frame of 16,384 bytes", pack(77, 255, 0, bytes(16_384)) + pack(78, 0, 9)),
    _Allowed("5.1", "PRIORITY on an idle stream", pack(PRIORITY, 0, 99, bytes(5))),
    _Allowed("5.1", "WINDOW_UPDATE on a stream half closed", HALF + window(1, 5)),
    _Allowed("5.1", "DATA that crossed our end", HOLD + reset(1) + pack(DATA, 0, 1, b"x")),
    _Allowed("5.1", "RST_STREAM of a stream that is over", DONE + reset(1) + reset(1)),
    _Allowed("5.1", "WINDOW_UPDATE of a stream that is over", DONE + window(1, 7)),
    _Allowed("5.1", "trailers that crossed our end", DONE + pack(HEADERS, 5, 1, literal_block([(b"a", b"b")]))),
    _Allowed("5.3", "a stream that depends on itself", pack(PRIORITY, 0, 9, (9).to_bytes(4) + b"\0")),
    _Allowed("6.1", "nothing but padding", HOLD + pack(DATA, PADDED, 1, b"\x04" + bytes(4))),
    _Allowed("6.5.2", "frames of 2^24 - 1, push or not, any table", settings((5, 2**24 - 1), (2, 1), (2, 0), (1, 0))),
    _Allowed("6.5.2", "the largest window", settings((4, LARGE), (4, 0), (4, 65_535))),
    _Allowed("6.8", "GOAWAY, and then more", pack(GOAWAY, 0, 0, bytes(8) + b"reason")),
    _Allowed("6.9.1", "the largest window of the connection", window(0, LARGE - 65_535)),
    _Allowed("8.1", "trailers of no fields", HOLD + pack(HEADERS, 5, 1)),
    _Allowed("8.2.1", "every byte that a name may have", with_field(b"!#$%&'*+-.^_`|~09az", b"\x80\xff \t~")),
    _Allowed("8.2.3", "cookies in pieces", request(*request_fields(), (b"cookie", b"a"), (b"cookie", b"b"))),
    _Allowed("8.3.1", "no authority", without(b":authority")),
]


@pytest.mark.parametrize("case", ALLOWED, ids=lambda case: case.what)
def test_what_is_allowed(case: _Allowed) -> None:
    session = Session()
    session.send(case.data)
    session.send(unary(101, b"/t.T/Echo", b"still here"))
    assert session.answers[101].messages == [(0, b"still here")]
    assert session.answers[101].status == (0, "")
    assert session.goaway is None
    assert [frame.code for frame in session.of(RST_STREAM) if frame.code] == []
    session.hang_up()
    session.check_clean()


def test_the_connection_begins_with_settings_and_a_window() -> None:
    session = Session(greeting=b"")
    first, second = session.frames
    assert (first.kind, first.flags, first.stream) == (SETTINGS, 0, 0)
    pairs = {
        int.from_bytes(first.payload[at : at + 2]): int.from_bytes(first.payload[at + 2 : at + 6]) for at in (0, 6, 12)
    }
    assert pairs == {3: LARGE, 4: 1 << 20, 6: 256 * 1024}
    assert (second.kind, second.stream, int.from_bytes(second.payload)) == (WINDOW_UPDATE, 0, (16 << 20) - 65_535)


def test_settings_and_pings_are_acknowledged_in_order() -> None:
    session = Session()
    session.frames.clear()
    session.send(ping(b"one more") + settings((4, 7)) + ping(b"and more") + ping(b"not this", ACK))
    assert [(frame.kind, frame.flags, frame.payload) for frame in session.frames] == [
        (PING, ACK, b"one more"),
        (SETTINGS, ACK, b""),
        (PING, ACK, b"and more"),
    ]


def test_a_request_padded_prioritized_and_in_pieces_is_a_request() -> None:
    session = Session()
    block = literal_block(request_fields())
    first = b"\x07" + bytes(5) + block[:10] + bytes(7)
    session.send(
        pack(HEADERS, PADDED | HAS_PRIORITY, 1, first)
        + pack(CONTINUATION, 0, 1, block[10:30])
        + pack(CONTINUATION, 0, 1)
        + pack(CONTINUATION, END_HEADERS, 1, block[30:])
        + pack(DATA, PADDED, 1, b"\x03" + message(b"hello")[:7] + bytes(3))
        + pack(DATA, PADDED, 1, b"\x00" + message(b"hello")[7:])
        + pack(DATA, END_STREAM, 1)
    )
    assert session.answers[1].messages == [(0, b"hello")]


def test_end_stream_of_a_request_in_pieces_counts_from_its_first_frame() -> None:
    session = Session()
    block = literal_block(request_fields())
    session.send(pack(HEADERS, END_STREAM, 1, block[:10]), pack(CONTINUATION, END_HEADERS, 1, block[10:]))
    assert session.answers[1].status == (
        13,
        "cardinality violation: received no request message from non-client-streaming RPC",
    )
    assert session.answers[1].reset is None


def test_a_request_may_say_its_length() -> None:
    session = Session()
    fields = [*request_fields(), (b"content-length", b"6"), (b"content-length", b"6")]
    first, second = (pack(HEADERS, END_HEADERS, stream, literal_block(fields)) for stream in (1, 3))
    session.send(first + pack(DATA, END_STREAM, 1, message(b"x")))
    session.send(
        second + pack(DATA, PADDED, 3, b"\x02" + message(b"y")[:3] + bytes(2)) + pack(DATA, 1, 3, message(b"y")[3:])
    )
    assert [session.answers[stream].messages for stream in (1, 3)] == [[(0, b"x")], [(0, b"y")]]


def test_trailers_end_a_request() -> None:
    session = Session()
    trailers = pack(HEADERS, END_HEADERS | END_STREAM, 1, literal_block([(b"checksum", b"1")]))
    session.send(open_stream(1) + pack(DATA, 0, 1, message(b"x")) + trailers)
    assert session.answers[1].messages == [(0, b"x")]
    assert session.answers[1].reset is None


@pytest.mark.parametrize("sizes", [[(1, 0)], [(1, 4_095)], [(1, 0), (1, 4_096)], [(1, 100), (1, 0), (1, 50)]])
def test_a_smaller_header_table_is_answered_by_an_empty_one(sizes: list[tuple[int, int]]) -> None:
    """RFC 7541 4.2: a decoder that was made smaller wants to hear of it in the next block."""
    for path, body in ((b"/t.T/Echo", b"x"), (b"/t.T/Fail", b"x"), (b"/t.T/Stream", b"1,2"), (b"/none", b"")):
        session = Session()
        session.send(settings(*sizes))
        session.decoder.max_allowed_table_size = min(size for _, size in sizes)
        session.send(unary(1, path, body) + unary(3, path, body))
        first, *others = session.of(HEADERS)
        assert first.payload[0] == 0x20
        assert all(frame.payload[0] & 0xE0 != 0x20 for frame in others)
        assert session.answers[3].status is not None


def test_what_h2_makes_of_a_conversation() -> None:
    """An independent client takes every frame of it."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.update_settings({1: 0})
    session = Session(greeting=b"")
    client.receive_data(b"".join(pack(frame.kind, frame.flags, 0, frame.payload) for frame in session.frames))
    bodies: dict[int, bytes] = {}
    ended = set()

    def exchange() -> None:
        while True:
            data = client.data_to_send()
            if data:
                session.connection.data_received(data)
            session.loop.run()
            back, session.transport.written = b"".join(session.transport.written), []
            if not data and not back:
                return
            for event in client.receive_data(back):
                if isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                    client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id)

    for number, (path, body) in enumerate(
        [("Echo", b"x"), ("Fail", b"y"), ("Big", b"300000"), ("Chat", b"z"), ("No", b"")]
    ):
        stream = 2 * number + 1
        fields = [(name.decode(), value.decode()) for name, value in request_fields(f"/t.T/{path}".encode())]
        client.send_headers(stream, fields)
        client.send_data(stream, message(body), end_stream=True)
        exchange()
    assert ended == {1, 3, 5, 7, 9}
    assert {stream: len(body) for stream, body in bodies.items()} == {1: 6, 5: 300_005, 7: 6}


CONVERSATION = b"".join(
    (
        PREFACE,
        settings((4, 70_000), (1, 0)),
        pack(SETTINGS, ACK, 0),
        window(0, 1_000_000),
        unary(1, b"/t.T/Echo", b"x" * 300),
        ping(),
        open_stream(3, b"/t.T/Chat", (b"grpc-timeout", b"5S")),
        pack(DATA, 0, 3, message(b"one") + message(b"two")[:3]),
        unary(5, b"/t.T/Stream", b"10,0,70000,5"),
        pack(DATA, 0, 3, message(b"two")[3:]),
        open_stream(7, b"/t.T/Hold"),
        reset(7),
        pack(DATA, PADDED, 3, b"\x02" + message(b"three") + b"\0\0"),
        window(5, 20_000),
        unary(9, b"/t.T/Fail", b"no"),
        unary(11, b"/t.T/Later", b"never"),
        unary(13, b"/nowhere", b""),
        pack(DATA, END_STREAM, 3),
        pack(PRIORITY, 0, 15, bytes(5)),
        ping(b"lastping"),
    )
)


def _output(parts: list[bytes]) -> bytes:
    session = Session(greeting=b"")
    session.has_windows = False
    for part in parts:
        session.connection.data_received(part)
        session.loop.run()
    output = b"".join(session.transport.written)
    session.hang_up()
    session.check_clean()
    return output


def test_input_split_anywhere_gives_the_same_output() -> None:
    whole = _output([CONVERSATION])
    for position in range(1, len(CONVERSATION)):
        assert _output([CONVERSATION[:position], CONVERSATION[position:]]) == whole
    assert _output([CONVERSATION[at : at + 1] for at in range(len(CONVERSATION))]) == whole


@given(strategies.lists(strategies.integers(0, len(CONVERSATION)), max_size=30))
def test_input_split_in_many_places_gives_the_same_output(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(CONVERSATION)]
    pieces = [CONVERSATION[start:stop] for start, stop in pairwise(edges)]
    assert _output(pieces) == _output([CONVERSATION])


def _survive(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    session = Session(greeting=b"")
    session.has_windows = False
    for start in range(0, len(data), 500):
        session.send(data[start : start + 500])
    session.loop.advance(10)
    session.step()
    session.hang_up()
    session.check_clean()
    assert not caplog.records, caplog.text  # no error was ours


@given(
    strategies.lists(
        strategies.tuples(strategies.integers(24, len(CONVERSATION) - 1), strategies.integers(0, 255)), max_size=8
    ),
    strategies.booleans(),
)
def test_a_conversation_with_wrong_bytes_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture, changes: list[tuple[int, int]], has_cut: bool
) -> None:
    data = bytearray(CONVERSATION)
    for position, byte in changes:
        data[position] = byte
    if has_cut and changes:
        del data[changes[0][0] : changes[0][0] + changes[0][1]]
    _survive(bytes(data), caplog)


_FRAMES = strategies.builds(
    pack,
    strategies.integers(0, 10),
    strategies.sampled_from([0, 1, 4, 5, 8, 9, 12, 13, 32, 37, 255]),
    strategies.sampled_from([0, 1, 1, 2, 3, 5, 7, 2**31 - 1]),
    strategies.one_of(
        strategies.binary(max_size=20),
        strategies.sampled_from(
            [
                b"",
                bytes(4),
                bytes(8),
                (5).to_bytes(4),
                BLOCK,
                message(b"x"),
                message(b"finish"),
                message(b"\xff"),
                message(b"raise"),
            ]
        ),
        strategies.integers(0, 2**32 - 1).map(lambda value: value.to_bytes(4)),
        strategies.sampled_from([b"Hold", b"Chat", b"Later", b"Big"]).map(
            lambda name: literal_block(request_fields(b"/t.T/" + name, (b"grpc-timeout", b"3S")))
        ),
        strategies.tuples(strategies.integers(0, 9), strategies.integers(0, 2**32 - 1)).map(
            lambda pair: pair[0].to_bytes(2) + pair[1].to_bytes(4)
        ),
    ),
)


@given(strategies.lists(_FRAMES, max_size=25))
def test_frames_at_random_leave_nothing_behind(caplog: pytest.LogCaptureFixture, frames: list[bytes]) -> None:
    _survive(PREFACE + settings() + b"".join(frames), caplog)


@given(strategies.binary(max_size=200))
def test_bytes_at_random_leave_nothing_behind(caplog: pytest.LogCaptureFixture, data: bytes) -> None:
    _survive(PREFACE + settings() + data, caplog)
    _survive(data, caplog)
