"""The subscriptions of a store: opened by name, by one at a time, and looked after when it compacts.

Invariants:

* I1. A name is open once at most, in the one store that may write: it is claimed before the store is asked
  for the subscription, and free again when that is closed or collected.
"""

from __future__ import annotations

import math
import threading
import weakref
from abc import abstractmethod
from contextlib import closing, suppress
from dataclasses import dataclass

from mvccstore.clock import Clock
from mvccstore.codec import entry_main
from mvccstore.engine import Engine
from mvccstore.errors import (
    StoreError,
    SubscriptionExistsError,
    SubscriptionInUseError,
    SubscriptionNotFoundError,
)
from mvccstore.hub import WatchBatch
from mvccstore.mvcc import subscription as rules
from mvccstore.mvcc.state import load
from mvccstore.mvcc.validate import check_keys_size
from mvccstore.options import Limits
from mvccstore.subscription import Subscription
from mvccstore.types import (
    Keys,
    Result,
    SubscriptionSaveRequest,
    WriteRequest,
    check_revision,
    check_subscription_name,
)
from mvccstore.view import View
from mvccstore.watch import Watcher, check_watch

HOLD_REVISIONS = 1_000_000
"""How much history a subscription may hold back if nothing else is said."""
_HOLD_SECONDS_MAX = 9_000_000_000


@dataclass(frozen=True, slots=True)
class SubscriptionInfo:
    """A subscription, as it is now."""

    name: str
    keys: Keys
    revision: int
    """Everything up to it is acknowledged."""
    lag: int
    """Revisions since, of whatever keys."""
    is_holding: bool
    """Whether it holds back what comes next from compaction; not if it is up to date, over its limits, or has lost any."""
    lost: int
    """Revisions that came next and were compacted."""
    hold_revisions: int | None
    hold_seconds: float | None
    is_open: bool
    """Whether somebody takes from it, in this process."""


