"""What is packed comes back, sorts as it should, and nothing else passes for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvccstore import codec
from mvccstore.attributes import AttributesRequest
from mvccstore.codec import pack_command, unpack_command
from mvccstore.errors import CorruptError
from mvccstore.types import (
    BatchRequest,
    Command,
    CompactRequest,
    Compare,
    DeleteRequest,
    KeyRange,
    KeyValue,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    SubscriptionAckRequest,
    SubscriptionDeleteRequest,
    SubscriptionSaveRequest,
    TxnRequest,
    WriteRequest,
)

mains = st.integers(2, 2**63)
subs = st.integers(0, codec.SUB_MAX)
numbers = st.integers(-(2**63), 2**63 - 1)
counts = st.integers(0, 2**63)
blobs = st.binary(max_size=20)
keys = st.binary(min_size=1, max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
leases = st.one_of(st.just(0), numbers)
places = st.tuples(mains, subs, st.booleans(), leases)


def entry_of(place: tuple[int, int, bool, int], record: bytes, create_revision: int = 2, version: int = 1) -> bytes:
    main, sub, is_tombstone, lease = place
    if is_tombstone:
        return codec.pack_tombstone(main, sub, record)
    return codec.pack_put(main, sub, record, create_revision, version, lease)


@given(place=places, record=blobs)
def test_log_key_says_what_it_was_made_of(place: tuple[int, int, bool, int], record: bytes) -> None:
    main, sub, is_tombstone, lease = place
    entry = entry_of(place, record)
    log_key = codec.log_key_of(entry)
    assert len(log_key) == 16
    position = codec.unpack_log_key(log_key)
    assert (position.main, position.sub, position.is_tombstone) == (main, sub, is_tombstone)
    assert position.has_lease == (bool(lease) and not is_tombstone)
    assert codec.main_of(log_key) == codec.entry_main(entry) == main
    assert bool(codec.is_live(entry)) is not is_tombstone
    assert codec.matches_checksum(log_key, record)


@given(place=places, record=blobs, create_revision=counts, version=counts)
def test_entry_can_be_made_again_of_its_record(
    place: tuple[int, int, bool, int], record: bytes, create_revision: int, version: int
) -> None:
    entry = entry_of(place, record, create_revision, version)
    is_tombstone = place[2]
    row = KeyValue(b"k", *(0, 0, 0) if is_tombstone else (create_revision, 0, version), b"")
    assert codec.entry_of(codec.log_key_of(entry), row) == entry
    unpacked = codec.unpack_entry(entry)
    assert (unpacked.create_revision, unpacked.version) == (row.create_revision, row.version)


@given(one=places, other=places, records=st.tuples(blobs, blobs))
def test_log_keys_sort_by_revision_and_entries_the_other_way(
    one: tuple[int, int, bool, int], other: tuple[int, int, bool, int], records: tuple[bytes, bytes]
) -> None:
    first, second = entry_of(one, records[0]), entry_of(other, records[1])
    if one[:2] != other[:2]:
        is_earlier = one[:2] < other[:2]
        assert (codec.log_key_of(first) < codec.log_key_of(second)) is is_earlier
        assert (first > second) is is_earlier


@given(place=places, record=blobs, at=mains, at_sub=subs)
def test_seeking_a_revision_finds_what_is_visible_at_it(
    place: tuple[int, int, bool, int], record: bytes, at: int, at_sub: int
) -> None:
    entry, log_key = entry_of(place, record), codec.log_key_of(entry_of(place, record))
    assert (entry >= codec.entry_floor(at)) is (place[0] <= at)
    assert (entry >= codec.entry_at(at, at_sub)) is (place[:2] <= (at, at_sub))
    assert (log_key >= codec.log_key_floor(at)) is (place[0] >= at)


@given(place=places, record=blobs, bit=st.integers(0, 8 * 20 - 1))
def test_a_flipped_bit_of_a_record_contradicts_its_log_key(
    place: tuple[int, int, bool, int], record: bytes, bit: int
) -> None:
    flipped = bytearray(record)
    if bit < 8 * len(record):
        flipped[bit // 8] ^= 1 << bit % 8
        assert not codec.matches_checksum(codec.log_key_of(entry_of(place, record)), bytes(flipped))


@given(row=st.builds(KeyValue, keys, counts, counts, counts, blobs, numbers), cut=st.integers(1, 10))
def test_record_round_trips_and_a_shorter_one_is_corrupt(row: KeyValue, cut: int) -> None:
    packed = codec.pack_record(row)
    assert codec.unpack_record(packed) == row
    assert type(codec.unpack_record(packed)) is KeyValue
    with pytest.raises(CorruptError):
        codec.unpack_record(packed[:-cut])
    with pytest.raises(CorruptError):
        codec.unpack_record(packed + b"\0")


@given(garbage=st.one_of(st.none(), blobs, st.tuples(*[st.one_of(keys, numbers, st.booleans())] * 6).map(codec.pack)))
def test_garbled_record_is_corrupt_or_a_row(garbage: bytes | None) -> None:
    try:
        row = codec.unpack_record(garbage)
    except CorruptError:
        pass
    else:
        assert [type(field) for field in row] == [bytes, int, int, int, bytes, int]


@given(number=st.integers(0, 2**64 - 1), other=st.integers(0, 2**64 - 1))
def test_numbers_sort_as_numbers(number: int, other: int) -> None:
    assert codec.unpack_u64(codec.pack_u64(number)) == number
    assert (codec.pack_u64(number) < codec.pack_u64(other)) is (number < other)


@given(number=numbers, other=numbers)
def test_lease_ids_sort_as_numbers(number: int, other: int) -> None:
    assert codec.unpack_lease_id(codec.pack_lease_id(number)) == number
    assert (codec.pack_lease_id(number) < codec.pack_lease_id(other)) is (number < other)


ranges = st.one_of(
    st.builds(KeyRange, blobs),
    st.just(KeyRange.empty()),
    st.tuples(blobs, keys).map(lambda two: KeyRange(two[0], two[0] + two[1])),
)
key_or_range = st.one_of(keys, ranges)
puts = st.one_of(
    st.builds(PutRequest, keys, blobs, numbers, st.booleans()),
    st.builds(PutRequest, keys, st.just(b""), st.just(0), st.booleans(), st.booleans(), st.booleans()),
)
deletes = st.builds(DeleteRequest, key_or_range, st.booleans())
range_requests = st.builds(
    RangeRequest,
    key_or_range,
    numbers,
    numbers,
    st.sampled_from(("key", "version", "create", "mod", "value")),
    st.sampled_from(("none", "ascend", "descend")),
    st.booleans(),
    st.booleans(),
    numbers,
    numbers,
    numbers,
    numbers,
)
operators = st.sampled_from(("==", "!=", ">", "<"))
compares = st.one_of(
    st.builds(Compare, key_or_range, st.sampled_from(("version", "create", "mod", "lease")), operators, numbers),
    st.builds(Compare, key_or_range, st.just("value"), operators, blobs),
)
txns = st.recursive(
    st.just(TxnRequest()),
    lambda inner: st.builds(
        TxnRequest,
        st.lists(compares, max_size=2).map(tuple),
        st.lists(st.one_of(puts, deletes, range_requests, inner), max_size=3).map(tuple),
        st.lists(st.one_of(puts, deletes, range_requests, inner), max_size=3).map(tuple),
    ),
    max_leaves=4,
)
requests: st.SearchStrategy[WriteRequest] = st.one_of(
    puts,
    deletes,
    txns,
    st.builds(BatchRequest, st.lists(st.one_of(puts, deletes), max_size=3).map(tuple), counts),
    st.builds(CompactRequest, numbers, st.booleans()),
    st.builds(LeaseGrantRequest, numbers, counts),
    st.builds(LeaseRevokeRequest, numbers),
    st.builds(SubscriptionSaveRequest, names, key_or_range, *[st.one_of(st.none(), counts)] * 3),
    st.builds(SubscriptionAckRequest, names, counts),
    st.builds(SubscriptionDeleteRequest, names),
    st.builds(
        AttributesRequest,
        st.dictionaries(names, st.one_of(st.none(), blobs), max_size=3).map(lambda changes: tuple(changes.items())),
        st.one_of(st.none(), counts),
    ),
)
commands = st.builds(Command, requests, counts)


@given(command=commands)
def test_command_round_trips(command: Command) -> None:
    unpacked = unpack_command(pack_command(command))
    assert unpacked == command
    assert type(unpacked.request) is type(command.request)


@given(one=commands, other=commands)
def test_equal_commands_have_equal_bytes_and_others_have_not(one: Command, other: Command) -> None:
    assert (pack_command(one) == pack_command(other)) is (one == other)


@given(command=commands, cut=st.integers(1, 30))
def test_truncated_command_is_corrupt(command: Command, cut: int) -> None:
    with pytest.raises(CorruptError):
        unpack_command(pack_command(command)[:-cut])


def unpack_garbled(packed: bytes) -> None:
    """Corrupt, or a command like any other; nothing between, and no other error."""
    try:
        command = unpack_command(packed)
    except CorruptError:
        return
    assert type(command.time_ms) is int
    assert isinstance(command.request, WriteRequest)
    check_types(command.request)
    assert unpack_command(pack_command(command)) == command


NUMBERS = {
    "lease", "revision", "limit", "lease_id", "ttl_ms", "base_revision",
    "min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision",
}  # fmt: skip
FLAGS = {"prev_kv", "ignore_value", "ignore_lease", "keys_only", "count_only"}


def check_types(request: Any) -> None:
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if field.name in NUMBERS:
            assert type(value) is int
        elif field.name in FLAGS:
            assert type(value) is bool
        elif field.name == "requests":
            assert all(isinstance(member, PutRequest | DeleteRequest) for member in value)
            for member in value:
                check_types(member)
        elif field.name in {"success", "failure"}:
            for member in value:
                check_types(member)


@given(command=commands, place=st.integers(0, 200), byte=st.integers(0, 255))
def test_command_with_a_changed_byte_is_corrupt_or_a_command(command: Command, place: int, byte: int) -> None:
    packed = bytearray(pack_command(command))
    packed[place % len(packed)] = byte
    unpack_garbled(bytes(packed))


@given(garbage=st.binary(max_size=60))
def test_random_bytes_are_corrupt_or_a_command(garbage: bytes) -> None:
    unpack_garbled(garbage)


scalars = st.one_of(st.none(), st.booleans(), numbers, blobs, st.text(max_size=5), st.floats(allow_nan=False))
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=7), st.dictionaries(blobs, inner, max_size=2)),
    max_leaves=8,
)
tags = st.sampled_from(
    ("put", "delete", "range", "txn", "batch", "compact", "grant", "revoke", "attributes", "nothing")
)


@given(
    version=st.sampled_from((1, 1, 1, 2, "1")),
    time_ms=st.one_of(counts, scalars),
    tag=tags,
    fields=st.lists(trees, max_size=11),
)
def test_wrong_fields_are_corrupt_or_a_command(
    version: object, time_ms: object, tag: str, fields: list[object]
) -> None:
    unpack_garbled(msgpack.packb([version, time_ms, [tag, *fields]]))


WRONG_TYPES = {
    "a revision that is no number": ["compact", b"x"],
    "a ttl that is no number": ["grant", 1, None],
    "a lease that is no number": ["revoke", "1"],
    "a batch of compactions": ["batch", [["compact", 5]], 1],
    "a base revision that is no number": ["batch", [], "1"],
    "an attribute without a value": ["attributes", [["a"]], None],
    "an attribute that is a number": ["attributes", [["a", 1]], None],
    "an attribute that is changed twice": ["attributes", [["a", b"1"], ["a", b"2"]], None],
    "an attribute without a name": ["attributes", [["", b"1"]], None],
    "attributes in no list": ["attributes", b"", None],
    "a base below none": ["attributes", [], -1],
    "a base of text": ["attributes", [], "1"],
    "a flag that is no flag": ["delete", b"k", "yes"],
    "a read as a write": ["range", b"k", 0, 0, "key", "none", False, False, 0, 0, 0, 0],
}


@pytest.mark.parametrize("problem", WRONG_TYPES)
def test_command_of_wrong_types_is_corrupt(problem: str) -> None:
    with pytest.raises(CorruptError):
        unpack_command(msgpack.packb([1, 0, WRONG_TYPES[problem]]))


def test_time_that_is_no_number_is_corrupt() -> None:
    with pytest.raises(CorruptError):
        unpack_command(msgpack.packb([1, "now", ["compact", 5]]))


@pytest.mark.parametrize("depth", [100, 300, 505, 1_000, 100_000])
def test_command_nested_without_end_is_corrupt_or_a_command(depth: int) -> None:
    txn = b"\x94\xa3txn\x90\x91"  # ["txn", [], [
    packed = b"\x93\x01\x00" + txn * depth + msgpack.packb(["delete", b"k", False]) + b"\x90" * depth
    try:
        command = unpack_command(packed)
    except CorruptError:
        pass
    else:
        assert isinstance(command.request, TxnRequest)
