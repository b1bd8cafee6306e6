"""Heads of requests: what is kept of them, how they are refused, and the blocks of answers."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, strategies

from mvccstore.server.transport.blocks import literal, refusal_block, status_block
from mvccstore.server.transport.call import Method, Router
from mvccstore.server.transport.frames import ProtocolError, StreamError
from mvccstore.server.transport.head import HeadDecoder
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.status import Code, RpcError, percent_encode
from tests.wire.http2_kit import Session, literal_block, request_fields, unary

PATHS = [b"/t.T/%d" % number for number in range(4)]


def _router() -> Router:
    return Router({path.decode(): Method(path.decode(), bytes, lambda _, body: body) for path in PATHS})


def _heads() -> HeadDecoder:
    return HeadDecoder(_router(), TransportLimits())


def test_a_block_means_something_else_once_the_table_has_changed() -> None:
    """The bytes of two calls are the same if each names the field that was added last."""
    heads, encoder = _heads(), Encoder()
    first = [encoder.encode(request_fields(PATHS[0])) for _ in range(2)]
    second = [encoder.encode([*request_fields()[:2], (b":path", PATHS[1]), *request_fields()[3:]]) for _ in range(2)]
    for block in first:
        assert heads.decode(block).method.path == "/t.T/0"  # type: ignore[union-attr]
    for block in second:
        assert heads.decode(block).method.path == "/t.T/1"  # type: ignore[union-attr]


def _indexed_path(index: int) -> bytes:
    others = literal_block(field for field in request_fields() if field[0] not in {b":path", b":method", b":scheme"})
    return b"\x83\x86" + bytes((0x80 | index,)) + others


def test_blocks_of_the_same_bytes_follow_the_table() -> None:
    heads = _heads()
    for number in (0, 1):
        # Literal with incremental indexing: the path is now at 62.
        added = b"\x44" + bytes((len(PATHS[number]),)) + PATHS[number]
        heads.decode(b"\x83\x86" + added + _indexed_path(62)[3:])
        for _ in range(3):
            assert heads.decode(_indexed_path(62)).method.path == f"/t.T/{number}"  # type: ignore[union-attr]
    assert heads.decode(_indexed_path(63)).method.path == "/t.T/0"  # type: ignore[union-attr]


def test_a_block_that_names_what_a_smaller_table_dropped_is_an_error() -> None:
    heads = _heads()
    heads.decode(b"\x83\x86\x44\x06" + PATHS[0] + _indexed_path(62)[3:])
    heads.decode(_indexed_path(62))
    heads.decode(b"\x20" + literal_block(request_fields(PATHS[1])))
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        heads.decode(_indexed_path(62))


def test_a_block_that_is_no_request_changes_the_table_all_the_same() -> None:
    heads = _heads()
    heads.decode(b"\x83\x86\x44\x06" + PATHS[0] + _indexed_path(62)[3:])
    heads.decode(_indexed_path(62))
    with pytest.raises(StreamError):
        heads.decode(b"\x44\x06" + PATHS[1])
    assert heads.decode(_indexed_path(62)).method.path == "/t.T/1"  # type: ignore[union-attr]
    assert heads.fields(b"\x44\x06" + PATHS[2]) == [(b":path", PATHS[2])]  # as trailers are
    assert heads.decode(_indexed_path(62)).method.path == "/t.T/2"  # type: ignore[union-attr]


_VALUE = strategies.sampled_from([b"1", b"2", b"x" * 30, b"y" * 3_000])
_BLOCK = strategies.tuples(
    strategies.sampled_from(PATHS),
    strategies.lists(strategies.tuples(strategies.sampled_from([b"a", b"b", b"token"]), _VALUE), max_size=3),
    strategies.sampled_from([None, None, None, 0, 100, 4_096]),
    strategies.booleans(),
)


@given(strategies.lists(_BLOCK, min_size=2, max_size=40))
def test_heads_are_those_that_a_decoder_without_memory_finds(
    blocks: list[tuple[bytes, list[tuple[bytes, bytes]], int | None, bool]],
) -> None:
    heads, encoder, plain = _heads(), Encoder(), Decoder(max_header_list_size=1 << 20)
    for path, more, size, is_kept_out in blocks:
        if size is not None:
            encoder.header_table_size = size
        fields = request_fields(path, *more)
        # Half of them with literals that are not indexed, which change nothing.
        block = (
            literal_block(fields[:3]) + encoder.encode(fields[3:])
            if is_kept_out and size is None
            else encoder.encode(fields)
        )
        expected = [(bytes(name), bytes(value)) for name, value in plain.decode(block, raw=True)]
        for head in (heads.decode(block), heads.decode(block) if is_kept_out and not more and size is None else None):
            if head is not None:
                assert head.method is not None
                assert head.method.path == path.decode()
                assert list(head.metadata.pairs) == [
                    pair
                    for pair in expected
                    if not pair[0].startswith(b":") and pair[0] not in {b"te", b"content-type"}
                ]
        if is_kept_out and not more and size is None:
            plain.decode(block, raw=True)


def test_what_is_kept_is_bounded() -> None:
    heads = _heads()
    for number in range(1_000):
        heads.decode(literal_block(request_fields(PATHS[0], (b"n", b"%d" % number))))
    heads.decode(literal_block(request_fields(PATHS[0], *((b"n", b"x" * 100) for _ in range(30)))))
    assert len(heads._kept) == 64
    assert max(map(len, heads._kept)) < 2_048


@pytest.mark.parametrize(
    ("fields", "http_status", "code", "text"),
    [
        ([(b":method", b"GET")], b"405", 13, 'Received a HEADERS frame with :method "GET" which should be POST'),
        ([(b"content-type", b"text/html")], b"415", 3, 'invalid gRPC request content-type "text/html"'),
        ([(b"content-type", b"application/grpcx")], b"415", 3, 'invalid gRPC request content-type "application/grpcx"'),
        ([(b"content-type", None)], b"415", 3, 'invalid gRPC request content-type ""'),
        ([(b":method", b"GET"), (b"content-type", None)], b"415", 3, 'invalid gRPC request content-type ""'),
        ([(b":path", b"/t.T/None")], b"200", 12, "unknown method None for service t.T"),
        ([(b":path", b"/t.U/Echo")], b"200", 12, "unknown service t.U"),
        ([(b":path", b"/a/b/c")], b"200", 12, "unknown service a/b"),
        ([(b":path", b"t.T/Echo")], b"200", 12, 'malformed method name: "t.T/Echo"'),
        ([(b":path", b"/echo")], b"200", 12, 'malformed method name: "/echo"'),
        ([(b":path", b"*")], b"200", 12, 'malformed method name: "*"'),
        ([(b"grpc-encoding", b"br")], b"200", 12, 'grpc: Decompressor is not installed for grpc-encoding "br"'),
        ([(b"grpc-timeout", b"")], b"400", 13, 'malformed grpc-timeout: transport: timeout string is too short: ""'),
        ([(b"grpc-timeout", b"S")], b"400", 13, 'malformed grpc-timeout: transport: timeout string is too short: "S"'),
        (
            [(b"grpc-timeout", b"123456789S")],
            b"400",
            13,
            'malformed grpc-timeout: transport: timeout string is too long: "123456789S"',
        ),
        (
            [(b"grpc-timeout", b"5s")],
            b"400",
            13,
            'malformed grpc-timeout: transport: timeout unit is not recognized: "5s"',
        ),
        ([(b"grpc-timeout", b"-5S")], b"400", 13, 'malformed grpc-timeout: invalid number: "-5"'),
        ([(b"grpc-timeout", b"0n")], b"200", 4, "context deadline exceeded"),
    ],
)
def test_refusals(fields: list[tuple[bytes, bytes | None]], http_status: bytes, code: int, text: str) -> None:
    changes = dict(fields)
    kept = [(name, changes.pop(name, value)) for name, value in request_fields()]
    block = literal_block((name, value) for name, value in [*kept, *changes.items()] if value is not None)
    for flags in (4, 5):  # with and without a body to come
        session = Session()
        frames = session.send(len(block).to_bytes(3) + bytes((1, flags)) + (1).to_bytes(4) + block)
        assert session.answers[1].head[b":status"] == http_status
        assert session.answers[1].head[b"content-type"] == b"application/grpc"
        assert session.answers[1].status == (code, text)
        assert [frame.kind for frame in frames] == ([1, 3] if flags == 4 else [1])
        assert session.answers[1].reset == (0 if flags == 4 else None)
        session.send(unary(3, b"/t.T/Echo", b"x"))
        assert session.answers[3].messages == [(0, b"x")]


@pytest.mark.parametrize("kind", [b"application/grpc+proto", b"application/grpc;x", b"Application/GRPC"])
def test_content_types_of_grpc(kind: bytes) -> None:
    session = Session()
    fields = [(name, kind if name == b"content-type" else value) for name, value in request_fields()]
    block = literal_block(fields)
    session.send(len(block).to_bytes(3) + b"\x01\x05" + (1).to_bytes(4) + block)
    assert session.answers[1].status == (
        13,
        "cardinality violation: received no request message from non-client-streaming RPC",
    )


@given(strategies.text(max_size=100), strategies.sampled_from([1, 200, 3_000]))
def test_every_message_is_a_header_that_decodes(text: str, times: int) -> None:
    block = refusal_block(RpcError(Code.INTERNAL, text * times), 415)
    fields = {bytes(name): bytes(value) for name, value in Decoder().decode(block, raw=True)}
    assert fields[b":status"] == b"415"
    assert fields[b"grpc-status"] == b"13"
    encoded = fields[b"grpc-message"]
    assert len(encoded) <= 8_000
    assert all(0x20 <= byte < 0x7F for byte in encoded)
    raw = (text * times).encode("utf-8", "surrogatepass")
    told = unquote_to_bytes(encoded)
    assert raw.startswith(told)
    assert told == raw or len(encoded) > 7_997


def test_a_message_is_not_cut_within_a_code() -> None:
    for before in range(4):
        fields = dict(Decoder().decode(status_block(Code.INTERNAL, "x" * (7_990 + before) + "é" * 10), raw=True))
        encoded = bytes(fields[b"grpc-message"])
        assert percent_encode("x" * (7_990 + before) + "é" * 10).startswith(encoded)
        assert 7_997 < len(encoded) <= 8_000
        assert encoded.count(b"%") * 3 == len(encoded) - 7_990 - before


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 16_510, 70_000])
def test_literals_of_every_length_decode(size: int) -> None:
    block = literal(b"name", b"v" * size)
    decoded = list(Decoder(max_header_list_size=100_000).decode(block, raw=True))
    assert decoded == [(b"name", b"v" * size)]
    assert not decoded[0].indexable
