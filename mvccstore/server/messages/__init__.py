"""The messages of the wire: classes for protobuf, the table of methods, hand-made encodings, JSON.

`rpc` `kv` `auth` `lock` `election` `health` `storage` hold the classes of one `proto/*.proto` each, under
etcd's own names. What a message means is decided elsewhere: nothing in this folder knows a store.

>>> METHODS["/etcdserverpb.Watch/Watch"].server_streaming
True
>>> rpc.RangeRequest(key=b"a", limit=1).SerializeToString()
b'\\n\\x01a\\x18\\x01'
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from mvccstore.server.messages import auth, election, health, kv, lock, rpc, storage
from mvccstore.server.messages.pool import services

__all__ = ["METHODS", "MethodType", "auth", "election", "health", "kv", "lock", "rpc", "storage"]


class MethodType(NamedTuple):
    """What a method takes and answers."""

    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool


METHODS: Mapping[str, MethodType] = MappingProxyType(
    {
        f"/{service.full_name}/{method.name}": MethodType(
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )
        for service in services()
        for method in service.methods
    }
)
"""Every method by its full path, such as `/etcdserverpb.KV/Range`; read off the descriptors."""
