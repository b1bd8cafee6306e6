"""The asyncio face of a store: `async with mvccstore.aio.open("jobs.mvcc") as store: ...`.

The same names as in `mvccstore`, awaited. What lives here translates between tasks and threads; it decides
nothing of its own. Works with any event loop.
"""

from mvccstore.aio.live import AsyncLease, AsyncWatcher
from mvccstore.aio.reading import AsyncScan, AsyncSnapshot
from mvccstore.aio.recipes import AsyncStoreMapping
from mvccstore.aio.store import AsyncStore, Opening, open  # noqa: A004 - as `mvccstore.open`
from mvccstore.aio.subscription import AsyncDelivery, AsyncSubscription

__all__ = [
    "AsyncDelivery",
    "AsyncLease",
    "AsyncScan",
    "AsyncSnapshot",
    "AsyncStore",
    "AsyncStoreMapping",
    "AsyncSubscription",
    "AsyncWatcher",
    "Opening",
    "open",
]
