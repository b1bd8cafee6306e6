"""A subscription among writes, compactions, restarts and crashes, held against what it promises.

The model is a list of the revisions that changed its keys, and the set of those that were acknowledged. What
is delivered, and when compaction is refused, is said exactly; how far the cursor is ahead of the last
acknowledgement, while only other keys change, is for the subscription to say, and is held between bounds.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mvccstore
from mvccstore import (
    CompactedError,
    CompactionHeldError,
    Delivery,
    KeyRange,
    Op,
    Store,
    Subscription,
    SubscriptionInUseError,
    SubscriptionLostError,
)

KEYS = KeyRange.prefix(b"a")
NAME = "mailer"
keys = st.sampled_from((b"a1", b"a2", b"b1", b"b2", b"b3"))
fractions = st.floats(0, 1)
is_open = precondition(lambda machine: machine.subscription is not None)


class SubscriptionMachine(RuleBasedStateMachine):
    """One subscription of the keys that begin with `a`."""

    engine = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store: Store = self.opened()
        self.subscription: Subscription | None = None
        self.deliveries: list[Delivery] = []
        self.changed: list[int] = []
        """Revisions that changed its keys."""
        self.acked: set[int] = set()
        """Those that need not be delivered any more."""
        self.last = 1
        """The last that was delivered, or before which delivery began anew."""
        self.durable = 0
        """What the cursor does not go below, whatever crashes."""

    def opened(self) -> Store:
        path = None if self.engine == "memory" else Path(self.folder.name) / "store"
        return mvccstore.open(path, engine=self.engine, durability="os")

    @initialize(hold=st.sampled_from((0, 3, 10, 1_000)), before=st.integers(0, 3))
    def begin(self, hold: int, before: int) -> None:
        self.hold = hold
        for _ in range(before):
            self.changed.append(self.store.put(b"a1"))
        self.acked.update(self.changed)
        self.subscribe(self.store.revision, hold_revisions=hold, keys=KEYS)

    def subscribe(self, at_least: int, **options: Any) -> None:
        self.subscription = self.store.subscription(NAME, **options)
        self.last = self.subscription.revision
        self.durable = self.last
        assert self.last >= at_least
        self.deliveries = []

    def stored(self) -> int:
        return self.store._load_subscription(NAME).revision

    def due(self) -> list[int]:
        """What there is to deliver."""
        assert self.subscription is not None
        return [revision for revision in self.changed if revision > max(self.last, self.subscription.revision)]

    @rule(some=st.lists(keys, min_size=1, max_size=3, unique=True), is_delete=st.booleans())
    def write(self, some: list[bytes], is_delete: bool) -> None:
        before = {kv.key for kv in self.store.scan(KeyRange.all())}
        revision = self.store.txn(success=[Op.delete(key) if is_delete else Op.put(key, b"") for key in some]).revision
        changed = before.intersection(some) if is_delete else some
        if any(key in KEYS for key in changed):
            self.changed.append(revision)

    @rule(times=st.integers(1, 6))
    def write_elsewhere(self, times: int) -> None:
        for _ in range(times):
            self.store.put(b"b1")

    @is_open
    @rule()
    def take(self) -> None:
        assert self.subscription is not None
        due = self.due()
        lost: SubscriptionLostError | None = None
        delivery = None
        try:
            delivery = self.subscription.next_batch(timeout=0)
        except SubscriptionLostError as error:
            lost = error
        if lost is not None:
            # If it was still in memory, it would have been delivered all the same.
            assert self.last + 1 < self.store.compact_revision == lost.compact_revision
            assert lost.revision == self.subscription.revision + 1
        elif delivery is None:
            assert not due
            if not self.deliveries:
                assert self.subscription.lag == 0
        else:
            assert delivery.revision == due[0]
            if delivery.revision >= self.store.compact_revision:
                assert delivery.events == tuple(self.store.history(KEYS, start_revision=due[0], end_revision=due[0]))
            self.last = delivery.revision
            self.deliveries.append(delivery)

    @is_open
    @precondition(lambda machine: machine.deliveries)
    @rule(which=fractions, durable=st.booleans(), is_each=st.booleans())
    def acknowledge(self, which: float, durable: bool, is_each: bool) -> None:
        assert self.subscription is not None
        place = round(which * (len(self.deliveries) - 1))
        if is_each:
            delivery = self.deliveries.pop(place)
            delivery.ack(durable=durable)
            self.acked.add(delivery.revision)
        else:
            revision = self.deliveries[place].revision
            self.subscription.ack(revision, durable=durable)
            self.acked.update(changed for changed in self.changed if changed <= revision)
            self.deliveries = self.deliveries[place + 1 :]
        if durable:
            assert self.stored() == self.subscription.revision
            self.durable = self.subscription.revision

    @is_open
    @rule()
    def rewind(self) -> None:
        assert self.subscription is not None
        self.subscription.rewind()
        self.last = self.subscription.revision
        self.deliveries = []

    @is_open
    @rule(where=fractions)
    def seek(self, where: float) -> None:
        assert self.subscription is not None
        oldest = max(self.store.compact_revision, 1)
        start = oldest + round(where * (self.store.revision + 1 - oldest))
        self.subscription.seek(start)
        self.moved_to(start - 1)

    def moved_to(self, revision: int) -> None:
        assert self.subscription is not None
        assert self.subscription.revision == self.stored() == revision
        self.acked = {changed for changed in self.changed if changed <= revision}
        self.last = self.durable = revision
        self.deliveries = []

    @is_open
    @rule()
    def skip(self) -> None:
        assert self.subscription is not None
        before = self.subscription.revision
        lost = self.subscription.skip()
        assert lost == max(0, self.store.compact_revision - before - 1)
        if lost:
            self.moved_to(self.store.compact_revision - 1)

    @rule(where=fractions, force=st.booleans(), physical=st.booleans())
    def compact(self, where: float, force: bool, physical: bool) -> None:
        floor, current = self.store.compact_revision, self.store.revision
        target = max(1, round(current * where))
        held: CompactionHeldError | None = None
        is_done = False
        try:
            self.store.compact(target, force=force, physical=physical)
            is_done = True
        except CompactionHeldError as error:
            held = error
        except CompactedError:
            assert target <= floor
        cursor = self.stored()
        if self.subscription is not None:
            assert cursor == self.subscription.revision
        self.durable = cursor
        is_holding = cursor < current and cursor + 1 >= floor and current - cursor <= self.hold
        if target > floor:
            assert is_done is (force or not is_holding or target <= cursor + 1)
        if held is not None:
            assert (held.revision, held.held_revision, held.name) == (target, cursor + 1, NAME)
        assert self.store.compact_revision == (target if is_done else floor)

    @rule(keep=st.integers(0, 5))
    def retain(self, keep: int) -> None:
        floor, current = self.store.compact_revision, self.store.revision
        self.store.compact(keep_revisions=keep)
        cursor = self.durable = self.stored()
        is_holding = cursor < current and cursor + 1 >= floor and current - cursor <= self.hold
        target = min(current - keep, cursor + 1) if is_holding else current - keep
        assert self.store.compact_revision == (target if target > max(floor, 1) else floor)

    @is_open
    @rule()
    def close(self) -> None:
        assert self.subscription is not None
        with pytest.raises(SubscriptionInUseError):
            self.store.subscription(NAME)
        self.subscription.close()
        assert self.stored() == self.subscription.revision
        self.durable = self.stored()
        self.subscription = None
        self.deliveries = []

    @precondition(lambda machine: machine.subscription is None)
    @rule()
    def open_again(self) -> None:
        self.subscribe(self.durable)

    @precondition(lambda machine: machine.engine != "memory")
    @rule(is_crash=st.booleans())
    def restart(self, is_crash: bool) -> None:
        at_least = self.durable
        if self.subscription is not None and not is_crash:
            at_least = self.subscription.revision
        # A crash: nothing is closed that could have its cursor stored.
        if is_crash:
            self.subscription = None
            self.deliveries = []
            gc.collect()
        self.store.close()
        self.store = self.opened()
        self.subscribe(at_least)

    @invariant()
    def nothing_is_passed_over(self) -> None:
        cursor = self.stored()
        assert cursor >= self.durable
        if self.subscription is not None:
            assert cursor <= self.subscription.revision
            cursor = self.subscription.revision
            assert self.subscription.lag == self.store.revision - cursor
        passed = {revision for revision in self.changed if 1 < revision <= cursor}
        assert passed <= self.acked, "never acknowledged"

    @invariant()
    def store_is_sound(self) -> None:
        assert self.store.check() == []

    def teardown(self) -> None:
        try:
            if self.subscription is None and self.changed:
                self.open_again()
            if self.subscription is not None:
                self.subscription.skip()
                self.subscription.rewind()
                self.last = self.subscription.revision
                due = self.due()
                assert [self.subscription.next_batch(timeout=0).revision for _ in due] == due  # type: ignore[union-attr]
                assert self.subscription.next_batch(timeout=0) is None
        finally:
            self.store.close()
            self.folder.cleanup()


def machine(name: str) -> type[SubscriptionMachine]:
    return type(f"SubscriptionMachine{name.title()}", (SubscriptionMachine,), {"engine": name})


TestSubscriptionOnLmdb = machine("lmdb").TestCase
TestSubscriptionInMemory = machine("memory").TestCase
TestSubscriptionOnSqlite = machine("sqlite").TestCase

_SETTINGS = settings(stateful_step_count=35 if settings().max_examples <= 50 else 60)
TestSubscriptionOnLmdb.settings = TestSubscriptionInMemory.settings = TestSubscriptionOnSqlite.settings = _SETTINGS
