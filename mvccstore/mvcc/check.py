"""The invariants of the stored form, and the walk that holds a whole store against them.

* I1. Every index entry names a record of the log, repeats what that says, and stands under its key; every
  record of the log is named by exactly one entry, or its log key is noted in DROPS.
* I2. Log keys are 16 bytes, index entries 32; log keys are strictly ascending, with main from 2 to the current revision.
* I3. Every record can be read, has fields of the right types, matches checksum and flags in its log key,
  and repeats its main revision; a tombstone has nothing but key and revision.
* I4. Along one key: a generation begins with version 1 and its own revision as create_revision; each put adds
  one to the version and keeps create_revision; a tombstone ends it, and never stands first or twice.
  Only what compaction left as the oldest version may begin in the middle.
* I5. Above the compact revision no revision is missing, and the subs of one revision count 0, 1, 2, ...
* I6. At or below the reclaimed revision each key has at most one version: a put, or a tombstone exactly at it.
* I7. ATTACHED names exactly the newest records of the live keys that have a lease; one whose lease is gone is
  not attached. LEASES can be read.
* I8. Times and their revisions ascend, and no revision in TIMES is above the current one.
* I9. Compaction: reclaimed <= target or no pass, both at or below the compact revision, that at or below the
  current revision; DROPS holds whole log keys, none above the target.
* I10. The format record says this format.
* I11. Each subscription's record can be read, has fields of the right types, matches its checksum, and is
  acknowledged up to a revision that is at or below the current one.
* I12. Each attribute's record matches its checksum and has a name; their counters can be read and count them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mvccstore.codec import (
    UNPACK_ERRORS,
    LogPosition,
    entry_floor,
    entry_main,
    entry_of,
    is_live,
    log_key_of,
    main_of,
    matches_checksum,
    pack_lease_id,
    unpack,
    unpack_lease_id,
    unpack_log_key,
    unpack_record,
    unpack_u64,
)
from mvccstore.errors import CorruptError, FormatError
from mvccstore.mvcc import attributes, subscription
from mvccstore.mvcc.read import PAGE_ROWS
from mvccstore.mvcc.state import FIRST_REVISION, NEVER_COMPACTED, Compaction, check_format, load_compaction
from mvccstore.tables import ENTRY_BYTES, LOG_KEY_BYTES, ReadTxn, Table
from mvccstore.types import KeyValue

PROBLEMS_MAX = 100
Progress = Callable[[int, int], None]
"""Called with the number of records done and their total."""


def problems(txn: ReadTxn, path: str, progress: Progress | None = None) -> list[str]:
    """Walk the whole store in one view and return what contradicts an invariant, at most 100 lines.

    Cost: every record is read twice, once in the order of the log and once in that of the keys; memory
    does not grow with the store.
    """
    checker = _Checker(txn, path, progress)
    try:
        checker.run()
    except CorruptError as error:
        checker.report("I3", error.reason)
    return checker.found


class _Checker:
    def __init__(self, txn: ReadTxn, path: str, progress: Progress | None) -> None:
        self.found: list[str] = []
        self._txn = txn
        self._path = path
        self._progress = progress
        self._done = 0
        self._total = 0
        self._compaction = Compaction()
        self._revision = FIRST_REVISION
        self._noted: set[bytes] = set()
        self._attached = 0

    def report(self, invariant: str, problem: str) -> None:
        if len(self.found) < PROBLEMS_MAX:
            self.found.append(f"{invariant}: {problem}")

    def run(self) -> None:
        txn = self._txn
        try:
            if not check_format(txn, self._path):
                self.report("I10", "there is no format record")
        except (CorruptError, FormatError) as error:
            self.report("I10", error.reason)
        try:
            self._compaction = load_compaction(txn, self._path)
        except CorruptError as error:
            self.report("I9", error.reason)
            return  # without it, nobody can tell what should be there
        last = txn.page(Table.LOG, b"", None, 1, reverse=True)
        if last and len(last[0][0]) == LOG_KEY_BYTES:
            self._revision = main_of(last[0][0])
        self._total = txn.length(Table.LOG) + txn.length(None)
        self._check_compaction()
        log_count = self._check_log()
        entry_count = self._check_index()
        if log_count != entry_count + len(self._noted):
            self.report(
                "I1",
                f"{log_count} log records, but {entry_count} index entries and {len(self._noted)} noted as dropped",
            )
        self._check_leases()
        self._check_times()
        self._check_subscriptions()
        self._check_attributes()

    def _pages(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        first: bytes | None = b""
        while first is not None:
            page = self._txn.page(table, first, None, PAGE_ROWS)
            yield from page
            first = page[-1][0] + b"\0" if len(page) == PAGE_ROWS else None

    def _step(self) -> None:
        self._done += 1
        if self._progress is not None and self._done % PAGE_ROWS == 0:
            self._progress(self._done, self._total)

    def _check_compaction(self) -> None:
        compaction = self._compaction
        if not NEVER_COMPACTED <= compaction.reclaimed <= compaction.revision <= self._revision:
            self.report("I9", f"{compaction} at revision {self._revision}")
        if compaction.target != NEVER_COMPACTED and not compaction.reclaimed < compaction.target <= compaction.revision:
            self.report("I9", f"{compaction} has a target out of bounds")
        for _, joined in self._pages(Table.DROPS):
            if len(joined) % LOG_KEY_BYTES:
                self.report("I9", f"a note of dropped records has {len(joined)} bytes")
            for i in range(0, len(joined), LOG_KEY_BYTES):
                log_key = joined[i : i + LOG_KEY_BYTES]
                if main_of(log_key) > compaction.target:
                    self.report("I9", f"{_named(log_key)} is noted as dropped, above the target {compaction.target}")
                # Swept already, if a sweep was interrupted between two of its steps.
                if self._txn.get(Table.LOG, log_key) is not None:
                    self._noted.add(log_key)

    def _check_log(self) -> int:
        count = 0
        before = LogPosition(0, 0, is_tombstone=False, has_lease=False, checksum=0)
        base = max(self._compaction.revision, FIRST_REVISION)
        for log_key, record in self._pages(Table.LOG):
            count += 1
            self._step()
            if len(log_key) != LOG_KEY_BYTES:
                self.report("I2", f"a log key has {len(log_key)} bytes")
                continue
            position = unpack_log_key(log_key)
            if position[:2] <= before[:2] or not FIRST_REVISION < position.main <= self._revision:
                self.report("I2", f"{_named(log_key)} stands after {before[:2]}")
            expected = (before.main, before.sub + 1) if position.main == before.main else (before.main + 1, 0)
            # Of what is at or below the floor anything may be left; the first revision above it is whole.
            follows_floor = before.main <= base and position[:2] == (base + 1, 0)
            if position.main > base and position[:2] != expected and not follows_floor:
                self.report("I5", f"{_named(log_key)} stands where {expected} is due")
            self._check_record(log_key, position, record)
            before = position
        if self._revision > base and before.main != self._revision:
            self.report("I5", f"the log ends at {before.main}, not at {self._revision}")
        return count

    def _check_record(self, log_key: bytes, position: LogPosition, record: bytes) -> None:
        if not matches_checksum(log_key, record):
            self.report("I3", f"{_named(log_key)} does not match its checksum")
            return
        kv = self._row(log_key, record)
        if kv is None:
            return
        if kv.mod_revision != position.main:
            self.report("I3", f"{_named(log_key)} says that it is revision {kv.mod_revision}")
        if position.has_lease != bool(kv.lease):
            self.report("I3", f"{_named(log_key)} does not say right whether it has a lease")
        if position.is_tombstone and kv != (kv.key, 0, position.main, 0, b"", 0):
            self.report("I3", f"{_named(log_key)} is a tombstone with a value")

    def _row(self, log_key: bytes, record: bytes) -> KeyValue | None:
        try:
            return unpack_record(record, self._path)
        except CorruptError as error:
            self.report("I3", f"{_named(log_key)}: {error.reason}")
            return None

    def _check_index(self) -> int:
        count = 0
        start = b""
        while True:
            page = self._txn.newest_page(start, None, b"", PAGE_ROWS)
            for key, _ in page:
                count += self._check_key(key)
            if len(page) < PAGE_ROWS:
                return count
            start = page[-1][0] + b"\0"

    def _check_key(self, key: bytes) -> int:
        """Follow one key from its oldest version to its newest; return how many there are."""
        count = 0
        start = b"\xff" * ENTRY_BYTES
        before: KeyValue | None = None
        is_after_tombstone = False
        log_key = b""
        while entries := self._txn.entries(key, start, PAGE_ROWS, reverse=True):
            for entry in entries:
                count += 1
                self._step()
                log_key = log_key_of(entry)
                kv = self._entry_row(key, entry, log_key)
                if kv is None:
                    before, is_after_tombstone = None, False
                    continue
                is_tombstone = unpack_log_key(log_key).is_tombstone
                self._check_generation(kv, before, is_first=count == 1, is_after_tombstone=is_after_tombstone)
                before, is_after_tombstone = kv, is_tombstone
            start = (int.from_bytes(entries[-1]) - 1).to_bytes(ENTRY_BYTES)
        self._check_reclaimed(key)
        if before is not None and before.lease and not is_after_tombstone:
            self._check_attached(before, log_key)
        return count

    def _entry_row(self, key: bytes, entry: bytes, log_key: bytes) -> KeyValue | None:
        record = self._txn.get(Table.LOG, log_key)
        if record is None:
            self.report("I1", f"the index has {_named(log_key)} of {key[:64]!r}, the log has not")
            return None
        if log_key in self._noted:
            self.report("I1", f"{_named(log_key)} of {key[:64]!r} is in the index and noted as dropped")
        if not matches_checksum(log_key, record):
            return None  # reported with the log
        kv = self._row(log_key, record)
        if kv is not None and kv.key != key:
            self.report("I1", f"{_named(log_key)} is of {kv.key[:64]!r}, the index has it for {key[:64]!r}")
            return None
        if kv is not None and entry_of(log_key, kv) != entry:
            self.report("I1", f"the index entry of {_named(log_key)} of {key[:64]!r} contradicts its record")
        return kv

    def _check_generation(
        self, kv: KeyValue, before: KeyValue | None, *, is_first: bool, is_after_tombstone: bool
    ) -> None:
        where = f"revision {kv.mod_revision} of {kv.key[:64]!r}"
        is_tombstone = kv.version == 0
        if is_first and kv.mod_revision <= self._compaction.revision:
            return
        if before is None or is_after_tombstone:
            if is_tombstone:
                self.report("I4", f"{where} deletes a key that does not exist")
            elif kv.version != 1 or kv.create_revision != kv.mod_revision:
                self.report("I4", f"{where} begins a generation with version {kv.version}, create {kv.create_revision}")
        elif not is_tombstone and (kv.version, kv.create_revision) != (before.version + 1, before.create_revision):
            self.report("I4", f"{where} has version {kv.version}, create {kv.create_revision} after {before[1:4]}")

    def _check_reclaimed(self, key: bytes) -> None:
        reclaimed = self._compaction.reclaimed
        if reclaimed <= FIRST_REVISION:
            return
        old = self._txn.entries(key, entry_floor(reclaimed), 2)
        if len(old) > 1:
            self.report("I6", f"{key[:64]!r} has several versions at or below the reclaimed revision {reclaimed}")
        elif old and not is_live(old[0]) and entry_main(old[0]) != reclaimed:
            self.report("I6", f"{key[:64]!r} has a tombstone below the reclaimed revision {reclaimed}")

    def _check_attached(self, kv: KeyValue, log_key: bytes) -> None:
        is_granted = self._txn.get(Table.LEASES, pack_lease_id(kv.lease)) is not None
        is_attached = self._txn.get(Table.ATTACHED, pack_lease_id(kv.lease) + log_key) is not None
        if is_granted != is_attached:
            state = "is not attached to" if is_granted else "is attached to the missing"
            self.report("I7", f"{kv.key[:64]!r} {state} lease {kv.lease}")
        self._attached += is_attached

    def _check_leases(self) -> None:
        attached = self._txn.length(Table.ATTACHED)
        if attached != self._attached:
            self.report("I7", f"{attached} attachments, but {self._attached} keys with a lease")
        for name, packed in self._pages(Table.LEASES):
            try:
                ttl_ms, granted_ms = unpack(packed)
                is_right = isinstance(ttl_ms, int) and isinstance(granted_ms, int) and len(name) == 8
            except UNPACK_ERRORS:
                is_right = False
            if not is_right:
                self.report("I7", f"the record of lease {unpack_lease_id(name[:8])} cannot be read")

    def _check_times(self) -> None:
        before = (0, 0)
        for revision, time_ms in self._pages(Table.TIMES):
            if len(revision) != 8 or len(time_ms) != 8:
                self.report("I8", f"a time record has {len(revision)} and {len(time_ms)} bytes")
                continue
            here = (unpack_u64(revision), unpack_u64(time_ms))
            if not (before[0] < here[0] <= self._revision and before[1] <= here[1]):
                self.report("I8", f"the time of revision {here[0]} is {here[1]}, after {before}")
            before = here

    def _check_subscriptions(self) -> None:
        for meta_name, packed in subscription.packed_records(self._txn):
            try:
                record = subscription.unpack_record(meta_name, packed, self._path)
            except CorruptError as error:
                self.report("I11", error.reason)
                continue
            if record.revision > self._revision:
                acknowledged = f"acknowledged up to {record.revision}, above the current revision {self._revision}"
                self.report("I11", f"subscription {record.name!r} is {acknowledged}")

    def _check_attributes(self) -> None:
        try:
            counters = attributes.load_counters(self._txn, self._path)
        except CorruptError as error:
            self.report("I12", error.reason)
            return
        number = size_bytes = 0
        for meta_name, packed in attributes.packed_records(self._txn):
            try:
                name, value = attributes.unpack_record(meta_name, packed, self._path)
            except CorruptError as error:
                self.report("I12", error.reason)
                return  # the counters are for whole ones
            number += 1
            size_bytes += len(name.encode()) + len(value)
        if (number, size_bytes) != counters[1:] or (number and not counters.version):
            self.report("I12", f"{number} attributes of {size_bytes} bytes, counted as {tuple(counters)}")


def _named(log_key: bytes) -> str:
    if len(log_key) != LOG_KEY_BYTES:
        return f"the log key {log_key.hex()}"
    main, sub, is_tombstone = unpack_log_key(log_key)[:3]
    return f"({main}, {sub}{', tombstone' if is_tombstone else ''})"
