"""gRPC's own health service: serving, as long as the server is."""

from __future__ import annotations

from mvccstore.server.messages import health
from mvccstore.server.node import Node
from mvccstore.server.transport.call import Call, Method
from mvccstore.server.transport.status import Code, RpcError

_SERVING = health.HealthCheckResponse(status=health.HealthCheckResponse.SERVING).SerializeToString()
_NOT_SERVING = health.HealthCheckResponse(status=health.HealthCheckResponse.NOT_SERVING).SerializeToString()
_ALL_SERVING = health.HealthListResponse(
    statuses=[health.HealthListEntry(key="", value=health.HealthCheckResponse.FromString(_SERVING))]
).SerializeToString()
_UNKNOWN = health.HealthCheckResponse(status=health.HealthCheckResponse.SERVICE_UNKNOWN).SerializeToString()


class Health:
    """grpc.health.v1."""

    def __init__(self, node: Node) -> None:
        self._watching: dict[Call, None] = {}
        node.at_stop(self._stop)

    def methods(self) -> list[Method]:
        """Return the handlers."""
        decode = health.HealthCheckRequest.FromString
        return [
            Method("/grpc.health.v1.Health/Check", decode, self.check),
            Method("/grpc.health.v1.Health/Watch", decode, self.watch, is_server_streaming=True),
            Method("/grpc.health.v1.Health/List", health.HealthListRequest.FromString, self.list),
        ]

    def check(self, _call: Call, message: health.HealthCheckRequest) -> bytes:
        """Say that the server as a whole serves; it knows of no service by itself."""
        if message.service:
            raise RpcError(Code.NOT_FOUND, "unknown service")
        return _SERVING

    def list(self, _call: Call, _message: health.HealthListRequest) -> bytes:
        """Say it of all services, which is the one of no name."""
        return _ALL_SERVING

    def watch(self, call: Call, message: health.HealthCheckRequest) -> None:
        """Say it, and say when that changes."""
        call.send(_UNKNOWN if message.service else _SERVING)
        self._watching[call] = None
        call.on_cancel = lambda: self._watching.pop(call, None) and None

    def _stop(self) -> None:
        for call in self._watching:
            call.send(_NOT_SERVING)
            call.fail(RpcError(Code.UNAVAILABLE, "etcdserver: server stopped"))
        self._watching.clear()
