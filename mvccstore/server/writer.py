"""The one writer of a server: what its calls want written goes to a thread, and comes back answered.

Why a thread: a commit waits for the disk, and the loop must not. What is asked for while one commit is under way
makes the next, so a thousand clients share one fsync. A store in memory has no disk to wait for: there, what is soon
done is done on the loop, which saves the way to the thread and back, and there is no thread until it is needed.

Invariants:

* I1. Requests are applied in the order in which they were submitted.
* I2. The callback of each is called once, on the loop, in that order, after the commit is as durable as the store
  promises; not at all once the loop is closed.
* I3. Requests under way are counted. Whoever submits for clients keeps the count at `UNDER_WAY_MAX`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TypeVar

from mvccstore.attributes import AttributesRequest
from mvccstore.clock import SystemClock
from mvccstore.commit import BATCH_MAX
from mvccstore.engine import IN_MEMORY
from mvccstore.errors import ClosedError, StoreError
from mvccstore.server.slow import SlowRequests
from mvccstore.server.transport.counts import Histogram
from mvccstore.store import Store
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
"""etcd's limit of the gap between what is committed and what is applied: more is `too many requests`."""


_HERE_MAX = 100
"""So many small requests take about a millisecond."""
_SMALL_TXN_OPS = 16


class Writer:
    """Submits to a store for the calls of one event loop. Used on the loop, but for its thread."""

    def __init__(self, store: Store, commits: Histogram, slow: SlowRequests | None = None) -> None:
        self._store = store
        self._commits = commits
        """How long they took, in seconds."""
        self._slow = slow
        self._loop = asyncio.get_running_loop()
        self._new: list[_Job] = []
        self._inbox: SimpleQueue[list[_Job] | None] = SimpleQueue()
        self._answers: deque[tuple[Callable[..., None], object]] = deque()
        self._is_told = False
        self._is_stopped = False
        self._is_quick = store.path == IN_MEMORY
        self.under_way = 0
        """Requests that are not answered yet."""
        self._thread: threading.Thread | None = None

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
        if not self._new:
            self._loop.call_soon(self._hand_over)
        self.under_way += 1
        self._new.append((work, done))

    def _hand_over(self) -> None:
        jobs, self._new = self._new, []
        if jobs and not (self._is_quick and self._do_here(jobs)):
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mvccstore-server-writer", daemon=True)
                self._thread.start()
            self._inbox.put(jobs)

    def _do_here(self, jobs: list[_Job]) -> bool:
        """Carry requests out on the loop, if that takes no time to speak of."""
        # Only if none is under way elsewhere: I1.
        if self.under_way > len(jobs) or len(jobs) > _HERE_MAX:
            return False
        requests = [work for work, _ in jobs if not callable(work) and _is_small(work)]
        if len(requests) < len(jobs):
            return False
        answers: Sequence[object] | None
        began_at = _CLOCK.monotonic()
        try:
            answers = self._store.try_submit_many(requests)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            answers = [error] * len(jobs)
        if answers is None:
            return False
        self._note(_CLOCK.monotonic() - began_at, requests)
        self._answers.extend((done, answer) for (_, done), answer in zip(jobs, answers, strict=True))
        self._deliver()
        return True

    async def stop(self) -> None:
        """Carry out what was asked for, answer it, and end the thread."""
        self._hand_over()
        if not self._is_stopped:
            self._is_stopped = True
            self._inbox.put(None)
        if self._thread is not None:
            await self._loop.run_in_executor(None, self._thread.join)
        self._deliver()

    # The thread's side

    def _run(self) -> None:
        while True:
            jobs = self._inbox.get()
            if jobs is None:
                return
            is_last = False
            while not self._inbox.empty() and len(jobs) < BATCH_MAX:
                more = self._inbox.get()
                if more is None:
                    is_last = True
                    break
                jobs = jobs + more
            self._carry_out(jobs)
            if is_last:
                return

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
                if len(requests) == BATCH_MAX:
                    self._apply(requests, answering)
                    requests, answering = [], []
        self._apply(requests, answering)

    def _apply(self, requests: list[WriteRequest], answering: list[Callable[..., None]]) -> None:
        if not requests:
            return
        answers: list[Result | StoreError]
        began_at = _CLOCK.monotonic()
        try:
            answers = self._store.submit_many(requests)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self._tell([(done, error) for done in answering])
            return
        self._note(_CLOCK.monotonic() - began_at, requests)
        self._tell(list(zip(answering, answers, strict=True)))

    def _note(self, took: float, requests: Sequence[WriteRequest]) -> None:
        self._commits.observe(took)
        if self._slow is not None and took > self._slow.apply_seconds:
            self._slow.note_commit(took, requests)

    def _do(self, function: Callable[[], object], done: Callable[..., None]) -> None:
        try:
            answer = function()
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            answer = error
        self._tell([(done, answer)])

    def _tell(self, answers: list[tuple[Callable[..., None], object]]) -> None:
        self._answers.extend(answers)
        # Whoever reads True here has put theirs in before `_deliver` begins to take.
        if not self._is_told:
            self._is_told = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._answers.clear()

    def _deliver(self) -> None:
        self._is_told = False
        answers = self._answers
        while answers:
            done, answer = answers.popleft()
            self.under_way -= 1
            try:
                done(answer)
            except Exception as error:  # noqa: BLE001 - one call's
                self._loop.call_exception_handler({"message": "an answer could not be delivered", "exception": error})


def _is_small(request: WriteRequest) -> bool:
    """Say whether what a request does is bounded by its own size, and that small."""
    match request:
        case TxnRequest():
            parts = (*request.compare, *request.success, *request.failure)
            return len(parts) <= _SMALL_TXN_OPS and all(map(_is_of_one_key, parts))
        case DeleteRequest():
            return _is_of_one_key(request)
        case _:
            return isinstance(request, PutRequest | LeaseGrantRequest | AttributesRequest)


def _is_of_one_key(part: Compare | Request) -> bool:
    if isinstance(part, Compare | DeleteRequest | RangeRequest):
        return not isinstance(part.keys, KeyRange)
    return isinstance(part, PutRequest)
