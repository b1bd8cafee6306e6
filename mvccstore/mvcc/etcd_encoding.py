"""etcd's stored form of a key: the bytes of `mvccpb.KeyValue` in canonical protobuf.

Canonical is what every protobuf runtime writes for a proto3 message: ascending field numbers, zeros and empty
bytes left out, a negative number as the ten bytes of its 64-bit two's complement. The same bytes are hashed by
`HashKV`, sent in answers, and written into snapshots.

A revision is two lookups and one concatenation: the low 14 bits select two bytes that say that more follow,
the 14 above select the last one or two. Both tables fill as they are used and hold at most 2**14 entries each.
Numbers of 2**28 and more take a loop.
"""

from __future__ import annotations

from mvccstore.types import KeyValue

_LOW = 1 << 14
_HIGH = 1 << 28
_MASK_64 = 0xFFFFFFFFFFFFFFFF


class _Last(dict[int, bytes]):
    """The varint of each number below 2**14."""

    def __missing__(self, number: int) -> bytes:
        encoded = self[number] = _long_varint(number)
        return encoded


class _First(dict[int, bytes]):
    """The two bytes that carry the low 14 bits of a longer varint."""

    def __missing__(self, low: int) -> bytes:
        encoded = self[low] = bytes((low & 0x7F | 0x80, low >> 7 | 0x80))
        return encoded


def _long_varint(number: int) -> bytes:
    number &= _MASK_64
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_LAST = _Last()
_FIRST = _First()


def varint(number: int) -> bytes:
    """Encode a number of 64 bits, signed or not.

    Cost: 0.1 to 0.2 us below 2**28, 1 us for ten bytes.

    >>> varint(1), varint(300), len(varint(-1))
    (b'\\x01', b'\\xac\\x02', 10)
    """
    if 0 <= number < _LOW:
        return _LAST[number]
    if 0 <= number < _HIGH:
        return _FIRST[number & (_LOW - 1)] + _LAST[number >> 14]
    return _long_varint(number)


def int_field(number: int, value: int) -> bytes:
    """Encode a field that holds a number or a bool; its number is 15 at most."""
    return bytes((number << 3,)) + varint(value) if value else b""


def bytes_field(number: int, value: bytes) -> bytes:
    """Encode a field that holds bytes, a string or, unless it is to be told from an absent one, a message."""
    return bytes((number << 3 | 2,)) + varint(len(value)) + value if value else b""


def revision_key(main: int, sub: int, *, is_tombstone: bool) -> bytes:
    """Return what the record of a change is stored under: 17 bytes, and a `t` for a tombstone."""
    return main.to_bytes(8) + b"_" + sub.to_bytes(8) + (b"t" if is_tombstone else b"")


def key_value(kv: KeyValue) -> bytes:
    """Encode as `mvccpb.KeyValue`.

    Cost: 1 us with a value of 256 bytes.

    >>> key_value(KeyValue(b"a", 2, 3, 2, b"x"))
    b'\\n\\x01a\\x10\\x02\\x18\\x03 \\x02*\\x01x'
    """
    key, create_revision, mod_revision, version, value, lease = kv
    key_size, value_size = len(key), len(value)
    if (
        0 < key_size < _LOW
        and 0 < value_size < _LOW
        and 0 < version < _LOW
        and create_revision
        and mod_revision
        and not lease
    ):
        modified = varint(mod_revision)
        return b"".join(
            (
                b"\x0a",
                _LAST[key_size],
                key,
                b"\x10",
                modified if create_revision == mod_revision else varint(create_revision),
                b"\x18",
                modified,
                b"\x20",
                _LAST[version],
                b"\x2a",
                _LAST[value_size],
                value,
            )
        )
    return b"".join(
        (
            bytes_field(1, key),
            int_field(2, create_revision),
            int_field(3, mod_revision),
            int_field(4, version),
            bytes_field(5, value),
            int_field(6, lease),
        )
    )
