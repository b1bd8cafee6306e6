"""Tokens that are signed: they hold user, revision and end, so whoever has the key can tell, also after a restart.

They end by their time, or with the next change of users and roles. RFC 7519, as much of it as etcd has.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.x509 import load_pem_x509_certificate
from jwt.algorithms import get_default_algorithms

from mvccstore.clock import Clock
from mvccstore.server.auth.tokens import Caller, TokenOptionsError
from mvccstore.server.durations import parse_duration
from mvccstore.server.transport.status import Code, RpcError

SIGN_METHODS = frozenset({*(f"{kind}{bits}" for kind in ("HS", "RS", "PS", "ES") for bits in (256, 384, 512)), "EdDSA"})
TTL_SECONDS_DEFAULT = 300.0
TOKEN_BYTES_MAX = 16 << 10
_KEPT_MAX = 1_000
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, as JSON can have it; no name of a user can."""
_PRIVATE = {"R": RSAPrivateKey, "P": RSAPrivateKey, "ES": EllipticCurvePrivateKey, "Ed": Ed25519PrivateKey}
_PUBLIC = {"R": RSAPublicKey, "P": RSAPublicKey, "ES": EllipticCurvePublicKey, "Ed": Ed25519PublicKey}
_CURVE_BITS = {"ES256": 256, "ES384": 384, "ES512": 521}


class _Claims(NamedTuple):
    """What a token says that is signed as it should be."""

    caller: Caller
    not_before: float | None
    end: float | None
    """Seconds since the epoch."""


class JsonWebTokens:
    """Tokens signed with a key.

    Args:
        clock: What they end by.
        options: `sign-method`, and the files `priv-key` and `pub-key`; with the public key alone, tokens are checked and
            none are made. `ttl`, 5m by default.
    """

    def __init__(self, clock: Clock, options: Mapping[str, str]) -> None:
        self._clock = clock
        self._method = options.get("sign-method", "")
        if self._method not in SIGN_METHODS:
            msg = f"--auth-token has sign-method={self._method}, not one of {', '.join(sorted(SIGN_METHODS))}"
            raise TokenOptionsError(msg)
        try:
            self._ttl = parse_duration(options["ttl"]) if options.get("ttl") else TTL_SECONDS_DEFAULT
        except ValueError as error:
            msg = f"--auth-token has ttl={options['ttl']}, which is no duration"
            raise TokenOptionsError(msg) from error
        self._algorithm = get_default_algorithms()[self._method]
        self._sign_key, self._check_key = _keys(self._method, _read(options, "priv-key"), _read(options, "pub-key"))
        self._known: dict[str, _Claims] = {}

    def find(self, token: str, revision: int) -> Caller | None:
        """As `Tokens.find`: as of the revision that it was made at.

        Cost: 10 to 300 us by the method; a lookup for one that was seen lately.
        """
        del revision
        claims = self._known.get(token)
        if claims is None:
            claims = self._read_claims(token)
            if claims is None:
                return None
            if len(self._known) == _KEPT_MAX:
                del self._known[next(iter(self._known))]
            self._known[token] = claims
        now = self._clock.time_ms() / 1000
        if claims.end is not None and now >= claims.end:
            return None
        if claims.not_before is not None and now < claims.not_before:
            return None
        return claims.caller

    def assign(self, user: str, revision: int, index: int) -> str:
        """As `Tokens.assign`."""
        del index
        if self._sign_key is None:
            raise RpcError(Code.UNKNOWN, "auth: token signing attempted with verify-only key")
        end = int(self._clock.time_ms() / 1000 + self._ttl)
        header = {"alg": self._method, "typ": "JWT"}
        claims = {"exp": end, "revision": revision, "username": user}
        signed = _packed(_dump(header)) + b"." + _packed(_dump(claims))
        return (signed + b"." + _packed(self._algorithm.sign(signed, self._sign_key))).decode()

    def forget(self, user: str) -> None:
        """As `Tokens.forget`: the revision has ended them already."""

    def clear(self) -> None:
        """As `Tokens.clear`: likewise."""

    def _read_claims(self, token: str) -> _Claims | None:
        if len(token) > TOKEN_BYTES_MAX:
            return None
        try:
            header, claims, signature = token.encode("ascii").split(b".")
            signed = header + b"." + claims
            if _object(header).get("alg") != self._method:
                return None
            if not self._algorithm.verify(signed, self._check_key, _unpacked(signature)):
                return None
            return _claims(_object(claims))
        except (ValueError, OverflowError, RecursionError):  # the second: a revision of Infinity
            return None


