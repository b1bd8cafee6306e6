"""The listening side: one port for gRPC over HTTP/2 and for HTTP/1.1, told apart by their first bytes.

What it owns: the sockets that listen, and the connections they have accepted.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sys
from collections.abc import Callable
from typing import Protocol, cast

from mvccstore.server.transport.call import Peer, Router
from mvccstore.server.transport.deadlines import Deadlines
from mvccstore.server.transport.frames import PREFACE
from mvccstore.server.transport.http2 import Http2Connection
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.page_stream import Pages
from mvccstore.server.transport.secure import SecureTransport
from mvccstore.server.transport.tls import Handshakes
from mvccstore.server.transport.turns import Turns

_LOOK_SECONDS = 1.0
_ACCEPTED_A_TURN = 64
_FILES_KEPT = 150


class Connection(Protocol):
    """What a port does with a connection, of whichever protocol."""

    def drain(self) -> None:
        """Let what is under way end, take nothing new, then close."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...

    def look_after(self, now: float) -> None:
        """Do what is due by the loop's time `now`."""
        ...


HttpFactory = Callable[[Peer, Callable[[Connection], None]], asyncio.Protocol]
"""Makes the protocol of an HTTP/1.1 connection; it calls its second argument with itself when it is lost."""


class Port:
    """Listens, and keeps the connections.

    Args:
        router: The methods that calls are for.
        http: Makes what serves HTTP/1.1; None to serve only gRPC.
        is_grpc: False serves only HTTP/1.1 (etcd's `--listen-client-http-urls`).
        handshakes: Has all connections speak TLS.
        pages: What serves over HTTP/2 what is no gRPC. etcd does so with TLS alone: without, gRPC refuses it.
    """

    def __init__(
        self,
        router: Router,
        limits: TransportLimits,
        http: HttpFactory | None = None,
        *,
        is_grpc: bool = True,
        handshakes: Handshakes | None = None,
        pages: Pages | None = None,
    ) -> None:
        self._router = router
        self.limits = limits
        self._connections_max = limits.connections_max or _files_max()
        self._http = http
        self._is_grpc = is_grpc
        self._handshakes = handshakes
        self._pages = pages
        self.rejected = 0
        """How many handshakes have failed."""
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(self._loop)
        self.turns = Turns(self._loop, limits)
        """Of its connections."""
        self._servers: list[asyncio.AbstractServer] = []
        self._sockets: list[socket.socket] = []
        """Those of TCP that listen."""
        self._is_accepting = False
        self._accepting: set[asyncio.Task[None]] = set()
        self._connections: dict[Connection, Peer | None] = {}
        """And who is at the other end, once the protocol is known."""
        self._gone = asyncio.Event()
        self.is_refusing = False
        """Whether connections are cut as soon as they are made."""
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(_LOOK_SECONDS, self._look_after)

    def __len__(self) -> int:
        return len(self._connections)

    async def listen(self, host: str, port: int) -> int:
        """Listen on a TCP address; return the port, which is chosen if 0 was given."""
        server = await self._loop.create_server(self._accept, host, port, backlog=4096)
        self._servers.append(server)
        self._sockets += [socket.socket(fileno=os.dup(one.fileno())) for one in server.sockets]
        return cast("int", server.sockets[0].getsockname()[1])

    async def listen_unix(self, path: str) -> None:
        """Listen on a unix socket."""
        self._servers.append(await self._loop.create_unix_server(self._accept, path, backlog=4096))

    def _accept(self) -> asyncio.BaseProtocol:
        if self._sockets and not self._is_accepting:
            self._is_accepting = True
            self._loop.call_soon(self._accept_more)
        return self._new_protocol()

    def _accept_more(self) -> None:
        """Accept more of those who came at once: uvloop takes one in each turn of the loop, however long a turn is."""
        self._is_accepting = False
        for listener in self._sockets:
            for _ in range(_ACCEPTED_A_TURN):
                try:
                    accepted, _address = listener.accept()
                except OSError:  # there is none; or no file is left, which the loop sees as well
                    break
                accepting = self._loop.create_task(self._take(accepted))
                self._accepting.add(accepting)
                accepting.add_done_callback(self._accepting.discard)

    async def _take(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._new_protocol, accepted)
        except OSError:  # gone already
            accepted.close()

    def _new_protocol(self) -> asyncio.BaseProtocol:
        if self._handshakes is None:
            return _Greeter(self)
        return SecureTransport(lambda: _Greeter(self), self._handshakes, self.limits, self, self._note_rejected)

    def _note_rejected(self) -> None:
        self.rejected += 1

    def begin(self, transport: asyncio.Transport, first: bytes, peer: Peer) -> None:
        """Choose the protocol of a connection by what was agreed on in its handshake, or else by its first bytes."""
        protocol: asyncio.BaseProtocol
        secured = transport.get_extra_info("ssl_object")
        agreed = None if secured is None else secured.selected_alpn_protocol()
        if agreed == "h2" or (agreed is None and PREFACE.startswith(first[: len(PREFACE)])):
            if not self._is_grpc and self._pages is None:
                transport.abort()
                return
            protocol = Http2Connection(
                *(self._router, self.limits, peer, self._loop, self._deadlines, self.turns),
                on_lost=self._connections_discard,
                pages=self._pages,
            )
        elif self._http is not None:
            protocol = self._http(peer, self._connections_discard)
        else:
            transport.abort()
            return
        self._connections[cast("Connection", protocol)] = peer
        transport.pause_reading()  # uvloop asks how a protocol takes what comes when it begins to read for it
        transport.set_protocol(protocol)
        transport.resume_reading()
        protocol.connection_made(transport)
        protocol.data_received(first)

    def _connections_discard(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        if not self._connections:
            self._gone.set()

    def _look_after(self) -> None:
        self._timer = self._loop.call_later(_LOOK_SECONDS, self._look_after)
        now = self._loop.time()
        for connection in list(self._connections):
            try:
                connection.look_after(now)
            except Exception as error:  # noqa: BLE001 - of this one, which goes; the others are looked after
                told = {"message": "a connection could not be looked after", "exception": error}
                self._loop.call_exception_handler(told)
                connection.abort()

    def greet(self, greeter: Connection) -> None:
        """Keep a connection that has not said anything; not one too many, nor if it was accepted at the last moment."""
        self._connections[greeter] = None
        if len(self._connections) > self._connections_max:
            self.limits.cuts.note("connections_max")
            greeter.abort()
        elif self._timer is None or self.is_refusing:
            greeter.abort()

    def part(self, greeter: Connection) -> None:
        """Forget it."""
        self._connections_discard(greeter)

    def drop_connections(self, peer: Peer | None = None) -> int:
        """Cut every connection, or that of one peer; return how many there were."""
        connections = [one for one, other in self._connections.items() if peer is None or peer is other]
        for connection in connections:
            connection.abort()
        return len(connections)

    def stop_listening(self) -> None:
        """Accept no more connections."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for listener in self._sockets:
            listener.close()
        self._sockets.clear()

    async def close(self, grace_seconds: float = 0.0) -> None:
        """Stop listening, let calls end for so long, and close every connection."""
        self.stop_listening()
        await asyncio.gather(*self._accepting)
        for connection in list(self._connections):
            connection.drain()
        if self._connections and grace_seconds > 0:
            self._gone.clear()
            try:
                async with asyncio.timeout(grace_seconds):
                    await self._gone.wait()
            except TimeoutError:
                pass
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self._connections):
            connection.abort()
        while self._connections:
            self._gone.clear()
            await self._gone.wait()
        self._deadlines.close()


class _Greeter(asyncio.Protocol):
    """A connection whose protocol is not known yet."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._first = b""
        self._transport: asyncio.Transport | None = None
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._since = asyncio.get_running_loop().time()
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._port.greet(self)

    def data_received(self, data: bytes) -> None:
        self._first += data
        assert self._transport is not None
        if len(self._first) < 4 and PREFACE.startswith(self._first):
            return  # PRI or POST
        self._port.part(self)
        self._port.begin(
            self._transport, self._first, Peer(_address(self._transport), self._transport.get_extra_info("certificate"))
        )

    def connection_lost(self, _error: Exception | None) -> None:
        self._port.part(self)

    def drain(self) -> None:
        """Nothing is under way."""
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def look_after(self, now: float) -> None:
        """Give up one that says nothing."""
        limits = self._port.limits
        if now - self._since > limits.handshake_seconds:
            limits.cuts.note("handshake_seconds")
            self.abort()


def _files_max() -> int:
    """Return how many connections the process has files for: as etcd, all but some that the store and others need."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if most == resource.RLIM_INFINITY else max(most - _FILES_KEPT, most // 2)


def _address(transport: asyncio.BaseTransport) -> str:
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in str(name[0]) else f"{name[0]}:{name[1]}"
    return str(name or "unix")
