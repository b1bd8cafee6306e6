"""A directory tree as keys: every regular file is a key, its relative path with slashes; the value is its bytes.

Empty directories, permissions and times are not kept; symbolic links to files are read, those to directories
are not entered. A key can be a file only if its path stays below the directory and needs no other key to be a
directory; `PathPlan` says which cannot, before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NAME_BYTES_MAX = 255
_PATH_BYTES_MAX = 4_000
_STORE_SUFFIXES = ("", "-lock", "-writer", "-wal", "-shm", "-journal")


class TreeFile(NamedTuple):
    """A file below a directory."""

    name: bytes
    """The relative path, with slashes."""
    path: Path
    size: int


def files_below(directory: Path, *, store_path: str | None = None) -> list[TreeFile]:
    """Return every regular file below a directory in the order of their keys, without the store's own."""
    own = {Path(f"{store_path}{suffix}").absolute() for suffix in _STORE_SUFFIXES} if store_path else set()
    root = directory.absolute()
    found = [file for file in _walk(root) if file.path not in own]
    found.sort()
    return found


def _walk(root: Path) -> Iterator[TreeFile]:
    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(root, onerror=fail):
        below = Path(folder)
        prefix = os.fsencode(below.relative_to(root).as_posix())
        prefix = b"" if prefix == b"." else prefix + b"/"
        for name in names:
            path = below / name
            if path.is_file():
                yield TreeFile(prefix + os.fsencode(name), path, path.stat().st_size)


class PathPlan:
    """Decides, key by key in key order, which keys can be files below one directory."""

    def __init__(self) -> None:
        self._files: set[bytes] = set()

    def problem(self, name: bytes) -> str | None:
        """Return why a key (less its prefix) cannot be a file, None if it can."""
        parts = name.split(b"/")
        if b"" in parts or b"." in parts or b".." in parts:
            return "it is not a plain relative path"
        if b"\0" in name:
            return "it holds a zero byte"
        if max(map(len, parts)) > _NAME_BYTES_MAX or len(name) > _PATH_BYTES_MAX:
            return "it is too long for a file name"
        # A key sorts before every key below it, so of two that clash the file has been seen first.
        above = b""
        for part in parts[:-1]:
            above = above + b"/" + part if above else part
            if above in self._files:
                return "it would be below another key's file"
        self._files.add(name)
        return None


class TreeWriter:
    """Writes files below a directory, and nowhere else."""

    def __init__(self, directory: Path) -> None:
        self._root = directory
        self._made: set[Path] = set()

    def write(self, name: bytes, value: bytes) -> None:
        """Write one file.

        Raises:
            OSError: It cannot be written, or a symbolic link stands in the way.
        """
        path = self._root / os.fsdecode(name)
        self._make(path.parent)
        if path.is_symlink():
            path.unlink()  # or the bytes would go where it points
        path.write_bytes(value)

    def _make(self, folder: Path) -> None:
        if folder in self._made:
            return
        if folder != self._root:
            self._make(folder.parent)
            if folder.is_symlink():
                msg = "is a symbolic link; nothing is written through it"
                raise OSError(0, msg, str(folder))
        folder.mkdir(exist_ok=True)
        self._made.add(folder)
