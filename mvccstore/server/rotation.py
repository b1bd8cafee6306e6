"""A log file that is put aside when it has become large: etcd's `--enable-log-rotation`, with the names of its files.

Invariants:

* I1. What is put aside is compressed and removed on a thread of its own, one at a time: whoever logs does not wait.
* I2. A file that cannot be put aside is written on: a line is worth more than the limit.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from mvccstore.clock import Clock, SystemClock

_MEGABYTE = 1 << 20
_DAY_SECONDS = 86_400
_SIZE_DEFAULT = 100
_COMPRESSED = ".gz"
_TIME = "%Y-%m-%dT%H-%M-%S.%f"


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is put aside, and what becomes of it: `--log-rotation-config-json`, by its names."""

    maxsize: int = _SIZE_DEFAULT
    """Megabytes of a file; 0 for the default."""
    maxage: int = 0
    """Days that one is kept; 0 for ever."""
    maxbackups: int = 0
    """How many are kept; 0 for all."""
    localtime: bool = False
    """Whether the time in their names is the local one."""
    compress: bool = False


def rotation_of(text: str) -> Rotation:
    """Read a rotation.

    Raises:
        ValueError: It is none, in etcd's words as far as they are its own.
    """
    try:
        read = json.loads(text)
    except ValueError as error:
        msg = f"improperly formatted log rotation config: {error}"
        raise ValueError(msg) from error
    defaults: dict[str, Any] = asdict(Rotation())
    found: dict[str, Any] = {"it": read}
    if isinstance(read, dict):
        # As Go reads them: names in any case, those it does not know left out.
        named = {name.lower(): value for name, value in read.items() if value is not None}
        found = {name: value for name, value in named.items() if name in defaults}
    for name, value in found.items():
        is_of_its_type = type(value) is type(defaults.get(name, ...))
        if not is_of_its_type or value < 0:
            msg = f"invalid log rotation config: {name} is {json.dumps(value)}"
            raise ValueError(msg)
    return Rotation(**{"maxsize": 0, **found})


class _Aside(NamedTuple):
    """A file that was put aside; the latest is the largest."""

    time: datetime
    path: Path


class RotatedFile:
    """A file to write lines to, by one thread at a time.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, rotation: Rotation, clock: Clock | None = None) -> None:
        self._path = path
        self._rotation = rotation
        self._clock = clock or SystemClock()
        self._bytes_max = (rotation.maxsize or _SIZE_DEFAULT) * _MEGABYTE
        self._sweeping = threading.Lock()  # I1
        path.parent.mkdir(mode=0o744, parents=True, exist_ok=True)
        self._file = self._open()
        self._size = os.fstat(self._file).st_size
        self._begin_sweep()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, text: str) -> None:
        """Write, to a new file if the one there would become too large."""
        line = text.encode()
        if self._size and self._size + len(line) > self._bytes_max:
            with suppress(OSError):  # I2
                self._rotate()
        self._size += os.write(self._file, line)

    def flush(self) -> None:
        """Do nothing: what is written is with the system."""

    def close(self) -> None:
        """Close it."""
        os.close(self._file)

    def _rotate(self) -> None:
        seconds = self._clock.time_ms() / 1_000
        now = datetime.fromtimestamp(seconds, None if self._rotation.localtime else UTC)
        self._path.rename(self._path.with_name(f"{self._path.stem}-{now.strftime(_TIME)[:-3]}{self._path.suffix}"))
        file = self._open()
        os.fchmod(file, os.fstat(self._file).st_mode & 0o777)
        os.close(self._file)
        self._file, self._size = file, 0
        self._begin_sweep()

    # What was put aside

    def _begin_sweep(self) -> None:
        rotation = self._rotation
        if rotation.maxbackups or rotation.maxage or rotation.compress:
            threading.Thread(target=self._sweep, name="log rotation").start()

    def _sweep(self) -> None:
        """Remove what is too much or too old, and compress the rest."""
        rotation = self._rotation
        with self._sweeping, suppress(OSError):
            files = sorted(self._aside(), reverse=True)
            times = sorted({file.time for file in files}, reverse=True)
            kept = set(times[: rotation.maxbackups or None])
            if rotation.maxage:
                oldest = self._clock.time_ms() / 1_000 - rotation.maxage * _DAY_SECONDS
                kept = {time for time in kept if time.timestamp() >= oldest}
            for file in files:
                if file.time not in kept:
                    file.path.unlink(missing_ok=True)
                elif rotation.compress and file.path.suffix != _COMPRESSED:
                    _compress(file.path)

    def _aside(self) -> Iterator[_Aside]:
        prefix, suffix = f"{self._path.stem}-", self._path.suffix
        for path in self._path.parent.iterdir():
            name = path.name.removesuffix(_COMPRESSED)
            if name.startswith(prefix) and name.endswith(suffix):
                with suppress(ValueError):  # another's file
                    found = datetime.strptime(name[len(prefix) : len(name) - len(suffix)], _TIME)
                    yield _Aside(found.replace(tzinfo=UTC), path)


def _compress(path: Path) -> None:
    target = path.with_name(path.name + _COMPRESSED)
    try:
        with path.open("rb") as plain, gzip.open(target, "wb") as packed:
            shutil.copyfileobj(plain, packed)
    except OSError:
        target.unlink(missing_ok=True)
        raise
    path.unlink()
