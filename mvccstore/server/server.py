"""A server: a store, the services over it, and the ports they are reached by."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, Self

from mvccstore.clock import Clock, SystemClock
from mvccstore.server.auth.gate import AuthOptions
from mvccstore.server.autocompaction import AutoCompaction
from mvccstore.server.client_versions import ClientVersions
from mvccstore.server.compactor import Compactor
from mvccstore.server.errors import translate
from mvccstore.server.gateway.gateway import Gateway
from mvccstore.server.member import Identity
from mvccstore.server.metrics.families import HANDLING_BOUNDS, Family, families
from mvccstore.server.metrics.page import MetricsPage
from mvccstore.server.node import Node, RequestLimits
from mvccstore.server.pages import MetricsSite, Site
from mvccstore.server.persona import V3_6, persona_of
from mvccstore.server.services.auth import Auth
from mvccstore.server.services.cluster import Cluster
from mvccstore.server.services.election import Election
from mvccstore.server.services.health import Health
from mvccstore.server.services.kv import KV
from mvccstore.server.services.lease import LeaseService
from mvccstore.server.services.lock import Lock
from mvccstore.server.services.maintenance import Maintenance
from mvccstore.server.services.watch import Watch
from mvccstore.server.slow import SlowOptions
from mvccstore.server.transport.call import Method, Peer, Router
from mvccstore.server.transport.counts import Histogram
from mvccstore.server.transport.dates import Dates
from mvccstore.server.transport.exchange import HttpHandler
from mvccstore.server.transport.http1 import http_factory
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.page_stream import Pages
from mvccstore.server.transport.port import Port
from mvccstore.server.transport.tls import Handshakes, TLSOptions
from mvccstore.store import Store

Protocols = Literal["both", "grpc", "http", "metrics"]
_SERVICES = (KV, Watch, LeaseService, Auth, Lock, Election, Cluster, Maintenance, Health)
_ALL = frozenset({"*"})


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server behaves; the defaults are etcd's."""

    identity: Identity = field(default_factory=Identity)
    requests: RequestLimits = field(default_factory=RequestLimits)
    transport: TransportLimits = field(default_factory=TransportLimits)
    quota_bytes: int = 2 << 30
    """The size of the store's file that raises NOSPACE; 0 for none."""
    grace_seconds: float = 1.0
    """How long calls under way may take to end when the server stops."""
    has_gateway: bool = True
    """Whether JSON is served beside gRPC."""
    hosts: frozenset[str] = _ALL
    """The host names that HTTP requests may be for; `*` for any."""
    origins: frozenset[str] = _ALL
    """Whose web pages may make requests; `*` for any."""
    auto_compaction: AutoCompaction | None = None
    auth: AuthOptions = field(default_factory=AuthOptions)
    tls: TLSOptions | None = None
    """What connections are secured with. `client_cert_auth` in it has certificates say whose the calls are."""
    has_handling_seconds: bool = False
    """Whether `/metrics` tells how long calls take, too: etcd's `--metrics=extensive`."""
    intercept: Callable[[Method], Method] | None = None
    """Makes of each method the one that is served: to look at calls, or to have them fail in tests."""
    version: str = "3.6"
    """The etcd it behaves as: `3.4`, `3.5` or `3.6`. See `mvccstore.server.persona`."""
    slow: SlowOptions = field(default_factory=SlowOptions)
    """From when on requests are slow, which is logged."""

    def __post_init__(self) -> None:
        persona_of(self.version)


