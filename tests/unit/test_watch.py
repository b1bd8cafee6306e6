"""Watching, by example: what is shown, from where, what is refused, and what happens to those who are slow."""

from __future__ import annotations

import gc
import math
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from random import Random
from typing import Any
from unittest import mock

import pytest

import mvccstore
from mvccstore import ClosedError, CompactedError, Event, KeyRange, Op, Store, WatchBatch, Watcher
from mvccstore.testing import FakeClock
from tests.concurrency.bench import SECONDS, Threads
from tests.guarantees import Recorder, watch_problems

OpenStore = Callable[..., Store]
ALL = KeyRange.all()
A, B, C = b"a", b"b", b"c"


def changes_of(store: Store) -> list[Event]:
    return list(store.history(ALL, prev_kv=True))


def brief(batch: WatchBatch | None) -> tuple[int, list[tuple[str, bytes, bytes]]] | None:
    return batch and (batch.revision, [(event.type, event.kv.key, event.kv.value) for event in batch.events])


def all_of(watcher: Watcher) -> list[Any]:
    found = []
    while (batch := watcher.next_batch(timeout=0)) is not None:
        found.append(brief(batch))
    return found


def recorder_of(store: Store, keys: Any = ALL, start: int = 0, **options: Any) -> Recorder:
    watcher = store.watch(keys, start_revision=start, **options)
    shown = {name: options[name] for name in ("prev_kv", "filters") if name in options}
    return Recorder(watcher, keys, start or store.revision + 1, **shown)


def in_thread(threads: Threads, watcher: Watcher) -> SimpleQueue[object]:
    """Have a thread wait in a watcher; return where it puts what it gets. The hub says when it waits."""
    found: SimpleQueue[object] = SimpleQueue()
    listening = threading.Event()
    listen = watcher.listen

    def watched_listen(on_wake: Callable[[], None] | None) -> bool:
        is_listening = listen(on_wake)
        listening.set()
        return is_listening

    watcher.listen = watched_listen  # type: ignore[method-assign]

    def wait() -> None:
        try:
            found.put(watcher.next_batch(timeout=SECONDS))
        except (ClosedError, CompactedError) as error:
            found.put(error)

    threads.start(wait)
    assert listening.wait(SECONDS)
    return found


# What is shown


def test_shows_changes_after_now(store: Store) -> None:
    store.put(A, b"before")
    with store.watch(A) as watcher:
        assert watcher.next_batch(timeout=0) is None
        store.put(A, b"1")
        store.put(B, b"other")
        store.delete(A)
        assert all_of(watcher) == [(3, [("put", A, b"1")]), (5, [("delete", A, b"")])]
        assert watcher.revision == 5


def test_shows_the_past_then_what_comes(store: Store) -> None:
    for number in range(5):
        store.put(A, b"%d" % number)
    recorder = recorder_of(store, A, 3)
    assert recorder.take() == WatchBatch(3, tuple(store.history(A, start_revision=3, end_revision=3)))
    store.put(A, b"new")
    watched = recorder.take_all()
    assert [event.revision for event in watched.events()] == [3, 4, 5, 6, 7]
    assert watch_problems(watched, changes_of(store)) == []
    recorder.watcher.close()


def test_begins_at_a_future_revision(store: Store) -> None:
    recorder = recorder_of(store, ALL, 4)
    for number in range(2):
        store.put(A, b"%d" % number)
        assert recorder.take() is None  # also from the tail, where it is looked at each time
        assert recorder.watcher.revision == 3
    store.put(A, b"shown")
    store.put(A, b"too")
    watched = recorder.take_all()
    assert [event.revision for event in watched.events()] == [4, 5]
    assert watch_problems(watched, changes_of(store)) == []
    recorder.watcher.close()


