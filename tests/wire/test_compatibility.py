"""docs/compatibility.md: has every field there is, and says what a run with real etcds says now."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvccstore.server.messages import METHODS, rpc
from tests.wire.compatibility import REASONS, fields_of, fields_of_form
from tests.wire.pair import NEEDS_ORACLE
from tools.compatibility import (
    FLOOR,
    PAGE,
    all_fields,
    fields_on,
    page,
    play_all,
    services,
    since,
    since_in_proto,
)
from tools.generated import with_generated

PROTOS = "go/pkg/mod/go.etcd.io/etcd/api/*/etcdserverpb/rpc.proto"


def short(fields: set[str]) -> set[str]:
    """Return names without their packages."""
    return {".".join(field.split(".")[-2:]) for field in fields}


def test_the_page_has_every_field_of_every_call() -> None:
    text = PAGE.read_text()
    assert fields_on(text) == short(all_fields())
    assert all(f"## {service}\n" in text for service in services())
    assert len(all_fields()) > 250


def test_reasons_are_about_fields_that_there_are() -> None:
    assert set(REASONS) <= all_fields()


class TestRun:
    pytestmark = NEEDS_ORACLE

    def test_the_page_says_what_the_run_says(self) -> None:
        played = play_all()
        assert "3.5" in played
        # Where no 3.6 can be built, what the page says of it is not looked at.
        played.setdefault("3.6", all_fields() - set(REASONS))
        text = PAGE.read_text()
        assert with_generated(text, page(played)) == text, "python -m tools.compatibility writes it anew"


def test_a_field_without_a_call_needs_a_reason() -> None:
    known = all_fields() - set(REASONS)
    page({"3.6": known})
    with pytest.raises(ValueError, match=r"no call has etcdserverpb.PutRequest.lease with etcd 3.6"):
        page({"3.6": known - {"etcdserverpb.PutRequest.lease"}})
    # An etcd that has no such field need not be asked for it.
    page({"3.5": known - {"etcdserverpb.HashKVResponse.hash_revision"}, "3.6": known})


def test_since_when_etcd_has_a_field_is_what_its_proto_files_say() -> None:
    for path in Path.home().glob(PROTOS):
        said = since_in_proto(path.read_text())
        ours = {field: since(*field.split(".")) for field in short(all_fields()) if since(*field.split(".")) > FLOOR}
        newer = {field for field, version in ours.items() if version > "3.6"}
        # Those of a message that is only in others have no version of their own, and gRPC's are in a file of gRPC's.
        inner = {field for field in ours if field.startswith(("DowngradeInfo.", "HealthList"))}
        assert {field: version for field, version in ours.items() if field not in newer | inner} == {
            field: version for field, version in said.items() if field in short(all_fields())
        }


def test_proto_files_are_read() -> None:
    text = """\
message A {
  option (versionpb.etcd_version_msg) = "3.5";
  string a = 1;
  repeated Member b = 2 [(versionpb.etcd_version_field)="3.6"];
}
message B {
  int64 c = 1 [(versionpb.etcd_version_field)="3.1"];
  bool d = 2 [(versionpb.etcd_version_field) = "3.6"];
}
"""
    assert since_in_proto(text) == {"A.a": "3.5", "A.b": "3.6", "B.d": "3.6"}


def test_fields_are_found_in_requests_and_in_answers() -> None:
    message = rpc.TxnRequest(success=[rpc.RequestOp(request_put=rpc.PutRequest(key=b"a"))])
    found = {"TxnRequest.success", "RequestOp.request_put", "PutRequest.key"}
    assert short(set(fields_of(message))) == found
    answer = {"header": {"revision": 2}, "kvs": [{"key": b"a"}]}
    assert short(set(fields_of_form(answer, METHODS["/etcdserverpb.KV/Range"].response.DESCRIPTOR))) == {
        *("RangeResponse.header", "ResponseHeader.revision", "RangeResponse.kvs", "KeyValue.key")
    }


def test_what_is_written_by_hand_stays() -> None:
    text = PAGE.read_text()
    assert with_generated(text, "new").startswith(text[:200])
    with pytest.raises(ValueError, match="has no <!-- generated"):
        with_generated("nothing", "new")
