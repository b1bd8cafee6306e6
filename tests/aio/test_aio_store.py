"""The asyncio face of a store: opening, reading, writing, sharing commits, closing."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextvars import ContextVar
from pathlib import Path

import pytest

import mvccstore
from mvccstore import (
    ClosedError,
    Command,
    CompactedError,
    Compare,
    KeyRange,
    KeyTooLargeError,
    LeaseNotFoundError,
    Limits,
    LockedError,
    Op,
    PutResult,
    Result,
    Retention,
    StorageError,
    StorageFullError,
    Store,
    StoreError,
    Txn,
    TxnTooLargeError,
    aio,
)
from mvccstore.aio import AsyncStore
from mvccstore.commit import BATCH_MAX
from mvccstore.mvcc.apply import Changes
from mvccstore.types import LeaseGrantRequest
from tests.aio.aio_kit import Gate, OpenAio, Run, commits, own_threads, turns

ALL = KeyRange.all()


# Opening


def test_open_can_be_awaited_and_entered(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "store.mvcc"
        store = await aio.open(path)
        await store.put(b"k", b"1")
        await store.aclose()
        async with aio.open(path) as store:
            assert (await store.get(b"k")).value == b"1"  # type: ignore[union-attr]
            assert store.path == str(path)
        assert repr(store) == f"<AsyncStore {str(path)!r} on lmdb, closed>"
        async with await aio.open(path) as store:
            assert store.revision == 2

    run(main)


def test_open_that_fails_says_why_and_leaves_no_thread(run: Run, open_aio: OpenAio, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_aio():
            with pytest.raises(LockedError):
                await aio.open(tmp_path / "store.mvcc")
            with pytest.raises(LockedError):
                async with aio.open(tmp_path / "store.mvcc"):
                    pass
        with pytest.raises(ValueError, match="quota_bytes"):
            await aio.open(quota_bytes=-1)

    run(main)


def test_opening_does_nothing_before_it_is_awaited(tmp_path: Path) -> None:
    aio.open(tmp_path / "store.mvcc")
    assert list(tmp_path.iterdir()) == []


# Reading and writing


async def use_everything(store: AsyncStore, folder: Path) -> list[object]:
    """Call each method, and return what came of it."""
    found: list[object] = [
        await store.put(b"a", b"1"),
        await store.put(b"b", b"1"),
        await store.put(b"a", b"2", prev_kv=True),
        await store.txn(compare=[Compare.value(b"a", "==", b"2")], success=[Op.put(b"c", b"3"), Op.range(ALL)]),
        await store.delete(b"b"),
        await store.delete(b"b", prev_kv=True),
        await store.transact(lambda txn: (txn.put(b"d", b"4"), txn.put(b"e", b"5"))),
        await store.submit(Op.put(b"f", b"6")),
        await store.get(b"a"),
        await store.get(b"a", revision=2),
        await store.range(ALL, limit=2, descending=True),
        await store.count(ALL),
        [kv async for kv in store.scan(ALL)],
        [event async for event in store.history(ALL, prev_kv=True)],
        [change._replace(time_ms=None) async for change in store.log(b"a")],
        [difference async for difference in store.diff(2, 4)],
        [blame._replace(time_ms=None) async for blame in store.blame(ALL)],
        await store.at(0),
        await store.bisect(lambda view: view.get(b"c") is not None),
        await store.revert(b"a", to=2),
        await store.hash_kv(),
        store.revision,
        store.compact_revision,
        store.limits,
    ]
    async with store.snapshot(revision=3) as view:
        found += [view.revision, await view.get(b"a"), await view.count(ALL), await view.range(ALL)]
        found += [kv async for kv in view.scan(ALL)]
        found += [event async for event in view.history(ALL)]
    await store.compact(5)
    await store.compact(keep_revisions=2, physical=True)
    await store.enforce(Retention(revisions=1))
    await store.reclaim()
    await store.sync()
    await store.backup(folder / "copy.mvcc")
    found += [(await store.stats()).revisions_kept, store.compact_revision, await store.check()]
    return found


def use_everything_at_once(store: Store, folder: Path) -> list[object]:
    """As `use_everything`, without asyncio."""

    def block(txn: Txn) -> tuple[int, int]:
        return txn.put(b"d", b"4"), txn.put(b"e", b"5")

    found: list[object] = [
        store.put(b"a", b"1"),
        store.put(b"b", b"1"),
        store.put(b"a", b"2", prev_kv=True),
        store.txn(compare=[Compare.value(b"a", "==", b"2")], success=[Op.put(b"c", b"3"), Op.range(ALL)]),
        store.delete(b"b"),
        store.delete(b"b", prev_kv=True),
    ]
    with store.begin() as txn:
        found.append(block(txn))
    found += [
        store.submit(Op.put(b"f", b"6")),
        store.get(b"a"),
        store.get(b"a", revision=2),
        store.range(ALL, limit=2, descending=True),
        store.count(ALL),
        list(store.scan(ALL)),
        list(store.history(ALL, prev_kv=True)),
        [change._replace(time_ms=None) for change in store.log(b"a")],
        list(store.diff(2, 4)),
        [blame._replace(time_ms=None) for blame in store.blame(ALL)],
        store.at(0),
        store.bisect(lambda view: view.get(b"c") is not None),
        store.revert(b"a", to=2),
        store.hash_kv(),
        store.revision,
        store.compact_revision,
        store.limits,
    ]
    with store.snapshot(revision=3) as view:
        found += [view.revision, view.get(b"a"), view.count(ALL), view.range(ALL), *view.scan(ALL), *view.history(ALL)]
    store.compact(5)
    store.compact(keep_revisions=2, physical=True)
    store.enforce(Retention(revisions=1))
    store.reclaim()
    store.sync()
    store.backup(folder / "plain.mvcc")
    return [*found, store.stats().revisions_kept, store.compact_revision, store.check()]


def test_every_method_does_what_it_does_without_asyncio(
    run: Run, open_aio: OpenAio, engine: str, tmp_path: Path
) -> None:
    found: list[object] = []

    async def main() -> None:
        async with open_aio(engine=engine) as store:
            found.extend(await use_everything(store, tmp_path))

    run(main)
    with mvccstore.open() as plain:
        assert found == use_everything_at_once(plain, tmp_path)
    with mvccstore.open(tmp_path / "copy.mvcc") as copy:
        assert copy.check() == []
        assert copy.count(ALL) == 5


def test_scan_lets_the_loop_go_on_between_pages(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            await store.transact(lambda txn: [txn.put(b"%04d" % number) for number in range(3_000)])
            seen: list[int] = []
            rows = 0

            async def look() -> None:
                while rows < 3_000:
                    seen.append(rows)
                    await asyncio.sleep(0)

            task = asyncio.create_task(look())
            async for _ in store.scan(ALL):
                rows += 1
            await task
            assert len(set(seen)) > 3

    run(main)


def test_scan_closed_early_lets_its_revision_go(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            await asyncio.gather(*(store.put(b"%03d" % number) for number in range(200)))
            async with store.scan(ALL) as scan:
                assert (await anext(scan)).key == b"000"
                assert (await store.stats()).snapshots == 1
            assert (await store.stats()).snapshots == 0
            with pytest.raises(ClosedError):
                await anext(scan)
            history = store.history(ALL)
            await history.aclose()
            async for _ in store.scan(ALL):
                break
            assert (await store.stats()).snapshots == 0

    run(main)


def test_snapshot_stays_as_it_was_and_is_closed_at_the_end(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            await store.put(b"k", b"1")
            async with store.snapshot() as view:
                await store.put(b"k", b"2")
                await store.compact(3, physical=True)
                assert (await view.get(b"k")).value == b"1"
            with pytest.raises(ClosedError):
                await view.get(b"k")
            other = store.snapshot()
            await other.aclose()
            other.close()
            with pytest.raises(CompactedError):
                store.snapshot(revision=2)

    run(main)


# Group commit


def test_64_tasks_share_one_commit(run: Run, open_aio: OpenAio, engine: str) -> None:
    async def main() -> None:
        async with open_aio(engine=engine) as store:
            found = commits(store)
            revisions = await asyncio.gather(*(store.put(b"%d" % number) for number in range(64)))
            assert revisions == list(range(2, 66))
            assert len(found) == 1

            async def put_often(task: int) -> None:
                for _ in range(10):
                    await store.put(b"%d" % task)

            await asyncio.gather(*map(put_often, range(64)))
            # All that wait share one: those that are answered together put together.
            assert len(found) == 11

    run(main)


def test_all_kinds_of_writes_share_a_commit(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            await store.put(b"old")
            found = commits(store)
            lease, revision, deleted, result, submitted = await asyncio.gather(
                store.grant(ttl=10),
                store.put(b"k"),
                store.delete(b"old"),
                store.txn(success=[Op.put(b"t", b"")]),
                store.submit(LeaseGrantRequest(7, 1000)),
            )
            assert (revision, deleted, result.revision, submitted) == (3, 1, 5, submitted)
            assert len(found) == 1
            assert await lease.revoke() == 0
            assert len(found) == 2

    run(main)


def test_more_writes_than_a_commit_takes_are_all_done(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(engine="memory") as store:
            found = commits(store)
            count = 2 * BATCH_MAX + 1
            revisions = await asyncio.gather(*(store.put(b"%d" % number) for number in range(count)))
            assert revisions == list(range(2, count + 2))
            assert len(found) == 3

    run(main)


def test_writes_that_wait_for_a_transaction_share_the_commit_after_it(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            gate = Gate(store)
            await gate.entered()
            found = commits(store)
            tasks = []
            for number in range(10):
                tasks.append(asyncio.create_task(store.put(b"%d" % number)))
                await turns()
            await gate.open()
            assert [await task for task in tasks] == list(range(2, 12))
            changed = [changes for changes in found if changes is not None and changes.rows]
            assert len(changed) == 1

    run(main)


def test_a_write_that_is_refused_leaves_the_others_of_its_commit_alone(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(limits=Limits(key_bytes_max=3, txn_ops_max=1)) as store:
            found = commits(store)
            answers = await asyncio.gather(
                store.put(b"a"),
                store.put(b"b", lease=99),
                store.put(b"long"),
                store.put("text"),
                store.delete(b"long"),
                store.txn(success=[Op.put(b"x", b""), Op.put(b"y", b"")]),
                store.grant(ttl=-1),
                store.put(b"c"),
                return_exceptions=True,
            )
            assert [answers[0], answers[-1]] == [2, 3]
            expected = [LeaseNotFoundError, KeyTooLargeError, TypeError, KeyTooLargeError, TxnTooLargeError, ValueError]
            assert [type(answer) for answer in answers[1:-1]] == expected
            assert len(found) == 1

    run(main)


def test_a_quota_refuses_what_is_over_it_and_nothing_else(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(engine="memory", quota_bytes=20_000) as store:
            answers = await asyncio.gather(
                *(store.put(b"%d" % number, b"x" * 5_000) for number in range(6)),
                store.delete(b"none"),
                return_exceptions=True,
            )
            kinds = [type(answer) for answer in answers]
            assert kinds == [int] * 3 + [StorageFullError] * 3 + [int]
            assert answers[:3] == [2, 3, 4]

    run(main)


@pytest.mark.pure("replaces a method")
def test_if_the_engine_fails_each_write_is_tried_alone(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            committer = store._store._committer
            on_commit, left, why = committer.commit, [1], "the disk is full"

            def fail_first(*given: object) -> None:
                if left.pop() if left else 0:
                    raise StorageFullError(store.path, why)
                on_commit(*given)

            committer.commit = fail_first
            assert await asyncio.gather(*(store.put(b"%d" % number) for number in range(3))) == [2, 3, 4]

    run(main)


def test_what_is_no_store_error_reaches_the_caller_too(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            committer = store._store._committer
            apply = committer.queue._apply

            def fail(_: object) -> None:
                raise MemoryError

            committer.queue._apply = fail
            answers = await asyncio.gather(store.put(b"a"), store.put(b"b"), return_exceptions=True)
            assert [type(answer) for answer in answers] == [MemoryError, MemoryError]
            committer.queue._apply = apply
            assert await store.put(b"c") == 2

    run(main)


class OneByOne:
    """A replicator that notes what is proposed, and raises what no store would."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.proposed: list[Command] = []

    def propose(self, command: Command) -> Result:
        self.proposed.append(command)
        assert threading.current_thread().name == "mvccstore-writer"
        if command.request == Op.put(b"bad", b""):
            raise ZeroDivisionError
        (answer,) = self.store.apply_replicated([command], b"%d" % len(self.proposed))
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def close(self) -> None:
        pass


