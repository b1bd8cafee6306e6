# The types of package `etcdserverpb`.
# Made by `make messages` from proto/mvccstore_rpc.proto; change that instead.

from collections.abc import Iterable
from typing import ClassVar, Final

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer, RepeatedScalarFieldContainer
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from mvccstore.server.messages.auth import Permission, UserAddOptions
from mvccstore.server.messages.kv import Event, KeyValue

AlarmType: Final[EnumTypeWrapper]
NONE: Final[int]
NOSPACE: Final[int]
CORRUPT: Final[int]

class ResponseHeader(Message):
    cluster_id: int
    member_id: int
    revision: int
    raft_term: int
    def __init__(
        self,
        *,
        cluster_id: int = ...,
        member_id: int = ...,
        revision: int = ...,
        raft_term: int = ...,
    ) -> None: ...

class RangeRequest(Message):
    SortOrder: ClassVar[EnumTypeWrapper]
    NONE: ClassVar[int]
    ASCEND: ClassVar[int]
    DESCEND: ClassVar[int]
    SortTarget: ClassVar[EnumTypeWrapper]
    KEY: ClassVar[int]
    VERSION: ClassVar[int]
    CREATE: ClassVar[int]
    MOD: ClassVar[int]
    VALUE: ClassVar[int]
    key: bytes
    range_end: bytes
    limit: int
    revision: int
    sort_order: int
    sort_target: int
    serializable: bool
    keys_only: bool
    count_only: bool
    min_mod_revision: int
    max_mod_revision: int
    min_create_revision: int
    max_create_revision: int
    def __init__(
        self,
        *,
        key: bytes = ...,
        range_end: bytes = ...,
        limit: int = ...,
        revision: int = ...,
        sort_order: int = ...,
        sort_target: int = ...,
        serializable: bool = ...,
        keys_only: bool = ...,
        count_only: bool = ...,
        min_mod_revision: int = ...,
        max_mod_revision: int = ...,
        min_create_revision: int = ...,
        max_create_revision: int = ...,
    ) -> None: ...

class RangeResponse(Message):
    more: bool
    count: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        kvs: Iterable[KeyValue] = ...,
        more: bool = ...,
        count: int = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def kvs(self) -> RepeatedCompositeFieldContainer[KeyValue]: ...

class RangeStreamResponse(Message):
    def __init__(
        self,
        *,
        range_response: RangeResponse | None = ...,
    ) -> None: ...
    @property
    def range_response(self) -> RangeResponse: ...

class PutRequest(Message):
    key: bytes
    value: bytes
    lease: int
    prev_kv: bool
    ignore_value: bool
    ignore_lease: bool
    def __init__(
        self,
        *,
        key: bytes = ...,
        value: bytes = ...,
        lease: int = ...,
        prev_kv: bool = ...,
        ignore_value: bool = ...,
        ignore_lease: bool = ...,
    ) -> None: ...

class PutResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        prev_kv: KeyValue | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def prev_kv(self) -> KeyValue: ...

class DeleteRangeRequest(Message):
    key: bytes
    range_end: bytes
    prev_kv: bool
    def __init__(
        self,
        *,
        key: bytes = ...,
        range_end: bytes = ...,
        prev_kv: bool = ...,
    ) -> None: ...

class DeleteRangeResponse(Message):
    deleted: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        deleted: int = ...,
        prev_kvs: Iterable[KeyValue] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def prev_kvs(self) -> RepeatedCompositeFieldContainer[KeyValue]: ...

class RequestOp(Message):
    def __init__(
        self,
        *,
        request_range: RangeRequest | None = ...,
        request_put: PutRequest | None = ...,
        request_delete_range: DeleteRangeRequest | None = ...,
        request_txn: TxnRequest | None = ...,
    ) -> None: ...
    @property
    def request_range(self) -> RangeRequest: ...
    @property
    def request_put(self) -> PutRequest: ...
    @property
    def request_delete_range(self) -> DeleteRangeRequest: ...
    @property
    def request_txn(self) -> TxnRequest: ...

