"""What an HTTP/2 connection and its streams need of each other."""

from __future__ import annotations

from typing import Any, Protocol

from mvccstore.server.transport.deadlines import Deadlines
from mvccstore.server.transport.head import Head, PageHead
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.unfinished import Request


class WireStream(Protocol):
    """What a connection does with a stream, whatever it carries."""

    number: int
    is_half_closed: bool

    @property
    def head(self) -> Head | PageHead:
        """What it began with."""
        ...

    @property
    def can_pump(self) -> bool:
        """Whether something waits that the stream's own window allows."""
        ...

    def begin_call(self) -> None:
        """Begin with what the head of the request says."""
        ...

    def receive(self, payload: bytes, *, is_end: bool, frame_bytes: int) -> int:
        """Take the payload of a DATA frame; `frame_bytes` counts its padding too.

        Returns: How many of its last bytes are left for another slice: they come again, as a frame. Nothing is counted
            of them, nor that it is the end.
        """
        ...

    def widen(self, increment: int) -> None:
        """Let more be sent; also less, if the client has changed its settings."""
        ...

    def pump(self) -> int:
        """Send one frame of what waits; return its size."""
        ...

    def cancel(self) -> None:
        """The client has reset the stream, or is gone: nothing more can be sent."""
        ...


class Wire(Protocol):
    """What a stream needs of its connection."""

    limits: TransportLimits
    deadlines: Deadlines
    send_window: int
    messages_left: int
    frame_bytes_max: int
    owes_table_size: bool
    is_writable: bool
    has_answered: bool
    out: list[bytes | memoryview]

    def flush_soon(self) -> None:
        """Have `out` written at the end of this turn of the loop."""
        ...

    def queue(self, stream: WireStream, count: int) -> None:
        """Note that so many bytes of a stream wait, and have it pumped when that is possible."""
        ...

    def unqueue(self, count: int) -> None:
        """Note that so many bytes wait no more."""
        ...

    def forget(self, stream: WireStream) -> None:
        """Note that a stream has sent its last frame."""
        ...

    def later(self, callback: Any) -> None:
        """Have something called in the next turn of the loop."""
        ...

    def headers_frame(self, flags: int, number: int, block: bytes) -> bytes:
        """Pack a HEADERS frame, with what HPACK owes to the client before it."""
        ...

    def hold_bytes(self, count: int) -> None:
        """Count bytes of requests that are not complete, or, negative, are now."""
        ...

    def await_rest(self, stream: Request) -> None:
        """Note that a stream is given its time, from now on, for the rest of its request."""
        ...

    def end_rest(self, number: int) -> None:
        """Note that it has come, or is not wanted."""
        ...

    def begin_work(self, cost: int) -> None:
        """Count work of a call that is under way."""
        ...

    def end_work(self, cost: int) -> None:
        """Count it no more."""
        ...
