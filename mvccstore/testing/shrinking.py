"""A script made small: what can be left out without losing what it shows is left out.

First whole steps, in halves and quarters down to single ones, then parts of their requests. Greedy, so the result is
a script from which nothing can be left out alone, not the smallest that there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mvccstore.testing.workload import Script, Step

_KEPT = frozenset({"ID", "TTL", "key"})
"""Fields without which a request is another one."""
_TEXT_LONGEST = 1
_NOT_TEXT = re.compile(r"now|start[+-]\d+|[A-Z_]+")


def shrink(script: Script, still_shows: Callable[[Script], bool], attempts_max: int) -> Script:
    """Return a script as small as can be that still shows what this one does.

    Args:
        script: One that does.
        still_shows: Plays a smaller one.
        attempts_max: How many may be played.
    """
    shrinker = _Shrinker(script, still_shows, attempts_max)
    while shrinker.drop_steps() or shrinker.simplify_steps():
        continue
    return shrinker.best


class _Shrinker:
    def __init__(self, script: Script, still_shows: Callable[[Script], bool], attempts_max: int) -> None:
        self.best = script
        self._still_shows = still_shows
        self._attempts = attempts_max

    def _takes(self, script: Script) -> bool:
        """Try a smaller script, and keep it if it will do."""
        if not self._attempts:
            return False
        self._attempts -= 1
        if not self._still_shows(script):
            return False
        self.best = script
        return True

    def drop_steps(self) -> bool:
        """Leave out steps; say whether any could be."""
        before = len(self.best)
        size = max(len(self.best) // 2, 1)
        while size:
            # From the end: what comes late stands on what comes early.
            at = len(self.best) - size
            while at > -size:
                first = max(at, 0)
                self._takes((*self.best[:first], *self.best[at + size :]))
                at -= size
            size //= 2
        return len(self.best) < before

    def simplify_steps(self) -> bool:
        """Leave out parts of requests; say whether any could be."""
        has_changed = False
        number = 0
        while number < len(self.best):
            if any(self._takes(self._with(number, step)) for step in _simpler_steps(self.best[number])):
                has_changed = True
            else:
                number += 1
        return has_changed

    def _with(self, number: int, step: Step) -> Script:
        return (*self.best[:number], step, *self.best[number + 1 :])


def _simpler_steps(step: Step) -> Iterator[Step]:
    if step.call == "watch":
        # It writes its key: if that is all that matters, a put says so.
        yield Step("put", {"key": step.request.get("key", "a")})
    if step.call == "txn":
        for branch in ("success", "failure"):
            for operation in step.request.get(branch, ()):
                yield from _alone(operation)
    for request in _simpler(step.request):
        yield Step(step.call, request)


def _alone(operation: Mapping[str, Any]) -> Iterator[Step]:
    """Return an operation of a txn as a step of its own."""
    calls = {"request_put": "put", "request_range": "range", "request_delete_range": "delete", "request_txn": "txn"}
    for name, request in operation.items():
        yield Step(calls[name], request)


def _simpler(value: Any) -> Iterator[Any]:
    match value:
        case {"base64": _}:
            yield "a"
        case dict():
            removable = [name for name in value if name not in _KEPT and not name.startswith("request_")]
            for name in removable:
                yield {other: member for other, member in value.items() if other != name}
            for name, member in value.items():
                yield from ({**value, name: simpler} for simpler in _simpler(member))
        case list():
            for at in range(len(value)):
                yield [*value[:at], *value[at + 1 :]]
            for at, member in enumerate(value):
                yield from ([*value[:at], simpler, *value[at + 1 :]] for simpler in _simpler(member))
        case str() if value.startswith(("now-", "now+")):
            yield from (nearer for nearer in ("now", "now-1", "now-2") if (len(nearer), nearer) < (len(value), value))
        case str() if len(value) > _TEXT_LONGEST and not _NOT_TEXT.fullmatch(value):
            yield value[:_TEXT_LONGEST]
