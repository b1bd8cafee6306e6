"""The oracle's build and choice, with a Go that does what the test says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracle.build import PROGRAMS, BuildError, build, built_folder, cache_folder, find_go, version
from tests.oracle.choice import NoOracleError, describe_choice, named_oracle

ROOT = Path(__file__).parents[2]
MAKES_ALL = 'echo build >> "$CALLS"; for name in etcd etcdctl etcdutl; do : > "$6$name"; done'
"""The sixth argument is the folder that the programs go to."""


def fake_go(folder: Path, script: str) -> dict[str, str]:
    """An environment whose Go is this script; `CALLS` is a file that it may note its calls in."""
    binaries = folder / "bin"
    binaries.mkdir()
    go = binaries / "go"
    go.write_text(f"#!/bin/sh\nset -e\n{script}\n")
    go.chmod(0o755)
    path = os.pathsep.join((str(binaries), os.defpath))
    return {"PATH": path, "MVCCSTORE_ORACLE_CACHE": str(folder / "cache"), "CALLS": str(folder / "calls")}


def test_what_is_built_is_kept_under_its_version(tmp_path: Path) -> None:
    environment = fake_go(tmp_path, MAKES_ALL)
    killed = tmp_path / "cache" / "building-before"
    killed.mkdir(parents=True)
    folder = build(environment)
    assert not killed.exists()
    assert sorted(path.name for path in folder.iterdir()) == sorted(PROGRAMS)
    assert folder.name.startswith(f"{version()}-")
    assert build(environment) == folder
    assert (tmp_path / "calls").read_text() == "build\n"
    assert f"built in {folder}" in describe_choice(environment)


def test_many_processes_build_once(tmp_path: Path) -> None:
    environment = fake_go(tmp_path, MAKES_ALL) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.oracle.build"]
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) for _ in range(4)]
    said = {process.communicate(timeout=60)[0].decode().strip() for process in processes}
    assert said == {str(built_folder(environment))}
    assert (tmp_path / "calls").read_text() == "build\n"


def test_go_without_a_home_has_caches_that_go_when_it_ends(tmp_path: Path) -> None:
    script = f'echo "$GOCACHE:$GOPATH:$GOMODCACHE:$GOFLAGS:$GOWORK" > "$CALLS.go"; {MAKES_ALL}'
    folder = build(fake_go(tmp_path, script))
    *caches, flags, work = (tmp_path / "calls.go").read_text().strip().split(":")
    assert all(Path(cache).is_relative_to(folder.parent) and not Path(cache).exists() for cache in caches)
    assert (flags, work) == ("-mod=readonly -modcacherw", "off")
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted((folder.name, "lock"))


def test_go_with_a_home_has_its_own_caches(tmp_path: Path) -> None:
    script = f'echo "$GOCACHE:$GOPATH:$GOMODCACHE:$GOFLAGS" > "$CALLS.go"; {MAKES_ALL}'
    build(fake_go(tmp_path, script) | {"HOME": str(tmp_path), "GOFLAGS": "-mod=vendor"})
    assert (tmp_path / "calls.go").read_text().strip() == ":::-mod=readonly"


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo no network >&2; exit 1", "no network"), ("exit 3", "exit status 3"), ("exit 0", "exit status 0")],
)
def test_build_that_fails_says_why_and_leaves_nothing(tmp_path: Path, script: str, said: str) -> None:
    environment = fake_go(tmp_path, script)
    with pytest.raises(BuildError, match=rf"(?s)building etcd {version()} with .*/go failed.*ETCD_BIN.*{said}"):
        build(environment)
    assert [path.name for path in cache_folder(environment).iterdir()] == ["lock"]
    assert "to be built with Go" in describe_choice(environment)


def test_cache_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(BuildError, match="MVCCSTORE_ORACLE_CACHE"):
        build({"MVCCSTORE_ORACLE_CACHE": str(tmp_path / "cache")})


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"MVCCSTORE_ORACLE_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/mvccstore-oracle"),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/mvccstore-oracle"),
    ],
)
def test_cache_folder_is_the_named_one_or_the_users(environment: dict[str, str], folder: str) -> None:
    assert cache_folder(environment) == Path(folder)


def test_cache_folder_without_a_home_is_the_users_own() -> None:
    assert cache_folder({}).name == f"mvccstore-oracle-{os.getuid()}"


def test_go_is_found_in_path_first_and_then_in_goroot(tmp_path: Path) -> None:
    environment = fake_go(tmp_path, "exit 0")
    assert find_go(environment) == tmp_path / "bin" / "go"
    assert find_go({"PATH": "", "GOROOT": str(tmp_path)}) == tmp_path / "bin" / "go"


def test_named_oracle_is_asked_for_its_version(tmp_path: Path) -> None:
    etcd = tmp_path / "etcd"
    etcd.write_text("#!/bin/sh\necho 'etcd Version: 3.7.1-rc.0'\n")
    etcd.chmod(0o755)
    (tmp_path / "etcdctl").touch()
    oracle = named_oracle(etcd)
    assert (oracle.version, oracle.etcdctl, oracle.etcdutl) == ((3, 7, 1), tmp_path / "etcdctl", None)
    assert str(oracle) == "etcd 3.7.1, named by ETCD_BIN"
    assert describe_choice({"ETCD_BIN": str(etcd)}) == f"{etcd}, named by ETCD_BIN"


def test_named_oracle_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoOracleError, match="does not start"):
        named_oracle(tmp_path / "etcd")
    with pytest.raises(NoOracleError, match="does not say that it is an etcd"):
        named_oracle(Path("/bin/true"))
