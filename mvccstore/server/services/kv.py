"""The KV service: reads on the loop, writes through the writer.

A range that is answered at once is small: at most a page of rows and bytes. A larger one is served by a task that
goes over it at one revision, a page at a time: first for its size, which gRPC wants before the first byte, then,
unless the first time it could keep them all, for its rows, as fast as the client takes them. So 200 MB cost the
server 4. What has to look at a whole range before it can answer (an order, a filter, a count) does so on a thread if
the range is not small.

Invariants:

* I1. The revision in the header of a read of the current state is the one that was read, though the writer goes on
  beside it: who watches from the revision after it misses nothing and sees nothing twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Final, Self

from mvccstore.codec import new_put
from mvccstore.errors import CompactedError
from mvccstore.mvcc.etcd_encoding import bytes_field, int_field, varint
from mvccstore.mvcc.read import PAGE_ROWS
from mvccstore.quota import PUT_OVERHEAD_BYTES
from mvccstore.server.auth.gate import Check
from mvccstore.server.auth.tokens import NOBODY, Caller
from mvccstore.server.errors import Refusal
from mvccstore.server.messages import rpc
from mvccstore.server.messages.fast import put_response, range_response
from mvccstore.server.node import Node
from mvccstore.server.services.translation import (
    check_operations,
    delete_request,
    fill_delete,
    fill_txn,
    message_cost,
    own_cost,
    put_request,
    range_request,
    txn_request,
)
from mvccstore.server.services.txn_answer import ROW_BYTES, check_answer, survey
from mvccstore.server.transport.call import Call, Method
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.types import (
    CompactRequest,
    DeleteResult,
    KeyRange,
    KeyValue,
    PutRequest,
    PutResult,
    RangeRequest,
    RangeResult,
    Response,
    Result,
    TxnRequest,
    TxnResult,
)
from mvccstore.view import PAGE_BYTES, Snapshot

_STREAM_ROWS_FIRST = 10
_KEY_FIELD: Final = 0x0A
"""The tag of `RangeRequest.key` and `PutRequest.key`."""
_VALUE_FIELD: Final = 0x12
_ONE_BYTE: Final = 128
"""Lengths below it are encoded as they are."""
_KEPT_BYTES_MAX = 4 << 20
"""Rows of a large range that are kept when they were encoded for their size, and so not read again.

