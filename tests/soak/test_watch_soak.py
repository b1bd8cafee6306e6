"""A minute of writing, watching and leasing at once: nothing is missed, and memory stays flat.

Run by `make soak`; `SOAK_SECONDS` makes it shorter or longer.
"""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mvccstore import CompactedError, Event, KeyRange, LeaseNotFoundError, Op, Retention, Store, Watcher
from mvccstore.clock import SystemClock
from tests.concurrency.bench import Threads
from tests.guarantees import Watched, watch_problems

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
SAMPLES = 12
RESIDENT_GROWTH_MAX = 1.15
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
    clock = SystemClock()
    store = open_store(engine=engine, retention=Retention(revisions=3_000, check_seconds=0.5))
    steady = [Follower(store.watch(keys, prev_kv=True)) for keys in WATCHED]
    idle = [store.watch(keys) for keys in WATCHED]  # never read from
    load = Load(store)
    resident: list[int] = []
    with Threads() as threads:
        for seed in range(2):
            threads.start(load.write, seed)
            threads.start(load.come_and_go, 100 + seed)
        for follower in steady:
            threads.start(load.follow, follower)
        begun = clock.monotonic()
        for number in range(1, SAMPLES + 1):
            load.is_over.wait(max(begun + SOAK_SECONDS * number / SAMPLES - clock.monotonic(), 0))
            resident.append(resident_bytes())
            if not all(thread.is_alive() for thread in threads.threads):
                break  # with an error
        load.is_over.set()
    for follower in steady:
        while follower.take(timeout=0):
            pass
        assert follower.problems == []
        assert follower.watcher.revision == store.revision
    gc.collect()
    hub, mib = store._hub, [round(size / 2**20, 1) for size in resident]
    print(
        f"\n{engine}: {sum(load.writes)} txns, revision {store.revision}, {sum(load.lifetimes)} watchers came and went,"
    )
    print(f"{steady[-1].events} events to the one who watches all; resident MiB: {mib}")
    print(f"hub: {hub._events} events, {hub._bytes} bytes in {len(hub._order)} batches, {len(hub)} watchers")
    assert len(hub) == len(steady) + len(idle)
    check_recent(store)
    for watcher in idle + [follower.watcher for follower in steady]:
        watcher.close()
    # A quarter of the time to fill tails and caches; then it is flat.
    settled = resident[SAMPLES // 4 :]
    assert max(settled) <= settled[0] * RESIDENT_GROWTH_MAX, mib


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
