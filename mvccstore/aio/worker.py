"""The threads that work for a loop, and how answers come back to it.

What it owns: a `Worker`'s thread and the jobs on their way to it, a `Courier`'s results on their way back.

Invariants:

* I1. Jobs are begun in the order in which they were asked for, each once.
* I2. The future of a job is set on the loop, once, and not at all if it was cancelled before.
* I3. A thread lives until `stop`, or until nobody has the worker; a closed loop holds up neither.

A write, step by step, where 64 tasks put at once:

    task 1 puts       its job goes into `_new`, and a hand-over is planned for the loop's next turn
    tasks 2-64 put    their jobs go into `_new`
    next turn         all of them go to the thread, which has them applied in one commit
    tasks 1-64 wait   what they are followed by meanwhile makes the next commit
    the thread        gives all 64 answers to the courier, with one call to the loop

Why not `run_in_executor`: that wakes a thread and the loop once for each write, and each write is a commit.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from mvccstore.commit import BATCH_MAX
from mvccstore.errors import ClosedError, StoreError
from mvccstore.types import Result, WriteRequest

T = TypeVar("T")

# What is to be done: a request shares its commit with its neighbours, a call is alone.
_Job = tuple["asyncio.Future[Any]", WriteRequest | Callable[[], object]]
_ApplyMany = Callable[[Sequence[WriteRequest]], list[Result | StoreError]]


class Courier:
    """Sets futures of a loop from other threads; what comes within one turn of the loop wakes it once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._results: deque[tuple[asyncio.Future[Any], object, BaseException | None]] = deque()
        self._is_called = False

    def post(self, *results: tuple[asyncio.Future[Any], object, BaseException | None]) -> None:
        """Set futures soon, each to a result or an error, unless they are done by then. From any thread."""
        self._results.extend(results)
        # Whoever reads True here has put their results in before `_deliver` begins to take.
        if not self._is_called:
            self._is_called = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._results.clear()

    def _deliver(self) -> None:
        self._is_called = False
        while self._results:
            future, result, error = self._results.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


class Worker:
    """A thread that carries out what the tasks of a loop ask for. It is started by the first job.

    Called on the loop, except for `join`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, courier: Courier, name: str) -> None:
        self._loop = loop
        self._courier = courier
        self._name = name
        self._new: list[_Job] = []
        self._inbox: SimpleQueue[list[_Job] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._apply_many: weakref.WeakMethod[_ApplyMany] | None = None

    def serve(self, apply_many: _ApplyMany) -> None:
        """Have requests carried out by a method, at most `BATCH_MAX` at a time. Its object is not kept alive."""
        self._apply_many = weakref.WeakMethod(apply_many)

    def write(self, request: WriteRequest) -> asyncio.Future[Result]:
        """Have a request carried out, together with others. Also if the future is cancelled."""
        return self._add(request)

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Have a function called, in the caller's context; not if the future is cancelled before it begins."""
        context = copy_context()
        return self._add(lambda: context.run(function))

    def _add(self, work: WriteRequest | Callable[[], object]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._new:
            self._loop.call_soon(self._hand_over)
        self._new.append((future, work))
        return future

    def _hand_over(self) -> None:
        if self._new:
            self._inbox.put(self._new)
            self._new = []
            if self._thread is None:
                # A daemon: who forgets to close must not wait for ever at the end of the program.
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread when it has done what it was asked for before. May be repeated."""
        self._hand_over()
        self._inbox.put(None)

    def abandon(self) -> None:
        """As `stop`, for who is collected, which can happen in any thread, and in the middle of anything."""
        self._inbox.put(None)

    def join(self) -> None:
        """Wait until the thread has ended. After `stop`."""
        if self._thread is not None:
            self._thread.join()

    # The thread's side

    def _run(self) -> None:
        while self._carry_out(self._take()):
            pass  # nothing is held here while it waits: who forgets a store must not wait for the next job

    def _take(self) -> list[_Job | None]:
        """Wait for jobs, and return all there are; None among them for the end."""
        taken: list[_Job | None] = []
        found = self._inbox.get()
        while True:
            taken += [None] if found is None else found
            try:
                found = self._inbox.get_nowait()
            except Empty:
                return taken

    def _carry_out(self, jobs: list[_Job | None]) -> bool:
        """Do some jobs; False if that was the end."""
        requests: list[tuple[asyncio.Future[Any], WriteRequest]] = []
        is_going_on = True
        for job in jobs:
            if job is None:
                is_going_on = False
                continue
            future, work = job
            if callable(work):
                self._apply(requests)
                requests = []
                self._do(future, work)
                continue
            requests.append((future, work))
            if len(requests) == BATCH_MAX:
                self._apply(requests)
                requests = []
        self._apply(requests)
        return is_going_on

    def _apply(self, requests: list[tuple[asyncio.Future[Any], WriteRequest]]) -> None:
        if not requests:
            return
        apply_many = self._apply_many() if self._apply_many is not None else None
        try:
            if apply_many is None:
                raise ClosedError
            answers = apply_many([request for _, request in requests])
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            self._courier.post(*((future, None, error) for future, _ in requests))
            return
        self._courier.post(
            *(
                (future, None, answer) if isinstance(answer, StoreError) else (future, answer, None)
                for (future, _), answer in zip(requests, answers, strict=True)
            )
        )

    def _do(self, future: asyncio.Future[Any], function: Callable[[], object]) -> None:
        if future.cancelled():
            return
        try:
            result = function()
        except StopIteration as error:
            # As for a coroutine: a future cannot have one.
            wrapped = RuntimeError("the function raised StopIteration")
            wrapped.__cause__ = error
            self._courier.post((future, None, wrapped))
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            self._courier.post((future, None, error))
        else:
            self._courier.post((future, result, None))
