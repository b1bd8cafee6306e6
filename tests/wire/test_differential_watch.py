"""Watch: etcd and ours answer alike, by tables of what clients trip over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mvccstore.server.messages import rpc
from tests.wire.calls import (
    FENCE,
    cancel,
    compact,
    create,
    delete,
    delete_op,
    grant,
    progress,
    put,
    put_op,
    revoke,
    txn,
    watching,
)
from tests.wire.differential import Case, Do, HalfClose, Operation, Send, Step, Streaming, Take, Unary, cases_for
from tests.wire.pair import NEEDS_ORACLE, Pair

pytestmark = NEEDS_ORACLE

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
NOPUT, NODELETE = rpc.WatchCreateRequest.NOPUT, rpc.WatchCreateRequest.NODELETE
NEGATIVE_START = (3, 5, 5)
"""Since when a negative start is refused rather than read as one that may be compacted."""
PROGRESS = (3, 5, 13)
"""Since when a request for progress is answered only if every watch of the stream is synced."""

IDS = (
    Case(
        "chosen by the stream, and not used again",
        (
            watching(
                *(create(b"w"), create(b"w"), create(b"w"), Take(3), cancel(0), cancel(2), Take(2)),
                *(create(b"w"), create(b"w"), Take(2), Do(put(b"w")), Take(3)),
            ),
        ),
    ),
    Case(
        "chosen by the client, which the stream's own go around",
        (
            watching(
                *(create(b"w", watch_id=1), create(b"w"), create(b"w"), create(b"w", watch_id=4), Take(4)),
                *(create(b"w"), create(b"w"), Take(2), Do(put(b"w")), Take(6)),
            ),
        ),
    ),
    Case(
        "of any number",
        (
            watching(
                *(create(b"w", watch_id=number) for number in (-1, -2, INT64_MIN, INT64_MAX, 2**32)),
                *(Take(5), Do(put(b"w")), Take(5)),
                *(cancel(number) for number in (-1, -2, INT64_MIN, INT64_MAX, 2**32)),
                *(Take(5), Do(put(b"w")), FENCE),
            ),
        ),
    ),
    Case(
        "that are taken are refused, and who has them stays",
        (
            watching(
                *(create(b"w", watch_id=7), create(b"x", watch_id=7), create(b"w"), create(b"x", watch_id=0), Take(4)),
                *(Do(put(b"x")), Take(1), Do(put(b"w")), Take(2)),
            ),
        ),
    ),
    Case(
        "that were cancelled may be chosen again",
        (
            watching(
                *(create(b"w", watch_id=7), cancel(7), create(b"x", watch_id=7), Take(3)),
                *(Do(put(b"w")), Do(put(b"x")), Take(1)),
                *(create(b"w"), cancel(0), Take(2), create(b"w"), Take(1)),
            ),
        ),
    ),
    Case(
        "that the stream chose may not be chosen by the client while they are taken",
        (watching(create(b"w"), create(b"w"), create(b"x", watch_id=1), Take(3), Do(put(b"w")), Take(2)),),
    ),
    Case(
        "of another stream are not known",
        (watching(create(b"w", watch_id=3), Take(1), Do(watching(cancel(3), FENCE)), Do(put(b"w")), Take(1)),),
    ),
)

CANCELS = (
    Case("of what is unknown bring nothing", (watching(cancel(0), cancel(5), cancel(-1), cancel(INT64_MIN), FENCE),)),
    Case(
        "of what is known bring one answer",
        (watching(create(b"w"), cancel(0), cancel(0), Take(2), FENCE, Do(put(b"w")), FENCE),),
    ),
    Case(
        "name the revision of the store",
        (watching(create(b"w"), Take(1), Do(put(b"other")), Do(put(b"other")), cancel(0), Take(1)),),
    ),
    Case(
        "of a refused watch bring nothing",
        (watching(create(b"z", b"a"), Take(1), cancel(-1), cancel(0), FENCE),),
    ),
)

SHAPES = (
    Case(
        "a request for nothing brings nothing",
        (watching(Send(rpc.WatchRequest()), Send(rpc.WatchRequest()), create(b"w"), Take(1), Do(put(b"w")), Take(1)),),
    ),
    Case(
        "a half-closed stream goes on",
        (watching(create(b"w"), Take(1), HalfClose(), Do(put(b"w")), Take(1), Do(delete(b"w")), Take(1)),),
    ),
    Case(
        "fields that are empty are as if they were not set",
        (
            watching(
                Send(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest())),
                Send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest())),
                *(Take(1), cancel(0), Take(1)),
            ),
        ),
    ),
)


RANGED = (b"\0", b"a", b"b", b"b\0", b"c", b"\xff", b"\xff\xff")
RANGES = Case(
    "of all kinds",
    (
        *(put(key) for key in RANGED),
        *(
            watching(
                *(create(key, range_end, start_revision=2), create(key, range_end), Take(3)),
                *(Do(txn(*(put_op(one, b"end") for one in RANGED))), Take(2)),
            )
            for key, range_end in (
                *((b"", b""), (b"", b"\0"), (b"\0", b""), (b"\0", b"\0"), (b"b", b""), (b"b", b"\0"), (b"b", b"c")),
                *((b"b", b"b\0"), (b"a", b"\xff"), (b"\xff", b"\0"), (b"", b"b"), (b"\0", b"\0\0")),
            )
        ),
    ),
)
INVERTED = Case(
    "that are inverted or empty are refused",
    (
        watching(
            *(create(key, end) for key, end in ((b"b", b"a"), (b"b", b"b"), (b"b\0", b"b"), (b"\xff", b"a"))),
            Take(4),
        ),
        watching(create(b"b", b"a", watch_id=5), create(b"b", b"a", start_revision=1), create(b"b"), Take(3)),
    ),
)

LIVE = (
    Case(
        "events of one revision come at once, in the order of the operations",
        (
            *(put(b"e/b"), put(b"e/gone")),
            watching(
                *(create(b"e/", b"e0", prev_kv=True), Take(1)),
                Do(txn(put_op(b"e/z"), put_op(b"e/b"), delete_op(b"e/gone"), put_op(b"e/a"), put_op(b"e/m"))),
                Take(1),
                Do(
                    txn(
                        rpc.RequestOp(request_txn=rpc.TxnRequest(success=[put_op(b"e/z", b"2"), delete_op(b"e/b")])),
                        put_op(b"e/a", b"2"),
                    )
                ),
                *(Take(1), Do(delete(b"e/", b"e0")), Take(1)),
            ),
        ),
    ),
    Case(
        "a key put and deleted in one txn is refused, and nothing is told",
        (
            put(b"e/x"),
            watching(
                *(create(b"e/", b"e0", prev_kv=True), Take(1)),
                *(Do(txn(delete_op(b"e/x"), put_op(b"e/x", b"2"))), Do(txn(put_op(b"e/x", b"2"), delete_op(b"e/x")))),
                *(Do(txn(put_op(b"e/y"), delete_op(b"e/", b"e0"))), Do(put(b"e/y")), Take(1)),
            ),
        ),
    ),
    Case(
        "what changes nothing brings nothing",
        (
            watching(
                *(create(b"e", b"f"), Take(1), Do(delete(b"e/none")), Do(delete(b"e/", b"e0")), Do(put(b""))),
                *(
                    Do(txn()),
                    Do(txn(delete_op(b"e/none"))),
                    Do(put(b"e", b"", ignore_value=True)),
                    Do(put(b"e")),
                    Take(1),
                ),
                *(Do(put(b"e", b"", ignore_value=True)), Take(1), Do(put(b"e", lease=404)), Do(delete(b"e")), Take(1)),
            ),
        ),
    ),
    Case(
        "each watch of a stream is told",
        (
            watching(
                *(create(b"e"), create(b"e", b"f"), create(b"e", prev_kv=True), create(b"f"), create(b"\0", b"\0")),
                *(Take(5), Do(put(b"e")), Take(4), Do(txn(put_op(b"f"), put_op(b"e"))), Take(5)),
                *(cancel(1), Take(1), Do(delete(b"e")), Take(3)),
            ),
        ),
    ),
    Case(
        "revoking a lease deletes its keys in one revision, by key",
        (
            *(grant(600, 1), put(b"e/z", lease=1), put(b"e/a", lease=1), put(b"e/m", lease=1), put(b"e/free")),
            watching(create(b"e/", b"e0", prev_kv=True), create(b"e/a"), Take(2), Do(revoke(1)), Take(2)),
        ),
    ),
    Case(
        "revoking a lease without keys brings nothing",
        (grant(600, 2), watching(create(b"e"), Take(1), Do(revoke(2)), Do(put(b"e")), Take(1))),
    ),
    Case(
        "a put says its lease",
        (
            *(grant(600, 3), grant(600, 4)),
            watching(
                create(b"e", prev_kv=True),
                *(Take(1), Do(put(b"e", lease=3)), Take(1), Do(put(b"e", lease=4)), Take(1), Do(put(b"e")), Take(1)),
            ),
            *(revoke(3), revoke(4)),
        ),
    ),
)

# What is filtered out is shown by what comes after it.
FILTERS = tuple(
    Case(
        f"{filters}",
        (
            put(b"f"),
            watching(
                *(create(b"f", b"g", filters=filters, prev_kv=True), Take(1)),
                *(Do(put(b"f")), Do(delete(b"f")), Do(put(b"f")), Do(txn(put_op(b"f1"), delete_op(b"f")))),
                Take(number),
            ),
        ),
    )
    for filters, number in (
        *(((NOPUT,), 2), ((NODELETE,), 3), ((NOPUT, NOPUT), 2), ((2,), 4), ((-1, 99), 4), ((99, NODELETE), 3)),
        ((), 4),
    )
)
ALL_FILTERED = Case(
    "both",
    (
        watching(
            *(create(b"f", filters=[NOPUT, NODELETE]), create(b"f"), Take(2), Do(put(b"f")), Do(delete(b"f"))),
            *(Take(2), FENCE),
        ),
    ),
)
SHARED = (*IDS, *CANCELS, *SHAPES, INVERTED, *LIVE, *FILTERS, ALL_FILTERED)


HISTORY: tuple[Operation, ...] = (
    *(put(b"a", b"2"), put(b"b", b"3"), put(b"a", b"4"), delete(b"b"), txn(put_op(b"c", b"6"), put_op(b"a", b"6"))),
    *(put(b"b", b"7"), put(b"a", b"8"), delete(b"a", b"d"), put(b"z", b"10")),
)
"""Revisions 2 to 10."""


def started(start: int, key: bytes = b"a", range_end: bytes = b"d", **options: object) -> Operation:
    return watching(create(key, range_end, start_revision=start, **options), Take(2))


STARTS = (
    Case("in the past", (*HISTORY, *(started(start, prev_kv=True) for start in range(1, 10)))),
    Case(
        "in the past, with filters",
        (
            *HISTORY,
            *(started(start, filters=[NODELETE], prev_kv=True) for start in (1, 5, 6)),
            *(started(start, filters=[NOPUT]) for start in (1, 5, 6, 9)),
        ),
    ),
    Case(
        "in the past, of keys that did not change since",
        (
            *HISTORY,
            watching(create(b"a", start_revision=10), Take(1), Do(put(b"a")), Take(1)),
            watching(create(b"none", start_revision=2), Take(1), Do(put(b"none")), Take(1)),
            watching(create(b"a", start_revision=2, filters=[NOPUT, NODELETE]), Take(1), FENCE),
        ),
    ),
    Case(
        "in the past, and then what happens",
        (
            *HISTORY,
            watching(
                *(create(b"a", b"d", start_revision=7), Take(2), Do(put(b"a")), Take(1)),
                *(Do(txn(put_op(b"c"), put_op(b"b"))), Take(1)),
            ),
        ),
    ),
    Case(
        "at the current revision and the next",
        (
            *HISTORY,
            watching(create(b"z", start_revision=10), Take(2), Do(put(b"z")), Take(1)),
            watching(create(b"z", start_revision=12), Take(1), Do(put(b"z")), Take(1)),
            watching(create(b"z"), Take(1), Do(put(b"z")), Take(1)),
        ),
    ),
    Case(
        "in the future: what comes before is not told",
        (
            *HISTORY,
            watching(
                *(create(b"f", start_revision=14), create(b"f", start_revision=INT64_MAX), Take(2)),
                *(Do(put(b"f", b"11")), Do(put(b"f", b"12")), Do(delete(b"f")), Do(put(b"f", b"14")), Take(1)),
                *(Do(put(b"f", b"15")), Take(1), cancel(1), Take(1)),
            ),
        ),
    ),
    Case(
        "that are negative",
        (
            *HISTORY,
            watching(
                *(create(b"a", start_revision=-1), create(b"a", start_revision=INT64_MIN, watch_id=5), Take(2)),
                *(cancel(5), cancel(-1), create(b"b", b"a", start_revision=-1), Take(1), create(b"a"), Take(1)),
                create(b"", start_revision=-7),
                Take(1),
            ),
        ),
        since=NEGATIVE_START,
    ),
    Case(
        "of several watches on one stream",
        (
            *HISTORY,
            watching(
                *(create(b"a", b"d", start_revision=start, watch_id=100 + start) for start in (2, 5, 9, 11, 0)),
                *(Take(8), Do(put(b"a")), Take(5)),
            ),
        ),
    ),
)

COMPACTIONS = (
    Case(
        "a watch below it is created, and cancelled with what is left",
        (*HISTORY, compact(6), *(started(start) for start in (1, 2, 5)), started(6, prev_kv=True), started(7)),
    ),
    Case(
        "a prev_kv that is compacted is missing",
        (*HISTORY, compact(7), started(7, prev_kv=True), started(8, prev_kv=True), started(9, prev_kv=True)),
    ),
    Case(
        "a delete at the compacted revision is told",
        (*HISTORY, compact(9), started(9, prev_kv=True), started(8)),
        since=(3, 5, 16),
    ),
    Case(
        "a cancelled watch has its id until it is cancelled once more",
        (
            *(*HISTORY, compact(6)),
            watching(
                *(create(b"a", start_revision=2, watch_id=4), Take(2), create(b"a", watch_id=4), Take(1)),
                *(cancel(4), Take(1), cancel(4), FENCE, create(b"a", watch_id=4), Take(1), Do(put(b"a")), Take(1)),
            ),
        ),
    ),
    Case(
        "watches beside a cancelled one go on",
        (
            *(*HISTORY, compact(6)),
            watching(
                *(create(b"a", start_revision=2), create(b"z", start_revision=10), create(b"a"), Take(5)),
                *(Do(put(b"a")), Take(1), Do(put(b"z")), Take(1)),
            ),
        ),
    ),
    Case(
        "a watch that is up to date does not notice",
        (
            *HISTORY,
            watching(
                *(create(b"a"), create(b"a", b"d", start_revision=2, prev_kv=True), Take(3), Do(compact(10))),
                *(Do(put(b"a")), Take(2), Do(compact(11)), Do(delete(b"a")), Take(2)),
            ),
        ),
    ),
    Case(
        "a watch of the future whose start is compacted meanwhile is told all from there",
        (
            *HISTORY,
            watching(
                *(create(b"f", start_revision=13), Take(1), Do(put(b"x")), Do(put(b"x")), Do(put(b"x"))),
                *(Do(put(b"x")), Do(compact(14)), Do(put(b"f")), Take(1)),
            ),
        ),
    ),
)

PROGRESSES = (
    Case("without a watch there is none", (watching(progress(), progress(), FENCE),)),
    Case(
        "of watches that are up to date",
        (
            *HISTORY,
            watching(
                *(create(b"a"), create(b"b"), Take(2), progress(), Take(1), Do(put(b"other")), progress(), Take(1)),
                *(Do(put(b"a")), Take(1), progress(), progress(), Take(2), cancel(0), Take(1), progress(), Take(1)),
                *(cancel(1), Take(1), progress(), FENCE),
            ),
        ),
    ),
    Case(
        "of a watch that has caught up",
        (*HISTORY, watching(create(b"a", b"d", start_revision=2), Take(2), progress(), Take(1))),
    ),
    Case(
        "there is none while a watch is of the future",
        (
            *HISTORY,
            watching(
                *(create(b"a"), create(b"a", start_revision=12), Take(2), progress(), FENCE),
                *(Do(put(b"other")), progress(), FENCE, Do(put(b"a")), Take(2), progress(), Take(1)),
            ),
        ),
    ),
    Case(
        "there is one again when the watch of the future is cancelled",
        (
            *HISTORY,
            watching(
                *(create(b"a"), create(b"a", start_revision=99), Take(2), progress(), FENCE),
                *(cancel(1), Take(1), progress(), Take(1)),
            ),
        ),
    ),
    Case(
        "there is none while a compacted watch is not cancelled",
        (
            *(*HISTORY, compact(6)),
            watching(
                *(create(b"a"), create(b"a", start_revision=2), Take(3), progress(), FENCE),
                *(cancel(1), Take(1), progress(), Take(1)),
            ),
        ),
    ),
    Case(
        "refused watches do not count",
        (*HISTORY, watching(create(b"b", b"a"), progress(), FENCE, create(b"a"), Take(1), progress(), Take(1))),
    ),
    Case(
        "watches that asked for signs of it count as others",
        (*HISTORY, watching(create(b"a", progress_notify=True), Take(1), progress(), Take(1), Do(put(b"a")), Take(1))),
    ),
)

MANY = 1_100
LARGE = b"v" * 1_000_000
# What etcd has for a watch before it has sent that it is created, it does not cut. It looks each 100 ms for who is
# behind, so that a watch that begins just after it did is created long before the next time.
SIZES = (
    Case(
        "responses of history have a thousand revisions at most, and all name the store's",
        (
            *(put(b"many/%d" % number) for number in range(MANY)),
            watching(create(b"many/", b"many0", start_revision=2), Take(3)),
            watching(create(b"many/", b"many0", start_revision=2, fragment=True), Take(3)),
        ),
    ),
    Case(
        "history in fragments, and whole",
        (
            *(put(b"large", LARGE), put(b"small"), put(b"large", LARGE), put(b"large", LARGE), put(b"large", LARGE)),
            watching(
                *(create(b"small", start_revision=2), Take(2)),  # etcd has just looked for who is behind
                *(create(b"large", b"t", start_revision=2, fragment=True), Take(3)),
            ),
            watching(create(b"large", b"t", start_revision=2), Take(2)),
            watching(
                *(create(b"small", start_revision=2), Take(2)),
                *(create(b"large", b"t", start_revision=5, fragment=True), Take(2)),
            ),
        ),
    ),
    Case(
        "one revision in fragments, and one event that is too large for any",
        (
            *(put(b"large/1", LARGE[:700_000]), put(b"large/2", LARGE[:700_000])),
            watching(
                *(create(b"large/", b"large0", prev_kv=True, fragment=True), create(b"large/", b"large0"), Take(2)),
                *(Do(txn(*(put_op(b"large/%d" % one, LARGE[:700_000]) for one in (1, 2)))), Take(3)),
                *(Do(put(b"large/1", b"v" * 1_500_000)), Take(2), Do(put(b"large/1", b"v" * 1_500_000)), Take(2)),
            ),
        ),
    ),
)


def later(operation: Operation, by: int) -> Operation:
    """Move the revisions that an operation speaks of; they are written as for an empty store, which is at 1."""
    match operation:
        case Unary(request=rpc.CompactionRequest(revision=revision)):
            return compact(revision + by)
        case Streaming(steps=steps):
            return replace(operation, steps=[_later_step(step, by) for step in steps])
    return operation


def _later_step(step: Step, by: int) -> Step:
    match step:
        case Do(operation):
            return Do(later(operation, by))
        case Send(rpc.WatchRequest(create_request=wanted)) if 0 < wanted.start_revision < INT64_MAX:
            moved = rpc.WatchCreateRequest()
            moved.CopyFrom(wanted)
            moved.start_revision += by
            return Send(rpc.WatchRequest(create_request=moved))
    return step


CASES = (*SHARED, RANGES, *STARTS, *COMPACTIONS, *(replace(case, since=PROGRESS) for case in PROGRESSES), *SIZES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_watches_answer_alike(pair: Pair, case: Case) -> None:
    """All that is waited for must come, too: else a case shows less than it says."""
    for judged in cases_for(pair.version, [case]):
        # What the others left is taken away, so that a failure is that of its own operations.
        begun = pair.play(delete(b"\0", b"\0"))[0]["ok"]["header"]["revision"]
        answers = pair.play(*(later(operation, begun - 1) for operation in judged.operations))
        assert "nothing more came" not in repr(answers)
