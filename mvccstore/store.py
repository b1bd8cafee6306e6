"""The store: open, read, write, compact, back up, check, close.

What it owns: an engine, the committer that writes to it, the pins that hold history back from compaction,
and the maintenance that runs beside.

Invariants:

* I1. A reader begins its engine view after it has taken the revision it reads at, and looks at the compact
  revision after it has begun the view. So the view contains that revision, and nothing that compaction
  may have reclaimed since.
* I2. What is reclaimed is below every revision that a snapshot or scan has pinned (`pins`).

A write, step by step:

    put(k, v) -> PutRequest, checked -> Command, stamped with the time -> Replicator.propose
              -> CommitQueue: this thread leads, or waits for one that does
              -> apply to the engine's write transaction, with all that wait -> commit -> publish -> answer

Locks, in the order they are taken: the reclaimer's, the writer's turn (`CommitQueue`), leaf locks.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Self

from mvccstore.clock import Clock, SystemClock
from mvccstore.codec import COMPLEMENT, UNPACK_ERRORS, entry_floor, new_row, unpack_row
from mvccstore.commit import Replicator
from mvccstore.committer import Committer, ensure_format
from mvccstore.engine import DEFAULT_ENGINE, IN_MEMORY, Engine
from mvccstore.errors import (
    ClosedError,
    CompactedError,
    StorageError,
    StoreError,
)
from mvccstore.maintenance import Maintainer, Reclaimer
from mvccstore.mvcc import check, hashing, read, times
from mvccstore.mvcc.state import NEVER_COMPACTED, load
from mvccstore.mvcc.validate import check_txn
from mvccstore.options import Durability, Limits, Retention, StoreStats
from mvccstore.pins import Pins
from mvccstore.quota import Quota
from mvccstore.tables import LOG_KEY_BYTES, Table
from mvccstore.transfer import Progress, copy_to, finished_file
from mvccstore.txn import Txn, TxnHost
from mvccstore.types import (
    Command,
    CompactRequest,
    Compare,
    DeleteRequest,
    DeleteResult,
    HashResult,
    KeyValue,
    PutRequest,
    PutResult,
    Request,
    Result,
    TxnRequest,
    TxnResult,
    WriteRequest,
    check_revision,
)
from mvccstore.view import Cut, Snapshot, View
from mvccstore.write import WritableView

_LOG = Table.LOG
_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


class Store(WritableView):
    """An open store. Get one from `mvccstore.open`. Any number of threads may use it at once.

    A context manager. Every method raises `ClosedError` once it is closed.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        durability: Durability = Durability.FSYNC,
        sync_interval: float = 1.0,
        read_only: bool = False,
        limits: Limits | None = None,
        quota_bytes: int = 0,
        retention: Retention | None = None,
        clock: Clock | None = None,
        replicator: Callable[[Store], Replicator] | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._engine = engine
        self._path = engine.path
        self._name = engine.name
        self._durability = durability
        self._read_only = read_only
        self._quota = Quota(engine.path, quota_bytes, lambda: engine.size().used_bytes)
        self._retention = retention
        self._clock = clock or SystemClock()
        self._is_closed = True  # until there is something to close
        ensure_format(engine, read_only=read_only)
        self._committer = Committer(engine, self._after_commit)
        self._pins = Pins(self._floor)
        self._replicator = replicator(self) if replicator is not None else None
        self._propose = (self._replicator or self._committer.queue).propose
        self._reclaimer = Reclaimer(engine, self._committer, self._pins, self._clock)
        intervals = [retention.check_seconds] if retention is not None else []
        intervals += [sync_interval] if durability is Durability.INTERVAL else []
        self._maintainer = Maintainer(self._maintain, min(intervals, default=None) if not read_only else None)
        self._retained_at = self._clock.monotonic()
        self._is_dirty = False
        self._after_commit()
        self._is_closed = False
        _open_stores.add(self)
        if not read_only and self._needs_reclaiming():
            self._maintainer.wake()

    # Facts

    @property
    def path(self) -> str:
        """The file it is kept in; `engine.IN_MEMORY` if it is in none."""
        return self._path

    @property
    def revision(self) -> int:
        """The current revision: 1 for an empty store, one more with each write that changed something.

        Opened read-only, it is the revision of another process's store, and takes a look at the file.
        """
        if self._read_only:
            with closing(self._engine.read()) as txn:
                return load(txn, self._path).revision
        self._check_open()
        return self._committer.state.revision

    @property
    def compact_revision(self) -> int:
        """The oldest revision that can be read; -1 if the store was never compacted."""
        if self._read_only:
            with closing(self._engine.read()) as txn:
                return load(txn, self._path).compaction.revision
        self._check_open()
        return self._committer.state.floor

    # Reading

    def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """As `View.get`, on a shorter way for what is asked most: the newest version."""
        if revision != 0 or self._read_only or type(key) is not bytes or not key:
            return super().get(key, revision=revision)
        at = self._committer.state.at
        txn = self._engine.read()
        try:
            entry = txn.newest(key)
            if entry is None:
                return None
            if entry >= at and entry[11] & 1:
                record = txn.get(_LOG, entry[:LOG_KEY_BYTES].translate(COMPLEMENT))
                if record is not None:
                    return new_row(unpack_row(record))
        except UNPACK_ERRORS:
            pass  # the long way says what is wrong
        finally:
            txn.close()
        return super().get(key)

    get.__doc__ = View.get.__doc__

    def snapshot(self, *, revision: int = 0) -> Snapshot:
        """Return a view pinned at a revision, 0 for the current one, that compaction leaves alone while it is open.

        Raises:
            CompactedError: `revision` is below the compact revision.
            FutureRevisionError: `revision` is above the current one.

        Cost: nothing is copied. While it is open, history from its revision on is kept.
        """
        check_revision(revision)
        cut, release = self._hold(revision)
        return Snapshot(self, revision or cut.revision, release)

    def _cut(self, revision: int) -> Cut:
        if self._read_only:
            return self._cut_read_only(revision)
        while True:
            current = self._committer.state
            txn = self._engine.read()  # I1
            floor = self._committer.state.floor
            if revision or floor <= current.revision:
                break
            txn.close()  # overtaken by a write and its compaction; there is a newer current revision
        if not revision:
            return Cut(txn, current.at, current.revision, floor)
        try:
            read.check_readable(revision, current.revision, floor)
        except BaseException:
            txn.close()
            raise
        return Cut(txn, entry_floor(revision), current.revision, floor)

    def _cut_read_only(self, revision: int) -> Cut:
        txn = self._engine.read()
        try:
            current = load(txn, self._path)
            if revision:
                read.check_readable(revision, current.revision, current.floor)
        except BaseException:
            txn.close()
            raise
        return Cut(txn, entry_floor(revision) if revision else current.at, current.revision, current.floor)

    def _cut_pinned(self, revision: int) -> Cut:
        if self._read_only:
            return self._cut_read_only(revision)  # the writer knows nothing of our pins
        current = self._committer.state
        return Cut(self._engine.read(), entry_floor(revision), current.revision, current.floor)

    def _pin(self, revision: int) -> Callable[[], None]:
        self._pins.add(revision)
        return lambda: self._unpin(revision)

    def _unpin(self, revision: int) -> None:
        self._pins.remove(revision)
        if not self._is_closed and not self._read_only and self._needs_reclaiming():
            self._maintainer.wake()

    def _floor(self) -> int:
        # Beside a writer in another process, that one's floor is looked at in each cut.
        return NEVER_COMPACTED if self._read_only else self._committer.state.floor

    # Writing

    @property
    def limits(self) -> Limits:
        """The largest requests it accepts."""
        return self._limits

    def _put(self, request: PutRequest) -> PutResult:
        result = self._submit(request)
        assert isinstance(result, PutResult)
        return result

    def _delete(self, request: DeleteRequest) -> DeleteResult:
        result = self._submit(request)
        assert isinstance(result, DeleteResult)
        return result

    def txn(
        self,
        *,
        compare: Sequence[Compare] = (),
        success: Sequence[Request] = (),
        failure: Sequence[Request] = (),
    ) -> TxnResult:
        """Run `success` if every compare holds, otherwise `failure`, as one atomic step and one revision.

        Compares see the state before; so do those of nested txns. Reads see what earlier operations of the
        txn wrote. Make compares with `Compare` and operations with `Op`.

        Raises:
            TxnTooLargeError: More operations than `limits.txn_ops_max`, nested ones counted against what the
                level above leaves.
            DuplicateKeyError: A branch puts a key twice, or puts and deletes it.
            CompactedError, FutureRevisionError: A range in the branch taken asks for such a revision.
            LeaseNotFoundError, KeyNotFoundError: A put in the branch taken, as for `put`.
            StorageFullError: Disk or quota is full; nothing happened.

        Cost: that of its compares and operations, and one commit if something changed.
        """
        request = TxnRequest(tuple(compare), tuple(success), tuple(failure))
        check_txn(request, self._limits)
        result = self._submit(request)
        assert isinstance(result, TxnResult)
        return result

    def begin(self) -> Txn:
        """Begin a transaction block: `with store.begin() as txn:`. Reads in it see its writes.

        Exclusive: other writers wait until it ends, readers do not. All its writes commit as one revision at
        the end of the block; an exception rolls them back.

        Raises:
            TxnError: This thread is in a block already.

        Cost: one commit.
        """
        self._check_writable()
        return Txn(
            TxnHost(self, self._engine, self._committer, self._quota, self._limits, self._clock, self._replicator)
        )

    def submit(self, request: WriteRequest) -> Result:
        """Have any write request carried out, the way the methods above do. For servers and replicas.

        Raises: what the methods do; except that types, sizes and budgets are the caller's to check.
        """
        return self._submit(request)

    def _submit(self, request: WriteRequest) -> Result:
        if self._read_only:
            self._check_writable()
        self._committer.check_not_inside()
        if self._quota.limit_bytes:
            self._quota.admit(request)
        return self._propose(Command(request, self._clock.time_ms()))

    def apply_replicated(self, commands: Sequence[Command], marker: bytes) -> list[Result | StoreError]:
        """Apply commands that a replicator has had agreed on, all in one commit with its `marker`.

        Cost: one commit.
        """
        return self._committer.apply_replicated(list(commands), marker)

    def replicated_marker(self) -> bytes | None:
        """Return the marker of the last `apply_replicated`; None if there was none."""
        return self._committer.replicated_marker()

    def _after_commit(self) -> None:
        self._is_dirty = True
        if self._quota.limit_bytes:
            self._quota.measure()

    # Compaction

    def compact(
        self,
        revision: int | None = None,
        *,
        keep_revisions: int | None = None,
        keep_seconds: float | None = None,
        physical: bool = False,
    ) -> None:
        """Forget history below a revision, keeping what is visible at it.

        Reads below it then raise; reads at or above it answer as before. Returns once that floor is durable;
        space is reclaimed later, in batches that let writers in between, going on at the next `open` if
        interrupted. Open snapshots and scans hold back what they read until they are closed.

        Args:
            revision: From `compact_revision` + 1 to the current revision. Give it or one of the next two.
            keep_revisions: Compact so that the last so many revisions before the current one stay; nothing
                happens if there are not more.
            keep_seconds: Compact so that what was current within this time stays, to 10 ms.
            physical: Return only when the space is reclaimed, as far as open snapshots let it be.

        Raises:
            CompactedError: `revision` is at or below the compact revision.
            FutureRevisionError: `revision` is above the current one.

        Cost: one commit, then O(revisions since the last compaction).

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> store.put(b"k", b"1"), store.put(b"k", b"2")
        (2, 3)
        >>> store.compact(3)
        >>> store.get(b"k", revision=2)
        Traceback (most recent call last):
            ...
        mvccstore.errors.CompactedError: revision 2 was compacted; the compact revision is 3
        """
        if [revision, keep_revisions, keep_seconds].count(None) != 2:
            msg = "compact takes one of: a revision, keep_revisions, keep_seconds"
            raise ValueError(msg)
        self._check_writable()
        if revision is not None:
            check_revision(revision)
            self._submit(CompactRequest(revision))
        else:
            self.enforce(Retention(keep_revisions, keep_seconds))
        if physical:
            self.reclaim()
        elif self._needs_reclaiming():
            self._maintainer.wake()

    def enforce(self, retention: Retention) -> None:
        """Compact to what a retention keeps; nothing happens if there is not more than that.

        Cost: two commits at most; a lookup for each bit of the revision to find it by age.
        """
        self._check_open()
        state = self._committer.state
        with closing(self._engine.read()) as txn:
            target = times.retained(txn, retention, self._clock.time_ms(), state.revision)
        if target > max(state.floor, 1):
            with suppress(CompactedError):  # somebody else was first, and went further
                self._submit(CompactRequest(target))

    def reclaim(self) -> None:
        """Remove what was compacted from the file now, as far as open snapshots and scans let it go.

        Writers get their turn in between. Harmless if there is nothing.

        Cost: O(revisions compacted).
        """
        self._check_writable()
        self._committer.check_not_inside()
        self._reclaimer.run()

    def _needs_reclaiming(self) -> bool:
        return self._pins.oldest() > self._committer.state.compaction.reclaimed

    def _maintain(self) -> None:
        """Do what is due. Called by the maintenance thread."""
        now = self._clock.monotonic()
        if self._retention is not None and now - self._retained_at >= self._retention.check_seconds:
            self._retained_at = now
            self.enforce(self._retention)
        if self._durability is Durability.INTERVAL:
            self.sync()
        self._reclaimer.run(lambda: self._maintainer.is_stopping)

    # The file

    def sync(self) -> None:
        """Make everything committed so far survive a power cut, whatever the durability.

        Cost: one fsync, if anything was written since the last.
        """
        self._check_open()
        if self._is_dirty and not self._read_only:
            self._is_dirty = False
            self._engine.sync()

    def backup(
        self,
        path: str | os.PathLike[str],
        *,
        engine: str | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Write a copy of the whole store, history included, as of one revision, while it is used.

        The copy is a store itself: open it, read it, check it. `mvccstore.restore` makes a new one of it.

        Args:
            path: The file to write. It appears under this name when it is complete and on disk.
            engine: The engine of the copy; by default this store's, or `lmdb` if that keeps nothing.
            overwrite: Replace the file if it exists.
            progress: Called with the records copied and their total, where they are copied one by one.

        Raises:
            StorageError: The file exists, or cannot be written.
            LockedError: It is a store that is open.
            TxnError: This thread is in a transaction block.

        Cost: O(file) between the same engines, a read and two writes a record between others, and for a file
        of which less than half is in use: the copy is then compact.
        """
        self._check_open()
        self._committer.check_not_inside()
        target = os.fspath(path)
        name = engine or (DEFAULT_ENGINE if self._name == "memory" else self._name)
        release = self._hold_history(0)[1]
        try:
            with finished_file(target, overwrite=overwrite) as partial:
                copy_to(self._engine, partial, name, progress)
        finally:
            release()

    def check(self, *, structure: bool = True, progress: Progress | None = None) -> list[str]:
        """Hold the stored form against its invariants, and return what is wrong; empty if nothing is.

        The invariants, I1 to I10, are listed in `mvccstore.mvcc.check`.

        Args:
            structure: Check the engine's own file structure first; writers wait for that, and if it is
                broken, nothing further is looked at. Without it, LMDB may end the process on a broken file.
            progress: Called with the records checked and their total.

        Cost: O(store): every record is read twice; about 20 us for each page of an LMDB file on top.
        """
        self._check_open()
        found: list[str] = []
        if structure:
            if self._read_only:
                found += self._engine.problems()
            else:
                found += self._committer.alone(self._engine.problems)
        if found:
            return found  # walking what stands on a broken structure could end the process
        with closing(self._engine.read()) as txn:
            return check.problems(txn, self._path, progress)

    def hash_kv(self, *, revision: int = 0) -> HashResult:
        """Hash the whole history up to a revision: equal to etcd's HashKV of the same history.

        Raises:
            CompactedError: `revision` is below the compact revision.
            FutureRevisionError: `revision` is above the current one.

        Cost: every record is read and hashed: 20 us each, or 1 us with `google-crc32c` installed.
        """
        check_revision(revision)
        cut = self._cut(revision)
        try:
            return hashing.hash_kv(cut.txn, revision or cut.revision, cut.floor)
        finally:
            cut.txn.close()

    def stats(self) -> StoreStats:
        """Return facts about the store. Cost: a few lookups."""
        self._check_open()
        with closing(self._engine.read()) as txn:
            state = load(txn, self._path)
            kept, leases = txn.length(Table.LOG), txn.length(Table.LEASES)
        size = self._engine.size()
        return StoreStats(
            engine=self._name,
            path=self._path,
            revision=state.revision,
            compact_revision=state.compaction.revision,
            reclaimed_revision=state.compaction.reclaimed,
            revisions_kept=kept,
            used_bytes=size.used_bytes,
            file_bytes=size.file_bytes,
            leases=leases,
            snapshots=len(self._pins),
            durability=self._durability,
        )

    def close(self) -> None:
        """Close the store: wait for writers that are at it, sync, release the file. Closing twice is harmless.

        Snapshots and scans that are open raise `ClosedError` when next used.
        """
        if self._is_closed:
            return
        self._committer.check_not_inside()
        self._maintainer.stop()
        if self._replicator is not None:
            self._replicator.close()
        try:
            self._committer.queue.enter()
            if self._is_closed:
                return
            if self._durability is not Durability.FSYNC:
                self.sync()
            self._is_closed = True
            self._committer.close()
        finally:
            self._engine.close()
            self._committer.queue.leave()
            _open_stores.discard(self)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError

    def _check_writable(self) -> None:
        self._check_open()
        if self._read_only:
            raise StorageError(self._path, "opened read-only")

    def _forget(self) -> None:
        """Leave everything to the parent process, in a child after a fork.

        Locks are made anew: a thread that is not here may have held them.
        """
        self._is_closed = True
        self._committer.forget()
        self._propose = self._committer.queue.propose
        self._pins.forget()
        self._quota.forget()
        self._engine.forget()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        if exc_type is not None:
            # A block inside ours has ended, except if it was interrupted as it did.
            self._committer.roll_back_block()
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            if self._path != IN_MEMORY:
                warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._path!r} on {self._name}{', closed' if self._is_closed else ''}>"


def _forget_stores() -> None:
    for store in list(_open_stores):
        store._forget()
    _open_stores.clear()


# A memory map, locks and threads do not survive a fork: in the child, the stores are closed, untouched.
os.register_at_fork(after_in_child=_forget_stores)
