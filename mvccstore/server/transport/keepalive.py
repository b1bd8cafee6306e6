"""Whether the other end of a connection is still there: pings where it was silent, and when to give it up."""

from __future__ import annotations

from enum import Enum, auto

from mvccstore.server.transport.limits import TransportLimits


class Verdict(Enum):
    """What is to be done."""

    WAIT = auto()
    PING = auto()
    GIVE_UP = auto()


class Keepalive:
    """Of one connection. Times are the loop's."""

    __slots__ = ("_closing_at", "_limits", "_made_at", "heard_at", "pinged_at")

    def __init__(self, limits: TransportLimits, now: float) -> None:
        self._limits = limits
        self._made_at = self.heard_at = now
        self.pinged_at: float | None = None
        """When it was asked whether it is there; None if it has said something since."""
        self._closing_at: float | None = None

    def hear(self, now: float) -> None:
        """Note that something came: whatever it says, it is there."""
        self.heard_at = now
        self.pinged_at = None

    def judge(self, now: float, *, is_closing: bool, has_settings: bool) -> Verdict:
        """Say what is to be done about it.

        Args:
            is_closing: It was told to go, and what was sent to it may not be read yet.
            has_settings: It has begun as a client does.
        """
        limits = self._limits
        timeout = limits.keepalive_timeout_seconds
        if is_closing:
            if self._closing_at is None:
                self._closing_at = now
            return Verdict.GIVE_UP if now - self._closing_at > timeout else Verdict.WAIT
        if self.pinged_at is not None and now - self.pinged_at > timeout:
            return Verdict.GIVE_UP
        if not has_settings and now - self._made_at > limits.handshake_seconds:
            return Verdict.GIVE_UP
        if self.pinged_at is None and now - self.heard_at > limits.keepalive_seconds:
            self.pinged_at = now
            return Verdict.PING
        return Verdict.WAIT
