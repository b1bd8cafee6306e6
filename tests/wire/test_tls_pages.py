"""Pages and the gateway for clients that choose HTTP/2 over TLS: the same as etcd's, and as over HTTP/1.1."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mvccstore.server import ServerOptions, Serving, TLSOptions, serve
from tests.wire.pair import NEEDS_ORACLE
from tests.wire.tls_kit import LOCAL, SECONDS, Authority, Identity, ask, client_context, secure_channel
from tests.wire.tls_servers import (
    INSECURELY,
    SECURELY,
    Http2Client,
    port_of,
    running,
    running_etcd_with_tls,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def identity(authority: Authority) -> Identity:
    return authority.issue("server", LOCAL)


@pytest.fixture
def server(identity: Identity) -> Iterator[Serving]:
    tls = TLSOptions(str(identity.certificate), str(identity.key))
    with serve(options=ServerOptions(tls=tls)) as serving:
        yield serving


def text(value: bytes) -> str:
    return b64encode(value).decode()


def body_of(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_the_gateway_writes_reads_and_watches(server: Serving, authority: Authority) -> None:
    with closing(Http2Client(server.port, authority)) as client:
        watch = client.begin("POST", "/v3/watch", body_of(create_request={"key": text(b"k")}))
        head, created = client.read(watch, b"\n")
        assert (head[":status"], json.loads(created)["result"]["created"]) == ("200", True)
        large = bytes(range(256)) * 4_000
        head, body = client.ask("POST", "/v3/kv/put", body_of(key=text(b"k"), value=text(large)))
        assert (head[":status"], json.loads(body)["header"]["revision"]) == ("200", "2")
        _, event = client.read(watch, b"\n")
        assert json.loads(event)["result"]["events"][0]["kv"]["value"] == text(large)
        head, body = client.ask("POST", "/v3/kv/range", body_of(key=text(b"k")))
        assert json.loads(body)["kvs"][0]["value"] == text(large)
        assert head["content-length"] == str(len(body))


def test_grpc_goes_on_beside_it(server: Serving, authority: Authority) -> None:
    with closing(Http2Client(server.port, authority)) as client, secure_channel(server.port, authority) as channel:
        assert client.ask("GET", "/health")[1] == b'{"health":"true","reason":""}'
        status = channel.unary_unary("/etcdserverpb.Maintenance/Status")(b"", timeout=SECONDS)
        assert b"3.6." in status
        head, metrics = client.ask("GET", "/metrics")
        assert head["content-type"].startswith("text/plain; version=0.0.4")
        assert b"\netcd_server_has_leader 1.0\n" in metrics or b"\netcd_server_has_leader 1\n" in metrics


def test_http_1_1_is_there_for_who_asks_for_it(server: Serving, authority: Authority) -> None:
    context = client_context(authority, alpn=["http/1.1"])
    assert ask(server.port, context, "/health") == (200, b'{"health":"true","reason":""}')


REQUESTS: list[tuple[str, str, bytes | None, tuple[tuple[str, str], ...]]] = [
    ("GET", "/health", None, ()),
    ("GET", "/health?serializable=true", None, ()),
    ("HEAD", "/health", None, ()),
    ("POST", "/health", b"x", ()),
    ("GET", "/livez?verbose", None, ()),
    ("GET", "/readyz", None, ()),
    ("GET", "/nope", None, ()),
    ("POST", "/nope", b"body", ()),
    ("GET", "/v3", None, ()),
    ("GET", "//health", None, ()),
    ("OPTIONS", "/v3/kv/range", None, ()),
    ("GET", "/v3/kv/range", None, ()),
    ("POST", "/v3/kv/range", b"{}", ()),
    ("POST", "/v3/kv/put", body_of(key=text(b"k"), value=text(b"v")), (("content-type", "application/json"),)),
    ("POST", "/v3/kv/range", body_of(key=text(b"k")), ()),
    ("POST", "/v3/kv/range", body_of(key=text(b"k")), (("content-type", "application/grpc"),)),
    ("POST", "/v3beta/kv/range", body_of(key=text(b"k")), ()),
    ("POST", "/v3/nope", b"{}", ()),
    ("POST", "/v3/lease/revoke", body_of(ID="77"), ()),
    ("POST", "/v3/election/leader", body_of(name=text(b"e")), ()),
    ("GET", "/etcdserverpb.KV/Range", None, ()),
    ("GET", "/etcdserverpb.KV/Range", None, (("content-type", "application/grpc"),)),
    ("POST", "/etcdserverpb.KV/Range", b"x", (("content-type", "application/grpcfoo"),)),
    ("POST", "/etcdserverpb.KV/Range", b"x", (("content-type", "application/grpc"), ("grpc-timeout", "1x"))),
    ("POST", "/etcdserverpb.KV/Range", b"x", (("content-type", "application/json"),)),
]
_PASSED_OVER = {"date", "content-length"}
_PASSED_OVER_ALL = ("access-control-", "grpc-metadata-")
"""CORS fields are looked at elsewhere; with TLS etcd's gateway also shows those of its own answer to itself."""


