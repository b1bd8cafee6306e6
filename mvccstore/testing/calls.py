"""What was asked of a server, and what it answered, in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mvccstore.server.messages import METHODS, rpc
from mvccstore.server.transport.call import Call
from mvccstore.server.transport.status import Code
from mvccstore.types import PutRequest

CALLS_MAX = 10_000
"""Older ones are forgotten."""
MESSAGES_MAX = 1_000
"""Of each direction of a stream; later ones are counted."""


@dataclass(slots=True, eq=False)
class RecordedCall:
    """One call. What is under way changes as it goes on."""

    number: int
    """Counts from 1; it is not used again after `Calls.clear`."""
    path: str
    """As on the wire: `/etcdserverpb.KV/Put`."""
    peer: str
    """The client's address."""
    metadata: tuple[tuple[bytes, bytes], ...]
    began_ms: int
    """When it came, by the server's clock: milliseconds since the epoch."""
    requests: list[Any] = field(default_factory=list)
    """Decoded messages: one, unless requests are streamed."""
    encoded_answers: list[bytes] = field(default_factory=list)
    """One, unless answers are streamed; a very large one is left out."""
    messages_left_out: int = 0
    code: Code | None = None
    """How it ended; None while it is under way. CANCELLED also if the client went away."""
    message: str = ""
    """Of the status."""
    ended_ms: int = 0
    fault: str = ""
    """What was done to it by `faults`; empty if nothing was."""

    @property
    def method(self) -> str:
        """The name alone: `Put`."""
        return self.path.rpartition("/")[2]

    @property
    def service(self) -> str:
        """The service alone: `KV`."""
        return self.path.rpartition("/")[0].rpartition(".")[2]

    @property
    def request(self) -> Any:
        """The only or first request; None if none came yet."""
        return self.requests[0] if self.requests else None

    @property
    def answers(self) -> list[Any]:
        """Decoded messages."""
        response = METHODS[self.path].response
        return [response.FromString(encoded) for encoded in self.encoded_answers]

    @property
    def answer(self) -> Any:
        """The only or first answer; None if there is none."""
        response = METHODS[self.path].response
        return response.FromString(self.encoded_answers[0]) if self.encoded_answers else None

    @property
    def is_ok(self) -> bool:
        """Whether it ended well."""
        return self.code is Code.OK

    def note_request(self, request: Any) -> None:
        """Add a request, if there is room for it."""
        if len(self.requests) < MESSAGES_MAX:
            # A get of a key alone is decoded to that, and a plain put to the store's request.
            if isinstance(request, bytes):
                request = rpc.RangeRequest(key=request)
            elif isinstance(request, PutRequest):
                request = rpc.PutRequest(key=request.key, value=request.value)
            self.requests.append(request)
        else:
            self.messages_left_out += 1

    def note_answer(self, encoded: bytes) -> None:
        """Add an answer, if there is room for it."""
        if len(self.encoded_answers) < MESSAGES_MAX:
            self.encoded_answers.append(encoded)
        else:
            self.messages_left_out += 1


class Calls:
    """The calls of a server, the oldest first; a sequence. It may be read from any thread, while calls go on.

    >>> calls = Calls()
    >>> len(calls), calls("Put")
    (0, [])
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._calls: deque[RecordedCall] = deque(maxlen=CALLS_MAX)
        self._count = 0

    def add(self, call: Call, time_ms: int) -> RecordedCall:
        """Note that a call has begun."""
        with self._lock:
            self._count += 1
            metadata = call.metadata.pairs
            recorded = RecordedCall(self._count, call.method.path, call.peer.address, metadata, time_ms)
            self._calls.append(recorded)
        return recorded

    def __call__(self, method: str = "", *, service: str = "") -> list[RecordedCall]:
        """Return those of a method, `Put` or `/etcdserverpb.KV/Put`, of a service, `KV`, or all."""
        return [call for call in self if method in {"", call.method, call.path} and service in {"", call.service}]

    def __len__(self) -> int:
        return len(self._calls)

    def __getitem__(self, index: int) -> RecordedCall:
        with self._lock:
            return self._calls[index]

    def __iter__(self) -> Iterator[RecordedCall]:
        with self._lock:
            return iter(list(self._calls))

    def under_way(self) -> list[RecordedCall]:
        """Return those that have not ended: open watches, and what waits."""
        return [call for call in self if call.code is None]

    def clear(self) -> None:
        """Forget them."""
        with self._lock:
            self._calls.clear()
