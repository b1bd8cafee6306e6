"""Ranges of keys that may be read or written, merged, and whether they cover a request.

Invariants:

* I1. The intervals of an `Intervals` are in order, none is empty, and none touches the next: what several permissions
  cover together is covered, wherever one ends and another begins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

READ, WRITE, READWRITE = 0, 1, 2
_NO_END = b"\0"


class Permission(NamedTuple):
    """A permission of a role, as on the wire."""

    kind: int
    """`READ`, `WRITE` or `READWRITE`; any other number permits nothing."""
    key: bytes
    range_end: bytes
    """Empty for the key alone, `b"\\0"` for all keys from it on."""


class Intervals:
    """Keys, as half-open intervals; an end of None has no bound.

    >>> keys = Intervals([(b"a", b"c"), (b"c", b"e")])
    >>> keys.cover(b"a", b"e"), keys.cover(b"d", b""), keys.cover(b"d", b"f")
    (True, True, False)
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, intervals: Iterable[tuple[bytes, bytes | None]]) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes | None] = []
        for start, end in sorted(intervals, key=lambda interval: interval[0]):
            if end is not None and end <= start:
                continue
            last = self._ends[-1] if self._ends else b""
            if self._starts and (last is None or start <= last):
                if last is not None and (end is None or end > last):
                    self._ends[-1] = end
            else:
                self._starts.append(start)
                self._ends.append(end)

    def cover(self, key: bytes, range_end: bytes) -> bool:
        """Say whether all keys of a request are in the intervals; of an empty range, whether its first key is.

        Cost: O(log intervals).
        """
        at = bisect_right(self._starts, key) - 1
        if at < 0:
            return False
        end = self._ends[at]
        if end is None:
            return True
        if key >= end:
            return False
        return range_end != _NO_END and range_end <= end


class Grants:
    """What a user may, by all its roles together. Never changes, so any thread may ask."""

    __slots__ = ("_read", "_write")

    def __init__(self, permissions: Iterable[Permission]) -> None:
        read: list[tuple[bytes, bytes | None]] = []
        write: list[tuple[bytes, bytes | None]] = []
        for kind, key, range_end in permissions:
            interval = (key, _end(key, range_end))
            if key and kind in {READ, READWRITE}:
                read.append(interval)
            if key and kind in {WRITE, READWRITE}:
                write.append(interval)
        self._read, self._write = Intervals(read), Intervals(write)

    def allow(self, kind: int, key: bytes, range_end: bytes) -> bool:
        """Say whether all keys of a request may be read (`READ`) or written (`WRITE`)."""
        return (self._read if kind == READ else self._write).cover(key, range_end)


def is_range(key: bytes, range_end: bytes) -> bool:
    """Say whether a permission may be for these: keys that can be, and of a range at least one."""
    return bool(key) and (not range_end or range_end == _NO_END or key < range_end)


def _end(key: bytes, range_end: bytes) -> bytes | None:
    if not range_end:
        return key + b"\0"
    return None if range_end == _NO_END else range_end
