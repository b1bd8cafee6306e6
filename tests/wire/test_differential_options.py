"""Watches and HTTP of an etcd that is started with options, and of ours with the same: what shows only then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.wire.calls import create, delete, grant, leases, progress, put, put_op, time_to_live, txn, watching
from tests.wire.differential import Do, Http, Operation, Post, Take, Unary
from tests.wire.pair import NEEDS_ORACLE, OPTIONS, Pair, running_pair

pytestmark = NEEDS_ORACLE

PROGRESS = (3, 5, 13)
FUTURE = (3, 6, 2)
"""Since when a watch of the future is told of no progress before it."""
INTERVAL = "--experimental-watch-progress-notify-interval=100ms"
"""As 3.5 has it, and 3.6 still takes."""


def test_progress_at_intervals(tmp_path: Path) -> None:
    """It is told of the watches that want it, with the store's revision, and again; an event is not told of twice."""
    options = replace(OPTIONS, requests=replace(OPTIONS.requests, progress_notify_seconds=0.1))
    with running_pair(tmp_path, engine="memory", arguments=[INTERVAL], options=options) as pair:
        pair.play(put(b"a"), put(b"b"))
        pair.play(watching(create(b"a", progress_notify=True), Take(3)))
        pair.play(watching(create(b"a", start_revision=2, progress_notify=True), Take(3)))
        pair.play(watching(create(b"x"), create(b"a", progress_notify=True), Take(4), Do(put(b"x")), Take(1)))
        pair.play(watching(create(b"c", start_revision=1, progress_notify=True, watch_id=5), Take(2)))
        if pair.version >= PROGRESS:
            pair.play(watching(create(b"a"), progress(), Take(2)))
        if pair.version >= FUTURE:
            pair.play(
                watching(
                    create(b"a", start_revision=99, progress_notify=True),
                    *(create(b"a", progress_notify=True), Take(4), Do(delete(b"a")), Take(1)),
                )
            )


@pytest.mark.slow
def test_a_lease_that_ends_deletes_its_keys_in_one_revision_by_key(tmp_path: Path) -> None:
    with running_pair(tmp_path, engine="memory") as pair:
        # Nothing else says when it has ended; the list of leases and the keys are as after a revocation then.
        pair.play(
            put(b"free"),
            watching(
                *(create(b"\0", b"\0", prev_kv=True), create(b"m", filters=[0]), create(b"a"), Take(3)),
                *(Do(grant(1, 5)), Do(txn(*(put_op(key, b"v", lease=5) for key in (b"z", b"a", b"m")))), Take(2)),
                Take(3),
            ),
        )
        pair.play(time_to_live(5), leases(), put(b"a", lease=5), grant(600, 5), time_to_live(5))


def statuses(pair: Pair, *operations: Operation) -> list[int]:
    """Play to both, and return the status of each, which is the same: the texts are each one's own."""
    found = [[player.play(operation)["status"] for operation in operations] for player in pair.players]
    assert found[0] == found[1]
    return found[0]


HOSTS = (
    *("good", "good:2379", "good:", "good:x", "good:1:2", "GOOD", "bad", "", ":1", "good.bad", "good]:1", "[good]:1"),
    *("[::1]:1", "[::1]:", "[::1]", "::1", "::1:1", "[[::1]:1", "[::1]x:1", "[::1", "127.0.0.1:1", "[127.0.0.1]:1"),
)


def test_names_of_hosts(tmp_path: Path) -> None:
    options = replace(OPTIONS, hosts=frozenset({"good", "::1", "127.0.0.1"}))
    with running_pair(
        tmp_path, engine="memory", arguments=["--host-whitelist=good,::1,127.0.0.1"], options=options
    ) as pair:
        found = {}
        for host in HOSTS:
            asked = {"Host": host}
            found[host] = statuses(
                pair,
                *(
                    Http(verb, path, b"", asked)
                    for verb in ("GET", "OPTIONS")
                    for path in ("/version", "/health", "/x")
                ),
                *(Post(path, {"key": "aw=="}, asked) for path in ("/v3/kv/range", "/v3beta/kv/range")),
            )
        assert found["good"] == found["good:2379"] == [200, 200, 404, 200, 200, 200, 200, 200]
        assert set(found["bad"]) == {421}


def test_origins(tmp_path: Path) -> None:
    options = replace(OPTIONS, origins=frozenset({"http://a.example:80", "http://b.example:8"}))
    arguments = ["--cors=http://a.example:80,http://b.example:8"]
    with running_pair(tmp_path, engine="memory", arguments=arguments, options=options) as pair:
        for origin in (
            "http://a.example",
            "http://a.example:80",
            "http://b.example:8",
            "http://b.example",
            "https://a.example",
            "x",
            "*",
            "",
        ):
            asked = {"Origin": origin}
            pair.play(*(Http(verb, path, b"", asked) for verb in ("GET", "OPTIONS") for path in ("/health", "/x")))
            pair.play(Post("/v3/kv/range", {"key": "aw=="}, asked), Http("OPTIONS", "/v3/kv/range", b"", asked))
        pair.play(Http("GET", "/health"), Http("OPTIONS", "/health"), Post("/v3/kv/range", {"key": "aw=="}))


def test_no_gateway(tmp_path: Path) -> None:
    options = replace(OPTIONS, has_gateway=False)
    with running_pair(tmp_path, engine="memory", arguments=["--enable-grpc-gateway=false"], options=options) as pair:
        answers = pair.play(
            *(
                Http(verb, path, b"{}")
                for verb in ("GET", "POST")
                for path in ("/v3/kv/range", "/v3/", "/v3", "/health")
            ),
            *(Http("POST", "/v3beta/kv/range", b"{}"), Http("GET", "/livez/"), Http("OPTIONS", "/v3/kv/range")),
        )
        assert [answer["status"] for answer in answers[:3]] == [404, 404, 404]
        pair.play(put(b"a"), Unary("/etcdserverpb.KV/Nope", b""))
