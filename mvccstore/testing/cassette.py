"""A cassette: a file with the calls that programs made to an etcd, for people, diffs and `Replay` to read.

JSON lines. The first says which format it is, and what the etcd was:

    {"mvccstore_cassette": 1, "etcd": "3.6.16"}

A unary call is one line, written when it has ended; `at` is when it began, in seconds since the recording began:

    {"call": 1, "at": 0.012, "took": 0.001, "method": "etcdserverpb.KV/Put", "request": {...}, "answer": {...}}
    {"call": 2, "at": 0.02, "took": 0.001, "method": ..., "request": {...}, "status": "NOT_FOUND", "message": "..."}

A stream has a line for its opening, each message, the end of its requests, and its end, in the order of their coming;
so a file is whole up to its last line however the recording ended, and memory is needed for a message at a time:

    {"call": 3, "at": 0.1, "method": "etcdserverpb.Watch/Watch", "stream": true}
    {"call": 3, "at": 0.1, "request": {"create_request": {"key": "a"}}}
    {"call": 3, "at": 0.2, "answer": {...}}
    {"call": 3, "at": 0.3, "half_closed": true}
    {"call": 3, "at": 0.4, "status": "OK"}

A call that no etcd has ended says who did: `"ended_by": "client"`, `"upstream"` (its connection broke) or `"recorder"`.
Messages are as `plain` has them. Whose answers those are is said once, and again when it changes; headers of answers
behind that line leave it out:

    {"header": {"cluster_id": 14841639068965178418, "member_id": 10276657743932975437, "raft_term": 2}}

`answer_b64` beside or instead of `answer` has the exact bytes, where those are not
what protobuf makes of the message: of methods and fields that this package does not know. A message that was too
large to be kept is `request_left_out` or `answer_left_out`, with its size.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from google.protobuf.message import DecodeError, Message

from mvccstore.server.messages import METHODS
from mvccstore.server.transport.status import Code
from mvccstore.testing.plain import from_plain, to_plain
from mvccstore.testing.secrets import redacted

FORMAT = 1
_MARK = "mvccstore_cassette"
_DIGITS = 6
_IDS = ("cluster_id", "member_id", "raft_term")

Direction = Literal["request", "answer"]
EndedBy = Literal["client", "upstream", "recorder"]


class CassetteError(ValueError):
    """A file is no cassette, or not one that can be read. `line` counts from 1; 0 is the file as a whole."""

    def __init__(self, path: str, line: int, problem: str) -> None:
        super().__init__(path, line, problem)
        self.path, self.line, self.problem = path, line, problem

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.problem}" if self.line else f"{self.path}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Part:
    """Something that came in a call."""

    at: float
    """When, in seconds since the recording began."""
    line: int
    kind: Literal["request", "half_close", "answer"]
    encoded: bytes = b""
    left_out: int = 0
    """The size of a message that is not there."""


@dataclass(slots=True)
class RecordedCall:
    """A call, as a cassette has it."""

    number: int
    path: str
    """As on the wire: `/etcdserverpb.KV/Put`."""
    line: int
    began: float
    is_stream: bool
    metadata: dict[str, str] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    ended: float | None = None
    """None if the recording ends before."""
    code: Code = Code.OK
    message: str = ""
    ended_by: EndedBy | None = "recorder"
    """Who ended it, if that was no etcd by its status."""

    @property
    def requests(self) -> list[bytes]:
        """Its requests, encoded."""
        return [part.encoded for part in self.parts if part.kind == "request"]

    @property
    def answers(self) -> list[Part]:
        """Its answers."""
        return [part for part in self.parts if part.kind == "answer"]


@dataclass(frozen=True, slots=True)
class Cassette:
    """A file that was read."""

    path: str
    etcd: str
    """The release of the etcd, such as `3.6.16`; empty if it did not say."""
    calls: tuple[RecordedCall, ...]
    """In the order of the file's lines."""


# Writing


