"""bbolt's file format: what is written is read back, and whatever is read, nothing but our errors comes of it."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvccstore import ClosedError, CorruptError, FormatError, KeyTooLargeError, StorageError, ValueTooLargeError
from mvccstore.etcd_file import bbolt
from mvccstore.etcd_file.bbolt import PAGE_BYTES, Database, write_database

Buckets = Mapping[bytes, Mapping[bytes, bytes]]
PAGE_HEAD = Struct("<QHHI")
META = Struct("<IIIIQQQQQ")
LEAF_ELEMENT = Struct("<IIII")
BRANCH_ELEMENT = Struct("<IIQ")
MAGIC = 0xED0CDAED
NO_FREE_LIST = 2**64 - 1
BRANCH, LEAF = 1, 2


def packed(buckets: Buckets) -> bytes:
    file = io.BytesIO()
    written = write_database(file, ((name, sorted(items.items())) for name, items in sorted(buckets.items())))
    assert written == len(file.getvalue()) == file.tell()
    return file.getvalue()


def read(path: Path) -> dict[bytes, dict[bytes, bytes]]:
    with Database(path) as database:
        return {bucket.name: dict(items) for bucket, items in database.everything()}


def pages(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Flags, elements and size of each page behind the metas, which follow each other without a gap."""
    number = 2
    while number * PAGE_BYTES < len(data):
        found, flags, elements, overflow = PAGE_HEAD.unpack_from(data, number * PAGE_BYTES)
        assert found == number
        yield flags, elements, overflow + 1
        number += overflow + 1
    assert number * PAGE_BYTES == len(data)


def items(keys: st.SearchStrategy[bytes], values: st.SearchStrategy[bytes], most: int) -> st.SearchStrategy[Buckets]:
    return st.dictionaries(st.binary(min_size=1, max_size=20), st.dictionaries(keys, values, max_size=most), max_size=4)


def of_size(most: int) -> st.SearchStrategy[bytes]:
    """Bytes as long as they may be, without drawing each of them."""
    return st.builds(lambda seed, size: Random(seed).randbytes(size), st.integers(0, 2**32), st.integers(1, most))


CONTENTS = st.one_of(
    items(st.binary(min_size=1, max_size=8), st.binary(max_size=300), 60),
    items(of_size(3_000), of_size(20_000) | st.just(b""), 30),
    items(of_size(bbolt.KEY_BYTES_MAX), st.just(b""), 12),
)


@given(CONTENTS)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, buckets: Buckets) -> None:
    path = tmp_path_factory.mktemp("bbolt") / "db"
    data = packed(buckets)
    path.write_bytes(data)
    assert read(path) == buckets
    with Database(path) as database:
        for name, expected in buckets.items():
            assert list(database.items(name)) == sorted(expected.items())
        assert list(database.items(b"no such bucket, as the name is too long")) == []
        assert database.size_bytes == len(data)
    assert all(elements > 1 for flags, elements, _ in pages(data) if flags == BRANCH)


@pytest.mark.parametrize("number", [1, 2, 130, 131, 15_000, 16_000, 40_000])
def test_a_tree_of_any_height_is_reached_page_by_page(tmp_path: Path, number: int) -> None:
    expected = {b"%017d" % place: b"v" * 100 for place in range(number)}
    data = packed({b"key": expected})
    (tmp_path / "db").write_bytes(data)
    assert read(tmp_path / "db") == {b"key": expected}
    assert all(elements > 1 for flags, elements, _ in pages(data) if flags == BRANCH)
    assert {size for _, _, size in pages(data)} == {1}


def test_a_large_bucket_is_written_and_read_in_little_memory(tmp_path: Path) -> None:
    def many() -> Iterator[tuple[bytes, bytes]]:
        for number in range(20_000):
            yield b"%017d" % number, bytes(1_000)

    tracemalloc.start()
    try:
        with (tmp_path / "db").open("wb") as file:
            size_bytes = write_database(file, [(b"key", many())])
        with Database(tmp_path / "db") as database:
            assert sum(1 for _ in database.items(b"key")) == 20_000
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size_bytes > 20_000_000
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize("keys", [[b""], [b"b", b"a"], [b"a", b"a"]])
def test_keys_out_of_order_are_refused(keys: list[bytes]) -> None:
    for buckets in ([(b"key", [(key, b"") for key in keys])], [(key, []) for key in keys]):
        file = io.BytesIO()
        with pytest.raises(ValueError, match=r"a key is empty|does not come after"):
            write_database(file, buckets)
        assert not any(file.getvalue()[: 2 * PAGE_BYTES])  # no database, then


