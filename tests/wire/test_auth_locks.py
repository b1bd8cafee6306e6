"""The Lock and Election services with authentication on: etcd and ours answer alike."""

from __future__ import annotations

import pytest

from mvccstore.server.messages import election, lock
from tests.wire.auth_calls import (
    ENABLED,
    READ,
    READWRITE,
    WRITE,
    as_root,
    authenticate,
    grant_permission,
    grant_role,
    role_add,
    showing,
    showing_text,
    user_add,
)
from tests.wire.calls import everything, grant, judge
from tests.wire.differential import Case, Operation, Unary
from tests.wire.pair import NEEDS_ORACLE, Pair

pytestmark = NEEDS_ORACLE


BOB, AMY = 2, 3
"""Bob reads and writes what begins with b/ , reads what begins with r/ and writes what begins with w/; Amy may nothing."""
USERS: tuple[Operation, ...] = (
    *(role_add("r"), user_add("bob", "b"), user_add("amy", "a"), grant_role("bob", "r")),
    *(grant_permission("r", READWRITE, b"b/", b"b0"), grant_permission("r", READ, b"r/", b"r0")),
    *(grant_permission("r", WRITE, b"w/", b"w0"), *(grant(600, lease) for lease in range(1, 30))),
    *(*ENABLED, authenticate("bob", "b"), authenticate("amy", "a")),
)


def locking(name: bytes, lease: int) -> Unary:
    return Unary("/v3lockpb.Lock/Lock", lock.LockRequest(name=name, lease=lease))


def unlock(key: bytes) -> Unary:
    return Unary("/v3lockpb.Lock/Unlock", lock.UnlockRequest(key=key))


def campaign(name: bytes, lease: int) -> Unary:
    return Unary("/v3electionpb.Election/Campaign", election.CampaignRequest(name=name, lease=lease, value=b"v"))


def leader(name: bytes) -> Unary:
    return Unary("/v3electionpb.Election/Leader", election.LeaderRequest(name=name))


def resign(name: bytes, lease: int, revision: int) -> Unary:
    key = election.LeaderKey(name=name, key=b"%s/%x" % (name, lease), rev=revision, lease=lease)
    return Unary("/v3electionpb.Election/Resign", election.ResignRequest(leader=key))


def proclaim(name: bytes, lease: int, revision: int) -> Unary:
    key = election.LeaderKey(name=name, key=b"%s/%x" % (name, lease), rev=revision, lease=lease)
    return Unary("/v3electionpb.Election/Proclaim", election.ProclaimRequest(leader=key, value=b"w"))


CASES = (
    Case(
        "locks",
        (
            *USERS,
            *(shown(locking(b"b", 1)) for shown in (lambda one: one, lambda one: showing_text("no.1", one))),
            *(showing(AMY, locking(b"b", 1)), showing(BOB, locking(b"b", 1)), showing(BOB, locking(b"b", 1))),
            *(showing(BOB, locking(name, 5)) for name in (b"n", b"r", b"w", b"")),
            *(unlock(b"b/1"), showing(AMY, unlock(b"b/1")), showing(BOB, unlock(b"b/1")), showing(BOB, unlock(b"r/5"))),
            *as_root(locking(b"n", 6), unlock(b"n/6"), everything()),
        ),
    ),
    Case(
        "elections",
        (
            *USERS,
            *(
                campaign(b"b", 1),
                leader(b"b"),
                showing_text("no.1", campaign(b"b", 1)),
                showing(AMY, campaign(b"b", 1)),
            ),
            *(
                showing(AMY, leader(b"b")),
                showing(BOB, leader(b"b")),
                showing(BOB, campaign(b"b", 1)),
                showing(BOB, leader(b"b")),
            ),
            *(showing(BOB, campaign(name, 5)) for name in (b"n", b"r", b"w")),
            *(showing(BOB, leader(name)) for name in (b"n", b"r", b"w")),
            *(proclaim(b"b", 1, 2), showing(AMY, proclaim(b"b", 1, 2)), showing(BOB, proclaim(b"b", 1, 2))),
            *(resign(b"b", 1, 2), showing(AMY, resign(b"b", 1, 2)), showing(BOB, resign(b"b", 1, 2))),
            *as_root(everything()),
        ),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_locks_and_elections(auth_pair: Pair, case: Case) -> None:
    judge(auth_pair, case)
