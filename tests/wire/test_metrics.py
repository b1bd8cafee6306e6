"""`/metrics`: the names that dashboards and alerts read, as etcd has them, and moved by what is done."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest

import mvccstore
from mvccstore.server import Server, ServerOptions, Serving, TransportLimits, serve
from mvccstore.server.messages import rpc
from mvccstore.testing import FakeClock
from tests.oracle.choice import find_oracle
from tests.wire.pair import NEEDS_ORACLE, Pair, running_pair
from tests.wire.pair import OPTIONS as PAIR_OPTIONS

SECONDS = 20.0
_SAMPLE = re.compile(r"([a-zA-Z_:]+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_]+)="((?:[^"\\]|\\.)*)"')
_PARTS = ("_bucket", "_count", "_sum")
ALERTS = [
    "etcd_server_has_leader",
    "etcd_server_is_leader",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_heartbeat_send_failures_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_pending",
    "etcd_server_proposals_failed_total",
    "etcd_server_read_indexes_failed_total",
    "etcd_server_slow_read_indexes_total",
    "etcd_server_snapshot_apply_in_progress_total",
    "etcd_server_quota_backend_bytes",
    "etcd_server_id",
    "etcd_server_version",
    "etcd_cluster_version",
    "etcd_server_client_requests_total",
    "etcd_server_health_success",
    "etcd_server_health_failures",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_mvcc_put_total",
    "etcd_mvcc_range_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_txn_total",
    "etcd_disk_wal_fsync_duration_seconds",
    "etcd_disk_backend_commit_duration_seconds",
    "etcd_disk_backend_defrag_duration_seconds",
    "etcd_disk_backend_snapshot_duration_seconds",
    "etcd_disk_defrag_inflight",
    "etcd_mvcc_hash_duration_seconds",
    "etcd_mvcc_hash_rev_duration_seconds",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_debugging_mvcc_events_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_mvcc_total_put_size_in_bytes",
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_revoked_total",
    "etcd_debugging_lease_renewed_total",
    "etcd_debugging_server_lease_expired_total",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "grpc_server_started_total",
    "grpc_server_handled_total",
    "grpc_server_msg_received_total",
    "grpc_server_msg_sent_total",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
    "process_virtual_memory_max_bytes",
    "os_fd_used",
    "os_fd_limit",
]
MOVED = [
    "etcd_mvcc_put_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_txn_total",
    "etcd_mvcc_range_total",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_total_put_size_in_bytes",
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_revoked_total",
    "etcd_debugging_mvcc_events_total",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_server_quota_backend_bytes",
    "etcd_server_proposals_failed_total",
    "grpc_server_started_total",
    "grpc_server_msg_received_total",
    "grpc_server_msg_sent_total",
    "grpc_server_handled_total",
    "etcd_server_client_requests_total",
]
"""What the same calls move by the same amount."""
Labels = frozenset[tuple[str, str]]


@dataclass
class Scrape:
    """What a page says."""

    kinds: dict[str, str] = field(default_factory=dict)
    helps: dict[str, str] = field(default_factory=dict)
    samples: dict[str, dict[Labels, float]] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """Return the only sample that has these labels."""
        wanted = set(labels.items())
        (found,) = (value for have, value in self.samples[name].items() if wanted <= have)
        return found

    def label_names(self, family: str) -> set[frozenset[str]]:
        names = [family + part for part in _PARTS] if self.kinds[family] == "histogram" else [family]
        return {frozenset(name for name, _ in labels) for each in names for labels in self.samples.get(each, {})}

    def bounds(self, family: str) -> set[str]:
        return {value for labels in self.samples[family + "_bucket"] for name, value in labels if name == "le"}


def parse(text: str) -> Scrape:
    found = Scrape()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, told = line.split(" ", 3)
            found.helps[name] = told
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ", 3)
            assert name not in found.kinds
            found.kinds[name] = kind
        else:
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            labels = frozenset(_LABEL.findall(match[2] or ""))
            samples = found.samples.setdefault(match[1], {})
            assert labels not in samples, line
            samples[labels] = float(match[3])
    return found


def scrape(url: str) -> Scrape:
    with urllib.request.urlopen(f"{url}/metrics", timeout=SECONDS) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4; charset=utf-8")
        return parse(answer.read().decode())


def sum_of(found: Scrape, name: str, **labels: str) -> float:
    """Return the sum of the samples that have these labels."""
    wanted = set(labels.items())
    return sum(value for have, value in found.samples[name].items() if wanted <= have)


def scrape_until(url: str, is_enough: Callable[[Scrape], bool]) -> Scrape:
    """Scrape until what a client has sent has come."""
    for _ in range(1_000):
        found = scrape(url)
        if is_enough(found):
            return found
    pytest.fail("it has not come")


class Client:
    """Calls by name."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __call__(self, path: str, request: Any, **metadata: str) -> bytes:
        call = self._channel.unary_unary(f"/etcdserverpb.{path}")
        pairs = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        return bytes(call(request.SerializeToString(), timeout=SECONDS, metadata=pairs))

    def stream(self, path: str, requests: Iterator[Any]) -> Any:
        return self._channel.stream_stream(f"/etcdserverpb.{path}", lambda request: request.SerializeToString())(
            requests, timeout=SECONDS
        )