def test_what_bbolt_does_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyTooLargeError):
        write_database(io.BytesIO(), [(b"key", [(bytes(bbolt.KEY_BYTES_MAX + 1), b"")])])
    monkeypatch.setattr(bbolt, "VALUE_BYTES_MAX", 10)
    with pytest.raises(ValueTooLargeError):
        write_database(io.BytesIO(), [(b"key", [(b"a", bytes(11))])])


# Hostile files


def fnv(data: bytes) -> int:
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 % 2**64
    return found


def meta(
    number: int,
    *,
    magic: int = MAGIC,
    version: int = 2,
    page_bytes: int = PAGE_BYTES,
    root: int = 2,
    free_list: int = NO_FREE_LIST,
    page_count: int,
    transaction: int = 7,
    flags: int = 4,
) -> bytes:
    body = META.pack(magic, version, page_bytes, 0, root, 0, free_list, page_count, transaction)
    packed = PAGE_HEAD.pack(number, flags, 0, 0) + body + fnv(body).to_bytes(8, "little")
    return packed.ljust(PAGE_BYTES, b"\0")


def page(number: int, flags: int, elements: int, body: bytes = b"", overflow: int = 0) -> bytes:
    return (PAGE_HEAD.pack(number, flags, elements, overflow) + body).ljust(PAGE_BYTES, b"\0")


def leaf(number: int, *elements: tuple[int, bytes, bytes], flags: int = LEAF) -> bytes:
    heads, data = b"", b""
    for place, (element_flags, key, value) in enumerate(elements):
        position = 16 * (len(elements) - place) + len(data)
        heads += LEAF_ELEMENT.pack(element_flags, position, len(key), len(value))
        data += key + value
    return page(number, flags, len(elements), heads + data)


def branch(number: int, *elements: tuple[bytes, int]) -> bytes:
    heads, data = b"", b""
    for place, (key, child) in enumerate(elements):
        heads += BRANCH_ELEMENT.pack(16 * (len(elements) - place) + len(data), len(key), child)
        data += key
    return page(number, BRANCH, len(elements), heads + data)


def bucket_at(root: int, inline: bytes = b"") -> bytes:
    return root.to_bytes(8, "little") + bytes(8) + inline


def database(*pages: bytes, **meta_fields: int) -> bytes:
    fields = {"page_count": 2 + len(pages), **meta_fields}
    return meta(0, **fields) + meta(1, **{**fields, "transaction": 6}) + b"".join(pages)


def with_key(*pages: bytes) -> bytes:
    """A database of one bucket, whose tree begins at page 3."""
    return database(leaf(2, (1, b"key", bucket_at(3))), *pages)


