"""The program beside this, of etcd's own Go client, built once and kept as the oracle is.

python -m tests.testing.go_client.build    # builds if need be, prints where
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.oracle.build import BUILD_SECONDS_MAX, BuildError, _go_environment, cache_folder, find_go

SOURCE = Path(__file__).parent
FILES = ("go.mod", "go.sum", "main.go")


def built_path() -> Path:
    """Return where the program is once it is built."""
    content = hashlib.sha256(f"{sys.platform} {platform.machine()}".encode())
    for name in FILES:
        content.update((SOURCE / name).read_bytes())
    return cache_folder() / f"go-client-{content.hexdigest()[:12]}"


def build() -> Path:
    """Return the program, which is built first if nobody did. Any number of processes may ask at once.

    Raises:
        BuildError: Go is missing, or does not manage.

    Cost: two seconds if what the oracle is made of was compiled before, a minute if not.
    """
    target = built_path()
    if target.is_file():
        return target
    go = find_go()
    if go is None:
        msg = "Go is not installed"
        raise BuildError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "go-client-lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_file():
            _build(go, target)
    return target


def _build(go: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="building-go-client-", dir=target.parent) as folder:
        made = Path(folder) / "client"
        command = [str(go), "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(made), "."]
        try:
            done = subprocess.run(
                command,
                cwd=SOURCE,
                env=_go_environment(os.environ, Path(folder)),
                capture_output=True,
                text=True,
                timeout=BUILD_SECONDS_MAX,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            msg = f"building the Go client failed: {error}"
            raise BuildError(msg) from error
        if done.returncode:
            msg = f"building the Go client with {go} failed; the modules come from GOPROXY:\n{done.stderr[-2_000:]}"
            raise BuildError(msg)
        made.replace(target)


if __name__ == "__main__":
    print(build())
