"""Authentication in a server of ours: what waits for what, what lasts, and what costs the loop nothing."""

from __future__ import annotations

import asyncio
import datetime
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

import mvccstore
from mvccstore import Store
from mvccstore.attributes import AttributesRequest
from mvccstore.clock import SystemClock
from mvccstore.errors import CorruptError, StorageFullError
from mvccstore.server import ServerOptions, serve
from mvccstore.server.auth import gate as gate_module
from mvccstore.server.auth import passwords as passwords_module
from mvccstore.server.auth.accounts import Accounts
from mvccstore.server.auth.gate import AuthOptions
from mvccstore.server.flags import FlagError, parse
from mvccstore.server.member import Identity
from mvccstore.server.messages import auth, rpc
from mvccstore.server.node import Node, RequestLimits
from mvccstore.server.process import plan
from mvccstore.server.services.auth import Auth
from mvccstore.server.services.kv import KV
from mvccstore.server.services.lease import LeaseService
from mvccstore.server.transport.call import Metadata, Peer
from mvccstore.server.transport.status import RpcError
from mvccstore.testing import FakeClock
from tests.wire.auth_calls import (
    AUTH,
    COST,
    READ,
    READWRITE,
    auth_status,
    authenticate,
    enable,
    grant_permission,
    grant_role,
    role_add,
    role_get,
    user_add,
    user_get,
    user_list,
)
from tests.wire.client import Client, Endpoint, RpcFailure
from tests.wire.differential import Unary
from tests.wire.plain_call import PlainCall

SECONDS = 30
OPTIONS = AuthOptions(bcrypt_cost=COST)


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    return open_store()


# On the loop, without a wire


class Asked(PlainCall):
    """A call as far as the services need one; `answered` is done when it has ended."""

    def __init__(self, token: bytes = b"", certificate: bytes | None = None, *more: tuple[bytes, bytes]) -> None:
        self.answered: asyncio.Future[bytes | str] = asyncio.get_running_loop().create_future()
        metadata = Metadata(((b"token", token), *more) if token else more)
        super().__init__(metadata, Peer("here", certificate))

    def reply(self, message: bytes) -> None:
        self.is_done = True
        self.answered.set_result(message)

    def fail_with(self, error: Exception) -> None:
        self.is_done = True
        self.answered.set_result(str(error))

    fail = fail_with

    def run(self, work: Any, _cost: int = 0) -> None:
        asyncio.ensure_future(work).add_done_callback(self._take)

    def _take(self, task: asyncio.Task[bytes | None]) -> None:
        error = task.exception()
        if error is not None:
            self.fail(RpcError(error.code, error.message) if isinstance(error, RpcError) else error)  # type: ignore[arg-type]
        elif (answer := task.result()) is not None:
            self.reply(answer)


class Services:
    """The services of a node, and calls of them."""

    def __init__(self, store: Store, options: AuthOptions = OPTIONS) -> None:
        self.node = Node(store, Identity(), RequestLimits(), auth=options, clock=SystemClock())
        methods = [*Auth(self.node).methods(), *KV(self.node).methods(), *LeaseService(self.node).methods()]
        self._handlers = {method.path: (method.decode, method.handler) for method in methods}

    def begin(self, operation: Unary, token: bytes = b"", *more: Any) -> Asked:
        """Begin a call."""
        asked = Asked(token, *more)
        call: Any = asked
        decode, handler = self._handlers[operation.method]
        request: Any = operation.request
        assert handler is not None
        try:
            answer = handler(call, decode(request.SerializeToString()))
        except RpcError as error:
            asked.fail(error)
        else:
            if answer is not None:
                asked.reply(answer)
        return asked

    async def ask(self, operation: Unary, token: bytes = b"", *more: Any) -> bytes | str:
        """Have a call answered; a refusal is text."""
        return await asyncio.wait_for(self.begin(operation, token, *more).answered, SECONDS)

    async def enable(self) -> bytes:
        """Turn authentication on; return root's token."""
        for operation in (user_add("root", "pw"), grant_role("root", "root"), enable()):
            assert isinstance(await self.ask(operation), bytes)
        return await self.token("root", "pw")

    async def token(self, name: str, word: str) -> bytes:
        answer = await self.ask(authenticate(name, word))
        assert isinstance(answer, bytes), answer
        return rpc.AuthenticateResponse.FromString(answer).token.encode()


def put(key: bytes, **options: Any) -> Unary:
    return Unary("/etcdserverpb.KV/Put", rpc.PutRequest(key=key, value=b"v", **options))


def delete(key: bytes) -> Unary:
    return Unary("/etcdserverpb.KV/DeleteRange", rpc.DeleteRangeRequest(key=key))


