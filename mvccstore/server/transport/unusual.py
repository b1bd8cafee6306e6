"""A call over HTTP/2 whose head says more than clients of gRPC do: how long its request is, or of what origin it is."""

from __future__ import annotations

from mvccstore.server.transport.blocks import GRPC_HEAD, literal, refusal_block
from mvccstore.server.transport.call import Peer, Router
from mvccstore.server.transport.frames import ErrorCode, StreamError
from mvccstore.server.transport.head import Head
from mvccstore.server.transport.status import RpcError
from mvccstore.server.transport.stream import Stream
from mvccstore.server.transport.wire import Wire


class UnusualStream(Stream):
    """A call whose head says how long its request is (RFC 9113 8.1.1), or whose answer says who may read it."""

    __slots__ = ("_left",)

    def __init__(self, router: Router, wire: Wire, head: Head, number: int, peer: Peer, send_window: int) -> None:
        super().__init__(router, wire, head, number, peer, send_window)
        self._left = head.content_length

    def receive(self, payload: bytes, *, is_end: bool, frame_bytes: int) -> int:
        """Take it, if that is as much as was said."""
        if self._left is not None:
            self._left -= len(payload)
            if self._left < 0 or (is_end and self._left):
                raise StreamError(ErrorCode.PROTOCOL_ERROR, "a request of another length than its content-length")
        left = super().receive(payload, is_end=is_end, frame_bytes=frame_bytes)
        if self._left is not None:
            self._left += left
        return left

    def reply(self, message: bytes) -> None:
        """Send the only answer and end the call."""
        self.send(message)
        self.finish()

    def fail(self, error: RpcError) -> None:
        """End the call with an error."""
        if self.is_done or self.has_head:
            super().fail(error)
            return
        self._count_end(error.code)
        self.has_head = True
        self._finish(refusal_block(error) + self.head.answer_block)

    def _send_head(self) -> None:
        if not self.has_head:
            self.has_head = True
            block = GRPC_HEAD + (literal(b"grpc-encoding", b"gzip") if self.head.is_gzip else b"")
            self._wire.out.append(self._wire.headers_frame(0, self.number, block + self.head.answer_block))
            self._wire.has_answered = True
            self._wire.flush_soon()
