"""The objects that follow each other in a body, found as the bytes come."""

from __future__ import annotations

import re
from collections.abc import Iterator

_OUTSIDE = re.compile(rb'[{}"]')
_INSIDE = re.compile(rb'["\\]')
_NOT_SPACE = re.compile(rb"[^ \t\n\r]")
_MARKS_A_STEP = 4_096
"""Of braces, quotes and escapes that are looked at, before others have their turn: a millisecond or two."""


class JsonSplitter:
    """Cuts a stream of bytes behind each object. What an object holds is for a parser to judge.

    >>> splitter = JsonSplitter()
    >>> list(splitter.feed(b'{"a":"}"} {')), list(splitter.feed(b'"b":{}}')), splitter.rest
    ([b'{"a":"}"}'], [b'{"b":{}}'], b'')

    Cost: linear in what is fed, however it is cut.
    """

    __slots__ = ("_at", "_depth", "_is_in_string", "_pending")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._at = 0
        """How far `_pending` has been looked at."""
        self._depth = 0
        self._is_in_string = False

    @property
    def rest(self) -> bytes:
        """What has come of an object that is not complete."""
        return bytes(self._pending)

    @property
    def pending_bytes(self) -> int:
        """The length of `rest`."""
        return len(self._pending)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take more bytes; return an iterator over the objects that are complete now.

        It may be left: those that it has not yielded are the next one's, though nothing more is fed. Where it has looked
        at so much that others should have their turn, it yields `b""`.

        Raises:
            ValueError: By the iterator: something else than an object begins.
        """
        self._pending += data
        return self._objects()

    def _objects(self) -> Iterator[bytes]:
        pending = self._pending
        left = _MARKS_A_STEP
        while True:
            if not left:
                left = _MARKS_A_STEP
                yield b""
            left -= 1
            if not self._depth and not self._skip_space():
                return
            match = (_INSIDE if self._is_in_string else _OUTSIDE).search(pending, self._at)
            if match is None:
                self._at = len(pending)
                return
            mark = match[0]
            if mark == b"\\":
                if match.end() == len(pending):
                    self._at = match.start()  # what it escapes has not come yet
                    return
                self._at = match.end() + 1
                continue
            self._at = match.end()
            if mark == b'"':
                self._is_in_string = not self._is_in_string
            elif mark == b"{":
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    text = bytes(pending[: self._at])
                    del pending[: self._at]
                    self._at = 0
                    yield text

    def _skip_space(self) -> bool:
        """Return whether an object begins here; False if nothing is left."""
        pending = self._pending
        match = _NOT_SPACE.search(pending)
        del pending[: len(pending) if match is None else match.start()]
        if pending and pending[0] != 0x7B:
            msg = f"a {chr(pending[0])!r} where an object is due"
            raise ValueError(msg)
        return bool(pending)
