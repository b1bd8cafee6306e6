"""What a store does by itself: keeping to its retention, syncing, reclaiming; driven step by step, without waiting."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import mvccstore
from mvccstore import KeyRange, Retention, Store
from mvccstore.engine import EngineOptions
from mvccstore.engine.lmdb import LmdbEngine
from mvccstore.maintenance import RETRY_SECONDS, Maintainer


class SteppedClock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time_ms(self) -> int:
        return round(self.now * 1000)

    def monotonic(self) -> float:
        return self.now


def test_retention_by_revisions_compacts_when_it_is_time(open_store: Callable[..., Store], engine: str) -> None:
    clock = SteppedClock()
    store = open_store(engine=engine, clock=clock, retention=Retention(revisions=3, check_seconds=3600))
    for number in range(10):
        store.put(b"k", b"%d" % number)
    store._maintain()
    assert store.compact_revision == -1  # not yet time
    clock.now += 3601
    store._maintain()
    assert store.compact_revision == store.revision - 3
    assert store.stats().reclaimed_revision == store.compact_revision
    assert store.stats().revisions_kept == 4


def test_retention_by_age_keeps_what_was_current_within_it(open_store: Callable[..., Store], engine: str) -> None:
    clock = SteppedClock()
    store = open_store(engine=engine, clock=clock)
    for number in range(10):
        store.put(b"k", b"%d" % number)
        clock.now += 10
    # The last put was 10 s ago, so what was current 35 s ago was written 40 s ago.
    store.enforce(Retention(seconds=35))
    assert store.compact_revision == store.revision - 3
    store.enforce(Retention(seconds=35))  # nothing more to do
    assert store.compact_revision == store.revision - 3
    store.compact(keep_seconds=0)
    assert store.compact_revision == store.revision


def test_retention_keeps_what_either_rule_wants(open_store: Callable[..., Store]) -> None:
    clock = SteppedClock()
    store = open_store(clock=clock)
    for _ in range(10):
        store.put(b"k")
        clock.now += 10
    store.enforce(Retention(revisions=2, seconds=1000))
    assert store.compact_revision == -1
    store.enforce(Retention(revisions=8, seconds=5))
    assert store.compact_revision == store.revision - 8


def test_clock_that_goes_back_does_not_make_history_younger(open_store: Callable[..., Store]) -> None:
    clock = SteppedClock()
    store = open_store(clock=clock)
    store.put(b"k", b"1")
    clock.now -= 500
    store.put(b"k", b"2")
    clock.now += 600
    store.put(b"k", b"3")
    store.compact(keep_seconds=50)
    assert store.compact_revision == 3


def test_snapshot_holds_reclaiming_back_until_it_is_closed(open_store: Callable[..., Store], engine: str) -> None:
    store = open_store(engine=engine)
    for number in range(5):
        store.put(b"k", b"%d" % number)
    with store.snapshot(revision=3) as view:
        store.compact(6, physical=True)
        assert store.stats().reclaimed_revision == 3
        assert store.stats().snapshots == 1
        assert view.get(b"k").value == b"1"  # type: ignore[union-attr]
    store.reclaim()
    assert store.stats().reclaimed_revision == 6
    assert store.stats().revisions_kept == 1


def test_interval_syncs_only_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(LmdbEngine, "sync", lambda self: synced.append(1))
    clock = SteppedClock()
    with mvccstore.open(tmp_path / "s.mvcc", durability="interval", sync_interval=60, clock=clock) as store:
        store.put(b"k")
        store._maintain()
        assert len(synced) == 0  # not yet time
        clock.now += 60
        store._maintain()
        assert len(synced) == 1
        clock.now += 60
        store._maintain()
        assert len(synced) == 1
        store.put(b"k")
        store._maintain()
        assert len(synced) == 1
        clock.now += 60
        store._maintain()
        assert len(synced) == 2


def test_failed_sync_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def sync(engine: LmdbEngine) -> None:
        synced.append(1)
        if len(synced) == 1:
            raise mvccstore.StorageError(engine.path, "just now")

    monkeypatch.setattr(LmdbEngine, "sync", sync)
    with mvccstore.open(tmp_path / "s.mvcc", durability="os") as store:
        with pytest.raises(mvccstore.StorageError):
            store.sync()
        store.sync()
        store.sync()
        assert len(synced) == 2


@pytest.mark.parametrize("ending", ["retention", "lease"])
def test_interval_syncs_whatever_else_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    synced: list[int] = []
    monkeypatch.setattr(LmdbEngine, "sync", lambda self: synced.append(1))
    clock = SteppedClock()
    retention = Retention(revisions=0, check_seconds=5) if ending == "retention" else None
    options: dict[str, Any] = {"durability": "interval", "sync_interval": 5, "clock": clock, "retention": retention}
    with mvccstore.open(tmp_path / "s.mvcc", **options) as store:
        store._maintainer.stop()  # only we look after it
        store.put(b"k", lease=store.grant(5))
        clock.now += 5
        with monkeypatch.context() as patched:
            full = mvccstore.StorageFullError("path", "no room")
            place = (store, "enforce") if ending == "retention" else (store._leases, "expire")
            patched.setattr(type(place[0]), place[1], raiser(full))
            with pytest.raises(mvccstore.StorageFullError):
                store._maintain()
        assert len(synced) == 1


def raiser(error: Exception) -> Callable[..., None]:
    def fail(*args: object) -> None:
        del args
        raise error

    return fail


def test_unfinished_reclaiming_goes_on_when_the_store_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "s.mvcc"
    with mvccstore.open(path, durability="os") as store:
        for number in range(50):
            store.put(b"%d" % (number % 5))
        store._maintainer.stop()  # so that nothing is reclaimed here
        store.compact(store.revision)
    with mvccstore.open(path, durability="os") as store:
        store.reclaim()  # waits for the thread that opening has woken
        assert store.stats().revisions_kept == 5
        assert store.check() == []


def test_files_space_is_used_again_after_compaction(tmp_path: Path) -> None:
    engine = LmdbEngine(EngineOptions(str(tmp_path / "s.mvcc"), sync_commits=False))
    with mvccstore.open(engine=engine, durability="os") as store:
        sizes = []
        for _ in range(6):
            for number in range(300):
                store.put(b"%d" % (number % 10), b"v" * 1000)
            store.compact(store.revision, physical=True)
            sizes.append(store.stats().file_bytes)
        assert sizes[-1] < sizes[0] * 1.5  # written six times over
        assert store.count(KeyRange.all()) == 10


class Worker:
    """Something for a maintainer to do."""

    def __init__(self, due_in: float | None = None) -> None:
        self.done = threading.Semaphore(0)
        self.error: Exception | None = None
        self.seconds = due_in

    def work(self) -> None:
        self.done.release()
        if self.error is not None:
            raise self.error

    def due_in(self) -> float | None:
        return self.seconds


def test_maintainer_works_when_it_is_woken_and_goes_on_after_an_error() -> None:
    worker = Worker()
    maintainer = Maintainer(worker.work, worker.due_in)
    worker.error = mvccstore.StorageFullError("path", "full")
    maintainer.wake()
    assert worker.done.acquire(timeout=30)
    maintainer.wake()
    assert worker.done.acquire(timeout=30)
    maintainer.stop()
    maintainer.stop()
    maintainer.wake()
    assert not worker.done.acquire(blocking=False)


def test_maintainer_works_when_something_is_due() -> None:
    worker = Worker(due_in=0.001)
    maintainer = Maintainer(worker.work, worker.due_in)
    maintainer.wake()
    for _ in range(3):
        assert worker.done.acquire(timeout=30)
    maintainer.stop()


class Waits:
    """A condition that says how long is waited for it, and does not wait until it is told to."""

    def __init__(self) -> None:
        self.asked: SimpleQueue[float | None] = SimpleQueue()
        self.go_on = threading.Semaphore(0)
        self.lock = threading.RLock()
        self.is_waiting = False

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.lock.release()

    def notify(self) -> None:
        if self.is_waiting:
            self.go_on.release()

    def wait(self, seconds: float | None) -> None:
        self.is_waiting = True
        self.asked.put(seconds)
        self.lock.release()
        assert self.go_on.acquire(timeout=30)
        self.lock.acquire()
        self.is_waiting = False


def test_error_of_what_is_due_is_tried_again_after_a_while_and_does_not_spin() -> None:
    worker = Worker(due_in=0.0)
    worker.error = mvccstore.StorageFullError("path", "full")
    maintainer = Maintainer(worker.work, worker.due_in)
    waits = Waits()
    maintainer._condition = waits  # type: ignore[assignment]
    maintainer.wake()
    for number in range(3):
        assert worker.done.acquire(timeout=30)
        assert waits.asked.get(timeout=30) == RETRY_SECONDS  # though it is due at once
        assert not worker.done.acquire(blocking=False)
        if number == 2:
            worker.error = None
        waits.go_on.release()  # the time is over
    assert worker.done.acquire(timeout=30)
    assert waits.asked.get(timeout=30) == 0
    maintainer.stop()


@pytest.mark.parametrize("seconds", [math.inf, 1e300, None])
def test_maintainer_may_have_nothing_to_do_for_ever(seconds: float | None) -> None:
    worker = Worker(due_in=seconds)
    maintainer = Maintainer(worker.work, worker.due_in)
    for _ in range(2):
        maintainer.wake()
        assert worker.done.acquire(timeout=30)
    maintainer.stop()


def test_maintainer_ends_when_what_it_works_for_is_gone() -> None:
    worker = Worker(due_in=0.001)
    maintainer = Maintainer(worker.work, worker.due_in)
    maintainer.wake()
    assert worker.done.acquire(timeout=30)
    thread = maintainer._thread
    del worker
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()
