"""How a store is opened, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Durability(Enum):
    """What a commit survives before it is acknowledged. Nothing is ever lost to a crash of the process."""

    FSYNC = "fsync"
    """Every commit is on disk before the call returns. A power cut takes nothing that was acknowledged."""
    INTERVAL = "interval"
    """Synced every `sync_interval` seconds. A power cut may take what was written since; on the LMDB engine
    it may also damage the file (pages reach the disk in any order), so keep a backup."""
    OS = "os"
    """Synced when the operating system likes, and at `close`. A power cut may take or damage anything written
    since the last `sync` or `close`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest requests a store accepts. The defaults suit an embedded store; etcd's are smaller."""

    key_bytes_max: int = 1_572_864
    value_bytes_max: int = 268_435_456
    txn_ops_max: int = 100_000
    """Compares, success or failure operations of a txn, whichever are most, plus those of nested txns below."""
    txn_depth_max: int = 128
    """Levels of nesting."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How much history a store keeps by itself; what either rule wants to keep is kept.

    Raises:
        ValueError: Neither is given, or one is negative.
    """

    revisions: int | None = None
    """The last so many revisions before the current one."""
    seconds: float | None = None
    """Everything that was current within this time."""
    check_seconds: float = 60.0
    """How often to look whether there is something to compact."""

    def __post_init__(self) -> None:
        if self.revisions is not None and type(self.revisions) is not int:
            msg = f"revisions is a {type(self.revisions).__name__}, not an int"
            raise TypeError(msg)
        given = [rule for rule in (self.revisions, self.seconds) if rule is not None]
        if not given or min(given) < 0 or self.check_seconds <= 0:
            msg = f"a retention needs revisions or seconds, not negative: {self}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class HashResult:
    """A hash over the history up to a revision, equal to etcd's HashKV of the same history."""

    hash: int
    compact_revision: int
    """-1 on a store that was never compacted."""
    hash_revision: int


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Facts about an open store."""

    engine: str
    path: str
    revision: int
    compact_revision: int
    """-1 on a store that was never compacted."""
    reclaimed_revision: int
    """History below this is gone from the disk too; behind `compact_revision` while that is being done."""
    revisions_kept: int
    """Records in the log: every put and delete that is still stored."""
    used_bytes: int
    file_bytes: int
    leases: int
    snapshots: int
    """Open snapshots and scans, which hold history back from being reclaimed."""
    durability: Durability = field(default=Durability.FSYNC)
