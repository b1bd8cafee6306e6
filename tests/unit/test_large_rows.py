"""Pages end by bytes too: large values are read a few at a time, and nothing is left out or given twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from random import Random

import pytest

from mvccstore import KeyRange, Keys, Store
from mvccstore.mvcc.history import History
from tests.guarantees import Watched, watch_problems

SIZES = (0, 10, 1_000, 100_000, 700_000)


def test_a_page_of_history_ends_with_its_bytes(store: Store) -> None:
    for number in range(40):
        store.put(b"k%d" % (number % 2), b"x" * 1_000_000)
    for keys in (KeyRange.all(), b"k0"):
        pages = History(keys, 1, store.revision, -1)
        with closing(store._engine.read()) as txn:
            resume = pages.start(txn)
            sizes = []
            while resume is not None:
                events, resume = pages.page(txn, resume, 1_000)
                sizes.append(len(events))
        assert sum(sizes) == (40 if isinstance(keys, KeyRange) else 20)
        # The first read of a page is of a few records, whatever their size.
        assert max(sizes[1:], default=0) <= 16
        assert len(sizes) > 1


@pytest.mark.parametrize("seed", range(3))
def test_replays_of_mixed_sizes_are_whole(open_store: Callable[..., Store], seed: int) -> None:
    seeded = Random(seed)
    store = open_store()
    for _ in range(120):
        store.put(b"%d" % seeded.randrange(3), seeded.randbytes(seeded.choice(SIZES)))
    everything = list(store.history(KeyRange.all()))
    assert [event.revision for event in everything] == list(range(2, 122))
    for keys in (KeyRange.all(), b"1", KeyRange(b"1", b"3")):
        watched = Watched(keys, 2)
        with store.watch(keys, start_revision=2) as watcher:
            while (batch := watcher.next_batch(timeout=0)) is not None:
                watched.taken.append((batch, watcher.revision))
            watched.revision = watcher.revision
        assert watch_problems(watched, everything) == []


@pytest.mark.parametrize("bytes_max", [0, 1, 5_000, 1 << 20, 1 << 30])
@pytest.mark.parametrize("limit", [1, 7, 15, 16, 17, 1_000])
def test_pages_of_rows_are_whole(store: Store, bytes_max: int, limit: int) -> None:
    seeded = Random(bytes_max + limit)
    with store.begin() as txn:
        for number in range(100):
            txn.put(b"%03d" % number, b"x" * seeded.choice((0, 10, 1_000, 20_000)))
    expected = store.range(KeyRange.all()).kvs
    resume: bytes | None = b""
    found = []
    while resume is not None:
        page = store.page(KeyRange(resume), limit=limit, bytes_max=bytes_max)
        assert 1 <= len(page.kvs) <= limit
        found += page.kvs
        resume = page.resume
    assert tuple(found) == expected


def test_what_is_no_page_is_refused(store: Store) -> None:
    keys: Keys = KeyRange.all()
    assert store.page(keys).kvs == ()
    assert store.page(keys).resume is None
    with pytest.raises(ValueError, match="limit is 0"):
        store.page(keys, limit=0)
    with pytest.raises(ValueError, match="bytes_max -1"):
        store.page(keys, bytes_max=-1)
