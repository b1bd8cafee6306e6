"""A call as the services see it, whatever carries it: frames of HTTP/2, or JSON over HTTP/1.1.

What a service is made of:

* a *unary handler* `handler(call, request)` is called with the decoded request. It returns the encoded answer,
  raises, or returns None and later ends the call itself, from the loop's thread: `reply`, or any number
  of `send` and then `finish`, or `fail`. A server-streaming method is one of these that sends several.
* a *stream handler* `handler(call)` is called when a client-streaming or bidirectional call begins. It returns a
  `Receiver`, which is told of each request, and of the end of the requests.

Both are plain functions on the loop's thread: no task is made for a call unless its service makes one (`run`).

Invariants:

* I1. A call ends once. After that `is_done` is true and whatever is sent is dropped.
* I2. `on_cancel` is called once if the call ends without the service's doing: the client cancelled or went, its
  deadline passed, or a request of a stream was none. Not after `reply`, `finish` or `fail`.
* I3. Nothing here blocks. What the client does not take is counted in `queued_bytes`; a service that produces
  much stops while `is_writable` is false, and goes on when `on_writable` is called, or uses `await drained()`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from mypy_extensions import mypyc_attr

from mvccstore.server.transport.counts import Cuts, MethodCounts
from mvccstore.server.transport.flushes import Flushes
from mvccstore.server.transport.status import Code, RpcError

_log = logging.getLogger("mvccstore.server")

WRITABLE_BYTES: Final = 256 * 1024
"""While more than this of a call waits to be taken by its client, the call is not writable."""


class Metadata:
    """The headers of a call that are not the transport's own; names in lower case."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.pairs = pairs

    def get(self, name: bytes) -> bytes | None:
        """Return the first value of a name, or None."""
        for known, value in self.pairs:
            if known == name:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection."""

    address: str
    """For people: host:port, or the path of a unix socket."""
    certificate: bytes | None = None
    """The client's certificate, DER, if it was asked for one."""


class Receiver(Protocol):
    """Takes the requests of a streaming call. What it raises ends the call, and `on_cancel` is called."""

    def message(self, request: Any, /) -> None:
        """Take the next request, decoded."""
        ...

    def end(self) -> None:
        """Note that no more requests come: the client has closed its half."""
        ...


UnaryHandler = Callable[["Call", Any], bytes | None]
StreamHandler = Callable[["Call"], Receiver]


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service."""

    path: str
    """As on the wire: `/package.Service/Method`."""
    decode: Callable[[bytes], Any]
    """Makes a request of its bytes; raises `ValueError` or the like for bytes that are none."""
    handler: UnaryHandler | None = None
    stream_handler: StreamHandler | None = None
    """Set instead of `handler` if requests are streamed."""
    is_server_streaming: bool = False
    counts: MethodCounts = field(default_factory=MethodCounts, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert (self.handler is None) != (self.stream_handler is None)


@dataclass(slots=True)
class Router:
    """Which methods there are, and what holds for all of them."""

    methods: Mapping[str, Method]
    gate: Callable[[Call], None] = lambda _: None
    """Called before each call's handler; raises to refuse the call."""
    translate: Callable[[Exception], RpcError | None] = lambda _: None
    """Says how a call ends whose handler raised something else than `RpcError`; None if that is a bug."""
    share: Callable[[], int] = lambda: 1 << 30
    """Says how much work (`Call.begin_work`) one connection may have under way now; 1 at least."""
    cuts: Cuts = field(default_factory=Cuts)
    """Counts the calls that fail by a limit."""
    flushes: Flushes = field(default_factory=Flushes)
    """When the connections write."""
    _services: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._services = frozenset(path.split("/")[1] for path in self.methods)

    def find(self, path: str) -> Method:
        """Return the method of a path.

        Raises:
            RpcError: There is none.
        """
        method = self.methods.get(path)
        if method is not None:
            return method
        service, slash, name = path.removeprefix("/").rpartition("/")
        if not path.startswith("/") or not slash:
            raise RpcError(Code.UNIMPLEMENTED, f'malformed method name: "{path}"')
        if service in self._services:
            raise RpcError(Code.UNIMPLEMENTED, f"unknown method {name} for service {service}")
        raise RpcError(Code.UNIMPLEMENTED, f"unknown service {service}")