class ResponseOp(Message):
    def __init__(
        self,
        *,
        response_range: RangeResponse | None = ...,
        response_put: PutResponse | None = ...,
        response_delete_range: DeleteRangeResponse | None = ...,
        response_txn: TxnResponse | None = ...,
    ) -> None: ...
    @property
    def response_range(self) -> RangeResponse: ...
    @property
    def response_put(self) -> PutResponse: ...
    @property
    def response_delete_range(self) -> DeleteRangeResponse: ...
    @property
    def response_txn(self) -> TxnResponse: ...

class Compare(Message):
    CompareResult: ClassVar[EnumTypeWrapper]
    EQUAL: ClassVar[int]
    GREATER: ClassVar[int]
    LESS: ClassVar[int]
    NOT_EQUAL: ClassVar[int]
    CompareTarget: ClassVar[EnumTypeWrapper]
    VERSION: ClassVar[int]
    CREATE: ClassVar[int]
    MOD: ClassVar[int]
    VALUE: ClassVar[int]
    LEASE: ClassVar[int]
    result: int
    target: int
    key: bytes
    version: int
    create_revision: int
    mod_revision: int
    value: bytes
    lease: int
    range_end: bytes
    def __init__(
        self,
        *,
        result: int = ...,
        target: int = ...,
        key: bytes = ...,
        version: int = ...,
        create_revision: int = ...,
        mod_revision: int = ...,
        value: bytes = ...,
        lease: int = ...,
        range_end: bytes = ...,
    ) -> None: ...

class TxnRequest(Message):
    def __init__(
        self,
        *,
        compare: Iterable[Compare] = ...,
        success: Iterable[RequestOp] = ...,
        failure: Iterable[RequestOp] = ...,
    ) -> None: ...
    @property
    def compare(self) -> RepeatedCompositeFieldContainer[Compare]: ...
    @property
    def success(self) -> RepeatedCompositeFieldContainer[RequestOp]: ...
    @property
    def failure(self) -> RepeatedCompositeFieldContainer[RequestOp]: ...

class TxnResponse(Message):
    succeeded: bool
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        succeeded: bool = ...,
        responses: Iterable[ResponseOp] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def responses(self) -> RepeatedCompositeFieldContainer[ResponseOp]: ...

class CompactionRequest(Message):
    revision: int
    physical: bool
    def __init__(
        self,
        *,
        revision: int = ...,
        physical: bool = ...,
    ) -> None: ...

class CompactionResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class WatchRequest(Message):
    def __init__(
        self,
        *,
        create_request: WatchCreateRequest | None = ...,
        cancel_request: WatchCancelRequest | None = ...,
        progress_request: WatchProgressRequest | None = ...,
    ) -> None: ...
    @property
    def create_request(self) -> WatchCreateRequest: ...
    @property
    def cancel_request(self) -> WatchCancelRequest: ...
    @property
    def progress_request(self) -> WatchProgressRequest: ...

class WatchCreateRequest(Message):
    FilterType: ClassVar[EnumTypeWrapper]
    NOPUT: ClassVar[int]
    NODELETE: ClassVar[int]
    key: bytes
    range_end: bytes
    start_revision: int
    progress_notify: bool
    prev_kv: bool
    watch_id: int
    fragment: bool
    def __init__(
        self,
        *,
        key: bytes = ...,
        range_end: bytes = ...,
        start_revision: int = ...,
        progress_notify: bool = ...,
        filters: Iterable[int] = ...,
        prev_kv: bool = ...,
        watch_id: int = ...,
        fragment: bool = ...,
    ) -> None: ...
    @property
    def filters(self) -> RepeatedScalarFieldContainer[int]: ...

class WatchCancelRequest(Message):
    watch_id: int
    def __init__(
        self,
        *,
        watch_id: int = ...,
    ) -> None: ...

