"""What the checks of engines stand on: a model, an example of a third party's engine, a random walk.

`Model` answers from plain dicts what a transaction must answer. `CopyingEngine` is the smallest engine
there is around it. `EngineMachine` drives an engine and a model through the same random calls.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from mvccstore.engine import Engine, EngineOptions, EngineSize, open_engine
from mvccstore.errors import ClosedError
from mvccstore.tables import ENTRY_BYTES, LOG_KEY_BYTES, ReadTxn, RetryWrite, Table, WriteTxn

RETRIES_MAX = 30


@dataclass(frozen=True)
class EngineCase:
    """An engine to check."""

    name: str
    """As registered."""
    keeps_file: bool = True
    preamble: str = ""
    """Python that registers it in a fresh process."""
    file_of: str = ""
    """The engine that its files are recognized as, if that is another."""


@dataclass
class Model:
    """What transactions must answer, from plain dicts; also all there is to the example engine."""

    plain: dict[Table, dict[bytes, bytes]] = field(default_factory=lambda: {table: {} for table in Table})
    index: dict[bytes, set[bytes]] = field(default_factory=dict)

    def get(self, table: Table, key: bytes, /) -> bytes | None:
        return self.plain[table].get(key)

    def get_many(self, table: Table, keys: list[bytes], /) -> list[bytes | None]:
        return [self.plain[table].get(key) for key in keys]

    def page(
        self, table: Table, start: bytes, end: bytes | None, limit: int, /, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        rows = sorted(self.plain[table].items(), reverse=reverse)
        return [row for row in rows if start <= row[0] and (end is None or row[0] < end)][:limit]

    def newest(self, key: bytes, /) -> bytes | None:
        return min(self.index.get(key, ()), default=None)

    def newest_at(self, key: bytes, at: bytes, /) -> bytes | None:
        return min((entry for entry in self.index.get(key, ()) if entry >= at), default=None)

    def newest_page(self, start: bytes, end: bytes | None, at: bytes, limit: int, /) -> list[tuple[bytes, bytes]]:
        keys = (key for key in sorted(self.index) if start <= key and (end is None or key < end))
        return [(key, entry) for key in keys if (entry := self.newest_at(key, at)) is not None][:limit]

    def entries(self, key: bytes, start: bytes, limit: int, /, *, reverse: bool = False) -> list[bytes]:
        entries = sorted(self.index.get(key, ()), reverse=reverse)
        return [entry for entry in entries if (entry <= start if reverse else entry >= start)][:limit]

    def length(self, table: Table | None, /) -> int:
        return sum(map(len, self.index.values())) if table is None else len(self.plain[table])

    def put(self, table: Table, key: bytes, value: bytes, /) -> None:
        self.plain[table][key] = value

    append = put

    def delete(self, table: Table, keys: list[bytes], /) -> None:
        for key in keys:
            self.plain[table].pop(key, None)

    def add(self, key: bytes, entry: bytes, /) -> None:
        self.index.setdefault(key, set()).add(entry)

    def remove(self, key: bytes, entries: list[bytes], /) -> None:
        left = self.index.get(key, set()).difference(entries)
        self.index.pop(key, None)
        if left:
            self.index[key] = left

    def close(self) -> None:
        pass


class CopyingEngine:
    """An engine of a third party: it copies everything for each write, and so cannot be wrong."""

    name = "copying"
    path = ":copying:"

    def __init__(self, options: EngineOptions) -> None:
        del options
        self.committed: Model | None = Model()

    def read(self) -> ReadTxn:
        if self.committed is None:
            raise ClosedError
        return self.committed

    def write(self) -> WriteTxn:
        if self.committed is None:
            raise ClosedError
        txn = CopyingWriteTxn(**vars(copy.deepcopy(self.committed)))
        txn.engine = self
        return txn

    def sync(self) -> None:
        pass

    def size(self) -> EngineSize:
        assert self.committed is not None
        records = [*self.committed.index.items()]
        for table in self.committed.plain.values():
            records.extend(table.items())  # type: ignore[arg-type]
        used_bytes = sum(len(key) + len(value) for key, value in records)
        return EngineSize(used_bytes, used_bytes)

    def copy(self, path: str) -> bool:
        del path
        return False

    def defragment(self) -> None:
        if self.committed is None:
            raise ClosedError

    def problems(self) -> list[str]:
        return []

    def forget(self) -> None:
        self.close()

    def close(self) -> None:
        self.committed = None


class CopyingWriteTxn(Model):
    engine: CopyingEngine

    def commit(self) -> None:
        self.engine.committed = Model(self.plain, self.index)


def entry(number: int) -> bytes:
    """Return an index entry that sorts by `number`, most of it in the first half."""
    return number.to_bytes(LOG_KEY_BYTES, "big") + b"%x" % (number % 16) * (ENTRY_BYTES - LOG_KEY_BYTES)


def write(engine: Engine, *changes: Callable[[WriteTxn], object]) -> None:
    """Commit `changes`, called with the transaction, as one."""
    for _ in range(RETRIES_MAX):
        txn = engine.write()
        try:
            for change in changes:
                change(txn)
            txn.commit()
        except RetryWrite:
            continue
        else:
            return
        finally:
            txn.close()
    pytest.fail("RetryWrite without end")


def put(key: bytes, value: bytes, table: Table = Table.META) -> Callable[[WriteTxn], None]:
    return lambda txn: txn.put(table, key, value)


def add(key: bytes, *numbers: int) -> Callable[[WriteTxn], None]:
    def change(txn: WriteTxn) -> None:
        for number in numbers:
            txn.add(key, entry(number))

    return change


def look(engine: Engine, question: Callable[[ReadTxn], Any]) -> Any:
    """Answer one question from a fresh view."""
    view = engine.read()
    try:
        return question(view)
    finally:
        view.close()


def everything(txn: ReadTxn) -> tuple[object, ...]:
    """All that a transaction sees."""
    index = [(key, txn.entries(key, bytes(ENTRY_BYTES), 1000)) for key, _ in txn.newest_page(b"", None, b"", 1000)]
    tables = [txn.page(table, b"", None, 1000) for table in Table]
    return index, tables, txn.length(None), [txn.length(table) for table in Table]


def awkward_keys() -> list[bytes]:
    """Lengths around the limits of engines, with long shared prefixes and the extreme bytes."""
    keys = {b"\0", b"\xff", b"a", b"\0\0", b"\xff\xff"}
    for length in (503, 504, 505, 511, 512, 1000, 5000, 100_000):
        prefix = b"p" * (length - 1)
        keys |= {prefix, *(prefix + last for last in (b"\0", b"a", b"p", b"\xff"))}
        keys |= {b"\0" * length, b"\xff" * length, prefix[:-1] + b"\0\xff", prefix[:-1] + b"\xff\0"}
    return sorted(keys)


def options_for(case: EngineCase, directory: Path, **more: bool) -> EngineOptions:
    path = str(directory / "store") if case.keeps_file else None
    return EngineOptions(path, **{"sync_commits": False, **more})


PLAIN_KEYS = st.sampled_from([b"\0", b"a", b"a\0", b"aa", b"ab", b"b", b"c" * 16, b"\xff", b"\xff\xff"])
INDEX_KEYS = st.sampled_from(
    [
        b"\0",
        b"a",
        b"a\0",
        b"ab",
        b"b",
        *(b"k" * n for n in (503, 504, 511, 512, 600)),
        b"k" * 511 + b"\0",
        b"\xff" * 520,
    ]
)
ENTRIES = st.integers(0, 12).map(entry)
# Bounds need not be entries: the store asks with prefixes of them.
BOUNDS = ENTRIES | st.sampled_from([b"\0", entry(5)[:LOG_KEY_BYTES], entry(7) + b"\0", b"\xff" * ENTRY_BYTES])
TABLES = st.sampled_from([Table.META, Table.LOG])
VALUES = st.sampled_from([b"", b"1", b"2", b"x" * 3000])
LIMITS = st.integers(1, 6)


class EngineMachine(RuleBasedStateMachine):
    """An engine against `Model`: one write transaction, up to three older views, a fresh view."""

    case: EngineCase

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.engine = self.open()
        self.committed = Model()
        self.txn: WriteTxn | None = None
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.pending = Model()
        self.views: list[tuple[ReadTxn, Model]] = []

    def open(self) -> Engine:
        return open_engine(self.case.name, options_for(self.case, Path(self.directory.name)))

    def teardown(self) -> None:
        self.end_views_and_txn()
        self.engine.close()
        self.directory.cleanup()

    def end_views_and_txn(self) -> None:
        for view, _ in self.views:
            view.close()
        self.views.clear()
        if self.txn is not None:
            self.txn.close()
        self.txn = None

    def call_txn(self, method: str, *args: object, **more: object) -> Any:
        """Call the write transaction; if it asks for it, again on a new one brought to the same point."""
        for _ in range(RETRIES_MAX):
            assert self.txn is not None
            try:
                return getattr(self.txn, method)(*args, **more)
            except RetryWrite:
                self.txn.close()
                self.txn = self.engine.write()
                for name, arguments in self.calls:
                    getattr(self.txn, name)(*arguments)
        raise AssertionError("RetryWrite without end")  # noqa: EM101

    def change(self, method: str, *args: object) -> None:
        if self.txn is None:
            self.txn, self.calls, self.pending = self.engine.write(), [], copy.deepcopy(self.committed)
        self.call_txn(method, *args)
        self.calls.append((method, args))
        getattr(self.pending, method)(*args)

    def compare(self, method: str, *args: object, **more: object) -> None:
        """Ask the write transaction, each view and a new one, and their models."""
        if self.txn is not None:
            assert self.call_txn(method, *args, **more) == getattr(self.pending, method)(*args, **more)
        for view, model in self.views:
            assert getattr(view, method)(*args, **more) == getattr(model, method)(*args, **more)
        answer = look(self.engine, lambda view: getattr(view, method)(*args, **more))
        assert answer == getattr(self.committed, method)(*args, **more)

    @rule(table=TABLES, key=PLAIN_KEYS, value=VALUES)
    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self.change("put", table, key, value)

    @rule(table=TABLES, value=VALUES)
    def append(self, table: Table, value: bytes) -> None:
        last = (self.committed if self.txn is None else self.pending).page(table, b"", None, 1, reverse=True)
        if not last or len(last[0][0]) < 24:
            self.change("append", table, last[0][0] + b"\0" if last else b"a", value)

    @rule(table=TABLES, keys=st.lists(PLAIN_KEYS, max_size=5))
    def delete(self, table: Table, keys: list[bytes]) -> None:
        self.change("delete", table, keys)

    @rule(key=INDEX_KEYS, added=ENTRIES)
    def add(self, key: bytes, added: bytes) -> None:
        self.change("add", key, added)

    @rule(key=INDEX_KEYS, removed=st.lists(ENTRIES, max_size=6))
    def remove(self, key: bytes, removed: list[bytes]) -> None:
        self.change("remove", key, removed)

    @precondition(lambda self: self.txn is not None)
    @rule()
    def commit(self) -> None:
        self.call_txn("commit")
        self.txn, self.committed = None, self.pending
        assert look(self.engine, everything) == everything(self.committed)

    @precondition(lambda self: self.txn is not None)
    @rule()
    def roll_back(self) -> None:
        assert self.txn is not None
        self.txn.close()
        self.txn = None

    @precondition(lambda self: len(self.views) < 3)
    @rule()
    def open_view(self) -> None:
        self.views.append((self.engine.read(), copy.deepcopy(self.committed)))

    @precondition(lambda self: self.views)
    @rule(which=st.integers(0, 2))
    def close_view(self, which: int) -> None:
        view, model = self.views.pop(which % len(self.views))
        assert everything(view) == everything(model)
        view.close()

    @precondition(lambda self: self.txn is None)
    @rule()
    def defragment(self) -> None:
        self.engine.defragment()
        assert look(self.engine, everything) == everything(self.committed)
        for view, model in self.views:
            assert everything(view) == everything(model)

    @precondition(lambda self: self.case.keeps_file)
    @rule()
    def reopen(self) -> None:
        self.end_views_and_txn()
        assert self.engine.problems() == []
        self.engine.close()
        self.engine = self.open()

    @rule(table=TABLES, key=PLAIN_KEYS)
    def get(self, table: Table, key: bytes) -> None:
        self.compare("get", table, key)

    @rule(table=TABLES, keys=st.lists(PLAIN_KEYS, max_size=5))
    def get_many(self, table: Table, keys: list[bytes]) -> None:
        self.compare("get_many", table, keys)

    @rule(table=TABLES, start=PLAIN_KEYS, end=st.none() | PLAIN_KEYS, limit=LIMITS, reverse=st.booleans())
    def page(self, table: Table, start: bytes, end: bytes | None, limit: int, reverse: bool) -> None:
        self.compare("page", table, start, end, limit, reverse=reverse)

    @rule(key=INDEX_KEYS, at=BOUNDS)
    def newest(self, key: bytes, at: bytes) -> None:
        self.compare("newest", key)
        self.compare("newest_at", key, at)

    @rule(start=INDEX_KEYS, end=st.none() | INDEX_KEYS, at=BOUNDS, limit=LIMITS)
    def newest_page(self, start: bytes, end: bytes | None, at: bytes, limit: int) -> None:
        self.compare("newest_page", start, end, at, limit)

    @rule(key=INDEX_KEYS, start=BOUNDS, limit=LIMITS, reverse=st.booleans())
    def entries(self, key: bytes, start: bytes, limit: int, reverse: bool) -> None:
        self.compare("entries", key, start, limit, reverse=reverse)

    @rule(table=st.none() | TABLES)
    def length(self, table: Table | None) -> None:
        self.compare("length", table)
