"""Counters and barriers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest

from mvccstore import ClosedError, LeaseNotFoundError, Store
from mvccstore.testing import FakeClock
from tests.recipes.recipes_kit import OWN, SECONDS, nothing_is_left


def test_nothing_that_is_added_is_lost(store: Store, pool: ThreadPoolExecutor) -> None:
    def add(n: int) -> list[int]:
        counter = store.counter("c")
        return [counter.add(n) for _ in range(5)]

    sums = [each.result(SECONDS) for each in [pool.submit(add, n) for n in (1, 1, 1, 1, 1, 1)]]
    assert store.counter("c").value() == 30
    assert sorted(chain(*sums)) == list(range(1, 31)), "each has seen a sum of their own"


def test_a_counter_counts_any_int(store: Store) -> None:
    counter = store.counter(b"c")
    assert counter.value() == 0
    counter.set(2**70)
    assert counter.add(-(2**71)) == counter.value() == -(2**70)
    assert counter.add(0) == -(2**70)
    assert store.counter("d").value() == 0


def test_a_counter_refuses_what_is_no_number(store: Store) -> None:
    counter = store.counter("c")
    for wrong in (True, 1.5, "1"):
        with pytest.raises(TypeError, match="counts in int"):
            counter.add(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="counts in int"):
            counter.set(wrong)  # type: ignore[arg-type]
    assert store.revision == 1
    store.put(b"_mvccstore/counter/c", b"seven")
    for call in (counter.value, counter.add):
        with pytest.raises(ValueError, match=r"counter/c' holds no number: b'seven'"):
            call()


def test_who_waits_goes_on_when_it_is_lifted(store: Store, pool: ThreadPoolExecutor) -> None:
    barrier = store.barrier("b")
    assert barrier.wait(timeout=0)
    barrier.hold()
    barrier.hold()
    assert not store.barrier("b").wait(timeout=0)
    waiting = [pool.submit(store.barrier("b").wait, SECONDS) for _ in range(5)]
    store.barrier("b").release()
    assert all(each.result(SECONDS) for each in waiting)
    barrier.release()
    assert nothing_is_left(store)


def test_who_waits_goes_on_also_if_it_is_held_again_at_once(store: Store, pool: ThreadPoolExecutor) -> None:
    barrier = store.barrier("b")
    barrier.hold()
    waiting = pool.submit(barrier.wait)
    while not len(store._hub):  # until it watches
        store.put(b"k", b"v")
    with store.begin() as txn:
        txn.delete(OWN)
        txn.put(b"_mvccstore/barrier/b", b"")
    assert waiting.result(SECONDS)
    assert not barrier.wait(timeout=0)


def test_a_barrier_held_by_a_lease_ends_with_it(timed: Store, clock: FakeClock) -> None:
    barrier = timed.barrier("b")
    barrier.hold(lease=timed.grant(5))
    clock.advance(4)
    assert not barrier.wait(timeout=0)
    clock.advance(1)
    assert barrier.wait(timeout=0)
    with pytest.raises(LeaseNotFoundError):
        barrier.hold(lease=7)
    with pytest.raises(ValueError, match="timeout"):
        barrier.wait(timeout=-1)


def test_closing_the_store_wakes_who_waits_at_a_barrier(store: Store, pool: ThreadPoolExecutor) -> None:
    store.barrier("b").hold()
    waiting = pool.submit(store.barrier("b").wait)
    while not len(store._hub) and not waiting.done():
        store.put(b"k", b"v")
    store.close()
    with pytest.raises(ClosedError):
        waiting.result(SECONDS)
