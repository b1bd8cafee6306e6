"""Durable subscriptions for tasks: as for threads, and a task that is cancelled anywhere loses and leaves nothing."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Coroutine
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mvccstore import (
    ClosedError,
    CompactionHeldError,
    FutureRevisionError,
    KeyRange,
    Op,
    SubscriptionExistsError,
    SubscriptionInUseError,
    SubscriptionLostError,
    SubscriptionNotFoundError,
    UnacknowledgedLimitError,
    aio,
)
from mvccstore import subscription as module
from mvccstore.aio import AsyncDelivery, AsyncStore, AsyncSubscription
from tests.aio.aio_kit import (
    Gate,
    NotSuspendedError,
    OpenAio,
    Run,
    assert_nothing_is_left,
    cancelled_at,
    commits,
    turns,
)

ORDERS = KeyRange.prefix(b"orders/")
FILE_ENGINES = pytest.mark.parametrize("engine", ["lmdb", "sqlite"])


async def fill(store: AsyncStore, count: int, prefix: bytes = b"orders/") -> list[int]:
    return [await store.put(b"%s%d" % (prefix, number % 7), b"%d" % number) for number in range(count)]


async def taken(subscription: AsyncSubscription) -> list[int]:
    """Take all there is, and acknowledge nothing."""
    found = []
    while (delivery := await subscription.next_batch(timeout=0)) is not None:
        found.append(delivery.revision)
    return found


async def get(subscription: AsyncSubscription) -> AsyncDelivery:
    delivery = await subscription.next_batch(timeout=20)
    assert delivery is not None
    return delivery


def stored(store: AsyncStore, name: str = "mailer") -> int:
    """The cursor as a crash would leave it."""
    return store._store._load_subscription(name).revision


def is_free(store: AsyncStore, name: str = "mailer") -> bool:
    consumers = store._store._consumers
    return consumers.find(name) is None and not consumers._opening


# As for threads


@FILE_ENGINES
def test_unacknowledged_is_delivered_again_after_a_restart(run: Run, open_aio: OpenAio, engine: str) -> None:
    async def main() -> None:
        async with open_aio(engine=engine) as store, await store.subscription("mailer", ORDERS) as mailer:
            assert (mailer.name, mailer.keys, mailer.is_closed) == ("mailer", ORDERS, False)
            await store.put(b"other")
            both = await store.txn(
                success=[Op.put(b"orders/1", b"a"), Op.delete(b"orders/7"), Op.put(b"orders/2", b"")]
            )
            revisions = [both.revision, *await fill(store, 4)]
            first = await get(mailer)
            assert (first.revision, first.subscription) == (both.revision, mailer)
            assert [event.kv.key for event in first.events] == [b"orders/1", b"orders/2"]
            await first.ack()
            assert mailer.revision == stored(store) == revisions[1] - 1
            assert await taken(mailer) == revisions[1:]
        assert mailer.is_closed
        async with open_aio(engine=engine) as store, await store.subscription("mailer") as mailer:
            more = await fill(store, 2)
            assert await taken(mailer) == revisions[1:] + more
            await mailer.rewind()
            assert await taken(mailer) == revisions[1:] + more
            await mailer.ack(more[0])
            await mailer.ack_one(more[1])
            assert (mailer.lag, mailer.revision) == (0, store.revision)
            assert repr(mailer) == f"<AsyncSubscription 'mailer' at {store.revision}>"

    run(main)


def test_iterates_over_deliveries_until_it_is_closed(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            revisions = await fill(store, 300)
            found = []
            mailer = await store.subscription("mailer", ORDERS, start_revision=2)
            async for delivery in mailer:
                found.append(delivery.revision)
                if len(found) == 300:
                    await mailer.aclose()
            assert found == revisions
            other = await store.subscription("other", ORDERS)
            waiting = [asyncio.create_task(anext(other)) for _ in range(3)]
            await turns()
            await store.aclose()
            for error in await asyncio.gather(*waiting, return_exceptions=True):
                assert str(error) == "store is closed"
            for call in (other.next_batch, lambda: other.seek(2), other.skip, other.delete):
                with pytest.raises(ClosedError):
                    await call()
            await other.aclose()
            assert other.is_closed

    run(main)


def test_acknowledgements_not_durable_are_stored_when_closed_or_saved(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            names = ("closed", "saved", "store")
            opened = [await store.subscription(name, ORDERS) for name in names]
            revisions = await fill(store, 3)
            written = commits(store)
            for subscription in opened:
                for _ in revisions[:2]:
                    await (await get(subscription)).ack(durable=False)
            assert written == []
            closed, saved, _ = opened
            await closed.aclose()
            await closed.aclose()
            await saved.save()
            await saved.save()
            assert len(written) == 2
            assert [stored(store, name) for name in names] == [revisions[2] - 1, revisions[2] - 1, 1]
            infos = await store.subscriptions()
            assert [(info.name, info.revision, info.is_open) for info in infos] == [
                ("closed", revisions[2] - 1, False),
                ("saved", revisions[2] - 1, True),
                ("store", revisions[2] - 1, True),
            ]
            await store.aclose()  # with two of them open
        async with open_aio() as store:
            assert stored(store, "store") == revisions[2] - 1

    run(main)


def test_tasks_that_acknowledge_at_once_share_a_commit(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            opened = [await store.subscription(f"{number}", ORDERS) for number in range(20)]
            revision = await store.put(b"orders/1")
            deliveries = [await get(subscription) for subscription in opened]
            written = commits(store)
            await asyncio.gather(*(delivery.ack() for delivery in deliveries))
            assert len(written) == 1
            assert {stored(store, subscription.name) for subscription in opened} == {revision}
            for subscription in opened:
                await subscription.aclose()

    run(main)


def test_it_goes_anywhere_there_is_history_and_says_what_is_lost(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store, await store.subscription("mailer", ORDERS, hold_revisions=100) as mailer:
            revisions = await fill(store, 9)
            assert await taken(mailer) == revisions
            await mailer.seek(revisions[4])
            assert await taken(mailer) == revisions[4:]
            with pytest.raises(FutureRevisionError):
                await mailer.seek(99)
            with pytest.raises(ValueError, match="is the last delivered"):
                await mailer.ack(99)
            with pytest.raises(CompactionHeldError):
                await store.compact(revisions[8])
            await store.compact(revisions[8], force=True)
            await mailer.rewind()
            with pytest.raises(SubscriptionLostError) as caught:
                await mailer.next_batch()
            assert caught.value.compact_revision == revisions[8]
            assert await mailer.skip() == 4
            assert await mailer.skip() == 0
            assert await taken(mailer) == revisions[8:]
            await mailer.delete()
            assert await store.subscriptions() == []
            with pytest.raises(SubscriptionNotFoundError):
                await store.subscription("mailer")

    run(main)


def test_bad_input_is_refused_and_leaves_the_name_free(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            for wrong in (
                lambda: store.subscription("", ORDERS),
                lambda: store.subscription("mailer", KeyRange.empty()),
                lambda: store.subscription("mailer", ORDERS, hold_revisions=-1),
                lambda: store.subscription("mailer", ORDERS, start_revision=-1),
            ):
                with pytest.raises(ValueError, match=r"name|empty|hold|revision"):
                    await wrong()
            async with await store.subscription("mailer", ORDERS) as mailer:
                with pytest.raises(SubscriptionInUseError):
                    await store.subscription("mailer")
                for timeout in (-1, float("nan")):
                    with pytest.raises(ValueError, match="timeout"):
                        await mailer.next_batch(timeout)
                assert await mailer.next_batch(timeout=0.001) is None
            with pytest.raises(SubscriptionExistsError):
                await store.subscription("mailer", b"k")
            assert is_free(store)

    run(main)


def test_nothing_acknowledged_has_a_limit(run: Run, open_aio: OpenAio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNACKNOWLEDGED_MAX", 3)

    async def main() -> None:
        async with open_aio() as store, await store.subscription("mailer", ORDERS) as mailer:
            revisions = await fill(store, 5)
            first = await get(mailer)
            assert [(await get(mailer)).revision, (await get(mailer)).revision] == revisions[1:3]
            with pytest.raises(UnacknowledgedLimitError):
                await mailer.next_batch()
            await first.ack()
            assert (await get(mailer)).revision == revisions[3]

    run(main)


# On the loop


@pytest.mark.parametrize("latest_only", [False, True])
def test_a_long_catch_up_lets_the_loop_go_on(run: Run, open_aio: OpenAio, *, latest_only: bool) -> None:
    async def main() -> None:
        async with open_aio(engine="memory") as store:
            mailer = await store.subscription("mailer", ORDERS, latest_only=latest_only)
            await asyncio.gather(*(store.put(b"other/%d" % number) for number in range(5_000)))
            await asyncio.gather(*(store.put(b"orders/1") for _ in range(500)))
            longest, count = 0, [0]

            async def look() -> None:
                while True:
                    count[0] += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(look())
            await turns(2)
            before = count[0]
            await get(mailer)
            longest = count[0] - before
            for _ in range(0 if latest_only else 499):
                await get(mailer)
            # A turn for each page of what is not for it, one for each that was changed again, one for some deliveries.
            assert longest >= (400 if latest_only else 4)
            assert count[0] - before >= longest + (0 if latest_only else 4)
            await mailer.aclose()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main)


def test_tasks_share_one_and_each_delivery_goes_to_one_of_them(run: Run, open_aio: OpenAio, engine: str) -> None:
    async def main() -> None:
        async with open_aio(engine=engine) as store, await store.subscription("mailer", ORDERS) as mailer:
            found: list[list[int]] = [[] for _ in range(4)]

            async def consume(number: int) -> None:
                async for delivery in mailer:
                    found[number].append(delivery.revision)
                    await delivery.ack(durable=number % 2 == 0)
                    if delivery.events[0].kv.value == b"last":
                        await mailer.aclose()

            consumers = [asyncio.create_task(consume(number)) for number in range(4)]
            revisions = [*await fill(store, 100), await store.put(b"orders/9", b"last")]
            await asyncio.gather(*consumers)
            assert sorted(chain.from_iterable(found)) == revisions
            assert all(each == sorted(each) for each in found)

    run(main)


def test_closing_wakes_who_waits(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            mailer = await store.subscription("mailer", ORDERS)
            batches = [asyncio.create_task(mailer.next_batch()) for _ in range(3)]
            each = [asyncio.create_task(anext(mailer, None)) for _ in range(3)]
            await turns()
            await mailer.aclose()
            found = await asyncio.gather(*batches, *each, return_exceptions=True)
            assert [str(error) for error in found[:3]] == ["subscription is closed"] * 3
            assert found[3:] == [None] * 3

    run(main)


def test_one_that_is_dropped_frees_its_name_also_after_it_has_waited(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            for _ in range(3):
                mailer = await store.subscription("mailer", ORDERS)
                assert await mailer.next_batch(timeout=0.001) is None
                task = asyncio.create_task(mailer.next_batch())
                await turns()
                assert len(store._store._hub._topics[ORDERS].waiting) == 1
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert not store._store._hub._topics[ORDERS].waiting
                del mailer, task
                await turns()  # the loop itself holds on to what it has just done
                gc.collect()
                assert is_free(store)
                assert_nothing_is_left(store)

    run(main)


def test_it_belongs_to_one_loop(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store, await store.subscription("mailer", ORDERS) as mailer:
            calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
                mailer.next_batch,
                mailer.rewind,
                mailer.save,
                mailer.aclose,
                mailer.delete,
                lambda: mailer.ack(1),
                lambda: mailer.seek(1),
            ]
            errors: list[str] = []

            async def elsewhere() -> None:
                for call in calls:
                    with pytest.raises(RuntimeError) as caught:
                        await call()
                    errors.append(str(caught.value))

            thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            thread.start()
            await asyncio.to_thread(thread.join)
            assert len(errors) == len(calls)
            assert all("another event loop" in error for error in errors)

    run(main)


def test_a_compaction_waits_for_no_consumer_and_no_consumer_for_it(run: Run, open_aio: OpenAio) -> None:
    """What a subscription is asked before compaction reads the log a page at a time, and lets the loop in between."""

    async def main() -> None:
        async with open_aio(engine="memory") as store, await store.subscription("mailer", ORDERS) as mailer:
            await asyncio.gather(*(store.put(b"other/%d" % number) for number in range(5_000)))
            own = mailer._subscription
            look, held, go = own._look, threading.Event(), threading.Event()
            steps: list[bool] = []

            def noted() -> bool:
                steps.append(look())
                if len(steps) == 2:
                    held.set()
                    assert go.wait(30)
                return steps[-1]

            own._look = noted  # type: ignore[method-assign]
            compacting = asyncio.create_task(store.compact(store.revision))
            assert await asyncio.to_thread(held.wait, 30)
            go.set()
            await compacting
            assert steps[:4] == [False] * 4
            assert steps[-1]
            assert store.compact_revision == store.revision == mailer.revision
            del own._look

    run(main)


# Cancelled


async def used(store: AsyncStore) -> None:
    async with await store.subscription("mailer", ORDERS) as mailer:
        await store.put(b"orders/1")
        async for delivery in mailer:
            await delivery.ack()
            break
        await store.put(b"orders/2")
        await mailer.next_batch()
        await mailer.next_batch(timeout=0.001)
        await mailer.seek(store.revision)
        await mailer.skip()
        await mailer.rewind()
        await (await get(mailer)).ack(durable=False)


async def deleted(store: AsyncStore) -> None:
    async with await store.subscription("mailer", ORDERS) as mailer:
        await mailer.delete()


@pytest.mark.parametrize("use", [used, deleted])
@pytest.mark.parametrize("is_late", [False, True])
def test_cancelled_at_any_await_it_leaves_nothing_open(
    run: Run, tmp_path: Path, use: Callable[[AsyncStore], Coroutine[Any, Any, None]], *, is_late: bool
) -> None:
    async def main() -> None:
        for suspension in range(30):
            async with aio.open(tmp_path / f"{suspension}.mvcc", durability="os") as store:
                await fill(store, 3)
                try:
                    await cancelled_at(use(store), suspension, is_late=is_late)
                except NotSuspendedError:
                    assert suspension > 1
                    return
                # At once: what was cancelled on its way is closed before the name is asked for.
                async with await store.subscription("mailer", ORDERS) as mailer:
                    assert stored(store) <= mailer.revision <= store.revision
                    revision = await store.put(b"orders/3")
                    assert (await taken(mailer))[-1] == revision
                assert is_free(store)
                assert_nothing_is_left(store)
                assert await store.check() == []
        pytest.fail("it suspends for ever")

    run(main)


def test_opening_that_is_cancelled_while_the_writer_is_busy_does_not_happen(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            gate = Gate(store)
            await gate.entered()
            task = asyncio.create_task(store.subscription("mailer", ORDERS))
            await turns()
            task.cancel()
            await gate.open()
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
            assert await store.subscriptions() == []
            assert is_free(store)

    run(main)


def test_an_acknowledgement_counts_also_if_nobody_waits_until_it_is_stored(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store, await store.subscription("mailer", ORDERS) as mailer:
            revision = await store.put(b"orders/1")
            delivery = await get(mailer)
            gate = Gate(store)
            await gate.entered()
            task = asyncio.create_task(delivery.ack())
            await turns()
            task.cancel()
            await turns()
            assert (mailer.revision, stored(store)) == (revision, 1)
            await gate.open()
            await store.sync()
            assert stored(store) == revision
            assert task.cancelled()

    run(main)


@pytest.mark.parametrize("seed", range(2))
def test_consumers_cancelled_at_random_lose_no_delivery(run: Run, open_aio: OpenAio, engine: str, seed: int) -> None:
    random = Random(seed)

    async def consume(mailer: AsyncSubscription, seen: list[int], dealt_with: set[int]) -> None:
        async for delivery in mailer:
            seen.append(delivery.revision)
            await asyncio.sleep(0)  # cancelled here, it is not dealt with
            dealt_with.add(delivery.revision)
            await delivery.ack(durable=random.random() < 0.3)

    async def main() -> None:
        async with open_aio(engine=engine) as store:
            mailer = await store.subscription("mailer", ORDERS)
            seen: list[int] = []
            dealt_with: set[int] = set()
            writing = asyncio.create_task(fill(store, 200))
            tasks: list[asyncio.Task[None]] = []
            while not writing.done() or mailer.lag:
                tasks = [task for task in tasks if not task.done()]
                while len(tasks) < 3:
                    tasks.append(asyncio.create_task(consume(mailer, seen, dealt_with)))
                await turns(random.randrange(20))
                match random.randrange(12):
                    case 0:
                        await mailer.rewind()
                    case 1:  # as after a restart
                        await _end(tasks)
                        await mailer.aclose()
                        mailer = await store.subscription("mailer")
                    case 2:
                        await _end([random.choice(tasks)])
                        await mailer.rewind()
                    case _:
                        pass
                if writing.done() and random.random() < 0.2:
                    await mailer.rewind()  # what a cancelled one had taken
            await _end(tasks)
            assert dealt_with == set(await writing)
            assert set(seen) == dealt_with
            await mailer.aclose()
            assert stored(store) == store.revision
            assert is_free(store)

    run(main)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    answers: list[Awaitable[None]] = list(tasks)
    for answer in await asyncio.gather(*answers, return_exceptions=True):
        assert answer is None or isinstance(answer, asyncio.CancelledError), answer
