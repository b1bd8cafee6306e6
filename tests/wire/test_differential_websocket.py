"""WebSockets of the JSON gateway: scripts of what a web page sends, and etcd and ours answer alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    TextMessage,
)

from mvccstore.server.messages import METHODS
from mvccstore.testing.normal import first_difference
from tests.wire.auth_calls import ENABLED, authenticate, grant_permission, grant_role, role_add, user_add
from tests.wire.calls import grant, put, revoke, text
from tests.wire.differential import GATEWAY, Operation, Player
from tests.wire.pair import NEEDS_ORACLE, Pair
from tests.wire.websocket_kit import Socket

pytestmark = NEEDS_ORACLE

PROTOJSON = TOKENS = (3, 6, 0)
"""Since when there is another reader of JSON; tokens are not looked at without users, and `Bearer` is no part of one."""
S = text(b"s")


@dataclass(frozen=True, slots=True)
class Take:
    """Wait for so many messages; those of events by watcher, as how watchers are interleaved is left to the server."""

    number: int


@dataclass(frozen=True, slots=True)
class Pinged:
    """Send a ping, and wait for what answers it."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """Wait for the end, after so many messages."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Send bytes as they are."""

    data: bytes


Step = Event | Take | Pinged | Ended | Raw | Operation
Headers = Callable[[Player], Sequence[tuple[bytes, bytes]]]


@dataclass(frozen=True, slots=True)
class Talk:
    """A script: a WebSocket that is opened, and what is sent and waited for."""

    name: str
    steps: Sequence[Step]
    path: str = "/v3/watch"
    headers: Headers = lambda _: ()
    subprotocols: Callable[[Player], Sequence[str]] = lambda _: ()
    since: tuple[int, int, int] = (3, 4, 0)

    def __str__(self) -> str:
        return self.name


def play(player: Player, talk: Talk) -> list[Any]:
    """Play a script to one server, and return what it answered as data."""
    endpoint = player.client.endpoint
    with Socket(
        endpoint.host,
        endpoint.port,
        talk.path,
        headers=talk.headers(player),
        subprotocols=talk.subprotocols(player),
    ) as web:
        found: list[Any] = [opening(web)]
        if isinstance(web.opening, AcceptConnection):
            found += [played(player, web, talk.path, step) for step in talk.steps]
        return found


def opening(web: Socket) -> Any:
    match web.opening:
        case AcceptConnection(subprotocol=subprotocol, extra_headers=headers):
            return {"accepted": subprotocol, "headers": sorted(name.decode().lower() for name, _ in headers)}
        case RejectConnection(status_code=status):
            return {"rejected": status}
    return web.opening


def played(player: Player, web: Socket, path: str, step: Step) -> Any:
    match step:
        case Take(number):
            found = [answer(player, path, web.answer()) for _ in range(number)]
            is_of_events = all(isinstance(one, dict) and "events" in one for one in found)
            return sorted(found, key=lambda one: str(one.get("watch_id"))) if is_of_events else found
        case Pinged(payload):
            web.send(Ping(payload))
            event = web.receive()
            assert isinstance(event, Pong), event
            return bytes(event.payload)
        case Ended():
            return ended(player, web, path)
        case Raw(data):
            web.send_bytes(data)
            return "sent"
        case Event():
            web.send(step)
            return "sent"
    return player.play(step)


def ended(player: Player, web: Socket, path: str) -> Any:
    """Return the messages up to the end; etcd hangs up without a close, which no page tells from one."""
    found: list[Any] = []
    while True:
        try:
            event = web.receive()
        except (EOFError, ConnectionResetError):
            return [*found, "ended"]
        if isinstance(event, CloseConnection):
            return [*found, "ended"]
        web._events.insert(0, event)
        found.append(answer(player, path, web.answer()))


def answer(player: Player, path: str, message: Any) -> Any:
    if not isinstance(message, dict) or "result" not in message:
        return player.normal.json_error(message)
    method = GATEWAY[path.partition("?")[0].replace("/v3beta/", "/v3/", 1)]
    return player.normal.json(message["result"], METHODS[method].response.DESCRIPTOR)


def judge(pair: Pair, talk: Talk) -> None:
    if talk.since > pair.version:
        return
    expected, given = (play(player, talk) for player in pair.players)
    found = first_difference(expected, given)
    assert found is None, f"{talk.name}: {found}\netcd: {expected}\nours: {given}"


def says(body: str, **options: bool) -> TextMessage:
    return TextMessage(body, **options)


