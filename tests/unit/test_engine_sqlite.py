"""What is true of the SQLite engine alone. What it shares with others is in `test_engine_conformance.py`."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mvccstore.engine import EngineOptions
from mvccstore.engine.sqlite import IDLE_READERS_MAX, SCHEMA_FORMAT, SqliteEngine
from mvccstore.engine.sqlite_txn import SqliteReadTxn, SqliteWriteTxn
from mvccstore.errors import (
    ClosedError,
    CorruptError,
    FormatError,
    LockedError,
    StorageError,
    StorageFullError,
)
from mvccstore.tables import ENTRY_BYTES, Table

PAGE_BYTES = 4096

Open = Callable[..., SqliteEngine]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def open_engine(path: Path) -> Iterator[Open]:
    """Opens engines on `path` that are closed when the test ends."""
    with contextlib.ExitStack() as engines:

        def open_one(*, max_page_count: int = 0, read_only: bool = False, sync_commits: bool = False) -> SqliteEngine:
            options = EngineOptions(str(path), read_only=read_only, sync_commits=sync_commits)
            engine = SqliteEngine(options, max_page_count=max_page_count)
            engines.callback(engine.close)
            return engine

        yield open_one


def put(engine: SqliteEngine, key: bytes, value: bytes, table: Table = Table.LOG) -> None:
    txn = engine.write()
    try:
        txn.put(table, key, value)
        txn.commit()
    finally:
        txn.close()


def get(engine: SqliteEngine, key: bytes, table: Table = Table.LOG) -> bytes | None:
    with contextlib.closing(engine.read()) as view:
        return view.get(table, key)


def length(engine: SqliteEngine, table: Table | None) -> int:
    with contextlib.closing(engine.read()) as view:
        return view.length(table)


def steps(view: SqliteReadTxn, call: Callable[[], object]) -> int:
    """Count the hundreds of instructions that SQLite's machine needs for `call`."""
    count = 0

    def progress() -> int:
        nonlocal count
        count += 1
        return 0

    connection = view._connection
    assert connection is not None
    connection.set_progress_handler(progress, 100)
    call()
    connection.set_progress_handler(None, 0)
    return count


def test_full_disk_undoes_the_transaction_and_nothing_else(open_engine: Open) -> None:
    engine = open_engine(max_page_count=200)
    put(engine, b"before", b"1")

    def fill_log(txn: SqliteWriteTxn) -> None:
        for n in range(100_000):
            txn.put(Table.LOG, b"%d" % n, b"v" * 1000)

    def fill_index(txn: SqliteWriteTxn) -> None:
        for n in range(100_000):
            txn.add(b"k%d" % n, bytes(ENTRY_BYTES))

    for fill in (fill_log, fill_index):
        txn = engine.write()
        txn.put(Table.META, b"doomed", b"1")
        with pytest.raises(StorageFullError) as caught:
            fill(txn)
        assert caught.value.path == engine.path
        with pytest.raises(ClosedError):
            txn.put(Table.META, b"doomed", b"1")
        with pytest.raises(ClosedError):
            txn.commit()
        txn.close()
        assert (length(engine, Table.LOG), length(engine, Table.META), length(engine, None)) == (1, 0, 0)
        assert engine.problems() == []
    put(engine, b"after", b"2")
    assert (get(engine, b"before"), get(engine, b"after")) == (b"1", b"2")


def test_full_store_can_be_emptied_and_filled_again(open_engine: Open) -> None:
    engine = open_engine(max_page_count=200)

    def fill() -> None:
        for n in range(1000):
            put(engine, b"%03d" % n, b"v" * 3000)
            names.append(b"%03d" % n)

    for _ in range(3):
        names: list[bytes] = []
        with pytest.raises(StorageFullError):
            fill()
        assert len(names) > 100
        txn = engine.write()
        txn.delete(Table.LOG, names)
        txn.commit()
        assert engine.size().used_bytes < 30 * PAGE_BYTES


def test_full_disk_while_creating_leaves_no_lock(open_engine: Open, path: Path) -> None:
    (path.parent / "store-wal").mkdir()  # so SQLite cannot make its own
    with pytest.raises(StorageError):
        open_engine()
    (path.parent / "store-wal").rmdir()
    put(open_engine(), b"k", b"1")


