"""Making the file of a store smaller while it is used: nobody sees a difference, and no failure takes anything."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

import mvccstore
from mvccstore import KeyRange, Op, StorageError, StorageFullError, Store, aio
from mvccstore.engine import lmdb as lmdb_engine
from mvccstore.engine import lmdb_compact, lmdb_environment
from mvccstore.tables import Table
from tests.concurrency.bench import run_program

OpenStore = Callable[..., Store]
ALL = KeyRange.all()
on_files = pytest.mark.parametrize("engine", ["lmdb", "sqlite"])


def fill(store: Store) -> None:
    """Write ten times of what then stays."""
    for number in range(0, 1_000, 100):
        store.submit_many([Op.put(b"%04d" % n, bytes(2_000)) for n in range(number, number + 100)])
    store.delete(KeyRange(b"0100", None))
    store.set_attributes({"motd": b"hello"})
    store.compact(store.revision, physical=True)


def seen(store: Store) -> tuple[object, ...]:
    return store.revision, store.hash_kv(), list(store.scan(ALL)), list(store.history(ALL)), dict(store.attributes())


@on_files
def test_file_shrinks_and_holds_the_same(open_store: OpenStore, engine: str, tmp_path: Path) -> None:
    store = open_store(engine=engine)
    fill(store)
    before, large = seen(store), store.stats().file_bytes
    store.defragment()
    assert store.stats().file_bytes < large / 4
    assert seen(store) == before
    assert store.check() == []
    assert store.put(b"next") == store.revision == before[0] + 1  # type: ignore[operator]
    store.defragment()
    after = seen(store)
    store.close()
    with mvccstore.open(store.path) as again:
        assert seen(again) == after
    assert {path.name for path in tmp_path.iterdir()} <= {"store.mvcc", "store.mvcc-lock"}


def test_who_has_begun_to_read_goes_on(store: Store) -> None:
    fill(store)
    before = list(store.scan(ALL))
    snapshot = store.snapshot()
    scan = store.scan(ALL)
    begun = [next(scan)]
    with store.watch(ALL) as watcher:
        for number in range(3):
            store.defragment()
            store.put(b"next", b"%d" % number)
            assert next(watcher).kv.value == b"%d" % number
        assert begun + list(scan) == before
        assert list(snapshot.scan(ALL)) == before
        snapshot.close()
    assert store.get(b"next").value == b"2"  # type: ignore[union-attr]
    assert store.check() == []


def test_replicators_marker_stays(store: Store) -> None:
    store.apply_replicated([], b"marker")
    store.defragment()
    assert store.replicated_marker() == b"marker"


def test_quota_that_deleting_has_made_room_in_lets_writes_in(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine, quota_bytes=10_000_000)
    fill(store)
    store.defragment()
    store.put(b"large", bytes(5_000_000))


def test_in_a_block_or_read_only_or_closed_it_is_refused(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    with store.begin(), pytest.raises(mvccstore.TxnError):
        store.defragment()
    store.close()
    with pytest.raises(mvccstore.ClosedError):
        store.defragment()
    if engine != "memory":
        with mvccstore.open(store.path, read_only=True) as reader, pytest.raises(StorageError, match="read-only"):
            reader.defragment()


def test_readers_and_writers_at_it_meanwhile_see_every_write(store: Store) -> None:
    fill(store)
    done = threading.Event()
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - told at the end
                errors.append(error)
                done.set()

        return threading.Thread(target=run)

    def write() -> None:
        for number in range(300):
            store.put(b"count", b"%d" % number)
            assert store.get(b"count").value == b"%d" % number  # type: ignore[union-attr]
        done.set()

    def read() -> None:
        last = -1
        while not done.is_set():
            found = store.get(b"count")
            number = -1 if found is None else int(found.value)
            assert number >= last
            last = number
            assert store.count(KeyRange(b"0000", b"0100")) == 100
            assert store.stats().used_bytes > 0

    def defragment() -> None:
        while not done.is_set():
            store.defragment()

    threads = [guarded(write), guarded(read), guarded(read), guarded(defragment)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=50)
        assert not thread.is_alive()
    assert errors == []
    assert store.check() == []


def test_async_face_defragments() -> None:
    async def main() -> None:
        async with aio.open() as store:
            await store.put(b"k", b"1")
            await asyncio.gather(store.defragment(), store.put(b"k", b"2"))
            assert (await store.get(b"k")).value == b"2"  # type: ignore[union-attr]

    asyncio.run(main())


# Failures. Before the files are exchanged all is as it was; after, the store is closed, and whole again when opened.


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **options: object) -> None:
        del args, options
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
BEFORE: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "opening the small file": lambda patch: patch.setattr(lmdb_compact.lmdb, "open", raising(FULL)),
    "writing records": lambda patch: patch.setattr(lmdb_compact, "_put", raising(lmdb.DiskError("no room"))),
    "exchanging": lambda patch: patch.setattr(lmdb_engine, "put_in_place", raising(StorageFullError("store", "full"))),
    "an interrupt": lambda patch: patch.setattr(lmdb_compact, "_put", raising(KeyboardInterrupt())),
}


@pytest.mark.parametrize("where", BEFORE)
def test_failure_before_the_exchange_changes_nothing(open_store: OpenStore, tmp_path: Path, where: str) -> None:
    store = open_store()
    fill(store)
    before = seen(store)
    with pytest.MonkeyPatch.context() as patch:
        BEFORE[where](patch)
        with pytest.raises((StorageError, KeyboardInterrupt)):
            store.defragment()
    assert seen(store) == before
    store.put(b"next")
    assert {path.name for path in tmp_path.iterdir()} == {"store.mvcc", "store.mvcc-lock", "store.mvcc-writer"}
    store.defragment()


AFTER: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "syncing the directory": lambda patch: patch.setattr(
        lmdb_compact, "fsync_directory", raising(StorageError("store", "failing"))
    ),
    "mapping the new file": lambda patch: patch.setattr(
        lmdb_compact, "open_environment", raising(StorageError("store", "no memory"))
    ),
    "opening its tables": lambda patch: patch.setattr(
        lmdb_engine, "open_databases", raising(lmdb.MemoryError("no memory"))
    ),
    "an interrupt": lambda patch: patch.setattr(lmdb_engine, "examine", raising(KeyboardInterrupt())),
}


@pytest.mark.parametrize("where", AFTER)
@pytest.mark.parametrize("is_read", [False, True])
def test_failure_after_the_exchange_closes_the_store_which_is_whole(
    open_store: OpenStore, where: str, *, is_read: bool
) -> None:
    store = open_store()
    fill(store)
    before = seen(store)
    view = store._engine.read() if is_read else None
    with pytest.MonkeyPatch.context() as patch:
        AFTER[where](patch)
        with pytest.raises((StorageError, KeyboardInterrupt)):
            store.defragment()
    with pytest.raises(mvccstore.ClosedError):
        store.put(b"next")
    if view is not None:
        assert view.get(Table.META, b"attributes") is not None
        view.close()
    store.close()
    with mvccstore.open(store.path) as again:
        assert again.check() == []
        assert seen(again) == before
        again.put(b"next")


def test_database_out_of_order_is_not_put_in_place(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    fill(store)
    chunks = lmdb_compact._chunks
    monkeypatch.setattr(lmdb_compact, "_chunks", lambda cursor: [list(reversed(c)) for c in chunks(cursor)])
    with pytest.raises(mvccstore.CorruptError, match="out of order"):
        store.defragment()
    monkeypatch.undo()
    assert store.count(ALL) == 100


def test_small_map_grows_as_the_new_file_is_written(tmp_path: Path) -> None:
    engine = lmdb_engine.LmdbEngine(
        mvccstore.EngineOptions(str(tmp_path / "store"), sync_commits=False), map_bytes=lmdb_environment.MAP_BYTES_MIN
    )
    store = mvccstore.open(engine=engine, durability="os")
    fill(store)
    store.put(b"large", bytes(3_000_000))
    engine._map_bytes = lmdb_environment.MAP_BYTES_MIN
    store.defragment()
    assert len(store.get(b"large").value) == 3_000_000  # type: ignore[union-attr]
    store.put(b"larger", bytes(30_000_000))
    assert store.check() == []
    store.close()


def test_gate_held_by_somebody_is_waited_for_and_given_up(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    monkeypatch.setattr(lmdb_compact, "GATE_STEPS", 2)
    with Path(store.path).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(mvccstore.LockedError, match="opening it"):
            store.defragment()
    store.defragment()
    store.put(b"k")


def test_file_system_without_flock_is_done_without(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    fill(store)
    monkeypatch.setattr(lmdb_compact.fcntl, "flock", raising(OSError(errno.ENOLCK, "no locks")))
    store.defragment()
    monkeypatch.setattr(lmdb_compact.fcntl, "flock", raising(OSError(errno.EIO, "broken")))
    with pytest.raises(StorageError, match="broken"):
        store.defragment()
    monkeypatch.undo()
    assert store.count(ALL) == 100


def test_lock_file_of_the_file_before_is_replaced(open_store: OpenStore) -> None:
    """What a process leaves that is killed between the exchange and the making of the new lock file."""
    for read_only in (False, True):
        store = open_store("store.mvcc")
        fill(store)
        before = seen(store)
        stale = Path(store.path + "-lock").read_bytes()
        store.defragment()
        store.close()
        Path(store.path + "-lock").write_bytes(stale)
        # Somebody has it open, as otherwise LMDB makes it anew by itself.
        run_program(_FOREIGN, store.path, "1" if read_only else "")
        with mvccstore.open(store.path) as again:
            assert seen(again)[0] >= before[0]  # type: ignore[operator]
            assert again.check() == []
        Path(store.path).unlink()
        Path(store.path + "-lock").unlink(missing_ok=True)


_FOREIGN = """
    import fcntl, os, struct, sys
    import mvccstore

    path, read_only = sys.argv[1:]
    reading, writing = os.pipe()
    ended, ending = os.pipe()
    child = os.fork()
    if child == 0:
        file = os.open(path + "-lock", os.O_RDWR)
        fcntl.lockf(file, fcntl.LOCK_SH, 1)  # as LMDB does for who has it open
        os.write(writing, b".")
        os.close(ending)
        os.read(ended, 1)
        os._exit(0)
    os.read(reading, 1)
    before = os.stat(path + "-lock").st_ino
    with mvccstore.open(path, read_only=bool(read_only), durability="os") as store:
        assert os.stat(path + "-lock").st_ino != before
        assert store.count(mvccstore.KeyRange.all()) == 100
        revision = store.revision
        if not read_only:
            assert store.put(b"next") == revision + 1
        assert store.check() == []
    os.close(ending)
    os.waitpid(child, 0)
