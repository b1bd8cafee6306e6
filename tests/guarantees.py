"""One checker for each promise about what is seen of a store that many use at once.

A checker takes what was recorded and returns what breaks the promise, as `Store.check` does: an empty list
if nothing does. Readers record a `Look` each time they look, writers a `Write` for each acknowledgement.
What a watcher gives is recorded as a `Watched`, by a `Recorder` or by hand, and held against all changes there
were: the whole history of a store that was not compacted, or a model's events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from mvccstore import Event, Keys, KeyValue, WatchBatch, Watcher
from mvccstore.testing.rules import matches

PROBLEMS_MAX = 20


@dataclass(frozen=True)
class Look:
    """What one reader saw at one moment."""

    reader: int
    number: int
    """Counts the reader's looks."""
    revision: int
    """The revision the answer said, or was known, to be of; 0 if the answer did not say."""
    rows: dict[bytes, KeyValue]
    asked_revision: int = 0
    """The revision asked for; 0 for the current one."""
    is_whole: bool = True
    """Whether it is one state of everything; not if it was put together from several reads."""


@dataclass(frozen=True)
class Write:
    """What one writer was told that it wrote."""

    writer: int
    revision: int
    values: dict[bytes, bytes | None]
    """None for a key that was deleted."""


@dataclass
class Record:
    """Everything recorded in a test; lists, as appending to them is atomic."""

    looks: list[Look] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


def ordered(looks: Iterable[Look]) -> list[str]:
    """Nobody who looks at the present is taken back: neither the store nor any key has an older revision than before."""
    problems = []
    last_revision: dict[int, int] = {}
    last_mod: dict[tuple[int, bytes], int] = {}
    for look in sorted(looks, key=lambda look: (look.reader, look.number)):
        if look.asked_revision:
            continue
        if look.revision:
            if look.revision < last_revision.get(look.reader, 0):
                problems.append(f"{_named(look)} is of revision {look.revision}, after {last_revision[look.reader]}")
            last_revision[look.reader] = look.revision
        for key, kv in look.rows.items():
            if look.revision and kv.mod_revision > look.revision:
                problems.append(f"{_named(look)} has {key!r} of revision {kv.mod_revision}, from after it")
            if kv.mod_revision < last_mod.get((look.reader, key), 0):
                problems.append(f"{_named(look)} has {key!r} of {kv.mod_revision}, after {last_mod[look.reader, key]}")
            last_mod[look.reader, key] = kv.mod_revision
    return problems[:PROBLEMS_MAX]


def atomic(looks: Iterable[Look], groups: Sequence[Sequence[bytes]]) -> list[str]:
    """Keys that are only ever written together are only ever seen together: same value, same revision."""
    problems = []
    for look in looks:
        if not look.is_whole:
            continue
        for group in groups:
            seen = [look.rows.get(key) for key in group]
            facts = {kv and (kv.value, kv.mod_revision) for kv in seen}
            if len(facts) > 1:
                problems.append(f"{_named(look)} has {list(group)} as {sorted(map(str, facts))}")
    return problems[:PROBLEMS_MAX]


def repeatable(looks: Iterable[Look]) -> list[str]:
    """A revision is always the same, whoever asks for it, and whenever."""
    problems = []
    known: dict[int, Look] = {}
    for look in looks:
        revision = look.asked_revision or look.revision
        if not look.is_whole or not revision:
            continue
        first = known.setdefault(revision, look)
        if first.rows != look.rows:
            differing = sorted(key for key in {*first.rows, *look.rows} if first.rows.get(key) != look.rows.get(key))
            problems.append(f"{_named(look)} and {_named(first)} differ about revision {revision}: {differing[:5]}")
    return problems[:PROBLEMS_MAX]


def unique(writes: Iterable[Write]) -> list[str]:
    """No two writes have the same revision, and those of one writer ascend."""
    problems = []
    writers: dict[int, int] = {}
    last: dict[int, int] = {}
    for write in writes:
        if write.revision in writers:
            problems.append(
                f"revision {write.revision} is that of writers {writers[write.revision]} and {write.writer}"
            )
        if write.revision <= last.get(write.writer, 1):
            problems.append(f"writer {write.writer} got revision {write.revision} after {last.get(write.writer, 1)}")
        writers[write.revision] = write.writer
        last[write.writer] = write.revision
    return problems[:PROBLEMS_MAX]


def kept(writes: Iterable[Write], history: Iterable[Event], compact_revision: int) -> list[str]:
    """Every acknowledged write is in the history, whole and with nothing beside it, unless it was compacted."""
    changes: dict[int, dict[bytes, bytes | None]] = {}
    for event in history:
        value = event.kv.value if event.type == "put" else None
        changes.setdefault(event.revision, {})[event.kv.key] = value
    problems = []
    for write in writes:
        found = changes.get(write.revision, {})
        if write.revision <= compact_revision:
            continue  # superseded versions are gone, and rightly
        if found != write.values:
            problems.append(f"revision {write.revision} is {found}, acknowledged as {write.values}")
    return problems[:PROBLEMS_MAX]


