"""How large the answer to a txn may be, against what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mvccstore import Compare, KeyRange, Op, Store
from mvccstore.server import serve
from mvccstore.server.messages import rpc
from mvccstore.server.services import txn_answer
from mvccstore.server.services.txn_answer import ROW_BYTES, check_answer, survey
from mvccstore.server.transport.status import RpcError
from mvccstore.types import PutResult, RangeRequest, RangeResult, Response, TxnRequest, TxnResult
from tests.wire.client import Client, Endpoint, RpcFailure
from tests.wire.requests import get

ROWS = 300
ALL = KeyRange.prefix(b"r/")


def name(number: int) -> bytes:
    return b"r/%03d" % number


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    store = open_store(engine="memory")
    with store.begin() as txn:
        for number in range(ROWS):
            txn.put(name(number), bytes(number))
    store.put(name(0), b"newer")
    return store


def size_of(result: Response) -> int:
    """Count the rows of an answer."""
    match result:
        case TxnResult():
            return sum(map(size_of, result.responses))
        case RangeResult():
            kvs = result.kvs
        case PutResult():
            kvs = () if result.prev_kv is None else (result.prev_kv,)
        case _:
            kvs = result.prev_kvs
    return sum(ROW_BYTES + len(kv.key) + len(kv.value) for kv in kvs)


def carried_out(store: Store, request: TxnRequest) -> TxnResult:
    return store.txn(compare=request.compare, success=request.success, failure=request.failure)


def txn(*operations: Any) -> TxnRequest:
    return TxnRequest((), operations, ())


PUT = Op.put(name(7), bytes(50))
EXACT = [
    txn(Op.range(name(9)), Op.range(ALL)),
    txn(Op.range(ALL), Op.range(ALL)),
    txn(RangeRequest(ALL, keys_only=True), RangeRequest(ALL, count_only=True)),
    txn(Op.range(ALL, limit=257), Op.range(ALL, limit=3)),
    txn(RangeRequest(ALL, revision=2), RangeRequest(name(0), revision=2)),
    txn(RangeRequest(ALL, sort_target="value", sort_order="descend")),
    txn(Op.delete(ALL, prev_kv=True)),
    txn(txn(Op.range(ALL), txn(Op.range(name(8)))), Op.range(name(9))),
    TxnRequest((Compare.version(b"no", "==", 0),), (Op.range(ALL),), (Op.range(name(1)),)),
    TxnRequest((Compare.version(b"no", "==", 1),), (Op.range(name(1)),), (Op.range(ALL),)),
]
AT_MOST = [
    txn(Op.delete(ALL, prev_kv=True), Op.put(b"other", b"", prev_kv=True)),
    txn(PUT, Op.range(ALL), Op.range(name(7)), Op.range(name(8))),
    txn(RangeRequest(ALL, sort_target="mod", sort_order="descend", limit=2)),
    txn(RangeRequest(ALL, max_mod_revision=2, limit=2)),
    txn(RangeRequest(ALL, min_mod_revision=3)),
]


def bound(store: Store, request: TxnRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the least limit that lets it through."""
    low, high = -1, 1 << 20
    while high - low > 1:
        middle = (low + high) // 2
        monkeypatch.setattr(txn_answer, "ANSWER_BYTES_MAX", middle)
        try:
            check_answer(store, request)
        except RpcError:
            low = middle
        else:
            high = middle
    return high


@pytest.mark.parametrize("request_", EXACT)
def test_the_answer_is_as_large_as_was_said(
    store: Store, request_: TxnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = bound(store, request_, monkeypatch)
    assert said == size_of(carried_out(store, request_))


@pytest.mark.parametrize("request_", AT_MOST)
def test_the_answer_is_no_larger_than_was_said(
    store: Store, request_: TxnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = bound(store, request_, monkeypatch)
    assert 0 < size_of(carried_out(store, request_)) < said


def test_what_the_txn_itself_refuses_is_left_to_it(store: Store) -> None:
    store.compact(3)
    for revision in (1, 99):
        check_answer(store, txn(RangeRequest(ALL, revision=revision)))


@pytest.mark.parametrize(
    ("request_", "is_large"),
    [
        (txn(Op.range(ALL)), False),
        (txn(Op.range(ALL), Op.range(name(1)), Op.delete(ALL)), False),
        (txn(Op.range(ALL), RangeRequest(ALL, count_only=True), Op.range(ALL, limit=2)), False),
        (txn(*[Op.range(name(1))] * 64), False),
        (txn(*[Op.range(name(1))] * 65), True),
        (txn(Op.range(ALL, limit=60), *[Op.put(name(n), b"", prev_kv=True) for n in range(5)]), True),
        (txn(Op.range(ALL), Op.delete(ALL, prev_kv=True)), True),
        (txn(Op.range(ALL), Op.range(ALL, limit=65)), True),
        (txn(txn(Op.range(ALL)), txn(Op.range(ALL))), True),
    ],
)
def test_what_cannot_be_large_is_not_looked_at(request_: TxnRequest, is_large: bool) -> None:
    assert survey(request_)[1] == is_large


def test_who_asks_for_all_keys_often_is_refused_and_others_are_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of the txn is carried out."""
    monkeypatch.setattr(txn_answer, "ANSWER_BYTES_MAX", 300_000)
    everything = rpc.RequestOp(request_range=get(b"r/", b"r0"))
    put = rpc.RequestOp(request_put=rpc.PutRequest(key=b"k", value=b"v"))
    with serve(store) as server, Client(Endpoint(server.host, server.port)) as client:
        answer = client.unary("/etcdserverpb.KV/Txn", rpc.TxnRequest(success=[put, everything, everything]))
        assert [len(each.response_range.kvs) for each in answer.responses] == [0, ROWS, ROWS]
        revision = store.revision
        with pytest.raises(RpcFailure, match="larger than max"):
            client.unary("/etcdserverpb.KV/Txn", rpc.TxnRequest(success=[put, *[everything] * 9]))
    assert store.revision == revision
