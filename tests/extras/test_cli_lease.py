"""lease and lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mvccstore
from tests.extras.cli_kit import Command, environment, spawn


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "store.mvcc")


@pytest.fixture
def begin(command: Command) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Run the command in a process of its own, without waiting for its end."""
    begun = []

    def start(*args: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "mvccstore", "-s", str(command.path), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate(timeout=60)


def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


# lease


def test_a_lease_from_grant_to_revoke(command: Command) -> None:
    made = command.json("lease", "grant", "60")
    assert made == {"lease": made["lease"], "ttl": 60.0}
    assert command.run("lease", "grant", "2.5", "--id", "7") == "7\n"
    command.run("put", "a", "1", "--lease", "7")
    command.run("put", "b", "2", "--lease", "7")
    assert command.json_lines("lease", "list") == [
        {"lease": 7, "ttl": 2.5, "keys": 2},
        {"lease": made["lease"], "ttl": 60.0, "keys": 0},
    ]
    assert command.run("lease", "list") == f"7\t2.5\t2\n{made['lease']}\t60\t0\n"
    assert command.json("lease", "show", "7") == {"lease": 7, "ttl": 2.5, "keys": [{"key": "a"}, {"key": "b"}]}
    assert command.run("lease", "show", "7") == "a\nb\n"
    assert command.json("lease", "revoke", "7") == {"lease": 7, "deleted": 2, "revision": 4}
    assert command.run("range") == ""
    assert command.run("lease", "revoke", str(made["lease"])) == "0\n"
    assert command.run("lease", "list") == ""


def test_negative_ids_are_ids(command: Command) -> None:
    command.run("lease", "grant", "60", "--id", "-5")
    assert command.json("lease", "show", "--", "-5")["lease"] == -5


@pytest.mark.parametrize("name", ["revoke", "show", "keep-alive"])
def test_a_lease_that_is_not_there_is_1(command: Command, name: str) -> None:
    command.run("put", "a", "1")
    assert command.error("lease", name, "7", code=1) == "mvccstore: no lease 7\n"


@pytest.mark.parametrize(
    "args",
    [
        ("grant", "0"),
        ("grant", "nan"),
        ("grant", "inf"),
        ("grant", "9e18"),
        ("grant", "x"),
        ("grant",),
        ("grant", "1", "--id", str(2**63)),
        ("revoke", "x"),
        ("frobnicate",),
    ],
)
def test_bad_arguments_are_2(command: Command, args: tuple[str, ...]) -> None:
    command.error("lease", *args, code=2)


def test_what_the_store_refuses_is_3(command: Command) -> None:
    assert "no such store" in command.error("lease", "list", code=3)
    command.run("lease", "grant", "60", "--id", "7")
    assert "7" in command.error("lease", "grant", "60", "--id", "7", code=3)
    with mvccstore.open(command.path):
        assert "open for writing" in command.error("lease", "list", code=3)


@pytest.mark.parametrize("name", ["grant", "revoke", "list", "show", "keep-alive"])
def test_every_lease_command_has_help(command: Command, name: str) -> None:
    shown = command.result("lease", name, "--help").stdout
    assert shown.startswith(f"Usage: mvccstore lease {name}")
    assert "JSON: " in shown


def test_on_a_terminal_a_table(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvccstore.cli.leases.on_terminal", lambda: True)
    assert command.run("lease", "grant", "60", "--id", "7") == "lease 7, 60 seconds\n"
    command.run("put", "a", "1", "--lease", "7")
    assert [row.split() for row in command.run("lease", "list").splitlines()] == [
        ["LEASE", "TTL", "KEYS"],
        ["7", "60", "1"],
    ]
    assert command.run("lease", "show", "7") == "a\n1 key; 60 seconds\n"
    assert command.run("lease", "revoke", "7") == "1 key deleted, revision 3\n"


def test_keep_alive_keeps_one_and_lets_the_others_end(
    command: Command, begin: Callable[..., subprocess.Popen[bytes]]
) -> None:
    with mvccstore.open(command.path) as store:
        kept, other = store.grant(0.3, lease_id=1), store.grant(0.3, lease_id=2)
        with store.begin() as txn:
            txn.put(b"kept", b"", lease=kept)
            txn.put(b"other", b"", lease=other)
    process = begin("lease", "keep-alive", "1", "--json")
    assert json.loads(line(process)) == {"lease": 1, "ttl": 0.3}
    with mvccstore.open(command.path, read_only=True) as store, store.watch(b"other", start_revision=3) as watcher:
        assert next(watcher).type == "delete"
        assert store.get(b"kept") is not None
    assert json.loads(line(process)) == {"lease": 1, "ttl": 0.3}
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b"mvccstore: interrupted\n"
    assert process.returncode == 130


# lock


def test_lock_runs_a_command_and_ends_as_it_does(command: Command) -> None:
    script = "read line; echo $line $MVCCSTORE_LOCK $MVCCSTORE; exit 5"
    done = spawn("-s", str(command.path), "lock", "name", "--", "sh", "-c", script, stdin=b"typed\n")
    assert done == (5, f"typed name {command.path}\n".encode(), "")
    assert command.run("range", "--keys-only") == ""


def test_each_holder_has_a_greater_revision(command: Command) -> None:
    script = "echo $MVCCSTORE_LOCK_REVISION"
    revisions = [int(spawn("-s", str(command.path), "lock", "name", "--", "sh", "-c", script).out) for _ in range(3)]
    assert sorted(set(revisions)) == revisions


def test_who_comes_second_waits_until_the_first_is_done(
    command: Command, begin: Callable[..., subprocess.Popen[bytes]]
) -> None:
    first = begin("lock", "one", "--", "sh", "-c", "echo held; read line; echo done")
    assert line(first) == b"held\n"
    assert "in vain" in command.error("lock", "one", "--timeout", "0", "--", "true", code=3)
    assert "in vain" in command.error("lock", "other", "--timeout", "0.1", "--", "true", code=3)
    second = begin("lock", "one", "--", "echo", "second")
    assert first.stdin is not None
    assert second.poll() is None
    assert first.communicate(b"\n", timeout=60) == (b"done\n", b"")
    assert second.communicate(timeout=60) == (b"second\n", b"")
    assert (first.returncode, second.returncode) == (0, 0)


def test_what_it_runs_can_read_the_store(command: Command) -> None:
    command.run("put", "a", "1")
    done = spawn("-s", str(command.path), "lock", "name", "--", sys.executable, "-m", "mvccstore", "get", "a")
    assert done == (0, b"1", "")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command_which_is_waited_for(
    command: Command, begin: Callable[..., subprocess.Popen[bytes]], how: signal.Signals
) -> None:
    script = (
        "import os, signal, sys\n"
        "def stop(*_): os.write(1, b'stopping\\n'); sys.exit(9)\n"  # print is not re-entrant
        f"signal.signal({int(how)}, stop)\n"
        "print('held', flush=True)\nsignal.pause()"
    )
    process = begin("lock", "name", "--", sys.executable, "-c", script)
    assert line(process) == b"held\n"
    if how is signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    assert process.communicate(timeout=60) == (b"stopping\n", b"")
    assert process.returncode == 9
    assert command.run("range", "--keys-only") == ""


def test_a_holder_that_was_killed_is_not_in_the_way_for_long(
    command: Command, begin: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = begin("lock", "name", "--", "sh", "-c", "echo held; read line")
    assert line(process) == b"held\n"
    process.kill()
    process.wait(60)
    assert "held by one who is gone" in command.error("lock", "name", "--timeout", "0", "--", "true", code=3)
    assert spawn("-s", str(command.path), "lock", "name", "--", "echo", "next").out == b"next\n"


def test_a_killed_command_ends_it_as_a_shell_says(command: Command) -> None:
    assert spawn("-s", str(command.path), "lock", "name", "--", "sh", "-c", "kill -9 $$").code == 137


def test_lock_without_a_command_is_2_and_with_none_that_runs_127(command: Command) -> None:
    assert "two dashes" in command.error("lock", "name", code=2)
    assert "two dashes" in command.error("lock", "name", "--", code=2)
    assert "No such file" in command.error("lock", "name", "--", "no-such-command", code=127)
    assert command.run("range", "--keys-only") == ""
