"""The one writer of a server: what its calls want written goes to a thread, and comes back answered.

Why a thread: a commit waits for the disk, and the loop must not. What is asked for while one commit is under way
makes the next, so a thousand clients share one fsync. What is soon done is done on the loop, as two threads that both
run Python are in each other's way: of a store with a journal the thread only commits, and a store in memory has no
disk to wait for, so there is no thread until it is needed. Where the kernel syncs beside us (`fdsync`), there is none
for a journal either.

Invariants:

* I1. Requests are applied in the order in which they were submitted.
* I2. The callback of each is called once, on the loop, in that order, after the commit is as durable as the store
  promises; not at all once the loop is closed.
* I3. One batch is under way at a time: `_is_busy`, from when it is handed over until its answers are delivered.
* I4. Requests under way are counted. Whoever submits for clients bounds the count: see `node.REFUSED_ABOVE`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter
from queue import SimpleQueue
from typing import Final, NamedTuple, TypeVar

from mvccstore.attributes import AttributesRequest
from mvccstore.clock import SystemClock
from mvccstore.commit import BATCH_MAX
from mvccstore.engine import IN_MEMORY
from mvccstore.errors import ClosedError, StorageError, StoreError
from mvccstore.server.fdsync import FdSync
from mvccstore.server.slow import SlowRequests
from mvccstore.server.transport.counts import Histogram
from mvccstore.server.transport.flushes import Flushes
from mvccstore.store import StagedWrites, Store
from mvccstore.types import (
    Compare,
    DeleteRequest,
    KeyRange,
    LeaseGrantRequest,
    PutRequest,
    RangeRequest,
    Request,
    Result,
    TxnRequest,
    WriteRequest,
)

T = TypeVar("T")
Done = Callable[[Result | StoreError], None]
_Job = tuple[WriteRequest | Callable[[], object], Callable[..., None]]

_CLOCK = SystemClock()
"""Whatever time it is in the store: this is for how long its disk takes."""
UNDER_WAY_MAX = 5_000
"""etcd's limit of the gap between what is committed and what is applied. Here, clients wait from it on."""


_HERE_MAX: Final = 100
"""So many small requests take about a millisecond."""
_HERE_SECONDS_MAX: Final = 0.001
"""The loop waits for a disk that takes no longer, if there is nothing else to do."""
_PACE_COMMITS: Final = 8
_done_of: Final[Callable[[_Job], Callable[..., None]]] = itemgetter(1)
_SMALL_TXN_OPS: Final = 16


