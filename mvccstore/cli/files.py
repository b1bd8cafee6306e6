"""Commands about a store as a whole: compact, defragment, backup, restore, stats, check."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import click

import mvccstore
from mvccstore.cli.output import emit, emit_json, emit_lines, human_bytes, on_terminal, progress_bar, show_facts
from mvccstore.cli.session import (
    EXIT_NOT_FOUND,
    Failure,
    StoreCommand,
    common_options,
    engine_option,
    one_line,
    open_for_reading,
    open_for_writing,
    store_path,
    wants_json,
)

_UNIT_SECONDS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_AGE = re.compile(r"(?:\d+[wdhms])+", re.ASCII)
_AGE_PART = re.compile(r"(\d+)([wdhms])")


def _age(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Return a length of time in seconds: 30d, 12h, 1h30m."""
    if value is None:
        return None
    if not _AGE.fullmatch(value):
        msg = f"{value!r} is not an age; write 2w, 30d, 12h, 5m, 90s or 1d12h"
        raise click.BadParameter(msg)
    return float(sum(int(number) * _UNIT_SECONDS[unit] for number, unit in _AGE_PART.findall(value)))


@click.command(cls=StoreCommand, short_help="Forget history below a revision.")
@click.argument("revision", type=click.IntRange(min=1), required=False)
@click.option(
    "--keep-revisions", type=click.IntRange(min=0), metavar="N", help="Keep the last N before the current one."
)
@click.option("--keep-age", callback=_age, metavar="AGE", help="Keep what was current within 30d, 12h, 5m, 1d12h ...")
@click.option("--physical", is_flag=True, help="Wait until the space is reclaimed.")
@common_options
def compact(revision: int | None, keep_revisions: int | None, keep_age: float | None, physical: bool) -> None:
    """Forget history below REVISION, keeping what is visible at it.

    Reads below it then fail. The space is reused by later writes; the file shrinks by defragment. Without --physical, reclaiming goes on when the store is next open for writing.

    JSON: one object with compact_revision, -1 if the store was never compacted, and is_changed.
    """
    if [revision, keep_revisions, keep_age].count(None) != 2:
        msg = "give one of REVISION, --keep-revisions, --keep-age"
        raise click.UsageError(msg)
    with open_for_writing(create=False) as store:
        before = store.compact_revision
        store.compact(revision, keep_revisions=keep_revisions, keep_seconds=keep_age, physical=physical)
        after = store.compact_revision
    if wants_json():
        emit_json({"compact_revision": after, "is_changed": after != before})
    elif after != before:
        emit(f"compacted: {after} is now the oldest revision that can be read")
    else:
        emit("nothing to compact: there is no more history than that")


@click.command(cls=StoreCommand, short_help="Give unused space back to the disk.")
@click.argument("file", required=False, type=click.Path())
@common_options
def defragment(file: str | None) -> None:
    """Make the file of a store as small as what is in it.

    What history takes is used until it is compacted (compact --physical). The disk needs room for the small file
    beside the old one. FILE may be left out if -s or MVCCSTORE names it.

    JSON: one object with file_bytes_before and file_bytes.
    """
    with open_for_writing(file, create=False) as store:
        before = store.stats().file_bytes
        store.defragment()
        after = store.stats().file_bytes
    if wants_json():
        emit_json({"file_bytes_before": before, "file_bytes": after})
    else:
        emit(f"the file has {human_bytes(after)}; before, it had {human_bytes(before)}")


