"""The txn command: its JSON form, results, and what it says of mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mvccstore
from mvccstore.cli import txn_json
from tests.extras.cli_kit import Command


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """A store with a at revision 2, b at 3, and a again at 4."""
    made = Command(tmp_path / "store.mvcc")
    for key, value in (("a", "1"), ("b", "2"), ("a", "11")):
        made.run("put", key, value)
    return made


def run(command: Command, document: object, code: int = 0) -> Any:
    return command.json("txn", stdin=json.dumps(document).encode(), code=code)


def holds(command: Command, compare: dict[str, object]) -> bool:
    result = command.result("-s", str(command.path), "txn", "--json", stdin=json.dumps({"compare": [compare]}).encode())
    assert json.loads(result.stdout)["succeeded"] is (result.exit_code == 0)
    assert result.exit_code in {0, 1}
    return result.exit_code == 0


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        ({"key": "a", "value": "11"}, True),
        ({"key": "a", "value": "1", "operator": "!="}, True),
        ({"key": "a", "value": "2", "operator": "<"}, True),
        ({"key": "a", "value": "2", "operator": ">"}, False),
        ({"key": "a", "value_b64": "MTE="}, True),
        ({"key_b64": "YQ==", "version": 2}, True),
        ({"key": "a", "version": 1, "operator": ">"}, True),
        ({"key": "new", "version": 0}, True),
        ({"key": "a", "create_revision": 2}, True),
        ({"key": "a", "create_revision": 2, "operator": "<"}, False),
        ({"key": "a", "mod_revision": 4}, True),
        ({"key": "a", "mod_revision": 4, "operator": "!="}, False),
        ({"key": "a", "lease": 0}, True),
        ({"prefix": "", "version": 0, "operator": ">"}, True),
        ({"prefix": "", "version": 2}, False),
        ({"start": "a", "end": "b", "version": 2}, True),
        ({"start": "b", "version": 1}, True),
    ],
)
def test_every_target_and_operator(command: Command, compare: dict[str, object], expected: bool) -> None:
    assert holds(command, compare) is expected


def test_every_operation_and_its_response(command: Command) -> None:
    nested = {"compare": [{"key": "a", "version": 9}], "failure": [{"put": {"key": "d", "value": "4"}}]}
    result = run(
        command,
        {
            "compare": [{"key": "a", "mod_revision": 4}],
            "success": [
                {"put": {"key": "a", "value_b64": "/w==", "prev_kv": True}},
                {"delete": {"prefix": "b", "prev_kv": True}},
                {"range": {"prefix": "", "limit": 1, "order_by": "mod", "descending": True}},
                {"range": {"start": "a", "count_only": True}},
                {"txn": nested},
            ],
        },
    )
    assert result["succeeded"] is True
    assert result["revision"] == 5
    put, delete, found, counted, inner = result["responses"]
    assert put["put"]["prev_kv"]["value"] == "11"
    assert (delete["delete"]["deleted"], delete["delete"]["prev_kvs"][0]["value"]) == (1, "2")
    assert found["range"]["kvs"][0]["value_b64"] == "/w=="
    assert (counted["range"]["count"], counted["range"]["kvs"]) == (1, [])
    assert inner["txn"]["succeeded"] is False
    assert inner["txn"]["responses"][0]["put"]["revision"] == 5
    assert command.run("range") == "a\t\\xff\nd\t4\n"


def test_a_compare_that_fails_runs_the_other_branch_and_is_1(command: Command) -> None:
    document = {"compare": [{"key": "a", "version": 1}], "failure": [{"put": {"key": "f", "value": ""}}]}
    result = run(command, document, code=1)
    assert result == {"succeeded": False, "revision": 5, "responses": [{"put": {"revision": 5, "prev_kv": None}}]}
    assert command.raw("get", "f") == b""


def test_from_a_file_and_as_text(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "txn.json"
    nested = {"txn": {"success": [{"delete": {"key": "b"}}]}}
    operations = [{"put": {"key": "c", "value": "3"}}, {"range": {"prefix": ""}}, nested]
    file.write_text(json.dumps({"success": operations}))
    assert command.run("txn", str(file)).splitlines() == [
        "succeeded, revision 5",
        "put",
        "range: 3 keys",
        "  a\t11",
        "  b\t2",
        "  c\t3",
        "  succeeded, revision 5",
        "  delete: 1 key",
    ]


def test_it_makes_the_store(tmp_path: Path) -> None:
    fresh = Command(tmp_path / "new.mvcc")
    assert run(fresh, {"success": [{"put": {"key": "a", "value": "1"}}]})["revision"] == 2


def test_put_keeps_value_or_lease(command: Command) -> None:
    run(command, {"success": [{"put": {"key": "a", "ignore_value": True}}]})
    assert command.raw("get", "a") == b"11"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "Expecting value"),
        ("[]", "the document: is not an object"),
        ("{", "Expecting property name"),
        ('{"comparisons": []}', "the document: unknown field 'comparisons'"),
        ('{"compare": {}}', "compare: is not a list"),
        ('{"compare": [1]}', "compare[0]: is not an object"),
        ('{"compare": [{"key": "a"}]}', "compare[0]: needs one of value, version"),
        ('{"compare": [{"key": "a", "version": 1, "lease": 2}]}', "compare[0]: needs one of"),
        ('{"compare": [{"version": 1}]}', "compare[0]: needs one of key, prefix, start"),
        ('{"compare": [{"key": "a", "prefix": "b", "version": 1}]}', "needs one of key, prefix, start"),
        ('{"compare": [{"key": "a", "end": "b", "version": 1}]}', "needs one of key, prefix, start"),
        ('{"compare": [{"start": "b", "end": "a", "version": 1}]}', "compare[0]: range is inverted"),
        ('{"compare": [{"key": "", "version": 1}]}', "compare[0]: key is empty"),
        ('{"compare": [{"key": "a", "version": "1"}]}', "version is '1', not a number"),
        ('{"compare": [{"key": "a", "version": 1.5}]}', "version is 1.5"),
        ('{"compare": [{"key": "a", "version": -1}]}', "version is -1"),
        ('{"compare": [{"key": "a", "version": true}]}', "version is True"),
        ('{"compare": [{"key": "a", "version": 1, "operator": ">="}]}', "operator is '>=', not one of"),
        ('{"compare": [{"key": "a", "version": 1, "operator": {}}]}', "operator is {}, not one of"),
        ('{"compare": [{"key": "a", "value": 1}]}', "compare[0]: value is not a string"),
        ('{"compare": [{"key": "a", "key_b64": "YQ==", "version": 1}]}', "both key and key_b64"),
        ('{"compare": [{"key_b64": "*", "version": 1}]}', "is not base64"),
        ('{"compare": [{"key": "\\ud800", "version": 1}]}', "surrogates not allowed"),
        ('{"success": [{}]}', "success[0]: needs one of put, delete, range, txn"),
        ('{"success": [{"get": {}}]}', "success[0]: unknown field 'get'"),
        ('{"success": [{"put": {"key": "a"}}]}', "success[0].put: has no value"),
        ('{"success": [{"put": {"value": "a"}}]}', "success[0].put: has no key"),
        ('{"success": [{"put": {"key": "", "value": "a"}}]}', "success[0].put: key is empty"),
        ('{"success": [{"put": {"key": "a", "vlaue": ""}}]}', "success[0].put: unknown field 'vlaue'"),
        ('{"success": [{"put": {"key": "a", "value": "", "prev_kv": 1}}]}', "prev_kv is 1, neither true nor false"),
        ('{"success": [{"put": {"key": "a", "value": "b", "ignore_value": true}}]}', "ignore_value keeps"),
        ('{"failure": [{"range": {"prefix": "", "order_by": "size"}}]}', "failure[0].range: sort target is 'size'"),
        ('{"failure": [{"range": {"prefix": "", "order_by": []}}]}', "failure[0].range"),
        ('{"failure": [{"delete": {}}]}', "failure[0].delete: needs one of key"),
        ('{"success": [{"txn": {"success": [{"put": 1}]}}]}', "success[0].txn.success[0].put: is not an object"),
    ],
)
def test_a_mistake_is_2_and_says_where(command: Command, text: str, where: str) -> None:
    message = command.error("txn", code=2, stdin=text.encode())
    assert where in message
    assert command.json("stats")["revision"] == 4


@pytest.mark.parametrize("opening", ['{"success": [{"txn": ', "["])
def test_nesting_without_end_is_a_mistake(command: Command, opening: str) -> None:
    assert "nested too deeply" in command.error("txn", code=2, stdin=opening.encode() * 100_000)


def test_nesting_that_json_can_hold_but_the_store_refuses_is_3(command: Command) -> None:
    text = '{"success": [{"txn": ' * 140 + "{}" + "}]}" * 140
    assert "limit" in command.error("txn", code=3, stdin=text.encode())


def test_bytes_that_are_not_utf8_are_a_mistake(command: Command) -> None:
    assert "the transaction: " in command.error("txn", code=2, stdin=b'{"success": [{"put": {"key": "\xff"}}]}')


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"success": [{"put": {"key": "k", "value": "1"}}, {"put": {"key": "k", "value": "2"}}]}, "written twice"),
        ({"success": [{"put": {"key": "k", "value": "1", "lease": 7}}]}, "lease 7 not found"),
        ({"success": [{"put": {"key": "k", "ignore_value": True}}]}, "does not exist"),
        ({"success": [{"range": {"key": "a", "revision": 99}}]}, "in the future"),
    ],
)
def test_what_the_store_refuses_is_3(command: Command, document: object, said: str) -> None:
    assert said in command.error("txn", code=3, stdin=json.dumps(document).encode())
    assert command.json("stats")["revision"] == 4


def test_the_example_in_the_help_is_a_transaction() -> None:
    example = txn_json.HELP.partition("Example:")[2].partition("\n")[2]
    request = txn_json.parse(example.encode())
    assert request.compare == (mvccstore.Compare.value(b"jobs/1", "==", b"queued"),)
    assert request.success == (mvccstore.Op.put(b"jobs/1", b"taken"),)
    assert request.failure == (mvccstore.Op.range(b"jobs/1"),)
