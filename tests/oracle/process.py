"""An etcd of one member, started for a test: restarted on the same data, killed, its log kept."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.oracle.choice import Oracle, find_oracle

HOST = "127.0.0.1"
ATTEMPTS = 1_500
ATTEMPT_SECONDS = 0.02
STOP_SECONDS_MAX = 20
STARTS_MAX = 4
QUICK_ELECTION = ("--heartbeat-interval=20", "--election-timeout=200")
"""Arguments that start it in 0.1 s rather than 0.4 s; the smallest TTL of a lease is then 1 s and not 2 s."""


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on just now."""
    with ExitStack() as sockets:
        listeners = [sockets.enter_context(socket.create_server((HOST, 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in listeners]


class EtcdProcess:
    """A process of etcd and its folder: `data` with what it stores, `log` with what it said.

    The ports stay the same over `stop` or `kill` and `start`, so clients find it again.
    """

    def __init__(
        self,
        folder: Path,
        oracle: Oracle,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        *,
        has_fsync: bool = False,
    ) -> None:
        self.folder = folder
        self.oracle = oracle
        self.port, self.peer_port = free_ports(2)
        self.arguments = [*([] if has_fsync else ["--unsafe-no-fsync"]), "--log-level=error", *arguments]
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ETCD_")},
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """The address that both ports are on."""
        return HOST

    @property
    def target(self) -> str:
        """What a gRPC client dials, and `etcdctl --endpoints`."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """What an HTTP client asks."""
        return f"http://{self.target}"

    @property
    def pid(self) -> int:
        """The process id of the running etcd."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it said so far, of every start."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it is healthy; a port that somebody took meanwhile is replaced."""
        assert self._process is None
        for attempt in range(STARTS_MAX):
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    self._command(), stdout=log, stderr=log, env=self.environment, cwd=self.folder
                )
            if self._is_up(self._process):
                return
            self.kill()
            # Between choosing a port and listening on it another process may take it. On the first start only:
            # later the ports are part of the data.
            if attempt + 1 == STARTS_MAX or "address already in use" not in self.log or (self.folder / "data").exists():
                break
            self.port, self.peer_port = free_ports(2)
        msg = f"{self.oracle} does not answer: {self.log[-2_000:]}"
        raise AssertionError(msg)

    def _command(self) -> list[str]:
        peer = f"http://{HOST}:{self.peer_port}"
        return [
            *(str(self.oracle.etcd), "--name=m", f"--data-dir={self.folder / 'data'}"),
            *(f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=m={peer}"),
            *self.arguments,
        ]

    def _is_up(self, process: subprocess.Popen[bytes]) -> bool:
        for _ in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2) as response:
                    if json.load(response)["health"] == "true":
                        return True
            except urllib.error.HTTPError as error:
                with error:
                    if b"ALARM" in error.read():  # it serves, and has no leader before
                        return True
            except (OSError, ValueError):
                pass  # not listening yet
            try:
                process.wait(ATTEMPT_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            return False
        return False

    def stop(self) -> int:
        """End it as an administrator would; return its exit status (negative: the signal)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(STOP_SECONDS_MAX)
        self._process = None
        return status

    def kill(self) -> None:
        """End it as a crash would, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS_MAX)
            self._process = None

    def restart(self) -> None:
        """Kill it, and start it on the data that it left."""
        self.kill()
        self.start()


@contextmanager
def running_etcd(
    folder: Path,
    arguments: Sequence[str] = (),
    *,
    oracle: Oracle | None = None,
    environment: Mapping[str, str] | None = None,
    has_fsync: bool = False,
) -> Iterator[EtcdProcess]:
    """Start an etcd in a folder, which is made if it is not there, and kill it with the block.

    Args:
        folder: Of this etcd alone; with `data` of an earlier one it goes on from that.
        arguments: More of etcd's own, such as `*QUICK_ELECTION` or `--quota-backend-bytes=...`.
        oracle: The default is what `find_oracle` chose.
        environment: Variables over those of this process, of which the `ETCD_...` are left out.
        has_fsync: Whether what it acknowledges is to survive a power cut; no test but a benchmark asks for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    etcd = EtcdProcess(folder, oracle or find_oracle(), arguments, environment, has_fsync=has_fsync)
    etcd.start()
    try:
        yield etcd
    finally:
        etcd.kill()
