"""Writes docs/etcdctl.md: every command and flag of etcdctl and etcdutl, and whether it does the same here.

    python -m tools.etcdctl_page             run the commands at a real etcd and at ours, and write the page
    python -m tools.etcdctl_page --check     say what would change instead

The rows are read off what the programs themselves say with `--help`, so none is missing; what they say comes from the
run of `tests.wire.etcdctl_commands`, and from the reasons that are kept beside the commands.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from tests.oracle.choice import find_oracle
from tests.wire.etcdctl_commands import REASONS, play_all
from tools import generated

PAGE = Path(__file__).parents[1] / "docs" / "etcdctl.md"
EVERY = "every command"


def said(binary: Path, *words: str) -> str:
    """Return what a program says of itself or of a command."""
    return subprocess.run(
        [binary, *words, "--help"], capture_output=True, text=True, timeout=20, check=True, env={"PATH": ""}
    ).stdout


def commands_in(text: str) -> list[str]:
    """Return the commands that a help text lists, each with all its words or with its first."""
    _, _, listed = text.partition("COMMANDS:\n")
    if listed:  # etcdctl's own form
        return [line.strip().partition("\t")[0] for line in listed.partition("\n\n")[0].splitlines()]
    _, _, listed = text.partition("Available Commands:\n")
    return [line.split()[0] for line in listed.partition("\n\n")[0].splitlines()]


def flags_in(text: str) -> list[str]:
    """Return the flags that a help text lists, without those of every command, and without `--help`."""
    own = re.split(r"^(?:GLOBAL OPTIONS|Global Flags):", text, flags=re.MULTILINE)[0]
    _, _, listed = own.partition("\nOPTIONS:\n") if "\nOPTIONS:\n" in own else own.partition("\nFlags:\n")
    found = re.findall(r"^ +(?:-\w, )?(--[\w-]+)", listed, re.MULTILINE)
    return [flag for flag in found if flag != "--help"]


def all_commands(binary: Path) -> dict[str, list[str]]:
    """Return the commands of a program and the flags of each, those of every command first, as `""`."""
    found = {"": flags_in(said(binary))}

    def add(words: Sequence[str]) -> None:
        text = said(binary, *words)
        inner = [] if len(words) > 1 else commands_in(text)
        if not inner:
            found[" ".join(words)] = flags_in(text)
        for name in inner:
            add((*words, name))

    for command in commands_in(said(binary)):
        add(command.split())
    return found


def rows(program: str, commands: dict[str, list[str]], played: Collection[str]) -> Iterator[str]:
    """Give the rows of a program.

    Raises:
        ValueError: A command or a flag is not played, and there is no reason for that.
    """
    for command, flags in commands.items():
        full = f"{program} {command}".strip()
        shown = f"`{command}`" if command else EVERY
        if full in REASONS:
            yield f"| {shown} | not played | {REASONS[full]} |"
            continue
        same = [flag for flag in flags if f"{full} {flag}" in played]
        reasons = {flag: REASONS.get(f"{full} {flag}", "") for flag in flags if flag not in same}
        missing = [flag for flag, reason in reasons.items() if not reason]
        if missing or (command and full not in played):
            msg = f"{full} {' '.join(missing)} is not played, and there is no reason for that"
            raise ValueError(msg)
        by_reason: dict[str, list[str]] = {}
        for flag, reason in reasons.items():
            by_reason.setdefault(reason, []).append(f"`{flag}`")
        why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
        yield f"| {shown} | same{''.join(f' `{flag}`' for flag in same)} | {why} |"


def page(programs: dict[str, dict[str, list[str]]], played: Collection[str]) -> str:
    """Return the part of the page that is generated."""
    lines: list[str] = []
    for program, commands in programs.items():
        lines += [f"## {program}", "", "| command | here, with flags | not played, and why |", "|---|---|---|"]
        lines += [*rows(program, commands, played), ""]
    return "\n".join(lines).strip()


def made() -> str:
    """Run all commands, and return the part of the page that is generated."""
    oracle = find_oracle()
    assert oracle.etcdctl is not None
    assert oracle.etcdutl is not None
    programs = {binary.name: all_commands(binary) for binary in (oracle.etcdctl, oracle.etcdutl)}
    return page(programs, play_all())


if __name__ == "__main__":
    sys.exit(generated.main(PAGE, made, __doc__ or ""))
