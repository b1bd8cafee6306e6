"""Each metric: its name, type and help as etcd has them, and where its value comes from.

Left out is what only a cluster, raft's log or Go has. What one member cannot see change (heartbeats, learners) is
there with the value that it has in an etcd of one, as alerts read it.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from mvccstore.server.node import Node
from mvccstore.server.transport.call import Method
from mvccstore.server.transport.counts import Cuts, Histogram
from mvccstore.types import KeyRange

Kind = Literal["gauge", "counter", "histogram"]
Labels = tuple[tuple[str, str], ...]
_Number = tuple[str, Kind, str, float]
HANDLING_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: those of gRPC's histogram."""
_NO_LIMIT = 1 << 64
_QUOTA_BYTES_DEFAULT = 2 << 30
_CODES = (
    *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists"),
    *("PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented"),
    *("Internal", "Unavailable", "DataLoss", "Unauthenticated"),
)
_TYPES = {(False, False): "unary", (False, True): "server_stream", (True, True): "bidi_stream"}


class Family(NamedTuple):
    """One metric, and its value for each set of labels."""

    name: str
    kind: Kind
    help: str
    values: Sequence[tuple[Labels, float | Histogram]]


def _plain(name: str, kind: Kind, text: str, value: float | Histogram) -> Family:
    return Family(name, kind, text, (((), value),))


def _one(name: str, text: str, label: str, value: str) -> Family:
    return Family(name, "gauge", text, ((((label, value),), 1.0),))


def families(node: Node, methods: Sequence[Method], cuts: Cuts, rejected: int, connections: int) -> Iterator[Family]:
    """Return all of them. Cost: a count of the keys, which should not be made on the loop.

    Args:
        rejected: Handshakes of TLS that have failed.
        connections: Clients that are connected.
    """
    yield from _server(node)
    yield from _store(node)
    yield from _leases_and_watches(node)
    yield from _calls(methods)
    yield from _process()
    limits = tuple(((("limit", name),), float(number)) for name, number in sorted(cuts.by_limit.copy().items()))
    text = "The total number of calls and connections that were refused or ended by a limit."
    yield Family("mvccstore_server_refused_total", "counter", text, limits)
    told = tuple(
        ((("protocol", protocol), ("told", what)), float(number))
        for (protocol, what), number in sorted(cuts.by_told.copy().items())
    )
    text = "The total number of calls and connections that ended by an error of their protocol."
    yield Family("mvccstore_server_protocol_errors_total", "counter", text, told)
    text = "The total number of TLS handshakes that failed."
    yield _plain("mvccstore_transport_tls_rejected_total", "counter", text, rejected)
    yield _plain("mvccstore_transport_connections", "gauge", "The number of clients that are connected.", connections)


def _server(node: Node) -> Iterator[Family]:
    identity, tally = node.identity, node.tally
    numbers: tuple[_Number, ...] = (
        ("has_leader", "gauge", "Whether or not a leader exists. 1 is existence, 0 is not.", 1),
        ("is_leader", "gauge", "Whether or not this member is a leader. 1 if is, 0 otherwise.", 1),
        ("is_learner", "gauge", "Whether or not this member is a learner. 1 if is, 0 otherwise.", 0),
        ("leader_changes_seen_total", "counter", "The number of leader changes seen.", 1),
        (
            "heartbeat_send_failures_total",
            "counter",
            "The total number of leader heartbeat send failures (likely overloaded from slow disk).",
            0,
        ),
        ("proposals_applied_total", "gauge", "The total number of consensus proposals applied.", node.raft_index),
        ("proposals_committed_total", "gauge", "The total number of consensus proposals committed.", node.raft_index),
        ("proposals_pending", "gauge", "The current number of pending proposals to commit.", node.writer.under_way),
        ("proposals_failed_total", "counter", "The total number of failed proposals seen.", tally.proposals_failed),
        ("read_indexes_failed_total", "counter", "The total number of failed read indexes seen.", 0),
        (
            "slow_read_indexes_total",
            "counter",
            "The total number of pending read indexes not in sync with leader's or timed out read index requests.",
            0,
        ),
        (
            "snapshot_apply_in_progress_total",
            "gauge",
            "1 if the server is applying the incoming snapshot. 0 if none.",
            0,
        ),
        (
            "slow_apply_total",
            "counter",
            "The total number of slow apply requests (likely overloaded from slow disk).",
            node.slow.applies,
        ),
        ("health_success", "counter", "The total number of successful health checks", tally.health_successes),
        ("health_failures", "counter", "The total number of failed health checks", tally.health_failures),
        (
            "quota_backend_bytes",
            "gauge",
            "Current backend storage quota size in bytes.",
            node.alarms.quota_bytes or _QUOTA_BYTES_DEFAULT,
        ),
    )
    for name, kind, text, value in numbers:
        yield _plain(f"etcd_server_{name}", kind, text, value)
    text = "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID."
    yield _one("etcd_server_id", text, "server_id", f"{node.member_id:x}")
    text = "Which version is running. 1 for 'server_version' label with current version."
    yield _one("etcd_server_version", text, "server_version", identity.version)
    text = "Which version is running. 1 for 'cluster_version' label with current cluster version"
    yield _one("etcd_cluster_version", text, "cluster_version", identity.cluster_version)
    text = "Which Go version server is running with. 1 for 'server_go_version' label with current version."
    yield _one("etcd_server_go_version", text, "server_go_version", f"python{platform.python_version()}")
    requests = tuple(
        ((("client_api_version", version), ("type", kind)), float(number))
        for version, numbers in sorted(tally.requests.copy().items())
        for kind, number in zip(("unary", "stream"), numbers, strict=True)
        if number
    )
    text = "The total number of client requests per client version."
    yield Family("etcd_server_client_requests_total", "counter", text, requests)


