"""`LeaseTable` against a dict of ends."""

from __future__ import annotations

from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from mvccstore.mvcc import lease_table
from mvccstore.mvcc.lease_table import LeaseTable, in_order

steps = st.lists(
    st.tuples(
        st.sampled_from(("add", "add", "remove", "renew", "left", "pass", "look")),
        st.integers(1, 8),
        st.integers(1, 500),
    ),
    max_size=80,
)


@given(steps=steps)
def test_table_says_what_a_dict_of_ends_does(steps: list[tuple[str, int, int]]) -> None:
    table = LeaseTable()
    leases: dict[int, tuple[int, int]] = {}
    now_ms = 0
    for step, lease_id, number in steps:
        match step:
            case "add":
                table.add(lease_id, number, now_ms / 1000)
                leases[lease_id] = (number, now_ms + number)
            case "remove":
                table.remove(lease_id)
                leases.pop(lease_id, None)
            case "renew" if lease_id in leases:
                table.renew(lease_id, now_ms / 1000)
                leases[lease_id] = (leases[lease_id][0], now_ms + leases[lease_id][0])
            case "left" if lease_id in leases:
                table.set_left(lease_id, number / 1000, now_ms / 1000)
                leases[lease_id] = (leases[lease_id][0], now_ms + number)
            case "pass":
                now_ms += number
        if step == "look":  # seldom, as it tidies up
            first = min((end for _, end in leases.values()), default=None)
            assert table.next_end() == (None if first is None else first / 1000)
        ordered = sorted(leases, key=lambda lease_id: (leases[lease_id][1], lease_id))
        assert table.ids() == ordered
        assert table.due(now_ms / 1000) == [other for other in ordered if leases[other][1] <= now_ms]
        assert len(table) == len(leases)
        assert (lease_id in table) == (lease_id in leases)
        assert table.ttl_ms(lease_id) == leases.get(lease_id, (None, 0))[0]
        assert table.end(lease_id) == (leases[lease_id][1] / 1000 if lease_id in leases else None)
        check(table)


def check(table: LeaseTable) -> None:
    heap = table._heap
    assert all(heap[(place - 1) // 2] <= heap[place] for place in range(1, len(heap)))  # I1
    earliest = {lease_id: end_us for end_us, lease_id in sorted(heap, reverse=True)}
    assert all(earliest[lease_id] <= end_us for lease_id, (_, end_us) in table._leases.items())  # I1
    assert len(heap) <= 2 * len(table) + 64  # I2


def test_lease_that_is_renewed_for_less_than_it_had_left_ends_then() -> None:
    table = LeaseTable()
    table.add(7, 1_000, 0)
    table.set_left(7, 10, 0)
    assert table.next_end() == 10
    table.renew(7, 0)
    check(table)
    assert (table.next_end(), table.due(1)) == (1, [7])


def test_heap_does_not_grow_with_leases_that_come_and_go() -> None:
    table = LeaseTable()
    for number in range(1_000):
        table.add(number, 3_600_000, 0)
        table.remove(number)
        check(table)
    for _ in range(1_000):
        table.add(7, 1_000, 0)
        table.renew(7, 1)
        check(table)
        table.set_left(7, 1, 1)
        check(table)
    assert (table.next_end(), len(table)) == (2, 1)


@given(st.lists(st.integers(0, 5), max_size=30))
def test_leases_are_in_order_however_many_are_sorted_at_once(ends: list[int]) -> None:
    leases = {lease_id: (0, end) for lease_id, end in enumerate(ends)}
    with mock.patch.object(lease_table, "_RUN_LEASES", 4):
        assert in_order(leases) == sorted(leases, key=lambda lease_id: (ends[lease_id], lease_id))
