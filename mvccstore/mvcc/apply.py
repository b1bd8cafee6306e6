"""What a command changes.

Applying is deterministic: the same command on the same tables changes the same bytes, whoever applies it.
A command either raises before its first write, or is carried out whole; so several commands share one
engine transaction, and one that is refused leaves the others alone.

A `RevisionWriter` is one revision in the making. Its changes get subs 0, 1, 2, ... in the order they
happen, and until the first change there is no new revision:

    state 6 | put a  -> (7, 0), delete b, c -> (7, 1), (7, 2) | state 7
    state 7 | delete of nothing, empty txn, reads             | state 7
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, assert_never

from mvccstore.attributes import AttributesRequest
from mvccstore.codec import (
    SUB_MAX,
    entry_at,
    entry_floor,
    is_live,
    log_key_of,
    new_put_result,
    pack,
    pack_lease_id,
    pack_plain,
    pack_put,
    pack_record,
    pack_tombstone,
    unpack_entry,
    unpack_version,
)
from mvccstore.errors import (
    CompactedError,
    CompactionHeldError,
    ConflictError,
    FutureRevisionError,
    KeyNotFoundError,
    LeaseExistsError,
    LeaseNotFoundError,
    StorageError,
    StoreError,
)
from mvccstore.mvcc import attributes, subscription, times
from mvccstore.mvcc import lease as leases
from mvccstore.mvcc.compare import choose_branches
from mvccstore.mvcc.read import PAGE_ROWS, bounds, find, live_entry, live_page, row, rows
from mvccstore.mvcc.state import NEVER_COMPACTED, Compaction, State, save_compaction
from mvccstore.tables import Table, WriteTxn
from mvccstore.types import (
    BatchRequest,
    Command,
    CompactRequest,
    DeleteRequest,
    DeleteResult,
    KeyRange,
    KeyValue,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    PutResult,
    RangeRequest,
    RangeResult,
    Request,
    Response,
    Result,
    SubscriptionAckRequest,
    SubscriptionDeleteRequest,
    SubscriptionSaveRequest,
    TxnRequest,
    TxnResult,
)

_LOG: Final = Table.LOG
Row = tuple[bytes, int, int, int, bytes, int]


class Changes:
    """What a commit changed, for those who watch: noted as it is applied, told when it is committed."""

    __slots__ = ("attributes", "leases", "rows")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        """The fields of a `KeyValue` each, in the order of revisions and subs; a tombstone has version 0."""
        self.leases: list[LeaseGrantRequest | LeaseRevokeRequest] | None = None
        self.attributes: list[str] | None = None
        """The names of those that were set or deleted."""


def apply(txn: WriteTxn, state: State, command: Command, changes: Changes) -> tuple[State, Result]:
    """Carry out one command, and note in `changes` what it did. Return the state after it, and what to answer.

    Raises:
        StoreError: It was refused; nothing was written.
    """
    request, time_ms = command
    writer = RevisionWriter(txn, state, changes)
    if isinstance(request, PutRequest):  # by far the most
        writer.check(request)
        put = writer.put(request)
        return writer.finish(time_ms), put
    if isinstance(request, CompactRequest):
        return _compact(txn, state, request, time_ms)
    if isinstance(request, LeaseGrantRequest):
        _grant(txn, request, time_ms)
        _note_lease(changes, request)
        return state, PutResult(state.revision)
    if isinstance(request, SubscriptionSaveRequest | SubscriptionAckRequest | SubscriptionDeleteRequest):
        subscription.change(txn, state, request)
        return state, PutResult(state.revision)
    if isinstance(request, AttributesRequest):
        changed = attributes.change(txn, state, request)
        if request.changes:
            changes.attributes = [*(changes.attributes or ()), *(name for name, _ in request.changes)]
        return state, changed
    result: Result
    match request:
        case DeleteRequest():
            result = writer.delete(request)
        case TxnRequest():
            result = _txn(writer, request)
        case BatchRequest():
            result = _batch(writer, request)
        case LeaseRevokeRequest():
            result = writer.revoke(request.lease_id)
            _note_lease(changes, request)
        case _:
            assert_never(request)
    return writer.finish(time_ms), result


def apply_all(
    txn: WriteTxn, state: State, commands: Sequence[Command], changes: Changes
) -> tuple[State, list[Result | StoreError]]:
    """Carry out commands in order; return the state after them, and for each what to answer, or why it was refused.

    Raises:
        StorageError: The engine failed, or there is no room; what was written so far must be undone.
    """
    answers: list[Result | StoreError] = []
    revision, kept_ms, is_behind = state.revision, state.time_ms, False
    note, newest, append, add = changes.rows.append, txn.newest, txn.append, txn.add
    for command in commands:
        request, time_ms = command
        if type(request) is PutRequest and not (
            request.lease or request.prev_kv or request.ignore_value or request.ignore_lease
        ):
            # Most of what is written, and all of it in one place: half the time of what `RevisionWriter.put` takes.
            key, main = request.key, revision + 1
            create_revision, version = main, 1
            entry = newest(key)
            if entry is not None and is_live(entry):
                create_revision, version, has_lease = unpack_version(entry)
                version += 1
            if version == 1 or not has_lease:
                fields = (key, create_revision, main, version, request.value, 0)
                record, log_key, entry = pack_plain(fields)
                append(_LOG, log_key, record)
                add(key, entry)
                note(fields)
                if time_ms >= kept_ms + times.RESOLUTION_MS or not kept_ms:
                    kept_ms = times.note(txn, main, time_ms, kept_ms)
                revision, is_behind = main, True
                answers.append(new_put_result(main))
                continue
        if is_behind:
            state, is_behind = State(revision, entry_floor(revision), state.compaction, kept_ms), False
        try:
            state, answer = apply(txn, state, command, changes)
            answers.append(answer)
        except StorageError:
            raise
        except StoreError as error:
            answers.append(error)
        revision, kept_ms = state.revision, state.time_ms
    if is_behind:
        state = State(revision, entry_floor(revision), state.compaction, kept_ms)
    return state, answers


def _note_lease(changes: Changes, request: LeaseGrantRequest | LeaseRevokeRequest) -> None:
    if changes.leases is None:
        changes.leases = []
    changes.leases.append(request)


class RevisionWriter:
    """One revision in the making, on top of `state`."""

    __slots__ = ("_at", "_base", "_note", "_state", "_sub", "changes", "main", "txn")

    def __init__(self, txn: WriteTxn, state: State, changes: Changes) -> None:
        self.txn = txn
        self.changes = changes
        self._note = changes.rows.append
        self.main = state.revision + 1
        self._state = state
        self._base = state.revision
        self._at = entry_floor(self.main)  # sees its own changes
        self._sub = 0

    @property
    def revision(self) -> int:
        """The store's revision as the next operation sees it."""
        return self.main if self._sub else self._base

    def at_now(self) -> bytes:
        """Return the entry to seek to read the state with the changes so far, and none that come after."""
        if not self._sub:
            return self._state.at
        return entry_at(self.main, self._sub - 1)

    def finish(self, time_ms: int) -> State:
        """Return the state after the revision, or as it was if nothing changed."""
        if not self._sub:
            return self._state
        kept_ms = times.note(self.txn, self.main, time_ms, self._state.time_ms)
        return State(self.main, self._at, self._state.compaction, kept_ms)

    def check(self, request: PutRequest) -> None:
        """Raise if a put cannot be carried out on the state so far: unknown lease, nothing to keep."""
        self._check_lease(request)
        self._check_kept(request)

    def check_in_txn(self, request: PutRequest) -> None:
        """Raise what `check` does, in the other order: in a txn etcd looks at the key first."""
        self._check_kept(request)
        self._check_lease(request)

    def _check_lease(self, request: PutRequest) -> None:
        if request.lease and self.txn.get(Table.LEASES, pack_lease_id(request.lease)) is None:
            raise LeaseNotFoundError(request.lease)

    def _check_kept(self, request: PutRequest) -> None:
        if (request.ignore_value or request.ignore_lease) and live_entry(self.txn, request.key, self._at) is None:
            raise KeyNotFoundError(request.key)

    def check_range(self, request: RangeRequest) -> None:
        """Raise if a range's revision cannot be read: etcd's rule, in which -1 passes until the first compaction."""
        if request.revision > self._base:
            raise FutureRevisionError(request.revision, self._base)
        floor = self._state.compaction.revision
        if request.revision < floor and request.revision != 0:
            raise CompactedError(request.revision, floor)

    def put(self, request: PutRequest) -> PutResult:
        """Set a key.

        Cost: one lookup and two writes; a lookup more to return or keep anything of the version before, and
        what leases cost.
        """
        key, value, lease = request.key, request.value, request.lease
        main, sub, txn = self.main, self._sub, self.txn
        prev = None
        create_revision, version = main, 1
        entry = txn.newest(key)
        if entry is not None and is_live(entry):
            before = unpack_entry(entry)
            create_revision, version = before.create_revision, before.version + 1
            if before.has_lease or request.prev_kv or request.ignore_value or request.ignore_lease:
                prev = row(txn, entry)
                value = prev.value if request.ignore_value else value
                lease = prev.lease if request.ignore_lease else lease
                if prev.lease:
                    leases.detach(txn, prev.lease, log_key_of(entry))
        assert sub <= SUB_MAX
        fields = (key, create_revision, main, version, value, lease)
        self._note(fields)
        record = pack_record(fields)
        entry = pack_put(main, sub, record, create_revision, version, lease)
        log_key = log_key_of(entry)
        txn.append(_LOG, log_key, record)
        txn.add(key, entry)
        self._sub = sub + 1
        if lease:
            leases.attach(txn, lease, log_key)
        return PutResult(main, prev if request.prev_kv else None)

    def delete(self, request: DeleteRequest) -> DeleteResult:
        """Delete the keys of a range, in key order. Cost: one lookup and two writes a key, and what leases cost."""
        start, end = bounds(request.keys)
        prev_kvs: list[KeyValue] = []
        deleted = 0
        resume: bytes | None = start
        while resume is not None and not (end is not None and resume >= end):
            live, resume = live_page(self.txn, resume, end, self._at, PAGE_ROWS)
            deleted += len(live)
            if request.prev_kv:
                prev_kvs += rows(self.txn, live)
            for key, entry in live:
                if unpack_entry(entry).has_lease:
                    leases.detach(self.txn, row(self.txn, entry).lease, log_key_of(entry))
                self._bury(key)
        return DeleteResult(self.revision, deleted, tuple(prev_kvs))

    def _bury(self, key: bytes) -> None:
        """Write a tombstone."""
        assert self._sub <= SUB_MAX
        fields = (key, 0, self.main, 0, b"", 0)
        self._note(fields)
        record = pack_record(fields)
        entry = pack_tombstone(self.main, self._sub, record)
        self.txn.append(_LOG, log_key_of(entry), record)
        self.txn.add(key, entry)
        self._sub += 1

    def range(self, request: RangeRequest) -> RangeResult:
        """Read, seeing the changes so far unless an old revision is asked for."""
        at = entry_floor(request.revision) if request.revision > 0 else self._at
        return find(self.txn, request, at, self.revision)

    def revoke(self, lease_id: int) -> DeleteResult:
        """Delete a lease and its keys, in key order. Cost: a lookup and a delete a key."""
        packed_id = pack_lease_id(lease_id)
        if self.txn.get(Table.LEASES, packed_id) is None:
            raise LeaseNotFoundError(lease_id)
        attached = leases.attached(self.txn, lease_id)
        for kv, log_key in attached:
            leases.detach(self.txn, lease_id, log_key)
            self._bury(kv.key)
        self.txn.delete(Table.LEASES, [packed_id])
        return DeleteResult(self.revision, len(attached), tuple(kv for kv, _ in attached))


