"""Trouble that only the LMDB engine has: errors of the library, maps that fill, a meta page that cannot be written."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack_into
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

import mvccstore
from mvccstore import (
    ClosedError,
    CorruptError,
    EngineOptions,
    FormatError,
    LockedError,
    StorageError,
    StorageFullError,
)
from mvccstore.engine import disk, lmdb_environment, lockfile
from mvccstore.engine.lmdb import LmdbEngine
from mvccstore.engine.lmdb_environment import MAP_BYTES_MIN, copy_pages, open_environment, translated
from mvccstore.engine.lmdb_file import examine, structure_problems
from mvccstore.tables import Table
from tests.concurrency.bench import SECONDS, Threads, run_program
from tests.unit.engine_kit import add, entry, look, put, write

PAGE_BYTES = 4096
KEY, LONG_KEY = b"key", b"long/" + b"x" * 900
Open = Callable[..., LmdbEngine]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def open_engine(path: Path) -> Iterator[Open]:
    opened: list[LmdbEngine] = []

    def open_one(map_bytes: int = MAP_BYTES_MIN, **more: bool) -> LmdbEngine:
        options = EngineOptions(str(path), **{"sync_commits": False, **more})
        opened.append(LmdbEngine(options, map_bytes=map_bytes))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


class Faulty:
    """An environment, a transaction or a cursor of LMDB's, of which some calls fail."""

    def __init__(self, inner: Any, error: BaseException, *names: str) -> None:
        self.inner, self.error, self.names = inner, error, names

    def __getattr__(self, name: str) -> Any:
        if name in self.names:
            return self.fail
        method = getattr(self.inner, name)
        if name not in {"begin", "cursor"}:
            return method
        return lambda *args, **more: Faulty(method(*args, **more), self.error, *self.names)

    def __enter__(self) -> Any:
        return self.inner.__enter__()

    def __exit__(self, *exc_info: object) -> None:
        self.inner.__exit__(*exc_info)

    def fail(self, *args: object, **more: object) -> Any:
        raise self.error


LOOKUPS = (
    "get", "cursor", "stat", "first", "set_range", "set_key", "iternext", "set_range_dup", "get_multi", "delete", "put",
)  # fmt: skip


def failing(engine: LmdbEngine, error: BaseException, *names: str) -> Callable[[], None]:
    """Make calls of the engine's library fail. Return what ends it."""
    environment: Any = engine._env
    engine._env = Faulty(environment, error, *names)  # type: ignore[assignment]

    def mend() -> None:
        engine._env = environment

    return mend


def error_of(number: int, kind: type[lmdb.Error] = lmdb.Error) -> lmdb.Error:
    error = kind("what LMDB says")
    error.code = number  # type: ignore[misc]
    return error


# Errors of the library


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (error_of(errno.ENOSPC), StorageFullError),
        (error_of(errno.EDQUOT), StorageFullError),
        (error_of(errno.EFBIG), StorageFullError),
        (lmdb.MapFullError("full"), StorageFullError),
        (lmdb.VersionMismatchError("old"), FormatError),
        (lmdb.CorruptedError("damaged"), CorruptError),
        (lmdb.PageNotFoundError("no page"), CorruptError),
        (lmdb.InvalidError("no LMDB file"), CorruptError),
        (lmdb.BadTxnError("was given up"), CorruptError),
        (error_of(errno.EACCES), StorageError),
        (lmdb.ReadersFullError("too many"), StorageError),
    ],
)
def test_error_of_lmdb_is_the_one_of_ours_that_says_what_to_do(
    path: Path, error: lmdb.Error, expected: type[StorageError]
) -> None:
    found = translated(error, str(path))
    assert type(found) is expected
    assert found.path == str(path)


