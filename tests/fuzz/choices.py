"""Bytes as a sequence of choices, so that a small change of the input is a small change of what it means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Reads an input from its beginning; behind its end everything is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        """Return the next byte."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self, size: int) -> int:
        """Return a number of so many bytes."""
        return int.from_bytes(self.take(size).ljust(size, b"\0"))

    def take(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def chunk(self) -> bytes:
        """Return bytes that say themselves how many they are, 255 at most."""
        return self.take(self.byte())

    def pick(self, of: Sequence[T]) -> T:
        """Return one of several."""
        return of[self.byte() % len(of)]

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data))
