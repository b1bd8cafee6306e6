"""log, diff, blame, revert: what they print, and how they end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import mvccstore
from mvccstore.cli import past
from mvccstore.cli.keys import escaped
from tests.extras.cli_kit import Command

START_MS = 1_700_000_000_000
TIMES = [f"2023-11-14T22:13:{second}.000Z" for second in range(20, 30)]
ODD_KEYS = [
    b"[red]x[/red]",
    b"a\tb\nc",
    b"\x00",
    b"\xff\xfe",
    "clé/漢字".encode(),
    b"L" * 3000,
    b"back\\slash",
    b"\x1b[2J",
]


class SteppedClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def time_ms(self) -> int:
        return self.now_ms

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "store.mvcc")


@pytest.fixture
def filled(command: Command) -> Command:
    """Revisions 2 to 6, a second apart: a, b, a again, b deleted, jobs/1."""
    clock = SteppedClock()
    with mvccstore.open(command.path, durability="os", clock=clock) as store:
        for key, value in ((b"a", b"1"), (b"b", b"2"), (b"a", b"11"), (b"b", None), (b"jobs/1", b"queued")):
            store.delete(key) if value is None else store.put(key, value)
            clock.now_ms += 1_000
    return command


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")


# log


def test_log_prints_the_newest_first_with_times(filled: Command) -> None:
    lines = [f"4\t{TIMES[2]}\tput\ta\t11", f"2\t{TIMES[0]}\tput\ta\t1"]
    assert filled.run("log", "a").splitlines() == lines
    assert filled.run("log", "a", "--oldest-first").splitlines() == lines[::-1]
    assert filled.run("log", "a", "--limit", "1").splitlines() == lines[:1]
    assert filled.run("log", "a", "--at", "3").splitlines() == lines[1:]
    assert filled.run("log", "a", "--start-revision", "3").splitlines() == lines[:1]
    assert [line[0] for line in filled.run("log", "", "--prefix").splitlines()] == list("65432")
    assert [line[0] for line in filled.run("log", "b", "c").splitlines()] == list("53")


def test_log_as_json_has_the_key_before_and_the_time(filled: Command) -> None:
    deleted, put = filled.json_lines("log", "b")
    assert deleted["type"] == "delete"
    assert deleted["prev_kv"]["value"] == "2"
    assert (put["value"], put["time_ms"]) == ("2", START_MS + 1_000)


def test_log_of_a_compacted_time_has_a_dash_or_null(filled: Command) -> None:
    filled.run("compact", "5")
    assert filled.run("log", "a") == "4\t-\tput\ta\t11\n"
    assert filled.json_lines("log", "a")[0]["time_ms"] is None


@pytest.mark.usefixtures("terminal")
def test_log_on_a_terminal_is_a_table(filled: Command) -> None:
    header, *rows = filled.run("log", "b").splitlines()
    assert header.split() == ["REVISION", "TIME", "CHANGE", "VERSION", "SIZE", "VALUE"]
    assert [row.split()[3] for row in rows] == ["delete", "create"]
    assert "KEY" in filled.run("log", "", "--prefix").splitlines()[0]


def test_log_of_no_change_ends_with_1_and_bad_input_with_2_or_3(filled: Command) -> None:
    assert "no change of nothing" in filled.error("log", "nothing", code=1)
    assert "above" in filled.error("log", "a", "--start-revision", "4", "--at", "3", code=2)
    assert "in the future" in filled.error("log", "a", "--at", "7", code=3)
    filled.error("log", "a", "--at", "x", code=2)
    filled.error("log", code=2)


# diff


def test_diff_prints_what_differs_in_either_direction(filled: Command) -> None:
    assert filled.run("diff", "3", "0") == "changed\ta\t1\t11\nremoved\tb\t2\t\nadded\tjobs/1\t\tqueued\n"
    assert filled.run("diff", "0", "3") == "changed\ta\t11\t1\nadded\tb\t\t2\nremoved\tjobs/1\tqueued\t\n"
    assert filled.run("diff", "3", "6", "--keys-only") == "changed\ta\nremoved\tb\nadded\tjobs/1\n"
    assert filled.run("diff", "3", "6", "a") == "changed\ta\t1\t11\n"
    assert filled.run("diff", "3", "6", "jobs/", "--prefix") == "added\tjobs/1\t\tqueued\n"
    assert filled.run("diff", "3", "6", "b", "--from-key", "--keys-only") == "removed\tb\nadded\tjobs/1\n"
    assert filled.run("diff", "3", "6", "a", "b", "--keys-only") == "changed\ta\n"
    assert filled.run("diff", "3", "3") == filled.run("diff", "3", "6", "jobs/") == ""


def test_diff_as_json(filled: Command) -> None:
    changed, removed, added = filled.json_lines("diff", "3", "6")
    assert (changed["kind"], changed["before"]["value"], changed["after"]["value"]) == ("changed", "1", "11")
    assert (removed["kind"], removed["before"]["key"], removed["after"]) == ("removed", "b", None)
    assert (added["kind"], added["before"], added["after"]["mod_revision"]) == ("added", None, 6)
    assert filled.json_lines("diff", "3", "6", "b", "--keys-only") == [{"kind": "removed", "key": "b"}]


@pytest.mark.usefixtures("terminal")
def test_diff_on_a_terminal_is_a_table_and_a_sum(filled: Command) -> None:
    header, *rows, total = filled.run("diff", "3", "0").splitlines()
    assert header.split() == ["CHANGE", "KEY", "BEFORE", "AFTER"]
    assert [row.split() for row in rows] == [
        ["changed", "a", "1", "11"],
        ["removed", "b", "2"],
        ["added", "jobs/1", "queued"],
    ]
    assert total == "3 differences between revision 3 and now"
    assert filled.run("diff", "3", "6", "--keys-only").splitlines()[0].split() == ["CHANGE", "KEY"]


def test_diff_of_bad_revisions_says_why(filled: Command) -> None:
    assert "in the future" in filled.error("diff", "3", "7", code=3)
    filled.run("compact", "4")
    assert "revisions from 4 on can be read" in filled.error("diff", "3", "6", code=3)
    filled.error("diff", "3", code=2)
    filled.error("diff", "3", "x", code=2)
    assert "need a KEY" in filled.error("diff", "4", "6", "--prefix", code=2)


# blame


def test_blame_prints_who_set_what(filled: Command) -> None:
    a, job = f"4\t{TIMES[2]}\t2\ta\t11\n", f"6\t{TIMES[4]}\t1\tjobs/1\tqueued\n"
    assert filled.run("blame") == a + job
    assert filled.run("blame", "a") == a
    assert filled.run("blame", "jobs", "--prefix") == job
    assert filled.run("blame", "b", "--at", "4") == f"3\t{TIMES[1]}\t1\tb\t2\n"
    (found,) = filled.json_lines("blame", "a")
    assert (found["mod_revision"], found["version"], found["time_ms"]) == (4, 2, START_MS + 2_000)


@pytest.mark.usefixtures("terminal")
def test_blame_on_a_terminal_is_a_table(filled: Command) -> None:
    header, *rows = filled.run("blame").splitlines()
    assert header.split() == ["REVISION", "TIME", "VERSION", "KEY", "VALUE"]
    assert [row.split()[-2:] for row in rows] == [["a", "11"], ["jobs/1", "queued"]]


def test_blame_of_a_key_that_is_not_there_ends_with_1(filled: Command) -> None:
    assert "no key b" in filled.error("blame", "b", code=1)
    assert "no key b at revision 2" in filled.error("blame", "b", "--at", "2", code=1)
    assert filled.run("blame", "nothing", "--prefix") == ""
    assert "need a KEY" in filled.error("blame", "--from-key", code=2)


# revert


def test_revert_goes_back_and_says_what_it_did(filled: Command) -> None:
    assert filled.run("revert", "--all", "--to", "3") == "7\t2\t1\n"
    assert filled.run("range") == "a\t1\nb\t2\n"
    assert filled.run("diff", "3", "0") == ""
    assert filled.json("revert", "--all", "--to", "6") == {"revision": 8, "put": 2, "deleted": 1}
    assert filled.run("revert", "--all", "--to", "6") == "8\t0\t0\n"


def test_revert_keeps_to_the_keys_it_is_given(filled: Command) -> None:
    assert filled.run("revert", "a", "--to", "2") == "7\t1\t0\n"
    assert filled.run("revert", "jobs/", "--prefix", "--to", "5") == "8\t0\t1\n"
    assert filled.run("revert", "b", "c", "--to", "3") == "9\t1\t0\n"
    assert filled.run("range") == "a\t1\nb\t2\n"


@pytest.mark.usefixtures("terminal")
def test_revert_on_a_terminal_is_a_sentence(filled: Command) -> None:
    assert filled.run("revert", "--all", "--to", "3") == "2 keys put, 1 deleted, revision 7\n"
    assert filled.run("revert", "--all", "--to", "3") == "nothing to do: all is as it was at revision 3\n"


def test_revert_refuses_what_is_unclear_and_changes_nothing(filled: Command) -> None:
    for args in (
        ("--to", "3"),
        ("a", "--all", "--to", "3"),
        ("--all", "--prefix", "--to", "3"),
        ("a",),
        ("a", "--to", "0"),
    ):
        filled.error("revert", *args, code=2)
    assert "in the future" in filled.error("revert", "a", "--to", "7", code=3)
    filled.run("compact", "4")
    assert "was compacted" in filled.error("revert", "a", "--to", "3", code=3)
    with mvccstore.open(filled.path, read_only=True) as store:
        assert store.revision == 6


@pytest.mark.parametrize("args", [("log", "a"), ("diff", "1", "0"), ("blame",), ("revert", "--all", "--to", "1")])
def test_without_a_store_none_is_made(command: Command, args: tuple[str, ...]) -> None:
    assert "no such store" in command.error(*args, code=3)
    assert not command.path.exists()


# Hostile keys, values and times


@pytest.mark.parametrize("key", ODD_KEYS)
@pytest.mark.parametrize("is_on_terminal", [False, True])
def test_odd_keys_and_values_stay_on_their_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, key: bytes, *, is_on_terminal: bool
) -> None:
    with mvccstore.open(command.path, durability="os") as store:
        store.put(key, key)
        store.put(key, b"2")
    if is_on_terminal:
        monkeypatch.setattr(past, "on_terminal", lambda: True)
    for args, lines in ((("log", key.hex(), "--hex"), 2), (("diff", "2", "0"), 1), (("blame", "--at", "2"), 1)):
        printed = command.run(*args)
        assert len(printed.splitlines()) == lines + is_on_terminal * (1 + (args[0] == "diff"))
        assert "\x1b" not in printed
        assert "\0" not in printed
        if not is_on_terminal:
            assert escaped(key) in printed
    name = "key" if _is_text(key) else "key_b64"
    assert list(command.json_lines("diff", "2", "0", "--keys-only")[0]) == ["kind", name]


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("is_on_terminal", [False, True])
def test_a_time_beyond_the_calendar_is_a_dash(
    command: Command, monkeypatch: pytest.MonkeyPatch, *, is_on_terminal: bool
) -> None:
    with mvccstore.open(command.path, durability="os", clock=SteppedClock(2**62)) as store:
        store.put(b"k", b"v")
    monkeypatch.setattr(past, "on_terminal", lambda: is_on_terminal)
    for name in ("log", "blame"):
        assert command.run(name, "k").splitlines()[-1].split()[1] == "-"


# A time for --at


def test_at_takes_a_time_wherever_it_takes_a_revision(filled: Command) -> None:
    """22:13:21 is revision 3, and so it is until 22:13:22."""
    moments = ("3", "2023-11-14T22:13:21Z", "2023-11-14T22:13:21.900+00:00", "20231114T221321Z", "1700000001.0")
    commands: list[tuple[str, ...]] = [
        ("get", "a"),
        ("range",),
        ("range", "--count-only", "--json"),
        ("range", "--descending"),
        ("count", "--json"),
        ("history", "", "--prefix"),
        ("log", "", "--prefix"),
        ("blame", "a"),
        ("export",),
    ]
    for command in commands:
        found = {filled.run(*command, "--at", moment) for moment in (*moments, "1700000001.99", "1700000001.")}
        assert len(found) == 1, command
        assert found != {filled.run(*command)}, command
    assert filled.run("get", "a", "--at", "2023-11-14T22:13:22Z") == "11"
    assert filled.run("get", "a", "--at", "2999-01-01") == "11"
    assert filled.json("count", "--at", ".5") == {"count": 0, "revision": 1}
    assert filled.error("get", "b", "--at", "2001-01-01", code=1) == "mvccstore: no key b at revision 1\n"
    assert filled.error("blame", "b", "--at", "1.5", code=1) == "mvccstore: no key b at revision 1\n"
    assert "above --at 2023-11-14T22:13:21+00:00, which is revision 3" in filled.error(
        "log", "a", "--start-revision", "4", "--at", moments[1], code=2
    )


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "EST5EDT")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("new_york")
def test_a_time_without_a_zone_is_local_as_tables_show_it(filled: Command) -> None:
    assert filled.run("count", "--at", "2023-11-14 17:13:20") == "1\n"
    assert filled.run("count", "--at", "2023-11-14 17:13:21") == "2\n"
    assert filled.run("count", "--at", "2023-11-14 17:13:21Z") == "0\n"


@pytest.mark.parametrize(
    "moment", ["-1", "-1.5", "x", "1e9", "nan", "inf", "1_0", "2023-13-01", "22:13", "9" * 400 + ".0", "9" * 5000, ""]
)
def test_what_is_neither_revision_nor_time_is_refused(filled: Command, moment: str) -> None:
    assert "neither a revision nor a time" in filled.error("get", "a", "--at", moment, code=2)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00Z", "9999-12-31T23:59Z", "1" + "0" * 300 + ".0", "0.0"])
def test_any_time_has_a_revision(filled: Command, moment: str) -> None:
    assert filled.run("count", "--at", moment) in ("0\n", "2\n")


def test_a_time_whose_revision_is_compacted_says_what_can_be_read(filled: Command) -> None:
    filled.run("compact", "5")
    assert filled.run("count", "--at", TIMES[3]) == "1\n"
    for command in (("get", "a"), ("range",), ("export",), ("log", "a"), ("history", "a")):
        assert "revisions from 5 on can be read" in filled.error(*command, "--at", TIMES[2], code=3)


def test_help_says_what_a_time_is(filled: Command) -> None:
    for command in ("get", "range", "count", "history", "log", "blame", "export"):
        shown = " ".join(filled.run(command, "--help").split())
        assert "--at REVISION|TIME" in shown
        assert "2025-01-31T12:00:00Z (ISO 8601; local time without a zone), or seconds since the epoch" in shown
