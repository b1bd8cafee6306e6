"""What passes on a connection of HTTP/2 between a client and an etcd, looked at and not touched: its gRPC calls.

What it owns: how far it has understood both directions. It sends nothing, so it can disturb nothing: windows, pings,
metadata and trailers are between the client and its etcd, as if nobody were there.

Invariants:

* I1. A call that was begun in the cassette ends there: by its status, by a reset, or when the connection ends.
* I2. What is held is bounded: of each direction a frame, and of each call's directions a message, up to
  `MESSAGE_BYTES_MAX`. A larger message is counted, not kept.

Why not two ends of HTTP/2 with a call between them: those would have windows, deadlines and errors of their own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol
from urllib.parse import unquote_to_bytes

from hpack import Decoder

from mvccstore.server.transport.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEAD_BYTES,
    HEADERS,
    PADDED,
    PREFACE,
    PRIORITY_FLAG,
    RST_STREAM,
    STREAM_ID_MAX,
    ErrorCode,
    after_preface,
    unpack_head,
    unpadded,
)
from mvccstore.server.transport.status import Code
from mvccstore.server.transport.stream import MESSAGE_HEAD_BYTES
from mvccstore.testing.cassette import CallWriter, CassetteWriter, Direction, EndedBy
from mvccstore.testing.secrets import told_metadata

MESSAGE_BYTES_MAX = 64 << 20
"""The largest message that is kept."""
BLOCK_BYTES_MAX = 1 << 20
"""The largest header block."""
_TABLE_BYTES_MAX = 1 << 20

Fields = list[tuple[bytes, bytes]]


class NotUnderstoodError(Exception):
    """What passes is not what it should be, or more than this looks at. For people."""


class Tap(Protocol):
    """Looks at what passes on one connection."""

    def take_client(self, data: bytes, /) -> None:
        """Look at what the client sends."""
        ...

    def take_upstream(self, data: bytes, /) -> None:
        """Look at what it is answered."""
        ...

    def close(self, who: EndedBy, /) -> None:
        """Note that the connection has ended, and by whom."""
        ...


class OtherExchange(Protocol):
    """A request that is no gRPC."""

    def body(self, data: bytes, /) -> None:
        """Look at the next bytes of the request's body."""
        ...

    def body_end(self) -> None:
        """Note its end."""
        ...

    def answer_head(self, status: int, /) -> None:
        """Note how it is answered."""
        ...

    def answer_body(self, data: bytes, /) -> None:
        """Look at the next bytes of the answer."""
        ...

    def answer_end(self) -> None:
        """Note its end."""
        ...

    def close(self, who: EndedBy, /) -> None:
        """Note that it has ended before."""
        ...


OtherFactory = Callable[[str, str, tuple[tuple[bytes, bytes], ...]], OtherExchange | None]
"""Makes what looks at a request that is no gRPC, of its verb, path and headers; None if nobody wants to."""


class Messages:
    """Cuts the DATA of one direction of a call into messages."""

    def __init__(self, writer: CallWriter, direction: Direction) -> None:
        self._writer = writer
        self._direction: Direction = direction
        self._held = bytearray()
        self._left = 0
        """How much of a message that is left out is still to come."""
        self.is_gzip = False

    def feed(self, data: bytes) -> None:
        """Take more bytes, and write each message that is complete."""
        if self._left:
            skipped = min(self._left, len(data))
            self._left -= skipped
            data = data[skipped:]
        self._held += data
        while len(self._held) >= MESSAGE_HEAD_BYTES:
            size = int.from_bytes(self._held[1:MESSAGE_HEAD_BYTES])
            stop = MESSAGE_HEAD_BYTES + size
            if size > MESSAGE_BYTES_MAX:
                self._writer.left_out(self._direction, size)
                self._left = max(0, stop - len(self._held))
                del self._held[:stop]
            elif len(self._held) < stop:
                return
            else:
                flag, message = self._held[0], bytes(self._held[MESSAGE_HEAD_BYTES:stop])
                del self._held[:stop]
                self._write(flag, message)

    def _write(self, flag: int, message: bytes) -> None:
        if flag and self.is_gzip:
            inflater = zlib.decompressobj(wbits=31)
            message = inflater.decompress(message, MESSAGE_BYTES_MAX + 1)
            if len(message) > MESSAGE_BYTES_MAX:
                self._writer.left_out(self._direction, len(message))
                return
        self._writer.message(self._direction, message)


