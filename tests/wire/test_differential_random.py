"""Random scripts against etcd, over gRPC: what the KV, Lease and Watch services take, and every answer compared.

The steps are those of `mvccstore.testing.workload`. One pair serves all examples, so the revisions go on from one to
the next; keys and leases are cleared in between.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import Message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from mvccstore.server.messages import rpc
from mvccstore.server.messages.json import from_json
from mvccstore.testing.playing import Place, filled
from mvccstore.testing.workload import CALLS, Step, Vocabulary, Workload
from tests.wire.calls import FENCE, alive, cancel, keep_alive, put_op, txn, watching
from tests.wire.differential import Do, Operation, Send, Take, TakeCreated, TakeWatches
from tests.wire.pair import NEEDS_ORACLE, Pair
from tests.wire.requests import ALL, calls, compact, delete, get

pytestmark = NEEDS_ORACLE

STEPS = 100
LEASES = Vocabulary().leases
WORDS = Vocabulary(has_unknown_enums=True)
OLD = replace(WORDS, is_certain=False)
sources = st.randoms(use_true_random=False)


@dataclass
class Compacted:
    """What was compacted of a pair, by all examples."""

    revisions: set[int] = field(default_factory=set)
    is_under_way: bool = False
    """Whether the last compaction may be, in etcd."""


class Scripts(RuleBasedStateMachine):
    """Plays what it draws to a pair."""

    def __init__(self, current_pair: Callable[[], Pair], compacted: dict[Pair, Compacted]) -> None:
        super().__init__()
        self.pair = current_pair()
        self.revision = 1
        self.is_old = self.pair.version < (3, 6, 0)
        self.words = OLD if self.is_old else WORDS
        self.compacted = compacted.setdefault(self.pair, Compacted())
        self.play(get(b"a"))

    def play(self, request: Message) -> dict[str, Any]:
        (answer,) = self.pair.play(*calls(request))
        assert isinstance(answer, dict)
        # What is refused has no header.
        self.revision = answer.get("ok", {}).get("header", {}).get("revision", self.revision)
        return answer

    def play_step(self, step: Step) -> None:
        self.play(self.request(step))

    def request(self, step: Step) -> Any:
        body = filled(step, Place(), 1, self.revision)
        return from_json(CALLS[step.call][1], json.dumps(body).encode())

    @rule(source=sources)
    def put(self, source: random.Random) -> None:
        self.play_step(Workload(source, self.words).put())

    @rule(source=sources)
    def delete(self, source: random.Random) -> None:
        self.play_step(Workload(source, self.words).delete())

    @rule(source=sources)
    def range(self, source: random.Random) -> None:
        self.play_step(Workload(source, self.words).range())

    @rule(source=sources)
    def txn(self, source: random.Random) -> None:
        self.play_step(Workload(source, self.words).txn())

    @rule(source=sources)
    def grant(self, source: random.Random) -> None:
        self.play_step(Workload(source, self.words).grant())

    @rule(source=sources)
    def revoke(self, source: random.Random) -> None:
        self.play_step(Workload(source, self.words).revoke())

    @rule(source=sources)
    def time_to_live(self, source: random.Random) -> None:
        self.play_step(Workload(source, self.words).time_to_live())

    @rule(lease=st.sampled_from((*LEASES, 404)))
    def keep_alive(self, lease: int) -> None:
        self.pair.play(keep_alive(alive(lease), Take(1)))

    @rule()
    def leases(self) -> None:
        self.play(rpc.LeaseLeasesRequest())

    @rule(source=sources, number=st.integers(1, 4), changes=st.integers(0, 8))
    def watch(self, source: random.Random, number: int, changes: int) -> None:
        """Watches of one stream while other things happen, of which no compaction: who of both is first is open."""
        workload = Workload(source, self.words)
        wanted = [self.request(workload.watch()) for _ in range(number)]
        if self.is_old:
            for request in wanted:  # one in the past misses the delete in a revision that was compacted
                request.start_revision = 0
        draws = (workload.put, workload.put, workload.delete, workload.txn, workload.revoke, workload.grant)
        done = [Do(*calls(self.request(source.choice(draws)()))) for _ in range(changes)]
        # Each watch sees these, unless it is filtered out; they are past what any begins with.
        keys = {request.key or b"\0" for request in wanted}
        fence: list[Operation] = [txn(*(put_op(key, b"fence") for key in keys)), *calls(*(delete(key) for key in keys))]
        first = [Do(operation) for operation in fence * 2]
        last = [Do(txn(*(put_op(key, b"fence") for key in keys))), Do(deletion(keys))]
        backs = [1 if rpc.WatchCreateRequest.NODELETE in request.filters else 0 for request in wanted]
        (answers,) = self.pair.play(
            watching(
                *(Send(rpc.WatchRequest(create_request=request)) for request in wanted),
                *(TakeCreated(number), *done, *first, *last, TakeWatches(backs)),
                *(*(cancel(watch_id) for watch_id in (0, 7, 1)), FENCE),
            )
        )
        assert "nothing more came" not in repr(answers)
        self.revision = self.pair.players[0].revision

    @rule(back=st.sampled_from((0, 1, 3, 8, 20, 60, -1)), is_physical=st.booleans())
    def compact(self, back: int, is_physical: bool) -> None:
        revision = self.revision - back
        if revision and "ok" in self.play(compact(revision, physical=is_physical)):
            self.compacted.revisions.add(revision)
            self.compacted.is_under_way = not is_physical

    @rule(back=st.sampled_from((0, 1, 5, 20, -1)))
    def hash(self, back: int) -> None:
        self.play_hash(max(self.revision - back, 1))

    def play_hash(self, revision: int) -> None:
        # Known differences: etcd remembers hashes from before a compaction; an old one drops tombstones in one.
        if revision in self.compacted.revisions or (self.is_old and self.compacted.revisions):
            return
        if self.compacted.is_under_way:
            counted = self.play(get(**ALL, revision=revision, count_only=True))
            if "ok" in counted and "count" not in counted["ok"]:
                return  # no key is left, and then etcd's has what a compaction is still to take out
        self.play(rpc.HashKVRequest(revision=revision))

    @rule()
    def audit(self) -> None:
        # No precondition: which rules there are must not depend on what earlier examples left.
        self.play(get(**ALL))
        self.play_hash(self.revision)

    def teardown(self) -> None:
        if self.pair.is_alike:
            for lease in LEASES:
                self.play(rpc.LeaseRevokeRequest(ID=lease))
            self.play(delete(**ALL))


def deletion(keys: set[bytes]) -> Operation:
    """Delete keys, all in one revision."""
    return txn(*(rpc.RequestOp(request_delete_range=delete(key)) for key in keys))


def test_random_scripts(current_pair: Callable[[], Pair]) -> None:
    # The profile says how many; each is 100 steps.
    compacted: dict[Pair, Compacted] = {}
    run_state_machine_as_test(lambda: Scripts(current_pair, compacted), settings=settings(stateful_step_count=STEPS))
