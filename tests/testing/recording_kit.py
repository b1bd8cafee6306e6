"""Programs that talk to an etcd, and what they saw: to be played while it is recorded, and again from the cassette."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mvccstore.server.messages import rpc
from mvccstore.testing import etcd, record
from mvccstore.testing.etcd_server import Etcd
from mvccstore.testing.recorder import Recorder
from tests.wire.client import Client, Endpoint, RpcFailure, Stream, StreamEnd

KV, LEASE, AUTH = "/etcdserverpb.KV/", "/etcdserverpb.Lease/", "/etcdserverpb.Auth/"
WATCH, KEEP_ALIVE = "/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"
SNAPSHOT, STATUS = "/etcdserverpb.Maintenance/Snapshot", "/etcdserverpb.Maintenance/Status"


def client_of(server: Etcd | Recorder) -> Client:
    return Client(Endpoint(server.host, server.port))


@contextmanager
def recorded(path: Path, **settings: Any) -> Iterator[tuple[Recorder, Client]]:
    """Record one of our own servers, which answers in a millisecond."""
    with etcd(**settings) as server, record(server.endpoint, path) as recorder, client_of(recorder) as client:
        yield recorder, client
    assert recorder.notes == []


@contextmanager
def replayed(path: Path, **settings: Any) -> Iterator[tuple[Etcd, Client]]:
    with etcd(replay=path, **settings) as server, client_of(server) as client:
        yield server, client


def put(key: bytes, value: bytes = b"", **fields: Any) -> rpc.PutRequest:
    return rpc.PutRequest(key=key, value=value, **fields)


def get(key: bytes, **fields: Any) -> rpc.RangeRequest:
    return rpc.RangeRequest(key=key, **fields)


def create(key: bytes, **fields: Any) -> rpc.WatchRequest:
    return rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key, **fields))


def cancel(watch_id: int) -> rpc.WatchRequest:
    return rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id))


def outcome(call: Callable[[], Any]) -> bytes | str:
    """Return the bytes that were answered, or how it failed."""
    try:
        answer = call()
    except (RpcFailure, StreamEnd) as error:
        return repr(error)
    return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString(deterministic=True))


def all_of(stream: Stream) -> list[bytes | str]:
    """Return what a stream says, to its end."""
    found: list[bytes | str] = []
    while not found or isinstance(found[-1], bytes):
        found.append(outcome(stream.receive))
    return found


def run(*command: str) -> str:
    """Return what a command prints and its exit status."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return f"{done.stdout}{done.stderr}exit {done.returncode}"
