"""Recipes: what users build of puts, txns, leases and watches, each in a module named after it.

What lives here uses only what a store gives everybody, and no module of it decides anything for the store. The
steps of each recipe are written once, for threads and for tasks (`host`).
"""

from mvccstore.recipes.barrier import AsyncBarrier, Barrier
from mvccstore.recipes.codecs import Codec, JsonCodec, MsgpackCodec, RawCodec
from mvccstore.recipes.counter import AsyncCounter, Counter
from mvccstore.recipes.election import AsyncElection, AsyncObserver, Election, Observer
from mvccstore.recipes.lock import AsyncLock, Lock
from mvccstore.recipes.mapping import ItemChange, StoreMapping
from mvccstore.recipes.mirror import AsyncMirror, Mirror
from mvccstore.recipes.queue import AsyncItem, AsyncQueue, Item, Queue

__all__ = [
    "AsyncBarrier",
    "AsyncCounter",
    "AsyncElection",
    "AsyncItem",
    "AsyncLock",
    "AsyncMirror",
    "AsyncObserver",
    "AsyncQueue",
    "Barrier",
    "Codec",
    "Counter",
    "Election",
    "Item",
    "ItemChange",
    "JsonCodec",
    "Lock",
    "Mirror",
    "MsgpackCodec",
    "Observer",
    "Queue",
    "RawCodec",
    "StoreMapping",
]
