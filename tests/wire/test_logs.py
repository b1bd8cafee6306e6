"""What a server logs: in which form, of what is slow, of nothing that is secret, and not without end."""

from __future__ import annotations

import gzip
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import mvccstore
from mvccstore.attributes import attributes_request
from mvccstore.server import ServerOptions, serve
from mvccstore.server.flags import FlagError, parse
from mvccstore.server.logs import SAMPLED_FIRST, Sampler, set_up_log
from mvccstore.server.messages import rpc
from mvccstore.server.process import plan
from mvccstore.server.rotation import RotatedFile, Rotation
from mvccstore.server.slow import SHOWN_MAX, SlowOptions, SlowRequests, shown
from mvccstore.testing import FakeClock
from mvccstore.types import (
    CompactRequest,
    Compare,
    DeleteRequest,
    KeyRange,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    Op,
    PutRequest,
    RangeRequest,
    TxnRequest,
    WriteRequest,
)
from tests.oracle.process import running_etcd
from tests.wire.auth_calls import authenticate, disable, enable, grant_role, user_add, user_add_without_password
from tests.wire.calls import delete, get, put, put_op, txn
from tests.wire.client import Client, Endpoint, RpcFailure
from tests.wire.pair import needs_oracle
from tests.wire.test_process import READY, call, running

ALWAYS = SlowOptions(0.0, 0.0)
SECRET = b"a secret value"
AUTH = "/etcdserverpb.Auth/"
APPLY, STATS = "apply request took too long", "request stats"


def fields_of(records: list[logging.LogRecord], message: str) -> list[dict[str, Any]]:
    """Return the fields of the lines that say so."""
    return [vars(record)["fields"] for record in records if record.getMessage() == message]


# What is slow


@pytest.fixture
def slow(caplog: pytest.LogCaptureFixture) -> Iterator[Client]:
    """A client of a server to which everything is slow."""
    caplog.set_level(logging.WARNING, "mvccstore.server")
    with (
        mvccstore.open() as store,
        serve(store, options=ServerOptions(slow=ALWAYS)) as server,
        Client(Endpoint(server.host, server.port)) as client,
    ):
        yield client


