"""The messages of the wire: names and numbers, a pool of their own, no drift, and the encodings made by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from hypothesis import example, given
from hypothesis import strategies as st

from mvccstore.mvcc.etcd_encoding import key_value, varint
from mvccstore.server.messages import METHODS, auth, election, fast, health, kv, lock, pool, rpc, storage
from mvccstore.types import Event, KeyValue

ROOT = Path(__file__).parents[2]
MESSAGES = ROOT / "mvccstore" / "server" / "messages"

int64 = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 300),
    st.sampled_from([bound + step for bound in (2**14, 2**28, 2**35) for step in (-1, 0, 1)]),
)
uint64 = st.integers(0, 2**64 - 1) | st.integers(0, 3)
chunks = st.binary(max_size=20) | st.sampled_from([b"x" * 127, b"x" * 128, b"x" * 16_383, b"x" * 16_384])
key_values = st.builds(KeyValue, chunks, int64, int64, int64, chunks, int64)
events = st.builds(Event, st.sampled_from(["put", "delete"]), key_values, st.none() | key_values)
header_parts = st.tuples(uint64, uint64, int64, uint64)

# What is easy to get wrong: (message, field, number, type of protobuf's descriptor, repeated).
FIELDS = [
    (rpc.Compare, "range_end", 64, "TYPE_BYTES", False),
    (rpc.WatchResponse, "events", 11, "TYPE_MESSAGE", True),
    (rpc.WatchResponse, "fragment", 7, "TYPE_BOOL", False),
    (rpc.ResponseHeader, "revision", 3, "TYPE_INT64", False),
    (rpc.ResponseHeader, "raft_term", 4, "TYPE_UINT64", False),
    (rpc.LeaseGrantRequest, "TTL", 1, "TYPE_INT64", False),
    (rpc.LeaseGrantRequest, "ID", 2, "TYPE_INT64", False),
    (rpc.LeaseGrantResponse, "TTL", 3, "TYPE_INT64", False),
    (rpc.LeaseTimeToLiveResponse, "grantedTTL", 4, "TYPE_INT64", False),
    (rpc.LeaseTimeToLiveResponse, "keys", 5, "TYPE_BYTES", True),
    (rpc.Member, "peerURLs", 3, "TYPE_STRING", True),
    (rpc.Member, "isLearner", 5, "TYPE_BOOL", False),
    (rpc.MemberAddResponse, "members", 3, "TYPE_MESSAGE", True),
    (rpc.MemberRemoveResponse, "members", 2, "TYPE_MESSAGE", True),
    (rpc.StatusResponse, "dbSizeInUse", 9, "TYPE_INT64", False),
    (rpc.StatusResponse, "storageVersion", 11, "TYPE_STRING", False),
    (rpc.StatusResponse, "dbSizeQuota", 12, "TYPE_INT64", False),
    (rpc.StatusResponse, "downgradeInfo", 13, "TYPE_MESSAGE", False),
    (rpc.HashKVResponse, "hash", 2, "TYPE_UINT32", False),
    (rpc.HashKVResponse, "hash_revision", 4, "TYPE_INT64", False),
    (rpc.SnapshotResponse, "remaining_bytes", 2, "TYPE_UINT64", False),
    (rpc.SnapshotResponse, "version", 4, "TYPE_STRING", False),
    (rpc.RangeStreamResponse, "range_response", 1, "TYPE_MESSAGE", False),
    (rpc.AuthUserGrantRoleRequest, "user", 1, "TYPE_STRING", False),
    (rpc.AuthUserRevokeRoleRequest, "name", 1, "TYPE_STRING", False),
    (rpc.AuthUserAddRequest, "hashedPassword", 4, "TYPE_STRING", False),
    (rpc.AuthUserChangePasswordRequest, "hashedPassword", 3, "TYPE_STRING", False),
    (auth.Permission, "permType", 1, "TYPE_ENUM", False),
    (auth.Role, "keyPermission", 2, "TYPE_MESSAGE", True),
    (auth.User, "options", 4, "TYPE_MESSAGE", False),
    (election.ProclaimRequest, "leader", 1, "TYPE_MESSAGE", False),
    (election.CampaignResponse, "leader", 2, "TYPE_MESSAGE", False),
    (lock.LockResponse, "key", 2, "TYPE_BYTES", False),
    (storage.Lease, "RemainingTTL", 3, "TYPE_INT64", False),
]

# In another process, for what a process has imported cannot be taken back. The other client's definitions have
# the same full names and other fields, as etcd3's and aetcd's have.
OTHERS = """
from google.protobuf import descriptor_pb2, descriptor_pool
for file, package, message, service in [
    ("kv.proto", "mvccpb", "KeyValue", None), ("rpc.proto", "etcdserverpb", "RangeRequest", "KV"),
    ("grpc/health/v1/health.proto", "grpc.health.v1", "HealthCheckRequest", "Health"),
]:
    other = descriptor_pb2.FileDescriptorProto(name=file, package=package, syntax="proto3")
    other.message_type.add(name=message).field.add(name="mine", number=1, type=9, label=1)
    if service:
        other.service.add(name=service)
    descriptor_pool.Default().AddSerializedFile(other.SerializeToString())
