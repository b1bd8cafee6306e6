"""Attributes: small named values of a store itself, outside keys, revisions, watches and compaction.

Who builds on a store keeps in them what is not the user's data: settings, members, users and roles, alarms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mvccstore.errors import TxnTooLargeError, ValueTooLargeError

ATTRIBUTE_NAME_BYTES_MAX = 255
ATTRIBUTE_VALUE_BYTES_MAX = 1 << 20
ATTRIBUTE_CHANGES_MAX = 10_000
"""In one request."""
ATTRIBUTES_BYTES_MAX = 64 << 20
"""Names and values of all attributes of a store; they are read and copied at once."""


@dataclass(frozen=True, slots=True)
class AttributesRequest:
    """Change attributes, all of them or none; a value of None deletes the attribute."""

    changes: tuple[tuple[str, bytes | None], ...]
    base: int | None = None
    """The version that they were read at. Applied on top of another one, it raises `AttributesConflictError`."""

    def __post_init__(self) -> None:
        if type(self.changes) is not tuple:
            msg = f"changes is a {type(self.changes).__name__}, not a tuple"
            raise TypeError(msg)
        for change in self.changes:
            if type(change) is not tuple or len(change) != 2:
                msg = f"a change is {change!r:.80}, not a tuple of name and value"
                raise TypeError(msg)
            name, value = change
            check_attribute_name(name)
            if value is not None and type(value) is not bytes:
                msg = f"the value of attribute {name!r} is a {type(value).__name__}, not bytes"
                raise TypeError(msg)
        if len(dict(self.changes)) != len(self.changes):
            msg = "an attribute is changed twice"
            raise ValueError(msg)
        if self.base is None:
            return
        if type(self.base) is not int:
            msg = f"base is a {type(self.base).__name__}, not an int"
            raise TypeError(msg)
        if self.base < 0:
            msg = f"base is {self.base}; it is a version that was read, 0 before the first change"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class AttributesResult:
    """What a change of attributes did."""

    revision: int
    """The store's, which it leaves alone."""
    version: int
    """The attributes' own, after the change."""


class Attributes(Mapping[str, bytes]):
    """Attributes by name, in the order of their names, as they were when they were read.

    >>> import mvccstore
    >>> store = mvccstore.open()
    >>> store.set_attributes({"user/alice": b"admin", "motd": b"hello"})
    1
    >>> users = store.attributes("user/")
    >>> users, users.version
    (<Attributes {'user/alice': b'admin'} at version 1>, 1)
    """

    __slots__ = ("_values", "version")

    def __init__(self, values: Mapping[str, bytes], version: int) -> None:
        self._values = dict(values)
        self.version = version
        """Of all attributes of the store: the number of changes so far."""

    def __getitem__(self, name: str) -> bytes:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Attributes {self._values!r} at version {self.version}>"


def attributes_request(changes: Mapping[str, bytes | None], base: int | None) -> AttributesRequest:
    """Make a request of what a caller gives.

    Raises:
        TxnTooLargeError, ValueTooLargeError: It is over a limit.
        TypeError, ValueError: A name or value is not one.
    """
    if not isinstance(changes, Mapping):
        msg = f"changes is a {type(changes).__name__}, not a mapping of names to values"
        raise TypeError(msg)
    if len(changes) > ATTRIBUTE_CHANGES_MAX:
        raise TxnTooLargeError(len(changes), ATTRIBUTE_CHANGES_MAX)
    request = AttributesRequest(tuple(changes.items()), base)
    for _, value in request.changes:
        if value is not None and len(value) > ATTRIBUTE_VALUE_BYTES_MAX:
            raise ValueTooLargeError(len(value), ATTRIBUTE_VALUE_BYTES_MAX)
    return request


def check_attribute_name(name: str) -> None:
    """Raise unless `name` is a string of 1 to 255 bytes in UTF-8."""
    if type(name) is not str:
        msg = f"the name of an attribute is a {type(name).__name__}, not a str"
        raise TypeError(msg)
    if not 1 <= len(name.encode()) <= ATTRIBUTE_NAME_BYTES_MAX:
        msg = f"the name of an attribute has {len(name.encode())} bytes, not 1 to {ATTRIBUTE_NAME_BYTES_MAX}"
        raise ValueError(msg)