class Writer:
    """Submits to a store for the calls of one event loop. Used on the loop, but for its thread."""

    def __init__(
        self, store: Store, commits: Histogram, slow: SlowRequests | None = None, flushes: Flushes | None = None
    ) -> None:
        self._store = store
        self._flushes = flushes or Flushes()
        """Of the connections that answers are for."""
        self._commits = commits
        """How long they took, in seconds."""
        self._slow = slow
        self._loop = asyncio.get_running_loop()
        self._new: list[_Job] = []
        self._inbox: SimpleQueue[list[_Job] | _Staged | None] = SimpleQueue()
        self._answers: deque[tuple[Callable[..., None], object]] = deque()
        self._is_planned = False
        self._is_busy = False
        self._is_told = False
        self._is_stopped = False
        self._drained: asyncio.Future[None] | None = None
        self._is_quick = store.path == IN_MEMORY
        self._pace = 0.0
        """How long a commit takes, of late."""
        self.under_way = 0
        """Requests that are not answered yet."""
        self._worker: threading.Thread | None = None
        self._fdsync: FdSync | None = None
        self._sync_mutex = threading.RLock()  # held by who ends a sync; taken before the store's own
        self._syncing: _Staged | None = None
        """What is synced just now."""
        self._is_begun = False
        """Whether that has begun."""
        self._began_at = 0.0
        self._has_looked = False
        """Whether it is known if there is a `FdSync`."""

    def submit(self, request: WriteRequest, done: Done) -> None:
        """Have a request carried out, together with others; then `done` is called with its result or error."""
        self._add(request, done)

    def call(self, function: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        """Have a function called on the writer's thread, between commits; `done` gets what it returns or raises."""
        self._add(function, done)

    def _add(self, work: WriteRequest | Callable[[], object], done: Callable[..., None]) -> None:
        if self._is_stopped:
            self._loop.call_soon(done, ClosedError())
            return
        if not self._is_planned and not self._is_busy:
            self._is_planned = True
            self._loop.call_soon(self._hand_over)
        self.under_way += 1
        self._new.append((work, done))

    def _hand_over(self) -> None:
        """Begin with what has come, unless something is under way: then its end does."""
        self._is_planned = False
        if self._is_busy or not self._new:
            return
        jobs, self._new = self._new[:BATCH_MAX], self._new[BATCH_MAX:]
        self._is_busy = True
        requests = [work for work, _ in jobs if type(work) is PutRequest or (not callable(work) and _is_small(work))]
        if len(requests) < len(jobs):
            self._give_to_thread(jobs)
        elif self._is_quick:
            if len(jobs) > _HERE_MAX or not self._do_here(jobs, requests):
                self._give_to_thread(jobs)
        else:
            self._stage(jobs, requests)

    def _give_to_thread(self, work: list[_Job] | _Staged) -> None:
        if self._worker is None:
            self._worker = threading.Thread(target=self._run, name="mvccstore-server-writer", daemon=True)
            self._worker.start()
        self._inbox.put(work)

    def _do_here(self, jobs: list[_Job], requests: Sequence[WriteRequest]) -> bool:
        """Carry requests out on the loop, unless another thread writes."""
        answers: Sequence[object] | None
        began_at = _CLOCK.monotonic()
        try:
            answers = self._store.try_submit_many(requests)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            answers = [error] * len(jobs)
        if answers is None:
            return False
        self._note(_CLOCK.monotonic() - began_at, requests)
        self._finish(jobs, answers)
        self._deliver()
        return True

    def _stage(self, jobs: list[_Job], requests: Sequence[WriteRequest]) -> None:
        """Do all but the commit on the loop, where no other thread is in the way; the thread waits for the disk."""
        try:
            writes = self._store.stage_many(requests)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self._finish(jobs, [error] * len(jobs))
            self._deliver()
            return
        if writes is None:
            self._give_to_thread(jobs)
        elif len(jobs) > 1 or self.under_way > 1 or self._pace > _HERE_SECONDS_MAX:
            staged = _Staged(jobs, requests, writes)
            if not self._begin_sync(staged):
                self._give_to_thread(staged)
        else:
            # Alone, with a disk that is quick: to the thread and back would take as long.
            self._complete(_Staged(jobs, requests, writes))
            self._deliver()

    def _begin_sync(self, staged: _Staged) -> bool:
        """Have the kernel sync what was staged, if it can."""
        if not self._has_looked:
            self._has_looked = True
            self._fdsync = self._new_fdsync()
        if self._fdsync is None:
            return False
        with self._sync_mutex:
            self._syncing, self._is_begun, self._began_at = staged, False, _CLOCK.monotonic()
            try:
                fd = staged.writes.write(self._expedite)
                if fd is not None and self._syncing is staged:
                    self._fdsync.begin(fd)
                    self._is_begun = True
            except (StoreError, OSError):
                pass  # the thread can, or meets the same, and tells
            if self._syncing is not staged:
                return True  # a signal handler that writes, too, has ended it
            if not self._is_begun:
                self._syncing = None
            return self._is_begun

    def _new_fdsync(self) -> FdSync | None:
        try:
            made = FdSync()
        except (OSError, AttributeError):
            return None
        try:
            self._loop.add_reader(made.fileno, self._end_sync)
        except (OSError, NotImplementedError):
            made.close()
            return None
        return made

    def _end_sync(self) -> None:
        """A sync is done."""
        if self._fdsync is not None:
            self._fdsync.hear()
        self._take_synced()
        self._deliver()

    def _expedite(self) -> None:
        """End the commit under way, for a thread that waits to write: it may be the loop's, which cannot then."""
        try:
            self._take_synced()
        finally:
            self._tell()

    def _take_synced(self) -> None:
        with self._sync_mutex:
            staged = self._syncing
            if staged is None or self._fdsync is None:
                return
            is_synced = self._is_begun
            failure = self._fdsync.end() if is_synced else None  # who is interrupted here leaves it to the loop
            try:
                self._complete(staged, self._began_at, failure, is_synced=is_synced)
            finally:
                self._syncing = None

    async def stop(self) -> None:
        """Carry out what was asked for, answer it, and end the thread."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._hand_over()
        try:
            if self.under_way:
                self._drained = self._loop.create_future()
                await self._drained
        finally:  # also if nobody waits for it any more
            self._inbox.put(None)
            with self._sync_mutex:
                if self._fdsync is not None:
                    self._take_synced()
                    self._loop.remove_reader(self._fdsync.fileno)
                    self._fdsync.close()
                    self._fdsync = None
            self._deliver()
        if self._worker is not None:
            await self._loop.run_in_executor(None, self._worker.join)

    # The thread's side

    def _run(self) -> None:
        while (work := self._inbox.get()) is not None:
            if isinstance(work, _Staged):
                self._complete(work)
            else:
                self._carry_out(work)
            del work  # not for as long as nothing comes
            self._tell()

    def _carry_out(self, jobs: list[_Job]) -> None:
        requests: list[WriteRequest] = []
        answering: list[Callable[..., None]] = []
        for work, done in jobs:
            if callable(work):
                self._apply(requests, answering)
                requests, answering = [], []
                self._do(work, done)
            else:
                requests.append(work)
                answering.append(done)
        self._apply(requests, answering)
        self._answers.append((_END, None))

    def _complete(
        self, staged: _Staged, began_at: float = -1.0, failure: OSError | None = None, *, is_synced: bool = False
    ) -> None:
        if not is_synced:
            began_at = _CLOCK.monotonic()
        answers: Sequence[object]
        try:
            answers = staged.writes.complete(is_synced=is_synced, failure=failure)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            answers = [error] * len(staged.jobs)
        except BaseException:
            interrupted = StorageError(self._store.path, "the commit was interrupted, and may be done or not")
            self._finish(staged.jobs, [interrupted] * len(staged.jobs))
            raise
        took = _CLOCK.monotonic() - began_at
        self._pace += (took - self._pace) / _PACE_COMMITS
        self._note(took, staged.requests)
        self._finish(staged.jobs, answers)

    def _finish(self, jobs: list[_Job], answers: Sequence[object]) -> None:
        """Note the answers to all that was under way."""
        self._answers.extend(zip(map(_done_of, jobs), answers, strict=True))
        self._answers.append((_END, None))

    def _apply(self, requests: list[WriteRequest], answering: list[Callable[..., None]]) -> None:
        if not requests:
            return
        answers: Sequence[object]
        began_at = _CLOCK.monotonic()
        try:
            answers = self._store.submit_many(requests)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            answers = [error] * len(requests)
        else:
            self._note(_CLOCK.monotonic() - began_at, requests)
        self._answers.extend(zip(answering, answers, strict=True))
        self._tell()

    def _note(self, took: float, requests: Sequence[WriteRequest]) -> None:
        self._commits.observe(took)
        if self._slow is not None and took > self._slow.apply_seconds:
            self._slow.note_commit(took, requests)

    def _do(self, function: Callable[[], object], done: Callable[..., None]) -> None:
        try:
            answer = function()
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            answer = error
        self._answers.append((done, answer))
        self._tell()

    def _tell(self) -> None:
        # Whoever reads True here has put theirs in before `_deliver` begins to take.
        if not self._is_told:
            self._is_told = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._answers.clear()

    # The loop's side again

    def _deliver(self) -> None:
        self._is_told = False
        try:
            self._flushes.hold()
            self._answer()
        finally:
            self._flushes.release()
        if not self._is_busy:
            if self._new and not self._is_planned:
                # Not at once: what came while this was under way, and is not read yet, is to share the commit.
                self._is_planned = True
                self._loop.call_soon(self._hand_over)
            elif self._drained is not None and not self.under_way and not self._drained.done():
                self._drained.set_result(None)

    def _answer(self) -> None:
        answers = self._answers
        while answers:
            done, answer = answers.popleft()
            if done is _END:
                self._is_busy = False
                continue
            self.under_way -= 1
            try:
                done(answer)
            except Exception as error:  # noqa: BLE001 - one call's
                self._loop.call_exception_handler({"message": "an answer could not be delivered", "exception": error})
            if isinstance(answer, Exception):
                # Its frames hold the answers, and so itself, and what was asked for: 1.5 MB until the next collection.
                answer.__traceback__ = None


def _END(_: object) -> None:  # noqa: N802 - a mark
    """Stand behind the answers to what was under way."""


class _Staged(NamedTuple):
    """What the thread has only to commit."""

    jobs: list[_Job]
    requests: Sequence[WriteRequest]
    writes: StagedWrites


def _is_small(request: WriteRequest) -> bool:
    """Say whether what a request does is bounded by its own size, and that small."""
    if type(request) is PutRequest:  # most are
        return True
    match request:
        case TxnRequest():
            parts = (*request.compare, *request.success, *request.failure)
            return len(parts) <= _SMALL_TXN_OPS and all(map(_is_of_one_key, parts))
        case DeleteRequest():
            return _is_of_one_key(request)
        case _:
            return isinstance(request, LeaseGrantRequest | AttributesRequest)


def _is_of_one_key(part: Compare | Request) -> bool:
    if isinstance(part, Compare | DeleteRequest | RangeRequest):
        return not isinstance(part.keys, KeyRange)
    return isinstance(part, PutRequest)
