"""One stream of the Watch service: what its client asks for, and the watches it has.

Invariants:

* I1. Requests are answered in their order, each when it comes; so a watch's `created` is sent before its events.
* I2. An id names one watch until the client cancels it. Ids that the stream chooses ascend and are not used again.
* I3. A sign of progress says a revision up to which every watch that it is for was sent everything, and which none of
  them is beyond.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from mvccstore.errors import StoreError
from mvccstore.server.errors import Refusal
from mvccstore.server.messages.fast import watch_response
from mvccstore.server.services.watch_group import State, StreamWatch
from mvccstore.server.services.watch_hall import Hall
from mvccstore.server.services.watch_turns import Work
from mvccstore.server.transport.call import Call
from mvccstore.server.transport.status import RpcError
from mvccstore.types import KeyRange, Keys
from mvccstore.watch import WatchFilter

_NO_ID = -1
"""In place of an id: of a watch that was not created, or of all watches of the stream."""
_NO_END = b"\0"
_FIRST_KEY = b"\0"
_FILTERS: dict[int, WatchFilter] = {0: "noput", 1: "nodelete"}
ASKED_MAX = 100
"""Of requests for progress that cannot be answered at once; more are not answered, which etcd may do with any."""
TRIES_MAX = 100
FILTERS_MAX = 1_000
"""Of one watch; there are two."""
_LOOKED_AT_ONCE = 100
"""So many watches are looked at when progress is asked for: more would hold up others, 2 us each."""
_EMPTY_RANGE = "mvcc: watcher range is empty"
_TOO_MANY_FILTERS = "mvcc: too many filters"
_DUPLICATE_ID = "mvcc: duplicate watch ID provided on the WatchStream"


class _Refused(Exception):  # noqa: N818 - the client is told, and the stream goes on
    pass


class WatchStream(Work):
    """A stream: the receiver of its requests. As work, it is the signs of progress that are due."""

    __slots__ = (
        "_asked",
        "_due",
        "_hall",
        "_look",
        "_next_id",
        "_node",
        "_stalled",
        "_tries",
        "_watches",
        "call",
        "has_ticks",
    )

    def __init__(self, hall: Hall, call: Call) -> None:
        super().__init__()
        self.call = call
        self.has_ticks = False
        """Whether it was asked for signs of progress at intervals."""
        self._hall = hall
        self._node = hall.node
        self._watches: dict[int, StreamWatch] = {}
        self._next_id = 0
        self._stalled: list[StreamWatch] = []
        self._due: list[StreamWatch] = []
        self._asked: list[int] = []  # the store's revision, each time it was asked for progress
        self._tries = 0
        self._look: _Look | None = None
        """How far one has come for those who asked, of more watches than are looked at at once."""
        hall.streams[self] = None
        call.on_cancel = self.close
        call.on_writable = self._resume

    # What the client asks for

    def message(self, request: Any, /) -> None:
        """Carry out a request."""
        try:
            match request.WhichOneof("request_union"):
                case "create_request":
                    self._create(request.create_request)
                case "cancel_request":
                    self._cancel(request.cancel_request.watch_id)
                case "progress_request":
                    self._tell_progress()
                case _:
                    pass  # as etcd does
        except Exception:
            self.close()
            raise

    def end(self) -> None:
        """Nothing more is asked for; events go on."""

    def cancel_all(self, reason: str, compact_revision: int) -> int:
        """Cancel all watches as the server's own doing; return how many."""
        watches, self._watches = self._watches, {}
        self._hall.number -= len(watches)
        for watch_id, watch in watches.items():
            watch.leave()
            self.call.send(
                watch_response(
                    self._node.header(),
                    watch_id,
                    canceled=True,
                    compact_revision=compact_revision,
                    cancel_reason=reason,
                )
            )
        return len(watches)

    def cut(self, revision: int) -> None:
        """Cancel all watches as if everything below a revision were compacted."""
        self._asked.clear()
        for watch in self._watches.values():
            if watch.state is not State.COMPACTED:
                watch.cancel_compacted(self._node, revision)

    def _create(self, request: Any) -> None:
        key = request.key or _FIRST_KEY
        range_end = request.range_end
        try:
            if request.start_revision < 0:
                raise _Refused(Refusal.COMPACTED.value[1])
            if self._hall.number >= self._node.limits.watches_max:
                self.call.router.cuts.note("watches_max")
                raise _Refused(Refusal.TOO_MANY_REQUESTS.value[1])
            if self._hall.groups.key_bytes + len(key) + len(range_end) > self._node.limits.watch_key_bytes_max:
                self.call.router.cuts.note("watch_key_bytes_max")
                raise _Refused(Refusal.TOO_MANY_REQUESTS.value[1])
            if len(request.filters) > FILTERS_MAX:
                self.call.router.cuts.note("watch_filters_max")
                raise _Refused(_TOO_MANY_FILTERS)
            self._check_permission(key, range_end)
            keys = _keys(key, range_end)
            watch_id = self._choose_id(request.watch_id)
        except _Refused as refused:
            self.call.send(
                watch_response(self._node.header(), _NO_ID, created=True, canceled=True, cancel_reason=str(refused))
            )
            return
        hall = self._hall
        revision = self._node.revision
        start = request.start_revision
        filters = {_FILTERS[number] for number in request.filters if number in _FILTERS}
        watch = self._watches[watch_id] = StreamWatch(
            self,
            watch_id,
            hall.groups.find(keys, prev_kv=request.prev_kv, filters=filters),
            start,
            start - 1 if start else revision,
            has_progress=request.progress_notify,
            fragment_bytes=hall.groups.fragment_bytes if request.fragment else 0,
        )
        hall.number += 1
        self._look = None  # this one is not among what it looks at
        self.call.send(watch_response(self._node.header(revision), watch_id, created=True))  # I1
        if watch.has_progress and not self.has_ticks:
            self.has_ticks = True
            hall.ticks.add(self)
        hall.replays.start(watch)

    def _check_permission(self, key: bytes, range_end: bytes) -> None:
        try:
            self._hall.permit(self.call, key, range_end)
        except RpcError as error:
            # As Go's grpc writes a status.
            code = error.code.name.title().replace("_", "")
            msg = f"rpc error: code = {code} desc = {error.message}"
            raise _Refused(msg) from error

    def _choose_id(self, wanted: int) -> int:
        if wanted:
            if wanted in self._watches:
                raise _Refused(_DUPLICATE_ID)
            return wanted
        while self._next_id in self._watches:
            self._next_id += 1
        self._next_id += 1  # I2
        return self._next_id - 1

    def _cancel(self, watch_id: int) -> None:
        watch = self._watches.pop(watch_id, None)
        if watch is not None:
            self._hall.number -= 1
            watch.leave()
            self.call.send(watch_response(self._node.header(), watch_id, canceled=True))

    def _tell_progress(self) -> None:
        if len(self._asked) >= ASKED_MAX:
            self.call.router.cuts.note("progress_asked_max")
            return
        self._asked.append(self._node.revision)
        self._tries = 0
        if len(self._watches) <= _LOOKED_AT_ONCE:
            self._answer_progress(self._reached())
        else:
            self._hall.turns.add(self)

    def _look_for_progress(self, share: int) -> int:
        """Go on to look how far all watches are; return how many were looked at."""
        if len(self._watches) <= _LOOKED_AT_ONCE:
            self._look = None
            self._answer_progress(self._reached())
            return 1
        if self._look is None:
            self._look = _Look(self._node.revision, list(self._watches.values()))
        reached = self._look.advance(share)
        if reached is None:
            self._hall.turns.add(self)
        else:
            self._look = None
            self._answer_progress(reached)
        return share

    def _answer_progress(self, reached: int) -> None:
        """Tell how far all watches are, when that is as far as the store was when it was asked."""
        if reached < 0 or self._tries == TRIES_MAX:
            self._asked.clear()
            return
        for revision in self._asked:
            if revision <= reached:
                self.call.send(watch_response(self._node.header(reached), _NO_ID))
        self._asked = [revision for revision in self._asked if revision > reached]
        if self._asked:  # a delivery is under way
            self._tries += 1
            self._hall.turns.add(self)

    def _reached(self) -> int:
        """Return what all watches were sent everything up to; 0: not known now; -1: one is not synced, or not begun."""
        reached = current = self._node.revision
        newest = 0
        if not self._watches:
            return -1
        for watch in self._watches.values():
            if watch.state is not State.SYNCED or watch.start > current:
                return -1
            reached = min(reached, watch.group.sent_to())
            newest = max(newest, watch.after)
        # Clients take it for all watches of the stream: no watch may be told of less than it was sent.
        return reached if reached >= newest else 0

    # Signs of progress at intervals

    def tick(self) -> None:
        """Tell each watch that asked for it how far it is, unless events were sent since the last time."""
        self._due = [watch for watch in self._watches.values() if watch.has_progress]
        if self._due:
            self._hall.turns.add(self)

    def advance(self, share: int) -> int:
        """Tell some of those that are due, and those who asked."""
        looked = self._look_for_progress(share) if self._asked else 1
        due, self._due = self._due[:share], self._due[share:]
        for watch in due:
            is_quiet, watch.is_quiet = watch.is_quiet, True
            if is_quiet and watch.state is State.SYNCED and self.call.is_writable:
                revision = watch.group.sent_to()
                if revision >= max(watch.start, watch.after):
                    self.call.send(watch_response(self._node.header(revision), watch.watch_id))
        if self._due:
            self._hall.turns.add(self)
        return max(len(due), looked)

    # What becomes of it

    def stall(self, watch: StreamWatch) -> None:
        """Have a watch go on when the call is writable."""
        self._stalled.append(watch)

    def _resume(self) -> None:
        stalled, self._stalled = self._stalled, []
        try:
            for watch in stalled:
                if watch.state is State.STALLED:
                    self._hall.replays.start(watch)
        except StoreError as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the stream with an error."""
        self.call.fail_with(error)
        self.close()

    def close(self) -> None:
        """Let go of all watches: the stream has ended."""
        watches, self._watches = self._watches, {}
        self._hall.number -= len(watches)
        for watch in watches.values():
            watch.leave()
        self._stalled.clear()
        self._due.clear()
        self._asked.clear()
        self._look = None
        self._hall.streams.pop(self, None)
        self._hall.ticks.remove(self)


class _Look:
    """Whether all of many watches were sent everything up to a revision, looked at a share at a time.

    What one was sent it was sent for good; so at the end all that is left to see is that none was sent more (I3).
    """

    __slots__ = ("_left", "_revision", "_watches")

    def __init__(self, revision: int, watches: list[StreamWatch]) -> None:
        self._revision = revision
        self._watches = watches
        self._left = iter(watches)

    def advance(self, share: int) -> int | None:
        """Look at some; return None if there are more, else as `_reached`."""
        revision, left = self._revision, share
        for watch in islice(self._left, share):
            left -= 1
            if watch.state is State.GONE:
                continue
            if watch.state is not State.SYNCED or watch.start > revision:
                return -1
            if watch.group.sent_to() < revision:
                return 0
        if not left:
            return None
        watches = [watch for watch in self._watches if watch.state is not State.GONE]
        if any(watch.state is not State.SYNCED for watch in watches):
            return -1
        return revision if max(watch.after for watch in watches) <= revision else 0


def _keys(key: bytes, range_end: bytes) -> Keys:
    if not range_end:
        return key
    if range_end == _NO_END:
        # No key is empty; so all keys, where it is those from the first on, are watched as what they are.
        return KeyRange.all() if key == _FIRST_KEY else KeyRange(key)
    if range_end <= key:
        raise _Refused(_EMPTY_RANGE)
    return KeyRange(key, range_end)
