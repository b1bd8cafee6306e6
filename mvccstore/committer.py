"""Applying and committing: the only code that begins the engine's write transaction.

What it owns: the state as of the last commit, and what readers see of it.

Invariants:

* I1. The engine commits first, then `state` changes, then callers are answered. So nothing is shown that the
  chosen durability could still take back.
* I2. `state` is one object, replaced as a whole: a reader never sees a revision with another's floor.
* I3. `state` is what the engine holds, unless `_is_stale` is set (a commit was interrupted, nobody knows
  where); then the next writer reads it anew.
* I4. Readers read `state`; only the thread whose turn it is changes it.

A command that is refused leaves the others of its commit alone, as it raises before it writes. If the
engine fails, the whole commit is undone, and each command is tried in a commit of its own: the one that
does not fit a full disk must not take the others with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Protocol, TypeVar
from weakref import ref

from mvccstore.commit import CommitQueue, Turn
from mvccstore.engine import Engine
from mvccstore.errors import ClosedError, FormatError, StorageError, StoreError, TxnError
from mvccstore.mvcc.apply import Changes, apply_all
from mvccstore.mvcc.state import State, check_format, load, load_compaction, save_format
from mvccstore.staged import Staged
from mvccstore.tables import MovableTxn, RetryWrite, Table, WriteTxn, written
from mvccstore.types import Command, Result

_MARKER = b"replicator"

T = TypeVar("T")


def ensure_format(engine: Engine, *, read_only: bool) -> None:
    """Mark empty tables as a store.

    Raises:
        FormatError: They hold something else, a newer format, or nothing and must not be written to.
    """
    with closing(engine.read()) as txn:
        if check_format(txn, engine.path):
            return
    if read_only:
        raise FormatError(engine.path, "not a store")
    written(engine.write, _save_format)


def _save_format(txn: WriteTxn) -> None:
    save_format(txn)
    txn.commit()


class Block(Protocol):
    """A transaction block, as much as its store must know of it."""

    def rollback(self) -> None:
        """Undo the block's writes and close it. Harmless if it is closed."""
        ...


