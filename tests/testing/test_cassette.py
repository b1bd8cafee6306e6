"""The file: what is written is read again, what is damaged is named, what is secret is not in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from mvccstore.server.messages import METHODS, kv, rpc
from mvccstore.server.transport.status import Code
from mvccstore.testing.cassette import Cassette, CassetteError, CassetteWriter, read_cassette
from mvccstore.testing.plain import from_plain, to_plain

PUT, WATCH = "/etcdserverpb.KV/Put", "/etcdserverpb.Watch/Watch"
HEADER = {"cluster_id": 2**64 - 1, "member_id": 2, "revision": 3, "raft_term": 4}


class Steps:
    """Seconds that go on by one with each look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


@contextmanager
def writing(path: Path, *, keeps_secrets: bool = False) -> Iterator[CassetteWriter]:
    writer = CassetteWriter(path, "3.6.16", Steps(), keeps_secrets=keeps_secrets)
    yield writer
    writer.close()


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def written(path: Path, *lines: object, head: object = None) -> Path:
    shown = [head or {"mvccstore_cassette": 1, "etcd": "3.6.16"}, *lines]
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in shown))
    return path


# Messages as plain data


@given(st.binary(), st.integers(-(2**63), 2**63 - 1), st.lists(st.binary(), max_size=3))
def test_plain_data_is_the_message_again(key: bytes, number: int, keys: list[bytes]) -> None:
    for message in (
        kv.KeyValue(key=key, lease=number),
        rpc.LeaseTimeToLiveResponse(keys=keys, ID=number),
        rpc.TxnRequest(compare=[rpc.Compare(key=key, version=number)], success=[rpc.RequestOp()]),
    ):
        plain = json.loads(json.dumps(to_plain(message)))
        assert from_plain(type(message), plain) == message


@pytest.mark.parametrize(
    "message",
    [
        rpc.TxnRequest(compare=[rpc.Compare(version=0, target=rpc.Compare.VERSION)]),
        rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()),
        rpc.RangeRequest(sort_order=rpc.RangeRequest.DESCEND, serializable=True),
        rpc.StatusResponse(errors=["a", "b"]),
        rpc.PutResponse(header=rpc.ResponseHeader()),
    ],
)
def test_what_is_set_to_nothing_is_set(message: Message) -> None:
    assert from_plain(type(message), to_plain(message)).SerializeToString() == message.SerializeToString()


