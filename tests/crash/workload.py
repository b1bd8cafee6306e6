"""A seeded workload with something of everything, and what a store must hold after each of its steps.

The steps depend on the seed alone, so the states after them can be had from a run on another engine. A
store that was interrupted must be in the state after its last acknowledged step or in that after the next
one: never between, never before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from mvccstore import Compare, KeyRange, Op, Store
from mvccstore.types import LeaseGrantRequest, LeaseRevokeRequest

ALL = KeyRange.all()
ACCOUNTS = 5
TOTAL = 500
Step = Callable[[Store], object]
State = tuple[object, ...]


class CountingClock:
    """Time that depends on how often it was asked for, and nothing else."""

    def __init__(self) -> None:
        self._asked = 0

    def time_ms(self) -> int:
        self._asked += 1
        return 1_700_000_000_000 + self._asked * 7

    def monotonic(self) -> float:
        return 0.0


def steps(seed: int, count: int) -> Iterator[Step]:
    """Yield what to do, one acknowledged write at a time."""
    rng = random.Random(seed)

    def open_accounts(store: Store) -> None:
        store.txn(success=[Op.put(b"account/%d" % i, b"%d" % (TOTAL // ACCOUNTS)) for i in range(ACCOUNTS)])

    yield open_accounts
    kinds = ["put", "put", "put", "long", "triple", "move", "move", "delete", "range", "block", "compact"]
    kinds += ["grant", "leased", "leased", "revoke"]
    granted: list[int] = []
    for number in range(1, count):
        kind = rng.choice(kinds)
        a, b = rng.sample(range(ACCOUNTS), 2)
        key, size = b"key/%02d" % rng.randrange(12), rng.choice([0, 10, 300, 6_000])
        yield _step(kind, number, key, size, (a, b), granted)


def _step(kind: str, number: int, key: bytes, size: int, accounts: tuple[int, int], granted: list[int]) -> Step:
    token = b"%d" % number

    def move(store: Store) -> None:
        source, target = (store.get(b"account/%d" % account) for account in accounts)
        assert source is not None
        assert target is not None
        success = [
            Op.put(source.key, b"%d" % (int(source.value) - number)),
            Op.put(target.key, b"%d" % (int(target.value) + number)),
        ]
        compare = [Compare.mod_revision(kv.key, "==", kv.mod_revision) for kv in (source, target)]
        assert store.txn(compare=compare, success=success).succeeded

    def block(store: Store) -> None:
        with store.begin() as txn:
            for i in range(6):
                txn.put(b"block/%d" % i, token)
            txn.delete(key)
            txn.put(b"block/0", token + b" again")

    def compact(store: Store) -> None:
        if store.revision - 4 > max(store.compact_revision, 1):
            store.compact(store.revision - 4, physical=True)

    def grant(store: Store) -> None:
        store.submit(LeaseGrantRequest(number, 60_000))
        granted.append(number)

    def leased(store: Store) -> None:
        store.put(key, token, lease=granted[-1] if granted else 0)

    def revoke(store: Store) -> None:
        if granted:
            store.submit(LeaseRevokeRequest(granted.pop(0)))

    does: dict[str, Step] = {
        "put": lambda store: store.put(key, token + bytes(size)),
        "long": lambda store: store.put(key * 130, token),
        "triple": lambda store: store.txn(success=[Op.put(b"triple/%d" % i, token) for i in range(3)]),
        "move": move,
        "delete": lambda store: store.delete(key),
        "range": lambda store: store.delete(KeyRange(key, b"key/99")),
        "block": block,
        "compact": compact,
        "grant": grant,
        "leased": leased,
        "revoke": revoke,
    }
    return does[kind]


def state(store: Store) -> State:
    """Everything that can be seen of a store, except how far its reclaiming is."""
    return (
        store.revision,
        store.compact_revision,
        store.hash_kv(),
        tuple(store.history(ALL)),
        tuple(store.scan(ALL)),
        store.stats().leases,
    )


def problems(store: Store) -> list[str]:
    """What is wrong with a store whatever step it is at."""
    found = list(store.check())
    rows = {kv.key: kv for kv in store.scan(ALL)}
    accounts = [int(rows[b"account/%d" % i].value) for i in range(ACCOUNTS) if b"account/%d" % i in rows]
    if accounts and (len(accounts) != ACCOUNTS or sum(accounts) != TOTAL):
        found.append(f"accounts are {accounts}")
    triple = {kv.value for key, kv in rows.items() if key.startswith(b"triple/")}
    if len(triple) > 1:
        found.append(f"half a txn: {triple}")
    return found
