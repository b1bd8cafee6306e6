"""Transactions over a journal: the layers of what is not in the tables yet, and the tables below them.

They are lent by a `JournaledEngine`; what the write transaction asks of it is `JournalHost`.
"""

from __future__ import annotations

from typing import Final, NoReturn, Protocol, Self

from mvccstore.engine.journal import ADD, DELETE
from mvccstore.engine.layer import Layer, Stack, entries_of, first_at
from mvccstore.engine.lmdb_txn import LmdbView, LmdbWrite
from mvccstore.errors import ClosedError, CorruptError
from mvccstore.tables import ENTRY_BYTES, RetryWrite, Table

TXN_BYTES_MAX: Final = 4 << 20
"""A larger transaction goes to the tables directly."""
TABLES: Final = tuple(Table)
"""As they are numbered in a journal."""
OPERATION_PARTS: Final = 3

_CODES: Final = {table: code for code, table in enumerate(Table)}
_INDEX_LENGTH: Final = len(TABLES)

Lengths = list[int]
"""Of the tables as they are numbered, and of the index."""
Shown = tuple[Stack, int, Lengths, int]
"""The layers, the number of the last commit, the lengths, and where the journal ends."""


class JournalHost(Protocol):
    """What a write transaction asks of the engine that it is of."""

    path: str
    tops: dict[Table, bytes]

    def write_record(self, operations: list[object]) -> tuple[int, int | None]:
        """Write what a write transaction did to the journal; return where that ends, and what is to be synced."""
        ...

    def fail_sync(self, error: OSError) -> NoReturn:
        """Take nothing more, as a sync of the journal has failed."""

    def commit(self, operations: list[object], lengths: Lengths, written: int | None, *, is_synced: bool) -> None:
        """Commit what a write transaction did."""

    def is_committed(self, number: int) -> bool:
        """Say whether the commit with a number was done."""
        ...

    def retract(self) -> None:
        """Take back what the journal may have of a commit that was interrupted."""

    def begin_direct(self) -> LmdbWrite:
        """Begin a write transaction of the tables, which have all then."""
        ...

    def end_direct(self) -> None:
        """Go by the tables, which were written to directly."""

    def end(self, writer: JournalWrite) -> None:
        """Note that a write transaction is over."""


