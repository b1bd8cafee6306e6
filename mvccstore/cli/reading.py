"""Commands that read: get, range, count, history."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal, get_args

import click

import mvccstore
from mvccstore.cli.keys import coding_options, escaped, for_terminal, key_of, keys_of, range_of, shown_key, span_options
from mvccstore.cli.output import (
    Column,
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
    Moment,
    StoreCommand,
    at_option,
    common_options,
    not_found,
    open_for_reading,
    revision_at,
    wants_json,
)

OrderBy = Literal["key", "version", "create", "mod", "value"]


@click.command(cls=StoreCommand, short_help="Print the value of a key.")
@click.argument("key", type=KEY)
@at_option("Read the store as it was then.")
@coding_options
@common_options
def get(key: str, at: Moment, coding: str | None) -> None:
    """Print the value of KEY.

    In a pipe or a file, exactly the value's bytes. On a terminal, control characters are escaped and a newline
    follows. Of many keys: see `range`.

    JSON: one object with key, value, create_revision, mod_revision, version, lease; null if there is no such key.

    Exit code 1 if the key does not exist.
    """
    wanted = key_of(key, coding)
    with open_for_reading() as store:
        revision = revision_at(store, at)
        kv = store.get(wanted, revision=revision)
    if wants_json():
        emit_json(None if kv is None else row_json(kv))
    if kv is None:
        not_found(f"no key {shown_key(wanted, coding)}{f' at revision {revision}' if revision else ''}")
    if wants_json():
        return
    if on_terminal():
        text = for_terminal(kv.value)
        click.echo(text, nl=not text.endswith("\n"))
    else:
        click.echo(kv.value, nl=False)


_REVISION = click.IntRange(min=0)


@click.command("range", cls=StoreCommand, short_help="List keys: all, by prefix, or from START to END.")
@click.argument("start", metavar="[PREFIX | START", required=False, type=KEY)
@click.argument("end", metavar="END]", required=False, type=KEY)
@span_options
@click.option("--limit", type=click.IntRange(min=0), default=0, metavar="N", help="At most N keys.")
@click.option(
    "--order-by", type=click.Choice(get_args(OrderBy)), default="key", help="What to sort by, before the limit."
)
@click.option("--descending", is_flag=True, help="The greatest first.")
@click.option("--keys-only", is_flag=True, help="Leave the values out.")
@click.option("--count-only", is_flag=True, help="Print how many there are, as `count` does.")
@click.option(
    "--min-mod-revision", type=_REVISION, default=0, metavar="N", help="Only keys last changed at N or later."
)
@click.option(
    "--max-mod-revision", type=_REVISION, default=0, metavar="N", help="Only keys last changed at N or before."
)
@click.option("--min-create-revision", type=_REVISION, default=0, metavar="N", help="Only keys created at N or later.")
@click.option("--max-create-revision", type=_REVISION, default=0, metavar="N", help="Only keys created at N or before.")
@at_option("Read the store as it was then.")
@coding_options
@common_options
def range_command(
    start: str | None,
    end: str | None,
    prefix: bool,
    from_key: bool,
    limit: int,
    order_by: OrderBy,
    descending: bool,
    keys_only: bool,
    count_only: bool,
    at: Moment,
    coding: str | None,
    **filters: int,
) -> None:
    """List keys: all of them, those that begin with PREFIX, or those from START up to END (not END itself).

    In a pipe, each key is a line: the key, a tab, the value, both with backslashes and unprintable bytes
    escaped (with --keys-only: just the key). On a terminal, a table.

    JSON: a line for each key, with key, value, create_revision, mod_revision, version, lease.

    No keys are no error: the exit code is 0.
    """
    keys = range_of(start, end, coding=coding, from_key=from_key, prefix=prefix)
    if count_only:
        with open_for_reading() as store:
            _show_count(store, keys, at)
        return
    with open_for_reading() as store:
        revision = revision_at(store, at) or store.revision
        rows: Iterable[mvccstore.KeyValue]
        if descending or order_by != "key" or any(filters.values()):
            found = store.range(
                keys,
                revision=revision,
                limit=limit and limit + 1,
                order_by=order_by,
                descending=descending,
                keys_only=keys_only,
                min_mod_revision=filters["min_mod_revision"],
                max_mod_revision=filters["max_mod_revision"],
                min_create_revision=filters["min_create_revision"],
                max_create_revision=filters["max_create_revision"],
            )
            _show_rows(found.kvs, revision, limit, coding, keys_only=keys_only)
        else:
            # Stops after the limit, and holds a page in memory; `Store.range` counts on to the end.
            with store.scan(keys, revision=revision, keys_only=keys_only) as rows:
                _show_rows(rows, revision, limit, coding, keys_only=keys_only)


def _show_rows(
    rows: Iterable[mvccstore.KeyValue], revision: int, limit: int, coding: str | None, *, keys_only: bool
) -> None:
    remaining = iter(rows)
    shown = islice(remaining, limit) if limit else remaining
    if wants_json():
        emit_lines(map(as_json, (_without_value(kv) if keys_only else row_json(kv) for kv in shown)))
    elif on_terminal():
        count = _show_table(shown, coding, keys_only=keys_only)
        rest = "; there are more" if limit and next(remaining, None) is not None else ""
        click.secho(f"{plural(count, 'key')} at revision {revision}{rest}", dim=True)
    elif keys_only:
        emit_lines(shown_key(kv.key, coding) for kv in shown)
    else:
        emit_lines(f"{shown_key(kv.key, coding)}\t{escaped(kv.value)}" for kv in shown)


def _without_value(kv: mvccstore.KeyValue) -> dict[str, object]:
    return {name: field for name, field in row_json(kv).items() if name != "value"}


def _show_table(rows: Iterable[mvccstore.KeyValue], coding: str | None, *, keys_only: bool) -> int:
    columns = [
        Column("KEY", is_flexible=True),
        *(Column(name, is_number=True) for name in ("MOD", "CREATE", "VERSION")),
    ]
    if keys_only:
        return Table(columns).print((shown_key(kv.key, coding), *_revisions(kv)) for kv in rows)
    columns += [Column("SIZE", is_number=True), Column("VALUE", is_flexible=True)]
    return Table(columns).print(
        (shown_key(kv.key, coding), *_revisions(kv), human_bytes(len(kv.value)), preview(kv.value)) for kv in rows
    )


def _revisions(kv: mvccstore.KeyValue) -> tuple[str, str, str]:
    return str(kv.mod_revision), str(kv.create_revision), str(kv.version)


@click.command(cls=StoreCommand, short_help="Count keys: all, by prefix, or from START to END.")
@click.argument("start", metavar="[PREFIX | START", required=False, type=KEY)
@click.argument("end", metavar="END]", required=False, type=KEY)
@span_options
@at_option("Read the store as it was then.")
@coding_options
@common_options
def count(start: str | None, end: str | None, prefix: bool, from_key: bool, at: Moment, coding: str | None) -> None:
    """Count keys: all of them, those that begin with PREFIX, or those from START up to END.

    JSON: one object with count and revision, the one they were counted at.
    """
    keys = range_of(start, end, coding=coding, from_key=from_key, prefix=prefix)
    with open_for_reading() as store:
        _show_count(store, keys, at)


def _show_count(store: mvccstore.Store, keys: mvccstore.Keys, at: Moment) -> None:
    revision = revision_at(store, at) or store.revision
    counted = store.count(keys, revision=revision)
    if wants_json():
        emit_json({"count": counted, "revision": revision})
    else:
        emit(str(counted))


@click.command(cls=StoreCommand, short_help="List the changes of a key, or of many.")
@click.argument("key", type=KEY)
@click.argument("end", required=False, type=KEY)
@span_options
@click.option("--start-revision", type=_REVISION, default=0, metavar="N", help="Only changes at N or later.")
@at_option("Only changes up to then.")
@click.option("--limit", type=click.IntRange(min=0), default=0, metavar="N", help="At most N changes.")
@click.option("--descending", is_flag=True, help="The newest first.")
@click.option("--keys-only", is_flag=True, help="Leave the values out.")
@click.option("--prev-kv", is_flag=True, help="JSON: also the key as it was before each change.")
@coding_options
@common_options
def history(
    key: str,
    end: str | None,
    prefix: bool,
    from_key: bool,
    start_revision: int,
    at: Moment,
    limit: int,
    descending: bool,
    keys_only: bool,
    prev_kv: bool,
    coding: str | None,
) -> None:
    """List the changes of KEY, or of the keys from KEY up to END, the oldest first, deletes included.

    What compaction removed is not listed. In a pipe, each change is a line: revision, put or delete, key, value,
    with tabs between them and escaped as by `range`. On a terminal, a table.

    JSON: a line for each change, with type (put or delete), revision, key, and for a put value,
    create_revision, mod_revision, version, lease; with --prev-kv also prev_kv, where there was one.

    Exit code 1 if there is no change to list.
    """
    keys = keys_of(key, end, coding=coding, from_key=from_key, prefix=prefix)
    with (
        open_for_reading() as store,
        store.history(
            keys, start_revision=start_revision, end_revision=revision_at(store, at), prev_kv=prev_kv
        ) as events,
    ):
        changes = _cut(events, limit, descending=descending)
        is_many = isinstance(keys, mvccstore.KeyRange)
        listed = _show_events(changes, coding, keys_only=keys_only, is_many=is_many)
    if not listed:
        not_found(f"no change of {escaped(key.encode('utf-8', 'surrogateescape'))} in what is kept")


def _cut(events: Iterable[mvccstore.Event], limit: int, *, descending: bool) -> Iterator[mvccstore.Event]:
    if descending:
        return reversed(deque(events, limit or None))
    return islice(events, limit or None)


def _show_events(events: Iterable[mvccstore.Event], coding: str | None, *, keys_only: bool, is_many: bool) -> int:
    listed = 0

    def counted() -> Iterator[mvccstore.Event]:
        nonlocal listed
        for event in events:
            listed += 1
            yield event

    if wants_json():
        emit_lines(as_json(_event_json(event, keys_only=keys_only)) for event in counted())
    elif on_terminal():
        _show_event_table(counted(), coding, keys_only=keys_only, is_many=is_many)
    else:
        emit_lines(event_line(event, coding, keys_only=keys_only) for event in counted())
    return listed


def _event_json(event: mvccstore.Event, *, keys_only: bool) -> dict[str, object]:
    hidden = ("value", "value_b64") if keys_only else ()
    return {name: field for name, field in event_json(event).items() if name not in hidden}


def event_line(event: mvccstore.Event, coding: str | None, *, keys_only: bool) -> str:
    """Return a change as a line for pipes."""
    fields = [str(event.revision), event.type, shown_key(event.kv.key, coding)]
    if not keys_only:
        fields.append(escaped(event.kv.value))
    return "\t".join(fields)


def _show_event_table(events: Iterable[mvccstore.Event], coding: str | None, *, keys_only: bool, is_many: bool) -> None:
    columns = [Column("REVISION", is_number=True), Column("CHANGE")]
    if is_many:
        columns.append(Column("KEY", is_flexible=True))
    columns += [Column("VERSION", is_number=True), Column("SIZE", is_number=True)]
    if not keys_only:
        columns.append(Column("VALUE", is_flexible=True))

    def cells(event: mvccstore.Event) -> list[str]:
        is_put = event.type == "put"
        row = [str(event.revision), "create" if event.is_create else event.type]
        if is_many:
            row.append(shown_key(event.kv.key, coding))
        row += [str(event.kv.version), human_bytes(len(event.kv.value))] if is_put else ["", ""]
        if not keys_only:
            row.append(preview(event.kv.value))
        return row

    Table(columns).print(map(cells, events))
