"""Synced watches: all that watch the same keys in the same way share one cursor in the store.

A *synced* watch has been sent everything up to its group's cursor. The group takes each change once, encodes it once,
and sends it to every watch of it; so a thousand watches of one prefix cost a commit one wake-up, and each delivery
little more than the transport does. A watch that cannot be sent to, as its client does not read, leaves the group
(*stalled*), and catches up from the log (*unsynced*, see `watch_replay`) when it can. There is one object a watch;
no task, no future, and no watcher of the store's.

Invariants:

* I1. A watch is in `watches` of its group exactly while it is synced.
* I2. Everything up to the cursor of the group's watcher was sent to each of its watches, or is in `_delivery`, which
  holds all watches that were synced when it was taken.
* I3. A group has a watcher exactly while it has a synced watch. It then listens, or is in the queue of `Turns`.
* I4. What is at or below `StreamWatch.after` is not sent: it was, or is before the watch's start.

Example, two watches of one prefix; the cursor is the group's:

    put a1 (2)     delivery [2: a1] to both            cursor 2
    put a2 (3)     the second is stalled with after 2  cursor 3   the first gets [3]
    put a3 (4)     the first gets [4]                  cursor 4
    second reads   replays 3 and 4 from after 2        cursor 4   synced again
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto
from typing import NamedTuple, Protocol

from mvccstore.errors import CompactedError
from mvccstore.hub import WatchBatch
from mvccstore.mvcc.etcd_encoding import int_field
from mvccstore.server.node import Node
from mvccstore.server.services.watch_events import COPIED_BYTES_MAX, FRAGMENT_OVERHEAD_BYTES, Encoded
from mvccstore.server.services.watch_turns import Turns, Work
from mvccstore.server.transport.call import Call
from mvccstore.types import KeyRange, Keys
from mvccstore.watch import Watcher, WatchFilter

DELIVERY_REVISIONS_MAX = 64
DELIVERY_BYTES_MAX = 128 * 1024
"""Roughly; and at least one revision: what a group sends to one watch after the other."""


class State(Enum):
    """Where a watch is on its way."""

    UNSYNCED = auto()
    """It reads the log, or waits to do so."""
    SYNCED = auto()
    """It is in its group."""
    STALLED = auto()
    """Its client does not take what it was sent."""
    COMPACTED = auto()
    """What comes next was compacted away. Nothing is sent any more; its id is taken until it is cancelled."""
    GONE = auto()


class Stream(Protocol):
    """What a watch needs of its stream."""

    call: Call

    def stall(self, watch: StreamWatch) -> None:
        """Have a watch go on when the call is writable."""
        ...

    def fail(self, error: Exception) -> None:
        """End the stream."""
        ...


class StreamWatch:
    """One watch of one stream."""

    __slots__ = (
        "after",
        "fragment_bytes",
        "group",
        "has_progress",
        "id_field",
        "is_quiet",
        "start",
        "state",
        "stream",
        "watch_id",
    )

    def __init__(
        self,
        stream: Stream,
        watch_id: int,
        group: Group,
        start: int,
        after: int,
        *,
        has_progress: bool,
        fragment_bytes: int,
    ) -> None:
        self.stream = stream
        self.watch_id = watch_id
        self.id_field = int_field(2, watch_id)
        self.group = group
        self.start = start
        """The `start_revision` it was created with."""
        self.after = after
        self.has_progress = has_progress
        self.is_quiet = True
        """Nothing was sent since the last tick."""
        self.fragment_bytes = fragment_bytes
        """A response of this size is split; 0 if none is to be."""
        self.state = State.UNSYNCED
        group.count += 1

    def leave(self) -> None:
        """Let go of everything, for good."""
        if self.state is State.SYNCED:
            self.group.part(self)
        if self.state is not State.GONE:
            self.state = State.GONE
            self.group.count -= 1
            self.group.close_if_done()

    def cancel_compacted(self, node: Node, compact_revision: int) -> None:
        """Tell that what comes next is gone."""
        if self.state is State.SYNCED:
            self.group.part(self)
        self.state = State.COMPACTED
        response = node.headers.at(0) + self.id_field + b"\x20\x01" + int_field(5, compact_revision)
        self.stream.call.send(response)


class GroupKey(NamedTuple):
    """What the watches of a group have in common."""

    keys: Keys
    prev_kv: bool
    filters: tuple[WatchFilter, ...]

    @property
    def size(self) -> int:
        """The bytes of its keys."""
        keys = self.keys
        return len(keys.start) + len(keys.end or b"") if isinstance(keys, KeyRange) else len(keys)


class Groups:
    """All groups of a server, each there while anybody watches these keys in this way."""

    __slots__ = ("_groups", "fragment_bytes", "key_bytes", "node", "turns")

    def __init__(self, node: Node, turns: Turns) -> None:
        self.node = node
        self.turns = turns
        self.fragment_bytes = node.limits.max_request_bytes + FRAGMENT_OVERHEAD_BYTES
        self._groups: dict[GroupKey, Group] = {}
        self.key_bytes = 0
        """Of the keys of all."""

    def __len__(self) -> int:
        return len(self._groups)

    def find(self, keys: Keys, *, prev_kv: bool, filters: Collection[WatchFilter]) -> Group:
        """Return the group of a new watch, which counts itself in."""
        key = GroupKey(keys, prev_kv, tuple(sorted(filters)))
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(self, key)
            self.key_bytes += key.size
        return group

    def tally(self) -> tuple[int, int]:
        """Return how many watches there are, and how many of them are synced."""
        groups = list(self._groups.values())
        return sum(group.count for group in groups), sum(len(group.watches) for group in groups)

    def forget(self, group: Group) -> None:
        """Note that nobody is left."""
        if self._groups.pop(group.key, None) is not None:
            self.key_bytes -= group.key.size


class Response(NamedTuple):
    """What one revision is sent as."""

    revision: int
    header: bytes
    encoded: Encoded


class Delivery:
    """Some revisions on their way to the watches that were synced when they were taken."""

    __slots__ = ("_is_plain", "_position", "_responses", "_watches", "before")

    def __init__(self, responses: list[Response], watches: list[StreamWatch]) -> None:
        self._responses = responses
        self._watches = watches
        self._position = 0
        self._is_plain = False
        self.before = responses[0].revision - 1
        """All watches have been sent what is up to here."""

    @property
    def is_done(self) -> bool:
        """Whether everybody was sent everything."""
        return self._position == len(self._watches)

    def advance(self, share: int) -> int:
        """Do about as many steps; return how many."""
        for response in self._responses:
            if not response.encoded.is_done:
                return response.encoded.advance(share)
        responses = self._responses
        self._is_plain = all(len(response.encoded.joined) <= COPIED_BYTES_MAX for response in responses)
        count = max(share // len(responses), 1)
        start = self._position
        self._position = min(start + count, len(self._watches))
        self._send(self._watches[start : self._position])
        return (self._position - start) * len(responses) + 1

    def _send(self, watches: list[StreamWatch]) -> None:
        plain = [(revision, header, encoded.joined) for revision, header, encoded in self._responses]
        last = plain[-1][0]
        synced = State.SYNCED
        sent = 0
        for watch in watches:
            after = watch.after
            if watch.state is not synced or after >= last:
                continue
            call = watch.stream.call
            if not call.is_writable:
                watch.after = max(after, self.before)
                watch.group.part(watch)
                watch.state = State.STALLED
                watch.stream.stall(watch)
                continue
            if self._is_plain:
                id_field = watch.id_field
                for revision, header, joined in plain:
                    if revision > after:
                        call.send(header + id_field + joined)
            else:
                for revision, header, encoded in self._responses:
                    if revision > after:
                        encoded.send(call, header, watch.watch_id, watch.fragment_bytes)
            watch.after = last
            watch.is_quiet = False
            sent += 1
        if sent:
            number = sum(len(encoded) for _, _, encoded in self._responses)
            watches[0].group.note_events(sent * number)


class Group(Work):
    """The watches of the same keys, with the same options."""

    __slots__ = ("_delivery", "_groups", "_watcher", "count", "key", "watches")

    def __init__(self, groups: Groups, key: GroupKey) -> None:
        super().__init__()
        self._groups = groups
        self._watcher: Watcher | None = None
        self._delivery: Delivery | None = None
        self.key = key
        self.count = 0
        """All watches of it, synced or not."""
        self.watches: dict[StreamWatch, None] = {}
        """The synced ones."""

    def open_watcher(self, after: int) -> Watcher:
        """Watch the store.

        Raises:
            CompactedError: What comes after `after` is gone.
            ClosedError: The store is closed.
        """
        key = self.key
        store = self._groups.node.store
        return store.watch(key.keys, start_revision=after + 1, prev_kv=key.prev_kv, filters=key.filters)

    def admit(self, watch: StreamWatch, revision: int) -> bool:
        """Make a watch synced if all that it is to show is to come; `revision` is the store's."""
        if watch.after < revision:
            return False
        if self._watcher is None:
            self._take_over(self.open_watcher(revision))
        elif watch.after < self._watcher.revision:  # I2
            return False
        self._add(watch)
        return True

    def admit_with(self, watch: StreamWatch, watcher: Watcher) -> bool:
        """Make a watch synced that has been sent everything that `watcher` has; if so, the watcher is given up."""
        watch.after = max(watch.after, watcher.revision)
        if self._watcher is None:
            self._take_over(watcher)
        elif watch.after < self._watcher.revision:
            # Opened between a commit and its publication, and so ahead of the hub: not for long.
            return False
        else:
            watcher.close()
        self._add(watch)
        return True

    def note_events(self, number: int) -> None:
        """Count events that were sent."""
        self._groups.node.tally.events += number

    def _add(self, watch: StreamWatch) -> None:
        self.watches[watch] = None
        watch.state = State.SYNCED

    def _take_over(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._groups.turns.add(self)

    def part(self, watch: StreamWatch) -> None:
        """Let a watch go that is synced; the caller says what it is now."""
        del self.watches[watch]
        if not self.watches and self._watcher is not None:  # I3
            watcher, self._watcher = self._watcher, None
            self._delivery = None
            watcher.unlisten()
            watcher.close()

    def close_if_done(self) -> None:
        """Be forgotten if nobody is left."""
        if not self.count:
            self._groups.forget(self)

    def sent_to(self) -> int:
        """Return the revision up to which all its synced watches were sent everything: at best, the store's.

        -1 if what comes next was compacted away; then none is synced any more.
        """
        assert self._watcher is not None
        if self._delivery is not None:
            return self._delivery.before
        watcher = self._watcher
        try:
            watcher.catch_up()
        except CompactedError as error:
            self._lose(error)
            return -1
        return watcher.revision

    def advance(self, share: int) -> int:
        """Take what is new, and send it."""
        watcher = self._watcher
        if watcher is None:
            return 1
        try:
            if self._delivery is None:
                self._delivery = self._take(watcher)
                if self._delivery is None and watcher.listen(self._ring):
                    return 1
        except CompactedError as error:
            self._lose(error)
            return 1
        except Exception as error:  # noqa: BLE001 - the store's; whoever watches is told
            for watch in list(self.watches):
                watch.stream.fail(error)
            return 1
        used = 1
        if self._delivery is not None:
            used = self._delivery.advance(share)
        if self._delivery is not None and self._delivery.is_done:
            self._delivery = None
        if self._watcher is not None:
            self._groups.turns.add(self)
        return used

    def _lose(self, error: CompactedError) -> None:
        for watch in list(self.watches):
            watch.cancel_compacted(self._groups.node, error.compact_revision)

    def _ring(self) -> None:
        self._groups.turns.ring(self)

    def _take(self, watcher: Watcher) -> Delivery | None:
        headers = self._groups.node.headers
        responses: list[Response] = []
        size = 0
        while size < DELIVERY_BYTES_MAX and len(responses) < DELIVERY_REVISIONS_MAX:
            if not watcher.catch_up():
                break
            batch = watcher.poll()
            if batch is None:
                break
            responses.append(Response(batch.revision, headers.at(batch.revision), Encoded(batch.events)))
            size += events_bytes(batch)
        return Delivery(responses, list(self.watches)) if responses else None


def events_bytes(batch: WatchBatch) -> int:
    """Return about how large the events of a batch are."""
    size = 0
    for _, kv, prev_kv in batch.events:
        size += len(kv.key) + len(kv.value)
        if prev_kv is not None:
            size += len(prev_kv.key) + len(prev_kv.value)
    return size
