"""One request over HTTP/2 that is no call of gRPC: what carries its exchange, in DATA frames.

etcd serves its pages and its gateway this way over TLS alone, where clients that can do both choose HTTP/2.

Invariants:

* I1. Bytes go out in the order in which they were sent, at most as many as both windows allow.
* I2. A stream is known to its connection until its last frame is written, or it was reset. After that it puts
  nothing into `out`.
* I3. The connection's counts have what this has in `_queue`, and what its receiver keeps of a body, until the answer.
* I4. A body that is no stream has `http_body_seconds`, and the length that was said of it.
* I5. Of an answer that has ended, `WRITABLE_BYTES` are taken in `http_stall_seconds`, or all that is left.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mvccstore.server.transport.blocks import literal
from mvccstore.server.transport.call import WRITABLE_BYTES, Metadata, Peer, Router
from mvccstore.server.transport.dates import Dates
from mvccstore.server.transport.deadlines import Timed
from mvccstore.server.transport.exchange import (
    TEXT,
    BodyReceiver,
    Exchange,
    Fields,
    HttpHandler,
)
from mvccstore.server.transport.frames import (
    DATA,
    END_STREAM,
    WINDOW_BYTES_MAX,
    ErrorCode,
    ProtocolError,
    StreamError,
    frame,
    rst_frame,
    window_frame,
)
from mvccstore.server.transport.head import HeadDecoder, PageHead
from mvccstore.server.transport.http1_head import HttpRequest, Refused, split_target
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.wire import Wire

_log = logging.getLogger("mvccstore.server")


@dataclass(frozen=True, slots=True)
class Pages:
    """What serves requests that are no calls of gRPC."""

    handler: HttpHandler
    dates: Dates
    is_alone: bool = False
    """Whether there is no gRPC: whatever a request says, it is for a page."""
    fields_for: Callable[[Metadata], Fields] = lambda _: ()
    """Says by the headers of a request what its answer begins with, where the handler is not asked."""

    def decoder(self, router: Router, limits: TransportLimits) -> HeadDecoder:
        """Return what decodes the heads of a connection that has these pages."""
        return HeadDecoder(router, limits, "all" if self.is_alone else "beside", self.fields_for)


class PageStream:
    """One request and its answer."""

    __slots__ = (
        "_exchange",
        "_fields_for",
        "_handler",
        "_held",
        "_is_ending",
        "_is_lingering",
        "_make_date",
        "_peer",
        "_queue",
        "_queued",
        "_receive_window",
        "_received",
        "_receiver",
        "_stalled_above",
        "_was_unwritable",
        "_wire",
        "bucket",
        "head",
        "is_half_closed",
        "number",
        "send_window",
    )

    def __init__(self, pages: Pages, wire: Wire, head: PageHead, number: int, peer: Peer, send_window: int) -> None:
        self._handler = pages.handler
        self._fields_for = pages.fields_for
        self._make_date: Callable[[], tuple[bytes, bytes]] = pages.dates.field
        self._wire = wire
        self.head = head
        self._peer = peer
        self.number = number
        """The stream's id."""
        self.send_window = send_window
        self.is_half_closed = False
        """The client has ended its half."""
        self.bucket: set[Timed] | None = None
        self._receive_window = wire.limits.window_bytes
        self._received = 0
        self._held = 0
        self._exchange: Exchange | None = None
        self._receiver: BodyReceiver | None = None
        self._queue: deque[bytes | memoryview] = deque()
        self._queued = 0
        self._is_ending = self._is_lingering = False
        self._stalled_above = 0
        """Unless so little waits when its time is over, the client is given up."""
        self._was_unwritable = False

    # Receiving

    def begin_call(self) -> None:
        """Have the request served."""
        head, refusal, path, query = self.head, self.head.refusal, "", ""
        if refusal is None:
            try:
                path, query = split_target(head.target.decode("latin-1"))
            except Refused as error:
                self._note_told(str(error.status))
                refusal = error.status, f"{error.status} Bad Request: {error.message}"
        request = HttpRequest(head.method.decode("latin-1"), path, query, Metadata(head.fields), self._peer, True)
        exchange = self._exchange = Exchange(self, request)
        if head.refusal is not None:
            exchange.fields = self._fields_for(request.headers)
        if refusal is not None:
            status, text = refusal
            allow = ((b"Allow", b"POST"),) if status == 405 else ()
            exchange.respond(status, (*allow, *TEXT), f"{text}\n".encode("latin-1", "replace"))
            return
        try:
            self._receiver = self._handler(exchange)
        except Exception:  # noqa: BLE001 - ends this stream, and no other
            self._break()
        if exchange.is_done:
            self._receiver = None
        elif not self.is_half_closed and not exchange.is_open_ended:
            self._wire.deadlines.add(self, self._wire.limits.http_body_seconds)  # I4

    def receive(self, payload: bytes, *, is_end: bool, frame_bytes: int) -> int:
        """Take the payload of a DATA frame, always all of it; `frame_bytes` counts its padding too."""
        self._receive_window -= frame_bytes
        if self._receive_window < 0:
            raise StreamError(ErrorCode.FLOW_CONTROL_ERROR, "more data than the window allows")
        if is_end:
            self.is_half_closed = True
        self._received += len(payload)
        length = self.head.length
        if length is not None and (self._received > length or (is_end and self._received < length)):
            raise StreamError(ErrorCode.PROTOCOL_ERROR, "the body has another length than was said")
        exchange, receiver = self._exchange, self._receiver
        assert exchange is not None
        if exchange.is_done or receiver is None:
            # Nobody wants it: as much as the window may come.
            if is_end and self._is_lingering:
                self._forget()
            return 0
        try:
            if payload:
                receiver.data(payload)
            if is_end and not exchange.is_done:
                self._hold(receiver)
                self._end_body()
                receiver.end()
        except ProtocolError:
            raise
        except Exception:  # noqa: BLE001 - ends this stream, and no other
            self._break()
        if not is_end and not exchange.is_done:
            self._hold(receiver)
            if self._receive_window < self._wire.limits.window_bytes // 2:
                self._grant()
        return 0

    def _hold(self, receiver: BodyReceiver) -> None:
        # Until the answer, not the end: a body may wait for the thread that reads it, and others behind it.
        kept = receiver.pending_bytes
        self._wire.hold_bytes(kept - self._held)
        self._held = kept

    def _grant(self) -> None:
        """Let the client send more, unless it does not take what it is answered, or has sent more than is carried out."""
        is_behind = self._exchange is not None and self._exchange.is_behind
        if self._queued <= WRITABLE_BYTES and not is_behind:
            limit = self._wire.limits.window_bytes
            self._wire.out.append(window_frame(self.number, limit - self._receive_window))
            self._wire.flush_soon()
            self._receive_window = limit

    def _end_body(self) -> None:
        self._receiver = None
        if self.bucket is not None:
            self._wire.deadlines.remove(self)

    def _let_go_of_body(self) -> None:
        self._end_body()
        if self._held:
            held, self._held = self._held, 0
            self._wire.hold_bytes(-held)

    # Ending without the handler's doing

    def expire(self) -> None:
        """The body takes too long, or what nobody wants of it, or the client to read."""
        cuts = self._wire.limits.cuts
        if self._is_lingering:
            cuts.note("http_linger_seconds")
            self._forget()
        elif self._is_ending:
            cuts.note("http_stall_seconds")
            self._reset(ErrorCode.CANCEL)
        else:
            cuts.note("http_body_seconds")
            self._refuse(408, b"408 Request Timeout: the request takes too long\n")

    def cancel(self) -> None:
        """The client has reset the stream, or is gone: nothing more can be sent."""
        self._let_go_of_body()
        if self._queued:
            self._wire.unqueue(self._queued)
            self._queued = 0
        self._queue.clear()
        if self._exchange is not None:
            self._exchange.cancel()

    def _break(self) -> None:
        _log.exception("a request from %s ended by an error of ours", self._peer.address)
        self._refuse(500, b"500 Internal Server Error: internal error\n")

    def _refuse(self, status: int, text: bytes) -> None:
        exchange = self._exchange
        if exchange is None or exchange.is_done:
            return
        if exchange.has_begun:
            self._note_told(ErrorCode.INTERNAL_ERROR.name)
            self._reset(ErrorCode.INTERNAL_ERROR)
            return
        self._note_told(str(status))
        cancel = exchange.on_cancel
        exchange.respond(status, TEXT, text)
        if cancel is not None:
            cancel()

    def _reset(self, code: ErrorCode) -> None:
        self.cancel()
        self._wire.out.append(rst_frame(self.number, code))
        self.is_half_closed = True
        self._forget()

    def _note_told(self, what: str) -> None:
        self._wire.limits.cuts.note_told("http2", what)

    # Sending: for the exchange

    @property
    def queued_bytes(self) -> int:
        """What waits for a window, or for the client to read."""
        return self._queued

    def send_head(self, exchange: Exchange, status: int, fields: Fields) -> None:
        """Send the head of an answer."""
        exchange.has_begun = True
        block = b"\x88" if status == 200 else literal(b":status", b"%d" % status)
        for name, value in (*exchange.fields, *fields, self._make_date()):
            block += literal(name.lower(), value)
        self._wire.out.append(self._wire.headers_frame(0, self.number, block))
        self._wire.has_answered = True
        self._wire.flush_soon()

    def send_part(self, part: bytes) -> None:
        """Send bytes of its body."""
        wire, size = self._wire, len(part)
        wire.has_answered = True
        if (
            wire.is_writable
            and not self._queued
            and size <= wire.send_window
            and size <= self.send_window
            and size <= wire.frame_bytes_max
        ):
            wire.send_window -= size
            self.send_window -= size
            wire.out.append(frame(DATA, 0, self.number, part))
            wire.flush_soon()
        else:
            self._queue.append(part)
            self._queued += size
            if self._queued > WRITABLE_BYTES:
                self._was_unwritable = True
            wire.queue(self, size)

    def send_end(self) -> None:
        """End the answer."""
        self._let_go_of_body()
        if self._queued:
            self._is_ending = True
            self._await_reading()
            return
        self._wire.out.append(frame(DATA, END_STREAM, self.number))
        self._wire.flush_soon()
        self._part()

    def _await_reading(self) -> None:
        """Give the client its time for the next of what it has not taken (I5)."""
        self._stalled_above = max(0, self._queued - WRITABLE_BYTES)
        self._wire.deadlines.remove(self)
        self._wire.deadlines.add(self, self._wire.limits.http_stall_seconds)

    def _part(self) -> None:
        """The last frame is written. What may be under way is waited for: not every client has read all before a reset."""
        if self.is_half_closed:
            self._forget()
        else:
            self._is_lingering = True
            self._wire.deadlines.remove(self)
            self._wire.deadlines.add(self, self._wire.limits.http_linger_seconds)

    def _forget(self) -> None:
        if self.bucket is not None:
            self._wire.deadlines.remove(self)
        self._wire.forget(self)
        self._wire.flush_soon()

    def flush_soon(self, count: int) -> None:
        """Nothing more than the connection does by itself."""

    def pace(self) -> None:
        """Let the client send more, when what it has sent is carried out; until then it has its window."""
        exchange, receiver = self._exchange, self._receiver
        if exchange is None or exchange.is_behind or exchange.is_done:
            return
        if receiver is None:
            self._let_go_of_body()
        else:
            self._hold(receiver)
            if self._receive_window < self._wire.limits.window_bytes // 2:
                self._grant()

    # For the connection

    def widen(self, increment: int) -> None:
        """Let more be sent; also less, if the client has changed its settings."""
        self.send_window += increment
        if self.send_window > WINDOW_BYTES_MAX:
            raise StreamError(ErrorCode.FLOW_CONTROL_ERROR, "window is too large")

    @property
    def can_pump(self) -> bool:
        """Whether something waits that the stream's own window allows."""
        return self._queued > 0 and self.send_window > 0

    def pump(self) -> int:
        """Send one frame of what waits; return its size."""
        wire, queue = self._wire, self._queue
        part = queue[0]
        size = min(len(part), self.send_window, wire.send_window, wire.frame_bytes_max)
        assert size > 0
        if size == len(part):
            queue.popleft()
        else:
            # A view: what is left of a large part is not copied with each frame.
            queue[0] = memoryview(part)[size:]
            part = bytes(part[:size])
        wire.send_window -= size
        self.send_window -= size
        self._queued -= size
        wire.unqueue(size)
        is_last = self._is_ending and not self._queued
        wire.out.append(frame(DATA, END_STREAM if is_last else 0, self.number, bytes(part)))
        if is_last:
            self._part()
        elif self._is_ending:
            if self._queued <= self._stalled_above:
                self._await_reading()
        elif self._was_unwritable and self._queued <= WRITABLE_BYTES:
            self._was_unwritable = False
            if self._receive_window < wire.limits.window_bytes // 2 and self._receiver is not None:
                self._grant()
            wire.later(self._wake)
        return size

    def _wake(self) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.on_writable is not None:
            exchange.on_writable()
