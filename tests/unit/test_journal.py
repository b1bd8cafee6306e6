"""The journal before an LMDB file: what is in it, what is left of it, and what happens when it cannot be written."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

import mvccstore
from mvccstore import CorruptError, EngineOptions, FormatError, KeyRange, Op, StorageError, StorageFullError, Store
from mvccstore.engine import journal as journal_module
from mvccstore.engine import journaled
from mvccstore.engine.journal import _HEAD_BYTES as HEAD_BYTES
from mvccstore.engine.journal import _RECORD as RECORD
from mvccstore.engine.journal import _RECORD_MAGIC as RECORD_MAGIC
from mvccstore.engine.journal import ADD, Journal, is_journal_left, journal_names, left_records, remove_journal
from mvccstore.engine.journal_txn import TXN_BYTES_MAX, JournalView
from mvccstore.engine.journaled import JournaledEngine, open_lmdb
from mvccstore.engine.lmdb import LmdbEngine
from mvccstore.engine.lmdb_txn import LmdbView, LmdbWrite
from mvccstore.tables import RetryWrite, Table
from tests.concurrency.bench import run_program
from tests.journaled import carry_and_keep, kill, kill_store, put_aside
from tests.unit.engine_kit import add, entry, everything, look, put, write

SECONDS = 30
ALL = KeyRange.all()
Open = Callable[..., JournaledEngine]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def open_engine(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Open engines that carry over when they are told to, and not by themselves."""
    monkeypatch.setattr(journaled, "CARRY_SECONDS", SECONDS)
    opened: list[JournaledEngine] = []

    def open_one(*, sync_commits: bool = False) -> JournaledEngine:
        engine = open_lmdb(EngineOptions(str(path), sync_commits=sync_commits, journal=True))
        assert isinstance(engine, JournaledEngine)
        opened.append(engine)
        return engine

    yield open_one
    for engine in opened:
        engine.close()


def left(path: Path) -> list[int]:
    """Return how many bytes of records the files of a journal have, those that there are."""
    sizes = []
    for content in (Path(name).read_bytes() for name in journal_names(str(path)) if Path(name).exists()):
        has_any = int.from_bytes(content[16:24]) > 0
        sizes.append(len(content.rstrip(b"\0")) if has_any else 0)
    return sizes


def open_journaled_store(path: Path, **options: Any) -> Store:
    return mvccstore.open(path, journal=True, **options)


# A store with a journal


def test_store_with_a_journal_is_one_for_whoever_opens_it(path: Path) -> None:
    with open_journaled_store(path) as store:
        for n in range(50):
            store.put(b"%d" % (n % 7), b"%d" % n)
        store.delete(b"3")
        before = list(store.scan(ALL)), store.hash_kv()
        assert sum(left(path)) > 50 * 40
        assert store.check() == []
    assert left(path) == []
    for options in ({}, {"journal": True}, {"read_only": True}):
        with mvccstore.open(path, **options) as store:  # type: ignore[arg-type]
            assert (list(store.scan(ALL)), store.hash_kv()) == before
            assert store.check() == []


@pytest.mark.parametrize("durability", ["os", "interval"])
def test_journal_is_for_what_is_synced(path: Path, durability: str) -> None:
    with pytest.raises(ValueError, match="nothing that it could save"):
        open_journaled_store(path, durability=durability)
    assert not path.exists()


@pytest.mark.parametrize("where", [{"engine": "sqlite"}, {"engine": "memory"}])
def test_other_engines_have_no_journal(path: Path, where: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="has no journal"):
        mvccstore.open(None if where["engine"] == "memory" else path, journal=True, **where)


def test_commit_that_is_interrupted_as_it_tells_of_itself_leaves_the_telling_to_the_next(open_engine: Open) -> None:
    engine = open_engine()

    class Interrupted(threading.Event):
        def set(self) -> None:
            super().set()
            engine._has_changed = threading.Event()
            engine._has_changed.set()
            raise KeyboardInterrupt

    engine._has_changed = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        write(engine, put(b"a", b"1"))
    write(engine, put(b"a", b"2"))
    assert engine._carrier is not None
    assert engine._carrier.is_alive()


