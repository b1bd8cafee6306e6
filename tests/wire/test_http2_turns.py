"""Connections that ask for more than can be done at once: they take turns, and little of what they send is in memory."""

from __future__ import annotations

import pytest

from mvccstore.server.transport.limits import TransportLimits
from tests.wire.http2_kit import (
    DATA,
    END_STREAM,
    HEADERS,
    PING,
    SETTINGS,
    Session,
    message,
    open_stream,
    pack,
    ping,
    reset,
    unary,
)

SLICE = 8
"""Frames. The first call of a connection is two; those whose head is known count as one."""
LIMITS = TransportLimits(slice_frames=SLICE, turn_seconds=1.0, waiting_bytes_max=4_000, all_waiting_bytes_max=10_000)


def pipelined(calls: int, method: bytes = b"/t.T/Echo", first: int = 0) -> bytes:
    numbers = range(first, first + calls)
    return b"".join(unary(2 * number + 1, method, b"%d" % number) for number in numbers)


def answered(session: Session) -> int:
    session.take()
    return sum(answer.status == (0, "") for answer in session.answers.values())


def pinged(session: Session) -> bool:
    """Say whether a client is answered at once: not after anything else that the loop has to do."""
    session.connection.data_received(unary(session.connection.last_id + 2 | 1, b"/t.T/Echo", b"light") + ping())
    frames = session.take()
    session.frames.clear()
    session.answers.clear()
    return [frame.kind for frame in frames] == [HEADERS, DATA, HEADERS, PING]


def crowd(number: int, limits: TransportLimits = LIMITS) -> list[Session]:
    """Connect so many clients to one port, where each look at the clock takes 0.4 seconds of a turn of 1 second."""
    first = Session(limits)
    sessions = [first, *(Session(limits, beside=first) for _ in range(number - 1))]
    first.loop.run()
    first.loop.looks_cost = 0.4
    return sessions


def test_more_than_a_slice_waits_for_other_turns_of_the_loop() -> None:
    heavy, light = crowd(2)
    heavy.connection.data_received(pipelined(40))
    done = [answered(heavy)]
    while done[-1] < 40:
        assert pinged(light)
        heavy.loop.turn()
        done.append(answered(heavy))
    # The first slice at once; then, in a turn of one second, as many as begin before it is over.
    assert done == [7, 31, 40]
    assert len(heavy.turns) == heavy.turns.waiting_bytes == 0


def test_when_many_send_at_once_only_small_requests_do_not_wait() -> None:
    """So a turn of the loop is short, whoever has sent what."""
    limits = TransportLimits(begun_max=6, light_bytes=300, turn_seconds=1.0)
    sessions = crowd(12, limits)
    light = sessions.pop()
    light.connection.data_received(pipelined(100))
    light.step()  # a turn: from it on is counted
    for session in sessions:
        session.connection.data_received(pipelined(4))
    done = [answered(session) for session in sessions]
    assert done == [4] * 6 + [0] * 5
    assert pinged(light)
    light.loop.turn()
    assert sum(map(answered, sessions)) == 9 * 4  # three of those who wait, in a second
    for session in sessions[:6]:
        session.connection.data_received(pipelined(4, first=4))
    assert sum(map(answered, sessions)) == 9 * 4  # nobody comes before the two who still wait
    assert pinged(light)
    light.loop.turn()
    assert [answered(session) for session in sessions] == [8] + [4] * 10
    light.loop.run()
    assert [answered(session) for session in sessions] == [8] * 6 + [4] * 5


def test_those_who_wait_have_a_slice_each_in_turn() -> None:
    sessions = crowd(5)
    for session in sessions:
        session.connection.data_received(pipelined(24))
    while sum(map(answered, sessions)) < 5 * 24:
        sessions[0].loop.turn()
        done = [answered(session) for session in sessions]
        assert max(done) - min(done) <= 2 * SLICE  # the first had one before anybody waited
    assert len(sessions[0].turns) == sessions[0].turns.waiting_bytes == 0


