"""The Watch service without a network: calls that a test reads from, or does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from mvccstore import Event, KeyValue, Store, WatchBatch
from mvccstore.clock import Clock
from mvccstore.server.errors import translate
from mvccstore.server.member import Identity
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node, RequestLimits
from mvccstore.server.services.watch import Watch
from mvccstore.server.transport.call import Call, Metadata, Peer, Receiver, Router
from mvccstore.server.transport.status import RpcError
from mvccstore.testing import FakeClock

SECONDS = 30
"""Longer than anything here takes; waiting for it means a deadlock."""
ROUNDS_MAX = 1_000_000


class FakeCall(Call):
    """Collects what it is sent. While `is_reading` is False, that waits to be taken, as with a client that is slow."""

    def __init__(self, service: Watch) -> None:
        method = service.methods()[0]
        super().__init__(Router({method.path: method}, translate=translate), method, Metadata(), Peer("test"))
        self.is_reading = True
        self.sent: list[bytes] = []
        self.error: RpcError | None = None
        self._waiting: list[bytes] = []
        self._begun: tuple[int, list[bytes]] = (0, [])

    @property
    def queued_bytes(self) -> int:
        return sum(map(len, self._waiting))

    def send(self, message: bytes) -> None:
        if not self.is_done:
            (self.sent if self.is_reading else self._waiting).append(message)

    def begin(self, length: int) -> None:
        self._begun = (length, [])

    def send_part(self, part: bytes) -> None:
        length, parts = self._begun
        parts.append(part)
        if sum(map(len, parts)) == length:
            self.send(b"".join(parts))

    def reply(self, message: bytes) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError

    def fail(self, error: RpcError) -> None:
        if not self.is_done:
            self.is_done = True
            self.error = error

    def read(self) -> None:
        """Take what waits, once."""
        was_writable = self.is_writable
        self.sent += self._waiting
        self._waiting = []
        if not was_writable and self.on_writable is not None:
            self.on_writable()

    def read_on(self) -> None:
        """Take what waits, and from now on what comes."""
        self.is_reading = True
        self.read()

    def hang_up(self) -> None:
        """Be gone, as a client that breaks its connection."""
        self.is_done = True
        assert self.on_cancel is not None
        self.on_cancel()


class Client:
    """One stream, and who reads it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.call = FakeCall(bench.service)
        receiver = self.call.open()
        assert receiver is not None
        self.receiver: Receiver = receiver

    def _message(self, request: Any) -> None:
        try:
            self.receiver.message(request)
        except Exception as error:  # noqa: BLE001 - as a transport does
            self.call.fail_with(error)

    def create(self, key: bytes = b"", range_end: bytes = b"", **fields: Any) -> None:
        """Ask for a watch."""
        create = rpc.WatchCreateRequest(key=key, range_end=range_end, **fields)
        self._message(rpc.WatchRequest(create_request=create))

    def cancel(self, watch_id: int) -> None:
        """Ask for the end of one."""
        self._message(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id)))

    def progress(self) -> None:
        """Ask how far all are."""
        self._message(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))

    def ask_nothing(self) -> None:
        """Send a request that has no content."""
        self._message(rpc.WatchRequest())

    def taken(self) -> list[Any]:
        """Return what has been read since the last time."""
        sent, self.call.sent = self.call.sent, []
        return [rpc.WatchResponse.FromString(message) for message in sent]

    async def take(self) -> list[Any]:
        """As `taken`, once the server has nothing more to do."""
        await self.bench.settle()
        return self.taken()


class Bench:
    """A Watch service over a store, on the running loop."""

    def __init__(self, store: Store, limits: RequestLimits, clock: Clock, **options: Any) -> None:
        self.store = store
        self.clock = clock
        self.node = Node(store, Identity(), limits, clock=clock)
        self.service = Watch(self.node, **options)
        self.hall = self.service._hall

    def client(self) -> Client:
        """Begin a stream."""
        return Client(self)

    async def settle(self) -> None:
        """Return when the server has nothing more to do, all that it was told of being done."""
        turns = self.hall.turns
        await asyncio.sleep(0)
        await until(lambda: not (turns._queue or turns._rung or turns._is_told or turns._is_scheduled))


async def until(is_so: Callable[[], bool]) -> int:
    """Let the loop go round until something is so; return how often it had to."""
    for rounds in range(ROUNDS_MAX):
        if is_so():
            return rounds
        await asyncio.sleep(0)
    msg = "it did not come to be"
    raise AssertionError(msg)


@asynccontextmanager
async def bench_over(
    store: Store, limits: RequestLimits | None = None, clock: Clock | None = None, **options: Any
) -> AsyncIterator[Bench]:
    """Serve watches of a store; at the end of the block nobody may watch it any more."""
    bench = Bench(store, limits or RequestLimits(), clock or FakeClock(), **options)
    try:
        yield bench
        bench.node.begin_stop()
        await bench.settle()
        assert len(store._hub) == 0, "a watcher is left"
        assert len(bench.hall.groups) == 0, "a group is left"
        assert not bench.hall.streams, "a stream is left"
        assert bench.hall.replays._active == 0, "a replay is left"
    finally:
        await bench.node.stop()


def run(main: Callable[[], Awaitable[object]]) -> None:
    """Run a coroutine function to its end, which must come."""

    async def watched() -> None:
        async with asyncio.timeout(SECONDS):
            await main()

    asyncio.run(watched())


def brief(response: Any) -> tuple[int, int, str, list[str]]:
    """What matters of a response: header revision, watch id, what it says, and the events as `type key@revision`."""
    said = [name for name in ("created", "canceled", "fragment") if getattr(response, name)]
    if response.compact_revision:
        said.append(f"compacted {response.compact_revision}")
    if response.cancel_reason:
        said.append(response.cancel_reason)
    events = [f"{'put' if e.type == 0 else 'delete'} {e.kv.key.decode()}@{e.kv.mod_revision}" for e in response.events]
    return response.header.revision, response.watch_id, ", ".join(said), events


def _row(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.create_revision, kv.mod_revision, kv.version, kv.value, kv.lease)


def event_of(event: Any) -> Event:
    """An event as the store has it."""
    prev_kv = _row(event.prev_kv) if event.HasField("prev_kv") else None
    return Event("put" if event.type == 0 else "delete", _row(event.kv), prev_kv)


def batches_of(response: Any) -> list[WatchBatch]:
    """The whole revisions in a response; one without events for a sign of progress."""
    events: dict[int, list[Event]] = {}
    for event in map(event_of, response.events):
        events.setdefault(event.revision, []).append(event)
    if not events:
        return [WatchBatch(response.header.revision, ())]
    return [WatchBatch(revision, tuple(found)) for revision, found in events.items()]
