"""What etcd keeps in which bucket of its file, and how each record is encoded; both ways, side by side.

| bucket | key | value |
|---|---|---|
| key | revision: main 8, `_`, sub 8, and `t` for a tombstone | KeyValue; of a tombstone only its key |
| meta | `consistent_index` `term` `confState` `scheduledCompactRev` `finishedCompactRev` `storageVersion` | each its own |
| lease | id 8 | Lease |
| alarm | AlarmMember | nothing |
| auth | `authEnabled` `authRevision` | 1 byte, 8 bytes |
| authUsers, authRoles | name | User, Role: made by those who know them |
| members, members_removed | id in hexadecimal | JSON, `removed` |
| cluster | `clusterVersion` | text |

Numbers are big-endian, messages canonical protobuf. Decoders take stored bytes: they raise `ValueError` at whatever
is not what it should be, and callers say of which file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from mvccstore.mvcc.etcd_encoding import bytes_field, int_field, key_value, revision_key
from mvccstore.records import Record
from mvccstore.types import KeyValue

KEY, META, LEASE, ALARM = b"key", b"meta", b"lease", b"alarm"
AUTH, AUTH_USERS, AUTH_ROLES = b"auth", b"authUsers", b"authRoles"
MEMBERS, MEMBERS_REMOVED, CLUSTER = b"members", b"members_removed", b"cluster"
CONSISTENT_INDEX, TERM, CONF_STATE = b"consistent_index", b"term", b"confState"
SCHEDULED_COMPACT, FINISHED_COMPACT = b"scheduledCompactRev", b"finishedCompactRev"
STORAGE_VERSION, CLUSTER_VERSION = b"storageVersion", b"clusterVersion"
AUTH_ENABLED, AUTH_REVISION = b"authEnabled", b"authRevision"
REMOVED = b"removed"
VERSION = "3.6.0"
_REVISION_BYTES = 17
_INT64_END = 1 << 63
_FIELD_NUMBER_END = 1 << 29
_TAG_BYTES_MAX = 5
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """A member of the cluster."""

    id: int
    peer_urls: tuple[str, ...] = ()
    name: str = ""
    client_urls: tuple[str, ...] = ()
    is_learner: bool = False


@dataclass(frozen=True, slots=True)
class AlarmRecord:
    """An alarm that a member has raised."""

    member_id: int
    alarm: int
    """As on the wire: 1 for NOSPACE, 2 for CORRUPT."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease."""

    id: int
    ttl: int
    """Seconds granted."""
    remaining_ttl: int = 0
    """Seconds left when that was last noted; 0 if it never was."""


@dataclass(frozen=True, slots=True)
class AuthRecords:
    """Users and roles, as packed `authpb.User` and `authpb.Role` by their names."""

    is_enabled: bool
    revision: int
    users: Mapping[bytes, bytes] = field(default_factory=dict)
    roles: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClusterRecords:
    """What a file holds beside keys and leases."""

    members: tuple[MemberRecord, ...] = ()
    removed_members: tuple[int, ...] = ()
    alarms: tuple[AlarmRecord, ...] = ()
    auth: AuthRecords | None = None
    """None if there never was any."""
    index: int = 0
    """The last raft entry applied. 0, when written, for the store's revision."""
    term: int = 1
    cluster_version: str = VERSION
    storage_version: str = VERSION


# The history


def encode_record(record: Record) -> tuple[bytes, bytes]:
    """Return what a record is stored under, and as what."""
    main, sub, is_tombstone, kv = record
    name = revision_key(main, sub, is_tombstone=is_tombstone)
    return name, bytes_field(1, kv.key) if is_tombstone else key_value(kv)


def decode_record(name: bytes, value: bytes) -> Record | None:
    """Return the record; None if it only raises the revision, as etcdutl's `--bump-revision` leaves one."""
    main, sub, is_tombstone = decode_revision(name)
    if not value and not is_tombstone:
        return None
    kv = decode_key_value(value)
    if not kv.key:
        _fail(f"the record of revision {main} has no key")
    if is_tombstone:
        return Record(main, sub, is_tombstone, KeyValue(kv.key, 0, main, 0, b"", 0))
    if kv.mod_revision != main or not 0 < kv.create_revision <= main or kv.version < 1:
        _fail(f"the record of revision {main} has {kv[1:4]} for create revision, mod revision and version")
    return Record(main, sub, is_tombstone, kv)


def decode_revision(name: bytes) -> tuple[int, int, bool]:
    """Return main, sub, and whether it is a tombstone's."""
    is_tombstone = len(name) == _REVISION_BYTES + 1
    if name[8:9] != b"_" or (name[_REVISION_BYTES:] != b"t" if is_tombstone else len(name) != _REVISION_BYTES):
        _fail(f"{name!r:.80} is no revision")
    main, sub = int.from_bytes(name[:8]), int.from_bytes(name[9:_REVISION_BYTES])
    if not 0 <= main < _INT64_END or sub >= _INT64_END:
        _fail(f"revision {main}.{sub} is out of range")
    return main, sub, is_tombstone


