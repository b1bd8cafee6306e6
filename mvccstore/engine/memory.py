"""An engine that keeps everything in this process's memory, and nothing after it.

It owns one dict per table with its keys in order, `committed`, shared by all transactions, and lays a `_Diff` over it for
each of them: what this transaction sees differently. For the writer those are its own changes; for an old
read view they are the values that later commits replaced. So both read through the same code, a view of
the newest state has an empty diff and pays nothing for the others, and a commit waits for no reader, not
even one in its own thread.

Invariants:

I1. Stored values are immutable: bytes, or for the index a tuple of tuples (`_Versions`). A value that was
    read stays right whatever is committed next, and an undo is one reference, however many versions.
I2. A commit notes the old values in every diff that is alive before it changes `committed`. A reader looks
    into `committed` first and into its diff second. So a single lookup needs no lock: if it caught a
    value too new for it, its diff already has the right one. Walks need `_lock`, as sorted lists move.
I3. `_current` is the diff of views begun now, hence empty; it is replaced, last of all, by each commit.
    Whoever took the one before, even in the middle of the commit, sees the state before the commit.
I4. Only views keep diffs alive; the engine has weak references. A view that was never closed costs until
    it is collected, not forever.
I5. A diff knows the length of every table and the bytes in use in the state it describes.

Example: `put(k, 1)` was committed and view A begun: both `committed[k]` and A's answer are 1, A's diff is
empty. A commit of `put(k, 2)` writes {k: 1} into A's diff, then 2 into `committed`, then makes a new empty
diff current. View B gets that one and reads 2; A reads 2, then finds 1 in its diff. When A closes, its diff
is freed, and the next commit drops its weak reference.

Why not readers that hold a lock for their life: a thread may commit while it has a view open, and would
wait for itself. Why not a copy per snapshot: O(store) for each commit. A commit that is
interrupted (KeyboardInterrupt) is done again, as doing any step of it twice changes nothing; only the orders
of keys, which may be half changed then, are made anew.
"""

from __future__ import annotations

import heapq
import threading
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from operator import itemgetter
from typing import Generic, NoReturn, TypeVar

from sortedcontainers import SortedList

from mvccstore.engine import EngineOptions, EngineSize
from mvccstore.errors import ClosedError, StorageError
from mvccstore.tables import ENTRY_BYTES, Table

PATH = ":memory:"
_TXN = "transaction"

# What CPython spends on a record besides its bytes: two object headers of 33, slots of the dict and the list.
RECORD_OVERHEAD_BYTES = 160
ENTRY_OVERHEAD_BYTES = 41

# Adding the newest version of a key copies one chunk and the list of chunks, so both should be short: at
# 100,000 versions they are 256 and 390 references.
CHUNK_ENTRIES_MAX = 256

# The index entries of one key, ascending, in chunks. No chunk is empty and there is at least one.
_Versions = tuple[tuple[bytes, ...], ...]

_POSITIONS: dict[Table | None, int] = {table: position for position, table in enumerate(Table)}
_PLAIN_TABLES = len(_POSITIONS)
_POSITIONS[None] = _PLAIN_TABLES

_first = itemgetter(0)
_last = itemgetter(-1)

V = TypeVar("V", bytes, _Versions)


class _Sorted(dict[bytes, V], Generic[V]):
    """One table as committed. Not a `SortedDict`: what is in it must be known also if adding was interrupted."""

    def __init__(self) -> None:
        self._order = SortedList()

    def put(self, key: bytes, value: V) -> None:
        if key not in self:
            self._order.add(key)
        self[key] = value

    def drop(self, key: bytes) -> None:
        if key in self:
            del self[key]
            self._order.remove(key)

    def between(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[bytes]:
        keys: Iterator[bytes] = self._order.irange(start, end, (True, False), reverse)
        return keys

    def mend(self) -> None:
        """Order the keys anew. O(n log n)."""
        self._order = SortedList(self)


class _Overlay(dict[bytes, V | None], Generic[V]):
    """What one table has in one diff; None for a key that is absent there. Keys are sorted once asked for."""

    # On the class, as most overlays stay empty and an __init__ would be half the cost of a small commit.
    order: SortedList | None = None

    def note(self, key: bytes, value: V | None) -> None:
        if self.order is not None and key not in self:
            self.order.add(key)
        self[key] = value

    def items_between(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, V]]:
        if self.order is None:
            self.order = SortedList(self)
        keys: Iterator[bytes] = self.order.irange(start, end, (True, False), reverse)
        return ((key, value) for key in keys if (value := self[key]) is not None)


