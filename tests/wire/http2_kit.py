"""A client of one HTTP/2 connection without a socket: bytes in, frames out, and time that stands still.

`Session` drives an `Http2Connection` by frames, and holds what comes back to the rules that a server keeps (RFC 9113):
no byte beyond a window, no frame on a stream that is over, none larger than allowed, header blocks that decode.
"""

from __future__ import annotations

import gzip
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from hpack import Decoder, Encoder

from mvccstore.server.transport.call import Call, Method, Peer, Router
from mvccstore.server.transport.deadlines import Deadlines
from mvccstore.server.transport.frames import PREFACE
from mvccstore.server.transport.http2 import Http2Connection
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.page_stream import Pages
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.server.transport.turns import Turns

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 1, 1, 4, 8, 32
LARGE = 2**31 - 1


def pack(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Pack a frame, however wrong."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return pack(SETTINGS, 0, 0, b"".join(name.to_bytes(2) + value.to_bytes(4) for name, value in pairs))


def window(stream: int, increment: int) -> bytes:
    return pack(WINDOW_UPDATE, 0, stream, increment.to_bytes(4))


def reset(stream: int, code: int = 8) -> bytes:
    return pack(RST_STREAM, 0, stream, code.to_bytes(4))


def ping(text: bytes = b"12345678", flags: int = 0) -> bytes:
    return pack(PING, flags, 0, text)


def message(body: bytes, flag: int = 0) -> bytes:
    """Frame a message as gRPC does."""
    return bytes((flag,)) + len(body).to_bytes(4) + body


def gzipped(body: bytes) -> bytes:
    return message(gzip.compress(body, mtime=0), 1)


def literal_block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode fields without any state: literals that are not indexed, of less than 127 bytes each."""
    return b"".join(b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in fields)


def request_fields(path: bytes = b"/t.T/Echo", *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"there"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *more,
    ]


def open_stream(stream: int, path: bytes = b"/t.T/Echo", *more: tuple[bytes, bytes], is_end: bool = False) -> bytes:
    block = literal_block(request_fields(path, *more))
    return pack(HEADERS, END_HEADERS | (END_STREAM if is_end else 0), stream, block)


def unary(stream: int, path: bytes, body: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A whole unary call."""
    return open_stream(stream, path, *more) + pack(DATA, END_STREAM, stream, message(body))


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that the server sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[:4] if self.kind == RST_STREAM else self.payload[4:8])


class _Handle:
    def __init__(self, when: float, callback: Callable[[], Any]) -> None:
        self.when, self.callback, self.is_cancelled = when, callback, False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeLoop:
    """What a connection needs of a loop."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.looks_cost = 0.0
        """So many seconds pass with each look at `clock`."""
        self._soon: deque[Callable[[], Any]] = deque()
        self.timers: list[_Handle] = []

    def time(self) -> float:
        return self.now

    def clock(self) -> float:
        self.now += self.looks_cost
        return self.now

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        self._soon.append(lambda: callback(*args))

    def call_at(self, when: float, callback: Callable[[], Any]) -> _Handle:
        self.timers.append(_Handle(when, callback))
        return self.timers[-1]

    def call_later(self, seconds: float, callback: Callable[[], Any]) -> _Handle:
        return self.call_at(self.now + seconds, callback)

    def turn(self) -> None:
        """Carry out what was to be carried out soon; what that plans is for the next turn."""
        for _ in range(len(self._soon)):
            self._soon.popleft()()

    def run(self) -> None:
        """Carry out what is to be carried out soon, turn by turn, until there is no more."""
        while self._soon:
            self._soon.popleft()()

    def advance(self, seconds: float) -> None:
        """Let time pass, from timer to timer."""
        end = self.now + seconds
        while True:
            self.timers = [timer for timer in self.timers if not timer.is_cancelled]
            due = [timer for timer in self.timers if timer.when <= end]
            if not due:
                break
            first = min(due, key=lambda timer: timer.when)
            self.timers.remove(first)
            self.now = max(self.now, first.when)
            first.callback()
            self.run()
        self.now = end


class FakeTransport:
    """Takes what is written; its reader can be told to stop."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.written: list[bytes] = []
        self.is_closed = self.is_aborted = self.is_read = False
        self.is_read = True
        self.is_paused = False
        """Whether nothing is read from the client."""
        self.unread = 0

    def set_write_buffer_limits(self, high: int) -> None:
        self._high = high

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "written after it was closed"
        assert data
        self.written.append(bytes(data))
        if not self.is_read:
            was_over, self.unread = self.unread > self._high, self.unread + len(data)
            if self.unread > self._high and not was_over:
                self._session.connection.pause_writing()

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def read_again(self) -> None:
        """The client reads, all that waits and whatever comes."""
        self.is_read = True
        was_over, self.unread = self.unread > self._high, 0
        if was_over:
            self._session.connection.resume_writing()

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            if not self.unread:
                self._session.lose()

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True
        self._session.lose()


