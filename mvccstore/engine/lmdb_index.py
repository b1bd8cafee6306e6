"""The index on LMDB: a key of any length, and the sorted set of its 32-byte entries.

Owns the two DUPSORT databases `index` and `tails`. LMDB keys end at 511 bytes, ours do not, so a long key
is cut into chunks: a trie whose nodes hold up to 502 bytes of key at each step, and whose root (`index`,
510 bytes) is all that short keys ever touch.

Invariants:

* I1: A record of up to 510 bytes of key holds entries: in `index` under the whole user key, in `tails`
  under a node id (8 bytes) and the last 1 to 502 bytes of the user key.
* I2: A record of 511 bytes of key is a link: a full chunk (510 bytes in `index`; node id and 502 bytes in
  `tails`) and a zero byte. Its only duplicate is 24 zero bytes and the id of the node where the keys that
  go on after the chunk lie.
* I3: Every duplicate is 32 bytes.
* I4: Every node has exactly one link and at least one record.
* I5: A link's id is above the id of the node that it is in, so following links ends, whatever is stored.
* I6: The record of `tails` with the one-byte key 0 is the number of links; there is none if that is 0.

Example, with chunks of 3 bytes instead of 510 and 502 (id 1 shown as <1>, entries as e, f):

| after | index | tails |
|---|---|---|
| add abc e | abc: e | |
| add abcdef f | abc: e; abc0: <1> | 0: 1; <1>def: f |
| add abcdefgh e | abc: e; abc0: <1> | 0: 2; <1>def: f; <1>def0: <2>; <2>gh: e |
| remove abcdef f | abc: e; abc0: <1> | 0: 2; <1>def0: <2>; <2>gh: e |
| remove abcdefgh e | abc: e | |

The zero byte makes a link sort after the key that is its chunk and before all that is greater, so walking
the trie depth first is walking the keys in order; and the link's own 511 bytes are a lower bound of the
keys below it, so that a range's end applies to it unchanged. An id is 1 above the greatest node's, which
needs no counter and gives I5.

Why not a hash of the tail, in one step: it keeps no order, and ranges need it. Why is the id not in the
link's key: finding it would be a seek and a comparison where this is one get, and two links could then
share a chunk. Why the id in the low half of a link's value: entries searched for are above any link's
value in practice, so the one comparison that a page makes for each row (is its first entry in sight?)
also finds the links among the rows.

Sizes (I3) are checked where a value is first read; that LMDB keeps one size for all duplicates of a key
(DUPFIXED) is relied on. One damage passes a page of short keys at newest unseen, as seeing it costs 20 ns
a row: a link whose 24 zero bytes became something above `at` is taken for a key, of 511 bytes, whose entry
names no log record. `problems` checks all of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from typing import NoReturn

from lmdb import Cursor, Environment, Transaction, _Database

from mvccstore.errors import CorruptError
from mvccstore.tables import ENTRY_BYTES

SHORT_BYTES_MAX = 510
"""The longest key that is one record; the store is fastest up to here."""

_TAIL_BYTES_MAX = 502  # what a node id leaves of it
_ID_BYTES = 8
_ID_MAX = b"\xff" * _ID_BYTES
_LINK_MARK = b"\0"
_LINK_HEAD = bytes(ENTRY_BYTES - _ID_BYTES)
_LINK_VALUE_MAX = _LINK_HEAD + _ID_MAX
_COUNT_KEY = b"\0"
_ABOVE = b"\xff" * 512  # sorts above every record of `index`, and with a node id before it, of that node
_FIRST_ROWS = 16  # a bounded page reads so many rows first, then 8 times as many, to read few beyond its end
_ROWS_MIN = 64  # rows read at a time when most turn out to be of no use
_SMALL_SET = 4
_RUN_MIN = 16  # from so many entries on, removing neighbours by a cursor costs less than one by one

_Row = tuple[bytes, bytes]
_first_of = itemgetter(0)


@dataclass(slots=True)
class _Node:
    """Where a walk through the trie is, in one node."""

    id: bytes
    """Empty for the root."""
    spelled: int
    """Bytes of user key that the links down to here spell."""
    rows: Iterator[_Row]
    end: bytes
    """The node's record where the walk ends."""
    is_at_start: bool
    """Whether those bytes are the range's start, as far as it goes; else all of the node is after it."""
    is_at_end: bool
    """The same for the range's end."""


