"""Histories: what an etcd of ours gives is found good, and whatever is changed in one is found out."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from mvccstore.server.messages import rpc
from mvccstore.testing import etcd
from mvccstore.testing.history import (
    Operation,
    RecordedWatch,
    Recording,
    WatchedEvent,
    check_history,
    history_problems,
)
from tests.wire.client import Client, Endpoint

KV, WATCH = "/etcdserverpb.KV", "/etcdserverpb.Watch/Watch"
KEYS = [b"a", b"b", b"c"]
KINDS = {0: "put", 1: "delete"}


def play(client: Client, recording: Recording, name: str, seed: int, count: int) -> None:
    rng = random.Random(seed)
    for number in range(count):
        key = rng.choice(KEYS)
        match rng.randrange(4):
            case 0 | 1:
                value = b"%s/%d" % (name.encode(), number)
                with recording.put(name, key, value) as call:
                    call.revision = client.unary(f"{KV}/Put", rpc.PutRequest(key=key, value=value)).header.revision
            case 2:
                with recording.delete(name, key) as call:
                    deleted = client.unary(f"{KV}/DeleteRange", rpc.DeleteRangeRequest(key=key))
                    call.deleted, call.revision = deleted.deleted, deleted.header.revision
            case 3:
                with recording.get(name, key) as call:
                    found = client.unary(f"{KV}/Range", rpc.RangeRequest(key=key))
                    call.revision = found.header.revision
                    if found.kvs:
                        call.value, call.mod_revision = found.kvs[0].value, found.kvs[0].mod_revision


def follow(client: Client, watch: RecordedWatch, last: int) -> None:
    create = rpc.WatchCreateRequest(
        key=watch.key, range_end=watch.range_end or b"", start_revision=watch.start_revision, progress_notify=True
    )
    with client.stream(WATCH) as stream:
        stream.send(rpc.WatchRequest(create_request=create))
        assert stream.receive().created
        newest = 0
        while newest < last:
            response = stream.receive()
            events = [
                WatchedEvent(KINDS[event.type], event.kv.key, event.kv.value, event.kv.mod_revision)
                for event in response.events
            ]
            watch.batch(response.header.revision, events)
            newest = max(newest, *(event.revision for event in events), 0)


@pytest.fixture(scope="module")
def good() -> Recording:
    """What four clients did at once, and two watchers saw."""
    recording = Recording()
    with etcd() as server:
        endpoint = Endpoint(server.host, server.port)

        def run(number: int) -> None:
            with Client(endpoint) as client:
                play(client, recording, f"client {number}", number, 150)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Client(endpoint) as client:
            last = max(operation.revision for operation in recording.operations if operation.is_write)
            follow(client, recording.watch(b"a", b"z", start_revision=2), last)
            last = max(one.revision for one in recording.operations if one.is_write and one.key == b"b")
            follow(client, recording.watch(b"b", start_revision=last // 2), last)
    return recording


def test_what_an_etcd_of_ours_gives_is_found_good(good: Recording) -> None:
    assert len(good.operations) == 600
    assert sum(len(events) for _, events in good.watches[0].batches) > 300
    check_history(good)


def reads(recording: Recording) -> list[Operation]:
    return [one for one in recording.operations if one.kind == "get" and one.value is not None]


def writes(recording: Recording) -> list[Operation]:
    return sorted((one for one in recording.operations if one.is_write), key=lambda one: one.revision)


def _batches(recording: Recording) -> list[Any]:
    return recording.watches[0].batches


def stale_read(recording: Recording, rng: random.Random) -> None:
    for read in rng.sample(reads(recording), len(reads(recording))):
        older = [one for one in writes(recording) if one.key == read.key and one.kind == "put"]
        older = [one for one in older if one.revision < read.mod_revision]
        if older:
            read.value, read.mod_revision = older[-1].value, older[-1].revision
            return


def wrong_value(recording: Recording, rng: random.Random) -> None:
    rng.choice(reads(recording)).value = b"never written"


def lost_key(recording: Recording, rng: random.Random) -> None:
    read = rng.choice(reads(recording))
    read.value, read.mod_revision = None, 0


def same_revision(recording: Recording, rng: random.Random) -> None:
    one, other = rng.sample(writes(recording), 2)
    one.revision = other.revision


def back_in_time(recording: Recording, rng: random.Random) -> None:
    late = rng.choice(writes(recording)[-20:])
    late.began, late.ended = late.began + 1_000, late.ended + 1_000
    early = rng.choice(reads(recording))
    early.began, early.ended = late.ended + 1, late.ended + 2


def lost_event(recording: Recording, rng: random.Random) -> None:
    events = [event for _, batch in _batches(recording) for event in batch]
    del events[rng.randrange(len(events) - 1)]
    recording.watches[0].batches = [(event.revision, [event]) for event in events]


def twice(recording: Recording, rng: random.Random) -> None:
    batches = _batches(recording)
    revision, events = rng.choice(batches)
    batches.append((revision, [rng.choice(events)]))


def out_of_order(recording: Recording, rng: random.Random) -> None:
    events = [event for _, batch in _batches(recording) for event in batch]
    place = rng.randrange(len(events) - 1)
    events[place], events[place + 1] = events[place + 1], events[place]
    recording.watches[0].batches = [(event.revision, [event]) for event in events]


def invented(recording: Recording, rng: random.Random) -> None:
    batches = _batches(recording)
    number = rng.randrange(len(batches))
    revision, events = batches[number]
    batches[number] = (revision, [events[0]._replace(value=b"invented", kind="put"), *events[1:]])


def of_another_key(recording: Recording, rng: random.Random) -> None:
    del rng
    recording.watches[1].batches.append((10_000, [WatchedEvent("put", b"c", b"", 10_000)]))


def late_after_progress(recording: Recording, rng: random.Random) -> None:
    del rng
    batches = _batches(recording)
    batches.insert(0, (batches[-1][0], []))


MUTATIONS: list[Callable[[Recording, random.Random], None]] = [
    *(stale_read, wrong_value, lost_key, same_revision, back_in_time),
    *(lost_event, twice, out_of_order, invented, of_another_key, late_after_progress),
]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_changed_is_found_out(
    good: Recording, mutate: Callable[[Recording, random.Random], None], seed: int
) -> None:
    changed = Recording()
    changed.operations, changed.watches = deepcopy((good.operations, good.watches))
    mutate(changed, random.Random(seed))
    assert history_problems(changed) != []
    with pytest.raises(AssertionError, match=r"\d+ problems in the history"):
        check_history(changed)


def test_a_call_without_an_answer_may_have_been_carried_out_or_not() -> None:
    for happened in (True, False):
        recording = Recording()
        with recording.put("one", b"k", b"first") as call:
            call.revision = 2
        with pytest.raises(ConnectionError), recording.put("one", b"k", b"second"):
            raise ConnectionError
        with recording.get("two", b"k") as call:
            call.revision = 3 if happened else 2
            call.value, call.mod_revision = (b"second", 3) if happened else (b"first", 2)
        check_history(recording)
        call.value = b"third"
        assert ("nobody wrote that" if happened else "put b'k' b'first'") in history_problems(recording)[0]


def test_serializable_reads_may_be_old() -> None:
    recording = Recording()
    for value, revision in ((b"1", 2), (b"2", 3)):
        with recording.put("one", b"k", value) as call:
            call.revision = revision
    with recording.get("two", b"k", is_serializable=True) as call:
        call.revision, call.value, call.mod_revision = 2, b"1", 2
    check_history(recording)
    call.is_serializable = False
    assert "began after this had ended" in history_problems(recording)[0]
