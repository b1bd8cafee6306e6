"""A call that nothing of a transport is behind, for tests of what services make of one."""

from __future__ import annotations

from mvccstore.server.transport.call import Call, Metadata, Method, Peer, Router


class PlainCall(Call):
    """What is sent to it is refused: who expects an answer overrides what takes it."""

    def __init__(self, metadata: Metadata | None = None, peer: Peer | None = None) -> None:
        method = Method("/test.Test/Call", bytes, lambda _call, _request: None)
        super().__init__(Router({}), method, metadata or Metadata(), peer or Peer("the test"))

    @property
    def queued_bytes(self) -> int:
        return 0

    def reply(self, message: bytes) -> None:
        raise NotImplementedError

    send = send_part = fail = reply  # type: ignore[assignment]

    def begin(self, length: int) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError
