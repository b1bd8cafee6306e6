"""Queues: in order, each item at least once, and to one consumer at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from mvccstore import ClosedError, LeaseNotFoundError, Op, Store
from mvccstore.recipes import Item, Queue
from mvccstore.recipes import queue as module
from mvccstore.testing import FakeClock
from tests.recipes.recipes_kit import OWN, SECONDS, nothing_is_left


def got(queue: Queue) -> Item:
    item = queue.get(timeout=0)
    assert item is not None
    return item


def test_first_in_first_out(store: Store) -> None:
    queue = store.queue("q")
    assert queue.get(timeout=0) is None
    revisions = [queue.put(b"%d" % number) for number in range(12)]
    assert queue.qsize() == 12
    for number, revision in enumerate(revisions):
        with got(store.queue("q")) as item:
            assert (item.value, item.revision) == (b"%d" % number, revision)
    assert queue.get(timeout=0) is None
    assert queue.qsize() == 0
    assert store.count(OWN) == 0


def test_an_item_belongs_to_one_at_a_time(store: Store) -> None:
    one, two = store.queue("q"), store.queue("q")
    one.put(b"a")
    one.put(b"b")
    a, b = got(one), got(two)
    assert (a.value, b.value) == (b"a", b"b")
    assert one.get(timeout=0) is None
    a.nack()
    again = got(two)
    assert again.value == b"a", "it comes back at its old place"
    a.ack()  # settled before: nothing happens
    b.ack()
    b.ack()
    assert one.qsize() == 1
    again.ack()
    assert one.qsize() == 0


def test_a_block_that_raises_gives_the_item_back(store: Store) -> None:
    queue = store.queue("q")
    queue.put(b"a")
    with pytest.raises(ZeroDivisionError), got(queue):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), got(queue):
        raise ZeroDivisionError(store.leases()[0].revoke())
    with got(queue) as item:
        item.ack()
    assert queue.qsize() == 0
    queue.close()
    assert nothing_is_left(store)


def test_an_item_comes_back_when_its_consumer_is_gone(timed: Store, clock: FakeClock) -> None:
    timed.queue("q").put(b"a")
    consumer = timed.queue("q", ttl=10)
    item = got(consumer)
    clock.advance(1_000)
    other = timed.queue("q")
    assert other.get(timeout=0) is None, "kept alive by the consumer"
    del consumer
    clock.advance(1_000)
    assert other.get(timeout=0) is None, "kept alive by the item"
    fence = item.fence()
    del item
    clock.advance(9)
    assert other.get(timeout=0) is None
    clock.advance(1)
    assert got(other).value == b"a"
    assert not timed.txn(compare=[fence]).succeeded


def test_acknowledging_too_late_says_so_and_removes_nothing(store: Store) -> None:
    one, two = store.queue("q"), store.queue("q")
    one.put(b"a")
    late = got(one)
    store.leases()[0].revoke()
    mine = got(two)
    for settle in (late.ack, late.nack):
        late._is_settled = False
        with pytest.raises(LeaseNotFoundError):
            settle()
    assert one.qsize() == 1
    with mine:
        assert store.txn(compare=[mine.fence()], success=[Op.put(b"done", b"a")]).succeeded
    one.put(b"b")
    assert got(one).value == b"b", "a consumer whose lease has ended gets a new one"


def test_closing_a_consumer_gives_all_back(store: Store) -> None:
    with store.queue("q") as consumer:
        for value in (b"a", b"b"):
            consumer.put(value)
            got(consumer)
    consumer.close()
    assert [got(consumer).value, got(consumer).value] == [b"a", b"b"]


def test_who_waits_gets_what_is_put_and_what_is_given_back(store: Store, pool: ThreadPoolExecutor) -> None:
    queue = store.queue("q")
    waiting = pool.submit(store.queue("q").get, SECONDS)
    queue.put(b"a")
    item = waiting.result(SECONDS)
    assert item is not None
    assert item.value == b"a"
    waiting = pool.submit(store.queue("q").get, SECONDS)
    item.nack()
    again = waiting.result(SECONDS)
    assert again is not None
    assert again.value == b"a"


def test_many_producers_and_consumers_lose_and_double_nothing(store: Store, pool: ThreadPoolExecutor) -> None:
    def produce(name: int) -> None:
        queue = store.queue("q")
        for number in range(8):
            queue.put(b"%d %d" % (name, number))

    def consume(number: int) -> list[tuple[int, bytes]]:
        seen = []
        queue = store.queue("q")
        while True:
            item = queue.get(SECONDS)
            assert item is not None
            if item.value == b"end":
                item.nack()
                return seen
            if len(seen) % 3 == number % 3 and item.revision % 2:
                seen.append((0, b""))
                item.nack()
                continue
            seen.append((item.revision, item.value))
            item.ack()

    consumers = [pool.submit(consume, number) for number in range(4)]
    for each in [pool.submit(produce, name) for name in range(4)]:
        each.result(SECONDS)
    store.queue("q").put(b"end")
    handled = [each for consumer in consumers for each in consumer.result(SECONDS) if each[0]]
    assert sorted(value for _, value in handled) == sorted(b"%d %d" % (n, m) for n in range(4) for m in range(8))
    in_order = [value for _, value in sorted(handled)]
    for name in range(4):
        own = [value for value in in_order if value.startswith(b"%d " % name)]
        assert own == sorted(own)
    keys = [kv.create_revision for kv in store.range(OWN) if b"/items/" in kv.key]
    assert keys == sorted(keys)


def test_the_order_of_keys_is_that_of_revisions_whoever_is_quicker(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = store.queue("q")
    seen = iter([1, 1, 1, 3, 2, 5])  # what each producer last knew as the revision
    monkeypatch.setattr(module.Blocking, "revision", property(lambda _: next(seen)))
    for number in range(6):
        queue.put(b"%d" % number)
    assert [got(queue).value for _ in range(6)] == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_an_interrupted_get_gives_back_what_it_had_claimed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = store.queue("q")
    queue.put(b"a")
    queue.put(b"b")
    kept = got(queue)
    txn = module.Blocking.txn
    is_first = True

    async def interrupted(*args: object, **named: object) -> object:
        nonlocal is_first
        result = await txn(*args, **named)  # type: ignore[arg-type]
        if is_first:
            is_first = False
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(module.Blocking, "txn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        queue.get(timeout=0)
    assert got(store.queue("q")).value == b"b"
    kept.ack()


def test_closing_the_store_wakes_who_waits_for_an_item(store: Store, pool: ThreadPoolExecutor) -> None:
    waiting = pool.submit(store.queue("q").get)
    while not len(store._hub) and not waiting.done():
        store.put(b"k", b"v")
    store.close()
    with pytest.raises(ClosedError):
        waiting.result(SECONDS)
