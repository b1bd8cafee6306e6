"""Bad input gets a clear error, and the store is as it was: the table of the issue, on every engine.

Each case is a call and the error it must raise. Around every call the whole visible store is compared
(revision, compact revision, HashKV, every event of the history), and afterwards it must take a write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mvccstore
from mvccstore import (
    ClosedError,
    CompactedError,
    Compare,
    DuplicateKeyError,
    FutureRevisionError,
    KeyNotFoundError,
    KeyRange,
    KeyTooLargeError,
    LeaseNotFoundError,
    Limits,
    Op,
    Retention,
    StorageError,
    Store,
    TxnError,
    TxnTooLargeError,
    ValueTooLargeError,
)
from mvccstore.types import LeaseGrantRequest

OpenStore = Callable[..., Store]
Error = type[BaseException] | tuple[type[BaseException], ...]

LIMITS = Limits(key_bytes_max=100, value_bytes_max=1_000, txn_ops_max=8, txn_depth_max=4)
ALL = KeyRange.all()
LONG_KEY = b"k" * 101
LONG_VALUE = b"v" * 1_001
COMPACTED = 3
FUTURE = 8
LEASE = 7


def filled(open_store: OpenStore, engine: str) -> Store:
    """A store at revision 7, compacted at 4, with a lease and a deleted key."""
    store = open_store(engine=engine, limits=LIMITS)
    store.put(b"a", b"1")
    store.put(b"b", b"1")
    store.put(b"a", b"2")
    store.delete(b"b")
    store.put(b"c", b"1")
    store.submit(LeaseGrantRequest(LEASE, 60_000))
    store.put(b"leased", b"1", lease=LEASE)
    store.compact(4, physical=True)
    assert store.revision == FUTURE - 1
    return store


def everything(store: Store) -> tuple[object, ...]:
    return (
        store.revision,
        store.compact_revision,
        store.hash_kv(),
        tuple(store.history(ALL)),
        tuple(store.scan(ALL)),
        store.stats().leases,
        store.stats().snapshots,
    )


class Case(NamedTuple):
    name: str
    call: Callable[[Any], object]
    error: Error


def nested(depth: int, branch: str = "success") -> Any:
    request = Op.txn(**{branch: [Op.put(b"deep", b"1")]})
    for _ in range(depth - 1):
        request = Op.txn(**{branch: [request]})
    return request


# What a store and a transaction block refuse alike.
PUTS = [
    Case("str key", lambda s: s.put("k", b"v"), TypeError),
    Case("int key", lambda s: s.put(1, b"v"), TypeError),
    Case("no key", lambda s: s.put(None, b"v"), TypeError),
    Case("bytearray key", lambda s: s.put(bytearray(b"k"), b"v"), TypeError),
    Case("memoryview key", lambda s: s.put(memoryview(b"k"), b"v"), TypeError),
    Case("str value", lambda s: s.put(b"k", "v"), TypeError),
    Case("int value", lambda s: s.put(b"k", 1), TypeError),
    Case("no value", lambda s: s.put(b"k", None), TypeError),
    Case("bytearray value", lambda s: s.put(b"k", bytearray(b"v")), TypeError),
    Case("empty key", lambda s: s.put(b"", b"v"), ValueError),
    Case("key over the limit", lambda s: s.put(LONG_KEY, b"v"), KeyTooLargeError),
    Case("value over the limit", lambda s: s.put(b"k", LONG_VALUE), ValueTooLargeError),
    Case("str lease", lambda s: s.put(b"k", b"v", lease="7"), TypeError),
    Case("float lease", lambda s: s.put(b"k", b"v", lease=7.0), TypeError),
    Case("bool lease", lambda s: s.put(b"k", b"v", lease=True), TypeError),
    Case("unknown lease", lambda s: s.put(b"k", b"v", lease=8), LeaseNotFoundError),
    Case("negative unknown lease", lambda s: s.put(b"k", b"v", lease=-1), LeaseNotFoundError),
    Case("lease past 64 bits", lambda s: s.put(b"k", b"v", lease=2**63), (LeaseNotFoundError, ValueError)),
    Case("lease far below 64 bits", lambda s: s.put(b"k", b"v", lease=-(2**70)), (LeaseNotFoundError, ValueError)),
    Case("value to keep and value given", lambda s: s.put(b"a", b"v", ignore_value=True), ValueError),
    Case("lease to keep and lease given", lambda s: s.put(b"a", b"v", lease=LEASE, ignore_lease=True), ValueError),
    Case("value of a missing key kept", lambda s: s.put(b"none", ignore_value=True), KeyNotFoundError),
    Case("value of a deleted key kept", lambda s: s.put(b"b", ignore_value=True), KeyNotFoundError),
    Case("lease of a missing key kept", lambda s: s.put(b"none", b"v", ignore_lease=True), KeyNotFoundError),
]
DELETES = [
    Case("str", lambda s: s.delete("a"), TypeError),
    Case("none", lambda s: s.delete(None), TypeError),
    Case("tuple", lambda s: s.delete((b"a", b"b")), TypeError),
    Case("list", lambda s: s.delete([b"a"]), TypeError),
    Case("bytearray", lambda s: s.delete(bytearray(b"a")), TypeError),
    Case("empty key", lambda s: s.delete(b""), ValueError),
    Case("key over the limit", lambda s: s.delete(LONG_KEY + b"k"), KeyTooLargeError),
    Case("range over the limit", lambda s: s.delete(KeyRange(b"a", b"b" * 200)), KeyTooLargeError),
]
READS = [
    Case("get str", lambda s: s.get("a"), TypeError),
    Case("get none", lambda s: s.get(None), TypeError),
    Case("get bytearray", lambda s: s.get(bytearray(b"a")), TypeError),
    Case("get range", lambda s: s.get(ALL), TypeError),
    Case("get empty", lambda s: s.get(b""), ValueError),
    Case("range list", lambda s: s.range([b"a"]), TypeError),
    Case("range empty key", lambda s: s.range(b""), ValueError),
    Case("range limit str", lambda s: s.range(ALL, limit="1"), TypeError),
    Case("range limit bool", lambda s: s.range(ALL, limit=True), TypeError),
    Case("range limit negative", lambda s: s.range(ALL, limit=-1), ValueError),
    Case("range order unknown", lambda s: s.range(ALL, order_by="size"), ValueError),
    Case("range order unhashable", lambda s: s.range(ALL, order_by=[]), TypeError),
    *(
        Case(f"range {name} str", lambda s, name=name: s.range(ALL, **{name: "1"}), TypeError)
        for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")
    ),
    Case("scan str", lambda s: s.scan("a"), TypeError),
    Case("scan none", lambda s: s.scan(None), TypeError),
    Case("scan empty key", lambda s: s.scan(b""), ValueError),
    Case("count str", lambda s: s.count("a"), TypeError),
    Case("count empty key", lambda s: s.count(b""), ValueError),
    Case("history str", lambda s: s.history("a"), TypeError),
    Case("history empty key", lambda s: s.history(b""), ValueError),
]
_REVISION_CALLS: dict[str, Callable[[Any, Any], object]] = {
    "get": lambda s, revision: s.get(b"a", revision=revision),
    "range": lambda s, revision: s.range(ALL, revision=revision),
    "count": lambda s, revision: s.count(ALL, revision=revision),
    "scan": lambda s, revision: s.scan(ALL, revision=revision),
    "history": lambda s, revision: s.history(ALL, start_revision=revision),
    "history of a key": lambda s, revision: s.history(b"a", start_revision=revision),
}
_BAD_REVISIONS: list[tuple[str, object, Error]] = [
    ("str", "5", TypeError),
    ("none", None, TypeError),
    ("float", 5.0, TypeError),
    ("bool", True, TypeError),
    ("negative", -1, ValueError),
    ("far negative", -(2**70), ValueError),
    ("compacted", COMPACTED, CompactedError),
    ("first", 1, CompactedError),
    ("future", FUTURE, FutureRevisionError),
    ("past 64 bits", 2**70, FutureRevisionError),
]


def revisions(calls: dict[str, Callable[[Any, Any], object]]) -> list[Case]:
    return [
        Case(f"{name} at revision {kind}", lambda s, call=call, revision=revision: call(s, revision), error)
        for name, call in calls.items()
        for kind, revision, error in _BAD_REVISIONS
    ]


READS_AT = revisions(_REVISION_CALLS)
HISTORY_ENDS = [
    Case("end str", lambda s: s.history(ALL, end_revision="5"), TypeError),
    Case("end negative", lambda s: s.history(ALL, end_revision=-1), ValueError),
    Case("end future", lambda s: s.history(ALL, end_revision=FUTURE), FutureRevisionError),
    Case("end past 64 bits", lambda s: s.history(b"a", end_revision=2**70), FutureRevisionError),
]
STORE_READS_AT = revisions(
    {
        "snapshot": lambda s, revision: s.snapshot(revision=revision),
        "hash_kv": lambda s, revision: s.hash_kv(revision=revision),
    }
)
TXNS = [
    Case("compare of ints", lambda s: s.txn(compare=[1]), TypeError),
    Case("compare none", lambda s: s.txn(compare=None), TypeError),
    Case("compare alone", lambda s: s.txn(compare=Compare.version(b"a", "==", 1)), TypeError),
    Case("success of bytes", lambda s: s.txn(success=[b"a"]), TypeError),
    Case("success none", lambda s: s.txn(success=None), TypeError),
    Case("success alone", lambda s: s.txn(success=Op.put(b"k", b"v")), TypeError),
    Case("failure of compares", lambda s: s.txn(failure=[Compare.version(b"a", "==", 1)]), TypeError),
    Case("key put twice", lambda s: s.txn(success=[Op.put(b"k", b"1"), Op.put(b"k", b"2")]), DuplicateKeyError),
    Case("key put and deleted", lambda s: s.txn(success=[Op.put(b"k", b"1"), Op.delete(b"k")]), DuplicateKeyError),
    Case("key put in a deleted range", lambda s: s.txn(success=[Op.delete(ALL), Op.put(b"k", b"")]), DuplicateKeyError),
    Case(
        "key put twice where it will not run",
        lambda s: s.txn(compare=[Compare.version(b"a", "==", 99)], success=[Op.put(b"k", b"1"), Op.put(b"k", b"2")]),
        DuplicateKeyError,
    ),
    Case(
        "key put again by a nested txn",
        lambda s: s.txn(success=[Op.put(b"k", b"1"), Op.txn(failure=[Op.put(b"k", b"2")])]),
        DuplicateKeyError,
    ),
    Case("too many operations", lambda s: s.txn(success=[Op.put(b"%d" % i, b"") for i in range(9)]), TxnTooLargeError),
    Case("too many failures", lambda s: s.txn(failure=[Op.range(b"a")] * 9), TxnTooLargeError),
    Case("too many compares", lambda s: s.txn(compare=[Compare.version(b"a", "==", 1)] * 9), TxnTooLargeError),
    Case(
        "too many operations with those of a nested txn",
        lambda s: s.txn(success=[Op.range(b"a")] * 4 + [Op.txn(success=[Op.range(b"a")] * 4)]),
        TxnTooLargeError,
    ),
    Case("nested one too deep", lambda s: s.txn(success=[nested(4)]), TxnTooLargeError),
    Case("nested 50,000 deep", lambda s: s.txn(success=[nested(50_000)]), TxnTooLargeError),
    Case("nested 50,000 deep in failure", lambda s: s.txn(failure=[nested(50_000, "failure")]), TxnTooLargeError),
    Case("key over the limit", lambda s: s.txn(success=[Op.put(LONG_KEY, b"")]), KeyTooLargeError),
    Case(
        "value over the limit in a nested txn",
        lambda s: s.txn(failure=[Op.txn(success=[Op.put(b"k", LONG_VALUE)])]),
        ValueTooLargeError,
    ),
    Case(
        "compared key over the limit", lambda s: s.txn(compare=[Compare.version(b"k" * 102, "==", 0)]), KeyTooLargeError
    ),
    Case(
        "unknown lease after a good put",
        lambda s: s.txn(success=[Op.put(b"k", b"1"), Op.put(b"l", b"1", lease=8)]),
        LeaseNotFoundError,
    ),
    Case(
        "lease past 64 bits after a good put",
        lambda s: s.txn(success=[Op.put(b"k", b"1"), Op.put(b"l", b"1", lease=2**64)]),
        (LeaseNotFoundError, ValueError),
    ),
    Case(
        "missing value kept after a good put",
        lambda s: s.txn(success=[Op.put(b"k", b"1"), Op.put(b"l", b"", ignore_value=True)]),
        KeyNotFoundError,
    ),
    Case(
        "compacted range after a good put",
        lambda s: s.txn(success=[Op.put(b"k", b"1"), Op.range(b"a", revision=COMPACTED)]),
        CompactedError,
    ),
    Case(
        "future range in a nested txn after a good put",
        lambda s: s.txn(success=[Op.put(b"k", b"1"), Op.txn(success=[Op.range(b"a", revision=FUTURE)])]),
        FutureRevisionError,
    ),
    Case("range past 64 bits", lambda s: s.txn(success=[Op.range(b"a", revision=2**70)]), FutureRevisionError),
    Case("range at a negative revision", lambda s: s.txn(success=[Op.range(b"a", revision=-1)]), ValueError),
    Case("range with a negative limit", lambda s: s.txn(success=[Op.range(b"a", limit=-1)]), ValueError),
]
COMPACTIONS = [
    Case("str", lambda s: s.compact("5"), TypeError),
    Case("float", lambda s: s.compact(5.0), TypeError),
    Case("bool", lambda s: s.compact(True), TypeError),
    Case("negative", lambda s: s.compact(-1), ValueError),
    Case("below", lambda s: s.compact(COMPACTED), CompactedError),
    Case("zero, of a compacted store", lambda s: s.compact(0), CompactedError),
    Case("again", lambda s: s.compact(4), CompactedError),
    Case("future", lambda s: s.compact(FUTURE), FutureRevisionError),
    Case("past 64 bits", lambda s: s.compact(2**70), FutureRevisionError),
    Case("nothing said", lambda s: s.compact(), ValueError),
    Case("two things said", lambda s: s.compact(5, keep_revisions=1), ValueError),
    Case("keep negative", lambda s: s.compact(keep_revisions=-1), ValueError),
    Case("keep str", lambda s: s.compact(keep_revisions="1"), TypeError),
    Case("keep half a revision", lambda s: s.compact(keep_revisions=1.5), (TypeError, ValueError)),
    Case("keep negative seconds", lambda s: s.compact(keep_seconds=-1.0), ValueError),
    Case("keep str seconds", lambda s: s.compact(keep_seconds="1"), TypeError),
    Case("keep nan seconds", lambda s: s.compact(keep_seconds=float("nan")), ValueError),
]
BACKUPS = [
    Case("to an int", lambda s: s.backup(5), TypeError),
    Case("to none", lambda s: s.backup(None), TypeError),
    Case("to bytes", lambda s: s.backup(b"bytes"), (TypeError, StorageError)),
    Case("to a directory that is not there", lambda s: s.backup("/no/such/directory/backup"), StorageError),
    Case("to a directory", lambda s: s.backup("/tmp"), StorageError),
    Case("to a directory, overwriting", lambda s: s.backup("/", overwrite=True), StorageError),
    Case("with an engine nobody knows", lambda s: s.backup("/tmp/never-written", engine="tape"), ValueError),
]


def _ids(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def refuses(store: Store, case: Case) -> None:
    before = everything(store)
    with pytest.raises(case.error):
        case.call(store)
    assert everything(store) == before
    assert store.put(b"after", b"1") == before[0] + 1  # type: ignore[operator]
    assert store.get(b"after") is not None


@_ids(PUTS)
def test_put_refuses(open_store: OpenStore, engine: str, case: Case) -> None:
    refuses(filled(open_store, engine), case)


@_ids(DELETES)
def test_delete_refuses(open_store: OpenStore, engine: str, case: Case) -> None:
    refuses(filled(open_store, engine), case)


@_ids([*READS, *READS_AT, *HISTORY_ENDS, *STORE_READS_AT])
def test_read_refuses(open_store: OpenStore, engine: str, case: Case) -> None:
    refuses(filled(open_store, engine), case)


@_ids(TXNS)
def test_txn_refuses(open_store: OpenStore, engine: str, case: Case) -> None:
    refuses(filled(open_store, engine), case)


@_ids(COMPACTIONS)
def test_compact_refuses(open_store: OpenStore, engine: str, case: Case) -> None:
    refuses(filled(open_store, engine), case)


@_ids(BACKUPS)
def test_backup_refuses(open_store: OpenStore, engine: str, case: Case) -> None:
    refuses(filled(open_store, engine), case)


@_ids([*PUTS, *DELETES])
def test_block_refuses_a_write_and_commits_the_others(open_store: OpenStore, engine: str, case: Case) -> None:
    store = filled(open_store, engine)
    before = everything(store)
    with store.begin() as txn:
        txn.put(b"before", b"1")
        with pytest.raises(case.error):
            case.call(txn)
        assert everything(store) == before
        txn.put(b"after", b"1")
    assert [event.kv.key for event in store.history(ALL, start_revision=FUTURE)] == [b"before", b"after"]
    assert store.revision == FUTURE


@_ids([*READS, *READS_AT, *HISTORY_ENDS])
def test_block_refuses_a_read_and_stays_open(open_store: OpenStore, engine: str, case: Case) -> None:
    store = filled(open_store, engine)
    before = everything(store)
    with store.begin() as txn:
        with pytest.raises(case.error):
            case.call(txn)
        assert txn.get(b"a") == store.get(b"a")
    assert everything(store) == before


@_ids([*READS, *READS_AT, *HISTORY_ENDS])
def test_snapshot_refuses_a_read_and_stays_open(open_store: OpenStore, engine: str, case: Case) -> None:
    store = filled(open_store, engine)
    with store.snapshot() as snapshot:
        before = everything(store)
        with pytest.raises(case.error):
            case.call(snapshot)
        assert everything(store) == before
        assert snapshot.get(b"a") == store.get(b"a")


@_ids(
    [
        Case("inverted", lambda _: KeyRange(b"b", b"a"), ValueError),
        Case("empty", lambda _: KeyRange(b"a", b"a"), ValueError),
        Case("empty end", lambda _: KeyRange(b"a", b""), ValueError),
        Case("str start", lambda _: KeyRange("a"), TypeError),
        Case("no start", lambda _: KeyRange(None), TypeError),
        Case("str end", lambda _: KeyRange(b"a", "b"), TypeError),
        Case("bytearray start", lambda _: KeyRange(bytearray(b"a")), TypeError),
        Case("str prefix", lambda _: KeyRange.prefix("a"), TypeError),
        Case("exactly a str", lambda _: KeyRange.exactly("a"), TypeError),
        Case("compare of a str key", lambda _: Compare.version("a", "==", 1), TypeError),
        Case("compare of an empty key", lambda _: Compare.version(b"", "==", 1), ValueError),
        Case("compare with an unknown operator", lambda _: Compare.version(b"a", ">=", 1), ValueError),
        Case("compare of an unknown target", lambda _: Compare(b"a", "size", "==", 1), ValueError),
        Case("compare of a value with a str", lambda _: Compare.value(b"a", "==", "v"), TypeError),
        Case("compare of a version with bytes", lambda _: Compare.version(b"a", "==", b"1"), TypeError),
        Case("compare of a version with a bool", lambda _: Compare.version(b"a", "==", True), TypeError),
        Case("retention of nothing", lambda _: Retention(), ValueError),
        Case("negative retention", lambda _: Retention(revisions=-1), ValueError),
        Case("retention of half a revision", lambda _: Retention(revisions=1.5), (TypeError, ValueError)),
        Case("retention looked at never", lambda _: Retention(revisions=1, check_seconds=0), ValueError),
        Case("put operation with a str key", lambda _: Op.put("k", b"v"), TypeError),
        Case("put operation with an empty key", lambda _: Op.put(b"", b"v"), ValueError),
        Case("delete operation with none", lambda _: Op.delete(None), TypeError),
        Case("range operation with a str revision", lambda _: Op.range(b"k", revision="1"), TypeError),
        Case("nested txn of bytes", lambda _: Op.txn(success=[b"k"]), TypeError),
    ]
)
def test_value_refuses_to_be_made(case: Case) -> None:
    with pytest.raises(case.error):
        case.call(None)


@_ids(
    [
        Case("int path", lambda _: mvccstore.open(5), TypeError),
        Case("bytes path", lambda _: mvccstore.open(b"store"), TypeError),
        Case("zero byte in the path", lambda _: mvccstore.open("a\0b"), (ValueError, StorageError)),
        Case("empty path", lambda _: mvccstore.open(""), (ValueError, StorageError)),
        Case("directory that is not there", lambda _: mvccstore.open("/no/such/directory/store"), StorageError),
        Case("unknown engine", lambda _: mvccstore.open(engine="tape"), ValueError),
        Case("int engine", lambda _: mvccstore.open(engine=5), TypeError),
        Case("file for the memory engine", lambda path: mvccstore.open(path, engine="memory"), ValueError),
        Case("no file for the lmdb engine", lambda _: mvccstore.open(engine="lmdb"), ValueError),
        Case("no file for the sqlite engine", lambda _: mvccstore.open(engine="sqlite"), ValueError),
        Case("unknown durability", lambda _: mvccstore.open(durability="none"), ValueError),
        Case("negative quota", lambda _: mvccstore.open(quota_bytes=-1), ValueError),
        Case("str quota", lambda _: mvccstore.open(quota_bytes="1"), (TypeError, ValueError)),
        Case("negative interval", lambda _: mvccstore.open(sync_interval=-1), ValueError),
        Case("limits that are a number", lambda _: mvccstore.open(limits=5), TypeError),
        Case("retention that is a number", lambda _: mvccstore.open(retention=5), TypeError),
        Case("missing file, not to be created", lambda path: mvccstore.open(path, create=False), StorageError),
        Case("missing file, read-only", lambda path: mvccstore.open(path, read_only=True), StorageError),
        Case(
            "missing sqlite file, not to be created",
            lambda path: mvccstore.open(path, engine="sqlite", create=False),
            StorageError,
        ),
        Case(
            "missing sqlite file, read-only",
            lambda path: mvccstore.open(path, engine="sqlite", read_only=True),
            StorageError,
        ),
    ]
)
def test_open_refuses_and_leaves_no_file(tmp_path: Path, case: Case) -> None:
    with pytest.raises(case.error):
        case.call(str(tmp_path / "store"))  # type: ignore[unused-ignore]
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_writes_to_a_store_opened_read_only_are_refused(open_store: OpenStore, engine: str) -> None:
    writer = filled(open_store, engine)
    before = everything(writer)
    writer.close()
    reader = open_store(read_only=True)
    for write in (
        lambda: reader.put(b"k", b"v"),
        lambda: reader.delete(b"a"),
        lambda: reader.delete(ALL),
        lambda: reader.txn(success=[Op.put(b"k", b"v")]),
        lambda: reader.txn(success=[Op.range(b"a")]),
        lambda: reader.begin(),
        lambda: reader.compact(6),
        lambda: reader.compact(keep_revisions=1),
        lambda: reader.reclaim(),
    ):
        with pytest.raises(StorageError):
            write()
    assert everything(reader) == before


# Closed handles


CLOSED_READS = [
    Case("get", lambda s: s.get(b"a"), ClosedError),
    Case("get at a revision", lambda s: s.get(b"a", revision=5), ClosedError),
    Case("range", lambda s: s.range(ALL), ClosedError),
    Case("count", lambda s: s.count(ALL), ClosedError),
    Case("scan", lambda s: list(s.scan(ALL)), ClosedError),
    Case("history", lambda s: list(s.history(ALL)), ClosedError),
    Case("history of a key", lambda s: list(s.history(b"a", start_revision=5)), ClosedError),
    Case("enter", lambda s: s.__enter__(), ClosedError),
]
CLOSED_STORE = [
    *(case for case in CLOSED_READS),
    Case("revision", lambda s: s.revision, ClosedError),
    Case("compact revision", lambda s: s.compact_revision, ClosedError),
    Case("snapshot", lambda s: s.snapshot(), ClosedError),
    Case("put", lambda s: s.put(b"k", b"v"), ClosedError),
    Case("delete", lambda s: s.delete(b"a"), ClosedError),
    Case("txn", lambda s: s.txn(success=[Op.put(b"k", b"v")]), ClosedError),
    Case("begin", lambda s: s.begin(), ClosedError),
    Case("compact", lambda s: s.compact(6), ClosedError),
    Case("compact by count", lambda s: s.compact(keep_revisions=1), ClosedError),
    Case("reclaim", lambda s: s.reclaim(), ClosedError),
    Case("sync", lambda s: s.sync(), ClosedError),
    Case("check", lambda s: s.check(), ClosedError),
    Case("hash_kv", lambda s: s.hash_kv(), ClosedError),
    Case("stats", lambda s: s.stats(), ClosedError),
    Case("backup", lambda s: s.backup("/tmp/never-written"), ClosedError),
]


@_ids(CLOSED_STORE)
def test_closed_store_refuses(open_store: OpenStore, engine: str, case: Case) -> None:
    store = filled(open_store, engine)
    store.close()
    with pytest.raises(case.error):
        case.call(store)
    store.close()
    assert "closed" in repr(store)


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
@_ids([case for case in CLOSED_STORE if case.name not in {"reclaim", "compact", "compact by count"}])
def test_closed_read_only_store_refuses(open_store: OpenStore, engine: str, case: Case) -> None:
    filled(open_store, engine).close()
    reader = open_store(read_only=True)
    reader.close()
    with pytest.raises(case.error):
        case.call(reader)
    reader.close()


@_ids([case for case in CLOSED_READS if case.name != "enter"])
def test_closed_snapshot_refuses(open_store: OpenStore, engine: str, case: Case) -> None:
    store = filled(open_store, engine)
    snapshot = store.snapshot()
    snapshot.close()
    with pytest.raises(case.error):
        case.call(snapshot)
    snapshot.close()
    assert store.stats().snapshots == 0
    assert store.put(b"k", b"v") == FUTURE


@_ids([case for case in CLOSED_READS if case.name != "enter"])
def test_snapshot_of_a_closed_store_refuses(open_store: OpenStore, engine: str, case: Case) -> None:
    store = filled(open_store, engine)
    snapshot = store.snapshot()
    store.close()
    with pytest.raises(case.error):
        case.call(snapshot)
    snapshot.close()


ENDINGS: dict[str, Callable[[mvccstore.Txn], object]] = {
    "committed": lambda txn: txn.commit(),
    "rolled back": lambda txn: txn.rollback(),
}


@_ids(
    [
        *CLOSED_READS,
        Case("put", lambda txn: txn.put(b"k", b"v"), ClosedError),
        Case("delete", lambda txn: txn.delete(ALL), ClosedError),
        Case("commit", lambda txn: txn.commit(), ClosedError),
    ]
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_ended_block_refuses(open_store: OpenStore, engine: str, case: Case, ending: str) -> None:
    store = filled(open_store, engine)
    txn = store.begin()
    txn.put(b"block", b"1")
    ENDINGS[ending](txn)
    before = everything(store)
    with pytest.raises(case.error):
        case.call(txn)
    txn.rollback()
    assert everything(store) == before
    store.put(b"after", b"1")


def many(store: Store) -> None:
    with store.begin() as txn:
        for i in range(3_000):
            txn.put(b"many/%04d" % i, b"")


@pytest.mark.parametrize("closed", ["store", "snapshot", "block"])
def test_scan_of_what_was_closed_raises_after_the_page_it_has(open_store: OpenStore, engine: str, closed: str) -> None:
    store = filled(open_store, engine)
    many(store)
    view: Any = {"store": lambda: store, "snapshot": store.snapshot, "block": store.begin}[closed]()
    scan = view.scan(ALL)
    next(scan)
    (view.rollback if closed == "block" else view.close)()
    with pytest.raises(ClosedError):
        list(scan)
    scan.close()


@pytest.mark.parametrize("kind", ["scan", "history"])
def test_iterator_closed_early_does_not_look_exhausted(open_store: OpenStore, engine: str, kind: str) -> None:
    store = filled(open_store, engine)
    iterator = getattr(store, kind)(ALL)
    next(iterator)
    iterator.close()
    iterator.close()
    assert store.stats().snapshots == 0
    with pytest.raises(ClosedError):
        next(iterator)


@pytest.mark.parametrize("kind", ["scan", "history"])
def test_exhausted_iterator_stays_exhausted(open_store: OpenStore, engine: str, kind: str) -> None:
    store = filled(open_store, engine)
    with getattr(store, kind)(ALL) as iterator:
        assert list(iterator)
        assert list(iterator) == []
    assert list(iterator) == []


def test_block_refuses_other_threads(open_store: OpenStore, engine: str) -> None:
    store = filled(open_store, engine)
    errors: list[BaseException] = []

    def intrude() -> None:
        for call in (lambda: txn.put(b"k", b"v"), lambda: txn.get(b"a"), txn.commit, txn.rollback):
            try:
                call()
            except TxnError as error:
                errors.append(error)

    with store.begin() as txn:
        txn.put(b"mine", b"1")
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join(60)
        assert len(errors) == 4
        txn.put(b"mine too", b"1")
    assert store.revision == FUTURE


def test_block_that_raises_is_rolled_back(open_store: OpenStore, engine: str) -> None:
    store = filled(open_store, engine)
    before = everything(store)
    with pytest.raises(ZeroDivisionError), store.begin() as txn:  # noqa: PT012 - the block is what is tested
        txn.put(b"k", b"v")
        txn.delete(ALL)
        1 // 0  # noqa: B018
    assert everything(store) == before


def test_bytes_subclasses_are_kept_as_plain_bytes_or_refused(open_store: OpenStore, engine: str) -> None:
    class Fancy(bytes):
        __slots__ = ()

    store = filled(open_store, engine)
    before = everything(store)
    for put in (lambda: store.put(Fancy(b"k"), b"v"), lambda: store.put(b"k", Fancy(b"v"))):
        try:
            put()
        except TypeError:
            assert everything(store) == before
        else:
            kv = store.get(b"k")
            assert kv is not None
            assert type(kv.key) is bytes
            assert type(kv.value) is bytes
