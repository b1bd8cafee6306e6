"""The Auth service: users, roles, permissions, tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mvccstore.server.auth.accounts import Accounts, Change
from mvccstore.server.auth.passwords import check_length, cut, given_hash
from mvccstore.server.auth.permissions import READWRITE, Permission
from mvccstore.server.auth.records import ROOT
from mvccstore.server.auth.tokens import NOBODY
from mvccstore.server.errors import Refusal
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node
from mvccstore.server.transport.call import Call, Method
from mvccstore.server.transport.status import RpcError

_log = logging.getLogger("mvccstore.server")

_SERVICE = "/etcdserverpb.Auth/"
_WHY = {
    Refusal.NO_PASSWORD_USER: "auth: authentication failed, password was given for no password user",
    Refusal.AUTH_FAILED: "auth: authentication failed, invalid user ID or password",
}
"""In etcd's words, as it logs them."""
_NAME_SHOWN_MAX = 200


class Auth:
    """etcd's Auth service."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._gate = node.auth
        self._accounts = node.auth.accounts
        self._passwords = node.passwords
        self._has_hashes = node.persona.has_password_hashes

    def methods(self) -> list[Method]:
        """Return the handlers."""
        return [
            Method(_SERVICE + "AuthEnable", rpc.AuthEnableRequest.FromString, self.enable),
            Method(_SERVICE + "AuthDisable", rpc.AuthDisableRequest.FromString, self.disable),
            Method(_SERVICE + "AuthStatus", rpc.AuthStatusRequest.FromString, self.status),
            Method(_SERVICE + "Authenticate", rpc.AuthenticateRequest.FromString, self.authenticate),
            Method(_SERVICE + "UserAdd", rpc.AuthUserAddRequest.FromString, self.user_add),
            Method(_SERVICE + "UserGet", rpc.AuthUserGetRequest.FromString, self.user_get),
            Method(_SERVICE + "UserList", rpc.AuthUserListRequest.FromString, self.user_list),
            Method(_SERVICE + "UserDelete", rpc.AuthUserDeleteRequest.FromString, self.user_delete),
            Method(
                _SERVICE + "UserChangePassword",
                rpc.AuthUserChangePasswordRequest.FromString,
                self.user_change_password,
            ),
            Method(_SERVICE + "UserGrantRole", rpc.AuthUserGrantRoleRequest.FromString, self.user_grant_role),
            Method(_SERVICE + "UserRevokeRole", rpc.AuthUserRevokeRoleRequest.FromString, self.user_revoke_role),
            Method(_SERVICE + "RoleAdd", rpc.AuthRoleAddRequest.FromString, self.role_add),
            Method(_SERVICE + "RoleGet", rpc.AuthRoleGetRequest.FromString, self.role_get),
            Method(_SERVICE + "RoleList", rpc.AuthRoleListRequest.FromString, self.role_list),
            Method(_SERVICE + "RoleDelete", rpc.AuthRoleDeleteRequest.FromString, self.role_delete),
            Method(
                _SERVICE + "RoleGrantPermission",
                rpc.AuthRoleGrantPermissionRequest.FromString,
                self.role_grant_permission,
            ),
            Method(
                _SERVICE + "RoleRevokePermission",
                rpc.AuthRoleRevokePermissionRequest.FromString,
                self.role_revoke_permission,
            ),
        ]

    def _change(self, call: Call, decide: Callable[[Accounts], Change | None]) -> bytes | None:
        return self._gate.change(call, decide, self._node.header, self._node.count_command)

    # On, off, and tokens

    def enable(self, call: Call, _message: rpc.AuthEnableRequest) -> bytes | None:
        """Turn authentication on, which takes a user `root` that has the role `root`."""
        return self._change(call, Accounts.enable)

    def disable(self, call: Call, _message: rpc.AuthDisableRequest) -> bytes | None:
        """Turn it off, and end all simple tokens."""
        return self._change(call, Accounts.disable)

    def status(self, call: Call, _message: rpc.AuthStatusRequest) -> bytes:
        """Say whether it is on, and at which revision users and roles are."""
        self._gate.check_root(call)
        response = rpc.AuthStatusResponse(enabled=self._accounts.is_enabled, authRevision=self._accounts.revision)
        return self._node.header() + response.SerializeToString()

    def authenticate(self, call: Call, message: rpc.AuthenticateRequest) -> None:
        """Give a token for a password."""
        # Whoever it is may have to wait: no more is kept than is looked at, of names that there are and of a password.
        name = message.name if message.name in self._accounts.users else None
        call.run(self._authenticate(name, message.name[:_NAME_SHOWN_MAX], cut(message.password)))

    async def _authenticate(self, name: str | None, shown: str, password: bytes) -> bytes:
        accounts = self._accounts
        while True:
            if not accounts.is_enabled:
                raise Refusal.AUTH_NOT_ENABLED.error()
            user = None if name is None else accounts.users.get(name)
            if user is not None and user.has_no_password:
                raise _refused(shown, Refusal.NO_PASSWORD_USER)
            revision = accounts.revision
            # It takes as long where there is no such user: else the time would tell which names there are.
            hashed = self._passwords.decoy if user is None else user.password
            if not await self._passwords.match(password, hashed) or user is None:
                raise _refused(shown, Refusal.AUTH_FAILED)
            if accounts.is_enabled and accounts.revision == revision:  # else the password may be another one by now
                break
        self._node.count_command()
        assert name is not None
        token = self._gate.tokens.assign(name, revision, self._node.raft_index)
        return self._node.header() + rpc.AuthenticateResponse(token=token).SerializeToString()

    # Users

    def user_add(self, call: Call, message: rpc.AuthUserAddRequest) -> bytes | None:
        """Add a user; of one with a password, etcd takes no hash."""
        name = message.name
        if message.options.no_password:
            return self._change(call, lambda accounts: accounts.add_user(name, b"", has_no_password=True))
        check_length(message.password)
        self._gate.check_root(call)  # before the work
        call.run(self._add_hashed(call, name, message.password))
        return None

    async def _add_hashed(self, call: Call, name: str, password: str) -> bytes | None:
        hashed = await self._hashed(call, name, password)
        return self._change(call, lambda accounts: accounts.add_user(name, hashed, has_no_password=False))

    def user_get(self, call: Call, message: rpc.AuthUserGetRequest) -> bytes:
        """Return the roles of a user, also to that user."""
        gate = self._gate
        if gate.is_enabled:
            caller = gate.caller(call) or NOBODY
            if caller.user != message.name:
                gate.check_root(call)
        response = rpc.AuthUserGetResponse(roles=self._accounts.user(message.name).roles)
        return self._node.header() + response.SerializeToString()

    def user_list(self, call: Call, _message: rpc.AuthUserListRequest) -> bytes:
        """Return the names of all users, in order."""
        self._gate.check_root(call)
        return self._node.header() + rpc.AuthUserListResponse(users=sorted(self._accounts.users)).SerializeToString()

    def user_delete(self, call: Call, message: rpc.AuthUserDeleteRequest) -> bytes | None:
        """Delete a user."""
        return self._change(call, lambda accounts: accounts.delete_user(message.name))

    def user_change_password(self, call: Call, message: rpc.AuthUserChangePasswordRequest) -> bytes | None:
        """Give a user another password, or the hash of one."""
        if not message.password and self._has_hashes:
            return self._change(call, lambda accounts: _with_hash(accounts, message.name, message.hashedPassword))
        check_length(message.password)
        self._gate.check_root(call)  # before the work
        call.run(self._change_hashed(call, message.name, message.password))
        return None

    async def _hashed(self, call: Call, name: str, password: str) -> bytes:
        """Return the hash; until it is there, the name is counted that it is for."""
        size = len(name)
        self._node.begin_work(call, size)
        try:
            return await self._passwords.hashed(password)
        finally:
            self._node.end_work(call, size)

    async def _change_hashed(self, call: Call, name: str, password: str) -> bytes | None:
        hashed = await self._hashed(call, name, password)
        return self._change(call, lambda accounts: accounts.change_password(name, hashed))

    def user_grant_role(self, call: Call, message: rpc.AuthUserGrantRoleRequest) -> bytes | None:
        """Grant a role to a user."""
        return self._change(call, lambda accounts: accounts.grant_role(message.user, message.role))

    def user_revoke_role(self, call: Call, message: rpc.AuthUserRevokeRoleRequest) -> bytes | None:
        """Take a role from a user."""
        return self._change(call, lambda accounts: accounts.revoke_role(message.name, message.role))

    # Roles

    def role_add(self, call: Call, message: rpc.AuthRoleAddRequest) -> bytes | None:
        """Add a role."""
        return self._change(call, lambda accounts: accounts.add_role(message.name))

    def role_get(self, call: Call, message: rpc.AuthRoleGetRequest) -> bytes:
        """Return the permissions of a role, also to the users that have it."""
        gate = self._gate
        if gate.is_enabled:
            user = self._accounts.users.get((gate.caller(call) or NOBODY).user)
            if user is None or message.role not in user.roles:
                gate.check_root(call)
        role = self._accounts.role(message.role)
        response = rpc.AuthRoleGetResponse()
        # Whatever was granted to it, as that changes nothing.
        rows = (Permission(READWRITE, b"", b"\0"),) if role.name == ROOT else role.permissions
        for kind, key, range_end in rows:
            response.perm.add(permType=kind, key=key, range_end=range_end)
        return self._node.header() + response.SerializeToString()

    def role_list(self, call: Call, _message: rpc.AuthRoleListRequest) -> bytes:
        """Return the names of all roles, in order."""
        self._gate.check_root(call)
        return self._node.header() + rpc.AuthRoleListResponse(roles=sorted(self._accounts.roles)).SerializeToString()

    def role_delete(self, call: Call, message: rpc.AuthRoleDeleteRequest) -> bytes | None:
        """Delete a role, and take it from whoever has it."""
        return self._change(call, lambda accounts: accounts.delete_role(message.role))

    def role_grant_permission(self, call: Call, message: rpc.AuthRoleGrantPermissionRequest) -> bytes | None:
        """Grant a permission to a role."""
        given = message.perm if message.HasField("perm") else None
        permission = None if given is None else Permission(given.permType, given.key, given.range_end)
        return self._change(call, lambda accounts: accounts.grant_permission(message.name, permission))

    def role_revoke_permission(self, call: Call, message: rpc.AuthRoleRevokePermissionRequest) -> bytes | None:
        """Take a permission from a role."""
        return self._change(
            call, lambda accounts: accounts.revoke_permission(message.role, message.key, message.range_end)
        )


def _refused(shown: str, refusal: Refusal) -> RpcError:
    """Log that a token was refused, and return how the call ends."""
    fields = {"user": shown, "error": _WHY[refusal]}
    _log.warning("invalid authentication was requested", extra={"fields": fields})
    return refusal.error()


def _with_hash(accounts: Accounts, name: str, text: str) -> Change:
    has_no_password = accounts.user(name).has_no_password
    return accounts.change_password(name, b"" if has_no_password else given_hash(text))
