"""Watching: what watchers cost those who write, how fast changes reach many, come from the log, and reach one."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import mvccstore
from benchmarks.engines import OurStore
from benchmarks.harness import Series, micros, percentile, race, significant
from benchmarks.report import Report
from benchmarks.workloads import Item, Workload
from mvccstore import Durability, KeyRange, Watcher

PARTS = ("idle", "fanout", "replay", "latency")
ENGINE = "mvccstore on lmdb"
WATCHED = b"fan/"


def bench_watch(folder: Path, workload: Workload, report: Report, part: str) -> None:
    """Measure one part."""
    measures = {"idle": bench_idle, "fanout": bench_fanout, "replay": bench_replay, "latency": bench_latency}
    measures[part](folder / f"{part}.mvcc", workload, report)


def bench_idle(path: Path, workload: Workload, report: Report) -> None:
    """Put with nobody watching, and with many watchers of other keys: the same store, in turns."""
    sizes = workload.sizes
    ours = OurStore("lmdb", path, Durability.OS)
    ours.load(workload.shuffled("load", sizes.keys))
    idle = Idle(ours.store, sizes.idle_watchers)
    nobody = "put, nobody watching"
    everybody = f"put, {sizes.idle_watchers:,} watchers of other keys"

    def puts(name: str, prepare: Callable[[], None], number: int) -> Callable[[], None]:
        prepare()
        # As if they had been there, or gone, for long: the garbage is collected, the caches know the way.
        gc.collect()
        ours.put_each(workload.overwrites(f"{name}/{number}/warm", sizes.puts // 5))
        return partial(ours.put_each, workload.overwrites(f"{name}/{number}", sizes.puts))

    found = race(
        {nobody: partial(puts, "nobody", idle.close), everybody: partial(puts, "everybody", idle.open)},
        sizes.puts,
        sizes.idle_rounds,
    )
    idle.close()
    ours.close()
    report.add(*(series.row(ENGINE, name) for name, series in found.items()))
    # In pairs, as rounds that lie side by side have the same luck with LMDB's pages and the machine.
    pairs = zip(found[everybody].seconds, found[nobody].seconds, strict=True)
    report.figures["put_cost_10k_idle_watchers"] = significant(
        statistics.median(watched / alone for watched, alone in pairs)
    )


class Idle:
    """Watchers of keys that nobody changes: half of them of one key, half of a prefix, of several lengths."""

    def __init__(self, store: mvccstore.Store, count: int) -> None:
        self._store = store
        self._count = count
        self._watchers = ExitStack()

    def open(self) -> None:
        """Open them all."""
        for number in range(self._count // 2):
            self._watchers.enter_context(self._store.watch(b"idle/%d" % number))
            self._watchers.enter_context(self._store.watch(KeyRange.prefix(b"idle/%d/" % number)))

    def close(self) -> None:
        """Close them all."""
        self._watchers.close()


class Crowd:
    """Watchers of the same keys, each woken when there is something, and then taking until there is nothing.

    One thread drives them, as an event loop does.
    """

    def __init__(self, store: mvccstore.Store, keys: mvccstore.Keys, count: int) -> None:
        self.delivered = 0
        self._woken: deque[int] = deque()
        self._watchers = [store.watch(keys) for _ in range(count)]
        self._on_wake = [partial(self._woken.append, number) for number in range(count)]
        self._woken.extend(range(count))
        self.serve()

    def serve(self) -> None:
        """Hand out what there is: every event is looked at by every watcher."""
        woken = self._woken
        while woken:
            number = woken.popleft()
            watcher = self._watchers[number]
            while True:
                batch = watcher.poll()
                if batch is not None:
                    for _event in batch.events:
                        self.delivered += 1
                if watcher.listen(self._on_wake[number]):
                    break  # else there is more

    def close(self) -> None:
        """Close them all."""
        for watcher in self._watchers:
            watcher.close()


def bench_fanout(path: Path, workload: Workload, report: Report) -> None:
    """Put keys that many watch, some in a block or each for itself, until each watcher has seen each event."""
    sizes = workload.sizes
    ours = OurStore("lmdb", path, Durability.OS)
    crowd = Crowd(ours.store, KeyRange.prefix(WATCHED), sizes.fan_watchers)
    items = [(WATCHED + key, value) for key, value in workload.overwrites("fan", sizes.batch_keys)]

    def blocks(_: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(sizes.fan_blocks):
                ours.put_blocks([items])
                crowd.serve()

        return run

    def singles(_: int) -> Callable[[], None]:
        def run() -> None:
            for item in items[: sizes.fan_puts]:
                ours.put_each([item])
                crowd.serve()

        return run

    in_blocks = f"deliver to {sizes.fan_watchers:,} watchers, {sizes.batch_keys} keys a revision"
    one_by_one = f"deliver to {sizes.fan_watchers:,} watchers, 1 key a revision"
    deliveries = sizes.fan_blocks * len(items) * sizes.fan_watchers
    found = race({in_blocks: blocks}, deliveries, sizes.rounds)
    assert crowd.delivered == deliveries * (sizes.rounds + 1)
    found |= race({one_by_one: singles}, sizes.fan_puts * sizes.fan_watchers, sizes.rounds)
    crowd.close()
    ours.close()
    report.add(*(series.row(ENGINE, name) for name, series in found.items()))
    report.figures["fanout_deliveries_per_s"] = float(round(1 / found[in_blocks].typical))


def bench_replay(path: Path, workload: Workload, report: Report) -> None:
    """Watch all keys of a store from its first revision on; each event has a revision of its own."""
    sizes = workload.sizes
    ours = OurStore("lmdb", path, Durability.OS)
    ours.load_revisions(workload.shuffled("load", sizes.keys))
    ours.load_revisions(workload.shuffled("overwrite", sizes.keys))
    last = ours.store.revision

    def replay(take: Callable[[Watcher, int], int]) -> Callable[[], None]:
        def run() -> None:
            with ours.store.watch(KeyRange.all(), start_revision=1) as watcher:
                assert take(watcher, last) == 2 * sizes.keys

        return run

    batches, events = "replay, by batches()", "replay, by iterating"
    found = race(
        {batches: lambda _: replay(_take_batches), events: lambda _: replay(_iterate)}, 2 * sizes.keys, sizes.rounds
    )
    ours.close()
    report.add(*(series.row(ENGINE, name) for name, series in found.items()))
    report.figures["replay_events_per_s"] = float(round(1 / found[batches].typical))


def _take_batches(watcher: Watcher, last: int) -> int:
    count = 0
    for batch in watcher.batches():
        count += len(batch.events)
        if batch.revision == last:
            break
    return count


def _iterate(watcher: Watcher, last: int) -> int:
    count = 0
    for event in watcher:
        count += 1
        if event.kv.mod_revision == last:
            break
    return count


def bench_latency(path: Path, workload: Workload, report: Report) -> None:
    """Put one key after the other; note when each event is in the hands of a thread that waited for it."""
    items = workload.overwrites("latency", workload.sizes.watch_latencies)
    with mvccstore.open(path, durability="os") as store:
        receiver = Receiver(store.watch(KeyRange.all()))
        begun = [receiver.put(store, item) for item in items]
        receiver.stop()
    warm = len(items) // 10
    waits = [end - start for start, end in zip(begun, receiver.times, strict=True)][warm:]
    report.add(Series(seconds=waits, latencies=waits).row(ENGINE, "put to event in another thread"))
    report.figures["watch_latency_us_p50"] = micros(percentile(waits, 0.5))
    report.figures["watch_latency_us_p99"] = micros(percentile(waits, 0.99))


class Receiver:
    """A thread that waits for events, and notes when it has each."""

    def __init__(self, watcher: Watcher) -> None:
        self.times: list[float] = []
        self._watcher = watcher
        self._has_one = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def put(self, store: mvccstore.Store, item: Item) -> float:
        """Put, wait until the event has arrived, and return when that began."""
        key, value = item
        begun = time.perf_counter()
        store.put(key, value)
        self._has_one.acquire()
        return begun

    def stop(self) -> None:
        """End the thread."""
        self._watcher.close()
        self._thread.join()

    def _run(self) -> None:
        clock = time.perf_counter
        for _ in self._watcher:
            self.times.append(clock())
            self._has_one.release()
