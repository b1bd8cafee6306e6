"""A store too simple to be wrong: a list of full states, one per revision, and a list of all events.

It takes requests as `Op` makes them, and gives the results and errors of `Store`. Its rules are etcd's as
documented; with the store it shares the values and no other code. Cost of a write: a copy of everything.

>>> from mvccstore import Op
>>> model = Model()
>>> model.write(Op.put(b"k", b"1")).revision, model.write(Op.delete(b"k")).revision
(2, 3)
>>> model.range(Op.range(b"k", revision=2)).count, model.range(Op.range(b"k")).count
(1, 0)
"""

from __future__ import annotations

from mvccstore import errors
from mvccstore import types as t
from mvccstore.clock import Clock, SystemClock
from mvccstore.options import Limits, Retention
from mvccstore.testing.rules import FIELDS, NOTHING, check_put, check_size, check_txn, holds, matches, taken

_State = dict[bytes, t.KeyValue]


class ModelView:
    """The reading half; by itself, a snapshot."""

    def __init__(self, model: Model, states: list[_State], events: list[t.Event]) -> None:
        self._model, self.states, self.events = model, states, events  # states by revision
        self._base = self.revision

    @property
    def revision(self) -> int:
        """The current revision."""
        return len(self.states) - 1

    @property
    def compact_revision(self) -> int:
        """The oldest revision that can be read."""
        return min(self._model.floor, self.revision)

    def check(self, revision: int, last: int) -> None:
        """Raise unless a revision can be read."""
        if revision > last:
            raise errors.FutureRevisionError(revision, last)
        if revision and revision < self.compact_revision:
            raise errors.CompactedError(revision, self.compact_revision)

    def range(self, request: t.RangeRequest) -> t.RangeResult:
        """Return the keys of a range."""
        self.check(request.revision, self._base)
        state = self.states[request.revision if request.revision > 0 else -1]
        rows = [state[key] for key in sorted(state) if matches(request.keys, key)]
        count, limit, low, high = len(rows), request.limit, request.min_mod_revision, request.max_mod_revision
        low_create, high_create = request.min_create_revision, request.max_create_revision
        if request.count_only:
            return t.RangeResult(self.revision, (), count, more=False)
        if limit > 0 and request.sort_order == "none" and not (low or high or low_create or high_create):
            rows = rows[: limit + 1]  # before they are sorted
        rows = [kv for kv in rows if kv.mod_revision >= low and kv.create_revision >= low_create]
        rows = [kv for kv in rows if not high or kv.mod_revision <= high]
        rows = [kv for kv in rows if not high_create or kv.create_revision <= high_create]
        rows.sort(key=lambda kv: kv[FIELDS[request.sort_target]], reverse=request.sort_order == "descend")
        cut = rows[:limit] if limit > 0 else rows
        shown = tuple(kv._replace(value=b"") if request.keys_only else kv for kv in cut)
        return t.RangeResult(self.revision, shown, count, more=len(cut) < len(rows))

    def history(self, keys: t.Keys, start: int = 0, end: int = 0, *, prev_kv: bool = False) -> list[t.Event]:
        """Return the changes of a key or range between two revisions, in order."""
        self.check(start, self.revision)
        if end > self.revision:
            raise errors.FutureRevisionError(end, self.revision)
        floor = self.compact_revision
        last = {event.kv.key: event for event in self.events if event.revision <= floor}
        kept = [e for e in self.events if e.revision > floor or last[e.kv.key] is e]
        kept = [e for e in kept if e.revision >= floor or e.type == "put"]
        kept = [e for e in kept if matches(keys, e.kv.key) and start <= e.revision <= (end or self.revision)]
        if not prev_kv:
            return kept
        before = [self.states[e.revision - 1] if e.revision > floor else {} for e in kept]
        return [e._replace(prev_kv=state.get(e.kv.key)) for e, state in zip(kept, before, strict=True)]


