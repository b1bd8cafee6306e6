"""Commands that exchange keys with other programs: import and export, of JSON lines or a directory tree."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import click

import mvccstore
from mvccstore.cli.json_lines import Change, changes
from mvccstore.cli.keys import escaped
from mvccstore.cli.output import (
    Progress,
    as_json,
    emit,
    emit_json,
    event_json,
    human_bytes,
    plural,
    progress_bar,
    row_json,
)
from mvccstore.cli.session import (
    DurabilityName,
    Failure,
    Moment,
    StoreCommand,
    at_option,
    common_options,
    creation_options,
    one_line,
    open_for_reading,
    open_for_writing,
    revision_at,
    store_path,
    wants_json,
)
from mvccstore.cli.tree import PathPlan, TreeFile, TreeWriter, files_below

BATCH_KEYS = 500
BATCH_BYTES = 16 << 20
_REPORT_EVERY = 100
_PARTLY = "what came before may be in the store (--batch 0 writes all or nothing)"


class Importer:
    """Writes changes to a store, many in a transaction, and counts what became of them."""

    def __init__(self, store: mvccstore.Store, batch_keys: int) -> None:
        self.put = self.unchanged = self.deleted = self.bytes = 0
        self._store = store
        self._batch_keys = batch_keys
        self._pending: list[Change] = []
        self._pending_bytes = 0

    def add(self, change: Change) -> None:
        """Take a change; write when there are enough."""
        if self._pending and self._is_due(change):
            self.flush()
        self._pending.append(change)
        self._pending_bytes += len(change.value)

    def _is_due(self, following: Change) -> bool:
        if following.revision or self._pending[-1].revision:  # history: a transaction for each of its revisions
            return following.revision != self._pending[-1].revision
        if not self._batch_keys:
            return False
        return len(self._pending) >= self._batch_keys or self._pending_bytes >= BATCH_BYTES

    def flush(self) -> None:
        """Write what is pending, as one revision."""
        with self._store.begin() as txn:
            for change in self._pending:
                try:
                    self._write(txn, change)
                except mvccstore.LimitError as error:
                    msg = f"{escaped(change.key[:100])}: {error}; {_PARTLY}"
                    raise Failure(msg) from error
        self._pending.clear()
        self._pending_bytes = 0

    def _write(self, txn: mvccstore.Txn, change: Change) -> None:
        if change.type == "delete":
            self.deleted += txn.delete(change.key)
            return
        if not change.revision:
            before = txn.get(change.key)
            if before is not None and before.value == change.value:
                self.unchanged += 1
                return
        txn.put(change.key, change.value)
        self.put += 1
        self.bytes += len(change.value)


@click.command("import", cls=StoreCommand, short_help="Import JSON lines or a directory.")
@click.argument("source", type=click.Path(exists=True, allow_dash=True))
@click.option("--prefix", default="", metavar="TEXT", help="Directory: put this in front of every key.")
@click.option("--delete", is_flag=True, help="Directory: delete keys (with the prefix) that have no file there.")
@click.option(
    "--batch",
    type=click.IntRange(min=0),
    default=BATCH_KEYS,
    metavar="N",
    help=f"Keys in a transaction; 0: all in one, or none.  [default: {BATCH_KEYS}]",
)
@creation_options
@common_options
def import_command(
    source: str, prefix: str, delete: bool, batch: int, engine: str | None, durability: DurabilityName
) -> None:
    """Import SOURCE: a file of JSON lines (- for stdin), or a directory. Makes the store if there is none.

    A directory: every regular file becomes a key, its path below SOURCE with slashes; the value is its bytes. The
    store's own file is left out.

    JSON lines: what `export` and `range --json` print: {"key": "k", "value": "v"}, with key_b64 and value_b64 for
    bytes that are not UTF-8; other fields are passed over. {"type": "delete", "key": "k"} deletes. Lines with a
    "revision" (export --history) are replayed, one transaction for each revision; they get new revisions.

    Keys that have the value already are not written again.

    JSON: one object with revision, put, unchanged, deleted (keys), bytes (of the values put).
    """
    is_tree = source != "-" and Path(source).is_dir()
    if not is_tree and (prefix or delete):
        msg = "--prefix and --delete are for directories"
        raise click.UsageError(msg)
    path = store_path()
    files = files_below(Path(source), store_path=path) if is_tree else []
    with open_for_writing(engine=engine, durability=durability) as store:
        importer = Importer(store, batch)
        if is_tree:
            _import_tree(importer, store, files, prefix.encode("utf-8", "surrogateescape"), delete=delete)
        else:
            _import_lines(importer, source)
        importer.flush()
        revision = store.revision
    facts = {
        "revision": revision,
        "put": importer.put,
        "unchanged": importer.unchanged,
        "deleted": importer.deleted,
        "bytes": importer.bytes,
    }
    if wants_json():
        emit_json(facts)
    else:
        emit(
            f"{plural(importer.put, 'key')} put ({human_bytes(importer.bytes)}), {importer.unchanged:,} unchanged, "
            f"{importer.deleted:,} deleted, revision {revision}"
        )


def _import_tree(
    importer: Importer, store: mvccstore.Store, files: list[TreeFile], prefix: bytes, *, delete: bool
) -> None:
    gone: list[bytes] = []
    if delete:
        here = {prefix + file.name for file in files}
        with store.scan(mvccstore.KeyRange.prefix(prefix), keys_only=True) as rows:
            gone = [kv.key for kv in rows if kv.key not in here]
    with progress_bar("import", "keys") as progress:
        total = len(files) + len(gone)
        for done, file in enumerate(files, 1):
            importer.add(Change("put", prefix + file.name, file.path.read_bytes(), 0, 0))
            if not done % _REPORT_EVERY:
                progress(done, total)
        for key in gone:
            importer.add(Change("delete", key, b"", 0, 0))


def _import_lines(importer: Importer, source: str) -> None:
    with _opened(source) as file, progress_bar("import", "", is_bytes=True) as progress:
        total = os.fstat(file.fileno()).st_size if source != "-" else 0
        try:
            for change in changes(_measured(file, progress, total)):
                importer.add(change)
        except ValueError as error:
            name = "stdin" if source == "-" else source
            msg = f"{name}, {error}; {_PARTLY}"
            raise click.UsageError(one_line(msg)) from error


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer
    else:
        with Path(source).open("rb") as file:
            yield file


def _measured(lines: BinaryIO, progress: Progress, total: int) -> Iterator[bytes]:
    done = 0
    for number, line in enumerate(lines):
        done += len(line)
        if not number % _REPORT_EVERY:
            progress(done, total)
        yield line


class Export(NamedTuple):
    """What an export wrote."""

    rows: int
    bytes: int
    skipped: int


@click.command(cls=StoreCommand, short_help="Export JSON lines or a directory tree.")
@click.argument("dest", type=click.Path(allow_dash=True), default="-")
@click.option(
    "--prefix", default="", metavar="TEXT", help="Only keys that begin so; a tree's files are named without it."
)
@click.option("--tree", is_flag=True, help="Write a directory tree; so too if DEST is a directory or ends in a slash.")
@click.option("--history", is_flag=True, help="JSON lines: every change that is kept, in order, deletes included.")
@click.option("--overwrite", is_flag=True, help="Replace DEST, or write into a directory that has files.")
@click.option("--skip", is_flag=True, help="Directory: leave out keys that cannot be files, instead of failing.")
@at_option("Read the store as it was then.")
@common_options
def export(dest: str, prefix: str, tree: bool, history: bool, overwrite: bool, skip: bool, at: Moment) -> None:
    """Export keys to DEST: JSON lines to a file or stdout (the default), or a directory tree.

    JSON lines: what `range --json` prints; with --history, what `history --json` prints. A directory: every key
    is a file, its name the relative path (empty directories, permissions and times are not kept); if a key cannot
    be one, nothing is written. With --at, everything is as it was then.

    A file is there under its name when it is complete.

    JSON (--json; when DEST is not stdout): one object with revision, keys (or changes), bytes (of their values),
    skipped.
    """
    prefix_bytes = prefix.encode("utf-8", "surrogateescape")
    is_tree = tree or (dest != "-" and (dest.endswith("/") or Path(dest).is_dir()))
    if is_tree and (history or dest == "-"):
        msg = "--history is for JSON lines" if history else "a tree needs a directory: give DEST"
        raise click.UsageError(msg)
    if skip and not is_tree:
        msg = "--skip is for directories"
        raise click.UsageError(msg)
    with open_for_reading() as store:
        revision = revision_at(store, at) or store.revision
        source = Source(store, mvccstore.KeyRange.prefix(prefix_bytes), revision)
        if is_tree:
            done = _export_tree(source, Path(dest), len(prefix_bytes), overwrite=overwrite, skip=skip)
        elif dest == "-":
            done = _export_lines(source, sys.stdout.buffer, history=history)
        else:
            with _finished(Path(dest), overwrite=overwrite) as file:
                done = _export_lines(source, file, history=history)
    if dest == "-":
        return
    noun = "change" if history else "key"
    if wants_json():
        emit_json({"revision": revision, f"{noun}s": done.rows, "bytes": done.bytes, "skipped": done.skipped})
    else:
        skipped = f", {done.skipped:,} skipped" if done.skipped else ""
        emit(f"{plural(done.rows, noun)} ({human_bytes(done.bytes)}){skipped} as of revision {revision}")


class Source(NamedTuple):
    """What is exported."""

    store: mvccstore.Store
    keys: mvccstore.KeyRange
    revision: int

    def scan(self, *, keys_only: bool = False) -> mvccstore.Scan[mvccstore.KeyValue]:
        """Iterate over the keys."""
        return self.store.scan(self.keys, revision=self.revision, keys_only=keys_only)


@contextmanager
def _finished(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Give a file to write, and rename it to `path` when the block ends well."""
    if path.exists() and not overwrite:
        msg = f"{path}: exists already (--overwrite replaces it)"
        raise Failure(msg)
    if path.exists() and not path.is_file():  # /dev/null, a pipe
        with path.open("wb") as file:
            yield file
        return
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        if error.filename == str(partial):
            error.filename = str(path)  # the user knows nothing of the other
        raise
    finally:
        partial.unlink(missing_ok=True)


