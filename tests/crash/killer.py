"""Runs the workload in children that kill themselves at the n-th engine call, and judges what they leave.

    python -m tests.crash.killer DIRECTORY ENGINE DURABILITY SEED STEPS FIRST STRIDE

A fork for each place, from a process that has no store open, as a fresh interpreter for each would take a
hundred times as long. Prints one line for each thing that is wrong, and at the end how many were killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import mvccstore
from mvccstore import EngineOptions, Store
from mvccstore.engine import open_engine
from tests import journaled
from tests.crash.fault_engine import FaultEngine
from tests.crash.workload import CountingClock, State, problems, state, steps

SIDECARS = ("", "-lock", "-writer", "-wal", "-shm", "-journal-a", "-journal-b")


def run(path: Path, engine: str, durability: str, seed: int, count: int, kill: tuple[int, str], acks: int) -> list[str]:
    """Run the workload, acknowledging each step by a byte; die at a call. Return the calls made."""
    place, when = kill

    def die(name: str, number: int) -> None:
        del name
        if number == place:
            os.kill(os.getpid(), signal.SIGKILL)

    inner = open_engine(engine, EngineOptions(str(path), sync_commits=durability == "fsync"))
    faulty = FaultEngine(inner, **{when: die})  # type: ignore[arg-type]
    store = mvccstore.open(engine=faulty, durability=durability, clock=CountingClock())  # type: ignore[arg-type]
    store._reclaimer._step_records = 4  # so that a compaction takes several steps, and is killed between them
    os.write(acks, b".")
    for step in steps(seed, count):
        step(store)
        os.write(acks, b".")
    store.close()
    return faulty.names


def states_after(seed: int, count: int) -> list[State]:
    """Return the states a store goes through, from before it is opened on."""
    with mvccstore.open(clock=CountingClock()) as store:
        states = [state(store), state(store)]
        for step in steps(seed, count):
            before = store.revision
            step(store)
            assert store.revision <= before + 1
            states.append(state(store))
    return states


def judge(path: Path, acknowledged: int, states: list[State]) -> list[str]:
    """Reopen what a killed process left, and say what is wrong with it."""
    if acknowledged == 0 and not path.exists():
        return []
    found: list[str] = []
    with open_again(path) as store:
        found += problems(store)
        here = state(store)
        allowed = states[acknowledged : acknowledged + 2]
        if here not in allowed:
            found.append(f"revision {here[0]}, compacted at {here[1]}, is the state of no step: {here[:3]}")
        store.reclaim()
        found += problems(store)
        if state(store) != here:
            found.append("reclaiming changed what is seen")
        stats = store.stats()
        if stats.compact_revision != stats.reclaimed_revision:
            found.append(f"reclaiming ended at {stats.reclaimed_revision}, not at {stats.compact_revision}")
        if store.put(b"next") != here[0] + 1:  # type: ignore[operator]
            found.append("the next revision is not the next")
        found += problems(store)
    with mvccstore.open(path) as store:
        found += problems(store)
        if store.revision != here[0] + 1:  # type: ignore[operator]
            found.append("the next revision was lost")
    return found


def open_again(path: Path) -> Store:
    return mvccstore.open(path, durability="os")


def remove(path: Path) -> None:
    for suffix in SIDECARS:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def kill_at(path: Path, options: tuple[str, str, int, int], kill: tuple[int, str]) -> tuple[int, int]:
    """Run in a child that dies at a call. Return the number of steps acknowledged, and how the child ended."""
    remove(path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            run(path, *options, kill, writing)
        except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent
            print(f"child at {kill}: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    os.close(writing)
    acknowledged = 0
    while read := os.read(reading, 4096):
        acknowledged += len(read)
    os.close(reading)
    return acknowledged, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


assert journaled.NAME  # it registers an engine


def main(directory: str, engine: str, durability: str, *numbers: str) -> None:
    seed, count, first, stride = map(int, numbers)
    path = Path(directory) / "store"
    states = states_after(seed, count)
    remove(path)
    devnull = os.open(os.devnull, os.O_WRONLY)
    options = (engine, durability, seed, count)
    calls = run(path, *options, (0, "before"), devnull)
    places = [(place, "before") for place in range(first, len(calls) + 1, stride)]
    # After a call that is no commit nothing is on disk that was not there before the next one.
    places += [
        (place, "after") for place, name in enumerate(calls, 1) if name == "commit" and place % stride == first % stride
    ]
    for place, when in places:
        acknowledged, code = kill_at(path, options, (place, when))
        where = f"killed {when} call {place} of {len(calls)} ({calls[place - 1]}), {acknowledged} acknowledged"
        if code != -signal.SIGKILL:
            print(f"{where}: the child ended with {code}")
        for problem in judge(path, acknowledged, states):
            print(f"{where}: {problem}")
    remove(path)
    print(f"done: killed at {len(places)} places", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