class LmdbIndex:
    """The two databases behind the index operations of `mvccstore.tables`.

    Every method takes the transaction first and leaves nothing open in it. No state is kept between
    calls, so one object serves all threads. Keys are never empty, entries and `at` are 32 bytes.

    Raises:
        CorruptError: From any method, if stored bytes break an invariant that it relies on.
    """

    __slots__ = ("_index", "_path", "_tails")

    def __init__(self, index: _Database, tails: _Database, path: str) -> None:
        self._index, self._tails, self._path = index, tails, path

    @classmethod
    def open(
        cls, env: Environment, path: str, *, txn: Transaction[bytes] | None = None, create: bool = True
    ) -> LmdbIndex:
        """Open the databases `index` and `tails` of `env`; `path` is for messages."""
        index, tails = (
            env.open_db(name, txn=txn, create=create, dupsort=True, dupfixed=True) for name in (b"index", b"tails")
        )
        return cls(index, tails, path)

    @property
    def databases(self) -> tuple[_Database, _Database]:
        """Those it is in."""
        return self._index, self._tails

    def newest(self, txn: Transaction[bytes], key: bytes) -> bytes | None:
        """Return the first entry of `key`, or None. Cost: one lookup, and one for each 502 bytes beyond 510."""
        if len(key) <= SHORT_BYTES_MAX:
            entry = txn.get(key, None, self._index)
        else:
            stored = self._stored(txn, key)
            if stored is None:
                return None
            entry = txn.get(stored, None, self._tails)
            if entry is None:
                self._check_used(txn, stored)
        if entry is not None and len(entry) != ENTRY_BYTES:
            self._fail(f"entry of {len(entry)} bytes", key)  # I3
        return entry

    def newest_at(self, txn: Transaction[bytes], key: bytes, at: bytes) -> bytes | None:
        """Return the first entry of `key` that is >= `at`, or None. Cost: as `newest`, however many it has."""
        if len(key) <= SHORT_BYTES_MAX:
            cursor = txn.cursor(self._index)
            if not cursor.set_range_dup(key, at):
                return None
        else:
            stored = self._stored(txn, key)
            if stored is None:
                return None
            cursor = txn.cursor(self._tails)
            if not cursor.set_range_dup(stored, at):
                self._check_used(txn, stored)
                return None
        entry = cursor.value()
        if len(entry) != ENTRY_BYTES:
            self._fail(f"entry of {len(entry)} bytes", key)  # I3
        return entry

    def newest_page(
        self, txn: Transaction[bytes], start: bytes, end: bytes | None, at: bytes, limit: int
    ) -> list[_Row]:
        """Return (key, first entry >= `at`) for up to `limit` keys with start <= key < end, in key order.

        Keys without such an entry are passed over. Fewer than `limit` rows mean the range is exhausted.

        Cost: one cursor step a key if its first entry is in sight; else one seek more. A long key costs a
        seek for each of its chunks that it does not share with the key before.
        """
        cursor = txn.cursor(self._index)
        if len(start) > SHORT_BYTES_MAX or limit <= 0:
            return self._walk(txn, self._root(cursor, start, end), [], start, end, at, limit)
        # After a seek that fails the cursor has no place, and iterating would begin at the first key.
        if not cursor.set_range(start):
            return []
        rest = cursor.iternext_nodup(True, True)
        rows = list(islice(rest, limit)) if end is None else _rows_until(rest, end, limit)
        for _, entry in rows:
            if entry < at or len(entry) != ENTRY_BYTES:
                break
        else:
            if at > _LINK_VALUE_MAX or not _has_link(rows):
                return rows
        return self._page_at(txn, rows, rest, end, at, limit)

    def entries(
        self, txn: Transaction[bytes], key: bytes, start: bytes, limit: int, *, reverse: bool = False
    ) -> list[bytes]:
        """Return up to `limit` entries of `key` from `start` (included) up, or down if `reverse`.

        Cost: as `newest_at`, and a cursor step for each entry returned.
        """
        stored = key if len(key) <= SHORT_BYTES_MAX else self._stored(txn, key)
        if stored is None:
            return []
        cursor = txn.cursor(self._index if stored is key else self._tails)
        if not reverse:
            is_found = cursor.set_range_dup(stored, start)
            found = list(islice(cursor.iternext_dup(False, True), limit)) if is_found else []
        else:
            if cursor.set_range_dup(stored, start):
                is_found = cursor.value() == start or cursor.prev_dup()
            else:
                is_found = cursor.set_key(stored) and cursor.last_dup()
            found = list(islice(cursor.iterprev_dup(False, True), limit)) if is_found else []
        if found and len(found[0]) != ENTRY_BYTES:
            self._fail(f"entry of {len(found[0])} bytes", key)  # I3
        if not found and stored is not key:
            self._check_used(txn, stored)
        return found

    def length(self, txn: Transaction[bytes]) -> int:
        """Return the number of entries of all keys. Cost: one lookup."""
        links = self._link_count(txn)
        # I6: every link is a record too, and so is their count.
        extra = links + 1 if links else 0
        count: int = txn.stat(self._index)["entries"] + txn.stat(self._tails)["entries"] - extra
        if count < 0:
            self._fail(f"{links} links counted in fewer records", _COUNT_KEY)
        return count

    def add(self, txn: Transaction[bytes], key: bytes, entry: bytes) -> None:
        """Add one entry to the set of `key`. Cost: one insert, and one lookup for each chunk of a long key."""
        if len(key) <= SHORT_BYTES_MAX:
            assert len(entry) == ENTRY_BYTES
            txn.put(key, entry, True, True, False, self._index)
        else:
            self._add_long(txn, key, entry)

    def remove(self, txn: Transaction[bytes], key: bytes, entries: list[bytes]) -> None:
        """Remove entries from the set of `key`; absent ones are passed over.

        Cost: one delete each; a third of that for many that are neighbours, given in either order.
        """
        if len(key) <= SHORT_BYTES_MAX:
            _remove(txn, self._index, key, entries)
            return
        links, node, spelled = self._descend(txn, key)
        if not links or len(key) - spelled > _TAIL_BYTES_MAX:
            return
        _remove(txn, self._tails, node + key[spelled:], entries)
        # I4: a node without records loses its link, which may leave the node above without any.
        cursor, dropped = txn.cursor(self._tails), 0
        while links and not (cursor.set_range(node) and cursor.key().startswith(node)):
            link = links.pop()
            txn.delete(link, b"", self._tails if links else self._index)
            node, dropped = link[:_ID_BYTES], dropped + 1
        if dropped:
            self._put_link_count(txn, self._link_count(txn) - dropped)

    def problems(self, txn: Transaction[bytes]) -> list[str]:
        """Check every invariant and say what is wrong. Cost: a cursor step for every key."""
        found: list[str] = []
        linked: list[bytes] = []
        used: set[bytes] = set()
        for name, db in (("index", self._index), ("tails", self._tails)):
            cursor = txn.cursor(db)
            for key, value in cursor.iternext_nodup(True, True):
                where = f"{name}: {_shown(key)}"
                if name == "tails" and key == _COUNT_KEY:
                    continue
                node = b"" if name == "index" else key[:_ID_BYTES]
                used.add(node)
                if len(value) != ENTRY_BYTES:
                    found.append(f"{where}: I3: entry of {len(value)} bytes")
                elif len(key) > SHORT_BYTES_MAX:
                    linked.append(value[-_ID_BYTES:])
                    if not _is_link(key, value) or cursor.count() != 1:
                        found.append(f"{where}: I2: malformed link")
                    elif linked[-1] <= node:
                        found.append(f"{where}: I5: link to node {linked[-1].hex()}")
                elif node and len(key) <= _ID_BYTES:
                    found.append(f"{where}: I1: entries without a key")
        used.discard(b"")
        targets = set(linked)
        if len(targets) != len(linked):
            found.append(f"tails: I4: {len(linked)} links to {len(targets)} nodes")
        found += [f"tails: I4: link to empty node {node.hex()}" for node in sorted(targets - used)]
        found += [f"tails: I4: no link to node {node.hex()}" for node in sorted(used - targets)]
        try:
            counted = self._link_count(txn)
        except CorruptError as error:
            found.append(f"tails: I6: {error.reason}")
        else:
            if counted != len(linked):
                found.append(f"tails: I6: {len(linked)} links, counted as {counted}")
        return found

    def _page_at(
        self, txn: Transaction[bytes], rows: list[_Row], rest: Iterator[_Row], end: bytes | None, at: bytes, limit: int
    ) -> list[_Row]:
        """Finish a page whose first rows, as read, do not do: filter and refill it until a link comes up."""
        out: list[_Row] = []
        seek = txn.cursor(self._index)
        find, value = seek.set_range_dup, seek.value
        while rows:
            if _has_link(rows):
                bound = _ABOVE if end is None else end
                root = _Node(b"", 0, chain(rows, rest), bound, is_at_start=False, is_at_end=end is not None)
                return self._walk(txn, root, out, b"", end, at, limit)
            # One expression, so that a row costs a seek and no more bytecode than it must.
            out += [(key, entry if entry >= at else value()) for key, entry in rows if entry >= at or find(key, at)]
            want = limit - len(out)
            if want <= 0:
                del out[limit:]
                break
            rows = list(islice(rest, max(want, _ROWS_MIN)))
            if end is not None and rows and rows[-1][0] >= end:
                del rows[bisect_left(rows, end, key=_first_of) :]
        for key, entry in out:
            if len(entry) != ENTRY_BYTES:
                self._fail(f"entry of {len(entry)} bytes", key)  # I3
        return out

    def _walk(
        self,
        txn: Transaction[bytes],
        node: _Node,
        out: list[_Row],
        start: bytes,
        end: bytes | None,
        at: bytes,
        limit: int,
    ) -> list[_Row]:
        """Continue the page `out` at `node`, depth first; the general case, row by row."""
        above: list[_Node] = []
        chunks: list[bytes] = []  # what the links down to `node` spell; joined only where a row needs it
        prefix: bytes | None = b""
        index_seek, tails_seek = txn.cursor(self._index), txn.cursor(self._tails)
        while len(out) < limit:
            link: _Row | None = None
            seek = tails_seek if above else index_seek
            for key, entry in node.rows:
                if key >= node.end:
                    break
                if len(key) > SHORT_BYTES_MAX:
                    link = key, entry
                    break
                shown = entry
                if entry < at:
                    if not seek.set_range_dup(key, at):
                        continue
                    shown = seek.value()
                if len(shown) != ENTRY_BYTES:
                    self._fail(f"entry of {len(shown)} bytes", key)  # I3
                if prefix is None:
                    prefix = b"".join(chunks)
                out.append((prefix + key[_ID_BYTES:], shown) if above else (key, shown))
                if len(out) == limit:
                    return out
            if link is not None:
                above.append(node)
                chunks.append(link[0][len(node.id) : -1])
                node = self._below(txn, node, link, start, end)
            elif above:
                node = above.pop()
                chunks.pop()
            else:
                break
            prefix = None
        return out

    def _root(self, cursor: Cursor[bytes], start: bytes, end: bytes | None) -> _Node:
        """Begin a walk in `index`."""
        is_found = cursor.set_range(_lower_bound(b"", start))
        rows = cursor.iternext_nodup(True, True) if is_found else iter(())
        return _Node(b"", 0, rows, _ABOVE if end is None else end, is_at_start=True, is_at_end=end is not None)

    def _below(self, txn: Transaction[bytes], node: _Node, link: _Row, start: bytes, end: bytes | None) -> _Node:
        """Return the node that `link`, a row of `node`, leads to, at the first record from `start` on."""
        key, value = link
        child = self._target(key, value, node.id)
        chunk = key[len(node.id) : -1]
        is_at_start = node.is_at_start and start.startswith(chunk, node.spelled)
        is_at_end = node.is_at_end and end is not None and end.startswith(chunk, node.spelled)
        spelled = node.spelled + len(chunk)
        # No more of a bound than fits is copied: it may be 1.5 MB, in thousands of steps.
        first = _lower_bound(child, start[spelled : spelled + SHORT_BYTES_MAX]) if is_at_start else child
        last = child + (end[spelled : spelled + SHORT_BYTES_MAX] if is_at_end and end is not None else _ABOVE)
        cursor = txn.cursor(self._tails)
        is_found = cursor.set_range(first)
        if not is_at_start:
            found = cursor.key()
            if not found.startswith(child) or len(found) == _ID_BYTES:
                self._fail("link to a node without keys", key)  # I4, I1
        rows = cursor.iternext_nodup(True, True) if is_found else iter(())
        return _Node(child, spelled, rows, last, is_at_start=is_at_start, is_at_end=is_at_end)

    def _descend(self, txn: Transaction[bytes], key: bytes) -> tuple[list[bytes], bytes, int]:
        """Follow the links of a long key as far as there are any.

        Return their record keys, the node the last one leads to (empty for the root), and how many bytes
        of `key` they spell.
        """
        links: list[bytes] = []
        node, spelled, room, db = b"", 0, SHORT_BYTES_MAX, self._index
        while len(key) - spelled > room:
            link = b"%b%b\0" % (node, key[spelled : spelled + room])
            value = txn.get(link, None, db)
            if value is None:
                if links:
                    self._check_used(txn, node)
                break
            node = self._target(link, value, node)
            links.append(link)
            spelled, room, db = spelled + room, _TAIL_BYTES_MAX, self._tails
        return links, node, spelled

    def _stored(self, txn: Transaction[bytes], key: bytes) -> bytes | None:
        """Return the key in `tails` that a long key's entries lie under, or None if no link leads there."""
        links, node, spelled = self._descend(txn, key)
        return node + key[spelled:] if links and len(key) - spelled <= _TAIL_BYTES_MAX else None

    def _add_long(self, txn: Transaction[bytes], key: bytes, entry: bytes) -> None:
        """Add to a key that is cut, with the nodes it needs."""
        assert len(entry) == ENTRY_BYTES
        links, node, spelled = self._descend(txn, key)
        db, room = (self._tails, _TAIL_BYTES_MAX) if links else (self._index, SHORT_BYTES_MAX)
        if len(key) - spelled > room:
            first = last = self._last_id(txn)
            while len(key) - spelled > room:
                last += 1
                child = last.to_bytes(_ID_BYTES, "big")
                assert child > node  # I5
                txn.put(node + key[spelled : spelled + room] + _LINK_MARK, _LINK_HEAD + child, db=db)
                node, spelled, room, db = child, spelled + room, _TAIL_BYTES_MAX, self._tails
            self._put_link_count(txn, self._link_count(txn) + last - first)
        assert 0 < len(key) - spelled <= _TAIL_BYTES_MAX  # I1
        txn.put(node + key[spelled:], entry, db=db)

    def _last_id(self, txn: Transaction[bytes]) -> int:
        """Return the greatest node id in use, 0 if none is."""
        cursor = txn.cursor(self._tails)
        if not cursor.last():
            return 0
        key = cursor.key()
        if len(key) <= _ID_BYTES:
            self._fail("node without keys", key)  # I4 if it is the count, I1 if not
        # A key of 1.5 MB takes 3,200 ids; nobody gets here by adding.
        if key >= _ID_MAX[:-3]:
            self._fail("node ids are used up", key)
        return int.from_bytes(key[:_ID_BYTES], "big")

    def _link_count(self, txn: Transaction[bytes]) -> int:
        value = txn.get(_COUNT_KEY, None, self._tails)
        if value is None:
            return 0
        if len(value) != ENTRY_BYTES:
            self._fail(f"count of {len(value)} bytes", _COUNT_KEY)
        return int.from_bytes(value, "big")

    def _put_link_count(self, txn: Transaction[bytes], count: int) -> None:
        if count < 0:
            self._fail("more links than were counted", _COUNT_KEY)  # I6
        txn.delete(_COUNT_KEY, b"", self._tails)
        if count:
            txn.put(_COUNT_KEY, count.to_bytes(ENTRY_BYTES, "big"), db=self._tails)

    def _target(self, link: bytes, value: bytes, node: bytes) -> bytes:
        """Return the node that a link of `node` leads to."""
        child = value[-_ID_BYTES:]
        if not _is_link(link, value) or child <= node:
            self._fail("malformed link", link)  # I2, I5
        return child

    def _check_used(self, txn: Transaction[bytes], stored: bytes) -> None:
        """Raise unless the node that a record of `tails` would be in, and that was linked to, has records."""
        node = stored[:_ID_BYTES]
        cursor = txn.cursor(self._tails)
        if not (cursor.set_range(node) and cursor.key().startswith(node)):
            self._fail("link to a node without keys", node)  # I4

    def _fail(self, reason: str, key: bytes) -> NoReturn:
        raise CorruptError(self._path, f"index: {reason} at {_shown(key)}")


