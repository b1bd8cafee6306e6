"""Electing a leader among those who campaign under a name, and following who it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from mvccstore.errors import ClosedError, CompactedError
from mvccstore.recipes.host import Blocking, Deadline, Host, HostWatcher, RecipeView, key_of, run
from mvccstore.recipes.line import Place, leave, take_turn
from mvccstore.types import Compare, Event, KeyRange, KeyValue, Op

_NOT_LEADER = "this handle does not lead; campaign first"
_WHAT = "observer"


class ElectionSteps:
    """What the two faces of an election have in common."""

    def __init__(self, host: Host, name: str | bytes, ttl: float) -> None:
        self._host = host
        self._line = key_of("election", name)
        self._everybody = KeyRange.prefix(self._line + b"/")
        self._ttl = ttl
        self._place: Place | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this handle leads, as far as its lease can tell: it neither expired nor was revoked.

        What depends on it should still be written with `fence`, or told `revision`.
        """
        place = self._place
        return place is not None and place.lease.is_alive

    @property
    def revision(self) -> int:
        """The fencing token of this leadership: greater than that of any before. 0 while it does not lead."""
        return self._place.revision if self._place is not None else 0

    def fence(self) -> Compare:
        """Return the compare that holds exactly as long as this handle leads: one for a txn.

        Raises:
            RuntimeError: It does not lead.
        """
        return self._leading().is_there()

    def _leading(self) -> Place:
        if self._place is None:
            raise RuntimeError(_NOT_LEADER)
        return self._place

    async def _campaign(self, value: bytes, deadline: Deadline) -> bool:
        if self._place is not None:
            await self._proclaim(value)
            return True
        self._place = await take_turn(self._host, self._line, value, self._ttl, deadline)
        return self._place is not None

    async def _proclaim(self, value: bytes) -> None:
        place = self._leading()
        put = Op.put(place.key, value, ignore_lease=True)
        result = await self._host.txn(compare=[place.is_there()], success=[put])
        if not result.succeeded:
            self._place = None
            raise place.lost()

    async def _resign(self) -> None:
        place, self._place = self._leading(), None
        await leave(self._host, place)

    async def _leader(self) -> KeyValue | None:
        found = await self._host.range(self._everybody, limit=1, order_by="create")
        return found[0] if found.kvs else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._line!r}{f', leads since {self.revision}' if self.is_leader else ''}>"


class Election(ElectionSteps):
    """An election that is known by its name. Get one from `Store.election`. Each candidate needs a handle of its own.

    Fair: who campaigned first leads first, until they resign or their lease ends. That is kept alive as long as
    this object and the open store live; when they are gone, the next one leads after `ttl` seconds.
    """

    def __init__(self, store: RecipeView, name: str | bytes, ttl: float) -> None:
        super().__init__(Blocking(store), name, ttl)

    def campaign(self, value: bytes, timeout: float | None = None) -> bool:
        """Wait to be the leader; return whether this handle is. One that leads already proclaims the value.

        Args:
            value: What the others learn of this leader: its address, say.
            timeout: Seconds to wait at most, 0 not to wait; None waits as long as it takes.

        Raises:
            LeaseNotFoundError: The candidacy or the leadership was lost, as its lease was revoked.
            TxnError: This thread is in a transaction block.

        Cost: two commits; a lookup for each candidate; then nothing until the one before leaves.
        """
        return run(self._campaign(value, Deadline(timeout)))

    def proclaim(self, value: bytes) -> None:
        """Change the leader's value, without an election.

        Raises:
            LeaseNotFoundError: The leadership was lost; campaign again.
            RuntimeError: This handle does not lead.

        Cost: one commit.
        """
        run(self._proclaim(value))

    def resign(self) -> None:
        """Let the next candidate lead.

        Raises:
            LeaseNotFoundError: The leadership was lost before.
            RuntimeError: This handle does not lead.

        Cost: one commit.
        """
        run(self._resign())

    def leader(self) -> KeyValue | None:
        """Return the leader: its `value`, and as `create_revision` its fencing token. None if nobody leads.

        Cost: a lookup for each candidate.
        """
        return run(self._leader())

    def observe(self) -> Observer:
        """Follow who leads: an iterator over the leader now and each one to come, and each value they proclaim.

        "Now" is when it is first asked.

        Cost: memory for each candidate; a watcher.
        """
        return Observer(self._host, self._everybody)


