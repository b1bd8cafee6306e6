"""Tokens: what a call shows for whose it is.

Simple ones are drawn at random and kept in memory: a restart ends them, as does whatever changes the password or
deletes the user. A use gives one its whole time again.
"""

from __future__ import annotations

from secrets import choice
from string import ascii_letters
from typing import NamedTuple, Protocol

from mvccstore.clock import Clock
from mvccstore.server.transport.status import Code, RpcError

TTL_SECONDS_DEFAULT = 300.0
_LETTERS = 16


class Caller(NamedTuple):
    """Whose call it is."""

    user: str
    revision: int
    """That of the users and roles when this was shown; 0 for nobody's."""


NOBODY = Caller("", 0)


class TokenOptionsError(Exception):
    """The kind of token, or what is said about it, cannot be. For people."""


class Tokens(Protocol):
    """Tokens of one kind."""

    def find(self, token: str, revision: int) -> Caller | None:
        """Return whose a token is, `revision` being the current one; None if it is none, or not valid any more."""
        ...

    def assign(self, user: str, revision: int, index: int) -> str:
        """Return a new token for a user.

        Raises:
            RpcError: There can be none.
        """
        ...

    def forget(self, user: str) -> None:
        """End the tokens of a user."""
        ...

    def clear(self) -> None:
        """End all tokens."""
        ...


class SimpleTokens:
    """Tokens kept in memory. Cost: a lookup; nothing walks over all of them but `forget`."""

    def __init__(self, clock: Clock, ttl_seconds: float) -> None:
        self._clock = clock
        self._ttl = ttl_seconds if ttl_seconds > 0 else TTL_SECONDS_DEFAULT
        # In the order in which they end: all have the same time from their last use on.
        self._tokens: dict[str, tuple[str, float]] = {}

    def find(self, token: str, revision: int) -> Caller | None:
        """As `Tokens.find`. The token has its whole time again."""
        found = self._tokens.pop(token, None)
        now = self._clock.monotonic()
        if found is None or found[1] < now:
            return None
        self._tokens[token] = (found[0], now + self._ttl)
        return Caller(found[0], revision)

    def assign(self, user: str, revision: int, index: int) -> str:
        """As `Tokens.assign`."""
        del revision
        now = self._clock.monotonic()
        while self._tokens and next(iter(self._tokens.values()))[1] < now:
            del self._tokens[next(iter(self._tokens))]
        token = "".join(choice(ascii_letters) for _ in range(_LETTERS)) + f".{index}"
        self._tokens[token] = (user, now + self._ttl)
        return token

    def forget(self, user: str) -> None:
        """As `Tokens.forget`. O(tokens)."""
        self._tokens = {token: found for token, found in self._tokens.items() if found[0] != user}

    def clear(self) -> None:
        """As `Tokens.clear`."""
        self._tokens.clear()


class NoTokens:
    """No tokens at all: users show certificates."""

    def find(self, token: str, revision: int) -> Caller | None:
        """As `Tokens.find`: it is none."""
        del token, revision
        return None

    def assign(self, user: str, revision: int, index: int) -> str:
        """As `Tokens.assign`: there can be none."""
        del user, revision, index
        raise RpcError(Code.UNKNOWN, "auth: invalid auth options")

    def forget(self, user: str) -> None:
        """As `Tokens.forget`."""

    def clear(self) -> None:
        """As `Tokens.clear`."""


def new_tokens(option: str, ttl_seconds: float, clock: Clock) -> Tokens:
    """Return tokens as `--auth-token` says: `simple`, `jwt,...`, or nothing for none.

    Args:
        option: The flag.
        ttl_seconds: For simple ones.
        clock: What they end by.

    Raises:
        TokenOptionsError: It cannot be.
    """
    kind, *rest = option.split(",")
    options: dict[str, str] = {}
    for part in rest:
        name, equals, value = part.partition("=")
        if not equals or "=" in value or name in options:
            msg = f"--auth-token has {part!r}, which is not one name=value"
            raise TokenOptionsError(msg)
        options[name] = value
    if kind == "simple":
        return SimpleTokens(clock, ttl_seconds)
    if kind == "jwt":
        from mvccstore.server.auth.json_web_tokens import JsonWebTokens

        return JsonWebTokens(clock, options)
    if not kind:
        return NoTokens()
    msg = f"--auth-token is {kind!r}, neither simple nor jwt"
    raise TokenOptionsError(msg)
