"""Every code block of the README runs, in order, and gives what its comments say."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
PYTHON = [source for language, source in BLOCKS if language == "python"]
SHELL = [source for language, source in BLOCKS if language == "sh"]


def _expected(source: str, node: ast.stmt) -> str | None:
    """Return the value that a trailing comment promises for an expression, if it promises one."""
    line = source.splitlines()[(node.end_lineno or 0) - 1]
    comment = line.partition("  # ")[2].strip()
    try:
        ast.literal_eval(comment.partition(", the number")[0])
    except (SyntaxError, ValueError):
        return None
    return comment.partition(", the number")[0]


def _run(source: str, namespace: dict[str, object]) -> int:
    """Run a block statement by statement; hold expressions against their comments. Return how many were."""
    checked = 0
    for node in ast.parse(source).body:
        code = ast.get_source_segment(source, node) or ""
        expected = _expected(source, node) if isinstance(node, ast.Expr) else None
        if expected is None:
            exec(compile(ast.Module([node], []), "README.md", "exec"), namespace)
        else:
            assert eval(code, namespace) == ast.literal_eval(expected), code
            checked += 1
    return checked


def test_python_blocks_run_and_keep_what_their_comments_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    checked = sum(_run(source, namespace) for source in PYTHON)
    assert checked >= 6
    assert capsys.readouterr().out.splitlines() == ["b'taken'", "b'queued'", "[b'jobs/1', b'jobs/2']"]


def test_shell_blocks_of_the_command_line_run(tmp_path: Path) -> None:
    commands = [line for source in SHELL for line in source.splitlines() if line.startswith("mvccstore ")]
    assert len(commands) >= 4
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in commands:
        words = [sys.executable, "-m", *command.split()]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if " get " in command:
            assert done.stdout.strip() == "hello"


def test_shell_blocks_of_the_development_name_real_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for source in SHELL for line in source.splitlines() if line.startswith("make ")]
    assert targets == ["run", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