def test_damaged_page_is_a_corrupt_error_and_a_problem(open_engine: Open, path: Path) -> None:
    engine = open_engine()
    for n in range(300):
        put(engine, b"%04d" % n, b"v" * 1000)
    engine.close()
    blob = bytearray(path.read_bytes())
    for page in range(12, len(blob) // PAGE_BYTES):
        blob[page * PAGE_BYTES : page * PAGE_BYTES + 40] = b"\x55" * 40
    path.write_bytes(blob)
    engine = open_engine()
    with pytest.raises(CorruptError) as caught, contextlib.closing(engine.read()) as view:
        view.page(Table.LOG, b"", None, 1000)
    assert caught.value.path == str(path)
    problems = engine.problems()
    assert problems
    assert all(isinstance(line, str) for line in problems)
    with pytest.raises(CorruptError):
        put(engine, b"0150", b"w" * 5000)
    engine.write().close()


def test_truncated_file_is_a_problem(open_engine: Open, path: Path) -> None:
    engine = open_engine()
    for n in range(300):
        put(engine, b"%04d" % n, b"v" * 1000)
    engine.close()
    os.truncate(path, path.stat().st_size // 2)
    with contextlib.suppress(CorruptError):
        assert open_engine().problems() != []


@pytest.mark.parametrize("read_only", [False, True])
def test_database_of_another_program_is_refused_and_left_alone(open_engine: Open, path: Path, read_only: bool) -> None:
    with contextlib.closing(sqlite3.connect(path)) as theirs:
        theirs.execute("CREATE TABLE meta (k BLOB PRIMARY KEY, v BLOB)")
    before = path.read_bytes()
    with pytest.raises(FormatError, match="not a store"):
        open_engine(read_only=read_only)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["store"]


def test_newer_format_is_refused(open_engine: Open, path: Path) -> None:
    open_engine().close()
    with contextlib.closing(sqlite3.connect(path)) as tool:
        tool.execute(f"PRAGMA user_version = {SCHEMA_FORMAT + 1}")
    with pytest.raises(FormatError, match=f"format {SCHEMA_FORMAT + 1}"):
        open_engine()


def test_empty_file_becomes_a_store_only_if_allowed_to(open_engine: Open, path: Path) -> None:
    path.touch()
    for options in (EngineOptions(str(path), create=False), EngineOptions(str(path), read_only=True)):
        with pytest.raises(FormatError, match="empty"):
            SqliteEngine(options)
    put(open_engine(), b"k", b"1")


@pytest.mark.parametrize("name", ["a b", "a?mode=memory", "a#b%20c", "ä", "'; --"])
def test_any_file_name_can_be_used(tmp_path: Path, name: str) -> None:
    engine = SqliteEngine(EngineOptions(str(tmp_path / name), sync_commits=False))
    put(engine, b"k", b"1")
    assert engine.copy(str(tmp_path / f"copy {name}"))
    engine.close()
    assert {file.name for file in tmp_path.iterdir()} == {name, f"copy {name}"}


def test_needs_a_path_that_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path"):
        SqliteEngine(EngineOptions(None))
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "directory", tmp_path / "file" / "store"):
        with pytest.raises(StorageError) as caught:
            SqliteEngine(EngineOptions(str(path)))
        assert caught.value.path == str(path)
    assert {file.name for file in tmp_path.iterdir()} == {"directory", "file"}


def test_i3_view_has_its_snapshot_before_its_first_read(open_engine: Open) -> None:
    engine = open_engine()
    put(engine, b"k", b"1")
    with contextlib.closing(engine.read()) as view:
        put(engine, b"k", b"2")
        assert view.get(Table.LOG, b"k") == b"1"


def test_i1_i2_readers_are_used_again_with_a_new_snapshot(open_engine: Open) -> None:
    engine = open_engine()
    connections = set()
    for n in range(5):
        put(engine, b"n", b"%d" % n)
        with contextlib.closing(engine.read()) as view:
            connections.add(id(view._connection))
            assert view.get(Table.LOG, b"n") == b"%d" % n
    assert len(connections) == 1
    views = [engine.read() for _ in range(IDLE_READERS_MAX + 4)]
    assert len({id(view._connection) for view in views}) == len(views)
    for view in views:
        view.close()
    assert len(engine._idle) == IDLE_READERS_MAX
    assert not any(connection.in_transaction for connection in engine._idle)


def test_view_outlives_its_engine_and_then_frees_the_file(open_engine: Open, path: Path) -> None:
    engine = open_engine()
    put(engine, b"k", b"1")
    view = engine.read()
    engine.close()
    assert view.get(Table.LOG, b"k") == b"1"
    view.close()
    assert not engine._idle
    with pytest.raises(ClosedError):
        view.get(Table.LOG, b"k")
    for call in (engine.sync, engine.size, engine.problems, lambda: engine.copy(f"{path}-copy")):
        with pytest.raises(ClosedError):
            call()
    assert get(open_engine(), b"k") == b"1"


def test_close_leaves_one_plain_file(open_engine: Open, path: Path) -> None:
    engine = open_engine()
    put(engine, b"k", b"1")
    assert len(list(path.parent.iterdir())) == 4  # -wal, -shm and -writer
    engine.close()
    assert list(path.parent.iterdir()) == [path]
    with contextlib.closing(sqlite3.connect(path)) as tool:
        assert tool.execute("SELECT k, v FROM log").fetchall() == [(b"k", b"1")]


@pytest.mark.parametrize("sync_commits", [False, True])
def test_synchronous_setting_follows_sync_commits(open_engine: Open, sync_commits: bool) -> None:
    engine = open_engine(sync_commits=sync_commits)
    assert engine._writer is not None
    assert engine._writer.execute("PRAGMA synchronous").fetchone() == (2 if sync_commits else 1,)


def test_sync_syncs_the_wal_whoever_reads_or_writes(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine()
    put(engine, b"k", b"1")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink()))
    txn = engine.write()
    with contextlib.closing(engine.read()):
        engine.sync()
    txn.close()
    assert synced == [Path(f"{engine.path}-wal"), Path(engine.path).parent]
    view = engine.read()
    engine.close()
    view.close()
    assert synced[2:] == synced[:2]