def _remove(txn: Transaction[bytes], db: _Database, key: bytes, entries: list[bytes]) -> None:
    """Remove duplicates of one record."""
    if len(entries) < _RUN_MIN or not _is_removed_as_run(txn, db, key, entries):
        for entry in entries:
            # LMDB takes an empty value for "all of them".
            assert len(entry) == ENTRY_BYTES
            txn.delete(key, entry, db)
    if len(entries) >= _RUN_MIN:
        _shrink(txn, db, key)


def _shrink(txn: Transaction[bytes], db: _Database, key: bytes) -> None:
    """Put what is left of a large set back into its record: LMDB would leave it on a page of its own."""
    cursor = txn.cursor(db)
    if cursor.set_key(key) and cursor.count() <= _SMALL_SET:
        left = list(cursor.iternext_dup(False, True))
        for entry in left:
            txn.delete(key, entry, db)
        for entry in left:
            txn.put(key, entry, db=db)


def _is_removed_as_run(txn: Transaction[bytes], db: _Database, key: bytes, entries: list[bytes]) -> bool:
    """Remove `entries` if they are neighbours in the set of `key`, as what compaction removes is; say whether.

    Measured on a million duplicates, us per entry: one by one 0.55; by a cursor, with one seek for all, 0.4.
    Not by dropping the whole set and putting back what stays, though it would halve that again: LMDB 0.9.36
    then leaves the set's branch pages in the database's page counts, which are what tells how much is used.
    """
    if entries[0] > entries[-1]:
        entries = entries[::-1]
    cursor = txn.cursor(db)
    if not cursor.set_key_dup(key, entries[0]):
        return False
    stored = cursor.iternext_dup(False, True)
    # A few first, so that a set with gaps is given up early.
    for first, last in ((0, _RUN_MIN), (_RUN_MIN, len(entries))):
        if list(islice(stored, last - first)) != entries[first:last]:
            return False
    is_found = cursor.set_key_dup(key, entries[0])
    assert is_found
    delete = cursor.delete
    for _ in entries:
        delete()
    return True


