"""etcd's command line: which flags there are, what they mean here, and how they are read.

A flag comes, in this order, from the command line, from `ETCD_<NAME>` in the environment, or from its default; with
`--config-file` from that file alone (etcd's rules). Flags that concern what a cluster of one has no use for are
accepted, so that a command line written for etcd works.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mvccstore.server.durations import parse_duration

Kind = Literal["text", "bool", "int", "duration"]
Value = str | bool | int | float

_TRUE, _FALSE = (
    frozenset({"1", "t", "T", "TRUE", "true", "True"}),
    frozenset({"0", "f", "F", "FALSE", "false", "False"}),
)


class FlagError(Exception):
    """The command line, the environment or the configuration file says what cannot be. For people."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag."""

    name: str
    kind: Kind
    default: Value
    help: str
    is_used: bool = True
    """False for one that is accepted and has no effect."""


def _ignored(kind: Kind, default: Value, *names: str) -> tuple[Flag, ...]:
    return tuple(
        Flag(name, kind, default, "Accepted; has no effect on a single member.", is_used=False) for name in names
    )


FLAGS: tuple[Flag, ...] = (
    Flag("name", "text", "default", "Human-readable name for this member."),
    Flag("data-dir", "text", "", "Path to the data directory; ${name}.etcd by default."),
    Flag("memory", "bool", False, "Keep everything in memory. Not a flag of etcd."),
    Flag("listen-client-urls", "text", "http://localhost:2379", "List of URLs to listen on for client traffic."),
    Flag("listen-client-http-urls", "text", "", "List of URLs for HTTP alone; the others are then for gRPC alone."),
    Flag("listen-metrics-urls", "text", "", "List of URLs to listen on for /metrics and /health."),
    Flag("advertise-client-urls", "text", "http://localhost:2379", "List of this member's client URLs to advertise."),
    Flag(
        "initial-advertise-peer-urls",
        "text",
        "http://localhost:2380",
        "List of this member's peer URLs; it has its id by them.",
    ),
    Flag("initial-cluster", "text", "", "Initial cluster configuration; one member, this one."),
    Flag("initial-cluster-token", "text", "etcd-cluster", "Token that the ids of member and cluster depend on."),
    Flag("election-timeout", "int", 1000, "Milliseconds; a lease has at least one and a half of it."),
    Flag(
        "quota-backend-bytes",
        "int",
        0,
        "Raise an alarm when the store exceeds this size; 0 for 2 GiB, negative for none.",
    ),
    Flag("max-request-bytes", "int", 1_572_864, "Maximum request size in bytes."),
    Flag("max-txn-ops", "int", 128, "Maximum number of operations permitted in a transaction."),
    Flag("max-learners", "int", 1, "Maximum number of learners in the cluster."),
    Flag("max-concurrent-streams", "int", 4_294_967_295, "Maximum calls that each client can have open at a time."),
    Flag("grpc-keepalive-min-time", "duration", 5.0, "How often a client may ping the server."),
    Flag("grpc-keepalive-interval", "duration", 7200.0, "How long a client may be silent before it is pinged."),
    Flag("grpc-keepalive-timeout", "duration", 20.0, "How long it may take to answer that."),
    Flag("auto-compaction-mode", "text", "periodic", "'periodic' or 'revision'."),
    Flag(
        "auto-compaction-retention",
        "text",
        "0",
        "What auto compaction keeps: a duration, or revisions; 0 turns it off.",
    ),
    Flag(
        "watch-progress-notify-interval",
        "duration",
        600.0,
        "How long a watch without events waits for a progress notification.",
    ),
    Flag("enable-grpc-gateway", "bool", True, "Serve JSON over HTTP beside gRPC."),
    Flag("host-whitelist", "text", "*", "Host names that HTTP requests may name, separated by commas."),
    Flag("cors", "text", "*", "Origins that browsers may make requests from, separated by commas."),
    Flag(
        "auth-token",
        "text",
        "simple",
        "Kind of token: simple, or jwt,sign-method=...,priv-key=...,pub-key=...,ttl=....",
    ),
    Flag("auth-token-ttl", "int", 300, "Seconds that a simple token lasts after its last use."),
    Flag("bcrypt-cost", "int", 10, "Cost of hashing a password, 4 to 31."),
    Flag("cert-file", "text", "", "Path to the certificate that https URLs are served with."),
    Flag("key-file", "text", "", "Path to its key."),
    Flag("trusted-ca-file", "text", "", "Path to the certificates that clients' must be signed by."),
    Flag("client-cert-auth", "bool", False, "Ask clients for a certificate, whose common name is a user's."),
    Flag("client-crl-file", "text", "", "Path to the list of clients' certificates that were revoked."),
    Flag("client-cert-allowed-hostname", "text", "", "Host names of which a client's certificate must have one."),
    Flag("client-cert-allowed-cn", "text", "", "Common names of which it must have one. Not a flag of etcd."),
    Flag("auto-tls", "bool", False, "Serve https URLs with a certificate of our own making."),
    Flag("self-signed-cert-validity", "int", 1, "Years that such a certificate is valid."),
    Flag("cipher-suites", "text", "", "Cipher suites of TLS 1.2, separated by commas."),
    Flag("tls-min-version", "text", "TLS1.2", "The oldest version of TLS: TLS1.2 or TLS1.3."),
    Flag("tls-max-version", "text", "", "The newest; the newest that there is by default."),
    Flag("metrics", "text", "basic", "basic, or extensive: also how long calls take."),
    Flag("unsafe-no-fsync", "bool", False, "Leave it to the operating system when data is on disk."),
    Flag("log-level", "text", "info", "debug, info, warn, error, panic or fatal."),
    Flag("log-format", "text", "json", "json or console."),
    Flag("log-outputs", "text", "default", "stdout, stderr, or file paths, separated by commas; 'default' is stderr."),
    Flag("enable-log-rotation", "bool", False, "Put the file of --log-outputs aside when it is large."),
    Flag(
        "log-rotation-config-json",
        "text",
        '{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}',
        "When: megabytes, days, numbers of files.",
    ),
    Flag("logger", "text", "zap", "zap; there is no other."),
    Flag("warning-apply-duration", "duration", 0.1, "From when on carrying out a request is slow, which is logged."),
    Flag("warning-unary-request-duration", "duration", 0.3, "From when on a call is slow, which is logged."),
    Flag("config-file", "text", "", "A YAML or JSON file with the flags; all others are then ignored."),
    *_ignored(
        "text",
        "",
        "wal-dir",
        "listen-peer-urls",
        "discovery",
        "discovery-srv",
        "discovery-srv-name",
        "discovery-proxy",
        "discovery-fallback",
        "proxy",
        "enable-v2v3",
        "discovery-endpoints",
        "discovery-token",
        "discovery-user",
        "discovery-password",
        "discovery-cert",
        "discovery-key",
        "discovery-cacert",
        "initial-cluster-state",
        "client-cert-file",
        "client-key-file",
        "peer-cert-file",
        "peer-key-file",
        "peer-trusted-ca-file",
        "peer-crl-file",
        "peer-client-cert-file",
        "peer-client-key-file",
        "peer-cert-allowed-cn",
        "peer-cert-allowed-hostname",
        "peer-client-cert-allowed-hostname",
        "backend-bbolt-freelist-type",
        "feature-gates",
        "v2-deprecation",
        "distributed-tracing-address",
        "distributed-tracing-service-name",
        "distributed-tracing-instance-id",
    ),
    *_ignored(
        "int",
        0,
        "heartbeat-interval",
        "snapshot-count",
        "snapshot-catchup-entries",
        "max-snapshots",
        "max-wals",
        "backend-batch-limit",
        "compaction-batch-limit",
        "bootstrap-defrag-threshold-megabytes",
        "max-concurrent-requests",
        "distributed-tracing-sampling-rate",
        "proxy-dial-timeout",
        "proxy-failure-wait",
        "proxy-read-timeout",
        "proxy-refresh-interval",
        "proxy-write-timeout",
    ),
    *_ignored(
        "bool",
        False,
        "initial-election-tick-advance",
        "pre-vote",
        "strict-reconfig-check",
        "peer-auto-tls",
        "peer-client-cert-auth",
        "peer-skip-client-san-verification",
        "socket-reuse-port",
        "socket-reuse-address",
        "discovery-insecure-transport",
        "discovery-insecure-skip-tls-verify",
        "force-new-cluster",
        "enable-pprof",
        "enable-distributed-tracing",
        "corrupt-check",
        "initial-corrupt-check",
        "compact-hash-check-enabled",
        "enable-lease-checkpoint",
        "enable-lease-checkpoint-persist",
        "enable-v2",
        "memory-mlock",
        "stop-grpc-service-on-defrag",
        "txn-mode-write-with-shared-buffer",
    ),
    *_ignored(
        "duration",
        0.0,
        "backend-batch-interval",
        "compaction-sleep-interval",
        "corrupt-check-time",
        "compact-hash-check-time",
        "downgrade-check-time",
        "peer-dial-timeout",
        "raft-read-timeout",
        "raft-write-timeout",
        "discovery-dial-timeout",
        "discovery-request-timeout",
        "discovery-keepalive-time",
        "discovery-keepalive-timeout",
    ),
)
_BY_NAME = {flag.name: flag for flag in FLAGS}


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Value]:
    """Read a command line and an environment; return the value of every flag, and which were given by `given`.

    Raises:
        FlagError: A flag is unknown, or its value is none.
    """
    from_line = _parse_line(arguments)
    found = {flag.name: flag.default for flag in FLAGS}
    given: dict[str, Value] = {}
    for flag in FLAGS:
        variable = flag.name.upper().replace("-", "_")
        text = environment.get("ETCD_" + variable) or environment.get("ETCD_EXPERIMENTAL_" + variable)
        if text and flag.name not in from_line:
            given[flag.name] = _convert(flag, text, "environment variable")
    given |= from_line
    file = given.get("config-file")
    if file:
        given = _parse_file(str(file))
    else:
        _check_advertised(given)
    return found | given


