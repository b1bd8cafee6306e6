"""When connections write: once for all that is answered at once, and without a turn of the loop for it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from typing import Any, cast

import pytest

from mvccstore import Store
from mvccstore.server.transport.counts import Histogram
from mvccstore.server.transport.flushes import Flushes
from mvccstore.server.writer import Writer
from mvccstore.types import PutRequest
from tests.concurrency.interrupter import Interrupted, Interrupter
from tests.wire.http2_kit import FakeLoop, Session, unary


def two_waiting() -> tuple[Session, Session]:
    """Connect two clients to one server, each with two calls that are not answered yet."""
    one = Session()
    other = Session(beside=one)
    other.connection._flushes = one.flushes
    for session, name in ((one, b"a"), (other, b"b")):
        session.send(unary(1, b"/t.T/Later", name + b"1"), unary(3, b"/t.T/Later", name + b"2"))
    return one, other


def test_what_is_answered_while_held_is_written_at_its_end_once_for_each_connection() -> None:
    one, other = two_waiting()
    calls = one.services.calls
    one.flushes.hold()
    for name in (b"a1", b"b1", b"a2", b"b2"):
        calls[name].reply(name)
    assert not one.transport.written
    assert not other.transport.written
    one.flushes.release()
    for session, name in ((one, b"a"), (other, b"b")):
        assert len(session.transport.written) == 1
        session.take()
        assert [session.answers[number].messages for number in (1, 3)] == [[(0, name + b"1")], [(0, name + b"2")]]


def test_what_is_answered_otherwise_is_written_in_the_next_turn() -> None:
    one, _ = two_waiting()
    one.services.calls[b"a1"].reply(b"")
    assert not one.transport.written
    one.step()
    assert one.answers[1].status == (0, "")
    one.flushes.hold()
    one.flushes.release()
    one.services.calls[b"a2"].reply(b"")
    assert not one.transport.written
    one.step()
    assert one.answers[3].status == (0, "")


def test_one_that_fails_leaves_the_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    flushes, loop = Flushes(), cast("Any", FakeLoop())
    written: list[int] = []

    def fail() -> None:
        raise MemoryError

    flushes.hold()
    for flush in (lambda: written.append(1), fail, lambda: written.append(2)):
        flushes.soon(flush, loop)
    with caplog.at_level(logging.ERROR, "mvccstore.server"):
        flushes.release()
    assert written == [1, 2]
    assert [record.getMessage() for record in caplog.records] == ["a connection could not write"]


def test_who_is_interrupted_leaves_what_is_left_to_the_next() -> None:
    flushes, loop = Flushes(), cast("Any", FakeLoop())
    written: list[int] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    flushes.hold()
    for flush in (lambda: written.append(1), interrupt, lambda: written.append(2)):
        flushes.soon(flush, loop)
    with pytest.raises(KeyboardInterrupt):
        flushes.release()
    flushes.hold()
    flushes.release()
    assert written == [1, 2]


@pytest.mark.pure("goes by lines of Python")
def test_nothing_is_held_by_a_writer_that_was_interrupted(store: Store) -> None:
    async def main() -> int:
        flushes = Flushes()
        writer = Writer(store, Histogram((1.0,)), flushes=flushes)
        before = sys.gettrace()
        for place in range(100):
            interrupter = Interrupter(place, inspect.getfile(Writer))
            sys.settrace(interrupter)
            try:
                writer._deliver()
            except Interrupted:
                pass
            finally:
                sys.settrace(before)
            assert not flushes._is_held, interrupter.where
            if interrupter.where is None:
                break
        await writer.stop()
        return place

    assert asyncio.run(main()) > 3


@pytest.mark.parametrize("engine", ["memory", "lmdb"])
def test_answers_to_writes_take_no_turn_of_the_loop_to_be_written(engine: str, open_store: Any) -> None:
    store: Store = open_store(engine=engine)
    happened: list[str] = []

    async def main() -> None:
        loop, flushes = asyncio.get_running_loop(), Flushes()
        writer = Writer(store, Histogram((1.0,)), flushes=flushes)
        both = loop.create_future()

        def done(answer: Any) -> None:
            happened.append(f"revision {answer.revision}")
            loop.call_soon(happened.append, "turn")
            flushes.soon(lambda: happened.append("written"), loop)
            if answer.revision == 3:
                loop.call_soon(both.set_result, None)

        writer.submit(PutRequest(b"k", b"1"), done)
        writer.submit(PutRequest(b"k", b"2"), done)
        await both
        await writer.stop()

    asyncio.run(main(), debug=True)
    assert happened == ["revision 2", "revision 3", "written", "written", "turn", "turn"]
