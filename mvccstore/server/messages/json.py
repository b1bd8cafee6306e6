"""Messages as JSON, as etcd's gateway has them.

Out: the names of the proto files (`prev_kv`, `ID`), zeros and empty lists left out, 64-bit numbers as strings,
32-bit ones as numbers, enums as names (a number that has none as itself), bytes in base64 with padding, no
spaces. protobuf's `json_format` does all of that.

In: snake_case or lowerCamelCase names, unknown ones ignored with whatever they hold, null for a field that is
not set, numbers as numbers or strings, enums as names or numbers, base64 of the standard or the URL-safe
alphabet with or without padding. That is read here, because `json_format` drops what is not base64 from the
middle of a value, takes `1_000` and Arabic digits for numbers, and has other errors than one.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple, NoReturn, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

__all__ = ["DEPTH_MAX", "VALUES_MAX", "JsonError", "from_json", "many_from_json", "to_json"]

DEPTH_MAX = 100
"""Messages within messages, as many as the same request may have in protobuf (the C runtime's limit)."""
VALUES_MAX = 100_000
"""Values of a body, by its commas: no other thread runs while `json` goes over them, so that 2 million took 0.3 s of all."""

_M = TypeVar("_M", bound=Message)
_Value = object
_BODY = ""
"""The path of the whole."""
_TOO_DEEP = "too deeply nested"
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}|[A-Za-z0-9_-]*={0,2}")
_INT32, _UINT32 = (-(2**31), 2**31 - 1), (0, 2**32 - 1)
_INT64, _UINT64 = (-(2**63), 2**63 - 1), (0, 2**64 - 1)
_BOUNDS = {
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_ENUM: _INT32,
}


class _Field(NamedTuple):
    name: str
    slot: str
    """Its oneof, or itself: what can be set once."""
    type: int
    is_repeated: bool
    numbers: dict[str, int] | None
    """An enum's, by name."""


_NAMES: dict[str, dict[str, _Field]] = {}
"""The fields of each message met, by both of their names."""


class JsonError(ValueError):
    """The bytes are not JSON, or not of the message's shape. `path` is the field, such as `compare[0].version`.

    `limit` is the name of the limit that they pass.
    """

    def __init__(self, path: str, problem: str, *, limit: str | None = None) -> None:
        super().__init__(path, problem)
        self.path, self.problem, self.limit = path, problem, limit

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem


def to_json(message: Message) -> bytes:
    """Encode `message`, in one line without spaces.

    Cost: 20 us a message within.

    >>> from mvccstore.server.messages import kv
    >>> to_json(kv.KeyValue(key=b"a", version=1))
    b'{"key":"YQ==","version":"1"}'
    """
    return _dump(MessageToDict(message, preserving_proto_field_name=True)).encode()


def _dump(value: _Value) -> str:
    """Encode a value, and what is within a message by itself: while `json` encodes, no other thread runs."""
    if isinstance(value, list):
        return f"[{','.join(map(_dump, value))}]"
    if isinstance(value, dict) and any(isinstance(member, list | dict) for member in value.values()):
        return "{" + ",".join(f'"{name}":{_dump(member)}' for name, member in value.items()) + "}"
    return _encode(value)


def from_json(message_type: type[_M], body: bytes) -> _M:
    """Decode a body; an empty one is a message without fields.

    Raises:
        JsonError: it is not one JSON object, or not of the message's shape.

    >>> from mvccstore.server.messages import kv
    >>> from_json(kv.KeyValue, b'{"key": "YQ", "modRevision": 7}').mod_revision
    7
    """
    text = _text(body)
    start = _skip_space(text, 0)
    if start == len(text):
        return message_type()
    value, at = _decode(text, start)
    if _skip_space(text, at) < len(text):
        raise JsonError(_BODY, f"there is more after the object, at character {at}")
    return _message_of(message_type, value)


def many_from_json(message_type: type[_M], body: bytes) -> Iterator[_M]:
    """Decode the objects that follow each other in the body of a streaming call, as they are asked for.

    Raises:
        JsonError: as `from_json`; the messages before it have been yielded.
    """
    text = _text(body)
    at = _skip_space(text, 0)
    while at < len(text):
        value, at = _decode(text, at)
        yield _message_of(message_type, value)
        at = _skip_space(text, at)


def _text(body: bytes) -> str:
    if body.count(b",") >= VALUES_MAX:
        raise JsonError(_BODY, f"more than {VALUES_MAX} values", limit="json_values_max")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise JsonError(_BODY, f"not UTF-8: {error.reason} at byte {error.start}") from None


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _decode(text: str, at: int) -> tuple[_Value, int]:
    try:
        value, end = _DECODER.raw_decode(text, at)
    except JsonError:
        raise
    except RecursionError:
        raise JsonError(_BODY, _TOO_DEEP, limit="json_depth_max") from None
    except (ValueError, ArithmeticError) as error:  # numbers of thousands of digits and exponents have their own
        raise JsonError(_BODY, f"not JSON: {error}") from None
    return value, end


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _no_constant(name: str) -> NoReturn:
    raise JsonError(_BODY, f"not JSON: {name}")


