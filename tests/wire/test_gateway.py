"""The JSON gateway over services made for the test, and its parts."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvccstore.server.gateway.call import INLINE_BYTES
from mvccstore.server.gateway.failures import HTTP_STATUS
from mvccstore.server.gateway.paths import PATHS
from mvccstore.server.gateway.splitter import JsonSplitter
from mvccstore.server.messages import METHODS, kv, rpc
from mvccstore.server.transport.call import WRITABLE_BYTES, Call, Method, Receiver, Router
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.status import Code, RpcError
from tests.wire.http_kit import SECONDS, gateway

RANGE, WATCH, OBSERVE = "/etcdserverpb.KV/Range", "/etcdserverpb.Watch/Watch", "/v3electionpb.Election/Observe"


def unary(handler: Callable[[Call, Any], bytes | None]) -> Method:
    """Return a Range that does something else."""
    return Method(RANGE, rpc.RangeRequest.FromString, handler)


def streaming(handler: Callable[[Call], Receiver]) -> Method:
    """Return a Watch that does something else."""
    return Method(WATCH, rpc.WatchRequest.FromString, stream_handler=handler, is_server_streaming=True)


def found(key: bytes, count: int = 1) -> bytes:
    """Encode an answer of Range."""
    return rpc.RangeResponse(kvs=[kv.KeyValue(key=key, version=3)] * count, count=count).SerializeToString()


def watched(number: int) -> bytes:
    """Encode an answer of Watch."""
    return rpc.WatchResponse(watch_id=number, created=True).SerializeToString()


class Recorder:
    """A receiver that answers each request with its number, and keeps what it is told."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.requests: list[Any] = []
        self.has_ended = asyncio.Event()
        self.is_cancelled = asyncio.Event()
        call.on_cancel = self.is_cancelled.set

    def message(self, request: Any) -> None:
        self.requests.append(request)
        self.call.send(watched(len(self.requests)))

    def end(self) -> None:
        self.has_ended.set()


def recorders() -> tuple[list[Recorder], Method]:
    """Return a Watch, and the list that its receivers will be in."""
    kept: list[Recorder] = []

    def handler(call: Call) -> Recorder:
        kept.append(Recorder(call))
        return kept[-1]

    return kept, streaming(handler)


async def within(work: Any) -> Any:
    """Await with an end."""
    async with asyncio.timeout(SECONDS):
        return await work


# The table


def test_each_path_is_a_method_and_each_method_of_etcd_has_a_path() -> None:
    assert set(PATHS.values()) <= set(METHODS)
    assert set(METHODS) - set(PATHS.values()) == {
        "/etcdserverpb.KV/RangeStream",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.health.v1.Health/List",
    }
    assert len(PATHS) == len(set(PATHS.values())) + 3
    for name in ("revoke", "timetolive", "leases"):
        assert PATHS[f"/v3/kv/lease/{name}"] == PATHS[f"/v3/lease/{name}"]


@pytest.mark.parametrize("path", PATHS)
def test_each_path_reaches_its_method(path: str) -> None:
    types = METHODS[PATHS[path]]
    called: list[str] = []
    encoded = types.response().SerializeToString()

    class Once:
        def __init__(self, call: Call) -> None:
            self._call = call

        def message(self, request: Any) -> None:
            assert isinstance(request, types.request)
            called.append(self._call.method.path)
            self._call.send(encoded)

        def end(self) -> None:
            self._call.finish()

    def handler(call: Call, request: Any) -> bytes | None:
        assert isinstance(request, types.request)
        called.append(call.method.path)
        if not types.server_streaming:
            return encoded
        call.send(encoded)
        call.finish()
        return None

    async def main() -> None:
        method = Method(
            PATHS[path],
            types.request.FromString,
            None if types.client_streaming else handler,
            Once if types.client_streaming else None,
            types.server_streaming,
        )
        async with gateway(method) as client:
            answer = await client.post(path, {})
            assert (answer.status, answer.json()) == (200, {"result": {}} if types.server_streaming else {})
            assert called == [PATHS[path]]
            for verb in ("GET", "PUT", "DELETE", "HEAD"):
                answer = await client.ask(verb, path)
                assert answer.status == 501
                assert verb == "HEAD" or answer.json()["code"] == 12
            assert called == [PATHS[path]]

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/v3/", "/v3/nope", "/v3/kv/range/", "/v3/kv", "/v3/kv/Range", "/v3/kv/rangestream"])
def test_an_unknown_path_is_not_found(path: str) -> None:
    async def main() -> None:
        async with gateway() as client:
            for verb in ("POST", "GET"):
                answer = await client.ask(verb, path)
                assert answer.status == 404
                assert answer.json() == {"code": 5, "message": "Not Found", "error": "Not Found"}

    asyncio.run(main())


