"""Looking at an LMDB data file without mapping it.

A mapped file that ends before a page that something points to is a SIGBUS, which kills the interpreter.
So before a file is mapped, its two meta pages are read with plain reads and its length is held against
them. Only where the length falls short is every page walked (`lmdb.verify`, pure Python): a file may
rightly end early, if the last pages it handed out were given back before they were ever written.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from lmdb.verify import VerifyError, verify

from mvccstore.errors import CorruptError, FormatError, StorageError

# Of the page header only the flags; of the meta page magic, version, page size (the first field of the
# free database's record), then, past the two database records, the last page and the transaction id.
_META = Struct("=10xH4xII16xI92xQQ")
_META_FLAG = 0x08
_MAGIC = 0xBEEFC0DE
_DATA_VERSION = 1
_PAGE_SIZES = frozenset(1 << bits for bits in range(8, 17))
PROBLEMS_MAX = 100
# LMDB 0.9.36 forgets to take a page off a database's count when the last duplicate of a large set goes. The
# counts are for statistics only.
_MISCOUNT = re.compile(r"/(index|tails) DB: walked \d+ (leaf|branch) pages")


class _Meta(NamedTuple):
    flags: int
    magic: int
    version: int
    page_bytes: int
    last_page: int
    txn_id: int


def examine(path: str, *, may_extend: bool) -> bool:
    """Say whether the file holds a database, fit to be mapped; False if it is absent or empty.

    Args:
        path: The data file.
        may_extend: Whether a file that rightly ends early may be lengthened to its full size.

    Raises:
        FormatError: It is some other file.
        CorruptError: It is cut short or damaged.
        StorageError: It cannot be read.

    Cost: two small reads; O(file) only if the file is short.
    """
    try:
        with Path(path).open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return False
            first = _parse(path, file.read(_META.size))
            file.seek(first.page_bytes)
            second = _parse(path, file.read(_META.size))
            size = os.fstat(
                file.fileno()
            ).st_size  # last: a writer beside us makes it longer before a meta page says so
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(path, error.strerror or str(error)) from error
    newest = max(first, second, key=lambda meta: meta.txn_id)
    expected = (newest.last_page + 1) * newest.page_bytes
    if size < expected:
        problems = structure_problems(path)
        if problems:
            reason = f"cut short: {size:,} bytes of {expected:,}"
            raise CorruptError(path, reason, (reason, *problems))
        if may_extend:
            os.truncate(path, expected)
    return True


def _parse(path: str, header: bytes) -> _Meta:
    if len(header) < _META.size:
        if header[16:20] == _MAGIC.to_bytes(4, "little"):
            raise CorruptError(path, "cut short: it ends inside a meta page")
        raise FormatError(path, "not a store: too short to be one")
    meta = _Meta._make(_META.unpack(header))
    if meta.magic != _MAGIC:
        raise FormatError(path, "not a store, or one whose first pages were overwritten")
    if meta.version != _DATA_VERSION:
        raise FormatError(path, f"LMDB data format {meta.version & 0xFFFF}; this engine reads {_DATA_VERSION}")
    if not meta.flags & _META_FLAG or meta.page_bytes not in _PAGE_SIZES:
        raise CorruptError(path, "a meta page is damaged")
    return meta


def structure_problems(path: str) -> list[str]:
    """Walk every page of a file at rest and say what is wrong with it. Cost: O(file), about 20 us a page."""
    try:
        problems = verify(path, subdir=False)  # type: ignore[no-untyped-call]
        return [f"page structure: {problem}" for problem in problems if not _MISCOUNT.search(problem)][:PROBLEMS_MAX]
    except VerifyError as error:
        return [f"page structure: {error}"]
    except OSError as error:
        raise StorageError(path, error.strerror or str(error)) from error
