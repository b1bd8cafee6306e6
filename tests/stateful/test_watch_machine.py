"""Watchers and leases against the model, on every engine: what is to be shown is computed from the model's events.

The tails are made so short that a watcher often falls behind and reads the log, and often does not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import mvccstore
from mvccstore import ClosedError, CompactedError, Event, KeyRange, Keys, Lease, Op, Store, WatchBatch
from mvccstore.testing import FakeClock, Model
from mvccstore.types import CompactRequest, LeaseGrantRequest, LeaseRevokeRequest
from tests.guarantees import Recorder, watch_problems

KEYS = (b"a", b"a/1", b"a/2", b"b", b"b/1", b"c", b"\xff", b"long/" + b"k" * 600)
WATCHED: tuple[Keys, ...] = (
    b"a",
    b"c",
    KEYS[-1],
    KeyRange.exactly(b"b"),
    KeyRange.prefix(b"a"),
    KeyRange.prefix(b"a/"),
    KeyRange.prefix(b"\xff"),
    KeyRange(b"a/1", b"b/1"),
    KeyRange(b"a/2", b"c"),
    KeyRange(b"b"),
    KeyRange.all(),
)
FILTERS: tuple[tuple[Any, ...], ...] = ((), (), ("noput",), ("nodelete",), ("noput", "nodelete"))
WATCHERS_MAX = 6

keys = st.sampled_from(KEYS)
values = st.sampled_from((b"", b"1", b"22"))
changes = st.lists(st.tuples(keys, st.sampled_from((b"1", b"2", None))), min_size=1, max_size=6)


class WatchMachine(RuleBasedStateMachine):
    """A store with watchers, and its model."""

    engine = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.patches = [
            mock.patch("mvccstore.hub.TAIL_EVENTS_MAX", 6),
            mock.patch("mvccstore.hub.TAIL_BYTES_MAX", 2_500),
            mock.patch("mvccstore.watch.PAGE_EVENTS", 3),
        ]
        for patch in self.patches:
            patch.start()
        self.folder = tempfile.TemporaryDirectory(prefix="mvccstore-watch-")
        self.path = None if self.engine == "memory" else Path(self.folder.name) / "store.mvcc"
        self.clock = FakeClock()
        self.store = self.open()
        self.model = Model(clock=self.clock)
        self.compacted: set[int] = set()
        self.recorders: list[Recorder] = []
        self.leases: dict[int, tuple[Lease, float, float]] = {}  # with ttl and when each ends
        self.granted = 0

    def open(self) -> Store:
        return mvccstore.open(self.path, engine=self.engine, durability="os", clock=self.clock)

    def teardown(self) -> None:
        try:
            while self.recorders:
                self.finish(self.recorders.pop())
            hub = self.store._hub
            assert (len(hub), hub._events, hub._bytes, len(hub._order), len(hub._index)) == (0, 0, 0, 0, 0)
            assert self.store.check() == []
        finally:
            self.store.close()
            self.folder.cleanup()
            for patch in self.patches:
                patch.stop()

    # Writing

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        self.model.write(Op.put(key, value))
        assert self.store.put(key, value) == self.model.revision

    @rule(which=st.sampled_from(KEYS + WATCHED))
    def delete(self, which: Keys) -> None:
        self.model.write(Op.delete(which))
        self.store.delete(which)

    @rule(members=changes)
    def txn(self, members: list[tuple[bytes, bytes | None]]) -> None:
        success = [Op.delete(key) if value is None else Op.put(key, value) for key, value in dict(members).items()]
        self.model.write(Op.txn(success=success))
        assert self.store.txn(success=success).revision == self.model.revision

    @rule(members=changes, is_rolled_back=st.sampled_from((False, False, False, True)))
    def block(self, members: list[tuple[bytes, bytes | None]], *, is_rolled_back: bool) -> None:
        """Here a key may be put, deleted, and put again, in one revision."""
        model = self.model.begin()
        with self.store.begin() as txn:
            for key, value in members:
                if value is None:
                    model.write(Op.delete(key))
                    txn.delete(key)
                else:
                    model.write(Op.put(key, value))
                    txn.put(key, value)
            if is_rolled_back:
                txn.rollback()
        if not is_rolled_back:
            model.commit()

    @rule(back=st.integers(0, 6), physical=st.booleans())
    def compact(self, back: int, *, physical: bool) -> None:
        revision = self.model.revision - back
        if revision <= self.model.floor or revision < 1:
            return
        self.model.write(CompactRequest(revision))
        self.store.compact(revision, physical=physical)
        self.compacted.add(revision)

    # Leases

    @rule(ttl=st.sampled_from((0.1, 1.0, 16.1)))
    def grant(self, ttl: float) -> None:
        self.granted += 1
        lease = self.store.grant(ttl, lease_id=self.granted)
        self.model.write(LeaseGrantRequest(self.granted, round(ttl * 1000)))
        self.leases[lease.id] = (lease, ttl, round(self.clock.monotonic() + ttl, 6))

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 5), key=keys)
    def put_with_lease(self, which: int, key: bytes) -> None:
        lease = self.some_lease(which)
        self.model.write(Op.put(key, b"leased", lease=lease.id))
        assert self.store.put(key, b"leased", lease=lease) == self.model.revision

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 5))
    def keep_alive(self, which: int) -> None:
        lease, ttl, _ = self.leases[self.some_lease(which).id]
        assert lease.keep_alive() == ttl
        self.leases[lease.id] = (lease, ttl, round(self.clock.monotonic() + ttl, 6))

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 5))
    def revoke(self, which: int) -> None:
        lease = self.some_lease(which)
        lease.revoke()
        self.end(lease.id)

    @rule(seconds=st.sampled_from((0.0, 0.1, 0.3, 0.7, 1.0, 15.0)))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        now = self.clock.monotonic()
        due = [(end, lease_id) for lease_id, (_, _, end) in self.leases.items() if end <= now]
        for _, lease_id in sorted(due):
            self.end(lease_id)

    def some_lease(self, which: int) -> Lease:
        return [*self.leases.values()][which % len(self.leases)][0]

    def end(self, lease_id: int) -> None:
        lease, _, _ = self.leases.pop(lease_id)
        self.model.write(LeaseRevokeRequest(lease_id))
        assert not lease.is_alive

    # Watching

    @rule(
        which=st.sampled_from(WATCHED),
        back=st.sampled_from((None, None, -3, -1, 0, 1, 2, 5, 20)),
        prev_kv=st.booleans(),
        filters=st.sampled_from(FILTERS),
        progress=st.sampled_from((None, None, 0.5)),
    )
    def watch(self, which: Keys, back: int | None, *, prev_kv: bool, filters: Any, progress: float | None) -> None:
        start = 0 if back is None else max(self.model.revision - back, 1)
        options: dict[str, Any] = {"prev_kv": prev_kv, "filters": filters, "progress": progress}
        if start and start < self.model.floor:
            with pytest.raises(CompactedError):
                self.store.watch(which, start_revision=start, **options)
            return
        watcher = self.store.watch(which, start_revision=start, **options)
        first = start or self.model.revision + 1
        assert watcher.revision == first - 1
        self.recorders.append(Recorder(watcher, which, first, prev_kv=prev_kv, filters=filters))
        if len(self.recorders) > WATCHERS_MAX:
            self.finish(self.recorders.pop(0))

    @precondition(lambda self: self.recorders)
    @rule(which=st.integers(0, WATCHERS_MAX), batches=st.sampled_from((1, 2, 1_000)))
    def take(self, which: int, batches: int) -> None:
        recorder = self.recorders[which % len(self.recorders)]
        for _ in range(batches):
            if not self.take_one(recorder):
                break

    @precondition(lambda self: self.recorders)
    @rule(key=keys, is_lost=st.booleans())
    def catch_up_and_go_on(self, key: bytes, *, is_lost: bool) -> None:
        """Have all of them take from the tails, and wait there for what comes."""
        for recorder in [*self.recorders]:
            while self.take_one(recorder):
                pass
        if is_lost:
            self.lose_a_commit()
        self.put(key, b"next")

    def take_one(self, recorder: Recorder) -> bool:
        """Take a batch; False if there was none."""
        before = recorder.watcher.revision
        try:
            batch = recorder.take()
        except CompactedError as error:
            # Only what it needs, and cannot have any more.
            facts = (before < error.revision < error.compact_revision, error.compact_revision)
            assert facts == (True, self.model.floor)
            assert recorder.watcher.is_closed
            self.recorders = [other for other in self.recorders if other is not recorder]
            self.compare(recorder)
            return False
        if batch is None:
            assert recorder.watcher.revision >= self.model.revision
        return batch is not None

    @precondition(lambda self: self.recorders)
    @rule(which=st.integers(0, WATCHERS_MAX), events=st.integers(1, 4))
    def iterate(self, which: int, events: int) -> None:
        """Iterate over single events, and go on with batches; `revision` does not run ahead of them."""
        recorder = self.recorders[which % len(self.recorders)]
        watched, watcher = recorder.watched, recorder.watcher
        needed = watched.needed(self.all_changes(), self.compacted)
        for _ in range(events):
            is_some_left = watcher._events or any(event.revision > watcher.revision for event in needed)
            if not is_some_left or watcher.revision + 1 < self.model.floor:
                break
            event = next(watcher)
            assert watcher.revision in {event.revision, event.revision - 1} or not watcher._events
            watched.taken.append((WatchBatch(event.revision, (event,)), event.revision))
        if watcher._events:
            self.take_one(recorder)  # the rest of the revision
        self.join_revisions(recorder)

    def join_revisions(self, recorder: Recorder) -> None:
        """Put the events that were taken one by one together to what they were."""
        joined: list[tuple[WatchBatch, int]] = []
        for batch, at in recorder.watched.taken:
            if joined and batch.events and joined[-1][0].events and joined[-1][0].revision == batch.revision:
                batch = WatchBatch(batch.revision, (*joined.pop()[0].events, *batch.events))
            joined.append((batch, at))
        recorder.watched.taken[:] = joined
        recorder.watched.revision = recorder.watcher.revision

    @precondition(lambda self: self.recorders)
    @rule(which=st.integers(0, WATCHERS_MAX))
    def close_watcher(self, which: int) -> None:
        recorder = self.recorders.pop(which % len(self.recorders))
        recorder.watcher.close()
        recorder.watcher.close()
        with pytest.raises(ClosedError):
            recorder.watcher.next_batch(timeout=0)
        self.compare(recorder)

    @precondition(lambda self: self.recorders)
    @rule(which=st.integers(0, WATCHERS_MAX))
    def resume(self, which: int) -> None:
        """Go on with a new watcher where this one is."""
        recorder = self.recorders.pop(which % len(self.recorders))
        watched = recorder.watched
        recorder.watcher.close()
        self.compare(recorder)
        filters: Any = [f"no{kind}" for kind in watched.dropped]
        start = recorder.watcher.revision + 1
        if start >= self.model.floor:
            watcher = self.store.watch(watched.keys, start_revision=start, prev_kv=watched.prev_kv, filters=filters)
            recorder.watcher = watcher
            self.recorders.append(recorder)

    def finish(self, recorder: Recorder) -> None:
        """Take all there is, and compare."""
        while self.take_one(recorder):
            pass
        recorder.watcher.close()
        self.compare(recorder)

    @rule()
    def lose_a_commit(self) -> None:
        """As after an interrupted commit: it is done, but nobody was told."""
        with mock.patch.object(self.store._hub, "publish"):
            self.put(b"a", b"lost")
        self.store._hub.lost(self.store.revision)

    @precondition(lambda self: self.engine != "memory")
    @rule()
    def reopen(self) -> None:
        watchers = [recorder.watcher for recorder in self.recorders]
        self.store.close()
        for watcher in watchers:
            with pytest.raises(ClosedError):
                watcher.next_batch(timeout=0)
        for recorder in self.recorders:
            self.compare(recorder)
        self.recorders.clear()
        self.store = self.open()
        now = self.clock.monotonic()
        for lease_id, (_, ttl, _) in self.leases.items():  # each has its whole time again
            lease = self.store.lease(lease_id)
            assert (lease.ttl, lease.remaining()) == (ttl, pytest.approx(ttl, abs=1e-6))
            self.leases[lease_id] = (lease, ttl, round(now + ttl, 6))

    # Comparing

    def all_changes(self) -> list[Event]:
        states = self.model.states
        return [event._replace(prev_kv=states[event.revision - 1].get(event.kv.key)) for event in self.model.events]

    def compare(self, recorder: Recorder) -> None:
        assert watch_problems(recorder.watched, self.all_changes(), self.compacted) == []

    @invariant()
    def store_is_as_the_model(self) -> None:
        assert self.store.revision == self.model.revision
        assert [*self.store.scan(KeyRange.all())] == [*self.model.range(Op.range(KeyRange.all()))]
        assert {lease.id for lease in self.store.leases()} == self.model.leases == {*self.leases}
        for lease, _, end in self.leases.values():
            assert lease.remaining() == pytest.approx(end - self.clock.monotonic(), abs=1e-5)

    @invariant()
    def tails_are_short(self) -> None:
        hub = self.store._hub
        batches = len(hub._order) - hub._dead
        assert hub._events <= 6 or batches == 1
        assert hub._events == sum(len(b.events) for t in hub._topics.values() for b in t.batches.values())
        assert hub._bytes == sum(size for topic, size in hub._order if topic.batches)
        assert batches == sum(len(topic.batches) for topic in hub._topics.values())
        assert hub._dead <= batches
        assert not any(topic.waiting for topic in hub._topics.values())


class LmdbWatchMachine(WatchMachine):
    engine = "lmdb"


class SqliteWatchMachine(WatchMachine):
    engine = "sqlite"


TestWatchInMemory = WatchMachine.TestCase
TestWatchOnLmdb = LmdbWatchMachine.TestCase
TestWatchOnSqlite = SqliteWatchMachine.TestCase

_SETTINGS = settings(stateful_step_count=50)
TestWatchInMemory.settings = TestWatchOnLmdb.settings = TestWatchOnSqlite.settings = _SETTINGS
