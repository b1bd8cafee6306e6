"""What etcd itself has got wrong on a single node, by the number of its issue: here it must hold.

The ten are those of etcd's record of correctness bugs that need no second member. What a crash is part of is played to
a process that is killed.
"""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest

import mvccstore
from mvccstore import Store
from mvccstore.server import serve
from mvccstore.server.messages import rpc
from tests.wire.client import Client, Endpoint, RpcFailure, Stream
from tests.wire.requests import compact, delete, get, put, txn
from tests.wire.test_process import running

KV, WATCH = "/etcdserverpb.KV", "/etcdserverpb.Watch/Watch"
DEFRAGMENT, HASH_KV = "/etcdserverpb.Maintenance/Defragment", "/etcdserverpb.Maintenance/HashKV"
CRASHES = 3
COMPACTED = ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted")


def process(folder: Path) -> AbstractContextManager[Any]:
    """`mvccstore serve` on a data directory; killed at the end of the block, if not before."""
    return running("--data-dir", str(folder), program=(sys.executable, "-m", "mvccstore", "serve"))


def client_of(server: Any) -> Client:
    """Return a client of a process, or of a server in this one."""
    found = urlsplit(server.url)
    assert found.hostname is not None
    assert found.port is not None
    return Client(Endpoint(found.hostname, found.port))


def kill(server: Any) -> None:
    server.kill()
    server.wait()


def everything(client: Client) -> Any:
    return client.unary(f"{KV}/Range", get(b"\0", b"\0"))


def watching(key: bytes, range_end: bytes = b"", **options: Any) -> rpc.WatchRequest:
    return rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key, range_end=range_end, **options))


def progress() -> rpc.WatchRequest:
    return rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())


def brief(event: Any) -> tuple[str, bytes, int]:
    return ("put", "delete")[event.type], event.kv.key, event.kv.mod_revision


def events_of(client: Client, start_revision: int, number: int) -> list[tuple[str, bytes, int]]:
    """Watch everything from a revision, and return the first events."""
    with client.stream(WATCH, [watching(b"\0", b"\0", start_revision=start_revision)]) as stream:
        assert stream.receive().created
        found: list[Any] = []
        while len(found) < number:
            response = stream.receive()
            assert not response.canceled
            found += response.events
    return list(map(brief, found))


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()


# Crashes


def test_13766_killed_under_load_revisions_and_data_agree(tmp_path: Path) -> None:
    """etcd#13766: killed under load, revisions and data part ways: a write is applied twice, or not at all."""
    acknowledged: dict[bytes, int] = {}

    def write(server: Any, prefix: bytes, is_enough: threading.Semaphore, killed: threading.Event) -> None:
        with client_of(server) as client:
            number = 0
            while not killed.is_set():
                key = b"%s/%d" % (prefix, number)
                try:
                    answer = client.unary(f"{KV}/Put", put(key, key), timeout=2)
                except RpcFailure:
                    return
                acknowledged[key] = answer.header.revision
                is_enough.release()
                number += 1

    for crash in range(CRASHES):
        with process(tmp_path / "data") as server:
            is_enough, killed = threading.Semaphore(0), threading.Event()
            arguments = [(server, b"%d.%d" % (crash, number), is_enough, killed) for number in range(6)]
            threads = [threading.Thread(target=write, args=found) for found in arguments]
            for thread in threads:
                thread.start()
            for _ in range(100):
                assert is_enough.acquire(timeout=20)
            kill(server)
            killed.set()
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive()
        with process(tmp_path / "data") as server, client_of(server) as client:
            found = everything(client)
            revisions = {kv.key: kv.mod_revision for kv in found.kvs}
            assert sorted(revisions.values()) == list(range(2, found.header.revision + 1)), "one put, one revision"
            assert {kv.version for kv in found.kvs} == {1}
            assert all(kv.value == kv.key for kv in found.kvs)
            assert acknowledged.items() <= revisions.items()
            assert client.unary(HASH_KV, rpc.HashKVRequest()).header.revision == found.header.revision
    with mvccstore.open(tmp_path / "data" / "store.mvcc") as store:
        assert store.check() == []


def test_14370_what_a_single_node_has_answered_is_there_after_a_crash(tmp_path: Path) -> None:
    """etcd#14370: a single node answered before its log was on disk, and lost the write in a crash."""
    for crash in range(CRASHES):
        with process(tmp_path / "data") as server, client_of(server) as client:
            found = everything(client)
            assert [kv.key for kv in found.kvs] == [b"%d" % number for number in range(crash)]
            assert found.header.revision == 1 + crash
            assert client.unary(f"{KV}/Put", put(b"%d" % crash)).header.revision == 2 + crash
            kill(server)


