"""Who is compared: adapters that let raw LMDB, this store and kine's table do the same work.

Each method carries out a whole list of operations, and its loop is written out in it, so nobody pays for
the adapter in each operation: what is timed is the code a user of that engine would write.
"""

from __future__ import annotations

import sqlite3
import time
from itertools import islice
from pathlib import Path
from typing import Protocol

import lmdb

import mvccstore
from benchmarks.workloads import Bounds, Item, chunks
from mvccstore import Command, KeyRange, Op

LOAD_BATCH = 20_000
MAP_BYTES = 1 << 36
KINE_CACHE_KIB = 65_536
"""All of the table's hot pages; SQLite's default of 2 MB would make it look bad."""


class Contender(Protocol):
    """An engine under test."""

    name: str

    def load(self, items: list[Item]) -> None:
        """Write many items the fastest way there is; not timed."""
        ...

    def get_each(self, keys: list[bytes]) -> None:
        """Read keys, one read transaction each."""
        ...

    def put_each(self, items: list[Item]) -> None:
        """Write items, one commit each."""
        ...

    def put_batches(self, batches: list[list[Item]]) -> None:
        """Write batches, one commit each."""
        ...

    def range_each(self, ranges: list[Bounds]) -> int:
        """Read ranges into lists, one read transaction each; return the rows read."""
        ...

    def dump(self, bounds: Bounds) -> list[Item]:
        """Return keys and values of a range, to see that all contenders hold the same."""
        ...

    def close(self) -> None:
        """Release the files."""
        ...


class RawLmdb:
    """py-lmdb without anything above it: the floor. One value a key, no history."""

    name = "raw lmdb"

    def __init__(self, path: Path, range_keys: int) -> None:
        self._range_keys = range_keys
        self._env = lmdb.open(str(path), subdir=False, map_size=MAP_BYTES, sync=False, max_spare_txns=4)

    def load(self, items: list[Item]) -> None:
        """Write many items."""
        self.put_batches(list(chunks(items, LOAD_BATCH)))

    def get_each(self, keys: list[bytes]) -> None:
        """Read keys, one read transaction each."""
        begin = self._env.begin
        for key in keys:
            with begin() as txn:
                txn.get(key)

    def put_each(self, items: list[Item]) -> None:
        """Write items, one commit each."""
        begin = self._env.begin
        for key, value in items:
            with begin(write=True) as txn:
                txn.put(key, value)

    def put_batches(self, batches: list[list[Item]]) -> None:
        """Write batches, one commit each."""
        begin = self._env.begin
        for batch in batches:
            with begin(write=True) as txn:
                put = txn.put
                for key, value in batch:
                    put(key, value)

    def range_each(self, ranges: list[Bounds]) -> int:
        """Read as many rows as lie in the range, without even looking where it ends."""
        begin, width, found = self._env.begin, self._range_keys, 0
        for start, _ in ranges:
            with begin() as txn:
                cursor = txn.cursor()
                cursor.set_range(start)
                found += len(list(islice(cursor.iternext(), width)))
        return found

    def dump(self, bounds: Bounds) -> list[Item]:
        """Return keys and values of a range."""
        with self._env.begin() as txn:
            cursor = txn.cursor()
            cursor.set_range(bounds[0])
            return [(key, value) for key, value in cursor.iternext() if key < bounds[1]]

    def close(self) -> None:
        """Release the file."""
        self._env.close()


class OurStore:
    """This store on one of its engines."""

    def __init__(self, engine: str, path: Path | None, durability: mvccstore.Durability) -> None:
        self.name = f"mvccstore on {engine}"
        self.store = mvccstore.open(path, engine=engine, durability=durability)

    def load(self, items: list[Item]) -> None:
        """Write many items in large transaction blocks: each is one commit and one revision."""
        self.put_blocks(list(chunks(items, LOAD_BATCH)))

    def load_revisions(self, items: list[Item]) -> None:
        """Write many items, each with a revision of its own, in large commits."""
        for batch in chunks(items, LOAD_BATCH):
            now = time.time_ns() // 1_000_000
            self.store.apply_replicated([Command(Op.put(key, value), now) for key, value in batch], b"loaded")

    def get_each(self, keys: list[bytes]) -> None:
        """Read keys, one read transaction each."""
        get = self.store.get
        for key in keys:
            get(key)

    def put_each(self, items: list[Item]) -> None:
        """Write items, one commit each."""
        put = self.store.put
        for key, value in items:
            put(key, value)

    def put_batches(self, batches: list[list[Item]]) -> None:
        """Write batches as txns: atomic, checked for keys written twice, a result for each operation."""
        txn, put = self.store.txn, Op.put
        for batch in batches:
            txn(success=[put(key, value) for key, value in batch])

    def put_blocks(self, batches: list[list[Item]]) -> None:
        """Write batches as transaction blocks."""
        begin = self.store.begin
        for batch in batches:
            with begin() as txn:
                put = txn.put
                for key, value in batch:
                    put(key, value)

    def range_each(self, ranges: list[Bounds]) -> int:
        """Read ranges at the newest revision."""
        return self.range_each_at(ranges, 0)

    def range_each_at(self, ranges: list[Bounds], revision: int) -> int:
        """Read ranges at a revision."""
        find, found = self.store.range, 0
        for start, end in ranges:
            found += len(find(KeyRange(start, end), revision=revision).kvs)
        return found

    def dump(self, bounds: Bounds) -> list[Item]:
        """Return keys and values of a range."""
        return [(kv.key, kv.value) for kv in self.store.range(KeyRange(*bounds))]

    def close(self) -> None:
        """Release the file."""
        self.store.close()


