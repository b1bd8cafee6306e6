"""What of a call is secret: passwords, tokens, and metadata that is nobody's business."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from google.protobuf.message import Message

REDACTED = "redacted"
"""What stands in a cassette where a secret was."""

SECRET_FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "etcdserverpb.AuthenticateRequest": ("password",),
        "etcdserverpb.AuthenticateResponse": ("token",),
        "etcdserverpb.AuthUserAddRequest": ("password", "hashedPassword"),
        "etcdserverpb.AuthUserChangePasswordRequest": ("password", "hashedPassword"),
    }
)
"""By the full name of a message, its fields that are secret."""

_NOISE = frozenset(
    {
        *(b"content-type", b"te", b"user-agent", b"client-api-version", b"grpc-timeout", b"grpc-encoding"),
        *(b"grpc-accept-encoding", b"accept-encoding", b"content-length", b"accept", b"host", b"connection"),
        *(b"grpcgateway-accept", b"grpcgateway-content-type", b"grpcgateway-host", b"grpcgateway-user-agent"),
    }
)
_PUBLIC = frozenset({b"hasleader"})


def redacted(message: Message) -> Message:
    """Return a message whose secrets are replaced by `REDACTED`: itself, if it has none."""
    present = [name for name in SECRET_FIELDS.get(message.DESCRIPTOR.full_name, ()) if getattr(message, name)]
    if not present:
        return message
    copy = type(message)()
    copy.CopyFrom(message)
    for name in present:
        setattr(copy, name, REDACTED)
    return copy


def told_metadata(pairs: tuple[tuple[bytes, bytes], ...], *, keeps_secrets: bool) -> dict[str, str]:
    """Return of a call's metadata what says something of the call. Values may be anybody's secrets: most are replaced."""
    return {
        name.decode("latin-1"): value.decode("latin-1") if keeps_secrets or name in _PUBLIC else REDACTED
        for name, value in pairs
        if not name.startswith(b":") and name not in _NOISE
    }
