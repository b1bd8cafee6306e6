"""TLS on the wire: who gets in, who does not, what they are told, and that nobody else suffers."""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mvccstore.server import ServerOptions, Serving, TLSOptions, TransportLimits, serve, serving
from mvccstore.server.messages import rpc
from mvccstore.server.transport.call import Call, Method
from mvccstore.server.transport.secure import SecureTransport
from tests.wire.tls_kit import LOCAL, SECONDS, Authority, Identity, ask, client_context, secure_channel

HEALTHY = (200, b'{"health":"true","reason":""}')
NO_TLS = "tls: first record does not look like a TLS handshake"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def known(authority: Authority) -> Identity:
    return authority.issue("known", ["client.example", "10.1.2.3"])


@pytest.fixture
def server_identity(authority: Authority) -> Identity:
    return authority.issue("server", LOCAL)


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have servers run on one loop or the other."""
    if request.param == "asyncio":
        monkeypatch.setattr(serving, "new_event_loop", asyncio.new_event_loop)


Secured = Callable[..., Serving]


@pytest.fixture
def secured(server_identity: Identity) -> Secured:
    """Make a server with TLS: `secured(option=...)`."""

    def make(limits: TransportLimits | None = None, **options: Any) -> Serving:
        tls = TLSOptions(str(server_identity.certificate), str(server_identity.key), **options)
        return serve(options=ServerOptions(tls=tls, transport=limits or TransportLimits()))

    return make


def put(channel: grpc.Channel, key: bytes, value: bytes) -> int:
    call = channel.unary_unary("/etcdserverpb.KV/Put", rpc.PutRequest.SerializeToString, rpc.PutResponse.FromString)
    return int(call(rpc.PutRequest(key=key, value=value), timeout=SECONDS).header.revision)


def get(channel: grpc.Channel, key: bytes) -> bytes:
    call = channel.unary_unary(
        "/etcdserverpb.KV/Range", rpc.RangeRequest.SerializeToString, rpc.RangeResponse.FromString
    )
    return bytes(call(rpc.RangeRequest(key=key), timeout=SECONDS).kvs[0].value)


def handshake(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Connect, and exchange a word: in TLS 1.3 a client is done before the server has looked at its certificate."""
    plain = socket.create_connection(("127.0.0.1", port), SECONDS)
    secure = context.wrap_socket(plain, server_hostname="127.0.0.1")
    try:
        secure.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert secure.recv(12) == b"HTTP/1.1 200"
    except BaseException:
        secure.close()
        raise
    return secure


def is_ended(connection: socket.socket) -> bool:
    """Read to the end; say whether there is one, in either of its forms."""
    with suppress(ConnectionResetError):
        while connection.recv(1_000):
            pass
    return True  # else `recv` has raised TimeoutError


def rejections(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.__dict__["fields"]["error"]
        for record in caplog.records
        if record.getMessage() == "rejected connection on client endpoint"
    ]


@pytest.mark.usefixtures("loop")
def test_grpc_and_http_share_a_port(secured: Secured, authority: Authority) -> None:
    with secured() as server, secure_channel(server.port, authority) as channel:
        assert server.url == f"https://127.0.0.1:{server.port}"
        assert put(channel, b"k", b"v") == 2
        assert get(channel, b"k") == b"v"
        assert ask(server.port, client_context(authority)) == HEALTHY


