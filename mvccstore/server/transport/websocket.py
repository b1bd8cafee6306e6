"""One WebSocket (RFC 6455): what a connection becomes when a request upgraded it. `wsproto` knows the frames.

What it owns: one exchange, and the message that the client is sending.

How it goes: `accept` judges the handshake. Behind its answer the handler is called with an `Exchange` of the new
connection. What the client sends, text or binary, reaches the receiver of the body as lines, one a message; each part of
the answer is one text message, and the end of the answer closes the connection. A client cannot end its body alone:
a close, or the end of its input, is as if it had gone.

Invariants:

* I1. The exchange ends once: by its answer's end, or because the client has gone or broke a rule.
* I2. No input raises out of `data_received`. What is no frame is answered with a close that says why, and ends the
  connection, as what follows could mean anything.
* I3. What waits in memory is bounded: of a message, and of answers that are not read. While the client does not read,
  nothing is read from it. So is what is carried out in one turn of the loop; the rest waits for the next, and what comes
  meanwhile waits in `_held`, not in the parser, and behind it in the client's socket.
* I4. Nothing takes for ever but a stream, and that not if the client is silent and does not answer a ping.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
from base64 import b64decode
from collections.abc import Callable
from typing import cast

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token

from mvccstore.server.transport.call import WRITABLE_BYTES, Metadata
from mvccstore.server.transport.exchange import TEXT, BodyReceiver, Exchange, Fields, HttpHandler
from mvccstore.server.transport.frames import ProtocolError
from mvccstore.server.transport.guard import Guard
from mvccstore.server.transport.http1_head import HttpRequest
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.memory import Memory
from mvccstore.server.transport.stalls import Stall

_log = logging.getLogger("mvccstore.server")

_VERSION = (b"Sec-WebSocket-Version", b"13")
_KEY_BYTES = 16


def is_upgrade(request: HttpRequest) -> bool:
    """Say whether a request asks for a WebSocket."""
    headers = request.headers
    return _has_token(headers, b"connection", b"upgrade") and _has_token(headers, b"upgrade", b"websocket")


def accept(
    exchange: Exchange,
    handler: HttpHandler,
    limits: TransportLimits,
    *,
    request: HttpRequest,
    subprotocol: bytes | None = None,
) -> BodyReceiver | None:
    """Answer a request that asks for a WebSocket: with 405 or 400 if it asks wrongly.

    Args:
        handler: Begins to serve the exchange behind the handshake.
        request: What that exchange is to have as its request.
        subprotocol: The one that is chosen of those that the client knows.
    """
    headers = exchange.request.headers
    key = headers.get(b"sec-websocket-key") or b""
    if exchange.request.method != "GET":
        exchange.respond(405, (*TEXT, _VERSION), b"Method Not Allowed\n")
    elif exchange.switch is None or not _has_token(headers, b"sec-websocket-version", b"13") or not _is_key(key):
        exchange.respond(400, (*TEXT, _VERSION), b"Bad Request\n")
    else:
        fields = [
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Accept", generate_accept_token(key)),
        ]
        if subprotocol is not None:
            fields.append((b"Sec-WebSocket-Protocol", subprotocol))
        return _Handshake(exchange, fields, lambda on_lost: WebSocketConnection(handler, request, limits, on_lost))
    return None


def _has_token(headers: Metadata, name: bytes, token: bytes) -> bool:
    """Look for a token, in any case, in the lists of all fields of a name."""
    return any(
        known == name and token in (part.strip().lower() for part in value.split(b","))
        for known, value in headers.pairs
    )


def _is_key(key: bytes) -> bool:
    try:
        return len(b64decode(key, validate=True)) == _KEY_BYTES
    except binascii.Error:
        return False


class _Handshake:
    """Takes the body of the request, which must be empty, and switches behind it."""

    def __init__(
        self, exchange: Exchange, fields: Fields, successor: Callable[[Callable[[], None]], asyncio.Protocol]
    ) -> None:
        self._exchange = exchange
        self._fields = fields
        self._successor = successor

    @property
    def pending_bytes(self) -> int:
        """Nothing."""
        return 0

    def data(self, _data: bytes) -> None:
        """Refuse it."""
        self._exchange.respond(400, (*TEXT, _VERSION), b"Bad Request\n")

    def end(self) -> None:
        """Switch."""
        if not self._exchange.is_done and self._exchange.switch is not None:
            self._exchange.switch(self._exchange, self._fields, self._successor)


class WebSocketConnection(asyncio.Protocol):
    """One client.

    Args:
        on_lost: Called once when the connection is gone.
    """

    def __init__(
        self, handler: HttpHandler, request: HttpRequest, limits: TransportLimits, on_lost: Callable[[], None]
    ) -> None:
        self._handler = handler
        self._request = request
        self._limits = limits
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._guard = Guard(limits, self._loop.time)
        self._frames = Connection(ConnectionType.SERVER)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._receiver: BodyReceiver | None = None
        self._held = bytearray()
        """What came while the rest of what had come before was planned."""
        self._is_planned = False
        self._message = bytearray()
        self._fragments = 0
        """How many frames of the message have come."""
        self._message_at: float | None = None
        """When it began."""
        self._has_message = False
        """Whether one was complete."""
        self._is_closing = False
        """Whether our close is sent: no message follows it."""
        self._is_deaf = False
        """Whether nothing is read any more of what comes: their close came, or what is no frame."""
        self._is_draining = False
        self._is_reading = True
        self._stall: Stall | None = None
        self._heard_at = self._since = self._loop.time()
        self._pinged_at: float | None = None
        self._left_bytes = 0
        self._memory = Memory(limits)

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the exchange."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITABLE_BYTES)
        if self._transport.get_write_buffer_size() > WRITABLE_BYTES:
            self.pause_writing()  # by answers to what came before the handshake
        exchange = self._exchange = Exchange(self, self._request)
        try:
            receiver = self._handler(exchange)
        except Exception:  # noqa: BLE001 - ends this connection, and no other
            self._fail()
        else:
            self._receiver = None if exchange.is_done else receiver

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._heard_at, self._pinged_at = self._loop.time(), None
        if self._is_deaf:
            return
        if self._is_planned:
            self._held += data
            self._set_reading()
        else:
            self._advance(data)

    def _advance(self, data: bytes) -> None:
        """Carry out the frames that are complete, so many at a time."""
        left = self._limits.http_turn_messages
        try:
            self._frames.receive_data(data)
            while not self._is_deaf and left:
                event = next(self._frames.events(), None)
                if event is not None:
                    self._take(event)
                    left -= 1
                elif self._held:
                    self._frames.receive_data(self._take_held())  # I3: not before what is there is carried out
                else:
                    break
        except ProtocolError as error:
            self._break_off(CloseReason.POLICY_VIOLATION, error.reason)
        except Exception:  # noqa: BLE001 - ends this connection, and no other
            self._fail()
        if self._is_deaf:
            self._take_held()
        elif not left:
            self._is_planned = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_planned = False
        if self._transport is not None and not self._is_deaf:
            self._advance(b"")

    def _take_held(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        self._set_reading()
        return held

    def eof_received(self) -> bool:
        """The client has gone without a word."""
        return False

    def pause_writing(self) -> None:
        """The client does not read, so nothing is read from it that would be answered with more."""
        self._stall = Stall(self._loop.time(), self.queued_bytes)
        self._set_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stall = None
        self._memory.requeue(self.queued_bytes)
        self._set_reading()
        if self._exchange is not None and self._exchange.on_writable is not None:
            self._exchange.on_writable()

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell who answers."""
        self._transport = None
        self._drop_exchange()
        self._memory.requeue(0)
        self._on_lost()

    # The port's calls

    def drain(self) -> None:
        """End what has no end of its own; let what has be answered."""
        self._is_draining = True
        exchange = self._exchange
        if exchange is not None and (exchange.is_open_ended or not self._has_message):
            self._break_off(CloseReason.GOING_AWAY, "the server stops")

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def look_after(self, now: float) -> None:
        """End what takes too long."""
        limits = self._limits
        is_open_ended = self._exchange is not None and self._exchange.is_open_ended
        if self._is_closing:
            queued = self.queued_bytes
            if queued != self._left_bytes:
                self._left_bytes, self._since = queued, now
            elif now - self._since > (limits.http_stall_seconds if queued else limits.http_linger_seconds):
                self._cut("http_stall_seconds" if queued else "http_linger_seconds")
        elif self._stall is not None:
            if not is_open_ended and self._stall.has_lasted(now, limits.http_stall_seconds, self.queued_bytes):
                self._cut("http_stall_seconds")
        elif self._message_at is not None:
            if now - self._message_at > limits.websocket_message_seconds:
                limits.cuts.note("websocket_message_seconds")
                self._break_off(CloseReason.POLICY_VIOLATION, "the message takes too long")
        elif not is_open_ended and not self._has_message:
            if now - self._since > limits.http_body_seconds:
                limits.cuts.note("http_body_seconds")
                self._break_off(CloseReason.POLICY_VIOLATION, "the request takes too long")
        elif self._pinged_at is not None:
            if now - self._pinged_at > limits.keepalive_timeout_seconds:
                self._cut("keepalive_timeout_seconds")
        elif now - self._heard_at > limits.keepalive_seconds:
            self._pinged_at = now
            self._send(Ping())

    def _cut(self, limit: str) -> None:
        """End the connection at once, as it has passed a limit."""
        self._limits.cuts.note(limit)
        self.abort()

    # Reading

    def _take(self, event: Event) -> None:
        """Carry out an event."""
        if isinstance(event, CloseConnection):
            self._take_close(event)
        elif self._is_closing:
            pass  # it crossed our close
        elif isinstance(event, TextMessage | BytesMessage):
            self._add(event)
        elif isinstance(event, Ping):
            self._guard.note_control()
            self._send(event.response())
        elif isinstance(event, Pong):
            self._guard.note_control()

    def _add(self, event: TextMessage | BytesMessage) -> None:
        """Add to the message, and pass it on if it is complete."""
        if self._message_at is None:
            self._message_at = self._loop.time()
        data = event.data.encode() if isinstance(event.data, str) else event.data
        self._message += data
        self._fragments += event.frame_finished
        limits = self._limits
        passed = self._memory.receive(len(data))
        if len(self._message) > limits.http_body_bytes_max:
            passed = "http_body_bytes_max"
        elif self._fragments > limits.websocket_fragments_max:
            passed = "websocket_fragments_max"
        if passed is not None:
            limits.cuts.note(passed)
            self._break_off(CloseReason.MESSAGE_TOO_BIG, "the message is too big")
        elif event.message_finished:
            self._message += b"\n"
            message = bytes(self._message)
            self._forget_message()
            self._has_message = True
            if self._receiver is not None:
                self._receiver.data(message)

    def _forget_message(self) -> None:
        self._memory.receive(-self._memory.received)
        self._message.clear()
        self._fragments = 0
        self._message_at = None

    def _take_close(self, event: CloseConnection) -> None:
        """End: they closed, or what came is no frame."""
        state = self._frames.state
        if not self._is_closing and state is ConnectionState.OPEN:
            self._break_off(event.code, event.reason or "")
            return
        self._is_deaf = True
        self._drop_exchange()
        if not self._is_closing:
            self._close(event.code)
        if self._transport is not None:
            self._transport.close()

    def _set_reading(self) -> None:
        """Stop reading while the client does not, or much waits; not when all that is left is to wait for its close."""
        is_behind = self._exchange is not None and self._exchange.is_behind
        is_reading = (self._stall is None and not is_behind) or self._is_closing
        is_reading = is_reading and len(self._held) <= self._limits.http_pipelined_bytes_max
        if is_reading != self._is_reading and self._transport is not None and not self._transport.is_closing():
            self._is_reading = is_reading
            if is_reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # Writing: for the exchange

    @property
    def queued_bytes(self) -> int:
        """What waits to be taken by the client."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send_head(self, exchange: Exchange, _status: int, _fields: Fields) -> None:
        """Note that the answer begins: its head has no place in a WebSocket."""
        exchange.has_begun = True

    def send_part(self, part: bytes) -> None:
        """Send a message, without the end of the line that it is."""
        self._send(TextMessage(part.removesuffix(b"\n").decode()))

    def send_end(self) -> None:
        """End the answer, and with it the connection."""
        self._exchange = self._receiver = None
        self._close(CloseReason.GOING_AWAY if self._is_draining else CloseReason.NORMAL_CLOSURE)

    def flush_soon(self, _count: int) -> None:
        """Nothing was held back. Give up a client that leaves too much unread."""
        passed = self._memory.requeue(self.queued_bytes)
        if passed is not None:
            self._cut(passed)

    def pace(self) -> None:
        """Read on, or no more for now."""
        self._set_reading()

    def _send(self, event: Event) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing() and not self._is_closing:
            transport.write(bytes(self._frames.send(event)))

    # Ending

    def _drop_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        self._receiver = None
        self._forget_message()
        if exchange is not None:
            exchange.cancel()

    def _fail(self) -> None:
        """End the connection by an error of ours, which is being handled."""
        _log.exception("a WebSocket of %s ended by an error of ours", self._request.peer.address)
        self._break_off(CloseReason.INTERNAL_ERROR, "internal error")

    def _break_off(self, code: int, reason: str) -> None:
        """Close whatever is under way, and wait no longer for what was begun."""
        self._is_deaf = code != CloseReason.GOING_AWAY  # their answer to that one is a frame as any other
        if self._is_deaf:
            self._limits.cuts.note_told("websocket", str(int(code)))
        self._drop_exchange()
        self._close(code, reason)
        transport = self._transport
        # With bytes unread, closing both halves would reset what the client has not read yet.
        if self._is_deaf and transport is not None and not transport.is_closing() and transport.can_write_eof():
            transport.write_eof()

    def _close(self, code: int, reason: str = "") -> None:
        """Send our close, if it is not sent. Then theirs is waited for, but not for long."""
        self._send(CloseConnection(code, reason))
        if not self._is_closing:
            self._is_closing = True
            self._since = self._loop.time()
            self._set_reading()
