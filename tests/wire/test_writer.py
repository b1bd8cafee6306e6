"""The one writer thread: what shares a commit, who is told of what, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from mvccstore import ClosedError, KeyNotFoundError, Store, StoreError
from mvccstore.commit import BATCH_MAX
from mvccstore.errors import StorageFullError
from mvccstore.server.transport.counts import Histogram
from mvccstore.server.writer import Writer
from mvccstore.store import StagedWrites
from mvccstore.types import DeleteRequest, KeyRange, PutRequest, PutResult, WriteRequest

SECONDS = 30
Open = Callable[..., Store]


class Gated:
    """A store whose commits are let through by the test, one after the other, and noted."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.path = store.path
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self._has_come = threading.Semaphore(0)
        self._may_go = threading.Semaphore(0)
        self.error: Exception | None = None

    def submit_many(self, requests: Sequence[WriteRequest]) -> list[Any]:
        self.threads.add(threading.get_ident())
        self.batches.append(len(requests))
        self._has_come.release()
        assert self._may_go.acquire(timeout=SECONDS)
        error, self.error = self.error, None
        if error is not None:
            raise error
        return self.store.submit_many(requests)

    def try_submit_many(self, requests: Sequence[WriteRequest]) -> list[Any] | None:
        return self.store.try_submit_many(requests)

    def stage_many(self, requests: Sequence[WriteRequest]) -> StagedWrites | None:
        return self.store.stage_many(requests)

    def let(self, number: int = 1) -> None:
        """Let commits through."""
        self._may_go.release(number)

    async def has_come(self) -> None:
        """Return when the writer is at the next commit."""
        assert await asyncio.to_thread(self._has_come.acquire, True, SECONDS)


