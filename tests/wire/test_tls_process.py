"""TLS on the command line: etcd's flags and what it refuses; etcdctl at ours and at the real one."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mvccstore.server.flags import FlagError, parse
from mvccstore.server.process import plan
from tests.oracle.choice import find_oracle
from tests.oracle.process import free_ports
from tests.wire.etcdctl_kit import Etcdctl
from tests.wire.pair import NEEDS_ORACLE
from tests.wire.tls_kit import LOCAL, SECONDS, Authority, Identity, ask, client_context
from tests.wire.tls_servers import INSECURELY, SECURELY, port_of, running, running_etcd_with_tls

URL = "https://127.0.0.1:2379"
LISTEN = ["--listen-client-urls", URL, "--advertise-client-urls", URL]
FILES = ["--cert-file", "c", "--key-file", "k"]
NO_FILES = f"TLS key/cert (--cert-file, --key-file) must be provided for client url {URL} with HTTPS scheme"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server_identity(authority: Authority) -> Identity:
    return authority.issue("server", LOCAL)


@pytest.fixture(scope="module")
def known(authority: Authority) -> Identity:
    return authority.issue("root")


def test_http_and_https_at_once(authority: Authority, server_identity: Identity) -> None:
    urls = "https://127.0.0.1:0,http://127.0.0.1:0"
    files = [f"--cert-file={server_identity.certificate}", f"--key-file={server_identity.key}"]
    with running(f"--listen-client-urls={urls}", f"--advertise-client-urls={urls}", *files) as addresses:
        assert ask(port_of(addresses, SECURELY), client_context(authority))[0] == 200
        assert INSECURELY in addresses
        warning = "scheme is http or unix while key and cert files are present; ignoring key and cert files"
        assert addresses[warning] == "http://127.0.0.1:0"


def test_auto_tls_makes_a_certificate_and_keeps_it(tmp_path: Path) -> None:
    url = "https://127.0.0.1:0"
    arguments = [f"--data-dir={tmp_path}", "--auto-tls", "--self-signed-cert-validity=2"]
    made = tmp_path / "fixtures" / "client"
    contents = []
    for _ in range(2):
        with running(f"--listen-client-urls={url}", f"--advertise-client-urls={url}", *arguments) as addresses:
            # It has signed itself, for the address that it listens on.
            context = client_context(None)
            context.load_verify_locations(made / "cert.pem")
            context.verify_mode, context.check_hostname = ssl.CERT_REQUIRED, True
            assert ask(port_of(addresses, SECURELY), context)[0] == 200
        contents.append(((made / "cert.pem").read_bytes(), (made / "key.pem").read_bytes()))
        assert (made / "key.pem").stat().st_mode & 0o777 == 0o600
    assert contents[0] == contents[1]


def test_a_certificate_that_cannot_be_read_is_told_at_the_start(tmp_path: Path) -> None:
    url = "https://127.0.0.1:0"
    arguments = ["--listen-client-urls", url, "--advertise-client-urls", url, "--memory"]
    files = [f"--cert-file={tmp_path / 'missing'}", f"--key-file={tmp_path / 'missing'}"]
    command = [sys.executable, "-m", "mvccstore.server.etcd_shim", *arguments, *files]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "No such file" in ended.stderr


REFUSED: list[Any] = [
    (LISTEN, NO_FILES),
    ([*LISTEN, "--trusted-ca-file", "x", "--client-cert-auth"], NO_FILES),
    ([*LISTEN, "--cert-file", "x"], "KeyFile and CertFile must both be present[key: , cert: x]"),
    (["--tls-min-version=TLS1.1"], 'unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)'),
    (["--tls-max-version=1.3"], 'unexpected TLS version "1.3" (must be one of: TLS1.2, TLS1.3)'),
    (
        ["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
        "min version (TLS1.3) is greater than max version (TLS1.2)",
    ),
    (
        ["--tls-min-version=TLS1.3", "--cipher-suites=TLS_AES_128_GCM_SHA256"],
        "cipher suites cannot be configured when only TLS1.3 is enabled",
    ),
    ([*LISTEN, *FILES, "--cipher-suites=TLS_NULL"], 'unexpected TLS cipher suite "TLS_NULL"'),
    (
        ["--listen-metrics-urls=https://127.0.0.1:0"],
        "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_be_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(FlagError) as caught:
        plan(parse(arguments, {}))
    assert str(caught.value) == message


@pytest.mark.etcd
@NEEDS_ORACLE[1]
@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_etcd_refuses_the_same_with_the_same_words(tmp_path: Path, arguments: list[str], message: str) -> None:
    ports = free_ports(2)
    client, peer = (f"http://127.0.0.1:{port}" for port in ports)
    urls = [] if "--listen-client-urls" in arguments else [f"--listen-client-urls={client}"]
    command = [
        *(find_oracle().etcd, f"--data-dir={tmp_path}", *urls, f"--advertise-client-urls={client}"),
        *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}"),
        *arguments,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode != 0
    assert json.dumps(message)[1:-1] in ended.stderr or message in ended.stderr


def test_flags_and_environment_become_options() -> None:
    environment = {"ETCD_CERT_FILE": "c", "ETCD_KEY_FILE": "k", "ETCD_CLIENT_CERT_AUTH": "true"}
    arguments = [
        *(*LISTEN, "--trusted-ca-file=ca", "--client-crl-file=crl", "--client-cert-allowed-hostname=a,b"),
        *("--tls-min-version=TLS1.2", "--tls-max-version=TLS1.3"),
        "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_AES_128_GCM_SHA256",
    ]
    chosen = plan(parse(arguments, environment))
    tls = chosen.options.tls
    assert tls is not None
    assert (tls.cert_file, tls.key_file, tls.trusted_ca_file, tls.crl_file) == ("c", "k", "ca", "crl")
    assert (tls.client_cert_auth, tls.allowed_hostnames, tls.allowed_names) == (True, ("a", "b"), ())
    assert (tls.min_version, tls.max_version) == ("TLS1.2", "TLS1.3")
    assert tls.cipher_suites == ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256")
    assert [listener.is_secure for listener in chosen.listeners] == [True]


def test_a_file_has_a_section(tmp_path: Path) -> None:
    path = tmp_path / "etcd.conf"
    section = {"cert-file": "c", "key-file": "k", "client-cert-auth": True, "allowed-cn": ["x", "y"]}
    urls = {"listen-client-urls": URL, "advertise-client-urls": URL}
    path.write_text(json.dumps({**urls, "client-transport-security": section}))
    tls = plan(parse(["--config-file", str(path)], {})).options.tls
    assert tls is not None
    assert (tls.cert_file, tls.key_file, tls.client_cert_auth, tls.allowed_names) == ("c", "k", True, ("x", "y"))


@pytest.mark.etcd
@NEEDS_ORACLE[1]
@pytest.mark.parametrize("is_mutual", [False, True])
def test_etcdctl_is_answered_alike(
    tmp_path: Path, authority: Authority, server_identity: Identity, known: Identity, is_mutual: bool
) -> None:
    binary = find_oracle().etcdctl
    assert binary is not None
    files = [f"--cert-file={server_identity.certificate}", f"--key-file={server_identity.key}"]
    if is_mutual:
        files += [f"--trusted-ca-file={authority.file}", "--client-cert-auth"]
    url = "https://127.0.0.1:0"
    trust, shown = f"--cacert={authority.file}", [f"--cert={known.certificate}", f"--key={known.key}"]
    with (
        running_etcd_with_tls(tmp_path, *files) as their_port,
        running(f"--listen-client-urls={url}", f"--advertise-client-urls={url}", *files) as addresses,
    ):
        ports = (their_port, port_of(addresses, SECURELY))
        theirs, ours = (Etcdctl(binary, f"https://127.0.0.1:{port}") for port in ports)
        for arguments, is_in in (
            ([trust, *shown, "put", "k", "v"], True),
            ([trust, *shown, "get", "k"], True),
            (["--insecure-skip-tls-verify", *shown, "get", "k"], True),
            ([trust, "get", "k"], not is_mutual),
            (["--insecure-skip-tls-verify", "get", "k"], not is_mutual),
            ([*shown, "get", "k"], False),
            ([trust, *shown, "member", "list", "--write-out=fields"], True),
        ):
            said = [each.run("--command-timeout=2s", "--dial-timeout=2s", *arguments) for each in (theirs, ours)]
            assert (arguments, [each.code == 0 for each in said]) == (arguments, [is_in, is_in])
            assert said[0].error == said[1].error
            if "list" not in arguments:
                assert said[0].out == said[1].out