def _unique(pairs: list[tuple[str, _Value]]) -> dict[str, _Value]:
    members: dict[str, _Value] = {}
    for name, value in pairs:
        if name in members:
            raise JsonError(_BODY, f"a name twice in one object: {_shown(name)}")
        members[name] = value
    return members


_DECODER = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_unique)


def _message_of(message_type: type[_M], value: _Value) -> _M:
    message = message_type()
    try:
        _fill(message, value, _BODY, DEPTH_MAX)
    except RecursionError:  # the caller's stack was nearly full
        raise JsonError(_BODY, _TOO_DEEP, limit="json_depth_max") from None
    return message


def _fields(message: Message) -> dict[str, _Field]:
    descriptor = message.DESCRIPTOR
    names = _NAMES.get(descriptor.full_name)
    if names is None:
        names = {}
        for field in descriptor.fields_by_name.values():
            slot = field.name if field.containing_oneof is None else field.containing_oneof.name
            is_repeated = field.default_value == []  # `label` and `is_repeated` are not in all versions of protobuf
            enum = field.enum_type
            numbers = None if enum is None else {name: value.number for name, value in enum.values_by_name.items()}
            names[field.name] = names[field.json_name] = _Field(field.name, slot, field.type, is_repeated, numbers)
        _NAMES[descriptor.full_name] = names
    return names


def _fill(message: Message, value: _Value, path: str, depth: int) -> None:
    """Set the fields of an empty `message` from an object."""
    if type(value) is not dict:
        raise JsonError(path, f"{_kind(value)} where an object is due")
    if not depth:
        raise JsonError(path, f"messages are nested deeper than {DEPTH_MAX}", limit="json_depth_max")
    fields = _fields(message)
    taken: dict[str, str] = {}
    for name, member in value.items():
        field = fields.get(name)
        if field is None or member is None:
            continue
        where = f"{path}.{name}" if path else name
        if field.slot in taken:
            raise JsonError(where, f"only one of {taken[field.slot]!r} and {name!r} may be set")
        taken[field.slot] = name
        _set(message, field, member, where, depth)


def _set(message: Message, field: _Field, value: _Value, path: str, depth: int) -> None:
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    if not field.is_repeated:
        if is_message:
            held = getattr(message, field.name)
            held.SetInParent()  # an empty one is there all the same
            _fill(held, value, path, depth - 1)
        else:
            setattr(message, field.name, _scalar(field, value, path))
        return
    if type(value) is not list:
        raise JsonError(path, f"{_kind(value)} where a list is due")
    held = getattr(message, field.name)
    for place, member in enumerate(value):
        where = f"{path}[{place}]"
        if is_message:
            _fill(held.add(), member, where, depth - 1)
        else:
            held.append(_scalar(field, member, where))


def _scalar(field: _Field, value: _Value, path: str) -> bool | int | str | bytes:
    if field.type == FieldDescriptor.TYPE_BOOL:
        if type(value) is not bool:
            raise JsonError(path, f"{_kind(value)} where true or false is due")
        return value
    if field.type == FieldDescriptor.TYPE_STRING:
        return _string(value, path)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes(value, path)
    if field.numbers is not None and type(value) is str:
        if value not in field.numbers:
            raise JsonError(path, f"{_shown(value)} is not one of {', '.join(field.numbers)}")
        return field.numbers[value]
    return _int(value, path, *_BOUNDS[field.type])


def _string(value: _Value, path: str) -> str:
    if type(value) is not str:
        raise JsonError(path, f"{_kind(value)} where a string is due")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise JsonError(path, "half of a surrogate pair")
    return value


def _bytes(value: _Value, path: str) -> bytes:
    if type(value) is not str:
        raise JsonError(path, f"{_kind(value)} where base64 is due")
    encoded = value.replace("\n", "").replace("\r", "")  # skipped, as by etcd, but counted where it looks for padding
    digits = len(encoded.rstrip("="))
    is_whole = len(encoded) % 4 == 0 if len(value) % 4 == 0 else digits == len(encoded)
    if not _BASE64.fullmatch(encoded) or digits % 4 == 1 or not is_whole:
        raise JsonError(path, f"not base64: {_shown(value)}")
    padded = encoded[:digits] + "=" * (-digits % 4)
    return b64decode(padded, b"-_" if "-" in padded or "_" in padded else None)


def _int(value: _Value, path: str, least: int, most: int) -> int:
    number: int | Decimal
    if type(value) is str:
        if not _NUMBER.fullmatch(value):
            raise JsonError(path, f"not a number: {_shown(value)}")
        try:
            number = Decimal(value)
        except ArithmeticError:  # an exponent of twenty digits
            raise JsonError(path, f"not a number: {_shown(value)}") from None
    elif isinstance(value, int | Decimal) and type(value) is not bool:
        number = value
    else:
        raise JsonError(path, f"{_kind(value)} where a number is due")
    # The bounds first: a whole number of 1e999999999 would have as many digits.
    if not least <= number <= most or number != int(number):
        raise JsonError(path, f"{_shown(str(value))} is not a whole number from {least} to {most}")
    return int(number)


def _kind(value: _Value) -> str:
    if value is None:
        return "null"
    kinds = {bool: "a bool", str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
