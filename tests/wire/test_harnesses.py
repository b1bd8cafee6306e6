"""The command lines by which test harnesses start `etcd`: ours starts by them, says what they wait for, and answers.

Each row is what one harness passes, with its own ports and folders, and how it knows that the server is up: a pattern
in what was printed, or `/health` alone. The patterns are matched as the harnesses match them, line by line.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import threading
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mvccstore.server.etcd_shim import install
from mvccstore.server.messages import rpc
from tests.oracle.process import ATTEMPT_SECONDS, ATTEMPTS, free_ports
from tests.wire.client import Client, Endpoint
from tests.wire.requests import get, put

READY = "ready to serve client requests"
TRUSTING = ssl.create_default_context()
TRUSTING.check_hostname, TRUSTING.verify_mode = False, ssl.CERT_NONE
WAIT_SECONDS_MAX = 30


@dataclass(frozen=True, slots=True)
class Harness:
    """What one passes to `etcd`; `{client}` and `{peer}` are ports, `{data}` a folder, `{more}` another port."""

    name: str
    arguments: str
    waits_for: str | None
    """None: it asks for `/health` until that is 200."""
    environment: Mapping[str, str] = field(default_factory=dict)
    scheme: str = "http"
    http_port: str = "{client}"
    host: str = "localhost"

    def __str__(self) -> str:
        return self.name


E2E = (
    "--name=TestCtlV3Put-test-0 --listen-client-urls={scheme}://localhost:{client}"
    " --advertise-client-urls={scheme}://localhost:{client} --listen-peer-urls=http://localhost:{peer}"
    " --initial-advertise-peer-urls=http://localhost:{peer} --initial-cluster-token=new --data-dir={data}"
    " --snapshot-count=10000 --initial-cluster=TestCtlV3Put-test-0=http://localhost:{peer} --initial-cluster-state=new"
)
HARNESSES = (
    # python-etcd3's tests are started by pifpaf.
    Harness(
        "pifpaf, python-etcd3",
        "--data-dir {data} --listen-peer-urls http://localhost:{peer} --listen-client-urls http://localhost:{client}"
        " --advertise-client-urls http://localhost:{client}",
        READY,
    ),
    Harness(
        "python-etcd3, docker compose",
        "--initial-cluster-state new --listen-client-urls http://0.0.0.0:{client}"
        " --advertise-client-urls http://127.0.0.1:{client}",
        READY,
    ),
    Harness(
        "testcontainers for Go",
        "--name=default --listen-client-urls=http://0.0.0.0:{client} --advertise-client-urls=http://0.0.0.0:{client}"
        " --data-dir={data} --auto-compaction-retention=1",
        READY,
    ),
    Harness(
        "testcontainers for Go, a cluster of one",
        "--name=etcd-1 --initial-advertise-peer-urls=http://etcd-1:{peer} --advertise-client-urls=http://etcd-1:{client}"
        " --listen-peer-urls=http://0.0.0.0:{peer} --listen-client-urls=http://0.0.0.0:{client}"
        " --initial-cluster-state=new --initial-cluster=etcd-1=http://etcd-1:{peer}"
        " --initial-cluster-token=mys3cr3ttok3n",
        READY,
    ),
    Harness(
        "testcontainers for Node",
        "--name etcd-test --initial-advertise-peer-urls http://0.0.0.0:{peer}"
        " --advertise-client-urls http://0.0.0.0:{client} --listen-peer-urls http://0.0.0.0:{peer}"
        " --listen-client-urls http://0.0.0.0:{client}",
        '"status":"SERVING"',
    ),
    Harness(
        "testcontainers for Rust",
        "-advertise-client-urls http://127.0.0.1:{client} -listen-client-urls http://0.0.0.0:{client}",
        READY,
    ),
    Harness(
        "jetcd, testcontainers for Java",
        "--name etcd0 --advertise-client-urls http://0.0.0.0:{client} --listen-client-urls http://0.0.0.0:{client}"
        " --data-dir {data}",
        ".*ready to serve client requests.*",
    ),
    Harness("etcd's end-to-end tests", E2E.replace("{scheme}", "http"), READY),
    Harness(
        "etcd's end-to-end tests: TLS of the server's own making, limits and gates",
        E2E.replace("{scheme}", "https")
        + " --auto-tls --peer-auto-tls --quota-backend-bytes=1073741824 --strict-reconfig-check=false"
        " --feature-gates=CompactHashCheck=true,InitialCorruptCheck=true --compact-hash-check-time=1s"
        " --corrupt-check-time=1s --compaction-batch-limit=10 --compaction-sleep-interval=10ms"
        " --watch-progress-notify-interval=100ms --warning-unary-request-duration=1s --max-txn-ops=1000"
        " --auth-token-ttl=1 --log-level=debug --snapshot-catchup-entries=100",
        READY,
        {"GOFAIL_HTTP": "127.0.0.1:22381"},
        "https",
    ),
    Harness(
        "etcd's end-to-end tests: HTTP and metrics by themselves",
        E2E.replace("{scheme}", "http")
        + " --listen-client-http-urls=http://localhost:{more} --metrics=extensive --force-new-cluster=true"
        " --experimental-initial-corrupt-check=true --experimental-watch-progress-notify-interval=1s",
        READY,
        http_port="{more}",
    ),
    Harness(
        "controller-runtime's envtest",
        "--advertise-client-urls=http://127.0.0.1:{client} --data-dir={data}"
        " --listen-client-urls=http://127.0.0.1:{client} --listen-peer-urls=http://127.0.0.1:{peer}"
        " --unsafe-no-fsync=true",
        None,
        host="127.0.0.1",
    ),
    Harness(
        "Kubernetes, hack/local-up-cluster.sh",
        "--advertise-client-urls http://127.0.0.1:{client} --data-dir {data}"
        " --listen-client-urls http://127.0.0.1:{client} --listen-peer-urls http://localhost:0 --log-level=warn",
        None,
        host="127.0.0.1",
    ),
    Harness(
        "a container that is told by its environment",
        "",
        READY,
        {
            "ETCD_NAME": "s1",
            "ETCD_DATA_DIR": "{data}",
            "ETCD_LISTEN_CLIENT_URLS": "http://0.0.0.0:{client}",
            "ETCD_ADVERTISE_CLIENT_URLS": "http://127.0.0.1:{client}",
            "ETCD_LISTEN_PEER_URLS": "http://0.0.0.0:{peer}",
            "ETCD_INITIAL_ADVERTISE_PEER_URLS": "http://127.0.0.1:{peer}",
            "ETCD_INITIAL_CLUSTER": "s1=http://127.0.0.1:{peer}",
            "ETCD_INITIAL_CLUSTER_TOKEN": "tkn",
            "ETCD_INITIAL_CLUSTER_STATE": "new",
            "ETCD_LOGGER": "zap",
            "ETCD_LOG_OUTPUTS": "stderr",
            "ETCD_UNSUPPORTED_ARCH": "arm64",
            "ALLOW_NONE_AUTHENTICATION": "yes",
        },
    ),
)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An executable of that name, as they find it on the path."""
    return str(install(str(tmp_path_factory.mktemp("bin"))))


