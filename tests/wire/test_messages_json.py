"""Messages as JSON: etcd's rules one by one, and one error for whatever else comes in."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import example, given
from hypothesis import strategies as st

from mvccstore.server.messages import METHODS, auth, election, kv, rpc
from mvccstore.server.messages import json as json_module
from mvccstore.server.messages.json import DEPTH_MAX, JsonError, from_json, many_from_json, to_json

MESSAGES = sorted({cls for method in METHODS.values() for cls in method[:2]}, key=lambda cls: cls.DESCRIPTOR.full_name)
HIGH = 2**63 - 1

OUT = [
    (rpc.RangeRequest(), b"{}"),
    (rpc.RangeRequest(key=b"a", range_end=b"\0", limit=0), b'{"key":"YQ==","range_end":"AA=="}'),
    (kv.KeyValue(key=b"\xff\xfe\xfb", lease=-1), b'{"key":"//77","lease":"-1"}'),
    (
        rpc.ResponseHeader(cluster_id=2**64 - 1, revision=HIGH),
        b'{"cluster_id":"%d","revision":"%d"}' % (2**64 - 1, HIGH),
    ),
    (rpc.HashKVResponse(hash=2**32 - 1, compact_revision=5), b'{"hash":4294967295,"compact_revision":"5"}'),
    (rpc.RangeRequest(sort_order=2, sort_target=4), b'{"sort_order":"DESCEND","sort_target":"VALUE"}'),
    (rpc.RangeRequest(sort_order=77), b'{"sort_order":77}'),
    (kv.Event(type=0, kv=kv.KeyValue()), b'{"kv":{}}'),
    (kv.Event(type=1, prev_kv=kv.KeyValue(version=1)), b'{"type":"DELETE","prev_kv":{"version":"1"}}'),
    (rpc.RangeResponse(header=rpc.ResponseHeader(), more=True, count=1), b'{"header":{},"more":true,"count":"1"}'),
    (rpc.LeaseGrantResponse(ID=7, TTL=60), b'{"ID":"7","TTL":"60"}'),
    (rpc.LeaseTimeToLiveResponse(grantedTTL=9, keys=[b"a", b""]), b'{"grantedTTL":"9","keys":["YQ==",""]}'),
    (
        rpc.Member(ID=1, peerURLs=["http://a:1"], isLearner=True),
        b'{"ID":"1","peerURLs":["http://a:1"],"isLearner":true}',
    ),
    (rpc.StatusResponse(dbSize=1, raftIndex=2, dbSizeInUse=3), b'{"dbSize":"1","raftIndex":"2","dbSizeInUse":"3"}'),
    (rpc.WatchResponse(watch_id=-1, events=[kv.Event()]), b'{"watch_id":"-1","events":[{}]}'),
    (rpc.WatchResponse(cancel_reason='"caf\u00e9"\n'), '{"cancel_reason":"\\"caf\u00e9\\"\\n"}'.encode()),
    (auth.Permission(permType=2, key=b"k"), b'{"permType":"READWRITE","key":"aw=="}'),
    (rpc.Compare(target=4, lease=0, range_end=b"z"), b'{"target":"LEASE","lease":"0","range_end":"eg=="}'),
    (rpc.ResponseOp(response_put=rpc.PutResponse()), b'{"response_put":{}}'),
    (election.CampaignResponse(leader=election.LeaderKey(rev=4)), b'{"leader":{"rev":"4"}}'),
]

IN = [
    (b"", rpc.RangeRequest()),
    (b" \r\n\t", rpc.RangeRequest()),
    (b"{}", rpc.RangeRequest()),
    (b'{"key":"YQ==","range_end":"AA=="}', rpc.RangeRequest(key=b"a", range_end=b"\0")),
    (b'{"rangeEnd":"AA==","keysOnly":true}', rpc.RangeRequest(range_end=b"\0", keys_only=True)),
    (b'{"limit":5}', rpc.RangeRequest(limit=5)),
    (b'{"limit":"5"}', rpc.RangeRequest(limit=5)),
    (b'{"limit":5.0,"revision":1e3}', rpc.RangeRequest(limit=5, revision=1000)),
    (b'{"limit":"-0","revision":"1E+3"}', rpc.RangeRequest(revision=1000)),
    (b'{"revision":9223372036854775807}', rpc.RangeRequest(revision=HIGH)),
    (b'{"revision":"9223372036854775807.0"}', rpc.RangeRequest(revision=HIGH)),
    (b'{"revision":-9223372036854775808}', rpc.RangeRequest(revision=-(2**63))),
    (b'{"sort_order":"DESCEND","sortTarget":1}', rpc.RangeRequest(sort_order=2, sort_target=1)),
    (b'{"sort_order":77}', rpc.RangeRequest(sort_order=77)),
    (b'{"key":null,"limit":null,"sort_order":null}', rpc.RangeRequest()),
    (b'{"nope":[{"a":{}}],"KEY":1,"Key":2}', rpc.RangeRequest()),
    (b'{"key":"//77"}', rpc.RangeRequest(key=b"\xff\xfe\xfb")),
    (b'{"key":"__77"}', rpc.RangeRequest(key=b"\xff\xfe\xfb")),
    (b'{"key":"-_8="}', rpc.RangeRequest(key=b"\xfb\xff")),
    (b'{"key":"-_8"}', rpc.RangeRequest(key=b"\xfb\xff")),
    (b'{"key":"YQ"}', rpc.RangeRequest(key=b"a")),
    (b'{"key":"YW\\nI\\n"}', rpc.RangeRequest(key=b"ab")),
    (b'{"key":"YWI=\\n\\r\\n\\n"}', rpc.RangeRequest(key=b"ab")),
    (b'{"key":"YWJj\\n"}', rpc.RangeRequest(key=b"abc")),
    (b'{"key":""}', rpc.RangeRequest()),
    (b'{"TTL":60,"ID":"7"}', rpc.LeaseGrantRequest(TTL=60, ID=7)),
    (b'{"peerURLs":["http://a:1"],"isLearner":true}', rpc.MemberAddRequest(peerURLs=["http://a:1"], isLearner=True)),
    (b'{"ID":"18446744073709551615","peerURLs":null}', rpc.MemberUpdateRequest(ID=2**64 - 1)),
    (b'{"ID":3,"remainingTTL":4}', rpc.LeaseCheckpoint(ID=3, remaining_TTL=4)),
    (b'{"name":"r","perm":{"permType":"WRITE"}}', rpc.AuthRoleGrantPermissionRequest(name="r", perm={"permType": 1})),
    (b'{"memberID":5,"alarm":"NOSPACE"}', rpc.AlarmRequest(memberID=5, alarm=1)),
    (b'{"create_request":{}}', rpc.WatchRequest(create_request=rpc.WatchCreateRequest())),
    (b'{"createRequest":{"filters":["NOPUT",1]}}', rpc.WatchRequest(create_request={"filters": [0, 1]})),
    (b'{"progress_request":{},"cancel_request":null}', rpc.WatchRequest(progress_request={})),
    (b'{"version":"0"}', rpc.Compare(version=0)),
    (b'{"leader":{"name":"YQ==","rev":"4"}}', election.ResignRequest(leader={"name": b"a", "rev": 4})),
    (b'{"name":"\\ud83d\\ude00"}', rpc.AuthUserGetRequest(name="\U0001f600")),
]

WRONG = [
    (rpc.RangeRequest, b"null", "", "null where an object is due"),
    (rpc.RangeRequest, b"[]", "", "a list where an object is due"),
    (rpc.RangeRequest, b'"{}"', "", "a string where an object is due"),
    (rpc.RangeRequest, b"{", "", "not JSON"),
    (rpc.RangeRequest, b"{}{}", "", "more after the object, at character 2"),
    (rpc.RangeRequest, b"{'key':1}", "", "not JSON"),
    (rpc.RangeRequest, b'{"limit":NaN}', "", "not JSON: NaN"),
    (rpc.RangeRequest, b'{"nope":Infinity}', "", "not JSON: Infinity"),
    (rpc.RangeRequest, b'\xef\xbb\xbf{"limit":1}', "", "not JSON"),
    (rpc.RangeRequest, b'{"key":"\xff"}', "", "not UTF-8: invalid start byte at byte 8"),
    (rpc.RangeRequest, '{"limit":1}'.encode("utf-16-le"), "", "not JSON"),
    (rpc.RangeRequest, b'{"limit":1,"limit":1}', "", "a name twice in one object: 'limit'"),
    (rpc.RangeRequest, b'{"range_end":"","rangeEnd":""}', "rangeEnd", "only one of 'range_end' and 'rangeEnd'"),
    (rpc.RangeRequest, b'{"key":"Y"}', "key", "not base64: 'Y'"),
    (rpc.RangeRequest, b'{"key":"YQ="}', "key", "not base64"),
    (rpc.RangeRequest, b'{"key":"Y=Q="}', "key", "not base64"),
    (rpc.RangeRequest, b'{"key":"YQ==YQ=="}', "key", "not base64"),
    (rpc.RangeRequest, b'{"key":"+_77"}', "key", "not base64"),
    (rpc.RangeRequest, b'{"key":"!!!!"}', "key", "not base64: '!!!!'"),
    (rpc.RangeRequest, b'{"key":"YQ== "}', "key", "not base64"),
    (rpc.RangeRequest, b'{"key":"YW\\nI="}', "key", "not base64"),
    (rpc.RangeRequest, b'{"key":"YW\\nI"}', "key", "not base64"),
    (rpc.RangeRequest, b'{"key":"YQ==\\n"}', "key", "not base64"),
    (rpc.RangeRequest, b'{"key":"YQ\\n\\n"}', "key", "not base64"),
    (rpc.RangeRequest, b'{"key":"===="}', "key", "not base64"),
    (rpc.RangeRequest, b'{"key":1}', "key", "a number where base64 is due"),
    (rpc.RangeRequest, b'{"limit":1.5}', "limit", "'1.5' is not a whole number from"),
    (rpc.RangeRequest, b'{"limit":1e-9999999}', "limit", "is not a whole number"),
    (rpc.RangeRequest, b'{"limit":1e999999999}', "limit", "is not a whole number"),
    (rpc.RangeRequest, b'{"limit":"1e999999999"}', "limit", "is not a whole number"),
    (rpc.RangeRequest, b'{"limit":"1e99999999999999999999"}', "limit", "not a number"),
    (rpc.RangeRequest, b'{"limit":1e99999999999999999999}', "", "not JSON"),
    (rpc.RangeRequest, b'{"limit":' + b"1" * 5000 + b"}", "", "not JSON"),
    (rpc.RangeRequest, b'{"limit":"' + b"1" * 5000 + b'"}', "limit", "is not a whole number"),
    (rpc.RangeRequest, b'{"limit":9223372036854775808}', "limit", "is not a whole number"),
    (rpc.RangeRequest, b'{"limit":"1_000"}', "limit", "not a number: '1_000'"),
    (rpc.RangeRequest, b'{"limit":" 1"}', "limit", "not a number"),
    (rpc.RangeRequest, b'{"limit":""}', "limit", "not a number"),
    (rpc.RangeRequest, b'{"limit":"0x1"}', "limit", "not a number"),
    (rpc.RangeRequest, b'{"limit":"Infinity"}', "limit", "not a number"),
    (rpc.RangeRequest, '{"limit":"\u0661"}'.encode(), "limit", "not a number"),
    (rpc.RangeRequest, b'{"limit":true}', "limit", "a bool where a number is due"),
    (rpc.RangeRequest, b'{"limit":[1]}', "limit", "a list where a number is due"),
    (rpc.RangeRequest, b'{"keys_only":1}', "keys_only", "a number where true or false is due"),
    (rpc.RangeRequest, b'{"keys_only":"true"}', "keys_only", "a string where true or false is due"),
    (rpc.RangeRequest, b'{"sort_order":"UP"}', "sort_order", "'UP' is not one of NONE, ASCEND, DESCEND"),
    (rpc.RangeRequest, b'{"sort_order":2147483648}', "sort_order", "is not a whole number"),
    (rpc.RangeRequest, b'{"sort_order":{}}', "sort_order", "an object where a number is due"),
    (rpc.HashKVResponse, b'{"hash":-1}', "hash", "is not a whole number from 0 to 4294967295"),
    (rpc.MemberRemoveRequest, b'{"ID":-1}', "ID", "is not a whole number from 0 to"),
    (rpc.AuthUserAddRequest, b'{"name":5}', "name", "a number where a string is due"),
    (rpc.AuthUserAddRequest, b'{"name":"\\ud800"}', "name", "half of a surrogate pair"),
    (rpc.AuthUserAddRequest, b'{"options":true}', "options", "a bool where an object is due"),
    (rpc.MemberAddRequest, b'{"peerURLs":"http://a:1"}', "peerURLs", "a string where a list is due"),
    (rpc.MemberAddRequest, b'{"peerURLs":["a",null]}', "peerURLs[1]", "null where a string is due"),
    (rpc.TxnRequest, b'{"compare":[null]}', "compare[0]", "null where an object is due"),
    (
        rpc.TxnRequest,
        b'{"compare":[{},{"version":1,"value":""}]}',
        "compare[1].value",
        "only one of 'version' and 'value'",
    ),
    (rpc.TxnRequest, b'{"success":[{"requestPut":{"key":7}}]}', "success[0].requestPut.key", "base64 is due"),
    (rpc.WatchRequest, b'{"create_request":{},"progress_request":{}}', "progress_request", "only one of"),
]


@pytest.mark.parametrize(("message", "encoded"), OUT, ids=lambda value: value if isinstance(value, bytes) else "")
def test_json_out(message: Message, encoded: bytes) -> None:
    assert to_json(message) == encoded


@pytest.mark.parametrize(("encoded", "message"), IN, ids=lambda value: value if isinstance(value, bytes) else "")
def test_json_in(encoded: bytes, message: Message) -> None:
    decoded = from_json(type(message), encoded)
    assert decoded == message
    assert decoded.SerializeToString() == message.SerializeToString()


@pytest.mark.parametrize(("message_type", "encoded", "path", "problem"), WRONG)
def test_json_of_the_wrong_shape_says_where_and_what(
    message_type: type[Message], encoded: bytes, path: str, problem: str
) -> None:
    with pytest.raises(JsonError) as raised:
        from_json(message_type, encoded)
    assert raised.value.path == path
    assert problem in raised.value.problem
    assert str(raised.value) == (f"{path}: {raised.value.problem}" if path else raised.value.problem)
    assert len(str(raised.value)) < 250


def _nested(levels: int) -> bytes:
    """A txn in a txn and so on; each level is two messages, and the outermost is one."""
    return b'{"success":[{"request_txn":' * levels + b"{}" + b"}]}" * levels


@pytest.mark.pure("replaces a function")
def test_rows_are_encoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else no other thread runs until all are."""
    sizes: list[int] = []
    encode = json_module._encode

    def noted(value: object) -> str:
        text = encode(value)
        sizes.append(len(text))
        return text

    monkeypatch.setattr(json_module, "_encode", noted)
    found = rpc.RangeResponse(kvs=[kv.KeyValue(key=b"%d" % number, value=b"v") for number in range(1_000)], count=1_000)
    answer = rpc.TxnResponse(responses=[rpc.ResponseOp(response_range=found)], succeeded=True)
    shape = json_format.MessageToDict(answer, preserving_proto_field_name=True)
    assert to_json(answer) == json.dumps(shape, separators=(",", ":")).encode()
    assert max(sizes) < 100


