"""Moving a whole store: backup, restore, and copying from one engine to another.

A backup is a store: it can be opened, read and checked where it lies. It is written beside its final name
and renamed when it is complete and on disk, so a half one is never found under that name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mvccstore.codec import (
    entry_of,
    log_key_floor,
    pack_lease_id,
    pack_u64,
    unpack_record,
)
from mvccstore.engine import Engine, EngineOptions, detect_engine, open_engine
from mvccstore.engine.disk import fsync_directory
from mvccstore.engine.lockfile import WriterLock
from mvccstore.errors import CorruptError, FormatError, StorageError
from mvccstore.mvcc import attributes, check, lease, subscription
from mvccstore.mvcc.history import is_survivor
from mvccstore.mvcc.read import PAGE_ROWS
from mvccstore.mvcc.state import (
    FIRST_REVISION,
    NEVER_COMPACTED,
    Compaction,
    check_format,
    load,
    save_compaction,
    save_format,
)
from mvccstore.tables import ReadTxn, Table, WriteTxn, written
from mvccstore.types import KeyValue

Progress = Callable[[int, int], None]
"""Called now and then with the records done and their total."""


@contextmanager
def finished_file(path: str, *, overwrite: bool) -> Iterator[str]:
    """Give a name to write to, and rename it to `path` when the block ends well.

    Raises:
        StorageError: `path` exists and `overwrite` is false, or it cannot be written.
        LockedError: `path` is a store that is open.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise StorageError(path, "exists already")
    with _nobody_writes(path), _written_beside(path, target) as name:
        yield name


