"""How large the answer to a txn may be, which is looked at before it is carried out.

What a range is answered with goes out page by page, but a txn's answer is there as a whole, and a request of a few bytes
may ask for all keys a hundred times over. Once some of it is carried out it cannot be taken back; so of one that reads
more than a range, or than some keys, the rows are counted first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from mvccstore.errors import RevisionError
from mvccstore.mvcc.read import PAGE_ROWS
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.store import Store
from mvccstore.types import DeleteRequest, KeyRange, PutRequest, RangeRequest, Request, TxnRequest

ANSWER_BYTES_MAX = 64 << 20
"""Of rows, each with `ROW_BYTES` beside key and value. In memory it takes some times as much, while it is encoded."""
ROW_BYTES: Final = 128
"""What a row counts for beside key and value: to encode one takes as long as to copy some kilobytes."""
_ROWS_MAX: Final = 64
"""So many reads of one key are not looked at."""
_RANGES_MAX: Final = 1


def survey(request: TxnRequest) -> tuple[int, bool]:
    """Count the operations, those of both branches and of nested txns; and say whether the answer has to be looked at.

    That is so if there are several ranges in it, or many rows.
    """
    number = rows = ranges = 0
    for operation in _operations(request):
        number += 1
        if isinstance(operation, PutRequest):
            rows += operation.prev_kv
        elif isinstance(operation, DeleteRequest):
            if operation.prev_kv:
                rows, ranges = _more(operation, 0, rows, ranges)
        elif isinstance(operation, RangeRequest) and not operation.count_only:
            rows, ranges = _more(operation, operation.limit, rows, ranges)
    return number, rows > _ROWS_MAX or ranges > _RANGES_MAX


def _more(operation: DeleteRequest | RangeRequest, limit: int, rows: int, ranges: int) -> tuple[int, int]:
    if not isinstance(operation.keys, KeyRange):
        return rows + 1, ranges
    return (rows + limit, ranges) if 0 < limit <= _ROWS_MAX else (rows, ranges + 1)


def _operations(request: TxnRequest) -> Iterator[Request]:
    """Return the operations of both branches, without the nested txns that they are in."""
    for operation in (*request.success, *request.failure):
        if isinstance(operation, TxnRequest):
            yield from _operations(operation)
        else:
            yield operation


def check_answer(store: Store, request: TxnRequest) -> None:
    """Raise if the answer would be larger than `ANSWER_BYTES_MAX`. Call it where nobody else writes until the txn does.

    Raises:
        RpcError: So it is; or so it would be if the other branch were taken.

    Cost: as to read what is answered, but no more than `ANSWER_BYTES_MAX`.
    """
    puts: dict[bytes, int] = {}
    for each in _operations(request):
        if isinstance(each, PutRequest):
            size = ROW_BYTES + len(each.key) + len(each.value)
            puts[each.key] = max(puts.get(each.key, 0), size)
    _left(store, request, _Puts(puts, sum(puts.values())), ANSWER_BYTES_MAX)


class _Puts(NamedTuple):
    """What may be put by the time that something is read, in bytes."""

    by_key: dict[bytes, int]
    all: int


def _left(store: Store, request: TxnRequest, puts: _Puts, left: int) -> int:
    """Return how much more there may be, whichever branch is taken."""
    lefts = []
    for branch in (request.success, request.failure):
        branch_left = left
        for operation in branch:
            if isinstance(operation, TxnRequest):
                branch_left = _left(store, operation, puts, branch_left)
                continue
            for size in _sizes(store, operation, puts):
                branch_left -= size
                if branch_left < 0:
                    msg = f"grpc: trying to send message larger than max ({ANSWER_BYTES_MAX})"
                    raise RpcError(Code.RESOURCE_EXHAUSTED, msg, "txn_answer_bytes_max")
        lefts.append(branch_left)
    return min(lefts)


def _sizes(store: Store, operation: Request, puts: _Puts) -> Iterator[int]:
    """Return the sizes of parts of what an operation is answered with, at most."""
    match operation:
        case PutRequest(prev_kv=True):
            yield from _rows(store, RangeRequest(operation.key), puts)
        case DeleteRequest(prev_kv=True):
            yield from _rows(store, RangeRequest(operation.keys), puts)
        case RangeRequest(count_only=False):
            yield from _rows(store, operation, puts)
        case _:
            pass


def _rows(store: Store, request: RangeRequest, puts: _Puts) -> Iterator[int]:
    is_plain = request.sort_order == "none" and request.sort_target == "key"
    left = request.limit if is_plain and request.limit > 0 else None  # else any rows may be those that are left
    if isinstance(request.keys, KeyRange):
        keys = request.keys
        yield puts.all
    else:
        keys = KeyRange(request.keys, request.keys + b"\0")
        yield puts.by_key.get(request.keys, 0)
    resume: bytes | None = keys.start
    with suppress(RevisionError):  # for the txn to say
        while resume is not None and left != 0 and not (keys.end is not None and resume >= keys.end):
            rows = PAGE_ROWS if left is None else min(left, PAGE_ROWS)
            page = store.page(KeyRange(resume, keys.end), revision=max(request.revision, 0), limit=rows)
            for kv in page.kvs:
                yield ROW_BYTES + len(kv.key) + (0 if request.keys_only else len(kv.value))
            resume = page.resume
            left = None if left is None else left - len(page.kvs)
