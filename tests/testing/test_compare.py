"""`mvccstore.testing.compare` and `mvccstore compare`: what differs is found and made small, what does not is not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mvccstore.server import ServerOptions, serve
from mvccstore.server.messages import METHODS, rpc
from mvccstore.server.serving import Serving
from mvccstore.server.transport.call import Method
from mvccstore.testing import compare, etcd
from mvccstore.testing.comparing import LEASE_OFFSET, Comparison, Found
from mvccstore.testing.playing import Place, RefusedError, leases_of
from mvccstore.testing.shrinking import shrink
from mvccstore.testing.workload import CALLS, Step, Vocabulary, Workload, script_from_json, script_to_json
from mvccstore.types import KeyRange
from tests.extras.cli_kit import Command
from tests.oracle.process import QUICK_ELECTION, running_etcd
from tests.wire.pair import NEEDS_ORACLE

KV, WATCH = "/etcdserverpb.KV/", "/etcdserverpb.Watch/Watch"
NOBODY = "http://127.0.0.1:1"

Change = Callable[[Any], Any]


@contextmanager
def another(method: str, change: Change, store: Any = None) -> Iterator[Serving]:
    """Serve what differs in one method: its requests are changed."""

    def intercept(found: Method) -> Method:
        if found.path != method:
            return found
        request = METHODS[method].request
        return replace(found, decode=lambda data: found.decode(change(request.FromString(data)).SerializeToString()))

    with serve(store, options=ServerOptions(intercept=intercept, grace_seconds=0.0)) as server:
        yield server


def no_prev_kv(request: Any) -> Any:
    request.prev_kv = False
    return request


def no_filters(request: Any) -> Any:
    del request.create_request.filters[:]
    return request


def one_less(request: Any) -> Any:
    request.limit -= request.limit == 2
    return request


# What differs


def found_by(method: str, change: Change, **options: Any) -> tuple[Comparison, Found]:
    with another(method, change) as server:
        report = compare(server.url, version="3.6", **options)
    assert report.found is not None
    assert not report.is_same
    return report, report.found


def test_a_put_without_its_previous_key_is_found_in_two_steps() -> None:
    report, found = found_by(f"{KV}Put", no_prev_kv)
    assert [step.call for step in found.script] == ["put", "put"]
    assert found.script[0].request.keys() <= {"key", "value"}
    assert found.script[1].request == {"key": found.script[0].request["key"], "prev_kv": True}
    assert (found.at, found.path, found.theirs) == (1, ".ok.prev_kv", "(absent)")
    assert report.drawn_steps == 60


def test_a_limit_that_is_one_off_is_found_with_the_keys_that_it_takes() -> None:
    _, found = found_by(f"{KV}Range", one_less, seed=3)
    assert [step.call for step in found.script][-1] == "range"
    assert len(found.script) <= 3
    assert found.script[-1].request["limit"] == 2
    assert found.path in {".ok.kvs[1]", ".ok.more"}


def test_what_a_watch_sees_and_should_not_is_found() -> None:
    _, found = found_by(WATCH, no_filters)
    (watch,) = (step for step in found.script if step.call == "watch")
    assert {"key", "filters"} <= set(watch.request)
    assert len(found.script) <= 3
    assert found.path.startswith(".events[0]")
    assert found.script[found.at] is watch


def test_the_report_says_what_to_do_and_is_a_script_to_play_again() -> None:
    with another(f"{KV}Put", no_prev_kv) as server:
        report = compare(server.url)
        assert report.found is not None
        lines = str(report).splitlines()
        key = report.found.script[1].request["key"]
        assert lines[0].startswith("different: etcd 3.6.")
        assert lines[0].endswith(f"seed {report.seed}; 2 steps are left of 60")
        assert lines[2].startswith("->   2  put(")
        assert lines[2].endswith("prev_kv=True)")
        assert lines[3] == "step 2 differs first at .ok.prev_kv:"
        again = script_from_json(json.loads(json.dumps(report.to_json())))
        assert again == report.found.script
        assert again[1].request["key"] == key
        played = compare(server.url, script=again)
    assert played.found is not None
    assert (played.found.at, played.found.path, played.runs, played.seed) == (1, ".ok.prev_kv", 1, None)


def test_the_same_seed_finds_the_same() -> None:
    reports = [found_by(f"{KV}Put", no_prev_kv, seed=11)[0] for _ in range(2)]
    assert reports[0].found == reports[1].found
    assert reports[0].seed == reports[1].seed


# What does not


@pytest.mark.parametrize("version", ["3.4", "3.5", "3.6"])
def test_ours_is_like_ours(version: str) -> None:
    with etcd(version=version) as server:
        report = compare(server.url, runs=5)
        assert report.is_same, report
        assert (report.version, report.release[:3], report.runs, report.steps) == (version, version, 5, 300)
        assert str(report).startswith("same: etcd ")
        assert server.snapshot()["keys"] == server.snapshot()["leases"] == []


def test_ours_is_like_ours_at_another_revision_and_below_a_prefix() -> None:
    with etcd() as server:
        for _ in range(500):
            server.store.put(b"theirs", lease=server.store.grant(ttl=600) if server.store.revision == 1 else 0)
        lease = server.store.grant(ttl=600, lease_id=1)
        server.store.put(b"kept", lease=lease)
        report = compare(server.url, runs=5, prefix=b"some/\xff")
        assert report.is_same, report
        assert [row["key"] for row in server.snapshot()["keys"]] == ["kept", "theirs"]
        assert len(server.snapshot()["leases"]) == 2
        assert server.store.compact_revision == -1


def test_a_later_run_begins_where_an_earlier_one_left_off() -> None:
    with etcd() as server:
        first, second = (compare(server.url, runs=2, seed=5) for _ in range(2))
        assert first.is_same, first
        assert second.is_same, second


class TestReal:
    """With a real etcd."""

    pytestmark = NEEDS_ORACLE

    def test_a_real_etcd_is_like_ours(self, tmp_path: Path) -> None:
        with running_etcd(tmp_path, QUICK_ELECTION) as process:
            report = compare(process.url, runs=8, seed=40)
            assert report.is_same, report
            below = compare(process.url, runs=3, seed=90, prefix=b"below/")
            assert below.is_same, below
            assert report.release == ".".join(map(str, process.oracle.version))


# What it leaves alone


def contents_of(server: Any) -> tuple[Any, int]:
    return server.snapshot()["keys"], server.store.revision


def test_an_etcd_with_keys_is_refused_and_not_written_to() -> None:
    with etcd(contents={"a": "1"}) as server:
        before = contents_of(server)
        with pytest.raises(RefusedError, match="has 1 keys: name an unused prefix"):
            compare(server.url)
        with pytest.raises(RefusedError, match="has 1 keys below 'a'"):
            compare(server.url, prefix=b"a")
        assert contents_of(server) == before


def test_an_etcd_with_leases_is_refused() -> None:
    with etcd() as server:
        server.store.grant(ttl=600, lease_id=9)
        with pytest.raises(RefusedError, match="has 1 leases"):
            compare(server.url)
        assert [lease["id"] for lease in server.snapshot()["leases"]] == [9]


def test_erase_deletes_what_is_there_and_below_a_prefix_nothing_else() -> None:
    with etcd(contents={"a": "1", "b/1": "2"}) as server:
        server.store.grant(ttl=600, lease_id=9)
        assert compare(server.url, runs=1, prefix=b"b/", erase=True).is_same
        assert [row["key"] for row in server.snapshot()["keys"]] == ["a"]
        assert compare(server.url, runs=1, erase=True).is_same
        assert server.snapshot()["keys"] == server.snapshot()["leases"] == []


def test_a_lease_of_others_is_not_taken_for_ours() -> None:
    with etcd() as server:
        for lease in (LEASE_OFFSET + 2, 9):
            server.store.grant(ttl=600, lease_id=lease)
        grants = (Step("grant", {"ID": 1, "TTL": 600}), Step("grant", {"ID": 2, "TTL": 600}))
        with pytest.raises(RefusedError, match=f"has the lease {LEASE_OFFSET + 2:x}"):
            compare(server.url, prefix=b"x", script=grants)
        assert len(server.snapshot()["leases"]) == 2
        assert compare(server.url, prefix=b"x", script=grants, erase=True).is_same
        assert [lease["id"] for lease in server.snapshot()["leases"]] == [9]


def test_an_etcd_that_asks_for_a_user_is_refused() -> None:
    with etcd(auth={"root": "x"}) as server, pytest.raises(RefusedError, match="says no to a range"):
        compare(server.url)


def test_a_watch_that_says_nothing_is_different_in_time() -> None:
    script = (Step("watch", {"key": "a"}), Step("put", {"key": "a"}))
    with etcd() as server, server.faults.stall_watches():
        report = compare(server.url, script=script, timeout=0.2)
    assert report.found is not None
    assert (report.found.at, report.found.answers[0]) == (0, {"broken": "TimeoutError"})


def test_an_etcd_that_goes_away_is_no_difference() -> None:
    def draw(source: random.Random, steps: int) -> tuple[Step, ...]:
        if played:
            server.stop()
        played.append(steps)
        return (Step("put", {"key": "a"}),)

    played: list[int] = []
    with etcd() as server:
        url = server.url
        with pytest.raises(ConnectionError, match=f"{url} cannot be reached"):
            compare(url, draw=draw)
    assert len(played) == 2


def test_nobody_and_what_is_no_etcd_are_told_apart() -> None:
    with pytest.raises(ConnectionError, match=f"{NOBODY} cannot be reached"):
        compare(NOBODY)
    with pytest.raises(ValueError, match="not the URL of an etcd"):
        compare("ftp://x")


def test_a_script_that_concerns_others_is_not_played_below_a_prefix() -> None:
    with etcd() as server:
        for script in (Step("compact", {"revision": "now"}),), (Step("leases", {}),):
            with pytest.raises(ValueError, match="concerns the whole etcd"):
                compare(server.url, prefix=b"x", script=script)
        with pytest.raises(ValueError, match="choose the ids"):
            compare(server.url, prefix=b"x", script=(Step("grant", {"TTL": 9}),))
        assert server.store.revision == 1


def test_a_script_may_have_the_server_choose_a_lease() -> None:
    with etcd() as server:
        report = compare(server.url, script=(Step("grant", {"TTL": 900}), Step("leases", {})))
        assert report.is_same, report
        assert server.snapshot()["leases"] == []


def test_a_workload_of_ones_own_is_drawn() -> None:
    def draw(source: random.Random, steps: int) -> tuple[Step, ...]:
        return tuple(Step("put", {"key": f"k{source.randrange(3)}"}) for _ in range(steps))

    with etcd() as server:
        assert compare(server.url, runs=2, steps=4, draw=draw).steps == 8
        assert {call.method for call in server.calls if call.method.startswith("P")} == {"Put"}


# The command


def command(*args: str, stdin: bytes | None = None) -> tuple[int, str, str]:
    result = Command(Path()).result("compare", *args, stdin=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_same_different_or_not_there() -> None:
    with etcd() as server:
        code, out, _ = command("--with", server.url, "--runs=2", "--steps=20", "--seed=4")
        assert (code, out.startswith("same: etcd 3.6.")) == (0, True)
        server.store.put(b"a")
        code, _, err = command("--with", server.url)
        assert (code, "has 1 keys" in err) == (2, True)
    assert command("--with", NOBODY)[0] == 2


def test_what_the_command_prints_is_played_again_by_it(tmp_path: Path) -> None:
    with another(f"{KV}Put", no_prev_kv) as server:
        code, out, _ = command("--with", server.url)
        assert code == 1
        script = tmp_path / "script.json"
        script.write_text(out.splitlines()[-1])
        code, again, _ = command("--with", server.url, "--script", str(script))
        assert code == 1
        assert out.splitlines()[1:] == again.splitlines()[1:]
        code, out, _ = command("--with", server.url, "--json")
        data = json.loads(out)
        assert (code, data["is_same"], data["at"], data["path"]) == (1, False, 1, ".ok.prev_kv")
        assert command("--with", server.url, "--script=-", stdin=out.encode())[0] == 1


# The parts


def test_a_workload_comes_from_its_seed_and_goes_through_json() -> None:
    scripts = [Workload(random.Random(seed)).script(200) for seed in (7, 7, 8)]
    assert scripts[0] == scripts[1] != scripts[2]
    assert script_from_json(json.loads(json.dumps(script_to_json(scripts[0])))) == scripts[0]
    assert {step.call for step in scripts[0]} == set(CALLS)


def test_a_workload_below_a_prefix_concerns_nobody_else() -> None:
    script = Workload(random.Random(1), Vocabulary(has_compactions=False)).script(500)
    assert {step.call for step in script} == set(CALLS) - {"compact", "leases"}


def in_txns(step: Step) -> set[str]:
    """Return what kinds of operations a txn has, and the flags of its puts."""
    text = json.dumps(step.request)
    return {word for word in ("request_delete_range", "ignore_value", "ignore_lease") if word in text}


def test_no_txn_keeps_what_it_deletes() -> None:
    # That ends an etcd.
    txns = [step for step in Workload(random.Random(2)).script(3_000) if step.call == "txn"]
    kinds = [in_txns(step) for step in txns]
    assert {"ignore_value"} in kinds
    assert [kind for kind in kinds if "request_delete_range" in kind and len(kind) > 1] == []


@pytest.mark.parametrize(
    "value", [{}, "put", [{"put": {}, "get": {}}], [{"get": {"key": "a"}}], [{"put": 1}], [7]], ids=repr
)
def test_what_is_no_script_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="step"):
        script_from_json(value)


def test_a_field_that_there_is_not_is_refused_before_anything_is_played() -> None:
    with etcd() as server:
        with pytest.raises(ValueError, match="PutRequest has no field 'kye'"):
            compare(server.url, script=(Step("put", {"key": "a"}), Step("put", {"kye": "a"})))
        assert server.store.revision == 1


def test_a_step_reads_well() -> None:
    request = {"success": [{"request_put": {"key": {"base64": "/w=="}, "lease": 2}}]}
    assert str(Step("txn", request)) == "txn(success=[(request_put=(key=b'\\xff', lease=2))])"


def test_leases_are_found_wherever_they_are() -> None:
    txn = {"compare": [{"key": "a", "lease": 4}], "success": [{"request_put": {"key": "a", "lease": -3}}]}
    assert leases_of((Step("txn", txn), Step("grant", {"ID": 7, "TTL": 1}))) == {4, -3, 7}


@pytest.mark.parametrize(
    ("name", "key", "moved"),
    [
        ("key", b"", b""),
        ("key", b"\0", b"p\0"),
        ("range_end", b"", b""),
        ("range_end", b"\0", b"q"),
        ("range_end", b"b", b"pb"),
    ],
)
def test_keys_move_below_the_prefix(name: str, key: bytes, moved: bytes) -> None:
    assert Place(prefix=b"p").moved(name, key) == moved
    assert Place().moved(name, key) == key


def test_what_comes_after_a_prefix_that_nothing_comes_after() -> None:
    assert KeyRange.prefix(b"\xff").end is None
    assert Place(prefix=b"\xff").after == b"\0"


def test_shrinking_drops_steps_then_fields_and_has_an_end() -> None:
    put = Step("put", {"key": "a", "value": "long", "prev_kv": True})
    txn = Step("txn", {"compare": [{"key": "b"}], "success": [{"request_put": {"key": "x", "lease": 1}}]})
    script = (put, txn, Step("range", {"key": "a", "revision": "now-5"}), put)

    def shows(smaller: tuple[Step, ...]) -> bool:
        nonlocal attempts
        attempts += 1
        calls = [step.call for step in smaller]
        return "range" in calls and any("lease" in json.dumps(step.request) for step in smaller)

    attempts = 0
    assert shrink(script, shows, 200) == (
        Step("put", {"key": "x", "lease": 1}),
        Step("range", {"key": "a"}),
    )
    attempts = 0
    shrink(script, shows, 3)
    assert attempts == 3


def test_every_call_is_one_of_the_gateway() -> None:
    requests = {method.request for method in METHODS.values()} | {rpc.WatchCreateRequest}
    assert {request for _, request in CALLS.values()} <= requests
