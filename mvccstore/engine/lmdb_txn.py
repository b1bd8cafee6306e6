"""Transactions on LMDB: views and the write transaction, with the lookups that the rules need.

They are lent by an `LmdbEngine`, which pools the views; what they ask of it is `ViewHost`.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol, Self

import lmdb

from mvccstore.engine.lmdb_environment import Databases, used_bytes
from mvccstore.engine.lmdb_index import SHORT_BYTES_MAX, LmdbIndex
from mvccstore.errors import CorruptError, StorageError
from mvccstore.tables import ENTRY_BYTES, RetryWrite, Table

_LEAST = bytes(ENTRY_BYTES)
NEVER_AGAIN = -1
"""The generation of views that are not to be used again."""


class ViewHost(Protocol):
    """What a transaction asks of the engine that it is of."""

    path: str
    databases: Databases
    index: LmdbIndex
    index_database: Any
    generation: int
    idle: deque[LmdbView]

    def end_view(self, view: LmdbView) -> None:
        """End a view that is not to be used again."""

    def end_idle_views(self) -> None:
        """End the views that nobody uses."""

    def paused(self, work: Callable[[], object]) -> None:
        """Do some work while no view can begin."""

    def last_transaction(self) -> int:
        """Return the number of the last write transaction that was committed."""
        ...

    def grow(self) -> None:
        """Double the map."""

    def mend(self) -> None:
        """Reopen the file if the environment is unusable."""

    def translated(self, error: lmdb.Error) -> StorageError:
        """Return our error for one of LMDB's."""
        ...


