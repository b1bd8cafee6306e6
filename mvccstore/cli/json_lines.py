"""JSON lines: one key, or one change of a key, a line. Lossless for any bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from mvccstore.cli.keys import from_json


class Change(NamedTuple):
    """What one line asks for."""

    type: Literal["put", "delete"]
    key: bytes
    value: bytes
    revision: int
    """The revision it had where it comes from; 0 for a line without history."""
    line: int


def changes(lines: Iterable[bytes]) -> Iterator[Change]:
    """Read what `export` and `range --json` write; blank lines are passed over.

    Raises:
        ValueError: A line is not what it should be; the message has its number.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _change(line, number)
        except (ValueError, RecursionError) as error:
            msg = f"line {number}: {'nested too deeply' if isinstance(error, RecursionError) else error}"
            raise ValueError(msg) from error


def _change(line: bytes, number: int) -> Change:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        msg = "not an object"
        raise ValueError(msg)
    kind = fields.get("type", "put")
    revision = fields.get("revision", 0)
    key, value = from_json("key", fields), from_json("value", fields)
    if not key:
        problem = "no key" if key is None else "the key is empty"
    elif kind not in ("put", "delete"):  # it may be unhashable
        problem = f"type is {kind!r}, neither put nor delete"
    elif kind == "put" and value is None:
        problem = "no value"
    elif type(revision) is not int:
        problem = f"revision is {revision!r}, not a number"
    else:
        return Change(kind, key, value or b"", revision, number)
    raise ValueError(problem)
