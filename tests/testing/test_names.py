"""Which requests fit each other, and what then stands for what."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from mvccstore.server.messages import kv, rpc
from mvccstore.testing.names import Name, Shapes, Ties
from mvccstore.testing.touching import Leases, Written, keys_of, read_keys, written_keys
from tests.testing.recording_kit import KV, create, get, put

UUIDS = [f"3f2504e0-4f89-11d3-9a0c-0305e82c330{number}" for number in range(4)]


def text(name: str) -> Name:
    return Name("text", name.encode())


def lease(number: int) -> Name:
    return Name("lease", number)


@pytest.mark.parametrize(
    ("one", "other", "is_alike"),
    [
        (put(b"a"), put(b"b"), False),
        (put(b"a/" + UUIDS[0].encode()), put(b"a/" + UUIDS[1].upper().encode()), True),
        (put(b"v1700000000"), put(b"v1800000000"), False),  # a letter before it
        (put(b"a", b"2026-01-31T12:00:00Z"), put(b"a", b"2027-02-01 13:01:01.123+01:00"), True),
        (put(b"a", b"1700000000"), put(b"a", b"1700000000000000000.5"), True),
        (put(b"a", b"123456789"), put(b"a", b"123456780"), False),  # too short to be a time
        (put(b"a", b"deadbeef0123"), put(b"a", b"0123456789abcdef"), True),
        (put(b"a", lease=1), put(b"a", lease=2), True),
        (put(b"a", lease=1), put(b"a"), False),
        (rpc.LeaseGrantRequest(TTL=1, ID=5), rpc.LeaseGrantRequest(TTL=1, ID=6), True),
        (rpc.LeaseGrantRequest(TTL=1, ID=5), rpc.LeaseGrantRequest(TTL=1), False),
        (get(b"k/9999999999", range_end=b"k/999999999:"), get(b"k/1111111111", range_end=b"k/1111111112"), True),
        (get(b"k/9999999999"), get(b"k/1111111111", range_end=b"k/1111111112"), False),
        (rpc.AuthenticateRequest(name="a", password="1"), rpc.AuthenticateRequest(name="a", password="2"), True),
        (rpc.AuthenticateRequest(name="a", password="1"), rpc.AuthenticateRequest(name="b", password="1"), False),
        (create(b"1700000000"), create(b"1800000000"), True),
        (
            rpc.TxnRequest(success=[rpc.RequestOp(request_put=put(b"a", lease=7))]),
            rpc.TxnRequest(success=[rpc.RequestOp(request_put=put(b"a", lease=8))]),
            True,
        ),
    ],
)
def test_requests_are_alike_but_for_their_names(one: Message, other: Message, is_alike: bool) -> None:
    shapes = Shapes()
    assert (shapes.of(KV, one).skeleton == shapes.of(KV, other).skeleton) == is_alike


def test_nothing_is_generated_if_one_says_so() -> None:
    shapes = Shapes(())
    assert shapes.of(KV, put(UUIDS[0].encode())).names == ()
    assert shapes.of(KV, put(b"a", lease=3)).names == (lease(3),)


def test_answers_have_the_names_of_the_run() -> None:
    ties = Ties()
    assert ties.are_trivial
    ties.tie((text(UUIDS[2]), lease(8)), (text(UUIDS[0]), lease(5)))
    answer = rpc.RangeResponse(kvs=[kv.KeyValue(key=b"k/" + UUIDS[0].encode(), value=b"by 5", lease=5)])
    Shapes().rename(answer, ties.live)
    assert answer.kvs[0] == kv.KeyValue(key=b"k/" + UUIDS[2].encode(), value=b"by 5", lease=8)
    leases = rpc.LeaseTimeToLiveResponse(ID=5, keys=[UUIDS[0].encode(), b"other"])
    Shapes().rename(leases, ties.live)
    assert (leases.ID, list(leases.keys)) == (8, [UUIDS[2].encode(), b"other"])


def test_a_tied_name_stands_for_no_other() -> None:
    ties = Ties()
    a, b, c, d = map(text, UUIDS)
    ties.tie((c,), (a,))
    assert ties.recorded((c, b)) == (a, b)
    assert not ties.can_be_same((c,), (b,))  # c is a already
    assert not ties.can_be_same((d,), (a,))  # a is c already
    assert ties.can_be_same((d,), (b,))


def test_a_name_that_was_itself_stays_so() -> None:
    ties = Ties()
    a, b = map(text, UUIDS[:2])
    ties.tie((a,), (a,))
    assert not ties.can_be_same((a,), (b,))
    assert not ties.can_be_same((b,), (a,))


def test_names_of_one_request_are_one_to_one() -> None:
    ties = Ties()
    a, b, c, d = map(text, UUIDS)
    assert ties.can_be_same((c, d), (a, b))
    assert not ties.can_be_same((c, c), (a, b))
    assert not ties.can_be_same((c, d), (a, a))
    assert not ties.can_be_same((c,), (a, b))


def test_leases_that_change_places_do_so_in_keys_too() -> None:
    ties = Ties()
    one, two = 0x1111111111111111, 0x2222222222222222
    ties.tie((lease(one),), (lease(two),))
    assert ties.recorded_lease(one) == two
    assert ties.recorded_lease(two) == one
    assert ties.live(text("2222222222222222")) == b"1111111111111111"
    assert ties.live(text("1111111111111111")) == b"2222222222222222"


# Which keys


@pytest.mark.parametrize(
    ("one", "other", "do_meet"),
    [
        ((b"a", b""), (b"a", b""), True),
        ((b"a", b""), (b"b", b""), False),
        ((b"a", b"c"), (b"b", b""), True),
        ((b"a", b"c"), (b"c", b""), False),
        ((b"b", b"\0"), (b"a", b"b"), False),
        ((b"b", b"\0"), (b"a", b"c"), True),
        ((b"a", b"\0"), (b"z", b"\0"), True),
    ],
)
def test_ranges_meet(one: tuple[bytes, bytes], other: tuple[bytes, bytes], do_meet: bool) -> None:
    for reads, writes in ((one, other), (other, one)):
        written = Written()
        written.add(7, (keys_of(*writes),))
        asked = read_keys(get(reads[0], range_end=reads[1]))
        assert written.of(asked) == [7] * do_meet
        assert (written.newest(asked, 6), written.newest(asked, 8)) == (0, 7 * do_meet)


def test_what_txns_within_txns_read_and_write() -> None:
    def within(op: rpc.RequestOp) -> rpc.TxnRequest:
        inner = rpc.RequestOp(request_txn=rpc.TxnRequest(success=[op], failure=[op]))
        return rpc.TxnRequest(success=[inner], failure=[rpc.RequestOp(request_put=put(b"never"))])

    assert read_keys(within(rpc.RequestOp(request_range=get(b"a")))) == (keys_of(b"a"),) * 2
    removed = rpc.ResponseOp(response_delete_range=rpc.DeleteRangeResponse(deleted=1))
    inner = rpc.ResponseOp(response_txn=rpc.TxnResponse(succeeded=False, responses=[removed]))
    answer = rpc.TxnResponse(succeeded=True, responses=[inner])
    request = within(rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"b", range_end=b"c")))
    assert written_keys(request, answer, Leases()) == (keys_of(b"b", b"c"),)
    leases = Leases()
    leases.note(within(rpc.RequestOp(request_put=put(b"d", lease=7))))
    assert set(leases.keys(7)) == {keys_of(b"d")}
