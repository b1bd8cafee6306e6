"""etcd's command line, as far as it is read."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from mvccstore.options import Durability
from mvccstore.server.autocompaction import ByRevision, Periodic
from mvccstore.server.durations import parse_duration
from mvccstore.server.flags import FLAGS, FlagError, parse, usage
from mvccstore.server.process import plan
from tests.oracle.choice import find_oracle
from tests.wire.pair import needs_oracle


def test_defaults_are_etcds() -> None:
    chosen = plan(parse([], {}))
    assert chosen.data_dir == "default.etcd"
    assert [(each.host, each.port, each.protocols) for each in chosen.listeners] == [("localhost", 2379, "both")]
    assert chosen.durability is Durability.FSYNC
    assert chosen.options.quota_bytes == 2 << 30
    assert chosen.options.auto_compaction is None
    assert chosen.options.requests.lease_ttl_min == 2
    assert chosen.options.identity.member_id == 0x8E9E05C52164694D
    assert chosen.options.identity.cluster_id == 0xCDF818194E3A8C32


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--name", "m"], "name", "m"),
        (["-name=m"], "name", "m"),
        (["--name="], "name", ""),
        (["--memory"], "memory", True),
        (["--memory=false"], "memory", False),
        (["--max-txn-ops", "0x10"], "max-txn-ops", 16),
        (["--grpc-keepalive-min-time", "1m30s"], "grpc-keepalive-min-time", 90.0),
        (["--experimental-watch-progress-notify-interval=5s"], "watch-progress-notify-interval", 5.0),
        (["--name", "a", "--name", "b"], "name", "b"),
        (["--experimental-memory-mlock", "--name", "m"], "name", "m"),  # one without a value
        (["--experimental-txn-mode-write-with-shared-buffer", "--name", "m"], "name", "m"),
        (["--experimental-stop-grpc-service-on-defrag", "--name", "m"], "name", "m"),
        (["--raft-read-timeout", "5s"], "raft-read-timeout", 5.0),
    ],
)
def test_flags_are_read_as_go_reads_them(arguments: list[str], name: str, value: object) -> None:
    assert parse(arguments, {})[name] == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nope"], "flag provided but not defined: -nope"),
        (["--name"], "flag needs an argument: -name"),
        (["serve"], "'serve' is not a valid flag"),
        (["--max-txn-ops", "many"], "invalid value 'many' for flag -max-txn-ops: not a int"),
        (["--memory=maybe"], "invalid value 'maybe' for flag -memory: not a bool"),
        (["--grpc-keepalive-timeout=20"], "invalid value '20' for flag -grpc-keepalive-timeout: not a duration"),
        (
            ["--listen-client-urls", "http://127.0.0.1:1"],
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
    ],
)
def test_what_cannot_be_read_is_said(arguments: list[str], message: str) -> None:
    with pytest.raises(FlagError, match="^" + message.replace("(", r"\(") + "$"):
        parse(arguments, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--log-level=loud"], "--log-level is 'loud'"),
        (["--log-format=xml"], "--log-format is 'xml'"),
        (["--auto-compaction-mode=daily"], "--auto-compaction-mode is 'daily'"),
        (["--auto-compaction-retention=often"], "--auto-compaction-retention is 'often'"),
        (["--initial-cluster=a=http://localhost:2380,b=http://localhost:2381"], "a cluster of one"),
        (["--initial-cluster=default=http://elsewhere:2380"], "other URLs"),
        (["--listen-client-urls=https://h:1", "--advertise-client-urls=https://h:1"], "must be provided"),
        (["--listen-client-urls=http://h", "--advertise-client-urls=http://h:1"], "is not http://host:port"),
        (["--listen-client-urls=http://h:x", "--advertise-client-urls=http://h:1"], "is not http://host:port"),
        (["--listen-client-urls=unix://", "--advertise-client-urls=unix://"], "is not http://host:port or unix://path"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], message: str) -> None:
    with pytest.raises(FlagError, match=message):
        plan(parse(arguments, {}))


def test_the_command_line_goes_before_the_environment() -> None:
    environment = {"ETCD_NAME": "env", "ETCD_MAX_TXN_OPS": "7", "ETCD_UNKNOWN": "x"}
    found = parse(["--name", "line"], environment)
    assert (found["name"], found["max-txn-ops"]) == ("line", 7)


def test_the_environment_has_the_older_names_too() -> None:
    """etcd takes the variable of each flag that it has, and it has both of some."""
    name, old = "watch-progress-notify-interval", "ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL"
    assert parse([], {old: "5s"})[name] == 5.0
    assert parse([], {old: "5s", "ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL": "6s"})[name] == 6.0
    assert parse([f"--experimental-{name}=7s"], {old: "5s"})[name] == 7.0


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_with_a_file_all_else_is_ignored(tmp_path: Path, form: str) -> None:
    path = tmp_path / "etcd.conf"
    if form == "json":
        path.write_text(json.dumps({"name": "file", "grpc-keepalive-interval": 5_000_000_000, "unsafe-no-fsync": True}))
    else:
        path.write_text(
            "name: file\ngrpc-keepalive-interval: 5000000000\nunsafe-no-fsync: true\nclient-transport-security: {}\n"
        )
    found = parse(["--config-file", str(path), "--name", "line", "--memory"], {"ETCD_MAX_TXN_OPS": "7"})
    assert found["name"] == "file"
    assert found["grpc-keepalive-interval"] == 5.0
    assert found["unsafe-no-fsync"] is True
    assert (found["memory"], found["max-txn-ops"]) == (False, 128)


def test_a_file_has_lists_and_names_without_a_value(tmp_path: Path) -> None:
    """As etcd.conf.yml.sample does, which comes with etcd."""
    path = tmp_path / "etcd.conf.yml"
    path.write_text(
        "data-dir:\ncors:\nhost-whitelist: ''\ninitial-cluster:\nquota-backend-bytes:\nadvertise-client-urls: ''\n"
        "client-transport-security:\n  cert-file:\n  client-cert-auth: false\n  allowed-hostname: [a, b]\n"
        "log-outputs: [stderr, stdout]\n"
        "cipher-suites: [\n  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,\n  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384\n]\n"
    )
    found = parse(["--config-file", str(path)], {})
    given = {
        "client-cert-allowed-hostname": "a,b",
        "log-outputs": "stderr,stdout",
        "cipher-suites": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    }
    assert found == {flag.name: flag.default for flag in FLAGS} | given
    assert plan(found).log_outputs == ("stderr", "stdout")


def test_a_file_need_not_say_what_is_advertised(tmp_path: Path) -> None:
    """A command line and an environment do; etcd's defaults are there before it reads a file."""
    path = tmp_path / "etcd.conf.yml"
    path.write_text("listen-client-urls: http://127.0.0.1:1\n")
    chosen = plan(parse(["--config-file", str(path)], {}))
    assert chosen.options.identity.client_urls == ("http://localhost:2379",)
    assert [listener.port for listener in chosen.listeners] == [1]


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_is_none_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "etcd.conf"
    path.write_text(text)
    with pytest.raises(FlagError, match=r"etcd\.conf"):
        parse(["--config-file", str(path)], {})
    with pytest.raises(FlagError, match="cannot read"):
        parse(["--config-file", str(tmp_path / "missing")], {})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("1h", 3600.0), ("1.5h", 5400.0), ("2m3s", 123.0), ("10ms", 0.01), ("-1s", -1.0), (".5s", 0.5)],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "s", "1x", "1s ", "1 s", "--1s", "1s2"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@needs_oracle
