"""A client of etcd's API that is not the bottleneck: frames prepared before, sent raw, answers counted and not decoded.

A *client* here is one call at a time, and the next when it is answered. Many clients share a connection, as they do in
etcd's own benchmark: its calls are then in flight side by side. What a call costs is two bytes strings joined to a
stream id, and a look at the head of each frame that comes back: 4 to 7 us of CPU, of a process of its own.

The first call of a connection puts its headers into the server's HPACK table, the others name them there: a
block of a few bytes, as real clients send it. Both windows are opened as wide as they go, PING and SETTINGS are
answered. That a call was answered well is seen by sizes: an error has no DATA. Over TLS it is the same, through `ssl`.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from benchmarks.harness import percentile

HOST = "127.0.0.1"
SECONDS_MAX = 60.0
"""A server that says nothing for so long is given up."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM = _ACK = 1
_END_HEADERS = 4
_HEAD_BYTES = 9
_WINDOW_MAX = 2**31 - 1
_WINDOW_FIRST = 65_535
_REFILL_BYTES = 1 << 28
_RECEIVE_BYTES = 1 << 18
_unpack_head = struct.Struct(">BHBBI").unpack_from


class WireError(Exception):
    """The server did not do what was asked."""


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    """Return a frame of HTTP/2."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + number.to_bytes(4) + payload


def message(payload: bytes) -> bytes:
    """Return a gRPC message."""
    return b"\0" + len(payload).to_bytes(4) + payload


def _indexed(prefix: bytes, value: bytes) -> bytes:
    """Return a header that goes into the dynamic table; `prefix` is its name."""
    return prefix + bytes((len(value),)) + value


def _first_block(path: bytes) -> bytes:
    return b"".join(
        (
            b"\x83\x86",  # POST, http, also over TLS: both servers pass over it
            _indexed(b"\x44", path),
            _indexed(b"\x41", b"localhost"),
            _indexed(b"\x5f", b"application/grpc"),
            _indexed(b"\x40\x02te", b"trailers"),
        )
    )


_LATER_BLOCK = b"\x83\x86\xc1\xc0\xbf\xbe"
"""The same six headers: of the last four, the one that came last is number 62."""


class Connection:
    """One HTTP/2 connection, whose calls are all of the method `path`; over TLS if there is a context for that."""

    def __init__(self, port: int, path: str, tls: ssl.SSLContext | None = None) -> None:
        plain = socket.create_connection((HOST, port), SECONDS_MAX)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain if tls is None else _secured(plain, tls)
        self._is_tls = tls is not None
        self.data_bytes = 0
        """Of all answers."""
        self._path = path.encode()
        self._rest = b""
        self._number = 1
        self._taken = 0
        self._marker = b""
        self._tails: dict[int, bytes] = {}
        self.marked = 0
        """How often the marker of `count_marker` came."""
        settings = struct.pack(">HI", 4, _WINDOW_MAX)
        self.socket.sendall(
            _PREFACE
            + frame(_SETTINGS, 0, 0, settings)
            + frame(_WINDOW, 0, 0, (_WINDOW_MAX - _WINDOW_FIRST).to_bytes(4))
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def count_marker(self, marker: bytes) -> None:
        """Have these bytes counted in `marked` wherever they come in answers."""
        self._marker = marker

    def send(self, calls: Sequence[bytes]) -> None:
        """Begin calls, each with one message (`data_frame`), in one write."""
        parts: list[bytes] = []
        for data in calls:
            number = self._number.to_bytes(4)
            if self._number == 1:
                block = _first_block(self._path)
                head = len(block).to_bytes(3) + bytes((_HEADERS, _END_HEADERS))
            else:
                block, head = _LATER_BLOCK, _LATER_HEAD
            self._number += 2
            parts += (head, number, block, data[:5], number, data[5:])
        self.socket.sendall(b"".join(parts))

    def send_more(self, number: int, payload: bytes) -> None:
        """Send one more message of a call that was begun as a stream."""
        self.socket.sendall(frame(_DATA, 0, number, message(payload)))

    def receive(self) -> int:
        """Wait for bytes and take them; return how many calls have ended with them.

        Raises:
            WireError: The server has ended the connection, reset a call, or says nothing.
        """
        try:
            came = self.socket.recv(_RECEIVE_BYTES)
            while self._is_tls and (size := self.socket.pending()):  # type: ignore[attr-defined]
                came += self.socket.recv(size)  # of what epoll does not tell
        except TimeoutError:
            came = b""
        if not came:
            msg = "the server has closed the connection, or says nothing"
            raise WireError(msg)
        data = self._rest + came if self._rest else came
        position, end, ended = 0, len(data), 0
        while end - position >= _HEAD_BYTES:
            high, low, kind, flags, number = _unpack_head(data, position)
            stop = position + _HEAD_BYTES + (high << 16 | low)
            if stop > end:
                break
            if kind == _DATA:
                self.data_bytes += stop - position - _HEAD_BYTES
                if self._marker:
                    self._count(number, data[position + _HEAD_BYTES : stop])
            elif kind == _HEADERS:
                ended += flags & _END_STREAM
            elif kind >= _RST:
                self._control(kind, flags, data[position + _HEAD_BYTES : stop])
            position = stop
        self._rest = data[position:]
        if self.data_bytes - self._taken > _REFILL_BYTES:
            self.socket.sendall(frame(_WINDOW, 0, 0, (self.data_bytes - self._taken).to_bytes(4)))
            self._taken = self.data_bytes
        return ended

    def _count(self, number: int, payload: bytes) -> None:
        joined = self._tails.get(number, b"") + payload  # a frame may end within a marker
        self.marked += joined.count(self._marker)
        self._tails[number] = joined[-(len(self._marker) - 1) :]

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self.socket.sendall(frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self.socket.sendall(frame(_PING, _ACK, 0, payload))
        elif kind in {_RST, _GOAWAY}:
            msg = f"the server ended a {'call' if kind == _RST else 'connection'}: {payload!r}"
            raise WireError(msg)


def tls_context() -> ssl.SSLContext:
    """Return what a client speaks HTTP/2 over TLS with, to whoever answers."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _secured(plain: socket.socket, tls: ssl.SSLContext) -> ssl.SSLSocket:
    try:
        secured = tls.wrap_socket(plain, server_hostname=HOST)
    except BaseException:
        plain.close()
        raise
    if secured.selected_alpn_protocol() != "h2":
        secured.close()
        msg = "the server does not choose h2"
        raise WireError(msg)
    return secured


