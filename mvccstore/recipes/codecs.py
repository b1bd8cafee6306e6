"""How Python values become the bytes of a store, and back: what `Store.mapping` takes as `codec=`."""

from __future__ import annotations

import json
from typing import Generic, Protocol, TypeVar

import msgpack

from mvccstore.codec import UNPACK_ERRORS

T = TypeVar("T")


class Codec(Protocol[T]):
    """Turns values into bytes and back. Any object with these two methods is one."""

    def encode(self, value: T, /) -> bytes:
        """Return a value as bytes.

        Raises:
            TypeError, ValueError: It cannot be.
        """
        ...

    def decode(self, data: bytes, /) -> T:
        """Return the value that `encode` was given, or one that is as good.

        Raises:
            ValueError: These are not the bytes of one.
        """
        ...


class JsonCodec(Generic[T]):
    """Values as JSON: None, bool, int, float, str, list, dict with str keys. What else there is comes back as these.

    What `T` is only the type checker knows; nothing is checked when a value comes back.

    >>> codec = JsonCodec[dict[str, int]]()
    >>> codec.encode({"size": 3}), codec.decode(b'{"size":3}')
    (b'{"size":3}', {'size': 3})
    """

    __slots__ = ()

    def encode(self, value: T, /) -> bytes:
        """Return a value as JSON in UTF-8, without spaces. Not a number (NaN) and infinities are refused."""
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    def decode(self, data: bytes, /) -> T:
        """Return the value of a JSON text."""
        try:
            value: T = json.loads(data)
        except RecursionError as error:
            msg = "JSON is nested too deeply"
            raise ValueError(msg) from error
        return value


class MsgpackCodec(Generic[T]):
    """Values as msgpack: as JSON, and bytes. Smaller and faster; ints have 64 bits.

    >>> codec = MsgpackCodec[list[bytes]]()
    >>> codec.decode(codec.encode([b"a", b"b"]))
    [b'a', b'b']
    """

    __slots__ = ()

    def encode(self, value: T, /) -> bytes:
        """Return a value as msgpack."""
        try:
            packed: bytes = msgpack.packb(value)
        except OverflowError as error:
            raise ValueError(*error.args) from error
        return packed

    def decode(self, data: bytes, /) -> T:
        """Return the value of a msgpack object. Map keys may be of any type."""
        try:
            value: T = msgpack.unpackb(data, strict_map_key=False)
        except UNPACK_ERRORS as error:
            msg = f"not msgpack: {error!r}"
            raise ValueError(msg) from error
        return value


class RawCodec:
    """Bytes as they are.

    >>> RawCodec().decode(b"as is")
    b'as is'
    """

    __slots__ = ()

    def encode(self, value: bytes, /) -> bytes:
        """Return the value; the store says so if it is not bytes."""
        return value

    def decode(self, data: bytes, /) -> bytes:
        """Return the value."""
        return data