@contextmanager
def started(etcd: str, harness: Harness, folder: Path) -> Iterator[dict[str, str]]:
    """Start it as a harness does and wait as it waits; yields what it filled in."""
    client, peer, more = map(str, free_ports(3))
    filled = {"client": client, "peer": peer, "more": more, "data": str(folder / "data")}
    ours = {name: value.format_map(filled) for name, value in harness.environment.items()}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    process = subprocess.Popen(
        [etcd, *(argument.format_map(filled) for argument in harness.arguments.split())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=kept | ours,
        cwd=folder,
    )
    assert process.stdout is not None
    patience = threading.Timer(WAIT_SECONDS_MAX, process.kill)
    patience.start()
    try:
        if harness.waits_for is None:
            wait_for_health(process, f"http://{harness.host}:{client}/health")
        else:
            wait_for_line(process.stdout, harness.waits_for)
        patience.cancel()
        yield filled
    finally:
        patience.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for_line(output: Any, pattern: str) -> None:
    lines = []
    for line in output:
        lines.append(line)
        if re.search(pattern, line):
            return
    pytest.fail(f"it ended without printing {pattern!r}: {''.join(lines)}")


def wait_for_health(process: subprocess.Popen[str], url: str) -> None:
    for _ in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                assert answer.status == 200
                return
        except OSError:
            pass  # not listening yet
        try:
            process.wait(ATTEMPT_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"it ended: {process.communicate()[0]}")
    pytest.fail("it does not answer")


@pytest.mark.parametrize("harness", HARNESSES, ids=str)
def test_it_starts_and_answers(etcd: str, harness: Harness, tmp_path: Path) -> None:
    with started(etcd, harness, tmp_path) as filled:
        port = harness.http_port.format_map(filled)
        request = json.dumps({"key": b64encode(b"_test").decode(), "value": ""}).encode()
        url = f"{harness.scheme}://{harness.host}:{port}/v3/kv/put"
        # As the line says that it is ready, the first attempt has to be answered.
        with urllib.request.urlopen(url, request, timeout=20, context=TRUSTING) as answer:
            assert json.load(answer)["header"]["revision"] == "2"
        if harness.scheme == "http":
            with Client(Endpoint(harness.host, int(filled["client"]))) as client:
                assert client.unary("/etcdserverpb.KV/Put", put(b"k", b"v")).header.revision == 3
                assert client.unary("/etcdserverpb.KV/Range", get(b"k")).kvs[0].value == b"v"
                (member,) = client.unary("/etcdserverpb.Cluster/MemberList", rpc.MemberListRequest()).members
                assert member.clientURLs
    is_told = any("{data}" in text for text in (harness.arguments, *harness.environment.values()))
    name = re.search(r"--name[= ](\S+)", harness.arguments)
    folder = tmp_path / ("data" if is_told else f"{name[1] if name else 'default'}.etcd")
    assert (folder / "store.mvcc").exists()


def test_a_cluster_of_three_is_refused_in_words_that_the_harness_shows(etcd: str, tmp_path: Path) -> None:
    """pifpaf's `etcd --cluster`, by which aetcd's tests are started: they run as well on one (`pifpaf run etcd`)."""
    cluster = ",".join(f"pifpaf{number}=http://localhost:{2380 + 2 * number}" for number in range(3))
    arguments = (
        f"--data-dir {tmp_path} --name pifpaf0 --listen-client-urls http://localhost:2379"
        " --advertise-client-urls http://localhost:2379 --listen-peer-urls http://localhost:2380"
        " --initial-advertise-peer-urls http://localhost:2380 --initial-cluster-token etcd-cluster-pifpaf"
        f" --initial-cluster {cluster} --initial-cluster-state new"
    )
    ended = subprocess.run(
        [etcd, *arguments.split()], capture_output=True, text=True, timeout=60, check=False, env=clean()
    )
    assert (ended.returncode, ended.stderr) == (
        2,
        "--initial-cluster names pifpaf0, pifpaf1, pifpaf2: this server is a cluster of one, 'pifpaf0'\n",
    )


# What they find out before they start it


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}


