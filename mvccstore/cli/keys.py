"""Bytes as they are written on command lines, in JSON, and for people.

On the command line a key is UTF-8 text, or with `--hex` or `--b64` any bytes. In JSON, bytes that are UTF-8 are
text in the field `key` (or `value`), all others base64 in the field `key_b64` (`value_b64`), so nothing is lost.
For people and in pipes they are text with the backslash and everything unprintable escaped, on one line.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

import mvccstore

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_F = TypeVar("_F", bound=Callable[..., Any])


def escaped(data: bytes, *, backslash: str = "\\\\") -> str:
    r"""Return bytes as one line of text; `\xNN` for what is not printable.

    >>> print(escaped(b"a\tb\\c\xff\x1b[0m"))
    a\tb\\c\xff\x1b[0m
    """
    text = data.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped_character(character, backslash) for character in text)


def _escaped_character(character: str, backslash: str) -> str:
    if character == "\\":
        return backslash
    if character.isprintable():
        return character
    return _NAMED.get(character) or "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def for_terminal(data: bytes) -> str:
    """Return a value as text of several lines, with what could steer the terminal escaped."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join(c if c in "\n\t" else _escaped_character(c, "\\") for c in text)


def shown_key(key: bytes, coding: str | None) -> str:
    """Return a key as the user writes keys."""
    match coding:
        case "hex":
            return key.hex()
        case "b64":
            return base64.b64encode(key).decode()
        case _:
            return escaped(key)


def json_bytes(name: str, data: bytes) -> dict[str, str]:
    """Return the JSON field for some bytes.

    >>> json_bytes("key", b"jobs/1"), json_bytes("key", b"\\xff")
    ({'key': 'jobs/1'}, {'key_b64': '/w=='})
    """
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_b64": base64.b64encode(data).decode()}


def from_json(name: str, fields: Mapping[str, object]) -> bytes | None:
    """Return the bytes of a JSON field, None if it is absent.

    Raises:
        ValueError: It is there twice, or is not text or base64.
    """
    text, coded = fields.get(name), fields.get(f"{name}_b64")
    if text is not None and coded is not None:
        msg = f"both {name} and {name}_b64 are given"
        raise ValueError(msg)
    if text is None and coded is None:
        return None
    given = text if coded is None else coded
    if not isinstance(given, str):
        msg = f"{name} is not a string"
        raise ValueError(msg)
    return given.encode() if coded is None else decoded(given, "b64")


def decoded(text: str, coding: str | None) -> bytes:
    """Return the bytes that are meant by an argument.

    Raises:
        ValueError: It is not hex or base64.
    """
    match coding:
        case "hex":
            return bytes.fromhex(text)
        case "b64":
            try:
                return base64.b64decode(text, validate=True)
            except binascii.Error as error:
                msg = f"{text[:60]!r} is not base64: {error}"
                raise ValueError(msg) from error
        case _:
            return text.encode("utf-8", "surrogateescape")


def key_of(text: str, coding: str | None) -> bytes:
    """Return the key an argument names, or end with a usage error."""
    try:
        key = decoded(text, coding)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if not key:
        msg = "the key is empty"
        raise click.UsageError(msg)
    return key


def range_of(
    start: str | None, end: str | None, *, coding: str | None, from_key: bool, prefix: bool
) -> mvccstore.KeyRange:
    """Return the keys that arguments name: all, a prefix, those from a key on, or those from START to END."""
    if end is not None and (prefix or from_key):
        msg = "with --prefix or --from-key there is one key; without, START and END"
        raise click.UsageError(msg)
    if prefix and from_key:
        msg = "--prefix and --from-key exclude each other"
        raise click.UsageError(msg)
    if start is None:
        return mvccstore.KeyRange.all()
    try:
        first = decoded(start, coding)
        if from_key:
            return mvccstore.KeyRange(first)
        if end is None:
            return mvccstore.KeyRange.prefix(first)
        last = decoded(end, coding)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if last <= first:
        msg = "END is not after START, so no key can be between them"
        raise click.UsageError(msg)
    return mvccstore.KeyRange(first, last)


def keys_of(key: str, end: str | None, *, coding: str | None, from_key: bool, prefix: bool) -> mvccstore.Keys:
    """Return the keys that arguments name where one argument means exactly that key."""
    if end is None and not from_key and not prefix:
        return key_of(key, coding)
    return range_of(key, end, coding=coding, from_key=from_key, prefix=prefix)


def coding_options(command: _F) -> _F:
    """Give a command `--hex` and `--b64`."""
    command = click.option("--b64", "coding", flag_value="b64", help="Keys are base64, here and in the output.")(
        command
    )
    return click.option(
        "--hex", "coding", flag_value="hex", default=None, help="Keys are hex digits, here and in the output."
    )(command)


def span_options(command: _F) -> _F:
    """Give a command `--prefix` and `--from-key`."""
    command = click.option("--from-key", is_flag=True, help="Every key from this one on.")(command)
    return click.option("--prefix", is_flag=True, help="Every key that begins so.")(command)