GOOD = (0, b"k", b"v")
OVERLAP = LEAF_ELEMENT.pack(0, 32, 1, 1) + LEAF_ELEMENT.pack(0, 17, 1, 1) + b"abc"
INLINE_HEAD = PAGE_HEAD.pack(0, LEAF, 0, 0)
DAMAGE: dict[str, bytes] = {
    "an element beside the buckets": database(leaf(2, (0, b"key", b"v"))),
    "a bucket in a bucket": with_key(leaf(3, (1, b"key", bucket_at(4))), leaf(4)),
    "a short bucket": database(leaf(2, (1, b"key", b"12345"))),
    "a bucket without a page": database(leaf(2, (1, b"key", bucket_at(0)))),
    "a bucket with a page and a leaf": database(leaf(2, (1, b"key", bucket_at(3, INLINE_HEAD))), leaf(3)),
    "an inline leaf cut short": database(leaf(2, (1, b"key", bucket_at(0, b"123")))),
    "an inline branch": database(leaf(2, (1, b"key", bucket_at(0, PAGE_HEAD.pack(0, BRANCH, 1, 0) + bytes(20))))),
    "an inline leaf with more pages": database(leaf(2, (1, b"key", bucket_at(0, PAGE_HEAD.pack(0, LEAF, 0, 1))))),
    "an inline leaf with elements missing": database(
        leaf(2, (1, b"key", bucket_at(0, PAGE_HEAD.pack(0, LEAF, 9, 0) + bytes(20))))
    ),
    "flags of an element": with_key(leaf(3, (2, b"k", b"v"))),
    "flags of a page": with_key(leaf(3, GOOD, flags=3)),
    "a meta in a tree": with_key(meta(3, page_count=4)),
    "a page of another number": with_key(leaf(4, GOOD)),
    "a page that is not there": database(leaf(2, (1, b"key", bucket_at(9)))),
    "a page below the first": database(leaf(2, (1, b"key", bucket_at(1)))),
    "a root that is not there": database(leaf(2), root=3),
    "more pages than there are": with_key(page(3, LEAF, 0, overflow=1)),
    "a branch to itself": with_key(branch(3, (b"a", 3), (b"b", 3))),
    "a branch to the root": with_key(branch(3, (b"a", 2), (b"b", 4)), leaf(4)),
    "a page reached twice": with_key(branch(3, (b"a", 4), (b"b", 4)), leaf(4, (0, b"a", b""))),
    "a page of two buckets": database(leaf(2, (1, b"a", bucket_at(3)), (1, b"b", bucket_at(3))), leaf(3, GOOD)),
    "a page in the middle of another": with_key(
        branch(3, (b"a", 4), (b"b", 5)), page(4, LEAF, 0, overflow=1), leaf(5, (0, b"b", b""))
    ),
    "an empty branch": with_key(page(3, BRANCH, 0)),
    "an empty key": with_key(leaf(3, (0, b"", b"v"))),
    "an empty key of a branch": with_key(branch(3, (b"", 4)), leaf(4, GOOD)),
    "keys out of order": with_key(leaf(3, (0, b"b", b""), (0, b"a", b""))),
    "a key twice": with_key(leaf(3, GOOD, GOOD)),
    "keys of a branch out of order": with_key(branch(3, (b"b", 4), (b"a", 5)), leaf(4), leaf(5)),
    "a key below its branch": with_key(branch(3, (b"b", 4), (b"c", 5)), leaf(4, (0, b"a", b"")), leaf(5)),
    "a key that belongs to the next": with_key(branch(3, (b"a", 4), (b"c", 5)), leaf(4, (0, b"c", b"")), leaf(5)),
    "more elements than fit": with_key(page(3, LEAF, 300)),
    "data before the elements' end": with_key(page(3, LEAF, 1, LEAF_ELEMENT.pack(0, 8, 1, 1))),
    "data that overlaps": with_key(page(3, LEAF, 2, OVERLAP)),
    "data behind the page": with_key(page(3, LEAF, 1, LEAF_ELEMENT.pack(0, 16, 1, 2**32 - 1))),
    "a key too long": with_key(page(3, LEAF, 1, LEAF_ELEMENT.pack(0, 16, 40_000, 0))),
    "fewer bytes than pages": database(leaf(2), page_count=9),
    "a free list that is not there": database(leaf(2), free_list=5),
    "a page size that is none": database(leaf(2), page_bytes=4_095),
    "a page size of nothing": database(leaf(2), page_bytes=0),
    "metas that are leaves": database(leaf(2), flags=2),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_contradicts_itself_is_corrupt(tmp_path: Path, name: str) -> None:
    (tmp_path / "db").write_bytes(DAMAGE[name])
    with pytest.raises(CorruptError) as caught:
        read(tmp_path / "db")
    assert str(tmp_path / "db") in str(caught.value)


def test_a_file_made_by_hand_is_read(tmp_path: Path) -> None:
    """So the damage above is what is wrong with those."""
    inline = PAGE_HEAD.pack(0, LEAF, 1, 0) + LEAF_ELEMENT.pack(0, 16, 1, 1) + b"kv"
    root = leaf(2, (1, b"inline", bucket_at(0, inline)), (1, b"key", bucket_at(3)))
    tree = [branch(3, (b"a", 4), (b"c", 5)), leaf(4, (0, b"a", b"1"), (0, b"b", b"")), leaf(5, (0, b"d", b"2"))]
    (tmp_path / "db").write_bytes(database(root, *tree))
    assert read(tmp_path / "db") == {b"inline": {b"k": b"v"}, b"key": {b"a": b"1", b"b": b"", b"d": b"2"}}


@pytest.mark.parametrize(
    "data",
    [b"", b"short", bytes(2 * PAGE_BYTES), b"text " * 5_000, database(leaf(2), version=3), database(leaf(2), magic=1)],
)
def test_what_is_no_database_is_told_from_a_damaged_one(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "db").write_bytes(data)
    with pytest.raises(FormatError):
        Database(tmp_path / "db")


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Database(tmp_path / "db")


def test_the_newer_meta_that_is_in_order_counts(tmp_path: Path) -> None:
    path = tmp_path / "db"
    old, new = leaf(2, (1, b"old", bucket_at(0, INLINE_HEAD))), leaf(3, (1, b"new", bucket_at(0, INLINE_HEAD)))
    first, second = meta(0, root=2, page_count=4, transaction=8), meta(1, root=3, page_count=4, transaction=9)
    path.write_bytes(first + second + old + new)
    assert list(read(path)) == [b"new"]
    path.write_bytes(first + bytes(PAGE_BYTES) + old + new)
    assert list(read(path)) == [b"old"]
    path.write_bytes(first[:40] + b"\xff" + first[41:] + second + old + new)
    assert list(read(path)) == [b"new"]
    path.write_bytes(first[:40] + b"\xff" + first[41:] + second[:40] + b"\xff" + second[41:] + old + new)
    with pytest.raises(CorruptError, match="checksum"):
        read(path)


def test_a_closed_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(packed({b"key": {b"a": b"1"}}))
    found = Database(tmp_path / "db")
    found.close()
    found.close()
    with pytest.raises(ClosedError):
        found.buckets()


def test_there_is_an_end_to_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "db").write_bytes(packed({b"a": {}, b"b": {}, b"c": {}}))
    monkeypatch.setattr(bbolt, "BUCKETS_MAX", 2)
    with pytest.raises(CorruptError, match="more than 2 buckets"):
        read(tmp_path / "db")