def _rows_until(rest: Iterator[_Row], end: bytes, limit: int) -> list[_Row]:
    """Read up to `limit` rows before `end`, at C speed and not far beyond it."""
    rows = list(islice(rest, min(limit, _FIRST_ROWS)))
    while rows and rows[-1][0] < end:
        known = len(rows)
        rows += islice(rest, min(limit - known, 7 * known))
        if len(rows) == known:
            return rows
    del rows[bisect_left(rows, end, key=_first_of) :]
    return rows


def _has_link(rows: list[_Row]) -> bool:
    for key, _ in rows:  # noqa: SIM110 - any() over a generator takes twice as long
        if len(key) > SHORT_BYTES_MAX:
            return True
    return False


def _is_link(key: bytes, value: bytes) -> bool:
    """Whether a record that is a link by its key's length is well-formed."""
    return len(value) == ENTRY_BYTES and value.startswith(_LINK_HEAD) and key.endswith(_LINK_MARK)


def _lower_bound(node: bytes, start: bytes) -> bytes:
    """Return the first record of a node that is, or leads to, a key from `start` on."""
    room = _TAIL_BYTES_MAX if node else SHORT_BYTES_MAX
    return node + start if len(start) <= room else node + start[:room] + _LINK_MARK


def _shown(key: bytes) -> str:
    return repr(key) if len(key) <= 64 else f"{key[:64]!r}… ({len(key)} bytes)"