def test_revision_is_where_a_new_watcher_goes_on(store: Store) -> None:
    first = recorder_of(store, ALL, 1)
    for number in range(6):
        store.put(A, b"%d" % number)
    for _ in range(3):
        first.take()
    first.watcher.close()
    second = store.watch(ALL, start_revision=first.watcher.revision + 1)
    assert [event.revision for event in (next(second), next(second), next(second))] == [5, 6, 7]
    second.close()


def test_revision_grows_while_nothing_watched_changes(store: Store) -> None:
    with store.watch(A) as watcher:
        store.put(B)
        assert watcher.next_batch(timeout=0) is None
        assert watcher.revision == 2


def test_events_of_a_txn_come_together_in_the_order_of_its_operations(store: Store) -> None:
    store.put(C)
    with store.watch(ALL) as watcher:
        store.txn(success=[Op.put(B, b"1"), Op.delete(C), Op.txn(success=[Op.put(A, b"2")]), Op.put(b"d", b"3")])
        expected = [("put", B, b"1"), ("delete", C, b""), ("put", A, b"2"), ("put", b"d", b"3")]
        assert all_of(watcher) == [(3, expected)]
    with store.watch(ALL, start_revision=3) as watcher:  # and from the log
        assert all_of(watcher) == [(3, expected)]


def test_events_of_a_block_include_what_it_undid_itself(store: Store) -> None:
    with store.watch(ALL) as watcher, store.begin() as txn:
        txn.put(A, b"1")
        txn.put(A, b"2")
        txn.delete(A)
        txn.put(A, b"3")
        assert watcher.poll() is None  # not before it is committed
        txn.commit()
        tail = all_of(watcher)
    assert tail == [(2, [("put", A, b"1"), ("put", A, b"2"), ("delete", A, b""), ("put", A, b"3")])]
    for keys in (A, ALL):
        with store.watch(keys, start_revision=2) as watcher:
            assert all_of(watcher) == tail


def test_nothing_is_shown_of_what_was_rolled_back_or_refused(store: Store) -> None:
    with store.watch(ALL) as watcher:
        with store.begin() as txn:
            txn.put(A)
            txn.rollback()
        with pytest.raises(mvccstore.LeaseNotFoundError):
            store.txn(success=[Op.put(A, b""), Op.put(B, b"", lease=7)])
        store.delete(A)
        assert watcher.poll() is None


def test_events_of_a_revoked_lease_come_together_in_key_order(store: Store) -> None:
    lease = store.grant(60)
    for key in (C, A, B):
        store.put(key, lease=lease)
    with store.watch(ALL) as watcher:
        lease.revoke()
        assert all_of(watcher) == [(5, [("delete", A, b""), ("delete", B, b""), ("delete", C, b"")])]


def test_prev_kv_is_the_key_before_the_revision(store: Store) -> None:
    store.put(A, b"1")
    store.put(C, b"old")
    tail = recorder_of(store, ALL, prev_kv=True)
    store.put(A, b"2")
    store.delete(A)
    store.put(A, b"3")
    with store.begin() as txn:
        txn.put(B, b"new")
        txn.delete(B)  # which was not there before the revision
        txn.delete(C)
        txn.put(C, b"again")  # created, but something was there before the revision
    log = recorder_of(store, ALL, 4, prev_kv=True)
    for recorder in (tail, log):
        watched = recorder.take_all()
        prev = [event.prev_kv and event.prev_kv.value for event in watched.events()]
        assert prev == [b"1", b"2", None, None, None, b"old", b"old"]
        assert watch_problems(watched, changes_of(store)) == []
        recorder.watcher.close()


def test_prev_kv_is_left_out_where_it_is_compacted(store: Store) -> None:
    store.put(A, b"1")
    with store.watch(A, prev_kv=True) as watcher:
        store.put(A, b"2")
        store.put(A, b"3")
        store.compact(3, physical=True)
        assert [event.prev_kv and event.prev_kv.value for event in (next(watcher), next(watcher))] == [None, b"2"]


