"""One event loop, on a thread of its own, for all servers of a process: there while one of them runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from mvccstore.server.serving import new_event_loop

T = TypeVar("T")

SECONDS_MAX = 60.0
"""What takes longer than this on the loop does not end."""


class SharedLoop:
    """Counts its users. The first starts the thread, the last ends it.

    A child after a fork has the object and not the thread: it begins anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the three below
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> asyncio.AbstractEventLoop:
        """Return the running loop. Needs a `release`."""
        with self._lock:
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                self._users = 0
                self._loop = new_event_loop()
                self._thread = threading.Thread(
                    target=self._run, args=(self._loop,), name="mvccstore-testing", daemon=True
                )
                self._thread.start()
            self._users += 1
            return self._loop

    def release(self) -> None:
        """Say that it is not used any more."""
        with self._lock:
            self._users -= 1
            if self._users > 0 or self._loop is None or self._thread is None:
                return
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join(SECONDS_MAX)

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_forever()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()


shared_loop = SharedLoop()


def run_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Have a coroutine run on a loop in another thread, and return its result."""
    return asyncio.run_coroutine_threadsafe(work, loop).result(SECONDS_MAX)


def call_on(loop: asyncio.AbstractEventLoop, function: Callable[[], T]) -> T:
    """Have a function called on a loop in another thread, and return its result."""

    async def work() -> T:
        return function()

    return run_on(loop, work())
