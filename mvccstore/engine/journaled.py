"""LMDB behind a journal: a commit is one write and one sync, and the tables are written in bulk.

What it owns: the two files of the journal, the layers of what is not in the tables yet, the number of the last commit,
and the thread that carries layers over.

A commit to LMDB writes a page for each node from the leaves of its trees up to their roots, and syncs twice; twelve
thousand commits carried over at once share those pages: 3 us a put. Commits meanwhile go to a second layer and file.

Invariants:

* I1. A file of the journal has what its layer has; it is emptied, durably, when the tables have that.
* I2. `_shown` is layers, number, lengths, and end of the journal as of the last commit: one tuple, replaced as a whole.
* I3. The tables change only by carrying over, or while nothing is to be carried over.
* I4. At most one write transaction is open: `_writer`. Its versions have the number after the last, so nobody sees
  them. One that was forgotten is undone when the next begins. No layer is put aside while one is open.
* I5. There are two layers at most, and the older one does not change.

A transaction that takes entries out of the index, or is large, or does anything else that a layer cannot hold, goes to
the tables directly: what was committed is carried over first, then what it did is done again there.

Other processes that read the file see what was carried over: `CARRY_SECONDS` less, or two layers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import NoReturn

from mvccstore.engine import EngineOptions, EngineSize
from mvccstore.engine.journal import ADD, DELETE, Journal, is_journal_left, journal_names, left_records, remove_journal
from mvccstore.engine.journal_txn import OPERATION_PARTS, TABLES, JournalView, JournalWrite, Lengths, Shown
from mvccstore.engine.layer import Layer, Node, Stack
from mvccstore.engine.lmdb import LmdbEngine
from mvccstore.engine.lmdb_environment import PAGE_BYTES
from mvccstore.engine.lmdb_txn import LmdbView, LmdbWrite
from mvccstore.errors import ClosedError, StorageError
from mvccstore.tables import Table, written

CARRY_SECONDS = 2.0
"""So long after a commit, the tables have it, unless writes follow on each other without a gap."""
LAYER_CHANGES_MAX = 24_000
"""So many are carried over at once: 12,000 puts, with a record and an index entry each.

