"""Timing, and what is made of the times.

Contenders take turns, round by round, so that whatever else the machine does hits all of them. A ratio
compares the first quartiles of both. Not the medians: on a busy machine the longer rounds are the ones that
are interrupted, so the slower contender would look slower than it is. Not the minima: LMDB's raw puts have a
few lucky rounds whose free pages lie side by side, at two thirds of the usual time. On a quiet machine all
three agree. Percentiles are of single operations, timed apart from the rounds.
"""

from __future__ import annotations

import gc
import os
import platform
import sqlite3
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import lmdb

import mvccstore

Work = Callable[[int], Callable[[], object]]
"""Given the number of a round, prepares it, and returns what is to be timed."""


class Row(TypedDict, total=False):
    """One measurement, as it goes into the JSON."""

    engine: str
    work: str
    us_min: float
    us_quartile: float
    us_median: float
    us_p99: float
    per_s: float
    vs_raw: float
    us_cpu: float
    """Of the server, for a call."""
    us_client: float
    """Of the client that asks it."""


@dataclass(slots=True)
class Series:
    """The rounds of one contender."""

    seconds: list[float] = field(default_factory=list)
    """For one operation, by round."""
    latencies: list[float] = field(default_factory=list)
    """Of single operations."""

    @property
    def typical(self) -> float:
        """Seconds for one operation in the round that is slower than a quarter of them: what ratios compare."""
        return percentile(self.seconds, 0.25)

    @property
    def median(self) -> float:
        """Seconds for one operation in the middle round."""
        return statistics.median(self.seconds)

    def row(self, engine: str, work: str, raw: Series | None = None) -> Row:
        """Return the measurement as numbers to read."""
        row: Row = {
            "engine": engine,
            "work": work,
            "us_min": micros(min(self.seconds)),
            "us_quartile": micros(self.typical),
            "us_median": micros(self.median),
            "per_s": float(round(1 / self.typical)),
        }
        if self.latencies:
            row["us_p99"] = micros(percentile(self.latencies, 0.99))
        if raw is not None:
            row["vs_raw"] = significant(raw.typical / self.typical)
        return row


def race(contenders: dict[str, Work], operations: int, rounds: int) -> dict[str, Series]:
    """Time contenders in turns: one round each to warm up, then `rounds` that count.

    Args:
        contenders: By name, what prepares their rounds.
        operations: In one round; times are divided by it.
        rounds: That count.
    """
    found = {name: Series() for name in contenders}
    # Garbage collection stays on, as in a user's program, but what exists before, mostly the benchmark's
    # own data, is kept out of it.
    gc.collect()
    gc.freeze()
    try:
        for number in range(rounds + 1):
            for name, prepare in contenders.items():
                run = prepare(number)
                begun = time.perf_counter()
                run()
                took = time.perf_counter() - begun
                if number:
                    found[name].seconds.append(took / operations)
    finally:
        gc.unfreeze()
    return found


def latencies(runs: Sequence[Callable[[], object]]) -> list[float]:
    """Time operations one by one."""
    clock, found = time.perf_counter, []
    for run in runs:
        begun = clock()
        run()
        found.append(clock() - begun)
    return found


def ratio(ours: Series, theirs: Series) -> float:
    """Return our rate divided by theirs."""
    return significant(theirs.typical / ours.typical)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values are at or below."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def micros(seconds: float) -> float:
    """Return microseconds, rounded to what a clock can tell."""
    return significant(seconds * 1e6)


def significant(number: float) -> float:
    """Round to four significant digits."""
    return float(f"{number:.4g}")


def fsync_us(folder: Path, repeats: int = 50) -> float:
    """Measure what one page written to the middle of a file and synced takes, as the median."""
    path = folder / "fsync.probe"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    page = b"\x5a" * 4096
    try:
        for number in range(64):
            os.pwrite(fd, page, number * 4096)
        os.fsync(fd)
        found = []
        for number in range(repeats):
            begun = time.perf_counter()
            os.pwrite(fd, page, number % 64 * 4096)
            os.fdatasync(fd)
            found.append(time.perf_counter() - begun)
    finally:
        os.close(fd)
        path.unlink()
    return micros(statistics.median(found))


def filesystem(folder: Path) -> str:
    """Return the type of the file system a folder is on, as far as the system tells."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return "unknown"
    best = ("", "unknown")
    resolved = folder.resolve()
    for line in mounts:
        _, point, kind, *_ = line.split(" ")
        if len(point) >= len(best[0]) and resolved.is_relative_to(point):
            best = point, kind
    return best[1]


def machine(folder: Path) -> dict[str, object]:
    """Return what the numbers depend on."""
    return {
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "filesystem": filesystem(folder),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {
            "mvccstore": mvccstore.__version__,
            "py-lmdb": lmdb.__version__,
            "lmdb": ".".join(map(str, lmdb.version())),
            "sqlite": sqlite3.sqlite_version,
        },
        "durability": "os, but for put_fsync_*",
        "fsync_us": fsync_us(folder),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
