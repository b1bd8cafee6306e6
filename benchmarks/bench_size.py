"""What must not depend on size: opening a store of a million keys, reading a key with a million versions."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import mvccstore
from benchmarks.engines import OurStore
from benchmarks.harness import Series, Work, race, ratio, significant
from benchmarks.report import Report
from benchmarks.workloads import Workload, key
from mvccstore import Durability

HOT_KEY = b"hot"


def build_million(path: Path, workload: Workload) -> int:
    """Build a store of a million keys, written in their order: to opening it is all one."""
    ours, values = OurStore("lmdb", path, Durability.OS), workload.values
    ours.load([(key(number), values[number % len(values)]) for number in range(workload.sizes.million)])
    revision = ours.store.revision
    ours.close()
    return revision


def build_hot(path: Path, workload: Workload) -> int:
    """Build a store of keys with one version each, and then one key with a million."""
    ours = OurStore("lmdb", path, Durability.OS)
    ours.load(workload.shuffled("one version", workload.sizes.keys))
    values = workload.values
    ours.load_revisions([(HOT_KEY, values[i % len(values)]) for i in range(workload.sizes.million)])
    revision = ours.store.revision
    ours.close()
    return revision


def bench_open(path: Path, workload: Workload, report: Report) -> None:
    """Measure opening the store of a million keys: how long it takes, and what memory."""
    found = Series()
    for _ in range(workload.sizes.opens):
        begun = time.perf_counter()
        store = mvccstore.open(path)
        found.seconds.append(time.perf_counter() - begun)
        assert store.get(key(0)) is not None
        store.close()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    store = mvccstore.open(path)
    store.get(key(0))
    grown = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    store.close()
    report.add(found.row("mvccstore on lmdb", f"open, {workload.sizes.million:,} keys"))
    report.figures["open_ms_1m"] = significant(statistics.median(found.seconds) * 1e3)
    report.figures["open_python_mb_1m"] = significant(grown / 1e6)


def bench_hot(path: Path, workload: Workload, report: Report) -> None:
    """Measure reads at old revisions, of the hot key and of others."""
    sizes = workload.sizes
    store = mvccstore.open(path, durability="os")
    first = store.revision - sizes.million + 1
    random = workload.random("hot")

    def reads(keys: list[bytes], revisions: list[int]) -> Callable[[], None]:
        def run() -> None:
            get = store.get
            for name, revision in zip(keys, revisions, strict=True):
                get(name, revision=revision)

        return run

    def work(pick: Callable[[], bytes], revision: Callable[[], int]) -> Work:
        def prepare(_: int) -> Callable[[], None]:
            return reads([pick() for _ in range(sizes.gets)], [revision() for _ in range(sizes.gets)])

        return prepare

    def any_revision() -> int:
        return random.randrange(first, store.revision)

    middle = (first + store.revision) // 2
    one = key(random.randrange(sizes.keys))
    hot, cold = "get old, key of 1 M versions", "get old, any key of 1 version"
    contenders = {
        hot: work(lambda: HOT_KEY, any_revision),
        cold: work(lambda: key(random.randrange(sizes.keys)), any_revision),
        f"{hot}, same read again": work(lambda: HOT_KEY, lambda: middle),
        f"{cold}, same read again": work(lambda: one, lambda: middle),
        "get newest, key of 1 M versions": work(lambda: HOT_KEY, lambda: 0),
        "get newest, same key of 1 version": work(lambda: one, lambda: 0),
    }
    found = race(contenders, sizes.gets, sizes.rounds)
    report.add(*(series.row("mvccstore on lmdb", name) for name, series in found.items()))
    report.figures["hot_key_get_old_ratio"] = ratio(found[cold], found[hot])
    store.close()
