"""What a server answers over HTTP: a table of pages, and the gateway below `/v3/`.

A page is a function that answers an exchange at once. `Site.pages` may be added to before the site is used:

    site.pages["/metrics"] = metrics_page

What holds for every request comes first, in etcd's order: the old prefix is rewritten, the host is looked at,
and answers get the CORS fields if origins are allowed.
"""

from __future__ import annotations

import json
import posixpath
import resource
import sys
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs, quote

from mvccstore.errors import StoreError
from mvccstore.server.errors import Refusal, translate
from mvccstore.server.gateway.gateway import Gateway
from mvccstore.server.gateway.paths import PREFIX
from mvccstore.server.node import Node
from mvccstore.server.transport.call import Metadata
from mvccstore.server.transport.exchange import TEXT, BodyReceiver, Exchange, Fields
from mvccstore.server.transport.http1_head import HttpRequest
from mvccstore.server.transport.websocket import is_upgrade

Page = Callable[[Exchange], None]

_OLD_PREFIX = "/v3beta/"
_PLAIN = ((b"Content-Type", b"text/plain; charset=utf-8"),)
_JSON = ((b"Content-Type", b"application/json"),)
_QUERY_FIELDS_MAX = 100
_OF_METRICS = frozenset({"metrics", "health", "livez", "readyz"})
_NAME_IGNORED = (
    b"CommonName of client sending a request against gateway will be ignored and not used as expected\n"  # etcd's words
)


class Site:
    """The handler of requests over HTTP/1.1, and over HTTP/2 of those that are no calls.

    Args:
        gateway: None leaves out `/v3/` (etcd's `--enable-grpc-gateway=false`).
        hosts: The host names that requests may be for (`--host-whitelist`), without ports; with `*` all may. Keeps
            web pages from reaching the server through a name that they have pointed to it. Not looked at over TLS.
        origins: Whose web pages may read the answers (`--cors`); with `*` all may.
    """

    def __init__(
        self,
        node: Node,
        gateway: Gateway | None,
        *,
        hosts: frozenset[str] = frozenset({"*"}),
        origins: frozenset[str] = frozenset({"*"}),
    ) -> None:
        self._gateway = gateway
        self._auth = node.auth
        self._hosts = hosts
        self._origins = origins
        self.pages: dict[str, Page] = {
            "/version": get_only(_Version(node)),
            "/debug/vars": get_only(_Variables(node)),
            "/health": get_only(_Health(node)),
        }
        """By path."""
        checks = _checks(node)
        for path, names in (("/livez", _LIVE), ("/readyz", tuple(checks))):
            self.pages[path] = get_only(_Checks({name: checks[name] for name in names}))
            for name in names:
                self.pages[f"{path}/{name}"] = get_only(_Checks({name: checks[name]}))

    def serve(self, exchange: Exchange) -> BodyReceiver | None:
        """Answer a request, or begin to."""
        request = exchange.request
        path = request.path
        if path.startswith(_OLD_PREFIX):
            path = PREFIX + path.removeprefix(_OLD_PREFIX)
            request = exchange.request = HttpRequest(
                request.method, path, request.query, request.headers, request.peer, request.is_secure
            )
        if not request.is_secure and not self._is_known_host(request):
            exchange.respond(421, TEXT, b"this server is not asked by that host name; allow it with --host-whitelist\n")
            return None
        if self._gateway is not None and path.startswith(PREFIX) and self._auth.is_named(request.peer):
            exchange.respond(400, TEXT, _NAME_IGNORED)
            return None
        exchange.fields = self.fields_for(request.headers)
        if request.method == "OPTIONS":
            exchange.respond(200, (), b"")
            return None
        page = self.pages.get(path)
        if page is not None:
            page(exchange)
        elif _clean(path) != path:
            _redirect(exchange, _clean(path))
        elif self._gateway is None or not path.startswith(PREFIX):
            if self._gateway is not None and path + "/" == PREFIX:
                _redirect(exchange, PREFIX)
            else:
                exchange.respond(404, TEXT, b"404 page not found\n")
        else:
            if is_upgrade(request) and not self._may_open(request):
                exchange.respond(403, TEXT, b"Forbidden\n")
                return None
            return self._gateway.serve(exchange)
        return None

    def _may_open(self, request: HttpRequest) -> bool:
        """Say whether a web page may have a WebSocket: browsers open them without asking who may read the answers."""
        origin = request.headers.get(b"origin")
        if origin is None or "*" in self._origins or origin.decode("latin-1") in self._origins:
            return True
        return origin.partition(b"://")[2].lower() == (request.headers.get(b"host") or b"").lower()

    def _is_known_host(self, request: HttpRequest) -> bool:
        if "*" in self._hosts:
            return True
        return _host_name((request.headers.get(b"host") or b"").decode("latin-1")) in self._hosts

    def fields_for(self, headers: Metadata) -> Fields:
        """Return what the answer to a request with such headers begins with, for browsers to know who may read it."""
        if "*" in self._origins:
            return _CORS_ALL
        origin = headers.get(b"origin")
        return _cors(origin) if origin is not None and origin.decode("latin-1") in self._origins else ()


