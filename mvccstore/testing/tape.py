"""A cassette made ready to be played: each recorded call under the shape of its request, each watch by itself.

What an answer had to wait for when it was recorded is told by revisions. A recorded call that wrote is known by the
revision of its answer, and by the keys that it wrote. The event of a watch, the answer of `Lock` or `Campaign`, whatever
a server says by itself, is *due* when the recorded writes are done that it can come of: that of its revision; if that is
none of the recorded ones, the newest before it of the same keys. What was done when the call began is not waited for;
but who has got a lock has it until the write that let go of it is done, whoever is first this time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from mvccstore.server.messages import METHODS, rpc
from mvccstore.testing.cassette import Cassette, Part, RecordedCall
from mvccstore.testing.names import Name, Shape, Shapes
from mvccstore.testing.touching import Leases, Ranges, Written, read_keys, written_keys

WATCH = "/etcdserverpb.Watch/Watch"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
_KV = "/etcdserverpb.KV/"
_HOLDING = frozenset({"/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign"})
_WAITING = _HOLDING | {"/v3electionpb.Election/Observe"}
_RELEASING = frozenset(
    {
        *(_KV + "DeleteRange", "/etcdserverpb.Lease/LeaseRevoke"),
        *("/v3lockpb.Lock/Unlock", "/v3electionpb.Election/Resign"),
    }
)
_WRITING = _RELEASING | {_KV + "Put", _KV + "Txn", "/v3electionpb.Election/Proclaim"}
_ANSWERS_AGAIN = frozenset(
    {
        *(_KV + "Range", _KV + "RangeStream", "/etcdserverpb.Lease/LeaseTimeToLive", "/etcdserverpb.Lease/LeaseLeases"),
        *("/etcdserverpb.Cluster/MemberList", "/etcdserverpb.Auth/AuthStatus", "/etcdserverpb.Auth/Authenticate"),
        *(f"/etcdserverpb.Maintenance/{name}" for name in ("Status", "Hash", "HashKV", "Snapshot")),
        *(f"/etcdserverpb.Auth/{name}" for name in ("UserGet", "UserList", "RoleGet", "RoleList")),
        *("/v3electionpb.Election/Leader", "/v3electionpb.Election/Observe"),
        *(f"/grpc.health.v1.Health/{name}" for name in ("Check", "Watch", "List")),
    }
)


Due = tuple[int, ...]
"""Revisions of recorded writes."""


@dataclass(slots=True, eq=False)
class Play:
    """A recorded call to be answered as it was."""

    call: RecordedCall
    shape: Shape
    again: bool
    """Whether it may be answered any number of times: it changes nothing."""
    revision: int = 0
    """Of what it is an answer at: its own, or the newest that was known before."""
    due: list[Due] = field(default_factory=list)
    """For each of its answers, the writes that have to be done first."""
    keys: Ranges = ()
    """What it reads."""
    wrote: int = 0
    """The revision that it has made; 0 for none."""
    holds: bytes = b""
    """The key of the lock that it has got, or of the election that it has won."""
    release: int = 0
    """The revision of the write that lets go of that; 0 if there is none."""


@dataclass(slots=True, eq=False)
class Told:
    """Something that a watch was told."""

    part: Part
    due: Due
    needs_cancel: bool = False
    """Whether the client had asked for its end before."""


@dataclass(slots=True, eq=False)
class Track:
    """A watch of a recorded stream: how it was made, and what it was told."""

    call: RecordedCall
    line: int
    request: Any
    shape: Shape
    created: Part | None = None
    watch_id: int = 0
    told: list[Told] = field(default_factory=list)


@dataclass(slots=True)
class WatchCall:
    """A recorded stream of watches."""

    call: RecordedCall
    tracks: list[Track] = field(default_factory=list)
    end_due: Due = ()
    """What has to be done before its end, if that was its server's doing."""


@dataclass(slots=True)
class Tape:
    """What can be played."""

    cassette: Cassette
    plays: dict[bytes, dict[tuple[Name, ...], list[Play]]] = field(default_factory=lambda: defaultdict(dict))
    """By the skeleton of the request and then by its names, in recorded order; of unknown methods, and of calls whose
    request nobody heard, by the path."""
    tracks: dict[bytes, list[Track]] = field(default_factory=lambda: defaultdict(list))
    watch_calls: dict[int, WatchCall] = field(default_factory=dict)
    """By the number of the call."""
    keep_alives: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    """By recorded lease, the answers to keep it alive."""
    grants: dict[int, bytes] = field(default_factory=dict)
    progress: list[bytes] = field(default_factory=list)
    """The answers to requests for progress."""
    written: Written = field(default_factory=Written)

    @property
    def all_plays(self) -> Iterator[Play]:
        """Those of `plays`, one after the other."""
        return (play for groups in self.plays.values() for plays in groups.values() for play in plays)

    @property
    def all_tracks(self) -> Iterator[Track]:
        """Those of `tracks`, one after the other."""
        return (track for tracks in self.tracks.values() for track in tracks)


