"""Whether the other end of a connection is still there: pings where it was silent, and when to give it up."""

from __future__ import annotations

from mvccstore.server.transport.limits import TransportLimits

PING_IS_DUE = "keepalive_seconds"
"""The one limit that is no end yet."""


class Keepalive:
    """Of one connection. Times are the loop's."""

    __slots__ = ("_closing_at", "_limits", "_made_at", "heard_at", "partial_at", "pinged_at")

    def __init__(self, limits: TransportLimits, now: float) -> None:
        self._limits = limits
        self._made_at = self.heard_at = now
        self.pinged_at: float | None = None
        """When it was asked whether it is there; None if it has said something since."""
        self.partial_at: float | None = None
        """Since when a frame is known to be incomplete; the connection forgets it when it comes to its end."""
        self._closing_at: float | None = None

    def hear(self, now: float) -> None:
        """Note that something came: whatever it says, it is there."""
        self.heard_at = now
        self.pinged_at = None

    def judge(
        self, now: float, *, is_closing: bool, has_settings: bool, has_rest: bool, block_at: float | None
    ) -> str | None:
        """Return the limit that it has passed: it is to be given up, or pinged if that is `PING_IS_DUE`.

        Args:
            is_closing: It was told to go, and what was sent to it may not be read yet.
            has_settings: It has begun as a client does.
            has_rest: A frame has come in part, and it is the client who keeps us waiting for the rest.
            block_at: When a header block began that is not complete.
        """
        limits = self._limits
        timeout = limits.keepalive_timeout_seconds
        if is_closing:
            if self._closing_at is None:
                self._closing_at = now
            return "keepalive_timeout_seconds" if now - self._closing_at > timeout else None
        if self.pinged_at is not None and now - self.pinged_at > timeout:
            return "keepalive_timeout_seconds"
        if not has_settings and now - self._made_at > limits.handshake_seconds:
            return "handshake_seconds"
        if not has_rest:
            self.partial_at = None
        elif self.partial_at is None:
            self.partial_at = now
        for began_at in (block_at, self.partial_at):
            if began_at is not None and now - began_at > limits.frame_seconds:
                return "frame_seconds"
        if self.pinged_at is None and now - self.heard_at > limits.keepalive_seconds:
            self.pinged_at = now
            return PING_IS_DUE
        return None
