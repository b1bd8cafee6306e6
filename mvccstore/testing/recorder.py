"""A proxy before an etcd that writes what passes to a cassette. gRPC; needs the extra `record`.

A client that is slow to take its answers has the etcd's answers waited with, not piled up: an answer is read when the
one before it was taken. Requests of a stream that the etcd is slow to take are limited to `REQUESTS_MAX`.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

from mvccstore.clock import SystemClock
from mvccstore.server.messages import METHODS, MethodType
from mvccstore.server.transport.call import Call, Method, Receiver, Router
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.port import Port
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.testing.cassette import CassetteWriter
from mvccstore.testing.loop import call_on, run_on, shared_loop

REQUESTS_MAX = 1_000
"""Requests of one stream that wait for the etcd; more end the call."""
MESSAGE_BYTES_MAX = 1 << 30
_RECONNECT_MS_MAX = 1_000
_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_OWN_HEADERS = (b"grpc-", b"user-agent", b"content-type", b"te", b":")


class Recorder:
    """Listens, for `with`, and writes `cassette` anew.

    Args:
        upstream: The etcd, `host:port`, without TLS.
        cassette: The file; one that is there is replaced.
        host: What to listen on.
        port: The TCP port; 0 has one chosen.
        has_secrets: Write passwords and tokens too.

    Raises:
        OSError: The file cannot be written, or the address not listened on; when it is started.
    """

    def __init__(
        self, upstream: str, cassette: str | Path, *, host: str = "127.0.0.1", port: int = 0, has_secrets: bool = False
    ) -> None:
        self._upstream = upstream
        self._path = Path(cassette)
        self._has_secrets = has_secrets
        self.host = host
        self.port = port
        self._clock = SystemClock()
        self._began = 0.0
        self._writer: CassetteWriter | None = None
        self._channel: Any = None
        self._listening: Port | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def endpoint(self) -> str:
        """`host:port`, for clients."""
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        """Begin to listen. Needs a `stop`."""
        writer = self._writer = CassetteWriter(self._path, has_secrets=self._has_secrets)
        self._began = self._clock.monotonic()
        loop = shared_loop.acquire()
        try:
            run_on(loop, self._start())
        except BaseException:
            shared_loop.release()
            writer.close()
            raise
        self._loop = loop

    async def _start(self) -> None:
        methods = {path: self._method(path, kind) for path, kind in METHODS.items()}
        port = Port(Router(methods), TransportLimits(), None, is_grpc=True)
        self.port = await port.listen(self.host, self.port)
        self._channel = grpc.aio.insecure_channel(self._upstream, options=_OPTIONS)
        self._listening = port

    def stop(self) -> None:
        """Cut what is connected, and end the cassette. Stopping twice is harmless."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            run_on(loop, self._stop())
            call_on(loop, lambda: None)
        finally:
            assert self._writer is not None
            self._writer.close()
            shared_loop.release()

    async def _stop(self) -> None:
        assert self._listening is not None
        self._listening.stop_listening()
        await self._listening.close(0.0)
        await self._channel.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _method(self, path: str, kind: MethodType) -> Method:
        if kind.client_streaming:
            return Method(path, bytes, stream_handler=self._open, is_server_streaming=kind.server_streaming)
        return Method(path, bytes, handler=self._serve, is_server_streaming=kind.server_streaming)

    def _serve(self, call: Call, request: bytes) -> None:
        tape = _Tape(self, call)
        tape.message(request, is_request=True)
        start = self._channel.unary_stream(call.method.path)
        call.run(tape.forward(partial(start, request), None))
        tape.follow(call)

    def _open(self, call: Call) -> Receiver:
        tape = _Tape(self, call)
        requests = _Requests(tape)
        call.run(tape.forward(self._channel.stream_stream(call.method.path), requests))
        tape.follow(call)
        return requests

    def ms(self) -> int:
        """Milliseconds since it was started."""
        return round((self._clock.monotonic() - self._began) * 1000)

    @property
    def writer(self) -> CassetteWriter:
        """What it writes."""
        assert self._writer is not None
        return self._writer


class _Tape:
    """One call on its way to the etcd and back."""

    def __init__(self, recorder: Recorder, call: Call) -> None:
        self._recorder = recorder
        self._call = call
        self._path = call.method.path
        self._number = recorder.writer.begin(self._path, recorder.ms())

    def message(self, message: bytes, *, is_request: bool) -> None:
        self._recorder.writer.message(self._number, self._recorder.ms(), self._path, message, is_request=is_request)

    def note(self, kind: str) -> None:
        self._recorder.writer.note(self._number, self._recorder.ms(), kind)

    def follow(self, call: Call) -> None:
        """Note if the client goes, before what serves the call is told of it."""
        cancel = call.on_cancel

        def cancelled() -> None:
            self.note("cancelled")
            if cancel is not None:
                cancel()

        call.on_cancel = cancelled

    async def forward(self, start: Any, requests: _Requests | None) -> bytes | None:
        """Have the etcd serve the call, and hand on what it answers."""
        call = self._call
        metadata = tuple(
            (name.decode("ascii"), value.decode("latin-1"))
            for name, value in call.metadata.pairs
            if not name.startswith(_OWN_HEADERS) and not name.endswith(b"-bin")
        )
        upstream = start(metadata=metadata)
        sending = None if requests is None else asyncio.ensure_future(requests.send_to(upstream))
        try:
            async for answer in upstream:
                self.message(answer, is_request=False)
                call.send(answer)
                await call.drained()
            code, text = await upstream.code(), await upstream.details()
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), error.details()
        finally:
            upstream.cancel()
            if sending is not None:
                sending.cancel()
        told = Code(code.value[0])
        self._recorder.writer.status(self._number, self._recorder.ms(), told, text or "")
        if told is not Code.OK:
            raise RpcError(told, text or "")
        call.finish()
        return None


class _Requests:
    """The requests of a stream, until the etcd takes them."""

    def __init__(self, tape: _Tape) -> None:
        self._tape = tape
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def message(self, request: bytes) -> None:
        if self._queue.qsize() >= REQUESTS_MAX:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"more than {REQUESTS_MAX} requests wait for the recorded etcd")
        self._tape.message(request, is_request=True)
        self._queue.put_nowait(request)

    def end(self) -> None:
        self._tape.note("requests_end")
        self._queue.put_nowait(None)

    async def send_to(self, upstream: Any) -> None:
        # What ends the call is told by its answers.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while (request := await self._queue.get()) is not None:
                await upstream.write(request)
            await upstream.done_writing()
