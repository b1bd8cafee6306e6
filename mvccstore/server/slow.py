"""Requests that take long: a line in the log for each, with what it asked for, in etcd's words.

Keys are shown, of values only the size, and nothing of users, passwords and tokens. What is answered at once is not
timed: it reads a page at most.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mvccstore.clock import SystemClock, monotonic
from mvccstore.server.durations import shown_duration
from mvccstore.server.logs import Sampler
from mvccstore.server.transport.call import Call
from mvccstore.types import (
    CompactRequest,
    Compare,
    DeleteRequest,
    KeyRange,
    Keys,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    Request,
    TxnRequest,
    WriteRequest,
)

_log = logging.getLogger("mvccstore.server")

SHOWN_MAX = 1_000
"""Characters of a request that are shown."""
_KEY_SHOWN_MAX = 200
_PARTS_SHOWN_MAX = 20
_RESULTS = {"==": "", ">": "GREATER", "<": "LESS", "!=": "NOT_EQUAL"}
_OPERANDS = {"version": "version", "create": "create_revision", "mod": "mod_revision", "lease": "lease"}
_KINDS = {
    PutRequest: "request_put",
    DeleteRequest: "request_delete_range",
    RangeRequest: "request_range",
    TxnRequest: "request_txn",
}
_APPLIED = {
    PutRequest: "put",
    DeleteRequest: "delete_range",
    TxnRequest: "txn",
    CompactRequest: "compaction",
    LeaseGrantRequest: "lease_grant",
    LeaseRevokeRequest: "lease_revoke",
}
_APPLY, _CALL = "apply request took too long", "request stats"


@dataclass(frozen=True, slots=True)
class SlowOptions:
    """From when on something is slow."""

    apply_seconds: float = 0.1
    """Carrying out and commit, or a read: `--warning-apply-duration`."""
    unary_seconds: float = 0.3
    """A call, from its request to its answer: `--warning-unary-request-duration`."""


class SlowRequests:
    """Notes what was slow. `now` is in seconds; any thread may use it."""

    def __init__(self, options: SlowOptions, now: Callable[[], float] | None = None) -> None:
        self.now = now or monotonic
        self.apply_seconds = options.apply_seconds
        self.unary_seconds = options.unary_seconds
        self.applies = 0
        """How many were slow to be carried out."""
        self._sampler = Sampler(self.now)

    def note_commit(self, took: float, requests: Sequence[WriteRequest]) -> None:
        """Note requests that were carried out in one commit, which took longer than `apply_seconds`."""
        for request in requests:
            self._note_apply(took, request, "", "")

    def note_read(self, call: Call, began_at: float, request: RangeRequest, rows: int, size_bytes: int) -> None:
        """Note a read that was not answered at once, when it is about to be answered, if it was slow."""
        took = self.now() - began_at
        if took > self.apply_seconds:
            found = f"range_response_count:{rows} size:{size_bytes}"
            self._note_apply(took, request, "read-only range ", found)
        if took > self.unary_seconds:
            self.note_call(call, took, request, 0)

    def _note_apply(self, took: float, request: WriteRequest | RangeRequest, prefix: str, found: str) -> None:
        self.applies += 1
        if self._sampler.allows(_APPLY):
            fields = {
                "took": shown_duration(took),
                "expected-duration": shown_duration(self.apply_seconds),
                "prefix": prefix,
                "request": _applied(request),
                "response": found,
            }
            _log.warning(_APPLY, extra={"fields": fields, "is_sampled": True})

    def note_call(self, call: Call, took: float, request: WriteRequest | RangeRequest, size_bytes: int) -> None:
        """Note a call that took longer than `unary_seconds`."""
        if self._sampler.allows(_CALL):
            began_at = datetime.fromtimestamp(SystemClock().time_ms() / 1000 - took, UTC)
            fields = {
                "start time": began_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "time spent": shown_duration(took),
                "remote": call.peer.address,
                "response type": call.method.path,
                "request count": int(isinstance(request, PutRequest)),
                "request size": size_bytes,
                "request content": shown(request),
            }
            _log.warning(_CALL, extra={"fields": fields, "is_sampled": True})


def shown(request: WriteRequest | RangeRequest) -> str:
    """Return a request as etcd's log has it, without the values in it.

    >>> shown(PutRequest(b"a\\xff", b"secret", 7))
    'key:"a\\\\377" value_size:6 lease:7'
    """
    text = _shown(request).rstrip()
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."


def _shown(request: WriteRequest | RangeRequest) -> str:
    match request:
        case PutRequest():
            lease = f"lease:{request.lease} " if request.lease else ""
            value = f"value_size:{len(request.value)} " if request.value else ""
            return f"key:{_quoted(request.key)} {value}{lease}"
        case DeleteRequest():
            return _keys(request.keys)
        case RangeRequest():
            limit = f"limit:{request.limit} " if request.limit else ""
            revision = f"revision:{request.revision} " if request.revision else ""
            return _keys(request.keys) + limit + revision
        case TxnRequest():
            compare, success, failure = (
                _several(_compare, request.compare),
                _several(_operation, request.success),
                _several(_operation, request.failure),
            )
            return f"compare:<{compare}> success:<{success}> failure:<{failure}>"
        case CompactRequest():
            return f"revision:{request.revision} "
        case LeaseGrantRequest():
            return f"TTL:{request.ttl_ms // 1000} ID:{request.lease_id} "
        case LeaseRevokeRequest():
            return f"ID:{request.lease_id} "
        case _:
            return ""  # of users or the like: nothing of it is shown


def _several(show: Callable[..., str], parts: Sequence[Request] | Sequence[Compare]) -> str:
    left = len(parts) - _PARTS_SHOWN_MAX
    return " ".join(map(show, parts[:_PARTS_SHOWN_MAX])) + (f" ({left} more)" if left > 0 else "")


def _compare(compare: Compare) -> str:
    operand, target = compare.operand, compare.target
    result = _RESULTS[compare.operator]
    about = (f"result:{result} " if result else "") + ("" if target == "version" else f"target:{target.upper()} ")
    shown_operand = f"value_size:{len(operand)} " if isinstance(operand, bytes) else f"{_OPERANDS[target]}:{operand} "
    return f"{about}{_keys(compare.keys)}{shown_operand}"


def _operation(request: Request) -> str:
    return f"{_KINDS[type(request)]}:<{_shown(request)}>"


def _applied(request: WriteRequest | RangeRequest) -> str:
    """Return a request as what was carried out."""
    name = _APPLIED.get(type(request))
    return shown(request) if name is None else f"{name}:<{shown(request)} >"


def _keys(keys: Keys) -> str:
    if not isinstance(keys, KeyRange):
        return f"key:{_quoted(keys)} "
    return f"key:{_quoted(keys.start)} range_end:{_quoted(bytes(1) if keys.end is None else keys.end)} "


def _quoted(key: bytes) -> str:
    cut = key[:_KEY_SHOWN_MAX]
    letters = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in cut)
    return f'"{"".join(letters)}{"..." if len(cut) < len(key) else ""}"'
