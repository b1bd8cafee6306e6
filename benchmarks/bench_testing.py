"""An etcd for a test: how soon it is there, how soon it is empty again, what many cost, beside a real etcd's start."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench_wire import get_call
from benchmarks.harness import micros, percentile, significant
from benchmarks.report import Report
from benchmarks.wire_client import Clients, resident_mb
from benchmarks.wire_servers import OURS, RANGE, etcd_version, find_etcd, start_etcd
from benchmarks.workloads import Workload
from mvccstore.testing.etcd_server import Etcd

PARTS = ("fixture", "reset", "many", "real")
_ANSWER_BYTES_MIN = 1
_RESET_PUTS = 1_000


def bench_testing(folder: Path, workload: Workload, report: Report, part: str, etcd: str | None) -> None:
    """Measure a part."""
    match part:
        case "fixture":
            _bench_fixture(workload, report)
        case "reset":
            _bench_reset(workload, report)
        case "many":
            _bench_many(workload, report)
        case "real":
            _bench_real(folder, workload, report, etcd)
        case _:
            raise AssertionError(part)


def _ask(port: int) -> None:
    """Connect and get a key: when this returns, the server has answered."""
    with Clients(port, RANGE, 1, 1, _ANSWER_BYTES_MIN) as clients:
        clients.drive([get_call(b"k")])


def _bench_fixture(workload: Workload, report: Report) -> None:
    with Etcd() as server:  # imports, tables
        _ask(server.port)
    starts = [_started() for _ in range(workload.sizes.testing_starts)]
    _add(report, "an etcd for a test, to the first answer", starts)
    report.figures["fixture_ms_p50"] = significant(1_000 * statistics.median(starts))
    report.figures["fixture_ms_p99"] = significant(1_000 * percentile(starts, 0.99))


def _started() -> float:
    server = Etcd()
    begun = time.perf_counter()
    server.start()
    try:
        _ask(server.port)
        return time.perf_counter() - begun
    finally:
        server.stop()


def _bench_reset(workload: Workload, report: Report) -> None:
    with Etcd() as server:
        found = []
        for _ in range(workload.sizes.testing_starts):
            for number in range(_RESET_PUTS):
                server.store.put(b"%d" % number, b"value")
            found.append(_timed(server.reset))
    _add(report, f"reset after {_RESET_PUTS:,} puts", found)
    report.figures["reset_ms_p50"] = significant(1_000 * statistics.median(found))


def _bench_many(workload: Workload, report: Report) -> None:
    servers = [Etcd() for _ in range(workload.sizes.testing_servers)]
    with Etcd():
        gc.collect()
        before = resident_mb(os.getpid())
        for server in servers:
            server.start()
        report.figures["server_kb"] = significant(1_000 * (resident_mb(os.getpid()) - before) / len(servers))
        for server in servers:
            server.stop()


def _bench_real(folder: Path, workload: Workload, report: Report, etcd: str | None) -> None:
    binary = find_etcd(etcd)
    name = f"etcd {etcd_version(binary)}"
    ours, theirs = [], []
    for number in range(workload.sizes.testing_real_starts):
        ours.append(_started())
        with start_etcd(folder / f"etcd-{number}", binary, name) as server:
            theirs.append(server.start_seconds)
    _add(report, "started beside it", ours)
    _add(report, "started beside it", theirs, name)
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    report.figures["vs_real_etcd_start_ratio"] = significant(statistics.median(ratios))


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _add(report: Report, work: str, seconds: list[float], engine: str = OURS) -> None:
    report.add(
        {
            "engine": engine,
            "work": work,
            "us_min": micros(min(seconds)),
            "us_quartile": micros(percentile(seconds, 0.25)),
            "us_median": micros(statistics.median(seconds)),
            "us_p99": micros(percentile(seconds, 0.99)),
            "per_s": float(round(1 / statistics.median(seconds), 1)),
        }
    )
