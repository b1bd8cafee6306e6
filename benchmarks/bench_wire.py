"""Our server against a real etcd: the same calls, the same client, the same disk, in turn.

Rounds are short and the two servers take them one after the other, so whatever else the machine does hits both. A
figure is the median over the rounds of the ratio within each. CPU is the server process's own, of all its threads; it is
what a busy machine changes least.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from benchmarks.harness import Row, micros, percentile, significant
from benchmarks.report import Report
from benchmarks.wire_client import SECONDS_MAX, Clients, Connection, Drive, WireError, data_frame, slices
from benchmarks.wire_servers import (
    RANGE,
    ServerProcess,
    etcd_version,
    find_etcd,
    make_certificate,
    start_etcd,
    start_ours,
)
from benchmarks.workloads import Workload, chunks, key
from mvccstore.server.messages import rpc

PARTS = ("calls", "tls", "fanout", "watches", "start")
PUT, TXN, WATCH = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Txn", "/etcdserverpb.Watch/Watch"
_LOAD_KEYS = 50
"""Puts of a txn that loads: they fit into one frame."""
_ANSWER_BYTES_MIN = 20
_MARKER = b"\xff\xfe fanned out \xfe\xff"


@dataclass(slots=True)
class Measured:
    """The rounds of one server with one kind of work."""

    drives: list[Drive] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Seconds of the server's CPU for a call."""

    def seconds(self) -> list[float]:
        """Seconds for a call, all clients together."""
        return [drive.seconds / drive.calls for drive in self.drives]

    def p50(self) -> list[float]:
        """Median latencies, in seconds."""
        return [drive.p50 for drive in self.drives]

    def row(self, server: str, work: str) -> Row:
        """Return the measurement as numbers to read."""
        seconds = self.seconds()
        row: Row = {
            "engine": server,
            "work": work,
            "us_min": micros(min(seconds)),
            "us_quartile": micros(percentile(seconds, 0.25)),
            "us_median": micros(statistics.median(seconds)),
            "per_s": float(round(1 / statistics.median(seconds))),
            "us_cpu": micros(statistics.median(self.cpu)),
            "us_client": micros(statistics.median(drive.client_seconds / drive.calls for drive in self.drives)),
        }
        latencies = [one for drive in self.drives for one in drive.latencies]
        if latencies:
            row["us_p99"] = micros(percentile(latencies, 0.99))
        return row


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of call, from so many clients."""

    name: str
    path: str
    connections: int
    each: int
    calls: Sequence[bytes]
    answer_bytes_min: int


def bench_wire(
    folder: Path, workload: Workload, report: Report, parts: Sequence[str], etcd: str | None, tree: Path
) -> None:
    """Measure both servers, ours of the package in `tree`, with data below `folder`."""
    binary = find_etcd(etcd)
    name = f"etcd {etcd_version(binary)}"
    report.facts["etcd"] = {"version": name.removeprefix("etcd "), "path": binary.name}
    report.facts["load_average"] = [round(load, 2) for load in os.getloadavg()]
    if "start" in parts:
        _bench_start(folder, workload, report, binary, name, tree)
    if {"calls", "fanout"} & set(parts):
        with start_ours(folder / "ours", tree=tree) as ours, start_etcd(folder / "etcd", binary, name) as theirs:
            servers = (ours, theirs)
            for server in servers:
                _load(server, workload)
            if "calls" in parts:
                _bench_calls(servers, workload, report)
            if "fanout" in parts:
                _bench_fanout(servers, workload, report)
    if "tls" in parts:
        certificate = make_certificate(folder / "certificate")
        with (
            start_ours(folder / "ours-tls", certificate, tree) as ours,
            start_etcd(folder / "etcd-tls", binary, name, certificate) as theirs,
        ):
            for server in (ours, theirs):
                _load(server, workload)
            _bench_calls((ours, theirs), workload, report, over="tls")
    if "watches" in parts:
        with start_ours(folder / "watched", tree=tree) as ours:
            report.figures["watch_10k_rss_mb"] = significant(_watched_mb(ours, workload))


def put_call(name: bytes, value: bytes) -> bytes:
    """Return the DATA frame of a put."""
    return data_frame(rpc.PutRequest(key=name, value=value).SerializeToString())


def get_call(name: bytes, end: bytes = b"") -> bytes:
    """Return the DATA frame of a get, or of a range up to `end`."""
    return data_frame(rpc.RangeRequest(key=name, range_end=end).SerializeToString())


def _load(server: ServerProcess, workload: Workload) -> None:
    calls = []
    for items in chunks(workload.shuffled("load", workload.sizes.keys), _LOAD_KEYS):
        puts = [rpc.RequestOp(request_put=rpc.PutRequest(key=name, value=value)) for name, value in items]
        calls.append(data_frame(rpc.TxnRequest(success=puts).SerializeToString()))
    with Clients(server.port, TXN, 8, 1, _ANSWER_BYTES_MIN, server.tls) as clients:
        clients.drive(calls)


def _works(workload: Workload) -> list[Work]:
    sizes = workload.sizes
    row_bytes = sizes.value_bytes

    def puts(stream: str, count: int) -> list[bytes]:
        return [put_call(*item) for item in workload.overwrites(stream, count * sizes.wire_rounds)]

    def gets(stream: str, count: int) -> list[bytes]:
        return [get_call(name) for name in workload.picks(stream, count * sizes.wire_rounds)]

    ranges = [get_call(*bounds) for bounds in workload.ranges("wire range", sizes.wire_ranges * sizes.wire_rounds)]
    many, thousand = sizes.wire_calls, max(sizes.wire_calls, 2 * sizes.wire_clients)
    connections = sizes.wire_clients // 10
    return [
        Work("put, 1 client", PUT, 1, 1, puts("wire put 1", sizes.wire_calls_1), _ANSWER_BYTES_MIN),
        Work("put, 64 clients on 8 connections", PUT, 8, 8, puts("wire put 64", many), _ANSWER_BYTES_MIN),
        Work(_thousand("put", sizes.wire_clients), PUT, connections, 10, puts("wire put", thousand), _ANSWER_BYTES_MIN),
        Work("get, 1 client", RANGE, 1, 1, gets("wire get 1", sizes.wire_calls_1 * 2), row_bytes),
        Work("get, 64 clients on 8 connections", RANGE, 8, 8, gets("wire get 64", many), row_bytes),
        Work(_thousand("get", sizes.wire_clients), RANGE, connections, 10, gets("wire get", thousand), row_bytes),
        Work(_ranged(workload), RANGE, 4, 1, ranges, row_bytes * sizes.range_keys),
    ]


def _thousand(work: str, clients: int) -> str:
    return f"{work}, {clients:,} clients on {clients // 10} connections"


def _ranged(workload: Workload) -> str:
    return f"range of {workload.sizes.range_keys:,}, 4 clients on 4 connections"


def _bench_calls(servers: Sequence[ServerProcess], workload: Workload, report: Report, over: str = "") -> None:
    """Measure each kind of call; `over` is what the names of rows and figures have in addition."""
    rounds = workload.sizes.wire_rounds
    row, figure = (f"{over.upper()}, ", f"{over}_") if over else ("", "")
    found: dict[str, list[Measured]] = {}
    for work in _works(workload):
        found[work.name] = _in_turn(servers, work, rounds)
        report.add(
            *(one.row(server.name, row + work.name) for server, one in zip(servers, found[work.name], strict=True))
        )
    clients = workload.sizes.wire_clients
    put_1, get_1 = found["put, 1 client"], found["get, 1 client"]
    put_64, get_64 = found["put, 64 clients on 8 connections"], found["get, 64 clients on 8 connections"]
    figures = {
        "put_cpu_ratio_1": _ratio(put_1, lambda one: one.cpu),
        "put_cpu_ratio_64": _ratio(put_64, lambda one: one.cpu),
        "get_cpu_ratio_1": _ratio(get_1, lambda one: one.cpu),
        "get_cpu_ratio_64": _ratio(get_64, lambda one: one.cpu),
        "put_throughput_ratio_64": _rate(put_64),
        "get_throughput_ratio_64": _rate(get_64),
        "put_throughput_ratio_1000": _rate(found[_thousand("put", clients)]),
        "get_throughput_ratio_1000": _rate(found[_thousand("get", clients)]),
        "put_p50_ratio_1": _ratio(put_1, Measured.p50),
        "range1000_throughput_ratio": _rate(found[_ranged(workload)]),
    }
    report.figures |= {figure + name: value for name, value in figures.items()}


def _in_turn(servers: Sequence[ServerProcess], work: Work, rounds: int) -> list[Measured]:
    """Have each server do the work, round by round."""
    found = [Measured() for _ in servers]
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                Clients(one.port, work.path, work.connections, work.each, work.answer_bytes_min, one.tls)
            )
            for one in servers
        ]
        for one in clients:  # connections and tables are there; what is read is in memory
            one.drive(work.calls[: max(64, work.connections * work.each)])
        for calls in slices(work.calls, rounds):
            for server, client, measured in zip(servers, clients, found, strict=True):
                cpu = server.cpu_seconds
                measured.drives.append(client.drive(calls))
                measured.cpu.append((server.cpu_seconds - cpu) / len(calls))
    return found


def _ratio(both: Sequence[Measured], numbers: Callable[[Measured], Sequence[float]]) -> float:
    """Return ours divided by theirs, the median over the rounds."""
    ours, theirs = both
    return significant(statistics.median(a / b for a, b in zip(numbers(ours), numbers(theirs), strict=True)))


def _rate(both: Sequence[Measured]) -> float:
    """Return our calls a second divided by theirs, the median over the rounds."""
    return _ratio(both[::-1], Measured.seconds)


class Crowd:
    """Watchers of one prefix, one on each of its streams, which count what they are told."""

    def __init__(self, port: int, connections: int, each: int, prefix: bytes) -> None:
        create = rpc.WatchCreateRequest(key=prefix, range_end=prefix[:-1] + bytes((prefix[-1] + 1,)))
        call = data_frame(rpc.WatchRequest(create_request=create).SerializeToString(), is_end=False)
        with ExitStack() as stack:
            self._connections = [stack.enter_context(Connection(port, WATCH)) for _ in range(connections)]
            self._stack = stack.pop_all()
        for connection in self._connections:
            connection.count_marker(_MARKER)
            connection.send([call] * each)
        for connection in self._connections:
            while connection.data_bytes < each * _ANSWER_BYTES_MIN:
                connection.receive()
        self.watchers = connections * each

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait(self, events: int) -> None:
        """Return when each watcher has been told of so many events in all."""
        each = self.watchers // len(self._connections)
        for connection in self._connections:
            while connection.marked < events * each:
                connection.receive()


def _bench_fanout(servers: Sequence[ServerProcess], workload: Workload, report: Report) -> None:
    sizes = workload.sizes
    prefix = b"fan/"
    found = [Measured() for _ in servers]
    value = _MARKER.ljust(sizes.value_bytes, b".")
    calls = [put_call(prefix + b"%09d" % number, value) for number in range(sizes.wire_fan_puts)]
    work = f"watch, a delivery to one of {sizes.wire_fan_connections * 10} watchers"
    with ExitStack() as stack:
        pairs = [
            (
                stack.enter_context(Crowd(server.port, sizes.wire_fan_connections, 10, prefix)),
                stack.enter_context(Clients(server.port, PUT, 8, 8, _ANSWER_BYTES_MIN)),
            )
            for server in servers
        ]
        for number in range(sizes.wire_rounds + 1):
            for server, (crowd, clients), measured in zip(servers, pairs, found, strict=True):
                cpu, begun, client_cpu = server.cpu_seconds, time.perf_counter(), time.process_time()
                clients.drive(calls)
                crowd.wait((number + 1) * len(calls))
                deliveries = len(calls) * crowd.watchers
                if number:
                    took, used = time.perf_counter() - begun, time.process_time() - client_cpu
                    measured.drives.append(Drive(deliveries, took, used))
                    measured.cpu.append((server.cpu_seconds - cpu) / deliveries)
    report.add(*(one.row(server.name, work) for server, one in zip(servers, found, strict=True)))
    report.figures["watch_fanout_ratio"] = _rate(found)


def _watched_mb(server: ServerProcess, workload: Workload) -> float:
    """Return the memory of a server with a thousand connections, each with a stream of ten watches."""
    sizes = workload.sizes
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.port, WATCH)) for _ in range(sizes.wire_clients)]
        for number, connection in enumerate(connections):
            for watch in range(10):
                create = rpc.WatchCreateRequest(key=key(10 * number + watch))
                request = rpc.WatchRequest(create_request=create).SerializeToString()
                if watch:
                    connection.send_more(1, request)
                else:
                    connection.send([data_frame(request, is_end=False)])
        give_up = time.monotonic() + SECONDS_MAX
        for connection in connections:
            while connection.data_bytes < 10 * _ANSWER_BYTES_MIN:
                if time.monotonic() > give_up:
                    msg = "watches are not created"
                    raise WireError(msg)
                connection.receive()
        return server.resident_mb


def _bench_start(folder: Path, workload: Workload, report: Report, etcd: Path, name: str, tree: Path) -> None:
    ours: list[float] = []
    theirs: list[float] = []
    with start_ours(folder / "first", tree=tree):
        pass  # makes the bytecode
    for number in range(workload.sizes.opens):
        with start_ours(folder / f"start-{number}", tree=tree) as server:
            ours.append(server.start_seconds)
        if number < 3:
            with start_etcd(folder / f"start-etcd-{number}", etcd, name) as server:
                theirs.append(server.start_seconds)
    for server_name, seconds in (("mvccstore", ours), (name, theirs)):
        report.add(
            {
                "engine": server_name,
                "work": "start, process included, to the first answer",
                "us_min": micros(min(seconds)),
                "us_quartile": micros(percentile(seconds, 0.25)),
                "us_median": micros(statistics.median(seconds)),
                "per_s": float(round(1 / statistics.median(seconds), 2)),
            }
        )
    report.figures["start_ms"] = significant(1_000 * statistics.median(ours))
