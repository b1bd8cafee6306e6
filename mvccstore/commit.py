"""Group commit: who writes when, and together with whom.

Writers take turns in the order they came. A turn is either a command, or *exclusive*: a transaction block
or a step of compaction that wants the store to itself. The thread whose turn it is *leads*: it takes every
command that waits behind it, up to the next exclusive turn, has all of them applied in one engine
transaction, wakes their threads, and hands the lead to the first turn that came meanwhile. While one
thread waits for the disk, the others queue up for the next commit; nobody needs a thread of their own.

Invariants:

* I1. `_leader` is the turn that leads or has been handed the lead, and None only if no turn waits.
* I2. A turn waits in `_waiting`, or is led in `_led`, or leads, or is answered; only in the middle of a change
  can it be seen in two of these places, and then doing the change again mends it.
* I3. The gate of a turn is opened when it is answered and when it is handed the lead.

A thread can be interrupted between any two instructions (KeyboardInterrupt). Then the change under way is
undone or done by `_leave`, which may be repeated: a turn that waited is taken back, one that led hands on,
and what it led but did not answer goes back to the head of the queue. One that another thread has taken
is written all the same, and its caller cannot know, as with any interrupted write.

Example, threads A, B, C writing at once:

    A leads [A]            B, C wait
    A commits A            hands the lead to B
    B leads [B, C]         one commit for both
    B commits B, C         wakes C; nobody waits, so nobody leads
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from mvccstore.errors import StoreError
from mvccstore.types import Command, Result

BATCH_MAX = 1_000
"""Commands in one commit; more wait for the next."""


class Turn:
    """A command, or a claim to the store, on its way through the queue."""

    __slots__ = ("command", "error", "expedite", "gate", "is_abandoned", "result", "thread")

    def __init__(self, command: Command | None) -> None:
        self.command = command
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.gate: threading.Lock | None = None  # made when the thread has to wait
        self.is_abandoned = False
        self.thread = 0  # whose it is, if it is an exclusive one
        self.expedite: Callable[[], None] | None = None  # what who waits for it calls, if it was let go

    @property
    def is_answered(self) -> bool:
        """Whether the command was applied or refused."""
        return self.result is not None or self.error is not None

    def answer(self) -> Result:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def open_gate(self) -> None:
        """Wake the thread; harmless if it is awake."""
        assert self.gate is not None
        if self.gate.locked():
            self.gate.release()


class CommitQueue:
    """The turns of one store.

    Args:
        apply: Applies the commands of some turns in one commit, and sets result or error of each. If it
            raises, turns that have neither are applied again later.
    """

    def __init__(self, apply: Callable[[list[Turn]], None]) -> None:
        self._apply = apply
        self._mutex = threading.Lock()  # guards the three below; held for a few instructions
        self._waiting: deque[Turn] = deque()
        self._leader: Turn | None = None
        self._led: list[Turn] = []

    def propose(self, command: Command) -> Result:
        """Apply a command in a commit of its own or shared with others, and return its result."""
        turn = Turn(command)
        try:
            try:
                self._wait(turn)
                if self._leader is turn:
                    self._lead(turn)
            finally:
                self._leave(turn)
        except BaseException:
            self._leave(turn)  # again, as it may be what was interrupted
            raise
        if turn.error is not None:
            raise turn.error
        assert turn.result is not None
        return turn.result

    def propose_many(self, commands: Sequence[Command]) -> list[Result | StoreError]:
        """Apply commands, at most `BATCH_MAX`, in one commit; return a result or an error for each, in order.

        Takes an exclusive turn: what other threads propose meanwhile goes into the commit after it.
        """
        answers = self._propose_many(commands, self.enter)
        assert answers is not None
        return answers

    def try_propose_many(self, commands: Sequence[Command]) -> list[Result | StoreError] | None:
        """As `propose_many`, unless another thread writes or waits to: then nothing is done, and None returned."""
        return self._propose_many(commands, self._try_enter)

    def _propose_many(
        self, commands: Sequence[Command], enter: Callable[[], object]
    ) -> list[Result | StoreError] | None:
        assert len(commands) <= BATCH_MAX
        turns = [Turn(command) for command in commands]
        try:
            try:
                enter()
                if not self.is_mine():
                    return None
                self._apply(turns)
            finally:
                self.leave()
        except BaseException:
            self.leave()  # again, as it may be what was interrupted
            raise
        return [turn.error if isinstance(turn.error, StoreError) else turn.answer() for turn in turns]

    def enter(self) -> None:
        """Wait until the store is this thread's alone. Every `enter` needs a `leave`, from the same thread."""
        turn = Turn(None)
        turn.thread = threading.get_ident()
        try:
            self._wait(turn)
        except BaseException:
            self._leave(turn)
            raise

    def _try_enter(self) -> None:
        turn = Turn(None)
        turn.thread = threading.get_ident()
        with self._mutex:
            if self._leader is None:
                self._leader = turn

    def try_enter(self) -> Turn | None:
        """Enter, unless another thread writes or waits to. What is returned may be let go, for another thread."""
        self._try_enter()
        return self._leader if self.is_mine() else None

    def let_go(self, turn: Turn) -> None:
        """Leave a turn that was entered without ending it: it is nobody's until a thread adopts it."""
        turn.thread = 0

    def try_expedite(self, turn: Turn, expedite: Callable[[], None]) -> bool:
        """Have whoever waits for a turn that was let go call something that ends it; False if somebody waits already.

        Who would end it otherwise may be the one that waits, or be waited for by that one.
        """
        with self._mutex:
            if self._waiting:
                return False
            turn.expedite = expedite
            return True

    def try_adopt(self, turn: Turn) -> bool:
        """Make a turn that was let go this thread's, which then has to leave. Return False if another one did."""
        with self._mutex:
            if self._leader is not turn or turn.thread:
                return False
            turn.thread = threading.get_ident()
            return True

    def has(self, turn: Turn) -> bool:
        """Say whether a turn is this thread's, and leads."""
        return self._leader is turn and turn.thread == threading.get_ident()

    def is_mine(self) -> bool:
        """Say whether this thread has entered, and not left."""
        turn = self._leader
        return turn is not None and turn.thread == threading.get_ident()

    def leave(self) -> None:
        """Let the next one write. Harmless if this thread has left, or was interrupted before it had entered."""
        turn = self._leader
        if turn is None or turn.thread != threading.get_ident():
            return
        try:
            self._leave(turn)
        except BaseException:
            self._leave(turn)
            raise

    def close(self) -> None:
        """Nothing to close: whoever waits is served."""

    def _wait(self, turn: Turn) -> None:
        """Return when the turn is answered or leads."""
        with self._mutex:
            if self._leader is None:
                self._leader = turn
                return
            turn.gate = threading.Lock()
            turn.gate.acquire()
            self._waiting.append(turn)
            expedite = self._leader.expedite
        if expedite is not None:
            expedite()
        while True:
            turn.gate.acquire()
            with self._mutex:
                if turn.is_answered:
                    return
                if self._leader is turn:
                    self._take_out(turn)
                    return

    def _take_out(self, leader: Turn) -> None:
        """End the waiting of a turn that was handed the lead; not done by who handed it, to be repeatable."""
        if self._waiting and self._waiting[0] is leader:
            self._waiting.popleft()

    def _lead(self, turn: Turn) -> None:
        if self._waiting:
            with self._mutex:
                while self._waiting and self._waiting[0].command is not None and len(self._led) < BATCH_MAX - 1:
                    self._led.append(self._waiting[0])
                    self._waiting.popleft()
        self._apply([turn, *self._led])

    def _leave(self, turn: Turn) -> None:
        """Hand the lead on, or take the turn back, whichever there is to do. May be repeated."""
        with self._mutex:
            if self._leader is not turn:
                if not turn.is_answered:
                    turn.is_abandoned = True
                    if turn in self._waiting:
                        self._waiting.remove(turn)
                return
            self._take_out(turn)
            while self._led:
                other = self._led[-1]
                if other.is_answered:
                    other.open_gate()
                elif not other.is_abandoned and other not in self._waiting:
                    self._waiting.appendleft(other)
                self._led.pop()
            if self._waiting:
                self._waiting[0].open_gate()
                self._leader = self._waiting[0]
            else:
                self._leader = None
