"""`KeyRange` against the plain meaning of its words, on all short keys."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvccstore import KeyRange, Store
from mvccstore.mvcc.read import bounds

BYTES = (0x00, 0x01, 0x61, 0xFE, 0xFF)
SHORT_KEYS = [bytes(key) for length in range(1, 4) for key in product(BYTES, repeat=length)]
some_bytes = st.lists(st.sampled_from(BYTES), max_size=4).map(bytes)
some_keys = st.lists(st.sampled_from(BYTES), min_size=1, max_size=4).map(bytes)


@given(prefix=some_bytes)
def test_prefix_has_the_keys_that_begin_with_it_and_no_other(prefix: bytes) -> None:
    keys = KeyRange.prefix(prefix)
    assert [key for key in SHORT_KEYS if key in keys] == [key for key in SHORT_KEYS if key.startswith(prefix)]


@given(prefix=some_bytes, rest=st.binary(max_size=50))
def test_prefix_has_keys_of_any_length(prefix: bytes, rest: bytes) -> None:
    assert prefix + rest in KeyRange.prefix(prefix)


@given(prefix=st.binary(max_size=6), key=st.binary(max_size=8))
def test_prefix_has_no_key_that_begins_otherwise(prefix: bytes, key: bytes) -> None:
    assert (key in KeyRange.prefix(prefix)) is key.startswith(prefix)


@given(start=some_bytes, end=st.one_of(st.none(), some_keys))
def test_range_is_half_open_and_refused_when_inverted(start: bytes, end: bytes | None) -> None:
    if end is not None and end <= start:
        with pytest.raises(ValueError, match="inverted or empty"):
            KeyRange(start, end)
        return
    keys = KeyRange(start, end)
    expected = [key for key in SHORT_KEYS if start <= key and (end is None or key < end)]
    assert [key for key in SHORT_KEYS if key in keys] == expected
    assert start in keys
    assert end not in keys


@given(key=some_keys)
def test_exactly_has_its_key_only(key: bytes) -> None:
    keys = KeyRange.exactly(key)
    assert [other for other in SHORT_KEYS if other in keys] == ([key] if key in SHORT_KEYS else [])
    assert key + b"\0" not in keys
    assert bounds(key) == bounds(keys)


def test_all_has_every_key_and_empty_has_none() -> None:
    assert all(key in KeyRange.all() for key in SHORT_KEYS)
    assert not any(key in KeyRange.empty() for key in SHORT_KEYS)
    assert KeyRange.prefix(b"") == KeyRange.all()


@pytest.mark.parametrize("other", [None, "a", 1, bytearray(b"a"), KeyRange.all()])
def test_only_bytes_are_in_a_range(other: object) -> None:
    assert other not in KeyRange.all()


@pytest.mark.parametrize(("start", "end"), [("a", None), (b"a", "b"), (None, None), (b"a", 3), (bytearray(b"a"), None)])
def test_bounds_that_are_not_bytes_are_refused(start: bytes, end: bytes) -> None:
    with pytest.raises(TypeError, match="not bytes"):
        KeyRange(start, end)


def test_empty_end_is_refused_but_for_the_empty_range() -> None:
    with pytest.raises(ValueError, match="None has no bound"):
        KeyRange(b"a", b"")
    assert KeyRange(b"", b"") == KeyRange.empty()


def test_prefix_of_text_is_refused() -> None:
    with pytest.raises(TypeError, match="encode it first"):
        KeyRange.prefix("jobs/")  # type: ignore[arg-type]


def test_store_finds_what_the_range_contains(store: Store) -> None:
    with store.begin() as txn:
        for key in SHORT_KEYS:
            txn.put(key)
    ranges = [KeyRange.prefix(key) for key in (b"", *SHORT_KEYS)]
    ranges += [KeyRange(start, end) for start in SHORT_KEYS[::7] for end in SHORT_KEYS[::11] if start < end]
    ranges += [KeyRange.exactly(key) for key in SHORT_KEYS[::5]] + [KeyRange.all(), KeyRange.empty()]
    for keys in ranges:
        expected = sorted(key for key in SHORT_KEYS if key in keys)
        assert [kv.key for kv in store.scan(keys)] == expected
        assert store.count(keys) == len(expected)