@pytest.mark.parametrize(
    ("plain", "problem"),
    [
        ([], "PutRequest is no object"),
        ({"kee": "a"}, "PutRequest has no field 'kee'"),
        ({"lease_b64": "YQ=="}, "PutRequest has no field 'lease_b64'"),
        ({"key": 1}, "PutRequest.key cannot be 1"),
        ({"key_b64": "?"}, "PutRequest.key_b64 cannot be '?'"),
        ({"lease": "1"}, "PutRequest.lease cannot be '1'"),
        ({"lease": 2**63}, "PutRequest.lease cannot be 9223372036854775808"),
        ({"lease": True}, "PutRequest.lease cannot be True"),
        ({"prev_kv": 1}, "PutRequest.prev_kv cannot be 1"),
    ],
)
def test_what_is_no_message_is_refused(plain: object, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        from_plain(rpc.PutRequest, plain)


# Writing and reading


def test_a_unary_call_is_one_line_when_it_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with writing(path) as writer:
        call = writer.begin(PUT, {"hasleader": "true"})
        call.message("request", rpc.PutRequest(key=b"a", value=b"\xff").SerializeToString())
        assert len(lines_of(path)) == 1
        call.message("answer", rpc.PutResponse(header=HEADER).SerializeToString())
        call.end(0, "")
    head, ids, line = lines_of(path)
    assert head == {"mvccstore_cassette": 1, "etcd": "3.6.16"}
    assert ids == {"header": {"cluster_id": 2**64 - 1, "member_id": 2, "raft_term": 4}}
    assert line == {
        "call": 1,
        "at": 1.0,
        "took": 1.0,
        "method": "etcdserverpb.KV/Put",
        "metadata": {"hasleader": "true"},
        "request": {"key": "a", "value_b64": "/w=="},
        "answer": {"header": {"revision": 3}},
    }
    cassette = read_cassette(path)
    assert cassette.etcd == "3.6.16"
    (read,) = cassette.calls
    assert (read.path, read.began, read.ended, read.code, read.ended_by) == (PUT, 1.0, 2.0, Code.OK, None)
    assert read.requests == [rpc.PutRequest(key=b"a", value=b"\xff").SerializeToString()]
    assert read.answers[0].encoded == rpc.PutResponse(header=HEADER).SerializeToString()


def test_headers_are_whole_again_whatever_was_left_out(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    other = HEADER | {"raft_term": 5}
    headers = [HEADER, HEADER, {"revision": 7}, {}, other, HEADER]
    with writing(path) as writer:
        for header in headers:
            call = writer.begin(PUT, {})
            call.message("request", b"")
            call.message("answer", rpc.PutResponse(header=header).SerializeToString())
            call.end(0, "")
    assert sum("header" in line for line in lines_of(path)) == 3
    answers = [call.answers[0].encoded for call in read_cassette(path).calls]
    assert answers == [rpc.PutResponse(header=header).SerializeToString() for header in headers]


def test_a_failure_and_an_end_without_status(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with writing(path) as writer:
        for end in (lambda c: c.end(9, "no"), lambda c: c.end(99, ""), lambda c: c.end_by("client")):
            call = writer.begin(PUT, {})
            call.message("request", b"")
            end(call)
            call.end(0, "twice")  # which is not written
        writer.begin(PUT, {})
    assert [line.get("status") for line in lines_of(path)[1:]] == ["FAILED_PRECONDITION", 99, None]
    assert lines_of(path)[3]["ended_by"] == "client"
    # A status that gRPC does not have cannot be played.
    with pytest.raises(CassetteError, match="line 3: there is no status 99"):
        read_cassette(path)


def test_a_stream_is_written_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    create = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"a"))
    with writing(path) as writer:
        call = writer.begin(WATCH, {})
        call.message("request", create.SerializeToString())
        call.message("answer", rpc.WatchResponse(created=True).SerializeToString())
        call.half_close()
        call.left_out("answer", 1 << 30)
        assert [next(key for key in line if key not in {"call", "at"}) for line in lines_of(path)[1:]] == [
            *("method", "request", "answer", "half_closed", "answer_left_out")
        ]
        call.end(0, "")
    (read,) = read_cassette(path).calls
    assert [part.kind for part in read.parts] == ["request", "answer", "half_close", "answer"]
    assert read.answers[1].left_out == 1 << 30
    assert (read.is_stream, read.ended, read.ended_by) == (True, 6.0, None)


def test_a_cassette_that_breaks_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with writing(path) as writer:
        writer.begin(WATCH, {}).message("request", b"")
        writer.begin(PUT, {}).message("request", b"")
        (watch,) = read_cassette(path).calls
    assert (watch.ended, watch.ended_by) == (None, "recorder")


def test_what_protobuf_would_write_otherwise_is_kept_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    unknown = rpc.PutResponse(header=HEADER).SerializeToString() + b"\xf8\x07\x01"
    zero = b"\x0a\x00\x12\x02\x18\x00"
    with writing(path) as writer:
        for method, answer in ((PUT, unknown), (PUT, zero), (PUT, b"\xff"), ("/a.B/C", b"\xff\xff")):
            call = writer.begin(method, {})
            call.message("request", b"")
            call.message("answer", answer)
            call.end(0, "")
    found = [call.answers[0].encoded for call in read_cassette(path).calls]
    assert found == [unknown, zero, b"\xff", b"\xff\xff"]


def test_a_second_request_makes_a_stream_of_a_unary_call(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with writing(path) as writer:
        call = writer.begin(PUT, {})
        call.message("request", rpc.PutRequest(key=b"a").SerializeToString())
        call.message("request", rpc.PutRequest(key=b"b").SerializeToString())
        call.end(13, "too many")
    (read,) = read_cassette(path).calls
    assert len(read.requests) == 2
    assert read.code == Code.INTERNAL


SECRETS: list[tuple[str, Message, Message]] = [
    (
        "Authenticate",
        rpc.AuthenticateRequest(name="root", password="hunter2"),
        rpc.AuthenticateResponse(token="hunter2"),
    ),
    ("UserAdd", rpc.AuthUserAddRequest(name="u", password="hunter2"), rpc.AuthUserAddResponse()),
    ("UserAdd", rpc.AuthUserAddRequest(name="u", hashedPassword="hunter2"), rpc.AuthUserAddResponse()),
    (
        "UserChangePassword",
        rpc.AuthUserChangePasswordRequest(name="u", password="hunter2"),
        rpc.AuthUserChangePasswordResponse(),
    ),
]


@pytest.mark.parametrize(("method", "request_", "answer"), SECRETS)
@pytest.mark.parametrize("keeps_secrets", [False, True])
def test_secrets_are_replaced(
    tmp_path: Path, method: str, request_: Message, answer: Message, keeps_secrets: bool
) -> None:
    path = tmp_path / "c.jsonl"
    with writing(path, keeps_secrets=keeps_secrets) as writer:
        call = writer.begin(f"/etcdserverpb.Auth/{method}", {})
        call.message("request", request_.SerializeToString())
        call.message("answer", answer.SerializeToString())
        call.end(0, "")
    assert (b"hunter2" in path.read_bytes()) == keeps_secrets
    (read,) = read_cassette(path).calls
    assert keeps_secrets == (read.requests == [request_.SerializeToString()])


def test_every_field_that_may_be_secret_is_thought_of() -> None:
    words = ("password", "token", "secret")
    found = {
        f"{message.DESCRIPTOR.name}.{field.name}"
        for types in METHODS.values()
        for message in (types.request, types.response)
        for field in message.DESCRIPTOR.fields
        if any(word in field.name.lower() for word in words)
    }
    assert found == {
        *("AuthenticateRequest.password", "AuthenticateResponse.token", "AuthUserAddRequest.password"),
        *("AuthUserAddRequest.hashedPassword", "AuthUserChangePasswordRequest.password"),
        "AuthUserChangePasswordRequest.hashedPassword",
    }


# What is no cassette

PUT_LINE = {"call": 1, "at": 0, "took": 0, "method": "etcdserverpb.KV/Put", "request": {"key": "a"}, "answer": {}}
OPENED = {"call": 1, "at": 0, "method": "etcdserverpb.Watch/Watch", "stream": True}
ENDED = {"call": 1, "at": 1, "status": "OK"}


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["{"], "line 2: not JSON: "),
        (["[]"], "line 2: no JSON object"),
        ([PUT_LINE, "", "x"], "line 4: not JSON"),
        ([PUT_LINE, PUT_LINE], "line 3: call 1 begins twice"),
        ([PUT_LINE | {"call": "1"}], "line 2: call is not what it should be"),
        ([PUT_LINE | {"call": True}], "line 2: call is not what it should be"),
        ([{"call": 1}], "line 2: at is missing"),
        ([PUT_LINE | {"request": {"kee": "a"}}], "line 2: request: PutRequest has no field 'kee'"),
        ([PUT_LINE | {"answer": 1}], "line 2: answer: PutResponse is no object"),
        ([PUT_LINE | {"answer_b64": "?"}], "line 2: answer: "),
        ([PUT_LINE | {"status": "FINE"}], "line 2: there is no status 'FINE'"),
        ([PUT_LINE | {"ended_by": "me"}], "line 2: ended_by is 'me'"),
        ([PUT_LINE | {"method": "a.B/C"}], "line 2: request is of a method that is not known"),
        ([ENDED], "line 2: call 1 has not begun"),
        ([PUT_LINE, ENDED], "line 3: call 1 has not begun"),
        ([OPENED, ENDED, ENDED], "line 4: call 1 ends twice"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, lines: list[object], problem: str) -> None:
    path = written(tmp_path / "c.jsonl", *lines)
    with pytest.raises(CassetteError) as caught:
        read_cassette(path)
    assert str(caught.value).startswith(f"{path}, {problem}")


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ({"mvccstore_cassette": 2}, "{path}: format 2 is newer than 1, the newest that this mvccstore reads"),
        ({"mvccstore_cassette": "1"}, "{path}, line 1: this is no cassette: the first line has no mvccstore_cassette"),
        ({"interactions": []}, "{path}, line 1: this is no cassette: the first line has no mvccstore_cassette"),
        ({"mvccstore_cassette": 1, "etcd": 3}, "{path}, line 1: etcd is not what it should be"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, head: object, problem: str) -> None:
    path = written(tmp_path / "c.jsonl", head=head)
    with pytest.raises(CassetteError) as caught:
        read_cassette(path)
    assert str(caught.value) == problem.format(path=path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("")
    with pytest.raises(CassetteError, match="the file is empty"):
        read_cassette(path)


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", PUT_LINE)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        CassetteWriter(path, "3.6.16", Steps())
    assert path.read_bytes() == before
    CassetteWriter(path, "3.6.16", Steps(), overwrite=True).close()
    assert read_cassette(path) == Cassette(str(path), "3.6.16", ())
