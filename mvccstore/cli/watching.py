"""The command that follows changes: watch."""

from __future__ import annotations

import base64
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

import click

import mvccstore
from mvccstore.cli import commands
from mvccstore.cli.keys import coding_options, keys_of, shown_key, span_options
from mvccstore.cli.output import (
    Column,
    Table,
    as_json,
    emit_lines,
    event_json,
    human_bytes,
    on_terminal,
    preview,
)
from mvccstore.cli.reading import event_line
from mvccstore.cli.session import (
    EXIT_NOT_FOUND,
    KEY,
    Failure,
    common_options,
    open_for_reading,
    wants_json,
)
from mvccstore.clock import SystemClock

LOOK_SECONDS = 0.5
"""How often a watch without news sees whether anybody still reads its output."""
VARIABLE_BYTES_MAX = 100_000
"""Of what an environment variable gets; Linux refuses 131,072."""
_clock = SystemClock()


def _filters(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[mvccstore.WatchFilter, ...]:
    return tuple(name for name in get_args(mvccstore.WatchFilter) if name == value)


@click.command(cls=commands.RunningCommand, short_help="Follow the changes of a key, or of many, as they are made.")
@click.argument("key", required=False, type=KEY)
@click.argument("end", required=False, type=KEY)
@span_options
@click.option(
    "--from",
    "start_revision",
    type=click.IntRange(min=0),
    default=0,
    metavar="REVISION",
    help="Begin with the changes of this revision, past or to come.  [default: what comes from now on]",
)
@click.option(
    "--filter",
    "filters",
    type=click.Choice(get_args(mvccstore.WatchFilter)),
    callback=_filters,
    help="Leave puts, or deletes, out.",
)
@click.option("--limit", "--count", "limit", type=click.IntRange(min=1), metavar="N", help="End after N changes.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="End after this time.")
@click.option("--prev-kv", is_flag=True, help="JSON: also the key as it was before each change.")
@click.option("--exec", "line", metavar="COMMAND", help="Run this for each change, and print nothing.")
@coding_options
@common_options
def watch(
    key: str | None,
    end: str | None,
    prefix: bool,
    from_key: bool,
    start_revision: int,
    filters: tuple[mvccstore.WatchFilter, ...],
    limit: int | None,
    timeout: float | None,
    prev_kv: bool,
    line: str | None,
    coding: str | None,
) -> None:
    """Follow the changes of KEY, of the keys from KEY up to END, or without KEY of all, until Ctrl-C.

    The store may be written by another program meanwhile: the file is looked at 20 times a second, and no change
    is left out. In a pipe, each change is a line as `history` prints it: revision, put or delete, key, value.

    --exec "LINE" has the shell run a line for each change, one after the other; --exec COMMAND -- ARGS, or only
    -- COMMAND ARGS, runs a program without a shell. It finds MVCCSTORE_TYPE (put or delete), MVCCSTORE_REVISION,
    MVCCSTORE_KEY and MVCCSTORE_VALUE in its environment, or MVCCSTORE_KEY_B64 and MVCCSTORE_VALUE_B64, in base64,
    for bytes that are not UTF-8 or have a zero byte; MVCCSTORE is the store's file. The whole change is on its
    stdin as a line of JSON, which is the only place for what is longer than 100,000 bytes. If one fails,
    the watch ends with its exit code, and says where to go on.

    JSON: a line for each change, as `history --json` has it.

    Exit code 1 if --timeout ended it before there were --limit changes.
    """
    command = _command(line)
    keys: mvccstore.Keys = mvccstore.KeyRange.all()
    if key is not None:
        keys = keys_of(key, end, coding=coding, from_key=from_key, prefix=prefix)
    deadline = None if timeout is None else _clock.monotonic() + timeout
    show = _printer(coding) if command is None else _runner(command)
    with open_for_reading() as store:
        try:
            with store.watch(keys, start_revision=start_revision, prev_kv=prev_kv, filters=filters) as watcher:
                if on_terminal() and command is None:
                    click.secho(f"watching from revision {watcher.revision + 1} on; Ctrl-C ends it", dim=True, err=True)
                seen = 0
                for events in _batches(watcher, deadline):
                    shown = events[: limit - seen] if limit is not None else events
                    show(shown)
                    seen += len(shown)
                    if seen == limit:
                        return
        except mvccstore.CompactedError as error:
            msg = f"{error} (--from {error.compact_revision} watches from the oldest that is kept)"
            raise Failure(msg) from error
    if limit is not None:
        raise click.exceptions.Exit(EXIT_NOT_FOUND)


def _command(line: str | None) -> Sequence[str] | str | None:
    rest = commands.rest()
    if not rest:
        return line
    return rest if line is None else [line, *rest]


def _batches(watcher: mvccstore.Watcher, deadline: float | None) -> Iterator[Sequence[mvccstore.Event]]:
    """Wait for the changes of each next revision, until the deadline, or until nobody reads stdout any more."""
    while True:
        left = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, max(0.0, deadline - _clock.monotonic()))
        batch = watcher.next_batch(timeout=left)
        if batch is not None:
            yield batch.events
        elif deadline is not None and _clock.monotonic() >= deadline:
            return
        else:
            _check_reader()


def _check_reader() -> None:
    """Raise `BrokenPipeError` if stdout is a pipe whose other end was closed; writing would tell too late."""
    if not hasattr(select, "poll"):
        return
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by something without a descriptor
        return
    poll = select.poll()
    poll.register(stdout, 0)
    if any(found & select.POLLERR for _, found in poll.poll(0)):
        raise BrokenPipeError


def _printer(coding: str | None) -> Callable[[Sequence[mvccstore.Event]], None]:
    if wants_json():
        return lambda events: emit_lines(as_json(event_json(event)) for event in events)
    if not on_terminal():
        return lambda events: emit_lines(event_line(event, coding, keys_only=False) for event in events)
    table = Table(
        [
            Column("REVISION", is_number=True),
            Column("CHANGE"),
            Column("KEY", is_flexible=True),
            Column("SIZE", is_number=True),
            Column("VALUE", is_flexible=True),
        ]
    )

    def cells(event: mvccstore.Event) -> list[str]:
        is_put = event.type == "put"
        size = human_bytes(len(event.kv.value)) if is_put else ""
        change = "create" if event.is_create else event.type
        return [str(event.revision), change, shown_key(event.kv.key, coding), size, preview(event.kv.value)]

    def show(events: Sequence[mvccstore.Event]) -> None:
        table.print(map(cells, events))

    return show


def _runner(command: Sequence[str] | str) -> Callable[[Sequence[mvccstore.Event]], None]:
    def run_each(events: Sequence[mvccstore.Event]) -> None:
        for event in events:
            sys.stdout.flush()
            told = as_json(event_json(event)) + "\n"
            ended = commands.run(command, variables(event), told.encode())
            if ended.code:
                problem = f"the command ended with {ended.code}; --from {event.revision} repeats it"
                click.echo(f"mvccstore: {problem}", err=True)
                raise click.exceptions.Exit(ended.code)
            if ended.is_interrupted:
                raise KeyboardInterrupt

    return run_each


def variables(event: mvccstore.Event) -> dict[str, str]:
    """Return what the environment says about a change."""
    found = {_variable("TYPE"): event.type, _variable("REVISION"): str(event.revision)}
    for name, data in (("KEY", event.kv.key), ("VALUE", event.kv.value)):
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            name, text = f"{name}_B64", base64.b64encode(data).decode()
        if len(text.encode()) <= VARIABLE_BYTES_MAX:
            found[_variable(name)] = text
    return found


def _variable(name: str) -> str:
    return f"MVCCSTORE_{name}"