def current(
    writes: Iterable[Write], rows: dict[bytes, KeyValue], history: Iterable[Event], compact_revision: int
) -> list[str]:
    """No key is older than its last acknowledged write. Later ones that nobody was told of may have happened."""
    newest: dict[bytes, Write] = {}
    for write in writes:
        for key in write.values:
            if key not in newest or newest[key].revision < write.revision:
                newest[key] = write
    deleted = {event.kv.key: event.revision for event in history if event.type == "delete"}
    problems = []
    for key, write in newest.items():
        kv, value = rows.get(key), write.values[key]
        if kv is None:
            may_be_deleted = compact_revision > write.revision or deleted.get(key, 0) > write.revision
            if value is not None and not may_be_deleted:
                problems.append(f"{key!r} is gone; revision {write.revision} put it")
        elif kv.mod_revision < write.revision or (kv.mod_revision == write.revision and kv.value != value):
            problems.append(f"{key!r} is {kv}; acknowledged was {value!r} at {write.revision}")
    return problems[:PROBLEMS_MAX]


def _named(look: Look) -> str:
    return f"look {look.number} of reader {look.reader}"


# Watching


@dataclass
class Watched:
    """What one watcher gave."""

    keys: Keys
    first: int
    """The first revision it is to show."""
    prev_kv: bool = False
    dropped: frozenset[str] = frozenset()
    """The types of events it was asked to leave out."""
    taken: list[tuple[WatchBatch, int]] = field(default_factory=list)
    """Its batches, each with what the watcher's `revision` was then."""
    revision: int = 0
    """The watcher's `revision` at the end."""

    def wanted(self, changes: Iterable[Event]) -> list[Event]:
        """Return what it is to show of all changes, whenever it does."""
        return [
            change
            for change in changes
            if change.revision >= self.first and change.type not in self.dropped and matches(self.keys, change.kv.key)
        ]

    def needed(self, changes: Iterable[Event], compacted: Iterable[int]) -> list[Event]:
        """Return what it must show: of a compact revision only the last change of each key."""
        floors = set(compacted)
        kept: dict[tuple[int, bytes | int], Event] = {}
        for place, change in enumerate(changes):
            key = (change.revision, change.kv.key if change.revision in floors else place)
            kept.pop(key, None)
            kept[key] = change
        return self.wanted(kept.values())

    def events(self) -> list[Event]:
        """Return what it showed."""
        return [event for batch, _ in self.taken for event in batch.events]


class Recorder:
    """A watcher, whose batches are recorded as they are taken."""

    def __init__(
        self, watcher: Watcher, keys: Keys, first: int, *, prev_kv: bool = False, filters: Iterable[str] = ()
    ) -> None:
        self.watcher = watcher
        self.watched = Watched(keys, first, prev_kv, frozenset(name.removeprefix("no") for name in filters))
        self.watched.revision = watcher.revision

    def take(self, timeout: float | None = 0) -> WatchBatch | None:
        """Take a batch; None if there is none."""
        batch = self.watcher.next_batch(timeout)
        self.watched.revision = self.watcher.revision
        if batch is not None:
            self.watched.taken.append((batch, self.watched.revision))
        return batch

    def take_all(self) -> Watched:
        """Take what there is, and return the whole recording."""
        while self.take() is not None:
            pass
        return self.watched

    def take_until(self, revision: int, timeout: float) -> Watched:
        """Take until a revision is reached, waiting for it; what is missing then, the checkers will say."""
        while self.watcher.revision < revision:
            if self.take(timeout) is None and self.watcher.revision < revision:
                break
        return self.take_all()


def watch_ordered(watched: Watched, changes: Sequence[Event], compacted: Iterable[int] = ()) -> list[str]:
    """Events come in the order of revisions, and those of one in the order in which they were made."""
    del compacted
    problems = []
    places = _places(changes)
    last, place = 0, -1
    for batch, _ in watched.taken:
        for event in batch.events:
            if event.revision != batch.revision:
                problems.append(f"an event of revision {event.revision} is in the batch of {batch.revision}")
            if event.revision < last:
                problems.append(f"revision {event.revision} comes after {last}")
            known = places.get(_plain(event), [])
            later = [other for other in known if other > place]
            if known and not later and known[-1] != place:
                problems.append(f"{event} comes after what was made later")
            last, place = event.revision, later[0] if later else place
    return problems[:PROBLEMS_MAX]


def watch_unique(watched: Watched, changes: Sequence[Event], compacted: Iterable[int] = ()) -> list[str]:
    """No event comes twice."""
    del compacted
    made = Counter(map(_plain, changes))
    shown = Counter(map(_plain, watched.events()))
    return [f"{event} comes {count} times" for event, count in shown.items() if count > max(made[event], 1)]


