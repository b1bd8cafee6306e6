"""The JSON gateway and the pages beside it: etcd and ours answer alike, by tables of what clients send."""

from __future__ import annotations

from typing import Any

import pytest

from mvccstore.server.gateway.paths import PATHS
from tests.wire.calls import delete, everything, grant, judge, put, revoke, text
from tests.wire.differential import (
    GATEWAY,
    Case,
    Do,
    End,
    Http,
    Operation,
    Post,
    StreamingPost,
    Take,
)
from tests.wire.pair import NEEDS_ORACLE, Pair
from tests.wire.requests import posts

pytestmark = NEEDS_ORACLE

JSONPB, PROTOJSON = (3, 4, 0), (3, 6, 0)
"""etcd reads JSON by another library since 3.6, which is stricter and has other errors."""
K, V = text(b"k"), text(b"v")
JSON = {"Content-Type": "application/json"}


def free(path: str, body: Any, headers: dict[str, str] | None = None) -> Post:
    """Post what is refused with a text that is the parser's own."""
    return Post(f"/v3/{path}", body, headers, is_free_text=True)


# Each path

GOOD: dict[str, tuple[Operation, ...]] = {
    "kv/range": (put(b"k"), *posts("kv/range", {"key": K}, {"key": K, "range_end": "AA==", "limit": 1})),
    "kv/put": (*posts("kv/put", {"key": K, "value": V}, {"key": K, "value": V, "prev_kv": True}),),
    "kv/deleterange": (put(b"k"), *posts("kv/deleterange", {"key": K, "prev_kv": True}, {"key": K})),
    "kv/txn": (*posts("kv/txn", {"success": [{"request_put": {"key": K}}, {"request_range": {"key": K}}]}),),
    "kv/compaction": (put(b"k"), put(b"k"), *posts("kv/compaction", {"revision": "2", "physical": True}, {})),
    "watch": (StreamingPost("/v3/watch", {"create_request": {"key": K}}, (Take(1), Do(put(b"k")), Take(1))),),
    "lease/grant": (*posts("lease/grant", {"ID": 5, "TTL": "600"}, {"TTL": 600}, {"ID": "5", "TTL": 6}),),
    "lease/revoke": (grant(600, 5), *posts("lease/revoke", {"ID": 5}, {"ID": "5"}, {})),
    "kv/lease/revoke": (grant(600, 5), *posts("kv/lease/revoke", {"ID": 5}, {"ID": "5"})),
    "lease/keepalive": (
        grant(600, 5),
        StreamingPost("/v3/lease/keepalive", {"ID": 5}, (Take(1), End())),
        StreamingPost("/v3/lease/keepalive", {"ID": "404"}, (Take(1), End())),
    ),
    "lease/timetolive": (
        *(grant(600, 5), put(b"k", lease=5)),
        *posts("lease/timetolive", {"ID": 5, "keys": True}, {"ID": "5"}, {"ID": 404}),
    ),
    "kv/lease/timetolive": (grant(600, 5), *posts("kv/lease/timetolive", {"ID": 5, "keys": True}, {"ID": 404})),
    "lease/leases": (*posts("lease/leases", {}), grant(600, 5), *posts("lease/leases", {})),
    "kv/lease/leases": (grant(600, 5), *posts("kv/lease/leases", {})),
    "cluster/member/list": (*posts("cluster/member/list", {}, {"linearizable": True}),),
    "cluster/member/add": (*posts("cluster/member/add", {}, {"peerURLs": ["x"]}, {"peerURLs": [], "isLearner": True}),),
    "cluster/member/update": (*posts("cluster/member/update", {"ID": "404", "peerURLs": ["http://127.0.0.1:1"]}, {}),),
    "cluster/member/promote": (*posts("cluster/member/promote", {"ID": 404}),),
    "cluster/member/remove": (*posts("cluster/member/remove", {"ID": "404"}),),
    "maintenance/alarm": (
        *posts("maintenance/alarm", {}, {"action": "ACTIVATE", "memberID": "7", "alarm": "NOSPACE"}),
        *posts("maintenance/alarm", {"action": "GET"}, {"action": 2, "memberID": 7, "alarm": 1}, {"alarm": "CORRUPT"}),
    ),
    "maintenance/status": (*posts("maintenance/status", {}),),
    "maintenance/defragment": (*posts("maintenance/defragment", {}),),
    "maintenance/hash": (*posts("maintenance/hash", {}),),
    "maintenance/snapshot": (StreamingPost("/v3/maintenance/snapshot", {}, (Take(1),)),),
    "maintenance/transfer-leadership": (*posts("maintenance/transfer-leadership", {"targetID": "404"}),),
    "maintenance/downgrade": (*posts("maintenance/downgrade", {"action": "CANCEL"}),),
    "auth/status": (*posts("auth/status", {}),),
    "auth/enable": (*posts("auth/enable", {}),),
    "auth/disable": (*posts("auth/disable", {}),),
    "auth/authenticate": (*posts("auth/authenticate", {"name": "u", "password": "p"}, {}),),
    "auth/user/add": (*posts("auth/user/add", {"name": "u", "options": {"no_password": True}}, {}),),
    "auth/user/get": (*posts("auth/user/get", {"name": "u"}, {"name": "none"}),),
    "auth/user/list": (*posts("auth/user/list", {}),),
    "auth/role/add": (*posts("auth/role/add", {"name": "r"}, {"name": "r"}, {}),),
    "auth/user/grant": (*posts("auth/user/grant", {"user": "u", "role": "r"}, {"user": "u", "role": "none"}),),
    "auth/role/grant": (
        *posts("auth/role/grant", {"name": "r", "perm": {"permType": "READWRITE", "key": K, "range_end": "AA=="}}),
        *posts("auth/role/grant", {"name": "r", "perm": {"permType": 1, "key": K}}, {"name": "r"}),
    ),
    "auth/role/get": (*posts("auth/role/get", {"role": "r"}, {"role": "none"}),),
    "auth/role/list": (*posts("auth/role/list", {}),),
    "auth/role/revoke": (*posts("auth/role/revoke", {"role": "r", "key": K}, {"role": "r", "key": V}),),
    "auth/user/revoke": (*posts("auth/user/revoke", {"name": "u", "role": "r"}, {"name": "u", "role": "r"}),),
    "auth/user/changepw": (*posts("auth/user/changepw", {"name": "none", "password": "p"}),),
    "auth/user/delete": (*posts("auth/user/delete", {"name": "u"}, {"name": "u"}),),
    "auth/role/delete": (*posts("auth/role/delete", {"role": "r"}, {"role": "r"}),),
    "lock/lock": (grant(600, 0xABC), *posts("lock/lock", {"name": K, "lease": "2748"}, {"name": K, "lease": 404})),
    "lock/unlock": (*posts("lock/unlock", {"key": text(b"k/abc")}, {"key": K}),),
    "election/campaign": (*(grant(600, 0xABC), *posts("election/campaign", {"name": V, "lease": 2748, "value": K})),),
    "election/leader": (*posts("election/leader", {"name": V}, {"name": K}),),
    "election/proclaim": (*posts("election/proclaim", {"value": K}),),
    "election/observe": (StreamingPost("/v3/election/observe", {"name": V}, (Take(1),)),),
    "election/resign": (*posts("election/resign", {}),),
    "maintenance/hashkv": (*posts("maintenance/hashkv", {}, {"revision": "999999"}),),
}
"""By path, what it is for, and what it is not; some go on from what those before them left."""
SINCE = {
    "maintenance/hashkv": (3, 6, 0),
    "maintenance/downgrade": (3, 6, 0),
    "maintenance/status": (3, 6, 0),
}


