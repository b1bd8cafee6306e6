"""Whether the compares of a txn hold. etcd's rules, the odd ones included."""

from __future__ import annotations

from collections.abc import Callable
from operator import eq, gt, lt, ne
from typing import Any, assert_never

from mvccstore.codec import entry_main, unpack_entry
from mvccstore.mvcc.read import PAGE_ROWS, bounds, live_entry, live_page, row
from mvccstore.tables import ReadTxn
from mvccstore.types import Compare, CompareTarget, KeyRange, Request, TxnRequest

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {"==": eq, "!=": ne, ">": gt, "<": lt}


def holds(txn: ReadTxn, compare: Compare, at: bytes) -> bool:
    """Say whether one compare holds as of `at`.

    Cost: a lookup a key in its range, and another for its record if value or lease is compared.
    """
    operator, operand = _OPERATORS[compare.operator], compare.operand
    if not isinstance(compare.keys, KeyRange):
        entry = live_entry(txn, compare.keys, at)
        if entry is None:
            return _holds_when_missing(compare)
        return operator(_target(txn, compare.target, entry), operand)
    start, end = bounds(compare.keys)
    is_empty = True
    resume: bytes | None = start
    while resume is not None and not (end is not None and resume >= end):
        live, resume = live_page(txn, resume, end, at, PAGE_ROWS)
        for _, entry in live:
            is_empty = False
            if not operator(_target(txn, compare.target, entry), operand):
                return False
    return _holds_when_missing(compare) if is_empty else True


def _target(txn: ReadTxn, target: CompareTarget, entry: bytes) -> int | bytes:
    match target:
        case "version":
            return unpack_entry(entry).version
        case "create":
            return unpack_entry(entry).create_revision
        case "mod":
            return entry_main(entry)
        case "value":
            return row(txn, entry).value
        case "lease":
            return row(txn, entry).lease if unpack_entry(entry).has_lease else 0
        case _:
            assert_never(target)


def _holds_when_missing(compare: Compare) -> bool:
    # A missing key has zeros for numbers, but no value: not even an unequal one.
    return compare.target != "value" and _OPERATORS[compare.operator](0, compare.operand)


def choose_branches(txn: ReadTxn, request: TxnRequest, at: bytes) -> dict[int, bool]:
    """Evaluate the compares of a txn and of those nested in the branches taken.

    All of them see the state before the outermost txn: nothing has run yet. Keyed by `id` of the request
    object, because equal requests may stand at several places.
    """
    chosen: dict[int, bool] = {}
    pending: list[Request] = [request]
    while pending:
        operation = pending.pop()
        if isinstance(operation, TxnRequest):
            succeeded = all(holds(txn, compare, at) for compare in operation.compare)
            chosen[id(operation)] = succeeded
            pending.extend(operation.success if succeeded else operation.failure)
    return chosen