That takes 66 ms for 20,000 rows of 100 bytes where reading them again takes 126; 24 and 37 for 3,000 of 1,000 bytes.
"""
_ALL_KEPT_BYTES_MAX = 64 << 20
"""Of all calls at once: with thousands of them, each reads its rows again."""
_LARGE_COST: Final = 500
"""What a read that is not answered at once counts for among the work of a connection: it has a handful at a time."""
_SMALL_ROWS: Final = 64
_SMALL_BYTES: Final = 64 << 10
"""A range of no more is looked through on the loop; rows of no more, which a write has found, are encoded on it."""
_OPERATION_BYTES_MIN: Final = 2
"""What a compare or an operation takes in a request, at least."""
_OPERATION_BYTES: Final = 512
"""What an operation of a txn takes in memory, beside what is in it."""
_ID_BITS = 48


class KV:
    """etcd's KV service."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._store = node.store
        self._tally = node.tally
        self._bytes_max = node.limits.max_request_bytes
        self._cost = message_cost if node.persona.counts_nested_puts else own_cost
        self._envelope_bytes = _envelope_bytes(node.member_id)
        self._all_kept = [0]

    def methods(self) -> list[Method]:
        """Return the handlers."""
        return [
            Method("/etcdserverpb.KV/Range", decode_range, self.range),
            Method("/etcdserverpb.KV/Put", decode_put, self.put),
            Method("/etcdserverpb.KV/DeleteRange", rpc.DeleteRangeRequest.FromString, self.delete_range),
            Method("/etcdserverpb.KV/Txn", rpc.TxnRequest.FromString, self.txn),
            Method("/etcdserverpb.KV/Compact", rpc.CompactionRequest.FromString, self.compact),
            Method(
                "/etcdserverpb.KV/RangeStream",
                rpc.RangeRequest.FromString,
                self.range_stream,
                is_server_streaming=True,
            ),
        ]

    # Reading

    def range(self, call: Call, message: rpc.RangeRequest | bytes) -> bytes | None:
        """Answer a range, at once if it is small; `bytes` is a key alone, as of `decode_range`."""
        gate, judged_at = self._node.auth, 0
        self._tally.ranges += 1
        if isinstance(message, bytes):
            if gate.is_enabled:
                gate.check_range(call, message, b"")
            return self._one(message)
        request = range_request(message)
        if gate.is_enabled:
            judged_at = gate.check_range(call, message.key, message.range_end)
        keys = request.keys
        if not isinstance(keys, KeyRange) or keys == KeyRange.empty():
            return self._found(self._store.find(request))
        revision, limit = max(request.revision, 0), max(request.limit, 0)
        if _needs_all(request):
            if self._rows_of_small(keys, revision) is None:
                call.run(self._find_beside(call, request, judged_at), _LARGE_COST)
                return None
            return self._found(self._store.find(request))
        rows = min(limit, PAGE_ROWS) if limit else PAGE_ROWS
        page = self._store.page(keys, revision=revision, limit=rows)
        count = len(page.kvs)
        if page.resume is not None:
            if count != limit:
                call.run(self._large_range(call, request, judged_at), _LARGE_COST)
                return None
            rest = self._rows_of_small(KeyRange(page.resume, keys.end), page.revision)
            if rest is None:
                call.run(self._find_beside(call, request, judged_at), _LARGE_COST)
                return None
            count += rest
        kvs = _without_values(page.kvs) if request.keys_only else page.kvs
        header = self._header_of(request, page.revision)
        return range_response(header, kvs, count=count, more=count > len(kvs))

    def _one(self, key: bytes) -> bytes:
        """Answer with a key as it is."""
        store = self._store
        revision = store.revision
        kv = store.get(key)
        # I1: as it was not changed since, it is what it was then. Whether it was there, the revision afterwards says.
        if kv is not None and kv.mod_revision <= revision:
            return range_response(self._node.headers.at(revision), (kv,), more=False, count=1)
        if kv is not None or store.revision != revision:
            return self._found(store.find(RangeRequest(key)))
        return self._node.headers.at(revision)

    def _found(self, result: RangeResult) -> bytes:
        return range_response(self._node.header(result.revision), result.kvs, count=result.count, more=result.more)

    async def _find_beside(self, call: Call, request: RangeRequest, judged_at: int) -> bytes:
        began_at = self._node.slow.now()
        loop = asyncio.get_running_loop()
        revision, rows, fields = await loop.run_in_executor(None, self._find_encoded, request)
        self._node.auth.check_unchanged(judged_at)
        self._node.slow.note_read(call, began_at, request, rows, len(fields))
        return self._node.header(revision) + fields

    def _find_encoded(self, request: RangeRequest) -> tuple[int, int, bytes]:
        """Return revision, rows and, encoded, all but the header: to encode many rows takes long, too."""
        result = self._store.find(request)
        fields = range_response(b"", result.kvs, count=result.count, more=result.more)
        return result.revision, len(result.kvs), fields

    def _rows_of_small(self, keys: KeyRange, revision: int) -> int | None:
        """Return how many keys there are in a range, if that is small; None if it is not, or cannot be told now."""
        try:
            page = self._store.page(keys, revision=revision, limit=_SMALL_ROWS, bytes_max=_SMALL_BYTES)
        except CompactedError:
            return None
        return len(page.kvs) if page.resume is None else None

    def _header_of(self, request: RangeRequest, read_revision: int) -> bytes:
        """Return the header of a range: the revision that was read, or, if an old one was asked for, the current."""
        return self._node.header(-1 if request.revision > 0 else read_revision)

    async def _large_range(self, call: Call, request: RangeRequest, judged_at: int) -> None:
        keys, limit = request.keys, max(request.limit, 0)
        assert isinstance(keys, KeyRange)
        began_at = self._node.slow.now()
        # Not at the revision of the first look: that may be compacted by now.
        with self._store.snapshot(revision=max(request.revision, 0)) as snapshot, _Kept(self._all_kept) as kept:
            self._node.auth.check_unchanged(judged_at)
            header = self._header_of(request, snapshot.revision)
            size = rows = 0
            async for page in _pages(snapshot, keys, limit):
                rows += len(page)
                encoded = _row_fields(page, keys_only=request.keys_only)
                size += len(encoded)
                kept.add(encoded)
            count = rows
            if limit:
                count = await asyncio.get_running_loop().run_in_executor(None, snapshot.count, keys)
            tail = (b"\x18\x01" if count > rows else b"") + int_field(4, count)
            self._node.slow.note_read(call, began_at, request, rows, size)
            call.note_worked()  # what follows is as fast as the client
            call.begin(len(header) + size + len(tail))
            call.send_part(header)
            while kept.parts:
                call.send_part(kept.take())
                await call.drained()
            if kept.has_given_up:
                async for page in _pages(snapshot, keys, limit):
                    call.send_part(_row_fields(page, keys_only=request.keys_only))
                    await call.drained()
            call.send_part(tail)
        call.finish()

    def range_stream(self, call: Call, message: rpc.RangeRequest) -> bytes | None:
        """Answer a range in several messages."""
        request = range_request(message)
        if request.sort_order != "none" or request.sort_target != "key":
            raise RpcError(Code.UNIMPLEMENTED, "RangeStream does not support custom sort orders")
        if _has_filters(request):
            raise RpcError(Code.UNIMPLEMENTED, "RangeStream does not support revision filters")
        gate, judged_at = self._node.auth, 0
        self._tally.ranges += 1
        if gate.is_enabled:
            judged_at = gate.check_range(call, message.key, message.range_end)
        if request.count_only or not isinstance(request.keys, KeyRange) or request.keys == KeyRange.empty():
            call.send(_stream_response(self._found(self._store.find(request))))
            call.finish()
            return None
        call.run(self._stream(call, request, judged_at))
        return None

    async def _stream(self, call: Call, request: RangeRequest, judged_at: int) -> None:
        keys, limit = request.keys, max(request.limit, 0)
        assert isinstance(keys, KeyRange)
        with self._store.snapshot(revision=max(request.revision, 0)) as snapshot:
            self._node.auth.check_unchanged(judged_at)
            header = self._header_of(request, snapshot.revision)
            rows = 0
            waiting: tuple[KeyValue, ...] = ()
            async for page in _pages(snapshot, keys, limit, _STREAM_ROWS_FIRST):
                if waiting:
                    call.send(_stream_response(range_response(b"", waiting, more=False, count=0)))
                    await call.drained()
                rows += len(page)
                waiting = _without_values(page) if request.keys_only else page
            count = rows
            if limit:
                count = await asyncio.get_running_loop().run_in_executor(None, snapshot.count, keys)
        call.send(_stream_response(range_response(header, waiting, count=count, more=count > rows)))
        call.finish()

    # Writing

    def put(self, call: Call, message: rpc.PutRequest | PutRequest) -> None:
        """Set a key; of a plain put, `decode_put` has made the request itself."""
        node = self._node
        gate = node.auth
        if gate.is_changing:
            gate.defer(call, lambda: self.put(call, message))
            return
        size = len(message.key) + len(message.value)
        cost = PUT_OVERHEAD_BYTES + size
        node.alarms.admit(cost)
        request = message if isinstance(message, PutRequest) else put_request(message)
        self._tally.put_bytes += size
        if request.prev_kv:  # to etcd, a range and a put in one
            self._tally.ranges += 1
            self._tally.txns += 1
        if not gate.is_enabled:
            self._check_size(message, size)
            node.alarms.check_write(cost)
            node.submit(call, request, self._put_answer, size_bytes=size)
            return
        caller = gate.caller(call)
        self._check_size(message, size, caller)
        node.alarms.check_write(cost)
        node.submit(call, request, self._put_answer, gate.check_put(caller, message), size)

    def _put_answer(self, result: Result) -> bytes:
        assert isinstance(result, PutResult)
        self._tally.puts += 1
        return put_response(self._node.headers.at(result.revision), result.prev_kv)

    def delete_range(self, call: Call, message: rpc.DeleteRangeRequest) -> None:
        """Delete a range."""
        gate = self._node.auth
        if gate.is_changing:
            gate.defer(call, lambda: self.delete_range(call, message))
            return
        request = delete_request(message)
        caller = gate.caller(call) if gate.is_enabled else None
        self._check_size(message, len(message.key) + len(message.range_end), caller)
        self._node.alarms.check_write()
        if gate.is_enabled:
            gate.check_delete(caller, message)
        size = len(message.key) + len(message.range_end)
        self._node.submit(call, request, partial(self._delete_answer, call), size_bytes=size)

    def _delete_answer(self, call: Call, result: Result) -> bytes | None:
        assert isinstance(result, DeleteResult)
        self._tally.deletes += 1
        return self._answer(call, result, partial(_encoded_delete, result))

    def _answer(self, call: Call, result: DeleteResult | TxnResult, encode: Callable[[], bytes]) -> bytes | None:
        """Return what a write is answered with, or, if that is large, encode it beside the loop, and answer then."""
        header = self._node.headers.at(result.revision)
        if _is_small(result):
            return header + encode()
        call.run(_encode_beside(header, encode), _LARGE_COST)
        return None

    def txn(self, call: Call, message: rpc.TxnRequest) -> None:
        """Run a txn."""
        node = self._node
        gate = node.auth
        if gate.is_changing:
            gate.defer(call, lambda: self.txn(call, message))
            return
        size = message.ByteSize()
        if size > _OPERATION_BYTES_MIN * node.limits.txn_ops_all_max:  # less cannot have so many
            check_operations(message, node.limits.txn_ops_all_max)
        cost = self._cost(message)
        node.alarms.admit(cost)
        request = txn_request(message, node.limits.max_txn_ops)
        caller = gate.caller(call) if gate.is_enabled else None
        is_read_only = _is_read_only(message)
        if not is_read_only:
            self._check_size(message, self._bytes_max, caller)
            node.alarms.check_write(cost)
        check = gate.check_txn(caller, message) if gate.is_enabled else None
        if is_read_only:
            gate.check_current(caller)
        operations, is_large = survey(request)
        size += operations * _OPERATION_BYTES
        if is_large:
            check = partial(_check_both, check, partial(check_answer, self._store, request))
        answer = partial(self._txn_answer, call, request)
        node.submit(call, request, answer, check, size, _LARGE_COST if is_large else 0)

    def _txn_answer(self, call: Call, request: TxnRequest, result: Result) -> bytes | None:
        assert isinstance(result, TxnResult)
        self._tally.note_txn(request, result)
        return self._answer(call, result, partial(_encoded_txn, result))

    def _check_size(
        self,
        message: rpc.PutRequest | PutRequest | rpc.DeleteRangeRequest | rpc.TxnRequest,
        at_least: int,
        caller: Caller | None = None,
    ) -> None:
        # The exact size is asked for only where it could be too large.
        envelope = self._envelope_bytes if caller is None else _envelope_bytes(self._node.member_id, caller)
        if at_least + envelope > self._bytes_max - 1024:
            if isinstance(message, PutRequest):
                message = rpc.PutRequest(key=message.key, value=message.value)
            size = message.ByteSize()
            if envelope + len(varint(size)) + size > self._bytes_max:
                raise Refusal.REQUEST_TOO_LARGE.error(limit="max_request_bytes")

    def compact(self, call: Call, message: rpc.CompactionRequest) -> None:
        """Forget history; with `physical`, answer when its space is free."""
        node = self._node
        node.auth.check_root(call)
        node.alarms.check_write()
        is_physical = message.physical

        def answer(_: Result) -> bytes | None:
            node.tally.ranges += 1  # etcd has its revision from one
            if not is_physical:
                return node.header()
            call.run(self._reclaimed())
            return None

        # What subscriptions hold is theirs to lose: an etcd client means what it says.
        node.submit(call, CompactRequest(message.revision, force=True), answer)

    async def _reclaimed(self) -> bytes:
        await asyncio.get_running_loop().run_in_executor(None, self._store.reclaim)
        return self._node.header()


