"""A lock that threads, tasks and processes share by its name."""

from __future__ import annotations

from contextlib import suppress
from typing import Self

from mvccstore.errors import LeaseNotFoundError
from mvccstore.recipes.host import Blocking, Deadline, Host, RecipeView, key_of, run
from mvccstore.recipes.line import Place, leave, take_turn
from mvccstore.types import Compare


class LockSteps:
    """What the two faces of a lock have in common."""

    def __init__(self, host: Host, name: str | bytes, ttl: float) -> None:
        self._host = host
        self._line = key_of("lock", name)
        self._ttl = ttl
        self._place: Place | None = None

    @property
    def is_held(self) -> bool:
        """Whether this handle holds it, as far as its lease can tell: it neither expired nor was revoked.

        What depends on it should still be written with `fence`, or told `revision`.
        """
        place = self._place
        return place is not None and place.lease.is_alive

    @property
    def revision(self) -> int:
        """The fencing token: greater each time the lock changes hands. 0 while it is not held."""
        return self._place.revision if self._place is not None else 0

    def fence(self) -> Compare:
        """Return the compare that holds exactly as long as this handle holds the lock: one for a txn.

        Raises:
            RuntimeError: It is not held.
        """
        if self._place is None:
            raise RuntimeError(_NOT_HELD)
        return self._place.is_there()

    async def _acquire(self, deadline: Deadline) -> bool:
        place = await take_turn(self._host, self._line, b"", self._ttl, deadline)
        if place is None:
            return False
        self._place = place
        return True

    async def _release(self) -> None:
        # First of all, as the next one may share this handle.
        place, self._place = self._place, None
        if place is None:
            raise RuntimeError(_NOT_HELD)
        await leave(self._host, place)

    async def _end(self, error: BaseException | None) -> None:
        """Release at the end of a block; that it was lost is no news if the block has failed."""
        if error is None:
            await self._release()
        elif self._place is not None:
            with suppress(LeaseNotFoundError):
                await self._release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._line!r}{f', held since {self.revision}' if self.is_held else ''}>"


_NOT_HELD = "the lock is not held"


class Lock(LockSteps):
    """A lock that is known by its name. Get one from `Store.lock`. A context manager.

    Fair: whoever asked first has it first. Not reentrant: each `acquire` asks anew, also from the same handle, which
    threads may share like a `threading.Lock`. It is held by a lease, kept alive as long as this object and the
    open store live; when they are gone, it is free after `ttl` seconds.
    """

    def __init__(self, store: RecipeView, name: str | bytes, ttl: float) -> None:
        super().__init__(Blocking(store), name, ttl)

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lock, and hold it; return whether it does.

        Args:
            timeout: Seconds to wait at most, 0 not to wait; None waits as long as it takes.

        Raises:
            LeaseNotFoundError: The place in the line was lost, as its lease was revoked.
            TxnError: This thread is in a transaction block.

        Cost: two commits; a lookup for each who waits; then nothing until the one before leaves.
        """
        return run(self._acquire(Deadline(timeout)))

    def release(self) -> None:
        """Let the next one have it.

        Raises:
            LeaseNotFoundError: It was lost before, so another may have held it meanwhile.
            RuntimeError: It is not held.

        Cost: one commit.
        """
        run(self._release())

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, *_: object) -> None:
        run(self._end(exc))


class AsyncLock(LockSteps):
    """`Lock`, awaited. Get one from `AsyncStore.lock`. An async context manager."""

    async def acquire(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as Lock.acquire has it
        """As `Lock.acquire`. Cancelled, it leaves the line."""
        return await self._acquire(Deadline(timeout))

    async def release(self) -> None:
        """As `Lock.release`."""
        await self._release()

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, *_: object) -> None:
        await self._end(exc)