class WatchProgressRequest(Message):
    def __init__(self) -> None: ...

class WatchResponse(Message):
    watch_id: int
    created: bool
    canceled: bool
    compact_revision: int
    cancel_reason: str
    fragment: bool
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        watch_id: int = ...,
        created: bool = ...,
        canceled: bool = ...,
        compact_revision: int = ...,
        cancel_reason: str = ...,
        fragment: bool = ...,
        events: Iterable[Event] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def events(self) -> RepeatedCompositeFieldContainer[Event]: ...

class LeaseGrantRequest(Message):
    TTL: int
    ID: int
    def __init__(
        self,
        *,
        TTL: int = ...,
        ID: int = ...,
    ) -> None: ...

class LeaseGrantResponse(Message):
    ID: int
    TTL: int
    error: str
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        ID: int = ...,
        TTL: int = ...,
        error: str = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class LeaseRevokeRequest(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int = ...,
    ) -> None: ...

class LeaseRevokeResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class LeaseCheckpoint(Message):
    ID: int
    remaining_TTL: int
    def __init__(
        self,
        *,
        ID: int = ...,
        remaining_TTL: int = ...,
    ) -> None: ...

class LeaseCheckpointRequest(Message):
    def __init__(
        self,
        *,
        checkpoints: Iterable[LeaseCheckpoint] = ...,
    ) -> None: ...
    @property
    def checkpoints(self) -> RepeatedCompositeFieldContainer[LeaseCheckpoint]: ...

class LeaseCheckpointResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class LeaseKeepAliveRequest(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int = ...,
    ) -> None: ...

class LeaseKeepAliveResponse(Message):
    ID: int
    TTL: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        ID: int = ...,
        TTL: int = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class LeaseTimeToLiveRequest(Message):
    ID: int
    keys: bool
    def __init__(
        self,
        *,
        ID: int = ...,
        keys: bool = ...,
    ) -> None: ...

class LeaseTimeToLiveResponse(Message):
    ID: int
    TTL: int
    grantedTTL: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        ID: int = ...,
        TTL: int = ...,
        grantedTTL: int = ...,
        keys: Iterable[bytes] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def keys(self) -> RepeatedScalarFieldContainer[bytes]: ...

class LeaseLeasesRequest(Message):
    def __init__(self) -> None: ...

class LeaseStatus(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int = ...,
    ) -> None: ...

class LeaseLeasesResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        leases: Iterable[LeaseStatus] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def leases(self) -> RepeatedCompositeFieldContainer[LeaseStatus]: ...

class Member(Message):
    ID: int
    name: str
    isLearner: bool
    def __init__(
        self,
        *,
        ID: int = ...,
        name: str = ...,
        peerURLs: Iterable[str] = ...,
        clientURLs: Iterable[str] = ...,
        isLearner: bool = ...,
    ) -> None: ...
    @property
    def peerURLs(self) -> RepeatedScalarFieldContainer[str]: ...
    @property
    def clientURLs(self) -> RepeatedScalarFieldContainer[str]: ...

class MemberAddRequest(Message):
    isLearner: bool
    def __init__(
        self,
        *,
        peerURLs: Iterable[str] = ...,
        isLearner: bool = ...,
    ) -> None: ...
    @property
    def peerURLs(self) -> RepeatedScalarFieldContainer[str]: ...

class MemberAddResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        member: Member | None = ...,
        members: Iterable[Member] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def member(self) -> Member: ...
    @property
    def members(self) -> RepeatedCompositeFieldContainer[Member]: ...

class MemberRemoveRequest(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int = ...,
    ) -> None: ...

class MemberRemoveResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        members: Iterable[Member] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def members(self) -> RepeatedCompositeFieldContainer[Member]: ...