HOSTILE = packed(
    {
        b"alarm": {},
        b"key": {b"%017d" % number: bytes([number % 256]) * (number % 90) for number in range(2_000)},
        b"large": {b"a": bytes(9_000), b"b": bytes(20_000), b"c": b""},
        b"meta": {b"term": bytes(8)},
    }
)
PAGES = len(HOSTILE) // PAGE_BYTES
INTERESTING = st.sampled_from([0, 1, 2, 3, 4, 16, 17, 255, 256, 4_095, 4_096, 2**16 - 1, 2**31, 2**32 - 1, 2**63])
PATCHES = st.tuples(
    st.integers(0, PAGES - 1),
    st.integers(0, 80) | st.integers(0, PAGE_BYTES - 1),
    st.builds(
        lambda number, size: (number % 256**size).to_bytes(size, "little"), INTERESTING, st.sampled_from([1, 2, 4, 8])
    )
    | st.binary(min_size=1, max_size=8),
)


@given(st.lists(PATCHES, min_size=1, max_size=4), st.integers(0, len(HOSTILE)) | st.just(len(HOSTILE)), st.booleans())
def test_damage_of_any_kind_gives_our_errors_only(
    tmp_path_factory: pytest.TempPathFactory,
    patches: list[tuple[int, int, bytes]],
    length: int,
    has_checksum: bool,
) -> None:
    data = bytearray(HOSTILE)
    for number, offset, patch in patches:
        at = number * PAGE_BYTES + offset
        data[at : at + len(patch)] = patch
    del data[len(HOSTILE) :]
    if has_checksum:
        for at in (0, PAGE_BYTES):
            data[at + 72 : at + 80] = fnv(bytes(data[at + 16 : at + 72])).to_bytes(8, "little")
    path = tmp_path_factory.mktemp("bbolt") / "db"
    path.write_bytes(bytes(data[:length]))
    try:
        found = read(path)
    except (FormatError, CorruptError):
        return
    assert sum(map(len, found.values())) <= len(HOSTILE)
