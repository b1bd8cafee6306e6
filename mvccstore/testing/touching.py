"""Which keys requests read and write, and so which recorded writes an answer can come of."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from mvccstore.server.messages import rpc

Range = tuple[bytes, bytes | None]
"""From the first to before the second; None has no end."""
Ranges = tuple[Range, ...]


def keys_of(key: bytes, range_end: bytes = b"") -> Range:
    """Return the keys of a request's `key` and `range_end`.

    >>> keys_of(b"a"), keys_of(b"a", b"c"), keys_of(b"a", b"\\0")
    ((b'a', b'a\\x00'), (b'a', b'c'), (b'a', None))
    """
    if not range_end:
        return key, key + b"\0"
    return key, None if range_end == b"\0" else range_end


def read_keys(request: Any) -> Ranges:
    """Return what a request reads, watches or waits for; nothing, if that is no keys."""
    match request:
        case rpc.RangeRequest() | rpc.WatchCreateRequest():
            return (keys_of(request.key, request.range_end),)
        case rpc.TxnRequest():
            return tuple(_read_by_ops([*request.success, *request.failure]))
        case rpc.WatchRequest():
            return read_keys(request.create_request)
        case _:
            pass
    name = getattr(request, "name", None)
    # Of a lock or an election.
    return ((name + b"/", name + b"0"),) if isinstance(name, bytes) else ()


def _read_by_ops(ops: Iterable[Any]) -> Iterator[Range]:
    for op in ops:
        if op.HasField("request_range"):
            yield from read_keys(op.request_range)
        elif op.HasField("request_txn"):
            yield from read_keys(op.request_txn)


class Leases:
    """Which keys have been put with each lease, as far as recorded requests say so."""

    def __init__(self) -> None:
        self._keys: defaultdict[int, list[Range]] = defaultdict(list)

    def note(self, request: Any) -> None:
        """Look at a request."""
        match request:
            case rpc.PutRequest():
                if request.lease:
                    self._keys[request.lease].append(keys_of(request.key))
            case rpc.TxnRequest():
                for op in [*request.success, *request.failure]:
                    if op.HasField("request_put"):
                        self.note(op.request_put)
                    elif op.HasField("request_txn"):
                        self.note(op.request_txn)
            case _:
                if getattr(request, "lease", 0) and isinstance(getattr(request, "name", None), bytes):
                    self._keys[request.lease] += read_keys(request)

    def keys(self, lease: int) -> Ranges:
        """Return them."""
        return tuple(self._keys.get(lease, ()))


def written_keys(request: Any, answer: Any, leases: Leases) -> Ranges:
    """Return what a request has written, by its answer."""
    match request:
        case rpc.PutRequest():
            return (keys_of(request.key),)
        case rpc.DeleteRangeRequest():
            return (keys_of(request.key, request.range_end),) if answer.deleted else ()
        case rpc.TxnRequest():
            return tuple(_written_by_txn(request, answer, leases))
        case rpc.LeaseRevokeRequest():
            return leases.keys(request.ID)
        case _:
            pass
    leader = getattr(request, "leader", None)
    key = getattr(request, "key", b"") if leader is None else leader.key
    return (keys_of(key),) if key else ()


def _written_by_txn(request: Any, answer: Any, leases: Leases) -> Iterator[Range]:
    ops = request.success if answer.succeeded else request.failure
    for op, response in zip(ops, answer.responses, strict=False):
        kind = op.WhichOneof("request")
        if kind is not None and kind != "request_range":
            done = getattr(response, kind.replace("request", "response"))
            yield from written_keys(getattr(op, kind), done, leases)


class Written:
    """The recorded writes, by what they have written."""

    def __init__(self) -> None:
        self._by_key: defaultdict[bytes, list[int]] = defaultdict(list)
        self._ranges: list[tuple[int, Range]] = []
        """Those of more than a key."""
        self._found: dict[Ranges, list[int]] = {}

    def add(self, revision: int, ranges: Ranges) -> None:
        """Add a write. Not after `of` was asked."""
        for each in ranges:
            if each[1] == each[0] + b"\0":
                self._by_key[each[0]].append(revision)
            else:
                self._ranges.append((revision, each))

    def of(self, ranges: Ranges) -> list[int]:
        """Return the revisions that have changed one of these keys, ascending; the same list each time.

        Cost: linear in the writes, for ranges that were not asked before; for a key, in those of ranges.
        """
        found = self._found.get(ranges)
        if found is None:
            revisions: set[int] = set()
            for each in ranges:
                revisions.update(revision for revision, other in self._ranges if _overlap(each, other))
                if each[1] == each[0] + b"\0":
                    revisions.update(self._by_key.get(each[0], ()))
                else:
                    for key, written in self._by_key.items():
                        if _overlap(each, (key, key + b"\0")):
                            revisions.update(written)
            found = self._found[ranges] = sorted(revisions)
        return found

    def newest(self, ranges: Ranges, revision: int) -> int:
        """Return the newest of them that is not above a revision; 0 if there is none."""
        found = self.of(ranges)
        at = bisect_right(found, revision)
        return found[at - 1] if at else 0


def _overlap(one: Range, other: Range) -> bool:
    return (one[1] is None or other[0] < one[1]) and (other[1] is None or one[0] < other[1])
