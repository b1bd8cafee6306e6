"""A stand-in for the `etcd` binary, for tools that insist on starting one: `mvccstore-etcd`, or an executable named `etcd`.

    python -m mvccstore.server.etcd_shim --install DIR

writes the executable into a directory, to be put in front of the PATH.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from mvccstore.server.flags import usage
from mvccstore.server.member import Identity
from mvccstore.server.process import EXIT_USAGE, main

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def run(arguments: list[str] | None = None) -> int:
    """Do what `etcd` does with these arguments, by default those of the process; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    for argument in given:
        if argument.lstrip("-") in {"h", "help"} and argument.startswith("-"):
            sys.stdout.write(usage())
            return 0
        if argument.startswith("-") and argument.lstrip("-") == "version":
            sys.stdout.write(version())
            return 0
    return main(given)


def version() -> str:
    """Return what `etcd --version` prints: the release this behaves as, and what it runs on."""
    machine = _MACHINES.get(platform.machine(), platform.machine())
    return (
        f"etcd Version: {Identity().version}\nGit SHA: mvccstore\n"
        f"Go Version: none; Python {platform.python_version()}\nGo OS/Arch: {sys.platform}/{machine}\n"
    )


def install(folder: str) -> Path:
    """Write an executable named `etcd` into a directory, which is made if it is not there; return its path."""
    path = Path(folder) / "etcd"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m mvccstore.server.etcd_shim \"$@\"\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def _main() -> int:
    if sys.argv[1:2] == ["--install"]:
        if len(sys.argv) != 3:
            sys.stderr.write("usage: python -m mvccstore.server.etcd_shim --install DIR\n")
            return EXIT_USAGE
        sys.stdout.write(f"{install(sys.argv[2])}\n")
        return 0
    return run()


if __name__ == "__main__":
    sys.exit(_main())
