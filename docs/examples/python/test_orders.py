"""Tests of a program that keeps its orders in etcd."""

from __future__ import annotations

import json
import unittest
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from typing import Any

import pytest

from mvccstore.testing import etcd as etcd_server


class Orders:
    """The program: over JSON, so that it needs no client library."""

    def __init__(self, url: str) -> None:
        self._url = url

    def _call(self, path: str, **fields: Any) -> Any:
        with urllib.request.urlopen(self._url + path, json.dumps(fields).encode()) as answer:
            return json.load(answer)

    def place(self, name: str, what: str, seconds: int) -> None:
        lease = self._call("/v3/lease/grant", TTL=seconds)["ID"]
        key, value = (b64encode(text.encode()).decode() for text in (f"orders/{name}", what))
        self._call("/v3/kv/put", key=key, value=value, lease=lease)

    def find(self, name: str) -> str | None:
        kvs = self._call("/v3/kv/range", key=b64encode(f"orders/{name}".encode()).decode()).get("kvs")
        return b64decode(kvs[0]["value"]).decode() if kvs else None


# fixture


def test_an_order_is_found(etcd):
    orders = Orders(etcd.url)
    orders.place("alice", "tea", seconds=60)
    assert orders.find("alice") == "tea"
    etcd.assert_put(prefix="orders/", times=1)


@pytest.mark.etcd(clock="virtual", contents={"orders/bob": "coffee"})
def test_an_order_ends(etcd):
    orders = Orders(etcd.url)
    orders.place("alice", "tea", seconds=60)
    etcd.clock.advance(60)
    assert orders.find("alice") is None
    assert orders.find("bob") == "coffee"


def test_a_failure_is_told(etcd):
    with etcd.faults.fail("Put", "UNAVAILABLE"), pytest.raises(urllib.error.HTTPError):
        Orders(etcd.url).place("alice", "tea", seconds=60)


# unittest


class OrdersTest(unittest.TestCase):
    def setUp(self) -> None:
        self.etcd = self.enterContext(etcd_server())

    def test_an_order_is_found(self) -> None:
        orders = Orders(self.etcd.url)
        orders.place("alice", "tea", seconds=60)
        assert orders.find("alice") == "tea"


# asyncio


class AsyncOrdersTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.etcd = await self.enterAsyncContext(etcd_server())

    async def test_it_is_there(self) -> None:
        assert self.etcd.store.count(b"orders/alice") == 0
