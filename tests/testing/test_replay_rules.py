"""What a replay answers when a run is not to the letter what was recorded: rules, one by one."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from mvccstore.server.messages import METHODS, kv, rpc
from mvccstore.server.server import ServerOptions
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.status import Code
from mvccstore.testing import Replay, etcd
from mvccstore.testing.cassette import CassetteWriter, read_cassette
from tests.testing.recording_kit import (
    AUTH,
    KEEP_ALIVE,
    KV,
    LEASE,
    SNAPSHOT,
    STATUS,
    WATCH,
    all_of,
    cancel,
    client_of,
    create,
    get,
    outcome,
    put,
    recorded,
    replayed,
)
from tests.wire.client import Client, RpcFailure, Stream


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.jsonl"


def values(client: Client, key: bytes) -> list[bytes]:
    return [row.value for row in client.unary(KV + "Range", get(key)).kvs]


def nothing_comes(client: Client, stream: Stream) -> bool:
    """Say whether a stream has nothing to say; what was due before this is there when another call was answered."""
    client.unary(KV + "Range", get(b"turn"))
    return not stream.pending()


# Gaps and what is unused


def test_a_gap_says_what_was_asked_and_what_is_near(path: Path) -> None:
    with recorded(path) as (_, client):
        client.unary(KV + "Put", put(b"jobs/1", b"queued"))
        client.unary(KV + "Put", put(b"users/1", b"ann"))
    with replayed(path) as (server, client):
        for _ in range(2):
            with pytest.raises(RpcFailure) as caught:
                client.unary(KV + "Put", put(b"jobs/1", b"taken"))
        assert caught.value.code == "FAILED_PRECONDITION"
        assert caught.value.message == (
            f'{path} has no answer to KV.Put(key: "jobs/1" value: "taken"); '
            'the nearest is line 3: KV.Put(key: "jobs/1" value: "queued")'
        )
        with pytest.raises(RpcFailure, match=r"no KV\.Range was recorded"):
            client.unary(KV + "Range", get(b"jobs/1"))
        assert [gap.times for gap in server.gaps] == [2, 1]
        assert str(server.gaps[1]) == 'KV.Range(key: "jobs/1"); no KV.Range was recorded'
        assert [(each.line, each.text) for each in server.unused] == [
            (3, 'KV.Put(key: "jobs/1" value: "queued")'),
            (4, 'KV.Put(key: "users/1" value: "ann")'),
        ]
        with pytest.raises(AssertionError, match=r"not in the cassette: KV.Put(.|\n)*not asked for: line 4: KV.Put"):
            server.assert_replayed()


def test_a_gap_of_the_gateway(path: Path) -> None:
    with recorded(path):
        pass
    with replayed(path) as (server, client):
        answer = client.post("/v3/kv/put", {"key": "YQ=="})
        assert (answer.status, answer.json()["code"]) == (400, Code.FAILED_PRECONDITION)
        assert len(server.gaps) == 1


def test_a_watch_that_is_a_gap_is_refused_and_the_others_go_on(path: Path) -> None:
    with recorded(path) as (_, client), client.stream(WATCH, [create(b"a")]) as watch:
        watch.receive()
        client.unary(KV + "Put", put(b"a"))
        watch.receive()
    with replayed(path) as (server, client), client.stream(WATCH, [create(b"a"), create(b"b")]) as watch:
        assert watch.receive().created
        refused = watch.receive()
        assert (refused.created, refused.canceled, refused.watch_id) == (True, True, -1)
        assert "has no answer to Watch.Watch" in refused.cancel_reason
        assert "the nearest is line" in refused.cancel_reason
        client.unary(KV + "Put", put(b"a"))
        assert watch.receive().events[0].kv.key == b"a"
        assert len(server.gaps) == 1
        assert server.unused == []


def test_requests_on_streams_that_are_gaps(path: Path) -> None:
    with recorded(path):
        pass
    with replayed(path) as (server, client):
        kept = client.stream(KEEP_ALIVE, [rpc.LeaseKeepAliveRequest(ID=7)])
        assert "FAILED_PRECONDITION" in str(all_of(kept)[0])
        progress = rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())
        assert "FAILED_PRECONDITION" in str(all_of(client.stream(WATCH, [progress]))[0])
        assert "FAILED_PRECONDITION" in str(all_of(client.stream(SNAPSHOT, [rpc.SnapshotRequest()]))[0])
        assert len(server.gaps) == 3


def test_passwords_are_not_in_gaps(path: Path) -> None:
    with recorded(path):
        pass
    with replayed(path) as (server, client):
        said = outcome(lambda: client.unary(AUTH + "UserAdd", rpc.AuthUserAddRequest(name="u", password="hunter2")))
        assert "hunter2" not in str(said) + str(server.report())


# The same request again


def test_writes_are_played_once_in_their_order(path: Path) -> None:
    with recorded(path) as (_, client):
        said = [client.unary(KV + "Put", put(b"a", b"1")) for _ in range(3)]
    with replayed(path) as (server, client):
        assert [client.unary(KV + "Put", put(b"a", b"1")) for _ in range(3)] == said
        with pytest.raises(RpcFailure, match="it was recorded, last in line 5, and has been played"):
            client.unary(KV + "Put", put(b"a", b"1"))
        assert len(server.gaps) == 1


def test_the_last_answer_to_a_question_is_given_again(path: Path) -> None:
    with recorded(path) as (_, client):
        assert values(client, b"a") == []
        client.unary(KV + "Put", put(b"a", b"1"))
        assert values(client, b"a") == [b"1"]
        client.unary(STATUS, rpc.StatusRequest())
    with replayed(path) as (server, client):
        assert values(client, b"a") == []
        client.unary(KV + "Put", put(b"a", b"1"))
        assert [values(client, b"a") for _ in range(3)] == [[b"1"]] * 3
        for _ in range(3):
            client.unary(STATUS, rpc.StatusRequest())
        server.assert_replayed()


def record_polls(path: Path) -> None:
    with recorded(path) as (_, client):
        for value in (b"1", b"2"):
            client.unary(KV + "Put", put(b"a", value))
            for _ in range(3):
                assert values(client, b"a") == [value]


def test_who_asks_less_often_is_not_told_what_is_stale(path: Path) -> None:
    record_polls(path)
    with replayed(path) as (server, client):
        for value in (b"1", b"2"):
            client.unary(KV + "Put", put(b"a", value))
            assert values(client, b"a") == [value]
        server.assert_replayed()


def test_who_asks_more_often_is_not_told_what_is_to_come(path: Path) -> None:
    record_polls(path)
    with replayed(path) as (server, client):
        for value in (b"1", b"2"):
            client.unary(KV + "Put", put(b"a", value))
            assert [values(client, b"a") for _ in range(5)] == [[value]] * 5
        server.assert_replayed()


def test_what_others_write_meanwhile_is_told_in_order(path: Path) -> None:
    with etcd() as upstream, recorded(path, store=upstream.store) as (_, client):
        for value in (b"1", b"2", b"3"):
            upstream.store.put(b"a", value)  # which no recorder sees
            assert values(client, b"a") == [value]
    with replayed(path) as (_, client):
        assert [values(client, b"a") for _ in range(4)] == [[b"1"], [b"2"], [b"3"], [b"3"]]


def test_a_program_that_is_not_played_has_written_what_it_did(path: Path) -> None:
    """Its writes are in the cassette, and do not come: who reads is told what was there all the same."""
    with recorded(path) as (recorder, client):
        with client_of(recorder) as other:
            other.unary(KV + "Put", put(b"a", b"other"))
        assert values(client, b"a") == [b"other"]
        client.unary(KV + "Put", put(b"a", b"mine"))
        assert values(client, b"a") == [b"mine"]
    with replayed(path) as (_, client):
        assert values(client, b"a") == [b"other"]
        client.unary(KV + "Put", put(b"a", b"mine"))
        assert values(client, b"a") == [b"mine"]


@pytest.mark.parametrize("kind", ["delete", "txn", "revoke"])
def test_an_answer_waits_for_whatever_changed_its_keys(path: Path, kind: str) -> None:
    changes = {
        "delete": (KV + "DeleteRange", rpc.DeleteRangeRequest(key=b"a", range_end=b"b")),
        "txn": (KV + "Txn", rpc.TxnRequest(success=[rpc.RequestOp(request_put=put(b"a1", b"2"))])),
        "revoke": (LEASE + "LeaseRevoke", rpc.LeaseRevokeRequest(ID=7)),
    }
    with recorded(path) as (_, client):
        client.unary(LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=100, ID=7))
        client.unary(KV + "Put", put(b"a1", b"1", lease=7))
        values(client, b"a1")
        client.unary(*changes[kind])
        after = values(client, b"a1")
        assert after != [b"1"]
    with replayed(path) as (_, client):
        client.unary(LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=100, ID=7))
        client.unary(KV + "Put", put(b"a1", b"1", lease=7))
        assert [values(client, b"a1") for _ in range(3)] == [[b"1"]] * 3
        client.unary(*changes[kind])
        assert values(client, b"a1") == after


def test_what_was_asked_by_json_can_be_asked_by_grpc_and_the_other_way(path: Path) -> None:
    with recorded(path) as (_, client):
        client.post("/v3/kv/put", {"key": "YQ==", "value": "MQ=="})
        client.unary(KV + "Put", put(b"b", b"2"))
    with replayed(path) as (server, client):
        assert client.unary(KV + "Put", put(b"a", b"1")).header.revision == 2
        assert client.post("/v3/kv/put", {"key": "Yg==", "value": "Mg=="}).json()["header"]["revision"] == "3"
        server.assert_replayed()


# Watches


def test_an_event_comes_behind_the_write_that_it_comes_of(path: Path) -> None:
    with recorded(path) as (_, client), client.stream(WATCH, [create(b"a", range_end=b"b")]) as watch:
        watch.receive()
        values(client, b"turn")
        for key in (b"a1", b"a2"):
            client.unary(KV + "Put", put(key))
            watch.receive()
    with replayed(path) as (server, client), client.stream(WATCH, [create(b"a", range_end=b"b")]) as watch:
        assert watch.receive().created
        assert nothing_comes(client, watch)
        client.unary(KV + "Put", put(b"a1"))
        assert watch.receive().events[0].kv.key == b"a1"
        assert nothing_comes(client, watch)
        client.unary(KV + "Put", put(b"a2"))
        assert watch.receive().events[0].kv.key == b"a2"
        server.assert_replayed()


def record_other(path: Path) -> None:
    """A program that watches, and one that writes, which will not be played."""
    with (
        recorded(path) as (recorder, client),
        client_of(recorder) as other,
        client.stream(WATCH, [create(b"a")]) as watch,
    ):
        watch.receive()
        values(client, b"turn")
        for value in (b"1", b"2"):
            other.unary(KV + "Put", put(b"a", value))
            watch.receive()


def test_what_was_there_before_a_watch_comes_at_once(path: Path) -> None:
    """Whoever wrote it need not be played."""
    with recorded(path) as (recorder, client):
        with client_of(recorder) as other:
            other.unary(KV + "Put", put(b"a", b"1"))
        with client.stream(WATCH, [create(b"a", start_revision=2)]) as watch:
            said = watch.take(2)
    with replayed(path) as (_, client), client.stream(WATCH, [create(b"a", start_revision=2)]) as watch:
        assert watch.take(2) == said


def test_a_test_can_stand_in_for_a_program_that_is_not_played(path: Path) -> None:
    record_other(path)
    with replayed(path) as (server, client), client.stream(WATCH, [create(b"a")]) as watch:
        watch.receive()
        assert nothing_comes(client, watch)
        server.catch_up(2)
        assert watch.receive().events[0].kv.value == b"1"
        assert nothing_comes(client, watch)
        server.catch_up()
        assert watch.receive().events[0].kv.value == b"2"


def test_events_can_come_at_once(path: Path) -> None:
    record_other(path)
    with (
        etcd.replay(Replay(path, at_once=True)) as server,
        client_of(server) as client,
        client.stream(WATCH, [create(b"a")]) as watch,
    ):
        assert [event.kv.value for answer in watch.take(3) for event in answer.events] == [b"1", b"2"]


def test_events_that_nobody_wrote_come_behind_the_last_that_somebody_did(path: Path) -> None:
    with (
        etcd() as upstream,
        recorded(path, store=upstream.store) as (_, client),
        client.stream(WATCH, [create(b"a")]) as watch,
    ):
        watch.receive()
        values(client, b"turn")
        upstream.store.put(b"a", b"unseen")
        watch.receive()
        client.unary(KV + "Put", put(b"b"))
        client.unary(KV + "Put", put(b"a"))
        watch.receive()
        upstream.store.put(b"a", b"unseen")
        watch.receive()
    with replayed(path) as (server, client), client.stream(WATCH, [create(b"a")]) as watch:
        assert [len(answer.events) for answer in watch.take(2)] == [0, 1]
        client.unary(KV + "Put", put(b"b"))
        assert nothing_comes(client, watch)
        client.unary(KV + "Put", put(b"a"))
        assert [answer.events[0].kv.value for answer in watch.take(2)] == [b"", b"unseen"]
        server.assert_replayed()


def test_watches_of_two_streams_on_one(path: Path) -> None:
    with (
        recorded(path) as (_, client),
        client.stream(WATCH, [create(b"a")]) as one,
        client.stream(WATCH, [create(b"b")]) as two,
    ):
        assert [one.receive().watch_id, two.receive().watch_id] == [0, 0]
        for key in (b"a", b"b"):
            client.unary(KV + "Put", put(key))
        one.receive()
        two.receive()
    with replayed(path) as (server, client), client.stream(WATCH, [create(b"b"), create(b"a")]) as watch:
        assert [answer.watch_id for answer in watch.take(2)] == [0, 1]
        for key in (b"a", b"b"):
            client.unary(KV + "Put", put(key))
        found = {answer.watch_id: answer.events[0].kv.key for answer in watch.take(2)}
        assert found == {0: b"b", 1: b"a"}
        server.assert_replayed()


def test_ids_that_clients_choose(path: Path) -> None:
    with recorded(path) as (_, client), client.stream(WATCH, [create(b"a", watch_id=5)]) as watch:
        watch.receive()
        client.unary(KV + "Put", put(b"a"))
        watch.receive()
    with replayed(path) as (_, client), client.stream(WATCH, [create(b"a", watch_id=9)]) as watch:
        client.unary(KV + "Put", put(b"a"))
        assert [answer.watch_id for answer in watch.take(2)] == [9, 9]


def test_who_ends_a_watch_is_told_so_though_it_was_not_recorded(path: Path) -> None:
    with recorded(path) as (_, client), client.stream(WATCH, [create(b"a")]) as watch:
        watch.receive()
    with replayed(path) as (server, client), client.stream(WATCH, [create(b"a")]) as watch:
        watch.receive()
        watch.send(cancel(0))
        answer = watch.receive()
        assert (answer.canceled, answer.watch_id, answer.cancel_reason) == (True, 0, "")
        assert server.gaps == []


def test_a_watch_that_its_server_has_ended(path: Path) -> None:
    with recorded(path) as (_, client):
        for _ in range(3):
            client.unary(KV + "Put", put(b"a"))
        client.unary(KV + "Compact", rpc.CompactionRequest(revision=3))
        with client.stream(WATCH, [create(b"a", start_revision=2)]) as watch:
            said = [outcome(watch.receive) for _ in range(2)]
    with replayed(path) as (_, client), client.stream(WATCH, [create(b"a", start_revision=2)]) as watch:
        assert [outcome(watch.receive) for _ in range(2)] == said


CREATED = rpc.WatchResponse(created=True).SerializeToString()


def test_a_stream_of_watches_that_broke(path: Path) -> None:
    """It breaks again, when its watches have been told what they were told before."""
    event = rpc.WatchResponse(header=rpc.ResponseHeader(revision=2), events=[kv.Event(kv=kv.KeyValue(mod_revision=2))])
    requests = [create(key).SerializeToString() for key in (b"a", b"b")]
    parts = [("request", requests[0]), ("answer", CREATED), ("request", requests[1])]
    other = rpc.WatchResponse(created=True, watch_id=1).SerializeToString()
    written(path, WATCH, *parts, ("answer", other), ("answer", event.SerializeToString()), end="upstream")
    with replayed(path) as (_, client), client.stream(WATCH, [create(b"a")]) as watch:
        assert [len(answer.events) for answer in watch.take(2)] == [0, 1]
        assert nothing_comes_but_gaps(client, watch)
        watch.send(create(b"b"))
        assert watch.receive().created
        assert "UNAVAILABLE" in str(outcome(watch.receive))


def nothing_comes_but_gaps(client: Client, stream: Stream) -> bool:
    with pytest.raises(RpcFailure):
        client.unary(KV + "Range", get(b"turn"))
    return not stream.pending()


def test_a_watch_that_was_never_made(path: Path) -> None:
    written(path, WATCH, ("request", create(b"a").SerializeToString()), end="")
    with replayed(path) as (server, client), client.stream(WATCH, [create(b"a")]) as watch:
        assert nothing_comes_but_gaps(client, watch)
        assert server.unused == []
        assert len(server.gaps) == 1


def test_a_watch_that_does_not_read_is_told_no_more_than_it_takes(path: Path) -> None:
    row = kv.KeyValue(key=b"a", value=bytes(100_000), mod_revision=2)
    event = rpc.WatchResponse(header=rpc.ResponseHeader(revision=2), events=[kv.Event(kv=row)]).SerializeToString()
    request = create(b"a").SerializeToString()
    written(path, WATCH, ("request", request), ("answer", CREATED), *[("answer", event)] * 100, end="")
    options = ServerOptions(transport=TransportLimits(queued_bytes_max=1 << 20))
    with replayed(path, options=options) as (_, client), client.stream(WATCH, [create(b"a")]) as watch:
        assert [outcome(watch.receive) for _ in range(101)] == [CREATED, *[event] * 100]


def test_progress_is_told_again(path: Path) -> None:
    progress = rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())
    with recorded(path) as (_, client), client.stream(WATCH, [create(b"a"), progress]) as watch:
        said = watch.take(2)
    with replayed(path) as (_, client), client.stream(WATCH, [create(b"a"), progress, progress]) as watch:
        assert watch.take(3) == [*said, said[1]]


# Names


def test_generated_names_stand_for_the_recorded_ones(path: Path) -> None:
    def program(client: Client, name: bytes, time: bytes) -> list[bytes]:
        said = []
        key = b"jobs/" + name
        with client.stream(WATCH, [create(key, range_end=key[:-1] + bytes((key[-1] + 1,)))]) as watch:
            watch.receive()
            client.unary(KV + "Put", put(key, b"at " + time))
            event = watch.receive().events[0].kv
            said += [event.key, event.value]
        row = client.unary(KV + "Range", get(b"jobs/", range_end=b"jobs0")).kvs[0]
        return [*said, row.key, row.value]

    first, second = (str(uuid.UUID(int=number)).encode() for number in (0xF, 0x19))
    with recorded(path) as (_, client):
        program(client, first, b"1700000000.25")
    with replayed(path) as (server, client):
        key = b"jobs/" + second
        assert program(client, second, b"1800000000.5") == [key, b"at 1800000000.5"] * 2
        server.assert_replayed()


def test_a_name_stands_for_one_alone(path: Path) -> None:
    names = [str(uuid.UUID(int=number)).encode() for number in range(4)]
    with recorded(path) as (_, client):
        for name in names[:2]:
            client.unary(KV + "Put", put(name, b"value of " + name))
            values(client, name)
    with replayed(path) as (server, client):
        client.unary(KV + "Put", put(names[2], b"value of " + names[2]))
        assert values(client, names[2]) == [b"value of " + names[2]]
        with pytest.raises(RpcFailure):
            client.unary(KV + "Put", put(names[3], b"value of " + names[2]))
        client.unary(KV + "Put", put(names[3], b"value of " + names[3]))
        assert values(client, names[3]) == [b"value of " + names[3]]
        assert len(server.gaps) == 1


def test_what_looks_generated_can_be_said(path: Path) -> None:
    with recorded(path) as (_, client):
        client.unary(KV + "Put", put(b"pid-1"))
        client.unary(KV + "Put", put(b"1700000000"))
    with etcd.replay(Replay(path, generated=["[0-9]+"])) as server, client_of(server) as client:
        client.unary(KV + "Put", put(b"pid-2"))
    with etcd.replay(Replay(path, generated=[])) as server, client_of(server) as client:
        with pytest.raises(RpcFailure):
            client.unary(KV + "Put", put(b"1800000000"))
        client.unary(KV + "Put", put(b"1700000000"))


def lease_program(client: Client, lease: int) -> list[int]:
    granted = client.unary(LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=100, ID=lease)).ID
    client.unary(KV + "Put", put(b"leased", lease=granted))
    kept = client.stream(KEEP_ALIVE, [rpc.LeaseKeepAliveRequest(ID=granted)]).receive().ID
    held = client.unary("/v3lockpb.Lock/Lock", METHODS["/v3lockpb.Lock/Lock"].request(name=b"l", lease=granted)).key
    assert held == b"l/%x" % granted
    client.unary("/v3lockpb.Lock/Unlock", METHODS["/v3lockpb.Lock/Unlock"].request(key=held))
    row = client.unary(KV + "Range", get(b"leased")).kvs[0].lease
    client.unary(LEASE + "LeaseRevoke", rpc.LeaseRevokeRequest(ID=granted))
    return [granted, kept, row]


def test_leases_that_clients_choose(path: Path) -> None:
    with recorded(path) as (_, client):
        assert lease_program(client, 0x1234567890AB) == [0x1234567890AB] * 3
    with replayed(path) as (server, client):
        assert lease_program(client, 0xABCDEF123456) == [0xABCDEF123456] * 3
        server.assert_replayed()


def test_leases_that_come_in_another_order(path: Path) -> None:
    def grant(client: Client) -> int:
        return client.unary(LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=100)).ID

    with recorded(path) as (_, client):
        leases = [grant(client), grant(client)]
        for name, lease in zip((b"a", b"b"), leases, strict=True):
            client.unary(KV + "Put", put(name, lease=lease))
            client.unary(KV + "Range", get(name))
    with replayed(path) as (server, client):
        # b was the first to have a lease, this time.
        of_b, of_a = grant(client), grant(client)
        client.unary(KV + "Put", put(b"b", lease=of_b))
        assert client.unary(KV + "Range", get(b"b")).kvs[0].lease == of_b
        client.unary(KV + "Put", put(b"a", lease=of_a))
        assert client.unary(KV + "Range", get(b"a")).kvs[0].lease == of_a
        server.assert_replayed()


def test_a_lease_is_kept_alive_as_often_as_one_likes(path: Path) -> None:
    with recorded(path) as (_, client):
        for lease in (7, 8):
            client.unary(LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=100 + lease, ID=lease))
        client.stream(KEEP_ALIVE, [rpc.LeaseKeepAliveRequest(ID=7)]).receive()
    with replayed(path) as (server, client):
        for lease in (7, 8):
            client.unary(LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=100 + lease, ID=lease))
        with client.stream(KEEP_ALIVE, [rpc.LeaseKeepAliveRequest(ID=each) for each in (7, 8, 7, 8)]) as stream:
            assert [(each.ID, each.TTL) for each in stream.take(4)] == [(7, 107), (8, 108)] * 2
            stream.half_close()
            assert all_of(stream) == ["StreamEnd()"]
        server.assert_replayed()


def test_a_wrong_password_is_told_from_a_right_one_if_secrets_were_kept(path: Path) -> None:
    writer = CassetteWriter(path, "3.6.16", lambda: 0.0, keeps_secrets=True)
    for password, code in (("right", 0), ("wrong", 3)):
        call = writer.begin(AUTH + "Authenticate", {})
        call.message("request", rpc.AuthenticateRequest(name="u", password=password).SerializeToString())
        if not code:
            call.message("answer", rpc.AuthenticateResponse(token="t").SerializeToString())
        call.end(code, "failed" if code else "")
    writer.close()
    with replayed(path) as (_, client):
        with pytest.raises(RpcFailure, match="INVALID_ARGUMENT: failed"):
            client.unary(AUTH + "Authenticate", rpc.AuthenticateRequest(name="u", password="wrong"))
        assert client.unary(AUTH + "Authenticate", rpc.AuthenticateRequest(name="u", password="right")).token == "t"


# How calls end


def written(path: Path, method: str, *parts: tuple[str, bytes], end: str) -> None:
    writer = CassetteWriter(path, "3.6.16", lambda: 0.0)
    call = writer.begin(method, {})
    for kind, encoded in parts:
        if kind == "left_out":
            call.left_out("answer", 1 << 30)
        else:
            call.message("request" if kind == "request" else "answer", encoded)
    if end == "OK":
        call.end(0, "")
    elif end:
        call.end_by("client" if end == "client" else "upstream")
    writer.close()


@pytest.mark.parametrize("end", ["client", ""])
def test_what_got_no_answer_gets_none(path: Path, end: str) -> None:
    written(path, SNAPSHOT, ("request", b""), end=end)
    with replayed(path) as (server, client):
        with pytest.raises(RpcFailure, match="DEADLINE_EXCEEDED"):
            client.stream(SNAPSHOT, [rpc.SnapshotRequest()], timeout=0.2).receive()
        server.assert_replayed()
    with replayed(path) as (server, _):
        assert server.unused == []


def test_a_connection_that_broke_is_unavailable(path: Path) -> None:
    written(path, KV + "Put", ("request", put(b"a").SerializeToString()), end="upstream")
    with replayed(path) as (_, client), pytest.raises(RpcFailure, match="UNAVAILABLE"):
        client.unary(KV + "Put", put(b"a"))


def test_what_was_too_large_to_be_recorded_cannot_be_answered(path: Path) -> None:
    written(path, KV + "Range", ("request", get(b"a").SerializeToString()), ("left_out", b""), end="OK")
    with replayed(path) as (_, client), pytest.raises(RpcFailure, match="RESOURCE_EXHAUSTED: an answer of 1073741824"):
        client.unary(KV + "Range", get(b"a"))


def test_a_long_stream_comes_whole(path: Path) -> None:
    blobs = [rpc.SnapshotResponse(blob=bytes([number]) * 100_000).SerializeToString() for number in range(100)]
    written(path, SNAPSHOT, ("request", b""), *[("answer", blob) for blob in blobs], end="OK")
    with replayed(path) as (_, client):
        assert all_of(client.stream(SNAPSHOT, [rpc.SnapshotRequest()])) == [*blobs, "StreamEnd()"]


def test_a_client_that_does_not_read_is_not_sent_more(path: Path) -> None:
    """What waits for a client is bounded: a replay that did not heed it would lose the connection."""
    blob = rpc.SnapshotResponse(blob=bytes(100_000)).SerializeToString()
    written(path, SNAPSHOT, ("request", b""), *[("answer", blob)] * 100, end="OK")
    options = ServerOptions(transport=TransportLimits(queued_bytes_max=1 << 20))
    with replayed(path, options=options) as (_, client):
        assert all_of(client.stream(SNAPSHOT, [rpc.SnapshotRequest()])) == [*[blob] * 100, "StreamEnd()"]


def test_a_call_that_was_refused_unheard_is_refused(path: Path) -> None:
    writer = CassetteWriter(path, "3.6.16", lambda: 0.0)
    writer.begin(KV + "Put", {}).end(16, "who are you")
    writer.close()
    with replayed(path) as (_, client):
        with pytest.raises(RpcFailure, match="UNAUTHENTICATED: who are you"):
            client.unary(KV + "Put", put(b"a"))
        with pytest.raises(RpcFailure, match="FAILED_PRECONDITION"):
            client.unary(KV + "Put", put(b"a"))


# As an etcd of a test


def test_it_is_the_etcd_that_was_recorded(path: Path) -> None:
    CassetteWriter(path, "3.5.29", lambda: 0.0).close()
    with replayed(path) as (_, client):
        assert client.request("GET", "/version").json()["etcdserver"] == "3.5.29"
        assert client.post("/v3/none", {}).body == b"Not Found\n"  # as 3.5 has it
    CassetteWriter(path, "9.9.9", lambda: 0.0, overwrite=True).close()
    with replayed(path) as (_, client):
        assert client.request("GET", "/version").json()["etcdserver"] == "9.9.9"
    CassetteWriter(path, "", lambda: 0.0, overwrite=True).close()
    with replayed(path) as (_, client):
        assert client.request("GET", "/health").json()["health"] == "true"


def test_faults_befall_it_and_calls_are_seen(path: Path) -> None:
    with recorded(path) as (_, client):
        client.unary(KV + "Put", put(b"a"))
    with replayed(path) as (server, client):
        with server.faults.fail("Put"), pytest.raises(RpcFailure, match="UNAVAILABLE"):
            client.unary(KV + "Put", put(b"a"))
        client.unary(KV + "Put", put(b"a"))
        assert [call.is_ok for call in server.calls("Put")] == [False, True]
        server.assert_replayed()


def test_reset_begins_anew(path: Path) -> None:
    with recorded(path) as (_, client):
        client.unary(KV + "Put", put(b"a"))
    with replayed(path) as (server, client):
        for _ in range(2):
            client.unary(KV + "Put", put(b"a"))
            with pytest.raises(RpcFailure):
                client.unary(KV + "Put", put(b"a"))
            assert len(server.gaps) == 1
            server.reset()
            assert (server.gaps, len(server.unused)) == ([], 1)


def test_settings_that_make_no_sense(path: Path) -> None:
    CassetteWriter(path, "3.6.16", lambda: 0.0).close()
    with pytest.raises(ValueError, match="a replay has neither a store nor contents nor users"):
        etcd(replay=path, contents={"a": "1"})
    with etcd() as server, pytest.raises(RuntimeError, match="does not replay a cassette"):
        _ = server.gaps
    with pytest.raises(FileNotFoundError):
        etcd(replay=path.with_name("none"))
    assert read_cassette(path).calls == ()
