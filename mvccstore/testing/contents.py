"""The contents of a server as plain data: to compare with what was expected, to keep in a file, to begin with.

    {"revision": 3,
     "keys": [{"key": "a", "value": "1", "create_revision": 2, "mod_revision": 3, "version": 2, "lease": 7}],
     "leases": [{"id": 7, "ttl": 60}]}

Keys and values are text where they are UTF-8 without control characters, and otherwise `{"base64": "..."}`. A key
without a lease has no `lease`. What is loaded may leave out all but `key` and `value`, or be a mapping of keys to
values: revisions are given anew.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from mvccstore.store import Store
from mvccstore.types import KeyRange, KeyValue

Contents = Mapping[Any, Any] | str | PathLike[str]
"""What can be loaded: what `snapshot` returned, a mapping of keys to values, or the path of a JSON file of either."""

_TEXT = frozenset({9, 10, 13, *range(32, 127), *range(128, 256)})


def snapshot(store: Store) -> dict[str, Any]:
    """Return the contents of a store. Cost: O(keys)."""
    with store.snapshot() as view:
        leases = sorted(store.leases(), key=lambda lease: lease.id)
        return {
            "revision": view.revision,
            "keys": [_row(kv) for kv in view.range(KeyRange.all()).kvs],
            "leases": [{"id": lease.id, "ttl": _whole(lease.ttl)} for lease in leases],
        }


def _row(kv: KeyValue) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": as_text(kv.key),
        "value": as_text(kv.value),
        "create_revision": kv.create_revision,
        "mod_revision": kv.mod_revision,
        "version": kv.version,
    }
    if kv.lease:
        row["lease"] = kv.lease
    return row


def load(store: Store, contents: Contents) -> None:
    """Add contents to a store: leases first, then each key by a put of its own, in the order of their revisions.

    Raises:
        ValueError: They are not contents.
        OSError: The file cannot be read.
    """
    found = _parsed(contents)
    for lease in found.get("leases", ()):
        store.grant(lease["ttl"], lease_id=lease["id"])
    for row in sorted(found.get("keys", ()), key=lambda row: row.get("mod_revision", 0)):
        store.put(as_bytes(row["key"]), as_bytes(row.get("value", "")), lease=row.get("lease", 0))


def _parsed(contents: Contents) -> Mapping[str, Any]:
    if isinstance(contents, str | PathLike):
        contents = json.loads(Path(contents).read_text())
    if not isinstance(contents, Mapping):
        msg = f"contents are a mapping, or the path of a file with one, not a {type(contents).__name__}"
        raise ValueError(msg)
    keys = contents.get("keys")
    if isinstance(keys, Sequence) and not isinstance(keys, str | bytes):
        return contents
    return {"keys": [{"key": key, "value": value} for key, value in contents.items()]}


def as_text(data: bytes) -> str | dict[str, str]:
    """Return bytes as text, if they are that.

    >>> as_text(b"a/1"), as_text(bytes([0, 255]))
    ('a/1', {'base64': 'AP8='})
    """
    if _TEXT.issuperset(data):
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    return {"base64": base64.b64encode(data).decode()}


def as_bytes(text: object) -> bytes:
    """Undo `as_text`; bytes are taken as they are.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(text, bytes):
        return text
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, Mapping) and set(text) == {"base64"}:
        return base64.b64decode(text["base64"], validate=True)
    msg = f"{text!r} is neither text, nor bytes, nor a mapping with `base64`"
    raise ValueError(msg)


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number
