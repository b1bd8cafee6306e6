"""Begins a call for each request to `/v3/...`, and feeds it its body."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from mvccstore.server.gateway.call import INLINE_BYTES, GatewayCall
from mvccstore.server.gateway.failures import Failures
from mvccstore.server.gateway.metadata import metadata_of, timeout_of
from mvccstore.server.gateway.paths import paths_of
from mvccstore.server.gateway.splitter import JsonSplitter
from mvccstore.server.gateway.upgrade import FirstObject, subprotocol_of, upgraded
from mvccstore.server.messages import METHODS, MethodType
from mvccstore.server.messages.json import JsonError, many_from_json
from mvccstore.server.persona import V3_6, Persona
from mvccstore.server.transport.call import Receiver, Router
from mvccstore.server.transport.exchange import BodyReceiver, Exchange
from mvccstore.server.transport.http1_head import HttpRequest
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.server.transport.websocket import accept, is_upgrade


class Gateway:
    """The handler of every path below `/v3/`."""

    def __init__(self, router: Router, limits: TransportLimits, persona: Persona = V3_6) -> None:
        self._router = router
        self._limits = limits
        self._paths = paths_of(persona)
        self._failures = Failures(persona)

    def serve(self, exchange: Exchange) -> BodyReceiver | None:
        """Begin to serve a request, or open a WebSocket to serve one by messages."""
        request = exchange.request
        if is_upgrade(request):
            protocol = subprotocol_of(request)
            return accept(exchange, self._serve_messages, self._limits, request=upgraded(request), subprotocol=protocol)
        return self._serve(exchange)

    def _serve_messages(self, exchange: Exchange) -> BodyReceiver | None:
        receiver = self._serve(exchange)
        return FirstObject(receiver) if isinstance(receiver, _UnaryBody) else receiver

    def _serve(self, exchange: Exchange) -> BodyReceiver | None:
        path = self._paths.get(exchange.request.path)
        if path is None:
            self._failures.respond_no_path(exchange)
            return None
        if exchange.request.method != "POST" or _is_other_verb(exchange.request):
            self._failures.respond_no_verb(exchange)
            return None
        try:
            method = self._router.find(path)
            metadata = metadata_of(exchange.request)
            timeout = timeout_of(exchange.request)
        except RpcError as error:
            self._failures.respond(exchange, error)
            return None
        types = METHODS[path]
        call = GatewayCall(self._router, method, metadata, exchange, types, self._failures)
        if timeout is not None:
            call.set_timeout(timeout)
        if not types.client_streaming:
            return _UnaryBody(call, types, self._limits)
        receiver = call.open()
        return None if receiver is None else _StreamBody(call, exchange, receiver, types, self._limits)


class _UnaryBody:
    """Takes the body of a call with one request."""

    def __init__(self, call: GatewayCall, types: MethodType, limits: TransportLimits) -> None:
        self._call = call
        self._types = types
        self._limits = limits
        self._body = bytearray()

    @property
    def pending_bytes(self) -> int:
        """What has come of the body."""
        return len(self._body)

    def data(self, data: bytes) -> None:
        """Take the next bytes."""
        self._body += data
        if len(self._body) > self._limits.http_body_bytes_max:
            self._body.clear()
            self._call.fail_with(_too_large(self._limits.http_body_bytes_max))

    def end(self) -> None:
        """Carry out the call."""
        if self._call.is_done:
            return
        body = bytes(self._body)
        if len(body) > INLINE_BYTES:
            loop = asyncio.get_running_loop()
            loop.run_in_executor(None, self._request, body).add_done_callback(self._take)
            return
        try:
            request = self._request(body)
        except Exception as error:  # noqa: BLE001 - ends the call
            self._call.refuse(error)
        else:
            self._call.serve(request)

    def _take(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled() or self._call.is_done:
            return
        error = future.exception()
        if error is None:
            self._call.serve(future.result())
        else:
            assert isinstance(error, Exception)
            self._call.refuse(error)

    def _request(self, body: bytes) -> Any:
        return _decode(self._call, self._types, body, self._limits)


class _StreamBody:
    """Takes the body of a call with any number of requests.

    Of those `http_turn_messages` are carried out, and the next ones in another turn of the loop: a body of 256 KiB may
    have a hundred thousand. A large one is decoded by a thread, and those behind it wait. Until then no more is read than
    has to be.
    """

    def __init__(
        self, call: GatewayCall, exchange: Exchange, receiver: Receiver, types: MethodType, limits: TransportLimits
    ) -> None:
        self._call = call
        self._exchange = exchange
        self._receiver = receiver
        self._types = types
        self._limits = limits
        self._splitter = JsonSplitter()
        self._left = limits.http_turn_messages
        """How many are carried out before the next turn."""
        self._is_waiting = False
        """Whether that turn is planned, or comes when a request is decoded."""
        self._decoding_bytes = 0
        self._has_ended = False

    @property
    def pending_bytes(self) -> int:
        """What has come of a request that is not complete, and of those that wait."""
        return self._splitter.pending_bytes + self._decoding_bytes

    def data(self, data: bytes) -> None:
        """Pass on the requests that are complete."""
        if self._call.is_done:
            return
        requests = self._splitter.feed(data)
        if self._is_waiting:
            self._exchange.set_behind(is_behind=True)
        else:
            self._pass_on(requests)

    def _pass_on(self, requests: Iterator[bytes]) -> None:
        try:
            for text in requests:
                if len(text) > INLINE_BYTES:
                    self._decode_beside(text)
                    return
                if text:
                    self._receiver.message(self._request(text))
                    self._left -= 1
                if self._call.is_done:
                    return
                if not text or not self._left:
                    self._is_waiting = True
                    self._exchange.set_behind(is_behind=self._splitter.pending_bytes > 0)
                    self._call.in_next_turn(self._go_on)
                    return
            if self._splitter.pending_bytes > self._limits.http_body_bytes_max:
                raise _too_large(self._limits.http_body_bytes_max)
        except ValueError as error:
            self._call.break_off(RpcError(Code.INVALID_ARGUMENT, str(error)))
        except Exception as error:  # noqa: BLE001 - ends the call
            self._call.break_off(error)

    def _decode_beside(self, text: bytes) -> None:
        self._is_waiting = True
        self._decoding_bytes = len(text)
        self._exchange.set_behind(is_behind=True)
        asyncio.get_running_loop().run_in_executor(None, self._request, text).add_done_callback(self._take)

    def _take(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        self._decoding_bytes = 0
        future.exception()  # seen, so not logged, if nobody waits any more
        if not self._call.is_done:
            try:
                self._receiver.message(future.result())
            except Exception as error:  # noqa: BLE001 - ends the call
                self._call.break_off(error)
        self._call.in_next_turn(self._go_on)

    def _request(self, text: bytes) -> Any:
        return _decode(self._call, self._types, text, self._limits)

    def end(self) -> None:
        """Tell the service that no more requests come."""
        if self._call.is_done:
            return
        if self._is_waiting:
            self._has_ended = True
            return
        try:
            if self._splitter.pending_bytes:
                raise RpcError(Code.INVALID_ARGUMENT, "unexpected EOF")
            self._receiver.end()
        except Exception as error:  # noqa: BLE001 - ends the call
            self._call.break_off(error)

    def _go_on(self) -> None:
        self._is_waiting = False
        self._left = self._limits.http_turn_messages
        if not self._call.is_done:
            self._pass_on(self._splitter.feed(b""))
        if not self._is_waiting:
            self._exchange.set_behind(is_behind=False)
            if self._has_ended:
                self.end()


def _is_other_verb(request: HttpRequest) -> bool:
    """Whether a POST of a form asks in a header to be taken for another verb, which no method has."""
    verb = request.headers.get(b"x-http-method-override") or b"POST"
    return verb.upper() != b"POST" and request.headers.get(b"content-type") == b"application/x-www-form-urlencoded"


def _decode(call: GatewayCall, types: MethodType, text: bytes, limits: TransportLimits) -> Any:
    """Make a request of JSON: of its first object, as etcd does not look at what follows."""
    try:
        message = next(many_from_json(types.request, text), None)
        encoded = b"" if message is None else message.SerializeToString()
    except JsonError as error:
        raise RpcError(Code.INVALID_ARGUMENT, str(error), error.limit) from error
    if len(encoded) > limits.message_bytes_max:
        raise _too_large(limits.message_bytes_max, len(encoded))
    try:
        return call.method.decode(encoded)
    except Exception as error:
        raise RpcError(Code.INTERNAL, f"grpc: error unmarshalling request: {error}") from error


def _too_large(limit: int, size: int | None = None) -> RpcError:
    shown = f"{size} vs. {limit}" if size is not None else f"more than {limit}"
    passed = "message_bytes_max" if size is not None else "http_body_bytes_max"
    return RpcError(Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({shown})", passed)