def txn_of(key: bytes) -> Unary:
    success = [rpc.RequestOp(request_put=rpc.PutRequest(key=key))]
    return Unary("/etcdserverpb.KV/Txn", rpc.TxnRequest(success=success))


def revoke(lease_id: int) -> Unary:
    return Unary("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease_id))


def user_delete(name: str) -> Unary:
    return Unary(f"{AUTH}/UserDelete", rpc.AuthUserDeleteRequest(name=name))


async def with_bob(services: Services) -> tuple[bytes, bytes]:
    """Add Bob, who may read and write k, and return root's token and his."""
    for operation in (user_add("bob", "b"), role_add("r"), grant_permission("r", READWRITE, b"k")):
        await services.ask(operation)
    await services.ask(grant_role("bob", "r"))
    return await services.enable(), await services.token("bob", "b")


def test_i1_what_writes_waits_for_a_change_under_way(store: Store) -> None:
    async def play() -> list[bytes | str]:
        services = Services(store)
        root, bob = await with_bob(services)
        store.grant(600, lease_id=5)
        before = services.begin(put(b"k"), bob)
        change = services.begin(user_delete("bob"), root)
        asked = (put(b"k"), delete(b"k"), txn_of(b"k"), revoke(5), user_delete("bob"))
        after = [services.begin(operation, bob) for operation in asked]
        cancelled = services.begin(put(b"k"), root)
        cancelled.reply(b"its client went")
        by_root = services.begin(put(b"last"), root)
        assert services.node.auth.is_changing
        answers = [await one.answered for one in (before, change, *after, by_root)]
        assert not services.node.auth.is_changing
        await services.node.stop()
        return answers

    answers = asyncio.run(play())
    assert [isinstance(answer, bytes) for answer in answers] == [True, True, *[False] * 5, True]
    assert {str(answer) for answer in answers[2:7]} == {"UNAUTHENTICATED: etcdserver: invalid auth token"}
    assert [kv.key for kv in store.range(mvccstore.KeyRange.all()).kvs] == [b"k", b"last"]
    assert store.revision == 3


def test_too_many_wait_for_a_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> str | bytes:
        services = Services(store)
        root = await services.enable()
        change = services.begin(role_add("r"), root)
        waiting = [services.begin(put(b"k%d" % number), root) for number in range(3)]
        refused = await services.ask(put(b"more"), root)
        await change.answered
        for one in waiting:
            assert isinstance(await one.answered, bytes)
        await services.node.stop()
        return refused

    monkeypatch.setattr(gate_module, "UNDER_WAY_MAX", 3)
    assert asyncio.run(play()) == "UNKNOWN: etcdserver: too many requests"


def test_i2_a_change_is_decided_anew_if_the_attributes_were_changed(store: Store) -> None:
    async def play() -> None:
        services = Services(store)
        for number in range(3):
            store.set_attributes({"other": b"%d" % number})
            assert isinstance(await services.ask(user_add(f"u{number}", "x")), bytes)
        # Somebody else has added this one.
        (packed,) = (data for name, data in store.attributes().items() if name.endswith("=u0"))
        store.set_attributes({"etcd/auth/user/=z": auth.User(name=b"z").SerializeToString(), "etcd/auth": b"0 9"})
        assert packed != b""
        assert await services.ask(user_add("z")) == "FAILED_PRECONDITION: etcdserver: user name already exists"
        assert services.node.auth.accounts.revision == 9
        await services.node.stop()

    asyncio.run(play())
    reloaded = Accounts(store)
    assert sorted(reloaded.users) == ["u0", "u1", "u2", "z"]


def test_what_waits_for_a_change_goes_on_though_the_users_cannot_be_read(store: Store) -> None:
    async def play() -> None:
        services = Services(store)
        await services.ask(user_add("amy", "a"))
        store.set_attributes({"etcd/auth/user/=z": b"\xff"})  # by somebody else, and no user
        change, write = services.begin(role_add("r")), services.begin(put(b"k"))
        assert "a user cannot be read" in str(await asyncio.wait_for(change.answered, SECONDS))
        assert isinstance(await asyncio.wait_for(write.answered, SECONDS), bytes)
        assert not services.node.auth.is_changing
        await services.node.stop()

    asyncio.run(play())


def test_a_change_that_cannot_be_written_did_not_happen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        services = Services(store)
        await services.ask(user_add("amy", "a"))
        full = StorageFullError("path", "no room")
        with monkeypatch.context() as patch:
            patch.setattr(Store, "submit_many", lambda _, requests: [full for _ in requests])
            patch.setattr(Store, "try_submit_many", lambda _, requests: [full for _ in requests])
            assert await services.ask(role_add("r")) == str(full)
        assert services.node.auth.accounts.roles == {}
        assert services.node.auth.accounts.revision == 2
        assert isinstance(await services.ask(role_add("r")), bytes)
        await services.node.stop()

    asyncio.run(play())


def test_i3_keys_that_are_attached_meanwhile_keep_a_lease_from_being_revoked(store: Store) -> None:
    async def play() -> list[bytes | str]:
        services = Services(store)
        root, bob = await with_bob(services)
        store.grant(600, lease_id=5)
        store.grant(600, lease_id=6)
        attach = services.begin(put(b"secret", lease=5), root)
        asked = [
            services.begin(operation, bob) for operation in (revoke(5), put(b"k", lease=5), revoke(6), revoke(404))
        ]
        answers = [await one.answered for one in (attach, *asked)]
        await services.node.stop()
        return answers

    attached, *answers = asyncio.run(play())
    assert isinstance(attached, bytes)
    assert [str(answer).partition(":")[0] for answer in answers[:2]] == ["PERMISSION_DENIED"] * 2
    assert isinstance(answers[2], bytes)
    assert answers[3] == str(mvccstore.LeaseNotFoundError(404))
    assert store.get(b"secret") is not None
    assert store.get(b"k") is None


def certificate(*names: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(day).not_valid_after(day + datetime.timedelta(1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_certificate_says_whose_call_it_is(store: Store) -> None:
    async def play() -> None:
        services = Services(store, AuthOptions(bcrypt_cost=COST, has_certificate_names=True))
        root, bob = await with_bob(services)
        await services.ask(user_add("guest", options=auth.UserAddOptions(no_password=True)), root)
        bobs, roots, nones = certificate("x", "bob"), certificate("root"), certificate()
        assert isinstance(await services.ask(put(b"k"), b"", bobs), bytes)
        assert "permission denied" in str(await services.ask(put(b"z"), b"", bobs))
        assert isinstance(await services.ask(put(b"z"), b"", roots), bytes)
        assert isinstance(await services.ask(user_list(), b"", roots), bytes)
        assert isinstance(await services.ask(user_get("guest"), b"", certificate("guest")), bytes)
        assert "permission denied" in str(await services.ask(put(b"k"), b"", nones))
        assert "user name is empty" in str(await services.ask(user_list(), b"", nones))
        assert "permission denied" in str(await services.ask(put(b"k"), b"", certificate("none")))
        # A token says more, even a bad one; and a gateway's certificate says nothing.
        assert isinstance(await services.ask(put(b"z"), root, bobs), bytes)
        assert "permission denied" in str(await services.ask(put(b"z"), bob, roots))
        assert "invalid auth token" in str(await services.ask(put(b"z"), b"no.1", roots))
        through = (b"grpcgateway-accept", b"*/*")
        assert "user name is empty" in str(await services.ask(put(b"z"), b"", roots, through))
        await services.node.stop()

        services = Services(store)  # where certificates do not say it
        assert "user name is empty" in str(await services.ask(put(b"z"), b"", roots))
        await services.node.stop()

    asyncio.run(play())


# Passwords


def test_passwords_are_hashed_beside_the_loop(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go = threading.Event()
    loops: list[int] = []

    def slow(password: bytes, hashed: bytes) -> bool:
        assert may_go.wait(SECONDS)
        loops.append(threading.get_ident())
        return password == b"pw" and hashed != b""

    async def play() -> None:
        services = Services(store)
        await services.enable()
        monkeypatch.setattr(passwords_module, "_check", slow)
        asked = [services.begin(authenticate("root", word)) for word in ("pw", "no", "pw", "no")]
        assert isinstance(await services.ask(user_get("root"), b""), str)  # the loop goes on
        assert not any(one.is_done for one in asked)
        assert "too many requests" in str(await services.ask(authenticate("root", "pw")))
        may_go.set()
        assert [isinstance(await one.answered, bytes) for one in asked] == [True, False] * 2
        await services.node.stop()

    with monkeypatch.context() as patch:
        patch.setattr(passwords_module, "WAITING_MAX", 4)
        asyncio.run(play())
    assert threading.get_ident() not in loops
    assert len(loops) == 4


def test_who_waits_for_a_hash_keeps_little_or_is_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may ask for a token, a thousand at once, by names and with passwords as large as a request."""
    may_go = threading.Event()

    def slow(*_: object) -> bytes:
        assert may_go.wait(SECONDS)
        return b"hash"

    async def play() -> None:
        services = Services(store)
        root = await services.enable()
        monkeypatch.setattr(passwords_module, "_check", slow)
        monkeypatch.setattr(passwords_module, "_hash", slow)
        asking = authenticate("\U0001f600" + "n" * 100_000, "p" * 100_000)
        tracemalloc.start()
        asked = [services.begin(asking) for _ in range(20)]
        await asyncio.sleep(0)
        assert tracemalloc.get_traced_memory()[0] < 200_000
        tracemalloc.stop()
        adding = services.begin(user_add("n" * 100_000, "p"), root)
        changed = rpc.AuthUserChangePasswordRequest(name="n" * 100_000, password="p")
        changing = services.begin(Unary(f"{AUTH}/UserChangePassword", changed), root)
        await asyncio.sleep(0)
        assert services.node._bytes_under_way == 200_000
        may_go.set()
        assert isinstance(await adding.answered, bytes)
        assert isinstance(await changing.answered, bytes)
        assert ["authentication failed" in str(await one.answered) for one in asked] == [True] * 20
        assert services.node._bytes_under_way == 0
        await services.node.stop()

    asyncio.run(play())


def test_who_asks_for_a_token_cannot_tell_by_the_time_which_names_there_are(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = passwords_module._check
    costs: list[bytes] = []

    def noting(password: bytes, hashed: bytes) -> bool:
        costs.append(hashed[:7])
        assert len(hashed) == 60
        return check(password, hashed)

    async def play() -> None:
        services = Services(store)
        await services.enable()
        monkeypatch.setattr(passwords_module, "_check", noting)
        said = [await services.ask(authenticate(name, "wrong")) for name in ("root", "nobody", "")]
        assert said == [said[0]] * 3
        assert "authentication failed" in str(said[0])
        await services.node.stop()

    asyncio.run(play())
    assert costs == [b"$2a$%02d$" % COST] * 3


def test_a_password_that_is_changed_while_it_is_checked_is_checked_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = passwords_module._check
    begun, may_go = threading.Event(), threading.Event()

    def slow(password: bytes, hashed: bytes) -> bool:
        begun.set()
        assert may_go.wait(SECONDS)
        return check(password, hashed)

    async def play() -> bytes | str:
        services = Services(store)
        root = await services.enable()
        await services.ask(user_add("bob", "old"), root)
        monkeypatch.setattr(passwords_module, "_check", slow)
        asked = services.begin(authenticate("bob", "old"))
        assert await asyncio.to_thread(begun.wait, SECONDS)
        changed = rpc.AuthUserChangePasswordRequest(name="bob", password="new")
        assert isinstance(await services.ask(Unary(f"{AUTH}/UserChangePassword", changed), root), bytes)
        may_go.set()
        answer = await asked.answered
        await services.node.stop()
        return answer

    assert "authentication failed" in str(asyncio.run(play()))


@pytest.mark.parametrize(("cost", "expected"), [(4, b"$2a$04$"), (5, b"$2a$05$"), (3, b"$2a$10$"), (32, b"$2a$10$")])
def test_the_cost_of_a_hash(cost: int, expected: bytes) -> None:
    hashed = asyncio.run(_hashed(cost))
    assert hashed.startswith(expected)
    assert len(hashed) == 60


async def _hashed(cost: int) -> bytes:
    passwords = passwords_module.Passwords(cost)
    try:
        return await passwords.hashed("pw")
    finally:
        passwords.close()


# What lasts


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def client_of(server: Any) -> Client:
    return Client(Endpoint(server.host, server.port))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.mvcc"


def call(client: Client, operation: Unary, token: str = "") -> Any:
    return client.unary(operation.method, operation.request, [("token", token)] if token else ())  # type: ignore[arg-type]


def setup(client: Client) -> None:
    for operation in (
        *(user_add("root", "pw"), grant_role("root", "root"), user_add("bob", "b"), user_add("n" * 400, "x")),
        *(
            role_add("r"),
            role_add("ü" * 300),
            grant_permission("r", READ, b"a", b"c"),
            grant_role("bob", "r"),
            enable(),
        ),
    ):
        call(client, operation)


def test_users_and_roles_outlast_a_restart_and_simple_tokens_do_not(file: Path) -> None:
    options = ServerOptions(auth=OPTIONS, grace_seconds=0.0)
    with mvccstore.open(file) as store:
        with serve(store, options=options) as server, client_of(server) as client:
            setup(client)
            token = call(client, authenticate("root", "pw")).token
            before = call(client, auth_status(), token)
            assert (before.enabled, before.authRevision) == (True, 9)
        assert store.revision == 1  # none of it is the user's data
        assert store.check() == []
    with mvccstore.open(file) as store, serve(store, options=options) as server, client_of(server) as client:
        with pytest.raises(RpcFailure, match="user name is empty"):
            call(client, put(b"a"))
        with pytest.raises(RpcFailure, match="invalid auth token"):
            call(client, auth_status(), token)
        token = call(client, authenticate("root", "pw")).token
        assert call(client, auth_status(), token).authRevision == 9
        assert list(call(client, user_list(), token).users) == ["bob", "n" * 400, "root"]
        assert list(call(client, user_get("bob"), token).roles) == ["r"]
        assert [row.range_end for row in call(client, role_get("r"), token).perm] == [b"c"]
        assert list(call(client, role_get("ü" * 300), token).perm) == []
        assert call(client, authenticate("bob", "b")).token
        assert store.check() == []


def test_signed_tokens_outlast_a_restart(file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret")
    token = f"jwt,sign-method=HS256,priv-key={secret}"
    options = ServerOptions(auth=AuthOptions(token, bcrypt_cost=COST), grace_seconds=0.0)
    with mvccstore.open(file) as store:
        with serve(store, options=options) as server, client_of(server) as client:
            setup(client)
            token = call(client, authenticate("root", "pw")).token
        with serve(store, options=options) as server, client_of(server) as client:
            assert call(client, put(b"a"), token).header.revision == 2
            call(client, role_add("s"), token)
            with pytest.raises(RpcFailure, match="revision of auth store is old"):
                call(client, put(b"a"), token)


def test_a_token_ends_by_the_clock_of_the_server(clock: FakeClock) -> None:
    options = ServerOptions(auth=AuthOptions(bcrypt_cost=COST, token_ttl_seconds=60), grace_seconds=0.0)
    with (
        mvccstore.open(engine="memory", clock=clock) as store,
        serve(store, options=options, clock=clock) as server,
        client_of(server) as client,
    ):
        setup(client)
        token = call(client, authenticate("root", "pw")).token
        for _ in range(3):
            clock.advance(59)
            assert call(client, put(b"a"), token).header.revision
        clock.advance(61)
        with pytest.raises(RpcFailure, match="invalid auth token"):
            call(client, put(b"a"), token)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("etcd/auth", b"yes"),
        ("etcd/auth", b"1"),
        ("etcd/auth/user/=x", b"\xff"),
        ("etcd/auth/role/=x", b"\x0a\x01\xff"),
    ],
)
def test_users_that_cannot_be_read_are_damage(store: Store, name: str, value: bytes) -> None:
    store.set_attributes({name: value})
    with pytest.raises(CorruptError):
        asyncio.run(_open(store))
    store.set_attributes({name: None})


async def _open(store: Store) -> None:
    Services(store)


def test_a_store_whose_raft_note_moves_on_still_takes_changes(store: Store) -> None:
    async def play() -> None:
        services = Services(store)
        for number in range(20):
            services.node.writer.submit(AttributesRequest((("noise", b"%d" % number),)), lambda _: None)
            assert isinstance(await services.ask(role_add(f"r{number}")), bytes)
        await services.node.stop()

    asyncio.run(play())
    assert len(Accounts(store).roles) == 20


# The command line


def test_flags(tmp_path: Path) -> None:
    assert plan(parse([], {})).options.auth == AuthOptions("simple", 300, 10)
    chosen = plan(parse(["--auth-token-ttl=60", "--bcrypt-cost=5", "--auth-token="], {})).options.auth
    assert chosen == AuthOptions("", 60, 5)
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret")
    token = f"jwt,sign-method=HS256,priv-key={secret},ttl=1m"
    assert plan(parse(["--auth-token", token], {})).options.auth.token == token
    for wrong in ("nonsense", "jwt", "jwt,sign-method=RS256"):
        with pytest.raises(FlagError, match="--auth-token"):
            plan(parse(["--auth-token", wrong], {}))


# Beside what tests do to a server


def test_a_server_that_is_rewound_has_the_users_of_then() -> None:
    with mvccstore.testing.etcd(options=ServerOptions(auth=OPTIONS, grace_seconds=0.0)) as server:
        with Client(Endpoint(server.host, server.port)) as client:
            here = server.mark()
            setup(client)
            token = call(client, authenticate("bob", "b")).token
            on = server.mark()
            with pytest.raises(RpcFailure, match="user name is empty"):
                call(client, put(b"a"))
            server.rewind(here)
            assert call(client, put(b"a")).header.revision == 2
            assert list(call(client, user_list()).users) == []
            server.rewind(here)
            setup(client)
            assert call(client, authenticate("bob", "b")).token != token
        assert on != here
