"""A recorder: stands between clients and a real etcd, passes on every byte as it is, and writes the calls to a cassette.

What it owns: the listening socket, and both ends of each connection.

Invariants:

* I1. What a side sends reaches the other unchanged and in order, whether or not it is understood. What cannot be looked
  at (`wiretap`) is passed on all the same, and noted.
* I2. A side is read no faster than the other takes it: what waits between them is bounded by `WAITING_BYTES`, and what
  the system holds.
* I3. An end of a connection ends the other, after what came before it has been passed on.
* I4. When it has stopped, each call in the cassette has ended.

TLS ends here on both sides, as its contents could not be seen otherwise.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast
from urllib.parse import urlsplit

from mvccstore.clock import SystemClock
from mvccstore.server.transport.frames import PREFACE
from mvccstore.server.transport.tls import Handshakes, TLSOptions
from mvccstore.testing.cassette import CassetteWriter, EndedBy
from mvccstore.testing.loop import call_on, run_on, shared_loop
from mvccstore.testing.wiretap import Http2Tap, Tap
from mvccstore.testing.wiretap_json import Http1Tap, new_exchange

WAITING_BYTES = 256 * 1024
"""While more than this waits for one side, the other is not read."""
CONNECT_SECONDS = 10.0
"""How long an upstream may take to be connected to."""
_ANSWER_BYTES_MAX = 65_536


class UpstreamError(OSError):
    """The etcd that is to be recorded is not there."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The etcd that is recorded."""

    host: str
    port: int
    tls: bool = False
    ca_file: str | None = None
    """The certificates to trust; the system's by default."""
    cert_file: str | None = None
    """A certificate to show, and its key."""
    key_file: str | None = None
    server_name: str | None = None
    """What its certificate is for, if that is not `host`."""

    @classmethod
    def of(cls, address: str, **tls: str | None) -> Self:
        """Return that of an address: `host:port`, `http://host:port`, `https://host:port`.

        Raises:
            ValueError: It is none of them.
        """
        parts = urlsplit(address if "://" in address else f"http://{address}")
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme not in {"http", "https"} or not parts.hostname or port is None or parts.path.strip("/"):
            msg = f"{address!r} is not host:port, http://host:port or https://host:port"
            raise ValueError(msg)
        if parts.scheme == "http" and any(tls.values()):
            msg = f"certificates are for https, and the upstream is {address}"
            raise ValueError(msg)
        return cls(parts.hostname, port, parts.scheme == "https", **tls)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    def context(self, protocol: str) -> ssl.SSLContext | None:
        """Return what TLS is spoken with, for `h2` or `http/1.1`; None if it is not."""
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([protocol])
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


