"""A certificate that a server makes for itself: `--auto-tls`. Needs `cryptography`, so it is imported when one is made."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mvccstore.clock import SystemClock


def make(certificate: Path, key: Path, hosts: Iterable[str], years: int, *, is_portable: bool = False) -> None:
    """Write a new key and a certificate for these hosts, which it has signed itself.

    Args:
        is_portable: With a key on P-256, which every client takes. etcd's are on P-521, which BoringSSL and with it
            grpcio refuses.
    """
    private = ec.generate_private_key(ec.SECP256R1() if is_portable else ec.SECP521R1())
    now = datetime.fromtimestamp(SystemClock().time_ms() / 1_000, UTC)
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "etcd")])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        crl_sign=True,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=365 * years))
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .sign(private, hashes.SHA512())
    )
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    text = private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(text)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
