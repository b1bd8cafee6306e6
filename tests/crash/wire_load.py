"""Clients of a server that is killed and started again: what they do is recorded, and they go on when it is back."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress

from mvccstore.server.messages import rpc
from mvccstore.testing.history import Recording, WatchedEvent
from tests.wire.client import Client, Endpoint, RpcFailure, StreamEnd

WRITERS, HOLDERS, WATCHERS = 6, 1, 3
KEYS = 12
TTL = 6_000
KV, LEASE, WATCH = "/etcdserverpb.KV", "/etcdserverpb.Lease", "/etcdserverpb.Watch/Watch"
LAST = b"k/last"
"""Written when all the others have ended; who watches ends with it."""
_GONE = {"UNAVAILABLE", "CANCELLED", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"}
"""What grpcio says of a connection that breaks; UNKNOWN and INTERNAL if that was in the middle of an answer."""
_FULL = "etcdserver: mvcc: database space exceeded"


class Load:
    """Ten clients: they put, delete, get, run txns, hold leases and watch, each with a connection of its own."""

    def __init__(self, endpoint: Endpoint, seed: int, value_bytes: int = 0) -> None:
        """Begin, once `go_on` is called; values are `value_bytes` longer than need be."""
        self.endpoint = endpoint
        self._padding = b"." * value_bytes
        self.recording = Recording()
        self.errors: list[BaseException] = []
        self.leases: dict[int, bytes | None] = {}
        """Those that were granted, each with the key that is attached, if that was answered."""
        self.revoked: set[int] = set()
        self.resumed = 0
        """How often a watch went on after a break."""
        self.unanswered = 0
        self.refused = 0
        """How often the server had no room for a write."""
        self._seed = seed
        self._is_up = threading.Event()
        self._is_ending = threading.Event()
        self._condition = threading.Condition()
        self._answered = 0
        works: list[Callable[[int], None]] = [self._write] * WRITERS + [self._hold] * HOLDERS
        self._threads = [threading.Thread(target=self._run, args=(work, n)) for n, work in enumerate(works)]
        self._watchers = [threading.Thread(target=self._run, args=(self._watch, n)) for n in range(WATCHERS)]
        for thread in (*self._watchers, *self._threads):
            thread.start()

    # What the test says

    def go_on(self) -> None:
        """The server is back."""
        self._is_up.set()

    def wait_for(self, calls: int) -> None:
        """Return when so many more calls were answered."""
        with self._condition:
            target = self._answered + calls
            is_done = self._condition.wait_for(lambda: self._answered >= target or bool(self.errors), 120)
        assert self.errors == []
        assert is_done, "the clients do not go on"

    def wait_for_refusals(self, number: int) -> None:
        """Return when so many more writes were refused, as there was no room."""
        with self._condition:
            target = self.refused + number
            is_done = self._condition.wait_for(lambda: self.refused >= target or bool(self.errors), 120)
        assert self.errors == []
        assert is_done, "there is room for ever"

    def hold_back(self) -> None:
        """The server is about to be killed: who notices waits for `go_on`."""
        self._is_up.clear()

    def end(self) -> None:
        """End the clients; those that watch when they have seen everything."""
        self._is_ending.set()
        for thread in self._threads:
            thread.join(60)
        with Client(self.endpoint) as client, self.recording.put("the last", LAST, b"") as call:
            call.revision = client.unary(f"{KV}/Put", rpc.PutRequest(key=LAST)).header.revision
        for thread in self._watchers:
            thread.join(60)
        assert not any(thread.is_alive() for thread in (*self._threads, *self._watchers)), "a client hangs"
        assert self.errors == []

    # What they do

    def _run(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            with self._condition:
                self.errors.append(error)
                self._condition.notify_all()

    def _connected(self, use: Callable[[Client], None]) -> None:
        """Use a client until the load ends, another one each time the server was away."""
        while not self._is_ending.is_set():
            assert self._is_up.wait(60)
            with Client(self.endpoint) as client:
                try:
                    while not self._is_ending.is_set():
                        is_refused = False
                        try:
                            use(client)
                        except RpcFailure as failure:
                            if failure.message != _FULL:
                                raise
                            is_refused = True
                        with self._condition:
                            self._answered += 1
                            self.refused += is_refused
                            self._condition.notify_all()
                except RpcFailure as failure:
                    if failure.code not in _GONE:
                        raise
                    self.unanswered += 1

    def _write(self, number: int) -> None:
        seeded = random.Random(f"{self._seed}/{number}")
        name = f"client {number}"
        self._connected(lambda client: self._write_once(client, seeded, name))

    def _write_once(self, client: Client, seeded: random.Random, name: str) -> None:
        key = b"k/%02d" % seeded.randrange(KEYS)
        value = b"%s %d%s" % (name.encode(), seeded.getrandbits(60), self._padding)
        match seeded.randrange(8):
            case 0:
                with self.recording.delete(name, key) as call:
                    answer = client.unary(f"{KV}/DeleteRange", rpc.DeleteRangeRequest(key=key))
                    call.revision, call.deleted = answer.header.revision, answer.deleted
            case 1 | 2:
                with self.recording.get(name, key) as call:
                    answer = client.unary(f"{KV}/Range", rpc.RangeRequest(key=key))
                    call.revision = answer.header.revision
                    if answer.kvs:
                        call.value, call.mod_revision = answer.kvs[0].value, answer.kvs[0].mod_revision
            case 3:
                put = rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value))
                with self.recording.put(name, key, value) as call:
                    call.revision = client.unary(f"{KV}/Txn", rpc.TxnRequest(success=[put])).header.revision
            case _:
                with self.recording.put(name, key, value) as call:
                    call.revision = client.unary(f"{KV}/Put", rpc.PutRequest(key=key, value=value)).header.revision

    def _hold(self, number: int) -> None:
        seeded = random.Random(f"{self._seed}/{number}")
        self._connected(lambda client: self._hold_once(client, seeded))

    def _hold_once(self, client: Client, seeded: random.Random) -> None:
        lease = client.unary(f"{LEASE}/LeaseGrant", rpc.LeaseGrantRequest(TTL=TTL)).ID
        self.leases[lease] = None
        if seeded.randrange(4) == 0:
            del self.leases[lease]  # until it is answered, it may be there or not
            client.unary(f"{LEASE}/LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease))
            self.revoked.add(lease)
            return
        key = b"lease/%x" % lease
        with self.recording.put("holder", key, b"held") as call:
            request = rpc.PutRequest(key=key, value=b"held", lease=lease)
            call.revision = client.unary(f"{KV}/Put", request).header.revision
        self.leases[lease] = key
        with client.stream(f"{LEASE}/LeaseKeepAlive", [rpc.LeaseKeepAliveRequest(ID=lease)]) as stream:
            assert stream.receive().TTL == TTL

    def _watch(self, number: int) -> None:
        """Watch all keys, from the revision after the last that was told."""
        key, end = (b"k/", b"k0") if number else (b"\0", b"\0")
        next_revision = 1
        while True:
            assert self._is_up.wait(60)
            recorded = self.recording.watch(key, end, start_revision=next_revision)
            create = rpc.WatchCreateRequest(key=key, range_end=end, start_revision=next_revision)
            with (
                Client(self.endpoint) as client,
                client.stream(WATCH, [rpc.WatchRequest(create_request=create)]) as told,
            ):
                with suppress(StreamEnd):
                    try:
                        while True:
                            response = told.receive(60)
                            assert not response.canceled, response
                            if not response.events:
                                continue  # it was created
                            events = [_event(event) for event in response.events]
                            recorded.batch(response.header.revision, events)
                            next_revision = events[-1].revision + 1
                            if any(event.key == LAST for event in events):
                                return
                    except RpcFailure as failure:
                        if failure.code not in _GONE:
                            raise
                self.resumed += 1


def _event(event: object) -> WatchedEvent:
    kv = event.kv  # type: ignore[attr-defined]
    is_put = event.type == 0  # type: ignore[attr-defined]
    return WatchedEvent("put" if is_put else "delete", kv.key, kv.value if is_put else b"", kv.mod_revision)