def test_nesting_ends_where_protobufs_does() -> None:
    deepest = (DEPTH_MAX - 1) // 2
    encoded = from_json(rpc.TxnRequest, _nested(deepest)).SerializeToString()
    assert rpc.TxnRequest.FromString(encoded).success[0].WhichOneof("request") == "request_txn"
    with pytest.raises(JsonError, match="nested deeper than 100"):
        from_json(rpc.TxnRequest, _nested(deepest + 1))


@pytest.mark.parametrize(
    "encoded",
    [
        _nested(100_000),
        b"[" * 1_000_000,
        b'{"nope":' * 200_000,
        b'{"nope":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["txns", "open lists", "open objects", "an unknown field"],
)
def test_nesting_without_end_is_an_error_of_its_own(encoded: bytes) -> None:
    with pytest.raises(JsonError, match="too deeply nested"):
        from_json(rpc.TxnRequest, encoded)


def test_objects_that_follow_each_other_are_read_one_by_one() -> None:
    body = b' {"create_request":{"key":"YQ=="}}\n{"progress_request":{}}{} \n'
    messages = list(many_from_json(rpc.WatchRequest, body))
    assert [message.WhichOneof("request_union") for message in messages] == ["create_request", "progress_request", None]
    assert list(many_from_json(rpc.WatchRequest, b" ")) == []


def test_what_precedes_a_wrong_object_is_read() -> None:
    messages = many_from_json(rpc.WatchRequest, b'{"progress_request":{}}{"create_request":[]}')
    assert next(messages).WhichOneof("request_union") == "progress_request"
    with pytest.raises(JsonError, match="create_request: a list where an object is due"):
        next(messages)


SCALARS = {
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=6),
    FieldDescriptor.TYPE_STRING: st.text(max_size=6),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), HIGH),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 5),
}


