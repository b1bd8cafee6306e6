"""Commands of etcdctl and etcdutl, with every flag of each, played at a real etcd and at ours: docs/etcdctl.md.

What is not played is in `REASONS`. `tools/etcdctl_page.py` writes the page from both.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.oracle.choice import find_oracle
from tests.wire.auth_calls import COST
from tests.wire.etcdctl_kit import Etcdctl, Said, Twins, plain, running_twins

ROOT = "--user=root:pw"
SHORT = {"-w": "--write-out", "-i": "--interactive", "-l": "--listen", "-d": "--discovery-srv"}
_GRANTED = re.compile(r"lease ([0-9a-f]+) granted")
_ADDED = re.compile(r"Member +([0-9a-f]+) added")


@dataclass(frozen=True, slots=True)
class Line:
    """A command, and how much of it is compared."""

    text: str
    """As a shell would have it. `{lease}`, `{member}`, `{learner}`, `{endpoint}` and `{folder}` are of the side."""
    stdin: str = ""
    lines: int | None = None
    """How many lines of one that goes on; None for one that ends."""
    beside: str = ""
    """A command that goes on meanwhile, of which two lines have come before."""
    is_quiet: bool = False
    """Only how it ended is compared: it prints what no two runs have alike."""


def _lines(text: str) -> tuple[Line, ...]:
    return tuple(Line(line.strip()) for line in text.strip().splitlines())


SCRIPT: tuple[Line, ...] = (
    *_lines("""
        put a 1
        put a 2 --prev-kv
        put a --ignore-value
        put a 3 --ignore-lease --hex -w json
        endpoint hashkv -w json
        endpoint hashkv --rev=3 -w json
    """),
    # Before there is a key with a lease: etcdutl's hashkv dies of one.
    Line("snapshot save {folder}/snapshot.db", is_quiet=True),
    *_lines("""
        lease grant 500
        put leased 1 --lease={lease}
        lease timetolive {lease} --keys
        lease list
        lease keep-alive {lease} --once
        get a --consistency=s
        get "" --prefix --keys-only
        get a --from-key --limit=2 --print-value-only
        get a --rev=2 -w fields
        get a --rev=99
        get "" --prefix --count-only -w fields
        get "" --prefix --sort-by=MODIFY --order=DESCEND -w json
        get "" --prefix --min-mod-rev=3 --max-mod-rev=5 -w json
        get "" --prefix --min-create-rev=2 --max-create-rev=3 -w table
        get a --max-recv-bytes=1000000 --max-request-bytes=1000000
        get a --keepalive-time=3s --keepalive-timeout=4s --dial-timeout=1s --command-timeout=3s
        get a --insecure-transport --insecure-discovery=false --debug=false
        get a --endpoints={endpoint}
    """),
    Line("lease keep-alive {lease}", lines=1),
    *_lines("""
        lease revoke {lease}
        put b/1 1
        put b/2 2
        put b/3 3
        del b/1 --prev-kv
        del b/2 --prefix
        del b/3 b/4 --range
        put z 1
        del y --from-key
    """),
    Line("txn", 'value("a") = "3"\n\nput t 1\nget a\n\nput t 2\n\n'),
    Line("txn --interactive", 'value("a") = "x"\n\nput t 1\n\nget t\n\n'),
    Line("watch a --rev=1 --prev-kv --progress-notify", lines=13),
    Line("watch b/ --prefix --rev=5", lines=3),
    Line("watch -i", "watch a --rev=1\n", lines=3),
    Line("watch a --rev=1 -- echo seen", lines=4),
    Line("lock l --ttl=20 echo held"),
    Line("elect e proposal", lines=2),
    Line("elect e --listen", lines=2, beside="elect e proposal"),
    *_lines("""
        compaction 4
        compaction 6 --physical
        get a --rev=3
        endpoint health
        endpoint health --cluster
        endpoint status -w json
        defrag
        defrag --cluster
        alarm list
        alarm disarm
        member list
        member list --consistency=s -w json
        member update {member} --peer-urls={peer}
        move-leader {member}
        member add x --learner --peer-urls=http://127.0.0.1:1
        member promote {learner}
        member remove {learner}
        downgrade validate 3.5
        downgrade enable 3.4
        downgrade cancel
        version
    """),
)

USERS: tuple[Line, ...] = (
    *_lines("""
        user add root:pw
        user add bob --new-user-password=b
        user add guest --no-password
    """),
    Line("user add amy --interactive=false", "a\n"),
    Line("user passwd amy --interactive=false", "b\n"),
    *_lines("""
        role add r
        role list
        role grant-permission r readwrite k --prefix
        role grant-permission r read x --from-key
        role grant-permission r read m
        role get r
        user grant-role root root
        user grant-role bob r
        user get bob --detail
        user list
        auth status
        auth enable
    """),
    *(
        Line(f"{text} {ROOT}")
        for text in (
            *("auth status", "user list", "user get bob", "role get r", "role revoke-permission r m"),
            *("role revoke-permission r k --prefix", "role revoke-permission r x --from-key", "user revoke-role bob r"),
            *("user delete bob", "role delete r"),
        )
    ),
    *_lines("""
        put k 1 --user=root --password=pw
        put k 1 --user=amy:b
        get k --user=amy:wrong
    """),
    Line(f"auth disable {ROOT}"),
)

RESTORES = (
    "--name=m --initial-cluster=m=http://127.0.0.1:1 --initial-advertise-peer-urls=http://127.0.0.1:1",
    "--initial-cluster-token=t --skip-hash-check --wal-dir={folder}/wal",
    "--bump-revision=1000 --mark-compacted --initial-memory-map-size=10485760",
)
UTILITIES: tuple[str, ...] = (
    "snapshot status {folder}/snapshot.db -w json",
    "hashkv {folder}/snapshot.db -w json",
    "hashkv {folder}/snapshot.db --rev=3 -w json",
    *(
        f"snapshot restore {{folder}}/snapshot.db --data-dir={{folder}}/d{at} {flags}"
        for at, flags in enumerate(RESTORES)
    ),
    "version",
)
"""Commands of etcdutl, on the snapshots that both gave."""

ALONE = "asks no server"
DNS = "asks DNS for the servers"
TLS = "with TLS: `tests/wire/test_tls_process.py` plays it at both"
A_MINUTE = "takes a minute and prints measurements; `make soak` has `check perf --load=s` pass here"
DIRECTORY = "works on the data directory of a stopped etcd, and ours is none"
MEMORY = "writes for a while and prints how much memory the server's process takes"
MIRROR = "ends only with Ctrl-C and says little; `tests/wire/test_etcdctl.py` mirrors either way between both"

REASONS: Mapping[str, str] = {
    "etcdctl completion": ALONE,
    "etcdctl help": ALONE,
    "etcdctl --help": ALONE,
    "etcdctl --discovery-srv": DNS,
    "etcdctl --discovery-srv-name": DNS,
    **dict.fromkeys((f"etcdctl --{name}" for name in ("cacert", "cert", "key", "insecure-skip-tls-verify")), TLS),
    "etcdctl check perf": A_MINUTE,
    "etcdctl check datascale": MEMORY,
    "etcdctl make-mirror": MIRROR,
    "etcdutl completion": ALONE,
    "etcdutl help": ALONE,
    "etcdutl --help": ALONE,
    "etcdutl defrag": f"{DIRECTORY}; `etcdctl defrag` does it here",
    "etcdutl migrate": DIRECTORY,
}
"""By command, or by flag, and why it is not played."""


# Playing


class _Side:
    """One etcdctl, and what its server chose."""

    def __init__(self, etcdctl: Etcdctl, names: dict[str, str]) -> None:
        self.etcdctl, self.names = etcdctl, names

    def words(self, text: str) -> list[str]:
        for name, value in self.names.items():
            text = text.replace(f"{{{name}}}", value)
        return shlex.split(text)

    def run(self, line: Line) -> Said:
        if line.beside:
            with self.etcdctl.start(*self.words(line.beside)) as beside:
                beside.lines(2)
                return self._run(line)
        return self._run(line)

    def _run(self, line: Line) -> Said:
        words = self.words(line.text)
        if line.lines is None:
            said = self.etcdctl.run(*words, stdin=line.stdin)
            self._learn(said.out)
        else:
            with self.etcdctl.start(*words) as running:
                if line.stdin:
                    running.say(line.stdin)
                said = Said(0, "\n".join(running.lines(line.lines)), "")
                running.interrupt()
        said = plain(said, self.etcdctl.endpoint)
        return Said(said.code, "", "") if line.is_quiet else said

    def _learn(self, out: str) -> None:
        for name, pattern in (("lease", _GRANTED), ("learner", _ADDED)):
            if found := pattern.search(out):
                self.names[name] = found[1]


def play(folder: Path) -> set[str]:
    """Play all commands at the newest etcd that is here and at ours; return the commands and flags that were alike.

    Raises:
        AssertionError: One was answered differently.
    """
    found: set[str] = set()
    with running_twins(folder, bcrypt_cost=COST) as twins, ThreadPoolExecutor(2) as pool:
        sides = [_Side(each, _names_of(folder, number, twins)) for number, each in enumerate(twins.both)]
        for line in (*SCRIPT, *USERS):
            expected, given = pool.map(partial(_Side.run, line=line), sides)
            assert given == expected, f"etcdctl {line.text}: expected {expected}, given {given}"
            found |= set(told("etcdctl", line.text))
            found |= set(told("etcdctl", line.beside))
    for text in UTILITIES:
        expected, given = (_run_utility(side, text) for side in sides)
        assert given == expected, f"etcdutl {text}: expected {expected}, given {given}"
        found |= set(told("etcdutl", text))
    return found


def _names_of(folder: Path, number: int, twins: Twins) -> dict[str, str]:
    own = folder / f"side{number}"
    own.mkdir()
    (member,) = json.loads(twins.both[number].out("member", "list", "-w", "json"))["members"]
    names = {"folder": str(own), "endpoint": twins.both[number].endpoint}
    return names | {"member": f"{member['ID']:x}", "peer": member["peerURLs"][0]}


def _run_utility(side: _Side, text: str) -> tuple[int, object]:
    """Return the exit status, and what is of the contents and not of the file."""
    binary = find_oracle().etcdutl
    assert binary is not None
    ended = subprocess.run([binary, *side.words(text)], capture_output=True, text=True, timeout=60, check=False)
    said: object = ended.stdout if text == "version" else None
    if "-w json" in text:
        data = json.loads(ended.stdout)
        # The size and the hash of a file are its own, and etcd writes what ours has no need of.
        said = {name: data[name] for name in ("revision", "totalKey", "compactRevision") if name in data}
        if text.startswith("hashkv"):
            said = data["hash"], data["compactRevision"]
    return ended.returncode, said


def told(program: str, text: str) -> Iterator[str]:
    """Give the words of a line that are of the program: the command's, each longer, and its flags."""
    words = shlex.split(text)
    words = words[: words.index("--")] if "--" in words else words
    plain_words: Sequence[str] = [word for word in words if not word.startswith("-")]
    for length in (1, 2):
        if len(plain_words) >= length:
            yield f"{program} {' '.join(plain_words[:length])}"
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0]
            for length in (0, 1, 2):
                command = "".join(f" {part}" for part in plain_words[:length])
                yield f"{program}{command} {SHORT.get(name, name)}"


def play_all() -> set[str]:
    """Play in a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        return play(Path(folder) / "etcdctl") | {"etcdctl --endpoints"}
