"""compact, defragment, backup, restore, stats, check."""

from __future__ import annotations

from pathlib import Path

import pytest

import mvccstore
from tests.extras.cli_kit import Command, failed


@pytest.fixture(params=["lmdb", "sqlite"])
def command(tmp_path: Path, request: pytest.FixtureRequest) -> Command:
    """A store at revision 11: key k with versions 1 to 10."""
    made = Command(tmp_path / "store.mvcc")
    with mvccstore.open(made.path, engine=request.param, durability="os") as store:
        for i in range(10):
            store.put(b"k", b"%d" % i)
    return made


def test_compact_makes_a_revision_the_oldest(command: Command) -> None:
    assert command.run("compact", "5") == "compacted: 5 is now the oldest revision that can be read\n"
    assert "revisions from 5 on can be read" in command.error("get", "k", "--at", "4", code=3)
    assert command.run("get", "k", "--at", "5") == "3"
    assert command.json("stats")["compact_revision"] == 5


def test_compact_keeps_revisions_or_an_age(command: Command) -> None:
    assert command.json("compact", "--keep-revisions", "3") == {"compact_revision": 8, "is_changed": True}
    assert command.json("compact", "--keep-revisions", "100") == {"compact_revision": 8, "is_changed": False}
    assert command.run("compact", "--keep-age", "1d12h").startswith("nothing to compact")
    assert command.json("compact", "--keep-age", "0s")["compact_revision"] in {8, 10, 11}


def test_compact_physical_reclaims(command: Command) -> None:
    command.run("compact", "--keep-revisions", "0", "--physical")
    stats = command.json("stats")
    assert stats["reclaimed_revision"] == stats["compact_revision"] == 11
    assert stats["revisions_kept"] == 1


@pytest.mark.parametrize(
    "args",
    [(), ("5", "--keep-revisions", "1"), ("--keep-age", "3x"), ("--keep-age", ""), ("--keep-age", "5"), ("0",), ("x",)],
)
def test_compact_wrongly_used_is_2(command: Command, args: tuple[str, ...]) -> None:
    command.error("compact", *args, code=2)
    assert command.json("stats")["compact_revision"] == -1


def test_compact_refused_is_3(command: Command) -> None:
    assert "in the future" in command.error("compact", "99", code=3)
    command.run("compact", "5")
    assert "was compacted" in command.error("compact", "5", code=3)


def test_defragment_makes_the_file_smaller(command: Command) -> None:
    with mvccstore.open(command.path, durability="os") as store:
        for _ in range(100):
            store.put(b"k", bytes(10_000))
        before = store.stats().file_bytes
    command.run("compact", "--keep-revisions", "0", "--physical")
    found = command.json("defragment")
    assert found["file_bytes"] < min(before, found["file_bytes_before"])
    assert command.json("stats")["file_bytes"] == found["file_bytes"]
    assert command.result("defragment", str(command.path)).output.startswith("the file has ")
    assert command.json("check")["problems"] == []


def test_defragment_refuses_what_is_no_store(command: Command, tmp_path: Path) -> None:
    assert "there is no such store" in failed(command.result("defragment", str(tmp_path / "nothing")), 3)
    command.error("defragment", str(command.path), code=2)


def test_stats_as_lines_and_json(command: Command) -> None:
    facts = command.json("stats", "--hash")
    assert (facts["revision"], facts["keys"], facts["revisions_kept"], facts["leases"]) == (11, 1, 10, 0)
    with mvccstore.open(command.path, read_only=True) as store:
        assert facts["hash"] == store.hash_kv().hash
    lines = dict(line.split("\t") for line in command.run("stats", "--hash").splitlines())
    assert lines == {name: str(fact) for name, fact in facts.items()}
    assert command.result("stats", str(command.path)).stdout == command.run("stats")


def test_backup_and_restore_round_trip(command: Command, tmp_path: Path) -> None:
    backup, restored = str(tmp_path / "b.bak"), Command(tmp_path / "r.mvcc")
    assert command.json("backup", backup)["revision"] == 11
    assert restored.json("restore", backup)["revision"] == 11
    assert restored.json("stats", "--hash")["hash"] == command.json("stats", "--hash")["hash"]
    assert restored.run("history", "k") == command.run("history", "k")
    assert command.result("check", backup).exit_code == 0


