"""What is read off a connection, however its bytes are cut, padded and compressed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hpack import Encoder

from mvccstore.server.messages import rpc
from mvccstore.server.transport.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY_FLAG,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    frame,
    rst_frame,
)
from mvccstore.server.transport.status import Code
from mvccstore.testing import wiretap
from mvccstore.testing.cassette import CassetteWriter, RecordedCall, read_cassette
from mvccstore.testing.wiretap import Http2Tap, NotUnderstoodError, Tap
from mvccstore.testing.wiretap_json import Http1Tap, new_exchange
from tests.testing.recording_kit import KV, WATCH, put

REQUEST = put(b"a", b"1").SerializeToString()
ANSWER = rpc.PutResponse(header=rpc.ResponseHeader(revision=2)).SerializeToString()
HEAD = {":method": "POST", ":scheme": "http", ":path": KV + "Put", "content-type": "application/grpc"}
ANSWER_HEAD = {":status": "200", "content-type": "application/grpc"}
OK = {"grpc-status": "0", "grpc-message": ""}


class Taped:
    """A cassette that is written by a tap."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = CassetteWriter(path, "3.6.16", lambda: 0.0)

    def http2(self) -> Http2Tap:
        return Http2Tap(self.writer, lambda verb, path, headers: new_exchange(self.writer, verb, path, headers))

    def calls(self) -> tuple[RecordedCall, ...]:
        return read_cassette(self.path).calls


@pytest.fixture
def taped(tmp_path: Path) -> Iterator[Taped]:
    taped = Taped(tmp_path / "c.jsonl")
    yield taped
    taped.writer.close()


def message(encoded: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(encoded).to_bytes(4) + encoded


def parts(data: bytes, size: int) -> Iterable[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def play(tap: Tap, asked: bytes, said: bytes, size: int = 1 << 20) -> None:
    for part in parts(asked, size):
        tap.take_client(part)
    for part in parts(said, size):
        tap.take_upstream(part)


@pytest.mark.parametrize("size", [1, 2, 7, 9, 10, 4_096])
def test_frames_are_read_however_they_are_cut(taped: Taped, size: int) -> None:
    encoder, answering = Encoder(), Encoder()
    block = encoder.encode(HEAD)
    asked = PREFACE + frame(SETTINGS, 0, 0, b"\0\1\0\1\0\0")
    # A block in three frames, with padding and a priority; a message in two, with padding; noise between them.
    asked += frame(HEADERS, PADDED | PRIORITY_FLAG, 1, b"\2" + b"\0\0\0\0\7" + block[:4] + b"xx")
    asked += frame(CONTINUATION, 0, 1, block[4:6]) + frame(CONTINUATION, END_HEADERS, 1, block[6:])
    asked += frame(PING, 0, 0, bytes(8)) + frame(0xFE, 0, 1, b"unknown")
    asked += frame(DATA, PADDED, 1, b"\3" + message(REQUEST)[:3] + b"xxx")
    asked += frame(WINDOW_UPDATE, 0, 1, b"\0\0\1\0") + frame(DATA, END_STREAM, 1, message(REQUEST)[3:])
    # The second call has a head made of what the first has left in the table.
    asked += frame(HEADERS, END_HEADERS, 3, encoder.encode(HEAD)) + frame(DATA, END_STREAM, 3, message(REQUEST))
    said = frame(SETTINGS, 0, 0)
    for number in (1, 3):
        said += frame(HEADERS, END_HEADERS, number, answering.encode(ANSWER_HEAD))
        said += frame(DATA, 0, number, message(ANSWER))
        said += frame(HEADERS, END_HEADERS | END_STREAM, number, answering.encode(OK))
    play(taped.http2(), asked, said, size)
    assert [(call.path, call.requests, call.answers[0].encoded, call.code) for call in taped.calls()] == [
        (KV + "Put", [REQUEST], ANSWER, Code.OK)
    ] * 2


def test_a_table_that_was_made_larger(taped: Taped) -> None:
    encoder = Encoder()
    encoder.header_table_size = 65_536
    head = HEAD | {f"x-{number}": "v" * 100 for number in range(100)}
    asked = PREFACE + b"".join(frame(HEADERS, END_HEADERS, number, encoder.encode(head)) for number in (1, 3))
    play(taped.http2(), asked, b"")
    assert taped.writer.calls == 2


def opened(tap: Http2Tap, path: str = KV + "Put", data: bytes = message(REQUEST), **head: str) -> None:
    block = Encoder().encode(HEAD | {":path": path} | {name.replace("_", "-"): each for name, each in head.items()})
    tap.take_client(PREFACE + frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, data))


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (rst_frame(1, ErrorCode.CANCEL), Code.CANCELLED),
        (rst_frame(1, ErrorCode.REFUSED_STREAM), Code.UNAVAILABLE),
        (rst_frame(1, ErrorCode.ENHANCE_YOUR_CALM), Code.RESOURCE_EXHAUSTED),
        (rst_frame(1, ErrorCode.INTERNAL_ERROR), Code.INTERNAL),
        (frame(RST_STREAM, 0, 1, b"\0\0\1\0"), Code.INTERNAL),
        (frame(HEADERS, END_HEADERS | END_STREAM, 1, Encoder().encode({":status": "503"})), Code.UNKNOWN),
        (frame(DATA, END_STREAM, 1, message(ANSWER)), Code.UNKNOWN),
    ],
)
def test_calls_end_in_other_ways(taped: Taped, said: bytes, code: Code) -> None:
    tap = taped.http2()
    opened(tap)
    tap.take_upstream(said)
    tap.close("client")
    (call,) = taped.calls()
    assert (call.code, call.ended_by) == (code, None)


