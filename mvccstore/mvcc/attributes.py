"""Attributes as they are stored: a record of META for each, and one that counts them.

An attribute is under `attribute/` and its name: the CRC-32 of name and value, then the value. The counters are
under `attributes`: the version, which each change raises by one, and the number and size of all attributes, by
which a check sees that one is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

from mvccstore.attributes import (
    ATTRIBUTES_BYTES_MAX,
    Attributes,
    AttributesRequest,
    AttributesResult,
    check_attribute_name,
)
from mvccstore.codec import UNPACK_ERRORS, pack, unpack
from mvccstore.errors import AttributesConflictError, AttributesTooLargeError, CorruptError
from mvccstore.mvcc.state import State
from mvccstore.tables import ReadTxn, Table, WriteTxn

PREFIX = b"attribute/"
END = b"attribute0"
COUNTERS = b"attributes"
PAGE_ROWS = 100
_CRC_BYTES = 4


class Counters(NamedTuple):
    """What is known of all attributes together."""

    version: int = 0
    number: int = 0
    size_bytes: int = 0
    """Of names and values."""


def load_counters(txn: ReadTxn, path: str = "") -> Counters:
    """Read the counters; all 0 before the first change. One lookup.

    Raises:
        CorruptError: They cannot be read.
    """
    packed = txn.get(Table.META, COUNTERS)
    if packed is None:
        return Counters()
    if packed[:_CRC_BYTES] != crc32(packed[_CRC_BYTES:]).to_bytes(_CRC_BYTES):
        raise CorruptError(path, "the counters of the attributes do not match their checksum")
    try:
        counters = Counters(*unpack(packed[_CRC_BYTES:]))
    except UNPACK_ERRORS as error:
        raise CorruptError(path, f"the counters of the attributes cannot be read: {error}") from error
    if not all(type(counter) is int and counter >= 0 for counter in counters):
        raise CorruptError(path, f"the counters of the attributes are {tuple(counters)!r}")
    return counters


def load(txn: ReadTxn, name: str, path: str = "") -> bytes | None:
    """Read an attribute; None if there is none of this name. One lookup."""
    packed_name = name.encode()
    packed = txn.get(Table.META, PREFIX + packed_name)
    return None if packed is None else _value(packed_name, packed, path)


def load_all(txn: ReadTxn, prefix: str, path: str = "") -> Attributes:
    """Read the attributes whose names begin with a prefix. O(those)."""
    values = {}
    for meta_name, packed in packed_records(txn, prefix.encode()):
        name, value = unpack_record(meta_name, packed, path)
        values[name] = value
    return Attributes(values, load_counters(txn, path).version)


def packed_records(txn: ReadTxn, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """Iterate over the stored records, in the order of names."""
    start = PREFIX + prefix
    # UTF-8 has no byte 255, so that the last one can be raised.
    end = start[:-1] + bytes((start[-1] + 1,))
    resume: bytes | None = start
    while resume is not None:
        page = txn.page(Table.META, resume, end, PAGE_ROWS)
        yield from page
        resume = page[-1][0] + b"\0" if len(page) == PAGE_ROWS else None


def unpack_record(meta_name: bytes, packed: bytes, path: str = "") -> tuple[str, bytes]:
    """Return name and value of an attribute as it is stored.

    Raises:
        CorruptError: It contradicts itself.
    """
    packed_name = meta_name.removeprefix(PREFIX)
    value = _value(packed_name, packed, path)
    try:
        name = packed_name.decode()
        check_attribute_name(name)
    except ValueError as error:
        raise CorruptError(path, f"an attribute is called {packed_name!r}: {error}") from error
    return name, value


def _value(packed_name: bytes, packed: bytes, path: str) -> bytes:
    value = packed[_CRC_BYTES:]
    if packed[:_CRC_BYTES] != _checksum(packed_name, value):
        raise CorruptError(path, f"attribute {packed_name.decode(errors='replace')!r} does not match its checksum")
    return value


def _checksum(packed_name: bytes, value: bytes) -> bytes:
    return crc32(value, crc32(packed_name)).to_bytes(_CRC_BYTES)


def change(txn: WriteTxn, state: State, request: AttributesRequest) -> AttributesResult:
    """Carry out a request. Without changes it only looks at its base.

    Raises:
        AttributesConflictError: There were changes since its base.
        AttributesTooLargeError: They would get too large.
    """
    before = load_counters(txn)
    if request.base is not None and request.base != before.version:
        raise AttributesConflictError(before.version, state.revision)
    if not request.changes:
        return AttributesResult(state.revision, before.version)
    named = [(name.encode(), value) for name, value in request.changes]
    stored = txn.get_many(Table.META, [PREFIX + name for name, _ in named])
    number, size_bytes = before.number, before.size_bytes
    for (name, value), packed in zip(named, stored, strict=True):
        if packed is not None:
            number -= 1
            size_bytes -= len(name) + len(packed) - _CRC_BYTES
        if value is not None:
            number += 1
            size_bytes += len(name) + len(value)
    if size_bytes > ATTRIBUTES_BYTES_MAX and size_bytes > before.size_bytes:
        raise AttributesTooLargeError(size_bytes, ATTRIBUTES_BYTES_MAX)
    for name, value in named:
        if value is not None:
            txn.put(Table.META, PREFIX + name, _checksum(name, value) + value)
    txn.delete(Table.META, [PREFIX + name for name, value in named if value is None])
    save_counters(txn, Counters(before.version + 1, number, size_bytes))
    return AttributesResult(state.revision, before.version + 1)


def save_counters(txn: WriteTxn, counters: Counters) -> None:
    """Store the counters."""
    packed = pack(tuple(counters))
    txn.put(Table.META, COUNTERS, crc32(packed).to_bytes(_CRC_BYTES) + packed)
