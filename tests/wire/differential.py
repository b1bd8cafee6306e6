"""The same operations played to two servers, and their answers compared field by field.

    with Differential(Side("etcd", etcd_endpoint, (3, 6, 0)), Side("ours", our_endpoint, (3, 6, 0))) as pair:
        pair.play(
            Unary("/etcdserverpb.KV/Put", rpc.PutRequest(key=b"a")),
            Post("/v3/kv/range", {"key": "YQ=="}),
            Streaming("/etcdserverpb.Watch/Watch", (Send(create), Take(1), Do(put), Take(1))),
        )

An operation is a value, played as a whole to the one server and then to the other, so both go through the same
states. Its answer is data: what was answered or refused, in the form of `normal`, where the table of what may
differ is. The first difference is raised as `Difference`, an assertion that says where and shows both answers.

Requests that speak of what a server chose (a lease's id, a token) are functions of its `Names`:
`Unary(REVOKE, lambda names: rpc.LeaseRevokeRequest(ID=names.value("lease", 1)))`. A key that was put with a lease
whose id the server chose is hashed with that id: HashKV differs from then on, until it is compacted away.
"""

from __future__ import annotations

import http.client
import json
import pprint
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar, assert_never

from google.protobuf.message import Message

from mvccstore.server.messages import METHODS, election, lock, rpc
from mvccstore.testing.normal import Names, Normal, Version, first_difference
from tests.wire.client import Client, Endpoint, HttpAnswer, Lines, Metadata, RpcFailure, Stream, StreamEnd

T = TypeVar("T")
Request = Message | bytes | Callable[[Names], Message]
Body = dict[str, Any] | bytes | Callable[[Names], dict[str, Any]]

SECONDS = 10.0
"""How long a script waits for each response."""

_GATEWAY = {
    "KV": {name: f"kv/{name.lower()}" for name in ("Range", "Put", "DeleteRange", "Txn")}
    | {"Compact": "kv/compaction"},
    "Watch": {"Watch": "watch"},
    "Lease": {
        f"Lease{name}": f"lease/{name.lower()}" for name in ("Grant", "Revoke", "KeepAlive", "TimeToLive", "Leases")
    },
    "Cluster": {
        f"Member{name}": f"cluster/member/{name.lower()}" for name in ("Add", "Remove", "Update", "List", "Promote")
    },
    "Maintenance": {
        name: f"maintenance/{name.lower()}"
        for name in ("Alarm", "Status", "Defragment", "Hash", "HashKV", "Snapshot", "Downgrade")
    }
    | {"MoveLeader": "maintenance/transfer-leadership"},
    "Auth": {name: f"auth/{name.removeprefix('Auth').lower()}" for name in ("AuthEnable", "AuthDisable", "AuthStatus")}
    | {"Authenticate": "auth/authenticate"}
    | {f"User{name}": f"auth/user/{name.lower()}" for name in ("Add", "Get", "List", "Delete")}
    | {
        "UserChangePassword": "auth/user/changepw",
        "UserGrantRole": "auth/user/grant",
        "UserRevokeRole": "auth/user/revoke",
    }
    | {f"Role{name}": f"auth/role/{name.lower()}" for name in ("Add", "Get", "List", "Delete")}
    | {"RoleGrantPermission": "auth/role/grant", "RoleRevokePermission": "auth/role/revoke"},
}
GATEWAY = MappingProxyType(
    {
        **{
            f"/v3/{path}": f"/etcdserverpb.{service}/{method}"
            for service, methods in _GATEWAY.items()
            for method, path in methods.items()
        },
        **{
            f"/v3/kv/lease/{name.lower()}": f"/etcdserverpb.Lease/Lease{name}"
            for name in ("Revoke", "TimeToLive", "Leases")
        },
        **{f"/v3/lock/{name.lower()}": f"/v3lockpb.Lock/{name}" for name in ("Lock", "Unlock")},
        **{
            f"/v3/election/{name.lower()}": f"/v3electionpb.Election/{name}"
            for name in ("Campaign", "Proclaim", "Leader", "Observe", "Resign")
        },
    }
)
"""The method of each path of the JSON gateway."""