class CassetteWriter:
    """Writes a cassette as things come. Each line is handed to the system at once.

    Args:
        now: Seconds, from anywhere.

    Raises:
        FileExistsError: The file is there, and not to be replaced.
        OSError: It cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        etcd: str,
        now: Callable[[], float],
        *,
        overwrite: bool = False,
        keeps_secrets: bool = False,
    ) -> None:
        self._file: BinaryIO = Path(path).open("wb" if overwrite else "xb")  # noqa: SIM115 - closed by `close`
        self._now = now
        self._began = now()
        self.keeps_secrets = keeps_secrets
        self.calls = 0
        """How many have begun."""
        self._ids: dict[str, int] = {}
        self.write({_MARK: FORMAT, "etcd": etcd})

    def seconds(self) -> float:
        """Return how long the recording has gone on."""
        return round(self._now() - self._began, _DIGITS)

    def begin(self, path: str, metadata: dict[str, str]) -> CallWriter:
        """Note that a call has begun."""
        self.calls += 1
        return CallWriter(self, self.calls, path, metadata)

    def write(self, line: dict[str, Any]) -> None:
        """Write a line. After `close` nothing more is written."""
        if not self._file.closed:
            self._file.write(json.dumps(line, ensure_ascii=False).encode())
            self._file.write(b"\n")
            self._file.flush()

    def shorten(self, answer: dict[str, Any]) -> None:
        """Take out of the header of an answer what the headers before had, too."""
        header = answer.get("header")
        if not isinstance(header, dict):
            return
        ids = {name: header[name] for name in _IDS if name in header}
        if len(ids) < len(_IDS):
            header |= {"cluster_id": ids.get("cluster_id", 0)}  # which tells the reader that nothing was left out
            return
        if ids != self._ids:
            self._ids = ids
            self.write({"header": ids})
        for name in _IDS:
            del header[name]

    def close(self) -> None:
        """End the file."""
        self._file.close()


class CallWriter:
    """Writes one call. After its end nothing of it is written."""

    def __init__(self, cassette: CassetteWriter, number: int, path: str, metadata: dict[str, str]) -> None:
        self._cassette = cassette
        self._number = number
        self._path = path
        self._types = METHODS.get(path)
        self._began = cassette.seconds()
        self._is_done = False
        self._line: dict[str, Any] | None = {"method": path.removeprefix("/")}
        """What is to be the line of a unary call; None of a stream."""
        if metadata:
            self._line["metadata"] = metadata
        if self._types is None or self._types.client_streaming or self._types.server_streaming:
            self._open_stream()

    @property
    def path(self) -> str:
        """The method's."""
        return self._path

    def _open_stream(self) -> None:
        assert self._line is not None
        line, self._line = self._line, None
        messages = {name: line.pop(name) for name in list(line) if name.startswith(("request", "answer"))}
        self._cassette.write({"call": self._number, "at": self._began, **line, "stream": True})
        if messages:
            self._write(messages)

    def _write(self, what: dict[str, Any]) -> None:
        if self._line is not None:
            if not self._line.keys().isdisjoint(what):
                self._open_stream()  # more messages than a unary call has
                self._write(what)
                return
            self._line.update(what)
        else:
            self._cassette.write({"call": self._number, "at": self._cassette.seconds(), **what})

    def message(self, direction: Direction, encoded: bytes) -> None:
        """Note a message that has come."""
        if not self._is_done:
            self._write(self._shown(direction, encoded))

    def _shown(self, direction: Direction, encoded: bytes) -> dict[str, Any]:
        types = self._types
        message_type = None if types is None else types.request if direction == "request" else types.response
        try:
            message = None if message_type is None else message_type.FromString(encoded)
        except DecodeError:
            message = None
        if message is None:
            return {f"{direction}_b64": b64encode(encoded).decode()}
        told = message if self._cassette.keeps_secrets else redacted(message)
        plain = to_plain(told)
        shown: dict[str, Any] = {direction: plain}
        if told is message:
            message.DiscardUnknownFields()
            if message.SerializeToString(deterministic=True) != encoded:
                shown[f"{direction}_b64"] = b64encode(encoded).decode()
        self._cassette.shorten(plain)
        return shown

    def left_out(self, direction: Direction, size: int) -> None:
        """Note a message that was too large to be kept."""
        if not self._is_done:
            self._write({f"{direction}_left_out": size})

    def half_close(self) -> None:
        """Note that no more requests come."""
        if not self._is_done and self._line is None:
            self._write({"half_closed": True})

    def end(self, code: int, message: str) -> None:
        """Note the status."""
        names = {each.value: each.name for each in Code}
        self._end({"status": names.get(code, code)} | ({"message": message} if message else {}))

    def end_by(self, who: EndedBy) -> None:
        """Note that it has ended without a status."""
        self._end({"ended_by": who})

    def _end(self, how: dict[str, Any]) -> None:
        if self._is_done:
            return
        self._is_done = True
        line, cassette = self._line, self._cassette
        if line is None:
            self._write(how)
            return
        took = round(cassette.seconds() - self._began, _DIGITS)
        if how == {"status": "OK"} and not line.keys().isdisjoint({"answer", "answer_b64", "answer_left_out"}):
            how = {}
        cassette.write({"call": self._number, "at": self._began, "took": took, **line, **how})


# Reading


def read_cassette(path: str | os.PathLike[str]) -> Cassette:
    """Read a cassette.

    Raises:
        CassetteError: It is none, is damaged, or has a newer format.
        OSError: The file cannot be read.

    Cost: all of it is held in memory.
    """
    return _Reader(os.fspath(path)).read()