class MetricsSite:
    """What `--listen-metrics-urls` serve: metrics and health of a site, and nothing by which its keys could be reached."""

    def __init__(self, site: Site) -> None:
        self._pages = site.pages

    def serve(self, exchange: Exchange) -> BodyReceiver | None:
        """Answer a request."""
        path = exchange.request.path
        page = self._pages.get(path) if path.removeprefix("/").partition("/")[0] in _OF_METRICS else None
        if page is not None:
            page(exchange)
        elif _clean(path) != path:
            _redirect(exchange, _clean(path))
        else:
            exchange.respond(404, TEXT, b"404 page not found\n")
        return None


def get_only(page: Page) -> Page:
    """Refuse every method but GET."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            page(exchange)
        else:
            exchange.respond(405, ((b"Allow", b"GET"), *TEXT), b"Method Not Allowed\n")

    return answer


def _host_name(host: str) -> str:
    """Return a host without its port, as Go splits them: brackets only go with a port, which may be anything."""
    name, colon, port = host.rpartition(":")
    if name.startswith("["):
        name, bracket, rest = name[1:].partition("]")
        is_whole = bool(bracket) and not rest
    else:
        is_whole = ":" not in name
    is_split = colon and is_whole and not set("[]") & set(name + port)
    return name if is_split else host


def _cors(origin: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"Access-Control-Allow-Headers", b"accept, content-type, authorization"),
        (b"Access-Control-Allow-Methods", b"POST, GET, OPTIONS, PUT, DELETE"),
        (b"Access-Control-Allow-Origin", origin),
    )


_CORS_ALL = _cors(b"*")


def _clean(path: str) -> str:
    """Return a path without `//`, `/./` and `/../`: one that has them is sent there."""
    if not path.startswith("/") or ("//" not in path and "/." not in path):
        return path
    clean = "/" + posixpath.normpath(path).lstrip("/")
    return clean + "/" if path.endswith("/") and clean != "/" else clean


def _redirect(exchange: Exchange, path: str) -> None:
    location = quote(path, safe="/:@!$&'()*+,;=~-._", encoding="latin-1")
    if exchange.request.query:
        location += "?" + exchange.request.query
    exchange.respond(307, ((b"Location", location.encode("latin-1")),), b"")


def _query(exchange: Exchange) -> dict[str, list[str]]:
    """Return the fields of the query; none if there are too many."""
    query = exchange.request.query
    if not query:
        return {}
    try:
        return parse_qs(query, keep_blank_values=True, max_num_fields=_QUERY_FIELDS_MAX)
    except ValueError:
        return {}


class _Version:
    """The page `/version`."""

    def __init__(self, node: Node) -> None:
        identity = node.identity
        shape = {"etcdserver": identity.version, "etcdcluster": f"{identity.cluster_version}.0"}
        if node.persona.has_storage_version:
            shape["storage"] = identity.storage_version
        self._body = json.dumps(shape, separators=(",", ":")).encode()

    def __call__(self, exchange: Exchange) -> None:
        exchange.respond(200, _JSON, self._body)


class _Health:
    """The page `/health`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        has_reason = node.persona.has_health_reason
        self._well = b'{"health":"true","reason":""}' if has_reason else b'{"health":"true"}'
        self._has_reason = has_reason

    def __call__(self, exchange: Exchange) -> None:
        reason = self._reason(exchange)
        if reason is None:
            self._node.tally.health_successes += 1
            exchange.respond(200, _PLAIN, self._well)
        else:
            self._node.tally.health_failures += 1
            told = b',"reason":"%s"' % reason if self._has_reason else b""
            exchange.respond(503, TEXT, b'{"health":"false"%s}\n' % told)

    def _reason(self, exchange: Exchange) -> bytes | None:
        """Say why the server is not healthy. That a read is serializable or not makes no difference with one member."""
        node, alarms = self._node, self._node.alarms
        if alarms.is_nospace or alarms.is_corrupt:
            excluded = _query(exchange).get("exclude", [])
            if alarms.is_nospace and "NOSPACE" not in excluded:
                return b"ALARM NOSPACE"
            if alarms.is_corrupt and "CORRUPT" not in excluded:
                return b"ALARM CORRUPT"
        failure = _read_failure(node)
        return None if failure is None else b"RANGE ERROR:" + failure.encode()


