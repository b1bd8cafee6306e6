"""Requests of HTTP/1.1 to the gateway and the frames of WebSockets, byte by byte against one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from google.protobuf.message import Message

from mvccstore.server.gateway.gateway import Gateway
from mvccstore.server.gateway.paths import PATHS
from mvccstore.server.messages import METHODS
from mvccstore.server.transport.call import Call, Method, Peer, Router
from mvccstore.server.transport.dates import Dates
from mvccstore.server.transport.http1 import Http1Connection, http_factory
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.server.transport.websocket import WebSocketConnection
from tests.fuzz.choices import Choices
from tests.fuzz.faults import no_faults
from tests.wire.http1_kit import Wire

LIMITS = {
    "message_bytes_max": 2_000,
    "http_head_bytes_max": 2_000,
    "http_pipelined_bytes_max": 4_000,
    "queued_bytes_max": 400_000,
    "all_received_bytes_max": 6_000,
    "websocket_fragments_max": 12,
    "control_frames_max": 20,
    "http_turn_messages": 2,
}
PIECES = (
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\n",
    b"POST /v3/watch HTTP/1.1\r\nHost: x\r\n",
    b"HEAD /v3/kv/put HTTP/1.0\r\n",
    b"Content-Length: 12\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Grpc-Timeout: 3S\r\nGrpc-Metadata-a-bin: AA\r\n",
    b"\r\n",
    b'{"key":"YQ"}',
    b'c\r\n{"key":"YQ"}\r\n',
    b"0\r\n\r\n",
    b'{"create_request":{"key":"YQ"}}\n',
    b"1f\r\n",
    b"A: " + b"a" * 900 + b"\r\n",
    b"x" * 1_500,
    b"PUT http://h/%2e%2e/v3/kv/range?a=%zz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
)
UPGRADE = (
    b"GET /v3/%b HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
MESSAGES = (b'{"create_request":{"key":"YQ"}}', b'{"key":"YQ"}', b"{", b"}", b"", b"\xff", b'{"fail":1}', b"x" * 3_000)


class _Receiver:
    """Answers each request of a stream, and fails by the third."""

    def __init__(self, call: Call, answer: bytes) -> None:
        self._call, self._answer, self._number = call, answer, 0

    def message(self, _request: object, /) -> None:
        self._number += 1
        if self._number == 3:
            raise RpcError(Code.ABORTED, "the third")
        self._call.send(self._answer)

    def end(self) -> None:
        self._call.finish()


def _router() -> Router:
    methods = []
    for path in set(PATHS.values()):
        types = METHODS[path]
        decode: Callable[[bytes], Message] = types.request.FromString
        answer = types.response().SerializeToString()
        if types.client_streaming:
            methods.append(
                Method(path, decode, stream_handler=lambda call, answer=answer: _Receiver(call, answer))  # type: ignore[misc]
            )
        else:
            methods.append(Method(path, decode, lambda _call, _request, answer=answer: answer))  # type: ignore[misc]
    return Router({method.path: method for method in methods})


class _Played:
    """One connection, and the inputs that have gone to it."""

    def __init__(self, limits: TransportLimits) -> None:
        self.limits = limits
        self.lost = 0
        self.wire = Wire()
        make = http_factory(Gateway(_ROUTER, limits).serve, limits, Dates(lambda: 999))
        protocol = make(Peer("test"), lambda _: setattr(self, "lost", self.lost + 1))
        assert isinstance(protocol, Http1Connection)
        self.first = protocol
        self.wire.connection = protocol
        protocol.connection_made(self.wire)

    def send(self, data: bytes) -> None:
        if data and not self.wire.is_closed:
            self.wire.connection.data_received(data)
            self.check_bounds()

    def check_bounds(self) -> None:
        limits, connection = self.limits, self.wire.connection
        totals = limits.totals
        assert 0 <= totals.received <= max(limits.all_received_bytes_max, limits.http_body_bytes_max)
        assert 0 <= totals.queued <= limits.queued_bytes_max + 100_000
        if isinstance(connection, WebSocketConnection):
            assert len(connection._message) <= limits.http_body_bytes_max + 65_536
            assert len(connection._held) <= limits.http_pipelined_bytes_max + 65_536

    async def play(self, choices: Choices) -> None:
        """Carry out what an input chooses."""
        while choices:
            action = choices.byte()
            match action & 0x0F:
                case 0:
                    self.send(choices.chunk())
                case 1:
                    self.look_after(choices.pick((0.0, 3.0, 31.0, 301.0, 8_000.0)))
                case 2:
                    self.wire.is_stuck = True
                case 3:
                    self.wire.unstick()
                case 4:
                    if not self.wire.is_closed and not self.wire.connection.eof_received():
                        self.wire.close()
                case 5:
                    if not self.wire.is_closed:
                        self.wire.connection.drain()
                case 6:
                    self.send(UPGRADE % choices.pick((b"watch", b"kv/range", b"lease/keepalive", b"nothing")))
                case 7 | 8 | 9:
                    self.send(_websocket_frame(choices))
                case 10:
                    self.send(choices.pick(PIECES) + choices.pick(PIECES) + choices.pick(PIECES) + choices.pick(PIECES))
                case _:
                    piece = choices.pick(PIECES)
                    cut = action >> 4
                    self.send(piece[:cut])
                    self.send(piece[cut:])
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def look_after(self, seconds: float) -> None:
        if not self.wire.is_closed:
            self.first.look_after(asyncio.get_running_loop().time() + seconds)

    async def end(self) -> None:
        self.wire.unstick()
        if not self.wire.is_closed:
            self.first.abort()
        for _ in range(3):
            await asyncio.sleep(0)
        assert self.lost == 1
        assert (self.limits.totals.received, self.limits.totals.queued) == (0, 0)


def _websocket_frame(choices: Choices) -> bytes:
    """Make a frame (RFC 6455 5.2), mostly a whole one with a mask."""
    head = choices.byte()
    how = choices.byte()
    payload = choices.pick(MESSAGES) if how & 0x40 else choices.take(how & 0x3F)
    if how & 0x80:
        return bytes((head, len(payload) & 0x7F)) + payload
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes((head,)) + length + b"\1\2\3\4" + bytes(byte ^ (at % 4 + 1) for at, byte in enumerate(payload))


_ROUTER = _router()
_LOOP = asyncio.Runner()


def run(data: bytes) -> None:
    """Play an input to one connection, and ask another after it."""
    _LOOP.run(_run(data))


async def _run(data: bytes) -> None:
    limits = TransportLimits(**LIMITS)  # type: ignore[arg-type]
    with no_faults():
        played = _Played(limits)
        await played.play(Choices(data))
        await played.end()
        following = _Played(limits)
        following.send(b'POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{"key":"YQ"}')
        assert following.wire.written.startswith(b"HTTP/1.1 200 OK\r\n")
        await following.end()


SEEDS = (
    bytes((11, 1, 11, 4, 11, 9, 0, 3)) + b'{"k',
    bytes((11, 1, 11, 4, 11, 9, 11, 10)),
    bytes((11, 2, 11, 5, 11, 9, 11, 14, 11, 13, 2, 11, 12)),
    bytes((6, 0, 7, 0x81, 0x40, 7, 0x81, 0x40, 8, 0x89, 2, 97, 98, 8, 0x88, 0x40, 4)),
    bytes((6, 1, 7, 1, 0x42, 7, 0, 0x40, 7, 0x80, 0x43, 5)),
    bytes((6, 2, 7, 0x81, 0x80, 1, 3)),
    b"\x00\x40GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
)
