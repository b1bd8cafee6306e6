"""Messages as plain data that people read: the field names of the proto files, text where bytes are text, plain numbers.

Unlike the JSON of etcd's gateway: keys and values are text, and only what is not UTF-8 is base64, under the field's
name and `_b64`; numbers of 64 bits are numbers. Fields that are not set are left out.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

_B64 = "_b64"
_TYPES: dict[int, type] = {FieldDescriptor.TYPE_BOOL: bool, FieldDescriptor.TYPE_STRING: str}


class PlainError(ValueError):
    """Plain data that is no message."""


def to_plain(message: Message) -> dict[str, Any]:
    """Return a message as plain data; fields that this package does not know are lost.

    >>> from mvccstore.server.messages import kv
    >>> to_plain(kv.KeyValue(key=b"a", value=b"\\xff", version=1))
    {'key': 'a', 'version': 1, 'value_b64': '/w=='}
    """
    plain: dict[str, Any] = {}
    for field, value in message.ListFields():
        name, values = field.name, value if _is_repeated(field) else [value]
        shown: list[Any]
        if field.type == FieldDescriptor.TYPE_BYTES:
            try:
                shown = [each.decode() for each in values]
            except UnicodeDecodeError:
                name, shown = name + _B64, [b64encode(each).decode() for each in values]
        elif field.message_type is not None:
            shown = [to_plain(each) for each in values]
        elif field.enum_type is not None:
            known = field.enum_type.values_by_number
            shown = [known[each].name if each in known else each for each in values]
        else:
            shown = list(values)
        plain[name] = shown if _is_repeated(field) else shown[0]
    return plain


def from_plain(message_type: type[M], plain: object) -> M:
    """Return the message of plain data.

    Raises:
        PlainError: It is none of this type; the message says which field.

    >>> from mvccstore.server.messages import kv
    >>> from_plain(kv.KeyValue, {"key": "a", "value_b64": "/w=="}).value
    b'\\xff'
    """
    message = message_type()
    _fill(message, plain)
    return message


def _fill(message: Message, plain: object) -> None:
    name_of_type = message.DESCRIPTOR.name
    if not isinstance(plain, dict):
        msg = f"{name_of_type} is no object"
        raise PlainError(msg)
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in plain.items():
        is_b64 = name not in fields and name.endswith(_B64)
        field: Any = fields.get(name.removesuffix(_B64) if is_b64 else name)
        if field is None or (is_b64 and field.type != FieldDescriptor.TYPE_BYTES):
            msg = f"{name_of_type} has no field {name!r}"
            raise PlainError(msg)
        try:
            _set(message, field, value, is_b64=is_b64)
        except PlainError:
            raise
        except (TypeError, KeyError, ValueError) as error:
            msg = f"{name_of_type}.{name} cannot be {value!r:.80}"
            raise PlainError(msg) from error
    if not plain:
        message.SetInParent()


def _set(message: Message, field: FieldDescriptor, value: Any, *, is_b64: bool) -> None:
    if field.message_type is not None:
        if _is_repeated(field):
            for each in _list(value):
                _fill(getattr(message, field.name).add(), each)
        else:
            _fill(getattr(message, field.name), value)
    elif _is_repeated(field):
        getattr(message, field.name).extend(_scalar(field, each, is_b64=is_b64) for each in _list(value))
    else:
        setattr(message, field.name, _scalar(field, value, is_b64=is_b64))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _scalar(field: FieldDescriptor, value: Any, *, is_b64: bool) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        if not isinstance(value, str):
            raise TypeError
        return b64decode(value, validate=True) if is_b64 else value.encode()
    if field.enum_type is not None and isinstance(value, str):
        return field.enum_type.values_by_name[value].number
    # protobuf takes True for 1, and 1 for True.
    if type(value) is not _TYPES.get(field.type, int):
        raise TypeError
    return value


def _is_repeated(field: FieldDescriptor) -> bool:
    # `label` and `is_repeated` are not in all versions of protobuf.
    return bool(field.default_value == [])
