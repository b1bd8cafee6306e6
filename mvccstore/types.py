"""The values of the public API: keys and ranges, rows and events, requests and their results.

Keys and values are `bytes`, only. Rows that are built per scanned item are `NamedTuple`; everything else
is a frozen slotted dataclass. Requests check their own types and shape when they are made, so a wrong
one fails where it is written and not where it is applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Literal, NamedTuple, SupportsIndex, overload

from mvccstore.attributes import AttributesRequest as AttributesRequest
from mvccstore.attributes import AttributesResult as AttributesResult

SortTarget = Literal["key", "version", "create", "mod", "value"]
SortOrder = Literal["none", "ascend", "descend"]
CompareTarget = Literal["version", "create", "mod", "value", "lease"]
CompareOperator = Literal["==", "!=", ">", "<"]

SUBSCRIPTION_NAME_BYTES_MAX = 255
_SORT_TARGETS = frozenset({"key", "version", "create", "mod", "value"})
_SORT_ORDERS = frozenset({"none", "ascend", "descend"})
_COMPARE_TARGETS = frozenset({"version", "create", "mod", "value", "lease"})
_COMPARE_OPERATORS = frozenset({"==", "!=", ">", "<"})


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys with start <= key < end, in byte order; `end=None` has no bound.

    Raises:
        ValueError: `end` is at or below `start`; use `KeyRange.empty()` where that is meant.

    >>> KeyRange.prefix(b"jobs/")
    KeyRange(start=b'jobs/', end=b'jobs0')
    >>> b"jobs/7" in KeyRange.prefix(b"jobs/")
    True
    """

    start: bytes
    end: bytes | None = None

    def __post_init__(self) -> None:
        if type(self.start) is not bytes:
            raise TypeError(_not_bytes("start", self.start))
        if self.end is None:
            return
        if type(self.end) is not bytes:
            raise TypeError(_not_bytes("end", self.end))
        if self.end <= self.start and self.end:
            msg = f"range is inverted or empty: start {self.start!r}, end {self.end!r}"
            raise ValueError(msg)
        if not self.end and self.start:
            msg = "range end is empty; None has no bound"
            raise ValueError(msg)

    @classmethod
    def exactly(cls, key: bytes) -> KeyRange:
        """Only `key`; the same as writing the key itself wherever a range is taken."""
        return cls(key, key + b"\0")

    @classmethod
    def prefix(cls, prefix: bytes) -> KeyRange:
        """Every key that begins with `prefix`; every key at all if it is empty."""
        if type(prefix) is not bytes:
            raise TypeError(_not_bytes("prefix", prefix))
        trimmed = prefix.rstrip(b"\xff")
        return cls(prefix, trimmed[:-1] + bytes((trimmed[-1] + 1,)) if trimmed else None)

    @classmethod
    def all(cls) -> KeyRange:
        """Every key."""
        return cls(b"", None)

    @classmethod
    def empty(cls) -> KeyRange:
        """No key."""
        return cls(b"", b"")

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self.start <= key and (self.end is None or key < self.end)


Keys = bytes | KeyRange
"""A bare `bytes` is exactly that key."""


class KeyValue(NamedTuple):
    """A key as it is at some revision."""

    key: bytes
    create_revision: int
    """The revision that created this generation of the key."""
    mod_revision: int
    """The revision that last changed it."""
    version: int
    """Puts since creation; 1 when just created."""
    value: bytes
    lease: int = 0
    """The lease it is attached to; 0 for none."""


class Event(NamedTuple):
    """One change of one key."""

    type: Literal["put", "delete"]
    kv: KeyValue
    """After a delete: only `key` and `mod_revision` are set."""
    prev_kv: KeyValue | None = None
    """The key before the change, where it was asked for, existed and is not compacted."""

    @property
    def revision(self) -> int:
        """The revision that made the change."""
        return self.kv.mod_revision

    @property
    def is_create(self) -> bool:
        """Whether the key did not exist before."""
        return self.type == "put" and self.kv.create_revision == self.kv.mod_revision


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """A bounded read inside a txn; field by field etcd's, so a server only translates.

    A negative `revision` follows etcd's rule for txns and is not for embedded use.
    """

    keys: Keys
    revision: int = 0
    limit: int = 0
    sort_target: SortTarget = "key"
    sort_order: SortOrder = "none"
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0

    def __post_init__(self) -> None:
        check_keys(self.keys)
        for name in ("revision", "limit", *_REVISION_FILTERS):
            if type(getattr(self, name)) is not int:
                raise TypeError(_not_int(name, getattr(self, name)))
        if self.sort_target not in _SORT_TARGETS:
            msg = f"sort target is {self.sort_target!r}, not one of {sorted(_SORT_TARGETS)}"
            raise ValueError(msg)
        if self.sort_order not in _SORT_ORDERS:
            msg = f"sort order is {self.sort_order!r}, not one of {sorted(_SORT_ORDERS)}"
            raise ValueError(msg)


