"""bbolt's file format: buckets, each a B+ tree of keys and values in pages. Facts of the format, none of etcd's.

A file is pages of one size. Page 0 and page 1 are metas, of which the one with the higher transaction number
counts; it names the page that the root tree begins at. The root tree maps names to buckets, and a bucket is 16
bytes: the page that its own tree begins at, and a counter. A small bucket has no page: 0 stands there, and the
image of its only leaf follows. All numbers are little-endian.

    page     id 8, flags 2 (1 branch, 2 leaf, 4 meta, 16 free list), elements 2, pages more that belong to it 4
    meta     magic 4, version 4, page size 4, flags 4, root bucket 16, free list 8, pages in use 8, transaction 8,
             FNV-1a of these 56 bytes 8
    leaf     elements of flags 4 (1 a bucket), position 4, key size 4, value size 4; then keys and values in order
    branch   elements of position 4, key size 4, page 8; then keys: each the least that may be below

A position counts from the element that holds it. What does not fit into a page takes the next ones along.

`write_database` builds each tree from its leaves up, in one pass over keys that come in order, and writes pages
one after the other: it holds one page of each level. Inserting into a tree, as bbolt does, would hold or visit
all of it. No free list is written, which bbolt reads as "find out yourself"; etcd's own files have none either.

Invariants of what is written, held by bbolt's own check in the tests:

* I1. Every page from 2 up is reached exactly once.
* I2. A branch has two elements at least: bbolt, when it takes the last key of a child, goes to its neighbour.
* I3. Metas come last, so that a file that was not finished is no database.

`Database` trusts nothing of what it reads: whatever is wrong is a `FormatError` or `CorruptError`. A page that is
reached twice is one of these, so there is an end to every walk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import BinaryIO, NamedTuple, Self

from mvccstore.engine.disk import translated
from mvccstore.errors import ClosedError, CorruptError, FormatError, KeyTooLargeError, ValueTooLargeError

PAGE_BYTES = 4096
"""Of what is written; what is read says its own."""
KEY_BYTES_MAX = 32_768
VALUE_BYTES_MAX = 2**31 - 2
INLINE_BYTES_MAX = PAGE_BYTES // 4
BUCKETS_MAX = 10_000
"""In what is read."""
_PAGE_BYTES_LEAST, _PAGE_BYTES_MOST = 1 << 9, 1 << 24
_MAGIC, _VERSION = 0xED0CDAED, 2
_BRANCH, _LEAF, _META = 1, 2, 4
_IS_BUCKET = 1
_FIRST_PAGE = 2
_NO_FREE_LIST = 2**64 - 1
_PAGE_HEAD = Struct("<QHHI")
_META_BODY = Struct("<IIIIQQQQQ")
_CHECKSUM = Struct("<Q")
_LEAF_ELEMENT = Struct("<IIII")
_BRANCH_ELEMENT = Struct("<IIQ")
_BUCKET = Struct("<QQ")
_ELEMENT_BYTES = 16
_META_BYTES = _PAGE_HEAD.size + _META_BODY.size + _CHECKSUM.size

Items = Iterable[tuple[bytes, bytes]]


def write_database(file: BinaryIO, buckets: Iterable[tuple[bytes, Items]]) -> int:
    """Write a database to an empty file that can be sought in, and return its size in bytes.

    Args:
        file: Where it begins is where the database begins: at 0.
        buckets: Names in byte order, each with its keys and values in byte order. Each of the inner iterables is
            read to its end before the next bucket is asked for.

    Raises:
        ValueError: A name or key is empty or out of order; the file is then no database.
        KeyTooLargeError: A name or key is longer than 32,768 bytes.
        ValueTooLargeError: A value is longer than 2 GiB.

    Cost: 2 us for each key, and the copying of its bytes. Memory for a page of each level and the largest value.
    """
    pages = _PageWriter(file)
    root = _TreeWriter(pages)
    for name, items in buckets:
        tree = _TreeWriter(pages)
        for key, value in items:
            tree.add(0, key, value)
        inline = tree.inline()
        root.add(_IS_BUCKET, name, _BUCKET.pack(0, 0) + inline if inline else _BUCKET.pack(tree.finish(), 0))
    pages.finish(root.finish())
    return pages.count * PAGE_BYTES


class _PageWriter:
    """Writes pages, one behind the other."""

    def __init__(self, file: BinaryIO) -> None:
        self.count = _FIRST_PAGE
        self._file = file
        file.write(bytes(_FIRST_PAGE * PAGE_BYTES))

    def write(self, flags: int, count: int, body: bytes) -> int:
        """Write a page and those that belong to it; return its number."""
        number = self.count
        size_bytes = _PAGE_HEAD.size + len(body)
        taken = -(-size_bytes // PAGE_BYTES)
        self._file.write(_PAGE_HEAD.pack(number, flags, count, taken - 1))
        self._file.write(body)
        self._file.write(bytes(taken * PAGE_BYTES - size_bytes))
        self.count += taken
        return number

    def finish(self, root: int) -> None:
        """Write the metas."""
        self._file.seek(0)
        for number, transaction in enumerate((2, 1)):
            body = _META_BODY.pack(
                _MAGIC, _VERSION, PAGE_BYTES, 0, root, 0, _NO_FREE_LIST, self.count, transaction
            )  # fmt: skip
            meta = _PAGE_HEAD.pack(number, _META, 0, 0) + body + _CHECKSUM.pack(_fnv(body))
            self._file.write(meta.ljust(PAGE_BYTES, b"\0"))
        self._file.seek(self.count * PAGE_BYTES)


class _TreeWriter:
    """Builds one tree from the leaves up."""

    def __init__(self, pages: _PageWriter) -> None:
        self._pages = pages
        self._last = b""
        self._leaf: list[tuple[int, bytes, bytes]] = []
        self._leaf_bytes = _PAGE_HEAD.size
        self._levels: list[list[tuple[bytes, int]]] = []  # of branches: least keys and pages, not yet in a branch

    def add(self, flags: int, key: bytes, value: bytes) -> None:
        """Add a key above all that are in it."""
        if key <= self._last:
            msg = f"key {key!r:.80} does not come after {self._last!r:.80}" if key else "a key is empty"
            raise ValueError(msg)
        if len(key) > KEY_BYTES_MAX:
            raise KeyTooLargeError(len(key), KEY_BYTES_MAX)
        if len(value) > VALUE_BYTES_MAX:
            raise ValueTooLargeError(len(value), VALUE_BYTES_MAX)
        self._last = key
        size_bytes = _ELEMENT_BYTES + len(key) + len(value)
        if self._leaf and self._leaf_bytes + size_bytes > PAGE_BYTES:
            self._end_leaf()
        self._leaf.append((flags, key, value))
        self._leaf_bytes += size_bytes

    def inline(self) -> bytes:
        """Return the image of the only leaf if that is small enough to be in its bucket's value; else nothing."""
        if self._levels or self._leaf_bytes > INLINE_BYTES_MAX:
            return b""
        return _PAGE_HEAD.pack(0, _LEAF, len(self._leaf), 0) + _leaf_body(self._leaf)

    def finish(self) -> int:
        """Write what is not yet written; return the page that the tree begins at."""
        if not self._levels:
            return self._pages.write(_LEAF, len(self._leaf), _leaf_body(self._leaf))
        self._end_leaf()
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            self._end_branch(level, len(self._levels[level]))
            level += 1
        return self._levels[level][0][1]

    def _end_leaf(self) -> None:
        self._note(0, self._leaf[0][1], self._pages.write(_LEAF, len(self._leaf), _leaf_body(self._leaf)))
        self._leaf = []
        self._leaf_bytes = _PAGE_HEAD.size

    def _note(self, level: int, key: bytes, number: int) -> None:
        """Take a page that is written into the level of branches above it."""
        if level == len(self._levels):
            self._levels.append([])
        waiting = self._levels[level]
        waiting.append((key, number))
        size_bytes = _PAGE_HEAD.size + sum(_ELEMENT_BYTES + len(key) for key, _ in waiting)
        if size_bytes > PAGE_BYTES and len(waiting) >= 4:
            self._end_branch(level, len(waiting) - 2)  # I2: two are left for the last

    def _end_branch(self, level: int, count: int) -> None:
        waiting = self._levels[level]
        branch = waiting[:count]
        assert len(branch) > 1  # I2
        del waiting[:count]
        self._note(level + 1, branch[0][0], self._pages.write(_BRANCH, count, _branch_body(branch)))


