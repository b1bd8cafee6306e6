"""The KV service beside writers and compaction, and with ranges that are large: what it answers, and what it keeps."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import grpc
import pytest

from mvccstore import KeyRange, Store
from mvccstore.mvcc.read import PAGE_ROWS
from mvccstore.server import Serving, serve
from mvccstore.server.messages import rpc
from mvccstore.server.services import kv as kv_service
from mvccstore.server.transport.frames import PREFACE
from mvccstore.types import LeaseGrantRequest
from tests.wire.client import Client, Endpoint, RpcFailure, StreamEnd
from tests.wire.http2_kit import DATA, END_STREAM, HEADERS, LARGE, settings, unary, window
from tests.wire.requests import compact, get, put

RANGE, STREAM, COMPACT = "/etcdserverpb.KV/Range", "/etcdserverpb.KV/RangeStream", "/etcdserverpb.KV/Compact"
ROWS = 2 * PAGE_ROWS + 1
VALUE_BYTES = 20_000
SECONDS = 20


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()


@pytest.fixture
def server(store: Store) -> Iterator[Serving]:
    with serve(store) as serving:
        yield serving


@pytest.fixture
def client(server: Serving) -> Iterator[Client]:
    with client_of(server) as found:
        yield found


def client_of(server: Serving) -> Client:
    return Client(Endpoint(server.host, server.port))


def name(number: int) -> bytes:
    return b"r/%06d" % number


def fill(store: Store, rows: int, value: bytes = b"v") -> None:
    """Write the rows, all in one revision."""
    with store.begin() as txn:
        for number in range(rows):
            txn.put(name(number), value)


def everything(**options: Any) -> rpc.RangeRequest:
    return get(b"r/", b"r0", **options)


def digest(kvs: Any) -> str:
    """Fingerprint rows, every field of them."""
    found = hashlib.sha256()
    for kv in kvs:
        found.update(repr((kv.key, kv.create_revision, kv.mod_revision, kv.version, kv.lease, len(kv.value))).encode())
        found.update(kv.value)
    return found.hexdigest()


def no_view_is_open(store: Store, server: Serving) -> bool:
    """Say whether nothing is pinned, once the server's loop has done what it was told."""
    with client_of(server) as other:
        for _ in range(1_000):
            if store.stats().snapshots == 0:
                return True
            other.unary(RANGE, get(b"none"))
    return False


# Large answers of what writes


@pytest.mark.parametrize("nested", [False, True], ids=["delete", "txn"])
@pytest.mark.parametrize(("rows", "is_beside"), [(300, False), (1_000, True)])
def test_what_many_rows_are_answered_with_is_encoded_beside_the_loop(
    store: Store, server: Serving, client: Client, nested: bool, rows: int, is_beside: bool
) -> None:
    delete = rpc.DeleteRangeRequest(key=b"r/", range_end=b"r0", prev_kv=True)
    threads: list[int] = []
    original = kv_service.fill_txn if nested else kv_service.fill_delete

    def noted(message: Any, result: Any) -> None:
        threads.append(threading.get_ident())
        original(message, result)

    def answers() -> tuple[Any, Any]:
        if not nested:
            answer = client.unary("/etcdserverpb.KV/DeleteRange", delete)
            return answer, answer
        request = rpc.TxnRequest(success=[rpc.RequestOp(request_delete_range=delete)])
        answer = client.unary("/etcdserverpb.KV/Txn", request)
        return answer, answer.responses[0].response_delete_range

    with mock.patch.object(kv_service, "fill_txn" if nested else "fill_delete", noted):
        answers()  # of nothing: on the loop
        fill(store, rows)
        answer, deleted = answers()
    assert [kv.key for kv in deleted.prev_kvs] == [name(number) for number in range(rows)]
    assert (answer.header.revision, deleted.deleted) == (3, rows)
    assert (threads[0] != threads[1]) == is_beside


# The revision in the header


def write_beside(store: Store, rows: int) -> tuple[threading.Thread, threading.Event]:
    """Begin to write keys in turn; which was written last tells the revision."""
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            store.put(name(number % rows), b"%d" % (store.revision + 1))
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    return thread, done


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (1, {}),
        (8, {}),
        (100, {"sort_order": 2, "sort_target": 0}),
        (100, {"limit": 100}),
        (100, {"max_create_revision": 2}),
        (PAGE_ROWS + 5, {}),
    ],
    ids=str,
)
def test_header_names_the_revision_that_was_read(
    store: Store, client: Client, rows: int, options: dict[str, Any]
) -> None:
    fill(store, rows)
    request = get(name(0)) if rows == 1 else everything(**options)
    thread, done = write_beside(store, rows)
    try:
        for _ in range(40):
            found = client.unary(RANGE, request)
            assert found.count == len(found.kvs) == rows
            # Every revision changes one of the keys, so the newest among them is the revision itself.
            assert max(kv.mod_revision for kv in found.kvs) == found.header.revision
    finally:
        done.set()
        thread.join(SECONDS)


