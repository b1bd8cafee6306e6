"""One side of a comparison: a script's steps as calls of an etcd's JSON gateway, and the answers in a form to compare.

By the gateway, as the standard library speaks it: it needs no gRPC library, and a proxy or a `kubectl port-forward`
lets it through. Every etcd since 3.4 serves it beside gRPC.

How watches are read without waiting for nothing: the player writes the first key of the watch and deletes it, and
reads up to the event of that revision. It does so when the script ends; and at once where a watch begins in the
past, so that no later compaction comes before what it reads.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from mvccstore.errors import StoreError
from mvccstore.server.messages import rpc
from mvccstore.testing.contents import as_bytes
from mvccstore.testing.normal import Normal, Version
from mvccstore.testing.workload import CALLS, Request, Script, Step
from mvccstore.types import KeyRange

_RELATIVE = re.compile(r"(now|start)([+-]\d+)?")
_LEASES = frozenset(
    {
        *("PutRequest.lease", "Compare.lease"),
        *(f"Lease{name}Request.ID" for name in ("Grant", "Revoke", "TimeToLive", "KeepAlive")),
    }
)
"""Fields that name a lease."""
_FENCES_MAX = 50
TOO_LATE = "nothing more came in time"
_PATHS = {call: f"/v3/{path}" for call, (path, _) in CALLS.items()}


class RefusedError(StoreError):
    """An etcd cannot be compared with as it is: it has keys, or asks for a user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What of an etcd a comparison may touch."""

    prefix: bytes = b""
    """All keys are below this one; empty for the whole etcd."""
    lease_offset: int = 0
    """What is added to each lease's id, so that it is none of others."""

    @property
    def whole(self) -> dict[str, str]:
        """All keys, as a request has them."""
        if not self.prefix:
            return {"key": _coded(b"\0"), "range_end": _coded(b"\0")}
        return {"key": _coded(self.prefix), "range_end": _coded(self.after)}

    @property
    def after(self) -> bytes:
        """What comes after the last key."""
        return KeyRange.prefix(self.prefix).end or b"\0"

    def moved(self, name: str, key: bytes) -> bytes:
        """Return a key, or the end of a range of them, as it is below the prefix."""
        if not self.prefix or not key:
            return key
        return self.after if name == "range_end" and key == b"\0" else self.prefix + key


