"""Compaction: how fast history goes, and how long it keeps a writer waiting."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import mvccstore
from benchmarks.engines import OurStore
from benchmarks.harness import Series, significant
from benchmarks.report import Report
from benchmarks.workloads import Item, Workload
from mvccstore import Durability


def build_history(path: Path, workload: Workload) -> int:
    """Build a store in which every key was overwritten several times, each time in another order.

    Return the revision at which every key has had all but the last of its versions.
    """
    ours, revision = OurStore("lmdb", path, Durability.OS), 0
    for version in range(workload.sizes.compact_versions):
        revision = ours.store.revision
        ours.load(workload.shuffled(f"history/{version}", workload.sizes.keys))
    ours.close()
    return revision


def bench_compact(path: Path, workload: Workload, report: Report, before_last: int) -> None:
    """Compact all but the last two versions with nobody else there, then one more beside a writer."""
    sizes = workload.sizes
    store = mvccstore.open(path, durability="os")
    last = store.revision
    alone = _compact(store, before_last)
    beside = Writer(store, workload.overwrites("compact/writer", sizes.keys))
    beside.start()
    contended = _compact(store, last)
    beside.stop()
    engine = "mvccstore on lmdb"
    waits = Series(seconds=beside.waits, latencies=beside.waits)
    report.add(
        alone.row(engine, "compact, a revision"),
        contended.row(engine, "compact, a revision, beside a writer"),
        waits.row(engine, "put beside compaction"),
    )
    report.figures["compact_per_s"] = float(round(1 / alone.typical))
    report.figures["compact_put_wait_ms"] = significant(max(beside.waits) * 1e3)
    store.close()


def _compact(store: mvccstore.Store, revision: int) -> Series:
    """Compact to a revision; return the seconds for one version dropped."""
    before, base = store.stats().revisions_kept, store.revision
    begun = time.perf_counter()
    store.compact(revision, physical=True)
    took = time.perf_counter() - begun
    written = store.revision - base  # by the writer meanwhile, one revision each
    return Series(seconds=[took / (before + written - store.stats().revisions_kept)])


class Writer:
    """A thread that puts one item after the other, and notes how long each took."""

    def __init__(self, store: mvccstore.Store, items: list[Item]) -> None:
        self.waits: list[float] = []
        self._store = store
        self._items = items
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Begin, and return once the first put is done."""
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        """Stop after the put that is under way."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        clock, put = time.perf_counter, self._store.put
        try:
            for key, value in self._items:
                begun = clock()
                put(key, value)
                self.waits.append(clock() - begun)
                self._started.set()
                if self._stopping.wait(0.0005):
                    return
        finally:
            self._started.set()  # also if the first put failed
