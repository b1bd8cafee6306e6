"""Auto compaction: which revision to compact to, and when. Decisions only; the server keeps the time.

`Periodic` remembers the revisions of the last period and compacts to the one that the period began with;
`ByRevision` keeps a number of revisions. Both are etcd's, intervals included.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

_HOUR = 3600.0
_SAMPLES_A_ROUND = 10
REVISION_SECONDS = 300.0


class AutoCompaction(Protocol):
    """Decides on compactions."""

    interval: float
    """Seconds between two looks."""

    def look(self, now: float, revision: int) -> int | None:
        """Note the revision now; return the one to compact to, if it is time."""
        ...

    def done(self, now: float, revision: int) -> None:
        """Note that it was compacted to a revision, or had been before."""
        ...


class Periodic:
    """Keeps what is younger than a period.

    >>> policy = Periodic(100.0)
    >>> policy.interval
    10.0
    >>> [found for look in range(12) if (found := policy.look(look * 10.0, look + 1))]
    [1, 2]
    """

    def __init__(self, period: float) -> None:
        self._round = min(period, _HOUR)
        self.interval = self._round / _SAMPLES_A_ROUND
        self._period = period
        self._samples: deque[tuple[float, int]] = deque()
        self._next: float | None = None
        self._last = 0

    def look(self, now: float, revision: int) -> int | None:
        """As `AutoCompaction`."""
        if self._next is None:
            self._next = now + self._period
        self._samples.append((now, revision))
        # A sample is old enough when the period has passed since; half an interval allows for a timer's lateness.
        limit = now - self._period + self.interval / 2
        while len(self._samples) > 1 and self._samples[1][0] <= limit:
            self._samples.popleft()
        if now + self.interval / 2 < self._next:
            return None
        oldest = self._samples[0][1]
        if oldest == self._last:
            self._next = now + self._round
            return None
        return oldest

    def done(self, now: float, revision: int) -> None:
        """As `AutoCompaction`."""
        self._last = revision
        self._next = now + self._round


class ByRevision:
    """Keeps a number of revisions."""

    interval = REVISION_SECONDS

    def __init__(self, retention: int) -> None:
        self._retention = retention
        self._last = 0

    def look(self, _now: float, revision: int) -> int | None:
        """As `AutoCompaction`."""
        wanted = revision - self._retention
        return wanted if wanted > 0 and wanted != self._last else None

    def done(self, _now: float, revision: int) -> None:
        """As `AutoCompaction`."""
        self._last = revision
