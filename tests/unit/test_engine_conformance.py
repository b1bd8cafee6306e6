"""What every engine promises, checked on ours and on an example of somebody else's.

To hold an engine of your own to it, register it (`mvccstore.engine.register_engine`), subclass
`EngineChecks`, and `FileEngineChecks` too if it keeps a file, and define the fixture `case`:

    class TestMine(EngineChecks, FileEngineChecks):
        @pytest.fixture
        def case(self):
            return EngineCase("mine", preamble="import my_package.registration")

Nothing here looks at an engine except through the protocols, and every write is ready for `RetryWrite`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from mvccstore import errors
from mvccstore.engine import Engine, detect_engine, open_engine, register_engine
from mvccstore.errors import ClosedError, CorruptError, FormatError, LockedError, StorageError
from mvccstore.tables import ENTRY_BYTES, LOG_KEY_BYTES, ReadTxn, Table, WriteTxn
from tests.unit.engine_kit import (
    CopyingEngine,
    EngineCase,
    EngineMachine,
    Model,
    add,
    awkward_keys,
    entry,
    everything,
    look,
    options_for,
    put,
    write,
)

Begin = Callable[[], ReadTxn]
Start = Callable[[str], subprocess.Popen[str]]
ROOT = Path(errors.__file__).parents[1]

register_engine("copying", CopyingEngine)
register_engine("journaled", lambda options: open_engine("lmdb", replace(options, journal=not options.read_only)))

ENGINES = [
    EngineCase("lmdb"),
    EngineCase("memory", keeps_file=False),
    EngineCase("sqlite"),
    EngineCase(
        "journaled",
        file_of="lmdb",
        preamble="from dataclasses import replace\n"
        "from mvccstore.engine import register_engine\n"
        "register_engine('journaled', lambda o: open_engine('lmdb', replace(o, journal=not o.read_only)))",
    ),
    EngineCase("copying", keeps_file=False),
]
FILE_ENGINES = [case for case in ENGINES if case.keeps_file]


class OpenEngine:
    @pytest.fixture
    def engine(self, case: EngineCase, tmp_path: Path) -> Iterator[Engine]:
        opened = open_engine(case.name, options_for(case, tmp_path))
        yield opened
        opened.close()

    @pytest.fixture
    def begin(self, engine: Engine) -> Iterator[Begin]:
        """Begins views that are closed before the engine is, also when the test fails."""
        with contextlib.ExitStack() as views:
            yield lambda: views.enter_context(contextlib.closing(engine.read()))


class EngineChecks(OpenEngine):
    """For every engine. Needs the fixture `case`."""

    def test_empty_store_has_nothing(self, engine: Engine) -> None:
        assert look(engine, everything) == everything(Model())
        assert look(engine, lambda view: view.get(Table.LOG, b"k")) is None
        assert look(engine, lambda view: view.newest(b"k")) is None
        assert look(engine, lambda view: view.entries(b"k", entry(0), 9)) == []
        assert engine.problems() == []

    def test_view_sees_what_was_committed_before_it_and_nothing_later(self, engine: Engine, begin: Begin) -> None:
        write(engine, put(b"k", b"1"), put(b"gone", b"1"), add(b"i", 9), add(b"j", 5))
        old = begin()
        before = everything(old)
        write(
            engine,
            put(b"k", b"2"),
            put(b"new", b"2"),
            lambda txn: txn.delete(Table.META, [b"gone"]),
            add(b"i", 8, 7),
            add(b"new", 1),
            lambda txn: txn.remove(b"j", [entry(5)]),
        )
        middle = begin()
        write(engine, put(b"k", b"3"), put(b"gone", b"3"), lambda txn: txn.remove(b"i", [entry(n) for n in (7, 8, 9)]))
        assert everything(old) == before
        assert old.get_many(Table.META, [b"new", b"gone"]) == [None, b"1"]
        assert old.newest(b"i") == entry(9)
        assert old.newest_page(b"", None, entry(0), 9) == [(b"i", entry(9)), (b"j", entry(5))]
        assert middle.page(Table.META, b"", None, 9) == [(b"k", b"2"), (b"new", b"2")]
        assert middle.newest_page(b"", None, entry(0), 9) == [(b"i", entry(7)), (b"new", entry(1))]
        assert look(engine, lambda view: view.get(Table.META, b"gone")) == b"3"
        assert look(engine, lambda view: view.newest(b"i")) is None

    def test_defragmenting_changes_nothing_that_is_seen(self, engine: Engine, begin: Begin) -> None:
        engine.defragment()
        keys = awkward_keys()
        write(engine, *(add(key, 5, 6) for key in keys), *(put(b"%d" % n, bytes(n)) for n in range(50)))
        write(engine, add(b"i", *range(300)), put(b"large", bytes(100_000), Table.LOG))
        old = begin()
        before = everything(old)
        for n in range(3):
            engine.defragment()
            assert everything(old) == before
            assert look(engine, lambda view: view.get(Table.LOG, b"large")) == bytes(100_000)
            write(engine, put(b"n", b"%d" % n), lambda txn: txn.remove(b"i", [entry(7)]))
        assert look(engine, lambda view: (view.get(Table.META, b"n"), view.newest_at(b"i", entry(7)))) == (
            b"2",
            entry(8),
        )
        assert look(engine, lambda view: len(view.newest_page(b"", None, b"", 1_000))) == len(keys) + 1
        assert engine.problems() == []

    def test_closed_engine_is_not_defragmented(self, engine: Engine) -> None:
        engine.close()
        with pytest.raises(ClosedError):
            engine.defragment()

    def test_views_opened_at_every_commit_keep_their_own_state(self, engine: Engine, begin: Begin) -> None:
        views = []
        for n in range(12):
            write(engine, put(b"n", b"%d" % n), put(b"k%02d" % n, b""), add(b"i", 100 - n))
            views.append((n, begin()))
        for n, view in reversed(views):
            assert view.get(Table.META, b"n") == b"%d" % n
            assert len(view.page(Table.META, b"k", b"l", 100)) == n + 1
            assert view.entries(b"i", entry(0), 100) == [entry(100 - i) for i in range(n, -1, -1)]

    def test_write_txn_sees_its_own_writes_and_nobody_else_does(self, engine: Engine, begin: Begin) -> None:
        write(engine, put(b"a", b"1"), put(b"b", b"1"), put(b"d", b"1"), add(b"i", 5, 6), add(b"j", 5))
        early = begin()
        committed = everything(early)

        def change(txn: WriteTxn) -> None:
            txn.put(Table.META, b"c", b"2")
            txn.put(Table.META, b"b", b"2")
            txn.delete(Table.META, [b"a"])
            txn.add(b"i", entry(4))
            txn.add(b"h", entry(7))
            txn.remove(b"j", [entry(5)])
            assert txn.get_many(Table.META, [b"a", b"b", b"c", b"d"]) == [None, b"2", b"2", b"1"]
            assert txn.page(Table.META, b"", None, 9) == [(b"b", b"2"), (b"c", b"2"), (b"d", b"1")]
            assert txn.page(Table.META, b"", b"d", 1, reverse=True) == [(b"c", b"2")]
            assert txn.page(Table.META, b"b", b"c", 9) == [(b"b", b"2")]
            assert txn.newest_page(b"h", b"i", entry(0), 9) == [(b"h", entry(7))]
            assert txn.length(Table.META) == 3
            assert txn.newest_page(b"", None, entry(0), 9) == [(b"h", entry(7)), (b"i", entry(4))]
            assert txn.newest_page(b"", None, entry(5), 9) == [(b"h", entry(7)), (b"i", entry(5))]
            assert (txn.newest(b"i"), txn.newest_at(b"i", entry(5)), txn.newest(b"j")) == (entry(4), entry(5), None)
            assert txn.entries(b"i", entry(0), 9) == [entry(4), entry(5), entry(6)]
            assert txn.entries(b"i", entry(5), 9, reverse=True) == [entry(5), entry(4)]
            assert txn.length(None) == 4
            assert everything(early) == committed
            assert look(engine, everything) == committed

        write(engine, change)
        assert everything(early) == committed
        assert look(engine, lambda view: view.newest_page(b"", None, entry(0), 1)) == [(b"h", entry(7))]

    def test_close_without_commit_undoes_everything(self, engine: Engine) -> None:
        write(engine, put(b"a", b"1"), add(b"i", 5))
        before = look(engine, everything)
        txn = engine.write()
        for change in (put(b"a", b"2"), put(b"b", b"2"), add(b"i", 4), add(b"j", 4)):
            change(txn)
        txn.delete(Table.META, [b"a"])
        txn.remove(b"i", [entry(5)])
        txn.close()
        txn.close()
        assert look(engine, everything) == before
        write(engine, put(b"c", b"3"))
        assert look(engine, lambda view: view.page(Table.META, b"", None, 9)) == [(b"a", b"1"), (b"c", b"3")]

    def test_page_keeps_bounds_limit_and_direction(self, engine: Engine, begin: Begin) -> None:
        keys = [b"\0", b"a", b"a\0", b"ab", b"b", b"\xff", b"\xff\xff"]
        write(engine, *(put(key, key[::-1], Table.LEASES) for key in keys))
        rows = [(key, key[::-1]) for key in keys]
        view = begin()
        for start, end, limit, expected in (
            (b"", None, 99, rows),
            (b"", None, 7, rows),
            (b"", None, 3, rows[:3]),
            (b"a", b"b", 9, rows[1:4]),
            (b"a\0", b"\xff", 9, rows[2:5]),
            (b"aa", b"ab", 9, []),
            (b"b", b"b", 9, []),
            (b"c", b"b", 9, []),
            (b"\xff\xff\0", None, 9, []),
        ):
            assert view.page(Table.LEASES, start, end, limit) == expected
        assert view.page(Table.LEASES, b"", None, 99, reverse=True) == rows[::-1]
        assert view.page(Table.LEASES, b"a", b"b", 2, reverse=True) == [rows[3], rows[2]]
        assert view.page(Table.LEASES, b"a", b"aaa", 9, reverse=True) == [rows[2], rows[1]]
        assert view.page(Table.LEASES, b"c", b"b", 9, reverse=True) == []
        assert view.page(Table.LOG, b"", None, 9) == []

    def test_newest_page_passes_over_keys_without_an_entry(self, engine: Engine, begin: Begin) -> None:
        write(engine, add(b"a", 3, 5), add(b"b", 1, 2), add(b"c", 4), add(b"d", 6, 7), add(b"d\0", 2))
        view = begin()
        for start, end, at, limit, expected in (
            (b"", None, 0, 9, [(b"a", 3), (b"b", 1), (b"c", 4), (b"d", 6), (b"d\0", 2)]),
            (b"", None, 3, 9, [(b"a", 3), (b"c", 4), (b"d", 6)]),
            (b"", None, 4, 2, [(b"a", 5), (b"c", 4)]),
            (b"", None, 6, 1, [(b"d", 6)]),
            (b"", None, 8, 9, []),
            (b"a\0", b"d", 2, 9, [(b"b", 2), (b"c", 4)]),
            (b"b", b"d", 2, 1, [(b"b", 2)]),
            (b"b", b"b", 0, 9, []),
            (b"e", None, 0, 9, []),
        ):
            found = [(key, entry(number)) for key, number in expected]
            assert view.newest_page(start, end, entry(at), limit) == found

    def test_entries_walk_up_and_down_from_an_included_start(self, engine: Engine, begin: Begin) -> None:
        write(engine, add(b"k", 2, 4, 6, 8), add(b"j", 1, 9), add(b"l", 1, 9))
        view = begin()
        for start, limit, reverse, expected in (
            (0, 9, False, [2, 4, 6, 8]),
            (4, 9, False, [4, 6, 8]),
            (5, 1, False, [6]),
            (9, 9, False, []),
            (9, 9, True, [8, 6, 4, 2]),
            (4, 9, True, [4, 2]),
            (5, 1, True, [4]),
            (1, 9, True, []),
        ):
            found = [entry(number) for number in expected]
            assert view.entries(b"k", entry(start), limit, reverse=reverse) == found
        assert [view.newest_at(b"k", entry(at)) for at in (0, 2, 3, 9)] == [entry(2), entry(2), entry(4), None]
        assert (view.newest(b"k"), view.newest(b"kk")) == (entry(2), None)
        assert view.newest_at(b"kk", entry(0)) is None

    def test_entry_bounds_may_be_of_any_length(self, engine: Engine, begin: Begin) -> None:
        write(engine, add(b"k", 2, 4, 6))
        view = begin()
        for bound, above in (
            (b"", [2, 4, 6]),
            (entry(4)[:LOG_KEY_BYTES], [4, 6]),
            (entry(4) + b"\0", [6]),
            (b"\xff", []),
            (b"\xff" * ENTRY_BYTES, []),
        ):
            below = [number for number in (6, 4, 2) if number not in above]
            first = entry(above[0]) if above else None
            assert view.newest_at(b"k", bound) == first
            assert view.newest_page(b"", None, bound, 9) == ([] if first is None else [(b"k", first)])
            assert view.entries(b"k", bound, 9) == [entry(number) for number in above]
            assert view.entries(b"k", bound, 9, reverse=True) == [entry(number) for number in below]

    def test_removing_what_is_absent_is_harmless(self, engine: Engine) -> None:
        write(engine, put(b"a", b"1"), add(b"i", 5))
        before = look(engine, everything)
        write(
            engine,
            add(b"i", 5),
            lambda txn: txn.delete(Table.META, [b"x", b"y"]),
            lambda txn: txn.delete(Table.META, []),
            lambda txn: txn.remove(b"i", [entry(4), entry(6)]),
            lambda txn: txn.remove(b"x", [entry(4)]),
            lambda txn: txn.remove(b"i", []),
        )
        assert look(engine, everything) == before
        write(engine, lambda txn: txn.remove(b"i", [entry(4), entry(5), entry(5)]))
        assert look(engine, lambda view: (view.newest(b"i"), view.length(None))) == (None, 0)

    def test_get_many_answers_in_the_order_asked(self, engine: Engine, begin: Begin) -> None:
        write(engine, put(b"a", b"1"), put(b"b", b""), put(b"c", b"3"))
        view = begin()
        assert view.get_many(Table.META, [b"c", b"x", b"a", b"c", b"b"]) == [b"3", None, b"1", b"3", b""]
        assert view.get_many(Table.META, []) == []

    def test_append_and_length_of_each_table(self, engine: Engine, begin: Begin) -> None:
        def fill(txn: WriteTxn) -> None:
            for count, table in enumerate(Table, start=3):
                for n in range(count):
                    txn.append(table, b"%04d" % n, b"%d" % n)

        write(engine, fill, add(b"i", 1, 2), add(b"j", 1))
        write(engine, lambda txn: txn.append(Table.LOG, b"9999", b"last"), lambda txn: txn.delete(Table.LOG, [b"0000"]))
        view = begin()
        assert [view.length(table) for table in Table] == list(range(3, 3 + len(Table)))
        assert view.length(None) == 3
        assert view.page(Table.LOG, b"", None, 1, reverse=True) == [(b"9999", b"last")]
        assert view.page(Table.LOG, b"", None, 1) == [(b"0001", b"1")]

    def test_values_are_any_bytes_of_any_length(self, engine: Engine) -> None:
        values = [b"", b"\0", b"\xff" * 3, bytes(range(256)), b"v" * 5000, os.urandom(5_000_000)]
        write(engine, *(put(b"%d" % n, value, Table.LOG) for n, value in enumerate(values)))
        names = [b"%d" % n for n in range(len(values))]
        assert look(engine, lambda view: view.get_many(Table.LOG, names)) == values
        assert look(engine, lambda view: view.page(Table.LOG, b"", None, 9)) == list(zip(names, values, strict=True))

    def test_index_keys_of_awkward_lengths_keep_their_order(self, engine: Engine, begin: Begin) -> None:
        keys = awkward_keys()
        backwards = keys[::-1]
        write(engine, *(add(key, n + 1000, n + 10) for n, key in enumerate(backwards)))
        numbers = {key: n for n, key in enumerate(backwards)}
        view = begin()
        all_rows = [(key, entry(numbers[key] + 10)) for key in keys]
        assert view.newest_page(b"", None, entry(0), 1000) == all_rows
        for i, key in enumerate(keys):
            n = numbers[key]
            assert view.newest(key) == entry(n + 10)
            assert view.newest_at(key, entry(500)) == entry(n + 1000)
            assert view.entries(key, entry(2000), 9, reverse=True) == [entry(n + 1000), entry(n + 10)]
            assert view.newest_page(key, None, entry(0), 2) == all_rows[i : i + 2]
            assert view.newest_page(key + b"\0", None, entry(0), 1) == [
                row for row in all_rows[i + 1 : i + 2] if row[0] >= key + b"\0"
            ]
            assert view.newest_page(keys[0], key, entry(0), 1000) == all_rows[:i]
            assert view.newest(key + b"x") is None or key + b"x" in numbers
        write(engine, *(lambda txn, key=key: txn.remove(key, [entry(numbers[key] + 10)]) for key in keys[:-1:2]))
        write(engine, lambda txn: txn.remove(keys[-1], [entry(numbers[keys[-1]] + n) for n in (10, 1000)]))
        rows = look(engine, lambda view: view.newest_page(b"", None, entry(0), 1000))
        assert [key for key, _ in rows] == keys[:-1]
        assert rows[0] == (keys[0], entry(numbers[keys[0]] + 1000))
        assert look(engine, lambda view: view.length(None)) == 2 * len(keys) - len(keys[:-1:2]) - 2

    def test_many_versions_of_one_key(self, engine: Engine, begin: Begin) -> None:
        numbers = list(range(3000, 0, -1))
        write(engine, add(b"j", 1), add(b"k", *numbers[:2000]), add(b"l", 1))
        write(engine, add(b"k", *numbers[2000:]))
        view = begin()
        assert view.newest(b"k") == entry(1)
        assert view.entries(b"k", entry(0), 9999) == [entry(n) for n in range(1, 3001)]
        assert view.entries(b"k", entry(700), 600, reverse=True) == [entry(n) for n in range(700, 100, -1)]
        for n in range(2, 602):
            assert view.entries(b"k", entry(n), 2, reverse=True) == [entry(n), entry(n - 1)]
            assert view.newest_at(b"k", entry(n)) == entry(n)
        write(engine, lambda txn: txn.remove(b"k", [entry(n) for n in range(1, 3001) if n % 5]))
        assert view.newest_at(b"k", entry(1234)) == entry(1234)
        assert look(engine, lambda view: view.newest_at(b"k", entry(1234))) == entry(1235)
        assert look(engine, lambda view: view.length(None)) == 602

    def test_space_is_given_back_and_used_again(self, engine: Engine) -> None:
        names = [b"%04d" % n for n in range(4000)]
        empty = engine.size()
        filled_file = 0
        for n in range(6):
            write(engine, *(put(name, b"v" * 1000, Table.LOG) for name in names))
            filled = engine.size()
            filled_file = filled_file or filled.file_bytes
            assert filled.used_bytes >= empty.used_bytes + 3_500_000
            assert filled.file_bytes <= filled_file * 3, f"file grows in round {n}"
            write(engine, lambda txn: txn.delete(Table.LOG, names))
            write(engine, put(b"n", b"1"))
            engine.sync()  # what an engine keeps beside the file takes space until it is there
            assert engine.size().used_bytes <= empty.used_bytes + 2_000_000

    def test_closed_engine_refuses_and_closing_twice_is_harmless(self, engine: Engine) -> None:
        view = engine.read()
        view.close()
        view.close()
        engine.close()
        engine.close()
        with pytest.raises(ClosedError):
            engine.read()
        with pytest.raises(ClosedError):
            engine.write()

    def test_eight_readers_beside_a_writer_see_whole_commits(self, engine: Engine) -> None:
        names = [b"%02d" % n for n in range(10)]
        done = threading.Event()
        failures: list[str] = []

        def commit(n: int) -> None:
            number = b"%04d" % n
            write(
                engine,
                *(put(name, number) for name in names),
                lambda txn: txn.append(Table.LOG, number, number),
                add(b"hot", 10_000 - n),
            )

        def watch() -> None:
            last = 0
            finishing = False
            while not finishing:
                finishing = done.is_set()
                view = engine.read()
                n = view.length(Table.LOG)
                seen = view.get_many(Table.META, names), view.page(Table.META, b"", None, 99)
                number = b"%04d" % n
                if (
                    n < last
                    or seen != ([number] * 10, [(name, number) for name in names])
                    or view.newest_page(b"", None, entry(0), 9) != [(b"hot", entry(10_000 - n))]
                    or view.page(Table.LOG, b"", None, 1, reverse=True) != [(number, number)]
                ):
                    failures.append(f"after {last}: {n}, {seen}")
                view.close()
                last = n
            assert last == 200

        def guarded() -> None:
            try:
                watch()
            except Exception as error:  # noqa: BLE001 - the thread's only way to tell
                failures.append(repr(error))

        commit(1)
        threads = [threading.Thread(target=guarded) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            for n in range(2, 201):
                commit(n)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert failures == []

    def test_any_sequence_of_calls_answers_like_plain_dicts(self, case: EngineCase) -> None:
        machine = type(f"Machine_{case.name}", (EngineMachine,), {"case": case})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=120,
                stateful_step_count=50,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


class FileEngineChecks(OpenEngine):
    """For engines that keep a file. Needs the fixture `case`."""

    @pytest.fixture
    def start(self, case: EngineCase, tmp_path: Path) -> Iterator[Start]:
        """Starts programs that have `name` and `path` of the store, and ends those still running."""
        with contextlib.ExitStack() as children:

            def start_one(program: str) -> subprocess.Popen[str]:
                child = subprocess.Popen(
                    command(case, program, tmp_path),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
                children.enter_context(child)
                children.callback(child.kill)
                return child

            yield start_one

    def test_commits_survive_close(self, case: EngineCase, engine: Engine, tmp_path: Path) -> None:
        write(engine, put(b"a", b"1"), put(b"b", b"2", Table.LOG), add(b"i" * 2000, 5, 4), add(b"i", 3))
        engine.sync()
        before = look(engine, everything)
        engine.close()
        for more in ({"read_only": True}, {"create": False}, {"sync_commits": True}):
            again = open_engine(case.name, options_for(case, tmp_path, **more))
            assert look(again, everything) == before
            assert again.problems() == []
            again.close()
        assert detect_engine(str(tmp_path / "store")) == (case.file_of or case.name)

    def test_defragmented_file_is_smaller_and_all_there(self, case: EngineCase, engine: Engine, tmp_path: Path) -> None:
        write(engine, *(put(b"%d" % n, bytes(3_000), Table.LOG) for n in range(1_000)), add(b"i", *range(50)))
        write(engine, lambda txn: txn.delete(Table.LOG, [b"%d" % n for n in range(990)]))
        large = engine.size().file_bytes
        engine.defragment()
        assert engine.size().file_bytes < large / 4
        write(engine, put(b"later", b"1"))
        before = look(engine, everything)
        engine.close()
        files = {path.name for path in tmp_path.iterdir()}
        again = open_engine(case.name, options_for(case, tmp_path))
        assert look(again, everything) == before
        assert again.problems() == []
        again.close()
        assert files <= {"store", "store-lock"}

    def test_engine_opened_to_read_is_not_defragmented(self, case: EngineCase, engine: Engine, tmp_path: Path) -> None:
        engine.close()
        reader = open_engine(case.name, options_for(case, tmp_path, read_only=True))
        with pytest.raises(StorageError):
            reader.defragment()
        reader.close()

    def test_synced_commits(self, case: EngineCase, tmp_path: Path) -> None:
        opened = open_engine(case.name, options_for(case, tmp_path, sync_commits=True))
        write(opened, put(b"a", b"1"))
        opened.sync()
        opened.close()

    def test_second_writer_is_told_who_the_first_is(
        self, case: EngineCase, engine: Engine, start: Start, tmp_path: Path
    ) -> None:
        with pytest.raises(LockedError) as caught:
            open_engine(case.name, options_for(case, tmp_path))
        assert str(os.getpid()) in caught.value.holder
        child = start(OPEN_AND_WAIT)
        assert f"locked by process {os.getpid()} " in finish(child)
        write(engine, put(b"a", b"1"))

    def test_lock_ends_with_close_and_with_the_process(
        self, case: EngineCase, engine: Engine, start: Start, tmp_path: Path
    ) -> None:
        engine.close()
        child = start(OPEN_AND_WAIT)
        assert heard(child) == "open\n"
        with pytest.raises(LockedError) as caught:
            open_engine(case.name, options_for(case, tmp_path))
        assert f"process {child.pid} " in caught.value.holder
        finish(child)
        again = open_engine(case.name, options_for(case, tmp_path))
        write(again, put(b"a", b"1"))
        again.close()

    def test_reader_in_another_process(self, engine: Engine, start: Start) -> None:
        write(engine, put(b"k", b"1"), add(b"i" * 600, 9))
        engine.sync()
        child = start(READ_BESIDE)
        assert heard(child) == f"{b'1'!r} {entry(9).hex()}\n"
        write(engine, put(b"k", b"2"), add(b"i" * 600, 8))
        engine.sync()
        assert told(child) == f"{b'1'!r} {entry(9).hex()}\n"
        assert told(child) == f"{b'2'!r} {entry(8).hex()}\n"
        finish(child)
        write(engine, put(b"k", b"3"))
        assert look(engine, lambda view: view.get(Table.META, b"k")) == b"3"

    def test_read_only_engine_does_not_write(self, case: EngineCase, engine: Engine, tmp_path: Path) -> None:
        write(engine, put(b"a", b"1"))
        before = look(engine, everything)
        engine.close()
        reader = open_engine(case.name, options_for(case, tmp_path, read_only=True))
        with pytest.raises(StorageError):
            reader.write()
        assert look(reader, everything) == before
        reader.close()

    @pytest.mark.parametrize("more", [{"create": False}, {"read_only": True}], ids=["no-create", "read-only"])
    def test_missing_file_is_not_created_unasked(self, case: EngineCase, tmp_path: Path, more: dict[str, bool]) -> None:
        with pytest.raises(StorageError) as caught:
            open_engine(case.name, options_for(case, tmp_path, **more))
        assert caught.value.path == str(tmp_path / "store")
        assert list(tmp_path.iterdir()) == []

    def test_missing_directory_is_a_storage_error(self, case: EngineCase, tmp_path: Path) -> None:
        with pytest.raises(StorageError) as caught:
            open_engine(case.name, options_for(case, tmp_path / "missing"))
        assert caught.value.path == str(tmp_path / "missing" / "store")

    def test_file_of_something_else_is_refused_and_left_alone(self, case: EngineCase, tmp_path: Path) -> None:
        for garbage in (b"To whom it may concern\n", b"To whom it may concern\n" * 1000):
            (tmp_path / "store").write_bytes(garbage)
            for more in ({}, {"read_only": True}):
                with pytest.raises((FormatError, CorruptError)):
                    open_engine(case.name, options_for(case, tmp_path, **more))
            assert (tmp_path / "store").read_bytes() == garbage

    def test_copy_is_a_store(self, case: EngineCase, engine: Engine, begin: Begin, tmp_path: Path) -> None:
        write(engine, put(b"a", b"1"), put(b"b", b"2" * 10_000, Table.LOG), add(b"i" * 2000, 5, 4))
        target = tmp_path / "copy"
        target.mkdir()
        view = begin()
        if engine.copy(str(target / "store")):
            assert [file.name for file in target.iterdir()] == ["store"]
            twin = open_engine(case.name, options_for(case, target))
            assert look(twin, everything) == everything(view)
            twin.close()
            with pytest.raises(StorageError):
                engine.copy(str(target / "store"))


OPEN_AND_WAIT = """
try:
    engine = open_engine(name, EngineOptions(path))
