"""Shared by all tests: stores that are checked when the test ends, and hypothesis profiles."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

import mvccstore
from mvccstore import codec
from tests.journaled import have_journals
from tests.oracle.choice import begin_building, describe_choice, end_building, find_oracle

_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
# Without shrinking, which could take longer than all the rest; "nightly" does it.
settings.register_profile("dev", max_examples=50, phases=[Phase.explicit, Phase.generate], **_COMMON)
settings.register_profile("ci", max_examples=100, **_COMMON)
settings.register_profile("nightly", max_examples=2_000, **{**_COMMON, "derandomize": False, "print_blob": True})
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


# A shell ignores Ctrl-C for what it runs in the background, and whatever that starts ignores it, too: tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let every test that is on LMDB be on LMDB behind a journal."""
    parser.addoption("--journal", action="store_true", help="have each store on LMDB keep a journal")


def pytest_configure(config: pytest.Config) -> None:
    """Heed it."""
    if config.getoption("--journal"):
        have_journals()


def pytest_report_header() -> str:
    """Say which etcd the tests will compare with."""
    return f"oracle: {describe_choice()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a copy with compiled modules (`make compiled`), leave out what is about Python alone, and say why."""
    if not str(codec.__file__).endswith(".py"):
        for item in items:
            marker = item.get_closest_marker("pure")
            if marker is not None:
                item.add_marker(pytest.mark.skip(reason=f"compiled: {marker.args[0]}"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to build etcd while the tests that do without it run."""
    if not session.config.option.collectonly and any(item.get_closest_marker("etcd") for item in session.items):
        begin_building()


def pytest_sessionfinish() -> None:
    """Leave nothing running."""
    end_building()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which etcd it was in the end: one that cannot be built is replaced by an older one; and what soaks have done."""
    if find_oracle.cache_info().currsize:
        terminalreporter.write_line(f"oracle: {find_oracle()}")
    lines = list(_soaked(terminalreporter))
    for line in lines:
        terminalreporter.write_line(line)
    if kept := os.environ.get("SOAK_SUMMARIES"):  # by `make soak`, which has several runs
        Path(kept).parent.mkdir(exist_ok=True)
        with Path(kept).open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


def _soaked(terminalreporter: pytest.TerminalReporter) -> Iterator[str]:
    """Make a line for each soak: how it ended, how long it took, and what it has said itself."""
    counts: Counter[str] = Counter()
    seconds = 0.0
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        if report.when == "call" or report.failed:
            counts[report.outcome] += 1
            seconds += report.duration
            if "soak" in report.keywords:
                said = "; ".join(str(value) for name, value in report.user_properties if name == "soak")
                yield f"soak {report.outcome} in {report.duration:.0f} s: {report.nodeid.rpartition('::')[2]}: {said or 'done'}"
    if os.environ.get("HYPOTHESIS_PROFILE") == "nightly":
        counted = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
        examples = settings.get_profile("nightly").max_examples
        yield f"soak, random tests, up to {examples:,} examples each: {counted} in {seconds:.0f} s"


@pytest.fixture
def summarize(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say in a line what a soak has done, how much of it, and how much memory there was first and last."""
    return lambda line: record_property("soak", line)


ENGINES = ("lmdb", "memory", "sqlite")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The name of each built-in engine in turn."""
    name: str = request.param
    return name


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., mvccstore.Store]]:
    """Open stores in the test's folder; those still open at the end are checked and closed."""
    opened: list[mvccstore.Store] = []

    def open_one(name: str = "store.mvcc", **options: Any) -> mvccstore.Store:
        path = None if options.get("engine") == "memory" else tmp_path / name
        # Durability is what the crash tests are about; elsewhere it is only slow.
        options.setdefault("durability", "os")
        store = mvccstore.open(path, **options)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        try:
            assert store.check() == []
        except mvccstore.ClosedError:
            continue
        finally:
            store.close()


@pytest.fixture
def store(open_store: Callable[..., mvccstore.Store], engine: str) -> mvccstore.Store:
    """An empty store on each engine in turn."""
    return open_store(engine=engine)