def _store(node: Node) -> Iterator[Family]:
    store, tally = node.store, node.tally
    stats = store.stats()
    numbers: tuple[_Number, ...] = (
        (
            "etcd_mvcc_db_total_size_in_bytes",
            "gauge",
            "Total size of the underlying database physically allocated in bytes.",
            stats.file_bytes,
        ),
        (
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "gauge",
            "Total size of the underlying database logically in use in bytes.",
            stats.used_bytes,
        ),
        (
            "etcd_mvcc_db_open_read_transactions",
            "gauge",
            "The number of currently open read transactions",
            stats.snapshots,
        ),
        ("etcd_mvcc_put_total", "counter", "Total number of puts seen by this member.", tally.puts),
        ("etcd_mvcc_range_total", "counter", "Total number of ranges seen by this member.", tally.ranges),
        ("etcd_mvcc_delete_total", "counter", "Total number of deletes seen by this member.", tally.deletes),
        ("etcd_mvcc_txn_total", "counter", "Total number of txns seen by this member.", tally.txns),
        ("etcd_debugging_mvcc_keys_total", "gauge", "Total number of keys.", store.count(KeyRange.all())),
        ("etcd_debugging_mvcc_current_revision", "gauge", "The current revision of store.", store.revision),
        (
            "etcd_debugging_mvcc_compact_revision",
            "gauge",
            "The revision of the last compaction in store.",
            store.compact_revision,
        ),
        (
            "etcd_debugging_mvcc_total_put_size_in_bytes",
            "gauge",
            "The total size of put kv pairs seen by this member.",
            tally.put_bytes,
        ),
        (
            "etcd_debugging_auth_revision",
            "gauge",
            "The current revision of auth store.",
            node.auth.accounts.revision,
        ),
    )
    for name, kind, text, value in numbers:
        yield _plain(name, kind, text, value)
    # One commit is both here: there is no log beside the store.
    text = "The latency distributions of fsync called by WAL."
    yield _plain("etcd_disk_wal_fsync_duration_seconds", "histogram", text, tally.commits)
    text = "The latency distributions of commit called by backend."
    yield _plain("etcd_disk_backend_commit_duration_seconds", "histogram", text, tally.commits)
    text = "Whether or not defrag is active on the member. 1 means active, 0 means not."
    yield _plain("etcd_disk_defrag_inflight", "gauge", text, min(tally.defragments_under_way, 1))
    text = "The latency distribution of backend defragmentation."
    yield _plain("etcd_disk_backend_defrag_duration_seconds", "histogram", text, tally.defragments)
    text = "The latency distribution of backend snapshots."
    yield _plain("etcd_disk_backend_snapshot_duration_seconds", "histogram", text, tally.snapshots)
    text = "The latency distribution of storage hash operation."
    yield _plain("etcd_mvcc_hash_duration_seconds", "histogram", text, tally.hashes)
    text = "The latency distribution of storage hash by revision operation."
    yield _plain("etcd_mvcc_hash_rev_duration_seconds", "histogram", text, tally.hashes_of_revisions)