def test_without_prev_kv_there_is_none(store: Store) -> None:
    store.put(A, b"1")
    with store.watch(A, start_revision=1) as watcher:
        store.put(A, b"2")
        assert [next(watcher).prev_kv, next(watcher).prev_kv] == [None, None]


@pytest.mark.parametrize(
    ("filters", "types"),
    [((), ["put", "delete"]), (["noput"], ["delete"]), ({"nodelete"}, ["put"]), (("noput", "nodelete"), [])],
)
def test_filters_leave_events_out(store: Store, filters: Any, types: list[str]) -> None:
    tail = recorder_of(store, ALL, filters=filters)
    store.put(A)
    store.delete(A)
    log = recorder_of(store, ALL, 2, filters=filters)
    for recorder in (tail, log):
        watched = recorder.take_all()
        assert [event.type for event in watched.events()] == types
        assert recorder.watcher.revision == 3
        assert watch_problems(watched, changes_of(store)) == []
        recorder.watcher.close()


def test_iterating_and_batches_may_be_mixed(store: Store) -> None:
    with store.watch(ALL) as watcher:
        store.txn(success=[Op.put(A, b""), Op.put(B, b""), Op.put(C, b"")])
        store.put(A)
        assert next(watcher).kv.key == A
        assert watcher.revision == 1  # the rest of revision 2 is still to come
        batch = watcher.next_batch(timeout=0)
        assert batch is not None
        assert (batch.revision, [event.kv.key for event in batch.events]) == (2, [B, C])
        assert watcher.revision == 2
        assert next(watcher).revision == 3


def test_rest_of_a_revision_from_the_log_has_its_own_revision(store: Store) -> None:
    store.txn(success=[Op.put(A, b""), Op.put(B, b"")])
    store.put(C)  # not watched, but read with it
    with store.watch(KeyRange(A, C), start_revision=1) as watcher:
        assert next(watcher).revision == 2
        batch = watcher.next_batch(timeout=0)
        assert batch is not None
        assert (batch.revision, len(batch.events), watcher.revision) == (2, 1, 3)


def test_two_watchers_of_the_same_keys_do_not_share_a_cursor(store: Store) -> None:
    with store.watch(ALL) as first, store.watch(ALL) as second:
        store.put(A, b"1")
        assert brief(first.poll()) == brief(second.poll()) == (2, [("put", A, b"1")])
        assert first.poll() is second.poll() is None


def test_long_keys_and_large_values_are_shown(store: Store) -> None:
    key, value = b"k" * 3_000, b"v" * 200_000
    with store.watch(KeyRange.prefix(b"kk")) as watcher:
        store.put(key, value)
        assert all_of(watcher) == [(2, [("put", key, value)])]


# Progress


def test_progress_comes_when_nothing_else_did_for_so_long(open_store: OpenStore) -> None:
    clock = FakeClock()
    store = open_store(engine="memory", clock=clock)
    clock.advance(0.2)
    recorder = recorder_of(store, A, progress=0.1)
    store.put(B)
    assert recorder.take() is None
    clock.advance(0.1)  # which is 0.3 less 0.2: less than 0.1 in binary
    assert recorder.take() == WatchBatch(2, ())
    assert recorder.take() is None
    clock.advance(0.09)
    store.put(A)
    assert brief(recorder.take()) == (3, [("put", A, b"")])
    clock.advance(0.09)
    assert recorder.take() is None
    clock.advance(5)
    assert recorder.take() == WatchBatch(3, ())
    assert watch_problems(recorder.take_all(), changes_of(store)) == []
    recorder.watcher.close()


def test_progress_wakes_who_waits(open_store: OpenStore) -> None:
    clock = FakeClock()
    store = open_store(engine="memory", clock=clock)
    with Threads() as threads, store.watch(A, progress=3_600) as watcher:
        found = in_thread(threads, watcher)
        clock.advance(3_600)
        assert found.get(timeout=SECONDS) == WatchBatch(1, ())