def _export_lines(source: Source, file: BinaryIO, *, history: bool) -> Export:
    count = size = 0
    is_mixed = not (sys.stdout.isatty() and file is sys.stdout.buffer)
    with progress_bar("export", "lines", is_wanted=is_mixed) as progress:
        total = 0 if history else source.store.count(source.keys, revision=source.revision)
        if history:
            events = source.store.history(source.keys, end_revision=source.revision)
            pairs = ((event_json(event), event.kv) for event in events)
        else:
            pairs = ((row_json(kv), kv) for kv in source.scan())
        for line, kv in pairs:
            file.write(as_json(line).encode() + b"\n")
            count += 1
            size += len(kv.value)
            if not count % _REPORT_EVERY:
                progress(count, total)
    file.flush()
    return Export(count, size, 0)


def _export_tree(source: Source, directory: Path, cut: int, *, overwrite: bool, skip: bool) -> Export:
    if directory.is_dir() and any(directory.iterdir()) and not overwrite:
        msg = f"{directory}: is not empty (--overwrite writes into it; files of other names stay)"
        raise Failure(msg)
    plan = PathPlan()
    unfit: dict[bytes, str] = {}
    total = 0
    for kv in source.scan(keys_only=True):
        total += 1
        problem = plan.problem(kv.key[cut:])
        if problem is not None:
            unfit[kv.key] = problem
    if unfit and not skip:
        key, problem = next(iter(unfit.items()))
        msg = f"{plural(len(unfit), 'key')} cannot be a file: {escaped(key[:100])}: {problem} (--skip leaves them out)"
        raise Failure(msg)
    directory.mkdir(parents=True, exist_ok=True)
    writer = TreeWriter(directory)
    count = size = 0
    with progress_bar("export", "files") as progress:
        for kv in source.scan():
            if kv.key in unfit:
                continue
            writer.write(kv.key[cut:], kv.value)
            count += 1
            size += len(kv.value)
            if not count % _REPORT_EVERY:
                progress(count, total - len(unfit))
    return Export(count, size, len(unfit))
