"""Pages of docs/ of which a part is generated: that part replaced, written or checked."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable
from pathlib import Path

BEGIN, END = "<!-- generated, from here -->", "<!-- to here -->"


def with_generated(text: str, generated: str) -> str:
    """Return a page with its generated part replaced.

    Raises:
        ValueError: It does not say where that is.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        msg = f"the page has no {BEGIN} and {END}"
        raise ValueError(msg)
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"


def main(page: Path, generate: Callable[[], str], description: str) -> int:
    """Write a page; with `--check`, say how it would change, and return 1 if it would."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and exit with 1 if something would change")
    arguments = parser.parse_args()
    before = page.read_text()
    after = with_generated(before, generate())
    if not arguments.check:
        page.write_text(after)
        return 0
    sys.stdout.writelines(difflib.unified_diff(before.splitlines(True), after.splitlines(True), "committed", "now"))
    return int(before != after)
