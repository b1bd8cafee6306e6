"""`serve`: a server beside the program that uses its store, on the program's event loop or on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Self

from mvccstore.clock import Clock
from mvccstore.opening import open_store
from mvccstore.server.server import Server, ServerOptions
from mvccstore.store import Store

STOP_SECONDS = 30.0


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make the loop that a server runs on where it may choose: uvloop's if that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class Serving:
    """A server, for `with` (on a thread of its own) or `async with` (on the running loop). Get one from `serve`."""

    def __init__(
        self,
        store: Store | None,
        host: str,
        port: int,
        unix: str | None,
        options: ServerOptions,
        clock: Clock | None = None,
    ) -> None:
        self._given = store
        self._store: Store | None = store
        self._host = host
        self._port = port
        self._unix = unix
        self._options = options
        self._clock = clock
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._error: Exception | None = None

    @property
    def store(self) -> Store:
        """The store that is served, which may be used directly: both see the same revisions and watches."""
        if self._store is None:
            msg = "the server is not running"
            raise RuntimeError(msg)
        return self._store

    @property
    def host(self) -> str:
        """What it listens on."""
        return self._host

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return self._port

    @property
    def endpoint(self) -> str:
        """`host:port`, as etcd's clients take it; with a unix socket, `unix:path`."""
        if self._unix is not None:
            return f"unix:{self._unix}"
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    @property
    def url(self) -> str:
        """`http://host:port`, as it is advertised, `https` with TLS; with a unix socket, `unix://path`."""
        if self._unix is not None:
            return f"unix{'s' if self._is_secure else ''}://{self._unix}"
        return f"http{'s' if self._is_secure else ''}://{self.endpoint}"

    @property
    def _is_secure(self) -> bool:
        return self._options.tls is not None

    @property
    def server(self) -> Server:
        """What serves."""
        if self._server is None:
            msg = "the server is not running"
            raise RuntimeError(msg)
        return self._server

    # On the running loop

    async def start(self) -> None:
        """Begin to serve on the running event loop. Needs a `stop`."""
        if self._server is not None:
            msg = "the server is running already"
            raise RuntimeError(msg)
        if self._given is None:
            self._store = open_store(None, clock=self._clock)
        assert self._store is not None
        try:
            self._server = Server(self._store, self._options, self._clock)
            if self._unix is not None:
                await self._server.listen_unix(self._unix, is_secure=self._is_secure)
            else:
                # The port has to be known for the URL that the member advertises.
                self._port = await self._server.listen(self._host, self._port, is_secure=self._is_secure)
                self._server.node.members.advertise((self.url,))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop: watches are told, calls under way get a second to end, what is being written is answered."""
        server, self._server = self._server, None
        try:
            if server is not None:
                await server.stop()
        finally:
            if self._given is None and self._store is not None:
                self._store.close()
                self._store = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    # On a thread

    def __enter__(self) -> Self:
        if self._thread is not None:
            msg = "the server is running already"
            raise RuntimeError(msg)
        started: list[BaseException | None] = []
        ready = threading.Event()

        def tell(error: BaseException | None) -> None:
            started.append(error)
            ready.set()

        self._thread = threading.Thread(target=self._run, args=(tell,), name="mvccstore-server", daemon=True)
        self._thread.start()
        ready.wait()
        if started[0] is not None:
            self._thread.join()
            self._thread = None
            raise started[0]
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._thread is not None
        assert self._loop is not None
        assert self._stopping is not None
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(STOP_SECONDS + self._options.grace_seconds)
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, tell: Callable[[BaseException | None], None]) -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._serve(tell))

    async def _serve(self, tell: Callable[[BaseException | None], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            await self.start()
        except BaseException as error:  # noqa: BLE001 - raised where it was asked for
            tell(error)
            return
        tell(None)
        try:
            await self._stopping.wait()
            await self.stop()
        except Exception as error:  # noqa: BLE001 - raised where it was told to stop
            self._error = error


def serve(
    store: Store | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    unix: str | None = None,
    options: ServerOptions | None = None,
    clock: Clock | None = None,
    version: str | None = None,
) -> Serving:
    """Serve a store as etcd v3: `with serve(store) as server:`, or `async with` on the running event loop.

    Args:
        store: The store, which stays the caller's to use beside and to close after; None for one in memory.
        host: What to listen on.
        port: The TCP port; 0 has one chosen.
        unix: The path of a unix socket, to listen on instead.
        options: How it behaves.
        clock: Where its time comes from; give a store and its server the same.
        version: The etcd it behaves as, `3.4`, `3.5` or `3.6`; None for what `options` say.

    Raises:
        ValueError: There is no such `version`; at once.
        OSError: It cannot be listened on, or a file of `options.tls` is none; as the others, when it is entered.
        StorageError: The store was opened read-only.
        ClosedError: The store is closed. One that is closed later makes every call end with UNAVAILABLE.

    Cost: one thread that writes; with `with`, one more that serves. A few milliseconds to start.

    >>> import json, urllib.request
    >>> with serve() as server:
    ...     revision = server.store.put(b"motd", b"hello")
    ...     body = json.dumps({"key": "bW90ZA=="}).encode()
    ...     with urllib.request.urlopen(f"{server.url}/v3/kv/range", body) as answer:
    ...         print(json.load(answer)["kvs"][0]["value"])
    aGVsbG8=
    """
    chosen = options or ServerOptions()
    if version is not None:
        chosen = replace(chosen, version=version)
    if unix is not None:
        scheme = "unix" if chosen.tls is None else "unixs"
        identity = replace(chosen.identity, client_urls=(f"{scheme}://{unix}",))
        chosen = replace(chosen, identity=identity)
    return Serving(store, host, port, unix, chosen, clock)
