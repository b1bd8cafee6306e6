"""Trouble with what lies under a store: files that are not one, damage, full disks, missing rights, backups.

What could kill the interpreter (a map of a damaged file) or changes the process (limits, user) happens in
a process of its own. The rule for damage: right data, a `StoreError`, or a problem told by `check`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

import mvccstore
from mvccstore import (
    CorruptError,
    EngineOptions,
    FormatError,
    KeyRange,
    StorageError,
    StorageFullError,
    Store,
)
from mvccstore.codec import pack
from mvccstore.engine import open_engine
from mvccstore.tables import Table
from tests.concurrency.bench import run_program
from tests.crash.damage_worker import build

OpenStore = Callable[..., Store]

ROOT = Path(__file__).parents[2]
ALL = KeyRange.all()
FILE_ENGINES = ("lmdb", "sqlite")
SECONDS = 120

on_files = pytest.mark.parametrize("engine", FILE_ENGINES)


def run(arguments: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python program that can import this project."""
    return subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def listing(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        for path in directory.iterdir()
    }


# Files that are not stores


def foreign_lmdb(path: Path, *names: bytes) -> None:
    with lmdb.open(str(path), subdir=False, max_dbs=8, map_size=1 << 20) as env:
        if not names:
            with env.begin(write=True) as txn:
                txn.put(b"a", b"1")
        for name in names:
            database = env.open_db(name)
            with env.begin(write=True) as txn:
                txn.put(b"a", b"1", db=database)
    path.with_name(path.name + "-lock").unlink()


def foreign_sqlite(path: Path, table: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE {table} (k BLOB, v BLOB)")
    connection.execute(f"INSERT INTO {table} VALUES (x'61', x'31')")
    connection.commit()
    connection.close()


FOREIGN: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("Dear diary, today nothing was stored.\n" * 300),
    "short text": lambda path: path.write_text("hello"),
    "one byte": lambda path: path.write_bytes(b"\0"),
    "png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(1).randbytes(20_000)),
    "zeros": lambda path: path.write_bytes(bytes(20_000)),
    "noise": lambda path: path.write_bytes(random.Random(2).randbytes(20_000)),
    "lmdb, one table": foreign_lmdb,
    "lmdb, tables": lambda path: foreign_lmdb(path, b"users", b"orders"),
    "lmdb, tables named like ours": lambda path: foreign_lmdb(path, b"meta", b"log"),
    "sqlite": lambda path: foreign_sqlite(path, "users"),
    "sqlite, table named like ours": lambda path: foreign_sqlite(path, "meta"),
    "sqlite header only": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(84)),
    "sqlite header and noise": lambda path: path.write_bytes(b"SQLite format 3\0" + random.Random(3).randbytes(9_000)),
    "lmdb header only": lambda path: path.write_bytes(
        bytes(10) + b"\x08" + bytes(5) + b"\xde\xc0\xef\xbe" + b"\1\0\0\0"
    ),
}


