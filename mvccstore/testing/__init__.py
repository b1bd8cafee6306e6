"""For tests of code that uses etcd or a store, and of the store itself.

    FakeClock       time that stands still until it is moved
    etcd            a running etcd: `with mvccstore.testing.etcd() as etcd:`; see `etcd_server.Etcd`
    Model           says what a store must answer
    check_history   whether what clients saw, of any etcd, is what an etcd promises; see `history`
    record          a recorder before a real etcd: `with mvccstore.testing.record("host:2379", "file") as recorder:`
    Replay          a cassette, which a recorder has written, to be served: `mvccstore.testing.etcd(replay="file")`
    compare         whether an etcd and a server of ours answer generated workloads alike; see `comparing`

Nothing in here is imported by the rest of the package.
"""

from __future__ import annotations

from typing import Any

from mvccstore.testing.clock import FakeClock
from mvccstore.testing.history import Recording, check_history
from mvccstore.testing.model import Model, ModelTxn, ModelView

__all__ = [
    "FakeClock",
    "Model",
    "ModelTxn",
    "ModelView",
    "Recording",
    "Replay",
    "check_history",
    "compare",
    "etcd",
    "record",
]


def __getattr__(name: str) -> Any:
    # Not at the top: who wants a clock needs no server, and none of the libraries that one takes.
    if name == "etcd":
        from mvccstore.testing.etcd_server import Etcd

        return Etcd
    if name == "record":
        from mvccstore.testing.recorder import Recorder

        return Recorder
    if name == "Replay":
        from mvccstore.testing.replayer import Replay

        return Replay
    if name == "compare":
        from mvccstore.testing.comparing import compare

        return compare
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
