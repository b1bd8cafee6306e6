"""A number that many add to."""

from __future__ import annotations

from mvccstore.recipes.host import Blocking, Host, RecipeView, key_of, run
from mvccstore.types import Compare, KeyValue, Op, RangeResult


class CounterSteps:
    """What the two faces of a counter have in common. The number is kept in decimal."""

    def __init__(self, host: Host, name: str | bytes) -> None:
        self._host = host
        self._key = key_of("counter", name)

    async def _value(self) -> int:
        found = await self._host.range(self._key)
        return _number(found[0] if found.kvs else None)

    async def _set(self, value: int) -> None:
        await self._host.txn(success=[Op.put(self._key, _packed(value))])

    async def _add(self, n: int) -> int:
        _packed(n)
        found: object = await self._host.range(self._key)
        while True:
            assert isinstance(found, RangeResult)
            kv = found[0] if found.kvs else None
            value = _number(kv) + n
            result = await self._host.txn(
                compare=[Compare.mod_revision(self._key, "==", kv.mod_revision if kv is not None else 0)],
                success=[Op.put(self._key, _packed(value))],
                failure=[Op.range(self._key)],
            )
            if result.succeeded:
                return value
            found = result.responses[0]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._key!r}>"


class Counter(CounterSteps):
    """A counter that is known by its name. Get one from `Store.counter`. It begins at 0; any thread may use it."""

    def __init__(self, store: RecipeView, name: str | bytes) -> None:
        super().__init__(Blocking(store), name)

    def value(self) -> int:
        """Return the number. One lookup.

        Raises:
            ValueError: Something else than a number was put under its key.
        """
        return run(self._value())

    def add(self, n: int = 1) -> int:
        """Add to it, in one atomic step; return the sum.

        Raises:
            ValueError: As for `value`.

        Cost: a lookup and one commit; another round for each who adds at the same time and is quicker.
        """
        return run(self._add(n))

    def set(self, value: int) -> None:
        """Set it, whatever it was. One commit."""
        run(self._set(value))


class AsyncCounter(CounterSteps):
    """`Counter`, awaited. Get one from `AsyncStore.counter`."""

    async def value(self) -> int:
        """As `Counter.value`."""
        return await self._value()

    async def add(self, n: int = 1) -> int:
        """As `Counter.add`."""
        return await self._add(n)

    async def set(self, value: int) -> None:
        """As `Counter.set`."""
        await self._set(value)


def _number(kv: KeyValue | None) -> int:
    if kv is None:
        return 0
    try:
        return int(kv.value)
    except ValueError as error:
        msg = f"{kv.key!r} holds no number: {kv.value[:64]!r}"
        raise ValueError(msg) from error


def _packed(value: int) -> bytes:
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"a counter counts in int, not in {type(value).__name__}"
        raise TypeError(msg)
    return b"%d" % value
