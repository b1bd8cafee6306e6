"""What clients are told: etcd's errors, word for word, as they compare the text."""

from __future__ import annotations

from enum import Enum

from mvccstore.errors import (
    ClosedError,
    CompactedError,
    DuplicateKeyError,
    FutureRevisionError,
    KeyNotFoundError,
    LeaseExistsError,
    LeaseNotFoundError,
    LimitError,
    StorageFullError,
    TxnTooLargeError,
)
from mvccstore.server.transport.status import Code, RpcError


class Refusal(Enum):
    """etcd's errors. `raise Refusal.EMPTY_KEY.error()`."""

    EMPTY_KEY = Code.INVALID_ARGUMENT, "etcdserver: key is not provided"
    KEY_NOT_FOUND = Code.INVALID_ARGUMENT, "etcdserver: key not found"
    VALUE_PROVIDED = Code.INVALID_ARGUMENT, "etcdserver: value is provided"
    LEASE_PROVIDED = Code.INVALID_ARGUMENT, "etcdserver: lease is provided"
    TOO_MANY_OPS = Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"
    DUPLICATE_KEY = Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"
    INVALID_SORT = Code.INVALID_ARGUMENT, "etcdserver: invalid sort option"
    INVALID_CLIENT_API_VERSION = Code.INVALID_ARGUMENT, "etcdserver: invalid client api version"
    COMPACTED = Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"
    FUTURE_REVISION = Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"
    NO_SPACE = Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"
    LEASE_NOT_FOUND = Code.NOT_FOUND, "etcdserver: requested lease not found"
    LEASE_EXISTS = Code.FAILED_PRECONDITION, "etcdserver: lease already exists"
    LEASE_TTL_TOO_LARGE = Code.OUT_OF_RANGE, "etcdserver: too large lease TTL"
    WATCH_CANCELED = Code.CANCELLED, "etcdserver: watch canceled"
    MEMBER_EXISTS = Code.FAILED_PRECONDITION, "etcdserver: member ID already exist"
    PEER_URL_EXISTS = Code.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists"
    NOT_LEARNER = Code.FAILED_PRECONDITION, "etcdserver: can only promote a learner member"
    LEARNER_NOT_READY = (
        Code.FAILED_PRECONDITION,
        "etcdserver: can only promote a learner member which is in sync with leader",
    )
    TOO_MANY_LEARNERS = Code.FAILED_PRECONDITION, "etcdserver: too many learner members in cluster"
    # Not FAILED_PRECONDITION: etcd maps this one through its client's error type.
    NOT_ENOUGH_STARTED = Code.UNKNOWN, "etcdserver: re-configuration failed due to not enough started members"
    BAD_MEMBER_URLS = Code.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid"
    MEMBER_NOT_FOUND = Code.NOT_FOUND, "etcdserver: member not found"
    REQUEST_TOO_LARGE = Code.INVALID_ARGUMENT, "etcdserver: request is too large"
    TOO_MANY_REQUESTS = Code.UNKNOWN, "etcdserver: too many requests"  # as above
    NO_LEADER = Code.UNAVAILABLE, "etcdserver: no leader"
    STOPPED = Code.UNAVAILABLE, "etcdserver: server stopped"
    NOT_LEADER = Code.FAILED_PRECONDITION, "etcdserver: not leader"
    BAD_LEADER_TRANSFEREE = Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee"
    CORRUPT = Code.DATA_LOSS, "etcdserver: corrupt cluster"
    WRONG_DOWNGRADE_FORMAT = Code.INVALID_ARGUMENT, "etcdserver: wrong downgrade target version format"
    INVALID_DOWNGRADE_TARGET = Code.INVALID_ARGUMENT, "etcdserver: invalid downgrade target version"
    DOWNGRADE_IN_PROGRESS = Code.FAILED_PRECONDITION, "etcdserver: cluster has a downgrade job in progress"
    NO_DOWNGRADE = Code.FAILED_PRECONDITION, "etcdserver: no inflight downgrade job"
    UNKNOWN_METHOD = Code.UNKNOWN, "etcdserver: unknown method"
    AUTH_NOT_ENABLED = Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled"
    ROOT_USER_MISSING = Code.FAILED_PRECONDITION, "etcdserver: root user does not exist"
    ROOT_ROLE_MISSING = Code.FAILED_PRECONDITION, "etcdserver: root user does not have root role"
    EMPTY_USER = Code.INVALID_ARGUMENT, "etcdserver: user name is empty"
    USER_EXISTS = Code.FAILED_PRECONDITION, "etcdserver: user name already exists"
    USER_NOT_FOUND = Code.FAILED_PRECONDITION, "etcdserver: user name not found"
    EMPTY_ROLE = Code.INVALID_ARGUMENT, "etcdserver: role name is empty"
    ROLE_EXISTS = Code.FAILED_PRECONDITION, "etcdserver: role name already exists"
    ROLE_NOT_FOUND = Code.FAILED_PRECONDITION, "etcdserver: role name not found"
    ROLE_NOT_GRANTED = Code.FAILED_PRECONDITION, "etcdserver: role is not granted to the user"
    PERMISSION_NOT_GIVEN = Code.INVALID_ARGUMENT, "etcdserver: permission not given"
    PERMISSION_NOT_GRANTED = Code.FAILED_PRECONDITION, "etcdserver: permission is not granted to the role"
    PERMISSION_DENIED = Code.PERMISSION_DENIED, "etcdserver: permission denied"
    AUTH_FAILED = Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password"
    # Go's text as it is: nothing maps this one.
    NO_PASSWORD_USER = Code.UNKNOWN, "auth: authentication failed, password was given for no password user"
    INVALID_AUTH_MANAGEMENT = Code.INVALID_ARGUMENT, "etcdserver: invalid auth management"
    OLD_AUTH_REVISION = Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old"
    INVALID_TOKEN = Code.UNAUTHENTICATED, "etcdserver: invalid auth token"

    def error(self, limit: str | None = None) -> RpcError:
        """Return it to be raised; `limit` is the one that was passed, if it is one."""
        code, message = self.value
        return RpcError(code, message, limit)


_MEANINGS: dict[type[Exception], Refusal] = {
    CompactedError: Refusal.COMPACTED,
    FutureRevisionError: Refusal.FUTURE_REVISION,
    DuplicateKeyError: Refusal.DUPLICATE_KEY,
    TxnTooLargeError: Refusal.TOO_MANY_OPS,
    KeyNotFoundError: Refusal.KEY_NOT_FOUND,
    LeaseNotFoundError: Refusal.LEASE_NOT_FOUND,
    LeaseExistsError: Refusal.LEASE_EXISTS,
    StorageFullError: Refusal.NO_SPACE,
    ClosedError: Refusal.STOPPED,
}


_LIMITS = {Refusal.TOO_MANY_OPS: "max_txn_ops"}


def translate(error: Exception) -> RpcError | None:
    """Return what a store's error is to a client; None if it is no error of the request."""
    refusal = _MEANINGS.get(type(error))
    if refusal is not None:
        return refusal.error(_LIMITS.get(refusal))
    if isinstance(error, LimitError):
        return Refusal.REQUEST_TOO_LARGE.error("max_request_bytes")
    return None
