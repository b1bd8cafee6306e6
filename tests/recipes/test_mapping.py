"""Mappings: a dict of Python values in the store, and who is told of its changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from mvccstore import KeyRange, Limits, Store, TxnTooLargeError
from mvccstore.recipes import Codec, ItemChange, JsonCodec, MsgpackCodec, RawCodec, StoreMapping
from tests.recipes.recipes_kit import SECONDS


def test_it_is_a_dict(store: Store) -> None:
    users = store.mapping("users/", codec=JsonCodec[dict[str, int]]())
    users["bob"] = {"age": 7}
    users["ann"] = {"age": 36}
    store.put(b"users", b"not one of them")
    assert users == {"ann": {"age": 36}, "bob": {"age": 7}}
    assert (list(users), list(users.keys())) == (["ann", "bob"], ["ann", "bob"])
    assert list(users.values()) == [{"age": 36}, {"age": 7}]
    assert list(users.items()) == [("ann", {"age": 36}), ("bob", {"age": 7})]
    assert {"age": 7} in users.values()
    assert {"age": 8} not in users.values()
    assert ("ann", {"age": 36}) in users.items()
    assert (len(users), "ann" in users, "cid" in users, 7 in users) == (2, True, False, False)
    assert (users.get("cid"), users["bob"]) == (None, {"age": 7})
    kv = store.get(b"users/bob")
    assert kv is not None
    assert kv.value == b'{"age":7}'
    del users["bob"]
    with pytest.raises(KeyError, match="bob"):
        users["bob"]
    with pytest.raises(KeyError, match="bob"):
        del users["bob"]
    assert store.mapping("users/") == users == {"ann": {"age": 36}}
    users.clear()
    assert not users
    assert store.get(b"users") is not None


def test_setdefault_and_pop_are_one_step_each(store: Store) -> None:
    numbers = store.mapping("n/", codec=JsonCodec[int]())
    assert numbers.setdefault("a", 1) == 1
    revision = store.revision
    assert numbers.setdefault("a", 2) == 1
    assert store.revision == revision, "nothing was written"
    assert numbers.pop("a") == 1
    assert numbers.pop("a", None) is None
    assert numbers.pop("a", default=5) == 5
    with pytest.raises(KeyError, match="'a'"):
        numbers.pop("a")
    with pytest.raises(KeyError, match="empty"):
        numbers.popitem()
    numbers.update(b=2, a=1)
    assert [numbers.popitem(), numbers.popitem()] == [("a", 1), ("b", 2)]
    assert store.mapping("o/").setdefault("x") is None
    assert "x" in store.mapping("o/")


def test_many_threads_pop_each_item_once(store: Store, pool: ThreadPoolExecutor) -> None:
    numbers = store.mapping("n/", codec=JsonCodec[int]())
    numbers.update((str(number), number) for number in range(40))

    def pop_all() -> list[int]:
        popped = []
        while numbers:
            try:
                popped.append(numbers.popitem()[1])
            except KeyError:
                break
        return popped

    found: list[int] = []
    for each in [pool.submit(pop_all) for _ in range(6)]:
        found += each.result(SECONDS)
    assert sorted(found) == list(range(40))


def test_an_update_is_one_revision(store: Store) -> None:
    mapping = store.mapping("m/")
    mapping.update({"a": 1}, b=2)
    mapping.update([("c", 3), ("c", 4)])
    mapping.update()
    assert mapping == {"a": 1, "b": 2, "c": 4}
    assert store.revision == 3
    with pytest.raises(TypeError):
        mapping.update({"d": 1, "e": object()})
    assert "d" not in mapping


def test_an_update_has_a_limit(open_store: Callable[..., Store]) -> None:
    mapping = open_store(engine="memory", limits=Limits(txn_ops_max=2)).mapping("m/")
    with pytest.raises(TxnTooLargeError):
        mapping.update(a=1, b=2, c=3)
    assert not mapping


def test_iterating_is_of_one_revision(store: Store) -> None:
    mapping = store.mapping("m/")
    mapping.update({f"{number:04}": number for number in range(200)})
    items = iter(mapping.items())
    assert next(items) == ("0000", 0)
    mapping.clear()
    assert [value for _, value in items] == list(range(1, 200))


def test_text_and_bytes_are_different_keys(store: Store) -> None:
    raw = store.mapping(b"m/", codec=RawCodec())
    raw[b"\xff"] = b"\0"
    raw["é".encode()] = b"\1"
    text = store.mapping("m/", codec=RawCodec())
    assert dict(text) == {"é": b"\1", "\udcff": b"\0"}
    assert text["\udcff"] == b"\0"
    with pytest.raises(TypeError, match="keys are bytes"):
        raw["a"]  # type: ignore[index]
    with pytest.raises(TypeError, match="keys are str"):
        text[b"a"] = b"1"  # type: ignore[index]
    with pytest.raises(TypeError, match="value is a str, not bytes"):
        raw[b"a"] = "1"  # type: ignore[assignment]
    store.mapping("", codec=RawCodec())["top"] = b"1"
    assert store.get(b"top") is not None


CODECS: list[Codec[object]] = [JsonCodec(), MsgpackCodec()]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_a_codec_gives_back_what_it_was_given(codec: Codec[object]) -> None:
    for value in (None, True, 0, -1, 2**63 - 1, 1.5, "", "é\0", [], [1, [None]], {"a": {"b": [1.0]}}):
        assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_a_codec_refuses_what_it_cannot_do(store: Store, codec: Codec[object]) -> None:
    with pytest.raises(TypeError):
        codec.encode(object())
    for wrong in (b"", b"\x81", b"\xc1", b"1 2", b"[" * 100_000, b"\x91" * 100_000, b"\xff\xfe"):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
            codec.decode(wrong)
    store.put(b"m/a", b"\xc1")
    with pytest.raises(ValueError, match=rf"b'm/a' has a value that {type(codec).__name__} cannot read"):
        store.mapping("m/", codec=codec)["a"]


def test_codecs_differ_in_what_they_can_do() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        JsonCodec[float]().encode(float("nan"))
    with pytest.raises(ValueError, match="Integer value out of range"):
        MsgpackCodec[int]().encode(2**64)
    assert MsgpackCodec[dict[int, bytes]]().decode(MsgpackCodec[dict[int, bytes]]().encode({1: b"\0"})) == {1: b"\0"}
    assert RawCodec().decode(RawCodec().encode(b"\0")) == b"\0"


def told(mapping: StoreMapping[str, object]) -> tuple[SimpleQueue[ItemChange[str, object]], Callable[[], None]]:
    changes: SimpleQueue[ItemChange[str, object]] = SimpleQueue()
    return changes, mapping.on_change(changes.put)


def test_changes_are_told_in_order(store: Store) -> None:
    mapping = store.mapping("m/")
    mapping["before"] = 0
    changes, stop = told(mapping)
    mapping["a"] = 1
    store.put(b"other", b"1")
    del mapping["a"]
    mapping.update(b=None, c=[3])
    seen = [changes.get(timeout=SECONDS) for _ in range(4)]
    assert seen == [("put", "a", 1, 3), ("delete", "a", None, 5), ("put", "b", None, 6), ("put", "c", [3], 6)]
    later, stop_later = told(mapping)
    stop()
    stop()
    mapping["d"] = 4
    assert later.get(timeout=SECONDS).key == "d"
    assert changes.empty()
    stop_later()
    assert len(store._hub) == 0
    again, _ = told(mapping)
    mapping["e"] = 5
    assert again.get(timeout=SECONDS).key == "e"


def test_a_callback_that_raises_does_not_stop_the_others(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    mapping = store.mapping("m/")

    def fail(change: ItemChange[str, object]) -> None:
        raise ZeroDivisionError(change.key)

    mapping.on_change(fail)
    changes, _ = told(mapping)
    with caplog.at_level(logging.ERROR, "mvccstore"):
        mapping["a"] = 1
        store.put(b"m/bad", b"{")
        mapping["b"] = 2
        assert [changes.get(timeout=SECONDS).key for _ in range(2)] == ["a", "b"]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "a callback of a mapping failed at 'a'",
        "a change of b'm/bad' cannot be told",
        "a callback of a mapping failed at 'b'",
    ]
    assert all(record.exc_info for record in caplog.records)


def test_a_callback_may_write_and_undo_itself(store: Store) -> None:
    mapping = store.mapping("m/")
    done = threading.Event()

    def once(change: ItemChange[str, object]) -> None:
        stop()
        mapping["echo " + change.key] = change.value
        done.set()

    stop = mapping.on_change(once)
    mapping["a"] = 1
    assert done.wait(SECONDS)
    assert mapping == {"a": 1, "echo a": 1}


def test_callbacks_go_on_after_a_gap(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mvccstore.hub.TAIL_EVENTS_MAX", 1)
    mapping = store.mapping("m/")
    go, entered = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        entered.set()
        assert go.wait(SECONDS)

    mapping.on_change(slow)
    changes, _ = told(mapping)
    with caplog.at_level(logging.ERROR, "mvccstore"), store.watch(b"other"):
        mapping["a"] = 0
        assert entered.wait(SECONDS)
        for number in range(5):
            mapping["b"] = number
        store.put(b"other", b"pushes the tail out")
        store.compact(store.revision)
        revision = store.put(b"m/c", b"1")
        go.set()
        seen = [changes.get(timeout=SECONDS)]
        while seen[-1].revision < revision:
            seen.append(changes.get(timeout=SECONDS))
    assert [change.key for change in seen] == ["a", "c"]
    assert "were not told: revision 3 was compacted" in caplog.text


def test_closing_the_store_ends_the_thread(store: Store) -> None:
    before = set(threading.enumerate())
    told(store.mapping("m/"))
    (thread,) = (each for each in set(threading.enumerate()) - before if each.name == "mvccstore-mapping")
    store.close()
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_a_mapping_is_only_its_prefix(store: Store) -> None:
    store.mapping("m")["/a"] = 1
    store.mapping("m/")["b"] = 2
    assert dict(store.mapping("m/")) == {"a": 1, "b": 2}
    store.mapping("m/").clear()
    assert store.count(KeyRange.all()) == 0
