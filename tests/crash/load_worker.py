"""Several threads write as fast as they can and acknowledge, until the process is killed.

    python -m tests.crash.load_worker PATH ENGINE DURABILITY SEED

Each acknowledgement is one line, written at once and after the write has returned: the writer, the revision,
and the keys with their values, null for deleted ones. Long values are given as what they begin with and how
many x follow, as only short lines are written whole. The first line says the revision found.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import sys
import threading

import mvccstore
from mvccstore import CompactedError, Op, Store
from tests.guarantees import Write

GROUP = 3
WRITERS = ("puts", "puts", "txns", "blocks", "deletes")


def group(writer: int) -> list[bytes]:
    """Return the keys that a writer of txns or blocks always writes together."""
    return [b"group/%d/%d" % (writer, i) for i in range(GROUP)]


def acknowledge(writer: int, revision: int, values: dict[bytes, bytes | None]) -> None:
    packed = {key.decode(): value and [value.rstrip(b"x").decode(), value.count(b"x")] for key, value in values.items()}
    line = json.dumps([writer, revision, packed]).encode() + b"\n"
    assert len(line) <= select.PIPE_BUF
    os.write(1, line)


def unpacked(line: bytes) -> Write:
    """Undo `acknowledge`."""
    writer, revision, packed = json.loads(line)
    values = {key.encode(): value and value[0].encode() + b"x" * value[1] for key, value in packed.items()}
    return Write(writer, revision, values)


def write(store: Store, writer: int, seed: int) -> None:
    """Write for ever."""
    rng = random.Random(seed * 100 + writer)
    values: dict[bytes, bytes | None]
    for i in itertools.count():
        token = b"%d.%d" % (writer, i)
        match WRITERS[writer]:
            case "puts":
                key = b"put/%d/%d" % (writer, rng.randrange(20))
                value = token + b"x" * rng.choice([0, 0, 500, 5_000])
                values = {key: value}
                revision = store.put(key, value)
            case "txns":
                values = dict.fromkeys(group(writer), token)
                revision = store.txn(success=[Op.put(key, token) for key in group(writer)]).revision
            case "blocks":
                values = dict.fromkeys(group(writer), token)
                with store.begin() as txn:
                    for key in group(writer):
                        txn.put(key, b"not yet")
                    for key in group(writer):
                        txn.put(key, token)
                revision = txn.revision
                # The history has every put of the block; the last of each key counts.
            case _:
                key = b"del/%d" % rng.randrange(10)
                if rng.random() < 0.5:
                    values = {key: token}
                    revision = store.put(key, token)
                else:
                    values = {key: None}
                    result = store.delete(key, prev_kv=True)
                    if not result.deleted:
                        continue
                    revision = result.revision
        acknowledge(writer, revision, values)


def compact(store: Store) -> None:
    """Compact for ever, now and then waiting for the space."""
    for i in itertools.count():
        try:
            store.compact(keep_revisions=60, physical=i % 3 == 0)
        except CompactedError:
            continue


def main(path: str, engine: str, durability: str, seed: str) -> None:
    store = mvccstore.open(path, engine=engine, durability=durability)  # type: ignore[arg-type]
    acknowledge(-1, store.revision, {})
    threads = [threading.Thread(target=write, args=(store, n, int(seed)), daemon=True) for n in range(len(WRITERS))]
    threads.append(threading.Thread(target=compact, args=(store,), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit("a writer ended")


if __name__ == "__main__":
    main(*sys.argv[1:])
