# The types of package `authpb`.
# Made by `make messages` from proto/mvccstore_auth.proto; change that instead.

from collections.abc import Iterable
from typing import ClassVar

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer, RepeatedScalarFieldContainer
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

class UserAddOptions(Message):
    no_password: bool
    def __init__(
        self,
        *,
        no_password: bool = ...,
    ) -> None: ...

class User(Message):
    name: bytes
    password: bytes
    def __init__(
        self,
        *,
        name: bytes = ...,
        password: bytes = ...,
        roles: Iterable[str] = ...,
        options: UserAddOptions | None = ...,
    ) -> None: ...
    @property
    def roles(self) -> RepeatedScalarFieldContainer[str]: ...
    @property
    def options(self) -> UserAddOptions: ...

class Permission(Message):
    Type: ClassVar[EnumTypeWrapper]
    READ: ClassVar[int]
    WRITE: ClassVar[int]
    READWRITE: ClassVar[int]
    permType: int
    key: bytes
    range_end: bytes
    def __init__(
        self,
        *,
        permType: int = ...,
        key: bytes = ...,
        range_end: bytes = ...,
    ) -> None: ...

class Role(Message):
    name: bytes
    def __init__(
        self,
        *,
        name: bytes = ...,
        keyPermission: Iterable[Permission] = ...,
    ) -> None: ...
    @property
    def keyPermission(self) -> RepeatedCompositeFieldContainer[Permission]: ...
