"""The pytest plugin: fixtures `etcd`, `mvccstore` and `mvccstore_clock`, with no configuration.

    def test_it(etcd):
        main(endpoint=etcd.endpoint)
        assert etcd.store.get(b"done") is not None

`@pytest.mark.etcd(clock="virtual", contents={"a": "1"})` gives settings of `mvccstore.testing.etcd` to the server of a
test, of a class or, in `pytestmark`, of a module. A test that asks for `mvccstore_clock` too has servers and stores that
go by that clock. The ini option `mvccstore_etcd_scope = session`, or `scope="session"` in the marker, has tests with the
same settings share one server, as it is left by the one before; `etcd.reset()` empties it. The ini option
`mvccstore_etcd_version = 3.5`, or `version="3.5"` in the marker, has servers behave as that etcd.

`@pytest.mark.etcd(replay="cassette.jsonl")` has calls answered from what `mvccstore record` has written: a file beside
the test's, or a path.

When a test fails, the last calls, the contents and the open streams of its servers are printed.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

_SCOPES = ("function", "session")
_servers = pytest.StashKey[list[Any]]()
_shared = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option."""
    parser.addini(
        "mvccstore_etcd_scope",
        "whether each test has an etcd of its own (function, the default) or all share one (session)",
        default="function",
    )
    parser.addini(
        "mvccstore_etcd_version", "the etcd that servers behave as: 3.4, 3.5 or 3.6 (the default)", default=""
    )


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker is."""
    config.addinivalue_line(
        "markers",
        "etcd(*, scope, clock, auth, tls, contents, version, replay, options): settings of the fixture `etcd`;"
        " see mvccstore.testing.etcd",
    )
    config.stash[_shared] = {}


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers that were shared."""
    shared = config.stash.get(_shared, {})
    while shared:
        shared.popitem()[1].stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have the servers of a test that has failed say what they know."""
    report = yield
    if report.failed:
        for server in item.stash.get(_servers, []):
            report.sections += server.report()
    return report


@pytest.fixture
def mvccstore_clock() -> Any:
    """Time that stands still until `mvccstore_clock.advance(seconds)`: that of `mvccstore` and `etcd`, if asked for."""
    from mvccstore.testing.clock import FakeClock

    return FakeClock()


@pytest.fixture
def mvccstore(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An empty store in memory: a `mvccstore.Store`."""
    from mvccstore.opening import open_store

    with open_store(clock=_clock(request)) as store:
        yield store


@pytest.fixture
def etcd(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A running etcd for this test: a `mvccstore.testing.etcd_server.Etcd`."""
    settings: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("etcd"))):
        if marker.args:
            pytest.fail("pytest.mark.etcd takes settings by name only", pytrace=False)
        settings |= marker.kwargs
    scope = settings.pop("scope", request.config.getini("mvccstore_etcd_scope"))
    if scope not in _SCOPES:
        pytest.fail(f"the scope of etcd is {scope!r}, not one of {', '.join(_SCOPES)}", pytrace=False)
    version = request.config.getini("mvccstore_etcd_version")
    if version:
        settings.setdefault("version", version)
    clock = _clock(request)
    if clock is not None:
        settings["clock"] = clock
    if isinstance(settings.get("replay"), str | os.PathLike):
        beside = request.path.parent / settings["replay"]
        settings["replay"] = str(beside if beside.exists() else settings["replay"])
    server = _shared_server(request.config, settings) if scope == "session" else _new_server(settings)
    request.node.stash.setdefault(_servers, []).append(server)
    try:
        yield server
    finally:
        if scope != "session":
            server.stop()


def _clock(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("mvccstore_clock") if "mvccstore_clock" in request.fixturenames else None


def _new_server(settings: dict[str, Any]) -> Any:
    from mvccstore.testing.etcd_server import Etcd

    server = Etcd(**settings)
    server.start()
    return server


def _shared_server(config: pytest.Config, settings: dict[str, Any]) -> Any:
    shared = config.stash[_shared]
    key = repr(sorted(settings.items()))
    if key not in shared:
        shared[key] = _new_server(settings)
    return shared[key]
