"""A process that is killed at any place while it defragments leaves the old file or the new one, whole."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mvccstore
from mvccstore import KeyRange, Op, Store
from tests.concurrency.bench import run_program

ALL = KeyRange.all()
FILE_NAMES = {"store", "store-lock"}


def make(path: Path, engine: str) -> None:
    with mvccstore.open(path, engine=engine, durability="os") as store:
        store.submit_many([Op.put(b"%04d" % n, bytes(2_000)) for n in range(500)])
        store.delete(KeyRange(b"0100", None))
        store.put(b"long" * 500, b"1")
        store.set_attributes({"motd": b"hello"})
        store.compact(store.revision, physical=True)


def seen(store: Store) -> tuple[object, ...]:
    return store.revision, store.hash_kv(), list(store.scan(ALL)), dict(store.attributes())


def defragment(path: Path, place: int) -> int:
    """Defragment in this process, and die at a place; return how many places there are."""
    from mvccstore.engine import lmdb_compact

    lmdb_compact.CHUNK_RECORDS = 400
    passed = 0
    is_on = False

    def pass_one() -> None:
        nonlocal passed
        passed += 1
        if passed == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(event: str, arguments: object) -> None:
        del arguments
        if is_on and event in {"open", "os.rename", "os.remove", "fcntl.flock", "os.truncate", "sqlite3.connect"}:
            pass_one()

    def around(call: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object) -> object:
            pass_one()
            result = call(*args)
            pass_one()
            return result

        return called

    with mvccstore.open(path, durability="os") as store:
        for name in ("_put", "open_environment", "fsync_directory", "put_in_place"):
            setattr(lmdb_compact, name, around(getattr(lmdb_compact, name)))
        sys.addaudithook(audited)
        is_on = True
        store.defragment()
        pass_one()
        store.put(b"next", b"1")
        is_on = False
    return passed


def children(path: Path, places: range) -> list[tuple[int, str]]:
    """Kill a child at each place; return what is wrong with what they leave."""
    wrong = []
    with mvccstore.open(path, durability="os") as store:
        before = seen(store)
    bytes_before = path.read_bytes()
    for place in places:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                defragment(path, place)
            os._exit(1)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
            wrong.append((place, "the child was not killed"))
        with mvccstore.open(path, durability="os") as store:
            found = [*store.check()]
            if seen(store)[1:] != before[1:] and store.get(b"next") is None:
                found.append("not what was there before")
            if store.put(b"last", b"1") != store.revision:
                found.append("the last write is lost")
            found += store.check()
        with mvccstore.open(path, durability="os") as store:
            if store.get(b"last") is None:
                found.append("the last write is lost")
        left = {name.name for name in path.parent.iterdir()} - FILE_NAMES
        if left:
            found.append(f"{left} are left")
        wrong += [(place, problem) for problem in found]
        path.write_bytes(bytes_before)
    return wrong


_RUN = """
    import os, sys
    from pathlib import Path
    from tests.crash.test_kill_defragment import children, defragment, make

    path, engine = Path(sys.argv[1]), sys.argv[2]
    make(path, engine)
    before = path.read_bytes()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"%d" % defragment(path, 0))
        os._exit(0)
    os.waitpid(child, 0)
    places = int(os.read(reading, 100))
    assert places > (15 if engine == "lmdb" else 0), places
    path.write_bytes(before)
    wrong = children(path, range(1, places + 1))
    assert not wrong, wrong
"""


@pytest.mark.crash
@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_process_killed_at_any_place_leaves_a_whole_store(tmp_path: Path, engine: str) -> None:
    run_program(_RUN, tmp_path / "store", engine)


_KILL_LATER = """
    import os, signal, sys
    import mvccstore
    from mvccstore import KeyRange

    path, engine = sys.argv[1:]
    with mvccstore.open(path, engine=engine, durability="os") as store:
        store.submit_many([mvccstore.Op.put(b"%04d" % n, bytes(300)) for n in range(1_000)])
    with mvccstore.open(path, durability="os") as store:
        hashed = store.hash_kv()
    for delay in range(1, 16):
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_REAL, delay / 100)  # nobody handles it: the process ends where it is
            with mvccstore.open(path, durability="os") as store:
                while True:
                    store.defragment()
        os.waitpid(child, 0)
        with mvccstore.open(path, durability="os") as store:
            assert store.hash_kv() == hashed, delay
            assert store.check() == [], (delay, store.check())
    assert set(os.listdir(os.path.dirname(path))) <= {"store", "store-lock"}
"""


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_process_killed_at_any_time_leaves_a_whole_store(tmp_path: Path, engine: str) -> None:
    run_program(_KILL_LATER, tmp_path / "store", engine)
