"""Commands about the past: log, diff, blame, revert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

import click

import mvccstore
from mvccstore.cli.keys import coding_options, escaped, keys_of, shown_key, span_options
from mvccstore.cli.output import (
    Column,
    JsonValue,
    Table,
    as_json,
    emit,
    emit_json,
    emit_lines,
    event_json,
    human_bytes,
    on_terminal,
    plural,
    preview,
    row_json,
)
from mvccstore.cli.session import (
    KEY,
    DurabilityName,
    Moment,
    StoreCommand,
    at_option,
    common_options,
    durability_option,
    not_found,
    open_for_reading,
    open_for_writing,
    revision_at,
    wants_json,
)

T = TypeVar("T")
_REVISION = click.IntRange(min=0)
UNKNOWN = "-"
"""Stands for a time that is compacted."""


class Counted(Iterable[T]):
    """Counts the rows that go through it."""

    def __init__(self, rows: Iterable[T]) -> None:
        self._rows = rows
        self.seen = 0

    def __iter__(self) -> Iterator[T]:
        for row in self._rows:
            self.seen += 1
            yield row


@click.command(cls=StoreCommand, short_help="List the versions of a key, the newest first, with times.")
@click.argument("key", type=KEY)
@click.argument("end", required=False, type=KEY)
@span_options
@click.option("--start-revision", type=_REVISION, default=0, metavar="N", help="Only changes at N or later.")
@at_option("Only changes up to then.")
@click.option("--limit", type=click.IntRange(min=0), default=0, metavar="N", help="At most N changes.")
@click.option("--oldest-first", is_flag=True, help="The oldest first.")
@coding_options
@common_options
def log(
    key: str,
    end: str | None,
    prefix: bool,
    from_key: bool,
    start_revision: int,
    at: Moment,
    limit: int,
    oldest_first: bool,
    coding: str | None,
) -> None:
    """List the versions of KEY, or of the keys from KEY up to END, the newest first, deletes included.

    What compaction removed is not listed. In a pipe, each change is a line: revision, time (UTC; - if compacted),
    put or delete, key, value, with tabs between them and escaped as by `range`. On a terminal, a table, in local
    time.

    JSON: a line for each change, as from `history --prev-kv`, and time_ms, milliseconds since the epoch or null.

    Exit code 1 if there is no change to list.
    """
    keys = keys_of(key, end, coding=coding, from_key=from_key, prefix=prefix)
    with (
        open_for_reading() as store,
        store.log(
            keys,
            start_revision=start_revision,
            end_revision=_end_revision(store, start_revision, at),
            limit=limit,
            newest_first=not oldest_first,
        ) as changes,
    ):
        counted = Counted(changes)
        if wants_json():
            emit_lines(as_json(_change_json(change)) for change in counted)
        elif on_terminal():
            _show_log(counted, coding, is_many=isinstance(keys, mvccstore.KeyRange))
        else:
            emit_lines(_change_line(change, coding) for change in counted)
    if not counted.seen:
        not_found(f"no change of {_as_typed(key)} in what is kept")


def _change_json(change: mvccstore.Change) -> dict[str, JsonValue]:
    return {**event_json(change.event), "time_ms": change.time_ms}


def _change_line(change: mvccstore.Change, coding: str | None) -> str:
    event = change.event
    fields = (event.type, shown_key(event.kv.key, coding), escaped(event.kv.value))
    return "\t".join((str(change.revision), utc(change.time_ms), *fields))


def _show_log(changes: Iterable[mvccstore.Change], coding: str | None, *, is_many: bool) -> None:
    columns = [Column("REVISION", is_number=True), Column("TIME"), Column("CHANGE")]
    columns += [Column("KEY", is_flexible=True)] if is_many else []
    columns += [Column("VERSION", is_number=True), Column("SIZE", is_number=True), Column("VALUE", is_flexible=True)]

    def cells(change: mvccstore.Change) -> list[str]:
        event = change.event
        row = [str(change.revision), local(change.time_ms), "create" if event.is_create else event.type]
        row += [shown_key(event.kv.key, coding)] if is_many else []
        row += [str(event.kv.version), human_bytes(len(event.kv.value))] if event.type == "put" else ["", ""]
        return [*row, preview(event.kv.value)]

    Table(columns).print(map(cells, changes))


@click.command(cls=StoreCommand, short_help="Show what differs between two revisions.")
@click.argument("revision_from", metavar="FROM", type=_REVISION)
@click.argument("revision_to", metavar="TO", type=_REVISION)
@click.argument("key", required=False, type=KEY)
@click.argument("end", required=False, type=KEY)
@span_options
@click.option("--keys-only", is_flag=True, help="Leave the values out.")
@coding_options
@common_options
def diff(
    revision_from: int,
    revision_to: int,
    key: str | None,
    end: str | None,
    prefix: bool,
    from_key: bool,
    keys_only: bool,
    coding: str | None,
) -> None:
    """Show which keys differ between the revisions FROM and TO: all of them, KEY, or those from KEY up to END.

    0 is the current revision. TO may be the older one. A key differs if its value or lease does; one that was
    written again as it was does not. In a pipe, each key is a line: added, removed or changed; the key, the value
    before, the value after, with tabs between them and escaped as by `range`. On a terminal, a table.

    JSON: a line for each key, with kind (added, removed, changed), before and after: the key as `get` shows it, or
    null; with --keys-only just kind and key.

    No difference is no error: the exit code is 0.
    """
    keys = _keys(key, end, coding=coding, from_key=from_key, prefix=prefix)
    with open_for_reading() as store, store.diff(revision_from, revision_to, keys) as differences:
        counted = Counted(differences)
        if wants_json():
            emit_lines(as_json(_difference_json(found, keys_only=keys_only)) for found in counted)
        elif on_terminal():
            _show_diff(counted, coding, keys_only=keys_only)
            revisions = " and ".join(map(_revision_name, (revision_from, revision_to)))
            click.secho(f"{plural(counted.seen, 'difference')} between {revisions}", dim=True)
        else:
            emit_lines(_difference_line(found, coding, keys_only=keys_only) for found in counted)


def _revision_name(revision: int) -> str:
    return f"revision {revision}" if revision else "now"


def _difference_json(found: mvccstore.Difference, *, keys_only: bool) -> dict[str, JsonValue]:
    before, after = (None if kv is None else row_json(kv) for kv in (found.before, found.after))
    if keys_only:
        shown = after or before or {}
        return {"kind": found.kind, **{name: field for name, field in shown.items() if name in ("key", "key_b64")}}
    return {"kind": found.kind, "before": before, "after": after}


def _difference_line(found: mvccstore.Difference, coding: str | None, *, keys_only: bool) -> str:
    fields = [found.kind, shown_key(found.key, coding)]
    if not keys_only:
        fields += ["" if kv is None else escaped(kv.value) for kv in (found.before, found.after)]
    return "\t".join(fields)


def _show_diff(differences: Iterable[mvccstore.Difference], coding: str | None, *, keys_only: bool) -> None:
    columns = [Column("CHANGE"), Column("KEY", is_flexible=True)]
    columns += [] if keys_only else [Column("BEFORE", is_flexible=True), Column("AFTER", is_flexible=True)]

    def cells(found: mvccstore.Difference) -> list[str]:
        values = ["" if kv is None else preview(kv.value) for kv in (found.before, found.after)]
        return [found.kind, shown_key(found.key, coding), *([] if keys_only else values)]

    Table(columns).print(map(cells, differences))


@click.command(cls=StoreCommand, short_help="Show which revision set each key, and when.")
@click.argument("key", required=False, type=KEY)
@click.argument("end", required=False, type=KEY)
@span_options
@at_option("Read the store as it was then.")
@coding_options
@common_options
def blame(key: str | None, end: str | None, prefix: bool, from_key: bool, at: Moment, coding: str | None) -> None:
    """Show which revision last set each key, and when: all keys, KEY, or those from KEY up to END.

    In a pipe, each key is a line: revision, time (UTC; - if compacted), version, key, value, with tabs between
    them and escaped as by `range`. On a terminal, a table, in local time.

    JSON: a line for each key, with key, value, create_revision, mod_revision (the one that set it), version, lease,
    and time_ms, milliseconds since the epoch or null.

    Exit code 1 if KEY does not exist.
    """
    keys = _keys(key, end, coding=coding, from_key=from_key, prefix=prefix)
    with (
        open_for_reading() as store,
        store.blame(keys, revision=(revision := revision_at(store, at))) as blames,
    ):
        counted = Counted(blames)
        if wants_json():
            emit_lines(as_json({**row_json(found.kv), "time_ms": found.time_ms}) for found in counted)
        elif on_terminal():
            _show_blame(counted, coding)
        else:
            emit_lines(_blame_line(found, coding) for found in counted)
    if not counted.seen and isinstance(keys, bytes):
        not_found(f"no key {shown_key(keys, coding)}{f' at revision {revision}' if revision else ''}")


def _blame_line(found: mvccstore.Blame, coding: str | None) -> str:
    fields = (str(found.version), shown_key(found.key, coding), escaped(found.kv.value))
    return "\t".join((str(found.revision), utc(found.time_ms), *fields))


def _show_blame(blames: Iterable[mvccstore.Blame], coding: str | None) -> None:
    columns = [Column("REVISION", is_number=True), Column("TIME"), Column("VERSION", is_number=True)]
    columns += [Column("KEY", is_flexible=True), Column("VALUE", is_flexible=True)]
    Table(columns).print(
        (
            str(found.revision),
            local(found.time_ms),
            str(found.version),
            shown_key(found.key, coding),
            preview(found.kv.value),
        )
        for found in blames
    )


@click.command(cls=StoreCommand, short_help="Make keys again what they were at a revision.")
@click.argument("key", required=False, type=KEY)
@click.argument("end", required=False, type=KEY)
@click.option("--to", type=click.IntRange(min=1), required=True, metavar="REVISION", help="The revision to go back to.")
@click.option("--all", "is_all", is_flag=True, help="Every key of the store.")
@span_options
@coding_options
@durability_option
@common_options
def revert(
    key: str | None,
    end: str | None,
    to: int,
    is_all: bool,
    prefix: bool,
    from_key: bool,
    coding: str | None,
    durability: DurabilityName,
) -> None:
    """Make KEY, or the keys from KEY up to END, again what they were at a revision, all in one new revision.

    Keys that did not exist then are deleted, those with another value or lease are put, the others are left alone.
    History stays, so a revert can be reverted. `mvccstore diff 0 REVISION` shows beforehand what it will change.

    In a pipe, one line: the revision, how many keys were put, how many deleted, with tabs between them.

    JSON: one object with revision, put, deleted.

    If nothing differs, no revision is written, and the exit code is 0.
    """
    if is_all is (key is not None) or (is_all and (prefix or from_key)):
        msg = "give KEY, or --all for every key of the store"
        raise click.UsageError(msg)
    keys = _keys(key, end, coding=coding, from_key=from_key, prefix=prefix)
    with open_for_writing(create=False, durability=durability) as store:
        result = store.revert(keys, to=to)
    if wants_json():
        emit_json({"revision": result.revision, "put": result.put, "deleted": result.deleted})
    elif not on_terminal():
        emit(f"{result.revision}\t{result.put}\t{result.deleted}")
    elif result.put or result.deleted:
        emit(f"{plural(result.put, 'key')} put, {result.deleted:,} deleted, revision {result.revision}")
    else:
        emit(f"nothing to do: all is as it was at revision {to}")


def _keys(key: str | None, end: str | None, *, coding: str | None, from_key: bool, prefix: bool) -> mvccstore.Keys:
    if key is not None:
        return keys_of(key, end, coding=coding, from_key=from_key, prefix=prefix)
    if prefix or from_key:
        msg = "--prefix and --from-key need a KEY"
        raise click.UsageError(msg)
    return mvccstore.KeyRange.all()


def _end_revision(store: mvccstore.Store, start_revision: int, at: Moment) -> int:
    revision = revision_at(store, at)
    if revision and start_revision > revision:
        then = "" if isinstance(at, int) else f", which is revision {revision}"
        shown = at.isoformat() if isinstance(at, datetime) else at
        msg = f"--start-revision {start_revision} is above --at {shown}{then}"
        raise click.UsageError(msg)
    return revision


def _as_typed(key: str) -> str:
    return escaped(key.encode("utf-8", "surrogateescape"))


def utc(time_ms: int | None) -> str:
    """Return a time for programs.

    >>> utc(1_700_000_000_120), utc(None)
    ('2023-11-14T22:13:20.120Z', '-')
    """
    time = _datetime(time_ms)
    return UNKNOWN if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local(time_ms: int | None) -> str:
    """Return a time for people."""
    time = _datetime(time_ms)
    return UNKNOWN if time is None else f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def _datetime(time_ms: int | None) -> datetime | None:
    try:
        return None if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):  # beyond the calendar: some other store's clock was wrong
        return None