class Services:
    """Methods of every kind, and what happened in them."""

    def __init__(self) -> None:
        self.calls: dict[bytes, Call] = {}
        self.events: list[str] = []
        self.share = 1 << 30
        """Of work, for each connection."""

    def router(self) -> Router:
        unary_methods = {
            "Echo": lambda _, body: body,
            "Later": self._later,
            "Fail": _fail,
            "Bug": _bug,
            "Work": self._work,
        }
        unary_methods |= {"Big": _big, "Parts": _parts, "Stream": _stream}
        streams = {"Chat": self._chat, "Hold": self._hold, "Deny": _deny}
        methods = [Method(f"/t.T/{name}", _decode, handler) for name, handler in unary_methods.items()]
        methods += [Method(f"/t.T/{name}", _decode, stream_handler=handler) for name, handler in streams.items()]
        return Router({method.path: method for method in methods}, self._gate, share=lambda: self.share)

    def _gate(self, call: Call) -> None:
        if call.metadata.get(b"shut") is not None:
            raise RpcError(Code.UNAUTHENTICATED, "shut")

    def _note(self, event: str) -> Callable[[], None]:
        return lambda: self.events.append(event)

    def _later(self, call: Call, body: bytes) -> None:
        self.calls[body] = call
        call.on_cancel = self._note(f"cancel {body.decode()}")

    def _work(self, call: Call, body: bytes) -> None:
        self.calls[body] = call
        call.begin_work()

    def finish_work(self, body: bytes) -> None:
        """Have what a call of `Work` has asked for be done."""
        call = self.calls.pop(body)
        call.end_work()
        call.reply(body)

    def _chat(self, call: Call) -> Chat:
        call.on_cancel = self._note("cancel chat")
        return Chat(call)

    def _hold(self, call: Call) -> Hold:
        self.calls[b"hold"] = call
        call.on_cancel = self._note("cancel hold")
        return Hold(self.events)


class Chat:
    """Answers each request with itself, and does what some say."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def message(self, request: bytes, /) -> None:
        match request:
            case b"finish":
                self.call.finish()
            case b"fail":
                self.call.fail(RpcError(Code.ABORTED, "as told"))
            case b"raise":
                raise RpcError(Code.DATA_LOSS, "raised")
            case b"bug":
                raise RuntimeError
            case _:
                self.call.send(request)

    def end(self) -> None:
        self.call.finish()


class Hold:
    """Notes what comes, and answers nothing."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def message(self, request: bytes, /) -> None:
        self.events.append(request.decode("latin-1"))

    def end(self) -> None:
        self.events.append("end")


def _decode(body: bytes) -> bytes:
    if body == b"\xff":
        msg = "not a request"
        raise ValueError(msg)
    return body


def _deny(_call: Call) -> Any:
    raise RpcError(Code.PERMISSION_DENIED, "denied")


def _fail(_call: Call, body: bytes) -> bytes:
    raise RpcError(Code.NOT_FOUND, body.decode())


