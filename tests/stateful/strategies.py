"""Random requests for a small store: few keys, so that they meet, and revisions where answers change.

A revision is drawn as a code and turned into a number by `pick_revision` when the store's revision is known.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from hypothesis import strategies as st

from mvccstore import Compare, DeleteResult, KeyRange, Keys, Limits, Op, PutResult
from mvccstore.types import DeleteRequest, PutRequest, RangeRequest, Request, Result, TxnRequest

_LONG = b"long/" + bytes(range(33, 233)) * 6
KEYS = (
    b"\0",
    b"a",
    b"a\0",
    b"ab",
    b"b",
    b"b/1",
    _LONG[:503],
    _LONG[:504],  # LMDB keeps up to 511 bytes in a key
    _LONG[:600],
    _LONG[:599] + b"\0",
    _LONG[:1199] + b"\xff",
    _LONG[:1200],
    b"\xff",
)
LIMITS = Limits(key_bytes_max=1_300, value_bytes_max=64, txn_ops_max=6, txn_depth_max=3)
LEASES = (0, 0, 0, 1, 2, -7)
"""0 is none; some are granted by then, some not."""


def _key(number: int) -> bytes:
    return KEYS[number]


keys = st.integers(0, len(KEYS) - 1).map(_key)
values = st.sampled_from((b"", b"1", b"2", b"22", b"x" * 64))
leases = st.sampled_from(LEASES)
codes = st.integers(0, 40)
limits = st.sampled_from((0, 0, 0, 1, 2, 5, 100))
targets = st.sampled_from(("key", "version", "create", "mod", "value"))
filters = st.fixed_dictionaries(
    {},
    optional={
        name: st.integers(-1, 30)
        for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")
    },
)


def _between(bounds: tuple[bytes, bytes]) -> KeyRange:
    start, end = sorted(bounds)
    return KeyRange(start, end) if start < end else KeyRange(start)


ranges = st.one_of(
    st.tuples(keys, keys).map(_between),
    keys.map(KeyRange.prefix),
    keys.map(KeyRange),
    st.sampled_from((KeyRange.all(), KeyRange.empty(), KeyRange.prefix(b"long"), KeyRange(b"", b"b"))),
)
one_or_more: st.SearchStrategy[Keys] = st.one_of(keys, ranges)


def _too_long(number: int) -> Keys:
    return (b"k" * 1_302, b"k" * 2_000, KeyRange(b"a", b"k" * 1_302))[number]


too_long: st.SearchStrategy[Keys] = st.integers(0, 2).map(_too_long)
odd_keys: st.SearchStrategy[Keys] = st.sampled_from((b"", "text", None, KeyRange(b"a"), bytearray(b"a")))  # type: ignore[arg-type]

puts = st.one_of(
    st.builds(PutRequest, keys, values, leases, st.booleans()),
    st.builds(PutRequest, keys, values, st.just(0), st.booleans(), st.just(False), st.booleans()).filter(bool),
    st.builds(PutRequest, keys, st.just(b""), st.just(0), st.booleans(), st.just(True), st.booleans()),
)
deletes = st.builds(DeleteRequest, one_or_more, st.booleans())
etcd_ranges = st.builds(
    RangeRequest,
    one_or_more,
    codes,
    st.sampled_from((0, 0, 1, 2, 5, -1)),
    targets,
    st.sampled_from(("none", "ascend", "descend")),
    st.booleans(),
    st.booleans(),
    st.sampled_from((0, 0, 3, 10, -1)),
    st.sampled_from((0, 0, 3, 10, -1)),
)
"""Also what the embedded API cannot say: a target without an order, negative limits and revisions."""
operators = st.sampled_from(("==", "!=", ">", "<"))
compares = st.one_of(
    st.builds(
        Compare, one_or_more, st.sampled_from(("version", "create", "mod", "lease")), operators, st.integers(0, 12)
    ),
    st.builds(Compare, one_or_more, st.just("value"), operators, values),
)
flat_requests: st.SearchStrategy[Request] = st.one_of(puts, puts, deletes, etcd_ranges)
txns: st.SearchStrategy[TxnRequest] = st.recursive(
    st.builds(
        lambda compare, success, failure: Op.txn(compare=compare, success=success, failure=failure),
        st.lists(compares, max_size=2),
        st.lists(flat_requests, max_size=4),
        st.lists(flat_requests, max_size=4),
    ),
    lambda inner: st.builds(
        lambda compare, success, failure: Op.txn(compare=compare, success=success, failure=failure),
        st.lists(compares, max_size=1),
        st.lists(st.one_of(inner, flat_requests), max_size=3),
        st.lists(st.one_of(inner, flat_requests), max_size=2),
    ),
    max_leaves=4,
)


class HasRevisions(Protocol):
    """A store or a model of one."""

    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...


def pick_revision(code: int, of: HasRevisions) -> int:
    """Turn a code into a revision: mostly current ones, then the edges, then any."""
    edges = (
        of.revision,
        of.revision + 1,
        of.revision - 1,
        of.compact_revision,
        of.compact_revision - 1,
        of.compact_revision + 1,
        -1,
        -2,
    )
    if code < 8:
        return 0
    if code < 8 + len(edges):
        return edges[code - 8]
    return 1 + code % of.revision


def resolve(request: Request, of: HasRevisions) -> Request:
    """Turn the codes in a request into revisions."""
    if isinstance(request, RangeRequest):
        return dataclasses.replace(request, revision=pick_revision(request.revision, of))
    if isinstance(request, TxnRequest):
        success = tuple([resolve(member, of) for member in request.success])
        return TxnRequest(request.compare, success, tuple([resolve(member, of) for member in request.failure]))
    return request


def put_answer(result: Result, *, prev_kv: bool = False) -> Result | int:
    """What `put` answers."""
    assert isinstance(result, PutResult)
    return result if prev_kv else result.revision


def delete_answer(result: Result, *, prev_kv: bool = False) -> Result | int:
    """What `delete` answers."""
    assert isinstance(result, DeleteResult)
    return result if prev_kv else result.deleted
