"""The receiving half of an HTTP/2 connection: what has come of its client, and when that is carried out.

What it owns: what is not carried out yet, and whether more is read.

Invariants:

* I1. No input raises out of `data_received`, and none reaches another connection.
* I2. Of what has come, a slice is carried out at once. The rest waits for a turn of the connection (`Turns`), or, while
  `_is_held`, for the end of its work or for its client's reading: nothing is taken from a client that would be answered
  with more than it takes, and none has more than its share of what the writer has to do.
* I3. Little waits: not much more than `waiting_bytes_max` is read behind what waits.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod

from mvccstore.server.transport.call import Peer
from mvccstore.server.transport.flushes import Flushes
from mvccstore.server.transport.frames import PREFACE, ErrorCode, ProtocolError, after_preface
from mvccstore.server.transport.keepalive import Keepalive
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.outgoing import Outgoing
from mvccstore.server.transport.turns import Turns

_log = logging.getLogger("mvccstore.server")


class Incoming(Outgoing, ABC):
    """What one client sends. Who derives from it says what a slice is, and how the connection ends.

    Args:
        turns: Where it waits for its turn, with the others of its port.
    """

    def __init__(
        self, limits: TransportLimits, loop: asyncio.AbstractEventLoop, peer: Peer, turns: Turns, flushes: Flushes
    ) -> None:
        super().__init__(limits, loop, peer, flushes)
        self._turns = turns
        self._rest = b""
        self._is_waiting = self._is_held = False
        """Whether `_rest` is more than the beginning of a frame; and not for a turn."""
        self._is_reading = True
        self._awaited = PREFACE
        self.messages_left = 0
        """How many messages of what is more than one in a frame may still be carried out in this slice."""
        self._left_over = b""
        """What is left of a frame for the next one."""
        self._keepalive = Keepalive(limits, loop.time())

    # What a connection provides

    @abstractmethod
    def _receive(self, data: bytes) -> None:
        """Carry out a slice, and note the rest: by `_wait`, or in `_rest` if it is the beginning of a frame."""

    @abstractmethod
    def _go_away(self, code: ErrorCode, reason: str) -> None:
        """End the connection by our side."""

    # Reading

    def get_buffer(self, _size: int) -> memoryview:
        """Say where to put what comes."""
        return self._turns.buffer()

    def buffer_updated(self, size: int) -> None:
        """Take what came there."""
        self.data_received(self._turns.taken(size))

    def data_received(self, data: bytes) -> None:
        """Carry out the frames that are complete, so many at a time."""
        self._keepalive.hear(self._loop.time())
        if not self._is_waiting:
            data = self._rest + data if self._rest else data
            if self._turns.is_at_once(len(data)):
                self._carry_out(data)
            else:
                self._wait(data, is_held=False)
        else:
            self._rest += data
            self._turns.waiting_bytes += len(data)
            self._set_reading()

    def go_on(self) -> bool:
        """Carry out the next of what waits; return whether more of it can be, in another turn."""
        self._turns.waiting_bytes -= len(self._rest)
        self._is_waiting = False
        self._carry_out(self._rest)
        self._set_reading()
        return self._is_waiting and not self._is_held

    def _carry_out(self, data: bytes) -> None:
        self._rest = b""
        self._is_receiving = True
        try:
            if self._awaited:
                self._awaited, data = after_preface(self._awaited, data)
            self._receive(data)
            if len(self._rest) < len(data):
                self._keepalive.partial_at = None
        except ProtocolError as error:
            self._go_away(error.code, error.reason)
        except Exception:  # noqa: BLE001 - ends this connection, and no other
            _log.exception("a connection from %s ended by an error of ours", self.peer.address)
            self._go_away(ErrorCode.INTERNAL_ERROR, "internal error")
        finally:
            self._is_receiving = False
            self.flush()

    def _wait(self, rest: bytes, *, is_held: bool) -> None:
        """Keep what cannot be carried out now."""
        self._rest = rest
        self._is_waiting = True
        self._is_held = is_held
        self._turns.waiting_bytes += len(rest)
        if not is_held:
            self._turns.join(self)
        self._set_reading()

    def _release(self) -> None:
        """Have what was held wait for a turn."""
        if self._is_held:
            self._is_held = False
            self._turns.join(self)

    def _set_reading(self) -> None:
        """Read on, unless much waits already."""
        limits = self.limits
        wanted = not self._is_waiting or (
            len(self._rest) <= limits.waiting_bytes_max and self._turns.waiting_bytes < limits.all_waiting_bytes_max
        )
        transport = self._transport
        if wanted is not self._is_reading and transport is not None and not transport.is_closing():
            self._is_reading = wanted
            if wanted:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._release()

    def _drop_rest(self) -> None:
        if self._is_waiting:
            self._turns.waiting_bytes -= len(self._rest)
            self._turns.leave(self)
            self._is_waiting = self._is_held = False
        self._rest = b""
