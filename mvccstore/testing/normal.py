"""Answers in a form in which those of two servers can be compared, and the one table of what may differ.

A message becomes a dict of its fields that are set, under their names in the proto files, with bytes as bytes and
enums as names; fields that our proto files do not know stay as `unknown`. JSON of the gateway stays as it is, but
each value is read by the field that it is of, so that the same table holds for both.

`RULES` is that table. What is not in it must be equal.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

Version = tuple[int, int, int]


class Names:
    """One server's ids, in the order in which it showed them: what is `lease#1` at one is `lease#1` at the other."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, int | str], int] = {}

    def add(self, kind: str, value: int | str) -> str:
        """Name a value, with a new name unless it has one."""
        if (kind, value) not in self._numbers:
            self._numbers[kind, value] = 1 + sum(known == kind for known, _ in self._numbers)
        return f"{kind}#{self._numbers[kind, value]}"

    def find(self, kind: str, value: int | str) -> str | None:
        """Return a value's name if it has one."""
        return self.add(kind, value) if (kind, value) in self._numbers else None

    def value(self, kind: str, number: int = 1) -> Any:
        """Return what this server calls the `number`-th of a kind; for requests that speak of it."""
        for (known, value), known_number in self._numbers.items():
            if (known, known_number) == (kind, number):
                return value
        msg = f"this server has shown no {kind}#{number} yet"
        raise LookupError(msg)


class Near:
    """A number that may be off by a little: equal to one that is near."""

    def __init__(self, value: int, tolerance: int) -> None:
        self.value, self.tolerance = value, tolerance

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Near) and abs(self.value - other.value) <= self.tolerance

    __hash__ = None  # type: ignore[assignment]  # near is not transitive

    def __repr__(self) -> str:
        return f"about {self.value}"


How = Callable[[Any, Names], object]


class Rule(NamedTuple):
    """How a field is compared, and why not by its value."""

    fields: tuple[str, ...]
    how: How
    why: str


# The ways of comparing. Each takes the value, an int or str or bytes or a list of them, and returns what is compared.


def _named(kind: str) -> How:
    """By the order of first appearance; a zero is a zero."""
    return lambda value, names: names.add(kind, value) if value else value


def _referred(kind: str) -> How:
    """By name if the server chose the value, which a rule or the driver has seen; else by value."""
    return lambda value, names: names.find(kind, value) or value


def _is_set(value: Any, _: Names) -> object:
    """By whether there is one; of a list, by its length."""
    if isinstance(value, list):
        return [_is_set(member, _) for member in value]
    return "(set)" if value else value


