"""Running the `mvccstore` command in tests: in this process, or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner, Result

from mvccstore.cli.app import cli

ROOT = Path(__file__).parents[2]


class Finished(NamedTuple):
    """What a run left."""

    code: int
    out: bytes
    err: str


def runner() -> CliRunner:
    """Return a runner that keeps stderr apart, which new versions of click do without being told."""
    try:
        return CliRunner(mix_stderr=False)
    except TypeError:
        return CliRunner()


class Command:
    """The command on one store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._runner = runner()

    def result(self, *args: str, stdin: bytes | None = None, env: dict[str, str | None] | None = None) -> Result:
        """Run in this process, without naming the store."""
        return self._runner.invoke(cli, list(args), input=stdin, env=env or {"MVCCSTORE": None}, prog_name="mvccstore")

    def run(self, *args: str, stdin: bytes | None = None, code: int = 0) -> str:
        """Run on the store, expect an exit code, return stdout."""
        return self.raw(*args, stdin=stdin, code=code).decode()

    def raw(self, *args: str, stdin: bytes | None = None, code: int = 0) -> bytes:
        """Run on the store, expect an exit code, return stdout's bytes."""
        result = self.result("-s", str(self.path), *args, stdin=stdin)
        assert result.exit_code == code, (args, result.exit_code, result.output, result.exception)
        return result.stdout_bytes

    def json(self, *args: str, stdin: bytes | None = None, code: int = 0) -> Any:
        """Run with --json, return the document."""
        return json.loads(self.raw("--json", *args, stdin=stdin, code=code))

    def json_lines(self, *args: str, code: int = 0) -> list[Any]:
        """Run with --json, return the document of each line."""
        return [json.loads(line) for line in self.raw(*args, "--json", code=code).splitlines()]

    def error(self, *args: str, code: int, stdin: bytes | None = None) -> str:
        """Run on the store, expect it to fail without a traceback, return stderr."""
        result = self.result("-s", str(self.path), *args, stdin=stdin)
        return failed(result, code)


def failed(result: Result, code: int) -> str:
    """Hold a result against what a failure should look like; return stderr."""
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    if code == 3:
        lines = result.stderr.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("mvccstore: error: ")
    return result.stderr


def environment(**extra: str) -> dict[str, str]:
    """Return the environment for a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in {"MVCCSTORE", "PYTHONWARNINGS"}}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **extra}


def spawn(*args: str, stdin: bytes = b"", **extra: str) -> Finished:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mvccstore", *args],
        input=stdin,
        capture_output=True,
        env=environment(**extra),
        timeout=60,
    )
    return Finished(done.returncode, done.stdout, done.stderr.decode())
