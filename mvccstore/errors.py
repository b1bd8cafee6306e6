"""Every error the library raises on purpose, under one root.

Facts live in attributes, and the message is built from them, so a caller never parses text. Arguments
are positional, so an error survives pickling to another process. Wrong types and empty ranges are plain
`TypeError` and `ValueError`; a missing key is `None` and no error at all.
"""

from __future__ import annotations


class StoreError(Exception):
    """Root of everything this library raises on purpose."""

    retryable = False


class ClosedError(StoreError):
    """The store, snapshot, transaction or iterator was closed."""

    def __init__(self, what: str = "store") -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} is closed"


class RevisionError(StoreError):
    """The revision asked for cannot be read."""


class CompactedError(RevisionError):
    """The revision asked for was compacted away."""

    def __init__(self, revision: int, compact_revision: int) -> None:
        super().__init__(revision, compact_revision)
        self.revision, self.compact_revision = revision, compact_revision

    def __str__(self) -> str:
        return f"revision {self.revision} was compacted; the compact revision is {self.compact_revision}"


class FutureRevisionError(RevisionError):
    """The revision asked for has not been written yet."""

    def __init__(self, revision: int, current_revision: int) -> None:
        super().__init__(revision, current_revision)
        self.revision, self.current_revision = revision, current_revision

    def __str__(self) -> str:
        return f"revision {self.revision} is in the future; the current one is {self.current_revision}"


class SubscriptionLostError(CompactedError):
    """What a subscription was to deliver next was compacted away; `Subscription.skip` goes on behind it."""

    def __init__(self, name: str, revision: int, compact_revision: int) -> None:
        super().__init__(revision, compact_revision)
        self.args = (name, revision, compact_revision)
        self.name = name
        self.lost = compact_revision - revision
        """Revisions, from `revision` on."""

    def __str__(self) -> str:
        return (
            f"subscription {self.name!r} has lost {self.lost:,} revisions from {self.revision} on, compacted before "
            f"they were acknowledged; the compact revision is {self.compact_revision}"
        )


class CompactionHeldError(RevisionError):
    """A subscription still needs what a compaction was to forget."""

    def __init__(self, revision: int, held_revision: int, name: str) -> None:
        super().__init__(revision, held_revision, name)
        self.revision, self.held_revision, self.name = revision, held_revision, name

    def __str__(self) -> str:
        return (
            f"cannot compact to {self.revision}: subscription {self.name!r} needs revision {self.held_revision} and "
            "all after it"
        )


class LimitError(StoreError):
    """A request is larger than the store was told to accept."""

    noun = "request"
    unit = "bytes"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size, self.limit = size, limit

    def __str__(self) -> str:
        return f"{self.noun} of {self.size:,} {self.unit}; the limit is {self.limit:,}"


class KeyTooLargeError(LimitError):
    """A key is longer than `Limits.key_bytes_max`."""

    noun = "key"


class ValueTooLargeError(LimitError):
    """A value is longer than `Limits.value_bytes_max`."""

    noun = "value"


class TxnTooLargeError(LimitError):
    """A transaction has more operations than `Limits.txn_ops_max` leaves it."""

    noun = "txn"
    unit = "operations"


class AttributesTooLargeError(LimitError):
    """All attributes of a store together would be too large."""

    noun = "attributes"


class UnacknowledgedLimitError(LimitError):
    """A subscription has delivered so much unacknowledged that it delivers no more."""

    noun = "backlog"
    unit = "unacknowledged deliveries"


class TxnError(StoreError):
    """A write was refused as a whole; nothing of it happened."""


class DuplicateKeyError(TxnError):
    """A `TxnRequest` writes this key twice in one branch."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"key {_shown(self.key)} is written twice in one txn"


class KeyNotFoundError(TxnError):
    """A put with `ignore_value` or `ignore_lease` needs the key to exist."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"key {_shown(self.key)} does not exist, so it has no value or lease to keep"


class ConflictError(TxnError):
    """Another write came between a transaction's reads and its commit; run it again."""

    retryable = True

    def __init__(self, revision: int) -> None:
        super().__init__(revision)
        self.revision = revision

    def __str__(self) -> str:
        return f"another write committed as revision {self.revision}; run the transaction again"


class AttributesConflictError(ConflictError):
    """The attributes were changed since they were read; read them again."""

    def __init__(self, version: int, revision: int) -> None:
        super().__init__(revision)
        self.args = (version, revision)
        self.version = version

    def __str__(self) -> str:
        return (
            f"the attributes are at version {self.version}, not at the one that was read; read them again "
            f"(the store is at revision {self.revision})"
        )


class LeaseError(StoreError):
    """A lease cannot be used as asked."""

    def __init__(self, lease_id: int) -> None:
        super().__init__(lease_id)
        self.lease_id = lease_id


class LeaseNotFoundError(LeaseError):
    """No lease has this id: it expired, was revoked, or never was."""

    def __str__(self) -> str:
        return f"lease {self.lease_id} not found"


class LeaseExistsError(LeaseError):
    """A lease has this id already."""

    def __str__(self) -> str:
        return f"lease {self.lease_id} already exists"


class SubscriptionError(StoreError):
    """A subscription cannot be used as asked."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class SubscriptionNotFoundError(SubscriptionError):
    """No subscription has this name."""

    def __str__(self) -> str:
        return f"there is no subscription {self.name!r}"


class SubscriptionExistsError(SubscriptionError):
    """A subscription has this name already, and other keys."""

    def __str__(self) -> str:
        return f"subscription {self.name!r} exists already, with other keys"


class SubscriptionInUseError(SubscriptionError):
    """Somebody has this subscription open."""

    def __str__(self) -> str:
        return f"subscription {self.name!r} is open already; several threads may share it, or close it first"


class StorageError(StoreError):
    """The file under the store cannot be used as asked."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class LockedError(StorageError):
    """Another process (or this one) has the store open for writing."""

    retryable = True

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(path, holder)
        self.holder = holder

    def __str__(self) -> str:
        return f"{self.path}: open for writing by {self.holder}"


class StorageFullError(StorageError):
    """The disk or the quota is full; what was committed is safe and readable."""


class FormatError(StorageError):
    """The file is not a store, or one of a newer format than this version reads."""


class CorruptError(StorageError):
    """Stored bytes contradict themselves. `problems` says where."""

    def __init__(self, path: str, reason: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(path, reason)
        self.args = (path, reason, problems)
        self.problems = problems or (reason,)


class ReplicationError(StoreError):
    """A command was not replicated."""


class NotLeaderError(ReplicationError):
    """This member may not propose commands; `leader_hint` may."""

    retryable = True

    def __init__(self, leader_hint: str | None = None) -> None:
        super().__init__(leader_hint)
        self.leader_hint = leader_hint

    def __str__(self) -> str:
        hint = f"; try {self.leader_hint}" if self.leader_hint else ""
        return f"this member is not the leader{hint}"


def _shown(key: bytes) -> str:
    """A key as it fits into a message, however long it is."""
    return repr(key) if len(key) <= 64 else f"{key[:64]!r}… ({len(key):,} bytes)"
