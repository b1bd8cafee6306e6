"""Tokens by themselves, with a clock that stands still; and signed ones against etcd's."""

from __future__ import annotations

import datetime
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from hmac import new as hmac
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from mvccstore.server.auth import json_web_tokens
from mvccstore.server.auth.json_web_tokens import SIGN_METHODS, JsonWebTokens
from mvccstore.server.auth.tokens import Caller, SimpleTokens, TokenOptionsError, new_tokens
from mvccstore.server.transport.status import RpcError
from mvccstore.testing import FakeClock
from tests.wire.auth_calls import (
    ENABLED,
    as_root,
    auth_status,
    authenticate,
    grant_role,
    role_add,
    running_auth_pair,
    showing,
    showing_text,
    user_add,
    user_get,
    user_list,
)
from tests.wire.calls import create, get, put, txn, watching
from tests.wire.differential import Take
from tests.wire.pair import NEEDS_ORACLE

TTL = 300.0


def needs_oracle(test: Callable[..., None]) -> Callable[..., None]:
    for mark in NEEDS_ORACLE:
        test = mark(test)
    return test


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


# Simple ones


def test_a_simple_token_lasts_from_its_last_use(clock: FakeClock) -> None:
    tokens = SimpleTokens(clock, TTL)
    token = tokens.assign("amy", 5, 77)
    assert re.fullmatch(r"[a-zA-Z]{16}\.77", token)
    for _ in range(3):
        clock.advance(TTL)
        assert tokens.find(token, 9) == Caller("amy", 9)
    clock.advance(TTL + 0.001)
    assert tokens.find(token, 9) is None
    assert tokens.find(token, 9) is None


def test_the_default_of_a_ttl_that_is_none(clock: FakeClock) -> None:
    tokens = new_tokens("simple", 0, clock)
    token = tokens.assign("amy", 1, 1)
    clock.advance(300)
    assert tokens.find(token, 1) is not None
    clock.advance(301)
    assert tokens.find(token, 1) is None


def test_simple_tokens_end_with_their_user_or_all(clock: FakeClock) -> None:
    tokens = SimpleTokens(clock, TTL)
    amys, bobs = [tokens.assign("amy", 1, 1) for _ in range(3)], tokens.assign("bob", 1, 1)
    tokens.forget("amy")
    assert [tokens.find(token, 1) for token in amys] == [None] * 3
    assert tokens.find(bobs, 1) == Caller("bob", 1)
    tokens.clear()
    assert tokens.find(bobs, 1) is None


def test_simple_tokens_that_have_ended_are_let_go(clock: FakeClock) -> None:
    tokens = SimpleTokens(clock, TTL)
    kept = tokens.assign("amy", 1, 1)
    for _ in range(100):
        tokens.assign("bob", 1, 1)
    clock.advance(TTL)
    assert tokens.find(kept, 1) is not None
    clock.advance(1)
    tokens.assign("eve", 1, 1)
    assert len(tokens._tokens) == 2


def test_no_kind_of_token(clock: FakeClock) -> None:
    tokens = new_tokens("", TTL, clock)
    assert tokens.find("x.1", 1) is None
    with pytest.raises(RpcError, match="auth: invalid auth options"):
        tokens.assign("amy", 1, 1)


# Signed ones


def _write_keys(folder: Path, method: str) -> str:
    """Write the files of a method's keys; return what `--auth-token` says."""
    private, public = folder / "private", folder / "public"
    if method.startswith("HS"):
        private.write_bytes(b"a secret")
        return f"jwt,sign-method={method},priv-key={private}"
    key: Any
    if method.startswith("ES"):
        key = ec.generate_private_key({"256": ec.SECP256R1, "384": ec.SECP384R1, "512": ec.SECP521R1}[method[2:]]())
    elif method == "EdDSA":
        key = ed25519.Ed25519PrivateKey.generate()
    else:
        key = rsa.generate_private_key(65537, 2048)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return f"jwt,sign-method={method},priv-key={private},pub-key={public}"


@pytest.mark.parametrize("method", sorted(SIGN_METHODS))
def test_a_signed_token_lasts_for_its_time_wherever_the_key_is(tmp_path: Path, clock: FakeClock, method: str) -> None:
    option = _write_keys(tmp_path, method) + ",ttl=1m30s"
    token = new_tokens(option, TTL, clock).assign("ämy", 7, 1)
    tokens = new_tokens(option, TTL, clock)
    assert tokens.find(token, 99) == Caller("ämy", 7)
    tokens.forget("ämy")
    tokens.clear()
    clock.advance(89)
    assert tokens.find(token, 99) == Caller("ämy", 7)
    clock.advance(1)
    assert tokens.find(token, 99) is None
    assert new_tokens(option, TTL, clock).find(token, 99) is None