class JournalView:
    """A view of the layers and the tables below them, as of one commit. See `mvccstore.tables.ReadTxn`."""

    __slots__ = ("_at", "_base", "_indexes", "_lengths", "_stack")

    def __init__(self, shown: Shown, base: LmdbView) -> None:
        self._stack, self._at, self._lengths, _ = shown
        self._indexes = self._stack.indexes
        self._base = base

    def get(self, table: Table, key: bytes, /) -> bytes | None:
        """One lookup in each layer, and one in the tables."""
        for nodes in self._stack.plain[table]:
            node = nodes.get(key)
            while node is not None:
                if node[0] <= self._at:
                    value: bytes | None = node[1]
                    return value
                node = node[2]
        return self._base.get(table, key)

    def get_many(self, table: Table, keys: list[bytes], /) -> list[bytes | None]:
        """One lookup each."""
        if not any(key in nodes for nodes in self._stack.plain[table] for key in keys):
            return self._base.get_many(table, keys)
        return [self.get(table, key) for key in keys]

    def page(
        self, table: Table, start: bytes, end: bytes | None, limit: int, /, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """One seek and `limit` steps, in each layer and in the tables."""
        if not any(self._stack.plain[table]):
            return self._base.page(table, start, end, limit, reverse=reverse)
        above: dict[bytes, bytes | None] = {}
        wanted = limit
        for layer in self._stack.layers:
            rows = layer.rows(table, self._at, start, end, wanted, reverse=reverse)
            above = dict(rows) | above
            # What is deleted here may be below, and takes places there.
            wanted += sum(value is None for _, value in rows)
        below = self._base.page(table, start, end, wanted, reverse=reverse)
        if not above:
            return below
        found = [row for row in below if row[0] not in above]
        found += ((key, value) for key, value in above.items() if value is not None)
        found.sort(reverse=reverse)
        return found[:limit]

    def newest(self, key: bytes, /) -> bytes | None:
        """One lookup in each layer, and one in the tables."""
        for nodes in self._indexes:
            node = nodes.get(key)
            while node is not None:
                if node[0] <= self._at:
                    entry: bytes = node[1]
                    return entry
                node = node[2]
        return self._base.newest(key)

    def newest_at(self, key: bytes, at: bytes, /) -> bytes | None:
        """As `newest`, and a step for each version of the layers that is newer."""
        for nodes in self._indexes:
            found = first_at(nodes.get(key), self._at, at)
            if found is not None:
                return found
        return self._base.newest_at(key, at)

    def newest_page(self, start: bytes, end: bytes | None, at: bytes, limit: int, /) -> list[tuple[bytes, bytes]]:
        """One step a key in each layer and in the tables; one seek more for keys changed after `at`."""
        below = self._base.newest_page(start, end, at, limit)
        above: dict[bytes, bytes] = {}
        for layer in self._stack.layers:
            if layer.index.nodes:
                above = dict(layer.newest_rows(self._at, start, end, at, limit)) | above
        if not above:
            return below
        rows = [row for row in below if row[0] not in above]
        rows += above.items()
        rows.sort()
        return rows[:limit]

    def entries(self, key: bytes, start: bytes, limit: int, /, *, reverse: bool = False) -> list[bytes]:
        """One seek and `limit` steps, and one for each version of the layers."""
        here = [entry for nodes in self._indexes for entry in entries_of(nodes.get(key), self._at)]
        if not here:
            return self._base.entries(key, start, limit, reverse=reverse)
        # A layer stays until it was carried over: its entries may be in the tables, too, and all others there are older.
        oldest = here[-1]
        if reverse:
            found = [entry for entry in self._base.entries(key, start, limit, reverse=True) if entry > oldest]
            return (found + [entry for entry in reversed(here) if entry <= start])[:limit]
        found = [entry for entry in here if entry >= start][:limit]
        if len(found) < limit:
            below = self._base.entries(key, max(start, oldest), limit - len(found) + 1)
            found += [entry for entry in below if entry > oldest]
        return found[:limit]

    def length(self, table: Table | None, /) -> int:
        """No lookup."""
        return self._lengths[_INDEX_LENGTH if table is None else _CODES[table]]

    def close(self) -> None:
        """Give the view up. Closing twice is harmless."""
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class JournalWrite(JournalView):
    """The write transaction. Get one from `JournaledEngine.write`.

    Invariant I1: what it has changed in the layer, or is about to change, is in `_operations`: whenever it is
    interrupted, all of that can be undone.
    """

    __slots__ = (
        "_active",
        "_direct",
        "_engine",
        "_is_movable",
        "_is_open",
        "_is_synced",
        "_looked_up",
        "_operations",
        "_own_lengths",
        "_size_bytes",
        "_tops",
        "_written",
    )

    def __init__(self, engine: JournalHost, shown: Shown, base: LmdbView, *, is_movable: bool = False) -> None:
        stack, number, lengths, end = shown
        self._own_lengths = lengths.copy()
        super().__init__((stack, number + 1, self._own_lengths, end), base)
        self._active = stack.layers[0]
        self._engine = engine
        self._tops = engine.tops
        self._operations: list[object] = []
        self._size_bytes = 0
        self._looked_up: tuple[bytes | None, bytes | None] = (None, None)
        self._direct: LmdbWrite | None = None
        self._is_movable = is_movable
        self._written: int | None = None
        self._is_synced = False
        self._is_open = True

    def newest(self, key: bytes, /) -> bytes | None:
        """One lookup in each layer, and one in the tables."""
        entry: bytes | None
        for nodes in self._indexes:
            node = nodes.get(key)
            if node is not None:
                entry = node[1]
                return entry
        entry = self._base.newest(key)
        self._looked_up = (key, entry)
        return entry

    def put(self, table: Table, key: bytes, value: bytes, /) -> None:
        """One lookup."""
        if self._direct is not None:
            self._direct.put(table, key, value)
            return
        code = _CODES[table]
        if self.get(table, key) is None:
            self._own_lengths[code] += 1
        self._operations += (code, key, value)  # I1
        self._tops.pop(table, None)
        self._active.plain[table].put(key, self._at, value)
        self._size_bytes += len(key) + len(value)
        if self._size_bytes > TXN_BYTES_MAX:
            self._go_direct()

    def append(self, table: Table, key: bytes, value: bytes, /) -> None:
        """No lookup."""
        if self._direct is not None:
            self._direct.append(table, key, value)
            return
        top = self._tops.get(table)
        if top is None:
            last = self.page(table, b"", None, 1, reverse=True)
            top = last[0][0] if last else b""
        if key <= top:
            raise CorruptError(self._engine.path, f"the {table} table has a key above the next one")
        code = _CODES[table]
        self._operations += (code, key, value)  # I1
        self._tops[table] = key
        self._own_lengths[code] += 1
        self._active.plain[table].add(key, self._at, value)
        self._size_bytes += len(key) + len(value)
        if self._size_bytes > TXN_BYTES_MAX:
            self._go_direct()

    def delete(self, table: Table, keys: list[bytes], /) -> None:
        """One lookup each."""
        for place, key in enumerate(keys):
            if self._direct is not None:
                self._direct.delete(table, keys[place:])
                return
            if self.get(table, key) is not None:
                self._operations += (DELETE + _CODES[table], key, None)  # I1
                self._own_lengths[_CODES[table]] -= 1
                self._active.plain[table].put(key, self._at, None)
                self._size_bytes += len(key)
                if self._size_bytes > TXN_BYTES_MAX:
                    self._go_direct()
        self._tops.pop(table, None)

    def add(self, key: bytes, entry: bytes, /) -> None:
        """One lookup, unless `newest` has just made it."""
        if self._direct is not None:
            self._direct.add(key, entry)
            return
        assert len(entry) == ENTRY_BYTES
        first = self._looked_up[1] if self._looked_up[0] == key else self.newest(key)
        if first is not None and entry >= first:
            if entry != first:
                self._go_direct()
                self.add(key, entry)
            return
        self._operations += (ADD, key, entry)  # I1
        self._active.index.put(key, self._at, entry)
        self._looked_up = (key, entry)
        self._own_lengths[_INDEX_LENGTH] += 1
        self._size_bytes += len(key)

    def remove(self, key: bytes, entries: list[bytes], /) -> None:
        """One lookup each."""
        self._go_direct().remove(key, entries)

    def _go_direct(self) -> LmdbWrite:
        """Do again on the tables what was done so far, and go on there."""
        if self._direct is None:
            if self._is_movable:
                raise RetryWrite
            operations = self._operations
            self._undo(operations)
            self._operations = []  # I1: not before, as that may be interrupted
            self._base.close()
            direct = self._engine.begin_direct()
            self._direct = self._base = direct
            self._stack = Stack(Layer())
            self._active, self._indexes = self._stack.layers[0], self._stack.indexes
            for code, key, value in zip(*_parts(operations), strict=True):
                assert isinstance(code, int)
                assert isinstance(key, bytes)
                if code == ADD:
                    assert isinstance(value, bytes)
                    direct.add(key, value)
                elif code >= DELETE:
                    direct.delete(TABLES[code - DELETE], [key])
                else:
                    assert isinstance(value, bytes)
                    direct.put(TABLES[code], key, value)
        return self._direct

    def _undo(self, operations: list[object]) -> None:
        """Take the versions away that operations made. Repeatable."""
        keys: dict[int, list[bytes]] = {}
        for code, key in zip(*_parts(operations)[:2], strict=True):
            assert isinstance(code, int)
            assert isinstance(key, bytes)
            keys.setdefault(code if code == ADD else code % DELETE, []).append(key)
        for code, changed in keys.items():
            records = self._active.index if code == ADD else self._active.plain[TABLES[code]]
            records.forget(changed, self._at)
        self._tops.clear()

    def length(self, table: Table | None, /) -> int:
        """No lookup; one lookup of what goes to the tables directly."""
        return super().length(table) if self._direct is None else self._direct.length(table)

    def write_record(self) -> int | None:
        """Write what `commit` would; return the descriptor of what has to be synced then, None if nothing has.

        Nothing more may be changed after it.

        Raises:
            StorageError: It cannot be written; `commit` tries again.
        """
        self._check_open()
        if self._direct is not None or not self._operations:
            return None
        self._written, fd = self._engine.write_record(self._operations)
        return fd

    def _check_open(self) -> None:
        if not self._is_open:  # by an engine that was closed meanwhile
            raise ClosedError

    def note_synced(self, error: OSError | None) -> None:
        """Note that this was synced, so that `commit` need not, or that it failed.

        Raises:
            StorageError: It failed.
        """
        if error is not None:
            self._engine.fail_sync(error)
        self._is_synced = True

    def commit(self) -> None:
        """Make all of it visible at once, and durable. One write and one sync, unless they are done."""
        self._check_open()
        if self._direct is not None:
            self._direct.commit()
        elif self._operations:
            self._engine.commit(self._operations, self._own_lengths, self._written, is_synced=self._is_synced)
        self.close()

    def has_committed(self) -> bool:
        """Compare with the last commit."""
        return self._engine.is_committed(self._at) if self._direct is None else self._direct.has_committed()

    def close(self) -> None:
        """Undo everything, unless committed."""
        if not self._is_open:
            return
        if self._operations and not self._engine.is_committed(self._at):
            self._undo(self._operations)
            self._engine.retract()
        self._base.close()
        if self._direct is not None:
            self._engine.end_direct()
        self._engine.end(self)
        self._is_open = False  # last, so that it can be done again if it is interrupted


def _parts(operations: list[object]) -> tuple[list[object], list[object], list[object]]:
    """Return the codes, the keys and the values of operations."""
    return operations[::OPERATION_PARTS], operations[1::OPERATION_PARTS], operations[2::OPERATION_PARTS]
