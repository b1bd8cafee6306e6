"""The name in a client's certificate as the user: etcd and ours answer alike."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

import mvccstore
from mvccstore.server import AuthOptions, ServerOptions, TLSOptions, serve
from mvccstore.server.messages import METHODS
from tests.oracle.choice import find_oracle
from tests.oracle.process import HOST, QUICK_ELECTION, EtcdProcess, free_ports
from tests.wire.auth_calls import (
    COST,
    READWRITE,
    auth_status,
    authenticate,
    enable,
    grant_permission,
    grant_role,
    role_add,
    user_add,
    user_add_without_password,
    user_get,
    user_list,
)
from tests.wire.calls import get, leases, put, status
from tests.wire.client import RpcFailure, failure_of
from tests.wire.differential import Unary
from tests.wire.pair import NEEDS_ORACLE
from tests.wire.tls_kit import LOCAL, SECONDS, Authority, Identity, client_context, secure_channel

pytestmark = NEEDS_ORACLE
SETUP = (
    *(user_add("root", "pw"), grant_role("root", "root"), user_add_without_password("bob"), role_add("r")),
    *(grant_permission("r", READWRITE, b"a"), grant_role("bob", "r"), enable()),
)
ASKED = (get(b"a"), get(b"b"), put(b"a"), put(b"b"), user_list(), user_get("bob"), auth_status(), leases(), status())


@dataclass(frozen=True, slots=True)
class Secured:
    """A server that asks clients for certificates."""

    port: int
    authority: Authority

    def ask(self, identity: Identity, *operations: Unary, token: str = "") -> list[Any]:
        """Return what each is answered: the code and text of an error, or that it is none."""
        with secure_channel(self.port, self.authority, identity) as channel:
            return [_outcome(channel, operation, token) for operation in operations]

    def token(self, identity: Identity) -> str:
        operation = authenticate("root", "pw")
        with secure_channel(self.port, self.authority, identity) as channel:
            return str(_call(channel, operation, "").token)

    def post(self, identity: Identity, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Ask through JSON; return the status and what the error says."""
        context = client_context(self.authority, identity)
        connection = http.client.HTTPSConnection(HOST, self.port, timeout=SECONDS, context=context)
        try:
            connection.request("POST", path, "{}", headers)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, json.loads(body).get("message", "") if body.startswith(b"{") else repr(body)
        finally:
            connection.close()


def _call(channel: Any, operation: Unary, token: str) -> Any:
    function = channel.unary_unary(
        operation.method,
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=METHODS[operation.method].response.FromString,
    )
    metadata = [("token", token)] if token else []
    return function(operation.request, metadata=metadata, timeout=SECONDS, wait_for_ready=True)


def _outcome(channel: Any, operation: Unary, token: str) -> Any:
    try:
        _call(channel, operation, token)
    except grpc.RpcError as error:
        failure: RpcFailure = failure_of(error)
        return failure.code, failure.message
    return "ok"


@contextmanager
def both(folder: Path, *, has_names: bool) -> Iterator[tuple[Authority, list[Secured]]]:
    """Start an etcd and a server of ours that ask for certificates; `has_names`: which say whose a call is."""
    authority = Authority(folder)
    own = authority.issue("server", LOCAL)
    (port,) = free_ports(1)
    arguments = [
        *(*QUICK_ELECTION, f"--bcrypt-cost={COST}", f"--cert-file={own.certificate}", f"--key-file={own.key}"),
        *(f"--trusted-ca-file={authority.file}", f"--client-cert-auth={str(has_names).lower()}"),
    ]
    tls = TLSOptions(str(own.certificate), str(own.key), str(authority.file), client_cert_auth=has_names)
    options = ServerOptions(auth=AuthOptions(bcrypt_cost=COST), tls=tls, grace_seconds=0.0)
    with (
        _etcd(folder / "etcd", port, arguments),
        mvccstore.open(engine="memory") as store,
        serve(store, options=options) as server,
    ):
        yield authority, [Secured(port, authority), Secured(server.port, authority)]


@contextmanager
def _etcd(folder: Path, port: int, arguments: list[str]) -> Iterator[None]:
    folder.mkdir()
    etcd = EtcdProcess(folder, find_oracle(), arguments)
    # Beside the URL that it is looked at by, which is plain.
    etcd.arguments.append(f"--listen-client-urls={etcd.url},https://{HOST}:{port}")
    etcd.start()
    try:
        yield
    finally:
        etcd.kill()


@pytest.mark.parametrize("has_names", [True, False])
def test_a_certificate_says_whose_a_call_is(tmp_path: Path, has_names: bool) -> None:
    with both(tmp_path, has_names=has_names) as (authority, servers):
        people = [authority.issue(name) for name in ("root", "bob", "none")]
        said: list[Any] = []
        for server in servers:
            assert server.ask(people[0], *SETUP) == ["ok"] * len(SETUP)
            answers: list[Any] = [server.ask(person, *ASKED) for person in people]
            token = server.token(people[1])
            answers += [server.ask(person, *ASKED, token=token) for person in people[1:]]
            answers += [server.ask(people[0], *ASKED, token="no.1")]
            for headers in ({"Accept": "*/*"}, {"Accept": "*/*", "Authorization": token}):
                answers += [
                    server.post(people[0], path, headers)
                    for path in ("/v3/auth/user/list", "/v3beta/lease/leases", "/v3/lease/leases", "/nothing")
                ]
            said.append(answers)
        assert said[0] == said[1]
        assert ("ok" in said[0][0]) == has_names
