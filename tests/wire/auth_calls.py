"""Operations of the Auth service by short names, and operations as a user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mvccstore.server.auth.gate import AuthOptions
from mvccstore.server.messages import auth, rpc
from tests.wire.differential import Operation, Post, Request, Streaming, StreamingPost, Unary
from tests.wire.pair import OPTIONS, Pair, running_pair

AUTH = "/etcdserverpb.Auth"
READ, WRITE, READWRITE = 0, 1, 2
COST = 4
"""Of bcrypt: a millisecond."""

OperationT = TypeVar("OperationT", Unary, Streaming, Post, StreamingPost)


def call(method: str, request: Request) -> Unary:
    return Unary(f"{AUTH}/{method}", request)


def enable() -> Unary:
    return call("AuthEnable", rpc.AuthEnableRequest())


def disable() -> Unary:
    return call("AuthDisable", rpc.AuthDisableRequest())


def auth_status() -> Unary:
    return call("AuthStatus", rpc.AuthStatusRequest())


def authenticate(name: str, password: str = "") -> Unary:
    return call("Authenticate", rpc.AuthenticateRequest(name=name, password=password))


def user_add(name: str, password: str = "", **options: Any) -> Unary:
    return call("UserAdd", rpc.AuthUserAddRequest(name=name, password=password, **options))


def user_add_without_password(name: str, password: str = "") -> Unary:
    return user_add(name, password, options=auth.UserAddOptions(no_password=True))


def user_get(name: str) -> Unary:
    return call("UserGet", rpc.AuthUserGetRequest(name=name))


def user_list() -> Unary:
    return call("UserList", rpc.AuthUserListRequest())


def user_delete(name: str) -> Unary:
    return call("UserDelete", rpc.AuthUserDeleteRequest(name=name))


def change_password(name: str, password: str = "", hashed: str = "") -> Unary:
    return call(
        "UserChangePassword", rpc.AuthUserChangePasswordRequest(name=name, password=password, hashedPassword=hashed)
    )


def grant_role(user: str, role: str) -> Unary:
    return call("UserGrantRole", rpc.AuthUserGrantRoleRequest(user=user, role=role))


def revoke_role(user: str, role: str) -> Unary:
    return call("UserRevokeRole", rpc.AuthUserRevokeRoleRequest(name=user, role=role))


def role_add(name: str) -> Unary:
    return call("RoleAdd", rpc.AuthRoleAddRequest(name=name))


def role_get(name: str) -> Unary:
    return call("RoleGet", rpc.AuthRoleGetRequest(role=name))


def role_list() -> Unary:
    return call("RoleList", rpc.AuthRoleListRequest())


def role_delete(name: str) -> Unary:
    return call("RoleDelete", rpc.AuthRoleDeleteRequest(role=name))


def grant_permission(role: str, kind: int, key: bytes, range_end: bytes = b"") -> Unary:
    permission = auth.Permission(permType=kind, key=key, range_end=range_end)
    return call("RoleGrantPermission", rpc.AuthRoleGrantPermissionRequest(name=role, perm=permission))


def revoke_permission(role: str, key: bytes, range_end: bytes = b"") -> Unary:
    return call("RoleRevokePermission", rpc.AuthRoleRevokePermissionRequest(role=role, key=key, range_end=range_end))


def showing(number: int, operation: OperationT) -> OperationT:
    """Return an operation with the `number`-th token that the server gave; the first is 1."""
    if isinstance(operation, Unary | Streaming):
        return replace(operation, metadata=lambda names: [("token", names.value("token", number))])
    return replace(operation, headers=lambda names: {"Authorization": names.value("token", number)})


def showing_text(text: str, operation: OperationT, name: str = "token") -> OperationT:
    """Return an operation with something that need be no token."""
    if isinstance(operation, Unary | Streaming):
        return replace(operation, metadata=[(name, text)])
    return replace(operation, headers={name: text})


ROOT = 1
"""The number of root's token after `ENABLED`."""
ENABLED: tuple[Operation, ...] = (
    user_add("root", "pw"),
    grant_role("root", "root"),
    enable(),
    authenticate("root", "pw"),
)


def as_root(*operations: OperationT) -> tuple[OperationT, ...]:
    """Return operations as root, after `ENABLED`."""
    return tuple(showing(ROOT, operation) for operation in operations)


@contextmanager
def running_auth_pair(folder: Path, token: str = "simple") -> Iterator[Pair]:
    """Start an etcd and a server of ours, both empty, with cheap passwords."""
    options = replace(OPTIONS, auth=AuthOptions(token=token, bcrypt_cost=COST))
    arguments = (f"--bcrypt-cost={COST}", f"--auth-token={token}")
    with running_pair(folder, engine="memory", arguments=arguments, options=options) as pair:
        yield pair
