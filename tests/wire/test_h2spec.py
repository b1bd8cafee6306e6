"""h2spec, a tester of HTTP/2 servers of others', against our connections. Where Go is not installed, this module is empty.

It knows no gRPC, and wants answers with data: here every request that HTTP/2 allows is a call that is answered so, a
moment after its end. It goes by RFC 7540; where RFC 9113 or gRPC say otherwise, `OTHERWISE` says what and why.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mvccstore.server.transport import head
from mvccstore.server.transport.call import Call, Method, Router
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.port import Port
from tests.oracle.build import find_go
from tests.oracle.program import Program

PROGRAM = Program("h2spec", Path(__file__).parent / "h2spec", "github.com/summerwind/h2spec/cmd/h2spec")
PATH = "/h2.Spec/Any"
ANSWER_SECONDS = 0.05
TIMEOUT_SECONDS = 2
ALL_SECONDS = 300
CASES_MIN = 140

_CLOSED = "RFC 9113 5.1 allows it. As grpc-go: an answer may end a call before its request, whose rest is on its way"
_PRIORITY = "RFC 9113 5.3.2 has no dependencies of streams any more: priorities are passed over"
OTHERWISE: dict[tuple[str, str], str] = {
    ("http2/5.1", "closed: Sends a DATA frame after sending RST_STREAM frame"): _CLOSED,
    ("http2/5.1", "closed: Sends a DATA frame"): _CLOSED,
    ("http2/5.3.1", "Sends HEADERS frame that depend on itself"): _PRIORITY,
    ("http2/5.3.1", "Sends PRIORITY frame that depend on itself"): _PRIORITY,
}
"""By section and case: why it fails, and does not apply."""


class _Answer:
    """Answers a call when its requests have ended, and a little later."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def message(self, _request: bytes, /) -> None:
        pass

    def end(self) -> None:
        asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._answer)

    def _answer(self) -> None:
        self._call.send(b"data")
        self._call.finish()


def _as_a_call(self: head.HeadDecoder, fields: list[tuple[bytes, bytes]]) -> head.Head:
    head._split(fields)  # raises where it is no request
    kept = [(name, value) for name, value in fields if name not in {b":method", b":path", b"content-type"}]
    call = [(b":method", b"POST"), (b":path", PATH.encode()), *kept, (b"content-type", b"application/grpc")]
    return _head(self, call)


_head = head.HeadDecoder._head


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port that answers everything, on a loop of its own."""
    monkeypatch.setattr(head.HeadDecoder, "_head", _as_a_call)
    started: list[int] = []
    ready, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        method = Method(PATH, bytes, stream_handler=_Answer, is_server_streaming=True)
        listening = Port(Router({PATH: method}), TransportLimits(streams_max=100, window_bytes=65_535))
        started.append(await listening.listen("127.0.0.1", 0))
        ready.set()
        await asyncio.to_thread(ended.wait)
        await listening.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait(30)
    yield started[0]
    ended.set()
    thread.join(30)


if find_go() is not None:

    @pytest.mark.slow
    @pytest.mark.pure("a call is answered before h2spec has sent the frame that is to be refused")
    def test_what_h2spec_says(port: int, tmp_path: Path) -> None:
        report = tmp_path / "report.xml"
        options = ["-h", "127.0.0.1", "-p", str(port), "-o", str(TIMEOUT_SECONDS), "-S", "-j", str(report)]
        done = subprocess.run(
            [PROGRAM.build(), *options], capture_output=True, text=True, timeout=ALL_SECONDS, check=False
        )
        cases = {}
        for case in ElementTree.parse(report).iter("testcase"):
            failure = case.find("failure")
            if failure is None:
                failure = case.find("error")
            cases[case.get("package") or "", case.get("classname") or ""] = None if failure is None else failure.text
        failed = {case: why for case, why in cases.items() if why is not None}
        assert len(cases) >= CASES_MIN, done.stdout[-2_000:]
        assert set(failed) == set(OTHERWISE), failed
