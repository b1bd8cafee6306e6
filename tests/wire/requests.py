"""Requests of the KV service in short, for tables of cases."""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf.message import Message

from mvccstore.server.messages import rpc
from tests.wire.differential import Operation, Post, Unary

KV, LEASE, MAINTENANCE = "/etcdserverpb.KV", "/etcdserverpb.Lease", "/etcdserverpb.Maintenance"
ALL: dict[str, bytes] = {"key": b"\0", "range_end": b"\0"}

_OPERATIONS = {
    rpc.RangeRequest: "request_range",
    rpc.PutRequest: "request_put",
    rpc.DeleteRangeRequest: "request_delete_range",
    rpc.TxnRequest: "request_txn",
}


def put(key: bytes, value: bytes = b"", **options: Any) -> rpc.PutRequest:
    return rpc.PutRequest(key=key, value=value, **options)


def get(key: bytes, range_end: bytes = b"", **options: Any) -> rpc.RangeRequest:
    return rpc.RangeRequest(key=key, range_end=range_end, **options)


def delete(key: bytes, range_end: bytes = b"", **options: Any) -> rpc.DeleteRangeRequest:
    return rpc.DeleteRangeRequest(key=key, range_end=range_end, **options)


def compare(key: bytes, range_end: bytes = b"", **options: Any) -> rpc.Compare:
    return rpc.Compare(key=key, range_end=range_end, **options)


def operation(request: Message | None) -> rpc.RequestOp:
    """Return an operation of a txn; None for one that is not set."""
    return rpc.RequestOp() if request is None else rpc.RequestOp(**{_OPERATIONS[type(request)]: request})


def txn(*success: Message | None, compares: Any = (), failure: Any = ()) -> rpc.TxnRequest:
    return rpc.TxnRequest(
        compare=compares, success=[operation(request) for request in success], failure=[operation(r) for r in failure]
    )


def compact(revision: int, **options: Any) -> rpc.CompactionRequest:
    return rpc.CompactionRequest(revision=revision, **options)


_METHODS = {
    rpc.RangeRequest: f"{KV}/Range",
    rpc.PutRequest: f"{KV}/Put",
    rpc.DeleteRangeRequest: f"{KV}/DeleteRange",
    rpc.TxnRequest: f"{KV}/Txn",
    rpc.CompactionRequest: f"{KV}/Compact",
    rpc.LeaseGrantRequest: f"{LEASE}/LeaseGrant",
    rpc.LeaseRevokeRequest: f"{LEASE}/LeaseRevoke",
    rpc.LeaseTimeToLiveRequest: f"{LEASE}/LeaseTimeToLive",
    rpc.LeaseLeasesRequest: f"{LEASE}/LeaseLeases",
    rpc.HashKVRequest: f"{MAINTENANCE}/HashKV",
}


def calls(*requests: Message) -> list[Operation]:
    """Return gRPC calls of the methods that take these."""
    return [Unary(_METHODS[type(request)], request) for request in requests]


def text(data: bytes) -> str:
    """Return bytes as they stand in JSON."""
    return base64.b64encode(data).decode()


def posts(path: str, *bodies: dict[str, Any]) -> list[Operation]:
    """Return calls of the JSON gateway."""
    return [Post(f"/v3/{path}", body) for body in bodies]
