"""Reading for tasks: inline, as a read takes microseconds and a way to another thread and back takes more.

Scans read a page at a time, and let the loop do something else between two pages.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Generic, Self, TypeVar

from mvccstore.mvcc.read import PAGE_ROWS
from mvccstore.types import Event, Keys, KeyValue, RangeRequest, RangeResult, SortTarget
from mvccstore.view import PAGE_BYTES, Page, Scan, Snapshot, View

T = TypeVar("T")


class AsyncScan(Generic[T]):
    """A lazy answer, for `async for`: as `Scan`, and the loop goes on between two pages.

    It holds its revision back from compaction until it is exhausted, closed, or collected. Also for `async with`.
    """

    __slots__ = ("_is_begun", "_scan")

    def __init__(self, scan: Scan[T]) -> None:
        self._scan = scan
        self._is_begun = False

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        if not self._scan._rows:
            if self._is_begun:
                await asyncio.sleep(0)
            self._is_begun = True
        try:
            return next(self._scan)
        except StopIteration:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """As `Scan.close`."""
        self._scan.close()

    async def aclose(self) -> None:
        """As `close`, for those who close with `await`."""
        self._scan.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._scan.close()


class AsyncView(ABC):
    """The reading half of `AsyncStore` and `AsyncSnapshot`. Everything here runs on the loop's thread.

    A `range` of very many keys keeps the loop that long; `scan` does not.
    """

    __slots__ = ()

    @abstractmethod
    def _view(self) -> View:
        """Return what to ask; raise if this loop may not, or if it is closed."""

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """As `Store.get`."""
        return self._view().get(key, revision=revision)

    async def range(
        self,
        keys: Keys,
        *,
        revision: int = 0,
        limit: int = 0,
        order_by: SortTarget = "key",
        descending: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
    ) -> RangeResult:
        """As `Store.range`."""
        return self._view().range(
            keys,
            revision=revision,
            limit=limit,
            order_by=order_by,
            descending=descending,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )

    async def find(self, request: RangeRequest) -> RangeResult:
        """As `Store.find`."""
        return self._view().find(request)

    async def page(self, keys: Keys, *, revision: int = 0, limit: int = PAGE_ROWS, bytes_max: int = PAGE_BYTES) -> Page:
        """As `Store.page`."""
        return self._view().page(keys, revision=revision, limit=limit, bytes_max=bytes_max)

    async def count(self, keys: Keys, *, revision: int = 0) -> int:
        """As `Store.count`."""
        return self._view().count(keys, revision=revision)

    def scan(self, keys: Keys, *, revision: int = 0, keys_only: bool = False) -> AsyncScan[KeyValue]:
        """As `Store.scan`, for `async for`; not awaited itself."""
        return AsyncScan(self._view().scan(keys, revision=revision, keys_only=keys_only))

    def history(
        self, keys: Keys, *, start_revision: int = 0, end_revision: int = 0, prev_kv: bool = False
    ) -> AsyncScan[Event]:
        """As `Store.history`, for `async for`; not awaited itself."""
        found = self._view().history(keys, start_revision=start_revision, end_revision=end_revision, prev_kv=prev_kv)
        return AsyncScan(found)


class AsyncSnapshot(AsyncView):
    """A view of the store pinned at one revision: as `Snapshot`, for `async with`. Get one from `AsyncStore.snapshot`."""

    __slots__ = ("_check_loop", "_snapshot")

    def __init__(self, snapshot: Snapshot, check_loop: Callable[[], None]) -> None:
        self._snapshot = snapshot
        self._check_loop = check_loop

    @property
    def revision(self) -> int:
        """The revision it is pinned at."""
        return self._snapshot.revision

    def _view(self) -> Snapshot:
        self._check_loop()
        return self._snapshot

    def close(self) -> None:
        """As `Snapshot.close`."""
        self._snapshot.close()

    async def aclose(self) -> None:
        """As `close`, for those who close with `await`."""
        self._snapshot.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._snapshot.close()