class Server:
    """Serves a store on the running event loop; see `serve`, which makes one.

    The store stays its owner's: it may be used beside the server, and is not closed by it.
    """

    def __init__(self, store: Store, options: ServerOptions, clock: Clock | None = None) -> None:
        self._options = options
        self._clock = clock or SystemClock()
        self._loop = asyncio.get_running_loop()
        persona = persona_of(options.version)
        identity = options.identity
        if identity.version == V3_6.release:
            identity = replace(identity, version=persona.release)
        self.node = Node(
            store,
            identity,
            options.requests,
            quota_bytes=options.quota_bytes,
            auth=_auth(options),
            clock=self._clock,
            persona=persona,
            slow=options.slow,
        )
        methods: list[Method] = []
        for service in _SERVICES:
            methods += service(self.node).methods()
        methods = [method for method in methods if method.path not in persona.missing_methods]
        if options.intercept is not None:
            methods = [options.intercept(method) for method in methods]
        versions = ClientVersions(self.node.tally, is_strict=persona.checks_client_api_version)
        table = {method.path: method for method in methods}
        cuts = options.transport.cuts
        self._router = Router(
            table, versions.count, translate, share=self.node.share, cuts=cuts, flushes=self.node.flushes
        )
        gateway = Gateway(self._router, options.transport, persona) if options.has_gateway else None
        if options.has_handling_seconds:
            for method in methods:
                method.counts.seconds, method.counts.now = Histogram(HANDLING_BOUNDS), SystemClock().monotonic
        site = self._site = Site(self.node, gateway, hosts=options.hosts, origins=options.origins)
        site.pages["/metrics"] = MetricsPage(partial(self._families, methods))  # for any verb, as etcd has it
        self._sites: dict[Protocols, HttpHandler | None] = {
            "both": site.serve,
            "grpc": None,
            "http": site.serve,
            "metrics": MetricsSite(site).serve,
        }
        self._dates = Dates(self._clock.time_ms)
        self._handshakes: Handshakes | None = None
        self._ports: list[Port] = []
        self._sockets: list[tuple[Path, int]] = []
        """Unix sockets, by path and inode: another server may have taken over a path."""
        self._is_stopped = False
        self._compactor: Compactor | None = None
        if options.auto_compaction is not None:
            self._compactor = Compactor(self.node, options.auto_compaction)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return sum(len(port) for port in self._ports)

    def refuse_connections(self, *, is_on: bool) -> None:
        """Cut each new connection as soon as it is made, or accept them again. For tests."""
        for port in self._ports:
            port.is_refusing = is_on

    def drop_connections(self, peer: Peer | None = None) -> int:
        """Cut every connection, or that of one peer, as a network that fails does; return how many there were.

        New ones are accepted.
        """
        return sum(port.drop_connections(peer) for port in self._ports)

    def _new_port(self, protocols: Protocols, *, is_secure: bool) -> Port:
        if is_secure and self._handshakes is None:
            if self._options.tls is None:
                msg = "a secure port needs ServerOptions.tls"
                raise ValueError(msg)
            self._handshakes = Handshakes(self._options.tls)
        is_grpc, handler, limits = protocols in {"both", "grpc"}, self._sites[protocols], self._options.transport
        pages = None
        if handler is not None and is_secure:
            pages = Pages(handler, self._dates, is_alone=not is_grpc, fields_for=self._site.fields_for)
        port = Port(
            self._router,
            limits,
            None if handler is None else http_factory(handler, limits, self._dates),
            is_grpc=is_grpc,
            handshakes=self._handshakes if is_secure else None,
            pages=pages,
        )
        self._ports.append(port)
        return port

    async def listen(
        self, host: str = "127.0.0.1", port: int = 0, *, protocols: Protocols = "both", is_secure: bool = False
    ) -> int:
        """Listen on a TCP address, with `is_secure` by `ServerOptions.tls`; return the port, chosen if 0 was given.

        Args:
            host: The address.
            port: The port.
            protocols: What is served: gRPC, `http` (pages and gateway), or both; or `metrics`, and health, alone.
            is_secure: Whether over TLS.

        Raises:
            OSError: It cannot be listened on; or a file of `tls` is not what it should be.
            ValueError: It is to be secure, and there is no `tls`.
        """
        return await self._new_port(protocols, is_secure=is_secure).listen(host, port)

    async def listen_unix(self, path: str, *, protocols: Protocols = "both", is_secure: bool = False) -> None:
        """Listen on a unix socket, as `listen`; one that a killed server has left at the path is replaced."""
        await self._new_port(protocols, is_secure=is_secure).listen_unix(path)
        self._sockets.append((Path(path), _inode(path)))

    async def stop(self) -> None:
        """Accept nothing new, tell watches, let calls end, and answer what is being written. May be repeated."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._compactor is not None:
            self._compactor.stop()
        for port in self._ports:
            port.stop_listening()
        for path, inode in self._sockets:
            if _inode(path) == inode:
                path.unlink()
        self.node.begin_stop()
        await asyncio.gather(*(port.close(self._options.grace_seconds) for port in self._ports))
        await self.node.stop()

    def _families(self, methods: list[Method]) -> Iterator[Family]:
        rejected = sum(port.rejected for port in self._ports)
        return families(self.node, methods, self._options.transport.cuts, rejected, self.connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()


def _auth(options: ServerOptions) -> AuthOptions:
    if options.tls is None or not options.tls.client_cert_auth:
        return options.auth
    return replace(options.auth, has_certificate_names=True)


def _inode(path: str | Path) -> int:
    """Return what tells a file from another at the same path; 0 for none."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - paths of both kinds
    except FileNotFoundError:
        return 0