def test_stream_names_the_revision_that_was_read(store: Store, client: Client) -> None:
    fill(store, ROWS)
    thread, done = write_beside(store, ROWS)
    try:
        for _ in range(5):
            responses = all_of(client, everything())
            kvs = [kv for response in responses for kv in response.kvs]
            assert [kv.key for kv in kvs] == list(map(name, range(ROWS)))
            assert max(kv.mod_revision for kv in kvs) == responses[-1].header.revision
    finally:
        done.set()
        thread.join(SECONDS)


@pytest.mark.parametrize(
    "options",
    [{}, {"count_only": True}, {"sort_target": 2, "sort_order": 1}, {"limit": 1}, {"limit": PAGE_ROWS + 1}],
    ids=str,
)
def test_read_of_the_present_is_never_compacted(store: Store, client: Client, options: dict[str, Any]) -> None:
    fill(store, PAGE_ROWS + 5)
    done = threading.Event()

    def compact_all() -> None:
        while not done.is_set():
            store.compact(store.put(b"r/000000", b"v"))

    thread = threading.Thread(target=compact_all)
    thread.start()
    try:
        for _ in range(20):
            assert client.unary(RANGE, everything(**options)).count == PAGE_ROWS + 5
    finally:
        done.set()
        thread.join(SECONDS)


# What is looked through on a thread


@pytest.mark.parametrize(
    "options",
    [
        {"sort_order": 2, "sort_target": 4},
        {"count_only": True},
        {"min_mod_revision": 1},
        {"max_create_revision": 9},
        {"limit": 1},
    ],
    ids=str,
)
def test_what_goes_over_many_rows_leaves_the_loop_free(store: Store, server: Serving, options: dict[str, Any]) -> None:
    fill(store, 66)
    entered, goes_on = threading.Event(), threading.Event()
    find = store.find

    def blocked(request: Any) -> Any:
        entered.set()
        assert goes_on.wait(SECONDS)
        return find(request)

    answers: list[Any] = []
    with (
        mock.patch.object(Store, "find", lambda _, request: blocked(request)),
        client_of(server) as client,
        client_of(server) as other,
    ):
        thread = threading.Thread(target=lambda: answers.append(client.unary(RANGE, everything(**options))))
        thread.start()
        assert entered.wait(SECONDS)
        assert other.unary(RANGE, get(name(7))).kvs[0].key == name(7)
        assert answers == []
        goes_on.set()
        thread.join(SECONDS)
    assert answers[0].count == 66


@pytest.mark.parametrize("options", [{"sort_order": 2, "sort_target": 4}, {"count_only": True}, {"limit": 1}], ids=str)
def test_what_goes_over_few_rows_needs_no_thread(store: Store, client: Client, options: dict[str, Any]) -> None:
    fill(store, 64)
    with mock.patch.object(kv_service.KV, "_find_encoded", side_effect=AssertionError):
        assert client.unary(RANGE, everything(**options)).count == 64


@pytest.mark.parametrize(("leases", "is_beside"), [(1_000, False), (1_001, True)])
def test_many_leases_are_listed_beside_the_loop(store: Store, client: Client, leases: int, is_beside: bool) -> None:
    threads: list[int] = []
    listed = Store.leases

    def noted(self: Store) -> Any:
        threads.append(threading.get_ident())
        return listed(self)

    with mock.patch.object(Store, "leases", noted):
        client.unary("/etcdserverpb.Lease/LeaseLeases", rpc.LeaseLeasesRequest())  # none, on the loop
        store.submit_many([LeaseGrantRequest(lease_id, 60_000 + lease_id % 7) for lease_id in range(1, leases + 1)])
        answer = client.unary("/etcdserverpb.Lease/LeaseLeases", rpc.LeaseLeasesRequest())
    found = [lease.ID for lease in answer.leases]
    assert found == [lease.id for lease in store.leases()]
    assert (len(found), answer.header.revision) == (leases, store.revision)
    assert (threads[0] != threads[1]) == is_beside


