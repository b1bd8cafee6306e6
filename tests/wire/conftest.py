"""Pairs of a real etcd and a server of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.wire.auth_calls import running_auth_pair
from tests.wire.pair import Pair, running_pair


@pytest.fixture(scope="module")
def current_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Pair]]:
    """Return the module's pair, or a fresh one if that has answered differently; for tests that go on after that."""
    pair: Pair | None = None
    with ExitStack() as stack:

        def current() -> Pair:
            nonlocal pair
            if pair is None or not pair.is_alike:
                stack.close()
                pair = stack.enter_context(running_pair(tmp_path_factory.mktemp("pair")))
            return pair

        yield current


@pytest.fixture
def pair(current_pair: Callable[[], Pair]) -> Pair:
    """The module's pair: what its tests play goes to both, so they stay alike; a fresh one after a difference.

    A test may count on no revision, and takes keys of its own.
    """
    return current_pair()


@pytest.fixture
def fresh_pair(tmp_path: Path) -> Iterator[Pair]:
    """A pair of the test's own, at revision 1 and never compacted; costs some 0.3 s."""
    with running_pair(tmp_path / "pair", engine="memory") as pair:
        yield pair


@pytest.fixture
def auth_pair(tmp_path: Path) -> Iterator[Pair]:
    """A pair of the test's own that hashes passwords cheaply."""
    with running_auth_pair(tmp_path / "pair") as pair:
        yield pair