class _Diff:
    """The difference between `committed` and what a transaction sees, with the totals it sees (I5)."""

    __slots__ = ("__weakref__", "index", "lengths", "plain", "used_bytes")

    def __init__(self, lengths: list[int], used_bytes: int) -> None:
        self.plain: list[_Overlay[bytes]] = [_Overlay() for _ in range(_PLAIN_TABLES)]
        self.index: _Overlay[_Versions] = _Overlay()
        self.lengths = lengths
        self.used_bytes = used_bytes

    def forget_order(self) -> None:
        for overlay in self.plain:
            overlay.order = None
        self.index.order = None


class _EndedDiff(_Diff):
    """Stands in for the diff of a closed transaction, so that checking for it costs an open one nothing."""

    __slots__ = ()

    def __init__(self) -> None:
        pass  # leaves every slot unset

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # somebody inspects modules, as doctest does
            raise AttributeError(name)
        raise ClosedError(_TXN)


_ENDED = _EndedDiff()


class MemoryEngine:
    """The engine named `memory`: isolated and atomic like the others, and gone when closed.

    `used_bytes` is an estimate of the process's memory: the bytes of keys and values plus CPython's
    overhead for each, kept up with every write.

    Raises:
        ValueError: A path was given; this engine would not keep anything there.

    Cost: a read transaction is one small object; a lookup in it, one or two dict lookups without a lock.
    """

    name = "memory"
    path = PATH

    def __init__(self, options: EngineOptions | None = None) -> None:
        if options is not None and options.path is not None:
            msg = f"the memory engine keeps nothing, so it takes no path; got {options.path!r}"
            raise ValueError(msg)
        self._is_read_only = options is not None and options.read_only
        self._is_closed = False
        self.plain: list[_Sorted[bytes]] = [_Sorted() for _ in range(_PLAIN_TABLES)]
        self.index: _Sorted[_Versions] = _Sorted()
        self._current = _Diff([0] * (_PLAIN_TABLES + 1), 0)
        self._outdated: list[weakref.ref[_Diff]] = []
        # Guards the order of keys in `plain`, `index` and overlays; held for one commit or one walk and
        # taken last. Re-entrant, for a signal handler that uses the store it interrupts.
        self.lock = threading.RLock()

    def read(self) -> MemoryReadTxn:
        """Begin a consistent view of what is committed now. O(1), no lock."""
        if self._is_closed:
            raise ClosedError
        return MemoryReadTxn(self, self._current)

    def write(self) -> MemoryWriteTxn:
        """Begin the write transaction. O(1)."""
        if self._is_closed:
            raise ClosedError
        if self._is_read_only:
            raise StorageError(PATH, "opened read-only")
        return MemoryWriteTxn(self, self._current)

    def is_current(self, diff: _Diff) -> bool:
        """Say whether nothing was committed since a write transaction began on this."""
        return self._current is diff

    def install(self, own: _Diff, begun_on: _Diff) -> None:
        """Commit a write transaction's changes. O(changes) x (1 + states that open views still need)."""
        if self._is_closed:
            raise ClosedError
        with self.lock:
            assert self._current is begun_on, "two write transactions at once"
            alive = [begun_on, *(diff for ref in self._outdated if (diff := ref()) is not None)]
            try:
                self._install(own, alive)
            except BaseException:
                if self._current is begun_on:
                    for table in self.plain:
                        table.mend()
                    self.index.mend()
                    for diff in alive:
                        diff.forget_order()
                    self._install(own, alive)
                raise

    def _install(self, own: _Diff, alive: list[_Diff]) -> None:
        # I2: all the undo first, everywhere, then the change itself.
        changed = [position for position, changes in enumerate(own.plain) if changes]
        for position in changed:
            _keep_old(self.plain[position], own.plain[position], [diff.plain[position] for diff in alive])
        _keep_old(self.index, own.index, [diff.index for diff in alive])
        for position in changed:
            _apply(self.plain[position], own.plain[position])
        _apply(self.index, own.index)
        self._outdated = [weakref.ref(diff) for diff in alive]
        assert [len(table) for table in self.plain] == own.lengths[:-1]  # I5
        self._current = _Diff(own.lengths, own.used_bytes)

    def rewind(self, view: MemoryReadTxn) -> None:
        """Make what an open view shows the newest state again. No write transaction may be open. O(changes since).

        For who sees to it that nothing else remembers what came after; see `mvccstore.rewind`.
        """
        with self.lock:
            then = view._diff
            own = _Diff(then.lengths.copy(), then.used_bytes)
            own.plain = [_Overlay(overlay) for overlay in then.plain]
            own.index = _Overlay(then.index)
            self.install(own, self._current)

    def sync(self) -> None:
        """Do nothing: no commit of this engine survives a power cut."""

    def size(self) -> EngineSize:
        """Return the estimated memory in use; the same for both numbers. O(1)."""
        used_bytes = self._current.used_bytes
        return EngineSize(used_bytes, used_bytes)

    def copy(self, path: str) -> bool:
        """Return False: there is no file to copy."""
        del path
        return False

    def defragment(self) -> None:
        """Nothing to do: memory goes back with the records."""
        if self._is_closed:
            raise ClosedError

    def problems(self) -> list[str]:
        """Return nothing: there is no file to be damaged."""
        return []

    def close(self) -> None:
        """Forget everything, once the views still open are closed too. O(1) for the caller."""
        self._is_closed = True
        # New ones rather than cleared ones: views still open go on reading the old.
        self.plain, self.index = [_Sorted() for _ in range(_PLAIN_TABLES)], _Sorted()
        self._current = _Diff([0] * (_PLAIN_TABLES + 1), 0)

    def forget(self) -> None:
        """Close: a child's copy of a store would go its own way, unseen by the parent's."""
        self.lock = threading.RLock()  # a thread that is not in the child may have held the old one
        self.close()


