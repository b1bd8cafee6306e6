"""`etcd.client()`: a client of a library that is installed, connected and signed in."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import aetcd
import pytest
from etcd3gw.client import Etcd3Client
from etcd3gw.exceptions import Etcd3Exception

from mvccstore.testing import etcd


def test_the_first_that_is_installed() -> None:
    with etcd() as server:
        client = server.client()
        assert isinstance(client, Etcd3Client)
        assert client.put("a", "1")
        assert client.get("a") == [b"1"]
        server.assert_put("a", "1", times=1)


@pytest.mark.parametrize("tls", [False, True])
def test_users_are_signed_in(tls: bool) -> None:
    users: dict[str, Any] = {"alice": "pw", "bob": {"password": "b", "read": ["public/"]}}
    with etcd(auth=users, tls=tls, contents={"public/a": "1"}) as server:
        assert server.client().put("k", "root's")
        assert server.client(user="alice").put("public/b", "2")
        bob = server.client("etcd3gw", user="bob")
        assert bob.get_prefix("public/")[0][0] == b"1"
        with pytest.raises(Etcd3Exception) as caught:
            bob.put("public/b", "3")
        assert "permission denied" in caught.value.detail_text
        kv = server.store.get(b"public/b")
        assert kv is not None
        assert kv.value == b"2"


@pytest.mark.parametrize("auth", [None, {"alice": "pw"}])
def test_one_for_asyncio(auth: dict[str, str] | None) -> None:
    async def play() -> bytes:
        async with etcd(auth=auth) as server, server.client("aetcd", user="alice" if auth else None) as client:
            await client.put(b"a", b"1")
            found = await client.get(b"a")
            assert isinstance(found, aetcd.rtypes.Get)
            return bytes(found.value)

    assert asyncio.run(play()) == b"1"


def test_what_it_opened_is_closed_with_the_server() -> None:
    with etcd() as server:
        client = server.client()
        client.put("a", "1")
        closed: list[int] = []
        close = client.session.close
        server._closers[:] = [lambda: (close(), closed.append(1))[0]]  # type: ignore[func-returns-value]
    assert closed == [1]


def test_what_cannot_be_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with etcd() as server:
        with pytest.raises(ValueError, match="there is no client by 'etcd4'; there are etcd3gw, aetcd"):
            server.client("etcd4")
        with pytest.raises(ValueError, match="there is no user 'bob' in auth; there are none"):
            server.client(user="bob")
        monkeypatch.setitem(sys.modules, "etcd3gw", None)
        with pytest.raises(ImportError, match="etcd3gw is not installed"):
            server.client("etcd3gw")
        assert isinstance(server.client(), aetcd.Client)
        monkeypatch.setitem(sys.modules, "aetcd", None)
        with pytest.raises(ImportError, match="no client library is installed: pip install etcd3gw or aetcd"):
            server.client()
    monkeypatch.undo()
    with etcd(tls=True) as server, pytest.raises(ValueError, match="aetcd knows no TLS"):
        server.client("aetcd")
    with etcd(auth={"amy": "a"}) as server, pytest.raises(ValueError, match="there are amy, root"):
        server.client(user="bob")
