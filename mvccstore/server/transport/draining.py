"""Ending an HTTP/2 connection without harm: calls under way are answered, new ones go elsewhere (RFC 9113 6.8).

GOAWAY of every stream there can be, PING      a client that reads it begins no more calls here
its answer, or a second later: GOAWAY of the last stream that came
the last call is answered: the connection is closed
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from mvccstore.server.transport.frames import PING, STREAM_ID_MAX, ErrorCode, frame, goaway_frame

DRAIN_SECONDS = 1.0
_PING = b"drain\0\0\0"


class Drained(Protocol):
    """What it needs of the connection."""

    out: list[bytes | memoryview]
    last_id: int

    def flush_soon(self) -> None:
        """Have `out` written at the end of this turn of the loop."""
        ...

    def close_if_done(self) -> None:
        """Write what is to be written and close, unless a call is under way."""
        ...


class Draining:
    """The end of one connection, begun or not."""

    __slots__ = ("_connection", "_loop", "_timer", "is_announced", "last_served")

    def __init__(self, connection: Drained, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self.last_served = STREAM_ID_MAX
        """Calls of higher streams are not served: the client was told that it must go elsewhere."""
        self.is_announced = False
        """Whether the last stream was named, so that the connection closes with the last call."""

    def begin(self) -> None:
        """Tell the client."""
        if self._timer is None:
            self._connection.out += (goaway_frame(STREAM_ID_MAX, ErrorCode.NO_ERROR, ""), frame(PING, 0, 0, _PING))
            self._connection.flush_soon()
            self._timer = self._loop.call_later(DRAIN_SECONDS, self._announce)

    def take_answer(self, payload: bytes) -> None:
        """Look whether the answer to a PING is that to ours: what was on its way before has come then."""
        if payload == _PING and self._timer is not None:
            self._announce()

    def _announce(self) -> None:
        if not self.is_announced:
            self.is_announced = True
            connection = self._connection
            self.last_served = connection.last_id
            connection.out.append(goaway_frame(connection.last_id, ErrorCode.NO_ERROR, ""))
            connection.flush_soon()
            connection.close_if_done()

    def cancel(self) -> None:
        """Forget about it: the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