More share more pages: of 100,000 keys a put takes 3.3 us to be carried over, with 8,000 changes 4.5. But they are kept in
memory meanwhile, and so are all pages that a transaction of LMDB's changes: a server after 240,000 puts of 20,000 keys
had 61 MB, with 8,000 changes 45.
"""
_PART_KEYS = 1_000
JOURNAL_BYTES_MAX = 8 << 20
"""So long a journal is carried over, too."""
_ROOM_BYTES = 3 * PAGE_BYTES
_ROOM_TIMES = 4
"""A change may take a page in three levels of a tree, and its bytes some more. The map must not grow as it is carried
over: that waits until no view is open, and a writer beside it has one for as long as it likes."""


def open_lmdb(options: EngineOptions) -> LmdbEngine | JournaledEngine:
    """Open an LMDB file, with what its journal has if it was left with one.

    Raises: As `LmdbEngine`; and
        StorageError: It was left with a journal, and is opened read-only: that needs one writer first.
        FormatError: The journal is not of this file.
        CorruptError: The journal is damaged.
    """
    path = options.path
    if options.read_only:
        engine = LmdbEngine(options)
        if path is not None and is_journal_left(path) and not engine.has_writer():
            engine.close()
            raise StorageError(path, "it was not closed, and some of it is in its journal; open it for writing once")
        return engine
    engine = LmdbEngine(options)
    try:
        carry_over_left(engine)
        if options.journal:
            return JournaledEngine(engine, sync_commits=options.sync_commits)
        remove_journal(engine.path)
    except BaseException:
        engine.close()
        raise
    return engine


def carry_over_left(engine: LmdbEngine) -> None:
    """Write to the tables what a journal has that was left. O(journal)."""
    layer = Layer()
    for number, operations in left_records(engine.path, engine.last_transaction()):
        for code, key, value in operations:
            if code == ADD:
                layer.index.put(key, number, value)
            else:
                layer.plain[TABLES[code % DELETE]].put(key, number, value)
        layer.count += len(operations)
    if layer.count:
        _carry(engine, layer)
        engine.sync()  # whatever it was opened with: what the journal has is on disk, and the journal goes


def _carry(engine: LmdbEngine, layer: Layer) -> None:
    """Write the newest of a layer to the tables, in one transaction."""
    written(engine.write, lambda txn: _write_layer(txn, layer))


def _write_layer(txn: LmdbWrite, layer: Layer) -> None:
    for table in TABLES:
        for nodes in _parts(layer.plain[table].nodes):
            txn.put_many(table, sorted((key, node[1]) for key, node in nodes if node[1] is not None))
            txn.delete(table, sorted(key for key, node in nodes if node[1] is None))
    for nodes in _parts(layer.index.nodes):
        rows: list[tuple[bytes, bytes]] = []
        for key, newest in nodes:
            node: Node | None = newest
            while node is not None:
                rows.append((key, node[1]))
                node = node[2]
        txn.add_many(sorted(rows))
    txn.commit()


def _parts(nodes: dict[bytes, Node]) -> Iterator[list[tuple[bytes, Node]]]:
    """Iterate over the keys of a table, a thousand at a time: other threads wait for as long as it takes to sort them.

    A page that holds keys of several parts is copied with the first: in order as a whole, a put takes 0.2 us less of
    3.5, and all threads wait for 8 ms.
    """
    left = iter(nodes.items())
    while part := list(islice(left, _PART_KEYS)):
        yield part


def _open_journals(path: str, *, sync_commits: bool) -> tuple[Journal, Journal]:
    name, other = journal_names(path)
    first = Journal(path, name, sync_commits=sync_commits)
    try:
        return first, Journal(path, other, sync_commits=sync_commits)
    except BaseException:
        first.close(is_done=True)
        raise


class JournaledEngine:
    """LMDB and a journal under a store.

    Args:
        base: The tables. A journal that it was left with is carried over.
        sync_commits: Whether `commit` returns only when the change survives a power cut.
    """

    name = LmdbEngine.name

    def __init__(self, base: LmdbEngine, *, sync_commits: bool) -> None:
        self.path = base.path
        self.base = base
        self._journal, self._aside = _open_journals(base.path, sync_commits=sync_commits)
        # Held by who carries over, and taken before the next one.
        self._carrying = threading.RLock()
        # Guards _writer, _shown, and which journal is which; held for a few instructions. Re-entrant, for a signal
        # handler that uses the store it interrupts.
        self._mutex = threading.RLock()
        self._writer: JournalWrite | None = None
        self._is_closed = False
        self.tops: dict[Table, bytes] = {}
        """The last key of tables that were appended to."""
        self._has_changed = threading.Event()
        self._is_pressed = threading.Event()
        self._is_ending = False
        self._carrier: threading.Thread | None = None
        self._shown: Shown = (Stack(Layer()), 0, [], 0)
        self.end_direct()

    # Reading

    def read(self) -> LmdbView | JournalView:
        """Begin a view. Of the tables alone, if they have all that was committed."""
        while True:
            shown = self._shown
            stack = shown[0]
            view = self.base.read()
            # With a layer that was carried over meanwhile the tables may have more than we are to show.
            if self._shown[0] is stack:
                return JournalView(shown, view) if stack.layers[0].count or len(stack.layers) > 1 else view
            view.close()

    # Writing

    def write(self) -> JournalWrite:
        """Begin the write transaction; if both layers are full, once the older one was carried over."""
        while True:
            with self._mutex:
                if self._is_closed:
                    raise ClosedError
                self._check_journal()
                if self._writer is not None:
                    self._writer.close()  # I4: it was forgotten
                if self._has_room():
                    self._writer = writer = JournalWrite(self, self._shown, self.base.read())
                    return writer
            with self._carrying:
                self._carry_aside()

    def write_movable(self) -> JournalWrite | None:
        """Begin a write transaction that any thread may end; None if something must be done first.

        It raises `RetryWrite` for what only `write` can do: that goes to the tables directly.
        """
        with self._mutex:
            self._check_journal()
            if self._is_closed or self._writer is not None or not self._has_room():
                return None
            self._writer = writer = JournalWrite(self, self._shown, self.base.read(), is_movable=True)
            return writer

    def _check_journal(self) -> None:
        """Raise if a sync of either file has failed: nothing more is taken, nor carried over, and who opens it next
        goes by what is there."""
        self._journal.check()
        self._aside.check()

    def _has_room(self) -> bool:
        """Say whether there is a layer for the next commit; one that is full is put aside. No writer is open."""
        stack, _, _, end = self._shown
        if stack.layers[0].count < LAYER_CHANGES_MAX and end < JOURNAL_BYTES_MAX:
            return True
        if len(stack.layers) > 1:
            return False
        self._put_aside()
        self._is_pressed.set()
        return True

    def _put_aside(self) -> None:
        """Begin a new layer. No write transaction is open; the mutex is held."""
        stack, number, lengths, end = self._shown
        assert len(stack.layers) == 1  # I5
        self.base.ensure_room(stack.layers[0].count * _ROOM_BYTES + end * _ROOM_TIMES)
        self._shown = (Stack(Layer(), stack.layers[0]), number, lengths, 0)
        self._journal, self._aside = self._aside, self._journal

    def write_record(self, operations: list[object]) -> tuple[int, int | None]:
        """Write what a write transaction did to the journal; return where that ends, and what is to be synced.

        Called by it.
        """
        _, number, _, end = self._shown
        base = 0 if end else self.base.last_transaction()
        return self._journal.write(end, number + 1, operations, base), self._journal.sync_fd

    def commit(self, operations: list[object], lengths: Lengths, written: int | None, *, is_synced: bool) -> None:
        """Commit what a write transaction did. Called by it.

        Args:
            operations: That.
            lengths: Of the tables, after it.
            written: Where its record ends, if that is written.
            is_synced: Whether that is synced.
        """
        stack, number, _, _ = self._shown
        if written is None:
            written, _ = self.write_record(operations)
        if is_synced:
            self._journal.check()  # a sync that another thread had may have been told what became of this one
        elif self._journal.sync_fd is not None:
            self._journal.sync()
        stack.layers[0].count += len(operations) // OPERATION_PARTS
        with self._mutex:
            self._shown = (self._shown[0], number + 1, lengths, written)
        if self._carrier is None:
            carrier = threading.Thread(target=self._run, name="mvccstore-journal", daemon=True)
            carrier.start()
            self._carrier = carrier  # once it runs: who is interrupted before leaves it to the next commit
        if not self._has_changed.is_set():
            self._has_changed.set()

    def fail_sync(self, error: OSError) -> NoReturn:
        """Take nothing more, as a sync of the journal has failed. Called by the write transaction."""
        self._journal.fail(error)

    def is_committed(self, number: int) -> bool:
        """Say whether the commit with a number was done."""
        return self._shown[1] >= number

    def retract(self) -> None:
        """Take back what the journal may have of a commit that was interrupted. Called by the write transaction."""
        self._journal.retract(self._shown[3])

    def end(self, writer: JournalWrite) -> None:
        """Note that a write transaction is over. Called by it."""
        with self._mutex:
            if self._writer is writer:
                self._writer = None

    def begin_direct(self) -> LmdbWrite:
        """Begin a write transaction of the tables, which have all then. Called by a write transaction. I3."""
        self._carry_over(beside_writer=True)
        return self.base.write()

    def end_direct(self) -> None:
        """Go by the tables, which were written to directly. Called by the write transaction."""
        with self.base.read() as view:
            lengths = [*map(view.length, TABLES), view.length(None)]
        with self._mutex:
            self._shown = (Stack(Layer()), self._shown[1], lengths, 0)
        self.tops.clear()

    # Carrying over

    def _carry_over(self, *, beside_writer: bool = False) -> bool:
        """Have the tables have all that was committed, unless a write transaction is open: then return False.

        Raises:
            StorageError: It cannot be written; all stays as it is.
        """
        with self._carrying:
            self._carry_aside()
            with self._mutex:
                if self._is_closed:
                    raise ClosedError
                if self._writer is not None and not beside_writer:
                    return False
                if self._shown[0].layers[0].count:
                    self._put_aside()
            self._carry_aside()
            return True

    def _carry_aside(self) -> None:
        """Have the tables have the layer that was put aside, if there is one. `_carrying` is held."""
        layers = self._shown[0].layers
        if len(layers) > 1:
            self._check_journal()
            _carry(self.base, layers[1])
            self._aside.empty()
            with self._mutex:
                self._shown = (Stack(layers[0]), *self._shown[1:])

    def _run(self) -> None:
        """Carry over, a while after there was something, or once a layer is full. The thread's."""
        while True:
            self._has_changed.wait()
            self._is_pressed.wait(CARRY_SECONDS)
            self._has_changed.clear()
            self._is_pressed.clear()
            if self._is_ending:
                return
            is_done = False
            with suppress(StorageError, ClosedError):  # whoever needs the room is told
                is_done = self._carry_over()
            if not is_done:
                self._has_changed.set()

    def sync(self) -> None:
        """Make what was committed part of the file, durably: other processes see it then.

        While a write transaction is open, what is in the journal stays there.
        """
        if self._carry_over():
            self.base.sync()
        else:
            with self._mutex:
                self._journal.sync()

    # The file

    def size(self) -> EngineSize:
        """Add up the pages of every table, and the journal."""
        size = self.base.size()
        file_bytes = size.file_bytes + self._journal.size_bytes + self._aside.size_bytes
        return EngineSize(size.used_bytes + self._shown[3], file_bytes)

    def copy(self, path: str) -> bool:
        """Copy the file as it is, unless a write transaction is open, or less than half of the file is in use."""
        return self._carry_over() and self.base.copy(path)

    def defragment(self) -> None:
        """Write what is in use to a new file, and go on in that; see `LmdbEngine.defragment`."""
        with self._carrying:
            self._carry_over()
            self.base.defragment()

    def problems(self) -> list[str]:
        """Walk every page, and the index of long keys. Only meaningful while nobody writes."""
        with self._carrying:
            with suppress(ClosedError):
                self._carry_over()
            return self.base.problems()

    def close(self) -> None:
        """Carry over, and release file, lock and memory; what cannot be written stays in the journal."""
        with self._carrying:
            with self._mutex:
                if self._is_closed:
                    return
                if self._writer is not None:
                    self._writer.close()
            is_done = False
            try:
                with suppress(StorageError):  # the next to open it does that
                    is_done = self._carry_over()
            finally:
                with self._mutex:
                    self._is_closed = True
                for journal in (self._journal, self._aside):
                    journal.close(is_done=is_done)
                self.base.close()
        self._is_ending = True
        self._has_changed.set()
        self._is_pressed.set()
        if self._carrier is not None and self._carrier is not threading.current_thread():
            self._carrier.join()

    def forget(self) -> None:
        """Drop what was inherited over a fork, leaving file, journal and lock to the parent."""
        # A thread that is not in the child may have held the old ones.
        self._mutex, self._carrying = threading.RLock(), threading.RLock()
        self._is_closed = True
        self._writer = None
        self._carrier = None
        for journal in (self._journal, self._aside):
            journal.close(is_done=False)
        self.base.forget()
