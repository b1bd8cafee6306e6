"""Every command of etcdctl that is served: against ours and a real etcd alike, and with etcdutl where files are made."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oracle.choice import distro_oracle, find_oracle
from tests.oracle.process import QUICK_ELECTION, EtcdProcess
from tests.wire.etcdctl_kit import Etcdctl, Said, Twins, running_twins
from tests.wire.pair import NEEDS_ORACLE

pytestmark = NEEDS_ORACLE
LEASE = re.compile(r"lease ([0-9a-f]+)")


@pytest.fixture(params=["newest", "3.5.1"])
def twins(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Twins]:
    """Both servers, empty, for each etcdctl in turn."""
    binary = None if request.param == "newest" else distro_oracle("as the older client").etcdctl
    with running_twins(tmp_path, binary) as twins:
        yield twins


@pytest.fixture
def newest(tmp_path: Path) -> Iterator[Twins]:
    """Both servers, empty, for the newest etcdctl alone."""
    with running_twins(tmp_path) as twins:
        yield twins


def words(text: str) -> list[str]:
    return text.split()


READS = """
get a
get a -w json
get a -w fields
get a -w table
get nothing
get nothing -w json
get --prefix k -w json
get --prefix k --keys-only
get --prefix k --print-value-only
get --prefix k --count-only -w fields
get --prefix k --limit 2 -w json
get --prefix k --limit 2 --order DESCEND
get --prefix k --sort-by VERSION --order DESCEND -w json
get --prefix k --sort-by MODIFY --order ASCEND
get --prefix k --sort-by CREATE --order DESCEND
get --prefix k --sort-by VALUE
get --prefix k --sort-by KEY --order ASCEND
get --from-key k2 -w json
get k1 k3 -w json
get a --rev 2 -w json
get a --rev 1
get a --rev 999
get a --consistency s
get a --consistency l
get a --consistency x
get a --hex
get  -w json --prefix=
"""


def test_get(twins: Twins) -> None:
    for number in range(5):
        twins.play("put", f"k{number}", f"value {9 - number}")
    for value in ("1", "2"):
        assert twins.play("put", "a", value).out == "OK\n"
    twins.play("put", "k3", "again")
    for line in READS.strip().splitlines():
        twins.play(*words(line))
    assert twins.play("get", "", "--prefix", "--count-only", "-w", "fields").out.splitlines()[-1] == '"Count" : 6'


def test_get_by_revision_bounds(newest: Twins) -> None:
    for number in range(5):
        newest.play("put", f"k{number}", "v")
    newest.play("put", "k0", "again")
    if "--min-mod-rev" not in newest.ours.out("get", "--help"):
        return  # this etcdctl has no such flags
    for flag in ("--min-mod-rev", "--max-mod-rev", "--min-create-rev", "--max-create-rev"):
        for revision in ("0", "3", "7", "100"):
            newest.play("get", "--prefix", "k", flag, revision, "-w", "json")


WRITES = """
put a 1
put a 2 --prev-kv
put a 3 --prev-kv -w json
put a --ignore-value
put new --ignore-value
put a 4 --ignore-lease
put new 4 --ignore-lease
put a 5 --lease=123456
del a
del a
put b/1 1
put b/2 2
put b/3 3
put c 4
del b/1 --prev-kv
del b/ --prefix --prev-kv -w json
put b 1
put c 2
del b c --range -w json
del b --from-key -w fields
put  x
get  --prefix= -w json
"""


def test_put_and_del(twins: Twins) -> None:
    for line in WRITES.strip().splitlines():
        twins.play(*words(line))
    assert twins.play("put", "", "x").error == "Error: etcdserver: key is not provided"
    twins.play("put", "from stdin", stdin="several\nlines\n")
    twins.play("get", "from stdin", "-w", "json")
    twins.play("put", "--", "-k", "-v")
    twins.play("put", "large", stdin="x" * 1_600_000)


TXNS = (
    'value("a") = "1"\n\nput b 2\nget a\n\nput b 3\n\n',
    'value("a") = "2"\n\nput b 2\n\nput b 3\ndel a\nget b\n\n',
    'version("b") > "0"\nmod("b") > "2"\ncreate("b") < "100"\n\nget --prefix ""\n\n\n',
    'ver("b") = "1"\nm("b") = "4"\nc("b") = "4"\nval("b") < "9"\nlease("b") = "0"\n\nput d "two words"\n\n\n',
    "\nput e 1\nput e 2\n\n\n",
    "\nput e 1\ndel --prefix e\n\n\n",
    "\n\n\n",
    'size("b") = "1"\n\n\n\n',
    "\nnope\n\n\n",
)


def test_txn(twins: Twins) -> None:
    twins.play("put", "a", "1")
    for text in TXNS:
        twins.play("txn", stdin=text)
        twins.play("txn", "-w", "json", stdin=text)
    twins.play("txn", "--interactive", stdin=TXNS[0])
    twins.play("get", "--prefix", "", "-w", "json")


def test_compaction(twins: Twins) -> None:
    for number in range(6):
        twins.play("put", "a", str(number))
    assert twins.play("compaction", "4").out == "compacted revision 4\n"
    twins.play("get", "a", "--rev", "4")
    twins.play("get", "a", "--rev", "3")
    twins.play("compaction", "4")
    twins.play("compaction", "100")
    assert twins.play("compaction", "6", "--physical").code == 0
    twins.play("get", "--prefix", "", "-w", "json")
    twins.play("watch", "a", "--rev", "2")
    twins.play("endpoint", "hashkv", "-w", "fields")


def lease_of(said: str) -> str:
    found = LEASE.search(said)
    assert found is not None, said
    return found[1]


def test_lease(twins: Twins) -> None:
    ids = [lease_of(each.out("lease", "grant", "500")) for each in twins.both]
    for each, lease in zip(twins.both, ids, strict=True):
        assert each.out("put", "a", "1", f"--lease={lease}") == "OK\n"
        each.out("put", "b", "2")

    def same(*arguments: str) -> Said:
        """Run a command on the lease of each."""
        expected, given = (
            each.run(*(word.replace("ID", lease) for word in arguments))
            for each, lease in zip(twins.both, ids, strict=True)
        )

        def neutral(said: Said, lease: str) -> str:
            shown = f"{said.code} {said.out} {said.error}".replace(lease, "ID").replace(str(int(lease, 16)), "ID")
            return re.sub(r"remaining\(\d+s\)|\"(ttl|TTL)\" ?: ?\d+|raft_term\":\d+|\"RaftTerm\" : \d+", "N", shown)

        assert neutral(given, ids[1]) == neutral(expected, ids[0])
        return given

    assert same("lease", "list").out.startswith("found 1 lease")
    assert "attached keys([a])" in same("lease", "timetolive", "ID", "--keys").out
    same("lease", "timetolive", "ID")
    same("lease", "timetolive", "ID", "--keys", "-w", "json")
    same("lease", "timetolive", "ID", "-w", "fields")
    assert "keepalived with TTL(500)" in same("lease", "keep-alive", "--once", "ID").out
    same("lease", "keep-alive", "--once", "ID", "-w", "json")
    assert same("lease", "revoke", "ID").out.endswith(" revoked\n")
    assert "requested lease not found" in same("lease", "revoke", "ID").error
    same("lease", "timetolive", "ID")
    same("lease", "keep-alive", "ID")  # ends, as it is gone
    same("lease", "list")
    same("put", "a", "1", "--lease=ID")
    twins.play("get", "--prefix", "", "-w", "json")
    twins.play("lease", "grant", "9000000001")
    twins.play("lease", "grant", "0")
    twins.play("lease", "grant", "many")


def test_a_lease_that_is_kept_alive_ends_with_its_revocation(newest: Twins) -> None:
    for each in newest.both:
        lease = lease_of(each.out("lease", "grant", "60"))
        with each.start("lease", "keep-alive", lease) as kept:
            assert kept.line() == f"lease {lease} keepalived with TTL(60)"
            each.out("lease", "revoke", lease)
            # It hears of it when it asks the next time, after a third of the TTL; not worth the wait.
            assert kept.interrupt() != 0


def test_watch(twins: Twins) -> None:
    def watch(each: Etcdctl) -> list[str]:
        lines = []
        each.out("put", "a", "1")
        each.out("put", "a", "2")
        each.out("del", "a")
        with each.start("watch", "a", "--rev=1", "--prev-kv") as past:
            lines += past.lines(3 + 5 + 5)
        with each.start("watch", "--prefix", "a", "--rev=2", "-w", "json") as past:
            lines += [re.sub(r'"RaftTerm":\d+|"raft_term":\d+', "N", past.line())]
        with each.start("watch", "a", "c", "--rev=3", "-w", "fields") as past:
            lines += [line for line in past.lines(8) if "RaftTerm" not in line]
        with each.start("watch", "b", "--rev=4") as live:  # from a revision on, as a live one says nothing at first
            each.out("put", "b", "x")
            lines += live.lines(3)
            each.out("del", "b")
            lines += live.lines(3)
            live.interrupt()
        return lines

    expected, given = (watch(each) for each in twins.both)
    assert given == expected
    assert given[:8] == ["PUT", "a", "1", "PUT", "a", "1", "a", "2"]


def test_watch_that_runs_a_command(twins: Twins) -> None:
    def watch(each: Etcdctl) -> list[str]:
        each.out("put", "a", "1")
        command = ("sh", "-c", 'echo "$ETCD_WATCH_REVISION $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"')
        with each.start("watch", "a", "--rev=1", "--", *command) as running:
            found = running.lines(4)
            each.out("put", "a", "two words")
            return found + running.lines(4)

    expected, given = (watch(each) for each in twins.both)
    assert given == expected
    assert given[3] == '2 "PUT" "a" "1"'
    assert given[7] == '3 "PUT" "a" "two words"'


def test_interactive_watch(twins: Twins) -> None:
    def watch(each: Etcdctl) -> list[str]:
        each.out("put", "a", "1")
        each.out("put", "b/1", "1")
        with each.start("watch", "-i") as running:
            running.say("watch a --rev 1")
            lines = running.lines(3)
            running.say("watch --prefix b/ --rev 1 --prev-kv")
            lines += running.lines(3)
            running.say("progress")
            lines += running.lines(2)  # one for each watch of the stream
            each.out("put", "b/1", "2")
            lines += running.lines(5)
            running.say("progress")
            lines += running.lines(2)  # one for each watch of the stream
            running.interrupt()
        return lines

    expected, given = (watch(each) for each in twins.both)
    assert given == expected
    assert given[-2:] == ["progress notify: 4", "progress notify: 4"]


def test_lock(twins: Twins) -> None:
    assert twins.play("lock", "l", "echo", "held").out == "held\n"
    assert twins.play("lock", "l", "false").code != 0
    twins.play("lock", "l", "sh", "-c", 'test -n "$ETCD_LOCK_KEY" && echo "$ETCD_LOCK_REV"')

    def contend(each: Etcdctl) -> list[str]:
        with each.start("lock", "m") as first, each.start("watch", "--prefix", "m", "--rev=1") as keys:
            held = first.line()
            assert keys.lines(3) == ["PUT", held, ""]
            with each.start("lock", "m") as second:
                assert keys.line() == "PUT"
                waiting = keys.line()
                assert waiting not in {held, ""}
                keys.line()
                first.interrupt()
                assert second.line() == waiting
                assert keys.lines(3) == ["DELETE", held, ""]
                second.interrupt()
                assert keys.lines(2) == ["DELETE", waiting]
        return [name.partition("/")[0] for name in (held, waiting)]

    assert [contend(each) for each in twins.both] == [["m", "m"], ["m", "m"]]


def test_elect(twins: Twins) -> None:
    def campaign(each: Etcdctl) -> None:
        with each.start("elect", "-l", "e") as listener, each.start("elect", "e", "first") as first:
            leader = first.lines(2)
            assert leader[0].startswith("e/")
            assert leader[1] == "first"
            assert listener.lines(2) == leader
            with each.start("elect", "e", "second") as second, each.start("watch", "--prefix", "e/", "--rev=1") as keys:
                assert keys.lines(3) == ["PUT", *leader]
                waiting = keys.lines(3)[1:]
                first.interrupt()
                assert second.lines(2) == waiting
                assert listener.lines(2) == waiting
                assert waiting[1] == "second"
                second.interrupt()

    for each in twins.both:
        campaign(each)


def test_members(twins: Twins) -> None:
    for form in ("simple", "json", "fields", "table"):
        # A table is as wide as the endpoint, which is of the same length in both.
        twins.play("member", "list", "-w", form)
    twins.play("endpoint", "health", "--cluster")
    twins.play("endpoint", "health", "-w", "json")
    twins.play("member", "promote", "1234")
    twins.play("member", "remove", "1234")
    twins.play("member", "update", "1234", "--peer-urls=http://127.0.0.1:1")
    itself = json.loads(twins.ours.out("member", "list", "-w", "json"))["members"][0]
    twins.play("member", "promote", f"{itself['ID']:x}")
    twins.play("member", "remove", f"{itself['ID']:x}")
    twins.play("member", "update", f"{itself['ID']:x}", "--peer-urls=http://127.0.0.1:1")
    twins.play("member", "add", "x", "--peer-urls=nonsense")
    twins.play("member", "add", "x", "--learner", "--peer-urls=http://127.0.0.1:1")
    twins.play("member", "add", "x", "--learner", "--peer-urls=http://127.0.0.1:2")
    twins.play("member", "add", "x", "--learner", "--peer-urls=http://127.0.0.1:3")
    # In which order depends on the learner's id, and that on the second in which it was added.
    listed = [
        sorted(line.partition(", ")[2] for line in each.out("member", "list").splitlines()) for each in twins.both
    ]
    assert [line.replace(twins.ours.endpoint, twins.theirs.endpoint) for line in listed[1]] == listed[0]
    learners = [
        next(
            member["ID"]
            for member in json.loads(each.out("member", "list", "-w", "json"))["members"]
            if "isLearner" in member
        )
        for each in twins.both
    ]
    said = [each.run("member", "promote", f"{learner:x}") for each, learner in zip(twins.both, learners, strict=True)]
    assert said[0].error == said[1].error
    for each, learner in zip(twins.both, learners, strict=True):
        assert f"Member {learner:16x} removed from cluster" in each.out("member", "remove", f"{learner:x}")
    twins.play("member", "list")


def test_endpoint_and_maintenance(twins: Twins) -> None:
    twins.play("put", "a", "1")
    twins.play("del", "a")
    for form in ("json", "fields"):
        twins.play("endpoint", "status", "-w", form)
        twins.play("endpoint", "status", "--cluster", "-w", form)
        twins.play("endpoint", "hashkv", "-w", form)
    twins.play("endpoint", "hashkv", "--cluster")
    twins.play("endpoint", "hashkv", "--rev", "2", "-w", "json")
    twins.play("endpoint", "hashkv", "--rev", "999")
    shown = [each.out("endpoint", "status", "--cluster", "-w", "simple").split(", ") for each in twins.both]
    assert shown[0][1] == shown[1][1] == f"{twins.server.server.node.member_id:x}"
    assert len(shown[0]) == len(shown[1])
    assert twins.play("defrag").out.startswith("Finished defragmenting etcd member[ENDPOINT]")
    assert twins.play("defrag", "--cluster").code == 0
    assert twins.play("alarm", "list").out == ""
    assert twins.play("alarm", "disarm").out == ""
    itself = json.loads(twins.ours.out("member", "list", "-w", "json"))["members"][0]["ID"]
    twins.play("move-leader", f"{itself:x}")
    twins.play("move-leader", "1234")
    twins.play("version")
    twins.play("auth", "status", "--nope")


def test_downgrade(newest: Twins) -> None:
    if newest.etcd.oracle.version < (3, 6):
        return  # its etcdctl has no such command
    assert "3.6" in newest.play("downgrade", "validate", "3.5").out
    for command in ("validate 3.4", "validate 3.6.0", "validate x", "enable 3.4", "cancel"):
        newest.play("downgrade", *command.split())


def fill(ctl: Etcdctl) -> None:
    for number in range(20):
        ctl.out("put", f"k/{number}", f"value {number}")
    ctl.out("del", "k/3")
    ctl.out("put", "k/4", "again")
    ctl.out("compaction", "8")


def test_a_snapshot_becomes_a_real_etcd(tmp_path: Path) -> None:
    etcdutl = find_oracle().etcdutl
    assert etcdutl is not None
    with running_twins(tmp_path) as twins:
        file = tmp_path / "snapshot.db"
        fill(twins.ours)
        lease = lease_of(twins.ours.out("lease", "grant", "500"))
        twins.ours.out("put", "leased", "1", f"--lease={lease}")
        twins.ours.out("snapshot", "save", file)
        status = json.loads(subprocess.check_output([etcdutl, "snapshot", "status", file, "-w", "json"]))
        store = twins.server.store
        assert status["revision"] == store.revision
        reads = ("get", "", "--prefix", "-w", "json"), ("get", "", "--prefix", "--rev=9", "-w", "json")
        expected = [twins.ours.out(*read) for read in reads]
        hashes = json.loads(twins.ours.out("endpoint", "hashkv", "-w", "json"))[0]["HashKV"]["hash"]

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
            ctl = Etcdctl(twins.ours.binary, restored.target)
            for read, said in zip(reads, expected, strict=True):
                assert json.loads(ctl.out(*read))["kvs"] == json.loads(said)["kvs"]
            assert json.loads(ctl.out("endpoint", "hashkv", "-w", "json"))[0]["HashKV"]["hash"] == hashes
            assert "attached keys([leased])" in ctl.out("lease", "timetolive", lease, "--keys")
            assert "compacted" in ctl.run("get", "k/0", "--rev=7").error
            answer = json.loads(ctl.out("put", "k/3", "back", "-w", "json"))
            assert answer["header"]["revision"] == store.revision + 1
        finally:
            restored.kill()


@pytest.mark.parametrize("source", ["ours", "theirs"])
def test_make_mirror(newest: Twins, source: str) -> None:
    origin, copy = newest.both if source == "theirs" else newest.both[::-1]
    fill(origin)
    origin.out("put", "other", "1")
    with (
        origin.start("make-mirror", "--prefix=k/", copy.endpoint),
        copy.start("watch", "--prefix", "", "--rev=1") as arrived,
    ):
        seen = {arrived.lines(3)[1] for _ in range(19)}
        assert seen == {f"k/{number}" for number in range(20) if number != 3}
        origin.out("put", "k/3", "back")
        assert arrived.lines(3) == ["PUT", "k/3", "back"]
        origin.out("del", "k/4")
        assert arrived.lines(2) == ["DELETE", "k/4"]
        arrived.line()
        origin.out("txn", stdin="\nput k/5 five\nput k/6 six\nput other 2\n\n\n")
        assert sorted(arrived.lines(3)[1:] for _ in range(2)) == [["k/5", "five"], ["k/6", "six"]]
    read = ("get", "k/", "--prefix", "--print-value-only")
    assert copy.out(*read) == origin.out(*read)
    assert copy.out("get", "other") == ""


@pytest.mark.soak
def test_check_perf(tmp_path: Path) -> None:
    with running_twins(tmp_path) as twins:
        command = [twins.ours.binary, f"--endpoints={twins.ours.endpoint}", "check", "perf", "--load=s"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        verdicts = re.findall(r"(PASS|FAIL)(?:: [^\n\r]*)?", said.stdout)
        assert verdicts == ["PASS"] * 4, said.stdout[-1_000:]
        assert twins.ours.out("get", "", "--prefix", "--count-only", "-w", "fields").endswith('"Count" : 0\n')
