"""import and export: JSON lines and directory trees."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

import mvccstore
from mvccstore.cli import exchange
from tests.extras.cli_kit import Command

PAIRS = {
    b"plain": b"text",
    b"empty": b"",
    b"binary/\xff\x00": bytes(range(256)),
    "unicode/clé 漢字".encode(): "valeur 漢字\n".encode(),
    b"[red]markup[/red]": b"[bold]",
    b"L" * 3000: b"long",
    b"control\x1b[31m\r\n": b"\x1b[31m",
    b'quote"\\': b'"\\',
}
FILES = {
    b"a.txt": b"one",
    b"deep/er/b.bin": bytes(range(256)),
    b"deep/empty": b"",
    "clé/漢字".encode(): b"unicode",
    b"not-utf8-\xff": b"name",
    b"[red]": b"markup",
    b"-dash": b"-",
}


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "store.mvcc")


def contents(command: Command, revision: int = 0) -> dict[bytes, bytes]:
    with mvccstore.open(command.path, read_only=True) as store:
        return {kv.key: kv.value for kv in store.scan(mvccstore.KeyRange.all(), revision=revision)}


def write_tree(directory: Path, files: dict[bytes, bytes]) -> Path:
    for name, value in files.items():
        path = directory / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)
    return directory


def read_tree(directory: Path) -> dict[bytes, bytes]:
    return {
        os.fsencode(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def filled(command: Command) -> Command:
    with mvccstore.open(command.path, durability="os") as store:
        for key, value in PAIRS.items():
            store.put(key, value)
    return command


# JSON lines


def test_json_lines_lose_nothing(filled: Command, tmp_path: Path) -> None:
    other = Command(tmp_path / "other.mvcc")
    exported = filled.raw("export")
    assert exported.count(b"\n") == len(PAIRS)
    assert other.json("import", "-", stdin=exported) == {
        "revision": 2,
        "put": len(PAIRS),
        "unchanged": 0,
        "deleted": 0,
        "bytes": sum(map(len, PAIRS.values())),
    }
    assert contents(other) == PAIRS
    assert filled.raw("range", "--json") == exported


def test_json_lines_are_text_where_they_can_be(filled: Command) -> None:
    rows = [json.loads(line) for line in filled.raw("export").splitlines()]
    by_key = {row["key"].encode() if "key" in row else base64.b64decode(row["key_b64"]): row for row in rows}
    assert by_key["unicode/clé 漢字".encode()]["value"] == "valeur 漢字\n"
    assert "value_b64" in by_key[b"binary/\xff\x00"]
    assert set(by_key[b"plain"]) == {"key", "value", "create_revision", "mod_revision", "version", "lease"}


def test_export_to_a_file_and_import_from_it(filled: Command, tmp_path: Path) -> None:
    file, other = tmp_path / "keys.jsonl", Command(tmp_path / "other.mvcc")
    told = filled.json("export", str(file))
    assert told == {"revision": 9, "keys": len(PAIRS), "bytes": sum(map(len, PAIRS.values())), "skipped": 0}
    other.run("import", str(file))
    assert contents(other) == PAIRS
    assert "--overwrite replaces it" in filled.error("export", str(file), code=3)
    filled.run("export", str(file), "--overwrite", "--prefix", "plain")
    assert file.read_bytes().count(b"\n") == 1
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_what_is_there_already_is_not_written_again(filled: Command) -> None:
    exported = filled.raw("export")
    assert filled.json("import", "-", stdin=exported)["unchanged"] == len(PAIRS)
    assert filled.json("stats")["revision"] == 9
    result = filled.json("import", "-", stdin=b'{"key": "plain", "value": "new"}\n\n{"type": "delete", "key": "empty"}')
    assert (result["put"], result["deleted"], result["revision"]) == (1, 1, 10)


@pytest.mark.parametrize(("batch", "revision"), [("1", 6), ("2", 4), ("5", 2), ("0", 2)])
def test_batches_are_transactions(command: Command, batch: str, revision: int) -> None:
    lines = b"".join(b'{"key": "k%d", "value": ""}\n' % i for i in range(5))
    assert command.json("import", "-", "--batch", batch, stdin=lines)["revision"] == revision


def test_history_is_replayed(command: Command, tmp_path: Path) -> None:
    with mvccstore.open(command.path, durability="os") as store:
        store.put(b"a", b"1")
        store.put(b"a", b"1")
        store.delete(b"a")
        with store.begin() as txn:
            txn.put(b"\xff", b"\x00")
            txn.put(b"a", b"2")
            txn.put(b"a", b"3")
        store.put(b"b", b"")
    other = Command(tmp_path / "other.mvcc")
    exported = command.raw("export", "--history")
    assert exported == command.raw("history", "--prefix", "", "--json")
    other.run("import", "-", stdin=exported)
    assert other.raw("export", "--history") == exported
    file = tmp_path / "history.jsonl"
    assert command.json("export", "--history", str(file), "--at", "3")["changes"] == 2
    assert file.read_bytes() == b"".join(exported.splitlines(keepends=True)[:2])


def test_export_at_a_revision(filled: Command) -> None:
    filled.run("put", "plain", "changed")
    filled.run("del", "empty")
    assert json.loads(filled.raw("export", "--prefix", "plain", "--at", "9"))["value"] == "text"
    assert filled.raw("export", "--at", "9").count(b"\n") == len(PAIRS)
    assert "in the future" in filled.error("export", "--at", "99", code=3)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"nonsense", "Expecting value"),
        (b"[]", "not an object"),
        (b"{}", "no key"),
        (b'{"key": "a"}', "no value"),
        (b'{"key": "", "value": ""}', "the key is empty"),
        (b'{"key": 1, "value": ""}', "key is not a string"),
        (b'{"key": "a", "value": null}', "no value"),
        (b'{"key": "a", "value": "", "value_b64": ""}', "both value and value_b64"),
        (b'{"key_b64": "*", "value": ""}', "not base64"),
        (b'{"key": "\\udc00", "value": ""}', "surrogates not allowed"),
        (b'{"key": "\xff", "value": ""}', "can't decode"),
        (b'{"key": "a", "value": "", "type": "move"}', "type is 'move'"),
        (b'{"key": "a", "value": "", "type": []}', "type is []"),
        (b'{"key": "a", "value": "", "revision": "1"}', "revision is '1'"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_a_bad_line_is_2_and_has_its_number(command: Command, line: bytes, problem: str) -> None:
    good = b'{"key": "before", "value": ""}\n'
    message = command.error("import", "-", code=2, stdin=good + line + b"\n" + good)
    assert "stdin, line 2: " in message
    assert problem in message
    assert contents(command) == {}


def test_a_key_over_the_limit_is_3_and_named(command: Command, tmp_path: Path) -> None:
    long = b"k" * 2_000_000
    message = command.error("import", "-", code=3, stdin=b'{"key": "%s", "value": ""}' % long)
    assert "kkkk: key of 2,000,000 bytes; the limit is 1,572,864" in message


# Directories


def test_a_tree_goes_in_and_comes_out(command: Command, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "in", FILES)
    (tree / "empty-directory").mkdir()
    assert command.json("import", str(tree))["put"] == len(FILES)
    assert contents(command) == FILES
    told = command.json("export", f"{tmp_path}/out/")
    assert told == {"revision": 2, "keys": len(FILES), "bytes": sum(map(len, FILES.values())), "skipped": 0}
    assert read_tree(tmp_path / "out") == FILES


def test_a_tree_under_a_prefix(command: Command, tmp_path: Path) -> None:
    command.run("put", "other", "untouched")
    tree = write_tree(tmp_path / "in", FILES)
    command.run("import", str(tree), "--prefix", "conf/")
    assert set(contents(command)) == {b"other", *(b"conf/" + name for name in FILES)}
    command.run("export", "--tree", str(tmp_path / "out"), "--prefix", "conf/")
    assert read_tree(tmp_path / "out") == FILES


def test_a_tree_is_exported_as_it_was(command: Command, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "in", FILES)
    command.run("import", str(tree))
    (tree / "a.txt").write_bytes(b"changed")
    (tree / "deep" / "empty").unlink()
    (tree / "new").write_bytes(b"new")
    told = command.json("import", str(tree), "--delete")
    assert (told["put"], told["unchanged"], told["deleted"]) == (2, len(FILES) - 2, 1)
    assert contents(command) == read_tree(tree)
    command.run("export", "--tree", str(tmp_path / "then"), "--at", "2")
    command.run("export", "--tree", str(tmp_path / "now"))
    assert read_tree(tmp_path / "then") == FILES
    assert read_tree(tmp_path / "now") == read_tree(tree)


def test_delete_stays_within_the_prefix(command: Command, tmp_path: Path) -> None:
    for key in ("a", "p/gone", "p/a.txt", "q"):
        command.run("put", key, "x")
    tree = write_tree(tmp_path / "in", {b"a.txt": b"one"})
    assert command.json("import", str(tree), "--prefix", "p/", "--delete")["deleted"] == 1
    assert set(contents(command)) == {b"a", b"p/a.txt", b"q"}


def test_without_delete_nothing_goes(command: Command, tmp_path: Path) -> None:
    command.run("put", "kept", "x")
    (tmp_path / "in").mkdir()
    assert command.json("import", str(tmp_path / "in"))["deleted"] == 0
    assert contents(command) == {b"kept": b"x"}


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_the_store_does_not_import_itself(tmp_path: Path, engine: str) -> None:
    tree = write_tree(tmp_path, {b"a.txt": b"one"})
    inside = Command(tmp_path / "store.mvcc")
    inside.run("import", str(tree), "--engine", engine)
    inside.run("import", str(tree))
    assert contents(inside) == {b"a.txt": b"one"}


def test_links_to_files_are_read_and_odd_files_left_out(command: Command, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "in", {b"a.txt": b"one", b"d/b": b"two"})
    (tree / "link").symlink_to("a.txt")
    (tree / "dangling").symlink_to("nowhere")
    (tree / "d-link").symlink_to("d")
    os.mkfifo(tree / "pipe")
    command.run("import", str(tree))
    assert contents(command) == {b"a.txt": b"one", b"d/b": b"two", b"link": b"one"}


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ([b"/etc/x"], "not a plain relative path"),
        ([b"../x"], "not a plain relative path"),
        ([b"a/../../x"], "not a plain relative path"),
        ([b"a//b"], "not a plain relative path"),
        ([b"./a"], "not a plain relative path"),
        ([b"a/"], "not a plain relative path"),
        ([b"a\x00b"], "a zero byte"),
        ([b"n" * 256], "too long"),
        ([b"d/" * 2500 + b"x"], "too long"),
        ([b"a", b"a!", b"a/b"], "below another key's file"),
        ([b"a", b"a/b/c/d"], "below another key's file"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_key_that_cannot_be_a_file_stops_the_export_before_it_begins(
    command: Command, tmp_path: Path, keys: list[bytes], problem: str
) -> None:
    with mvccstore.open(command.path, durability="os") as store:
        for key in [b"A-good", *keys, b"z-good"]:
            store.put(key, b"v")
    out = tmp_path / "box" / "out"
    message = command.error("export", "--tree", str(out), code=3)
    assert "1 key cannot be a file" in message
    assert problem in message
    assert not out.parent.exists()
    told = command.json("export", "--tree", str(out), "--skip")
    assert told["skipped"] == 1
    assert {b"A-good", b"z-good"} <= set(read_tree(out)) == {b"A-good", b"z-good", *keys[:-1]}
    assert list(out.parent.iterdir()) == [out]


def test_a_prefix_that_is_a_key_itself_has_no_file_name(command: Command, tmp_path: Path) -> None:
    command.run("put", "p", "v")
    assert "not a plain relative path" in command.error(
        "export", "--tree", str(tmp_path / "o"), "--prefix", "p", code=3
    )


def test_export_into_a_directory_that_has_files(command: Command, tmp_path: Path) -> None:
    command.run("put", "a", "new")
    out = write_tree(tmp_path / "out", {b"a": b"old", b"other": b"kept"})
    assert "is not empty" in command.error("export", str(out), code=3)
    command.run("export", str(out), "--overwrite")
    assert read_tree(out) == {b"a": b"new", b"other": b"kept"}


def test_export_writes_through_no_link(command: Command, tmp_path: Path) -> None:
    command.run("put", "file", "new")
    command.run("put", "dir/file", "new")
    outside = write_tree(tmp_path / "outside", {b"file": b"precious"})
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").symlink_to(outside / "file")
    (out / "dir").symlink_to(outside)
    assert "symbolic link" in command.error("export", str(out), "--overwrite", code=3)
    (out / "dir").unlink()
    command.run("export", str(out), "--overwrite")
    assert read_tree(outside) == {b"file": b"precious"}
    assert read_tree(out) == {b"file": b"new", b"dir/file": b"new"}


@pytest.mark.parametrize(
    "args",
    [
        ("import", "/no/such/place"),
        ("import",),
        ("import", "-", "--prefix", "p"),
        ("import", "-", "--delete"),
        ("import", "-", "--batch", "-1"),
        ("export", "--tree"),
        ("export", "x/", "--history"),
        ("export", "x.jsonl", "--skip"),
        ("export", "--at", "-1"),
    ],
)
def test_wrong_usage_is_2(filled: Command, args: tuple[str, ...]) -> None:
    filled.error(*args, code=2)


def test_places_that_cannot_be_written_are_3(filled: Command, tmp_path: Path) -> None:
    message = filled.error("export", "/no/such/place.jsonl", code=3)
    assert message == "mvccstore: error: /no/such/place.jsonl: No such file or directory\n"
    (tmp_path / "file").touch()
    assert "file" in filled.error("export", "--tree", str(tmp_path / "file" / "x"), "--prefix", "plain", code=3)


def test_export_to_a_device_writes_into_it(filled: Command) -> None:
    assert filled.json("export", "/dev/null", "--overwrite")["keys"] == len(PAIRS)
    assert not Path("/dev/null").is_file()


def test_a_batch_ends_when_it_has_bytes_enough(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BATCH_BYTES", 1000)
    tree = write_tree(tmp_path / "in", {b"%d" % i: b"x" * 600 for i in range(6)})
    assert command.json("import", str(tree))["revision"] == 4
