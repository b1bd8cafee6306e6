"""How a call over JSON is refused: the HTTP status, and the error in JSON.

As 3.6 has it, an error has `code` and `message`. Beside that it has what 3.5 has, whichever of the two is served, as
clients are about that were written for it: `error` in the answer of a unary call; in the line of a stream `grpc_code`,
`http_code` and `http_status`, the second of which lua-resty-etcd (APISIX) compares without looking whether it is there.
"""

from __future__ import annotations

import json
from http import HTTPStatus

from mvccstore.server.persona import Persona
from mvccstore.server.transport.exchange import TEXT, Exchange
from mvccstore.server.transport.status import Code, RpcError

JSON = (b"Content-Type", b"application/json")

HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""What a call that ends with a code is answered with."""


class Failures:
    """How an etcd of one version refuses."""

    __slots__ = ("_has_status_errors", "_is_plain", "_statuses")

    def __init__(self, persona: Persona) -> None:
        self._is_plain = persona.has_plain_gateway_errors
        self._has_status_errors = persona.has_status_errors
        self._statuses = HTTP_STATUS | ({Code.CANCELLED: 408} if persona.has_timeout_for_cancelled else {})

    def status(self, code: Code) -> int:
        """Return the HTTP status of a call that ends with a code."""
        return self._statuses[code]

    def respond(self, exchange: Exchange, error: RpcError) -> None:
        """Answer a unary call, or what is none, with an error."""
        shape = {"code": int(error.code), "message": error.message, "error": error.message}
        fields = [JSON]
        if error.code == Code.UNAUTHENTICATED and self._has_status_errors:
            shown = error.message if error.message.isascii() and error.message.isprintable() else "etcd"
            fields.append((b"WWW-Authenticate", shown.encode()))
        exchange.respond(self._statuses[error.code], fields, _dump(shape))

    def respond_no_path(self, exchange: Exchange) -> None:
        """Answer a request for a path that is no method's."""
        if self._is_plain:
            exchange.respond(404, TEXT, b"Not Found\n")
        else:
            self.respond(exchange, RpcError(Code.NOT_FOUND, "Not Found"))

    def respond_no_verb(self, exchange: Exchange) -> None:
        """Answer a request that is no POST."""
        if self._is_plain:
            exchange.respond(405, TEXT, b"Method Not Allowed\n")
        else:
            # As etcd 3.6 has it: the code is UNIMPLEMENTED, and so is the status.
            self.respond(exchange, RpcError(Code.UNIMPLEMENTED, "Method Not Allowed"))

    def line(self, error: RpcError) -> bytes:
        """Return the line that ends a stream."""
        status = self._statuses[error.code]
        shape: dict[str, object] = {"code": int(error.code)} if self._has_status_errors else {}
        shape |= {
            "message": error.message,
            "grpc_code": int(error.code),
            "http_code": status,
            "http_status": "" if status == 499 else HTTPStatus(status).phrase,
        }
        return _dump({"error": shape}) + b"\n"


def _dump(shape: object) -> bytes:
    return json.dumps(shape, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