def _envelope_bytes(member_id: int, caller: Caller = NOBODY) -> int:
    """Return what a request grows by in etcd's log, where it is measured, without the length of the request.

    The field of its header, with a number in which the low 16 bits of the member's id come first, and whose request it
    is; and its own tag.
    """
    number = (member_id & 0xFFFF) << _ID_BITS | 1 << (_ID_BITS - 1)
    header = 1 + len(varint(number)) + len(bytes_field(2, caller.user.encode())) + len(int_field(3, caller.revision))
    return 2 + len(varint(header)) + header + 1


def _is_read_only(message: rpc.TxnRequest) -> bool:
    """Say whether a txn has ranges alone, as then etcd does not put it into its log."""
    return all(
        operation.WhichOneof("request") == "request_range"
        for branch in (message.success, message.failure)
        for operation in branch
    )


def decode_range(data: bytes) -> rpc.RangeRequest | bytes:
    """Decode a range; of one that names a key and nothing else, as most do, return the key.

    Cost: 0.2 us for those, where the message and its 12 other fields take 1.5.
    """
    if len(data) > 2 and data[0] == _KEY_FIELD and data[1] == len(data) - 2 and data[1] < _ONE_BYTE:
        return data[2:]
    return rpc.RangeRequest.FromString(data)


