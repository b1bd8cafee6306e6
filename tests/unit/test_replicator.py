"""The seam for replication: a store whose commands travel as bytes before they are applied."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import mvccstore
from mvccstore import Command, Compare, ConflictError, KeyRange, Op, Result, Store, StoreError
from mvccstore.codec import pack_command, unpack_command
from mvccstore.types import LeaseGrantRequest, LeaseRevokeRequest


class Log:
    """A replicator that keeps the bytes of every command, and has a store apply what it has read back."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.entries: list[bytes] = []
        self.before_apply: Callable[[], object] = lambda: None
        self.is_closed = False

    def propose(self, command: Command) -> Result:
        packed = pack_command(command)
        self.entries.append(packed)
        meddle, self.before_apply = self.before_apply, lambda: None
        meddle()
        (answer,) = self.store.apply_replicated([unpack_command(packed)], b"%d" % len(self.entries))
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def replicated(open_store: Callable[..., Store], engine: str) -> tuple[Store, Log]:
    logs: list[Log] = []

    def make(store: Store) -> Log:
        logs.append(Log(store))
        return logs[0]

    return open_store(engine=engine, replicator=make), logs[0]


def use(store: Store) -> None:
    """Write in every way there is."""
    store.put(b"a", b"1")
    store.submit(LeaseGrantRequest(7, 5_000))
    store.put(b"leased", b"x", lease=7)
    store.txn(compare=[Compare.value(b"a", "==", b"1")], success=[Op.put(b"b", b"2"), Op.delete(b"a")])
    with store.begin() as txn:
        txn.put(b"c", b"3")
        txn.put(b"c", txn.get(b"c").value + b"3")  # type: ignore[union-attr]
        txn.delete(KeyRange.prefix(b"b"))
    store.submit(LeaseRevokeRequest(7))
    store.compact(4)
    store.set_attributes({"motd": b"hello"})
    store.set_attributes({"motd": None, "theme": b"dark"}, base=1)


def test_store_behind_a_log_is_as_one_without(replicated: tuple[Store, Log], open_store: Callable[..., Store]) -> None:
    store, log = replicated
    use(store)
    local = open_store("local.mvcc")
    use(local)
    assert len(log.entries) == 9
    assert dict(store.attributes()) == dict(local.attributes()) == {"theme": b"dark"}
    assert store.hash_kv() == local.hash_kv()
    assert list(store.scan(KeyRange.all())) == list(local.scan(KeyRange.all()))


def test_log_played_into_another_store_gives_the_same(
    replicated: tuple[Store, Log], open_store: Callable[..., Store]
) -> None:
    store, log = replicated
    use(store)
    follower = open_store("follower.mvcc", engine="lmdb")
    answers = follower.apply_replicated([unpack_command(entry) for entry in log.entries], b"7")
    assert not [answer for answer in answers if isinstance(answer, StoreError)]
    assert follower.replicated_marker() == b"7"
    assert follower.hash_kv() == store.hash_kv()
    assert follower.attributes() == store.attributes()
    assert follower.attributes().version == store.attributes().version == 2


def test_marker_is_committed_with_what_it_marks(replicated: tuple[Store, Log]) -> None:
    store, log = replicated
    assert store.replicated_marker() is None
    store.put(b"k")
    assert store.replicated_marker() == b"1"
    store.compact(1)
    with pytest.raises(mvccstore.CompactedError):
        store.compact(1)
    assert store.replicated_marker() == b"%d" % len(log.entries)


def test_block_that_another_write_came_before_conflicts_and_changes_nothing(replicated: tuple[Store, Log]) -> None:
    store, log = replicated
    store.put(b"n", b"1")
    txn = store.begin()
    txn.put(b"n", b"2")
    log.before_apply = lambda: store.put(b"other")
    with pytest.raises(ConflictError) as raised:
        txn.commit()
    assert raised.value.revision == 3
    assert raised.value.retryable
    assert store.get(b"n").value == b"1"  # type: ignore[union-attr]
    with store.begin() as txn:
        txn.put(b"n", b"2")
    assert store.get(b"n").value == b"2"  # type: ignore[union-attr]


def test_block_without_writes_proposes_nothing(replicated: tuple[Store, Log]) -> None:
    store, log = replicated
    with store.begin() as txn:
        assert txn.get(b"n") is None
    assert log.entries == []


def test_closing_the_store_closes_the_replicator(replicated: tuple[Store, Log]) -> None:
    store, log = replicated
    store.close()
    assert log.is_closed
    with pytest.raises(mvccstore.ClosedError):
        store.apply_replicated([Command(mvccstore.types.PutRequest(b"k"), 0)], b"1")