def test_a_service_that_is_not_served_is_unimplemented() -> None:
    async def main() -> None:
        async with gateway() as client:
            answer = await client.post("/v3/kv/range", {})
            assert (answer.status, answer.json()["code"]) == (501, 12)

    asyncio.run(main())


# Unary calls


def test_a_unary_call_answers_with_json_and_the_connection_goes_on() -> None:
    async def main() -> None:
        async with gateway(unary(lambda _, request: found(request.key))) as client:
            for _ in range(2):
                answer = await client.post("/v3/kv/range", {"key": "YQ=="})
                assert answer.status == 200
                assert answer.headers["content-type"] == "application/json"
                assert answer.headers["grpc-metadata-content-type"] == "application/grpc"
                assert answer.body == b'{"kvs":[{"key":"YQ==","version":"3"}],"count":"1"}'

    asyncio.run(main())


BODIES = {
    b"": b"",
    b"  \n": b"",
    b"{}": b"",
    b'{"key":"YQ"}': b"a",
    b'{"key":"YQ==","nope":{"a":[1]}}': b"a",
    b'{"key":null}': b"",
    b'{"key":"_-8="}': b"\xff\xef",
    # As etcd: what follows the first object is not looked at.
    b'{"key":"YQ=="}{"key":"Yg=="}': b"a",
    b'{"key":"YQ=="} xx': b"a",
}


@pytest.mark.parametrize("body", BODIES)
def test_a_body_is_read_as_etcd_reads_it(body: bytes) -> None:
    async def main() -> None:
        keys: list[bytes] = []

        def handler(_: Call, request: Any) -> bytes:
            keys.append(request.key)
            return b""

        async with gateway(unary(handler)) as client:
            assert (await client.post("/v3/kv/range", body)).status == 200
        assert keys == [BODIES[body]]

    asyncio.run(main())


BAD_BODIES = [
    b"{",
    b"nonsense",
    b"[]",
    b"null",
    b'"a"',
    b"3",
    b"\xff\xfe",
    b'{"key":"YQ=="',
    b'{"key":"!!"}',
    b'{"key":"Y Q="}',
    b'{"key":3}',
    b'{"key":["YQ=="]}',
    b'{"key":"YQ==",}',
    b'{"key":"YQ==","key":"YQ=="}',
    b'{"limit":"1_0"}',
    b'{"limit":1.5}',
    b'{"limit":"99999999999999999999"}',
    b'{"serializable":"true"}',
    b'{"sort_order":[]}',
    b'{"a":' * 5_000,
]


@pytest.mark.parametrize("body", BAD_BODIES)
@pytest.mark.parametrize("padding", [0, INLINE_BYTES])
def test_a_body_of_another_shape_is_an_invalid_argument(body: bytes, padding: int) -> None:
    """Also one that is parsed in a thread, as it is large."""

    async def main() -> None:
        async with gateway(unary(lambda *_: pytest.fail("called"))) as client:
            answer = await client.post("/v3/kv/range", b" " * padding + body)
            assert (answer.status, answer.json()["code"]) == (400, 3)
            assert answer.json()["message"] == answer.json()["error"] != ""
            # The connection is as good as before.
            assert (await client.ask("GET", "/v3/kv/range")).status == 501

    asyncio.run(main())


@pytest.mark.parametrize("code", [code for code in Code if code])
@pytest.mark.parametrize("is_late", [False, True])
def test_each_code_has_its_http_status(code: Code, is_late: bool) -> None:
    def handler(call: Call, _: Any) -> bytes | None:
        if not is_late:
            raise RpcError(code, "what wäre")
        asyncio.get_running_loop().call_soon(call.fail, RpcError(code, "what wäre"))
        return None

    async def main() -> None:
        async with gateway(unary(handler)) as client:
            answer = await client.post("/v3/kv/range", {})
        assert answer.status == HTTP_STATUS[code]
        assert answer.json() == {"code": code, "message": "what wäre", "error": "what wäre"}
        assert answer.headers["content-type"] == "application/json"
        assert "grpc-metadata-content-type" not in answer.headers

    asyncio.run(main())


