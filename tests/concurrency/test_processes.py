"""Other processes beside a store: forked ones, a second writer, readers."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import mvccstore
from mvccstore import CompactedError, EngineOptions, KeyRange, LockedError, Op, Store
from mvccstore.engine.lmdb import LmdbEngine
from tests.concurrency.bench import ROOT, SECONDS, Threads, run_program

OpenStore = Callable[..., Store]
ALL = KeyRange.all()
FILE_ENGINES = ("lmdb", "sqlite")
on_files = pytest.mark.parametrize("engine", FILE_ENGINES)

# Forks


_FORK = """
    import os, sys, threading
    import mvccstore
    from mvccstore import ClosedError, KeyRange, LockedError, Op

    path, engine = sys.argv[1:]
    ALL = KeyRange.all()
    store = mvccstore.open(path if engine != "memory" else None, engine=engine, durability="os")
    store.put(b"k", b"parent")
    store.put(b"l", b"parent")
    snapshot = store.snapshot()
    scan = store.scan(ALL)
    reads = {
        "get": lambda: store.get(b"k"),
        "get past": lambda: store.get(b"k", revision=2),
        "range": lambda: store.range(ALL),
        "scan": lambda: list(store.scan(ALL)),
        "history": lambda: list(store.history(b"k")),
        "count": lambda: store.count(ALL),
        "revision": lambda: store.revision,
        "stats": lambda: store.stats(),
        "snapshot": lambda: store.snapshot(),
        "open snapshot": lambda: snapshot.get(b"k"),
        "open scan": lambda: list(scan),
        "put": lambda: store.put(b"k", b"child"),
        "delete": lambda: store.delete(b"k"),
        "txn": lambda: store.txn(success=[Op.put(b"k", b"child")]),
        "begin": lambda: store.begin(),
        "compact": lambda: store.compact(2),
        "check": lambda: store.check(),
        "sync": lambda: store.sync(),
        "defragment": lambda: store.defragment(),
        "backup": lambda: store.backup(path + "-backup"),
    }

    def child():
        for name, read in reads.items():
            try:
                answer = read()
            except ClosedError:
                continue
            print(f"child: {name} gave {answer!r}", file=sys.stderr)
            return 1
        store.close()
        snapshot.close()
        if engine != "memory":
            try:
                mvccstore.open(path)
            except LockedError as error:
                if f"process {os.getppid()} " not in error.holder:
                    print(f"child: the holder is {error.holder}", file=sys.stderr)
                    return 1
            else:
                print("child: opened a second writer", file=sys.stderr)
                return 1
        return 0

    def fork():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.mark.parametrize("engine", ["lmdb", "memory", "sqlite"])
def test_forked_child_sees_a_closed_store_and_the_parent_goes_on(tmp_path: Path, engine: str) -> None:
    program = (
        _FORK
        + """
    for round in range(3):
        assert fork() == 0
        assert store.put(b"next", b"%d" % round) == 4 + round
        assert store.get(b"k").value == b"parent"
        assert snapshot.get(b"next") is None
    snapshot.close()
    scan.close()
    assert store.check() == []
    store.close()
    if engine != "memory":
        with mvccstore.open(path) as store:
            assert store.revision == 6
    """
    )
    run_program(program, tmp_path / "store", engine)


@pytest.mark.parametrize("engine", ["lmdb", "memory", "sqlite"])
def test_fork_while_other_threads_read_and_write_leaves_no_lock_in_the_child(tmp_path: Path, engine: str) -> None:
    program = (
        _FORK
        + """
    import signal
    stop = threading.Event()
    errors = []
    sys.setswitchinterval(1e-5)

    def work(number):
        try:
            i = 0
            while not stop.is_set():
                i += 1
                if number % 2:
                    store.put(b"w%d" % number, b"%d" % i)
                else:
                    assert store.get(b"k").value == b"parent"
                    with store.snapshot() as view:
                        assert view.count(ALL) >= 2
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(25):
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(10)  # a lock held by a thread that is not here any more is held for ever
                code = 1
                try:
                    code = child()
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert code == 0, code
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == [], errors
    assert store.check() == []
    store.close()
    """
    )
    run_program(program, tmp_path / "store", engine)


