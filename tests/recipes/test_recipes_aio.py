"""The recipes on asyncio: as for threads, and a task that is cancelled anywhere leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from mvccstore import ClosedError, KeyRange, LeaseNotFoundError, recipes
from mvccstore.aio import AsyncStore
from mvccstore.aio import recipes as aio_recipes
from mvccstore.recipes import ItemChange, JsonCodec
from mvccstore.testing import FakeClock
from tests.aio.aio_kit import NotSuspendedError, OpenAio, Run, cancelled_at, turns
from tests.aio.conftest import open_aio, run
from tests.recipes.recipes_kit import OWN, SECONDS

__all__ = ["open_aio", "run"]

FACES = [
    *(
        (getattr(recipes, name), getattr(recipes, f"Async{name}"))
        for name in recipes.__all__
        if f"Async{name}" in recipes.__all__
    ),
]


@pytest.mark.parametrize(("plain", "awaited"), FACES)
def test_both_faces_have_the_same_names_and_parameters(plain: type, awaited: type) -> None:
    names = {name for name in dir(plain) if not name.startswith("_")}
    assert names == {name for name in dir(awaited) if not name.startswith("_")}
    for name in names:
        here, there = inspect.getattr_static(plain, name), inspect.getattr_static(awaited, name)
        if inspect.isfunction(here):
            assert [*inspect.signature(here).parameters.values()] == [*inspect.signature(there).parameters.values()]
            assert inspect.iscoroutinefunction(there) == (here is not there and name != "observe"), name


async def lines_long(store: AsyncStore, length: int) -> None:
    """Return when so many stand in the only line."""
    async with store.watch(OWN, start_revision=2) as watcher:
        while await store.count(OWN) < length:
            assert await watcher.next_batch(SECONDS) is not None


def test_tasks_have_a_lock_in_the_order_they_came(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(engine="memory") as store:
            order: list[int] = []

            async def wait(number: int) -> None:
                async with store.lock("x") as lock:
                    assert lock.is_held
                    order.append(number)

            holder = store.lock("x")
            assert await holder.acquire()
            assert not await store.lock("x").acquire(timeout=0)
            tasks = []
            for number in range(5):
                tasks.append(asyncio.create_task(wait(number)))
                await lines_long(store, number + 2)
            tasks[2].cancel()
            await holder.release()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert order == [0, 1, 3, 4]
            assert tasks[2].cancelled()
            assert await store.count(OWN) == 0
            assert await store.leases() == []

    run(main)


def test_a_lock_that_was_lost_says_so_to_tasks_too(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(engine="memory") as store:
            with pytest.raises(LeaseNotFoundError):
                async with store.lock("x"):
                    await (await store.leases())[0].revoke()
            with pytest.raises(ZeroDivisionError):
                async with store.lock("x"):
                    raise ZeroDivisionError
            election = store.election("e")
            assert await election.campaign(b"1")
            await store.delete(OWN)
            with pytest.raises(LeaseNotFoundError):
                await election.proclaim(b"2")

    run(main)


def test_elections(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(engine="memory") as store:
            one, two = store.election("e"), store.election("e")
            assert await one.leader() is None
            seen: list[bytes] = []
            told = seen.append

            async def observe() -> None:
                async for kv in observer:
                    told(kv.value)

            async with two.observe() as observer:
                task = asyncio.create_task(observe())
                assert await one.campaign(b"1")
                campaign = asyncio.create_task(two.campaign(b"2"))
                await lines_long(store, 2)
                await one.proclaim(b"1b")
                await one.resign()
                assert await campaign
                assert two.is_leader
                await two.proclaim(b"end")
                while b"end" not in seen:
                    await turns()
            await task
            assert seen in ([b"1", b"1b", b"2", b"end"], [b"1b", b"2", b"end"])
            with pytest.raises(ClosedError, match="observer"):
                await observer.next()
            left = two.observe()
            assert await left.next(timeout=0) is not None
            assert await left.next(timeout=0) is None
            await two.resign()
            left.close()

    run(main)


def test_counters_and_barriers(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(engine="memory") as store:
            counter = store.counter("c")
            assert sorted(await asyncio.gather(*(counter.add() for _ in range(20)))) == list(range(1, 21))
            await counter.set(-1)
            assert await counter.value() == -1
            barrier = store.barrier("b")
            await barrier.hold()
            assert not await barrier.wait(timeout=0)
            waiting = [asyncio.create_task(barrier.wait(SECONDS)) for _ in range(3)]
            await turns()
            await barrier.release()
            assert await asyncio.gather(*waiting) == [True] * 3

    run(main)


def test_queues(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(engine="memory") as store:
            handled = []

            async def consume() -> None:
                async with store.queue("q") as queue:
                    while (item := await queue.get(SECONDS)) is not None:
                        async with item:
                            if item.value == b"end":
                                break
                            handled.append(item.value)

            consumers = [asyncio.create_task(consume()) for _ in range(3)]
            queue = store.queue("q")
            await asyncio.gather(*(queue.put(b"%d" % number) for number in range(20)))
            for _ in consumers:
                await queue.put(b"end")
            await asyncio.gather(*consumers)
            assert sorted(handled) == sorted(b"%d" % number for number in range(20))
            assert await queue.qsize() == 0
            await queue.put(b"a")
            item = await queue.get()
            assert item is not None
            await item.nack()
            again = await queue.get(timeout=0)
            assert again is not None
            with pytest.raises(ZeroDivisionError):
                async with again:
                    raise ZeroDivisionError
            third = await queue.get()
            assert third is not None
            await third.ack()
            assert await queue.get(timeout=0) is None

    run(main)


def test_mirrors(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(engine="memory") as store:
            await store.put(b"a/1", b"1")
            async with store.mirror(b"a/") as mirror:
                revision = await store.put(b"a/2", b"2")
                assert mirror[b"a/2"].value == b"2"
                assert list(mirror) == [b"a/1", b"a/2"]
                waiting = asyncio.create_task(mirror.wait(revision + 1))
                await turns()
                await store.put(b"b/1")
                assert await waiting
                assert not await mirror.wait(revision + 2, timeout=0)

    run(main)


def test_mappings(run: Run, open_aio: OpenAio, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with open_aio(engine="memory") as store:
            mapping = store.mapping("m/", codec=JsonCodec[int]())
            changes: asyncio.Queue[ItemChange[str, int]] = asyncio.Queue()
            stop = mapping.on_change(changes.put_nowait)
            stop_failing = mapping.on_change(lambda change: 1 // 0)
            await mapping.set("a", 1)
            await mapping.update({"b": 2}, c=3)
            assert await mapping.setdefault("a", 7) == 1
            assert await mapping.setdefault("d", 4) == 4
            assert (await mapping.get("a"), await mapping.get("x"), await mapping.get("x", 0)) == (1, None, 0)
            assert [key async for key in mapping] == ["a", "b", "c", "d"]
            assert [item async for item in mapping.items()][:2] == [("a", 1), ("b", 2)]
            assert [key async for key in mapping.keys()] == ["a", "b", "c", "d"]  # noqa: SIM118 - it has no `in`
            assert [value async for value in mapping.values()] == [1, 2, 3, 4]
            assert (await mapping.count(), await mapping.has("a"), await mapping.has("x")) == (4, True, False)
            assert (await mapping.pop("a"), await mapping.pop("a", None)) == (1, None)
            with pytest.raises(KeyError):
                await mapping.pop("a")
            await mapping.delete("b")
            with pytest.raises(KeyError):
                await mapping.delete("b")
            await mapping.clear()
            await mapping.update()
            with pytest.raises(KeyError, match="empty"):
                await mapping.popitem()
            seen = [await changes.get() for _ in range(8)]
            assert [(change.type, change.key) for change in seen] == [
                ("put", "a"),
                ("put", "b"),
                ("put", "c"),
                ("put", "d"),
                ("delete", "a"),
                ("delete", "b"),
                ("delete", "c"),
                ("delete", "d"),
            ]
            stop()
            stop_failing()
            await turns()
            raw = store.mapping(b"raw/")
            raw.on_change(changes.put_nowait)  # type: ignore[arg-type]
            await raw.set(b"\xff", [1])
            assert (await changes.get()).key == b"\xff"
            await turns()
            task = raw._task
            assert task is not None
            await store.aclose()
            await task

    with caplog.at_level(logging.ERROR, "mvccstore"):
        run(main)
    assert "a callback of a mapping failed" in caplog.text


def test_many_tasks_pop_each_item_once(run: Run, open_aio: OpenAio, engine: str) -> None:
    async def main() -> None:
        async with open_aio(engine=engine) as store:
            numbers = store.mapping("n/", codec=JsonCodec[int]())
            await numbers.update((str(number), number) for number in range(40))

            async def pop_all() -> list[int]:
                popped = []
                while await numbers.count():
                    try:
                        popped.append((await numbers.popitem())[1])
                    except KeyError:
                        break
                return popped

            found = await asyncio.gather(*(pop_all() for _ in range(6)))
            assert sorted(number for each in found for number in each) == list(range(40))
            texts = store.mapping("o/")
            assert await texts.setdefault("x") is None
            await texts.set("w", [1])
            assert [await texts.popitem(), await texts.popitem()] == [("w", [1]), ("x", None)]

    run(main)


def test_callbacks_on_the_loop_go_on_after_a_gap(
    run: Run, open_aio: OpenAio, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mvccstore.hub.TAIL_EVENTS_MAX", 1)

    async def main() -> None:
        async with open_aio(engine="memory") as store:
            mapping = store.mapping("m/")
            changes: asyncio.Queue[ItemChange[str, object]] = asyncio.Queue()
            stop = mapping.on_change(changes.put_nowait)

            def overtake(_: object) -> None:
                stop_overtaking()
                # On the loop's thread, so that the task cannot take what is written here before it is compacted.
                for number in range(3):
                    store._store.put(b"m/b", b"%d" % number)
                store._store.put(b"other", b"pushes the tail out")
                store._store.compact(store.revision)
                store._store.put(b"m/c", b"1")

            async with store.watch(b"other"):
                stop_overtaking = mapping.on_change(overtake)
                await mapping.set("a", 0)
                assert (await changes.get()).key == "a"
                assert (await changes.get()).key == "c"
            stop()
            await turns()

    with caplog.at_level(logging.ERROR, "mvccstore"):
        run(main)
    assert "were not told" in caplog.text


STEPS: dict[str, Callable[[AsyncStore], Awaitable[object]]] = {
    "acquire": lambda store: store.lock("x").acquire(timeout=60),
    "campaign": lambda store: store.election("x").campaign(b"v", timeout=60),
    "get": lambda store: store.queue("x").get(timeout=60),
    "wait": lambda store: store.barrier("x").wait(timeout=60),
}
LATER: dict[str, Callable[[AsyncStore], Awaitable[object]]] = {
    "acquire": lambda store: store.lock("x").acquire(timeout=0),
    "campaign": lambda store: store.election("x").campaign(b"v", timeout=0),
    "get": lambda store: store.queue("x").get(timeout=0),
    "wait": lambda store: store.barrier("x").wait(timeout=0),
}


async def _free(store: AsyncStore, name: str) -> None:
    """Let a recipe's wait end soon. Only what it waits for goes: its own place may be there already."""
    match name:
        case "acquire":
            await store.delete(b"_mvccstore/lock/x/0")
        case "campaign":
            await store.delete(b"_mvccstore/election/x/0")
        case "get":
            await store.queue("x").put(b"item")
        case "wait":
            await store.barrier("x").release()


