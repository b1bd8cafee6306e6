"""The gate of all calls: which version their client says it is of, which etcd counts."""

from __future__ import annotations

from mvccstore.server.errors import Refusal
from mvccstore.server.metrics.tally import Tally
from mvccstore.server.transport.call import Call, Metadata


class ClientVersions:
    """Of one server.

    Args:
        tally: Counts them.
        is_strict: Whether a version that is no UTF-8 is refused.
    """

    __slots__ = ("_is_strict", "_known", "_requests", "_tally")

    def __init__(self, tally: Tally, *, is_strict: bool) -> None:
        self._tally = tally
        self._is_strict = is_strict
        self._known = Metadata()
        self._requests = [0, 0]

    def count(self, call: Call) -> None:
        """Count a call.

        Raises:
            RpcError: The version cannot be read.
        """
        if call.metadata is not self._known:  # calls of one connection mostly share theirs
            self._look(call.metadata)
        self._requests[call.method.is_server_streaming] += 1

    def _look(self, metadata: Metadata) -> None:
        version = "unknown"
        given = metadata.get(b"client-api-version")
        if given is not None:
            try:
                version = given.decode(errors="strict" if self._is_strict else "replace")
            except UnicodeDecodeError:
                raise Refusal.INVALID_CLIENT_API_VERSION.error() from None
        self._known = metadata
        self._requests = self._tally.requests_of(version)
