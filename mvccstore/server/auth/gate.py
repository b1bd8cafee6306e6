"""What services ask before they do something: whose call it is, and whether they may.

Invariants:

* I1. What is asked for after a change was answered is judged by the state after it; what is written is judged by the
  users and roles that are current when it is applied. So a write that comes while a change is under way waits for it;
  and one that came before is applied before it, as the writer keeps the order.
* I2. One change is under way at a time. It is written on the condition that nobody else has changed the attributes of
  the store; if somebody has, it is decided anew.
* I3. What depends on the keys of a lease is judged on the writer's thread, where no other write comes in between.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mvccstore.attributes import AttributesResult
from mvccstore.clock import Clock
from mvccstore.errors import AttributesConflictError, LeaseNotFoundError, StoreError
from mvccstore.server.auth.accounts import Accounts, Change
from mvccstore.server.auth.certificates import common_name
from mvccstore.server.auth.passwords import COST_DEFAULT
from mvccstore.server.auth.permissions import READ, WRITE, Grants
from mvccstore.server.auth.tokens import NOBODY, TTL_SECONDS_DEFAULT, Caller, new_tokens
from mvccstore.server.errors import Refusal
from mvccstore.server.messages import rpc
from mvccstore.server.transport.call import Call, Peer
from mvccstore.server.writer import UNDER_WAY_MAX, Writer
from mvccstore.store import Store
from mvccstore.types import PutRequest, Result

_log = logging.getLogger("mvccstore.server")

Check = Callable[[], None]
"""Raises if something may not be; to be called on the writer's thread, or on any other but the loop's."""


@dataclass(frozen=True, slots=True)
class AuthOptions:
    """How authentication behaves: etcd's flags."""

    token: str = "simple"
    """`--auth-token`."""
    token_ttl_seconds: float = TTL_SECONDS_DEFAULT
    """Of simple tokens."""
    bcrypt_cost: int = COST_DEFAULT
    has_certificate_names: bool = False
    """Whether a verified certificate of a client says whose its calls are: `--client-cert-auth`."""


class Judge:
    """What one caller may, as it is now. Never changes, so any thread may ask."""

    __slots__ = ("_grants", "_refusal")

    def __init__(self, refusal: Refusal | None, grants: Grants | None) -> None:
        self._refusal = refusal
        self._grants = grants

    def check(self, kind: int, key: bytes, range_end: bytes = b"") -> None:
        """Raise unless the keys may be read (`READ`) or written (`WRITE`)."""
        if self._refusal is not None:
            raise self._refusal.error()
        if self._grants is not None and not self._grants.allow(kind, key, range_end):
            raise Refusal.PERMISSION_DENIED.error()


