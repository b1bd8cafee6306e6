"""Requests of gRPC that are not complete: whose rest does not come in time is ended.

What it owns: of one connection, those whose client has more to send, and since when that is waited for. A unary call is
one of them from its head to its end, a stream from the first byte of a message to its last: between two messages a
stream may be silent for ever. A call that comes as a whole is none.

Invariants:

* I1. Who was noted first is due first: all have the same time, so one look at the first says whether any is.
* I2. Nobody is due for what it cannot change: while more has come than is carried out, but for want of its reading; and
  while its stream has no window, as it may leave the answers of that unread for as long as it wants.
"""

from __future__ import annotations

from typing import Protocol

from mvccstore.server.transport.limits import TransportLimits

_ENDED_A_LOOK = 500
"""Of tens of thousands that are due at once, so that others have their turn in between: some milliseconds."""


class Request(Protocol):
    """What is not complete."""

    number: int

    @property
    def is_held_back(self) -> bool:
        """Whether its client may not send much, by our doing."""
        ...

    def give_up(self) -> None:
        """End it: its client had its time."""
        ...


class Unfinished:
    """Of one connection. Times are the loop's."""

    __slots__ = ("_behind_at", "_requests", "_seconds")

    def __init__(self, limits: TransportLimits, now: float) -> None:
        self._seconds = limits.message_seconds
        self._requests: dict[int, tuple[Request, float]] = {}
        self._behind_at = now - self._seconds
        """When more had last come than was carried out."""

    def __len__(self) -> int:
        return len(self._requests)

    def begin(self, request: Request, now: float) -> None:
        """Give a request its time from now on, whatever it had before."""
        self._requests.pop(request.number, None)
        self._requests[request.number] = request, now

    def end(self, number: int) -> None:
        """Forget one that is complete, or was ended. Harmless if it is not known."""
        self._requests.pop(number, None)

    def clear(self) -> None:
        """Forget all."""
        self._requests.clear()

    def look(self, now: float, *, is_behind: bool) -> None:
        """End what is due; `is_behind` says whether more has come than is carried out, though the client reads."""
        if is_behind:
            self._behind_at = now
        if now - self._behind_at <= self._seconds:
            return  # I2
        due: list[Request] = []
        for request, since in self._requests.values():
            if now - since <= self._seconds or len(due) == _ENDED_A_LOOK:
                break
            due.append(request)
        for request in due:
            if self._requests.pop(request.number, None) is None:
                continue  # ended with another one
            if request.is_held_back:
                self._requests[request.number] = request, now
            else:
                request.give_up()
