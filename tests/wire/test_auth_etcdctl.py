"""etcdctl's `user`, `role` and `auth`, and all else as a user: against ours and a real etcd alike."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oracle.choice import distro_oracle, find_oracle
from tests.oracle.process import QUICK_ELECTION, EtcdProcess
from tests.wire.auth_calls import COST
from tests.wire.etcdctl_kit import Etcdctl, Twins, running_twins
from tests.wire.pair import NEEDS_ORACLE

pytestmark = NEEDS_ORACLE
ROOT = "--user=root:pw"
BOB = "--user=bob:b"


@pytest.fixture(params=["newest", "3.5.1"])
def twins(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Twins]:
    """Both servers, empty, for each etcdctl in turn."""
    binary = None if request.param == "newest" else distro_oracle("as the older client").etcdctl
    with running_twins(tmp_path, binary, bcrypt_cost=COST) as twins:
        yield twins


def play(twins: Twins, script: str, *more: str) -> None:
    for line in script.strip().splitlines():
        twins.play(*line.split(), *more)


USERS = """
user add bob:b
user add bob:b
user add amy --new-user-password=a
user add guest --no-password
user add guest:g --no-password
user add
user list
user get bob
user get bob -w json
user get none
user get bob --detail
user delete none
user delete amy
user delete amy
user grant-role bob r
user revoke-role bob r
user list -w json
user list -w fields
user list -w table
user grant-role bob
auth status
auth status -w json
auth status -w fields
auth enable
auth disable
"""
ROLES = """
role add r
role add r
role add s
role add
role list
role list -w json
role get r
role get none
role grant-permission r read a
role grant-permission r write k --prefix
role grant-permission r readwrite m p
role grant-permission r read z --from-key
role grant-permission r nonsense a
role grant-permission none read a
role grant-permission r read
role grant-permission r read b a
role get r
role get r -w json
role get r -w fields
role get r -w table
role revoke-permission r k --prefix
role revoke-permission r x
role revoke-permission r a
role revoke-permission none a
role get r
user grant-role bob r
user grant-role bob root
user grant-role bob none
user get bob
user get bob --detail
role delete s
role delete none
user revoke-role bob root
user revoke-role bob root
auth status
"""


def test_users_and_roles(twins: Twins) -> None:
    play(twins, USERS)
    twins.play("user", "add", "eve", "--interactive=false", stdin="secret\n")
    twins.play("user", "passwd", "eve", "--interactive=false", stdin="other\n")
    twins.play("user", "passwd", "none", "--interactive=false", stdin="other\n")
    play(twins, ROLES)


AS_ROOT = """
auth status
auth enable
user list
user get bob
role get r
get -w json --prefix a
put n 1
endpoint status -w json
endpoint health
member list
alarm list
defrag
compaction 2
user delete root
role delete root
user revoke-role root root
lease list
"""
AS_BOB = """
auth status
auth enable
auth disable
user list
user get bob
user get root
role list
role get r
role get root
user add x:y
role add x
get a -w json
get n
get a c
put b 1
put b 1 --prev-kv
put n 1
del b
del b --prev-kv
del a z
endpoint status -w json
endpoint hashkv
endpoint health
member list
member remove 1234
alarm list
alarm disarm
defrag
compaction 2
lease grant 600
lease list
move-leader 1234
"""


def test_with_authentication_on(tmp_path: Path) -> None:
    with running_twins(tmp_path, bcrypt_cost=COST) as twins:
        play_with_authentication_on(twins, tmp_path)


def play_with_authentication_on(twins: Twins, folder: Path) -> None:
    play(twins, "user add root:pw\nuser add bob:b\nrole add r\nuser grant-role bob r\nput a 1\nput n 1")
    play(twins, "role grant-permission r read a\nrole grant-permission r write b\nuser grant-role root root")
    assert twins.play("auth", "enable").out == "Authentication Enabled\n"
    play(twins, AS_ROOT, ROOT)
    play(twins, AS_BOB, BOB)
    assert "permission denied" in twins.play("snapshot", "save", str(folder / "denied.db"), BOB).error
    play(twins, "get a\nget n", "--user=bob", "--password=b")
    play(twins, "get a\nput a 1\nuser list\nauth status\nmember list\nendpoint status\nlease grant 60\ncompaction 2")
    play(twins, "get a\nput a 1\nauth status", "--user=bob:wrong")
    play(twins, "get a\nauth status", "--user=none:x")
    play(twins, "get a\nauth status", "--user=root")
    twins.play("txn", BOB, stdin='value("a") = "1"\n\nput b 2\n\nget a\n\n')
    twins.play("txn", BOB, stdin='value("n") = "1"\n\nput b 2\n\nget a\n\n')
    twins.play("txn", BOB, stdin='value("a") = "1"\n\nput b 2\n\nget n\n\n')
    twins.play("user", "passwd", "bob", "--interactive=false", ROOT, stdin="new\n")
    play(twins, "get a", BOB)
    play(twins, "get a\nwatch n", "--user=bob:new")
    assert twins.play("auth", "disable", ROOT).out == "Authentication Disabled\n"
    play(twins, "get a\nauth status\nuser list")
    play(twins, "get a\nauth status", ROOT)


def test_a_watch_of_a_user(twins: Twins) -> None:
    play(twins, "user add root:pw\nuser add bob:b\nrole add r\nuser grant-role bob r\nuser grant-role root root")
    play(twins, "role grant-permission r read a\nauth enable")
    for each in twins.both:
        with each.start("watch", "a", "--rev=1", BOB) as watch:
            each.out("put", "a", "1", ROOT)
            assert watch.lines(3) == ["PUT", "a", "1"]


def test_users_come_along_to_a_real_etcd(tmp_path: Path) -> None:
    etcdutl = find_oracle().etcdutl
    assert etcdutl is not None
    with running_twins(tmp_path, bcrypt_cost=COST) as twins:
        ctl, file = twins.ours, tmp_path / "snapshot.db"
        for line in (
            *("user add root:pw", "user add bob:b", "user add guest --no-password", "role add r", "role add root"),
            *("role grant-permission r read a c", "role grant-permission r readwrite k --prefix"),
            *("user grant-role bob r", "user grant-role root root", "put a 1", "put k1 1", "auth enable"),
        ):
            ctl.out(*line.split())
        ctl.out("snapshot", "save", file, ROOT)
        reads = ["auth status", "user list", "user get bob", "user get guest", "role list", "role get r", "get k1"]
        expected = [ctl.out(*read.split(), ROOT) for read in reads]
        (tmp_path / "restored").mkdir()
        restored = EtcdProcess(tmp_path / "restored", find_oracle(), QUICK_ELECTION)
        peer = f"http://{restored.host}:{restored.peer_port}"
        subprocess.run(
            [
                *(etcdutl, "snapshot", "restore", file, f"--data-dir={restored.folder / 'data'}", "--name=m"),
                *(f"--initial-cluster=m={peer}", f"--initial-advertise-peer-urls={peer}"),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        restored.start()
        try:
            there = Etcdctl(ctl.binary, restored.target)
            assert [there.out(*read.split(), ROOT) for read in reads] == expected
            assert there.out("get", "a", BOB) == "a\n1\n"
            assert "permission denied" in there.run("put", "a", "1", BOB).error
            assert "user name is empty" in there.run("get", "a").error
            assert there.out("put", "k2", "1", BOB) == "OK\n"
        finally:
            restored.kill()
