"""Kills children in the middle of what a journal does, and judges what they leave, as `tests.crash.killer` does.

    python -m tests.crash.journal_killer DIRECTORY SEED STEPS STRIDE

Places are before and after each call that changes a file: a record written, in two parts or as a whole, synced, a layer
written to the tables and committed, a journal emptied. Layers are small, so that there is much of that; what the
journal's thread does is done by who writes, so that the places are the same in each run.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mvccstore
from mvccstore import EngineOptions
from mvccstore.engine import journal, journaled
from mvccstore.engine.lmdb_txn import LmdbWrite
from tests.crash.killer import judge, remove, states_after
from tests.crash.workload import CountingClock, steps

_OF_OS = frozenset({"pwritev", "pwrite", "ftruncate", "unlink"})


class Places:
    """Counts places, and dies at one of them."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.passed = 0

    def __call__(self) -> None:
        self.passed += 1
        if self.passed == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a call with a place before it, and one after it."""

        def called(*args: Any, **more: Any) -> Any:
            self()
            result = call(*args, **more)
            self()
            return result

        return called


class OsInParts:
    """The module `os`, in which a record is written in two parts, with a place between them."""

    def __init__(self, place: Places) -> None:
        self.place = place

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        return self.place.around(found) if name in _OF_OS else found

    def pwritev(self, fd: int, parts: list[bytes], offset: int) -> int:
        content = b"".join(parts)
        half = len(content) // 2
        self.place()
        os.pwrite(fd, content[:half], offset)
        self.place()
        written = os.pwrite(fd, content[half:], offset + half)
        self.place()
        return half + written


def run(path: Path, seed: int, count: int, fatal: int, acks: int) -> int:
    """Run the workload, acknowledging each step by a byte; die at a place. Return how many were passed."""
    place = Places(fatal)
    journaled.LAYER_CHANGES_MAX = 7
    journaled.JournaledEngine._run = lambda self: None  # type: ignore[method-assign]
    journal.os = OsInParts(place)  # type: ignore[assignment]
    journal._datasync = place.around(os.fdatasync)
    for name in ("put_many", "add_many", "commit"):
        setattr(LmdbWrite, name, place.around(getattr(LmdbWrite, name)))
    options = EngineOptions(str(path), sync_commits=True, journal=True)
    store = mvccstore.open(engine=journaled.open_lmdb(options), clock=CountingClock())
    store._reclaimer._step_records = 4
    os.write(acks, b".")
    for step in steps(seed, count):
        step(store)
        os.write(acks, b".")
    store.close()
    return place.passed


def in_child(path: Path, seed: int, count: int, fatal: int) -> tuple[int, int, int]:
    """Run in a child. Return the steps acknowledged, how it ended, and how many places were passed if it was not killed."""
    remove(path)
    reading, writing = os.pipe()
    counted, counting = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(counting, b"%d" % run(path, seed, count, fatal, writing))
        except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent
            print(f"child at {fatal}: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    os.close(writing)
    os.close(counting)
    acknowledged = 0
    while read := os.read(reading, 4096):
        acknowledged += len(read)
    passed = int(os.read(counted, 100) or b"0")
    os.close(reading)
    os.close(counted)
    return acknowledged, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), passed


def main(directory: str, *numbers: str) -> None:
    seed, count, stride = map(int, numbers)
    path = Path(directory) / "store"
    states = states_after(seed, count)
    _, code, places = in_child(path, seed, count, 0)
    if code:
        print(f"undisturbed, the child ended with {code}")
    chosen = range(1 + seed % stride, places + 1, stride)
    for place in chosen:
        acknowledged, code, _ = in_child(path, seed, count, place)
        where = f"killed at place {place} of {places}, {acknowledged} acknowledged"
        if code != -signal.SIGKILL:
            print(f"{where}: the child ended with {code}")
        for problem in judge(path, acknowledged, states):
            print(f"{where}: {problem}")
    remove(path)
    print(f"done: killed at {len(chosen)} places", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
