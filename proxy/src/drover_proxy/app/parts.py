"""What the pieces of the shell share: one object, made by the service, read by everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from drover_proxy.admin.metrics import Metrics
from drover_proxy.app.catalogue import Catalogue
from drover_proxy.app.instance import Instance
from drover_proxy.app.memory import Memory
from drover_proxy.app.rejections import Rejections
from drover_proxy.app.runtime import Runtime
from drover_proxy.config.model import ProxyConfig
from drover_proxy.drivers.log import Log
from drover_proxy.guard.door import Door
from drover_proxy.wire import Server


@dataclass
class Parts:
    """The running proxy."""

    config: ProxyConfig
    log: Log
    metrics: Metrics
    runtime: Runtime
    catalogue: Catalogue
    memory: Memory
    door: Door
    instances: dict[str, Instance] = field(default_factory=dict)
    servers: list[Server] = field(default_factory=list)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    rejections: Rejections = field(init=False)

    def __post_init__(self) -> None:
        self.rejections = Rejections(self.log)

    def up(self) -> Iterator[Instance]:
        """Yield the instances that answer, in the order of the configuration."""
        return iter([instance for instance in self.instances.values() if instance.up])

    def any_up(self) -> Instance | None:
        """Return an instance that answers: they all share one models directory."""
        return next(self.up(), None)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in the background, and keep it from being collected."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.metrics.alerts["task_error"] += 1
            self.log.error("task_error", task=task.get_name(), error=repr(error))

    def taken(self, uuid: str) -> int:
        """Return what our runners take on a GPU, as far as known; shared evenly over an instance's GPUs."""
        total = 0
        for instance in self.instances.values():
            if uuid in instance.gpu_uuids:
                total += instance.taken_bytes() // len(instance.gpu_uuids)
        return total
