"""What readers see while others write and compact: whole writes, in order, the same at the same revision."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import mvccstore
from mvccstore import CompactedError, FutureRevisionError, KeyRange, KeyValue, Op, Store
from tests.concurrency.bench import SECONDS, SPREAD, Threads, load, rows_of, wrapped
from tests.guarantees import Look, Record, Write, atomic, current, kept, ordered, repeatable, unique

OpenStore = Callable[..., Store]
ALL = KeyRange.all()
GROUPS = [[b"group/%d/%s" % (writer, side) for side in (b"a", b"b", b"z")] for writer in range(4)]
GROUPED = KeyRange.prefix(b"group/")
ROUNDS = 60

Rows = dict[bytes, KeyValue]


class Traffic:
    """Writers, readers of every kind, and a compaction that never stops, on one store; and the record of it all."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.record = Record()
        self.compacted: list[tuple[int, CompactedError]] = []
        self.written = threading.Semaphore(0)
        self.stop = threading.Event()

    def write(self, writer: int) -> None:
        for i in range(ROUNDS):
            token = b"%d.%d" % (writer, i)
            if writer % 2:
                revision = self.store.txn(success=[Op.put(key, token) for key in GROUPS[writer]]).revision
            else:
                with self.store.begin() as txn:
                    for key in GROUPS[writer]:
                        txn.put(key, b"half done")
                    for key in reversed(GROUPS[writer]):
                        txn.put(key, token)
                revision = txn.revision
            self.record.writes.append(Write(writer, revision, dict.fromkeys(GROUPS[writer], token)))
        self.written.release()

    def compact(self) -> None:
        rng = random.Random(1)
        while not self.stop.is_set():
            target = self.store.revision - rng.randrange(40)
            if target > max(self.store.compact_revision, 1):
                self.store.compact(target, physical=rng.random() < 0.5)

    def read(self, reader: int, how: str) -> None:
        look = getattr(self, f"by_{how}")
        number = 0
        while not self.stop.is_set() or number < 3:
            revision, rows = look()
            self.record.looks.append(Look(reader, number, revision, rows, is_whole=how != "get"))
            number += 1

    def read_past(self, reader: int) -> None:
        number = 0
        rng = random.Random(reader)
        while not self.stop.is_set():
            revision = max(1, self.store.revision - rng.randrange(30))
            try:
                rows = rows_of(self.store.range(GROUPED, revision=revision))
            except CompactedError as error:
                self.compacted.append((revision, error))
                continue
            self.record.looks.append(Look(reader, number, 0, rows, revision))
            number += 1

    # The revision seen, 0 if it is not said, and the groups' rows

    def by_range(self) -> tuple[int, Rows]:
        result = self.store.range(GROUPED)
        return result.revision, rows_of(result)

    def by_get(self) -> tuple[int, Rows]:
        found = (self.store.get(key) for group in GROUPS for key in group)
        return 0, rows_of(kv for kv in found if kv)

    def by_snapshot(self) -> tuple[int, Rows]:
        with self.store.snapshot() as view:
            first = rows_of(view.range(GROUPED))
            assert view.count(KeyRange.prefix(b"filler/")) == len(SPREAD)
            assert rows_of(view.scan(GROUPED)) == first
            for key, kv in first.items():
                assert view.get(key) == kv
            return view.revision, first

    def by_scan(self) -> tuple[int, Rows]:
        # Several pages: what is written between them must not be seen.
        rows = rows_of(self.store.scan(ALL))
        assert sum(key.startswith(b"filler/") for key in rows) == len(SPREAD)
        return 0, {key: kv for key, kv in rows.items() if key.startswith(b"group/")}

    def by_block(self) -> tuple[int, Rows]:
        with self.store.begin() as txn:
            return txn.revision, rows_of(txn.range(GROUPED))

    def by_txn(self) -> tuple[int, Rows]:
        result = self.store.txn(success=[Op.range(GROUPED)])
        return result.revision, rows_of(result.responses[0])


