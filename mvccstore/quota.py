"""The quota: how large a store may become."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from mvccstore.errors import StorageFullError
from mvccstore.types import BatchRequest, PutRequest, Request, TxnRequest, WriteRequest

PUT_OVERHEAD_BYTES: Final = 256
"""What a put costs besides its key and value (etcd's figure)."""


class Quota:
    """Lets writes in until the store is full. Whatever makes room, or adds nothing, is always let in.

    Args:
        path: The store's, for the error.
        limit_bytes: 0 for no limit.
        used_bytes: Measures how large the store is.
    """

    def __init__(self, path: str, limit_bytes: int, used_bytes: Callable[[], int]) -> None:
        self._path = path
        self.limit_bytes = limit_bytes
        self._measure = used_bytes
        self._lock = threading.Lock()  # guards _used_bytes; a leaf lock
        self._used_bytes = 0

    def measure(self) -> None:
        """Look at the size anew: after each commit, as what was let in since the last is now in it."""
        used = self._measure()
        with self._lock:
            self._used_bytes = used

    def forget(self) -> None:
        """Make the lock anew, in a child after a fork."""
        self._lock = threading.Lock()

    def admit(self, request: WriteRequest) -> None:
        """Let a write in, and count it until the next `measure`.

        Raises:
            StorageFullError: It would go over the limit.
        """
        if not self.limit_bytes:
            return
        cost_bytes = cost(request)
        if not cost_bytes:
            return
        with self._lock:
            if self._used_bytes + cost_bytes > self.limit_bytes:
                reason = f"the quota of {self.limit_bytes:,} bytes is used up; delete keys, then compact"
                raise StorageFullError(self._path, reason)
            self._used_bytes += cost_bytes


def cost(request: Request | WriteRequest) -> int:
    """Return what a request may add to the store, in bytes; 0 if it makes room or reads."""
    match request:
        case PutRequest():
            return PUT_OVERHEAD_BYTES + len(request.key) + len(request.value)
        case TxnRequest():
            return max(sum(map(cost, request.success)), sum(map(cost, request.failure)))
        case BatchRequest():
            return sum(map(cost, request.requests))
        case _:
            return 0
