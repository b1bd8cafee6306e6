"""get, put and range of every contender on the same work; and what group commit makes of many writers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import mvccstore
import mvccstore.aio
from benchmarks.engines import Contender, KineTable, OurStore, RawLmdb
from benchmarks.harness import Series, Work, latencies, race, ratio, significant
from benchmarks.report import Report
from benchmarks.workloads import Item, Sizes, Workload
from mvccstore import Durability

_FILES = ("raw", "lmdb", "sqlite", "kine")
"""Contenders that keep a file, which another process may have written."""


def contender(name: str, folder: Path, sizes: Sizes) -> Contender:
    """Open one of those that are compared."""
    match name:
        case "raw":
            return RawLmdb(folder / "raw.lmdb", sizes.range_keys)
        case "kine":
            return KineTable(folder / "kine.sqlite")
        case "memory":
            return OurStore(name, None, Durability.OS)
        case _:
            return OurStore(name, folder / f"ours.{name}", Durability.OS)


def load(found: Contender, workload: Workload) -> int:
    """Write every key, then every key again in another order; return the revision between, if it has one."""
    found.load(workload.shuffled("load", workload.sizes.keys))
    between = found.store.revision if isinstance(found, OurStore) else 0
    found.load(workload.shuffled("overwrite", workload.sizes.keys))
    return between


def build(name: str, folder: Path, workload: Workload) -> int:
    """Make the file of one contender."""
    with closing(contender(name, folder, workload.sizes)) as found:
        return load(found, workload)


class KvBench:
    """All contenders, loaded with the same keys, each of which was overwritten once."""

    def __init__(self, folder: Path, workload: Workload, report: Report) -> None:
        self._workload = workload
        self._sizes = workload.sizes
        self._report = report
        self._raw, self._ours, self._sqlite, self._kine, self._memory = (
            contender(name, folder, self._sizes) for name in (*_FILES, "memory")
        )
        self._all = [self._raw, self._ours, self._memory, self._sqlite, self._kine]

    def run(self, old_revision: int) -> None:
        """Measure everything."""
        load(self._memory, self._workload)
        self._verify()
        self._gets()
        self._puts()
        self._batches()
        self._ranges(old_revision)
        self._new_keys()
        self._verify()
        for one in self._all:
            one.close()

    def _verify(self) -> None:
        bounds = self._workload.ranges("verify", 1)[0]
        expected = self._raw.dump(bounds)
        assert len(expected) >= self._sizes.range_keys
        for one in self._all:
            assert one.dump(bounds) == expected, f"{one.name} did other work than raw lmdb"

    def _race(self, work: str, contenders: dict[str, Work], operations: int) -> dict[str, Series]:
        """Time one kind of work and keep its rows."""
        found = race(contenders, operations, self._sizes.rounds)
        raw = found.get(self._raw.name)
        self._report.add(*(series.row(name, work, raw) for name, series in found.items()))
        return found

    def _time_singly(self, work: str, series: Series, name: str, runs: list[Callable[[], object]]) -> None:
        series.latencies = latencies(runs)
        row = series.row(name, work)
        self._report.rows[name][work]["us_p99"] = row["us_p99"]

    def _gets(self) -> None:
        keys = [self._workload.picks(f"get/{i}", self._sizes.gets) for i in range(self._sizes.rounds + 1)]

        def work(one: Contender) -> Work:
            return lambda number: partial(one.get_each, keys[number])

        found = self._race("get", {one.name: work(one) for one in self._all}, self._sizes.gets)
        self._report.figures["get_vs_lmdb"] = ratio(found[self._ours.name], found[self._raw.name])
        for one in self._all:
            singles = [partial(one.get_each, [key]) for key in self._workload.picks("get/p99", self._sizes.latencies)]
            self._time_singly("get", found[one.name], one.name, [*singles])

    def _puts(self) -> None:
        items = [self._workload.overwrites(f"put/{i}", self._sizes.puts) for i in range(self._sizes.rounds + 1)]

        def work(one: Contender) -> Work:
            return lambda number: partial(one.put_each, items[number])

        found = self._race("put over", {one.name: work(one) for one in self._all}, self._sizes.puts)
        ours = found[self._ours.name]
        self._report.figures["put_vs_lmdb"] = ratio(ours, found[self._raw.name])
        self._report.figures["put_vs_sqlite"] = ratio(ours, found[self._kine.name])
        for one in self._all:
            more = self._workload.overwrites("put/p99", self._sizes.latencies)
            singles = [partial(one.put_each, [item]) for item in more]
            self._time_singly("put over", found[one.name], one.name, [*singles])

    def _batches(self) -> None:
        count = self._sizes.batches
        batches = [self._workload.batches(f"batch/{i}", count) for i in range(self._sizes.rounds + 1)]

        def work(one: Contender) -> Work:
            return lambda number: partial(one.put_batches, batches[number])

        def blocks(one: OurStore) -> Work:
            return lambda number: partial(one.put_blocks, batches[number])

        contenders = {one.name: work(one) for one in self._all}
        for one in self._all:
            if isinstance(one, OurStore):
                contenders[f"{one.name}, begin()"] = blocks(one)
        found = self._race("put, 100 a commit", contenders, count * self._sizes.batch_keys)
        self._report.figures["put_batch_vs_lmdb"] = ratio(found[self._ours.name], found[self._raw.name])

    def _ranges(self, old_revision: int) -> None:
        count = self._sizes.ranges
        ranges = [self._workload.ranges(f"range/{i}", count) for i in range(self._sizes.rounds + 1)]
        expected = count * self._sizes.range_keys

        def work(one: Contender) -> Work:
            def prepare(number: int) -> Callable[[], None]:
                def run() -> None:
                    assert one.range_each(ranges[number]) == expected

                return run

            return prepare

        ours_is = self._ours
        assert isinstance(ours_is, OurStore)

        def old(number: int) -> Callable[[], None]:
            def run() -> None:
                assert ours_is.range_each_at(ranges[number], old_revision) == expected

            return run

        old_name = f"{self._ours.name}, old revision"
        contenders = {one.name: work(one) for one in self._all} | {old_name: old}
        found = self._race("range, a key", contenders, expected)
        ours = found[self._ours.name]
        self._report.figures["range_vs_lmdb"] = ratio(ours, found[self._raw.name])
        self._report.figures["range_vs_sqlite"] = ratio(ours, found[self._kine.name])
        self._report.figures["range_old_vs_new"] = ratio(found[old_name], ours)

    def _new_keys(self) -> None:
        items = self._workload.new(self._sizes.rounds + 1, self._sizes.puts)

        def work(one: Contender) -> Work:
            return lambda number: partial(one.put_each, items[number])

        self._race("put new", {one.name: work(one) for one in self._all}, len(items[0]))


def builders(folder: Path, workload: Workload) -> dict[str, Callable[[], int]]:
    """Return what makes the files that `bench_kv` needs; each may run in a process of its own."""
    return {name: partial(build, name, folder, workload) for name in _FILES}


def bench_kv(folder: Path, workload: Workload, report: Report, built: dict[str, int]) -> None:
    """Measure get, put and range on all engines."""
    KvBench(folder, workload, report).run(built["lmdb"])


def bench_fsync(folder: Path, workload: Workload, report: Report) -> None:
    """Measure puts that are each fsynced: one thread after the other, and many at once."""
    sizes = workload.sizes
    ours = OurStore("lmdb", folder / "fsync.mvcc", Durability.FSYNC)
    ours.load(workload.shuffled("fsync", min(sizes.fsync_keys, sizes.keys)))
    tasks_path = folder / "fsync-tasks.mvcc"
    with closing(OurStore("lmdb", tasks_path, Durability.FSYNC)) as same:
        same.load(workload.shuffled("fsync", min(sizes.fsync_keys, sizes.keys)))
    alone, together, by_tasks = Series(), Series(), Series()
    for number in range(sizes.fsync_rounds + 1):
        one = [workload.overwrites(f"fsync/{number}", sizes.fsync_puts)]
        many = [
            workload.overwrites(f"fsync/{number}/{thread}", sizes.fsync_puts_each)
            for thread in range(sizes.fsync_threads)
        ]
        for series, shares in ((alone, one), (together, many), (by_tasks, many)):
            if series is by_tasks:
                seconds = asyncio.run(put_by_tasks(tasks_path, shares))
            else:
                seconds = put_by_threads(ours.store, shares)
            if number:
                series.seconds.append(seconds / sum(map(len, shares)))
    report.add(
        alone.row(ours.name, "put, fsync, 1 thread"),
        together.row(ours.name, f"put, fsync, {sizes.fsync_threads} threads"),
        by_tasks.row(ours.name, f"put, fsync, {sizes.fsync_threads} tasks"),
    )
    # By pairs of rounds, as what the disk does differs from one moment to the next.
    for name, series in (("put_fsync_64_threads_vs_1", together), ("put_fsync_64_tasks_vs_1", by_tasks)):
        gains = sorted(one / many for one, many in zip(alone.seconds, series.seconds, strict=True))
        report.figures[name] = significant(gains[len(gains) // 2])
    ours.close()


async def put_by_tasks(path: Path, shares: list[list[Item]]) -> float:
    """Have each share put by a task of its own; return the seconds from the first start to the last end."""
    async with mvccstore.aio.open(path, durability=Durability.FSYNC) as store:

        async def put(share: list[Item]) -> None:
            for key, value in share:
                await store.put(key, value)

        begun = time.perf_counter()
        await asyncio.gather(*map(put, shares))
        return time.perf_counter() - begun


def put_by_threads(store: mvccstore.Store, shares: list[list[Item]]) -> float:
    """Have each share put by a thread of its own; return the seconds from the first start to the last end."""
    start = threading.Barrier(len(shares) + 1)
    failures: list[BaseException] = []

    def put(share: list[Item]) -> None:
        start.wait()
        try:
            for key, value in share:
                store.put(key, value)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=put, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begun
    if failures:
        raise failures[0]
    return took
