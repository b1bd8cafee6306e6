"""An engine on the standard library's SQLite: slower than LMDB, but one file that any SQLite tool opens.

It owns one database in WAL mode: a connection that writes, behind a `WriterLock`, and a pool of
connections that read. A transaction of the store is a transaction of SQLite.

Invariants:

I1. A connection has one user at a time: a reader is in the pool or in one open view, never both.
I2. A pooled connection has no transaction open, or its next view would be an old one, and the WAL could
    never be reset.
I3. A view has its snapshot when `read` returns: `BEGIN` alone takes none, the first SELECT does.
I4. After an error in a write transaction the writer has no transaction open either: SQLite rolls back by
    itself after some errors and not after others, so `SqliteWriteTxn` makes sure.
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
from pathlib import Path

from mvccstore.engine import EngineOptions, EngineSize
from mvccstore.engine.disk import fsync_directory, fsync_file, translated
from mvccstore.engine.lockfile import WriterLock
from mvccstore.engine.sqlite_txn import (
    CREATE_ENTRIES,
    SQL,
    SqliteReadTxn,
    SqliteWriteTxn,
    roll_back,
    translated_sqlite,
)
from mvccstore.errors import ClosedError, FormatError, StorageError

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
            raise translated_sqlite(self.path, error) from error
        return SqliteReadTxn(self, connection)

    def write(self) -> SqliteWriteTxn:
        """Begin the write transaction. One statement."""
        if self._is_closed:
            raise ClosedError
        if self._writer is None:
            raise StorageError(self.path, _READ_ONLY)
        if self._writer.in_transaction:  # one that was interrupted as it began or ended
            roll_back(self._writer)
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise translated_sqlite(self.path, error) from error
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
            raise translated_sqlite(path, error) from error
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
            raise translated_sqlite(self.path, error) from error

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
                raise translated_sqlite(self.path, error) from error
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
                raise translated_sqlite(self.path, error) from error
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


_inherited: deque[sqlite3.Connection] = deque()
_READ_ONLY = "opened read-only"


def _create_schema(connection: sqlite3.Connection) -> None:
    """Make an empty database a store, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    for sql in SQL.values():
        connection.execute(sql.create)
    connection.execute(CREATE_ENTRIES)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_FORMAT}")
    connection.execute("COMMIT")
