"""The pytest plugin, in runs of pytest of its own, as its users have it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from textwrap import dedent

import pytest

from mvccstore.testing import etcd, record

ROOT = Path(__file__).parents[2]
CLIENT = """
    import base64, json, urllib.request

    def ask(etcd, path, **request):
        with urllib.request.urlopen(f"{etcd.url}/v3/{path}", json.dumps(request).encode(), timeout=60) as answer:
            return json.load(answer)

    def b64(text):
        return base64.b64encode(text.encode()).decode()

    def put(etcd, key, value):
        return int(ask(etcd, "kv/put", key=b64(key), value=b64(value))["header"]["revision"])
"""


class Run:
    """One run, and what it printed."""

    def __init__(self, folder: Path, source: str, *arguments: str, ini: str = "") -> None:
        (folder / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{ini}\n")
        (folder / "client.py").write_text(dedent(CLIENT))
        (folder / "test_it.py").write_text("from client import *\n" + dedent(source))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider"),
                # By name, whether or not the package is installed.
                *("-p", "no:mvccstore", "-p", "mvccstore.testing.plugin", *arguments),
            ],
            cwd=folder,
            env={**environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.output = done.stdout + done.stderr
        self.code = done.returncode

    def check(self, passed: int = 0, failed: int = 0, errors: int = 0) -> None:
        """Hold the counts against those that are expected."""
        words = [f"{failed} failed"] * bool(failed) + [f"{passed} passed"] * bool(passed)
        words += [f"{errors} error" + "s" * (errors > 1)] * bool(errors)
        assert ", ".join(words) in self.output, self.output
        assert self.code == bool(failed or errors), self.output


def test_each_test_has_an_etcd_of_its_own_without_any_configuration(tmp_path: Path) -> None:
    source = """
        import pytest

        ports = set()

        @pytest.mark.parametrize("number", range(5))
        def test_it(etcd, number):
            assert put(etcd, "a", "1") == 2
            assert etcd.store.get(b"a").value == b"1"
            assert etcd.env["ETCDCTL_ENDPOINTS"] == etcd.endpoint == f"{etcd.host}:{etcd.port}"

        def test_a_store(mvccstore):
            assert mvccstore.put(b"a") == 2
    """
    Run(tmp_path, source).check(passed=6)


def test_they_are_safe_beside_each_other(tmp_path: Path) -> None:
    source = """
        import pytest

        @pytest.mark.parametrize("number", range(40))
        def test_it(etcd, number):
            assert [put(etcd, "a", str(number)) for _ in range(10)] == list(range(2, 12))
            assert etcd.store.get(b"a").value == str(number).encode()
    """
    Run(tmp_path, source, "-n", "4", "-p", "xdist").check(passed=40)


def test_the_session_shares_one_if_the_ini_file_says_so(tmp_path: Path) -> None:
    source = """
        import pytest

        def test_one(etcd):
            assert put(etcd, "a", "1") == 2

        def test_two(etcd):
            assert put(etcd, "a", "2") == 3
            etcd.reset()
            assert put(etcd, "a", "2") == 2

        @pytest.mark.etcd(scope="function")
        def test_three(etcd):
            assert put(etcd, "a", "1") == 2

        @pytest.mark.etcd(contents={"b": "1"})
        def test_four(etcd):
            assert put(etcd, "a", "1") == 3

        def test_five(etcd):
            assert put(etcd, "a", "2") == 3
    """
    Run(tmp_path, source, ini="mvccstore_etcd_scope = session").check(passed=5)


def test_markers_give_settings_and_the_nearest_counts(tmp_path: Path) -> None:
    (tmp_path / "contents.json").write_text('{"from": "a file"}')
    source = """
        import pytest

        pytestmark = pytest.mark.etcd(contents={"a": "module"}, clock="virtual")

        def test_module(etcd):
            assert etcd.store.get(b"a").value == b"module"
            etcd.store.put(b"b", lease=etcd.store.grant(ttl=5))
            etcd.clock.advance(5)
            assert etcd.store.get(b"b") is None

        @pytest.mark.etcd(contents={"a": "test"})
        def test_test(etcd):
            assert etcd.store.get(b"a").value == b"test"
            etcd.clock.advance(5)

        @pytest.mark.etcd(contents="contents.json")
        class TestClass:
            def test_file(self, etcd):
                assert etcd.store.get(b"from").value == b"a file"
    """
    Run(tmp_path, source).check(passed=3)


def test_users_and_tls_by_one_marker(tmp_path: Path) -> None:
    (tmp_path / "contents.json").write_text('{"public/a": "1", "secret": "2"}')
    source = """
        import ssl
        import pytest

        MARKED = pytest.mark.etcd(
            auth={"alice": "pw", "bob": {"password": "b", "read": ["public/"]}},
            tls=True,
            clock="virtual",
            contents="contents.json",
        )

        @MARKED
        def test_it(etcd):
            assert etcd.url.startswith("https://") and etcd.env["ETCDCTL_CACERT"] == etcd.ca_file
            alice, bob = etcd.client(user="alice"), etcd.client(user="bob")
            assert (alice.get("secret"), bob.get("public/a")) == ([b"2"], [b"1"])
            with pytest.raises(Exception):
                bob.get("secret")
            etcd.clock.advance(301)  # so long do tokens last
            with pytest.raises(Exception):
                alice.get("secret")
            assert etcd.client(user="alice").get("secret") == [b"2"]
            with pytest.raises(ssl.SSLCertVerificationError):
                import socket
                context = ssl.create_default_context()
                with socket.create_connection((etcd.host, etcd.port)) as plain:
                    context.wrap_socket(plain, server_hostname="localhost")

        @MARKED
        def test_failing(etcd):
            etcd.client(user="bob")
            assert False
    """
    run = Run(tmp_path, source)
    run.check(passed=1, failed=1)
    assert '#1 Auth.Authenticate(name: "bob" password: "redacted") -> OK' in run.output


def test_the_clock_is_that_of_all_who_are_asked_for_with_it(tmp_path: Path) -> None:
    source = """
        def test_it(etcd, mvccstore, mvccstore_clock):
            for store in (etcd.store, mvccstore):
                store.put(b"a", lease=store.grant(ttl=5))
            mvccstore_clock.advance(5)
            assert etcd.store.get(b"a") is None
            assert mvccstore.get(b"a") is None
            etcd.clock.advance(1)
            assert mvccstore_clock.monotonic() == 6

        def test_real_time(etcd, mvccstore):
            import pytest
            with pytest.raises(RuntimeError, match="real time"):
                etcd.clock
    """
    Run(tmp_path, source).check(passed=2)


def test_a_failed_test_prints_what_the_server_knows(tmp_path: Path) -> None:
    source = """
        def test_it(etcd):
            put(etcd, "key", "value")
            assert put(etcd, "other", "value") == 99

        def test_good(etcd):
            put(etcd, "unseen", "1")
    """
    run = Run(tmp_path, source)
    run.check(passed=1, failed=1)
    assert "last calls" in run.output
    assert '#1 KV.Put(key: "key" value: "value") -> OK' in run.output
    assert "key = value  (revision 2, version 1)" in run.output
    assert "open streams" in run.output
    assert "unseen" not in run.output


def test_a_failed_assertion_shows_the_line_of_the_test_and_the_difference(tmp_path: Path) -> None:
    source = """
        def test_contents(etcd):
            put(etcd, "a", "1")
            etcd.assert_contents({"a": "2", "b": "3"})

        def test_put(etcd):
            etcd.assert_put(prefix="orders/", times=2)

        def test_wait(etcd):
            etcd.wait_for("a", "1", timeout=0.01)
    """
    run = Run(tmp_path, source)
    run.check(failed=3)
    assert "assertions.py" not in run.output
    for line in (
        "E       - a = 2",
        "E       + a = 1",
        "E       - b = 3",
        '>       etcd.assert_put(prefix="orders/", times=2)',
    ):
        assert line in run.output
    assert "expected a put of b'orders/'* 2 times, there were 0" in run.output
    assert "waited 0.01 s for a to be 1; it is not there" in run.output


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ('etcd("virtual")', "takes settings by name only"),
        ('etcd(scope="module")', "the scope of etcd is 'module'"),
        ('etcd(clock="fake")', "clock is 'fake', neither"),
        ("etcd(clok=1)", "unexpected keyword argument 'clok'"),
        ('etcd(contents="none.json")', "No such file"),
        ("etcd(contents=[])", "contents are a mapping"),
    ],
)
def test_settings_that_are_none_are_told(tmp_path: Path, marker: str, message: str) -> None:
    source = f"""
        import pytest

        @pytest.mark.{marker}
        def test_it(etcd):
            pass
    """
    run = Run(tmp_path, source)
    run.check(errors=1)
    assert message in run.output


def test_the_fixtures_and_the_marker_are_listed(tmp_path: Path) -> None:
    run = Run(tmp_path, "", "--fixtures")
    for name in ("etcd ", "mvccstore ", "mvccstore_clock "):
        assert f"\n{name}" in run.output, run.output
    assert "@pytest.mark.etcd(" in Run(tmp_path, "", "--markers").output


def test_who_does_not_use_it_pays_nothing(tmp_path: Path) -> None:
    source = """
        import sys

        def test_it():
            assert "google.protobuf" not in sys.modules
            assert "mvccstore.server" not in sys.modules
    """
    Run(tmp_path, source).check(passed=1)


def test_an_etcd_of_another_version(tmp_path: Path) -> None:
    source = """
        import pytest

        def release(etcd):
            with urllib.request.urlopen(f"{etcd.url}/version", timeout=60) as answer:
                return json.load(answer)["etcdserver"][:3]

        def test_of_the_ini_option(etcd):
            assert release(etcd) == "3.4"

        @pytest.mark.etcd(version="3.5")
        def test_of_the_marker(etcd):
            assert release(etcd) == "3.5"

        @pytest.mark.etcd(version="3.5", scope="session")
        def test_shared(etcd):
            assert release(etcd) == "3.5"

        @pytest.mark.etcd(scope="session")
        def test_not_shared(etcd):
            assert release(etcd) == "3.4"

        @pytest.mark.etcd(version="3.3")
        def test_of_none(etcd):
            raise AssertionError
    """
    run = Run(tmp_path, source, ini="mvccstore_etcd_version = 3.4")
    run.check(passed=4, errors=1)
    assert "the version is '3.3', not one of '3.4', '3.5', '3.6'" in run.output


def test_a_cassette_beside_the_test_is_replayed_and_gaps_are_printed(tmp_path: Path) -> None:
    with etcd() as upstream, record(upstream.endpoint, tmp_path / "tape.jsonl") as recorder:
        body = b'{"key": "YQ==", "value": "MQ=="}'
        urllib.request.urlopen(recorder.url + "/v3/kv/put", body).close()
    source = """
        import pytest

        pytestmark = pytest.mark.etcd(replay="tape.jsonl")

        def test_it(etcd):
            assert put(etcd, "a", "1") == 2
            etcd.assert_replayed()

        def test_another(etcd):
            assert len(etcd.unused) == 1
            put(etcd, "b", "1")
    """
    run = Run(tmp_path, source)
    run.check(passed=1, failed=1)
    assert re.search(r"-+ etcd at 127.0.0.1:\d+: replay -+\n.*tape.jsonl\n", run.output)
    nearest = 'the nearest is line 3: KV.Put(key: "a" value: "1")'
    assert f'not in the cassette: KV.Put(key: "b" value: "1"); {nearest}' in run.output
    assert 'not asked for: line 3: KV.Put(key: "a" value: "1")' in run.output