def test_14685_crash_during_defragmentation_applies_nothing_twice(tmp_path: Path) -> None:
    """etcd#14685: after a crash in a defragmentation, writes that were in the file already were applied again."""
    puts = 0
    for _ in range(CRASHES):
        with process(tmp_path / "data") as server, client_of(server) as client, client_of(server) as other:
            for number in range(40):
                client.unary(f"{KV}/Put", put(b"large", b"x" * 100_000))
                puts += 1
                if number % 10 == 0:
                    client.unary(f"{KV}/Compact", compact(1 + puts))
            before = client.unary(HASH_KV, rpc.HashKVRequest()).hash
            begun = threading.Event()

            def defragment(other: Client = other, begun: threading.Event = begun) -> None:
                try:
                    while True:
                        begun.set()
                        other.unary(DEFRAGMENT, rpc.DefragmentRequest(), timeout=2)
                except RpcFailure:
                    return

            thread = threading.Thread(target=defragment)
            thread.start()
            assert begun.wait(20)
            client.unary(f"{KV}/Range", get(b"large"))
            kill(server)
            thread.join(20)
            assert not thread.is_alive()
        with process(tmp_path / "data") as server, client_of(server) as client:
            found = everything(client)
            assert [(kv.key, kv.version, kv.mod_revision) for kv in found.kvs] == [(b"large", puts, puts + 1)]
            assert found.header.revision == puts + 1
            assert client.unary(HASH_KV, rpc.HashKVRequest()).hash == before


def test_17780_crash_after_compaction_does_not_take_the_revision_back(tmp_path: Path) -> None:
    """etcd#17780: compacted up to a delete that was the last write, the revision after a crash was a lower one."""
    revision = 1
    for _ in range(CRASHES):
        with process(tmp_path / "data") as server, client_of(server) as client:
            assert everything(client).header.revision == revision
            client.unary(f"{KV}/Put", put(b"a"))
            client.unary(f"{KV}/Put", put(b"b"))
            assert client.unary(f"{KV}/DeleteRange", delete(b"a", b"c")).deleted == 2
            revision += 3
            client.unary(f"{KV}/Compact", compact(revision, physical=True))
            kill(server)
        with process(tmp_path / "data") as server, client_of(server) as client:
            assert everything(client).header.revision == revision
            assert client.unary(f"{KV}/Put", put(b"c")).header.revision == revision + 1
            assert client.unary(f"{KV}/DeleteRange", delete(b"c")).header.revision == revision + 2
            revision += 2
            kill(server)


# Compaction and deletes


@pytest.mark.parametrize("physical", [False, True])
def test_18089_delete_at_the_compacted_revision_is_still_told(store: Store, physical: bool) -> None:
    """etcd#18089: a watch from the compacted revision on missed the delete that was made in it."""
    with serve(store) as server, client_of(server) as client:
        client.unary(f"{KV}/Put", put(b"a"))
        client.unary(f"{KV}/Put", put(b"b"))
        client.unary(f"{KV}/DeleteRange", delete(b"a"))
        client.unary(f"{KV}/Put", put(b"a"))
        client.unary(f"{KV}/Compact", compact(4, physical=physical))
        assert events_of(client, 4, 2) == [("delete", b"a", 4), ("put", b"a", 5)]


def test_19179_watch_opened_on_the_compacted_revision_has_all_of_it(tmp_path: Path) -> None:
    """etcd#19179: a watch opened on the revision of a compaction missed a delete in it, for good after a restart."""
    expected = [("put", b"y", 4), ("delete", b"x", 4), ("put", b"z", 5)]
    with process(tmp_path / "data") as server, client_of(server) as client:
        client.unary(f"{KV}/Put", put(b"x", b"1"))
        client.unary(f"{KV}/Put", put(b"x", b"2"))
        client.unary(f"{KV}/Txn", txn(put(b"y"), delete(b"x")))
        client.unary(f"{KV}/Put", put(b"z"))
        client.unary(f"{KV}/Compact", compact(4, physical=True))
        assert events_of(client, 4, 3) == expected
        kill(server)
    with process(tmp_path / "data") as server, client_of(server) as client:
        assert events_of(client, 4, 3) == expected
        client.unary(f"{KV}/Compact", compact(5, physical=True))
        assert events_of(client, 5, 1) == [("put", b"z", 5)]
        with client.stream(WATCH, [watching(b"\0", b"\0", start_revision=4)]) as stream:
            responses = stream.take(2)
            assert (responses[1].canceled, responses[1].compact_revision) == (True, 5)