class MemoryReadTxn:
    """A view of one committed state. See `mvccstore.tables.ReadTxn`."""

    __slots__ = ("_diff", "_index", "_lock", "_plain")

    def __init__(self, engine: MemoryEngine, diff: _Diff) -> None:
        self._diff = diff
        self._plain = engine.plain
        self._index = engine.index
        self._lock = engine.lock

    def get(self, table: Table, key: bytes, /) -> bytes | None:
        """Return the value of `key`, or None. O(1), no lock."""
        position = _POSITIONS[table]
        committed = self._plain[position].get(key)  # I2: before the diff
        return self._diff.plain[position].get(key, committed)

    def get_many(self, table: Table, keys: list[bytes], /) -> list[bytes | None]:
        """Return the value of each key, in the order asked. O(keys), no lock."""
        position = _POSITIONS[table]
        committed, overlay = self._plain[position].get, self._diff.plain[position].get
        return [overlay(key, committed(key)) for key in keys]  # I2: arguments come before the call

    def page(
        self, table: Table, start: bytes, end: bytes | None, limit: int, /, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` records with start <= key < end. O(log n + limit)."""
        position = _POSITIONS[table]
        with self._lock:
            overlay = self._diff.plain[position]
            return list(islice(_items_between(self._plain[position], overlay, start, end, reverse), limit))

    def newest(self, key: bytes, /) -> bytes | None:
        """Return the first index entry of `key`, or None. O(1), no lock."""
        committed = self._index.get(key)  # I2: before the diff
        versions = self._diff.index.get(key, committed)
        return None if versions is None else versions[0][0]

    def newest_at(self, key: bytes, at: bytes, /) -> bytes | None:
        """Return the first index entry of `key` that is >= `at`, or None. O(log versions), no lock."""
        committed = self._index.get(key)  # I2: before the diff
        versions = self._diff.index.get(key, committed)
        return None if versions is None else _first_at(versions, at)

    def newest_page(self, start: bytes, end: bytes | None, at: bytes, limit: int, /) -> list[tuple[bytes, bytes]]:
        """Return (key, first entry >= `at`) for up to `limit` keys. O(log n + keys passed)."""
        with self._lock:
            items = _items_between(self._index, self._diff.index, start, end, reverse=False)
            # Spelled out before the call to `_first_at`: for most keys the newest entry is the answer.
            found = (
                (key, entry)
                for key, versions in items
                if (entry := first if (first := versions[0][0]) >= at else _first_at(versions, at)) is not None
            )
            return list(islice(found, limit))

    def entries(self, key: bytes, start: bytes, limit: int, /, *, reverse: bool = False) -> list[bytes]:
        """Return up to `limit` index entries of `key` from `start` on. O(log versions + limit), no lock."""
        committed = self._index.get(key)  # I2: before the diff
        versions = self._diff.index.get(key, committed)
        return [] if versions is None else list(islice(_entries_from(versions, start, reverse), limit))

    def length(self, table: Table | None, /) -> int:
        """Return the number of records of a table, or of index entries for None. O(1)."""
        return self._diff.lengths[_POSITIONS[table]]

    def close(self) -> None:
        """Give the view up, and with it what was kept for it alone (I4)."""
        self._diff = _ENDED


class MemoryWriteTxn(MemoryReadTxn):
    """The only writer. See `mvccstore.tables.WriteTxn`; it never raises `RetryWrite`."""

    __slots__ = ("_begun_on", "_engine")

    def __init__(self, engine: MemoryEngine, begun_on: _Diff) -> None:
        super().__init__(engine, _Diff(begun_on.lengths.copy(), begun_on.used_bytes))
        self._engine = engine
        self._begun_on = begun_on

    def put(self, table: Table, key: bytes, value: bytes, /) -> None:
        """Insert or replace one record. O(1); O(log n) at commit."""
        self._replace(_POSITIONS[table], key, value)

    def append(self, table: Table, key: bytes, value: bytes, /) -> None:
        """Insert a record whose key is above every key of the table. As `put`."""
        self._replace(_POSITIONS[table], key, value)

    def delete(self, table: Table, keys: list[bytes], /) -> None:
        """Remove the records of `keys`; absent ones are passed over. O(keys)."""
        position = _POSITIONS[table]
        for key in keys:
            self._replace(position, key, None)

    def add(self, key: bytes, entry: bytes, /) -> None:
        """Add one entry to the index set of `key`. O(1) for the newest one, O(versions / 256) at worst."""
        assert len(entry) == ENTRY_BYTES
        diff = self._diff
        old = diff.index.get(key, self._index.get(key))
        new = ((entry,),) if old is None else _with_entry(old, entry)
        if new is not old:
            diff.lengths[-1] += 1
            diff.used_bytes += ENTRY_BYTES + ENTRY_OVERHEAD_BYTES
            if old is None:
                diff.used_bytes += len(key) + RECORD_OVERHEAD_BYTES
            diff.index.note(key, new)

    def remove(self, key: bytes, entries: list[bytes], /) -> None:
        """Remove entries from the index set of `key`; absent ones are passed over. O(entries x versions / 256)."""
        diff = self._diff
        old = diff.index.get(key, self._index.get(key))
        if old is None:
            return
        left, removed = old, 0
        for entry in entries:
            before = left
            left = _without_entry(before, entry)
            removed += left is not before
        if removed:
            diff.lengths[-1] -= removed
            diff.used_bytes -= removed * (ENTRY_BYTES + ENTRY_OVERHEAD_BYTES)
            if not left:
                diff.used_bytes -= len(key) + RECORD_OVERHEAD_BYTES
            diff.index.note(key, left or None)

    def commit(self) -> None:
        """Make all of it visible at once. O(changes x log n); views that are open keep what they saw."""
        self._engine.install(self._diff, self._begun_on)
        self.close()

    def has_committed(self) -> bool:
        """Compare with what was there before."""
        return not self._engine.is_current(self._begun_on)

    def _replace(self, position: int, key: bytes, value: bytes | None) -> None:
        diff = self._diff
        old = diff.plain[position].get(key, self._plain[position].get(key))
        if old is not None:
            diff.lengths[position] -= 1
            diff.used_bytes -= len(key) + len(old) + RECORD_OVERHEAD_BYTES
        if value is not None:
            diff.lengths[position] += 1
            diff.used_bytes += len(key) + len(value) + RECORD_OVERHEAD_BYTES
        if old is not None or value is not None:
            diff.plain[position].note(key, value)


def _items_between(
    committed: _Sorted[V], overlay: _Overlay[V], start: bytes, end: bytes | None, reverse: bool
) -> Iterator[tuple[bytes, V]]:
    """Iterate over a table as the owner of `overlay` sees it."""
    keys = committed.between(start, end, reverse)
    if not overlay:
        return ((key, committed[key]) for key in keys)
    unchanged = ((key, committed[key]) for key in keys if key not in overlay)
    # No key is in both, so the merge never gets to comparing values.
    return heapq.merge(unchanged, overlay.items_between(start, end, reverse), reverse=reverse)


def _keep_old(committed: _Sorted[V], changes: _Overlay[V], overlays: list[_Overlay[V]]) -> None:
    """Note in `overlays` what they will no longer find in `committed`."""
    for key in changes:
        old = committed.get(key)
        for overlay in overlays:
            if key not in overlay:  # else it differed already, by an earlier commit
                overlay.note(key, old)


def _apply(committed: _Sorted[V], changes: _Overlay[V]) -> None:
    for key, value in changes.items():
        if value is not None:
            committed.put(key, value)
        else:
            committed.drop(key)


def _first_at(versions: _Versions, at: bytes) -> bytes | None:
    position = bisect_left(versions, at, key=_last)
    if position == len(versions):
        return None
    chunk = versions[position]
    return chunk[bisect_left(chunk, at)]


def _entries_from(versions: _Versions, start: bytes, reverse: bool) -> Iterable[bytes]:
    if not reverse:
        position = bisect_left(versions, start, key=_last)
        chunks = islice(versions, position, None)
        chunk = next(chunks, ())
        return chain(chunk[bisect_left(chunk, start) :], chain.from_iterable(chunks))
    position = bisect_right(versions, start, key=_first)
    if position == 0:
        return ()
    chunk = versions[position - 1]
    below = map(reversed, reversed(versions[: position - 1]))
    return chain(reversed(chunk[: bisect_right(chunk, start)]), chain.from_iterable(below))


def _with_entry(versions: _Versions, entry: bytes) -> _Versions:
    """Return `versions` with `entry`; the same object if it was there."""
    position = min(bisect_left(versions, entry, key=_last), len(versions) - 1)
    chunk = versions[position]
    i = bisect_left(chunk, entry)
    if chunk[i : i + 1] == (entry,):
        return versions
    if len(chunk) < CHUNK_ENTRIES_MAX:
        return (*versions[:position], (*chunk[:i], entry, *chunk[i:]), *versions[position + 1 :])
    # Not halved: entries come in at the front, so a full chunk is full for good.
    parts = (part for part in (chunk[:i], (entry,), chunk[i:]) if part)
    return (*versions[:position], *parts, *versions[position + 1 :])


def _without_entry(versions: _Versions, entry: bytes) -> _Versions:
    """Return `versions` without `entry`, maybe empty; the same object if it was not there."""
    position = bisect_left(versions, entry, key=_last)
    if position == len(versions):
        return versions
    chunk = versions[position]
    i = bisect_left(chunk, entry)
    if chunk[i] != entry:
        return versions
    rest = (*chunk[:i], *chunk[i + 1 :])
    return (*versions[:position], *((rest,) if rest else ()), *versions[position + 1 :])
