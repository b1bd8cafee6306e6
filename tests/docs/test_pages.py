"""The pages of docs/: their code is that of the examples, their links lead somewhere, and the examples run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
PAGES = sorted(DOCS.glob("*.md"))
SECONDS = 600
_BLOCK = re.compile(r"(?:^<!-- (\S+) -->\n)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]+)\)")
SHELL = {"pip install 'mvccstore[pytest]'\n"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_is_that_of_an_example(page: Path) -> None:
    for path, language, code in _BLOCK.findall(page.read_text()):
        if language == "sh":
            assert code in SHELL
        else:
            assert path, f"{page.name} does not say of which example this is:\n{code}"
            assert code in (DOCS / path).read_text(), f"{page.name} has other code than {path}"


def test_every_example_has_a_page() -> None:
    shown = {path for page in PAGES for path, _, _ in _BLOCK.findall(page.read_text())}
    for language in EXAMPLES.iterdir():
        assert any(path.startswith(f"examples/{language.name}/") for path in shown), language


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        assert (page.parent / link).exists(), link


def run(folder: Path, language: str, *commands: list[str]) -> str:
    """Copy an example to a folder, run commands there, and return what they print. They find `mvccstore-etcd`."""
    copied, programs = folder / language, folder / "bin"
    shutil.copytree(EXAMPLES / language, copied)
    programs.mkdir()
    server = programs / "mvccstore-etcd"
    server.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mvccstore.server.etcd_shim "$@"\n')
    server.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
    }
    said = ""
    for command in commands:
        ended = subprocess.run(
            command, cwd=copied, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        said += ended.stdout + ended.stderr
        assert ended.returncode == 0, said
    return said


def test_python(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:mvccstore"]
    said = run(tmp_path, "python", [*command, "-p", "mvccstore.testing.plugin", "test_orders.py", "test_recorded.py"])
    assert "8 passed" in said


OTHERS = {
    "go": (["go", "test", "./..."],),
    "node": (["npm", "install", "--silent", "--no-audit", "--no-fund"], ["npm", "test"]),
    "java": (["mvn", "-B", "-q", "test"],),
}


@pytest.mark.soak
@pytest.mark.parametrize("language", OTHERS)
def test_others(tmp_path: Path, language: str) -> None:
    """Asked for by `make examples`, as clients are downloaded."""
    commands = OTHERS[language]
    if shutil.which(commands[0][0]) is None:
        pytest.skip(f"{commands[0][0]} is not installed")
    run(tmp_path, language, *commands)


def test_examples_are_those_that_are_run() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == {"python", *OTHERS}