@contextmanager
def _written_beside(path: str, target: Path) -> Iterator[str]:
    partial = Path(f"{path}.partial-{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        yield str(partial)
        # A file of the same name that goes takes its sidecars along, or they would be read as the new one's.
        for suffix in ("-wal", "-shm", "-lock", "-journal-a", "-journal-b"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        partial.replace(target)
        fsync_directory(str(target))
    except OSError as error:
        raise StorageError(path, error.strerror or str(error)) from error
    finally:
        for suffix in ("", "-wal", "-shm", "-lock", "-writer"):
            Path(f"{partial}{suffix}").unlink(missing_ok=True)


def copy_records(source: Engine, target: Engine, progress: Progress | None = None) -> int:
    """Copy a store between engines, record by record; return the revision copied.

    The target must be empty. History that compaction made invisible is left behind. The caller keeps
    compaction from reclaiming more meanwhile; writers may go on, and what they write is not copied.

    Cost: a read and two writes a record; memory for the keys that have a lease, the attributes, and a page.
    """
    with closing(source.read()) as txn:
        state = load(txn, source.path)
        granted = list(_table(txn, Table.LEASES))
        others = [*subscription.packed_records(txn), *attributes.packed_records(txn)]
        counters = attributes.load_counters(txn, source.path)
        total = txn.length(Table.LOG)
    compaction = Compaction()
    if state.compaction.revision != NEVER_COMPACTED:
        compaction = Compaction(state.compaction.revision, state.compaction.revision)

    def prepare(txn: WriteTxn) -> None:
        save_format(txn)
        save_compaction(txn, compaction)
        for name, packed in granted:
            txn.put(Table.LEASES, name, packed)
        for name, packed in others:
            txn.put(Table.META, name, packed)
        if counters.version:
            attributes.save_counters(txn, counters)

    _write(target, prepare)
    copier = _Copier(source, state.revision, compaction.revision, {name for name, _ in granted})
    while (rows := copier.next_rows()) is not None:
        _write(target, lambda txn, rows=rows: copier.write(txn, rows))  # type: ignore[misc]
        if progress is not None:
            progress(min(copier.seen, total), total)
    _write(target, copier.write_attached)
    _copy_times(source, target, state.revision)
    target.sync()
    return state.revision


class _Copier:
    """Copies the log and makes the index anew."""

    def __init__(self, source: Engine, revision: int, floor: int, granted: set[bytes]) -> None:
        self.seen = 0
        self._source = source
        self._end = log_key_floor(revision + 1)
        self._floor = max(floor, FIRST_REVISION)
        self._granted = granted
        self._resume: bytes | None = b""
        self._leased: dict[bytes, tuple[int, bytes]] = {}  # key -> lease id, log key

    def next_rows(self) -> list[tuple[bytes, bytes, KeyValue]] | None:
        """Return the next log keys, records and rows that are visible; None at the end."""
        if self._resume is None:
            return None
        with closing(self._source.read()) as txn:
            page = txn.page(Table.LOG, self._resume, self._end, PAGE_ROWS)
            self._resume = page[-1][0] + b"\0" if len(page) == PAGE_ROWS else None
            self.seen += len(page)
            rows = []
            for log_key, record in page:
                kv = unpack_record(record, self._source.path)
                if kv.mod_revision > self._floor or is_survivor(txn, kv.key, entry_of(log_key, kv), self._floor):
                    rows.append((log_key, record, kv))
        return rows

    def write(self, txn: WriteTxn, rows: list[tuple[bytes, bytes, KeyValue]]) -> None:
        """Write rows of `next_rows`."""
        for log_key, record, kv in rows:
            txn.append(Table.LOG, log_key, record)
            txn.add(kv.key, entry_of(log_key, kv))
            if kv.lease and pack_lease_id(kv.lease) in self._granted:
                self._leased[kv.key] = kv.lease, log_key
            else:
                self._leased.pop(kv.key, None)

    def write_attached(self, txn: WriteTxn) -> None:
        """Attach the keys to their leases, once all rows are written."""
        for lease_id, log_key in self._leased.values():
            lease.attach(txn, lease_id, log_key)


def _copy_times(source: Engine, target: Engine, revision: int) -> None:
    resume: bytes | None = b""
    while resume is not None:
        with closing(source.read()) as txn:
            page = txn.page(Table.TIMES, resume, pack_u64(revision + 1), PAGE_ROWS)
        resume = page[-1][0] + b"\0" if len(page) == PAGE_ROWS else None

        def write(txn: WriteTxn, page: list[tuple[bytes, bytes]] = page) -> None:
            for name, time_ms in page:
                txn.append(Table.TIMES, name, time_ms)

        _write(target, write)


def _table(txn: ReadTxn, table: Table) -> Iterator[tuple[bytes, bytes]]:
    resume: bytes | None = b""
    while resume is not None:
        page = txn.page(table, resume, None, PAGE_ROWS)
        yield from page
        resume = page[-1][0] + b"\0" if len(page) == PAGE_ROWS else None


def _write(engine: Engine, change: Callable[[WriteTxn], object]) -> None:
    def work(txn: WriteTxn) -> None:
        change(txn)
        txn.commit()

    written(engine.write, work)


def copy_to(source: Engine, path: str, engine_name: str, progress: Progress | None = None) -> None:
    """Write a copy of a store to a file that does not exist, with the named engine."""
    if engine_name == source.name and source.copy(path):
        return
    target = open_engine(engine_name, EngineOptions(path, sync_commits=False))
    try:
        copy_records(source, target, progress)
    finally:
        target.close()


def restore(
    backup: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    engine: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Make a store at `path` from a backup, after checking the backup; return its revision.

    Keys, history, revisions, leases, subscriptions and attributes are the backup's. The backup is only read.

    Args:
        backup: What `Store.backup` wrote, or any store's file.
        path: The store to make.
        engine: The engine of the new store; by default the backup's.
        overwrite: Replace a store that exists. One that is open must be closed first.
        progress: Called with the records checked and their total.

    Raises:
        CorruptError: The backup is damaged; `path` is as it was.
        FormatError: It is not a store.
        StorageError: It does not exist, `path` exists, or cannot be written.
        LockedError: The store at `path` is open.

    Cost: the backup is read twice and written once.
    """
    source_path, target_path = os.fspath(backup), os.fspath(path)
    name = detect_engine(source_path)
    if name is None:
        reason = "not a store" if Path(source_path).exists() else "there is no such file"
        raise FormatError(source_path, reason)
    source = open_engine(name, EngineOptions(source_path, read_only=True, create=False))
    try:
        with closing(source.read()) as txn:
            check_format(txn, source_path)
        found = source.problems()
        if not found:
            with closing(source.read()) as txn:
                found = check.problems(txn, source_path, progress)
                revision = load(txn, source_path).revision
        if found:
            raise CorruptError(source_path, f"the backup is damaged: {found[0]}", tuple(found))
        with finished_file(target_path, overwrite=overwrite) as partial:
            copy_to(source, partial, engine or name)
    finally:
        source.close()
    return revision


@contextmanager
def _nobody_writes(path: str) -> Iterator[None]:
    """Hold the lock of the store that is about to be replaced."""
    lock = WriterLock(path)
    try:
        yield
    finally:
        lock.release()
