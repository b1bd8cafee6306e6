"""One HTTP/2 connection that carries gRPC (RFC 9113): an asyncio protocol that parses frames and keeps the rules.

What it owns: the streams of one client, and the window for what it sends. When that is carried out, `Incoming` has.

Invariants:

* I1. What the peer breaks is answered as RFC 9113 says: a stream ends by RST_STREAM, the connection by GOAWAY.
* I2. A slice ends after so many frames, messages, bytes or bytes of answers (`slice_frames` and those beside it); before
  a frame that the client would be answered more to than it takes, or that would give it more than its share of the
  writer's work.
* I3. A frame with more messages than a slice has is carried out in parts, as if it were several: what is left stands
  before all that has come behind it, an end or a reset too, and counts in no window yet but the client's.

Why not a library: see DESIGN 4; h2's state machine costs 100 us a call, this one about 10.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from mvccstore.server.transport.call import Peer, Router
from mvccstore.server.transport.deadlines import Deadlines
from mvccstore.server.transport.draining import Draining
from mvccstore.server.transport.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_MAX,
    FRAME_HEAD_BYTES,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PRIORITY_FLAG,
    RST_STREAM,
    SETTINGS,
    STREAM_ID_MAX,
    WINDOW_BYTES,
    WINDOW_BYTES_MAX,
    WINDOW_UPDATE,
    ErrorCode,
    ProtocolError,
    StreamError,
    block_of,
    check_form,
    frame,
    goaway_frame,
    rst_frame,
    unpack_head,
    unpadded,
    window_frame,
)
from mvccstore.server.transport.guard import Guard
from mvccstore.server.transport.head import Head, HeadDecoder, check_trailers
from mvccstore.server.transport.incoming import Incoming
from mvccstore.server.transport.keepalive import PING_IS_DUE
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.outgoing import FLUSH_BYTES
from mvccstore.server.transport.page_stream import Pages, PageStream
from mvccstore.server.transport.settings import ClientSettings, server_settings
from mvccstore.server.transport.stream import MESSAGE_HEAD_BYTES, Stream
from mvccstore.server.transport.turns import Turns
from mvccstore.server.transport.unfinished import Request, Unfinished
from mvccstore.server.transport.unusual import UnusualStream
from mvccstore.server.transport.wire import WireStream

_FLUSH_PARTS: Final = 2_048
"""So many pieces are written even if more input is to be carried out: some 200 answers, each of one frame at most."""
_STREAMS_A_COST: Final = 64
_WHOLE_BYTES_MIN: Final = FRAME_HEAD_BYTES + MESSAGE_HEAD_BYTES
_CONNECTION_WINDOWS = 16
_KEEPALIVE_PING = b"alive\0\0\0"


class Http2Connection(Incoming, asyncio.BufferedProtocol):
    """One client. Begins with the bytes after the preface has been recognised.

    Args:
        turns: Where it waits for its turn, with the others of its port.
        on_lost: Called once when the connection is gone.
        pages: What serves requests that are no calls; without, they are refused.
    """

    def __init__(
        self,
        router: Router,
        limits: TransportLimits,
        peer: Peer,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        turns: Turns,
        on_lost: Callable[[Http2Connection], None],
        pages: Pages | None = None,
    ) -> None:
        super().__init__(limits, loop, peer, turns, router.flushes)
        self.deadlines = deadlines
        self.work = 0  # what its calls have under way, by cost
        self._router = router
        self._on_lost = on_lost
        self._pages = pages
        self._heads = HeadDecoder(router, limits) if pages is None else pages.decoder(router, limits)
        self._guard = Guard(limits, loop.time)
        self._streams: dict[int, WireStream] = {}
        self._streams_max = min(limits.streams_max, limits.streams_open_max)
        self._settings = ClientSettings()
        self._window_bytes = limits.window_bytes * _CONNECTION_WINDOWS
        self._whole_bytes_max = min(limits.window_bytes, limits.message_bytes_max, FRAME_BYTES_MAX)
        self._receive_window = self._window_bytes
        self.last_id = 0
        self._unfinished = Unfinished(limits, loop.time())
        self._draining = Draining(self, loop)
        self._has_settings = False
        self._block: tuple[int, int, bytearray] | None = None  # its stream, flags, and what has come of it

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: say what we allow."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=4 * FLUSH_BYTES)
        self.out += (server_settings(self.limits), window_frame(0, self._window_bytes - WINDOW_BYTES))
        self._receive_window = self._window_bytes
        self.flush()

    def eof_received(self) -> None:
        """The client has closed its side: so do we."""

    def connection_lost(self, _error: Exception | None) -> None:
        """End every call."""
        self._transport = None
        self._draining.cancel()
        self._drop_rest()
        self._cancel_all()
        self.out.clear()
        self._memory.read()
        self._on_lost(self)

    def _cancel_all(self) -> None:
        streams, self._streams = list(self._streams.values()), {}
        self._pending.clear()
        self._unfinished.clear()
        for stream in streams:
            self._memory.receive(-stream.head.held_bytes)
            stream.cancel()

    # Parsing

    def _receive(self, data: bytes) -> None:
        position, end = 0, len(data)
        frames, bytes_max = self.limits.slice_frames, self.limits.slice_bytes
        self.messages_left = self.limits.slice_messages
        work_max = self._router.share()
        memory = self._memory
        answers_max = self.send_window - memory.queued - self.limits.slice_answer_bytes
        while end - position >= FRAME_HEAD_BYTES:
            if self.work >= work_max or not self.is_writable:
                self._wait(data[position:], is_held=True)
                return
            if frames == 0 or position >= bytes_max or self.send_window - memory.queued < answers_max:
                self._wait(data[position:], is_held=False)
                return
            frames -= 1
            high, low, kind, flags, number = unpack_head(data, position)
            length = high << 16 | low
            if length > FRAME_BYTES_MAX:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "frame is larger than 16,384 bytes")
            stop = position + FRAME_HEAD_BYTES + length
            if stop > end:
                break
            payload = data[position + FRAME_HEAD_BYTES : stop]
            position = stop
            number &= STREAM_ID_MAX
            if self._transport is None or self._transport.is_closing():
                return
            try:
                if kind == HEADERS and flags == END_HEADERS and end - position >= _WHOLE_BYTES_MIN:
                    position += self._take_whole(number, payload, data, position)
                    if position > stop:
                        if len(self.out) > _FLUSH_PARTS:
                            self.flush()
                        continue
                self._take(kind, flags, number, payload)
            except StreamError as error:
                self._reset(number, error.code)
            if len(self.out) > _FLUSH_PARTS:
                self.flush()
            if self._left_over:
                data, position, self._left_over = self._left_over + data[position:], 0, b""
                end, frames = len(data), 0
        self._rest = data[position:]

    def _take_whole(self, number: int, block: bytes, data: bytes, position: int) -> int:
        """Serve a call that has come as a whole and looks like one before: a tenth less work than by its two frames.

        Returns: The size of its DATA frame, which begins at `position`; 0 if it is none of these, and nothing was done.
        """
        high, low, kind, flags, data_number = unpack_head(data, position)
        size: int = high << 16 | low
        if size < MESSAGE_HEAD_BYTES:
            return 0
        start = position + FRAME_HEAD_BYTES
        message = data[start + MESSAGE_HEAD_BYTES : start + size]
        if (
            kind != DATA
            or flags != END_STREAM
            or data_number != number
            or not self.last_id < number <= self._draining.last_served
            or number % 2 == 0
            or size > self._whole_bytes_max
            or len(message) != size - MESSAGE_HEAD_BYTES
            or data[start : start + MESSAGE_HEAD_BYTES] != b"\0" + len(message).to_bytes(4)
            or self._receive_window - size < self._window_bytes // 2
            or self._block is not None
            or len(self._streams) >= self._streams_max
        ):
            return 0
        head = self._heads.kept_unary(block)
        if head is None:
            return 0
        self.last_id = number
        self._receive_window -= size
        stream = Stream(self._router, self, head, number, self.peer, self._settings.initial_window)
        self._streams[number] = stream
        stream.serve_whole(message)
        return FRAME_HEAD_BYTES + size

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        if not self._has_settings:
            if kind != SETTINGS or flags & ACK:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "the first frame is no SETTINGS")
            self._has_settings = True
        if kind == DATA:
            self._take_data(flags, number, payload)
        elif kind == HEADERS:
            self._take_headers(flags, number, payload)
        elif kind <= CONTINUATION:
            check_form(kind, number, payload)
            _HANDLERS[kind](self, flags, number, payload)
        # An unknown kind is passed over (RFC 9113 5.5).

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        if number == 0:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window allows")
        if self._receive_window < self._window_bytes // 2:
            self.out.append(window_frame(0, self._window_bytes - self._receive_window))
            self._receive_window = self._window_bytes
        if flags & PADDED:
            payload = unpadded(payload)
        if not payload and not flags & END_STREAM:
            self._guard.note_control()
        stream = self._streams.get(number)
        if stream is None:
            self._check_not_idle(number)
            return  # on its way when the stream ended: as much as the stream's window may come
        if stream.is_half_closed:
            raise StreamError(ErrorCode.STREAM_CLOSED, "data after the end")
        left = stream.receive(payload, is_end=bool(flags & END_STREAM), frame_bytes=size)
        if left:
            self._receive_window += left
            self._left_over = frame(DATA, flags & END_STREAM, number, payload[len(payload) - left :])  # I3

    def _check_not_idle(self, number: int) -> None:
        if number > self.last_id or number % 2 == 0:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a frame on a stream that was never opened")

    def _take_headers(self, flags: int, number: int, payload: bytes) -> None:
        if number % 2 == 0:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "HEADERS on a stream that is not a client's")
        if flags & (PADDED | PRIORITY_FLAG):
            payload = block_of(flags, payload)
        if flags & END_HEADERS:
            self._take_block(flags, number, payload)
        else:
            self._block = (number, flags, bytearray(payload))
            self._guard.begin_block(len(payload))

    def _take_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block")
        self._guard.note_continuation(len(payload))
        _, first_flags, block = self._block
        block += payload
        if flags & END_HEADERS:
            self._block = None
            self._take_block(first_flags, number, bytes(block))

    def _take_block(self, flags: int, number: int, block: bytes) -> None:
        if number <= self.last_id:
            self._take_trailers(flags, number, block)
            return
        self.last_id = number
        head = self._heads.decode(block)
        if number > self._draining.last_served:
            return
        if len(self._streams) >= self._streams_max:
            self.limits.cuts.note("streams_max" if self._streams_max == self.limits.streams_max else "streams_open_max")
            raise StreamError(ErrorCode.REFUSED_STREAM, "too many calls at once")
        is_end = bool(flags & END_STREAM)
        if head.refusal is not None:
            self._refuse(head, number, is_end=is_end)
            return
        if head.held_bytes:
            self.hold_bytes(head.held_bytes)
        stream = self._streams[number] = self._stream(head, number)
        stream.is_half_closed = is_end
        stream.begin_call()
        if is_end:
            stream.receive(b"", is_end=True, frame_bytes=0)

    def _stream(self, head: Head, number: int) -> WireStream:
        page, window = head.page, self._settings.initial_window
        if page is None or self._pages is None:
            make = Stream if head.is_usual else UnusualStream
            return make(self._router, self, head, number, self.peer, window)
        return PageStream(self._pages, self, page, number, self.peer, window)

    def _take_trailers(self, flags: int, number: int, block: bytes) -> None:
        fields = self._heads.fields(block)
        stream = self._streams.get(number)
        if stream is None:
            if any(name.startswith(b":") for name, _ in fields):
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a request on a stream id that is not a new one")
            self._guard.note_stray()
            return
        if stream.is_half_closed:
            raise StreamError(ErrorCode.STREAM_CLOSED, "headers after the end")
        if not flags & END_STREAM:
            raise StreamError(ErrorCode.PROTOCOL_ERROR, "headers in the middle of a request")
        check_trailers(fields)
        stream.receive(b"", is_end=True, frame_bytes=0)

    def _refuse(self, head: Head, number: int, *, is_end: bool) -> None:
        self.out.append(self.headers_frame(END_STREAM, number, head.refusal_block()))
        self.has_answered = True
        if not is_end:
            self.out.append(rst_frame(number, ErrorCode.NO_ERROR))

    def _take_priority(self, _flags: int, number: int, payload: bytes) -> None:
        self._guard.note_control()
        if len(payload) != 5:
            self._check_not_idle(number)  # an idle stream cannot be reset (RFC 9113 6.4)
            raise StreamError(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY has not 5 bytes")

    def _take_rst(self, _flags: int, number: int, _payload: bytes) -> None:
        self._check_not_idle(number)
        if number in self._streams:
            self._end_stream(number)
            self._guard.note_reset()
        else:
            self._guard.note_control()

    def _take_settings(self, flags: int, _number: int, payload: bytes) -> None:
        if flags & ACK:
            if payload:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement with settings")
            return
        self._guard.note_control()
        settings = self._settings
        before, had_small_table = settings.initial_window, settings.has_small_table
        settings.take(payload)
        # No larger than need be: the frames of many streams take turns.
        self.frame_bytes_max = min(settings.frame_bytes_max, FLUSH_BYTES)
        if settings.has_small_table and not had_small_table:
            # Our table is always empty, but the client must hear that it is small (RFC 7541 4.2): once, if it hears 0.
            self.owes_table_size = True
        self.out.append(frame(SETTINGS, ACK, 0))
        if settings.initial_window != before:
            self._widen_all(settings.initial_window - before)

    def _widen_all(self, change: int) -> None:
        # Once for each frame, and at its price: some thousand changes for some thousand streams are long work.
        self._guard.note_control(len(self._streams) // _STREAMS_A_COST)
        for stream in self._streams.values():
            try:
                stream.widen(change)
            except StreamError as error:
                raise ProtocolError(error.code, error.reason) from None
            self._consider(stream)
        self._pump()

    def _take_ping(self, flags: int, _number: int, payload: bytes) -> None:
        if flags & ACK:
            self._draining.take_answer(payload)
            return
        self.out.append(frame(PING, ACK, 0, payload))
        self._guard.note_ping(has_streams=bool(self._streams), has_answered=self.has_answered)
        self.has_answered = False

    def _take_window_update(self, _flags: int, number: int, payload: bytes) -> None:
        increment = int.from_bytes(payload) & WINDOW_BYTES_MAX
        if number == 0:
            if increment == 0:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            self.send_window += increment
            if self.send_window > WINDOW_BYTES_MAX:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "window is too large")
        else:
            stream = self._streams.get(number)
            if stream is None:
                self._check_not_idle(number)
                return
            if increment == 0:
                raise StreamError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            stream.widen(increment)
            self._consider(stream)
        self._pump()

    # Ending

    def _reset(self, number: int, code: ErrorCode) -> None:
        """End a stream by our side."""
        self.limits.cuts.note_told("http2", code.name)
        self.out.append(rst_frame(number, code))
        self._end_stream(number)
        self._guard.note_reset()

    def _end_stream(self, number: int) -> None:
        """Drop a stream that was reset, if there is one."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._pending.pop(stream, None)
            self._unfinished.end(number)
            self._memory.receive(-stream.head.held_bytes)
            stream.cancel()
            self.close_if_done()

    def _go_away(self, code: ErrorCode, reason: str) -> None:
        """End the connection by our side."""
        if self._transport is not None and not self._transport.is_closing():
            self.limits.cuts.note_told("http2", code.name)
            self.out.append(goaway_frame(self.last_id, code, reason))
            self.flush()
            self._drop_rest()
            self._transport.close()
            self._cancel_all()

    def drain(self) -> None:
        """Let the calls under way end, take no new ones, then close."""
        if self._transport is not None:
            self._draining.begin()

    def close_if_done(self) -> None:
        """Close, if that was announced and no call is under way."""
        if self._draining.is_announced and not self._streams and self._transport is not None:
            self.flush()
            self._transport.close()

    def look_after(self, now: float) -> None:
        """End calls whose requests take too long; ping a client that was silent for long; give it up if it does not
        answer, or read to the end.
        """
        transport = self._transport
        if transport is None:
            return
        self._unfinished.look(now, is_behind=self._is_waiting and self.is_writable)
        passed = self._keepalive.judge(
            now,
            is_closing=transport.is_closing(),
            has_settings=self._has_settings,
            has_rest=bool(self._rest) and not self._is_waiting,
            block_at=None if self._block is None or self._is_waiting else self._guard.block_at,
        )
        if passed == PING_IS_DUE:
            self.out.append(frame(PING, 0, 0, _KEEPALIVE_PING))
            self.flush_soon()
        elif passed is not None:
            self.limits.cuts.note(passed)
            self.abort()

    # What the streams need, beside what `Outgoing` has; see `Wire`

    def await_rest(self, stream: Request) -> None:
        """Give a stream its time for the rest of its request."""
        self._unfinished.begin(stream, self._loop.time())

    def end_rest(self, number: int) -> None:
        """It has come, or is not wanted."""
        self._unfinished.end(number)

    def begin_work(self, cost: int) -> None:
        """Count work of a call that is under way."""
        self.work += cost

    def end_work(self, cost: int) -> None:
        """Count it no more."""
        self.work -= cost
        self._release()

    def forget(self, stream: WireStream) -> None:
        """A stream has sent its last frame."""
        number = stream.number
        if self._streams.pop(number, None) is not None:
            self._pending.pop(stream, None)
            if stream.head.held_bytes:
                self._memory.receive(-stream.head.held_bytes)
            if not stream.is_half_closed:
                # It need not send the rest (RFC 9113 8.1).
                self.out.append(rst_frame(number, ErrorCode.NO_ERROR))
                self._unfinished.end(number)
            if self._draining.is_announced:
                self.close_if_done()


_HANDLERS: dict[int, Callable[[Http2Connection, int, int, bytes], None]] = {
    PRIORITY: Http2Connection._take_priority,
    RST_STREAM: Http2Connection._take_rst,
    SETTINGS: Http2Connection._take_settings,
    PING: Http2Connection._take_ping,
    GOAWAY: lambda *_: None,  # the client goes when its calls have ended; nothing changes for us
    WINDOW_UPDATE: Http2Connection._take_window_update,
    CONTINUATION: Http2Connection._take_continuation,
}
