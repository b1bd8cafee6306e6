# The types of package `grpc.health.v1`.
# Made by `make messages` from proto/mvccstore_health.proto; change that instead.

from typing import ClassVar

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