@contextmanager
def client(server: Serving) -> Iterator[Client]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.endpoint, options) as channel:
        yield Client(channel)


def exercise(call: Client) -> None:
    """Move what can be moved by unary calls."""
    call("KV/Put", rpc.PutRequest(key=b"a", value=b"1234"), client_api_version="3.6")
    call("KV/Put", rpc.PutRequest(key=b"b", value=b"1"), client_api_version="3.6")
    call("KV/Range", rpc.RangeRequest(key=b"a"), client_api_version="3.6")
    call("KV/DeleteRange", rpc.DeleteRangeRequest(key=b"b"), client_api_version="3.6")
    txn = rpc.TxnRequest()
    txn.success.add().request_put.key = b"c"
    txn.success.add().request_range.key = b"c"
    call("KV/Txn", txn, client_api_version="3.6")
    for lease in (7, 8):
        call("Lease/LeaseGrant", rpc.LeaseGrantRequest(ID=lease, TTL=60), client_api_version="3.6")
    call("Lease/LeaseRevoke", rpc.LeaseRevokeRequest(ID=7), client_api_version="3.6")
    with pytest.raises(grpc.RpcError):
        call("KV/Compact", rpc.CompactionRequest(revision=100), client_api_version="3.6")
    call("KV/Compact", rpc.CompactionRequest(revision=3), client_api_version="3.6")


def test_every_name_that_alerts_read_is_there() -> None:
    with serve() as server, client(server) as call:
        call("KV/Put", rpc.PutRequest(key=b"a"))
        found = scrape(server.url)
    assert [name for name in ALERTS if name not in found.kinds] == []
    assert all(found.samples.get(name) or found.samples[f"{name}_count"] for name in ALERTS)


def test_operations_move_them() -> None:
    with serve() as server, client(server) as call:
        before = scrape(server.url)
        exercise(call)
        after = scrape(server.url)
        store = server.store.stats()

        def moved(name: str, **labels: str) -> float:
            return after.value(name, **labels) - before.value(name, **labels)

        expected = {
            "etcd_mvcc_put_total": 3,
            "etcd_mvcc_range_total": 3,
            "etcd_mvcc_delete_total": 1,
            "etcd_mvcc_txn_total": 1,
            "etcd_debugging_mvcc_keys_total": 2,
            "etcd_debugging_mvcc_total_put_size_in_bytes": 8,
            "etcd_debugging_mvcc_current_revision": 4,
            "etcd_debugging_mvcc_compact_revision": 4,
            "etcd_debugging_lease_granted_total": 2,
            "etcd_debugging_lease_revoked_total": 1,
            "etcd_server_proposals_pending": 0,
            "etcd_server_proposals_failed_total": 0,
        }
        assert {name: moved(name) for name in expected} == expected
        assert moved("etcd_server_proposals_applied_total") == moved("etcd_server_proposals_committed_total") >= 8
        assert moved("etcd_disk_wal_fsync_duration_seconds_count") >= 8
        assert moved("etcd_disk_backend_commit_duration_seconds_count") >= 8
        assert moved("etcd_disk_backend_commit_duration_seconds_bucket", le="+Inf") >= 8
        assert after.value("etcd_server_has_leader") == 1
        assert after.value("etcd_mvcc_db_total_size_in_bytes") == store.file_bytes
        assert after.value("etcd_mvcc_db_total_size_in_use_in_bytes") == store.used_bytes
        assert after.value("etcd_server_client_requests_total", type="unary", client_api_version="3.6") == 10
        assert after.value("process_resident_memory_bytes") > 1 << 20
        kv = {"grpc_service": "etcdserverpb.KV", "grpc_type": "unary"}
        assert moved("grpc_server_started_total", grpc_method="Compact", **kv) == 2
        assert moved("grpc_server_handled_total", grpc_method="Compact", grpc_code="OK", **kv) == 1
        assert moved("grpc_server_handled_total", grpc_method="Compact", grpc_code="OutOfRange", **kv) == 1
        assert moved("grpc_server_msg_received_total", grpc_method="Compact", **kv) == 2
        assert moved("grpc_server_msg_sent_total", grpc_method="Compact", **kv) == 2
        assert moved("grpc_server_handled_total", grpc_method="Put", grpc_code="OK", **kv) == 2


