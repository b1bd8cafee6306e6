"""A cassette: what was asked of an etcd and what it answered, a line of JSON for each thing that happened.

The first line is the header, `{"cassette": 1, "secrets": false}`. Each other line belongs to a call, by its number:

    {"call":1,"ms":0,"method":"/etcdserverpb.KV/Put"}
    {"call":1,"ms":0,"request":{"key":"YQ==","value":"MQ=="}}
    {"call":1,"ms":2,"answer":{"header":{"revision":"2"}}}
    {"call":1,"ms":2,"status":"OK"}

Beside these, `requests_end` says that the client has closed its half, and `cancelled` that it went. `ms` counts from
the beginning of the recording. Messages are protobuf's JSON; one that it cannot hold exactly is base64, in
`request_b64` or `answer_b64`. Metadata is never written, so no token of a call is. Passwords, and tokens that are
answered, are replaced, unless they were asked for. A snapshot that a program took holds what the etcd held.

Lines are in the order in which they happened. A last line without its end was being written when the recorder was
killed, and is left out; any other line that is none is an error.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError

from mvccstore.server.messages import METHODS
from mvccstore.server.transport.status import Code

VERSION = 1
REDACTED = "redacted"
_SECRETS = ("password", "hashedPassword", "token")
_KINDS = ("request", "answer", "requests_end", "status", "cancelled")


class CassetteError(ValueError):
    """A file is no cassette, or is damaged."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened in a call."""

    kind: str
    """`request`, `answer`, `requests_end`, `status` or `cancelled`."""
    line: int
    message: bytes = b""
    """Encoded; of a request or an answer."""
    code: Code = Code.OK
    text: str = ""
    """Of the status."""


@dataclass(slots=True)
class Take:
    """One call as it was recorded."""

    number: int
    method: str
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Cassette:
    """What a file holds."""

    path: Path
    takes: tuple[Take, ...]
    has_secrets: bool
    is_torn: bool
    """Whether the last line was left out, as it has no end."""


def redact(method: str, message: bytes, *, is_request: bool) -> bytes:
    """Return a message of the auth service without its passwords and tokens; others as they are."""
    if not method.startswith("/etcdserverpb.Auth/"):
        return message
    kind = METHODS[method].request if is_request else METHODS[method].response
    try:
        parsed = kind.FromString(message)
    except DecodeError:
        return b""
    for name in _SECRETS:
        if name in kind.DESCRIPTOR.fields_by_name and getattr(parsed, name):
            setattr(parsed, name, REDACTED)
    # A field that is not known here may be another secret.
    parsed.DiscardUnknownFields()  # type: ignore[attr-defined]
    return parsed.SerializeToString()


class CassetteWriter:
    """Writes a new cassette. Each line is the system's when a call of this returns, and outlives the process."""

    def __init__(self, path: Path, *, has_secrets: bool = False) -> None:
        self._has_secrets = has_secrets
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._calls = 0
        self._write({"cassette": VERSION, "secrets": has_secrets})

    def begin(self, method: str, ms: int) -> int:
        """Note that a call begins; return its number."""
        self._calls += 1
        self._write({"call": self._calls, "ms": ms, "method": method})
        return self._calls

    def message(self, call: int, ms: int, method: str, message: bytes, *, is_request: bool) -> None:
        """Note a request or an answer, encoded."""
        if not self._has_secrets:
            message = redact(method, message, is_request=is_request)
        name = "request" if is_request else "answer"
        kind = METHODS[method].request if is_request else METHODS[method].response
        shown: object = None
        try:
            parsed = kind.FromString(message)
            if parsed.SerializeToString() == message:
                shown = MessageToDict(parsed, preserving_proto_field_name=True)
        except DecodeError:
            shown = None
        if shown is None:
            name, shown = f"{name}_b64", base64.b64encode(message).decode()
        self._write({"call": call, "ms": ms, name: shown})

    def note(self, call: int, ms: int, kind: str) -> None:
        """Note `requests_end` or `cancelled`."""
        self._write({"call": call, "ms": ms, kind: True})

    def status(self, call: int, ms: int, code: Code, text: str) -> None:
        """Note how a call ended."""
        self._write({"call": call, "ms": ms, "status": code.name} | ({"message": text} if text else {}))

    def _write(self, line: dict[str, Any]) -> None:
        if not self._file.closed:
            self._file.write(json.dumps(line, separators=(",", ":"), ensure_ascii=True) + "\n")
            self._file.flush()

    def close(self) -> None:
        """End it. What comes later is not written."""
        self._file.close()


def read(path: str | Path) -> Cassette:
    """Return what a file holds. O(its size), in memory.

    Raises:
        CassetteError: It is no cassette, or is damaged; the message names the line.
        OSError: It cannot be read.
    """
    path = Path(path)
    *lines, rest = path.read_bytes().split(b"\n")
    if not lines:
        msg = f"{path} is no cassette: it has no header"
        raise CassetteError(msg)
    takes: dict[int, Take] = {}
    has_secrets = False
    for number, line in enumerate(lines, 1):
        try:
            parsed = json.loads(line)
            if number == 1:
                has_secrets = _header(parsed)
            elif "method" in parsed:
                _begin(takes, parsed)
            else:
                take = takes[parsed["call"]]
                take.steps.append(_step(take.method, parsed, number))
        except (ValueError, KeyError, TypeError, ParseError) as error:
            msg = f"{path}, line {number}: {error if str(error) else 'cannot be understood'}"
            raise CassetteError(msg) from error
    return Cassette(path, tuple(takes.values()), has_secrets, bool(rest))


def _header(parsed: Any) -> bool:
    if not isinstance(parsed, dict) or "cassette" not in parsed:
        msg = "is not the header of a cassette"
        raise ValueError(msg)
    if parsed["cassette"] != VERSION:
        msg = f"version {parsed['cassette']!r} of cassettes is not known, {VERSION} is"
        raise ValueError(msg)
    return bool(parsed.get("secrets"))


def _begin(takes: dict[int, Take], parsed: Any) -> None:
    if parsed["method"] not in METHODS:
        msg = f"no method {parsed['method']!r}"
        raise ValueError(msg)
    if parsed["call"] in takes:
        msg = f"call {parsed['call']} begins twice"
        raise ValueError(msg)
    takes[parsed["call"]] = Take(parsed["call"], parsed["method"])


def _step(method: str, parsed: dict[str, Any], line: int) -> Step:
    for kind, message in (("request", METHODS[method].request), ("answer", METHODS[method].response)):
        if kind in parsed:
            return Step(kind, line, ParseDict(parsed[kind], message()).SerializeToString())
        if f"{kind}_b64" in parsed:
            return Step(kind, line, base64.b64decode(parsed[f"{kind}_b64"], validate=True))
    if "status" in parsed:
        return Step("status", line, code=Code[parsed["status"]], text=parsed.get("message", ""))
    for kind in _KINDS:
        if kind in parsed:
            return Step(kind, line)
    msg = "has nothing that is known"
    raise ValueError(msg)