@pytest.mark.parametrize(
    ("offered", "chosen"), [([], None), (["h2"], "h2"), (["http/1.1"], "http/1.1"), (["http/1.1", "h2"], "h2")]
)
def test_who_offers_both_protocols_gets_the_newer_one(
    secured: Secured, authority: Authority, offered: list[str], chosen: str | None
) -> None:
    with (
        secured() as server,
        socket.create_connection(("127.0.0.1", server.port), SECONDS) as plain,
        client_context(authority, alpn=offered).wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert secure.selected_alpn_protocol() == chosen


@pytest.mark.usefixtures("loop")
def test_large_values_pass_in_both_directions(secured: Secured, authority: Authority) -> None:
    value = bytes(range(256)) * 5_000
    with secured() as server, secure_channel(server.port, authority) as channel:
        for number in range(8):
            put(channel, b"large/%d" % number, value)
        found = channel.unary_unary(
            "/etcdserverpb.KV/Range", rpc.RangeRequest.SerializeToString, rpc.RangeResponse.FromString
        )(rpc.RangeRequest(key=b"large/", range_end=b"large0"), timeout=SECONDS)
        assert [kv.value for kv in found.kvs] == [value] * 8


@pytest.mark.pure("replaces a method")
def test_a_large_answer_is_encrypted_in_parts(
    secured: Secured, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once it would take its size of memory until the connection ends, however idle that is."""
    pending: list[int] = []
    flush = SecureTransport._flush

    def noted(transport: SecureTransport) -> None:
        pending.append(transport._outgoing.pending)
        flush(transport)

    monkeypatch.setattr(SecureTransport, "_flush", noted)
    with secured() as server:
        server.store.put(b"k", bytes(1_200_000))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", server.port, timeout=SECONDS, context=client_context(authority)
        )
        connection.request("POST", "/v3/kv/range", b'{"key":"aw=="}')
        assert len(connection.getresponse().read()) > 1_600_000
        connection.close()
    assert 50_000 < max(pending) < 100_000


@pytest.mark.usefixtures("loop")
def test_with_mutual_tls_only_the_authoritys_get_in(
    secured: Secured, authority: Authority, known: Identity, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Authority(tmp_path, "other").issue("stranger")
    with secured(trusted_ca_file=str(authority.file), client_cert_auth=True) as server:
        with secure_channel(server.port, authority, known) as channel:
            assert put(channel, b"k", b"v") == 2
        with pytest.raises(ssl.SSLError, match="certificate required"):
            handshake(server.port, client_context(authority))
        with pytest.raises(ssl.SSLError, match="alert unknown ca"):
            handshake(server.port, client_context(authority, stranger))
        assert ask(server.port, client_context(authority, known)) == HEALTHY
    assert rejections(caplog) == ["tls: client didn't provide a certificate", "tls: certificate verify failed"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("needs_certificates", [False, True])
def test_sessions_of_clients_with_certificates_are_not_taken_up_again(
    secured: Secured, authority: Authority, known: Identity, version: ssl.TLSVersion, needs_certificates: bool
) -> None:
    context = client_context(authority, known)
    context.maximum_version = version
    options = {"trusted_ca_file": str(authority.file), "client_cert_auth": True} if needs_certificates else {}
    with secured(**options) as server:
        with handshake(server.port, context) as first:
            session = first.session
        plain = socket.create_connection(("127.0.0.1", server.port), SECONDS)
        with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as second:
            second.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert second.recv(12) == b"HTTP/1.1 200"
            assert second.session_reused is not needs_certificates


def test_a_trusted_authority_alone_asks_for_certificates_too(secured: Secured, authority: Authority) -> None:
    with (
        secured(trusted_ca_file=str(authority.file)) as server,
        pytest.raises(ssl.SSLError, match="certificate required"),
    ):
        handshake(server.port, client_context(authority))


@pytest.mark.parametrize("shows", [True, False])
def test_calls_know_the_clients_certificate(
    server_identity: Identity, authority: Authority, known: Identity, shows: bool
) -> None:
    seen: list[bytes | None] = []

    def look(method: Method) -> Method:
        handler = method.handler
        if handler is None:
            return method

        def noting(call: Call, request: Any) -> bytes | None:
            seen.append(call.peer.certificate)
            return handler(call, request)

        return replace(method, handler=noting)

    tls = TLSOptions(
        str(server_identity.certificate), str(server_identity.key), str(authority.file) if shows else "", shows
    )
    with serve(options=ServerOptions(tls=tls, intercept=look)) as server:
        with secure_channel(server.port, authority, known if shows else None) as channel:
            put(channel, b"k", b"v")
        assert ask(server.port, client_context(authority, known)) == HEALTHY
    assert seen == [known.der if shows else None]


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_who_was_revoked_is_out_from_the_next_connection_on(
    secured: Secured,
    authority: Authority,
    known: Identity,
    tmp_path: Path,
    encoding: Encoding,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other, revoked = authority.issue("other"), tmp_path / "crl"
    revoked.write_bytes(authority.revoke(other, encoding=encoding))
    with secured(trusted_ca_file=str(authority.file), crl_file=str(revoked)) as server:
        with handshake(server.port, client_context(authority, known)) as kept:
            with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                handshake(server.port, client_context(authority, other))
            revoked.write_bytes(authority.revoke(known, encoding=encoding))
            with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                handshake(server.port, client_context(authority, known))
            handshake(server.port, client_context(authority, other)).close()
            # As in etcd, who is in stays.
            kept.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert kept.recv(1_000) != b""
        revoked.unlink()
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            handshake(server.port, client_context(authority, other))
    assert rejections(caplog) == [
        f"transport: certificate serial {other.serial:x} revoked",
        f"transport: certificate serial {known.serial:x} revoked",
        f"[Errno 2] No such file or directory: '{revoked}'",
    ]


@pytest.mark.parametrize(
    ("options", "is_in"),
    [
        ({"allowed_hostnames": ("client.example",)}, True),
        ({"allowed_hostnames": ("x", "CLIENT.example.")}, True),
        ({"allowed_hostnames": ("10.1.2.3",)}, True),
        ({"allowed_hostnames": ("10.1.2.4", "example", "known")}, False),
        ({"allowed_names": ("known",)}, True),
        ({"allowed_names": ("client.example", "Known")}, False),
    ],
)
def test_only_certain_names_get_in(
    secured: Secured,
    authority: Authority,
    known: Identity,
    options: dict[str, Any],
    is_in: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with secured(trusted_ca_file=str(authority.file), **options) as server:
        if is_in:
            handshake(server.port, client_context(authority, known)).close()
        else:
            with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                handshake(server.port, client_context(authority, known))
    assert rejections(caplog) == ([] if is_in else ["client certificate authentication failed"])


def served_serial(port: int, authority: Authority) -> int:
    with handshake(port, client_context(authority)) as secure:
        return int(str((secure.getpeercert() or {})["serialNumber"]), 16)


@pytest.mark.usefixtures("loop")
def test_a_replaced_certificate_is_served_without_a_restart(
    secured: Secured, authority: Authority, server_identity: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = server_identity.serial, authority.issue("server-2", LOCAL)
    with secured() as server, handshake(server.port, client_context(authority)) as old:
        assert served_serial(server.port, authority) == before
        server_identity.key.write_bytes(after.key.read_bytes())  # half way: no pair
        assert served_serial(server.port, authority) == before
        server_identity.certificate.write_bytes(b"-----BEGIN CERT")
        assert served_serial(server.port, authority) == before
        server_identity.take(after)
        assert served_serial(server.port, authority) == after.serial != before
        old.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert old.recv(1_000) != b""
    assert [record.getMessage() for record in caplog.records].count("failed to create peer certificate") == 2


@pytest.mark.parametrize(
    ("options", "version", "is_in"),
    [
        ({}, ssl.TLSVersion.TLSv1_2, True),
        ({}, ssl.TLSVersion.TLSv1_3, True),
        ({"min_version": "TLS1.3"}, ssl.TLSVersion.TLSv1_2, False),
        ({"min_version": "TLS1.3"}, ssl.TLSVersion.TLSv1_3, True),
        ({"max_version": "TLS1.2"}, ssl.TLSVersion.TLSv1_2, True),
        ({"max_version": "TLS1.2"}, ssl.TLSVersion.TLSv1_3, False),
    ],
)
def test_versions_are_those_that_were_asked_for(
    secured: Secured, authority: Authority, options: dict[str, Any], version: ssl.TLSVersion, is_in: bool
) -> None:
    context = client_context(authority)
    context.minimum_version = context.maximum_version = version
    with secured(**options) as server:
        if is_in:
            with handshake(server.port, context) as secure:
                assert secure.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
        else:
            with pytest.raises(ssl.SSLError, match="alert protocol version"):
                handshake(server.port, context)


def test_cipher_suites_are_those_that_were_asked_for(secured: Secured, authority: Authority) -> None:
    context = client_context(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    suites = ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")
    with secured(cipher_suites=suites) as server:
        with handshake(server.port, context) as secure:
            assert secure.cipher() == ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLSv1.2", 256)
        context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
        with pytest.raises(ssl.SSLError, match="handshake failure"):
            handshake(server.port, context)


@pytest.mark.parametrize(
    ("cipher", "is_in"),
    [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", True),
        ("ECDHE-ECDSA-AES256-SHA", True),
        ("ECDHE-ECDSA-AES128-SHA256", False),
        ("AES128-GCM-SHA256", False),
    ],
)
def test_without_a_choice_cipher_suites_are_gos(
    secured: Secured, authority: Authority, cipher: str, is_in: bool
) -> None:
    context = client_context(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(cipher)
    with secured() as server:
        if is_in:
            with handshake(server.port, context) as secure:
                assert (secure.cipher() or ("",))[0] == cipher
        else:
            with pytest.raises(ssl.SSLError, match="handshake failure"):
                handshake(server.port, context)


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 50, b"\x16\x03\x01\0\1x"],
)
def test_what_is_no_tls_loses_its_connection_alone(
    secured: Secured, authority: Authority, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with secured() as server, handshake(server.port, client_context(authority)) as other:
        with socket.create_connection(("127.0.0.1", server.port), SECONDS) as plain:
            plain.sendall(sent)
            answer = plain.recv(100)
            # An alert, if it began as TLS does.
            assert answer == b"" or (sent[0] == 0x16 and answer[0] == 0x15)
        other.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert other.recv(1_000) != b""
    assert len(rejections(caplog)) == 1
    assert (rejections(caplog) == [NO_TLS]) == (sent[0] != 0x16)


def test_a_broken_record_ends_its_connection_alone(secured: Secured, authority: Authority) -> None:
    limits = TransportLimits()
    with secured(limits=limits) as server, handshake(server.port, client_context(authority)) as other:
        broken = handshake(server.port, client_context(authority))
        with socket.socket(fileno=broken.detach()) as below:
            below.settimeout(SECONDS)
            below.sendall(b"\x17\x03\x03\0\x20" + b"x" * 32)
            assert is_ended(below)
        other.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert other.recv(1_000) != b""
    assert limits.cuts.by_told == {("tls", "broken"): 1}


def test_tls_on_a_plain_port_is_told_so() -> None:
    with serve() as server:
        context = client_context(None)
        with (
            socket.create_connection(("127.0.0.1", server.port), SECONDS) as plain,
            pytest.raises(ssl.SSLError, match=r"(?i)wrong version number|record layer"),
        ):
            context.wrap_socket(plain)


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_a_handshake_that_never_ends_is_given_up(
    secured: Secured, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    limits = TransportLimits(tls_handshake_seconds=0.01)
    with (
        secured(limits=limits) as server,
        socket.create_connection(("127.0.0.1", server.port), SECONDS) as silent,
    ):
        silent.sendall(sent)
        assert silent.recv(100) == b""
    assert rejections(caplog) == ["tls: the handshake takes too long"]
    assert limits.cuts.by_limit == {"tls_handshake_seconds": 1}


@pytest.mark.usefixtures("loop")
def test_stopping_does_not_wait_for_handshakes(
    secured: Secured, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with secured() as server:
        silent = socket.create_connection(("127.0.0.1", server.port), SECONDS)
        silent.sendall(b"\x16\x03\x01")
        assert ask(server.port, client_context(authority)) == HEALTHY  # so that was accepted, too
    with silent:
        assert is_ended(silent)
    assert rejections(caplog) == []


def test_a_client_that_does_not_read_is_waited_for(secured: Secured, authority: Authority) -> None:
    with secured() as server, handshake(server.port, client_context(authority)) as secure:
        for _ in range(200):
            secure.sendall(b"GET /debug/vars HTTP/1.1\r\nHost: x\r\n\r\n")
        secure.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = b""
        while part := secure.recv(65_536):
            answers += part
    assert answers.count(b"HTTP/1.1 200 OK") == 201
    assert b'"etcdserver"' in answers[-500:]


@pytest.mark.parametrize("which", ["cert_file", "key_file", "trusted_ca_file"])
def test_files_that_are_none_are_told_at_the_start(
    server_identity: Identity, authority: Authority, tmp_path: Path, which: str
) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"none")
    options = TLSOptions(str(server_identity.certificate), str(server_identity.key), str(authority.file))
    for path in (broken, tmp_path / "missing"):
        server = serve(options=ServerOptions(tls=replace(options, **{which: str(path)})))
        with pytest.raises(OSError), server:  # noqa: PT011 - ssl.SSLError, or that of a missing file
            pass
