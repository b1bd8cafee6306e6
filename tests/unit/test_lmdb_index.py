"""The LMDB index against a dict of sets: keys of every length, at every boundary, whatever the bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mvccstore.engine.lmdb_index import SHORT_BYTES_MAX, LmdbIndex
from mvccstore.errors import CorruptError
from mvccstore.tables import ENTRY_BYTES

Txn = lmdb.Transaction
Model = dict[bytes, set[bytes]]

LOW, HIGH = bytes(ENTRY_BYTES), b"\xff" * ENTRY_BYTES
TAIL_BYTES_MAX = 502


def entry_of(number: int) -> bytes:
    return number.to_bytes(ENTRY_BYTES, "big")


class Harness:
    """An environment, its index, and the same index as a model."""

    def __init__(self, directory: str) -> None:
        self.env = lmdb.open(directory, map_size=1 << 30, max_dbs=4, sync=False, metasync=False)
        self.index_db = self.env.open_db(b"index", dupsort=True, dupfixed=True)
        self.tails_db = self.env.open_db(b"tails", dupsort=True, dupfixed=True)
        self.index = LmdbIndex(self.index_db, self.tails_db, "x.mvcc")
        self.model: Model = {}
        self.txn: Txn | None = None

    def begin(self) -> Txn:
        """Start over. A failed example leaves its transaction open, and a second one would wait for it."""
        if self.txn is not None:
            self.txn.abort()
        self.model = {}
        self.txn = self.env.begin(write=True)
        return self.txn

    def add(self, txn: Txn, key: bytes, entry: bytes) -> None:
        self.index.add(txn, key, entry)
        self.model.setdefault(key, set()).add(entry)

    def remove(self, txn: Txn, key: bytes, entries: list[bytes]) -> None:
        self.index.remove(txn, key, entries)
        left = self.model.get(key, set()) - set(entries)
        if left:
            self.model[key] = left
        else:
            self.model.pop(key, None)

    def check_key(self, txn: Txn, key: bytes, at: bytes, limit: int) -> None:
        stored = sorted(self.model.get(key, ()))
        up = [entry for entry in stored if entry >= at]
        down = [entry for entry in stored[::-1] if entry <= at]
        assert self.index.newest(txn, key) == (stored[0] if stored else None)
        assert self.index.newest_at(txn, key, at) == (up[0] if up else None)
        assert self.index.entries(txn, key, at, limit) == up[:limit]
        assert self.index.entries(txn, key, at, limit, reverse=True) == down[:limit]

    def check_page(self, txn: Txn, start: bytes, end: bytes | None, at: bytes, limit: int) -> None:
        expected = []
        for key in sorted(self.model):
            if start <= key and (end is None or key < end):
                up = [entry for entry in self.model[key] if entry >= at]
                if up:
                    expected.append((key, min(up)))
        assert self.index.newest_page(txn, start, end, at, limit) == expected[:limit]

    def check_whole(self, txn: Txn) -> None:
        assert self.index.problems(txn) == []
        assert self.index.length(txn) == sum(map(len, self.model.values()))
        self.check_page(txn, b"", None, LOW, 10**6)

    def check_empty(self, txn: Txn) -> None:
        assert self.index.length(txn) == 0
        assert txn.stat(self.index_db)["entries"] == 0
        assert txn.stat(self.tails_db)["entries"] == 0


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    made = Harness(str(tmp_path_factory.mktemp("lmdb")))
    yield made
    made.env.close()


@pytest.fixture
def txn(harness: Harness) -> Iterator[Txn]:
    begun = harness.begin()
    yield begun
    begun.abort()


# Where keys are cut, by 510 and then 502, and where an LMDB key of 511 and its neighbours are.
LENGTHS = [1, 2, 9, *range(502, 514), *range(998, 1001), *range(1010, 1016), 1493, *range(1513, 1518), 2016, 5000]
BYTES = [0, 1, 0x61, 0xFF]
ENTRIES = [LOW, entry_of(1), entry_of(2**64 - 1), entry_of(2**64), entry_of(2**127), HIGH[:-1] + b"\0", HIGH]


@st.composite
def keys(draw: st.DrawFn) -> bytes:
    """A run of one byte, changed at a few places that matter: keys that share prefixes and then part."""
    length = draw(st.sampled_from(LENGTHS))
    key = bytearray([draw(st.sampled_from(BYTES))] * length)
    places = [place for place in (0, 509, 510, 511, 512, 1011, 1012, 1013, 1514, length - 1) if place < length]
    for place in draw(st.lists(st.sampled_from(places), max_size=2)):
        key[place] = draw(st.sampled_from(BYTES))
    return bytes(key)


@st.composite
def bounds(draw: st.DrawFn, pool: list[bytes]) -> bytes:
    """A bound at, just above, just below or at a cut of one of the keys."""
    key = draw(st.sampled_from(pool))
    cut = draw(st.sampled_from([0, 1, 509, 510, 511, 512, 1011, 1012, 1013, 1514, len(key), len(key), len(key) - 1]))
    return key[:cut] + draw(st.sampled_from([b"", b"", b"\0", b"\0\0", b"\1", b"\xff", b"\0a"]))


@settings(max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_it_answers_as_a_dict_of_sets_would(harness: Harness, data: st.DataObject) -> None:
    pool = data.draw(st.lists(keys(), min_size=1, max_size=10, unique=True))
    key, entry, limit = st.sampled_from(pool), st.sampled_from(ENTRIES), st.sampled_from([0, 1, 2, 3, 5, 100])
    step = st.one_of(
        st.tuples(st.just("add"), key, st.lists(entry, min_size=1, max_size=4)),
        st.tuples(st.just("remove"), key, st.lists(entry, max_size=4)),
    )
    query = st.tuples(bounds(pool), st.none() | bounds(pool), entry, limit)
    txn = harness.begin()
    for verb, chosen, entries in data.draw(st.lists(step, min_size=1, max_size=25)):
        if verb == "add":
            for one in entries:
                harness.add(txn, chosen, one)
        else:
            harness.remove(txn, chosen, entries)
        assert harness.index.length(txn) == sum(map(len, harness.model.values()))
    harness.check_whole(txn)
    for start, end, at, limit_ in data.draw(st.lists(query, min_size=4, max_size=8)):
        harness.check_page(txn, start, end, at, limit_)
        for one in pool:
            harness.check_key(txn, one, at, limit_)
    for one in pool:
        harness.remove(txn, one, ENTRIES)
    harness.check_empty(txn)
    txn.abort()


@pytest.mark.parametrize("length", [SHORT_BYTES_MAX, SHORT_BYTES_MAX + 1, SHORT_BYTES_MAX + TAIL_BYTES_MAX + 1])
def test_a_full_chunk_sorts_between_its_neighbours(harness: Harness, txn: Txn, length: int) -> None:
    for key in (b"k" * length, b"k" * length + b"\0", b"k" * (length - 1) + b"l", b"k" * (length - 1)):
        harness.add(txn, key, LOW)
    harness.check_whole(txn)


def test_a_bound_cuts_only_the_branch_that_it_is_in(harness: Harness, txn: Txn) -> None:
    branches = [first * 510 + b"k" * 502 for first in (b"a", b"b", b"c")]
    for branch in branches:
        for tail in (b"d", b"m", b"x", b"m" * 502, b"m" * 503, b"x" * 503):
            harness.add(txn, branch + tail, LOW)
    for tail in (b"d", b"m", b"mm", b"m" * 502, b"m" * 502 + b"\0", b"n"):
        for branch in branches:
            harness.check_page(txn, b"", branch + tail, LOW, 99)
            harness.check_page(txn, branch + tail, None, LOW, 99)
            harness.check_page(txn, branch + tail, branches[-1] + b"n", LOW, 99)


def test_a_page_is_in_order_and_bounded_for_2000_keys_of_all_lengths(harness: Harness, txn: Txn) -> None:
    rng = random.Random(7)
    made: list[bytes] = [b"\0"]
    while len(made) < 2000:
        parent = rng.choice(made)
        length = rng.randint(1, 3000)
        key = (parent[: rng.randint(0, len(parent))] + rng.choice([b"", b"\0", b"\xff"]) + rng.randbytes(length))[
            :length
        ]
        made.append(key)
        for _ in range(rng.randint(1, 3)):
            harness.add(txn, key, entry_of(rng.randrange(2**128)))
    harness.check_whole(txn)
    ordered = sorted(harness.model)
    for _ in range(60):
        start, end = sorted(rng.sample(ordered, 2))
        harness.check_page(txn, start, end, rng.choice([LOW, entry_of(2**127)]), rng.choice([1, 10, 5000]))
    paged: list[bytes] = []
    while rows := harness.index.newest_page(txn, paged[-1] + b"\0" if paged else b"", None, LOW, 37):
        paged += [key for key, _ in rows]
    assert paged == ordered
    rng.shuffle(ordered)
    for key in ordered:
        harness.remove(txn, key, list(harness.model[key]))
    harness.check_empty(txn)


@pytest.mark.parametrize("length", [100_000, 1_572_864])
@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_a_huge_key_works_without_recursion(harness: Harness, txn: Txn, length: int, fill: bytes) -> None:
    huge = fill * length
    several = [huge, huge[:-1], huge[:-1] + b"a", huge[: length // 2], huge[: length // 2] + b"a", fill, b"a"]
    for key in several:
        harness.add(txn, key, entry_of(2))
        harness.add(txn, key, entry_of(9))
    assert harness.index.length(txn) == 2 * len(several)
    assert harness.index.problems(txn) == []
    for start, end in ((b"", None), (huge, None), (huge, huge + b"\0"), (huge[:-1], huge), (huge[:700], huge[:-1])):
        for at in (LOW, entry_of(5)):
            harness.check_page(txn, start, end, at, 100)
    harness.check_key(txn, huge, entry_of(5), 10)
    harness.check_key(txn, huge + b"a", entry_of(5), 10)
    for key in several:
        harness.remove(txn, key, [entry_of(2), entry_of(9)])
    harness.check_empty(txn)


def test_an_old_page_is_refilled_past_keys_that_are_newer(harness: Harness, txn: Txn) -> None:
    rng = random.Random(3)
    for number in range(3000):
        harness.add(txn, b"k%05d" % number, entry_of(2**126))
        if number % 10 == 7:
            harness.add(txn, b"k%05d" % number, entry_of(2**127 + number))
    for _ in range(15):
        start, end = sorted(b"k%05d" % number for number in rng.sample(range(3000), 2))
        for limit in (1, 20, 100, 1000):
            for at in (LOW, entry_of(2**64), entry_of(2**126), entry_of(2**127), HIGH):
                harness.check_page(txn, start, rng.choice([end, None]), at, limit)
    harness.add(txn, b"k01500" + b"x" * 1000, entry_of(2**127))
    for at in (LOW, entry_of(2**126), entry_of(2**127), HIGH):
        harness.check_page(txn, b"k", b"k02000", at, 1000)


@pytest.mark.parametrize("key", [b"k", b"k" * 2000])
def test_removing_many_entries_is_exact(harness: Harness, txn: Txn, key: bytes) -> None:
    rng = random.Random(5)
    universe = [entry_of(number) for number in range(300)]
    neighbour = key + b"\0"
    for _ in range(150):
        for entry in rng.sample(universe, rng.choice([1, 20, 200])):
            harness.add(txn, key, entry)
            harness.add(txn, neighbour, entry)
        stored = sorted(harness.model[key])
        first = rng.choice([0, 0, rng.randrange(len(stored))])
        doomed = stored[first : rng.choice([len(stored), len(stored) - 1, first + 20])]
        shape = rng.randrange(6)
        if shape == 1:
            doomed.reverse()
        elif shape == 2:
            rng.shuffle(doomed)
        elif shape == 3:
            doomed = doomed * 2
        elif shape == 4:
            doomed += rng.sample(universe, 30)
        elif shape == 5:
            doomed = doomed[:17] + doomed[18:]
        harness.remove(txn, key, doomed)
        assert harness.index.entries(txn, key, LOW, 1000) == sorted(harness.model.get(key, ()))
        assert harness.index.entries(txn, neighbour, LOW, 1000) == sorted(harness.model[neighbour])
    harness.check_whole(txn)


def test_entries_of_a_key_with_many_go_both_ways(harness: Harness, txn: Txn) -> None:
    rng = random.Random(11)
    for number in range(0, 20_000, 2):
        harness.add(txn, b"hot", entry_of(number + 1))
    for number in (0, 1, 2, 19_998, 19_999, 20_000, *rng.sample(range(20_000), 20)):
        harness.check_key(txn, b"hot", entry_of(number), 25)
    harness.check_key(txn, b"hot", HIGH, 10**6)
    harness.check_key(txn, b"hos", LOW, 5)


def test_it_sees_what_was_committed(harness: Harness) -> None:
    harness.begin().abort()
    with harness.env.begin(write=True) as txn:
        LmdbIndex.open(harness.env, "x.mvcc", txn=txn).add(txn, b"k" * 3000, LOW)
    with harness.env.begin() as txn:
        assert LmdbIndex.open(harness.env, "x.mvcc", txn=txn, create=False).newest(txn, b"k" * 3000) == LOW
    with harness.env.begin(write=True) as txn:
        harness.index.remove(txn, b"k" * 3000, [LOW])
        harness.check_empty(txn)


# What the index is after adding one entry to a key of 1,600 bytes: links to nodes 1, 2 and 3.
LONG = b"k" * 1600
LINK = b"k" * 510 + b"\0"
DEEP_LINK = (1).to_bytes(8, "big") + b"k" * 502 + b"\0"


def damage_link_head(harness: Harness, txn: Txn) -> None:
    txn.delete(LINK, db=harness.index_db)
    txn.put(LINK, b"\1" + entry_of(1)[1:], db=harness.index_db)


def damage_link_mark(harness: Harness, txn: Txn) -> None:
    txn.put(b"k" * 511, entry_of(1), db=harness.index_db)


def damage_link_backwards(harness: Harness, txn: Txn) -> None:
    txn.delete(DEEP_LINK, db=harness.tails_db)
    txn.put(DEEP_LINK, entry_of(1), db=harness.tails_db)


def damage_link_to_nowhere(harness: Harness, txn: Txn) -> None:
    txn.delete(DEEP_LINK, db=harness.tails_db)
    txn.put(DEEP_LINK, entry_of(9), db=harness.tails_db)


def damage_node_missing(harness: Harness, txn: Txn) -> None:
    txn.delete(DEEP_LINK, db=harness.tails_db)


def damage_tail_missing(harness: Harness, txn: Txn) -> None:
    txn.delete((3).to_bytes(8, "big") + b"k" * 86, db=harness.tails_db)


def damage_tail_size(harness: Harness, txn: Txn) -> None:
    damage_tail_missing(harness, txn)
    txn.put((3).to_bytes(8, "big") + b"k" * 86, b"short", db=harness.tails_db)


DAMAGES = [
    damage_link_head,
    damage_link_backwards,
    damage_link_to_nowhere,
    damage_node_missing,
    damage_tail_missing,
    damage_tail_size,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_reported_and_not_followed(
    harness: Harness, txn: Txn, damage: Callable[[Harness, Txn], None]
) -> None:
    harness.index.add(txn, LONG, LOW)
    assert harness.index.problems(txn) == []
    damage(harness, txn)
    assert harness.index.problems(txn)
    index = harness.index
    # Above every link. What is below `at` is passed over, whatever its size.
    at = LOW if damage is damage_tail_size else b"\2" + LOW[1:]
    for read in (
        lambda: index.newest(txn, LONG),
        lambda: index.newest_at(txn, LONG, LOW),
        lambda: index.entries(txn, LONG, LOW, 9),
        lambda: index.newest_page(txn, b"", None, LOW, 9),
        lambda: index.newest_page(txn, b"k" * 100, b"l", LOW, 9),
        lambda: index.newest_page(txn, b"k" * 505, LONG + b"\0", at, 9),
    ):
        with pytest.raises(CorruptError, match=r"^x\.mvcc: index: "):
            read()


def test_short_entries_of_the_wrong_size_are_reported(harness: Harness, txn: Txn) -> None:
    txn.put(b"k", b"short" * 5, db=harness.index_db)
    assert harness.index.problems(txn) == ["index: b'k': I3: entry of 25 bytes"]
    for read in (
        lambda: harness.index.newest(txn, b"k"),
        lambda: harness.index.newest_at(txn, b"k", LOW),
        lambda: harness.index.entries(txn, b"k", LOW, 1),
        lambda: harness.index.newest_page(txn, b"", None, LOW, 1),
    ):
        with pytest.raises(CorruptError, match="entry of 25 bytes"):
            read()
    harness.add(txn, b"k" * 600, LOW)
    with pytest.raises(CorruptError, match="entry of 25 bytes"):
        harness.index.newest_page(txn, b"", None, LOW, 9)


def test_stray_records_and_a_wrong_count_are_reported(harness: Harness, txn: Txn) -> None:
    def problems_after(*records: tuple[bytes, bytes]) -> list[str]:
        child: Txn = harness.env.begin(write=True, parent=txn)
        for key, value in records:
            child.delete(b"\0", db=harness.tails_db)
            child.put(key, value, db=harness.tails_db)
        found = harness.index.problems(child)
        child.abort()
        return found

    harness.index.add(txn, LONG, LOW)
    three = (b"\0", entry_of(3))
    assert problems_after(three) == []
    assert problems_after((b"\0", entry_of(4))) == ["tails: I6: 3 links, counted as 4"]
    assert problems_after((b"\0", b"?")) == ["tails: I6: index: count of 1 bytes at b'\\x00'"]
    assert problems_after((entry_of(7)[-8:] + b"a", LOW), three) == ["tails: I4: no link to node 0000000000000007"]
    assert problems_after((entry_of(2)[-8:], LOW), three) == [
        "tails: b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02': I1: entries without a key"
    ]
    again = (entry_of(2)[-8:] + b"j" * 502 + b"\0", entry_of(3))
    assert problems_after(again, (b"\0", entry_of(4))) == ["tails: I4: 4 links to 3 nodes"]
    twice = (DEEP_LINK, entry_of(3))
    assert "I2: malformed link" in " ".join(problems_after(twice, three))


def test_damage_is_not_written_over(harness: Harness, txn: Txn) -> None:
    harness.index.add(txn, LONG, LOW)
    txn.delete(b"\0", db=harness.tails_db)
    with pytest.raises(CorruptError, match="more links than were counted"):
        harness.index.remove(txn, LONG, [LOW])
    txn.put(b"\0", entry_of(99), db=harness.tails_db)
    with pytest.raises(CorruptError, match="99 links counted in fewer records"):
        harness.index.length(txn)
    txn.put(b"\xff" * 8, LOW, db=harness.tails_db)
    with pytest.raises(CorruptError, match="node without keys"):
        harness.index.add(txn, b"j" * 600, LOW)
    txn.put(b"\xff" * 9, LOW, db=harness.tails_db)
    with pytest.raises(CorruptError, match="node ids are used up"):
        harness.index.add(txn, b"j" * 600, LOW)
    damage_link_mark(harness, txn)
    with pytest.raises(CorruptError, match="malformed link"):
        harness.index.newest_page(txn, b"k" * 510 + b"a", None, LOW, 9)
