"""Events of a response: encoded once, sent to many.

The bytes of a response are its header, the id of the watch, and its events. Only the id differs between the watches
of a group, so the rest is made once; and large events are not copied into each response, but sent as a part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mvccstore.mvcc.etcd_encoding import int_field
from mvccstore.server.messages.fast import event as event_field
from mvccstore.server.messages.fast import watch_response
from mvccstore.server.transport.call import Call
from mvccstore.types import Event

COPIED_BYTES_MAX = 16 * 1024
"""Events up to this size are copied into each response, which is quicker than sending them apart."""
FRAGMENT_OVERHEAD_BYTES = 512 * 1024
"""A response is split when it is this much larger than a request may be."""


class Encoded:
    """Events as the fields of a `WatchResponse`, encoded a share at a time."""

    __slots__ = ("_events", "_parts", "joined")

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events
        self._parts: list[bytes] = []
        self.joined = b""
        """All of them, once `is_done`."""

    def __len__(self) -> int:
        return len(self._events)

    @property
    def is_done(self) -> bool:
        """Whether all are encoded."""
        return len(self._parts) == len(self._events)

    def advance(self, share: int) -> int:
        """Encode about so many more; return how many."""
        begun = len(self._parts)
        parts = [_field(event) for event in self._events[begun : begun + share]]
        self._parts += parts
        if self.is_done:
            self.joined = b"".join(self._parts)
        return len(parts)

    def fragments(self, header: bytes, watch_id: int, bytes_max: int) -> Iterator[bytes]:
        """Return the responses to send in place of one of `bytes_max` or more: all but the last say so."""
        parts = self._parts
        size_without = len(watch_response(header, watch_id, fragment=True))
        start = 0
        while start < len(parts):
            size = size_without + len(parts[start])
            stop = start + 1  # at least one, however large
            while stop < len(parts) and size + len(parts[stop]) < bytes_max:
                size += len(parts[stop])
                stop += 1
            yield watch_response(header, watch_id, b"".join(parts[start:stop]), fragment=stop < len(parts))
            start = stop

    def send(self, call: Call, header: bytes, watch_id: int, fragment_bytes: int) -> None:
        """Send them as a response, or, if `fragment_bytes` is not 0 and less than that, as several."""
        head = header + int_field(2, watch_id)
        joined = self.joined
        size = len(head) + len(joined)
        if 0 < fragment_bytes <= size and len(self._parts) > 1:
            for response in self.fragments(header, watch_id, fragment_bytes):
                call.send(response)
        elif len(joined) <= COPIED_BYTES_MAX:
            call.send(head + joined)
        else:
            call.begin(size)
            call.send_part(head)
            call.send_part(joined)


def _field(event: Event) -> bytes:
    if event.prev_kv is not None and event.kv.create_revision == event.kv.mod_revision:
        # A block that deletes a key and creates it anew: to etcd, what is created has nothing before it.
        return event_field(Event(event.type, event.kv))
    return event_field(event)
