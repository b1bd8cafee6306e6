"""The Maintenance service: status, alarms, hashes, snapshots."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from mvccstore.errors import AttributesConflictError, StoreError
from mvccstore.etcd_file.buckets import AlarmRecord, ClusterRecords
from mvccstore.etcd_file.writer import write_database_file
from mvccstore.server.alarms import NAMES
from mvccstore.server.errors import Refusal
from mvccstore.server.messages import rpc
from mvccstore.server.node import Node
from mvccstore.server.transport.call import Call, Method
from mvccstore.server.transport.counts import Histogram
from mvccstore.server.transport.status import Code, RpcError
from mvccstore.store import Store

T = TypeVar("T")
_log = logging.getLogger("mvccstore.server")

_CHUNK_BYTES = 32 * 1024
_DOWNGRADE = "etcd/downgrade"
# As etcd reads it: leading zeros are none of its concern, and what follows a sign may be empty.
_VERSION = re.compile(r"([0-9]+)\.([0-9]+)(\.[0-9]+(-[0-9A-Za-z.-]*)?(\+[0-9A-Za-z.-]*)?)?")
_HASH_OF_NOTHING = 1_084_519_789
"""CRC-32C of the name of etcd's bucket: what a hash begins with."""
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_QUOTA_BYTES_DEFAULT = 2 << 30
_PLAIN = {
    Refusal.EMPTY_USER.value[1]: "auth: user name is empty",
    Refusal.USER_NOT_FOUND.value[1]: "auth: user not found",
    Refusal.PERMISSION_DENIED.value[1]: "auth: permission denied",
    Refusal.INVALID_TOKEN.value[1]: "auth: invalid auth token",
}
"""Go's texts of errors, as clients get them where nothing maps them."""


