"""All users and roles of a store, and the rules by which they change.

Invariants:

* I1. What is here is what is stored in the attributes below `etcd/auth`, at `version`. A change is decided first, then
  written on condition that the attributes still are at that version, and noted here when it is on disk.
* I2. The revision is 1 at first, and grows by one with every change but that of turning authentication on.
* I3. The roles of a user exist, but for `root`, which needs no role of the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mvccstore.attributes import AttributesRequest, attributes_request
from mvccstore.errors import CorruptError
from mvccstore.etcd_file.buckets import AuthRecords
from mvccstore.server.auth import records
from mvccstore.server.auth.permissions import Grants, Permission, is_range
from mvccstore.server.auth.records import ROOT, Role, User
from mvccstore.server.errors import Refusal
from mvccstore.store import Store

REVISION_FIRST = 1


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of users and roles."""

    users: Mapping[str, User | None] = field(default_factory=dict)
    roles: Mapping[str, Role | None] = field(default_factory=dict)
    """None for one that is deleted."""
    is_enabled: bool | None = None
    """Whether authentication is on from now on; None for as before."""
    is_revision: bool = True
    """Whether the revision grows."""
    stale_user: str | None = None
    """Whose tokens end with it."""


class Accounts:
    """Users and roles. Each method that changes something returns the change, or None if there is nothing to do."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.is_enabled = False
        self.revision = REVISION_FIRST
        self.version = 0
        self.users: dict[str, User] = {}
        self.roles: dict[str, Role] = {}
        self._grants: dict[str, Grants] = {}
        self.reload()

    def reload(self) -> None:
        """Go by what is stored.

        Raises:
            CorruptError: It cannot be read.
        """
        stored = self._store.attributes(records.PREFIX)
        path = self._store.path
        self.version = stored.version
        self.is_enabled, self.revision = _unpack(stored.get(records.STATE), path)
        users = [records.decode_user(data, path) for name, data in stored.items() if records.is_user_attribute(name)]
        roles = [records.decode_role(data, path) for name, data in stored.items() if records.is_role_attribute(name)]
        self.users = {user.name: user for user in users}
        self.roles = {role.name: role for role in roles}
        self._grants.clear()

    def request(self, change: Change) -> AttributesRequest:
        """Return what has to be written for a change to last.

        Raises:
            ValueTooLargeError: A user or role would be larger than a mebibyte.
            TxnTooLargeError: It concerns more than some 10,000 users.
        """
        is_enabled = self.is_enabled if change.is_enabled is None else change.is_enabled
        attributes: dict[str, bytes | None] = {
            records.STATE: b"%d %d" % (is_enabled, self.revision + change.is_revision)
        }
        for name, user in change.users.items():
            attributes[records.user_attribute(name)] = None if user is None else user.encode()
        for name, role in change.roles.items():
            attributes[records.role_attribute(name)] = None if role is None else role.encode()
        return attributes_request(attributes, self.version)

    def apply(self, change: Change, version: int) -> None:
        """Note a change that was written, as which version of the attributes."""
        self.version = version
        self.revision += change.is_revision
        if change.is_enabled is not None:
            self.is_enabled = change.is_enabled
        for user_name, user in change.users.items():
            if user is None:
                self.users.pop(user_name, None)
            else:
                self.users[user_name] = user
        for role_name, role in change.roles.items():
            if role is None:
                self.roles.pop(role_name, None)
            else:
                self.roles[role_name] = role
        self._grants.clear()

    def grants(self, user: User) -> Grants:
        """Return what a user may. Made when it is first asked for after a change; then a lookup."""
        found = self._grants.get(user.name)
        if found is None:
            roles = [self.roles[name] for name in user.roles if name in self.roles]
            found = self._grants[user.name] = Grants(row for role in roles for row in role.permissions)
        return found

    def etcd_records(self) -> AuthRecords | None:
        """Return all this for etcd's file; None if there never was any."""
        if self.revision == REVISION_FIRST and not self.is_enabled:
            return None
        users = {user.name.encode(): user.encode() for user in self.users.values()}
        roles = {role.name.encode(): role.encode() for role in self.roles.values()}
        return AuthRecords(self.is_enabled, self.revision, users, roles)

    # On and off

    def enable(self) -> Change | None:
        """Turn authentication on."""
        if self.is_enabled:
            return None
        root = self.users.get(ROOT)
        if root is None:
            raise Refusal.ROOT_USER_MISSING.error()
        if not root.is_root:
            raise Refusal.ROOT_ROLE_MISSING.error()
        return Change(is_enabled=True, is_revision=False)

    def disable(self) -> Change | None:
        """Turn it off."""
        return Change(is_enabled=False) if self.is_enabled else None

    # Users

    def user(self, name: str) -> User:
        """Return a user.

        Raises:
            RpcError: There is none of this name.
        """
        user = self.users.get(name)
        if user is None:
            raise Refusal.USER_NOT_FOUND.error()
        return user

    def add_user(self, name: str, password: bytes, *, has_no_password: bool) -> Change:
        """Add a user; `password` is a hash."""
        if not name:
            raise Refusal.EMPTY_USER.error()
        if name in self.users:
            raise Refusal.USER_EXISTS.error()
        return Change({name: User(name, password, has_no_password=has_no_password)})

    def delete_user(self, name: str) -> Change:
        """Delete a user."""
        if self.is_enabled and name == ROOT:
            raise Refusal.INVALID_AUTH_MANAGEMENT.error()
        self.user(name)
        return Change({name: None}, stale_user=name)

    def change_password(self, name: str, password: bytes) -> Change:
        """Give a user another password, by its hash; one without keeps none."""
        user = self.user(name)
        return Change({name: replace(user, password=b"" if user.has_no_password else password)}, stale_user=name)

    def grant_role(self, name: str, role: str) -> Change | None:
        """Grant a role to a user."""
        user = self.user(name)
        if role != ROOT:
            self.role(role)
        if role in user.roles:
            return None
        return Change({name: replace(user, roles=tuple(sorted((*user.roles, role))))})

    def revoke_role(self, name: str, role: str) -> Change:
        """Take a role from a user."""
        if self.is_enabled and name == role == ROOT:
            raise Refusal.INVALID_AUTH_MANAGEMENT.error()
        user = self.user(name)
        if role not in user.roles:
            raise Refusal.ROLE_NOT_GRANTED.error()
        return Change({name: _without(user, role)})

    # Roles

    def role(self, name: str) -> Role:
        """Return a role.

        Raises:
            RpcError: There is none of this name.
        """
        role = self.roles.get(name)
        if role is None:
            raise Refusal.ROLE_NOT_FOUND.error()
        return role

    def add_role(self, name: str) -> Change:
        """Add a role."""
        if not name:
            raise Refusal.EMPTY_ROLE.error()
        if name in self.roles:
            raise Refusal.ROLE_EXISTS.error()
        return Change(roles={name: Role(name)})

    def delete_role(self, name: str) -> Change:
        """Delete a role, and take it from all users. O(users)."""
        if self.is_enabled and name == ROOT:
            raise Refusal.INVALID_AUTH_MANAGEMENT.error()
        self.role(name)
        users = {user.name: _without(user, name) for user in self.users.values() if name in user.roles}
        return Change(users, {name: None})

    def grant_permission(self, name: str, permission: Permission | None) -> Change:
        """Grant a permission to a role."""
        if permission is None:
            raise Refusal.PERMISSION_NOT_GIVEN.error()
        if not is_range(permission.key, permission.range_end):
            raise Refusal.INVALID_AUTH_MANAGEMENT.error()
        role = self.role(name)
        rows = list(role.permissions)
        # etcd looks at the first of this key alone: another range from there on is granted again, not replaced.
        at = next((at for at, row in enumerate(rows) if row.key >= permission.key), len(rows))
        if at < len(rows) and rows[at][1:] == permission[1:]:
            rows[at] = permission
        else:
            rows.append(permission)
            rows.sort(key=lambda row: row.key)
        return Change(roles={name: replace(role, permissions=tuple(rows))})

    def revoke_permission(self, name: str, key: bytes, range_end: bytes) -> Change:
        """Take a permission from a role."""
        role = self.role(name)
        rows = tuple(row for row in role.permissions if row[1:] != (key, range_end))
        if len(rows) == len(role.permissions):
            raise Refusal.PERMISSION_NOT_GRANTED.error()
        return Change(roles={name: replace(role, permissions=rows)})


def _without(user: User, role: str) -> User:
    return replace(user, roles=tuple(name for name in user.roles if name != role))


def _unpack(packed: bytes | None, path: str) -> tuple[bool, int]:
    if packed is None:
        return False, REVISION_FIRST
    try:
        is_enabled, revision = (int(number) for number in packed.split())
    except ValueError as error:
        raise CorruptError(path, f"whether authentication is on cannot be read: {packed!r:.80}") from error
    return bool(is_enabled), revision
