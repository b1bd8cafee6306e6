"""Who watches a key: found without looking at those who do not.

Three structures, by the shape of what is watched: a dict for single keys; a dict for prefixes, asked once for
each length of prefix that somebody watches; and a tree of intervals for all other ranges, a treap in
order of `start` in which each node knows the greatest `end` below it.

Invariants of the tree:

* I1. In order of (start, end); a node's priority is at least that of its children.
* I2. `reach` is the greatest `end` of the node and all below it, None (no bound) being greater than any.

Cost of `matches`: a dict lookup, one more a length of prefix, O(log intervals + found) for the tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Generic, TypeVar

from mvccstore.types import KeyRange, Keys

T = TypeVar("T")
End = bytes | None


class WatchIndex(Generic[T]):
    """What is watched, each with something to be found by it."""

    __slots__ = ("_exact", "_items", "_lengths", "_prefixes", "_root")

    def __init__(self) -> None:
        self._exact: dict[bytes, T] = {}
        self._prefixes: dict[bytes, T] = {}
        self._lengths: Counter[int] = Counter()  # how many prefixes have this length
        self._root: _Node[T] | None = None
        self._items = 0

    def __len__(self) -> int:
        return self._items

    def add(self, keys: Keys, item: T) -> None:
        """Have keys found; nothing may be there for the same `keys`."""
        self._items += 1
        if isinstance(keys, bytes):
            self._exact[keys] = item
            return
        prefix = prefix_of(keys)
        if prefix is not None:
            self._prefixes[prefix] = item
            self._lengths[len(prefix)] += 1
        else:
            self._root = _insert(self._root, _Node(keys.start, keys.end, item))

    def remove(self, keys: Keys) -> None:
        """Undo `add`."""
        self._items -= 1
        if isinstance(keys, bytes):
            del self._exact[keys]
            return
        prefix = prefix_of(keys)
        if prefix is None:
            self._root = _remove(self._root, keys.start, keys.end)
            return
        del self._prefixes[prefix]
        self._lengths[len(prefix)] -= 1
        if not self._lengths[len(prefix)]:
            del self._lengths[len(prefix)]

    def matches(self, key: bytes) -> list[T]:
        """Return what was added for the key itself, or a range that has it."""
        found = []
        item = self._exact.get(key)
        if item is not None:
            found.append(item)
        if self._prefixes:
            prefixes = self._prefixes
            for length in self._lengths:
                item = prefixes.get(key[:length])
                if item is not None and length <= len(key):
                    found.append(item)
        if self._root is not None:
            found.extend(_stab(self._root, key))
        return found


def prefix_of(keys: KeyRange) -> bytes | None:
    """Return the prefix whose keys these are, if they are one's."""
    if keys.end is None and not keys.start:
        return b""
    return keys.start if keys.end is not None and KeyRange.prefix(keys.start).end == keys.end else None


class _Node(Generic[T]):
    __slots__ = ("end", "item", "left", "priority", "reach", "right", "start")

    def __init__(self, start: bytes, end: End, item: T) -> None:
        self.start = start
        self.end = end
        self.item = item
        # Random to whoever chooses the keys, as bytes are hashed with a secret: nobody can make the tree deep.
        self.priority = hash((start, end))
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None
        self.reach = end

    def look(self) -> _Node[T]:
        """Make `reach` right after a child has changed."""
        reach = self.end
        for child in (self.left, self.right):
            if child is not None and reach is not None and (child.reach is None or child.reach > reach):
                reach = child.reach
        self.reach = reach
        return self


def _order(start: bytes, end: End) -> tuple[bytes, bool, bytes]:
    return start, end is None, end or b""


def _split(node: _Node[T] | None, place: tuple[bytes, bool, bytes]) -> tuple[_Node[T] | None, _Node[T] | None]:
    if node is None:
        return None, None
    if _order(node.start, node.end) < place:
        node.right, after = _split(node.right, place)
        return node.look(), after
    before, node.left = _split(node.left, place)
    return before, node.look()


def _insert(node: _Node[T] | None, new: _Node[T]) -> _Node[T]:
    if node is None:
        return new
    place = _order(new.start, new.end)
    if new.priority > node.priority:
        new.left, new.right = _split(node, place)
        return new.look()
    if place < _order(node.start, node.end):
        node.left = _insert(node.left, new)
    else:
        node.right = _insert(node.right, new)
    return node.look()


def _remove(node: _Node[T] | None, start: bytes, end: End) -> _Node[T] | None:
    assert node is not None
    place = _order(start, end)
    if place == _order(node.start, node.end):
        return _merged(node.left, node.right)
    if place < _order(node.start, node.end):
        node.left = _remove(node.left, start, end)
    else:
        node.right = _remove(node.right, start, end)
    return node.look()


def _merged(before: _Node[T] | None, after: _Node[T] | None) -> _Node[T] | None:
    if before is None or after is None:
        return before or after
    if before.priority >= after.priority:
        before.right = _merged(before.right, after)
        return before.look()
    after.left = _merged(before, after.left)
    return after.look()


def _stab(root: _Node[T], key: bytes) -> Iterator[T]:
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if node.reach is not None and node.reach <= key:
            continue
        if node.left is not None:
            nodes.append(node.left)
        if node.start <= key:
            if node.end is None or key < node.end:
                yield node.item
            if node.right is not None:
                nodes.append(node.right)