_LATER_HEAD = len(_LATER_BLOCK).to_bytes(3) + bytes((_HEADERS, _END_HEADERS))


def data_frame(payload: bytes, *, is_end: bool = True) -> bytes:
    """Return a call's DATA frame without the stream id, which goes behind its fifth byte."""
    data = message(payload)
    assert len(data) <= 16_384
    return len(data).to_bytes(3) + bytes((_DATA, _END_STREAM if is_end else 0)) + data


@dataclass(slots=True)
class Drive:
    """What a run of calls took."""

    calls: int
    seconds: float
    """Of all together."""
    client_seconds: float
    """CPU of this process."""
    latencies: list[float] = field(default_factory=list)
    """Seconds of each call, where there is one client."""

    @property
    def p50(self) -> float:
        """The median of the latencies."""
        return percentile(self.latencies, 0.5)


class Clients:
    """Clients on some connections to one server. A context manager.

    Args:
        path: The method that they all call.
        each: Clients on one connection.
        answer_bytes_min: What an answer has at least, if it is one.
        tls: What to speak TLS with.
    """

    def __init__(
        self,
        port: int,
        path: str,
        connections: int,
        each: int,
        answer_bytes_min: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._each = each
        self._answer_bytes_min = answer_bytes_min
        with ExitStack() as stack:
            self._connections = [stack.enter_context(Connection(port, path, tls)) for _ in range(connections)]
            self._epoll = stack.enter_context(select.epoll())
            self._stack = stack.pop_all()
        self._by_fd = {each.socket.fileno(): each for each in self._connections}
        for number in self._by_fd:
            self._epoll.register(number, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def drive(self, calls: Sequence[bytes]) -> Drive:
        """Have every call made once, as many at a time as there are clients; return when all are answered.

        Raises:
            WireError: One was not.
        """
        before = sum(connection.data_bytes for connection in self._connections)
        begun, cpu = time.perf_counter(), time.process_time()
        latencies: list[float] = []
        if len(self._connections) == self._each == 1:
            latencies = self._one_by_one(calls)
        else:
            self._side_by_side(calls)
        took = Drive(len(calls), time.perf_counter() - begun, time.process_time() - cpu, latencies)
        came = sum(connection.data_bytes for connection in self._connections) - before
        if came < len(calls) * self._answer_bytes_min:
            msg = f"{len(calls)} calls were answered with {came} bytes: some of them by errors"
            raise WireError(msg)
        return took

    def _one_by_one(self, calls: Sequence[bytes]) -> list[float]:
        connection, clock, found = self._connections[0], time.perf_counter, []
        for call in calls:
            begun = clock()
            connection.send((call,))
            while not connection.receive():
                pass
            found.append(clock() - begun)
        return found

    def _side_by_side(self, calls: Sequence[bytes]) -> None:
        position = answered = 0
        for connection in self._connections:
            connection.send(calls[position : position + self._each])
            position += self._each
        while answered < len(calls):
            ready = self._epoll.poll(SECONDS_MAX)
            if not ready:
                msg = f"{len(calls) - answered} calls are not answered"
                raise WireError(msg)
            for number, _ in ready:
                connection = self._by_fd[number]
                ended = connection.receive()
                answered += ended
                if ended and position < len(calls):
                    connection.send(calls[position : position + ended])
                    position += ended


def cpu_seconds(process_id: int) -> float:
    """Return the CPU that a process has used, user and system, all threads, to the nanosecond. Linux only."""
    return time.clock_gettime((~process_id) << 3 | 2)  # the clock that clock_getcpuclockid names


def resident_mb(process_id: int) -> float:
    """Return what a process has in memory, in millions of bytes. Linux only."""
    with open(f"/proc/{process_id}/statm", encoding="ascii") as file:  # noqa: PTH123 - a file of the system
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def slices(calls: Sequence[bytes], rounds: int) -> Iterator[Sequence[bytes]]:
    """Cut calls into equal rounds."""
    size = len(calls) // rounds
    return (calls[number * size : (number + 1) * size] for number in range(rounds))
