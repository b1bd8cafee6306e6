"""The pages of a server, what holds for every request, and real clients of the gateway."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

import mvccstore
from mvccstore.server.gateway.gateway import Gateway
from mvccstore.server.pages import Site
from mvccstore.server.server import Server, ServerOptions
from mvccstore.server.transport.call import Router
from mvccstore.server.transport.limits import TransportLimits
from tests.wire.http_kit import Browser, browser, listening

Open = Callable[..., mvccstore.Store]

CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET, OPTIONS, PUT, DELETE",
    "access-control-allow-headers": "accept, content-type, authorization",
}
TEXT = "text/plain; charset=utf-8"


@asynccontextmanager
async def serving(open_store: Open) -> AsyncIterator[tuple[Server, Browser]]:
    """Serve a store in memory, and connect to it."""
    async with Server(open_store(engine="memory"), ServerOptions()) as server:
        port = await server.listen()
        async with browser(port) as client:
            yield server, client


OK_PAGES = {
    "/health": (b'{"health":"true","reason":""}', TEXT),
    "/health?exclude=NOSPACE&exclude=x&serializable=true": (b'{"health":"true","reason":""}', TEXT),
    "/health?serializable=nonsense": (b'{"health":"true","reason":""}', TEXT),
    "/livez": (b"ok\n", TEXT),
    "/livez?verbose": (b"[+]serializable_read ok\nok\n", TEXT),
    "/livez/serializable_read": (b"ok\n", TEXT),
    "/readyz": (b"ok\n", TEXT),
    "/readyz?verbose=false": (
        b"[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n",
        TEXT,
    ),
    "/readyz?verbose&exclude=serializable_read&exclude=nonsense": (
        b"[+]data_corruption ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n",
        TEXT,
    ),
    "/readyz/data_corruption?verbose": (b"[+]data_corruption ok\nok\n", TEXT),
    "/readyz/linearizable_read": (b"ok\n", TEXT),
    "/readyz/non_learner": (b"ok\n", TEXT),
    "/%76ersion": (b'{"etcdserver":"3.6.14","etcdcluster":"3.6.0","storage":"3.6.0"}', "application/json"),
}


def test_each_page_is_as_etcd_has_it(open_store: Open) -> None:
    async def main() -> None:
        async with serving(open_store) as (_, client):
            for path, (body, kind) in OK_PAGES.items():
                answer = await client.ask("GET", path)
                assert (answer.status, answer.body) == (200, body), path
                assert answer.headers["content-type"] == kind
                assert CORS.items() <= answer.headers.items()
                assert "date" in answer.headers

    asyncio.run(main())


def test_the_variables_are_json(open_store: Open) -> None:
    async def main() -> None:
        async with serving(open_store) as (server, client):
            shape = (await client.ask("GET", "/debug/vars")).json()
            assert {"cmdline", "memstats", "raft.status"} <= set(shape)
            assert shape["raft.status"]["lead"] == f"{server.node.member_id:x}"

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/readyz/non_learner", "/version", "/debug/vars"])
def test_pages_are_only_to_be_got(open_store: Open, path: str) -> None:
    async def main() -> None:
        async with serving(open_store) as (_, client):
            for verb in ("POST", "PUT", "DELETE", "HEAD", "BREW"):
                answer = await client.ask(verb, path)
                assert (answer.status, answer.headers["allow"]) == (405, "GET")
                assert answer.body == (b"" if verb == "HEAD" else b"Method Not Allowed\n")
                assert answer.headers["content-length"] == "19"

    asyncio.run(main())


@pytest.mark.parametrize(
    "path",
    ["/", "/nope", "/v2/keys", "/v3alpha/kv/range", "/readyz/nope", "/livez/non_learner", "/livez/", "/version/"],
)
def test_what_is_no_page_is_not_found(open_store: Open, path: str) -> None:
    async def main() -> None:
        async with serving(open_store) as (_, client):
            for verb in ("GET", "POST"):
                answer = await client.ask(verb, path)
                assert (answer.status, answer.body) == (404, b"404 page not found\n")
                assert answer.headers["content-type"] == TEXT

    asyncio.run(main())


REDIRECTS = {
    "/v3": "/v3/",
    "//version": "/version",
    "/version/../health?x=1": "/health?x=1",
    "/v3//kv/./range": "/v3/kv/range",
    "/a//b/": "/a/b/",
    "//evil.example/%0d%0aa:b": "/evil.example/%0D%0Aa:b",
    "/%2e%2e/..": "/",
}


def test_paths_that_are_not_clean_are_sent_to_those_that_are(open_store: Open) -> None:
    async def main() -> None:
        async with serving(open_store) as (_, client):
            for path, location in REDIRECTS.items():
                answer = await client.ask("POST", path)
                assert (answer.status, answer.headers["location"]) == (307, location), path

    asyncio.run(main())


def test_the_old_prefix_still_works(open_store: Open) -> None:
    async def main() -> None:
        async with serving(open_store) as (_, client):
            answer = await client.post("/v3beta/kv/range", {"key": "YQ=="})
            assert answer.status == 200
            assert answer.json()["header"]["revision"] == "1"

    asyncio.run(main())


def test_options_of_any_path_is_empty(open_store: Open) -> None:
    async def main() -> None:
        async with serving(open_store) as (_, client):
            for path in ("/v3/kv/put", "/nope", "*"):
                answer = await client.ask("OPTIONS", path)
                assert (answer.status, answer.body) == (200, b"")
                assert CORS.items() <= answer.headers.items()

    asyncio.run(main())


def test_alarms_make_the_server_unhealthy(open_store: Open) -> None:
    async def main() -> None:
        async with serving(open_store) as (server, client):
            alarms = server.node.alarms
            alarms.is_nospace = alarms.is_corrupt = True
            for query, status, reason in (
                ("", 503, "ALARM NOSPACE"),
                ("?exclude=NOSPACE", 503, "ALARM CORRUPT"),
                ("?exclude=CORRUPT", 503, "ALARM NOSPACE"),
                ("?exclude=NOSPACE&exclude=CORRUPT", 200, ""),
            ):
                answer = await client.ask("GET", f"/health{query}")
                assert (answer.status, answer.json()["reason"]) == (status, reason)
                assert answer.json()["health"] == ("false" if reason else "true")
                assert answer.body.endswith(b"\n") == bool(reason)
            problem = b"[-]data_corruption failed: alarm activated: CORRUPT\n"
            answer = await client.ask("GET", "/readyz")
            assert answer.status == 503
            assert problem in answer.body
            answer = await client.ask("GET", "/readyz/data_corruption")
            assert (answer.status, answer.body) == (503, problem + b"\n")
            assert (await client.ask("GET", "/readyz?exclude=data_corruption")).status == 200
            assert (await client.ask("GET", "/livez")).status == 200

    asyncio.run(main())


def test_a_server_whose_store_is_closed_is_not_healthy(open_store: Open) -> None:
    async def main() -> None:
        store = open_store(engine="memory")
        async with Server(store, ServerOptions()) as server, browser(await server.listen()) as client:
            store.close()
            answer = await client.ask("GET", "/health")
            assert answer.status == 503
            assert answer.json()["reason"] == "RANGE ERROR:etcdserver: server stopped"
            assert (await client.ask("GET", "/livez")).status == 503

    asyncio.run(main())


def test_only_hosts_that_are_allowed_are_served(open_store: Open) -> None:
    async def main() -> None:
        async with Server(open_store(engine="memory"), ServerOptions()) as server:
            site = Site(server.node, None, hosts=frozenset({"good", "::1"}))
            async with listening(site.serve) as port:
                for host, status in (
                    ("good", 200),
                    ("good:2379", 200),
                    ("[::1]:2379", 200),
                    ("[::1]", 421),  # etcd takes brackets off with a port alone
                    ("bad", 421),
                    ("good.bad", 421),
                    ("", 421),
                ):
                    assert await _status(port, "/version", host) == status, host

    asyncio.run(main())


async def _status(port: int, path: str, host: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    line = await reader.readline()
    writer.transport.abort()
    return int(line.split()[1])


def test_only_origins_that_are_allowed_may_read(open_store: Open) -> None:
    async def main() -> None:
        async with Server(open_store(engine="memory"), ServerOptions()) as server:
            gateway = Gateway(Router({}), TransportLimits())
            site = Site(server.node, gateway, origins=frozenset({"https://good"}))
            async with listening(site.serve) as port, browser(port) as client:
                for origin, shown in (("https://good", "https://good"), ("https://bad", None)):
                    answer = await client.ask("GET", "/version", b"", [("Origin", origin)])
                    assert answer.headers.get("access-control-allow-origin") == shown

    asyncio.run(main())


def test_without_a_gateway_its_paths_are_not_found(open_store: Open) -> None:
    async def main() -> None:
        async with Server(open_store(engine="memory"), ServerOptions()) as server:
            site = Site(server.node, None)
            site.pages["/more"] = lambda exchange: exchange.respond(200, (), b"added")
            async with listening(site.serve) as port, browser(port) as client:
                assert (await client.post("/v3/kv/range", {})).status == 404
                assert (await client.ask("GET", "/v3")).status == 404
                assert (await client.ask("GET", "/more")).body == b"added"

    asyncio.run(main())


def test_the_store_is_served_as_over_grpc(open_store: Open) -> None:
    async def main() -> None:
        async with serving(open_store) as (server, client):
            answer = await client.post("/v3/kv/put", {"key": "YQ==", "value": "Yg=="})
            assert answer.json()["header"]["revision"] == "2"
            answer = await client.post("/v3/kv/range", {"key": "YQ=="})
            assert answer.json()["kvs"] == [
                {"key": "YQ==", "create_revision": "2", "mod_revision": "2", "version": "1", "value": "Yg=="}
            ]
            put = {"request_put": {"key": "YQ==", "value": "Yw=="}}
            compare = {"key": "YQ==", "target": "VALUE", "result": "EQUAL", "value": "Yg=="}
            answer = await client.post("/v3/kv/txn", {"compare": [compare], "success": [put]})
            assert answer.json()["succeeded"] is True
            for path, body, status, code, message in (
                ("kv/put", {}, 400, 3, "etcdserver: key is not provided"),
                ("kv/range", {"key": "YQ==", "revision": 99}, 400, 11, None),
                ("lease/revoke", {"ID": 7}, 404, 5, "etcdserver: requested lease not found"),
            ):
                answer = await client.post(f"/v3/{path}", body)
                assert (answer.status, answer.json()["code"]) == (status, code)
                assert message is None or answer.json()["message"] == message
            assert server.node.revision == 3

    asyncio.run(main())


def test_the_standard_library_s_client_is_content(open_store: Open) -> None:
    def ask(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for _ in range(2):
            connection.request("POST", "/v3/kv/put", json.dumps({"key": "YQ==", "value": "A" * 200_000}))
            answer = connection.getresponse()
            assert answer.status == 200
            assert "header" in json.load(answer)
        connection.request("POST", "/v3/kv/range", iter([b'{"key":', b'"YQ=="}']))
        assert len(json.load(connection.getresponse())["kvs"][0]["value"]) == 200_000
        connection.close()

    async def main() -> None:
        async with Server(open_store(engine="memory"), ServerOptions()) as server:
            await asyncio.to_thread(ask, await server.listen())

    asyncio.run(main())
