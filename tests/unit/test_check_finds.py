"""`check` finds each invariant of the stored form broken, and names it. Damage is done below the store, by hand.

Each store is right until then, and each damage breaks one thing: what is asserted is the exact set of
invariants named, except where breaking one cannot but break another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple
from zlib import crc32

import pytest

from mvccstore import KeyRange, KeyValue, Op, Store
from mvccstore.codec import (
    entry_of,
    log_key_of,
    main_of,
    pack,
    pack_lease_id,
    pack_put,
    pack_record,
    pack_tombstone,
    pack_u64,
    unpack_log_key,
    unpack_record,
)
from mvccstore.mvcc.attributes import COUNTERS
from mvccstore.mvcc.state import Compaction, save_compaction
from mvccstore.tables import Table, WriteTxn
from mvccstore.types import LeaseGrantRequest

OpenStore = Callable[..., Store]
LEASE = 7
COMPACTED, CURRENT = 6, 13
"""The compact revision, up to which all is reclaimed, and the current one."""


def built(open_store: OpenStore, engine: str) -> Store:
    """A store with survivors of a compaction, generations, a lease, and a revision of three changes."""
    store = open_store(engine=engine)
    store.put(b"old", b"1")  # 2
    store.put(b"a", b"1")  # 3
    store.put(b"gone", b"1")  # 4
    store.put(b"a", b"2")  # 5
    store.delete(b"gone")  # 6
    store.compact(COMPACTED, physical=True)
    store.put(b"a", b"3")  # 7
    store.put(b"b", b"1")  # 8
    store.delete(b"b")  # 9
    store.put(b"b", b"again")  # 10
    store.put(b"single", b"1")  # 11
    store.submit(LeaseGrantRequest(LEASE, 60_000))
    store.put(b"leased", b"1", lease=LEASE)  # 12
    store.txn(success=[Op.put(b"x", b"1"), Op.put(b"y", b"1"), Op.put(b"z", b"1")])  # 13
    assert store.revision == CURRENT
    assert store.check() == []
    return store


class Tables:
    """The tables of a store, to be written by hand."""

    def __init__(self, txn: WriteTxn) -> None:
        self.txn = txn

    def rows(self) -> Iterator[tuple[bytes, KeyValue]]:
        for log_key, record in self.txn.page(Table.LOG, b"", None, 1_000):
            yield log_key, unpack_record(record)

    def find(self, key: bytes, revision: int) -> tuple[bytes, KeyValue]:
        (found,) = ((log_key, kv) for log_key, kv in self.rows() if (kv.key, kv.mod_revision) == (key, revision))
        return found

    def log_key(self, key: bytes, revision: int) -> bytes:
        return self.find(key, revision)[0]

    def drop(self, key: bytes, revision: int) -> None:
        """Remove a version from log and index."""
        log_key, kv = self.find(key, revision)
        self.txn.delete(Table.LOG, [log_key])
        self.txn.remove(key, [entry_of(log_key, kv)])

    def insert(self, kv: KeyValue, *, main: int = 0, sub: int = 0, record: bytes | None = None) -> None:
        """Add a version to log and index, checksum and all."""
        record = pack_record(kv) if record is None else record
        main = main or kv.mod_revision
        if kv.version:
            entry = pack_put(main, sub, record, kv.create_revision, kv.version, kv.lease)
        else:
            entry = pack_tombstone(main, sub, record)
        self.txn.put(Table.LOG, log_key_of(entry), record)
        self.txn.add(kv.key, entry)

    def replace(self, key: bytes, revision: int, **fields: object) -> None:
        """Change fields of a version, everywhere they are kept."""
        log_key, kv = self.find(key, revision)
        position = unpack_log_key(log_key)
        self.drop(key, revision)
        self.insert(kv._replace(**fields), main=position.main, sub=position.sub)  # type: ignore[arg-type]

    def subscription(self, packed: bytes, name: bytes = b"mailer") -> None:
        self.txn.put(Table.META, b"subscription/" + name, crc32(packed).to_bytes(4) + packed)

    def counters(self, packed: bytes) -> None:
        self.txn.put(Table.META, COUNTERS, crc32(packed).to_bytes(4) + packed)

    def attribute(self, name: bytes, value: bytes, under: bytes | None = None) -> None:
        packed = crc32(value, crc32(name)).to_bytes(4) + value
        self.txn.put(Table.META, b"attribute/" + (name if under is None else under), packed)

    def compaction(self, *fields: object) -> None:
        save_compaction(self.txn, Compaction(*fields))  # type: ignore[arg-type]


class Damage(NamedTuple):
    name: str
    do: Callable[[Tables], object]
    broken: str
    """The invariants named; with a `+`, others may be named besides."""


def tombstone(key: bytes, revision: int, value: bytes = b"") -> KeyValue:
    return KeyValue(key, 0, revision, 0, value, 0)


def move_to_another_key(tables: Tables) -> None:
    log_key, kv = tables.find(b"old", 2)
    tables.txn.remove(b"old", [entry_of(log_key, kv)])
    tables.txn.add(b"other", entry_of(log_key, kv))


def contradict_in_the_index(tables: Tables, **fields: int) -> None:
    log_key, kv = tables.find(b"old", 2)
    tables.txn.remove(b"old", [entry_of(log_key, kv)])
    tables.txn.add(b"old", entry_of(log_key, kv._replace(**fields)))


def write_raw_record(tables: Tables, record: bytes) -> None:
    """Replace the record of `old`, with a checksum that is right."""
    tables.drop(b"old", 2)
    tables.insert(KeyValue(b"old", 2, 2, 1, b"1"), record=record)


DAMAGES = [
    # I1: index and log name each other
    Damage("i1 record missing", lambda t: t.txn.delete(Table.LOG, [t.log_key(b"old", 2)]), "I1"),
    Damage("i1 entry missing", lambda t: t.txn.remove(b"old", [entry_of(*t.find(b"old", 2))]), "I1"),
    Damage("i1 entry under another key", move_to_another_key, "I1"),
    Damage("i1 entry twice", lambda t: t.txn.add(b"other", entry_of(*t.find(b"old", 2))), "I1"),
    Damage("i1 entry with another version", lambda t: contradict_in_the_index(t, version=9), "I1"),
    Damage("i1 entry with another creation", lambda t: contradict_in_the_index(t, create_revision=1), "I1"),
    Damage("i1 index empty", lambda t: [t.txn.remove(kv.key, [entry_of(k, kv)]) for k, kv in list(t.rows())], "I1+"),
    Damage(
        "i1 noted as dropped and still in the index",
        lambda t: (
            t.compaction(COMPACTED + 1, COMPACTED, COMPACTED + 1, b""),
            t.txn.put(Table.DROPS, pack_u64(0), t.log_key(b"old", 2)),
        ),
        "I1",
    ),
    # I2: log keys
    Damage("i2 log key too short", lambda t: t.txn.put(Table.LOG, b"\0\0\0\0\0\0\0\2\0", b""), "I1 I2"),
    Damage("i2 log key too long", lambda t: t.txn.put(Table.LOG, t.log_key(b"old", 2) + b"\0", b""), "I1 I2"),
    Damage("i2 revision before the first", lambda t: t.insert(KeyValue(b"one", 1, 1, 1, b"")), "I2"),
    Damage("i2 same place twice", lambda t: t.insert(KeyValue(b"two", 2, 2, 1, b"")), "I2"),
    # I3: records
    Damage("i3 record changed", lambda t: t.txn.put(Table.LOG, t.log_key(b"old", 2), b"junk"), "I3"),
    Damage("i3 record empty", lambda t: t.txn.put(Table.LOG, t.log_key(b"old", 2), b""), "I3"),
    Damage("i3 record not msgpack", lambda t: write_raw_record(t, b"\xc1\xc1"), "I3"),
    Damage("i3 record of too few fields", lambda t: write_raw_record(t, pack([b"old", 2, 2, 1])), "I3"),
    Damage("i3 record of wrong types", lambda t: write_raw_record(t, pack([b"old", 2, "2", 1, b"1", 0])), "I3"),
    Damage("i3 record with a text key", lambda t: write_raw_record(t, pack(["old", 2, 2, 1, b"1", 0])), "I3"),
    Damage(
        "i3 record with more behind it", lambda t: write_raw_record(t, pack([b"old", 2, 2, 1, b"1", 0]) + b"\1"), "I3"
    ),
    Damage("i3 record of another revision", lambda t: t.replace(b"old", 2, mod_revision=3), "I3"),
    Damage(
        "i3 tombstone with a value",
        lambda t: (t.drop(b"b", 9), t.insert(tombstone(b"b", 9, b"value"))),
        "I3",
    ),
    Damage(
        "i3 lease that the log key denies",
        lambda t: write_raw_record(t, pack([b"old", 2, 2, 1, b"1", 99])),
        "I3",
    ),
    # I4: generations
    Damage("i4 version left out", lambda t: t.replace(b"a", 7, version=9), "I4"),
    Damage("i4 version repeated", lambda t: t.replace(b"a", 7, version=2), "I4"),
    Damage("i4 creation changed", lambda t: t.replace(b"a", 7, create_revision=7), "I4"),
    Damage("i4 generation begins with version 2", lambda t: t.replace(b"b", 10, version=2), "I4"),
    Damage("i4 generation begins before itself", lambda t: t.replace(b"b", 10, create_revision=8), "I4"),
    Damage("i4 key begins with version 2", lambda t: t.replace(b"single", 11, version=2), "I4"),
    Damage("i4 delete of what never was", lambda t: t.insert(tombstone(b"ghost", CURRENT + 1)), "I4"),
    Damage("i4 deleted twice", lambda t: (t.drop(b"b", 10), t.insert(tombstone(b"b", 10))), "I4"),
    # I5: no gaps
    Damage("i5 revision missing", lambda t: t.drop(b"single", 11), "I5"),
    Damage("i5 first revision after the compact one missing", lambda t: t.drop(b"a", 7), "I5"),
    Damage("i5 change missing", lambda t: t.drop(b"y", 13), "I5"),
    Damage("i5 first change missing", lambda t: t.drop(b"x", 13), "I5"),
    Damage("i5 revision from far away", lambda t: t.insert(KeyValue(b"far", 99, 99, 1, b"")), "I5"),
    # I6: nothing left that was reclaimed
    Damage("i6 superseded version left", lambda t: t.insert(KeyValue(b"a", 3, 3, 1, b"1")), "I6"),
    Damage("i6 old tombstone left", lambda t: t.insert(tombstone(b"older", 4)), "I6"),
    # I7: leases
    Damage(
        "i7 attachment missing",
        lambda t: t.txn.delete(Table.ATTACHED, [pack_lease_id(LEASE) + t.log_key(b"leased", 12)]),
        "I7",
    ),
    Damage(
        "i7 attachment of a key without a lease",
        lambda t: t.txn.put(Table.ATTACHED, pack_lease_id(LEASE) + t.log_key(b"old", 2), b""),
        "I7",
    ),
    Damage(
        "i7 attachment to another lease",
        lambda t: t.txn.put(Table.ATTACHED, pack_lease_id(8) + t.log_key(b"leased", 12), b""),
        "I7",
    ),
    Damage("i7 attachment to nothing", lambda t: t.txn.put(Table.ATTACHED, b"what", b""), "I7"),
    Damage("i7 lease gone, key attached", lambda t: t.txn.delete(Table.LEASES, [pack_lease_id(LEASE)]), "I7"),
    Damage("i7 lease unreadable", lambda t: t.txn.put(Table.LEASES, pack_lease_id(LEASE), b"\xc1"), "I7"),
    Damage("i7 lease of text", lambda t: t.txn.put(Table.LEASES, pack_lease_id(9), pack(("1", "2"))), "I7"),
    Damage("i7 lease of too much", lambda t: t.txn.put(Table.LEASES, pack_lease_id(9), pack((1, 2, 3))), "I7"),
    Damage("i7 lease with a short name", lambda t: t.txn.put(Table.LEASES, b"abc", pack((1, 2))), "I7"),
    # I8: times
    Damage("i8 time falls", lambda t: t.txn.put(Table.TIMES, pack_u64(CURRENT), pack_u64(1)), "I8"),
    Damage("i8 time of the future", lambda t: t.txn.put(Table.TIMES, pack_u64(99), pack_u64(2**62)), "I8"),
    Damage("i8 time too short", lambda t: t.txn.put(Table.TIMES, pack_u64(CURRENT), b"1"), "I8"),
    Damage("i8 revision too long", lambda t: t.txn.put(Table.TIMES, pack_u64(CURRENT) + b"\0", pack_u64(2**62)), "I8"),
    # I9: compaction
    Damage("i9 reclaimed above compacted", lambda t: t.compaction(6, 7, -1, b""), "I9+"),
    Damage("i9 reclaimed below never", lambda t: t.compaction(6, -5, -1, b""), "I9+"),
    Damage("i9 target at what is reclaimed", lambda t: t.compaction(6, 6, 6, b""), "I9"),
    Damage("i9 target above compacted", lambda t: t.compaction(6, 6, 8, b""), "I9"),
    Damage("i9 compacted above current", lambda t: t.compaction(99, 6, -1, b""), "I9+"),
    Damage("i9 half a log key noted", lambda t: t.txn.put(Table.DROPS, pack_u64(0), b"\0" * 7), "I9"),
    Damage("i9 noted above the target", lambda t: t.txn.put(Table.DROPS, pack_u64(0), t.log_key(b"a", 7)), "I1 I9"),
    Damage("i9 record unreadable", lambda t: t.txn.put(Table.META, b"compaction", b"\xc1"), "I9"),
    Damage("i9 record of texts", lambda t: t.compaction("6", "6", "-1", ""), "I9"),
    # I10: the format
    Damage("i10 no format", lambda t: t.txn.delete(Table.META, [b"format"]), "I10"),
    Damage("i10 newer format", lambda t: t.txn.put(Table.META, b"format", pack({"version": 99})), "I10"),
    Damage("i10 format unreadable", lambda t: t.txn.put(Table.META, b"format", b"\xc1"), "I10"),
    # I11: subscriptions
    Damage("i11 record unreadable", lambda t: t.subscription(b"\xc1"), "I11"),
    Damage("i11 record of too few fields", lambda t: t.subscription(pack((b"k", 2, None))), "I11"),
    Damage("i11 record without a cursor", lambda t: t.subscription(pack((b"k", None, None, None))), "I11"),
    Damage("i11 cursor of text", lambda t: t.subscription(pack((b"k", "2", None, None))), "I11"),
    Damage("i11 range inverted", lambda t: t.subscription(pack(((b"b", b"a"), 2, None, None))), "I11"),
    Damage("i11 limit below none", lambda t: t.subscription(pack((b"k", 2, -1, None))), "I11"),
    Damage("i11 acknowledged the future", lambda t: t.subscription(pack((b"k", CURRENT + 1, 5, 5))), "I11"),
    Damage("i11 name not UTF-8", lambda t: t.subscription(pack((b"k", 2, 5, 5)), b"\xff"), "I11"),
    Damage("i11 name empty", lambda t: t.subscription(pack((b"k", 2, 5, 5)), b""), "I11"),
    Damage("i11 checksum wrong", lambda t: t.txn.put(Table.META, b"subscription/mailer", b"1234" + pack(1)), "I11"),
    Damage("i11 record empty", lambda t: t.txn.put(Table.META, b"subscription/mailer", b""), "I11"),
    # I12: attributes
    Damage("i12 counters unreadable", lambda t: t.txn.put(Table.META, COUNTERS, b"1234" + pack((1, 1, 3))), "I12"),
    Damage("i12 counters of too few", lambda t: t.counters(pack((1, 1))), "I12"),
    Damage("i12 counters of text", lambda t: t.counters(pack(("1", 1, 4))), "I12"),
    Damage("i12 counters below none", lambda t: t.counters(pack((1, -1, 4))), "I12"),
    Damage("i12 an attribute less", lambda t: t.counters(pack((1, 1, 4))), "I12"),
    Damage("i12 an attribute more", lambda t: t.attribute(b"a", b"x"), "I12"),
    Damage("i12 never changed", lambda t: (t.attribute(b"a", b"x"), t.counters(pack((0, 1, 2)))), "I12"),
    Damage("i12 checksum wrong", lambda t: t.txn.put(Table.META, b"attribute/a", b"1234x"), "I12"),
    Damage("i12 record empty", lambda t: t.txn.put(Table.META, b"attribute/a", b""), "I12"),
    Damage("i12 under another name", lambda t: t.attribute(b"a", b"x", under=b"b"), "I12"),
    Damage("i12 name not UTF-8", lambda t: t.attribute(b"\xff", b"x"), "I12"),
    Damage("i12 name empty", lambda t: t.attribute(b"", b"x"), "I12"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_check_names(open_store: OpenStore, engine: str, damage: Damage) -> None:
    store = built(open_store, engine)
    txn = store._engine.write()
    damage.do(Tables(txn))
    txn.commit()
    txn.close()
    try:
        found = store.check(structure=False)
    finally:
        store.close()
    names = {line.split(":")[0] for line in found}
    broken = set(damage.broken.rstrip("+").split())
    if damage.broken.endswith("+"):
        assert broken <= names, found
    else:
        assert names == broken, found


def test_every_invariant_is_damaged_here() -> None:
    names = {damage.name.split()[0].upper() for damage in DAMAGES}
    assert names == {f"I{number}" for number in range(1, 13)}


def test_check_says_at_most_a_hundred_things(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    with store.begin() as block:
        for i in range(500):
            block.put(b"%d" % i)
    txn = store._engine.write()
    tables = Tables(txn)
    for log_key, _ in list(tables.rows()):
        txn.put(Table.LOG, log_key, b"junk")
    txn.commit()
    txn.close()
    assert len(store.check(structure=False)) == 100
    store.close()


def test_check_reports_progress_up_to_the_total(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    with store.begin() as block:
        for i in range(3_000):
            block.put(b"%d" % i)
    seen: list[tuple[int, int]] = []
    assert store.check(progress=lambda done, total: seen.append((done, total))) == []
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {6_000}
    assert seen[-1][0] <= 6_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_check_is_silent_whatever_was_written_and_compacted(open_store: OpenStore, engine: str, seed: int) -> None:
    store = open_store(engine=engine)
    rng = random.Random(seed)
    hot = [b"hot/%d" % i for i in range(3)]
    for i in range(700):
        kind = rng.randrange(6)
        if kind < 3:
            # Keys of hundreds of versions, all but the last dropped at once.
            store.txn(success=[Op.put(key, b"%d" % i) for key in hot])
        elif kind == 3:
            store.put(b"%d" % rng.randrange(20) * rng.choice([1, 300]), bytes(rng.choice([0, 500, 5_000])))
        elif kind == 4:
            store.delete(rng.choice([*hot, b"%d" % rng.randrange(20)]))
        else:
            with store.begin() as block:
                for _ in range(3):
                    block.put(rng.choice(hot), b"%d" % i)
        if i % 150 == 149:
            store.compact(max(store.revision - rng.randrange(60), store.compact_revision + 1), physical=True)
        if i % 10 == 9:
            assert store.check() == [], i
    store.compact(store.revision, physical=True)
    assert store.check() == []
    store.delete(KeyRange.all())
    store.compact(store.revision, physical=True)
    assert store.check() == []


def steps_of_reclaiming(store: Store, records: int) -> Iterator[int]:
    """Reclaim in small steps; yield after each."""
    reclaimer = store._reclaimer
    number = 0
    reclaimer._step_records = records
    while reclaimer._pass_step():
        reclaimer._step_records = records
        number += 1
        yield number
    assert number > 5


def test_check_of_an_interrupted_compaction_is_silent_after_every_step(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    store._maintainer.stop()
    with store.begin() as block:
        for i in range(300):
            block.put(b"%d" % i)
    store.delete(KeyRange(b"1", b"2"))
    for i in range(300):
        store.put(b"%d" % i, b"2")
    store.compact(store.revision)
    for number in steps_of_reclaiming(store, 20):
        assert store.check() == [], number
    assert store.stats().reclaimed_revision == store.revision
    assert main_of(store._engine.read().page(Table.LOG, b"", None, 1)[0][0]) > 2


def test_nothing_changes_for_readers_after_any_step_of_a_compaction(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine)
    store._maintainer.stop()
    # Keys of more versions than a step takes, some deleted since: what is superseded must not come back.
    for i in range(60):
        store.txn(success=[Op.put(b"deleted", b"%d" % i), Op.put(b"kept", b"%d" % i), Op.put(b"again", b"%d" % i)])
    store.delete(b"deleted")
    store.delete(b"again")
    floor = store.put(b"again", b"new")
    store.put(b"kept", b"new")
    store.compact(floor)

    def seen() -> tuple[object, ...]:
        past = [(store.range(KeyRange.all(), revision=at).kvs, store.hash_kv(revision=at)) for at in (floor, floor + 1)]
        gets = [store.get(key, revision=floor) for key in (b"deleted", b"kept", b"again")]
        return past, gets, list(store.history(KeyRange.all())), [list(store.history(b"deleted"))]

    before = seen()
    assert store.get(b"deleted") is None
    for number in steps_of_reclaiming(store, 20):
        assert seen() == before, number
        assert store.check() == [], number