class MemberUpdateRequest(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int = ...,
        peerURLs: Iterable[str] = ...,
    ) -> None: ...
    @property
    def peerURLs(self) -> RepeatedScalarFieldContainer[str]: ...

class MemberUpdateResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        members: Iterable[Member] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def members(self) -> RepeatedCompositeFieldContainer[Member]: ...

class MemberListRequest(Message):
    linearizable: bool
    def __init__(
        self,
        *,
        linearizable: bool = ...,
    ) -> None: ...

class MemberListResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        members: Iterable[Member] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def members(self) -> RepeatedCompositeFieldContainer[Member]: ...

class MemberPromoteRequest(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int = ...,
    ) -> None: ...

class MemberPromoteResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        members: Iterable[Member] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def members(self) -> RepeatedCompositeFieldContainer[Member]: ...

class AlarmRequest(Message):
    AlarmAction: ClassVar[EnumTypeWrapper]
    GET: ClassVar[int]
    ACTIVATE: ClassVar[int]
    DEACTIVATE: ClassVar[int]
    action: int
    memberID: int
    alarm: int
    def __init__(
        self,
        *,
        action: int = ...,
        memberID: int = ...,
        alarm: int = ...,
    ) -> None: ...

class AlarmMember(Message):
    memberID: int
    alarm: int
    def __init__(
        self,
        *,
        memberID: int = ...,
        alarm: int = ...,
    ) -> None: ...

class AlarmResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        alarms: Iterable[AlarmMember] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def alarms(self) -> RepeatedCompositeFieldContainer[AlarmMember]: ...

class DowngradeInfo(Message):
    enabled: bool
    targetVersion: str
    def __init__(
        self,
        *,
        enabled: bool = ...,
        targetVersion: str = ...,
    ) -> None: ...

class StatusRequest(Message):
    def __init__(self) -> None: ...

class StatusResponse(Message):
    version: str
    dbSize: int
    leader: int
    raftIndex: int
    raftTerm: int
    raftAppliedIndex: int
    dbSizeInUse: int
    isLearner: bool
    storageVersion: str
    dbSizeQuota: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        version: str = ...,
        dbSize: int = ...,
        leader: int = ...,
        raftIndex: int = ...,
        raftTerm: int = ...,
        raftAppliedIndex: int = ...,
        errors: Iterable[str] = ...,
        dbSizeInUse: int = ...,
        isLearner: bool = ...,
        storageVersion: str = ...,
        dbSizeQuota: int = ...,
        downgradeInfo: DowngradeInfo | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def errors(self) -> RepeatedScalarFieldContainer[str]: ...
    @property
    def downgradeInfo(self) -> DowngradeInfo: ...

class DefragmentRequest(Message):
    def __init__(self) -> None: ...

class DefragmentResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class HashRequest(Message):
    def __init__(self) -> None: ...

class HashResponse(Message):
    hash: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        hash: int = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class HashKVRequest(Message):
    revision: int
    def __init__(
        self,
        *,
        revision: int = ...,
    ) -> None: ...

class HashKVResponse(Message):
    hash: int
    compact_revision: int
    hash_revision: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        hash: int = ...,
        compact_revision: int = ...,
        hash_revision: int = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class SnapshotRequest(Message):
    def __init__(self) -> None: ...

class SnapshotResponse(Message):
    remaining_bytes: int
    blob: bytes
    version: str
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        remaining_bytes: int = ...,
        blob: bytes = ...,
        version: str = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class MoveLeaderRequest(Message):
    targetID: int
    def __init__(
        self,
        *,
        targetID: int = ...,
    ) -> None: ...

class MoveLeaderResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class DowngradeRequest(Message):
    DowngradeAction: ClassVar[EnumTypeWrapper]
    VALIDATE: ClassVar[int]
    ENABLE: ClassVar[int]
    CANCEL: ClassVar[int]
    action: int
    version: str
    def __init__(
        self,
        *,
        action: int = ...,
        version: str = ...,
    ) -> None: ...