def test_the_http_statuses_are_those_of_the_specification() -> None:
    rows = {
        200: [Code.OK],
        400: [Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE],
        401: [Code.UNAUTHENTICATED],
        403: [Code.PERMISSION_DENIED],
        404: [Code.NOT_FOUND],
        409: [Code.ALREADY_EXISTS, Code.ABORTED],
        429: [Code.RESOURCE_EXHAUSTED],
        499: [Code.CANCELLED],
        500: [Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS],
        501: [Code.UNIMPLEMENTED],
        503: [Code.UNAVAILABLE],
        504: [Code.DEADLINE_EXCEEDED],
    }
    assert {code: status for status, codes in rows.items() for code in codes} == HTTP_STATUS


def test_who_is_not_authenticated_is_told_how() -> None:
    def handler(_: Call, __: Any) -> bytes:
        raise RpcError(Code.UNAUTHENTICATED, "etcdserver: invalid auth token")

    async def main() -> None:
        async with gateway(unary(handler)) as client:
            answer = await client.post("/v3/kv/range", {})
        assert answer.headers["www-authenticate"] == "etcdserver: invalid auth token"

    asyncio.run(main())


def test_the_gate_and_the_translation_of_the_router_hold() -> None:
    def gate(call: Call) -> None:
        if call.metadata.get(b"authorization") is None:
            raise LookupError

    def translate(error: Exception) -> RpcError | None:
        return RpcError(Code.PERMISSION_DENIED, "no") if isinstance(error, LookupError) else None

    async def main() -> None:
        router = Router({RANGE: unary(lambda *_: b""), WATCH: recorders()[1]}, gate, translate)
        async with gateway(router=router) as client:
            assert (await client.post("/v3/kv/range", {})).status == 403
            answer = await client.post("/v3/watch", {})
            assert (answer.status, answer.json()["error"]["code"]) == (403, 7)
            assert (await client.post("/v3/kv/range", {}, [("Authorization", "t")])).status == 200

    asyncio.run(main())


def test_headers_become_metadata() -> None:
    async def main() -> None:
        seen: list[Call] = []
        async with gateway(unary(lambda call, _: seen.append(call) or b"")) as client:
            headers = [
                ("Authorization", "tok"),
                ("Grpc-Metadata-HasLeader", "true"),
                ("Grpc-Metadata-X-Bin", base64.b64encode(b"\0\xff").decode().rstrip("=")),
                ("Accept", "*/*"),
                ("Cookie", "secret"),
            ]
            assert (await client.post("/v3/kv/range", {}, headers)).status == 200
            assert set(seen[0].metadata.pairs) == {
                (b"authorization", b"tok"),
                (b"grpcgateway-authorization", b"tok"),
                (b"hasleader", b"true"),
                (b"x-bin", b"\0\xff"),
                (b"grpcgateway-accept", b"*/*"),
                (b"grpcgateway-host", b"x"),
            }
            assert seen[0].peer.address.startswith("127.0.0.1:")
            for name, value in (("Grpc-Metadata-X-Bin", "!!"), ("Grpc-Timeout", "5x"), ("Grpc-Timeout", "5")):
                answer = await client.post("/v3/kv/range", {}, [(name, value)])
                assert (answer.status, answer.json()["code"]) == (400, 3)

    asyncio.run(main())


def test_a_call_that_takes_longer_than_its_timeout_is_cancelled() -> None:
    async def main() -> None:
        cancelled = asyncio.Event()

        def handler(call: Call, _: Any) -> None:
            call.on_cancel = cancelled.set

        async with gateway(unary(handler)) as client:
            answer = await client.post("/v3/kv/range", {}, [("Grpc-Timeout", "10m")])
            assert (answer.status, answer.json()["code"]) == (504, 4)
            assert answer.json()["message"] == "context deadline exceeded"
            assert cancelled.is_set()

    asyncio.run(main())


def test_requests_that_are_too_large_are_refused() -> None:
    async def main() -> None:
        limits = replace(TransportLimits(), message_bytes_max=30_000)
        async with gateway(unary(lambda *_: b""), limits=limits) as client:
            body = {"key": base64.b64encode(b"x" * 29_990).decode()}
            assert (await client.post("/v3/kv/range", body)).status == 200
            body = {"key": base64.b64encode(b"x" * 30_000).decode()}
            answer = await client.post("/v3/kv/range", body)
            assert (answer.status, answer.json()["code"]) == (429, 8)
            assert answer.json()["message"] == "grpc: received message larger than max (30004 vs. 30000)"
            answer = await client.post("/v3/kv/range", b" " * 60_001)
            assert (answer.status, answer.json()["code"]) == (429, 8)
            assert (await client.post("/v3/kv/range", {})).status == 200

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 2_000])
def test_an_answer_may_come_in_parts_and_large_ones_are_whole(count: int) -> None:
    async def main() -> None:
        encoded = found(b"a", count)
        assert (len(encoded) > INLINE_BYTES) == (count > 1)

        def handler(call: Call, _: Any) -> None:
            call.begin(len(encoded))
            call.send_part(encoded[:5])
            call.send_part(encoded[5:])
            call.finish()

        async with gateway(unary(handler)) as client:
            answer = await client.post("/v3/kv/range", {})
            assert answer.status == 200
            assert len(answer.json()["kvs"]) == count

    asyncio.run(main())


