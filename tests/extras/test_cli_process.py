"""The command in a process of its own: pipes, terminals, signals, locks, and what it imports."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mvccstore
from tests.extras.cli_kit import environment, spawn


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A store of 5,000 keys."""
    made = tmp_path / "store.mvcc"
    with mvccstore.open(made, durability="os") as store, store.begin() as txn:
        for i in range(5_000):
            txn.put(b"key/%05d" % i, b"value %d" % i)
    return str(made)


def test_the_whole_way_through_pipes(tmp_path: Path) -> None:
    store = str(tmp_path / "new.mvcc")
    assert spawn("-s", store, "put", "a", "-", stdin=b"\x00\xff") == (0, b"2\n", "")
    assert spawn("get", "a", MVCCSTORE=store) == (0, b"\x00\xff", "")
    assert spawn("get", "b", MVCCSTORE=store) == (1, b"", "mvccstore: no key b\n")
    exported = spawn("-s", store, "export")
    assert json.loads(exported.out)["value_b64"] == "AP8="
    assert spawn("-s", str(tmp_path / "other.mvcc"), "import", "-", stdin=exported.out).code == 0


@pytest.mark.parametrize(
    ("args", "code"), [(("check", "/etc/hostname/none"), 3), (("get",), 2), (("--version",), 0), (("frobnicate",), 2)]
)
def test_exit_codes(args: tuple[str, ...], code: int) -> None:
    done = spawn(*args)
    assert done.code == code
    assert "Traceback" not in done.err


def test_keys_that_are_no_utf8_pass_through_the_command_line(tmp_path: Path) -> None:
    store = str(tmp_path / "new.mvcc")
    subprocess.run(
        [sys.executable.encode(), b"-m", b"mvccstore", b"-s", store.encode(), b"put", b"\xff", b"\xfe"],
        env=environment(),
        check=True,
        capture_output=True,
    )
    with mvccstore.open(store, read_only=True) as opened:
        assert [(kv.key, kv.value) for kv in opened.scan(mvccstore.KeyRange.all())] == [(b"\xff", b"\xfe")]
    assert spawn("-s", store, "range").out == b"\\xff\t\\xfe\n"


