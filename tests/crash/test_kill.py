"""A killed process loses nothing that it acknowledged, leaves no half of anything, and no lock.

What a power cut takes is not tested here: the page cache survives the process.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mvccstore
from mvccstore import KeyRange, LockedError
from tests import journaled
from tests.crash.load_worker import WRITERS, group, unpacked
from tests.guarantees import Look, Write, atomic, current, kept, unique

ROOT = Path(__file__).parents[2]
SECONDS = 120
ALL = KeyRange.all()
ENGINES = ("lmdb", "sqlite")

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory in memory where there is one: the process dies here, not the disk."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield made
    shutil.rmtree(made)


def start(module: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("engine", [*ENGINES, journaled.NAME])
@pytest.mark.parametrize(("durability", "seed", "stride"), [("os", 1, 1), ("fsync", 2, 3)])
def test_process_killed_at_any_engine_call_leaves_the_state_after_a_step(
    directory: Path, engine: str, durability: str, seed: int, stride: int
) -> None:
    process = start("tests.crash.killer", directory, engine, durability, seed, 20, 1, stride)
    out, err = process.communicate(timeout=SECONDS)
    *faults, last = out.decode().splitlines() or [err.decode()[-2_000:]]
    assert process.returncode == 0, err.decode()[-2_000:]
    assert faults == []
    assert int(last.split()[3]) > 40


@pytest.mark.parametrize("seed", [1, 2])
def test_process_killed_anywhere_in_a_journal_leaves_the_state_after_a_step(directory: Path, seed: int) -> None:
    process = start("tests.crash.journal_killer", directory, seed, 40, 3)
    out, err = process.communicate(timeout=SECONDS)
    *faults, last = out.decode().splitlines() or [err.decode()[-2_000:]]
    assert process.returncode == 0, err.decode()[-2_000:]
    assert faults == []
    assert int(last.split()[3]) > 100


def kill_under_load(path: Path, engine: str, durability: str, seed: int, after: int) -> list[Write]:
    """Kill a loaded process when it has acknowledged so many writes; return all that it acknowledged."""
    process = start("tests.crash.load_worker", path, engine, durability, seed)
    assert process.stdout is not None
    assert process.stderr is not None
    lines = []
    try:
        while len(lines) <= after:
            line = process.stdout.readline()
            assert line, process.stderr.read().decode()[-2_000:]
            lines.append(line)
    finally:
        process.kill()
    lines += process.stdout.readlines()
    process.wait(SECONDS)
    process.stdout.close()
    process.stderr.close()
    if not lines[-1].endswith(b"\n"):
        lines.pop()
    return list(map(unpacked, lines))


def faults_of(path: Path, writes: list[Write]) -> list[str]:
    """Reopen what a killed process left; return what is wrong with it."""
    groups = [group(writer) for writer, kind in enumerate(WRITERS) if kind in {"txns", "blocks"}]
    found: list[str] = []
    with mvccstore.open(path, durability="os") as store:
        found += store.check()
        revision = store.revision
        rows = {kv.key: kv for kv in store.scan(ALL)}
        found += unique(writes)
        history = list(store.history(ALL))
        found += kept(writes, history, store.compact_revision)
        found += current(writes, rows, history, store.compact_revision)
        floor = max(store.compact_revision, 1)
        looks = []
        for at in range(floor, revision + 1):
            view = {kv.key: kv for kv in store.scan(KeyRange.prefix(b"group/"), revision=at)}
            looks.append(Look(0, at, at, view, at))
        found += atomic(looks, groups)
        if revision < max((write.revision for write in writes), default=1):
            found.append(f"the store is at {revision}")
        store.reclaim()
        if store.stats().reclaimed_revision != store.compact_revision:
            found.append("reclaiming did not finish")
        if {kv.key: kv for kv in store.scan(ALL)} != rows:
            found.append("reclaiming changed what is seen")
        if store.put(b"next") != revision + 1:
            found.append("the next revision is not the next")
        found += store.check()
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("durability", ["os", "fsync"])
@pytest.mark.parametrize("seed", [1, 2])
def test_process_killed_under_load_loses_nothing_acknowledged(
    directory: Path, engine: str, durability: str, seed: int
) -> None:
    rng = random.Random(seed)
    path = directory / "store"
    written: list[Write] = []
    # Killed over and over, on the same file: what recovery leaves must be as good as new.
    for life in range(3):
        writes = kill_under_load(path, engine, durability, seed * 10 + life, rng.randrange(20, 400))
        opened, *writes = writes
        assert opened.revision >= max((write.revision for write in written), default=1)
        assert all(write.revision > opened.revision for write in writes)
        assert faults_of(path, writes) == []
        written += writes


@pytest.mark.parametrize("engine", ENGINES)
def test_lock_of_a_killed_process_is_free_and_that_of_a_living_one_names_it(directory: Path, engine: str) -> None:
    path = directory / "store"
    process = start("tests.crash.load_worker", path, engine, "os", 1)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline()
        with pytest.raises(LockedError) as caught:
            mvccstore.open(path)
        assert f"process {process.pid} " in caught.value.holder
        assert caught.value.retryable
    finally:
        process.kill()
        process.wait(SECONDS)
        process.stdout.close()
        process.stderr.close()
    with mvccstore.open(path) as store:
        assert store.check() == []


@pytest.mark.parametrize("engine", ENGINES)
def test_reader_beside_a_killed_writer_reads_on(directory: Path, engine: str) -> None:
    path = directory / "store"
    process = start("tests.crash.load_worker", path, engine, "os", 1)
    assert process.stdout is not None
    assert process.stderr is not None
    reader: mvccstore.Store | None = None
    try:
        for _ in range(50):
            assert process.stdout.readline()
        reader = mvccstore.open(path, read_only=True)
        before = reader.revision
        assert before > 1
    finally:
        process.kill()
        process.wait(SECONDS)
        process.stdout.close()
        process.stderr.close()
    with reader:
        assert reader.revision >= before
        rows = list(reader.scan(ALL))
        assert rows
        assert reader.check() == []
