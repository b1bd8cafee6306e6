"""Opening an LMDB environment, copying its pages, and what its errors mean here."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Sequence
from itertools import islice
from typing import Any

import lmdb

from mvccstore.engine import EngineOptions
from mvccstore.engine.disk import is_full as is_disk_full
from mvccstore.errors import CorruptError, FormatError, StorageError, StorageFullError
from mvccstore.tables import Table

MAP_BYTES_MIN = 1 << 20
PAGE_BYTES = resource.getpagesize()
"""LMDB takes the system's."""
READERS_MAX = 1024
DATABASES_MAX = 16
INDEX_NAMES = (b"index", b"tails")
_META_PAGES = 2
_INDEX_ENTRY_BYTES_MAX = 96

Databases = dict[Table, Any]

_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNWRITABLE_ERRNOS = frozenset({errno.EACCES, errno.EROFS, errno.EPERM})
_CORRUPT = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.BadTxnError)


def open_environment(path: str, options: EngineOptions, map_bytes: int) -> tuple[lmdb.Environment, int]:
    """Open a file, and return it with the bytes that were mapped: less than asked for if the address space is limited."""
    has_lock = True
    while True:
        try:
            environment = lmdb.open(
                path,
                subdir=False,
                map_size=map_bytes,
                readonly=options.read_only,
                sync=options.sync_commits,
                metasync=options.sync_commits,
                max_readers=READERS_MAX,
                max_dbs=DATABASES_MAX,
                max_spare_txns=4,
                lock=has_lock,
                mode=0o644,
                lib_version=0,
            )
        except lmdb.Error as error:
            code = getattr(error, "code", 0)
            if options.read_only and has_lock and code in _UNWRITABLE_ERRNOS:
                has_lock = False  # a directory nobody can write to has no writer to keep out of the way of
            elif isinstance(error, lmdb.MemoryError) or code == errno.ENOMEM:
                if map_bytes <= MAP_BYTES_MIN:
                    raise translated(error, path) from error
                map_bytes //= 2  # the address space is limited (ulimit -v)
            else:
                raise translated(error, path) from error
        else:
            return environment, map_bytes


def open_databases(environment: lmdb.Environment, path: str, *, create: bool) -> tuple[Databases, Any, Any]:
    """Open the tables' databases, and the two of the index.

    Args:
        environment: The open file.
        path: Its name, for errors.
        create: Whether to make them in an empty file.

    Raises:
        FormatError: It is of another program.
        lmdb.Error: It cannot be read.
    """
    try:
        create = _is_new(environment, path) and create
        databases = {table: environment.open_db(table.value.encode(), create=create) for table in Table}
        index, tails = (environment.open_db(name, create=create, dupsort=True, dupfixed=True) for name in INDEX_NAMES)
    except lmdb.NotFoundError as error:
        raise FormatError(path, "an LMDB file, but not a store") from error
    except (lmdb.IncompatibleError, lmdb.DbsFullError) as error:
        raise FormatError(path, "an LMDB file of another program") from error
    return databases, index, tails


def _is_new(environment: lmdb.Environment, path: str) -> bool:
    """Say whether there is nothing in the file yet; raise if there is something of somebody else's."""
    with environment.begin() as txn:
        names = set(islice(txn.cursor().iternext(True, False), DATABASES_MAX))
    if names and not names.issuperset({*INDEX_NAMES, *(table.value.encode() for table in Table)}):
        raise FormatError(path, "an LMDB file of another program")
    return not names


def copy_pages(environment: lmdb.Environment, path: str) -> None:
    """Copy the pages as they are to a new file.

    Not by LMDB's compacting copy: that crashes on keys with many versions (LMDB 0.9.36, a database of
    fixed-size duplicates with one set large enough for a tree of its own).
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            environment.copyfd(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
    except lmdb.Error as error:
        raise translated(error, path) from error
    except OSError as error:
        raise StorageError(path, error.strerror or str(error)) from error


def used_bytes(
    txn: lmdb.Transaction[bytes], tables: Sequence[Any], log: Any, index: Sequence[Any], entries: int
) -> int:
    """Add up the pages of the databases: of the tables, the log among them, and of the index with its entries."""
    page_bytes = int(txn.stat(log)["psize"])
    used = _META_PAGES * page_bytes + sum(_pages_bytes(txn.stat(database)) for database in tables)
    # LMDB 0.9.36 counts a page too many for each key that goes after having had many versions, so
    # the count is held against what that many entries can take at most, keys included.
    index_bytes = sum(_pages_bytes(txn.stat(database)) for database in index)
    index_bytes_max = entries * _INDEX_ENTRY_BYTES_MAX + _pages_bytes(txn.stat(log)) + page_bytes
    return used + min(index_bytes, index_bytes_max)


def _pages_bytes(stat: Any) -> int:
    pages: int = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return pages * int(stat["psize"])


def translated(error: lmdb.Error, path: str) -> StorageError:
    """Return our error for one of LMDB's."""
    code = getattr(error, "code", 0)
    is_full = code in _FULL_ERRNOS or (code == errno.EIO and is_disk_full(path))
    if is_full or isinstance(error, lmdb.MapFullError):
        return StorageFullError(path, f"no room: {os.strerror(code) if code > 0 else error}")
    if isinstance(error, lmdb.VersionMismatchError):
        return FormatError(path, f"another version of LMDB wrote it: {error}")
    if isinstance(error, _CORRUPT):
        return CorruptError(path, str(error))
    return StorageError(path, os.strerror(code) if code > 0 else str(error))
