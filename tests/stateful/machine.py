"""A machine that does the same at random to a store and to a model, and compares every answer and every error."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mvccstore
from mvccstore import EngineOptions, KeyRange, Op, Retention, Snapshot, Store, StoreError
from mvccstore.attributes import AttributesRequest, AttributesResult
from mvccstore.engine.journaled import JournaledEngine
from mvccstore.testing import Model, ModelTxn, ModelView
from mvccstore.types import (
    CompactRequest,
    DeleteRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    TxnRequest,
    check_keys,
    check_revision,
)
from tests.journaled import carry_and_keep, kill_store, open_journaled, put_aside
from tests.stateful import strategies as some
from tests.stateful.etcd_hash import hash_kv

OPEN_MAX = 4
FILE_ENGINES = ("lmdb", "sqlite")
EVERYTHING = KeyRange.all()
OPTIONS: list[dict[str, Any]] = [
    {"order_by": target, "descending": descending, "limit": limit, "min_mod_revision": low, "keys_only": keys_only}
    for target, descending, limit, low, keys_only in product(
        ("value", "version", "key", "mod", "create"), (True, False), (1, 4, 2, 0), (0, 5), (False, True)
    )
]
"""Of ranges; a few of them are tried after every step."""


class SteppedClock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def time_ms(self) -> int:
        return self.now_ms

    def monotonic(self) -> float:
        return 0.0


class Raised(NamedTuple):
    """An error, as far as two of them can be compared."""

    type: type[Exception]
    facts: tuple[object, ...]


def outcome(call: Callable[[], object]) -> object:
    """Return what a call returns, or what it raises."""
    try:
        return call()
    except StoreError as error:
        return Raised(type(error), error.args)
    except (TypeError, ValueError) as error:
        return Raised(type(error), ())


def same(ours: Callable[[], object], model: Callable[[], object]) -> object:
    """Hold a store's answer against a model's."""
    given, expected = outcome(ours), outcome(model)
    assert (type(given), given) == (type(expected), expected), f"store: {given}, model: {expected}"
    return expected


class Read(NamedTuple):
    """A read, to be asked of a store, a snapshot, a block."""

    kind: str
    keys: Any
    code: int
    other_code: int
    options: dict[str, Any]
    is_flagged: bool

    def compare(self, ours: Any, model: ModelView) -> None:
        revision = some.pick_revision(self.code, model)
        same(lambda: self.of_store(ours, revision, model), lambda: self.of_model(model, revision))

    def of_store(self, ours: Any, revision: int, model: ModelView) -> object:
        match self.kind:
            case "get":
                return ours.get(self.keys, revision=revision)
            case "count":
                return ours.count(self.keys, revision=revision)
            case "range":
                return ours.range(self.keys, revision=revision, **self.options)
            case "scan":
                return list(ours.scan(self.keys, revision=revision, keys_only=self.is_flagged))
        end = some.pick_revision(self.other_code, model)
        return list(ours.history(self.keys, start_revision=revision, end_revision=end, prev_kv=self.is_flagged))

    def of_model(self, model: ModelView, revision: int) -> object:
        if self.kind == "get" and type(self.keys) is KeyRange:
            check_revision(revision)
            raise TypeError
        if self.kind == "history":
            end = some.pick_revision(self.other_code, model)
            check_revision(revision)
            check_revision(end)
            check_keys(self.keys)
            return model.history(self.keys, revision, end, prev_kv=self.is_flagged)
        options = {"scan": {"keys_only": self.is_flagged}, "range": self.options}.get(self.kind, {})
        found = model.range(Op.range(self.keys, revision=revision, **options))
        match self.kind:
            case "get":
                return found[0] if found else None
            case "count":
                return found.count
            case "scan":
                return list(found)
        return found


reads = st.builds(
    Read,
    st.sampled_from(("get", "count", "range", "range", "range", "scan", "history", "history")),
    st.one_of(some.keys, some.ranges, some.ranges, some.ranges, some.odd_keys),
    some.codes,
    some.codes,
    st.builds(
        lambda filters, **rest: {**rest, **filters},
        some.filters,
        limit=some.limits,
        order_by=some.targets,
        descending=st.booleans(),
        keys_only=st.booleans(),
        count_only=st.sampled_from((False, False, True)),
    ),
    st.booleans(),
)
block_members = st.one_of(some.puts, some.puts, some.deletes, reads)


class StoreMachine(RuleBasedStateMachine):
    """Store against model, on one engine."""

    engine = "memory"
    checks_structure = True

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="mvccstore-machine-")
        self.files = 0
        self.clock = SteppedClock()
        self.options = cycle(OPTIONS[::17] + OPTIONS[::-7])
        self.path = None if self.engine == "memory" else self.new_path()
        self.store = self.open(self.path, self.engine)
        self.model = Model(some.LIMITS, self.clock)
        self.snapshots: list[tuple[Snapshot, ModelView]] = []
        self.scans: list[tuple[Store | Snapshot, Any, Iterator[object]]] = []

    def new_path(self) -> str:
        self.files += 1
        return str(Path(self.folder.name) / f"{self.files}.mvcc")

    def open(self, path: str | None, engine: str) -> Store:
        return mvccstore.open(path, engine=engine, durability="os", limits=some.LIMITS, clock=self.clock)

    def teardown(self) -> None:
        self.close_readers()
        self.store.close()
        self.folder.cleanup()

    def close_readers(self) -> None:
        for snapshot, _ in self.snapshots:
            snapshot.close()
        for _, scan, _ in self.scans:
            scan.close()
        self.snapshots, self.scans = [], []

    # Writing

    @initialize(members=st.lists(st.tuples(some.keys, st.sampled_from((b"1", b"2", None))), max_size=12))
    def begin_with(self, members: list[tuple[bytes, bytes | None]]) -> None:
        for key, value in members:
            if value is None:
                self.delete(key, prev_kv=False)
            else:
                self.put_plainly(key, value)

    @rule(
        key=some.keys,
        value=some.values,
        lease=some.leases,
        prev_kv=st.booleans(),
        keeps=st.sampled_from(((False, False), (False, False), (True, False), (False, True), (True, True))),
    )
    def put(self, key: bytes, value: bytes, lease: int, *, prev_kv: bool, keeps: tuple[bool, bool]) -> None:
        ignore_value, ignore_lease = keeps
        options: dict[str, Any] = {"lease": lease, "ignore_value": ignore_value, "ignore_lease": ignore_lease}

        same(
            lambda: self.store.put(key, value, prev_kv=prev_kv, **options),
            lambda: some.put_answer(self.model.write(Op.put(key, value, prev_kv=prev_kv, **options)), prev_kv=prev_kv),
        )

    @rule(key=some.keys, value=some.values)
    def put_plainly(self, key: bytes, value: bytes) -> None:
        same(lambda: self.store.put(key, value), lambda: some.put_answer(self.model.write(Op.put(key, value))))

    @rule(keys=some.one_or_more, prev_kv=st.booleans())
    def delete(self, keys: Any, *, prev_kv: bool) -> None:
        same(
            lambda: self.store.delete(keys, prev_kv=prev_kv),
            lambda: some.delete_answer(self.model.write(Op.delete(keys, prev_kv=prev_kv)), prev_kv=prev_kv),
        )

    @rule(keys=st.one_of(some.too_long, some.odd_keys), value=st.sampled_from((b"v" * 64, b"v" * 65, "text", None)))
    def write_what_is_refused(self, keys: Any, value: Any) -> None:
        same(lambda: self.store.delete(keys), lambda: some.delete_answer(self.model.write(Op.delete(keys))))
        same(lambda: self.store.put(keys), lambda: some.put_answer(self.model.write(Op.put(keys, b""))))
        same(lambda: self.store.put(b"a", value), lambda: some.put_answer(self.model.write(Op.put(b"a", value))))

    @rule(request=some.txns)
    def txn(self, request: TxnRequest) -> None:
        resolved = some.resolve(request, self.model)
        assert isinstance(resolved, TxnRequest)
        same(
            lambda: self.store.txn(compare=resolved.compare, success=resolved.success, failure=resolved.failure),
            lambda: self.model.write(resolved),
        )

    @rule(
        members=st.lists(block_members, max_size=8),
        ending=st.sampled_from(("end", "end", "commit", "raise", "rollback")),
    )
    def block(self, members: list[Any], ending: str) -> None:
        model = self.model.begin()
        before = self.model.revision
        try:
            with self.store.begin() as txn:
                for member in members:
                    self.in_block(txn, model, member)
                    assert txn.revision == model.revision
                assert self.store.revision == before
                assert isinstance(outcome(lambda: self.store.put(b"a")), Raised)
                match ending:
                    case "raise":
                        raise InterruptedError
                    case "commit":
                        assert txn.commit() == model.commit()
                    case "rollback":
                        txn.rollback()
        except InterruptedError:
            pass
        if ending == "end":
            assert txn.revision == model.commit()
        assert outcome(lambda: txn.put(b"a")) == Raised(mvccstore.ClosedError, ("transaction",))

    def in_block(self, txn: mvccstore.Txn, model: ModelTxn, member: Any) -> None:
        match member:
            case PutRequest(key, value, lease, prev_kv, ignore_value, ignore_lease):
                options: dict[str, Any] = {"lease": lease, "ignore_value": ignore_value, "ignore_lease": ignore_lease}
                same(
                    lambda: txn.put(key, value, prev_kv=prev_kv, **options),
                    lambda: some.put_answer(model.write(member), prev_kv=prev_kv),
                )
            case DeleteRequest(keys, prev_kv):
                same(
                    lambda: txn.delete(keys, prev_kv=prev_kv),
                    lambda: some.delete_answer(model.write(member), prev_kv=prev_kv),
                )
            case Read():
                member.compare(txn, model)

    # Reading

    @rule(read=reads, who=st.integers(0, 7))
    def read(self, read: Read, who: int) -> None:
        if who < len(self.snapshots):
            read.compare(*self.snapshots[who])
        else:
            read.compare(self.store, self.model)

    @rule(code=some.codes)
    def open_snapshot(self, code: int) -> None:
        revision = some.pick_revision(code, self.model)

        def model() -> int:
            check_revision(revision)
            expected.append(self.model.snapshot(revision))
            return expected[0].revision

        def ours() -> int:
            snapshots.append(self.store.snapshot(revision=revision))
            return snapshots[0].revision

        expected: list[ModelView] = []
        snapshots: list[Snapshot] = []
        same(ours, model)
        self.snapshots += zip(snapshots, expected, strict=True)
        if len(self.snapshots) > OPEN_MAX:
            self.close_snapshot(code)

    @precondition(lambda self: self.snapshots)
    @rule(which=st.integers(0, OPEN_MAX))
    def close_snapshot(self, which: int) -> None:
        snapshot, _ = self.snapshots.pop(which % len(self.snapshots))
        snapshot.close()
        snapshot.close()
        assert outcome(lambda: snapshot.get(b"a")) == Raised(mvccstore.ClosedError, ("snapshot",))

    @rule(keys=some.ranges, who=st.integers(0, 7), is_history=st.booleans())
    def open_scan(self, keys: KeyRange, who: int, *, is_history: bool) -> None:
        ours, model = self.snapshots[who] if who < len(self.snapshots) else (self.store, self.model)
        if is_history:
            self.scans.append((ours, ours.history(keys), iter(model.history(keys))))
        else:
            self.scans.append((ours, ours.scan(keys), iter(model.range(Op.range(keys)))))
        if len(self.scans) > OPEN_MAX:
            self.go_on_scanning(who, rows=1_000)

    @precondition(lambda self: self.scans)
    @rule(which=st.integers(0, OPEN_MAX), rows=st.sampled_from((1, 3, 1_000)))
    def go_on_scanning(self, which: int, rows: int) -> None:
        which %= len(self.scans)
        source, scan, expected = self.scans[which]
        found = outcome(lambda: list(islice(scan, rows)))
        if isinstance(found, Raised):
            assert found == outcome(lambda: source.get(b"a")) == Raised(mvccstore.ClosedError, ("snapshot",))
            scan.close()
            del self.scans[which]
            return
        assert isinstance(found, list)
        assert found == list(islice(expected, rows))
        if len(found) < rows:
            del self.scans[which]

    @rule(code=some.codes)
    def hash(self, code: int) -> None:
        revision = some.pick_revision(code, self.model)
        same(lambda: self.store.hash_kv(revision=revision), lambda: self.expected_hash(revision))

    def expected_hash(self, revision: int) -> mvccstore.HashResult:
        check_revision(revision)
        self.model.range(Op.range(b"a", revision=revision))  # for its errors
        hashed = revision or self.model.revision
        floor = self.model.compact_revision
        return mvccstore.HashResult(hash_kv(self.model.events, hashed, floor), floor, hashed)

    # Compaction

    @rule(code=some.codes, physical=st.booleans())
    def compact(self, code: int, *, physical: bool) -> None:
        revision = some.pick_revision(code, self.model)

        def model() -> None:
            check_revision(revision)
            self.model.write(CompactRequest(revision))

        same(lambda: self.store.compact(revision, physical=physical), model)

    @rule(keep=st.integers(-1, 20), physical=st.booleans())
    def compact_by_count(self, keep: int, *, physical: bool) -> None:
        same(
            lambda: self.store.compact(keep_revisions=keep, physical=physical),
            lambda: self.model.enforce(Retention(revisions=keep)),
        )

    @rule(keep=st.sampled_from((-1.0, 0.0, 0.01, 0.5, 2.0, 60.0)), physical=st.booleans())
    def compact_by_age(self, keep: float, *, physical: bool) -> None:
        same(
            lambda: self.store.compact(keep_seconds=keep, physical=physical),
            lambda: self.model.enforce(Retention(seconds=keep)),
        )

    @rule(revisions=st.sampled_from((None, 0, 3, 8)), seconds=st.sampled_from((None, 0.0, 0.5, 2.0)))
    def retain(self, revisions: int | None, seconds: float | None) -> None:
        same(
            lambda: self.store.enforce(Retention(revisions=revisions, seconds=seconds)),
            lambda: self.model.enforce(Retention(revisions=revisions, seconds=seconds)),
        )

    @rule(ms=st.sampled_from((10, 250, 1_000, 5_000, -500)))
    def pass_time(self, ms: int) -> None:
        # In steps of what the store notes times to, so that the model need not know of it.
        self.clock.now_ms += ms

    # Leases

    @rule(lease_id=some.leases)
    def grant(self, lease_id: int) -> None:
        if lease_id:
            request = LeaseGrantRequest(lease_id, 5_000)
            same(lambda: self.store.submit(request), lambda: self.model.write(request))

    @rule(lease_id=some.leases)
    def revoke(self, lease_id: int) -> None:
        request = LeaseRevokeRequest(lease_id)
        same(lambda: self.store.submit(request), lambda: self.model.write(request))

    # Attributes

    @rule(
        changes=st.dictionaries(
            st.sampled_from(("a", "a/b", "ä", "z")), st.sampled_from((None, b"", b"1", b"22")), max_size=3
        ),
        behind=st.sampled_from((None, None, 0, 1, -1)),
    )
    def set_attributes(self, changes: dict[str, bytes | None], behind: int | None) -> None:
        base = None if behind is None else max(0, self.model.attributes_version - behind)
        request = AttributesRequest(tuple(changes.items()), base)

        def model() -> int:
            answer = self.model.write(request)
            assert isinstance(answer, AttributesResult)
            return answer.version

        same(lambda: self.store.set_attributes(changes, base=base), model)

    # Files

    @rule()
    def defragment(self) -> None:
        self.store.defragment()

    @precondition(lambda self: self.engine != "memory")
    @rule()
    def reopen(self) -> None:
        self.store.close()
        for snapshot, _ in self.snapshots:
            assert isinstance(outcome(lambda snapshot=snapshot: snapshot.get(b"a")), Raised)  # type: ignore[misc]
        self.close_readers()
        self.store = self.open(self.path, self.engine)

    @rule(through=st.sampled_from(FILE_ENGINES), to=st.sampled_from(FILE_ENGINES))
    def back_up_and_restore(self, through: str, to: str) -> None:
        backup, path = self.new_path(), self.new_path()
        self.store.backup(backup, engine=through)
        assert mvccstore.restore(backup, path, engine=to) == self.model.revision
        if to == self.engine:  # go on with it
            self.close_readers()
            self.store.close()
            self.path = path
            self.store = self.open(path, to)
            assert self.store.stats().leases == len(self.model.leases)
        else:
            with self.open(path, to) as restored:
                self.compare(restored)
                assert restored.stats().leases == len(self.model.leases)
                self.compare_times(restored)

    def compare_times(self, store: Store) -> None:
        """Hold what a copy knows of times against the model, by a retention that the model then forgets."""
        floor = self.model.floor
        for seconds in (2.0, 0.5, 0.0):
            store.enforce(Retention(seconds=seconds))
            self.model.enforce(Retention(seconds=seconds))
            assert store.compact_revision == self.model.floor
        self.model.floor = floor

    @invariant()
    def answers_are_equal(self) -> None:
        self.compare(self.store)
        for snapshot, model in self.snapshots:
            assert snapshot.range(EVERYTHING) == model.range(Op.range(EVERYTHING))
            assert list(snapshot.history(EVERYTHING)) == model.history(EVERYTHING)

    def compare(self, store: Store) -> None:
        model = self.model
        assert store.check(structure=self.checks_structure) == []
        given, expected_numbers = (store.revision, store.compact_revision), (model.revision, model.compact_revision)
        assert given == expected_numbers, f"store: {given}, model: {expected_numbers}"
        assert store.range(EVERYTHING) == model.range(Op.range(EVERYTHING))
        first, last = max(model.compact_revision, 1), model.revision
        for revision in {first, min(first + 1, last), (first + last) // 2, max(last - 1, first)}:
            expected = model.range(Op.range(EVERYTHING, revision=revision))
            assert store.range(EVERYTHING, revision=revision) == expected
        for options in islice(self.options, 4):
            assert store.range(EVERYTHING, **options) == model.range(Op.range(EVERYTHING, **options)), options
        assert list(store.history(EVERYTHING, prev_kv=True)) == model.history(EVERYTHING, prev_kv=True)
        attributes = store.attributes()
        assert (dict(attributes), attributes.version) == (model.attributes, model.attributes_version)
        assert list(attributes) == sorted(attributes)
        if model.compact_revision > 1:
            with pytest.raises(mvccstore.CompactedError):
                store.get(b"a", revision=model.compact_revision - 1)


class LmdbMachine(StoreMachine):
    engine = "lmdb"


class SqliteMachine(StoreMachine):
    engine = "sqlite"


class JournaledMachine(StoreMachine):
    """On LMDB with a journal, in layers so small that they come and go all the time."""

    engine = "lmdb"
    checks_structure = False  # that would carry everything over at each step

    def open(self, path: str | None, engine: str) -> Store:
        if engine != "lmdb":
            return super().open(path, engine)
        opened = open_journaled(EngineOptions(path, sync_commits=False))
        assert isinstance(opened, JournaledEngine)
        self.opened = opened
        return mvccstore.open(engine=opened, durability="os", limits=some.LIMITS, clock=self.clock)

    @rule()
    def carry_over(self) -> None:
        self.store.sync()

    @rule()
    def begin_a_layer(self) -> None:
        put_aside(self.opened)

    @rule()
    def carry_a_layer_and_keep_it(self) -> None:
        carry_and_keep(self.opened)

    @rule()
    def be_killed(self) -> None:
        self.close_readers()
        kill_store(self.store, self.opened)
        self.store = self.open(self.path, self.engine)
