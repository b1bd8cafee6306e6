"""What can be said of a request without looking at the store: sizes, budgets, keys written twice."""

from __future__ import annotations

from bisect import bisect_right

from mvccstore.errors import DuplicateKeyError, KeyTooLargeError, TxnTooLargeError, ValueTooLargeError
from mvccstore.mvcc.read import bounds
from mvccstore.options import Limits
from mvccstore.types import DeleteRequest, KeyRange, Keys, PutRequest, RangeRequest, Request, TxnRequest


def check_put(request: PutRequest, limits: Limits) -> None:
    """Raise if key or value is over the limit."""
    if len(request.key) > limits.key_bytes_max:
        raise KeyTooLargeError(len(request.key), limits.key_bytes_max)
    if len(request.value) > limits.value_bytes_max:
        raise ValueTooLargeError(len(request.value), limits.value_bytes_max)


def check_keys_size(keys: Keys, limits: Limits) -> None:
    """Raise if a key or a bound of a range is over the limit."""
    longest = len(keys) if isinstance(keys, bytes) else max(len(keys.start), len(keys.end or b""))
    is_range = isinstance(keys, KeyRange)
    if longest > limits.key_bytes_max + is_range:  # a range's end may be the longest key and a zero byte
        raise KeyTooLargeError(longest, limits.key_bytes_max)


def check_txn(request: TxnRequest, limits: Limits) -> None:
    """Raise if a txn has too many operations, nests too deep, or writes a key twice.

    Budget and overlaps are checked for both branches, whichever will run (etcd's rule).
    """
    _check_budget(request, limits, limits.txn_ops_max, 1)
    check_overlaps(request)


def check_overlaps(request: TxnRequest) -> None:
    """Raise if a txn may write a key twice, in either branch."""
    for operations in (request.success, request.failure):
        if len(operations) > 1 or (operations and isinstance(operations[0], TxnRequest)):
            _check_overlaps(operations)


def _check_budget(request: TxnRequest, limits: Limits, budget: int, depth: int) -> None:
    operations = max(len(request.compare), len(request.success), len(request.failure))
    if operations > budget:
        raise TxnTooLargeError(operations, budget)
    if depth > limits.txn_depth_max:
        raise TxnTooLargeError(depth, limits.txn_depth_max)
    for compare in request.compare:
        check_keys_size(compare.keys, limits)
    for operation in (*request.success, *request.failure):
        match operation:
            case PutRequest():
                check_put(operation, limits)
            case DeleteRequest() | RangeRequest():
                check_keys_size(operation.keys, limits)
            case TxnRequest():
                _check_budget(operation, limits, budget - operations, depth + 1)


class _Deleted:
    """The keys that a list of operations deletes, for asking whether one is among them."""

    __slots__ = ("_ends", "_intervals", "_starts")

    def __init__(self) -> None:
        self._intervals: list[tuple[bytes, bytes | None]] = []
        self._starts: list[bytes] | None = None
        self._ends: list[bytes | None] = []

    def add(self, keys: Keys) -> None:
        if keys != KeyRange.empty():
            self._intervals.append(bounds(keys))
            self._starts = None

    def merge(self, other: _Deleted) -> None:
        self._intervals += other._intervals
        self._starts = None

    def __contains__(self, key: bytes) -> bool:
        if self._starts is None:
            self._starts = self._disjoint()
        place = bisect_right(self._starts, key) - 1
        if place < 0:
            return False
        end = self._ends[place]
        return end is None or key < end

    def _disjoint(self) -> list[bytes]:
        starts: list[bytes] = []
        self._ends = []
        for start, end in sorted(self._intervals, key=lambda interval: interval[0]):
            if starts and (self._ends[-1] is None or start <= self._ends[-1]):
                if self._ends[-1] is not None:
                    self._ends[-1] = None if end is None else max(self._ends[-1], end)
            else:
                starts.append(start)
                self._ends.append(end)
        return starts


def _check_overlaps(operations: tuple[Request, ...]) -> tuple[dict[bytes, None], _Deleted]:
    """Return the keys one branch puts and deletes, nested branches included.

    Raises:
        DuplicateKeyError: A key is put twice, or put and deleted, where both could happen.

    The order is etcd's, quirks included: deletes of this level count against every nested put, a nested
    delete only against puts of txns that come after it and against puts of this level, so that a put in
    one nested txn and a delete of the same key in a later one pass.
    """
    deleted = _Deleted()
    for operation in operations:
        if isinstance(operation, DeleteRequest):
            deleted.add(operation.keys)
    put: dict[bytes, None] = {}  # in the order of the request, so that the first duplicate is the one named
    for operation in operations:
        if not isinstance(operation, TxnRequest):
            continue
        put_then, deleted_then = _check_overlaps(operation.success)
        put_else, deleted_else = _check_overlaps(operation.failure)
        # Only one of then and else runs, so the same key in both is fine.
        for key in put_then | put_else:
            if key in put or key in deleted:
                raise DuplicateKeyError(key)
        put |= put_then | put_else
        deleted.merge(deleted_then)
        deleted.merge(deleted_else)
    for operation in operations:
        if isinstance(operation, PutRequest):
            if operation.key in put or operation.key in deleted:
                raise DuplicateKeyError(operation.key)
            put[operation.key] = None
    return put, deleted