def test_listening_where_progress_is_due_says_so(open_store: OpenStore) -> None:
    clock = FakeClock()
    store = open_store(engine="memory", clock=clock)
    with store.watch(A, progress=10) as watcher:
        assert watcher.poll() is None
        clock.advance(10)  # between looking and listening
        assert not watcher.listen(lambda: None)
        assert watcher.poll() == WatchBatch(1, ())


def test_progress_of_a_system_clock(store: Store) -> None:
    with store.watch(A, progress=0.001) as watcher:
        assert watcher.next_batch(timeout=SECONDS) == WatchBatch(1, ())


# Bad input


@pytest.mark.parametrize(
    ("keys", "options", "error"),
    [
        (b"", {}, ValueError),
        (KeyRange.empty(), {}, ValueError),
        ("a", {}, TypeError),
        (None, {}, TypeError),
        (bytearray(b"a"), {}, TypeError),
        ([b"a"], {}, TypeError),
        (A, {"start_revision": -1}, ValueError),
        (A, {"start_revision": 1.0}, TypeError),
        (A, {"start_revision": True}, TypeError),
        (A, {"start_revision": None}, TypeError),
        (A, {"filters": "noput"}, ValueError),
        (A, {"filters": ["put"]}, ValueError),
        (A, {"filters": None}, TypeError),
        (A, {"progress": 0}, ValueError),
        (A, {"progress": -1.0}, ValueError),
        (A, {"progress": math.nan}, ValueError),
        (A, {"progress": "1"}, TypeError),
    ],
)
def test_what_cannot_be_watched_is_refused(store: Store, keys: Any, options: Any, error: type[Exception]) -> None:
    with store.watch(ALL) as other:
        with pytest.raises(error):
            store.watch(keys, **options)
        assert len(store._hub) == 1
        store.put(A)
        assert next(other).revision == 2


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan])
def test_timeout_is_not_negative(store: Store, timeout: float) -> None:
    with store.watch(A) as watcher, pytest.raises(ValueError, match="timeout"):
        watcher.next_batch(timeout)


@pytest.mark.parametrize("seconds", [math.inf, 1e300])
def test_waiting_for_ever_may_be_said_as_a_number(open_store: OpenStore, seconds: float) -> None:
    store = open_store(engine="memory")
    with Threads() as threads, store.watch(A, progress=seconds) as watcher:
        waiting = threads.start(watcher.next_batch, seconds)
        store.put(A)
        waiting.join(SECONDS)
        assert not waiting.is_alive()


def test_below_the_compact_revision_is_refused_at_once(store: Store) -> None:
    for _ in range(5):
        store.put(A)
    store.compact(4)
    with pytest.raises(CompactedError) as caught:
        store.watch(A, start_revision=3)
    assert (caught.value.revision, caught.value.compact_revision) == (3, 4)
    assert len(store._hub) == 0
    with store.watch(A, start_revision=4) as watcher:
        assert [next(watcher).revision for _ in range(3)] == [4, 5, 6]


