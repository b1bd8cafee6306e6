"""Subscriptions: at least once over restarts, and history held back as far as they say, no further."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import mvccstore
from mvccstore import (
    ClosedError,
    CompactedError,
    CompactionHeldError,
    CorruptError,
    Delivery,
    FutureRevisionError,
    KeyRange,
    KeyTooLargeError,
    Limits,
    Op,
    Retention,
    StorageError,
    Store,
    Subscription,
    SubscriptionExistsError,
    SubscriptionInUseError,
    SubscriptionLostError,
    SubscriptionNotFoundError,
    TxnError,
    UnacknowledgedLimitError,
)
from mvccstore import subscription as module
from mvccstore.codec import pack_command, unpack_command
from mvccstore.tables import Table
from mvccstore.testing import FakeClock
from mvccstore.types import SubscriptionAckRequest, SubscriptionDeleteRequest, SubscriptionSaveRequest

OpenStore = Callable[..., Store]

FILE_ENGINES = ("lmdb", "sqlite")
on_files = pytest.mark.parametrize("engine", FILE_ENGINES)
ORDERS = KeyRange.prefix(b"orders/")
DAY = 86_400


def fill(store: Store, count: int, prefix: bytes = b"orders/") -> list[int]:
    return [store.put(b"%s%d" % (prefix, i % 7), b"%d" % i) for i in range(count)]


def taken(subscription: Subscription) -> list[int]:
    """Take all there is, and acknowledge nothing."""
    found = []
    while (delivery := subscription.next_batch(timeout=0)) is not None:
        found.append(delivery.revision)
    return found


def stored(store: Store, name: str = "mailer") -> int:
    """The cursor as a crash would leave it."""
    return store._load_subscription(name).revision


def get(subscription: Subscription) -> Delivery:
    delivery = subscription.next_batch(timeout=20)
    assert delivery is not None
    return delivery


# Delivery


def test_delivers_whole_revisions_from_now_on(store: Store) -> None:
    fill(store, 3)
    with store.subscription("mailer", ORDERS) as mailer:
        assert taken(mailer) == []
        store.put(b"other", b"1")
        revision = store.txn(
            success=[Op.put(b"orders/1", b"a"), Op.put(b"other", b"2"), Op.delete(b"orders/2")]
        ).revision
        delivery = get(mailer)
        assert (delivery.revision, mailer.name, mailer.keys) == (revision, "mailer", ORDERS)
        assert [(event.type, event.kv.key) for event in delivery.events] == [
            ("put", b"orders/1"),
            ("delete", b"orders/2"),
        ]
        assert mailer.next_batch(timeout=0) is None


def test_a_key_can_be_subscribed_to_from_the_past(store: Store) -> None:
    revisions = fill(store, 20)
    keeper = store.subscription("keeper", b"orders/3", start_revision=2)
    assert taken(keeper) == revisions[3::7]


def test_iterates_over_deliveries_until_it_is_closed(store: Store) -> None:
    revisions = fill(store, 3)
    mailer = store.subscription("mailer", ORDERS, start_revision=2)
    found = []
    for delivery in mailer:
        found.append(delivery.revision)
        if len(found) == 3:
            mailer.close()
    assert found == revisions


@on_files
def test_unacknowledged_is_delivered_again_after_a_restart(open_store: OpenStore, engine: str) -> None:
    with open_store(engine=engine) as store:
        mailer = store.subscription("mailer", ORDERS)
        revisions = fill(store, 5)
        for _ in range(2):
            get(mailer).ack()
        assert [get(mailer).revision, get(mailer).revision] == revisions[2:4]
    with open_store(engine=engine) as store:
        more = fill(store, 2)
        mailer = store.subscription("mailer")
        assert mailer.revision == revisions[1]
        assert taken(mailer) == revisions[2:] + more


def test_rewinding_delivers_again_what_is_not_acknowledged(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 5)
    deliveries = [get(mailer) for _ in range(4)]
    deliveries[0].ack()
    deliveries[2].ack()  # out of turn
    assert mailer.revision == revisions[0]
    mailer.rewind()
    assert taken(mailer) == revisions[1:]
    deliveries[1].ack()  # of its first delivery
    assert mailer.revision == revisions[1]


def test_cursor_stops_below_the_oldest_that_is_not_acknowledged(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 4)
    deliveries = [get(mailer) for _ in range(4)]
    for i in (3, 1, 2):
        deliveries[i].ack()
        assert mailer.revision == stored(store) == revisions[0] - 1
    deliveries[0].ack()
    assert mailer.revision == stored(store) == revisions[3]
    deliveries[0].ack()
    assert mailer.lag == 0


def test_acknowledging_a_revision_acknowledges_all_before(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 4)
    taken(mailer)
    mailer.ack(revisions[2])
    assert mailer.revision == stored(store) == revisions[2]
    mailer.ack(revisions[0])
    assert mailer.revision == revisions[2]
    mailer.rewind()
    assert taken(mailer) == revisions[3:]


def test_acknowledged_while_taken_back_is_not_delivered_again(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 4)
    taken(mailer)
    mailer.rewind()
    assert get(mailer).revision == revisions[0]
    mailer.ack(revisions[2])
    assert taken(mailer) == revisions[3:]


def test_what_was_not_delivered_cannot_be_acknowledged(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 2)
    get(mailer)
    with pytest.raises(ValueError, match=f"{revisions[0]} is the last delivered"):
        mailer.ack(revisions[1])
    with pytest.raises(ValueError, match="revision is -1"):
        mailer.ack(-1)
    with pytest.raises(ValueError, match="not a number of seconds"):
        mailer.next_batch(timeout=-1)


def test_lag_falls_to_nothing_also_while_only_others_change(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    fill(store, 5, b"other/")
    assert mailer.lag == 5
    assert mailer.next_batch(timeout=0) is None
    assert (mailer.lag, mailer.revision) == (0, store.revision)


def test_latest_only_leaves_out_what_was_changed_again(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS, start_revision=2, latest_only=True)
    store.txn(success=[Op.put(b"orders/1", b"old"), Op.put(b"orders/2", b"only")])
    store.put(b"orders/1", b"older")
    store.put(b"orders/3", b"deleted")
    last = store.put(b"orders/1", b"new")
    store.delete(b"orders/3")
    events = [event for delivery in (get(mailer), get(mailer), get(mailer)) for event in delivery.events]
    assert [(event.kv.key, event.kv.value) for event in events] == [
        (b"orders/2", b"only"),
        (b"orders/1", b"new"),
        (b"orders/3", b""),
    ]
    assert events[1].revision == last
    assert taken(mailer) == []


def test_latest_only_knows_a_key_whose_tombstone_was_reclaimed(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS, latest_only=True)
    assert taken(mailer) == []  # watches from here on, in the tail
    store.put(b"orders/1", b"1")
    store.delete(b"orders/1")
    store.put(b"other", b"1")
    store.compact(store.revision, physical=True, force=True)
    assert [event.type for event in get(mailer).events] == ["delete"]


# Sharing


def test_a_name_is_open_once(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    with pytest.raises(SubscriptionInUseError) as caught:
        store.subscription("mailer")
    assert caught.value.name == "mailer"
    mailer.close()
    mailer.close()
    with store.subscription("mailer") as again:
        assert not again.is_closed
        mailer.close()
        with pytest.raises(SubscriptionInUseError):
            store.subscription("mailer")


def test_a_subscription_that_is_dropped_frees_its_name(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 2)
    get(mailer).ack(durable=False)
    assert get(mailer).revision == revisions[1]
    assert mailer.next_batch(timeout=0.001) is None  # has listened
    del mailer
    gc.collect()
    assert taken(store.subscription("mailer")) == revisions


def test_threads_share_one_and_each_delivery_goes_to_one_of_them(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    begun = threading.Barrier(5)
    found: list[list[int]] = [[] for _ in range(4)]

    def consume(number: int) -> None:
        begun.wait()
        for delivery in mailer:
            found[number].append(delivery.revision)
            with suppress(ClosedError):  # by whoever got the last one
                delivery.ack(durable=False)
            if delivery.events[0].kv.value == b"last":
                mailer.close()

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(consume, number) for number in range(4)]
        begun.wait()
        revisions = [*fill(store, 100), store.put(b"orders/9", b"last")]
        for each in done:
            each.result()
    assert sorted(chain.from_iterable(found)) == revisions
    assert all(each == sorted(each) for each in found)


def test_a_waiting_consumer_is_woken(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get, mailer)
        revision = store.put(b"orders/1", b"1")
        assert waiting.result().revision == revision


def test_a_poller_is_told_when_there_is_something(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    woken = threading.Event()
    assert not mailer.listen(woken.set)  # not looked yet
    assert mailer.poll() is None
    assert mailer.listen(woken.set)
    store.put(b"other", b"1")
    assert not woken.is_set()
    store.put(b"orders/1", b"1")
    assert woken.wait(20)
    assert not mailer.listen(woken.set)
    assert mailer.poll() is not None


def test_one_that_nobody_listens_to_any_more_is_forgotten_by_the_hub(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    assert mailer.poll() is None
    waiting = store._hub._topics[ORDERS].waiting
    first, second = threading.Event(), threading.Event()
    assert mailer.listen(first.set)
    assert mailer.listen(second.set)
    mailer.unlisten(first.set)
    assert len(waiting) == 1, "the other one still listens"
    mailer.unlisten(second.set)
    mailer.unlisten(second.set)
    assert not waiting
    assert mailer.listen(second.set)
    store.put(b"orders/1", b"1")
    assert second.wait(20)
    assert not first.is_set()
    mailer.unlisten(second.set)
    assert mailer.poll() is not None


def test_catching_up_goes_on_by_a_page_and_takes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvccstore.watch.PAGE_EVENTS", 10)
    mailer = store.subscription("mailer", ORDERS)
    fill(store, 35, b"other/")
    revision = store.put(b"orders/1", b"1")
    steps = 1
    while not mailer.catch_up():
        steps += 1
    assert steps >= 4
    assert mailer.catch_up()
    assert get(mailer).revision == revision
    assert mailer.catch_up(), "there is nothing"


def test_what_cannot_be_looked_up_is_delivered_all_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    mailer = store.subscription("mailer", ORDERS, latest_only=True)
    revision = store.put(b"orders/1", b"1")

    def fail(_: object) -> None:
        raise StorageError(store.path, "unreadable")

    with monkeypatch.context() as failing:
        failing.setattr(Store, "_latest", lambda *_: fail(None))
        with pytest.raises(StorageError, match="unreadable"):
            mailer.poll()
    assert mailer.revision < revision
    assert get(mailer).revision == revision


def test_sought_back_while_an_acknowledgement_was_written_stores_the_next(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 4)
    assert taken(mailer) == revisions
    assert mailer.note_ack(revisions[3], durable=True)
    request = mailer.unsaved()
    assert request is not None
    store._submit(request)
    mailer.seek(revisions[0])
    mailer.saved(request)  # its writer comes back late
    get(mailer).ack()
    assert stored(store) == mailer.revision == revisions[0]


def test_closing_the_subscription_or_the_store_ends_a_wait(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    mailer, other = store.subscription("mailer", ORDERS), store.subscription("other", ORDERS)
    with ThreadPoolExecutor(3) as pool:
        waiting, iterating, in_other = pool.submit(get, mailer), pool.submit(list, mailer), pool.submit(list, other)
        mailer.close()
        with pytest.raises(ClosedError, match="subscription is closed"):
            waiting.result()
        assert iterating.result() == []
        store.close()
        with pytest.raises(ClosedError, match="store is closed"):
            in_other.result()
    for call in (mailer.poll, mailer.rewind, mailer.delete, lambda: mailer.ack(1), lambda: mailer.seek(1)):
        with pytest.raises(ClosedError):
            call()
    with pytest.raises(ClosedError):
        other.seek(1)
    other.close()
    assert other.is_closed


def test_nothing_acknowledged_has_a_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNACKNOWLEDGED_MAX", 3)
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 5)
    first = get(mailer)
    get(mailer)
    get(mailer)
    with pytest.raises(UnacknowledgedLimitError) as caught:
        mailer.next_batch()
    assert (caught.value.size, caught.value.limit) == (4, 3)
    first.ack()
    assert get(mailer).revision == revisions[3]


# Acknowledging


@on_files
def test_acknowledgements_not_durable_are_stored_when_closed(open_store: OpenStore, engine: str) -> None:
    with open_store(engine=engine) as store:
        mailer, other = store.subscription("mailer", ORDERS), store.subscription("other", ORDERS)
        begun = store.revision
        revisions = fill(store, 3)
        for subscription in (mailer, other):
            for _ in range(2):
                get(subscription).ack(durable=False)
        assert (mailer.revision, stored(store)) == (revisions[1], begun)
        mailer.close()
        assert stored(store) == revisions[1]
        mailer = store.subscription("mailer")
    with open_store(engine=engine) as store:
        assert stored(store) == stored(store, "other") == revisions[1]


def test_acknowledgements_not_durable_are_stored_now_and_then(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSAVED_ACKS_MAX", 3)
    mailer = store.subscription("mailer", ORDERS)
    begun = store.revision
    revisions = fill(store, 6)
    saved = []
    for _ in revisions:
        get(mailer).ack(durable=False)
        saved.append(stored(store))
    assert saved == [begun, begun, revisions[2], revisions[2], revisions[2], revisions[5]]


def test_acknowledging_makes_no_revision_and_no_event(store: Store) -> None:
    watcher = store.watch(KeyRange.all())
    mailer = store.subscription("mailer", ORDERS)
    revision = store.put(b"orders/1", b"1")
    get(mailer).ack()
    mailer.seek(2)
    mailer.delete()
    assert store.revision == revision
    batch = watcher.next_batch(timeout=20)
    assert batch is not None
    assert batch.revision == revision
    assert watcher.poll() is None
    assert [kv.key for kv in store.scan(KeyRange.all())] == [b"orders/1"]


def test_of_two_acknowledgements_at_once_the_greater_stays(store: Store) -> None:
    with store.subscription("mailer", ORDERS):
        revisions = fill(store, 3)
        store.submit(SubscriptionAckRequest("mailer", revisions[2]))
        store.submit(SubscriptionAckRequest("mailer", revisions[0]))
        assert stored(store) == revisions[2]
        with pytest.raises(FutureRevisionError):
            store.submit(SubscriptionAckRequest("mailer", revisions[2] + 1))


def test_a_block_takes_but_does_not_acknowledge(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    fill(store, 1)
    with store.begin() as txn:
        delivery = get(mailer)
        txn.put(b"done", delivery.events[0].kv.value)
        with pytest.raises(TxnError):
            delivery.ack()
        delivery.ack(durable=False)
    assert mailer.revision == store.revision - 1


# Moving


def test_seeking_goes_anywhere_there_is_history(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 5)
    taken(mailer)
    mailer.seek(revisions[1])
    assert mailer.revision == stored(store) == revisions[1] - 1
    assert taken(mailer) == revisions[1:]
    mailer.seek(0)
    assert (taken(mailer), mailer.lag) == ([], 0)
    mailer.seek(store.revision + 1)
    assert taken(mailer) == []
    with pytest.raises(FutureRevisionError):
        mailer.seek(store.revision + 2)
    store.compact(revisions[3])
    with pytest.raises(CompactedError):
        mailer.seek(revisions[2])
    mailer.seek(revisions[3])
    assert taken(mailer) == revisions[3:]


def test_it_is_made_with_a_start_as_seeking_takes_it(store: Store) -> None:
    fill(store, 5)
    store.compact(4)
    with pytest.raises(CompactedError):
        store.subscription("mailer", ORDERS, start_revision=3)
    with pytest.raises(FutureRevisionError):
        store.subscription("mailer", ORDERS, start_revision=8)
    assert store.subscriptions() == []
    assert taken(store.subscription("mailer", ORDERS, start_revision=4)) == [4, 5, 6]
    assert taken(store.subscription("next", ORDERS, start_revision=7)) == []


def test_start_of_one_that_exists_is_of_no_account(store: Store) -> None:
    revisions = fill(store, 3)
    store.subscription("mailer", ORDERS, start_revision=2).close()
    assert taken(store.subscription("mailer", ORDERS, start_revision=4)) == revisions


# Names and terms


def test_keys_are_as_they_were_made(store: Store) -> None:
    store.subscription("mailer", ORDERS).close()
    with pytest.raises(SubscriptionExistsError):
        store.subscription("mailer", b"orders/1")
    with pytest.raises(SubscriptionNotFoundError):
        store.subscription("nobody")
    assert store.subscription("mailer", ORDERS).keys == ORDERS


def test_deleting_forgets_it_and_frees_name_and_history(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 5)
    delivery = get(mailer)
    mailer.delete()
    assert mailer.is_closed
    assert store.subscriptions() == []
    store.compact(revisions[-1])
    with pytest.raises(ClosedError):
        delivery.ack()
    with pytest.raises(SubscriptionNotFoundError):
        store.submit(SubscriptionAckRequest("mailer", 2))
    with pytest.raises(SubscriptionNotFoundError):
        store.submit(SubscriptionSaveRequest("mailer", ORDERS, None))
    assert taken(store.subscription("mailer", b"k")) == []


def test_all_are_listed_by_name(store: Store) -> None:
    fill(store, 3)
    assert store.subscriptions() == []
    zoe = store.subscription("zoë", ORDERS, start_revision=3, hold_revisions=1)
    store.subscription("a" * 255, b"k", hold_seconds=1.5).close()
    long, other = store.subscriptions()
    assert (long.name, long.keys, long.revision, long.lag, long.lost) == ("a" * 255, b"k", 4, 0, 0)
    assert (long.hold_revisions, long.hold_seconds, long.is_open, long.is_holding) == (None, 1.5, False, False)
    assert (other.name, other.keys, other.revision, other.lag, other.lost) == ("zoë", ORDERS, 2, 2, 0)
    assert (other.hold_revisions, other.hold_seconds, other.is_open, other.is_holding) == (1, None, True, False)
    taken(zoe)
    zoe.ack(3)
    assert (store.subscriptions()[1].revision, store.subscriptions()[1].is_holding) == (3, True)


def test_limits_stay_unless_they_are_given_again(store: Store) -> None:
    def limits() -> tuple[int | None, float | None]:
        (info,) = store.subscriptions()
        return info.hold_revisions, info.hold_seconds

    store.subscription("mailer", ORDERS).close()
    assert limits() == (1_000_000, None)
    store.subscription("mailer", hold_revisions=0, hold_seconds=2).close()
    assert limits() == (0, 2)
    revision = store.subscription("mailer").revision
    assert limits() == (0, 2)
    fill(store, 1)
    store.subscription("mailer", hold_seconds=0.0001).close()
    assert limits() == (None, 0.001)
    assert stored(store) == revision


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("", ORDERS), {}, ValueError),
        (("a" * 256, ORDERS), {}, ValueError),
        (("\ud800", ORDERS), {}, ValueError),
        ((b"mailer", ORDERS), {}, TypeError),
        (("mailer", "orders"), {}, TypeError),
        (("mailer", b""), {}, ValueError),
        (("mailer", KeyRange.empty()), {}, ValueError),
        (("mailer", b"k" * 101), {}, KeyTooLargeError),
        (("mailer", ORDERS), {"start_revision": -1}, ValueError),
        (("mailer", ORDERS), {"start_revision": 1.0}, TypeError),
        (("mailer", ORDERS), {"hold_revisions": -1}, ValueError),
        (("mailer", ORDERS), {"hold_revisions": 2**63}, ValueError),
        (("mailer", ORDERS), {"hold_revisions": True}, TypeError),
        (("mailer", ORDERS), {"hold_seconds": -0.1}, ValueError),
        (("mailer", ORDERS), {"hold_seconds": float("nan")}, ValueError),
        (("mailer", ORDERS), {"hold_seconds": 10**11}, ValueError),
        (("mailer", ORDERS), {"hold_seconds": "1"}, TypeError),
    ],
)
def test_bad_input_is_refused_and_makes_nothing(
    open_store: OpenStore, arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    store = open_store(engine="memory", limits=Limits(key_bytes_max=100))
    with pytest.raises(error):
        store.subscription(*arguments, **options)
    assert store.subscriptions() == []
    store.subscription("mailer", ORDERS)


@on_files
def test_read_only_one_may_look_but_not_take(open_store: OpenStore, engine: str) -> None:
    with open_store(engine=engine) as store:
        store.subscription("mailer", ORDERS)
    with open_store(engine=engine, read_only=True) as reader:
        assert [(info.name, info.is_open) for info in reader.subscriptions()] == [("mailer", False)]
        with pytest.raises(StorageError, match="read-only"):
            reader.subscription("mailer")


def test_a_damaged_record_is_told(store: Store) -> None:
    store.subscription("mailer", ORDERS).close()
    with closing(store._engine.write()) as txn:
        txn.put(Table.META, b"subscription/mailer", b"damaged")
        txn.commit()
    for call in (lambda: store.subscription("mailer"), store.subscriptions, store.check):
        if call == store.check:
            assert store.check() == ["I11: the record of subscription 'mailer' does not match its checksum"]
            continue
        with pytest.raises(CorruptError):
            call()
    store.close()


# Holding history back


def test_compaction_of_what_is_not_acknowledged_is_refused(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 5)
    get(mailer).ack()
    get(mailer)
    with pytest.raises(CompactionHeldError) as caught:
        store.compact(revisions[4])
    error = caught.value
    assert (error.revision, error.held_revision, error.name) == (revisions[4], revisions[1], "mailer")
    store.compact(revisions[1], physical=True)  # what it needs is still there
    mailer.rewind()
    assert taken(mailer) == revisions[1:]


def test_the_one_furthest_behind_is_named(store: Store) -> None:
    fill(store, 5)
    for name, start_revision in (("a", 4), ("b", 2), ("c", 3)):
        store.subscription(name, ORDERS, start_revision=start_revision).close()
    with pytest.raises(CompactionHeldError) as caught:
        store.compact(store.revision)
    assert (caught.value.name, caught.value.held_revision) == ("b", 2)


def test_one_that_is_up_to_date_holds_nothing(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    fill(store, 2)
    taken(mailer)
    mailer.ack(store.revision)
    fill(store, 5, b"other/")
    store.compact(store.revision)  # nobody had looked
    assert (mailer.revision, stored(store)) == (store.revision, store.revision)
    revision = store.put(b"orders/1", b"1")
    fill(store, 2, b"other/")
    with pytest.raises(CompactionHeldError) as caught:
        store.compact(store.revision)
    assert caught.value.held_revision == revision
    assert get(mailer).revision == revision


def test_what_compaction_found_is_delivered_next(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    fill(store, 2, b"other/")
    revision = store.put(b"orders/1", b"1")
    with pytest.raises(CompactionHeldError):
        store.compact(store.put(b"other", b"1"))
    assert mailer.revision == stored(store) == revision - 1
    assert not mailer.listen(threading.Event().set)
    assert get(mailer).revision == revision
    assert mailer.next_batch(timeout=0) is None


def test_one_over_its_limit_holds_nothing_and_is_told_what_it_lost(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS, hold_revisions=5)
    begun = store.revision
    fill(store, 5)
    with pytest.raises(CompactionHeldError):
        store.compact(store.revision)
    assert store.subscriptions()[0].is_holding
    revisions = fill(store, 1)
    assert not store.subscriptions()[0].is_holding
    store.compact(revisions[0])
    mailer.rewind()
    for _ in range(2):
        with pytest.raises(SubscriptionLostError) as caught:
            mailer.next_batch()
        error = caught.value
        assert (error.name, error.revision, error.compact_revision) == ("mailer", begun + 1, revisions[0])
        assert error.lost == store.subscriptions()[0].lost == 5
    assert mailer.skip() == 5
    assert mailer.skip() == 0
    assert taken(mailer) == revisions


@on_files
def test_loss_is_told_after_a_restart_too(open_store: OpenStore, engine: str) -> None:
    with open_store(engine=engine) as store:
        store.subscription("mailer", ORDERS, hold_revisions=0).close()
        fill(store, 5)
        store.compact(5)
    with open_store(engine=engine) as store:
        mailer = store.subscription("mailer", hold_revisions=10)
        with pytest.raises(CompactedError, match="has lost 3 revisions from 2 on"):
            next(mailer)
        assert not store.subscriptions()[0].is_holding  # what is lost needs no more holding
        assert mailer.skip() == 3
        assert taken(mailer) == [5, 6]
        with pytest.raises(CompactionHeldError):
            store.compact(6)


def test_force_compacts_what_is_held(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 5)
    store.compact(revisions[3], force=True)
    mailer.rewind()
    with pytest.raises(SubscriptionLostError):
        mailer.poll()
    with pytest.raises(ValueError, match="force goes with a revision"):
        store.compact(keep_revisions=1, force=True)


def test_retention_stops_short_of_what_is_held(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    revisions = fill(store, 10)
    for _ in range(4):
        get(mailer).ack(durable=False)
    store.compact(keep_revisions=2)
    assert store.compact_revision == revisions[4]
    taken(mailer)
    mailer.ack(revisions[-1], durable=False)
    store.enforce(Retention(revisions=2))
    assert store.compact_revision == store.revision - 2


def test_time_limit_is_by_the_clock(open_store: OpenStore, engine: str) -> None:
    clock = FakeClock()
    store = open_store(engine=engine, clock=clock, retention=Retention(seconds=60))
    mailer = store.subscription("mailer", ORDERS, hold_seconds=DAY)
    clock.advance(10 * DAY)  # nothing written: nothing held
    revisions = fill(store, 2)
    clock.advance(DAY - 61)
    fill(store, 1)
    clock.advance(61)
    assert store.compact_revision <= revisions[0]
    assert store.subscriptions()[0].is_holding
    clock.advance(60)
    assert store.compact_revision == store.revision
    assert not store.subscriptions()[0].is_holding
    mailer.rewind()
    with pytest.raises(SubscriptionLostError):
        mailer.poll()


def test_both_limits_must_be_kept_to(open_store: OpenStore) -> None:
    clock = FakeClock()
    store = open_store(engine="memory", clock=clock)
    store.subscription("mailer", ORDERS, start_revision=1, hold_seconds=DAY, hold_revisions=3)
    for within_revisions in (True, False):
        fill(store, 2)
        assert store.subscriptions()[0].is_holding is within_revisions
    store.subscription("other", ORDERS, start_revision=1, hold_seconds=DAY)
    assert store.subscriptions()[1].is_holding
    clock.advance(DAY + 0.001)
    assert not store.subscriptions()[1].is_holding


# Elsewhere


@pytest.mark.parametrize("copy", FILE_ENGINES)
def test_backup_and_restore_keep_it(open_store: OpenStore, tmp_path: Path, engine: str, copy: str) -> None:
    store = open_store(engine=engine)
    mailer = store.subscription("mailer", ORDERS, hold_revisions=7)
    revisions = fill(store, 3)
    get(mailer).ack()
    store.backup(tmp_path / "backup", engine=copy)
    mvccstore.restore(tmp_path / "backup", tmp_path / "restored", engine=copy)
    with mvccstore.open(tmp_path / "restored") as restored:
        assert restored.check() == []
        assert restored.subscriptions()[0].hold_revisions == 7
        assert taken(restored.subscription("mailer")) == revisions[1:]


def test_what_it_writes_is_replicated_as_commands(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[bytes] = []
    propose = store._propose

    def record(command: mvccstore.Command) -> mvccstore.Result:
        log.append(pack_command(command))
        return propose(command)

    monkeypatch.setattr(store, "_propose", record)
    mailer = store.subscription("mailer", ORDERS, hold_seconds=5)
    fill(store, 3)
    get(mailer).ack()
    mailer.seek(2)
    with pytest.raises(CompactionHeldError):
        store.compact(4)
    store.compact(3, force=True)
    with mvccstore.open() as member:
        member.apply_replicated([unpack_command(packed) for packed in log], b"9")
        assert member.hash_kv() == store.hash_kv()
        assert member._load_subscription("mailer") == store._load_subscription("mailer")


@on_files
def test_in_a_child_after_a_fork_it_is_closed_and_untouched(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    mailer = store.subscription("mailer", ORDERS)
    fill(store, 2)
    get(mailer).ack(durable=False)
    with mailer._mutex:  # as another thread may hold it just then
        child = os.fork()
        if not child:
            try:
                mailer.poll()
            except ClosedError:
                mailer.close()
                os._exit(0 if mailer.is_closed else 2)
            finally:
                os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert stored(store) < mailer.revision
    assert get(mailer).revision == store.revision


def test_it_says_what_it_is(store: Store) -> None:
    mailer = store.subscription("mailer", ORDERS)
    assert repr(mailer) == "<Subscription 'mailer' at 1>"
    store.submit(SubscriptionDeleteRequest("mailer"))
    fill(store, 1)
    with pytest.raises(SubscriptionNotFoundError):
        get(mailer).ack()
    mailer.close()
    assert repr(mailer) == "<Subscription 'mailer' at 2, closed>"


def test_a_forgotten_one_that_listened_leaves_no_watcher(store: Store) -> None:
    subscription = store.subscription("forgotten", b"k")
    assert subscription.poll() is None
    assert subscription.listen(lambda: None)
    del subscription
    gc.collect()
    assert len(store._hub) == 0
    store.subscription("forgotten").close()  # its name is free
