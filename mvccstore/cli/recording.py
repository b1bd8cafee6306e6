"""`mvccstore record` and `mvccstore replay`: what programs ask a real etcd, into a file, and served out of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from mvccstore.cli.output import emit, emit_json
from mvccstore.cli.session import Failure, json_option, one_line, wants_json

EXIT_GAPS = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def _stopping() -> Iterator[Any]:
    """Give a function that returns once the process is told to stop; a second time ends it where it is."""
    # Blocked, so that `sigwait` gets them; the threads that are made meanwhile leave them alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def wait() -> None:
        signal.sigwait(_SIGNALS)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield wait
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _say(text: str) -> None:
    click.echo(f"mvccstore: {one_line(text)}", err=True)


@click.command(short_help="Pass calls on to a real etcd, and write them to a cassette.")
@click.option("--upstream", required=True, metavar="URL", help="The etcd: HOST:PORT, or https://HOST:PORT.")
@click.option("--cassette", required=True, type=click.Path(dir_okay=False), metavar="FILE", help="The file to write.")
@click.option("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="Where clients come; port 0 is any.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.option("--keep-secrets", is_flag=True, help="Write passwords, tokens and metadata as they are.")
@click.option("--cacert", type=click.Path(), metavar="FILE", help="The certificates to trust, for https.")
@click.option("--cert", type=click.Path(), metavar="FILE", help="A certificate to show to the etcd.")
@click.option("--key", type=click.Path(), metavar="FILE", help="Its key.")
@click.option("--server-name", metavar="NAME", help="What the etcd's certificate is for, if not its host.")
@click.option("--listen-cert", type=click.Path(), metavar="FILE", help="A certificate to serve https with.")
@click.option("--listen-key", type=click.Path(), metavar="FILE", help="Its key.")
@click.pass_context
def record(
    context: click.Context,
    upstream: str,
    cassette: str,
    listen: str,
    overwrite: bool,
    keep_secrets: bool,
    cacert: str | None,
    cert: str | None,
    key: str | None,
    server_name: str | None,
    listen_cert: str | None,
    listen_key: str | None,
) -> None:
    """Pass calls on to a real etcd, and write them to a cassette, until SIGTERM or Ctrl-C.

    Any etcd client may come, by gRPC or JSON; everything is passed on as it is. `mvccstore replay` serves the file
    again, and so does mvccstore.testing.etcd(replay=FILE). Passwords, tokens and unknown metadata are written as
    `redacted`, keys and values as they are.

    Exit codes: 0 all was recorded, 1 a connection was not to its end, or the etcd was not there for it, 3 the etcd or
    the file said no at first. Needs the extra `server`.
    """
    if (cert is None) != (key is None) or (listen_cert is None) != (listen_key is None):
        msg = "a certificate and its key go together"
        raise click.UsageError(msg)
    try:
        from mvccstore.server.transport.tls import TLSOptions
        from mvccstore.testing.recorder import Recorder
    except ImportError as error:
        raise Failure(str(error)) from error
    try:
        recorder = Recorder(
            upstream,
            cassette,
            listen=listen,
            overwrite=overwrite,
            keeps_secrets=keep_secrets,
            ca_file=cacert,
            cert_file=cert,
            key_file=key,
            server_name=server_name,
            tls=None if listen_cert is None or listen_key is None else TLSOptions(listen_cert, listen_key),
            note=_say,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        with _stopping() as wait, recorder:
            _say(f"{recorder.url} passes on to {recorder.upstream}, etcd {recorder.etcd or 'unknown'}, into {cassette}")
            wait()
    except FileExistsError as error:
        msg = f"{cassette}: exists already (--overwrite replaces it)"
        raise Failure(msg) from error
    _say(f"{recorder.calls} calls in {cassette}")
    context.exit(1 if recorder.notes else 0)


@click.command(short_help="Serve a cassette as the etcd that was recorded.")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="Where clients come; port 0 is any.")
@click.option("--at-once", is_flag=True, help="Tell watches of events though nobody has done what they come of.")
@click.option(
    "--generated", multiple=True, metavar="REGEX", help="What differs from run to run, beside UUIDs and such."
)
@click.option("--strict", is_flag=True, help="Exit with 1 also if something was not asked for.")
@json_option
@click.pass_context
def replay(
    context: click.Context, file: str, listen: str, at_once: bool, generated: tuple[str, ...], strict: bool
) -> None:
    """Serve a cassette, which `mvccstore record` has written, as the etcd that was recorded, until SIGTERM or Ctrl-C.

    A call that is not in it is a gap: its client gets FAILED_PRECONDITION with what was asked, and what was recorded
    that is nearest to it. At the end gaps are printed, and what nobody has asked for.

    Exit codes: 0 no gaps, 1 gaps, 3 the file is no cassette, or the address said no. Needs the extra `server`.
    """
    try:
        from mvccstore.testing.cassette import CassetteError
        from mvccstore.testing.etcd_server import Etcd
        from mvccstore.testing.names import GENERATED
        from mvccstore.testing.recorder import address_of
        from mvccstore.testing.replayer import Replay
    except ImportError as error:
        raise Failure(str(error)) from error
    try:
        host, port = address_of(listen)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        patterns = [*(each.decode() for each in GENERATED), *generated]
        played = Replay(file, generated=patterns, at_once=at_once)
    except CassetteError as error:
        raise Failure(str(error)) from error
    with _stopping() as wait, Etcd(replay=played, host=host, port=port) as server:
        _say(
            f"{server.url} serves {file}, {len(played.cassette.calls)} calls of etcd {played.cassette.etcd or 'unknown'}"
        )
        wait()
    gaps, unused = played.gaps, played.unused
    if wants_json():
        emit_json(
            {
                "gaps": [{"asked": gap.asked, "nearest": gap.nearest, "times": gap.times} for gap in gaps],
                "unused": [{"line": each.line, "call": each.text} for each in unused],
            }
        )
    else:
        for gap in gaps:
            emit(f"gap: {one_line(str(gap))}")
        for each in unused:
            emit(f"unused: {one_line(str(each))}")
    context.exit(EXIT_GAPS if gaps or (strict and unused) else 0)
