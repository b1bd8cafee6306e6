"""What a run has found, and how it is shown: as one JSON object, as a table, and as the README's tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import Row


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be."""

    limit: float | None
    """None if none was set."""
    meaning: str
    is_ceiling: bool = False

    def is_met(self, value: float) -> bool:
        """Say whether a figure is good enough."""
        return self.limit is None or (value <= self.limit if self.is_ceiling else value >= self.limit)

    def __str__(self) -> str:
        return "" if self.limit is None else f"{'≤' if self.is_ceiling else '≥'} {self.limit:,g}"


CORE = {
    "get_vs_lmdb": Target(0.40, "get, x raw py-lmdb"),
    "put_vs_lmdb": Target(0.35, "put over a key, one commit each, x raw py-lmdb"),
    "put_batch_vs_lmdb": Target(0.35, "put, 100 a txn, x raw py-lmdb"),
    "put_fsync_64_threads_vs_1": Target(5, "put, fsync, 64 threads x one"),
    "put_fsync_64_tasks_vs_1": Target(8, "put, fsync, 64 asyncio tasks x one thread"),
    "range_vs_lmdb": Target(0.10, "range of 1,000 keys, newest, x raw cursor scan"),
    "range_old_vs_new": Target(0.6, "range at an old revision, x newest"),
    "put_vs_sqlite": Target(3, "put, x kine's table on SQLite"),
    "range_vs_sqlite": Target(2, "range of 1,000 keys, x kine's table on SQLite"),
    "open_ms_1m": Target(10, "open a store of a million keys, ms", is_ceiling=True),
    "open_python_mb_1m": Target(30, "Python memory of that, MB", is_ceiling=True),
    "hot_key_get_old_ratio": Target(1.5, "get at an old revision, 1 M versions ÷ one", is_ceiling=True),
    "compact_per_s": Target(300_000, "revisions compacted per second"),
    "compact_put_wait_ms": Target(20, "longest wait of a writer meanwhile, ms", is_ceiling=True),
}
WATCH = {
    "put_cost_10k_idle_watchers": Target(1.1, "put with 10,000 watchers on other keys ÷ without", is_ceiling=True),
    "fanout_deliveries_per_s": Target(500_000, "events handed out a second, 1,000 watchers of one prefix"),
    "replay_events_per_s": Target(500_000, "events a second from the log, all keys from revision 1"),
    "watch_latency_us_p50": Target(200, "put to event in another thread, µs, median", is_ceiling=True),
    "watch_latency_us_p99": Target(1_000, "the same, 99th percentile", is_ceiling=True),
}
WIRE = {
    "put_cpu_ratio_1": Target(0.5, "server CPU of a put, 1 client, ÷ etcd's", is_ceiling=True),
    "put_cpu_ratio_64": Target(0.4, "the same, 64 clients", is_ceiling=True),
    "get_cpu_ratio_1": Target(0.5, "server CPU of a get, 1 client, ÷ etcd's", is_ceiling=True),
    "get_cpu_ratio_64": Target(0.3, "the same, 64 clients", is_ceiling=True),
    "put_throughput_ratio_64": Target(2, "puts a second, 64 clients, ÷ etcd's"),
    "get_throughput_ratio_64": Target(2, "gets a second, 64 clients, ÷ etcd's"),
    "put_throughput_ratio_1000": Target(2, "puts a second, 1,000 clients, ÷ etcd's"),
    "get_throughput_ratio_1000": Target(2, "gets a second, 1,000 clients, ÷ etcd's"),
    "put_p50_ratio_1": Target(1, "median latency of a put, 1 client, ÷ etcd's", is_ceiling=True),
    "range1000_throughput_ratio": Target(None, "ranges of 1,000 keys a second, 4 clients, ÷ etcd's"),
    "watch_fanout_ratio": Target(None, "events delivered a second to 100 watchers, ÷ etcd's"),
    "watch_10k_rss_mb": Target(300, "memory with 1,000 connections and 10,000 watches, MB", is_ceiling=True),
    "start_ms": Target(300, "start to first answer, process included, ms", is_ceiling=True),
}
WIRE |= {
    f"tls_{name}": Target(None, f"over TLS: {target.meaning}", target.is_ceiling)
    for name, target in WIRE.items()
    if name.endswith(("_1", "_64", "_1000")) or name.startswith("range")
}
TESTING = {
    "fixture_ms_p50": Target(10, "an etcd for a test, to its first answer, ms, median", is_ceiling=True),
    "fixture_ms_p99": Target(None, "the same, 99th percentile", is_ceiling=True),
    "reset_ms_p50": Target(None, "reset after 1,000 puts, ms, median", is_ceiling=True),
    "server_kb": Target(None, "memory of each of a thousand servers in a process, KB", is_ceiling=True),
    "vs_real_etcd_start_ratio": Target(None, "start of a real etcd to its first answer ÷ ours"),
}
TARGETS = CORE | WATCH | WIRE | TESTING
"""Figures in the order they are shown; those of DESIGN and a few that belong to them."""


