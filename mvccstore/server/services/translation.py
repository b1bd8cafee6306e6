"""Messages of the KV service to requests of the store, and results back to messages.

What a request's own shape says is checked here, in the order in which etcd checks it, so that the first
error is the one it gives; what the store's state says is left to the store.
"""

from __future__ import annotations

from mvccstore.errors import DuplicateKeyError
from mvccstore.mvcc.validate import check_overlaps
from mvccstore.quota import PUT_OVERHEAD_BYTES
from mvccstore.server.errors import Refusal
from mvccstore.server.messages import rpc
from mvccstore.types import (
    Compare,
    CompareOperator,
    CompareTarget,
    DeleteRequest,
    DeleteResult,
    KeyRange,
    Keys,
    PutRequest,
    PutResult,
    RangeRequest,
    RangeResult,
    Request,
    Result,
    SortOrder,
    SortTarget,
    TxnRequest,
    TxnResult,
)

_NO_END = b"\0"
_SORT_ORDERS: tuple[SortOrder, ...] = ("none", "ascend", "descend")
_SORT_TARGETS: tuple[SortTarget, ...] = ("key", "version", "create", "mod", "value")
_OPERATORS: tuple[CompareOperator, ...] = ("==", ">", "<", "!=")
_TARGETS: tuple[CompareTarget, ...] = ("version", "create", "mod", "value", "lease")
_OPERANDS = ("version", "create_revision", "mod_revision", "value", "lease")


def keys_of(key: bytes, range_end: bytes) -> Keys:
    """Return what a key and a range end of the wire mean.

    >>> keys_of(b"a", b""), keys_of(b"a", b"\\0"), keys_of(b"b", b"a") == KeyRange.empty()
    (b'a', KeyRange(start=b'a', end=None), True)
    """
    if not range_end:
        return key
    if range_end == _NO_END:
        return KeyRange(key)
    return KeyRange(key, range_end) if key < range_end else KeyRange.empty()


def range_request(message: rpc.RangeRequest) -> RangeRequest:
    """Translate a range.

    Raises:
        RpcError: No key, or a sort that there is not.
    """
    if not message.key:
        raise Refusal.EMPTY_KEY.error()
    order, target = message.sort_order, message.sort_target
    if not 0 <= order < len(_SORT_ORDERS) or not 0 <= target < len(_SORT_TARGETS):
        raise Refusal.INVALID_SORT.error()
    return RangeRequest(
        keys_of(message.key, message.range_end),
        message.revision,
        message.limit,
        _SORT_TARGETS[target],
        # No order with another target than the key is ascending, after the limit has cut; key order needs no sort.
        "none" if order == 1 and target == 0 else _SORT_ORDERS[order],
        message.keys_only,
        message.count_only,
        message.min_mod_revision,
        message.max_mod_revision,
        message.min_create_revision,
        message.max_create_revision,
    )


def put_request(message: rpc.PutRequest) -> PutRequest:
    """Translate a put.

    Raises:
        RpcError: No key, or a value or lease beside the wish to keep the old one.
    """
    key, value, lease = message.key, message.value, message.lease
    ignore_value, ignore_lease = message.ignore_value, message.ignore_lease
    if not key:
        raise Refusal.EMPTY_KEY.error()
    if ignore_value and value:
        raise Refusal.VALUE_PROVIDED.error()
    if ignore_lease and lease:
        raise Refusal.LEASE_PROVIDED.error()
    return PutRequest(key, value, lease, message.prev_kv, ignore_value, ignore_lease)


def delete_request(message: rpc.DeleteRangeRequest) -> DeleteRequest:
    """Translate a delete.

    Raises:
        RpcError: No key.
    """
    if not message.key:
        raise Refusal.EMPTY_KEY.error()
    return DeleteRequest(keys_of(message.key, message.range_end), message.prev_kv)


def check_operations(message: rpc.TxnRequest, left: int) -> int:
    """Look how many compares and operations a txn has, those of nested ones, too; return how many more there may be.

    Raises:
        RpcError: More than `left`. etcd has no such limit: where a txn may have 128 of each, its nested ones may have
            a hundred thousand, a request of 1.5 MB.

    Cost: O(operations of txns that may be there), so this comes before all that looks at each.
    """
    left -= len(message.compare) + len(message.success) + len(message.failure)
    if left < 0:
        raise Refusal.TOO_MANY_OPS.error(limit="txn_ops_all_max")
    for branch in (message.success, message.failure):
        for operation in branch:
            if operation.HasField("request_txn"):
                left = check_operations(operation.request_txn, left)
    return left


def txn_request(message: rpc.TxnRequest, ops_max: int) -> TxnRequest:
    """Translate a txn, nested ones included.

    Raises:
        RpcError: More operations than `ops_max`, what an operation of either branch would raise, or a key that is
            written twice.
    """
    request = _txn(message, ops_max)
    try:
        check_overlaps(request)
    except DuplicateKeyError:
        # etcd compares keys with the range end as it stands, and finds none between a key and the end b"\0".
        check_overlaps(_without_open_deletes(request))
    return request


