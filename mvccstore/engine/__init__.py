"""Where bytes live: the `Engine` protocol and the registry of engines.

An engine keeps the tables of `mvccstore.tables` and moves records between them and its callers. It takes
no decisions: what a revision, a tombstone or a lease is, it does not know. One conformance suite
(`tests/unit/test_engine_conformance.py`) holds every engine, and a third party's can be run through it.

Contract beyond the protocol's words:

* `read()` may be called by any number of threads at once, also while a write transaction is open; each
  view is used by one thread and sees exactly what was committed before `read` was called.
* `write()` is called by one thread at a time (the store sees to it). The transaction is used and ended
  by the thread that began it. Closing it without `commit` undoes it.
* A commit is atomic: after a crash at any instant all of it is there or none.
* `limit` is 0 or more, bounds are bytes of any length; a write transaction may be closed after `commit`.
* A view stays usable when its engine is closed.
* Trouble is raised as `StorageFullError`, `CorruptError`, `FormatError`, `LockedError` or plain
  `StorageError`, never as the library's own exception.
* A file opened for writing is locked against a second writer for as long as it is open.

Which file belongs to which engine is decided by its first bytes, so `mvccstore.open(path)` needs no
engine name for a store that exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mvccstore.engine.lockfile import holder_here
from mvccstore.errors import LockedError, StorageError
from mvccstore.tables import ReadTxn, WriteTxn

DEFAULT_ENGINE = "lmdb"
JOURNALING_ENGINES = frozenset({"lmdb"})
HEADER_BYTES = 64
IN_MEMORY = ":memory:"
"""The path of a store that is in no file."""

__all__ = [
    "DEFAULT_ENGINE",
    "IN_MEMORY",
    "JOURNALING_ENGINES",
    "Engine",
    "EngineFactory",
    "EngineOptions",
    "EngineSize",
    "detect_engine",
    "engine_names",
    "open_engine",
    "register_engine",
]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is opened with."""

    path: str | None
    """The store's file; None for an engine that keeps nothing."""
    read_only: bool = False
    """Open beside a writer in another process; take no lock, write nothing."""
    sync_commits: bool = True
    """Whether `commit` returns only when the change survives a power cut."""
    create: bool = True
    """Whether a missing file is created."""
    journal: bool = False
    """Whether commits go to a journal first, and to the file later, many at once; for engines that can."""


@dataclass(frozen=True, slots=True)
class EngineSize:
    """How much an engine keeps."""

    used_bytes: int
    """Space that holds data now."""
    file_bytes: int
    """Space taken on disk (or in memory), including what a later write will reuse."""


class Engine(Protocol):
    """What the store asks of the thing that keeps its bytes."""

    name: str
    path: str

    def read(self) -> ReadTxn:
        """Begin a consistent view of what is committed now."""
        ...

    def write(self) -> WriteTxn:
        """Begin the write transaction."""
        ...

    def sync(self) -> None:
        """Make every commit so far survive a power cut. For engines opened without `sync_commits`."""
        ...

    def size(self) -> EngineSize:
        """Return the space taken. Cheap: no scan of the data."""
        ...

    def copy(self, path: str) -> bool:
        """Write a consistent, compact copy of the whole file to `path`, which must not exist.

        Writers and readers go on meanwhile. Return False where the engine has no faster way than
        copying records through its transactions, and nothing was done.
        """
        ...

    def defragment(self) -> None:
        """Give back the space that holds no data, and return when that is durable.

        Called while no write transaction is open. Readers go on meanwhile, and see no difference. If it fails, or
        the process ends, all is as before.

        Raises:
            StorageFullError: There is no room to work in.
        """
        ...

    def problems(self) -> list[str]:
        """Check the file's own structure, below the tables, and say what is wrong. O(file)."""
        ...

    def close(self) -> None:
        """Release file, lock and memory, when the last open view is closed. Closing twice is harmless."""
        ...

    def forget(self) -> None:
        """Drop what was inherited over a fork, and leave file and lock to the parent process."""
        ...


EngineFactory = Callable[[EngineOptions], Engine]


@dataclass(frozen=True, slots=True)
class _Registration:
    factory: EngineFactory
    recognizes: Callable[[bytes], bool] | None


_registry: dict[str, _Registration] = {}


def register_engine(name: str, factory: EngineFactory, *, recognizes: Callable[[bytes], bool] | None = None) -> None:
    """Make `mvccstore.open(path, engine=name)` use `factory`.

    Args:
        name: What users write. Registering a name again replaces it.
        recognizes: Given the first 64 bytes of a file, says whether it is this engine's; without it
            the engine must be named to open its files.
    """
    _registry[name] = _Registration(factory, recognizes)


def engine_names() -> tuple[str, ...]:
    """Return the names `open` accepts."""
    return tuple(sorted(_registry))


def detect_engine(path: str) -> str | None:
    """Return the name of the engine whose file this is; None if there is no such file or nobody's.

    Raises:
        LockedError: This process has it open for writing already.

    Cost: one open and one read of 64 bytes.
    """
    _check_not_open_here(path)
    try:
        with Path(path).open("rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError:
        return None
    for name, registration in _registry.items():
        if registration.recognizes is not None and registration.recognizes(header):
            return name
    return None


def _check_not_open_here(path: str) -> None:
    holder = holder_here(path)
    if holder is not None:
        raise LockedError(path, holder)


def _check_rights(path: str, *, read_only: bool) -> None:
    # Asked here, because SQLite opens a file that it may not write for reading, and says so too late.
    if not os.access(path, os.R_OK if read_only else os.R_OK | os.W_OK):
        raise StorageError(path, f"no permission to {'read' if read_only else 'write'} it")


def open_engine(name: str, options: EngineOptions) -> Engine:
    """Open a registered engine.

    Raises:
        ValueError: No engine has this name.
        LockedError: This process has it open for writing already.
        StorageError: Its rights do not allow it.
    """
    if options.path is not None:
        _check_not_open_here(options.path)
    registration = _registry.get(name)
    if registration is None:
        msg = f"no engine named {name!r}; there are {', '.join(engine_names())}"
        raise ValueError(msg)
    if options.path is not None and Path(options.path).is_file():
        _check_rights(options.path, read_only=options.read_only)
    return registration.factory(options)


def _open_lmdb(options: EngineOptions) -> Engine:
    from mvccstore.engine.journaled import open_lmdb

    return open_lmdb(options)


def _open_memory(options: EngineOptions) -> Engine:
    from mvccstore.engine.memory import MemoryEngine

    return MemoryEngine(options)


def _open_sqlite(options: EngineOptions) -> Engine:
    from mvccstore.engine.sqlite import SqliteEngine

    return SqliteEngine(options)


def _is_lmdb(header: bytes) -> bool:
    # Page 0 is a meta page: a 16-byte page header (flags at 10: 0x08 = meta), then the magic number.
    return len(header) >= 20 and header[16:20] in {b"\xde\xc0\xef\xbe", b"\xbe\xef\xc0\xde"}


register_engine("lmdb", _open_lmdb, recognizes=_is_lmdb)
register_engine("memory", _open_memory)
register_engine("sqlite", _open_sqlite, recognizes=lambda header: header.startswith(b"SQLite format 3\0"))
