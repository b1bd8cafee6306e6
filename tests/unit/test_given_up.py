"""Work that is given up half way: to make room, because the engine failed, because history went, or by a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import mvccstore
from mvccstore import (
    ClosedError,
    Command,
    CompactedError,
    Compare,
    KeyRange,
    KeyValue,
    LockedError,
    Op,
    Result,
    StorageError,
    StorageFullError,
    Store,
    StoreError,
)
from mvccstore.tables import RetryWrite
from mvccstore.types import LeaseGrantRequest, PutRequest
from tests.concurrency.bench import wrapped
from tests.crash.fault_engine import FaultEngine, FaultTxn

ALL = KeyRange.all()
CHANGES = frozenset({"put", "append", "delete", "add", "remove", "commit"})


class GivingUpTxn(FaultTxn):
    """A write transaction that is closed when one of its calls fails, as engines' are."""

    def __getattr__(self, name: str) -> Any:
        method = super().__getattr__(name)
        if name not in CHANGES:
            return method

        def call(*args: Any) -> Any:
            try:
                return method(*args)
            except (RetryWrite, StorageError):
                self._inner.close()
                raise

        return call


class GivingUpEngine(FaultEngine):
    """An engine whose n-th change fails, and as many after it as it is told."""

    def __init__(self, inner: Any, error: Exception, place: int, times: int = 1) -> None:
        super().__init__(inner, before=self._fail)
        self.error, self.left, self.times = error, place, times

    def _fail(self, name: str, number: int) -> None:
        del number
        if name in CHANGES:
            self.left -= 1
            if self.left < 0 and self.times:
                self.times -= 1
                raise self.error

    def write(self) -> Any:
        return GivingUpTxn(self, self.inner.write())


def giving_up(engine: str, path: Path, error: Exception, place: int, times: int = 1) -> GivingUpEngine:
    return GivingUpEngine(wrapped(engine, path).inner, error, place, times)


STEPS: tuple[Callable[[Store], object], ...] = (
    lambda store: store.put(b"a", b"1"),
    lambda store: store.submit(LeaseGrantRequest(7, 60_000)),
    lambda store: store.put(b"leased", b"1", lease=7),
    lambda store: store.txn(compare=[Compare.value(b"a", "==", b"1")], success=[Op.put(b"b", b"2"), Op.delete(b"a")]),
    lambda store: block(store),
    lambda store: compact(store),
    lambda store: store.delete(ALL),
)
COMPACTION = 5


def block(store: Store) -> int:
    with store.begin() as txn:
        txn.put(b"c", b"3")
        assert txn.delete(b"b") == 1
        txn.put(b"d", b"4")
        assert [kv.key for kv in txn.scan(ALL)] == [b"c", b"d", b"leased"]
    return txn.revision


def compact(store: Store) -> None:
    with suppress(CompactedError):  # done, and interrupted while it reclaimed
        store.compact(store.revision, physical=True)
    store.reclaim()


def content(store: Store) -> tuple[int, int, list[list[KeyValue]]]:
    floor = store.compact_revision
    past = [list(store.scan(ALL, revision=revision)) for revision in range(max(floor, 1), store.revision + 1)]
    return (store.revision, floor, past)


@pytest.mark.parametrize("times", [1, 3])
def test_engine_that_makes_room_at_any_change_gives_what_one_with_room_does(
    tmp_path: Path, engine: str, times: int
) -> None:
    with mvccstore.open(engine="memory") as plain:
        answers = [step(plain) for step in STEPS]
        expected = content(plain)
    for place in range(10_000):
        faulty = giving_up(engine, tmp_path / str(place), RetryWrite(), place, times)
        with mvccstore.open(engine=faulty) as store:
            assert [step(store) for step in STEPS] == answers
            assert content(store) == expected, place
            assert store.check() == []
        if faulty.times:
            break
    assert place > 30


def test_step_whose_change_fails_does_not_happen_and_the_next_does(tmp_path: Path, engine: str) -> None:
    failed = set()
    for place in range(10_000):
        faulty = giving_up(engine, tmp_path / str(place), StorageError("store", "the disk failed"), place)
        try:
            store = mvccstore.open(engine=faulty)
        except StorageError:
            faulty.inner.close()
            continue
        with store:
            for number, step in enumerate(STEPS):
                before = content(store)
                try:
                    step(store)
                except StorageError:
                    failed.add(number)
                    # A compaction counts from when its floor is durable, and what is reclaimed then may wait.
                    assert content(store) == before or number == COMPACTION, place
                    assert list(store.scan(ALL)) == before[2][-1], place
                    step(store)
            assert store.check() == [], place
            assert list(store.scan(ALL)) == []
        if faulty.times:
            break
    assert failed == set(range(len(STEPS)))