except LockedError as error:
    print("locked by", error.holder, flush=True)
else:
    print("open", flush=True)
sys.stdin.readline()
os._exit(0)
"""

READ_BESIDE = """
engine = open_engine(name, EngineOptions(path, read_only=True))
view = engine.read()
for _ in range(2):
    print(view.get(Table.META, b"k"), view.newest(b"i" * 600).hex(), flush=True)
    sys.stdin.readline()
view.close()
view = engine.read()
print(view.get(Table.META, b"k"), view.newest(b"i" * 600).hex(), flush=True)
view.close()
engine.close()
"""


def command(case: EngineCase, program: str, directory: Path) -> list[str]:
    imports = (
        "import os, sys\n"
        "from mvccstore.engine import EngineOptions, open_engine\n"
        "from mvccstore.errors import LockedError\n"
        "from mvccstore.tables import Table\n"
        "name, path = sys.argv[1:]\n"
    )
    return [sys.executable, "-c", f"{imports}{case.preamble}\n{program}", case.name, str(directory / "store")]


def heard(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def told(child: subprocess.Popen[str]) -> str:
    """Let the child go on, and return the next line it says."""
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return heard(child)


def finish(child: subprocess.Popen[str]) -> str:
    rest, _ = child.communicate("\n", timeout=60)
    assert child.returncode == 0
    return rest


@pytest.mark.parametrize("case", ENGINES, ids=lambda case: case.name)
class TestEngines(EngineChecks):
    pass


@pytest.mark.parametrize("case", FILE_ENGINES, ids=lambda case: case.name)
class TestFileEngines(FileEngineChecks):
    pass
