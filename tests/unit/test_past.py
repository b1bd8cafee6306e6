"""History as data: log, diff, blame, at, revert, bisect, by example; bad input."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

import mvccstore
from mvccstore import (
    ClosedError,
    CompactedError,
    FutureRevisionError,
    KeyRange,
    LeaseNotFoundError,
    Limits,
    Snapshot,
    Store,
    TxnError,
    ValueTooLargeError,
    difference,
)
from mvccstore.types import LeaseGrantRequest, LeaseRevokeRequest

OpenStore = Callable[..., Store]
ALL = KeyRange.all()
START_MS = 1_700_000_000_000


class SteppedClock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def time_ms(self) -> int:
        return self.now_ms

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def filled(open_store: OpenStore, engine: str, clock: SteppedClock) -> Store:
    """Revisions 2 to 8, a second apart from START_MS on: a, b, a again, delete b, c, b anew as before, a as before."""
    store = open_store(engine=engine, clock=clock)
    for key, value in (
        (b"a", b"1"),
        (b"b", b"1"),
        (b"a", b"2"),
        (b"b", None),
        (b"c", b"1"),
        (b"b", b"1"),
        (b"a", b"2"),
    ):
        store.delete(key) if value is None else store.put(key, value)
        clock.now_ms += 1_000
    return store


def logged(store: Store, *args: Any, **options: Any) -> list[tuple[int, str, bytes, bytes]]:
    """A log in short."""
    changes = list(store.log(*args, **options))
    assert all(change.revision == change.event.revision for change in changes)
    return [(change.revision, change.event.type, change.event.kv.key, change.event.kv.value) for change in changes]


def differing(found: mvccstore.Scan[mvccstore.Difference]) -> list[tuple[str, bytes, bytes | None, bytes | None]]:
    """A diff in short."""
    return [(each.kind, each.key, each.before and each.before.value, each.after and each.after.value) for each in found]


# log


def test_log_is_the_history_newest_first_with_what_was_before_and_when(filled: Store) -> None:
    assert logged(filled, b"b") == [(7, "put", b"b", b"1"), (5, "delete", b"b", b""), (3, "put", b"b", b"1")]
    assert [change.event for change in filled.log(b"b")] == list(filled.history(b"b", prev_kv=True))[::-1]
    assert [change.event for change in filled.log(ALL)] == list(filled.history(ALL, prev_kv=True))[::-1]
    assert [change.time_ms for change in filled.log(b"b")] == [START_MS + 5_000, START_MS + 3_000, START_MS + 1_000]
    assert next(filled.log(b"b")).time == datetime.fromtimestamp(START_MS / 1000 + 5, UTC)


def test_log_takes_revisions_a_limit_and_an_order(filled: Store) -> None:
    assert [row[0] for row in logged(filled, ALL, start_revision=3, end_revision=6)] == [6, 5, 4, 3]
    assert [row[0] for row in logged(filled, ALL, limit=2)] == [8, 7]
    assert [row[0] for row in logged(filled, ALL, limit=2, newest_first=False)] == [2, 3]
    assert [row[0] for row in logged(filled, b"a", start_revision=3, limit=1)] == [8]
    assert [row[0] for row in logged(filled, b"a", start_revision=3, newest_first=False)] == [4, 8]
    assert logged(filled, b"none") == logged(filled, KeyRange.empty()) == []


@pytest.mark.parametrize("keys", [b"k", KeyRange.prefix(b"k")], ids=["key", "range"])
@pytest.mark.parametrize("limit", [0, 1, 50, 51, 300, 1_500])
def test_log_goes_on_over_pages(store: Store, keys: mvccstore.Keys, limit: int) -> None:
    with store.begin() as txn:
        for number in range(400):  # in one revision
            txn.put(b"k", b"%d" % number)
    for number in range(10):
        store.put(b"other", b"%d" % number)
        store.put(b"k", b"%d" % number)
    forward = [change.event for change in store.log(keys, newest_first=False)]
    assert len(forward) == 410
    assert [change.event for change in store.log(keys, limit=limit)] == forward[::-1][: limit or None]
    assert [change.event for change in store.log(keys, limit=limit, newest_first=False)] == forward[: limit or None]


def test_log_after_compaction_begins_with_what_survived(filled: Store) -> None:
    for physical in (False, True):
        filled.compact(5 + physical, physical=physical)
        for keys in (ALL, b"a", b"b"):
            assert [change.event for change in filled.log(keys)] == list(filled.history(keys, prev_kv=True))[::-1]
    assert logged(filled, b"a") == [(8, "put", b"a", b"2"), (4, "put", b"a", b"2")]
    assert [change.time_ms for change in filled.log(b"a")] == [START_MS + 6_000, None]


def test_log_says_the_same_while_it_is_compacted_and_reclaimed(filled: Store) -> None:
    for keys in (ALL, b"a"):
        with filled.log(keys) as going, filled.log(keys) as whole:
            expected = list(whole)
            first = next(going)
            filled.put(b"a", b"new")
            filled.compact(filled.revision, physical=True)
            assert [first, *going] == expected


# diff


def test_diff_compares_content(filled: Store) -> None:
    assert differing(filled.diff(2, 5)) == [("changed", b"a", b"1", b"2")]
    assert differing(filled.diff(3, 5)) == [("changed", b"a", b"1", b"2"), ("removed", b"b", b"1", None)]
    assert differing(filled.diff(5)) == [("added", b"b", None, b"1"), ("added", b"c", None, b"1")]
    assert differing(filled.diff(4, 8)) == [("added", b"c", None, b"1")]  # a is as before, b anew as before


def test_diff_works_backwards_and_on_some_keys(filled: Store) -> None:
    assert differing(filled.diff(5, 3)) == [("changed", b"a", b"2", b"1"), ("added", b"b", None, b"1")]
    assert differing(filled.diff(0, 5)) == [("removed", b"b", b"1", None), ("removed", b"c", b"1", None)]
    assert differing(filled.diff(3, 5, b"b")) == [("removed", b"b", b"1", None)]
    assert differing(filled.diff(5, 0, KeyRange(b"c"))) == [("added", b"c", None, b"1")]
    for nothing in (filled.diff(3, 5, b"c"), filled.diff(3, 3), filled.diff(0), filled.diff(8, 0)):
        assert list(nothing) == []
    assert list(filled.diff(2, 5, KeyRange.empty())) == []


def test_diff_gives_the_rows_of_both_revisions(filled: Store) -> None:
    for found in filled.diff(1, 6):
        assert (found.before, found.after) == (None, filled.get(found.key, revision=6))
    for found in filled.diff(2, 4):
        assert found.before == filled.get(found.key, revision=2)


def test_diff_sees_another_lease_as_a_difference(store: Store) -> None:
    store.submit(LeaseGrantRequest(7, 60_000))
    before = store.put(b"k", b"v")
    after = store.put(b"k", b"v", lease=7)
    (found,) = store.diff(before, after)
    assert (found.kind, found.before and found.before.lease, found.after and found.after.lease) == ("changed", 0, 7)


def many(store: Store, count: int) -> int:
    with store.begin() as txn:
        for number in range(count):
            txn.put(b"%06d" % number, b"old")
    return store.revision


@pytest.mark.parametrize("is_walked", [False, True])
def test_diff_is_the_same_by_the_log_and_by_the_walk(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, is_walked: bool
) -> None:
    before = many(store, 3_500)
    with store.begin() as txn:
        for number in range(0, 3_500, 9):
            txn.put(b"%06d" % number, b"new")
        txn.delete(KeyRange(b"000100", b"000160"))
        for number in range(120):
            txn.put(b"x%06d" % number, b"new")
        txn.put(b"000001", b"old")
    then = {kv.key: kv for kv in store.scan(ALL, revision=before)}
    now = {kv.key: kv for kv in store.scan(ALL)}
    expected = [
        (key, then.get(key), now.get(key))
        for key in sorted(then.keys() | now.keys())
        if (key in then, key in then and then[key].value) != (key in now, key in now and now[key].value)
    ]
    assert len(expected) > 500
    if is_walked:
        monkeypatch.setattr(difference, "CHANGES_MAX", 0)
    assert [tuple(found) for found in store.diff(before)] == expected
    assert [(key, b, a) for key, a, b in store.diff(0, before)] == expected
    some = KeyRange(b"000150", b"003")
    assert [tuple(found) for found in store.diff(before, 0, some)] == [row for row in expected if row[0] in some]


def test_diff_of_few_keys_far_apart_and_many_between_misses_none(store: Store) -> None:
    with store.begin() as txn:
        for number in range(0, 3_000, 50):
            txn.put(b"%06d" % number, b"older")
    before = store.revision
    many(store, 3_000)
    assert [found.key for found in store.diff(before)] == [b"%06d" % number for number in range(3_000)]
    assert [found.key for found in store.diff(0, before)] == [b"%06d" % number for number in range(3_000)]


def test_diff_says_the_same_while_it_is_compacted_and_reclaimed(filled: Store) -> None:
    before = many(filled, 300)
    filled.delete(KeyRange.prefix(b"0002"))
    with filled.diff(before) as going:
        first = next(going)
        filled.put(b"a", b"new")
        filled.compact(filled.revision, physical=True)
        assert [first.key, *(found.key for found in going)] == [b"%06d" % number for number in range(200, 300)]
    assert filled.stats().snapshots == 0


def test_what_is_closed_midway_holds_nothing_and_does_not_look_complete(filled: Store) -> None:
    calls: list[Callable[[], mvccstore.Scan[Any]]] = [
        lambda: filled.log(ALL),
        lambda: filled.diff(1),
        lambda: filled.blame(ALL),
    ]
    for call in calls:
        scan = call()
        assert filled.stats().snapshots
        next(scan)
        scan.close()
        assert filled.stats().snapshots == 0
        with pytest.raises(ClosedError):
            next(scan)


# blame


def test_blame_says_which_revision_set_a_key_and_when(filled: Store) -> None:
    found = list(filled.blame(ALL))
    assert [(each.key, each.revision, each.version, each.time_ms) for each in found] == [
        (b"a", 8, 3, START_MS + 6_000),
        (b"b", 7, 1, START_MS + 5_000),
        (b"c", 6, 1, START_MS + 4_000),
    ]
    assert [each.kv for each in found] == list(filled.scan(ALL))
    assert found[2].time == datetime.fromtimestamp(START_MS / 1000 + 4, UTC)
    assert [(each.key, each.revision) for each in filled.blame(ALL, revision=4)] == [(b"a", 4), (b"b", 3)]
    assert [each.revision for each in filled.blame(b"c")] == [6]
    assert list(filled.blame(b"none")) == list(filled.blame(KeyRange.empty())) == []


def test_blame_does_not_know_times_before_the_compact_revision_however_far_reclaiming_is(filled: Store) -> None:
    filled.compact(7)
    before = [(each.revision, each.time_ms) for each in filled.blame(ALL)]
    filled.reclaim()
    assert [(each.revision, each.time_ms) for each in filled.blame(ALL)] == before
    assert before == [(8, START_MS + 6_000), (7, START_MS + 5_000), (6, None)]


def test_blame_goes_on_over_pages(store: Store) -> None:
    many(store, 1_200)
    assert [each.kv for each in store.blame(ALL)] == list(store.scan(ALL))


# at


@pytest.mark.parametrize(
    ("since_ms", "revision"), [(-1, 1), (0, 2), (999, 2), (1_000, 3), (3_500, 5), (6_000, 8), (7_000_000, 8)]
)
def test_at_is_the_last_revision_written_by_then(filled: Store, since_ms: int, revision: int) -> None:
    seconds = (START_MS + since_ms) / 1000
    assert filled.at(seconds) == revision
    assert filled.at(datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=START_MS + since_ms)) == revision
    far_east = timezone(timedelta(hours=11))
    assert filled.at(datetime.fromtimestamp(seconds, far_east)) == revision


def test_at_of_an_empty_store_and_before_the_epoch_is_revision_1(store: Store) -> None:
    assert store.at(0) == store.at(-10.5) == store.at(1e300) == 1
    assert store.at(datetime.max.replace(tzinfo=UTC)) == 1


def test_at_takes_what_log_and_blame_say(filled: Store) -> None:
    for change in filled.log(ALL):
        assert change.time is not None
        assert change.time_ms is not None
        assert filled.at(change.time) == filled.at(change.time_ms / 1000) == change.revision


def test_at_is_exact_to_10_ms(open_store: OpenStore, clock: SteppedClock, engine: str) -> None:
    store = open_store(engine=engine, clock=clock)
    for _ in range(4):
        store.put(b"k")
        clock.now_ms += 5
    assert [store.at((START_MS + ms) / 1000) for ms in (0, 5, 10, 15)] == [3, 3, 5, 5]


def test_at_of_a_compacted_time_is_refused_the_same_before_and_after_reclaiming(filled: Store) -> None:
    filled.compact(5)
    for _ in range(2):
        for since in (-5.0, 0.0, 1.5, 2.9):
            with pytest.raises(CompactedError) as caught:
                filled.at(START_MS / 1000 + since)
            assert (caught.value.revision, caught.value.compact_revision) == (4, 5)
        assert filled.at(START_MS / 1000 + 3) == 5
        filled.reclaim()


@pytest.mark.parametrize(
    ("time", "error"),
    [
        (datetime(2024, 5, 1), ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("2024-05-01", TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_at_refuses_what_is_no_time(store: Store, time: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        store.at(time)


# revert


def test_revert_writes_the_old_state_forward_in_one_revision(filled: Store) -> None:
    filled.put(b"d", b"1")
    result = filled.revert(ALL, to=3)
    assert result == mvccstore.RevertResult(revision=10, put=1, deleted=2)
    assert [(kv.key, kv.value) for kv in filled.scan(ALL)] == [(b"a", b"1"), (b"b", b"1")]
    assert [event.kv.key for event in filled.history(ALL, start_revision=10)] == [b"a", b"c", b"d"]
    assert filled.get(b"b", revision=10) == filled.get(b"b", revision=7)  # equal, so left alone
    assert list(filled.diff(3, 10)) == []


def test_revert_can_be_reverted(filled: Store) -> None:
    before = filled.revision
    assert filled.revert(ALL, to=5).revision == before + 1
    filled.revert(ALL, to=before)
    assert list(filled.diff(before)) == []


def test_revert_spends_no_revision_if_nothing_differs(filled: Store) -> None:
    for to in (7, 8):
        assert filled.revert(ALL, to=to) == mvccstore.RevertResult(8, 0, 0)
    assert filled.revert(b"a", to=4) == filled.revert(b"none", to=2) == mvccstore.RevertResult(8, 0, 0)
    assert filled.revision == 8


def test_revert_keeps_to_its_keys(filled: Store) -> None:
    assert filled.revert(b"c", to=5) == mvccstore.RevertResult(9, 0, 1)
    assert filled.revert(KeyRange(b"a", b"b"), to=2) == mvccstore.RevertResult(10, 1, 0)
    assert [(kv.key, kv.value) for kv in filled.scan(ALL)] == [(b"a", b"1"), (b"b", b"1")]


def test_revert_keeps_leases_that_still_exist(store: Store) -> None:
    for lease in (7, 8):
        store.submit(LeaseGrantRequest(lease, 60_000))
        store.put(b"%d" % lease, b"v", lease=lease)
    then = store.put(b"plain", b"v")
    store.submit(LeaseRevokeRequest(8))
    store.put(b"7", b"v")  # another lease: none
    store.put(b"plain", b"v", lease=7)
    result = store.revert(ALL, to=then)
    assert (result.put, result.deleted) == (3, 0)
    assert {kv.key: kv.lease for kv in store.scan(ALL)} == {b"7": 7, b"8": 0, b"plain": 0}
    assert store.revert(ALL, to=then) == mvccstore.RevertResult(result.revision, 0, 0)


def test_revert_is_a_part_of_a_block_and_sees_what_it_wrote(filled: Store) -> None:
    with filled.begin() as txn:
        txn.put(b"new", b"1")
        txn.delete(b"a")
        assert txn.revert(ALL, to=3) == mvccstore.RevertResult(9, 1, 2)
        txn.put(b"note", b"reverted")
        assert txn.revert(ALL, to=8).put == 2
        assert txn.revert(ALL, to=3).revision == 9
        txn.put(b"note", b"reverted")
    assert filled.revision == 9
    assert [(kv.key, kv.value) for kv in filled.scan(ALL)] == [(b"a", b"1"), (b"b", b"1"), (b"note", b"reverted")]


def test_revert_in_a_block_that_is_rolled_back_did_nothing(filled: Store) -> None:
    with filled.begin() as txn:
        txn.revert(ALL, to=2)
        txn.rollback()
    assert filled.revision == 8


def test_revert_of_many_keys(store: Store) -> None:
    before = many(store, 2_500)
    store.delete(KeyRange.prefix(b"0010"))
    store.put(b"x")
    store.put(b"000001", b"new")
    assert store.revert(ALL, to=before) == mvccstore.RevertResult(before + 4, 101, 1)
    assert list(store.diff(before)) == []


def test_revert_that_is_refused_did_nothing(open_store: OpenStore, tmp_path: Any) -> None:
    with open_store(engine="lmdb") as store:
        then = store.put(b"b", b"v" * 100)
        store.delete(b"b")
        store.put(b"a")
    store = open_store(engine="lmdb", limits=Limits(value_bytes_max=50))
    with pytest.raises(ValueTooLargeError):
        store.revert(ALL, to=then)
    assert store.revision == then + 2
    assert store.get(b"a") is not None


def test_revert_inside_a_block_is_the_blocks_own(filled: Store) -> None:
    with filled.begin() as txn, pytest.raises(TxnError):
        filled.revert(ALL, to=3)
    assert txn.revision == 8


def test_revert_refuses_a_read_only_store(open_store: OpenStore) -> None:
    with open_store(engine="sqlite") as store:
        store.put(b"k")
    reader = open_store(engine="sqlite", read_only=True)
    with pytest.raises(mvccstore.StorageError, match="read-only"):
        reader.revert(ALL, to=1)


# bisect


def test_bisect_finds_the_first_revision_in_few_steps(store: Store) -> None:
    for number in range(200):
        store.put(b"k", b"%03d" % number)
    asked: list[int] = []

    def holds(view: Snapshot) -> bool:
        asked.append(view.revision)
        kv = view.get(b"k")
        return kv is not None and kv.value >= b"123"

    assert store.bisect(holds) == 125
    assert len(asked) <= 2 + 8
    assert (min(asked), max(asked)) == (1, 201)
    assert store.bisect(holds, low=100, high=125) == 125
    assert store.bisect(holds, high=124) is None
    assert store.bisect(holds, low=125) == 125
    assert store.bisect(holds, low=150) == 150  # already
    assert store.bisect(holds, low=150, high=150) == 150


def test_bisect_of_what_comes_and_goes_is_an_edge(filled: Store) -> None:
    found = filled.bisect(lambda view: view.get(b"b") is not None)
    assert found in (3, 7)


def test_bisect_reads_what_is_compacted_meanwhile(store: Store) -> None:
    for number in range(20):
        store.put(b"k", b"%02d" % number)

    def holds(view: Snapshot) -> bool:
        if view.revision < 21:
            store.put(b"other")
            store.compact(store.revision, physical=True)
        (kv,) = view.scan(b"k") if view.revision > 1 else (None,)
        assert view.count(ALL) == (view.revision > 1)
        assert [event.kv for event in view.history(b"k")][-1:] == [kv] * (kv is not None)
        return kv is not None and kv.value >= b"07"

    assert store.bisect(holds, low=3, high=21) == 9
    assert store.stats().snapshots == 0


def test_bisect_begins_at_the_oldest_readable_revision(filled: Store) -> None:
    filled.compact(5)
    seen: list[int] = []
    assert filled.bisect(lambda view: seen.append(view.revision) or view.revision >= 6) == 6  # type: ignore[func-returns-value]
    assert min(seen) == 5


def test_bisect_closes_its_views_and_lets_go_if_the_predicate_raises(filled: Store) -> None:
    views: list[Snapshot] = []

    def raises(view: Snapshot) -> bool:
        views.append(view)
        raise LeaseNotFoundError(1)

    with pytest.raises(LeaseNotFoundError):
        filled.bisect(raises)
    with pytest.raises(ClosedError):
        views[0].get(b"a")
    assert filled.stats().snapshots == 0


# Bad input

CALLS: list[tuple[Callable[[Store], object], type[Exception]]] = [
    (lambda s: s.log(b"a", start_revision=4), CompactedError),
    (lambda s: s.log(b"a", start_revision=9), FutureRevisionError),
    (lambda s: s.log(b"a", end_revision=9), FutureRevisionError),
    (lambda s: s.log(b"a", start_revision=7, end_revision=6), ValueError),
    (lambda s: s.log(b"a", limit=-1), ValueError),
    (lambda s: s.log(b"a", start_revision=-1), ValueError),
    (lambda s: s.log(b"a", end_revision=-1), ValueError),
    (lambda s: s.log(b""), ValueError),
    (lambda s: s.log("a"), TypeError),  # type: ignore[arg-type]
    (lambda s: s.log(b"a", start_revision="7"), TypeError),  # type: ignore[arg-type]
    (lambda s: s.diff(4), CompactedError),
    (lambda s: s.diff(0, 4), CompactedError),
    (lambda s: s.diff(6, 9), FutureRevisionError),
    (lambda s: s.diff(9, 6), FutureRevisionError),
    (lambda s: s.diff(9, 9), FutureRevisionError),
    (lambda s: s.diff(-1), ValueError),
    (lambda s: s.diff(6, -1), ValueError),
    (lambda s: s.diff(6.0), TypeError),  # type: ignore[arg-type]
    (lambda s: s.diff(6, 7, "a"), TypeError),  # type: ignore[arg-type]
    (lambda s: s.diff(6, 7, b""), ValueError),
    (lambda s: s.blame(ALL, revision=4), CompactedError),
    (lambda s: s.blame(ALL, revision=9), FutureRevisionError),
    (lambda s: s.blame(ALL, revision=-1), ValueError),
    (lambda s: s.blame("a"), TypeError),  # type: ignore[arg-type]
    (lambda s: s.revert(ALL, to=4), CompactedError),
    (lambda s: s.revert(ALL, to=9), FutureRevisionError),
    (lambda s: s.revert(ALL, to=0), ValueError),
    (lambda s: s.revert(ALL, to=-1), ValueError),
    (lambda s: s.revert(ALL, to="5"), TypeError),  # type: ignore[arg-type]
    (lambda s: s.revert("a", to=5), TypeError),  # type: ignore[arg-type]
    (lambda s: s.revert(b"", to=5), ValueError),
    (lambda s: s.bisect(bool, low=4), CompactedError),
    (lambda s: s.bisect(bool, high=4), CompactedError),
    (lambda s: s.bisect(bool, high=9), FutureRevisionError),
    (lambda s: s.bisect(bool, low=9), FutureRevisionError),
    (lambda s: s.bisect(bool, low=7, high=6), ValueError),
    (lambda s: s.bisect(bool, low=-1), ValueError),
    (lambda s: s.bisect(bool, high=None), TypeError),  # type: ignore[arg-type]
]


def test_bad_input_is_refused_and_nothing_is_held(filled: Store) -> None:
    filled.compact(5, physical=True)
    for number, (call, error) in enumerate(CALLS):
        with pytest.raises(error):
            call(filled)
        assert filled.stats().snapshots == 0, number
        assert filled.revision == 8


def test_a_closed_store_says_so(filled: Store) -> None:
    filled.close()
    for call in (
        lambda: filled.log(ALL),
        lambda: filled.diff(2),
        lambda: filled.blame(ALL),
        lambda: filled.at(0),
        lambda: filled.revert(ALL, to=2),
        lambda: filled.bisect(bool),
    ):
        with pytest.raises(ClosedError):
            call()


def test_a_store_opened_read_only_has_them_too(open_store: OpenStore, clock: SteppedClock) -> None:
    with open_store(engine="lmdb", clock=clock) as writer:
        for value in (b"1", b"2"):
            writer.put(b"k", value)
    reader = open_store(engine="lmdb", read_only=True)
    assert logged(reader, b"k") == [(3, "put", b"k", b"2"), (2, "put", b"k", b"1")]
    assert differing(reader.diff(2)) == [("changed", b"k", b"1", b"2")]
    assert [each.revision for each in reader.blame(ALL)] == [3]
    assert reader.at(START_MS / 1000) == 3
    assert reader.bisect(lambda view: view.count(ALL) == 1) == 2
