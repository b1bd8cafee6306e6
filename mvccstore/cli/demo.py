"""The command that shows what a store does, on files everybody has."""

from __future__ import annotations

import shutil
import signal
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from mvccstore.cli.output import emit, emit_json
from mvccstore.cli.session import EXIT_NOT_FOUND, Failure, engine_option, json_option, wants_json
from mvccstore.cli.story import Story, Voice, sources


@click.command(short_help="Tell a story on the Python standard library.")
@click.option(
    "--dir", "directory", type=click.Path(file_okay=False), help="Work in this directory, and keep the stores."
)
@click.option("--keep", is_flag=True, help="Keep the temporary directory with the stores, and say where it is.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Import only N files.")
@click.option(
    "--source",
    type=click.Path(exists=True, file_okay=False),
    help="Import this directory.  [default: the standard library of this Python]",
)
@engine_option
@json_option
def demo(directory: str | None, keep: bool, limit: int | None, source: str | None, engine: str | None) -> None:
    """Tell a story on real files: the Python standard library, imported, changed, read back in time, backed up.

    Every step shows the calls it makes, and what it claims is compared with the files on disk. Works in a
    temporary directory that is removed at the end, also after Ctrl-C.

    JSON: one object with steps, a list of {title, seconds, facts, claims}; is_ok; seconds.

    Exit code 1 if anything was not as claimed.
    """
    root = Path(source or sysconfig.get_path("stdlib"))
    chosen = sources(root, limit)
    if len(chosen) < 4:
        msg = f"{root}: too few files below it for a story; name another with --source"
        raise Failure(msg)
    with _terminated_like_interrupted(), _workplace(directory, keep=keep) as place:
        voice = Voice(is_silent=wants_json())
        Story(voice, root, chosen, place, engine or "lmdb").tell()
        if wants_json():
            emit_json(voice.report())
        elif directory or keep:
            emit(f"\nThe stores are in {place}; look around: mvccstore -s {place / 'demo.mvcc'} range")
    if voice.failed:
        raise click.exceptions.Exit(EXIT_NOT_FOUND)


@contextmanager
def _workplace(directory: str | None, *, keep: bool) -> Iterator[Path]:
    if directory is not None:
        place = Path(directory)
        place.mkdir(parents=True, exist_ok=True)
        if any(place.iterdir()):
            msg = f"{place}: is not empty; the story begins in an empty directory"
            raise Failure(msg)
        yield place
        return
    place = Path(tempfile.mkdtemp(prefix="mvccstore-demo-"))
    try:
        yield place
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM clean up as Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
