"""When connections write what is to be written, if it is no answer to what they have just read.

At the end of the turn of the loop, or of what is `held`: who answers many calls at once, on many connections, has each
of these write once when all are answered, and no turn of the loop is needed for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

_log = logging.getLogger("mvccstore.server")


class Flushes:
    """Of the connections of a server."""

    __slots__ = ("_held", "_is_held")

    def __init__(self) -> None:
        self._held: deque[Callable[[], None]] = deque()
        self._is_held = False

    def soon(self, flush: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Have something written, at the end of what is held or of this turn of the loop."""
        if self._is_held:
            self._held.append(flush)
        else:
            loop.call_soon(flush)

    def hold(self) -> None:
        """Have what is to be written wait for `release`, which must follow in the same turn. Not to be nested."""
        self._is_held = True

    def release(self) -> None:
        """Have it written now."""
        self._is_held = False
        held = self._held
        while held:  # one by one: who is interrupted leaves the others to the next
            flush = held.popleft()
            try:
                flush()
            except Exception:  # noqa: BLE001 - one connection's
                _log.exception("a connection could not write")
