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


def shown_duration(seconds: float) -> str:
    """Return a duration as Go writes it.

    >>> [shown_duration(seconds) for seconds in (0.0, 0.0000205, 0.1, 1.5, 3725.25)]
    ['0s', '20.5µs', '100ms', '1.5s', '1h2m5.25s']
    """
    for unit in ("ms", "µs"):
        if 0 < seconds < 1 and (seconds >= _SECONDS[unit] or unit == "µs"):
            return f"{round(seconds / _SECONDS[unit], 6):g}{unit}"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    shown = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{shown}{round(rest, 6):.10g}s"