class ModelTxn(ModelView):
    """A transaction block: one revision in the making. Nothing of it happens before `commit`."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, [*model.states], [*model.events])

    def write(self, request: t.Request | t.LeaseRevokeRequest) -> t.Response:
        """Carry out a request, txns without their static checks."""
        match request:
            case t.PutRequest():
                return self._put(request)
            case t.DeleteRequest():
                check_size(request.keys, self._model.limits)
                prev_kvs = self._delete([kv for key, kv in self.states[-1].items() if matches(request.keys, key)])
                return t.DeleteResult(self.revision, len(prev_kvs), prev_kvs if request.prev_kv else ())
            case t.RangeRequest():
                return self.range(request)
            case t.TxnRequest():
                # Compares see the state before, those of nested txns too.
                succeeded = all(holds(self.states[self._base], compare) for compare in request.compare)
                responses = [self.write(member) for member in (request.success if succeeded else request.failure)]
                return t.TxnResult(self.revision, succeeded, tuple(responses))
            case t.LeaseRevokeRequest(lease_id):
                if lease_id not in self._model.leases:
                    raise errors.LeaseNotFoundError(lease_id)
                self._model.leases.remove(lease_id)
                prev_kvs = self._delete([kv for kv in self.states[-1].values() if kv.lease == lease_id])
                return t.DeleteResult(self.revision, len(prev_kvs), prev_kvs)

    def _change(self, event: t.Event) -> None:
        if self.revision == self._base:
            self.states.append(dict(self.states[-1]))
        self.events.append(event)
        self.states[-1].pop(event.kv.key, None)
        if event.type == "put":
            self.states[-1][event.kv.key] = event.kv

    def _put(self, request: t.PutRequest) -> t.PutResult:
        check_size(request, self._model.limits)
        prev, revision = self.states[-1].get(request.key), self._base + 1
        if request.lease and request.lease not in self._model.leases:
            raise errors.LeaseNotFoundError(request.lease)
        check_put(request, self.states[-1], self._model.leases)
        base = prev or t.KeyValue(request.key, revision, revision, 0, b"")
        value = base.value if request.ignore_value else request.value
        lease = base.lease if request.ignore_lease else request.lease
        kv = base._replace(mod_revision=revision, version=base.version + 1, value=value, lease=lease)
        self._change(t.Event("put", kv))
        return t.PutResult(revision, prev if request.prev_kv else None)

    def _delete(self, kvs: list[t.KeyValue]) -> tuple[t.KeyValue, ...]:
        for kv in sorted(kvs):
            self._change(t.Event("delete", NOTHING._replace(key=kv.key, mod_revision=self._base + 1)))
        return tuple(sorted(kvs))

    def commit(self) -> int:
        """Make it all happen."""
        model = self._model
        model.times_ms += [max(model.clock.time_ms(), model.times_ms[-1])] * (self.revision - model.revision)
        model.states, model.events, model._base = self.states, self.events, self.revision
        return self.revision


class Model(ModelView):
    """The store."""

    def __init__(self, limits: Limits | None = None, clock: Clock | None = None) -> None:
        self.limits, self.clock = limits or Limits(), clock or SystemClock()
        self.floor = -1  # the compact revision
        self.leases: set[int] = set()
        self.attributes, self.attributes_version = dict[str, bytes](), 0
        self.times_ms = [0, 0]  # when each revision was written; never falls
        super().__init__(self, [{}, {}], [])  # there is nothing at revisions 0 and 1

    def snapshot(self, revision: int = 0) -> ModelView:
        """Copy everything up to a revision."""
        self.check(revision, self.revision)
        last = revision or self.revision
        return ModelView(self, self.states[: last + 1], [e for e in self.events if e.revision <= last])

    def begin(self) -> ModelTxn:
        """Begin a transaction block."""
        return ModelTxn(self)

    def write(
        self, request: t.Request | t.CompactRequest | t.LeaseGrantRequest | t.LeaseRevokeRequest | t.AttributesRequest
    ) -> t.Result:
        """Carry out a request, as one revision."""
        match request:
            case t.CompactRequest(revision):
                if revision <= self.floor:
                    raise errors.CompactedError(revision, self.floor)
                self.check(revision, self.revision)
                self.floor = revision
            case t.LeaseGrantRequest(lease_id):
                if lease_id in self.leases:
                    raise errors.LeaseExistsError(lease_id)
                self.leases.add(lease_id)
            case t.AttributesRequest(changes, base):
                if base not in {None, self.attributes_version}:
                    raise errors.AttributesConflictError(self.attributes_version, self.revision)
                changed = {**self.attributes, **dict(changes)}
                self.attributes = {name: value for name, value in changed.items() if value is not None}
                self.attributes_version += bool(changes)
                return t.AttributesResult(self.revision, self.attributes_version)
            case _:
                if isinstance(request, t.TxnRequest):
                    check_txn(request, self.limits)
                    for member in taken(self.states[-1], request):
                        if isinstance(member, t.PutRequest):
                            check_put(member, self.states[-1], self.leases)
                        elif isinstance(member, t.RangeRequest):
                            self.range(member)
                txn = self.begin()
                result = txn.write(request)
                txn.commit()
                return result
        return t.PutResult(self.revision)

    def enforce(self, retention: Retention) -> None:
        """Compact to what a retention keeps."""
        targets = [] if retention.revisions is None else [self.revision - retention.revisions]
        if retention.seconds is not None:
            since_ms = self.clock.time_ms() - round(retention.seconds * 1000)
            targets.append(sum(time_ms <= since_ms for time_ms in self.times_ms[1:]))
        if min(targets) > max(self.floor, 1):
            self.floor = min(targets)