def arrange(cassette: Cassette, shapes: Shapes) -> Tape:
    """Make a cassette ready. Cost: linear in its size."""
    return _Arranger(cassette, shapes).arrange()


def revision_of(message: Any) -> int:
    """Return the revision in the header of an answer; 0 if there is none."""
    header = getattr(message, "header", None)
    return 0 if header is None else int(getattr(header, "revision", 0))


def has_written(message: Any) -> bool:
    """Say whether the answer of a call that may write says that it did, as far as it says so."""
    if isinstance(message, rpc.DeleteRangeResponse):
        return bool(message.deleted)
    if isinstance(message, rpc.TxnResponse):
        return any(
            response.HasField("response_put")
            or (response.HasField("response_delete_range") and has_written(response.response_delete_range))
            or (response.HasField("response_txn") and has_written(response.response_txn))
            for response in message.responses
        )
    return True


def is_read(path: str, request: Any) -> bool:
    """Say whether a request changes nothing, so that it may be answered any number of times."""
    if path == _KV + "Txn":
        return all(op.HasField("request_range") for op in [*request.success, *request.failure])
    if path == "/etcdserverpb.Maintenance/Alarm":
        return bool(request.action == rpc.AlarmRequest.GET)
    return path in _ANSWERS_AGAIN


class _Known:
    """The newest revision that any answer had told at a time."""

    def __init__(self, told: Iterable[tuple[float, int]]) -> None:
        self._times: list[float] = []
        self._revisions: list[int] = []
        newest = 0
        for at, revision in sorted(told):
            newest = max(newest, revision)
            self._times.append(at)
            self._revisions.append(newest)

    def at(self, time: float) -> int:
        """Return it."""
        index = bisect_right(self._times, time)
        return self._revisions[index - 1] if index else 0