def _without_open_deletes(request: TxnRequest) -> TxnRequest:
    """Return a txn as etcd looks at it for keys that are written twice: without deletes that have no end."""

    def kept(operations: tuple[Request, ...]) -> tuple[Request, ...]:
        return tuple(
            _without_open_deletes(operation) if isinstance(operation, TxnRequest) else operation
            for operation in operations
            if not (isinstance(operation, DeleteRequest) and _is_open(operation.keys))
        )

    return TxnRequest(request.compare, kept(request.success), kept(request.failure))


def _is_open(keys: Keys) -> bool:
    return isinstance(keys, KeyRange) and keys.end is None


def _txn(message: rpc.TxnRequest, ops_max: int) -> TxnRequest:
    used = max(len(message.compare), len(message.success), len(message.failure))
    if used > ops_max:
        raise Refusal.TOO_MANY_OPS.error(limit="max_txn_ops")
    for compare in message.compare:
        if not compare.key:
            raise Refusal.EMPTY_KEY.error()
    left = ops_max - used
    success = tuple([_operation(operation, left) for operation in message.success])  # half the time of a generator
    failure = tuple([_operation(operation, left) for operation in message.failure])
    compares = tuple([found for compare in message.compare if (found := _compare(compare)) is not None])
    return TxnRequest(compares, success, failure)


def _operation(message: rpc.RequestOp, ops_max: int) -> Request:
    match message.WhichOneof("request"):
        case "request_range":
            return range_request(message.request_range)
        case "request_put":
            return put_request(message.request_put)
        case "request_delete_range":
            return delete_request(message.request_delete_range)
        case "request_txn":
            return _txn(message.request_txn, ops_max)
        case _:
            raise Refusal.KEY_NOT_FOUND.error()


def _compare(message: rpc.Compare) -> Compare | None:
    """Translate a compare; None for one that always holds."""
    keys = keys_of(message.key, message.range_end)
    result, target = message.result, message.target
    if not 0 <= target < len(_TARGETS):
        # etcd's outcome of comparing nothing is "equal".
        if result in {1, 2, 3}:
            return Compare(keys, "version", "<", 0)  # never holds
        return None
    if not 0 <= result < len(_OPERATORS):
        # Holds whatever the operand, except that a value is only compared where there is one.
        return Compare(keys, "version", ">", 0) if _TARGETS[target] == "value" else None
    # The operand of another target reads as that of none: 0, or no bytes.
    return Compare(keys, _TARGETS[target], _OPERATORS[result], getattr(message, _OPERANDS[target]))


# Results


def fill_range(message: rpc.RangeResponse, result: RangeResult) -> None:
    """Put the rows of a range into a response; its header is not set."""
    message.count = result.count
    message.more = result.more
    add = message.kvs.add
    for kv in result.kvs:
        row = add()
        row.key, row.create_revision, row.mod_revision, row.version, row.value, row.lease = kv


def fill_delete(message: rpc.DeleteRangeResponse, result: DeleteResult) -> None:
    """Put what a delete did into a response; its header is not set."""
    message.deleted = result.deleted
    for kv in result.prev_kvs:
        row = message.prev_kvs.add()
        row.key, row.create_revision, row.mod_revision, row.version, row.value, row.lease = kv


def fill_txn(message: rpc.TxnResponse, result: TxnResult) -> None:
    """Put what a txn did into a response; its header is not set, those of its operations are."""
    message.succeeded = result.succeeded
    for part in result.responses:
        _fill(message.responses.add(), part)


def _fill(message: rpc.ResponseOp, result: Result) -> None:
    """Fill the response of one operation. Its header has the revision alone; that of a nested txn nothing."""
    match result:
        case PutResult():
            put = message.response_put
            put.header.revision = result.revision
            if result.prev_kv is not None:
                row = put.prev_kv
                row.key, row.create_revision, row.mod_revision, row.version, row.value, row.lease = result.prev_kv
        case RangeResult():
            message.response_range.header.revision = result.revision
            fill_range(message.response_range, result)
        case DeleteResult():
            message.response_delete_range.header.revision = result.revision
            fill_delete(message.response_delete_range, result)
        case TxnResult():
            message.response_txn.header.SetInParent()
            fill_txn(message.response_txn, result)
        case _:
            assert False, result  # noqa: B011, PT015 - no operation of a txn has another


def message_cost(message: rpc.TxnRequest) -> int:
    """Return etcd's estimate of what a txn adds to the store, in bytes; 0 if nothing.

    Of the message, as the quota's gate comes before every check.
    """

    def of(operation: rpc.RequestOp) -> int:
        match operation.WhichOneof("request"):
            case "request_put":
                return _put_cost(operation.request_put)
            case "request_txn":
                return message_cost(operation.request_txn)
            case _:
                return 0

    return max(sum(map(of, message.success)), sum(map(of, message.failure)))


def own_cost(message: rpc.TxnRequest) -> int:
    """Return that estimate as etcd made it before it looked into nested txns."""
    return max(
        sum(_put_cost(operation.request_put) for operation in branch if operation.HasField("request_put"))
        for branch in (message.success, message.failure)
    )


def _put_cost(message: rpc.PutRequest) -> int:
    return PUT_OVERHEAD_BYTES + len(message.key) + len(message.value)
