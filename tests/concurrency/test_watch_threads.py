"""Watching while many threads open and close watchers and write, and while threads are interrupted."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import textwrap
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

import mvccstore
from mvccstore import ClosedError, CompactedError, Event, KeyRange, Keys, KeyValue, Op, Store
from mvccstore.mvcc.apply import Changes
from tests.concurrency.bench import ROOT, SECONDS, Threads
from tests.concurrency.interrupter import Interrupted, Interrupter
from tests.guarantees import Recorder, Watched, watch_problems

OpenStore = Callable[..., Store]
ALL = KeyRange.all()
PACKAGE = str(Path(mvccstore.__file__).parent)
KEYS = tuple(b"%s/%d" % (folder, number) for folder in (b"a", b"b") for number in range(4))
WATCHED: tuple[Keys, ...] = (b"a/1", KeyRange.prefix(b"a/"), KeyRange(b"a/2", b"b/2"), ALL)
FILTERS: tuple[tuple[Any, ...], ...] = ((), (), ("noput",), ("nodelete",))
WRITES = 80
LIFETIMES = 70
OPENERS, WRITERS = 8, 4
THOUSAND = 1_000


@pytest.mark.parametrize("is_compacted", [False, True], ids=["kept", "compacted"])
def test_watchers_come_and_go_while_others_write(
    open_store: OpenStore, engine: str, monkeypatch: pytest.MonkeyPatch, *, is_compacted: bool
) -> None:
    monkeypatch.setattr("mvccstore.hub.TAIL_EVENTS_MAX", 30)
    monkeypatch.setattr("mvccstore.watch.PAGE_EVENTS", 20)
    store = open_store(engine=engine)
    made = Made(store)
    recorded: list[Watched] = []
    compacted: set[int] = set()
    with Threads() as threads:
        writers = [threads.start(write, store, seed) for seed in range(3)]
        for seed in range(4):
            threads.start(open_and_close, store, seed, recorded)
        if is_compacted:
            threads.start(compact, store, writers, compacted)
    changes = made.changes(store)
    assert len(recorded) > LIFETIMES
    for watched in recorded:
        assert watch_problems(watched, changes, compacted) == []
    gc.collect()
    assert (len(store._hub), store._hub._events, len(store._hub._index)) == (0, 0, 0)


def test_a_thousand_watchers_open_and_close_while_others_write(
    open_store: OpenStore, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One write for each lifetime, so that there are some in all of them."""
    monkeypatch.setattr("mvccstore.hub.TAIL_EVENTS_MAX", 100)
    store = open_store(engine=engine)
    made = Made(store)
    recorded: list[Watched] = []
    turns = threading.Semaphore(0)
    with Threads() as threads:
        for seed in range(WRITERS):
            threads.start(write, store, seed, THOUSAND // WRITERS, turns)
        for seed in range(OPENERS):
            threads.start(open_and_close, store, seed, recorded, THOUSAND // OPENERS, turns)
    assert len(recorded) == THOUSAND
    changes = made.changes(store)
    revisions = [change.revision for change in changes]
    shown = 0
    for watched in recorded:
        # What is before its first revision or after its last is not for it.
        own = slice(bisect_left(revisions, watched.first), bisect_right(revisions, watched.revision))
        assert watch_problems(watched, changes[own]) == []
        shown += len(watched.events())
    assert shown > THOUSAND
    gc.collect()
    assert (len(store._hub), store._hub._events, len(store._hub._index)) == (0, 0, 0)
    assert (store._hub._bytes, len(store._hub._order), len(store._hub._gone)) == (0, 0, 0)


class Made:
    """All that was changed, noted as it was published; so also what is compacted by now."""

    def __init__(self, store: Store) -> None:
        self.events: list[Event] = []
        publish = store._hub.publish

        def note(changes: Changes, revision: int) -> None:
            self.events += [Event("put" if row[3] else "delete", KeyValue._make(row)) for row in changes.rows]
            publish(changes, revision)

        store._hub.publish = note  # type: ignore[method-assign]

    def changes(self, store: Store) -> list[Event]:
        """Return them, with what was before each, which must be what the history says as far as it goes."""
        before: dict[bytes, KeyValue | None] = {}
        found: list[Event] = []
        for _, events in groupby(self.events, key=lambda event: event.revision):
            made = list(events)
            found += [event._replace(prev_kv=before.get(event.kv.key)) for event in made]
            before |= {event.kv.key: event.kv if event.type == "put" else None for event in made}
        kept = list(store.history(ALL, start_revision=max(store.compact_revision, 1) + 1))
        assert [event._replace(prev_kv=None) for event in found[len(found) - len(kept) :]] == kept
        return found


def write(store: Store, seed: int, writes: int = WRITES, turns: threading.Semaphore | None = None) -> None:
    rng = random.Random(seed)
    for number in range(writes):
        if turns is not None:
            assert turns.acquire(timeout=SECONDS)
        keys = rng.sample(KEYS, rng.randrange(1, 5))
        match rng.randrange(4):
            case 0:
                store.put(keys[0], b"%d" % number)
            case 1:
                store.txn(success=[Op.delete(key) if rng.randrange(2) else Op.put(key, b"%d" % number) for key in keys])
            case 2:
                with store.begin() as txn:
                    for key in keys * 2:
                        txn.put(key, b"%d" % number)
            case _:
                store.delete(KeyRange.prefix(keys[0][:2]))


def open_and_close(
    store: Store,
    seed: int,
    recorded: list[Watched],
    lifetimes: int = LIFETIMES,
    turns: threading.Semaphore | None = None,
) -> None:
    rng = random.Random(1_000 + seed)
    for number in range(lifetimes):
        if turns is not None:
            turns.release()  # somebody may write
        keys, filters, prev_kv = rng.choice(WATCHED), rng.choice(FILTERS), rng.random() < 0.5
        start = max(store.revision + rng.choice((1, 1, 3, -5, -40)), 1)
        try:
            watcher = store.watch(keys, start_revision=start, prev_kv=prev_kv, filters=filters)
        except CompactedError:
            continue
        recorder = Recorder(watcher, keys, start, prev_kv=prev_kv, filters=filters)
        try:
            for _ in range(rng.randrange(8)):
                recorder.take(timeout=rng.choice((0, 0, 0.001, 0.005)))
        except CompactedError:
            assert watcher.is_closed
        if number % 3:
            watcher.close()  # the others are collected
        recorded.append(recorder.watched)


def compact(store: Store, writers: list[threading.Thread], compacted: set[int]) -> None:
    while any(thread.is_alive() for thread in writers):
        revision = store.revision - 25
        if revision > max(store.compact_revision, 1):
            compacted.add(revision)
            store.compact(revision, physical=True)


def test_close_and_put_race_for_who_waits(store: Store) -> None:
    """Whoever waits is woken, by whichever comes first, and never misses both."""
    for number in range(150):
        watcher = store.watch(b"k")
        ends: list[object] = []

        def wait(watcher: mvccstore.Watcher = watcher, ends: list[object] = ends) -> None:
            try:
                ends.append(watcher.next_batch(timeout=SECONDS))
            except ClosedError as error:
                ends.append(error)

        with Threads() as threads:
            threads.start(wait)
            threads.start(store.put, b"k")
            if number % 2:
                threads.start(watcher.close)
        assert len(ends) == 1
        assert ends[0] is not None
        watcher.close()
    assert len(store._hub) == 0


def test_each_put_of_a_chain_is_woken_by_the_one_before(store: Store) -> None:
    """Threads that wait for each other: one wake-up lost and all of them wait for ever."""
    links, rounds = 4, 40

    def link(number: int) -> None:
        with store.watch(b"%d" % number, start_revision=1) as watcher:
            for _ in range(rounds):
                batch = watcher.next_batch(timeout=SECONDS)
                assert batch is not None, "a wake-up is lost"
                store.put(b"%d" % (number + 1))

    with Threads() as threads:
        for number in range(links):
            threads.start(link, number)
        for _ in range(rounds):
            store.put(b"0")
    assert store.get(b"%d" % links).version == rounds  # type: ignore[union-attr]


def test_store_closed_under_many_watchers_wakes_them_all(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    with Threads() as threads:
        ends: list[str] = []
        waiting = threading.Barrier(21)

        def wait(number: int) -> None:
            watcher = store.watch(KEYS[number % len(KEYS)])
            waiting.wait(SECONDS)
            try:
                watcher.next_batch()
            except ClosedError as error:
                ends.append(str(error))

        for number in range(20):
            threads.start(wait, number)
        waiting.wait(SECONDS)
        store.close()
    assert ends == ["store is closed"] * 20


# Interrupted


def put(store: Store) -> None:
    store.put(b"a/1", b"1")


def txn(store: Store) -> None:
    store.txn(success=[Op.put(b"a/1", b"1"), Op.delete(b"b/1"), Op.put(b"a/2", b"1")])


def block(store: Store) -> None:
    with store.begin() as block:
        block.put(b"a/1", b"1")
        block.delete(b"a/1")
        block.put(b"a/2", b"1")


def lease(store: Store) -> None:
    lease = store.grant(3_600)
    store.put(b"a/1", lease=lease)
    lease.revoke()


def watch(store: Store) -> None:
    with store.watch(b"a/1", start_revision=2, prev_kv=True) as watcher:
        store.put(b"a/1", b"1")
        while watcher.next_batch(timeout=0) is not None:
            pass
        watcher.next_batch(timeout=0.0001)


def watch_tail(store: Store) -> None:
    with store.watch(KeyRange(b"a/1", b"b"), filters=["noput"]) as watcher:
        watcher.poll()
        store.put(b"a/1", b"1")
        store.delete(b"a/1")
        next(watcher)


STRIDES = {txn: 3, block: 3, lease: 3, watch_tail: 2}
"""What has many places takes its time with each."""


@pytest.mark.parametrize("work", [put, txn, block, lease, watch, watch_tail])
def test_thread_interrupted_anywhere_hides_nothing_from_watchers(work: Callable[[Store], None]) -> None:
    for place in range(0, 100_000, STRIDES.get(work, 1)):
        store = mvccstore.open()
        store.put(b"b/1")
        recorders = [Recorder(store.watch(keys), keys, 3) for keys in WATCHED]
        for recorder in recorders[::2]:
            recorder.take()  # has its place in the tail; the others find it later
        interrupter = Interrupter(place, PACKAGE)
        sys.settrace(interrupter)
        try:
            work(store)
        except Interrupted:
            pass
        finally:
            sys.settrace(None)
        where = f"{place}, {interrupter.where}"
        first = store.revision + 1
        recorders += [Recorder(store.watch(keys), keys, first) for keys in (b"a/1", KeyRange(b"a/1", b"b"))]
        with Threads() as threads:
            threads.start(store.put, b"a/1", b"next")  # nobody waits for the one that is gone
        changes = list(store.history(ALL))
        for recorder in recorders:
            assert watch_problems(recorder.take_all(), changes) == [], where
            assert recorder.watcher.revision == store.revision, where
            recorder.watcher.close()
        assert store.check() == [], where
        assert store.stats().leases == len(store.leases()) == len(store._leases._table._leases), where
        store.close()
        if interrupter.where is None:
            break
    assert place > 20


def test_watcher_interrupted_while_it_waits_goes_on(store: Store) -> None:
    watcher = store.watch(b"k")
    gate = watcher._gate

    class InterruptedGate:
        """A lock of which the wait is interrupted."""

        def acquire(self, timeout: float) -> bool:
            del timeout
            raise Interrupted

    watcher._gate = InterruptedGate()  # type: ignore[assignment]
    with pytest.raises(Interrupted):
        watcher.next_batch()
    assert not any(topic.waiting for topic in store._hub._topics.values())
    watcher._gate = gate
    store.put(b"k")
    assert next(watcher).revision == 2
    del watcher
    gc.collect()
    assert len(store._hub) == 0


# Other processes


_WRITER = """
    import sys
    import mvccstore

    path, engine = sys.argv[1:]
    with mvccstore.open(path, engine=engine, durability="os") as store:
        print("open", flush=True)
        for line in sys.stdin:
            exec(line)
            print(store.revision, flush=True)
"""


class OtherProcess:
    """A process that writes what it is told to."""

    def __init__(self, path: Path, engine: str) -> None:
        arguments = [sys.executable, "-c", textwrap.dedent(_WRITER), str(path), engine]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True, bufsize=1
        )
        assert self._answer() == "open"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, statement: str) -> int:
        """Have a statement done; return the revision after it."""
        assert self.process.stdin is not None
        self.process.stdin.write(statement + "\n")
        return int(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(SECONDS) == 0
        self.process.stdout.close()


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_read_only_store_shows_what_another_process_writes(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "store.mvcc"
    writer = OtherProcess(path, engine)
    writer.do("store.put(b'a', b'0')")
    with mvccstore.open(path, read_only=True) as store:
        past = Recorder(store.watch(ALL, start_revision=1, prev_kv=True), ALL, 1, prev_kv=True)
        now = Recorder(store.watch(b"a"), b"a", 3)
        future = Recorder(store.watch(ALL, start_revision=6), ALL, 6)
        for number in range(1, 6):
            revision = writer.do(
                f"store.txn(success=[mvccstore.Op.put(b'a', b'{number}'), mvccstore.Op.put(b'b', b'')])"
            )
            now.take()
        changes: list[Event] = list(store.history(ALL, prev_kv=True))
        for recorder, count in ((past, 11), (now, 5), (future, 4)):
            watched = recorder.take_all()
            assert len(watched.events()) == count
            assert watched.revision == revision
            assert watch_problems(watched, changes) == []
        with Threads() as threads:
            waiting = threads.start(now.take, SECONDS)
            writer.do("store.put(b'a', b'last')")
            waiting.join(SECONDS)
            assert now.watched.events()[-1].kv.value == b"last"
            writer.do("store.compact(store.put(b'b'), physical=True)")
            with pytest.raises(CompactedError):
                past.take_all()
            ends: list[str] = []

            def wait() -> None:
                with pytest.raises(ClosedError) as caught:
                    now.take(SECONDS)
                ends.append(str(caught.value))

            waiting = threads.start(wait)
            store.close()
        assert ends == ["store is closed"]
    writer.close()