def _txn(writer: RevisionWriter, request: TxnRequest) -> TxnResult:
    chosen = choose_branches(writer.txn, request, writer.at_now())
    _check_branches(writer, request, chosen)
    result = _run_txn(writer, request, chosen)
    return TxnResult(writer.revision, result.succeeded, result.responses)


def _check_branches(writer: RevisionWriter, request: TxnRequest, chosen: dict[int, bool]) -> None:
    """Raise what any operation of the branches taken would raise, before any of them writes.

    In the order of the operations, as etcd does since 3.6 (3.5 looked at all puts before all ranges), so that the
    first error is the one it gives.
    """
    for operation in _taken(request, chosen):
        if isinstance(operation, PutRequest):
            writer.check_in_txn(operation)
        elif isinstance(operation, RangeRequest):
            writer.check_range(operation)


def _taken(request: TxnRequest, chosen: dict[int, bool]) -> list[Request]:
    """Return the operations of the branches taken, nested ones in their places."""
    operations: list[Request] = []
    for operation in request.success if chosen[id(request)] else request.failure:
        operations += _taken(operation, chosen) if isinstance(operation, TxnRequest) else [operation]
    return operations


def _run_txn(writer: RevisionWriter, request: TxnRequest, chosen: dict[int, bool]) -> TxnResult:
    succeeded = chosen[id(request)]
    responses = tuple(
        _run(writer, operation, chosen) for operation in (request.success if succeeded else request.failure)
    )
    return TxnResult(writer.revision, succeeded, responses)