class Committer:
    """The writing half of a store.

    Args:
        engine: Where it commits to.
        on_commit: Called after each commit, in the turn, with what it changed; with None if that was lost, as the
            commit was interrupted.
    """

    def __init__(self, engine: Engine, on_commit: Callable[[Changes | None], None]) -> None:
        self._engine = engine
        self._on_commit = on_commit
        self._is_stale = False
        self._is_closed = False
        self._guard: ref[Staged] | None = None
        """Ends what was staged and forgotten."""
        self.block: ref[Block] | None = None
        """The transaction block that has the turn, or had the last one."""
        self.queue = CommitQueue(self._apply)
        self._begin_movable: Callable[[], MovableTxn | None] | None = getattr(engine, "write_movable", None)
        with closing(engine.read()) as txn:
            self.state = load(txn, engine.path)

    def check_not_inside(self) -> None:
        """Raise if this thread is in a transaction block: it would wait for itself."""
        if self.queue.is_mine():
            msg = "this thread is in a transaction block; write through the block, or end it first"
            raise TxnError(msg)

    def enter(self) -> State:
        """Wait for an exclusive turn; return the state. Needs a `leave`."""
        self.check_not_inside()
        try:
            self.queue.enter()
            self.block = None
            if self._is_closed:
                raise ClosedError
            if self._is_stale:
                self._refresh()
        except BaseException:
            self.leave()
            raise
        return self.state

    def leave(self) -> None:
        """End the exclusive turn. Harmless if this thread has none."""
        if self.queue.is_mine():
            if self._is_stale and not self._is_closed:  # its commit was interrupted
                with suppress(StorageError, ClosedError):  # the next writer meets the same, and says so
                    self._refresh()
            self.queue.leave()

    def roll_back_block(self) -> None:
        """Roll back the transaction block that this thread is in, if it is in one."""
        if self.queue.is_mine():
            block = self.block() if self.block is not None else None
            if block is not None:
                block.rollback()
            self.leave()  # if it was interrupted as it ended

    def alone(self, work: Callable[[], T]) -> T:
        """Run some work in an exclusive turn, which ends with it, also if the thread is interrupted anywhere."""
        self.check_not_inside()
        try:
            try:
                self.enter()
                return work()
            finally:
                self.leave()
        except BaseException:
            self.leave()  # again, as that may be what was interrupted
            raise

    def write_alone(self, change: Callable[[WriteTxn], object]) -> None:
        """Run a change in an exclusive turn and a write transaction of its own. It must not change the revision."""
        self.alone(lambda: written(self._engine.write, lambda txn: self._change(txn, change)))

    def _change(self, txn: WriteTxn, change: Callable[[WriteTxn], object]) -> None:
        change(txn)
        compaction = load_compaction(txn, self._engine.path)
        self.commit(txn, self.state._replace(compaction=compaction), Changes())

    def commit(self, txn: WriteTxn, state: State, changes: Changes) -> None:
        """Commit a transaction that leads to `state`, and publish it. In a turn."""
        self._is_stale = True
        txn.commit()
        self.state = state
        self._on_commit(changes)
        self._is_stale = False

    def apply_replicated(self, commands: list[Command], marker: bytes) -> list[Result | StoreError]:
        """Apply commands that a quorum has, in one commit, with the replicator's place in its log.

        Returns a result or an error for each. Raises `StorageError` if nothing could be committed.
        """
        turns = [Turn(command) for command in commands]
        self.alone(lambda: self._apply_together(turns, marker))
        return [turn.error if isinstance(turn.error, StoreError) else turn.answer() for turn in turns]

    def replicated_marker(self) -> bytes | None:
        """Return the marker of the last `apply_replicated`."""
        with closing(self._engine.read()) as txn:
            return txn.get(Table.META, _MARKER)

    def close(self) -> None:
        """Refuse all later writes. In a turn."""
        self._is_closed = True

    def forget(self) -> None:
        """Close in a child after a fork, where the threads that wrote are not."""
        self._is_closed = True
        self.block = None
        self.queue = CommitQueue(self._apply)

    def reload(self) -> None:
        """Take over the state that the engine holds. In a turn."""
        with closing(self._engine.read()) as txn:
            self.state = load(txn, self._engine.path)

    def _refresh(self) -> None:
        if self._is_stale:
            with closing(self._engine.read()) as txn:
                self.state = load(txn, self._engine.path)
            self._on_commit(None)
            self._is_stale = False

    def _apply(self, turns: list[Turn]) -> None:
        """Apply the commands of some turns in one commit. Called by the queue's leader."""
        try:
            if self._is_closed:
                raise ClosedError
            if self._is_stale:
                self._refresh()
            self._apply_together(turns, None)
        except StorageError as error:
            if len(turns) == 1:
                turns[0].error = error
                return
            for turn in turns:
                self._apply([turn])
        except StoreError as error:
            for turn in turns:
                turn.error = error

    def _apply_together(self, turns: list[Turn], marker: bytes | None) -> None:
        """Apply the commands of some turns in one commit, and answer them when it is done."""
        while True:
            try:
                self._apply_once(turns, marker)
            except RetryWrite:
                pass
            else:
                return

    def _apply_once(self, turns: list[Turn], marker: bytes | None) -> None:
        answers: list[Result | StoreError] = []
        changes = Changes()
        txn = self._engine.write()
        try:
            commands = [turn.command for turn in turns if turn.command is not None]
            state, answers = apply_all(txn, self.state, commands, changes)
            if marker is not None:
                txn.put(Table.META, _MARKER, marker)
            self.commit(txn, state, changes)
            _answer(turns, answers)
        except Exception:
            raise
        except BaseException:
            # Interrupted, perhaps in the commit or behind it. If that is done, the others that it was for must not be
            # written twice.
            is_done = txn.has_committed()
            txn.close()
            self._refresh()
            if is_done:
                _answer(turns, answers)
            raise
        finally:
            txn.close()

    def stage(self, commands: Sequence[Command]) -> Staged | None:
        """Apply commands now, to be committed by another thread; None if that cannot be done without waiting.

        What was staged has the turn until it is completed, which must follow.
        """
        if self._begin_movable is None:
            return None
        txn = None
        try:
            turn = self.queue.try_enter()
            if turn is None:
                return None
            try:
                if not self._is_stale and not self._is_closed and (txn := self._begin_movable()) is not None:
                    changes = Changes()
                    state, answers = apply_all(txn, self.state, commands, changes)
                    staged = Staged(commands, turn, txn, state, changes, answers)
                    self._guard = ref(staged, partial(self._end_forgotten, turn, txn))
                    self.queue.let_go(turn)
                    return staged
            except (RetryWrite, StorageError):
                pass  # done on the long way, it says what there is to say
            if txn is not None:
                txn.close()
            return None
        except BaseException:
            if txn is not None and self.queue.is_mine():
                txn.close()
            raise
        finally:
            self.queue.leave()  # unless it was let go

    def _end_forgotten(self, turn: Turn, txn: WriteTxn, _: object) -> None:
        """Undo what was staged, and is not to be completed: who staged it was interrupted."""
        if self.queue.try_adopt(turn):
            try:
                txn.close()
            finally:
                self.leave()

    def write_record(self, staged: Staged, expedite: Callable[[], None]) -> int | None:
        """As `StagedWrites.write`."""
        return staged.txn.write_record() if self.queue.try_expedite(staged.turn, expedite) else None

    def complete(
        self, staged: Staged, *, is_synced: bool = False, failure: OSError | None = None
    ) -> list[Result | StoreError]:
        """Commit what was staged, and return a result or an error for each command. On any thread, once.

        Args:
            staged: That.
            is_synced: Whether what `write_record` of its transaction has named was synced.
            failure: Why that failed.

        Raises:
            StorageError: It could not be committed.
        """
        try:
            if not self.queue.try_adopt(staged.turn):
                raise ClosedError
            self._guard = None  # else it would run each time, and swallow an interrupt that comes then
            try:
                if is_synced:
                    staged.txn.note_synced(failure)
                self.commit(staged.txn, staged.state, staged.changes)
            except StorageError:
                staged.txn.close()
                # Each in a commit of its own, as `_apply` does: its turn is this one.
                turns = [Turn(command) for command in staged.commands]
                self._apply(turns)
                return [turn.error if isinstance(turn.error, StoreError) else turn.answer() for turn in turns]
            finally:
                staged.txn.close()
                self.leave()
        except BaseException:
            if self.queue.has(staged.turn):  # interrupted
                staged.txn.close()
                self.leave()
            raise
        return staged.answers


def _answer(turns: list[Turn], answers: list[Result | StoreError]) -> None:
    for turn, answer in zip(turns, answers, strict=True):
        if isinstance(answer, StoreError):
            turn.error = answer
        else:
            turn.result = answer
