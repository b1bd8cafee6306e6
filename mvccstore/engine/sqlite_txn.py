"""Transactions of the SQLite engine, and all SQL that they and their tables are made with.

They are lent by a `SqliteEngine`, which says how tables are laid out; what they ask of it is `ConnectionHost`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from mvccstore.engine.disk import is_full
from mvccstore.errors import (
    ClosedError,
    CorruptError,
    FormatError,
    LockedError,
    StorageError,
    StorageFullError,
    StoreError,
)
from mvccstore.tables import ENTRY_BYTES, Table

_LARGE_VALUES = frozenset({Table.LOG, Table.DROPS})


class _TableSql(NamedTuple):
    create: str
    get: str
    put: str
    delete: str
    length: str
    page: dict[tuple[bool, bool], str]
    """By (has an end, is reverse)."""


def _table_sql(table: Table) -> _TableSql:
    name = table.value
    pages = {
        (bounded, reverse): f"SELECT k, v FROM {name} WHERE k >= ? {'AND k < ?' if bounded else ''} "
        f"ORDER BY k {'DESC' if reverse else 'ASC'} LIMIT ?"
        for bounded in (False, True)
        for reverse in (False, True)
    }
    return _TableSql(
        create=f"CREATE TABLE {name} (k BLOB NOT NULL PRIMARY KEY, v BLOB NOT NULL)"
        + ("" if table in _LARGE_VALUES else " WITHOUT ROWID"),
        get=f"SELECT v FROM {name} WHERE k = ?",
        put=f"INSERT INTO {name} VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v",
        delete=f"DELETE FROM {name} WHERE k = ?",
        length=f"SELECT count(*) FROM {name}",
        page=pages,
    )


SQL = {table: _table_sql(table) for table in Table}
CREATE_ENTRIES = "CREATE TABLE entries (k BLOB NOT NULL, e BLOB NOT NULL, PRIMARY KEY (k, e)) WITHOUT ROWID"
_LENGTH_ENTRIES = "SELECT count(*) FROM entries"
_ADD = "INSERT OR IGNORE INTO entries VALUES (?, ?)"
_REMOVE = "DELETE FROM entries WHERE k = ? AND e = ?"
_NEWEST = "SELECT e FROM entries WHERE k = ? ORDER BY e LIMIT 1"
_NEWEST_AT = "SELECT e FROM entries WHERE k = ? AND e >= ? ORDER BY e LIMIT 1"
_ENTRIES_UP = "SELECT e FROM entries WHERE k = ? AND e >= ? ORDER BY e LIMIT ?"
_ENTRIES_DOWN = "SELECT e FROM entries WHERE k = ? AND e <= ? ORDER BY e DESC LIMIT ?"


def _newest_page_sql(bounded: bool) -> str:
    """Two searches for each key: one for the key after it, one for its entry; other versions are not visited.

    SQLite runs the recursion as a coroutine, so the last LIMIT ends it.
    """
    below = "AND k < :end" if bounded else ""
    return f"""
        WITH RECURSIVE keys(key) AS (
            SELECT * FROM (SELECT k FROM entries WHERE k >= :start {below} ORDER BY k LIMIT 1)
            UNION ALL
            SELECT (SELECT k FROM entries WHERE k > key {below} ORDER BY k LIMIT 1) FROM keys WHERE key IS NOT NULL
        ),
        found(key, entry) AS (
            SELECT key, (SELECT e FROM entries WHERE k = key AND e >= :at ORDER BY e LIMIT 1) FROM keys
        )
        SELECT key, entry FROM found WHERE entry IS NOT NULL LIMIT :limit
    """


_NEWEST_PAGE = {bounded: _newest_page_sql(bounded) for bounded in (False, True)}
_TXN = "transaction"


class ConnectionHost(Protocol):
    """What a transaction asks of the engine that it is of."""

    path: str

    def give_back(self, connection: sqlite3.Connection) -> None:
        """Return a reader to the pool."""


class SqliteReadTxn:
    """A view of one committed state. See `mvccstore.tables.ReadTxn`."""

    __slots__ = ("_connection", "_engine")

    def __init__(self, engine: ConnectionHost, connection: sqlite3.Connection) -> None:
        self._engine = engine
        self._connection: sqlite3.Connection | None = connection

    def get(self, table: Table, key: bytes, /) -> bytes | None:
        """Return the value of `key`, or None. One statement, O(log n)."""
        return self._first(SQL[table].get, (key,))

    def get_many(self, table: Table, keys: list[bytes], /) -> list[bytes | None]:
        """Return the value of each key, in the order asked. One statement each: an IN list is hardly faster."""
        sql = SQL[table].get
        return [self._first(sql, (key,)) for key in keys]

    def page(
        self, table: Table, start: bytes, end: bytes | None, limit: int, /, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` records with start <= key < end. One statement, O(log n + limit)."""
        sql = SQL[table].page[end is not None, reverse]
        return self._rows(sql, (start, limit) if end is None else (start, end, limit))

    def newest(self, key: bytes, /) -> bytes | None:
        """Return the first index entry of `key`, or None. One statement, O(log n)."""
        return self._first(_NEWEST, (key,))

    def newest_at(self, key: bytes, at: bytes, /) -> bytes | None:
        """Return the first index entry of `key` that is >= `at`, or None. One statement, O(log n)."""
        return self._first(_NEWEST_AT, (key, at))

    def newest_page(self, start: bytes, end: bytes | None, at: bytes, limit: int, /) -> list[tuple[bytes, bytes]]:
        """Return (key, first entry >= `at`) for up to `limit` keys. One statement, O(keys passed x log n)."""
        parameters = {"start": start, "end": end, "at": at, "limit": limit}
        return self._rows(_NEWEST_PAGE[end is not None], parameters)

    def entries(self, key: bytes, start: bytes, limit: int, /, *, reverse: bool = False) -> list[bytes]:
        """Return up to `limit` index entries of `key` from `start` on. One statement, O(log n + limit)."""
        return [entry for (entry,) in self._rows(_ENTRIES_DOWN if reverse else _ENTRIES_UP, (key, start, limit))]

    def length(self, table: Table | None, /) -> int:
        """Return the number of records of a table, or of index entries for None.

        SQLite keeps no counts, and counting ourselves would add a page to every commit. It counts page by
        page, not row by row: measured, 1 to 4 ms for 100,000 records.
        """
        (row,) = self._rows(_LENGTH_ENTRIES if table is None else SQL[table].length, ())
        return int(row[0])

    def pragma(self, name: str) -> int:
        """Return one of the file's counters."""
        (row,) = self._rows(f"PRAGMA {name}", ())
        return int(row[0])

    def close(self) -> None:
        """Give the view up. One statement."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._engine.give_back(connection)

    def _first(self, sql: str, parameters: tuple[bytes, ...]) -> bytes | None:
        if self._connection is None:
            raise ClosedError(_TXN)
        try:
            row: tuple[bytes] | None = self._connection.execute(sql, parameters).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return None if row is None else row[0]

    def _rows(self, sql: str, parameters: tuple[bytes | int, ...] | dict[str, bytes | int | None]) -> list[Any]:
        if self._connection is None:
            raise ClosedError(_TXN)
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> StoreError:
        return translated_sqlite(self._engine.path, error)


class SqliteWriteTxn(SqliteReadTxn):
    """The only writer. See `mvccstore.tables.WriteTxn`; it never raises `RetryWrite`.

    Any error of SQLite's ends it: nothing of it happened, and the engine can be used on.
    """

    __slots__ = ("_committing",)

    def __init__(self, engine: ConnectionHost, connection: sqlite3.Connection) -> None:
        super().__init__(engine, connection)
        self._committing: sqlite3.Connection | None = None

    def put(self, table: Table, key: bytes, value: bytes, /) -> None:
        """Insert or replace one record. One statement, O(log n)."""
        self._run(SQL[table].put, (key, value))

    def append(self, table: Table, key: bytes, value: bytes, /) -> None:
        """Insert a record whose key is above every key of the table. As `put`."""
        self._run(SQL[table].put, (key, value))

    def delete(self, table: Table, keys: list[bytes], /) -> None:
        """Remove the records of `keys`; absent ones are passed over. O(keys x log n)."""
        self._run_many(SQL[table].delete, ((key,) for key in keys))

    def add(self, key: bytes, entry: bytes, /) -> None:
        """Add one entry to the index set of `key`. One statement, O(log n)."""
        assert len(entry) == ENTRY_BYTES
        self._run(_ADD, (key, entry))

    def remove(self, key: bytes, entries: list[bytes], /) -> None:
        """Remove entries from the index set of `key`; absent ones are passed over. O(entries x log n)."""
        self._run_many(_REMOVE, ((key, entry) for entry in entries))

    def commit(self) -> None:
        """Make all of it visible at once. One fsync with `sync_commits`; now and then a checkpoint too."""
        self._committing = self._connection
        self._run("COMMIT", ())
        self._connection = None

    def has_committed(self) -> bool:
        """Ask SQLite whether it is still in the transaction."""
        return self._committing is not None and not self._committing.in_transaction

    def close(self) -> None:
        """Undo what was not committed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            roll_back(connection)

    def _run(self, sql: str, parameters: tuple[bytes, ...]) -> None:
        if self._connection is None:
            raise ClosedError(_TXN)
        try:
            self._connection.execute(sql, parameters)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _run_many(self, sql: str, parameters: Iterable[tuple[bytes, ...]]) -> None:
        if self._connection is None:
            raise ClosedError(_TXN)
        try:
            self._connection.executemany(sql, parameters)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> StoreError:
        self._committing = None
        self.close()  # I4 of the engine
        return super()._failed(error)


def roll_back(connection: sqlite3.Connection) -> None:
    """End the transaction of a connection, if there is one."""
    # Failing to roll back changes nothing: the connection is closed, or the next BEGIN says what is wrong.
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


_REASONS: dict[int, Callable[[str, str], StoreError]] = {
    sqlite3.SQLITE_FULL: StorageFullError,
    sqlite3.SQLITE_CORRUPT: CorruptError,
    sqlite3.SQLITE_NOTADB: FormatError,
    # Someone at the file who does not know the writer lock, so we do not know who.
    sqlite3.SQLITE_BUSY: lambda path, _: LockedError(path, "another program using SQLite"),
}


def translated_sqlite(path: str, error: sqlite3.Error) -> StoreError:
    """Return our error for one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # not from SQLite but from its Python binding
        closed = isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error)
        return ClosedError() if closed else StorageError(path, str(error))
    # The -shm file is made larger when the WAL has grown; the disk being full is what stops that.
    if code == sqlite3.SQLITE_IOERR_SHMSIZE or (code & 0xFF == sqlite3.SQLITE_IOERR and is_full(path)):
        return StorageFullError(path, str(error))
    return _REASONS.get(code & 0xFF, StorageError)(path, str(error))
