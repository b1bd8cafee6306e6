"""What passes between a client and the JSON gateway of an etcd, looked at and not touched: the calls that are meant.

A call by JSON is in a cassette what the same call by gRPC is. Other pages (`/version`, `/health`, `/metrics`) pass, and
are not written: who serves a cassette has its own.
"""

from __future__ import annotations

import json
from typing import Any

import h11
from google.protobuf.message import Message

from mvccstore.server.gateway.metadata import metadata_of
from mvccstore.server.gateway.paths import PATHS
from mvccstore.server.gateway.splitter import JsonSplitter
from mvccstore.server.messages import METHODS
from mvccstore.server.messages.json import JsonError, from_json, many_from_json
from mvccstore.server.transport.call import Metadata, Peer
from mvccstore.server.transport.http1_head import HttpRequest
from mvccstore.server.transport.status import Code
from mvccstore.testing.cassette import CallWriter, CassetteWriter, EndedBy
from mvccstore.testing.secrets import told_metadata
from mvccstore.testing.wiretap import MESSAGE_BYTES_MAX, NotUnderstoodError

_HEAD_BYTES_MAX = 256 * 1024
_BODY_BYTES_MAX = 2 * MESSAGE_BYTES_MAX
_OK = 200


def new_exchange(
    cassette: CassetteWriter, verb: str, target: str, headers: tuple[tuple[bytes, bytes], ...]
) -> GatewayExchange | None:
    """Return what writes a request of the gateway to a cassette; None for one that is none."""
    path = PATHS.get(target.partition("?")[0])
    if path is None or verb != "POST":
        return None
    request = HttpRequest(verb, target, "", Metadata(headers), Peer(""))
    metadata = told_metadata(
        tuple((name.removeprefix(b"grpcgateway-"), value) for name, value in metadata_of(request).pairs),
        keeps_secrets=cassette.keeps_secrets,
    )
    return GatewayExchange(cassette.begin(path, metadata))


class GatewayExchange:
    """One request of the gateway, and its answer."""

    def __init__(self, writer: CallWriter) -> None:
        self._writer = writer
        self._types = METHODS[writer.path]
        self._requests = JsonSplitter()
        self._answers = JsonSplitter()
        self._body = bytearray()
        self._status = _OK

    def body(self, data: bytes) -> None:
        """Look at the next bytes of the request's body."""
        if not self._types.client_streaming:
            self._body += data
            _check_size(len(self._body))
            return
        for text in self._requests.feed(data):
            self._write_request(text)
        _check_size(self._requests.pending_bytes)

    def body_end(self) -> None:
        """Note its end."""
        if self._types.client_streaming:
            self._writer.half_close()
        else:
            self._write_request(bytes(self._body))
            self._body.clear()

    def _write_request(self, text: bytes) -> None:
        try:
            message = next(many_from_json(self._types.request, text), None) or self._types.request()
        except JsonError:
            return  # which its etcd says, too
        self._writer.message("request", _encoded(message))

    def answer_head(self, status: int) -> None:
        """Note how it is answered."""
        self._status = status

    def answer_body(self, data: bytes) -> None:
        """Look at the next bytes of the answer."""
        if not self._types.server_streaming or self._status != _OK:
            self._body += data
            _check_size(len(self._body))
            return
        for text in self._answers.feed(data):
            line = json.loads(text)
            if "error" in line:
                self._end(line["error"])
            else:
                # What is in the line is looked at again, as a message: JSON numbers may be text.
                result = json.dumps(line.get("result", {})).encode()
                self._writer.message("answer", _encoded(from_json(self._types.response, result)))
        _check_size(self._answers.pending_bytes)

    def answer_end(self) -> None:
        """Note its end."""
        if self._status != _OK:
            try:
                self._end(json.loads(bytes(self._body)))
            except ValueError:
                self._writer.end(Code.UNKNOWN, f"HTTP status {self._status}")
            return
        if not self._types.server_streaming:
            self._writer.message("answer", _encoded(from_json(self._types.response, bytes(self._body))))
        self._writer.end(Code.OK, "")

    def _end(self, error: Any) -> None:
        shape = error if isinstance(error, dict) else {}
        code = shape.get("code", shape.get("grpc_code"))
        message = shape.get("message") or shape.get("error") or ""
        self._writer.end(code if isinstance(code, int) else Code.UNKNOWN, str(message))

    def close(self, who: EndedBy) -> None:
        """Note that it has ended before."""
        self._writer.end_by(who)


def _check_size(size: int) -> None:
    if size > _BODY_BYTES_MAX:
        msg = f"a body of more than {_BODY_BYTES_MAX} bytes"
        raise NotUnderstoodError(msg)


def _encoded(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


class Http1Tap:
    """Writes the calls of one connection of HTTP/1.1 to a cassette; see `Http2Tap`."""

    def __init__(self, cassette: CassetteWriter) -> None:
        self._cassette = cassette
        self._client = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
        self._upstream = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES_MAX)
        self._exchange: GatewayExchange | None = None
        self._waiting = 0

    def take_client(self, data: bytes) -> None:
        """Look at what the client sends."""
        # What follows a request is looked at when that is answered, and kept till then.
        self._waiting += len(data)
        _check_size(self._waiting)
        self._client.receive_data(data)
        self._take_requests()

    def _take_requests(self) -> None:
        while True:
            event = self._client.next_event()
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                if self._exchange is not None:
                    self._exchange.body(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                if self._exchange is not None:
                    self._exchange.body_end()
            else:
                if event is h11.NEED_DATA:
                    self._waiting = 0
                return

    def _begin(self, request: h11.Request) -> None:
        # The other side is told as much as it has to know to understand the answer.
        headers = [(b"Host", b"-")]
        headers += [(name, value) for name, value in request.headers if name in {b"connection", b"upgrade"}]
        self._upstream.send(h11.Request(method=request.method, target=request.target, headers=headers))
        self._upstream.send(h11.EndOfMessage())
        self._exchange = new_exchange(
            self._cassette,
            request.method.decode("latin-1"),
            request.target.decode("latin-1"),
            tuple((bytes(name), bytes(value)) for name, value in request.headers),
        )

    def take_upstream(self, data: bytes) -> None:
        """Look at what it is answered."""
        self._upstream.receive_data(data)
        while True:
            event = self._upstream.next_event()
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                if self._exchange is not None:
                    self._exchange.close("recorder")
                msg = "what passes on a WebSocket is not recorded"
                raise NotUnderstoodError(msg)
            exchange = self._exchange
            if isinstance(event, h11.Response):
                if exchange is not None:
                    exchange.answer_head(event.status_code)
            elif isinstance(event, h11.Data):
                if exchange is not None:
                    exchange.answer_body(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._end()
            elif not isinstance(event, h11.InformationalResponse):
                return

    def _end(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.answer_end()
        self._client.send(h11.Response(status_code=_OK, headers=[(b"Content-Length", b"0")]))
        self._client.send(h11.EndOfMessage())
        if self._client.their_state is h11.DONE and self._upstream.their_state is h11.DONE:
            self._client.start_next_cycle()
            self._upstream.start_next_cycle()
            self._take_requests()

    def close(self, who: EndedBy) -> None:
        """End the call that is under way."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close(who)