def test_what_takes_long_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server, client(server) as call:
        store, seen = server.server.node.store, []
        defragment = store.defragment

        def looked_at() -> object:
            seen.append(scrape(server.url).value("etcd_disk_defrag_inflight"))
            return defragment()

        monkeypatch.setattr(store, "defragment", looked_at)
        call("Maintenance/Defragment", rpc.DefragmentRequest())
        call("Maintenance/Hash", rpc.HashRequest())
        for _ in range(2):
            call("Maintenance/HashKV", rpc.HashKVRequest())
        with grpc.insecure_channel(f"{server.host}:{server.port}") as channel:
            snapshot = channel.unary_stream("/etcdserverpb.Maintenance/Snapshot")
            assert len(list(snapshot(b"", timeout=SECONDS))) >= 2
        found = scrape(server.url)
        assert [*seen, found.value("etcd_disk_defrag_inflight")] == [1, 0]
        timed = {
            "etcd_disk_backend_defrag_duration_seconds": 1,
            "etcd_disk_backend_snapshot_duration_seconds": 1,
            "etcd_mvcc_hash_duration_seconds": 1,
            "etcd_mvcc_hash_rev_duration_seconds": 2,
        }
        assert {name: found.value(f"{name}_count") for name in timed} == timed


def test_bytes_of_messages_are_counted() -> None:
    with serve() as server, client(server) as call:
        before = scrape(server.url)
        request = rpc.PutRequest(key=b"k", value=b"v" * 1_000)
        answer = call("KV/Put", request)
        after = scrape(server.url)
        name = "etcd_network_client_grpc_received_bytes_total"
        assert after.value(name) - before.value(name) == request.ByteSize()
        name = "etcd_network_client_grpc_sent_bytes_total"
        assert after.value(name) - before.value(name) == len(answer)


def test_streams_watches_and_events_are_counted() -> None:
    with serve() as server, client(server) as call:
        done = threading.Event()

        def requests() -> Iterator[rpc.WatchRequest]:
            for _ in range(2):
                request = rpc.WatchRequest()
                request.create_request.key = b"k"
                yield request
            done.wait(SECONDS)

        answers = call.stream("Watch/Watch", requests())
        for _ in range(2):
            next(answers)
        call("KV/Put", rpc.PutRequest(key=b"k"))
        for _ in range(2):
            next(answers)
        found = scrape(server.url)
        assert found.value("etcd_debugging_mvcc_watch_stream_total") == 1
        assert found.value("etcd_debugging_mvcc_watcher_total") == 2
        assert found.value("etcd_debugging_mvcc_slow_watcher_total") == 0
        assert found.value("etcd_debugging_mvcc_events_total") == 2
        watch = {"grpc_method": "Watch", "grpc_service": "etcdserverpb.Watch", "grpc_type": "bidi_stream"}
        assert found.value("grpc_server_started_total", **watch) == 1
        assert found.value("grpc_server_msg_received_total", **watch) == 2
        assert found.value("grpc_server_msg_sent_total", **watch) == 4
        assert sum_of(found, "grpc_server_handled_total", **watch) == 0
        done.set()
        answers.cancel()
        found = scrape_until(server.url, lambda found: sum_of(found, "grpc_server_handled_total", **watch) == 1)
        assert found.value("grpc_server_handled_total", grpc_code="Canceled", **watch) == 1
        assert found.value("etcd_debugging_mvcc_watch_stream_total") == 0
        assert found.value("etcd_debugging_mvcc_watcher_total") == 0


def test_leases_that_expire_are_counted() -> None:
    clock = FakeClock()
    with serve(clock=clock) as server, client(server) as call:
        call("Lease/LeaseGrant", rpc.LeaseGrantRequest(ID=7, TTL=10))
        call("Lease/LeaseGrant", rpc.LeaseGrantRequest(ID=8, TTL=100))
        call("KV/Put", rpc.PutRequest(key=b"k", lease=7))
        answers = call.stream("Lease/LeaseKeepAlive", iter([rpc.LeaseKeepAliveRequest(ID=8)]))
        assert len(list(answers)) == 1
        with server.store.watch(b"k", start_revision=3) as watcher:
            clock.advance(11)
            assert watcher.next_batch(timeout=SECONDS) is not None
        found = scrape(server.url)
        assert found.value("etcd_debugging_lease_renewed_total") == 1
        times = [found.value("etcd_debugging_lease_ttl_total_bucket", le=most) for most in ("8", "16", "64", "128")]
        assert times == [0, 1, 1, 2]
        assert found.value("etcd_debugging_lease_ttl_total_sum") == 110
        assert found.value("etcd_debugging_server_lease_expired_total") == 1