HEADERS = (
    *("content-type", "grpc-metadata-content-type", "www-authenticate", "allow"),
    *(f"access-control-allow-{what}" for what in ("origin", "methods", "headers")),
)
"""The HTTP headers that are compared."""


# Operations


@dataclass(frozen=True, slots=True)
class Unary:
    """A gRPC call with one answer.

    `is_free_text`: the error's text is the server's own affair (its parser's), only that there is one counts.
    """

    method: str
    request: Request
    metadata: Metadata | Callable[[Names], Metadata] = ()
    is_free_text: bool = False


@dataclass(frozen=True, slots=True)
class Post:
    """A call of the JSON gateway with one answer; `body` as JSON, or bytes as they are."""

    path: str
    body: Body = field(default_factory=dict)
    headers: dict[str, str] | Callable[[Names], dict[str, str]] | None = None
    is_free_text: bool = False


@dataclass(frozen=True, slots=True)
class Http:
    """Any other HTTP request."""

    verb: str
    path: str
    body: bytes = b""
    headers: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Streaming:
    """A streaming gRPC call: its steps, and at the end it is broken off."""

    method: str
    steps: Sequence[Step]
    metadata: Metadata | Callable[[Names], Metadata] = ()
    timeout: float = SECONDS


@dataclass(frozen=True, slots=True)
class StreamingPost:
    """A streaming call of the JSON gateway; its steps are `Take`, `TakeEvents`, `Do` and `End`."""

    path: str
    body: Body
    steps: Sequence[Step]
    headers: dict[str, str] | Callable[[Names], dict[str, str]] | None = None


Operation = Unary | Post | Http | Streaming | StreamingPost


# Steps of a stream


@dataclass(frozen=True, slots=True)
class Send:
    """Send one request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Take:
    """Wait for so many responses; fewer, if the stream ends or nothing comes, are shown with the reason.

    Responses of a watch are compared per watcher, each one's in order, and the order of the `created` ones: how
    the watchers of a stream are interleaved is left to the server.
    """

    number: int


@dataclass(frozen=True, slots=True)
class TakeEvents:
    """Wait for responses until so many events came; only the events are compared, per watcher.

    For where the server is free to cut: a watcher that catches up while others write.
    """

    number: int


@dataclass(frozen=True, slots=True)
class TakeCreated:
    """Wait for so many `created`, which are compared; what else comes meanwhile is kept for `TakeWatches`."""

    number: int


@dataclass(frozen=True, slots=True)
class TakeWatches:
    """Wait until each watch that was created is up to date, or cancelled.

    `backs`: By the order in which they were created, how many revisions before the newest one that this server has
    shown is the last that the watch is to see. Events are compared per watch, not how they were cut into responses.
    """

    backs: Sequence[int]


@dataclass(frozen=True, slots=True)
class Do:
    """Play another operation while the stream is open."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Fence:
    """Ask a watch stream for a watcher that cannot be, and take all that comes before the refusal.

    For showing that something brought no response, without waiting for none.
    """


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Say that no more requests will come."""


@dataclass(frozen=True, slots=True)
class End:
    """Wait for the server to end the stream, taking what still comes, and compare the status."""


Step = Send | Take | TakeEvents | TakeCreated | TakeWatches | Do | Fence | HalfClose | End


# Cases


@dataclass(frozen=True, slots=True)
class Case:
    """A row of a table of cases: operations for a fresh pair of servers, and the oldest etcd that answers so."""

    name: str
    operations: Sequence[Operation]
    since: Version = (3, 4, 0)

    def __str__(self) -> str:
        return self.name


def cases_for(version: Version, cases: Iterable[Case]) -> list[Case]:
    """Return the cases that an etcd of this version can judge."""
    return [case for case in cases if case.since <= version]


# Playing


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two servers."""

    name: str
    endpoint: Endpoint
    version: Version


