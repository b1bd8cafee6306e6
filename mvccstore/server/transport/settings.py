"""SETTINGS (RFC 9113 6.5): ours, and what a client's say as far as a server of gRPC has to know it."""

from __future__ import annotations

from mvccstore.server.transport.frames import (
    FRAME_BYTES_MAX,
    WINDOW_BYTES,
    WINDOW_BYTES_MAX,
    ErrorCode,
    ProtocolError,
    Setting,
    settings_frame,
)
from mvccstore.server.transport.limits import TransportLimits

_FRAME_BYTES_LIMIT = 2**24
_TABLE_BYTES = 4_096


def server_settings(limits: TransportLimits) -> bytes:
    """Return the frame that says what we allow."""
    return settings_frame(
        {
            Setting.MAX_CONCURRENT_STREAMS: limits.streams_max,
            Setting.INITIAL_WINDOW_SIZE: limits.window_bytes,
            Setting.MAX_HEADER_LIST_SIZE: limits.header_bytes_max,
        }
    )


class ClientSettings:
    """The settings of one client, as of its last SETTINGS frame."""

    __slots__ = ("frame_bytes_max", "has_small_table", "initial_window")

    def __init__(self) -> None:
        self.initial_window = WINDOW_BYTES
        self.frame_bytes_max = FRAME_BYTES_MAX
        self.has_small_table = False
        """Whether it has ever allowed less for header compression than a table begins with."""

    def take(self, payload: bytes) -> None:
        """Take the payload of a SETTINGS frame; of values for one name the last counts.

        Raises:
            ProtocolError: It is not made of settings, or one has a value that it may not have.
        """
        if len(payload) % 6:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS is not made of 6 bytes each")
        for position in range(0, len(payload), 6):
            name = int.from_bytes(payload[position : position + 2])
            self._set(name, int.from_bytes(payload[position + 2 : position + 6]))

    def _set(self, name: int, value: int) -> None:
        if name == Setting.INITIAL_WINDOW_SIZE:
            if value > WINDOW_BYTES_MAX:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "initial window is too large")
            self.initial_window = value
        elif name == Setting.MAX_FRAME_SIZE:
            if not FRAME_BYTES_MAX <= value < _FRAME_BYTES_LIMIT:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "maximum frame size is out of range")
            self.frame_bytes_max = value
        elif name == Setting.ENABLE_PUSH and value > 1:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        elif name == Setting.HEADER_TABLE_SIZE and value < _TABLE_BYTES:
            self.has_small_table = True