@pytest.mark.parametrize("how", ["writable", "read-only", "as lmdb", "as sqlite"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_file_that_is_not_a_store_is_refused_and_left_alone(tmp_path: Path, kind: str, how: str) -> None:
    path = tmp_path / "file"
    FOREIGN[kind](path)
    before = listing(tmp_path)
    options: dict[str, Any] = {
        "writable": {},
        "read-only": {"read_only": True},
        "as lmdb": {"engine": "lmdb"},
        "as sqlite": {"engine": "sqlite"},
    }[how]
    with pytest.raises((FormatError, CorruptError)):
        mvccstore.open(path, **options)
    assert listing(tmp_path)["file"] == before["file"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_file_that_is_not_a_store_is_no_backup(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    FOREIGN[kind](path)
    before = listing(tmp_path)["file"]
    with pytest.raises((FormatError, CorruptError)):
        mvccstore.restore(path, tmp_path / "restored")
    assert listing(tmp_path)["file"] == before
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("options", [{}, {"read_only": True}, {"engine": "lmdb"}, {"engine": "sqlite"}])
def test_directory_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(StorageError):
        mvccstore.open(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@on_files
def test_empty_file_becomes_a_store(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "store"
    path.touch()
    with mvccstore.open(path, engine=engine) as store:
        assert store.put(b"k", b"v") == 2
        assert store.check() == []
    with mvccstore.open(path) as store:
        assert store.stats().engine == engine
        assert store.revision == 2


@on_files
@pytest.mark.parametrize("option", [{"read_only": True}, {"create": False}])
def test_empty_file_is_not_a_store_to_be_read(tmp_path: Path, engine: str, option: dict[str, Any]) -> None:
    path = tmp_path / "store"
    path.touch()
    with pytest.raises(StorageError):
        mvccstore.open(path, engine=engine, **option)
    assert path.read_bytes() == b""


# Formats


def small(path: Path, engine: str) -> None:
    with mvccstore.open(path, engine=engine, durability="os") as store:
        for i in range(5):
            store.put(b"k", b"%d" % i)
        store.compact(3, physical=True)


def patch_meta(path: Path, engine: str, name: bytes, value: bytes) -> None:
    raw = open_engine(engine, EngineOptions(str(path)))
    txn = raw.write()
    txn.put(Table.META, name, value)
    txn.commit()
    raw.close()


@on_files
@pytest.mark.parametrize("read_only", [False, True])
def test_store_of_a_newer_format_is_refused_and_left_alone(tmp_path: Path, engine: str, read_only: bool) -> None:
    path = tmp_path / "store"
    small(path, engine)
    record = pack({"name": "mvccstore", "version": 99, "more": [1, 2]})
    patch_meta(path, engine, b"format", record)
    with pytest.raises(FormatError, match="99"):
        mvccstore.open(path, read_only=read_only)
    with pytest.raises(FormatError, match="99"):
        mvccstore.restore(path, tmp_path / "restored")
    raw = open_engine(engine, EngineOptions(str(path), read_only=True))
    view = raw.read()
    assert view.get(Table.META, b"format") == record
    view.close()
    raw.close()


def test_sqlite_file_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    small(path, "sqlite")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FormatError, match="99"):
        mvccstore.open(path)


GARBAGE = {
    "nothing": b"",
    "not msgpack": b"\xc1\xff\xff",
    "cut": pack({"name": "mvccstore", "version": 1})[:-3],
    "number": pack(1),
    "list": pack([1, 2]),
    "nil": pack(None),
    "text": pack("mvccstore"),
    "map without a version": pack({"name": "mvccstore"}),
    "map with a text version": pack({"name": "mvccstore", "version": "1"}),
    "map with a list version": pack({"name": "mvccstore", "version": [1]}),
}


@on_files
@pytest.mark.parametrize("kind", GARBAGE)
def test_damaged_format_record_is_told(tmp_path: Path, engine: str, kind: str) -> None:
    path = tmp_path / "store"
    small(path, engine)
    patch_meta(path, engine, b"format", GARBAGE[kind])
    for read_only in (True, False):
        with pytest.raises((CorruptError, FormatError)):
            mvccstore.open(path, read_only=read_only)


BAD_COMPACTIONS = {
    **{kind: record for kind, record in GARBAGE.items() if not kind.startswith("map")},
    "texts": pack(("a", "b", "c", "d")),
    "halves": pack((3.5, 3.5, -1, b"")),
    "nils": pack((None, None, None, None)),
    "bytes": pack((b"3", b"3", b"", b"")),
    "bools": pack((True, True, False, b"")),
    "cursor of text": pack((3, 3, -1, "cursor")),
    "too many": pack((3, 3, -1, b"", 5)),
    "far below": pack((-9, -9, -9, b"")),
    "reclaimed above": pack((3, 4, -1, b"")),
    "target above": pack((3, 2, 5, b"")),
    "beyond 64 bits": pack((2**64 - 1, 2**64 - 1, -1, b"")),
}


@on_files
@pytest.mark.parametrize("kind", BAD_COMPACTIONS)
def test_damaged_compaction_record_is_told(tmp_path: Path, engine: str, kind: str) -> None:
    path = tmp_path / "store"
    small(path, engine)
    patch_meta(path, engine, b"compaction", BAD_COMPACTIONS[kind])
    for read_only in (True, False):
        try:
            store = mvccstore.open(path, read_only=read_only)
        except (CorruptError, FormatError):
            continue
        with store:
            assert store.check() != []


# Damage


def damage_faults(original: Path, specs: list[list[object]]) -> list[str]:
    """Have every kind of damage tried; return what is wrong with how the store took it, crashes included."""
    copy = original.with_name("damaged")
    faults: list[str] = []
    while specs:
        done = run(["-m", "tests.crash.damage_worker", str(original), str(copy)], json.dumps(specs))
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        ends = [(damage, found) for damage, stage, found in lines if stage == "end"]
        faults += [f"{damage}: {fault}" for damage, found in ends for fault in found]
        if done.returncode == 0:
            assert len(ends) == len(specs)
            break
        assert lines, done.stderr[-2_000:]
        damage, stage, is_told = lines[-1]
        assert stage != "end", done.stderr[-2_000:]
        if done.returncode > 0 or not is_told or stage == "check":
            faults.append(f"{damage}: died in {stage} with {done.returncode}: {done.stderr[-300:]}")
        specs = specs[len(ends) + 1 :]
    return faults


def original(tmp_path: Path, engine: str) -> tuple[Path, int]:
    path = tmp_path / "original"
    build(path, engine)
    return path, path.stat().st_size


@on_files
@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("seed", [1, 2])
def test_bit_flips_are_harmless_or_told(tmp_path: Path, engine: str, seed: int) -> None:
    path, size = original(tmp_path, engine)
    rng = random.Random(seed)
    specs: list[list[object]] = [["flip", rng.randrange(size), rng.randrange(8)] for _ in range(110)]
    assert damage_faults(path, specs) == []


@on_files
@pytest.mark.slow
@pytest.mark.crash
def test_bit_flips_in_headers_are_harmless_or_told(tmp_path: Path, engine: str) -> None:
    path, size = original(tmp_path, engine)
    rng = random.Random(3)
    header_bytes = 200 if engine == "lmdb" else 100
    pages = range(0, size, 4096)
    specs: list[list[object]] = [["flip", at, rng.randrange(8)] for at in range(0, header_bytes, 2)]
    specs += [["flip", page + rng.randrange(16), rng.randrange(8)] for page in pages for _ in range(2)]
    if engine == "lmdb":
        specs += [["flip", 4096 + at, rng.randrange(8)] for at in range(1, header_bytes, 4)]
    assert damage_faults(path, specs) == []


@on_files
@pytest.mark.slow
@pytest.mark.crash
def test_bit_flips_in_the_compaction_record_are_harmless_or_told(tmp_path: Path, engine: str) -> None:
    path, _ = original(tmp_path, engine)
    data = path.read_bytes()
    rng = random.Random(4)
    specs: list[list[object]] = []
    at = data.find(b"compaction")
    assert at > 0
    while at > 0:
        record = at + len(b"compaction")
        specs += [["flip", record + offset, bit] for offset in range(5) for bit in range(8)]
        specs += [["flip", at - 1 - offset, rng.randrange(8)] for offset in range(10)]
        at = data.find(b"compaction", record)
    assert damage_faults(path, rng.sample(specs, min(len(specs), 120))) == []


@on_files
@pytest.mark.slow
@pytest.mark.crash
def test_files_cut_short_are_told(tmp_path: Path, engine: str) -> None:
    path, size = original(tmp_path, engine)
    rng = random.Random(5)
    sizes = {*range(1, 200, 13), *range(0, size, 4096), *(rng.randrange(size) for _ in range(30)), size - 1}
    assert damage_faults(path, [["cut", length] for length in sorted(sizes - {0})]) == []


@on_files
@pytest.mark.slow
@pytest.mark.crash
def test_lost_and_misplaced_blocks_are_told(tmp_path: Path, engine: str) -> None:
    path, size = original(tmp_path, engine)
    rng = random.Random(6)
    pages = range(size // 4096)
    specs: list[list[object]] = [["zero", page * 4096, 4096] for page in pages]
    specs += [["zero", rng.randrange(size // 512) * 512, 512] for _ in range(40)]
    specs += [["swap", page * 4096, rng.choice(pages) * 4096, 4096] for page in pages]
    assert damage_faults(path, specs) == []


# Full disks and quotas

_FULL = """
    import resource, sys
    import mvccstore
    from mvccstore import KeyRange, Op, StorageFullError

    path, engine, durability, way = sys.argv[1:]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = mvccstore.open(path, engine=engine, durability=durability)
    acknowledged = {}

    def write(i):
        key, value = b"%06d" % i, bytes([i % 256]) * 3_000
        if way == "put":
            store.put(key, value)
        elif way == "txn":
            store.txn(success=[Op.put(key, value), Op.put(b"last", key)])
        else:
            with store.begin() as txn:
                txn.put(key, value)
                txn.put(b"last", key)
        acknowledged[key] = value

    def holds():
        rows = {kv.key: kv.value for kv in store.scan(KeyRange.all())}
        last = rows.pop(b"last", None)
        assert rows == acknowledged, (len(rows), len(acknowledged))
        assert last is None or last == max(acknowledged)
        assert store.revision == len(acknowledged) + 1
        assert store.check() == [], store.check()

    for i in range(50):
        write(i)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
    for i in range(50, 2_000):
        try:
            write(i)
        except StorageFullError as error:
            assert error.path == path, error.path
            break
    else:
        raise AssertionError("the disk was never full")
    for i in range(3_000, 3_005):
        try:
            write(i)
        except StorageFullError:
            pass
    holds()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for i in range(4_000, 4_050):
        write(i)
    holds()
    store.close()
    store = mvccstore.open(path)
    holds()
    store.close()
"""


@on_files
@pytest.mark.slow
@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize("way", ["put", "txn", "begin"])
def test_full_disk_takes_nothing_and_ends_with_room(tmp_path: Path, engine: str, durability: str, way: str) -> None:
    run_program(_FULL, tmp_path / "store", engine, durability, way)


_FULL_THREADS = """
    import resource, sys, threading
    import mvccstore
    from mvccstore import KeyRange, StorageFullError

    path, engine = sys.argv[1:]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = mvccstore.open(path, engine=engine, durability="fsync")
    acknowledged, refused, others = {}, [], []
    store.put(b"first", b"1")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))

    def work(number):
        for i in range(400):
            key, value = b"%02d/%04d" % (number, i), bytes([number]) * (4_000 if number % 2 else 40)
            try:
                store.put(key, value)
            except StorageFullError:
                refused.append(key)
                if len(refused) > 40:
                    return
            except BaseException as error:
                others.append(error)
                return
            else:
                acknowledged[key] = value

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert others == [], others
    assert refused
    rows = {kv.key: kv.value for kv in store.scan(KeyRange.all())}
    del rows[b"first"]
    assert rows == acknowledged
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store.put(b"more", b"1")
    assert store.check() == []
    store.close()
"""


@on_files
@pytest.mark.slow
def test_full_disk_under_group_commit_refuses_what_does_not_fit_and_keeps_the_rest(tmp_path: Path, engine: str) -> None:
    run_program(_FULL_THREADS, tmp_path / "store", engine)


@on_files
def test_full_disk_leaves_no_backup(tmp_path: Path, engine: str) -> None:
    with mvccstore.open(tmp_path / "store", engine=engine, durability="os") as store:
        for i in range(100):
            store.put(b"%d" % i, bytes(3_000))
    run_program(
        """
        import os, resource, sys
        import mvccstore
        directory = sys.argv[1]
        with mvccstore.open(directory + "/store") as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            for engine in ("lmdb", "sqlite"):
                try:
                    store.backup(directory + "/backup", engine=engine)
                except mvccstore.StorageFullError:
                    pass
                else:
                    raise AssertionError("a backup of a full disk")
            try:
                mvccstore.restore(directory + "/store", directory + "/restored")
            except (mvccstore.StorageFullError, mvccstore.StorageError):
                pass
            else:
                raise AssertionError("a restore on a full disk")
            assert store.count(mvccstore.KeyRange.all()) == 100
        """,
        tmp_path,
    )
    assert {path.name for path in tmp_path.iterdir()} <= {"store", "store-lock"}


QUOTA_BYTES = 1_000_000


def fill(store: Store, *, up_to: int = 10_000) -> int:
    """Put until the quota says no; return how many."""
    for i in range(up_to):
        try:
            store.put(b"%05d" % i, bytes(2_000))
        except StorageFullError:
            return i
    pytest.fail("the quota was never full")


def test_quota_refuses_growth_and_lets_everything_else_through(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine, quota_bytes=QUOTA_BYTES)
    count = fill(store)
    assert 100 < count < QUOTA_BYTES // 2_000
    revision = store.revision
    with pytest.raises(StorageFullError):
        store.txn(success=[mvccstore.Op.put(b"k", bytes(2_000))])
    with pytest.raises(StorageFullError), store.begin() as txn:
        txn.put(b"k", bytes(2_000))
    assert store.revision == revision
    assert store.get(b"00000") is not None
    assert store.count(ALL) == count
    assert store.check() == []
    assert store.txn(success=[mvccstore.Op.range(ALL, count_only=True)]).succeeded
    assert store.delete(KeyRange(b"00000", b"00100")) == 100
    store.compact(store.revision, physical=True)
    assert store.put(b"again", bytes(2_000)) == revision + 2
    assert fill(store) > 10


def test_quota_is_made_room_in_over_and_over(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine, quota_bytes=QUOTA_BYTES)
    counts = []
    for _ in range(6):
        counts.append(fill(store))
        assert store.delete(ALL) > 0
        store.compact(store.revision, physical=True)
    # Space is used again: nothing leaks from round to round.
    assert counts[-1] > counts[1] * 0.9, counts


def test_quota_is_not_used_up_by_versions_that_were_compacted_away(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine, quota_bytes=QUOTA_BYTES)
    sizes = []
    for _ in range(8):
        for key in (b"hot", b"gone"):
            for _ in range(20):
                with store.begin() as txn:
                    for i in range(50):
                        txn.put(key, b"%d" % i)
        store.delete(b"gone")
        store.put(b"other")
        store.compact(store.revision, physical=True)
        sizes.append(store.stats().used_bytes)
    assert sizes[-1] <= sizes[0] * 1.2, sizes


def test_quota_holds_for_blocks_and_many_threads(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine, quota_bytes=QUOTA_BYTES)
    refused = threading.Event()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(500):
                if number % 2:
                    store.put(b"%d/%d" % (number, i), bytes(2_000))
                else:
                    with store.begin() as txn:
                        txn.put(b"%d/%d" % (number, i), bytes(2_000))
        except StorageFullError:
            refused.set()
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert errors == []
    assert refused.is_set()
    # A write may be let in beside others that were; the quota is not overrun by more than a page for each.
    assert store.stats().used_bytes < QUOTA_BYTES * 1.1


def test_quota_of_a_full_store_is_known_when_it_is_opened(tmp_path: Path) -> None:
    for engine in FILE_ENGINES:
        path = tmp_path / engine
        with mvccstore.open(path, engine=engine, durability="os", quota_bytes=QUOTA_BYTES) as store:
            fill(store)
        with mvccstore.open(path, quota_bytes=QUOTA_BYTES) as store, pytest.raises(StorageFullError):
            store.put(b"k", bytes(20_000))
        with mvccstore.open(path) as store:
            store.put(b"k", bytes(20_000))


# Limits and rights of the process


def test_limited_address_space_still_opens_an_lmdb_store(tmp_path: Path) -> None:
    run_program(
        """
        import resource, sys
        import mvccstore
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        for _ in range(2):
            with mvccstore.open(sys.argv[1], durability="os") as store:
                with store.begin() as txn:
                    for i in range(2_000):
                        txn.put(b"%d" % i, bytes(2_000))
                assert store.check() == []
        """,
        tmp_path / "store",
    )


_AS_NOBODY = """
    import os, sys
    import mvccstore, mvccstore.engine.lmdb, mvccstore.engine.sqlite, mvccstore.engine.lockfile, encodings.idna
    from mvccstore import KeyRange, StorageError, FormatError
    store_path, program = sys.argv[1:]
    mvccstore.open().close()
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    exec(program)
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can get to; pytest's own are closed to others."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


@on_files
def test_read_only_directory_refuses_a_writer_and_is_left_alone(open_directory: Path, engine: str) -> None:
    path = open_directory / "store"
    small(path, engine)
    path.chmod(0o644)
    (open_directory / "store-lock").unlink(missing_ok=True)
    before = listing(open_directory)
    open_directory.chmod(0o555)
    program = """
try:
    mvccstore.open(store_path)
except StorageError as error:
    assert error.path == store_path, error.path
else:
    raise AssertionError("opened")
try:
    mvccstore.open(store_path + "2")
except StorageError:
    pass
else:
    raise AssertionError("created")
"""
    run_program(_AS_NOBODY, path, program)
    assert listing(open_directory) == before


def test_read_only_directory_lets_an_lmdb_store_be_read(open_directory: Path) -> None:
    path = open_directory / "store"
    small(path, "lmdb")
    path.chmod(0o444)
    (open_directory / "store-lock").unlink(missing_ok=True)
    open_directory.chmod(0o555)
    program = """
with mvccstore.open(store_path, read_only=True) as store:
    assert store.get(b"k").value == b"4"
    assert store.check() == []
"""
    run_program(_AS_NOBODY, path, program)


def test_read_only_directory_lets_a_sqlite_store_be_read_or_says_why_not(open_directory: Path) -> None:
    path = open_directory / "store"
    small(path, "sqlite")
    path.chmod(0o444)
    open_directory.chmod(0o555)
    program = """
try:
    with mvccstore.open(store_path, read_only=True) as store:
        assert store.get(b"k").value == b"4"
except StorageError as error:
    assert error.path == store_path
"""
    run_program(_AS_NOBODY, path, program)


@on_files
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_file_without_rights_is_refused(open_directory: Path, engine: str, mode: int) -> None:
    path = open_directory / "store"
    small(path, engine)
    open_directory.chmod(0o777)
    for sidecar in open_directory.iterdir():
        sidecar.chmod(mode)
    program = """
try:
    mvccstore.open(store_path)
except StorageError as error:
    assert error.path == store_path
else:
    raise AssertionError("opened")
"""
    run_program(_AS_NOBODY, path, program)
