"""A client that asks for little, in a process of its own: a small range and a PING, ten times a second, and what each takes.

    python -m tests.soak.probe PORT

Prints a list of seconds as JSON when its standard input ends.
"""

from __future__ import annotations

import json
import select
import sys
import time

from mvccstore.server.messages import rpc
from tests.soak.crowd import Peer

RANGE = "/etcdserverpb.KV/Range"
PAUSE_SECONDS = 0.1


def ask(peer: Peer) -> float:
    """Ask once; return how long the answers took."""
    begun = time.monotonic()
    peer.depth = 1
    peer.fill()
    peer.ping()
    while peer.answered < peer.sent or peer.pongs < peer.sent:
        assert not peer.is_lost, "the probe was cut"
        peer.write()
        select.select([peer.socket], [peer.socket] if peer.wants_to_write else [], [], 60)
        peer.read()
    return time.monotonic() - begun


def main() -> None:
    message = rpc.RangeRequest(key=b"k/00007").SerializeToString()
    peer = Peer(int(sys.argv[1]), lambda: (RANGE, message), 1)
    waits = []
    while True:
        waits.append(ask(peer))
        if select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
            break
    print(json.dumps(waits))


if __name__ == "__main__":
    main()
