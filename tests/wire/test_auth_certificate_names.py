"""Certificates that are made to be taken for another's: who they are for, and who does not get in at all, as in etcd."""

from __future__ import annotations

import datetime
import socket
import ssl
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mvccstore.server.auth.certificates import common_name
from tests.wire.auth_calls import user_add_without_password
from tests.wire.pair import NEEDS_ORACLE
from tests.wire.test_auth_certificates import ASKED, SETUP, Secured, both
from tests.wire.tls_kit import SECONDS, Authority, Identity, client_context

pytestmark = NEEDS_ORACLE
NAME, ORGANIZATION = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME
Part = tuple[x509.ObjectIdentifier, str, _ASN1Type | None]


def name_of(*parts: Part) -> x509.Name:
    # Not checked for length: others' authorities sign what they like.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x509.Name([x509.NameAttribute(oid, text, kind, _validate=False) for oid, text, kind in parts])


class Forger:
    """Signs whatever it is asked to, by an authority that is trusted."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self._folder = folder
        key = load_pem_private_key(authority.identity.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._issuer = x509.load_pem_x509_certificate(authority.file.read_bytes()).subject
        self._made = 0

    def issue(
        self,
        subject: x509.Name,
        names: Sequence[x509.GeneralName] = (),
        usage: Sequence[x509.ObjectIdentifier] = (),
        days: tuple[int, int] = (-1, 1),
    ) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        first, last = (now + datetime.timedelta(days=each) for each in days)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._issuer).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(first).not_valid_after(last)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        self._made += 1
        identity = Identity(self._folder / f"forged-{self._made}.pem", self._folder / f"forged-{self._made}.key")
        identity.certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        identity.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return identity


def forged(forger: Forger) -> dict[str, Identity]:
    plain = None
    dns = x509.DNSName
    subjects: dict[str, x509.Name] = {
        "a name that goes on behind a NUL": name_of((NAME, "root\0.example", plain)),
        "a NUL before the name": name_of((NAME, "\0root", plain)),
        "the last of two": name_of((NAME, "bob", plain), (NAME, "root", plain)),
        "the first of two": name_of((NAME, "root", plain), (NAME, "bob", plain)),
        "an empty one behind it": name_of((NAME, "root", plain), (NAME, "", plain)),
        "another between": name_of((NAME, "root", plain), (ORGANIZATION, "bob", plain)),
        "an empty one": name_of((NAME, "", plain)),
        "none": name_of((ORGANIZATION, "root", plain)),
        "no subject at all": x509.Name([]),
        "spaces around": name_of((NAME, " root ", plain)),
        "another case": name_of((NAME, "Root", plain)),
        "letters that look alike": name_of((NAME, "r\u043e\u043et", plain)),
        "of printable letters": name_of((NAME, "root", _ASN1Type.PrintableString)),
        "of IA5 letters": name_of((NAME, "root", _ASN1Type.IA5String)),
        "of BMP letters": name_of((NAME, "root", _ASN1Type.BMPString)),
        "of T61 letters": name_of((NAME, "root", _ASN1Type.T61String)),
        "of universal letters": name_of((NAME, "root", _ASN1Type.UniversalString)),
        "one that is very long": name_of((NAME, "root" * 100, plain)),
    }
    found = {what: forger.issue(subject) for what, subject in subjects.items()}
    found["an alternative name alone"] = forger.issue(x509.Name([]), [dns("root")])
    found["another alternative name"] = forger.issue(name_of((NAME, "bob", plain)), [dns("root")])
    root = name_of((NAME, "root", plain))
    found["for servers alone"] = forger.issue(root, usage=[ExtendedKeyUsageOID.SERVER_AUTH])
    found["for clients too"] = forger.issue(
        root, usage=[ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    found["over"] = forger.issue(root, days=(-3, -1))
    found["not begun"] = forger.issue(root, days=(1, 3))
    return found


def gets_in(server: Secured, identity: Identity) -> bool:
    """Say whether a connection is served, by TLS alone: before any question of whose it is."""
    try:
        context = client_context(server.authority, identity)
        with (
            socket.create_connection(("127.0.0.1", server.port), SECONDS) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            secure.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            return secure.recv(12) == b"HTTP/1.1 200"
    except (ssl.SSLError, ConnectionError):
        return False


@pytest.mark.parametrize("size", [0, 1, 40, 200])
def test_what_is_cut_off_is_nobodys(tmp_path: Path, size: int) -> None:
    der = Authority(tmp_path).issue("root").der
    assert common_name(der) == "root"
    assert common_name(der[:size]) == common_name(der + b"x") == common_name(b"\0" * size) == ""


def _either(answer: tuple[int, Any]) -> tuple[int, Any]:
    """Through its gateway, etcd says one or the other of who has no name: some of its processes this, some that."""
    return (400, "etcdserver: user name is empty") if answer == (400, "etcdserver: user name not found") else answer


def test_a_certificate_is_for_whom_etcd_takes_it(tmp_path: Path) -> None:
    with both(tmp_path, has_names=True) as (authority, servers):
        root = authority.issue("root")
        everybody = forged(Forger(authority, tmp_path))
        said: list[Any] = []
        for server in servers:
            more = (user_add_without_password("root\0.example"), user_add_without_password(" root "))
            assert server.ask(root, *more, *SETUP) == ["ok"] * (len(more) + len(SETUP))
            answers: dict[str, Any] = {}
            for what, identity in everybody.items():
                is_in = gets_in(server, identity)
                answers[what] = is_in and [
                    server.ask(identity, *ASKED),
                    *(_either(server.post(identity, "/v3/auth/user/list", each)) for each in ({}, {"Accept": "*/*"})),
                ]
            said.append(answers)
        # Go cannot read these letters, and refuses the connection: here it is nobody's.
        universal = [answers.pop("of universal letters") for answers in said]
        assert universal[0] is False
        assert universal[1] == said[1]["none"]
        del everybody["of universal letters"]
        differing = {what: (said[0][what], said[1][what]) for what in everybody if said[0][what] != said[1][what]}
        assert differing == {}
        rights = {what for what, answer in said[1].items() if answer and answer[0][4] == "ok"}
        assert "a name that goes on behind a NUL" not in rights
