"""Locks: one at a time, in the order they came, and free when their holder is gone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mvccstore import ClosedError, KeyRange, LeaseNotFoundError, Op, Store, TxnError
from mvccstore.recipes import Lock, line
from mvccstore.testing import FakeClock
from tests.recipes.recipes_kit import OWN, SECONDS, changes_awaited, nothing_is_left


def test_one_at_a_time(store: Store) -> None:
    first, second = store.lock("x"), store.lock("x")
    assert first.acquire()
    assert not second.acquire(timeout=0)
    assert first.is_held
    assert not second.is_held
    first.release()
    assert second.acquire(timeout=0)
    second.release()
    assert nothing_is_left(store)


def test_who_asked_first_has_it_first(store: Store, pool: ThreadPoolExecutor) -> None:
    holder = store.lock("x")
    holder.acquire()
    order: list[tuple[int, int]] = []

    def wait(number: int) -> None:
        with store.lock("x") as lock:
            order.append((number, lock.revision))

    waiting = []
    with store.watch(OWN) as watcher:
        for number in range(6):
            waiting.append(pool.submit(wait, number))
            changes_awaited(watcher, 1)
    assert order == []
    revision = holder.revision
    holder.release()
    for each in waiting:
        each.result(SECONDS)
    assert [number for number, _ in order] == list(range(6))
    revisions = [revision, *(each for _, each in order)]
    assert revisions == sorted(set(revisions))
    assert nothing_is_left(store)


def test_a_place_lost_in_the_middle_lets_nobody_in_early(store: Store, pool: ThreadPoolExecutor) -> None:
    holder = store.lock("x")
    holder.acquire()
    with store.watch(OWN) as watcher:
        second = pool.submit(store.lock("x").acquire)
        changes_awaited(watcher, 1)
        lease = store.leases()[-1]
        third = pool.submit(store.lock("x").acquire, SECONDS)
        changes_awaited(watcher, 1)
        lease.revoke()
        changes_awaited(watcher, 1)
    # The third now waits for the holder: it would have been let in if only the second had been in its way.
    assert not third.done()
    assert not store.lock("x").acquire(timeout=0)
    holder.release()
    assert third.result(SECONDS)
    with pytest.raises(LeaseNotFoundError):
        second.result(SECONDS)


def test_each_waits_for_the_one_before_only(store: Store, pool: ThreadPoolExecutor) -> None:
    holder = store.lock("x")
    holder.acquire()
    with store.watch(OWN) as watcher:
        waiting = [pool.submit(_acquire_and_release, store.lock("x")) for _ in range(5)]
        changes_awaited(watcher, 5)
    keys = [kv.key for kv in store.range(OWN, order_by="create")]
    with store._hub.mutex:
        watched = set(store._hub._topics)
    assert watched <= set(keys[:-1])
    holder.release()
    for each in waiting:
        each.result(SECONDS)


def _acquire_and_release(lock: Lock) -> None:
    with lock:
        pass


def test_what_is_done_under_it_is_not_done_by_two(store: Store, pool: ThreadPoolExecutor) -> None:
    store.put(b"n", b"0")
    shared = store.lock("x")

    def add(number: int) -> None:
        # Handles of their own, and one that some share.
        with shared if number % 2 else store.lock("x"):
            kv = store.get(b"n")
            assert kv is not None
            store.put(b"n", b"%d" % (int(kv.value) + 1))

    for each in [pool.submit(add, number) for number in range(24)]:
        each.result(SECONDS)
    kv = store.get(b"n")
    assert kv is not None
    assert kv.value == b"24"
    assert nothing_is_left(store)


def test_it_is_kept_as_long_as_the_handle_lives(timed: Store, clock: FakeClock) -> None:
    lock = timed.lock("x", ttl=10)
    lock.acquire()
    clock.advance(1_000)
    assert lock.is_held
    assert not timed.lock("x").acquire(timeout=0)
    del lock
    clock.advance(9)
    assert not timed.lock("x").acquire(timeout=0)
    clock.advance(1)
    assert timed.lock("x").acquire(timeout=0)


def test_who_waits_has_it_when_the_holder_is_gone(timed: Store, clock: FakeClock, pool: ThreadPoolExecutor) -> None:
    lock = timed.lock("x", ttl=10)
    lock.acquire()
    with timed.watch(OWN) as watcher:
        waiting = pool.submit(timed.lock("x", ttl=10).acquire)
        changes_awaited(watcher, 1)
    del lock
    clock.advance(10)
    assert waiting.result(SECONDS)


def test_a_holder_gone_with_its_process_has_its_whole_time(open_store: Callable[..., Store], clock: FakeClock) -> None:
    store = open_store(clock=clock)
    store.lock("x", ttl=10).acquire()
    clock.advance(9)
    store.close()
    store = open_store(clock=clock)
    clock.advance(9)
    assert not store.lock("x").acquire(timeout=0)
    clock.advance(1)
    assert store.lock("x").acquire(timeout=0)


def test_a_lock_that_was_lost_says_so(store: Store) -> None:
    lock = store.lock("x")
    lock.acquire()
    fence = lock.fence()
    (lease,) = store.leases()
    assert store.txn(compare=[fence], success=[Op.put(b"k", b"1")]).succeeded
    lease.revoke()
    assert not lock.is_held
    assert not store.txn(compare=[fence], success=[Op.put(b"k", b"2")]).succeeded
    with pytest.raises(LeaseNotFoundError) as caught:
        lock.release()
    assert caught.value.lease_id == lease.id
    assert (lock.revision, lock.is_held) == (0, False)
    assert lock.acquire(timeout=0)


def test_a_lock_whose_key_was_deleted_says_so(store: Store) -> None:
    lock = store.lock("x")
    lock.acquire()
    store.delete(OWN)
    assert not store.txn(compare=[lock.fence()]).succeeded
    with pytest.raises(LeaseNotFoundError):
        lock.release()
    assert nothing_is_left(store)


def test_losing_it_does_not_hide_why_a_block_failed(store: Store) -> None:
    def lose() -> None:
        store.leases()[0].revoke()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), store.lock("x"):
        lose()
    with pytest.raises(LeaseNotFoundError), store.lock("x"):
        store.leases()[0].revoke()
    with store.lock("x") as lock:
        lock.release()
        lock.acquire()
    with pytest.raises(RuntimeError, match="not held"), store.lock("x") as lock:
        lock.release()
    assert nothing_is_left(store)


def test_an_interrupted_wait_leaves_the_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    holder = store.lock("x")
    holder.acquire()
    monkeypatch.setattr(line, "changed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.lock("x").acquire()
    holder.release()
    assert nothing_is_left(store)


def test_closing_the_store_wakes_who_waits(store: Store, pool: ThreadPoolExecutor) -> None:
    lock = store.lock("x")
    lock.acquire()
    with store.watch(OWN) as watcher:
        waiting = pool.submit(store.lock("x").acquire)
        changes_awaited(watcher, 1)
    store.close()
    with pytest.raises(ClosedError):
        waiting.result(SECONDS)
    with pytest.raises(ClosedError):
        lock.release()


def test_who_waits_survives_compaction(store: Store, pool: ThreadPoolExecutor) -> None:
    holder = store.lock("x")
    holder.acquire()
    with store.watch(OWN) as watcher:
        waiting = pool.submit(store.lock("x").acquire)
        changes_awaited(watcher, 1)
    store.put(b"k", b"v")
    store.compact(store.revision)
    holder.release()
    assert waiting.result(SECONDS)


def test_names_do_not_meet(store: Store) -> None:
    names: list[str | bytes] = ["a", "a/b", "a%2Fb", "é", b"\xff", b"a/"]
    for name in names:
        assert store.lock(name).acquire(timeout=0)
    assert store.lock(b"a").acquire(timeout=0) is False, "text and its bytes are the same name"
    assert store.count(KeyRange.prefix(b"_mvccstore/lock/a/")) == 1


def test_bad_calls_are_refused_and_leave_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="name is empty"):
        store.lock("")
    with pytest.raises(TypeError, match="neither str nor bytes"):
        store.lock(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ttl"):
        store.lock("x", ttl=0).acquire()
    with pytest.raises(ValueError, match="timeout"):
        store.lock("x").acquire(timeout=-1)
    with pytest.raises(RuntimeError, match="not held"):
        store.lock("x").release()
    with pytest.raises(RuntimeError, match="not held"):
        store.lock("x").fence()
    with store.begin(), pytest.raises(TxnError):
        store.lock("x").acquire()
    assert nothing_is_left(store)
