"""Elections: one leader, candidates in order, and observers who miss nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from mvccstore import ClosedError, LeaseNotFoundError, Store
from mvccstore.recipes import Observer
from mvccstore.testing import FakeClock
from tests.recipes.recipes_kit import OWN, SECONDS, changes_awaited, nothing_is_left


def value_of(observer: Observer) -> bytes:
    leader = observer.next(SECONDS)
    assert leader is not None
    return leader.value


def test_one_leads_until_they_resign(store: Store) -> None:
    first, second = store.election("e"), store.election("e")
    assert first.leader() is None
    assert first.campaign(b"1")
    assert not second.campaign(b"2", timeout=0)
    leader = second.leader()
    assert leader is not None
    assert (leader.value, leader.create_revision) == (b"1", first.revision)
    assert (first.is_leader, second.is_leader) == (True, False)
    first.resign()
    assert second.campaign(b"2", timeout=0)
    assert second.revision > leader.create_revision
    second.resign()
    assert nothing_is_left(store)


def test_candidates_lead_in_the_order_they_came(store: Store, pool: ThreadPoolExecutor) -> None:
    first = store.election("e")
    first.campaign(b"first")

    def lead(value: bytes) -> None:
        election = store.election("e")
        election.campaign(value)
        election.resign()

    with store.election("e").observe() as observer:
        assert value_of(observer) == b"first"
        with store.watch(OWN) as watcher:
            waiting = []
            for number in range(5):
                waiting.append(pool.submit(lead, b"%d" % number))
                changes_awaited(watcher, 1)
        assert observer.next(timeout=0) is None, "candidates are no news"
        first.resign()
        assert [value_of(observer) for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        for each in waiting:
            each.result(SECONDS)


def test_a_leader_can_say_something_new(store: Store) -> None:
    election = store.election("e")
    election.campaign(b"1")
    with election.observe() as observer:
        assert value_of(observer) == b"1"
        election.proclaim(b"2")
        assert election.campaign(b"3"), "who leads proclaims"
        assert [value_of(observer), value_of(observer)] == [b"2", b"3"]
    revision = election.revision
    election.resign()
    assert revision > election.revision == 0


def test_an_observer_sees_leaders_come_and_go(timed: Store, clock: FakeClock) -> None:
    with timed.election("e").observe() as observer:
        assert observer.next(timeout=0) is None
        one = timed.election("e", ttl=10)
        one.campaign(b"1")
        del one
        clock.advance(10)
        two = timed.election("e", ttl=10)
        two.campaign(b"2")
        clock.advance(100)
        assert [value_of(observer), value_of(observer)] == [b"1", b"2"]
        assert observer.next(timeout=0) is None
        assert two.is_leader


def test_an_observer_that_falls_behind_goes_on_with_who_leads_now(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvccstore.hub.TAIL_EVENTS_MAX", 1)
    election = store.election("e")
    election.campaign(b"0")
    with election.observe() as observer:
        assert value_of(observer) == b"0"
        for number in range(1, 10):
            election.proclaim(b"%d" % number)
        with store.watch(b"other"):
            store.put(b"other", b"pushes the tail out")
        store.compact(store.revision)
        assert value_of(observer) == b"9"
        election.proclaim(b"10")
        assert value_of(observer) == b"10"


def test_closing_an_observer_ends_it(store: Store, pool: ThreadPoolExecutor) -> None:
    store.election("e").observe().close()
    election = store.election("e")
    election.campaign(b"1")
    observer = election.observe()
    seen = pool.submit(list, observer)
    election.proclaim(b"2")
    observer.close()
    assert [kv.value for kv in seen.result(SECONDS)] in ([], [b"1"], [b"2"], [b"1", b"2"])
    with pytest.raises(ClosedError, match="observer is closed"):
        observer.next()
    left = election.observe()
    store.close()
    with pytest.raises(ClosedError, match="store is closed"):
        next(left)


def test_a_leadership_that_was_lost_says_so(store: Store) -> None:
    election = store.election("e")
    for end in (election.resign, lambda: election.proclaim(b"2")):
        assert election.campaign(b"1", timeout=0)
        fence = election.fence()
        store.leases()[0].revoke()
        assert not election.is_leader
        assert not store.txn(compare=[fence]).succeeded
        with pytest.raises(LeaseNotFoundError):
            end()
        with pytest.raises(RuntimeError, match="campaign first"):
            end()
    with pytest.raises(RuntimeError, match="campaign first"):
        election.fence()
    assert nothing_is_left(store)
