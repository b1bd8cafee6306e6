"""One HTTP/1.1 connection: an asyncio protocol around `h11`, which parses and knows what may follow what.

What it owns: the request that is being read or answered, and what the client has sent behind it.

How a request goes: when its head is there, the handler is called with an `Exchange`. It answers that at once or
later, and returns what takes the body, or None if nothing does. No task is made. Requests of one connection are
answered in order, one at a time.

Invariants:

* I1. An exchange ends once: by `respond`, by `finish`, or because the client has gone. Only then, and once,
  `on_cancel` is called.
* I2. No input raises out of `data_received`. What is no HTTP is answered with 400 or the status that says more, and
  ends the connection, as what follows could mean anything. So does a length that is given in two ways.
* I3. What waits in memory is bounded: of a head, of the bytes behind a request, of a body nobody takes, and of
  answers that are not read (`TransportLimits`). So is what is carried out in one turn of the loop; what comes before
  that is done waits in `_held`, not in the parser, and behind it in the client's socket.
* I4. Nothing takes for ever but a stream: `look_after` ends what is slow. An exchange is a stream if its handler set
  `is_open_ended`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

import h11

from mvccstore.server.transport.call import WRITABLE_BYTES, Peer
from mvccstore.server.transport.dates import Dates
from mvccstore.server.transport.exchange import (
    TEXT,
    BodyReceiver,
    Exchange,
    Fields,
    HttpHandler,
    Successor,
)
from mvccstore.server.transport.http1_head import HEAD_TOO_LARGE, Refused, reason_of, request_of
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.memory import Memory
from mvccstore.server.transport.port import Connection, HttpFactory
from mvccstore.server.transport.stalls import Stall

_log = logging.getLogger("mvccstore.server")

_CLOSE = (b"Connection", b"close")
_MUCH_BYTES = 64 * 1024
"""Who has sent so much at once is read from once in a turn of the loop; uvloop would read up to 8 MB of each."""
_JOINED_MAX = 64
_JOINED_BYTES_MAX = 16_384
"""Parts are joined into one write up to so many, and none that is larger."""


def http_factory(handler: HttpHandler, limits: TransportLimits, dates: Dates) -> HttpFactory:
    """Return what a `Port` makes its HTTP/1.1 connections with."""
    return lambda peer, on_lost: Http1Connection(handler, limits, peer, dates, on_lost)


class Http1Connection(asyncio.Protocol):
    """One client.

    Args:
        on_lost: Called once when the connection is gone.
    """

    def __init__(
        self,
        handler: HttpHandler,
        limits: TransportLimits,
        peer: Peer,
        dates: Dates,
        on_lost: Callable[[Http1Connection], None],
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._peer = peer
        self._dates = dates
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.http_head_bytes_max)
        self._transport: asyncio.Transport | None = None
        self._is_secure = False
        self._exchange: Exchange | None = None
        self._receiver: BodyReceiver | None = None
        self._out: list[bytes] = []
        self._held = bytearray()
        """What came behind a request that is not answered yet, or before a turn was done that was planned."""
        self._has_part_of_head = False
        self._is_reading_body = False
        self._has_request = False
        """Whether a request is complete, and its answer is not."""
        self._is_head = False
        self._surplus = 0
        self._is_advancing = False
        self._is_planned = False
        self._is_flush_planned = False
        self._is_draining = False
        self._is_lingering = False
        self._has_eof = False
        self._is_reading = True
        self._is_resting = False
        """Whether so much was read in this turn that others have theirs first."""
        self._successor: Connection | None = None
        self._memory = Memory(limits)
        self._since = self._loop.time()
        """When what the client is to do next began to be waited for."""
        self._stall: Stall | None = None

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._is_secure = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=WRITABLE_BYTES)

    def data_received(self, data: bytes) -> None:
        """Read on, unless a request is being answered: then what follows it has to wait."""
        if self._is_lingering:
            return
        if len(data) >= _MUCH_BYTES and not self._is_resting:
            self._is_resting = True
            self._loop.call_soon(self._end_rest)
            self._set_reading()
        if self._is_planned or (self._has_request and self._exchange is not None):
            self._held += data
            self._set_reading()
        else:
            self._feed(data)
            self._advance()

    def _end_rest(self) -> None:
        self._is_resting = False
        self._set_reading()

    def _feed(self, data: bytes) -> None:
        if not self._has_part_of_head and not self._is_reading_body:
            self._has_part_of_head = True
            self._since = self._loop.time()
        self._h11.receive_data(data)

    def eof_received(self) -> bool:
        """The client says no more, or has gone. It still gets what is soon there, but no stream goes on."""
        self._has_eof = True
        self._since = self._loop.time()
        exchange = self._exchange
        if self._is_planned or (self._has_request and exchange is not None and not exchange.is_open_ended):
            return not self._is_secure
        return False

    def pause_writing(self) -> None:
        """The client does not read, so nothing is read from it that would be answered with more."""
        self._stall = Stall(self._loop.time(), self.queued_bytes)
        self._set_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stall = None
        self._memory.requeue(self.queued_bytes)
        self._set_reading()
        if self._exchange is not None and self._exchange.on_writable is not None:
            self._exchange.on_writable()

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell who answers a request."""
        self._transport = None
        self._held.clear()
        self._drop_exchange()
        self._memory.requeue(0)
        self._on_lost(self)

    # The port's calls

    def drain(self) -> None:
        """Answer the request that is under way, then close."""
        self._is_draining = True
        if self._successor is not None:
            self._successor.drain()
        elif self._exchange is None and not self._is_lingering:
            self._close()

    def abort(self) -> None:
        """Close at once."""
        if self._successor is not None:
            self._successor.abort()
        elif self._transport is not None:
            self._transport.abort()

    def look_after(self, now: float) -> None:
        """End what takes too long."""
        if self._successor is not None:
            self._successor.look_after(now)
            return
        limits, waited = self._limits, now - self._since
        exchange = self._exchange
        is_open_ended = exchange is not None and exchange.is_open_ended
        if self._is_lingering or self._has_eof:
            if waited > limits.http_linger_seconds:
                self._cut("http_linger_seconds")
        elif self._stall is not None:
            if not is_open_ended and self._stall.has_lasted(now, limits.http_stall_seconds, self.queued_bytes):
                self._cut("http_stall_seconds")
        elif self._is_reading_body:
            if not is_open_ended and waited > limits.http_body_seconds:
                self._refuse(Refused(408, "the request takes too long", "http_body_seconds"))
        elif self._has_part_of_head:
            if waited > limits.http_head_seconds:
                self._refuse(Refused(408, "the request takes too long", "http_head_seconds"))
        elif exchange is None and waited > limits.http_idle_seconds:
            limits.cuts.note("http_idle_seconds")
            self._close()

    def _cut(self, limit: str) -> None:
        """End the connection at once, as it has passed a limit."""
        self._limits.cuts.note(limit)
        self.abort()

    # Reading

    def _advance(self) -> None:
        """Carry out what has come, as far as it goes."""
        self._is_planned = False
        if self._is_advancing or self._transport is None:
            return
        self._is_advancing = True
        requests = parts = 0
        try:
            while self._transport is not None and not self._transport.is_closing() and not self._is_lingering:
                if not self._has_request and self._h11.our_state is h11.MUST_CLOSE:
                    self.flush()
                    self._linger()  # answered before all of it was there
                    break
                if self._has_request:
                    if self._exchange is not None or not self._begin_next():
                        break
                    requests += 1
                    if requests >= self._limits.http_turn_requests:
                        self._plan()
                        break
                event = self._h11.next_event()
                if event is h11.NEED_DATA and self._held:  # I3: not before what is there is carried out
                    self._feed(self._take_held())
                    continue
                if not self._take(event):
                    break
                parts += isinstance(event, h11.Data)
                if parts >= self._limits.http_turn_messages:
                    self._plan()
                    break
        except h11.RemoteProtocolError as error:
            # What follows the colon would show the client's own bytes.
            status = error.error_status_hint
            limit = "http_head_bytes_max" if status == HEAD_TOO_LARGE else None
            self._refuse(Refused(status, str(error).partition(":")[0], limit))
        except Refused as refused:
            self._refuse(refused)
        except Exception:  # noqa: BLE001 - ends this connection, and no other
            _log.exception("a request from %s ended by an error of ours", self._peer.address)
            self._refuse(Refused(500, "internal error"))
        finally:
            self._is_advancing = False
            self.flush()

    def _plan(self) -> None:
        """Have the rest carried out in the next turn of the loop, behind what came from others."""
        self._is_planned = True
        self._loop.call_soon(self._advance)

    def _take_held(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        self._set_reading()
        return held

    def _take(self, event: object) -> bool:
        """Carry out an event; return whether there may be more."""
        if isinstance(event, h11.Request):
            self._begin(event)
        elif isinstance(event, h11.Data):
            if self._receiver is not None:
                self._hold(len(event.data))
                self._receiver.data(bytes(event.data))
            else:
                self._note_surplus(len(event.data))
        elif isinstance(event, h11.EndOfMessage):
            self._has_request = True
            self._is_reading_body = False
            self._memory.receive(-self._memory.received)
            self._since = self._loop.time()
            receiver, self._receiver = self._receiver, None
            if receiver is not None and self._exchange is not None:
                receiver.end()
        elif event is h11.NEED_DATA:
            if self._has_eof:
                self._drop_exchange()
                self._close()
            elif self._h11.they_are_waiting_for_100_continue and self._receiver is not None:
                self._out.append(
                    self._h11.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) or b""
                )
            return False
        else:
            self._close()
            return False
        return True

    def _begin(self, event: h11.Request) -> None:
        self._has_part_of_head = False
        self._is_reading_body = True
        self._since = self._loop.time()
        self._surplus = 0
        self._is_head = event.method == b"HEAD"
        request = request_of(event, self._limits, self._peer, is_secure=self._is_secure)
        exchange = self._exchange = Exchange(self, request)
        exchange.switch = self._switch
        receiver = self._handler(exchange)
        # If it has been answered already, nobody wants the body.
        self._receiver = None if exchange.is_done else receiver

    def _hold(self, count: int) -> None:
        """Count the bytes of a body. What a stream holds of its own is bounded by who takes it."""
        if self._exchange is not None and not self._exchange.is_open_ended:
            passed = self._memory.receive(count)
            if passed is not None:
                raise Refused(503, "too many requests that are not complete", passed)

    def _note_surplus(self, count: int) -> None:
        """Count what nobody wants; the client must stop some time."""
        self._surplus += count
        if self._surplus > self._limits.http_pipelined_bytes_max:
            self._limits.cuts.note("http_pipelined_bytes_max")
            self._linger()

    def _begin_next(self) -> bool:
        """Make ready for the next request; return False if there is to be none."""
        if self._is_draining or self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            self._close()
            return False
        self._h11.start_next_cycle()
        self._has_request = self._is_head = False
        self._since = self._loop.time()
        # If nothing of the next head waits in the parser, this ends with its first byte.
        self._has_part_of_head = bool(self._h11.trailing_data[0])
        return True

    def _set_reading(self) -> None:
        """Stop reading while too much waits, or the client of a stream does not read; go on when that is over."""
        exchange = self._exchange
        is_stalled = self._stall is not None and (exchange is None or exchange.is_open_ended)
        is_behind = exchange is not None and exchange.is_behind
        is_reading = len(self._held) <= self._limits.http_pipelined_bytes_max and not is_stalled and not is_behind
        is_reading = is_reading and not self._is_resting
        if is_reading != self._is_reading and self._transport is not None and not self._transport.is_closing():
            self._is_reading = is_reading
            if is_reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # Writing: for exchanges

    @property
    def queued_bytes(self) -> int:
        """What waits to be taken by the client."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send_head(self, exchange: Exchange, status: int, fields: Fields) -> None:
        """Send the head of an answer."""
        exchange.has_begun = True
        extra = [self._dates.field()]
        # A client that waits for 100 Continue may send its body or not: nobody could say what the next bytes are.
        if self._is_draining or self._has_eof or self._h11.they_are_waiting_for_100_continue:
            extra.append(_CLOSE)
        reason = reason_of(status)
        response = h11.Response(status_code=status, headers=[*exchange.fields, *fields, *extra], reason=reason)
        self._out.append(self._h11.send(response) or b"")

    def send_part(self, part: bytes) -> None:
        """Send bytes of its body."""
        self._out.append(self._h11.send(h11.Data(data=part)) or b"")

    def send_end(self) -> None:
        """End the answer, and go on to the next request."""
        self._out.append(self._h11.send(h11.EndOfMessage()) or b"")
        self._exchange = self._receiver = None
        if not self._is_advancing:
            self.flush()
            self._advance()

    def flush_soon(self, count: int) -> None:
        """Write what has been sent by the end of this turn of the loop; at once if `count` bytes are many."""
        if count > _JOINED_BYTES_MAX or len(self._out) > _JOINED_MAX:
            self.flush()
        elif not self._is_flush_planned and not self._is_advancing:
            self._is_flush_planned = True
            self._loop.call_soon(self.flush)

    def pace(self) -> None:
        """Read on, or no more for now."""
        self._set_reading()

    def flush(self) -> None:
        """Write what has been sent."""
        self._is_flush_planned = False
        if not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        transport = self._transport
        if data and transport is not None and not transport.is_closing():
            transport.write(data)
            passed = self._memory.requeue(transport.get_write_buffer_size())
            if passed is not None:
                self._cut(passed)

    # Ending

    def _switch(self, exchange: Exchange, fields: Fields, successor: Successor) -> None:
        """Let another protocol have the connection; the port goes on to know it as this one."""
        transport = self._transport
        if transport is None or exchange.is_done or exchange.has_begun:
            return
        response = h11.InformationalResponse(status_code=101, headers=[*fields], reason=reason_of(101))
        self._out.append(self._h11.send(response) or b"")
        self.flush()
        exchange.is_done = True
        # With these gone, nothing is read or written here any more.
        self._transport = self._exchange = self._receiver = None
        first = self._h11.trailing_data[0] + bytes(self._held)
        self._held.clear()
        self._memory.requeue(0)  # what waits is the successor's
        protocol = successor(lambda: self._on_lost(self))
        self._successor = cast("Connection", protocol)
        if not self._is_reading:
            transport.resume_reading()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if first:
            protocol.data_received(first)
        if self._is_draining:
            self._successor.drain()

    def _drop_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        self._receiver = None
        self._memory.receive(-self._memory.received)
        if exchange is not None:
            exchange.cancel()

    def _refuse(self, refused: Refused) -> None:
        """Say what was wrong, if an answer has not begun, and end the connection."""
        cuts = self._limits.cuts
        cuts.note_told("http1", str(refused.status))
        if refused.limit is not None:
            cuts.note(refused.limit)
        has_begun = self._exchange is not None and self._exchange.has_begun
        self._drop_exchange()
        if has_begun:
            self.abort()
            return
        if self._h11.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self._linger()  # what came wrong is the rest of a request that has been answered
            return
        reason = reason_of(refused.status)
        body = b"%d %s: %s\n" % (refused.status, reason, refused.message.encode("ascii", "replace"))
        fields = [*TEXT, (b"Content-Length", b"%d" % len(body)), self._dates.field(), _CLOSE]
        response = h11.Response(status_code=refused.status, headers=fields, reason=reason)
        for part in (response, h11.Data(data=b"" if self._is_head else body), h11.EndOfMessage()):
            self._out.append(self._h11.send(part) or b"")
        self.flush()
        self._linger()

    def _linger(self) -> None:
        """Close our half only: with bytes unread, closing both would reset what the client has not read yet."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._has_eof or not transport.can_write_eof():
            transport.close()
            return
        self._is_lingering = True
        self._since = self._loop.time()
        transport.write_eof()

    def _close(self) -> None:
        self.flush()
        if self._transport is not None:
            self._transport.close()
