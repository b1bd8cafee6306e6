"""Integers that the services count up as they work. Each is written on one thread, and not locked."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mvccstore.server.transport.counts import Histogram
from mvccstore.types import DeleteRequest, PutRequest, RangeRequest, TxnRequest, TxnResult

COMMIT_BOUNDS = tuple(0.001 * 2**power for power in range(14))
"""Seconds: those of etcd's histograms of its disk."""
DEFRAGMENT_BOUNDS = tuple(0.1 * 2**power for power in range(13))
SNAPSHOT_BOUNDS = tuple(0.01 * 2**power for power in range(17))
HASH_BOUNDS = SNAPSHOT_BOUNDS[:15]
TTL_BOUNDS = tuple(float(2**power) for power in range(24))
_VERSIONS_MAX = 100
_OTHERS = "other"


class Watches(NamedTuple):
    """How many there are."""

    streams: int = 0
    watches: int = 0
    unsynced: int = 0


class Tally:
    """Of one server."""

    __slots__ = (
        "commits",
        "defragments",
        "defragments_under_way",
        "deletes",
        "events",
        "hashes",
        "hashes_of_revisions",
        "health_failures",
        "health_successes",
        "lease_seconds",
        "leases_at_start",
        "leases_granted",
        "leases_renewed",
        "leases_revoked",
        "proposals_failed",
        "put_bytes",
        "puts",
        "ranges",
        "requests",
        "snapshots",
        "txns",
        "watches",
    )

    def __init__(self, leases: int) -> None:
        self.ranges = self.puts = self.deletes = self.txns = self.put_bytes = 0
        self.leases_at_start = leases
        self.leases_granted = self.leases_revoked = self.leases_renewed = 0
        self.lease_seconds = Histogram(TTL_BOUNDS)
        self.events = 0
        self.proposals_failed = self.health_successes = self.health_failures = 0
        self.commits = Histogram(COMMIT_BOUNDS)
        self.defragments = Histogram(DEFRAGMENT_BOUNDS)
        self.defragments_under_way = 0
        self.snapshots = Histogram(SNAPSHOT_BOUNDS)
        self.hashes, self.hashes_of_revisions = Histogram(HASH_BOUNDS), Histogram(HASH_BOUNDS)
        self.requests: dict[str, list[int]] = {}
        """Calls by the version that clients say they are of: unary, and streams."""
        self.watches: Callable[[], Watches] = Watches

    def requests_of(self, version: str) -> list[int]:
        """Return the counts of a version; all are one after the first hundred, which clients make up."""
        if version not in self.requests and len(self.requests) >= _VERSIONS_MAX:
            version = _OTHERS
        return self.requests.setdefault(version, [0, 0])

    def note_txn(self, request: TxnRequest, result: TxnResult) -> None:
        """Count what a txn did; to etcd a compare is a range of its own."""
        self.ranges += len(request.compare) if result.succeeded else min(len(request.compare), 1)
        if self._note_all(request, result) > 1:
            self.txns += 1

    def _note_all(self, request: TxnRequest, result: TxnResult) -> int:
        number = 0
        branch = request.success if result.succeeded else request.failure
        for operation, response in zip(branch, result.responses, strict=True):
            match operation:
                case TxnRequest():
                    assert isinstance(response, TxnResult)
                    number += self._note_all(operation, response)
                    continue
                case PutRequest():
                    self.puts += 1
                    self.put_bytes += len(operation.key) + len(operation.value)
                case DeleteRequest():
                    self.deletes += 1
                case RangeRequest():
                    self.ranges += 1
            number += 1
        return number
