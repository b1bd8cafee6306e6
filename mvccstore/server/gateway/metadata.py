"""What a call's metadata is when it came as headers of HTTP/1.1."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode

from mvccstore.server.transport.call import Metadata
from mvccstore.server.transport.http1_head import HttpRequest
from mvccstore.server.transport.status import Code, RpcError

_PREFIX = b"grpc-metadata-"
_TIMEOUT = re.compile(rb"([+-]?[0-9]{1,100})([HMSmun])")
_TIMEOUT_MAX = 2**63 - 1
"""Of any unit, as etcd reads an integer."""
_SECONDS_MAX = 99_999_999 * 3600.0
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PASSED_ON = frozenset({b"accept", b"authorization", b"content-type", b"host", b"origin", b"user-agent", b"via"})
"""Headers that services get with `grpcgateway-` before their names."""


def metadata_of(request: HttpRequest) -> Metadata:
    """Return the metadata: `Authorization`, and what begins with `Grpc-Metadata-`, without that.

    Raises:
        RpcError: A binary value is not base64, or a name is empty.
    """
    pairs: list[tuple[bytes, bytes]] = []
    for name, value in request.headers.pairs:
        if name == b"authorization":
            pairs.append((name, value))
        if name in _PASSED_ON:
            pairs.append((b"grpcgateway-" + name, value))
        elif name == _PREFIX:
            raise RpcError(Code.INTERNAL, "there is an empty key in the header")
        elif name.startswith(_PREFIX):
            pairs.append((name[len(_PREFIX) :], _binary(name, value) if name.endswith(b"-bin") else value))
    return Metadata(tuple(pairs))


def timeout_of(request: HttpRequest) -> float | None:
    """Return how many seconds the call may take by `Grpc-Timeout`, or None, which zero and nothing are, too.

    Raises:
        RpcError: It is no time, or has passed.
    """
    value = request.headers.get(b"grpc-timeout")
    if not value:
        return None
    match = _TIMEOUT.fullmatch(value)
    if match is None or abs(int(match[1])) > _TIMEOUT_MAX:
        raise RpcError(Code.INVALID_ARGUMENT, f"invalid grpc-timeout: {value.decode('latin-1')}")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds < 0:
        raise RpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
    return min(seconds, _SECONDS_MAX) or None


def _binary(name: bytes, value: bytes) -> bytes:
    try:
        return b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise RpcError(Code.INVALID_ARGUMENT, f"invalid binary header {name.decode()}: {error}") from None
