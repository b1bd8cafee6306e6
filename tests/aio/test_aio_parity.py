"""The two faces have the same names and signatures; what differs is listed, with why."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import MutableMapping

import pytest

import mvccstore
from mvccstore import Delivery, Lease, Scan, Snapshot, Store, Subscription, Watcher, aio
from mvccstore.aio import (
    AsyncDelivery,
    AsyncLease,
    AsyncScan,
    AsyncSnapshot,
    AsyncStore,
    AsyncStoreMapping,
    AsyncSubscription,
    AsyncWatcher,
)
from mvccstore.recipes import StoreMapping

_CLOSING = "for those who close with `await`"
ONLY_PLAIN = {
    Store: {
        "begin": "an await in a block would hold up all writers: `transact`",
        "close": "waits for writers: `aclose`",
        "apply_replicated": "for a replicator, which is given the `Store` itself",
        "replicated_marker": "as `apply_replicated`",
        "stage_many": "for who is on a loop of its own: here nothing waits",
        "try_submit_many": "likewise",
    },
    Watcher: {
        "poll": "what `AsyncWatcher` is made of",
        "listen": "as `poll`",
        "unlisten": "as `poll`",
        "catch_up": "as `poll`",
        "look_again_in": "as `poll`",
        "has_batch": "as `poll`",
        "wake": "the hub's",
        "cut": "the hub's",
    },
    Subscription: {
        "close": "waits for a commit: `aclose`",
        "poll": "what `AsyncSubscription` is made of",
        "listen": "as `poll`",
        "unlisten": "as `poll`",
        "catch_up": "as `poll`",
        "note_ack": "as `poll`",
        "note_ack_one": "as `poll`",
        "unsaved": "as `poll`",
        "saved": "as `poll`",
        "end": "as `poll`",
        "settle": "the store's",
        "forget": "as `settle`",
    },
}
ONLY_AIO = {
    AsyncStore: {"aclose": "for `close`", "transact": "for `begin`"},
    AsyncWatcher: {"aclose": _CLOSING},
    AsyncSubscription: {"aclose": "for `close`"},
    AsyncScan: {"aclose": _CLOSING},
    AsyncSnapshot: {"aclose": _CLOSING},
}
NOT_AWAITED = {
    AsyncStore: {
        "scan",
        "history",
        "log",
        "diff",
        "blame",
        "watch",
        "snapshot",
        "lock",
        "election",
        "counter",
        "queue",
        "barrier",
        "mirror",
        "mapping",
    },  # they give what is iterated or entered, or asked further
    AsyncSnapshot: {"scan", "history", "close"},
    AsyncWatcher: {"close", "batches"},  # close: from any thread, and nothing to wait for
    AsyncScan: {"close"},
}
RECIPES = "Lock|Election|Counter|Queue|Barrier|Mirror|StoreMapping"
PAIRS = [
    (Store, AsyncStore),
    (Watcher, AsyncWatcher),
    (Lease, AsyncLease),
    (Scan, AsyncScan),
    (Snapshot, AsyncSnapshot),
    (Subscription, AsyncSubscription),
    (Delivery, AsyncDelivery),
]
SPECIAL = {
    "__iter__": "__aiter__",
    "__next__": "__anext__",
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
    "__index__": "__index__",
    "__eq__": "__eq__",
    "__hash__": "__hash__",
    "__repr__": "__repr__",
}


def public(cls: type) -> set[str]:
    names = {name for name in dir(cls) if not name.startswith("_")}
    return {*names, *(name for name in SPECIAL if name in vars(cls))}


def in_aio(cls: type, name: str) -> str:
    return SPECIAL.get(name, name)


def kind(cls: type, name: str) -> str:
    found = inspect.getattr_static(cls, name)
    return "method" if inspect.isfunction(found) else "property"


def parameters(function: object) -> list[tuple[str, object, object, str]]:
    """Return what a caller has to know: names, kinds, defaults, types."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    return [(each.name, each.kind, each.default, each.annotation) for each in signature.parameters.values()]


def returned(function: object) -> str:
    return str(inspect.signature(function).return_annotation)  # type: ignore[arg-type]


@pytest.mark.parametrize(("plain", "awaited"), PAIRS)
def test_both_have_the_same_names(plain: type, awaited: type) -> None:
    only_plain = set(ONLY_PLAIN.get(plain, {}))
    only_aio = set(ONLY_AIO.get(awaited, {}))
    assert only_plain <= public(plain), "an exception is out of date"
    assert only_aio <= public(awaited), "an exception is out of date"
    names = {in_aio(plain, name) for name in public(plain) - only_plain}
    found = {name for name in dir(awaited) if not name.startswith("_")}
    found |= {name for name in SPECIAL.values() if any(name in vars(cls) for cls in awaited.__mro__[:-1])}
    assert names - found - {"__repr__", "__eq__", "__hash__"} == set()
    assert found - names - only_aio - {"__repr__", "__aenter__", "__aexit__"} == set()


