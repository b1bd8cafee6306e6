"""What a test asserts of its etcd, and what it is told when that is not so."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mvccstore.server.messages import rpc
from mvccstore.testing.etcd_server import Etcd
from tests.wire.client import Client, RpcFailure

KV = "/etcdserverpb.KV"


def put(client: Client, key: bytes, value: bytes = b"") -> Any:
    return client.unary(f"{KV}/Put", rpc.PutRequest(key=key, value=value))


def put_op(key: bytes, value: bytes = b"") -> rpc.RequestOp:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value))


def test_puts_and_deletes_are_counted_wherever_they_are(server: Etcd, client: Client) -> None:
    put(client, b"a/1", b"x")
    with pytest.raises(RpcFailure):
        put(client, b"")
    nested = rpc.TxnRequest(success=[put_op(b"a/2", b"y")])
    client.unary(
        f"{KV}/Txn",
        rpc.TxnRequest(
            success=[
                put_op(b"b"),
                rpc.RequestOp(request_txn=nested),
                rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"d")),
            ],
            failure=[put_op(b"never")],
        ),
    )
    client.unary(f"{KV}/DeleteRange", rpc.DeleteRangeRequest(key=b"a/1"))
    server.assert_put("a/1")
    server.assert_put(b"a/1", "x", times=1)
    server.assert_put(prefix="a/", times=2)
    server.assert_put(times=3)
    server.assert_put("a/2", b"y")
    server.assert_not_put("never")
    server.assert_not_put(prefix="c/")
    server.assert_deleted("d", times=1)
    server.assert_deleted(prefix="a/")
    server.assert_called("Put", times=2)
    server.assert_called("/etcdserverpb.KV/Txn")
    server.assert_contents({"a/2": "y", "b": ""})
    server.assert_contents({b"a/2": b"y"}, prefix="a/")


def test_what_is_not_so_is_told_with_what_was(server: Etcd, client: Client) -> None:
    put(client, b"a", b"1")
    with pytest.raises(AssertionError) as found:
        server.assert_put("a", "2")
    told = str(found.value)
    assert "expected a put of a with 2 at least once, there were 0" in told
    assert '  a = 1  by #1 KV.Put(key: "a" value: "1") -> OK' in told
    assert "revision 2, 1 keys" in told
    with pytest.raises(AssertionError, match="expected a put of a 3 times, there were 1"):
        server.assert_put("a", times=3)
    with pytest.raises(
        AssertionError, match="expected a delete of any key at least once, there were 0; all of them:\n  none"
    ):
        server.assert_deleted()
    with pytest.raises(AssertionError, match="expected Range to be called 2 times, it was 0 times"):
        server.assert_called("Range", times=2)
    with pytest.raises(AssertionError, match=r"(?s)differ.*- a = 2\n\+ a = 1\n- b = 3"):
        server.assert_contents({"a": "2", "b": "3"})
    with pytest.raises(TypeError, match="a key or a prefix"):
        server.assert_put("a", prefix="b")


def test_waiting_returns_when_it_is_so(server: Etcd, client: Client) -> None:
    put(client, b"a", b"1")
    found = server.wait_for("a")
    assert found is not None
    assert found.mod_revision == 2
    threads = [
        threading.Thread(target=put, args=(client, b"b", b"2")),
        threading.Thread(target=lambda: client.unary(f"{KV}/DeleteRange", rpc.DeleteRangeRequest(key=b"a"))),
    ]
    for thread in threads:
        thread.start()
    changed = server.wait_for(b"b", "2", timeout=60)
    assert changed is not None
    assert changed.value == b"2"
    assert server.wait_for("a", None, timeout=60) is None
    for thread in threads:
        thread.join()


def test_waiting_in_vain_says_what_there_is(server: Etcd, client: Client) -> None:
    put(client, b"a", b"1")
    with pytest.raises(AssertionError, match="waited 0 s for a to be 2; it is 1 since revision 2") as found:
        server.wait_for("a", "2", timeout=0)
    assert "#1 KV.Put" in str(found.value)
    with pytest.raises(AssertionError, match=r"waited 0\.01 s for b to be any value; it is not there"):
        server.wait_for("b", timeout=0.01)
    with pytest.raises(AssertionError, match="for a to be no such key; it is 1"):
        server.wait_for("a", None, timeout=0)