def said(etcd: str, *arguments: str) -> str:
    return subprocess.run(
        [etcd, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=True
    ).stdout


def test_its_version_is_found(etcd: str) -> None:
    lines = said(etcd, "--version").splitlines()
    (line,) = (line for line in lines if line.startswith("etcd Version:"))
    assert re.fullmatch(r" 3\.6\.\d+", line.removeprefix("etcd Version:"))  # etcd's end-to-end tests
    (first, *_) = (line for line in lines if "Version" in line)
    assert tuple(map(int, first.split(" ")[2].split("."))) >= (3, 6, 10)  # Kubernetes wants that or newer


@pytest.mark.parametrize(
    "flag", ["unsafe-no-fsync", "snapshot-catchup-entries", "listen-client-http-urls", "feature-gates"]
)
def test_its_flags_are_found(etcd: str, flag: str) -> None:
    shown = said(etcd, "--help")
    assert re.search(rf"(?m)^\s*--{flag}\b", shown)  # envtest
    assert f"--{flag}" in shown  # etcd's end-to-end tests


def test_a_log_line_is_as_etcd_writes_it(etcd: str, tmp_path: Path) -> None:
    """Without spaces between names and values, and the level, the time and the place first."""
    arguments = "--memory --listen-client-urls http://localhost:{client} --advertise-client-urls http://x"
    patterns = (
        r'^\{"level":"info","ts":"[^"]+","caller":"[^"]+:\d+","msg":"grpc service status changed",'
        r'"service":"","status":"SERVING"\}$',
        r'^\{"level":"info","ts":"[^"]+","caller":"[^"]+:\d+","msg":"serving client traffic insecurely;.*"address":"',
    )
    for pattern in patterns:
        with started(etcd, Harness("", arguments, pattern), tmp_path):
            pass
