"""What clients send, in sequences that make sense, and then with something wrong in them: each goes to its target."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import target_etcd_file, target_hpack, target_http1, target_json, target_messages, target_services
from tests.fuzz.target_http2 import BODIES, FIELDS, PATHS
from tests.fuzz.target_http2 import run as run_http2
from tests.wire.http2_kit import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    gzipped,
    literal_block,
    message,
    open_stream,
    pack,
    ping,
    request_fields,
    reset,
    settings,
    unary,
    window,
)

DEPTH = 3

# What goes wrong with a sequence: each of these is a place, and what happens there.
Wrongs = list[tuple[str, int, int]]
_WRONGS: st.SearchStrategy[Wrongs] = st.lists(
    st.tuples(
        st.sampled_from(["drop", "twice", "swap", "flip", "cut", "grow"]), st.integers(0, 10_000), st.integers(0, 255)
    ),
    max_size=4,
)


def wronged(parts: list[bytes], wrongs: Wrongs) -> list[bytes]:
    """Return a sequence with what is wrong with it."""
    parts = list(parts)
    for what, place, byte in wrongs:
        if not parts:
            break
        at = place % len(parts)
        part = parts[at]
        match what:
            case "drop":
                del parts[at]
            case "twice":
                parts.insert(at, part)
            case "swap":
                parts[at], parts[-1] = parts[-1], part
            case "flip" if part:
                inside = place % len(part)
                parts[at] = part[:inside] + bytes((byte,)) + part[inside + 1 :]
            case "cut":
                parts[at] = part[: byte % (len(part) + 1)]
            case "grow":
                parts[at] = part + bytes((byte,)) * (place % 20)
    return parts


# HTTP/2


@st.composite
def _call(draw: st.DrawFn, stream: int) -> list[bytes]:
    """One call by frames that are allowed."""
    path, body = b"/t.T/" + draw(st.sampled_from(PATHS)), draw(st.sampled_from(BODIES))
    extra = draw(st.lists(st.sampled_from(FIELDS), max_size=1))
    framed = gzipped(body) if (b"grpc-encoding", b"gzip") in extra else message(body)
    match draw(st.integers(0, 4)):
        case 0:
            return [unary(stream, path, body, *extra)]
        case 1:
            cut = draw(st.integers(0, len(framed)))
            return [
                open_stream(stream, path, *extra),
                pack(DATA, 0, stream, framed[:cut]),
                pack(DATA, END_STREAM, stream, framed[cut:]),
            ]
        case 2:
            block = literal_block(request_fields(path, *extra))
            cut = draw(st.integers(0, len(block)))
            return [
                pack(HEADERS, 0, stream, block[:cut]) + pack(CONTINUATION, END_HEADERS, stream, block[cut:]),
                pack(DATA, PADDED | END_STREAM, stream, b"\4" + framed + bytes(4)),
            ]
        case 3:
            return [open_stream(stream, path, *extra), reset(stream)]
        case _:
            trailers = pack(HEADERS, END_HEADERS | END_STREAM, stream, literal_block([(b"a", b"b")]))
            return [open_stream(stream, path, *extra), pack(DATA, 0, stream, framed * 2), trailers]


@st.composite
def _conversation(draw: st.DrawFn) -> list[bytes]:
    """Calls whose frames are between each other, and frames of the connection."""
    calls = [draw(_call(2 * number + 1)) for number in range(draw(st.integers(1, 5)))]
    frames: list[bytes] = []
    while calls:
        # A stream may begin only after those before it.
        begun = 1 + next((number for number, call in enumerate(calls) if len(call) > 1), len(calls) - 1)
        call = calls[draw(st.integers(0, begun - 1))] if begun < 2 else calls[0]
        frames.append(call.pop(0))
        calls = [call for call in calls if call]
        if draw(st.booleans()):
            others = [ping(), settings((4, draw(st.integers(0, 100_000)))), window(0, draw(st.integers(1, 100_000)))]
            frames.append(draw(st.sampled_from(others)))
    return frames


@given(_conversation(), _WRONGS, st.sampled_from([0, 1, 7, 100]))
def test_conversations_of_http2(frames: list[bytes], wrongs: Wrongs, size: int) -> None:
    run_http2(b"\x01" + b"".join(wronged(frames, wrongs)) + bytes((size,)))


# HPACK


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from([b"a", b"grpc-timeout", b"te", b"x-long"]), st.binary(max_size=30)), max_size=3
        ),
        max_size=6,
    ),
    st.lists(st.integers(0, 5_000), max_size=3),
    _WRONGS,
)
def test_header_blocks_of_one_encoder(
    requests: list[list[tuple[bytes, bytes]]], sizes: list[int], wrongs: Wrongs
) -> None:
    encoder = Encoder()
    blocks = []
    for number, more in enumerate(requests):
        if number < len(sizes):
            encoder.header_table_size = min(sizes[number], 4_096)
        blocks.append(encoder.encode([*request_fields(), *more], huffman=bool(number % 2))[:127])
    data = b"".join(bytes((len(block),)) + block[:127] for block in wronged(blocks, wrongs) if len(block) < 128)
    target_hpack.run(data)


# Messages


@st.composite
def messages(draw: st.DrawFn, kind: type[Message], depth: int = DEPTH) -> Message:
    """A message with any of its fields."""
    made = kind()
    _fill(draw, made, depth)
    return made


def _fill(draw: st.DrawFn, made: Message, depth: int) -> None:
    descriptor: Descriptor = made.DESCRIPTOR
    for field in descriptor.fields:
        is_message = field.type == FieldDescriptor.TYPE_MESSAGE
        if not draw(st.booleans()) or (is_message and not depth):
            continue
        is_repeated = field.default_value == []
        for _ in range(draw(st.integers(1, 2)) if is_repeated else 1):
            if is_message:
                inner = getattr(made, field.name).add() if is_repeated else getattr(made, field.name)
                inner.SetInParent()
                _fill(draw, inner, depth - 1)
            elif is_repeated:
                getattr(made, field.name).append(draw(_scalar(field)))
            else:
                setattr(made, field.name, draw(_scalar(field)))


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    match field.type:
        case FieldDescriptor.TYPE_BYTES:
            return st.sampled_from([b"", b"\0", b"a", b"b", b"k" * 40]) | st.binary(max_size=8)
        case FieldDescriptor.TYPE_STRING:
            return st.sampled_from(["", "root", "é", "r"]) | st.text(max_size=5)
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_ENUM:
            return st.sampled_from([value.number for value in field.enum_type.values])
        case FieldDescriptor.TYPE_UINT32:
            return st.integers(0, 2**32 - 1)
        case FieldDescriptor.TYPE_UINT64:
            return st.integers(0, 2**64 - 1)
        case _:
            return st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 5)


_MESSAGE = st.sampled_from(target_messages.TYPES).flatmap(messages)


@given(_MESSAGE, _WRONGS)
def test_messages_as_protobuf(made: Message, wrongs: Wrongs) -> None:
    encoded = b"".join(wronged([made.SerializeToString(deterministic=True)], wrongs))
    target_messages.run(bytes((target_messages.TYPES.index(type(made)),)) + encoded)


@given(st.lists(st.sampled_from(target_json.TYPES).flatmap(messages), min_size=1, max_size=3), _WRONGS)
def test_messages_as_json(made: list[Message], wrongs: Wrongs) -> None:
    texts = [_json(one) for one in made]
    text = b" ".join(wronged(texts, wrongs))
    target_json.run(bytes((target_json.TYPES.index(type(made[0])), len(text) % 17)) + text)


def _json(made: Message) -> bytes:
    return target_json.to_json(made)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["key", "success", "requestTxn", "compare", "lease"]), inner)))  # fmt: skip
def test_any_json(shape: Any) -> None:
    target_json.run(bytes((target_json.TYPES.index(target_messages.rpc.TxnRequest), 5)) + json.dumps(shape).encode())


@given(
    st.lists(st.tuples(st.sampled_from(target_json.TYPES).flatmap(messages), st.integers(0, 63)), max_size=6), _WRONGS
)
def test_calls_to_a_server(calls: list[tuple[Message, int]], wrongs: Wrongs) -> None:
    parts = []
    for made, how in calls:
        path = next(path for path, types in target_services.METHODS.items() if types.request is type(made))
        body = made.SerializeToString()[:255]
        more = b"\0" if how & 2 else b""
        after = b"\1" if how & 16 else b""
        parts.append(bytes((target_services.PATHS.index(path), how, len(body))) + body + more + after)
    target_services.run(b"".join(wronged(parts, wrongs)))


# HTTP/1.1 and WebSockets

_REQUEST = st.tuples(
    st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"get", b"\xff"]),
    st.sampled_from([b"/v3/kv/range", b"/v3/watch", b"/health", b"/%2e%2e/", b"http://x/v3/kv/put", b"*", b"/%zz"]),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"]),
    st.lists(st.sampled_from(target_http1.PIECES[4:9]), max_size=3),
    st.sampled_from([b"", b'{"key":"YQ"}', b'c\r\n{"key":"YQ"}\r\n0\r\n\r\n', b"{}" * 50]),
)


@given(st.lists(_REQUEST, max_size=5), _WRONGS)
def test_requests_of_http1(requests: list[tuple[bytes, bytes, bytes, list[bytes], bytes]], wrongs: Wrongs) -> None:
    whole = [
        b" ".join((method, target, version)) + b"\r\nHost: x\r\n" + b"".join(fields) + b"\r\n" + body
        for method, target, version, fields, body in requests
    ]
    data = b"".join(wronged(whole, wrongs))
    target_http1.run(b"".join(b"\0" + bytes((len(data[at : at + 200]),)) + data[at : at + 200] for at in range(0, len(data), 200)))  # fmt: skip


_FRAME = st.tuples(st.sampled_from([0x81, 0x01, 0x00, 0x80, 0x82, 0x89, 0x8A, 0x88, 0xF1, 0x83]), st.integers(0, 255))


@given(st.integers(0, 3), st.lists(_FRAME, max_size=12), st.lists(st.integers(0, 5), max_size=4))
def test_frames_of_a_websocket(path: int, frames: list[tuple[int, int]], acts: list[int]) -> None:
    played = b"".join(bytes((7, head, how)) + b"{}" * (how & 0x1F) for head, how in frames)
    target_http1.run(bytes((6, path)) + played + bytes(acts))


# etcd's file

_CHANGE = st.tuples(
    st.integers(0, 255),
    st.integers(0, 4_095),
    st.sampled_from([b"\0", b"\xff", b"\1\0", bytes(4), b"\xff" * 4, b"\x10\0\0\0", bytes(8), b"\xff" * 8])
    | st.binary(min_size=1, max_size=7),
)


@given(st.lists(_CHANGE, max_size=4), st.booleans())
def test_files_with_changes(changes: list[tuple[int, int, bytes]], has_checksums: bool) -> None:
    data = b"".join(
        bytes((page,)) + at.to_bytes(2) + bytes((len(change[:7]),)) + change[:7] for page, at, change in changes
    )
    target_etcd_file.run((b"\0" if has_checksums else b"\2") + data)