def test_there_is_a_row_for_each_path() -> None:
    assert {f"/v3/{path}" for path in GOOD} == set(PATHS)
    assert dict(GATEWAY) == dict(PATHS)


def test_each_path_answers_alike(fresh_pair: Pair) -> None:
    for path, operations in GOOD.items():
        judge(fresh_pair, Case(path, operations, SINCE.get(path, (3, 4, 0))))


# Bodies


def body(name: str, *bodies: Any, path: str = "kv/put", since: tuple[int, int, int] = JSONPB) -> Case:
    return Case(name, (*(free(path, one) for one in bodies), everything()), since)


BODIES = (
    body("nothing", b"", b" ", b"\n", path="kv/range"),
    body("no object", b"[]", b'"x"', b"1", b"true", b"[{}]"),
    body("null", b"null", b" null ", path="kv/range"),
    body("cut off", b"{", b'{"key"', b'{"key":', b'{"key":"aw=="', b'{"key":"aw', b'"', b"[", b"nul", b"tru"),
    body("not JSON", b"x", b"}", b"]", b",", b":", b"{,}", b'{"key":}', b"{key:1}", b"{'key':'aw=='}", b"NaN", b"<a/>"),
    body("trailing commas", b'{"key":"aw==",}', b'{"key":"aw=="},', b'{"key":"aw==",,"value":"dg=="}'),
    body("comments", b'/* */{"key":"aw=="}', b'{"key":"aw=="/**/}', b'// \n{"key":"aw=="}'),
    body("a mark of the byte order", b'\xef\xbb\xbf{"key":"aw=="}'),
    body("not UTF-8", b'{"key":"aw==\xff"}', b'{"x":"\xff"}', b'{"\xff":1}', b"\xff", b'{"key":"\xc3"}'),
    body("UTF-16", '{"key":"aw=="}'.encode("utf-16")),
    body("what follows the object", b'{"key":"aw=="}{"key":"dg=="}', b'{"key":"aw=="} x', b'{"key":"aw=="}]', b"{}}"),
    body(
        "space of JSON and other space",
        b' \t\r\n{ "key" : "aw==" } \n',
        b'\x0b{"key":"aw=="}',
        b'\xc2\xa0{"key":"aw=="}',
    ),
    body("control characters in strings", b'{"x":"\n"}', b'{"x":"\0"}', b'{"x":"\t"}', b'{"x":"\x7f"}'),
    body(
        "escapes",
        rb'{"\u006bey":"\u0061w=="}',
        rb'{"key":"aw\u003d="}',
        rb'{"x":"\x"}',
        rb'{"x":"\u12"}',
        rb'{"key":"\/w=="}',
    ),
    body("half a surrogate pair", rb'{"x":"\ud800"}', rb'{"x":"\udc00\ud800"}', rb'{"\ud800":1}', since=PROTOJSON),
    body("half a surrogate pair in a string", rb'{"name":"\ud800"}', path="auth/user/get", since=PROTOJSON),
    body("deep unknown fields", b'{"x":' + b"[" * 50 + b"]" * 50 + b"}", b'{"x":' + b'{"y":' * 50 + b"1" + b"}" * 51),
)
FIELDS = (
    body("unknown fields", {"key": K, "nonsense": 1}, {"key": K, "": 1}, {"nonsense": {"key": [None]}, "key": V}),
    body("fields twice", b'{"key":"aw==","key":"dg=="}', since=PROTOJSON),
    body("fields by both names", {"prev_kv": True, "prevKv": True, "key": K}, since=PROTOJSON),
    body(
        "fields that are null", {"key": None, "value": None, "lease": None}, {"key": K, "value": None, "prev_kv": None}
    ),
    body(
        "names of other cases", {"KEY": K}, {"Key": K, "key": V}, {"key": K, "PrevKV": True}, {"key": K, "prevKV": True}
    ),
    body(
        "both cases", {"key": K, "ignore_value": True}, {"key": K, "ignoreValue": True}, {"key": K, "ignoreLease": True}
    ),
    body("an id in other cases", {"id": 5, "TTL": 60}, {"Id": 5, "ttl": 60}, path="lease/grant"),
    body("base64: good", *({"key": key} for key in ("YQ==", "YWI=", "YWJj", "/w==", "+/+/"))),
    body("base64: of URLs", {"key": "_w=="}, {"key": "-_-_"}, {"key": "-_+/"}, {"key": "_w"}, since=PROTOJSON),
    body(
        "base64: padding",
        {"key": "YQ"},
        {"key": "YWI"},
        {"key": "YQ="},
        {"key": "YQ==="},
        {"key": "YWJj="},
        {"key": "="},
        {"key": "Y"},
        {"key": "YWJjZ"},
        {"key": "YQ==YQ=="},
        {"key": "===="},
        {"key": "Y==="},
        since=PROTOJSON,
    ),
    body(
        "base64: line ends",
        *(
            {"key": key}
            for key in (
                "YQ=\n=",
                "YQ==\n",
                "\nYQ==",
                "Y\r\nQ==",
                "YW\nJj",
                "YQ\n",
                "Y\nQ",
                "YQ\n\n",
                "YQ=\n",
                "\n\n\n\n",
                "\n",
                "YW\nJ",
                "YWI\n",
                "YWI\n\n",
                "Y\nW\nI\n=\n",
            )
        ),
        since=PROTOJSON,
    ),
    body(
        "base64: other letters",
        *({"key": key} for key in ("YQ = =", " YQ==", "Y!==", "YQ==\0", "é", "YQ\t==", "Y.Q=", "YQ%3D%3D")),
    ),
    body("base64: bits that are left over", {"key": "YR=="}, {"key": "YWJ="}, {"key": "//=="}),
    body("base64: no string", {"key": 1}, {"key": True}, {"key": {}}, {"key": [1]}, {"key": []}, since=PROTOJSON),
    body("strings: no string", {"name": 1}, {"name": True}, {"name": {}}, {"name": []}, path="auth/user/get"),
    body(
        "int64: good",
        *({"key": K, "revision": one} for one in (0, "0", 1, "1", "-0", -0.0)),
        path="kv/range",
        since=PROTOJSON,
    ),
    body(
        "int64: whole though it is written otherwise",
        *(b'{"key":"aw==","limit":%s}' % one for one in (b"1.0", b"1e0", b"10e-1", b'"1.0"', b'"1e0"', b"0.1e1")),
        path="kv/range",
        since=PROTOJSON,
    ),
    body(
        "int64: fractions",
        *(b'{"key":"aw==","limit":%s}' % one for one in (b"1.5", b'"1.5"', b"1e-1", b'"0.5"')),
        path="kv/range",
    ),
    body(
        "int64: the largest and more",
        *(
            b'{"key":"aw==","limit":%s}' % one
            for one in (
                b"9223372036854775807",
                b'"9223372036854775807"',
                b"9223372036854775808",
                b'"9223372036854775808"',
                b'"-9223372036854775808"',
                b"-9223372036854775809",
                b"1e30",
                b'"1e18"',
                b"1e19",
                b"1e400",
                b'"99999999999999999999"',
            )
        ),
        path="kv/range",
        since=PROTOJSON,
    ),
    body(
        "int64: no numbers",
        *(
            b'{"key":"aw==","limit":%s}' % one
            for one in (
                b'""',
                b'" 1"',
                b'"1 "',
                b'"x"',
                b'"0x1"',
                b'"+1"',
                b"+1",
                b"01",
                b'"1_0"',
                b"true",
                b"{}",
                b"[]",
                b"[1]",
                b'"NaN"',
                b"NaN",
                b'"Infinity"',
                b".5",
                b"5.",
                b'"null"',
            )
        ),
        path="kv/range",
        since=PROTOJSON,
    ),
    body(
        "int64: leading zeros in strings",
        b'{"key":"aw==","limit":"01"}',
        b'{"key":"aw==","limit":"-01"}',
        path="kv/range",
        since=PROTOJSON,
    ),
    body(
        "uint64",
        *({"ID": one} for one in (1, "1", 2**64 - 1, str(2**64 - 1), 2**64, str(2**64), -1, "-1")),
        path="cluster/member/remove",
    ),
    body("booleans", *({"key": K, "prev_kv": one} for one in (True, False, None))),
    body("no booleans", *({"key": K, "prev_kv": one} for one in ("true", "false", 1, 0, "", [], {}, "True"))),
    body(
        "enums by name and number",
        *({"key": K, "sort_order": one} for one in ("NONE", "ASCEND", "DESCEND", 0, 1, 2, None)),
        path="kv/range",
    ),
    body(
        "enums of unknown numbers",
        *({"key": K, "sort_order": one} for one in (3, 99, -1, 2**31 - 1, -(2**31))),
        path="kv/range",
        since=PROTOJSON,
    ),
    body("no enums", *({"key": K, "sort_order": one} for one in ([], {}, True, [1])), path="kv/range"),
    body("enums that are fractions", {"key": K, "sort_order": 1.5}, path="kv/range"),
    body(
        "enums beyond 32 bits",
        *({"key": K, "sort_order": one} for one in (2**31, 2**32 + 1, -(2**31) - 1)),
        path="kv/range",
        since=PROTOJSON,
    ),
    body("lists", *({"success": one} for one in ([], None, [{}], {}, "x", 1, [1], ["x"], [[]])), path="kv/txn"),
    body(
        "null in lists",
        {"success": [None]},
        {"compare": [None]},
        {"success": [{"request_put": None}]},
        path="kv/txn",
        since=PROTOJSON,
    ),
    body("messages", *({"success": [{"request_put": one}]} for one in ([], "x", 1, True)), path="kv/txn"),
    body(
        "one of several",
        {"success": [{"request_put": {"key": K}, "request_range": {"key": K}}]},
        {"success": [{"request_put": {"key": K}, "request_range": None}]},
        {"compare": [{"version": 1, "value": K}]},
        path="kv/txn",
        since=PROTOJSON,
    ),
    body(
        "compares",
        {"compare": [{"key": K, "target": "VERSION", "version": "1"}]},
        {"compare": [{"key": K, "target": 9}]},
        {"compare": [{"key": K, "result": "LESS", "target": "MOD", "modRevision": "99"}]},
        path="kv/txn",
    ),
)