@pytest.mark.pure("replaces a method")
def test_it_is_carried_over_by_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journaled, "CARRY_SECONDS", 0.001)
    carried = threading.Event()
    empty = Journal.empty

    def told(self: Journal) -> None:
        empty(self)
        carried.set()

    monkeypatch.setattr(Journal, "empty", told)
    with open_journaled_store(path) as store:
        store.put(b"k", b"1")
        assert carried.wait(SECONDS)
        assert left(path) == [0, 0]
        assert store.get(b"k") is not None


def test_backup_defragment_and_check_have_all_of_it(path: Path, tmp_path: Path) -> None:
    with open_journaled_store(path) as store:
        store.submit_many([Op.put(b"%d" % n, bytes(100)) for n in range(500)])
        store.backup(tmp_path / "backup")
        store.put(b"k", b"1")
        store.defragment()
        store.put(b"k", b"2")
        assert store.check() == []
        expected = store.hash_kv()
        store.backup(tmp_path / "second")
    with mvccstore.open(tmp_path / "backup", read_only=True) as backup:
        assert backup.count(ALL) == 500
    with mvccstore.open(tmp_path / "second", read_only=True) as backup:
        assert backup.hash_kv() == expected


def test_backup_beside_a_block_has_what_was_committed_before_it(path: Path, tmp_path: Path) -> None:
    with open_journaled_store(path) as store:
        store.put(b"k", b"1")
        with store.begin() as txn:
            txn.put(b"k", b"2")
            thread = threading.Thread(target=store.backup, args=(tmp_path / "backup",))
            thread.start()
            thread.join(SECONDS)
    with mvccstore.open(tmp_path / "backup") as backup:
        assert [kv.value for kv in backup.scan(ALL)] == [b"1"]


def test_restoring_over_a_store_takes_its_journal_along(path: Path, tmp_path: Path) -> None:
    with mvccstore.open(tmp_path / "backup") as store:
        store.put(b"k", b"from the backup")
    engine = open_lmdb(EngineOptions(str(path), sync_commits=False, journal=True))
    assert isinstance(engine, JournaledEngine)
    store = mvccstore.open(engine=engine, durability="os")
    store.put(b"k", b"left in the journal")
    kill_store(store, engine)
    assert sum(left(path)) > 0
    mvccstore.restore(tmp_path / "backup", path, overwrite=True)
    with mvccstore.open(path) as store:
        assert [kv.value for kv in store.scan(ALL)] == [b"from the backup"]


# Layers


def test_views_keep_what_they_saw_while_layers_come_and_go(open_engine: Open) -> None:
    engine = open_engine()
    views = []
    for n in range(40):
        write(engine, put(b"n", b"%d" % n), put(b"%02d" % n, b""), add(b"i", 100 - n), add(b"%02d" % n, 5))
        if n % 5 == 2:
            write(engine, lambda txn, n=n: txn.delete(Table.META, [b"%02d" % n]))
        views.append(engine.read())
        if n % 7 == 3:
            put_aside(engine)
        if n % 7 == 4:
            carry_and_keep(engine)
            views.pop().close()
            views.append(engine.read())
        if n % 7 == 5:
            engine.sync()
    assert {len(view._stack.layers) for view in views if isinstance(view, JournalView)} == {1, 2}
    with closing(engine.read()) as view:
        assert isinstance(view, JournalView)
    engine.sync()
    with closing(engine.read()) as view:
        assert isinstance(view, LmdbView)
    for n, view in enumerate(views):
        names = [b"%02d" % m for m in range(n + 1)]
        assert view.get(Table.META, b"n") == b"%d" % n
        rows = view.page(Table.META, b"", b"n", 99)
        assert [key for key, _ in rows] == [name for name in names if int(name) % 5 != 2]
        assert view.page(Table.META, b"", b"n", 99, reverse=True) == rows[::-1]
        assert view.page(Table.META, b"", b"n", 3) == rows[:3]
        assert view.entries(b"i", entry(0), 99) == [entry(100 - m) for m in range(n, -1, -1)]
        assert view.entries(b"i", entry(100), 99, reverse=True) == [entry(100 - m) for m in range(n + 1)]
        assert [key for key, _ in view.newest_page(b"", b"i", entry(0), 99)] == names
        assert view.length(None) == 2 * (n + 1)
        assert view.length(Table.META) == 1 + len(rows)
        assert view.get_many(Table.META, [*names, b"x"]) == [None if int(name) % 5 == 2 else b"" for name in names] + [
            None
        ]
        view.close()


