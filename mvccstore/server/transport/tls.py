"""TLS of the listening side: what is asked for, the context of each handshake, and what a client's certificate must say.

Invariants:

* I1. A handshake goes by the files as they are then: a certificate that was replaced counts from the next one on,
  with no restart. While they are none (half written, gone) those that were last good are used, and that is logged.
* I2. With `trusted_ca_file` or `client_cert_auth` no connection is served whose client has shown no certificate that
  one of the trusted authorities has signed, or one that the revocation list has.

OpenSSL is Python's own; `cryptography` is needed for a revocation list and for `self_signed` alone.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_log = logging.getLogger("mvccstore.server")

_VERSIONS = {"TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}
_NEWEST = "TLS1.3"
_CIPHERS = (
    *("AES_128_GCM_SHA256", "AES_256_GCM_SHA384"),
    *("AES_128_CBC_SHA", "AES_256_CBC_SHA", "AES_128_CBC_SHA256", "RC4_128_SHA"),
)
_CHACHA = ("CHACHA20_POLY1305_SHA256", "CHACHA20_POLY1305")
_SUITES = frozenset(
    [f"TLS_ECDHE_{kind}_WITH_{name}" for kind in ("RSA", "ECDSA") for name in (*_CIPHERS, *_CHACHA)]
    + [f"TLS_RSA_WITH_{name}" for name in _CIPHERS]
    + ["TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA", "TLS_RSA_WITH_3DES_EDE_CBC_SHA"]
)
_SUITES_1_3 = frozenset({"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"})
_HTTP2_SUITES = ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")
_DEFAULT_SUITES = [
    f"TLS_ECDHE_{kind}_WITH_{name}"
    for name in ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", _CHACHA[0], "AES_128_CBC_SHA", "AES_256_CBC_SHA")
    for kind in ("ECDSA", "RSA")
]
"""Go's, and so etcd's: each with keys of its own for every connection."""
_SPELLINGS = (
    ("POLY1305_SHA256", "POLY1305"),
    ("3DES_EDE_CBC", "DES_CBC3"),
    ("AES_128_CBC", "AES128"),
    ("AES_256_CBC", "AES256"),
    ("AES_", "AES"),
    ("RC4_128", "RC4"),
)


class CertificateRefusedError(Exception):
    """A client's certificate is valid, and not wanted. For people."""


@dataclass(frozen=True, slots=True)
class TLSOptions:
    """What a server speaks TLS with: etcd's flags of these names. Files are PEM, the revocation list DER or PEM.

    Raises:
        ValueError: They contradict each other, or name what there is not; with etcd's messages.
    """

    cert_file: str
    """The server's certificate, followed by those that lead to its root."""
    key_file: str
    """Its key, without a passphrase."""
    trusted_ca_file: str = ""
    """Whose certificates clients must show; if there is none, the system's authorities."""
    client_cert_auth: bool = False
    """Whether clients must show a certificate. They must with `trusted_ca_file` too, but only with this it is the name
    in it that says whose the calls are, once auth is enabled."""
    crl_file: str = ""
    """The revocation list, `--client-crl-file`; its signature and dates are not looked at (etcd's rule)."""
    allowed_hostnames: tuple[str, ...] = ()
    """Names or addresses of which a client's certificate must have one, `--client-cert-allowed-hostname`."""
    allowed_names: tuple[str, ...] = ()
    """Common names of which it must have one; `allowed-cn` of a configuration file."""
    min_version: str = "TLS1.2"
    max_version: str = ""
    """TLS1.2 or TLS1.3; the newest by default."""
    cipher_suites: tuple[str, ...] = ()
    """For TLS 1.2, by their names in RFC 5246 and the like, best first; Go's choice by default."""

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ValueError(problem)

    def _problem(self) -> str:
        if not self.cert_file or not self.key_file:
            return f"KeyFile and CertFile must both be present[key: {self.key_file}, cert: {self.cert_file}]"
        for version in (self.min_version, self.max_version):
            if version and version not in _VERSIONS:
                return f'unexpected TLS version "{version}" (must be one of: TLS1.2, TLS1.3)'
        if self.max_version and (self.min_version or "TLS1.2") > self.max_version:
            return f"min version ({self.min_version}) is greater than max version ({self.max_version})"
        if self.cipher_suites and self.min_version == _NEWEST:
            return "cipher suites cannot be configured when only TLS1.3 is enabled"
        for name in self.cipher_suites:
            if name not in _SUITES | _SUITES_1_3:
                return f'unexpected TLS cipher suite "{name}"'
        if self.cipher_suites and not set(_HTTP2_SUITES) & set(self.cipher_suites):
            needed = " or ".join(_HTTP2_SUITES)
            return (
                "http2: TLSConfig.CipherSuites is missing an HTTP/2-required AES_128_GCM_SHA256 cipher "
                f"(need at least one of {needed})"
            )
        if self.allowed_names and self.allowed_hostnames:
            return (
                "AllowedCNs and AllowedHostnames are mutually exclusive "
                f"(cns={_quoted(self.allowed_names)}, hostnames={_quoted(self.allowed_hostnames)})"
            )
        return ""

    @property
    def needs_client_cert(self) -> bool:
        """Whether clients must show a certificate."""
        return self.client_cert_auth or bool(self.trusted_ca_file)


