# The types of package `mvccpb`.
# Made by `make messages` from proto/mvccstore_kv.proto; change that instead.

from typing import ClassVar

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

class KeyValue(Message):
    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    value: bytes
    lease: int
    def __init__(
        self,
        *,
        key: bytes = ...,
        create_revision: int = ...,
        mod_revision: int = ...,
        version: int = ...,
        value: bytes = ...,
        lease: int = ...,
    ) -> None: ...

class Event(Message):
    EventType: ClassVar[EnumTypeWrapper]
    PUT: ClassVar[int]
    DELETE: ClassVar[int]
    type: int
    def __init__(
        self,
        *,
        type: int = ...,
        kv: KeyValue | None = ...,
        prev_kv: KeyValue | None = ...,
    ) -> None: ...
    @property
    def kv(self) -> KeyValue: ...
    @property
    def prev_kv(self) -> KeyValue: ...