CREATE = f'{{"create_request":{{"key":"{S}"}}}}'
SEVENTH = f'{{"create_request":{{"key":"{S}","watch_id":7}}}}'
TALKS = (
    Talk(
        "a watch is a conversation",
        (
            *(says(CREATE), Take(1), put(b"s"), Take(1), says(SEVENTH), Take(1), put(b"s"), Take(2)),
            *(says('{"cancel_request":{"watch_id":"7"}}'), Take(1), put(b"s"), Take(1)),
        ),
    ),
    Talk("the old prefix", (says(CREATE), Take(1), put(b"s"), Take(1)), "/v3beta/watch"),
    Talk("progress", (says(CREATE), Take(1), says('{"progress_request":{}}'), Take(1)), since=(3, 5, 13)),
    Talk("several requests in a message", (says(CREATE + SEVENTH), Take(2))),
    Talk("one request in several messages", (*map(says, CREATE.partition(":")), Take(1), put(b"s"), Take(1))),
    Talk("a message of several frames", (says(CREATE[:9], message_finished=False), says(CREATE[9:]), Take(1))),
    Talk(
        "a ping between frames",
        (says(CREATE[:9], message_finished=False), Pinged(b"between"), says(CREATE[9:]), Take(1)),
    ),
    Talk("bytes", (BytesMessage(CREATE.encode()), Take(1), put(b"s"), Take(1))),
    Talk("pings", (Pinged(b""), Pinged(b"x" * 125), says(CREATE), Take(1), Pinged(b"y"))),
    Talk("nothing, lines and requests for nothing", (says(""), says("\n"), says("{}"), says(CREATE), Take(1))),
    Talk("a refused watch", (says(f'{{"create_request":{{"key":"{S}","range_end":"YQ=="}}}}'), Take(1))),
    Talk("closed by the page", (says(CREATE), Take(1), CloseConnection(1000), Ended())),
    Talk("closed by the page without a reason", (CloseConnection(1001, ""), Ended())),
    Talk(
        "keepalives",
        (
            *(grant(600, 77), says('{"ID":77}'), Take(1), says('{"ID":"404"}{"ID":"77"}'), Take(2)),
            *(revoke(77), says('{"ID":77}'), Take(1)),
        ),
        "/v3/lease/keepalive",
    ),
    Talk("a query", (says(CREATE), Take(1)), "/v3/watch?x=1"),
    Talk("not masked", (Raw(b"\x81\x05hello"), Ended())),
    Talk("reserved bits", (Raw(b"\xf1\x80\0\0\0\0"), Ended())),
    Talk("an opcode that there is not", (Raw(b"\x83\x80\0\0\0\0"), Ended())),
    Talk("a ping that is too large", (Raw(b"\x89\xfe\x00\x80" + bytes(132)), Ended())),
    Talk("a frame that goes on with nothing", (Raw(b"\x80\x80\0\0\0\0"), Ended())),
    Talk("no path", (Ended(),), "/v3/nope", since=PROTOJSON),
    Talk("a path outside", (), "/nope"),
    Talk("a page", (), "/v2/keys"),
    Talk("an origin", (says(CREATE), Take(1)), headers=lambda _: [(b"Origin", b"http://a.example")]),
    Talk("subprotocols that are none of ours", (says(CREATE), Take(1)), subprotocols=lambda _: ["chat"], since=TOKENS),
    Talk(
        "a token that nobody asks for",
        (says(CREATE), Take(1)),
        subprotocols=lambda _: ["Bearer", "abc.5"],
        since=TOKENS,
    ),
)


@pytest.mark.parametrize("talk", TALKS, ids=str)
def test_web_sockets_answer_alike(pair: Pair, talk: Talk) -> None:
    judge(pair, talk)


# With users


def bearer(number: int) -> Callable[[Player], Sequence[str]]:
    return lambda player: ["Bearer", player.names.value("token", number)]


def cookie(number: int) -> Headers:
    return lambda player: [(b"Cookie", b"a=b; token=" + player.names.value("token", number).encode())]


def authorization(number: int) -> Headers:
    return lambda player: [(b"Authorization", player.names.value("token", number).encode())]


AS_USERS = (
    Talk("nobody", (says(CREATE), Take(1))),
    Talk("root by a subprotocol", (says(CREATE), Take(1)), subprotocols=bearer(1)),
    Talk("a user by a subprotocol", (says(CREATE), Take(1)), subprotocols=bearer(2)),
    Talk("a token that is none", (says(CREATE), Take(1)), subprotocols=lambda _: ["Bearer", "abc.5"]),
    Talk("root by a cookie", (says(CREATE), Take(1)), headers=cookie(1)),
    Talk("a user by a cookie", (says(CREATE), Take(1)), headers=cookie(2)),
    Talk("the cookie goes first", (says(CREATE), Take(1)), headers=cookie(2), subprotocols=bearer(1)),
    Talk("a header is not looked at", (says(CREATE), Take(1)), headers=authorization(1)),
    Talk(
        "what a user may watch, and what not",
        (
            says(f'{{"create_request":{{"key":"{text(b"m")}"}}}}'),
            *(Take(1), says(CREATE), Take(1), says('{"create_request":{"key":"AA==","range_end":"AA=="}}'), Take(1)),
        ),
        subprotocols=bearer(2),
    ),
)


def test_users_of_web_sockets(auth_pair: Pair) -> None:
    if auth_pair.version < TOKENS:
        return
    made = (role_add("r"), grant_permission("r", 0, b"m"), user_add("amy", "pw"), grant_role("amy", "r"))
    auth_pair.play(*made, *ENABLED)
    auth_pair.play(authenticate("amy", "pw"))
    for talk in AS_USERS:
        judge(auth_pair, talk)
