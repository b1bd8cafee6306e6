"""A transport without a socket, for connections of HTTP/1.1 and WebSockets."""

from __future__ import annotations

import asyncio
from typing import Any

from mvccstore.server.transport.call import WRITABLE_BYTES


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and holds it back when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.connection: Any = None
        """The protocol above."""
        self.written = b""
        self.waiting = 0
        self.is_stuck = self.is_closed = self.is_aborted = self.has_written_eof = False
        self.is_reading = True

    def write(self, data: Any) -> None:
        assert not self.is_closed
        self.written += bytes(data)
        if self.is_stuck:
            before, self.waiting = self.waiting, self.waiting + len(data)
            if before <= WRITABLE_BYTES < self.waiting:
                self.connection.pause_writing()

    def unstick(self) -> None:
        """The client reads everything."""
        self.is_stuck = False
        was, self.waiting = self.waiting, 0
        if was > WRITABLE_BYTES:
            self.connection.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == WRITABLE_BYTES
        assert low is None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        del name
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.connection = protocol

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.connection.connection_lost(None)

    def abort(self) -> None:
        self.is_aborted = True
        self.close()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_written_eof = True

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True
