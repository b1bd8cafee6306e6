"""The two faces have the same names and signatures; what differs is listed, with why."""

from __future__ import annotations

import inspect
import re

import pytest

import mvccstore
from mvccstore import Lease, Scan, Snapshot, Store, Watcher, aio
from mvccstore.aio import AsyncLease, AsyncScan, AsyncSnapshot, AsyncStore, AsyncWatcher

_CLOSING = "for those who close with `await`"
ONLY_PLAIN = {
    Store: {
        "begin": "an await in a block would hold up all writers: `transact`",
        "close": "waits for writers: `aclose`",
        "apply_replicated": "for a replicator, which is given the `Store` itself",
        "replicated_marker": "as `apply_replicated`",
        "subscription": "blocks; to be had from a thread of its own",
        "subscriptions": "as `subscription`",
    },
    Watcher: {
        "poll": "what `AsyncWatcher` is made of",
        "listen": "as `poll`",
        "unlisten": "as `poll`",
        "catch_up": "as `poll`",
        "look_again_in": "as `poll`",
        "wake": "the hub's",
    },
}
ONLY_AIO = {
    AsyncStore: {"aclose": "for `close`", "transact": "for `begin`"},
    AsyncWatcher: {"aclose": _CLOSING},
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
        expected = re.sub(rf"\b(Scan|Snapshot|Watcher|Lease|{RECIPES})\b", r"Async\1", returned(here))
        assert returned(there).replace("AsyncIterator", "Iterator") == expected, name


@pytest.mark.parametrize(("plain", "awaited"), PAIRS)
def test_every_method_says_what_it_is_the_face_of(plain: type, awaited: type) -> None:
    for name in public(awaited) - set(ONLY_AIO.get(awaited, {})) - set(SPECIAL):
        doc = inspect.getdoc(inspect.getattr_static(awaited, name))
        assert doc, name
        assert f"`{plain.__name__}.{name}`" in doc or f"`Store.{name}`" in doc or kind(awaited, name) == "property", (
            name
        )


def test_open_has_the_same_signature() -> None:
    assert parameters(mvccstore.open) == parameters(aio.open)


def test_transact_gives_the_block_that_begin_gives() -> None:
    assert parameters(AsyncStore.transact)[1][:2] == ("fn", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert returned(Store.begin) in parameters(AsyncStore.transact)[1][3]
