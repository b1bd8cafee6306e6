"""`mvccstore serve`: an etcd that is this package."""

from __future__ import annotations

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    short_help="Serve a store as etcd v3.",
    add_help_option=True,
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def serve(context: click.Context, flags: tuple[str, ...]) -> None:
    """Serve a store as etcd v3, to any etcd client in any language, until SIGTERM or Ctrl-C.

    Takes etcd's own flags and its ETCD_* variables; `mvccstore-etcd --help` lists them. What they name most:

    \b
      --data-dir DIR               where the store is (default.etcd)
      --memory                     keep everything in memory
      --listen-client-urls URLS    what to listen on (http://localhost:2379)
      --advertise-client-urls URLS what clients are told to use

    Needs the extra `server`.
    """
    try:
        from mvccstore.server.process import main
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    context.exit(main(flags))