def _check_advertised(given: Mapping[str, Value]) -> None:
    if "listen-client-urls" in given and "advertise-client-urls" not in given:
        msg = "--advertise-client-urls is required when --listen-client-urls is set explicitly"
        raise FlagError(msg)


def _parse_line(arguments: Sequence[str]) -> dict[str, Value]:
    """Read flags as Go does: one dash or two, a value after = or as the next argument, none for a bool."""
    found: dict[str, Value] = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("-") or argument in {"-", "--"}:
            msg = f"{argument!r} is not a valid flag"
            raise FlagError(msg)
        name, equals, text = argument.lstrip("-").partition("=")
        flag = _BY_NAME.get(name) or _BY_NAME.get(name.removeprefix("experimental-"))
        if flag is None:
            msg = f"flag provided but not defined: -{name}"
            raise FlagError(msg)
        if not equals:
            if flag.kind == "bool":
                text = "true"
            elif waiting:
                text = waiting.pop(0)
            else:
                msg = f"flag needs an argument: -{name}"
                raise FlagError(msg)
        found[flag.name] = _convert(flag, text, "flag")
    return found


def _parse_file(path: str) -> dict[str, Value]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {path}: {error}"
        raise FlagError(msg) from error
    try:
        read = json.loads(text)
    except ValueError:
        read = _read_yaml(path, text)
    if not isinstance(read, dict):
        msg = f"{path} holds no mapping of flags to values"
        raise FlagError(msg)
    found: dict[str, Value] = {}
    section = read.get("client-transport-security")
    for name, value in (*read.items(), *(_of_section(section) if isinstance(section, dict) else ())):
        flag = _BY_NAME.get(str(name)) or _BY_NAME.get(str(name).removeprefix("experimental-"))
        if flag is None or value is None or (value == "" and flag.name in _NOTHING_IF_EMPTY):
            continue  # the file also has sections that are no flags, and names without a value, as etcd's sample
        if flag.kind == "duration" and isinstance(value, int) and not isinstance(value, bool):
            found[flag.name] = value / 1e9  # etcd's files have nanoseconds
        else:
            found[flag.name] = _convert(flag, _shown(value), f"{path}:")
    return found


