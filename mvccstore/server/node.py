"""What all services of a server share: the store, its writer, who the server is, and what it allows.

Invariants:

* I1. The raft term is at least 2, and grows with each start of a server on the same store; the raft index never goes
  back. Both are noted in an attribute of the store: the index ahead of what was counted, and the revision that was
  current then, as each revision after it is a command too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from mvccstore.attributes import AttributesRequest
from mvccstore.clock import Clock
from mvccstore.errors import StoreError
from mvccstore.rewind import Mark, rewind
from mvccstore.server.alarms import Alarms
from mvccstore.server.auth.gate import AuthOptions, Check, Gate
from mvccstore.server.auth.passwords import Passwords
from mvccstore.server.errors import Refusal
from mvccstore.server.member import Identity
from mvccstore.server.members import Members
from mvccstore.server.messages.fast import Headers
from mvccstore.server.metrics.tally import Tally
from mvccstore.server.persona import V3_6, Persona
from mvccstore.server.slow import SlowOptions, SlowRequests
from mvccstore.server.transport.call import Call
from mvccstore.server.transport.flushes import Flushes
from mvccstore.server.transport.status import RpcError
from mvccstore.server.writer import UNDER_WAY_MAX, Writer
from mvccstore.store import Store
from mvccstore.types import Result, WriteRequest

_RAFT = "etcd/raft"
_TERM_FIRST = 2
UNDER_WAY_BYTES_MAX = 256 << 20
"""Of what clients want written and is not yet; so a thousand clients with large values do not fill the memory."""
_COST_BYTES: Final = 64 << 10
"""A write counts once, and once more for so many bytes: 256 MiB are as much as 4,096 writes."""
REFUSED_ABOVE = 4 * UNDER_WAY_MAX
"""So many writes under way are refused. From `UNDER_WAY_MAX` on a connection over HTTP/2 has one at a time, and waits: to
be refused takes more of them than that, or other ways in."""
_INDEX_SLACK = 2 * REFUSED_ABOVE
"""How far ahead the index is noted. It is noted anew after half as many commands, and no more than the other half can
be answered before that is on disk."""

_TXN_OPS_FACTOR = 64


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request may ask for: etcd's flags of these names."""

    max_request_bytes: int = 1_572_864
    max_txn_ops: int = 128
    election_timeout_ms: int = 1_000
    progress_notify_seconds: float = 600.0
    learners_max: int = 1
    """The most members that do not vote: `--max-learners`."""
    leases_max: int = 1_000_000
    """The most leases; no flag of etcd's, as for the next one."""
    watches_max: int = 1_000_000
    """The most watches of all clients."""
    watch_key_bytes_max: int = 256 << 20
    """The most bytes of the keys that they watch."""
    name_bytes_max: int = 32 << 20
    """The most bytes of names and values of the calls of Lock and Election that are under way."""

    @property
    def txn_ops_all_max(self) -> int:
        """The most compares and operations of a txn together with its nested ones, in whichever branch."""
        return _TXN_OPS_FACTOR * self.max_txn_ops

    @property
    def lease_ttl_min(self) -> int:
        """Seconds, etcd's: one and a half election timeouts, rounded up."""
        return -(-3 * self.election_timeout_ms // 2_000)


class Node:
    """One server's middle: services stand on it, transports know nothing of it."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        limits: RequestLimits,
        *,
        quota_bytes: int = 0,
        auth: AuthOptions | None = None,
        clock: Clock,
        persona: Persona = V3_6,
        slow: SlowOptions | None = None,
    ) -> None:
        self.store = store
        self.persona = persona
        self.identity = identity
        self.limits = limits
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.member_id = identity.member_id
        self.cluster_id = identity.cluster_id
        self.raft_term, self._base_index = _note_start(store)
        self._began_at = store.revision
        self._commands = 0
        self._note_at = _INDEX_SLACK // 2
        self.headers = Headers(self.cluster_id, self.member_id, self.raft_term)
        self.tally = Tally(store.stats().leases)
        self.slow = SlowRequests(slow or SlowOptions())
        self.flushes = Flushes()
        """When the connections write what is answered."""
        self.writer = Writer(store, self.tally.commits, self.slow, self.flushes)
        self.alarms = Alarms(store, self.writer, self.member_id, quota_bytes)
        self.members = Members(store, identity, limits.learners_max)
        auth = auth or AuthOptions()
        self.auth = Gate(store, self.writer, clock, auth, strips_bearer=persona.strips_bearer)
        self.passwords = Passwords(auth.bcrypt_cost)
        self.cancel_watches: Callable[[str, int], int] = lambda reason, compact_revision: 0
        """Cancels every watch and tells why; returns how many. The Watch service's."""
        self._bytes_under_way = 0
        self.name_bytes = 0
        """Of names and values of the calls of Lock and Election that are under way."""
        self.is_stopping = False
        self._closers: list[Callable[[], None]] = []
        self._rewound: list[Callable[[], None]] = [self.alarms.reload, self.auth.reload]

    @property
    def revision(self) -> int:
        """The store's."""
        return self.store.revision

    @property
    def raft_index(self) -> int:
        """How many commands there were, as etcd counts them."""
        return self._base_index + self._commands + self.store.revision - self._began_at

    def header(self, revision: int = -1) -> bytes:
        """Return the field `header` of an answer, encoded; by default at the current revision."""
        return self.headers.at(self.store.revision if revision < 0 else revision)

    def submit(
        self,
        call: Call,
        request: WriteRequest,
        then: Callable[[Result], bytes | None],
        check: Check | None = None,
        size_bytes: int = 0,
        cost: int = 0,
    ) -> None:
        """Have a request of a call carried out, and answer it with what `then` makes of the result.

        The call's handler returns None after this. If `then` returns None, it has seen to the answer itself. `check`,
        which may raise, is called right before, with no other write in between. `size_bytes` is about what the request holds;
        `cost` is what it counts for beside that among the work of the call's connection.
        """
        self.begin_work(call, size_bytes)
        if cost:
            call.begin_work(cost)
        done = partial(self._done, call, request, then, size_bytes, cost, self.slow.now())
        if check is None:
            self.writer.submit(request, done)
        else:
            self.writer.call(partial(self._checked, check, request), done)

    def _done(
        self,
        call: Call,
        request: WriteRequest,
        then: Callable[[Result], bytes | None],
        size_bytes: int,
        cost: int,
        began_at: float,
        result: Result | Exception,
    ) -> None:
        """Answer a call whose request was carried out."""
        self.end_work(call, size_bytes)
        if cost:
            call.end_work(cost)
        took = self.slow.now() - began_at
        if took > self.slow.unary_seconds:
            self.slow.note_call(call, took, request, size_bytes)
        if isinstance(result, Exception):
            call.fail_with(result)
            return
        self.count_command()
        try:
            answer = then(result)
        except RpcError as error:
            call.fail(error)
            return
        if answer is not None:
            call.reply(answer)

    def begin_work(self, call: Call, size_bytes: int) -> None:
        """Count what a call gives to the writer, as `submit` does; `end_work` must follow.

        Raises:
            RpcError: Too much waits to be written.
        """
        self.check_under_way()
        self._bytes_under_way += size_bytes
        call.begin_work(1 + size_bytes // _COST_BYTES)

    def end_work(self, call: Call, size_bytes: int) -> None:
        """Count it no more."""
        self._bytes_under_way -= size_bytes
        call.end_work(1 + size_bytes // _COST_BYTES)

    def check_under_way(self) -> None:
        """Raise if too much waits to be written for a call to add to it."""
        if self.writer.under_way > REFUSED_ABOVE or self._bytes_under_way > UNDER_WAY_BYTES_MAX:
            self.tally.proposals_failed += 1
            is_many = self.writer.under_way > REFUSED_ABOVE
            raise Refusal.TOO_MANY_REQUESTS.error(limit="refused_above" if is_many else "under_way_bytes_max")

    def share(self) -> int:
        """Return how much work one connection may have under way: half of what there is room for beside all that is.

        So a client alone has a third of `UNDER_WAY_MAX`, each of two a quarter, and each of thousands has one.
        """
        room = UNDER_WAY_MAX - self.writer.under_way
        room_bytes = UNDER_WAY_BYTES_MAX - self._bytes_under_way
        return max(1, min(room, room_bytes // _COST_BYTES) // 2)

    def _checked(self, check: Check, request: WriteRequest) -> Result:
        check()
        (result,) = self.store.submit_many([request])
        if isinstance(result, Exception):
            raise result
        return result

    def count_command(self) -> None:
        """Count what was carried out, for the raft index."""
        self._commands += 1
        if self._commands == self._note_at:
            self._note_at += _INDEX_SLACK // 2
            note = _packed(self.raft_term, self.raft_index + _INDEX_SLACK, self.store.revision)
            # Should it not be written, nothing else could be either.
            self.writer.submit(AttributesRequest(((_RAFT, note),)), lambda _: None)

    def at_rewind(self, callback: Callable[[], None]) -> None:
        """Have something called after the store was made what it was before."""
        self._rewound.append(callback)

    def rewind(self, to: Mark) -> None:
        """Make the store what it was at a mark, and go by it: for tests. Clients stay connected, watches are cancelled.

        Raises: As `mvccstore.rewind.rewind`.
        """
        index = self.raft_index
        rewind(self.store, to)
        self._base_index += index - self.raft_index  # I1
        for callback in self._rewound:
            callback()

    def at_stop(self, closer: Callable[[], None]) -> None:
        """Have something called when the server begins to stop: services end what has no end of its own."""
        self._closers.append(closer)

    def begin_stop(self) -> None:
        """End watches and the like."""
        self.is_stopping = True
        for closer in self._closers:
            closer()
        self._closers.clear()

    async def stop(self) -> None:
        """Carry out what is under way, and note the raft index."""
        await self.writer.stop()
        self.passwords.close()
        with suppress(StoreError):  # closed, or full: then what was noted ahead counts
            self.store.set_attributes({_RAFT: _packed(self.raft_term, self.raft_index, self.store.revision)})


def _note_start(store: Store) -> tuple[int, int]:
    """Begin a term; return it, and the raft index to count on from."""
    packed, revision = store.attribute(_RAFT), store.revision
    if packed is None:
        term, index = _TERM_FIRST, revision + 3
    else:
        # Stores of old have no revision there.
        term, index, noted_at, *_ = (int(number) for number in (*packed.split(), b"%d" % revision))
        term, index = term + 1, index + max(revision - noted_at, 0) + 1
    # Should this server be killed, the next begins above whatever it will have counted.
    store.set_attributes({_RAFT: _packed(term, index + _INDEX_SLACK, revision)})
    return term, index


def _packed(term: int, index: int, revision: int) -> bytes:
    return b"%d %d %d" % (term, index, revision)
