"""The Lock and Election services, held against a real etcd: by tables, and by conversations in which somebody waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

import pytest

import mvccstore
from mvccstore.server import serve
from mvccstore.server.messages import election, lock, rpc
from mvccstore.testing import FakeClock
from tests.wire.calls import KV, delete, everything, grant, judge, put, text, time_to_live
from tests.wire.client import Client, Endpoint, RpcFailure
from tests.wire.differential import Case, Do, Post, Send, Streaming, StreamingPost, Take, Unary
from tests.wire.pair import NEEDS_ORACLE, Pair

pytestmark = NEEDS_ORACLE
LOCK, ELECTION = "/v3lockpb.Lock", "/v3electionpb.Election"
AT_DEADLINE = {"DEADLINE_EXCEEDED", "CANCELLED"}
"""Client and server both see it pass, and which of them is first is nobody's doing."""
GRANT, REVOKE = "/etcdserverpb.Lease/LeaseGrant", "/etcdserverpb.Lease/LeaseRevoke"


def take(name: bytes, lease: int = 0) -> Unary:
    return Unary(f"{LOCK}/Lock", lock.LockRequest(name=name, lease=lease))


def give(key: bytes) -> Unary:
    return Unary(f"{LOCK}/Unlock", lock.UnlockRequest(key=key))


def campaign(name: bytes, lease: int, value: bytes = b"") -> Unary:
    return Unary(f"{ELECTION}/Campaign", election.CampaignRequest(name=name, lease=lease, value=value))


def leader_key(name: bytes, key: bytes, rev: int, lease: int) -> election.LeaderKey:
    return election.LeaderKey(name=name, key=key, rev=rev, lease=lease)


def proclaim(leader: election.LeaderKey | None, value: bytes) -> Unary:
    return Unary(f"{ELECTION}/Proclaim", election.ProclaimRequest(leader=leader, value=value))


def resign(leader: election.LeaderKey | None) -> Unary:
    return Unary(f"{ELECTION}/Resign", election.ResignRequest(leader=leader))


def leader(name: bytes) -> Unary:
    return Unary(f"{ELECTION}/Leader", election.LeaderRequest(name=name))


def observing(name: bytes, *steps: Any) -> Streaming:
    return Streaming(f"{ELECTION}/Observe", (Send(election.LeaderRequest(name=name)), *steps))