@pytest.mark.parametrize("name", sorted(STEPS))
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("is_contended", [False, True])
def test_cancelled_anywhere_it_holds_up_nobody(
    run: Run, open_aio: OpenAio, name: str, is_late: bool, is_contended: bool
) -> None:
    async def main() -> None:
        suspension = 0
        while True:
            clock = FakeClock()
            async with open_aio(f"{suspension}.mvcc", engine="memory", clock=clock) as store:
                if is_contended:
                    await _contend(store, name)
                elif name == "get":
                    await store.queue("x").put(b"item")
                steps = STEPS[name](store)
                assert isinstance(steps, Coroutine)
                try:
                    task = asyncio.ensure_future(_cancelled(steps, suspension, is_late))
                    if is_contended:
                        await turns()
                        await _free(store, name)
                    result = await task
                except NotSuspendedError:
                    assert suspension >= (1 if name == "wait" and is_contended else 0)
                    return
                if result is None:
                    gc.collect()
                    clock.advance(100)  # a lease that nobody had yet
                    assert await LATER[name](store), suspension
            suspension += 1

    async def _contend(store: AsyncStore, name: str) -> None:
        if name == "acquire":
            await store.put(b"_mvccstore/lock/x/0")
        elif name == "campaign":
            await store.put(b"_mvccstore/election/x/0")
        elif name == "wait":
            await store.barrier("x").hold()

    run(main)


async def _cancelled(steps: Coroutine[Any, Any, object], suspension: int, is_late: bool) -> object:
    return await cancelled_at(steps, suspension, is_late=is_late)


def test_what_the_mixin_gives_is_documented() -> None:
    for name, member in vars(aio_recipes.AsyncRecipes).items():
        if not name.startswith("_"):
            assert inspect.getdoc(member), name
    assert KeyRange.prefix(b"_mvccstore/") == OWN
