"""A server process on a disk that is not well: it syncs slowly, or its files may not grow. Run by the crash tests.

The faults are made here, from this process's environment, and the product knows nothing of them: `FAULT_SYNC_MS` has
each sync and each commit of an engine take up to twice so long, at random, part of it before and part after;
`FAULT_FILE_BYTES` is the size beyond which no file can grow (`RLIMIT_FSIZE`), which is met by the store's file alone;
`FAULT_GROWTH_BYTES` is by how much all that Python writes may grow, which are the files of the journal. To whoever
writes, both are a full disk: what fits is written, and the rest is refused.
"""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any


def slowed(call: Callable[..., Any], seconds: float, seeded: random.Random) -> Callable[..., Any]:
    @wraps(call)
    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(seeded.random() * seconds)
        result = call(*args, **options)
        time.sleep(seeded.random() * seconds)
        return result

    return slow


def slow_disk(seconds: float) -> None:
    """Have syncs be slow: those of Python's `os`, and, as LMDB syncs in C, the commits of all engines."""
    seeded = random.Random(os.getpid())
    for name in ("fsync", "fdatasync"):
        if hasattr(os, name):
            setattr(os, name, slowed(getattr(os, name), seconds, seeded))
    import mvccstore.engine  # after `os` was changed: modules may take its functions when they are imported

    for found in pkgutil.iter_modules(mvccstore.engine.__path__, "mvccstore.engine."):
        module = importlib.import_module(found.name)
        for kind in vars(module).values():
            is_of_it = isinstance(kind, type) and kind.__module__ == module.__name__
            if is_of_it and "commit" in vars(kind) and not getattr(kind, "_is_protocol", False):
                kind.commit = slowed(kind.commit, seconds, seeded)


class FullDisk:
    """In place of those functions of `os` that change the length of a file.

    Args:
        left: The bytes by which files may still grow.
    """

    def __init__(self, left: int) -> None:
        self._left = left
        self._os_pwrite, self._os_pwritev, self._os_ftruncate = os.pwrite, os.pwritev, os.ftruncate

    def pwrite(self, fd: int, content: bytes, offset: int) -> int:
        return self._os_pwrite(fd, self._fitting(fd, content, offset), offset)

    def pwritev(self, fd: int, parts: Sequence[bytes], offset: int) -> int:
        return self._os_pwritev(fd, [self._fitting(fd, b"".join(parts), offset)], offset)

    def ftruncate(self, fd: int, length: int) -> None:
        self._left += max(0, os.fstat(fd).st_size - length)
        self._os_ftruncate(fd, length)

    def _fitting(self, fd: int, content: bytes, offset: int) -> bytes:
        """Return what there is room for, and take the room."""
        growth = max(0, offset + len(content) - os.fstat(fd).st_size)
        fits = len(content) - max(0, growth - self._left)
        if fits <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._left -= min(growth, self._left)
        return content[:fits]


def main() -> int:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if limit := os.environ.get("FAULT_FILE_BYTES"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if room := os.environ.get("FAULT_GROWTH_BYTES"):
        disk = FullDisk(int(room))
        for name in ("pwrite", "pwritev", "ftruncate"):
            setattr(os, name, getattr(disk, name))
    if delay := os.environ.get("FAULT_SYNC_MS"):
        slow_disk(float(delay) / 1_000)
    from mvccstore.server.etcd_shim import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