from google.protobuf.message_factory import GetMessageClass
theirs = GetMessageClass(descriptor_pool.Default().FindMessageTypeByName("etcdserverpb.RangeRequest"))
"""
OURS = """
from mvccstore.server.messages import METHODS, rpc
"""
BOTH = """
assert theirs(mine="x").SerializeToString() == rpc.RangeRequest(key=b"x").SerializeToString()
assert METHODS["/etcdserverpb.KV/Range"].request is rpc.RangeRequest is not theirs
print("both")
"""


@pytest.mark.parametrize("script", [OTHERS + OURS + BOTH, OURS + OTHERS + BOTH], ids=["others first", "ours first"])
def test_another_clients_definitions_of_the_same_names_do_not_clash(script: str) -> None:
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (ran.stdout, ran.stderr) == ("both\n", "")


def test_the_default_pool_knows_none_of_the_messages() -> None:
    for method in METHODS.values():
        assert method.request.DESCRIPTOR.file.pool is not descriptor_pool.Default()


def test_generated_modules_are_those_of_the_proto_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "tools/generate_messages.py", "--out", tmp_path], cwd=ROOT, check=True, timeout=50)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.name for path in MESSAGES.glob("*.pyi")} == {name for name in made if name.endswith(".pyi")}
    assert [name for name, text in made.items() if (MESSAGES / name).read_bytes() != text] == [], "make messages"


@pytest.mark.parametrize(
    ("version", "is_enough"), [("4.25.3", False), ("5.25.9", False), ("5.26.0rc1", True), ("6.0", True)]
)
def test_a_protobuf_that_is_too_old_is_named_at_import(version: str, is_enough: bool) -> None:
    if is_enough:
        pool.check_protobuf(version)
    else:
        with pytest.raises(ImportError, match=r"5\.26 or newer: pip install 'mvccstore\[server\]'"):
            pool.check_protobuf(version)


@pytest.mark.parametrize(("message", "name", "number", "kind", "is_repeated"), FIELDS)
def test_fields_have_etcds_numbers_and_types(
    message: type[Message], name: str, number: int, kind: str, is_repeated: bool
) -> None:
    field = message.DESCRIPTOR.fields_by_name[name]
    assert (field.number, field.type) == (number, getattr(type(field), kind))
    assert hasattr(getattr(message(), name), "extend") == is_repeated


def test_methods_are_all_of_etcds_and_healths() -> None:
    services: dict[str, int] = {}
    for path in METHODS:
        _, service, _method = path.split("/")
        services[service] = services.get(service, 0) + 1
    assert services == {
        "etcdserverpb.KV": 6,
        "etcdserverpb.Watch": 1,
        "etcdserverpb.Lease": 5,
        "etcdserverpb.Cluster": 5,
        "etcdserverpb.Maintenance": 8,
        "etcdserverpb.Auth": 17,
        "v3lockpb.Lock": 2,
        "v3electionpb.Election": 5,
        "grpc.health.v1.Health": 3,
    }


def test_methods_take_and_stream_what_etcds_do() -> None:
    streams = {path: (method.client_streaming, method.server_streaming) for path, method in METHODS.items()}
    assert {path: kind for path, kind in streams.items() if kind != (False, False)} == {
        "/etcdserverpb.KV/RangeStream": (False, True),
        "/etcdserverpb.Watch/Watch": (True, True),
        "/etcdserverpb.Lease/LeaseKeepAlive": (True, True),
        "/etcdserverpb.Maintenance/Snapshot": (False, True),
        "/v3electionpb.Election/Observe": (False, True),
        "/grpc.health.v1.Health/Watch": (False, True),
    }
    assert METHODS["/etcdserverpb.KV/Compact"][:2] == (rpc.CompactionRequest, rpc.CompactionResponse)
    assert METHODS["/etcdserverpb.Auth/UserAdd"][:2] == (rpc.AuthUserAddRequest, rpc.AuthUserAddResponse)
    assert METHODS["/etcdserverpb.Auth/Authenticate"].request is rpc.AuthenticateRequest
    assert METHODS["/v3electionpb.Election/Observe"][:2] == (election.LeaderRequest, election.LeaderResponse)
    assert METHODS["/grpc.health.v1.Health/Check"].response is health.HealthCheckResponse


def test_enums_are_there_by_name_in_message_and_module() -> None:
    assert (rpc.RangeRequest.DESCEND, rpc.RangeRequest.SortTarget.Name(4)) == (2, "VALUE")
    assert (rpc.CORRUPT, rpc.AlarmType.Value("NOSPACE"), kv.Event.DELETE) == (2, 1, 1)
    assert health.HealthCheckResponse(status=health.HealthCheckResponse.SERVING).SerializeToString() == b"\x08\x01"


def _wire(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _key_value(row: KeyValue) -> kv.KeyValue:
    return kv.KeyValue(**row._asdict())


def _header(parts: tuple[int, int, int, int]) -> rpc.ResponseHeader:
    return rpc.ResponseHeader(cluster_id=parts[0], member_id=parts[1], revision=parts[2], raft_term=parts[3])


def _field(parts: tuple[int, int, int, int]) -> bytes:
    return fast.Headers(parts[0], parts[1], parts[3]).at(parts[2])


@given(int64)
def test_a_varint_is_protobufs(number: int) -> None:
    assert b"\x10" + varint(number) == _wire(kv.KeyValue(create_revision=number)) or not number
    assert varint(0) == b"\0"


@given(key_values)
@example(KeyValue(b"k", 5, 5, 1, b"v"))
@example(KeyValue(b"k", 2**27, 2**29, 16_383, b"v"))
@example(KeyValue(b"k", 0, 7, 0, b""))
def test_a_key_value_is_protobufs(row: KeyValue) -> None:
    assert key_value(row) == fast.key_value(row) == _wire(_key_value(row))


@given(header_parts, st.lists(int64))
def test_a_header_is_protobufs_whatever_was_asked_for_before(
    parts: tuple[int, int, int, int], revisions: list[int]
) -> None:
    cluster_id, member_id, _, raft_term = parts
    headers = fast.Headers(cluster_id, member_id, raft_term)
    for revision in [*revisions, parts[2], parts[2], 0, parts[2]]:
        message = _header((cluster_id, member_id, revision, raft_term))
        assert fast.encode_header(cluster_id, member_id, revision, raft_term) == _wire(message)
        assert headers.at(revision) == _wire(rpc.PutResponse(header=message))


@given(header_parts, st.none() | key_values)
def test_a_put_response_is_protobufs(parts: tuple[int, int, int, int], prev: KeyValue | None) -> None:
    message = rpc.PutResponse(header=_header(parts), prev_kv=None if prev is None else _key_value(prev))
    assert fast.put_response(_field(parts), prev) == _wire(message)


@given(header_parts, st.lists(key_values, max_size=8), st.booleans(), int64)
def test_a_range_response_is_protobufs(
    parts: tuple[int, int, int, int], rows: list[KeyValue], more: bool, count: int
) -> None:
    message = rpc.RangeResponse(header=_header(parts), kvs=map(_key_value, rows), more=more, count=count)
    assert fast.range_response(_field(parts), rows, more=more, count=count) == _wire(message)


@given(header_parts, int64, st.lists(events, max_size=4), st.booleans(), st.booleans(), int64, st.text(), st.booleans())
def test_a_watch_response_is_protobufs(
    parts: tuple[int, int, int, int],
    watch_id: int,
    changes: list[Event],
    created: bool,
    canceled: bool,
    compact_revision: int,
    cancel_reason: str,
    fragment: bool,
) -> None:
    message = rpc.WatchResponse(
        header=_header(parts),
        watch_id=watch_id,
        created=created,
        canceled=canceled,
        compact_revision=compact_revision,
        cancel_reason=cancel_reason,
        fragment=fragment,
    )
    for change in changes:
        added = message.events.add(type=kv.Event.EventType.Value(change.type.upper()), kv=_key_value(change.kv))
        if change.prev_kv is not None:
            added.prev_kv.CopyFrom(_key_value(change.prev_kv))
    encoded = fast.watch_response(
        _field(parts),
        watch_id,
        b"".join(map(fast.event, changes)),
        created=created,
        canceled=canceled,
        compact_revision=compact_revision,
        cancel_reason=cancel_reason,
        fragment=fragment,
    )
    assert encoded == _wire(message)
