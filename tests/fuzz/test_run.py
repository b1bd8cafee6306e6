"""What the run of the fuzzers makes of what it sees, without fuzzing anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fuzz import run, targets
from tests.fuzz.run import Outcome, main


def test_without_atheris_it_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda _: None)
    assert main(["json"]) == 2
    assert "atheris cannot be imported" in capsys.readouterr().out


def test_memory_that_grows_to_the_end_is_a_leak() -> None:
    settled = Outcome(memory_kib=[10_000, 60_000, *[100_000] * 100])
    assert not settled.has_leak
    growing = Outcome(memory_kib=list(range(50_000, 350_000, 1_000)))
    assert growing.has_leak
    assert not Outcome(memory_kib=[]).has_leak


@pytest.mark.parametrize("is_saved", [True, False])
def test_what_breaks_a_target_is_kept_and_fails_the_run(
    is_saved: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """libFuzzer leaves the input in a file, or, killed by its limit of memory, none."""
    monkeypatch.setattr(run, "WORK", tmp_path / "work")
    monkeypatch.setattr(targets, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setenv("FUZZ_SECONDS", "1")

    def start(_name: str, output: int, *arguments: str) -> subprocess.Popen[bytes]:
        folder = next(one for one in arguments if one.startswith("-artifact_prefix=")).partition("=")[2]
        script = f"printf boom > {folder}crash-1; " if is_saved else ""
        script += "echo '=== Uncaught Python exception'; echo 'stat::number_of_executed_units: 12'; exit 77"
        return subprocess.Popen(["/bin/sh", "-c", script], stdout=output, stderr=output)

    monkeypatch.setattr(run, "_start", start)
    assert main(["json"]) == 1
    said = capsys.readouterr().out
    assert "broke" in said
    assert " 12 " in said
    assert list(targets.kept("json")) == ([("crash", b"boom")] if is_saved else [])
