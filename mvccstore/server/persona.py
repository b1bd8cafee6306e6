"""Which etcd a server behaves as: what its versions do differently, each difference with a name.

A persona is the last release of its minor version, with all that was corrected within that: what 3.5.1 did and 3.5.33
does not is in no persona. So manual progress waits for events, a tombstone outlives a compaction at its revision, what
writes nothing passes NOSPACE, tokens are not looked at while authentication is off, and calls without a token are
refused while it is on, in all three.

Who behaves differently asks its persona, at best once, when it is made. Nobody compares versions.

What the versions differ in and this server does not: an unknown `sort_target` ends an etcd before 3.6, and is refused
here; an unknown `sort_order` is refused here by all, by etcd since 3.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Version = Literal["3.4", "3.5", "3.6"]
_MAINTENANCE = "/etcdserverpb.Maintenance/"
_AUTH = "/etcdserverpb.Auth/"
_KV = "/etcdserverpb.KV/"
_HEALTH = "/grpc.health.v1.Health/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """One version of etcd."""

    release: str
    """What it says it is, unless its identity says something else."""

    # What there is

    has_auth_status: bool
    """The method AuthStatus, since 3.5."""
    has_downgrade: bool
    """The method Downgrade, since 3.5."""
    has_range_stream: bool
    """The method RangeStream: etcd's since 3.7, and this server's as 3.6, as clients do without where it is not."""
    has_health_list: bool
    """The method List of gRPC's own health service: in the last releases of 3.5 and 3.6, with a newer gRPC."""
    has_hash_kv_path: bool
    """`/v3/maintenance/hashkv`, since 3.5.10; before, HashKV has no path of its own."""
    has_learner_check: bool
    """`non_learner` among the checks of `/readyz`, since 3.5.19."""
    has_alarm_header: bool
    """The header of AlarmResponse, since 3.5."""
    has_storage_facts: bool
    """StatusResponse says storageVersion, dbSizeQuota and downgradeInfo, since 3.6."""
    has_hash_revision: bool
    """HashKVResponse says hash_revision, since 3.6."""
    has_snapshot_version: bool
    """SnapshotResponse says the version of the file, since 3.6."""
    has_storage_version: bool
    """`/version` and the file of a snapshot say the version of what is stored, since 3.6."""
    has_health_reason: bool
    """`/health` says a reason, since 3.5."""
    has_password_hashes: bool
    """UserChangePassword takes a hash instead of a password, since 3.5; before, the field is not known."""

    # What it refuses, and how

    has_plain_maintenance_errors: bool
    """Who may not do Defragment, Hash, HashKV or Snapshot is told UNKNOWN and `auth: ...`; since 3.6, as elsewhere."""
    needs_root_for_status: bool
    """Status is for root alone, with authentication on: in 3.4. Since 3.5, for every user."""
    strips_bearer: bool
    """A token may have `Bearer ` before it, since 3.5.33; before, it is none then."""
    checks_client_api_version: bool
    """The metadata `client-api-version` has to be UTF-8, since 3.6."""
    counts_nested_puts: bool
    """The quota counts what nested txns put, since 3.5.33 and 3.6.14."""
    refuses_idle_cancel: bool
    """To cancel a downgrade where there is none is an error; since 3.6, it is OK."""
    has_patch_in_cluster_version: bool
    """DowngradeResponse says `3.5.0`; since 3.6, `3.6`."""

    # The gateway, which has another library since 3.6

    has_plain_gateway_errors: bool
    """No such path and no such verb are 404 and 405, in plain text; since 3.6, 404 and 501, in JSON."""
    has_status_errors: bool
    """A stream's error has `code`, and 401 has WWW-Authenticate, since 3.6.

    A stream's error has `grpc_code`, `http_code` and `http_status` in all three, and a call's the member `error`: etcd
    has none of these since 3.6, but clients are about that look for them.
    """
    has_timeout_for_cancelled: bool
    """A call that was cancelled is answered with 408; since 3.6, with 499."""

    @property
    def missing_methods(self) -> frozenset[str]:
        """The paths, over gRPC, of methods that it does not have."""
        methods = {
            _AUTH + "AuthStatus": self.has_auth_status,
            _MAINTENANCE + "Downgrade": self.has_downgrade,
            _KV + "RangeStream": self.has_range_stream,
            _HEALTH + "List": self.has_health_list,
        }
        return frozenset(path for path, is_there in methods.items() if not is_there)


V3_6 = Persona(
    release="3.6.14",
    has_auth_status=True,
    has_downgrade=True,
    has_range_stream=True,
    has_health_list=True,
    has_hash_kv_path=True,
    has_learner_check=True,
    has_alarm_header=True,
    has_storage_facts=True,
    has_hash_revision=True,
    has_snapshot_version=True,
    has_storage_version=True,
    has_health_reason=True,
    has_password_hashes=True,
    has_plain_maintenance_errors=False,
    needs_root_for_status=False,
    strips_bearer=True,
    checks_client_api_version=True,
    counts_nested_puts=True,
    refuses_idle_cancel=False,
    has_patch_in_cluster_version=False,
    has_plain_gateway_errors=False,
    has_status_errors=True,
    has_timeout_for_cancelled=False,
)

V3_5 = Persona(
    release="3.5.33",
    has_auth_status=True,
    has_downgrade=True,
    has_range_stream=False,
    has_health_list=True,
    has_hash_kv_path=True,
    has_learner_check=True,
    has_alarm_header=True,
    has_storage_facts=False,
    has_hash_revision=False,
    has_snapshot_version=False,
    has_storage_version=False,
    has_health_reason=True,
    has_password_hashes=True,
    has_plain_maintenance_errors=True,
    needs_root_for_status=False,
    strips_bearer=True,
    checks_client_api_version=False,
    counts_nested_puts=True,
    refuses_idle_cancel=True,
    has_patch_in_cluster_version=True,
    has_plain_gateway_errors=True,
    has_status_errors=False,
    has_timeout_for_cancelled=True,
)

V3_4 = Persona(
    release="3.4.45",
    has_auth_status=False,
    has_downgrade=False,
    has_range_stream=False,
    has_health_list=False,
    has_hash_kv_path=False,
    has_learner_check=False,
    has_alarm_header=False,
    has_storage_facts=False,
    has_hash_revision=False,
    has_snapshot_version=False,
    has_storage_version=False,
    has_health_reason=False,
    has_password_hashes=False,
    has_plain_maintenance_errors=True,
    needs_root_for_status=True,
    strips_bearer=False,
    checks_client_api_version=False,
    counts_nested_puts=False,
    refuses_idle_cancel=True,
    has_patch_in_cluster_version=True,
    has_plain_gateway_errors=True,
    has_status_errors=False,
    has_timeout_for_cancelled=True,
)

PERSONAS: dict[str, Persona] = {"3.4": V3_4, "3.5": V3_5, "3.6": V3_6}
"""By minor version."""
assert set(PERSONAS) == set(get_args(Version))


def persona_of(version: str) -> Persona:
    """Return the persona of a minor version.

    Raises:
        ValueError: There is none.

    >>> persona_of("3.5").release
    '3.5.33'
    """
    found = PERSONAS.get(version)
    if found is None:
        msg = f"the version is {version!r}, not one of {', '.join(map(repr, PERSONAS))}"
        raise ValueError(msg)
    return found
