"""What etcd itself has got wrong, by the number of its issue: here it must hold.

The ten are those of etcd's record of correctness bugs (in the README of its robustness tests) whose cause is in what a
single node does, even where it took a second one to see it. What a crash is part of is played to a process that is
killed.
"""

from __future__ import annotations

import queue
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
from mvccstore.server import ServerOptions, serve
from mvccstore.server.messages import rpc
from mvccstore.server.node import RequestLimits
from tests.wire.client import Client, Endpoint, RpcFailure, Stream
from tests.wire.requests import compact, delete, get, put, txn
from tests.wire.test_process import running

KV, WATCH = "/etcdserverpb.KV", "/etcdserverpb.Watch/Watch"
DEFRAGMENT, HASH_KV = "/etcdserverpb.Maintenance/Defragment", "/etcdserverpb.Maintenance/HashKV"
CRASHES = 3
HISTORY = 60
QUICK = "--unsafe-no-fsync"
"""What is killed leaves all the same what it has given to the operating system."""
COMPACTED = ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted")


def process(folder: Path, *flags: str) -> AbstractContextManager[Any]:
    """`mvccstore serve` on a data directory; killed at the end of the block, if not before."""
    return running("--data-dir", str(folder), *flags, program=(sys.executable, "-m", "mvccstore", "serve"))


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
    """etcd#13766: killed under load: that a write was applied was saved ahead of it, so that it was left out for good."""
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
    """etcd#14370: a single node answered before the write was in its log on disk, and lost it in a crash."""
    for crash in range(CRASHES):
        with process(tmp_path / "data") as server, client_of(server) as client:
            found = everything(client)
            assert [kv.key for kv in found.kvs] == [b"%d" % number for number in range(crash)]
            assert found.header.revision == 1 + crash
            assert client.unary(f"{KV}/Put", put(b"%d" % crash)).header.revision == 2 + crash
            kill(server)


def test_14685_crash_during_defragmentation_applies_nothing_twice(tmp_path: Path) -> None:
    """etcd#14685: a defragmentation saved writes and not that they were applied: after a crash in it, they were again."""
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


@pytest.mark.parametrize("physical", [False, True], ids=["in", "after"])
def test_17780_crash_in_a_compaction_does_not_take_the_revision_back(tmp_path: Path, physical: bool) -> None:
    """etcd#17780: deletes that were the last writes were compacted away; a crash before that was noted lost their revisions."""
    revision = 1
    for _ in range(CRASHES):
        with process(tmp_path / "data", QUICK) as server, client_of(server) as client:
            assert everything(client).header.revision == revision
            client.unary(f"{KV}/Put", put(b"a"))
            client.unary(f"{KV}/Put", put(b"kept"))
            assert client.unary(f"{KV}/DeleteRange", delete(b"a", b"c")).deleted == 1
            revision += 3
            for _ in range(HISTORY):  # for there to be something to do
                client.unary(f"{KV}/Put", put(b"much"))
            revision += HISTORY + 2
            client.unary(f"{KV}/DeleteRange", delete(b"much"))
            client.unary(f"{KV}/DeleteRange", delete(b"kept"))
            client.unary(f"{KV}/Compact", compact(revision, physical=physical))
            kill(server)
        with process(tmp_path / "data", QUICK) as server, client_of(server) as client:
            assert everything(client).header.revision == revision
            assert client.unary(f"{KV}/Put", put(b"c")).header.revision == revision + 1
            assert client.unary(f"{KV}/DeleteRange", delete(b"c")).header.revision == revision + 2
            revision += 2
            kill(server)


# Compaction and deletes


@pytest.mark.parametrize("physical", [False, True])
def test_18089_delete_at_the_compacted_revision_is_still_told(store: Store, physical: bool) -> None:
    """etcd#18089: compacted at the revision of a delete, a watch from that revision on missed the delete."""
    with serve(store) as server, client_of(server) as client:
        client.unary(f"{KV}/Put", put(b"a"))
        client.unary(f"{KV}/Put", put(b"b"))
        client.unary(f"{KV}/DeleteRange", delete(b"a"))
        client.unary(f"{KV}/Put", put(b"a"))
        client.unary(f"{KV}/Compact", compact(4, physical=physical))
        assert events_of(client, 4, 2) == [("delete", b"a", 4), ("put", b"a", 5)]


@pytest.mark.parametrize("physical", [False, True], ids=["in", "after"])
def test_19179_delete_at_the_compacted_revision_is_still_told_after_a_crash(tmp_path: Path, physical: bool) -> None:
    """etcd#19179: where a delete was all that was left of a key, a restart did not find it, and went on to compact it."""
    last = 2 + HISTORY + 1
    expected = [("put", b"y", last), ("delete", b"x", last), ("put", b"z", last + 1)]
    with process(tmp_path / "data", QUICK) as server, client_of(server) as client:
        for number in range(HISTORY + 1):
            client.unary(f"{KV}/Put", put(b"x", b"%d" % number))
        client.unary(f"{KV}/Txn", txn(put(b"y"), delete(b"x")))
        client.unary(f"{KV}/Put", put(b"z"))
        client.unary(f"{KV}/Compact", compact(last, physical=physical))
        if physical:
            assert events_of(client, last, 3) == expected
        kill(server)
    for _ in range(CRASHES):
        with process(tmp_path / "data", QUICK) as server, client_of(server) as client:
            assert events_of(client, last, 3) == expected
            kill(server)
    with process(tmp_path / "data", QUICK) as server, client_of(server) as client:
        client.unary(f"{KV}/Compact", compact(last + 1, physical=True))
        assert events_of(client, last + 1, 1) == [("put", b"z", last + 1)]
        with client.stream(WATCH, [watching(b"\0", b"\0", start_revision=last)]) as stream:
            responses = stream.take(2)
            assert (responses[1].canceled, responses[1].compact_revision) == (True, last + 1)


