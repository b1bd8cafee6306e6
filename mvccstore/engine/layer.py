"""What was committed since the tables below were last written, kept in memory over them.

Every key has its versions: nodes `(number, value, older)`, newest first, where `number` counts the commits. A reader
that knows the number of the last commit before it passes over what came later, so it needs no copy, and a writer
writes its changes in place under the number that its commit will have. Of a plain table a version is a value, or None
for a record that was deleted; of the index it is an entry that was added, and those below it still count.

Invariants:

* I1. The numbers along a chain never rise, and the entries of one do: the newest sorts first.
* I2. Numbers above the last commit are of the one write transaction that is open; `forget` takes them away.
* I3. `_new` and `_ordered` together have each key of their table, some of them twice, and some that are gone.

Example, after two commits, and with a third under way:

    put k 1, put k 2, add i e9      plain[META] = {k: (2, 2, (1, 1, None))}, index = {i: (2, e9, None)}
    delete k, add i e8              plain[META] = {k: (3, None, (2, 2, ...))}, index = {i: (3, e8, (2, e9, None))}
    at 2: k is 2, i has e9; at 3: k is gone, i has e8 and e9

Why not a sorted map: a put would pay for an order that only ranges need. They pay for it, once for each key.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeAlias

from sortedcontainers import SortedList

from mvccstore.tables import Table

_KEYS_FIRST = 64

Node: TypeAlias = tuple[int, Any, Any]
"""Number, value, older node or None."""


class Records:
    """The records of one table that a layer has."""

    __slots__ = ("_is_ordering", "_lock", "_new", "_ordered", "nodes")

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {}
        self._new: list[bytes] = []
        self._ordered: SortedList[bytes] = SortedList()
        self._is_ordering = False
        """Also if that was interrupted: then nobody knows what `_ordered` has."""
        self._lock = threading.Lock()  # guards _ordered; a leaf lock

    def put(self, key: bytes, number: int, value: bytes | None) -> None:
        """Note a version of a key. O(1)."""
        nodes = self.nodes
        node = nodes.get(key)
        if node is None:
            self._new.append(key)
        nodes[key] = (number, value, node)

    def add(self, key: bytes, number: int, value: bytes) -> None:
        """Note the version of a key that has none. O(1)."""
        self._new.append(key)
        self.nodes[key] = (number, value, None)

    def forget(self, keys: Iterable[bytes], number: int) -> None:
        """Take versions with a number away. O(keys)."""
        nodes = self.nodes
        for key in keys:
            node = nodes.get(key)
            while node is not None and node[0] == number:
                node = node[2]
            if node is None:
                nodes.pop(key, None)
            else:
                nodes[key] = node

    def keys_between(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[bytes]:
        """Iterate over the keys with start <= key < end, in order. O(log n), and for keys that are new since the last."""
        count = _KEYS_FIRST
        while True:
            with self._lock:
                if self._new or self._is_ordering:
                    self._order()
                found = list(islice(self._ordered.irange(start, end, (True, False), reverse), count))
            last = None
            for key in found:
                if key != last:
                    yield key
                last = key
            if last is None or len(found) < count:
                return
            if reverse:
                end = last
            else:
                start = last + b"\0"
            count *= 4

    def _order(self) -> None:
        """Have `_ordered` have all keys that there are now: what a writer appends meanwhile is not for who reads now."""
        count = len(self._new)
        if self._is_ordering:
            self._ordered = SortedList({*self.nodes, *self._new[:count]})
        else:
            self._is_ordering = True
            self._ordered.update(self._new[:count])
        self._is_ordering = False
        del self._new[:count]


class Layer:
    """Records over tables; see the module."""

    __slots__ = ("count", "index", "plain")

    def __init__(self) -> None:
        self.plain = {table: Records() for table in Table}
        self.index = Records()
        self.count = 0
        """Changes that were committed to it."""

    def rows(
        self, table: Table, at: int, start: bytes, end: bytes | None, limit: int, *, reverse: bool
    ) -> list[tuple[bytes, bytes | None]]:
        """Return the records of a range, with None for those that are deleted, until `limit` of them are not."""
        rows: list[tuple[bytes, bytes | None]] = []
        nodes, left = self.plain[table].nodes, limit
        for key in self.plain[table].keys_between(start, end, reverse=reverse):
            if left <= 0:
                break
            node = visible(nodes.get(key), at)
            if node is not None:
                rows.append((key, node[1]))
                left -= node[1] is not None
        return rows

    def newest_rows(
        self, at: int, start: bytes, end: bytes | None, entry: bytes, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` keys of a range with their first entry here at or after `entry`."""
        nodes = self.index.nodes
        found = ((key, first_at(nodes.get(key), at, entry)) for key in self.index.keys_between(start, end))
        return list(islice(((key, first) for key, first in found if first is not None), limit))


class Stack:
    """Layers, the newest first, as they are read: of the younger ones, the older ones see nothing."""

    __slots__ = ("indexes", "layers", "plain")

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers
        self.indexes = tuple(layer.index.nodes for layer in layers)
        self.plain = {table: tuple(layer.plain[table].nodes for layer in layers) for table in Table}


def visible(node: Node | None, at: int) -> Node | None:
    """Return the first node of a chain that a reader at a number sees."""
    while node is not None and node[0] > at:
        node = node[2]
    return node


def first_at(node: Node | None, at: int, entry: bytes) -> bytes | None:
    """Return the first entry of a chain, as a reader at a number sees it, that is at or after another one."""
    while node is not None:
        if node[0] <= at and node[1] >= entry:
            found: bytes = node[1]
            return found
        node = node[2]
    return None


def entries_of(node: Node | None, at: int) -> list[bytes]:
    """Return the entries of a chain as a reader at a number sees them: ascending, so the newest first."""
    entries = []
    while node is not None:
        if node[0] <= at:
            entries.append(node[1])
        node = node[2]
    return entries