def decode_put(data: bytes) -> rpc.PutRequest | PutRequest:
    """Decode a put; of one that is a short key and a value and nothing else, as most are, make the request.

    Cost: 1.0 us for those, where the message and its fields take 2.
    """
    size = len(data)
    if size > 4 and data[0] == _KEY_FIELD and 0 < (key_bytes := data[1]) < _ONE_BYTE and size > key_bytes + 4:
        end = 2 + key_bytes
        if data[end] == _VALUE_FIELD:
            value_bytes, start = data[end + 1], end + 2
            if value_bytes >= _ONE_BYTE:
                value_bytes += (data[start] - 1) * _ONE_BYTE if data[start] < _ONE_BYTE else size
                start += 1
            if start + value_bytes == size:
                return new_put(data[2:end], data[start:])
    return rpc.PutRequest.FromString(data)


def _is_small(result: Response) -> bool:
    """Say whether the rows in a result are few enough to be encoded on the loop."""
    left = _SMALL_BYTES
    for kv in _rows_in(result):
        left -= ROW_BYTES + len(kv.key) + len(kv.value)
        if left < 0:
            return False
    return True


def _rows_in(result: Response) -> Iterable[KeyValue]:
    match result:
        case PutResult():
            return () if result.prev_kv is None else (result.prev_kv,)
        case RangeResult():
            return result.kvs
        case DeleteResult():
            return result.prev_kvs
        case TxnResult():
            return chain.from_iterable(map(_rows_in, result.responses))


