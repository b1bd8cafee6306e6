"""Durations as Go writes them, in flags and in the options of tokens."""

from __future__ import annotations

import re

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Return the seconds of a Go duration.

    Raises:
        ValueError: It is none.

    >>> parse_duration("1m30s"), parse_duration("0"), parse_duration("250ms")
    (90.0, 0.0, 0.25)
    """
    sign, rest = (-1.0, text[1:]) if text[:1] == "-" else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    parts = _DURATION.findall(rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        msg = f"{text!r} is no duration"
        raise ValueError(msg)
    return sign * sum(float(number) * _SECONDS[unit] for number, unit in parts)
