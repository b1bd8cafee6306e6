"""docs/etcdctl.md: has every command and flag there is, and says what a run at a real etcd and at ours says now."""

from __future__ import annotations

import re

import pytest

from tests.oracle.choice import find_oracle
from tests.wire.etcdctl_commands import REASONS, SCRIPT, UTILITIES, told
from tests.wire.pair import NEEDS_ORACLE
from tools.etcdctl_page import PAGE, commands_in, flags_in, made, page
from tools.generated import with_generated

COMMANDS = {"etcdctl": {"": ["--hex"], "put": ["--lease", "--prev-kv"], "check perf": ["--load"]}}
PLAYED = {"etcdctl --hex", "etcdctl put", "etcdctl put --lease", "etcdctl put --prev-kv"}


class TestRun:
    pytestmark = NEEDS_ORACLE

    def test_the_page_says_what_the_run_says(self) -> None:
        if find_oracle().version < (3, 6, 0):
            return  # the page is about the programs of 3.6
        text = PAGE.read_text()
        assert with_generated(text, made()) == text, "python -m tools.etcdctl_page writes it anew"


def test_the_page_has_what_is_played_and_what_is_not() -> None:
    text = PAGE.read_text()
    rows = {
        (program, command): flags
        for program, table in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        for command, flags in re.findall(r"^\| `([^`]+)` \| (.*?) \|", table, re.MULTILINE)
    }
    assert len(rows) > 55
    lines = [("etcdctl", line.text) for line in SCRIPT] + [("etcdutl", text) for text in UTILITIES]
    for program, line in lines:
        names = {name for name in told(program, line) if (program, name.partition(" ")[2]) in rows}
        assert names, line
        assert all(rows[program, name.partition(" ")[2]].startswith("same") for name in names)
    for name in REASONS:
        program, _, rest = name.partition(" ")
        if not rest.startswith("--"):
            assert rows[program, rest] == "not played"


def test_rows_say_what_is_the_same_and_why_not() -> None:
    assert page(COMMANDS, PLAYED).splitlines()[4:] == [
        "| every command | same `--hex` |  |",
        "| `put` | same `--lease` `--prev-kv` |  |",
        f"| `check perf` | not played | {REASONS['etcdctl check perf']} |",
    ]


@pytest.mark.parametrize("forgotten", sorted(PLAYED))
def test_what_is_not_played_needs_a_reason(forgotten: str) -> None:
    with pytest.raises(ValueError, match="is not played, and there is no reason for that"):
        page(COMMANDS, PLAYED - {forgotten})


def test_words_and_flags_of_a_line_are_told() -> None:
    assert set(told("etcdctl", "lease keep-alive 12 --once -w json")) == {
        *("etcdctl lease", "etcdctl lease keep-alive"),
        *(f"etcdctl{command} {flag}" for command in ("", " lease", " lease keep-alive") for flag in FLAGS),
    }
    assert "etcdctl watch --rev" not in set(told("etcdctl", "watch a -- run --rev=1"))


FLAGS = ("--once", "--write-out")


def test_help_of_etcdctl_is_read() -> None:
    text = """\
COMMANDS:
  alarm list\t\t\tLists all alarms
  put\t\t\t\tPuts

OPTIONS:
  -d, --discovery-srv=""\t\tdomain
      --hex[=false]\t\tprint
  -h, --help[=false]\t\thelp

GLOBAL OPTIONS:
      --cacert=""\t\tverify
"""
    assert commands_in(text) == ["alarm list", "put"]
    assert flags_in(text) == ["--discovery-srv", "--hex"]


def test_help_of_etcdutl_is_read() -> None:
    text = """\
Usage:
  etcdutl hashkv [flags]

Available Commands:
  restore     Restores
  status      Tells

Flags:
  -h, --help      help for hashkv
      --rev int   maximum revision

Global Flags:
  -w, --write-out string   set
"""
    assert commands_in(text) == ["restore", "status"]
    assert flags_in(text) == ["--rev"]