_REVISION_FILTERS = ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")


@dataclass(frozen=True, slots=True)
class PutRequest:
    """Set a key."""

    key: bytes
    value: bytes = b""
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False

    def __post_init__(self) -> None:
        keeps = self.ignore_value or self.ignore_lease
        if (
            type(self.key) is type(self.value) is bytes
            and type(self.lease) is int
            and self.key
            and not (self.lease or keeps)
        ):
            return  # 0.1 us less on the way of every put
        if type(self.key) is not bytes:
            raise TypeError(_not_bytes("key", self.key))
        if type(self.value) is not bytes:
            raise TypeError(_not_bytes("value", self.value))
        check_lease_id(self.lease)
        if not self.key:
            raise ValueError(_EMPTY_KEY)
        if self.ignore_value and self.value:
            msg = "ignore_value keeps the old value, so none may be given"
            raise ValueError(msg)
        if self.ignore_lease and self.lease:
            msg = "ignore_lease keeps the old lease, so none may be given"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """Delete every key in `keys`."""

    keys: Keys
    prev_kv: bool = False

    def __post_init__(self) -> None:
        check_keys(self.keys)


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a txn: must hold for the key, or for every key in the range.

    A missing key, or a range without keys, compares as 0; its value compares as false, whatever the
    operator (etcd's rule).

    >>> Compare.version(b"jobs/1", "==", 0)
    Compare(keys=b'jobs/1', target='version', operator='==', operand=0)
    """

    keys: Keys
    target: CompareTarget
    operator: CompareOperator
    operand: int | bytes

    def __post_init__(self) -> None:
        check_keys(self.keys)
        if self.target not in _COMPARE_TARGETS:
            msg = f"compare target is {self.target!r}, not one of {sorted(_COMPARE_TARGETS)}"
            raise ValueError(msg)
        if self.operator not in _COMPARE_OPERATORS:
            msg = f"compare operator is {self.operator!r}, not one of {sorted(_COMPARE_OPERATORS)}"
            raise ValueError(msg)
        if self.target == "value":
            if type(self.operand) is not bytes:
                raise TypeError(_not_bytes("operand", self.operand))
        elif type(self.operand) is not int:
            raise TypeError(_not_int("operand", self.operand))

    @staticmethod
    def version(keys: Keys, operator: CompareOperator, operand: int) -> Compare:
        """Compare the number of puts since creation; `== 0` means the key does not exist."""
        return Compare(keys, "version", operator, operand)

    @staticmethod
    def create_revision(keys: Keys, operator: CompareOperator, operand: int) -> Compare:
        """Compare the revision that created the key."""
        return Compare(keys, "create", operator, operand)

    @staticmethod
    def mod_revision(keys: Keys, operator: CompareOperator, operand: int) -> Compare:
        """Compare the revision that last changed the key."""
        return Compare(keys, "mod", operator, operand)

    @staticmethod
    def value(keys: Keys, operator: CompareOperator, operand: bytes) -> Compare:
        """Compare the value, bytewise."""
        return Compare(keys, "value", operator, operand)

    @staticmethod
    def lease(keys: Keys, operator: CompareOperator, operand: SupportsIndex) -> Compare:
        """Compare the id of the lease the key is attached to; 0 is none."""
        return Compare(keys, "lease", operator, lease_id_of(operand))


@dataclass(frozen=True, slots=True)
class TxnRequest:
    """Compares, what to do if all hold, what to do if not; one atomic step."""

    compare: tuple[Compare, ...] = ()
    success: tuple[Request, ...] = ()
    failure: tuple[Request, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("compare", Compare), ("success", _REQUESTS), ("failure", _REQUESTS)):
            members = getattr(self, name)
            if type(members) is not tuple:
                msg = f"{name} is a {type(members).__name__}, not a tuple"
                raise TypeError(msg)
            for member in members:
                if not isinstance(member, allowed):
                    msg = f"{name} holds a {type(member).__name__}; make its members with Compare and Op"
                    raise TypeError(msg)


Request = RangeRequest | PutRequest | DeleteRequest | TxnRequest
_REQUESTS = (RangeRequest, PutRequest, DeleteRequest, TxnRequest)


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """The writes of a transaction block, in order; unlike a txn's, they may repeat a key."""

    requests: tuple[PutRequest | DeleteRequest, ...]
    base_revision: int
    """What the block read. Applied on top of anything newer, it raises `ConflictError`."""

    def __post_init__(self) -> None:
        if type(self.base_revision) is not int:
            raise TypeError(_not_int("base revision", self.base_revision))
        for request in self.requests:
            if not isinstance(request, PutRequest | DeleteRequest):
                msg = f"a batch holds a {type(request).__name__}; it takes puts and deletes"
                raise TypeError(msg)


@dataclass(frozen=True, slots=True)
class CompactRequest:
    """Forget history below `revision`; with `force`, also what a subscription holds."""

    revision: int
    force: bool = False

    def __post_init__(self) -> None:
        if type(self.revision) is not int:
            raise TypeError(_not_int("revision", self.revision))


@dataclass(frozen=True, slots=True)
class LeaseGrantRequest:
    """Create a lease."""

    lease_id: int
    ttl_ms: int

    def __post_init__(self) -> None:
        check_lease_id(self.lease_id)
        if type(self.ttl_ms) is not int:
            raise TypeError(_not_int("ttl", self.ttl_ms))


@dataclass(frozen=True, slots=True)
class LeaseRevokeRequest:
    """Delete a lease and every key attached to it."""

    lease_id: int

    def __post_init__(self) -> None:
        check_lease_id(self.lease_id)


@dataclass(frozen=True, slots=True)
class SubscriptionSaveRequest:
    """Create a subscription, or give it other terms."""

    name: str
    keys: Keys
    start_revision: int | None
    """The first to deliver, 0 for the one after the current; None leaves the cursor of an existing one alone."""
    hold_revisions: int | None = None
    hold_ms: int | None = None

    def __post_init__(self) -> None:
        check_subscription_name(self.name)
        check_keys(self.keys)
        for number in (self.start_revision, self.hold_revisions, self.hold_ms):
            if number is not None:
                check_revision(number)


@dataclass(frozen=True, slots=True)
class SubscriptionAckRequest:
    """Move the cursor of a subscription forward to `revision`, if it is behind that."""

    name: str
    revision: int

    def __post_init__(self) -> None:
        check_subscription_name(self.name)
        check_revision(self.revision)


@dataclass(frozen=True, slots=True)
class SubscriptionDeleteRequest:
    """Forget a subscription."""

    name: str

    def __post_init__(self) -> None:
        check_subscription_name(self.name)


SubscriptionRequest = SubscriptionSaveRequest | SubscriptionAckRequest | SubscriptionDeleteRequest
LeaseRequest = LeaseGrantRequest | LeaseRevokeRequest
OtherRequest = LeaseRequest | SubscriptionRequest | AttributesRequest
WriteRequest = PutRequest | DeleteRequest | TxnRequest | BatchRequest | CompactRequest | OtherRequest


class Command(NamedTuple):
    """A write on its way to being applied: the request, and the time it was made at.

    Applying it is deterministic: everything that could differ between two members (time, random
    numbers, generated ids) is in here. `codec.pack_command` turns it into bytes and back.
    """

    request: WriteRequest
    time_ms: int


class Op:
    """Makes the operations of a txn.

    >>> Op.put(b"jobs/1", b"taken")
    PutRequest(key=b'jobs/1', value=b'taken', lease=0, prev_kv=False, ignore_value=False, ignore_lease=False)
    """

    @staticmethod
    def put(
        key: bytes,
        value: bytes,
        *,
        lease: SupportsIndex = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
    ) -> PutRequest:
        """Set a key; see `Store.put`."""
        return PutRequest(key, value, lease_id_of(lease), prev_kv, ignore_value, ignore_lease)

    @staticmethod
    def delete(keys: Keys, *, prev_kv: bool = False) -> DeleteRequest:
        """Delete keys; see `Store.delete`."""
        return DeleteRequest(keys, prev_kv)

    @staticmethod
    def range(
        keys: Keys,
        *,
        revision: int = 0,
        limit: int = 0,
        order_by: SortTarget = "key",
        descending: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
    ) -> RangeRequest:
        """Read keys; see `Store.range`. It sees what earlier operations of the same txn wrote."""
        check_revision(revision)
        check_limit(limit)
        return RangeRequest(
            keys,
            revision,
            limit,
            order_by,
            sort_order(order_by, descending=descending),
            keys_only,
            count_only,
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
        )

    @staticmethod
    def txn(
        *, compare: Sequence[Compare] = (), success: Sequence[Request] = (), failure: Sequence[Request] = ()
    ) -> TxnRequest:
        """Nest a txn. Its compares see the state before the outermost txn, whatever ran before it."""
        return TxnRequest(tuple(compare), tuple(success), tuple(failure))


@dataclass(frozen=True, slots=True)
class PutResult:
    """What a put did."""

    revision: int
    prev_kv: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """What a delete did."""

    revision: int
    """The revision of the delete; the current one if no key was deleted."""
    deleted: int
    prev_kvs: tuple[KeyValue, ...] = ()


@dataclass(frozen=True, slots=True)
class RangeResult:
    """What a range found. Iterates over its rows.

    >>> result = RangeResult(7, (KeyValue(b"a", 2, 2, 1, b"x"),), count=3, more=True)
    >>> [kv.key for kv in result], len(result), result.count
    ([b'a'], 1, 3)
    """

    revision: int
    """The store's revision when it was read; not the revision that was asked for."""
    kvs: tuple[KeyValue, ...]
    count: int
    """Keys in the range, whatever limit and filters left of them in `kvs`."""
    more: bool
    """Whether the limit cut rows off."""

    def __iter__(self) -> Iterator[KeyValue]:
        return iter(self.kvs)

    def __len__(self) -> int:
        return len(self.kvs)

    @overload
    def __getitem__(self, position: int) -> KeyValue: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[KeyValue, ...]: ...
    def __getitem__(self, position: int | slice) -> KeyValue | tuple[KeyValue, ...]:
        return self.kvs[position]


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What a txn did."""

    revision: int
    """The revision written; the current one if nothing was."""
    succeeded: bool
    """Whether all compares held, so that the success branch ran."""
    responses: tuple[Response, ...] = ()
    """One result for each operation of the branch that ran."""


Response = PutResult | DeleteResult | RangeResult | TxnResult
Result = Response | AttributesResult


_EMPTY_KEY = "key is empty"


def sort_order(order_by: SortTarget, *, descending: bool) -> SortOrder:
    """Translate the embedded API's order into etcd's.

    Key order needs no sort, and etcd cuts before it sorts when no order is given; users expect sorting
    first, so every other target gets an explicit order.
    """
    if descending:
        return "descend"
    return "none" if order_by == "key" else "ascend"


def check_keys(keys: Keys) -> None:
    """Raise unless `keys` is a key or a range."""
    if type(keys) is bytes:
        if not keys:
            raise ValueError(_EMPTY_KEY)
    elif type(keys) is not KeyRange:
        msg = _not_bytes("keys", keys) + " or a KeyRange"
        raise TypeError(msg)


def check_revision(revision: int) -> None:
    """Raise unless `revision` can be asked for: 0 for the current one, or a positive number."""
    if type(revision) is not int:
        raise TypeError(_not_int("revision", revision))
    if revision < 0:
        msg = f"revision is {revision}; it is 0 for the current one, or positive"
        raise ValueError(msg)


def check_subscription_name(name: str) -> None:
    """Raise unless `name` is a string of 1 to 255 bytes."""
    if type(name) is not str:
        msg = f"the name of a subscription is a {type(name).__name__}, not a str"
        raise TypeError(msg)
    if not 1 <= len(name.encode()) <= SUBSCRIPTION_NAME_BYTES_MAX:
        msg = f"the name of a subscription has {len(name.encode())} bytes, not 1 to {SUBSCRIPTION_NAME_BYTES_MAX}"
        raise ValueError(msg)


def check_lease_id(lease_id: int) -> None:
    """Raise unless `lease_id` is a signed 64-bit number."""
    if type(lease_id) is not int:
        raise TypeError(_not_int("lease", lease_id))
    if not -(2**63) <= lease_id < 2**63:
        msg = f"lease is {lease_id}, not a signed 64-bit number"
        raise ValueError(msg)


def lease_id_of(lease: SupportsIndex) -> int:
    """Return the id of a lease, which may be given itself."""
    return lease if isinstance(lease, int) else index(lease)


def check_limit(limit: int) -> None:
    """Raise unless `limit` is 0 for none, or positive."""
    if type(limit) is not int:
        raise TypeError(_not_int("limit", limit))
    if limit < 0:
        msg = f"limit is {limit}; it is 0 for none, or positive"
        raise ValueError(msg)


def _not_bytes(name: str, given: object) -> str:
    hint = "; encode it first" if isinstance(given, str) else ""
    return f"{name} is a {type(given).__name__}, not bytes{hint}"


def _not_int(name: str, given: object) -> str:
    return f"{name} is a {type(given).__name__}, not an int"
