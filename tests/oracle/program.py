"""Other programs of Go that tests need, each built once and kept as the oracle is."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.oracle.build import BUILD_SECONDS_MAX, BuildError, _go_environment, cache_folder, find_go


@dataclass(frozen=True, slots=True)
class Program:
    """One of them."""

    name: str
    source: Path
    """The folder with go.mod and go.sum, and main.go if the package is its own."""
    package: str = "."

    def built_path(self) -> Path:
        """Return where the program is once it is built."""
        content = hashlib.sha256(f"{sys.platform} {platform.machine()} {self.package}".encode())
        for path in sorted([*self.source.glob("go.*"), *self.source.glob("*.go")]):
            content.update(path.read_bytes())
        return cache_folder() / f"{self.name}-{content.hexdigest()[:12]}"

    def build(self) -> Path:
        """Return the program, which is built first if nobody did. Any number of processes may ask at once.

        Raises:
            BuildError: Go is missing, or does not manage.

        Cost: some seconds if what it is made of was compiled before, a minute if not.
        """
        target = self.built_path()
        if target.is_file():
            return target
        go = find_go()
        if go is None:
            msg = "Go is not installed"
            raise BuildError(msg)
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f"{self.name}-lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():
                self._build(go, target)
        return target

    def _build(self, go: Path, target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=f"building-{self.name}-", dir=target.parent) as folder:
            made = Path(folder) / "program"
            options = ["-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(made), self.package]
            try:
                done = subprocess.run(
                    [str(go), "build", *options],
                    cwd=self.source,
                    env=_go_environment(os.environ, Path(folder)),
                    capture_output=True,
                    text=True,
                    timeout=BUILD_SECONDS_MAX,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                msg = f"building {self.name} failed: {error}"
                raise BuildError(msg) from error
            if done.returncode:
                msg = f"building {self.name} with {go} failed; the modules come from GOPROXY:\n{done.stderr[-2_000:]}"
                raise BuildError(msg)
            made.replace(target)
