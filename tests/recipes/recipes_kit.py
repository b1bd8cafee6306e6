"""What the tests of recipes share."""

from __future__ import annotations

from mvccstore import KeyRange, Store, Watcher

SECONDS = 30
"""Longer than anything here takes; waiting for it means a deadlock."""
OWN = KeyRange.prefix(b"_mvccstore/")


def changes_awaited(watcher: Watcher, count: int) -> None:
    """Return when so many keys have changed: what other threads do shows in what they write."""
    while count > 0:
        batch = watcher.next_batch(timeout=SECONDS)
        assert batch is not None
        count -= len(batch.events)


def nothing_is_left(store: Store) -> bool:
    return store.count(OWN) == 0 and store.leases() == [] and len(store._hub) == 0
