"""Auto compaction as etcd decides on it: the cases that etcd's own tests of its compactor have, and any course at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

import pytest

from mvccstore import Store
from mvccstore.clock import SystemClock
from mvccstore.server.autocompaction import AutoCompaction, ByRevision, Periodic
from mvccstore.server.compactor import Compactor
from mvccstore.server.member import Identity
from mvccstore.server.node import Node, RequestLimits

HOUR = 3600.0


def compactions(
    policy: AutoCompaction, revisions: Iterable[int], fails: Callable[[int], bool] = lambda _: False
) -> list[tuple[int, int]]:
    """Return at which looks it is compacted, and to which revisions. The first revision is that of the start."""
    first, *others = revisions
    course = policy.begin(0.0, first)
    found = []
    for look, revision in enumerate(others, 1):
        now = look * policy.interval
        wanted = course.look(now, revision)
        if wanted is not None:
            found.append((look, wanted))
            if not fails(look):
                course.done(now, wanted)
    return found


def expected(period: int, round_: int, revisions: list[int], fails: Callable[[int], bool]) -> list[tuple[int, int]]:
    """As `compactions`, told in another way: `period` and `round_` are in looks.

    A look sees what was noted at the `period + 1` looks before it, the start included, and takes the oldest.
    """
    found: list[tuple[int, int]] = []
    last_look, last, wait = 0, 0, period
    for look in range(1, len(revisions)):
        wanted = revisions[max(0, look - period - 1)]
        if look - last_look >= wait and wanted != last:
            found.append((look, wanted))
            wait = round_
            if not fails(look):
                last_look, last = look, wanted
    return found


def test_two_hours_are_compacted_each_hour_and_first_after_two() -> None:
    policy = Periodic(2 * HOUR)
    assert policy.interval == 360.0
    assert compactions(policy, range(1, 52)) == [(20, 1), (30, 10), (40, 20), (50, 30)]


def test_five_minutes_are_compacted_each_five_minutes() -> None:
    policy = Periodic(300.0)
    assert policy.interval == 30.0
    assert compactions(policy, range(1, 62)) == [(10, 1), (20, 10), (30, 20), (40, 30), (50, 40), (60, 50)]


def test_what_has_not_changed_is_left_out_until_it_has() -> None:
    unchanged = [101] * 61
    # Eleven looks later the first of the new revisions is the oldest of those kept.
    assert compactions(Periodic(300.0), [*unchanged, *range(102, 114)]) == [(10, 101), (72, 102)]


def test_a_period_that_is_no_number_of_hours_is_kept_whole() -> None:
    assert compactions(Periodic(1.5 * HOUR), range(1, 42)) == [(15, 1), (25, 10), (35, 20)]
    assert compactions(Periodic(24 * HOUR), range(1, 262)) == [(240, 1), (250, 10), (260, 20)]


def test_what_failed_is_tried_at_each_look() -> None:
    found = compactions(Periodic(300.0), range(1, 32), lambda look: look < 14)
    assert found == [(10, 1), (11, 1), (12, 2), (13, 3), (14, 4), (24, 14)]


def test_ten_revisions_are_kept() -> None:
    assert compactions(ByRevision(10), [1, 1, 100, 100, 200]) == [(2, 90), (4, 190)]
    assert compactions(ByRevision(10), [1, 10, 11, 11], lambda look: look == 2) == [(2, 1), (3, 1)]


@pytest.mark.parametrize("seed", range(20))
def test_any_course_is_that_of_the_rules(seed: int) -> None:
    source = random.Random(seed)
    looks = source.choice([10, 10, 10, 13, 24, 240])
    period = HOUR * looks / 10 if looks > 10 else source.choice([0.1, 0.7, 5.0, 59 * 60.0, HOUR])
    revisions = [1]
    for _ in range(600):
        revisions.append(revisions[-1] + source.choice([0, 0, 1, 5]) * (source.random() < 0.3))
    failing = {look for look in range(600) if source.random() < 0.2}
    found = compactions(Periodic(period), revisions, failing.__contains__)
    assert found == expected(looks, 10, revisions, failing.__contains__)
    assert len(found) > 5


def test_late_timers_do_not_lose_a_round() -> None:
    course = Periodic(100.0).begin(0.0, 1)
    now, found = 0.0, []
    for look in range(1, 101):
        now += 10.0 - 0.4 if look % 2 else 10.0 + 0.4
        if (wanted := course.look(now, look + 1)) is not None:
            course.done(now, wanted)
            found.append(look)
    assert found == list(range(10, 101, 10))


@pytest.mark.parametrize("policy", [Periodic(300.0), Periodic(2 * HOUR), ByRevision(3)], ids=repr)
def test_a_course_is_settled_when_nothing_would_come_any_more(policy: AutoCompaction) -> None:
    course = policy.begin(0.0, 1)
    settled_at = None
    for look in range(1, 200):
        now = look * policy.interval
        wanted = course.look(now, 9)
        assert settled_at is None or wanted is None
        if wanted is not None:
            course.done(now, wanted)
        if settled_at is None and course.is_settled(9):
            settled_at = look
    assert settled_at is not None
    assert not course.is_settled(10)


class Timers:
    """In place of a loop's timers: each is fired by hand."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []
        self._loop = loop
        monkeypatch.setattr(loop, "call_later", self._call_later)

    def _call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.waiting.append((seconds, callback))
        return asyncio.TimerHandle(0.0, callback, (), self._loop)

    def fire(self) -> float:
        ((seconds, callback),) = self.waiting  # I1: there is one
        self.waiting.clear()
        callback()
        return seconds


def test_by_the_systems_clock_a_timer_of_the_loop_looks(
    open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        store = open_store(engine="lmdb")
        node = Node(store, Identity(), RequestLimits(), clock=SystemClock())
        timers = Timers(node.loop, monkeypatch)
        compactor = Compactor(node, ByRevision(2))
        for expected_floor in (-1, 3, 8):
            assert timers.fire() == 300.0
            if not timers.waiting:  # until the compaction is done
                done = asyncio.Event()
                node.writer.call(lambda: None, lambda _, done=done: done.set())  # type: ignore[misc]
                await done.wait()
            assert store.compact_revision == expected_floor
            assert len(timers.waiting) == 1
            for _ in range(5 if expected_floor > 0 else 4):
                store.put(b"a")
        store.compact(13, force=True)
        index = node.raft_index
        timers.fire()
        done = asyncio.Event()
        node.writer.call(lambda: None, lambda _: done.set())
        await done.wait()
        assert (store.compact_revision, node.raft_index) == (13, index + 1)
        compactor.stop()
        compactor.stop()
        await node.stop()
        assert timers.waiting[0][0] == 300.0

    asyncio.run(main())