class DowngradeResponse(Message):
    version: str
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        version: str = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthEnableRequest(Message):
    def __init__(self) -> None: ...

class AuthEnableResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthDisableRequest(Message):
    def __init__(self) -> None: ...

class AuthDisableResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthStatusRequest(Message):
    def __init__(self) -> None: ...

class AuthStatusResponse(Message):
    enabled: bool
    authRevision: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        enabled: bool = ...,
        authRevision: int = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthenticateRequest(Message):
    name: str
    password: str
    def __init__(
        self,
        *,
        name: str = ...,
        password: str = ...,
    ) -> None: ...

class AuthenticateResponse(Message):
    token: str
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        token: str = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthUserAddRequest(Message):
    name: str
    password: str
    hashedPassword: str
    def __init__(
        self,
        *,
        name: str = ...,
        password: str = ...,
        options: UserAddOptions | None = ...,
        hashedPassword: str = ...,
    ) -> None: ...
    @property
    def options(self) -> UserAddOptions: ...

class AuthUserAddResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthUserGetRequest(Message):
    name: str
    def __init__(
        self,
        *,
        name: str = ...,
    ) -> None: ...

class AuthUserGetResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        roles: Iterable[str] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def roles(self) -> RepeatedScalarFieldContainer[str]: ...

class AuthUserListRequest(Message):
    def __init__(self) -> None: ...

class AuthUserListResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        users: Iterable[str] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def users(self) -> RepeatedScalarFieldContainer[str]: ...

class AuthUserDeleteRequest(Message):
    name: str
    def __init__(
        self,
        *,
        name: str = ...,
    ) -> None: ...

class AuthUserDeleteResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthUserChangePasswordRequest(Message):
    name: str
    password: str
    hashedPassword: str
    def __init__(
        self,
        *,
        name: str = ...,
        password: str = ...,
        hashedPassword: str = ...,
    ) -> None: ...

class AuthUserChangePasswordResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthUserGrantRoleRequest(Message):
    user: str
    role: str
    def __init__(
        self,
        *,
        user: str = ...,
        role: str = ...,
    ) -> None: ...

class AuthUserGrantRoleResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthUserRevokeRoleRequest(Message):
    name: str
    role: str
    def __init__(
        self,
        *,
        name: str = ...,
        role: str = ...,
    ) -> None: ...

class AuthUserRevokeRoleResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthRoleAddRequest(Message):
    name: str
    def __init__(
        self,
        *,
        name: str = ...,
    ) -> None: ...

class AuthRoleAddResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthRoleGetRequest(Message):
    role: str
    def __init__(
        self,
        *,
        role: str = ...,
    ) -> None: ...

class AuthRoleGetResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        perm: Iterable[Permission] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def perm(self) -> RepeatedCompositeFieldContainer[Permission]: ...

class AuthRoleListRequest(Message):
    def __init__(self) -> None: ...

class AuthRoleListResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        roles: Iterable[str] = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def roles(self) -> RepeatedScalarFieldContainer[str]: ...

class AuthRoleDeleteRequest(Message):
    role: str
    def __init__(
        self,
        *,
        role: str = ...,
    ) -> None: ...

class AuthRoleDeleteResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthRoleGrantPermissionRequest(Message):
    name: str
    def __init__(
        self,
        *,
        name: str = ...,
        perm: Permission | None = ...,
    ) -> None: ...
    @property
    def perm(self) -> Permission: ...

class AuthRoleGrantPermissionResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...

class AuthRoleRevokePermissionRequest(Message):
    role: str
    key: bytes
    range_end: bytes
    def __init__(
        self,
        *,
        role: str = ...,
        key: bytes = ...,
        range_end: bytes = ...,
    ) -> None: ...

class AuthRoleRevokePermissionResponse(Message):
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    @property
    def header(self) -> ResponseHeader: ...
