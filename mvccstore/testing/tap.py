"""Between the transport and the services of a server: every call is recorded, and a fault may befall it.

A `TappedCall` is to a service what the call is, and hands on what the service does. A fault *before* keeps the
request from the service; one *after* has the service carry it out, and takes the place of the answer: the client
cannot tell whether it was done, as with a connection that breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from mvccstore.clock import Clock
from mvccstore.server.transport.call import Call, Method, Peer, Receiver
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.testing.calls import Calls, RecordedCall

_ANSWER_BYTES_MAX = 4 << 20


class Plan(NamedTuple):
    """What befalls a call."""

    name: str
    """For the record."""
    delay_seconds: float = 0.0
    """How long it waits before it is served."""
    before: RpcError | None = None
    """It ends with this, and is not served."""
    after: RpcError | None = None
    """It is served, and ends with this in place of an answer."""
    is_drop: bool = False
    """The client is not told of `before` or `after`: its connection is cut."""


class Planner(Protocol):
    """Decides what befalls calls. Asked on the loop's thread."""

    def plan(self, call: RecordedCall) -> Plan | None:
        """Return what befalls a call that has just begun, with its request if it has one alone; mostly None."""
        ...

    def holds(self, call: RecordedCall, encoded: bytes) -> bool:
        """Say whether an answer of a stream is held back for now; the planner then has `TappedCall.release` called."""
        ...

    def holds_request(self, call: RecordedCall) -> bool:
        """Say whether a request of a stream is kept from its service for now; likewise."""
        ...

    def cut(self, peer: Peer) -> None:
        """Cut the connection of a peer."""
        ...


class Tap:
    """Intercepts the methods of a server: `ServerOptions(intercept=tap.intercept)`."""

    def __init__(self, calls: Calls, planner: Planner, clock: Clock) -> None:
        self.calls = calls
        self.planner = planner
        self.clock = clock
        self.streams: dict[TappedCall, None] = {}
        """Streaming calls under way."""

    def intercept(self, method: Method) -> Method:
        """Return a method that is recorded."""
        if method.stream_handler is not None:
            return replace(method, stream_handler=lambda call: TappedCall(self, call, method).open_tapped())
        return replace(method, handler=lambda call, request: TappedCall(self, call, method).begin_tapped(request))