@mypyc_attr(allow_interpreted_subclasses=True)
class Call(ABC):
    """One call, from its first byte to its status. Used on the loop's thread only."""

    __slots__ = (
        "_cost",
        "_task",
        "_waiter",
        "_work",
        "began_at",
        "is_done",
        "metadata",
        "method",
        "on_cancel",
        "on_writable",
        "peer",
        "router",
    )

    def __init__(self, router: Router, method: Method, metadata: Metadata, peer: Peer) -> None:
        self.router = router
        self.method = method
        self.metadata = metadata
        self.peer = peer
        self.is_done = False
        self.began_at = -1.0
        """When its handler was called, 0 if that is not measured; negative before."""
        self.on_cancel: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        """Called when the call is writable again, each time it was not; to be set by who wants to know."""
        self._task: asyncio.Task[None] | None = None
        self._cost = 0
        self._work: Coroutine[Any, Any, bytes | None] | None = None  # until the task begins with it
        self._waiter: asyncio.Future[None] | None = None

    # What a transport provides

    @property
    @abstractmethod
    def queued_bytes(self) -> int:
        """How much of what was sent the client has not taken yet."""

    @abstractmethod
    def reply(self, message: bytes) -> None:
        """Send the only answer, encoded, and end the call with OK."""

    @abstractmethod
    def send(self, message: bytes) -> None:
        """Send one of several answers, encoded."""

    @abstractmethod
    def begin(self, length: int) -> None:
        """Begin an answer of `length` bytes, whose parts follow with `send_part`."""

    @abstractmethod
    def send_part(self, part: bytes) -> None:
        """Send the next bytes of the answer that was begun."""

    @abstractmethod
    def finish(self) -> None:
        """End the call with OK."""

    @abstractmethod
    def fail(self, error: RpcError) -> None:
        """End the call with an error."""

    def begin_work(self, cost: int = 1) -> None:
        """Note that work of the call is under way. A connection that has its share of it has to wait.

        It must not be work that waits for something that the client has still to send. Not counted where a
        connection has one call at a time.
        """
        del cost

    def end_work(self, cost: int = 1) -> None:
        """Note that it is done; also if the call has ended meanwhile."""
        del cost

    # What is the same for all

    @property
    def is_writable(self) -> bool:
        """Whether the client takes what it is sent fast enough to be sent more."""
        return self.queued_bytes <= WRITABLE_BYTES

    async def drained(self) -> None:
        """Return when the call is writable.

        Raises:
            asyncio.CancelledError: The call has ended, so the task that serves it should too.
        """
        while not self.is_writable and not self.is_done:
            self._waiter = asyncio.get_running_loop().create_future()
            self.on_writable = self._wake_waiter
            try:
                await self._waiter
            finally:
                self._waiter = self.on_writable = None
        if self.is_done:
            raise asyncio.CancelledError

    def _wake_waiter(self) -> None:
        """Have `drained` look again. For transports: the call has ended."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _tell(self, callback: Callable[[], None] | None) -> None:
        """Call what a service has left to be called. What it raises is logged: nobody else may suffer from it."""
        if callback is not None:
            try:
                callback()
            except Exception:  # noqa: BLE001 - as above
                _log.exception("%s failed after its call had ended, or while it was told to go on", self.method.path)

    def run(self, work: Coroutine[Any, Any, bytes | None], cost: int = 0) -> None:
        """Serve the call by a task, which is cancelled if the call is. It returns as a unary handler does, or raises.

        Args:
            cost: As of `begin_work`, from now to the end of the task, or to `note_worked`.
        """
        self._task, self._work = asyncio.get_running_loop().create_task(self._serve(work)), work
        self.on_cancel = self._cancel_task
        if cost:
            self._cost = cost
            self.begin_work(cost)
            self._task.add_done_callback(self.note_worked)  # a task that is cancelled at once does nothing itself

    def note_worked(self, _: object = None) -> None:
        """Note that what `cost` of `run` stands for is done. May be repeated."""
        cost, self._cost = self._cost, 0
        if cost:
            self.end_work(cost)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()
            if self._work is not None:
                self._work.close()  # the task never begins: nothing is to be said of work that nobody waits for

    async def _serve(self, work: Coroutine[Any, Any, bytes | None]) -> None:
        self._work = None
        try:
            answer = await work
        except asyncio.CancelledError:
            # By whoever carries out the work, if the call has not ended: its client must not wait for ever.
            self.fail(RpcError(Code.CANCELLED, "context canceled"))
            raise
        except Exception as error:  # noqa: BLE001 - the client is told, and the server goes on
            self.fail_with(error)
        else:
            if answer is not None:
                self.reply(answer)
        finally:
            self._task = None

    def _count_start(self) -> None:
        counts = self.method.counts
        counts.started += 1
        self.began_at = 0.0 if counts.now is None else counts.now()

    def _count_end(self, code: int) -> None:
        """Count the end of the call, once. For transports."""
        if self.began_at >= 0:
            self.method.counts.end(self.began_at, code)
            self.began_at = -1.0

    def serve(self, request: Any) -> None:
        """Have a unary call's handler carry out its request, and end the call if it did so at once."""
        method = self.method
        handler, counts = method.handler, method.counts
        assert handler is not None
        counts.started += 1  # as `_count_start`, without a call
        self.began_at = 0.0 if counts.now is None else counts.now()
        try:
            self.router.gate(self)
            answer = handler(self, request)
        except Exception as error:  # noqa: BLE001 - as above
            self.fail_with(error)
        else:
            if answer is not None:
                self.reply(answer)

    def open(self) -> Receiver | None:
        """Begin a streaming call; None if it was refused, and has ended."""
        handler = self.method.stream_handler
        assert handler is not None
        self._count_start()
        try:
            self.router.gate(self)
            return handler(self)
        except Exception as error:  # noqa: BLE001 - as above
            self.fail_with(error)
            return None

    def break_off(self, error: Exception) -> None:
        """End the call by its deadline, by what its requests are, or by what its receiver has raised. For transports."""
        cancel = self.on_cancel
        self.fail_with(error)
        self._tell(cancel)  # I2

    def fail_with(self, error: Exception) -> None:
        """End the call with what the error of a handler means to a client."""
        told = error if isinstance(error, RpcError) else self.router.translate(error)
        if told is None:
            _log.error("%s failed", self.method.path, exc_info=error)
            told = RpcError(Code.UNKNOWN, f"internal error: {type(error).__name__}")
        if told.limit is not None and not self.is_done:
            self.router.cuts.note(told.limit)
        self.fail(told)
