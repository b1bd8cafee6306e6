"""`compare`: generated workloads played to an etcd and to a server of ours, and the first difference made small.

    report = mvccstore.testing.compare("http://127.0.0.1:2379", seed=7, runs=20)
    assert report.is_same, report

Each run is a script of `workload`, drawn from the seed. Both sides begin it with nothing there, and are asked the same
in the same order; what may differ is in the table of `normal`. Our side runs in this process, in memory, as the same
minor version as the other. The first script that is answered differently is made small by `shrinking`.

What the other etcd is safe from: nothing is asked of one that has keys or leases, unless a prefix says where to stay or
`erase` says that they may go; below a prefix, nothing is compacted, and leases have ids of our own. No alarm is raised,
no member or user is touched, and no generated script has what is known to end an etcd of some version.
"""

from __future__ import annotations

import http.client
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mvccstore.server.persona import PERSONAS
from mvccstore.server.server import ServerOptions
from mvccstore.server.serving import serve
from mvccstore.testing.normal import first_difference
from mvccstore.testing.playing import TOO_LATE, Endpoint, Place, Player, RefusedError, leases_of
from mvccstore.testing.shrinking import shrink
from mvccstore.testing.workload import Script, Step, Vocabulary, Workload, script_to_json

LEASE_OFFSET = 0x6D766363 << 24
"""For leases in an etcd that others use."""
LEASE_DISTANCE_MAX = 1 << 20
"""How far from that a lease may be that is ours."""
ATTEMPTS_MAX = 400
"""How many smaller scripts are tried."""
SLOW_ATTEMPTS_MAX = 40
"""How many, where each waits for what does not come."""
_CERTAIN = (3, 6, 0)
"""What earlier releases do one way or the other is left out with them."""
_OLDEST, _NEWEST = min(PERSONAS), max(PERSONAS)

Draw = Callable[[random.Random, int], Script]
"""A workload of one's own: draws a script of so many steps."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where two answers differ first, in the script that shows it."""

    script: Script
    at: int
    """The number of the step, from 0."""
    path: str
    """Where in the answer."""
    theirs: object
    ours: object
    answers: tuple[Any, Any]
    """The whole of both, theirs first."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of a comparison; as text, what there is to know of it."""

    url: str
    release: str
    """What the other etcd says it is."""
    version: str
    """What ours behaved as."""
    seed: int | None
    """Of the run that found the difference, or of the first; None if the script was given."""
    runs: int
    steps: int
    """How many steps were played to both, without those that made a script small."""
    found: Found | None = None
    drawn_steps: int = 0
    """How long the script was that found it."""

    @property
    def is_same(self) -> bool:
        """Whether all was answered alike."""
        return self.found is None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data; `script_from_json` takes it."""
        data: dict[str, Any] = {
            "url": self.url,
            "release": self.release,
            "version": self.version,
            "is_same": self.is_same,
            "seed": self.seed,
            "runs": self.runs,
            "steps_played": self.steps,
        }
        if self.found is not None:
            found = self.found
            data |= {"at": found.at, "path": found.path, "theirs": repr(found.theirs), "ours": repr(found.ours)}
            data["steps"] = script_to_json(found.script)
        return data

    def __str__(self) -> str:
        sides = f"etcd {self.release} at {self.url} and ours as {self.version}"
        seed = "" if self.seed is None else f", seed {self.seed}"
        if self.found is None:
            return f"same: {sides}, in {self.steps} steps of {self.runs} {'run' if self.runs == 1 else 'runs'}{seed}"
        found = self.found
        lines = [f"different: {sides}{seed}; {len(found.script)} steps are left of {self.drawn_steps}"]
        lines += [f"{'->' if at == found.at else '  '} {at + 1:3}  {step}" for at, step in enumerate(found.script)]
        lines.append(f"step {found.at + 1} differs first at {found.path or 'the whole'}:")
        lines += [f"   etcd  {_readable(found.theirs)}", f"   ours  {_readable(found.ours)}", "answered:"]
        lines += [
            f"   {name}  {_readable(answer)}" for name, answer in zip(("etcd", "ours"), found.answers, strict=True)
        ]
        return "\n".join(lines)


def _readable(value: object) -> str:
    return json.dumps(value, default=repr, ensure_ascii=False)


def compare(
    url: str,
    *,
    seed: int = 0,
    steps: int = 60,
    runs: int = 20,
    version: str | None = None,
    prefix: bytes = b"",
    erase: bool = False,
    script: Script | None = None,
    draw: Draw | None = None,
    options: ServerOptions | None = None,
    timeout: float = 5.0,
    ca_file: str | None = None,
    on_run: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Play generated scripts to an etcd and to a server of ours, until one is answered differently.

    Args:
        url: Where the etcd serves clients; it is asked by JSON.
        seed: Of the first run; the next ones have the numbers after it.
        steps: Of each run.
        runs: How many at most.
        version: What ours behaves as; None for the minor version that the etcd says it is of.
        prefix: Keep to keys below this, and compact nothing: for an etcd that has others.
        erase: Delete the keys that are there, and all leases; with a prefix, those below it, and what leases a
            comparison has left.
        script: What to play, once, in place of generated scripts. It is not made smaller.
        draw: Makes the scripts, in place of `Workload`.
        options: How ours behaves otherwise.
        timeout: Seconds to wait for each answer.
        ca_file: The certificates to trust, for `https`.
        on_run: Called with the number of each run before it.

    Raises:
        ConnectionError: The etcd cannot be reached, or went away.
        RefusedError: It has keys or leases, and neither `prefix` nor `erase` was given; or it refuses to be read.
        ValueError: An argument or the script is wrong.

    Cost: about a millisecond a step; for a difference, up to `ATTEMPTS_MAX` times its script. What it leaves in the
    etcd is a higher revision and, without a prefix, compacted history.
    """
    theirs = Endpoint(url, timeout, ca_file)
    try:
        release = _release(theirs)
        chosen = version or _nearest(release)
        words = Vocabulary(has_compactions=not prefix, is_certain=_numbers(release) >= _CERTAIN)
        with serve(options=options or ServerOptions(grace_seconds=0.0), version=chosen) as server:
            ours = Endpoint(server.url, timeout)
            try:
                return _Comparing(theirs, ours, release, chosen, prefix).run(
                    range(seed, seed + runs) if script is None else [None],
                    lambda number: script if script is not None else _drawn(number, steps, draw, words),
                    erase=erase,
                    on_run=on_run,
                )
            finally:
                ours.close()
    except (OSError, http.client.HTTPException) as error:
        msg = f"{theirs.url} cannot be reached: {str(error) or type(error).__name__}"
        raise ConnectionError(msg) from error
    finally:
        theirs.close()