def _messages(cls: type[Message], depth: int = 4) -> st.SearchStrategy[Message]:
    """Any message of a class, with at most one member of each oneof."""
    slots: dict[str, list[st.SearchStrategy[tuple[str, Any]]]] = {}
    for field in cls.DESCRIPTOR.fields:
        if field.message_type is None:
            value: st.SearchStrategy[Any] = SCALARS[field.type]
        elif depth:
            value = _messages(GetMessageClass(field.message_type), depth - 1)
        else:
            continue
        if field.default_value == []:
            value = st.lists(value, max_size=2)
        slot = field.name if field.containing_oneof is None else field.containing_oneof.name
        slots.setdefault(slot, []).append(st.tuples(st.just(field.name), value))
    chosen = st.fixed_dictionaries({}, optional={slot: st.one_of(members) for slot, members in slots.items()})
    return chosen.map(lambda fields: cls(**dict(fields.values())))


messages = st.sampled_from(MESSAGES).flatmap(_messages)


@given(messages)
def test_what_goes_out_comes_in_again(message: Message) -> None:
    encoded = to_json(message)
    assert from_json(type(message), encoded) == message
    assert json.loads(encoded) == json_format.MessageToDict(message, preserving_proto_field_name=True)


@given(messages)
def test_what_others_write_comes_in(message: Message) -> None:
    encoded = json_format.MessageToJson(message, use_integers_for_enums=True, indent=1)
    assert from_json(type(message), encoded.encode()) == message