@on_files
def test_child_that_outlives_its_parent_holds_no_lock(tmp_path: Path, engine: str) -> None:
    program = (
        _FORK
        + """
    import signal
    ready, hold = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        # The store's process: opened above by its parent, so it opens one of its own.
        own = mvccstore.open(path + "2", engine=engine, durability="os")
        own.put(b"k", b"1")
        child_pid = os.fork()
        if child_pid == 0:
            os.close(hold[1])
            os.write(ready[1], b".")
            os.read(hold[0], 1)  # lives on until told
            os._exit(0)
        os.read(ready[0], 1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(hold[0])
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == -signal.SIGKILL
    with mvccstore.open(path + "2") as again:
        assert again.get(b"k").value == b"1"
        assert again.check() == []
    os.close(hold[1])
    snapshot.close()
    scan.close()
    store.close()
    """
    )
    run_program(program, tmp_path / "store", engine)


@pytest.mark.parametrize("engine", ["sqlite"])  # py-lmdb takes the parent's environment for the child's own
def test_child_may_read_the_store_by_opening_it_read_only(tmp_path: Path, engine: str) -> None:
    program = (
        _FORK
        + """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with mvccstore.open(path, read_only=True) as reader:
                assert reader.get(b"k").value == b"parent"
                assert reader.check() == []
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.put(b"next") == 4
    snapshot.close()
    scan.close()
    store.close()
    """
    )
    run_program(program, tmp_path / "store", engine)


# A second writer


@on_files
def test_second_writer_gets_locked_error_naming_the_holder(open_store: OpenStore, tmp_path: Path, engine: str) -> None:
    store = open_store("store", engine=engine)
    store.put(b"k", b"v")
    import os

    run_program(
        """
        import sys
        import mvccstore
        path, pid = sys.argv[1:]
        for _ in range(3):
            try:
                mvccstore.open(path)
            except mvccstore.LockedError as error:
                assert f"process {pid} " in error.holder, error.holder
                assert error.path == path
                assert pid in str(error)
            else:
                raise AssertionError("opened")
        """,
        tmp_path / "store",
        os.getpid(),
    )
    with pytest.raises(LockedError) as caught:
        mvccstore.open(tmp_path / "store")
    assert f"process {os.getpid()} " in caught.value.holder
    store.put(b"k", b"w")
    store.close()
    with mvccstore.open(tmp_path / "store") as again:
        assert again.revision == 3


@on_files
def test_one_of_many_processes_that_open_at_once_gets_the_store(tmp_path: Path, engine: str) -> None:
    program = textwrap.dedent(
        """
        import sys
        import mvccstore
        from mvccstore import LockedError
        opened = refused = 0
        for _ in range(40):
            try:
                store = mvccstore.open(sys.argv[1], engine=sys.argv[2], durability="os")
            except LockedError:
                refused += 1
                continue
            with store:
                kv = store.get(b"n")
                store.put(b"n", b"%d" % (int(kv.value) + 1 if kv else 1))
            opened += 1
        print(opened, refused)
        """
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "store"), engine]
    processes = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)
        for _ in range(3)
    ]
    opened = 0
    for process in processes:
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err[-2_000:]
        opened += int(out.split()[0])
    with mvccstore.open(tmp_path / "store") as store:
        kv = store.get(b"n")
        assert kv is not None
        assert int(kv.value) == opened > 0
        assert store.check() == []


# Readers in other processes


