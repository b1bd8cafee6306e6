"""Whether a disk is full, when nobody says so.

A write that is cut short by a full disk is reported by LMDB and by SQLite as an input/output error, not as
what it is. Looking at the disk afterwards tells: the part that was written has filled it.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

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