class Player:
    """Plays operations to one server."""

    def __init__(self, endpoint: Endpoint, oldest: Version) -> None:
        self.client = Client(endpoint)
        self.normal = Normal(oldest)
        self.revision = 0
        """The newest that a unary gRPC call was answered with."""

    @property
    def names(self) -> Names:
        """What the server chose so far."""
        return self.normal.names

    def play(self, operation: Operation) -> Any:
        """Play one operation and return its answer as data; a connection that breaks is an answer too."""
        try:
            return self._play(operation)
        except (OSError, http.client.HTTPException) as error:
            return {"broken": type(error).__name__}

    def _play(self, operation: Operation) -> Any:
        match operation:
            case Unary():
                return self._unary(operation)
            case Post(path, body, headers):
                request = self._body(body)
                answer = self.client.post(path, request, self._own(headers))
                return self._http(path, answer, request, is_free_text=operation.is_free_text)
            case Http(verb, path, content, headers):
                return self._http(path, self.client.request(verb, path, content, headers), {}, is_free_text=False)
            case Streaming(method, steps, metadata, timeout):
                with self.client.stream(method, metadata=self._own(metadata)) as stream:
                    played = _Grpc(self, stream, timeout)
                    return [self._step(played, step) for step in steps]
            case StreamingPost(path, body, steps, headers):
                with self.client.lines(path, self._body(body), self._own(headers)) as lines:
                    head = {"status": lines.status, "headers": _compared(lines.headers)}
                    return [head, *(self._step(_Gateway(self, lines, path), step) for step in steps)]
            case _:
                assert_never(operation)

    def _unary(self, operation: Unary) -> dict[str, Any]:
        request = self.request(operation.request)
        try:
            response = self.client.unary(operation.method, request, self._own(operation.metadata))
        except RpcFailure as failure:
            return failure_form(failure, is_free_text=operation.is_free_text)
        if isinstance(response, Message):
            if isinstance(request, Message):
                self._learn(request, response)
            header = getattr(response, "header", None)
            self.revision = max(self.revision, 0 if header is None else header.revision)
            return {"ok": self.normal.message(response)}
        return {"ok": response}

    def _learn(self, request: Message, response: Message) -> None:
        """Name a lease that the server chose, where it was not told which."""
        match request, response:
            case rpc.LeaseGrantRequest(ID=0), rpc.LeaseGrantResponse(ID=chosen):
                self.names.add("lease", chosen)
            case lock.LockRequest(lease=0), lock.LockResponse(key=key):
                self.names.add("lease", int(key.rpartition(b"/")[2], 16))
            case election.CampaignRequest(lease=0), election.CampaignResponse(leader=leader):
                self.names.add("lease", leader.lease)

    def request(self, request: Request) -> Message | bytes:
        """Return the message that this server is sent."""
        return request if isinstance(request, Message | bytes) else request(self.names)

    def _own(self, given: T | Callable[[Names], T]) -> T:
        """Return what this server is sent where it may depend on what the server chose, such as a token."""
        return given(self.names) if callable(given) else given

    def _body(self, body: Body) -> dict[str, Any] | bytes:
        return body(self.names) if callable(body) else body

    def _http(self, path: str, answer: HttpAnswer, request: object, *, is_free_text: bool) -> dict[str, Any]:
        try:
            value = answer.json() if "json" in answer.headers.get("content-type", "") else answer.body
        except ValueError:
            value = answer.body
        path = path.partition("?")[0]
        method = GATEWAY.get(path.replace("/v3beta/", "/v3/", 1))
        if method is None:
            value = self.normal.json_error(self.normal.page(path, value))
        elif answer.status == 200:
            is_read = isinstance(request, dict) and isinstance(value, dict)
            if method.endswith("/LeaseGrant") and is_read and int(request.get("ID", 0)) == 0:
                self.names.add("lease", int(value["ID"]))
            value = self.normal.json(value, METHODS[method].response.DESCRIPTOR)
        else:
            value = self.normal.json_error(value)
            if is_free_text and isinstance(value, dict):
                value |= {"message": bool(value.get("message"))}
        return {"status": answer.status, "headers": _compared(answer.headers), "body": value}

    def _step(self, stream: _Grpc | _Gateway, step: Step) -> Any:
        match step:
            case Do(operation):
                return self.play(operation)
            case Take(number):
                return stream.form(stream.take(number))
            case TakeEvents(number):
                return stream.events(number)
            case End():
                responses, end = stream.until_end()
                return {"responses": stream.form((responses, None)), "end": end}
            case Send() | HalfClose() | Fence() | TakeCreated() | TakeWatches():
                assert isinstance(stream, _Grpc), f"{step} is not for the gateway"
                return stream.step(step)
            case _:
                assert_never(step)


