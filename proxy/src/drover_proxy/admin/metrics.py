"""Counters as plain integers, so that counting costs next to nothing; Prometheus' text is made on demand."""

from __future__ import annotations

import platform
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

SHORT = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
)
LONG = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
CONTENT_TYPE = b"text/plain; version=1.0.0; charset=utf-8; escaping=underscores"


class Histogram:
    """A histogram of seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative buckets as Prometheus wants them."""
        running = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            running += count
            rows.append((bound, running))
        return rows


class Metrics:
    """Everything that is counted."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.served: Counter[tuple[str, str, str, int, str]] = Counter()
        """Requests that have ended, by dialect, route, model, status and kind of end."""
        self.errors: Counter[str] = Counter()
        """Answers that the proxy itself made an error, by X-Drover-Error."""
        self.alerts: Counter[str] = Counter()
        self.loads: Counter[tuple[str, str]] = Counter()
        """By instance and outcome."""
        self.unloads: Counter[tuple[str, str]] = Counter()
        self.bytes_in = 0
        self.bytes_out = 0
        self.queue_wait = Histogram(SHORT)
        self.first_byte = Histogram(SHORT)
        self.duration = Histogram(SHORT)
        self.load_duration = Histogram(LONG)
        self.reload_ok = True
        self.keys_ok = True
        """The keys file as it was last read is in force."""
        self.reloaded_at = time.time()


class Exposition(Collector):
    """Makes Prometheus' families out of the counters and of what the gauges are asked for."""

    def __init__(self, metrics: Metrics, gauges: Callable[[], Iterator[Metric]]) -> None:
        self._metrics = metrics
        self._gauges = gauges
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return the page."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        m = self._metrics
        yield from self._counters()
        yield _histogram(
            "drover_queue_wait_seconds", "From a request's arrival to its forwarding.", m.queue_wait
        )
        yield _histogram(
            "drover_time_to_first_byte_seconds",
            "From a request's arrival to its answer's head.",
            m.first_byte,
        )
        yield _histogram(
            "drover_request_duration_seconds", "From a request's arrival to its end.", m.duration
        )
        yield _histogram("drover_load_duration_seconds", "How long successful loads took.", m.load_duration)
        info = GaugeMetricFamily("drover_build_info", "Always 1.", labels=["version", "python"])
        info.add_metric([m.version, platform.python_version()], 1)
        yield info
        yield _gauge(
            "drover_config_last_reload_successful", "1 unless the last reload failed.", float(m.reload_ok)
        )
        yield _gauge(
            "drover_keys_last_reload_successful",
            "1 unless the keys file, as it stands, can't be used.",
            float(m.keys_ok),
        )
        yield _gauge(
            "drover_config_last_reload_success_timestamp_seconds",
            "When the configuration was read.",
            m.reloaded_at,
        )
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        m = self._metrics
        requests: Counter[tuple[str, str, str]] = Counter()
        outcomes: Counter[tuple[str, str]] = Counter()
        for (dialect, route, model, status, kind), count in m.served.items():
            requests[route, model, str(status)] += count
            outcomes[str.__str__(dialect), str.__str__(kind)] += count
        yield _counter("drover_requests", "Requests that ended.", ["route", "model", "status"], requests)
        errors = {(code,): count for code, count in m.errors.items()}
        yield _counter("drover_errors", "Errors answered by the proxy itself.", ["code"], errors)
        yield _counter("drover_outcomes", "How exchanges ended.", ["dialect", "kind"], outcomes)
        alerts = {(code,): count for code, count in m.alerts.items()}
        yield _counter("drover_alerts", "What an operator should know of.", ["code"], alerts)
        yield _counter("drover_loads", "Loads of models.", ["instance", "outcome"], m.loads)
        yield _counter("drover_unloads", "Unloads of models.", ["instance", "outcome"], m.unloads)
        yield _counter("drover_request_body_bytes", "Body bytes from clients.", [], {(): m.bytes_in})
        yield _counter("drover_response_bytes", "Bytes to clients.", [], {(): m.bytes_out})


def _counter(name: str, text: str, labels: list[str], values: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=histogram.buckets(), sum_value=histogram.total)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
