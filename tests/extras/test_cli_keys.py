"""get, put, del, range, count, history: what they print, and how they end."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

import mvccstore
from mvccstore.cli import output
from mvccstore.cli.app import cli
from mvccstore.cli.keys import escaped
from tests.extras.cli_kit import Command, failed

ODD_KEYS = [
    b"[red]x[/red]",
    b"a\tb\nc",
    b"\x00",
    b"\xff\xfe",
    "clé/漢字".encode(),
    b"L" * 3000,
    b"back\\slash",
    b"-dash",
]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path / "store.mvcc")


@pytest.fixture
def filled(command: Command) -> Command:
    """Revisions 2 to 7: a and b put, a put again, jobs/1 put, b deleted, and put again."""
    for key, value in ((b"a", b"1"), (b"b", b"2"), (b"a", b"11"), (b"jobs/1", b"queued")):
        command.run("put", key.decode(), value.decode())
    command.run("del", "b")
    command.run("put", "b", "3")
    return command


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help(command: Command, name: str) -> None:
    for option in ("--help", "-h"):
        result = command.result(name, option)
        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: mvccstore {name}")
    assert cli.commands[name].short_help


def test_every_command_on_a_store_takes_store_and_json() -> None:
    for name, subcommand in cli.commands.items():
        if name in {"serve", "record", "replay"}:
            continue  # takes etcd's flags; go on until they are told to stop
        options = {option for param in subcommand.params for option in param.opts}
        assert "--json" in options, name
        assert "--store" in options or name in {"compare", "completion", "demo"}


def test_help_documents_the_exit_codes_and_no_arguments_means_help(command: Command) -> None:
    for args in ((), ("--help",)):
        result = command.result(*args)
        assert result.exit_code == 0
        assert "Exit codes" in result.stdout


def test_version(command: Command) -> None:
    assert command.result("--version").stdout == f"mvccstore {mvccstore.__version__}\n"


def test_put_prints_the_revision_and_get_the_bytes(command: Command) -> None:
    assert command.run("put", "greeting", "hello") == "2\n"
    assert command.raw("get", "greeting") == b"hello"
    assert command.json("put", "greeting", "again") == {"revision": 3}


@pytest.mark.parametrize("value", [b"", b"\x00\xff\x1b[31m", b"line\n", "漢字".encode(), b"x" * 100_000])
def test_a_value_goes_in_by_stdin_or_file_and_comes_out_as_it_was(
    command: Command, tmp_path: Path, value: bytes
) -> None:
    file = tmp_path / "value"
    file.write_bytes(value)
    command.run("put", "by-stdin", "-", stdin=value)
    command.run("put", "by-file", "--file", str(file))
    command.run("put", "by-file-stdin", "--file", "-", stdin=value)
    assert [command.raw("get", key) for key in ("by-stdin", "by-file", "by-file-stdin")] == [value] * 3


@pytest.mark.parametrize("key", ODD_KEYS, ids=lambda key: repr(key[:12]))
def test_any_key_can_be_written_read_listed_and_deleted(command: Command, key: bytes) -> None:
    for option, text in (("--hex", key.hex()), ("--b64", base64.b64encode(key).decode())):
        command.run("put", option, "--", text, "value")
        assert command.raw("get", option, "--", text) == b"value"
        assert command.run("range", option, "--keys-only") == f"{text}\n"
        assert command.run("count", option, "--", text) == "1\n"
        assert len(command.run("history", option, "--", text).splitlines()) >= 1
        row = command.json_lines("range")[0]
        coded = base64.b64decode(row["key_b64"]) if "key_b64" in row else row["key"].encode()
        assert coded == key
        assert command.run("range", "--keys-only") == f"{escaped(key)}\n"
        assert command.run("del", option, "--", text) == "1\n"


def test_utf8_keys_need_no_option(command: Command) -> None:
    command.run("put", "clé", "valeur漢")
    assert command.run("get", "clé") == "valeur漢"
    assert command.run("range") == "clé\tvaleur漢\n"


def test_get_of_a_missing_key_is_1_and_says_so(filled: Command) -> None:
    assert filled.error("get", "nope", code=1) == "mvccstore: no key nope\n"
    assert filled.error("get", "jobs/1", "--at", "2", code=1) == "mvccstore: no key jobs/1 at revision 2\n"
    assert filled.json("get", "nope", code=1) is None


def test_every_read_takes_at(filled: Command) -> None:
    assert filled.run("get", "a", "--at", "3") == "1"
    assert filled.run("range", "--at", "3") == "a\t1\nb\t2\n"
    assert filled.run("count", "--at", "2") == "1\n"
    assert filled.run("history", "a", "--at", "3") == "2\tput\ta\t1\n"
    for args in (("get", "a"), ("range",), ("count",), ("range", "--count-only"), ("history", "a")):
        assert "in the future" in filled.error(*args, "--at", "99", code=3)


def test_json_of_get_has_the_documented_fields(filled: Command) -> None:
    row = {"key": "a", "value": "11", "create_revision": 2, "mod_revision": 4, "version": 2, "lease": 0}
    assert filled.json("get", "a") == row
    assert filled.json_lines("range", "a") == [row]
    assert filled.json_lines("range", "a", "--keys-only") == [{k: v for k, v in row.items() if k != "value"}]


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        ((), ["a", "b", "jobs/1"]),
        (("jobs/",), ["jobs/1"]),
        (("jobs/", "--prefix"), ["jobs/1"]),
        (("a", "b"), ["a"]),
        (("b", "--from-key"), ["b", "jobs/1"]),
        (("--limit", "2"), ["a", "b"]),
        (("--limit", "2", "--descending"), ["jobs/1", "b"]),
        (("--order-by", "mod"), ["a", "jobs/1", "b"]),
        (("--order-by", "value", "--descending"), ["jobs/1", "b", "a"]),
        (("--order-by", "version", "--descending", "--limit", "1"), ["a"]),
        (("--order-by", "create"), ["a", "jobs/1", "b"]),
        (("--min-mod-revision", "5"), ["b", "jobs/1"]),
        (("--max-mod-revision", "5"), ["a", "jobs/1"]),
        (("--min-create-revision", "3", "--max-create-revision", "6"), ["jobs/1"]),
        (("nothing",), []),
    ],
)
def test_range_lists(filled: Command, args: tuple[str, ...], keys: list[str]) -> None:
    assert filled.run("range", "--keys-only", *args).split() == keys
    assert [row["key"] for row in filled.json_lines("range", *args)] == keys


def test_count_counts_what_range_lists(filled: Command) -> None:
    assert filled.run("count") == filled.run("range", "--count-only") == "3\n"
    assert filled.json("count", "a", "b") == {"count": 1, "revision": 7}
    assert filled.json("range", "--count-only", "--at", "2") == {"count": 1, "revision": 2}
    assert filled.run("count", "b", "--from-key") == "2\n"


def test_history_lists_puts_and_deletes(filled: Command) -> None:
    assert filled.run("history", "b") == "3\tput\tb\t2\n6\tdelete\tb\t\n7\tput\tb\t3\n"
    assert filled.run("history", "b", "--descending", "--limit", "1") == "7\tput\tb\t3\n"
    assert filled.run("history", "b", "--limit", "1", "--keys-only") == "3\tput\tb\n"
    assert filled.run("history", "b", "--start-revision", "7") == "7\tput\tb\t3\n"
    assert len(filled.run("history", "--prefix", "").splitlines()) == 6
    assert len(filled.run("history", "a", "c").splitlines()) == 5
    assert filled.error("history", "nope", code=1) == "mvccstore: no change of nope in what is kept\n"


def test_history_as_json(filled: Command) -> None:
    created, deleted, _ = filled.json_lines("history", "b", "--prev-kv")
    assert created == {
        "type": "put", "revision": 3, "key": "b", "value": "2",
        "create_revision": 3, "mod_revision": 3, "version": 1, "lease": 0,
    }  # fmt: skip
    assert deleted == {
        "type": "delete", "revision": 6, "key": "b", "prev_kv": {k: created[k] for k in created if k not in ("type", "revision")},
    }  # fmt: skip
    assert "value" not in filled.json_lines("history", "b", "--keys-only")[0]


def test_del_deletes_one_a_span_or_a_prefix(filled: Command) -> None:
    assert filled.run("del", "a") == "1\n"
    assert filled.error("del", "a", code=1) == "mvccstore: nothing to delete: no key a\n"
    assert filled.json("del", "jobs/", "--prefix", "--prev-kv")["prev_kvs"][0]["value"] == "queued"
    assert filled.json("del", "a", "z") == {"revision": 10, "deleted": 1}
    assert filled.json("del", "--from-key", "", code=1) == {"revision": 10, "deleted": 0}
    assert filled.run("get", "jobs/1", "--at", "7") == "queued"


def test_put_shows_the_previous_key(filled: Command) -> None:
    assert filled.json("put", "a", "x", "--prev-kv")["prev_kv"]["value"] == "11"
    assert filled.json("put", "new", "x", "--prev-kv")["prev_kv"] is None


@pytest.mark.parametrize(
    "args",
    [
        ("get", ""),
        ("get", "--hex", "zz"),
        ("get", "--b64", "*"),
        ("get", "a", "b"),
        ("get", "a", "--at", "-1"),
        ("get", "a", "--prefix"),
        ("put", "a"),
        ("put", "a", "b", "--file", __file__),
        ("put", "a", "b", "--lease", "1", "--keep-lease"),
        ("put", "a", "b", "c"),
        ("put", "a", "b", "--engine", "memory"),
        ("put", "a", "b", "--durability", "none"),
        ("put", "", "b"),
        ("del",),
        ("range", "b", "a"),
        ("range", "a", "b", "--prefix"),
        ("range", "a", "--prefix", "--from-key"),
        ("range", "--order-by", "colour"),
        ("range", "--limit", "-1"),
        ("frobnicate",),
        ("range", "--frobnicate"),
    ],
)
def test_wrong_usage_is_2_and_changes_nothing(filled: Command, args: tuple[str, ...]) -> None:
    message = filled.error(*args, code=2)
    assert "Error: " in message
    assert filled.json("stats")["revision"] == 7


def test_the_hint_when_the_store_stands_where_the_key_belongs(filled: Command) -> None:
    assert "The store is named with -s FILE" in failed(filled.result("get", str(filled.path), "a"), 2)
    assert "no store named" in failed(filled.result("get", "a"), 2)
    assert "mvccstore range" in filled.error("get", "a", "--prefix", code=2)


def test_the_store_can_be_named_before_or_after_or_by_the_environment(filled: Command) -> None:
    path = str(filled.path)
    assert filled.result("get", "a", "--store", path).stdout == "11"
    assert filled.result("get", "a", env={"MVCCSTORE": path}).stdout == "11"
    assert filled.result("-s", path, "get", "a", env={"MVCCSTORE": "/nowhere"}).stdout == "11"


@pytest.mark.parametrize(
    "args", [("get", "k"), ("range",), ("count",), ("history", "k"), ("stats",), ("check",), ("export",)]
)
def test_reading_never_makes_a_store(command: Command, args: tuple[str, ...]) -> None:
    message = command.error(*args, code=3)
    assert "there is no such store" in message
    assert "put KEY VALUE" in message
    assert list(command.path.parent.iterdir()) == []


@pytest.mark.parametrize("args", [("del", "k"), ("compact", "2")])
def test_taking_away_makes_no_store_either(command: Command, args: tuple[str, ...]) -> None:
    assert "there is no such store" in command.error(*args, code=3)
    assert list(command.path.parent.iterdir()) == []


def test_a_directory_is_not_a_store(tmp_path: Path) -> None:
    assert "is a directory" in Command(tmp_path).error("range", code=3)
    assert "directory" in Command(tmp_path).error("put", "a", "b", code=3)


@pytest.mark.parametrize("engine", ["lmdb", "sqlite"])
def test_engine_is_chosen_when_the_store_is_made(command: Command, engine: str) -> None:
    command.run("put", "a", "b", "--engine", engine, "--durability", "os")
    assert command.json("stats")["engine"] == engine
    other = "lmdb" if engine == "sqlite" else "sqlite"
    assert f"not of {other}" in command.error("put", "a", "b", "--engine", other, code=3)


def test_a_message_stays_on_one_line_whatever_the_key(command: Command) -> None:
    command.run("put", "a", "b")
    assert command.error("get", "x\ny\x1b[31m", code=1) == "mvccstore: no key x\\ny\\x1b[31m\n"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the commands believe that a person reads, in 60 columns."""
    from mvccstore.cli import files, reading, writing

    for module in (output, files, reading, writing):
        monkeypatch.setattr(module, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")


@pytest.mark.usefixtures("terminal")
def test_tables_show_odd_keys_as_text_and_fit(command: Command) -> None:
    with mvccstore.open(command.path, durability="os") as store:
        for key in ODD_KEYS:
            store.put(key, b"value \x1b[31m" + b"v" * 300)
    for args in (("range",), ("range", "--keys-only"), ("history", "--prefix", "")):
        printed = command.run(*args)
        assert "[red]x[/red]" in printed
        assert "\x1b[31m" not in printed
        assert max(map(len, printed.splitlines())) <= 60
        assert len(printed.splitlines()) >= len(ODD_KEYS) + 1
    lines = command.run("range").splitlines()
    assert lines[0].split() == ["KEY", "MOD", "CREATE", "VERSION", "SIZE", "VALUE"]
    assert lines[-1] == f"{len(ODD_KEYS)} keys at revision {len(ODD_KEYS) + 1}"


@pytest.mark.usefixtures("terminal")
def test_numbers_in_tables_end_in_one_column(filled: Command) -> None:
    filled.run("put", "c", "x" * 2000)
    lines = filled.run("range").splitlines()[:-1]
    end = lines[0].index("SIZE") + 4
    assert all(line[end - 1] in "BE" and line[end] == " " for line in lines)


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_get_ends_the_line_and_disarms_control_characters(command: Command) -> None:
    command.run("put", "a", "text")
    command.run("put", "b", "-", stdin=b"two\nlines\n")
    command.run("put", "c", "-", stdin=b"\x1b[31m\tback\\slash")
    assert command.run("get", "a") == "text\n"
    assert command.run("get", "b") == "two\nlines\n"
    assert command.run("get", "c") == "\\x1b[31m\tback\\slash\n"


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_words_say_what_the_numbers_are(filled: Command) -> None:
    assert filled.run("put", "a", "b") == "revision 8\n"
    assert filled.run("del", "a") == "1 key deleted, revision 9\n"
    assert filled.run("range", "--limit", "1").endswith("1 key at revision 9; there are more\n")
    assert "compact revision" in filled.run("stats")


def test_a_long_listing_keeps_every_row(command: Command) -> None:
    with mvccstore.open(command.path, durability="os") as store, store.begin() as txn:
        for i in range(1500):
            txn.put(b"%05d" % i, b"v%d" % i)
    assert command.run("range") == "".join(f"{i:05d}\tv{i}\n" for i in range(1500))
    assert len(command.json_lines("range")) == 1500


@pytest.mark.usefixtures("terminal")
def test_a_long_table_has_one_header(command: Command) -> None:
    with mvccstore.open(command.path, durability="os") as store, store.begin() as txn:
        for i in range(450):
            txn.put(b"k" * (i // 50 + 1) + b"%d" % i, b"v")
    lines = command.run("range").splitlines()
    assert len(lines) == 452
    assert sum("VERSION" in line for line in lines) == 1


def test_shorten_keeps_both_ends_of_a_key_and_the_beginning_of_a_value() -> None:
    assert output.shorten("abcdefghijklmnopqrstuvwxyz", 11) == "abcd...wxyz"
    assert output.shorten("abcdefghijklmnopqrstuvwxyz", 11, is_end_cut=True) == "abcdefgh..."
    assert output.shorten("short", 11) == "short"
    assert output.shorten("abcdefgh", 3) == "abc"
    assert output.shorten("漢字" * 10, 11) == "漢字...漢字"


def test_preview_does_not_cut_a_character_in_two() -> None:
    for padding in range(4):
        assert "\\x" not in output.preview(b"a" * padding + "漢".encode() * 200)


def test_keys_complete_from_the_store(filled: Command) -> None:
    def complete(*words: str, store: str | None = str(filled.path)) -> list[str]:
        env = {
            "_MVCCSTORE_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["mvccstore", *words]),
            "COMP_CWORD": str(len(words)),
            "MVCCSTORE": store,
        }
        return [line.partition(",")[2] for line in filled.result(env=env).stdout.splitlines() if line]

    assert complete("get", "jo") == ["jobs/1"]
    assert complete("range", "") == ["a", "b", "jobs/1"]
    assert complete("-s", str(filled.path), "del", "jo", store=None) == ["jobs/1"]
    assert complete("del", "-s", str(filled.path), "jo", store=None) == ["jobs/1"]
    assert complete("get", "jo", store=None) == []
    assert "history" in complete("hi")
    filled.path.unlink()
    assert complete("get", "jo") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(command: Command, shell: str) -> None:
    script = command.result("completion", shell).stdout
    assert "_MVCCSTORE_COMPLETE" in script
    assert command.json("completion", shell) == {"shell": shell, "script": script.rstrip("\n")} or script.startswith(
        command.json("completion", shell)["script"]
    )
