"""Threads switch often while these tests run."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quick_switches() -> Iterator[None]:
    """Have threads switch 50 times as often.

    That finds more, and LMDB needs it: each of its calls lets the other threads in, and where those only
    compute, gets the interpreter back after 5 ms for each of them.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)
