"""An authority for tests: certificates of servers and clients, revocation lists; and clients that use them."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

SECONDS = 20.0
LOCAL = ("127.0.0.1", "localhost")
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path

    @property
    def serial(self) -> int:
        return self._parsed.serial_number

    @property
    def der(self) -> bytes:
        return self._parsed.public_bytes(Encoding.DER)

    @property
    def _parsed(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes())

    def take(self, other: Identity) -> None:
        """Become another, in the same files."""
        self.key.write_bytes(other.key.read_bytes())
        self.certificate.write_bytes(other.certificate.read_bytes())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.identity = self._write(name, self._sign(name, self._key.public_key(), (), is_authority=True), self._key)
        self.file = self.identity.certificate

    def issue(self, common_name: str, names: Sequence[str] = ()) -> Identity:
        """Make a key and a certificate for it, with these names and addresses beside the common name."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._write(f"{self._name}-{common_name}", self._sign(common_name, key.public_key(), names), key)

    def revoke(self, *identities: Identity, encoding: Encoding = Encoding.DER) -> bytes:
        """Return a revocation list."""
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(_name(self._name))
        builder = builder.last_update(now - _DAY).next_update(now + _DAY)
        for identity in identities:
            revoked = x509.RevokedCertificateBuilder().serial_number(identity.serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(encoding)

    def _sign(
        self, subject: str, key: ec.EllipticCurvePublicKey, names: Sequence[str], *, is_authority: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(_name(self._name))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_san(name) for name in names]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Identity:
        identity = Identity(self._folder / f"{stem}.pem", self._folder / f"{stem}.key")
        identity.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        identity.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return identity


def client_context(
    authority: Authority | None, identity: Identity | None = None, alpn: Sequence[str] = ()
) -> ssl.SSLContext:
    """Return what a client connects with; without an authority it believes everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(authority.file)
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def ask(port: int, context: ssl.SSLContext, path: str = "/health") -> tuple[int, bytes]:
    """Get a page by HTTP/1.1 over TLS."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def secure_channel(port: int, authority: Authority, identity: Identity | None = None) -> grpc.Channel:
    """Return a channel of grpcio."""
    credentials = grpc.ssl_channel_credentials(
        authority.file.read_bytes(),
        None if identity is None else identity.key.read_bytes(),
        None if identity is None else identity.certificate.read_bytes(),
    )
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)
