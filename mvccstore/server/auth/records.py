"""Users and roles as they are stored: etcd's `authpb.User` and `authpb.Role`, so that its file has the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from google.protobuf.message import DecodeError

from mvccstore.errors import CorruptError
from mvccstore.server.auth.permissions import Permission
from mvccstore.server.messages import auth

PREFIX = "etcd/auth"
STATE = PREFIX
_USER, _ROLE = PREFIX + "/user/", PREFIX + "/role/"
_NAME_BYTES_MAX = 200
ROOT = "root"
"""The name of the user, and of the role."""


@dataclass(frozen=True, slots=True)
class User:
    """A user."""

    name: str
    password: bytes = b""
    """Its hash by bcrypt; empty for none."""
    roles: tuple[str, ...] = ()
    """In order."""
    has_no_password: bool = False
    """Whether it was made to be shown by a certificate alone."""
    has_options: bool = True
    """False for one that an etcd of long ago has stored."""

    @property
    def is_root(self) -> bool:
        """Whether it may do everything."""
        return ROOT in self.roles

    def encode(self) -> bytes:
        """Return what is stored."""
        message = auth.User(name=self.name.encode(), password=self.password, roles=self.roles)
        if self.has_options:
            message.options.SetInParent()
            message.options.no_password = self.has_no_password
        return bytes(message.SerializeToString())


@dataclass(frozen=True, slots=True)
class Role:
    """A role."""

    name: str
    permissions: tuple[Permission, ...] = ()
    """In the order of their keys."""

    def encode(self) -> bytes:
        """Return what is stored."""
        message = auth.Role(name=self.name.encode())
        for kind, key, range_end in self.permissions:
            message.keyPermission.add(permType=kind, key=key, range_end=range_end)
        return bytes(message.SerializeToString())


def decode_user(data: bytes, path: str = "") -> User:
    """Undo `User.encode`.

    Raises:
        CorruptError: It is no user.
    """
    try:
        message = auth.User.FromString(data)
        name = message.name.decode()
    except (DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(path, f"a user cannot be read: {error}") from error
    has_options = message.HasField("options")
    return User(name, message.password, tuple(message.roles), message.options.no_password, has_options)


def decode_role(data: bytes, path: str = "") -> Role:
    """Undo `Role.encode`.

    Raises:
        CorruptError: It is no role.
    """
    try:
        message = auth.Role.FromString(data)
        name = message.name.decode()
    except (DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(path, f"a role cannot be read: {error}") from error
    return Role(name, tuple(Permission(row.permType, row.key, row.range_end) for row in message.keyPermission))


def user_attribute(name: str) -> str:
    """Return the attribute that a user is stored in."""
    return _USER + _short(name)


def role_attribute(name: str) -> str:
    """Return the attribute that a role is stored in."""
    return _ROLE + _short(name)


def is_user_attribute(attribute: str) -> bool:
    """Say whether a user is stored in it."""
    return attribute.startswith(_USER)


def is_role_attribute(attribute: str) -> bool:
    """Say whether a role is stored in it."""
    return attribute.startswith(_ROLE)


def _short(name: str) -> str:
    # Names may be longer than those of attributes. The record has the whole name.
    packed = name.encode()
    return "=" + name if len(packed) <= _NAME_BYTES_MAX else "#" + sha256(packed).hexdigest()
