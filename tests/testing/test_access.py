"""Users and TLS for the server of a test."""

from __future__ import annotations

import json
import ssl
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest

from mvccstore.server.messages import rpc
from mvccstore.testing import etcd
from mvccstore.testing.etcd_server import Etcd
from tests.wire.client import Client, Endpoint, RpcFailure

KV = "/etcdserverpb.KV"


def token(client: Client, name: str, password: str) -> list[tuple[str, str]]:
    request = rpc.AuthenticateRequest(name=name, password=password)
    return [("token", client.unary("/etcdserverpb.Auth/Authenticate", request).token)]


def put(client: Client, key: bytes, metadata: list[tuple[str, str]]) -> Any:
    return client.unary(f"{KV}/Put", rpc.PutRequest(key=key), metadata)


def get(client: Client, key: bytes, metadata: list[tuple[str, str]]) -> Any:
    return client.unary(f"{KV}/Range", rpc.RangeRequest(key=key), metadata)


def test_users_may_what_they_were_given() -> None:
    users = {"alice": "secret", "bob": {"password": "pw", "read": "public/", "write": ["bob/", "drop/"]}}
    with etcd(auth=users) as server, Client(Endpoint(server.host, server.port)) as client:
        with pytest.raises(RpcFailure, match="user name is empty"):
            put(client, b"a", [])
        alice, bob, root = (token(client, *pair) for pair in (("alice", "secret"), ("bob", "pw"), ("root", "root")))
        put(client, b"public/a", alice)
        assert get(client, b"public/a", bob).count == 1
        put(client, b"bob/1", bob)
        put(client, b"drop/1", bob)
        for denied in (lambda: put(client, b"public/b", bob), lambda: get(client, b"bob/1", bob)):
            with pytest.raises(RpcFailure, match="permission denied"):
                denied()
        assert client.unary("/etcdserverpb.Auth/UserList", rpc.AuthUserListRequest(), root).users == [
            "alice",
            "bob",
            "root",
        ]
        with pytest.raises(RpcFailure, match="authentication failed"):
            token(client, "alice", "wrong")


def test_reset_brings_back_the_users_of_the_start() -> None:
    with etcd(auth={"alice": "secret"}) as server, Client(Endpoint(server.host, server.port)) as client:
        root = token(client, "root", "root")
        client.unary("/etcdserverpb.Auth/UserDelete", rpc.AuthUserDeleteRequest(name="alice"), root)
        server.reset()
        put(client, b"a", token(client, "alice", "secret"))


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({"alice": None}, "user 'alice' needs a password"),
        ({"alice": {"read": ""}}, "user 'alice' needs a password"),
        ({"alice": {"password": "", "reads": ""}}, "user 'alice' has 'reads'; there are password, read"),
    ],
)
def test_users_that_are_none_are_told(users: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Etcd(auth=users)


def test_tls_with_a_certificate_of_its_own() -> None:
    with etcd(tls=True) as server:
        assert server.url == f"https://{server.endpoint}"
        assert server.env["ETCDCTL_CACERT"] == server.ca_file
        context = ssl.create_default_context(cafile=server.ca_file)
        body = json.dumps({"key": "YQ=="}).encode()
        with urllib.request.urlopen(f"{server.url}/v3/kv/put", body, context=context, timeout=60) as answer:
            assert json.load(answer)["header"]["revision"] == "2"
        credentials = grpc.ssl_channel_credentials(Path(server.ca_file).read_bytes())
        with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
            call = channel.unary_unary(f"{KV}/Range", rpc.RangeRequest.SerializeToString, rpc.RangeResponse.FromString)
            assert call(rpc.RangeRequest(key=b"a"), timeout=60).count == 1
        files = Path(server.ca_file).parent
    assert not files.exists()


def test_without_tls_there_is_no_certificate() -> None:
    with etcd() as server:
        assert "ETCDCTL_CACERT" not in server.env
        with pytest.raises(RuntimeError, match="tls=True"):
            server.ca_file  # noqa: B018
