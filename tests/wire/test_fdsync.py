"""Syncs that the kernel does beside the loop: what a server's commits wait for where it can, and without it."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mvccstore
from mvccstore import KeyRange, StorageError, Store
from mvccstore.engine import journal as journal_module
from mvccstore.server import fdsync
from mvccstore.server import writer as writer_module
from mvccstore.server.fdsync import FdSync
from mvccstore.server.transport.counts import Histogram
from mvccstore.server.writer import Writer
from mvccstore.types import PutRequest, PutResult

SECONDS = 30
COUNT = 40


def available() -> bool:
    try:
        FdSync().close()
    except OSError:
        return False
    return True


HAS_FDSYNC = available()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with mvccstore.open(tmp_path / "store", journal=True) as opened:
        yield opened


@pytest.fixture(params=["kernel", "thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the commits of a writer wait for: where the kernel has nothing of the kind, it is the thread both times."""
    chosen: str = request.param
    if chosen == "thread":
        monkeypatch.setattr(writer_module, "FdSync", refuse)
    return chosen if HAS_FDSYNC else "thread"


def refuse() -> FdSync:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_linux_has_it() -> None:
    assert HAS_FDSYNC or os.uname().sysname != "Linux"


@pytest.mark.skipif(not HAS_FDSYNC, reason="this system has no asynchronous syncs")
def test_a_sync_is_begun_and_told(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, FdSync() as syncs:
        for _ in range(3):
            file.write(bytes(10_000))
            file.flush()
            syncs.begin(file.fileno())
            assert select.select([syncs.fileno], [], [], SECONDS)[0]
            assert syncs.end() is None
            assert syncs.end() is None  # as often as one likes
            syncs.hear()
            assert not select.select([syncs.fileno], [], [], 0)[0]


@pytest.mark.skipif(not HAS_FDSYNC, reason="this system has no asynchronous syncs")
def test_what_cannot_be_synced_is_said(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with FdSync() as syncs:
        for number in (errno.EINVAL, errno.EBADF):
            with pytest.raises(OSError, match=os.strerror(number)):
                syncs.begin(writer)
            if number == errno.EINVAL:
                os.close(writer)
        with (tmp_path / "file").open("wb") as file:  # and it goes on
            syncs.begin(file.fileno())
            assert select.select([syncs.fileno], [], [], SECONDS)[0]
            assert syncs.end() is None
    os.close(reader)


def test_other_platforms_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fdsync.platform, "machine", lambda: "vax")
    with pytest.raises(OSError, match="platform"):
        FdSync()


def test_giving_it_up_leaves_no_file_open() -> None:
    before = set(Path("/proc/self/fd").iterdir()) if HAS_FDSYNC else set()
    for _ in range(3 * HAS_FDSYNC):
        FdSync().close()
        FdSync()  # and is forgotten
    gc.collect()
    assert (set(Path("/proc/self/fd").iterdir()) if HAS_FDSYNC else set()) == before


@pytest.mark.skipif(not HAS_FDSYNC, reason="this system has no asynchronous syncs")
def test_an_end_that_is_interrupted_can_be_had_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = FdSync._call

    def interrupted(self: FdSync, number: int, *arguments: object) -> int:
        result = call(self, number, *arguments)
        if number in {self._calls.getevents, self._calls.submit}:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return result

    with (tmp_path / "file").open("wb") as file, FdSync() as syncs:
        syncs.begin(file.fileno())
        monkeypatch.setattr(FdSync, "_call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            syncs.end()
        assert syncs.end() is None
        monkeypatch.setattr(FdSync, "_call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            syncs.begin(file.fileno())  # nobody knows that it has begun
        assert select.select([syncs.fileno], [], [], SECONDS)[0]
        syncs._event.result = -errno.EIO
        begun = False
        while not begun:
            try:
                syncs.begin(file.fileno())
                begun = True
            except BlockingIOError:  # until the other one was taken, there may be no room
                call(syncs, syncs._calls.getevents, syncs._context, 1, 1, ctypes.byref(syncs._event), None)
        assert syncs.end() is None
        assert syncs._event.data == syncs._number


class Puts:
    """Puts by a writer, in turns of the loop, and their answers."""

    def __init__(self, store: Store) -> None:
        self.writer = Writer(store, Histogram((1.0,)))
        self.answers: list[Any] = []
        self._changed = asyncio.Event()

    def put(self, number: int) -> None:
        self.writer.submit(PutRequest(b"%d" % number, b"v"), self._done)

    def _done(self, answer: Any) -> None:
        self.answers.append(answer)
        self._changed.set()

    async def wait(self, number: int) -> None:
        async with asyncio.timeout(SECONDS):
            while len(self.answers) < number:
                self._changed.clear()
                await self._changed.wait()


def test_commits_are_synced_and_answered_in_order(store: Store, way: str) -> None:
    async def main() -> None:
        puts = Puts(store)
        for number in range(COUNT):
            puts.put(number)
            if number % 7 == 6:
                await asyncio.sleep(0)
        await puts.wait(COUNT)
        assert [answer.revision for answer in puts.answers] == list(range(2, COUNT + 2))
        assert (puts.writer._worker is None) is (way == "kernel")
        await puts.writer.stop()

    asyncio.run(main(), debug=True)
    assert store.count(KeyRange.all()) == COUNT
    assert store.check() == []


def test_nothing_is_seen_before_it_is_synced(store: Store, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = FdSync.begin
    seen: list[int] = []

    def look(self: FdSync, fd: int) -> None:
        seen.append(store.revision)
        begin(self, fd)
        seen.append(store.revision)

    monkeypatch.setattr(FdSync, "begin", look)

    async def main() -> None:
        puts = Puts(store)
        for number in range(2):
            puts.put(number)
        await puts.wait(2)
        await puts.writer.stop()

    asyncio.run(main(), debug=True)
    assert seen == ([1, 1] if way == "kernel" else [])
    assert store.revision == 3


@pytest.mark.usefixtures("way")
def test_a_sync_that_fails_is_told_to_all_of_its_commit_and_nothing_is_taken_since(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = FdSync.end

    def fail(self: FdSync) -> OSError | None:
        end(self)
        return OSError(errno.EIO, os.strerror(errno.EIO))

    def fail_sync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def main() -> None:
        puts = Puts(store)
        puts.put(0)
        await puts.wait(1)
        monkeypatch.setattr(FdSync, "end", fail)
        monkeypatch.setattr(journal_module, "_datasync", fail_sync)
        for number in range(1, 4):
            puts.put(number)
        await puts.wait(4)
        assert isinstance(puts.answers[0], PutResult)
        for answer in puts.answers[1:]:
            assert isinstance(answer, StorageError)
        monkeypatch.undo()
        puts.put(4)
        puts.put(5)
        await puts.wait(6)
        for answer in puts.answers[4:]:
            assert isinstance(answer, StorageError)
            assert "open it again" in str(answer)
        assert store.revision == 2
        await puts.writer.stop()

    asyncio.run(main())
    store.close()
    with mvccstore.open(tmp_path / "store", journal=True) as again:
        assert again.revision == 2
        again.put(b"k")
        assert again.check() == []


def test_a_sync_that_cannot_be_begun_is_the_threads(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_to_begin(_: FdSync, _fd: int) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(FdSync, "begin", refuse_to_begin)

    async def main() -> None:
        puts = Puts(store)
        for number in range(COUNT):
            puts.put(number)
        await puts.wait(COUNT)
        assert puts.writer._worker is not None
        await puts.writer.stop()

    asyncio.run(main(), debug=True)
    assert store.count(KeyRange.all()) == COUNT


@pytest.mark.pure("replaces a module")
@pytest.mark.usefixtures("way")
def test_a_full_disk_is_told_to_all_and_the_next_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """The module `os`, on a full disk."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def pwritev(self, *_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        puts = Puts(store)
        with monkeypatch.context() as patch:
            patch.setattr(journal_module, "os", Full())
            puts.put(0)
            puts.put(1)
            await puts.wait(2)
        assert [type(answer) for answer in puts.answers] == [mvccstore.StorageFullError] * 2
        puts.put(2)
        puts.put(3)
        await puts.wait(4)
        assert [answer.revision for answer in puts.answers[2:]] == [2, 3]
        await puts.writer.stop()

    asyncio.run(main(), debug=True)


@pytest.mark.usefixtures("way")
def test_stopping_waits_for_what_is_synced(store: Store) -> None:
    async def main() -> None:
        puts = Puts(store)
        for number in range(COUNT):
            puts.put(number)
        await puts.writer.stop()
        assert len(puts.answers) == COUNT

    asyncio.run(main(), debug=True)
    assert store.count(KeyRange.all()) == COUNT


@pytest.mark.usefixtures("way")
def test_others_write_between_its_commits(store: Store) -> None:
    async def main() -> None:
        puts = Puts(store)
        for number in range(COUNT):
            puts.put(number)
            if number % 4 == 3:
                await asyncio.to_thread(store.put, b"other", b"%d" % number)
        await puts.wait(COUNT)
        await puts.writer.stop()

    asyncio.run(main())
    assert store.revision == 1 + COUNT + COUNT // 4
    assert store.check() == []


@pytest.mark.usefixtures("way")
def test_who_writes_on_the_loop_itself_does_not_wait_for_the_loop(store: Store) -> None:
    async def main() -> None:
        puts = Puts(store)
        for number in range(COUNT):
            puts.put(number)
            puts.put(number)
            await asyncio.sleep(0)  # it is handed over
            store.put(b"other", b"%d" % number)
        await puts.wait(2 * COUNT)
        await puts.writer.stop()

    asyncio.run(main())
    assert store.revision == 1 + 3 * COUNT
    assert store.check() == []


def test_a_loop_that_ends_in_the_middle_leaves_a_store_that_can_be_closed(
    store: Store, tmp_path: Path, way: str
) -> None:
    writers: list[Writer] = []

    async def main() -> None:
        puts = Puts(store)
        writers.append(puts.writer)
        puts.put(1)
        puts.put(2)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (writers[0]._syncing is not None) is (way == "kernel")

    asyncio.run(main())
    store.close()
    with mvccstore.open(tmp_path / "store") as again:
        assert again.revision == 3
    if writers[0]._worker is not None:
        writers[0]._inbox.put(None)


def test_stopping_that_is_cancelled_leaves_the_store_to_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgotten(self: FdSync, fd: int) -> None:
        begin(self, fd)
        asyncio.get_running_loop().remove_reader(self.fileno)  # a disk that takes its time

    begin = FdSync.begin
    monkeypatch.setattr(FdSync, "begin", forgotten)

    async def main() -> None:
        puts = Puts(store)
        puts.put(0)
        puts.put(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        stopping = asyncio.create_task(puts.writer.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        if HAS_FDSYNC:
            assert len(puts.answers) == 2
            assert puts.writer._syncing is None

    asyncio.run(main())
    store.put(b"k")
    assert store.revision == 4


@pytest.mark.pure("replaces a method")
@pytest.mark.skipif(not HAS_FDSYNC, reason="this system has no asynchronous syncs")
def test_who_is_interrupted_as_it_ends_a_commit_for_the_loop_has_it_answered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = store._committer.commit
    loop_thread = threading.get_ident()

    def interrupted(*arguments: Any) -> None:
        if threading.get_ident() != loop_thread:
            monkeypatch.undo()
            raise KeyboardInterrupt
        commit(*arguments)

    def put() -> None:
        with pytest.raises(KeyboardInterrupt):
            store.put(b"x")

    async def main() -> None:
        puts = Puts(store)
        puts.put(0)
        puts.put(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert puts.writer._syncing is not None
        monkeypatch.setattr(store._committer, "commit", interrupted)
        thread = threading.Thread(target=put)
        thread.start()
        thread.join(SECONDS)  # the loop does nothing meanwhile
        puts.put(2)
        await puts.wait(3)
        assert [type(answer) for answer in puts.answers] == [StorageError, StorageError, PutResult]
        await puts.writer.stop()

    asyncio.run(main())
    assert store.check() == []


@pytest.mark.skipif(not HAS_FDSYNC, reason="this system has no asynchronous syncs")
def test_a_signal_handler_that_writes_ends_what_is_begun(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = FdSync.begin

    def with_a_signal(self: FdSync, fd: int) -> None:
        monkeypatch.undo()
        store.put(b"by the handler")  # as one that is called here does
        begin(self, fd)

    monkeypatch.setattr(FdSync, "begin", with_a_signal)

    async def main() -> None:
        puts = Puts(store)
        for number in range(COUNT):
            puts.put(number)
            if number % 10 == 9:
                await asyncio.sleep(0)
        await puts.wait(COUNT)
        await puts.writer.stop()

    asyncio.run(main())
    assert store.revision == COUNT + 2
    assert store.check() == []


@pytest.mark.skipif(not HAS_FDSYNC, reason="this system has no asynchronous syncs")
def test_a_loop_that_cannot_wait_for_it_has_the_thread(store: Store) -> None:
    async def main() -> None:
        puts = Puts(store)

        def refuse_reader(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        puts.writer._loop = SimpleNamespace(  # type: ignore[assignment]
            add_reader=refuse_reader,
            call_soon=puts.writer._loop.call_soon,
            call_soon_threadsafe=puts.writer._loop.call_soon_threadsafe,
            create_future=puts.writer._loop.create_future,
            run_in_executor=puts.writer._loop.run_in_executor,
        )
        puts.put(0)
        puts.put(1)
        await puts.wait(2)
        assert puts.writer._worker is not None
        await puts.writer.stop()

    asyncio.run(main())
    assert store.revision == 3


def test_the_error_that_another_sync_was_told_is_this_ones_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_sync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    writes = store.stage_many([PutRequest(b"a", b"v")])
    assert writes is not None
    assert writes.write(lambda: None) is not None
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_datasync", fail_sync)
        with pytest.raises(StorageError):
            store.sync()
    (answer,) = writes.complete(is_synced=True)
    assert isinstance(answer, StorageError)


def test_what_was_closed_underneath_is_not_committed(store: Store, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    store.put(b"before")
    writes = store.stage_many([PutRequest(b"a", b"v")])
    assert writes is not None
    fd = writes.write(interrupt)
    assert fd is not None
    os.fdatasync(fd)
    with pytest.raises(KeyboardInterrupt):
        store.close()
    with pytest.raises(mvccstore.ClosedError):
        writes.complete(is_synced=True)
    with mvccstore.open(tmp_path / "store") as again:
        assert (again.get(b"a"), again.revision) == (None, 2)
