"""A copy of a range in memory, kept current by a watch.

Invariants:

* I1. `_rows` is the range at the revision `_watcher.revision`, if there is a watcher.
* I2. Whatever was committed after that has set `_new.is_set`, before its writer was answered; and it is set while
  somebody catches up. So a look that finds it unset needs no more than the dict.

There is no thread: the watcher only raises a flag, and the next look takes what it has.
"""

from __future__ import annotations

import threading
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Self, TypeVar, overload

from mvccstore.errors import ClosedError, CompactedError
from mvccstore.recipes.host import Blocking, Deadline, Host, RecipeView, changed, run
from mvccstore.types import KeyRange, KeyValue, check_revision
from mvccstore.watch import Watcher

T = TypeVar("T")

_WHAT = "mirror"


class _Flag:
    """Says that there is something new. An object of its own, so that a watcher does not hold its mirror."""

    __slots__ = ("is_set",)

    def __init__(self, *, is_set: bool) -> None:
        self.is_set = is_set

    def set(self) -> None:
        """Say so."""
        self.is_set = True


class MirrorSteps(Mapping[bytes, KeyValue]):
    """What the two faces of a mirror have in common: all but waiting."""

    def __init__(self, store: RecipeView, host: Host, prefix: bytes) -> None:
        self._store = store
        self._host = host
        self._keys = KeyRange.prefix(prefix)
        self._is_closed = False
        self._lock = threading.Lock()  # guards the watcher, and the rows while they change; taken before the hub's
        self._new = _Flag(is_set=True)
        self._rows: dict[bytes, KeyValue] = {}
        self._watcher: Watcher | None = None
        self._catch_up()

    def _catch_up(self) -> int:
        """Take all that is new; return the revision."""
        with self._lock:
            if self._is_closed:
                raise ClosedError(_WHAT)
            self._new.is_set = True  # whoever looks meanwhile waits for the lock
            watcher, self._watcher = self._watcher, None
            try:
                while True:
                    watcher = watcher or self._load()
                    new = _Flag(is_set=False)
                    try:
                        self._take(watcher)
                        is_all = watcher.listen(new.set)
                    except CompactedError:
                        watcher = None
                        continue
                    if is_all:
                        break
                if watcher.look_again_in() is not None:  # it is not told, as another process writes
                    new.is_set = True
            except BaseException:
                # Perhaps between taking and applying: without a watcher, the next look loads all anew.
                self._new.is_set = True
                raise
            self._watcher = watcher
            self._new = new
            return watcher.revision

    def _load(self) -> Watcher:
        while True:
            found = self._store.range(self._keys)
            try:
                watcher = self._store.watch(self._keys, start_revision=found.revision + 1)
            except CompactedError:  # just now
                continue
            self._rows = {kv.key: kv for kv in found}
            return watcher

    def _take(self, watcher: Watcher) -> None:
        rows = self._rows
        while (batch := watcher.poll()) is not None:
            for event in batch.events:
                if event.type == "put":
                    rows[event.kv.key] = event.kv
                else:
                    rows.pop(event.kv.key, None)

    @property
    def revision(self) -> int:
        """The revision it is at: the store's current one, as it catches up when it is asked."""
        return self._catch_up()

    def __getitem__(self, key: bytes) -> KeyValue:
        if self._new.is_set:
            self._catch_up()
        return self._rows[key]

    @overload
    def get(self, key: bytes, /) -> KeyValue | None: ...
    @overload
    def get(self, key: bytes, /, default: KeyValue) -> KeyValue: ...
    @overload
    def get(self, key: bytes, /, default: T) -> KeyValue | T: ...
    def get(self, key: bytes, /, default: object = None) -> object:
        """Return a key as it is, or `default`. A dict's lookup."""
        if self._new.is_set:
            self._catch_up()
        return self._rows.get(key, default)

    def __contains__(self, key: object) -> bool:
        if self._new.is_set:
            self._catch_up()
        return key in self._rows

    def __len__(self) -> int:
        if self._new.is_set:
            self._catch_up()
        return len(self._rows)

    # What is iterated over is a copy, of one revision: the rows may change meanwhile.

    def _copy(self) -> dict[bytes, KeyValue]:
        if self._new.is_set:
            self._catch_up()
        with self._lock:
            return dict(sorted(self._rows.items()))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._copy())

    def keys(self) -> KeysView[bytes]:
        """Return the keys in order, all as of one revision: a copy."""
        return self._copy().keys()

    def values(self) -> ValuesView[KeyValue]:
        """Return the rows in the order of keys, all as of one revision: a copy."""
        return self._copy().values()

    def items(self) -> ItemsView[bytes, KeyValue]:
        """Return keys and rows in the order of keys, all as of one revision: a copy."""
        return self._copy().items()

    async def _wait(self, revision: int, deadline: Deadline) -> bool:
        check_revision(revision)
        while self.revision < revision:
            if not await changed(self._host, KeyRange.all(), revision - 1, deadline):
                return False
        return True

    def close(self) -> None:
        """Forget all. Closing twice is harmless; from any thread. Looking then raises `ClosedError`."""
        with self._lock:
            self._is_closed = True
            self._new.is_set = True
            self._rows = {}
            if self._watcher is not None:
                self._watcher.close()

    def __del__(self) -> None:
        watcher = getattr(self, "_watcher", None)
        if watcher is not None:
            watcher.unlisten()  # or the hub would keep it until its keys change

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._keys.start!r}{', closed' if self._is_closed else ''}>"


class Mirror(MirrorSteps):
    """The keys that begin with a prefix, in memory: a read-only mapping of them. Get one from `Store.mirror`.

    Always current: each look sees what was acknowledged before it. Any thread may look; single lookups are each as
    of their own moment, while `keys`, `values` and `items` are copies of one revision. It needs no thread; if it
    was not looked at for so long that its history is compacted away, it loads anew. A context manager.
    """

    def __init__(self, store: RecipeView, prefix: bytes) -> None:
        super().__init__(store, Blocking(store), prefix)

    def wait(self, revision: int, timeout: float | None = None) -> bool:
        """Wait until a revision can be seen here; return False after `timeout` seconds, 0 not to wait.

        Raises:
            ClosedError: The mirror or its store was closed.
        """
        return run(self._wait(revision, Deadline(timeout)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncMirror(MirrorSteps):
    """`Mirror`; to wait is awaited. Get one from `AsyncStore.mirror`. An async context manager."""

    async def wait(self, revision: int, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as Mirror.wait has it
        """As `Mirror.wait`."""
        return await self._wait(revision, Deadline(timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()
