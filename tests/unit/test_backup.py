"""Backups: whole, of one moment, between all engines; and what they must not touch or leave behind."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import mvccstore
from mvccstore import CorruptError, KeyRange, LockedError, Op, StorageError, Store
from mvccstore.types import LeaseGrantRequest, LeaseRevokeRequest
from tests.concurrency.bench import SECONDS, run_program
from tests.crash.damage_worker import build
from tests.unit.test_storage_trouble import listing, small

OpenStore = Callable[..., Store]

ALL = KeyRange.all()
FILE_ENGINES = ("lmdb", "sqlite")
on_files = pytest.mark.parametrize("engine", FILE_ENGINES)


def rich(store: Store) -> None:
    rng = random.Random(7)
    for i in range(60):
        store.put(b"key/%02d" % rng.randrange(20), b"%d" % i)
    store.put(b"long" * 300, b"1")
    store.put(b"large", rng.randbytes(50_000))
    store.submit(LeaseGrantRequest(5, 60_000))
    store.submit(LeaseGrantRequest(-6, 60_000))
    store.put(b"leased", b"1", lease=5)
    store.put(b"leased too", b"1", lease=-6)
    store.delete(KeyRange.prefix(b"key/0"))
    store.compact(30)
    store.delete(b"key/11")
    store.put(b"key/11", b"again")


def history(store: Store) -> tuple[object, ...]:
    return (
        store.revision,
        store.compact_revision,
        store.hash_kv(),
        tuple(store.history(ALL)),
        tuple(store.scan(ALL)),
        store.stats().leases,
    )


@pytest.mark.parametrize("copy", FILE_ENGINES)
@pytest.mark.parametrize("restored", FILE_ENGINES)
def test_backup_and_restore_keep_everything_between_all_engines(
    open_store: OpenStore, tmp_path: Path, engine: str, copy: str, restored: str
) -> None:
    store = open_store(engine=engine)
    rich(store)
    store.backup(tmp_path / "backup", engine=copy)
    with mvccstore.open(tmp_path / "backup", read_only=True) as backup:
        assert backup.stats().engine == copy
        assert backup.check() == []
        assert history(backup) == history(store)
    assert mvccstore.restore(tmp_path / "backup", tmp_path / "restored", engine=restored) == store.revision
    with mvccstore.open(tmp_path / "restored") as again:
        assert again.stats().engine == restored
        assert again.check() == []
        assert history(again) == history(store)
        assert again.put(b"next", b"1") == store.revision + 1
        assert again.delete(b"leased") == 1
        again.compact(again.revision, physical=True)
        assert again.check() == []


def test_restore_keeps_the_engine_of_the_backup(open_store: OpenStore, tmp_path: Path, engine: str) -> None:
    store = open_store(engine=engine)
    rich(store)
    store.backup(tmp_path / "backup")
    mvccstore.restore(tmp_path / "backup", tmp_path / "restored")
    with mvccstore.open(tmp_path / "restored") as again:
        assert again.stats().engine == ("lmdb" if engine == "memory" else engine)
        assert history(again) == history(store)


@pytest.mark.parametrize("copy", FILE_ENGINES)
def test_backup_beside_writers_is_one_state_of_the_store(
    open_store: OpenStore, tmp_path: Path, engine: str, copy: str
) -> None:
    store = open_store(engine=engine)
    stop = threading.Event()
    errors: list[BaseException] = []
    for i in range(500):
        store.put(b"ballast/%d" % i, bytes(100))

    def write(number: int) -> None:
        try:
            i = 0
            while not stop.is_set():
                i += 1
                pair = b"pair/%d/%d" % (number, i // 40)
                store.txn(success=[Op.put(pair + side, b"%d" % i) for side in (b"/a", b"/b")])
                if i % 50 == 0:
                    store.compact(keep_revisions=20)
        except mvccstore.CompactedError:
            pass
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(4):
            before = store.revision
            store.backup(tmp_path / f"backup{i}", engine=copy)
            after = store.revision
            with mvccstore.open(tmp_path / f"backup{i}", read_only=True) as backup:
                # What a writer has committed and is about to publish may be in it.
                assert before <= backup.revision <= after + len(threads)
                assert backup.check() == []
                rows = {kv.key: kv for kv in backup.scan(ALL)}
                for key, kv in rows.items():
                    if key.endswith(b"/a"):
                        assert rows[key[:-1] + b"b"][1:] == kv[1:]
                assert backup.revision >= max(kv.mod_revision for kv in rows.values())
    finally:
        stop.set()
        for thread in threads:
            thread.join(SECONDS)
    assert errors == []


@on_files
@pytest.mark.parametrize("versions", [50, 100, 5_000])
def test_key_of_many_versions_is_backed_up_and_restored(tmp_path: Path, engine: str, versions: int) -> None:
    # In a process of its own: LMDB's compacting copy of such a key has crashed the interpreter.
    run_program(
        """
        import sys
        import mvccstore
        directory, engine, versions = sys.argv[1:]
        with mvccstore.open(directory + "/store", engine=engine, durability="os") as store:
            with store.begin() as txn:
                txn.put(b"other")
            for i in range(int(versions) // 50):
                with store.begin() as txn:
                    for j in range(50):
                        txn.put(b"hot", b"%d" % j)
            store.backup(directory + "/backup")
            expected = store.hash_kv()
        mvccstore.restore(directory + "/backup", directory + "/restored")
        for name in ("backup", "restored"):
            with mvccstore.open(directory + "/" + name) as copy:
                assert copy.check() == []
                assert copy.hash_kv() == expected
        """,
        tmp_path,
        engine,
        versions,
    )


@on_files
def test_restore_refuses_a_damaged_backup_and_leaves_the_target(tmp_path: Path, engine: str) -> None:
    build(tmp_path / "backup", engine)
    small(tmp_path / "target", engine)
    data = (tmp_path / "backup").read_bytes()
    (tmp_path / "backup").write_bytes(data.replace(b"block/07", b"block/0x"))
    before = listing(tmp_path)
    with pytest.raises(CorruptError) as caught:
        mvccstore.restore(tmp_path / "backup", tmp_path / "target", overwrite=True)
    assert caught.value.problems
    with pytest.raises(CorruptError):
        mvccstore.restore(tmp_path / "backup", tmp_path / "new")
    after = listing(tmp_path)
    assert {name: after[name] for name in before if name in ("backup", "target")} == {
        name: before[name] for name in before if name in ("backup", "target")
    }
    assert not any("new" in name or "partial" in name for name in after)


@on_files
def test_restore_over_an_open_store_is_refused(open_store: OpenStore, tmp_path: Path, engine: str) -> None:
    small(tmp_path / "backup", engine)
    store = open_store("target", engine=engine)
    rich(store)
    before = history(store)
    with pytest.raises(LockedError):
        mvccstore.restore(tmp_path / "backup", tmp_path / "target", overwrite=True)
    assert history(store) == before
    store.put(b"k", b"v")
    store.close()
    with mvccstore.open(tmp_path / "target") as again:
        assert again.revision == before[0] + 1  # type: ignore[operator]
    assert mvccstore.restore(tmp_path / "backup", tmp_path / "target", overwrite=True) == 6


@on_files
def test_restore_and_backup_do_not_overwrite_unasked(open_store: OpenStore, tmp_path: Path, engine: str) -> None:
    small(tmp_path / "backup", engine)
    small(tmp_path / "target", engine)
    before = listing(tmp_path)["target"]
    with pytest.raises(StorageError):
        mvccstore.restore(tmp_path / "backup", tmp_path / "target")
    with pytest.raises(StorageError):
        open_store(engine=engine).backup(tmp_path / "target")
    assert listing(tmp_path)["target"] == before


@on_files
@pytest.mark.parametrize("other", FILE_ENGINES)
def test_restore_replaces_a_store_of_any_engine(tmp_path: Path, engine: str, other: str) -> None:
    small(tmp_path / "backup", engine)
    build(tmp_path / "target", other)
    mvccstore.restore(tmp_path / "backup", tmp_path / "target", overwrite=True)
    with mvccstore.open(tmp_path / "target") as store:
        assert (store.stats().engine, store.revision) == (engine, 6)
        assert store.check() == []


@on_files
def test_backup_onto_the_store_itself_is_refused(open_store: OpenStore, tmp_path: Path, engine: str) -> None:
    store = open_store(engine=engine)
    rich(store)
    with pytest.raises(StorageError):
        store.backup(tmp_path / "store.mvcc", overwrite=True)
    revision = store.put(b"k", b"v")
    store.close()
    with mvccstore.open(tmp_path / "store.mvcc") as again:
        assert again.revision == revision


@on_files
def test_backup_onto_another_open_store_is_refused(open_store: OpenStore, tmp_path: Path, engine: str) -> None:
    store, other = open_store("store", engine=engine), open_store("other", engine=engine)
    store.put(b"k", b"v")
    with pytest.raises(StorageError):
        store.backup(tmp_path / "other", overwrite=True)
    revision = other.put(b"mine", b"1")
    other.close()
    with mvccstore.open(tmp_path / "other") as again:
        assert again.revision == revision
        assert again.get(b"mine") is not None


@on_files
def test_backup_interrupted_by_its_progress_leaves_nothing(open_store: OpenStore, tmp_path: Path, engine: str) -> None:
    store = open_store(engine=engine)
    rich(store)

    def stop(done: int, total: int) -> None:
        del done, total
        raise ZeroDivisionError

    other = "sqlite" if engine == "lmdb" else "lmdb"
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ZeroDivisionError):
        store.backup(tmp_path / "backup", engine=other, progress=stop)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert store.stats().snapshots == 0
    store.backup(tmp_path / "backup", engine=other)


def test_lease_revoked_after_a_restore_takes_its_keys(open_store: OpenStore, tmp_path: Path, engine: str) -> None:
    store = open_store(engine=engine)
    rich(store)
    for copy in FILE_ENGINES:
        store.backup(tmp_path / copy, engine=copy)
        with mvccstore.open(tmp_path / copy) as backup:
            backup.submit(LeaseRevokeRequest(5))
            assert backup.get(b"leased") is None
            assert backup.get(b"leased too") is not None
            assert backup.check() == []
