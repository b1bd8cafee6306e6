"""Keys of 1 to 100,000 bytes: a store has them in byte order, finds each, and mixes none up."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from mvccstore import KeyRange, Store

LENGTHS = (1, 2, 100, 480, 500, 503, 504, 505, 510, 511, 512, 513, 600, 1_000, 1_100, 4_096, 9_999, 100_000)


def random_keys(seed: int, number: int) -> list[bytes]:
    """Keys that share prefixes: each goes on from some other one, cut anywhere, or differs from it in one byte."""
    random = Random(seed)
    keys: list[bytes] = [b"k", b"k" * 100_000]
    while len(keys) < number:
        base = random.choice(keys)
        length = random.choice(LENGTHS)
        match random.randrange(4):
            case 0:
                key = (base + random.choice((b"\0", b"\xff", b"m")) * length)[:length]
            case 1:
                key = base[: random.randrange(len(base)) + 1] + random.randbytes(min(length, 30))
            case 2:
                place = random.randrange(len(base))
                key = base[:place] + bytes([random.randrange(256)]) + base[place + 1 :]
            case _:
                key = (base * (length // len(base) + 1))[:length]
        keys.append(key[:100_000])
    return list(dict.fromkeys(keys))


@pytest.fixture(params=range(4))
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_keys_of_any_length_come_in_byte_order(store: Store, seed: int) -> None:
    keys = random_keys(seed, 60)
    revisions = {key: store.put(key, b"%d" % i) for i, key in enumerate(keys)}
    assert max(map(len, keys)) == 100_000
    assert min(map(len, keys)) == 1
    assert [kv.key for kv in store.scan(KeyRange.all())] == sorted(keys)
    assert [kv.key for kv in store.range(KeyRange.all(), descending=True)] == sorted(keys, reverse=True)
    for i, key in enumerate(keys):
        found = store.get(key)
        assert found is not None
        assert (found.key, found.value, found.mod_revision) == (key, b"%d" % i, revisions[key])
    assert [event.kv.key for event in store.history(KeyRange.all())] == keys
    assert store.check() == []


def test_ranges_between_keys_of_any_length_are_cut_where_they_should(store: Store, seed: int) -> None:
    keys = sorted(random_keys(seed, 50))
    with store.begin() as txn:
        for key in keys:
            txn.put(key)
    random = Random(seed)
    for _ in range(60):
        one, other = sorted((random.choice(keys), random.choice(keys)))
        cut = other[: random.randrange(1, len(other) + 1)]
        for end in (other, cut, other + b"\0"):
            if one < end:
                expected = [key for key in keys if one <= key < end]
                assert [kv.key for kv in store.scan(KeyRange(one, end))] == expected
                assert store.count(KeyRange(one, end)) == len(expected)
        expected = [key for key in keys if key.startswith(cut)]
        assert [kv.key for kv in store.range(KeyRange.prefix(cut))] == expected


def test_history_and_deletes_of_long_keys_are_their_own(
    open_store: Callable[..., Store], engine: str, seed: int
) -> None:
    keys = random_keys(seed, 40)
    random = Random(seed)
    store = open_store(engine=engine)
    changes: list[tuple[str, bytes, int]] = []
    alive: set[bytes] = set()
    for _ in range(150):
        key = random.choice(keys)
        if key in alive and random.random() < 0.4:
            assert store.delete(key) == 1
            alive.remove(key)
            changes.append(("delete", key, store.revision))
        else:
            changes.append(("put", key, store.put(key)))
            alive.add(key)
    if engine != "memory":
        store.close()
        store = open_store()
    assert [(e.type, e.kv.key, e.revision) for e in store.history(KeyRange.all())] == changes
    for key in keys:
        expected = [change for change in changes if change[1] == key]
        assert [(e.type, e.kv.key, e.revision) for e in store.history(key)] == expected
        assert (store.get(key) is not None) is (key in alive)
    floor = store.revision - 50
    before = store.range(KeyRange.all(), revision=floor).kvs
    store.compact(floor, physical=True)
    assert store.range(KeyRange.all(), revision=floor).kvs == before
    assert {kv.key for kv in store.scan(KeyRange.all())} == alive
    assert store.delete(KeyRange.all()) == len(alive)
    store.compact(store.revision, physical=True)
    assert store.count(KeyRange.all()) == 0
    assert store.check() == []


@pytest.mark.parametrize("length", LENGTHS)
def test_keys_around_one_of_a_length_are_told_apart(store: Store, length: int) -> None:
    base = b"\x80" * length
    around = sorted(
        {base, base[:-1] + b"\x7f", base[:-1] + b"\x81", base + b"\0", base + b"\xff", base[:-1] or b"\x01"}
    )
    for key in reversed(around):
        store.put(key, key[-1:])
    assert [kv.key for kv in store.scan(KeyRange.all())] == around
    assert [kv.key for kv in store.scan(KeyRange.prefix(base))] == [key for key in around if key.startswith(base)]
    assert store.delete(base) == 1
    assert [kv.key for kv in store.scan(KeyRange.all())] == [key for key in around if key != base]
    assert [key for key in around if store.get(key, revision=store.revision - 1) is None] == []