class AsyncElection(ElectionSteps):
    """`Election`, awaited. Get one from `AsyncStore.election`."""

    async def campaign(self, value: bytes, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as Election has it
        """As `Election.campaign`. Cancelled, it withdraws the candidacy."""
        return await self._campaign(value, Deadline(timeout))

    async def proclaim(self, value: bytes) -> None:
        """As `Election.proclaim`."""
        await self._proclaim(value)

    async def resign(self) -> None:
        """As `Election.resign`."""
        await self._resign()

    async def leader(self) -> KeyValue | None:
        """As `Election.leader`."""
        return await self._leader()

    def observe(self) -> AsyncObserver:
        """As `Election.observe`; for `async for`."""
        return AsyncObserver(self._host, self._everybody)


class Succession:
    """Who leads, told from what is put and deleted in the line. Pure."""

    def __init__(self) -> None:
        self._candidates: dict[bytes, KeyValue] = {}
        self._told: KeyValue | None = None

    def reset(self, kvs: Iterable[KeyValue]) -> None:
        """Take over the line as it is now."""
        self._candidates = {kv.key: kv for kv in kvs}

    def apply(self, events: Iterable[Event]) -> None:
        """Take over the changes of one revision."""
        for event in events:
            if event.type == "put":
                self._candidates[event.kv.key] = event.kv
            else:
                self._candidates.pop(event.kv.key, None)

    def news(self) -> KeyValue | None:
        """Return the leader, if it is another than this returned last, or has another value."""
        leader = min(self._candidates.values(), key=_seniority, default=None)
        if leader == self._told:
            return None
        self._told = leader
        return leader


def _seniority(kv: KeyValue) -> int:
    return kv.create_revision


class ObserverSteps:
    """What the two faces of an observer have in common."""

    def __init__(self, host: Host, everybody: KeyRange) -> None:
        self._host = host
        self._everybody = everybody
        self._succession = Succession()
        self._watcher: HostWatcher | None = None
        self._is_closed = False

    def close(self) -> None:
        """Stop following: the iteration ends. Closing twice is harmless; from any thread."""
        self._is_closed = True
        if self._watcher is not None:
            self._watcher.close()

    async def _next(self, deadline: Deadline) -> KeyValue | None:
        while True:
            if self._is_closed:
                raise ClosedError(_WHAT)
            try:
                if self._watcher is None:
                    now = await self._host.range(self._everybody)
                    self._watcher = self._host.watch(self._everybody, start_revision=now.revision + 1)
                    self._succession.reset(now)
                else:
                    batch = await self._watcher.next_batch(deadline.left())
                    if batch is None:
                        return None
                    self._succession.apply(batch.events)
            except CompactedError:  # behind for too long: begin anew with who leads now
                self._watcher = None
                continue
            leader = self._succession.news()
            if leader is not None:
                return leader


class Observer(ObserverSteps):
    """The leaders of an election as they follow each other. Get one from `Election.observe`.

    While nobody leads it waits. One that falls behind what compaction leaves goes on with the leader of now. Used
    by one thread at a time; any may close it. A context manager.
    """

    def next(self, timeout: float | None = None) -> KeyValue | None:
        """Return the next leader or value, waiting for it; None after `timeout` seconds.

        Raises:
            ClosedError: The observer or its store was closed, also while this waited.
        """
        return run(self._next(Deadline(timeout)))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> KeyValue:
        try:
            leader = self.next()
        except ClosedError:
            if self._is_closed:
                raise StopIteration from None
            raise
        assert leader is not None
        return leader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncObserver(ObserverSteps):
    """`Observer`, awaited. Get one from `AsyncElection.observe`. An async iterator, and async context manager."""

    async def next(self, timeout: float | None = None) -> KeyValue | None:  # noqa: ASYNC109 - as Observer.next has it
        """As `Observer.next`. Cancelled, it loses nothing."""
        return await self._next(Deadline(timeout))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> KeyValue:
        try:
            leader = await self.next()
        except ClosedError:
            if self._is_closed:
                raise StopAsyncIteration from None
            raise
        assert leader is not None
        return leader

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()