def _run(writer: RevisionWriter, operation: Request, chosen: dict[int, bool]) -> Response:
    match operation:
        case PutRequest():
            return writer.put(operation)
        case DeleteRequest():
            return writer.delete(operation)
        case RangeRequest():
            return writer.range(operation)
        case TxnRequest():
            return _run_txn(writer, operation, chosen)
        case _:
            assert_never(operation)


def _batch(writer: RevisionWriter, request: BatchRequest) -> TxnResult:
    base = writer.main - 1
    if request.base_revision != base:
        raise ConflictError(base)
    _check_batch(writer, request)
    responses = tuple(_run(writer, operation, {}) for operation in request.requests)
    return TxnResult(writer.revision, succeeded=True, responses=responses)


def _check_batch(writer: RevisionWriter, request: BatchRequest) -> None:
    """Raise what a put of the batch would raise, before any of them writes."""
    changed: list[tuple[KeyRange | bytes, bool]] = []
    for operation in request.requests:
        if isinstance(operation, DeleteRequest):
            changed.append((operation.keys, False))
            continue
        if operation.ignore_value or operation.ignore_lease:
            # The last earlier operation on the key decides whether there is something to keep.
            for keys, exists in reversed(changed):
                if operation.key == keys or (isinstance(keys, KeyRange) and operation.key in keys):
                    if not exists:
                        raise KeyNotFoundError(operation.key)
                    break
            else:
                writer.check(operation)
        else:
            writer.check(operation)
        changed.append((operation.key, True))


def _compact(txn: WriteTxn, state: State, request: CompactRequest, time_ms: int) -> tuple[State, Result]:
    before = state.compaction
    if request.revision <= before.revision:
        raise CompactedError(request.revision, before.revision)
    if request.revision > state.revision:
        raise FutureRevisionError(request.revision, state.revision)
    if not request.force:
        held = subscription.first_held(txn, state.revision, before.revision, time_ms)
        if held is not None and held.revision + 1 < request.revision:
            raise CompactionHeldError(request.revision, held.revision + 1, held.name)
    assert request.revision > NEVER_COMPACTED
    after = Compaction(request.revision, before.reclaimed, before.target, before.cursor)
    save_compaction(txn, after)
    return state._replace(compaction=after), PutResult(state.revision)


def _grant(txn: WriteTxn, request: LeaseGrantRequest, time_ms: int) -> None:
    packed_id = pack_lease_id(request.lease_id)
    if txn.get(Table.LEASES, packed_id) is not None:
        raise LeaseExistsError(request.lease_id)
    txn.put(Table.LEASES, packed_id, pack((request.ttl_ms, time_ms)))