class Endpoint:
    """The JSON gateway of an etcd; the connection is kept. One thread at a time may use it.

    Raises:
        ValueError: The URL is not one of `http` or `https`.
    """

    def __init__(self, url: str, timeout: float, ca_file: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            msg = f"{url!r} is not the URL of an etcd, such as http://127.0.0.1:2379"
            raise ValueError(msg)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._host, self._port = parts.hostname, parts.port or 2379
        self._context = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self._timeout = timeout
        self._kept: http.client.HTTPConnection | None = None

    def connection(self) -> http.client.HTTPConnection:
        """Return a new connection, not yet made."""
        if self._context is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)

    def ask(self, verb: str, path: str, body: object = None) -> tuple[int, Any]:
        """Return the status and the body of an answer; a body that is not JSON as text.

        Raises:
            OSError, http.client.HTTPException: There is none.
        """
        if self._kept is None:
            self._kept = self.connection()
        try:
            self._kept.request(verb, path, None if body is None else json.dumps(body))
            answer = self._kept.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        return answer.status, _read(data)

    def close(self) -> None:
        """Hang up."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None


def _read(data: bytes) -> Any:
    try:
        # A streaming call of one answer is one line.
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")


@dataclass(slots=True)
class _Watch:
    """A watch that is open: what it said so far."""

    step: int
    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    fence_key: bytes
    start_revision: int
    sees_puts: bool
    sees_deletes: bool
    events: list[Any] = field(default_factory=list)
    end: Any = None
    """What it was cancelled with, in the form of `Normal`."""


class Player:
    """Plays scripts to one etcd, each from an empty place."""

    def __init__(self, endpoint: Endpoint, place: Place, oldest: Version) -> None:
        self.endpoint = endpoint
        self._place = place
        self._oldest = oldest
        self._watches: list[_Watch] = []
        self._leases: set[int] = set()
        self._start = self._now = 0
        self._normal = Normal(oldest)

    # The place

    def key_count(self) -> int:
        """How many keys there are.

        Raises:
            RefusedError: It does not answer that.
        """
        return int(self._must("range", {**self._place.whole, "count_only": True}).get("count", 0))

    def lease_ids(self) -> list[int]:
        """The leases that there are, whoever's."""
        return [int(lease["ID"]) for lease in self._must("leases", {}).get("leases", ())]

    def clear(self) -> None:
        """Delete the place's keys, and the leases that were granted here."""
        for watch in self._watches:
            watch.response.close()
            watch.connection.close()
        self._watches.clear()
        for lease in sorted(self._leases):
            self._ask("revoke", {"ID": lease})
        self._leases.clear()
        self._must("delete", self._place.whole)

    def erase(self, is_owned: Callable[[int], bool]) -> None:
        """Delete the place's keys, and the leases that may be ended."""
        self._leases.update(filter(is_owned, self.lease_ids()))
        self.clear()

    def begin(self, script: Script) -> None:
        """Make the place empty; what is played from now on counts from here."""
        self.clear()
        self._leases.update(self._place.lease_offset + lease for lease in leases_of(script) if lease)
        # The newest revision is nothing's then, on both sides: neither compacted nor with an event.
        key = {"key": _coded(self._place.prefix + b"\0")}
        self._must("put", key)
        self._start = self._now = int(self._must("delete", key)["header"]["revision"])
        self._normal = Normal(self._oldest, self._start)

    def compact(self) -> None:
        """Compact what is there: so that it makes no difference whether something was before."""
        self.begin(())
        self._must("compact", {"revision": self._now})

    def _must(self, call: str, body: Mapping[str, Any]) -> dict[str, Any]:
        status, answer = self._ask(call, body)
        if status != http.client.OK or not isinstance(answer, dict):
            said = answer.get("message", answer) if isinstance(answer, dict) else answer
            msg = f"{self.endpoint.url} says no to a {call}: {status} {said}"
            raise RefusedError(msg)
        return answer

    def _ask(self, call: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        return self.endpoint.ask("POST", _PATHS[call], body)

    # Steps

    def play(self, number: int, step: Step) -> Any:
        """Play a step and return its answer as data; a connection that breaks is an answer, too."""
        body = self.body(step)
        try:
            if step.call == "watch":
                return self._open(number, body)
            return self._form(step, *self._ask(step.call, body))
        except (OSError, http.client.HTTPException) as error:
            return {"broken": type(error).__name__}

    def finish(self) -> dict[int, Any]:
        """Return what each watch saw, by the number of its step."""
        for watch in self._watches:
            self._read_to_fence(watch)
        return {
            watch.step: {"events": watch.events, **({} if watch.end is None else {"end": watch.end})}
            for watch in self._watches
        }

    def _form(self, step: Step, status: int, answer: Any) -> Any:
        if status != http.client.OK:
            return {"status": status, **_error(answer)}
        if step.call == "keep_alive" and isinstance(answer, dict):
            if "error" in answer:
                return {"error": _error(answer["error"])}
            answer = answer.get("result", answer)
        if isinstance(answer, dict):
            self._now = int(answer.get("header", {}).get("revision", self._now))
            if step.call == "grant" and not step.request.get("ID"):
                self._leases.add(int(answer["ID"]))
                self._normal.names.add("lease", int(answer["ID"]))
        return {"ok": self._normal.json(answer, _ANSWERS[step.call])}

    # Watches

    def _open(self, number: int, body: dict[str, Any]) -> Any:
        connection = self.endpoint.connection()
        try:
            connection.request("POST", _PATHS["watch"], json.dumps({"create_request": body}))
            response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        filters = body.get("filters", ())
        watch = _Watch(
            number,
            connection,
            response,
            fence_key=base64.b64decode(body.get("key", "")) or b"\0",
            start_revision=int(body.get("start_revision", 0)),
            sees_puts="NOPUT" not in filters,
            sees_deletes="NODELETE" not in filters,
        )
        self._watches.append(watch)
        if response.status != http.client.OK:
            watch.end = {"status": response.status, **_error(_read(response.read()))}
            return watch.end
        created = self._next(watch)
        if 0 < watch.start_revision <= self._now:
            self._read_to_fence(watch)
        return created

    def _next(self, watch: _Watch) -> Any:
        """Read a response of a watch, and return it as data."""
        line = watch.response.readline()
        if not line:
            watch.end = "the stream ended"
            return watch.end
        value = json.loads(line)
        if "result" not in value:
            watch.end = {"error": _error(value.get("error"))}
            return watch.end
        # The header is that of the moment, and events may come in one response or in several.
        answer = {name: member for name, member in value["result"].items() if name != "header"}
        found = self._normal.json(answer, _ANSWERS["watch"])
        watch.events += found.pop("events", [])
        found.pop("fragment", None)
        if answer.get("canceled"):
            watch.end = found
        return found

    def _read_to_fence(self, watch: _Watch) -> None:
        if not (watch.sees_puts or watch.sees_deletes):
            return
        try:
            fence = self._fence(watch)
            while watch.end is None and not any(
                event["kv"]["mod_revision"] == fence for event in watch.events if "kv" in event
            ):
                self._next(watch)
        except TimeoutError:
            watch.end = TOO_LATE
        except (OSError, http.client.HTTPException) as error:
            watch.end = {"broken": type(error).__name__}

    def _fence(self, watch: _Watch) -> str:
        """Write what the watch will see, and return the revision as `Normal` has it."""
        key = {"key": _coded(watch.fence_key)}
        for _ in range(_FENCES_MAX):
            revisions = [int(self._must(call, key)["header"]["revision"]) for call in ("put", "delete")]
            self._now = revisions[1]
            seen = revisions[1 if watch.sees_deletes else 0]
            if seen >= watch.start_revision:
                return f'"start{seen - self._start:+}"'
        msg = f"a watch from revision {watch.start_revision} is too far in the future to be compared"
        raise RefusedError(msg)

    # Requests

    def body(self, step: Step) -> dict[str, Any]:
        """Return the body of a step's request as this etcd is sent it now.

        Raises:
            ValueError: The request has a field that there is not, or one of another type.
        """
        return filled(step, self._place, self._start, self._now)


def filled(step: Step, place: Place, start: int, now: int) -> dict[str, Any]:
    """Return the body of a step's request, as the gateway takes it.

    Args:
        step: The step.
        place: Where its keys and leases are.
        start: The revision at which the script began; what is before it is not asked for.
        now: The newest revision.

    Raises:
        ValueError: The request has a field that there is not, or one of another type.
    """
    return _Filling(place, start, now).fill(step.request, CALLS[step.call][1].DESCRIPTOR)


@dataclass(frozen=True, slots=True)
class _Filling:
    place: Place
    start: int
    now: int

    def fill(self, request: Request, descriptor: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in request.items():
            member = descriptor.fields_by_name.get(name)
            if member is None:
                msg = f"{descriptor.name} has no field {name!r}"
                raise ValueError(msg)
            if member.message_type is None:
                found[name] = self._scalar(f"{descriptor.name}.{name}", member, value)
            elif isinstance(value, list | tuple):
                found[name] = [self.fill(each, member.message_type) for each in value]
            else:
                found[name] = self.fill(value, member.message_type)
        return found

    def _scalar(self, path: str, member: Any, value: Any) -> Any:
        if member.type == member.TYPE_BYTES:
            data = as_bytes(value)
            return _coded(self.place.moved(member.name, data) if member.name in {"key", "range_end"} else data)
        if isinstance(value, str) and (relative := _RELATIVE.fullmatch(value)):
            # At the start is where nothing is; before it is what other scripts did.
            least = self.start + (path == "WatchCreateRequest.start_revision")
            return max((self.now if relative[1] == "now" else self.start) + int(relative[2] or 0), least)
        return self.place.lease_offset + value if value and path in _LEASES else value


_ANSWERS: dict[str, Any] = {
    "put": rpc.PutResponse.DESCRIPTOR,
    "range": rpc.RangeResponse.DESCRIPTOR,
    "delete": rpc.DeleteRangeResponse.DESCRIPTOR,
    "txn": rpc.TxnResponse.DESCRIPTOR,
    "compact": rpc.CompactionResponse.DESCRIPTOR,
    "grant": rpc.LeaseGrantResponse.DESCRIPTOR,
    "revoke": rpc.LeaseRevokeResponse.DESCRIPTOR,
    "time_to_live": rpc.LeaseTimeToLiveResponse.DESCRIPTOR,
    "keep_alive": rpc.LeaseKeepAliveResponse.DESCRIPTOR,
    "leases": rpc.LeaseLeasesResponse.DESCRIPTOR,
    "watch": rpc.WatchResponse.DESCRIPTOR,
}


def _coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _error(answer: Any) -> dict[str, Any]:
    """Return what an error says that all versions say: its text, and the code by one of its names."""
    if not isinstance(answer, dict):
        return {"message": answer}
    return {"code": answer.get("code", answer.get("grpc_code")), "message": answer.get("message")}


def leases_of(script: Script) -> set[int]:
    """Return the leases that a script speaks of."""
    found: set[int] = set()

    def look(value: Any, name: str = "") -> None:
        if isinstance(value, Mapping):
            for inner, member in value.items():
                look(member, inner)
        elif isinstance(value, list | tuple):
            for member in value:
                look(member)
        elif name in {"ID", "lease"} and isinstance(value, int):
            found.add(value)

    for step in script:
        look(step.request)
    return found
