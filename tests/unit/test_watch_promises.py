"""The checkers of what watchers promise find each promise broken, and nothing where it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mvccstore import Event, KeyRange, KeyValue, Store, WatchBatch
from tests import guarantees
from tests.guarantees import Recorder, Watched, watch_problems

ALL = KeyRange.all()
A, B = b"a", b"b"


def _put(key: bytes, revision: int, version: int = 1, created: int = 0) -> Event:
    return Event("put", KeyValue(key, created or revision, revision, version, b"", 0))


def _delete(key: bytes, revision: int) -> Event:
    return Event("delete", KeyValue(key, 0, revision, 0, b"", 0))


CHANGES = [
    _put(A, 2),
    _put(A, 3, 2, 2),
    _put(B, 3),
    _delete(A, 4),
    _put(A, 5),
    _put(A, 5, 2),
    _put(B, 6, 2, 3),
]


def _kept() -> Watched:
    batches = [WatchBatch(r, tuple(e for e in CHANGES if e.revision == r)) for r in range(2, 7)]
    return Watched(ALL, 2, taken=[(batch, batch.revision) for batch in batches], revision=6)


def _with(place: int, batch: WatchBatch | None, at: int = 0) -> Watched:
    watched = _kept()
    taken = [*watched.taken]
    taken[place : place + 1] = [] if batch is None else [(batch, at or batch.revision)]
    return replace(watched, taken=taken)


def _swapped() -> Watched:
    watched = _kept()
    first, second, *rest = watched.taken
    return replace(watched, taken=[second, first, *rest])


def _repeated() -> Watched:
    watched = _kept()
    return replace(watched, taken=[*watched.taken[:2], *watched.taken[1:]])


def _in_two() -> Watched:
    watched = _kept()
    halves = [(WatchBatch(3, (event,)), 3) for event in watched.taken[1][0].events]
    return replace(watched, taken=[watched.taken[0], *halves, *watched.taken[2:]])


def _progress_before(revision: int) -> Watched:
    watched = _kept()
    return replace(watched, taken=[*watched.taken[:2], (WatchBatch(revision, ()), 3), *watched.taken[2:]])


VIOLATIONS: list[tuple[str, str, Watched]] = [
    ("watch_ordered", "revisions the wrong way round", _swapped()),
    ("watch_ordered", "one revision's events the wrong way round", _with(1, WatchBatch(3, (CHANGES[2], CHANGES[1])))),
    ("watch_ordered", "an event in the batch of another revision", _with(0, WatchBatch(3, (CHANGES[0],)))),
    ("watch_unique", "a batch comes twice", _repeated()),
    ("watch_unique", "an event comes twice in its batch", _with(0, WatchBatch(2, (CHANGES[0], CHANGES[0])))),
    ("watch_atomic", "a revision in two batches", _in_two()),
    ("watch_atomic", "half a revision", _with(1, WatchBatch(3, (CHANGES[1],)))),
    ("watch_reliable", "a revision is left out", _with(2, None)),
    ("watch_reliable", "another value", _with(0, WatchBatch(2, (_put(A, 2, version=7),)))),
    ("watch_reliable", "what was not asked for", replace(_kept(), dropped=frozenset({"delete"}))),
    ("watch_reliable", "from before the start", replace(_kept(), first=3)),
    ("watch_reliable", "of another key", replace(_kept(), keys=B)),
    ("watch_reliable", "the version before it is missing", replace(_kept(), prev_kv=True)),
    ("watch_resumable", "the revision is ahead of what was shown", _with(1, _kept().taken[1][0], at=5)),
    ("watch_resumable", "the revision is behind what was shown", _with(4, _kept().taken[4][0], at=3)),
    ("watch_bookmarkable", "a progress batch is ahead of what was shown", _progress_before(4)),
    ("watch_bookmarkable", "a progress batch is behind what was shown", _progress_before(2)),
]


def _changes(watched: Watched) -> list[Event]:
    if not watched.prev_kv:
        return CHANGES
    return [event._replace(prev_kv=event.kv) if event.kv.version == 2 else event for event in CHANGES]


@pytest.mark.parametrize(
    ("promise", "watched"),
    [pytest.param(promise, watched, id=f"{promise}, {what}") for promise, what, watched in VIOLATIONS],
)
def test_checker_finds_a_violation(promise: str, watched: Watched) -> None:
    check: Callable[..., list[str]] = getattr(guarantees, promise)
    assert check(watched, _changes(watched)) != []
    assert any(problem.startswith(promise) for problem in watch_problems(watched, _changes(watched)))


def test_every_promise_has_a_violation() -> None:
    assert {promise for promise, _, _ in VIOLATIONS} == {check.__name__ for check in guarantees.WATCH_PROMISES}


def test_checkers_find_nothing_where_all_is_well() -> None:
    assert watch_problems(_kept(), CHANGES) == []
    assert watch_problems(_progress_before(3), CHANGES) == []


def test_compact_revision_may_be_shown_without_what_was_overwritten_in_it() -> None:
    condensed = _with(3, WatchBatch(5, (CHANGES[5],)))
    assert watch_problems(condensed, CHANGES, compacted={5}) == []
    assert watch_problems(condensed, CHANGES, compacted={3}) != []
    assert watch_problems(_with(3, WatchBatch(5, (CHANGES[4],))), CHANGES, compacted={5}) != []


def test_recording_of_a_store_keeps_all_promises(store: Store) -> None:
    recorder = Recorder(store.watch(ALL, start_revision=2, prev_kv=True), ALL, 2, prev_kv=True)
    store.put(A)
    with store.begin() as txn:
        txn.put(A, b"1")
        txn.delete(A)
        txn.put(B)
    watched = recorder.take_all()
    changes = list(store.history(ALL, prev_kv=True))
    assert watched.events() == changes
    assert watch_problems(watched, changes) == []
    recorder.watcher.close()
