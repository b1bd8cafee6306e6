"""A server as a process: flags to options, the store in its directory, logs, signals.

The data directory holds one file, `store.mvcc`, and while it is served, its journal. One that a real etcd has filled is refused, and left alone.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mvccstore.clock import SystemClock
from mvccstore.errors import StoreError
from mvccstore.opening import open_store
from mvccstore.options import Durability
from mvccstore.server.auth.gate import AuthOptions
from mvccstore.server.auth.tokens import TokenOptionsError, new_tokens
from mvccstore.server.autocompaction import AutoCompaction, ByRevision, Periodic
from mvccstore.server.durations import parse_duration
from mvccstore.server.flags import FlagError, Value, listed, parse
from mvccstore.server.logs import FORMATS, LEVELS, set_up_log
from mvccstore.server.member import Identity
from mvccstore.server.node import RequestLimits
from mvccstore.server.rotation import Rotation, rotation_of
from mvccstore.server.securing import AutoTLS, tls_of
from mvccstore.server.server import Protocols, Server, ServerOptions
from mvccstore.server.serving import new_event_loop
from mvccstore.server.slow import SlowOptions
from mvccstore.server.transport.limits import TransportLimits
from mvccstore.store import Store

STORE_FILE = "store.mvcc"
READY = "ready to serve client requests"
"""What test harnesses wait for in the log."""
EXIT_FAILED, EXIT_USAGE = 1, 2
_STREAMS_MAX = 2**31 - 1
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_COLLECTOR_THRESHOLDS = (50_000, 20, 50)
log = logging.getLogger("mvccstore.server")


@dataclass(frozen=True, slots=True)
class Listener:
    """Something to listen on."""

    url: str
    host: str
    """Empty for a unix socket."""
    port: int
    path: str
    protocols: Protocols
    is_secure: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What flags ask for."""

    data_dir: str
    is_in_memory: bool
    durability: Durability
    listeners: tuple[Listener, ...]
    options: ServerOptions
    log_level: int
    log_format: str
    log_outputs: tuple[str, ...]
    auto_tls: AutoTLS | None = None
    log_rotation: Rotation | None = None


def plan(flags: Mapping[str, Value]) -> Plan:
    """Return what flags, as `parse` returns them, ask for.

    Raises:
        FlagError: They ask for what cannot be.
    """
    name = _text(flags, "name")
    peer_urls = _urls(flags, "initial-advertise-peer-urls")
    _check_cluster(flags, name, peer_urls)
    identity = Identity(name, peer_urls, _urls(flags, "advertise-client-urls"), _text(flags, "initial-cluster-token"))
    http_urls = _urls(flags, "listen-client-http-urls")
    listeners = [_listener(url, "grpc" if http_urls else "both") for url in _urls(flags, "listen-client-urls")]
    listeners += [_listener(url, "http") for url in http_urls]
    listeners += [_listener(url, "metrics") for url in _urls(flags, "listen-metrics-urls")]
    data_dir = _text(flags, "data-dir") or f"{name}.etcd"
    client_urls = (*_urls(flags, "listen-client-urls"), *http_urls)
    tls, auto_tls = tls_of(flags, data_dir, client_urls, _urls(flags, "listen-metrics-urls"))
    quota = _int(flags, "quota-backend-bytes")
    _check_log(flags)
    max_request_bytes = _int(flags, "max-request-bytes")
    options = ServerOptions(
        identity,
        RequestLimits(
            max_request_bytes,
            _int(flags, "max-txn-ops"),
            _int(flags, "election-timeout"),
            max(0.1, _seconds(flags, "watch-progress-notify-interval")),
            _int(flags, "max-learners"),
        ),
        TransportLimits(
            message_bytes_max=max_request_bytes + 512 * 1024,
            streams_max=min(_int(flags, "max-concurrent-streams"), _STREAMS_MAX),
            ping_seconds_min=_seconds(flags, "grpc-keepalive-min-time"),
            keepalive_seconds=_seconds(flags, "grpc-keepalive-interval"),
            keepalive_timeout_seconds=_seconds(flags, "grpc-keepalive-timeout"),
        ),
        quota_bytes=max(0, quota or 2 << 30),
        has_gateway=bool(flags["enable-grpc-gateway"]),
        hosts=frozenset(listed(flags, "host-whitelist")),
        origins=frozenset(listed(flags, "cors")),
        auto_compaction=_auto_compaction(flags),
        auth=_auth(flags),
        tls=tls,
        has_handling_seconds=_text(flags, "metrics") == "extensive",
        slow=SlowOptions(_seconds(flags, "warning-apply-duration"), _seconds(flags, "warning-unary-request-duration")),
    )
    return Plan(
        data_dir,
        bool(flags["memory"]),
        Durability.OS if flags["unsafe-no-fsync"] else Durability.FSYNC,
        tuple(listeners),
        options,
        LEVELS[_text(flags, "log-level")],
        _text(flags, "log-format"),
        listed(flags, "log-outputs"),
        auto_tls,
        _rotation(flags),
    )