def test_backup_and_restore_take_files_as_arguments(command: Command, tmp_path: Path) -> None:
    backup, restored = str(tmp_path / "b.bak"), str(tmp_path / "r.mvcc")
    assert command.result("backup", str(command.path), backup).exit_code == 0
    done = command.result("restore", backup, restored)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{restored}: revision 11, ")


def test_neither_replaces_a_file_unless_told(command: Command, tmp_path: Path) -> None:
    backup = tmp_path / "b.bak"
    backup.write_bytes(b"precious")
    assert "--overwrite replaces it" in command.error("backup", str(backup), code=3)
    assert backup.read_bytes() == b"precious"
    command.run("backup", str(backup), "--overwrite")
    command.run("put", "k", "new")
    assert "--overwrite replaces it" in command.error("restore", str(backup), code=3)
    assert command.run("get", "k") == "new"
    command.run("restore", str(backup), "--overwrite")
    assert command.run("get", "k") == "9"


def test_restore_can_change_engines(command: Command, tmp_path: Path) -> None:
    before = command.json("stats")
    other = "sqlite" if before["engine"] == "lmdb" else "lmdb"
    moved = Command(tmp_path / "moved.mvcc")
    command.run("backup", str(tmp_path / "b.bak"))
    moved.run("restore", str(tmp_path / "b.bak"), "--engine", other)
    after = moved.json("stats")
    assert (after["engine"], after["revision"], after["keys"]) == (other, before["revision"], before["keys"])
    assert moved.json("check")["problems"] == []


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("backup",), 2),
        (("backup", "{store}"), 2),
        (("backup", "{store}", "x", "y"), 2),
        (("backup", "{dir}/none", "{dir}/b"), 3),
        (("backup", "{store}", "{dir}/no/such/place"), 3),
        (("restore",), 2),
        (("restore", "{store}"), 2),
        (("restore", "{dir}/none", "{dir}/r"), 3),
        (("restore", "{foreign}", "{dir}/r"), 3),
        (("restore", "{store}", "{dir}/no/such/place"), 3),
        (("restore", "{store}", "{dir}/r", "-s", "{dir}/q"), 2),
        (("check",), 2),
        (("check", "{dir}/none"), 3),
        (("check", "{dir}"), 3),
        (("check", "{foreign}"), 3),
        (("check", "{empty}"), 3),
        (("stats", "{foreign}"), 3),
        (("stats", "{dir}/none"), 3),
    ],
)
def test_errors_about_files(command: Command, tmp_path: Path, args: tuple[str, ...], code: int) -> None:
    foreign, empty = tmp_path / "foreign", tmp_path / "empty"
    foreign.write_text("not a store, but a text\n" * 500)
    empty.touch()
    places = {"store": str(command.path), "dir": str(tmp_path), "foreign": str(foreign), "empty": str(empty)}
    before = {path for path in tmp_path.iterdir() if not path.name.endswith("-lock")}
    failed(command.result(*(arg.format(**places) for arg in args)), code)
    assert {path for path in tmp_path.iterdir() if not path.name.endswith(("-lock", "-wal", "-shm"))} == before


def test_check_of_a_good_store_is_0(command: Command) -> None:
    assert command.run("check") == f"{command.path}: no problems, revision 11\n"
    assert command.json("check", "--no-structure") == {"path": str(command.path), "revision": 11, "problems": []}
    assert command.result("check", str(command.path)).exit_code == 0


def test_check_of_a_truncated_store_is_3(command: Command) -> None:
    whole = command.path.read_bytes()
    command.path.write_bytes(whole[: len(whole) // 2])
    result = command.result("check", str(command.path))
    assert "error: " in failed(result, 3)
    assert result.stdout.splitlines()


def test_check_of_a_changed_value_is_1_with_a_line_for_each_problem(command: Command) -> None:
    marked = b"a value that can be found in the file" * 3
    with mvccstore.open(command.path, durability="os") as store:
        store.put(b"marked", marked)
        store.compact(store.revision, physical=True)
    data = command.path.read_bytes()
    assert marked in data
    command.path.write_bytes(data.replace(marked, marked.replace(b"found", b"fouled"[:5])))
    result = command.result("check", str(command.path))
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith("I3: ")
    assert "Traceback" not in result.output
    found = command.json("check", code=1)
    assert found["problems"] == result.stdout.splitlines()
    assert found["revision"] is None