WRITES = {
    "put": (put(b"a\xff", SECRET), 'put:<key:"a\\377" value_size:14 >'),
    "delete": (delete(b"a", b"b"), 'delete_range:<key:"a" range_end:"b" >'),
    "txn": (
        txn(put_op(b"x", SECRET), put_op(b"y", b"")),
        'txn:<compare:<> success:<request_put:<key:"x" value_size:14 > request_put:<key:"y" >> failure:<> >',
    ),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_slow_write_is_told_of_with_what_it_asked(slow: Client, caplog: pytest.LogCaptureFixture, what: str) -> None:
    operation, request = WRITES[what]
    slow.unary(operation.method, operation.request)
    (applied,) = fields_of(caplog.records, APPLY)
    assert re.fullmatch(r"[0-9.]+[µm]?s", applied["took"])
    assert applied | {"took": ""} == {
        "took": "",
        "expected-duration": "0s",
        "prefix": "",
        "request": request,
        "response": "",
    }
    (told,) = fields_of(caplog.records, STATS)
    assert told["response type"] == operation.method
    assert told["remote"].startswith("127.0.0.1:")
    assert request.partition(":<")[2].rstrip("> ") == told["request content"].rstrip("> ")
    assert "secret" not in str([vars(record) for record in caplog.records])


def test_a_slow_range_is_told_of(slow: Client, caplog: pytest.LogCaptureFixture) -> None:
    rows = 3_000
    for first in range(0, rows, 100):
        slow.unary(
            "/etcdserverpb.KV/Txn", txn(*(put_op(b"%05d" % n, SECRET) for n in range(first, first + 100))).request
        )
    caplog.clear()
    assert slow.unary("/etcdserverpb.KV/Range", get(b"0", b"1", revision=31).request).count == rows
    assert slow.unary("/etcdserverpb.KV/Range", get(b"0", b"1", sort_order=2, sort_target=1).request).count == rows
    applied = fields_of(caplog.records, APPLY)
    assert [found["prefix"] for found in applied] == ["read-only range "] * 2
    assert [found["request"] for found in applied] == [
        'key:"0" range_end:"1" revision:31',
        'key:"0" range_end:"1"',
    ]
    assert [found["response"].split(" ")[0] for found in applied] == [
        f"range_response_count:{rows}",
    ] * 2
    assert len(fields_of(caplog.records, STATS)) == 2


def test_what_is_quick_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with (
        mvccstore.open() as store,
        serve(store, options=ServerOptions(slow=SlowOptions(1e6, 1e6))) as server,
        Client(Endpoint(server.host, server.port)) as client,
    ):
        client.unary("/etcdserverpb.KV/Put", put(b"a").request)
        assert "etcd_server_slow_apply_total 0.0\n" in client.request("GET", "/metrics").body.decode()
    assert fields_of(caplog.records, APPLY) == fields_of(caplog.records, STATS) == []


def test_what_is_slow_is_counted_though_not_all_is_written(slow: Client, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        slow.unary("/etcdserverpb.KV/Put", put(b"a").request)
    assert "etcd_server_slow_apply_total 3.0\n" in slow.request("GET", "/metrics").body.decode()
    assert len(fields_of(caplog.records, APPLY)) == 3


def test_a_flood_of_slow_requests_is_no_flood_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "mvccstore.server")
    now = 5.0
    noted = SlowRequests(SlowOptions(), lambda: now)
    noted.note_commit(0.2, [PutRequest(b"k")] * 5_000)
    assert noted.applies == 5_000
    assert len(fields_of(caplog.records, APPLY)) == SAMPLED_FIRST + 49
    now = 6.0
    noted.note_commit(0.2, [PutRequest(b"k")])
    assert len(fields_of(caplog.records, APPLY)) == SAMPLED_FIRST + 50
    assert fields_of(caplog.records, APPLY)[0]["took"] == "200ms"


SHOWN: list[tuple[WriteRequest | RangeRequest, str]] = [
    (PutRequest(b'"\\\n', b"v", 7), 'key:"\\042\\134\\012" value_size:1 lease:7'),
    (DeleteRequest(b"a"), 'key:"a"'),
    (DeleteRequest(KeyRange(b"a")), 'key:"a" range_end:"\\000"'),
    (RangeRequest(KeyRange(b"a", b"b"), limit=5, revision=3), 'key:"a" range_end:"b" limit:5 revision:3'),
    (CompactRequest(5), "revision:5"),
    (LeaseGrantRequest(7, 60_000), "TTL:60 ID:7"),
    (LeaseRevokeRequest(7), "ID:7"),
    (attributes_request({"etcd/auth/user/root": b"a secret hash"}, 0), ""),
    (PutRequest(b"k" * 500), f'key:"{"k" * 200}..."'),
    (
        TxnRequest(
            (
                Compare(b"a", "value", "==", b"a secret"),
                Compare(b"b", "mod", ">", 5),
                Compare(b"c", "version", "!=", 0),
            ),
            (Op.range(b"a"), Op.delete(b"b")),
            (TxnRequest((), (Op.put(b"c", b"a secret"),)),),
        ),
        'compare:<target:VALUE key:"a" value_size:8  result:GREATER target:MOD key:"b" mod_revision:5  '
        'result:NOT_EQUAL key:"c" version:0 > success:<request_range:<key:"a" > request_delete_range:<key:"b" >> '
        'failure:<request_txn:<compare:<> success:<request_put:<key:"c" value_size:8 >> failure:<>>>',
    ),
    (
        TxnRequest((), tuple(Op.put(b"%02d" % number, b"") for number in range(25))),
        "compare:<> success:<" + " ".join(f'request_put:<key:"{n:02}" >' for n in range(20)) + " (5 more)> failure:<>",
    ),
]


@pytest.mark.parametrize(("request_", "text"), SHOWN, ids=lambda value: type(value).__name__)
def test_requests_are_shown_without_their_values(request_: WriteRequest | RangeRequest, text: str) -> None:
    assert shown(request_) == text


def test_no_request_is_shown_at_any_length() -> None:
    text = shown(TxnRequest((), tuple(Op.put(b"%02d" % number + b"k" * 300, b"") for number in range(25))))
    assert len(text) == SHOWN_MAX + 3
    assert text.endswith("...")


@needs_oracle
def test_a_real_etcd_says_it_in_the_same_words(tmp_path: Path, slow: Client, caplog: pytest.LogCaptureFixture) -> None:
    arguments = ("--experimental-warning-apply-duration=1ns", "--log-level=warn")
    with running_etcd(tmp_path / "etcd", arguments) as etcd, Client(Endpoint(etcd.host, etcd.port)) as client:
        for operation, _ in WRITES.values():
            client.unary(operation.method, operation.request)
            slow.unary(operation.method, operation.request)
        lines = [json.loads(line) for line in etcd.log.splitlines()]
    theirs = [line for line in lines if line["msg"] == APPLY]
    ours = fields_of(caplog.records, APPLY)
    assert set(theirs[0]) - {"level", "ts", "caller", "msg"} == set(ours[0])
    requests = {line["request"].partition("> ")[2].replace(" ", "") for line in theirs}
    assert {found["request"].replace(" ", "") for found in ours} <= requests


@needs_oracle
def test_who_is_refused_and_whether_authentication_is_on_is_said_as_by_etcd(
    tmp_path: Path, slow: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mvccstore.server")
    said = ("enabled authentication", "invalid authentication was requested", "disabled authentication")
    with (
        running_etcd(tmp_path / "etcd", ("--log-level=info",)) as etcd,
        Client(Endpoint(etcd.host, etcd.port)) as client,
    ):
        for each in (client, slow):
            for begun in (
                user_add("root", "pw"),
                user_add_without_password("guest"),
                grant_role("root", "root"),
                enable(),
            ):
                each.unary(begun.method, begun.request)
            for refused in (authenticate("root", "no"), authenticate("nobody", "pw"), authenticate("guest")):
                with pytest.raises(RpcFailure):
                    each.unary(refused.method, refused.request)
            token = each.unary(authenticate("root", "pw").method, authenticate("root", "pw").request).token
            each.unary(disable().method, disable().request, [("token", token)])
        lines = [json.loads(line) for line in etcd.log.splitlines()]
    theirs = [
        (line["level"], line["msg"], line.get("user"), line.get("error")) for line in lines if line["msg"] in said
    ]
    ours = [
        (record.levelname.lower().removesuffix("ing"), record.getMessage(), fields.get("user"), fields.get("error"))
        for record in caplog.records
        for fields in (getattr(record, "fields", {}),)
        if record.getMessage() in said
    ]
    assert ours == theirs
    assert len(ours) == 5


# The form of the lines


def logged(capsys: pytest.CaptureFixture[str], form: str) -> list[str]:
    with ExitStack() as stack:
        set_up_log(logging.INFO, form, ("stdout",), stack)
        log = logging.getLogger("mvccstore.server")
        log.info("a\nb", extra={"fields": {"n": 1, "name": 'x"'}})
        log.debug("not this")
        try:
            {}["broken"]
        except KeyError:
            log.exception("it failed")
    logging.getLogger("mvccstore.server").critical("nor this")
    return capsys.readouterr().out.splitlines()


def test_a_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = map(json.loads, logged(capsys, "json"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first.pop("ts"))
    assert re.fullmatch(r"test_logs\.py:\d+", first.pop("caller"))
    assert first == {"level": "info", "msg": "a\nb", "n": 1, "name": 'x"'}
    assert (second["level"], second["msg"]) == ("error", "it failed")
    assert second["error"].startswith("Traceback")
    assert second["error"].endswith("KeyError: 'broken'")


def test_for_a_console_it_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (line.split("\t") for line in logged(capsys, "console"))
    assert first[1] == "info"
    assert first[3:] == ["a\\nb", '{"n": 1, "name": "x\\""}']
    assert second[1] == "error"
    assert json.loads(second[4])["error"].endswith("KeyError: 'broken'")


@pytest.mark.parametrize(("level", "name"), [("warning", "warn"), ("error", "error"), ("critical", "fatal")])
def test_levels_have_etcds_names(capsys: pytest.CaptureFixture[str], level: str, name: str) -> None:
    with ExitStack() as stack:
        set_up_log(logging.INFO, "json", ("stdout",), stack)
        getattr(logging.getLogger("mvccstore.server"), level)("a")
    assert json.loads(capsys.readouterr().out)["level"] == name


def test_what_is_said_over_and_over_is_written_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack:
        set_up_log(logging.INFO, "json", ("stdout",), stack)
        for number in range(10_000):
            logging.getLogger("mvccstore.server").warning("client %d is refused", number)
    assert SAMPLED_FIRST < len(capsys.readouterr().out.splitlines()) < 1_000


def test_a_sampler_begins_anew_each_second() -> None:
    now = 0.0
    sampler = Sampler(lambda: now)
    assert [sampler.allows("a") for _ in range(300)].count(True) == SAMPLED_FIRST + 2
    assert sampler.allows("b")
    now = 1.0
    assert [sampler.allows("a") for _ in range(300)].count(True) == SAMPLED_FIRST + 2


# Rotation


def aside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "etcd.log")


def until_swept() -> None:
    for thread in threading.enumerate():
        if thread.name == "log rotation":
            thread.join(20)


def test_a_large_file_is_put_aside_under_the_time(tmp_path: Path) -> None:
    path, clock = tmp_path / "logs" / "etcd.log", FakeClock()
    file = RotatedFile(path, Rotation(maxsize=1), clock)
    names = []
    for letter in "abc":
        clock.advance(60)
        when = datetime.fromtimestamp(clock.time_ms() / 1_000, UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")[:-3]
        names.append(f"etcd-{when}.log")
        file.write(letter * 600_000)
    assert aside(path.parent) == names[1:]
    assert [(path.parent / name).read_text()[0] for name in names[1:]] == ["a", "b"]
    file.close()
    file = RotatedFile(path, Rotation(maxsize=1), clock)
    file.write("d" * 600_000)
    assert path.read_text() == "d" * 600_000, "what was there counts"
    file.close()


def test_what_was_put_aside_is_compressed_and_removed(tmp_path: Path) -> None:
    path, clock = tmp_path / "etcd.log", FakeClock()
    (tmp_path / "etcd-mine.log").touch()
    file = RotatedFile(path, Rotation(maxsize=1, maxbackups=2, compress=True), clock)
    for letter in "abcde":
        clock.advance(60)
        file.write(letter * 600_000)
        until_swept()
    *kept, others = aside(tmp_path)
    assert others == "etcd-mine.log"
    assert [gzip.decompress((tmp_path / name).read_bytes())[:1] for name in kept] == [b"c", b"d"]
    file.close()
    clock.advance(2 * 86_400)
    RotatedFile(path, Rotation(maxage=1), clock).close()
    until_swept()
    assert aside(tmp_path) == ["etcd-mine.log"]


def test_a_file_that_cannot_be_put_aside_is_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "etcd.log"
    file = RotatedFile(path, Rotation(maxsize=1))

    def refuses(*_: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuses)
        for _ in range(2):
            file.write("a" * 600_000)
    assert path.stat().st_size == 1_200_000
    file.write("b")
    assert path.read_text() == "b"
    file.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--log-outputs=stderr"], "requires a single file path"),
        (["--log-outputs=a,b"], "requires a single file path"),
        ([], "requires a single file path"),
        (["--log-outputs=a", "--log-rotation-config-json={"], "improperly formatted log rotation config"),
        (["--log-outputs=a", '--log-rotation-config-json={"maxsize":"1"}'], 'config: maxsize is "1"'),
        (["--log-outputs=a", '--log-rotation-config-json={"maxage":true}'], "config: maxage is true"),
        (["--log-outputs=a", "--log-rotation-config-json=5"], "config: it is 5"),
        (["--log-outputs=a", "--log-rotation-config-json=null"], "config: it is null"),
    ],
)
def test_rotations_that_cannot_be(arguments: list[str], message: str) -> None:
    with pytest.raises(FlagError, match=message):
        plan(parse(["--enable-log-rotation", *arguments], {}))


def test_a_process_rotates_its_file(tmp_path: Path) -> None:
    path = tmp_path / "etcd.log"
    path.write_text("x" * (1 << 20))
    path.chmod(0o640)
    config = '--log-rotation-config-json={"MaxSize":1,"maxbackups":1,"maxage":null,"other":[]}'
    with running("--memory", f"--log-outputs={path},stderr", "--enable-log-rotation", config):
        assert len(aside(tmp_path)) == 1
        assert READY in path.read_text()
        assert path.stat().st_mode & 0o777 == 0o640
    assert plan(parse(["--log-outputs=a", "--enable-log-rotation"], {})).log_rotation == Rotation()
    assert plan(parse(["--log-outputs=a"], {})).log_rotation is None


# The process


def test_every_line_of_a_process_is_json_in_its_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ("--data-dir", str(tmp_path / "data"), "--log-outputs", f"stderr,{log}", "--log-level", "debug")
    with running(*command, "--warning-apply-duration=0s", "--warning-unary-request-duration=0s") as process:
        call(process.url, "/v3/kv/put", key="YQ==", value="c2VjcmV0LXZhbHVl")
        call(process.url, "/v3/auth/user/add", name="root", password="secret-password")
        call(process.url, "/v3/auth/user/grant", user="root", role="root")
        call(process.url, "/v3/auth/enable")
        token = call(process.url, "/v3/auth/authenticate", name="root", password="secret-password")["token"]
        process.terminate()
        assert process.wait(20) == 0
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(list(line)[:4] == ["level", "ts", "caller", "msg"] for line in lines)
    messages = [line["msg"] for line in lines]
    assert READY in messages
    assert messages[-1] == "stopped"
    assert next(line["request"] for line in lines if line["msg"] == APPLY) == 'put:<key:"a" value_size:12 >'
    assert STATS in messages
    for secret in ("secret", token, "c2VjcmV0", "$2a$"):
        assert secret not in text


REFUSED = {
    "--log-level=loud": "--log-level is 'loud', not one of debug, info, warn, error, panic, fatal",
    "--log-format=xml": "--log-format is 'xml', not one of json, console",
    "--logger=capnslog": 'unknown logger option "capnslog"',
    "--log-outputs=default,stdout": 'multi logoutput for "default" is not supported yet',
    "--warning-apply-duration=soon": "invalid value 'soon' for flag -warning-apply-duration: not a duration",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_bad_flags_are_refused(flag: str) -> None:
    command = [sys.executable, "-m", "mvccstore.server.etcd_shim", "--memory", flag]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (2, REFUSED[flag] + "\n")


def test_a_log_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mvccstore.server.etcd_shim", "--memory", f"--log-outputs={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == f"--log-outputs: [Errno 21] Is a directory: '{tmp_path}'\n"


def test_users_are_not_shown_by_a_server_in_a_program(slow: Client, caplog: pytest.LogCaptureFixture) -> None:
    slow.unary(AUTH + "UserAdd", rpc.AuthUserAddRequest(name="amy", password="a secret password"))
    assert "secret" not in str([vars(record) for record in caplog.records])