def test_health_checks_are_counted() -> None:
    with serve() as server, client(server) as call:
        urllib.request.urlopen(f"{server.url}/health", timeout=SECONDS).close()
        call("Maintenance/Alarm", rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, alarm=rpc.NOSPACE))
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.url}/health", timeout=SECONDS)
        caught.value.close()
        found = scrape(server.url)
        assert (found.value("etcd_server_health_success"), found.value("etcd_server_health_failures")) == (1, 1)


def test_versions_that_clients_make_up_are_one_after_a_hundred() -> None:
    with serve() as server, client(server) as call:
        for number in range(120):
            call("KV/Range", rpc.RangeRequest(key=b"k"), client_api_version=str(number))
        found = scrape(server.url).samples["etcd_server_client_requests_total"]
    assert len(found) == 101
    assert found[frozenset({("client_api_version", "other"), ("type", "unary")})] == 20


def test_only_extensive_metrics_have_durations() -> None:
    with serve() as server:
        assert "grpc_server_handling_seconds" not in scrape(server.url).kinds
    with serve(options=ServerOptions(has_handling_seconds=True)) as server, client(server) as call:
        call("KV/Put", rpc.PutRequest(key=b"k"))
        found = scrape(server.url)
    labels = {"grpc_method": "Put", "grpc_service": "etcdserverpb.KV", "grpc_type": "unary"}
    assert found.value("grpc_server_handling_seconds_count", **labels) == 1
    assert found.value("grpc_server_handling_seconds_bucket", le="10", **labels) == 1
    assert 0 < found.value("grpc_server_handling_seconds_sum", **labels) < 10


def test_who_passes_a_limit_is_counted() -> None:
    with serve(options=ServerOptions(transport=TransportLimits(control_frames_max=10))) as server:
        with socket.create_connection((server.host, server.port), SECONDS) as hostile:
            hostile.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" * 20)
            while hostile.recv(1_000):
                pass
        found = scrape(server.url)
        assert found.samples["mvccstore_server_refused_total"] == {frozenset({("limit", "control_frames_max")}): 1}


@pytest.mark.etcd
@NEEDS_ORACLE[1]
def test_etcdctl_check_datascale_reads_them() -> None:
    binary = find_oracle().etcdctl
    assert binary is not None
    with serve() as server:
        command = [binary, "--endpoints", server.endpoint, "check", "datascale", "--load=s"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "PASS: Approximate system memory used" in ended.stdout


def test_a_port_for_metrics_alone_has_them() -> None:
    async def run() -> int:
        with mvccstore.open() as store:
            async with Server(store, ServerOptions()) as server:
                port = await server.listen(protocols="http")
                found = await asyncio.to_thread(scrape, f"http://127.0.0.1:{port}")
                return int(found.value("etcd_server_has_leader"))

    assert asyncio.run(run()) == 1


def test_scrapes_at_once_are_all_answered() -> None:
    with serve() as server:
        found: list[Scrape] = []
        threads = [threading.Thread(target=lambda: found.append(scrape(server.url))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert len(found) == 8


@pytest.fixture(scope="module")
def extensive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running_pair(
        tmp_path_factory.mktemp("metrics"),
        arguments=["--metrics=extensive"],
        options=replace(PAIR_OPTIONS, has_handling_seconds=True),
    ) as pair:
        yield pair


def moved(before: Scrape, after: Scrape, name: str) -> dict[Labels, float]:
    """Return by how much each sample has moved that did."""
    was = before.samples.get(name, {})
    changes = {labels: value - was.get(labels, 0.0) for labels, value in after.samples[name].items()}
    return {labels: change for labels, change in changes.items() if change}


@pytest.mark.etcd
@NEEDS_ORACLE[1]
def test_all_are_as_etcd_has_them(extensive: Pair) -> None:
    scrapes, moves = [], []
    for side in extensive.sides:
        endpoint = side.endpoint.target
        before = scrape(f"http://{endpoint}")
        with grpc.insecure_channel(endpoint, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            exercise(Client(channel))
        after = scrape(f"http://{endpoint}")
        scrapes.append(after)
        moves.append({name: moved(before, after, name) for name in MOVED})
    theirs, ours = scrapes
    names = [name for name in ours.kinds if not name.startswith("mvccstore_")]
    assert [name for name in names if name not in theirs.kinds] == []
    assert set(ALERTS) <= set(names)
    for name in names:
        assert (name, ours.kinds[name], ours.helps[name].rstrip(".")) == (
            name,
            theirs.kinds[name],
            theirs.helps[name].rstrip("."),
        )
        assert (name, ours.label_names(name)) == (name, theirs.label_names(name))
        if ours.kinds[name] == "histogram":
            assert (name, ours.bounds(name)) == (name, theirs.bounds(name))
    assert moves[1] == moves[0]