def test_commits_go_on_while_a_layer_is_carried_over(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine()
    write(engine, put(b"a", b"1"))
    begun, may_go = threading.Event(), threading.Event()
    commit = LmdbWrite.commit

    def slow(self: LmdbWrite) -> None:
        begun.set()
        assert may_go.wait(SECONDS)
        commit(self)

    monkeypatch.setattr(LmdbWrite, "commit", slow)
    thread = threading.Thread(target=engine.sync)
    thread.start()
    assert begun.wait(SECONDS)
    write(engine, put(b"a", b"2"), put(b"b", b"2"))
    assert look(engine, lambda view: view.page(Table.META, b"", None, 9)) == [(b"a", b"2"), (b"b", b"2")]
    may_go.set()
    thread.join(SECONDS)
    assert look(engine, lambda view: view.page(Table.META, b"", None, 9)) == [(b"a", b"2"), (b"b", b"2")]
    with closing(engine.base.read()) as base:
        assert base.page(Table.META, b"", None, 9) == [(b"a", b"1")]


def test_who_fills_both_layers_waits_until_one_is_carried_over(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journaled, "LAYER_CHANGES_MAX", 3)
    engine = open_engine()
    for n in range(100):
        write(engine, put(b"%d" % n, b""))
        assert all(layer.count <= 3 for layer in engine._shown[0].layers)
    assert look(engine, lambda view: view.length(Table.META)) == 100


def test_transaction_that_was_forgotten_is_undone_when_the_next_begins(open_engine: Open) -> None:
    engine = open_engine()
    write(engine, put(b"a", b"1"), add(b"i", 9))
    before = look(engine, everything)
    forgotten = engine.write()
    put(b"a", b"2")(forgotten)
    add(b"i", 8)(forgotten)
    assert look(engine, everything) == before
    write(engine, put(b"b", b"3"))
    assert look(engine, lambda view: (view.get(Table.META, b"a"), view.newest(b"i"))) == (b"1", entry(9))
    forgotten.close()
    assert look(engine, lambda view: view.page(Table.META, b"", None, 9)) == [(b"a", b"1"), (b"b", b"3")]


def test_large_transaction_goes_to_the_tables(path: Path, open_engine: Open) -> None:
    engine = open_engine()
    write(engine, put(b"a", b"1"))
    count = TXN_BYTES_MAX // 100_000 + 3
    write(engine, *(put(b"%03d" % n, bytes(100_000), Table.LOG) for n in range(count)), put(b"a", b"2"), add(b"i", 4))
    assert left(path) == [0, 0]
    assert look(engine, lambda view: (view.length(Table.LOG), view.get(Table.META, b"a"))) == (count, b"2")
    with closing(engine.write()) as txn:
        for n in range(count):
            txn.put(Table.LEASES, b"%03d" % n, bytes(100_000))
        assert txn.length(Table.LEASES) == count
        txn.remove(b"i", [entry(4)])
    assert look(engine, lambda view: (view.length(Table.LEASES), view.newest(b"i"))) == (0, entry(4))


def test_transaction_that_any_thread_may_end_does_nothing_that_only_one_can(open_engine: Open) -> None:
    engine = open_engine()
    write(engine, add(b"i", 4), put(b"a", b"1"))
    before = look(engine, everything)
    txn = engine.write_movable()
    assert txn is not None
    assert engine.write_movable() is None
    put(b"a", b"2")(txn)
    with pytest.raises(RetryWrite):
        txn.remove(b"i", [entry(4)])
    txn.close()
    assert look(engine, everything) == before
    txn = engine.write_movable()
    assert txn is not None
    put(b"a", b"2")(txn)
    thread = threading.Thread(target=txn.commit)
    thread.start()
    thread.join(SECONDS)
    assert look(engine, lambda view: view.get(Table.META, b"a")) == b"2"


def test_record_below_the_last_is_not_appended(open_engine: Open) -> None:
    engine = open_engine()
    write(engine, lambda txn: txn.append(Table.LOG, b"2", b""))
    for _ in range(2):
        with closing(engine.write()) as txn, pytest.raises(CorruptError):
            txn.append(Table.LOG, b"1", b"")
        engine.sync()


# What is left


def filled(open_engine: Open) -> tuple[JournaledEngine, list[Any]]:
    """Return an engine with commits in both files of its journal, and what was seen after each."""
    engine = open_engine()
    seen = [look(engine, everything)]
    for n in range(12):
        changes = [put(b"k%d" % (n % 4), b"%d" % n), add(b"i%d" % (n % 3), 50 - n)]
        if n % 4 == 3:
            changes.append(lambda txn: txn.delete(Table.META, [b"k0"]))
        write(engine, *changes)
        seen.append(look(engine, everything))
        if n == 5:
            put_aside(engine)
    return engine, seen


@pytest.mark.parametrize("options", [{}, {"journal": True}])
def test_what_is_left_is_carried_over(path: Path, open_engine: Open, options: dict[str, bool]) -> None:
    engine, seen = filled(open_engine)
    kill(engine)
    assert min(left(path)) > 0
    with pytest.raises(StorageError, match="open it for writing once"):
        open_lmdb(EngineOptions(str(path), read_only=True))
    again = open_lmdb(EngineOptions(str(path), sync_commits=False, **options))
    assert look(again, everything) == seen[-1]
    assert sum(left(path)) == 0
    again.close()
    reader = open_lmdb(EngineOptions(str(path), read_only=True))
    assert look(reader, everything) == seen[-1]
    reader.close()


@pytest.mark.pure("replaces a function")
def test_what_was_synced_stays_so_whoever_carries_it_over(
    path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = filled(open_engine)
    kill(engine)
    done: list[str] = []
    sync, remove = LmdbEngine.sync, journaled.remove_journal

    def synced(self: LmdbEngine) -> None:
        sync(self)
        done.append("synced")

    def removed(path: str) -> None:
        remove(path)
        done.append("removed")

    monkeypatch.setattr(LmdbEngine, "sync", synced)
    monkeypatch.setattr(journaled, "remove_journal", removed)
    open_lmdb(EngineOptions(str(path), sync_commits=False)).close()
    assert done == ["synced", "removed"]


def test_carrying_over_twice_changes_nothing(path: Path, open_engine: Open) -> None:
    engine, seen = filled(open_engine)
    kill(engine)
    for _ in range(3):  # killed before the journal was emptied
        base = LmdbEngine(EngineOptions(str(path), sync_commits=False))
        journaled.carry_over_left(base)
        assert look(base, everything) == seen[-1]
        base.close()
    again = open_engine()
    assert look(again, everything) == seen[-1]


def kept_of_each_cut(path: Path, seen: list[Any], whole: bytes, behind: bytes) -> list[int]:
    """Have the younger file of a journal cut off everywhere, with something behind; return how many commits are left."""
    second, base = Path(journal_names(str(path))[1]), path.read_bytes()
    kept = []
    for size in range(len(whole) - 1, -1, -1):
        second.write_bytes(whole[:size] + behind[size:])
        again = LmdbEngine(EngineOptions(str(path), sync_commits=False))
        kept.append(sum(1 for _ in left_records(str(path), again.last_transaction())))
        if size % 11 == 0:
            journaled.carry_over_left(again)
            assert look(again, everything) == seen[kept[-1]]
        again.close()
        path.write_bytes(base)
        path.with_name("store-lock").unlink()
    return kept


@pytest.mark.parametrize("has_zeros", [False, True])
def test_journal_cut_anywhere_leaves_whole_commits(path: Path, open_engine: Open, has_zeros: bool) -> None:
    engine, seen = filled(open_engine)
    kill(engine)
    whole = Path(journal_names(str(path))[1]).read_bytes().rstrip(b"\0")
    kept = kept_of_each_cut(path, seen, whole, bytes(len(whole) + 99) if has_zeros else b"")
    assert kept == sorted(kept, reverse=True)
    assert set(kept) == set(range(6, 12))


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """A file of a journal, beside tables whose last transaction is number 1."""
    made = Journal(str(path), journal_names(str(path))[0], sync_commits=False)
    yield made
    made.close(is_done=True)


def append(journal: Journal, numbers: range, value: bytes) -> int:
    end = 0
    for number in numbers:
        end = journal.write(end, number, [0, b"%d" % number, value], 1)
    return end


def numbers_left(path: Path) -> list[int]:
    return [number for number, _ in left_records(str(path), 1)]


@pytest.mark.parametrize("size", [7, 40])
def test_records_cut_anywhere_before_older_ones_leave_whole_commits(path: Path, journal: Journal, size: int) -> None:
    name = Path(journal_names(str(path))[0])
    append(journal, range(1, 16), bytes(size))
    journal.empty()
    old = name.read_bytes()
    assert numbers_left(path) == []
    end = append(journal, range(16, 22), b"n" * 13)
    new = name.read_bytes()
    assert len(old) == len(new)  # a sync has no length to note
    kept = []
    for cut in (0, *range(HEAD_BYTES, end)):
        name.write_bytes(new[:cut] + old[cut:])
        kept.append(numbers_left(path))
    assert kept == sorted(kept)
    assert {tuple(each) for each in kept} == {tuple(range(16, stop)) for stop in range(16, 22)}


def test_damage_before_older_records_is_told(path: Path, journal: Journal) -> None:
    name = Path(journal_names(str(path))[0])
    append(journal, range(1, 16), bytes(40))
    journal.empty()
    end = append(journal, range(16, 22), bytes(13))
    whole = name.read_bytes()
    for offset in range(8, end - end // 6, 3):
        name.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(CorruptError, match="damaged"):
            numbers_left(path)


def test_what_looks_like_a_record_does_not_hide_damage(path: Path, journal: Journal) -> None:
    name = Path(journal_names(str(path))[0])
    value = b"DAMAGE" + RECORD_MAGIC + b"\xff" * 4 + RECORD.pack(RECORD_MAGIC, 99, 2, 0) * 99
    append(journal, range(1, 8), value)
    whole = name.read_bytes()
    name.write_bytes(whole.replace(b"DAMAGE", b"damage", 1))
    with pytest.raises(CorruptError, match="damaged"):
        numbers_left(path)


def test_number_that_was_taken_back_and_used_again_is_the_younger_files(path: Path, journal: Journal) -> None:
    append(journal, range(1, 4), b"v")  # of which 3 was taken back, and that is not on disk
    other = Journal(str(path), journal_names(str(path))[1], sync_commits=False)
    append(other, range(3, 5), b"w")
    found = list(left_records(str(path), 1))
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert [operations[0][2] for _, operations in found] == [b"v", b"v", b"w", b"w"]
    other.close(is_done=True)


def test_first_write_that_did_not_arrive_leaves_nothing(path: Path, journal: Journal) -> None:
    name = Path(journal_names(str(path))[0])
    append(journal, range(1, 2), bytes(5_000) + RECORD_MAGIC + bytes(5_000))
    name.write_bytes(bytes(4096) + name.read_bytes()[4096:])
    assert numbers_left(path) == []
    assert not is_journal_left(str(path))


def test_value_that_looks_like_records_is_none(path: Path, journal: Journal) -> None:
    """A client cannot have what a crash leaves look like damage, nor have it searched for long."""
    payload = b"\x93\x00\xc4\x01k\xc0"
    forged = b"".join(
        RECORD.pack(RECORD_MAGIC, len(payload), number, crc32(payload, number)) + payload for number in (2, 3, 1 << 40)
    )
    long = RECORD.pack(RECORD_MAGIC, 1 << 20, 3, 0)
    append(journal, range(1, 2), forged * 9 + long * (1 << 16))
    journal.empty()
    append(journal, range(2, 3), b"")
    assert numbers_left(path) == [2]


def test_file_does_not_grow_again_once_it_has(path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = set()
    for first in range(1, 400, 40):
        append(journal, range(first, first + 40), bytes(10_000))
        sizes.add(Path(journal_names(str(path))[0]).stat().st_size)
        journal.empty()
    assert sizes == {512 << 10}
    end = append(journal, range(401, 403), bytes(10))
    journal.retract(end)
    assert journal.write(end, 403, [0, b"k", b""], 1) < 512 << 10
    assert numbers_left(path) == [401, 402, 403]


def test_damage_before_the_end_is_told(path: Path, open_engine: Open) -> None:
    engine, _ = filled(open_engine)
    kill(engine)
    lengths = left(path)
    for name, length in zip(map(Path, journal_names(str(path))), lengths, strict=True):
        whole = name.read_bytes()
        for offset in range(16, length - 200, 13):
            name.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
            with pytest.raises((CorruptError, FormatError)) as caught:
                open_engine()
            assert caught.value.path == str(path)
            assert name.read_bytes() != whole  # nothing was done to it
        name.write_bytes(whole)
    open_engine()


def with_base(content: bytes, base: int) -> bytes:
    head = content[:8] + base.to_bytes(8) + content[16:28]
    return head + crc32(head).to_bytes(4) + content[HEAD_BYTES:]


def test_journal_of_something_else_is_refused(path: Path, open_engine: Open) -> None:
    engine, _ = filled(open_engine)
    kill(engine)
    first = Path(journal_names(str(path))[0])
    whole = first.read_bytes()
    for stranger in (b"mvccjrn9" + whole[8:], with_base(whole, 10**6)):
        first.write_bytes(stranger)
        with pytest.raises(FormatError, match="journal"):
            open_engine()
    first.write_bytes(whole)
    first.rename(f"{first}.away")  # the older half is missing
    Path(journal_names(str(path))[1]).write_bytes(whole)
    open_engine()


def test_payload_that_is_none_is_told(path: Path) -> None:
    open_lmdb(EngineOptions(str(path))).close()
    for operations in ([1, b"k"], [b"no", b"list"], [ADD, 7, b"x", 9, 9]):
        one = Journal(str(path), journal_names(str(path))[0], sync_commits=False)
        one.write(0, 1, operations, 1)
        one.close(is_done=False)
        with pytest.raises((CorruptError, FormatError)):
            open_lmdb(EngineOptions(str(path)))
        remove_journal(str(path))


# Trouble


class FailingOs:
    """The module `os`, of which a function fails."""

    def __init__(self, name: str, error: int, times: int = 1) -> None:
        self.name, self.error, self.times = name, error, times

    def __getattr__(self, name: str) -> Any:
        if name == self.name and self.times:
            return self.fail
        return getattr(os, name)

    def fail(self, *_: object) -> int:
        self.times -= 1
        raise OSError(self.error, os.strerror(self.error))


@pytest.mark.pure("replaces a module")
def test_commit_that_finds_no_room_is_none_and_the_next_is(
    path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(sync_commits=True)
    write(engine, put(b"a", b"1"), add(b"i", 9))
    before, size = look(engine, everything), left(path)
    monkeypatch.setattr(journal_module, "os", FailingOs("pwritev", errno.ENOSPC))
    with pytest.raises(StorageFullError):
        write(engine, put(b"a", b"2"), add(b"i", 8))
    assert look(engine, everything) == before
    assert left(path) == size
    write(engine, put(b"a", b"3"))
    assert look(engine, lambda view: (view.get(Table.META, b"a"), view.newest(b"i"))) == (b"3", entry(9))


def test_record_that_is_written_in_parts_is_whole(
    path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()

    class Short(FailingOs):
        def fail(self, fd: int, parts: list[bytes], offset: int) -> int:  # type: ignore[override]
            return os.pwrite(fd, b"".join(parts)[:7], offset)

    monkeypatch.setattr(journal_module, "os", Short("pwritev", 0, times=3))
    for n in range(3):
        write(engine, put(b"%d" % n, bytes(100)))
    kill(engine)
    again = open_engine()
    assert look(again, lambda view: view.length(Table.META)) == 3


def test_after_a_sync_that_failed_nothing_is_taken_until_it_is_opened_again(
    path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(sync_commits=True)
    write(engine, put(b"a", b"1"))
    before = look(engine, everything)
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_datasync", FailingOs("_", errno.EIO).fail)
        with pytest.raises(StorageError, match="could not be synced"):
            write(engine, put(b"a", b"2"))
    with pytest.raises(StorageError, match="open it again"):
        write(engine, put(b"a", b"3"))
    assert look(engine, everything) == before
    engine.close()
    again = open_engine()
    assert look(again, everything) == before
    write(again, put(b"a", b"4"))


def test_after_a_sync_that_failed_nothing_is_carried_over(
    path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(sync_commits=True)
    write(engine, put(b"a", b"1"))
    before = engine.base.last_transaction()
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_datasync", FailingOs("_", errno.EIO).fail)
        with pytest.raises(StorageError):
            write(engine, put(b"a", b"2"))
    for _ in range(3):
        with pytest.raises(StorageError, match="open it again"):
            engine.sync()
        with pytest.raises(StorageError, match="open it again"):
            engine.write()
    assert engine.base.last_transaction() == before
    engine.close()
    assert look(open_engine(), lambda view: view.get(Table.META, b"a")) == b"1"


def test_tables_that_cannot_be_written_leave_all_in_the_journal(
    path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    write(engine, put(b"a", b"1"))

    def fail(self: LmdbWrite) -> None:
        raise StorageFullError(str(path), "no room")

    with monkeypatch.context() as patch:
        patch.setattr(LmdbWrite, "commit", fail)
        for _ in range(2):
            with pytest.raises(StorageFullError):
                engine.sync()
            write(engine, put(b"b", b"2"))
        monkeypatch.setattr(journaled, "LAYER_CHANGES_MAX", 1)
        with pytest.raises(StorageFullError):  # both layers are full
            write(engine, put(b"c", b"3"))
        engine.close()
    assert sum(left(path)) > 0
    again = open_engine()
    assert look(again, lambda view: view.page(Table.META, b"", None, 9)) == [(b"a", b"1"), (b"b", b"2")]


def test_journal_that_cannot_be_made_is_a_storage_error(path: Path) -> None:
    Path(journal_names(str(path))[1]).mkdir()
    with pytest.raises(StorageError) as caught:
        open_journaled_store(path)
    assert caught.value.path == str(path)
    assert not Path(journal_names(str(path))[0]).exists()
    Path(journal_names(str(path))[1]).rmdir()
    open_journaled_store(path).close()


def test_map_grows_before_a_layer_is_put_aside(path: Path) -> None:
    base = LmdbEngine(EngineOptions(str(path), sync_commits=False), map_bytes=1 << 20)
    engine = JournaledEngine(base, sync_commits=False)
    for n in range(30):
        write(engine, *(put(b"%d-%d" % (n, m), bytes(5_000), Table.LOG) for m in range(20)))
        engine.sync()
    assert look(engine, lambda view: view.length(Table.LOG)) == 600
    engine.close()


_FORK = """
    import os, sys
    import mvccstore

    store = mvccstore.open(sys.argv[1], journal=True)
    store.put(b"a", b"1")
    child = os.fork()
    if child == 0:
        try:
            store.get(b"a")
        except mvccstore.ClosedError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.put(b"a", b"2")
    store.sync()
    store.put(b"b", b"3")
    store.close()
    with mvccstore.open(sys.argv[1]) as again:
        assert [kv.value for kv in again.scan(mvccstore.KeyRange.all())] == [b"2", b"3"]
        assert again.check() == []
"""


def test_child_of_a_fork_leaves_the_journal_to_its_parent(path: Path) -> None:
    run_program(_FORK, path)
