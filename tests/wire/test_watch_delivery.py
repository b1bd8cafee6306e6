"""How the Watch service delivers: to slow readers, to many, for long, until the end; and what it promises throughout."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from random import Random
from typing import Any
from unittest import mock

import pytest

from mvccstore import CorruptError, Event, KeyRange, Keys, Op, Store
from mvccstore.server.errors import Refusal, translate
from mvccstore.server.messages import rpc
from mvccstore.server.node import RequestLimits
from mvccstore.server.services import watch_events, watch_group, watch_replay, watch_turns
from mvccstore.server.transport.call import WRITABLE_BYTES, Router
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.port import Port
from mvccstore.server.transport.status import Code
from tests.guarantees import Watched, watch_problems
from tests.wire import client as grpc_client
from tests.wire.watch_kit import Bench, Client, batches_of, bench_over, brief, run, until

OpenStore = Callable[..., Store]
ALL = {"key": b"\0", "range_end": b"\0"}
LARGE = b"x" * (WRITABLE_BYTES + 1)


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store(engine="memory")


def revisions_of(responses: list[Any]) -> list[int]:
    return [event.kv.mod_revision for response in responses for event in response.events]


# Slow readers


def test_what_is_not_read_waits_in_the_store(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            slow, quick = bench.client(), bench.client()
            slow.create(**ALL)
            slow.create(b"a")
            quick.create(**ALL)
            quick.taken()
            slow.taken()
            slow.call.is_reading = False
            store.put(b"a", LARGE)
            await bench.settle()
            for number in range(50):
                store.put(b"a", b"%d" % number)
                await bench.settle()
            assert len(slow.call._waiting) <= 3
            assert revisions_of(await quick.take()) == list(range(2, 53))
            store.put(b"b")
            slow.call.read_on()
            responses = await slow.take()
            revisions = {number: revisions_of([r for r in responses if r.watch_id == number]) for number in (0, 1)}
            assert revisions == {0: list(range(2, 54)), 1: list(range(2, 53))}
            assert len(responses) <= 6  # what it missed came together
            store.put(b"a")
            assert [brief(r)[0] for r in await slow.take()] == [54, 54]

    run(main)


def test_slow_reader_of_the_past_gets_a_response_at_a_time(store: Store) -> None:
    for _ in range(5):
        store.put(b"a", LARGE)
    with mock.patch.object(watch_replay, "RESPONSE_BYTES_MAX", WRITABLE_BYTES):

        async def main() -> None:
            async with bench_over(store) as bench:
                client = bench.client()
                client.call.is_reading = False
                client.create(b"a", start_revision=2)
                revisions = []
                for _ in range(5):
                    await bench.settle()
                    assert bench.hall.replays._active == 0  # nothing is held for it
                    assert len(client.call._waiting) <= 2
                    client.call.read()
                    revisions += revisions_of(client.taken())
                assert revisions == [2, 3, 4, 5, 6]
                client.call.read_on()
                store.put(b"a")
                assert revisions_of(await client.take()) == [7]

        run(main)


def test_compaction_cancels_who_does_not_read(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a")
            client.create(b"b")
            client.call.is_reading = False
            for _ in range(3):
                store.put(b"a", LARGE)
                await bench.settle()
            store.put(b"b")
            store.compact(store.revision)
            client.call.read_on()
            *_, event, canceled = sorted(await client.take(), key=lambda r: (r.canceled, r.watch_id))
            assert brief(canceled) == (0, 0, "canceled, compacted 5", [])
            assert brief(event) == (5, 1, "", ["put b@5"])  # nothing of it was compacted away
            client.cancel(0)
            assert [brief(r) for r in await client.take()] == [(5, 0, "canceled", [])]

    run(main)


def test_idle_watch_that_stalls_goes_on_from_where_it_was_not_from_where_it_began(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a")
            client.create(b"b")
            await client.take()
            for _ in range(10):
                store.put(b"c")
            store.compact(store.revision)
            client.call.is_reading = False
            store.put(b"b", LARGE)
            await bench.settle()
            store.put(b"a")
            await bench.settle()
            client.call.read_on()
            assert [brief(r)[1:] for r in await client.take()] == [(1, "", ["put b@12"]), (0, "", ["put a@13"])]

    run(main)


def test_cancelled_while_it_cannot_be_sent_to(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a")
            client.create(b"a")
            client.taken()
            client.call.is_reading = False
            store.put(b"a", LARGE)
            await bench.settle()
            store.put(b"a", b"2")
            await bench.settle()
            client.cancel(0)
            client.call.read_on()
            *_, last = await client.take()
            assert brief(last) == (3, 1, "", ["put a@2", "put a@3"])

    run(main)


# Fairness


def test_long_replay_does_not_hold_up_the_others(store: Store) -> None:
    for number in range(3_000):
        store.put(b"a", b"%d" % number)

    async def main() -> None:
        async with bench_over(store) as bench:
            past, live = bench.client(), bench.client()
            live.create(b"b")
            await live.take()
            past.create(b"a", start_revision=2)
            past.taken()
            store.put(b"b")
            turns = await until(lambda: bool(live.call.sent))
            assert turns <= 3
            found = revisions_of(past.taken())
            assert len(found) < 3_000
            assert [*found, *revisions_of(await past.take())] == list(range(2, 3_002))

    run(main)


def test_many_replays_hold_few_pages(store: Store) -> None:
    for number in range(100):
        store.put(b"a", b"%d" % number)
    held = []

    async def main() -> None:
        async with bench_over(store) as bench:
            clients = [bench.client() for _ in range(50)]
            for client in clients:
                client.create(b"a", start_revision=2)
                client.taken()
            while any(watch.state is watch_group.State.UNSYNCED for c in clients for watch in _watches(c)):
                held.append(len(store._hub))
                await asyncio.sleep(0)
            assert all([revisions_of(await c.take()) == list(range(2, 102)) for c in clients])

    with mock.patch.object(watch_replay, "RESPONSE_REVISIONS_MAX", 10):
        run(main)
    assert max(held) <= watch_replay.REPLAYS_MAX + 1


def _watches(client: Client) -> list[Any]:
    return list(client.receiver._watches.values())  # type: ignore[attr-defined]


def test_large_delivery_takes_several_turns(store: Store) -> None:
    with mock.patch.object(watch_turns, "STEPS_A_TURN", 10):

        async def main() -> None:
            async with bench_over(store) as bench:
                clients = [bench.client() for _ in range(30)]
                for client in clients:
                    client.create(**ALL)
                    await client.take()
                with store.begin() as txn:
                    for number in range(100):
                        txn.put(b"%d" % number)
                turns = await until(lambda: bool(clients[-1].call.sent))
                assert turns >= 13
                for client in clients:
                    assert [len(r.events) for r in await client.take()] == [100]

        run(main)


def test_watch_that_comes_during_a_delivery_misses_nothing(store: Store) -> None:
    with mock.patch.object(watch_turns, "STEPS_A_TURN", 2):

        async def main() -> None:
            async with bench_over(store) as bench:
                clients = [bench.client() for _ in range(10)]
                for client in clients:
                    client.create(b"a")
                    await client.take()
                store.put(b"a")
                store.put(b"a")
                store.put(b"a")
                await until(lambda: bool(clients[2].call.sent))
                assert not clients[-1].call.sent
                late = [bench.client() for _ in range(3)]
                for start, client in enumerate(late):
                    client.create(b"a", start_revision=[3, 4, 0][start])
                clients[-2].call.hang_up()
                store.put(b"a")
                assert [revisions_of(await c.take()) for c in late] == [[3, 4, 5], [4, 5], [5]]
                assert revisions_of(await clients[-1].take()) == [2, 3, 4, 5]
                assert clients[-2].call.sent == []

        run(main)


# Sharing


def test_a_commit_wakes_the_loop_once_and_is_encoded_once(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            clients = [bench.client() for _ in range(20)]
            for client in clients:
                for _ in range(5):
                    client.create(b"a", b"b", prev_kv=True)
                client.create(b"a%d" % clients.index(client))
                await client.take()
            assert len(store._hub) == 21
            with (
                mock.patch.object(
                    bench.node.loop, "call_soon_threadsafe", wraps=bench.node.loop.call_soon_threadsafe
                ) as called,
                mock.patch.object(watch_events, "event_field", wraps=watch_events.event_field) as encoded,
            ):
                for number in range(20):
                    store.put(b"a%d" % number)
                assert called.call_count == 1
                assert sum([len(await client.take()) for client in clients]) == 20 * 100 + 20
                assert encoded.call_count == 20 + 20

    run(main)


def test_large_events_are_not_copied_for_each(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            clients = [bench.client() for _ in range(3)]
            parts: list[int] = []
            for client in clients:
                client.create(b"a")
                await client.take()
                send_part = client.call.send_part

                def noted(part: bytes, send_part: Callable[[bytes], None] = send_part) -> None:
                    if len(part) > len(LARGE):
                        parts.append(id(part))
                    send_part(part)

                client.call.send_part = noted  # type: ignore[method-assign]
            store.put(b"a", LARGE)
            for client in clients:
                [response] = await client.take()
                assert response.events[0].kv.value == LARGE
            assert len(parts) == 3
            assert len(set(parts)) == 1

    run(main)


def test_writers_of_other_threads_are_heard(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(**ALL)
            await client.take()
            threads = [threading.Thread(target=lambda: [store.put(b"a") for _ in range(100)]) for _ in range(3)]
            for thread in threads:
                thread.start()
            found: list[int] = []
            while len(found) < 300:
                await asyncio.sleep(0.001)  # lets the threads have the interpreter
                found += revisions_of(client.taken())
            assert found == list(range(2, 302))
            for thread in threads:
                thread.join()

    run(main)


# The end


def test_half_closed_stream_goes_on(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a")
            client.receiver.end()
            store.put(b"a")
            assert revisions_of(await client.take()) == [2]

    run(main)


def test_client_that_goes_leaves_nothing(store: Store) -> None:
    for _ in range(10):
        store.put(b"a", LARGE)

    async def main() -> None:
        async with bench_over(store, RequestLimits(progress_notify_seconds=5)) as bench:
            synced, stalled, behind = bench.client(), bench.client(), bench.client()
            synced.create(**ALL, progress_notify=True)
            stalled.create(b"a")
            stalled.call.is_reading = False
            await bench.settle()
            for _ in range(2):
                store.put(b"a", LARGE)
                await bench.settle()
            behind.create(b"a", start_revision=2)
            for client in (synced, stalled, behind):
                client.call.hang_up()
            await bench.settle()
            assert len(store._hub) == 0
            assert len(bench.hall.groups) == 0
            assert bench.hall.replays._active == 0

    run(main)


def test_server_that_stops_tells_its_watches(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a")
            await client.take()
            bench.node.begin_stop()
            assert client.call.error is not None
            assert (client.call.error.code, client.call.error.message) == Refusal.STOPPED.value
            late = client.call.__class__(bench.service)
            assert late.open() is None
            assert late.error is not None
            assert late.error.code is Code.UNAVAILABLE

    run(main)


@pytest.mark.parametrize("start", [0, 2])
def test_store_that_is_closed_ends_the_streams(open_store: OpenStore, start: int) -> None:
    store = open_store(engine="memory")

    async def main() -> None:
        async with bench_over(store) as bench:
            store.put(b"a")
            client = bench.client()
            client.create(b"a", start_revision=start)
            if not start:
                await client.take()
            store.close()
            await bench.settle()
            assert client.call.error is not None
            assert (client.call.error.code, client.call.error.message) == Refusal.STOPPED.value
            late = bench.client()
            late.create(b"a")
            assert late.call.error is not None

    run(main)


def test_stalled_stream_of_a_closed_store_ends(open_store: OpenStore) -> None:
    store = open_store(engine="memory")

    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a")
            client.call.is_reading = False
            await bench.settle()
            for _ in range(2):
                store.put(b"a", LARGE)
                await bench.settle()
            store.close()
            client.call.read_on()
            await bench.settle()
            assert client.call.error is not None
            assert client.call.error.code is Code.UNAVAILABLE

    run(main)


@pytest.mark.parametrize("start", [0, 2])
def test_store_that_cannot_be_read_ends_the_stream_and_no_other(store: Store, start: int) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            store.put(b"a")
            store.put(b"b")
            broken, well = bench.client(), bench.client()
            well.create(b"b")
            await well.take()
            broken.create(b"a", start_revision=start)
            with mock.patch("mvccstore.watch.Watcher.catch_up", side_effect=CorruptError("store", ["a page"])):
                if not start:
                    await broken.take()
                    store.put(b"a")
                await bench.settle()
            assert broken.call.error is not None
            assert broken.call.error.code is Code.UNKNOWN
            assert well.call.error is None
            store.put(b"b")
            assert revisions_of(await well.take()) == [store.revision]

    run(main)


# Promises


class Recording:
    """A client that watches some keys, through however many streams, and what it was shown."""

    def __init__(self, bench: Bench, random: Random, keys: Keys, *, prev_kv: bool, filters: list[int]) -> None:
        self.bench = bench
        self.random = random
        self.fields: dict[str, Any] = {"prev_kv": prev_kv, "filters": filters}
        if isinstance(keys, bytes):
            self.fields["key"] = keys
        else:
            self.fields |= {"key": keys.start or b"\0", "range_end": keys.end or b"\0"}
        self.keys = keys
        self.done: list[Watched] = []
        self.fragments: list[Any] = []
        self.begin(bench.store.revision + 1, 0)

    def begin(self, first: int, start_revision: int) -> None:
        dropped = frozenset(("put", "delete")[number] for number in self.fields["filters"])
        self.watched = Watched(self.keys, first, self.fields["prev_kv"], dropped)
        self.watched.revision = first - 1
        self.connect(start_revision)

    def connect(self, start_revision: int) -> None:
        self.client = self.bench.client()
        self.client.call.is_reading = self.random.random() < 0.7
        self.fragments = []
        fragment = self.random.random() < 0.5
        self.client.create(**self.fields, start_revision=start_revision, progress_notify=True, fragment=fragment)

    def step(self) -> None:
        """Read, or do not, or come back on another stream."""
        chance = self.random.random()
        if chance < 0.1:
            self.client.call.is_reading = False
        elif chance < 0.4:
            self.client.call.read()
        elif chance < 0.6:
            self.client.call.read_on()
        elif chance < 0.7:
            self.client.progress()
        self.record()
        if chance > 0.95:
            self.client.call.hang_up()
            self.connect(self.watched.revision + 1)

    def record(self) -> None:
        for response in self.client.taken():
            if response.created:
                assert not response.canceled
                continue
            if response.compact_revision:
                self.done.append(self.watched)
                self.client.call.hang_up()
                self.begin(response.compact_revision, response.compact_revision)
                return
            self.fragments.append(response)
            if not response.fragment:
                whole, *more = self.fragments
                for fragment in more:
                    whole.MergeFrom(fragment)  # adds its events
                self.fragments = []
                for batch in batches_of(whole):
                    self.watched.taken.append((batch, batch.revision))
                    self.watched.revision = max(self.watched.revision, batch.revision)

    async def finish(self) -> list[Watched]:
        """Read on until nothing more comes, and return all recordings."""
        self.client.call.read_on()
        while True:
            before = len(self.watched.taken), len(self.done)
            await self.bench.settle()
            self.client.call.read_on()
            self.record()
            if (len(self.watched.taken), len(self.done)) == before:
                return [*self.done, self.watched]


class Pair:
    """Writes to two stores, one of which is never compacted, so that it knows all that happened."""

    def __init__(self, store: Store, reference: Store, random: Random) -> None:
        self.stores = (store, reference)
        self.random = random
        self.compacted: list[int] = []

    def write(self) -> None:
        random = self.random
        keys = [random.choice([b"a", b"ab", b"b", b"c"]) for _ in range(random.randint(1, 4))]
        value = random.randbytes(random.choice([1, 200, 3_000]))
        kind = random.random()
        for store in self.stores:
            if kind < 0.4:
                store.put(keys[0], value)
            elif kind < 0.55:
                store.delete(KeyRange.prefix(keys[0]))
            elif kind < 0.75:
                store.txn(success=[Op.put(key, value) for key in sorted(set(keys))] + [Op.delete(b"x")])
            else:
                with store.begin() as txn:
                    for number, key in enumerate(keys):
                        if number % 2:
                            txn.delete(key)
                        else:
                            txn.put(key, value)
        if kind > 0.97 and self.stores[0].revision > max(self.compacted, default=0) + 5:
            self.compacted.append(self.stores[0].revision - random.randint(0, 4))
            self.stores[0].compact(self.compacted[-1])

    def changes(self, *, prev_kv: bool) -> list[Event]:
        found = self.stores[1].history(KeyRange.all(), prev_kv=prev_kv)
        # To etcd, what is created has nothing before it, also if the same block deleted it.
        return [event._replace(prev_kv=None) if event.is_create else event for event in found]


WATCHED: list[Keys] = [b"a", b"c", KeyRange.all(), KeyRange.prefix(b"a"), KeyRange(b"ab", b"c"), KeyRange(b"b", None)]


@pytest.mark.parametrize("seed", range(6))
def test_streams_keep_their_promises_whatever_their_readers_do(open_store: OpenStore, engine: str, seed: int) -> None:
    random = Random(seed)
    store, reference = open_store(engine=engine), open_store("reference", engine="memory")
    pair = Pair(store, reference, random)

    async def main() -> None:
        limits = RequestLimits(max_request_bytes=1, progress_notify_seconds=1)
        async with bench_over(store, limits) as bench:
            recordings = [
                Recording(bench, random, random.choice(WATCHED), prev_kv=random.random() < 0.5, filters=filters)
                for filters in [[], [], [], [], [0], [1], [], [], [], []]
            ]
            for _ in range(150):
                for _ in range(random.choice([0, 1, 1, 5])):
                    pair.write()
                for recording in random.sample(recordings, 4):
                    recording.step()
                if random.random() < 0.1:
                    bench.clock.advance(1)
                for _ in range(random.randint(0, 4)):
                    await asyncio.sleep(0)
            for recording in recordings:
                for watched in await recording.finish():
                    changes = pair.changes(prev_kv=watched.prev_kv)
                    assert watch_problems(watched, changes, pair.compacted) == []
                wanted = [event.revision for event in recording.watched.wanted(changes)]
                assert recording.watched.revision >= max(wanted, default=0)

    with ExitStack() as stack:
        # Everything is short, so that all of it is gone through.
        for place, name, value in [
            (watch_turns, "STEPS_A_TURN", 7),
            (watch_replay, "RESPONSE_REVISIONS_MAX", 5),
            (watch_replay, "REPLAYS_MAX", 3),
            (watch_group, "DELIVERY_REVISIONS_MAX", 3),
            (watch_events, "FRAGMENT_OVERHEAD_BYTES", 4_000),
            (watch_group, "FRAGMENT_OVERHEAD_BYTES", 4_000),
        ]:
            stack.enter_context(mock.patch.object(place, name, value))
        stack.enter_context(mock.patch("mvccstore.server.transport.call.WRITABLE_BYTES", 2_000))
        stack.enter_context(mock.patch("mvccstore.watch.PAGE_EVENTS", 8))
        stack.enter_context(mock.patch("mvccstore.hub.TAIL_EVENTS_MAX", 30))
        run(main)


# Over HTTP/2


async def _serving(bench: Bench, work: Callable[[grpc_client.Client], None]) -> None:
    method = bench.service.methods()[0]
    port = Port(Router({method.path: method}, translate=translate), TransportLimits())
    number = await port.listen("127.0.0.1", 0)

    def work_with_client() -> None:
        with grpc_client.Client(grpc_client.Endpoint("127.0.0.1", number)) as client:
            work(client)

    try:
        await asyncio.to_thread(work_with_client)
    finally:
        await port.close(1)


def _create(**fields: Any) -> Any:
    return rpc.WatchRequest(create_request=rpc.WatchCreateRequest(**fields))


PATH = "/etcdserverpb.Watch/Watch"


def test_watch_over_http2(store: Store) -> None:
    def work(client: grpc_client.Client) -> None:
        stream = client.stream(PATH, [_create(**ALL), _create(key=b"a", watch_id=-5)])
        assert [brief(r) for r in stream.take(2)] == [(1, 0, "created", []), (1, -5, "created", [])]
        store.put(b"a", LARGE * 10)
        store.put(b"b")
        found = {brief(r)[:2] for r in stream.take(3)}
        assert found == {(2, 0), (2, -5), (3, 0)}
        stream.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
        assert brief(stream.receive()) == (3, -1, "", [])
        stream.half_close()
        store.put(b"c")
        assert brief(stream.receive()) == (4, 0, "", ["put c@4"])

    async def main() -> None:
        async with bench_over(store) as bench:
            await _serving(bench, work)

    run(main)


def test_slow_client_over_http2_gets_everything(store: Store) -> None:
    def work(client: grpc_client.Client) -> None:
        stream = client.stream(PATH, [_create(key=b"a"), _create(key=b"a", fragment=True)])
        stream.take(2)
        for number in range(60):
            store.put(b"a", bytes([number]) * 300_000)
        seen: dict[int, list[int]] = {0: [], 1: []}
        while len(seen[0]) + len(seen[1]) < 120:
            response = stream.receive()
            seen[response.watch_id] += revisions_of([response])
        assert seen == {0: list(range(2, 62)), 1: list(range(2, 62))}

    async def main() -> None:
        async with bench_over(store) as bench:
            await _serving(bench, work)

    run(main)


def test_client_of_http2_that_goes_leaves_nothing(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:

            def work(client: grpc_client.Client) -> None:
                stream = client.stream(PATH, [_create(key=b"a")])
                stream.receive()
                stream.cancel()

            await _serving(bench, work)
            await bench.settle()
            assert not bench.hall.streams

    run(main)


def test_server_of_http2_that_stops_tells_its_watches(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:

            def work(client: grpc_client.Client) -> None:
                stream = client.stream(PATH, [_create(key=b"a")])
                stream.receive()
                bench.node.loop.call_soon_threadsafe(bench.node.begin_stop)
                with pytest.raises(grpc_client.RpcFailure) as caught:
                    stream.receive()
                assert (caught.value.code, caught.value.message) == ("UNAVAILABLE", "etcdserver: server stopped")

            await _serving(bench, work)

    run(main)
