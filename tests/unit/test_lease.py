"""Leases: granting, keeping alive, ending; on a clock that stands still until it is moved."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mvccstore
from mvccstore import (
    ClosedError,
    KeyRange,
    LeaseExistsError,
    LeaseNotFoundError,
    Op,
    Retention,
    StorageFullError,
    Store,
    TxnError,
)
from mvccstore.lease import TTL_SECONDS_MAX
from mvccstore.testing import FakeClock
from tests.concurrency.bench import SECONDS, Threads, watch_queue, wrapped
from tests.guarantees import Recorder, watch_problems

OpenStore = Callable[..., Store]
ALL = KeyRange.all()
NO_ROOM = StorageFullError("path", "no room")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timed(open_store: OpenStore, engine: str, clock: FakeClock) -> Store:
    """A store on each engine in turn, whose time is ours."""
    return open_store(engine=engine, clock=clock)


@pytest.fixture
def watched(timed: Store) -> Iterator[Recorder]:
    """A recording of all that happens, held against the promises at the end."""
    recorder = Recorder(timed.watch(ALL, prev_kv=True), ALL, 2, prev_kv=True)
    yield recorder
    assert watch_problems(recorder.take_all(), list(timed.history(ALL, prev_kv=True))) == []
    recorder.watcher.close()


def keys_of(store: Store) -> list[bytes]:
    return [kv.key for kv in store.scan(ALL)]


# Granting


def test_grant_gives_a_lease_that_is_stored_without_a_revision(timed: Store) -> None:
    lease = timed.grant(10)
    assert (timed.revision, timed.stats().leases) == (1, 1)
    assert (lease.ttl, lease.remaining(), lease.is_alive, lease.keys()) == (10, 10, True, [])
    assert timed.lease(lease.id) == lease == timed.lease(lease)
    assert hash(timed.lease(lease.id)) == hash(lease)
    assert timed.leases() == [lease]
    assert str(lease.id) in repr(lease)
    assert lease != lease.id


def test_ids_are_chosen_or_given(timed: Store) -> None:
    chosen = [timed.grant(10).id for _ in range(5)]
    assert chosen == sorted(set(chosen))
    for lease_id in (7, -7, 2**63 - 1, -(2**63)):
        assert timed.grant(10, lease_id=lease_id).id == lease_id
        assert timed.lease(lease_id).is_alive
    timed.grant(10, lease_id=chosen[-1] + 1)
    assert timed.grant(10).id == chosen[-1] + 2  # the next is taken


@pytest.mark.parametrize(
    ("ttl", "error"),
    [
        (0, ValueError),
        (0.0, ValueError),
        (-1, ValueError),
        (-0.001, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (-math.inf, ValueError),
        (TTL_SECONDS_MAX + 1, ValueError),
        (10**300, ValueError),
        ("10", TypeError),
        (b"10", TypeError),
        (None, TypeError),
        (True, TypeError),
        (1j, TypeError),
    ],
)
def test_ttl_that_is_none_is_refused(timed: Store, ttl: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="ttl"):
        timed.grant(ttl)
    assert timed.leases() == []


@pytest.mark.parametrize(
    ("lease_id", "error"),
    [("7", TypeError), (7.0, TypeError), (True, TypeError), (None, TypeError), (2**63, ValueError)],
)
def test_id_that_is_none_is_refused(timed: Store, lease_id: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        timed.grant(10, lease_id=lease_id)
    assert timed.leases() == []


def test_id_that_is_taken_is_refused_and_the_lease_stays_as_it_is(timed: Store, clock: FakeClock) -> None:
    lease = timed.grant(10, lease_id=7)
    clock.advance(4)
    with pytest.raises(LeaseExistsError) as caught:
        timed.grant(100, lease_id=7)
    assert caught.value.lease_id == 7
    assert (lease.ttl, lease.remaining()) == (10, 6)


def test_unknown_id_is_not_found(timed: Store) -> None:
    calls: list[Callable[[], object]] = [lambda: timed.lease(8), lambda: timed.put(b"k", lease=8)]
    lease = timed.grant(10, lease_id=8)
    lease.revoke()
    calls += [lease.revoke, lease.keep_alive, lease.remaining, lease.keys, lambda: lease.ttl]
    for call in calls:
        with pytest.raises(LeaseNotFoundError) as caught:
            call()
        assert caught.value.lease_id == 8
    assert not lease.is_alive
    assert "ended" in repr(lease)
    assert keys_of(timed) == []


@pytest.mark.parametrize("lease_id", ["7", None, 7.0])
def test_lease_of_no_number_is_a_type_error(timed: Store, lease_id: Any) -> None:
    with pytest.raises(TypeError):
        timed.lease(lease_id)


@pytest.mark.parametrize(("ttl", "kept"), [(16.1, 16.1), (0.0001, 0.001), (0.0014, 0.002), (1, 1), (4.1, 4.1)])
def test_ttl_is_kept_to_the_millisecond_and_never_shortened(timed: Store, ttl: float, kept: float) -> None:
    assert timed.grant(ttl).ttl == kept


def test_enormous_ttl_may_be_granted(timed: Store, clock: FakeClock) -> None:
    lease = timed.grant(TTL_SECONDS_MAX)
    clock.advance(TTL_SECONDS_MAX - 1)
    assert lease.remaining() == 1
    clock.advance(1)
    assert not lease.is_alive


# Ending


def test_expiry_deletes_all_keys_in_one_revision(timed: Store, clock: FakeClock, watched: Recorder) -> None:
    lease = timed.grant(10)
    for key in (b"c", b"a", b"b"):
        timed.put(key, b"v", lease=lease)
    timed.put(b"other")
    clock.advance(9.999)
    assert lease.keys() == [b"a", b"b", b"c"]
    assert lease.remaining() == pytest.approx(0.001)
    watched.take_all()
    clock.advance(0.001)
    assert timed.revision == 6
    assert keys_of(timed) == [b"other"]
    batch = watched.take()
    assert batch is not None
    assert [(event.type, event.kv.key) for event in batch.events] == [
        ("delete", b"a"),
        ("delete", b"b"),
        ("delete", b"c"),
    ]
    assert not lease.is_alive
    assert timed.stats().leases == 0


def test_lease_without_keys_ends_without_a_revision(timed: Store, clock: FakeClock) -> None:
    timed.grant(1)
    clock.advance(1)
    assert (timed.revision, timed.leases()) == (1, [])


@pytest.mark.parametrize("ttl", [0.001, 0.1, 0.3, 0.7, 16.1])
@pytest.mark.parametrize("before", [0, 0.1, 0.2, 1.1, 123.4])
def test_lease_ends_at_its_time_and_not_before(open_store: OpenStore, ttl: float, before: float) -> None:
    clock = FakeClock()
    store = open_store(engine="memory", clock=clock)
    clock.advance(before)
    lease = store.grant(ttl)
    clock.advance(ttl - 0.0005)
    assert lease.is_alive
    clock.advance(0.0005)
    assert not lease.is_alive


def test_leases_end_in_their_order_each_as_a_revision(timed: Store, clock: FakeClock, watched: Recorder) -> None:
    for ttl in (3, 1, 2):
        timed.put(b"%d" % ttl, lease=timed.grant(ttl))
    assert [lease.ttl for lease in timed.leases()] == [1, 2, 3]
    watched.take_all()
    clock.advance(60)
    found = [batch.events[0].kv.key for _ in range(3) if (batch := watched.take()) is not None]
    assert found == [b"1", b"2", b"3"]
    assert timed.revision == 7


def test_keep_alive_gives_the_whole_time_again(timed: Store, clock: FakeClock) -> None:
    lease = timed.grant(10)
    timed.put(b"k", lease=lease)
    for _ in range(5):
        clock.advance(9)
        assert lease.keep_alive() == 10
        assert lease.remaining() == 10
    assert timed.revision == 2  # nothing was written
    clock.advance(10)
    with pytest.raises(LeaseNotFoundError):
        lease.keep_alive()
    assert keys_of(timed) == []


def test_revoke_deletes_its_keys_at_once_and_says_how_many(timed: Store, clock: FakeClock, watched: Recorder) -> None:
    lease, other = timed.grant(10), timed.grant(20)
    timed.txn(success=[Op.put(b"a", b"", lease=lease.id), Op.put(b"b", b"", lease=lease.id)])
    timed.put(b"c", lease=other)
    assert lease.revoke() == 2
    assert timed.revision == 4
    assert keys_of(timed) == [b"c"]
    assert timed.leases() == [other]
    clock.advance(10)
    assert timed.revision == 4
    assert watched.take_all().revision == 4


def test_key_goes_with_the_lease_it_had_last(timed: Store, clock: FakeClock) -> None:
    first, second = timed.grant(10), timed.grant(20)
    timed.put(b"moved", lease=first)
    timed.put(b"moved", lease=second)
    timed.put(b"freed", lease=first)
    timed.put(b"freed")
    timed.put(b"kept", lease=first)
    timed.put(b"kept", b"new", ignore_lease=True)
    timed.put(b"deleted", lease=first)
    timed.delete(b"deleted")
    assert (first.keys(), second.keys()) == ([b"kept"], [b"moved"])
    clock.advance(10)
    assert keys_of(timed) == [b"freed", b"moved"]
    clock.advance(10)
    assert keys_of(timed) == [b"freed"]


def test_context_manager_revokes(timed: Store, clock: FakeClock) -> None:
    with timed.grant(10) as lease:
        timed.put(b"k", lease=lease)
    assert (keys_of(timed), lease.is_alive) == ([], False)
    with timed.grant(10) as lease:
        clock.advance(10)  # it has ended already
    assert not lease.is_alive


def test_id_may_be_granted_again_with_another_ttl(timed: Store, clock: FakeClock) -> None:
    timed.grant(5, lease_id=7).revoke()
    lease = timed.grant(10, lease_id=7)
    clock.advance(9)
    assert (lease.ttl, lease.remaining()) == (10, 1)


# Keeping alive by itself


def test_kept_lease_lives_as_long_as_its_object(timed: Store, clock: FakeClock) -> None:
    lease = timed.grant(10, keep_alive=True)
    timed.put(b"k", lease=lease)
    for _ in range(3):
        clock.advance(1_000)
        assert lease.is_alive
    lease_id = lease.id
    del lease
    gc.collect()
    clock.advance(9)
    assert timed.lease(lease_id).keys() == [b"k"]
    clock.advance(1)
    assert keys_of(timed) == []


def test_kept_lease_can_be_revoked(timed: Store, clock: FakeClock) -> None:
    lease = timed.grant(10, lease_id=7, keep_alive=True)
    lease.revoke()
    again = timed.grant(10, lease_id=7)  # not kept, though the old object lives
    clock.advance(10)
    assert not again.is_alive
    assert timed._leases._kept == {}


# Opening again


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_leases_survive_and_have_their_whole_time_again(open_store: OpenStore, engine: str, clock: FakeClock) -> None:
    store = open_store(engine=engine, clock=clock)
    lease = store.grant(10.5, keep_alive=True)
    store.put(b"k", lease=lease)
    clock.advance(10)
    store.close()
    clock.advance(1_000)  # nobody is there
    store = open_store(engine=engine, clock=clock)
    found = store.lease(lease.id)
    assert (found.ttl, found.remaining(), found.keys()) == (10.5, 10.5, [b"k"])
    assert found != lease  # of another store, that is closed
    clock.advance(10.5)
    assert keys_of(store) == []


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_many_leases_are_found_again(open_store: OpenStore, engine: str, clock: FakeClock) -> None:
    store = open_store(engine=engine, clock=clock)
    ids = {store.grant(number + 1).id for number in range(1_005)}
    store.close()
    store = open_store(engine=engine, clock=clock)
    assert {lease.id for lease in store.leases()} == ids
    clock.advance(1_000)
    assert len(store.leases()) == 5


def test_closed_store_keeps_nothing_alive(timed: Store, clock: FakeClock) -> None:
    lease = timed.grant(10)
    timed.close()
    for call in (lease.keep_alive, lease.remaining, lease.keys, lease.revoke, lambda: lease.ttl):
        with pytest.raises(ClosedError):
            call()
    for call in (lambda: timed.grant(1), lambda: timed.lease(lease.id), timed.leases):
        with pytest.raises(ClosedError):
            call()
    clock.advance(10)
    assert lease.id  # and nothing happens to a store that is closed


def test_lease_that_another_thread_had_interrupted_is_known(timed: Store, clock: FakeClock) -> None:
    """A commit that nobody was told of: the table is read anew."""
    kept, gone = timed.grant(10), timed.grant(10, lease_id=7, keep_alive=True)
    clock.advance(5)
    on_commit = timed._leases.on_commit
    timed._leases.on_commit = lambda changes: None  # type: ignore[method-assign]
    gone.revoke()
    timed.grant(30, lease_id=7)
    timed.grant(3, lease_id=8)
    timed._leases.on_commit = on_commit  # type: ignore[method-assign]
    timed._committer._is_stale = True
    timed.put(b"k")
    assert [(lease.id, lease.remaining()) for lease in timed.leases()] == [(8, 3), (kept.id, 5), (7, 30)]
    clock.advance(30)
    assert timed.leases() == []


# What else goes on


def test_lease_due_in_a_block_ends_after_it(timed: Store, clock: FakeClock, watched: Recorder) -> None:
    timed.put(b"k", lease=timed.grant(10))
    with timed.begin() as txn:
        clock.advance(10)  # returns, though this thread holds everybody up
        assert txn.get(b"k") is not None
        txn.put(b"l")
    watched.take_until(4, SECONDS)
    assert [batch.events[0].kv.key for batch, _ in watched.watched.taken] == [b"k", b"l", b"k"]
    assert keys_of(timed) == [b"l"]


def test_writing_a_lease_in_a_block_is_refused(timed: Store) -> None:
    lease = timed.grant(10)
    with timed.begin() as txn:
        for call in (lease.revoke, lambda: timed.grant(10)):
            with pytest.raises(TxnError):
                call()
        txn.put(b"k", lease=lease)
        assert lease.keep_alive() == 10  # which writes nothing
    assert lease.keys() == [b"k"]


def test_block_may_delete_what_a_lease_has(timed: Store, clock: FakeClock) -> None:
    lease = timed.grant(10)
    timed.put(b"k", lease=lease)
    with timed.begin() as txn:
        txn.delete(b"k")
        txn.put(b"k", b"free")
        txn.put(b"l", lease=lease)
    clock.advance(10)
    assert keys_of(timed) == [b"k"]


def test_lease_that_is_being_ended_cannot_be_kept_alive(timed: Store, clock: FakeClock) -> None:
    lease = timed.grant(10)
    timed.put(b"k", lease=lease)
    queued = watch_queue(timed)
    with Threads() as threads, timed.begin():
        threads.start(clock.advance, 10)
        queued.wait(1)  # it has been decided, and waits for the block
        with pytest.raises(LeaseNotFoundError):
            lease.keep_alive()
        assert not lease.is_alive
        assert timed.leases() == []
    assert keys_of(timed) == []


def test_lease_revoked_while_it_expires_ends_once(timed: Store, clock: FakeClock, watched: Recorder) -> None:
    lease = timed.grant(10)
    other = timed.grant(10)
    timed.put(b"k", lease=lease)
    timed.put(b"l", lease=other)
    queued = watch_queue(timed)
    errors: list[Exception] = []

    def revoke() -> None:
        try:
            lease.revoke()
        except LeaseNotFoundError as error:
            errors.append(error)

    with Threads() as threads, timed.begin():
        threads.start(revoke)
        queued.wait(1)
        threads.start(clock.advance, 10)
        queued.wait(1)
    assert keys_of(timed) == errors == timed.leases() == []
    assert timed.revision == 5
    assert watched.take_all().revision == 5


def test_expiry_on_a_full_disk_is_tried_again(
    open_store: OpenStore, engine: str, clock: FakeClock, tmp_path: Any
) -> None:
    full: list[StorageFullError] = []

    def before(name: str, _: int) -> None:
        if full and name == "commit":
            raise full[0]

    store = open_store(engine=wrapped(engine, tmp_path / "full.mvcc", before=before), clock=clock)
    other = open_store("other.mvcc", engine="memory", clock=clock)
    other.put(b"k", lease=other.grant(10))
    leases = [store.grant(10), store.grant(10)]
    for lease in leases:
        store.put(b"%d" % lease.id, lease=lease)
    full.append(NO_ROOM)
    with pytest.raises(StorageFullError):
        clock.advance(10)
    assert keys_of(other) == []  # it is not the other's fault
    assert [lease.remaining() for lease in leases] == [0, 0]
    assert leases[1].keep_alive() == 10  # it has not ended
    assert len(keys_of(store)) == 2
    full.clear()
    clock.advance(0)
    assert [lease.is_alive for lease in leases] == [False, True]
    assert len(keys_of(store)) == 1


def test_full_disk_does_not_keep_retention_from_making_room(open_store: OpenStore, clock: FakeClock) -> None:
    store = open_store(engine="memory", clock=clock, retention=Retention(revisions=2, check_seconds=10))
    lease = store.grant(10)
    for number in range(5):
        store.put(b"k", b"%d" % number, lease=lease)
    submit = store._leases._submit

    def full(request: Any) -> Any:
        del request
        raise NO_ROOM

    store._leases._submit = full
    with pytest.raises(StorageFullError):
        clock.advance(10)
    assert store.compact_revision == 4
    store._leases._submit = submit
    clock.advance(0)
    assert keys_of(store) == []


def test_clock_may_not_go_back(clock: FakeClock) -> None:
    for seconds in (-1, -0.001, math.nan, math.inf):
        with pytest.raises(ValueError, match="clock"):
            clock.advance(seconds)
    assert clock.monotonic() == 0
    clock.advance(0.1)
    clock.advance(0.2)
    assert (clock.monotonic(), clock.time_ms()) == (0.3, FakeClock().time_ms() + 300)


def test_closed_stores_leave_the_clock(open_store: OpenStore, clock: FakeClock) -> None:
    store = open_store(engine="memory", clock=clock)
    assert len(clock._listeners) == 1
    store.close()
    assert clock._listeners == []


def test_one_thread_does_it_on_the_systems_clock(store: Store) -> None:
    with store.watch(b"k") as watcher:
        lease = store.grant(0.02)
        store.put(b"k", lease=lease)
        events = [next(watcher), next(watcher)]
        assert [event.type for event in events] == ["put", "delete"]
        assert not lease.is_alive


def test_shorter_lease_wakes_the_thread_that_waits_for_a_longer_one(store: Store) -> None:
    store.grant(3_600)
    with store.watch(b"k") as watcher:
        store.put(b"k", lease=store.grant(0.25))
        assert [next(watcher).type, next(watcher).type] == ["put", "delete"]


def test_store_whose_time_stands_still_needs_no_thread(timed: Store, clock: FakeClock) -> None:
    """Nor one that looks at that clock again and again."""
    timed.grant(0.001)
    assert timed._due_in() is None
    assert timed._maintainer._thread is None


def test_lease_of_an_interrupted_grant_ends_on_the_systems_clock(store: Store) -> None:
    """Read anew, it wakes the thread, too."""
    with store.watch(b"k") as watcher:
        on_commit = store._leases.on_commit
        store._leases.on_commit = lambda changes: None  # type: ignore[method-assign]
        lease = store.grant(0.01)
        store._leases.on_commit = on_commit  # type: ignore[method-assign]
        store._committer._is_stale = True
        store.put(b"k", lease=lease.id)
        batch = watcher.next_batch(timeout=SECONDS)
        assert batch is not None
        ended = watcher.next_batch(timeout=SECONDS)
        assert ended is not None
        assert ended.events[0].type == "delete"


def test_read_only_store_has_no_leases_of_its_own(open_store: OpenStore, tmp_path: Any, clock: FakeClock) -> None:
    store = open_store(engine="lmdb")
    lease = store.grant(10)
    store.put(b"k", lease=lease)
    store.close()
    with mvccstore.open(tmp_path / "store.mvcc", read_only=True, clock=clock) as reader:
        for call in (lambda: reader.grant(1), lambda: reader.lease(lease.id), reader.leases):
            with pytest.raises(mvccstore.StorageError, match="read-only"):
                call()
        clock.advance(10)
        assert reader.get(b"k") is not None


def test_keep_alive_of_many_threads_and_expiry_leave_no_key_behind(timed: Store, clock: FakeClock) -> None:
    """Whoever is told that a lease lives finds its key: it is not ended in between."""
    leases = [timed.grant(2) for _ in range(8)]
    for lease in leases:
        timed.put(b"%d" % lease.id, lease=lease)
    is_over = threading.Event()

    def keep(lease: mvccstore.Lease) -> None:
        while not is_over.is_set():
            try:
                lease.keep_alive()
            except LeaseNotFoundError:
                timed.sync()  # in the table it is gone before or after the key, never by itself
                return

    with Threads() as threads:
        for lease in leases:
            threads.start(keep, lease)
        for _ in range(40):
            clock.advance(1.5)
        is_over.set()
    alive = {lease.id for lease in timed.leases()}
    assert {int(key) for key in keys_of(timed)} == alive
    assert timed.stats().leases == len(alive)
