"""Going back: a store in memory made what it was at a mark, revision counter included. For tests.

Unlike `Store.revert`, which writes the old state forward, this takes back what was written since: the next write
gets the revision that the first one after the mark had. Whoever has seen the time in between is cut off from it:
watchers raise `CompactedError`. Snapshots and scans taken meanwhile have to be closed before.
"""

from __future__ import annotations

from collections.abc import Mapping

from mvccstore.engine.memory import MemoryEngine, MemoryReadTxn
from mvccstore.errors import StoreError
from mvccstore.store import Store


class Mark:
    """A state of a store in memory. Get one from `mark`. Cost: while it is kept, what was replaced since is, too."""

    __slots__ = ("__weakref__", "_store", "leases_left", "revision", "view")

    def __init__(self, store: Store, view: MemoryReadTxn, revision: int, leases_left: Mapping[int, float]) -> None:
        self._store = store
        self.view = view
        self.revision = revision
        """The store's, then."""
        self.leases_left = leases_left
        """What each lease had left, in seconds."""

    def is_of(self, store: Store) -> bool:
        """Say whether it is a state of this store."""
        return self._store is store


def mark(store: Store) -> Mark:
    """Note the state of a store, to `rewind` to it any number of times. O(leases).

    Raises:
        StoreError: The store is not in memory.
        TxnError: This thread is in a transaction block.
        ClosedError: The store is closed.
    """
    engine = _engine(store)
    return store._committer.alone(
        lambda: Mark(store, engine.read(), store._committer.state.revision, store._leases.left())
    )


def rewind(store: Store, to: Mark) -> None:
    """Make a store what it was at a mark: keys, history, leases, attributes, revision counter.

    Leases have as much time left as they had then. Watchers end with `CompactedError`.

    Raises:
        StoreError: The mark is of another store.
        TxnError: This thread is in a transaction block.
        ClosedError: The store is closed.

    Cost: O(changes since the mark) and O(watchers).

    >>> import mvccstore
    >>> store = mvccstore.open()
    >>> begun = mark(store)
    >>> store.put(b"a", b"1")
    2
    >>> rewind(store, begun)
    >>> store.get(b"a"), store.revision
    (None, 1)
    """
    engine = _engine(store)
    if not to.is_of(store):
        msg = "the mark is of another store"
        raise StoreError(msg)
    store._reclaimer.change_beside(lambda: store._committer.alone(lambda: _rewind(store, engine, to)))


def _rewind(store: Store, engine: MemoryEngine, to: Mark) -> None:
    engine.rewind(to.view)
    to.view.close()
    to.view = engine.read()
    store._reload(to.leases_left)


def _engine(store: Store) -> MemoryEngine:
    store._check_writable()
    engine = store._engine
    if not isinstance(engine, MemoryEngine):
        msg = f"{store.path} cannot go back: only a store in memory can"
        raise StoreError(msg)
    return engine
