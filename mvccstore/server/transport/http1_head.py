"""The head of an HTTP/1.1 request: what is read of it, and what is refused that `h11` takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote

import h11

from mvccstore.server.transport.call import Metadata, Peer
from mvccstore.server.transport.limits import TransportLimits

HEAD_TOO_LARGE = 431
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The head of a request."""

    method: str
    path: str
    """Without escapes."""
    query: str
    """What follows the question mark, with its escapes."""
    headers: Metadata
    peer: Peer
    is_secure: bool = False
    """Whether it came over TLS."""


class Refused(Exception):  # noqa: N818 - no error of ours
    """What came is no request; how it is answered before the connection ends."""

    def __init__(self, status: int, message: str, limit: str | None = None) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.limit = limit
        """The limit that it passed."""


def request_of(event: h11.Request, limits: TransportLimits, peer: Peer, *, is_secure: bool) -> HttpRequest:
    """Judge a head as far as `h11` has not.

    Raises:
        Refused: It must not be served.
    """
    pairs = tuple((bytes(name), bytes(value)) for name, value in event.headers)
    headers = Metadata(pairs)
    if sum(len(name) + len(value) for name, value in pairs) > limits.http_head_bytes_max:
        raise Refused(HEAD_TOO_LARGE, "the head is too large", "http_head_bytes_max")
    if not event.http_version.startswith(b"1."):
        raise Refused(505, "unsupported protocol version")
    if headers.get(b"transfer-encoding") is not None:
        if headers.get(b"content-length") is not None:
            raise Refused(400, "both a length and an encoding")
        if event.http_version == b"1.0":
            raise Refused(400, "an encoding that HTTP/1.0 does not know")
    expect = headers.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise Refused(417, "unknown expectation")
    path, query = _split_target(event.target.decode("latin-1"))
    return HttpRequest(event.method.decode("ascii"), path, query, headers, peer, is_secure)


def _split_target(target: str) -> tuple[str, str]:
    """Return path and query of a request target (RFC 9112 3.2)."""
    if not target.startswith("/"):
        scheme, separator, rest = target.partition("://")
        if separator and scheme.lower() in {"http", "https"}:
            target = "/" + rest.partition("/")[2]
    path, _, query = target.partition("?")
    if _BAD_ESCAPE.search(path):
        raise Refused(400, "bad escape in the path")
    return unquote(path, "latin-1"), query


def reason_of(status: int) -> bytes:
    """Return the words for a status; none for one that has none."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
