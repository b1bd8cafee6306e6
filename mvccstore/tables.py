"""The shape of stored data: the tables, and what a transaction over them can do.

It belongs to the values so that both sides can see it: the rules read and write through these protocols,
and the engines implement them, without either importing the other.

There are six plain tables, each an ordered map of bytes to bytes, and one index:

| table | key | value |
|---|---|---|
| META | name | msgpack |
| LOG | 16 bytes: main 8, sub and two flags 4, CRC-32 of the record 4 | record |
| TIMES | main 8 | milliseconds since the epoch 8 |
| LEASES | lease id 8, sign bit flipped | msgpack |
| ATTACHED | lease id 8, then the log key of the attached key's newest record 16 | nothing |
| DROPS | number 8 | log keys that compaction has taken out of the index but not yet out of the log |
| index | user key, any length | for each version its log key, create revision 8 and version 8, all complemented bytewise so that the newest sorts first |

The index is not a plain table: it maps a key of any length to a sorted set of 32-byte entries, and
engines answer "the first entry at or after X of each key" without looking at the others, however many
versions a key has.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from enum import StrEnum
from typing import Final, Protocol, TypeVar

LOG_KEY_BYTES: Final = 16
ENTRY_BYTES: Final = 32

R = TypeVar("R")
W = TypeVar("W", bound="WriteTxn")


class Table(StrEnum):
    """The plain tables. The value is the name an engine stores the table under."""

    META = "meta"
    LOG = "log"
    TIMES = "times"
    LEASES = "leases"
    ATTACHED = "attached"
    DROPS = "drops"


class ReadTxn(Protocol):
    """A consistent view of every table, as of when it was begun. Used by one thread, briefly."""

    def get(self, table: Table, key: bytes, /) -> bytes | None:
        """Return the value of `key`, or None. One lookup."""
        ...

    def get_many(self, table: Table, keys: list[bytes], /) -> list[bytes | None]:
        """Return the value of each key, in the order asked. One lookup each."""
        ...

    def page(
        self, table: Table, start: bytes, end: bytes | None, limit: int, /, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` records with start <= key < end; from the last one back if `reverse`."""
        ...

    def newest(self, key: bytes, /) -> bytes | None:
        """Return the first index entry of `key`, or None. One lookup."""
        ...

    def newest_at(self, key: bytes, at: bytes, /) -> bytes | None:
        """Return the first index entry of `key` that is >= `at`, or None. One lookup."""
        ...

    def newest_page(self, start: bytes, end: bytes | None, at: bytes, limit: int, /) -> list[tuple[bytes, bytes]]:
        """Return (key, first entry >= `at`) for up to `limit` keys with start <= key < end, in key order.

        Keys without such an entry are passed over. Fewer than `limit` rows mean the range is exhausted.
        """
        ...

    def entries(self, key: bytes, start: bytes, limit: int, /, *, reverse: bool = False) -> list[bytes]:
        """Return up to `limit` index entries of `key` from `start` (included) up, or down if `reverse`."""
        ...

    def length(self, table: Table | None, /) -> int:
        """Return the number of records of a table, or of index entries for None. No scan where it can be had."""
        ...

    def close(self) -> None:
        """Give the view up. Closing twice is harmless."""
        ...


class WriteTxn(ReadTxn, Protocol):
    """The only writer: sees its own writes, and nobody else does until `commit`.

    Any call may raise `RetryWrite`: the transaction is then gone and nothing of it happened, and the
    same calls on a new one will get further.
    """

    def put(self, table: Table, key: bytes, value: bytes, /) -> None:
        """Insert or replace one record."""
        ...

    def append(self, table: Table, key: bytes, value: bytes, /) -> None:
        """Insert a record whose key is above every key of the table."""
        ...

    def delete(self, table: Table, keys: list[bytes], /) -> None:
        """Remove the records of `keys`; absent ones are passed over."""
        ...

    def add(self, key: bytes, entry: bytes, /) -> None:
        """Add one 32-byte entry to the index set of `key`."""
        ...

    def remove(self, key: bytes, entries: list[bytes], /) -> None:
        """Remove entries from the index set of `key`; absent ones are passed over."""
        ...

    def commit(self) -> None:
        """Make all of it visible at once, and as durable as the engine was told to. Ends the transaction."""
        ...

    def has_committed(self) -> bool:
        """Say whether a `commit` that was interrupted has done it. Asked before `close`, and before the next writer."""
        ...


class MovableTxn(WriteTxn, Protocol):
    """A write transaction that any thread may end, and that does not have to wait for its sync."""

    def write_record(self) -> int | None:
        """Write what `commit` would; return the descriptor of what has to be synced then, None if nothing has.

        Nothing more may be changed after it.
        """
        ...

    def note_synced(self, error: OSError | None) -> None:
        """Note that this was synced, so that `commit` need not. Raises if it failed."""
        ...


class RetryWrite(Exception):  # noqa: N818 - a signal between engine and store, never an error of the user
    """The engine made room by giving up the write transaction; run it again."""


def written(begin: Callable[[], W], work: Callable[[W], R]) -> R:
    """Run some work in a write transaction, which it commits; again, when the engine has given that up.

    Returns: What the work does.
    """
    while True:
        try:
            with closing(begin()) as txn:
                return work(txn)
        except RetryWrite:
            pass
