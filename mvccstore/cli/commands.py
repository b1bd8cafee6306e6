"""Running another program: what it is told, and what its end becomes of ours."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import click

from mvccstore.cli.session import StoreCommand, one_line, store_path

EXIT_CANNOT_RUN = 126
EXIT_NO_COMMAND = 127
_SIGNALLED = 128
_REST = "mvccstore.rest"
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)


class RunningCommand(StoreCommand):
    """A command of ours that runs another: what comes after two dashes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what comes before the dashes."""
        if "--" in args:
            dashes = args.index("--")
            ctx.meta[_REST] = args[dashes + 1 :]
            args = args[:dashes]
        return super().parse_args(ctx, args)


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    """As a shell has it."""
    is_interrupted: bool
    """Whether we were asked to end meanwhile."""


def rest() -> list[str]:
    """Return what came after two dashes."""
    found: list[str] = click.get_current_context().meta.get(_REST, [])
    return found


def run(command: Sequence[str] | str, told: Mapping[str, str], stdin: bytes | None = None) -> Ended:
    """Run a program, or a line by the shell, to its end.

    Ctrl-C reaches the program, too, and SIGTERM and SIGHUP are passed on to it: it decides when it ends.

    Args:
        command: The program and its arguments, or a line.
        told: What its environment says besides ours.
        stdin: What it can read; None for what we can.
    """
    # What a watch around this one has told is not about this change.
    kept = {
        name: text for name, text in os.environ.items() if not name.startswith(("MVCCSTORE_KEY", "MVCCSTORE_VALUE"))
    }
    environment = {**kept, **told, "MVCCSTORE": str(Path(store_path()).absolute())}
    try:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            env=environment,
            stdin=None if stdin is None else subprocess.PIPE,
        )
    except OSError as error:
        name = command if isinstance(command, str) else command[0]
        click.echo(f"mvccstore: error: {one_line(name)}: {error.strerror}", err=True)
        return Ended(EXIT_NO_COMMAND if isinstance(error, FileNotFoundError) else EXIT_CANNOT_RUN, is_interrupted=False)
    with _passed_on(process) as seen:
        if process.stdin is not None and stdin is not None:
            with suppress(BrokenPipeError), process.stdin as pipe:  # it need not read
                pipe.write(stdin)
        code = process.wait()
    return Ended(_SIGNALLED - code if code < 0 else code, is_interrupted=bool(seen))


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass signals on to a program, which gets Ctrl-C by itself; gives the list of those that came.

    None of them raises here: an interrupt between the program's end and the note of it would lose how it ended.
    """
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        if number != signal.SIGINT:
            process.send_signal(number)

    numbers = [*_FORWARDED, *([] if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else [signal.SIGINT])]
    try:
        before = {number: signal.signal(number, note) for number in numbers}
    except ValueError:  # not in the main thread
        yield seen
        return
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
