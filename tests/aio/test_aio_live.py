"""Watchers and leases for tasks."""

from __future__ import annotations

import asyncio
import gc
import threading
from bisect import bisect_left, bisect_right
from random import Random

import pytest

from mvccstore import (
    ClosedError,
    CompactedError,
    KeyRange,
    Keys,
    LeaseExistsError,
    LeaseNotFoundError,
    Op,
    WatchBatch,
)
from mvccstore.aio import AsyncStore, AsyncWatcher
from mvccstore.hub import Hub
from mvccstore.testing import FakeClock
from tests.aio.aio_kit import OpenAio, Run, batches_of, turns
from tests.guarantees import Watched, watch_problems

ALL = KeyRange.all()
PREFIX = KeyRange.prefix(b"k/")


def test_events_come_one_by_one_and_the_revision_says_where_to_go_on(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store, store.watch(PREFIX) as watcher:
            await store.txn(success=[Op.put(b"k/1", b""), Op.put(b"k/2", b""), Op.put(b"other", b"")])
            await store.delete(PREFIX)
            seen = []
            async for event in watcher:
                seen.append((event.type, event.kv.key, event.revision, watcher.revision))
                if len(seen) == 4:
                    break
            assert seen == [
                ("put", b"k/1", 2, 1),
                ("put", b"k/2", 2, 2),
                ("delete", b"k/1", 3, 2),
                ("delete", b"k/2", 3, 3),
            ]
            await store.txn(success=[Op.put(b"k/1", b""), Op.put(b"k/2", b"")])
            assert (await anext(watcher)).kv.key == b"k/1"
            batch = await watcher.next_batch()
            assert batch is not None
            assert [event.kv.key for event in batch.events] == [b"k/2"]
            assert (batch.revision, watcher.revision) == (4, 4)

    run(main)


def test_batches_are_whole_revisions_from_any_revision_on(run: Run, open_aio: OpenAio, engine: str) -> None:
    async def main() -> None:
        async with open_aio(engine=engine) as store:
            for number in range(5):
                await store.txn(success=[Op.put(b"k/%d" % key, b"%d" % number) for key in range(3)])
            watcher = store.watch(PREFIX, start_revision=3, prev_kv=True, filters=["nodelete"])
            seen = []
            async for batch in watcher.batches():
                seen.append(batch)
                if batch.revision == 6:
                    break
            expected = batches_of([event async for event in store.history(PREFIX, start_revision=3, prev_kv=True)])
            assert seen == expected
            await watcher.aclose()
            assert [batch async for batch in watcher.batches()] == []
            assert [event async for event in watcher] == []

    run(main)


def test_next_batch_returns_none_after_its_timeout(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store, store.watch(b"k") as watcher:
            assert await watcher.next_batch(timeout=0) is None
            assert await watcher.next_batch(timeout=0.001) is None
            await store.put(b"k")
            assert (await watcher.next_batch(timeout=float("inf"))).revision == 2
            for wrong in (-1, float("nan")):
                with pytest.raises(ValueError, match="timeout"):
                    await watcher.next_batch(timeout=wrong)

    run(main)


def test_progress_comes_when_the_clock_says_so(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        clock = FakeClock()
        async with open_aio(clock=clock) as store, store.watch(b"k", progress=10) as watcher:
            await store.put(b"other")
            task = asyncio.create_task(watcher.next_batch())
            await turns()
            assert not task.done()
            clock.advance(10)
            assert await task == WatchBatch(2, ())

    run(main)


@pytest.mark.parametrize("seed", range(3))
def test_every_watcher_sees_the_whole_history_in_order(run: Run, open_aio: OpenAio, engine: str, seed: int) -> None:
    random = Random(seed)

    async def write(store: AsyncStore, number: int) -> None:
        for _ in range(30):
            key = b"k/%d" % random.randrange(5)
            match random.randrange(4):
                case 0:
                    await store.delete(key)
                case 1:
                    await store.txn(success=[Op.put(b"k/%d" % k, b"%d" % number) for k in range(3)])
                case 2:
                    await store.transact(lambda txn, key=key: (txn.put(key), txn.put(b"k/9")))
                case _:
                    await store.put(key, b"%d" % number)

    async def follow(watcher: AsyncWatcher, slow: int) -> list[WatchBatch]:
        seen: list[WatchBatch] = []
        async with watcher:
            async for batch in watcher.batches():
                seen.append(batch)
                if batch.events[0].kv.value == b"end":
                    break
                await turns(slow)
        return seen

    async def main() -> None:
        async with open_aio(engine=engine) as store:
            watched = [(keys, start, slow) for keys in (PREFIX, b"k/3") for start, slow in ((1, 0), (2, 3), (40, 1))]
            tasks = [
                asyncio.create_task(follow(store.watch(keys, start_revision=start), slow))
                for keys, start, slow in watched
            ]
            await asyncio.gather(*(write(store, number) for number in range(8)))
            await store.txn(success=[Op.put(b"k/3", b"end")])
            for task, (keys, start, _) in zip(tasks, watched, strict=True):
                assert await task == batches_of([event async for event in store.history(keys, start_revision=start)])

    run(main)


THOUSAND = 1_000
WATCHED: tuple[Keys, ...] = (b"k/1", b"k/3", PREFIX, KeyRange(b"k/2", b"k/4"), ALL)


async def lifetime(store: AsyncStore, random: Random, recorded: list[Watched]) -> None:
    """Open a watcher, take some batches, and close it, or leave it to be collected."""
    keys, filters = random.choice(WATCHED), random.choice(((), (), ("noput",), ("nodelete",)))
    start, prev_kv = max(store.revision + random.choice((1, 1, 3, -5, -40)), 1), random.random() < 0.3
    watcher = store.watch(keys, start_revision=start, prev_kv=prev_kv, filters=filters)
    watched = Watched(keys, start, prev_kv, frozenset(name.removeprefix("no") for name in filters))
    recorded.append(watched)
    try:
        for _ in range(random.randrange(6)):
            batch = await watcher.next_batch(random.choice((0, 0.001, None)))
            if batch is not None:
                watched.taken.append((batch, watcher.revision))
    finally:
        watched.revision = watcher.revision
        if random.random() < 0.6:
            await watcher.aclose()


def test_a_thousand_tasks_watch_for_a_while_as_others_write(
    run: Run, open_aio: OpenAio, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvccstore.hub.TAIL_EVENTS_MAX", 100)
    random = Random(17)

    async def write(store: AsyncStore, number: int) -> None:
        for _ in range(100):
            key = b"k/%d" % random.randrange(5)
            match random.randrange(4):
                case 0:
                    await store.delete(key)
                case 1:
                    await store.txn(success=[Op.put(b"k/%d" % other, b"%d" % number) for other in range(3)])
                case _:
                    await store.put(key, b"%d" % number)

    async def main() -> None:
        async with open_aio(engine=engine) as store:
            recorded: list[Watched] = []
            tasks: list[asyncio.Task[None]] = []
            writing = [asyncio.create_task(write(store, number)) for number in range(4)]
            while len(tasks) < THOUSAND:
                for _ in range(min(random.randrange(30), THOUSAND - len(tasks))):
                    tasks.append(asyncio.create_task(lifetime(store, random, recorded)))
                    if random.random() < 0.2:
                        random.choice(tasks).cancel()  # also before it begins, or after its end
                await turns(random.randrange(12))
            await asyncio.gather(*writing)
            for task in tasks:
                task.cancel()  # those that still wait
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(end) for end in ends} == {type(None), asyncio.CancelledError}
            del tasks, task, ends, writing
            changes = [event async for event in store.history(ALL, prev_kv=True)]
            revisions = [change.revision for change in changes]
            for watched in recorded:
                # What is before its first revision or after its last is not for it.
                own = slice(bisect_left(revisions, watched.first), bisect_right(revisions, watched.revision))
                assert watch_problems(watched, changes[own]) == []
            assert len(recorded) > 900, "too many were cancelled before they began"
            assert sum(len(watched.events()) for watched in recorded) > THOUSAND
            await turns()  # the loop itself holds on to what it has just done
            gc.collect()
            hub = hub_of(store)
            assert (len(hub), hub._events, hub._bytes, len(hub._order), len(hub._index)) == (0, 0, 0, 0, 0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


def test_a_thousand_watchers_are_woken_by_one_call(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(engine="memory") as store:
            watchers = [store.watch(PREFIX) for _ in range(1_000)]
            tasks = [asyncio.create_task(watcher.next_batch()) for watcher in watchers]
            await turns()
            calls = 0
            deliver = store._courier._deliver

            def counted() -> None:
                nonlocal calls
                calls += 1
                deliver()

            store._courier._deliver = counted
            # Held up as by other work, the loop finds all of them at once.
            thread = threading.Thread(target=store._store.put, args=(b"k/1",))
            thread.start()
            thread.join()
            assert {batch.revision for batch in await asyncio.gather(*tasks)} == {2}
            assert calls == 1
            for watcher in watchers:
                watcher.close()
            assert len(store._store._hub) == 0

    run(main)


def test_a_long_catch_up_lets_the_loop_go_on(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(engine="memory") as store:
            await asyncio.gather(*(store.put(b"other/%d" % number) for number in range(5_000)))
            await asyncio.gather(*(store.put(b"k/%d" % number) for number in range(500)))
            count = [0]

            async def look() -> None:
                while True:
                    count[0] += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(look())
            async with store.watch(PREFIX, start_revision=1) as watcher:
                await turns(2)
                before = count[0]
                assert (await anext(watcher)).revision == 5_002
                # One turn for each page of what is not for it.
                assert count[0] - before >= 4
                before = count[0]
                for _ in range(499):
                    await anext(watcher)
                assert count[0] - before >= 4
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main)


def test_history_that_is_gone_ends_the_watcher(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            for _ in range(5):
                await store.put(b"k")
            watcher = store.watch(b"k", start_revision=2)
            await store.compact(5)
            with pytest.raises(CompactedError) as caught:
                await anext(watcher)
            assert (caught.value.revision, caught.value.compact_revision) == (2, 5)
            assert watcher.is_closed
            with pytest.raises(CompactedError):
                store.watch(b"k", start_revision=4)
            for wrong in (lambda: store.watch(KeyRange.empty()), lambda: store.watch(b"k", start_revision=-1)):
                with pytest.raises(ValueError, match=r"empty|revision"):
                    wrong()

    run(main)


def test_one_task_at_a_time_takes_from_a_watcher(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store, store.watch(b"k") as watcher:
            first = asyncio.create_task(watcher.next_batch())
            await turns()
            with pytest.raises(RuntimeError, match="another task"):
                await watcher.next_batch()
            await store.put(b"k")
            assert (await first).revision == 2

    run(main)


@pytest.mark.parametrize("closer", ["close", "aclose", "thread", "store"])
def test_closing_wakes_who_waits(run: Run, open_aio: OpenAio, closer: str) -> None:
    async def main() -> None:
        async with open_aio() as store:
            watchers = [store.watch(keys) for keys in (b"k", PREFIX, ALL) for _ in range(3)]
            batches = [asyncio.create_task(watcher.next_batch()) for watcher in watchers[::2]]
            events = [asyncio.create_task(anext(watcher, None)) for watcher in watchers[1::2]]
            await turns()
            for watcher in watchers:
                match closer:
                    case "close":
                        watcher.close()
                    case "aclose":
                        await watcher.aclose()
                    case "thread":
                        thread = threading.Thread(target=watcher.close)
                        thread.start()
                        thread.join()
            if closer == "store":
                await store.aclose()
            found = await asyncio.gather(*batches, *events, return_exceptions=True)
            assert [type(error) for error in found[: len(batches)]] == [ClosedError] * len(batches)
            if closer == "store":
                assert [type(error) for error in found[len(batches) :]] == [ClosedError] * len(events)
            else:
                assert found[len(batches) :] == [None] * len(events)

    run(main)


def test_closing_is_told_to_watchers_while_a_writer_still_writes(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            go = threading.Event()
            write = asyncio.create_task(store.transact(lambda txn: (go.wait(30), txn.put(b"k"))[1]))
            task = asyncio.create_task(store.watch(b"k").next_batch())
            await turns()
            closing = asyncio.create_task(store.aclose())
            with pytest.raises(ClosedError):
                await task
            assert not closing.done()
            go.set()
            await asyncio.gather(write, closing)

    run(main)


def hub_of(store: AsyncStore) -> Hub:
    return store._store._hub


def test_a_watcher_that_is_dropped_is_closed_also_after_it_has_waited(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store, store.watch(b"k") as stays:
            for _ in range(3):
                watcher = store.watch(b"k")
                assert await watcher.next_batch(timeout=0.001) is None
                task = asyncio.create_task(watcher.next_batch())
                await turns()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                del watcher, task
                await turns()  # the loop itself holds on to what it has just done
                gc.collect()
                assert len(hub_of(store)) == 1
            topic = hub_of(store)._topics[b"k"]
            assert not topic.waiting
            task = asyncio.create_task(stays.next_batch())
            for _ in range(3):
                other = store.watch(b"k")
                waits = asyncio.create_task(other.next_batch())
                await turns()
                assert len(topic.waiting) == 2
                other.close()
                with pytest.raises(ClosedError):
                    await waits
                assert len(topic.waiting) == 1
            await store.put(b"k")
            await task

    run(main)


# Leases


def test_a_lease_holds_its_keys_until_it_ends(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        clock = FakeClock()
        async with open_aio(clock=clock) as store:
            lease = await store.grant(ttl=10)
            await store.put(b"b", lease=lease)
            await store.put(b"a", lease=lease)
            assert (lease.ttl, await lease.remaining(), lease.is_alive) == (10.0, 10.0, True)
            assert await lease.keys() == [b"a", b"b"]
            clock.advance(7)
            assert (await lease.remaining(), await lease.keep_alive(), await lease.remaining()) == (3.0, 10.0, 10.0)
            same = await store.lease(lease)
            assert (same, hash(same), int(same.id)) == (lease, hash(lease), lease.id)
            assert await store.leases() == [lease]
            assert repr(lease) == f"<AsyncLease {lease.id}>"
            with store._store.watch(b"a") as watcher:
                clock.advance(10)
                assert watcher.next_batch(timeout=0).revision == 4  # type: ignore[union-attr]
            assert (await store.count(ALL), store.revision, lease.is_alive) == (0, 4, False)
            for use in (lease.remaining, lease.keep_alive, lease.keys, lease.revoke, lambda: store.lease(lease)):
                with pytest.raises(LeaseNotFoundError):
                    await use()

    run(main)


def test_a_lease_is_revoked_at_the_end_of_its_block(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            async with await store.grant(ttl=100) as lease:
                await store.put(b"k", lease=lease)
            assert await store.get(b"k") is None
            async with await store.grant(ttl=100, lease_id=7) as other:
                with pytest.raises(LeaseExistsError):
                    await store.grant(ttl=100, lease_id=7)
                assert await other.revoke() == 0
            assert await store.leases() == []

    run(main)


def test_ids_that_are_taken_are_not_given_again(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(clock=FakeClock()) as store:
            first = await store.grant(ttl=10)
            taken = [await store.grant(ttl=10, lease_id=first.id + number) for number in (1, 2)]
            store._store._leases._last_id = first.id
            found = await asyncio.gather(*(store.grant(ttl=10) for _ in range(5)))
            assert len({first, *taken, *found}) == 8

    run(main)


def test_a_lease_that_is_kept_alive_lives_as_long_as_its_object(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        clock = FakeClock()
        async with open_aio(clock=clock) as store:
            lease = await store.grant(ttl=1, keep_alive=True)
            for _ in range(5):
                clock.advance(1)
            assert lease.is_alive
            del lease
            gc.collect()
            clock.advance(1)
            assert await store.leases() == []

    run(main)
