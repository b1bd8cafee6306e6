# The types of package `leasepb`.
# Made by `make messages` from proto/mvccstore_storage.proto; change that instead.

from google.protobuf.message import Message

class Lease(Message):
    ID: int
    TTL: int
    RemainingTTL: int
    def __init__(
        self,
        *,
        ID: int = ...,
        TTL: int = ...,
        RemainingTTL: int = ...,
    ) -> None: ...