@pytest.mark.slow
def test_readers_see_whole_writes_in_order_while_writers_write_and_compact(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    load(store)
    traffic = Traffic(store)
    with Threads() as threads:
        for reader, how in enumerate(("range", "get", "snapshot", "scan", "block", "txn")):
            threads.start(traffic.read, reader, how)
        threads.start(traffic.read_past, 6)
        threads.start(traffic.compact)
        for writer in range(len(GROUPS)):
            threads.start(traffic.write, writer)
        try:
            for _ in GROUPS:
                assert traffic.written.acquire(timeout=SECONDS), threads.errors
        finally:
            traffic.stop.set()
    record = traffic.record
    assert all(error.revision == revision < error.compact_revision for revision, error in traffic.compacted)
    assert ordered(record.looks) == []
    assert atomic(record.looks, GROUPS) == []
    assert repeatable(record.looks) == []
    assert unique(record.writes) == []
    history = list(store.history(ALL))
    assert kept(record.writes, history, store.compact_revision) == []
    assert current(record.writes, rows_of(store.scan(ALL)), history, store.compact_revision) == []


# Reads that a compaction overtakes


READS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get(b"k"),
    "range": lambda store: store.range(b"k").kvs[0],
    "range of all": lambda store: store.range(ALL).kvs[0],
    "scan": lambda store: next(store.scan(ALL)),
    "snapshot": lambda store: store.snapshot().get(b"k"),
}


@pytest.mark.parametrize("how", READS)
def test_read_overtaken_by_a_write_and_its_compaction_finds_the_key(
    open_store: OpenStore, tmp_path: Path, engine: str, how: str
) -> None:
    overtake: list[Callable[[], object]] = []

    def before(name: str, number: int) -> None:
        del number
        if name == "read" and overtake:
            overtake.pop()()

    store = open_store(engine=wrapped(engine, tmp_path / "store", before=before))
    store.put(b"k", b"1")

    def write_and_compact() -> None:
        store.put(b"k", b"2")
        store.compact(store.revision, physical=True)

    # The key has always been there, so whichever revision the read is of, it is found.
    overtake.append(write_and_compact)
    kv = READS[how](store)
    assert isinstance(kv, KeyValue)
    assert kv.value in {b"1", b"2"}


@pytest.mark.parametrize("how", ["count", "hash_kv", "history", "get past", "range past"])
def test_read_overtaken_by_a_compaction_is_right_or_says_so(
    open_store: OpenStore, tmp_path: Path, engine: str, how: str
) -> None:
    overtake: list[Callable[[], object]] = []

    def before(name: str, number: int) -> None:
        del number
        if name == "read" and overtake:
            overtake.pop()()

    store = open_store(engine=wrapped(engine, tmp_path / "store", before=before))
    revision = store.put(b"k", b"1")
    store.put(b"l", b"1")

    def write_and_compact() -> None:
        store.put(b"k", b"2")
        store.put(b"k", b"3")
        store.compact(store.revision, physical=True)

    calls: dict[str, Callable[[], object]] = {
        "count": lambda: store.count(ALL) == 2,
        "hash_kv": lambda: store.hash_kv().hash_revision in {revision + 1, revision + 3},
        "history": lambda: {event.kv.key for event in store.history(ALL)} == {b"k", b"l"},
        "get past": lambda: store.get(b"k", revision=revision) == (b"k", revision, revision, 1, b"1", 0),
        "range past": lambda: store.range(ALL, revision=revision).kvs == ((b"k", revision, revision, 1, b"1", 0),),
    }
    overtake.append(write_and_compact)
    try:
        assert calls[how]()
    except CompactedError:
        assert "past" in how
    if how == "hash_kv":
        # What it hashed must be what it says: the same revision hashed by another store is the same.
        overtake.append(lambda: (store.put(b"k", b"4"), store.compact(store.revision, physical=True)))
        answer = store.hash_kv()
        assert answer.compact_revision <= answer.hash_revision


def test_compaction_by_count_is_not_upset_by_another_that_came_first(open_store: OpenStore, engine: str) -> None:
    class OvertakenClock(mvccstore.SystemClock):
        overtake: Callable[[], object] | None = None

        def time_ms(self) -> int:
            overtake, self.overtake = self.overtake, None
            if overtake is not None:
                overtake()
            return super().time_ms()

    clock = OvertakenClock()
    store = open_store(engine=engine, clock=clock)
    for i in range(20):
        store.put(b"k", b"%d" % i)
    clock.overtake = lambda: store.compact(store.revision)
    store.compact(keep_revisions=5)
    assert store.compact_revision == 21


def test_past_and_future_keep_their_errors_under_load(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    stop = threading.Event()

    def write() -> None:
        for i in range(300):
            store.put(b"k", b"%d" % i)
        stop.set()

    def read() -> None:
        while not stop.is_set():
            with pytest.raises(FutureRevisionError):
                store.get(b"k", revision=100_000)
            with pytest.raises(FutureRevisionError):
                store.scan(ALL, revision=100_000)

    with Threads() as threads:
        threads.start(write)
        threads.start(read)
        threads.start(read)
