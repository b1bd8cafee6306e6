"""The KV service against etcd: a case for each trap of its semantics, played to both."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from google.protobuf.message import Message

from mvccstore.server.messages import rpc
from tests.wire.differential import Difference, Operation, Player, Unary
from tests.wire.pair import NEEDS_ORACLE, Pair
from tests.wire.requests import ALL, KV, calls, compact, compare, delete, get, posts, put, text, txn

pytestmark = NEEDS_ORACLE

ORDERS = rpc.RangeRequest.SortOrder.values()
TARGETS = rpc.RangeRequest.SortTarget.values()
TTL = 9_999

# Eleven keys with different numbers; ties in any sort are fewer than the 13 from which Go's is not stable.
GROUND: tuple[Message, ...] = (
    *(put(key, value) for key, value in ((b"a", b"9"), (b"b", b"8"), (b"c", b"7"), (b"d", b"6"), (b"e", b"9"))),
    *(put(b"b", b"5"), put(b"b", b"4"), put(b"d", b"")),
    *(delete(b"c"), put(b"c", b"3", lease=0), delete(b"e")),
    *(put(b"f\xff", b"2"), put(b"f\xff\xff", b"2"), put(b"\xff", b"1"), put(b"\xff\xff", b"0"), put(b"\0", b"nul")),
    txn(put(b"k1", b"x"), put(b"k2", b"x"), put(b"k3", b"x")),
)


def play(pair: Pair, *requests: Message) -> None:
    pair.play(*calls(*requests))


@pytest.fixture(scope="module")
def grounded() -> set[int]:
    """The pairs that have the ground."""
    return set()


@pytest.fixture
def ground(pair: Pair, grounded: set[int]) -> Pair:
    """A pair with the ground, for cases that change nothing or take keys of their own."""
    if id(pair) not in grounded:
        play(pair, *GROUND)
        grounded.add(id(pair))
    return pair


# Ranges


RANGE_ENDS = (b"", b"\0", b"a", b"b", b"c", b"e", b"f\xff", b"k3", b"l", b"\xff", b"\xff\xff", b"\xff\xff\0", b"a\0")


@pytest.mark.parametrize("key", [b"\0", b"a", b"a\0", b"c", b"e", b"f", b"f\xff", b"k", b"\xff", b"\xff\xff\xff", b"b"])
def test_range_ends(ground: Pair, key: bytes) -> None:
    play(ground, *(get(key, end) for end in RANGE_ENDS), *(get(key, end, count_only=True) for end in RANGE_ENDS))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("order", ORDERS)
def test_orders_with_limits(ground: Pair, order: int, target: int) -> None:
    options = {"sort_order": order, "sort_target": target}
    for limit in (0, 1, 2, 3, 9, 10, 11, 12, -1, 2**63 - 1, -(2**63)):
        for more in ({}, {"keys_only": True}, {"count_only": True}, {"min_mod_revision": 6, "max_create_revision": 12}):
            play(ground, get(**ALL, limit=limit, **options, **more))
    play(ground, get(b"a", **options), get(b"nothing", **options), get(b"a", limit=1, **options))


@pytest.mark.parametrize("name", ["min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"])
def test_filters(ground: Pair, name: str) -> None:
    for revision in (-(2**63), -1, 1, 2, 7, 10, 12, 10_000, 2**63 - 1):
        for more in ({}, {"limit": 2}, {"limit": 2, "sort_order": 2}, {"count_only": True}, {"keys_only": True}):
            play(ground, get(**ALL, **{name: revision}, **more), get(b"b", **{name: revision}, **more))


@pytest.mark.parametrize("revision", [-(2**63), -5, -1, 0, 1, 2, 3, 7, 10, 11, 12, 17, 10**6, 2**63 - 1])
def test_revisions(ground: Pair, revision: int) -> None:
    for more in ({}, {"limit": 2}, {"count_only": True}, {"keys_only": True}, {"sort_order": 2, "limit": 3}):
        play(ground, get(**ALL, revision=revision, **more), get(b"c", revision=revision, **more))
    play(ground, get(b"z", b"a", revision=revision), get(b"nothing", revision=revision))


def test_more_and_count_when_only_deleted_keys_follow(pair: Pair) -> None:
    play(pair, *(put(b"more/" + key) for key in (b"a", b"b", b"c", b"d", b"e")), delete(b"more/d", b"more/f"))
    for limit in range(5):
        for more in ({}, {"keys_only": True}, {"sort_order": 1}, {"sort_order": 2}):
            play(pair, get(b"more/", b"more0", limit=limit, **more))
    play(pair, delete(b"more/b"), *(get(b"more/", b"more0", limit=limit) for limit in range(4)))


BAD_RANGES: tuple[Message, ...] = (
    get(b""),
    *(get(b"", b"a"), get(b"", b"\0"), get(b"", sort_order=9), get(b"", revision=10**6)),
    *(get(b"a", sort_order=order) for order in (3, -1, 77)),
    *(get(b"a", sort_target=target) for target in (5, -1, 77)),
    *(get(b"a", sort_order=3, revision=10**6), get(b"a", sort_target=5, count_only=True)),
)


def test_bad_ranges(ground: Pair) -> None:
    play(ground, *BAD_RANGES, *(txn(request) for request in BAD_RANGES))


def test_serializable_reads_are_no_different(ground: Pair) -> None:
    play(ground, get(**ALL, serializable=True), get(b"a", serializable=True), txn(get(b"a", serializable=True)))


# Puts and deletes


def test_put_options(pair: Pair) -> None:
    key = b"put"
    play(
        pair,
        *(put(b""), put(b"", ignore_value=True, value=b"x"), put(key, b"v", ignore_value=True), get(key)),
        *(put(key, ignore_lease=True, lease=7), put(key, b"v", ignore_value=True, ignore_lease=True, lease=7)),
        *(put(key, ignore_value=True), put(key, b"v", ignore_lease=True), put(key, b"v", lease=404)),
        *(put(key, ignore_value=True, lease=404), put(key, prev_kv=True), put(key, b"1", prev_kv=True)),
        *(put(key, b"1"), put(key, b"2", prev_kv=True), put(key, ignore_value=True, prev_kv=True), get(key)),
        *(rpc.LeaseGrantRequest(ID=71, TTL=TTL), rpc.LeaseGrantRequest(ID=72, TTL=TTL), put(key, b"3", lease=71)),
        *(put(key, b"4", ignore_lease=True), get(key), put(key, ignore_value=True, lease=72), get(key)),
        *(put(key, ignore_value=True, ignore_lease=True, prev_kv=True), get(key)),
        *(rpc.LeaseTimeToLiveRequest(ID=lease, keys=True) for lease in (71, 72)),
        *(put(key, ignore_value=True), get(key), rpc.LeaseTimeToLiveRequest(ID=72, keys=True)),
        *(
            put(key, b"5", lease=-1),
            put(key, b"5", lease=71),
            delete(key),
            rpc.LeaseTimeToLiveRequest(ID=71, keys=True),
        ),
        *(put(key, ignore_value=True), put(key, ignore_lease=True), put(key, b"6", prev_kv=True), get(key)),
        *(put(key, b"7", lease=71), rpc.LeaseRevokeRequest(ID=71), get(key), rpc.LeaseRevokeRequest(ID=71)),
        rpc.LeaseRevokeRequest(ID=72),
    )


def test_deletes(pair: Pair) -> None:
    keys = (b"del/a", b"del/b", b"del/c", b"del/d")
    for request in (
        *(delete(b"del/a"), delete(b"del/a", prev_kv=True), delete(b"del/", b"del0", prev_kv=True), delete(b"del/b")),
        *(delete(b"del/b", b"del/d", prev_kv=True), delete(b"del/d", b"del/b"), delete(b"del/b", b"del/b")),
        *(delete(b"del/none"), delete(b"del/none", b"del/nonf", prev_kv=True), delete(b""), delete(b"", b"z")),
        *(delete(b"del/c", b"del/c\0"), delete(b"del/x", b"\0"), delete(b"del/b", b"\0", prev_kv=True)),
    ):
        play(pair, txn(*(put(key, b"1") for key in keys)), request, request, get(b"del/", b"del0"))


def test_delete_of_everything(fresh_pair: Pair) -> None:
    play(fresh_pair, *GROUND, delete(**ALL, prev_kv=True), delete(**ALL), get(**ALL), *GROUND, delete(b"b", b"\0"))
    play(fresh_pair, get(**ALL), rpc.HashKVRequest())


# Txns


def under(prefix: bytes, request: Message) -> Message:
    """Return the request with its keys below a prefix."""
    copy = type(request)()
    copy.CopyFrom(request)
    parts: list[Message] = [copy]
    while parts:
        part = parts.pop()
        for field, value in part.ListFields():
            if field.name == "key" or (field.name == "range_end" and value != b"\0"):
                setattr(part, field.name, prefix + value)
            elif field.message_type is not None:
                parts += list(value) if field.is_repeated else [value]
    return copy


TXNS: dict[str, tuple[rpc.TxnRequest, ...]] = {
    "empty": (txn(), txn(txn()), txn(txn(), txn()), txn(failure=[put(b"a")])),
    "reads only": (txn(get(b"a"), get(b"a", b"z")), txn(get(b"a", b"z", count_only=True), txn(get(b"b")))),
    "reads see earlier writes": (
        txn(get(b"a"), put(b"a", b"1"), get(b"a"), delete(b"b"), get(b"a", b"z"), put(b"c", b"2"), get(b"a", b"z")),
        txn(delete(b"a", b"z"), get(b"a", b"z"), get(b"a", b"z", count_only=True), get(b"a", b"z", limit=1)),
        txn(delete(b"a", b"z"), delete(b"a", b"z", prev_kv=True), get(b"a", b"z")),
        txn(put(b"n", b"1"), get(b"a", b"z", sort_order=2, sort_target=3), get(b"a", b"z", limit=2, keys_only=True)),
        txn(put(b"n", b"3", prev_kv=True), get(b"a", b"z", min_mod_revision=1, limit=1)),
    ),
    "headers of operations": (
        txn(get(b"a"), delete(b"none"), get(b"a"), delete(b"a"), get(b"a"), delete(b"none"), put(b"a"), get(b"a")),
        txn(txn(get(b"a"), put(b"a"), get(b"a")), get(b"a"), txn(get(b"a"), delete(b"none")), txn()),
        txn(delete(b"none"), txn(delete(b"none"), get(b"a")), get(b"a")),
    ),
    "put and delete of a key": (
        txn(put(b"a"), delete(b"a")),
        txn(delete(b"a"), put(b"a")),
        txn(put(b"a"), put(b"a")),
        txn(put(b"a"), failure=[put(b"a")]),
        txn(delete(b"a"), delete(b"a"), delete(b"a", b"c")),
        txn(put(b"b"), delete(b"a", b"c")),
        txn(put(b"c"), delete(b"a", b"c")),
        txn(put(b"a"), delete(b"b", b"a")),
        txn(put(b"b"), delete(b"b", b"a")),
        txn(put(b"b"), delete(b"b", b"b")),
        txn(put(b"b"), delete(b"a", b"\0")),
        txn(put(b"a"), delete(b"a", b"\0")),
        txn(put(b"a"), delete(b"b", b"\0")),
        txn(failure=[put(b"a"), delete(b"a")]),
        txn(failure=[put(b"a"), put(b"a")]),
    ),
    "put and delete of a key, nested": (
        txn(txn(delete(b"a")), txn(put(b"a"))),
        txn(txn(put(b"a")), txn(delete(b"a"))),
        txn(txn(delete(b"a")), put(b"a")),
        txn(put(b"a"), txn(delete(b"a"))),
        txn(txn(put(b"a")), delete(b"a")),
        txn(delete(b"a"), txn(put(b"a"))),
        txn(txn(put(b"a")), put(b"a")),
        txn(txn(put(b"a")), txn(put(b"a"))),
        txn(txn(put(b"a"), failure=[put(b"a")])),
        txn(txn(put(b"a"), failure=[delete(b"a")])),
        txn(txn(delete(b"a"), failure=[put(b"a")])),
        txn(txn(put(b"a"), failure=[put(b"b")]), txn(put(b"b"))),
        txn(txn(put(b"b"), failure=[put(b"a")]), put(b"a")),
        txn(txn(txn(put(b"a"))), txn(txn(delete(b"a")))),
        txn(txn(txn(delete(b"a"))), txn(txn(put(b"a")))),
        txn(txn(txn(delete(b"a", b"c"))), put(b"b")),
        txn(txn(delete(b"a", b"\0")), put(b"b")),
        txn(failure=[txn(delete(b"a")), put(b"a")]),
        txn(failure=[txn(put(b"c")), txn(delete(b"c"))]),
    ),
    "nested compares see the state before": (
        txn(put(b"a", b"new"), txn(get(b"a"), compares=[compare(b"a", target="VALUE", value=b"new")])),
        txn(
            put(b"fresh"),
            txn(put(b"x"), compares=[compare(b"fresh", version=0)], failure=[put(b"y")]),
            txn(get(b"x"), txn(get(b"y"), compares=[compare(b"x", version=0)])),
        ),
        txn(delete(b"a", b"z"), txn(get(b"a"), compares=[compare(b"a", b"z", result="GREATER", version=0)])),
        txn(
            *(txn(put(b"p"), compares=[compare(b"a", version=99)], failure=[txn(put(b"q")), get(b"p"), put(b"r")]),),
            *(txn(txn(txn(put(b"s"), compares=[compare(b"q", version=0)]))), get(b"a", b"z")),
        ),
    ),
    "state of the branch taken": (
        txn(put(b"a", lease=404)),
        txn(put(b"none", ignore_value=True)),
        txn(put(b"none", ignore_lease=True)),
        txn(put(b"none", ignore_value=True, lease=404)),
        txn(put(b"a", ignore_value=True, prev_kv=True), put(b"b", b"3", ignore_lease=True)),
        txn(put(b"made"), put(b"made2", ignore_value=True)),
        txn(put(b"a", b"never"), get(b"a", revision=10**6)),
        txn(get(b"a", revision=10**6), put(b"a", lease=404)),
        txn(put(b"a", lease=404), get(b"a", revision=10**6)),
        txn(put(b"a", lease=404), put(b"none", ignore_value=True)),
        txn(put(b"none", ignore_value=True), put(b"a", lease=404)),
        txn(
            put(b"a", b"kept"),
            failure=[get(b"a", revision=10**6), put(b"b", lease=404), put(b"none", ignore_value=True)],
        ),
        txn(txn(put(b"a", b"never"), put(b"b", lease=404)), put(b"c", b"never")),
        txn(put(b"c", b"never"), txn(txn(get(b"a", revision=10**6)))),
        txn(txn(compares=[compare(b"a", version=99)], failure=[get(b"a", revision=10**6)]), put(b"c")),
        txn(delete(b"a"), txn(put(b"none", ignore_value=True))),
        txn(delete(b"a"), txn(put(b"b", ignore_value=True))),
        txn(txn(put(b"new")), txn(put(b"newer", ignore_value=True))),
    ),
    "shape": (
        txn(None),
        txn(failure=[None]),
        txn(txn(None)),
        txn(put(b"a"), None),
        txn(None, put(b"")),
        txn(put(b""), None),
        txn(put(b""), put(b"a"), put(b"a")),
        txn(put(b"a"), put(b"a"), put(b"")),
        txn(delete(b"")),
        txn(get(b"")),
        txn(compares=[compare(b"")]),
        txn(None, compares=[compare(b"")]),
        txn(failure=[put(b"")]),
        txn(put(b"a", b"x", ignore_value=True)),
        txn(put(b"a", ignore_lease=True, lease=3)),
        txn(put(b"a", b"x", ignore_value=True, ignore_lease=True, lease=3)),
        txn(txn(compares=[compare(b"")]), put(b"a"), put(b"a")),
        txn(get(b"a", sort_order=7), put(b"a"), put(b"a")),
        txn(failure=[put(b"a"), put(b"a")], compares=[compare(b"a", version=99)]),
    ),
}


@pytest.mark.parametrize("name", TXNS)
def test_txns(pair: Pair, name: str) -> None:
    prefix = name.encode() + b"/"
    for request in TXNS[name]:
        play(pair, delete(prefix, prefix + b"\xff"), txn(put(prefix + b"a", b"1"), put(prefix + b"b", b"2")))
        # A key that is missing is tested without the prefix, which would hide it.
        has_empty_key = name == "shape"
        play(pair, request if has_empty_key else under(prefix, request), get(**ALL))


def many(number: int, first: int = 0) -> list[rpc.PutRequest]:
    return [put(b"many/%03d" % n) for n in range(first, first + number)]


def test_budgets(pair: Pair) -> None:
    equal = compare(b"many", version=0)
    for request in (
        *(txn(*many(127)), txn(*many(128)), txn(*many(129)), txn(failure=many(129)), txn(failure=many(128))),
        *(txn(compares=[equal] * 128), txn(compares=[equal] * 129), txn(*[get(b"a")] * 129)),
        *(txn(*many(127), txn()), txn(*many(127), txn(put(b"x"))), txn(*many(126), txn(put(b"x")))),
        *(txn(*many(126), txn(put(b"x"), put(b"y"))), txn(*many(128), txn()), txn(*many(63), txn(*many(64, 100)))),
        *(txn(*many(63), txn(*many(65, 100))), txn(*many(64), txn(*many(64, 100))), txn(txn(*many(127)))),
        *(txn(txn(*many(128))), txn(txn(txn(*many(126)))), txn(txn(txn(*many(127))))),
        *(txn(txn(), compares=[equal] * 127), txn(txn(put(b"x")), compares=[equal] * 128)),
        *(
            txn(txn(compares=[equal] * 64), compares=[equal] * 64),
            txn(txn(compares=[equal] * 65), compares=[equal] * 64),
        ),
        *(txn(txn(put(b"x")), failure=many(128)), txn(txn(put(b"x")), failure=many(127))),
        *(txn(*many(129), compares=[compare(b"")]), txn(None, *many(128)), txn(*many(64), *many(64))),
        txn(*(txn(*many(100, 100 * n)) for n in range(20))),
        txn(*(txn(txn(put(b"deep%d" % n)), txn(get(b"deep%d" % n))) for n in range(60))),
    ):
        play(pair, request, get(b"many", b"many0", count_only=True))


def nested(depth: int) -> rpc.TxnRequest:
    request = txn(put(b"deepest"))
    for _ in range(depth):
        request = txn(request)
    return request


def test_deep_nesting(pair: Pair) -> None:
    play(pair, *(nested(depth) for depth in (1, 10, 40)), get(b"deepest"))


# Compares


def all_compares(key: bytes, range_end: bytes = b"") -> Iterable[rpc.Compare]:
    operands = {
        "version": (0, 1, 2, -1),
        "create_revision": (0, 1, 5),
        "mod_revision": (0, 6, 2**63 - 1),
        "value": (b"", b"5", b"x"),
        "lease": (0, 1),
        None: (0,),
    }
    for target in range(-1, 7):
        for result in range(-1, 6):
            for name, values in operands.items():
                for value in values:
                    operand = {} if name is None else {name: value}
                    yield compare(key, range_end, target=target, result=result, **operand)


@pytest.mark.parametrize(
    ("key", "range_end"),
    [
        (b"b", b""),
        (b"nothing", b""),
        (b"a", b"d"),
        (b"m", b"n"),
        (b"d", b"a"),
        (b"k", b"\0"),
        (b"k1", b"k4"),
        (b"e", b""),
    ],
)
def test_compares(ground: Pair, key: bytes, range_end: bytes) -> None:
    found = list(all_compares(key, range_end))
    for first in range(0, len(found), 64):
        # Nested, so that one call tells the outcome of many.
        play(ground, txn(*(txn(compares=[one]) for one in found[first : first + 64])))


def test_compares_are_anded(ground: Pair) -> None:
    yes, no = compare(b"a", version=1), compare(b"a", version=2)
    play(ground, *(txn(get(b"a"), compares=some, failure=[get(b"b")]) for some in ([yes], [no], [yes, no], [no, yes])))
    play(ground, txn(get(b"a"), compares=[yes, yes]), txn(compares=[yes, compare(b"")]))


# Size


def limit_of(player: Player) -> int:
    """Return how large a request may be, without its length: what etcd adds depends on its member's id."""
    member = player.client.unary(f"{KV}/Range", get(b"a")).header.member_id
    number = (member & 0xFFFF) << 48 | 1 << 47
    return 1_572_864 - 5 - -(-number.bit_length() // 7) - 3


def sized(build: object, size: int) -> Message:
    """Return a request of exactly so many bytes."""
    assert callable(build)
    length = size
    while True:
        request = build(b"v" * length)
        if request.ByteSize() == size:
            assert isinstance(request, Message)
            return request
        length -= request.ByteSize() - size


@pytest.mark.parametrize(
    "build",
    [
        lambda value: put(b"size", value),
        lambda value: txn(put(b"size", value), get(b"a")),
        lambda value: delete(b"size", b"t" + value),
        lambda value: txn(txn(), compares=[compare(b"size", target="VALUE", value=value)]),
        lambda value: put(value),
    ],
    ids=["put", "txn", "delete", "compare", "key"],
)
def test_largest_request(fresh_pair: Pair, build: object) -> None:
    for player in fresh_pair.players:
        largest = limit_of(player)
        for more in (0, 1, 1000):
            request = sized(build, largest + more)
            answer = player.play(calls(request)[0])
            too_large = {"error": {"code": "INVALID_ARGUMENT", "message": "etcdserver: request is too large"}}
            assert ("ok" in answer) if more == 0 else (answer == too_large)


def test_read_only_txn_has_no_size(fresh_pair: Pair) -> None:
    value = b"v" * 1_700_000
    play(fresh_pair, txn(get(b"a"), compares=[compare(b"a", target="VALUE", value=value)], failure=[get(b"b")]))
    play(fresh_pair, txn(txn(), compares=[compare(b"a", target="VALUE", value=value)]), get(b"a", b"b" + value))


def test_checks_come_in_order(pair: Pair) -> None:
    value = b"v" * 1_600_000
    play(
        pair,
        *(put(b"", value), put(b"a", value, ignore_value=True), put(b"a", value, lease=404), put(b"a", value)),
        *(txn(put(b"a", value), put(b"a")), txn(put(b"a", value, lease=404)), txn(None, put(b"a", value))),
        *(delete(b"", value), delete(b"a", value)),
    )


# Compaction and hashes


def test_first_compactions(fresh_pair: Pair) -> None:
    play(fresh_pair, compact(-1), compact(1), compact(0), txn(get(b"a", revision=-1)), txn(get(b"a", revision=-2)))


KNOWN: dict[str, tuple[tuple[Message, ...], Message]] = {
    "etcd keeps the hashes that it takes while it compacts, until it is restarted, and gives those for the revisions "
    "that were compacted to; ours gives what etcd gives after a restart": (
        (put(b"a"), put(b"a"), compact(2, physical=True)),
        rpc.HashKVRequest(revision=2),
    ),
    "likewise after a compaction to 0, whose hash then stands for that of the current revision": (
        (put(b"a"), compact(0, physical=True)),
        rpc.HashKVRequest(),
    ),
}
"""Differences that stay, and what shows each: the cases of this module go around them."""


@pytest.mark.parametrize("why", KNOWN)
def test_known_differences(fresh_pair: Pair, why: str) -> None:
    before, request = KNOWN[why]
    play(fresh_pair, *before)
    with pytest.raises(Difference):
        play(fresh_pair, request)


def test_compaction_at_zero_succeeds_once(fresh_pair: Pair) -> None:
    play(
        fresh_pair,
        *(txn(get(b"a", revision=-1)), txn(get(b"a", revision=-2)), get(b"a", revision=-2), rpc.HashKVRequest()),
        *(compact(-1), compact(2), compact(0), compact(0), compact(-1), txn(get(b"a", revision=-1))),
        *(put(b"a"), compact(1, physical=True), compact(2), compact(2), compact(0), compact(3)),
        *(get(b"a", revision=1), get(b"a", revision=2), txn(get(b"a", revision=1)), txn(get(b"a", revision=-1))),
    )


def test_reads_around_the_compact_revision(fresh_pair: Pair) -> None:
    play(fresh_pair, *GROUND, put(b"a"), delete(b"b"), put(b"b"), put(b"z"), compact(12, physical=True))
    for revision in (-5, -1, 0, 1, 2, 11, 12, 13, 22, 23, 24, 25, 10**6):
        play(
            fresh_pair,
            *(get(**ALL, revision=revision), get(b"c", revision=revision), get(b"none", revision=revision)),
            *(get(b"z", b"a", revision=revision), get(**ALL, revision=revision, count_only=True)),
            *(txn(get(b"a", revision=revision)), txn(put(b"y"), get(b"a", revision=revision))),
            *(txn(put(b"x"), txn(get(b"a", revision=revision))), txn(failure=[get(b"a", revision=revision)])),
        )
    play(fresh_pair, compact(12), compact(11), compact(10**6), compact(30, physical=True), get(**ALL, revision=30))


def test_hashes(fresh_pair: Pair) -> None:
    play(fresh_pair, rpc.LeaseGrantRequest(ID=1, TTL=TTL), rpc.LeaseGrantRequest(ID=2**63 - 1, TTL=TTL))
    play(fresh_pair, *GROUND, put(b"l", b"1", lease=1), put(b"m", lease=2**63 - 1), txn(put(b"n"), txn(delete(b"n"))))
    play(
        fresh_pair, *(rpc.HashKVRequest(revision=revision) for revision in (0, 1, 2, 9, 13, 20, 21, 22, 10**6, -1, -9))
    )
    play(fresh_pair, compact(11, physical=True))
    play(fresh_pair, *(rpc.HashKVRequest(revision=revision) for revision in (0, 1, 10, 12, 13, 20, 21, 22, 10**6, -1)))
    play(fresh_pair, put(b"o"), delete(b"l", b"n"), rpc.HashKVRequest(), compact(12), rpc.HashKVRequest())
    play(fresh_pair, delete(**ALL), rpc.HashKVRequest(), put(b"p"), compact(25), rpc.HashKVRequest(), delete(b"p"))
    play(fresh_pair, rpc.HashKVRequest(revision=26), rpc.HashKVRequest())


def test_hash_when_everything_is_deleted_and_compacted(fresh_pair: Pair) -> None:
    play(fresh_pair, put(b"a"), put(b"b"), put(b"a"), delete(**ALL), rpc.HashKVRequest(), put(b"c"), delete(b"c"))
    play(fresh_pair, compact(4, physical=True), rpc.HashKVRequest(revision=5), rpc.HashKVRequest(revision=7))
    play(fresh_pair, compact(5, physical=True), rpc.HashKVRequest(revision=6), rpc.HashKVRequest())


# kube-apiserver


def test_shapes_of_kubernetes(pair: Pair) -> None:
    key, end = b"/registry/pods/default/web", b"/registry/pods0"
    created = txn(put(key, b"1"), compares=[compare(key, target="MOD", mod_revision=0)])

    def guarded(then: Message, revision: int) -> rpc.TxnRequest:
        return txn(then, compares=[compare(key, target="MOD", mod_revision=revision)], failure=[get(key)])

    play(pair, created, created, guarded(put(key, b"2"), 1), guarded(delete(key), 1), get(key, limit=1))
    current = pair.play(*calls(get(key)))[0]["ok"]["kvs"][0]["mod_revision"]
    play(pair, guarded(put(key, b"2"), current), get(key), guarded(delete(key), current + 1), get(key))
    play(pair, guarded(put(key, b"3"), current), guarded(delete(key), current), created)
    play(pair, *(put(b"/registry/pods/p%d" % n, b"{}") for n in range(7)))
    page = pair.play(*calls(get(b"/registry/pods/", end, limit=3)))[0]["ok"]
    pinned = page["header"]["revision"]
    play(pair, put(b"/registry/pods/p5", b"changed"), delete(b"/registry/pods/p6"), put(b"/registry/pods/a"))
    for start in (page["kvs"][-1]["key"] + b"\0", b"/registry/pods/p3\0", b"/registry/pods/p6\0"):
        play(pair, get(start, end, limit=3, revision=pinned))
    play(pair, get(b"/registry/pods/", end, count_only=True), get(b"/registry/pods/", end, keys_only=True))
    play(pair, get(b"/registry/health"), rpc.LeaseGrantRequest(ID=99, TTL=3660), put(b"/registry/events/e", lease=99))
    for version in (0, 0, 1, 2):
        play(
            pair,
            txn(
                put(b"compact_rev_key", b"%d" % version),
                compares=[compare(b"compact_rev_key", target="VERSION", version=version)],
                failure=[get(b"compact_rev_key")],
            ),
        )
    play(pair, get(b"/registry/pods/", end, revision=pinned, limit=1), rpc.LeaseRevokeRequest(ID=99))


def test_pages_that_were_compacted_are_gone(fresh_pair: Pair) -> None:
    play(fresh_pair, *GROUND, compact(10), get(b"a", b"z", limit=2, revision=9), get(b"a", b"z", limit=2, revision=10))


# JSON


A, B, C = (text(b"json/" + key) for key in (b"a", b"b", b"c"))
END = text(b"json0")


def test_json_puts_and_ranges(pair: Pair) -> None:
    pair.play(
        *posts(
            "kv/put", {"key": A, "value": B}, {"key": A, "prev_kv": True}, {"key": B, "prevKv": True}, {}, {"value": A}
        ),
        *posts("kv/put", {"key": A, "lease": 404}, {"key": A, "lease": "404"}, {"key": C, "ignore_value": True}),
        *posts("kv/put", {"key": A, "value": B, "ignore_value": True}, {"key": A, "lease": 1, "ignoreLease": True}),
        *posts("kv/range", {"key": A}, {"key": A, "range_end": END}, {"key": A, "rangeEnd": END, "limit": "1"}),
        *posts("kv/range", {"key": A, "range_end": END, "limit": 1, "unknown": [1]}, {"key": C}, {}, {"key": ""}),
        *posts("kv/range", {"key": A, "range_end": END, "sort_order": "DESCEND"}),
        *posts(
            "kv/range", *({"key": A, "range_end": END, "sort_order": 2, "sort_target": name} for name in ("MOD", 1, 4))
        ),
        *posts(
            "kv/range", {"key": A, "sort_order": 9}, {"key": A, "sort_target": 9}, {"key": A, "revision": "1000000"}
        ),
        *posts("kv/range", {"key": A, "range_end": END, "count_only": True}, {"key": A, "keys_only": True}),
        *posts("kv/range", {"key": A, "range_end": END, "min_mod_revision": "99999"}, {"key": A, "serializable": True}),
        *posts("kv/range", {"key": "AA==", "range_end": "AA==", "count_only": True}, {"key": A, "revision": -1}),
        *posts("kv/deleterange", {"key": C}, {"key": A, "prev_kv": True}, {"key": A, "range_end": END}, {}, {"key": C}),
    )


def test_json_txns(pair: Pair) -> None:
    absent = {"key": A, "target": "CREATE", "create_revision": "0", "result": "EQUAL"}
    request = {
        "compare": [absent],
        "success": [{"request_put": {"key": A, "value": B}}, {"requestRange": {"key": A}}],
        "failure": [{"request_range": {"key": A}}, {"request_delete_range": {"key": A, "prev_kv": True}}],
    }
    nested_txn = {"success": [{"request_txn": request}, {"request_txn": {"compare": [{"key": A, "version": "5"}]}}]}
    pair.play(
        *posts("kv/txn", request, request, request, nested_txn, nested_txn, {}),
        *posts("kv/txn", {"success": [{}]}, {"success": [{"request_put": {}}]}, {"compare": [{}]}, {"failure": [{}]}),
        *posts("kv/txn", {"success": [{"request_put": {"key": A}}, {"request_put": {"key": A}}]}),
        *posts("kv/txn", {"success": [{"request_put": {"key": A, "lease": "404"}}]}),
        *posts("kv/txn", {"compare": [{"key": A, "target": "VALUE", "value": B, "result": "NOT_EQUAL"}]}),
        *posts("kv/txn", {"compare": [{"key": A, "target": 3, "value": B, "result": 3}]}),
        *posts("kv/txn", {"compare": [{"key": A, "target": "MOD", "version": "1", "result": "GREATER"}]}),
        *posts("kv/txn", {"success": [{"request_range": {"key": A}}] * 129}),
        *posts("kv/txn", {"success": [{"request_range": {"key": A, "revision": "10000000"}}]}),
    )


def test_json_compactions_and_hashes(fresh_pair: Pair) -> None:
    fresh_pair.play(
        *posts("kv/put", *({"key": A, "value": value} for value in (A, B, C))),
        *posts("maintenance/hashkv", {}, {"revision": "3"}, {"revision": "9"}, {"revision": -1}),
        *posts("kv/compaction", {"revision": "9"}, {"revision": -1}, {}, {}, {"revision": 3, "physical": True}),
        *posts("kv/compaction", {"revision": "3"}, {"revision": "4"}),
        *posts("kv/range", {"key": A, "revision": 2}, {"key": A, "revision": "4"}),
        *posts("kv/txn", {"success": [{"request_range": {"key": A, "revision": 2}}]}),
        *posts("maintenance/hashkv", {"revision": "2"}),
    )


# Other shapes of requests


FREE: tuple[Operation, ...] = tuple(
    Unary(f"{KV}/{method}", data, is_free_text=True)
    for method in ("Range", "Put", "DeleteRange", "Txn", "Compact")
    for data in (b"\xff", b"\x0a\x05a", b"\x0b", b"\x0a", b"\x07")
)


def test_bytes_that_are_no_message(pair: Pair) -> None:
    pair.play(*FREE)


def test_unknown_fields_change_nothing(pair: Pair) -> None:
    request = put(b"unknown", b"1").SerializeToString() + b"\xf8\x3f\x01"
    pair.play(Unary(f"{KV}/Put", request), *calls(get(b"unknown")))


def test_fields_set_twice_count_once(pair: Pair) -> None:
    twice = put(b"twice", b"1").SerializeToString() + put(b"twice2", b"2").SerializeToString()
    two_kinds = txn(put(b"kind")).success[0].SerializeToString() + txn(get(b"twice2")).success[0].SerializeToString()
    operation = b"\x12" + bytes([len(two_kinds)]) + two_kinds
    pair.play(Unary(f"{KV}/Put", twice), *calls(get(b"twice", b"twice3")), Unary(f"{KV}/Txn", operation))
