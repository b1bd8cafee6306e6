"""What each version of etcd does differently: asked of ours as that version, and of real ones."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from mvccstore.server import AuthOptions, Identity, ServerOptions, serve
from mvccstore.server.gateway.failures import HTTP_STATUS, Failures
from mvccstore.server.messages import health, rpc
from mvccstore.server.messages.auth import Permission
from mvccstore.server.persona import PERSONAS, V3_4, V3_5, V3_6, persona_of
from mvccstore.server.transport.status import Code
from mvccstore.testing import etcd
from tests.oracle.choice import distro_oracle, find_oracle
from tests.oracle.process import QUICK_ELECTION, running_etcd
from tests.wire.calls import compact, delete, get, grant, put, put_op, text, txn
from tests.wire.client import Client, Endpoint, RpcFailure
from tests.wire.differential import Operation, Post
from tests.wire.pair import OPTIONS, needs_oracle, running_pair

VERSIONS = tuple(PERSONAS)
OF_3_5 = "3.5"
AUTH, KV, MAINTENANCE = "/etcdserverpb.Auth", "/etcdserverpb.KV", "/etcdserverpb.Maintenance"
COST = 4
MEMBER = 7
"""Of an alarm; any number will do."""
NEW_PASSWORD = "new"
HASHED = base64.b64encode(bcrypt.hashpw(NEW_PASSWORD.encode(), bcrypt.gensalt(COST))).decode()

Ask = Callable[[Client], object]


@dataclass(frozen=True)
class Row:
    """A difference: what to ask, and the answer of each version."""

    name: str
    ask: Ask
    v3_4: object
    v3_5: object
    v3_6: object
    of_3_5_1: object = None
    """What 3.5.1 answers instead, as it was corrected within 3.5."""
    of_3_6_16: object = None
    """What a real 3.6 answers instead, where ours offers more."""

    def expected(self, version: str) -> object:
        return {"3.4": self.v3_4, "3.5": self.v3_5, "3.6": self.v3_6}[version]

    def __str__(self) -> str:
        return self.name


def same(name: str, ask: Ask, answer: object, of_3_5_1: object = None) -> Row:
    """Return a row of what all three do."""
    return Row(name, ask, answer, answer, answer, of_3_5_1=of_3_5_1)


# Asking


def call(
    method: str, request: Any, look: Callable[[Any], object] = lambda _: "OK", metadata: Any = ()
) -> Callable[[Client], object]:
    """Return what calls a method, and gives what is looked at, or code and message."""

    def ask(client: Client) -> object:
        try:
            return look(client.unary(method, request, metadata))
        except RpcFailure as failure:
            return failure.code, failure.message

    return ask


def stream(method: str, request: Any, look: Callable[[list[Any]], object]) -> Ask:
    """Return what calls a method with several answers, and gives what is looked at, or code and message."""

    def ask(client: Client) -> object:
        begun = client.stream(method, [request])
        try:
            return look([begun.receive()])
        except RpcFailure as failure:
            return failure.code, failure.message
        finally:
            begun.cancel()

    return ask


def http(verb: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Ask:
    """Return what asks over HTTP, and gives status, type and body; the body as data if it is JSON."""

    def ask(client: Client) -> object:
        answer = client.request(verb, path, body, headers)
        kind = answer.headers["content-type"].partition(";")[0]
        return answer.status, kind, answer.json() if kind == "application/json" else answer.body

    return ask


def minor(release: str) -> str:
    return ".".join(release.split(".")[:2])


def names(message: Any) -> set[str]:
    return {field.name for field, _ in message.ListFields()}


def unknown(name: str, service: str) -> tuple[str, str]:
    return "UNIMPLEMENTED", f"unknown method {name} for service etcdserverpb.{service}"


def version_page(client: Client) -> object:
    page = client.request("GET", "/version").json()
    # Of a real etcd, etcdcluster and storage are set some seconds later.
    return minor(page["etcdserver"]), sorted(page)


SERVING = [("", health.HealthCheckResponse.SERVING)]


def health_list(found: Any) -> object:
    return [(entry.key, entry.value.status) for entry in found.statuses]


def status_facts(client: Client) -> object:
    response = client.unary(f"{MAINTENANCE}/Status", rpc.StatusRequest())
    # storageVersion is set some seconds later.
    return minor(response.version), names(response) & {"dbSizeQuota", "downgradeInfo"}


def health_with_alarm(client: Client) -> object:
    for action in (rpc.AlarmRequest.ACTIVATE, rpc.AlarmRequest.DEACTIVATE):
        client.unary(f"{MAINTENANCE}/Alarm", rpc.AlarmRequest(action=action, memberID=MEMBER, alarm=rpc.NOSPACE))
        if action == rpc.AlarmRequest.ACTIVATE:
            answer = client.request("GET", "/health")
    return answer.status, answer.body


def ready_checks(client: Client) -> object:
    answer = client.request("GET", "/readyz?verbose")
    return answer.status, sorted(line for line in answer.body.splitlines() if line.startswith(b"["))


def unauthenticated(client: Client) -> object:
    answer = client.post("/v3/kv/range", {"key": text(b"a")}, {"Authorization": "garbage"})
    return answer.status, answer.headers.get("www-authenticate")


def downgrade(action: int, version: str = "") -> Ask:
    request = rpc.DowngradeRequest(action=action, version=version)  # type: ignore[arg-type]
    return call(f"{MAINTENANCE}/Downgrade", request, lambda answer: answer.version)


def alarm_header(client: Client) -> object:
    return client.unary(f"{MAINTENANCE}/Alarm", rpc.AlarmRequest()).HasField("header")


def hash_at_compact_revision(client: Client) -> object:
    revision = client.unary(f"{KV}/Put", rpc.PutRequest(key=b"a")).header.revision
    client.unary(f"{KV}/Compact", rpc.CompactionRequest(revision=revision, physical=True))
    return call(f"{MAINTENANCE}/HashKV", rpc.HashKVRequest(revision=revision))(client)


PLAIN_404 = 404, "text/plain", b"Not Found\n"
PLAIN_405 = 405, "text/plain", b"Method Not Allowed\n"
CHECKS = [b"[+]data_corruption ok", b"[+]linearizable_read ok", b"[+]serializable_read ok"]
WITH_LEARNER = sorted([*CHECKS, b"[+]non_learner ok"])
SNAPSHOT = rpc.SnapshotRequest()
NO_PAGE = 404, b"404 page not found\n"
LINE = {"message": "etcdserver: user name is empty", "grpc_code": 3, "http_code": 400, "http_status": "Bad Request"}
OLD_LINE = {
    "message": "auth: user name is empty",
    "grpc_code": 2,
    "http_code": 500,
    "http_status": "Internal Server Error",
}
NEW_LINE = {"message": "etcdserver: user name is empty", "code": 3}


def json_error(status: int, code: int, message: str) -> tuple[int, str, dict[str, object]]:
    return status, "application/json", {"code": code, "message": message, "error": message}


def either(ask: Ask) -> Ask:
    """Return what leaves out of an error what ours has for clients of older etcds."""

    def without(client: Client) -> object:
        status, kind, body = ask(client)  # type: ignore[misc]
        if isinstance(body, dict):
            body.pop("error", None)
        return status, kind, body

    return without


ROWS = (
    Row("/version", version_page, *[("3.4", ["etcdcluster", "etcdserver"]), ("3.5", ["etcdcluster", "etcdserver"])],
        ("3.6", ["etcdcluster", "etcdserver", "storage"])),
    Row("Status", status_facts, ("3.4", set()), ("3.5", set()), ("3.6", {"dbSizeQuota", "downgradeInfo"})),
    Row("HashKV", call(f"{MAINTENANCE}/HashKV", rpc.HashKVRequest(), lambda found: found.hash_revision > 0),
        False, False, True),
    Row("AlarmResponse", alarm_header, False, True, True),
    Row("AuthStatus", call(f"{AUTH}/AuthStatus", rpc.AuthStatusRequest()), unknown("AuthStatus", "Auth"), "OK", "OK"),
    Row("Downgrade", downgrade(rpc.DowngradeRequest.VALIDATE, "x"), unknown("Downgrade", "Maintenance"),
        *[("INVALID_ARGUMENT", "etcdserver: wrong downgrade target version format")] * 2),
    Row("RangeStream", stream(f"{KV}/RangeStream", rpc.RangeRequest(key=b"none"), len),
        unknown("RangeStream", "KV"), unknown("RangeStream", "KV"), 1, of_3_6_16=unknown("RangeStream", "KV")),
    Row("Health/List", call("/grpc.health.v1.Health/List", health.HealthListRequest(), health_list),
        ("UNIMPLEMENTED", "unknown method List for service grpc.health.v1.Health"), SERVING, SERVING,
        of_3_5_1=("UNIMPLEMENTED", "unknown method List for service grpc.health.v1.Health")),
    Row("no downgrade to cancel", downgrade(rpc.DowngradeRequest.CANCEL), unknown("Downgrade", "Maintenance"),
        ("FAILED_PRECONDITION", "etcdserver: no inflight downgrade job"), "3.6"),
    Row("/health", http("GET", "/health"), (200, "text/plain", b'{"health":"true"}'),
        *[(200, "text/plain", b'{"health":"true","reason":""}')] * 2),
    Row("/health with an alarm", health_with_alarm, (503, b'{"health":"false"}\n'),
        *[(503, b'{"health":"false","reason":"ALARM NOSPACE"}\n')] * 2),
    Row("/readyz", ready_checks, (200, CHECKS), (200, WITH_LEARNER), (200, WITH_LEARNER), of_3_5_1=(404, [])),
    same("/livez", lambda client: client.request("GET", "/livez").status, 200, of_3_5_1=404),
    Row("a path of none", either(http("POST", "/v3/nope", b"{}")), PLAIN_404, PLAIN_404,
        (404, "application/json", {"code": 5, "message": "Not Found"})),
    Row("a verb that is not POST", either(http("GET", "/v3/kv/range")), PLAIN_405, PLAIN_405,
        (501, "application/json", {"code": 12, "message": "Method Not Allowed"})),
    Row("the path of HashKV", lambda client: client.post("/v3/maintenance/hashkv", {}).status, 404, 200, 200,
        of_3_5_1=404),
    Row("the path of AuthStatus", lambda client: client.post("/v3/auth/status", {}).status, 404, 200, 200),
    Row("the path of Downgrade", lambda client: client.post("/v3/maintenance/downgrade", {}).status, 404, 400, 400),
    same("the old prefix", lambda client: client.post("/v3beta/kv/range", {"key": text(b"a")}).status, 200),
    same("the oldest prefix", lambda client: client.post("/v3alpha/kv/range", {"key": text(b"a")}).status, 404),
    same("a call that fails over JSON", either(http("POST", "/v3/kv/put", b"{}")),
         (400, "application/json", {"code": 3, "message": "etcdserver: key is not provided"})),
    same("a token while authentication is off", lambda client: unauthenticated(client)[0], 200, of_3_5_1=401),  # type: ignore[index]
    same("HashKV at the compact revision", hash_at_compact_revision, "OK",
         of_3_5_1=("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted")),
)  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_ours_does_as_that_version_does(row: Row, version: str) -> None:
    with etcd(version=version) as server, Client(Endpoint(server.host, server.port)) as client:
        assert row.ask(client) == row.expected(version)


# With authentication on


@dataclass(frozen=True)
class Tokens:
    """Tokens of root, and of a user that may do nothing."""

    root: str
    alice: str


def enable(client: Client) -> Tokens:
    client.unary(f"{AUTH}/UserAdd", rpc.AuthUserAddRequest(name="root", password="pw"))
    client.unary(f"{AUTH}/UserAdd", rpc.AuthUserAddRequest(name="alice", password="pw"))
    client.unary(f"{AUTH}/UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root"))
    client.unary(f"{AUTH}/AuthEnable", rpc.AuthEnableRequest())
    root, alice = (
        client.unary(f"{AUTH}/Authenticate", rpc.AuthenticateRequest(name=name, password="pw")).token
        for name in ("root", "alice")
    )
    return Tokens(root, alice)


def as_nobody(method: str, request: Any) -> Ask:
    def ask(client: Client) -> object:
        enable(client)
        return call(method, request)(client)

    return ask


def as_alice(method: str, request: Any) -> Ask:
    def ask(client: Client) -> object:
        return call(method, request, metadata=[("token", enable(client).alice)])(client)

    return ask


def with_garbage(method: str, request: Any) -> Ask:
    def ask(client: Client) -> object:
        enable(client)
        return call(method, request, metadata=[("token", "garbage")])(client)

    return ask


def bearing(client: Client) -> object:
    metadata = [("authorization", f"Bearer {enable(client).root}")]
    return call(f"{KV}/Range", rpc.RangeRequest(key=b"a"), metadata=metadata)(client)


def snapshot_of_nobody(client: Client) -> object:
    enable(client)
    return stream(f"{MAINTENANCE}/Snapshot", SNAPSHOT, len)(client)


def password_by_hash(client: Client) -> object:
    metadata = [("token", enable(client).root)]
    request = rpc.AuthUserChangePasswordRequest(name="alice", hashedPassword=HASHED)
    client.unary(f"{AUTH}/UserChangePassword", request, metadata)
    asked = (rpc.AuthenticateRequest(name="alice", password=password) for password in (NEW_PASSWORD, ""))
    return [call(f"{AUTH}/Authenticate", request)(client) == "OK" for request in asked]


def stream_error(client: Client) -> object:
    enable(client)
    error = client.lines("/v3/maintenance/snapshot", {}).receive()["error"]
    error.pop("details", None)  # of the new library, and empty
    return error


def unauthenticated_header(client: Client) -> object:
    enable(client)
    return unauthenticated(client)


def inverted_permission(client: Client) -> object:
    metadata = [("token", enable(client).root)]
    client.unary(f"{AUTH}/RoleAdd", rpc.AuthRoleAddRequest(name="r"), metadata)
    request = rpc.AuthRoleGrantPermissionRequest(name="r", perm=Permission(key=b"b", range_end=b"a"))
    return call(f"{AUTH}/RoleGrantPermission", request, metadata=metadata)(client)


def watch_of_nobody(client: Client) -> object:
    enable(client)
    watching = client.stream("/etcdserverpb.Watch/Watch")
    watching.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"a", watch_id=5)))
    answer = watching.receive()
    return answer.created, answer.canceled, answer.watch_id, answer.cancel_reason


EMPTY = "INVALID_ARGUMENT", "etcdserver: user name is empty"
PLAIN_EMPTY = "UNKNOWN", "auth: user name is empty"
DENIED = "PERMISSION_DENIED", "etcdserver: permission denied"
PLAIN_DENIED = "UNKNOWN", "auth: permission denied"
INVALID = "UNAUTHENTICATED", "etcdserver: invalid auth token"
HEADER = "etcdserver: invalid auth token"
WATCH_EMPTY = True, True, -1, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
WATCH_DENIED = True, True, 5, "rpc error: code = PermissionDenied desc = etcdserver: permission denied"

AUTH_ROWS = (
    Row("Defragment of nobody", as_nobody(f"{MAINTENANCE}/Defragment", rpc.DefragmentRequest()),
        PLAIN_EMPTY, PLAIN_EMPTY, EMPTY),
    Row("Defragment of a user", as_alice(f"{MAINTENANCE}/Defragment", rpc.DefragmentRequest()),
        PLAIN_DENIED, PLAIN_DENIED, DENIED),
    Row("Defragment with no token", with_garbage(f"{MAINTENANCE}/Defragment", rpc.DefragmentRequest()),
        *[("UNKNOWN", "auth: invalid auth token")] * 2, INVALID),
    Row("Hash of nobody", as_nobody(f"{MAINTENANCE}/Hash", rpc.HashRequest()), PLAIN_EMPTY, PLAIN_EMPTY, EMPTY),
    Row("HashKV of a user", as_alice(f"{MAINTENANCE}/HashKV", rpc.HashKVRequest()), PLAIN_DENIED, PLAIN_DENIED, DENIED),
    Row("Snapshot of nobody", snapshot_of_nobody, PLAIN_EMPTY, PLAIN_EMPTY, EMPTY),
    same("MoveLeader of nobody", as_nobody(f"{MAINTENANCE}/MoveLeader", rpc.MoveLeaderRequest()), EMPTY,
         of_3_5_1=("FAILED_PRECONDITION", "etcdserver: bad leader transferee")),
    same("Status of nobody", as_nobody(f"{MAINTENANCE}/Status", rpc.StatusRequest()), EMPTY, of_3_5_1="OK"),
    Row("Status of a user", as_alice(f"{MAINTENANCE}/Status", rpc.StatusRequest()), DENIED, "OK", "OK"),
    same("alarms for nobody", as_nobody(f"{MAINTENANCE}/Alarm", rpc.AlarmRequest()), EMPTY, of_3_5_1="OK"),
    same("members for nobody", as_nobody("/etcdserverpb.Cluster/MemberList", rpc.MemberListRequest()), EMPTY,
         of_3_5_1="OK"),
    same("a lease for nobody", as_nobody("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest(TTL=60)), EMPTY,
         of_3_5_1="OK"),
    same("Compact of nobody", as_nobody(f"{KV}/Compact", rpc.CompactionRequest(revision=1)), EMPTY, of_3_5_1="OK"),
    same("a watch of nobody", watch_of_nobody, WATCH_EMPTY, of_3_5_1=WATCH_DENIED),
    same("an inverted permission", inverted_permission, ("INVALID_ARGUMENT", "etcdserver: invalid auth management"),
         of_3_5_1="OK"),
    Row("Bearer", bearing, INVALID, "OK", "OK", of_3_5_1=INVALID),
    Row("a password by its hash", password_by_hash, [False, True], [True, False], [True, False]),
    Row("WWW-Authenticate", unauthenticated_header, (401, None), (401, None), (401, HEADER)),
)  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("row", AUTH_ROWS, ids=str)
def test_ours_refuses_as_that_version_does(row: Row, version: str) -> None:
    with etcd(version=version) as server, Client(Endpoint(server.host, server.port)) as client:
        assert row.ask(client) == row.expected(version)


# What a real one is not asked: it would take too much, or depend on the minute


@pytest.mark.parametrize(("version", "is_let_in"), [("3.4", True), ("3.5", False), ("3.6", False)])
def test_the_quota_looks_into_nested_txns_since_3_5(version: str, is_let_in: bool) -> None:
    nested = rpc.RequestOp(request_txn=rpc.TxnRequest(success=[put_op(b"a", bytes(200_000))]))
    request = rpc.TxnRequest(success=[nested])
    with etcd() as first:
        quota = first.store.stats().file_bytes + 100_000
    with (
        etcd(version=version, options=ServerOptions(grace_seconds=0.0, quota_bytes=quota)) as server,
        Client(Endpoint(server.host, server.port)) as client,
    ):
        full = ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded")
        assert call(f"{KV}/Txn", request)(client) == ("OK" if is_let_in else full)


@pytest.mark.parametrize(("version", "status"), [("3.4", 200), ("3.5", 200), ("3.6", 400)])
def test_the_clients_version_has_to_be_text_since_3_6(version: str, status: int) -> None:
    headers = {"Grpc-Metadata-client-api-version": "3.5\xff"}
    with etcd(version=version) as server, Client(Endpoint(server.host, server.port)) as client:
        answer = client.post("/v3/kv/range", {"key": text(b"a")}, headers)
    assert answer.status == status
    if status == 400:
        assert answer.json()["message"] == "etcdserver: invalid client api version"


@pytest.mark.parametrize(("version", "line"), [("3.4", OLD_LINE), ("3.5", OLD_LINE), ("3.6", LINE | NEW_LINE)])
def test_the_error_of_a_stream_has_a_code_since_3_6(version: str, line: dict[str, object]) -> None:
    with etcd(version=version) as server, Client(Endpoint(server.host, server.port)) as client:
        assert stream_error(client) == line


@pytest.mark.parametrize(("version", "status"), [("3.4", 408), ("3.5", 408), ("3.6", 499)])
def test_what_was_cancelled_is_no_timeout_since_3_6(version: str, status: int) -> None:
    failures = Failures(persona_of(version))
    assert {code: failures.status(code) for code in Code} == HTTP_STATUS | {Code.CANCELLED: status}
    if status == 408:
        assert HTTPStatus(status).phrase == "Request Timeout"


@pytest.mark.parametrize(("version", "told"), [("3.5", "3.5.0"), ("3.6", "3.6")])
def test_the_cluster_version_of_a_downgrade(version: str, told: str) -> None:
    below = {"3.5": "3.4.0", "3.6": "3.5.0"}[version]
    with etcd(version=version) as server, Client(Endpoint(server.host, server.port)) as client:
        assert downgrade(rpc.DowngradeRequest.VALIDATE, below)(client) == told
        assert downgrade(rpc.DowngradeRequest.ENABLE, below)(client) == told
        assert downgrade(rpc.DowngradeRequest.CANCEL)(client) == told


@pytest.mark.parametrize(("version", "told"), [("3.4", ""), ("3.5", ""), ("3.6", "3.6.0")])
def test_what_is_stored_has_a_version_since_3_6(version: str, told: str) -> None:
    with etcd(version=version) as server, Client(Endpoint(server.host, server.port)) as client:
        begun = client.stream(f"{MAINTENANCE}/Snapshot", [SNAPSHOT])
        parts = [begun.receive()]
        while parts[-1].remaining_bytes or len(parts[-1].blob) != 32:
            parts.append(begun.receive())
        status = client.unary(f"{MAINTENANCE}/Status", rpc.StatusRequest())
    assert {part.version for part in parts} == {told}
    assert (b"storageVersion" in b"".join(part.blob for part in parts)) is bool(told)
    assert status.storageVersion == told


@pytest.mark.parametrize(("version", "release"), [("3.4", "3.4.45"), ("3.5", "3.5.33"), ("3.6", "3.6.14")])
def test_everything_says_the_same_release(version: str, release: str) -> None:
    with etcd(version=version) as server, Client(Endpoint(server.host, server.port)) as client:
        assert client.unary(f"{MAINTENANCE}/Status", rpc.StatusRequest()).version == release
        page = client.request("GET", "/version").json()
        assert (page["etcdserver"], page["etcdcluster"]) == (release, f"{version}.0")
        metrics = client.request("GET", "/metrics").body.decode()
    assert f'etcd_server_version{{server_version="{release}"}} 1' in metrics
    assert f'etcd_cluster_version{{cluster_version="{version}"}} 1' in metrics


# Choosing


def test_a_version_that_there_is_not_is_told_at_once() -> None:
    message = "the version is '3.7', not one of '3.4', '3.5', '3.6'"
    with pytest.raises(ValueError, match=message):
        serve(version="3.7")
    with pytest.raises(ValueError, match=message):
        ServerOptions(version="3.7")
    with pytest.raises(ValueError, match=message):
        etcd(version="3.7")
    with pytest.raises(ValueError, match=r"'3\.5\.1'"):
        persona_of("3.5.1")


def test_it_is_3_6_unless_told_otherwise() -> None:
    assert ServerOptions().version == "3.6"
    with serve() as server:
        assert server.server.node.persona is V3_6
    with serve(options=ServerOptions(version="3.4")) as server:
        assert server.server.node.persona is V3_4
    with serve(options=ServerOptions(version="3.4"), version="3.5") as server:
        assert server.server.node.persona is V3_5


def test_a_release_of_ones_own_stays() -> None:
    options = ServerOptions(identity=Identity(version="3.5.9"), version="3.5")
    with serve(options=options) as server, Client(Endpoint(server.host, server.port)) as client:
        assert client.request("GET", "/version").json()["etcdserver"] == "3.5.9"


def test_every_difference_is_one() -> None:
    for field in fields(V3_6):
        values = [getattr(persona, field.name) for persona in PERSONAS.values()]
        assert len(set(values)) > 1, field.name


# Real ones


@contextmanager
def real(folder: Path, version: str) -> Iterator[Client]:
    oracle = distro_oracle("as a real 3.5") if version == OF_3_5 else find_oracle()
    arguments = (*QUICK_ELECTION, f"--bcrypt-cost={COST}")
    with (
        running_etcd(folder, arguments, oracle=oracle) as process,
        Client(Endpoint(process.host, process.port)) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def real_3_5(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with real(tmp_path_factory.mktemp("etcd") / "data", OF_3_5) as client:
        yield client


@pytest.fixture(scope="module")
def real_3_6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client | None]:
    if find_oracle().version < (3, 6, 0):
        yield None  # only where Go is
        return
    with real(tmp_path_factory.mktemp("etcd") / "data", "3.6") as client:
        yield client


@needs_oracle
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_3_5_1_does_so_too_but_for_what_was_corrected(row: Row, real_3_5: Client) -> None:
    assert row.ask(real_3_5) == (row.v3_5 if row.of_3_5_1 is None else row.of_3_5_1)


@needs_oracle
@pytest.mark.parametrize("row", AUTH_ROWS, ids=str)
def test_3_5_1_refuses_so_too_but_for_what_was_corrected(row: Row, tmp_path: Path) -> None:
    with real(tmp_path / "etcd", OF_3_5) as client:
        assert row.ask(client) == (row.v3_5 if row.of_3_5_1 is None else row.of_3_5_1)


@needs_oracle
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_3_6_does_so_too(row: Row, real_3_6: Client | None) -> None:
    if real_3_6 is not None:
        assert row.ask(real_3_6) == (row.v3_6 if row.of_3_6_16 is None else row.of_3_6_16)


@needs_oracle
@pytest.mark.parametrize("row", AUTH_ROWS, ids=str)
def test_3_6_refuses_so_too(row: Row, tmp_path: Path) -> None:
    if find_oracle().version >= (3, 6, 0):
        with real(tmp_path / "etcd", "3.6") as client:
            assert row.ask(client) == row.v3_6


@needs_oracle
def test_the_error_of_a_stream_of_real_ones(tmp_path: Path) -> None:
    with real(tmp_path / "3.5", OF_3_5) as client:
        assert stream_error(client) == OLD_LINE
    if find_oracle().version >= (3, 6, 0):
        with real(tmp_path / "3.6", "3.6") as client:
            assert stream_error(client) == NEW_LINE


@needs_oracle
def test_the_cluster_version_of_a_downgrade_of_3_5_1(real_3_5: Client) -> None:
    assert downgrade(rpc.DowngradeRequest.VALIDATE, "3.4.0")(real_3_5) == "3.5.0"


@needs_oracle
def test_a_script_is_answered_as_by_3_5_1(tmp_path: Path) -> None:
    operations: tuple[Operation, ...] = (
        *(put(b"a"), put(b"b", b"2", prev_kv=True), get(b"a", b"c"), get(b"a", revision=99)),
        *(grant(60, 5), grant(60, 5), put(b"c", lease=5), put(b"d", lease=6), delete(b"a", prev_kv=True)),
        *(txn(put_op(b"x"), put_op(b"y")), txn(put_op(b"x"), put_op(b"x")), compact(3), compact(3)),
        *(get(b"b", revision=2), Post("/v3/kv/range", {"key": text(b"b")}), Post("/v3/kv/put", {})),
        *(Post("/v3/maintenance/status", {}), Post("/v3/maintenance/alarm", {}), Post("/v3/auth/status", {})),
    )
    options = replace(OPTIONS, version=OF_3_5, auth=AuthOptions(bcrypt_cost=COST))
    oracle = distro_oracle("as a real 3.5")
    with running_pair(tmp_path / "pair", engine="memory", options=options, oracle=oracle) as pair:
        pair.play(*operations)