def _remaining(value: Any, _: Names) -> object:
    """Of a long time, more: the two were not asked at once, and a machine may stall in between."""
    return Near(value, max(2, value // 1_000))


def _sorted(value: Any, _: Names) -> object:
    return sorted(value)


def _any_order(value: Any, _: Names) -> object:
    """As a set; the members may be dicts."""
    return sorted(value, key=repr)


def _errors(value: Any, names: Names) -> object:
    """As a set, with the members by name."""
    return sorted(
        re.sub(r"memberID:(\d+)", lambda found: f"memberID:{names.add('member', int(found[1]))}", text)
        for text in value
    )


def _release(value: str, _: Names) -> object:
    """By major and minor version."""
    return re.sub(r"^(\d+\.\d+)\..*", r"\1.x", value)


def _key_of_lease(value: Any, names: Names) -> object:
    """By value, but for a lease in hexadecimal at its end that the server chose."""
    text = value if isinstance(value, str) else value.decode("latin-1")
    found = re.fullmatch(r"(.*/)([0-9a-f]+)", text, re.S)
    lease = found and names.find("lease", int(found[2], 16))
    return f"{found[1]}{lease}" if found and lease else value


RULES = (
    Rule(("ResponseHeader.cluster_id",), _named("cluster"), "a hash of the peer URLs, in which the port is"),
    Rule(
        ("ResponseHeader.member_id", "Member.ID", "AlarmMember.memberID", "StatusResponse.leader"),
        _named("member"),
        "a hash of the peer URLs, and of the time for members added later",
    ),
    Rule(("Member.peerURLs", "Member.clientURLs"), _is_set, "the ports"),
    Rule(
        (
            *("ResponseHeader.raft_term", "StatusResponse.raftTerm"),
            *("StatusResponse.raftIndex", "StatusResponse.raftAppliedIndex"),
        ),
        _is_set,
        "an election more or less, and the entries that elections and members write",
    ),
    Rule(
        ("StatusResponse.dbSize", "StatusResponse.dbSizeInUse", "StatusResponse.dbSizeQuota"),
        _is_set,
        "bbolt's file is not LMDB's",
    ),
    Rule(("HashResponse.hash",), _is_set, "a hash of the file"),
    Rule(("SnapshotResponse.blob", "SnapshotResponse.remaining_bytes"), _is_set, "the file and its pages"),
    Rule(("AlarmResponse.alarms",), _any_order, "etcd takes them from a map"),
    Rule(("StatusResponse.errors",), _errors, "the same, and each names a member"),
    Rule(
        tuple(f"Member{what}Response.members" for what in ("Add", "Remove", "Update", "List", "Promote")),
        _any_order,
        "by id, which is a hash of the ports and the time",
    ),
    Rule(("StatusResponse.version", "/version.etcdserver"), _release, "the patch release"),
    Rule(
        (
            *("LeaseGrantResponse.ID", "LeaseKeepAliveResponse.ID", "LeaseTimeToLiveResponse.ID", "LeaseStatus.ID"),
            *("KeyValue.lease", "LeaderKey.lease"),
        ),
        _referred("lease"),
        "the server chooses an id where the client gives 0",
    ),
    Rule(("LockResponse.key", "LeaderKey.key", "KeyValue.key"), _key_of_lease, "a lock's key ends in the lease's id"),
    Rule(("AuthenticateResponse.token",), _named("token"), "random"),
    Rule(("LeaseTimeToLiveResponse.TTL",), _remaining, "what remains when it is asked, by one clock and the other"),
    Rule(("LeaseTimeToLiveResponse.keys",), _sorted, "etcd takes them from a map"),
)

NEWER = {
    "StatusResponse.dbSizeQuota": (3, 6, 0),
    "StatusResponse.downgradeInfo": (3, 6, 0),
    "HashKVResponse.hash_revision": (3, 6, 0),
}
"""Fields that only a newer etcd has: not compared with one that is older than this."""

LATE = frozenset({"StatusResponse.storageVersion", "SnapshotResponse.version", "/version.storage"})
"""Fields that etcd sets, or corrects, some seconds after it has begun to answer: not compared."""

REPEATED = {"error": "message"}
"""Fields of the gateway's errors that repeat another: an etcd under 3.6 has them, and ours for clients of those."""

REVISIONS = (
    *("ResponseHeader.revision", "KeyValue.create_revision", "KeyValue.mod_revision"),
    *("WatchResponse.compact_revision", "HashKVResponse.compact_revision", "HashKVResponse.hash_revision"),
)
"""Fields that count from where two servers began, if they did not begin at the same revision."""

_HOW = {field: rule.how for rule in RULES for field in rule.fields}


def _since(start: int) -> How:
    return lambda value, _: f"start{value - start:+}" if value else value


class Normal:
    """Bring one server's answers into the form; it learns the server's ids on the way.

    Args:
        oldest: The version of the older of the two servers, for what newer ones have more.
        start: The revision from which this server's are counted; None to compare them as they are.
    """

    def __init__(self, oldest: Version, start: int | None = None) -> None:
        self.names = Names()
        """What the server chose so far."""
        self._how = _HOW if start is None else _HOW | dict.fromkeys(REVISIONS, _since(start))
        self._left_out = {field for field, since in NEWER.items() if oldest < since} | LATE

    def message(self, message: Message) -> dict[str, Any]:
        """Return a message's fields that are set."""
        found: dict[str, Any] = {}
        for field, value in message.ListFields():
            path = f"{message.DESCRIPTOR.name}.{field.name}"
            if path not in self._left_out:
                values = list(value) if field.is_repeated else [value]
                found[field.name] = self._field(path, field, [self._member(field, member) for member in values])
        if unknown := [(field.field_number, field.wire_type, field.data) for field in _unknown(message)]:
            found["unknown"] = unknown
        return found

    def _member(self, field: FieldDescriptor, value: Any) -> Any:
        if field.message_type is not None:
            return self.message(value)
        if field.enum_type is not None:
            named = field.enum_type.values_by_number.get(value)
            return value if named is None else named.name
        return value

    def _field(self, path: str, field: FieldDescriptor, values: list[Any]) -> object:
        value = values if field.is_repeated else values[0]
        return self._how[path](value, self.names) if path in self._how else value

    def json(self, value: Any, descriptor: Descriptor | None) -> Any:
        """Return a message of the gateway; without a descriptor, any JSON as it is."""
        if descriptor is None or not isinstance(value, dict):
            return value
        found: dict[str, Any] = {}
        for name, member in value.items():
            field = descriptor.fields_by_name.get(name)
            path = f"{descriptor.name}.{name}"
            if path in self._left_out:
                continue
            found[name] = member if field is None else self._json_field(path, field, member)
        return found

    def _json_field(self, path: str, field: FieldDescriptor, value: Any) -> object:
        if field.message_type is not None:
            members = value if isinstance(value, list) else [value]
            given = [self.json(member, field.message_type) for member in members]
            return given if isinstance(value, list) else given[0]
        if path not in self._how:
            return value
        if field.type == FieldDescriptor.TYPE_BYTES and isinstance(value, str):
            data: object = base64.b64decode(value)
            shown = self._how[path](data, self.names)
            return value if shown == data else shown
        # 64-bit numbers are strings here. That they are is compared; what they say goes by the rule.
        is_text = isinstance(value, str) and field.cpp_type in _INTEGERS
        number = self._how[path](int(value) if is_text else value, self.names)
        return f'"{number}"' if is_text and not isinstance(number, Near) else number

    def json_error(self, value: Any) -> Any:
        """Return an error of the gateway."""
        if not isinstance(value, dict):
            return value
        return {name: member for name, member in value.items() if member != value.get(REPEATED.get(name))}

    def page(self, path: str, value: Any) -> Any:
        """Return the JSON of an HTTP path that is no method, such as `/version`."""
        if path.startswith(("/livez", "/readyz")) and isinstance(value, bytes):
            return sorted(value.splitlines())  # etcd goes over a map
        if not isinstance(value, dict):
            return value
        paths = {f"{path}.{name}": (name, member) for name, member in value.items()}
        return {
            name: self._how[field](member, self.names) if field in self._how else member
            for field, (name, member) in paths.items()
            if field not in self._left_out
        }


def _unknown(message: Message) -> Any:
    return UnknownFieldSet(message)


_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_UINT32,
}


def first_difference(expected: object, given: object, path: str = "") -> tuple[str, object, object] | None:
    """Return where two answers differ first, and the two values there; None if they are equal."""
    missing: object = "(absent)"
    pairs: Iterable[tuple[str, object, object]]
    if isinstance(expected, dict) and isinstance(given, dict):
        keys = list(dict.fromkeys((*expected, *given)))
        pairs = ((f"{path}.{key}", expected.get(key, missing), given.get(key, missing)) for key in keys)
    elif isinstance(expected, list) and isinstance(given, list):
        length = max(len(expected), len(given))
        one, other = ([*side, *[missing] * (length - len(side))] for side in (expected, given))
        pairs = zip((f"{path}[{i}]" for i in range(length)), one, other, strict=True)
    elif type(expected) is type(given) and expected == given:
        return None
    else:
        return path, expected, given
    for where, here, there in pairs:
        if found := first_difference(here, there, where):
            return found
    return None
