"""The few numbers that every rule needs, and where they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from mvccstore.codec import FORMAT_VERSION, UNPACK_ERRORS, entry_floor, main_of, pack, unpack, unpack_u64
from mvccstore.errors import CorruptError, FormatError
from mvccstore.tables import ReadTxn, Table, WriteTxn

FIRST_REVISION = 1
"""Of an empty store; the first write makes 2."""
NEVER_COMPACTED = -1

_FORMAT = b"format"
_COMPACTION = b"compaction"


@dataclass(frozen=True, slots=True)
class Compaction:
    """How far history is forgotten, and how far what was forgotten is gone from the tables.

    While a pass runs, `target` is what it reclaims up to and `cursor` the last log key it has looked at;
    between passes both are as at the start.
    """

    revision: int = NEVER_COMPACTED
    """Reads below it are refused."""
    reclaimed: int = NEVER_COMPACTED
    """Everything superseded at or below it is gone."""
    target: int = NEVER_COMPACTED
    cursor: bytes = b""


class State(NamedTuple):
    """The store as of one committed write: made for each, so it is a tuple."""

    revision: int
    at: bytes
    """The index entry to seek to read at `revision`."""
    compaction: Compaction
    time_ms: int
    """The last commit time kept; see `mvccstore.mvcc.times`."""

    @property
    def floor(self) -> int:
        """The compact revision."""
        return self.compaction.revision


def load(txn: ReadTxn, path: str) -> State:
    """Read the state. Four lookups, whatever the size of the store."""
    last = txn.page(Table.LOG, b"", None, 1, reverse=True)
    compaction = load_compaction(txn, path)
    times = txn.page(Table.TIMES, b"", None, 1, reverse=True)
    # The newest records may be tombstones that compaction has dropped; the counter never goes back.
    revision = max(FIRST_REVISION, main_of(last[0][0]) if last else 0, compaction.revision)
    return State(revision, entry_floor(revision), compaction, unpack_u64(times[0][1]) if times else 0)


def load_compaction(txn: ReadTxn, path: str) -> Compaction:
    """Read how far compaction is."""
    packed = txn.get(Table.META, _COMPACTION)
    if packed is None:
        return Compaction()
    if packed[:4] != crc32(packed[4:]).to_bytes(4):
        raise CorruptError(path, "the compaction record does not match its checksum")
    try:
        revision, reclaimed, target, cursor = unpack(packed[4:])
    except UNPACK_ERRORS as error:
        raise CorruptError(path, f"the compaction record cannot be read: {error}") from error
    for number in (revision, reclaimed, target):
        if type(number) is not int or not NEVER_COMPACTED <= number < 2**63:
            raise CorruptError(path, f"the compaction record has {number!r} for a revision")
    if type(cursor) is not bytes:
        raise CorruptError(path, f"the compaction record has {cursor!r} for a cursor")
    return Compaction(revision, reclaimed, target, cursor)


def save_compaction(txn: WriteTxn, compaction: Compaction) -> None:
    """Store how far compaction is."""
    fields = (compaction.revision, compaction.reclaimed, compaction.target, compaction.cursor)
    packed = pack(fields)
    txn.put(Table.META, _COMPACTION, crc32(packed).to_bytes(4) + packed)


def check_format(txn: ReadTxn, path: str) -> bool:
    """Say whether the tables hold a store; False if they are all empty.

    Raises:
        FormatError: They hold something else, or a store of a newer format.
    """
    packed = txn.get(Table.META, _FORMAT)
    if packed is None:
        if any(txn.length(table) for table in (*Table, None)):
            raise FormatError(path, "it has tables, but they are not a store's")
        return False
    try:
        version = unpack(packed)["version"]
    except (*UNPACK_ERRORS, KeyError) as error:
        raise CorruptError(path, f"the format record cannot be read: {error}") from error
    if version != FORMAT_VERSION:
        raise FormatError(path, f"a store of format {version}; this version reads {FORMAT_VERSION}")
    return True


def save_format(txn: WriteTxn) -> None:
    """Mark the tables as a store."""
    txn.put(Table.META, _FORMAT, pack({"name": "mvccstore", "version": FORMAT_VERSION}))
