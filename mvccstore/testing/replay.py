"""A server that answers as a cassette says.

A call is served by the first recorded one of its method and request that was not used yet, so repeated requests get
successive answers. A stream is found by its first request; its next ones have to be the recorded ones, in order, and
its answers come in the recorded order. What a watch tells of a write comes when that write, and each recorded write
of a lower revision, was asked for. What is not in the cassette is a gap: the call ends with UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Any, Self

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from mvccstore.server.messages import METHODS, rpc
from mvccstore.server.transport.call import Call, Method, Receiver, Router
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.port import Port
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.testing.cassette import Step, Take, read, redact
from mvccstore.testing.loop import call_on, run_on, shared_loop

_WATCH = "/etcdserverpb.Watch/Watch"
_WRITES = frozenset(f"/etcdserverpb.{name}" for name in ("KV/Put", "KV/DeleteRange", "KV/Txn", "Lease/LeaseRevoke"))


class Replay:
    """Serves a cassette, for `with`. Get one by `mvccstore.testing.replay(cassette)`.

    Args:
        cassette: The file.
        port: The TCP port; 0 has one chosen.

    Raises:
        CassetteError: It is no cassette, or is damaged.
        OSError: It cannot be read; or, when started, the port is taken.
    """

    def __init__(self, cassette: str | Path, *, port: int = 0) -> None:
        self._cassette = read(cassette)
        self.host, self.port = "127.0.0.1", port
        self.gaps: list[str] = []
        """What was asked for and is not in the cassette, in order."""
        self._free: dict[tuple[str, bytes], deque[Take]] = {}
        self._left: dict[int, Take] = {take.number: take for take in self._cassette.takes}
        self._revisions: dict[int, int] = {}
        """Of the writes that were not asked for yet, by the number of the take."""
        for take in self._cassette.takes:
            first = next((step.message for step in take.steps if step.kind == "request"), None)
            if first is not None:
                self._free.setdefault((take.method, self._canonical(take.method, first)), deque()).append(take)
            revision = _revision_written(take)
            if revision:
                self._revisions[take.number] = revision
        self._open: dict[_Playing, None] = {}
        self._listening: Port | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def endpoint(self) -> str:
        """`host:port`, as etcd's clients take it."""
        return f"{self.host}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """Variables by which subprocesses find it."""
        return {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": self.endpoint, "ETCD_ENDPOINTS": self.endpoint}

    def unused(self) -> list[str]:
        """Return the recorded calls that nobody made, or whose stream did not come to its end, in order."""
        return [_describe(take.method, _first(take)) for take in self._left.values()]

    def assert_complete(self) -> None:
        """Hold that all of the cassette was asked for, and nothing else.

        Raises:
            AssertionError: It was not so; the message lists both.
        """
        lines = [f"not in the cassette: {gap}" for gap in self.gaps]
        lines += [f"not asked for: {call}" for call in self.unused()]
        if lines:
            raise AssertionError("\n".join([f"{self._cassette.path} was not replayed as recorded:", *lines]))

    def report(self) -> list[tuple[str, str]]:
        """Return titles and texts, as `Etcd.report` does."""
        name = f"cassette {self._cassette.path}"
        gaps, unused = ("\n".join(lines) or "none" for lines in (self.gaps, self.unused()))
        return [(f"{name}: gaps", gaps), (f"{name}: not asked for", unused)]

    # Starting and stopping

    def start(self) -> None:
        """Begin to serve. Needs a `stop`."""
        loop = shared_loop.acquire()
        try:
            run_on(loop, self._start())
        except BaseException:
            shared_loop.release()
            raise
        self._loop = loop

    async def _start(self) -> None:
        methods = {}
        for path, kind in METHODS.items():
            if kind.client_streaming:
                method = Method(path, bytes, stream_handler=self._stream, is_server_streaming=kind.server_streaming)
            else:
                method = Method(path, bytes, handler=self._serve, is_server_streaming=kind.server_streaming)
            methods[path] = method
        port = Port(Router(methods), TransportLimits(), None, is_grpc=True)
        self.port = await port.listen(self.host, self.port)
        self._listening = port

    def stop(self) -> None:
        """End it, and cut what is connected. Stopping twice is harmless."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        assert self._listening is not None
        listening = self._listening
        try:
            call_on(loop, listening.stop_listening)
            run_on(loop, listening.close(0.0))
        finally:
            shared_loop.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # On the loop's thread

    def _canonical(self, method: str, request: bytes) -> bytes:
        """Return a request in the form in which requests are compared."""
        if not self._cassette.has_secrets:
            request = redact(method, request, is_request=True)
        try:
            return METHODS[method].request.FromString(request).SerializeToString()
        except DecodeError:
            return request

    def _serve(self, call: Call, request: bytes) -> None:
        _Playing(self, call).message(request)

    def _stream(self, call: Call) -> Receiver:
        return _Playing(self, call)

    def take(self, method: str, request: bytes) -> Take:
        """Return the recorded call for a first request, which is used then."""
        takes = self._free.get((method, self._canonical(method, request)))
        if not takes:
            raise self.gap(method, request)
        take = takes.popleft()
        self._revisions.pop(take.number, None)
        return take

    def is_same(self, method: str, request: bytes, recorded: bytes) -> bool:
        """Whether a request is the recorded one."""
        return self._canonical(method, request) == self._canonical(method, recorded)

    def gap(self, method: str, request: bytes) -> RpcError:
        """Note a request that is not in the cassette; return what its client is told."""
        gap = _describe(method, self._canonical(method, request))
        self.gaps.append(gap)
        return RpcError(Code.UNIMPLEMENTED, f"not in the cassette {self._cassette.path.name}: {gap}")

    def is_due(self, take: Take, step: Step) -> bool:
        """Whether each recorded write that an answer of a watch tells of, or comes after, was asked for."""
        if take.method != _WATCH:
            return True
        answer = rpc.WatchResponse.FromString(step.message)
        told = max((event.kv.mod_revision for event in answer.events), default=0)
        return all(revision > told for revision in self._revisions.values())

    def keep(self, playing: _Playing, *, is_open: bool) -> None:
        """Note a call that has more answers to come, or none any more."""
        if is_open:
            self._open[playing] = None
        else:
            self._open.pop(playing, None)

    def used(self, take: Take) -> None:
        """Note that all of a recorded call was played; streams may have waited for it."""
        self._left.pop(take.number, None)

    def wake(self) -> None:
        """Have open streams look whether they may go on."""
        for playing in list(self._open):
            playing.go_on()


