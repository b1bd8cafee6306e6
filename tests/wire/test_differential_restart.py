"""What an etcd and ours find again when both processes are killed or stopped, and started on what they left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mvccstore.server.etcd_shim import install
from mvccstore.server.messages import rpc
from tests.oracle.choice import Oracle, named_oracle
from tests.oracle.process import QUICK_ELECTION, EtcdProcess, running_etcd
from tests.wire.calls import (
    alarm,
    alive,
    cluster,
    compact,
    create,
    delete,
    delete_op,
    disarm,
    everything,
    get,
    grant,
    hash_kv,
    keep_alive,
    leases,
    maintenance,
    members,
    put,
    put_op,
    raise_alarm,
    revoke,
    status,
    time_to_live,
    txn,
    watching,
)
from tests.wire.client import Endpoint
from tests.wire.differential import Differential, Do, Http, Operation, Side, Take
from tests.wire.pair import NEEDS_ORACLE

pytestmark = [*NEEDS_ORACLE, pytest.mark.slow]

NOSPACE, CORRUPT = 1, 2
MIB = 1 << 20
QUOTA = ("--quota-backend-bytes=5242880", "--max-request-bytes=8388608")
ZERO_COST_TXNS = (3, 5, 7)
"""Since when a txn that adds nothing is let through while there is no room."""
ALARMS_SINCE = (3, 5, 7)
"""Since when an alarm that is disarmed leaves the others in force."""


class Twins:
    """Two processes on two data directories, and what is played to both."""

    def __init__(self, processes: tuple[EtcdProcess, EtcdProcess]) -> None:
        self._processes = processes
        sides = [Side(name, Endpoint(each.host, each.port), each.oracle.version) for name, each in self._named()]
        self.pair = Differential(*sides)

    def _named(self) -> Iterator[tuple[str, EtcdProcess]]:
        yield from zip(("etcd", "ours"), self._processes, strict=True)

    def play(self, *operations: Operation) -> list[object]:
        """Play operations to both, but for those that an etcd before 3.6 answers in its own way; they are answered alike."""
        is_old = self.pair.version < (3, 6, 0)
        return self.pair.play(*(operation for operation in operations if not (is_old and operation in OF_3_6)))

    def restart(self, *, is_killed: bool) -> None:
        """End both, as a crash does or as an administrator, and start them again."""
        for process in self._processes:
            if is_killed:
                process.kill()
            else:
                process.stop()
            process.start()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """Our stand-in, as what an `etcd` is to the tests."""
    return named_oracle(install(str(tmp_path_factory.mktemp("bin"))), "ours")


@contextmanager
def running_twins(folder: Path, ours: Oracle, arguments: Sequence[str] = ()) -> Iterator[Twins]:
    given = (*QUICK_ELECTION, *arguments)
    with (
        running_etcd(folder / "etcd", given) as theirs,
        running_etcd(folder / "ours", given, oracle=ours) as stand_in,
    ):
        twins = Twins((theirs, stand_in))
        with twins.pair:
            yield twins


ways = pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "stopped"])
HEALTH_OF_TWO = tuple(
    Http("GET", path)
    for path in ("/health?exclude=NOSPACE", "/health?exclude=CORRUPT", "/health?exclude=NOSPACE&exclude=CORRUPT")
)
"""Of two alarms, etcd tells of one or the other."""
HEALTH = (*HEALTH_OF_TWO, Http("GET", "/health"), Http("GET", "/version"))
CHECKS = tuple(
    Http("GET", path)
    for path in (
        *("/livez", "/livez?verbose", "/readyz", "/readyz?verbose", "/readyz?exclude=data_corruption"),
        *("/readyz?exclude=data_corruption&verbose", "/readyz/data_corruption", "/readyz/serializable_read"),
    )
)
OF_3_6 = (status(), *CHECKS, HEALTH[-1], *HEALTH_OF_TWO)
"""Earlier ones have other versions, fewer checks, and do not exclude the second alarm of a kind."""
SEEN: tuple[Operation, ...] = (everything(), alarm(), status(), *HEALTH, leases(), members(), hash_kv())


@ways
def test_keys_leases_and_what_was_compacted(tmp_path: Path, ours: Oracle, is_killed: bool) -> None:
    with running_twins(tmp_path, ours) as twins:
        twins.play(*(put(b"k/%d" % number, b"v" * number) for number in range(20)))
        twins.play(
            grant(600, 7), grant(900, 9), put(b"leased", lease=7), put(b"moved", lease=7), put(b"moved", lease=9)
        )
        twins.play(txn(put_op(b"t/1"), delete_op(b"k/3"), put_op(b"t/2")), delete(b"k/1", b"k/2"), compact(24))
        for _ in range(2):
            twins.restart(is_killed=is_killed)
            twins.play(*SEEN, *(keep_alive(alive(lease), Take(1)) for lease in (7, 9)))  # they did not start at once
            twins.play(time_to_live(7), time_to_live(9), get(b"\0", b"\0", revision=24), get(b"k/3", revision=23))
            twins.play(watching(create(b"k/", b"k0", start_revision=5), Take(2)))
            twins.play(
                watching(create(b"\0", b"\0", start_revision=24, prev_kv=True), Take(2), Do(put(b"k/1")), Take(1))
            )
            twins.play(put(b"moved", lease=9), delete(b"k/4"), compact(23), compact(99), grant(60, 7))
        twins.play(revoke(7), revoke(9), everything(), hash_kv())
        twins.restart(is_killed=is_killed)
        twins.play(*SEEN, revoke(9), grant(60, 9), time_to_live(7))


@ways
def test_members_that_were_added(tmp_path: Path, ours: Oracle, is_killed: bool) -> None:
    learner = cluster("Add", rpc.MemberAddRequest(peerURLs=["http://127.0.0.1:1"], isLearner=True))
    with running_twins(tmp_path, ours) as twins:
        twins.play(members(), learner)
        twins.restart(is_killed=is_killed)
        twins.play(members(), learner, cluster("Remove", rpc.MemberRemoveRequest(ID=404)), status())


ALARMS: tuple[tuple[Operation, ...], ...] = (
    (raise_alarm(NOSPACE, 7), put(b"a"), raise_alarm(NOSPACE, 7), alarm(), *HEALTH),
    (raise_alarm(CORRUPT, 8), raise_alarm(CORRUPT, 7), alarm(0, CORRUPT), *HEALTH_OF_TWO),
    (disarm(CORRUPT, 8), alarm(), *HEALTH_OF_TWO, put(b"a"), get(b"a"), delete(b"a")),
    (disarm(CORRUPT, 8), disarm(NOSPACE, 8), disarm(NOSPACE, 7), alarm(), grant(60, 1), *HEALTH),
    (disarm(CORRUPT, 7), alarm(), *HEALTH, put(b"a"), grant(60, 1)),
)
"""What is played between two restarts."""


@ways
def test_alarms(tmp_path: Path, ours: Oracle, is_killed: bool) -> None:
    with running_twins(tmp_path, ours) as twins:
        for operations in ALARMS if twins.pair.version >= ALARMS_SINCE else ():
            twins.play(*operations, status(), *CHECKS)
            twins.restart(is_killed=is_killed)
            twins.play(alarm(), status(), *HEALTH_OF_TWO, get(b"a"))
        twins.play(*HEALTH, put(b"a"), grant(60, 2))


def test_room_after_nospace(tmp_path: Path, ours: Oracle) -> None:
    """The way out of a full etcd, as its documentation has it, with a restart after each step."""
    # What a file takes differs; so sizes are such that a mebibyte more or less makes no difference.
    large = put(b"large", b"v" * (4 * MIB + MIB // 2))
    hashed = maintenance("Hash", rpc.HashRequest())  # etcd knows its size once it has written what waits
    refused: tuple[Operation, ...] = (
        *(large, put(b"small"), grant(60, 1), txn(put_op(b"small")), txn(delete_op(b"none"))),
        *(get(b"small"), delete(b"none"), *HEALTH, alarm(), status()),
    )
    with running_twins(tmp_path, ours, QUOTA) as twins:
        if twins.pair.version < ZERO_COST_TXNS:
            refused = (large, put(b"small"), get(b"small"), delete(b"none"), *HEALTH, alarm())
        twins.play(grant(600, 5), put(b"filling", b"v" * MIB, lease=5), hashed, alarm(), *HEALTH)
        twins.play(*refused)
        twins.restart(is_killed=True)
        twins.play(*refused, delete(b"filling"), compact(3), *refused)
        # Disarmed before there is room, it is raised by the next write that finds none.
        twins.restart(is_killed=True)
        twins.play(get(b"filling"), disarm(NOSPACE, 0), alarm(), *HEALTH, *refused)
        twins.restart(is_killed=False)
        twins.play(maintenance("Defragment", rpc.DefragmentRequest()), *refused)
        # With room, too, nothing is written until it is disarmed.
        twins.restart(is_killed=True)
        twins.play(put(b"small"), alarm(), disarm(NOSPACE, 0), alarm(), *HEALTH, put(b"small"), large, alarm(), *HEALTH)
        twins.restart(is_killed=True)
        twins.play(alarm(), *HEALTH, status(), everything(), hash_kv(), put(b"small", b"2"), revoke(5), *SEEN)
