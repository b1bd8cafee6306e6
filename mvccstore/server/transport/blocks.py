"""The header blocks of answers: made once each, of literals that are never indexed, so that they depend on nothing."""

from __future__ import annotations

from functools import lru_cache

from mvccstore.server.transport.status import Code, RpcError, percent_encode

_MESSAGE_BYTES_MAX = 8_000
_KEPT_LENGTH_MAX = 200

TABLE_SIZE_0 = b"\x20"
"""What a block begins with that tells the client that our dynamic table has no room (RFC 7541 6.3)."""


def literal(name: bytes, value: bytes) -> bytes:
    """Pack a header field that is never indexed (RFC 7541 6.2.3), so that every block can be made once."""
    return b"\x10" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    """Pack a string without Huffman coding (RFC 7541 5.2)."""
    if len(text) < 127:
        return bytes((len(text),)) + text
    rest = len(text) - 127
    packed = bytearray((127,))
    while rest >= 128:
        packed.append(rest & 127 | 128)
        rest >>= 7
    packed.append(rest)
    return bytes(packed) + text


_STATUS_200 = b"\x88"  # an index of the static table
_CONTENT_TYPE = literal(b"content-type", b"application/grpc")
GRPC_HEAD = _STATUS_200 + _CONTENT_TYPE
"""How each answer begins."""
OK_STATUS = literal(b"grpc-status", b"0")
"""How each ends that succeeded."""


def status_block(code: Code, message: str) -> bytes:
    """Pack the trailers of a call that failed."""
    # Long messages have what the client sent in them: they are not kept, and come once.
    return _short_status(code, message) if len(message) <= _KEPT_LENGTH_MAX else _status(code, message)


def _status(code: Code, message: str) -> bytes:
    text = percent_encode(message[:_MESSAGE_BYTES_MAX])
    if len(text) > _MESSAGE_BYTES_MAX:
        # Not within one %XX.
        cut = text.rfind(b"%", _MESSAGE_BYTES_MAX - 2, _MESSAGE_BYTES_MAX)
        text = text[: _MESSAGE_BYTES_MAX if cut < 0 else cut]
    return literal(b"grpc-status", b"%d" % code) + literal(b"grpc-message", text)


_short_status = lru_cache(maxsize=256)(_status)


def refusal_block(error: RpcError, http_status: int = 200) -> bytes:
    """Pack the only block of a call that failed before it answered anything."""
    status = _STATUS_200 if http_status == 200 else literal(b":status", b"%d" % http_status)
    return status + _CONTENT_TYPE + status_block(error.code, error.message)
