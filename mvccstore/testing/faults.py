"""Faults of a server, for a while or for some calls: what a client must survive.

    with etcd.faults.fail("Put", times=2):         the next two puts are not carried out
        ...
    lost = etcd.faults.fail("Put", when="after")   puts are, and their clients are told that they failed
    ...
    lost.end()
    assert lost.count == 3

Each fault begins when it is made and ends with its block, with `end`, after `times` calls, or with `faults.clear()`. Of
several that fit a call, the one made first befalls it. A call is carried out once or not at all, never twice.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol, Self

from mvccstore.lease import Lease
from mvccstore.server.errors import Refusal
from mvccstore.server.messages import rpc
from mvccstore.server.server import Server
from mvccstore.server.transport.call import Peer
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.store import Store
from mvccstore.testing.calls import RecordedCall
from mvccstore.testing.tap import Plan, Tap
from mvccstore.testing.tokens import IssuedTokens
from mvccstore.types import lease_id_of

When = Literal["before", "after"]

WATCH = "/etcdserverpb.Watch/Watch"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
_NO_LEADER_FREE = ("/etcdserverpb.Maintenance/", "/grpc.health.v1.Health/", "/etcdserverpb.Cluster/MemberList")
_NOSPACE, _CORRUPT = 1, 2
_KINDS = ("before", "after", "delay")


class Host(Protocol):
    """The server that faults are of."""

    @property
    def store(self) -> Store:
        """Its store."""
        ...

    @property
    def server(self) -> Server:
        """What serves."""
        ...

    def call(self, function: Callable[[], Any]) -> Any:
        """Have a function called on its thread."""
        ...


class Fault:
    """One that was made; a context manager."""

    def __init__(self, faults: Faults, name: str, undo: Callable[[], None] | None = None) -> None:
        self.name = name
        self.count = 0
        """How many calls it has befallen."""
        self._faults = faults
        self._undo = undo
        self.is_over = False

    def end(self) -> None:
        """End it. Ending twice is harmless."""
        if not self.is_over:
            self.is_over = True
            self._faults.remove(self)
            if self._undo is not None:
                self._undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def __repr__(self) -> str:
        return f"<fault {self.name}, {self.count} calls{', over' if self.is_over else ''}>"


class CallFault(Fault):
    """One that befalls calls, `times` of them or until it ends."""

    def __init__(
        self,
        faults: Faults,
        name: str,
        times: int | None,
        fits: Callable[[RecordedCall], bool],
        make: Callable[[], Plan],
    ) -> None:
        if times is not None and times < 1:
            msg = f"times is {times}, not a number from 1 up"
            raise ValueError(msg)
        super().__init__(faults, name)
        self._left = times
        self.fits = fits
        self._make = make

    def take(self) -> Plan:
        """Return what befalls the next call, and count it; the last of its `times` ends it."""
        self.count += 1
        if self._left is not None:
            self._left -= 1
            if not self._left:
                self.end()
        return self._make()


class Stall(Fault):
    """One that holds back the messages of streams: what they ask for, or what they are answered."""

    def __init__(self, faults: Faults, name: str, path: str, when: When, undo: Callable[[], None]) -> None:
        super().__init__(faults, name, undo)
        self.path = path
        self.when = when


class Faults:
    """The faults of one server. Made from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._faults: list[Fault] = []
        self._stalls: list[Stall] = []
        self._host: Host | None = None
        self._tap: Tap | None = None

    def attach(self, host: Host, tap: Tap) -> None:
        """Say whose they are."""
        self._host, self._tap = host, tap

    # Of calls

    def fail(
        self,
        method: str | None = None,
        code: Code | str = Code.UNAVAILABLE,
        message: str = "etcdserver: request timed out",
        *,
        times: int | None = None,
        when: When = "before",
    ) -> Fault:
        """Have calls end with an error: instead of being carried out, or, with `when="after"`, after they were.

        Args:
            method: `Put`, `/etcdserverpb.KV/Put`, or a service, `KV`; None for all calls, streams included.
            code: gRPC's, by name or as `Code`.
            message: What the client is told.
            times: How many calls; None for all until it ends.
            when: Whether the call takes effect. Streams fail before.

        Raises:
            ValueError: There is no such code or `when`, or `times` is below 1.
        """
        error = RpcError(_code(code), message)
        _check_when(when)
        name = f"fail {when}"

        def make() -> Plan:
            return Plan(name, before=error) if when == "before" else Plan(name, after=error)

        return self._add(CallFault(self, name, times, lambda call: _is_of(call, method), make))

    def drop(self, method: str | None = None, *, times: int | None = None, when: When = "before") -> Fault:
        """Have the connections of calls cut: instead of the call being carried out, or, with `when="after"`, after it was.

        What else is under way on the connection is cut with it, and not carried out twice. `calls` has the call as
        cancelled.

        Args:
            method: As of `fail`.
            times: How many calls; None for all until it ends.
            when: Whether the call takes effect. Streams are cut before.

        Raises:
            ValueError: There is no such `when`, or `times` is below 1.
        """
        _check_when(when)
        error = RpcError(Code.CANCELLED, "the connection was dropped")
        name = f"drop {when}"
        plan = Plan(name, before=error, is_drop=True) if when == "before" else Plan(name, after=error, is_drop=True)
        return self._add(CallFault(self, name, times, lambda call: _is_of(call, method), lambda: plan))

    def delay(self, method: str | None, seconds: float, *, times: int | None = None) -> Fault:
        """Have calls wait for so many seconds of real time before they are carried out."""
        if not seconds > 0:
            msg = f"seconds is {seconds!r}, not a number above 0"
            raise ValueError(msg)
        plan = Plan("delay", delay_seconds=seconds)
        return self._add(CallFault(self, "delay", times, lambda call: _is_of(call, method), lambda: plan))

    def no_leader(self, *, times: int | None = None) -> Fault:
        """Have what needs a leader fail as in a cluster that has none. Serializable reads go on, as with etcd."""
        return self._leaderless(Refusal.NO_LEADER.error(), "no leader", times)

    def leader_changed(self, *, times: int | None = None) -> Fault:
        """Have what needs a leader fail as when the leader changes while it is under way."""
        return self._leaderless(RpcError(Code.UNAVAILABLE, "etcdserver: leader changed"), "leader changed", times)

    def _leaderless(self, error: RpcError, name: str, times: int | None) -> Fault:
        return self._add(CallFault(self, name, times, _needs_leader, lambda: Plan(name, before=error)))

    def random(self, seed: int | None = None, *, rate: float = 0.1, kinds: Sequence[str] = _KINDS) -> Fault:
        """Have a share of all unary calls fail before or after they are carried out, or be late by 1 ms to 10 ms.

        Args:
            seed: For the same faults again, given the same calls in the same order; printed, and chosen if None.
            rate: The share, from 0 to 1.
            kinds: Of `before`, `after` and `delay`.
        """
        if not set(kinds) <= set(_KINDS) or not kinds or not 0 <= rate <= 1:
            msg = f"kinds are of {', '.join(_KINDS)} and the rate is from 0 to 1, not {kinds!r}, {rate!r}"
            raise ValueError(msg)
        seed = random.SystemRandom().randrange(2**32) if seed is None else seed
        print(f"mvccstore: faults at random with seed {seed}")  # noqa: T201 - pytest shows it when the test fails
        source = random.Random(seed)
        error = RpcError(Code.UNAVAILABLE, "etcdserver: request timed out")

        def make() -> Plan:
            match source.choice(kinds):
                case "before":
                    return Plan("random before", before=error)
                case "after":
                    return Plan("random after", after=error)
                case _:
                    return Plan("random delay", delay_seconds=source.uniform(0.001, 0.01))

        def fits(call: RecordedCall) -> bool:
            return call.request is not None and source.random() < rate

        return self._add(CallFault(self, "random", None, fits, make))

    # Of connections, alarms, watches, leases

    def drop_connections(self) -> int:
        """Cut every connection now; return how many there were. Clients may come again."""
        host = self._attached
        found: int = host.call(lambda: host.server.drop_connections())
        return found

    def refuse_connections(self) -> Fault:
        """Cut every connection, and each new one as soon as it is made, while it lasts."""
        host = self._attached

        def refuse() -> None:
            host.server.refuse_connections(is_on=True)
            host.server.drop_connections()

        host.call(refuse)
        undo = partial(host.call, lambda: host.server.refuse_connections(is_on=False))
        return self._add(Fault(self, "refused connections", undo))

    def no_space(self) -> Fault:
        """Raise the NOSPACE alarm while it lasts: puts are refused, deletes are not."""
        return self._alarm("no space", _NOSPACE)

    def corrupt(self) -> Fault:
        """Raise the CORRUPT alarm while it lasts: all writes are refused."""
        return self._alarm("corrupt", _CORRUPT)

    def _alarm(self, name: str, kind: int) -> Fault:
        host = self._attached

        def change(*, is_raised: bool) -> None:
            host.call(lambda: host.server.node.alarms.pretend(kind, is_raised=is_raised))

        change(is_raised=True)
        return self._add(Fault(self, name, lambda: change(is_raised=False)))

    def compact(self, revision: int | None = None) -> int:
        """Compact the history up to a revision, by default the current one, and reclaim it; return the revision."""
        store = self._attached.store
        chosen = store.revision if revision is None else revision
        store.compact(chosen, force=True, physical=True)
        return chosen

    def expire_lease(self, lease: Lease | int) -> int:
        """End a lease as when its time has come; return how many keys went with it.

        Raises:
            LeaseNotFoundError: There is no such lease.
        """
        return self._attached.store.lease(lease_id_of(lease)).revoke()

    def expire_token(self, user: str | None = None) -> int:
        """End the tokens of a user, or of all, as when their time has come; return how many could still be used.

        Their users may authenticate again.
        """
        host = self._attached

        def expire() -> int:
            gate = host.server.node.auth
            assert isinstance(gate.tokens, IssuedTokens)
            return gate.tokens.expire(user, gate.accounts.revision)

        found: int = host.call(expire)
        return found

    def cancel_watches(self, reason: str = "etcdserver: watch canceled", *, compact_revision: int = 0) -> int:
        """Tell every watch that its server has cancelled it; return how many. Their streams go on.

        Args:
            reason: What the clients are told.
            compact_revision: Above 0, as if the history below were compacted.
        """
        host = self._attached
        found: int = host.call(lambda: host.server.node.cancel_watches(reason, compact_revision))
        return found

    def stall_watches(self) -> Fault:
        """Hold back what watches are sent while it lasts; then all of it is sent, in order."""
        return self._stall("stalled watches", WATCH, "after")

    def stall_keep_alives(self, *, when: When = "before") -> Fault:
        """Hold back what streams of keep-alives ask for while it lasts: leases come to their end, unless it ends before.

        Then all of it is carried out, in order. With `when="after"` leases are kept alive, and clients are told so when
        it ends.

        Raises:
            ValueError: There is no such `when`.
        """
        _check_when(when)
        return self._stall("stalled keep-alives", KEEP_ALIVE, when)

    def _stall(self, name: str, path: str, when: When) -> Fault:
        fault = Stall(self, name, path, when, partial(self._release, path))
        with self._lock:
            self._stalls.append(fault)
        return self._add(fault)

    def _release(self, path: str) -> None:
        if self._host is None or self._tap is None:
            return
        tap = self._tap

        def release() -> None:
            # What another fault still holds is held again.
            for call in [call for call in tap.streams if call.record.path == path]:
                call.release()

        self._host.call(release)

    # All of them

    def clear(self) -> None:
        """End all faults."""
        with self._lock:
            faults = list(self._faults)
        for fault in faults:
            fault.end()

    @property
    def active(self) -> list[Fault]:
        """Those that have not ended, the oldest first."""
        with self._lock:
            return list(self._faults)

    @property
    def _attached(self) -> Host:
        if self._host is None:
            msg = "these faults are of no server"
            raise RuntimeError(msg)
        return self._host

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Forget a fault that has ended. Called by it."""
        with self._lock:
            if fault in self._faults:
                self._faults.remove(fault)
            if isinstance(fault, Stall) and fault in self._stalls:
                self._stalls.remove(fault)

    # For the tap

    def plan(self, call: RecordedCall) -> Plan | None:
        """Return what befalls a call."""
        for fault in self.active:
            if isinstance(fault, CallFault) and fault.fits(call):
                return fault.take()
        return None

    def holds(self, call: RecordedCall, encoded: bytes) -> bool:
        """Say whether an answer of a stream is held back."""
        del encoded
        return bool(self._stalls) and self._holds(call, "after")

    def holds_request(self, call: RecordedCall) -> bool:
        """Say whether a request of a stream is kept from its service."""
        return bool(self._stalls) and self._holds(call, "before")

    def _holds(self, call: RecordedCall, when: When) -> bool:
        for stall in self._stalls:
            if stall.path == call.path and stall.when == when:
                stall.count += 1
                return True
        return False

    def cut(self, peer: Peer) -> None:
        """Cut the connection of a peer."""
        self._attached.server.drop_connections(peer)


def _is_of(call: RecordedCall, method: str | None) -> bool:
    return method is None or method in {call.method, call.path, call.service}


def _needs_leader(call: RecordedCall) -> bool:
    if call.path.startswith(_NO_LEADER_FREE):
        return False
    if call.path == WATCH:
        return (b"hasleader", b"true") in call.metadata
    return not (isinstance(call.request, rpc.RangeRequest) and call.request.serializable)


def _check_when(when: str) -> None:
    if when not in {"before", "after"}:
        msg = f"when is {when!r}, neither 'before' nor 'after'"
        raise ValueError(msg)


def _code(code: Code | str) -> Code:
    if isinstance(code, Code):
        return code
    try:
        return Code[code.upper()]
    except KeyError:
        msg = f"there is no code {code!r}; there are {', '.join(one.name for one in Code)}"
        raise ValueError(msg) from None