@pytest.mark.parametrize("is_full", [True, False])
def test_short_write_is_a_full_disk_only_if_the_disk_is_full(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    monkeypatch.setattr(lmdb_environment, "is_disk_full", lambda _: is_full)
    assert (type(translated(error_of(errno.EIO), str(path))) is StorageFullError) is is_full


READS: dict[str, Callable[[Any], object]] = {
    "get": lambda txn: txn.get(Table.META, KEY),
    "get_many": lambda txn: txn.get_many(Table.META, [KEY]),
    "page": lambda txn: txn.page(Table.META, b"", None, 5),
    "newest": lambda txn: txn.newest(KEY),
    "newest of a long key": lambda txn: txn.newest(LONG_KEY),
    "newest_at": lambda txn: txn.newest_at(KEY, entry(0)),
    "newest_page": lambda txn: txn.newest_page(b"", None, entry(0), 5),
    "entries": lambda txn: txn.entries(KEY, b"", 5),
    "length": lambda txn: txn.length(Table.META),
    "length of the index": lambda txn: txn.length(None),
}


@pytest.mark.parametrize("read", READS)
def test_read_of_a_damaged_page_is_a_corrupt_error_and_other_views_go_on(open_engine: Open, read: str) -> None:
    engine = open_engine()
    write(engine, put(KEY, b"1"), add(KEY, 1), add(LONG_KEY, 1))
    expected = look(engine, READS[read])
    engine.end_idle_views()
    mend = failing(engine, lmdb.CorruptedError("damaged"), *LOOKUPS)
    with engine.read() as view, pytest.raises(CorruptError):
        READS[read](view)
    mend()
    engine.end_idle_views()
    assert look(engine, READS[read]) == expected


WRITES: dict[str, Callable[[Any], object]] = {
    "put": lambda txn: txn.put(Table.META, KEY, b"2"),
    "append": lambda txn: txn.append(Table.LOG, b"\xff" * 12, b"2"),
    "delete": lambda txn: txn.delete(Table.META, [KEY]),
    "add": lambda txn: txn.add(KEY, entry(2)),
    "add to a long key": lambda txn: txn.add(LONG_KEY, entry(2)),
    "remove": lambda txn: txn.remove(KEY, [entry(1)]),
}


@pytest.mark.parametrize(
    ("error", "expected"),
    [(lmdb.CorruptedError("damaged"), CorruptError), (error_of(errno.ENOSPC), StorageFullError)],
    ids=["damage", "full"],
)
@pytest.mark.parametrize("change", WRITES)
def test_write_that_lmdb_refuses_gives_the_transaction_up_and_leaves_no_trace(
    open_engine: Open, change: str, error: lmdb.Error, expected: type[StorageError]
) -> None:
    engine = open_engine()
    write(engine, put(KEY, b"1"), add(KEY, 1), add(LONG_KEY, 1))
    mend = failing(engine, error, *LOOKUPS)
    txn = engine.write()
    with pytest.raises(expected):
        WRITES[change](txn)
    assert not txn.is_open
    txn.close()
    mend()
    assert look(engine, lambda view: (view.get(Table.META, KEY), view.entries(KEY, b"", 9))) == (b"1", [entry(1)])
    write(engine, WRITES[change])


@pytest.mark.parametrize("change", ["delete", "remove"])
def test_what_a_cursor_makes_of_a_damaged_page_is_a_corrupt_error(open_engine: Open, change: str) -> None:
    engine = open_engine()
    write(engine, put(KEY, b"1"), add(KEY, 1))
    failing(engine, SystemError("returned NULL without setting an exception"), "cursor", "delete")
    with pytest.raises(CorruptError, match="damaged page"):
        WRITES[change](engine.write())


def test_record_that_cannot_be_appended_in_order_is_told(open_engine: Open) -> None:
    engine = open_engine()
    write(engine, lambda txn: txn.append(Table.LOG, b"\x02" * 12, b"1"))
    with pytest.raises(CorruptError, match="has a key above the next one"):
        engine.write().append(Table.LOG, b"\x01" * 12, b"1")


@pytest.mark.parametrize("call", ["read", "write", "sync"])
def test_transaction_or_sync_that_lmdb_refuses_is_a_storage_error(open_engine: Open, call: str) -> None:
    engine = open_engine()
    mend = failing(engine, lmdb.ReadersFullError("too many readers"), "begin", "sync")
    with pytest.raises(StorageError, match="too many readers"):
        getattr(engine, call)()
    mend()
    write(engine, put(KEY, b"1"))


def test_tables_that_cannot_be_opened_leave_no_lock(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, expected in (
        (lmdb.DbsFullError("too many"), FormatError),
        (lmdb.IncompatibleError("other flags"), FormatError),
        (lmdb.CorruptedError("damaged"), CorruptError),
    ):
        with monkeypatch.context() as patch:
            real = lmdb.open
            patch.setattr(lmdb, "open", lambda *args, e=error, r=real, **more: Faulty(r(*args, **more), e, "open_db"))
            with pytest.raises(expected):
                open_engine()
    write(open_engine(), put(KEY, b"1"))


# The map


class WatchedEngine(LmdbEngine):
    """Tells when it waits for views."""

    waits: threading.Event

    def _wait_for_views(self) -> None:
        self.waits.set()
        super()._wait_for_views()


def test_i4_map_that_fills_grows_when_the_last_view_is_closed(path: Path) -> None:
    engine = WatchedEngine(EngineOptions(str(path), sync_commits=False), map_bytes=MAP_BYTES_MIN)
    engine.waits = threading.Event()
    write(engine, put(KEY, b"1"))
    view = engine.read()
    changes = [put(b"%d" % number, bytes(1 << 16)) for number in range(40)]
    with Threads() as threads:
        writer = threads.start(lambda: write(engine, *changes))
        assert engine.waits.wait(SECONDS)
        assert writer.is_alive()
        assert (view.get(Table.META, KEY), view.get(Table.META, b"0")) == (b"1", None)
        view.close()
    assert look(engine, lambda txn: txn.length(Table.META)) == 41
    assert engine.problems() == []
    engine.close()


def test_map_that_cannot_grow_is_a_full_store_and_what_it_holds_stays(open_engine: Open) -> None:
    engine = open_engine()
    write(engine, put(KEY, b"1"))
    mend = failing(engine, lmdb.MemoryError("no address space"), "set_mapsize")
    with pytest.raises(StorageFullError, match="cannot map 2,097,152 bytes"):
        write(engine, put(b"large", bytes(2 << 20)))
    write(engine, put(b"small", b"2"))
    mend()
    write(engine, put(b"large", bytes(2 << 20)))
    assert look(engine, lambda txn: txn.length(Table.META)) == 3


_OTHER_WRITER = """
    import sys
    from mvccstore.engine import EngineOptions
    from mvccstore.engine.lmdb import LmdbEngine
    from tests.unit.engine_kit import put, write
    engine = LmdbEngine(EngineOptions(sys.argv[1], sync_commits=False), map_bytes=1 << 20)
    write(engine, *(put(b"%d" % number, bytes(1 << 16)) for number in range(40)))
    engine.close()
"""


def test_reader_follows_a_writer_in_another_process_that_outgrew_its_map(open_engine: Open, path: Path) -> None:
    writer = open_engine()
    write(writer, put(KEY, b"1"))
    writer.close()
    engine = open_engine(read_only=True)
    assert look(engine, lambda txn: txn.get(Table.META, KEY)) == b"1"
    run_program(_OTHER_WRITER, path)
    mend = failing(engine, lmdb.MemoryError("no address space"), "set_mapsize")
    with pytest.raises(StorageError, match="no address space"):
        engine.read()
    mend()
    assert look(engine, lambda txn: (txn.get(Table.META, KEY), txn.length(Table.META))) == (b"1", 41)


@pytest.mark.parametrize("room_bytes", [1 << 30, MAP_BYTES_MIN, 0])
def test_limited_address_space_is_used_as_far_as_it_goes(
    path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    def limited(*args: object, map_size: int, **more: object) -> object:
        if map_size > room_bytes:
            raise error_of(errno.ENOMEM)
        return "environment"

    monkeypatch.setattr(lmdb, "open", limited)
    options = EngineOptions(str(path))
    if not room_bytes:
        with pytest.raises(StorageError, match="Cannot allocate memory"):
            open_environment(str(path), options, 1 << 36)
    else:
        assert open_environment(str(path), options, 1 << 36) == ("environment", room_bytes)  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("read_only", [True, False])
def test_directory_nobody_can_write_to_is_read_without_a_reader_table(
    path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    def unwritable(*args: object, lock: bool, **more: object) -> object:
        if lock:
            raise error_of(errno.EROFS)
        return "environment"

    monkeypatch.setattr(lmdb, "open", unwritable)
    options = EngineOptions(str(path), read_only=read_only)
    if read_only:
        assert open_environment(str(path), options, 1 << 20) == ("environment", 1 << 20)  # type: ignore[comparison-overlap]
    else:
        with pytest.raises(StorageError, match="Read-only file system"):
            open_environment(str(path), options, 1 << 20)


# The meta page


def break_meta_writes(path: Path) -> None:
    """Make the descriptor that LMDB writes its meta pages through one that cannot be written."""
    found = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a Path of each would do no better
        fd = int(name)
        try:
            is_meta = Path(f"/proc/self/fd/{fd}").readlink() == path and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DSYNC
        except OSError:
            continue
        if is_meta:
            unwritable = os.open(path, os.O_RDONLY)
            os.dup2(unwritable, fd, inheritable=False)
            os.close(unwritable)
            found += 1
    assert found == 1


def test_store_goes_on_after_a_meta_page_could_not_be_written(path: Path) -> None:
    with mvccstore.open(path) as store:
        store.put(b"a", b"1")
        break_meta_writes(path.resolve())
        with pytest.raises(StorageError, match="Bad file descriptor"):
            store.put(b"b", b"1")
        assert (store.revision, store.get(b"b")) == (2, None)
        assert store.put(b"b", b"2") == 3
        assert store.check() == []
    with mvccstore.open(path) as store:
        assert [(kv.key, kv.value) for kv in store.scan(mvccstore.KeyRange.all())] == [(b"a", b"1"), (b"b", b"2")]


def test_i4_file_is_reopened_when_the_last_view_is_closed(path: Path) -> None:
    engine = WatchedEngine(EngineOptions(str(path)), map_bytes=MAP_BYTES_MIN)
    engine.waits = threading.Event()
    write(engine, put(KEY, b"1"))
    view = engine.read()
    break_meta_writes(path.resolve())

    def refused() -> None:
        with pytest.raises(StorageError):
            write(engine, put(KEY, b"2"))

    with Threads() as threads:
        writer = threads.start(refused)
        assert engine.waits.wait(SECONDS)
        assert writer.is_alive()
        assert view.get(Table.META, KEY) == b"1"
        view.close()
    assert look(engine, lambda txn: txn.get(Table.META, KEY)) == b"1"
    write(engine, put(KEY, b"3"))
    assert look(engine, lambda txn: txn.get(Table.META, KEY)) == b"3"
    engine.close()


def test_commit_that_fails_beside_another_trouble_says_what_failed_first(open_engine: Open) -> None:
    engine = open_engine()
    txn: Any = engine.write()
    txn.put(Table.META, KEY, b"1")
    txn.txn = Faulty(txn.txn, error_of(errno.ENOSPC), "commit")
    mend = failing(engine, lmdb.ReadersFullError("too many readers"), "begin")
    with pytest.raises(StorageFullError):
        txn.commit()
    mend()
    assert look(engine, lambda view: view.get(Table.META, KEY)) is None


# The file


def test_engine_needs_a_path() -> None:
    with pytest.raises(ValueError, match="needs a path"):
        LmdbEngine(EngineOptions(None))


def file_with(path: Path, layout: str, at: int, value: int) -> None:
    """Make a store of which a field of both meta pages is overwritten."""
    LmdbEngine(EngineOptions(str(path), sync_commits=False)).close()
    changed = bytearray(path.read_bytes())
    for page in (0, 1):
        pack_into(layout, changed, page * PAGE_BYTES + at, value)
    path.write_bytes(changed)


@pytest.mark.parametrize(
    ("layout", "at", "value", "expected", "match"),
    [
        ("<I", 20, 999, FormatError, "data format 999; this engine reads 1"),
        ("<H", 10, 0, CorruptError, "meta page is damaged"),
        ("<I", 40, 4097, CorruptError, "meta page is damaged"),
        ("<I", 16, 0, FormatError, "not a store"),
    ],
    ids=["version", "flags", "page size", "magic"],
)
def test_meta_page_that_cannot_be_used_is_told_before_the_file_is_mapped(
    path: Path, layout: str, at: int, value: int, expected: type[StorageError], match: str
) -> None:
    file_with(path, layout, at, value)
    before = path.read_bytes()
    with pytest.raises(expected, match=match):
        LmdbEngine(EngineOptions(str(path)))
    assert path.read_bytes() == before
    assert not path.with_name("store-writer").exists()


def test_page_structure_that_cannot_be_walked_is_a_problem(path: Path) -> None:
    file_with(path, "<I", 16, 0)
    (problem,) = structure_problems(str(path))
    assert problem.startswith("page structure: ")


def test_file_that_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    for call in (lambda name: examine(name, may_extend=False), structure_problems):
        with pytest.raises(StorageError, match="Is a directory"):
            call(str(tmp_path))


def test_copy_that_fails_is_told(open_engine: Open, tmp_path: Path) -> None:
    engine = open_engine()
    (tmp_path / "taken").touch()
    with pytest.raises(StorageError, match="File exists"):
        copy_pages(engine._env, str(tmp_path / "taken"))
    with pytest.raises(StorageFullError):
        copy_pages(Faulty(None, error_of(errno.ENOSPC), "copyfd"), str(tmp_path / "copy"))  # type: ignore[arg-type]


def test_engine_closed_under_a_forgotten_view_ends_with_it(open_engine: Open) -> None:
    engine = open_engine()
    write(engine, put(KEY, b"1"))
    view = engine.read()
    engine.close()
    assert view.get(Table.META, KEY) == b"1"
    with pytest.raises(LockedError):
        open_engine()
    with pytest.raises(ClosedError):
        engine.read()
    with pytest.raises(ClosedError):
        engine.write()
    del view
    gc.collect()
    assert look(open_engine(), lambda txn: txn.get(Table.META, KEY)) == b"1"


# The disk, and the lock


def test_disk_is_full_when_little_is_left_of_it_or_of_what_the_process_may_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(bytes(1 << 10))
    plenty = SimpleNamespace(f_bavail=1 << 20, f_frsize=PAGE_BYTES)
    limit = [resource.RLIM_INFINITY]
    monkeypatch.setattr(os, "statvfs", lambda _: plenty)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit[0], resource.RLIM_INFINITY))
    assert not disk.is_full(str(path))
    limit[0] = disk.ROOM_BYTES
    assert disk.is_full(str(path))
    limit[0] = resource.RLIM_INFINITY
    plenty.f_bavail = 1
    assert disk.is_full(str(path))


def test_disk_that_cannot_be_asked_is_not_called_full(path: Path) -> None:
    assert not disk.is_full(str(path / "no" / "such"))


def test_file_that_cannot_be_synced_is_a_storage_error(path: Path) -> None:
    disk.fsync_file(str(path), str(path))  # there is none
    path.touch()
    for name in (str(path / "inside a file"), "/dev/null"):
        with pytest.raises(StorageError) as caught:
            disk.fsync_file(name, str(path))
        assert caught.value.path == str(path)


@pytest.mark.parametrize("next_holder", [False, True])
def test_lock_file_that_its_holder_removed_meanwhile_is_not_the_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch, next_holder: bool
) -> None:
    lock_path = path.with_name("store-writer")
    real = fcntl.flock
    asked: list[int] = []

    def flock(fd: int, operation: int) -> None:
        if not asked:  # the holder ends between our open and our lock
            lock_path.unlink()
            if next_holder:
                lock_path.touch()
        asked.append(fd)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = lockfile.WriterLock(str(path))
    assert len(asked) == 2
    assert lockfile.holder_here(str(path)) == lock_path.read_text().strip()
    lock.release()
    lock.release()
    assert not lock_path.exists()