LEADER = leader_key(b"e", b"e/abc", 2, 0xABC)
CASES = (
    Case(
        "locks",
        (
            *(
                grant(600, 0xABC),
                take(b"m", 0xABC),
                take(b"m", 0xABC),
                everything(),
                take(b"", 0xABC),
                take(b"x/", 0xABC),
            ),
            *(take(b"m\xff\0", 0xABC), everything(), give(b"m/abc"), give(b"m/abc"), give(b"none"), give(b"")),
            *(take(b"m", 404), take(b"m", -1), everything(), time_to_live(0xABC)),
        ),
    ),
    Case("a lock without a lease", (take(b"m"), everything())),
    Case(
        "locks in the gateway",
        (
            grant(600, 0xABC),
            Post("/v3/lock/lock", {"name": text(b"m"), "lease": 0xABC}),
            Post("/v3/lock/lock", {"name": text(b"m"), "lease": "404"}),
            Post("/v3/lock/unlock", {"key": text(b"m/abc")}),
            Post("/v3/lock/unlock", {}),
            everything(),
        ),
    ),
    Case(
        "an election of one",
        (
            *(leader(b"e"), grant(600, 0xABC), campaign(b"e", 0xABC, b"1"), leader(b"e"), everything()),
            *(campaign(b"e", 0xABC, b"1"), campaign(b"e", 0xABC, b"2"), leader(b"e"), everything()),
            *(proclaim(LEADER, b"3"), leader(b"e"), proclaim(None, b"x"), proclaim(election.LeaderKey(), b"x")),
            *(proclaim(leader_key(b"e", b"e/abc", 7, 0xABC), b"x"), proclaim(leader_key(b"e", b"e/abc", 2, 404), b"x")),
            *(proclaim(leader_key(b"", b"e/abc", 2, 0xABC), b"4"), everything()),
            *(resign(None), resign(election.LeaderKey()), resign(leader_key(b"e", b"e/abc", 7, 0xABC)), leader(b"e")),
            *(resign(LEADER), leader(b"e"), resign(LEADER), everything()),
            *(campaign(b"e", 404), campaign(b"", 0xABC, b"1"), leader(b""), everything()),
        ),
    ),
    Case("a leader that has no lease", (campaign(b"e", 0, b"1"), leader(b"e"))),
    Case(
        "elections in the gateway",
        (
            grant(600, 0xABC),
            Post("/v3/election/leader", {"name": text(b"e")}),
            Post("/v3/election/campaign", {"name": text(b"e"), "lease": 0xABC, "value": text(b"1")}),
            Post("/v3/election/leader", {"name": text(b"e")}),
            Post("/v3/election/proclaim", {"value": text(b"1")}),
            Post(
                "/v3/election/proclaim",
                {"leader": {"name": text(b"e"), "key": text(b"e/abc"), "rev": 2, "lease": 0xABC}, "value": text(b"2")},
            ),
            StreamingPost("/v3/election/observe", {"name": text(b"e")}, (Take(1), Do(put(b"e/abc", b"3")), Take(1))),
            Post("/v3/election/resign", {"leader": {"name": text(b"e"), "key": text(b"e/abc"), "rev": "2"}}),
            Post("/v3/election/resign", {}),
        ),
    ),
    Case(
        "observing",
        (
            *(grant(600, 0xABC), grant(600, 0xDEF), campaign(b"e", 0xABC, b"1"), put(b"other")),
            observing(b"e", Take(1), Do(proclaim(leader_key(b"e", b"e/abc", 2, 0xABC), b"2")), Take(1)),
            observing(
                b"e",
                *(Take(1), Do(put(b"e/def", b"next", lease=0xDEF)), Do(delete(b"e/abc")), Take(1)),
                *(Do(put(b"e/def", b"more")), Take(1), Do(put(b"e/def", b"and more")), Take(1)),
            ),
        ),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_answers_are_etcds(fresh_pair: Pair, case: Case) -> None:
    judge(fresh_pair, case)


# Waiting


class Contest:
    """Contenders on one server, each with a connection of its own."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.client = Client(endpoint)
        self.pool = ThreadPoolExecutor(16)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.pool.shutdown()

    def grant(self, *leases: int, ttl: int = 600) -> None:
        for lease in leases:
            self.client.unary(GRANT, rpc.LeaseGrantRequest(ID=lease, TTL=ttl))

    def later(self, operation: Unary, timeout: float = 60) -> Future[Any]:
        """Have a call made whose answer may take its time."""

        def call() -> Any:
            with Client(self.endpoint) as client:
                return client.unary(operation.method, operation.request, timeout=timeout)

        return self.pool.submit(call)

    def keys(self, prefix: bytes) -> list[bytes]:
        request = rpc.RangeRequest(key=prefix, range_end=prefix + b"\xff", sort_target=rpc.RangeRequest.CREATE)
        return [kv.key for kv in self.client.unary(f"{KV}/Range", request).kvs]

    def wait_for(self, prefix: bytes, count: int) -> None:
        """Return when so many stand in line."""
        while len(self.keys(prefix)) != count:
            pass

    def play(self, operation: Unary) -> Any:
        return self.client.unary(operation.method, operation.request)


def failure(future: Future[Any]) -> tuple[str, str]:
    with pytest.raises(RpcFailure) as found:
        future.result(60)
    return found.value.code, found.value.message


def waits_its_turn(contest: Contest) -> object:
    contest.grant(1, 2, 3)
    contest.play(take(b"m", 1))
    second = contest.later(take(b"m", 2))
    contest.wait_for(b"m/", 2)
    third = contest.later(take(b"m", 3))
    contest.wait_for(b"m/", 3)
    contest.play(give(b"m/1"))
    won = second.result(60)
    assert not third.done()
    contest.play(give(b"m/2"))
    last = third.result(60)
    return won.key, won.header.revision, last.key, last.header.revision, contest.keys(b"m/")


def goes_on_when_a_lease_ends(contest: Contest) -> object:
    contest.grant(1, 2)
    contest.play(take(b"m", 1))
    second = contest.later(take(b"m", 2))
    contest.wait_for(b"m/", 2)
    contest.client.unary(REVOKE, rpc.LeaseRevokeRequest(ID=1))
    return second.result(60).key


def gives_its_place_up_at_its_deadline(contest: Contest) -> object:
    contest.grant(1, 2)
    contest.play(take(b"m", 1))
    second = contest.later(take(b"m", 2), timeout=0.3)
    code, _ = failure(second)
    contest.wait_for(b"m/", 1)
    return code in AT_DEADLINE, contest.keys(b"m/")


def whose_lease_ends_while_it_waits_is_told(contest: Contest) -> object:
    contest.grant(1, 2)
    contest.play(take(b"m", 1))
    second = contest.later(take(b"m", 2))
    contest.wait_for(b"m/", 2)
    contest.client.unary(REVOKE, rpc.LeaseRevokeRequest(ID=2))
    contest.play(give(b"m/1"))
    return failure(second)


def is_behind_whoever_was_before_not_only_the_owner(contest: Contest) -> object:
    contest.grant(1, 2, 3)
    contest.play(take(b"m", 1))
    second = contest.later(take(b"m", 2))
    contest.wait_for(b"m/", 2)
    third = contest.later(take(b"m", 3))
    contest.wait_for(b"m/", 3)
    contest.play(give(b"m/2"))  # somebody deletes the key of one who waits
    assert not third.done()
    contest.play(give(b"m/1"))
    return failure(second), third.result(60).key


def is_elected_when_the_leader_resigns(contest: Contest) -> object:
    contest.grant(1, 2)
    first = contest.play(campaign(b"e", 1, b"one")).leader
    second = contest.later(campaign(b"e", 2, b"two"))
    contest.wait_for(b"e/", 2)
    before = contest.play(leader(b"e")).kv.value
    contest.play(resign(first))
    won = second.result(60)
    return before, won.header.revision, won.leader.rev, won.leader.key, contest.play(leader(b"e")).kv.value


def a_candidate_whose_call_ends_resigns(contest: Contest) -> object:
    contest.grant(1, 2)
    contest.play(campaign(b"e", 1, b"one"))
    code, _ = failure(contest.later(campaign(b"e", 2, b"two"), timeout=0.3))
    contest.wait_for(b"e/", 1)
    return code in AT_DEADLINE


def observers_wait_for_the_first_leader(contest: Contest) -> object:
    contest.grant(1)
    request = election.LeaderRequest(name=b"e")
    with contest.client.stream(f"{ELECTION}/Observe", [request], half_close=True) as stream:
        contest.play(campaign(b"e", 1, b"one"))
        first = stream.receive()
        contest.play(proclaim(leader_key(b"e", b"e/1", first.kv.create_revision, 1), b"two"))
        second = stream.receive()
        return first.kv.value, first.header.revision, second.kv.value, second.header.revision


CONVERSATIONS = [
    waits_its_turn,
    goes_on_when_a_lease_ends,
    gives_its_place_up_at_its_deadline,
    whose_lease_ends_while_it_waits_is_told,
    is_behind_whoever_was_before_not_only_the_owner,
    is_elected_when_the_leader_resigns,
    a_candidate_whose_call_ends_resigns,
    observers_wait_for_the_first_leader,
]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda one: one.__name__)
def test_who_waits_is_served_as_by_etcd(fresh_pair: Pair, conversation: Callable[[Contest], object]) -> None:
    expected, given = (_told(player.client.endpoint, conversation) for player in fresh_pair.players)
    assert given == expected


def _told(endpoint: Endpoint, conversation: Callable[[Contest], object]) -> object:
    with Contest(endpoint) as contest:
        return conversation(contest)


@contextmanager
def contest_of_ours(clock: FakeClock | None = None) -> Iterator[Contest]:
    with mvccstore.open(clock=clock) as store:
        with serve(store, clock=clock) as server, Contest(Endpoint(server.host, server.port)) as contest:
            yield contest
        assert len(store._hub) == 0, "a watcher is left"


def test_many_contenders_are_served_in_the_order_in_which_they_came() -> None:
    numbers = range(1, 11)
    with contest_of_ours() as contest:
        contest.grant(*numbers)
        waiting = []
        for number in numbers:
            waiting.append(contest.later(take(b"m", number)))
            contest.wait_for(b"m/", number)
        for place, future in enumerate(waiting):
            assert future.result(60).key == b"m/%x" % numbers[place]
            assert not any(later.done() for later in waiting[place + 1 :])
            contest.play(give(b"m/%x" % numbers[place]))


# What ends a wait here and not in etcd, which has one wait for those before it, and elects who is not there any more.
LOSING = {
    "lock": (take(b"m", 1), take(b"m", 2), ("UNKNOWN", "mutex: session is expired")),
    "campaign": (campaign(b"m", 1), campaign(b"m", 2), ("UNKNOWN", "election: not leader")),
}


@pytest.mark.parametrize("what", LOSING)
def test_a_wait_ends_with_its_lease(what: str) -> None:
    first, second, refusal = LOSING[what]
    clock = FakeClock()
    with contest_of_ours(clock) as contest:
        contest.grant(1)
        contest.grant(2, ttl=60)
        contest.play(first)
        waiting = contest.later(second)
        contest.wait_for(b"m/", 2)
        clock.advance(60)
        assert failure(waiting) == refusal
        assert contest.keys(b"m/") == [b"m/1"]


@pytest.mark.parametrize("what", LOSING)
def test_a_wait_ends_with_its_key_though_it_is_made_again(what: str) -> None:
    first, second, refusal = LOSING[what]
    key = b"m/2"
    with contest_of_ours() as contest:
        contest.grant(1, 2)
        contest.play(first)
        waiting = contest.later(second)
        contest.wait_for(b"m/", 2)
        again = [rpc.RequestOp(request_put=rpc.PutRequest(key=key, lease=2))]
        contest.play(Unary(f"{KV}/DeleteRange", rpc.DeleteRangeRequest(key=key)))
        contest.play(Unary(f"{KV}/Txn", rpc.TxnRequest(success=again)))
        assert failure(waiting) == refusal
        assert contest.keys(b"m/") == [b"m/1", key]


def test_a_lock_without_a_lease_has_one_of_a_minute_that_nobody_keeps_alive() -> None:
    clock = FakeClock()
    with contest_of_ours(clock) as contest:
        key = contest.play(take(b"m")).key
        clock.advance(59)
        assert contest.keys(b"m/") == [key]
        clock.advance(1)
        assert contest.keys(b"m/") == []


def test_who_goes_away_gives_up_its_place() -> None:
    with contest_of_ours() as contest:
        contest.grant(1, 2)
        contest.play(take(b"m", 1))
        with contest.client.stream(f"{LOCK}/Lock", [lock.LockRequest(name=b"m", lease=2)], half_close=True):
            contest.wait_for(b"m/", 2)
        contest.wait_for(b"m/", 1)


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (f"{LOCK}/Lock", lock.LockRequest(name=b"m", lease=1)),
        (f"{ELECTION}/Campaign", election.CampaignRequest(name=b"m", lease=1, value=b"v")),
    ],
    ids=["lock", "campaign"],
)
def test_who_goes_while_its_txn_is_under_way_leaves_no_place(path: str, request_: Any) -> None:
    may_go_on = threading.Event()
    with mvccstore.open() as store, serve(store) as server:
        node, loop = server.server.node, server._loop
        assert loop is not None

        def on_loop(work: Callable[[], Any]) -> Any:
            async def run() -> Any:
                return work()

            return asyncio.run_coroutine_threadsafe(run(), loop).result(60)

        def handled() -> int:
            method = server.server._router.methods[path]
            return sum(method.counts.codes)

        with Contest(Endpoint(server.host, server.port)) as contest:
            contest.grant(1, 2)
            on_loop(lambda: node.writer.call(lambda: may_go_on.wait(60), lambda _: None))
            try:
                with contest.client.stream(path, [request_], half_close=True):
                    while on_loop(lambda: node.writer.under_way) < 2:
                        pass  # what holds the writer, and the txn
                while not on_loop(handled):
                    pass
                assert store.get(b"m/1") is None
            finally:
                may_go_on.set()
            assert contest.play(take(b"m", 2)).key == b"m/2"
            assert contest.keys(b"m/") == [b"m/2"]
            # Its place was there, and was given up.
            assert [event.type for event in store.history(b"m/1")] == ["put", "delete"]


def test_the_server_stops_though_somebody_waits() -> None:
    with mvccstore.open() as store:
        with serve(store) as server:
            contest = Contest(Endpoint(server.host, server.port))
            contest.grant(1, 2)
            contest.play(take(b"m", 1))
            waiting = contest.later(take(b"m", 2))
            contest.wait_for(b"m/", 2)
        with contest:
            assert failure(waiting)[0] == "UNAVAILABLE"
        assert len(store._hub) == 0
