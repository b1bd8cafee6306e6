"""The default engine: LMDB through py-lmdb, one file and its lock file.

What it owns: the memory map, the pool of read views, and the writer's lock. Its transactions are in `lmdb_txn`.

Invariants:

* I1. At most one write transaction is open, and it belongs to the thread that began it (LMDB's own rule).
* I2. Every open view is in use or in the idle pool; `_views` has both, weakly: a thread that is interrupted may
  forget one, and with it goes its read transaction. No `__del__`: that would swallow the interrupts that
  come as it runs.
* I3. An idle view is used again only while nothing was committed since it was begun, so it shows what a
  fresh one would. A commit ends the idle ones: no page is kept from reuse by a view nobody uses.
* I4. The map is resized, and the environment reopened, only while no view and no write is open.
* I5. `_env` has the file under our name; a file that was exchanged is closed when nobody has a view of it: views
  have it, we have not.

The map is an address range, not memory and not disk: 64 GiB of it are reserved at once where the system
allows, so that growing (which must wait until no view is open) is rare. When it does fill, also in the
middle of a large transaction, the transaction is given up, the map doubled, and `RetryWrite` asks the
caller to run it again.

Reusing views is worth it: of the 3.1 us of a get, 0.7 are the begin and the abort of a transaction.

Not `writemap` and not `sync=False` under a durable store: the order of meta and data pages on disk is what
makes kill -9 and a power cut harmless.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import lmdb

from mvccstore.engine import EngineOptions, EngineSize
from mvccstore.engine.lmdb_compact import compact_path, gate, identity, open_shared, put_in_place, write_compact
from mvccstore.engine.lmdb_environment import (
    INDEX_NAMES,
    MAP_BYTES_MIN,
    PAGE_BYTES,
    Databases,
    copy_pages,
    open_databases,
    translated,
)
from mvccstore.engine.lmdb_file import examine, structure_problems
from mvccstore.engine.lmdb_index import LmdbIndex
from mvccstore.engine.lmdb_txn import NEVER_AGAIN, LmdbView, LmdbWrite
from mvccstore.engine.lockfile import WriterLock, is_locked
from mvccstore.errors import ClosedError, StorageError, StorageFullError

MAP_BYTES = 1 << 36


class LmdbEngine:
    """LMDB under a store.

    Args:
        options: What to open, and how.
        map_bytes: Address space to reserve at first; it grows by doubling.

    Raises:
        LockedError: Another process writes to the file.
        FormatError: The file is not a store.
        CorruptError: The file is damaged.
        StorageError: It cannot be opened or created.
    """

    name = "lmdb"

    def __init__(self, options: EngineOptions, *, map_bytes: int = MAP_BYTES) -> None:
        if options.path is None:
            msg = "the lmdb engine needs a path"
            raise ValueError(msg)
        self.path = options.path
        self._options = options
        self._map_bytes = max(map_bytes, MAP_BYTES_MIN)
        # Guards _paused_by, _views and the making of views. Entered as it is and not through the condition, whose
        # methods can be interrupted before they let it go.
        self._mutex = threading.RLock()
        self._condition = threading.Condition(self._mutex)
        self.idle: deque[LmdbView] = deque()
        self._views: set[weakref.ref[LmdbView]] = set()
        self._forgotten_views: list[weakref.ref[LmdbView]] = []
        self.generation = 0
        self._paused_by = 0  # a thread
        self._closed = False
        self._lock = None if options.read_only else WriterLock(self.path)
        try:
            exists = examine(self.path, may_extend=not options.read_only)
            if not exists and (options.read_only or not options.create):
                raise StorageError(self.path, "there is no store")
            self._open()
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    def _open(self) -> None:
        self._env, self._map_bytes, found = open_shared(self.path, self._options, self._map_bytes)
        try:
            if not self._options.read_only:
                Path(compact_path(self.path)).unlink(missing_ok=True)  # of a process that was killed
                self._env.reader_check()  # slots of readers that were killed would hold pages back for ever
            databases, index, tails = open_databases(self._env, self.path, create=not self._options.read_only)
        except BaseException as error:
            self._env.close()
            if isinstance(error, lmdb.Error):
                raise self.translated(error) from error
            raise
        self.databases: Databases = databases
        self.index_database = index
        self.index = LmdbIndex(index, tails, self.path)
        self._identity = found

    # Views

    def read(self) -> LmdbView:
        """Begin a view; one that is idle and current is used again."""
        try:
            view = self.idle.pop()
        except IndexError:
            return self._new_view()
        if view.generation != self.generation:  # I3
            self.end_view(view)
            return self._new_view()
        view.is_open = True
        return view

    def _new_view(self) -> LmdbView:
        with self._mutex:
            self._wait_while_paused()
            if self._closed:
                raise ClosedError
            if self._lock is None and identity(self.path) not in {None, self._identity}:
                self._change_file()
            # Beside a writer in another process we cannot tell whether a view is current, so none is used again.
            generation = self.generation if self._lock is not None else NEVER_AGAIN
            view = LmdbView(self, self._begin_read(), generation)
            self._views.add(view.ref)
            return view

    def _begin_read(self) -> lmdb.Transaction[bytes]:
        try:
            try:
                return self._env.begin()
            except lmdb.MapResizedError:
                # Only beside a writer in another process, whose map outgrew ours.
                self._wait_for_views()
                self._env.set_mapsize(0)
                return self._env.begin()
        except lmdb.Error as error:
            raise self.translated(error) from error

    def _change_file(self) -> None:
        """Go on in the file that has our name now. Views that are open go on in theirs, which ends with the last."""
        examine(self.path, may_extend=self._lock is not None)
        self._open()
        self._views = set()

    def end_view(self, view: LmdbView) -> None:
        """End a view that is not to be used again. Called by the view."""
        with self._mutex:
            self._views.discard(view.ref)
            view.txn.abort()
            if self._closed:
                self._release_when_unused()
            elif self._paused_by:
                self._condition.notify_all()

    def _wait_for_views(self) -> None:
        """Wait until no view is open. The condition's lock is held, and `_paused` or nobody else runs."""
        while self._has_views():
            while self.idle:
                with suppress(IndexError):
                    view = self.idle.pop()
                    self._views.discard(view.ref)
                    view.txn.abort()
            if self._has_views():
                # Timed, because a view may become idle between our look and our wait.
                self._condition.wait(0.01)

    def paused(self, work: Callable[[], object]) -> None:
        """Do some work while no view can begin."""
        with self._mutex:
            self._paused_by = threading.get_ident()
            self.generation += 1  # so that views end when they are closed
            try:
                work()
            finally:
                self._paused_by = 0
                self._condition.notify_all()

    def _wait_while_paused(self) -> None:
        # By this thread, then it was interrupted as it ended that. Timed, as then nobody wakes us.
        while self._paused_by not in {0, threading.get_ident()}:
            self._condition.wait(0.1)

    def _alone(self, work: Callable[[], object]) -> None:
        """Do some work while no view is open and none can begin. I4."""

        def work_alone() -> None:
            self._wait_for_views()
            work()

        self.paused(work_alone)

    # Writing

    def write(self) -> LmdbWrite:
        """Begin the write transaction."""
        if self._closed:
            raise ClosedError
        try:
            return LmdbWrite(self, self._env.begin(write=True))
        except lmdb.MapResizedError:
            self._alone(lambda: self._env.set_mapsize(0))
            return LmdbWrite(self, self._env.begin(write=True))
        except lmdb.Error as error:
            raise self.translated(error) from error

    def mend(self) -> None:
        """Reopen the file if the environment is unusable, as a failed write of a meta page leaves it.

        Called by a write transaction whose commit failed; the next writer could not, as it reads before it writes.
        """

        def reopen() -> None:
            self._env.close()
            examine(self.path, may_extend=True)
            self._open()

        try:
            self._env.begin().abort()
        except lmdb.PanicError:
            self._alone(reopen)
        except lmdb.Error:
            pass  # whoever reads next meets it, and says so

    def end_idle_views(self) -> None:
        """End the views that nobody uses. Called by the write transaction, which has outdated them."""
        while self.idle:
            with suppress(IndexError):  # another thread took the last one
                self.end_view(self.idle.pop())

    def grow(self) -> None:
        """Double the map. Called by a write transaction that has just been given up.

        Raises:
            StorageFullError: The address space has no room.
        """

        def double() -> None:
            wanted = self._map_bytes * 2
            try:
                self._env.set_mapsize(wanted)
            except (lmdb.Error, OSError, MemoryError) as error:
                raise StorageFullError(self.path, f"cannot map {wanted:,} bytes: {error}") from error
            self._map_bytes = wanted

        self._alone(double)

    def ensure_room(self, size_bytes: int) -> None:
        """Grow the map unless so many bytes of it were never used. 2 us. Called while no write transaction is open.

        Raises:
            StorageFullError: The address space has no room.
        """
        while self._map_bytes - (int(self._env.info()["last_pgno"]) + 1) * PAGE_BYTES < size_bytes:
            self.grow()

    def defragment(self) -> None:
        """Write what is in use to a new file, and go on in that. Views that are open go on in the old one. I5.

        If it fails when the file has been exchanged, which takes a failing disk or no memory left, the engine is
        closed: what it wrote to the old file would be lost. Opened again, it has all.

        Cost: O(data), about 2 us a record, and room for it beside the old file.
        """
        if self._lock is None:
            raise StorageError(self.path, "opened read-only")
        with self.read() as view:
            plain = {table.value.encode(): database for table, database in self.databases.items()}
            multiple = dict(zip(INDEX_NAMES, self.index.databases, strict=True))
            try:
                write_compact(view.txn, plain, multiple, self.path, self._map_bytes)
                self._exchange()
            except BaseException:
                if identity(self.path) not in {None, self._identity}:
                    self.close()
                raise
            finally:
                Path(compact_path(self.path)).unlink(missing_ok=True)

    def _exchange(self) -> None:
        with self._mutex, gate(self.path, exclusive=True):
            self._wait_while_paused()
            put_in_place(self.path)
            self.generation += 1  # views of the old file end when they are closed
            self.end_idle_views()
            self._change_file()

    def sync(self) -> None:
        """Flush to disk what was committed without syncing."""
        if self._closed:
            raise ClosedError
        try:
            self._env.sync(force=True)
        except lmdb.Error as error:
            raise self.translated(error) from error

    # The file

    def last_transaction(self) -> int:
        """Return the number of the last write transaction that was committed. It goes with the file. 2 us."""
        return int(self._env.info()["last_txnid"])

    def has_writer(self) -> bool:
        """Say whether this or another process has the file open for writing."""
        return self._lock is not None or is_locked(self.path)

    def size(self) -> EngineSize:
        """Add up the pages of every table. Cost: a few microseconds."""
        with self.read() as view:
            used = view.used_bytes()
        return EngineSize(used_bytes=used, file_bytes=Path(self.path).stat().st_size)

    def copy(self, path: str) -> bool:
        """Copy the file as it is, unless less than half of it is in use.

        Cost: O(file); writers wait while it begins, and pages freed meanwhile are not reused until it is done.
        """
        size = self.size()
        if size.used_bytes * 2 < size.file_bytes:
            return False
        copy_pages(self._env, path)
        return True

    def problems(self) -> list[str]:
        """Walk every page, and the index of long keys. Only meaningful while nobody writes.

        Cost: O(file), about 20 us a page.
        """
        found = structure_problems(self.path)
        if not found:  # or walking it could fail, or worse
            with self.read() as view:
                found = [f"index: {problem}" for problem in view.index.problems(view.txn)]
        return found

    def close(self) -> None:
        """Release map and lock; with views open, when the last of them is closed. They stay usable until then."""
        with self._mutex:
            if self._closed:
                return
            self._wait_while_paused()
            self._closed = True
            self.generation += 1  # so that views end when they are closed
            while self.idle:
                with suppress(IndexError):
                    view = self.idle.pop()
                    self._views.discard(view.ref)
                    view.txn.abort()
                    del view
            self._release_when_unused()

    def _has_views(self) -> bool:
        """Say whether a view is open. The condition's lock is held."""
        self._views = {ref for ref in self._views if ref() is not None}
        return bool(self._views)

    def _release_when_unused(self) -> None:
        if not self._has_views():
            self._env.close()
            if self._lock is not None:
                self._lock.release()
        elif not self._forgotten_views:

            def forgotten(_: object) -> None:
                with self._mutex:
                    self._release_when_unused()

            self._forgotten_views = [weakref.ref(view, forgotten) for ref in self._views if (view := ref()) is not None]

    def forget(self) -> None:
        """Drop what was inherited over a fork, leaving file and lock to the parent."""
        self._closed = True
        self._mutex = threading.RLock()  # a thread that is not in the child may have held the old one
        self._condition = threading.Condition(self._mutex)
        self._paused_by = 0
        self.generation += 1
        self._forgotten_views.clear()
        self.idle.clear()
        if self._lock is not None:
            self._lock.forget()

    def translated(self, error: lmdb.Error) -> StorageError:
        """Return our error for one of LMDB's."""
        return translated(error, self.path)
