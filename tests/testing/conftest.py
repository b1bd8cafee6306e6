"""A server for a test, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mvccstore.testing import etcd
from mvccstore.testing.etcd_server import Etcd
from tests.wire.client import Client, Endpoint


@pytest.fixture
def server() -> Iterator[Etcd]:
    with etcd() as server:
        yield server


@pytest.fixture
def client(server: Etcd) -> Iterator[Client]:
    with Client(Endpoint(server.host, server.port)) as client:
        yield client
