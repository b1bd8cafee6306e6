"""The benchmarks run, measure what they say, and do the same work each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mvccstore
from benchmarks.__main__ import README, main, with_tables
from benchmarks.bench_watch import Crowd, Idle
from benchmarks.engines import KineTable, RawLmdb
from benchmarks.harness import Series, filesystem, fsync_us, percentile, race, ratio, significant
from benchmarks.report import CORE, TESTING, WATCH, WIRE, Report, Target, markdown, text
from benchmarks.workloads import FULL, QUICK, Workload, key, new_key
from mvccstore import KeyRange
from tests.oracle.choice import find_oracle

ROOT = Path(__file__).parents[2]
FIGURES = {
    "get_vs_lmdb",
    "put_vs_lmdb",
    "put_batch_vs_lmdb",
    "put_fsync_64_threads_vs_1",
    "put_fsync_64_tasks_vs_1",
    "range_vs_lmdb",
    "range_old_vs_new",
    "put_vs_sqlite",
    "range_vs_sqlite",
    "open_ms_1m",
    "hot_key_get_old_ratio",
    "compact_per_s",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run prints."""
    return _printed("core", tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def watch_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run of the watch suite prints."""
    return _printed("watch", tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def testing_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run of the testing suite prints, without the part that needs a real etcd."""
    return _printed(
        "testing", tmp_path_factory.mktemp("bench"), "--only", "fixture", "--only", "reset", "--only", "many"
    )


COMMAND_SECONDS = 600
"""`wire` may have to compile first: a minute, and more beside the tests that run meanwhile."""


def _printed(suite: str, folder: Path, *more: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        suite,
        "--quick",
        "--json",
        "--seed",
        "3",
        "--dir",
        str(folder),
        *more,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_json_has_every_figure_as_a_positive_number(run: dict[str, Any]) -> None:
    assert set(run) >= FIGURES | {"rows", "machine", "workload", "seconds"}
    for name in CORE:
        assert type(run[name]) is float, name
        assert run[name] > 0, name


def test_json_says_what_the_numbers_depend_on(run: dict[str, Any]) -> None:
    machine = run["machine"]
    assert set(machine) == {"cpu", "cpus", "kernel", "filesystem", "python", "versions", "durability", "fsync_us"}
    assert set(machine["versions"]) == {"mvccstore", "py-lmdb", "lmdb", "sqlite"}
    assert run["workload"] == {"suite": "core", "seed": 3, "quick": True, "keys": QUICK.keys}


def test_rows_hold_the_numbers_behind_the_figures(run: dict[str, Any]) -> None:
    rows = run["rows"]
    engines = {"raw lmdb", "mvccstore on lmdb", "mvccstore on memory", "mvccstore on sqlite", "kine on sqlite"}
    assert engines <= set(rows)
    for engine in engines:
        for work in ("get", "put over", "put, 100 a commit", "range, a key", "put new"):
            row = rows[engine][work]
            assert 0 < row["us_min"] <= row["us_quartile"] <= row["us_median"]
            assert row["vs_raw"] > 0
    ours, raw = rows["mvccstore on lmdb"]["get"], rows["raw lmdb"]["get"]
    assert run["get_vs_lmdb"] == pytest.approx(raw["us_quartile"] / ours["us_quartile"], rel=0.01)
    assert ours["us_p99"] >= ours["us_min"]


def test_tables_show_every_figure(run: dict[str, Any]) -> None:
    for shown in (text(run), markdown(run)):
        assert all(name in shown for name in CORE)
        assert not any(name in shown for name in WATCH)
        assert "kine on sqlite" in shown


def test_watch_json_has_every_figure_as_a_positive_number(watch_run: dict[str, Any]) -> None:
    assert set(watch_run) == set(WATCH) | {"rows", "machine", "workload", "seconds"}
    for name in WATCH:
        assert type(watch_run[name]) is float, name
        assert watch_run[name] > 0, name
    assert watch_run["watch_latency_us_p50"] <= watch_run["watch_latency_us_p99"]
    assert watch_run["workload"] == {"suite": "watch", "seed": 3, "quick": True, "keys": QUICK.keys}


def test_watch_rows_hold_the_numbers_behind_the_figures(watch_run: dict[str, Any]) -> None:
    rows = watch_run["rows"]["mvccstore on lmdb"]
    assert {"put, 50 watchers of other keys", "put, nobody watching"} < set(rows)
    assert watch_run["fanout_deliveries_per_s"] == rows["deliver to 20 watchers, 20 keys a revision"]["per_s"]
    assert watch_run["replay_events_per_s"] == rows["replay, by batches()"]["per_s"]
    assert watch_run["watch_latency_us_p99"] == rows["put to event in another thread"]["us_p99"]
    assert {"deliver to 20 watchers, 1 key a revision", "replay, by iterating"} < set(rows)
    for shown in (text(watch_run), markdown(watch_run)):
        assert all(name in shown for name in WATCH)


def test_testing_json_has_the_figures_that_need_no_etcd(testing_run: dict[str, Any]) -> None:
    assert set(testing_run) == set(TESTING) - {"vs_real_etcd_start_ratio"} | {"rows", "machine", "workload", "seconds"}
    assert 0 < testing_run["fixture_ms_p50"] <= testing_run["fixture_ms_p99"]
    rows = testing_run["rows"]["mvccstore"]
    median = rows["an etcd for a test, to the first answer"]["us_median"]
    assert testing_run["fixture_ms_p50"] == pytest.approx(median / 1_000, rel=0.01)
    assert testing_run["reset_ms_p50"] == pytest.approx(rows["reset after 1,000 puts"]["us_median"] / 1_000, rel=0.01)
    for shown in (text(testing_run), markdown(testing_run)):
        assert all(name in shown for name in TESTING if name in testing_run)


@pytest.mark.etcd
@pytest.mark.slow
def test_wire_json_has_every_figure_as_a_positive_number(tmp_path: Path) -> None:
    found = _printed("wire", tmp_path, "--etcd", str(find_oracle().etcd))
    assert set(found) == set(WIRE) | {"rows", "machine", "etcd", "load_average", "workload", "seconds"}
    for name in WIRE:
        assert type(found[name]) is float, name
        assert found[name] > 0, name
    assert {"mvccstore", f"etcd {found['etcd']['version']}"} == set(found["rows"])
    for shown in (text(found), markdown(found)):
        assert all(name in shown for name in WIRE)


def test_idle_watchers_are_many_and_never_woken(tmp_path: Path) -> None:
    with mvccstore.open(tmp_path / "store.mvcc") as store:
        idle = Idle(store, 100)
        idle.open()
        assert len(store._hub) == 100
        store.put(key(0), b"")
        idle.close()
        assert len(store._hub) == 0


def test_a_crowd_is_handed_every_event_once_each(tmp_path: Path) -> None:
    with mvccstore.open(tmp_path / "store.mvcc") as store:
        crowd = Crowd(store, KeyRange.prefix(b"p"), 10)
        crowd.serve()
        assert crowd.delivered == 0
        store.put(b"p1", b"")
        store.put(b"q1", b"")
        with store.begin() as txn:
            txn.put(b"p2", b"")
            txn.put(b"p3", b"")
        crowd.serve()
        assert crowd.delivered == 30
        crowd.close()


def test_a_part_of_another_suite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["watch", "--only", "kv"])
    assert "the parts of watch are idle, fanout, replay, latency" in capsys.readouterr().err


def test_readme_tables_are_those_of_the_saved_run() -> None:
    readme = README.read_text(encoding="utf-8")
    assert all(f"| {name} |" in readme for name in ("get_vs_lmdb", *WATCH, *TESTING))
    assert with_tables(readme) == readme


def test_workload_follows_from_its_seed() -> None:
    one, same, other = Workload(QUICK, 1), Workload(QUICK, 1), Workload(QUICK, 2)
    assert one.shuffled("load", 100) == same.shuffled("load", 100)
    assert one.overwrites("put", 50) == same.overwrites("put", 50)
    assert one.ranges("range", 50) == same.ranges("range", 50)
    assert one.batches("batch", 3) == same.batches("batch", 3)
    assert one.shuffled("load", 100) != other.shuffled("load", 100)
    assert one.picks("a", 50) != one.picks("b", 50)


def test_workload_is_what_it_says() -> None:
    workload = Workload(QUICK, 1)
    names = [name for name, _ in workload.shuffled("load", 100)]
    assert sorted(names) == [key(i) for i in range(100)] != names
    assert all(len(value) == QUICK.value_bytes for value in workload.values)
    for batch in workload.batches("batch", 5):
        assert len(dict(batch)) == len(batch) == QUICK.batch_keys
    for start, end in workload.ranges("range", 20):
        assert sum(start <= key(i) < end for i in range(QUICK.keys)) == QUICK.range_keys
    new = [name for items in workload.new(3, 10) for name, _ in items]
    assert len(set(new)) == 30
    assert not {key(i) for i in range(QUICK.keys)} & set(new)
    assert key(7) < new_key(7) < key(8)


def test_full_run_has_the_sizes_of_the_targets() -> None:
    assert (FULL.keys, FULL.value_bytes, FULL.range_keys, FULL.batch_keys) == (100_000, 256, 1_000, 100)
    assert (FULL.million, FULL.fsync_threads) == (1_000_000, 64)
    assert (FULL.compact_versions - 1) * FULL.keys >= 500_000
    assert (FULL.idle_watchers, FULL.fan_watchers) == (10_000, 1_000)


def test_kine_table_keeps_every_change_and_shows_the_last(tmp_path: Path) -> None:
    table, raw = KineTable(tmp_path / "kine"), RawLmdb(tmp_path / "raw", 3)
    everything = (key(0), key(9))
    try:
        for engine in (table, raw):
            engine.load([(key(i), b"loaded") for i in range(5)])
            engine.put_each([(key(1), b"put"), (key(7), b"created")])
            engine.put_batches([[(key(1), b"again"), (key(2), b"batch")]])
        assert table.dump(everything) == raw.dump(everything)
        assert dict(table.dump(everything))[key(1)] == b"again"
        assert table.range_each([(key(0), key(3))] * 2) == raw.range_each([(key(0), key(3))] * 2) == 6
    finally:
        table.close()
        raw.close()


def test_race_takes_turns_and_leaves_the_first_round_out() -> None:
    turns: list[tuple[str, int]] = []

    found = race(
        {name: lambda number, name=name: lambda: turns.append((name, number)) for name in "ab"},  # type: ignore[misc]
        operations=10,
        rounds=3,
    )
    assert turns == [(name, number) for number in range(4) for name in "ab"]
    assert [len(series.seconds) for series in found.values()] == [3, 3]


def test_series_compares_first_quartiles() -> None:
    ours, theirs = Series(seconds=[9e-6, 2e-6, 4e-6, 3e-6]), Series(seconds=[1e-6, 1e-6, 1e-6, 5e-6])
    assert (ours.typical, ours.median) == (2e-6, 3.5e-6)
    assert ratio(ours, theirs) == 0.5
    row = ours.row("engine", "work", theirs)
    assert row == {
        "engine": "engine",
        "work": "work",
        "us_min": 2.0,
        "us_quartile": 2.0,
        "us_median": 3.5,
        "per_s": 500_000.0,
        "vs_raw": 0.5,
    }


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.01, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.99, 4), (1.0, 4)]
)
def test_percentile_is_a_value_that_was_measured(share: float, expected: float) -> None:
    assert percentile([4, 2, 3, 1], share) == expected


def test_significant_keeps_four_digits() -> None:
    assert [significant(number) for number in (0.123456, 12345.6, 1.0)] == [0.1235, 12350.0, 1.0]


def test_target_knows_which_way_is_better() -> None:
    floor, ceiling = Target(2, "rate"), Target(2, "time", is_ceiling=True)
    assert [floor.is_met(1.9), floor.is_met(2)] == [False, True]
    assert [ceiling.is_met(2.1), ceiling.is_met(2)] == [False, True]


def test_report_leaves_out_what_was_not_measured() -> None:
    report = Report()
    report.figures["get_vs_lmdb"] = 0.5
    assert report.as_dict() == {"get_vs_lmdb": 0.5, "rows": {}}
    assert "put_vs_lmdb" not in text(report.as_dict())


def test_machine_facts_can_be_measured(tmp_path: Path) -> None:
    assert fsync_us(tmp_path, repeats=3) > 0
    assert list(tmp_path.iterdir()) == []
    assert filesystem(tmp_path)
