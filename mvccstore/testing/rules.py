"""The model's rules that need no history: which keys are meant, what compares hold, what txns are refused.

Written from etcd's documentation as plainly as can be: lists, and every pair compared.
"""

from __future__ import annotations

from operator import eq, gt, lt, ne
from typing import Any

from mvccstore import errors
from mvccstore import types as t
from mvccstore.options import Limits

FIELDS = {"key": 0, "create": 1, "mod": 2, "version": 3, "value": 4, "lease": 5}
"""Of a `KeyValue`, as compares and sorts call them."""
NOTHING = t.KeyValue(b"", 0, 0, 0, b"", 0)
_OPERATORS: dict[str, Any] = {"==": eq, "!=": ne, ">": gt, "<": lt}


def matches(keys: t.Keys, key: bytes) -> bool:
    """Say whether a key is meant."""
    return key in keys if isinstance(keys, t.KeyRange) else key == keys


def holds(state: dict[bytes, t.KeyValue], compare: t.Compare) -> bool:
    """Say whether a compare holds in a state, for every key it means."""
    rows = [kv for key, kv in state.items() if matches(compare.keys, key)]
    if not rows and compare.target == "value":
        return False  # whatever the operator
    holds_for, field = _OPERATORS[compare.operator], FIELDS[compare.target]
    return all(holds_for(kv[field], compare.operand) for kv in rows or [NOTHING])


def taken(state: dict[bytes, t.KeyValue], request: t.TxnRequest) -> list[t.Request]:
    """Return the operations of the branches that will run, nested ones after the txn that holds them."""
    members: list[t.Request] = []
    for member in request.success if all(holds(state, compare) for compare in request.compare) else request.failure:
        members += [member, *(taken(state, member) if isinstance(member, t.TxnRequest) else ())]
    return members


def check_put(request: t.PutRequest, state: dict[bytes, t.KeyValue], leases: set[int]) -> None:
    """Raise if a put has nothing to keep, or no lease to attach to; in a txn the first comes first."""
    if request.key not in state and (request.ignore_value or request.ignore_lease):
        raise errors.KeyNotFoundError(request.key)
    if request.lease and request.lease not in leases:
        raise errors.LeaseNotFoundError(request.lease)


def check_size(request: t.PutRequest | t.Keys, limits: Limits) -> None:
    """Raise if a key, a bound or a value is over the limit."""
    bound = 0
    if isinstance(request, t.PutRequest):
        size = len(request.key)
    elif isinstance(request, bytes):
        size = len(request)
    else:
        size, bound = max(len(request.start), len(request.end or b"")), 1  # just above the longest key
    if size > limits.key_bytes_max + bound:
        raise errors.KeyTooLargeError(size, limits.key_bytes_max)
    if isinstance(request, t.PutRequest) and len(request.value) > limits.value_bytes_max:
        raise errors.ValueTooLargeError(len(request.value), limits.value_bytes_max)


def check_txn(request: t.TxnRequest, limits: Limits, spent: int = 0, depth: int = 1) -> None:
    """Raise what the static checks raise: budget, depth, sizes, then keys written twice."""
    operations = max(len(request.compare), len(request.success), len(request.failure))
    if operations > limits.txn_ops_max - spent:
        raise errors.TxnTooLargeError(operations, limits.txn_ops_max - spent)
    if depth > limits.txn_depth_max:
        raise errors.TxnTooLargeError(depth, limits.txn_depth_max)
    for compare in request.compare:
        check_size(compare.keys, limits)
    for member in request.success + request.failure:
        if isinstance(member, t.TxnRequest):
            check_txn(member, limits, spent + operations, depth + 1)
        else:
            check_size(member if isinstance(member, t.PutRequest) else member.keys, limits)
    if depth == 1:
        _check_overlaps(request.success)
        _check_overlaps(request.failure)


def _check_overlaps(members: tuple[t.Request, ...]) -> tuple[list[bytes], list[t.Keys]]:
    """Return what one branch puts and deletes; etcd's order of checks, with what it lets through."""
    put: list[bytes] = []
    deleted = [member.keys for member in members if isinstance(member, t.DeleteRequest)]

    def add(keys: list[bytes]) -> None:
        for key in keys:
            if key in put or any(matches(gone, key) for gone in deleted):
                raise errors.DuplicateKeyError(key)
        put.extend(keys)

    for member in members:
        if isinstance(member, t.TxnRequest):
            then, otherwise = _check_overlaps(member.success), _check_overlaps(member.failure)
            add(then[0] + [key for key in otherwise[0] if key not in then[0]])
            deleted += then[1] + otherwise[1]
    for member in members:
        if isinstance(member, t.PutRequest):
            add([member.key])
    return put, deleted