# Large ranges


def test_large_range_is_of_one_revision_whatever_is_written_between_its_pages(store: Store, server: Serving) -> None:
    rows = 2_500
    fill(store, rows, b"x" * VALUE_BYTES)
    expected = store.range(KeyRange.prefix(b"r/"))
    begun, goes_on = threading.Event(), threading.Event()
    pages = 0
    next_page = kv_service._pages.__anext__

    async def held(given: Any) -> Any:
        nonlocal pages
        pages += 1
        page = await next_page(given)
        if pages == 3:
            begun.set()
            await asyncio.get_running_loop().run_in_executor(None, goes_on.wait, SECONDS)
        return page

    answers: list[Any] = []
    with mock.patch.object(kv_service._pages, "__anext__", held), client_of(server) as client:
        thread = threading.Thread(target=lambda: answers.append(client.unary(RANGE, everything(), timeout=SECONDS)))
        thread.start()
        assert begun.wait(SECONDS)
        for number in range(0, rows, 3):
            if number % 2:
                store.delete(name(number))
            else:
                store.put(name(number), b"changed")
        store.put(b"r/000000.5", b"new")
        store.compact(store.revision)
        goes_on.set()
        thread.join(SECONDS)
    (found,) = answers
    assert (found.count, found.more, found.header.revision) == (rows, False, 2)
    assert digest(found.kvs) == digest(expected)
    assert pages > 20
    assert no_view_is_open(store, server)


