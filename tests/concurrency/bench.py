"""What the tests of many threads share: starting them, joining them, and being told what happened in them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

from mvccstore import EngineOptions, KeyValue, Store
from mvccstore.engine import open_engine
from tests.crash.fault_engine import FaultEngine

ROOT = Path(__file__).parents[2]
SECONDS = 60
"""Longer than anything here takes; waiting for it means a deadlock."""


SPREAD = [b"filler/%04d" % i for i in range(300)]


def rows_of(kvs: Iterable[Any]) -> dict[bytes, KeyValue]:
    return {kv.key: kv for kv in kvs}


def load(store: Store) -> None:
    """Fill the store so that reads take several pages."""
    with store.begin() as txn:
        for key in SPREAD:
            txn.put(key, bytes(50))


def wrapped(engine: str, path: Path, **hooks: Any) -> FaultEngine:
    """Open an engine with hooks around its calls."""
    options = EngineOptions(None if engine == "memory" else str(path), sync_commits=False)
    return FaultEngine(open_engine(engine, options), **hooks)


class Threads:
    """Threads whose errors are the test's. As a context manager: joins them all."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []

    def start(self, work: Callable[..., object], *args: object) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*args)
            except BaseException as error:  # noqa: BLE001 - told to the test
                self.errors.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        self.threads.append(thread)
        thread.start()
        return thread

    def join(self) -> None:
        for thread in self.threads:
            thread.join(SECONDS)
            assert not thread.is_alive(), f"a thread waits for ever; errors so far: {self.errors}"
        if self.errors:
            raise self.errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, *exc_info: object) -> None:
        if exc_type is None:
            self.join()


class Queued(deque[Any]):
    """The deque of a `CommitQueue`, telling when a turn has been queued."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: SimpleQueue[object] = SimpleQueue()

    def append(self, turn: object) -> None:
        super().append(turn)
        self.seen.put(turn)

    def wait(self, count: int) -> None:
        """Return when so many more turns have been queued."""
        for _ in range(count):
            self.seen.get(timeout=SECONDS)


def watch_queue(store: Store) -> Queued:
    """Have the store's queue tell of the writers that wait."""
    queued = Queued()
    store._committer.queue._waiting = queued
    return queued


def run_program(program: str, *arguments: object) -> str:
    """Run a Python program in a process of its own; its asserts are ours."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout
