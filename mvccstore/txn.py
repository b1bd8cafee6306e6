"""The transaction block: reads see the block's own writes, and all of it commits as one revision or none.

Owns the store's exclusive turn and the engine's write transaction from `begin` to the end of the block.

Invariants:

* I1. `_requests` holds, in order, every write that the engine transaction holds.
* I2. While the block is open no other thread writes; readers see the state before it.

The writes are kept so that they can be done again: when the engine gives the transaction up to make room
(`RetryWrite`), and when a replicator must carry them elsewhere before they may count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self, TypeVar
from weakref import ref

from mvccstore.clock import Clock
from mvccstore.codec import entry_floor
from mvccstore.committer import Block, Committer
from mvccstore.engine import Engine
from mvccstore.errors import ClosedError, StorageError, TxnError
from mvccstore.mvcc.apply import Changes, RevisionWriter
from mvccstore.mvcc.read import check_readable
from mvccstore.mvcc.state import State
from mvccstore.options import Limits
from mvccstore.past import RevertibleView
from mvccstore.quota import Quota
from mvccstore.replicator import Replicator
from mvccstore.tables import ReadTxn, RetryWrite, WriteTxn
from mvccstore.types import BatchRequest, Command, DeleteRequest, DeleteResult, PutRequest, PutResult
from mvccstore.view import Cut

T = TypeVar("T")


class TxnHost:
    """What a block needs of its store, and what it has while it is open: the turn and the engine's transaction.

    Args:
        owner: The store; not to be closed and forgotten while it has a block.
        engine: Where its writes go.
        committer: Gives it the exclusive turn, and commits.
        quota: Lets its puts in.
        limits: The largest requests it accepts.
        clock: Stamps its commit.
        replicator: Has the block applied elsewhere too, if there is one.
    """

    def __init__(
        self,
        owner: object,
        engine: Engine,
        committer: Committer,
        quota: Quota,
        limits: Limits,
        clock: Clock,
        replicator: Replicator | None,
    ) -> None:
        self._owner = owner
        self._engine = engine
        self._committer = committer
        self._clock = clock
        self._replicator = replicator
        self._txn: WriteTxn | None = None
        self._block: ref[Block] | None = None
        self.guard: ref[Txn] | None = None
        """Ends what a forgotten block has; None once it has ended."""
        self.limits = limits
        self.admit = quota.admit
        self.check_not_inside = committer.check_not_inside

    def enter(self, block: Txn) -> State:
        """Wait for the store's exclusive turn; return its state. Needs an `end`.

        A block that is interrupted between `begin` and `with` is forgotten; the others must not wait for it for
        ever. No `__del__` sees to that, as it would run for every block, and swallow the interrupts that come then.
        """
        state = self._committer.enter()
        self._block = ref(block)
        self._committer.block = self._block
        self.guard = ref(block, self._end_forgotten)
        return state

    def _end_forgotten(self, _: object) -> None:
        if self._committer.queue.is_mine() and self._committer.block is self._block:
            self.end()

    def write(self) -> WriteTxn:
        """Begin the engine's transaction."""
        self._txn = txn = self._engine.write()
        return txn

    def end(self) -> None:
        """Let transaction and turn go. May be repeated."""
        try:
            if self._txn is not None:
                self._txn.close()
        finally:
            self._committer.leave()

    def commit(self, writer: RevisionWriter, batch: BatchRequest) -> int:
        """Commit a block, or have it replicated; return the revision.

        Raises:
            RetryWrite: The engine made room; run the block's writes again.
        """
        if not batch.requests:
            return batch.base_revision
        time_ms = self._clock.time_ms()
        if self._replicator is None:
            state = writer.finish(time_ms)
            self._committer.commit(writer.txn, state, writer.changes)
            return state.revision
        # What was applied here was for the block's own reads. It counts when the replicator says so, in its
        # own turn, and only if nobody wrote in between.
        self.end()
        return self._replicator.propose(Command(batch, time_ms)).revision


class Txn(RevertibleView):
    """An open transaction block. Get one from `Store.begin`; use it as a context manager.

    Belongs to the thread that began it. Committed at the end of the `with` block, rolled back if the block
    raises or is forgotten; or earlier by `commit` or `rollback`.
    """

    __slots__ = ("__weakref__", "_host", "_is_open", "_requests", "_revision", "_state", "_thread", "_writer")

    def __init__(self, host: TxnHost) -> None:
        self._host = host
        self._thread = threading.get_ident()
        self._requests: list[PutRequest | DeleteRequest] = []
        self._is_open = False
        host.check_not_inside()
        try:
            self._state = host.enter(self)
            self._revision = self._state.revision
            self._is_open = True
            self._start()
        except BaseException:
            self._end()
            raise

    def _start(self) -> None:
        self._writer = RevisionWriter(self._host.write(), self._state, Changes())

    @property
    def revision(self) -> int:
        """The revision that the block's writes have, or the store's if there are none yet."""
        return self._writer.revision if self._is_open else self._revision

    @property
    def limits(self) -> Limits:
        """The largest requests it accepts: the store's."""
        return self._host.limits

    # A write that is refused raises, changes nothing, and leaves the block open.

    def _put(self, request: PutRequest) -> PutResult:
        self._host.admit(request)

        def put() -> PutResult:
            self._writer.check(request)
            return self._writer.put(request)

        result = self._run(put)
        self._requests.append(request)
        return result

    def _delete(self, request: DeleteRequest) -> DeleteResult:
        result = self._run(lambda: self._writer.delete(request))
        self._requests.append(request)
        return result

    def commit(self) -> int:
        """Commit the block, and return its revision: the store's current one if nothing was written.

        Durable as the store was opened to be. The block is closed afterwards, also if this raises.

        Raises:
            StorageFullError: There is no room; nothing of the block happened.
            ConflictError: Replicated elsewhere, and another write came first.

        Cost: one commit.
        """
        self._check_open()
        try:
            batch = BatchRequest(tuple(self._requests), self._state.revision)
            while True:
                try:
                    self._revision = self._host.commit(self._writer, batch)
                except RetryWrite:
                    self._replay()
                else:
                    return self._revision
        finally:
            self._end()

    def rollback(self) -> None:
        """Undo the block's writes and close it. Harmless if it is closed."""
        if self._is_open:
            self._check_open()
            self._end()

    def _end(self) -> None:
        self._host.end()
        self._is_open = False
        self._host.guard = None

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        if not self._is_open:
            return
        if exc_type is None:
            self.commit()
        else:
            self.rollback()

    def _run(self, operation: Callable[[], T]) -> T:
        self._check_open()
        try:
            while True:
                try:
                    return operation()
                except RetryWrite:
                    self._replay()
        except StorageError:  # the engine transaction is gone
            self._end()
            raise

    def _replay(self) -> None:
        """Do the block's writes again on a new engine transaction."""
        while True:
            self._start()
            try:
                for request in self._requests:
                    if isinstance(request, PutRequest):
                        self._writer.put(request)
                    else:
                        self._writer.delete(request)
            except RetryWrite:
                continue
            return

    def _check_open(self) -> None:
        if not self._is_open:
            what = "transaction"
            raise ClosedError(what)
        if threading.get_ident() != self._thread:
            msg = "a transaction block belongs to the thread that began it"
            raise TxnError(msg)

    # Reading

    def _cut(self, revision: int) -> Cut:
        self._check_open()
        floor = self._state.compaction.revision
        if revision:
            # As in etcd's txns, the revision that is being written cannot be asked for by its number.
            check_readable(revision, self._state.revision, floor)
        at = entry_floor(revision) if revision else self._writer.at_now()
        return Cut(self._writer.txn, at, self._writer.revision, floor)

    def _cut_pinned(self, revision: int) -> Cut:
        self._check_open()
        return Cut(self._writer.txn, self._writer.at_now(), self._writer.revision, self._state.compaction.revision)

    def _release(self, txn: ReadTxn) -> None:
        pass  # the engine transaction goes on until the block ends

    def _pin(self, revision: int) -> Callable[[], None]:
        return _nothing  # nobody compacts during a block


def _nothing() -> None:
    pass
