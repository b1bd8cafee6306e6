"""The command: `python -m benchmarks core|watch|wire|testing [--json]`."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks import bench_compact, bench_kv, bench_size, bench_testing, bench_watch, bench_wire
from benchmarks.harness import filesystem, machine
from benchmarks.report import Report, markdown, text
from benchmarks.wire_servers import ROOT
from benchmarks.workloads import FULL, QUICK, Workload
from tools.compiled import CompileError, compiled

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE / "README.md"
MARKS = ("<!-- results/{}.json -->\n", "<!-- end -->")
_BEGUN = time.perf_counter()
PARTS = {
    "core": ("fsync", "kv", "compact", "open", "hot"),
    "watch": bench_watch.PARTS,
    "wire": bench_wire.PARTS,
    "testing": bench_testing.PARTS,
}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says."""
    grammar = parser()
    options = grammar.parse_args(arguments)
    parts = options.only or list(PARTS[options.suite])
    if not set(parts) <= set(PARTS[options.suite]):
        grammar.error(f"the parts of {options.suite} are {', '.join(PARTS[options.suite])}")
    sizes = QUICK if options.quick else FULL
    if options.keys is not None:
        sizes = sizes.scaled(options.keys)
    workload = Workload(sizes, options.seed)
    suites: dict[str, Callable[..., Report]] = {
        "core": core,
        "watch": watch,
        "wire": partial(wire, is_pure=options.pure),
        "testing": testing,
    }
    run = suites[options.suite]
    report = run(workload, parts, options.dir, options.etcd)
    report.facts["workload"] = {
        "suite": options.suite,
        "seed": options.seed,
        "quick": options.quick,
        "keys": sizes.keys,
    }
    if options.save is not None:
        save(report, options.save or options.suite)
    print(report.as_json() if options.json else text(report.as_dict()))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    found = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    found.add_argument("suite", choices=list(PARTS))
    found.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    found.add_argument("--keys", type=_key_count, help=f"keys of most stores (default {FULL.keys:,})")
    every = sorted({part for parts in PARTS.values() for part in parts})
    found.add_argument("--only", choices=every, action="append", help="run this part only; may be repeated")
    found.add_argument("--seed", type=int, default=7)
    found.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs, not how fast")
    found.add_argument("--save", nargs="?", const="", metavar="NAME", help="write results/NAME.json, too")
    found.add_argument("--dir", type=Path, help="a folder on the disk to measure (default: for temporary files)")
    found.add_argument(
        "--etcd", metavar="PATH", help="the etcd that `wire` and `testing` compare with (default: see README)"
    )
    found.add_argument("--pure", action="store_true", help="have `wire` serve Python alone, nothing of it compiled")
    return found


def _key_count(given: str) -> int:
    count = int(given)
    if count < 100:
        msg = "at least 100"
        raise argparse.ArgumentTypeError(msg)
    return count


def core(workload: Workload, parts: list[str], folder: Path | None, _etcd: str | None) -> Report:
    """Run the parts of the core suite in a folder that is gone afterwards."""
    begun = time.perf_counter()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="mvccstore-bench-", dir=folder) as name:
        here = Path(name)
        report.facts["machine"] = machine(here)
        if "fsync" in parts:  # first, while the disk has nothing else to write
            if filesystem(here) == "tmpfs":
                _say("warning: this is tmpfs, where fsync does nothing; choose a disk with --dir")
            _say("fsync: one writer and many")
            bench_kv.bench_fsync(here, workload, report)
        _run_built([part for part in parts if part != "fsync"], here, workload, report)
    report.facts["seconds"] = round(time.perf_counter() - begun, 1)
    return report


def _by_parts(
    parts: list[str], folder: Path | None, bench: Callable[[Path, Report, str], object], **facts: object
) -> Report:
    """Run the parts of a suite one after the other in a folder that is gone afterwards."""
    begun = time.perf_counter()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="mvccstore-bench-", dir=folder) as name:
        here = Path(name)
        report.facts["machine"] = machine(here) | facts
        if facts and filesystem(here) == "tmpfs":
            _say("warning: this is tmpfs, where fsync does nothing; choose a disk with --dir")
        for part in parts:
            _say(f"{part}: measuring")
            bench(here, report, part)
    report.facts["seconds"] = round(time.perf_counter() - begun, 1)
    return report


def watch(workload: Workload, parts: list[str], folder: Path | None, _etcd: str | None) -> Report:
    """Run the parts of the watch suite."""
    return _by_parts(parts, folder, lambda here, report, part: bench_watch.bench_watch(here, workload, report, part))


def wire(
    workload: Workload, parts: list[str], folder: Path | None, etcd: str | None, *, is_pure: bool = False
) -> Report:
    """Run the parts of the wire suite, on the package as a wheel has it, with what is hot compiled, if that can be."""
    tree = ROOT
    if not is_pure:
        _say("compiling what is hot, unless that is done")
        try:
            tree = compiled()
        except CompileError as error:
            _say(f"it cannot be compiled: {error}")
    return _by_parts(
        parts,
        folder,
        lambda here, report, part: bench_wire.bench_wire(here / part, workload, report, [part], etcd, tree),
        durability="fsync",
        is_compiled=tree != ROOT,
    )


def testing(workload: Workload, parts: list[str], folder: Path | None, etcd: str | None) -> Report:
    """Run the parts of the testing suite."""
    return _by_parts(
        parts,
        folder,
        lambda here, report, part: bench_testing.bench_testing(here, workload, report, part, etcd),
    )


def _run_built(parts: list[str], folder: Path, workload: Workload, report: Report) -> None:
    """Build the stores that are measured on, two at a time, and when all are there begin to measure."""
    builders: dict[str, Callable[[], int]] = {}
    if "open" in parts:
        builders["open"] = partial(bench_size.build_million, folder / "open.mvcc", workload)
    if "hot" in parts:
        builders["hot"] = partial(bench_size.build_hot, folder / "hot.mvcc", workload)
    if "compact" in parts:
        builders["compact"] = partial(bench_compact.build_history, folder / "compact.mvcc", workload)
    if "kv" in parts:
        builders |= bench_kv.builders(folder, workload)
    if not builders:
        return
    _say(f"building {len(builders)} stores")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=gc.disable) as pool:
        builds = {name: pool.submit(builder) for name, builder in builders.items()}
        built = {name: future.result() for name, future in builds.items()}
    for part in parts:
        _say(f"{part}: measuring")
        match part:
            case "kv":
                bench_kv.bench_kv(folder, workload, report, built)
            case "open":
                bench_size.bench_open(folder / "open.mvcc", workload, report)
            case "hot":
                bench_size.bench_hot(folder / "hot.mvcc", workload, report)
            case "compact":
                bench_compact.bench_compact(folder / "compact.mvcc", workload, report, built["compact"])
            case _:
                raise AssertionError(part)


def save(report: Report, name: str) -> None:
    """Keep a run in results/, and the README's tables if it is a suite's own."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(report.as_json(), encoding="utf-8")
    if name in PARTS:
        README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(readme: str) -> str:
    """Return the README with the tables of each suite's results between their marks."""
    for suite in PARTS:
        run = json.loads((RESULTS / f"{suite}.json").read_text(encoding="utf-8"))
        begin, end = MARKS[0].format(suite), MARKS[1]
        tables = begin + markdown(run) + end
        before, mark, rest = readme.partition(begin)
        assert mark, suite
        readme = before + tables + rest.partition(end)[2]
    return readme


def _say(line: str) -> None:
    print(f"{time.perf_counter() - _BEGUN:5.1f} s  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
