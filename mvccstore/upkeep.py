"""What keeps a store in order: compaction, syncing, backup, checking, and what is done when it is due."""

from __future__ import annotations

import os
from abc import abstractmethod
from contextlib import closing, suppress

from mvccstore.clock import Clock, MovableClock
from mvccstore.committer import Committer
from mvccstore.engine import DEFAULT_ENGINE, Engine
from mvccstore.errors import ClosedError, CompactedError, CompactionHeldError
from mvccstore.hub import Hub
from mvccstore.lease import Leases
from mvccstore.maintenance import Maintainer, Reclaimer
from mvccstore.mvcc import check, hashing, subscription, times
from mvccstore.mvcc.state import load
from mvccstore.options import Durability, HashResult, Retention, StoreStats
from mvccstore.pins import Pins
from mvccstore.quota import Quota
from mvccstore.tables import Table
from mvccstore.transfer import Progress, copy_to, finished_file
from mvccstore.types import CompactRequest, Result, WriteRequest, check_revision
from mvccstore.view import View


class Upkeep(View):
    """The part of `Store` that looks after it."""

    _engine: Engine
    _committer: Committer
    _hub: Hub
    _leases: Leases
    _pins: Pins
    _reclaimer: Reclaimer
    _maintainer: Maintainer
    _clock: Clock
    _quota: Quota
    _durability: Durability
    _retention: Retention | None
    _sync_interval: float
    _retained_at: float
    _synced_at: float
    _path: str
    _name: str
    _read_only: bool
    _is_dirty: bool
    _is_closed: bool

    @abstractmethod
    def _check_open(self) -> None:
        """Raise if the store is closed."""

    @abstractmethod
    def _check_writable(self) -> None:
        """Raise if the store is closed or read-only."""

    @abstractmethod
    def _submit(self, request: WriteRequest) -> Result:
        """Have a write carried out."""

    @abstractmethod
    def _save_progress(self) -> None:
        """Store how far open subscriptions are, so that they hold no more history than they need."""

    # Compaction

    def compact(
        self,
        revision: int | None = None,
        *,
        keep_revisions: int | None = None,
        keep_seconds: float | None = None,
        physical: bool = False,
        force: bool = False,
    ) -> None:
        """Forget history below a revision, keeping what is visible at it.

        Reads below it then raise; reads at or above it answer as before. Returns once that floor is durable;
        space is reclaimed later, in batches that let writers in between, going on at the next `open` if
        interrupted. Open snapshots and scans hold back what they read until they are closed; subscriptions
        what they have not acknowledged, within their limits.

        Args:
            revision: From `compact_revision` + 1 to the current revision. Give it or one of the next two.
            keep_revisions: Compact so that the last so many revisions before the current one stay; nothing
                happens if there are not more, and no more than subscriptions allow.
            keep_seconds: Compact so that what was current within this time stays, to 10 ms; likewise.
            physical: Return only when the space is reclaimed, as far as open snapshots let it be.
            force: Compact to `revision` whatever subscriptions hold; they lose what they have not read.

        Raises:
            CompactedError: `revision` is at or below the compact revision.
            FutureRevisionError: `revision` is above the current one.
            CompactionHeldError: A subscription holds a revision below `revision`, and says which and whose.

        Cost: one commit, one more for each open subscription that has moved on since it was last stored, then O(revisions since the last compaction).

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
            self._save_progress()
            self._submit(CompactRequest(revision, force))
        elif force:
            msg = "force goes with a revision; keeping a part of history heeds subscriptions"
            raise ValueError(msg)
        else:
            self.enforce(Retention(keep_revisions, keep_seconds))
        if physical:
            self.reclaim()
        elif self._needs_reclaiming():
            self._maintainer.wake()

    def enforce(self, retention: Retention) -> None:
        """Compact to what a retention keeps; nothing happens if there is not more than that.

        What a subscription holds is kept, too.

        Cost: two commits at most, and one for each open subscription that has moved on; a lookup for each bit
        of the revision to find it by age.
        """
        self._check_open()
        self._save_progress()
        state = self._committer.state
        now_ms = self._clock.time_ms()
        with closing(self._engine.read()) as txn:
            target = times.retained(txn, retention, now_ms, state.revision)
            held = subscription.first_held(txn, state.revision, state.floor, now_ms, self._path)
        if held is not None:
            target = min(target, held.revision + 1)
        if target > max(state.floor, 1):
            # Somebody else was first, and went further; or subscribed just now, and the next time will do.
            with suppress(CompactedError, CompactionHeldError):
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
        try:
            self._do_what_is_due()
        finally:
            self._reclaimer.run(lambda: self._maintainer.is_stopping)

    def _do_what_is_due(self) -> None:
        now = self._clock.monotonic()
        # Each whatever becomes of the others: on a full disk no lease can end, and compacting makes room.
        try:
            self._leases.expire()
        finally:
            try:
                if self._retention is not None and now - self._retained_at >= self._retention.check_seconds:
                    self._retained_at = now
                    self.enforce(self._retention)
            finally:
                if self._durability is Durability.INTERVAL and now - self._synced_at >= self._sync_interval:
                    self._synced_at = now
                    self.sync()

    def _due_in(self) -> float | None:
        """Return the seconds until there is something to do; None if there never is."""
        if isinstance(self._clock, MovableClock):
            return None  # whoever moves it does what is then due
        now = self._clock.monotonic()
        waits = []
        if self._retention is not None:
            waits.append(self._retained_at + self._retention.check_seconds - now)
        if self._durability is Durability.INTERVAL:
            waits.append(self._synced_at + self._sync_interval - now)
        lease_in = self._leases.next_in()
        if lease_in is not None:
            waits.append(lease_in)
        return max(0.0, min(waits)) if waits and not self._read_only else None

    def _wake_maintainer(self) -> None:
        if self._due_in() is not None:
            self._maintainer.wake()

    def _when_time_was_moved(self) -> None:
        try:
            if self._is_closed or self._read_only:
                return
            if self._committer.queue.is_mine():
                # In a transaction block of this thread, which would wait for itself.
                self._maintainer.wake()
                return
            with suppress(ClosedError):  # just now
                self._do_what_is_due()
        finally:
            self._hub.wake_all()

    # The file

    def sync(self) -> None:
        """Make everything committed so far survive a power cut, whatever the durability.

        Cost: one fsync, if anything was written since the last.
        """
        self._check_open()
        if self._is_dirty and not self._read_only:
            self._is_dirty = False  # first: what is written meanwhile may not be in it
            try:
                self._engine.sync()
            except BaseException:
                self._is_dirty = True
                raise

    def defragment(self) -> None:
        """Give the space in the file that holds no data back to the disk. Compact first, to have history go.

        Writers wait. Readers do not, nor do watchers, snapshots and scans, and see no difference. Returns when the
        smaller file is on disk; a process that ends before that leaves the old one, whole.

        Raises:
            StorageFullError: There is no room for the smaller file beside the old one; nothing happened.
            TxnError: This thread is in a transaction block.
            StorageError: The store is open read-only; or the disk fails. If that happens in the last moment, the
                store is closed, and whole when it is opened again.

        Cost: O(data), about 2 us a record, and as much room as the data takes; twice that on SQLite. Nothing in
        memory, where space is given back as records go.
        """
        self._check_writable()
        self._committer.alone(self._engine.defragment)
        if self._quota.limit_bytes:
            self._quota.measure()

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

        The invariants, I1 to I12, are listed in `mvccstore.mvcc.check`.

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