class _Variables:
    """The page `/debug/vars`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __call__(self, exchange: Exchange) -> None:
        node = self._node
        usage = resource.getrusage(resource.RUSAGE_SELF)
        member, index = f"{node.member_id:x}", node.raft_index
        shape = {
            "cmdline": sys.argv,
            "file_descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "memstats": {"MaxRSSKiB": usage.ru_maxrss},
            "raft.status": {
                "id": member,
                "term": node.raft_term,
                "vote": member,
                "commit": index,
                "lead": member,
                "raftState": "StateLeader",
                "applied": index,
                "progress": {member: {"match": index, "next": index + 1, "state": "StateReplicate"}},
                "leadtransferee": "0",
            },
        }
        body = json.dumps(shape, indent=1).encode() + b"\n"
        exchange.respond(200, ((b"Content-Type", b"application/json; charset=utf-8"),), body)


_Check = Callable[[], str | None]
_LIVE = ("serializable_read",)


def _checks(node: Node) -> dict[str, _Check]:
    """Return the checks by name. Each says what is wrong, or None."""
    checks: dict[str, _Check] = {
        "data_corruption": lambda: "alarm activated: CORRUPT" if node.alarms.is_corrupt else None,
        "serializable_read": lambda: _read_failure(node),
        "linearizable_read": lambda: _read_failure(node),
    }
    if node.persona.has_learner_check:
        checks["non_learner"] = lambda: None
    return checks


def _read_failure(node: Node) -> str | None:
    """Say why the store cannot be read. It is asked for nothing that would have to come from the disk."""
    try:
        if not node.is_stopping and node.store.revision:
            return None
    except StoreError as error:
        told = translate(error)
        return str(error) if told is None else told.message
    return Refusal.STOPPED.error().message


class _Checks:
    """A page that is 200 if all its checks are well."""

    def __init__(self, checks: Mapping[str, _Check]) -> None:
        self._checks = checks

    def __call__(self, exchange: Exchange) -> None:
        query = _query(exchange)
        excluded = query.get("exclude", [])
        problems = {name: check() for name, check in self._checks.items() if name not in excluded}
        lines = "".join(
            f"[+]{name} ok\n" if problem is None else f"[-]{name} failed: {problem}\n"
            for name, problem in problems.items()
        )
        if any(problem is not None for problem in problems.values()):
            exchange.respond(503, TEXT, f"{lines}\n".encode())
        else:
            exchange.respond(200, TEXT, (f"{lines}ok\n" if "verbose" in query else "ok\n").encode())
