"""What a request for a WebSocket means to the gateway: as etcd has it, a POST whose body is the messages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from mvccstore.server.gateway.splitter import JsonSplitter
from mvccstore.server.transport.call import Metadata
from mvccstore.server.transport.exchange import BodyReceiver
from mvccstore.server.transport.http1_head import HttpRequest

_BEARER = b"Bearer"
_TOKEN_COOKIE = b"token"
_PASSED_ON = frozenset({b"origin", b"referer"})


def subprotocol_of(request: HttpRequest) -> bytes | None:
    """Return the one that is chosen: only that by which web pages send a token, as they can set no other header."""
    return _BEARER if _protocols(request).startswith(_BEARER) else None


def upgraded(request: HttpRequest) -> HttpRequest:
    """Return the request that is served behind the handshake. Of the headers that are etcd's few remain.

    The token is the cookie's of that name, or else what follows `Bearer,` in `Sec-WebSocket-Protocol`. An
    `Authorization` is not looked at, nor `Grpc-Timeout` or what begins with `Grpc-Metadata-`.
    """
    pairs = [(name, value) for name, value in request.headers.pairs if name in _PASSED_ON]
    token = _cookie(request)
    if token is None:
        _, separator, rest = _protocols(request).partition(_BEARER + b",")
        token = rest.strip(b" ") if separator else None
    if token is not None:
        pairs.append((b"authorization", _BEARER + b" " + token))
    return HttpRequest("POST", request.path, request.query, Metadata(tuple(pairs)), request.peer, request.is_secure)


def _protocols(request: HttpRequest) -> bytes:
    return request.headers.get(b"sec-websocket-protocol") or b""


def _cookie(request: HttpRequest) -> bytes | None:
    for name, value in request.headers.pairs:
        if name == b"cookie":
            for part in value.split(b";"):
                known, separator, token = part.strip().partition(b"=")
                if separator and known == _TOKEN_COOKIE:
                    return token.removeprefix(b'"').removesuffix(b'"')
    return None


class FirstObject:
    """Ends a body behind its first object: no client can end it, and the call has but one request.

    etcd waits for the end all the same, so that such calls get no answer from it.
    """

    def __init__(self, body: BodyReceiver) -> None:
        self._body = body
        self._splitter = JsonSplitter()
        self._is_complete = False
        self._is_looking = False
        """Whether it is looked on in the next turn of the loop."""

    @property
    def pending_bytes(self) -> int:
        """As the body's."""
        return self._body.pending_bytes

    def data(self, data: bytes) -> None:
        """Take the next message."""
        if self._is_complete:
            return
        self._body.data(data)
        objects = self._splitter.feed(data)
        if not self._is_looking:
            self._look(objects)

    def _look(self, objects: Iterator[bytes]) -> None:
        try:
            found = next(objects, None)
        except ValueError:
            found = b"{"  # for the body to say what is wrong
        self._is_looking = found == b""
        if self._is_looking:
            asyncio.get_running_loop().call_soon(self._look, objects)
        elif found is not None:
            self._is_complete = True
            self._body.end()

    def end(self) -> None:
        """Never called: a close is the end of the call."""
