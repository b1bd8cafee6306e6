"""Thousands of HTTP/2 connections in one process, driven by one loop over epoll: each has calls in flight all the time.

They send frames that were made before and look at the heads of those that come, as `benchmarks.wire_client` does, but
never wait for one connection: what a socket does not take is kept and sent later.
"""

from __future__ import annotations

import select
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

from benchmarks.wire_client import data_frame, frame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
HEAD_BYTES = 9
TRAILERS_BYTES_MAX = 60
"""Those of a call that went well are shorter, those of one that was refused are a head too, and longer."""
OUT_BYTES_MAX = 1 << 20
UNREAD_BYTES = 64 << 10
_unpack_head = struct.Struct(">BHBBI").unpack_from

NextCall = Callable[[], tuple[str, bytes]]
"""Makes the path of a call, and its message."""


class Peer:
    """One connection.

    Args:
        next_call: What it asks for next.
        depth: Calls in flight; 0 for as many as the socket takes, answered or not.
        is_reading: False for one that takes nothing of what it asks for.
    """

    def __init__(self, port: int, next_call: NextCall, depth: int, *, is_reading: bool = True) -> None:
        self.socket = socket.socket()
        if not is_reading:
            # Else the system takes some megabytes for it first, and half a minute goes by before the server holds any.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD_BYTES)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.answers: Counter[str] = Counter()
        self.sent = 0
        self.pongs = 0
        self.is_lost = False
        self.is_reading = is_reading
        self.depth = depth
        self._next_call = next_call
        self._number = 1
        self._rest = b""
        self._out = bytearray(
            PREFACE
            + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31 - 1))
            + frame(WINDOW, 0, 0, (1 << 30).to_bytes(4))
        )

    @property
    def answered(self) -> int:
        return sum(self.answers.values())

    @property
    def wants_to_write(self) -> bool:
        return bool(self._out) or (self.depth == 0 and not self.is_lost)

    def fill(self) -> None:
        """Ask for more."""
        while len(self._out) < OUT_BYTES_MAX if self.depth == 0 else self.sent - self.answered < self.depth:
            path, message = self._next_call()
            self._out += call_frames(self._number, path, message)
            self._number += 2
            self.sent += 1
            if self.depth == 0 and len(self._out) > 64 * 1024:
                break

    def ping(self) -> None:
        self._out += frame(PING, 0, 0, b"overload")

    def write(self) -> None:
        with suppress(BlockingIOError, InterruptedError):
            while self._out:
                del self._out[: self.socket.send(memoryview(self._out)[:65_536].tobytes())]

    def read(self) -> None:
        try:
            came = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionError:
            came = b""
        if not came:
            self.is_lost = True
            return
        data = self._rest + came if self._rest else came
        position, end = 0, len(data)
        while end - position >= HEAD_BYTES:
            high, low, kind, flags, _ = _unpack_head(data, position)
            length = high << 16 | low
            stop = position + HEAD_BYTES + length
            if stop > end:
                break
            if kind == HEADERS and flags & END_STREAM:
                self.answers["ok" if length <= TRAILERS_BYTES_MAX else _reason(data[position:stop])] += 1
            elif kind == SETTINGS and not flags & ACK:
                self._out += frame(SETTINGS, ACK, 0, b"")
            elif kind == PING:
                if flags & ACK:
                    self.pongs += 1
                else:
                    self._out += frame(PING, ACK, 0, data[position + HEAD_BYTES : stop])
            elif kind == RST:
                self.answers["reset"] += 1
            elif kind == GOAWAY:
                self.is_lost = True
            position = stop
        self._rest = data[position:]

    def close(self) -> None:
        self.socket.close()


def call_frames(number: int, path: str, message: bytes) -> bytes:
    """Return a unary call. Its head is literals that are not indexed: any server knows it by the second call."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    block = b"".join(b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in fields)
    data = data_frame(message)
    return frame(HEADERS, END_HEADERS, number, block) + data[:5] + number.to_bytes(4) + data[5:]


def _reason(trailers: bytes) -> str:
    return "too many requests" if b"too many requests" in trailers else repr(trailers[-80:])


class Crowd:
    """Drives peers."""

    def __init__(self, peers: list[Peer]) -> None:
        self.peers = peers
        self._epoll = select.epoll()
        self._by_fd = {peer.socket.fileno(): peer for peer in peers}
        self._masks: dict[int, int] = {}
        for fd, peer in self._by_fd.items():
            self._masks[fd] = self._mask(peer)
            self._epoll.register(fd, self._masks[fd])

    def _mask(self, peer: Peer) -> int:
        return (select.EPOLLIN if peer.is_reading else 0) | (select.EPOLLOUT if peer.wants_to_write else 0)

    def turn(self, seconds: float) -> None:
        """Do what can be done, and wait so long if that is nothing."""
        for fd, event in self._epoll.poll(seconds):
            peer = self._by_fd[fd]
            if event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                peer.read()
            if peer.is_lost:
                self._epoll.unregister(fd)
                del self._by_fd[fd]
                continue
            peer.fill()
            self.flush(peer)

    def flush(self, peer: Peer) -> None:
        """Send what can be sent."""
        fd = peer.socket.fileno()
        try:
            peer.write()
        except ConnectionError:
            peer.is_lost = True
            return
        mask = self._mask(peer)
        if mask != self._masks[fd]:
            self._masks[fd] = mask
            self._epoll.modify(fd, mask)

    def end(self) -> Iterator[Peer]:
        """Have everybody ask for nothing more; yields who is still owed answers."""
        for peer in self.peers:
            peer.depth = -1
        return (peer for peer in self.peers if not peer.is_lost and peer.is_reading and peer.answered < peer.sent)

    def close(self) -> None:
        self._epoll.close()
        for peer in self.peers:
            peer.close()