"""


# Other processes


_READER = """
    import sys
    import mvccstore
    from mvccstore import KeyRange

    path = sys.argv[1]
    ALL = KeyRange.all()
    with mvccstore.open(path, read_only=True) as store, store.watch(b"next") as watcher:
        snapshot, scan = store.snapshot(), store.scan(ALL)
        before = list(store.scan(ALL))
        begun = [next(scan)]
        print("ready", flush=True)
        for line in sys.stdin:
            assert store.get(b"next").value == line.strip().encode(), line
            assert store.revision == store.stats().revision
            while watcher.next_batch(timeout=30).events[-1].kv.value != line.strip().encode():
                pass
            assert list(snapshot.scan(ALL)) == before
            print("seen", flush=True)
        assert begun + list(scan) == before
        assert store.check() == []
"""


@on_files
def test_readers_in_other_processes_follow(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    fill(store)
    environment = {**os.environ, "PYTHONPATH": str(Path(mvccstore.__file__).parents[1])}
    reader = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_READER), store.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n", reader.communicate()[1]
    for number in range(4):
        store.put(b"next", b"%d" % number)
        if number:
            store.defragment()
        if number == 2:
            store.put(b"next", b"x%d" % number)
        reader.stdin.write(f"x{number}\n" if number == 2 else f"{number}\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == "seen\n", reader.communicate()[1]
    _, complaint = reader.communicate(timeout=30)
    assert reader.returncode == 0, complaint


_FULL = """
    import resource, sys
    import mvccstore
    from mvccstore import KeyRange, Op, StorageFullError

    path, engine = sys.argv[1:]
    store = mvccstore.open(path, engine=engine, durability="fsync")
    for number in range(300):
        store.put(b"%04d" % number, bytes(9_000))
    store.compact(store.revision, physical=True)
    before, hashed = list(store.scan(KeyRange.all())), store.hash_kv()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        store.defragment()
    except StorageFullError as error:
        assert error.path == path
    else:
        raise AssertionError("there was room")
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(store.scan(KeyRange.all())) == before
    assert store.hash_kv() == hashed
    assert store.check() == []
    store.put(b"next")
    store.defragment()
    assert store.check() == []
    store.close()
"""


@on_files
def test_full_disk_leaves_the_old_file(tmp_path: Path, engine: str) -> None:
    run_program(_FULL, tmp_path / "store", engine)
    assert {path.name for path in tmp_path.iterdir()} <= {"store", "store-lock"}


def test_link_to_a_store_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with mvccstore.open(tmp_path / "there" / "store") as store:
        store.put(b"k", b"1")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "store")
    with mvccstore.open(link, durability="os") as store:
        store.defragment()
        store.put(b"k", b"2")
    assert link.is_symlink()
    with mvccstore.open(tmp_path / "there" / "store") as store:
        assert store.get(b"k").value == b"2"  # type: ignore[union-attr]


def test_rights_of_the_file_stay(open_store: OpenStore) -> None:
    store = open_store()
    Path(store.path).chmod(0o600)
    store.defragment()
    assert Path(store.path).stat().st_mode & 0o777 == 0o600
