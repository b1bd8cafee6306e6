"""What clients might do to an etcd, as data that is made from a seed, kept in a file, and played to any etcd.

A script is a sequence of steps; a step is a call and its request, with the names of etcd's proto files:

    {"put": {"key": "a", "value": "1", "lease": 2}}
    {"txn": {"compare": [{"key": "a", "target": "VERSION", "version": 1}],
             "success": [{"request_range": {"key": "a", "revision": "now-3"}}]}}
    {"watch": {"key": "a", "start_revision": "now-2"}}

Bytes are text, or `{"base64": "..."}`. A revision is a number or counts from the newest one, `now-3`, or from that
at which the script began, `start+2`: so that a script says the same to a server that is at another revision.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from mvccstore.server.messages import rpc
from mvccstore.testing.contents import as_bytes, as_text

CALLS: Mapping[str, tuple[str, type[Message]]] = {
    "put": ("kv/put", rpc.PutRequest),
    "range": ("kv/range", rpc.RangeRequest),
    "delete": ("kv/deleterange", rpc.DeleteRangeRequest),
    "txn": ("kv/txn", rpc.TxnRequest),
    "compact": ("kv/compaction", rpc.CompactionRequest),
    "grant": ("lease/grant", rpc.LeaseGrantRequest),
    "revoke": ("lease/revoke", rpc.LeaseRevokeRequest),
    "time_to_live": ("lease/timetolive", rpc.LeaseTimeToLiveRequest),
    "keep_alive": ("lease/keepalive", rpc.LeaseKeepAliveRequest),
    "leases": ("lease/leases", rpc.LeaseLeasesRequest),
    "watch": ("watch", rpc.WatchCreateRequest),
}
"""The calls that a step may be: the gateway's path, and what the request is. A watch goes on to the end."""

Request = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """A call and its request."""

    call: str
    request: Request

    def __str__(self) -> str:
        return f"{self.call}({_shown_fields(self.request)})"


Script = tuple[Step, ...]


def _shown_fields(request: Request) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in request.items())


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        if set(value) == {"base64"}:
            return repr(as_bytes(value))
        return f"({_shown_fields(value)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(value)


def script_to_json(script: Iterable[Step]) -> list[dict[str, Any]]:
    """Return a script as JSON has it."""
    return [{step.call: step.request} for step in script]


def script_from_json(value: object) -> Script:
    """Undo `script_to_json`; an object with `steps`, such as a report of `mvccstore compare --json`, will do, too.

    Raises:
        ValueError: It is not a script.
    """
    steps = value.get("steps") if isinstance(value, Mapping) else value
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        msg = "a script is a list of steps, or an object with `steps`"
        raise ValueError(msg)
    found = []
    for number, step in enumerate(steps, 1):
        if not isinstance(step, Mapping) or len(step) != 1 or not isinstance(next(iter(step.values())), Mapping):
            msg = f'step {number} is not of the form {{"put": {{"key": "a"}}}}'
            raise ValueError(msg)
        ((call, request),) = step.items()
        if call not in CALLS:
            msg = f"step {number} is {call!r}, not one of {', '.join(CALLS)}"
            raise ValueError(msg)
        found.append(Step(call, request))
    return tuple(found)