def decode_key_value(message: bytes) -> KeyValue:
    """Decode `mvccpb.KeyValue`."""
    numbers = {2: 0, 3: 0, 4: 0, 6: 0}
    texts = {1: b"", 5: b""}
    for number, value in fields(message):
        if number in numbers:
            numbers[number] = _signed(value)
        elif number in texts:
            texts[number] = _text(value)
    return KeyValue(texts[1], numbers[2], numbers[3], numbers[4], texts[5], numbers[6])


# Leases and alarms


def encode_lease(lease: LeaseRecord) -> tuple[bytes, bytes]:
    """Return what a lease is stored under, and as what: `leasepb.Lease`."""
    message = int_field(1, lease.id) + int_field(2, lease.ttl) + int_field(3, lease.remaining_ttl)
    return lease.id.to_bytes(8, signed=True), message


def decode_lease(name: bytes, message: bytes) -> LeaseRecord:
    """Undo `encode_lease`."""
    numbers = _numbers(message, 3)
    lease = LeaseRecord(*map(_signed, numbers))
    if len(name) != 8 or int.from_bytes(name, signed=True) != lease.id:
        _fail(f"lease {lease.id} is stored as {name!r:.80}")
    if lease.ttl < 0 or lease.remaining_ttl < 0:
        _fail(f"lease {lease.id} has {lease.ttl} seconds, {lease.remaining_ttl} left")
    return lease


def encode_alarm(alarm: AlarmRecord) -> bytes:
    """Return what an alarm is stored under: `etcdserverpb.AlarmMember`."""
    return int_field(1, alarm.member_id) + int_field(2, alarm.alarm)


def decode_alarm(message: bytes) -> AlarmRecord:
    """Undo `encode_alarm`."""
    return AlarmRecord(*_numbers(message, 2))


# Members


def encode_member(member: MemberRecord) -> tuple[bytes, bytes]:
    """Return what a member is stored under, and as what."""
    found: dict[str, object] = {"id": member.id, "peerURLs": list(member.peer_urls)}
    if member.name:
        found["name"] = member.name
    if member.client_urls:
        found["clientURLs"] = list(member.client_urls)
    if member.is_learner:
        found["isLearner"] = True
    return encode_member_id(member.id), encode_json(found)


def decode_member(name: bytes, text: bytes) -> MemberRecord:
    """Undo `encode_member`."""
    member_id = decode_member_id(name)
    try:
        found = json.loads(text)
    except RecursionError as error:
        msg = "the JSON of a member is nested too deep"
        raise ValueError(msg) from error
    if type(found) is not dict or found.get("id") != member_id:
        _fail(f"member {member_id:x} is {text!r:.80}")
    label, is_learner = found.get("name", ""), found.get("isLearner", False)
    if type(label) is not str or type(is_learner) is not bool:
        _fail(f"member {member_id:x} is {text!r:.80}")
    return MemberRecord(member_id, _urls(found.get("peerURLs")), label, _urls(found.get("clientURLs")), is_learner)


def encode_member_id(member_id: int) -> bytes:
    """Return what a member is stored under."""
    return f"{member_id:x}".encode()


def decode_member_id(name: bytes) -> int:
    """Undo `encode_member_id`."""
    member_id = int(name[:16], 16)
    if encode_member_id(member_id) != name:
        _fail(f"{name!r:.80} is no member's id")
    return member_id


def encode_json(value: object) -> bytes:
    """Encode as etcd does: without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def _urls(found: object) -> tuple[str, ...]:
    if found is None:
        return ()
    if type(found) is not list or not all(type(url) is str for url in found):
        _fail(f"{found!r:.80} are no URLs")
    return tuple(found)


# Protobuf


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Iterate over the fields of a message: their numbers, each with its bytes or its unsigned number.

    Those of a fixed size are passed over: no message here has one.
    """
    at = 0
    while at < len(message):
        began_at = at
        tag, at = _varint(message, at)
        kind, number = tag & 7, tag >> 3
        if not 0 < number < _FIELD_NUMBER_END or at - began_at > _TAG_BYTES_MAX:
            _fail(f"a message has a field of number {number}")
        size = {_FIXED_64: 8, _FIXED_32: 4}.get(kind)
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        if size is None or size > len(message) - at:
            _fail(f"a message has a field of kind {kind} that does not fit")
        if kind == _BYTES:
            yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at a place, and the place behind it."""
    number = shift = 0
    for byte in message[at : at + 10]:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if number >= 2 * _INT64_END:
                _fail("a number in a message has more than 64 bits")
            return number, at + shift // 7
    msg = "a number in a message does not end"
    raise ValueError(msg)


def _numbers(message: bytes, count: int) -> list[int]:
    """Return the fields 1 to `count` of a message of numbers."""
    found = dict.fromkeys(range(1, count + 1), 0)
    for number, value in fields(message):
        if number in found:
            found[number] = _unsigned(value)
    return list(found.values())


def _unsigned(value: int | bytes) -> int:
    if not isinstance(value, int):
        _fail("a message has bytes for a number")
    return value


def _signed(value: int | bytes) -> int:
    number = _unsigned(value)
    return number - 2 * _INT64_END if number >= _INT64_END else number


def _text(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        _fail("a message has a number for bytes")
    return value


def _fail(message: str) -> NoReturn:
    raise ValueError(message)
