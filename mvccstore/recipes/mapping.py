"""A typed collection: the keys that begin with a prefix, as a dict of Python values."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from functools import partial
from typing import Generic, Literal, NamedTuple, TypeVar, overload

from mvccstore.errors import ClosedError, CompactedError
from mvccstore.recipes.codecs import Codec
from mvccstore.recipes.host import RecipeView
from mvccstore.types import Compare, DeleteResult, Event, KeyRange, KeyValue, Op, RangeResult, Request, TxnResult
from mvccstore.watch import Watcher

K = TypeVar("K", bound=str | bytes)
T = TypeVar("T")
D = TypeVar("D")
W = TypeVar("W")

_REQUIRED = object()
_log = logging.getLogger("mvccstore")


class ItemChange(NamedTuple, Generic[K, T]):
    """One change of a mapping."""

    type: Literal["put", "delete"]
    key: K
    value: T | None
    """What it was set to; None after a delete."""
    revision: int
    """The revision that made the change."""


class TxnParts(NamedTuple):
    """The arguments of a txn."""

    compare: tuple[Compare, ...]
    success: tuple[Request, ...]
    failure: tuple[Request, ...] = ()


class Entries(Generic[K, T]):
    """How items become keys and values, and what is done to them becomes txns. Pure; what all faces share.

    Args:
        prefix: What the keys begin with. As text it has keys be text, in UTF-8; as bytes it has them be bytes.
        codec: Turns values into bytes and back.
    """

    __slots__ = ("_codec", "_is_text", "_prefix", "keys")

    def __init__(self, prefix: K, codec: Codec[T]) -> None:
        self._is_text = isinstance(prefix, str)
        self._prefix = prefix.encode() if isinstance(prefix, str) else prefix
        self._codec = codec
        self.keys = KeyRange.prefix(self._prefix)
        """All keys of the mapping."""

    def raw(self, key: K) -> bytes:
        """Return the store's key of a mapping's."""
        if isinstance(key, str):
            if self._is_text:
                return self._prefix + key.encode("utf-8", "surrogateescape")
        elif isinstance(key, bytes) and not self._is_text:
            return self._prefix + key
        msg = f"key is a {type(key).__name__}; this mapping's keys are {'str' if self._is_text else 'bytes'}"
        raise TypeError(msg)

    def key(self, raw: bytes) -> K:
        """Return the mapping's key of a store's. What is not UTF-8 comes as lone surrogates, as file names do."""
        own = raw[len(self._prefix) :]
        key: K = own.decode("utf-8", "surrogateescape") if self._is_text else own  # type: ignore[assignment]
        return key

    def encoded(self, value: T) -> bytes:
        """Return a value as bytes."""
        return self._codec.encode(value)

    def value(self, kv: KeyValue) -> T:
        """Return the value of a row.

        Raises:
            ValueError: It is not what the codec makes; the key is named.
        """
        try:
            return self._codec.decode(kv.value)
        except ValueError as error:
            msg = f"{kv.key!r} has a value that {type(self._codec).__name__} cannot read: {error}"
            raise ValueError(msg) from error

    def item(self, kv: KeyValue) -> tuple[K, T]:
        """Return the item of a row."""
        return self.key(kv.key), self.value(kv)

    def change(self, event: Event) -> ItemChange[K, T]:
        """Return the change of an event."""
        value = self.value(event.kv) if event.type == "put" else None
        return ItemChange(event.type, self.key(event.kv.key), value, event.revision)

    def put(self, key: K, value: T) -> TxnParts:
        """Return the txn that sets an item."""
        return TxnParts((), (Op.put(self.raw(key), self.encoded(value)),))

    def update(self, items: Mapping[K, T]) -> TxnParts:
        """Return the txn that sets some items."""
        return TxnParts((), tuple(Op.put(self.raw(key), self.encoded(value)) for key, value in items.items()))

    def setdefault(self, key: K, default: T) -> TxnParts:
        """Return the txn that sets an item if it is missing, and otherwise reads it."""
        raw = self.raw(key)
        missing = Compare.version(raw, "==", 0)
        return TxnParts((missing,), (Op.put(raw, self.encoded(default)),), (Op.range(raw),))

    def was_set(self, result: TxnResult) -> KeyValue | None:
        """Return the row that `setdefault` found; None if it has set it."""
        if result.succeeded:
            return None
        found = result.responses[0]
        assert isinstance(found, RangeResult)
        return found[0]

    def delete(self, key: K) -> TxnParts:
        """Return the txn that deletes an item, and says what it was."""
        return TxnParts((), (Op.delete(self.raw(key), prev_kv=True),))

    def clear(self) -> TxnParts:
        """Return the txn that deletes all items."""
        return TxnParts((), (Op.delete(self.keys),))

    def deleted(self, result: TxnResult) -> KeyValue | None:
        """Return the row that `delete` has deleted, if there was one."""
        found = result.responses[0]
        assert isinstance(found, DeleteResult)
        return found.prev_kvs[0] if found.prev_kvs else None


def watch_again(watch: Callable[..., W], keys: KeyRange, error: CompactedError) -> W:
    """Return a watcher that goes on where one that fell behind compaction can."""
    while True:
        try:
            return watch(keys, start_revision=error.compact_revision)
        except CompactedError as newer:
            error = newer


class Callbacks(Generic[K, T]):
    """Who is told of a mapping's changes. One that raises is logged, and the others are told all the same."""

    def __init__(self, entries: Entries[K, T]) -> None:
        self._entries = entries
        self._all: tuple[tuple[Callable[[ItemChange[K, T]], object], int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, callback: Callable[[ItemChange[K, T]], object], revision: int) -> Callable[[], None]:
        """Have somebody told of what comes after a revision; return what undoes that."""
        entry = (callback, revision)
        self._all = (*self._all, entry)
        return partial(self._remove, entry)

    def _remove(self, entry: tuple[Callable[[ItemChange[K, T]], object], int]) -> None:
        self._all = tuple(other for other in self._all if other is not entry)

    def tell(self, events: Iterable[Event]) -> None:
        """Tell all of some events."""
        for event in events:
            try:
                change = self._entries.change(event)
            except Exception:  # noqa: BLE001 - whatever it is, it is logged
                _log.exception("a change of %r cannot be told", event.kv.key)
                continue
            for callback, revision in self._all:
                if change.revision > revision:
                    try:
                        callback(change)
                    except Exception:  # noqa: BLE001 - the others are told all the same
                        _log.exception("a callback of a mapping failed at %r", change.key)

    def missed(self, error: CompactedError) -> None:
        """Say that changes were compacted before they could be told."""
        _log.error("changes of %r were not told: %s", self._entries.keys.start, error)


class StoreMapping(MutableMapping[K, T]):
    """A mutable mapping of Python values, kept in the store. Get one from `Store.mapping`.

    Nothing is kept in memory: a lookup is one of the store, so it is always current, and each change is a commit.
    Any thread may use it, and any number of mappings the same prefix. Iterating over it, its `items` or its
    `values` is a scan: in the order of keys, all as of one revision, whatever is written meanwhile.

    A value that is got is a copy: changing it in place changes nothing in the store; set it again.
    """

    def __init__(self, store: RecipeView, prefix: K, codec: Codec[T]) -> None:
        self._store = store
        self._entries = Entries(prefix, codec)
        self._lock = threading.Lock()  # guards the two below; taken before the hub's
        self._callbacks = Callbacks(self._entries)
        self._watcher: Watcher | None = None

    def __getitem__(self, key: K) -> T:
        kv = self._store.get(self._entries.raw(key))
        if kv is None:
            raise KeyError(key)
        return self._entries.value(kv)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | bytes) and self._store.get(self._entries.raw(key)) is not None  # type: ignore[arg-type]

    def __setitem__(self, key: K, value: T) -> None:
        self._txn(self._entries.put(key, value))

    def __delitem__(self, key: K) -> None:
        if self._entries.deleted(self._txn(self._entries.delete(key))) is None:
            raise KeyError(key)

    def __len__(self) -> int:
        return self._store.count(self._entries.keys)

    def __iter__(self) -> Iterator[K]:
        with self._store.scan(self._entries.keys, keys_only=True) as scan:
            for kv in scan:
                yield self._entries.key(kv.key)

    def items(self) -> ItemsView[K, T]:
        """Return a view of the items."""
        return _Items(self)

    def values(self) -> ValuesView[T]:
        """Return a view of the values."""
        return _Values(self)

    def _items(self) -> Iterator[tuple[K, T]]:
        with self._store.scan(self._entries.keys) as scan:
            for kv in scan:
                yield self._entries.item(kv)

    @overload
    def setdefault(self: StoreMapping[K, T | None], key: K, default: None = None, /) -> T | None: ...
    @overload
    def setdefault(self, key: K, default: T, /) -> T: ...
    def setdefault(self, key: K, default: T | None = None, /) -> T | None:
        """Return the value of a key; set it to `default` if it is missing. One atomic step and one commit."""
        kv = self._entries.was_set(self._txn(self._entries.setdefault(key, default)))  # type: ignore[arg-type]
        return default if kv is None else self._entries.value(kv)

    @overload
    def pop(self, key: K, /) -> T: ...
    @overload
    def pop(self, key: K, /, default: T) -> T: ...
    @overload
    def pop(self, key: K, /, default: D) -> T | D: ...
    def pop(self, key: K, /, default: object = _REQUIRED) -> object:
        """Delete a key and return its value: `default`, or `KeyError`, if it is missing. One atomic step and one commit."""
        kv = self._entries.deleted(self._txn(self._entries.delete(key)))
        if kv is not None:
            return self._entries.value(kv)
        if default is _REQUIRED:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[K, T]:
        """Delete the first item and return it.

        Raises:
            KeyError: There is none.
        """
        for key in self:
            kv = self._entries.deleted(self._txn(self._entries.delete(key)))
            if kv is not None:  # or somebody was quicker
                return self._entries.item(kv)
        msg = "the mapping is empty"
        raise KeyError(msg)

    def clear(self) -> None:
        """Delete all items, in one atomic step and one commit."""
        self._txn(self._entries.clear())

    def update(self, *args: Mapping[K, T] | Iterable[tuple[K, T]], **named: T) -> None:  # type: ignore[override]
        """Set some items, as `dict.update` takes them, in one atomic step and one revision.

        Raises:
            TxnTooLargeError: More than `limits.txn_ops_max`.

        Cost: one commit.
        """
        items: dict[K, T] = dict(*args)
        items.update(named)  # type: ignore[arg-type]
        if items:
            self._txn(self._entries.update(items))

    def _txn(self, parts: TxnParts) -> TxnResult:
        return self._store.txn(compare=parts.compare, success=parts.success, failure=parts.failure)

    # Being told

    def on_change(self, callback: Callable[[ItemChange[K, T]], object]) -> Callable[[], None]:
        """Have a function called with each `ItemChange` from now on; return a function that undoes that.

        All callbacks of a mapping are called by one thread, which the first one starts and which lives, also when
        the mapping is forgotten, until the last is undone or the store is closed. Changes come in the order of
        revisions. A callback may use the store. One that raises is logged, as `mvccstore`, and goes on being called;
        so is a value that the codec cannot read, and a gap if compaction was quicker than the callbacks.

        Cost: a thread and a watcher; a put does not wait for callbacks.
        """
        with self._lock:
            if self._watcher is None or self._watcher.is_closed:
                watcher = self._watcher = self._store.watch(self._entries.keys)
                work = partial(self._tell, watcher)
                threading.Thread(target=work, name="mvccstore-mapping", daemon=True).start()
            remove = self._callbacks.add(callback, self._store.revision)
        return partial(self._undo, remove)

    def _undo(self, remove: Callable[[], None]) -> None:
        with self._lock:
            remove()
            if not self._callbacks and self._watcher is not None:
                self._watcher.close()
                self._watcher = None

    def _tell(self, watcher: Watcher) -> None:
        while True:
            try:
                for batch in watcher.batches():
                    self._callbacks.tell(batch.events)
            except CompactedError as error:
                self._callbacks.missed(error)
                with self._lock:
                    if self._watcher is not watcher:  # undone meanwhile
                        return
                    try:
                        watcher = self._watcher = watch_again(self._store.watch, self._entries.keys, error)
                    except ClosedError:
                        return
                continue
            except ClosedError:  # the store
                return
            return

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._entries.keys.start!r}>"


class _Items(ItemsView[K, T]):
    _mapping: StoreMapping[K, T]

    def __iter__(self) -> Iterator[tuple[K, T]]:
        return self._mapping._items()


class _Values(ValuesView[T]):
    _mapping: StoreMapping[str, T] | StoreMapping[bytes, T]

    def __iter__(self) -> Iterator[T]:
        return (value for _, value in self._mapping._items())

    def __contains__(self, value: object) -> bool:
        return any(value == other for other in self)