def _bug(_call: Call, body: bytes) -> bytes:
    raise RuntimeError(body)


def pattern(size: int) -> bytes:
    """So many bytes that tell when some are lost or out of order."""
    return (b"".join(number.to_bytes(4) for number in range(size // 4 + 1)))[:size]


def _numbers(body: bytes, count: int | None = None) -> list[int]:
    try:
        numbers = [int(part) for part in body.split(b",")]
    except ValueError as error:
        raise RpcError(Code.INVALID_ARGUMENT, "no numbers") from error
    if not all(0 <= number < 10_000_000 for number in numbers) or len(numbers) != (count or len(numbers)):
        raise RpcError(Code.INVALID_ARGUMENT, "other numbers")
    return numbers


def _big(_call: Call, body: bytes) -> bytes:
    return pattern(*_numbers(body, 1))


def _parts(call: Call, body: bytes) -> None:
    total, part = _numbers(body, 2)
    call.begin(total)
    whole = pattern(total)
    for start in range(0, total, part or 1):
        call.send_part(whole[start : start + part])
    call.finish()


def _stream(call: Call, body: bytes) -> None:
    for size in _numbers(body):
        call.send(pattern(size))
    call.finish()


@dataclass(slots=True)
class Answer:
    """What came back on a stream."""

    head: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[bytes, bytes] | None = None
    reset: int | None = None

    @property
    def messages(self) -> list[tuple[int, bytes]]:
        """The complete messages, each with its flag."""
        found, position = [], 0
        while len(self.body) - position >= 5:
            stop = position + 5 + int.from_bytes(self.body[position + 1 : position + 5])
            if stop > len(self.body):
                break
            found.append((self.body[position], self.body[position + 5 : stop]))
            position = stop
        return found

    @property
    def status(self) -> tuple[int, str] | None:
        """The status, its message still percent-encoded; None if it has not come."""
        if self.trailers is None:
            return None
        return int(self.trailers[b"grpc-status"]), self.trailers.get(b"grpc-message", b"").decode()


class Session:
    """One connection and its client."""

    def __init__(
        self,
        limits: TransportLimits | None = None,
        *,
        greeting: bytes | None = None,
        pages: Pages | None = None,
        beside: Session | None = None,
    ) -> None:
        """Connect; `beside` another one, to the same port."""
        self.loop = FakeLoop() if beside is None else beside.loop
        self.limits = limits or TransportLimits()
        self.services = Services() if beside is None else beside.services
        self.deadlines = Deadlines(cast("Any", self.loop))
        self.turns = Turns(cast("Any", self.loop), self.limits, self.loop.clock) if beside is None else beside.turns
        self.lost = 0
        router = self.services.router()
        self.flushes = router.flushes
        router.cuts = self.limits.cuts
        self.connection = Http2Connection(
            router,
            self.limits,
            Peer("test"),
            cast("Any", self.loop),
            self.deadlines,
            self.turns,
            lambda _: setattr(self, "lost", self.lost + 1),
            pages,
        )
        self.transport = FakeTransport(self)
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.frames: list[Frame] = []
        self.answers: dict[int, Answer] = {}
        self.windows = {0: 65_535}
        self.initial_window = 65_535
        self.frame_bytes_max = 16_384
        self.has_windows = True
        """False for input that changes windows behind `grant` and `change`."""
        self._closed: set[int] = set()
        self._rest = b""
        self._is_losing = False
        self.connection.connection_made(cast("Any", self.transport))
        self.send(PREFACE + settings() if greeting is None else greeting)

    def lose(self) -> None:
        """The connection goes: the transport tells so in the next turn, once."""
        if not self._is_losing:
            self._is_losing = True
            self.loop.call_soon(self.connection.connection_lost, None)

    def send(self, *parts: bytes) -> list[Frame]:
        """Send bytes, each part as one read of the server's; return what comes back."""
        for part in parts:
            if not self.transport.is_closed:
                self.connection.data_received(part)
        return self.step()

    def step(self) -> list[Frame]:
        """Run the loop; return the frames that came."""
        self.loop.run()
        return self.take()

    def take(self) -> list[Frame]:
        """Return the frames that have come."""
        before = len(self.frames)
        data, self.transport.written = self._rest + b"".join(self.transport.written), []
        position = 0
        while len(data) - position >= 9:
            size = int.from_bytes(data[position : position + 3])
            assert size <= self.frame_bytes_max or not self.has_windows, "a frame larger than allowed"
            stop = position + 9 + size
            if stop > len(data):
                break
            kind, flags = data[position + 3], data[position + 4]
            self._take(kind, flags, int.from_bytes(data[position + 5 : position + 9]), data[position + 9 : stop])
            position = stop
        self._rest = data[position:]
        return self.frames[before:]

    def change(self, initial_window: int | None = None, frame_bytes_max: int | None = None) -> None:
        """Send settings, and hold the server to them from now on."""
        pairs = []
        if initial_window is not None:
            for stream in self.windows:
                if stream:
                    self.windows[stream] += initial_window - self.initial_window
            self.initial_window = initial_window
            pairs.append((4, initial_window))
        if frame_bytes_max is not None:
            self.frame_bytes_max = frame_bytes_max
            pairs.append((5, frame_bytes_max))
        self.send(settings(*pairs))

    def grant(self, stream: int, increment: int) -> None:
        """Widen a window."""
        self.windows[stream] = self.windows.get(stream, self.initial_window) + increment
        self.send(window(stream, increment))

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        headers: tuple[tuple[bytes, bytes], ...] = ()
        if stream:
            assert stream % 2, "the server has no streams of its own"
            # After its end a stream may be reset, so that the client stops sending.
            assert stream not in self._closed or kind == RST_STREAM, f"frame {kind} on stream {stream}, which is over"
            answer = self.answers.setdefault(stream, Answer())
            if kind == HEADERS:
                assert flags & END_HEADERS
                headers = tuple((bytes(name), bytes(value)) for name, value in self.decoder.decode(payload, raw=True))
                if not answer.head:
                    answer.head = dict(headers)
                else:
                    assert flags & END_STREAM
                if flags & END_STREAM:
                    assert answer.trailers is None
                    answer.trailers = dict(headers)
            elif kind == DATA:
                assert answer.head
                if flags & END_STREAM:
                    assert answer.head[b"content-type"] != b"application/grpc"
                    answer.trailers = {}
                self.windows.setdefault(stream, self.initial_window)
                for each in (0, stream) if self.has_windows else ():
                    self.windows[each] -= len(payload)
                    assert self.windows[each] >= 0, "more than a window allows"
                answer.body += payload
            elif kind == RST_STREAM:
                answer.reset = int.from_bytes(payload)
                self._closed.add(stream)
            else:
                assert kind == WINDOW_UPDATE
            if kind in {HEADERS, DATA} and flags & END_STREAM:
                self._closed.add(stream)
        if kind == WINDOW_UPDATE:
            assert 0 < int.from_bytes(payload) <= LARGE
        self.frames.append(Frame(kind, flags, stream, payload, headers))

    def of(self, kind: int) -> list[Frame]:
        """The frames of one kind that came so far."""
        return [frame for frame in self.frames if frame.kind == kind]

    @property
    def goaway(self) -> Frame | None:
        """The last GOAWAY, if one came."""
        found = self.of(GOAWAY)
        return found[-1] if found else None

    def hang_up(self) -> None:
        """Close from the client's side."""
        self.transport.is_closed = True
        self.lose()
        self.step()

    def check_clean(self) -> None:
        """Hold that nothing is left of a connection that is lost."""
        connection = self.connection
        assert self.lost == 1
        assert (connection._memory.queued, connection._memory.received) == (0, 0)
        assert (connection._streams, connection._pending, connection.out) == ({}, {}, [])
        assert all(not bucket for bucket in self.deadlines._buckets.values())