class TappedCall(Call):
    """A call on its way to a service and back."""

    __slots__ = ("_fault", "_held", "_inner", "_requests", "_tap", "record")

    def __init__(self, tap: Tap, inner: Call, method: Method) -> None:
        super().__init__(inner.router, method, inner.metadata, inner.peer)
        self._tap = tap
        self._inner = inner
        self._fault: Plan | None = None
        self._held: list[bytes] | None = None
        self._requests: _TappedReceiver | None = None
        self.record = tap.calls.add(self, tap.clock.time_ms())
        inner.on_cancel = self._cancelled

    # On the way in

    def begin_tapped(self, request: Any) -> None:
        """Serve a unary call."""
        self.record.note_request(request)
        self._befall(lambda: self._serve_tapped(request))

    def _befall(self, serve: Callable[[], None]) -> None:
        plan = self._fault = self._tap.planner.plan(self.record)
        if plan is None:
            serve()
            return
        self.record.fault = plan.name
        if plan.delay_seconds > 0:
            asyncio.get_running_loop().call_later(plan.delay_seconds, self._go_on, serve)
        else:
            self._go_on(serve)

    def _go_on(self, serve: Callable[[], None]) -> None:
        if self.is_done:
            return
        assert self._fault is not None
        if self._fault.before is not None:
            self._fail_by(self._fault.before, is_drop=self._fault.is_drop)
        else:
            serve()

    def _fail_by(self, error: RpcError, *, is_drop: bool) -> None:
        if is_drop:
            self._note_end(error.code, error.message)
            self._tap.planner.cut(self.peer)
        else:
            self.fail(error)

    def _serve_tapped(self, request: Any) -> None:
        # As `Call.serve`, whose gate it has passed.
        handler = self.method.handler
        assert handler is not None
        try:
            answer = handler(self, request)
        except Exception as error:  # noqa: BLE001 - the client is told
            self.fail_with(error)
        else:
            if answer is not None:
                self.reply(answer)

    def open_tapped(self) -> Receiver:
        """Serve a streaming call."""
        receiver = self._requests = _TappedReceiver(self)
        self._tap.streams[self] = None
        self._befall(receiver.begin)
        return receiver

    def receiver(self) -> Receiver | None:
        """Have the service begin; None if it refuses."""
        handler = self.method.stream_handler
        assert handler is not None
        try:
            return handler(self)
        except Exception as error:  # noqa: BLE001 - the client is told
            self.fail_with(error)
            return None

    def _cancelled(self) -> None:
        cancel = self.on_cancel
        self._note_end(Code.CANCELLED, "")
        self._tell(cancel)

    # On the way out

    def begin_work(self, cost: int = 1) -> None:
        """As of the call that it stands for."""
        self._inner.begin_work(cost)

    def end_work(self, cost: int = 1) -> None:
        """As of the call that it stands for."""
        self._inner.end_work(cost)

    @property
    def queued_bytes(self) -> int:
        """As of the call that it stands for."""
        return self._inner.queued_bytes

    def reply(self, message: bytes) -> None:
        """Send the only answer, or what befalls the call."""
        if self.is_done or self._fails_after():
            return
        self._note(message)
        self._note_end(Code.OK, "")
        self._inner.reply(message)

    def send(self, message: bytes) -> None:
        """Send one of several answers, unless it is held back."""
        if self.is_done:
            return
        if self._tap.planner.holds(self.record, message) or self._held is not None:
            self._held = [*(self._held or ()), message]
            return
        self._note(message)
        self._inner.on_writable = self._writable
        self._inner.send(message)

    def is_held(self) -> bool:
        """Say whether a request that has come is kept from the service."""
        return self._tap.planner.holds_request(self.record)

    def release(self) -> None:
        """Hand on what was held back, requests and answers."""
        if self._requests is not None:
            self._requests.release()
        held, self._held = self._held or [], None
        for message in held:
            self.send(message)

    def begin(self, length: int) -> None:
        """Begin a large answer."""
        if not self.is_done and not self._fails_after():
            self.record.messages_left_out += 1
            self._inner.on_writable = self._writable
            self._inner.begin(length)

    def send_part(self, part: bytes) -> None:
        """Send the next bytes of it."""
        if not self.is_done:
            self._inner.on_writable = self._writable
            self._inner.send_part(part)

    def finish(self) -> None:
        """End the call with OK, or what befalls it."""
        if self.is_done or self._fails_after():
            return
        self._note_end(Code.OK, "")
        self._inner.finish()

    def fail(self, error: RpcError) -> None:
        """End the call with an error."""
        if not self.is_done:
            self._note_end(error.code, error.message)
            self._inner.fail(error)

    def _fails_after(self) -> bool:
        fault, self._fault = self._fault, None
        if fault is None or fault.after is None:
            return False
        self._fail_by(fault.after, is_drop=fault.is_drop)
        return True

    def _writable(self) -> None:
        self._tell(self.on_writable)

    def _note(self, message: bytes) -> None:
        if len(message) <= _ANSWER_BYTES_MAX:
            self.record.note_answer(message)
        else:
            self.record.messages_left_out += 1

    def _note_end(self, code: Code, message: str) -> None:
        self.is_done = True
        self.on_cancel = self.on_writable = None
        self._inner.on_cancel = self._inner.on_writable = None
        self._wake_waiter()
        self._tap.streams.pop(self, None)
        record = self.record
        record.code, record.message, record.ended_ms = code, message, self._tap.clock.time_ms()


class _TappedReceiver:
    """Takes the requests of a stream, and keeps them until its service has begun, and while a fault holds them."""

    def __init__(self, call: TappedCall) -> None:
        self._call = call
        self._receiver: Receiver | None = None
        self._kept: list[Any] = []
        self._has_begun = self._has_ended = False

    def begin(self) -> None:
        """Have the service begin, and tell it what has come."""
        self._receiver = self._call.receiver()
        self._has_begun = True
        self.release()

    def release(self) -> None:
        """Tell the service what was kept from it, as far as nothing holds that any more."""
        if not self._has_begun:
            return
        kept, self._kept = self._kept, []
        for request in kept:
            self._take(request)
        if self._has_ended and not self._kept:
            self.end()

    def message(self, request: Any) -> None:
        """Take the next request."""
        self._call.record.note_request(request)
        self._take(request)

    def _take(self, request: Any) -> None:
        is_held = self._has_begun and self._call.is_held()
        if self._has_begun and not self._kept and not is_held:
            self._hand_on(request)
        else:
            self._kept.append(request)

    def _hand_on(self, request: Any) -> None:
        if self._receiver is not None and not self._call.is_done:
            try:
                self._receiver.message(request)
            except Exception as error:  # noqa: BLE001 - ends the call
                self._call.break_off(error)

    def end(self) -> None:
        """Note that no more come."""
        self._has_ended = True
        is_early = not self._has_begun or self._kept
        if not is_early and self._receiver is not None and not self._call.is_done:
            try:
                self._receiver.end()
            except Exception as error:  # noqa: BLE001 - ends the call
                self._call.break_off(error)