class Recorder:
    """Records what clients of its `endpoint` ask an etcd, for `with`. Get one from `mvccstore.testing.record`.

    Args:
        upstream: The etcd: `host:port`, or with `http://` or `https://`.
        cassette: The file to write.
        listen: What to listen on, `host:port`; port 0 has one chosen.
        overwrite: Replace the file if it is there.
        keeps_secrets: Write passwords, tokens and metadata as they are. Otherwise `redacted` stands for them.
        ca_file: For an https upstream the certificates to trust, `cert_file` and `key_file` what to show it, and
            `server_name` what its certificate is for, if that is not its host.
        tls: Serve TLS, as these options say.
        note: Is told, in words, what could not be recorded.

    Raises:
        ValueError: An address is none.
        FileExistsError: The file is there, and `overwrite` is not given; when it is started, as the next two.
        UpstreamError: The etcd does not answer.
        OSError: It cannot be listened on, or the file cannot be written.
    """

    def __init__(
        self,
        upstream: str,
        cassette: str | os.PathLike[str],
        *,
        listen: str = "127.0.0.1:0",
        overwrite: bool = False,
        keeps_secrets: bool = False,
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        server_name: str | None = None,
        tls: TLSOptions | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.upstream = Upstream.of(
            upstream, ca_file=ca_file, cert_file=cert_file, key_file=key_file, server_name=server_name
        )
        self._address = address_of(listen)
        self._path = cassette
        self._overwrite = overwrite
        self._keeps_secrets = keeps_secrets
        self._tls = tls
        self._note = note
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._cassette: CassetteWriter | None = None
        self._contexts: dict[str, ssl.SSLContext | None] = {}
        self._links: set[Link] = set()
        self._gone = asyncio.Event()
        self._is_over = False
        self.etcd = ""
        """The release of the etcd."""
        self.notes: list[str] = []
        """What could not be recorded, in words."""

    # Where it is

    @property
    def host(self) -> str:
        """What it listens on."""
        return self._address[0]

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return self._address[1]

    @property
    def endpoint(self) -> str:
        """`host:port`, as etcd's clients take it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """`http://host:port`, `https` with `tls`."""
        return f"http{'s' if self._tls is not None else ''}://{self.endpoint}"

    @property
    def env(self) -> dict[str, str]:
        """Variables by which subprocesses find it: those of etcdctl, and `ETCD_ENDPOINTS`."""
        return {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": self.url, "ETCD_ENDPOINTS": self.endpoint}

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return 0 if self._cassette is None else self._cassette.calls

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._links)

    # Starting and stopping

    async def open(self) -> None:
        """Begin to record, on the running loop. Needs a `close`."""
        loop = asyncio.get_running_loop()
        self._contexts = {name: self.upstream.context(name) for name in ("h2", "http/1.1")}
        self.etcd = await self._ask_version()
        handshakes = None if self._tls is None else Handshakes(self._tls)
        # `create_server` first: a file is not to be left behind, or replaced, for nothing.
        self._server = await loop.create_server(
            lambda: Link(self).client,
            *self._address,
            ssl=None if handshakes is None else handshakes.context(),
            backlog=1024,
        )
        self._address = (self._address[0], self._server.sockets[0].getsockname()[1])
        try:
            self._cassette = CassetteWriter(
                self._path,
                self.etcd,
                SystemClock().monotonic,
                overwrite=self._overwrite,
                keeps_secrets=self._keeps_secrets,
            )
        except BaseException:
            self._server.close()
            raise

    async def close(self) -> None:
        """Listen no more, cut what is connected, and end the cassette."""
        self._is_over = True
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.cut()
        while self._links:
            self._gone.clear()
            await self._gone.wait()
        if self._cassette is not None:
            self._cassette.close()

    async def _ask_version(self) -> str:
        """Return the release of the upstream; empty if it answers, but not that."""
        up = self.upstream
        answer = b""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    up.host, up.port, ssl=self._contexts["http/1.1"], server_hostname=self._server_name
                )
                try:
                    writer.write(f"GET /version HTTP/1.0\r\nHost: {up.host}:{up.port}\r\n\r\n".encode())
                    while part := await reader.read(_ANSWER_BYTES_MAX):
                        answer = (answer + part)[:_ANSWER_BYTES_MAX]
                        if answer.rstrip().endswith(b"}"):
                            break  # who speaks only HTTP/1.1 may keep the connection
                except ConnectionError:
                    pass  # a port for gRPC alone
                finally:
                    writer.close()
        except TimeoutError as error:
            msg = f"{up} does not answer within {CONNECT_SECONDS:.0f} seconds"
            raise UpstreamError(msg) from error
        except OSError as error:
            msg = f"{up} cannot be reached: {error}"
            raise UpstreamError(msg) from error
        try:
            version = json.loads(answer.partition(b"\r\n\r\n")[2])
            return str(version["etcdserver"])
        except (ValueError, LookupError, TypeError):
            return ""

    @property
    def _server_name(self) -> str | None:
        return (self.upstream.server_name or self.upstream.host) if self.upstream.tls else None

    # For its links

    def add(self, link: Link) -> bool:
        """Keep a connection; False if it came too late."""
        if not self._is_over:
            self._links.add(link)
        return not self._is_over

    def discard(self, link: Link) -> None:
        """Forget one that has ended."""
        self._links.discard(link)
        self._gone.set()

    def new_tap(self, *, is_http2: bool) -> Tap:
        """Return what looks at a new connection."""
        cassette = self._cassette
        assert cassette is not None
        if is_http2:
            return Http2Tap(cassette, lambda verb, path, headers: new_exchange(cassette, verb, path, headers))
        return Http1Tap(cassette)

    async def connect(self, side: asyncio.Protocol, *, is_http2: bool) -> None:
        """Connect to the upstream."""
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.get_running_loop().create_connection(
                lambda: side,
                self.upstream.host,
                self.upstream.port,
                ssl=self._contexts["h2" if is_http2 else "http/1.1"],
                server_hostname=self._server_name,
            )

    def tell(self, what: str) -> None:
        """Note what could not be recorded."""
        self.notes.append(what)
        self._note(what)

    # On a thread, as the servers of tests are

    def start(self) -> None:
        """Begin to record. Needs a `stop`."""
        loop = shared_loop.acquire()
        try:
            run_on(loop, self.open())
        except BaseException:
            shared_loop.release()
            raise
        self._loop = loop

    def stop(self) -> None:
        """End it; the cassette is complete then. Stopping twice is harmless."""
        loop, self._loop = self._loop, None
        if loop is not None:
            try:
                run_on(loop, self.close())
            finally:
                shared_loop.release()

    def settle(self) -> None:
        """Return when what has come is in the cassette."""
        if self._loop is not None:
            call_on(self._loop, lambda: None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def address_of(listen: str) -> tuple[str, int]:
    """Return host and port of `host:port`.

    Raises:
        ValueError: It is none.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        msg = f"{listen!r} is not host:port"
        raise ValueError(msg)
    return host.removeprefix("[").removesuffix("]"), int(port)


class Link:
    """A client's connection, and the one to the etcd that was made for it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.client = _Side(self, is_client=True)
        self.upstream = _Side(self, is_client=False)
        self.client.other, self.upstream.other = self.upstream, self.client
        self._tap: Tap | None = None
        self._first = b""
        self._connecting: asyncio.Task[None] | None = None
        self._is_over = False

    def begin(self) -> None:
        """The client has connected."""
        if not self._recorder.add(self):
            self.client.abort()

    def take_first(self, data: bytes) -> None:
        """Take what the client says first, which tells the protocol; then connect to the upstream."""
        self._first += data
        if self._connecting is None and (len(self._first) >= 4 or not PREFACE.startswith(self._first)):  # PRI or POST
            self.client.pause_reading()
            is_http2 = PREFACE.startswith(self._first[: len(PREFACE)])
            self._tap = self._recorder.new_tap(is_http2=is_http2)
            self._connecting = asyncio.get_running_loop().create_task(self._connect(is_http2=is_http2))

    async def _connect(self, *, is_http2: bool) -> None:
        try:
            await self._recorder.connect(self.upstream, is_http2=is_http2)
        except OSError as error:
            self._recorder.tell(f"{self._recorder.upstream} cannot be reached: {str(error) or type(error).__name__}")
            self._connecting = None
            self.cut()
            return
        if self._is_over:
            self.upstream.abort()
            return
        first, self._first = self._first, b""
        self.pass_on(first, is_client=True)
        self.client.resume_reading()

    def pass_on(self, data: bytes, *, is_client: bool) -> None:
        """Hand on what one side has said, and look at it."""
        # First the other side: it need not wait for the file.
        (self.upstream if is_client else self.client).write(data)
        tap = self._tap
        if tap is None:
            return
        try:
            if is_client:
                tap.take_client(data)
            else:
                tap.take_upstream(data)
        except Exception as error:  # noqa: BLE001 - I1
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._recorder.tell(f"a connection is not recorded any further: {str(error) or type(error).__name__}")
        self._close_tap("recorder")

    def _close_tap(self, who: EndedBy) -> None:
        tap, self._tap = self._tap, None
        if tap is not None:
            try:
                tap.close(who)
            except OSError as error:
                self._recorder.tell(f"the cassette cannot be written: {error}")

    def end(self, *, is_client: bool) -> None:
        """One side is gone: so is the other, once it has what came."""
        if not self._is_over:
            self._is_over = True
            self._close_tap("client" if is_client else "upstream")
        other = self.upstream if is_client else self.client
        if other.is_connected:
            other.close()
        else:
            self._recorder.discard(self)

    def cut(self) -> None:
        """End both."""
        self._close_tap("recorder")
        self._is_over = True
        if self._connecting is not None:
            self._connecting.cancel()
        self.client.abort()
        self.upstream.abort()


class _Side(asyncio.Protocol):
    """One end of a link."""

    other: _Side

    def __init__(self, link: Link, *, is_client: bool) -> None:
        self._link = link
        self._is_client = is_client
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WAITING_BYTES)
        if self._is_client:
            self._link.begin()

    def data_received(self, data: bytes) -> None:
        if self._is_client and not self.other.is_connected:
            self._link.take_first(data)
        else:
            self._link.pass_on(data, is_client=self._is_client)

    def eof_received(self) -> bool:
        """The side says no more; it may still want to hear, but nobody who speaks gRPC or asks an etcd does."""
        return False

    def pause_writing(self) -> None:
        self.other.pause_reading()

    def resume_writing(self) -> None:
        self.other.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._link.end(is_client=self._is_client)

    @property
    def is_connected(self) -> bool:
        return self._transport is not None

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
