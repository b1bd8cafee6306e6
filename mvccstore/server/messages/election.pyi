# The types of package `v3electionpb`.
# Made by `make messages` from proto/mvccstore_election.proto; change that instead.

from google.protobuf.message import Message

from mvccstore.server.messages.kv import KeyValue
from mvccstore.server.messages.rpc import ResponseHeader

class LeaderKey(Message):
    name: bytes
    key: bytes
    rev: int
    lease: int
    def __init__(
        self,
        *,
        name: bytes = ...,
        key: bytes = ...,
        rev: int = ...,
        lease: int = ...,
    ) -> None: ...

class CampaignRequest(Message):
    name: bytes
    lease: int
    value: bytes
    def __init__(
        self,
        *,
        name: bytes = ...,
        lease: int = ...,
        value: bytes = ...,
    ) -> None: ...

class CampaignResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        leader: LeaderKey | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def leader(self) -> LeaderKey: ...

class ProclaimRequest(Message):
    value: bytes
    def __init__(
        self,
        *,
        leader: LeaderKey | None = ...,
        value: bytes = ...,
    ) -> None: ...
    @property
    def leader(self) -> LeaderKey: ...

class ProclaimResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class LeaderRequest(Message):
    name: bytes
    def __init__(
        self,
        *,
        name: bytes = ...,
    ) -> None: ...

class LeaderResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        kv: KeyValue | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def kv(self) -> KeyValue: ...

class ResignRequest(Message):
    def __init__(
        self,
        *,
        leader: LeaderKey | None = ...,
    ) -> None: ...
    @property
    def leader(self) -> LeaderKey: ...

class ResignResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