def test_18667_txn_that_reads_a_compacted_revision_writes_nothing(store: Store) -> None:
    """etcd#18667: of a txn with a read that is compacted, members that leave reads out did the writes, and others nothing."""
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
            # Each revision is an event of this watch.
            assert response.header.revision <= seen, "a sign of progress went ahead of the events"
            assert response.header.revision >= seen, "a sign of progress went back behind the events"
    return responses


def test_15220_progress_never_goes_ahead_of_events(store: Store) -> None:
    """etcd#15220: progress that was asked for was told beside the events: before those of its revision, or after later ones."""
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


def starved(server: Any, requests: list[rpc.WatchRequest]) -> Any:
    """Begin a stream of which no more is read than a first response."""
    channel = grpc.insecure_channel(f"{server.host}:{server.port}")
    stream = channel.stream_stream(
        WATCH,
        request_serializer=rpc.WatchRequest.SerializeToString,
        response_deserializer=rpc.WatchResponse.FromString,
    )
    outgoing: queue.SimpleQueue[rpc.WatchRequest | None] = queue.SimpleQueue()
    for request in requests:
        outgoing.put(request)
    call = stream(iter(outgoing.get, None), timeout=30, wait_for_ready=True)
    assert next(call).created
    return channel, outgoing, call


@pytest.mark.parametrize("is_compacted", [False, True])
def test_17529_watches_of_a_starved_stream_lose_nothing(store: Store, is_compacted: bool) -> None:
    """etcd#17529: of a stream that was read too slowly, watches whose next events were compacted went on behind them."""
    watches, history, written = 40, 100, 200
    for _ in range(history):
        store.put(b"k", b"x" * 2_000)
    last = 1 + history + written
    starts = {1 + number: 2 + number * history // watches for number in range(watches)}
    requests = [watching(b"k", start_revision=start, watch_id=watch_id) for watch_id, start in starts.items()]
    with serve(store) as server:
        channel, outgoing, call = starved(server, requests)
        for number in range(written):
            store.put(b"k", b"x" * 2_000)
            if is_compacted and number == written // 2:
                compacted = store.revision
                store.compact(compacted)
        found: dict[int, list[int]] = {watch_id: [] for watch_id in starts}
        ended: dict[int, int] = {}
        while any(watch_id not in ended and found[watch_id][-1:] != [last] for watch_id in starts):
            response = next(call)
            assert response.watch_id not in ended
            if response.canceled:
                ended[response.watch_id] = response.compact_revision
            found[response.watch_id] += [event.kv.mod_revision for event in response.events]
        outgoing.put(None)
        call.cancel()
        channel.close()
    for watch_id, start in starts.items():
        assert found[watch_id] == list(range(start, start + len(found[watch_id])))
    if is_compacted:
        assert set(ended.values()) == {compacted}
    else:
        assert not ended


def test_20221_watch_of_the_future_is_told_of_nothing_old(store: Store) -> None:
    """etcd#20221: a watch of the future was told of progress before it, and from there its client went on elsewhere."""
    written, watches, quiet = 60, 20, 99
    store.put(b"k")
    starts = {1 + number: 4 + 2 * number for number in range(watches)}
    options = ServerOptions(requests=RequestLimits(progress_notify_seconds=0.01))
    with serve(store, options=options) as server, client_of(server) as client, client.stream(WATCH) as stream:
        for watch_id, start in starts.items():
            stream.send(watching(b"k", start_revision=start, watch_id=watch_id, progress_notify=True))
        stream.send(watching(b"none", watch_id=quiet, progress_notify=True))
        for created in stream.take(watches):
            assert created.created
        seen: dict[int, list[int]] = defaultdict(list)

        def receive() -> int:
            """Take a response; what it says of a watch must not be before that begins."""
            response = stream.receive()
            if response.created:
                return 0
            revisions = [event.kv.mod_revision for event in response.events]
            assert response.header.revision >= starts.get(response.watch_id, 0), "told of what is before its begin"
            seen[response.watch_id] += revisions
            return response.watch_id if not revisions else 0

        def wait_for_signs(watch_id: int, number: int) -> None:
            while number:
                number -= receive() == watch_id

        wait_for_signs(quiet, 5)
        for _ in range(written):
            client.unary(f"{KV}/Put", put(b"k"))
            stream.send(progress())
        last = 2 + written
        while any(seen[watch_id][-1:] != [last] for watch_id in starts):
            receive()
        wait_for_signs(1, 2)
    assert {watch_id: seen[watch_id] for watch_id in starts} == {
        watch_id: list(range(start, last + 1)) for watch_id, start in starts.items()
    }
