"""What must not happen while an input is played: the server's own errors, which it logs and survives."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


_COLLECTOR = _Collector()
_LOGGERS = [logging.getLogger(name) for name in ("mvccstore", "mvccstore.server", "asyncio")]


@contextmanager
def no_faults() -> Iterator[None]:
    """Raise `AssertionError` if the server logs an error within."""
    before = [(logger.propagate, logger.handlers) for logger in _LOGGERS]
    _COLLECTOR.found.clear()
    for logger in _LOGGERS:
        logger.propagate, logger.handlers = False, [_COLLECTOR]
    try:
        yield
    finally:
        for logger, (propagate, handlers) in zip(_LOGGERS, before, strict=True):
            logger.propagate, logger.handlers = propagate, handlers
    assert not _COLLECTOR.found, "\n".join(_COLLECTOR.found)
