"""The tokens that a server gave out, so that a test can have them expire before their time."""

from __future__ import annotations

from mvccstore.server.auth.tokens import Caller, Tokens


class IssuedTokens:
    """Stands in front of a server's tokens, of whatever kind, and remembers them. Used on the loop's thread."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._issued: dict[str, str] = {}
        """Tokens, and whose they are."""
        self._expired: set[str] = set()

    def expire(self, user: str | None, revision: int) -> int:
        """End the tokens of a user, or of all of them; return how many could still be used."""
        ended = [
            token
            for token, owner in self._issued.items()
            if user in {None, owner} and self.find(token, revision) is not None
        ]
        self._expired.update(ended)
        for token in ended:
            del self._issued[token]
        return len(ended)

    def find(self, token: str, revision: int) -> Caller | None:
        """As `Tokens.find`."""
        return None if token in self._expired else self._tokens.find(token, revision)

    def assign(self, user: str, revision: int, index: int) -> str:
        """As `Tokens.assign`."""
        token = self._tokens.assign(user, revision, index)
        # Two signed ones of a second are the same: it is as good as new then.
        self._expired.discard(token)
        self._issued[token] = user
        return token

    def forget(self, user: str) -> None:
        """As `Tokens.forget`."""
        self._tokens.forget(user)

    def clear(self) -> None:
        """As `Tokens.clear`."""
        self._tokens.clear()