@pytest.mark.parametrize("method", ["RS256", "PS512", "ES384", "EdDSA"])
def test_with_the_public_key_alone_tokens_are_checked_and_none_are_made(
    tmp_path: Path, clock: FakeClock, method: str
) -> None:
    option = _write_keys(tmp_path, method)
    token = new_tokens(option, TTL, clock).assign("amy", 7, 1)
    checking = new_tokens(re.sub("priv-key=[^,]*,", "", option), TTL, clock)
    assert checking.find(token, 1) == Caller("amy", 7)
    with pytest.raises(RpcError, match="auth: token signing attempted with verify-only key"):
        checking.assign("amy", 7, 1)


def _sign(header: object, claims: object, secret: bytes = b"a secret") -> str:
    return _sign_bytes(json.dumps(header).encode(), json.dumps(claims).encode(), secret)


def _sign_bytes(header: bytes, claims: bytes, secret: bytes = b"a secret") -> str:
    parts = [urlsafe_b64encode(part).rstrip(b"=") for part in (header, claims)]
    signed = b".".join(parts)
    return b".".join((signed, urlsafe_b64encode(hmac(secret, signed, sha256).digest()).rstrip(b"="))).decode()


HEADER = {"alg": "HS256", "typ": "JWT"}
CLAIMS = {"username": "root", "revision": 5}
FAR = 9_999_999_999
FORGED: dict[str, Callable[[], str]] = {
    "as it should be": lambda: _sign(HEADER, CLAIMS),
    "a later end": lambda: _sign(HEADER, {**CLAIMS, "exp": FAR}),
    "an end that is no whole number": lambda: _sign(HEADER, {**CLAIMS, "exp": FAR + 0.5}),
    "ended": lambda: _sign(HEADER, {**CLAIMS, "exp": 5}),
    "not begun": lambda: _sign(HEADER, {**CLAIMS, "nbf": FAR}),
    "begun": lambda: _sign(HEADER, {**CLAIMS, "nbf": 5, "iat": FAR, "aud": "x", "iss": "y", "sub": "z"}),
    "an end that is none": lambda: _sign(HEADER, {**CLAIMS, "exp": "soon"}),
    "a beginning that is none": lambda: _sign(HEADER, {**CLAIMS, "nbf": []}),
    "another secret": lambda: _sign(HEADER, CLAIMS, b"another"),
    "no signature": lambda: _sign(HEADER, CLAIMS).rpartition(".")[0] + ".",
    "two parts": lambda: _sign(HEADER, CLAIMS).rpartition(".")[0],
    "four parts": lambda: _sign(HEADER, CLAIMS) + ".x",
    "padded": lambda: _sign(HEADER, CLAIMS) + "=",
    "no algorithm": lambda: _sign({"alg": "none"}, CLAIMS),
    "another algorithm": lambda: _sign({"alg": "HS512"}, CLAIMS),
    "an algorithm that is no text": lambda: _sign({"alg": 5}, CLAIMS),
    "a header that is no object": lambda: _sign([], CLAIMS),
    "claims that are no object": lambda: _sign(HEADER, []),
    "no user": lambda: _sign(HEADER, {"revision": 5}),
    "a user that is no text": lambda: _sign(HEADER, {**CLAIMS, "username": 5}),
    "no revision": lambda: _sign(HEADER, {"username": "root"}),
    "a revision that is no number": lambda: _sign(HEADER, {**CLAIMS, "revision": "5"}),
    "a revision that is true": lambda: _sign(HEADER, {**CLAIMS, "revision": True}),
    "an old revision": lambda: _sign(HEADER, {**CLAIMS, "revision": 2}),
    "a revision without end": lambda: _sign(HEADER, {**CLAIMS, "revision": float("inf")}),
    "a revision of 400 digits": lambda: _sign(HEADER, {**CLAIMS, "revision": 10**400}),
    "revision 0": lambda: _sign(HEADER, {**CLAIMS, "revision": 0}),
    "a later revision": lambda: _sign(HEADER, {**CLAIMS, "revision": 2.0**40}),
    "a user that there is not": lambda: _sign(HEADER, {**CLAIMS, "username": "none"}),
    "the user of no name": lambda: _sign(HEADER, {**CLAIMS, "username": ""}),
    "not signed at all": lambda: "abc.5",
    "an end of 0": lambda: _sign(HEADER, {**CLAIMS, "exp": 0}),
    "an end that is null": lambda: _sign(HEADER, {**CLAIMS, "exp": None}),
    "an end that is no number": lambda: _sign(HEADER, {**CLAIMS, "exp": float("nan")}),
    "an end that is true": lambda: _sign(HEADER, {**CLAIMS, "exp": True}),
    "an end below 0": lambda: _sign(HEADER, {**CLAIMS, "exp": -FAR}),
    "a beginning of 0": lambda: _sign(HEADER, {**CLAIMS, "nbf": 0}),
    "a key that is named": lambda: _sign({**HEADER, "kid": "../../dev/null", "jku": "http://x", "jwk": {}}, CLAIMS),
    "what has to be understood": lambda: _sign({**HEADER, "crit": ["exp"]}, CLAIMS),
    "another type": lambda: _sign({"alg": "HS256", "typ": 5}, CLAIMS),
    "another type of algorithm's name": lambda: _sign({"alg": "hs256"}, CLAIMS),
    "the algorithm twice": lambda: _sign_bytes(b'{"alg":"none","alg":"HS256"}', b'{"username":"root","revision":5}'),
    "the user twice": lambda: _sign_bytes(
        b'{"alg":"HS256"}', b'{"username":"x","username":"root","revision":1,"revision":5}'
    ),
    "names in another case": lambda: _sign_bytes(b'{"ALG":"HS256"}', b'{"Username":"root","Revision":5}'),
    "claims with a tail": lambda: _sign_bytes(b'{"alg":"HS256"}', b'{"username":"root","revision":5} {}'),
    "a header with a tail": lambda: _sign_bytes(b'{"alg":"HS256"}x', b'{"username":"root","revision":5}'),
    "claims that are no UTF-8": lambda: _sign_bytes(b'{"alg":"HS256"}', b'{"username":"ro\xffot","revision":5}'),
    "claims with a mark": lambda: _sign_bytes(b'{"alg":"HS256"}', b'\xef\xbb\xbf{"username":"root","revision":5}'),
    "a deep claim": lambda: _sign_bytes(
        b'{"alg":"HS256"}', b'{"x":' + b"[" * 500 + b"]" * 500 + b',"username":"root","revision":5}'
    ),
    "a user with a NUL": lambda: _sign(HEADER, {**CLAIMS, "username": "root\0"}),
    "a lone surrogate": lambda: _sign_bytes(b'{"alg":"HS256"}', b'{"username":"\\ud800","revision":5}'),
    "a revision of half": lambda: _sign(HEADER, {**CLAIMS, "revision": 5.5}),
    "a large one": lambda: _sign(HEADER, {**CLAIMS, "x": "y" * 6_000}),
}


