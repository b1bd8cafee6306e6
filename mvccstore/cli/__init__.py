"""The `mvccstore` command: one module a command group.

* `app` puts the commands together and turns errors into exit codes.
* `session` has what every command shares: which store, JSON or not, how to open it.
* `keys` and `output` translate between bytes and what people, pipes and JSON readers see.
* `reading`, `writing`, `past`, `watching`, `leases`, `locking`, `files`, `exchange`, `serving`, `comparing`, `demo` and
  `completion` are the commands; `txn_json`, `json_lines`, `commands` (of others), `tree` and `story` do the work of those that have more
  of it.

Here lives only the entry point, and nothing that needs click or rich: they are the extra `cli`, and without
them `main` says so, but for `serve`, for which the extra `server` is enough. The commands use the public API alone.
"""

from __future__ import annotations

import io
import sys

EXIT_MISSING_EXTRA = 3
EXIT_INTERRUPTED = 130


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        return _run()
    except KeyboardInterrupt:  # while modules are still being imported; later, the commands see to it
        return EXIT_INTERRUPTED


def _run() -> int:
    try:
        import click
        import rich  # noqa: F401 - only whether it is there
    except ImportError as error:
        if sys.argv[1:2] == ["serve"]:
            return _serve(sys.argv[2:])
        sys.stderr.write(f"mvccstore: error: {error.name} is not installed; pip install 'mvccstore[cli]'\n")
        return EXIT_MISSING_EXTRA
    from mvccstore.cli.app import cli

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A key that the terminal's encoding does not have must not end a listing.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        cli.main(prog_name="mvccstore")
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def _serve(flags: list[str]) -> int:
    try:
        from mvccstore.server.etcd_shim import run as serve
    except ImportError as error:
        sys.stderr.write(f"mvccstore: error: {error}\n")
        return EXIT_MISSING_EXTRA
    return serve(flags)
