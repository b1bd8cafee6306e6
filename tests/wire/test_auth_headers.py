"""Where a token may be in the headers of JSON and in the metadata of gRPC, and which counts: as with etcd."""

from __future__ import annotations

import http.client
import json
from contextlib import closing, suppress
from pathlib import Path

from mvccstore.server.messages import rpc
from tests.wire.auth_calls import (
    ENABLED,
    READ,
    ROOT,
    as_root,
    authenticate,
    grant_permission,
    grant_role,
    role_add,
    running_auth_pair,
    user_add,
)
from tests.wire.client import RpcFailure
from tests.wire.pair import NEEDS_ORACLE

pytestmark = NEEDS_ORACLE
SECONDS = 20
BOB = ROOT + 1
Headers = tuple[tuple[str, str], ...]
# Not here: `Authorization` beside `Grpc-Metadata-Authorization`, of which etcd takes now one, now the other.
# `{root}` and `{bob}` are tokens: bob may not do what is asked for.
HEADERS: tuple[Headers, ...] = (
    (),
    (("Authorization", "{root}"),),
    (("Authorization", "Bearer {root}"),),
    (("Authorization", "bearer {root}"),),
    (("Authorization", "Bearer  {root}"),),
    (("Authorization", "Basic {root}"),),
    (("Authorization", " {root} "),),
    (("Authorization", ""),),
    (("authorization", "{root}"),),
    (("Token", "{root}"),),
    (("Grpc-Metadata-Token", "{root}"),),
    (("grpc-metadata-token", "Bearer {root}"),),
    (("Grpc-Metadata-Authorization", "{root}"),),
    (("Grpcgateway-Authorization", "{root}"),),
    (("Grpc-Metadata-Grpcgateway-Authorization", "{root}"),),
    (("Grpc-Metadata-", "{root}"),),
    (("Grpc-Metadata-Token ", "{root}"),),
    (("Cookie", "token={root}"),),
    (("Sec-WebSocket-Protocol", "Bearer, {root}"),),
    (("Authorization", "{bob}"), ("Grpc-Metadata-Token", "{root}")),
    (("Authorization", "{root}"), ("Grpc-Metadata-Token", "{bob}")),
    (("Grpc-Metadata-Token", "{bob}"), ("Grpc-Metadata-Token", "{root}")),
    (("Grpc-Metadata-Token", "{root}"), ("Grpc-Metadata-Token", "{bob}")),
    (("Authorization", "{bob}"), ("Authorization", "{root}")),
    (("Authorization", "{root}"), ("Authorization", "{bob}")),
    (("Authorization", "no.1"), ("Grpc-Metadata-Token", "{root}")),
    (("Authorization", "{root}"), ("Grpc-Metadata-Token", "no.1")),
    (("Authorization", "{root}"), ("Grpc-Metadata-Token", "")),
)
METADATA: tuple[Headers, ...] = (
    (("token", "{root}"),),
    (("token", "Bearer {root}"),),
    (("authorization", "{root}"),),
    (("authorization", "Bearer {root}"),),
    (("authorization", "bearer {root}"),),
    (("grpcgateway-authorization", "{root}"),),
    (("token", "{bob}"), ("token", "{root}")),
    (("token", "{root}"), ("token", "{bob}")),
    (("token", "{bob}"), ("authorization", "{root}")),
    (("authorization", "{root}"), ("token", "{bob}")),
    (("token", ""), ("authorization", "{root}")),
    (("token", "{root}"), ("grpcgateway-accept", "*/*")),
)


_RESETS_MAX = 9


def filled(headers: Headers, tokens: dict[str, str]) -> Headers:
    return tuple((name, value.format(**tokens)) for name, value in headers)


def post(target: str, path: str, headers: Headers) -> tuple[int, object]:
    """Ask by JSON, with headers as they are; return the status and what the error says."""
    for _ in range(_RESETS_MAX):
        # etcd closes with the body unread where the head is bad: then the answer may be lost on its way.
        with suppress(ConnectionResetError):
            return _post(target, path, headers)
    return _post(target, path, headers)


def _post(target: str, path: str, headers: Headers) -> tuple[int, object]:
    host, _, port = target.rpartition(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=SECONDS)) as connection:
        connection.putrequest("POST", path)
        for name, value in (*headers, ("Content-Length", "2")):
            connection.putheader(name, value)
        connection.endheaders(b"{}")
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body).get("message") if body.startswith(b"{") else answer.status


def test_which_token_counts(tmp_path: Path) -> None:
    with running_auth_pair(tmp_path / "pair") as pair:
        pair.play(*ENABLED, *as_root(user_add("bob", "b"), role_add("r"), grant_permission("r", READ, b"a")))
        pair.play(*as_root(grant_role("bob", "r")), authenticate("bob", "b"))
        said: list[list[object]] = []
        for player in pair.players:
            tokens = {"root": player.names.value("token", ROOT), "bob": player.names.value("token", BOB)}
            target = player.client.endpoint.target
            answers: list[object] = [
                (headers, post(target, "/v3/auth/user/list", filled(headers, tokens))) for headers in HEADERS
            ]
            for headers in METADATA:
                try:
                    method = "/etcdserverpb.Auth/UserList"
                    found = player.client.unary(method, rpc.AuthUserListRequest(), filled(headers, tokens))
                    answers.append((headers, list(found.users)))
                except RpcFailure as failure:
                    answers.append((headers, (failure.code, failure.message)))
            said.append(answers)
        differing = [(theirs, ours) for theirs, ours in zip(*said, strict=True) if theirs != ours]
        assert differing == []
