"""The queue of writers alone, with a stand-in for applying: who leads, who shares, who is woken.

Threads are steered by what they are seen to do (a turn that is queued, an apply that is entered), never by
time; timeouts only turn a deadlock into a failure.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue

import pytest

from mvccstore import commit
from mvccstore.commit import CommitQueue, Turn
from mvccstore.errors import TxnError
from mvccstore.types import Command, PutRequest, PutResult
from tests.concurrency.interrupter import Interrupted, Interrupter

SECONDS = 30
"""Longer than anything here takes; waiting for it means a deadlock."""


def command(number: int) -> Command:
    return Command(PutRequest(b"%d" % number), number)


class Waiting(deque[Turn]):
    """The queue's deque, telling when a turn has been queued."""

    def __init__(self) -> None:
        super().__init__()
        self.queued: SimpleQueue[Turn] = SimpleQueue()

    def append(self, turn: Turn) -> None:
        super().append(turn)
        self.queued.put(turn)


class Applier:
    """Answers each command with its number; notes who shared a commit; waits to be let go if asked to."""

    def __init__(self, *, is_gated: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.errors: dict[int, BaseException] = {}
        self.raises: dict[int, BaseException] = {}
        self.entered: SimpleQueue[list[int]] = SimpleQueue()
        self.go = threading.Semaphore(0)
        self.is_gated = is_gated
        self.inside = 0

    def __call__(self, turns: list[Turn]) -> None:
        self.inside += 1
        assert self.inside == 1
        numbers = [turn.command.time_ms for turn in turns if turn.command is not None]
        assert len(numbers) == len(turns)
        self.batches.append(numbers)
        if self.is_gated:
            self.entered.put(numbers)
            assert self.go.acquire(timeout=SECONDS)
        try:
            for number, turn in zip(numbers, turns, strict=True):
                if number in self.raises:
                    raise self.raises.pop(number)
                turn.error = self.errors.get(number)
                turn.result = PutResult(number)
        finally:
            self.inside -= 1


class Bench:
    """A queue, its applier, and the threads that use it."""

    def __init__(self, *, is_gated: bool = False) -> None:
        self.applier = Applier(is_gated=is_gated)
        self.queue = CommitQueue(self.applier)
        self.waiting = Waiting()
        self.queue._waiting = self.waiting
        self.threads: list[threading.Thread] = []
        self.answers: dict[int, object] = {}

    def start(self, work: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        self.threads.append(thread)
        thread.start()
        return thread

    def propose(self, number: int) -> None:
        """Propose in a thread of its own, and keep what comes of it."""

        def work() -> None:
            try:
                self.answers[number] = self.queue.propose(command(number))
            except BaseException as error:  # noqa: BLE001 - that is the answer
                self.answers[number] = error

        self.start(work)

    def propose_behind(self, *numbers: int) -> None:
        """Propose one after the other, each queued before the next."""
        for number in numbers:
            self.propose(number)
            assert self.waiting.queued.get(timeout=SECONDS).command == command(number)

    def lead(self, number: int) -> None:
        """Have a gated apply of one command under way."""
        self.propose(number)
        assert self.applier.entered.get(timeout=SECONDS) == [number]

    def let_go(self) -> None:
        """Open the gates, also of what follows."""
        self.applier.is_gated = False
        self.applier.go.release(1000)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(SECONDS)
            assert not thread.is_alive(), "a thread waits for ever"

    def check_alive(self) -> None:
        """Raise unless the queue still serves, and nobody is left in it."""
        self.applier.is_gated = False
        self.propose(-1)
        self.join()
        assert self.answers[-1] == PutResult(-1)
        assert not self.queue._waiting
        assert self.queue._leader is None


def test_lone_writer_commits_alone_and_at_once() -> None:
    bench = Bench()
    assert [bench.queue.propose(command(n)) for n in (1, 2)] == [PutResult(1), PutResult(2)]
    assert bench.applier.batches == [[1], [2]]
    bench.check_alive()


def test_writers_that_wait_share_the_next_commit_in_the_order_they_came() -> None:
    bench = Bench(is_gated=True)
    bench.lead(0)
    bench.propose_behind(*range(1, 9))
    bench.let_go()
    bench.join()
    assert bench.applier.batches == [[0], list(range(1, 9))]
    assert bench.answers == {number: PutResult(number) for number in range(9)}
    bench.check_alive()


def test_writers_that_come_during_a_commit_are_in_the_next() -> None:
    bench = Bench(is_gated=True)
    bench.lead(0)
    bench.propose_behind(1, 2)
    bench.applier.go.release()
    assert bench.applier.entered.get(timeout=SECONDS) == [1, 2]
    bench.propose_behind(3, 4)
    bench.let_go()
    bench.join()
    assert bench.applier.batches == [[0], [1, 2], [3, 4]]
    bench.check_alive()


def test_batch_ends_at_an_exclusive_turn_and_nobody_overtakes_it() -> None:
    bench = Bench(is_gated=True)
    bench.lead(0)
    bench.propose_behind(1, 2)

    def exclusive() -> None:
        bench.queue.enter()
        bench.applier.batches.append([])
        bench.queue.leave()

    bench.start(exclusive)
    bench.waiting.queued.get(timeout=SECONDS)
    bench.propose_behind(3, 4)
    bench.let_go()
    bench.join()
    assert bench.applier.batches == [[0], [1, 2], [], [3, 4]]
    bench.check_alive()


def test_exclusive_turns_are_served_one_by_one_in_order() -> None:
    bench = Bench()
    bench.queue.enter()
    order: list[int] = []

    def exclusive(number: int) -> None:
        bench.queue.enter()
        order.append(number)
        assert bench.queue._leader is not None
        bench.queue.leave()

    for number in range(5):
        bench.start(lambda number=number: exclusive(number))  # type: ignore[misc]
        bench.waiting.queued.get(timeout=SECONDS)
    assert order == []
    bench.queue.leave()
    bench.join()
    assert order == list(range(5))
    bench.check_alive()


def test_batch_is_no_larger_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "BATCH_MAX", 3)
    bench = Bench(is_gated=True)
    bench.lead(0)
    bench.propose_behind(*range(1, 9))
    bench.let_go()
    bench.join()
    assert bench.applier.batches == [[0], [1, 2, 3], [4, 5, 6], [7, 8]]
    bench.check_alive()


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_error_of_one_is_its_own(refused: int) -> None:
    bench = Bench(is_gated=True)
    bench.applier.errors[refused] = TxnError("refused")
    bench.lead(0)
    bench.propose_behind(1, 2, 3)
    bench.let_go()
    bench.join()
    assert bench.applier.batches == [[0], [1, 2, 3]]
    assert bench.answers.pop(refused) is bench.applier.errors[refused]
    assert bench.answers == {number: PutResult(number) for number in range(4) if number != refused}
    bench.check_alive()


def test_failure_of_applying_reaches_the_leader_and_the_others_are_tried_again() -> None:
    bench = Bench(is_gated=True)
    bench.applier.raises[2] = MemoryError()
    bench.lead(0)
    bench.propose_behind(1, 2, 3)
    bench.let_go()
    bench.join()
    assert isinstance(bench.answers.pop(1), MemoryError)
    assert bench.answers == {number: PutResult(number) for number in (0, 2, 3)}
    bench.check_alive()


def test_interrupt_of_the_leader_is_not_raised_in_the_threads_it_wrote_for() -> None:
    bench = Bench(is_gated=True)
    bench.applier.raises[3] = KeyboardInterrupt()
    bench.lead(0)
    bench.propose_behind(1, 2, 3)
    bench.let_go()
    bench.join()
    assert isinstance(bench.answers[1], KeyboardInterrupt)  # the leader: it is its own
    assert [bench.answers[number] for number in (2, 3)] == [PutResult(2), PutResult(3)]
    bench.check_alive()


# Interrupted writers


@contextmanager
def interrupts() -> Iterator[SimpleQueue[str]]:
    """Have SIGUSR1 raise `Interrupted` in the main thread; what is yielded gets an item when it does."""
    seen: SimpleQueue[str] = SimpleQueue()

    def handler(signum: int, frame: object) -> None:
        del signum, frame
        seen.put("interrupted")
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupt_main(seen: SimpleQueue[str]) -> None:
    """Interrupt the main thread, and return when it is."""
    main = threading.main_thread().ident
    assert main is not None
    for _ in range(SECONDS * 10):
        signal.pthread_kill(main, signal.SIGUSR1)
        # A signal that comes just before a lock is waited for does not end the waiting; the next one does.
        with suppress(Empty):
            seen.get(timeout=0.1)
            return
    pytest.fail("the main thread cannot be interrupted")


def test_writer_interrupted_in_the_queue_leaves_it_and_is_not_applied() -> None:
    bench = Bench(is_gated=True)
    bench.lead(0)
    with interrupts() as seen:

        def interrupt() -> None:
            bench.waiting.queued.get(timeout=SECONDS)
            interrupt_main(seen)

        thread = bench.start(interrupt)
        with pytest.raises(Interrupted):
            bench.queue.propose(command(1))
        thread.join(SECONDS)
    assert not bench.queue._waiting
    bench.propose_behind(2)
    bench.let_go()
    bench.join()
    assert bench.applier.batches == [[0], [2]]
    bench.check_alive()


def test_exclusive_turn_interrupted_in_the_queue_leaves_it() -> None:
    bench = Bench()
    holder_may_end = threading.Event()
    holds = threading.Event()

    def hold() -> None:
        bench.queue.enter()
        holds.set()
        assert holder_may_end.wait(SECONDS)
        bench.queue.leave()

    bench.start(hold)
    assert holds.wait(SECONDS)
    with interrupts() as seen:

        def interrupt() -> None:
            bench.waiting.queued.get(timeout=SECONDS)
            interrupt_main(seen)

        bench.start(interrupt)
        with pytest.raises(Interrupted):
            bench.queue.enter()
    holder_may_end.set()
    bench.join()
    bench.check_alive()


def test_writer_interrupted_while_it_is_written_for_raises_and_is_written_all_the_same() -> None:
    bench = Bench(is_gated=True)
    bench.lead(0)
    bench.propose_behind(1)
    with interrupts() as seen:

        def interrupt() -> None:
            assert bench.waiting.queued.get(timeout=SECONDS).command == command(2)
            bench.applier.go.release()
            assert bench.applier.entered.get(timeout=SECONDS) == [1, 2]
            interrupt_main(seen)
            bench.let_go()

        bench.start(interrupt)
        with pytest.raises(Interrupted):
            bench.queue.propose(command(2))
    bench.join()
    assert bench.applier.batches == [[0], [1, 2]]
    assert bench.answers[1] == PutResult(1)
    bench.check_alive()


@pytest.mark.parametrize("is_awake", [False, True], ids=["not yet awake", "awake"])
def test_writer_interrupted_when_it_was_handed_the_lead_hands_it_on(is_awake: bool) -> None:
    bench = Bench()
    bench.queue.enter()
    turn = Turn(None)
    turn.gate = threading.Lock()
    turn.gate.acquire()
    bench.queue._waiting.append(turn)
    bench.waiting.queued.get(timeout=SECONDS)
    bench.propose_behind(1)
    bench.queue.leave()
    if is_awake:
        # The interrupt comes between the return of `acquire` and the next instruction.
        assert turn.gate.acquire(timeout=SECONDS)
    thread = bench.start(lambda: bench.queue._leave(turn))
    thread.join(5)
    assert not thread.is_alive(), "waits for a gate that it has already been through"
    bench.join()
    assert bench.answers[1] == PutResult(1)
    bench.check_alive()


ROLES = ("alone", "handed the lead", "written for", "leading others")


@pytest.mark.pure("goes by lines of Python")
@pytest.mark.parametrize("role", ROLES)
def test_writer_interrupted_at_any_instruction_leaves_the_queue_alive(role: str) -> None:
    dead: list[str] = []
    place = 0
    while True:
        interrupter = Interrupter(place, commit.__file__)
        if not _survives(role, interrupter):
            dead.append(f"{place}: {interrupter.where}")
        if interrupter.where is None:
            break
        place += 1
    assert place > 3
    assert dead == []


def _survives(role: str, interrupter: Interrupter) -> bool:
    bench = Bench()
    happened: SimpleQueue[object] = SimpleQueue()
    bench.waiting.queued = happened  # type: ignore[assignment]

    def interrupted() -> None:
        sys.settrace(interrupter)
        try:
            bench.queue.propose(command(1))
        except Interrupted:
            pass
        finally:
            sys.settrace(None)
            happened.put("ended")

    if role == "alone":
        victim = bench.start(interrupted)
    else:
        bench.queue.enter()
        if role == "written for":
            bench.propose(5)
            happened.get(timeout=SECONDS)
        victim = bench.start(interrupted)
        happened.get(timeout=SECONDS)  # queued, or interrupted before it was
        if role == "leading others":
            bench.propose(6)
            happened.get(timeout=SECONDS)
        bench.queue.leave()
    victim.join(2)
    for thread in bench.threads:
        thread.join(2)
    probe = bench.start(lambda: bench.queue.propose(command(9)))
    probe.join(2)
    if victim.is_alive() or any(thread.is_alive() for thread in bench.threads):
        return False
    return not bench.queue._waiting and bench.queue._leader is None


def test_no_wake_up_is_lost_and_no_command_is_applied_twice() -> None:
    bench = Bench()
    threads, rounds = 12, 60
    exclusive = [0]
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for i in range(rounds):
                number = seed * rounds + i
                if rng.random() < 0.2:
                    bench.queue.enter()
                    assert bench.applier.inside == 0
                    exclusive[0] += 1
                    bench.applier.batches.append([number])
                    bench.queue.leave()
                else:
                    assert bench.queue.propose(command(number)) == PutResult(number)
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for seed in range(threads):
            bench.start(lambda seed=seed: work(seed))  # type: ignore[misc]
        bench.join()
    finally:
        sys.setswitchinterval(switch)
    assert errors == []
    assert exclusive[0] > 0
    assert sorted(number for batch in bench.applier.batches for number in batch) == list(range(threads * rounds))
    bench.check_alive()
