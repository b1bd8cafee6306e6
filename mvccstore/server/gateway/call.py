"""A call that came as JSON over HTTP/1.1.

Invariants, beside those of `Call`:

* I1. Answers are encoded one after the other, and sent in the order in which the service gave them; the end is sent
  after the last. What is larger than `INLINE_BYTES` is encoded by a thread of the loop's executor, so that the
  loop does not wait: JSON costs 20 us for each key, and a range may have a million.
* I2. An answer of a stream is one line and one chunk, `{"result":...}`: clients such as etcd3gw parse chunk by chunk.
  A stream that fails before its first answer fails with an HTTP status, later with a line `{"error":...}`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from google.protobuf.message import Message

from mvccstore.server.gateway.failures import JSON, Failures
from mvccstore.server.messages import MethodType
from mvccstore.server.messages.json import to_json
from mvccstore.server.transport.call import Call, Metadata, Method, Router
from mvccstore.server.transport.exchange import Exchange
from mvccstore.server.transport.status import Code, RpcError

_log = logging.getLogger("mvccstore.server")

INLINE_BYTES = 4 * 1024
"""Up to this size messages are encoded and decoded on the loop's thread, as protobuf or JSON."""

_FOUND = (JSON, (b"Grpc-Metadata-Content-Type", b"application/grpc"))


