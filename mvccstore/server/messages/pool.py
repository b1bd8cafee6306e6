"""Message classes in a descriptor pool of their own.

protobuf's default pool holds one definition per full name in a process. Other etcd clients register theirs
there (`mvccpb.KeyValue`, `etcdserverpb.RangeRequest`, `grpc.health.v1.Health`), written a little differently,
and the second of two to be imported fails. A server that is embedded in a test process has to live with any of
them, so nothing here touches the default pool.

Classes of different pools do not mix: a message of another package's `RangeRequest` is not one of ours, and
goes over as bytes (`RangeRequest.FromString(other.SerializeToString())`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import google.protobuf
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from mvccstore.server.messages.descriptors import FILES

PROTOBUF_MIN = (5, 26)
"""The first release of protobuf 5; older ones are past their support, and are not tested."""


def check_protobuf(version: str) -> None:
    """Raise `ImportError` if `version`, protobuf's, is too old for these messages."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < PROTOBUF_MIN:
        wanted = ".".join(map(str, PROTOBUF_MIN))
        msg = f"protobuf is {version}, and mvccstore.server needs {wanted} or newer: pip install 'mvccstore[server]'"
        raise ImportError(msg)


check_protobuf(google.protobuf.__version__)
_POOL = DescriptorPool()
_SERVICES: list[str] = []
for _file in FileDescriptorSet.FromString(FILES).file:
    _POOL.AddSerializedFile(_file.SerializeToString())
    _SERVICES.extend(f"{_file.package}.{_service.name}" for _service in _file.service)


def message(name: str) -> type[Message]:
    """Return the class of the message with this full name; the same one every time."""
    return GetMessageClass(_POOL.FindMessageTypeByName(name))


def enum(name: str) -> EnumTypeWrapper:
    """Return the names and numbers of the enum with this full name."""
    return EnumTypeWrapper(_POOL.FindEnumTypeByName(name))


def services() -> Iterator[ServiceDescriptor]:
    """Yield every service, in the order of the files."""
    for name in _SERVICES:
        yield _POOL.FindServiceByName(name)