def shown(head: dict[str, str], body: bytes) -> tuple[dict[str, str], Any]:
    """Return what has to be alike of an answer."""
    fields = {name: value for name, value in head.items() if name not in _PASSED_OVER}
    fields = {name: value for name, value in fields.items() if not name.startswith(_PASSED_OVER_ALL)}
    if head.get("location"):  # Go adds a page that says so
        return {name: value for name, value in fields.items() if name != "content-type"}, None
    if not head.get("content-type", "").startswith("application/json"):
        return fields, body
    parsed = json.loads(body)
    parsed.pop("error", None)  # for clients of 3.5; see `Failures`
    if "header" in parsed:
        parsed["header"] = set(parsed["header"])
    return fields, parsed


@pytest.mark.etcd
@NEEDS_ORACLE[1]
def test_every_request_is_answered_as_etcd_answers_it(tmp_path: Path, authority: Authority, identity: Identity) -> None:
    files = [f"--cert-file={identity.certificate}", f"--key-file={identity.key}"]
    url = "https://127.0.0.1:0"
    with (
        running_etcd_with_tls(tmp_path, *files) as their_port,
        running(f"--listen-client-urls={url}", f"--advertise-client-urls={url}", *files) as addresses,
        closing(Http2Client(their_port, authority)) as theirs,
        closing(Http2Client(port_of(addresses, SECURELY), authority)) as ours,
    ):
        for request in REQUESTS:
            assert (request, shown(*ours.ask(*request))) == (request, shown(*theirs.ask(*request)))


GRPC = ("content-type", "application/grpc")
ORIGINS = (None, "https://a.example:443", "https://a.example", "http://b.example:8", "")
OF_GRPC: list[tuple[str, str, bytes | None, tuple[tuple[str, str], ...]]] = [
    ("OPTIONS", "/etcdserverpb.KV/Range", None, (GRPC,)),
    ("OPTIONS", "/etcdserverpb.KV/Range", bytes(5), (("content-type", "application/grpcfoo"),)),
    ("GET", "/etcdserverpb.KV/Range", None, (GRPC,)),
    ("POST", "/etcdserverpb.KV/Range", b"x", (("content-type", "application/grpcfoo"),)),
    ("POST", "/etcdserverpb.KV/Range", b"x", (GRPC, ("grpc-timeout", "x"))),
    ("POST", "/v3/kv/range", b"{}", (GRPC,)),
    ("OPTIONS", "/health", None, ()),
    ("POST", "/etcdserverpb.KV/Range", b"\0\0\0\0\3\n\1k", (GRPC,)),
    ("POST", "/etcdserverpb.KV/Range", b"\0\0\0\0\3\n\1k", (GRPC, ("content-length", "8"))),
    ("POST", "/etcdserverpb.KV/Range", b"\0\0\0\0\3\n\1k", (GRPC, ("grpc-encoding", "gzip"))),
    ("POST", "/etcdserverpb.KV/Range", bytes(5), (GRPC,)),  # without a key
    ("POST", "/etcdserverpb.KV/Nope", bytes(5), (GRPC,)),
    ("POST", "/nope", bytes(5), (GRPC,)),
    ("POST", "/etcdserverpb.Maintenance/Snapshot", bytes(5), (GRPC,)),
    ("POST", "/etcdserverpb.Lease/LeaseKeepAlive", b"\0\0\0\0\2\x08\1", (GRPC,)),
]
"""Calls of gRPC, and what is for it and no call, or looks so."""


@pytest.mark.etcd
@NEEDS_ORACLE[1]
@pytest.mark.parametrize("flags", [(), ("--cors=https://a.example:443,http://b.example:8",)])
def test_origins_of_what_is_for_grpc_are_as_etcds(
    tmp_path: Path, authority: Authority, identity: Identity, flags: tuple[str, ...]
) -> None:
    files = [f"--cert-file={identity.certificate}", f"--key-file={identity.key}", *flags]
    url = "https://127.0.0.1:0"
    with (
        running_etcd_with_tls(tmp_path, *files) as their_port,
        running(f"--listen-client-urls={url}", f"--advertise-client-urls={url}", *files) as addresses,
        closing(Http2Client(their_port, authority)) as theirs,
        closing(Http2Client(port_of(addresses, SECURELY), authority)) as ours,
    ):
        for method, path, body, fields in OF_GRPC:
            for origin in ORIGINS:
                request = method, path, body, (*fields, *([] if origin is None else [("origin", origin)]))
                said = []
                for client in (theirs, ours):
                    head, _ = client.ask(*request)
                    cors = {name: value for name, value in head.items() if name.startswith("access-control-")}
                    if origin is None and head.get("content-type") == "application/grpc":
                        cors = {}  # those of calls have them where somebody looks at them
                    said.append((head[":status"], cors))
                assert (request, said[1]) == (request, said[0])


