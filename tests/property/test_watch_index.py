"""`WatchIndex` against looking at everything that is watched."""

from __future__ import annotations

import random
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvccstore import KeyRange, Keys
from mvccstore.mvcc.watch_index import WatchIndex, _Node, prefix_of

letters = st.sampled_from((0, 97, 98, 99, 255))
keys = st.lists(letters, min_size=1, max_size=4).map(bytes)


def _between(bounds: tuple[bytes, bytes]) -> KeyRange:
    start, end = sorted(bounds)
    return KeyRange(start, end) if start < end else KeyRange(start)


watched: st.SearchStrategy[Keys] = st.one_of(
    keys,
    keys.map(KeyRange.exactly),
    keys.map(KeyRange.prefix),
    keys.map(KeyRange),
    st.tuples(keys, keys).map(_between),
    keys.map(lambda end: KeyRange(b"", end)),
    st.just(KeyRange.all()),
)


def _matching(added: dict[Keys, int], key: bytes) -> list[int]:
    return sorted(item for keys, item in added.items() if (key in keys if isinstance(keys, KeyRange) else key == keys))


def _check(node: _Node[int] | None) -> tuple[int, list[tuple[bytes, bool, bytes]], list[bytes | None]]:
    """Check the invariants of a tree; return its depth, its order and its ends."""
    if node is None:
        return 0, [], []
    left_depth, before, left_ends = _check(node.left)
    right_depth, after, right_ends = _check(node.right)
    order = [*before, (node.start, node.end is None, node.end or b""), *after]
    assert order == sorted(order)  # I1
    assert all(child.priority <= node.priority for child in (node.left, node.right) if child is not None)  # I1
    ends = [*left_ends, node.end, *right_ends]
    assert node.reach == (None if None in ends else max(end for end in ends if end is not None))  # I2
    return max(left_depth, right_depth) + 1, order, ends


@given(steps=st.lists(st.tuples(watched, st.booleans()), max_size=40), asked=st.lists(keys, max_size=10))
def test_matches_are_those_of_a_list(steps: list[tuple[Keys, bool]], asked: list[bytes]) -> None:
    index: WatchIndex[int] = WatchIndex()
    added: dict[Keys, int] = {}
    for number, (what, is_removed) in enumerate(steps):
        if what in added:
            if is_removed:
                index.remove(what)
                del added[what]
        else:
            index.add(what, number)
            added[what] = number
        _check(index._root)
        assert len(index) == len(added)
        bounds = [what] if isinstance(what, bytes) else [what.start, what.end or b"", what.start + b"\0"]
        for key in [*asked, *filter(None, bounds)]:
            assert sorted(index.matches(key)) == _matching(added, key)
    for what in added:
        index.remove(what)
    assert (len(index), index._root, index._exact, index._prefixes, dict(index._lengths)) == (0, None, {}, {}, {})


@given(prefix=st.lists(letters, max_size=4).map(bytes))
def test_prefix_is_recognized_where_a_range_is_one(prefix: bytes) -> None:
    found = prefix_of(KeyRange.prefix(prefix))
    assert found == prefix or (found is None and prefix.strip(b"\xff") == b"")


@pytest.mark.parametrize("order", ["up", "down", "nested", "random"])
def test_many_intervals_make_no_deep_tree(order: str) -> None:
    numbers = list(range(3_000))
    if order == "down":
        numbers.reverse()
    if order == "random":
        random.Random(7).shuffle(numbers)
    index: WatchIndex[int] = WatchIndex()
    for number in numbers:
        end = 9_999 - number if order == "nested" else number + 5
        index.add(KeyRange(b"%05d" % number, b"%05d" % end), number)
    depth, _, _ = _check(index._root)
    # About 30 of a tree whose priorities are random; never seen above 45.
    assert depth < 100
    assert len(index.matches(b"01000")) == (1_001 if order == "nested" else 5)
    for number in numbers[::2]:
        end = 9_999 - number if order == "nested" else number + 5
        index.remove(KeyRange(b"%05d" % number, b"%05d" % end))
    _check(index._root)


def test_keys_chosen_by_an_enemy_make_no_deep_tree() -> None:
    """Each end is chosen among some so that a checksum of the interval rises with its place."""
    index: WatchIndex[int] = WatchIndex()
    steps = 1_500
    for number in range(steps):
        start = b"%05d" % number
        wanted = (number << 32) // steps
        end = min(
            (b"%05d/%d" % (number, i) for i in range(1, 60)), key=lambda end: abs(crc32(start + b"\0" + end) - wanted)
        )
        index.add(KeyRange(start, end), number)
    assert _check(index._root)[0] < 100
