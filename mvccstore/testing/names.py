"""What is generated anew in each run of a program, and stands for the same: leases, UUIDs, times, long numbers.

A request of a run *fits* a recorded one if both have the same skeleton, and their names can be the same: a name that was
tied to another stays so, both ways. Answers then have the names of the run in place of the recorded ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from mvccstore.testing.secrets import REDACTED, SECRET_FIELDS

GENERATED = (
    rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",  # UUID
    rb"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?",
    rb"[0-9]{10,}(?:\.[0-9]+)?",  # seconds and more since the epoch
    rb"[0-9a-f]{12,}",  # leases and random numbers
)
"""What looks generated, unless letters or digits are next to it: regular expressions."""

_LEASE_FIELDS = frozenset(
    {
        *("LeaseGrantRequest.ID", "LeaseGrantResponse.ID", "LeaseRevokeRequest.ID", "LeaseKeepAliveRequest.ID"),
        *("LeaseKeepAliveResponse.ID", "LeaseTimeToLiveRequest.ID", "LeaseTimeToLiveResponse.ID", "LeaseStatus.ID"),
        *("LeaseCheckpoint.ID", "PutRequest.lease", "KeyValue.lease", "Compare.lease", "LockRequest.lease"),
        *("CampaignRequest.lease", "LeaderKey.lease"),
    }
)
_PREFIX_END = b"\0prefix"
_PLACE = b"\0"


class Name(NamedTuple):
    """A name in a message."""

    kind: str
    """`lease`, `text` or `secret`."""
    value: int | bytes


class Shape(NamedTuple):
    """A request, without and with its names."""

    skeleton: bytes
    names: tuple[Name, ...]
    secrets: tuple[Name, ...] = ()


Rename = Callable[[Name], int | bytes]


class Shapes:
    """Takes messages apart.

    Args:
        generated: What looks generated, as `GENERATED`; nothing if it is empty.
    """

    def __init__(self, generated: Iterable[bytes] = GENERATED) -> None:
        either = b"|".join(b"(?:%b)" % each for each in generated)
        self._pattern = re.compile(rb"(?<![0-9A-Za-z])(?:%b)(?![0-9A-Za-z])" % either) if either else None

    def of(self, path: str, message: Message) -> Shape:
        """Return the shape of a request of a method."""
        copy = type(message)()
        copy.CopyFrom(message)
        names: list[Name] = []
        secrets: list[Name] = []

        def take(name: Name) -> int | bytes:
            (secrets if name.kind == "secret" else names).append(name)
            return 1 if name.kind == "lease" else _PLACE

        self._rename(copy, take, is_skeleton=True)
        return Shape(path.encode() + b" " + copy.SerializeToString(deterministic=True), tuple(names), tuple(secrets))

    def rename(self, message: Message, rename: Rename) -> None:
        """Put other names in the place of those of a message."""
        self._rename(message, rename, is_skeleton=False)

    def _rename(self, message: Message, rename: Rename, *, is_skeleton: bool) -> None:
        if is_skeleton:
            _mark_prefix(message)
        secrets = SECRET_FIELDS.get(message.DESCRIPTOR.full_name, ()) if is_skeleton else ()
        for field, value in message.ListFields():
            if field.message_type is not None:
                for each in _values(field, value):
                    self._rename(each, rename, is_skeleton=is_skeleton)
            elif field.name in secrets:
                setattr(message, field.name, _text(rename(Name("secret", value.encode()))))
            elif f"{message.DESCRIPTOR.name}.{field.name}" in _LEASE_FIELDS:
                setattr(message, field.name, rename(Name("lease", value)))
            elif field.type == FieldDescriptor.TYPE_BYTES:
                self._rename_texts(message, field, value, rename)

    def _rename_texts(self, message: Message, field: FieldDescriptor, value: Any, rename: Rename) -> None:
        pattern = self._pattern
        if pattern is None:
            return

        def replace(found: re.Match[bytes]) -> bytes:
            new = rename(Name("text", found[0]))
            assert isinstance(new, bytes)
            return new

        if field.default_value == []:
            value[:] = [pattern.sub(replace, each) for each in list(value)]
        else:
            setattr(message, field.name, pattern.sub(replace, value))


def _values(field: FieldDescriptor, value: Any) -> Iterable[Message]:
    return value if field.default_value == [] else (value,)


def _text(value: int | bytes) -> str:
    assert isinstance(value, bytes)
    return value.decode()


def _mark_prefix(message: Any) -> None:
    """Have a range end that only says "what begins with the key" say that: it is no name of its own."""
    fields = message.DESCRIPTOR.fields_by_name
    if "key" in fields and "range_end" in fields and message.key and message.range_end == prefix_end(message.key):
        message.range_end = _PREFIX_END


def prefix_end(key: bytes) -> bytes:
    """Return the end of the range of all keys that begin with this one.

    >>> prefix_end(b"ab"), prefix_end(b"a\\xff"), prefix_end(b"\\xff")
    (b'ac', b'b', b'\\x00')
    """
    kept = key.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,)) if kept else b"\0"


def are_same_secrets(live: tuple[Name, ...], recorded: tuple[Name, ...]) -> bool:
    """Say whether secrets are the recorded ones, as far as those were recorded."""
    return all(theirs.value in {mine.value, REDACTED.encode()} for mine, theirs in zip(live, recorded, strict=True))


class Ties:
    """Which name of the run is which recorded one. What is not tied is itself, until it is."""

    def __init__(self) -> None:
        self._recorded: dict[Name, Name] = {}
        """By a name of the run."""
        self._live: dict[Name, Name] = {}
        """By a recorded name."""
        self._fixed: set[Name] = set()
        """Recorded names that were used."""

    @property
    def are_trivial(self) -> bool:
        """Whether all names are as they were recorded."""
        return not self._live

    def live(self, recorded: Name) -> int | bytes:
        """Return what a recorded name is in this run."""
        return self._live.get(recorded, recorded).value

    def recorded_lease(self, live: int) -> int:
        """Return what a lease of this run was when it was recorded."""
        name = Name("lease", live)
        value = self._recorded.get(name, name).value
        assert isinstance(value, int)
        return value

    def recorded(self, names: tuple[Name, ...]) -> tuple[Name, ...]:
        """Return what names of this run were when they were recorded, as far as that is known."""
        return tuple(self._recorded.get(name, name) for name in names)

    def can_be_same(self, live: tuple[Name, ...], recorded: tuple[Name, ...]) -> bool:
        """Say whether names may stand for those of a recording: none of them stands for another."""
        if len(live) != len(recorded):
            return False
        there: dict[Name, Name] = {}
        back: dict[Name, Name] = {}
        for mine, theirs in zip(live, recorded, strict=True):
            is_same = self._recorded.get(mine, mine) == theirs
            is_free = theirs not in self._fixed and self._recorded.get(mine, mine) not in self._fixed
            if not (is_same or is_free) or there.setdefault(mine, theirs) != theirs:
                return False
            if back.setdefault(theirs, mine) != mine:
                return False
        return True

    def tie(self, live: tuple[Name, ...], recorded: tuple[Name, ...]) -> None:
        """Have names stand for recorded ones from now on."""
        for mine, theirs in zip(live, recorded, strict=True):
            if self._recorded.get(mine, mine) != theirs:
                # They change places: who had been given the recorded name is the other one now.
                other_live, other_recorded = self._live.get(theirs, theirs), self._recorded.get(mine, mine)
                self._set(mine, theirs)
                self._set(other_live, other_recorded)
                if mine.kind == "lease":
                    self._tie_hex(mine, theirs)
                    self._tie_hex(other_live, other_recorded)
            self._fixed.add(theirs)

    def _set(self, live: Name, recorded: Name) -> None:
        if live == recorded:
            self._recorded.pop(live, None)
            self._live.pop(recorded, None)
        else:
            self._recorded[live], self._live[recorded] = recorded, live

    def _tie_hex(self, live: Name, recorded: Name) -> None:
        """Locks and elections have the lease in their keys."""
        self._set(Name("text", _hex(live)), Name("text", _hex(recorded)))


def _hex(lease: Name) -> bytes:
    assert isinstance(lease.value, int)
    return b"%x" % lease.value
