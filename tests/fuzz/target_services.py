"""Whole calls to a real server in memory: any method, any message, over one connection of HTTP/2."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import mvccstore
from mvccstore.server import ServerOptions
from mvccstore.server.auth.gate import AuthOptions
from mvccstore.server.messages import METHODS, rpc
from mvccstore.server.node import RequestLimits
from mvccstore.server.server import Server
from mvccstore.server.transport.call import Peer
from mvccstore.server.transport.deadlines import Deadlines
from mvccstore.server.transport.frames import PREFACE
from mvccstore.server.transport.http2 import Http2Connection
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.turns import Turns
from mvccstore.testing import FakeClock
from tests.fuzz.choices import Choices
from tests.fuzz.faults import no_faults
from tests.wire.http2_kit import DATA, END_STREAM, message, open_stream, pack, reset, settings

PATHS = tuple(sorted(METHODS))
_RUNS = 200
"""Inputs that one server gets."""
_TURNS = 6
_ANSWER_SECONDS_MAX = 20


class _Transport:
    """Takes whatever is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.is_answered = asyncio.Event()
        self.is_closed = False

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.written += data
        if b"grpc-status" in self.written:
            self.is_answered.set()

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close


class _Host:
    """A server, and how many inputs it has had."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = mvccstore.open(clock=self.clock)
        self.limits = TransportLimits(message_bytes_max=64_000, queued_bytes_max=8 << 20)
        requests = RequestLimits(max_request_bytes=32_000, max_txn_ops=16, leases_max=50, watches_max=50)
        options = ServerOptions(
            requests=requests, transport=self.limits, auth=AuthOptions(bcrypt_cost=4), quota_bytes=0, grace_seconds=0.0
        )
        self.server = Server(self.store, options, self.clock)
        self.deadlines = Deadlines(asyncio.get_running_loop())
        self.turns = Turns(asyncio.get_running_loop(), self.limits)
        self.runs = 0

    def connect(self) -> tuple[Http2Connection, _Transport]:
        """Begin a connection."""
        connection = Http2Connection(
            self.server._router,
            self.limits,
            Peer("test"),
            asyncio.get_running_loop(),
            self.deadlines,
            self.turns,
            lambda _: None,
        )
        transport = _Transport()
        connection.connection_made(cast("Any", transport))
        connection.data_received(PREFACE + settings())
        return connection, transport

    async def close(self) -> None:
        """Stop it."""
        self.deadlines.close()
        await self.server.stop()
        self.store.close()


_LOOP = asyncio.Runner()
_host: _Host | None = None


def run(data: bytes) -> None:
    """Play calls; each begins with the number of its method, what is done, and a message."""
    _LOOP.run(_run(data))


async def _run(data: bytes) -> None:
    global _host
    with no_faults():
        if _host is None:
            _host = _Host()
        host = _host
        connection, transport = host.connect()
        await _play(host, connection, transport, Choices(data))
        if not transport.is_closed:
            transport.close()
        connection.connection_lost(None)
        await _idle()
        assert (host.limits.totals.received, host.limits.totals.queued, host.turns.waiting_bytes) == (0, 0, 0)
        await _ask(host)
        host.runs += 1
        if host.runs == _RUNS:
            _host = None
            await host.close()


async def _play(host: _Host, connection: Http2Connection, transport: _Transport, choices: Choices) -> None:
    stream = 1
    while choices and not transport.is_closed:
        path, how = choices.pick(PATHS), choices.byte()
        size = choices.byte() | (choices.byte() << 8 if how & 0x80 else 0)
        body = message(choices.take(size))
        frames = open_stream(stream, path.encode()) + pack(DATA, 0 if how & 1 else END_STREAM, stream, body)
        if how & 2:
            frames += pack(DATA, END_STREAM if how & 4 else 0, stream, message(choices.chunk()))
        connection.data_received(frames)
        await asyncio.sleep(0)
        if how & 8:
            connection.data_received(reset(stream))
        if how & 16:
            host.clock.advance(choices.byte())
        if how & 32:
            await _idle()
        stream += 2


async def _idle() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


async def _ask(host: _Host) -> None:
    """Hold that the next client is served: of who is asked for what needs no permission."""
    connection, transport = host.connect()
    request = message(rpc.MemberListRequest().SerializeToString())
    path = b"/etcdserverpb.Maintenance/Status"
    connection.data_received(open_stream(1, path) + pack(DATA, END_STREAM, 1, request))
    async with asyncio.timeout(_ANSWER_SECONDS_MAX):  # it may have to wait for a change of users
        await transport.is_answered.wait()
    transport.close()
    connection.connection_lost(None)


def _call(path: str, request: Any, how: int = 0) -> bytes:
    body = request.SerializeToString()
    return bytes((PATHS.index(path), how, len(body))) + body


_KV, _LEASE, _AUTH = "/etcdserverpb.KV/", "/etcdserverpb.Lease/", "/etcdserverpb.Auth/"
SEEDS = (
    _call(_KV + "Put", rpc.PutRequest(key=b"k", value=b"v"), 32)
    + _call(_KV + "Range", rpc.RangeRequest(key=b"a", range_end=b"z", sort_order=2)),
    _call("/etcdserverpb.Watch/Watch", rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k")), 1)
    + _call(_KV + "Put", rpc.PutRequest(key=b"k", prev_kv=True), 32)
    + _call(_KV + "DeleteRange", rpc.DeleteRangeRequest(key=b"k", prev_kv=True)),
    _call(
        _KV + "Txn",
        rpc.TxnRequest(
            compare=[rpc.Compare(key=b"k", target=0, version=0)],
            success=[rpc.RequestOp(request_put=rpc.PutRequest(key=b"k", lease=7))],
            failure=[rpc.RequestOp(request_txn=rpc.TxnRequest())],
        ),
    ),
    _call(_LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=5, ID=7))
    + _call(_LEASE + "LeaseKeepAlive", rpc.LeaseKeepAliveRequest(ID=7), 1 | 16)
    + b"\x09"
    + _call(_LEASE + "LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=7, keys=True)),
    _call(_AUTH + "RoleAdd", rpc.AuthRoleAddRequest(name="r")) + _call(_AUTH + "UserList", rpc.AuthUserListRequest()),
    _call(_KV + "Compact", rpc.CompactionRequest(revision=1, physical=True))
    + _call("/v3electionpb.Election/Campaign", rpc.MemberListRequest(), 8)
    + _call("/etcdserverpb.Maintenance/Hash", rpc.HashRequest()),
)
