"""The page `/metrics`: a scrape is put together on a thread, as it counts keys, and the loop goes on.

Scrapes that come while one is under way share its answer: a client cannot have the keys counted all the time by
asking often.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from mvccstore.server.metrics.families import Family
from mvccstore.server.transport.counts import Histogram
from mvccstore.server.transport.exchange import TEXT, Exchange

_log = logging.getLogger("mvccstore.server")

_TYPE = ((b"Content-Type", b"text/plain; version=0.0.4; charset=utf-8"),)
_WITHOUT_TOTAL = (b"etcd_server_health_success", b"etcd_server_health_failures")
"""Counters of etcd's that do not end as Prometheus would have them, and as `prometheus_client` makes them end."""


class MetricsPage:
    """The page.

    Args:
        families: Returns what to tell; called on a thread.
    """

    def __init__(self, families: Callable[[], Iterator[Family]]) -> None:
        self._families = families
        self._waiting: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> None:
        """Answer a scrape."""
        self._waiting.append(exchange)
        if len(self._waiting) == 1:
            work = asyncio.get_running_loop().run_in_executor(None, self._text)
            work.add_done_callback(self._answer)

    def _text(self) -> bytes:
        return exposition(self._families())

    def _answer(self, work: asyncio.Future[bytes]) -> None:
        waiting, self._waiting = self._waiting, []
        error = None if work.cancelled() else work.exception()
        if isinstance(error, ImportError):
            text = b"prometheus_client is not installed; pip install 'mvccstore[server]'\n"
        elif error is not None or work.cancelled():
            _log.error("metrics could not be collected", exc_info=error)
            text = b"metrics could not be collected\n"
        else:
            for exchange in waiting:
                exchange.respond(200, _TYPE, work.result())
            return
        for exchange in waiting:
            exchange.respond(503, TEXT, text)


def exposition(families: Iterator[Family]) -> bytes:
    """Return families, and what the system knows of the process, in Prometheus' text format.

    Raises:
        ImportError: `prometheus_client` is not installed.
    """
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.metrics_core import Metric

    class Collector:
        def collect(self) -> Iterator[Metric]:
            for family in families:
                name = family.name.removesuffix("_total") if family.kind == "counter" else family.name
                metric = Metric(name, family.help, family.kind)
                for labels, value in family.values:
                    if isinstance(value, Histogram):
                        _add_histogram(metric.add_sample, family.name, dict(labels), value)
                    else:
                        metric.add_sample(family.name, dict(labels), value)
                yield metric

    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(Collector())
    text = generate_latest(registry)
    for name in _WITHOUT_TOTAL:
        text = text.replace(b" " + name + b"_total ", b" " + name + b" ")
    return text


def _add_histogram(
    add: Callable[[str, dict[str, str], float], None], name: str, labels: dict[str, str], histogram: Histogram
) -> None:
    below = 0
    for bound, number in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        below += number
        shown = "+Inf" if bound == float("inf") else _shown(bound)
        add(f"{name}_bucket", {**labels, "le": shown}, below)
    add(f"{name}_count", labels, below)
    add(f"{name}_sum", labels, histogram.total)


def _shown(bound: float) -> str:
    """Return a bound as Go writes it, which is what tells the buckets of a histogram apart.

    >>> _shown(0.005), _shown(131072.0), _shown(1048576.0), _shown(2e6)
    ('0.005', '131072', '1.048576e+06', '2e+06')
    """
    text = f"{bound:g}"
    digits = 6
    while float(text) != bound:
        text = f"{bound:.{digits}e}"
        digits += 1
    return text
