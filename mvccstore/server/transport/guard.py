"""What a peer may do how often: the counters behind `TransportLimits`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from mvccstore.server.transport.frames import ErrorCode, ProtocolError
from mvccstore.server.transport.limits import TransportLimits


class Guard:
    """The counters of one connection. Each method raises `ProtocolError` when its limit is passed."""

    __slots__ = (
        "_block_bytes",
        "_continuations",
        "_control",
        "_limits",
        "_pinged_at",
        "_resets",
        "_since",
        "_strays",
        "_strikes",
        "_time",
        "block_at",
    )

    def __init__(self, limits: TransportLimits, time: Callable[[], float]) -> None:
        self._limits = limits
        self._time = time
        self._since = time()
        self._control = self._resets = self._strays = 0
        self._continuations = self._block_bytes = 0
        self.block_at = self._since
        """When the header block began that is under way."""
        self._pinged_at = -limits.idle_ping_seconds_min
        self._strikes = 0

    def note_control(self, cost: int = 1) -> None:
        """A frame came that costs the peer nothing and us something."""
        self._control += cost
        if self._control > self._limits.control_frames_max and self._is_within(self._limits.flood_seconds):
            self._calm("control_frames_max", "too many control frames")

    def note_reset(self) -> None:
        """A call under way was taken back, or broke a rule."""
        self._resets += 1
        if self._resets > self._limits.resets_max and self._is_within(self._limits.flood_seconds):
            self._calm("resets_max", "too many calls were taken back")

    def note_stray(self) -> None:
        """Headers came for a stream that is closed: they may cross our last frame, and cost us their decoding."""
        self._strays += 1
        if self._strays > self._limits.control_frames_max and self._is_within(self._limits.flood_seconds):
            self._limits.cuts.note("control_frames_max")
            raise ProtocolError(ErrorCode.STREAM_CLOSED, "too many headers on closed streams")

    def _is_within(self, seconds: float) -> bool:
        """Say whether all that was counted came within so many seconds; if not, count anew."""
        now = self._time()
        if now - self._since <= seconds:
            return True
        self._since = now
        self._control = self._resets = self._strays = 0
        return False

    def begin_block(self, size: int) -> None:
        """A header block began that one frame does not hold."""
        self._continuations = 0
        self._block_bytes = size
        self.block_at = self._time()

    def note_continuation(self, size: int) -> None:
        """More of a header block came."""
        self._continuations += 1
        self._block_bytes += size
        if self._continuations > self._limits.continuations_max:
            self._calm("continuations_max", "header block is too large")
        if self._block_bytes > self._limits.header_bytes_max:
            self._calm("header_bytes_max", "header block is too large")

    def note_ping(self, *, has_streams: bool, has_answered: bool) -> None:
        """A ping came. Those that follow an answer are free: clients measure the line with them."""
        now = self._time()
        before, self._pinged_at = self._pinged_at, now
        self.note_control()
        if has_answered:
            self._strikes = 0
            return
        least = self._limits.ping_seconds_min if has_streams else self._limits.idle_ping_seconds_min
        if now - before < least:
            self._strikes += 1
            if self._strikes > self._limits.ping_strikes_max:
                self._calm("ping_strikes_max", "too_many_pings")

    def _calm(self, limit: str, reason: str) -> NoReturn:
        self._limits.cuts.note(limit)
        raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, reason)