def _urls(flags: Mapping[str, Value], name: str) -> tuple[str, ...]:
    """Return URLs as etcd has them: in order, and each once."""
    return tuple(sorted(set(listed(flags, name))))


def _text(flags: Mapping[str, Value], name: str) -> str:
    return str(flags[name])


def _int(flags: Mapping[str, Value], name: str) -> int:
    return int(flags[name])


def _seconds(flags: Mapping[str, Value], name: str) -> float:
    return float(flags[name])


def _check_log(flags: Mapping[str, Value]) -> None:
    if _text(flags, "logger") != "zap":
        msg = f"unknown logger option {json.dumps(_text(flags, 'logger'))}"
        raise FlagError(msg)
    for name, known in (("log-level", LEVELS), ("log-format", FORMATS)):
        if _text(flags, name) not in known:
            msg = f"--{name} is {_text(flags, name)!r}, not one of {', '.join(known)}"
            raise FlagError(msg)
    if "default" in listed(flags, "log-outputs") and len(listed(flags, "log-outputs")) > 1:
        msg = 'multi logoutput for "default" is not supported yet'
        raise FlagError(msg)


def _rotation(flags: Mapping[str, Value]) -> Rotation | None:
    if not flags["enable-log-rotation"]:
        return None
    outputs = listed(flags, "log-outputs")
    files = len(set(outputs) - {"default", "stderr", "stdout"})
    if files > 1 or (files == 0 and len(outputs) == 1):
        msg = "--log-outputs requires a single file path when --log-rotate-config-json is defined"
        raise FlagError(msg)
    try:
        return rotation_of(_text(flags, "log-rotation-config-json"))
    except ValueError as error:
        raise FlagError(str(error)) from error


def _check_cluster(flags: Mapping[str, Value], name: str, peer_urls: tuple[str, ...]) -> None:
    cluster = listed(flags, "initial-cluster")
    if not cluster:
        return
    names = {member.partition("=")[0] for member in cluster}
    if names != {name}:
        msg = f"--initial-cluster names {', '.join(sorted(names))}: this server is a cluster of one, {name!r}"
        raise FlagError(msg)
    if {member.partition("=")[2] for member in cluster} != set(peer_urls):
        msg = "--initial-cluster has other URLs than --initial-advertise-peer-urls"
        raise FlagError(msg)


def _listener(url: str, protocols: Protocols) -> Listener:
    parts = urlsplit(url)
    path = parts.netloc + parts.path
    if parts.scheme in {"unix", "unixs"} and path:
        return Listener(url, "", 0, path, protocols, parts.scheme == "unixs")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in {"http", "https"} or port is None or parts.path:
        msg = f"{url!r} is not http://host:port or unix://path"
        raise FlagError(msg)
    return Listener(url, parts.hostname or "", port, "", protocols, parts.scheme == "https")


def _auth(flags: Mapping[str, Value]) -> AuthOptions:
    options = AuthOptions(_text(flags, "auth-token"), _int(flags, "auth-token-ttl"), _int(flags, "bcrypt-cost"))
    try:
        new_tokens(options.token, options.token_ttl_seconds, SystemClock())
    except TokenOptionsError as error:
        raise FlagError(str(error)) from error
    except ImportError as error:
        msg = f"--auth-token={options.token} needs {error.name}: install mvccstore[server]"
        raise FlagError(msg) from error
    return options