def _claims(found: dict[str, Any]) -> _Claims:
    user, revision = found.get("username"), found.get("revision")
    if not isinstance(user, str) or not isinstance(revision, int | float) or isinstance(revision, bool):
        msg = "the claims are of another kind"
        raise ValueError(msg)
    # From float, as Go reads numbers: what is none of these is of no etcd.
    user = _SURROGATE.sub("\ufffd", user)
    return _Claims(Caller(user, int(float(revision))), _seconds(found, "nbf"), _seconds(found, "exp"))


def _seconds(found: dict[str, Any], name: str) -> float | None:
    value = found.get(name)
    if name in found and type(value) not in {int, float}:
        msg = f"the claim {name} is no time"
        raise ValueError(msg)
    return float(value) if value else None  # 0 is none, as to etcd's library


def _object(part: bytes) -> dict[str, Any]:
    # As Go: UTF-8 and no other, without a mark, and what is none is U+FFFD.
    found = json.loads(_unpacked(part).decode("utf-8", "replace"), parse_constant=_refuse)
    if type(found) is not dict:
        msg = "a part is no object"
        raise ValueError(msg)
    return found


def _refuse(constant: str) -> None:
    # To Python NaN is a number, and no time is at or after it.
    msg = f"{constant} is no JSON"
    raise ValueError(msg)


def _dump(found: object) -> bytes:
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode()


def _packed(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def _unpacked(data: bytes) -> bytes:
    if not data.isascii() or any(byte in b"+/=" for byte in data):
        msg = "a part is no base64url"
        raise ValueError(msg)
    found = urlsafe_b64decode(data + b"=" * (-len(data) % 4))
    if _packed(found) != data:  # it skips what is no base64
        msg = "a part is no base64url"
        raise ValueError(msg)
    return found


# Keys


def _read(options: Mapping[str, str], name: str) -> bytes:
    path = options.get(name)
    if not path:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        msg = f"--auth-token has {name}={path}, which cannot be read: {error.strerror}"
        raise TokenOptionsError(msg) from error


def _keys(method: str, private: bytes, public: bytes) -> tuple[Any, Any]:
    """Return the key to sign with, None if there is none, and the one to check with."""
    if method.startswith("HS"):
        if not private:
            msg = "--auth-token has no priv-key, which holds the secret"
            raise TokenOptionsError(msg)
        return private, private
    try:
        sign_key = serialization.load_pem_private_key(private, None) if private else None
        check_key = _public_key(public) if public else None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        msg = f"--auth-token names a key that cannot be read: {error}"
        raise TokenOptionsError(msg) from error
    if sign_key is None and check_key is None:
        msg = "--auth-token has neither priv-key nor pub-key"
        raise TokenOptionsError(msg)
    if sign_key is not None:
        own = sign_key.public_key()
        if check_key is not None and check_key != own:
            msg = "--auth-token has a pub-key that is not of its priv-key"
            raise TokenOptionsError(msg)
        check_key = own
    kind = method[:2] if method[0] == "E" else method[0]
    bits = _CURVE_BITS.get(method)
    is_right = isinstance(check_key, _PUBLIC[kind]) and (sign_key is None or isinstance(sign_key, _PRIVATE[kind]))
    if not is_right or (bits is not None and getattr(check_key, "key_size", None) != bits):
        msg = f"--auth-token has a key that is not for {method}"
        raise TokenOptionsError(msg)
    return sign_key, check_key


def _public_key(text: bytes) -> Any:
    if b"BEGIN CERTIFICATE" in text:
        return load_pem_x509_certificate(text).public_key()
    return serialization.load_pem_public_key(text)
