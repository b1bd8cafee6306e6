"""A store in memory goes back to a mark, and nothing of what came after is left."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

import mvccstore
from mvccstore import CompactedError, KeyRange, Op, Store, StoreError, TxnError
from mvccstore.rewind import Mark, mark, rewind
from mvccstore.testing import FakeClock

KEYS = [b"%d" % number for number in range(30)]
ALL = KeyRange.all()


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store(engine="memory", clock=FakeClock())


def everything(store: Store) -> object:
    """Return all that a store shows of itself."""
    oldest = max(store.compact_revision, 1)
    return (
        store.revision,
        store.compact_revision,
        list(store.history(ALL, start_revision=oldest + 1)) if store.revision > oldest else [],
        [store.range(ALL, revision=revision).kvs for revision in range(oldest, store.revision + 1)],
        [(lease.id, lease.ttl, lease.keys()) for lease in store.leases()],
        store.attributes(),
        store.hash_kv(),
    )


def change(store: Store, rng: random.Random) -> None:
    """Change something."""
    kind = rng.randrange(9)
    if kind < 3:
        store.put(rng.choice(KEYS), rng.randbytes(rng.randrange(5)))
    elif kind == 3:
        store.delete(KeyRange(*sorted(rng.sample(KEYS, 2))))
    elif kind == 4:
        store.txn(success=[Op.put(key, b"t") for key in rng.sample(KEYS, 3)])
    elif kind == 5:
        store.put(rng.choice(KEYS), lease=store.grant(ttl=rng.randrange(1, 50)))
    elif kind == 6 and store.leases():
        rng.choice(store.leases()).revoke()
    elif kind == 7:
        store.set_attributes({rng.choice("abc"): rng.randbytes(2)})
    elif kind == 8 and store.revision > store.compact_revision + 5:
        store.compact(store.revision - 3, physical=rng.random() < 0.5)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_was_changed_is_as_it_was(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    marks: list[tuple[Mark, object]] = []
    for _ in range(120):
        if rng.random() < 0.1 and len(marks) < 4:
            marks.append((mark(store), everything(store)))
        if rng.random() < 0.08 and marks:
            number = rng.randrange(len(marks))
            to, then = marks[number]
            rewind(store, to)
            assert everything(store) == then
            assert store.check() == []
            # What was noted after it is of a time that is not any more.
            del marks[number + 1 :]
        change(store, rng)


def test_the_next_write_has_the_revision_that_the_first_one_had(store: Store) -> None:
    store.put(b"a", b"1")
    begun = mark(store)
    assert store.put(b"a", b"2") == store.put(b"b", b"2") - 1 == 3
    for _ in range(3):
        rewind(store, begun)
        assert store.put(b"a", b"3") == 3
        kv = store.get(b"a")
        assert kv is not None
        assert (kv.version, kv.value) == (2, b"3")


def test_a_later_mark_is_good_after_going_back_to_an_earlier_one_only_if_it_was_made_since(store: Store) -> None:
    first = mark(store)
    store.put(b"a", b"1")
    rewind(store, first)
    store.put(b"b", b"1")
    second = mark(store)
    store.put(b"c", b"1")
    rewind(store, second)
    assert [kv.key for kv in store.range(ALL).kvs] == [b"b"]
    rewind(store, first)
    assert store.revision == 1


def test_leases_are_those_of_the_mark_and_have_what_they_had_left_then(open_store: Callable[..., Store]) -> None:
    clock = FakeClock()
    store = open_store(engine="memory", clock=clock)
    store.put(b"kept", lease=store.grant(ttl=14, lease_id=1))
    clock.advance(4)
    begun = mark(store)
    store.put(b"gone", lease=store.grant(ttl=5, lease_id=2))
    clock.advance(6)
    assert [lease.id for lease in store.leases()] == [1]
    clock.advance(4)
    assert store.leases() == []
    rewind(store, begun)
    assert [(lease.id, lease.remaining(), lease.keys()) for lease in store.leases()] == [(1, 10, [b"kept"])]
    assert store.lease(1).ttl == 14
    clock.advance(9)
    rewind(store, begun)
    clock.advance(9)
    assert store.lease(1).remaining() == 1
    assert store.lease(1).keep_alive() == 14  # kept alive, it has all of it again
    rewind(store, begun)
    clock.advance(10)
    assert store.leases() == []
    assert store.get(b"kept") is None


def test_watchers_are_cut_as_by_a_compaction(store: Store) -> None:
    store.put(b"a", b"1")
    begun = mark(store)
    idle, behind, ahead = store.watch(ALL), store.watch(b"a", start_revision=2), store.watch(b"a", start_revision=100)
    store.put(b"a", b"2")
    waiting = store.watch(b"none")
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            waiting.next_batch()
        except CompactedError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    rewind(store, begun)
    thread.join(60)
    assert len(raised) == 1
    for watcher in (idle, behind, ahead):
        with pytest.raises(CompactedError) as found:
            watcher.next_batch(timeout=0)
        assert found.value.compact_revision == 3
        assert watcher.is_closed
    with store.watch(b"a", start_revision=3) as again:
        store.put(b"a", b"3")
        batch = again.next_batch(timeout=0)
        assert batch is not None
        assert (batch.revision, batch.events[0].kv.value) == (3, b"3")


def test_what_cannot_go_back_says_so(open_store: Callable[..., Store], store: Store) -> None:
    on_disk = open_store("disk", engine="lmdb")
    with pytest.raises(StoreError, match="only a store in memory can"):
        mark(on_disk)
    other = open_store("other", engine="memory")
    with pytest.raises(StoreError, match="of another store"):
        rewind(store, mark(other))
    begun = mark(store)
    with store.begin() as txn:
        txn.put(b"a", b"1")
        with pytest.raises(TxnError):
            rewind(store, begun)
    assert store.revision == 2
    closed = mvccstore.open()
    closed.close()
    with pytest.raises(mvccstore.ClosedError):
        mark(closed)


def test_writers_beside_it_lose_nothing_that_comes_after(store: Store) -> None:
    begun = mark(store)
    is_over = threading.Event()

    def write(name: bytes) -> None:
        while not is_over.is_set():
            store.put(name, b"x")

    threads = [threading.Thread(target=write, args=(b"%d" % number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        rewind(store, begun)
    is_over.set()
    for thread in threads:
        thread.join()
    assert store.check() == []
    assert len(list(store.history(ALL, start_revision=2))) == store.revision - 1
