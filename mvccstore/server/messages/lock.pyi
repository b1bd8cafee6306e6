# The types of package `v3lockpb`.
# Made by `make messages` from proto/mvccstore_lock.proto; change that instead.

from google.protobuf.message import Message

from mvccstore.server.messages.rpc import ResponseHeader

class LockRequest(Message):
    name: bytes
    lease: int
    def __init__(
        self,
        *,
        name: bytes = ...,
        lease: int = ...,
    ) -> None: ...

class LockResponse(Message):
    key: bytes
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        key: bytes = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class UnlockRequest(Message):
    key: bytes
    def __init__(
        self,
        *,
        key: bytes = ...,
    ) -> None: ...

class UnlockResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
