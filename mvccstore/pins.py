"""Revisions in use: what open snapshots and scans hold back from being reclaimed.

Invariants:

* I1. A revision is pinned for the first time only while it is at or above the compact revision.
* I2. `oldest` is at or below every pinned revision.

Both are decided under one lock, so that no revision is pinned after it was decided to reclaim it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from mvccstore.errors import CompactedError


class Pins:
    """The pinned revisions of one store.

    Args:
        floor: Tells the compact revision.
    """

    def __init__(self, floor: Callable[[], int]) -> None:
        self._floor = floor
        self._counts: Counter[int] = Counter()
        self._lock = threading.Lock()  # guards _counts; a leaf lock

    def add(self, revision: int) -> None:
        """Pin a revision, once more if it is pinned.

        Raises:
            CompactedError: It is below the compact revision, and nobody holds it.
        """
        with self._lock:
            floor = self._floor()
            if revision < floor and revision not in self._counts:
                raise CompactedError(revision, floor)
            self._counts[revision] += 1

    def remove(self, revision: int) -> None:
        """Undo one `add`."""
        with self._lock:
            self._counts[revision] -= 1
            if not self._counts[revision]:
                del self._counts[revision]

    def oldest(self) -> int:
        """Return the revision up to which history may go: the compact one, or the oldest pinned."""
        with self._lock:
            return min([self._floor(), *self._counts])

    def forget(self) -> None:
        """Make the lock anew, in a child after a fork."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._counts.total()