def test_a_message_of_a_failure_is_decoded(taped: Taped) -> None:
    tap = taped.http2()
    opened(tap)
    trailers = {"grpc-status": "9", "grpc-message": "50%25 m%C3%B6glich"}
    tap.take_upstream(frame(HEADERS, END_HEADERS | END_STREAM, 1, Encoder().encode(ANSWER_HEAD | trailers)))
    assert [(call.code, call.message) for call in taped.calls()] == [(Code.FAILED_PRECONDITION, "50% möglich")]


def test_compressed_messages(taped: Taped) -> None:
    tap = taped.http2()
    opened(tap, data=message(gzip.compress(REQUEST), 1), grpc_encoding="gzip")
    head = frame(HEADERS, END_HEADERS, 1, Encoder().encode(ANSWER_HEAD | {"grpc-encoding": "gzip"}))
    tap.take_upstream(head + frame(DATA, 0, 1, message(gzip.compress(ANSWER), 1) + message(ANSWER)))
    tap.close("recorder")
    (call,) = taped.calls()
    assert (call.requests, [part.encoded for part in call.answers]) == ([REQUEST], [ANSWER, ANSWER])


@pytest.mark.parametrize("size", [5, 100, 10_000])
def test_a_message_that_is_too_large_is_left_out(taped: Taped, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(wiretap, "MESSAGE_BYTES_MAX", 1_000)
    tap = taped.http2()
    opened(tap, WATCH, b"")
    bomb = gzip.compress(bytes(5_000))
    data = message(bytes(5_000)) + message(b"") + message(bytes(1_001)) + message(bomb, 1) + message(b"")
    tap.take_upstream(frame(HEADERS, END_HEADERS, 1, Encoder().encode(ANSWER_HEAD | {"grpc-encoding": "gzip"})))
    for part in parts(data, size):
        tap.take_upstream(frame(DATA, 0, 1, part))
    (call,) = taped.calls()
    assert [part.left_out for part in call.answers] == [5_000, 0, 1_001, 1_001, 0]


def test_a_header_block_that_does_not_end(taped: Taped) -> None:
    tap = taped.http2()
    more = frame(CONTINUATION, 0, 1, bytes(16_000))
    tap.take_client(PREFACE + frame(HEADERS, 0, 1, b"") + 60 * more)
    with pytest.raises(NotUnderstoodError, match="a header block is too large"):
        tap.take_client(10 * more)


def test_json_over_http2(taped: Taped) -> None:
    tap = taped.http2()
    head = {":method": "POST", ":scheme": "http", ":path": "/v3/kv/put", "content-type": "application/json"}
    block = Encoder().encode(head)
    body = b'{"key":"YQ==","value":"MQ=="}'
    tap.take_client(PREFACE + frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, body))
    said = frame(HEADERS, END_HEADERS, 1, Encoder().encode({":status": "200"}))
    tap.take_upstream(said + frame(DATA, END_STREAM, 1, b'{"header":{"revision":"2"}}'))
    (call,) = taped.calls()
    assert (call.path, call.requests, call.answers[0].encoded) == (KV + "Put", [REQUEST], ANSWER)
    # A page.
    page = Encoder().encode(head | {":method": "GET", ":path": "/version"})
    tap.take_client(frame(HEADERS, END_HEADERS | END_STREAM, 3, page))
    tap.take_upstream(frame(DATA, END_STREAM, 3, b"{}"))
    assert taped.writer.calls == 1


