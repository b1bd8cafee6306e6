"""An engine on the standard library's SQLite: slower than LMDB, but one file that any SQLite tool opens.

It owns one database in WAL mode: a connection that writes, behind a `WriterLock`, and a pool of
connections that read. A transaction of the store is a transaction of SQLite.

Invariants:

I1. A connection has one user at a time: a reader is in the pool or in one open view, never both.
I2. A pooled connection has no transaction open, or its next view would be an old one, and the WAL could
    never be reset.
I3. A view has its snapshot when `read` returns: `BEGIN` alone takes none, the first SELECT does.
I4. After an error in a write transaction the writer has no transaction open either: SQLite rolls back by
    itself after some errors and not after others, so `_failed` makes sure.
I5. No descriptor of the database file is ever opened and closed here but by SQLite: closing one drops the
    POSIX locks that its connections in this process hold on the file. (There are none on the `-wal` file.)

Tables. Each plain table is `(k, v)`, the index is `entries(k, e)` with both columns its primary key, so
versions of a key are neighbours. `WITHOUT ROWID` saves a second tree, but then a search reads the whole
record of every row it compares with: measured with values of 1,000 bytes, 3 times slower to look up and 3
times the file. So the tables with large values, LOG and DROPS, have a rowid. For the same reason index
keys much longer than a quarter page (1,000 bytes) are slow here, and each is stored once per version.

Durability. With `sync_commits`, `synchronous=FULL`: each commit syncs the WAL. Without, `NORMAL`: only
checkpoints sync, in an order that cannot damage the file, so a power cut takes the last commits and no
more. `sync` then syncs the WAL itself; a checkpoint would not do, as readers can hold it back.

Why not one connection with a lock around it: readers would wait for the writer's disk. Why not a cursor
per row: a Python call into SQLite costs about what five rows do, so pages are single statements.

Not told apart: a user's disk quota (EDQUOT) reaches us as a general I/O error, hence as `StorageError`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mvccstore.engine import EngineOptions, EngineSize
from mvccstore.engine.disk import fsync_directory, fsync_file, is_full, translated
from mvccstore.engine.lockfile import WriterLock
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

APPLICATION_ID = 0x6D766363  # "mvcc"; `file` and PRAGMA application_id show it
SCHEMA_FORMAT = 1
IDLE_READERS_MAX = 16
CACHE_KIB = 8_192
STATEMENTS_MAX = 128
# WAL mode makes nobody wait for long but who meets another process's recovery or a program that ignores
# the writer lock.
BUSY_SECONDS = 10.0
# A WAL that one huge transaction or one long view has blown up is cut back to this once it is reset.
WAL_BYTES_KEPT = 67_108_864

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


_SQL = {table: _table_sql(table) for table in Table}
_CREATE_ENTRIES = "CREATE TABLE entries (k BLOB NOT NULL, e BLOB NOT NULL, PRIMARY KEY (k, e)) WITHOUT ROWID"
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


class SqliteEngine:
    """The engine named `sqlite`.

    Args:
        options: See `EngineOptions`. With `read_only` the file must exist, and so must its directory be
            writable, or a writer be open: SQLite keeps shared memory beside a file in WAL mode.
        max_page_count: For tests of a full disk: pages (of 4,096 bytes) that the file may have; 0 for any.

    Raises:
        ValueError: No path was given.
        LockedError: Another engine has the file open for writing.
        FormatError: The file is not SQLite's, or not a store, or one of a newer format.
        CorruptError: The file is damaged where opening reads it.
        StorageError: There is no such file and `create` is False, or it cannot be opened or created.

    Cost: opening is a few file operations and, after a crash, reading the WAL (usually below 4 MB). A view
    is three statements, a lookup one: 2 to 5 microseconds each, and the disk.
    """

    name = "sqlite"

    def __init__(self, options: EngineOptions, *, max_page_count: int = 0) -> None:
        if options.path is None:
            msg = "the sqlite engine needs a path"
            raise ValueError(msg)
        self.path = options.path
        self._is_closed = False
        self._syncs_commits = options.sync_commits
        self._idle: deque[sqlite3.Connection] = deque()
        self._writer: sqlite3.Connection | None = None
        self._lock: WriterLock | None = None
        try:
            if not options.read_only:
                self._lock = WriterLock(self.path)
                self._writer = self._open_writer(options, max_page_count)
            self._idle.append(self._open_reader())
        except BaseException:
            self.close()
            raise

    def read(self) -> SqliteReadTxn:
        """Begin a consistent view of what is committed now. Two statements; blocks nobody."""
        connection = self._take_reader()
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT 1 FROM meta LIMIT 1").fetchone()  # I3
        except sqlite3.Error as error:
            connection.close()
            raise _translated(self.path, error) from error
        return SqliteReadTxn(self, connection)

    def write(self) -> SqliteWriteTxn:
        """Begin the write transaction. One statement."""
        if self._is_closed:
            raise ClosedError
        if self._writer is None:
            raise StorageError(self.path, _READ_ONLY)
        if self._writer.in_transaction:  # one that was interrupted as it began or ended
            _roll_back(self._writer)
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error
        return SqliteWriteTxn(self, self._writer)

    def sync(self) -> None:
        """Make every commit so far survive a power cut. One fsync of the WAL, which waits for nobody.

        What a checkpoint has moved out of the WAL meanwhile was synced by that.
        """
        if self._is_closed:
            raise ClosedError
        if self._writer is not None:
            fsync_file(f"{self.path}-wal", self.path)
            fsync_directory(self.path)

    def size(self) -> EngineSize:
        """Return the space taken, the WAL included. A view, three counters of the file's header, two stats."""
        view = self.read()
        try:
            pages, free_pages, page_bytes = (view.pragma(f) for f in ("page_count", "freelist_count", "page_size"))
        finally:
            view.close()
        # Not `pages`, which counts those that are only in the WAL so far.
        file_bytes = 0
        for name in (self.path, f"{self.path}-wal"):
            with contextlib.suppress(OSError):
                file_bytes += Path(name).stat().st_size
        return EngineSize((pages - free_pages) * page_bytes, file_bytes)

    def copy(self, path: str) -> bool:
        """Write a consistent, compact, synced copy to `path`; readers and writers go on. O(file).

        The copy has another name, `<path>-partial`, until it is whole.

        Raises:
            StorageError: `path` exists or cannot be written.
        """
        partial = Path(f"{path}-partial")
        connection = self._take_reader()
        try:
            if Path(path).exists():
                raise StorageError(path, "already exists")
            partial.unlink(missing_ok=True)
            connection.execute("VACUUM INTO ?", (str(partial),))
            fsync_file(str(partial), path)
            partial.rename(path)
            fsync_directory(path)
        except sqlite3.Error as error:
            raise _translated(path, error) from error
        except OSError as error:
            raise translated(path, error) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            self.give_back(connection)
        return True

    def defragment(self) -> None:
        """Write the database anew, and cut the file to that. Views go on; an old one delays the cutting.

        What an old view keeps from being cut now, the checkpoint of a later commit or of the close cuts.

        Cost: O(data), and room for it twice: in the directory for temporary files, and in the WAL.
        """
        if self._is_closed:
            raise ClosedError
        if self._writer is None:
            raise StorageError(self.path, _READ_ONLY)
        try:
            self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA busy_timeout = 0")  # views are not waited for
            try:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {round(BUSY_SECONDS * 1000)}")
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error

    def problems(self) -> list[str]:
        """Let SQLite check the file's structure and say what is wrong. O(file)."""
        connection = self._take_reader()
        try:
            rows = connection.execute("PRAGMA integrity_check").fetchall()
        except sqlite3.DatabaseError as error:
            return [str(error)]
        finally:
            self.give_back(connection)
        return [line for (report,) in rows if report != "ok" for line in report.splitlines()]

    def close(self) -> None:
        """Close all connections and release the lock. Views still open stay usable until they are closed.

        The last connection to close moves the WAL into the file and removes it.

        Cost: a checkpoint of what the WAL holds, usually below 4 MB.
        """
        if self._is_closed:
            return
        try:
            if self._writer is not None and not self._syncs_commits:
                self.sync()  # views still open would keep the checkpoint from happening
        finally:
            self._is_closed = True
            self._close_idle()
            if self._writer is not None:
                self._writer.close()
            if self._lock is not None:
                self._lock.release()

    def forget(self) -> None:
        """Leave file and lock to the parent process, in a child after a fork."""
        self._is_closed = True
        # SQLite forbids even closing an inherited connection, so these are kept from being collected.
        if self._writer is not None:
            _inherited.append(self._writer)
        self._idle = _inherited
        if self._lock is not None:
            self._lock.forget()

    def give_back(self, connection: sqlite3.Connection) -> None:
        """Return a reader to the pool. Called once for each `_take_reader`."""
        if self._idle is _inherited:
            _inherited.append(connection)
            return
        try:
            if connection.in_transaction:
                connection.execute("COMMIT")  # I2
        except sqlite3.Error:
            connection.close()
            return
        if len(self._idle) >= IDLE_READERS_MAX:
            connection.close()
            return
        self._idle.append(connection)
        if self._is_closed:  # looked at after the append, or `close` could run between the two and miss it
            self._close_idle()

    def _take_reader(self) -> sqlite3.Connection:
        if self._is_closed:
            raise ClosedError
        try:
            return self._idle.pop()  # the one used last has the warmest cache
        except IndexError:
            return self._open_reader()

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _connect(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{Path(self.path).absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=STATEMENTS_MAX,
        )
        try:
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        except BaseException:  # it looks at the file, which may be none of SQLite's
            connection.close()
            raise
        return connection

    def _open_reader(self) -> sqlite3.Connection:
        connection = None
        try:
            connection = self._connect("ro")
            if not self._is_store(connection):
                raise FormatError(self.path, "an empty file, not a store")
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise _translated(self.path, error) from error
            raise
        return connection

    def _open_writer(self, options: EngineOptions, max_page_count: int) -> sqlite3.Connection:
        connection = None
        try:
            connection = self._connect("rwc" if options.create else "rw")
            # Before anything is changed: the file may be another program's database.
            is_store = self._is_store(connection)
            if not is_store and not options.create:
                raise FormatError(self.path, "an empty file, not a store")
            if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise StorageError(self.path, "this file system has no shared memory for SQLite's WAL mode")
            if not is_store:
                _create_schema(connection)
                fsync_directory(self.path)
            connection.execute(f"PRAGMA synchronous = {'FULL' if options.sync_commits else 'NORMAL'}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
            if max_page_count:
                connection.execute(f"PRAGMA max_page_count = {max_page_count}")
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise _translated(self.path, error) from error
            raise
        return connection

    def _is_store(self, connection: sqlite3.Connection) -> bool:
        """Return False for an empty database; raise for one that is not ours to touch."""
        if connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None:
            return False
        if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
            raise FormatError(self.path, "an SQLite file, but not a store")
        (schema_format,) = connection.execute("PRAGMA user_version").fetchone()
        if schema_format > SCHEMA_FORMAT:
            raise FormatError(self.path, f"format {schema_format}; this version reads up to {SCHEMA_FORMAT}")
        return True


class SqliteReadTxn:
    """A view of one committed state. See `mvccstore.tables.ReadTxn`."""

    __slots__ = ("_connection", "_engine")

    def __init__(self, engine: SqliteEngine, connection: sqlite3.Connection) -> None:
        self._engine = engine
        self._connection: sqlite3.Connection | None = connection

    def get(self, table: Table, key: bytes, /) -> bytes | None:
        """Return the value of `key`, or None. One statement, O(log n)."""
        return self._first(_SQL[table].get, (key,))

    def get_many(self, table: Table, keys: list[bytes], /) -> list[bytes | None]:
        """Return the value of each key, in the order asked. One statement each: an IN list is hardly faster."""
        sql = _SQL[table].get
        return [self._first(sql, (key,)) for key in keys]

    def page(
        self, table: Table, start: bytes, end: bytes | None, limit: int, /, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` records with start <= key < end. One statement, O(log n + limit)."""
        sql = _SQL[table].page[end is not None, reverse]
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
        (row,) = self._rows(_LENGTH_ENTRIES if table is None else _SQL[table].length, ())
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
        return _translated(self._engine.path, error)


class SqliteWriteTxn(SqliteReadTxn):
    """The only writer. See `mvccstore.tables.WriteTxn`; it never raises `RetryWrite`.

    Any error of SQLite's ends it: nothing of it happened, and the engine can be used on.
    """

    __slots__ = ()

    def put(self, table: Table, key: bytes, value: bytes, /) -> None:
        """Insert or replace one record. One statement, O(log n)."""
        self._run(_SQL[table].put, (key, value))

    def append(self, table: Table, key: bytes, value: bytes, /) -> None:
        """Insert a record whose key is above every key of the table. As `put`."""
        self._run(_SQL[table].put, (key, value))

    def delete(self, table: Table, keys: list[bytes], /) -> None:
        """Remove the records of `keys`; absent ones are passed over. O(keys x log n)."""
        self._run_many(_SQL[table].delete, ((key,) for key in keys))

    def add(self, key: bytes, entry: bytes, /) -> None:
        """Add one entry to the index set of `key`. One statement, O(log n)."""
        assert len(entry) == ENTRY_BYTES
        self._run(_ADD, (key, entry))

    def remove(self, key: bytes, entries: list[bytes], /) -> None:
        """Remove entries from the index set of `key`; absent ones are passed over. O(entries x log n)."""
        self._run_many(_REMOVE, ((key, entry) for entry in entries))

    def commit(self) -> None:
        """Make all of it visible at once. One fsync with `sync_commits`; now and then a checkpoint too."""
        self._run("COMMIT", ())
        self._connection = None

    def close(self) -> None:
        """Undo what was not committed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _roll_back(connection)

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
        self.close()  # I4
        return super()._failed(error)


_inherited: deque[sqlite3.Connection] = deque()
_TXN = "transaction"
_READ_ONLY = "opened read-only"


def _create_schema(connection: sqlite3.Connection) -> None:
    """Make an empty database a store, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    for sql in _SQL.values():
        connection.execute(sql.create)
    connection.execute(_CREATE_ENTRIES)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_FORMAT}")
    connection.execute("COMMIT")


def _roll_back(connection: sqlite3.Connection) -> None:
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


def _translated(path: str, error: sqlite3.Error) -> StoreError:
    """Return our error for one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # not from SQLite but from its Python binding
        closed = isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error)
        return ClosedError() if closed else StorageError(path, str(error))
    # The -shm file is made larger when the WAL has grown; the disk being full is what stops that.
    if code == sqlite3.SQLITE_IOERR_SHMSIZE or (code & 0xFF == sqlite3.SQLITE_IOERR and is_full(path)):
        return StorageFullError(path, str(error))
    return _REASONS.get(code & 0xFF, StorageError)(path, str(error))