class _Arranger:
    def __init__(self, cassette: Cassette, shapes: Shapes) -> None:
        self._shapes = shapes
        self._tape = Tape(cassette)
        self._answers: dict[tuple[int, int], Message] = {}
        """Decoded, by call and number of the part."""
        self._done_at: dict[int, float] = {}
        """By the revision of a recorded write, when that was done."""
        self._writer_of: dict[int, int] = {}
        """And the number of the call."""
        self._known = _Known(())
        self._releases = Written()

    def arrange(self) -> Tape:
        calls = self._tape.cassette.calls
        self._decode(calls)
        told = (
            (call.parts[index].at, revision_of(message))
            for call in calls
            for index, message in (
                (number, self._answers.get((call.number, number))) for number in range(len(call.parts))
            )
            if message is not None
        )
        self._known = _Known(told)
        self._find_writes(calls)
        for call in calls:
            if call.path == WATCH:
                self._add_watches(call)
            elif call.path == KEEP_ALIVE:
                self._add_keep_alives(call)
            else:
                self._add_play(call)
        return self._tape

    def _decode(self, calls: Iterable[RecordedCall]) -> None:
        for call in calls:
            types = METHODS.get(call.path)
            if types is None or call.path.endswith("/Snapshot"):
                continue
            for number, part in enumerate(call.parts):
                if part.kind == "answer" and not part.left_out:
                    self._answers[call.number, number] = types.response.FromString(part.encoded)

    def _find_writes(self, calls: Iterable[RecordedCall]) -> None:
        leases = Leases()
        keys: dict[int, Ranges] = {}
        releasing: set[int] = set()
        for call in calls:
            types, answer = METHODS.get(call.path), self._only_answer(call)
            if types is None or not call.requests or call.path in {WATCH, KEEP_ALIVE}:
                continue
            request = types.request.FromString(call.requests[0])
            leases.note(request)
            if call.path not in _WRITING or answer is None or call.ended is None or not has_written(answer):
                continue
            revision = revision_of(answer)
            # An etcd had got there by itself, or by others, if somebody knew of it before.
            is_own = self._known.at(call.began) < revision
            if is_own and (call.path.startswith(_KV) or revision not in keys):
                self._done_at[revision], self._writer_of[revision] = call.ended, call.number
                keys[revision] = written_keys(request, answer, leases)
                if call.path in _RELEASING:
                    releasing.add(revision)
        for revision, ranges in keys.items():
            self._tape.written.add(revision, ranges)
            if revision in releasing:
                self._releases.add(revision, ranges)

    def _only_answer(self, call: RecordedCall) -> Any:
        for number, part in enumerate(call.parts):
            if part.kind == "answer":
                return self._answers.get((call.number, number))
        return None

    def _due(self, revisions: Iterable[int], keys: Ranges, since: float) -> Due:
        """Return the recorded writes that something of these revisions comes of, but for those done at a time."""
        found: set[int] = set()
        for revision in revisions:
            write = revision if revision in self._done_at else self._tape.written.newest(keys, revision)
            if write and self._done_at[write] > since:
                found.add(write)
        return tuple(sorted(found))

    def _due_by_time(self, at: float, since: float) -> Due:
        """Return the newest recorded write that was done before something, if that was after a time."""
        newest = max((revision for revision, done in self._done_at.items() if since < done <= at), default=0)
        return (newest,) if newest else ()

    def _add_play(self, call: RecordedCall) -> None:
        types = METHODS.get(call.path)
        if types is None or not call.requests:
            # An etcd may refuse a call before it has heard what is asked.
            play = Play(call, Shape(call.path.encode(), ()), again=False)
        else:
            request = types.request.FromString(call.requests[0])
            play = Play(call, self._shapes.of(call.path, request), is_read(call.path, request))
            play.keys = read_keys(request)
            answer = self._only_answer(call)
            ended = call.began if call.ended is None else call.ended
            play.revision = revision_of(answer) or self._known.at(ended)
            play.due = [
                self._due_of(call, number, play.keys) if call.path in _WAITING else ()
                for number, part in enumerate(call.parts)
                if part.kind == "answer"
            ]
            if self._writer_of.get(play.revision) == call.number:
                play.wrote = play.revision
            if call.path in _HOLDING and answer is not None:
                play.holds = answer.key if hasattr(answer, "key") else answer.leader.key
                releases = self._releases.of(((play.holds, play.holds + b"\0"),))
                play.release = next((revision for revision in releases if revision > play.revision), 0)
            if isinstance(answer, rpc.LeaseGrantResponse):
                self._tape.grants[answer.ID] = answer.SerializeToString()
        self._tape.plays[play.shape.skeleton].setdefault(play.shape.names, []).append(play)

    def _due_of(self, call: RecordedCall, number: int, keys: Ranges) -> Due:
        """Return what an answer waited for: that the one before let go."""
        answer = self._answers.get((call.number, number))
        if answer is None:
            return ()
        newest = self._tape.written.newest(keys, revision_of(answer))
        return (newest,) if newest and self._done_at[newest] > call.began else ()

    def _add_keep_alives(self, call: RecordedCall) -> None:
        for number, part in enumerate(call.parts):
            answer: Any = self._answers.get((call.number, number))
            if answer is not None:
                self._tape.keep_alives[answer.ID].append(part.encoded)

    def _add_watches(self, call: RecordedCall) -> None:
        asked: list[tuple[Track, float]] = []
        tracks: dict[int, tuple[Track, float]] = {}
        cancelled: set[int] = set()
        stream = self._tape.watch_calls[call.number] = WatchCall(call)
        stream.end_due = () if call.ended is None else self._due_by_time(call.ended, call.began)
        for number, part in enumerate(call.parts):
            if part.kind == "request":
                request = rpc.WatchRequest.FromString(part.encoded)
                if request.HasField("create_request"):
                    shape = shape_of_watch(self._shapes, request)
                    track = Track(call, part.line, request, shape)
                    self._tape.tracks[shape.skeleton].append(track)
                    stream.tracks.append(track)
                    asked.append((track, part.at))
                elif request.HasField("cancel_request"):
                    cancelled.add(request.cancel_request.watch_id)
                continue
            answer: Any = self._answers.get((call.number, number))
            if answer is None:
                continue
            if answer.created:
                if asked:  # watches are made in the order in which they were asked for
                    track, since = asked.pop(0)
                    track.created, track.watch_id = part, answer.watch_id
                    if not answer.canceled:
                        tracks[answer.watch_id] = track, since
            elif answer.watch_id in tracks:
                track, since = tracks[answer.watch_id]
                if answer.canceled:
                    due = self._due_by_time(part.at, since)
                    track.told.append(Told(part, due, needs_cancel=answer.watch_id in cancelled))
                    del tracks[answer.watch_id]
                else:
                    revisions = {event.kv.mod_revision for event in answer.events} or {answer.header.revision}
                    track.told.append(Told(part, self._due(revisions, read_keys(track.request), since)))
            else:
                self._tape.progress.append(part.encoded)


def shape_of_watch(shapes: Shapes, request: Any) -> Shape:
    """Return the shape of a request to watch, whatever id the client has chosen."""
    copy = rpc.WatchRequest()
    copy.CopyFrom(request)
    copy.create_request.watch_id = 0
    return shapes.of(WATCH, copy)