def watch_atomic(watched: Watched, changes: Sequence[Event], compacted: Iterable[int] = ()) -> list[str]:
    """The events of one revision come together, all of them, in one batch."""
    problems = []
    needed = _by_revision(watched.needed(changes, compacted))
    seen: set[int] = set()
    for batch, _ in watched.taken:
        if not batch.events:
            continue
        revision = batch.events[0].revision
        if revision in seen:
            problems.append(f"revision {revision} comes in two batches")
        seen.add(revision)
        missing = set(map(_plain, needed.get(revision, []))) - set(map(_plain, batch.events))
        if missing:
            problems.append(f"the batch of revision {revision} lacks {missing}")
    return problems[:PROBLEMS_MAX]


def watch_reliable(watched: Watched, changes: Sequence[Event], compacted: Iterable[int] = ()) -> list[str]:
    """Up to the watcher's revision no event is left out, and none is shown that was not made, or not like that."""
    problems = []
    wanted = _by_revision(watched.wanted(changes))
    floor = max(compacted, default=0)
    shown = _by_revision(watched.events())
    given = set(map(_plain, watched.events()))
    problems += [
        f"{event} is left out"
        for event in watched.needed(changes, compacted)
        if event.revision <= watched.revision and _plain(event) not in given
    ]
    for revision, events in shown.items():
        made = {_plain(event): event for event in wanted.get(revision, [])}
        for event in events:
            if _plain(event) not in made:
                problems.append(f"{event} was never made, or not asked for")
                continue
            prev_kv = made[_plain(event)].prev_kv if watched.prev_kv else None
            if event.prev_kv != prev_kv and not (event.prev_kv is None and revision <= floor):
                problems.append(f"{event} has another version before it: {prev_kv}")
    return problems[:PROBLEMS_MAX]


def watch_resumable(watched: Watched, changes: Sequence[Event], compacted: Iterable[int] = ()) -> list[str]:
    """A watcher begun at `revision + 1` would show what this one has not shown yet, and nothing else, at any time."""
    return _bookmarks(watched, changes, compacted, [(number, at) for number, (_, at) in enumerate(watched.taken)])


def watch_bookmarkable(watched: Watched, changes: Sequence[Event], compacted: Iterable[int] = ()) -> list[str]:
    """A batch without events is a place to go on from, as is the revision of any batch."""
    bookmarks = [(number, batch.revision) for number, (batch, _) in enumerate(watched.taken)]
    problems = _bookmarks(watched, changes, compacted, bookmarks)
    for (_, before), (_, after) in pairwise(bookmarks):
        if after < before:
            problems.append(f"a batch of revision {after} comes after {before}")
    return problems[:PROBLEMS_MAX]


WatchPromise = Callable[[Watched, Sequence[Event], Iterable[int]], list[str]]
WATCH_PROMISES: tuple[WatchPromise, ...] = (
    watch_ordered,
    watch_unique,
    watch_atomic,
    watch_reliable,
    watch_resumable,
    watch_bookmarkable,
)


def watch_problems(watched: Watched, changes: Sequence[Event], compacted: Iterable[int] = ()) -> list[str]:
    """Hold a recording against every promise.

    Args:
        watched: The recording.
        changes: All changes that were made, in their order, with `prev_kv` if the watcher was asked for it.
        compacted: What were compact revisions. Of such a one, and of it only, a watcher that reads the log may
            show just the last change of each key, and nothing before it.
    """
    compacted = frozenset(compacted)
    return [
        f"{promise.__name__}: {problem}"
        for promise in WATCH_PROMISES
        for problem in promise(watched, changes, compacted)
    ]


def _bookmarks(
    watched: Watched, changes: Sequence[Event], compacted: Iterable[int], bookmarks: list[tuple[int, int]]
) -> list[str]:
    """Say what is wrong with going on from a revision after so many batches."""
    problems = []
    needed = [event.revision for event in watched.needed(changes, compacted)]
    shown = [event.revision for batch, _ in watched.taken for event in batch.events]
    ends = [0]
    for batch, _ in watched.taken:
        ends.append(ends[-1] + len(batch.events))
    for number, revision in bookmarks:
        before, after = shown[: ends[number + 1]], shown[ends[number + 1] :]
        if any(other > revision for other in before):
            problems.append(f"going on after {revision} would show {max(before)} again")
        if any(other <= revision for other in after):
            problems.append(f"after {revision} it still showed {min(after)}")
        missed = sorted({other for other in needed if other <= revision} - set(before))
        if missed:
            problems.append(f"going on after {revision} would leave out {missed[:5]}")
    return problems[:PROBLEMS_MAX]


def _plain(event: Event) -> Event:
    return event._replace(prev_kv=None)


def _places(changes: Iterable[Event]) -> dict[Event, list[int]]:
    places: dict[Event, list[int]] = {}
    for place, change in enumerate(changes):
        places.setdefault(_plain(change), []).append(place)
    return places


def _by_revision(events: Iterable[Event]) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    for event in events:
        found.setdefault(event.revision, []).append(event)
    return found