class _Direction:
    """Cuts what one side sends into frames, with header blocks put together and decoded."""

    def __init__(self, awaited: bytes = b"") -> None:
        self._awaited = awaited
        self._held = bytearray()
        self._decoder = Decoder(max_header_list_size=BLOCK_BYTES_MAX)
        # What both have agreed on is theirs to keep to.
        self._decoder.max_allowed_table_size = _TABLE_BYTES_MAX
        self._block: tuple[int, int, bytearray] | None = None

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes, Fields]]:
        """Take more bytes; yield kind, flags, payload and fields of each frame, its stream in front of them."""
        if self._awaited:
            self._awaited, data = after_preface(self._awaited, data)
        self._held += data
        position = 0
        held = self._held
        try:
            while len(held) - position >= FRAME_HEAD_BYTES:
                high, low, kind, flags, number = unpack_head(held, position)
                stop = position + FRAME_HEAD_BYTES + (high << 16 | low)
                if stop > len(held):
                    break
                payload = bytes(held[position + FRAME_HEAD_BYTES : stop])
                position = stop
                yield from self._take(kind, flags, number & STREAM_ID_MAX, payload)
        finally:
            del held[:position]

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> Iterator[tuple[int, int, bytes, Fields]]:
        if flags & PADDED and kind in {DATA, HEADERS}:
            payload = unpadded(payload)
        if kind == DATA:
            yield number, DATA | flags << 8, payload, []
        elif kind == RST_STREAM:
            yield number, RST_STREAM, payload, []
        elif kind == HEADERS:
            self._block = (number, flags, bytearray(payload[5:] if flags & PRIORITY_FLAG else payload))
        elif kind == CONTINUATION and self._block is not None:
            self._block[2].extend(payload)
        if kind in {HEADERS, CONTINUATION} and self._block is not None:
            if len(self._block[2]) > BLOCK_BYTES_MAX:
                msg = "a header block is too large"
                raise NotUnderstoodError(msg)
            if flags & END_HEADERS:
                (stream, first_flags, block), self._block = self._block, None
                decoded = self._decoder.decode(bytes(block), raw=True)
                fields = [(bytes(name), bytes(value)) for name, value, *_ in decoded]
                yield stream, HEADERS | first_flags << 8, b"", fields


class _GrpcCall:
    """One stream that carries gRPC."""

    def __init__(self, writer: CallWriter, encoding: bytes | None) -> None:
        self._writer = writer
        self._requests = Messages(writer, "request")
        self._answers = Messages(writer, "answer")
        self._requests.is_gzip = encoding == b"gzip"

    def client_data(self, data: bytes, *, is_end: bool) -> None:
        self._requests.feed(data)
        if is_end:
            self._writer.half_close()

    def upstream_fields(self, fields: Fields, *, is_end: bool) -> None:
        values = dict(fields)
        if values.get(b"grpc-encoding") == b"gzip":
            self._answers.is_gzip = True
        if is_end:
            status = values.get(b"grpc-status", b"")
            if status.isdigit():
                text = unquote_to_bytes(values.get(b"grpc-message", b"")).decode(errors="replace")
                self._writer.end(int(status), text)
            else:
                shown = values.get(b":status", b"none").decode("latin-1")
                self._writer.end(Code.UNKNOWN, f"no gRPC status; HTTP status {shown}")

    def upstream_data(self, data: bytes, *, is_end: bool) -> None:
        self._answers.feed(data)
        if is_end:
            self._writer.end(Code.UNKNOWN, "no gRPC status")

    def close(self, who: EndedBy) -> None:
        self._writer.end_by(who)

    def upstream_reset(self, code: int) -> None:
        # As grpc-go has it for what a server resets.
        meaning = {
            ErrorCode.CANCEL: Code.CANCELLED,
            ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
            ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
        }
        self._writer.end(
            meaning.get(ErrorCode(code), Code.INTERNAL) if code in set(ErrorCode) else Code.INTERNAL,
            f"stream terminated by RST_STREAM with error code: {code}",
        )