def test_output_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    store = str(tmp_path / "new.mvcc")
    with mvccstore.open(store) as opened:
        opened.put("clé".encode(), "漢字".encode())
    for locale in ({"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}):
        done = spawn("-s", store, "range", **locale)
        assert done == (0, "clé\t漢字\n".encode(), ""), locale


@pytest.mark.parametrize("command", [["range"], ["range", "--json"], ["export"], ["history", "--prefix", ""]])
def test_a_reader_that_goes_away_is_no_error(path: str, command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mvccstore", "-s", path, *command],
            stdout=write,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=60,
        )
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode == 141


def test_head_in_a_shell_is_silent(path: str) -> None:
    line = f"{sys.executable} -m mvccstore -s {path} range | head -n 2"
    done = subprocess.run(["sh", "-c", line], capture_output=True, env=environment(), timeout=60)
    assert done.stdout == b"key/00000\tvalue 0\nkey/00001\tvalue 1\n"
    assert done.stderr == b""


def test_beside_a_writer_reading_works_and_writing_names_the_holder(path: str) -> None:
    with mvccstore.open(path) as store:
        store.put(b"fresh", b"1")
        assert spawn("-s", path, "get", "fresh").out == b"1"
        assert spawn("-s", path, "count").out == b"5001\n"
        assert spawn("check", path).code == 0
        done = spawn("-s", path, "put", "a", "b")
    assert done.code == 3
    assert re.fullmatch(rf"mvccstore: error: .*open for writing by process {os.getpid()} on .*\n", done.err)
    assert "reading commands work beside it" in done.err


def test_a_read_only_directory_can_be_read_and_not_written(path: str) -> None:
    folder = Path(path).parent
    folder.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert spawn("-s", path, "count").out == b"5000\n"
        done = spawn("-s", path, "put", "a", "b")
    finally:
        folder.chmod(0o755)
    assert (done.code, done.err.count("\n")) == (3, 1)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    for missing in ("click", "rich"):
        (tmp_path / missing).mkdir(exist_ok=True)
        (tmp_path / missing / f"{missing}.py").write_text(f"raise ImportError('gone', name={missing!r})")
        search = f"{tmp_path / missing}{os.pathsep}{environment()['PYTHONPATH']}"
        done = spawn("--help", PYTHONPATH=search)
        assert done.code == 3
        assert done.err == f"mvccstore: error: {missing} is not installed; pip install 'mvccstore[cli]'\n"


def test_serve_needs_the_extra_of_the_server_alone(tmp_path: Path) -> None:
    for missing in ("click", "rich", "h11"):
        (tmp_path / f"{missing}.py").write_text(f"raise ImportError('gone', name={missing!r})")
    search = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    done = spawn("serve", "--help", PYTHONPATH=search)
    assert (done.code, done.err) == (3, "mvccstore: error: h11 is not installed; pip install 'mvccstore[server]'\n")
    (tmp_path / "h11.py").unlink()
    done = spawn("serve", "--help", PYTHONPATH=search)
    assert (done.code, done.err) == (0, "")
    assert b"--data-dir" in done.out
    done = spawn("serve", "--no-such-flag", PYTHONPATH=search)
    assert done.code == 2
    assert "no-such-flag" in done.err


def test_importing_the_library_imports_neither_click_nor_rich() -> None:
    code = "import sys, mvccstore; print([m for m in ('click', 'rich', 'mvccstore.cli') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(), check=True)
    assert done.stdout == b"[]\n"


def test_a_command_in_a_pipe_does_without_rich(path: str) -> None:
    code = (
        "import sys\nfrom mvccstore.cli import main\n"
        f"sys.argv[1:] = ['-s', {path!r}, 'count']\nassert main() == 0\n"
        "print('rich.console' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(), check=True)
    assert done.stdout == b"5000\nFalse\n"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    for end in (ours, theirs):
        try:
            os.close(end)
        except OSError:
            continue


def _on_terminal(ends: tuple[int, int], *args: str, **extra: str) -> str:
    """Run with stdout and stderr on a terminal; return what it showed."""
    ours, theirs = ends
    process = subprocess.Popen(
        [sys.executable, "-m", "mvccstore", *args],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment(TERM="xterm", COLUMNS="80", **extra),
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait(60) == 0, shown
    return shown.decode()


def test_on_a_terminal_a_table_and_no_escape_from_a_key(tmp_path: Path, terminal: tuple[int, int]) -> None:
    store = str(tmp_path / "new.mvcc")
    with mvccstore.open(store) as opened:
        opened.put(b"[red]evil\x1b]0;title\x07[/red]", b"\x1b[2J")
    shown = _on_terminal(terminal, "-s", store, "range")
    assert "[red]evil\\x1b]0;title\\x07[/red]" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b]0;" not in shown
    assert "VERSION" in shown


def test_no_colour_when_that_is_asked_for(path: str, terminal: tuple[int, int]) -> None:
    shown = _on_terminal(terminal, "-s", path, "range", "--limit", "3", NO_COLOR="1")
    assert "\x1b[3" not in shown


def test_progress_is_for_terminals_only(path: str, tmp_path: Path) -> None:
    for args in (
        ["check", path],
        ["backup", path, str(tmp_path / "b")],
        ["restore", str(tmp_path / "b"), str(tmp_path / "r")],
    ):
        assert spawn(*args).err == ""


def test_interrupted_is_130_and_leaves_the_store_sound(tmp_path: Path) -> None:
    store = str(tmp_path / "new.mvcc")
    process = subprocess.Popen(
        [sys.executable, "-m", "mvccstore", "-s", store, "import", "-", "--batch", "1", "--durability", "os"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    # More than the pipe and the reader's buffer hold, so that when this returns, the import has begun.
    process.stdin.write(b'{"key": "k", "value": "v"}\n{"key": "l", "value": "w"}\n' * 10_000)
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    err = process.stderr.read()
    process.stdin.close()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 130
    assert err == b"mvccstore: interrupted\n"
    assert spawn("check", store).code == 0
    assert spawn("-s", store, "put", "after", "1").code == 0