NAMES = sorted({name for cls in MESSAGES for f in cls.DESCRIPTOR.fields for name in (f.name, f.json_name)})
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["YQ==", "-_8", "NOPUT", "7", "1e5", "-1", "DESCEND"])
)
shapes = st.recursive(
    leaves,
    lambda within: st.lists(within, max_size=3) | st.dictionaries(st.sampled_from(NAMES), within, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(MESSAGES), shapes | st.dictionaries(st.sampled_from(NAMES), shapes, max_size=6))
def test_any_json_is_a_message_or_the_one_error(cls: type[Message], shape: object) -> None:
    with suppress(JsonError):
        message = from_json(cls, json.dumps(shape).encode())
        assert from_json(cls, to_json(message)) == message


@given(st.sampled_from(MESSAGES), st.binary(max_size=40))
@example(rpc.RangeRequest, b"\0")
@example(rpc.RangeRequest, b'{"\\u')
def test_any_bytes_are_a_message_or_the_one_error(cls: type[Message], body: bytes) -> None:
    with suppress(JsonError):
        from_json(cls, body)
    with suppress(JsonError):
        list(many_from_json(cls, body))


@given(messages, st.data())
def test_json_cut_or_changed_anywhere_is_a_message_or_the_one_error(message: Message, data: st.DataObject) -> None:
    body = bytearray(to_json(message))
    at = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        del body[at:]
    else:
        body[at] = data.draw(st.integers(0, 255))
    with suppress(JsonError):
        from_json(type(message), bytes(body))