def test_a_slice_ends_after_so_many_bytes_too() -> None:
    (session,) = crowd(1, TransportLimits(slice_bytes=3_000, turn_seconds=1.0))
    calls = b"".join(unary(2 * number + 1, b"/t.T/Echo", b"x" * 1_000) for number in range(9))
    session.connection.data_received(calls)
    done = [answered(session)]
    while done[-1] < 9:
        session.loop.turn()
        done.append(answered(session))
    assert done == [3, 9]  # in the second turn there are three slices


@pytest.mark.parametrize("is_read", [True, False])
def test_a_slice_ends_after_so_many_bytes_of_answers_too(*, is_read: bool) -> None:
    """Also of those that its windows do not allow. So little of what it does not read is there when that is known."""
    (session,) = crowd(1, TransportLimits(slice_answer_bytes=100_000, turn_seconds=1.0))
    session.change(initial_window=10_000_000 if is_read else 0)
    session.connection.data_received(b"".join(unary(2 * one + 1, b"/t.T/Big", b"40000") for one in range(30)))
    done = [session.connection.last_id // 2 + 1]
    while done[-1] < 30:
        session.loop.turn()
        done.append(session.connection.last_id // 2 + 1)
    assert done == [3, 12, 21, 30]


def test_what_comes_while_a_client_waits_is_carried_out_behind_that() -> None:
    heavy, other = crowd(2)
    data = pipelined(30)
    for start in range(0, len(data), 333):
        heavy.connection.data_received(data[start : start + 333])
        other.connection.data_received(ping())
        if start % 999 == 0:
            heavy.loop.turn()
    heavy.loop.run()
    heavy.take()
    assert [answer.messages for answer in heavy.answers.values()] == [[(0, b"%d" % number)] for number in range(30)]
    assert not heavy.transport.is_paused


def test_ten_megabytes_of_puts_are_read_as_they_are_carried_out() -> None:
    """And a ping of another connection is answered in the turn in which it comes."""
    heavy, light = crowd(2)
    sent, number, read, done = 10_000, 0, 0, 0
    body = bytes(1_000)
    largest = 0
    while done < sent:
        while number < sent and not heavy.transport.is_paused:  # as the loop reads: until it is told not to
            data = b"".join(unary(2 * one + 1, b"/t.T/Echo", body) for one in range(number, min(number + 10, sent)))
            number += 10
            read += len(data)
            heavy.connection.data_received(data)
            largest = max(largest, heavy.turns.waiting_bytes)
        assert pinged(light)
        heavy.loop.turn()
        heavy.take()
        done += len(heavy.answers)
        heavy.answers.clear()
    assert read > 10_000_000
    assert largest <= LIMITS.waiting_bytes_max + 2 * len(data)


def test_a_client_has_its_share_of_work_and_waits_for_more() -> None:
    greedy, other = crowd(2, TransportLimits())
    services = greedy.services
    services.share = 3
    greedy.send(pipelined(10, b"/t.T/Work"), pipelined(1, b"/t.T/Echo", first=10), ping())
    assert list(services.calls) == [b"0", b"1", b"2"]
    services.calls.clear()
    other.send(pipelined(2, b"/t.T/Work"), pipelined(1, b"/t.T/Echo", first=2))
    assert list(services.calls) == [b"0", b"1"]
    assert other.answers[5].status == (0, "")
    assert greedy.frames[-1].kind == SETTINGS  # its ping waits behind what it has sent before


def test_work_that_is_done_makes_room_for_the_next() -> None:
    (session,) = crowd(1)
    services = session.services
    services.share = 2
    session.send(pipelined(7, b"/t.T/Work"))
    most = 0
    for number in range(7):
        most = max(most, len(services.calls))
        services.finish_work(b"%d" % number)
        session.step()
    assert most == 2
    assert answered(session) == 7
    services.share = 1
    session.send(pipelined(3, b"/t.T/Work", first=7))
    assert list(services.calls) == [b"7"]  # the least that there is
    assert session.connection.work == 1


def test_a_call_that_is_taken_back_has_its_work_counted_until_that_is_done() -> None:
    (session,) = crowd(1)
    services = session.services
    services.share = 2
    session.send(pipelined(1, b"/t.T/Work") + reset(1) + pipelined(3, b"/t.T/Work", first=1))
    assert list(services.calls) == [b"0", b"1"]
    services.finish_work(b"0")
    session.step()
    assert list(services.calls) == [b"1", b"2"]


def test_a_client_that_goes_leaves_nothing_behind() -> None:
    waiting, held, unread = crowd(3)
    services = waiting.services
    services.share = 1
    held.connection.data_received(pipelined(20, b"/t.T/Work"))
    unread.connection.pause_writing()
    unread.connection.data_received(pipelined(20))
    waiting.connection.data_received(pipelined(20))
    assert waiting.turns.waiting_bytes > 3_000
    assert len(waiting.turns) == 1
    for session in (waiting, held, unread):
        session.hang_up()
        session.check_clean()
    assert waiting.turns.waiting_bytes == len(waiting.turns) == 0
    services.finish_work(b"0")
    held.loop.run()
    assert list(services.calls) == []


def test_a_connection_that_breaks_a_rule_ends_with_what_it_has_sent_behind_it() -> None:
    (session,) = crowd(1)
    session.connection.data_received(pipelined(12) + pack(SETTINGS, 0, 1) + pipelined(20, first=12))
    assert len(session.turns) == 1
    session.step()
    assert session.goaway is not None
    assert len(session.turns) == session.turns.waiting_bytes == 0
    assert answered(session) == 12


def test_much_that_waits_has_little_read_of_each() -> None:
    sessions = crowd(6)
    turns = sessions[0].turns
    assert len(turns.buffer()) == 256 * 1024
    for session in sessions[:4]:
        session.connection.data_received(pipelined(26))
        assert len(turns.buffer()) == (256 if turns.waiting_bytes < 10_000 else 4) * 1024
    assert turns.waiting_bytes >= 10_000
    late = sessions[4]
    data = pipelined(12)
    assert len(data) < LIMITS.waiting_bytes_max
    late.connection.data_received(data)
    assert late.transport.is_paused  # though it has sent less than others may
    sessions[5].connection.data_received(ping() + unary(1, b"/t.T/Echo", b"light"))
    assert answered(sessions[5]) == 1
    assert not sessions[5].transport.is_paused
    late.loop.run()
    assert [answered(session) for session in sessions] == [26, 26, 26, 26, 12, 1]
    assert not any(session.transport.is_paused for session in sessions)
    assert len(turns.buffer()) == 256 * 1024


def test_what_is_read_into_the_memory_of_all_is_each_ones_own() -> None:
    first, second = crowd(2)
    for session, body in ((first, b"one"), (second, b"another")):
        data = unary(1, b"/t.T/Echo", body)
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            session.connection.get_buffer(-1)[: len(part)] = part
            session.connection.buffer_updated(len(part))
            beside = second if session is first else first
            beside.connection.get_buffer(-1)[:17] = ping()
            beside.connection.buffer_updated(17)
    assert first.step()
    assert second.step()
    assert first.answers[1].messages == [(0, b"one")]
    assert second.answers[1].messages == [(0, b"another")]


def test_a_large_message_is_a_frame_at_a_time() -> None:
    heavy, light = crowd(2, TransportLimits(slice_bytes=32_768, turn_seconds=1.0))
    body = message(bytes(1_000_000))
    frames = [pack(0, 0, 1, body[start : start + 16_384]) for start in range(0, len(body), 16_384)]
    heavy.send(open_stream(1))
    heavy.connection.data_received(b"".join(frames))
    turns = 0
    while len(heavy.turns):
        heavy.loop.turn()
        assert pinged(light)
        turns += 1
    assert turns >= 10
    heavy.send(pack(DATA, END_STREAM, 1))
    assert len(heavy.answers[1].body) == 65_535  # what its window takes
