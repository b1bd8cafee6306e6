"""What every command shares: which store is meant, how it is opened, and whether JSON is wanted.

The store is named once, with `-s/--store` before or after the command, or by the environment variable
MVCCSTORE. Commands about a whole file (check, stats, backup, restore) also take it as an argument.

Reading commands open it read-only, so they work beside a writer, and never make a file. Of the writing ones
those that add (put, txn, import) make a store that does not exist; those that only take away do not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

import mvccstore
from mvccstore.cli.keys import decoded, escaped

ENVIRONMENT_VARIABLE = "MVCCSTORE"
EXIT_NOT_FOUND = 1
EXIT_STORE_ERROR = 3
EXIT_BROKEN_PIPE = 141
COMPLETIONS_MAX = 100

_RANGE_OPTIONS = frozenset({"--prefix", "--from-key", "--limit", "--keys-only"})

DurabilityName = Literal["fsync", "interval", "os"]

_STORE = "mvccstore.store"
_JSON = "mvccstore.json"
_F = TypeVar("_F", bound=Callable[..., Any])


class Failure(click.ClickException):
    """Something went wrong in the store or a file; one line says what, and what to do about it."""

    exit_code = EXIT_STORE_ERROR

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo(f"mvccstore: error: {one_line(self.message)}", file=file, err=file is None)


class StoreCommand(click.Command):
    """A command on a store; says how to name one when it is given where a key belongs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with a hint on what a user of other tools types first: `get FILE KEY`."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name not in _RANGE_OPTIONS:
                raise
            msg = f"{self.name} has no {error.option_name}; `mvccstore range` lists many keys"
            raise click.UsageError(msg, ctx) from error
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message:
                raise
            msg = f"{error.message} The store is named with -s FILE, or by {ENVIRONMENT_VARIABLE}."
            raise click.UsageError(msg, ctx) from error


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            ctx.meta[name] = value

    return callback


def common_options(command: _F) -> _F:
    """Give a command `-s/--store` and `--json`."""
    return json_option(store_option(command))


def store_option(command: _F) -> _F:
    """Give a command `-s/--store`."""
    return click.option(
        "-s",
        "--store",
        metavar="FILE",
        type=click.Path(),
        expose_value=False,
        callback=_remember(_STORE),
        help=f"The store's file.  [env: {ENVIRONMENT_VARIABLE}]",
    )(command)


def json_option(command: _F) -> _F:
    """Give a command `--json`."""
    return click.option("--json", is_flag=True, expose_value=False, callback=_remember(_JSON), help="Print JSON.")(
        command
    )


Moment = int | float | datetime
_REVISION = re.compile(r"\d+", re.ASCII)
_SECONDS = re.compile(r"\d+\.\d*|\.\d+", re.ASCII)


def moment(value: str | int) -> Moment:
    """Return the revision or time that is meant on the command line.

    What is all digits is a revision; with a decimal point it is seconds since the epoch; else it is ISO 8601,
    which then has a dash, a colon or a letter. Without a time zone that is local time, as tables show it.

    >>> moment("42"), moment("1738324800.5"), str(moment("2025-01-31T12:00:00Z"))
    (42, 1738324800.5, '2025-01-31 12:00:00+00:00')
    """
    text = str(value)
    try:
        if _REVISION.fullmatch(text):
            return int(text)
        if _SECONDS.fullmatch(text) and isfinite(seconds := float(text)):
            return seconds
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo is not None else time.astimezone()).astimezone(UTC)
    except (ValueError, OverflowError, OSError):  # the last two at the ends of the calendar
        msg = f"{text!r} is neither a revision nor a time; 42, 2025-01-31T12:00:00Z and 1738324800.0 are"
        raise click.BadParameter(msg) from None


def at_option(meaning: str) -> Callable[[_F], _F]:
    """Give a command `--at`; `revision_at` says which revision that is."""
    return click.option(
        "--at",
        "at",
        metavar="REVISION|TIME",
        type=moment,
        default=0,
        help=f"{meaning} A number is a revision. A time is 2025-01-31T12:00:00Z (ISO 8601; local time without a zone), "
        "or seconds since the epoch with a decimal point.",
    )


def revision_at(store: mvccstore.Store, moment: Moment) -> int:
    """Return the revision that `--at` means: 0 for the current one, of a time the last one written by then."""
    return moment if isinstance(moment, int) else store.at(moment)


def creation_options(command: _F) -> _F:
    """Give a command `--engine` and `--durability`."""
    return engine_option(durability_option(command))


