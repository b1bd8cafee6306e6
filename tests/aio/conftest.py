"""Shared by the asyncio tests: both event loops, and a look at what is left behind."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mvccstore import aio
from mvccstore.aio import AsyncStore
from tests.aio.aio_kit import SECONDS, OpenAio, Run, assert_nothing_is_left, own_threads

LOOPS = ("asyncio", "uvloop") if sys.platform != "win32" else ("asyncio",)


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine function on each event loop in turn; no task and no thread may be left behind it."""
    # Not imported on top: it is not there on every system.
    loop_factory = None if request.param == "asyncio" else importlib.import_module("uvloop").new_event_loop
    before = own_threads()

    def run_one(main: Callable[[], Awaitable[object]]) -> None:
        async def watched() -> None:
            async with asyncio.timeout(SECONDS):
                await main()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(watched())

    yield run_one
    for thread in own_threads():
        if thread not in before:
            thread.join(SECONDS)
            assert not thread.is_alive(), thread


@pytest.fixture
def open_aio(tmp_path: Path) -> OpenAio:
    """Open stores in the test's folder, for `async with`; at its end they are checked, and hold nothing of anybody."""

    @asynccontextmanager
    async def open_one(name: str = "store.mvcc", **options: Any) -> AsyncIterator[AsyncStore]:
        path = None if options.get("engine") == "memory" else tmp_path / name
        options.setdefault("durability", "os")
        async with aio.open(path, **options) as store:
            yield store
            if store._closing is None:
                assert_nothing_is_left(store)
                assert await store.check() == []

    return open_one