class LmdbView:
    """A read transaction, with the lookups the rules need. Get one from `LmdbEngine.read`."""

    __slots__ = (
        "__weakref__",
        "_databases",
        "_engine",
        "_get",
        "_index_database",
        "generation",
        "index",
        "is_open",
        "ref",
        "txn",
    )

    def __init__(self, engine: ViewHost, txn: lmdb.Transaction[bytes], generation: int) -> None:
        self._engine = engine
        self._databases = engine.databases
        self.index = engine.index
        self._index_database = engine.index_database
        self._get = txn.get
        self.txn = txn
        self.generation = generation
        self.ref = weakref.ref(self)
        self.is_open = True

    def get(self, table: Table, key: bytes, /) -> bytes | None:
        """One lookup."""
        try:
            return self._get(key, None, self._databases[table])
        except lmdb.Error as error:
            raise self._engine.translated(error) from error

    def get_many(self, table: Table, keys: list[bytes], /) -> list[bytes | None]:
        """One lookup each: 1.3 us where the records lie scattered, and no faster through `getmulti`."""
        try:
            get, database = self._get, self._databases[table]
            return [get(key, None, database) for key in keys]
        except lmdb.Error as error:
            raise self._engine.translated(error) from error

    def page(
        self, table: Table, start: bytes, end: bytes | None, limit: int, /, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """One seek and `limit` steps."""
        try:
            cursor = self.txn.cursor(self._databases[table])
            if reverse:
                at_end = cursor.last() if end is None or not cursor.set_range(end) else cursor.prev()
                rows = list(islice(cursor.iterprev(), limit)) if at_end else []
                while rows and rows[-1][0] < start:
                    rows.pop()
                return rows
            # LMDB has no empty keys and refuses to seek one.
            found = cursor.set_range(start) if start else cursor.first()
            rows = list(islice(cursor.iternext(), limit)) if found else []
            while end is not None and rows and rows[-1][0] >= end:
                rows.pop()
            return rows
        except lmdb.Error as error:
            raise self._engine.translated(error) from error

    def newest(self, key: bytes, /) -> bytes | None:
        """One lookup; for a long key one more for each 502 bytes."""
        try:
            if len(key) > SHORT_BYTES_MAX:
                return self.index.newest(self.txn, key)
            entry = self._get(key, None, self._index_database)
            if entry is not None and len(entry) != ENTRY_BYTES:
                raise CorruptError(self._engine.path, f"an index entry of {len(entry)} bytes")
            return entry
        except lmdb.Error as error:
            raise self._engine.translated(error) from error

    def newest_at(self, key: bytes, at: bytes, /) -> bytes | None:
        """One lookup, however many versions the key has."""
        try:
            return self.index.newest_at(self.txn, key, at or _LEAST)  # LMDB has no empty data to seek
        except lmdb.Error as error:
            raise self._engine.translated(error) from error

    def newest_page(self, start: bytes, end: bytes | None, at: bytes, limit: int, /) -> list[tuple[bytes, bytes]]:
        """One step a key; one seek more for keys changed after `at`."""
        try:
            return self.index.newest_page(self.txn, start, end, at, limit)
        except lmdb.Error as error:
            raise self._engine.translated(error) from error

    def entries(self, key: bytes, start: bytes, limit: int, /, *, reverse: bool = False) -> list[bytes]:
        """One seek and `limit` steps."""
        try:
            return self.index.entries(self.txn, key, start or _LEAST, limit, reverse=reverse)
        except lmdb.Error as error:
            raise self._engine.translated(error) from error

    def length(self, table: Table | None, /) -> int:
        """One lookup."""
        try:
            if table is None:
                return self.index.length(self.txn)
            return self.txn.stat(self._databases[table])["entries"]
        except lmdb.Error as error:
            raise self._engine.translated(error) from error

    def used_bytes(self) -> int:
        """Return the space that data takes. A few lookups."""
        tables = [*self._databases.values()]
        return used_bytes(self.txn, tables, self._databases[Table.LOG], self.index.databases, self.length(None))

    def close(self) -> None:
        """Give the view back to the pool."""
        if self.is_open:
            self.is_open = False
            engine = self._engine
            if self.generation == engine.generation:
                engine.idle.append(self)
            else:
                engine.end_view(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class LmdbWrite(LmdbView):
    """The write transaction. Get one from `LmdbEngine.write`."""

    __slots__ = ("_number", "_put")

    def __init__(self, engine: ViewHost, txn: lmdb.Transaction[bytes]) -> None:
        super().__init__(engine, txn, NEVER_AGAIN)
        self._put = txn.put
        self._number = 0
        """The transaction's, once it is about to be committed."""

    def put(self, table: Table, key: bytes, value: bytes, /) -> None:
        """One lookup, and a copy of the pages down to the record."""
        try:
            self._put(key, value, True, True, False, self._databases[table])
        except lmdb.Error as error:
            raise self._failed(error) from error

    def append(self, table: Table, key: bytes, value: bytes, /) -> None:
        """No lookup: the last page is at hand."""
        try:
            if not self._put(key, value, True, True, True, self._databases[table]):
                raise CorruptError(self._engine.path, f"the {table} table has a key above the next one")
        except lmdb.Error as error:
            raise self._failed(error) from error

    def put_many(self, table: Table, rows: list[tuple[bytes, bytes]]) -> None:
        """Insert or replace records that are given in the order of their keys. Half a lookup each."""
        try:
            cursor = self.txn.cursor(self._databases[table])
            # At the end of the table, pages are filled whole.
            is_end = bool(rows) and (not cursor.last() or cursor.key() < rows[0][0])
            cursor.putmulti(rows, append=is_end)
        except lmdb.Error as error:
            raise self._failed(error) from error

    def add_many(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Add index entries that are given in the order of keys and entries. Half a lookup each."""
        try:
            short = [row for row in rows if len(row[0]) <= SHORT_BYTES_MAX]
            self.txn.cursor(self._index_database).putmulti(short)
            if len(short) < len(rows):
                for key, entry in rows:
                    if len(key) > SHORT_BYTES_MAX:
                        self.index.add(self.txn, key, entry)
        except lmdb.Error as error:
            raise self._failed(error) from error

    def delete(self, table: Table, keys: list[bytes], /) -> None:
        """One lookup each; half of that for neighbours in order."""
        try:
            # A cursor stays where it deletes, so neighbours given in order need no lookup of their own.
            cursor = self.txn.cursor(self._databases[table])
            for key in keys:
                if cursor.key() == key or cursor.set_key(key):
                    cursor.delete()
        except (lmdb.Error, SystemError) as error:
            raise self._failed(error) from error

    def add(self, key: bytes, entry: bytes, /) -> None:
        """One lookup."""
        try:
            if len(key) > SHORT_BYTES_MAX:
                self.index.add(self.txn, key, entry)
            else:
                self._put(key, entry, True, True, False, self._index_database)
        except lmdb.Error as error:
            raise self._failed(error) from error

    def remove(self, key: bytes, entries: list[bytes], /) -> None:
        """One lookup each."""
        try:
            self.index.remove(self.txn, key, entries)
        except (lmdb.Error, SystemError) as error:
            raise self._failed(error) from error

    def commit(self) -> None:
        """Write the changed pages; sync data and meta page if the engine is told to."""
        self._number = self.txn.id()
        self.is_open = False
        try:
            self.txn.commit()
        except lmdb.Error as error:
            self.is_open = True
            failure = self._failed(error)
            self._engine.mend()
            raise failure from error
        finally:
            self._engine.generation += 1  # before anything that could be interrupted: views of before are outdated
            self._engine.end_idle_views()

    def has_committed(self) -> bool:
        """Ask the file for its last transaction."""
        return 0 < self._number <= self._engine.last_transaction()

    def close(self) -> None:
        """Undo everything, unless committed."""
        if self.is_open:
            # py-lmdb aborts when no thread is in any call of LMDB's: with busy readers, never.
            self._engine.paused(self.txn.abort)
            self.is_open = False  # last, so that it can be done again if it is interrupted

    def _failed(self, error: lmdb.Error | SystemError) -> Exception:
        """Give the transaction up and return what to raise."""
        self.close()
        if isinstance(error, SystemError):  # what a cursor's delete makes of a damaged page
            return CorruptError(self._engine.path, "a damaged page")
        if isinstance(error, lmdb.MapFullError):
            self._engine.grow()
            return RetryWrite()
        return self._engine.translated(error)
