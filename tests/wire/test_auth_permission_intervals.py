"""Merged ranges of keys, against a model that looks at every key."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvccstore.server.auth.permissions import READ, READWRITE, WRITE, Grants, Intervals, Permission, is_range

ALPHABET = b"\0ab\xff"
KEYS = sorted(bytes(key) for length in (1, 2, 3) for key in product(ALPHABET, repeat=length))
"""All keys of up to three letters: between two of them there is no bound that the tests draw."""

keys = st.sampled_from([key for key in KEYS if len(key) < 3])
ends = st.one_of(st.just(b""), st.just(b"\0"), keys)
permissions = st.builds(Permission, st.sampled_from((READ, WRITE, READWRITE, 3)), keys, ends)


def _in(key: bytes, start: bytes, range_end: bytes) -> bool:
    if not range_end:
        return key == start
    return key >= start and (range_end == b"\0" or key < range_end)


@given(st.lists(permissions, max_size=8), st.sampled_from((READ, WRITE)), keys, ends)
def test_a_request_is_allowed_if_each_of_its_keys_is(
    granted: list[Permission], kind: int, key: bytes, range_end: bytes
) -> None:
    asked = [other for other in KEYS if _in(other, key, range_end)] or [key]
    mine = [permission for permission in granted if permission.kind in {kind, READWRITE}]
    expected = all(any(_in(other, *permission[1:]) for permission in mine) for other in asked)
    # The last key of the alphabet is not the last key that there is.
    if range_end == b"\0":
        expected = expected and any(permission.range_end == b"\0" for permission in mine)
    assert Grants(granted).allow(kind, key, range_end) == expected


@given(st.lists(st.tuples(keys, st.one_of(st.none(), keys)), max_size=8))
def test_intervals_are_in_order_and_do_not_touch(given_intervals: list[tuple[bytes, bytes | None]]) -> None:
    intervals = Intervals(given_intervals)  # I1
    pairs = list(zip(intervals._starts, intervals._ends, strict=True))
    assert all(end is None or start < end for start, end in pairs)
    assert all(end is not None and end < start for (_, end), (start, _) in pairwise(pairs))


@pytest.mark.parametrize(
    ("key", "range_end", "expected"),
    [
        *((b"a", b"", True), (b"", b"", False), (b"", b"\0", False), (b"", b"b", False), (b"a", b"\0", True)),
        *((b"\0", b"\0", True), (b"a", b"b", True), (b"b", b"a", False), (b"a", b"a", False), (b"a", b"a\0", True)),
    ],
)
def test_what_can_be_granted(key: bytes, range_end: bytes, expected: bool) -> None:
    assert is_range(key, range_end) == expected


def test_what_is_stored_of_old_and_is_no_range_permits_nothing() -> None:
    grants = Grants([Permission(READWRITE, b"b", b"a"), Permission(READWRITE, b"", b"\0"), Permission(READ, b"", b"")])
    assert not any(grants.allow(kind, key, b"") for kind in (READ, WRITE) for key in (b"a", b"b", b"", b"\0", b"c"))


def test_a_range_that_ends_before_it_begins_is_as_its_first_key() -> None:
    grants = Grants([Permission(READ, b"m", b"p")])
    assert grants.allow(READ, b"n", b"a")
    assert not grants.allow(READ, b"p", b"a")
