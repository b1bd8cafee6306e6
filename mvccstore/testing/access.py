"""Users for the server of a test.

auth={"alice": "secret"}                                      may read and write everything
auth={"bob": {"password": "pw", "read": ["public/"], "write": ["bob/"]}}    keys with these prefixes; also "readwrite"
auth={"root": "rootpw", ...}                                  root, whose password is otherwise "root"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mvccstore.server.messages import rpc
from mvccstore.server.messages.auth import Permission
from mvccstore.server.node import Node
from mvccstore.server.services.auth import Auth
from mvccstore.server.services.inner import InnerCall
from mvccstore.server.transport.call import Metadata, Peer

Access = Mapping[str, str | Mapping[str, Any]]
"""Users: to each a password, or a mapping with `password` and prefixes under `read`, `write` and `readwrite`."""

ROOT = "root"
_KINDS = {"read": Permission.READ, "write": Permission.WRITE, "readwrite": Permission.READWRITE}


def check_access(users: Access) -> None:
    """Raise `ValueError` if these are no users."""
    for name, given in users.items():
        if isinstance(given, str):
            continue
        if not isinstance(given, Mapping) or not isinstance(given.get("password"), str):
            msg = f"user {name!r} needs a password, or a mapping with `password`"
            raise ValueError(msg)
        unknown = set(given) - {"password", *_KINDS}
        if unknown:
            msg = f"user {name!r} has {', '.join(sorted(map(repr, unknown)))}; there are password, {', '.join(_KINDS)}"
            raise ValueError(msg)


def passwords_of(users: Access) -> dict[str, str]:
    """Return the password of each user, root's included."""
    return {
        name: given if isinstance(given, str) else given["password"]
        for name, given in ({ROOT: ROOT} | dict(users)).items()
    }


async def set_up(node: Node, users: Access) -> None:
    """Make users, each with a role of the same name, and turn authentication on. On the server's loop."""
    methods = {method.path: method for method in Auth(node).methods()}
    for request in _requests(users):
        name = type(request).__name__.removesuffix("Request")
        path = f"/etcdserverpb.Auth/{name if name == 'AuthEnable' else name.removeprefix('Auth')}"
        call = InnerCall(methods[path], Metadata(), Peer("the test"), bytes)
        call.serve(request)
        await call.answered


def _requests(users: Access) -> Iterator[Any]:
    for name, given in ({ROOT: ROOT} | dict(users)).items():
        password = given if isinstance(given, str) else given["password"]
        yield rpc.AuthUserAddRequest(name=name, password=password)
        yield rpc.AuthRoleAddRequest(name=name)
        if name != ROOT:
            for permission in _permissions(given):
                yield rpc.AuthRoleGrantPermissionRequest(name=name, perm=permission)
        yield rpc.AuthUserGrantRoleRequest(user=name, role=name)
    yield rpc.AuthEnableRequest()


def _permissions(given: str | Mapping[str, Any]) -> Iterator[Permission]:
    if isinstance(given, str):
        yield Permission(permType=Permission.READWRITE, key=b"\0", range_end=b"\0")
        return
    for kind, number in _KINDS.items():
        prefixes: str | Sequence[str] = given.get(kind, ())
        for prefix in [prefixes] if isinstance(prefixes, str) else prefixes:
            start = prefix.encode()
            end = start[:-1] + bytes((start[-1] + 1,)) if start else b"\0"
            yield Permission(permType=number, key=start or b"\0", range_end=end)
