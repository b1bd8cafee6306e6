"""The name in a client's certificate, which is the user that it is for.

Read here, and not by a library: those warn of names that are too long or empty, or refuse them, and OpenSSL's words
for a name would have to be taken apart again. The certificate itself was verified before, in the handshake.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

_COMMON_NAME = bytes.fromhex("550403")
_OID, _VERSION = 0x06, 0xA0
_ENCODINGS = {12: "utf-8", 18: "ascii", 19: "ascii", 20: "latin-1", 22: "ascii", 30: "utf-16-be"}
"""Of the kinds of text that Go reads: UTF8, Numeric, Printable, T61, IA5 and BMP strings."""
_SUBJECT_AT = 4
"""In what is signed: serial number, algorithm, issuer, validity, subject."""


@lru_cache(maxsize=1_000)
def common_name(certificate: bytes) -> str:
    """Return the common name of a certificate in DER, the last if it has several; empty if it has none.

    One that is no text, or of a kind that etcd does not read, is as none: nobody's.
    """
    name = ""
    try:
        ((_, whole),) = _items(certificate)
        (_, signed), *_ = _items(whole)
        parts = [value for tag, value in _items(signed) if tag != _VERSION]
        for _, part in _items(parts[_SUBJECT_AT]):
            for _, pair in _items(part):
                (kind, identifier), (tag, value) = _items(pair)
                if kind == _OID and identifier == _COMMON_NAME:
                    name = value.decode(_ENCODINGS[tag])
    except (IndexError, KeyError, ValueError):
        return ""
    return name


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Iterate over what follows each other in DER (X.690), by tag and contents.

    Raises:
        ValueError: Something is longer than `data`.
        IndexError: Likewise.
    """
    at = 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(data[at : at + count])
            at += count
        if at + size > len(data):
            msg = "it is cut off"
            raise ValueError(msg)
        yield tag, data[at : at + size]
        at += size