@dataclass(slots=True)
class Report:
    """The figures and rows of one run."""

    figures: dict[str, float] = field(default_factory=dict)
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)
    """The machine, the workload, and how long the run took."""

    def add(self, *rows: Row) -> None:
        """Keep measurements."""
        for row in rows:
            self.rows.setdefault(row["engine"], {})[row["work"]] = row

    def as_dict(self) -> dict[str, Any]:
        """Return everything as one object: the figures on top, the rest under `rows` and other names."""
        figures = {name: self.figures[name] for name in TARGETS if name in self.figures}
        return {**figures, **self.facts, "rows": self.rows}

    def as_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"


def shown(value: float) -> str:
    """Return a figure as it is read: whole from ten thousand on."""
    return f"{value:,.0f}" if value >= 10_000 else f"{value:,g}"


def figure_rows(run: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Return the table of figures: name, meaning, value, target, whether it is met."""
    for name, target in TARGETS.items():
        if name in run:
            value = run[name]
            met = "" if target.limit is None else "yes" if target.is_met(value) else "NO"
            yield name, target.meaning, shown(value), str(target), met


def engine_table(run: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the table of measurements, heads and rows, without the columns that no row has."""
    rows: list[Row] = [row for by_work in run["rows"].values() for row in by_work.values()]
    order = {row["work"]: None for row in rows}
    columns = {name: head for name, head in COLUMNS.items() if name in ALWAYS or any(name in row for row in rows)}
    table = [
        (work, row["engine"], *(_cell(name, row.get(name)) for name in columns))
        for work in order
        for row in rows
        if row["work"] == work
    ]
    return ("work", "engine", *columns.values()), table


def _cell(name: str, value: object) -> str:
    if not isinstance(value, int | float):
        return ""
    return f"{value:g}" if name == "vs_raw" else f"{value:,.0f}" if name == "per_s" else f"{value:,g}"


FIGURE_HEADS = ("figure", "what", "value", "target", "met")
COLUMNS = {
    "us_min": "µs min",
    "us_quartile": "µs quartile",
    "us_median": "µs median",
    "us_p99": "µs p99",
    "per_s": "per s",
    "vs_raw": "x raw",
    "us_cpu": "µs CPU",
    "us_client": "µs CPU of the client",
}
ALWAYS = frozenset(COLUMNS) - {"us_cpu", "us_client"}


def tables(run: dict[str, Any]) -> tuple[tuple[tuple[str, ...], list[tuple[str, ...]]], ...]:
    """Return the two tables, each as its heads and rows: figures, measurements."""
    return (FIGURE_HEADS, list(figure_rows(run))), engine_table(run)


def text(run: dict[str, Any]) -> str:
    """Return a run as tables for a terminal."""
    return "\n\n".join(_aligned(heads, rows) for heads, rows in reversed(tables(run)))


def markdown(run: dict[str, Any]) -> str:
    """Return a run as Markdown tables."""
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = f"{machine['cpus']} x {machine['cpu']}, {machine['kernel']}, {machine['filesystem']}, {machine['python']}"
    compiled = "; hot modules compiled" if machine.get("is_compiled") else ""
    lines = [f"{where}; {versions}{compiled}; one fsync takes {machine['fsync_us']:g} µs.", ""]
    for heads, rows in tables(run):
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def _aligned(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
