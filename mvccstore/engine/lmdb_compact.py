"""Making an LMDB file as small as what is in it, and putting it in the place of the one in use.

Not by LMDB's compacting copy, which crashes on keys with many versions (see `copy_pages`), but record by record
in order, so that pages come out full.

A data file and a lock file belong together: the lock file repeats the number of the last transaction, and has
the readers that keep pages from reuse. So the new data file gets a new lock file. In between, processes are
kept from opening either by a *gate*, a `flock` on the data file that has the name at the moment; and if the
process that exchanges them dies there, whoever opens the new file next sees that the lock file is not its own
(`is_foreign`), as the numbers of transactions in the two files are never close to each other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from mvccstore.engine import EngineOptions
from mvccstore.engine.disk import fsync_directory
from mvccstore.engine.disk import translated as disk_translated
from mvccstore.engine.lmdb_environment import DATABASES_MAX, open_environment, translated
from mvccstore.errors import CorruptError, LockedError

CHUNK_RECORDS = 10_000
CHUNK_BYTES = 8 << 20
GATE_STEPS = 1_000
GATE_STEP_SECONDS = 0.01
_NO_FLOCK = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
_FILLER = b"defragment"

Identity = tuple[int, int]
_Row = tuple[bytes, bytes]


def compact_path(path: str) -> str:
    """Return the name that the small file has until it is complete."""
    return f"{os.path.realpath(path)}-defragment"


def identity(path: str) -> Identity | None:
    """Say which file has a name; None if none has it. One system call."""
    try:
        found = os.stat(path)  # noqa: PTH116 - on the way of every read beside a writer: a Path costs more than the call
    except OSError:
        return None
    return found.st_dev, found.st_ino


# Writing it


def write_compact(
    txn: lmdb.Transaction[bytes], plain: Mapping[bytes, Any], multiple: Mapping[bytes, Any], path: str, map_bytes: int
) -> None:
    """Write all records that a transaction sees to a file of its own, `compact_path(path)`, and sync it.

    Args:
        txn: Reads the newest state of the store at `path`.
        plain: Its databases with one value a key, by name.
        multiple: Those with several.
        path: The store's.
        map_bytes: Address space to reserve at first.

    Raises:
        StorageFullError: There is no room for it beside the old one.
        CorruptError: A database is out of order.

    Cost: O(data), about 2 us a record.
    """
    name = compact_path(path)
    try:
        Path(name).unlink(missing_ok=True)
        mode = Path(path).stat().st_mode & 0o777
        # Without a lock file, which would be one of this name; nobody else opens it.
        environment = lmdb.open(
            name, subdir=False, map_size=map_bytes, max_dbs=DATABASES_MAX, lock=False, sync=False, mode=mode
        )
        try:
            for database_name, source in (*plain.items(), *multiple.items()):
                is_multiple = database_name in multiple
                target = environment.open_db(database_name, dupsort=is_multiple, dupfixed=is_multiple)
                copied = 0
                for chunk in _chunks(txn.cursor(source)):
                    _put(environment, target, chunk)
                    copied += len(chunk)
                with environment.begin() as written:
                    if written.stat(target)["entries"] != copied:
                        raise CorruptError(path, f"the {database_name.decode()} table is out of order")
            while abs(environment.info()["last_txnid"] - txn.id()) <= 1:
                _count_up(environment, environment.open_db(next(iter(plain))))
            environment.sync(True)
        finally:
            environment.close()
    except lmdb.Error as error:
        raise translated(error, path) from error
    except OSError as error:
        raise disk_translated(path, error) from error


def _chunks(cursor: lmdb.Cursor[bytes]) -> Iterator[list[_Row]]:
    chunk: list[_Row] = []
    chunk_bytes = 0
    for row in cursor.iternext(True, True):
        chunk.append(row)
        chunk_bytes += len(row[0]) + len(row[1])
        if chunk_bytes >= CHUNK_BYTES or len(chunk) >= CHUNK_RECORDS:
            yield chunk
            chunk, chunk_bytes = [], 0
    if chunk:
        yield chunk


def _put(environment: lmdb.Environment, database: Any, chunk: list[_Row]) -> None:
    while True:
        try:
            with environment.begin(write=True) as txn:
                txn.cursor(database).putmulti(chunk, dupdata=True, overwrite=True, append=True)
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 2)
        else:
            return


def _count_up(environment: lmdb.Environment, database: Any) -> None:
    with environment.begin(write=True) as txn:
        txn.put(_FILLER, b"", db=database)
        txn.delete(_FILLER, db=database)


# Putting it in place


@contextmanager
def gate(path: str, *, exclusive: bool) -> Iterator[None]:
    """Keep the file under a name from being exchanged, or with `exclusive` from being opened, during a block.

    Raises:
        LockedError: Somebody has been opening or exchanging it for ten seconds.
    """
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield  # a new one, that only its writer knows
            return
        except OSError as error:
            raise disk_translated(path, error) from error
        try:
            _flock(fd, path, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            held = os.fstat(fd)
            if identity(path) == (held.st_dev, held.st_ino):  # or it was exchanged as we waited
                yield
                return
        finally:
            os.close(fd)


def _flock(fd: int, path: str, how: int) -> None:
    for _ in range(GATE_STEPS):
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            threading.Event().wait(GATE_STEP_SECONDS)
        except OSError as error:
            if error.errno in _NO_FLOCK:  # a file system without: no other process should be there, either
                return
            raise disk_translated(path, error) from error
        else:
            return
    raise LockedError(path, "a process that is opening it")


def put_in_place(path: str) -> None:
    """Give the small file the store's name, durably, and have the lock file made anew. In the exclusive gate.

    Raises:
        StorageError: It could not; what has the name now, `identity` tells.
    """
    try:
        Path(compact_path(path)).replace(os.path.realpath(path))
        fsync_directory(os.path.realpath(path))
        Path(f"{path}-lock").unlink(missing_ok=True)
    except OSError as error:
        raise disk_translated(path, error) from error


def open_shared(path: str, options: EngineOptions, map_bytes: int) -> tuple[lmdb.Environment, int, Identity | None]:
    """Open the file that has a name, with a lock file that is its own; return what was mapped, and which file it is."""
    with gate(path, exclusive=False):
        environment, mapped_bytes = open_environment(path, options, map_bytes)
        if not _is_foreign(environment):
            return environment, mapped_bytes, identity(path)
        environment.close()
    with gate(path, exclusive=True):
        environment, mapped_bytes = open_environment(path, options, map_bytes)
        if _is_foreign(environment):  # still, so that there is no writer, who would have seen to it
            environment.close()
            try:
                Path(f"{path}-lock").unlink(missing_ok=True)
            except OSError as error:
                raise disk_translated(path, error) from error
            environment, mapped_bytes = open_environment(path, options, map_bytes)
        return environment, mapped_bytes, identity(path)


def _is_foreign(environment: lmdb.Environment) -> bool:
    """Say whether the lock file was made for another data file."""
    # A writer in another process, which may commit meanwhile, writes to the data file first.
    before = environment.info()["last_txnid"]
    with environment.begin() as txn:
        in_lock_file = txn.id()
    return not before - 1 <= in_lock_file <= environment.info()["last_txnid"]