class Answers:
    """Callbacks for the writer, and what they were called with, in order."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, Any]] = []
        self.threads: set[int] = set()
        self._changed = asyncio.Event()

    def of(self, name: Any) -> Callable[[Any], None]:
        def done(answer: Any) -> None:
            self.given.append((name, answer))
            self.threads.add(threading.get_ident())
            self._changed.set()

        return done

    async def wait(self, number: int) -> list[Any]:
        """Return the names of those that were answered, once there are so many."""
        async with asyncio.timeout(SECONDS):
            while len(self.given) < number:
                self._changed.clear()
                await self._changed.wait()
        return self.names

    @property
    def names(self) -> list[Any]:
        return [name for name, _ in self.given]

    @property
    def answers(self) -> list[Any]:
        return [answer for _, answer in self.given]


def put(key: bytes, **options: Any) -> PutRequest:
    return PutRequest(key, b"1", **options)


def new_writer(store: Any) -> Writer:
    return Writer(store, Histogram((1.0,)))


@pytest.fixture
def gated(open_store: Open) -> Gated:
    return Gated(open_store(engine="lmdb"))


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main, debug=True)


def test_what_comes_during_a_commit_makes_the_next_one(gated: Gated) -> None:
    async def main() -> None:
        writer, answers = new_writer(gated), Answers()
        writer.submit(put(b"first"), answers.of(0))
        await gated.has_come()
        for number in range(1, 51):
            writer.submit(put(b"%d" % number), answers.of(number))
            if number % 10 == 0:
                await asyncio.sleep(0)  # in five turns of the loop
        assert (writer.under_way, answers.given) == (51, [])
        gated.let()
        assert await answers.wait(1) == [0]
        await gated.has_come()
        assert answers.names == [0]  # I2: not before its commit
        gated.let()
        assert await answers.wait(51) == list(range(51))
        assert gated.batches == [1, 50]
        assert [answer.revision for answer in answers.answers] == list(range(2, 53))
        assert answers.threads == {threading.get_ident()}
        assert len(gated.threads) == 1
        assert gated.threads != answers.threads
        assert writer.under_way == 0
        await writer.stop()

    run(main())


def test_no_commit_is_larger_than_the_limit(gated: Gated) -> None:
    async def main() -> None:
        writer, answers = new_writer(gated), Answers()
        number = 2 * BATCH_MAX + 7
        for key in range(number):
            writer.submit(put(b"%d" % key), answers.of(key))
        gated.let(3)
        assert await answers.wait(number) == list(range(number))
        assert gated.batches == [BATCH_MAX, BATCH_MAX, 7]
        await writer.stop()

    run(main())


def test_an_error_is_told_to_whom_it_belongs(gated: Gated) -> None:
    async def main() -> None:
        writer, answers = new_writer(gated), Answers()
        requests = [put(b"a"), put(b"none", ignore_lease=True), put(b"b"), DeleteRequest(b"none"), put(b"c")]
        for place, request in enumerate(requests):
            writer.submit(request, answers.of(place))
        gated.let()
        await answers.wait(5)
        assert gated.batches == [5]
        kinds = [type(answer).__name__ for answer in answers.answers]
        assert kinds == ["PutResult", "KeyNotFoundError", "PutResult", "DeleteResult", "PutResult"]
        assert isinstance(answers.answers[1], KeyNotFoundError)
        assert [answers.answers[place].revision for place in (0, 2, 4)] == [2, 3, 4]
        await writer.stop()

    run(main())


@pytest.mark.parametrize("error", [StorageFullError("a disk", "as told"), OSError(5, "as told")])
def test_a_commit_that_fails_is_told_to_all_of_it_and_the_next_goes_on(gated: Gated, error: Exception) -> None:
    async def main() -> None:
        writer, answers = new_writer(gated), Answers()
        gated.error = error
        for number in range(3):
            writer.submit(put(b"a"), answers.of(number))
        await asyncio.sleep(0)
        await gated.has_come()
        writer.submit(put(b"b"), answers.of(3))
        gated.let(2)
        assert await answers.wait(4) == [0, 1, 2, 3]
        assert answers.answers[:3] == [error] * 3
        assert answers.answers[3] == PutResult(2)
        await writer.stop()

    run(main())


def test_functions_are_called_in_their_place_between_commits(gated: Gated) -> None:
    async def main() -> None:
        writer, answers = new_writer(gated), Answers()
        seen: list[int] = []

        def look() -> str:
            seen.append(len(gated.batches))
            return "looked"

        def fail() -> str:
            raise ClosedError

        writer.submit(put(b"a"), answers.of("put a"))
        writer.submit(put(b"b"), answers.of("put b"))
        writer.call(look, answers.of("look"))
        writer.call(fail, answers.of("fail"))
        writer.submit(put(b"c"), answers.of("put c"))
        gated.let(2)
        assert await answers.wait(5) == ["put a", "put b", "look", "fail", "put c"]
        assert (gated.batches, seen) == ([2, 1], [1])
        assert answers.answers[2] == "looked"
        assert isinstance(answers.answers[3], ClosedError)
        await writer.stop()

    run(main())


def test_a_callback_that_fails_keeps_no_other_from_being_called(gated: Gated) -> None:
    async def main() -> None:
        writer, answers = new_writer(gated), Answers()
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        def fail(_: Any) -> None:
            raise ValueError

        writer.submit(put(b"a"), answers.of("a"))
        writer.submit(put(b"b"), fail)
        writer.submit(put(b"c"), answers.of("c"))
        gated.let()
        assert await answers.wait(2) == ["a", "c"]
        assert [type(context["exception"]) for context in told] == [ValueError]
        assert writer.under_way == 0
        await writer.stop()

    run(main())


def test_what_is_pending_when_it_stops_is_carried_out_and_answered(gated: Gated) -> None:
    async def main() -> None:
        writer, answers = new_writer(gated), Answers()
        writer.submit(put(b"a"), answers.of("a"))
        await gated.has_come()
        writer.submit(put(b"b"), answers.of("b"))
        await asyncio.sleep(0)  # b is in the thread's inbox, c is not
        writer.submit(put(b"c"), answers.of("c"))
        writer.call(lambda: "called", answers.of("call"))
        stopping = asyncio.create_task(writer.stop())
        await asyncio.sleep(0)
        writer.submit(put(b"d"), answers.of("d"))
        assert answers.given == []
        gated.let(2)
        await stopping
        await answers.wait(5)
        by_name = dict(answers.given)
        assert isinstance(by_name.pop("d"), ClosedError)
        assert by_name == {"a": PutResult(2), "b": PutResult(3), "c": PutResult(4), "call": "called"}
        assert [name for name in answers.names if name != "d"] == ["a", "b", "c", "call"]
        assert writer.under_way == 0
        assert [thread for thread in threading.enumerate() if thread.ident in gated.threads] == []
        await writer.stop()  # twice is harmless

    run(main())


def test_once_it_has_stopped_everything_is_refused(gated: Gated) -> None:
    async def main() -> None:
        writer, answers = new_writer(gated), Answers()
        await writer.stop()
        writer.submit(put(b"a"), answers.of("put"))
        writer.call(lambda: "called", answers.of("call"))
        assert answers.given == []  # on the loop, but later
        await answers.wait(2)
        assert {type(answer) for answer in answers.answers} == {ClosedError}
        assert gated.batches == []

    run(main())


def test_in_memory_small_requests_need_no_thread_unless_somebody_else_writes(open_store: Open) -> None:
    store = open_store(engine="memory")

    before = set(threading.enumerate())

    def others() -> int:
        return sum(thread.name == "mvccstore-server-writer" for thread in set(threading.enumerate()) - before)

    async def main() -> None:
        writer, answers = new_writer(store), Answers()
        writer.submit(put(b"a"), answers.of(b"a"))
        assert await answers.wait(1) == [b"a"]
        assert others() == 0
        held, may_go = threading.Event(), threading.Event()

        def hold() -> None:
            with store.begin() as txn:
                txn.put(b"block")
                held.set()
                assert may_go.wait(SECONDS)

        thread = threading.Thread(target=hold)
        thread.start()
        assert await asyncio.to_thread(held.wait, SECONDS)
        for name in (b"c", b"d"):
            writer.submit(put(name), answers.of(name))
            await asyncio.sleep(0)
        assert (others(), answers.names, writer.under_way) == (1, [b"a"], 2)
        may_go.set()
        assert await answers.wait(3) == [b"a", b"c", b"d"]  # I1
        thread.join(SECONDS)
        await writer.stop()
        assert others() == 0

    run(main())


def test_in_memory_what_follows_what_takes_long_waits_for_it(open_store: Open) -> None:
    store = open_store(engine="memory")

    async def main() -> None:
        writer, answers = new_writer(store), Answers()
        may_go = threading.Event()
        writer.call(lambda: may_go.wait(SECONDS), answers.of("long"))
        await asyncio.sleep(0)
        writer.submit(put(b"a"), answers.of("small"))
        await asyncio.sleep(0)
        assert (answers.given, store.get(b"a")) == ([], None)  # I1
        may_go.set()
        assert await answers.wait(2) == ["long", "small"]
        writer.submit(DeleteRequest(KeyRange.all()), answers.of("range"))
        assert await answers.wait(3) == ["long", "small", "range"]
        await writer.stop()

    run(main())


def test_answers_for_a_loop_that_is_closed_go_nowhere(gated: Gated) -> None:
    answered: list[object] = []
    writers: list[Writer] = []

    async def main() -> None:
        writers.append(new_writer(gated))
        writers[0].submit(put(b"a"), answered.append)
        await gated.has_come()

    asyncio.run(main())
    (thread,) = [thread for thread in threading.enumerate() if thread.ident in gated.threads]
    gated.let()
    writers[0]._inbox.put(None)  # as `stop` does, which needs the loop
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert (answered, gated.store.revision) == ([], 2)


def test_how_long_commits_took_is_counted(open_store: Open) -> None:
    async def main() -> None:
        for store in (open_store("a"), open_store(engine="memory")):
            commits = Histogram((60.0,))
            writer, answers = Writer(store, commits), Answers()
            for number in range(3):
                writer.submit(put(b"a"), answers.of(number))
                await answers.wait(number + 1)
            assert commits.counts == [3, 0]
            await writer.stop()

    run(main())


def test_a_store_that_was_closed_says_so_to_each(open_store: Open) -> None:
    async def main() -> None:
        for store in (open_store("a"), open_store(engine="memory")):
            writer, answers = new_writer(store), Answers()
            store.close()
            for number in range(2):
                writer.submit(put(b"a"), answers.of(number))
            await answers.wait(2)
            assert all(isinstance(answer, StoreError) for answer in answers.answers)
            await writer.stop()

    run(main())