_READER = """
    import sys
    import mvccstore
    from mvccstore import CompactedError, EngineOptions, KeyRange
    from mvccstore.engine.lmdb import LmdbEngine

    path, map_bytes = sys.argv[1], int(sys.argv[2])
    engine = LmdbEngine(EngineOptions(path, read_only=True), map_bytes=map_bytes) if map_bytes else None
    store = mvccstore.open(path, read_only=True) if engine is None else mvccstore.open(engine=engine, read_only=True)
    pairs = KeyRange.prefix(b"pair/")
    last, looks, compacted, done = 0, 0, 0, False
    print("ready", flush=True)

    def whole(rows, revision):
        values = {(kv.value, kv.mod_revision) for kv in rows}
        assert len(values) == 1 and len(rows) == 3, rows
        assert all(kv.mod_revision <= revision for kv in rows)

    while not done:
        done = (flag := store.get(b"done")) is not None
        result = store.range(pairs)
        assert result.revision >= last, (result.revision, last)
        last = result.revision
        whole(result.kvs, last)
        looks += 1
        past = max(last - looks % 40, 1)
        try:
            rows = store.range(pairs, revision=past).kvs
            if rows:
                whole(rows, past)
            with store.snapshot() as view:
                first = list(view.scan(KeyRange.all()))
                assert list(view.scan(KeyRange.all())) == first
                whole([kv for kv in first if kv.key.startswith(b"pair/")], view.revision)
            events = list(store.history(b"pair/a"))
            assert [event.revision for event in events] == sorted(event.revision for event in events)
        except CompactedError as error:
            assert error.revision < error.compact_revision
            compacted += 1
    assert store.check() == []
    store.close()
    print(looks, compacted)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "map_bytes"), [("lmdb", 0), ("lmdb", 1 << 20), ("sqlite", 0)])
def test_reader_process_sees_whole_states_while_the_writer_writes_compacts_and_grows(
    tmp_path: Path, engine: str, map_bytes: int
) -> None:
    path = str(tmp_path / "store")
    if map_bytes:
        options = EngineOptions(path, sync_commits=False)
        store = mvccstore.open(engine=LmdbEngine(options, map_bytes=map_bytes), durability="os")
    else:
        store = mvccstore.open(path, engine=engine, durability="os")
    with store:
        store.txn(success=[Op.put(b"pair/%s" % side, b"start") for side in (b"a", b"b", b"c")])
        arguments = [sys.executable, "-c", textwrap.dedent(_READER), path, str(map_bytes)]
        reader = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for i in range(400):
            store.txn(success=[Op.put(b"pair/%s" % side, b"%d" % i) for side in (b"a", b"b", b"c")])
            store.put(b"ballast/%03d" % (i % 300), bytes(8_000))
            if i % 20 == 0:
                try:
                    store.compact(keep_revisions=15, physical=True)
                except CompactedError:
                    continue
        store.put(b"done", b"1")
        out, err = reader.communicate(timeout=SECONDS)
        assert reader.returncode == 0, err[-3_000:]
        looks, _ = map(int, out.split())
        assert looks > 1
        assert store.check() == []


@on_files
def test_history_that_goes_away_under_a_reader_process_is_told(tmp_path: Path, engine: str) -> None:
    program = """
        import sys
        import mvccstore
        from mvccstore import CompactedError, KeyRange
        path = sys.argv[1]
        with mvccstore.open(path, read_only=True) as store:
            scan = store.scan(KeyRange.all())
            history = store.history(KeyRange.all())
            snapshot = store.snapshot(revision=5)
            first = [next(scan), next(history)]
            before = store.range(KeyRange.all(), revision=5).kvs
            print("open", flush=True)
            assert sys.stdin.readline() == "compacted\\n"
            for call in (
                lambda: list(scan),
                lambda: list(history),
                lambda: snapshot.get(b"00001"),
                lambda: snapshot.count(KeyRange.all()),
                lambda: list(snapshot.scan(KeyRange.all())),
                lambda: store.get(b"00001", revision=5),
                lambda: list(store.history(KeyRange.all(), start_revision=5)),
            ):
                try:
                    answer = call()
                except CompactedError as error:
                    assert error.compact_revision == store.compact_revision > error.revision
                else:
                    raise AssertionError(f"answered {answer!r}")
            assert store.count(KeyRange.all()) == 3_000
            assert store.snapshot().count(KeyRange.all()) == 3_000
    """
    with mvccstore.open(tmp_path / "store", engine=engine, durability="os") as store:
        for _ in range(6):
            with store.begin() as txn:
                for i in range(3_000):
                    txn.put(b"%05d" % i, b"v")
        reader = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "store")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n", reader.communicate(timeout=SECONDS)[1]
        store.put(b"00001", b"w")
        store.compact(store.revision, physical=True)
        _, err = reader.communicate("compacted\n", timeout=SECONDS)
        assert reader.returncode == 0, err[-3_000:]


# The map of an LMDB store grows by itself


def small_map(path: Path) -> Store:
    options = EngineOptions(str(path), sync_commits=False)
    return mvccstore.open(engine=LmdbEngine(options, map_bytes=1 << 20), durability="os")


def test_map_grows_under_load_with_readers(tmp_path: Path) -> None:
    with small_map(tmp_path / "store") as store, Threads() as threads:
        stop = threading.Event()
        written = threading.Semaphore(0)
        store.put(b"first", b"1")

        def write(writer: int) -> None:
            for i in range(150):
                store.put(b"%d/%04d" % (writer, i), bytes(6_000))
            written.release()

        def block() -> None:
            for i in range(40):
                with store.begin() as txn:
                    for j in range(5):
                        txn.put(b"block/%04d/%d" % (i, j), bytes(6_000))
                    assert txn.count(KeyRange.prefix(b"block/%04d/" % i)) == 5
            written.release()

        def read() -> None:
            while not stop.is_set():
                assert store.get(b"first") is not None
                rows = list(store.scan(ALL))
                assert len(rows) == len({kv.key for kv in rows})
                with store.snapshot() as view:
                    assert view.count(ALL) == len(list(view.scan(ALL, keys_only=True)))

        for writer in range(3):
            threads.start(write, writer)
        threads.start(block)
        for _ in range(2):
            threads.start(read)
        try:
            for _ in range(4):
                assert written.acquire(timeout=SECONDS), threads.errors
        finally:
            stop.set()
    with mvccstore.open(tmp_path / "store") as store:
        assert store.count(ALL) == 1 + 3 * 150 + 40 * 5
        assert store.check() == []


def test_map_grows_in_the_middle_of_a_large_block(tmp_path: Path) -> None:
    with small_map(tmp_path / "store") as store:
        store.put(b"old", b"1")
        with store.begin() as txn:
            for i in range(2_000):
                txn.put(b"%05d" % i, b"%d" % i + bytes(4_000))
                if i % 100 == 0:
                    kv = txn.get(b"%05d" % (i // 2))
                    assert kv is not None
                    assert kv.value.startswith(b"%d\0" % (i // 2))
                    assert txn.count(ALL) == i + 2
            assert txn.delete(KeyRange(b"00000", b"01000")) == 1_000
            txn.put(b"old", b"2")
            for number, kv in enumerate(txn.scan(ALL)):
                if number % 250 == 0:
                    txn.put(b"copy/" + kv.key, kv.value * 50)
            assert store.revision == 2
            assert store.count(ALL) == 1
        assert store.revision == 3
        assert store.count(KeyRange(b"0", b"1")) == 1_000
        subs = [event.revision for event in store.history(ALL, start_revision=3)]
        assert set(subs) == {3}
        assert store.check() == []


def test_map_grows_in_the_middle_of_a_large_txn_and_for_a_large_value(tmp_path: Path) -> None:
    with small_map(tmp_path / "store") as store:
        result = store.txn(success=[Op.put(b"%05d" % i, bytes(3_000)) for i in range(2_000)])
        assert result.revision == 2
        assert store.put(b"large", bytes(30_000_000)) == 3
        assert store.delete(ALL, prev_kv=True).deleted == 2_001
        store.compact(4, physical=True)
        assert store.put(b"large", bytes(30_000_000)) == 5
        assert store.check() == []


def test_map_that_grew_is_large_when_it_is_opened_small_again(tmp_path: Path) -> None:
    with small_map(tmp_path / "store") as store:
        store.put(b"large", bytes(5_000_000))
    with small_map(tmp_path / "store") as store:
        kv = store.get(b"large")
        assert kv is not None
        assert len(kv.value) == 5_000_000
        store.put(b"larger", bytes(9_000_000))
        assert store.check() == []


def test_map_grows_while_a_scan_and_a_snapshot_are_open_in_the_same_thread(tmp_path: Path) -> None:
    def work() -> None:
        with small_map(tmp_path / "store") as store:
            for i in range(300):
                store.put(b"%05d" % i, bytes(1_000))
            scan, snapshot = store.scan(ALL), store.snapshot()
            next(scan)
            for i in range(300):
                store.put(b"%05d" % i, bytes(20_000))
            assert [len(kv.value) for kv in scan] == [1_000] * 299
            assert {len(kv.value) for kv in snapshot.scan(ALL)} == {1_000}
            snapshot.close()

    with Threads() as threads:
        threads.start(work)
