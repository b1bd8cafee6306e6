"""h2spec at a server of ours: what it finds, and why what it finds is no fault.

Where Go is not installed there is none, and this module is empty.
"""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mvccstore.server import ServerOptions, TLSOptions, TransportLimits, serve
from tests.oracle.build import find_go
from tests.wire.h2spec.build import build
from tests.wire.tls_kit import LOCAL, Authority

CASES_MIN = 140
# h2spec is of RFC 7540. What has ended is not remembered: DATA that was on its way may come so late, and is passed over.
_LATE = "DATA of a stream that is over is passed over, within its window"
_PRIORITY = "RFC 9113 (5.3.2) has no priorities any more: they are passed over"
NO_FAULTS = {
    "half closed (remote): Sends a DATA frame": _LATE,
    "closed: Sends a DATA frame after sending RST_STREAM frame": _LATE,
    "closed: Sends a DATA frame": _LATE,
    'Sends a DATA frame on the stream that is not in "open" or "half-closed (local)" state': _LATE,
    "Sends HEADERS frame that depend on itself": _PRIORITY,
    "Sends PRIORITY frame that depend on itself": _PRIORITY,
}

if find_go() is not None:

    @pytest.mark.slow
    def test_what_h2spec_finds_is_no_fault(tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        identity = authority.issue("server", LOCAL)
        options = ServerOptions(
            tls=TLSOptions(str(identity.certificate), str(identity.key)), transport=TransportLimits(streams_max=100)
        )
        report = tmp_path / "report.xml"
        with serve(options=options) as server:
            command = [str(build()), "--port", str(server.port), "--tls", "--insecure", "--path", "/health"]
            command += ["--timeout", "1", "--junit-report", str(report)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            assert report.exists(), done.stdout + done.stderr
        cases = list(ElementTree.parse(report).iter("testcase"))
        assert len(cases) >= CASES_MIN
        failed = {case.attrib["classname"] for case in cases if case.find("error") is not None}
        assert failed == set(NO_FAULTS), done.stdout
