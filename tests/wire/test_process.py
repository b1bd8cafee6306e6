"""The server as a process: started, used by a client, stopped, killed, started again."""

from __future__ import annotations

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import mvccstore
from mvccstore.server.etcd_shim import install

READY = "ready to serve client requests"


@contextmanager
def running(
    *arguments: str, program: tuple[str, ...] = (sys.executable, "-m", "mvccstore.server.etcd_shim")
) -> Iterator[Any]:
    """A server on a port of its own choosing; yields its process, with `url` and `lines`."""
    listen = ("--listen-client-urls", "http://127.0.0.1:0", "--advertise-client-urls", "http://127.0.0.1:0")
    process: Any = subprocess.Popen([*program, *listen, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        process.lines = []
        for line in process.stderr:
            process.lines.append(line)
            with suppress(ValueError):
                address = json.loads(line).get("address")
                process.url = f"http://{address}" if address else process.url
            if READY in line:
                break
        else:
            pytest.fail("".join(process.lines))
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def call(url: str, path: str, **fields: Any) -> Any:
    """Post to the JSON gateway."""
    with urllib.request.urlopen(url + path, json.dumps(fields).encode(), timeout=20) as answer:
        return json.load(answer)


def put(url: str, key: bytes, value: bytes) -> int:
    answer = call(url, "/v3/kv/put", key=b64encode(key).decode(), value=b64encode(value).decode())
    return int(answer["header"]["revision"])


def get(url: str, key: bytes) -> bytes | None:
    kvs = call(url, "/v3/kv/range", key=b64encode(key).decode()).get("kvs")
    return b64decode(kvs[0].get("value", "")) if kvs else None


def test_it_takes_more_connections_than_a_shell_allows_at_first() -> None:
    """As etcd does: Go raises the soft limit of files when it starts."""
    limited = "import os, resource, sys; _, hard = resource.getrlimit(resource.RLIMIT_NOFILE);"
    limited += "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    program = (sys.executable, "-c", limited, "-m", "mvccstore.server.etcd_shim")
    with running("--memory", program=program) as process, ExitStack() as stack:
        address = urlsplit(process.url)
        for _ in range(150):
            connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
            stack.callback(connection.close)
            connection.request("GET", "/health")
            assert json.load(connection.getresponse())["health"] == "true"  # and it stays connected


def test_it_has_as_many_files_as_it_may_and_fewer_connections() -> None:
    soft, hard = 200, min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 700)
    shell = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$0" -m mvccstore.server.etcd_shim "$@"'
    with running("--memory", program=("/bin/sh", "-c", shell, sys.executable)) as process, ExitStack() as clients:
        host, port = process.url.removeprefix("http://").split(":")
        before = http.client.HTTPConnection(host, int(port), timeout=20)
        before.request("GET", "/metrics")
        assert f"os_fd_limit {hard}.0\n" in before.getresponse().read().decode()
        for _ in range(hard):
            last = clients.enter_context(socket.create_connection((host, int(port)), 20))
        with suppress(ConnectionError):
            assert last.recv(1) == b""
        before.request("GET", "/metrics")  # who is connected is served, whatever comes
        page = before.getresponse().read().decode()
        before.close()
    assert 'mvccstore_server_refused_total{limit="connections_max"}' in page


def test_sigterm_ends_it_cleanly_and_what_was_written_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running("--data-dir", str(folder)) as process:
        assert put(process.url, b"k", b"1") == 2
        term = call(process.url, "/v3/maintenance/status")["raftTerm"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    with mvccstore.open(folder / "store.mvcc") as store:
        assert store.get(b"k") is not None
        assert store.check() == []
    with running("--data-dir", str(folder)) as process:
        assert get(process.url, b"k") == b"1"
        assert put(process.url, b"k", b"2") == 3
        assert int(call(process.url, "/v3/maintenance/status")["raftTerm"]) == int(term) + 1


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    folder = str(tmp_path / "data")
    index = 0
    for start in range(3):
        with running("--data-dir", folder) as process:
            for number in range(5):
                put(process.url, b"%d/%d" % (start, number), b"x")
            status = call(process.url, "/v3/maintenance/status")
            assert int(status["raftIndex"]) > index, "it never goes back"
            index = int(status["raftIndex"])
            process.kill()
            process.wait()
    with mvccstore.open(Path(folder) / "store.mvcc") as store:
        assert store.revision == 16
        assert store.count(mvccstore.KeyRange.all()) == 15
        assert store.check() == []


def test_memory_leaves_nothing(tmp_path: Path) -> None:
    with running("--memory", "--data-dir", str(tmp_path / "data")) as process:
        put(process.url, b"k", b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_real_etcds_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "member" / "snap" / "db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"bbolt")
    command = [sys.executable, "-m", "mvccstore.server.etcd_shim", "--data-dir", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "is the data directory of another etcd" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["member"]


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with running("--memory") as process:
        command = [
            *(sys.executable, "-m", "mvccstore.server.etcd_shim", "--data-dir", str(tmp_path / "d")),
            *("--listen-client-urls", process.url, "--advertise-client-urls", process.url),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "in use" in ended.stderr


def test_the_installed_stand_in_is_an_etcd(tmp_path: Path) -> None:
    path = install(str(tmp_path / "bin"))
    assert path.name == "etcd"
    assert os.access(path, os.X_OK)
    version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert version.startswith("etcd Version: 3.6.")
    shown = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "--listen-client-urls" in shown
    bad = subprocess.run([path, "--nope"], capture_output=True, text=True, timeout=60, check=False)
    assert (bad.returncode, bad.stderr) == (2, "flag provided but not defined: -nope\n")
    with running("--memory", program=(str(path),)) as process:
        assert put(process.url, b"k", b"1") == 2


def test_the_command_line_serves() -> None:
    program = (sys.executable, "-c", "import sys; from mvccstore.cli import main; sys.exit(main())", "serve")
    with running("--memory", "--log-format", "json", program=program) as process:
        assert put(process.url, b"k", b"1") == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_unix_socket_left_by_a_killed_server_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    urls = f"http://127.0.0.1:0,unix://{path}"
    for _ in range(2):
        with running("--memory", "--listen-client-urls", urls) as process:
            assert path.is_socket()
            process.kill()
            process.wait()


def test_logs_go_to_files_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running("--memory", "--log-outputs", f"{log},stderr", "--log-format", "json") as process:
        assert any(READY in line for line in process.lines)
    assert READY in log.read_text()


def test_who_started_it_is_told_when_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As etcd tells systemd, whose units of `Type=notify` otherwise never come up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        if sys.platform == "linux":  # which has names that are no files, for which there is an @
            name = "@" + os.urandom(8).hex()
            told.bind("\0" + name[1:])
        else:
            name = str(tmp_path / "notify")
            told.bind(name)
        told.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        with running("--memory") as process:
            assert told.recv(100) == b"READY=1"
            assert put(process.url, b"k", b"1") == 2
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with running("--memory") as process:
        assert any('"msg":"failed to notify systemd for readiness"' in line for line in process.lines)
        assert put(process.url, b"k", b"1") == 2
