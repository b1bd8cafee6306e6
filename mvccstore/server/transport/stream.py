"""One call over HTTP/2: messages out of DATA frames, and answers into them.

What it owns: what has come of a message that is not complete, what waits to be sent, and the stream's two windows.

Invariants:

* I1. Bytes go out in the order in which they were sent, at most as many as both windows allow.
* I2. `_queue` is empty unless a window or the client's reading holds it up; so an answer to a client that keeps up is
  written in one piece, with its head and its trailers: the short way of `reply`.
* I3. A stream is known to its connection until its last frame is written, or it was reset. After that it puts
  nothing into `out`.
* I4. The connection knows it as unfinished from the head of a unary call to its end, and while a stream has `_incoming`.
* I5. The connection's counts are the sums of what its streams have in `_queue`, and in `_incoming` and `_held_request`.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from mypy_extensions import mypyc_attr

from mvccstore.server.transport.blocks import GRPC_HEAD, OK_STATUS, literal, refusal_block, status_block
from mvccstore.server.transport.call import WRITABLE_BYTES, Call, Peer, Receiver, Router
from mvccstore.server.transport.compression import DEFLATED_BYTES_MAX, deflated, inflated
from mvccstore.server.transport.deadlines import Timed
from mvccstore.server.transport.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    WINDOW_BYTES_MAX,
    ErrorCode,
    StreamError,
    window_frame,
)
from mvccstore.server.transport.head import Head
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.server.transport.wire import Wire

MESSAGE_HEAD_BYTES: Final = 5
"""Before each message: whether it is compressed, and its length."""
_NO_REQUEST = "cardinality violation: received no request message from non-client-streaming RPC"
_JOINED_BYTES_MAX: Final = 65_536


def _after_length(kind: int, flags: int, block: bytes) -> tuple[bytes, bytes]:
    """Return what stands before and after the stream id in a frame."""
    return len(block).to_bytes(3) + bytes((kind, flags)), block


_HEAD: Final = _after_length(HEADERS, END_HEADERS, GRPC_HEAD)
_GZIP_HEAD: Final = _after_length(HEADERS, END_HEADERS, GRPC_HEAD + literal(b"grpc-encoding", b"gzip"))
_OK_TRAILERS: Final = _after_length(HEADERS, END_HEADERS | END_STREAM, OK_STATUS)
_HEAD_BEFORE: Final = _HEAD[0]
_HEAD_BLOCK: Final = _HEAD[1]
_OK_BEFORE: Final = _OK_TRAILERS[0]
_OK_BLOCK: Final = _OK_TRAILERS[1]
_DATA_FLAGS: Final = bytes((DATA, 0))


@mypyc_attr(allow_interpreted_subclasses=True)
class Stream(Call):
    """One call over HTTP/2."""

    __slots__ = (
        "_held_request",
        "_id",
        "_incoming",
        "_queue",
        "_queued",
        "_receive_window",
        "_receiver",
        "_request",
        "_trailers",
        "_was_unwritable",
        "_wire",
        "bucket",
        "has_head",
        "head",
        "is_half_closed",
        "number",
        "send_window",
    )

    def __init__(self, router: Router, wire: Wire, head: Head, number: int, peer: Peer, send_window: int) -> None:
        assert head.method is not None
        super().__init__(router, head.method, head.metadata, peer)
        self._wire = wire
        self.number = number
        """The stream's id."""
        self._id = number.to_bytes(4)
        self.head = head
        self.send_window = send_window
        self._receive_window = wire.limits.window_bytes
        self.is_half_closed = False
        """The client has ended its half."""
        self.has_head = False
        self._incoming: bytearray | None = None
        self._request: bytes | None = None
        self._held_request = 0
        """The size of `_request`, if it waits for the end of the client's half."""
        self._receiver: Receiver | None = None
        self._queue: deque[bytes | memoryview] | None = None
        self._queued = 0
        self._trailers: bytes | None = None
        self._was_unwritable = False
        self.bucket: set[Timed] | None = None

    # Receiving

    def begin_call(self) -> None:
        """Start what a call starts with: its deadline, and the receiver of a stream."""
        timeout = self.head.timeout
        if timeout is not None:
            if timeout <= 0:
                self.expire()
                return
            self._wire.deadlines.add(self, timeout)
        if self.method.stream_handler is not None:
            self._receiver = self.open()
        elif not self.is_half_closed:
            self._wire.await_rest(self)

    def serve_whole(self, message: bytes) -> None:
        """Serve a unary call without a deadline, all of which has come."""
        self.method.counts.received_bytes += len(message)
        self.is_half_closed = True
        try:
            request = self._decode(message)
        except RpcError as error:
            self.break_off(error)
            return
        self.serve(request)

    def receive(self, payload: bytes, *, is_end: bool, frame_bytes: int) -> int:
        """Take the payload of a DATA frame, or as many messages of it as there may be; return what is left."""
        self._receive_window -= frame_bytes
        if self._receive_window < 0:
            raise StreamError(ErrorCode.FLOW_CONTROL_ERROR, "more data than the window allows")
        if is_end:
            self.is_half_closed = True
        left = 0
        if self.is_done:
            return left
        try:
            if self._incoming is None and len(payload) >= MESSAGE_HEAD_BYTES:
                length = int.from_bytes(payload[1:MESSAGE_HEAD_BYTES])
                if length == len(payload) - MESSAGE_HEAD_BYTES and length <= self._wire.limits.message_bytes_max:
                    self._take(payload[0], payload[MESSAGE_HEAD_BYTES:])  # the common case: one whole message
                    payload = b""
            if payload:
                left = self._assemble(payload)
                if left:
                    self._receive_window += left
                    is_end = self.is_half_closed = False
            if is_end:
                self._end()
            elif not self.is_done:
                if self._request is not None and not self._held_request:
                    self._wire.hold_bytes(len(self._request))
                    self._held_request = len(self._request)
                if self._receive_window < self._wire.limits.window_bytes // 2:
                    self._grant()
        except RpcError as error:
            self._wire.end_rest(self.number)
            self.break_off(error)
        return left

    def _assemble(self, payload: bytes) -> int:
        """Take the messages that are complete, as far as the slice goes; return how many bytes of complete ones are left."""
        messages_left = self._wire.messages_left
        if not messages_left:
            return len(payload)
        self._wire.hold_bytes(len(payload))
        incoming = self._incoming
        is_begun = incoming is not None
        if incoming is None:
            incoming = self._incoming = bytearray()
        incoming += payload
        position = left = 0
        limit = self._wire.limits.message_bytes_max
        try:
            while len(incoming) - position >= MESSAGE_HEAD_BYTES and not self.is_done:
                length = int.from_bytes(incoming[position + 1 : position + MESSAGE_HEAD_BYTES])
                if length > limit:
                    message = f"grpc: received message larger than max ({length} vs. {limit})"
                    raise RpcError(Code.RESOURCE_EXHAUSTED, message, "message_bytes_max")
                stop = position + MESSAGE_HEAD_BYTES + length
                if stop > len(incoming):
                    break
                if not messages_left:
                    left = len(incoming) - position  # all of this frame: at least one message has gone before
                    break
                messages_left -= 1
                flag, message_bytes = incoming[position], bytes(incoming[position + MESSAGE_HEAD_BYTES : stop])
                position = stop
                self._take(flag, message_bytes)
        finally:
            self._wire.messages_left = messages_left
            if self._incoming is incoming:  # else the call has ended, and let go of all of it
                self._wire.hold_bytes(-position - left)
                del incoming[: position + left]
                if not incoming:
                    self._incoming = None
                if self._receiver is None:
                    pass  # one message, and its time began with the head
                elif not incoming:
                    self._wire.end_rest(self.number)
                elif position or not is_begun:
                    self._wire.await_rest(self)
        return left

    def _take(self, flag: int, message: bytes) -> None:
        if flag:
            message = inflated(flag, message, self._wire.limits, is_announced=self.head.is_gzip)
        counts = self.method.counts
        counts.received_bytes += len(message)
        if self.method.handler is not None:
            if self._request is not None:
                raise RpcError(Code.INTERNAL, "Too many messages for a unary call")
            self._request = message
        elif self._receiver is not None:
            request = self._decode(message)
            counts.received += 1
            try:
                self._receiver.message(request)
            except Exception as error:  # noqa: BLE001 - ends the call
                self.break_off(error)

    def _decode(self, message: bytes) -> Any:
        try:
            return self.method.decode(message)
        except Exception as error:
            raise RpcError(Code.INTERNAL, f"grpc: error unmarshalling request: {error}") from error

    def _end(self) -> None:
        self._wire.end_rest(self.number)
        if self._incoming:
            raise RpcError(Code.INTERNAL, "unexpected EOF")
        if self.method.handler is None:
            if self._receiver is not None and not self.is_done:
                try:
                    self._receiver.end()
                except Exception as error:  # noqa: BLE001 - ends the call
                    self.break_off(error)
            return
        if self._request is None:
            raise RpcError(Code.INTERNAL, _NO_REQUEST)
        request, self._request = self._decode(self._request), None
        self._unhold_request()
        self.serve(request)

    def _unhold_request(self) -> None:
        if self._held_request:
            self._wire.hold_bytes(-self._held_request)
            self._held_request = 0

    def _grant(self) -> None:
        """Let the client send more, unless it does not take what it is answered."""
        if self.is_writable:
            limit = self._wire.limits.window_bytes
            self._wire.out.append(window_frame(self.number, limit - self._receive_window))
            self._wire.flush_soon()
            self._receive_window = limit

    # Ending without the service's doing

    def expire(self) -> None:
        """The deadline has passed."""
        if not self.is_done:
            self._drop_queue()  # its client does not want it any more
            self.break_off(RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded"))

    @property
    def is_held_back(self) -> bool:
        """Whether the client was not let send more, as it does not take what it is answered."""
        return self._receive_window < self._wire.limits.window_bytes // 2

    def give_up(self) -> None:
        """The client has not sent the rest of its request in time."""
        assert not self.is_done
        self.break_off(RpcError(Code.DEADLINE_EXCEEDED, "the request takes too long", "message_seconds"))

    def cancel(self) -> None:
        """The client has reset the stream, or is gone: nothing more can be sent."""
        was_done, cancel = self.is_done, self.on_cancel
        self.is_done = True
        self._release()
        self._drop_queue()
        self._trailers = None
        if not was_done:
            self._count_end(Code.CANCELLED)
            self._tell(cancel)

    def _drop_queue(self) -> None:
        if self._queued:
            self._wire.unqueue(self._queued)
            self._queued = 0
        self._queue = None

    def _release(self) -> None:
        """Let go of what only a call under way needs."""
        self.on_cancel = self.on_writable = None
        self._receiver = None
        self._request = None
        self._unhold_request()
        if self._waiter is not None:
            self._wake_waiter()
        if self.bucket is not None:
            self._wire.deadlines.remove(self)
        if self._incoming:
            self._wire.hold_bytes(-len(self._incoming))
            self._incoming = None
            self._wire.end_rest(self.number)

    # Sending

    def begin_work(self, cost: int = 1) -> None:
        """Note it at the connection."""
        self._wire.begin_work(cost)

    def end_work(self, cost: int = 1) -> None:
        """Note it there."""
        self._wire.end_work(cost)

    @property
    def queued_bytes(self) -> int:
        """How much waits for a window, or for the client to read."""
        return self._queued

    def reply(self, message: bytes) -> None:
        """Send the only answer and end the call."""
        if self.is_done:
            return
        wire = self._wire
        size = len(message) + MESSAGE_HEAD_BYTES
        if (
            wire.is_writable
            and size <= wire.send_window
            and size <= self.send_window
            and size <= wire.frame_bytes_max
            and not self._queued
            and not self.has_head
            and not self.head.is_gzip
            and not wire.owes_table_size
        ):
            wire.send_window -= size
            number = self._id
            wire.out += (
                _HEAD_BEFORE,
                number,
                _HEAD_BLOCK,
                size.to_bytes(3),
                _DATA_FLAGS,
                number,
                b"\0",
                (size - MESSAGE_HEAD_BYTES).to_bytes(4),
                message,
                _OK_BEFORE,
                number,
                _OK_BLOCK,
            )
            self.is_done = True
            counts = self.method.counts
            counts.sent_bytes += size - MESSAGE_HEAD_BYTES
            if counts.seconds is None and self.began_at == 0:  # as `_count_end`, without two calls
                counts.succeeded += 1
                self.began_at = -1.0
            else:
                self._count_end(0)
            wire.has_answered = True
            self._release()
            wire.forget(self)
            wire.flush_soon()
            return
        self.send(message)
        self.finish()

    def send(self, message: bytes) -> None:
        """Send one of several answers."""
        if self.is_done:
            return
        counts = self.method.counts
        counts.sent += 1
        counts.sent_bytes += len(message)
        flag = b"\0"
        if self.head.is_gzip and len(message) <= DEFLATED_BYTES_MAX:
            flag, message = b"\1", deflated(message)
        self._send_head()
        if len(message) <= _JOINED_BYTES_MAX:
            self._write(flag + len(message).to_bytes(4) + message)
        else:
            self._write(flag + len(message).to_bytes(4))
            self._write(message)

    def begin(self, length: int) -> None:
        """Begin an answer whose parts follow. It is sent as it is, whatever compression was asked for."""
        if not self.is_done:
            counts = self.method.counts
            counts.sent += 1
            counts.sent_bytes += length
            self._send_head()
            self._write(b"\0" + length.to_bytes(4))

    def send_part(self, part: bytes) -> None:
        """Send the next bytes of the answer that was begun."""
        if not self.is_done:
            self._write(part)

    def finish(self) -> None:
        """End the call with OK."""
        if not self.is_done:
            self._send_head()
            self._count_end(0)
            self._finish(OK_STATUS)

    def fail(self, error: RpcError) -> None:
        """End the call with an error."""
        if self.is_done:
            return
        self._count_end(error.code)
        if self.has_head:
            self._finish(status_block(error.code, error.message))
        else:
            self.has_head = True
            self._finish(refusal_block(error))

    def _send_head(self) -> None:
        if not self.has_head:
            self.has_head = True
            before, block = _GZIP_HEAD if self.head.is_gzip else _HEAD
            if self._wire.owes_table_size:
                self._wire.out.append(self._wire.headers_frame(0, self.number, block))
            else:
                self._wire.out += (before, self._id, block)
            self._wire.has_answered = True
            self._wire.flush_soon()

    def _write(self, part: bytes) -> None:
        wire = self._wire
        wire.has_answered = True
        size = len(part)
        if not size:
            return
        if (
            wire.is_writable
            and not self._queued
            and size <= wire.send_window
            and size <= self.send_window
            and size <= wire.frame_bytes_max
        ):
            wire.send_window -= size
            self.send_window -= size
            wire.out += (size.to_bytes(3), _DATA_FLAGS, self._id, part)
            wire.flush_soon()
        else:
            if self._queue is None:
                self._queue = deque()
            self._queue.append(part)
            self._queued += size
            if self._queued > WRITABLE_BYTES:
                self._was_unwritable = True
            wire.queue(self, size)

    def _finish(self, trailers: bytes) -> None:
        self.is_done = True
        self._wire.has_answered = True
        self._release()
        if self._queued:
            self._trailers = trailers
        else:
            self._send_trailers(trailers)

    def _send_trailers(self, block: bytes) -> None:
        self._trailers = None
        self._wire.out.append(self._wire.headers_frame(END_STREAM, self.number, block))
        self._wire.forget(self)
        self._wire.flush_soon()

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
        """Send one frame of what waits; return its size. For the connection, with room in its window."""
        wire, queue = self._wire, self._queue
        assert queue
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
        wire.out += (size.to_bytes(3), _DATA_FLAGS, self._id, part)
        if not self._queued and self._trailers is not None:
            self._send_trailers(self._trailers)
        elif self._was_unwritable and self._queued <= WRITABLE_BYTES:
            self._was_unwritable = False
            if self._receive_window < wire.limits.window_bytes // 2 and not self.is_done:
                self._grant()
                if self._incoming:
                    wire.await_rest(self)  # anew: until now it could not send it
            if self.on_writable is not None:
                wire.later(self._wake)
        return size

    def _wake(self) -> None:
        self._tell(self.on_writable)  # None, if the call has ended since
