"""Attributes: named values of the store itself, beside its keys."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mvccstore
from mvccstore import AttributesConflictError, Command, ConflictError, KeyRange, Store, aio
from mvccstore.attributes import (
    ATTRIBUTE_CHANGES_MAX,
    ATTRIBUTE_NAME_BYTES_MAX,
    ATTRIBUTE_VALUE_BYTES_MAX,
    ATTRIBUTES_BYTES_MAX,
    Attributes,
    AttributesRequest,
    AttributesResult,
)
from mvccstore.mvcc.apply import Changes
from mvccstore.types import PutRequest

OpenStore = Callable[..., Store]
MEBIBYTE = bytes(ATTRIBUTE_VALUE_BYTES_MAX)


def test_set_attributes_are_read_one_by_one_and_together(store: Store) -> None:
    assert store.attribute("a") is None
    assert store.attributes() == {}
    assert store.attributes().version == 0
    assert store.set_attributes({"b": b"2", "a": b"", "a/c": b"\0\xff"}) == 1
    assert (store.attribute("a"), store.attribute("b"), store.attribute("c")) == (b"", b"2", None)
    read = store.attributes()
    assert list(read.items()) == [("a", b""), ("a/c", b"\0\xff"), ("b", b"2")]
    assert read.version == 1
    assert store.set_attributes({"b": None, "a": b"1", "nobody": None}) == 2
    assert store.attributes() == {"a": b"1", "a/c": b"\0\xff"}
    assert (dict(read), read.version) == ({"a": b"", "a/c": b"\0\xff", "b": b"2"}, 1), "it stays as it was read"


def test_prefix_takes_whole_names_of_any_alphabet(store: Store) -> None:
    names = ["user/", "user/ann", "user/ä", "user/\U0010ffff", "user0", "users", "\U0010ffff", "\0"]
    store.set_attributes({name: name.encode() for name in names})
    assert set(store.attributes("user/")) == {"user/", "user/ann", "user/ä", "user/\U0010ffff"}
    assert set(store.attributes("\U0010ffff")) == {"\U0010ffff"}
    assert list(store.attributes()) == sorted(names)
    assert store.attributes("nobody") == {}
    assert store.attributes("nobody").version == 1


def test_more_attributes_than_a_page_has(store: Store) -> None:
    values = {f"{number:04}": b"%d" % number for number in range(1_234)}
    store.set_attributes(values)
    assert store.attributes() == values
    assert len(store.attributes("01")) == 100
    assert store.set_attributes(dict.fromkeys(values)) == 2
    assert store.attributes() == {}


def test_they_make_no_revision_and_no_event_and_survive_compaction(store: Store) -> None:
    revision = store.put(b"k", b"1")
    with store.watch(KeyRange.all()) as watcher:
        store.set_attributes({"k": b"2"})
        assert store.revision == revision
        assert len(list(store.history(KeyRange.all()))) == 1
        assert store.put(b"k", b"3") == revision + 1
        assert next(watcher).kv.value == b"3"
    store.compact(revision + 1, physical=True)
    assert store.attribute("k") == b"2"
    assert store.get(b"k").value == b"3"  # type: ignore[union-attr]


def test_base_that_is_not_the_version_conflicts_and_changes_nothing(store: Store) -> None:
    assert store.set_attributes({"n": b"1"}, base=0) == 1
    with pytest.raises(AttributesConflictError) as raised:
        store.set_attributes({"n": b"2", "m": b"2"}, base=0)
    assert (raised.value.version, raised.value.revision, raised.value.retryable) == (1, 1, True)
    assert isinstance(raised.value, ConflictError)
    assert store.attributes() == {"n": b"1"}
    with pytest.raises(AttributesConflictError):
        store.set_attributes({"n": b"2"}, base=2)
    assert store.set_attributes({"n": b"2"}, base=1) == 2


def test_without_changes_only_the_base_is_looked_at(store: Store) -> None:
    assert store.set_attributes({"n": b"1"}) == 1
    assert store.set_attributes({}) == store.set_attributes({}, base=1) == 1
    with pytest.raises(AttributesConflictError):
        store.set_attributes({}, base=0)


def test_a_change_to_the_same_value_is_a_change(store: Store) -> None:
    assert [store.set_attributes({"n": b"1"}), store.set_attributes({"n": b"1"})] == [1, 2]
    assert store.set_attributes({"nobody": None}) == 3


def test_read_and_write_with_a_base_loses_no_count(store: Store) -> None:
    def count() -> None:
        for _ in range(20):
            while True:
                read = store.attributes()
                try:
                    store.set_attributes({"n": b"%d" % (int(read.get("n", b"0")) + 1)}, base=read.version)
                    break
                except ConflictError:
                    continue

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=50)
    assert store.attribute("n") == b"80"
    assert store.attributes().version == 80


WRONG: dict[str, tuple[Any, Any, type[Exception]]] = {
    "no mapping": ([("a", b"1")], None, TypeError),
    "a name of bytes": ({b"a": b"1"}, None, TypeError),
    "an empty name": ({"": b"1"}, None, ValueError),
    "a name too long": ({"ä" * 128: b"1"}, None, ValueError),
    "a name that has no bytes": ({"\ud800": b"1"}, None, ValueError),
    "a value of text": ({"a": "1"}, None, TypeError),
    "a value that can change": ({"a": bytearray(b"1")}, None, TypeError),
    "a value too large": ({"a": MEBIBYTE + b"1"}, None, mvccstore.ValueTooLargeError),
    "too many": (dict.fromkeys(map(str, range(ATTRIBUTE_CHANGES_MAX + 1))), None, mvccstore.TxnTooLargeError),
    "a base of text": ({"a": b"1"}, "0", TypeError),
    "a base that is a flag": ({"a": b"1"}, False, TypeError),
    "a base below none": ({"a": b"1"}, -1, ValueError),
}


@pytest.mark.parametrize("problem", WRONG)
def test_wrong_changes_are_refused_whole(store: Store, problem: str) -> None:
    changes, base, error = WRONG[problem]
    with pytest.raises(error):
        store.set_attributes(changes, base=base)
    assert (dict(store.attributes()), store.attributes().version) == ({}, 0)


@pytest.mark.parametrize(
    "changes",
    [[("a", b"1")], (["a", b"1"],), (("a",),), (("a", b"1", b"2"),), (("a", b"1"), ("a", None)), (("a", 1),), ("ab",)],
)
def test_request_checks_its_own_shape(changes: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        AttributesRequest(changes)


def test_wrong_names_are_not_asked_for(store: Store) -> None:
    for name, error in ((b"a", TypeError), ("", ValueError), ("a" * (ATTRIBUTE_NAME_BYTES_MAX + 1), ValueError)):
        with pytest.raises(error):
            store.attribute(name)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.attributes(b"a")  # type: ignore[arg-type]


def test_largest_request_is_taken(store: Store) -> None:
    name = "ä" * 127 + "a"
    assert len(name.encode()) == ATTRIBUTE_NAME_BYTES_MAX
    store.set_attributes({name: MEBIBYTE})
    assert store.attribute(name) == MEBIBYTE
    store.set_attributes(dict.fromkeys(map(str, range(ATTRIBUTE_CHANGES_MAX)), b""))
    assert len(store.attributes()) == ATTRIBUTE_CHANGES_MAX + 1


def test_all_together_have_a_limit(store: Store) -> None:
    room = ATTRIBUTES_BYTES_MAX // (ATTRIBUTE_VALUE_BYTES_MAX + 2)
    store.set_attributes({f"{number:02}": MEBIBYTE for number in range(room)})
    with pytest.raises(mvccstore.AttributesTooLargeError) as raised:
        store.set_attributes({"small": b"1", "more": MEBIBYTE})
    assert raised.value.limit == ATTRIBUTES_BYTES_MAX < raised.value.size
    assert (len(store.attributes()), store.attributes().version) == (room, 1)
    assert store.set_attributes({"00": None, "more": MEBIBYTE[:-2]}) == 2
    assert store.set_attributes(dict.fromkeys(store.attributes())) == 3


def test_quota_does_not_refuse_them(open_store: OpenStore, engine: str) -> None:
    store = open_store(engine=engine, quota_bytes=1)
    with pytest.raises(mvccstore.StorageFullError):
        store.put(b"k", b"1")
    assert store.set_attributes({"alarm": b"no space"}) == 1


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_they_are_there_when_it_is_opened_again_also_to_read_only(open_store: OpenStore, engine: str) -> None:
    with open_store(engine=engine) as store:
        store.set_attributes({"a": b"1"})
        store.set_attributes({"b": b"2"})
    with mvccstore.open(store.path, read_only=True) as reader:
        assert reader.attribute("a") == b"1"
        assert reader.attributes() == {"a": b"1", "b": b"2"}
        assert reader.attributes().version == 2
        with pytest.raises(mvccstore.StorageError):
            reader.set_attributes({"a": b"2"})
    again = open_store()
    assert again.set_attributes({"a": None}, base=2) == 3
    assert again.attributes() == {"b": b"2"}


@pytest.mark.parametrize("through", ["lmdb", "sqlite"])
def test_backup_and_restore_have_them(open_store: OpenStore, engine: str, through: str, tmp_path: Path) -> None:
    store = open_store(engine=engine)
    values = {f"{number:03}": b"%d" % number for number in range(234)}
    store.set_attributes(values)
    store.set_attributes({"gone": b"1"})
    store.set_attributes({"gone": None})
    store.backup(tmp_path / "backup", engine=through)
    mvccstore.restore(tmp_path / "backup", tmp_path / "restored", engine="lmdb")
    with mvccstore.open(tmp_path / "restored") as restored:
        assert restored.check() == []
        assert (dict(restored.attributes()), restored.attributes().version) == (values, 3)


def test_closed_store_has_none(store: Store) -> None:
    store.close()
    for call in (
        lambda: store.attribute("a"),
        store.attributes,
        lambda: store.set_attributes({"a": b"1"}),
        lambda: store.set_attributes({}),
    ):
        with pytest.raises(mvccstore.ClosedError):
            call()


def test_block_sees_what_is_committed_and_refuses_to_wait_for_itself(store: Store) -> None:
    with store.begin() as txn:
        txn.put(b"k")
        assert store.attribute("a") is None
        with pytest.raises(mvccstore.TxnError):
            store.set_attributes({"a": b"1"})


def test_they_share_a_commit_with_other_writes_and_each_has_its_answer(store: Store) -> None:
    stale = AttributesRequest((("a", b"9"),), base=0)
    requests = [AttributesRequest((("a", b"1"),)), PutRequest(b"k"), stale, AttributesRequest((("a", None),), base=1)]
    answers = store.apply_replicated([Command(request, 0) for request in requests], b"marker")
    assert answers[0] == AttributesResult(1, 1)
    assert answers[3] == AttributesResult(2, 2)
    assert isinstance(answers[2], AttributesConflictError)
    assert store.attributes() == {}


def test_commit_says_which_were_changed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str] | None] = []

    def publish(changes: Changes, revision: int) -> None:
        told.append(changes.attributes)

    monkeypatch.setattr(store._hub, "publish", publish)
    store.put(b"k")
    store.set_attributes({"a": b"1", "b": None})
    store.set_attributes({})
    changes = (AttributesRequest((("a", None),)), AttributesRequest((("c", b"3"),)))
    store.apply_replicated([Command(request, 0) for request in changes], b"marker")
    assert told == [None, ["a", "b"], None, ["a", "c"]]


def test_read_attributes_are_a_value() -> None:
    read = Attributes({"a": b"1"}, 7)
    assert read == {"a": b"1"}
    assert (len(read), read["a"], read.get("b"), "a" in read) == (1, b"1", None, True)
    again = pickle.loads(pickle.dumps(read))
    assert (again, again.version) == (read, 7)
    assert repr(read) == "<Attributes {'a': b'1'} at version 7>"
    with pytest.raises(KeyError):
        read["b"]
    with pytest.raises(TypeError):
        read["a"] = b"2"  # type: ignore[index]


def test_async_face_has_them() -> None:
    async def main() -> None:
        async with aio.open() as store:
            assert await store.set_attributes({"a": b"1", "b": b"2"}) == 1
            assert await store.attribute("a") == b"1"
            read = await store.attributes("b")
            assert (dict(read), read.version) == ({"b": b"2"}, 1)
            with pytest.raises(AttributesConflictError):
                await store.set_attributes({"a": None}, base=0)
            with pytest.raises(TypeError):
                await store.set_attributes({"a": 1})  # type: ignore[dict-item]
            assert await store.set_attributes({"a": None}, base=1) == 2

    asyncio.run(main())
