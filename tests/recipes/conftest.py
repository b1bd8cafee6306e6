"""Shared by the tests of recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mvccstore import Store
from mvccstore.testing import FakeClock


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads; all have ended when the test has."""
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timed(open_store: Callable[..., Store], clock: FakeClock) -> Store:
    """A store on the fake clock."""
    return open_store(engine="memory", clock=clock)
