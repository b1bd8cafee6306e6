"""The Watch service, rule by rule. The rows were also had from etcd 3.6."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest

from mvccstore import Op, Store
from mvccstore.clock import SystemClock
from mvccstore.server.node import RequestLimits
from mvccstore.server.services import watch_events, watch_replay, watch_stream, watch_turns
from mvccstore.server.transport.call import Call
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.testing import FakeClock
from tests.wire.watch_kit import Bench, bench_over, brief, run, until

OpenStore = Callable[..., Store]
COMPACTED = "etcdserver: mvcc: required revision has been compacted"
EMPTY_RANGE = "mvcc: watcher range is empty"
DUPLICATE = "mvcc: duplicate watch ID provided on the WatchStream"
ALL = {"key": b"\0", "range_end": b"\0"}


def briefs(responses: list[Any]) -> list[Any]:
    return [brief(response) for response in responses]


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store(engine="memory")


# Creating


CREATES: list[tuple[dict[str, Any], int, str]] = [
    ({"key": b"a"}, 0, "created"),
    ({"key": b"a", "watch_id": 2}, 2, "created"),
    ({"key": b"a"}, 1, "created"),
    ({"key": b"a"}, 3, "created"),  # 2 is taken
    ({"key": b"a", "watch_id": -1}, -1, "created"),
    ({"key": b"a", "watch_id": -1}, -1, f"created, canceled, {DUPLICATE}"),
    ({"key": b"a", "watch_id": 3}, -1, f"created, canceled, {DUPLICATE}"),
    ({"key": b"b", "range_end": b"a"}, -1, f"created, canceled, {EMPTY_RANGE}"),
    ({"key": b"b", "range_end": b"b", "watch_id": 2}, -1, f"created, canceled, {EMPTY_RANGE}"),
    ({"key": b"a", "watch_id": 2, "start_revision": -3}, -1, f"created, canceled, {COMPACTED}"),
    ({"key": b"b", "range_end": b"a", "start_revision": -3}, -1, f"created, canceled, {COMPACTED}"),
    ({}, 4, "created"),
    ({"range_end": b"\0"}, 5, "created"),
    ({"key": b"k", "range_end": b"\0"}, 6, "created"),
    ({"key": b"x", "start_revision": 50}, 7, "created"),
    ({"key": b"x", "filters": [7, 0]}, 8, "created"),  # 7 is no filter that is known
    ({"key": b"x", "watch_id": -(2**63)}, -(2**63), "created"),
    ({"key": b"x", "start_revision": 2**63 - 1}, 9, "created"),
]


def test_watches_are_created_in_the_order_of_requests(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            for fields, _, _ in CREATES:
                client.create(**fields)
            expected = [(1, watch_id, said, []) for _, watch_id, said in CREATES]
            assert briefs(client.taken()) == expected  # at once, in this turn
            assert await client.take() == []

    run(main)


def test_headers_say_who_answers(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a")
            [response] = client.taken()
            node = bench.node
            expected = (node.cluster_id, node.member_id, node.raft_term)
            assert (response.header.cluster_id, response.header.member_id, response.header.raft_term) == expected

    run(main)


def test_keys_that_are_watched(store: Store) -> None:
    watched = [
        {},
        {"range_end": b"\0"},
        ALL,
        {"key": b"k", "range_end": b"\0"},
        {"key": b"k"},
        {"key": b"k", "range_end": b"k1"},
    ]

    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            for fields in watched:
                client.create(**fields)
            client.taken()
            for key in (b"\0", b"a", b"k", b"k0", b"k1"):
                store.put(key)
            found: dict[int, list[int]] = {}
            for response in await client.take():
                assert response.header.revision == response.events[0].kv.mod_revision
                found.setdefault(response.watch_id, []).append(response.header.revision)
            assert found == {0: [2], 1: [2, 3, 4, 5, 6], 2: [2, 3, 4, 5, 6], 3: [4, 5, 6], 4: [4], 5: [4, 5]}

    run(main)


def test_ids_of_cancelled_watches_are_not_chosen_again(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            for _ in range(4):
                client.create(b"a")
            client.taken()
            for watch_id in (3, 0, 3, 99, -1):
                client.cancel(watch_id)
            client.create(b"a")
            client.create(b"a", watch_id=3)
            expected = [(1, 3, "canceled", []), (1, 0, "canceled", []), (1, 4, "created", []), (1, 3, "created", [])]
            assert briefs(client.taken()) == expected
            store.put(b"a")
            assert sorted(response.watch_id for response in await client.take()) == [1, 2, 3, 4]

    run(main)


def test_request_without_content_is_ignored(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.ask_nothing()
            client.create(b"a")
            assert briefs(await client.take()) == [(1, 0, "created", [])]

    run(main)


@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", "PermissionDenied"),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", "Unauthenticated"),
        (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", "InvalidArgument"),
    ],
)
def test_what_is_not_permitted_is_not_created(store: Store, code: Code, text: str, reason: str) -> None:
    asked = []

    def permit(call: Call, key: bytes, range_end: bytes) -> None:
        assert not call.is_done
        asked.append((key, range_end))
        if key == b"secret":
            raise RpcError(code, text)

    async def main() -> None:
        async with bench_over(store, permit=permit) as bench:
            client = bench.client()
            client.create(b"secret", b"a", watch_id=5)
            client.create()
            refused = f"created, canceled, rpc error: code = {reason} desc = {text}"
            assert briefs(client.taken()) == [(1, -1, refused, []), (1, 0, "created", [])]

    run(main)
    assert asked == [(b"secret", b"a"), (b"\0", b"")]


# Events


def test_events_of_one_revision_come_in_one_response_in_their_order(store: Store) -> None:
    store.put(b"c")

    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(**ALL)
            client.taken()
            store.txn(success=[Op.put(b"b", b"1"), Op.delete(b"c"), Op.put(b"a", b"2")])
            store.put(b"a")
            expected = [(3, 0, "", ["put b@3", "delete c@3", "put a@3"]), (4, 0, "", ["put a@4"])]
            assert briefs(await client.take()) == expected
            client.create(start_revision=2, watch_id=7, **ALL)
            history = (4, 7, "", ["put c@2", "put b@3", "delete c@3", "put a@3", "put a@4"])
            assert briefs(await client.take()) == [(4, 7, "created", []), history]

    run(main)


def test_events_have_what_the_key_is(store: Store) -> None:
    lease = store.grant(100, lease_id=77)
    store.put(b"a", b"1")

    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a")
            client.taken()
            store.put(b"a", b"2", lease=lease)
            lease.revoke()
            put, deleted = await client.take()
            kv = put.events[0].kv
            fields = (kv.key, kv.create_revision, kv.mod_revision, kv.version, kv.value, kv.lease)
            assert fields == (b"a", 2, 3, 2, b"2", 77)
            assert not put.events[0].HasField("prev_kv")
            kv = deleted.events[0].kv
            fields = (kv.key, kv.create_revision, kv.mod_revision, kv.version, kv.value, kv.lease)
            assert (deleted.events[0].type, fields) == (1, (b"a", 0, 4, 0, b"", 0))

    run(main)


def test_history_comes_a_thousand_revisions_a_response(store: Store) -> None:
    for number in range(2_500):
        store.put(b"a", b"%d" % number)

    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a", start_revision=2)
            created, *responses = await client.take()
            assert created.created
            assert [len(response.events) for response in responses] == [1_000, 1_000, 500]
            assert {response.header.revision for response in responses} == {2_501}
            revisions = [event.kv.mod_revision for response in responses for event in response.events]
            assert revisions == list(range(2, 2_502))
            store.put(b"a")
            store.put(b"a")
            expected = [(revision, 0, "", [f"put a@{revision}"]) for revision in (2_502, 2_503)]
            assert briefs(await client.take()) == expected

    run(main)


def test_history_of_other_keys_is_passed_over(store: Store) -> None:
    store.put(b"a")
    with store.begin() as txn:
        for number in range(3_000):
            txn.put(b"b%d" % number)
    store.put(b"a")

    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a", b"b", start_revision=2)
            assert briefs(await client.take())[1:] == [(4, 0, "", ["put a@2", "put a@4"])]
            client.create(b"c", b"d", start_revision=2)
            store.put(b"c")
            assert briefs(await client.take())[1:] == [(5, 1, "", ["put c@5"])]

    run(main)


def test_watch_of_the_future_shows_nothing_before(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a", start_revision=4)
            client.create(b"a")  # in the same group
            client.taken()
            for _ in range(3):
                store.put(b"a")
            found = [(response.header.revision, response.watch_id) for response in await client.take()]
            assert sorted(found) == [(2, 1), (3, 1), (4, 0), (4, 1)]

    run(main)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [([0], ["delete a@3", "delete a@5"]), ([1], ["put a@2", "put a@4"]), ([0, 1], []), ([9], None)],
)
def test_filters_leave_events_out(store: Store, filters: list[int], expected: list[str] | None) -> None:
    def write() -> None:
        store.put(b"a")
        store.delete(b"a")

    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            write()
            client.create(b"a", start_revision=2, filters=filters)
            await bench.settle()
            write()
            _, *responses = await client.take()
            assert all(response.events for response in responses)
            found = [event for response in responses for event in brief(response)[3]]
            assert found == (["put a@2", "delete a@3", "put a@4", "delete a@5"] if expected is None else expected)

    run(main)


def test_prev_kv_is_the_key_before_the_revision(store: Store) -> None:
    def write(base: bytes) -> None:
        store.put(b"a", base + b"1")
        store.put(b"a", base + b"2")
        store.txn(success=[Op.put(b"n", b""), Op.txn(success=[Op.delete(b"a")])])
        with store.begin() as txn:
            txn.put(b"k", base)
            txn.delete(b"k")
        with store.begin() as txn:
            txn.put(b"n", base)
            txn.delete(b"n")
            txn.put(b"n", base)  # it is created, so nothing was before it
        store.delete(b"n")

    def expected(base: bytes) -> list[bytes | None]:
        return [None, base + b"1", None, base + b"2", None, None, b"", b"", None, base]

    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(prev_kv=True, **ALL)
            write(b"x")
            client.create(prev_kv=True, start_revision=2, **ALL)
            found: dict[int, list[bytes | None]] = {0: [], 1: []}
            for response in await client.take():
                for event in response.events:
                    found[response.watch_id].append(event.prev_kv.value if event.HasField("prev_kv") else None)
            assert found == {0: expected(b"x"), 1: expected(b"x")}

    run(main)


# Compaction


def test_watch_from_a_compacted_revision_is_created_and_cancelled(store: Store) -> None:
    for number in range(8):
        store.put(b"h%d" % number)
    store.compact(5)

    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"h", b"i", start_revision=2)
            responses = await client.take()
            assert briefs(responses) == [(9, 0, "created", []), (0, 0, "canceled, compacted 5", [])]
            assert all(response.header.cluster_id and response.header.raft_term for response in responses)
            client.progress()  # which it holds up
            client.create(b"h", watch_id=0)
            client.create(b"h")
            assert [brief(response)[:2] for response in await client.take()] == [(9, 1), (9, 2)]
            client.progress()
            client.cancel(0)
            client.cancel(0)
            client.progress()
            assert briefs(await client.take()) == [(9, 0, "canceled", []), (9, -1, "", [])]
            client.create(b"h", b"i", start_revision=5, prev_kv=True)
            assert briefs(await client.take())[1][3] == [f"put h{number}@{number + 2}" for number in range(3, 8)]

    run(main)


def test_compaction_cancels_a_watch_that_is_behind_after_what_it_has_read(store: Store) -> None:
    for number in range(20):
        store.put(b"a", b"%d" % number)

    async def main() -> None:
        async with bench_over(store) as bench:
            with (
                mock.patch.object(watch_replay, "RESPONSE_REVISIONS_MAX", 4),
                mock.patch.object(watch_turns, "STEPS_A_TURN", 1),
                mock.patch("mvccstore.watch.PAGE_EVENTS", 5),
            ):
                synced, behind = bench.client(), bench.client()
                synced.create(b"a")
                behind.create(b"a", start_revision=2)
                await until(lambda: len(behind.call.sent) >= 3)
                store.compact(21)
                store.put(b"a")
                *_, before, last = await behind.take()
                assert brief(last) == (0, 0, "canceled, compacted 21", [])
                assert before.events[-1].kv.mod_revision < 21
                assert briefs(await synced.take()) == [(21, 0, "created", []), (22, 0, "", ["put a@22"])]

    run(main)


# Fragments


async def _fragments(bench: Bench, sizes: list[int], **fields: Any) -> list[Any]:
    start = bench.store.revision + 1
    for number, size in enumerate(sizes):
        bench.store.put(b"f%d" % number, b"x" * size)
    client = bench.client()
    client.create(b"f", b"g", start_revision=start, **fields)
    _, *responses = await client.take()
    return responses


MIB = 1 << 20


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1, MIB, MIB, MIB, MIB], [2, 1, 1, 1]),
        ([MIB, MIB - 200], [2]),
        ([MIB, MIB], [1, 1]),
        ([2 * MIB], [1]),
        ([2 * MIB, 1], [1, 1]),
        ([1, 2 * MIB], [1, 1]),
        ([3 * MIB, 3 * MIB, 1, 1], [1, 1, 2]),
    ],
)
def test_large_response_comes_in_fragments(store: Store, sizes: list[int], expected: list[int]) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            responses = await _fragments(bench, sizes, fragment=True)
            assert [len(response.events) for response in responses] == expected
            assert [response.fragment for response in responses] == [True] * (len(expected) - 1) + [False]
            assert {(r.header.revision, r.watch_id) for r in responses} == {(store.revision, 0)}
            [whole] = await _fragments(bench, sizes)
            assert (len(whole.events), whole.fragment) == (len(sizes), False)

    run(main)


def test_fragment_is_as_large_as_it_may_be(store: Store) -> None:
    async def main() -> None:
        limit = watch_events.FRAGMENT_OVERHEAD_BYTES + 10_000
        async with bench_over(store, RequestLimits(max_request_bytes=10_000)) as bench:
            responses = await _fragments(bench, [100] * 8_000, fragment=True)
            for before, after in pairwise(responses):
                if before.fragment:
                    assert before.ByteSize() < limit
                    assert before.ByteSize() + after.events[0].ByteSize() + 3 >= limit

    run(main)


def test_one_revision_may_be_split_and_the_live_too(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store, RequestLimits(max_request_bytes=10)) as bench:
            client = bench.client()
            client.create(fragment=True, **ALL)
            client.create(**ALL)
            client.taken()
            store.txn(success=[Op.put(b"%d" % number, b"x" * 300_000) for number in range(3)])
            found: dict[int, list[Any]] = {}
            for response in await client.take():
                found.setdefault(response.watch_id, []).append((len(response.events), response.fragment))
            assert found == {0: [(1, True), (1, True), (1, False)], 1: [(3, False)]}

    run(main)


# Progress


def test_progress_is_told_if_all_watches_are_synced_and_have_begun(store: Store) -> None:
    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.progress()
            assert await client.take() == []  # there is none
            client.create(b"a")
            client.create(b"b", b"c", start_revision=4)
            client.taken()
            store.put(b"x")
            client.progress()
            assert await client.take() == []  # the other has not begun
            store.put(b"x")
            store.put(b"a")
            await bench.settle()
            client.progress()
            client.progress()
            assert briefs(await client.take()) == [(4, 0, "", ["put a@4"]), (4, -1, "", []), (4, -1, "", [])]
            client.create(b"a", start_revision=2)
            client.progress()  # it has not read the log
            assert briefs(await client.take()) == [(4, 2, "created", []), (4, 2, "", ["put a@4"])]
            client.progress()
            assert briefs(await client.take()) == [(4, -1, "", [])]

    run(main)


@pytest.mark.parametrize("at_once", [100, 0])
def test_progress_says_nothing_that_was_not_sent(store: Store, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(watch_stream, "_LOOKED_AT_ONCE", at_once)

    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            client.create(b"a")
            client.create(b"b")
            await client.take()
            store.put(b"b")
            store.put(b"a")
            client.progress()  # neither has been sent yet
            *events, progress = await client.take()
            assert sorted(response.header.revision for response in events) == [2, 3]
            assert brief(progress) == (3, -1, "", [])
            with mock.patch.object(watch_turns, "STEPS_A_TURN", 1):
                for _ in range(5):
                    store.put(b"a")
                    store.put(b"b")
                newest, told = 3, 0
                while newest < 13 or told < 13:
                    client.progress()
                    await asyncio.sleep(0)
                    for response in client.taken():
                        if response.watch_id == -1:
                            told = response.header.revision
                            assert told >= newest
                        else:
                            newest = max(newest, response.header.revision)
                            assert response.header.revision > told

    run(main)


def test_progress_of_many_watches_is_looked_for_in_turns(store: Store) -> None:
    """However often it is asked for."""

    async def main() -> None:
        async with bench_over(store) as bench:
            client = bench.client()
            for number in range(1_000):
                client.create(b"%d" % (number % 10))
            await client.take()
            store.put(b"7")
            for _ in range(64):
                client.progress()
            assert client.taken() == []
            rounds = await until(lambda: len(client.call.sent) == 100 + 64)
            assert rounds > 1_000 // watch_turns.STEPS_A_TURN
            assert briefs(client.taken()[-64:]) == [(2, -1, "", [])] * 64
            client.progress()
            client.create(b"late", start_revision=9)  # now not all are synced and have begun
            assert [response.watch_id for response in await client.take()] == [1_000]
            client.cancel(1_000)
            client.progress()
            for number in range(950):
                client.cancel(number)
            *gone, progress = await client.take()
            assert brief(progress) == (2, -1, "", [])
            assert len(gone) == 951
            client.progress()
            client.create(b"again")
            for number in range(100):
                client.create(b"%d" % number)
            client.progress()
            client.call.hang_up()

    run(main)


def _progress_bench(store: Store, clock: FakeClock) -> Any:
    return bench_over(store, RequestLimits(progress_notify_seconds=10), clock)


def test_progress_is_told_at_intervals_unless_events_were(store: Store) -> None:
    clock = FakeClock()

    async def main() -> None:
        async with _progress_bench(store, clock) as bench:
            client = bench.client()
            client.create(b"a", progress_notify=True)
            client.create(b"b", progress_notify=True, start_revision=4)
            client.create(b"c")
            client.taken()
            clock.advance(9.9)
            assert await client.take() == []
            clock.advance(0.1)
            assert briefs(await client.take()) == [(1, 0, "", [])]
            store.put(b"a")
            clock.advance(10)
            assert briefs(await client.take()) == [(2, 0, "", ["put a@2"])]
            store.put(b"x")
            store.put(b"x")
            clock.advance(10)
            assert briefs(await client.take()) == [(4, 0, "", []), (4, 1, "", [])]
            client.cancel(0)
            client.taken()
            clock.advance(10)
            assert briefs(await client.take()) == [(4, 1, "", [])]

    run(main)


def test_intervals_of_streams_differ_by_a_tenth_at_most(store: Store) -> None:
    clock = FakeClock()

    async def main() -> None:
        async with _progress_bench(store, clock) as bench:
            clients = [bench.client() for _ in range(20)]
            for client in clients:
                client.create(b"a", progress_notify=True)
                client.taken()
            told: dict[int, int] = {}
            clock.advance(9.9)
            for tenth in range(12):
                for number, client in enumerate(clients):
                    if await client.take():
                        told[number] = tenth
                clock.advance(0.1)
            assert min(told.values()) == 1
            assert len(told) == 20
            assert len(set(told.values())) > 5
            for client in clients:
                client.call.hang_up()
            assert not bench.hall.ticks._streams
            clock.advance(20)
            await bench.settle()
            assert not bench.hall.ticks._heap

    run(main)


def test_progress_is_not_told_to_who_does_not_read(store: Store) -> None:
    clock = FakeClock()

    async def main() -> None:
        async with _progress_bench(store, clock) as bench:
            client = bench.client()
            client.create(b"a", progress_notify=True)
            client.taken()
            client.call.is_reading = False
            store.put(b"a", b"x" * 300_000)
            await bench.settle()
            clock.advance(10)
            clock.advance(10)
            await bench.settle()
            assert len(client.call._waiting) == 1
            client.call.read_on()
            assert briefs(await client.take()) == [(2, 0, "", ["put a@2"])]
            clock.advance(10)
            assert briefs(await client.take()) == [(2, 0, "", [])]

    run(main)


def test_real_clock_tells_progress(open_store: OpenStore) -> None:
    store = open_store(engine="memory")

    async def main() -> None:
        async with bench_over(store, RequestLimits(progress_notify_seconds=0.001), SystemClock()) as bench:
            client = bench.client()
            client.create(b"a", progress_notify=True)
            arrived = asyncio.Event()
            send = client.call.send

            def noted(message: bytes) -> None:
                send(message)
                arrived.set()

            client.taken()
            client.call.send = noted  # type: ignore[method-assign]
            await arrived.wait()
            assert briefs(client.taken()) == [(1, 0, "", [])]

    run(main)
