"""Alarms and the quota: what the server refuses to write, and why.

Invariants:

* I1. An alarm holds from the moment it is raised until it is disarmed, over restarts: it is an attribute of the store.
  In memory it is what was written, in that order: nobody is told of an alarm that a restart could lose.
* I2. `_size_bytes` and `_admitted_bytes` together are at least what the file has grown to, by etcd's estimate of what a
  write adds; the file is looked at again before a write is refused, and after every `_MEASURE_BYTES` let in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mvccstore.attributes import AttributesRequest
from mvccstore.errors import StoreError
from mvccstore.etcd_file.buckets import AlarmRecord
from mvccstore.server.errors import Refusal
from mvccstore.server.writer import Writer
from mvccstore.store import Store
from mvccstore.types import Result

_PREFIX = "etcd/alarm/"
_MEASURE_BYTES: Final = 1 << 20
NOSPACE, CORRUPT = 1, 2
NAMES = {NOSPACE: "NOSPACE", CORRUPT: "CORRUPT"}


class Alarms:
    """The alarms of a cluster, and the quota that raises one of them.

    Args:
        quota_bytes: The size of the store's file at which it counts as full; 0 for none.
    """

    def __init__(self, store: Store, writer: Writer, member_id: int, quota_bytes: int) -> None:
        self._store = store
        self._writer = writer
        self._member_id = member_id
        self.quota_bytes = quota_bytes
        self.is_nospace = False
        """Whether any member has raised NOSPACE, or the quota is about to."""
        self.is_corrupt = False
        """Whether any member has raised CORRUPT."""
        self._admitted_bytes = 0
        self.under_way = 0
        """Changes that are being written."""
        self._is_raising = False
        self.reload()

    def reload(self) -> None:
        """Go by what is stored."""
        self._raised = {_unpack(name): None for name in self._store.attributes(_PREFIX)}
        self._size_bytes = self._store.stats().file_bytes
        self._look()

    def all(self, kind: int = 0) -> list[AlarmRecord]:
        """Return the alarms, or those of one kind."""
        return [alarm for alarm in self._raised if kind in {0, alarm.alarm}]

    def admit(self, cost_bytes: int) -> None:
        """Let a write through the quota's gate, before anything else of it is looked at.

        Raises:
            RpcError: It adds something, and the store is full; the NOSPACE alarm is raised then.
        """
        if not cost_bytes or not self.quota_bytes:
            return
        admitted = self._admitted_bytes + cost_bytes
        if admitted > _MEASURE_BYTES or self._size_bytes + admitted >= self.quota_bytes:
            self._size_bytes, admitted = self._store.stats().file_bytes, cost_bytes
            if self._size_bytes + cost_bytes >= self.quota_bytes:
                self._raise_nospace()
                raise Refusal.NO_SPACE.error(limit="quota_bytes")
        self._admitted_bytes = admitted

    def check_write(self, cost_bytes: int = 0) -> None:
        """Let a write through that is well formed, and that the quota's gate has let through.

        Raises:
            RpcError: The CORRUPT alarm is raised, or it adds something and the NOSPACE alarm is.
        """
        if self.is_corrupt:
            raise Refusal.CORRUPT.error()
        if cost_bytes and self.is_nospace:
            raise Refusal.NO_SPACE.error(limit="quota_bytes")

    def change(self, alarm: AlarmRecord, then: Callable[[bool | StoreError], None], *, is_raised: bool) -> None:
        """Raise or disarm an alarm, when it is written; `then` is told whether it was another one before, or why not."""
        request = AttributesRequest(((_name(alarm), b"" if is_raised else None),))

        def done(result: Result | StoreError) -> None:
            self.under_way -= 1
            if isinstance(result, StoreError):
                then(result)
                return
            was_raised = alarm in self._raised
            self._note(alarm, is_raised=is_raised)
            then(was_raised != is_raised)

        self.under_way += 1
        self._writer.submit(request, done)

    def pretend(self, kind: int, *, is_raised: bool) -> None:
        """Raise or disarm an alarm of this member, not for long: nothing is written. For tests."""
        self._note(AlarmRecord(self._member_id, kind), is_raised=is_raised)

    def _note(self, alarm: AlarmRecord, *, is_raised: bool) -> None:
        if is_raised:
            self._raised[alarm] = None
        else:
            self._raised.pop(alarm, None)
        self._look()

    def _raise_nospace(self) -> None:
        alarm = AlarmRecord(self._member_id, NOSPACE)
        if alarm not in self._raised and not self._is_raising:

            def then(_: bool | StoreError) -> None:
                # Should it not have been written, the quota raises it again.
                self._is_raising = False
                self._look()

            self._is_raising = True
            self.change(alarm, then, is_raised=True)
            self._look()

    def _look(self) -> None:
        kinds = {alarm.alarm for alarm in self._raised}
        self.is_nospace = NOSPACE in kinds or self._is_raising
        self.is_corrupt = CORRUPT in kinds


def _name(alarm: AlarmRecord) -> str:
    return f"{_PREFIX}{alarm.member_id:x}/{alarm.alarm}"


def _unpack(name: str) -> AlarmRecord:
    member, _, kind = name.removeprefix(_PREFIX).partition("/")
    return AlarmRecord(int(member, 16), int(kind))
