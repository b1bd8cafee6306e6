"""Faults of a server, for a while or for some calls: what a client must survive."""

from __future__ import annotations

from mvccstore.testing.calls import RecordedCall
from mvccstore.testing.tap import Plan


class Faults:
    """The faults of one server."""

    def plan(self, call: RecordedCall) -> Plan | None:
        """Return what befalls a call."""
        del call
        return None

    def holds(self, call: RecordedCall, encoded: bytes) -> bool:
        """Say whether an answer of a stream is held back."""
        del call, encoded
        return False

    def clear(self) -> None:
        """End all faults."""