@needs_oracle
def test_tokens_that_others_have_signed(tmp_path: Path) -> None:
    with running_auth_pair(tmp_path / "pair", _write_keys(tmp_path, "HS256")) as pair:
        pair.play(*ENABLED, *as_root(role_add("r"), user_add("amy", "a")))
        for make in FORGED.values():
            token = make()
            for operation in (
                get(b"a"),
                put(b"a"),
                txn(),
                user_list(),
                user_get("root"),
                watching(create(b"a"), Take(1)),
            ):
                pair.play(showing_text(token, operation))


def test_what_etcd_would_take_or_not_by_its_processor_is_old(tmp_path: Path, clock: FakeClock) -> None:
    tokens = JsonWebTokens(clock, {"sign-method": "HS256", "priv-key": _secret(tmp_path)})
    assert tokens.find(_sign(HEADER, {**CLAIMS, "revision": -5}), 9) == Caller("root", -5)


@pytest.mark.parametrize("method", ["RS256", "ES256", "PS384", "EdDSA", "HS512"])
@needs_oracle
def test_signed_tokens_as_etcd_has_them(tmp_path: Path, method: str) -> None:
    with running_auth_pair(tmp_path / "pair", _write_keys(tmp_path, method)) as pair:
        pair.play(*ENABLED, *as_root(auth_status(), put(b"a"), get(b"a")))
        # What one has signed, the other takes.
        theirs, ours = (player.names.value("token", 1) for player in pair.players)
        assert _parts(theirs)[0] == _parts(ours)[0]
        assert {**_parts(theirs)[1], "exp": 0} == {**_parts(ours)[1], "exp": 0}
        swapped = [
            player.client.unary("/etcdserverpb.Auth/UserList", user_list().request, [("token", token)])
            for player, token in zip(pair.players, (ours, theirs), strict=True)
        ]
        assert [list(answer.users) for answer in swapped] == [["root"], ["root"]]
        # A change of users makes tokens old, of who is root, too, for keys.
        pair.play(*as_root(user_add("amy", "a"), put(b"a"), get(b"a"), txn(), user_list(), auth_status()))
        pair.play(authenticate("amy", "a"), authenticate("root", "pw"), showing(2, get(b"a")), showing(3, get(b"a")))
        pair.play(showing(3, grant_role("amy", "root")), showing(2, get(b"a")), showing(2, user_list()))
        pair.play(*as_root(watching(create(b"a"), Take(1))))