def test_a_browser_is_told_whether_it_may_read_what_is_refused(authority: Authority, identity: Identity) -> None:
    tls = TLSOptions(str(identity.certificate), str(identity.key))
    options = ServerOptions(tls=tls, origins=frozenset({"https://good"}))
    with serve(options=options) as server, closing(Http2Client(server.port, authority)) as client:
        for method, status in (("OPTIONS", "200"), ("GET", "405")):
            for origin, shown in (("https://good", "https://good"), ("https://bad", None)):
                head, _ = client.ask(method, "/etcdserverpb.KV/Range", None, (GRPC, ("origin", origin)))
                assert (head[":status"], head.get("access-control-allow-origin")) == (status, shown)


@pytest.mark.etcd
@NEEDS_ORACLE[1]
def test_curl_is_answered_as_etcd_answers_it(tmp_path: Path, authority: Authority, identity: Identity) -> None:
    files = [f"--cert-file={identity.certificate}", f"--key-file={identity.key}"]
    url = "https://127.0.0.1:0"
    with (
        running_etcd_with_tls(tmp_path, *files) as their_port,
        running(f"--listen-client-urls={url}", f"--advertise-client-urls={url}", *files) as addresses,
    ):
        put = body_of(key=text(b"k"), value=text(b"v")).decode()
        for path, *arguments in (
            *(["health"], ["nope"], ["nope", "-d", "x"], ["health", "--http1.1"], ["v3/kv/put", "-d", put]),
            *(["v3/kv/put", "-d", "{"], ["v3/kv/range"], ["etcdserverpb.KV/Range", "-d", "x"]),
        ):
            said = []
            for port in (their_port, port_of(addresses, SECURELY)):
                command = ["curl", "-sS", "--max-time", "20", "--cacert", str(authority.file), *arguments]
                command += ["-o", str(tmp_path / "out"), "-w", "%{http_version} %{http_code} %{exitcode}"]
                command.append(f"https://127.0.0.1:{port}/{path}")
                said.append(subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout)
            assert (path, arguments, said[1]) == (path, arguments, said[0])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_port_for_metrics_has_nothing_else(authority: Authority, identity: Identity, scheme: str) -> None:
    # It is often open to whoever collects metrics, without TLS: no key may be reached by it.
    files = [f"--cert-file={identity.certificate}", f"--key-file={identity.key}"]
    url, metrics = "http://127.0.0.1:0", f"{scheme}://127.0.0.1:0"
    with running(
        f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-metrics-urls={metrics}", *files
    ) as addresses:
        port = port_of(addresses, SECURELY if scheme == "https" else INSECURELY)
        made: http.client.HTTPConnection
        if scheme == "https":
            made = http.client.HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=client_context(authority))
        else:
            made = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        with closing(made) as connection:
            for method, path, status in (
                *(("GET", "/metrics", 200), ("GET", "/health", 200), ("GET", "/readyz/data_corruption", 200)),
                *(("GET", "/version", 404), ("GET", "/debug/vars", 404), ("POST", "/v3/kv/put", 404)),
                *(("GET", "//metrics", 307), ("OPTIONS", "*", 404), ("POST", "/metrics", 200)),
            ):
                connection.request(method, path, b"{}" if method == "POST" else None)
                answer = connection.getresponse()
                answer.read()
                assert (path, answer.status) == (path, status)
                assert answer.getheader("Access-Control-Allow-Origin") is None
        if scheme == "https":
            with closing(Http2Client(port, authority)) as client:
                assert client.ask("POST", "/v3/kv/put", b"{}")[0][":status"] == "404"
                grpc = (("content-type", "application/grpc"),)
                assert client.ask("POST", "/etcdserverpb.KV/Range", bytes(5), grpc)[0][":status"] == "404"


def test_a_broken_handshake_ends_as_before(server: Serving, authority: Authority) -> None:
    context = client_context(authority, alpn=["spdy/1"])
    with closing(http.client.HTTPSConnection("127.0.0.1", server.port, timeout=SECONDS, context=context)) as connection:
        connection.request("GET", "/health")  # it offers nothing that there is: both go on without
        assert connection.getresponse().status == 200
        assert isinstance(connection.sock, ssl.SSLSocket)
        assert connection.sock.selected_alpn_protocol() is None


@pytest.mark.parametrize(
    ("agreed", "sent", "begins"),
    [
        ("h2", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b""),
        ("http/1.1", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 505"),
        (None, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200"),
    ],
)
def test_what_was_agreed_on_is_spoken(
    server: Serving, authority: Authority, agreed: str | None, sent: bytes, begins: bytes
) -> None:
    context = client_context(authority, alpn=[] if agreed is None else [agreed])
    with (
        socket.create_connection(("127.0.0.1", server.port), SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(sent)
        answer = b""
        while part := secure.recv(10_000):
            answer += part
            if agreed != "h2" and len(answer) >= len(begins):
                break
        if agreed == "h2":
            assert b"HTTP/1.1" not in answer
            assert b"bad preface" in answer  # in its GOAWAY
        else:
            assert answer.startswith(begins)
