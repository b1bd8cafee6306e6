"""Operations of `differential` by short names, for tables of cases."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

from mvccstore.server.messages import rpc
from tests.wire.differential import Case, Fence, Request, Send, Step, Streaming, Unary, cases_for
from tests.wire.pair import Pair

KV, LEASE, WATCH = "/etcdserverpb.KV", "/etcdserverpb.Lease", "/etcdserverpb.Watch/Watch"
CLUSTER, MAINTENANCE, HEALTH = "/etcdserverpb.Cluster", "/etcdserverpb.Maintenance", "/grpc.health.v1.Health"


def judge(pair: Pair, case: Case) -> None:
    """Play a case to both, if this etcd is new enough to judge it."""
    for judged in cases_for(pair.version, [case]):
        pair.play(*judged.operations)


def text(data: bytes) -> str:
    """Return bytes as the gateway takes them."""
    return base64.b64encode(data).decode()


# KV


def put(key: bytes, value: bytes = b"1", **options: Any) -> Unary:
    return Unary(f"{KV}/Put", rpc.PutRequest(key=key, value=value, **options))


def get(key: bytes, range_end: bytes = b"", **options: Any) -> Unary:
    return Unary(f"{KV}/Range", rpc.RangeRequest(key=key, range_end=range_end, **options))


def everything() -> Unary:
    return get(b"\0", b"\0")


def delete(key: bytes, range_end: bytes = b"", **options: Any) -> Unary:
    return Unary(f"{KV}/DeleteRange", rpc.DeleteRangeRequest(key=key, range_end=range_end, **options))


def put_op(key: bytes, value: bytes = b"1", **options: Any) -> rpc.RequestOp:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, **options))


def get_op(key: bytes, **options: Any) -> rpc.RequestOp:
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key, **options))


def delete_op(key: bytes, range_end: bytes = b"") -> rpc.RequestOp:
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=range_end))


def txn(*success: rpc.RequestOp, failure: Iterable[rpc.RequestOp] = (), compare: Iterable[rpc.Compare] = ()) -> Unary:
    return Unary(f"{KV}/Txn", rpc.TxnRequest(compare=compare, success=success, failure=failure))


def compact(revision: int, *, physical: bool = True) -> Unary:
    return Unary(f"{KV}/Compact", rpc.CompactionRequest(revision=revision, physical=physical))


# Lease


def grant(ttl: int, lease_id: int = 0) -> Unary:
    return Unary(f"{LEASE}/LeaseGrant", rpc.LeaseGrantRequest(TTL=ttl, ID=lease_id))


def revoke(lease_id: int) -> Unary:
    return Unary(f"{LEASE}/LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease_id))


def time_to_live(lease_id: int, *, keys: bool = True) -> Unary:
    return Unary(f"{LEASE}/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=keys))


def leases() -> Unary:
    return Unary(f"{LEASE}/LeaseLeases", rpc.LeaseLeasesRequest())


def keep_alive(*steps: Step) -> Streaming:
    return Streaming(f"{LEASE}/LeaseKeepAlive", steps)


def alive(lease_id: int) -> Send:
    return Send(rpc.LeaseKeepAliveRequest(ID=lease_id))


# Watch


def watching(*steps: Step, **options: Any) -> Streaming:
    return Streaming(WATCH, steps, **options)


def create(key: bytes, range_end: bytes = b"", **options: Any) -> Send:
    return Send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key, range_end=range_end, **options)))


def cancel(watch_id: int) -> Send:
    return Send(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id)))


def progress() -> Send:
    return Send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))


FENCE = Fence()


# Maintenance, Cluster


def maintenance(method: str, request: Request) -> Unary:
    return Unary(f"{MAINTENANCE}/{method}", request)


def alarm(action: int = 0, kind: int = 0, member: int = 0) -> Unary:
    return maintenance("Alarm", rpc.AlarmRequest(action=action, alarm=kind, memberID=member))


def raise_alarm(kind: int, member: int = 7) -> Unary:
    return alarm(1, kind, member)


def disarm(kind: int, member: int = 7) -> Unary:
    return alarm(2, kind, member)


def downgrade(action: int, version: str = "") -> Unary:
    return maintenance("Downgrade", rpc.DowngradeRequest(action=action, version=version))


def hash_kv(revision: int = 0) -> Unary:
    return maintenance("HashKV", rpc.HashKVRequest(revision=revision))


def status() -> Unary:
    return maintenance("Status", rpc.StatusRequest())


def cluster(method: str, request: Request) -> Unary:
    return Unary(f"{CLUSTER}/Member{method}", request)


def members(*, linearizable: bool = False) -> Unary:
    return cluster("List", rpc.MemberListRequest(linearizable=linearizable))