class _OtherCall:
    """One stream that carries something else, such as JSON."""

    def __init__(self, exchange: OtherExchange) -> None:
        self._exchange = exchange

    def client_data(self, data: bytes, *, is_end: bool) -> None:
        if data:
            self._exchange.body(data)
        if is_end:
            self._exchange.body_end()

    def upstream_fields(self, fields: Fields, *, is_end: bool) -> None:
        status = dict(fields).get(b":status", b"")
        if status.isdigit():
            self._exchange.answer_head(int(status))
        if is_end:
            self._exchange.answer_end()

    def upstream_data(self, data: bytes, *, is_end: bool) -> None:
        if data:
            self._exchange.answer_body(data)
        if is_end:
            self._exchange.answer_end()

    def close(self, who: EndedBy) -> None:
        self._exchange.close(who)

    def upstream_reset(self, _code: int) -> None:
        self._exchange.close("upstream")


class Http2Tap:
    """Writes the calls of one connection to a cassette.

    What it raises says that it does not understand; it is not to be fed any more then, only closed.
    """

    def __init__(self, cassette: CassetteWriter, other: OtherFactory = lambda *_: None) -> None:
        self._cassette = cassette
        self._other = other
        self._client = _Direction(PREFACE)
        self._upstream = _Direction()
        self._calls: dict[int, _GrpcCall | _OtherCall] = {}

    def take_client(self, data: bytes) -> None:
        """Look at what the client sends."""
        for number, frame, payload, fields in self._client.feed(data):
            kind, is_end = frame & 0xFF, bool(frame >> 8 & END_STREAM)
            call = self._calls.get(number)
            if kind == RST_STREAM:
                if call is not None:
                    del self._calls[number]
                    call.close("client")
                continue
            if kind == HEADERS and call is None:
                call = self._begin(number, fields)
            if call is not None:
                call.client_data(payload, is_end=is_end)

    def _begin(self, number: int, fields: Fields) -> _GrpcCall | _OtherCall | None:
        values = dict(fields)
        path = values.get(b":path", b"").decode("latin-1")
        call: _GrpcCall | _OtherCall
        if values.get(b"content-type", b"").startswith(b"application/grpc"):
            metadata = told_metadata(tuple(fields), keeps_secrets=self._cassette.keeps_secrets)
            call = _GrpcCall(self._cassette.begin(path, metadata), values.get(b"grpc-encoding"))
        else:
            exchange = self._other(values.get(b":method", b"").decode("latin-1"), path, tuple(fields))
            if exchange is None:
                return None
            call = _OtherCall(exchange)
        self._calls[number] = call
        return call

    def take_upstream(self, data: bytes) -> None:
        """Look at what it is answered."""
        for number, frame, payload, fields in self._upstream.feed(data):
            call = self._calls.get(number)
            if call is None:
                continue
            kind, is_end = frame & 0xFF, bool(frame >> 8 & END_STREAM)
            if kind == RST_STREAM:
                call.upstream_reset(int.from_bytes(payload))
            elif kind == HEADERS:
                call.upstream_fields(fields, is_end=is_end)
            else:
                call.upstream_data(payload, is_end=is_end)
            if is_end or kind == RST_STREAM:
                del self._calls[number]

    def close(self, who: EndedBy) -> None:
        """End the calls that are under way."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.close(who)
