"""A minute of writing, watching and leasing at once: nothing is missed, and memory stays flat.

Run by `make soak`; `SOAK_SECONDS` makes it shorter or longer.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mvccstore import CompactedError, Event, KeyRange, LeaseNotFoundError, Op, Retention, Store, Watcher
from tests.concurrency.bench import Threads
from tests.guarantees import Watched, watch_problems

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
ROUNDS = 6
BLOCKS_GROWTH_MAX = 1.05
"""Of Python's objects, counted at rest."""
RESIDENT_GROWTH_MAX = {"lmdb": 1.15, "sqlite": 1.15, "memory": 2.0}
"""A view of the memory engine keeps what is replaced while it is read, and malloc gives little of that back."""
RETENTION = Retention(revisions=3_000, check_seconds=0.5)
KEYS = [b"%s/%03d" % (folder, number) for folder in (b"a", b"b", b"c") for number in range(200)]
ALL = KeyRange.all()
WATCHED = (KEYS[7], KeyRange.prefix(b"a/"), KeyRange(b"a/1", b"b/1"), ALL)


class Follower:
    """Watches with others, and keeps in mind only what the promises need: what came last, and how much."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.revision = watcher.revision
        self.events = 0
        self.problems: list[str] = []

    def take(self, timeout: float) -> bool:
        batch = self.watcher.next_batch(timeout)
        if batch is None:
            return False
        if batch.revision <= self.revision:
            self.problems.append(f"{batch.revision} after {self.revision}")
        if len({event.revision for event in batch.events}) > 1:
            self.problems.append(f"{batch.revision} has events of other revisions")
        self.revision = batch.revision
        self.events += len(batch.events)
        return True


class Load:
    """What goes on until it is over."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.is_over = threading.Event()
        self.writes: list[int] = []
        self.lifetimes: list[int] = []

    def run(self, followers: list[Follower], seed: int) -> None:
        """Have it go on for a while."""
        self.is_over.clear()
        with Threads() as threads:
            for number in range(2):
                threads.start(self.write, 10 * seed + number)
                threads.start(self.come_and_go, 10 * seed + number)
            for follower in followers:
                threads.start(self.follow, follower)
            self.is_over.wait(SOAK_SECONDS / ROUNDS)
            self.is_over.set()

    def write(self, seed: int) -> None:
        rng, store, writes = random.Random(seed), self.store, 0
        while not self.is_over.is_set():
            if rng.random() < 0.1:
                with suppress(LeaseNotFoundError):  # it is short
                    lease = store.grant(rng.choice((0.01, 0.05, 3_600)))
                    store.put(rng.choice(KEYS), lease=lease)
                    if rng.random() < 0.5 or lease.ttl > 1:
                        lease.revoke()
            store.txn(success=[Op.put(key, bytes(rng.randrange(300))) for key in rng.sample(KEYS, 3)])
            writes += 1
        self.writes.append(writes)

    def follow(self, follower: Follower) -> None:
        while not self.is_over.is_set():
            follower.take(timeout=0.1)

    def come_and_go(self, seed: int) -> None:
        rng, store, number = random.Random(seed), self.store, 0
        while not self.is_over.is_set():
            number += 1
            with suppress(CompactedError):
                start = rng.choice((0, max(store.revision - rng.randrange(2_000), 1)))
                watcher = store.watch(rng.choice(WATCHED), start_revision=start)
                for _ in range(rng.randrange(10)):
                    watcher.next_batch(timeout=0.001)
                if rng.random() < 0.5:
                    watcher.close()  # the others are collected
        self.lifetimes.append(number)


@pytest.mark.soak
def test_memory_stays_flat_while_nothing_is_missed(open_store: Callable[..., Store], engine: str) -> None:
    store = open_store(engine=engine, retention=RETENTION)
    steady = [Follower(store.watch(keys, prev_kv=True)) for keys in WATCHED]
    idle = [store.watch(keys) for keys in WATCHED]  # never read from
    load, hub = Load(store), store._hub
    resident: list[int] = []
    blocks: list[int] = []
    for seed in range(ROUNDS):
        load.run(steady, seed)
        for follower in steady:
            while follower.take(timeout=0):
                pass
            assert follower.problems == []
            assert follower.watcher.revision == store.revision
        store.enforce(RETENTION)
        store.reclaim()
        gc.collect()
        assert len(hub) == len(steady) + len(idle)
        resident.append(resident_bytes())
        blocks.append(sys.getallocatedblocks())
    mib = [round(size / 2**20, 1) for size in resident]
    print(
        f"\n{engine}: {sum(load.writes)} txns to revision {store.revision}, {sum(load.lifetimes)} watchers that "
        f"came and went, {steady[-1].events} events to the one who watches all; resident MiB {mib}, blocks {blocks}; "
        f"hub: {hub._events} events, {hub._bytes} bytes in {len(hub._order)} batches"
    )
    check_recent(store)
    for watcher in idle + [follower.watcher for follower in steady]:
        watcher.close()
    # The first two fill tails and caches.
    assert max(blocks[2:]) <= blocks[1] * BLOCKS_GROWTH_MAX, blocks
    assert max(resident[2:]) <= resident[1] * RESIDENT_GROWTH_MAX[engine], mib


def check_recent(store: Store) -> None:
    """Hold what is left of the history against all promises, as a watcher from the past sees it."""
    first = max(store.compact_revision, 1) + 1
    with store.watch(ALL, start_revision=first) as watcher:
        watched = Watched(ALL, first)
        while (batch := watcher.next_batch(timeout=0)) is not None:
            watched.taken.append((batch, watcher.revision))
        watched.revision = watcher.revision
    changes: list[Event] = list(store.history(ALL, start_revision=first))
    assert watched.events() == changes
    assert watch_problems(watched, changes) == []


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
