"""A request for a page or of the gateway, and the answer to it: the same over HTTP/1.1 and over HTTP/2.

Invariants:

* I1. An exchange ends once: by `respond`, by `finish`, or because the client has gone. Only then, and once,
  `on_cancel` is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from mvccstore.server.transport.http1_head import HttpRequest

Fields = Sequence[tuple[bytes, bytes]]
TEXT: Fields = ((b"Content-Type", b"text/plain; charset=utf-8"), (b"X-Content-Type-Options", b"nosniff"))
"""The fields of an answer for people."""


class BodyReceiver(Protocol):
    """Takes the body of a request. What it raises ends the connection, over HTTP/2 the stream."""

    @property
    def pending_bytes(self) -> int:
        """How much it keeps, as what it is part of is not complete."""
        ...

    def data(self, data: bytes, /) -> None:
        """Take the next bytes."""
        ...

    def end(self) -> None:
        """Note that the body is complete."""
        ...


class Carrier(Protocol):
    """What an exchange needs of its connection."""

    @property
    def queued_bytes(self) -> int:
        """What waits to be taken by the client."""
        ...

    def send_head(self, exchange: Exchange, status: int, fields: Fields, /) -> None:
        """Send the head of an answer."""
        ...

    def send_part(self, part: bytes, /) -> None:
        """Send bytes of its body."""
        ...

    def send_end(self) -> None:
        """End the answer."""
        ...

    def flush_soon(self, count: int, /) -> None:
        """Write what has been sent by the end of this turn of the loop; at once if `count` bytes are many."""
        ...

    def pace(self) -> None:
        """Read on, or no more for now, as `is_behind` of the exchange is another."""
        ...


Successor = Callable[[Callable[[], None]], asyncio.Protocol]
"""Makes the protocol that a connection goes on with, a `Connection` too. It calls its argument when it is lost."""


class Exchange:
    """A request, and the answer to it. Used on the loop's thread only; what is sent after the end is dropped."""

    __slots__ = (
        "_connection",
        "fields",
        "has_begun",
        "is_behind",
        "is_done",
        "is_open_ended",
        "on_cancel",
        "on_writable",
        "request",
        "switch",
    )

    def __init__(self, connection: Carrier, request: HttpRequest) -> None:
        self._connection = connection
        self.request = request
        self.switch: Callable[[Exchange, Fields, Successor], None] | None = None
        """Answers with 101, once the body has ended; None where that is impossible."""
        self.fields: Fields = ()
        """What the answer begins with, whatever it will be."""
        self.is_done = False
        self.has_begun = False
        """Whether a part of the answer has been sent."""
        self.is_open_ended = False
        """Set by a handler whose request or answer may take for ever. The end of the client's input is its end."""
        self.is_behind = False
        """Whether who takes the body has more of it than is carried out in a turn of the loop."""
        self.on_cancel: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        """Called when the client reads again after it did not."""

    @property
    def queued_bytes(self) -> int:
        """How much of what was sent the client has not taken yet."""
        return 0 if self.is_done else self._connection.queued_bytes

    def set_behind(self, *, is_behind: bool) -> None:
        """Say whether what has come of the body is to be carried out before more is read. May still be passed on."""
        if is_behind is not self.is_behind:
            self.is_behind = is_behind
            self._connection.pace()

    def respond(self, status: int, fields: Fields, body: bytes) -> None:
        """Send the whole answer. Its length and date are added."""
        if not self.is_done and not self.has_begun:
            length = (b"Content-Length", b"%d" % len(body))
            self._connection.send_head(self, status, [*fields, length])
            if body and self.request.method != "HEAD":
                self._connection.send_part(body)
            self.finish()

    def begin(self, status: int, fields: Fields) -> None:
        """Begin an answer of unknown length."""
        if not self.is_done and not self.has_begun:
            self._connection.send_head(self, status, fields)
            self._connection.flush_soon(0)

    def write(self, part: bytes) -> None:
        """Send more of an answer that was begun. Each part is one chunk: clients rely on that for lines."""
        if not self.is_done and part and self.request.method != "HEAD":
            self._connection.send_part(part)
            self._connection.flush_soon(len(part))

    def finish(self) -> None:
        """End an answer that was begun."""
        if not self.is_done:
            self.is_done = True
            self.on_cancel = self.on_writable = None
            self._connection.send_end()

    def cancel(self) -> None:
        """The client has gone. For the connection."""
        if not self.is_done:
            self.is_done = True
            cancel, self.on_cancel, self.on_writable = self.on_cancel, None, None
            if cancel is not None:
                cancel()


HttpHandler = Callable[[Exchange], BodyReceiver | None]
"""Begins to serve a request. What it raises is answered with 500."""
