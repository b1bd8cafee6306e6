"""What the asyncio tests share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from itertools import groupby
from types import coroutine
from typing import Any, TypeVar

from mvccstore import Event, WatchBatch
from mvccstore.aio import AsyncStore
from mvccstore.mvcc.apply import Changes

T = TypeVar("T")
SECONDS = 30
"""Longer than anything here takes; waiting for it means a deadlock."""

Run = Callable[[Callable[[], Awaitable[object]]], None]
OpenAio = Callable[..., Any]


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mvccstore-")]


def assert_nothing_is_left(store: AsyncStore) -> None:
    assert len(store._store._hub) == 0, "a watcher is left"
    assert len(store._store._pins) == 0, "a snapshot or scan is left"
    assert not store._courier._results
    assert not store._writer._new
    assert not store._helper._new


async def turns(count: int = 5) -> None:
    """Let the loop go round, for what does not tell when it has been done."""
    for _ in range(count):
        await asyncio.sleep(0)


def commits(store: AsyncStore) -> list[Changes | None]:
    """Return a list that grows with each commit from now on."""
    found: list[Changes | None] = []
    committer = store._store._committer
    on_commit = committer._on_commit

    def noted(changes: Changes | None) -> None:
        found.append(changes)
        on_commit(changes)

    committer._on_commit = noted
    return found


class Gate:
    """Holds a store's writer thread, in a transaction, until it is opened."""

    def __init__(self, store: AsyncStore) -> None:
        self._go = threading.Event()
        self._entered = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(store.transact(lambda _: self._hold()))

    def _hold(self) -> None:
        self._loop.call_soon_threadsafe(self._entered.set)
        assert self._go.wait(SECONDS)

    async def entered(self) -> None:
        await self._entered.wait()

    async def open(self) -> None:
        self._go.set()
        await self._task


def batches_of(events: Iterable[Event]) -> list[WatchBatch]:
    """Return the batches that a watcher has to show for these events: each revision whole, once, in order."""
    return [WatchBatch(revision, tuple(group)) for revision, group in groupby(events, lambda event: event.revision)]


class NotSuspendedError(Exception):
    """The coroutine did not suspend so often."""


@coroutine
def cancelled_at(inner: Coroutine[Any, Any, T], suspension: int, *, is_late: bool) -> Generator[Any, Any, T | None]:
    """Run a coroutine by hand, and cancel it at one of its suspensions, counted from 0; then let it go on.

    Args:
        inner: The coroutine.
        suspension: The number of the suspension.
        is_late: Cancel when what it waits for is there, and it is about to go on; otherwise as it suspends.

    Returns: None if it was cancelled; its result if it got one all the same.

    Raises:
        NotSuspendedError: It has ended before.
    """
    number = 0
    is_cancelled = False
    throw = False
    while True:
        try:
            if throw:
                throw, is_cancelled = False, True
                waits_for = inner.throw(asyncio.CancelledError())
            else:
                waits_for = inner.send(None)
        except StopIteration as stop:
            if not is_cancelled:
                raise NotSuspendedError from None
            result: T = stop.value
            return result
        except asyncio.CancelledError:
            assert is_cancelled
            return None
        if number == suspension and not is_late and waits_for is not None:
            waits_for.cancel()  # as a task does with what it waits for
        if number == suspension:
            throw = True
        number += 1
        if throw and not is_late:
            if waits_for is not None:
                waits_for._asyncio_future_blocking = False
            continue
        yield waits_for
