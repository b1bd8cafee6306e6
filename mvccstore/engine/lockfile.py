"""The lock that keeps a second writer out of a store.

A sidecar file `<store>-writer` under `flock`, holding who has it. The kernel drops the lock when the
process ends, however it ends, so nothing is ever left to clean up by hand. Not on the store's own file:
closing any descriptor of a file drops the process's POSIX locks on it, and SQLite's and LMDB's are such.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from pathlib import Path

from mvccstore.errors import LockedError, StorageError

_held: set[str] = set()


def holder_here(path: str) -> str | None:
    """Return the name of this process if it has the store open for writing; None if not.

    Asked before a store's file is so much as looked at: closing the file again would drop the locks of
    this process that SQLite has on it.
    """
    return _own_name().strip() if os.path.realpath(path) in _held else None


def is_locked(path: str) -> bool:
    """Say whether a process has the store open for writing. Three system calls."""
    try:
        fd = os.open(f"{path}-writer", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


class WriterLock:
    """An exclusive lock on `path`, held until `release`.

    Raises:
        LockedError: Someone holds it; `holder` names process id, host and program.
        StorageError: The directory cannot be written.
    """

    __slots__ = ("_fd", "_lock_path", "_real_path")

    def __init__(self, path: str) -> None:
        self._lock_path = f"{path}-writer"
        self._real_path = os.path.realpath(path)
        self._fd = self._acquire(path)
        _held.add(self._real_path)

    def _acquire(self, path: str) -> int:
        while True:
            try:
                fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise StorageError(path, f"cannot create its lock file: {error.strerror}") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(fd, 1000, 0).decode(errors="replace").strip()
                os.close(fd)
                raise LockedError(path, holder or "a process that has not said its name yet") from error
            if self._is_current(fd):
                break
            os.close(fd)  # the holder before us removed this file between our open and our lock
        os.ftruncate(fd, 0)
        os.pwrite(fd, _own_name().encode(), 0)
        return fd

    def _is_current(self, fd: int) -> bool:
        try:
            named = Path(self._lock_path).stat()
        except FileNotFoundError:
            return False
        held = os.fstat(fd)
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)

    def release(self) -> None:
        """Let the next writer in. Releasing twice is harmless."""
        if self._fd < 0:
            return
        # Unlinked while still locked: whoever opened it before sees, once it has the lock, that the
        # name is gone, and starts over.
        Path(self._lock_path).unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Close the descriptor but leave the lock to the process that we were forked from."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            _held.discard(self._real_path)


def _own_name() -> str:
    program = " ".join(sys.argv[:3]) or "python"
    return f"process {os.getpid()} on {socket.gethostname()} ({program[:200]})\n"
