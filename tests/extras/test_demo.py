"""The demo: it tells its story on any directory, verifies what it says, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import Result

import mvccstore
from mvccstore.cli import demo, story
from mvccstore.cli.app import cli
from tests.extras.cli_kit import environment, runner


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small library."""
    root = tmp_path / "library"
    for name in ("json/__init__", "json/decoder", "json/tool", "encodings/ascii", "encodings/utf_8", "os", "re/parser"):
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""{name}"""\nimport sys\n\nprint(sys.argv)\n')
    (root / "json" / "data.bin").write_bytes(bytes(range(256)))
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "os.pyc").write_bytes(b"compiled")
    (root / "site-packages" / "thing").mkdir(parents=True)
    (root / "site-packages" / "thing" / "a.py").write_bytes(b"other people's")
    (root / "large.py").write_bytes(b"#" * (story.FILE_BYTES_MAX + 1))
    return root


def run(*args: str) -> Result:
    return runner().invoke(cli, ["demo", *args])


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_the_story_is_true_and_leaves_nothing_behind(source: Path, temporary: Path, engine: str) -> None:
    result = run("--source", str(source), "--engine", engine)
    assert result.exit_code == 0, result.output
    assert "FAILED" not in result.stdout
    assert "claims verified" in result.stdout
    assert "\x1b" not in result.output
    assert result.stderr == ""
    assert list(temporary.iterdir()) == []


def test_every_step_shows_its_calls(source: Path) -> None:
    shown = run("--source", str(source)).stdout
    steps = shown.split("\n\n")[1:-1]
    assert [step.split(".")[0] for step in steps] == [str(i + 1) for i in range(len(steps))]
    for step in steps:
        assert ">>> " in step
        assert "ok: " in step or "backup" in step
    for call in ("begin", "delete", "txn", "range", "history", "snapshot", "compact", "backup", "check", "restore"):
        assert f"{call}(" in shown, call


def test_json_reports_steps_and_claims(source: Path) -> None:
    report = json.loads(run("--source", str(source), "--json").stdout)
    assert report["is_ok"] is True
    assert report["steps"][0]["facts"]["files"] == 8
    claims = [holds for step in report["steps"] for holds in step["claims"].values()]
    assert len(claims) >= 15
    assert all(claims)
    assert set(report["steps"][0]) == {"title", "seconds", "facts", "claims"}


@pytest.mark.parametrize("limit", [4, 5, 6, 8, 100])
def test_a_limit_keeps_the_story_whole(source: Path, limit: int) -> None:
    report = json.loads(run("--source", str(source), "--limit", str(limit), "--json").stdout)
    assert report["is_ok"] is True
    assert report["steps"][0]["facts"]["files"] == min(limit, 8)


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", "c", "d"],
        ["x/a.txt", "x/b.txt", "y/c", "y/d"],
        ["x/a.py", "x/b.py", "x/c.py", "x/d.py"],
        ["[red]/a.py", "[red]/\x1b[31m.py", "z\n/c.py", "z\n/d.py"],
        ["json/a.py", "a.py", "b.py", "c.py"],
        ["encodings/a.py", "encodings/b.py", "json/a", "json/b"],
    ],
)
def test_it_runs_on_any_directory(tmp_path: Path, names: list[str]) -> None:
    root = tmp_path / "any"
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if not i else b"import %d\n" % i)
    result = run("--source", str(root))
    assert result.exit_code == 0, result.output
    assert "\x1b[31m" not in result.output


def test_too_few_files_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "file.py").touch()
    result = run("--source", str(tmp_path / "one"))
    assert result.exit_code == 3
    assert "too few files" in result.stderr


def test_the_stores_stay_where_that_is_asked_for(source: Path, tmp_path: Path, temporary: Path) -> None:
    place = tmp_path / "kept"
    result = run("--source", str(source), "--dir", str(place))
    assert f"The stores are in {place}" in result.stdout
    with (
        mvccstore.open(place / "demo.mvcc", read_only=True) as store,
        mvccstore.open(place / "restored.mvcc", read_only=True) as restored,
    ):
        assert store.hash_kv() == restored.hash_kv()
        assert store.check() == []
    again = run("--source", str(source), "--dir", str(place))
    assert again.exit_code == 3
    assert "is not empty" in again.stderr
    assert run("--source", str(source), "--keep").exit_code == 0
    assert len(list(temporary.iterdir())) == 1


def test_a_claim_that_does_not_hold_makes_it_fail(
    source: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    real = mvccstore.restore

    def restore_and_spoil(backup: Path, path: Path, **options: object) -> int:
        revision = real(backup, path)
        with mvccstore.open(path) as store:
            store.put(b"json/tool.py", b"spoilt")
        return revision

    monkeypatch.setattr(mvccstore, "restore", restore_and_spoil)
    result = run("--source", str(source))
    assert result.exit_code == 1
    assert "FAILED: its hash_kv() equals that of the store" in result.stdout
    assert "FAILED: every file in it is as it was written" in result.stdout
    assert "2 of 18 claims FAILED" in result.stdout
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_cleans_up(tmp_path: Path, source: Path, stop: signal.Signals) -> None:
    place = tmp_path / "spawned"
    place.mkdir()
    # The story is told to a pipe that nobody reads, and is longer than one holds: it waits in the middle.
    for i in range(3_000):
        (source / "json" / f"{'n' * 60}{i:05d}.py").touch()
    script = (
        "from mvccstore.cli import main, story\nimport sys\nstory.LISTED = 10**6\nsys.argv[1:] = "
        f"['demo', '--source', {str(source)!r}]\nsys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(TMPDIR=str(place)),
    )
    assert process.stdout is not None
    line = b""
    while b"json/nnn" not in line:
        line = process.stdout.readline()
        assert line
    assert list(place.iterdir())
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b"mvccstore: interrupted\n"
    assert list(place.iterdir()) == []


def test_the_standard_library_is_the_default() -> None:
    root = Path(os.__file__).parent
    chosen = story.sources(root, None)
    assert len(chosen) > 500
    assert {b"os.py", b"json/__init__.py"} <= {file.name for file in chosen}
    assert not any(b"site-packages" in file.name or b"__pycache__" in file.name for file in chosen)
    result = run("--limit", "60")
    assert result.exit_code == 0, result.output
    assert f"below {demo.sysconfig.get_path('stdlib')}" in result.stdout