def test_a_replicator_is_asked_one_by_one(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio(replicator=OneByOne) as store:
            answers = await asyncio.gather(
                store.put(b"a"), store.put(b"bad"), store.put(b"b", lease=9), store.put(b"c"), return_exceptions=True
            )
            assert [answers[0], answers[3]] == [2, 3]
            assert [type(answer) for answer in answers[1:3]] == [ZeroDivisionError, LeaseNotFoundError]
            assert await store.transact(lambda txn: txn.put(b"d")) == 4
            assert await store.submit(Op.put(b"e", b"")) == PutResult(5)
            assert len(store._store._replicator.proposed) == 6

    run(main)


# Transactions


def test_transact_returns_what_the_function_returns_once_that_is_committed(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            who: list[str] = []

            def increment(txn: Txn) -> int:
                who.append(threading.current_thread().name)
                kv = txn.get(b"n")
                value = int(kv.value) + 1 if kv else 1
                txn.put(b"n", b"%d" % value)
                return value

            assert sorted(await asyncio.gather(*(store.transact(increment) for _ in range(20)))) == list(range(1, 21))
            assert (await store.get(b"n")).value == b"20"
            assert set(who) == {"mvccstore-writer"}

    run(main)


def test_transact_that_raises_has_not_happened(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:

            def fail(txn: Txn, error: BaseException) -> None:
                txn.put(b"k")
                raise error

            async def wait(txn: Txn) -> None:
                txn.put(b"k")

            with pytest.raises(ZeroDivisionError):
                await store.transact(lambda txn: fail(txn, ZeroDivisionError()))
            with pytest.raises(RuntimeError, match="StopIteration"):
                await store.transact(lambda txn: fail(txn, StopIteration(1)))
            with pytest.raises(TypeError, match="plain function"):
                await store.transact(wait)
            with pytest.raises(TypeError, match="plain function"):
                await store.transact(lambda txn: (txn.put(b"k"), asyncio.get_running_loop())[1].create_future())
            assert (store.revision, await store.put(b"k")) == (1, 2)

    with pytest.raises(RuntimeError, match="no running event loop"):
        run(main)


def test_transact_has_the_context_of_its_caller(run: Run, open_aio: OpenAio) -> None:
    name: ContextVar[str] = ContextVar("name")

    async def main() -> None:
        async with open_aio() as store:
            name.set("caller")
            assert await store.transact(lambda _: name.get()) == "caller"

    run(main)


def test_the_loop_reads_while_a_transaction_holds_the_writers_up(run: Run, open_aio: OpenAio, engine: str) -> None:
    async def main() -> None:
        async with open_aio(engine=engine) as store:
            await store.put(b"k", b"1")
            gate = Gate(store)
            await gate.entered()
            assert (await store.get(b"k")).value == b"1"
            assert [kv.key async for kv in store.scan(ALL)] == [b"k"]
            watcher = store.watch(b"k")
            assert await watcher.next_batch(timeout=0) is None
            watcher.close()
            await gate.open()

    run(main)


# What is refused


def test_a_read_only_store_is_read_and_not_written(run: Run, open_aio: OpenAio, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_aio() as store:
            await store.put(b"k", b"1")
        async with aio.open(tmp_path / "store.mvcc", read_only=True) as reader:
            assert (await reader.get(b"k")).value == b"1"  # type: ignore[union-attr]
            for write in (
                lambda: reader.put(b"k"),
                lambda: reader.delete(b"k"),
                lambda: reader.transact(lambda txn: txn.put(b"k")),
                lambda: reader.grant(ttl=1),
                lambda: reader.compact(2),
                lambda: reader.reclaim(),
                lambda: reader.revert(b"k", to=2),
            ):
                with pytest.raises(StorageError, match="read-only"):
                    await write()
            async with reader.watch(b"k", start_revision=2) as watcher:
                assert (await anext(watcher)).kv.value == b"1"
                assert await watcher.next_batch(timeout=0.001) is None

    run(main)


def test_another_loop_is_told_so(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            await store.put(b"k")
            lease, view, watcher = await store.grant(ttl=10), store.snapshot(), store.watch(b"k")

            async def elsewhere() -> None:
                for use in (
                    lambda: store.get(b"k"),
                    lambda: store.put(b"k"),
                    lambda: store.check(),
                    lambda: store.aclose(),
                    lambda: store.transact(lambda txn: txn.put(b"k")),
                    lambda: lease.keep_alive(),
                    lambda: lease.revoke(),
                    lambda: view.get(b"k"),
                    lambda: watcher.next_batch(),
                    lambda: anext(watcher),
                ):
                    with pytest.raises(RuntimeError, match="another event loop"):
                        await use()

            thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
            failures: list[object] = []
            hook, threading.excepthook = threading.excepthook, failures.append
            thread.start()
            await asyncio.to_thread(thread.join)
            threading.excepthook = hook
            assert failures == []
            watcher.close()
            view.close()
            assert await store.put(b"k") == 3

    run(main)


def test_without_a_loop_there_is_an_error(run: Run, open_aio: OpenAio) -> None:
    stores: list[AsyncStore] = []

    async def main() -> None:
        async with open_aio() as store:
            stores.append(store)

    run(main)
    with pytest.raises(RuntimeError, match="event loop"):
        stores[0].watch(b"k")


# Closing


def test_a_closed_store_says_so_and_may_be_closed_again(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            lease, view, watcher = await store.grant(ttl=10), store.snapshot(), store.watch(b"k")
            await store.aclose()
            await store.aclose()
            await asyncio.gather(store.aclose(), store.aclose())
            for use in (
                lambda: store.get(b"k"),
                lambda: store.put(b"k"),
                lambda: store.check(),
                lambda: store.grant(ttl=1),
                lambda: store.transact(lambda txn: txn.put(b"k")),
                lambda: store.__aenter__(),
                lambda: lease.revoke(),
                lambda: view.get(b"k"),
                lambda: watcher.next_batch(),
            ):
                with pytest.raises(ClosedError):
                    await use()
            for call in (lambda: store.watch(b"k"), lambda: store.scan(b"k"), lambda: store.revision):
                with pytest.raises(ClosedError):
                    call()

    run(main)


def test_closing_waits_for_what_was_asked_for_before(run: Run, open_aio: OpenAio, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_aio() as store:
            gate = Gate(store)
            await gate.entered()
            backup = asyncio.create_task(store.backup(tmp_path / "copy.mvcc"))
            puts = [asyncio.create_task(store.put(b"%d" % number)) for number in range(10)]
            await turns()
            late = asyncio.create_task(store.put(b"late"))  # begins in the turn in which closing does
            closing = asyncio.create_task(store.aclose())
            await turns()
            with pytest.raises(ClosedError):
                await store.put(b"too late")
            assert not closing.done()
            await gate.open()
            assert [await put for put in (*puts, late)] == list(range(2, 13))
            await backup
            await closing
        with mvccstore.open(tmp_path / "store.mvcc") as plain:
            assert plain.revision == 12
        with mvccstore.open(tmp_path / "copy.mvcc") as copy:
            assert copy.check() == []

    run(main)


def test_two_tasks_that_close_both_wait(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            gate = Gate(store)
            await gate.entered()
            closings = [asyncio.create_task(store.aclose()) for _ in range(3)]
            await turns()
            closings[0].cancel()
            await turns()
            assert [closing.done() for closing in closings] == [True, False, False]
            await gate.open()
            assert await asyncio.gather(*closings[1:]) == [None, None]

    run(main)


def test_a_store_closed_beneath_is_closed(run: Run, open_aio: OpenAio) -> None:
    async def main() -> None:
        async with open_aio() as store:
            store._store.close()
            for use in (lambda: store.get(b"k"), lambda: store.put(b"k"), lambda: store.check()):
                with pytest.raises(ClosedError):
                    await use()
            await store.aclose()

    run(main)


def test_a_forgotten_store_leaves_no_thread(run: Run) -> None:
    async def main() -> None:
        store = await aio.open()
        await asyncio.gather(store.put(b"k"), store.check())
        assert len(own_threads()) == 2
        beneath = weakref.ref(store._store)
        del store
        await turns()  # the loop itself holds on to what it has just done
        gc.collect()
        for thread in own_threads():
            thread.join()
        gc.collect()
        assert beneath() is None

    run(main)


def test_a_loop_that_ends_without_closing_holds_nothing_up(run: Run, tmp_path: Path) -> None:
    go, done = threading.Event(), threading.Event()
    stores: list[AsyncStore] = []

    async def main() -> None:
        store = await aio.open(tmp_path / "store.mvcc")
        stores.append(store)

        def hold(txn: Txn) -> None:
            done.set()
            assert go.wait(30)
            txn.put(b"k")

        tasks = [asyncio.create_task(store.transact(hold)), asyncio.create_task(store.put(b"after"))]
        watcher = store.watch(b"k")
        tasks.append(asyncio.create_task(watcher.next_batch()))
        await asyncio.to_thread(done.wait)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stores.append(watcher)  # it would be collected

    run(main)
    go.set()
    store = stores.pop(0)
    store._writer.stop()
    store._writer.join()
    assert [kv.key for kv in store._store.scan(ALL)] == [b"after", b"k"]
    store._store.close()


def test_many_requests_in_one_commit_keep_the_checks_of_one(open_store: type[Store], engine: str) -> None:
    store = open_store(engine=engine)  # type: ignore[call-arg]
    seen: list[Changes | None] = []
    on_commit = store._committer._on_commit
    store._committer._on_commit = lambda changes: (seen.append(changes), on_commit(changes))  # type: ignore[assignment, func-returns-value]
    answers = store.submit_many([Op.put(b"a", b""), Op.put(b"b", b"", lease=9), Op.put(b"c", b"")])
    assert [answers[0], answers[2]] == [PutResult(2), PutResult(3)]
    assert isinstance(answers[1], LeaseNotFoundError)
    assert len(seen) == 1
    assert store.submit_many([]) == []
    with store.begin(), pytest.raises(mvccstore.TxnError):
        store.submit_many([Op.put(b"d", b"")])
    store.close()
    with pytest.raises(ClosedError):
        store.submit_many([Op.put(b"d", b"")])
