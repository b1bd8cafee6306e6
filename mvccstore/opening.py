"""Opening a store: which engine, which file, with what options."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from mvccstore.clock import Clock
from mvccstore.engine import DEFAULT_ENGINE, JOURNALING_ENGINES, Engine, EngineOptions, detect_engine, open_engine
from mvccstore.errors import FormatError
from mvccstore.options import Durability, Limits, Retention
from mvccstore.replicator import Replicator
from mvccstore.store import Store


def open_store(
    path: str | os.PathLike[str] | None = None,
    *,
    engine: str | Engine | None = None,
    read_only: bool = False,
    create: bool = True,
    durability: Durability | Literal["fsync", "interval", "os"] = Durability.FSYNC,
    sync_interval: float = 1.0,
    limits: Limits | None = None,
    quota_bytes: int = 0,
    retention: Retention | None = None,
    journal: bool = False,
    clock: Clock | None = None,
    replicator: Callable[[Store], Replicator] | None = None,
) -> Store:
    """Open a store, creating it if there is none.

    Args:
        path: The store's file. Without one, the store is in memory and gone when it is closed.
        engine: `lmdb` (default for a new file), `sqlite`, `memory`, a name given to `register_engine`, or an
            engine. Of a file that exists, the engine is recognized.
        read_only: Read beside a process that writes. Snapshots are then not safe from its compactions: they
            raise `CompactedError` when their revision is gone.
        create: Whether to make a file that does not exist.
        durability: What a write survives when it returns; see `Durability`.
        sync_interval: Seconds between syncs, for `interval`.
        limits: The largest requests to accept.
        quota_bytes: Refuse to grow beyond this, with `StorageFullError`; 0 for no quota. Deletes and compaction
            still work, and make room.
        retention: History to keep; older is compacted by itself. Without one, all history stays.
        journal: Commit to a journal beside the file, and to the file later, many commits at once: with `fsync` and
            on LMDB alone. A write is as durable as without, and takes two thirds of the time (284 us against 415, one
            thread); other processes that read the file see it two seconds later or, under load, as soon as 4,000 have come.
        clock: Where time comes from; a test's own, or the system's.
        replicator: Makes what decides when a write may be applied; by default, at once.

    Raises:
        LockedError: Another process, or this one, has it open for writing.
        FormatError: The file is not a store, or one of a newer format.
        CorruptError: The file is damaged.
        StorageError: It cannot be opened or created.

    Cost: the same at any size: a few reads.
    """
    for name, number, allowed in (("quota_bytes", quota_bytes, int), ("sync_interval", sync_interval, (int, float))):
        if not isinstance(number, allowed) or number < 0:
            msg = f"{name} is {number!r}, not a number from 0 up"
            raise ValueError(msg)
    for name, value, kind in (("limits", limits, Limits), ("retention", retention, Retention)):
        if value is not None and not isinstance(value, kind):
            msg = f"{name} is a {type(value).__name__}, not a {kind.__name__}"
            raise TypeError(msg)
    if engine is not None and not isinstance(engine, str) and not hasattr(engine, "write"):
        msg = f"engine is a {type(engine).__name__}, neither a name nor an engine"
        raise TypeError(msg)
    durability = Durability(durability)
    if journal and durability is not Durability.FSYNC:
        msg = f"a journal is for durability 'fsync'; with {durability.value!r} there is nothing that it could save"
        raise ValueError(msg)
    if engine is None or isinstance(engine, str):
        opened = _open_engine(
            EngineOptions(
                None if path is None else os.fspath(path),
                read_only,
                sync_commits=durability is Durability.FSYNC,
                create=create,
                journal=journal,
            ),
            engine,
        )
    else:
        opened = engine
    try:
        return Store(
            opened,
            durability=durability,
            sync_interval=sync_interval,
            read_only=read_only,
            limits=limits,
            quota_bytes=quota_bytes,
            retention=retention,
            clock=clock,
            replicator=replicator,
        )
    except BaseException:
        opened.close()
        raise


def _open_engine(options: EngineOptions, name: str | None) -> Engine:
    path = options.path
    if not isinstance(path, str | None):
        msg = f"path is {path!r}; give text, not bytes"
        raise TypeError(msg)
    found = detect_engine(path) if path is not None else None
    if name is not None and found is not None and found != name:
        raise FormatError(path or "", f"a store of the {found} engine, not of {name}")
    if name == "sqlite" and found is None and path is not None and Path(path).is_file() and Path(path).stat().st_size:
        raise FormatError(path, "not a store")  # SQLite takes any file that is too short for one as a new one
    chosen = name or found or (DEFAULT_ENGINE if path is not None else "memory")
    if options.journal and chosen not in JOURNALING_ENGINES:
        msg = f"the {chosen} engine has no journal; there is one for {', '.join(sorted(JOURNALING_ENGINES))}"
        raise ValueError(msg)
    return open_engine(chosen, options)
