"""Prometheus' text, made on demand. Imported with the first scrape: it costs 60 ms and 3 MB."""

from __future__ import annotations

import platform
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

from drover_proxy.admin.metrics import Histogram, Metrics
from drover_proxy.build import BUILD


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
        info = GaugeMetricFamily("drover_build_info", "Always 1.", labels=["version", "python", "build"])
        info.add_metric([m.version, platform.python_version(), BUILD], 1)
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
            "drover_tls_last_reload_successful",
            "1 unless the files that tls names, as they stand, can't be used.",
            float(m.tls_ok),
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
        for (dialect, route, model, status, kind), tally in m.served.items():
            requests[route, model, str(status)] += tally.count
            outcomes[dialect, kind] += tally.count
        yield _counter("drover_requests", "Requests that ended.", ["route", "model", "status"], requests)
        errors = {(code,): count for code, count in m.errors.items()}
        yield _counter("drover_errors", "Errors answered by the proxy itself.", ["code"], errors)
        yield _counter("drover_outcomes", "How exchanges ended.", ["dialect", "kind"], outcomes)
        failures = {(reason,): count for reason, count in m.tls_failures.items()}
        yield _counter("drover_tls_handshakes_failed", "By OpenSSL's reason.", ["reason"], failures)
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