def test_closed_store_cannot_be_watched(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    store.close()
    with pytest.raises(ClosedError):
        store.watch(A)


# Slow watchers


def test_compaction_ends_a_slow_watcher_and_the_others_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvccstore.hub.TAIL_EVENTS_MAX", 2)
    monkeypatch.setattr("mvccstore.watch.PAGE_EVENTS", 2)
    slow, quick = recorder_of(store), recorder_of(store)
    for number in range(10):
        store.put(A, b"%d" % number)
        quick.take()
    changes = changes_of(store)
    slow.take()
    store.compact(8, physical=True)
    with pytest.raises(CompactedError) as caught:
        slow.take_all()
    assert (caught.value.revision, caught.value.compact_revision) == (slow.watcher.revision + 1, 8)
    assert slow.watcher.is_closed
    with pytest.raises(ClosedError):
        slow.take()
    assert list(slow.watcher) == []
    assert watch_problems(slow.watched, changes) == []
    store.put(A, b"more")
    changes += list(store.history(A, start_revision=12, prev_kv=True))
    assert watch_problems(quick.take_all(), changes) == []
    assert len(quick.watched.events()) == 11
    quick.watcher.close()


def test_watcher_that_has_what_it_needs_in_the_tail_is_not_ended_by_compaction(store: Store) -> None:
    recorder = recorder_of(store)
    for number in range(10):
        store.put(A, b"%d" % number)
    changes = changes_of(store)
    store.compact(11, physical=True)
    watched = recorder.take_all()
    assert len(watched.events()) == 10
    assert watch_problems(watched, changes, {11}) == []
    recorder.watcher.close()


def test_watcher_that_never_reads_costs_no_more_than_the_tails_may(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvccstore.hub.TAIL_EVENTS_MAX", 100)
    monkeypatch.setattr("mvccstore.hub.TAIL_BYTES_MAX", 20_000)
    watchers = [store.watch(keys) for keys in (A, KeyRange.prefix(A), KeyRange(A, b"bb"), ALL)]
    hub = store._hub
    for number in range(200):
        store.put(A, b"v" * (number * 7 % 400))
        assert hub._events <= 100
        assert hub._bytes <= 20_000
        assert hub._events == sum(len(topic.batches) for topic in hub._topics.values()) == len(hub._order)
    with store.begin() as txn:  # more than fits: the newest batch stays
        for number in range(300):
            txn.put(b"%d" % number)
    assert (len(hub._order), hub._events) == (1, 300)
    for watcher in watchers:
        watcher.close()
    assert (hub._events, hub._bytes, len(hub._order), len(hub._topics), len(hub._index)) == (0, 0, 0, 0, 0)


def test_watchers_that_leave_take_their_tails_along_without_a_look_at_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvccstore.hub.TAIL_EVENTS_MAX", 40)
    hub, rng = store._hub, Random(3)
    stays = recorder_of(store, KeyRange.prefix(b"k"))
    for number in range(20):
        store.put(b"k%d" % number)
    places = hub._order
    for left in range(1, 11):
        with store.watch(b"k0"):
            store.put(b"k0")
        assert hub._dead == left
    assert hub._order is places, "they were looked through"
    guests: list[Watcher] = []
    for number in range(400):
        key = b"k%d" % (number % 5)
        if rng.random() < 0.4:
            guests.append(store.watch(rng.choice((key, KeyRange(key, None)))))
        store.put(key, b"v" * rng.randrange(9))
        if rng.random() < 0.4 and guests:
            guests.pop(rng.randrange(len(guests))).close()
        batches = [batch for topic in hub._topics.values() for batch in topic.batches.values()]
        assert hub._events == sum(len(batch.events) for batch in batches) <= 40
        assert hub._bytes == sum(size for topic, size in hub._order if topic.batches)
        assert len(hub._order) - hub._dead == len(batches) >= hub._dead
    assert hub._order is not places, "those that are gone are never let go"
    assert watch_problems(stays.take_all(), changes_of(store)) == []
    for watcher in (*guests, stays.watcher):
        watcher.close()
    assert (hub._events, hub._bytes, len(hub._order), hub._dead) == (0, 0, 0, 0)


def test_everything_comes_from_log_and_tail_however_short_the_tail(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvccstore.hub.TAIL_EVENTS_MAX", 3)
    monkeypatch.setattr("mvccstore.watch.PAGE_EVENTS", 4)
    recorders = [recorder_of(store, keys, 1, prev_kv=True) for keys in (ALL, A, KeyRange.prefix(A), KeyRange(A, B))]
    for number in range(40):
        store.txn(success=[Op.put(b"a%d" % i, b"") for i in range(number % 6)] + [Op.put(A, b"%d" % number)])
        for place, recorder in enumerate(recorders):
            if number % (place * 3 + 1) == 0:
                recorder.take()
    changes = changes_of(store)
    for recorder in recorders:
        assert watch_problems(recorder.take_all(), changes) == []
        assert recorder.watcher.revision == store.revision
        recorder.watcher.close()


def test_what_cannot_be_read_now_is_not_left_out(store: Store) -> None:
    recorder = recorder_of(store, ALL, prev_kv=True)
    for number in range(3):
        store.put(A, b"%d" % number)
    recorder.take()
    with mock.patch.object(Watcher, "_with_prev", side_effect=mvccstore.StorageError("path", "just now")):
        for _ in range(3):
            with pytest.raises(mvccstore.StorageError):
                recorder.take()
    watched = recorder.take_all()
    assert [event.revision for event in watched.events()] == [2, 3, 4]
    assert watch_problems(watched, changes_of(store)) == []
    recorder.watcher.close()


def test_commit_that_was_not_told_of_is_read_from_the_log(store: Store) -> None:
    recorder = recorder_of(store)
    store.put(A, b"1")
    recorder.take_all()
    with mock.patch.object(store._hub, "publish"):
        store.put(A, b"2")
    store._hub.lost(store.revision)
    store.put(A, b"3")  # in the tail, where the watcher waits
    watched = recorder.take_all()
    assert [event.revision for event in watched.events()] == [2, 3, 4]
    assert watch_problems(watched, changes_of(store)) == []
    recorder.watcher.close()


def test_publishing_that_is_interrupted_hides_nothing_from_who_looks_meanwhile(store: Store) -> None:
    recorder = recorder_of(store)
    assert recorder.take() is None
    lost = store._hub.lost

    def look_and_lose(revision: int) -> None:
        assert recorder.take() is None  # as another thread may, just then
        lost(revision)

    with (
        mock.patch.object(store._hub, "_match", side_effect=KeyboardInterrupt),
        mock.patch.object(store._hub, "lost", look_and_lose),
        pytest.raises(KeyboardInterrupt),
    ):
        store.put(A, b"1")
    store.put(A, b"2")
    watched = recorder.take_all()
    assert [event.revision for event in watched.events()] == [2, 3]
    assert watch_problems(watched, changes_of(store)) == []
    recorder.watcher.close()


# Waking and closing


def test_put_wakes_who_waits(store: Store) -> None:
    with Threads() as threads, store.watch(A) as watcher:
        found = in_thread(threads, watcher)
        store.put(A, b"1")
        assert brief(found.get(timeout=SECONDS)) == (2, [("put", A, b"1")])  # type: ignore[arg-type]


def test_close_wakes_who_waits(store: Store) -> None:
    with Threads() as threads:
        watcher = store.watch(A)
        found = in_thread(threads, watcher)
        watcher.close()
        watcher.close()
        assert str(found.get(timeout=SECONDS)) == "watcher is closed"
    assert watcher.is_closed
    assert list(watcher) == list(watcher.batches()) == []
    assert "closed" in repr(watcher)


def test_closing_the_store_wakes_who_waits(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    with Threads() as threads:
        watchers = [store.watch(A), store.watch(ALL, progress=3_600)]
        found = [in_thread(threads, watcher) for watcher in watchers]
        store.close()
        for queue in found:
            assert str(queue.get(timeout=SECONDS)) == "store is closed"
    for call in (watchers[0].poll, lambda: next(watchers[0]), lambda: next(watchers[0].batches())):
        with pytest.raises(ClosedError, match="store"):
            call()
    for watcher in watchers:
        watcher.close()


def test_closing_the_store_wakes_who_listens(open_store: OpenStore) -> None:
    store = open_store(engine="memory")
    watcher = store.watch(A)
    woken = threading.Event()
    assert not watcher.listen(woken.set)  # it has not looked yet
    assert watcher.poll() is None
    assert watcher.listen(woken.set)
    store.close()
    assert woken.is_set()
    assert not watcher.listen(woken.set)


def test_callback_is_called_once_and_not_for_other_keys(store: Store) -> None:
    called: list[int] = []
    with store.watch(A) as watcher:
        assert watcher.poll() is None
        assert watcher.listen(lambda: called.append(store.revision))
        store.put(B)
        assert called == []
        store.put(A)
        store.put(A)
        assert called == [3]
        assert not watcher.listen(lambda: called.append(0))
        assert len(all_of(watcher)) == 2
        assert watcher.listen(lambda: called.append(1))
        watcher.unlisten()
        store.put(A)
        assert called == [3]


def test_callback_that_raises_harms_neither_the_writer_nor_the_others(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with Threads() as threads, store.watch(A) as bad, store.watch(A) as other, store.watch(A) as third:
        assert bad.poll() is third.poll() is None
        assert bad.listen(fail)
        found = in_thread(threads, other)
        woken = threading.Event()
        assert third.listen(woken.set)
        assert store.put(A, b"1") == 2
        assert brief(found.get(timeout=SECONDS)) == (2, [("put", A, b"1")])  # type: ignore[arg-type]
        assert woken.is_set()
        assert brief(bad.poll()) == (2, [("put", A, b"1")])
        assert store.put(A) == 3
    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]


def test_timeout_leaves_nothing_behind(store: Store) -> None:
    watcher = store.watch(A)
    assert watcher.next_batch(timeout=0.001) is None
    assert not any(topic.waiting for topic in store._hub._topics.values())
    del watcher
    gc.collect()
    assert len(store._hub) == 0  # nobody holds one that has waited


def test_watcher_that_is_dropped_is_closed(store: Store) -> None:
    watchers = [store.watch(keys) for keys in (A, A, ALL)]
    store.put(A)
    assert len(store._hub) == 3
    del watchers
    gc.collect()
    store.put(A)
    assert (len(store._hub), store._hub._events) == (0, 0)


def test_watcher_that_is_dropped_while_its_topic_is_published(store: Store) -> None:
    """Collecting can happen anywhere, also in the writer's turn with the hub's lock held."""
    watchers = [store.watch(A), store.watch(A)]
    add = store._hub._add

    def drop_and_add(*args: Any) -> None:
        del watchers[:1]
        gc.collect()
        add(*args)

    with mock.patch.object(store._hub, "_add", drop_and_add):
        store.put(A)
    assert len(store._hub) == 1
    assert next(watchers[0]).revision == 2
    watchers[0].close()
    assert (len(store._hub), store._hub._events) == (0, 0)


def test_watcher_keeps_its_store_open() -> None:
    watcher = mvccstore.open().watch(A)
    gc.collect()
    assert watcher.poll() is None


def test_topic_that_is_left_and_joined_again_shows_only_what_comes(store: Store) -> None:
    with store.watch(A):
        store.put(A)
    with store.watch(A) as watcher:
        store.put(A)
        assert [batch[0] for batch in all_of(watcher)] == [3]


def test_what_changes_between_joining_and_looking_is_shown_once(store: Store) -> None:
    """A commit that becomes visible before it is published: a watcher from now on has seen it."""
    publish = store._hub.publish
    opened: list[Recorder] = []

    def watch_and_publish(*args: Any) -> None:
        opened.append(recorder_of(store))
        opened.append(recorder_of(store, ALL, 2))
        opened[1].take()
        publish(*args)

    with mock.patch.object(store._hub, "publish", watch_and_publish):
        store.put(A, b"1")
    store.put(A, b"2")
    for recorder, revisions in zip(opened, ([3], [2, 3]), strict=True):
        watched = recorder.take_all()
        assert [event.revision for event in watched.events()] == revisions
        assert watch_problems(watched, changes_of(store)) == []
        recorder.watcher.close()


# Forks


def test_child_after_a_fork_finds_its_watchers_closed(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    watcher = store.watch(A)
    with store._hub.mutex:  # as another thread may hold it
        child = os.fork()
        if child == 0:
            code = 1
            try:
                watcher.poll()
            except ClosedError:
                watcher.close()
                code = 0
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.put(A)
    assert next(watcher).revision == 2
    watcher.close()
