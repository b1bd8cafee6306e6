"""Virtual time in all that goes by it: leases, tokens, auto compaction, signs of progress.

Each is asked over gRPC right after `advance` has returned, by a client that does not wait for anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mvccstore
from mvccstore.errors import StorageFullError
from mvccstore.server import ServerOptions, serve
from mvccstore.server.auth.gate import AuthOptions
from mvccstore.server.autocompaction import AutoCompaction, ByRevision, Periodic
from mvccstore.server.messages import rpc
from mvccstore.server.node import RequestLimits
from mvccstore.testing import FakeClock, etcd
from mvccstore.testing.etcd_server import Etcd
from tests.wire.client import Client, Endpoint, RpcFailure, Stream

KV, LEASE, WATCH = "/etcdserverpb.KV", "/etcdserverpb.Lease", "/etcdserverpb.Watch/Watch"
HOUR = 3600.0
USERS = {"alice": "pw", "bob": "pw"}


@contextmanager
def running(**settings: Any) -> Iterator[tuple[Etcd, Client]]:
    with etcd(clock="virtual", **settings) as server, Client(Endpoint(server.host, server.port)) as client:
        yield server, client


def options(**settings: Any) -> ServerOptions:
    return ServerOptions(grace_seconds=0.0, **settings)


def put(client: Client, key: bytes, value: bytes = b"", **more: Any) -> int:
    answer = client.unary(f"{KV}/Put", rpc.PutRequest(key=key, value=value, **more))
    return int(answer.header.revision)


def get(client: Client, key: bytes, **more: Any) -> Any:
    return client.unary(f"{KV}/Range", rpc.RangeRequest(key=key), **more)


# Leases


def test_leases_end_when_their_time_has_come_and_not_before() -> None:
    with running() as (server, client), client.stream(f"{LEASE}/LeaseKeepAlive") as alive:
        for number, ttl in ((7, 60), (8, 60), (9, 600)):
            client.unary(f"{LEASE}/LeaseGrant", rpc.LeaseGrantRequest(ID=number, TTL=ttl))
            put(client, b"%d" % number, lease=number)
        server.clock.advance(40)
        alive.send(rpc.LeaseKeepAliveRequest(ID=8))
        assert alive.receive().TTL == 60
        told = client.unary(f"{LEASE}/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=7, keys=True))
        assert (told.TTL, told.grantedTTL, list(told.keys)) == (20, 60, [b"7"])
        server.clock.advance(20)
        assert [get(client, b"%d" % number).count for number in (7, 8, 9)] == [0, 1, 1]
        told = client.unary(f"{LEASE}/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=7))
        assert told.TTL == -1
        server.clock.advance(600)
        assert client.unary(f"{LEASE}/LeaseLeases", rpc.LeaseLeasesRequest()).leases == []
        alive.send(rpc.LeaseKeepAliveRequest(ID=8))
        assert alive.receive().TTL == 0


# Tokens


def token_of(client: Client, name: str) -> list[tuple[str, str]]:
    request = rpc.AuthenticateRequest(name=name, password="pw")
    return [("token", client.unary("/etcdserverpb.Auth/Authenticate", request).token)]


def test_a_simple_token_ends_its_time_after_its_last_use() -> None:
    auth = AuthOptions(token_ttl_seconds=100, bcrypt_cost=4)
    with running(auth=USERS, options=options(auth=auth)) as (server, client):
        used, unused = token_of(client, "alice"), token_of(client, "bob")
        for _ in range(3):
            server.clock.advance(100)
            assert get(client, b"a", metadata=used).count == 0
        with pytest.raises(RpcFailure, match="UNAUTHENTICATED: etcdserver: invalid auth token"):
            get(client, b"a", metadata=unused)
        server.clock.advance(100.001)
        with pytest.raises(RpcFailure, match="UNAUTHENTICATED: etcdserver: invalid auth token"):
            get(client, b"a", metadata=used)
        assert get(client, b"a", metadata=token_of(client, "alice")).count == 0


def test_a_signed_token_ends_its_time_after_it_was_made(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32)
    auth = AuthOptions(f"jwt,sign-method=HS256,priv-key={tmp_path / 'key'},ttl=100s", bcrypt_cost=4)
    with running(auth=USERS, options=options(auth=auth)) as (server, client):
        first = token_of(client, "alice")
        server.clock.advance(60)
        assert get(client, b"a", metadata=first).count == 0
        second = token_of(client, "alice")
        server.clock.advance(39.999)
        assert get(client, b"a", metadata=first).count == 0
        server.clock.advance(0.001)
        with pytest.raises(RpcFailure, match="UNAUTHENTICATED: etcdserver: invalid auth token"):
            get(client, b"a", metadata=first)
        assert get(client, b"a", metadata=second).count == 0


# Auto compaction


def compacted_to(client: Client) -> int:
    """The compact revision, as a client finds it: -1 for never."""
    return int(client.unary("/etcdserverpb.Maintenance/HashKV", rpc.HashKVRequest()).compact_revision)


def compacting(policy: AutoCompaction, **settings: Any) -> Any:
    return running(options=options(auto_compaction=policy), **settings)


def test_what_is_older_than_a_period_is_compacted() -> None:
    with compacting(Periodic(HOUR)) as (server, client):
        found = []
        for look in range(1, 41):
            assert put(client, b"a") == look + 1  # so that each look notes a revision of its own
            server.clock.advance(HOUR / 10)
            found.append(compacted_to(client))
        # The first after an hour, to what was there at first; then each hour.
        assert found == [-1] * 9 + [1] * 10 + [10] * 10 + [20] * 10 + [30]
        with pytest.raises(RpcFailure, match="OUT_OF_RANGE: etcdserver: mvcc: required revision has been compacted"):
            client.unary(f"{KV}/Range", rpc.RangeRequest(key=b"a", revision=29))
        assert client.unary(f"{KV}/Range", rpc.RangeRequest(key=b"a", revision=30)).count == 1


@pytest.mark.parametrize("pieces", [[50 * HOUR], [HOUR] * 50, [0.5 * HOUR, 49.5 * HOUR], [24.9 * HOUR, 25.1 * HOUR]])
def test_a_long_time_is_as_many_short_ones(pieces: list[float]) -> None:
    with compacting(Periodic(24 * HOUR)) as (server, client):
        for _ in range(20):
            put(client, b"a")
        for piece in pieces:
            server.clock.advance(piece)
        assert compacted_to(client) == 21


def test_years_at_once_take_no_time() -> None:
    with compacting(Periodic(1.0)) as (server, client):
        put(client, b"a")
        server.clock.advance(100 * 365 * 24 * HOUR)  # thirty thousand million looks
        assert compacted_to(client) == 2
        put(client, b"a")
        server.clock.advance(3)
        assert compacted_to(client) == 3


def test_a_number_of_revisions_is_kept() -> None:
    with compacting(ByRevision(10)) as (server, client):
        found = []
        for _ in range(4):
            for _ in range(7):
                put(client, b"a")
            server.clock.advance(299)
            before = compacted_to(client)
            server.clock.advance(1)
            found.append((before, compacted_to(client)))
        assert found == [(-1, -1), (-1, 5), (5, 12), (12, 19)]
        server.clock.advance(3000)
        assert compacted_to(client) == 19


def test_a_compaction_by_a_client_counts_as_done() -> None:
    with compacting(ByRevision(2)) as (server, client):
        for _ in range(5):
            put(client, b"a")
        client.unary(f"{KV}/Compact", rpc.CompactionRequest(revision=6))
        server.clock.advance(300)
        assert compacted_to(client) == 6
        for _ in range(3):
            put(client, b"a")
        server.clock.advance(300)
        assert compacted_to(client) == 7


def test_watches_of_what_was_compacted_are_cancelled_and_others_are_not() -> None:
    with compacting(ByRevision(1)) as (server, client), client.stream(WATCH) as stream:
        create(stream, b"a", 1)
        for _ in range(5):
            put(client, b"a")
        server.clock.advance(300)
        create(stream, b"a", 2, start_revision=2)
        cancelled = wait_for(stream, 2)
        assert (cancelled.canceled, cancelled.compact_revision) == (True, 5)
        put(client, b"a", b"new")
        assert wait_for(stream, 1, revision=7).events[0].kv.value == b"new"


def test_each_server_has_a_course_of_its_own() -> None:
    both = options(auto_compaction=Periodic(HOUR))
    clock = FakeClock()
    with etcd(clock=clock, options=both) as first:
        first.store.put(b"a")
        clock.advance(HOUR / 2)
        with etcd(clock=clock, options=both) as second:
            second.store.put(b"a")
            clock.advance(HOUR / 2)
            assert (first.store.compact_revision, second.store.compact_revision) == (1, -1)
            clock.advance(HOUR / 2)
            assert second.store.compact_revision == 1


def test_it_begins_anew_when_the_store_goes_back() -> None:
    with compacting(Periodic(HOUR)) as (server, client):
        begun = server.mark()
        for _ in range(30):
            put(client, b"a")
            server.clock.advance(HOUR / 20)
        server.rewind(begun)
        server.clock.advance(HOUR * 0.99)
        assert compacted_to(client) == -1
        put(client, b"a")
        server.clock.advance(HOUR)
        assert compacted_to(client) == 1


def test_a_compaction_that_fails_is_told_and_made_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    with compacting(ByRevision(1)) as (server, client):
        put(client, b"a")
        put(client, b"a")
        trouble = StorageFullError(":memory:", "as told")
        with monkeypatch.context() as patched:

            def fail(*_: object, **__: object) -> None:
                raise trouble

            patched.setattr(type(server.store), "compact", fail)
            with pytest.raises(StorageFullError):
                server.clock.advance(3000)
        server.clock.advance(299)
        assert compacted_to(client) == -1
        server.clock.advance(1)
        assert compacted_to(client) == 2


def test_in_a_transaction_block_it_is_done_when_the_block_has_ended() -> None:
    with compacting(ByRevision(1)) as (server, client):
        put(client, b"a")
        put(client, b"a")
        with server.store.begin() as txn:
            txn.put(b"a", b"1")
            server.clock.advance(300)
            assert server.store.compact_revision == -1
        server.call(lambda: None)
        client.unary(f"{KV}/Put", rpc.PutRequest(key=b"a"))  # which comes after it
        assert compacted_to(client) >= 2


def test_a_store_that_is_closed_under_its_server_is_left_alone() -> None:
    clock = FakeClock()
    store = mvccstore.open(clock=clock)
    with serve(store, clock=clock, options=options(auto_compaction=ByRevision(1))):
        store.put(b"a")
        store.close()
        clock.advance(300)
    clock.advance(300)


# Signs of progress


def create(stream: Stream, key: bytes, watch_id: int = 0, **more: Any) -> None:
    request = rpc.WatchCreateRequest(key=key, watch_id=watch_id, **more)
    stream.send(rpc.WatchRequest(create_request=request))
    wait_for(stream, watch_id, created=True)


def wait_for(stream: Stream, watch_id: int, *, created: bool = False, revision: int = 0) -> Any:
    """Return the next response of a watch."""
    while True:
        response = stream.receive()
        if response.watch_id == watch_id and response.created == created and response.header.revision >= revision:
            return response


def sent(server: Etcd) -> int:
    return len(server.calls("Watch")[0].encoded_answers)


def test_watches_are_told_of_progress_at_intervals() -> None:
    limits = RequestLimits(progress_notify_seconds=60)
    with running(options=options(requests=limits)) as (server, client), client.stream(WATCH) as stream:
        create(stream, b"a", 1, progress_notify=True)
        create(stream, b"a", 2)
        put(client, b"b")
        server.clock.advance(59.999)
        assert sent(server) == 2
        server.clock.advance(0.001)
        assert sent(server) == 3  # already, and not soon
        told = stream.receive()
        assert (told.watch_id, told.header.revision, len(told.events)) == (1, 2, 0)
        put(client, b"a")
        assert {stream.receive().watch_id for _ in range(2)} == {1, 2}
        server.clock.advance(60)
        assert sent(server) == 5  # an event since then is a sign, too
        server.clock.advance(60)
        assert sent(server) == 6
        assert (told := stream.receive()).watch_id == 1
        assert told.header.revision == 3


def test_who_asks_for_progress_is_told_whatever_the_time() -> None:
    with running() as (server, client), client.stream(WATCH) as stream:
        create(stream, b"a", 1)
        put(client, b"b")
        for _ in range(2):
            stream.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
            told = stream.receive()
            assert (told.watch_id, told.header.revision) == (-1, 2)
            server.clock.advance(1000)


# All of them


def test_one_move_does_everything_that_is_due() -> None:
    every = options(
        auto_compaction=ByRevision(1),
        requests=RequestLimits(progress_notify_seconds=300),
        auth=AuthOptions(token_ttl_seconds=299, bcrypt_cost=4),
    )
    with running(options=every, auth=USERS) as (server, client):
        token = token_of(client, "alice")
        with client.stream(WATCH, metadata=token) as stream:
            create(stream, b"quiet", 1, progress_notify=True)
            lease = server.store.grant(300)
            server.store.put(b"a", lease=lease)
            server.store.put(b"b")
            server.clock.advance(300)
            assert server.store.get(b"a") is None
            assert server.store.compact_revision == server.store.revision - 1 == 3
            assert sent(server) == 2
            with pytest.raises(RpcFailure, match="invalid auth token"):
                get(client, b"a", metadata=token)
