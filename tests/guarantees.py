"""One checker for each promise about what is seen of a store that many use at once.

A checker takes what was recorded and returns what breaks the promise, as `Store.check` does: an empty list
if nothing does. Readers record a `Look` each time they look, writers a `Write` for each acknowledgement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mvccstore import Event, KeyValue

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