class Gate:
    """The gate of a server. Used on the loop's thread."""

    def __init__(
        self, store: Store, writer: Writer, clock: Clock, options: AuthOptions, *, strips_bearer: bool = True
    ) -> None:
        self._store = store
        self._writer = writer
        self.accounts = Accounts(store)
        self.tokens = new_tokens(options.token, options.token_ttl_seconds, clock)
        self._has_certificate_names = options.has_certificate_names
        self._token_prefix = b"Bearer " if strips_bearer else b""
        self.is_enabled = self.accounts.is_enabled
        """Whether authentication is on: then, and only then, services have to ask."""
        self.is_changing = False
        """Whether a change is under way: then what writes has to `defer`."""
        self._deferred: deque[tuple[Call, Callable[[], bytes | None]]] = deque()

    def reload(self) -> None:
        """Go by what is stored."""
        self.accounts.reload()
        self.is_enabled = self.accounts.is_enabled

    # Whose call it is

    def caller(self, call: Call) -> Caller | None:
        """Return whose a call is; None if it does not say.

        Raises:
            RpcError: It shows a token that is none.
        """
        metadata = call.metadata
        token = metadata.get(b"token")
        if token is None:
            token = metadata.get(b"authorization")
        if token is not None:
            shown = token.removeprefix(self._token_prefix).decode("latin-1")
            found = self.tokens.find(shown, self.accounts.revision)
            if found is None:
                raise Refusal.INVALID_TOKEN.error()
            return found
        certificate = call.peer.certificate if self._has_certificate_names else None
        # What came as JSON is nobody's without a token, as etcd's gateway shows a certificate of its own.
        if certificate is None or any(name.startswith(b"grpcgateway-") for name, _ in metadata.pairs):
            return None
        return Caller(common_name(certificate), self.accounts.revision)

    def is_named(self, peer: Peer) -> bool:
        """Say whether a client shows a certificate for whose user it could be taken; JSON is then refused (etcd's rule)."""
        return (
            self.is_enabled
            and self._has_certificate_names
            and peer.certificate is not None
            and bool(common_name(peer.certificate))
        )

    def check_user(self, call: Call) -> Caller | None:
        """Raise unless a call says whose it is; return that, None if it need not say."""
        if not self.is_enabled:
            return None
        caller = self.caller(call)
        if caller is None:
            raise Refusal.EMPTY_USER.error()
        return caller

    def check_root(self, call: Call) -> None:
        """Raise unless a call is of one who may do everything."""
        if self.is_enabled:
            refusal = self._root_refusal(self.caller(call))
            if refusal is not None:
                raise refusal.error()

    def is_root(self, caller: Caller | None) -> bool:
        """Say whether this is one who may do everything, or whether all may."""
        return not self.is_enabled or self._root_refusal(caller) is None

    def _root_refusal(self, caller: Caller | None) -> Refusal | None:
        if caller is None or not caller.user:
            return Refusal.EMPTY_USER
        user = self.accounts.users.get(caller.user)
        if user is None:
            return Refusal.USER_NOT_FOUND
        return None if user.is_root else Refusal.PERMISSION_DENIED

    def judge(self, caller: Caller | None) -> Judge:
        """Return what a caller may."""
        name, revision = caller or NOBODY
        if not revision:
            return Judge(Refusal.EMPTY_USER, None)
        if revision < self.accounts.revision:
            return Judge(Refusal.OLD_AUTH_REVISION, None)
        user = self.accounts.users.get(name)
        if user is None:
            return Judge(Refusal.PERMISSION_DENIED, None)
        return Judge(None, None if user.is_root else self.accounts.grants(user))

    # What they may. All these are only to be asked while authentication is on.

    def check_range(self, call: Call, key: bytes, range_end: bytes) -> int:
        """Raise unless the keys may be read; return the revision that this was judged at, for `check_unchanged`."""
        caller = self.caller(call)
        self.judge(caller).check(READ, key, range_end)
        self.check_current(caller)
        return self.accounts.revision

    def check_current(self, caller: Caller | None) -> None:
        """Raise if what a caller has shown is of another revision, be it a later one: of what reads and no more."""
        if caller is not None:
            self.check_unchanged(caller.revision)

    def check_unchanged(self, revision: int) -> None:
        """Raise if there was a change since a revision; 0 for one at which nothing was judged."""
        if revision and revision != self.accounts.revision:
            raise Refusal.OLD_AUTH_REVISION.error()

    def check_watch(self, call: Call, key: bytes, range_end: bytes) -> None:
        """Raise unless the keys may be watched."""
        if self.is_enabled:
            self.judge(self.caller(call)).check(READ, key, range_end)

    def check_put(self, caller: Caller | None, message: rpc.PutRequest | PutRequest) -> Check | None:
        """Raise unless a put may be; return what remains to be checked when it is carried out."""
        return self._put(self.judge(caller), caller, message)

    def check_delete(self, caller: Caller | None, message: rpc.DeleteRangeRequest) -> None:
        """Raise unless a delete may be."""
        _check_delete(self.judge(caller), message)

    def check_txn(self, caller: Caller | None, message: rpc.TxnRequest) -> Check | None:
        """Raise unless all that is in a txn may be, in either branch; return as `check_put`."""
        left: list[Check] = []
        self._txn(self.judge(caller), caller, message, left)
        return (lambda: _check_all(left)) if left else None

    def _txn(self, judge: Judge, caller: Caller | None, message: rpc.TxnRequest, left: list[Check]) -> None:
        for compare in message.compare:
            judge.check(READ, compare.key, compare.range_end)
        for operation in (*message.success, *message.failure):
            match operation.WhichOneof("request"):
                case "request_range":
                    judge.check(READ, operation.request_range.key, operation.request_range.range_end)
                case "request_put":
                    check = self._put(judge, caller, operation.request_put)
                    if check is not None:
                        left.append(check)
                case "request_delete_range":
                    _check_delete(judge, operation.request_delete_range)
                case "request_txn":
                    self._txn(judge, caller, operation.request_txn, left)
                case _:
                    pass

    def _put(self, judge: Judge, caller: Caller | None, message: rpc.PutRequest | PutRequest) -> Check | None:
        judge.check(WRITE, message.key)
        if message.prev_kv:
            judge.check(READ, message.key)
        # Who could not delete all keys of a lease may not add one to it.
        return self.lease_check(caller, [message.lease], WRITE) if message.lease else None

    def keys_judge(self, caller: Caller | None) -> Judge | None:
        """Return who is to judge keys, for any thread; None if they may be read and written in any case."""
        return None if self.is_root(caller) else self.judge(caller)

    def lease_check(self, caller: Caller | None, leases: Iterable[int], kind: int) -> Check | None:
        """Return what checks that all keys of leases may be read or written; None if they may in any case."""
        judge, store = self.keys_judge(caller), self._store
        if judge is None:
            return None

        def check() -> None:
            for lease_id in leases:
                try:
                    keys = store.lease(lease_id).keys()
                except LeaseNotFoundError:
                    continue  # which is for others to tell
                for key in keys:
                    judge.check(kind, key)

        return check

    # Changes

    def defer(self, call: Call, handle: Callable[[], bytes | None]) -> None:
        """Have a call handled when the change under way is done. (I1)

        Raises:
            RpcError: Too many wait for that.
        """
        if len(self._deferred) >= UNDER_WAY_MAX:
            raise Refusal.TOO_MANY_REQUESTS.error(limit="under_way_max")
        self._deferred.append((call, handle))

    def change(
        self,
        call: Call,
        decide: Callable[[Accounts], Change | None],
        answer: Callable[[], bytes],
        count: Callable[[], None],
    ) -> bytes | None:
        """Change users or roles, and answer a call: what a handler returns.

        Args:
            call: Whose call it has to be is judged here: one who may do everything.
            decide: Decides on the change; it may be called more than once.
            answer: Encodes the answer.
            count: Counts the command.
        """
        if self.is_changing:
            self.defer(call, lambda: self.change(call, decide, answer, count))
            return None
        self.check_root(call)
        change = decide(self.accounts)
        if change is None:
            count()
            return answer()
        request = self.accounts.request(change)
        self.is_changing = True

        def done(result: Result | StoreError) -> None:
            again = False
            try:
                if isinstance(result, AttributesConflictError):
                    self.reload()  # I2
                    again = True
                elif isinstance(result, AttributesResult):
                    self._apply(change, result.version)
                    count()
                    call.reply(answer())
                else:
                    assert isinstance(result, Exception)
                    call.fail_with(result)
            except Exception as error:  # noqa: BLE001 - what waits for it must not wait for ever
                call.fail_with(error)
            self.is_changing = False
            if again:
                _handle(call, lambda: self.change(call, decide, answer, count))
            self._go_on()

        self._writer.submit(request, done)
        return None

    def _apply(self, change: Change, version: int) -> None:
        self.accounts.apply(change, version)
        self.is_enabled = self.accounts.is_enabled
        if change.is_enabled is not None:
            _log.info("enabled authentication" if change.is_enabled else "disabled authentication")
        if change.stale_user is not None:
            self.tokens.forget(change.stale_user)
        if change.is_enabled is False:
            self.tokens.clear()

    def _go_on(self) -> None:
        while self._deferred and not self.is_changing:
            _handle(*self._deferred.popleft())


def _handle(call: Call, handle: Callable[[], bytes | None]) -> None:
    if call.is_done:
        return
    try:
        answer = handle()
    except Exception as error:  # noqa: BLE001 - the client is told, and the others go on
        call.fail_with(error)
    else:
        if answer is not None:
            call.reply(answer)


def _check_delete(judge: Judge, message: rpc.DeleteRangeRequest) -> None:
    judge.check(WRITE, message.key, message.range_end)
    if message.prev_kv:
        judge.check(READ, message.key, message.range_end)


def _check_all(checks: list[Check]) -> None:
    for check in checks:
        check()
