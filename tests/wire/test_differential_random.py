"""Random scripts against etcd: everything that the KV service takes, and every answer compared.

One pair serves all examples, so the revisions go on from one to the next; keys and leases are cleared in between.
Few keys, so that they meet, and fewer than 13, from which on Go's sort leaves the order of ties open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from mvccstore.server.messages import rpc
from tests.wire.pair import NEEDS_ORACLE, Pair
from tests.wire.requests import ALL, calls, compact, compare, delete, get, put, txn

pytestmark = NEEDS_ORACLE

STEPS = 100
TTL = 99_999
LEASES = (1, 2, 3, -4)
KEYS = (b"\0", b"a", b"a\0", b"b", b"b\xff", b"c", b"cc", b"d/1", b"d/2", b"e", b"\xff")
ENDS = (b"", b"\0", b"a", b"a\0", b"b", b"c", b"cd", b"d0", b"e", b"\xff", b"\xff\xff")

keys = st.sampled_from(KEYS)
key_ranges = st.one_of(
    st.fixed_dictionaries({"key": st.sampled_from((*KEYS, b"aa", b""))}),
    st.fixed_dictionaries({"key": keys, "range_end": st.sampled_from(ENDS)}),
    st.just(ALL),
)
values = st.sampled_from((b"", b"1", b"2", b"10", b"\xff\x00", b"v" * 300))
leases = st.sampled_from((0, 0, 0, *LEASES, 404))
flags = st.sampled_from((False, False, True))
enums = st.sampled_from((0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, -1))


@st.composite
def revisions(draw: st.DrawFn, current: int) -> int:
    """Draw a revision to read: mostly the current one or one not long ago."""
    back = draw(st.sampled_from((None, None, 0, 1, 2, 5, 10, 30, -1)))
    return draw(st.sampled_from((0, 0, 0, -1, 1))) if back is None else max(current - back, 1)


@st.composite
def ranges(draw: st.DrawFn, current: int) -> rpc.RangeRequest:
    options: dict[str, Any] = {
        "revision": draw(revisions(current)),
        "limit": draw(st.sampled_from((0, 0, 1, 2, 5, -1))),
    }
    if draw(flags):
        options |= {"sort_order": draw(enums) % 4, "sort_target": draw(enums) % 6}
    for name in ("keys_only", "count_only", "serializable"):
        options[name] = draw(flags) and draw(flags)
    if draw(flags):
        bound = st.sampled_from((0, 0, current, current - 1, current - 5, current - 20, -1))
        for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            options[name] = draw(bound)
    return rpc.RangeRequest(**draw(key_ranges), **options)


@st.composite
def puts(draw: st.DrawFn) -> rpc.PutRequest:
    options = {name: draw(flags) for name in ("prev_kv", "ignore_value", "ignore_lease")}
    value = b"" if options["ignore_value"] and draw(st.booleans()) else draw(values)
    lease = 0 if options["ignore_lease"] and draw(st.booleans()) else draw(leases)
    return put(draw(keys), value, lease=lease, **options)


@st.composite
def deletes(draw: st.DrawFn) -> rpc.DeleteRangeRequest:
    return rpc.DeleteRangeRequest(**draw(key_ranges), prev_kv=draw(flags))


@st.composite
def compares(draw: st.DrawFn, current: int) -> rpc.Compare:
    revision = st.sampled_from((0, 1, current, current - 1, current - 5, current - 10))
    operand: dict[str, Any] = draw(
        st.one_of(
            st.fixed_dictionaries({"version": st.integers(0, 4)}),
            st.fixed_dictionaries({"create_revision": revision}),
            st.fixed_dictionaries({"mod_revision": revision}),
            st.fixed_dictionaries({"value": values}),
            st.fixed_dictionaries({"lease": leases}),
            st.just({}),
        )
    )
    target = {"version": 0, "create_revision": 1, "mod_revision": 2, "value": 3, "lease": 4}.get(
        next(iter(operand), ""), 0
    )
    if draw(flags) and draw(flags):
        target = draw(enums)
    return compare(**draw(key_ranges), result=draw(enums), target=target, **operand)


def operations(current: int, depth: int) -> st.SearchStrategy[Message]:
    several = [puts(), puts(), puts(), deletes(), ranges(current)]
    return st.one_of(*several, txns(current, depth - 1)) if depth else st.one_of(*several)


@st.composite
def txns(draw: st.DrawFn, current: int, depth: int = 2) -> rpc.TxnRequest:
    branch = st.lists(operations(current, depth), max_size=4)
    return txn(*draw(branch), compares=draw(st.lists(compares(current), max_size=2)), failure=draw(branch))


class Scripts(RuleBasedStateMachine):
    """Plays what it draws to a pair."""

    def __init__(self, current_pair: Callable[[], Pair], compacted: dict[Pair, set[int]]) -> None:
        super().__init__()
        self.pair = current_pair()
        self.revision = 1
        self.compacted = compacted.setdefault(self.pair, set())
        self.play(get(b"a"))

    def play(self, request: Message) -> dict[str, Any]:
        (answer,) = self.pair.play(*calls(request))
        assert isinstance(answer, dict)
        # What is refused has no header.
        self.revision = answer.get("ok", {}).get("header", {}).get("revision", self.revision)
        return answer

    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        self.play(data.draw(puts()))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.play(data.draw(deletes()))

    @rule(data=st.data())
    def range(self, data: st.DataObject) -> None:
        self.play(data.draw(ranges(self.revision)))

    @rule(data=st.data())
    def txn(self, data: st.DataObject) -> None:
        self.play(data.draw(txns(self.revision)))

    @rule(lease=st.sampled_from(LEASES), ttl=st.sampled_from((TTL, TTL, TTL, 2**40)))
    def grant(self, lease: int, ttl: int) -> None:
        self.play(rpc.LeaseGrantRequest(ID=lease, TTL=ttl))

    @rule(lease=st.sampled_from((*LEASES, 404)))
    def revoke(self, lease: int) -> None:
        self.play(rpc.LeaseRevokeRequest(ID=lease))

    @rule(lease=st.sampled_from((*LEASES, 404)), has_keys=st.booleans())
    def time_to_live(self, lease: int, has_keys: bool) -> None:
        self.play(rpc.LeaseTimeToLiveRequest(ID=lease, keys=has_keys))

    @rule(back=st.sampled_from((0, 1, 3, 8, 20, 60, -1)), is_physical=st.booleans())
    def compact(self, back: int, is_physical: bool) -> None:
        revision = self.revision - back
        if revision and "ok" in self.play(compact(revision, physical=is_physical)):
            self.compacted.add(revision)

    @rule(back=st.sampled_from((0, 1, 5, 20, -1)))
    def hash(self, back: int) -> None:
        revision = max(self.revision - back, 1)
        if revision not in self.compacted:  # etcd remembers those from before: a known difference
            self.play(rpc.HashKVRequest(revision=revision))

    @rule()
    def audit(self) -> None:
        # No precondition: which rules there are must not depend on what earlier examples left.
        self.play(get(**ALL))
        if self.revision not in self.compacted:
            self.play(rpc.HashKVRequest())

    def teardown(self) -> None:
        if self.pair.is_alike:
            for lease in LEASES:
                self.play(rpc.LeaseRevokeRequest(ID=lease))
            self.play(delete(**ALL))


def test_random_scripts(current_pair: Callable[[], Pair]) -> None:
    # The profile says how many; each is 100 steps.
    compacted: dict[Pair, set[int]] = {}
    run_state_machine_as_test(lambda: Scripts(current_pair, compacted), settings=settings(stateful_step_count=STEPS))