def test_shared_memory_that_cannot_grow_means_a_full_disk(open_engine: Open) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    with contextlib.closing(open_engine().read()) as view:
        assert isinstance(view._failed(error), StorageFullError)
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        assert type(view._failed(error)) is StorageError


def test_failing_disk_is_a_storage_error(open_engine: Open, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    engine = open_engine()
    put(engine, b"k", b"1")

    def fail(error: int) -> Callable[[int], None]:
        def fsync(fd: int) -> None:
            raise OSError(error, os.strerror(error))

        return fsync

    for number, kind in ((5, StorageError), (28, StorageFullError)):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail(number))
            with pytest.raises(kind, match=os.strerror(number)):
                engine.sync()
            with pytest.raises(kind, match=os.strerror(number)):
                engine.copy(f"{path}-copy")
    assert not Path(f"{path}-copy").exists()
    assert not Path(f"{path}-copy-partial").exists()
    assert engine.copy(f"{path}-copy")


def test_another_program_writing_is_a_locked_error(
    open_engine: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvccstore.engine.sqlite.BUSY_SECONDS", 0.0)
    engine = open_engine()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as tool:
        tool.execute("BEGIN IMMEDIATE")
        with pytest.raises(LockedError):
            engine.write()
    put(engine, b"k", b"1")


def test_child_after_a_fork_leaves_the_file_to_its_parent(open_engine: Open) -> None:
    engine = open_engine()
    put(engine, b"k", b"1")
    view = engine.read()
    child = os.fork()
    if child == 0:
        engine.forget()
        view.close()
        engine.close()
        os._exit(0 if engine._writer is not None and engine._writer in engine._idle else 1)
    assert os.waitpid(child, 0)[1] == 0
    put(engine, b"k", b"2")
    with pytest.raises(LockedError):
        open_engine()
    assert (view.get(Table.LOG, b"k"), get(engine, b"k")) == (b"1", b"2")
    view.close()


def test_copy_is_compact_and_of_one_state(open_engine: Open, path: Path) -> None:
    engine = open_engine()
    for n in range(200):
        put(engine, b"%03d" % n, b"v" * 5000)
    txn = engine.write()
    txn.delete(Table.LOG, [b"%03d" % n for n in range(1, 200)])
    txn.commit()
    txn = engine.write()
    txn.put(Table.LOG, b"uncommitted", b"1")
    Path(f"{path}-copy-partial").write_bytes(b"left behind by a crash")
    assert engine.copy(f"{path}-copy")
    txn.commit()
    assert Path(f"{path}-copy").stat().st_size < 40 * PAGE_BYTES < path.stat().st_size
    twin = SqliteEngine(EngineOptions(f"{path}-copy"))
    assert (length(twin, Table.LOG), get(twin, b"000")) == (1, b"v" * 5000)
    twin.close()
    with pytest.raises(StorageError):
        engine.copy(str(path.parent / "missing" / "copy"))


def test_read_only_engine_copies_and_checks(open_engine: Open, path: Path) -> None:
    writer = open_engine()
    put(writer, b"k", b"1")
    writer.close()
    reader = open_engine(read_only=True)
    assert reader.problems() == []
    reader.sync()
    assert reader.size().used_bytes > 0
    assert reader.copy(f"{path}-copy")
    assert Path(f"{path}-copy").exists()


def test_page_of_keys_does_not_visit_their_versions(open_engine: Open) -> None:
    engine = open_engine()
    txn = engine.write()
    for key in (b"a", b"b", b"c"):
        txn.add(key, bytes(ENTRY_BYTES))
    txn.commit()
    at = (2500).to_bytes(ENTRY_BYTES, "big")
    counts = []
    for versions in (0, 5000):
        txn = engine.write()
        for n in range(versions):
            txn.add(b"b", n.to_bytes(ENTRY_BYTES, "big"))
        txn.commit()
        with contextlib.closing(engine.read()) as view:
            asked = (
                partial(view.newest_page, b"", None, bytes(ENTRY_BYTES), 10),
                partial(view.newest_page, b"a", b"c", at, 10),
                partial(view.newest_at, b"b", at),
                partial(view.entries, b"b", at, 3, reverse=True),
            )
            counts.append([steps(view, call) for call in asked])
            everything = steps(view, partial(view.entries, b"b", b"", 9999))
    assert everything > 100
    assert all(many <= few + 2 for few, many in zip(*counts, strict=True))


def test_page_of_keys_stops_at_its_limit(open_engine: Open) -> None:
    engine = open_engine()
    txn = engine.write()
    for n in range(5000):
        txn.add(b"%05d" % n, bytes(ENTRY_BYTES))
    txn.commit()
    with contextlib.closing(engine.read()) as view:
        few = steps(view, lambda: view.newest_page(b"", None, b"", 10))
        many = steps(view, lambda: view.newest_page(b"", None, b"", 9999))
    assert few <= 10 < 500 < many