@pytest.mark.parametrize(("plain", "awaited"), PAIRS)
def test_both_have_the_same_signatures(plain: type, awaited: type) -> None:
    for name in sorted(public(plain) - set(ONLY_PLAIN.get(plain, {})) - set(SPECIAL)):
        here, there = inspect.getattr_static(plain, name), inspect.getattr_static(awaited, name)
        if kind(plain, name) == "property":
            assert kind(awaited, name) == "property" or not callable(there), name
            continue
        assert parameters(here) == parameters(there), name
        assert inspect.iscoroutinefunction(there) == (name not in NOT_AWAITED.get(awaited, set())), name
        # What is given is the same, or the asyncio face of it.
        expected = re.sub(
            rf"\b(Scan|Snapshot|Watcher|Lease|Subscription|Delivery|{RECIPES})\b", r"Async\1", returned(here)
        )
        assert returned(there).replace("AsyncIterator", "Iterator") == expected, name


@pytest.mark.parametrize(("plain", "awaited"), PAIRS)
def test_every_method_says_what_it_is_the_face_of(plain: type, awaited: type) -> None:
    for name in public(awaited) - set(ONLY_AIO.get(awaited, {})) - set(SPECIAL):
        member = inspect.getattr_static(awaited, name)
        if inspect.ismemberdescriptor(member):  # a field
            continue
        doc = inspect.getdoc(member)
        assert doc, name
        assert f"`{plain.__name__}.{name}`" in doc or f"`Store.{name}`" in doc or kind(awaited, name) == "property", (
            name
        )


# What cannot be awaited has a name; the rest of `MutableMapping` has the same.
OF_A_DICT = {
    "__getitem__": "get",
    "__setitem__": "set",
    "__delitem__": "delete",
    "__contains__": "has",
    "__len__": "count",
    "__iter__": "__aiter__",
}
ITERATED = {"__aiter__", "keys", "values", "items"}


def test_an_async_mapping_has_all_of_a_mapping() -> None:
    dunders = {name for cls in MutableMapping.__mro__[:-1] for name in vars(cls) if name in OF_A_DICT}
    assert dunders == OF_A_DICT.keys()
    plain = {name for name in dir(StoreMapping) if not name.startswith("_")}
    names = plain | set(OF_A_DICT.values())
    assert {name for name in dir(AsyncStoreMapping) if not name.startswith("_")} == names - {"__aiter__"}
    for name in names:
        there = inspect.getattr_static(AsyncStoreMapping, name)
        assert inspect.iscoroutinefunction(there) == (name not in ITERATED | {"on_change"}), name
        if name in ITERATED:
            assert returned(there).startswith("AsyncIterator["), name
        if name in plain:
            here = inspect.getattr_static(StoreMapping, name)
            assert [each[0] for each in parameters(here)] == [each[0] for each in parameters(there)], name
            # Also what stands for no default is one of its own in each.
            assert [type(each[2]) for each in parameters(here)] == [type(each[2]) for each in parameters(there)], name
            if name in vars(StoreMapping) and name not in ITERATED:
                assert [each[1] for each in parameters(here)] == [each[1] for each in parameters(there)], name
                assert returned(here) == returned(there), name


def test_compact_is_passed_on_whole() -> None:
    """What the signatures say is also what is called."""
    names = [name for name, *_ in parameters(Store.compact)][1:]
    assert names == ["revision", "keep_revisions", "keep_seconds", "physical", "force"]

    class Recording:
        def compact(self, *args: object, **named: object) -> None:
            seen.append((args, named))

    seen: list[tuple[tuple[object, ...], dict[str, object]]] = []

    async def main() -> None:
        async with aio.open(engine="memory") as store:
            compact, store._view = store.compact, Recording  # type: ignore[method-assign]
            await compact(7, keep_revisions=1, keep_seconds=2.0, physical=True, force=True)
            del store._view

    asyncio.run(main())
    assert seen == [((7,), {"keep_revisions": 1, "keep_seconds": 2.0, "physical": True, "force": True})]


def test_open_has_the_same_signature() -> None:
    assert parameters(mvccstore.open) == parameters(aio.open)


def test_transact_gives_the_block_that_begin_gives() -> None:
    assert parameters(AsyncStore.transact)[1][:2] == ("fn", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert returned(Store.begin) in parameters(AsyncStore.transact)[1][3]
