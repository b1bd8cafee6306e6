"""The name in a client's certificate, which is the user that it is for."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1_000)
def common_name(certificate: bytes) -> str:
    """Return the common name of a certificate in DER, the last if it has several; empty if it has none."""
    from cryptography.x509 import load_der_x509_certificate
    from cryptography.x509.oid import NameOID

    names = load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[-1].value) if names else ""
