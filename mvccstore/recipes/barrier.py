"""A barrier: who waits at it goes on when it is lifted."""

from __future__ import annotations

from typing import SupportsIndex

from mvccstore.recipes.host import Blocking, Deadline, Host, RecipeView, changed, key_of, run
from mvccstore.types import Compare, Op


class BarrierSteps:
    """What the two faces of a barrier have in common. It is a key; while that exists, it is held."""

    def __init__(self, host: Host, name: str | bytes) -> None:
        self._host = host
        self._key = key_of("barrier", name)

    async def _hold(self, lease: SupportsIndex) -> None:
        missing = Compare.version(self._key, "==", 0)
        await self._host.txn(compare=[missing], success=[Op.put(self._key, b"", lease=lease)])

    async def _release(self) -> None:
        await self._host.txn(success=[Op.delete(self._key)])

    async def _wait(self, deadline: Deadline) -> bool:
        held_since = 0
        while True:
            found = await self._host.range(self._key, keys_only=True)
            # One that is held anew was lifted meanwhile.
            if not found.kvs or found[0].create_revision != held_since != 0:
                return True
            held_since = found[0].create_revision
            if not await changed(self._host, self._key, found.revision, deadline, by_delete=True):
                return False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._key!r}>"


class Barrier(BarrierSteps):
    """A barrier that is known by its name. Get one from `Store.barrier`. Any thread may use it."""

    def __init__(self, store: RecipeView, name: str | bytes) -> None:
        super().__init__(Blocking(store), name)

    def hold(self, *, lease: SupportsIndex = 0) -> None:
        """Have all who come wait. Harmless if it is held already.

        Args:
            lease: A lease with which it is lifted when that ends; 0 for none: then it is held, over restarts,
                until somebody releases it. What holds already stays as it is.

        Raises:
            LeaseNotFoundError: There is no such lease.

        Cost: one commit.
        """
        run(self._hold(lease))

    def release(self) -> None:
        """Lift it: all who wait go on. Anybody may; harmless if it is not held. One commit."""
        run(self._release())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is not held; return False after `timeout` seconds, 0 not to wait.

        Whoever waits goes on when it is lifted, also if it is held again at once.

        Cost: a lookup and, while it is held, a watcher.
        """
        return run(self._wait(Deadline(timeout)))


class AsyncBarrier(BarrierSteps):
    """`Barrier`, awaited. Get one from `AsyncStore.barrier`."""

    async def hold(self, *, lease: SupportsIndex = 0) -> None:
        """As `Barrier.hold`."""
        await self._hold(lease)

    async def release(self) -> None:
        """As `Barrier.release`."""
        await self._release()

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as Barrier.wait has it
        """As `Barrier.wait`."""
        return await self._wait(Deadline(timeout))