def _quoted(names: Iterable[str]) -> str:
    return "[" + " ".join(f'"{name}"' for name in names) + "]"


_Stamp = tuple[tuple[int, int, int] | None, ...]


def _stamp(*paths: str) -> _Stamp:
    """Return what is not the same any more once one of the files is written, or replaced. Costs a stat each."""
    stamps: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116 - a third of the cost, at each handshake
        except OSError:
            stamps.append(None)
        else:
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
    return tuple(stamps)


class Handshakes:
    """Has what each handshake of one server needs.

    Raises:
        OSError: A file cannot be read, or is no certificate or key (`ssl.SSLError`).
    """

    def __init__(self, options: TLSOptions) -> None:
        self.options = options
        self._files = tuple(filter(None, (options.cert_file, options.key_file, options.trusted_ca_file)))
        self._stamp = _stamp(*self._files)
        self._context = _new_context(options)
        self._revoked: frozenset[int] = frozenset()
        self._revoked_stamp: _Stamp = ()

    def context(self) -> ssl.SSLContext:
        """Return the context of the next handshake. Cost: a stat for each file."""
        stamp = _stamp(*self._files)
        if stamp != self._stamp:
            self._stamp = stamp  # I1: tried once for each change
            try:
                self._context = _new_context(self.options)
            except OSError as error:
                fields = {"cert-file": self.options.cert_file, "key-file": self.options.key_file, "error": str(error)}
                _log.warning("failed to create peer certificate", extra={"fields": fields})
        return self._context

    def check(self, secured: ssl.SSLObject) -> bytes | None:
        """Look at the certificate of a client, which is valid; return it, DER, or None if it has shown none.

        Raises:
            CertificateRefusedError: It is not to be served all the same.
        """
        certificate = secured.getpeercert(binary_form=True)
        options = self.options
        if certificate is None:
            return None
        if options.crl_file or options.allowed_names or options.allowed_hostnames:
            shown = secured.getpeercert() or {}
            if options.crl_file:
                self._check_serial(int(str(shown["serialNumber"]), 16))
            if options.allowed_names:
                is_wanted = not set(options.allowed_names).isdisjoint(_common_names(shown)[-1:])
            else:
                is_wanted = not options.allowed_hostnames or any(
                    _has(shown, name) for name in options.allowed_hostnames
                )
            if not is_wanted:
                msg = "client certificate authentication failed"
                raise CertificateRefusedError(msg)
        return certificate

    def _check_serial(self, serial: int) -> None:
        stamp = _stamp(self.options.crl_file)
        if stamp != self._revoked_stamp or None in stamp:
            try:
                self._revoked = _revoked(Path(self.options.crl_file).read_bytes())
            except (OSError, ValueError) as error:
                raise CertificateRefusedError(str(error)) from error  # I2
            self._revoked_stamp = stamp
        if serial in self._revoked:
            msg = f"transport: certificate serial {serial:x} revoked"
            raise CertificateRefusedError(msg)


