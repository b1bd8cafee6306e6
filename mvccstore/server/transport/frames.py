"""The frames of HTTP/2 (RFC 9113, sections 4 and 6): numbers, and how they are packed."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEAD_BYTES: Final = 9
FRAME_BYTES_MAX: Final = 16_384
"""The largest payload both sides may send unless the other allows more."""
WINDOW_BYTES: Final = 65_535
"""What each window begins with."""
WINDOW_BYTES_MAX: Final = 2**31 - 1
STREAM_ID_MAX: Final = 2**31 - 1

unpack_head: Final = Struct(">BHBBL").unpack_from
"""Returns length >> 16, length & 0xFFFF, type, flags, stream id with its reserved bit."""

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20
_PRIORITY_BYTES = 5


class Setting(IntEnum):
    """The settings that matter here."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ErrorCode(IntEnum):
    """Why a stream or a connection ended."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class ProtocolError(Exception):
    """The peer broke a rule that ends the connection (RFC 9113 5.4.1)."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class StreamError(Exception):
    """The peer broke a rule that ends one stream (RFC 9113 5.4.2)."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Pack one frame."""
    return b"%b%c%c%b%b" % (len(payload).to_bytes(3), kind, flags, stream_id.to_bytes(4), payload)


def settings_frame(settings: dict[Setting, int]) -> bytes:
    """Pack a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(number.to_bytes(2) + value.to_bytes(4) for number, value in settings.items()))


def rst_frame(stream_id: int, code: ErrorCode) -> bytes:
    """Pack a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4))


def goaway_frame(last_stream_id: int, code: ErrorCode, reason: str) -> bytes:
    """Pack a GOAWAY frame."""
    return frame(GOAWAY, 0, 0, last_stream_id.to_bytes(4) + code.to_bytes(4) + reason.encode())


def unpadded(payload: bytes) -> bytes:
    """Return a payload without its padding.

    Raises:
        ProtocolError: There is more padding than payload, or nothing that says how much.
    """
    if not payload:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
    if payload[0] >= len(payload):
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def block_of(flags: int, payload: bytes) -> bytes:
    """Return what a HEADERS frame has of a header block, without padding and priority (passed over: RFC 9113 5.3.2).

    Raises:
        ProtocolError: It is shorter than these.
    """
    if flags & PADDED:
        payload = unpadded(payload)
    if flags & PRIORITY_FLAG:
        if len(payload) < _PRIORITY_BYTES:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS is too short for its priority")
        payload = payload[_PRIORITY_BYTES:]
    return payload


def window_frame(stream_id: int, increment: int) -> bytes:
    """Pack a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4))


def after_preface(awaited: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Return what is still to come of the preface, of which `awaited` was, and what follows it.

    Raises:
        ProtocolError: It is another.
    """
    count = min(len(data), len(awaited))
    if data[:count] != awaited[:count]:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "bad preface")
    return awaited[count:], data[count:]


class _Form(NamedTuple):
    """What RFC 9113 section 6 says of the frames of a kind."""

    name: str
    is_of_stream: bool | None
    """Whether it belongs to a stream, or to the connection; None for either."""
    bytes_min: int = 0
    is_exact: bool = False
    """Whether it has no more than `bytes_min`."""


_FORMS = {
    PRIORITY: _Form("PRIORITY", is_of_stream=True),
    RST_STREAM: _Form("RST_STREAM", is_of_stream=True, bytes_min=4, is_exact=True),
    SETTINGS: _Form("SETTINGS", is_of_stream=False),
    PING: _Form("PING", is_of_stream=False, bytes_min=8, is_exact=True),
    GOAWAY: _Form("GOAWAY", is_of_stream=False, bytes_min=8),
    WINDOW_UPDATE: _Form("WINDOW_UPDATE", is_of_stream=None, bytes_min=4, is_exact=True),
}


def check_form(kind: int, number: int, payload: bytes) -> None:
    """Raise `ProtocolError` if no client may send this kind of frame, or not on this stream, or not of this size."""
    if kind == PUSH_PROMISE:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")
    form = _FORMS.get(kind)
    if form is None:
        return
    if form.is_of_stream is not None and form.is_of_stream != (number != 0):
        raise ProtocolError(
            ErrorCode.PROTOCOL_ERROR, f"{form.name} on {'stream 0' if form.is_of_stream else 'a stream'}"
        )
    if form.is_exact and len(payload) != form.bytes_min:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"{form.name} has not {form.bytes_min} bytes")
    if len(payload) < form.bytes_min:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"{form.name} is too short")