class GatewayCall(Call):
    """One call over an exchange."""

    __slots__ = (
        "_exchange",
        "_failures",
        "_is_encoding",
        "_is_streaming",
        "_left",
        "_loop",
        "_parts",
        "_queue",
        "_queued",
        "_reply",
        "_response",
        "_timer",
        "_was_unwritable",
        "_when_sent",
        "_when_writable",
    )

    def __init__(
        self,
        router: Router,
        method: Method,
        metadata: Metadata,
        exchange: Exchange,
        types: MethodType,
        failures: Failures,
    ) -> None:
        super().__init__(router, method, metadata, exchange.request.peer)
        self._exchange = exchange
        self._failures = failures
        self._response: type[Message] = types.response
        self._is_streaming = types.server_streaming
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._is_encoding = False
        self._was_unwritable = False
        self._when_sent: Callable[[], None] | None = None
        """What ends the answer, once all of it is encoded."""
        self._when_writable: Callable[[], None] | None = None
        self._reply: bytes | None = None
        """The answer of a unary call that was sent, but whose end was not."""
        self._parts: bytearray | None = None
        self._left = 0
        self._timer: asyncio.TimerHandle | None = None
        exchange.is_open_ended = types.server_streaming or types.client_streaming
        exchange.on_cancel = self._cancel
        exchange.on_writable = self._wake

    def set_timeout(self, seconds: float) -> None:
        """End the call with DEADLINE_EXCEEDED if it takes longer."""
        self._timer = self._loop.call_later(seconds, self._expire)

    def in_next_turn(self, callback: Callable[[], None]) -> None:
        """Have something called in a later turn of the loop: once the client takes what it is sent, or the call ends."""
        if self.is_writable or self.is_done:
            self._loop.call_soon(callback)
        else:
            self._when_writable = callback

    # Ending without the service's doing

    def _expire(self) -> None:
        if not self.is_done:
            self.break_off(RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded"))

    def _cancel(self) -> None:
        was_done, cancel = self.is_done, self.on_cancel
        self._release()
        self._queue.clear()
        self._queued = 0
        if not was_done:
            self._count_end(Code.CANCELLED)
            self._tell(cancel)

    def _release(self) -> None:
        self.is_done = True
        self.on_cancel = self.on_writable = None
        self._parts = None
        self._wake_waiter()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell_when_writable()

    # Sending

    @property
    def queued_bytes(self) -> int:
        """How much waits to be encoded, or for the client to read."""
        return self._queued + self._exchange.queued_bytes

    def reply(self, message: bytes) -> None:
        """Send the only answer and end the call."""
        self.send(message)
        self.finish()

    def send(self, message: bytes) -> None:
        """Send one of several answers."""
        if self.is_done:
            return
        self.method.counts.sent += 1
        if not self._is_streaming:
            self._reply = message
            return
        self._encode(message)
        if not self.is_writable:
            self._was_unwritable = True

    def begin(self, length: int) -> None:
        """Begin an answer whose parts follow. JSON cannot be made of parts: they are put together first."""
        if not self.is_done:
            self._parts, self._left = bytearray(), length
            self.send_part(b"")

    def send_part(self, part: bytes) -> None:
        """Add the next bytes of the answer that was begun."""
        if self.is_done:
            return
        assert self._parts is not None
        self._parts += part
        self._left -= len(part)
        assert self._left >= 0
        if not self._left:
            message, self._parts = bytes(self._parts), None
            self.send(message)

    def finish(self) -> None:
        """End the call with OK."""
        if self.is_done:
            return
        self._count_end(0)
        self._release()
        if self._is_streaming:
            self._end(self._finish_stream)
            return
        message, self._reply = self._reply, None
        if message is None:
            error = RpcError(Code.INTERNAL, "the call ended without an answer")
            self._end(lambda: self._failures.respond(self._exchange, error))
        else:
            self._encode(message)

    def fail(self, error: RpcError) -> None:
        """End the call with an error."""
        if self.is_done:
            return
        self._count_end(error.code)
        self._release()
        self._end(lambda: self._send_error(error))

    def refuse(self, error: Exception) -> None:
        """End the call with an error of its request; of a stream, too, the answer is not a line then."""
        self._is_streaming = False
        self.fail_with(error)

    def _finish_stream(self) -> None:
        self._exchange.begin(200, ())  # of an answer without any line, etcd does not say what it is
        self._exchange.finish()

    def _send_error(self, error: RpcError) -> None:
        exchange = self._exchange
        if not self._is_streaming:
            self._failures.respond(exchange, error)
            return
        exchange.begin(self._failures.status(error.code), [JSON])
        exchange.write(self._failures.line(error))
        exchange.finish()

    def _end(self, ending: Callable[[], None]) -> None:
        if self._is_encoding:
            self._when_sent = ending
        else:
            ending()

    # Encoding

    def _encode(self, message: bytes) -> None:
        if self._is_encoding or len(message) > INLINE_BYTES:
            self._queue.append(message)
            self._queued += len(message)
            self._encode_next()
        else:
            self._put(self._json(message))

    def _json(self, message: bytes) -> bytes:
        """Encode one answer; in a thread if it is large."""
        encoded = to_json(self._response.FromString(message))
        return b'{"result":' + encoded + b"}\n" if self._is_streaming else encoded

    def _encode_next(self) -> None:
        if self._queue and not self._is_encoding:
            self._is_encoding = True
            self._loop.run_in_executor(None, self._json, self._queue[0]).add_done_callback(self._take_encoded)

    def _take_encoded(self, future: asyncio.Future[bytes]) -> None:
        self._is_encoding = False
        if future.cancelled() or self._exchange.is_done:
            return
        self._queued -= len(self._queue.popleft())
        error = future.exception()
        if error is not None:
            _log.error("%s: an answer could not be encoded", self.method.path, exc_info=error)
            self._queue.clear()
            self._queued = 0
            self._cancel_by_us(RpcError(Code.INTERNAL, f"internal error: {type(error).__name__}"))
            return
        self._put(future.result())
        self._encode_next()
        if not self._is_encoding and self._when_sent is not None:
            self._when_sent()
        self._wake()

    def _cancel_by_us(self, error: RpcError) -> None:
        cancel = self.on_cancel
        self._release()
        self._when_sent = None
        self._send_error(error)
        self._tell(cancel)

    def _put(self, encoded: bytes) -> None:
        if self._is_streaming:
            self._exchange.begin(200, _FOUND)
            self._exchange.write(encoded)
        else:
            self._exchange.respond(200, _FOUND, encoded)

    def _tell_when_writable(self) -> None:
        if self._when_writable is not None:
            self._loop.call_soon(self._when_writable)
            self._when_writable = None

    def _wake(self) -> None:
        if self.is_writable:
            self._tell_when_writable()
        if self._was_unwritable and self.is_writable:
            self._was_unwritable = False
            self._tell(self.on_writable)
