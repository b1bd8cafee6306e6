"""`mvccstore compare`: whether an etcd and ours answer alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from mvccstore.cli.output import as_json, emit, emit_json
from mvccstore.cli.session import Failure, json_option, wants_json

EXIT_DIFFERENT = 1
EXIT_CANNOT_COMPARE = 2


class CannotCompare(Failure):
    """The other etcd is not there, or not for this."""

    exit_code = EXIT_CANNOT_COMPARE


@click.command(short_help="Ask an etcd and ours the same, and show the first difference.")
@click.option("--with", "url", required=True, metavar="URL", help="The etcd, such as http://127.0.0.1:2379.")
@click.option("--seed", type=int, default=0, metavar="N", help="Of the first run; the next ones count on.  [0]")
@click.option("--steps", type=click.IntRange(min=1), default=60, metavar="N", help="Steps of each run.  [60]")
@click.option("--runs", type=click.IntRange(min=1), default=20, metavar="N", help="How many runs.  [20]")
@click.option("--version", type=click.Choice(["3.4", "3.5", "3.6"]), help="What ours is; else what the etcd is.")
@click.option("--prefix", default="", metavar="TEXT", help="Keep to keys below this, and compact nothing.")
@click.option("--erase", is_flag=True, help="Delete what is there; with --prefix, below it.")
@click.option("--script", metavar="FILE", help="Play this script, - for stdin; such as --json printed.")
@click.option("--timeout", type=float, default=5.0, metavar="SECONDS", help="To wait for each answer.  [5]")
@click.option("--cacert", type=click.Path(), metavar="FILE", help="The certificates to trust, for https.")
@json_option
@click.pass_context
def compare(
    context: click.Context,
    url: str,
    seed: int,
    steps: int,
    runs: int,
    version: str | None,
    prefix: str,
    erase: bool,
    script: str | None,
    timeout: float,
    cacert: str | None,
) -> None:
    """Ask an etcd and ours the same, and show the first difference in as few steps as will do.

    Plays generated workloads of keys, txns, leases, watches and compactions to the etcd and to a server of ours, in
    memory, as the same minor version. They come from the seed: the same seed, the same steps.

    The etcd has to be empty, and is left so, at a higher revision and compacted. One that is not empty is refused,
    unless --prefix says where to stay, or --erase that what is there may go.

    Exit codes: 0 same, 1 different, 2 cannot compare. Needs the extra `server`.
    """
    try:
        from mvccstore.testing.comparing import compare as compare_with
        from mvccstore.testing.playing import RefusedError
        from mvccstore.testing.workload import script_from_json, script_to_json
    except ImportError as error:
        raise CannotCompare(str(error)) from error

    show_run = (lambda number: _show(f"run {number + 1} of {runs}")) if sys.stderr.isatty() else (lambda _: None)
    try:
        report = compare_with(
            url,
            seed=seed,
            steps=steps,
            runs=runs,
            version=version,
            prefix=prefix.encode(),
            erase=erase,
            timeout=timeout,
            ca_file=cacert,
            script=None if script is None else script_from_json(_read(script)),
            on_run=show_run,
        )
    except (RefusedError, OSError, ValueError) as error:
        raise CannotCompare(str(error)) from error
    finally:
        if sys.stderr.isatty():
            _show("")
    if wants_json():
        emit_json(report.to_json())
    else:
        emit(str(report))
        if report.found is not None:
            emit(f"to play it again: mvccstore compare --with {report.url} --script FILE, with this in FILE:")
            emit(as_json(script_to_json(report.found.script)))
    context.exit(0 if report.is_same else EXIT_DIFFERENT)


def _read(script: str) -> Any:
    return json.loads(sys.stdin.read() if script == "-" else Path(script).read_text(encoding="utf-8"))


def _show(text: str) -> None:
    """Have a person see how far it is."""
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()
