"""What the proxy knows at this moment, as gauges."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from drover_proxy.app.parts import Parts


def gauges(parts: Parts) -> Iterator[Metric]:
    """Yield what is measured rather than counted."""
    yield from _gpus(parts)
    up = GaugeMetricFamily("drover_instance_up", "1 while the instance answers.", labels=["instance"])
    for name, instance in parts.instances.items():
        up.add_metric([name], float(instance.up))
    yield up
    yield from _runners(parts)
    yield GaugeMetricFamily("drover_models", "Models on disk.", value=len(parts.catalogue.models))
    yield from _guard(parts)
    yield from _wire(parts)


def _gpus(parts: Parts) -> Iterator[Metric]:
    memory = parts.memory
    yield GaugeMetricFamily(
        "drover_gpu_memory_known", "1 while NVML answers.", value=float(memory.state == "ok")
    )
    age = max(0.0, time.monotonic() - memory.latest_at) if memory.latest_at else -1.0
    yield GaugeMetricFamily("drover_gpu_memory_age_seconds", "Age of the last sample; -1: none.", value=age)
    families = {
        "total_bytes": GaugeMetricFamily(
            "drover_gpu_memory_total_bytes", "Memory of a GPU.", labels=["gpu", "name"]
        ),
        "free_bytes": GaugeMetricFamily(
            "drover_gpu_memory_free_bytes", "Free, as NVML says.", labels=["gpu", "name"]
        ),
        "foreign_bytes": GaugeMetricFamily(
            "drover_gpu_memory_foreign_bytes", "Taken by others than our runners.", labels=["gpu", "name"]
        ),
    }
    for uuid, reading in memory.latest.items():
        for field, family in families.items():
            family.add_metric([uuid, memory.names.get(uuid, "")], float(getattr(reading, field)))
    yield from families.values()


def _runners(parts: Parts) -> Iterator[Metric]:
    core = parts.runtime.core
    shown: dict[str, Any] = core.snapshot() if core is not None else {}
    states = GaugeMetricFamily("drover_runners", "Runners by state.", labels=["instance", "state"])
    memory = GaugeMetricFamily(
        "drover_runner_memory_bytes", "What a runner takes.", labels=["instance", "model"]
    )
    active = GaugeMetricFamily(
        "drover_runner_active_requests", "Requests in it.", labels=["instance", "model"]
    )
    count: Counter[tuple[str, str]] = Counter()
    for runner in shown.get("runners", ()):
        count[runner["instance"], runner["state"]] += 1
        labels = [runner["instance"], runner["model"]]
        memory.add_metric(labels, float(sum(runner["bytes_by_gpu"].values())))
        active.add_metric(labels, float(runner["active"]))
    for (instance, state), number in count.items():
        states.add_metric([instance, state], number)
    yield from (states, memory, active)
    yield GaugeMetricFamily("drover_queue_waiting", "Requests that wait.", value=shown.get("waiting", 0))
    yield GaugeMetricFamily(
        "drover_sibling_requests",
        "Requests that the process before a restart still has with a runner.",
        value=shown.get("siblings", {}).get("requests", 0),
    )
    yield GaugeMetricFamily(
        "drover_requests_in_flight", "Forwarded, not ended.", value=shown.get("in_flight", 0)
    )


def _guard(parts: Parts) -> Iterator[Metric]:
    door = parts.door
    if door.ring is not None:
        yield GaugeMetricFamily("drover_keys", "Callers in the keys file.", value=len(door.ring.callers))
    family = CounterMetricFamily("drover_kept_out", "Requests of nobody we know.", labels=["reason"])
    for reason, number in door.refusals.items():
        family.add_metric([reason], number)
    yield family
    yield CounterMetricFamily(
        "drover_slowed_answers", "Answers to wrong keys that had to wait.", value=door.slowed
    )
    yield GaugeMetricFamily(
        "drover_slowed_answers_waiting", "Of them, at the moment.", value=door.throttle.waiting
    )


def _wire(parts: Parts) -> Iterator[Metric]:
    servers = parts.servers
    yield GaugeMetricFamily(
        "drover_connections",
        "Client connections open.",
        value=sum(len(server.connections) for server in servers),
    )
    yield CounterMetricFamily(
        "drover_connections_accepted", "Client connections.", value=sum(server.accepted for server in servers)
    )
    refusals: Counter[str] = Counter()
    for server in servers:
        refusals.update(server.refusals)
    family = CounterMetricFamily("drover_wire_refusals", "Heads refused by the wire.", labels=["code"])
    for code, number in refusals.items():
        family.add_metric([code], number)
    yield family
