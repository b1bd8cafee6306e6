"""What a test says of a server, with reasons that can be read when it is not so: pytest shows the test's line and these."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from mvccstore.clock import SystemClock
from mvccstore.errors import CompactedError
from mvccstore.server.messages import rpc
from mvccstore.store import Store
from mvccstore.testing.calls import Calls, RecordedCall
from mvccstore.testing.contents import as_bytes, as_text
from mvccstore.testing.report import describe, final_contents, last_calls
from mvccstore.types import KeyRange, KeyValue


class AnyValue(Enum):
    """In place of a value that does not matter."""

    ANY_VALUE = "any value"


ANY_VALUE = AnyValue.ANY_VALUE


class Write(NamedTuple):
    """A put or a delete that a client asked for, and that was carried out, by itself or in a txn."""

    kind: str
    """`put` or `delete`."""
    key: bytes
    """Of a delete, the first key of its range."""
    range_end: bytes
    value: bytes
    lease: int
    call: RecordedCall


def writes(calls: Calls) -> Iterator[Write]:
    """Iterate over the writes of calls that ended well, in their order."""
    for call in calls:
        if not call.is_ok or call.request is None:
            continue
        match call.request:
            case rpc.PutRequest() as put:
                yield _put(put, call)
            case rpc.DeleteRangeRequest() as delete:
                yield _delete(delete, call)
            case rpc.TxnRequest() as txn if call.answer is not None:
                yield from _of_txn(txn, call.answer, call)
            case _:
                pass


def _of_txn(txn: rpc.TxnRequest, answer: rpc.TxnResponse, call: RecordedCall) -> Iterator[Write]:
    taken = txn.success if answer.succeeded else txn.failure
    for operation, response in zip(taken, answer.responses, strict=False):
        match operation.WhichOneof("request"):
            case "request_put":
                yield _put(operation.request_put, call)
            case "request_delete_range":
                yield _delete(operation.request_delete_range, call)
            case "request_txn":
                yield from _of_txn(operation.request_txn, response.response_txn, call)
            case _:
                pass


def _put(put: rpc.PutRequest, call: RecordedCall) -> Write:
    return Write("put", put.key, b"", put.value, put.lease, call)


def _delete(delete: rpc.DeleteRangeRequest, call: RecordedCall) -> Write:
    return Write("delete", delete.key, delete.range_end, b"", 0, call)


class Assertions(ABC):
    """For `Etcd`: what it is expected to have been asked, and to have."""

    calls: Calls

    @property
    @abstractmethod
    def store(self) -> Store:
        """What is looked at."""

    def wait_for(
        self, key: bytes | str, value: bytes | str | AnyValue | None = ANY_VALUE, timeout: float = 5.0
    ) -> KeyValue | None:
        """Wait until a key has a value, `None` for no such key, without it any; return the key as it was then.

        Args:
            key: Bytes, or text in UTF-8.
            value: Likewise.
            timeout: Seconds of real time, also where the server's is virtual.

        Raises:
            AssertionError: It did not come to that; says what the key had, and what was asked last.
        """
        __tracebackhide__ = True
        name = as_bytes(key)
        wanted = value if value is None or isinstance(value, AnyValue) else as_bytes(value)
        clock = SystemClock()
        give_up = clock.monotonic() + timeout
        with self.store.watch(name) as watcher:
            while True:
                kv = self.store.get(name)
                if (kv is None) == (wanted is None) and (kv is None or wanted in {ANY_VALUE, kv.value}):
                    return kv
                left = give_up - clock.monotonic()
                try:
                    if left <= 0 or watcher.next_batch(left) is None:
                        break
                except CompactedError:
                    break
        found = "is not there" if kv is None else f"is {as_text(kv.value)} since revision {kv.mod_revision}"
        if wanted is None:
            shown: object = "no such key"
        else:
            shown = wanted.value if isinstance(wanted, AnyValue) else as_text(wanted)
        reason = f"waited {timeout:g} s for {as_text(name)} to be {shown}; it {found}"
        raise self._failure(reason)

    def assert_put(
        self,
        key: bytes | str | None = None,
        value: bytes | str | None = None,
        *,
        prefix: bytes | str | None = None,
        times: int | None = None,
    ) -> None:
        """Assert that clients put a key, or keys of a prefix; with a value, with that. Puts in txns count.

        Args:
            times: How often; without it, at least once.

        Raises:
            AssertionError: They did not; lists the puts that there were.
        """
        __tracebackhide__ = True
        self._assert_writes("put", key, prefix, times, None if value is None else as_bytes(value))

    def assert_not_put(self, key: bytes | str | None = None, *, prefix: bytes | str | None = None) -> None:
        """Assert that no client put a key, or keys of a prefix."""
        __tracebackhide__ = True
        self._assert_writes("put", key, prefix, 0, None)

    def assert_deleted(
        self, key: bytes | str | None = None, *, prefix: bytes | str | None = None, times: int | None = None
    ) -> None:
        """Assert that clients asked for a key to be deleted, or for keys of a prefix, whether or not it was there."""
        __tracebackhide__ = True
        self._assert_writes("delete", key, prefix, times, None)

    def _assert_writes(
        self, kind: str, key: bytes | str | None, prefix: bytes | str | None, times: int | None, value: bytes | None
    ) -> None:
        __tracebackhide__ = True
        if key is not None and prefix is not None:
            msg = "give a key or a prefix"
            raise TypeError(msg)
        name = None if key is None else as_bytes(key)
        begin = None if prefix is None else as_bytes(prefix)
        found = [
            write
            for write in writes(self.calls)
            if write.kind == kind
            and (name is None or write.key == name)
            and (begin is None or write.key.startswith(begin))
            and (value is None or write.value == value)
        ]
        if len(found) != times if times is not None else not found:
            what = "any key" if name is None and begin is None else as_text(name) if name is not None else f"{begin!r}*"
            with_value = "" if value is None else f" with {as_text(value)}"
            count = "at least once" if times is None else f"{times} times"
            others = [f"  {_shown(write)}" for write in writes(self.calls) if write.kind == kind] or ["  none"]
            listed = "\n".join(others)
            reason = f"expected a {kind} of {what}{with_value} {count}, there were {len(found)}; all of them:\n{listed}"
            raise self._failure(reason)

    def assert_called(self, method: str, *, times: int | None = None) -> None:
        """Assert that a method was called: `Put`, or by its path.

        Raises:
            AssertionError: It was not, or not that often.
        """
        __tracebackhide__ = True
        found = self.calls(method)
        if len(found) != times if times is not None else not found:
            count = "at least once" if times is None else f"{times} times"
            reason = f"expected {method} to be called {count}, it was {len(found)} times"
            raise self._failure(reason)

    def assert_contents(self, expected: Mapping[Any, Any], *, prefix: bytes | str = b"") -> None:
        """Assert that these keys and values, and no others, are there; with a prefix, below that.

        Raises:
            AssertionError: They are not; shows which lines differ.
        """
        __tracebackhide__ = True
        begin = as_bytes(prefix)
        keys = KeyRange.prefix(begin) if begin else KeyRange.all()
        found = {kv.key: kv.value for kv in self.store.range(keys).kvs}
        wanted = {as_bytes(key): as_bytes(value) for key, value in expected.items()}
        if found != wanted:
            lines = difflib.ndiff(_lines(wanted), _lines(found))
            listed = "\n".join(line for line in lines if not line.startswith("?"))
            reason = f"the contents differ (-expected, +found):\n{listed}"
            raise self._failure(reason, with_contents=False)

    def _failure(self, reason: str, *, with_contents: bool = True) -> AssertionError:
        parts = [reason, f"last calls:\n{last_calls(self.calls)}"]
        if with_contents:
            parts.append(f"contents:\n{final_contents(self.store)}")
        return AssertionError("\n".join(parts))


def _shown(write: Write) -> str:
    value = f" = {as_text(write.value)}" if write.kind == "put" else ""
    return f"{as_text(write.key)}{value}  by {describe(write.call)}"


def _lines(contents: Mapping[bytes, bytes]) -> list[str]:
    return [f"{as_text(key)} = {as_text(value)}" for key, value in sorted(contents.items())]