_Taken = tuple[list[Any], Any]
"""What came, as data, and why not more: None if it is as much as was asked for."""


class _Grpc:
    """A gRPC stream, in terms of data."""

    def __init__(self, player: Player, stream: Stream, timeout: float) -> None:
        self._player, self._stream, self._timeout = player, stream, timeout
        self._created: list[dict[str, Any]] = []
        self._kept: list[dict[str, Any]] = []

    def step(self, step: Send | HalfClose | Fence | TakeCreated | TakeWatches) -> Any:
        match step:
            case Send(request):
                message = self._player.request(request)
                assert isinstance(message, Message)
                self._stream.send(message)
                return "sent"
            case HalfClose():
                self._stream.half_close()
                return "half-closed"
            case Fence():
                return self._fence()
            case TakeCreated(number):
                return self._take_created(number)
            case TakeWatches(backs):
                return self._take_watches([self._player.revision - back for back in backs])

    def _take_created(self, number: int) -> Any:
        why = None
        while len(self._created) < number and not why:
            responses, why = self.take(1)
            for response in responses:
                (self._created if response.get("created") else self._kept).append(response)
        return self.form((self._created, why))

    def _take_watches(self, last: list[int]) -> dict[str, Any]:
        pairs = zip(self._created, last, strict=True)
        waiting = {_watch_id(created): revision for created, revision in pairs if not created.get("canceled")}
        form: dict[str, Any] = {}
        responses, why = self._kept, None
        while True:
            for response in responses:
                watch_id, events = _watch_id(response), response.get("events", [])
                form.setdefault(f"watch {watch_id}", []).extend(events or [response])
                reached = events[-1]["kv"]["mod_revision"] if events else 0
                if response.get("canceled") or reached >= waiting.get(watch_id, reached + 1):
                    waiting.pop(watch_id, None)
            if why or not waiting:
                return form if why is None else {**form, "then": why}
            responses, why = self.take(1)

    def _fence(self) -> Any:
        self._stream.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"b", range_end=b"a")))
        came: list[Any] = []
        while True:
            (more, why) = self.take(1)
            came += more
            if why or more[0].get("cancel_reason") == "mvcc: watcher range is empty":
                return self.form((came, why))

    def take(self, number: int) -> _Taken:
        came: list[Any] = []
        while len(came) < number:
            try:
                came.append(self._player.normal.message(self._stream.receive(self._timeout)))
            except (StreamEnd, RpcFailure, TimeoutError) as error:
                return came, _end_form(error)
        return came, None

    def until_end(self) -> _Taken:
        came: list[Any] = []
        while True:
            more, why = self.take(1)
            came += more
            if why:
                return came, why

    def events(self, number: int) -> Any:
        return _take_events(self.take, number)

    def form(self, taken: _Taken) -> Any:
        return _stream_form(taken)


class _Gateway:
    """A stream of the gateway, in terms of data: each line is a result or an error."""

    def __init__(self, player: Player, lines: Lines, path: str) -> None:
        self._player, self._lines = player, lines
        self._descriptor = METHODS[GATEWAY[path.replace("/v3beta/", "/v3/", 1)]].response.DESCRIPTOR

    def take(self, number: int) -> _Taken:
        came: list[Any] = []
        while len(came) < number:
            try:
                line = self._lines.receive()
            except (StreamEnd, TimeoutError) as error:
                return came, _end_form(error)
            if not isinstance(line, dict) or "result" not in line:
                return came, line
            came.append(self._player.normal.json(line["result"], self._descriptor))
        return came, None

    def until_end(self) -> _Taken:
        came: list[Any] = []
        while True:
            more, why = self.take(1)
            came += more
            if why:
                return came, why

    def events(self, number: int) -> Any:
        return _take_events(self.take, number)

    def form(self, taken: _Taken) -> Any:
        return _stream_form(taken)


