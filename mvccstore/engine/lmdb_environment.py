"""Opening an LMDB environment, copying its pages, and what its errors mean here."""

from __future__ import annotations

import errno
import os

import lmdb

from mvccstore.engine import EngineOptions
from mvccstore.engine.disk import is_full as is_disk_full
from mvccstore.errors import CorruptError, FormatError, StorageError, StorageFullError

MAP_BYTES_MIN = 1 << 20
READERS_MAX = 1024
DATABASES_MAX = 16

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
