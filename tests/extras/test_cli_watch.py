"""watch: follows a file that another process writes, as lines, as JSON, and by running a command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import mvccstore
from mvccstore.cli import watching
from tests.extras.cli_kit import Command, environment


@pytest.fixture(params=["lmdb", "sqlite"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A store with some history: a, b, a again, b deleted, c and d in one revision."""
    made = tmp_path / "store.mvcc"
    with mvccstore.open(made, durability="os", engine=request.param) as store:
        store.put(b"a", b"1")
        store.put(b"b", b"2")
        store.put(b"a", b"3")
        store.delete(b"b")
        with store.begin() as txn:
            txn.put(b"c", b"\xff")
            txn.put(b"d", b"tab\t")
    return made


@pytest.fixture
def command(path: Path) -> Command:
    return Command(path)


@pytest.fixture
def follow(path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Begin to watch in a process of its own."""
    begun = []

    def start(*args: str, **extra: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "mvccstore", "-s", str(path), "watch", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(**extra),
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the commands that it runs
        process.communicate(timeout=60)


def line(process: subprocess.Popen[bytes]) -> bytes:
    """Wait for the next line."""
    assert process.stdout is not None
    return process.stdout.readline()


def interrupt(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Press Ctrl-C; return the exit code and stderr."""
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


# What it shows


def test_lines_are_those_of_history(command: Command) -> None:
    shown = command.raw("watch", "--from", "1", "--limit", "6")
    assert shown == command.raw("history", "", "--prefix")
    assert shown.splitlines()[3:] == [b"5\tdelete\tb\t", b"6\tput\tc\t\\xff", b"6\tput\td\ttab\\t"]


def test_json_is_that_of_history(command: Command) -> None:
    watched = command.json_lines("watch", "--from", "1", "--limit", "6", "--prev-kv")
    assert watched == command.json_lines("history", "", "--prefix", "--prev-kv")
    assert watched[2]["prev_kv"]["value"] == "1"
    assert watched[4]["value_b64"] == "/w=="


@pytest.mark.parametrize(
    ("args", "revisions"),
    [
        (("a",), [2, 4]),
        (("a", "c"), [2, 3, 4, 5]),
        (("c", "--from-key"), [6, 6]),
        (("b", "--prefix"), [3, 5]),
        (("--filter", "noput"), [5]),
        (("--filter", "nodelete"), [2, 3, 4, 6, 6]),
        (("63", "--hex"), [6]),
        (("enp6", "--b64"), []),
        (("--limit", "5"), [2, 3, 4, 5, 6]),
    ],
)
def test_keys_and_filters(command: Command, args: tuple[str, ...], revisions: list[int]) -> None:
    shown = command.json_lines("watch", *args, "--from", "1", "--timeout", "0")
    assert [event["revision"] for event in shown] == revisions


def test_a_timeout_without_the_changes_that_were_asked_for_is_1(command: Command) -> None:
    assert command.raw("watch", "--from", "6", "--limit", "3", "--timeout", "0.2", code=1).count(b"\n") == 2
    assert command.raw("watch", "--timeout", "0") == b""


def test_compacted_history_is_one_line_with_the_way_out(command: Command, path: Path) -> None:
    with mvccstore.open(path) as store:
        store.compact(5)
    error = command.error("watch", "--from", "2", code=3)
    assert "--from 5 watches from the oldest that is kept" in error
    assert command.raw("watch", "--from", "5", "--limit", "1") == b"5\tdelete\tb\t\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("b", "a"), "END is not after START"),
        (("",), "the key is empty"),
        (("a", "--limit", "0"), "--limit"),
        (("a", "--from", "-1"), "--from"),
        (("a", "--timeout", "-1"), "--timeout"),
        (("a", "--filter", "all"), "--filter"),
        (("x", "--hex"), "hex"),
    ],
)
def test_bad_arguments_are_2(command: Command, args: tuple[str, ...], said: str) -> None:
    assert said in command.error("watch", *args, code=2)


def test_a_store_that_is_not_there_is_3(tmp_path: Path) -> None:
    assert "no such store" in Command(tmp_path / "none").error("watch", "a", code=3)


