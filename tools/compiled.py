"""Compiles the hot modules of the package with mypyc (`make compiled` runs the tests on the result).

What they are is Python, and the same Python: mypyc takes their annotations at their word and makes C of them. A get
then takes three quarters of the time, a put five sixths. It is for installed packages (`build_hook`) and for what
measures these; beside sources that somebody edits, it would be what is imported long after they have changed.

What a module has to keep to, so that it means the same when it is compiled:

* A class that is derived from in a module that is not says so: `@mypyc_attr(allow_interpreted_subclasses=True)`.
* An annotation is a promise that is checked: a `memoryview` is no `bytes`, a field that a call may set to None is not
  narrowed before the call and used after it.
* No slice of bytes ends before it begins, and no attribute has a name that is C's with one `_` more (`_thread`).
* Nothing of it is replaced from outside but module variables that are not `Final`. Those that are become C, too; all
  others are looked up in a dict each time: 50 times in a put.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "mvccstore"
MODULES = (
    "codec",
    "commit",
    "committer",
    "engine/journal",
    "engine/journal_txn",
    "engine/journaled",
    "engine/layer",
    "mvcc/apply",
    "mvcc/etcd_encoding",
    "mvcc/read",
    "server/alarms",
    "server/auth/gate",
    "server/client_versions",
    "server/messages/fast",
    "server/metrics/tally",
    "server/node",
    "server/services/kv",
    "server/transport/blocks",
    "server/transport/call",
    "server/transport/compression",
    "server/transport/counts",
    "server/transport/deadlines",
    "server/transport/flushes",
    "server/transport/frames",
    "server/transport/guard",
    "server/transport/head",
    "server/transport/http2",
    "server/transport/incoming",
    "server/transport/keepalive",
    "server/transport/limits",
    "server/transport/memory",
    "server/transport/outgoing",
    "server/transport/settings",
    "server/transport/status",
    "server/transport/stream",
    "server/transport/turns",
    "server/transport/unfinished",
    "server/transport/unusual",
    "server/transport/wire",
    "server/writer",
)
"""What a call of gRPC, a get and a put go through, without `.py`: each alone gains little, as calls between what is
compiled and what is not cost as before."""
_CONFIG = "[mypy]\nignore_missing_imports = True\n"
_LEFT_OUT = ("build", "dist", "node_modules", "__pycache__", "*.so", "*.egg-info", ".*")
_LINES_SHOWN = 20


class CompileError(Exception):
    """mypyc or the C compiler is missing, or has failed."""


def compile_copy(folder: Path, *, is_whole: bool = False) -> None:
    """Copy the package into a new folder, and compile there what is hot. A minute.

    Args:
        folder: Where to; it is made.
        is_whole: Whether the tests and all else is copied, too.

    Raises:
        CompileError: It could not be compiled. The copy is good without.
    """
    ignored = shutil.ignore_patterns(*_LEFT_OUT)
    if is_whole:
        shutil.copytree(ROOT, folder, ignore=ignored)
    else:
        shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=ignored)
    compile_here(folder)


def compile_here(folder: Path) -> None:
    """Compile what is hot of a package in a folder, beside its sources. See `compile_copy`."""
    config = folder / "mypyc.ini"
    config.write_text(_CONFIG, encoding="utf-8")
    files = [f"{PACKAGE}/{module}.py" for module in MODULES]
    command = [sys.executable, "-m", "mypyc", "--config-file", config.name, *files]
    environment = os.environ | {"MYPYC_OPT_LEVEL": "3", "MYPYC_DEBUG_LEVEL": "0"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    finally:
        config.unlink()
        shutil.rmtree(folder / "build", ignore_errors=True)
        shutil.rmtree(folder / ".mypy_cache", ignore_errors=True)
    if done.returncode or not all(next(_built(folder, module), None) for module in MODULES):
        said = (done.stdout + done.stderr).strip().splitlines()
        raise CompileError("\n".join(said[-_LINES_SHOWN:]))


def _built(folder: Path, module: str) -> Iterator[Path]:
    return (folder / PACKAGE / module).parent.glob(f"{Path(module).name}.*{sysconfig.get_config_var('SHLIB_SUFFIX')}")


def extensions(folder: Path) -> list[Path]:
    """Return what was made of the modules in a folder: each is imported in place of its source."""
    suffix = sysconfig.get_config_var("SHLIB_SUFFIX")
    return sorted(path.relative_to(folder) for path in folder.rglob(f"*{suffix}"))


def compiled(folder: Path = ROOT / "build" / "compiled") -> Path:
    """Return a folder with the compiled package, made if it is not that of the sources as they are.

    Raises:
        CompileError: As `compile_copy`.
    """
    mark, seen = folder / "sources", _digest()
    if not mark.exists() or mark.read_text(encoding="ascii") != seen:
        shutil.rmtree(folder, ignore_errors=True)
        compile_copy(folder)
        mark.write_text(seen, encoding="ascii")
    return folder


def _digest() -> str:
    """Return what tells sources, and what they are compiled with, from others."""
    found = hashlib.sha256(f"{sys.version} {MODULES}".encode())
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def main() -> int:
    """Compile into a new folder, for the tests."""
    grammar = argparse.ArgumentParser(prog="python -m tools.compiled", description="Compile a copy of the project.")
    grammar.add_argument("folder", type=Path, help="is made anew")
    folder = grammar.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    try:
        compile_copy(folder, is_whole=True)
    except CompileError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
