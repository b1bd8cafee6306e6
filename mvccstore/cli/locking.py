"""The command that runs another while it holds a lock."""

from __future__ import annotations

import time

import click

import mvccstore
from mvccstore.cli import commands
from mvccstore.cli.session import (
    Failure,
    engine_option,
    json_option,
    open_for_writing,
    store_option,
)
from mvccstore.clock import SystemClock

RETRY_SECONDS = 0.05
TTL_SECONDS = 1.0
"""How long a lock whose holder was killed is still in the way."""
_clock = SystemClock()


@click.command(
    cls=commands.RunningCommand,
    short_help="Run a command while holding a lock.",
)
@click.argument("name", metavar="NAME -- COMMAND [ARGS]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to wait for the lock.  [default: for ever]",
)
@engine_option
@store_option
@json_option
def lock(name: str, timeout: float | None, engine: str | None) -> None:
    """Run COMMAND while holding the lock NAME, and end with its exit code: lock NAME -- COMMAND ARGS.

    The store is open for writing meanwhile, which only one program at a time can have: whoever else writes to
    it, under whatever NAME, waits or is refused, and COMMAND itself can read the store but not write to it. So
    take a file of its own for locks; it is made if there is none. NAME is the lock that programs take with
    `store.lock(NAME)`.

    COMMAND finds in its environment MVCCSTORE_LOCK, the NAME, and MVCCSTORE_LOCK_REVISION, a number that is
    greater each time the lock changes hands; what it protects can refuse those who come with a lower one.
    Signals are passed on to it. If this is killed, the lock is free at once, and COMMAND goes on without it.

    JSON: nothing; stdout is COMMAND's.

    Exit code 3 if --timeout was too short, 127 if there is no such COMMAND, 126 if it cannot be run.
    """
    command = commands.rest()
    if not command:
        msg = "no command; give it after two dashes: lock NAME -- COMMAND ARGS"
        raise click.UsageError(msg)
    deadline = None if timeout is None else _clock.monotonic() + timeout
    with _opened(deadline, engine) as store:
        held = store.lock(name, ttl=TTL_SECONDS)
        if not held.acquire(timeout=_left(deadline)):
            msg = f"{store.path}: the lock {name} was held by one who is gone, and is free in a second; try again"
            raise Failure(msg)
        try:
            told = {"MVCCSTORE_LOCK": name, "MVCCSTORE_LOCK_REVISION": str(held.revision)}
            code = commands.run(command, told).code
        finally:
            held.release()
    raise click.exceptions.Exit(code)


def _opened(deadline: float | None, engine: str | None) -> mvccstore.Store:
    while True:
        try:
            return open_for_writing(engine=engine, durability="os")
        except mvccstore.LockedError as error:
            left = _left(deadline)
            if left is not None and left <= 0:
                raise Failure(f"{error}; waited for it in vain") from error  # noqa: EM102
            time.sleep(RETRY_SECONDS if left is None else min(left, RETRY_SECONDS))


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - _clock.monotonic())
