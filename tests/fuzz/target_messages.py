"""Protobuf messages: ours, decoded and encoded by hand, against protobuf's C runtime."""

from __future__ import annotations

from google.protobuf.message import DecodeError, Message

from mvccstore.errors import DuplicateKeyError
from mvccstore.etcd_file import buckets
from mvccstore.mvcc.etcd_encoding import key_value
from mvccstore.server.messages import METHODS, fast, kv, rpc
from mvccstore.server.services import translation
from mvccstore.server.transport.status import RpcError
from mvccstore.types import Event, KeyValue
from tests.fuzz.choices import Choices

TYPES: tuple[type[Message], ...] = (
    kv.KeyValue,
    rpc.RangeResponse,
    rpc.WatchResponse,
    rpc.PutResponse,
    *(METHODS[path].request for path in sorted(METHODS)),
)
_OPS_MAX = 128


def run(data: bytes) -> None:
    """Decode what follows the first byte, which chooses the message."""
    choices = Choices(data)
    message_type, encoded = choices.pick(TYPES), choices.rest()
    try:
        message = message_type.FromString(encoded)
    except DecodeError:
        message = None
    if message_type is kv.KeyValue:
        _check_key_value(message, encoded)
    if message is None:
        return
    match message:
        case rpc.RangeResponse():
            _check_range(message)
        case rpc.WatchResponse():
            _check_watch(message)
        case rpc.PutResponse():
            _check_put(message)
        case _:
            _translate(message)


def _row(message: kv.KeyValue) -> KeyValue:
    return KeyValue(
        message.key, message.create_revision, message.mod_revision, message.version, message.value, message.lease
    )


def _plain(row: KeyValue) -> kv.KeyValue:
    return kv.KeyValue(
        key=row.key,
        create_revision=row.create_revision,
        mod_revision=row.mod_revision,
        version=row.version,
        value=row.value,
        lease=row.lease,
    )


def _check_key_value(message: Message | None, encoded: bytes) -> None:
    """What the reader of etcd's files takes, protobuf does, and for the same."""
    try:
        ours = buckets.decode_key_value(encoded)
    except ValueError:
        return
    assert isinstance(message, kv.KeyValue)
    assert ours == _row(message)
    if min(ours.create_revision, ours.mod_revision, ours.version) >= 0:
        assert key_value(ours) == _plain(ours).SerializeToString()


def _check_header(message: rpc.RangeResponse | rpc.WatchResponse | rpc.PutResponse) -> tuple[bytes, rpc.ResponseHeader]:
    given = message.header
    revision = given.revision & (2**63 - 1)
    headers = fast.Headers(given.cluster_id, given.member_id, given.raft_term)
    header = rpc.ResponseHeader(
        cluster_id=given.cluster_id, member_id=given.member_id, revision=revision, raft_term=given.raft_term
    )
    encoded = headers.at(revision)
    assert encoded == rpc.PutResponse(header=header).SerializeToString()
    return encoded, header


def _check_range(message: rpc.RangeResponse) -> None:
    encoded, header = _check_header(message)
    rows = [_row(row) for row in message.kvs]
    count = message.count & (2**63 - 1)
    expected = rpc.RangeResponse(header=header, kvs=map(_plain, rows), more=message.more, count=count)
    assert fast.range_response(encoded, rows, more=message.more, count=count) == expected.SerializeToString()


def _check_put(message: rpc.PutResponse) -> None:
    encoded, header = _check_header(message)
    if message.HasField("prev_kv"):
        row = _row(message.prev_kv)
        if min(row.create_revision, row.mod_revision, row.version, row.lease) < 0:
            return
        expected = rpc.PutResponse(header=header, prev_kv=_plain(row))
        assert fast.put_response(encoded, row) == expected.SerializeToString()


def _check_watch(message: rpc.WatchResponse) -> None:
    encoded, header = _check_header(message)
    events = []
    for event in message.events:
        if event.type in {0, 1}:
            prev_kv = _row(event.prev_kv) if event.HasField("prev_kv") else None
            events.append(Event("delete" if event.type else "put", _row(event.kv), prev_kv))
    watch_id = message.watch_id & (2**63 - 1)
    compact_revision = message.compact_revision & (2**63 - 1)
    answered = fast.watch_response(
        encoded,
        watch_id,
        b"".join(map(fast.event, events)),
        created=message.created,
        canceled=message.canceled,
        compact_revision=compact_revision,
        cancel_reason=message.cancel_reason,
        fragment=message.fragment,
    )
    expected = rpc.WatchResponse(
        header=header,
        watch_id=watch_id,
        created=message.created,
        canceled=message.canceled,
        compact_revision=compact_revision,
        cancel_reason=message.cancel_reason,
        fragment=message.fragment,
    )
    for kind, row, prev_kv in events:
        change = expected.events.add()
        change.type = kv.Event.PUT if kind == "put" else kv.Event.DELETE
        change.kv.CopyFrom(_plain(row))
        if prev_kv is not None:
            change.prev_kv.CopyFrom(_plain(prev_kv))
    assert answered == expected.SerializeToString()


def _translate(message: Message) -> None:
    """Make a request of the store's of it: a client is told of whatever is wrong with it."""
    try:
        match message:
            case rpc.RangeRequest():
                translation.range_request(message)
            case rpc.PutRequest():
                translation.put_request(message)
            case rpc.DeleteRangeRequest():
                translation.delete_request(message)
            case rpc.TxnRequest():
                translation.txn_request(message, _OPS_MAX)
    except (RpcError, DuplicateKeyError):  # which `translate` has words for
        pass


def _of(message: Message) -> bytes:
    return bytes((TYPES.index(type(message)),)) + message.SerializeToString()


_ROW = kv.KeyValue(key=b"k", create_revision=2, mod_revision=300, version=7, value=b"v" * 20, lease=2**62)
_HEADER = rpc.ResponseHeader(cluster_id=2**63, member_id=7, revision=300, raft_term=2)
SEEDS = (
    _of(_ROW),
    _of(rpc.RangeResponse(header=_HEADER, kvs=[_ROW, _ROW], more=True, count=9)),
    _of(
        rpc.WatchResponse(
            header=_HEADER, watch_id=3, created=True, events=[kv.Event(type=kv.Event.DELETE, kv=_ROW, prev_kv=_ROW)]
        )
    ),
    _of(rpc.PutResponse(header=_HEADER, prev_kv=_ROW)),
    _of(rpc.PutRequest(key=b"k", value=b"v", lease=5, prev_kv=True)),
    _of(rpc.RangeRequest(key=b"a", range_end=b"\0", limit=3, sort_order=2, sort_target=3, revision=5)),
    _of(
        rpc.TxnRequest(
            compare=[rpc.Compare(key=b"k", target=3, value=b"v")],
            success=[rpc.RequestOp(request_put=rpc.PutRequest(key=b"k"))],
            failure=[rpc.RequestOp(request_txn=rpc.TxnRequest())],
        )
    ),
)
