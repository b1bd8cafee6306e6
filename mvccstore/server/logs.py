"""The log of a server process: lines of JSON or for a console, with etcd's names, and no flood of them.

A record's `fields` (`extra={"fields": {...}}`) become fields of its line.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from mvccstore.clock import SystemClock
from mvccstore.server.rotation import RotatedFile, Rotation

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
_LEVEL_NAMES = {logging.WARNING: "warn", logging.CRITICAL: "fatal"}
"""Those that etcd's logger calls otherwise."""
FORMATS = ("json", "console")
SAMPLED_FIRST, SAMPLED_EACH = 100, 100
"""Of the lines that say the same within a second, so many are written, and then each so many-th (as etcd's logger has it)."""
_KINDS_MAX = 1_000


class Sampler:
    """Lets a few of each kind through in each second. Used by any thread: to miscount by one is no harm.

    >>> sampler = Sampler(lambda: 0.0)
    >>> sum(sampler.allows("a") for _ in range(1_000)), sampler.allows("b")
    (109, True)
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._second = -1
        self._seen: dict[object, int] = {}

    def allows(self, kind: object) -> bool:
        """Count one of a kind, and say whether it is let through."""
        second = int(self._now())
        if second != self._second or len(self._seen) >= _KINDS_MAX:
            self._second, self._seen = second, {}
        number = self._seen[kind] = self._seen.get(kind, 0) + 1
        return number <= SAMPLED_FIRST or (number - SAMPLED_FIRST) % SAMPLED_EACH == 0


class _Sampling(logging.Filter):
    """Holds back what is said too often."""

    def __init__(self) -> None:
        super().__init__()
        self._sampler = Sampler(SystemClock().monotonic)

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line is to be written; one that was sampled before it was made is."""
        return getattr(record, "is_sampled", False) or self._sampler.allows((record.levelno, record.msg))


def _level(record: logging.LogRecord) -> str:
    return _LEVEL_NAMES.get(record.levelno, record.levelname.lower())


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, object]:
    fields = dict(getattr(record, "fields", {}))
    if record.exc_info:
        fields["error"] = formatter.formatException(record.exc_info)
    return fields


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with etcd's names."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        shape: dict[str, object] = {
            "level": _level(record),
            "ts": _time(record),
            "caller": f"{record.module}.py:{record.lineno}",
            "msg": record.getMessage(),
        }
        # Without spaces, as etcd's: there are harnesses that wait for `"status":"SERVING"`.
        return json.dumps(shape | _fields(self, record), separators=(",", ":"))


class ConsoleFormatter(logging.Formatter):
    """Time, level, caller and message, and the fields as JSON, between tabs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        parts = [
            _time(record),
            _level(record),
            f"{record.module}.py:{record.lineno}",
            json.dumps(record.getMessage())[1:-1],
        ]
        fields = _fields(self, record)
        return "\t".join([*parts, json.dumps(fields)] if fields else parts)


def set_up_log(
    level: int, form: str, outputs: Sequence[str], stack: ExitStack, rotation: Rotation | None = None
) -> None:
    """Have everything logged from a level on, until the stack is closed.

    Args:
        level: As of `logging`.
        form: One of `FORMATS`.
        outputs: `stdout`, `stderr`, `default` (which is stderr), or paths of files to append to.
        stack: Has what is to be undone.
        rotation: When files are put aside; never if there is none.

    Raises:
        OSError: A file cannot be written to.
    """
    logger = logging.getLogger("mvccstore")
    stack.callback(logger.setLevel, logger.level)
    logger.setLevel(level)
    sampling = _Sampling()
    for output in outputs or ("default",):
        stream: TextIO | RotatedFile
        if output in {"default", "stderr"}:
            stream = sys.stderr
        elif output == "stdout":
            stream = sys.stdout
        else:
            stream = _append_to(output) if rotation is None else RotatedFile(Path(output), rotation)
            stack.callback(stream.close)
        handler: logging.Handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
        handler.addFilter(sampling)
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)


def _append_to(path: str) -> TextIO:
    return Path(path).open("a", encoding="utf-8")