_SECTION_FLAGS = {"allowed-cn": "client-cert-allowed-cn", "allowed-hostname": "client-cert-allowed-hostname"}
_NOTHING_IF_EMPTY = frozenset({"cors", "host-whitelist"} | {flag.name for flag in FLAGS if flag.name.endswith("-urls")})


def _of_section(section: Mapping[object, object]) -> Iterator[tuple[str, object]]:
    """Return what a file's section about TLS says, by the names of flags."""
    for name, value in section.items():
        yield _SECTION_FLAGS.get(str(name), str(name)), value


def _shown(value: object) -> str:
    """Return a value of a file as a command line has it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_yaml(path: str, text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        msg = f"{path} is neither JSON nor YAML: {error}"
        raise FlagError(msg) from error


def _convert(flag: Flag, text: str, where: str) -> Value:
    try:
        match flag.kind:
            case "text":
                return text
            case "int":
                return int(text, 0)
            case "duration":
                return parse_duration(text)
            case "bool":
                if text in _TRUE or text in _FALSE:
                    return text in _TRUE
    except ValueError:
        pass
    msg = f"invalid value {text!r} for {where} -{flag.name}: not a {flag.kind}"
    raise FlagError(msg)


def listed(flags: Mapping[str, Value], name: str) -> tuple[str, ...]:
    """Return the parts of a flag that are separated by commas."""
    return tuple(part.strip() for part in str(flags[name]).split(",") if part.strip())


def usage() -> str:
    """Return what `--help` prints."""
    lines = ["Usage:", "", "  etcd [flags]", "    Start an etcd server.", ""]
    for flag in FLAGS:
        shown = f"{flag.default!r}" if flag.kind == "text" else str(flag.default).lower()
        lines += [f"  --{flag.name} {shown}", f"    {flag.help}"]
    return "\n".join(lines) + "\n"