def _leaf_body(elements: list[tuple[int, bytes, bytes]]) -> bytes:
    heads: list[bytes] = []
    data: list[bytes] = []
    position = len(elements) * _ELEMENT_BYTES
    for flags, key, value in elements:
        heads.append(_LEAF_ELEMENT.pack(flags, position, len(key), len(value)))
        data += (key, value)
        position += len(key) + len(value) - _ELEMENT_BYTES
    return b"".join(heads + data)


def _branch_body(elements: list[tuple[bytes, int]]) -> bytes:
    heads, data = [], []
    position = len(elements) * _ELEMENT_BYTES
    for key, number in elements:
        heads.append(_BRANCH_ELEMENT.pack(position, len(key), number))
        data.append(key)
        position += len(key) - _ELEMENT_BYTES
    return b"".join(heads + data)


def _fnv(data: bytes) -> int:
    """Return the 64-bit FNV-1a hash."""
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return found


class _Meta(NamedTuple):
    """A meta page that is in order."""

    page_bytes: int
    root: int
    page_count: int
    transaction: int


class _Page(NamedTuple):
    """A page of a tree, with those that belong to it."""

    number: int
    is_leaf: bool
    elements: int
    body: bytes
    """From the first element on."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket of a `Database`."""

    name: bytes
    root: int
    """The page that its tree begins at; 0 if it is inline."""
    inline: bytes


