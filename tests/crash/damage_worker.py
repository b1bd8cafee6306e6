"""Opens damaged copies of a store, one after the other, in a process that may be killed by one of them.

    python -m tests.crash.damage_worker FILE COPY < specs.json

Reads a list of kinds of damage, and prints for each, in lines of JSON, the damage, the stage it is at, and at
the end what is wrong with how the store took it: an empty list if it gave the right data, raised a
`StoreError`, or if `check` told.

LMDB follows what a damaged page says, also out of its map. So each line says too whether the damage can be
told from the page structure, without mapping the file: only then may the process die, and not in `check`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import mvccstore
from mvccstore import KeyRange, Store, StoreError
from mvccstore.engine.lmdb_file import structure_problems
from mvccstore.types import LeaseGrantRequest

SIDECARS = ("-lock", "-writer", "-wal", "-shm")
ALL = KeyRange.all()

Damage = list[object]
"""["flip", at, bit], ["cut", size], ["zero", at, size], ["swap", at, other, size] or ["none"]."""


def build(path: Path, engine: str) -> None:
    """Make a small store that has something of everything: versions, generations, a lease, long keys, a pass half done."""
    rng = random.Random(1)
    with mvccstore.open(path, engine=engine, durability="os") as store:
        for _ in range(90):
            store.put(b"key/%03d" % rng.randrange(40), rng.randbytes(rng.randrange(20, 200)))
        store.put(b"long/" + b"x" * 900, b"1")
        store.put(b"large", rng.randbytes(9_000))
        for i in range(10):
            store.put(b"hot", b"%d" % i)
        store.submit(LeaseGrantRequest(7, 60_000))
        store.put(b"leased", b"1", lease=7)
        store.delete(KeyRange.prefix(b"key/00"))
        store.compact(60, physical=True)
        for _ in range(20):
            store.put(b"key/%03d" % rng.randrange(40), rng.randbytes(100))
        with store.begin() as txn:
            for i in range(20):
                txn.put(b"block/%02d" % i, b"%d" % i)
        store.compact(100, physical=True)
        store.delete(b"hot")
        store.put(b"hot", b"again")


def everything(store: Store) -> dict[str, object]:
    """Read all that can be read, on every path that reads."""
    rows = list(store.scan(ALL))
    floor = max(store.compact_revision, 1)
    return {
        "revisions": (store.revision, store.compact_revision),
        "scan": rows,
        "range": store.range(ALL).kvs,
        "by value": store.range(ALL, order_by="value").kvs,
        "get": [store.get(kv.key) for kv in rows],
        "get missing": store.get(b"missing"),
        "count": store.count(ALL),
        "past": [store.range(ALL, revision=revision).kvs for revision in range(floor, store.revision + 1, 7)],
        "get past": [store.get(b"hot", revision=revision) for revision in range(floor, store.revision + 1, 7)],
        "history": list(store.history(ALL, prev_kv=True)),
        "history of a key": list(store.history(b"hot")),
        "hash": store.hash_kv(),
    }


def damaged(data: bytes, damage: Damage) -> bytes:
    """Return the data with the damage done."""
    kind, *numbers = damage
    at = numbers[0] if numbers else 0
    assert isinstance(at, int)
    changed = bytearray(data)
    if kind == "flip":
        changed[at] ^= 1 << numbers[1]  # type: ignore[operator]
    elif kind == "cut":
        del changed[at:]
    elif kind == "zero":
        size = min(numbers[1], len(data) - at)  # type: ignore[type-var]
        changed[at : at + size] = bytes(size)  # type: ignore[operator, arg-type]
    elif kind == "swap":
        other, size = numbers[1], numbers[2]
        changed[at : at + size], changed[other : other + size] = data[other : other + size], data[at : at + size]  # type: ignore[operator]
    return bytes(changed)


def attempt(what: str, work: Callable[[], object], faults: list[str]) -> object:
    """Return the result, or the `StoreError` raised; any other exception is a fault."""
    try:
        return work()
    except StoreError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the point of this program
        faults.append(f"{what} raised {type(error).__name__}: {str(error)[:200]}")
        return error


def judge(copy: Path, expected: dict[str, object], enter: Callable[[str], object], *, read_only: bool) -> list[str]:
    """Open a damaged copy and say what is wrong with what happens. Calls `enter` with each stage."""
    faults: list[str] = []
    how = "read-only" if read_only else "writable"
    enter("open")
    opened = attempt(
        f"{how}: open", lambda: mvccstore.open(copy, read_only=read_only, create=False, durability="os"), faults
    )
    if not isinstance(opened, Store):
        return faults
    enter("check")
    problems = attempt(f"{how}: check", opened.check, faults)
    enter("read")
    found = attempt(f"{how}: reading", lambda: everything(opened), faults)
    if (
        isinstance(found, dict)
        and any(found[name] != expected[name] for name in found)
        and problems == []
        and not is_older_state(found, expected)
    ):
        names = [name for name in found if found[name] != expected[name]]
        faults.append(f"{how}: wrong data and nothing said: {names}")
    if not read_only:
        attempt(f"{how}: put", lambda: opened.put(b"key/new", b"1"), faults)
        attempt(f"{how}: delete", lambda: opened.delete(KeyRange.prefix(b"key/01")), faults)
        attempt(f"{how}: compact", lambda: opened.compact(keep_revisions=1, physical=True), faults)
    attempt(f"{how}: close", opened.close, faults)
    return faults


def is_older_state(found: dict[str, object], expected: dict[str, object]) -> bool:
    """Say whether a whole state of one commit before was found.

    LMDB keeps the last two and takes the one with the greater number, which nothing vouches for. That one bit
    of it takes the last commit away cannot be told; it must not take more.
    """
    revision, floor = expected["revisions"]  # type: ignore[misc]
    return found["revisions"] == (revision - 1, floor) and found["hash"] == expected["hash before"]


def remove(copy: Path) -> None:
    for suffix in ("", *SIDECARS):
        copy.with_name(copy.name + suffix).unlink(missing_ok=True)


def main(original: Path, copy: Path) -> None:
    data = original.read_bytes()
    with mvccstore.open(original, read_only=True) as store:
        assert store.check() == []
        expected = everything(store)
        expected["hash before"] = store.hash_kv(revision=store.revision - 1)
    is_lmdb = not data.startswith(b"SQLite")
    for number, damage in enumerate(json.load(sys.stdin)):
        faults = []
        # Writing to every third is enough: it costs as much as three reads.
        for read_only in (True, False) if number % 3 == 0 else (True,):
            remove(copy)
            copy.write_bytes(damaged(data, damage))
            is_told = is_lmdb and bool(structure_problems(str(copy)))

            def enter(stage: str, damage: Damage = damage, is_told: bool = is_told) -> None:
                print(json.dumps([damage, stage, is_told]), flush=True)

            faults += judge(copy, expected, enter, read_only=read_only)
        print(json.dumps([damage, "end", faults]), flush=True)
    remove(copy)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
