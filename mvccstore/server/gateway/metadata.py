"""What a call's metadata is when it came as headers of HTTP/1.1."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode

from mvccstore.server.transport.call import Metadata
from mvccstore.server.transport.http1_head import HttpRequest
from mvccstore.server.transport.status import Code, RpcError

_PREFIX = b"grpc-metadata-"
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PASSED_ON = frozenset({b"accept", b"authorization", b"content-type", b"host", b"origin", b"user-agent", b"via"})
"""Headers that services get with `grpcgateway-` before their names."""


def metadata_of(request: HttpRequest) -> Metadata:
    """Return the metadata: `Authorization`, and what begins with `Grpc-Metadata-`, without that.

    Raises:
        RpcError: A binary value is not base64.
    """
    pairs: list[tuple[bytes, bytes]] = []
    for name, value in request.headers.pairs:
        if name == b"authorization":
            pairs.append((name, value))
        if name in _PASSED_ON:
            pairs.append((b"grpcgateway-" + name, value))
        elif name.startswith(_PREFIX) and len(name) > len(_PREFIX):
            pairs.append((name[len(_PREFIX) :], _binary(name, value) if name.endswith(b"-bin") else value))
    return Metadata(tuple(pairs))


def timeout_of(request: HttpRequest) -> float | None:
    """Return how many seconds the call may take by `Grpc-Timeout`, or None.

    Raises:
        RpcError: It is no time.
    """
    value = request.headers.get(b"grpc-timeout")
    if value is None:
        return None
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise RpcError(Code.INVALID_ARGUMENT, f"invalid grpc-timeout: {value.decode('latin-1')}")
    return int(match[1]) * _SECONDS[match[2]]


def _binary(name: bytes, value: bytes) -> bytes:
    try:
        return b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise RpcError(Code.INVALID_ARGUMENT, f"invalid binary header {name.decode()}: {error}") from None
