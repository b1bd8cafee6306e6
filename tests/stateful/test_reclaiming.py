"""What the machine found about reclaiming, which is invisible but for its races; each as a test that always meets it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import mvccstore
from mvccstore import CompactedError, KeyRange, Store


class MeddlingClock:
    """A clock that does something each time it is asked how late it is, as reclaiming does around its steps."""

    def __init__(self) -> None:
        self.meddle: Callable[[], object] = lambda: None

    def time_ms(self) -> int:
        return 1_000_000

    def monotonic(self) -> float:
        self.meddle()
        return 0.0


@pytest.mark.parametrize("asked", range(1, 9))
def test_compaction_while_an_earlier_one_is_reclaimed_is_not_forgotten(
    open_store: Callable[..., Store], engine: str, asked: int
) -> None:
    clock = MeddlingClock()
    store = open_store(engine=engine, clock=clock)
    for _ in range(5):
        store.put(b"k")
    times = 0

    def compact_further() -> None:
        nonlocal times
        times += 1
        if times == asked:
            store.compact(5)

    clock.meddle = compact_further
    store.compact(3, physical=True)
    clock.meddle = lambda: None
    if times < asked:  # reclaiming has fewer steps
        store.compact(5)
    assert store.compact_revision == 5
    with pytest.raises(CompactedError):
        store.get(b"k", revision=4)
    store.reclaim()
    assert store.stats().reclaimed_revision == 5
    assert store.check() == []


def test_hash_of_a_store_without_keys_is_the_same_before_and_after_reclaiming(store: Store) -> None:
    store.put(b"a")
    with store.snapshot():  # holds revision 2 back
        store.delete(b"a")
        store.compact(3)
        before = store.hash_kv()
    store.reclaim()
    assert store.stats().revisions_kept <= 1
    assert before == store.hash_kv()


def test_hash_at_an_old_revision_is_the_same_before_and_after_reclaiming(store: Store) -> None:
    store.put(b"a", b"1")
    with store.snapshot():
        store.put(b"a", b"2")
        store.put(b"b", b"3")
        store.delete(b"b")
        store.put(b"c", b"4")
        store.delete(KeyRange.all())
        store.compact(4)
        before = [store.hash_kv(revision=revision) for revision in (4, 5, 6, 7)]
    store.reclaim()
    assert before == [store.hash_kv(revision=revision) for revision in (4, 5, 6, 7)]


def test_revision_does_not_go_back_when_the_last_records_are_reclaimed(open_store: Callable[..., Store]) -> None:
    store = open_store(engine="lmdb")
    store.put(b"a")
    store.delete(b"a")
    store.put(b"b")
    store.delete(b"b")
    store.compact(5, physical=True)
    store.close()
    store = open_store()
    assert store.revision == 5
    assert store.put(b"a") == 6


def test_snapshot_answers_at_its_revision_whatever_is_compacted(store: Store) -> None:
    for value in (b"1", b"2", b"3", b"4"):
        store.put(b"k", value)
    snapshot = store.snapshot(revision=3)
    store.compact(5, physical=True)
    assert snapshot.get(b"k") == mvccstore.KeyValue(b"k", 2, 3, 2, b"2")
    with pytest.raises(CompactedError):
        store.snapshot(revision=3)
    snapshot.close()
    store.reclaim()
    assert store.stats().revisions_kept == 1
