"""Tests of the program against what a real etcd has answered it: `orders.jsonl` was recorded from one."""

from __future__ import annotations

import urllib.error

import pytest
from test_orders import Orders

from mvccstore.testing import etcd as etcd_server
from mvccstore.testing import record


@pytest.mark.etcd(replay="orders.jsonl")
def test_an_order_is_found_as_in_staging(etcd):
    orders = Orders(etcd.url)
    assert orders.find("alice") is None
    orders.place("alice", "tea", seconds=60)
    assert orders.find("alice") == "tea"
    etcd.assert_replayed()  # all of it was asked, and nothing else


@pytest.mark.etcd(replay="orders.jsonl")
def test_a_gap_is_told(etcd):
    with pytest.raises(urllib.error.HTTPError):
        Orders(etcd.url).find("bob")
    assert str(etcd.gaps[0]).startswith('KV.Range(key: "orders/bob"); the nearest is line')


def test_a_recording_of_its_own(tmp_path):
    with etcd_server() as staging, record(staging.endpoint, tmp_path / "orders.jsonl") as recorder:
        Orders(recorder.url).place("alice", "tea", seconds=60)
    with etcd_server(replay=tmp_path / "orders.jsonl") as replayed:
        Orders(replayed.url).place("alice", "tea", seconds=60)
        assert not replayed.gaps