def test_on_a_terminal_a_table(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvccstore.cli.watching.on_terminal", lambda: True)
    shown = command.run("watch", "--from", "1", "--limit", "6").splitlines()
    assert shown[0].split() == ["REVISION", "CHANGE", "KEY", "SIZE", "VALUE"]
    assert [row.split()[:3] for row in shown[1:4]] == [["2", "create", "a"], ["3", "create", "b"], ["4", "put", "a"]]
    assert len(shown) == 7


# Following


def test_it_follows_what_another_process_writes(path: Path, follow: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = follow("--prefix", "k", "--from", "1", "--json", "--limit", "52")
    with mvccstore.open(path, durability="os") as store:
        store.put(b"k0", b"first")
        assert json.loads(line(process))["key"] == "k0"
        store.put(b"other", b"")
        for i in range(50):
            store.put(b"k%d" % i, b"v" * 1000)
        store.delete(b"k0")
        found = [json.loads(line(process)) for _ in range(51)]
    assert [event["revision"] for event in found] == [*range(9, 59), 59]
    assert found[-1]["type"] == "delete"
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 0


def test_interrupted_is_130(follow: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = follow("--from", "6")
    assert line(process) == b"6\tput\tc\t\\xff\n"
    assert line(process) == b"6\tput\td\ttab\\t\n"
    assert interrupt(process) == (130, b"mvccstore: interrupted\n")


def test_it_ends_when_its_reader_does_though_nothing_changes(follow: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = follow("a", "--from", "1")
    assert process.stdout is not None
    assert process.stderr is not None
    assert line(process) == b"2\tput\ta\t1\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141


def test_history_that_is_compacted_ahead_of_it_ends_it(
    path: Path, follow: Callable[..., subprocess.Popen[bytes]]
) -> None:
    # The reader is a pipe that is full, so it is behind when the compaction comes.
    with mvccstore.open(path, durability="os") as store:
        for i in range(3_000):
            store.put(b"k%d" % i, b"v" * 100)
        process = follow("--from", "2")
        assert line(process) == b"2\tput\ta\t1\n"
        store.compact(store.revision)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert b"was compacted" in err
    assert b"--from 3006 watches from the oldest" in err
    assert err.count(b"\n") == 1


# Running a command


def test_exec_has_the_change_in_the_environment(command: Command, path: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if 'MVCCSTORE' in k}))"
    (tmp_path / "script.py").write_text(f"import sys; sys.stdout = open({str(seen)!r}, 'a')\n{script}\n")
    watched = ("watch", "--from", "4", "--limit", "3")
    environments = []
    for args in (
        (*watched, "--exec", f"{sys.executable} {tmp_path}/script.py"),
        (*watched, "--exec", sys.executable, "--", f"{tmp_path}/script.py"),
        (*watched, "--", sys.executable, f"{tmp_path}/script.py"),
    ):
        assert command.raw(*args) == b""
        environments.append([json.loads(told) for told in seen.read_text().splitlines()])
        seen.unlink()
    assert environments[0] == environments[1] == environments[2]
    assert environments[0] == [
        told | {"MVCCSTORE": str(path)}
        for told in (
            {"MVCCSTORE_TYPE": "put", "MVCCSTORE_REVISION": "4", "MVCCSTORE_KEY": "a", "MVCCSTORE_VALUE": "3"},
            {"MVCCSTORE_TYPE": "delete", "MVCCSTORE_REVISION": "5", "MVCCSTORE_KEY": "b", "MVCCSTORE_VALUE": ""},
            {"MVCCSTORE_TYPE": "put", "MVCCSTORE_REVISION": "6", "MVCCSTORE_KEY": "c", "MVCCSTORE_VALUE_B64": "/w=="},
        )
    ]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"", {"MVCCSTORE_VALUE": ""}),
        ("clé".encode(), {"MVCCSTORE_VALUE": "clé"}),
        (b"\x00", {"MVCCSTORE_VALUE_B64": "AA=="}),
        (b"\xff", {"MVCCSTORE_VALUE_B64": "/w=="}),
        (b"v" * 100_000, {"MVCCSTORE_VALUE": "v" * 100_000}),
        (b"v" * 100_001, {}),
        (b"\xff" * 80_000, {}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_variables_hold_what_an_environment_can(value: bytes, told: dict[str, str]) -> None:
    event = mvccstore.Event("put", mvccstore.KeyValue(b"k", 2, 2, 1, value))
    fixed = {"MVCCSTORE_TYPE": "put", "MVCCSTORE_REVISION": "2", "MVCCSTORE_KEY": "k"}
    assert watching.variables(event) == fixed | told


def test_exec_has_the_whole_change_on_stdin(path: Path, follow: Callable[..., subprocess.Popen[bytes]]) -> None:
    with mvccstore.open(path, durability="os") as store:
        store.put(b"large", b"v" * 300_000)
    process = follow("large", "--from", "1", "--limit", "1", "--exec", "cat", MVCCSTORE_VALUE="of another watch")
    out, _ = process.communicate(timeout=60)
    told: dict[str, Any] = json.loads(out)
    assert (told["key"], len(told["value"]), told["revision"]) == ("large", 300_000, 7)


def test_a_command_that_fails_ends_the_watch_and_says_where_to_go_on(
    follow: Callable[..., subprocess.Popen[bytes]],
) -> None:
    process = follow("--from", "1", "--exec", "echo $MVCCSTORE_REVISION; test $MVCCSTORE_REVISION -lt 4 || exit 9")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 9
    assert out == b"2\n3\n4\n"
    assert err == b"mvccstore: the command ended with 9; --from 4 repeats it\n"


def test_a_command_that_is_not_there_is_127(command: Command) -> None:
    assert "No such file" in command.error("watch", "--from", "1", "--", "no-such-command", code=127)
    assert "Permission denied" in command.error("watch", "--from", "1", "--", "/", code=126)


def test_interrupted_in_a_command_is_130(follow: Callable[..., subprocess.Popen[bytes]]) -> None:
    # It ends well when interrupted: the watch ends all the same.
    process = follow("--from", "1", "--exec", "trap 'exit 0' INT; echo ready; while :; do read x < /dev/tty; done 2>&-")
    assert line(process) == b"ready\n"
    assert interrupt(process) == (130, b"mvccstore: interrupted\n")