def _auto_compaction(flags: Mapping[str, Value]) -> AutoCompaction | None:
    mode, retention = _text(flags, "auto-compaction-mode"), _text(flags, "auto-compaction-retention")
    try:
        if mode == "revision":
            number = int(retention)
            return ByRevision(number) if number > 0 else None
        if mode == "periodic":
            seconds = int(retention) * 3600.0 if retention.isdecimal() else parse_duration(retention)
            return Periodic(seconds) if seconds > 0 else None
    except ValueError:
        msg = f"--auto-compaction-retention is {retention!r}: neither a number nor a duration"
        raise FlagError(msg) from None
    msg = f"--auto-compaction-mode is {mode!r}, neither 'periodic' nor 'revision'"
    raise FlagError(msg)


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Serve until told to stop; return the exit code."""
    try:
        chosen = plan(parse(arguments, environment))
    except FlagError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    _raise_file_limit()
    with ExitStack() as stack:
        try:
            set_up_log(chosen.log_level, chosen.log_format, chosen.log_outputs, stack, chosen.log_rotation)
        except OSError as error:
            sys.stderr.write(f"--log-outputs: {error}\n")
            return EXIT_FAILED
        try:
            store = stack.enter_context(_open(chosen))
            if chosen.auto_tls is not None:
                chosen.auto_tls.make()
            stack.enter_context(_rare_collections())
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(_serve(store, chosen, environment.get("NOTIFY_SOCKET", "")))
        except (StoreError, OSError) as error:
            log.critical("%s", error)
            return EXIT_FAILED
    return 0


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Have the collector run rarely, over what is made from here on.

    A thousand calls under way are thousands of objects that come and go without it; looking at them, and at all that
    was there before, took a sixth of the time of a put.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _raise_file_limit() -> None:
    """Allow as many connections as the system lets this process have, as Go does for etcd when it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # some systems say there is no limit, and have one
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open(chosen: Plan) -> Store:
    if chosen.is_in_memory:
        return open_store(None)
    folder = Path(chosen.data_dir)
    if (folder / "member" / "snap" / "db").exists():
        msg = f"{folder} is the data directory of another etcd; give this one its own with --data-dir"
        raise OSError(msg)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_synced = chosen.durability is Durability.FSYNC
    return open_store(os.fspath(folder / STORE_FILE), durability=chosen.durability, journal=is_synced)


async def _serve(store: Store, chosen: Plan, notify: str) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with Server(store, chosen.options) as server:

        def stop() -> None:
            if not stopping.is_set():
                stopping.set()
                return
            log.warning("told again to stop: cutting connections")
            server.drop_connections()
            for number in _STOP_SIGNALS:  # a third one ends the process where it is
                loop.remove_signal_handler(number)

        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, stop)
        for listener in chosen.listeners:
            _warn_of_unused(chosen, listener)
            await _listen(server, listener)
        if notify:
            _notify_init(notify)
        # Harnesses wait for either line, and connect at once.
        log.info("grpc service status changed", extra={"fields": {"service": "", "status": "SERVING"}})
        log.info(READY, extra={"fields": {"revision": store.revision, "member-id": f"{server.node.member_id:x}"}})
        await stopping.wait()
        log.info("stopping")
    log.info("stopped")


def _notify_init(address: str) -> None:
    """Say that this serves to what has started it: units of systemd with `Type=notify`, such as etcd's, wait for that."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
            notifying.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
    except OSError as error:
        log.error("failed to notify systemd for readiness", extra={"fields": {"error": str(error)}})
    else:
        log.info("successfully notified init daemon")


def _warn_of_unused(chosen: Plan, listener: Listener) -> None:
    tls = chosen.options.tls
    if tls is not None and not listener.is_secure:
        fields = {"client-url": listener.url}
        log.warning(
            "scheme is http or unix while key and cert files are present; ignoring key and cert files",
            extra={"fields": fields},
        )
        if tls.client_cert_auth:
            log.warning(
                "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL",
                extra={"fields": fields},
            )


async def _listen(server: Server, listener: Listener) -> None:
    if listener.path:
        await server.listen_unix(listener.path, protocols=listener.protocols, is_secure=listener.is_secure)
        address = listener.path
    else:
        port = await server.listen(
            listener.host, listener.port, protocols=listener.protocols, is_secure=listener.is_secure
        )
        address = f"{listener.host}:{port}"
    if listener.is_secure:
        message = "serving client traffic securely"
    else:
        message = "serving client traffic insecurely; this is strongly discouraged!"
    log.info(message, extra={"fields": {"address": address}})
