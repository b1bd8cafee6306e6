"""A client of HTTP/1.1 for tests inside of a loop: over `h11`, so that chunks can be told apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import h11

from mvccstore.clock import SystemClock
from mvccstore.server.gateway.gateway import Gateway
from mvccstore.server.transport.call import Method, Router
from mvccstore.server.transport.dates import Dates
from mvccstore.server.transport.exchange import HttpHandler
from mvccstore.server.transport.http1 import http_factory
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.port import Port

SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered with."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)


class Browser:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._h11 = h11.Connection(h11.CLIENT)

    async def ask(self, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()) -> Answer:
        """Send a request and read the whole answer."""
        await self.begin(method, path, body, headers)
        response = await self.head()
        chunks = [chunk async for chunk in self.chunks()]
        self._h11.start_next_cycle()
        return _answer(response, b"".join(chunks))

    async def post(self, path: str, body: object, headers: Sequence[tuple[str, str]] = ()) -> Answer:
        """Send JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.ask("POST", path, data, headers)

    async def begin(
        self, method: str, path: str, body: bytes | None = b"", headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Send a request; None as its body leaves it to follow in parts."""
        length = ("Transfer-Encoding", "chunked") if body is None else ("Content-Length", str(len(body)))
        self._send(h11.Request(method=method, target=path, headers=[("Host", "x"), length, *headers]))
        if body is not None:
            self._send(h11.Data(data=body))
            self.end()
        await self._writer.drain()

    def part(self, data: bytes) -> None:
        """Send more of the body."""
        self._send(h11.Data(data=data))

    def end(self) -> None:
        """End the body."""
        self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> None:
        self._writer.write(self._h11.send(event) or b"")

    async def _next(self) -> Any:
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            async with asyncio.timeout(SECONDS):
                self._h11.receive_data(await self._reader.read(65_536))

    async def head(self) -> h11.Response:
        """Read the head of the answer."""
        event = await self._next()
        assert isinstance(event, h11.Response)
        return event

    async def chunk(self) -> bytes | None:
        """Read one chunk of the answer, whole; None behind the last."""
        found = b""
        while True:
            event = await self._next()
            if isinstance(event, h11.EndOfMessage):
                return None
            assert isinstance(event, h11.Data)
            found += event.data
            if event.chunk_end:
                return found

    async def line(self) -> Any:
        """Read one chunk, which is one line of JSON."""
        chunk = await self.chunk()
        assert chunk is not None
        assert chunk.endswith(b"\n")
        assert chunk.count(b"\n") == 1
        return json.loads(chunk)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Read the rest of the body."""
        while True:
            event = await self._next()
            if isinstance(event, h11.EndOfMessage):
                return
            yield bytes(event.data)

    def close(self) -> None:
        """Go, whatever is under way."""
        self._writer.transport.abort()


def _answer(response: h11.Response, body: bytes) -> Answer:
    headers = {name.decode(): value.decode() for name, value in response.headers}
    return Answer(response.status_code, headers, body)


@asynccontextmanager
async def browser(port: int) -> AsyncIterator[Browser]:
    """Connect, and go at the end."""
    found = Browser(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield found
    finally:
        found.close()


@asynccontextmanager
async def listening(handler: HttpHandler, limits: TransportLimits | None = None) -> AsyncIterator[int]:
    """Serve HTTP/1.1 with a handler; yield the port."""
    limits = limits or TransportLimits()
    port = Port(Router({}), limits, http_factory(handler, limits, Dates(SystemClock().time_ms)))
    try:
        yield await port.listen("127.0.0.1", 0)
    finally:
        await port.close()


@asynccontextmanager
async def gateway(
    *methods: Method, limits: TransportLimits | None = None, router: Router | None = None
) -> AsyncIterator[Browser]:
    """Serve methods by the gateway, and connect to it."""
    limits = limits or TransportLimits()
    router = router or Router({method.path: method for method in methods})
    async with listening(Gateway(router, limits).serve, limits) as port, browser(port) as found:
        yield found
