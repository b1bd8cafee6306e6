"""Programs of Go that tests run, built once and kept as the oracle is."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.oracle.build import BUILD_SECONDS_MAX, BuildError, _go_environment, cache_folder, find_go


def build_program(name: str, source: Path, files: Sequence[str], package: str = ".") -> Path:
    """Return a program, which is built first if nobody did. Any number of processes may ask at once.

    Args:
        name: What it is called in the cache.
        source: The folder of its module.
        files: All that it is made of, beside the modules that these name.
        package: What is built.

    Raises:
        BuildError: Go is missing, or does not manage.

    Cost: two seconds if what the oracle is made of was compiled before, a minute if not.
    """
    content = hashlib.sha256(f"{sys.platform} {platform.machine()}".encode())
    for file in files:
        content.update((source / file).read_bytes())
    target = cache_folder() / f"{name}-{content.hexdigest()[:12]}"
    if target.is_file():
        return target
    go = find_go()
    if go is None:
        msg = "Go is not installed"
        raise BuildError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{name}-lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_file():
            _build(go, name, source, package, target)
    return target


def _build(go: Path, name: str, source: Path, package: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f"building-{name}-", dir=target.parent) as folder:
        made = Path(folder) / "program"
        command = [str(go), "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(made), package]
        try:
            done = subprocess.run(
                command,
                cwd=source,
                env=_go_environment(os.environ, Path(folder)),
                capture_output=True,
                text=True,
                timeout=BUILD_SECONDS_MAX,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            msg = f"building {name} failed: {error}"
            raise BuildError(msg) from error
        if done.returncode:
            msg = f"building {name} with {go} failed; the modules come from GOPROXY:\n{done.stderr[-2_000:]}"
            raise BuildError(msg)
        made.replace(target)