class KineTable:
    """etcd's semantics the way kine keeps them on SQLite: one table, a row for each change.

    The shape of the table, its indexes and its two statements are kine's; the SQL is written anew, and in
    kine's favour where the two differ (see README.md).
    """

    name = "kine on sqlite"

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._last: dict[str, int] = {}
        for statement in _KINE_SCHEMA:
            self._db.execute(statement)

    def load(self, items: list[Item]) -> None:
        """Write many items, without asking the table for what this object has written before."""
        (number,) = self._db.execute("SELECT coalesce(max(id), 0) FROM kine").fetchone()
        for batch in chunks(items, LOAD_BATCH):
            rows = []
            for key, value in batch:
                name, number = key.decode(), number + 1
                last = self._last.get(name, 0)
                rows.append((name, not last, last, last, 0, value, value if last else None))
                self._last[name] = number
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(_KINE_INSERT, rows)
            self._db.execute("COMMIT")

    def get_each(self, keys: list[bytes]) -> None:
        """Read the last row of each key."""
        execute = self._db.execute
        for key in keys:
            execute(_KINE_GET, (key.decode(),)).fetchone()

    def put_each(self, items: list[Item]) -> None:
        """Look up the last row of the key, then insert one that names it; each insert is a commit."""
        execute = self._db.execute
        for key, value in items:
            name = key.decode()
            row = execute(_KINE_GET, (name,)).fetchone()
            if row is None:
                execute(_KINE_INSERT, (name, 1, 0, 0, 0, value, None))
            else:
                last, created_at, before = row[2], row[6], row[9]
                execute(_KINE_INSERT, (name, 0, created_at or last, last, 0, value, before))

    def put_batches(self, batches: list[list[Item]]) -> None:
        """Write batches, one commit each; kine itself has no such thing."""
        for batch in batches:
            self._db.execute("BEGIN IMMEDIATE")
            self.put_each(batch)
            self._db.execute("COMMIT")

    def range_each(self, ranges: list[Bounds]) -> int:
        """Read the last row of every name in the range that is not a delete."""
        execute, found = self._db.execute, 0
        for start, end in ranges:
            found += len(execute(_KINE_RANGE, (start.decode(), end.decode())).fetchall())
        return found

    def dump(self, bounds: Bounds) -> list[Item]:
        """Return keys and values of a range."""
        rows = self._db.execute(_KINE_RANGE, (bounds[0].decode(), bounds[1].decode()))
        return [(row[3].encode(), row[9]) for row in rows]

    def close(self) -> None:
        """Release the file."""
        self._db.close()


_KINE_SCHEMA = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = OFF",
    f"PRAGMA cache_size = -{KINE_CACHE_KIB}",
    """CREATE TABLE IF NOT EXISTS kine (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER,
        create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB)""",
    "CREATE INDEX IF NOT EXISTS kine_name ON kine (name)",
    "CREATE INDEX IF NOT EXISTS kine_name_id ON kine (name, id)",
    "CREATE INDEX IF NOT EXISTS kine_id_deleted ON kine (id, deleted)",
    "CREATE INDEX IF NOT EXISTS kine_prev_revision ON kine (prev_revision)",
    "CREATE UNIQUE INDEX IF NOT EXISTS kine_name_prev_revision ON kine (name, prev_revision)",
)
_KINE_INSERT = """INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value, old_value)
    VALUES (?, ?, 0, ?, ?, ?, ?, ?)"""
# Every read of kine's is this statement: with every row come the newest id and the compact revision.
_KINE_LIST = """SELECT
        (SELECT MAX(id) FROM kine),
        (SELECT MAX(prev_revision) FROM kine WHERE name = 'compact_rev_key'),
        id, name, created, deleted, create_revision, prev_revision, lease, value, old_value
    FROM kine JOIN (SELECT MAX(id) AS last FROM kine WHERE {names} GROUP BY name) ON last = id
    WHERE deleted = 0 ORDER BY name"""
_KINE_RANGE = _KINE_LIST.format(names="name >= ? AND name < ?")
_KINE_GET = _KINE_LIST.format(names="name = ?") + " LIMIT 1"
