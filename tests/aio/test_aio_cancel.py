"""Cancelled at any await, a task has lost nothing, left nothing behind, and the store goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest

import mvccstore
from mvccstore import KeyRange, Op, Txn, aio
from mvccstore.aio import AsyncStore
from tests.aio.aio_kit import (
    Gate,
    NotSuspendedError,
    OpenAio,
    Run,
    assert_nothing_is_left,
    batches_of,
    cancelled_at,
    turns,
)

ALL = KeyRange.all()
SUSPENSIONS_MAX = 20


async def leased(store: AsyncStore) -> None:
    async with await store.grant(ttl=1_000) as lease:
        await store.put(b"k", lease=lease)
        await lease.keep_alive()


async def viewed(store: AsyncStore) -> None:
    async with store.snapshot() as view, view.scan(ALL) as scan:
        async for _ in scan:
            pass


async def watched(store: AsyncStore) -> None:
    async with store.watch(ALL) as watcher:
        await store.put(b"k")
        await anext(watcher)
        await watcher.next_batch(timeout=0.001)


async def subscribed(store: AsyncStore) -> None:
    async with await store.subscription("s", ALL) as subscription:
        await store.put(b"k")
        async for delivery in subscription:
            await delivery.ack()
            break


def put_many(txn: Txn) -> None:
    for number in range(200):
        txn.put(b"%03d" % number)


USES: dict[str, Callable[[AsyncStore, Path], Coroutine[Any, Any, object]]] = {
    "put": lambda store, _: store.put(b"k", b"v"),
    "delete": lambda store, _: store.delete(ALL),
    "txn": lambda store, _: store.txn(success=[Op.put(b"k", b"v")]),
    "transact": lambda store, _: store.transact(put_many),
    "revert": lambda store, _: store.revert(ALL, to=2),
    "lease": lambda store, _: leased(store),
    "view": lambda store, _: viewed(store),
    "watch": lambda store, _: watched(store),
    "subscription": lambda store, _: subscribed(store),
    "compact": lambda store, _: store.compact(keep_revisions=1, physical=True),
    "check": lambda store, _: store.check(),
    "bisect": lambda store, _: store.bisect(lambda view: view.get(b"k") is not None),
    "backup": lambda store, folder: store.backup(folder / "copy.mvcc", overwrite=True),
    "aclose": lambda store, _: store.aclose(),
}


async def at_each_suspension(use: Callable[[int, bool], Awaitable[bool]]) -> None:
    """Call with the number of each suspension, early and late, until there is none of this number."""
    for is_late in (False, True):
        for suspension in range(SUSPENSIONS_MAX):
            if not await use(suspension, is_late):
                assert suspension > 0, "it never suspends"
                break
        else:
            pytest.fail("it suspends for ever")


@pytest.mark.parametrize("name", USES)
def test_a_call_cancelled_at_any_await_leaves_nothing(run: Run, tmp_path: Path, name: str) -> None:
    async def use(suspension: int, is_late: bool) -> bool:
        path = tmp_path / f"{suspension}-{is_late}.mvcc"
        async with aio.open(path, durability="os") as store:
            await store.transact(put_many)
            try:
                await cancelled_at(USES[name](store, tmp_path), suspension, is_late=is_late)
            except NotSuspendedError:
                return False
            if name != "aclose":
                revision = await store.put(b"after")
                assert revision == store.revision
                await store._helper.call(lambda: None)  # so that what went on has ended
                assert_nothing_is_left(store)
                assert await store.check() == []
        # Closed, whoever did it: another may open it.
        with mvccstore.open(path) as plain:
            assert plain.check() == []
        return True

    run(lambda: at_each_suspension(use))


def test_opening_cancelled_at_any_await_leaves_no_store_open(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "store.mvcc"

    async def use(suspension: int, is_late: bool) -> bool:
        try:
            await cancelled_at(aio.open(path)._opened(), suspension, is_late=is_late)
        except NotSuspendedError as error:
            del error
            return False
        for thread in threading.enumerate():
            if thread.name == "mvccstore-writer":
                thread.join()
        with mvccstore.open(path):
            return True

    async def main() -> None:
        for is_late in (False, True):
            assert await use(0, is_late)

    run(main)


def test_a_batch_is_not_lost_with_the_task_that_waited_for_it(run: Run, open_aio: OpenAio, engine: str) -> None:
    random = Random(5)

    async def main() -> None:
        async with open_aio(engine=engine) as store, store.watch(ALL) as watcher:
            seen = []

            async def take() -> None:
                seen.append(await watcher.next_batch(random.choice([None, 0.0005])))

            async def write() -> None:
                for number in range(300):
                    await store.put(b"%d" % (number % 7))

            writing = asyncio.create_task(write())
            while store.revision < 301 or watcher.revision < 301:
                task = asyncio.create_task(take())
                await turns(random.randrange(12))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await writing
            expected = batches_of([event async for event in store.history(ALL, start_revision=2)])
            assert [batch for batch in seen if batch is not None] == expected

    run(main)


@pytest.mark.parametrize("is_late", [False, True])
def test_next_batch_cancelled_at_its_await_gives_the_batch_to_the_next(
    run: Run, open_aio: OpenAio, is_late: bool
) -> None:
    async def main() -> None:
        async with open_aio() as store, store.watch(b"k") as watcher:
            task = asyncio.create_task(_wait(cancelled_at(watcher.next_batch(), 0, is_late=is_late)))
            await turns()
            assert await store.put(b"k") == 2
            assert await task is None
            assert not store._store._hub._topics[b"k"].waiting
            assert watcher.revision == 1
            assert (await watcher.next_batch()).revision == 2

    run(main)


async def _wait(awaitable: Awaitable[object]) -> object:
    return await awaitable


def test_a_write_that_is_cancelled_while_it_waits_is_done_and_harms_nobody(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            gate = Gate(store)
            await gate.entered()
            tasks = [asyncio.create_task(store.put(b"%d" % number)) for number in range(6)]
            calls: list[int] = []
            call = asyncio.create_task(store.transact(lambda _: calls.append(1)))
            await turns()
            for task in (*tasks[::2], call):
                task.cancel()
            await gate.open()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [answer for answer in answers if isinstance(answer, int)] == [3, 5, 7]
            assert await store.count(ALL) == 6
            # What has not begun and touches the caller's own does not begin.
            assert calls == []

    run(main)


def test_tasks_that_come_and_go_at_random_leave_a_store_that_works(run: Run, open_aio: OpenAio, engine: str) -> None:
    random = Random(11)

    async def one(store: AsyncStore, acknowledged: dict[bytes, int], number: int) -> None:
        key = b"k/%03d" % number
        async with store.watch(key) as watcher:
            revision = await store.put(key)
            acknowledged[key] = revision
            assert (await anext(watcher)).revision == revision
            await store.transact(lambda txn: txn.put(key, b"2"))

    async def main() -> None:
        async with open_aio(engine=engine) as store:
            acknowledged: dict[bytes, int] = {}
            tasks = [asyncio.create_task(one(store, acknowledged, number)) for number in range(200)]
            while not all(task.done() for task in tasks):
                random.choice(tasks).cancel()
                await turns(random.randrange(4))
            for answer in await asyncio.gather(*tasks, return_exceptions=True):
                assert answer is None or isinstance(answer, asyncio.CancelledError)
            await store.put(b"after")
            found = {event.revision: event.kv.key async for event in store.history(ALL)}
            assert all(found[revision] == key for key, revision in acknowledged.items())

    run(main)