class _Playing:
    """A call that is served as one was recorded."""

    def __init__(self, replay: Replay, call: Call) -> None:
        self._replay = replay
        self._call = call
        self._take: Take | None = None
        self._steps: deque[Step] = deque()
        self._requests: deque[bytes | None] = deque()
        call.on_cancel = lambda: replay.keep(self, is_open=False)

    def message(self, request: bytes) -> None:
        path = self._call.method.path
        if self._take is None:
            self._take = self._replay.take(path, request)
            self._steps.extend(self._take.steps)
            self._replay.keep(self, is_open=True)
            self._call.on_writable = self.go_on
        elif not self._has(request):
            raise self._replay.gap(path, request)
        self._requests.append(request)
        self.go_on()
        self._replay.wake()

    def _has(self, request: bytes) -> bool:
        recorded = [step.message for step in self._steps if step.kind == "request"]
        waiting = len(self._requests)
        return waiting < len(recorded) and self._replay.is_same(self._call.method.path, request, recorded[waiting])

    def end(self) -> None:
        self._requests.append(None)
        if self._take is None:
            self._call.finish()
        else:
            self.go_on()

    def go_on(self) -> None:
        """Play what is to come, as far as it may."""
        take, call = self._take, self._call
        if take is None:
            return
        while self._steps and not call.is_done and call.is_writable:
            step = self._steps[0]
            if step.kind in {"request", "requests_end"}:
                if not self._requests or (self._requests[0] is None) != (step.kind == "requests_end"):
                    return
                self._requests.popleft()
            elif step.kind == "answer":
                if not self._replay.is_due(take, step):
                    return
                call.send(step.message)
            elif step.kind == "status":
                self._replay.keep(self, is_open=False)
                if step.code is Code.OK:
                    call.finish()
                else:
                    call.fail(RpcError(step.code, step.text))
            self._steps.popleft()
        if not self._steps:
            self._replay.used(take)


def _first(take: Take) -> bytes:
    return next((step.message for step in take.steps if step.kind == "request"), b"")


def _describe(method: str, request: bytes) -> str:
    try:
        shown = text_format.MessageToString(METHODS[method].request.FromString(request), as_one_line=True)
    except DecodeError:
        shown = request.hex()
    return f"{method}({shown})"


def _revision_written(take: Take) -> int:
    """Return the revision that a recorded call has made; 0 if it wrote nothing."""
    answers = [step.message for step in take.steps if step.kind == "answer"]
    if take.method not in _WRITES or not answers:
        return 0
    answer: Any = METHODS[take.method].response.FromString(answers[0])
    if isinstance(answer, rpc.DeleteRangeResponse) and not answer.deleted:
        return 0
    if isinstance(answer, rpc.TxnResponse) and not any(map(_has_written, answer.responses)):
        return 0
    return int(answer.header.revision)


def _has_written(answer: Any) -> bool:
    kind = answer.WhichOneof("response")
    if kind == "response_txn":
        return any(map(_has_written, answer.response_txn.responses))
    return kind == "response_put" or (kind == "response_delete_range" and answer.response_delete_range.deleted > 0)
