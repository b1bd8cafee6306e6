"""Auto compaction: which revision to compact to, and when. Decisions only; `compactor` keeps the time.

`Periodic` compacts to what was current a period ago, `ByRevision` keeps a number of revisions. Both are etcd's, intervals
and what a revision is noted at included: a look decides by the revisions that were noted before it, and only then notes
the one of now. So a periodic compaction keeps a tenth of a round more than the period, but for the first.

What a server notes is in a `Course` of its own: the policy is a value, and any number of servers may go by it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

_HOUR = 3600.0
_LOOKS_A_ROUND = 10
_SLIGHT = 1e-9
"""Tenths of seconds do not add up."""
REVISION_SECONDS = 300.0


class Course(Protocol):
    """What one server has noted."""

    def look(self, now: float, revision: int) -> int | None:
        """Note the revision of now; return the one to compact to, if it is time."""
        ...

    def done(self, now: float, revision: int) -> None:
        """Note that the look at `now` led to a compaction to this revision, or that it had been compacted before."""
        ...

    def is_settled(self, revision: int) -> bool:
        """Say whether there is nothing to do as long as the store stays at this revision."""
        ...


class AutoCompaction(Protocol):
    """A policy."""

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        ...

    def begin(self, now: float, revision: int) -> Course:
        """Return the course of a server that starts at a revision; its first look is an interval later."""
        ...


@dataclass(frozen=True, slots=True)
class Periodic:
    """Keeps what is younger than a period: compacts when one has passed, then each period or hour, whichever is less.

    >>> policy = Periodic(100.0)
    >>> policy.interval
    10.0
    >>> course = policy.begin(0.0, 1)
    >>> [(look, found) for look in range(1, 14) if (found := course.look(look * 10.0, look + 1))]
    [(10, 1), (11, 1), (12, 2), (13, 3)]
    """

    period: float
    """In seconds."""

    @property
    def interval(self) -> float:
        """As `AutoCompaction`."""
        return self.round / _LOOKS_A_ROUND

    @property
    def round(self) -> float:
        """Seconds between two compactions."""
        return min(self.period, _HOUR)

    def begin(self, now: float, revision: int) -> Course:
        """As `AutoCompaction`."""
        return _PeriodicCourse(self, now, revision)


class _PeriodicCourse:
    def __init__(self, policy: Periodic, now: float, revision: int) -> None:
        self._round = policy.round
        # Looks come when a timer fires, and not to the microsecond.
        self._slack = policy.interval / 2
        self._noted: deque[int] = deque([revision], int(policy.period / policy.interval + _SLIGHT) + 1)
        self._unchanged = 1
        """How many of those that were noted last are the same."""
        self._wait = policy.period
        self._done_at = now
        self._done = 0

    def look(self, now: float, revision: int) -> int | None:
        """As `Course`."""
        wanted = self._noted[0]
        is_due = now - self._done_at + self._slack >= self._wait and wanted != self._done
        self._unchanged = self._unchanged + 1 if revision == self._noted[-1] else 1
        self._noted.append(revision)
        if not is_due:
            return None
        self._wait = self._round  # whatever becomes of it: only the first one waits for a period
        return wanted

    def done(self, now: float, revision: int) -> None:
        """As `Course`."""
        self._done_at, self._done = now, revision

    def is_settled(self, revision: int) -> bool:
        """As `Course`."""
        return self._noted[-1] == revision == self._done and self._unchanged >= len(self._noted)


@dataclass(frozen=True, slots=True)
class ByRevision:
    """Keeps a number of revisions: looks every five minutes whether there are more.

    >>> course = ByRevision(10).begin(0.0, 1)
    >>> course.look(300.0, 9), course.look(600.0, 100)
    (None, 90)
    """

    retention: int

    @property
    def interval(self) -> float:
        """As `AutoCompaction`."""
        return REVISION_SECONDS

    def begin(self, now: float, revision: int) -> Course:
        """As `AutoCompaction`."""
        del now, revision
        return _RevisionCourse(self.retention)


class _RevisionCourse:
    def __init__(self, retention: int) -> None:
        self._retention = retention
        self._done = 0

    def look(self, now: float, revision: int) -> int | None:
        """As `Course`."""
        del now
        wanted = revision - self._retention
        return wanted if wanted > 0 and wanted != self._done else None

    def done(self, now: float, revision: int) -> None:
        """As `Course`."""
        del now
        self._done = revision

    def is_settled(self, revision: int) -> bool:
        """As `Course`."""
        return self.look(0.0, revision) is None