def _parts(token: str) -> list[Any]:
    return [json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in token.split(".")[:2]]


def test_more_tokens_than_are_kept_are_still_found(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_web_tokens, "_KEPT_MAX", 2)
    tokens = JsonWebTokens(clock, {"sign-method": "HS256", "priv-key": _secret(tmp_path)})
    drawn = [tokens.assign(f"u{number}", number, 1) for number in range(1, 5)]
    for _ in range(2):
        assert [tokens.find(token, 9) for token in drawn] == [Caller(f"u{number}", number) for number in range(1, 5)]
    assert len(tokens._known) == 2


def test_a_public_key_may_be_a_certificate(tmp_path: Path, clock: FakeClock) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(day).not_valid_after(day + datetime.timedelta(1))
    (tmp_path / "public").write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    (tmp_path / "private").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    options = {"sign-method": "ES256", "pub-key": f"{tmp_path}/public"}
    token = JsonWebTokens(clock, {**options, "priv-key": f"{tmp_path}/private"}).assign("amy", 3, 1)
    assert JsonWebTokens(clock, options).find(token, 9) == Caller("amy", 3)


@pytest.mark.parametrize("garbage", ["", "..", "a.b.c", "ü.b.c", "a+.b.c", "e30.e30.e30", "e30=.e30.e30", "x" * 20_000])
def test_garbage_is_no_token(tmp_path: Path, clock: FakeClock, garbage: str) -> None:
    assert JsonWebTokens(clock, {"sign-method": "HS256", "priv-key": _secret(tmp_path)}).find(garbage, 9) is None


@given(st.text(), st.text())
def test_no_text_is_a_token(user: str, text: str) -> None:
    clock = FakeClock()
    simple = SimpleTokens(clock, TTL)
    token = simple.assign(user, 1, 1)
    assert (simple.find(text, 1) is None) == (text != token)


def _secret(folder: Path) -> str:
    (folder / "secret").write_bytes(b"a secret")
    return str(folder / "secret")


# What cannot be


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("nonsense", "neither simple nor jwt"),
        ("jwt", "sign-method"),
        ("jwt,sign-method=none", "sign-method=none"),
        ("jwt,sign-method=HS128", "HS128"),
        ("jwt,sign-method", "not one name=value"),
        ("jwt,sign-method=HS256=x", "not one name=value"),
        ("jwt,sign-method=HS256,sign-method=HS256", "not one name=value"),
        ("jwt,sign-method=HS256", "no priv-key"),
        ("jwt,sign-method=RS256", "neither priv-key nor pub-key"),
        ("jwt,sign-method=RS256,priv-key={folder}/absent", "cannot be read"),
        ("jwt,sign-method=RS256,priv-key={folder}/text", "cannot be read"),
        ("jwt,sign-method=RS256,pub-key={folder}/text", "cannot be read"),
        ("jwt,sign-method=HS256,priv-key={folder}/text,ttl=soon", "ttl=soon"),
        ("jwt,sign-method=RS256,priv-key={folder}/private", "not for RS256"),
        ("jwt,sign-method=ES384,priv-key={folder}/private", "not for ES384"),
        ("jwt,sign-method=EdDSA,pub-key={folder}/public", "not for EdDSA"),
        ("jwt,sign-method=ES256,priv-key={folder}/private,pub-key={folder}/other/public", "not of its priv-key"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, clock: FakeClock, option: str, says: str) -> None:
    (tmp_path / "text").write_text("text")
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        _write_keys(folder, "ES256")
    with pytest.raises(TokenOptionsError) as caught:
        new_tokens(option.format(folder=tmp_path), TTL, clock)
    assert says in str(caught.value)