def _leases_and_watches(node: Node) -> Iterator[Family]:
    tally, watches = node.tally, node.tally.watches()
    # Whatever has come and was not revoked, but is gone: what the store's own user does with leases is not told apart.
    expired = tally.leases_at_start + tally.leases_granted - tally.leases_revoked - node.store.stats().leases
    numbers: tuple[_Number, ...] = (
        ("lease_granted_total", "counter", "The total number of granted leases.", tally.leases_granted),
        ("lease_revoked_total", "counter", "The total number of revoked leases.", tally.leases_revoked),
        ("lease_renewed_total", "counter", "The number of renewed leases seen by the leader.", tally.leases_renewed),
        ("server_lease_expired_total", "counter", "The total number of expired leases.", max(expired, 0)),
        ("mvcc_watch_stream_total", "gauge", "Total number of watch streams.", watches.streams),
        ("mvcc_watcher_total", "gauge", "Total number of watchers.", watches.watches),
        ("mvcc_slow_watcher_total", "gauge", "Total number of unsynced slow watchers.", watches.unsynced),
        ("mvcc_events_total", "counter", "Total number of events sent by this member.", tally.events),
    )
    for name, kind, text, value in numbers:
        yield _plain(f"etcd_debugging_{name}", kind, text, value)
    text = "Bucketed histogram of lease TTLs."
    yield _plain("etcd_debugging_lease_ttl_total", "histogram", text, tally.lease_seconds)


def _calls(methods: Sequence[Method]) -> Iterator[Family]:
    received = sum(method.counts.received_bytes for method in methods)
    text = "The total number of bytes received from grpc clients."
    yield _plain("etcd_network_client_grpc_received_bytes_total", "counter", text, received)
    sent = sum(method.counts.sent_bytes for method in methods)
    text = "The total number of bytes sent to grpc clients."
    yield _plain("etcd_network_client_grpc_sent_bytes_total", "counter", text, sent)
    labelled = [
        (_labels(method), method.counts, method.handler is None or method.is_server_streaming) for method in methods
    ]
    text = "Total number of RPCs started on the server."
    started = [(labels, float(counts.started)) for labels, counts, _ in labelled]
    yield Family("grpc_server_started_total", "counter", text, started)
    text = "Total number of RPC stream messages received on the server."
    in_messages = [
        (labels, float(counts.received if is_stream and dict(labels)["grpc_type"] == "bidi_stream" else counts.started))
        for labels, counts, is_stream in labelled
    ]
    yield Family("grpc_server_msg_received_total", "counter", text, in_messages)
    text = "Total number of gRPC stream messages sent by the server."
    # The refusal of a unary call is a message to whoever counts them in etcd.
    out_messages = [
        (labels, float(counts.sent if is_stream else counts.succeeded + sum(counts.codes)))
        for labels, counts, is_stream in labelled
    ]
    yield Family("grpc_server_msg_sent_total", "counter", text, out_messages)
    text = "Total number of RPCs completed on the server, regardless of success or failure."
    handled = [
        ((("grpc_code", code), *labels), float(number))
        for labels, counts, _ in labelled
        for code, number in zip(_CODES, (counts.succeeded, *counts.codes[1:]), strict=True)
    ]
    yield Family("grpc_server_handled_total", "counter", text, handled)
    seconds = [(labels, counts.seconds) for labels, counts, _ in labelled if counts.seconds is not None]
    if seconds:
        text = "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server."
        yield Family("grpc_server_handling_seconds", "histogram", text, seconds)


def _labels(method: Method) -> Labels:
    _, service, name = method.path.split("/")
    kind = _TYPES[method.handler is None, method.is_server_streaming]
    return (("grpc_method", name), ("grpc_service", service), ("grpc_type", kind))


def _process() -> Iterator[Family]:
    """What the system knows of the process, of which `prometheus_client` has the rest."""
    text = "Maximum amount of virtual memory available in bytes."
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    yield _plain(
        "process_virtual_memory_max_bytes", "gauge", text, _NO_LIMIT if most == resource.RLIM_INFINITY else most
    )
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield _plain("os_fd_limit", "gauge", "The file descriptor limit.", limit)
    try:
        used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not used
    except OSError:  # not Linux: there is no such number
        return
    yield _plain("os_fd_used", "gauge", "The number of used file descriptors.", used)
