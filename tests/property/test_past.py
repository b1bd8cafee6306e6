"""Log, diff, blame, at, revert and bisect against a list of full states, after random writes and compactions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mvccstore
from mvccstore import CompactedError, KeyRange, Keys, KeyValue, Op, RevertResult, Store, difference
from mvccstore.testing import Model
from mvccstore.types import CompactRequest, DeleteRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest
from tests.conftest import ENGINES

ALL = KeyRange.all()
KEYS = (b"a", b"a\0", b"b", b"b/1", b"b/2", b"k" * 600, b"\xff")
LEASES = (1, 2)


class SteppedClock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def time_ms(self) -> int:
        return self.now_ms

    def monotonic(self) -> float:
        return 0.0


class Tick(NamedTuple):
    """Time goes on, by more than what it is kept to."""

    ms: int


class Compact(NamedTuple):
    """Forget a part of what is kept."""

    part: float
    is_physical: bool


class Revert(NamedTuple):
    """Go back to a part of what is kept."""

    part: float
    keys: Keys
    is_in_block: bool


keys = st.sampled_from(KEYS)
ranges: st.SearchStrategy[Keys] = st.one_of(
    keys,
    keys.map(KeyRange.prefix),
    keys.map(KeyRange),
    st.sampled_from((ALL, KeyRange.empty(), KeyRange(b"a", b"b/2"))),
)
parts = st.floats(0, 1)
puts = st.builds(PutRequest, keys, st.sampled_from((b"", b"1", b"2")), st.sampled_from((0, 0, *LEASES)))
deletes = st.builds(DeleteRequest, ranges)
steps = st.one_of(
    puts,
    puts,
    deletes,
    st.lists(st.one_of(puts, puts, deletes), max_size=5),
    st.builds(Tick, st.integers(10, 3_000)),
    st.builds(Compact, parts, st.booleans()),
    st.builds(Revert, parts, ranges, st.booleans()),
    st.sampled_from((*map(LeaseRevokeRequest, LEASES), *(LeaseGrantRequest(lease, 60_000) for lease in LEASES))),
)


def holds_key(given: Keys, key: bytes) -> bool:
    return key in given if isinstance(given, KeyRange) else key == given


def kept(model: Model, part: float) -> int:
    """A revision that can be read."""
    oldest = max(model.floor, 1)
    return oldest + round(part * (model.revision - oldest))


def content(kv: KeyValue | None) -> tuple[bytes, int] | None:
    return None if kv is None else (kv.value, kv.lease)


def both(store: Callable[[], object], model: Callable[[], object]) -> None:
    """Have both do the same, or refuse it alike."""
    refused: list[tuple[type[Exception] | None, tuple[object, ...]]] = []
    for call in (store, model):
        try:
            call()
        except mvccstore.StoreError as error:
            refused.append((type(error), error.args))
        else:
            refused.append((None, ()))
    assert refused[0] == refused[1]


def write(store: Store | mvccstore.Txn, request: PutRequest | DeleteRequest) -> None:
    if isinstance(request, PutRequest):
        store.put(request.key, request.value, lease=request.lease)
    else:
        store.delete(request.keys)


def take(store: Store, model: Model, clock: SteppedClock, step: Any) -> None:
    match step:
        case PutRequest() | DeleteRequest():
            both(lambda: write(store, step), lambda: model.write(step))
        case list():
            block = model.begin()
            with store.begin() as txn:
                for request in step:
                    both(lambda: write(txn, request), lambda: block.write(request))  # noqa: B023 - called at once
            block.commit()
        case Tick(ms):
            clock.now_ms += ms
        case Compact(part, is_physical):
            revision = kept(model, part)
            both(
                lambda: store.compact(revision, physical=is_physical),
                lambda: model.write(CompactRequest(revision)),
            )
        case Revert(part, keys, is_in_block):
            revert(store, model, keys, kept(model, part), is_in_block=is_in_block)
        case _:
            both(lambda: store.submit(step), lambda: model.write(step))
    assert store.revision == model.revision


def revert(store: Store, model: Model, keys: Keys, to: int, *, is_in_block: bool) -> None:
    now, then = model.states[-1], model.states[to]
    block = model.begin()
    put = deleted = 0
    for key in sorted(now.keys() | then.keys()):
        if not holds_key(keys, key):
            continue
        if key not in then:
            block.write(Op.delete(key))
            deleted += 1
            continue
        lease = then[key].lease if then[key].lease in model.leases else 0
        if content(now.get(key)) != (then[key].value, lease):
            block.write(Op.put(key, then[key].value, lease=lease))
            put += 1
    expected = RevertResult(block.commit(), put, deleted)
    if is_in_block:
        with store.begin() as txn:
            assert txn.revert(keys, to=to) == expected
    else:
        assert store.revert(keys, to=to) == expected


def time_of(model: Model, revision: int) -> int | None:
    # All revisions of one time are kept or forgotten together.
    time_ms = model.times_ms[revision]
    return time_ms if time_ms >= model.times_ms[max(model.floor, 1)] else None


def check_log(store: Store, model: Model, keys: Keys, start: int, end: int, limit: int) -> None:
    if start > end:
        with pytest.raises(ValueError, match="above"):
            store.log(keys, start_revision=start, end_revision=end)
        start = 0
    expected = [
        mvccstore.Change(event.revision, time_of(model, event.revision), event)
        for event in model.history(keys, start, end, prev_kv=True)
    ]
    found = store.log(keys, start_revision=start, end_revision=end, limit=limit, newest_first=False)
    assert list(found) == expected[: limit or None]
    assert list(store.log(keys, start_revision=start, end_revision=end, limit=limit)) == expected[::-1][: limit or None]


def check_diff(store: Store, model: Model, keys: Keys, one: int, other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = model.states[one], model.states[other]
    expected = [
        (key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if holds_key(keys, key) and content(before.get(key)) != content(after.get(key))
    ]
    for changes_max in (0, 20_000):  # the walk alone, and whichever ends first
        monkeypatch.setattr(difference, "CHANGES_MAX", changes_max)
        assert [tuple(found) for found in store.diff(one, other, keys)] == expected
    if other == model.revision:
        assert [tuple(found) for found in store.diff(one, keys=keys)] == expected


def check_blame(store: Store, model: Model, keys: Keys, revision: int) -> None:
    state = model.states[revision]
    assert [tuple(found) for found in store.blame(keys, revision=revision)] == [
        (key, kv.mod_revision, kv.version, time_of(model, kv.mod_revision), kv)
        for key, kv in sorted(state.items())
        if holds_key(keys, key)
    ]


def check_at(store: Store, model: Model, time_ms: int) -> None:
    expected = sum(written_ms <= time_ms for written_ms in model.times_ms[1:])
    if expected >= model.floor:
        assert store.at(time_ms / 1000) == expected
        return
    with pytest.raises(CompactedError) as caught:
        store.at(time_ms / 1000)
    assert caught.value.args == (model.floor - 1, model.floor)


def check_bisect(store: Store, model: Model, key: bytes, low: int, high: int) -> None:
    def holds(revision: int) -> bool:
        kv = model.states[revision].get(key)
        return kv is not None and kv.version > 1

    found = store.bisect(lambda view: (kv := view.get(key)) is not None and kv.version > 1, low=low, high=high)
    expected = [revision for revision in range(low, high + 1) if holds(revision)]
    if not holds(high):
        assert found is None
    elif holds(low):
        assert found == low
    else:
        assert found in expected
        assert found - 1 not in expected
        if expected == list(range(expected[0], high + 1)):
            assert found == expected[0]


@pytest.mark.parametrize("engine", ENGINES)
@given(data=st.data())
def test_the_past_is_what_the_states_were(engine: str, data: st.DataObject) -> None:
    clock = SteppedClock()
    model = Model(clock=clock)
    with (
        tempfile.TemporaryDirectory(prefix="mvccstore-past-") as folder,
        pytest.MonkeyPatch.context() as monkeypatch,
        mvccstore.open(
            None if engine == "memory" else str(Path(folder) / "store.mvcc"),
            engine=engine,
            durability="os",
            clock=clock,
        ) as store,
    ):
        monkeypatch.setattr(difference, "PAGE_ROWS_FIRST", 1)  # a small store has several pages, too
        monkeypatch.setattr(difference, "KEYS_A_CHANGE", 1)
        first = [LeaseGrantRequest(lease, 60_000) for lease in LEASES]
        for step in first + data.draw(st.lists(steps, min_size=15, max_size=60)):
            take(store, model, clock, step)
        for _ in range(4):
            chosen = data.draw(ranges)
            one, other = kept(model, data.draw(parts)), kept(model, data.draw(parts))
            check_log(store, model, chosen, one, other, data.draw(st.integers(0, 4)))
            check_diff(store, model, chosen, one, other, monkeypatch)
            check_blame(store, model, chosen, one)
            check_at(store, model, 1_000_000 + data.draw(st.integers(-1_000, 40_000)))
            for key in KEYS:
                check_bisect(store, model, key, *sorted((one, other)))
        assert store.stats().snapshots == 0
        assert store.check() == []
