"""Passwords, hashed by bcrypt on threads of their own: it takes 50 ms, on purpose."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mvccstore.server.errors import Refusal
from mvccstore.server.transport.status import Code, RpcError

T = TypeVar("T")

COST_MIN, COST_MAX, COST_DEFAULT = 4, 31, 10
PASSWORD_BYTES_MAX = 72
"""bcrypt looks at no more."""
WAITING_MAX = 1_000
"""Of those that hash or check; more are refused. Whoever has no password may ask for this, as often as they like."""
_THREADS = 2
_HASH_LETTERS = 53
"""Salt and hash."""


class Passwords:
    """Hashes passwords, and checks them."""

    def __init__(self, cost: int) -> None:
        self._cost = cost if COST_MIN <= cost <= COST_MAX else COST_DEFAULT
        self.decoy = b"$2a$%02d$" % self._cost + b"." * _HASH_LETTERS
        """The hash of no password, as long to check as others."""
        self._threads: ThreadPoolExecutor | None = None
        self._waiting = 0

    async def hashed(self, password: str) -> bytes:
        """Return the hash of a password that `check_length` has let through.

        Raises:
            RpcError: Too many wait.
        """
        return await self._beside(_hash, password.encode(), self._cost)

    async def match(self, password: bytes, hashed: bytes) -> bool:
        """Say whether a password, `cut`, is the one that was hashed.

        Raises:
            RpcError: Too many wait.
        """
        return await self._beside(_check, password, hashed)

    async def _beside(self, function: Callable[..., T], *arguments: object) -> T:
        if self._waiting >= WAITING_MAX:
            raise Refusal.TOO_MANY_REQUESTS.error(limit="passwords_waiting_max")
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="mvccstore-server-bcrypt")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the threads when they have done what they are at."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def cut(password: str) -> bytes:
    """Return what is looked at of a password."""
    return password.encode()[:PASSWORD_BYTES_MAX]


def check_length(password: str) -> None:
    """Raise if a password is too long to be hashed."""
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        raise RpcError(Code.UNKNOWN, "bcrypt: password length exceeds 72 bytes")


def given_hash(text: str) -> bytes:
    """Return a hash that a client has made.

    Raises:
        RpcError: It is no base64.
    """
    try:
        return b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except ValueError:
        raise Refusal.NO_PASSWORD_USER.error() from None


def _hash(password: bytes, cost: int) -> bytes:
    import bcrypt

    return bcrypt.hashpw(password, bcrypt.gensalt(cost, prefix=b"2a"))


def _check(password: bytes, hashed: bytes) -> bool:
    import bcrypt

    try:
        return bcrypt.checkpw(password, hashed)
    except ValueError:  # it is no hash
        return False
