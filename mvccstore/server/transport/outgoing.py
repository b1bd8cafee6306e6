"""The sending half of an HTTP/2 connection: what is to be written, and what waits for the client to take it.

What it owns: `out`, which is written in this turn of the loop; the window for what we send; which of the streams wait; and
the count of what all of them hold (`Memory`), of requests as well.

Invariants:

* I1. `out` is written before the loop waits again: at the end of what is carried out of the client's, or by `flush`,
  which is planned with the first thing that is put into it from elsewhere. So a turn costs one write however many calls
  it answers.
* I2. `send_window` never goes below zero, nor that of a stream through what we send.
* I3. `_pending` has the streams that wait for nothing but the connection: its window, or its client's reading.
* I4. What waits for a client that does not read is bounded: DATA by `queued_bytes_max`, all else by `unread_bytes_max`,
  and of all connections by `all_queued_bytes_max`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from mvccstore.server.transport.blocks import TABLE_SIZE_0
from mvccstore.server.transport.call import Peer
from mvccstore.server.transport.flushes import Flushes
from mvccstore.server.transport.frames import (
    END_HEADERS,
    FRAME_BYTES_MAX,
    HEADERS,
    WINDOW_BYTES,
    ErrorCode,
    ProtocolError,
    frame,
)
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.memory import Memory
from mvccstore.server.transport.wire import WireStream

_log = logging.getLogger("mvccstore.server")

FLUSH_BYTES = 65_536


class Outgoing:
    """What one client is sent. Has most of what a stream needs of its connection (`Wire`)."""

    def __init__(self, limits: TransportLimits, loop: asyncio.AbstractEventLoop, peer: Peer, flushes: Flushes) -> None:
        self.limits = limits
        self.peer = peer
        self.send_window = WINDOW_BYTES
        self.frame_bytes_max = FRAME_BYTES_MAX
        self.owes_table_size = False
        self.is_writable = True
        self.has_answered = False
        self.out: list[bytes | memoryview] = []
        self._loop = loop
        self._flushes = flushes
        self._transport: asyncio.Transport | None = None
        self._pending: dict[WireStream, None] = {}
        self._is_receiving = False
        """Whether `out` is written soon, as what has come is being carried out."""
        self._is_flush_planned = False
        self._memory = Memory(limits)

    def pause_writing(self) -> None:
        """The client does not read: what is sent from now on waits in its stream."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """The client reads again."""
        self.is_writable = True
        self._memory.read()
        self._pump()
        self.flush()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def later(self, callback: Callable[[], Any]) -> None:
        """Have something called in the next turn of the loop."""
        self._loop.call_soon(callback)

    def flush_soon(self) -> None:
        """Have `out` written at the end of this turn of the loop at the latest."""
        if not self._is_receiving and not self._is_flush_planned:
            self._is_flush_planned = True
            self._flushes.soon(self.flush, self._loop)

    def flush(self) -> None:
        """Write what is to be written."""
        self._is_flush_planned = False
        transport = self._transport
        if self.out and transport is not None and not transport.is_closing():
            data = b"".join(self.out)
            passed = None if self.is_writable else self._memory.leave(len(data))
            if passed is None:
                transport.write(data)
            else:
                self._give_up(passed)
        self.out.clear()

    def _give_up(self, limit: str) -> None:
        if self._transport is not None and not self._transport.is_closing():  # else it was given up in this turn
            _log.warning("%s takes nothing of what it asks for: closed", self.peer.address)
            self.limits.cuts.note(limit)
            self.abort()

    def headers_frame(self, flags: int, number: int, block: bytes) -> bytes:
        """Pack a HEADERS frame, with what HPACK owes to the client before it."""
        if self.owes_table_size:
            self.owes_table_size = False
            block = TABLE_SIZE_0 + block
        return frame(HEADERS, END_HEADERS | flags, number, block)

    def queue(self, stream: WireStream, count: int) -> None:
        """Count bytes that wait in a stream."""
        passed = self._memory.queue(count)
        if passed is not None:
            self._give_up(passed)
            return
        self._consider(stream)
        self._pump()

    def unqueue(self, count: int) -> None:
        """Count bytes that wait no more."""
        self._memory.queue(-count)

    def hold_bytes(self, count: int) -> None:
        """Count bytes of requests that are not complete."""
        passed = self._memory.receive(count)
        if passed is not None:
            self.limits.cuts.note(passed)
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many requests that are not complete")

    def _consider(self, stream: WireStream) -> None:
        if stream.can_pump:
            self._pending[stream] = None
        else:
            self._pending.pop(stream, None)

    def _pump(self) -> None:
        """Send what waits and may be sent, a frame of each stream in turn."""
        # Nothing of a service runs in here: what is told to go on is so in the next turn.
        written = 0
        while self._pending and self.is_writable and self.send_window > 0:
            stream = next(iter(self._pending))
            del self._pending[stream]
            written += stream.pump()
            self._consider(stream)
            if written >= FLUSH_BYTES:
                written = 0
                self.flush()  # may pause
        self.flush_soon()
