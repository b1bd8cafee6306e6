"""Unsynced watches: they read the log, a page a turn, until they can join their group.

As with etcd, a response of a replay has the events of up to a thousand revisions, and the store's current revision
in its header.

Invariants:

* I1. At most `REPLAYS_MAX` watches hold pages of the log; the others wait in line, and after each response the next one
  has its turn. So thousands of clients that come back at once cost little memory, and none waits for another's end.
* I2. Of a watch whose client does not read, nothing is held: it reads its next page again.
* I3. A watch joins its group when it has been sent all that the group's watches were sent.
"""

from __future__ import annotations

from collections import deque

from mvccstore.errors import CompactedError
from mvccstore.server.services.watch_events import Encoded
from mvccstore.server.services.watch_group import Groups, State, StreamWatch, events_bytes
from mvccstore.server.services.watch_turns import STEPS_A_TURN, Work
from mvccstore.types import Event
from mvccstore.watch import Watcher

REPLAYS_MAX = 16
RESPONSE_REVISIONS_MAX = 1_000
RESPONSE_BYTES_MAX = 16 << 20
"""Roughly, and at least one revision. etcd has no such limit."""
PAGES_A_TURN = 2
_OPENING_STEPS = 10


class Replays:
    """The unsynced watches of a server."""

    __slots__ = ("_active", "_line", "groups")

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self._line: deque[StreamWatch] = deque()
        self._active = 0

    def start(self, watch: StreamWatch) -> None:
        """Have a watch begin, or go on, after `watch.after`: in its group if it can.

        Raises:
            ClosedError: The store is closed.
        """
        if not watch.group.admit(watch, self.groups.node.revision):
            self.line_up(watch)

    def line_up(self, watch: StreamWatch) -> None:
        """Have a watch read the log when it is its turn."""
        watch.state = State.UNSYNCED
        self._line.append(watch)
        self.fill()

    def fill(self) -> None:
        """Let the next ones in line begin."""
        while self._active < REPLAYS_MAX and self._line:
            watch = self._line.popleft()
            if watch.state is State.UNSYNCED:
                self._active += 1
                self.groups.turns.add(Replay(self, watch))

    def end(self) -> None:
        """Note that one of the replays has ended."""
        self._active -= 1
        self.fill()

    @property
    def has_line(self) -> bool:
        """Whether others wait."""
        return bool(self._line)


class Replay(Work):
    """One watch, reading the log: it collects the events of a response, encodes them, sends them, and again."""

    __slots__ = (
        "_bytes",
        "_encoded",
        "_events",
        "_floor",
        "_is_at_end",
        "_last",
        "_replays",
        "_revisions",
        "_watch",
        "_watcher",
    )

    def __init__(self, replays: Replays, watch: StreamWatch) -> None:
        super().__init__()
        self._replays = replays
        self._watch = watch
        self._watcher: Watcher | None = None
        self._floor = 0  # the compact revision, once what comes next is below it
        self._is_at_end = False
        self._clear()

    def _clear(self) -> None:
        self._events: list[Event] = []
        self._revisions = 0
        self._bytes = 0
        self._last = 0  # revision
        self._encoded: Encoded | None = None

    def advance(self, share: int) -> int:
        """Read, encode or send."""
        watch = self._watch
        used = 1
        try:
            if watch.state is not State.UNSYNCED:
                self._end()
            elif self._encoded is None:
                used = self._collect()
            elif not self._encoded.is_done:
                used = self._encoded.advance(share)
                self._again()
            else:
                self._send(self._encoded)
        except Exception as error:  # noqa: BLE001 - the store's; whoever watches is told
            watch.stream.fail(error)
            self._end()
        return used

    def _again(self) -> None:
        self._replays.groups.turns.add(self)

    def _end(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        self._replays.end()

    def _collect(self) -> int:
        watch = self._watch
        if not watch.stream.call.is_writable:  # I2
            watch.state = State.STALLED
            watch.stream.stall(watch)
            self._end()
            return 1
        begun = len(self._events)
        try:
            if self._watcher is None:
                self._watcher = watch.group.open_watcher(watch.after)
            is_complete, used = self._read(self._watcher)
        except CompactedError as error:
            self._floor = error.compact_revision
            is_complete, used = True, 1
        if not is_complete:
            self._again()
        elif self._events:
            self._encoded = Encoded(self._events)
            self._again()
        else:
            self._go_on()
        return used + len(self._events) - begun

    def _read(self, watcher: Watcher) -> tuple[bool, int]:
        """Take what there is; return whether a response is complete, and how many steps it was."""
        pages = 0
        while self._revisions < RESPONSE_REVISIONS_MAX and self._bytes < RESPONSE_BYTES_MAX:
            if not watcher.has_batch:
                if pages == PAGES_A_TURN:
                    return False, STEPS_A_TURN
                pages += 1
                if not watcher.catch_up():
                    return False, STEPS_A_TURN
            batch = watcher.poll()
            if batch is None:
                self._is_at_end = True
                break
            self._events += batch.events
            self._revisions += 1
            self._bytes += events_bytes(batch)
            self._last = batch.revision
        return True, _OPENING_STEPS

    def _send(self, encoded: Encoded) -> None:
        watch = self._watch
        header = self._replays.groups.node.header()
        encoded.send(watch.stream.call, header, watch.watch_id, watch.fragment_bytes)
        watch.group.note_events(len(encoded))
        watch.after = self._last
        watch.is_quiet = False
        self._clear()
        self._go_on()

    def _go_on(self) -> None:
        """Everything that was collected is sent."""
        watch = self._watch
        if self._floor:
            watch.cancel_compacted(self._replays.groups.node, self._floor)
            self._end()
        elif self._is_at_end:
            self._is_at_end = False
            assert self._watcher is not None
            if watch.group.admit_with(watch, self._watcher):  # I3
                self._watcher = None
                self._end()
            else:
                self._again()
        elif self._replays.has_line:  # I1
            self._replays.line_up(watch)
            self._end()
        else:
            self._again()
