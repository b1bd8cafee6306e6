"""Fuzz all targets, or some: `python -m tests.fuzz.run [--keep] [TARGET ...]`, for `FUZZ_SECONDS` in all.

Each target runs in a process of its own under atheris (libFuzzer), one after the other. The inputs it goes on from are in
`.fuzz/` and grow with each run; those in `corpus/`, and each target's own seeds, are put there first. An input that
breaks a target is added to `corpus/`, so that `make test` fails until it does not any more, and holds it from then on.
With `--keep`, the smallest inputs that reach all that was reached are kept there, as many as fit.

A process whose memory grows while its coverage does not any more has a leak: that fails the run, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median

from tests.fuzz.targets import TARGETS, keep, kept

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".fuzz"
SECONDS = 1_800
INPUT_BYTES_MAX = 4_096
INPUT_SECONDS_MAX = 20
MEMORY_MIB_MAX = 2_048
MERGE_SECONDS_MAX = 600
KEPT_BYTES_MAX = 6_000
LEAK_KIB = 64 * 1_024
"""libFuzzer's own corpus grows too, but not so much."""
_CRASH = "crash"
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1_024


@dataclass(slots=True)
class Outcome:
    """What came of one target."""

    executions: int = 0
    memory_kib: list[int] = field(default_factory=list)
    """Of its process, once a second."""
    crash: bytes | None = None
    output: str = ""

    @property
    def settled_kib(self) -> int:
        """Its memory when it had found most of what it finds."""
        third = len(self.memory_kib) // 3
        return int(median(self.memory_kib[third : third + third // 2 + 1] or [0]))

    @property
    def final_kib(self) -> int:
        """Its memory at the end."""
        return int(median(self.memory_kib[-max(1, len(self.memory_kib) // 10) :] or [0]))

    @property
    def has_leak(self) -> bool:
        """Whether the one is much more than the other."""
        return self.final_kib - self.settled_kib > max(LEAK_KIB, self.settled_kib // 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 if a target broke or leaked, 2 if there is no atheris."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--keep", action="store_true", help="keep the smallest inputs in tests/fuzz/corpus")
    options = parser.parse_args(arguments)
    names = options.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    if importlib.util.find_spec("atheris") is None:
        print("atheris cannot be imported: it has wheels for CPython on Linux only, `pip install atheris`")
        return 2
    seconds = max(1, int(os.environ.get("FUZZ_SECONDS", SECONDS)) // len(names))
    has_failed = False
    print(f"{'target':<10} {'seconds':>8} {'runs':>12} {'MiB, settled':>13} {'at the end':>11}")
    for name in names:
        outcome = fuzz(name, seconds)
        has_failed |= outcome.crash is not None or outcome.has_leak
        said = "  broke" if outcome.crash is not None else "  leaks" if outcome.has_leak else ""
        sizes = f"{outcome.settled_kib // 1_024:>13,} {outcome.final_kib // 1_024:>11,}"
        print(f"{name:<10} {seconds:>8,} {outcome.executions:>12,} {sizes}{said}", flush=True)
        if outcome.crash is not None:
            print(outcome.output[outcome.output.find("=== Uncaught") :][:3_000])
            if outcome.crash:
                keep(name, [*kept(name), (_CRASH, outcome.crash)])
        elif options.keep:
            keep_smallest(name)
    return int(has_failed)


def fuzz(name: str, seconds: int) -> Outcome:
    """Run one target for so long."""
    folder = WORK / name
    inputs, crashes = folder / "inputs", folder / "crashes"
    inputs.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(crashes, ignore_errors=True)
    crashes.mkdir()
    for data in (*TARGETS[name].seeds, *(data for _, data in kept(name))):
        (inputs / sha256(data).hexdigest()[:16]).write_bytes(data)
    limits = (
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
    )
    outcome = Outcome()
    with (folder / "log").open("w+b") as log:
        process = _start(
            name, log.fileno(), f"-artifact_prefix={crashes}/", "-print_final_stats=1", *limits, str(inputs)
        )
        until = time.monotonic() + seconds + 120
        while process.poll() is None:
            outcome.memory_kib.append(_memory_kib(process.pid))
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                if time.monotonic() > until:
                    process.kill()
        log.seek(0)
        text = log.read().decode(errors="replace")
    found = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    outcome.executions = int(found[1]) if found else 0
    outcome.memory_kib = [size for size in outcome.memory_kib if size]
    broken = sorted(crashes.iterdir())
    if broken or process.returncode:
        outcome.crash = broken[0].read_bytes() if broken else b""
        outcome.output = text[-8_000:]
    return outcome


def keep_smallest(name: str) -> None:
    """Keep the smallest inputs that together reach what all reach, as many as fit; and all that once broke it."""
    folder = WORK / name
    merged = folder / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    with (folder / "log").open("ab") as log:
        process = _start(name, log.fileno(), "-merge=1", str(merged), str(folder / "inputs"))
        try:
            process.wait(MERGE_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            return
    rows = [(why, data) for why, data in kept(name) if why != "reaches"]
    size = 0
    for data in sorted((path.read_bytes() for path in merged.iterdir()), key=lambda data: (len(data), data)):
        size += len(data)
        if size > KEPT_BYTES_MAX:
            break
        if data:
            rows.append(("reaches", data))
    keep(name, rows)


def _start(name: str, output: int, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::SyntaxWarning"}
    command = [sys.executable, "-m", "tests.fuzz.one", name, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def _memory_kib(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_KIB
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