def _stream_form(taken: _Taken) -> Any:
    """Group what a watch sent by its watchers; other streams are one sequence."""
    responses, why = taken
    is_watch = any("events" in response or "created" in response or "watch_id" in response for response in responses)
    form: dict[str, Any] = {"responses": responses}
    if is_watch:
        form = {"created": [_watch_id(response) for response in responses if response.get("created")]}
        for response in responses:
            form.setdefault(f"watch {_watch_id(response)}", []).append(response)
    if why is not None:
        form["then"] = why
    return form


def _watch_id(response: dict[str, Any]) -> int:
    return int(response.get("watch_id", 0))


def _take_events(take: Callable[[int], _Taken], number: int) -> dict[str, Any]:
    form: dict[str, Any] = {}
    count = 0
    while count < number:
        responses, why = take(1)
        for response in responses:
            events = response.get("events", [])
            count += len(events)
            form.setdefault(f"watch {_watch_id(response)}", []).extend(events)
        if why:
            form["then"] = why
            break
    return form


def failure_form(failure: RpcFailure, *, is_free_text: bool = False) -> dict[str, Any]:
    """Return a status that is not OK as data."""
    return {"error": {"code": failure.code, "message": bool(failure.message) if is_free_text else failure.message}}


def _end_form(error: Exception) -> Any:
    match error:
        case RpcFailure():
            return failure_form(error)
        case StreamEnd():
            return "the stream ended with OK"
    return "nothing more came"


def _compared(headers: dict[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in HEADERS if name in headers}


class Difference(AssertionError):  # noqa: N818 (what it is called where it is looked for)
    """Two servers answered one operation differently."""


class Differential:
    """Two servers that are to answer alike; the first is right.

    They must be in the same state to begin with, and everything must go to both: then they stay so, and many
    scripts may be played to one pair. After a `Difference` they may not be alike any more.
    """

    def __init__(self, expected: Side, given: Side) -> None:
        oldest = min(expected.version, given.version)
        self.sides = (expected, given)
        self.players = (Player(expected.endpoint, oldest), Player(given.endpoint, oldest))
        self.version = expected.version
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for player in self.players:
            player.client.close()

    def play(self, *operations: Operation) -> list[Any]:
        """Play operations to both and return the answers, which are alike.

        Raises:
            Difference: One was answered differently; those after it are not played.
        """
        return [self._play(operation) for operation in operations]

    def _play(self, operation: Operation) -> Any:
        self.count += 1
        expected, given = (player.play(operation) for player in self.players)
        if found := first_difference(expected, given):
            raise Difference(self._describe(operation, expected, given, *found))
        return expected

    def _describe(self, operation: Operation, expected: Any, given: Any, path: str, one: object, other: object) -> str:
        names = [f"{side.name} {'.'.join(map(str, side.version))}" for side in self.sides]
        width = max(map(len, names))
        shown = [pprint.pformat(answer, width=110, sort_dicts=False) for answer in (expected, given)]
        return "\n".join(
            (
                f"operation {self.count} is answered differently, first at {path or 'the whole'}:",
                *(f"  {name:{width}}  {value!r}" for name, value in zip(names, (one, other), strict=True)),
                f"played: {describe(operation)}",
                *(f"{name} answered: {text}" for name, text in zip(names, shown, strict=True)),
            )
        )


def describe(operation: Operation) -> str:
    """Return an operation in a form to read."""
    match operation:
        case Unary(method, request):
            return f"{method} {_describe_request(request)}"
        case Post(path, body):
            return f"POST {path} {body if isinstance(body, bytes) or callable(body) else json.dumps(body)}"
        case Http(verb, path, content):
            return f"{verb} {path} {content!r}"
        case Streaming(method, steps):
            return f"{method}\n" + "\n".join(f"    {_describe_step(step)}" for step in steps)
        case StreamingPost(path, body, steps):
            return f"POST {path} {body!r}\n" + "\n".join(f"    {_describe_step(step)}" for step in steps)


def _describe_step(step: Step) -> str:
    match step:
        case Do(operation):
            return f"do {describe(operation)}"
        case Send(request):
            return f"send {_describe_request(request)}"
    return str(step)


def _describe_request(request: Request) -> str:
    if isinstance(request, Message):
        return f"{request.DESCRIPTOR.name}({' '.join(str(request).split())})"
    return repr(request) if isinstance(request, bytes) else "(by a function of the server's names)"
