"""Durable subscriptions: a cursor over the changes of some keys that the store itself remembers, by name.

A watcher's place is lost with its process; a subscription's is kept in the store. It delivers a revision at a
time, and each one again, after a restart, until it is acknowledged: at least once. What it has not
acknowledged it holds back from compaction, within limits that it states.

Its cursor, `revision`, is the last revision up to which nothing is left to be acknowledged. That is one below
the oldest delivery that is not acknowledged; or, if there is none, where its watcher is, which goes on also
while other keys change. It is stored with each durable acknowledgement, and before the store compacts.

Invariants:

* I1. Stored is at most `revision`, and that is below every delivery that is not acknowledged.
* I2. Nobody waits for the writer's turn with `_mutex`, and nobody takes `_mutex` when publishing in their turn.

Example, of a subscription whose keys change in revisions 5, 6 and 9:

    delivered 5, 6     unacknowledged 5, 6     revision 4
    6 acknowledged     unacknowledged 5        revision 4: after a restart, both come again
    5 acknowledged     unacknowledged none     revision 8, or whatever is current before 9 is written

Locks: `_gate` is a leaf; `_mutex` is taken before the hub's.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self

from mvccstore.clock import SystemClock
from mvccstore.errors import (
    ClosedError,
    CompactedError,
    SubscriptionLostError,
    SubscriptionNotFoundError,
    UnacknowledgedLimitError,
)
from mvccstore.hub import WatchBatch
from mvccstore.mvcc.subscription import Record
from mvccstore.types import (
    Event,
    Keys,
    Result,
    SubscriptionAckRequest,
    SubscriptionDeleteRequest,
    SubscriptionSaveRequest,
    WriteRequest,
    check_revision,
)
from mvccstore.watch import Watcher

UNACKNOWLEDGED_MAX = 10_000
"""Deliveries; one that acknowledges nothing does not make the list of them grow for ever."""
UNSAVED_ACKS_MAX = 1_000
"""Acknowledgements that were not to be durable, until they are stored all the same."""
_WHAT = "subscription"
_real_time = SystemClock()


@dataclass(frozen=True, slots=True)
class Delivery:
    """The changes that one revision made to the keys of a subscription. To be acknowledged when they are dealt with."""

    revision: int
    events: tuple[Event, ...]
    """In the order in which they were made."""
    subscription: Subscription

    def ack(self, *, durable: bool = True) -> None:
        """Acknowledge it, and no other. As `Subscription.ack`; doing so twice is harmless."""
        self.subscription.ack_one(self.revision, durable=durable)


class Host(Protocol):
    """What a subscription needs of its store."""

    @property
    def revision(self) -> int:
        """The current revision."""
        ...

    @property
    def compact_revision(self) -> int:
        """The oldest revision that can be read."""
        ...

    def watch(self, keys: Keys, *, start_revision: int = 0) -> Watcher:
        """Watch a key or range."""
        ...

    def _submit(self, request: WriteRequest) -> Result: ...

    def _load_subscription(self, name: str) -> Record:
        """Read a subscription; raise if there is none of this name."""
        ...

    def _latest(self, batch: WatchBatch) -> WatchBatch | None:
        """Return what of a batch was not changed again by now."""
        ...

    def _free(self, subscription: Subscription) -> None:
        """Set the name of a subscription free."""
        ...


class Subscription:
    """A cursor that is kept in the store. Get one from `Store.subscription`.

    Iterating over it waits for each next `Delivery`; `next_batch` has a timeout. Several threads may share it,
    and each delivery goes to one of them. A context manager, which closes it; the subscription itself remains.
    """

    def __init__(self, host: Host, record: Record, *, latest_only: bool) -> None:
        self._host = host
        self._record = record
        self._latest_only = latest_only
        self._is_closed = False
        self._mutex = threading.RLock()  # guards what follows, up to the gate
        self._watcher: Watcher | None = None
        self._ready: WatchBatch | None = None  # taken from the watcher, not yet delivered
        self._unacknowledged: OrderedDict[int, None] = OrderedDict()  # revisions, ascending
        self._delivered = self._acked = self._saved = record.revision
        self._unsaved_acks = 0
        self._gate = threading.Lock()  # guards _waiting; a leaf
        self._waiting: list[Callable[[], None]] = []
        # The watcher must not keep alive what nobody else does: its name would stay in use.
        self._on_wake = _weakly(weakref.ref(self))

    @property
    def name(self) -> str:
        """What it is known by."""
        return self._record.name

    @property
    def keys(self) -> Keys:
        """What it is subscribed to."""
        return self._record.keys

    @property
    def revision(self) -> int:
        """Everything up to it is acknowledged, here if not yet in the store."""
        return self._acked

    @property
    def lag(self) -> int:
        """Revisions written since, of whatever keys; it falls to 0 when there is nothing left to take."""
        return self._host.revision - self._acked

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    # Taking

    def next_batch(self, timeout: float | None = None) -> Delivery | None:
        """Return the next revision that changed any of the keys, waiting for it if there is none yet.

        Args:
            timeout: Seconds to wait at most; 0 does not wait. None waits as long as it takes.

        Returns: The delivery; None after the timeout.

        Raises:
            SubscriptionLostError: What comes next was compacted away, as it was over the limits, or by force.
                It is a `CompactedError`, and says how many revisions are lost; `skip` goes on behind them.
            UnacknowledgedLimitError: 10,000 deliveries are not acknowledged.
            ClosedError: It or its store was closed, also while this waited.

        Cost: as of `Watcher.next_batch`; nothing is written.
        """
        if timeout is not None and not timeout >= 0:
            msg = f"timeout is {timeout!r}, not a number of seconds from 0 up"
            raise ValueError(msg)
        deadline = None if timeout is None else _real_time.monotonic() + timeout
        while True:
            delivery = self.poll()
            if delivery is not None:
                return delivery
            wait = None
            if deadline is not None:
                wait = deadline - _real_time.monotonic()
                if wait <= 0:
                    return None
            woken = threading.Event()
            try:
                if self.listen(woken.set):
                    woken.wait(None if wait is None else min(wait, threading.TIMEOUT_MAX))
            finally:
                self.unlisten(woken.set)

    def poll(self) -> Delivery | None:
        """Return what `next_batch` would without waiting."""
        with self._mutex:
            if len(self._unacknowledged) >= UNACKNOWLEDGED_MAX:
                raise UnacknowledgedLimitError(len(self._unacknowledged) + 1, UNACKNOWLEDGED_MAX)
            while not self._look():
                pass
            batch = self._ready
            if batch is None:
                self._advance()
                return None
            self._ready = None
            self._unacknowledged[batch.revision] = None
            self._delivered = max(self._delivered, batch.revision)
            return Delivery(batch.revision, batch.events, self)

    def catch_up(self) -> bool:
        """Go on by a page, or a batch, to what comes next. True if `poll` need not, either.

        For those who have something else to do in between, as `Watcher.catch_up`. Raises what `poll` does of it.
        """
        with self._mutex:
            return self._look()

    def listen(self, on_wake: Callable[[], None]) -> bool:
        """Be told once, from another thread, when there may be something to take. Needs an `unlisten`.

        Returns: False if there may be something already.
        """
        with self._mutex:
            if self._is_closed or self._ready is not None or self._watcher is None:
                return False
            with self._gate:
                self._waiting.append(on_wake)
            if self._watcher.listen(self._on_wake):
                return True
            self.unlisten(on_wake)
        return False

    def unlisten(self, on_wake: Callable[[], None]) -> None:
        """Undo `listen`, also of one that was told. While anybody listens, the hub keeps the watcher alive."""
        with self._mutex:
            with self._gate, suppress(ValueError):
                self._waiting.remove(on_wake)
            if not self._waiting and self._watcher is not None:
                self._watcher.unlisten()

    def _wake(self) -> None:
        with self._gate:
            waiting, self._waiting = self._waiting, []
        for on_wake in waiting:
            on_wake()

    def _look(self) -> bool:
        """Go on by a page, or a batch. True when the next to deliver is at hand, or there is none now."""
        self._check_open()
        if self._ready is not None:
            return True
        try:
            if self._watcher is None:
                self._watcher = self._host.watch(self.keys, start_revision=self._acked + 1)
            if not self._watcher.catch_up():
                return False
            batch = self._watcher.poll()
        except CompactedError as error:
            self._watcher = None
            raise SubscriptionLostError(self.name, self._acked + 1, error.compact_revision) from error
        if batch is None:
            return True
        if batch.revision > self._acked:  # else acknowledged since it was taken back
            self._ready = batch  # first: if what follows raises, it is not lost
            if self._latest_only:
                self._ready = self._host._latest(batch)
        return self._ready is not None

    def __iter__(self) -> Iterator[Delivery]:
        return self

    def __next__(self) -> Delivery:
        while True:
            try:
                delivery = self.next_batch()
            except ClosedError:
                if not self._is_closed:
                    raise
                raise StopIteration from None
            assert delivery is not None
            return delivery

    # Acknowledging

    def ack(self, revision: int, *, durable: bool = True) -> None:
        """Acknowledge everything delivered up to a revision.

        Args:
            revision: That of the last delivery to acknowledge.
            durable: Store it at once, as durably as the store keeps anything. Otherwise it is stored with the
                next one that is, with every 1,000th, before a compaction, and when the subscription or the
                store is closed; what a crash takes of it is delivered again.

        Raises:
            ValueError: `revision` was not delivered yet.
            SubscriptionNotFoundError: It was deleted.
            ClosedError: It or its store is closed.

        Cost: one commit if the cursor has moved, shared with other writers; not durable, none. No revision.
        """
        if self.note_ack(revision, durable=durable):
            self.save()

    def ack_one(self, revision: int, *, durable: bool = True) -> None:
        """Acknowledge one delivery, and no other; one that is not known any more is passed over. As `ack`."""
        if self.note_ack_one(revision, durable=durable):
            self.save()

    def note_ack(self, revision: int, *, durable: bool) -> bool:
        """Do what `ack` does, but for storing it. True if it is to be stored now."""
        check_revision(revision)
        with self._mutex:
            self._check_open()
            if revision > self._delivered:
                msg = f"revision {revision} cannot be acknowledged; {self._delivered} is the last delivered"
                raise ValueError(msg)
            while self._unacknowledged and next(iter(self._unacknowledged)) <= revision:
                self._unacknowledged.popitem(last=False)
            self._acked = max(self._acked, revision)
            return self._is_due(durable=durable)

    def note_ack_one(self, revision: int, *, durable: bool) -> bool:
        """Do what `ack_one` does, but for storing it. True if it is to be stored now."""
        with self._mutex:
            self._check_open()
            self._unacknowledged.pop(revision, None)
            return self._is_due(durable=durable)

    def _is_due(self, *, durable: bool) -> bool:
        self._advance()
        self._unsaved_acks += 1
        return durable or self._unsaved_acks >= UNSAVED_ACKS_MAX

    def _advance(self) -> None:
        """Move the cursor up to where nothing is left to acknowledge."""
        if self._unacknowledged:
            revision = next(iter(self._unacknowledged)) - 1
        elif self._ready is not None:
            revision = self._ready.revision - 1
        elif self._watcher is not None:
            revision = self._watcher.revision
        else:
            return
        self._acked = max(self._acked, revision)

    def save(self) -> None:
        """Store how far it is, if that has changed.

        Raises:
            SubscriptionNotFoundError: It was deleted.
            ClosedError: Its store is closed.

        Cost: one commit, or nothing.
        """
        request = self.unsaved()
        if request is not None:
            self._host._submit(request)
            self.saved(request)

    def unsaved(self) -> SubscriptionAckRequest | None:
        """Return the write that stores how far it is; None if that has not changed. Followed by `saved`."""
        with self._mutex:
            self._unsaved_acks = 0
            # Two that are written at once come in any order: the store takes the greater.
            return SubscriptionAckRequest(self.name, self._acked) if self._acked > self._saved else None

    def saved(self, request: SubscriptionAckRequest) -> None:
        """Note that what `unsaved` returned was written."""
        with self._mutex:
            if request.revision <= self._acked:  # else it was sought back, and that was written later
                self._saved = max(self._saved, request.revision)

    def settle(self, *, is_ending: bool = False) -> None:
        """Look how far it is now, and store that: for the store, before it compacts or is closed.

        Cost: one commit, or nothing; before a compaction, what `poll` costs if nothing was taken yet.
        """
        # A lost one stays where it is, and its consumer is told. When watching has ended, what is known is stored.
        with suppress(SubscriptionLostError, ClosedError):
            while not self._settled(is_ending=is_ending):
                pass  # lets those in between who take from it
        if not self._is_closed:
            self.save()

    def _settled(self, *, is_ending: bool) -> bool:
        with self._mutex:
            if self._is_closed or self._unacknowledged or (is_ending and self._watcher is None):
                return True
            if not self._look():
                return False
            self._advance()
            return True

    # Moving

    def rewind(self) -> None:
        """Deliver again what is not acknowledged, from `revision` + 1 on, in order.

        Also what was acknowledged before something older was. Nothing is written.
        """
        with self._mutex:
            self._check_open()
            self._restart()

    def seek(self, start_revision: int) -> None:
        """Go on from a revision, whatever was acknowledged; what is before it counts as acknowledged.

        What others acknowledge at the same time may count after it.

        Args:
            start_revision: The first to deliver, from the compact revision to the one after the current; 0 for
                what comes after now.

        Raises:
            CompactedError: It is below the compact revision.
            FutureRevisionError: It is above the one after the current.
            SubscriptionNotFoundError: It was deleted.

        Cost: one commit.
        """
        check_revision(start_revision)
        record = self._record
        self._check_open()
        request = SubscriptionSaveRequest(
            record.name, record.keys, start_revision, record.hold_revisions, record.hold_ms
        )
        self._host._submit(request)
        stored = self._host._load_subscription(self.name)
        with self._mutex:
            self._restart()
            self._delivered = self._acked = self._saved = stored.revision

    def skip(self) -> int:
        """Go on with the oldest revision that is left, and return how many are lost; 0 if none are.

        What was delivered and not acknowledged is not delivered again if it is gone.

        Cost: one commit, if any are lost.
        """
        while True:
            first, oldest = self._acked + 1, self._host.compact_revision
            if first >= oldest:
                return 0
            with suppress(CompactedError):  # there was another compaction
                self.seek(oldest)
                return oldest - first

    def _restart(self) -> None:
        watcher, self._watcher = self._watcher, None
        self._ready = None
        self._unacknowledged.clear()
        if watcher is not None:
            watcher.close()  # which wakes those who wait, to wait for another one

    # Ending

    def close(self) -> None:
        """Store how far it is, and stop taking; a thread that waits in it is woken. Closing twice is harmless.

        Cost: one commit, if acknowledgements were not stored yet.
        """
        try:
            if not self._is_closed:
                with suppress(ClosedError, SubscriptionNotFoundError):
                    self.save()
        finally:
            self.end()

    def __del__(self) -> None:
        watcher = getattr(self, "_watcher", None)
        if watcher is not None:
            watcher.unlisten()  # or the hub would keep it until its keys change

    def delete(self) -> None:
        """Forget it, in the store, and close it. It holds no history any more, and its name is free.

        Raises:
            SubscriptionNotFoundError: It was deleted.

        Cost: one commit.
        """
        self._check_open()
        self._host._submit(SubscriptionDeleteRequest(self.name))
        self.end()

    def end(self) -> None:
        """Do what `close` does, but for storing anything."""
        with self._mutex:
            self._is_closed = True
            self._restart()
        self._host._free(self)
        self._wake()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(_WHAT)

    def forget(self) -> None:
        """Make the locks anew, in a child after a fork."""
        self._mutex = threading.RLock()
        self._gate = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} at {self.revision}{', closed' if self._is_closed else ''}>"


def _weakly(reference: weakref.ref[Subscription]) -> Callable[[], None]:
    def wake() -> None:
        subscription = reference()
        if subscription is not None:
            subscription._wake()

    return wake
