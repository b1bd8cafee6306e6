# The types of package `grpc.health.v1`.
# Made by `make messages` from proto/mvccstore_health.proto; change that instead.

from collections.abc import Iterable
from typing import ClassVar

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

class HealthCheckRequest(Message):
    service: str
    def __init__(
        self,
        *,
        service: str = ...,
    ) -> None: ...

class HealthCheckResponse(Message):
    ServingStatus: ClassVar[EnumTypeWrapper]
    UNKNOWN: ClassVar[int]
    SERVING: ClassVar[int]
    NOT_SERVING: ClassVar[int]
    SERVICE_UNKNOWN: ClassVar[int]
    status: int
    def __init__(
        self,
        *,
        status: int = ...,
    ) -> None: ...

class HealthListRequest(Message):
    def __init__(self) -> None: ...

class HealthListEntry(Message):
    key: str
    def __init__(
        self,
        *,
        key: str = ...,
        value: HealthCheckResponse | None = ...,
    ) -> None: ...
    @property
    def value(self) -> HealthCheckResponse: ...

class HealthListResponse(Message):
    def __init__(
        self,
        *,
        statuses: Iterable[HealthListEntry] = ...,
    ) -> None: ...
    @property
    def statuses(self) -> RepeatedCompositeFieldContainer[HealthListEntry]: ...