_NAMES = (b"\0", b"a", b"a\0", b"b", b"b\xff", b"c", b"cc", b"d/1", b"d/2", b"e", b"\xff")
_TTL = 90_000
_TTL_TOO_LARGE = 2**40
_TARGETS = {
    "version": "VERSION",
    "create_revision": "CREATE",
    "mod_revision": "MOD",
    "value": "VALUE",
    "lease": "LEASE",
}
_SORT_TARGETS = ("KEY", "VERSION", "CREATE", "MOD", "VALUE")
_RESULTS = ("EQUAL", "GREATER", "LESS", "NOT_EQUAL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a workload speaks of. Few keys, so that they meet; fewer than 13, as etcd's sort leaves ties open from there."""

    keys: tuple[bytes, ...] = _NAMES
    ends: tuple[bytes, ...] = (b"", b"\0", b"a", b"a\0", b"b", b"c", b"cd", b"d0", b"e", b"\xff", b"\xff\xff")
    values: tuple[bytes, ...] = (b"", b"1", b"2", b"10", b"\xff\x00", b"v" * 300)
    leases: tuple[int, ...] = (1, 2, 3, -4)
    has_compactions: bool = True
    """And the list of all leases: what touches others that use the same etcd."""
    is_certain: bool = True
    """And what releases before 3.6 do in one way or another: Go's sort left ties open from seven keys on, and of a txn
    that is wrong in two ways one error or the other is told."""
    has_unknown_enums: bool = False
    """Compares with numbers that no enum has."""


class Workload:
    """Draws steps from a source of random numbers: the same ones from the same seed."""

    def __init__(self, random: random_module.Random, vocabulary: Vocabulary | None = None) -> None:
        self._random = random
        self._words = vocabulary or Vocabulary()

    def script(self, length: int) -> Script:
        """Return so many steps, of all kinds."""
        kinds = {
            self.put: 12,
            self.delete: 3,
            self.range: 7,
            self.txn: 6,
            self.grant: 2,
            self.revoke: 1,
            self.time_to_live: 1,
            self.keep_alive: 1,
            self.watch: 1,
        }
        if self._words.has_compactions:
            kinds |= {self.compact: 1, self.leases: 1}
        drawn = self._random.choices(list(kinds), list(kinds.values()), k=length)
        return tuple(draw() for draw in drawn)

    # Steps

    def put(self) -> Step:
        """Draw a put."""
        return Step("put", self._put())

    def delete(self) -> Step:
        """Draw a deletion of a key or a range."""
        return Step("delete", self._delete())

    def range(self) -> Step:
        """Draw a read: any revision, limit, order and bounds."""
        return Step("range", self._range(self._revision()))

    def txn(self) -> Step:
        """Draw a txn, in which there may be others."""
        # A put that keeps what the same txn has deleted ends an etcd, and again each time that it starts.
        return Step("txn", self._txn(2, has_deletes=self._one((True, False))))

    def grant(self) -> Step:
        """Draw a grant, now and then of a lease that is there, or for too long."""
        lease = self._one(self._words.leases)
        # Each its own, as the list of leases goes by what ends first.
        ttl = _TTL_TOO_LARGE if self._is_rare() and self._is_rare() else _TTL + 1_000 * abs(lease)
        return Step("grant", {"ID": lease, "TTL": ttl})

    def revoke(self) -> Step:
        """Draw the end of a lease, which may not be there."""
        return Step("revoke", {"ID": self._one((*self._words.leases, 404))})

    def time_to_live(self) -> Step:
        """Draw a question for a lease and its keys."""
        return Step("time_to_live", {"ID": self._one((*self._words.leases, 404)), **self._flags("keys")})

    def keep_alive(self) -> Step:
        """Draw the renewal of a lease."""
        return Step("keep_alive", {"ID": self._one((*self._words.leases, 404))})

    def leases(self) -> Step:
        """Return the question for all leases."""
        return Step("leases", {})

    def compact(self) -> Step:
        """Draw a compaction, mostly of one that can be."""
        revision = self._one(("now", "now-1", "now-3", "now-8", "now-20", "now-60", "now+1"))
        return Step("compact", {"revision": revision, **self._flags("physical")})

    def watch(self) -> Step:
        """Draw a watch, from now or from before or from later."""
        request: dict[str, Any] = {"key": as_text(self._one(self._words.keys))}
        if self._one((False, True, True)):
            request["range_end"] = as_text(self._one(self._words.ends))
        start = self._one((0, 0, 0, "now+1", "now", "now-1", "now-5", "now-20", "now+3"))
        filters = self._one(((), (), (), ("NOPUT",), ("NODELETE",)))
        options = {"start_revision": start, "filters": list(filters), "watch_id": self._one((0, 0, 7))}
        return Step("watch", {**request, **_set(options), **self._flags("prev_kv", "fragment")})

    # Requests

    def _put(self, *, may_ignore: bool = True) -> Request:
        # Few that are refused, so that there are keys.
        kept = self._flags("ignore_value", "ignore_lease") if may_ignore and self._is_rare() else {}
        flags = {**self._flags("prev_kv"), **kept}
        request = {"key": as_text(self._one(self._words.keys))}
        if "ignore_value" not in flags or self._is_rare():
            request["value"] = as_text(self._one(self._words.values))
        lease = 0 if "ignore_lease" in flags and not self._is_rare() else self._lease()
        return {**request, **_set({"lease": lease}), **flags}

    def _delete(self) -> Request:
        span = self._span() if self._is_rare() and self._is_rare() else {"key": as_text(self._one(self._words.keys))}
        return {**span, **self._flags("prev_kv")}

    def _range(self, revision: int | str) -> Request:
        options: dict[str, Any] = {"revision": revision, "limit": self._one((0, 0, 1, 2, 5, -1))}
        if self._is_rare():
            options["sort_order"] = self._one(("NONE", "ASCEND", "DESCEND"))
            options["sort_target"] = self._one(_SORT_TARGETS if self._words.is_certain else _SORT_TARGETS[:1])
        for name in ("keys_only", "count_only", "serializable"):
            options[name] = self._is_rare() and self._is_rare()
        if self._is_rare() and self._is_rare():
            for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
                options[name] = self._one((0, 0, "now", "now-1", "now-5", "now-20", -1))
        return {**self._span(), **_set(options)}

    def _txn(self, depth: int, *, has_deletes: bool) -> Request:
        branches = {name: self._operations(depth, has_deletes=has_deletes) for name in ("success", "failure")}
        compares = [self._compare() for _ in range(self._random.randrange(3))]
        return _set({"compare": compares, **branches})

    def _operations(self, depth: int, *, has_deletes: bool) -> list[Request]:
        kinds: list[tuple[str, Any]] = [("request_put", lambda: self._put(may_ignore=not has_deletes))] * 3
        kinds.append(("request_range", lambda: self._range(self._revision() if self._words.is_certain else 0)))
        if has_deletes:
            kinds.append(("request_delete_range", self._delete))
        if depth > 1:
            kinds.append(("request_txn", lambda: self._txn(depth - 1, has_deletes=has_deletes)))
        drawn = (self._one(tuple(kinds)) for _ in range(self._random.randrange(5)))
        return [{name: draw()} for name, draw in drawn]

    def _compare(self) -> Request:
        operands: dict[str, tuple[Any, ...]] = {
            "version": (0, 1, 2, 3, 4),
            "create_revision": (0, 1, "now", "now-1", "now-5", "now-10"),
            "mod_revision": (0, 1, "now", "now-1", "now-5", "now-10"),
            "value": tuple(as_text(value) for value in self._words.values),
            "lease": (0, 0, *self._words.leases, 404),
        }
        name = self._one(tuple(operands))
        operand = {} if self._is_rare() and self._is_rare() else {name: self._one(operands[name])}
        unknown = (5, -1) if self._words.has_unknown_enums else ()
        target: object = _TARGETS[name]
        if self._is_rare() and self._is_rare():
            target = self._one((*_TARGETS.values(), *unknown))
        return {**self._span(), "result": self._one((*_RESULTS, *_RESULTS, *unknown)), "target": target, **operand}

    # Words

    def _span(self) -> Request:
        key = as_text(self._one((*self._words.keys, b"aa", b"")))
        match self._random.randrange(3):
            case 0:
                return {"key": key}
            case 1:
                key = as_text(self._one(self._words.keys))
                return {"key": key, "range_end": as_text(self._one(self._words.ends))}
            case _:
                return {"key": as_text(b"\0"), "range_end": as_text(b"\0")}

    def _revision(self) -> int | str:
        back = self._one((None, None, 0, 1, 2, 5, 10, 30, -1))
        if back is None:
            # One below 1 is compacted in a txn, if anything ever was.
            number: int = self._one((0, 0, 0, -1 if self._words.has_compactions else 0))
            return number
        return f"now-{back}" if back > 0 else "now" if back == 0 else "now+1"

    def _lease(self) -> int:
        lease: int = self._one((0,) * 12 + self._words.leases + (404,))
        return lease

    def _flags(self, *names: str) -> dict[str, bool]:
        return {name: True for name in names if self._is_rare()}

    def _is_rare(self) -> bool:
        """One time in three."""
        return self._random.randrange(3) == 2

    def _one(self, choices: Sequence[Any]) -> Any:
        return self._random.choice(choices)


def _set(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is not as it is anyway."""
    return {name: value for name, value in options.items() if value}
