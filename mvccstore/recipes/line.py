"""A waiting line: who came first has their turn until they leave; the others wait, each for the one before them.

What `lock` and `election` have in common. A place in the line is a key under the line's prefix, attached to a
lease of its own. Its create revision says who is before whom.

Invariants:

* I1. The turn belongs to the place with the lowest create revision. A later one cannot come to be before it.
* I2. A place ends with its lease, so that one whose owner is gone does not hold the others up for ever.
* I3. Whoever waits watches one key, the place before theirs: one that leaves wakes one other.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from mvccstore.errors import LeaseNotFoundError, StoreError
from mvccstore.recipes.host import Deadline, Host, HostLease, changed
from mvccstore.types import Compare, KeyRange, Op


class Place(NamedTuple):
    """A place in a line."""

    key: bytes
    revision: int
    """The revision that created it; greater than that of anyone who had the turn before."""
    lease: HostLease

    def is_there(self) -> Compare:
        """Return the compare that holds as long as the place is in the line."""
        return Compare.create_revision(self.key, "==", self.revision)

    def lost(self) -> LeaseNotFoundError:
        """Return the error for when it is not."""
        return LeaseNotFoundError(self.lease.__index__())


async def take_turn(host: Host, line: bytes, value: bytes, ttl: float, deadline: Deadline) -> Place | None:
    """Join a line and wait for the turn; None at the deadline, having left. Two commits, a third to leave."""
    lease = await host.grant(ttl)
    has_turn = False
    try:
        place = await _join(host, line, value, lease)
        has_turn = await _has_turn(host, line, place, deadline)
    finally:
        if not has_turn:
            with suppress(StoreError):  # lost or closed: it has left, or will with its lease
                await host.revoke(lease)
    return place if has_turn else None


async def leave(host: Host, place: Place) -> None:
    """Leave the line. One commit.

    Raises:
        LeaseNotFoundError: The place was lost before.
    """
    if await host.revoke(place.lease) == 0:  # its key was deleted from under it
        raise place.lost()


async def _join(host: Host, line: bytes, value: bytes, lease: HostLease) -> Place:
    # As etcd's own recipes name it, so that both can stand in one line.
    key = b"%s/%x" % (line, lease.__index__())
    result = await host.txn(success=[Op.put(key, value, lease=lease)])
    return Place(key, result.revision, lease)


async def _has_turn(host: Host, line: bytes, place: Place, deadline: Deadline) -> bool:
    everybody = KeyRange.prefix(line + b"/")
    while True:
        before = await host.range(
            everybody,
            limit=1,
            order_by="create",
            descending=True,
            keys_only=True,
            max_create_revision=place.revision - 1,
        )
        if not before.kvs:
            own = await host.range(place.key, keys_only=True)
            if not own.kvs or own[0].create_revision != place.revision:
                raise place.lost()
            return True
        if not await changed(host, before[0].key, before.revision, deadline, by_delete=True):
            return False