class Consumers:
    """The subscriptions of one store that are open."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()  # guards _open; a leaf
        self._open: weakref.WeakValueDictionary[str, Subscription] = weakref.WeakValueDictionary()
        self._opening: set[str] = set()

    def begin(self, name: str) -> None:
        """Claim a name, before looking whether there is such a subscription. Needs an `end`.

        Raises:
            SubscriptionInUseError: Somebody has it.
        """
        with self._mutex:
            if name in self._open or name in self._opening:
                raise SubscriptionInUseError(name)
            self._opening.add(name)

    def end(self, name: str, opened: Subscription | None) -> None:
        """Give a claimed name to a subscription, or to nobody."""
        with self._mutex:
            self._opening.discard(name)
            if opened is not None:
                self._open[name] = opened

    def release(self, subscription: Subscription) -> None:
        """Set the name of a subscription free."""
        with self._mutex:
            if self._open.get(subscription.name) is subscription:
                del self._open[subscription.name]

    def find(self, name: str) -> Subscription | None:
        """Return the open subscription of a name."""
        with self._mutex:
            return self._open.get(name)

    def settle(self, *, is_ending: bool = False) -> None:
        """Store how far each is, as well as it goes."""
        with self._mutex:
            opened = list(self._open.values())
        for subscription in opened:
            # Whoever takes from it meets the same, and is told.
            with suppress(StoreError):
                subscription.settle(is_ending=is_ending)

    def forget(self) -> None:
        """Make the locks anew, in a child after a fork."""
        self._mutex = threading.Lock()
        for subscription in list(self._open.values()):
            subscription.forget()


class Subscribing(View):
    """The part of `Store` that has subscriptions."""

    __slots__ = ()

    _consumers: Consumers
    _clock: Clock
    _engine: Engine
    _path: str

    @property
    @abstractmethod
    def revision(self) -> int:
        """The current revision."""

    @property
    @abstractmethod
    def compact_revision(self) -> int:
        """The oldest revision that can be read."""

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """The largest requests accepted."""

    @abstractmethod
    def watch(self, keys: Keys, *, start_revision: int = 0) -> Watcher:
        """Watch a key or range."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise if the store is closed."""

    @abstractmethod
    def _check_writable(self) -> None:
        """Raise if the store is closed or read-only."""

    @abstractmethod
    def _submit(self, request: WriteRequest) -> Result:
        """Have a write carried out."""

    def subscription(
        self,
        name: str,
        keys: Keys | None = None,
        *,
        start_revision: int = 0,
        hold_revisions: int | None = None,
        hold_seconds: float | None = None,
        latest_only: bool = False,
    ) -> Subscription:
        """Open a durable subscription, after creating it if there is none of this name.

        It delivers every change of its keys at least once, over any number of restarts, in the order of
        revisions, those of one revision together. It is open once at a time.

        What it has not acknowledged it holds back from compaction: `compact` to a revision that it needs raises,
        retention stops short of it. It holds nothing any more when it is further behind than its limits say;
        if its history is then compacted, it says so when it is next taken from.

        Args:
            name: Of 1 to 255 bytes in UTF-8.
            keys: A key or a `KeyRange`. May be left out if the subscription exists, and must not differ.
            start_revision: The first revision to deliver if it is created, from the compact revision to the
                one after the current; 0 for what comes after now.
            hold_revisions: It holds history while at most so many revisions came after its cursor; 0 holds
                nothing.
            hold_seconds: It holds history while the first revision after its cursor is not older. If both are
                given, both must be kept to; if neither, it is `hold_revisions=1_000_000`, or as it was before.
            latest_only: Leave out changes of keys that were changed again by the time they are delivered.

        Raises:
            SubscriptionInUseError: It is open.
            SubscriptionExistsError: It exists, with other keys.
            SubscriptionNotFoundError: It does not exist, and no keys are given.
            CompactedError, FutureRevisionError: It cannot start at `start_revision`.

        Cost: one commit if it is created or its limits change. No revision. A revision of other keys costs it
        nothing, but counts as one it is behind until it looks.

        >>> import mvccstore
        >>> from mvccstore import KeyRange
        >>> store = mvccstore.open()
        >>> mailer = store.subscription("mailer", KeyRange.prefix(b"orders/"))
        >>> revision = store.put(b"orders/1", b"2 apples")
        >>> delivery = next(mailer)
        >>> [event.kv.value for event in delivery.events]
        [b'2 apples']
        >>> delivery.ack()
        >>> mailer.revision == revision, mailer.lag
        (True, 0)
        """
        self._check_writable()
        check_subscription_name(name)
        check_revision(start_revision)
        if keys is not None:
            check_watch(keys, 0, (), None)
            check_keys_size(keys, self.limits)
        holds = _checked_holds(hold_revisions, hold_seconds)
        self._consumers.begin(name)
        opened = None
        try:
            record = self._opened_record(name, keys, start_revision, holds)
            opened = Subscription(self, record, latest_only=latest_only)
        finally:
            self._consumers.end(name, opened)
        return opened

    def _opened_record(
        self, name: str, keys: Keys | None, start_revision: int, holds: tuple[int | None, int | None]
    ) -> rules.Record:
        with closing(self._engine.read()) as txn:
            record = rules.load(txn, name, self._path)
        if record is None:
            if keys is None:
                raise SubscriptionNotFoundError(name)
            if holds == (None, None):
                holds = (HOLD_REVISIONS, None)
            self._submit(SubscriptionSaveRequest(name, keys, start_revision, *holds))
            return self._load_subscription(name)
        if keys is not None and keys != record.keys:
            raise SubscriptionExistsError(name)
        if holds not in ((None, None), (record.hold_revisions, record.hold_ms)):
            self._submit(SubscriptionSaveRequest(name, record.keys, None, *holds))
            return self._load_subscription(name)
        return record

    def subscriptions(self) -> list[SubscriptionInfo]:
        """Return all subscriptions, open or not, in the order of their names. O(subscriptions)."""
        self._check_open()
        with closing(self._engine.read()) as txn:
            state = load(txn, self._path)
            now_ms = self._clock.time_ms()
            found = []
            for stored in rules.records(txn, self._path):
                opened = self._consumers.find(stored.name)
                record = stored if opened is None else stored._replace(revision=opened.revision)
                found.append(
                    SubscriptionInfo(
                        record.name,
                        record.keys,
                        record.revision,
                        max(0, state.revision - record.revision),
                        rules.is_holding(txn, record, state.revision, state.floor, now_ms),
                        max(0, state.floor - record.revision - 1),
                        record.hold_revisions,
                        None if record.hold_ms is None else record.hold_ms / 1000,
                        opened is not None,
                    )
                )
        return found

    def _save_progress(self, *, is_ending: bool = False) -> None:
        self._consumers.settle(is_ending=is_ending)

    def _free(self, subscription: Subscription) -> None:
        self._consumers.release(subscription)

    def _load_subscription(self, name: str) -> rules.Record:
        with closing(self._engine.read()) as txn:
            record = rules.load(txn, name, self._path)
        if record is None:
            raise SubscriptionNotFoundError(name)
        return record

    def _latest(self, batch: WatchBatch) -> WatchBatch | None:
        """Return what of a batch was not changed again by now; None if nothing is left. A lookup an event."""
        events = []
        with closing(self._engine.read()) as txn:
            for event in batch.events:
                entry = txn.newest(event.kv.key)
                # Without any entry, the key is deleted, and that is compacted.
                is_latest = event.type == "delete" if entry is None else entry_main(entry) <= batch.revision
                if is_latest:
                    events.append(event)
        return WatchBatch(batch.revision, tuple(events)) if events else None


def _checked_holds(hold_revisions: int | None, hold_seconds: float | None) -> tuple[int | None, int | None]:
    """Return the limits as they are stored, in revisions and milliseconds."""
    if hold_revisions is not None:
        if type(hold_revisions) is not int:
            msg = f"hold_revisions is a {type(hold_revisions).__name__}, not an int"
            raise TypeError(msg)
        if not 0 <= hold_revisions < 2**63:
            msg = f"hold_revisions is {hold_revisions}; it is 0 for none, or positive"
            raise ValueError(msg)
    if hold_seconds is None:
        return hold_revisions, None
    if isinstance(hold_seconds, bool) or not isinstance(hold_seconds, int | float):
        msg = f"hold_seconds is a {type(hold_seconds).__name__}, not a number of seconds"
        raise TypeError(msg)
    if not 0 <= hold_seconds <= _HOLD_SECONDS_MAX:
        msg = f"hold_seconds is {hold_seconds}; it is a number of seconds from 0 to {_HOLD_SECONDS_MAX:,}"
        raise ValueError(msg)
    return hold_revisions, math.ceil(hold_seconds * 1000)