def test_stream_waits_for_who_reads_it(store: Store, server: Serving) -> None:
    rows = 2_500
    fill(store, rows, b"x" * VALUE_BYTES)
    expected = store.range(KeyRange.prefix(b"r/"))
    handed = 0
    next_page = kv_service._pages.__anext__

    async def counted(pages: Any) -> Any:
        nonlocal handed
        page = await next_page(pages)
        handed += sum(len(kv.value) for kv in page)
        return page

    options = [("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)]
    kvs: list[Any] = []
    with (
        mock.patch.object(kv_service._pages, "__anext__", counted),
        client_of(server) as other,
        grpc.insecure_channel(f"{server.host}:{server.port}", options=options) as channel,
    ):
        stream = channel.unary_stream(
            STREAM,
            request_serializer=rpc.RangeRequest.SerializeToString,
            response_deserializer=rpc.RangeStreamResponse.FromString,
        )
        for response in stream(everything(), timeout=SECONDS, wait_for_ready=True):
            kvs += response.range_response.kvs
            for _ in range(30):  # the server's loop has time to run ahead
                other.unary(RANGE, get(b"none"))
            assert handed - len(kvs) * VALUE_BYTES <= 4 * kv_service.PAGE_BYTES
    assert len(kvs) == rows
    assert digest(kvs) == digest(expected)
    assert no_view_is_open(store, server)


def frames(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Read frames: kind, flags and payload of each."""
    with connection.makefile("rb") as file:
        while head := file.read(9):
            yield head[3], head[4], file.read(int.from_bytes(head[:3]))


def test_range_waits_for_who_does_not_read(store: Store, server: Serving) -> None:
    """A client may stop reading within its one answer, as flow control has it: as much is read of the store, no more."""
    rows = 2_500
    fill(store, rows, b"x" * VALUE_BYTES)
    expected = store.range(KeyRange.prefix(b"r/"))
    handed = 0
    next_page = kv_service._pages.__anext__

    async def counted(pages: Any) -> Any:
        nonlocal handed
        page = await next_page(pages)
        handed += sum(len(kv.value) for kv in page)
        return page

    first_window = 65_535
    body = bytearray()
    with (
        mock.patch.object(kv_service._pages, "__anext__", counted),
        client_of(server) as other,
        socket.create_connection((server.host, server.port), timeout=SECONDS) as connection,
    ):
        connection.sendall(PREFACE + settings() + unary(1, RANGE.encode(), everything().SerializeToString()))
        came = frames(connection)
        while len(body) < first_window:
            kind, _, payload = next(came)
            body += payload if kind == DATA else b""
        assert len(body) == first_window
        for _ in range(300):  # the server's loop has time to run ahead
            other.unary(RANGE, get(b"none"))
        assert store.stats().snapshots == 1
        # All was read once before, and let go of: the answer begins with its length.
        assert handed - rows * VALUE_BYTES <= first_window + 4 * kv_service.PAGE_BYTES
        connection.sendall(window(0, LARGE - first_window) + window(1, LARGE - first_window))
        for kind, flags, payload in came:
            body += payload if kind == DATA else b""
            if kind == HEADERS and flags & END_STREAM:
                break
    found = rpc.RangeResponse.FromString(bytes(body[5:]))
    assert (found.count, found.more) == (rows, False)
    assert digest(found.kvs) == digest(expected)
    assert no_view_is_open(store, server)


def all_of(client: Client, request: rpc.RangeRequest) -> list[Any]:
    with client.stream(STREAM, [request]) as stream:
        found: list[Any] = []
        while True:
            try:
                found.append(stream.receive().range_response)
            except StreamEnd:
                return found


@pytest.mark.parametrize("method", [RANGE, STREAM])
def test_cancelled_midway_it_lets_go_of_its_view(store: Store, server: Serving, method: str) -> None:
    fill(store, 2_500, b"x" * VALUE_BYTES)
    entered = threading.Event()
    stops_at = asyncio.Event()
    next_page = kv_service._pages.__anext__

    async def held(pages: Any) -> Any:
        page = await next_page(pages)
        if not entered.is_set():
            entered.set()
            await stops_at.wait()
        return page

    with mock.patch.object(kv_service._pages, "__anext__", held), client_of(server) as client:
        stream = client.stream(method, [everything()], half_close=True)
        assert entered.wait(SECONDS)
        assert store.stats().snapshots == 1
        stream.cancel()
        assert no_view_is_open(store, server)


# RangeStream


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit": 1},
        {"limit": 10},
        {"limit": 11},
        {"limit": ROWS - 1},
        {"limit": ROWS},
        {"limit": ROWS + 1},
        {"limit": -1},
        {"revision": 2},
        {"revision": 2, "limit": 12},
        {"keys_only": True},
        {"keys_only": True, "limit": 30},
        {"count_only": True},
        {"count_only": True, "limit": 3},
        {"sort_order": 1},
        {"serializable": True},
    ],
    ids=str,
)
def test_stream_is_the_range_in_pieces(store: Store, client: Client, options: dict[str, Any]) -> None:
    fill(store, ROWS)
    store.put(name(0), b"later")
    store.delete(name(1))
    request = everything(**options)
    whole = client.unary(RANGE, request)
    pieces = all_of(client, request)
    assert [kv for piece in pieces for kv in piece.kvs] == list(whole.kvs)
    assert [piece.header.revision for piece in pieces] == [0] * (len(pieces) - 1) + [3 + 1]
    assert [(piece.count, piece.more) for piece in pieces[:-1]] == [(0, False)] * (len(pieces) - 1)
    assert (pieces[-1].count, pieces[-1].more) == (whole.count, whole.more)
    assert whole.count == (ROWS if options.get("revision") else ROWS - 1)
    assert all(len(piece.kvs) <= PAGE_ROWS for piece in pieces)


@pytest.mark.parametrize("request_", [get(b"none"), get(b"b", b"a"), get(b"s", b"t"), get(b"a", b"a")], ids=str)
def test_stream_of_nothing_is_one_response(store: Store, client: Client, request_: rpc.RangeRequest) -> None:
    store.put(b"r", b"v")
    (only,) = all_of(client, request_)
    assert (only.header.revision, list(only.kvs), only.count, only.more) == (2, [], 0, False)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"sort_order": 2}, "UNIMPLEMENTED", "RangeStream does not support custom sort orders"),
        ({"sort_target": 1}, "UNIMPLEMENTED", "RangeStream does not support custom sort orders"),
        ({"min_mod_revision": 1}, "UNIMPLEMENTED", "RangeStream does not support revision filters"),
        ({"max_create_revision": 1}, "UNIMPLEMENTED", "RangeStream does not support revision filters"),
        ({"revision": 1}, "OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted"),
        ({"revision": 99}, "OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision"),
    ],
    ids=str,
)
def test_stream_refuses(store: Store, client: Client, options: dict[str, Any], code: str, message: str) -> None:
    store.put(b"r/", b"v")
    client.unary(COMPACT, compact(2))
    with client.stream(STREAM, [everything(**options)]) as stream, pytest.raises(RpcFailure) as raised:
        stream.receive()
    assert (raised.value.code, raised.value.message) == (code, message)
    assert store.stats().snapshots == 0
    assert client.unary("/etcdserverpb.KV/Put", put(b"a")).header.revision == 3
