"""Mirrors: the same as the store, at each look."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

import mvccstore
from mvccstore import ClosedError, KeyRange, KeyValue, Op, Store, Watcher
from mvccstore.recipes import Mirror
from mvccstore.recipes.mirror import MirrorSteps
from tests.recipes.recipes_kit import SECONDS

A = KeyRange.prefix(b"a/")


def test_it_is_what_the_store_has(store: Store) -> None:
    store.put(b"a/1", b"1")
    store.put(b"b/1", b"1")
    with store.mirror(b"a/") as mirror:
        assert list(mirror) == [b"a/1"]
        revision = store.put(b"a/2", b"2")
        assert mirror[b"a/2"] == store.get(b"a/2")
        assert mirror.revision == revision
        assert store.put(b"b/2") == mirror.revision
        store.delete(b"a/1")
        assert b"a/1" not in mirror
        assert (mirror.get(b"a/1"), mirror.get(b"a/1", 7)) == (None, 7)
        assert mirror.get(b"a/2") == mirror[b"a/2"]
        assert len(mirror) == 1
        with pytest.raises(KeyError):
            mirror[b"a/1"]
        with pytest.raises(KeyError):
            mirror[b"b/1"]
    assert len(store._hub) == 0


def test_it_follows_random_writes_and_compactions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvccstore.hub.TAIL_EVENTS_MAX", 5)
    rng = random.Random(7)
    with store.mirror(b"a/") as often, store.mirror(b"a/") as seldom, store.mirror(b"") as everything:
        for step in range(300):
            keys = [rng.choice([b"a/%d", b"b/%d"]) % number for number in rng.sample(range(9), 3)]
            choice = rng.random()
            if choice < 0.6:
                store.txn(success=[Op.put(key, b"%d" % step) for key in keys])
            elif choice < 0.9:
                store.delete(keys[0])
            elif store.revision > max(store.compact_revision, 1):
                store.compact(store.revision)
            mirrors = [often, seldom] if step % 50 == 49 else [often]
            for mirror in mirrors:
                assert list(mirror.values()) == list(store.range(A))
                assert mirror.revision == store.revision
        assert list(everything.items()) == [(kv.key, kv) for kv in store.range(KeyRange.all())]


def test_what_is_iterated_over_is_of_one_revision(store: Store) -> None:
    store.txn(success=[Op.put(b"a/%d" % number, b"0") for number in (3, 1, 2)])
    with store.mirror(b"a/") as mirror:
        keys, values, items = iter(mirror), mirror.values(), mirror.items()
        assert list(mirror.keys()) == [b"a/1", b"a/2", b"a/3"]
        store.delete(A)
        assert list(keys) == [b"a/1", b"a/2", b"a/3"]
        assert [kv.value for kv in values] == [b"0"] * 3
        assert dict(items)[b"a/2"].key == b"a/2"
        assert not mirror.keys()


def test_threads_see_whole_revisions_and_their_own_writes(store: Store, pool: ThreadPoolExecutor) -> None:
    with store.mirror(b"a/") as mirror:

        def write(name: int) -> None:
            for number in range(20):
                value = b"%d %d" % (name, number)
                revision = store.txn(success=[Op.put(b"a/%d" % each, value) for each in range(4)]).revision
                assert mirror[b"a/0"].mod_revision >= revision
                rows = list(mirror.values())
                assert len({kv.mod_revision for kv in rows}) == 1
                assert len(rows) == 4

        for each in [pool.submit(write, name) for name in range(6)]:
            each.result(SECONDS)


def test_whoever_looks_while_another_catches_up_waits_for_that(
    store: Store, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(b"a/1", b"1")
    with store.mirror(b"a/") as mirror:
        looks: list[Future[KeyValue]] = []
        take = MirrorSteps._take

        def take_late(self: MirrorSteps, watcher: Watcher) -> None:
            if not looks:
                store.put(b"a/1", b"3")
                looks.append(pool.submit(mirror.__getitem__, b"a/1"))
                wait(looks, 0.05)  # on time only if it does not wait
            take(self, watcher)

        monkeypatch.setattr(MirrorSteps, "_take", take_late)
        store.put(b"a/1", b"2")
        assert mirror[b"a/1"].value == b"3"
        assert looks[0].result(SECONDS).value == b"3"


def test_waiting_for_a_revision(store: Store, pool: ThreadPoolExecutor) -> None:
    with store.mirror(b"a/") as mirror:
        assert mirror.wait(1)
        assert mirror.wait(0)
        assert not mirror.wait(3, timeout=0)
        waiting = pool.submit(mirror.wait, 3, SECONDS)
        store.put(b"b/1")
        store.put(b"b/1")
        assert waiting.result(SECONDS)
        with pytest.raises(ValueError, match="revision"):
            mirror.wait(-1)
        with pytest.raises(ValueError, match="timeout"):
            mirror.wait(9, timeout=-1)


def test_looking_without_news_costs_no_look_at_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(b"a/1", b"1")
    with store.mirror(b"a/") as mirror:
        assert len(mirror) == 1
        with monkeypatch.context() as patched:
            patched.setattr(Mirror, "_catch_up", None)
            store.put(b"b/1", b"1")
            assert mirror[b"a/1"].value == b"1"
            assert b"a/2" not in mirror
            assert mirror.get(b"a/2") is None
            assert len(mirror) == len(list(mirror)) == 1


def test_an_interrupted_look_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.mirror(b"a/") as mirror:
        take = Mirror._take

        def interrupted(self: Mirror, watcher: mvccstore.Watcher) -> None:
            take(self, watcher)
            self._rows = {}
            raise KeyboardInterrupt

        store.put(b"a/1", b"1")
        with monkeypatch.context() as patched:
            patched.setattr(Mirror, "_take", interrupted)
            with pytest.raises(KeyboardInterrupt):
                len(mirror)
        assert list(mirror) == [b"a/1"]
        store.put(b"a/2", b"1")
        assert list(mirror) == [b"a/1", b"a/2"]


def test_a_forgotten_mirror_leaves_no_watcher(store: Store) -> None:
    mirror = store.mirror(b"a/")
    assert len(mirror) == 0
    assert len(store._hub) == 1
    del mirror
    gc.collect()
    assert len(store._hub) == 0


def test_a_closed_mirror_says_so(store: Store) -> None:
    store.put(b"a/1", b"1")
    closed = store.mirror(b"a/")
    closed.close()
    closed.close()
    left = store.mirror(b"a/")
    store.close()
    for mirror, what in ((closed, "mirror"), (left, "store")):
        looks: list[Callable[[], object]] = [
            lambda mirror=mirror: mirror[b"a/1"],
            lambda mirror=mirror: mirror.get(b"a/1"),
            lambda mirror=mirror: b"a/1" in mirror,
            lambda mirror=mirror: len(mirror),
            lambda mirror=mirror: list(mirror),
            lambda mirror=mirror: mirror.revision,
            lambda mirror=mirror: mirror.wait(9),
        ]
        for look in looks:
            with pytest.raises(ClosedError, match=f"{what} is closed"):
                look()


WRITER = """
import sys, mvccstore
with mvccstore.open(sys.argv[1], engine=sys.argv[2], durability="os") as store:
    print(store.put(b"a/1", b"1"), flush=True)
    for line in sys.stdin:
        print(eval(line), flush=True)
"""


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_beside_another_process_each_look_is_at_the_file(tmp_path: Path, engine: str) -> None:
    path = str(tmp_path / "store.mvcc")
    command = [sys.executable, "-c", WRITER, path, engine]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None

        def write(line: str) -> int:
            print(line, file=writer.stdin, flush=True)
            return int(writer.stdout.readline())  # type: ignore[union-attr]

        assert int(writer.stdout.readline()) == 2
        with mvccstore.open(path, read_only=True) as reader, reader.mirror(b"a/") as mirror:
            assert list(mirror) == [b"a/1"]
            revision = write('store.put(b"a/2")')
            assert b"a/2" in mirror
            assert write('store.delete(mvccstore.KeyRange.prefix(b"a/"))') == 2
            assert b"a/1" not in mirror
            assert mirror.wait(revision + 1, timeout=SECONDS)
            assert not mirror.wait(revision + 2, timeout=0)
