"""etcdctl as a client under test: run to its end, or kept running and read line by line; every wait has an end."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import mvccstore
from mvccstore.server import AuthOptions, Identity, RequestLimits, ServerOptions, serve
from tests.oracle.choice import find_oracle
from tests.oracle.process import QUICK_ELECTION, EtcdProcess, running_etcd

SECONDS = 20.0
_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "ETCDCTL_"))}


@dataclass(frozen=True, slots=True)
class Said:
    """What a command left."""

    code: int
    out: str
    error: str
    """The line that says what was wrong, if any."""


class Running:
    """A command that goes on, such as a watch."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            env=_ENVIRONMENT,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self) -> str:
        """Return the next line of its output."""
        line = self._lines.get(timeout=SECONDS)
        assert line is not None, "it has ended"
        return line

    def lines(self, number: int) -> list[str]:
        """Return the next lines of its output."""
        return [self.line() for _ in range(number)]

    def say(self, text: str) -> None:
        """Write a line to its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")

    def interrupt(self) -> int:
        """End it as Ctrl-C does, and return its exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Etcdctl:
    """An etcdctl and the endpoint that it talks to."""

    def __init__(self, binary: Path, endpoint: str) -> None:
        self.binary, self.endpoint = binary, endpoint

    def run(self, *arguments: str | Path, stdin: str = "") -> Said:
        """Run a command to its end."""
        ended = subprocess.run(
            self._command(arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env=_ENVIRONMENT,
        )
        errors = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
        return Said(ended.returncode, ended.stdout, errors[-1] if errors else "")

    def out(self, *arguments: str | Path, stdin: str = "") -> str:
        """Run a command that has to succeed, and return what it printed."""
        said = self.run(*arguments, stdin=stdin)
        assert said.code == 0, said
        return said.out

    def start(self, *arguments: str | Path) -> Running:
        """Start a command; for `with`."""
        return Running(self._command(arguments))

    def _command(self, arguments: Sequence[str | Path]) -> list[str | Path]:
        return [self.binary, f"--endpoints={self.endpoint}", *arguments]


@dataclass(frozen=True, slots=True)
class Twins:
    """The same etcdctl at a real etcd and at a server of ours, which are empty, and members of the same id."""

    etcd: EtcdProcess
    server: Any
    theirs: Etcdctl
    ours: Etcdctl

    @property
    def both(self) -> tuple[Etcdctl, Etcdctl]:
        """The real one first."""
        return self.theirs, self.ours

    def play(self, *arguments: str, stdin: str = "") -> Said:
        """Run a command at both, and return what both said."""
        expected, given = (plain(each.run(*arguments, stdin=stdin), each.endpoint) for each in self.both)
        assert given == expected, f"{' '.join(arguments)}: expected {expected}, given {given}"
        return given


@contextmanager
def running_twins(folder: Path, binary: Path | None = None, *, bcrypt_cost: int = 10) -> Iterator[Twins]:
    """Start a real etcd and a server of ours; `binary` is the etcdctl, by default the one beside that etcd."""
    oracle = find_oracle()
    binary = binary or oracle.etcdctl
    assert binary is not None, f"there is no etcdctl beside {oracle.etcd}"
    arguments = (*QUICK_ELECTION, f"--bcrypt-cost={bcrypt_cost}")
    with running_etcd(folder / "etcd", arguments) as etcd, mvccstore.open(folder / "ours.mvcc") as store:
        options = ServerOptions(
            identity=Identity("m", (f"http://{etcd.host}:{etcd.peer_port}",)),
            requests=RequestLimits(election_timeout_ms=200),
            auth=AuthOptions(bcrypt_cost=bcrypt_cost),
        )
        with serve(store, options=options) as server:
            yield Twins(etcd, server, Etcdctl(binary, etcd.target), Etcdctl(binary, server.endpoint))
        assert store.check() == []


# What is not the same in two servers, or two runs of one.
_VARYING = (
    (r"took ?= ?[0-9.µa-z]+", "took = TIME"),
    (r"took [0-9.µa-z]+", "took TIME"),
    (r"remaining\([0-9]+s\)", "remaining(N)"),
    (r'"(dbSize|dbSizeInUse|raftIndex|raftAppliedIndex|raft_term|raftTerm|dbSizeQuota)":[0-9]+', r'"\1":N'),
    (r'"(RaftTerm|RaftIndex|DBSize\w*|RaftAppliedIndex)" : [0-9]+', r'"\1" : N'),
    (r'"version":"3\.[0-9]+\.[0-9]+"', '"version":"V"'),
    (r'"Version" : "3\.[0-9]+\.[0-9]+"', '"Version" : "V"'),
    (r',"(storageVersion|hash_revision|dbSizeQuota|downgradeInfo)":("[^"]*"|[0-9N]+|\{\})', ""),
    (r'"StorageVersion" : .*\n', ""),
    (r'"took":"[^"]*"', '"took":"TIME"'),
    (r'"(remaining-)?ttl":[0-9]+', '"ttl":N'),
)
# By their ids, of which a new member's depends on the second in which it was added.
_MEMBERS = re.compile(r'(?<=ETCD_INITIAL_CLUSTER=")[^"]+')
# etcdctl pads an id that is short.
_ID = re.compile(r" ?\b(?:[0-9a-f]{12,16}|[0-9]{17,20})\b")


def plain(said: Said, endpoint: str) -> Said:
    """Return what was said without what varies: ids are numbered as they come."""
    seen: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return seen.setdefault(match[0].strip(), f" ID{len(seen)}")

    def cleaned(text: str) -> str:
        text = text.replace(endpoint, "ENDPOINT")
        for pattern, replacement in _VARYING:
            text = re.sub(pattern, replacement, text)
        return re.sub(r" +", " ", _ID.sub(number, text))

    return Said(said.code, cleaned(_MEMBERS.sub(_in_order, said.out)), cleaned(said.error))


def _in_order(match: re.Match[str]) -> str:
    return ",".join(sorted(match[0].split(",")))
