"""What a txn may hold, against a second telling of etcd's rules and against a table of its quirks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvccstore import (
    DuplicateKeyError,
    KeyRange,
    KeyTooLargeError,
    Limits,
    Op,
    Store,
    StoreError,
    TxnTooLargeError,
    ValueTooLargeError,
)
from mvccstore.mvcc.validate import check_txn
from mvccstore.testing import Model
from mvccstore.types import Compare, DeleteRequest, PutRequest, Request, TxnRequest

LIMITS = Limits(key_bytes_max=4, value_bytes_max=8, txn_ops_max=4, txn_depth_max=3)
LETTERS = b"abcd"


def put(key: bytes) -> Request:
    return Op.put(key, b"")


def delete(*bounds: bytes) -> Request:
    return Op.delete(bounds[0] if len(bounds) == 1 else KeyRange(*bounds))


def nested(*success: Request, otherwise: tuple[Request, ...] = ()) -> Request:
    return Op.txn(success=success, failure=otherwise)


QUIRKS: dict[str, tuple[tuple[Request, ...], bytes | None]] = {
    "two puts": ((put(b"a"), put(b"b")), None),
    "two puts of a key": ((put(b"a"), put(b"a")), b"a"),
    "put, then delete": ((put(b"a"), delete(b"a")), b"a"),
    "delete, then put": ((delete(b"a"), put(b"a")), b"a"),
    "put inside a deleted range": ((delete(b"a", b"c"), put(b"b")), b"b"),
    "put at the end of a deleted range": ((delete(b"a", b"c"), put(b"c")), None),
    "put below a deleted range": ((delete(b"b", b"c"), put(b"a")), None),
    "put between deleted ranges": ((delete(b"a", b"b"), delete(b"c", b"d"), put(b"b")), None),
    "put in the second of deleted ranges": ((delete(b"a", b"b"), delete(b"c", b"d"), put(b"c")), b"c"),
    "delete of everything, then put": ((Op.delete(KeyRange.all()), put(b"d")), b"d"),
    "delete of nothing, then put": ((Op.delete(KeyRange.empty()), put(b"a")), None),
    "two deletes of a key": ((delete(b"a"), delete(b"a")), None),
    "deletes that overlap": ((delete(b"a", b"c"), delete(b"b", b"d")), None),
    "put in deletes that overlap": ((delete(b"a", b"c"), delete(b"b", b"d"), put(b"c")), b"c"),
    "reads of what is written": ((put(b"a"), Op.range(b"a"), Op.range(KeyRange.all())), None),
    "nested put and put": ((nested(put(b"a")), put(b"a")), b"a"),
    "put and nested put": ((put(b"a"), nested(put(b"a"))), b"a"),
    "nested put in then and else": ((nested(put(b"a"), otherwise=(put(b"a"),)),), None),
    "nested put in then and else, and put": ((nested(put(b"a"), otherwise=(put(b"a"),)), put(b"a")), b"a"),
    "nested put, sibling nested put": ((nested(put(b"a")), nested(put(b"a"))), b"a"),
    "nested put, sibling put in else": ((nested(put(b"a")), nested(otherwise=(put(b"a"),))), b"a"),
    "nested delete, sibling nested put": ((nested(delete(b"a")), nested(put(b"a"))), b"a"),
    "nested put, sibling nested delete": ((nested(put(b"a")), nested(delete(b"a"))), None),
    "nested delete in then, put in else": ((nested(delete(b"a"), otherwise=(put(b"a"),)),), None),
    "nested delete and put": ((nested(delete(b"a")), put(b"a")), b"a"),
    "put and nested delete": ((put(b"a"), nested(delete(b"a"))), b"a"),
    "nested put and delete": ((nested(put(b"a")), delete(b"a")), b"a"),
    "delete and nested put": ((delete(b"a"), nested(put(b"a"))), b"a"),
    "put two levels down and put": ((nested(nested(put(b"a"))), put(b"a")), b"a"),
    "delete two levels down, sibling put": ((nested(nested(delete(b"a"))), nested(put(b"a"))), b"a"),
    "put two levels down, sibling delete two levels down": (
        (nested(nested(put(b"a"))), nested(nested(delete(b"a")))),
        None,
    ),
}


@pytest.mark.parametrize("quirk", QUIRKS)
@pytest.mark.parametrize("branch", ["success", "failure"])
def test_branch_that_writes_a_key_twice_is_refused_as_etcd_refuses_it(quirk: str, branch: str) -> None:
    operations, duplicate = QUIRKS[quirk]
    request = TxnRequest(**{branch: operations})
    if duplicate is None:
        check_txn(request, Limits())
        return
    with pytest.raises(DuplicateKeyError) as caught:
        check_txn(request, Limits())
    assert caught.value.key == duplicate


def test_both_branches_may_write_a_key() -> None:
    check_txn(TxnRequest(success=(put(b"a"),), failure=(put(b"a"), delete(b"b"))), Limits())


def test_put_then_delete_by_siblings_makes_both_events(store: Store) -> None:
    operations = QUIRKS["nested put, sibling nested delete"][0]
    store.txn(success=operations)
    assert [event.type for event in store.history(b"a")] == ["put", "delete"]


def puts(number: int, first: int = 0) -> tuple[Request, ...]:
    return tuple(put(b"%d" % i) for i in range(first, first + number))


BUDGETS: dict[str, tuple[TxnRequest, tuple[int, int] | None]] = {
    "as many as allowed": (TxnRequest(success=puts(128)), None),
    "one too many": (TxnRequest(success=puts(129)), (129, 128)),
    "one too many in the branch not taken": (TxnRequest(failure=puts(129)), (129, 128)),
    "one compare too many": (TxnRequest((Compare.version(b"a", "==", 0),) * 129), (129, 128)),
    "as many of each": (TxnRequest((Compare.version(b"a", "==", 0),) * 128, puts(128), puts(128)), None),
    "nested with nothing left": (TxnRequest(success=(*puts(127), nested(put(b"x")))), (1, 0)),
    "empty nested with nothing left": (TxnRequest(success=(*puts(127), nested())), None),
    "64 and 64": (TxnRequest(success=(*puts(63), nested(*puts(64, 100)))), None),
    "64 and 65": (TxnRequest(success=(*puts(63), nested(*puts(65, 100)))), (65, 64)),
    "siblings each have what is left": (
        TxnRequest(success=(*puts(62), nested(*puts(64, 100)), nested(*puts(64, 200)))),
        None,
    ),
    "the longer branch counts": (TxnRequest(success=(nested(*puts(100, 100)),), failure=puts(29)), (100, 99)),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_txn_is_too_large_where_etcd_says_so(case: str) -> None:
    request, expected = BUDGETS[case]
    limits = Limits(txn_ops_max=128)
    if expected is None:
        check_txn(request, limits)
        return
    with pytest.raises(TxnTooLargeError) as caught:
        check_txn(request, limits)
    assert (caught.value.size, caught.value.limit) == expected


def test_depth_has_a_limit_of_its_own() -> None:
    request = TxnRequest()
    for _ in range(LIMITS.txn_depth_max - 1):
        request = TxnRequest(success=(request,))
    check_txn(request, LIMITS)
    with pytest.raises(TxnTooLargeError) as caught:
        check_txn(TxnRequest(failure=(request,)), LIMITS)
    assert (caught.value.size, caught.value.limit) == (4, 3)


# The second telling. A branch is a list of steps; it is refused if two of its steps cannot be done in one
# revision. It asks of every pair: which comes later in etcd's order of checks, and does it meet the other?

keys = st.sampled_from([bytes([letter]) for letter in LETTERS])
deletes = st.one_of(
    keys.map(Op.delete),
    st.tuples(keys, keys).filter(lambda two: two[0] < two[1]).map(lambda two: Op.delete(KeyRange(*two))),
    keys.map(lambda key: Op.delete(KeyRange(key))),
)
flat: st.SearchStrategy[Request] = st.one_of(keys.map(put), keys.map(put), deletes, keys.map(Op.range))
branches = st.lists(flat, max_size=4).map(tuple)
txns: st.SearchStrategy[TxnRequest] = st.recursive(
    st.builds(TxnRequest, st.just(()), branches, branches),
    lambda inner: st.builds(
        TxnRequest,
        st.just(()),
        st.lists(st.one_of(inner, flat), max_size=4).map(tuple),
        st.lists(st.one_of(inner, flat), max_size=2).map(tuple),
    ),
    max_leaves=4,
)


def writes(operations: tuple[Request, ...], kind: type[PutRequest | DeleteRequest]) -> list[set[bytes]]:
    """What a branch may put or delete, as sets of the letters, both branches of what is nested included."""
    found: list[set[bytes]] = []
    for operation in operations:
        if isinstance(operation, TxnRequest):
            found += writes(operation.success, kind) + writes(operation.failure, kind)
        elif isinstance(operation, PutRequest) and kind is PutRequest:
            found.append({operation.key})
        elif isinstance(operation, DeleteRequest) and kind is DeleteRequest:
            meant = KeyRange.exactly(operation.keys) if isinstance(operation.keys, bytes) else operation.keys
            found.append({bytes([letter]) for letter in LETTERS if bytes([letter]) in meant})
    return found


def is_refused(operations: tuple[Request, ...]) -> bool:
    own = tuple(operation for operation in operations if not isinstance(operation, TxnRequest))
    inner = [operation for operation in operations if isinstance(operation, TxnRequest)]
    own_puts = [key for keys in writes(own, PutRequest) for key in keys]
    own_deletes = set().union(*writes(own, DeleteRequest))
    if any(is_refused(branch) for txn in inner for branch in (txn.success, txn.failure)):
        return True
    if len(own_puts) > len(set(own_puts)) or own_deletes & set(own_puts):
        return True
    for i, txn in enumerate(inner):
        put_here = set().union(*writes((txn,), PutRequest))
        deleted_here = set().union(*writes((txn,), DeleteRequest))
        if put_here & (own_deletes | set(own_puts)) or deleted_here & set(own_puts):
            return True
        for earlier in inner[:i]:
            if put_here & set().union(*writes((earlier,), PutRequest), *writes((earlier,), DeleteRequest)):
                return True
    return False


def is_over_budget(request: TxnRequest, budget: int, depth: int = 1) -> bool:
    used = max(len(request.compare), len(request.success), len(request.failure))
    inner = [operation for operation in request.success + request.failure if isinstance(operation, TxnRequest)]
    return used > budget or depth > 3 or any(is_over_budget(txn, budget - used, depth + 1) for txn in inner)


@given(request=txns)
def test_keys_written_twice_are_found_as_by_comparing_all_pairs(request: TxnRequest) -> None:
    try:
        check_txn(request, Limits())
    except DuplicateKeyError:
        assert is_refused(request.success) or is_refused(request.failure)
    else:
        assert not is_refused(request.success)
        assert not is_refused(request.failure)


@given(request=txns)
def test_budget_is_spent_level_by_level(request: TxnRequest) -> None:
    try:
        check_txn(request, LIMITS)
    except TxnTooLargeError:
        assert is_over_budget(request, 4)
    except DuplicateKeyError:
        assert not is_over_budget(request, 4)
    else:
        assert not is_over_budget(request, 4)


def duplicate_of(call: Callable[[], object]) -> bytes | None:
    try:
        call()
    except DuplicateKeyError as error:
        return error.key
    return None


@given(request=txns)
def test_model_refuses_the_same_txns_and_names_the_same_key(request: TxnRequest) -> None:
    assert duplicate_of(lambda: check_txn(request, Limits())) == duplicate_of(lambda: Model().write(request))


def test_refused_txn_names_its_first_duplicate_whatever_the_order_of_hashing() -> None:
    inner = nested(*(put(bytes([letter])) for letter in range(1, 255)))
    with pytest.raises(DuplicateKeyError) as caught:
        check_txn(TxnRequest(success=(inner, inner)), Limits())
    assert caught.value.key == b"\1"


TOO_LONG: dict[str, tuple[Request | Compare, type[StoreError] | None]] = {
    "longest put": (Op.put(b"abcd", b"12345678"), None),
    "put of a long key": (Op.put(b"abcde", b""), KeyTooLargeError),
    "put of a long value": (Op.put(b"a", b"123456789"), ValueTooLargeError),
    "delete of the longest key": (Op.delete(b"abcd"), None),
    "delete of a long key": (Op.delete(b"abcde"), KeyTooLargeError),
    "delete of a longer key": (Op.delete(b"abcdef"), KeyTooLargeError),
    "delete of exactly the longest key": (Op.delete(KeyRange.exactly(b"abcd")), None),
    "delete from a long key": (Op.delete(KeyRange(b"abcdef")), KeyTooLargeError),
    "range of a long key": (Op.range(b"abcde"), KeyTooLargeError),
    "compare of a long key": (Compare.version(b"abcde", "==", 0), KeyTooLargeError),
}


@pytest.mark.parametrize("case", TOO_LONG)
def test_keys_over_the_limit_are_refused_wherever_they_stand(case: str) -> None:
    member, expected = TOO_LONG[case]
    inner = TxnRequest((member,)) if isinstance(member, Compare) else TxnRequest(success=(member,))
    for request in (inner, TxnRequest(failure=(inner,))):
        if expected is None:
            check_txn(request, LIMITS)
        else:
            with pytest.raises(expected):
                check_txn(request, LIMITS)
