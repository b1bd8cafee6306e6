"""Snapshots over the wire when the disk is full, or otherwise unwell: the client is told why, and nothing is left."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from mvccstore import Store
from mvccstore.server import serve
from mvccstore.server.messages import rpc
from mvccstore.server.services import maintenance
from tests.wire.client import Client, Endpoint, RpcFailure, StreamEnd

SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"
TOLD = "the file of the snapshot could not be made: "


class Disk:
    """Makes temporary files that hold so many bytes together; a read or a write beyond fails."""

    def __init__(self) -> None:
        self.room, self.error = 1 << 30, errno.ENOSPC
        self.is_read_well = True
        self.folders: list[str | None] = []
        self.files: list[BinaryIO] = []

    def temporary_file(self, dir: str | None, prefix: str) -> BinaryIO:
        assert prefix == ".snapshot-"
        self.folders.append(dir)
        if self.room < 0:
            raise self.failure()
        file = io.BufferedRandom(_Limited(os.memfd_create("snapshot"), self))
        self.files.append(file)
        return file

    def failure(self) -> OSError:
        return OSError(self.error, os.strerror(self.error))


class _Limited(io.FileIO):
    def __init__(self, fd: int, disk: Disk) -> None:
        super().__init__(fd, "r+b")
        self.disk = disk

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.disk.room:
            raise self.disk.failure()
        return super().write(data)

    def readinto(self, buffer: Any) -> int:
        if not self.disk.is_read_well:
            raise self.disk.failure()
        return super().readinto(buffer)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(maintenance.tempfile, "TemporaryFile", made.temporary_file)
    return made


@pytest.fixture
def client(open_store: Callable[..., Store]) -> Iterator[Client]:
    store = open_store()
    for number in range(20):
        store.put(b"%d" % number, bytes(10_000))
    with serve(store) as server, Client(Endpoint(server.host, server.port)) as client:
        yield client


def snapshot_bytes(client: Client) -> int:
    stream, size = client.stream(SNAPSHOT, [rpc.SnapshotRequest()]), 0
    while True:
        try:
            size += len(stream.receive().blob)
        except StreamEnd:
            return size


@pytest.mark.parametrize("room", [-1, 0, 4_096, 100_000, "all but a byte"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_snapshot_on_a_full_disk_is_refused_and_the_next_is_made(
    client: Client, disk: Disk, room: int | str, error: int
) -> None:
    size = snapshot_bytes(client)
    assert size > 200_000
    disk.room, disk.error = room if isinstance(room, int) else size - 32 - 1, error
    with pytest.raises(RpcFailure) as caught:
        snapshot_bytes(client)
    assert (caught.value.code, caught.value.message) == ("RESOURCE_EXHAUSTED", TOLD + os.strerror(error))
    answer = client.post("/v3/maintenance/snapshot", {})
    assert (answer.status, answer.json()["error"]["message"]) == (429, TOLD + os.strerror(error))
    assert all(file.closed for file in disk.files)
    disk.room = 1 << 30
    assert snapshot_bytes(client) == size
    assert len(set(disk.folders)) == 1


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.EIO])
def test_a_snapshot_whose_file_cannot_be_made_is_refused(client: Client, disk: Disk, error: int) -> None:
    disk.room, disk.error = -1, error
    with pytest.raises(RpcFailure) as caught:
        snapshot_bytes(client)
    assert (caught.value.code, caught.value.message) == ("INTERNAL", TOLD + os.strerror(error))


def test_a_snapshot_that_cannot_be_read_ends_where_it_is(client: Client, disk: Disk) -> None:
    disk.is_read_well, disk.error = False, errno.EIO
    with pytest.raises(RpcFailure) as caught:
        snapshot_bytes(client)
    assert (caught.value.code, caught.value.message) == ("INTERNAL", TOLD + os.strerror(errno.EIO))
    disk.is_read_well = True
    assert snapshot_bytes(client) > 200_000


def test_the_folder_of_a_snapshot_that_failed_is_as_it_was(
    open_store: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a file of the system's, beside the store."""
    store = open_store(engine="lmdb")

    def fail(_store: Store, file: BinaryIO, **_: Any) -> int:
        file.write(bytes(100_000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with serve(store) as server, Client(Endpoint(server.host, server.port)) as client:
        before = sorted(Path(store.path).parent.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(maintenance, "write_database_file", fail)
            with pytest.raises(RpcFailure):
                snapshot_bytes(client)
        assert sorted(Path(store.path).parent.iterdir()) == before
        assert snapshot_bytes(client) > 10_000


def test_where_there_is_no_temporary_folder_there_is_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python looks for one that can be written to, once, and finds none on a full disk."""
    monkeypatch.setattr(maintenance.tempfile, "tempdir", None)
    monkeypatch.setattr(maintenance.tempfile, "_candidate_tempdir_list", list)
    with serve() as server, Client(Endpoint(server.host, server.port)) as client:
        with pytest.raises(RpcFailure, match="No usable temporary directory"):
            snapshot_bytes(client)
        monkeypatch.undo()
        assert snapshot_bytes(client) > 10_000
