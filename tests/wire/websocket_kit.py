"""A WebSocket of a client, by wsproto over a plain socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any, Self

from wsproto import ConnectionType, WSConnection
from wsproto.events import Event, Message, Request, TextMessage

SECONDS = 20


class Socket:
    """One WebSocket; `opening` is what its handshake was answered with.

    Args:
        step: How many bytes to send at a time; all at once if it is 0.
    """

    def __init__(
        self,
        host: str,
        port: int,
        path: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        subprotocols: Sequence[str] = (),
        step: int = 0,
    ) -> None:
        self._socket = socket.create_connection((host, port), timeout=SECONDS)
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._step = step
        self._events: list[Event] = []
        asked = Request(
            host=f"{host}:{port}", target=path, extra_headers=list(headers), subprotocols=list(subprotocols)
        )
        self.send_bytes(self._protocol.send(asked))
        self.opening = self.receive()

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are."""
        for start in range(0, len(data), self._step or len(data) or 1):
            self._socket.sendall(data[start : start + (self._step or len(data))])

    def send(self, event: Event) -> None:
        """Send what is not a message alone."""
        self.send_bytes(self._protocol.send(event))

    def ask(self, body: Any) -> None:
        """Send a message: JSON, or bytes as they are."""
        self.send(TextMessage(body.decode() if isinstance(body, bytes) else json.dumps(body)))

    def receive(self) -> Event:
        """Return the next event; a message may come in several.

        Raises:
            EOFError: The server has gone without a word.
        """
        while not self._events:
            data = self._socket.recv(65_536)
            if not data:
                raise EOFError
            self._protocol.receive_data(data)
            self._events += list(self._protocol.events())
        return self._events.pop(0)

    def answer(self) -> Any:
        """Return the next message, which must be JSON."""
        text = ""
        while True:
            event = self.receive()
            assert isinstance(event, Message), event
            text += event.data
            if event.message_finished:
                return json.loads(text)

    def close(self) -> None:
        """Hang up without a word."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
