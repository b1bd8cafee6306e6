"""Clients of a test's server, by whichever library of others is installed: connected, trusting its certificate, signed in.

    etcd3gw   over JSON; https://pypi.org/project/etcd3gw
    aetcd     over gRPC, for asyncio: `async with etcd.client("aetcd") as client`; it knows no TLS

None of these is needed by anything here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

SECONDS = 60


class Target(Protocol):
    """The server that a client is for."""

    @property
    def host(self) -> str:
        """What it listens on."""
        ...

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        ...


Login = tuple[str, str]
"""A user, and the password."""


def new_client(target: Target, library: str | None, login: Login | None, ca_file: str | None) -> tuple[Any, Any]:
    """Return a client, and what closes it, None if that is up to who asked for it.

    Args:
        target: The server.
        library: By which; None for the first that is installed, and can do what is needed.
        login: Whose it is; None while authentication is off.
        ca_file: What it has to trust; None without TLS.

    Raises:
        ImportError: None is installed, or not this one.
        ValueError: There is no such library here, or it cannot do what is needed.
    """
    if library is not None and library not in _MAKERS:
        msg = f"there is no client by {library!r}; there are {', '.join(_MAKERS)}"
        raise ValueError(msg)
    names = [library] if library is not None else [name for name in _MAKERS if ca_file is None or name != "aetcd"]
    for name in names:
        try:
            module = import_module(name)
        except ImportError as error:
            if library is not None:
                msg = f"{library} is not installed"
                raise ImportError(msg) from error
            continue
        return _MAKERS[name](module, target, login, ca_file)
    msg = f"no client library is installed: pip install {' or '.join(names)}"
    raise ImportError(msg)


def _etcd3gw(module: Any, target: Target, login: Login | None, ca_file: str | None) -> tuple[Any, Any]:
    client = module.client(
        host=target.host,
        port=target.port,
        protocol="http" if ca_file is None else "https",
        ca_cert=ca_file,
        timeout=SECONDS,
        api_path="/v3/",
    )
    client.session.trust_env = False  # no proxy, nor another's idea of whom to trust
    if login is not None:
        request = {"name": login[0], "password": login[1]}
        answer = client.post(client.get_url("/auth/authenticate"), json=request)
        client.session.headers["Authorization"] = answer["token"]
    return client, client.session.close


def _aetcd(module: Any, target: Target, login: Login | None, ca_file: str | None) -> tuple[Any, Any]:
    if ca_file is not None:
        msg = "aetcd knows no TLS; etcd3gw does"
        raise ValueError(msg)
    name, password = login or (None, None)
    options = {"grpc.use_local_subchannel_pool": 1, "grpc.enable_http_proxy": 0}
    client = module.Client(target.host, target.port, username=name, password=password, timeout=SECONDS, options=options)
    return client, None


_MAKERS: dict[str, Callable[[Any, Target, Login | None, str | None], tuple[Any, Any]]] = {
    "etcd3gw": _etcd3gw,
    "aetcd": _aetcd,
}
