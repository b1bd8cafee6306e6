"""An etcd for one test: started in a few milliseconds, in this process, and looked into while it runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self, TypeVar, get_args

from mvccstore.clock import Clock, SystemClock
from mvccstore.engine import IN_MEMORY
from mvccstore.errors import StoreError
from mvccstore.opening import open_store
from mvccstore.rewind import Mark, mark
from mvccstore.server.auth.gate import AuthOptions
from mvccstore.server.persona import Version
from mvccstore.server.server import Server, ServerOptions
from mvccstore.server.serving import Serving, serve
from mvccstore.server.transport.call import Method
from mvccstore.server.transport.tls import TLSOptions
from mvccstore.store import Store
from mvccstore.testing.access import ROOT, Access, check_access, passwords_of, set_up
from mvccstore.testing.assertions import Assertions
from mvccstore.testing.calls import Calls
from mvccstore.testing.clients import new_client
from mvccstore.testing.clock import FakeClock
from mvccstore.testing.contents import Contents, load, snapshot
from mvccstore.testing.faults import Faults
from mvccstore.testing.loop import call_on, run_on, shared_loop
from mvccstore.testing.replayer import Gap, Replay, Unused
from mvccstore.testing.report import final_contents, last_calls, open_streams, replayed
from mvccstore.testing.tap import Tap
from mvccstore.testing.tokens import IssuedTokens

T = TypeVar("T")

_SETTLING_TURNS = 3


class EtcdClock:
    """The time of an etcd that was started with a virtual clock."""

    def __init__(self, clock: FakeClock, settle: Callable[[], None]) -> None:
        self._clock = clock
        self._settle = settle

    def time_ms(self) -> int:
        """Milliseconds since the epoch."""
        return self._clock.time_ms()

    def monotonic(self) -> float:
        """Seconds since it was made."""
        return self._clock.monotonic()

    def advance(self, seconds: float) -> None:
        """Move on. When this returns, a client that asks sees all that was to happen by then.

        Raises:
            ValueError: `seconds` is below 0, or not finite.
        """
        self._clock.advance(seconds)
        self._settle()


class Etcd(Assertions):
    """A running etcd, for `with` and `async with`. Get one from `mvccstore.testing.etcd`, or the fixture `etcd`.

    All servers of a process share one thread. A server is for its test: what the test leaves open is cut when it ends.

    Args:
        store: A store to serve, which stays the caller's; None for a new one in memory.
        clock: `real`; `virtual` for time that stands still until `etcd.clock.advance(seconds)`; or a `FakeClock`.
        contents: What is in it at first; see `load`.
        auth: Users, with whom authentication is on: `{"alice": "password"}`; see `mvccstore.testing.access`.
        tls: Serve TLS, with a certificate of its own (`ca_file`), or as these options say.
        port: The TCP port; 0 has one chosen.
        host: What to listen on.
        options: How it behaves; see `mvccstore.server.ServerOptions`.
        version: The etcd it behaves as, `3.4`, `3.5` or `3.6`; None for what `options` say, or 3.6.
        replay: A cassette that calls are answered from, instead of a store: a file that `mvccstore record` has written,
            or a `Replay` of one. See `gaps`.

    Raises:
        ValueError: A setting is none, or of no use for a replay; `CassetteError` if the file is no cassette.
        OSError: The cassette cannot be read; the port is taken, when it is started.

    >>> with Etcd(contents={"a": "1"}) as etcd:
    ...     etcd.snapshot()["keys"]
    [{'key': 'a', 'value': '1', 'create_revision': 2, 'mod_revision': 2, 'version': 1}]
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        clock: Literal["real", "virtual"] | FakeClock = "real",
        contents: Contents | None = None,
        auth: Access | None = None,
        tls: bool | TLSOptions = False,
        port: int = 0,
        host: str = "127.0.0.1",
        options: ServerOptions | None = None,
        version: str | None = None,
        replay: str | os.PathLike[str] | Replay | None = None,
    ) -> None:
        if clock not in {"real", "virtual"} and not isinstance(clock, FakeClock):
            msg = f"clock is {clock!r}, neither 'real' nor 'virtual' nor a FakeClock"
            raise ValueError(msg)
        self._fake = FakeClock() if clock == "virtual" else clock if isinstance(clock, FakeClock) else None
        self._time: Clock = self._fake or SystemClock()
        self._given = store
        self._contents = contents
        if auth is not None:
            check_access(auth)
        self._users = auth
        self._tls = tls
        self._files: TemporaryDirectory[str] | None = None
        self._closers: list[Callable[[], None]] = []
        self._begun: Mark | None = None
        self._host, self._port = host, port
        # The least that bcrypt takes: a password of a test is no secret, and costs 1 ms so, not 60.
        self._options = options or ServerOptions(grace_seconds=0.0, auth=AuthOptions(bcrypt_cost=4))
        self._replay: Replay | None = None
        if replay is not None:
            if store is not None or contents is not None or auth is not None:
                msg = "a replay has neither a store nor contents nor users: all answers come from its cassette"
                raise ValueError(msg)
            self._replay = replay if isinstance(replay, Replay) else Replay(replay)
            self._options = _options_of(self._replay, self._options)
        if version is not None:
            self._options = replace(self._options, version=version)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: Serving | None = None
        self.calls = Calls()
        """What was asked of it, and what it answered."""
        self.faults = Faults()
        """What is to go wrong."""
        self._tap = Tap(self.calls, self.faults, self._time)
        self.faults.attach(self, self._tap)

    # Where it is

    @property
    def store(self) -> Store:
        """Its store, to use beside the clients: both see the same revisions and watches."""
        return self._running.store

    @property
    def host(self) -> str:
        """What it listens on."""
        return self._running.host

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return self._running.port

    @property
    def endpoint(self) -> str:
        """`host:port`, as etcd's clients take it."""
        return self._running.endpoint

    @property
    def url(self) -> str:
        """`http://host:port`."""
        return self._running.url

    @property
    def env(self) -> dict[str, str]:
        """Variables by which subprocesses find it: those of etcdctl, and `ETCD_ENDPOINTS`."""
        found = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": self.endpoint, "ETCD_ENDPOINTS": self.endpoint}
        if self._tls:
            found["ETCDCTL_ENDPOINTS"] = self.url
        return found | ({"ETCDCTL_CACERT": self.ca_file} if self._files is not None else {})

    def client(self, library: str | None = None, *, user: str | None = None) -> Any:
        """Return a client of this server, connected; what it leaves open is closed with the server.

        Args:
            library: `etcd3gw` or `aetcd` (which is not connected yet: `async with`, and for the caller to close); by
                default the first that is installed.
            user: One of `auth`, as whom it is signed in; by default root. Without `auth` there is none.

        Raises:
            ImportError: The library is not installed, or none is.
            ValueError: There is no such library here or no such user, or it knows no TLS.
        """
        ca_file = self.ca_file if self._files is not None else None
        made, close = new_client(self, library, self._login(user), ca_file)
        if close is not None:
            self._closers.append(close)
        return made

    def _login(self, user: str | None) -> tuple[str, str] | None:
        passwords = {} if self._users is None else passwords_of(self._users)
        if user is None and not passwords:
            return None
        name = ROOT if user is None else user
        if name not in passwords:
            msg = f"there is no user {name!r} in auth; there are {', '.join(sorted(passwords)) or 'none'}"
            raise ValueError(msg)
        return name, passwords[name]

    @property
    def ca_file(self) -> str:
        """The file with the certificate that clients are to trust, with `tls=True`.

        Raises:
            RuntimeError: It was not started so.
        """
        if self._files is None:
            msg = "this etcd has no certificate of its own; start it with tls=True"
            raise RuntimeError(msg)
        return str(Path(self._files.name) / "cert.pem")

    def _tls_options(self) -> TLSOptions | None:
        if not isinstance(self._tls, bool):
            return self._tls
        if not self._tls:
            return None
        # Imported only here, as it needs `cryptography`.
        from mvccstore.server.transport.self_signed import make

        self._files = TemporaryDirectory(prefix="mvccstore-testing-")
        certificate, key = (Path(self._files.name) / name for name in ("cert.pem", "key.pem"))
        make(certificate, key, ["localhost", "127.0.0.1"], 1, is_portable=True)
        return TLSOptions(cert_file=str(certificate), key_file=str(key))

    @property
    def clock(self) -> EtcdClock:
        """Its time, if that is virtual.

        Raises:
            RuntimeError: It goes by real time.
        """
        if self._fake is None:
            msg = "this etcd goes by real time; start it with clock='virtual'"
            raise RuntimeError(msg)
        return EtcdClock(self._fake, self.settle)

    @property
    def server(self) -> Server:
        """What serves; its methods are for its loop's thread: `call`."""
        return self._running.server

    @property
    def _running(self) -> Serving:
        if self._serving is None:
            msg = "this etcd is not running"
            raise RuntimeError(msg)
        return self._serving

    # Replaying

    @staticmethod
    def replay(cassette: str | os.PathLike[str] | Replay, **settings: Any) -> Etcd:
        """Return an etcd that answers from a cassette: `Etcd(replay=cassette, ...)`."""
        return Etcd(replay=cassette, **settings)

    @property
    def _replaying(self) -> Replay:
        if self._replay is None:
            msg = "this etcd does not replay a cassette; start it with replay=FILE"
            raise RuntimeError(msg)
        return self._replay

    @property
    def gaps(self) -> list[Gap]:
        """What was asked, and is not in the cassette: those calls have failed with FAILED_PRECONDITION.

        Raises:
            RuntimeError: It does not replay one; as the others here.
        """
        return self._replaying.gaps

    @property
    def unused(self) -> list[Unused]:
        """What is in the cassette, and was not asked."""
        return self._replaying.unused

    def assert_replayed(self) -> None:
        """Raise `AssertionError` if something was asked that is not in the cassette, or not asked that is in it."""
        replay = self._replaying
        assert not replay.gaps and not replay.unused, replayed(replay)  # noqa: PT018 - one text for both

    def catch_up(self, revision: int | None = None) -> None:
        """Have clients be told what came of the recorded writes up to a revision, None for all, though not all are done.

        For a test that replays one of several programs that were recorded together: the others' writes do not come.
        """
        replay = self._replaying
        self.call(lambda: replay.catch_up(revision))

    def _intercept(self, method: Method) -> Method:
        return self._tap.intercept(method if self._replay is None else self._replay.intercept(method))

    # Looking in

    def call(self, function: Callable[[], T]) -> T:
        """Have a function called on the server's thread, between two calls, and return its result."""
        assert self._loop is not None
        return call_on(self._loop, function)

    def settle(self) -> None:
        """Return when the server has done what it had to do when this was called: watches are told of every write."""
        assert self._loop is not None
        for _ in range(_SETTLING_TURNS):
            call_on(self._loop, lambda: None)

    def drop_connections(self) -> int:
        """Cut every connection; return how many there were. Clients may come again."""
        return self.call(lambda: self.server.drop_connections())

    def snapshot(self) -> dict[str, Any]:
        """Return its contents as plain data, for golden tests: see `mvccstore.testing.contents`. O(keys)."""
        return snapshot(self.store)

    def load(self, contents: Contents) -> None:
        """Add contents: what `snapshot` returned, a mapping of keys to values, or the path of a JSON file of either.

        Raises:
            ValueError: They are not contents.
            OSError: The file cannot be read.
        """
        load(self.store, contents)

    def mark(self) -> Mark:
        """Note its state, to `rewind` to it any number of times. O(leases).

        Raises:
            StoreError: Its store is not in memory.
        """
        return self.call(lambda: mark(self.store))

    def rewind(self, to: Mark) -> None:
        """Make it what it was at a mark: keys, history, leases, alarms, members, users, the revision counter.

        Clients stay connected. Open watches are cancelled as by a compaction of everything before. Leases have as much
        time left as they had then. Cost: a millisecond for some thousand changes since.

        Raises:
            StoreError: The mark is of another server.
        """
        self.call(lambda: self.server.node.rewind(to))

    def reset(self) -> None:
        """Make it what it was when it was started, initial contents included; forget its calls, end its faults.

        A replay begins anew.

        Raises:
            StoreError: Its store is not in memory.
        """
        if self._begun is None:
            msg = f"{self.store.path} cannot go back: only a store in memory can"
            raise StoreError(msg)
        self.faults.clear()
        if self._replay is not None:
            self.call(self._replay.rewind)
        self.rewind(self._begun)
        self.calls.clear()

    def report(self) -> list[tuple[str, str]]:
        """Return titles and texts that say what happened and how it stands; what a failed test prints."""
        if self._serving is None:
            return []
        name = f"etcd at {self.endpoint}"
        return [
            (f"{name}: last calls", last_calls(self.calls)),
            (f"{name}: contents", final_contents(self.store))
            if self._replay is None
            else (f"{name}: replay", replayed(self._replay)),
            (f"{name}: open streams", open_streams(self.calls)),
        ]

    # Starting and stopping

    def start(self) -> None:
        """Begin to serve. Needs a `stop`."""
        if self._serving is not None:
            msg = "this etcd is running already"
            raise RuntimeError(msg)
        loop = shared_loop.acquire()
        store = self._given
        try:
            if store is None:
                store = open_store(clock=self._time)
            if self._contents is not None:
                load(store, self._contents)
            serving = serve(
                store,
                host=self._host,
                port=self._port,
                options=replace(self._options, intercept=self._intercept, tls=self._tls_options()),
                clock=self._time,
            )
            run_on(loop, serving.start())
            gate = serving.server.node.auth
            gate.tokens = IssuedTokens(gate.tokens)
            if self._users is not None:
                run_on(loop, set_up(serving.server.node, self._users))
            self._begun = mark(store) if store.path == IN_MEMORY else None
        except BaseException:
            if store is not None and self._given is None:
                store.close()
            self._remove_files()
            shared_loop.release()
            raise
        self._loop, self._serving = loop, serving

    def stop(self) -> None:
        """End it, and cut what is connected. Stopping twice is harmless."""
        if self._serving is None:
            return
        self.faults.clear()
        serving, self._serving = self._serving, None
        assert self._loop is not None
        store = serving.store
        self._begun = None
        while self._closers:
            self._closers.pop()()
        try:
            run_on(self._loop, serving.stop())
        finally:
            self._loop = None
            shared_loop.release()
            self._remove_files()
            if self._given is None:
                store.close()

    def _remove_files(self) -> None:
        files, self._files = self._files, None
        if files is not None:
            files.cleanup()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.stop)


def _options_of(replay: Replay, options: ServerOptions) -> ServerOptions:
    """Return options by which a server says it is the etcd that was recorded, and behaves so."""
    release = replay.cassette.etcd
    if not release:
        return options
    minor = ".".join(release.split(".")[:2])
    known = get_args(Version)
    identity = replace(options.identity, version=release)
    return replace(options, identity=identity, version=minor if minor in known else known[-1])