def test_block_that_the_disk_refuses_is_over_and_the_next_writer_goes_on(tmp_path: Path, engine: str) -> None:
    faulty = giving_up(engine, tmp_path / "store", StorageFullError("store", "no room"), 10_000)
    with mvccstore.open(engine=faulty) as store:
        txn = store.begin()
        txn.put(b"a", b"1")
        faulty.left = 0
        with pytest.raises(StorageFullError):
            txn.put(b"b", b"1")
        with pytest.raises(ClosedError):
            txn.put(b"c", b"1")
        with pytest.raises(ClosedError):
            txn.commit()
        txn.rollback()
        assert store.put(b"d", b"1") == 2
        assert [kv.key for kv in store.scan(ALL)] == [b"d"]


def test_view_that_a_compaction_comes_between_reads_what_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        store.put(b"k", b"%d" % number)
    pin = store._pin
    compacted: list[int] = []

    def pin_too_late(revision: int) -> Callable[[], None]:
        if not compacted:
            compacted.append(store.put(b"k", b"later"))
            store.compact(compacted[0], physical=True)
        return pin(revision)

    monkeypatch.setattr(store, "_pin", pin_too_late)
    with pytest.raises(CompactedError):
        store.snapshot(revision=3)
    monkeypatch.undo()
    for read in (
        lambda: next(iter(store.scan(ALL))).value,
        lambda: store.snapshot().get(b"k").value,  # type: ignore[union-attr]
        lambda: next(iter(store.history(b"k"))).kv.value,
    ):
        compacted.clear()
        monkeypatch.setattr(store, "_pin", pin_too_late)
        assert read() == b"later"
        monkeypatch.undo()
        assert len(compacted) == 1


# Replicated


class Log:
    """A replicator that applies at once, and refuses when told to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.marker = 0
        self.error: StoreError | None = None

    def propose(self, command: Command) -> Result:
        if self.error is not None:
            raise self.error
        self.marker += 1
        (answer,) = self.store.apply_replicated([command], b"%d" % self.marker)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def close(self) -> None:
        pass


@pytest.fixture
def logs() -> list[Log]:
    return []


def make_log(logs: list[Log]) -> Callable[[Store], Log]:
    def make(store: Store) -> Log:
        logs.append(Log(store))
        return logs[-1]

    return make


def test_block_that_was_not_replicated_did_not_happen(
    open_store: Callable[..., Store], engine: str, logs: list[Log]
) -> None:
    store = open_store(engine=engine, replicator=make_log(logs))
    store.put(b"a", b"1")
    logs[0].error = mvccstore.ReplicationError("no quorum")
    txn = store.begin()
    txn.put(b"a", b"2")
    assert txn.get(b"a").value == b"2"  # type: ignore[union-attr]
    with pytest.raises(mvccstore.ReplicationError):
        txn.commit()
    logs[0].error = None
    assert store.get(b"a").value == b"1"  # type: ignore[union-attr]
    assert store.put(b"a", b"3") == 3


def test_replicated_commands_that_are_refused_are_answered_and_the_others_count(
    open_store: Callable[..., Store], engine: str, logs: list[Log]
) -> None:
    store = open_store(engine=engine, replicator=make_log(logs))
    commands = [
        Command(PutRequest(b"a", b"1"), 1),
        Command(PutRequest(b"b", b"1", lease=99), 2),
        Command(PutRequest(b"c", b"1"), 3),
    ]
    answers = store.apply_replicated(commands, b"3")
    assert [isinstance(answer, mvccstore.LeaseNotFoundError) for answer in answers] == [False, True, False]
    assert [kv.key for kv in store.scan(ALL)] == [b"a", b"c"]
    assert store.replicated_marker() == b"3"


def test_replicated_block_counts_for_the_quota(open_store: Callable[..., Store], engine: str, logs: list[Log]) -> None:
    store = open_store(engine=engine, replicator=make_log(logs), quota_bytes=1 << 20)
    with store.begin() as txn:
        txn.put(b"a", bytes(1 << 19))
    with pytest.raises(StorageFullError), store.begin() as txn:
        txn.put(b"b", bytes(1 << 20))
    assert [kv.key for kv in store.scan(ALL)] == [b"a"]


# Forks; the child's part done here, where it can be looked at


def test_store_that_is_forgotten_in_a_child_leaves_everything_to_the_parent(tmp_path: Path, engine: str) -> None:
    path = None if engine == "memory" else tmp_path / "store"
    store = mvccstore.open(path, engine=engine, durability="os")
    store.put(b"k", b"1")
    snapshot = store.snapshot()
    txn = store.begin()
    txn.put(b"k", b"2")
    # A fork leaves the parent with a descriptor of its own of what is locked.
    held = -1 if path is None else os.dup(store._engine._lock._fd)  # type: ignore[attr-defined]
    store._forget()
    for refused in (lambda: store.get(b"k"), lambda: store.put(b"k", b"3"), lambda: snapshot.get(b"k"), store.begin):
        with pytest.raises(ClosedError):
            refused()
    snapshot.close()
    store.close()
    if path is not None:
        assert path.with_name("store-writer").exists()
        with pytest.raises(LockedError):
            mvccstore.open(path)
        os.close(held)
