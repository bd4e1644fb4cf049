"""What the proxy knows at this moment, as JSON."""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING, Any

from drover_proxy.build import BUILD
from drover_proxy.core.scheduler import Scheduler
from drover_proxy.dialect.names import NameProblem, canonical

if TYPE_CHECKING:
    from drover_proxy.app.parts import Parts

EXPLAINED = 200
"""Lines of a model's story that are shown."""


def readiness(parts: Parts) -> tuple[bool, dict[str, Any]]:
    """Say whether requests can be served, and for each part why not."""
    instances = {
        name: {"up": instance.up, "version": instance.version, "reason": instance.reason}
        for name, instance in parts.instances.items()
    }
    ready = parts.runtime.core is not None and any(item["up"] for item in instances.values())
    return ready, {"ready": ready, "gpus": parts.memory.state, "instances": instances}


def snapshot(parts: Parts) -> dict[str, Any]:
    """Return everything: the core's own snapshot, and what the shell knows beside it."""
    core = parts.runtime.core
    _, report = readiness(parts)
    return {
        "version": parts.metrics.version,
        "build": BUILD,
        "monotonic_seconds": time.monotonic(),
        **report,
        "gpu_faults": parts.memory.faults,
        "runners_listed": {name: instance.listed for name, instance in parts.instances.items()},
        "models": {
            name: {"name": model.name, "blob": model.info.blob, "size_bytes": model.info.size_bytes}
            for name, model in sorted(parts.catalogue.models.items())
        },
        "core": core.snapshot() if core is not None else None,
        "contradictions": _contradictions(core) if core is not None else "",
    }


def _contradictions(core: Scheduler) -> str:
    """Check the scheduler's books against one another; anything but "" is a bug to report."""
    try:
        core.validate()
    except AssertionError as error:
        return str(error)
    return ""


def explain(parts: Parts, model: str) -> dict[str, Any] | None:
    """Tell what happened to a model lately, oldest first; None where there is no such model."""
    core = parts.runtime.core
    try:
        target = parts.catalogue.resolve(canonical(model))
    except NameProblem:
        target = None
    if target is None or core is None:
        return None
    shown = core.snapshot()
    now = time.monotonic()
    return {
        "model": target,
        "runners": [runner for runner in shown["runners"] if runner["model"] == target],
        "waiting": shown["waiting_by_model"].get(target, 0),
        "stuck": shown["stuck"].get(target, ""),
        "story": [
            {"seconds_ago": round(now - entry.now, 3), "request": entry.request, "what": told(entry.what)}
            for entry in core.story(model=target)[-EXPLAINED:]
        ],
    }


def told(what: object) -> str:
    """Return what a line of the story says."""
    return str(what.value if isinstance(what, Enum) else what)