@pytest.mark.parametrize("size", [1, 3, 4_096])
def test_http1_is_read_however_it_is_cut(taped: Taped, size: int) -> None:
    tap = Http1Tap(taped.writer)
    body = b'{"key":"YQ==","value":"MQ=="}'
    asked = b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    said = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1b\r\n{"header":{"revision":"2"}}\r\n0\r\n\r\n'
    for _ in range(3):
        play(tap, asked, said, size)
    play(tap, b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", size)
    refused = b'{"error":"no","code":5,"message":"no"}'
    play(tap, asked, b"HTTP/1.1 404 No\r\nContent-Length: %d\r\n\r\n%b" % (len(refused), refused), size)
    play(tap, asked, b"HTTP/1.1 502 No\r\nContent-Length: 3\r\n\r\nno!", size)
    assert [(call.requests, call.code, call.message) for call in taped.calls()] == [
        *[([REQUEST], Code.OK, "")] * 3,
        ([REQUEST], Code.NOT_FOUND, "no"),
        ([REQUEST], Code.UNKNOWN, "HTTP status 502"),
    ]


@pytest.mark.parametrize("size", [1, 4_096])
@pytest.mark.parametrize(
    ("last", "code"),
    [
        (b'{"error":{"code":1,"message":"gone"}}', Code.CANCELLED),  # as 3.6 has it
        (b'{"error":{"grpc_code":1,"http_code":408,"message":"gone"}}', Code.CANCELLED),  # and 3.5
    ],
)
def test_streams_of_the_gateway(taped: Taped, size: int, last: bytes, code: Code) -> None:
    tap = Http1Tap(taped.writer)
    requests = b'{"create_request":{"key":"YQ=="}} {"progress_request":{}}'
    asked = b"POST /v3/watch HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(requests), requests)
    lines = [b'{"result":{"created":true,"watch_id":"7"}}\n', b'{"result":{}}\n', last]
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    said += b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines) + b"0\r\n\r\n"
    play(tap, asked, said, size)
    (call,) = taped.calls()
    assert [part.kind for part in call.parts] == ["request", "request", "half_close", "answer", "answer"]
    assert rpc.WatchResponse.FromString(call.answers[0].encoded) == rpc.WatchResponse(created=True, watch_id=7)
    assert (call.code, call.message) == (code, "gone")


def test_what_is_no_json_is_no_request(taped: Taped) -> None:
    tap = Http1Tap(taped.writer)
    asked = b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n{"
    play(tap, asked, b'HTTP/1.1 400 No\r\nContent-Length: 11\r\n\r\n{"code": 3}')
    (line,) = [json.loads(line) for line in taped.path.read_text().splitlines()[1:]]
    assert line.keys() == {"call", "at", "took", "method", "status"}
