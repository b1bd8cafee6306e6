"""A thread that is interrupted, at each instruction where that can happen: nobody waits for it, nothing is half done."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import mvccstore
from mvccstore import Command, Op, Store
from mvccstore.commit import Turn
from mvccstore.engine import journal_txn
from mvccstore.types import LeaseGrantRequest, PutRequest, WriteRequest
from tests import journaled
from tests.concurrency.interrupter import Interrupted, Interrupter

SECONDS = 20
ENGINES = ("lmdb", "memory", "sqlite")
PACKAGE = str(Path(mvccstore.__file__).parent)
BOTH = (b"a", b"b")


def block(store: Store) -> None:
    block_of(store, b"1")


def block_of(store: Store, value: bytes) -> None:
    with store.begin() as txn:
        txn.put(b"a", value)
        txn.put(b"b", value)


def block_committed_early(store: Store) -> None:
    txn = store.begin()
    txn.put(b"a", b"1")
    txn.put(b"b", b"1")
    txn.commit()


def block_that_fails(store: Store) -> None:
    try:
        with store.begin() as txn:
            txn.put(b"c", b"1")
            raise ZeroDivisionError
    except ZeroDivisionError:
        store.txn(success=[Op.put(b"a", b"1"), Op.put(b"b", b"1")])


def compaction(store: Store) -> None:
    store.txn(success=[Op.put(b"a", b"1"), Op.put(b"b", b"1")])
    store.compact(store.revision, physical=True)


def check(store: Store) -> None:
    store.txn(success=[Op.put(b"a", b"1"), Op.put(b"b", b"1")])
    assert store.check() == []


def staged(store: Store) -> None:
    writes = store.stage_many([Op.txn(success=[Op.put(b"a", b"1"), Op.put(b"b", b"1")])])
    if writes is None:
        block(store)
    else:
        writes.complete()


WORK: tuple[Callable[[Store], None], ...] = (block, block_committed_early, block_that_fails, staged, compaction, check)


STRIDES = {compaction: 7, check: 13}
"""What has many places takes its time with each; other engines and other ways to write meet the others."""


@pytest.mark.parametrize("engine", [*ENGINES, journaled.NAME])
@pytest.mark.parametrize("work", WORK)
def test_thread_interrupted_at_any_instruction_leaves_the_store_to_the_others(
    tmp_path: Path, engine: str, work: Callable[[Store], None]
) -> None:
    harmed: list[str] = []
    before = sys.gettrace()  # what measures coverage, if anything
    for place in range(0, 100_000, STRIDES.get(work, 1)):
        store = mvccstore.open(None if engine == "memory" else tmp_path / f"{place}", engine=engine, durability="os")
        interrupter = Interrupter(place, PACKAGE)
        sys.settrace(interrupter)
        try:
            work(store)
        except Interrupted:
            pass
        finally:
            sys.settrace(before)
        harm = harm_to(store)
        if harm is not None:
            harmed.append(f"{place}, {interrupter.where}: {harm}")
        if interrupter.where is None:
            break
        if len(harmed) > 5:
            break
    assert place > 20
    assert not harmed, "\n".join(harmed)


PUTS = tuple(PutRequest(key, b"") for key in BOTH)
GRANTS = (LeaseGrantRequest(7, 60_000), LeaseGrantRequest(8, 60_000))


@pytest.mark.parametrize("engine", [*ENGINES, journaled.NAME])
@pytest.mark.parametrize("requests", [PUTS, GRANTS], ids=["puts", "grants"])
@pytest.mark.parametrize("where", ["committer.py", "engine"])
def test_what_who_leads_has_committed_for_others_is_answered(
    tmp_path: Path, engine: str, requests: Sequence[WriteRequest], where: str
) -> None:
    """What is not is written once more, by the next one that leads. A grant changes no revision."""
    before = sys.gettrace()
    for place in range(100_000):
        store = mvccstore.open(None if engine == "memory" else tmp_path / f"{place}", engine=engine, durability="os")
        committer = store._committer
        turns = [Turn(Command(request, 1)) for request in requests]
        committer.enter()
        interrupter = Interrupter(place, str(Path(PACKAGE, where)))
        sys.settrace(interrupter)
        try:
            committer._apply(turns)
        except Interrupted:
            pass
        finally:
            sys.settrace(before)
        committer.leave()
        is_done = len(store.leases()) == 2 if requests is GRANTS else store.revision == 3
        assert [turn.is_answered for turn in turns] == [is_done] * 2, interrupter.where
        store.close()
        if interrupter.where is None:
            break


def test_block_that_is_interrupted_on_its_way_around_the_journal_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_txn, "TXN_BYTES_MAX", 300)
    before = sys.gettrace()
    for place in range(100_000):
        store = mvccstore.open(tmp_path / f"{place}", engine=journaled.NAME, durability="os")
        interrupter = Interrupter(place, str(Path(journal_txn.__file__)))
        sys.settrace(interrupter)
        try:
            block_of(store, bytes(200))
        except Interrupted:
            pass
        finally:
            sys.settrace(before)
        assert harm_to(store) is None, interrupter.where
        if interrupter.where is None:
            break


def harm_to(store: Store) -> str | None:
    """Say what another thread finds wrong with a store; None if nothing."""
    found: list[str | None] = ["others wait for ever"]

    def probe() -> None:
        kept = tuple(kv.key for kv in store.scan(mvccstore.KeyRange.all()))
        revision = store.revision
        if kept not in {(), BOTH} or revision != (2 if kept else 1):
            found[0] = f"half of it happened: {kept} at {revision}"
        elif store.put(b"z", b"1") != revision + 1 or store.get(b"z") is None:
            found[0] = "a write that is not there"
        else:
            problems = store.check()
            found[0] = "; ".join(problems) or None
        store.close()

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return found[0]


def test_store_closed_by_an_interrupt_in_a_block_says_that_it_was_interrupted(tmp_path: Path, engine: str) -> None:
    """Where `with store.begin()` does not see the interrupt any more, or not yet, the `with` of the store does."""
    path = None if engine == "memory" else tmp_path / "store.mvcc"
    before = sys.gettrace()
    for place in range(100_000):
        interrupter = Interrupter(place, PACKAGE)
        store = mvccstore.open(path, engine=engine, durability="os")
        try:
            with store:
                sys.settrace(interrupter)
                block(store)
                sys.settrace(before)
        except Interrupted:
            sys.settrace(before)
        with pytest.raises(mvccstore.ClosedError):
            store.get(b"a")
        if interrupter.where is None:
            break
    assert place > 20


def test_block_that_is_forgotten_is_rolled_back(store: Store) -> None:
    store.begin().put(b"a", b"1")
    assert store.put(b"b", b"1") == 2
    assert store.get(b"a") is None


def test_store_that_is_forgotten_in_a_block_lives_as_long_as_that() -> None:
    txn = mvccstore.open().begin()
    txn.put(b"a", b"1")
    assert txn.commit() == 2
