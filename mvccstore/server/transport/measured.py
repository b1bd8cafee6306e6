"""A call over HTTP/2 whose head says how long its request is."""

from __future__ import annotations

from mvccstore.server.transport.call import Peer, Router
from mvccstore.server.transport.frames import ErrorCode, StreamError
from mvccstore.server.transport.head import Head
from mvccstore.server.transport.stream import Stream, Wire


class MeasuredStream(Stream):
    """A call whose head says how long its request is (RFC 9113 8.1.1)."""

    __slots__ = ("_left",)

    def __init__(self, router: Router, wire: Wire, head: Head, number: int, peer: Peer, send_window: int) -> None:
        super().__init__(router, wire, head, number, peer, send_window)
        self._left = head.content_length or 0

    def receive(self, payload: bytes, *, is_end: bool, frame_bytes: int) -> None:
        """Take it, if that is as much as was said."""
        self._left -= len(payload)
        if self._left < 0 or (is_end and self._left):
            raise StreamError(ErrorCode.PROTOCOL_ERROR, "a request of another length than its content-length")
        super().receive(payload, is_end=is_end, frame_bytes=frame_bytes)