def test_18667_txn_that_reads_a_compacted_revision_writes_nothing(store: Store) -> None:
    """etcd#18667: a txn with a read below the compacted revision was applied by halves."""
    rounds = 60
    with serve(store) as server, client_of(server) as client, client_of(server) as compacting:
        for number in range(2 * rounds):
            store.put(b"h", b"%d" % (number + 2))
        store.compact(2)

        def compact_all() -> None:
            for revision in range(3, 2 * rounds, 2):
                compacting.unary(f"{KV}/Compact", compact(revision))

        thread = threading.Thread(target=compact_all)
        thread.start()
        done: dict[bytes, bool] = {}
        refusals: set[tuple[str, str]] = set()
        for number in range(rounds):
            key = b"k%d" % number
            revision = 2 + number
            request = txn(put(key), get(b"h", revision=revision), delete(b"gone"))
            try:
                answer = client.unary(f"{KV}/Txn", request)
            except RpcFailure as failure:
                refusals.add((failure.code, failure.message))
                done[key] = False
            else:
                assert answer.responses[1].response_range.kvs[0].value == b"%d" % revision
                done[key] = True
        thread.join(20)
        assert not thread.is_alive()
        assert refusals <= {COMPACTED}
        before = store.revision
        with pytest.raises(RpcFailure) as raised:
            client.unary(f"{KV}/Txn", txn(put(b"never"), get(b"h", revision=2)))
        assert (raised.value.code, raised.value.message) == COMPACTED
        assert store.revision == before == 1 + 2 * rounds + sum(done.values())
        assert store.get(b"never") is None
        assert {key: store.get(key) is not None for key in done} == done


# Watches


def read_until(stream: Stream, last: int) -> list[Any]:
    """Return the responses up to the one with revision `last`; check each sign of progress against what came before."""
    responses: list[Any] = []
    seen = 0
    while seen < last:
        response = stream.receive()
        responses.append(response)
        if response.events:
            seen = max(seen, *(event.kv.mod_revision for event in response.events))
        elif response.watch_id == -1:
            assert response.header.revision <= seen, "a sign of progress went ahead of the events"
    return responses


def test_15220_progress_never_goes_ahead_of_events(store: Store) -> None:
    """etcd#15220: progress asked for was told at a revision whose events were still to come."""
    history, written = 2_000, 300
    for number in range(history):
        store.put(b"k", b"%d" % number)
    last = 1 + history + written
    with serve(store) as server, client_of(server) as client, client.stream(WATCH) as stream:
        stream.send(watching(b"k", start_revision=2), *[progress()] * 20)

        def write() -> None:
            for _ in range(written):
                store.put(b"k")
                stream.send(progress())

        thread = threading.Thread(target=write)
        thread.start()
        responses = read_until(stream, last)
        thread.join(20)
        stream.send(progress())
        after = stream.receive()
        while after.watch_id != -1 or after.header.revision != last:
            assert not after.events
            after = stream.receive()
    events = [event.kv.mod_revision for response in responses for event in response.events]
    assert events == list(range(2, last + 1))


def test_17529_watches_of_a_starved_stream_lose_nothing(store: Store) -> None:
    """etcd#17529: with many watches on a stream that was read too slowly, events were lost."""
    watches, history, written = 40, 100, 200
    for _ in range(history):
        store.put(b"k", b"x" * 2_000)
    last = 1 + history + written
    with serve(store) as server, grpc.insecure_channel(f"{server.host}:{server.port}") as channel:
        stream = channel.stream_stream(
            WATCH,
            request_serializer=rpc.WatchRequest.SerializeToString,
            response_deserializer=rpc.WatchResponse.FromString,
        )
        starts = [1 + number * history // watches or 1 for number in range(watches)]
        requests = [watching(b"k", start_revision=start, watch_id=1 + n) for n, start in enumerate(starts)]
        goes_on = threading.Event()

        def ask() -> Any:
            yield from requests
            goes_on.wait(30)

        call = stream(ask(), timeout=30, wait_for_ready=True)
        assert next(call).created  # and no more is read while all is written
        for _ in range(written):
            store.put(b"k", b"x" * 2_000)
        found: dict[int, list[int]] = defaultdict(list)
        while len(found) < watches or any(revisions[-1] < last for revisions in found.values()):
            response = next(call)
            assert not response.canceled
            if response.events:
                found[response.watch_id] += [event.kv.mod_revision for event in response.events]
        goes_on.set()
        call.cancel()
    assert found == {1 + n: list(range(max(start, 2), last + 1)) for n, start in enumerate(starts)}


def test_20221_watch_of_the_future_tells_nothing_old(store: Store) -> None:
    """etcd#20221: a watch from a revision that was not there yet was told of what came before it."""
    written, watches = 60, 20
    store.put(b"k")
    starts = {1 + number: 4 + 2 * number for number in range(watches)}
    with serve(store) as server, client_of(server) as client, client.stream(WATCH) as stream:
        for watch_id, start in starts.items():
            stream.send(watching(b"k", start_revision=start, watch_id=watch_id, progress_notify=True))
        assert all(response.created for response in stream.take(watches))
        for _ in range(written):
            client.unary(f"{KV}/Put", put(b"k"))
            stream.send(progress())
        last = 2 + written
        found: dict[int, list[int]] = defaultdict(list)
        while len(found) < watches or any(revisions[-1] < last for revisions in found.values()):
            response = stream.receive()
            assert response.events or response.watch_id == -1
            if response.events:
                found[response.watch_id] += [event.kv.mod_revision for event in response.events]
    assert found == {watch_id: list(range(start, last + 1)) for watch_id, start in starts.items()}
