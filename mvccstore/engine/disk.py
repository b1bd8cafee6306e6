"""The disk under a file: syncing it, what its errors mean, and whether it is full when nobody says so.

A write that is cut short by a full disk is reported by LMDB and by SQLite as an input/output error, not as
what it is. Looking at the disk afterwards tells: the part that was written has filled it.
"""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

from mvccstore.errors import StorageError, StorageFullError

ROOM_BYTES = 1 << 20
"""Less than this left is full."""


def is_full(path: str) -> bool:
    """Say whether the disk under a file, or the size this process may give it, is used up. Two system calls."""
    try:
        disk = os.statvfs(Path(path).absolute().parent)
        sizes = [Path(name).stat().st_size for name in (path, f"{path}-wal") if Path(name).exists()]
    except OSError:
        return False
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    is_limited = limit != resource.RLIM_INFINITY and max(sizes, default=0) + ROOM_BYTES > limit
    return is_limited or disk.f_bavail * disk.f_frsize < ROOM_BYTES


def translated(path: str, error: OSError) -> StorageError:
    """Return our error for one of the system's about the store at `path`."""
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the last as `is_full`: what this process may give it
    kind = StorageFullError if error.errno in full else StorageError
    return kind(path, error.strerror or str(error))


def fsync_file(name: str, path: str) -> None:
    """Sync a file of the store at `path`; one that does not exist has nothing to sync."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise translated(path, error) from error
    try:
        os.fsync(fd)
    except OSError as error:
        raise translated(path, error) from error
    finally:
        os.close(fd)


def fsync_directory(path: str) -> None:
    """Make the names in the directory of `path` durable."""
    fsync_file(str(Path(path).absolute().parent), path)