@click.command(cls=StoreCommand, short_help="Copy a store to a file, while it is used.")
@click.argument("paths", nargs=-1, required=True, metavar="[FILE] BACKUP", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace BACKUP if it exists.")
@engine_option
@common_options
def backup(paths: tuple[str, ...], overwrite: bool, engine: str | None) -> None:
    """Copy the whole store in FILE, history included, to BACKUP, while others use it.

    The copy is a store itself and can be read as it is. FILE may be left out if -s or MVCCSTORE names it.

    JSON: one object with path, revision, file_bytes.
    """
    if len(paths) > 2:
        msg = "backup takes FILE and BACKUP"
        raise click.UsageError(msg)
    target = paths[-1]
    source = paths[0] if len(paths) == 2 else None
    with open_for_reading(source) as store, progress_bar("backup", "records") as progress:
        store.backup(target, engine=engine, overwrite=overwrite, progress=progress)
    _show_copy(target)


def _show_copy(path: str) -> None:
    with mvccstore.open(path, read_only=True, create=False) as copy:
        revision = copy.revision
    size = Path(path).stat().st_size
    if wants_json():
        emit_json({"path": path, "revision": revision, "file_bytes": size})
    else:
        emit(f"{one_line(path)}: revision {revision}, {human_bytes(size)}")


@click.command(cls=StoreCommand, short_help="Make a store from a backup.")
@click.argument("backup", type=click.Path())
@click.argument("file", required=False, type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@engine_option
@common_options
def restore(backup: str, file: str | None, overwrite: bool, engine: str | None) -> None:
    """Make the store FILE from BACKUP, after checking it. Keys, history and revisions are the backup's.

    FILE may be left out if -s or MVCCSTORE names it. With another --engine, the store changes engines.

    JSON: one object with path, revision, file_bytes.
    """
    target = store_path(file)
    with progress_bar("restore", "records checked") as progress:
        mvccstore.restore(backup, target, engine=engine, overwrite=overwrite, progress=progress)
    _show_copy(target)


@click.command(cls=StoreCommand, short_help="Print facts: revision, sizes, number of keys.")
@click.argument("file", required=False, type=click.Path())
@click.option(
    "--hash", "with_hash", is_flag=True, help="Also hash the whole history, as etcd's HashKV does; reads it all."
)
@common_options
def stats(file: str | None, with_hash: bool) -> None:
    """Print facts about a store: its revision, sizes, number of keys.

    In a pipe, each is a line: name, tab, value, sizes in bytes.

    JSON: one object with path, engine, revision, compact_revision (-1: never compacted), reclaimed_revision,
    keys, revisions_kept (changes in the history that is kept), used_bytes, file_bytes, leases; with --hash also
    hash.
    """
    with open_for_reading(file) as store:
        # What a read-only opening knows of durability and snapshots is not what the writer has.
        known = {name: fact for name, fact in asdict(store.stats()).items() if name not in {"durability", "snapshots"}}
        facts = {"path": known.pop("path"), **known, "keys": store.count(mvccstore.KeyRange.all())}
        if with_hash:
            facts["hash"] = store.hash_kv().hash
    if wants_json():
        emit_json(facts)
    elif on_terminal():
        show_facts([(name.replace("_", " "), _for_people(name, fact)) for name, fact in facts.items()])
    else:
        show_facts([(name, one_line(str(fact))) for name, fact in facts.items()])


def _for_people(name: str, fact: object) -> str:
    if name in {"compact_revision", "reclaimed_revision"} and fact == -1:
        return "never"
    if name == "hash" or not isinstance(fact, int):
        return one_line(str(fact))
    return human_bytes(fact) if name.endswith("_bytes") else f"{fact:,}"


@click.command(cls=StoreCommand, short_help="Look for damage and contradictions.")
@click.argument("file", required=False, type=click.Path())
@click.option("--no-structure", is_flag=True, help="Leave out the engine's own file structure (faster).")
@common_options
def check(file: str | None, no_structure: bool) -> None:
    """Read the whole store in FILE and hold it against the rules of its format.

    Prints the problems, one a line; nothing is changed. FILE may be left out if -s or MVCCSTORE names it.

    JSON: one object with path, revision (null if it cannot be read), problems (a list of strings).

    Exit code 0 if all is well, 1 if there are problems, 3 if FILE is not a store or too damaged to be opened.
    """
    path = store_path(file)
    revision: int | None = None
    damage: mvccstore.CorruptError | None = None
    try:
        with open_for_reading(file) as store, progress_bar("check", "records") as progress:
            problems = store.check(structure=not no_structure, progress=progress)
            revision = None if problems else store.revision
    except mvccstore.CorruptError as error:
        problems, damage = list(error.problems), error
    if wants_json():
        emit_json({"path": path, "revision": revision, "problems": problems})
    elif problems:
        emit_lines(map(one_line, problems))
    else:
        emit(f"{one_line(path)}: no problems, revision {revision}")
    if damage is not None:
        raise Failure(str(damage)) from damage
    if problems:
        raise click.exceptions.Exit(EXIT_NOT_FOUND)
