"""Serves a cassette: calls are answered as they were when it was recorded, what was not asked then is a gap.

What it owns: which recorded calls have been played, which recorded writes the run has done, and what waits for others.

Which recorded call answers one of the run: one with the same request, but for generated names (`names`), that has not
been played yet, the first one first. What changes nothing may be asked again: of the answers to one question, the next is given
that is not older than what the run has written there, and does not come of a write that it has not done; if there is
none, the last one again. What changes something is played once.

Invariants:

* I1. A call gets what was recorded, whole and in order, or a gap; nothing is made up but the end of a watch whose client
  asks for it, and that a lease is alive which was granted in the recording.
* I2. What is due with recorded writes (`tape`) is sent once the run has done them, right behind the answer of the last.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import count
from typing import Any

from google.protobuf import text_format

from mvccstore.server.messages import METHODS, rpc
from mvccstore.server.transport.call import Call, Method
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.testing.cassette import Cassette, Part, RecordedCall, read_cassette
from mvccstore.testing.names import GENERATED, Name, Shape, Shapes, Ties, are_same_secrets
from mvccstore.testing.secrets import redacted
from mvccstore.testing.tape import KEEP_ALIVE, WATCH, Due, Play, Tape, Track, WatchCall, arrange, shape_of_watch
from mvccstore.testing.touching import Ranges

_TEXT_MAX = 200
_NEAREST_OF = 200
"""Of so many recorded calls of a method the nearest is found."""
_ALL = 1 << 63


@dataclass(slots=True)
class Gap:
    """Something that was asked, and is not in the cassette."""

    asked: str
    """The method and the request, for people."""
    nearest: str
    """The recorded call that is nearest to it, or that there is none."""
    times: int = 1
    """How often it was asked."""

    def __str__(self) -> str:
        return f"{self.asked}; {self.nearest}" + (f" ({self.times} times)" if self.times > 1 else "")


@dataclass(frozen=True, slots=True)
class Unused:
    """A recorded call, or a watch of a recorded stream, that nobody has asked for."""

    line: int
    text: str
    """The method and the request, for people."""

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


class Replay:
    """A cassette that is being played. Used on the loop's thread, but for what it says of itself.

    Args:
        cassette: The file, or what `read_cassette` made of it.
        generated: What looks generated, as regular expressions, instead of `names.GENERATED`; nothing, if it is empty.
        at_once: Whether events come without waiting for the writes that they come of.

    Raises:
        CassetteError: It is none, is damaged, or has a newer format.
        OSError: It cannot be read.
    """

    def __init__(
        self,
        cassette: str | os.PathLike[str] | Cassette,
        *,
        generated: Iterable[str] | None = None,
        at_once: bool = False,
    ) -> None:
        self.cassette = cassette if isinstance(cassette, Cassette) else read_cassette(cassette)
        self.shapes = Shapes(GENERATED if generated is None else [each.encode() for each in generated])
        self.tape: Tape = arrange(self.cassette, self.shapes)
        self._floor = _ALL if at_once else 0
        self._paths: set[str] = set()
        self.rewind()

    def rewind(self) -> None:
        """Begin anew, with nothing played and no gaps."""
        self.ties = Ties()
        self._played: set[Play] = set()
        self._opened: set[Track] = set()
        self._position: dict[Play, int] = {}
        self._alike: dict[bytes, deque[tuple[tuple[Name, ...], list[Play]]]] = {}
        """By skeleton, what may be played of it yet."""
        self._done: set[int] = set()
        """The revisions of the recorded writes that were played."""
        self._newest_done = 0
        self._released = self._floor
        """Up to here writes count as done."""
        self._waiting: dict[int, list[Callable[[], None]]] = {}
        """By the write that it waits for."""
        self._holders: dict[Ranges, Play] = {}
        """By the keys of a lock or an election, who has got it last."""
        self._kept_alive: dict[int, int] = {}
        self._progress = 0
        self._gaps: dict[str, Gap] = {}

    # What it says of itself

    @property
    def gaps(self) -> list[Gap]:
        """What was asked and is not in the cassette, in order."""
        return list(self._gaps.values())

    @property
    def unused(self) -> list[Unused]:
        """What is in the cassette and was not asked, in the order of its lines.

        A question that was asked at least once is not in it; neither are keep-alives, which go by the clock, nor what
        got no answer in the recording.
        """
        asked = {play.shape for play in set(self._played) if play.again}
        calls = [
            Unused(play.call.line, _describe(play.call.path, play.call))
            for play in self.tape.all_plays
            if play not in self._played
            and not (play.again and play.shape in asked)
            and play.call.path in self._paths
            and (play.call.answers or play.call.ended_by is None)
        ]
        watches = [
            Unused(track.line, f"{_short(WATCH)}({_shown(track.request)})")
            for track in self.tape.all_tracks
            if track not in self._opened and track.created is not None
        ]
        return sorted([*calls, *watches], key=lambda unused: unused.line)

    def catch_up(self, revision: int | None = None) -> None:
        """Have what is due up to a revision be sent, as if its recorded writes had been done; None for all of it."""
        self._released = max(self._released, _ALL if revision is None else revision)
        for write in sorted(write for write in self._waiting if write <= self._released):
            self._call_waiting(write)

    def intercept(self, method: Method) -> Method:
        """Return a method that answers from the cassette: for `ServerOptions.intercept`."""
        self._paths.add(method.path)
        decode = METHODS[method.path].request.FromString
        if method.path == WATCH:
            return replace(method, decode=decode, stream_handler=lambda call: _Watches(self, call))
        if method.path == KEEP_ALIVE:
            return replace(method, decode=decode, stream_handler=lambda call: _KeepAlives(self, call))
        assert method.handler is not None
        return replace(method, decode=decode, handler=self._serve)

    # Calls with one request

    def _serve(self, call: Call, request: Any) -> None:
        path = call.method.path
        play = self._find(path, request)
        if play is None:
            raise self.gap(path, request)
        _Player(self, call, play).go_on()

    def _find(self, path: str, request: Any) -> Play | None:
        shape = self.shapes.of(path, request)
        chosen = self._find_same(shape) or self._find_alike(shape)
        if chosen is None:
            # An etcd may have refused a call before it heard what was asked.
            unheard = self.tape.plays.get(path.encode(), {}).get((), [])
            chosen = self._unplayed(unheard)
        if chosen is not None:
            self._played.add(chosen)
        return chosen

    def _find_same(self, shape: Shape) -> Play | None:
        """Return what answers a request whose names are known."""
        names = self.ties.recorded(shape.names)
        plays = self.tape.plays.get(shape.skeleton, {}).get(names, [])
        if shape.secrets:
            plays = [play for play in plays if are_same_secrets(shape.secrets, play.shape.secrets)]
        if not plays:
            return None
        chosen = self._choose(plays) if plays[0].again else self._unplayed(plays)
        if chosen is not None:
            self.ties.tie(shape.names, names)
        return chosen

    def _find_alike(self, shape: Shape) -> Play | None:
        """Return what answers a request whose names can be recorded ones."""
        if not shape.names or shape.skeleton not in self.tape.plays:
            return None
        groups = self._alike.get(shape.skeleton)
        if groups is None:
            groups = self._alike[shape.skeleton] = deque(self.tape.plays[shape.skeleton].items())
        while groups and self._unplayed(groups[0][1]) is None:
            groups.popleft()
        for names, plays in groups:
            play = self._unplayed(plays)
            if play is not None and self.ties.can_be_same(shape.names, names):
                self.ties.tie(shape.names, names)
                return play
        return None

    def _first_unplayed(self, plays: list[Play]) -> int:
        """Return the number of the first that is still to be played; they are played in their order."""
        # Where it was when it was looked for last is kept with the first of them.
        number = self._position.get(plays[0], 0)
        while number < len(plays) and plays[number] in self._played:
            number += 1
        self._position[plays[0]] = number
        return number

    def _unplayed(self, plays: list[Play]) -> Play | None:
        number = self._first_unplayed(plays) if plays else 0
        return plays[number] if number < len(plays) else None

    def _choose(self, plays: list[Play]) -> Play:
        """Return the answer to a question that may be asked again."""
        number = self._first_unplayed(plays)
        writes = self.tape.written.of(plays[0].keys)
        at = bisect_right(writes, self._newest_done)
        done = next((writes[number] for number in range(at - 1, -1, -1) if writes[number] in self._done), 0)
        while number + 1 < len(plays) and plays[number].revision < done:
            if self._is_ahead(plays[number + 1], plays[number]):
                break
            self._played.add(plays[number])
            number += 1
        last = plays[number - 1] if number else None
        if number < len(plays) and (last is None or not self._is_ahead(plays[number], last)):
            return plays[number]
        assert last is not None
        return last

    def _is_ahead(self, play: Play, last: Play | None) -> bool:
        """Say whether an answer comes of a write that the run has not done, nor was told of."""
        write = self.tape.written.newest(play.keys, play.revision)
        return write > (0 if last is None else last.revision) and write not in self._done

    def note_answered(self, play: Play) -> None:
        """Note that a call was answered: what waited for it is sent."""
        if play.release:
            self._holders[play.keys] = play
        if play.wrote:
            self._done.add(play.wrote)
            self._newest_done = max(self._newest_done, play.wrote)
            self._call_waiting(play.wrote)

    # Waiting

    def held_up_by(self, play: Play) -> Due:
        """Return the write that lets go of what a call is to get, if another has that in this run.

        They may have come one after the other when they were recorded, and at once now.
        """
        holder = self._holders.get(play.keys) if play.holds else None
        return () if holder is None or holder.holds == play.holds else (holder.release,)

    def is_due(self, due: Due, then: Callable[[], None]) -> bool:
        """Say whether recorded writes are done; if one is not, `then` is called when it is."""
        for write in due:
            if write > self._released and write not in self._done:
                self._waiting.setdefault(write, []).append(then)
                return False
        return True

    def _call_waiting(self, write: int) -> None:
        for callback in self._waiting.pop(write, ()):
            callback()

    # Watches, leases

    def find_track(self, request: Any) -> Track | None:
        """Return the recorded watch of a request, which is played then."""
        shape = shape_of_watch(self.shapes, request)
        rest = [track for track in self.tape.tracks.get(shape.skeleton, ()) if track not in self._opened]
        names = self.ties.recorded(shape.names)
        found = next((track for track in rest if track.shape.names == names), None) or next(
            (track for track in rest if self.ties.can_be_same(shape.names, track.shape.names)), None
        )
        if found is not None:
            self.ties.tie(shape.names, found.shape.names)
            self._opened.add(found)
        return found

    def next_progress(self) -> bytes | None:
        """Return the next recorded answer to a request for progress, the last one again behind it; None: no such."""
        recorded = self.tape.progress
        self._progress += 1
        return recorded[min(self._progress, len(recorded)) - 1] if recorded else None

    def keep_alive(self, live: int) -> bytes | None:
        """Return the next recorded answer to keep a lease alive, the last one again behind it; None for no such lease."""
        lease = self.ties.recorded_lease(live)
        answers = self.tape.keep_alives.get(lease)
        if answers:
            number = self._kept_alive[lease] = self._kept_alive.get(lease, 0) + 1
            return self.translated(KEEP_ALIVE, answers[min(number, len(answers)) - 1])
        granted = self.tape.grants.get(lease)
        if granted is None:
            return None
        # It was alive when it was recorded, though nobody was as far as to say so.
        grant = rpc.LeaseGrantResponse.FromString(granted)
        return rpc.LeaseKeepAliveResponse(header=grant.header, ID=live, TTL=grant.TTL).SerializeToString()

    def translated(self, path: str, encoded: bytes) -> bytes:
        """Return an answer with the names of this run: the exact bytes, if they are those of the recording."""
        if self.ties.are_trivial or path.endswith("/Snapshot"):
            return encoded
        message = METHODS[path].response.FromString(encoded)
        self.shapes.rename(message, self.ties.live)
        return message.SerializeToString(deterministic=True)

    # Gaps

    def gap(self, path: str, request: Any) -> RpcError:
        """Note a gap, and return what the client is told."""
        asked = f"{_short(path)}({_shown(request)})"
        found = self._gaps.get(asked)
        if found is not None:
            found.times += 1
        else:
            self._gaps[asked] = found = Gap(asked, self._nearest(path, asked))
        return RpcError(Code.FAILED_PRECONDITION, f"{self.cassette.path} has no answer to {asked}; {found.nearest}")

    def _nearest(self, path: str, asked: str) -> str:
        recorded = [(call.line, _describe(path, call)) for call in self.cassette.calls if call.path == path]
        if path == WATCH:
            recorded = [(track.line, f"{_short(path)}({_shown(track.request)})") for track in self.tape.all_tracks]
        if not recorded:
            return f"no {_short(path)} was recorded"
        line, text = max(recorded[:_NEAREST_OF], key=lambda each: SequenceMatcher(None, asked, each[1]).ratio())
        if text == asked:
            return f"it was recorded, last in line {[each[0] for each in recorded if each[1] == asked][-1]}, and has been played"
        return f"the nearest is line {line}: {text}"


class _Player:
    """Answers one call with the answers of a recorded one."""

    def __init__(self, replay: Replay, call: Call, play: Play) -> None:
        self._replay = replay
        self._call = call
        self._play = play
        self._answers = play.call.answers
        self._sent = 0
        self._is_unary = not METHODS[play.call.path].server_streaming

    def go_on(self) -> None:
        """Send what can be sent."""
        call, recorded = self._call, self._play.call
        while self._sent < len(self._answers) and not call.is_done:
            due = (*self._play.due[self._sent], *self._replay.held_up_by(self._play))
            if not self._replay.is_due(due, self.go_on):
                return
            if not call.is_writable:
                call.on_writable = self.go_on
                return
            part = self._answers[self._sent]
            self._sent += 1
            if part.left_out:
                call.fail(_left_out(part))
                return
            message = self._replay.translated(recorded.path, part.encoded)
            if self._is_unary:
                call.reply(message)
                self._replay.note_answered(self._play)
            else:
                call.send(message)
        if not call.is_done:
            _end(call, recorded)


def _end(call: Call, recorded: RecordedCall) -> None:
    """End a call as it was, if it was its etcd that has ended it; else it stays open, as it was."""
    if recorded.ended is None or recorded.ended_by in {"client", "recorder"}:
        return
    if recorded.code == Code.OK:
        call.finish()
    else:
        call.fail(RpcError(recorded.code, recorded.message))


def _left_out(part: Part) -> RpcError:
    return RpcError(Code.RESOURCE_EXHAUSTED, f"an answer of {part.left_out} bytes was too large to be recorded")


class _KeepAlives:
    """A stream that keeps leases alive."""

    def __init__(self, replay: Replay, call: Call) -> None:
        self._replay = replay
        self._call = call

    def message(self, request: Any) -> None:
        """Keep one alive."""
        answer = self._replay.keep_alive(request.ID)
        if answer is None:
            raise self._replay.gap(KEEP_ALIVE, request)
        self._call.send(answer)

    def end(self) -> None:
        """The client has ended its half."""
        self._call.finish()


class _Watches:
    """A stream of watches: each is played by itself, whichever streams they were on when they were recorded."""

    def __init__(self, replay: Replay, call: Call) -> None:
        self._replay = replay
        self._call = call
        self._watches: dict[int, _Watch] = {}
        self._finished: set[Track] = set()
        call.on_writable = self._go_on

    def message(self, request: Any) -> None:
        """Make a watch, end one, or tell how far they are."""
        if request.HasField("create_request"):
            self._create(request)
        elif request.HasField("cancel_request"):
            watch = self._watches.pop(request.cancel_request.watch_id, None)
            if watch is not None:
                watch.cancel()
        elif request.HasField("progress_request"):
            answer = self._replay.next_progress()
            if answer is None:
                raise self._replay.gap(WATCH, request)
            self._call.send(self._replay.translated(WATCH, answer))

    def end(self) -> None:
        """The client has ended its half: watches go on."""

    def _create(self, request: Any) -> None:
        track = self._replay.find_track(request)
        if track is None:
            refusal = self._replay.gap(WATCH, request)
            # As an etcd refuses a watch: the others of the stream go on.
            refused = rpc.WatchResponse(watch_id=-1, created=True, canceled=True, cancel_reason=refusal.message)
            self._call.send(refused.SerializeToString())
            return
        if track.created is None:
            return
        number = request.create_request.watch_id or self._free_id(track.watch_id)
        watch = self._watches[number] = _Watch(self._replay, self._call, track, number, self._finish)
        watch.begin()

    def _free_id(self, recorded: int) -> int:
        return recorded if recorded not in self._watches else next(n for n in count() if n not in self._watches)

    def _go_on(self) -> None:
        for watch in list(self._watches.values()):
            watch.go_on()

    def _finish(self, watch: _Watch) -> None:
        """A watch has been told all: if all of its recorded stream have, that may be the end of this one."""
        self._finished.add(watch.track)
        stream = self._replay.tape.watch_calls[watch.track.call.number]
        if self._finished.issuperset(stream.tracks):
            self._end(stream)

    def _end(self, stream: WatchCall) -> None:
        if self._call.is_done:
            return
        if self._replay.is_due(stream.end_due, lambda: self._end(stream)):
            _end(self._call, stream.call)


class _Watch:
    """One watch of the run."""

    def __init__(
        self, replay: Replay, call: Call, track: Track, number: int, on_finished: Callable[[_Watch], None]
    ) -> None:
        self._replay = replay
        self._call = call
        self.track = track
        self._number = number
        self._sent = 0
        self._is_over = False
        self._on_finished = on_finished

    def begin(self) -> None:
        """Say that it was made, and what it can be told at once."""
        assert self.track.created is not None
        self._send(self.track.created)
        self.go_on()

    def go_on(self) -> None:
        """Tell what can be told."""
        call, told = self._call, self.track.told
        while self._sent < len(told) and not self._is_over and not call.is_done and call.is_writable:
            next_one = told[self._sent]
            if next_one.needs_cancel:
                return
            if not self._replay.is_due(next_one.due, self.go_on):
                return
            self._sent += 1
            self._send(next_one.part)
        if self._sent == len(told) and not self._is_over and not call.is_done:
            self._is_over = True
            self._on_finished(self)

    def cancel(self) -> None:
        """The client wants no more."""
        if self._call.is_done:
            return
        is_told, self._is_over = self._is_over, True
        last = self.track.told[-1] if self.track.told else None
        if last is not None and last.needs_cancel:
            self._send(last.part)
        else:
            assert self.track.created is not None
            header = rpc.WatchResponse.FromString(self.track.created.encoded).header
            end = rpc.WatchResponse(header=header, watch_id=self._number, canceled=True)
            self._call.send(end.SerializeToString())
        if not is_told:
            self._on_finished(self)

    def _send(self, part: Part) -> None:
        encoded = self._replay.translated(WATCH, part.encoded)
        if self._number != self.track.watch_id:
            response = rpc.WatchResponse.FromString(encoded)
            response.watch_id = self._number
            encoded = response.SerializeToString(deterministic=True)
        self._call.send(encoded)


def _short(path: str) -> str:
    service, _, name = path.rpartition("/")
    return f"{service.rpartition('.')[2]}.{name}"


def _shown(request: Any) -> str:
    text = text_format.MessageToString(redacted(request), as_one_line=True)
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}..."


def _describe(path: str, call: RecordedCall) -> str:
    types, requests = METHODS.get(path), call.requests
    shown = _shown(types.request.FromString(requests[0])) if types is not None and requests else ""
    return f"{_short(path)}({shown})"
