"""Many threads on one store: what they write is not lost, nobody waits for ever, and errors stay where they belong."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import mvccstore
from mvccstore import (
    ClosedError,
    Compare,
    KeyRange,
    Op,
    Store,
    StoreError,
    TxnError,
)
from mvccstore.types import LeaseGrantRequest
from tests.concurrency.bench import SECONDS, SPREAD, Threads, load, rows_of, watch_queue, wrapped
from tests.guarantees import Record, Write, current, kept, unique

OpenStore = Callable[..., Store]
ALL = KeyRange.all()


def test_increments_by_compare_lose_nothing(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    store.put(b"n", b"0")

    def increment() -> None:
        for _ in range(25):
            while True:
                kv = store.get(b"n")
                assert kv is not None
                result = store.txn(
                    compare=[Compare.mod_revision(b"n", "==", kv.mod_revision)],
                    success=[Op.put(b"n", b"%d" % (int(kv.value) + 1))],
                )
                if result.succeeded:
                    break

    with Threads() as threads:
        for _ in range(6):
            threads.start(increment)
    kv = store.get(b"n")
    assert kv is not None
    assert (kv.value, kv.version) == (b"150", 151)


def test_increments_by_block_lose_nothing(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)

    def increment() -> None:
        for _ in range(25):
            with store.begin() as txn:
                kv = txn.get(b"n")
                txn.put(b"n", b"%d" % (int(kv.value) + 1 if kv else 1))

    with Threads() as threads:
        for _ in range(8):
            threads.start(increment)
    kv = store.get(b"n")
    assert kv is not None
    assert (kv.value, kv.version) == (b"200", 200)


def test_snapshots_stay_the_same_while_history_is_reclaimed_around_them(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    load(store)
    stop = threading.Event()

    def write_and_compact() -> None:
        for i in range(60):
            with store.begin() as txn:
                for key in random.Random(i).sample(SPREAD, 40):
                    if i % 3:
                        txn.put(key, b"%d" % i)
                    else:
                        txn.delete(key)
            store.compact(store.revision, physical=True)
        stop.set()

    def look(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            with store.snapshot() as view:
                first = list(view.scan(ALL))
                for _ in range(rng.randrange(1, 4)):
                    assert list(view.scan(ALL)) == first
                    assert list(view.range(ALL)) == first
                    assert view.count(ALL) == len(first)
                    kv = rng.choice(first)
                    assert view.get(kv.key) == kv

    with Threads() as threads:
        for seed in range(4):
            threads.start(look, seed)
        threads.start(write_and_compact)
    stats = store.stats()
    assert stats.snapshots == 0
    store.reclaim()
    assert store.stats().reclaimed_revision == store.compact_revision


def test_snapshot_holds_back_what_it_reads_and_lets_it_go_when_closed(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    for i in range(10):
        store.put(b"k", b"%d" % i)
    old = store.snapshot(revision=5)
    scan = store.scan(ALL, revision=7)
    for revision in range(8, 12):
        store.compact(revision, physical=True)
        kv = old.get(b"k")
        assert kv is not None
        assert kv.value == b"3"
    assert store.stats().reclaimed_revision <= 5
    assert [kv.value for kv in scan] == [b"5"]
    old.close()
    store.reclaim()
    assert store.stats().reclaimed_revision == 11
    assert store.stats().revisions_kept == 1


# Waiting for each other


def test_writers_that_wait_share_one_commit(open_store: OpenStore, tmp_path: Path, engine: str) -> None:
    gate, entered = threading.Event(), threading.Event()
    gated = [False]

    def before(name: str, number: int) -> None:
        del number
        if name == "commit" and gated[0]:
            gated[0] = False
            entered.set()
            assert gate.wait(SECONDS)

    faulty = wrapped(engine, tmp_path / "store", before=before)
    store = open_store(engine=faulty)
    queued = watch_queue(store)
    commits = faulty.names.count("commit")
    gated[0] = True
    revisions: list[int] = []
    with Threads() as threads:
        threads.start(lambda: revisions.append(store.put(b"first", b"")))
        assert entered.wait(SECONDS)
        for i in range(31):
            threads.start(lambda i=i: revisions.append(store.put(b"%d" % i, b"")))
        queued.wait(31)
        gate.set()
    assert faulty.names.count("commit") - commits == 2
    assert sorted(revisions) == list(range(2, 34))
    assert store.count(ALL) == 32


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_64_threads_of_durable_puts_each_get_a_revision(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine, durability="fsync")
    record = Record()

    def write(writer: int) -> None:
        for i in range(6):
            key = b"%d/%d" % (writer, i)
            record.writes.append(Write(writer, store.put(key, b"v"), {key: b"v"}))

    with Threads() as threads:
        for writer in range(64):
            threads.start(write, writer)
    assert unique(record.writes) == []
    assert sorted(write.revision for write in record.writes) == list(range(2, 2 + 64 * 6))
    assert kept(record.writes, store.history(ALL), -1) == []


def test_bad_command_in_a_shared_commit_leaves_the_others_alone(
    open_store: OpenStore, tmp_path: Path, engine: str
) -> None:
    store = open_store(engine=engine)
    queued = watch_queue(store)
    answers: dict[int, object] = {}
    calls: list[Callable[[], object]] = [
        lambda: store.put(b"good/0"),
        lambda: store.put(b"bad", lease=99),
        lambda: store.put(b"good/1"),
        lambda: store.txn(success=[Op.put(b"half", b""), Op.range(b"k", revision=10_000)]),
        lambda: store.compact(10_000),
        lambda: store.put(b"none", ignore_value=True),
        lambda: store.submit(LeaseGrantRequest(5, 1_000)),
        lambda: store.submit(LeaseGrantRequest(5, 1_000)),
        lambda: store.put(b"good/2", lease=5),
        lambda: store.put(b"good/3"),
    ]

    def work(number: int) -> None:
        try:
            answers[number] = calls[number]()
        except Exception as error:  # noqa: BLE001 - that is the answer
            answers[number] = type(error).__name__

    with Threads() as threads, store.begin():
        for number in range(len(calls)):
            threads.start(work, number)
            queued.wait(1)
    assert [answers[number] for number in (0, 2, 8, 9)] == [2, 3, 4, 5]
    assert answers[1] == "LeaseNotFoundError"
    assert answers[3] == answers[4] == "FutureRevisionError"
    assert answers[5] == "KeyNotFoundError"
    assert answers[7] == "LeaseExistsError"
    assert [kv.key for kv in store.scan(ALL)] == [b"good/%d" % i for i in range(4)]


def test_blocks_get_their_turn_between_writers_that_never_stop(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    stop = threading.Event()

    def put(writer: int) -> None:
        while not stop.is_set():
            store.put(b"put/%d" % writer, b"")

    def block(writer: int) -> None:
        for i in range(15):
            with store.begin() as txn:
                txn.put(b"block/%d" % writer, b"%d" % i)

    with Threads() as threads:
        for writer in range(4):
            threads.start(put, writer)
        blocks = [threads.start(block, writer) for writer in range(4)]
        try:
            for thread in blocks:
                thread.join(SECONDS)
                assert not thread.is_alive(), "a block is starved"
        finally:
            stop.set()
    assert [kv.version for kv in store.range(KeyRange.prefix(b"block/"))] == [15] * 4


def test_writers_get_their_turn_between_blocks_in_the_order_they_came(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    queued = watch_queue(store)
    order: list[int] = []

    def block(number: int) -> None:
        with store.begin() as txn:
            order.append(number)
            txn.put(b"%d" % number)

    with Threads() as threads, store.begin():
        for number in range(12):
            threads.start(block, number)
            queued.wait(1)
    assert order == list(range(12))


def test_block_that_writes_nothing_or_is_rolled_back_does_not_wait_for_readers(
    open_store: OpenStore, engine: str
) -> None:
    # LMDB's `abort` has waited until no thread of the process was in any call of LMDB's: with busy readers, minutes.
    store = open_store(engine=engine)
    load(store)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for key in SPREAD:
                store.get(key)

    def roll_back() -> None:
        for _ in range(30):
            with store.begin():
                pass
            txn = store.begin()
            txn.put(b"k", b"v")
            txn.rollback()

    with Threads() as threads:
        for _ in range(3):
            threads.start(read)
        thread = threads.start(roll_back)
        thread.join(20)
        stop.set()
        assert not thread.is_alive()
    assert store.get(b"k") is None


def test_reads_do_not_wait_for_a_block(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    load(store)
    before = rows_of(store.scan(ALL))

    def read() -> None:
        assert rows_of(store.scan(ALL)) == before
        assert store.get(SPREAD[0]) == before[SPREAD[0]]
        assert store.range(ALL).count == len(before)
        with store.snapshot() as view:
            assert view.count(ALL) == len(before)
        assert list(store.history(SPREAD[0]))
        store.stats()
        store.hash_kv()

    with store.begin() as txn:
        txn.delete(ALL)
        with Threads() as threads:
            threads.start(read)
            threads.start(read)
        read()  # and from the thread of the block: the store is as before it
    assert store.count(ALL) == 0


OWN_BLOCK: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put(b"k", b"v"),
    "delete": lambda store: store.delete(b"k"),
    "txn": lambda store: store.txn(success=[Op.put(b"k", b"v")]),
    "txn that reads": lambda store: store.txn(success=[Op.range(b"k")]),
    "begin": lambda store: store.begin(),
    "compact": lambda store: store.compact(2),
    "compact by count": lambda store: store.compact(keep_revisions=0),
    "reclaim": lambda store: store.reclaim(),
    "submit": lambda store: store.submit(LeaseGrantRequest(1, 1)),
    "check": lambda store: store.check(),
    "close": lambda store: store.close(),
}


@pytest.mark.parametrize("call", OWN_BLOCK)
def test_using_the_store_in_ones_own_block_raises_and_does_not_wait(
    open_store: OpenStore, engine: str, call: str
) -> None:
    store = open_store(engine=engine)
    store.put(b"first", b"1")
    store.put(b"second", b"1")

    def work() -> None:
        with store.begin() as txn:
            txn.put(b"before", b"1")
            with pytest.raises(TxnError):
                OWN_BLOCK[call](store)
            txn.put(b"after", b"1")

    with Threads() as threads:
        threads.start(work)
    assert [event.kv.key for event in store.history(ALL, start_revision=4)] == [b"before", b"after"]
    store.put(b"k", b"v")


# Closing


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_close_under_load_ends_every_call_with_its_result_or_closed_error(
    open_store: OpenStore, engine: str, seed: int
) -> None:
    store = open_store(engine=engine)
    load(store)
    record = Record()
    acknowledged = threading.Semaphore(0)

    def until_closed(work: Callable[[int], object]) -> None:
        for i in range(100_000):
            try:
                work(i)
            except ClosedError:
                return

    def put(writer: int) -> Callable[[int], object]:
        def work(i: int) -> None:
            key = b"put/%d" % writer
            record.writes.append(Write(writer, store.put(key, b"%d" % i), {key: b"%d" % i}))
            acknowledged.release()

        return work

    def block(writer: int) -> Callable[[int], object]:
        def work(i: int) -> None:
            with store.begin() as txn:
                txn.put(b"block/%d" % writer, b"%d" % i)
            record.writes.append(Write(writer, txn.revision, {b"block/%d" % writer: b"%d" % i}))
            acknowledged.release()

        return work

    def compact(i: int) -> None:
        store.compact(keep_revisions=100, physical=i % 2 == 0)

    def snapshot(i: int) -> None:
        del i
        with store.snapshot() as view:
            view.count(ALL)

    works: list[Callable[[int], object]] = [
        *(put(writer) for writer in range(4)),
        *(block(writer) for writer in range(4, 7)),
        compact,
        snapshot,
        lambda _: list(store.scan(ALL)),
        lambda _: store.get(SPREAD[5]),
        lambda _: store.range(KeyRange.prefix(b"filler/0")),
        lambda _: list(store.history(b"put/0")),
        lambda _: store.stats(),
    ]
    with Threads() as threads:
        for work in works:
            threads.start(until_closed, work)
        for _ in range(random.Random(seed).randrange(50, 200)):
            assert acknowledged.acquire(timeout=SECONDS), threads.errors
        closers = [threads.start(store.close) for _ in range(2)]
        for thread in closers:
            thread.join(SECONDS)
            assert not thread.is_alive(), "close waits for ever"
    assert unique(record.writes) == []
    if engine != "memory":
        again = open_store()
        history = list(again.history(ALL))
        assert kept(record.writes, history, again.compact_revision) == []
        assert current(record.writes, rows_of(again.scan(ALL)), history, again.compact_revision) == []


def test_close_waits_for_the_block_that_is_open_and_refuses_what_came_after(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    queued = watch_queue(store)
    answers: dict[str, object] = {}

    def ask(name: str, call: Callable[[], object]) -> None:
        try:
            answers[name] = call()
        except StoreError as error:
            answers[name] = type(error)

    with Threads() as threads, store.begin() as txn:
        txn.put(b"block", b"1")
        threads.start(ask, "before", lambda: store.put(b"before", b"1"))
        queued.wait(1)
        threads.start(ask, "close", store.close)
        queued.wait(1)
        threads.start(ask, "after", lambda: store.put(b"after", b"1"))
        queued.wait(1)
        threads.start(ask, "block", lambda: store.begin())
        queued.wait(1)
    assert answers == {"before": 3, "close": None, "after": ClosedError, "block": ClosedError}
    if engine != "memory":
        assert [kv.key for kv in open_store().scan(ALL)] == [b"before", b"block"]


# Interrupted, or failing, at any engine call


def test_writer_interrupted_while_it_waits_raises_and_the_store_goes_on(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    queued = watch_queue(store)
    holds, release = threading.Event(), threading.Event()

    class Interrupted(BaseException):
        pass

    interrupted = threading.Event()

    def handler(signum: int, frame: object) -> None:
        del signum, frame
        if not interrupted.is_set():
            interrupted.set()
            raise Interrupted

    def hold() -> None:
        with store.begin() as txn:
            txn.put(b"held", b"1")
            holds.set()
            assert release.wait(SECONDS)

    def interrupt() -> None:
        main = threading.main_thread().ident
        assert main is not None
        queued.wait(1)
        # A signal that comes just before the thread begins to wait does not wake it; the next one does.
        while not interrupted.wait(0.05):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with Threads() as threads:
            threads.start(hold)
            assert holds.wait(SECONDS)
            for call in (lambda: store.put(b"k", b"v"), lambda: store.begin(), lambda: store.compact(1)):
                interrupted.clear()
                interrupter = threads.start(interrupt)
                with pytest.raises(Interrupted):
                    call()
                interrupter.join(SECONDS)  # or a signal it sent too much would be taken for the next call's
            release.set()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert store.put(b"next", b"1") == 3
    assert [kv.key for kv in store.scan(ALL)] == [b"held", b"next"]


def some_work(store: Store, done: list[str]) -> None:
    store.put(b"a", b"1")
    done.append("put")
    store.txn(success=[Op.put(b"b", b"1"), Op.put(b"c", b"1")])
    done.append("txn")
    with store.begin() as txn:
        txn.put(b"d", b"1")
        txn.put(b"e", b"1")
    done.append("block")
    store.compact(store.revision, physical=True)
    done.append("compact")
    store.delete(KeyRange(b"a", b"c"))
    done.append("delete")


REVISIONS = {0: {1, 2}, 1: {2, 3}, 2: {3, 4}, 3: {4}, 4: {4, 5}, 5: {5}}
"""By steps done: the revisions that the store may be at."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, mvccstore.StorageError])
def test_store_survives_an_error_at_any_engine_call(
    open_store: OpenStore, tmp_path: Path, engine: str, when: str, error: type[BaseException]
) -> None:
    for place in range(1, 1_000):
        raises_at = [0]

        def fail(name: str, number: int, raises_at: list[int] = raises_at) -> None:
            # What a call that ended well has begun would be left to nobody.
            if number == raises_at[0] and not (when == "after" and name in {"read", "write"}):
                raise error("path", "reason") if error is mvccstore.StorageError else error()

        faulty = wrapped(engine, tmp_path / f"{place}", **{when: fail})
        store = open_store(engine=faulty)
        raises_at[0] = faulty.calls + place
        done: list[str] = []
        with suppress(error):
            some_work(store, done)
        is_over = faulty.calls < raises_at[0]
        raises_at[0] = 0
        with Threads() as threads:
            threads.start(survives, store, len(done), f"{when} call {place}: {faulty.names[-1]}")
        store.close()
        if is_over:
            break
    assert is_over
    assert place > 10


def survives(store: Store, done: int, where: str) -> None:
    assert store.check() == [], where
    # A commit that was interrupted when it was done is seen with the next write, at the latest.
    revision = store.put(b"seen", b"1") - 1
    assert revision in REVISIONS[done], where
    rows = rows_of(store.scan(ALL))
    assert ({b"b", b"c"} <= set(rows)) == bool({b"b", b"c"} & set(rows)) or done >= 4, where
    assert (b"d" in rows) == (b"e" in rows), where
    with store.begin() as txn:
        txn.put(b"last", b"1")
    assert txn.revision == revision + 2, where
    assert len(list(store.history(ALL, start_revision=revision + 1))) == 2, where
    store.reclaim()
    assert store.check() == [], where