class Database:
    """A database, read. A context manager. Used by one thread.

    Nothing is read ahead or kept, so it may be as large as it likes. It must not be written to meanwhile.

    Args:
        path: The file.
        trailer_bytes: What follows the database in the file and is no part of it.

    Raises:
        StorageError: The file cannot be read.
        FormatError: It is no bbolt database of version 2.
        CorruptError: Both metas are damaged, or it is shorter than they say.
    """

    def __init__(self, path: str | os.PathLike[str], *, trailer_bytes: int = 0) -> None:
        self.path = os.fspath(path)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise translated(self.path, error) from error
        try:
            self._file_bytes = self._size() - trailer_bytes
            meta = self._newest_meta()
            self.page_bytes, self._root, self._page_count, self.transaction = meta
            if self._page_count * self.page_bytes > self._file_bytes:
                raise CorruptError(self.path, f"{self._page_count:,} pages do not fit into {self._file_bytes:,} bytes")
        except BaseException:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        """The size of the pages in use; the file may be longer."""
        return self._page_count * self.page_bytes

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def buckets(self) -> list[Bucket]:
        """Return all buckets, in the order of their names.

        Raises:
            CorruptError: The root tree contradicts itself, or there are more than 10,000.
        """
        return self._buckets(self._new_seen())

    def items(self, name: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over the keys and values of a bucket in order; over nothing if there is no such bucket.

        Raises:
            CorruptError: The tree contradicts itself.

        Cost: 2 us a key; memory for the path to a page, and for it.
        """
        seen = self._new_seen()
        for bucket in self._buckets(seen):
            if bucket.name == name:
                yield from self._items(bucket, seen)

    def everything(self) -> Iterator[tuple[Bucket, Iterator[tuple[bytes, bytes]]]]:
        """Iterate over all buckets with their items, and see that no page belongs to two of them.

        The items of a bucket are to be read to their end before the next bucket is.
        """
        seen = self._new_seen()
        for bucket in self._buckets(seen):
            yield bucket, self._items(bucket, seen)

    def _buckets(self, seen: bytearray) -> list[Bucket]:
        found: list[Bucket] = []
        for flags, name, value in self._tree(self._root, seen):
            if flags != _IS_BUCKET:
                raise CorruptError(self.path, f"{name!r:.80} beside the buckets is none")
            if len(value) < _BUCKET.size:
                raise CorruptError(self.path, f"bucket {name!r:.80} has {len(value)} bytes")
            root = _BUCKET.unpack_from(value)[0]
            inline = value[_BUCKET.size :]
            if bool(inline) == bool(root):
                raise CorruptError(self.path, f"bucket {name!r:.80} has both a page and a leaf of its own, or neither")
            if len(found) == BUCKETS_MAX:
                raise CorruptError(self.path, f"more than {BUCKETS_MAX:,} buckets")
            found.append(Bucket(name, root, inline))
        return found

    def _items(self, bucket: Bucket, seen: bytearray) -> Iterator[tuple[bytes, bytes]]:
        elements = self._tree(bucket.root, seen) if bucket.root else self._inline_leaf(bucket)
        for flags, key, value in elements:
            if flags == _IS_BUCKET:
                raise CorruptError(self.path, f"bucket {bucket.name!r:.80} has a bucket in it")
            yield key, value

    def _inline_leaf(self, bucket: Bucket) -> Iterator[tuple[int, bytes, bytes]]:
        if len(bucket.inline) < _PAGE_HEAD.size:
            raise CorruptError(self.path, f"the leaf in bucket {bucket.name!r:.80} has {len(bucket.inline)} bytes")
        _, flags, count, overflow = _PAGE_HEAD.unpack_from(bucket.inline)
        if flags != _LEAF or overflow:
            raise CorruptError(
                self.path, f"the leaf in bucket {bucket.name!r:.80} has flags {flags:#x}, {overflow} pages more"
            )
        page = _Page(0, is_leaf=True, elements=count, body=bucket.inline[_PAGE_HEAD.size :])
        return self._leaf_elements(page, b"", None)

    def _tree(self, root: int, seen: bytearray) -> Iterator[tuple[int, bytes, bytes]]:
        """Iterate over the leaf elements of a tree: flags, keys and values, in order."""
        to_visit: list[tuple[int, bytes, bytes | None]] = [(root, b"", None)]
        while to_visit:
            number, least, end = to_visit.pop()
            page = self._page(number, seen)
            if page.is_leaf:
                yield from self._leaf_elements(page, least, end)
                continue
            children = list(self._branch_elements(page, least, end))
            ends = [*(key for key, _ in children[1:]), end]
            # The first comes last, as the last is taken first.
            to_visit += [(child, key, upto) for (key, child), upto in zip(children, ends, strict=True)][::-1]

    def _leaf_elements(self, page: _Page, least: bytes, end: bytes | None) -> Iterator[tuple[int, bytes, bytes]]:
        heads, body = self._heads(page), page.body
        data_end = len(heads)
        for (flags, position, key_bytes, value_bytes), at in zip(
            _LEAF_ELEMENT.iter_unpack(heads), range(0, len(heads), _ELEMENT_BYTES), strict=True
        ):
            start = at + position
            if flags not in {0, _IS_BUCKET}:
                raise CorruptError(self.path, f"page {page.number}: an element has flags {flags:#x}")
            data_end = self._check_bounds(page, data_end, start, key_bytes, value_bytes)
            key = body[start : start + key_bytes]
            least = self._check_order(page, key, least, end, is_first=at == 0)
            yield flags, key, body[start + key_bytes : data_end]

    def _branch_elements(self, page: _Page, least: bytes, end: bytes | None) -> Iterator[tuple[bytes, int]]:
        heads = self._heads(page)
        if not heads:
            raise CorruptError(self.path, f"page {page.number}: a branch has no elements")
        data_end = len(heads)
        for (position, key_bytes, child), at in zip(
            _BRANCH_ELEMENT.iter_unpack(heads), range(0, len(heads), _ELEMENT_BYTES), strict=True
        ):
            start = at + position
            data_end = self._check_bounds(page, data_end, start, key_bytes, 0)
            least = self._check_order(page, page.body[start:data_end], least, end, is_first=at == 0)
            yield least, child

    def _heads(self, page: _Page) -> bytes:
        heads = page.body[: page.elements * _ELEMENT_BYTES]
        if len(heads) != page.elements * _ELEMENT_BYTES:
            raise CorruptError(self.path, f"page {page.number}: {page.elements} elements do not fit")
        return heads

    def _check_bounds(self, page: _Page, least_start: int, start: int, key_bytes: int, value_bytes: int) -> int:
        """Return where an element's data ends, which is behind that of the one before."""
        data_end = start + key_bytes + value_bytes
        if not 0 < key_bytes <= KEY_BYTES_MAX or start < least_start or data_end > len(page.body):
            raise CorruptError(
                self.path, f"page {page.number}: an element has {key_bytes} + {value_bytes} bytes at {start}"
            )
        return data_end

    def _check_order(self, page: _Page, key: bytes, least: bytes, end: bytes | None, *, is_first: bool) -> bytes:
        """Return the key, which is the first one and at `least` or above, or above it; and below `end`."""
        if key < least or (key == least and not is_first) or (end is not None and key >= end):
            raise CorruptError(self.path, f"page {page.number}: key {key!r:.80} is out of order")
        return key

    def _page(self, number: int, seen: bytearray) -> _Page:
        if not _FIRST_PAGE <= number < self._page_count:
            raise CorruptError(self.path, f"page {number} is not one of {self._page_count}")
        head = self._read(number * self.page_bytes, self.page_bytes)
        found, flags, count, overflow = _PAGE_HEAD.unpack_from(head)
        if found != number:
            raise CorruptError(self.path, f"page {number} says that it is page {found}")
        if flags not in {_BRANCH, _LEAF}:
            raise CorruptError(self.path, f"page {number} has flags {flags:#x}, neither a branch nor a leaf")
        if number + overflow >= self._page_count:
            raise CorruptError(self.path, f"page {number} has {overflow} more, and there are {self._page_count}")
        for taken in range(number, number + overflow + 1):
            if seen[taken >> 3] & 1 << (taken & 7):
                raise CorruptError(self.path, f"page {taken} is reached twice")
            seen[taken >> 3] |= 1 << (taken & 7)
        body = head[_PAGE_HEAD.size :]
        if overflow:
            body += self._read((number + 1) * self.page_bytes, overflow * self.page_bytes)
        return _Page(number, flags == _LEAF, count, body)

    def _new_seen(self) -> bytearray:
        """Return a bit for each page."""
        return bytearray((self._page_count >> 3) + 1)

    # Metas

    def _newest_meta(self) -> _Meta:
        first = self._read_meta(0)
        problem: CorruptError | FormatError
        if isinstance(first, _Meta):
            found = [first, self._read_meta(first.page_bytes)]
        else:
            # Where the second is depends on the page size, which only the first says where it always is.
            shift_least, shift_most = _PAGE_BYTES_LEAST.bit_length() - 1, _PAGE_BYTES_MOST.bit_length() - 1
            found = [first, *(self._read_meta(1 << shift) for shift in range(shift_least, shift_most + 1))]
        metas = [meta for meta in found if isinstance(meta, _Meta)]
        if not metas:
            # The most that is known: that of a damaged meta says more than that of no meta at all.
            problems = [problem for problem in found if not isinstance(problem, _Meta)]
            problem = next((problem for problem in problems if isinstance(problem, CorruptError)), problems[0])
            raise problem
        return max(metas, key=lambda meta: meta.transaction)

    def _read_meta(self, offset: int) -> _Meta | CorruptError | FormatError:
        """Return the meta page at `offset`, 0 or the page size, or what is wrong with it."""
        if self._file_bytes < offset + _META_BYTES:
            return FormatError(self.path, "it is too short to be a bbolt database")
        packed = self._read(offset, _META_BYTES)
        number, flags, _, _ = _PAGE_HEAD.unpack_from(packed)
        body, checksum = packed[_PAGE_HEAD.size : -_CHECKSUM.size], packed[-_CHECKSUM.size :]
        magic, version, page_bytes, _, root, _, free_list, page_count, transaction = _META_BODY.unpack(body)
        if magic != _MAGIC:
            return FormatError(self.path, "it is no bbolt database")
        if _CHECKSUM.pack(_fnv(body)) != checksum:
            return CorruptError(self.path, "a meta page does not match its checksum")
        if version != _VERSION:
            return FormatError(self.path, f"a bbolt database of version {version}; this reads {_VERSION}")
        is_size = _PAGE_BYTES_LEAST <= page_bytes <= _PAGE_BYTES_MOST and not page_bytes & page_bytes - 1
        if not is_size or offset not in {0, page_bytes}:
            return CorruptError(self.path, f"a meta page at {offset:,} says that pages have {page_bytes:,} bytes")
        if (number, flags) != (offset // page_bytes, _META):
            return CorruptError(self.path, f"page {offset // page_bytes} is page {number} with flags {flags:#x}")
        if free_list != _NO_FREE_LIST and not _FIRST_PAGE <= free_list < page_count:
            return CorruptError(self.path, f"the free list is in page {free_list} of {page_count}")
        return _Meta(page_bytes, root, page_count, transaction)

    # The file

    def _size(self) -> int:
        return os.fstat(self._fd).st_size

    def _read(self, offset: int, size: int) -> bytes:
        if self._fd < 0:
            what = "database"
            raise ClosedError(what)
        pieces = []
        while size:
            try:
                piece = os.pread(self._fd, size, offset)
            except OSError as error:
                raise translated(self.path, error) from error
            if not piece:
                raise CorruptError(self.path, f"it ends at byte {offset:,}, in the middle of a page")
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return b"".join(pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