def _drawn(seed: int | None, steps: int, draw: Draw | None, words: Vocabulary) -> Script:
    source = random.Random(seed)
    if draw is not None:
        return draw(source, steps)
    return Workload(source, words).script(steps)


def _release(endpoint: Endpoint) -> str:
    status, answer = endpoint.ask("GET", "/version")
    if status != http.client.OK or not isinstance(answer, dict) or "etcdserver" not in answer:
        msg = f"{endpoint.url} does not say that it is an etcd: /version is answered with {status}"
        raise RefusedError(msg)
    return str(answer["etcdserver"])


def _numbers(release: str) -> tuple[int, int, int]:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2]), int(found[3])) if found else (3, 4, 0)


def _nearest(release: str) -> str:
    """Return the version of ours that is nearest to a release.

    >>> _nearest("3.5.1"), _nearest("3.3.27"), _nearest("3.7.0")
    ('3.5', '3.4', '3.6')
    """
    major, minor, _ = _numbers(release)
    return min(max(f"{major}.{minor}", _OLDEST), _NEWEST)


class _Comparing:
    """The two sides, and what was played to them."""

    def __init__(self, theirs: Endpoint, ours: Endpoint, release: str, version: str, prefix: bytes) -> None:
        self._url, self._release, self._version = theirs.url, release, version
        self._place = Place(prefix=prefix, lease_offset=LEASE_OFFSET if prefix else 0)
        # What a newer version has more is not compared with an older one.
        oldest = min(_numbers(release), _numbers(f"{version}.99"))
        self._players = [Player(endpoint, self._place, oldest) for endpoint in (theirs, ours)]
        self._endpoint = theirs
        self._foreign_leases: set[int] = set()

    def run(
        self,
        seeds: range | list[None],
        script_of: Callable[[int | None], Script],
        *,
        erase: bool,
        on_run: Callable[[int], None],
    ) -> Comparison:
        """Play until a difference is found or all was played; leave nothing there."""
        if isinstance(seeds, list):
            self._check(script_of(None))
        self._take_place(erase=erase)
        try:
            played = 0
            for number, seed in enumerate(seeds):
                on_run(number)
                script = script_of(seed)
                self._check(script)
                found = self.play(script)
                played += len(script)
                if found is not None:
                    if seed is not None:
                        found = self._small(found)
                    return self._report(seed, number + 1, played, found, len(script))
            return self._report(next(iter(seeds), None), len(seeds), played, None, 0)
        finally:
            self._leave()

    def _report(self, seed: int | None, runs: int, played: int, found: Found | None, drawn: int) -> Comparison:
        return Comparison(self._url, self._release, self._version, seed, runs, played, found, drawn)

    def _take_place(self, *, erase: bool) -> None:
        theirs = self._players[0]
        if erase:
            theirs.erase(self._owned)
        elif keys := theirs.key_count():
            where = f" below {self._place.prefix.decode(errors='replace')!r}" if self._place.prefix else ""
            msg = f"{self._url} has {keys} keys{where}: name an unused prefix to stay below, or say that they may be erased"
            raise RefusedError(msg)
        self._foreign_leases.update(theirs.lease_ids())
        if not self._place.prefix and (leases := self._foreign_leases):
            msg = f"{self._url} has {len(leases)} leases: name a prefix to stay below, or say that they may be erased"
            raise RefusedError(msg)
        if not self._place.prefix:
            for player in self._players:
                player.compact()

    def _owned(self, lease: int) -> bool:
        """Say whether a lease may be ended."""
        return not self._place.prefix or abs(lease - LEASE_OFFSET) < LEASE_DISTANCE_MAX

    def _check(self, script: Script) -> None:
        """See that a script can be played in this place, before any of it is."""
        for step in script:
            for player in self._players:
                player.body(step)
            if self._place.prefix and step.call in {"compact", "leases"}:
                msg = f"a script with a {step.call} concerns the whole etcd, and cannot stay below a prefix"
                raise ValueError(msg)
        if self._place.prefix and any(step.call == "grant" and not step.request.get("ID") for step in script):
            msg = "below a prefix a script has to choose the ids of its leases"
            raise ValueError(msg)
        if taken := self._foreign_leases & {self._place.lease_offset + lease for lease in leases_of(script)}:
            msg = f"{self._url} has the lease {min(taken):x}, which would be taken for one of this comparison"
            raise RefusedError(msg)

    def _leave(self) -> None:
        try:
            for player in self._players:
                player.clear()
        except (OSError, http.client.HTTPException, RefusedError):
            return  # what ended the comparison is raised, or it was reported

    def _small(self, found: Found) -> Found:
        smallest = found

        def still_shows(script: Script) -> bool:
            nonlocal smallest
            shown = self.play(script)
            smallest = shown or smallest
            return shown is not None

        # What comes after the step is played for nothing, unless that is a watch: it is read at the end.
        cut = found.script[: found.at + 1]
        if len(cut) < len(found.script):
            still_shows(cut)
        is_slow = TOO_LATE in repr(found.answers)
        shrink(smallest.script, still_shows, SLOW_ATTEMPTS_MAX if is_slow else ATTEMPTS_MAX)
        return smallest

    def play(self, script: Script) -> Found | None:
        """Play a script to both; return the first difference."""
        theirs, ours = self._players
        for player in self._players:
            player.begin(script)
        watched: dict[int, Step] = {}
        for at, step in enumerate(script):
            answers = theirs.play(at, step), ours.play(at, step)
            if found := _first(script, at, answers):
                self._see_that_it_is_there(found)
                return found
            if step.call == "watch":
                watched[at] = step
        if watched:
            seen = [player.finish() for player in self._players]
            for at in watched:
                if found := _first(script, at, (seen[0].get(at), seen[1].get(at))):
                    return found
        return None

    def _see_that_it_is_there(self, found: Found) -> None:
        """An etcd that went away is no difference."""
        if isinstance(found.answers[0], dict) and "broken" in found.answers[0]:
            self._endpoint.ask("GET", "/version")


def _first(script: Script, at: int, answers: tuple[Any, Any]) -> Found | None:
    found = first_difference(*answers)
    return None if found is None else Found(script, at, *found, answers)
