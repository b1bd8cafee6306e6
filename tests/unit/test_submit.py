"""Requests of many callers submitted at once: one commit, and for each its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import mvccstore
from mvccstore import Command, Compare, KeyRange, Op, PutResult, Result, Store, StoreError, aio
from mvccstore.attributes import AttributesRequest
from mvccstore.commit import BATCH_MAX
from mvccstore.types import CompactRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, WriteRequest

OpenStore = Callable[..., Store]
REQUESTS: list[WriteRequest] = [
    Op.put(b"a", b"1"),
    Op.put(b"b", b"1", lease=9),
    LeaseGrantRequest(9, 5_000),
    Op.put(b"b", b"2", lease=9),
    Op.txn(compare=[Compare.value(b"a", "==", b"1")], success=[Op.delete(b"a"), Op.range(b"a")]),
    CompactRequest(100),
    AttributesRequest((("a", b"1"),), base=7),
    AttributesRequest((("a", b"1"),), base=0),
    CompactRequest(3),
    Op.delete(KeyRange.all(), prev_kv=True),
    LeaseRevokeRequest(9),
    LeaseRevokeRequest(9),
]


class Here:
    """A replicator that has everything applied at once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.commands: list[Command] = []

    def propose(self, command: Command) -> Result:
        self.commands.append(command)
        if command.request == PutRequest(b"not replicated"):
            raise mvccstore.NotLeaderError
        if command.request == PutRequest(b"broken"):
            raise KeyError
        (answer,) = self.store.apply_replicated([command], b"%d" % len(self.commands))
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def close(self) -> None:
        pass


def one_by_one(store: Store, requests: Sequence[WriteRequest]) -> list[object]:
    answers: list[object] = []
    for request in requests:
        try:
            answers.append(store.submit(request))
        except StoreError as error:
            answers.append((type(error), error.args))
    return answers


def shown(answers: list[Result | StoreError]) -> list[object]:
    return [(type(answer), answer.args) if isinstance(answer, StoreError) else answer for answer in answers]


def count_commits(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    committed: list[object] = []
    on_commit = store._committer._on_commit

    def told(changes: Any) -> None:
        committed.append(changes)
        on_commit(changes)

    monkeypatch.setattr(store._committer, "_on_commit", told)
    return committed


def test_each_has_the_answer_that_it_would_have_alone(
    open_store: OpenStore, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, alone = open_store("together", engine=engine), open_store("alone", engine=engine)
    committed = count_commits(together, monkeypatch)
    assert shown(together.submit_many(REQUESTS)) == one_by_one(alone, REQUESTS)
    assert len(committed) == 1
    assert together.hash_kv() == alone.hash_kv()
    assert together.attributes() == alone.attributes()


def test_beside_a_replicator_each_goes_through_it(open_store: OpenStore, engine: str) -> None:
    made: list[Here] = []

    def make(store: Store) -> Here:
        made.append(Here(store))
        return made[0]

    replicated = open_store("replicated", engine=engine, replicator=make)
    alone = open_store("alone", engine=engine)
    assert shown(replicated.submit_many(REQUESTS)) == one_by_one(alone, REQUESTS)
    assert [command.request for command in made[0].commands] == REQUESTS
    answers = replicated.submit_many([PutRequest(b"k"), PutRequest(b"not replicated"), PutRequest(b"l")])
    assert isinstance(answers[1], mvccstore.NotLeaderError)
    assert [type(answer) for answer in answers[::2]] == [PutResult, PutResult]
    with pytest.raises(KeyError):  # its fault, not the request's
        replicated.submit_many([PutRequest(b"broken"), PutRequest(b"m")])
    assert replicated.get(b"m") is None


def test_more_than_fit_into_one_commit_take_several(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = count_commits(store, monkeypatch)
    requests = [PutRequest(b"%d" % number) for number in range(2 * BATCH_MAX + 1)]
    assert store.submit_many(requests) == [PutResult(number + 2) for number in range(2 * BATCH_MAX + 1)]
    assert len(committed) == 3


def test_who_must_not_wait_is_answered_alike(
    open_store: OpenStore, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trying, alone = open_store("trying", engine=engine), open_store("alone", engine=engine)
    committed = count_commits(trying, monkeypatch)
    answers = trying.try_submit_many(REQUESTS)
    assert answers is not None
    assert shown(answers) == one_by_one(alone, REQUESTS)
    assert len(committed) == 1
    assert trying.try_submit_many([]) == []


def test_who_must_not_wait_does_nothing_while_another_thread_writes(store: Store) -> None:
    is_in_block, may_end = threading.Event(), threading.Event()

    def block() -> None:
        with store.begin() as txn:
            txn.put(b"k", b"theirs")
            is_in_block.set()
            may_end.wait(60)

    thread = threading.Thread(target=block)
    thread.start()
    assert is_in_block.wait(60)
    assert store.try_submit_many([PutRequest(b"k", b"ours")]) is None
    assert store.revision == 1
    may_end.set()
    thread.join()
    assert store.try_submit_many([PutRequest(b"l")]) == [PutResult(3)]
    kv = store.get(b"k")
    assert kv is not None
    assert kv.value == b"theirs"


def test_beside_a_replicator_everybody_has_to_wait(open_store: OpenStore) -> None:
    store = open_store(replicator=Here)
    assert store.try_submit_many([PutRequest(b"k")]) is None
    assert store.get(b"k") is None


def test_nothing_submitted_commits_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = count_commits(store, monkeypatch)
    assert store.submit_many([]) == []
    assert committed == []


def test_those_over_the_quota_are_refused_in_their_places(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine, quota_bytes=1)
    answers = store.submit_many([PutRequest(b"a"), LeaseGrantRequest(1, 5_000), PutRequest(b"b"), Op.delete(b"a")])
    assert [isinstance(answer, mvccstore.StorageFullError) for answer in answers] == [True, False, True, False]


def test_read_only_closed_and_blocked_stores_take_none(open_store: OpenStore) -> None:
    store = open_store()
    with store.begin(), pytest.raises(mvccstore.TxnError):
        store.submit_many([PutRequest(b"k")])
    store.close()
    with pytest.raises(mvccstore.ClosedError):
        store.submit_many([PutRequest(b"k")])
    with mvccstore.open(store.path, read_only=True) as reader, pytest.raises(mvccstore.StorageError):
        reader.submit_many([])


@pytest.mark.parametrize("is_replicated", [False, True])
def test_async_face_gives_the_same_answers(open_store: OpenStore, *, is_replicated: bool) -> None:
    alone = open_store()

    async def main() -> None:
        async with aio.open(replicator=Here if is_replicated else None) as store:
            assert await store.submit_many([]) == []
            assert shown(await store.submit_many(REQUESTS)) == one_by_one(alone, REQUESTS)
            if is_replicated:
                with pytest.raises(KeyError):
                    await store.submit_many([PutRequest(b"broken")])
        with pytest.raises(mvccstore.ClosedError):
            await store.submit_many([PutRequest(b"k")])

    asyncio.run(main())