class Maintenance:
    """etcd's Maintenance service."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._store = node.store
        self._persona = persona = node.persona
        gate = node.auth
        self._check_root = self._check_root_plainly if persona.has_plain_maintenance_errors else gate.check_root
        self._check_status = gate.check_root if persona.needs_root_for_status else gate.check_user
        identity = node.identity
        self._file_version = identity.storage_version if persona.has_snapshot_version else ""
        self._cluster_version = identity.cluster_version
        if persona.has_patch_in_cluster_version:
            self._cluster_version += ".0"

    def _check_root_plainly(self, call: Call) -> None:
        try:
            self._node.auth.check_root(call)
        except RpcError as error:
            raise RpcError(Code.UNKNOWN, _PLAIN[error.message]) from error

    def methods(self) -> list[Method]:
        """Return the handlers."""
        service = "/etcdserverpb.Maintenance/"
        return [
            Method(service + "Alarm", rpc.AlarmRequest.FromString, self.alarm),
            Method(service + "Status", rpc.StatusRequest.FromString, self.status),
            Method(service + "Defragment", rpc.DefragmentRequest.FromString, self.defragment),
            Method(service + "Hash", rpc.HashRequest.FromString, self.hash),
            Method(service + "HashKV", rpc.HashKVRequest.FromString, self.hash_kv),
            Method(service + "Snapshot", rpc.SnapshotRequest.FromString, self.snapshot, is_server_streaming=True),
            Method(service + "MoveLeader", rpc.MoveLeaderRequest.FromString, self.move_leader),
            Method(service + "Downgrade", rpc.DowngradeRequest.FromString, self.downgrade),
        ]

    # Alarms

    def alarm(self, call: Call, message: rpc.AlarmRequest) -> bytes | None:
        """List, raise or disarm alarms."""
        gate = self._node.auth
        (gate.check_user if message.action == rpc.AlarmRequest.GET else gate.check_root)(call)
        node, alarms = self._node, self._node.alarms
        wanted = AlarmRecord(message.memberID, message.alarm)
        match message.action:
            case rpc.AlarmRequest.GET:
                return self._when_written(call, lambda: self._alarm_answer(alarms.all(message.alarm)))
            case rpc.AlarmRequest.ACTIVATE if message.alarm != rpc.NONE:
                is_raised = True
            case rpc.AlarmRequest.DEACTIVATE:
                is_raised = False
            case _:
                return self._alarm_answer([])

        def then(changed: bool | StoreError) -> None:
            if isinstance(changed, StoreError):
                call.fail_with(changed)
                return
            node.count_command()
            # One that was raised before is told of, too; one that was not there is not.
            call.reply(self._alarm_answer([wanted] if is_raised or changed else []))

        node.check_under_way()
        alarms.change(wanted, then, is_raised=is_raised)
        return None

    def _when_written(self, call: Call, answer: Callable[[], bytes]) -> bytes | None:
        """Answer when the alarms that are being changed are: who was told that there is no space finds the alarm."""
        if not self._node.alarms.under_way:
            return answer()

        def done(result: Exception | None) -> None:
            if isinstance(result, Exception):
                call.fail_with(result)
            else:
                call.reply(answer())

        self._node.writer.call(lambda: None, done)
        return None

    def _alarm_answer(self, alarms: list[AlarmRecord]) -> bytes:
        response = rpc.AlarmResponse()
        for alarm in alarms:
            response.alarms.add(memberID=alarm.member_id, alarm=alarm.alarm)
        header = self._node.header() if self._persona.has_alarm_header else b""
        return header + response.SerializeToString()

    # Facts

    def status(self, call: Call, _message: rpc.StatusRequest) -> bytes | None:
        """Tell version, sizes, leader and alarms."""
        self._check_status(call)
        return self._when_written(call, self._status_answer)

    def _status_answer(self) -> bytes:
        node = self._node
        stats = self._store.stats()
        response = rpc.StatusResponse(
            version=node.identity.version,
            dbSize=stats.file_bytes,
            dbSizeInUse=stats.used_bytes,
            leader=node.member_id,
            raftIndex=node.raft_index,
            raftAppliedIndex=node.raft_index,
            raftTerm=node.raft_term,
        )
        for alarm in node.alarms.all():
            name = NAMES.get(alarm.alarm, str(alarm.alarm))
            member = f"memberID:{alarm.member_id} " if alarm.member_id else ""
            response.errors.append(f"{member}alarm:{name} ")
        if self._persona.has_storage_facts:
            self._fill_storage_facts(response)
        return node.header() + response.SerializeToString()

    def _fill_storage_facts(self, response: rpc.StatusResponse) -> None:
        response.storageVersion = self._node.identity.storage_version
        response.dbSizeQuota = self._node.alarms.quota_bytes or _QUOTA_BYTES_DEFAULT
        target = self._store.attribute(_DOWNGRADE)
        response.downgradeInfo.SetInParent()
        if target is not None:
            response.downgradeInfo.enabled = True
            response.downgradeInfo.targetVersion = target.decode()

    def hash(self, call: Call, _message: rpc.HashRequest) -> None:
        """Hash what the store holds; of use for comparing with itself alone."""
        self._check_root(call)
        call.run(self._hash())

    async def _hash(self) -> bytes:
        found = await self._timed(self._node.tally.hashes, self._store.hash_kv)
        return self._node.header() + rpc.HashResponse(hash=found.hash).SerializeToString()

    def hash_kv(self, call: Call, message: rpc.HashKVRequest) -> bytes | None:
        """Hash the history up to a revision, as etcd does."""
        self._check_root(call)
        if message.revision >= 0:
            call.run(self._hash_kv(message.revision))
            return None
        return self._hash_answer(_HASH_OF_NOTHING, self._store.compact_revision, message.revision)

    async def _hash_kv(self, revision: int) -> bytes:
        work = partial(self._store.hash_kv, revision=revision)
        found = await self._timed(self._node.tally.hashes_of_revisions, work)
        return self._hash_answer(found.hash, found.compact_revision, found.hash_revision)

    def _hash_answer(self, number: int, compact_revision: int, hash_revision: int) -> bytes:
        response = rpc.HashKVResponse(hash=number, compact_revision=compact_revision)
        if self._persona.has_hash_revision:
            response.hash_revision = hash_revision
        return self._node.header() + response.SerializeToString()

    # The file

    def defragment(self, call: Call, _message: rpc.DefragmentRequest) -> None:
        """Shrink the file. The answer has no header."""
        self._check_root(call)
        call.run(self._defragment())

    async def _defragment(self) -> bytes:
        tally = self._node.tally
        tally.defragments_under_way += 1
        try:
            await self._timed(tally.defragments, self._store.defragment)
        finally:
            tally.defragments_under_way -= 1
        return b""

    async def _timed(self, seconds: Histogram, work: Callable[[], T]) -> T:
        """Work on a thread, and count how long that took."""
        began_at = self._node.slow.now()
        result = await asyncio.get_running_loop().run_in_executor(None, work)
        seconds.observe(self._node.slow.now() - began_at)
        return result

    def snapshot(self, call: Call, _message: rpc.SnapshotRequest) -> None:
        """Send the store as etcd's database file, and its SHA-256 after it."""
        self._check_root(call)
        call.run(self._snapshot(call))

    async def _snapshot(self, call: Call) -> None:
        folder = _folder_of(self._store)
        began_at = self._node.slow.now()
        try:
            await self._send_snapshot(call, folder)
        except OSError as error:
            raise _no_snapshot(folder, error) from error
        self._node.tally.snapshots.observe(self._node.slow.now() - began_at)
        call.finish()

    async def _send_snapshot(self, call: Call, folder: str | None) -> None:
        loop = asyncio.get_running_loop()
        version = self._file_version
        cluster = self._cluster_records()  # here, as all this belongs to the loop's thread
        with tempfile.TemporaryFile(dir=folder, prefix=".snapshot-") as file:
            await loop.run_in_executor(None, partial(write_database_file, self._store, file, cluster=cluster))
            left = file.tell()
            file.seek(0)
            digest = sha256()
            while left:
                blob = file.read(_CHUNK_BYTES)
                digest.update(blob)
                left -= len(blob)
                response = rpc.SnapshotResponse(remaining_bytes=left, blob=blob, version=version)
                call.send(response.SerializeToString())
                await call.drained()
                await asyncio.sleep(0)
            call.send(rpc.SnapshotResponse(blob=digest.digest(), version=version).SerializeToString())

    def _cluster_records(self) -> ClusterRecords:
        node = self._node
        return ClusterRecords(
            members=tuple(node.members.all()),
            removed_members=tuple(node.members.removed()),
            alarms=tuple(node.alarms.all()),
            auth=node.auth.accounts.etcd_records(),
            index=node.raft_index,
            term=node.raft_term,
            cluster_version=f"{node.identity.cluster_version}.0",
            storage_version=node.identity.storage_version if self._persona.has_storage_version else "",
        )

    # The cluster of one

    def move_leader(self, call: Call, message: rpc.MoveLeaderRequest) -> bytes:
        """Move the lead to where it is; there is nowhere else. The answer has no header."""
        self._node.auth.check_root(call)
        if message.targetID != self._node.member_id:
            raise Refusal.BAD_LEADER_TRANSFEREE.error()
        return b""

    def downgrade(self, call: Call, message: rpc.DowngradeRequest) -> bytes | None:
        """Check, note or cancel a downgrade to the minor version below."""
        node = self._node
        node.auth.check_root(call)
        answer = node.header() + rpc.DowngradeResponse(version=self._cluster_version).SerializeToString()
        target: bytes | None
        match message.action:
            case rpc.DowngradeRequest.VALIDATE:
                target = self._downgrade_target(message.version).encode()
                self._check_downgrade(target, is_under_way=self._store.attribute(_DOWNGRADE) is not None)
                return answer
            case rpc.DowngradeRequest.ENABLE:
                target = self._downgrade_target(message.version).encode()
            case rpc.DowngradeRequest.CANCEL:
                target = None
            case _:
                raise Refusal.UNKNOWN_METHOD.error()

        def done(result: int | Exception) -> None:
            if isinstance(result, Exception):
                call.fail_with(result)
                return
            node.count_command()
            call.reply(answer)

        node.check_under_way()
        node.writer.call(partial(self._set_downgrade, target), done)
        return None

    def _set_downgrade(self, target: bytes | None) -> int:
        """Note a downgrade or its end, judged by what is stored then. On the writer's thread."""
        while True:
            stored = self._store.attributes(_DOWNGRADE)
            self._check_downgrade(target, is_under_way=_DOWNGRADE in stored)
            try:
                return self._store.set_attributes({_DOWNGRADE: target}, base=stored.version)
            except AttributesConflictError:
                continue  # by somebody beside this server, who may have done the same

    def _check_downgrade(self, target: bytes | None, *, is_under_way: bool) -> None:
        if target is not None and is_under_way:
            raise Refusal.DOWNGRADE_IN_PROGRESS.error()
        if target is None and not is_under_way and self._persona.refuses_idle_cancel:
            raise Refusal.NO_DOWNGRADE.error()

    def _downgrade_target(self, text: str) -> str:
        match = _VERSION.fullmatch(text)
        if match is None:
            raise Refusal.WRONG_DOWNGRADE_FORMAT.error()
        major, minor = (int(part) for part in self._node.identity.cluster_version.split("."))
        if (int(match[1]), int(match[2])) != (major, minor - 1):
            raise Refusal.INVALID_DOWNGRADE_TARGET.error()
        return f"{major}.{minor - 1}.0"


def _folder_of(store: Store) -> str | None:
    """Return where a copy is made: beside the store, as there is room for it."""
    return None if store.stats().engine == "memory" else os.fspath(Path(store.path).absolute().parent)


def _no_snapshot(folder: str | None, error: OSError) -> RpcError:
    """Return how a call ends whose file could not be made. etcd makes none, and has no words for it.

    Not `NO_SPACE`, as writes may go on; nor UNAVAILABLE, which clients of etcd take for a reason to ask at once again.
    """
    reason = error.strerror or str(error)
    _log.warning("a snapshot could not be made in %s: %s", folder or "a temporary folder", reason)
    code = Code.RESOURCE_EXHAUSTED if error.errno in _FULL_ERRNOS else Code.INTERNAL
    return RpcError(code, f"the file of the snapshot could not be made: {reason}")
