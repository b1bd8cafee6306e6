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
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Self

from mvccstore.attributing import Attributing
from mvccstore.clock import Clock, SystemClock
from mvccstore.codec import COMPLEMENT, UNPACK_ERRORS, entry_floor, new_command, new_row, unpack_row
from mvccstore.commit import BATCH_MAX
from mvccstore.committer import Committer, ensure_format
from mvccstore.engine import IN_MEMORY, Engine
from mvccstore.errors import (
    ClosedError,
    StorageError,
    StorageFullError,
    StoreError,
)
from mvccstore.hub import Hub
from mvccstore.lease import Leases
from mvccstore.live import LiveView
from mvccstore.maintenance import Maintainer, Reclaimer, listen
from mvccstore.mvcc import read
from mvccstore.mvcc.apply import Changes
from mvccstore.mvcc.state import NEVER_COMPACTED, load
from mvccstore.mvcc.validate import check_txn
from mvccstore.options import Durability, Limits, Retention
from mvccstore.past import Past
from mvccstore.pins import Pins
from mvccstore.quota import Quota
from mvccstore.recipes.catalogue import Recipes
from mvccstore.replicator import Replicator
from mvccstore.staged import Staged
from mvccstore.subscribing import Consumers, Subscribing
from mvccstore.tables import LOG_KEY_BYTES, Table
from mvccstore.txn import Txn, TxnHost
from mvccstore.types import (
    Command,
    Compare,
    DeleteRequest,
    DeleteResult,
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
from mvccstore.upkeep import Upkeep
from mvccstore.view import Cut, Snapshot, View
from mvccstore.write import WritableView

_LOG = Table.LOG
_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


class Store(WritableView, LiveView, Subscribing, Attributing, Upkeep, Past, Recipes):
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
        self._hub = Hub(self._committer.state.revision, (lambda: self.revision) if read_only else None)
        self._leases = Leases(self._clock, self._submit, self._wake_maintainer)
        self._consumers = Consumers()
        self._pins = Pins(self._floor)
        self._reclaimer = Reclaimer(engine, self._committer, self._pins, self._clock)
        self._maintainer = Maintainer(self._maintain, self._due_in)
        self._retained_at = self._synced_at = self._clock.monotonic()
        self._sync_interval = sync_interval
        self._is_dirty = True
        if quota_bytes:
            self._quota.measure()
        # After all that a commit needs, as it may apply what it has at once.
        self._replicator = replicator(self) if replicator is not None else None
        self._propose = (self._replicator or self._committer.queue).propose
        if not read_only:
            with closing(engine.read()) as txn:
                self._leases.load(txn, self._path)
        self._listener = listen(self._when_time_was_moved, self._clock)
        self._is_closed = False
        _open_stores.add(self)
        if not read_only and (self._needs_reclaiming() or self._due_in() is not None):
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

    def submit_many(self, requests: Sequence[WriteRequest]) -> list[Result | StoreError]:
        """As `submit` for each request in order, but in one commit; return a result or an error for each.

        One that is refused leaves the others alone: they share a commit, not a fate. Beside a replicator each goes
        through that by itself.

        Raises:
            ClosedError: The store is closed.
            StorageError: It is open read-only.
            TxnError: This thread is in a transaction block.

        Cost: one commit for every 1,000 requests.

        >>> import mvccstore
        >>> from mvccstore import Op
        >>> store = mvccstore.open()
        >>> store.submit_many([Op.put(b"a", b"1"), Op.put(b"b", b"2", lease=9), Op.put(b"c", b"3")])
        [PutResult(revision=2, prev_kv=None), LeaseNotFoundError(9), PutResult(revision=3, prev_kv=None)]
        """
        self._check_writable()
        self._committer.check_not_inside()
        if self._replicator is not None:
            return [self._answer(request) for request in requests]
        answers: list[Result | StoreError] = []
        for start in range(0, len(requests), BATCH_MAX):
            answers += self._submit_batch(requests[start : start + BATCH_MAX], try_only=False) or ()
        return answers

    def try_submit_many(self, requests: Sequence[WriteRequest]) -> list[Result | StoreError] | None:
        """As `submit_many`, of at most 1,000 requests, for who must not wait for another thread that writes.

        Returns None, and does nothing, if there is one; beside a replicator, always.

        Cost: one commit.
        """
        self._check_writable()
        self._committer.check_not_inside()
        if self._replicator is not None:
            return None
        return self._submit_batch(requests, try_only=True)

    def stage_many(self, requests: Sequence[WriteRequest]) -> StagedWrites | None:
        """As `submit_many`, of at most 1,000 requests, in two steps, for a thread that must not wait for the disk.

        Everything but the commit is done now; `complete`, which must be called, does that, on any thread, and returns
        what `submit_many` would. Until then other writers wait.

        Returns None, and does nothing, if it would have to wait for another thread or for the disk, and always beside a
        replicator and for a store without a journal.

        Cost: no lookup more than `submit_many`.
        """
        self._check_writable()
        if self._replicator is not None:
            return None
        commands, refused = self._admit(requests)
        staged = self._committer.stage(commands) if commands else None
        return StagedWrites(self._committer, staged, refused) if staged is not None else None

    def _answer(self, request: WriteRequest) -> Result | StoreError:
        try:
            return self._submit(request)
        except StoreError as error:
            return error

    def _submit_batch(self, requests: Sequence[WriteRequest], *, try_only: bool) -> list[Result | StoreError] | None:
        commands, refused = self._admit(requests)
        queue = self._committer.queue
        answers: list[Result | StoreError] | None = []
        if commands:
            answers = queue.try_propose_many(commands) if try_only else queue.propose_many(commands)
        return None if answers is None else _with_refusals(answers, refused)

    def _admit(self, requests: Sequence[WriteRequest]) -> tuple[list[Command], dict[int, StoreError]]:
        """Return the commands of the requests that the quota lets in, and by their places what it says of others."""
        now = self._clock.time_ms()
        if not self._quota.limit_bytes:
            return [new_command((request, now)) for request in requests], {}
        commands: list[Command] = []
        refused: dict[int, StoreError] = {}
        for place, request in enumerate(requests):
            try:
                self._quota.admit(request)
            except StorageFullError as error:
                refused[place] = error
            else:
                commands.append(Command(request, now))
        return commands, refused

    def apply_replicated(self, commands: Sequence[Command], marker: bytes) -> list[Result | StoreError]:
        """Apply commands that a replicator has had agreed on, all in one commit with its `marker`.

        Cost: one commit.
        """
        return self._committer.apply_replicated(list(commands), marker)

    def replicated_marker(self) -> bytes | None:
        """Return the marker of the last `apply_replicated`; None if there was none."""
        return self._committer.replicated_marker()

    def _after_commit(self, changes: Changes | None) -> None:
        self._is_dirty = True
        if self._quota.limit_bytes:
            self._quota.measure()
        revision = self._committer.state.revision
        if changes is None:
            with closing(self._engine.read()) as txn:
                self._leases.load(txn, self._path)
            self._hub.lost(revision)
            self._wake_maintainer()  # there may be a new lease
            return
        if changes.leases is not None:
            self._leases.on_commit(changes.leases)
        self._hub.publish(changes, revision)

    def _reload(self, leases_left: Mapping[int, float]) -> None:
        """Go by the tables, which were changed by something else than commits. In an exclusive turn.

        Args:
            leases_left: What leases have left, in seconds; others have their whole time.
        """
        self._committer.reload()
        with closing(self._engine.read()) as txn:
            self._leases.begin_anew(txn, self._path, leases_left)
        self._hub.rewound(self._committer.state.revision)
        if self._quota.limit_bytes:
            self._quota.measure()
        self._wake_maintainer()

    # Closing

    def close(self) -> None:
        """Close the store: wait for writers that are at it, sync, release the file. Closing twice is harmless.

        Snapshots and scans that are open raise `ClosedError` when next used.
        """
        if self._is_closed:
            return
        self._committer.check_not_inside()
        self._listener()
        self._save_progress(is_ending=True)
        self._hub.close()
        self._maintainer.stop()
        if self._replicator is not None:
            self._replicator.close()
        try:
            self._committer.queue.enter()
            if self._is_closed:
                return
            if self._durability is not Durability.FSYNC:
                with suppress(ClosedError):  # the engine has closed itself, with all on disk (`defragment`)
                    self.sync()
            self._is_closed = True
            self._leases.close()
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
        self._hub.forget()
        self._leases.forget()
        self._consumers.forget()
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


class StagedWrites:
    """Writes that are done but for their commit. Get one from `Store.stage_many`."""

    __slots__ = ("_committer", "_refused", "_staged")

    def __init__(self, committer: Committer, staged: Staged, refused: dict[int, StoreError]) -> None:
        self._committer = committer
        self._staged = staged
        self._refused = refused

    def write(self, expedite: Callable[[], None]) -> int | None:
        """Write them, without waiting for the disk; return the file descriptor that has to be synced before `complete`.

        So the sync can be had from the kernel, with no thread that waits for it. To be called once, or not at all: then
        `complete` sees to it.

        Args:
            expedite: Called, on any thread, by whoever waits to write meanwhile: waits for the sync, and completes them.

        Returns: None if nothing is to be synced, or somebody waits already.

        Raises:
            StorageError: They cannot be written; `complete` tries again, and tells which.
        """
        return self._committer.write_record(self._staged, expedite)

    def complete(self, *, is_synced: bool = False, failure: OSError | None = None) -> list[Result | StoreError]:
        """Commit them; return a result or an error for each, in order. On any thread, once.

        Args:
            is_synced: Whether what `write` has named was synced since.
            failure: How that failed.

        Raises:
            StorageError: As `submit_many`.
            ClosedError: It was called before.

        Cost: one commit; no system call, if it `is_synced`.
        """
        answers = self._committer.complete(self._staged, is_synced=is_synced, failure=failure)
        return _with_refusals(answers, self._refused)


def _with_refusals(answers: list[Result | StoreError], refused: dict[int, StoreError]) -> list[Result | StoreError]:
    for place, refusal in refused.items():  # ascending, so each goes to where it stays
        answers.insert(place, refusal)
    return answers


def _forget_stores() -> None:
    for store in list(_open_stores):
        store._forget()
    _open_stores.clear()


# A memory map, locks and threads do not survive a fork: in the child, the stores are closed, untouched.
os.register_at_fork(after_in_child=_forget_stores)
