"""An engine around another one that does something at its n-th call: dies, raises, waits, or counts.

Counted are the calls that change something or begin or end a transaction; a call that only reads cannot
leave anything half done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mvccstore import Engine, EngineSize

COUNTED = frozenset({"put", "append", "delete", "add", "remove", "commit"})

Hook = Callable[[str, int], object]
"""Called with the name of a call and its number, from 1."""


def nothing(name: str, number: int) -> None:
    """Do nothing."""
    del name, number


class FaultEngine:
    """Wraps an engine.

    Args:
        inner: The engine.
        before: Called before each counted call.
        after: Called after each that has returned.
    """

    def __init__(self, inner: Engine, *, before: Hook = nothing, after: Hook = nothing) -> None:
        self.inner = inner
        self.name = inner.name
        self.path = inner.path
        self.before = before
        self.after = after
        self.calls = 0
        self.names: list[str] = []

    def counted(self, name: str, call: Callable[..., Any], *args: Any) -> Any:
        self.calls += 1
        number = self.calls
        self.names.append(name)
        self.before(name, number)
        result = call(*args)
        self.after(name, number)
        return result

    def read(self) -> Any:
        return self.counted("read", self.inner.read)

    def write(self) -> Any:
        return FaultTxn(self, self.counted("write", self.inner.write))

    def sync(self) -> None:
        self.counted("sync", self.inner.sync)

    def size(self) -> EngineSize:
        return self.inner.size()

    def copy(self, path: str) -> bool:
        return self.inner.copy(path)

    def problems(self) -> list[str]:
        return self.inner.problems()

    def close(self) -> None:
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class FaultTxn:
    """A write transaction whose changes are counted."""

    def __init__(self, engine: FaultEngine, inner: Any) -> None:
        self._engine = engine
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in COUNTED:
            return method
        return lambda *args: self._engine.counted(name, method, *args)
