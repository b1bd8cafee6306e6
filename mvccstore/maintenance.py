"""What a store does beside answering: reclaiming compacted history, syncing, keeping to its retention.

A `Maintainer` has one thread, started when there is first something for it to do and asleep between. All
it does goes through public steps of the store, so a caller can have the same done at once
(`Store.compact(..., physical=True)`), and tests need no thread and no clock.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import closing, suppress

from mvccstore.clock import Clock, MovableClock
from mvccstore.committer import Committer
from mvccstore.engine import Engine
from mvccstore.errors import StoreError
from mvccstore.mvcc import compaction as rules
from mvccstore.pins import Pins
from mvccstore.tables import Table, WriteTxn

STEP_RECORDS = 2_000
STEP_RECORDS_MIN = 100
STEP_RECORDS_MAX = 20_000
LOG_SHARE = 8
"""A pass that has looked at an eighth of the log goes on in key order."""
RETRY_SECONDS = 1.0
STEP_SECONDS = 0.006
"""What one write transaction of a pass should take: writers wait for it, and 20 ms is their limit."""


class Reclaimer:
    """Removes what compaction made invisible, a short write transaction at a time. See `mvcc.compaction`."""

    def __init__(self, engine: Engine, committer: Committer, pins: Pins, clock: Clock) -> None:
        self._committer = committer
        self._pins = pins
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()  # guards the pass: one at a time; taken before the writer's turn
        self._step_records = STEP_RECORDS
        self._noted: set[bytes] = set()  # log keys, while a pass is in log order
        self._noted_count = 0
        self._looked_at = 0  # records, in this pass

    def change_beside(self, change: Callable[[], None]) -> None:
        """Have the tables changed between two steps, and forget the pass under way: it is of other tables."""
        with self._lock:
            change()
            self._noted.clear()
            self._noted_count = self._looked_at = 0

    def run(self, should_stop: Callable[[], bool] = bool) -> None:
        """Reclaim all that may go now. Returns early when `should_stop` says so."""
        with self._lock:
            while not should_stop() and self._pass_step():
                pass

    def _pass_step(self) -> bool:
        """Take the next step; False if there is none."""
        compaction = rules.begin_pass(self._committer.state.compaction, self._pins.oldest())
        if compaction is None:
            return False
        if self._noted_count >= rules.SWEEP_AT:
            self._sweep()
        with closing(self._engine.read()) as txn:
            self._looked_at += self._step_records
            if self._looked_at * LOG_SHARE > txn.length(Table.LOG):
                compaction = rules.in_key_order(compaction)
            step = rules.plan(txn, compaction, self._step_records, self._noted)
        if step is not None:
            dropped: list[bytes] = []
            self._timed(lambda txn: dropped.extend(rules.drop(txn, step)))
            # Only now that it is committed.
            self._noted_count += len(dropped)
            if not rules.is_in_key_order(compaction):
                self._noted.update(dropped)
            return True
        self._sweep()
        self._looked_at = 0
        self._committer.write_alone(lambda txn: rules.finish_pass(txn, compaction.target))
        return True

    def _sweep(self) -> None:
        with closing(self._engine.read()) as txn:
            log_keys = rules.noted(txn)  # not our own set: an interrupted pass has left some, too
        start = 0
        while start < len(log_keys):
            piece = log_keys[start : start + self._step_records]
            start += len(piece)
            self._timed(lambda txn, piece=piece: rules.sweep(txn, piece))  # type: ignore[misc]
        if log_keys:
            self._committer.write_alone(rules.forget_noted)
        self._noted.clear()
        self._noted_count = 0

    def _timed(self, change: Callable[[WriteTxn], object]) -> None:
        """Write, and fit the size of the next step to how long it took."""
        begun = self._clock.monotonic()
        self._committer.write_alone(change)
        took = self._clock.monotonic() - begun
        if took > STEP_SECONDS:
            self._step_records = max(self._step_records // 2, STEP_RECORDS_MIN)
        elif took < STEP_SECONDS / 3:
            self._step_records = min(self._step_records * 2, STEP_RECORDS_MAX)


class Maintainer:
    """The store's own thread. Holds the store weakly: one that is forgotten is not kept alive by it.

    Args:
        work: What is done when it is woken, or something is due.
        due_in: Returns the seconds until then; None if nothing will be due.
    """

    def __init__(self, work: Callable[[], None], due_in: Callable[[], float | None]) -> None:
        self._work = weakref.WeakMethod(work)
        self._due_in = weakref.WeakMethod(due_in)
        self._condition = threading.Condition()  # guards the three below; a leaf lock
        self._thread: threading.Thread | None = None
        self._is_wanted = False
        self._is_stopping = False

    def wake(self) -> None:
        """Have the work done soon."""
        with self._condition:
            if not self._is_stopping:
                self._is_wanted = True
                self._start()
                self._condition.notify()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mvccstore-maintenance", daemon=True)
            self._thread.start()

    @property
    def is_stopping(self) -> bool:
        """Whether work under way should end soon."""
        return self._is_stopping

    def stop(self) -> None:
        """End the thread, after the step it is at. Stopping twice is harmless."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        seconds_min = 0.0
        while True:
            due_in = self._due_in()
            if due_in is None:
                return
            seconds = due_in()
            del due_in
            with self._condition:
                if not self._is_wanted and not self._is_stopping:
                    self._condition.wait(
                        None if seconds is None else min(max(seconds, seconds_min), threading.TIMEOUT_MAX)
                    )
                if self._is_stopping:
                    return
                self._is_wanted = False
            work = self._work()
            if work is None:
                return
            try:
                work()
                seconds_min = 0.0
            except StoreError:
                # A full disk or a store being closed: the next call of the user meets the same and says so,
                # and the work is taken up again at the next wake-up, or soon if it is still due then.
                seconds_min = RETRY_SECONDS
            finally:
                del work


def listen(method: Callable[[], None], clock: Clock) -> Callable[[], None]:
    """Have a method called when a clock is moved, as long as its object lives. Return what undoes that."""
    if not isinstance(clock, MovableClock):
        return lambda: None
    weak = weakref.WeakMethod(method)

    def listener() -> None:
        found = weak()
        if found is not None:
            found()

    clock.add_listener(listener)

    def stop() -> None:
        with suppress(ValueError):  # stopped before
            clock.remove_listener(listener)

    return stop