def engine_option(command: _F) -> _F:
    """Give a command `--engine`."""
    names = [name for name in mvccstore.engine_names() if name != "memory"]
    return click.option(
        "--engine", type=click.Choice(names), default=None, help="The engine of a store that is made.  [default: lmdb]"
    )(command)


def durability_option(command: _F) -> _F:
    """Give a command `--durability`."""
    return click.option(
        "--durability",
        type=click.Choice([level.value for level in mvccstore.Durability]),
        default="fsync",
        help="What a commit survives: a power cut (fsync, the default), or a crash of the process (the others).",
    )(command)


def wants_json() -> bool:
    """Whether `--json` was given."""
    return bool(click.get_current_context().meta.get(_JSON))


def named_store(ctx: click.Context) -> str | None:
    """Return the store's path as options or environment say it, if they do."""
    path = ctx.meta.get(_STORE) or os.environ.get(ENVIRONMENT_VARIABLE)
    return os.fspath(path) if path else None


def store_path(explicit: str | None = None) -> str:
    """Return the store's path; an explicit argument goes before the environment, but not against `-s`."""
    ctx = click.get_current_context()
    if explicit is not None:
        if ctx.meta.get(_STORE):
            raise click.UsageError(f"the store is named twice: {explicit} and -s {ctx.meta[_STORE]}")  # noqa: EM102
        return explicit
    path = named_store(ctx)
    if path is None:
        msg = f"no store named; give -s FILE, or set {ENVIRONMENT_VARIABLE}"
        raise click.UsageError(msg)
    return path


def open_for_reading(explicit: str | None = None) -> mvccstore.Store:
    """Open the store read-only."""
    path = store_path(explicit)
    _require(path)
    return mvccstore.open(path, read_only=True, create=False)


def open_for_writing(
    explicit: str | None = None,
    *,
    create: bool = True,
    engine: str | None = None,
    durability: DurabilityName = "fsync",
) -> mvccstore.Store:
    """Open the store to write to it."""
    path = store_path(explicit)
    if not create:
        _require(path)
    return mvccstore.open(path, engine=engine, create=create, durability=durability)


def _require(path: str) -> None:
    file = Path(path)
    if not file.exists():
        msg = (
            f"{path}: there is no such store (put, txn, import and restore make one: mvccstore -s {path} put KEY VALUE)"
        )
        raise Failure(msg)
    if file.is_dir():
        msg = f"{path}: is a directory; a store is a file"
        raise Failure(msg)


def not_found(message: str) -> NoReturn:
    """End the command with the exit code for "not found"."""
    click.echo(f"mvccstore: {one_line(message)}", err=True)
    raise click.exceptions.Exit(EXIT_NOT_FOUND)


def explain(error: mvccstore.StoreError | OSError) -> Failure:
    """Return what the user is told: what happened, and what helps."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return Failure(f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else reason)
    message = str(error)
    match error:
        case mvccstore.LockedError():
            remedy = "reading commands work beside it; write when it has closed the store"
        case mvccstore.CompactedError():
            remedy = f"revisions from {error.compact_revision} on can be read"
        case mvccstore.StorageFullError():
            remedy = "make room, then try again; nothing was lost"
        case mvccstore.CorruptError():
            remedy = "`mvccstore check` says more; `mvccstore restore` makes a new store of a backup"
        case mvccstore.StorageError() if error.reason == "exists already":
            remedy = "--overwrite replaces it"
        case _:
            remedy = ""
    return Failure(f"{message} ({remedy})" if remedy else message)


def one_line(text: str) -> str:
    """Return a message that can neither span lines nor steer a terminal."""
    return escaped(text.encode("utf-8", "surrogateescape"), backslash="\\")


class KeyType(click.types.StringParamType):
    """A key on the command line, which the shell can complete from the store."""

    name = "key"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the first keys that begin with what was typed; nothing if they cannot be read."""
        path = named_store(ctx)
        if path is None or ctx.params.get("coding"):
            return []
        keys = mvccstore.KeyRange.prefix(decoded(incomplete, None))
        found: list[CompletionItem] = []
        try:
            with mvccstore.open(path, read_only=True, create=False) as store, store.scan(keys, keys_only=True) as rows:
                for kv in rows:
                    text = kv.key.decode("utf-8", "surrogateescape")
                    if text.isprintable():
                        found.append(CompletionItem(text))
                    if len(found) == COMPLETIONS_MAX:
                        break
        except mvccstore.StoreError:
            return []
        return found


KEY = KeyType()
