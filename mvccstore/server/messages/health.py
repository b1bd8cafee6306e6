"""The messages of package `grpc.health.v1`.

Made by `make messages` from proto/mvccstore_health.proto; change that instead.
"""

from __future__ import annotations

from mvccstore.server.messages.pool import message

HealthCheckRequest = message("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = message("grpc.health.v1.HealthCheckResponse")
HealthListRequest = message("grpc.health.v1.HealthListRequest")
HealthListEntry = message("grpc.health.v1.HealthListEntry")
HealthListResponse = message("grpc.health.v1.HealthListResponse")