def _check_both(first: Check | None, second: Check) -> None:
    if first is not None:
        first()
    second()


def _encoded_delete(result: DeleteResult) -> bytes:
    response = rpc.DeleteRangeResponse()
    fill_delete(response, result)
    return response.SerializeToString()


def _encoded_txn(result: TxnResult) -> bytes:
    response = rpc.TxnResponse()
    fill_txn(response, result)
    return response.SerializeToString()


async def _encode_beside(header: bytes, encode: Callable[[], bytes]) -> bytes:
    return header + await asyncio.get_running_loop().run_in_executor(None, encode)


def _needs_all(request: RangeRequest) -> bool:
    """Say whether a range has to be gone through as a whole before its first row is known."""
    is_sorted = request.sort_order != "none" or request.sort_target != "key"
    return is_sorted or request.count_only or _has_filters(request)


def _has_filters(request: RangeRequest) -> bool:
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


class _Kept:
    """The rows of a large range, encoded, as far as a call may keep them: all, or none.

    Args:
        total: The bytes that all calls keep, as its only element.
    """

    def __init__(self, total: list[int]) -> None:
        self.parts: deque[bytes] = deque()
        self.has_given_up = False
        self._size = 0
        self._total = total

    def add(self, part: bytes) -> None:
        """Keep one more, or none any more."""
        if self.has_given_up:
            return
        size = len(part)
        if self._size + size > _KEPT_BYTES_MAX or self._total[0] + size > _ALL_KEPT_BYTES_MAX:
            self.has_given_up = True
            self.__exit__()
        else:
            self.parts.append(part)
            self._count(size)

    def take(self) -> bytes:
        """Return the first, and keep it no more."""
        part = self.parts.popleft()
        self._count(-len(part))
        return part

    def _count(self, change: int) -> None:
        self._size += change
        self._total[0] += change

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.parts.clear()
        self._count(-self._size)


class _pages:  # noqa: N801 - reads as the generator that it would be, were that closed in time
    """The rows of a range, a page at a time; the loop goes on in between."""

    def __init__(self, snapshot: Snapshot, keys: KeyRange, limit: int, first_rows: int = PAGE_ROWS) -> None:
        self._snapshot = snapshot
        self._end = keys.end
        self._resume: bytes | None = keys.start
        self._left = limit or None
        self._rows = first_rows

    def __aiter__(self) -> _pages:
        return self

    async def __anext__(self) -> tuple[KeyValue, ...]:
        if self._resume is None or self._left == 0:
            raise StopAsyncIteration
        await asyncio.sleep(0)
        rows = self._rows if self._left is None else min(self._rows, self._left)
        page = self._snapshot.page(KeyRange(self._resume, self._end), limit=rows, bytes_max=PAGE_BYTES)
        self._resume = page.resume
        self._rows = min(PAGE_ROWS, self._rows * 2)
        if self._left is not None:
            self._left -= len(page.kvs)
        return page.kvs


def _without_values(kvs: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
    return tuple(kv._replace(value=b"") for kv in kvs)


def _row_fields(kvs: tuple[KeyValue, ...], *, keys_only: bool) -> bytes:
    """Encode rows as the fields of a `RangeResponse`."""
    return range_response(b"", _without_values(kvs) if keys_only else kvs, more=False, count=0)


def _stream_response(response: bytes) -> bytes:
    """Encode a `RangeStreamResponse`."""
    return b"\x0a" + varint(len(response)) + response
