"""etcd, etcdctl and etcdutl of the version in go.mod, built once and kept.

    python -m tests.oracle.build    # builds if need be, prints where

What is built goes to `MVCCSTORE_ORACLE_CACHE`, or else to `mvccstore-oracle` in the user's cache folder: one folder
per version and content of this one, made under a lock and put in place by a rename, so any number of test
processes may ask at once and a build that is cut off leaves nothing that looks like one.

Measured with nothing cached, on two cores that do nothing else: 65 s (130 s of CPU), and in Go's own caches 340 MB
of modules and 340 MB of objects; the three programs are 61 MB. With those caches filled, 2 s.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

SOURCE = Path(__file__).parent
FILES = ("go.mod", "go.sum", "main.go")
PROGRAMS = ("etcd", "etcdctl", "etcdutl")
PACKAGES = (".", "go.etcd.io/etcd/etcdctl/v3", "go.etcd.io/etcd/etcdutl/v3")
BUILD_SECONDS_MAX = 300
"""CI has ten minutes for everything: a proxy that never answers must not take them all."""
_GO_FOLDERS = ("/usr/local/go/bin", "/usr/lib/go/bin", "/opt/homebrew/bin")
_NOT_OURS = ("GOFLAGS", "GOOS", "GOARCH", "GOWORK", "GO111MODULE", "GOEXPERIMENT")


class BuildError(Exception):
    """The oracle cannot be built; the message says why and what to do."""


def version() -> str:
    """Return the version of etcd in go.mod, as `3.6.0`."""
    found = re.search(r"^\s*(?:require )?go\.etcd\.io/etcd/server/v3 v(\S+)", (SOURCE / "go.mod").read_text(), re.M)
    assert found is not None
    return found[1]


def find_go(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return Go's command: from PATH, from GOROOT, or from where its installers put it."""
    folders = [environment.get("PATH", "")]
    if "GOROOT" in environment:
        folders.append(f"{environment['GOROOT']}/bin")
    found = shutil.which("go", path=os.pathsep.join([*folders, *_GO_FOLDERS]))
    return None if found is None else Path(found)


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that keeps all that was built: the caller's, the user's, or a temporary one."""
    if named := environment.get("MVCCSTORE_ORACLE_CACHE"):
        return Path(named).absolute()
    if named := environment.get("XDG_CACHE_HOME"):
        return Path(named) / "mvccstore-oracle"
    if home := environment.get("HOME"):
        return Path(home) / ".cache" / "mvccstore-oracle"
    return Path(tempfile.gettempdir()) / f"mvccstore-oracle-{os.getuid()}"


def built_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the programs are once they are built."""
    content = hashlib.sha256(f"{sys.platform} {platform.machine()}".encode())
    for name in FILES:
        content.update((SOURCE / name).read_bytes())
    return cache_folder(environment) / f"{version()}-{content.hexdigest()[:12]}"


def build(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the programs, which are built first if nobody did.

    Raises:
        BuildError: Go is missing, or does not manage.
    """
    target = built_folder(environment)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = (target.parent / "lock").open("wb")
    except OSError as error:
        msg = f"no folder to build etcd in ({error}): name one with MVCCSTORE_ORACLE_CACHE"
        raise BuildError(msg) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            _build(target, environment)
    return target


def _build(target: Path, environment: Mapping[str, str]) -> None:
    go = find_go(environment)
    if go is None:
        msg = "Go is not installed, so etcd cannot be built: name one with ETCD_BIN"
        raise BuildError(msg)
    for left in target.parent.glob("building-*"):
        shutil.rmtree(left, ignore_errors=True)  # of a build that was killed: the lock says that none runs
    with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as temporary:
        folder = Path(temporary)
        programs = folder / "programs"
        programs.mkdir()
        command = [str(go), "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", f"{programs}/", *PACKAGES]
        try:
            done = subprocess.run(
                command,
                cwd=SOURCE,
                env=_go_environment(environment, folder),
                capture_output=True,
                text=True,
                timeout=BUILD_SECONDS_MAX,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            msg = f"building etcd {version()} failed: {error}"
            raise BuildError(msg) from error
        made = sorted(path.name for path in programs.iterdir())
        if done.returncode or made != sorted(PROGRAMS):
            why = done.stderr.strip()[-2_000:] or f"exit status {done.returncode}, and {made}"
            msg = (
                f"building etcd {version()} with {go} failed; the modules come from GOPROXY, another etcd can be "
                f"named with ETCD_BIN. What Go said:\n{why}"
            )
            raise BuildError(msg)
        programs.replace(target)


def _go_environment(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Go's environment: the user's caches, or without a home ones that go when the build ends."""
    ours = {name: value for name, value in environment.items() if name not in _NOT_OURS}
    ours |= {"GOFLAGS": "-mod=readonly", "GOWORK": "off", "CGO_ENABLED": "0", "PATH": ours.get("PATH", os.defpath)}
    if not ours.get("HOME"):
        if not ours.get("GOPATH"):
            ours.setdefault("GOMODCACHE", str(folder / "modules"))
            ours["GOPATH"] = str(folder / "path")
        if not ours.get("XDG_CACHE_HOME"):
            ours.setdefault("GOCACHE", str(folder / "objects"))
        # Read-only folders, Go's habit, would outlive the temporary folder.
        ours["GOFLAGS"] += " -modcacherw"
    return ours


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        try:
            print(build())
        except BuildError as error:
            sys.exit(str(error))