def test_a_call_may_be_served_by_a_task_which_goes_with_its_client() -> None:
    async def main() -> None:
        ended = asyncio.Event()
        begun = asyncio.Event()

        async def work() -> bytes:
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                ended.set()
            return b""

        limits = replace(TransportLimits(), http_linger_seconds=0.0)
        async with gateway(unary(lambda call, _: call.run(work())), limits=limits) as client:
            await client.begin("POST", "/v3/kv/range", b"{}")
            await within(begun.wait())
            client.close()
            await within(ended.wait())

    asyncio.run(main())


def test_an_error_of_ours_is_told_as_one(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        def handler(_: Call, __: Any) -> bytes:
            raise KeyError(Code.OK)

        async with gateway(unary(handler)) as client:
            answer = await client.post("/v3/kv/range", {})
            assert (answer.status, answer.json()["code"]) == (500, 2)
            assert "Code" not in answer.json()["message"]

    asyncio.run(main())
    assert "failed" in caplog.text


def test_an_answer_that_cannot_be_decoded_ends_the_call(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with gateway(unary(lambda *_: b"\xff" * (INLINE_BYTES + 1))) as client:
            answer = await client.post("/v3/kv/range", {})
            assert (answer.status, answer.json()["code"]) == (500, 13)

    asyncio.run(main())
    assert "could not be encoded" in caplog.text


# Streams


def test_a_watch_takes_requests_as_they_come_and_goes_on_after_the_last() -> None:
    async def main() -> None:
        kept, method = recorders()
        async with gateway(method) as client:
            await client.begin("POST", "/v3/watch", None)
            client.part(b'{"create_request":{"key":"YQ=="}} {"cancel_')
            head = await client.head()
            assert head.status_code == 200
            assert (b"grpc-metadata-content-type", b"application/grpc") in list(head.headers)
            assert await client.line() == {"result": {"watch_id": "1", "created": True}}
            client.part(b'request":{"watch_id":1}}\n')
            assert await client.line() == {"result": {"watch_id": "2", "created": True}}
            client.end()
            (recorder,) = kept
            await within(recorder.has_ended.wait())
            assert recorder.requests[0].create_request.key == b"a"
            assert recorder.requests[1].cancel_request.watch_id == 1
            recorder.call.send(watched(9))
            assert (await client.line())["result"]["watch_id"] == "9"
            assert not recorder.is_cancelled.is_set()
            client.close()
            await within(recorder.is_cancelled.wait())
            assert recorder.call.is_done

    asyncio.run(main())


def test_lines_are_chunks_of_their_own_even_if_sent_at_once_and_large_ones_keep_their_place() -> None:
    async def main() -> None:
        kept, method = recorders()
        async with gateway(method) as client:
            await client.begin("POST", "/v3/watch", b"{}")
            await client.head()
            await client.line()
            call = kept[0].call
            large = rpc.WatchResponse(watch_id=5, cancel_reason="x" * INLINE_BYTES).SerializeToString()
            for message in (watched(3), watched(4), large, watched(6), large, watched(7)):
                call.send(message)
            call.finish()
            assert [(await client.line())["result"]["watch_id"] for _ in range(6)] == ["3", "4", "5", "6", "5", "7"]
            assert await client.chunk() is None

    asyncio.run(main())


def test_a_stream_that_fails_before_its_first_answer_has_a_status() -> None:
    async def main() -> None:
        def handler(call: Call) -> Recorder:
            asyncio.get_running_loop().call_soon(call.fail, RpcError(Code.UNAVAILABLE, "no leader"))
            return Recorder(call)

        async with gateway(streaming(handler)) as client:
            await client.begin("POST", "/v3/watch", None)
            head = await client.head()
            assert head.status_code == 503
            line = await client.line()
            assert line["error"]["code"] == 14
            assert line["error"]["message"] == "no leader"
            assert await client.chunk() is None

    asyncio.run(main())


def test_a_stream_that_fails_later_ends_with_a_line() -> None:
    async def main() -> None:
        kept, method = recorders()
        async with gateway(method) as client:
            await client.begin("POST", "/v3/watch", b"{}")
            assert (await client.head()).status_code == 200
            await client.line()
            kept[0].call.fail(RpcError(Code.NOT_FOUND, "gone"))
            assert await client.line() == {
                "error": {
                    "code": 5,
                    "message": "gone",
                    "grpc_code": 5,
                    "http_code": 404,
                    "http_status": "Not Found",
                }
            }
            assert await client.chunk() is None

    asyncio.run(main())


@pytest.mark.parametrize("body", [b"x", b"{}{", b'{}{"create_request":3}', b"{} [1]", b'{}{"create_request":'])
def test_a_stream_ends_with_a_request_that_is_none(body: bytes) -> None:
    async def main() -> None:
        kept, method = recorders()
        async with gateway(method) as client:
            answer = await client.ask("POST", "/v3/watch", body)
            last = json.loads(answer.body.splitlines()[-1])
            assert last["error"]["code"] == 3
            assert answer.status == (400 if body == b"x" else 200)
            assert len(kept[0].requests) == (0 if body == b"x" else 1)
            assert kept[0].is_cancelled.is_set()  # or the service would go on with what nobody reads

    asyncio.run(main())


def test_a_request_of_a_stream_that_does_not_end_is_refused() -> None:
    async def main() -> None:
        limits = replace(TransportLimits(), message_bytes_max=30_000)
        async with gateway(recorders()[1], limits=limits) as client:
            answer = await client.ask("POST", "/v3/watch", b'{"a":"' + b"x" * 60_001)
            assert (answer.status, answer.json()["error"]["code"]) == (429, 8)

    asyncio.run(main())


def test_a_server_stream_waits_for_a_client_that_does_not_read() -> None:
    async def main() -> None:
        answers = 60
        blob = rpc.SnapshotResponse(blob=b"x" * 200_000).SerializeToString()
        most = 0

        async def work(call: Call) -> None:
            nonlocal most
            for _ in range(answers):
                call.send(blob)
                most = max(most, call.queued_bytes)
                await call.drained()
            call.finish()

        def handler(call: Call, _: Any) -> None:
            call.run(work(call))  # type: ignore[arg-type]

        snapshot = "/etcdserverpb.Maintenance/Snapshot"
        method = Method(snapshot, rpc.SnapshotRequest.FromString, handler, is_server_streaming=True)
        async with gateway(method) as client:
            await client.begin("POST", "/v3/maintenance/snapshot", b"{}")
            await client.head()
            count = 0
            while (chunk := await client.chunk()) is not None:
                assert len(json.loads(chunk)["result"]["blob"]) == 266_668
                count += 1
            assert count == answers
        assert most < 4 * WRITABLE_BYTES

    asyncio.run(main())


# Cutting a body into objects

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(objects=st.lists(st.dictionaries(st.text(), _JSON, max_size=3), max_size=4), data=st.data())
def test_objects_are_found_however_they_are_cut(objects: list[dict[str, Any]], data: st.DataObject) -> None:
    space = st.sampled_from(["", " ", "\n", "\r\n\t"])
    is_ascii = data.draw(st.booleans())
    text = "".join(data.draw(space) + json.dumps(value, ensure_ascii=is_ascii) for value in objects)
    body = text.encode("utf-8", "surrogatepass")
    size = data.draw(st.integers(1, len(body) + 1))
    splitter = JsonSplitter()
    pieces: list[bytes] = []
    for start in range(0, len(body), size):
        pieces += splitter.feed(body[start : start + size])
    assert [json.loads(piece.decode("utf-8", "surrogatepass")) for piece in pieces] == objects
    assert splitter.rest == b""


@given(st.binary(max_size=60), st.integers(1, 61))
def test_cutting_differently_never_finds_something_else(body: bytes, cut: int) -> None:
    def split(*parts: bytes) -> tuple[list[bytes], bytes | None]:
        splitter = JsonSplitter()
        pieces: list[bytes] = []
        try:
            for part in parts:
                pieces += splitter.feed(part)
        except ValueError:
            return pieces, None
        return pieces, splitter.rest

    body = b"{" + body
    whole, parts = split(body), split(body[:cut], body[cut:])
    assert whole[1] == parts[1]
    if whole[1] is not None:
        assert whole == parts