@pytest.mark.parametrize("case", [*BODIES, *FIELDS], ids=str)
def test_bodies_are_read_alike(pair: Pair, case: Case) -> None:
    judge(pair, case)


# Verbs, paths, headers

VERBS = ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE")
PAGES = ("/version", "/health", "/livez", "/readyz", "/metrics", "/", "/nope")


def http(name: str, *requests: Http | Post, since: tuple[int, int, int] = (3, 4, 0)) -> Case:
    return Case(name, requests, since)


def through(headers: dict[str, str], *, path: str = "kv/range") -> Post:
    return Post(f"/v3/{path}", {"key": K}, headers)


CORS = {"Origin": "http://a.example"}
ASKING = {**CORS, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-y"}
REQUESTS = (
    *(http(f"{verb} of a method", Http(verb, "/v3/kv/range"), since=(3, 6, 0)) for verb in VERBS),
    http("verbs of streams", *(Http(verb, "/v3/watch") for verb in VERBS), since=(3, 6, 0)),
    http(
        "paths that are none",
        *(
            Http("POST", path, b"{}")
            for path in ("/v3/", "/v3/kv", "/v3/kv/", "/v3/kv/nope", "/v3/kv/range/x", "/v3/KV/range")
        ),
        *(Http("GET", path) for path in ("/v3/", "/v3/kv", "/v3/kv/nope")),
        since=(3, 6, 0),
    ),
    http("the prefix without more", Http("POST", "/v3", b""), since=(3, 6, 0)),
    http(
        "paths outside",
        *(
            Http("POST", path, b"{}")
            for path in ("/v3alpha/kv/range", "/v2/keys", "/v2", "/kv/range", "/v4/kv/range", "/v3x")
        ),
    ),
    http("the old prefix", Post("/v3beta/kv/range", {"key": K}), Post("/v3beta/kv/put", {"key": K, "value": V})),
    http("the old prefix and nothing there", Http("POST", "/v3beta/nope", b"{}"), since=(3, 6, 0)),
    http("a slash too many at the end", Http("POST", "/v3/kv/range/", b"{}"), since=(3, 6, 0)),
    http(
        "slashes within, and dots",
        *(
            Http("POST", path, b"{}")
            for path in ("/v3//kv/range", "/v3/kv//range", "/v3/./kv/range", "/v3/x/../kv/range", "//v3/kv/range")
        ),
        since=(3, 6, 0),
    ),
    http(
        "colons",
        *(Http("POST", path, b"{}") for path in ("/v3/kv/range:x", "/v3/kv/range:", "/v3/kv:range")),
        since=(3, 6, 0),
    ),
    http(
        "queries change nothing",
        Post(f"/v3/kv/range?key={V}", {"key": K}),
        Post("/v3/kv/range?", {"key": K}),
        Post("/v3/kv/range?%zz&;", {"key": K}),
    ),
    http(
        "escapes in paths", Http("POST", "/v3/kv/p%75t", b"{}"), Http("POST", "/v3/kv%2Frange", b"{}"), since=(3, 6, 0)
    ),
    http(
        "types of content",
        *(
            through({"Content-Type": kind})
            for kind in (
                "application/json",
                "text/plain",
                "application/grpc",
                "application/json; charset=utf-8",
                "",
                "x",
                "application/octet-stream",
            )
        ),
    ),
    http(
        "types that are accepted",
        *(through({"Accept": kind}) for kind in ("*/*", "text/html", "application/json", "application/x-protobuf", "")),
    ),
    http(
        "a form",
        through({"Content-Type": "application/x-www-form-urlencoded"}),
        free("kv/range", b"key=aw==", {"Content-Type": "application/x-www-form-urlencoded"}),
        since=(3, 6, 0),
    ),
    http(
        "a verb in a header",
        through({"X-HTTP-Method-Override": "GET"}),
        Post(
            "/v3/kv/range",
            {"key": K},
            {"X-HTTP-Method-Override": "GET", "Content-Type": "application/x-www-form-urlencoded"},
        ),
        since=(3, 6, 0),
    ),
    http(
        "metadata",
        through({"Grpc-Metadata-Token": "x"}),
        through({"Grpc-Metadata-hasleader": "true"}),
        through({"Grpc-Metadata-X-Bin": "AAA="}),
        through({"Authorization": "nonsense"}),
        through({"Grpc-Metadata-X": "é".encode().decode("latin-1")}),
        since=(3, 6, 0),
    ),
    http("binary metadata that is none", free("kv/range", {"key": K}, {"Grpc-Metadata-X-Bin": "!!"}), since=(3, 6, 0)),
    http(
        "timeouts",
        *(through({"Grpc-Timeout": given}) for given in ("10S", "1H", "10000m", "99999999n", "1M", "9000000u")),
    ),
    http(
        "timeouts that are none",
        *(
            free("kv/range", {"key": K}, {"Grpc-Timeout": given})
            for given in ("x", "10", "S", "10s", "10X", "1.5S", " 10 S")
        ),
        since=(3, 6, 0),
    ),
    http(
        "timeouts that are negative, long or passed",
        *(
            free("kv/range", {"key": K}, {"Grpc-Timeout": given})
            for given in ("-1S", "0S", "123456789S", "+10S", "0010S", "9223372036854775808S", "-S", "0n")
        ),
        since=(3, 6, 0),
    ),
    http("no timeout", through({"Grpc-Timeout": ""})),
    http(
        "CORS of a method",
        through(CORS),
        Http("OPTIONS", "/v3/kv/range", b"", ASKING),
        Http("OPTIONS", "/v3/kv/range"),
        Http("POST", "/v3/nope", b"{}", CORS),
        since=(3, 6, 0),
    ),
    http(
        "CORS of pages",
        *(Http(verb, path, b"", CORS) for verb in ("GET", "OPTIONS") for path in ("/version", "/health", "/nope", "/")),
        since=(3, 6, 0),
    ),
    http("CORS of errors", free("kv/put", {}, CORS), free("kv/put", b"x", CORS)),
    *(
        http(f"{verb} of pages", *(Http(verb, path) for path in PAGES if path != "/metrics"), since=(3, 5, 11))
        for verb in (*VERBS, "POST")
    ),
    http(
        "queries of /version",
        *(Http("GET", f"/version{more}") for more in ("?", "?x=1", "?pretty", "/", "/x")),
        since=(3, 6, 0),
    ),
    http(
        "queries of /health",
        *(
            Http("GET", f"/health{more}")
            for more in (
                "?",
                "?serializable=true",
                "?serializable=false",
                "?exclude=NOSPACE",
                "?exclude=NOSPACE&exclude=CORRUPT",
                "?exclude=",
                "?exclude=x",
                "?x",
                "/",
                "/x",
            )
        ),
    ),
    http(
        "queries of /health that are none",
        *(
            Http("GET", f"/health{more}")
            for more in (
                "?serializable=x",
                "?serializable=",
                "?serializable=1",
                "?serializable=TRUE",
                "?serializable",
                "?serializable=false&serializable=true",
            )
        ),
    ),
    *(
        http(
            f"queries of {page}",
            *(
                Http("GET", f"{page}{more}")
                for more in (
                    "",
                    "?verbose",
                    "?verbose=false",
                    "?exclude=x",
                    "?exclude=serializable_read",
                    "?exclude=serializable_read&verbose",
                    "?exclude=linearizable_read&exclude=x&verbose",
                    "?exclude=",
                    "?x=1",
                    "/",
                    "/ping",
                    "/serializable_read",
                    "/serializable_read?verbose",
                    "/linearizable_read",
                    "/data_corruption",
                    "/non_learner",
                    "/x",
                    "/serializable_read/x",
                    "?allow=x",
                    "?allow=serializable_read",
                )
            ),
            since=(3, 6, 0),
        )
        for page in ("/livez", "/readyz")
    ),
    http(
        "conditional and ranged",
        *(
            Http("GET", "/version", b"", headers)
            for headers in (
                {"If-None-Match": "*"},
                {"Range": "bytes=0-1"},
                {"If-Modified-Since": "Mon, 01 Jan 2029 00:00:00 GMT"},
                {"Accept-Encoding": "gzip"},
            )
        ),
        since=(3, 6, 0),
    ),
    http("bodies of pages", Http("GET", "/version", b"x"), Http("GET", "/health", b"{}"), since=(3, 6, 0)),
)


@pytest.mark.parametrize("case", REQUESTS, ids=str)
def test_requests_are_answered_alike(pair: Pair, case: Case) -> None:
    judge(pair, case)


@pytest.mark.parametrize("verb", [*VERBS, "POST"])
def test_metrics_are_given_for_any_verb(pair: Pair, verb: str) -> None:
    theirs, ours = (player.client.request(verb, "/metrics") for player in pair.players)
    assert (
        (theirs.status, bool(theirs.body)) == (ours.status, bool(ours.body)) == (200, verb not in {"HEAD", "OPTIONS"})
    )
    # Newer ones say how they escape names that are not of the old kind, of which there are none.
    kind = theirs.headers.get("content-type", "").removesuffix("; escaping=underscores")
    assert kind == ours.headers.get("content-type", "")


# Streams


def watch(body: Any, *steps: Any, headers: dict[str, str] | None = None) -> StreamingPost:
    return StreamingPost("/v3/watch", body, steps, headers)


def wants(key: bytes = b"s", **options: Any) -> dict[str, Any]:
    return {"create_request": {"key": text(key), **options}}


TWICE = b'{"create_request":{"key":"cw=="}}{"create_request":{"key":"cw==","watch_id":"7"}}'
STREAMS = (
    Case("a watch", (watch(wants(), Take(1), Do(put(b"s")), Take(1), Do(delete(b"s")), Take(1)),)),
    Case(
        "options",
        (
            watch(wants(prev_kv=True, filters=["NOPUT"]), Take(1), Do(put(b"s")), Do(delete(b"s")), Take(1)),
            watch(wants(prevKv=True, filters=[1], watchId="5"), Take(1), Do(put(b"s")), Take(1)),
            watch(
                {"createRequest": {"key": K, "rangeEnd": "AA==", "startRevision": "0"}}, Take(1), Do(put(b"s")), Take(1)
            ),
        ),
    ),
    Case(
        "refused watches", (watch(wants(range_end="YQ=="), Take(1)), watch(wants(startRevision=-1), Take(1))), (3, 5, 5)
    ),
    Case("several requests in a body", (watch(TWICE, Take(2), Do(put(b"s")), Take(2)),)),
    Case("requests on lines", (watch(TWICE.replace(b"}{", b"}\n \n{"), Take(2)),)),
    Case("cancelled", (watch(b'{"create_request":{"key":"cw=="}}{"cancel_request":{"watch_id":0}}', Take(2)),)),
    Case(
        "asked for progress", (watch(b'{"create_request":{"key":"cw=="}}{"progress_request":{}}', Take(2)),), (3, 5, 13)
    ),
    Case(
        "requests for nothing", (watch(b'{}{"create_request":{"key":"cw=="}}{"x":1}', Take(1), Do(put(b"s")), Take(1)),)
    ),
    Case(
        "a watch of nothing said", (watch({"create_request": {}}, Take(1), Do(put(b"\0")), Take(1), Do(delete(b"\0"))),)
    ),
    Case("headers", (watch(wants(), Take(1), headers={"Grpc-Metadata-hasleader": "true", **CORS}),)),
    Case(
        "keepalives",
        (
            *(grant(600, 77), StreamingPost("/v3/lease/keepalive", {"ID": 77}, (Take(1), End()))),
            StreamingPost("/v3/lease/keepalive", b'{"ID":77}{"ID":"404"}{"ID":"77"}', (Take(3), End())),
            revoke(77),
            StreamingPost("/v3/lease/keepalive", b"{}", (End(),)),
        ),
    ),
    Case(
        "keepalives of nothing",
        (StreamingPost("/v3/lease/keepalive", b"", (End(),)), StreamingPost("/v3/lease/keepalive", b" ", (End(),))),
        (3, 6, 0),
    ),
    Case(
        "bad bodies where one request is due",
        tuple(
            free(path, given)
            for path in ("election/observe", "maintenance/snapshot")
            for given in (b"x", b"[]", b"{", b"1")
        ),
        (3, 6, 0),
    ),
    Case("a field that is none where one request is due", (free("election/observe", b'{"name":1}'),), (3, 6, 0)),
)


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_streams_answer_alike(pair: Pair, case: Case) -> None:
    judge(pair, case)


# What stays different

KNOWN: dict[str, tuple[Post | Http, int, int]] = {
    "an unknown field twice is refused here as a known one is: no client means it": (
        *(Post("/v3/kv/range", b'{"key":"aw==","x":1,"x":2}'), 200, 400),
    ),
    "an unknown name of an enum is taken for none set by protojson, as part of what it ignores; ours says so": (
        *(Post("/v3/kv/range", {"key": K, "sort_order": "X"}), 200, 400),
    ),
    "likewise a number in a string": (Post("/v3/kv/range", {"key": K, "sort_order": "1"}), 200, 400),
}
"""Differences that stay: a request that shows each, and the statuses of both."""


@pytest.mark.parametrize("why", KNOWN)
def test_known_differences(pair: Pair, why: str) -> None:
    operation, expected, given = KNOWN[why]
    if pair.version >= PROTOJSON:
        assert [player.play(operation)["status"] for player in pair.players] == [expected, given]


@pytest.mark.parametrize("body", [b"x", b"[]", b"1", b'{"create_request":1}', b'{"create_request":{"key":"!"}}'])
def test_etcd_says_nothing_to_a_stream_that_begins_with_no_request_and_ours_refuses(pair: Pair, body: bytes) -> None:
    theirs, ours = (player.client for player in pair.players)
    if pair.version >= PROTOJSON:
        with pytest.raises(TimeoutError):
            theirs.lines("/v3/watch", body, timeout=0.1)
    with ours.lines("/v3/watch", body) as lines:
        assert (lines.status, lines.receive()["error"]["grpc_code"]) == (400, 3)