class _Reader:
    def __init__(self, path: str) -> None:
        self._path = path
        self._line = 0
        self._calls: dict[int, RecordedCall] = {}
        self._ids: dict[str, int] = {}

    def _refuse(self, problem: str) -> NoReturn:
        raise CassetteError(self._path, self._line, problem) from None

    def read(self) -> Cassette:
        etcd: str | None = None
        with Path(self._path).open("rb") as file:
            for raw in file:
                self._line += 1
                if not raw.strip():
                    continue
                line = self._parse(raw)
                if etcd is None:
                    etcd = self._take_head(line)
                else:
                    self._take_line(line)
        if etcd is None:
            self._line = 0
            self._refuse("the file is empty")
        return Cassette(self._path, etcd, tuple(self._calls.values()))

    def _parse(self, raw: bytes) -> dict[str, Any]:
        try:
            line = json.loads(raw)
        except ValueError as error:
            self._refuse(f"not JSON: {error}")
        if not isinstance(line, dict):
            self._refuse("no JSON object")
        return line

    def _take_head(self, line: dict[str, Any]) -> str:
        number = line.get(_MARK)
        if type(number) is not int or number < 1:
            self._refuse(f"this is no cassette: the first line has no {_MARK}")
        if number > FORMAT:
            raise CassetteError(
                self._path, 0, f"format {number} is newer than {FORMAT}, the newest that this mvccstore reads"
            )
        return str(self._get(line, "etcd", str, ""))

    def _get(self, line: dict[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = line.get(name, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._refuse(f"{name} is {'missing' if name not in line else 'not what it should be'}")
        return value

    def _take_line(self, line: dict[str, Any]) -> None:
        if "header" in line:
            self._ids = self._get(line, "header", dict)
            return
        number = self._get(line, "call", int)
        at = float(self._get(line, "at", (int, float)))
        if "method" in line:
            if number in self._calls:
                self._refuse(f"call {number} begins twice")
            path = "/" + self._get(line, "method", str)
            call = RecordedCall(number, path, self._line, at, self._get(line, "stream", bool, default=False))
            call.metadata = self._get(line, "metadata", dict, {})
            self._calls[number] = call
        else:
            found = self._calls.get(number)
            if found is None or not found.is_stream:
                self._refuse(f"call {number} has not begun")
            call = found
        end = at + float(self._get(line, "took", (int, float), 0.0))
        self._take_messages(call, line, at, end)
        if "half_closed" in line:
            call.parts.append(Part(at, self._line, "half_close"))
        if not call.is_stream or "status" in line or "ended_by" in line:
            self._take_end(call, line, end)

    def _take_messages(self, call: RecordedCall, line: dict[str, Any], at: float, end: float) -> None:
        types = METHODS.get(call.path)
        for direction, when, message_type in (
            ("request", at, types and types.request),
            ("answer", end, types and types.response),
        ):
            kind: Direction = "request" if direction == "request" else "answer"
            if f"{kind}_left_out" in line:
                size = self._get(line, f"{kind}_left_out", int)
                call.parts.append(Part(when, self._line, kind, left_out=size))
            elif f"{kind}_b64" in line or kind in line:
                encoded = self._encoded(line, kind, message_type)
                call.parts.append(Part(when, self._line, kind, encoded))

    def _encoded(self, line: dict[str, Any], name: str, message_type: type[Message] | None) -> bytes:
        try:
            if f"{name}_b64" in line:
                return b64decode(self._get(line, f"{name}_b64", str), validate=True)
            if message_type is None:
                self._refuse(f"{name} is of a method that is not known")
            header = line[name].get("header") if isinstance(line[name], dict) else None
            if isinstance(header, dict) and "cluster_id" not in header:
                header |= self._ids
            return from_plain(message_type, line[name]).SerializeToString(deterministic=True)
        except CassetteError:
            raise
        except ValueError as error:
            self._refuse(f"{name}: {error}")

    def _take_end(self, call: RecordedCall, line: dict[str, Any], at: float) -> None:
        if call.ended is not None:
            self._refuse(f"call {call.number} ends twice")
        call.ended = at
        ended_by = line.get("ended_by")
        if ended_by not in {None, "client", "upstream", "recorder"}:
            self._refuse(f"ended_by is {ended_by!r}")
        call.ended_by = ended_by
        if ended_by == "upstream":
            call.code, call.message = Code.UNAVAILABLE, "the connection to the upstream broke"
        status = self._get(line, "status", (str, int), "OK")
        try:
            call.code = call.code if "status" not in line else Code[status] if isinstance(status, str) else Code(status)
        except (KeyError, ValueError):
            self._refuse(f"there is no status {status!r}")
        call.message = self._get(line, "message", str, call.message)