def _new_context(options: TLSOptions) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    minimum = options.min_version or "TLS1.2"
    if options.cipher_suites and set(options.cipher_suites) <= _SUITES_1_3:
        minimum = _NEWEST
    context.minimum_version = _VERSIONS[minimum]
    context.maximum_version = _VERSIONS[options.max_version or _NEWEST]
    suites = [name for name in options.cipher_suites if name not in _SUITES_1_3]
    context.set_ciphers(":".join(map(_openssl_name, suites or _DEFAULT_SUITES)))
    # Not asked for on a terminal: a key with a passphrase is one that cannot be read.
    context.load_cert_chain(options.cert_file, options.key_file, password=lambda: b"")
    context.set_alpn_protocols(["h2", "http/1.1"])
    if options.needs_client_cert:
        context.verify_mode = ssl.CERT_REQUIRED
        # OpenSSL looks at a certificate when a session begins and not when it is taken up again: one that has ended, or
        # whose authority is trusted no more, would be good for hours.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever is trusted need be no root
        if options.trusted_ca_file:
            context.load_verify_locations(options.trusted_ca_file)
        else:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    return context


def _openssl_name(suite: str) -> str:
    """Return what OpenSSL calls a suite.

    >>> _openssl_name("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256"), _openssl_name("TLS_RSA_WITH_AES_256_GCM_SHA384")
    ('ECDHE-RSA-AES128-SHA256', 'AES256-GCM-SHA384')
    """
    kind, _, cipher = suite.removeprefix("TLS_").partition("_WITH_")
    for theirs, ours in _SPELLINGS:
        cipher = cipher.replace(theirs, ours)
    exchange = "" if kind == "RSA" else kind + "_"
    return (exchange + cipher).replace("_", "-")


@lru_cache(maxsize=4)
def _revoked(data: bytes) -> frozenset[int]:
    """Return the serial numbers of a revocation list."""
    from cryptography import x509

    is_pem = data.startswith(b"-----BEGIN")
    found = x509.load_pem_x509_crl(data) if is_pem else x509.load_der_x509_crl(data)
    return frozenset(each.serial_number for each in found)


def _common_names(shown: Mapping[str, Any]) -> list[str]:
    return [value for part in shown.get("subject", ()) for name, value in part if name == "commonName"]


def _has(shown: Mapping[str, Any], wanted: str) -> bool:
    """Say whether a certificate, as `getpeercert` shows it, is for a host: a name, or an address."""
    try:
        address = ipaddress.ip_address(wanted.removeprefix("[").removesuffix("]"))
    except ValueError:
        address = None
    for kind, value in shown.get("subjectAltName", ()):
        if kind == "IP Address" and address is not None:
            if ipaddress.ip_address(value) == address:
                return True
        elif kind == "DNS" and address is None:
            name, known = wanted.lower().removesuffix("."), value.lower().removesuffix(".")
            if name == known or (known.startswith("*.") and name.partition(".")[2] == known[2:]):
                return True
    return False


def self_signed(folder: Path, hosts: Iterable[str], years: int = 1) -> tuple[str, str]:
    """Return certificate and key of `--auto-tls` in a folder; if they are not there they are made, for these hosts.

    Raises:
        ValueError: `years` is not positive.
        OSError: They cannot be written.
    """
    if years <= 0:
        msg = "selfSignedCertValidity is invalid,it should be greater than 0"
        raise ValueError(msg)
    certificate, key = folder.absolute() / "cert.pem", folder.absolute() / "key.pem"
    if not (certificate.exists() and key.exists()):
        from mvccstore.server.transport.self_signed import make

        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        make(certificate, key, hosts, years)
    return os.fspath(certificate), os.fspath(key)