def test_every_flag_that_etcd_lists_is_one() -> None:
    shown = subprocess.run([find_oracle().etcd, "--help"], capture_output=True, text=True, check=True, timeout=20)
    names = re.findall(r"^ +--([a-z0-9-]+)", shown.stdout + shown.stderr, re.MULTILINE)
    assert len(names) > 80
    known = {flag.name for flag in FLAGS}
    missing = [name for name in names if not {name, name.removeprefix("experimental-")} & known]
    assert set(missing) <= {"version"}, "which the program answers without a server"


def test_help_lists_every_flag() -> None:
    shown = usage()
    assert all(f"  --{flag.name} " in shown for flag in FLAGS)
    assert "--snapshot-catchup-entries" in shown, "etcd's own test harness looks for it"


def test_separate_urls_split_the_protocols() -> None:
    chosen = plan(
        parse(
            [
                "--listen-client-urls=http://127.0.0.1:1,unix://localhost:2",
                "--advertise-client-urls=http://127.0.0.1:1",
                "--listen-client-http-urls=http://127.0.0.1:3",
                "--listen-metrics-urls=http://127.0.0.1:4",
            ],
            {},
        )
    )
    found = [(each.host, each.port, each.path, each.protocols) for each in chosen.listeners]
    assert found == [
        ("127.0.0.1", 1, "", "grpc"),
        ("", 0, "localhost:2", "grpc"),
        ("127.0.0.1", 3, "", "http"),
        ("127.0.0.1", 4, "", "metrics"),
    ]


def test_urls_are_in_order_and_each_is_one() -> None:
    """As `member list` of etcd shows them, and as the id of a member is made of them."""
    twice = "http://127.0.0.1:2,http://127.0.0.1:1, http://127.0.0.1:2"
    flags = ("listen-client-urls", "advertise-client-urls", "initial-advertise-peer-urls", "listen-metrics-urls")
    chosen = plan(parse([f"--{name}={twice}" for name in flags], {}))
    urls = ("http://127.0.0.1:1", "http://127.0.0.1:2")
    assert (chosen.options.identity.client_urls, chosen.options.identity.peer_urls) == (urls, urls)
    assert [listener.url for listener in chosen.listeners] == [*urls, *urls]


@pytest.mark.parametrize(
    ("mode", "retention", "kind", "interval"),
    [
        ("periodic", "1", Periodic, 360.0),
        ("periodic", "10m", Periodic, 60.0),
        ("periodic", "24h", Periodic, 360.0),
        ("revision", "1000", ByRevision, 300.0),
    ],
)
def test_auto_compaction_looks_as_often_as_etcd(mode: str, retention: str, kind: type, interval: float) -> None:
    arguments = [f"--auto-compaction-mode={mode}", f"--auto-compaction-retention={retention}"]
    policy = plan(parse(arguments, {})).options.auto_compaction
    assert isinstance(policy, kind)
    assert policy.interval == interval
