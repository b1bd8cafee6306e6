"""How a call ends: gRPC's status codes, and the error that carries one."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """A gRPC status code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that failed: what its client is told.

    Args:
        limit: The name of the limit that the call passed, which is counted.
    """

    def __init__(self, code: Code, message: str, limit: str | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


_PLAIN = frozenset(range(0x20, 0x7F)) - {0x25}


def percent_encode(message: str) -> bytes:
    """Encode a message for the `grpc-message` header: printable ASCII as it is, all else as %XX.

    >>> percent_encode("50% möglich")
    b'50%25 m%C3%B6glich'
    """
    raw = message.encode("utf-8", "surrogatepass")
    if message.isascii() and message.isprintable() and "%" not in message:
        return raw
    return b"".join(b"%c" % byte if byte in _PLAIN else b"%%%02X" % byte for byte in raw)
