"""The command line as a whole: its commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

import mvccstore
from mvccstore.cli import (
    EXIT_INTERRUPTED,
    comparing,
    completion,
    demo,
    exchange,
    files,
    leases,
    locking,
    past,
    reading,
    recording,
    serving,
    watching,
    writing,
)
from mvccstore.cli.session import EXIT_BROKEN_PIPE, explain, json_option, store_option

_EPILOG = """\b
Exit codes:
  0    ok
  1    not found, a compare did not hold, or check found problems
  2    wrong usage, or input that cannot be understood
  3    the store or a file said no; one line on stderr says why
  130  interrupted (Ctrl-C); 141 the reader of the output went away
\b
Output: tables on a terminal; in a pipe plain lines without header or colour; with --json a JSON document, or
a JSON document a line where there may be many. Bytes that are not UTF-8 are base64 in key_b64, value_b64.
Keys are UTF-8 text on the command line; --hex and --b64 take other bytes.
\b
Begin with:
  mvccstore -s my.mvcc put greeting hello       make a store, set a key, print the revision
  mvccstore -s my.mvcc get greeting             (or: export MVCCSTORE=my.mvcc)
  mvccstore -s my.mvcc range                    list the keys
  mvccstore -s my.mvcc history greeting         how it came to be so
  mvccstore demo                                a story on the Python standard library
"""


class App(click.Group):
    """The group; turns every foreseen error into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_stdout()
            ctx.exit(EXIT_BROKEN_PIPE)
        except (mvccstore.StoreError, OSError) as error:
            raise explain(error) from error
        except KeyboardInterrupt:
            click.echo("mvccstore: interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order they are likely needed in, not by name."""
        return list(self.commands)


def _drop_stdout() -> None:
    """Let nothing fail when the interpreter flushes stdout at its end."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        return


@click.group(
    cls=App, epilog=_EPILOG, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@store_option
@json_option
@click.version_option(mvccstore.__version__, message="mvccstore %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Read, write and look after mvccstore files: key-value stores in which every write has a revision, and every revision can be read.

    The store is named by -s FILE, before or after the command, or by the environment variable MVCCSTORE; check,
    stats, backup and restore also take FILE as an argument. Reading works beside a program that writes.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (
    reading.get,
    writing.put,
    writing.delete,
    reading.range_command,
    reading.count,
    reading.history,
    past.log,
    past.diff,
    past.blame,
    past.revert,
    watching.watch,
    writing.txn,
    leases.lease,
    locking.lock,
    exchange.import_command,
    exchange.export,
    files.compact,
    files.defragment,
    files.backup,
    files.restore,
    files.stats,
    files.check,
    serving.serve,
    comparing.compare,
    recording.record,
    recording.replay,
    demo.demo,
    completion.completion,
):
    cli.add_command(_command)
