"""A real etcd to compare with: asked through its JSON gateway, with our requests and rows."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mvccstore import KeyRange, Keys, KeyValue
from mvccstore.types import Compare, DeleteRequest, PutRequest, RangeRequest, Request, TxnRequest
from tests.oracle.process import QUICK_ELECTION, EtcdProcess
from tests.oracle.process import running_etcd as running_process
from tests.wire.client import Client, Endpoint


class EtcdError(Exception):
    """What etcd refused, and in which words."""


@contextmanager
def running_etcd(folder: Path) -> Iterator[Etcd]:
    """Start an etcd of one member in a folder, and end it with the block."""
    with running_process(folder, QUICK_ELECTION) as process:
        etcd = Etcd(process)
        try:
            yield etcd
        finally:
            etcd.close()


class Etcd:
    """A client: one call, one answer as etcd gives it."""

    def __init__(self, process: EtcdProcess) -> None:
        self.version = process.oracle.version
        self._process = process
        self._client = http.client.HTTPConnection(process.host, process.port, timeout=10)
        self._peer = http.client.HTTPConnection(process.host, process.peer_port, timeout=10)

    def restart(self) -> None:
        """Stop it in an orderly way and start it again on its data."""
        self.close()
        self._process.stop()
        self._process.start()

    def close(self) -> None:
        """Hang up; the next call connects again."""
        self._client.close()
        self._peer.close()

    def call(self, path: str, message: dict[str, Any]) -> dict[str, Any]:
        """Call a method of the gateway."""
        self._client.request("POST", f"/v3/{path}", json.dumps(message))
        response = self._client.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise EtcdError(answer["message"])
        return answer

    def events(self, start_revision: int, end_revision: int) -> list[tuple[str, KeyValue]]:
        """Watch all keys and return the type and row of each event, up to those of `end_revision`."""
        everything = text(b"\0")
        create = {"key": everything, "range_end": everything, "start_revision": start_revision}
        found: list[tuple[str, KeyValue]] = []
        with Client(Endpoint(self._process.host, self._process.port)) as client:
            lines = client.lines("/v3/watch", {"create_request": create})
            while not found or found[-1][1].mod_revision < end_revision:
                result = lines.receive()["result"]
                assert not result.get("canceled"), result
                for event in result.get("events", []):
                    row = row_of(event["kv"])
                    assert row is not None
                    found.append((event.get("type", "PUT").lower(), row))
        return found

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
