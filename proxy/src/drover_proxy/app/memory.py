"""The GPUs' memory: NVML's samples turned into events, or the configured figures where there is no NVML."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from drover_proxy.config.model import GpuConfig
from drover_proxy.core.config import Gpu
from drover_proxy.core.events import Event, GpuMemory, MemoryObserved
from drover_proxy.drivers.log import Log
from drover_proxy.drivers.nvml import (
    STALE_SECONDS,
    GpuIdentity,
    Nvml,
    NvmlUnavailable,
    Sample,
    Sampler,
)

RETRY_SECONDS = 2.0
PROCESSES_SECONDS = 3.0


class Taken(Protocol):
    """What is known to be in a GPU: one entry a runner."""

    def __call__(self, uuid: str, /) -> int:
        """Return the bytes that our runners take on this GPU."""


class Memory:
    """Finds the GPUs and reports their memory to the core."""

    def __init__(self, log: Log, post: Callable[[Event], None], taken: Taken) -> None:
        self.gpus: tuple[Gpu, ...] = ()
        self.names: dict[str, str] = {}
        self.state = "not asked yet"
        """`ok`, or why the memory of the GPUs isn't known."""
        self.latest: dict[str, GpuMemory] = {}
        self.latest_at = 0.0
        self.faults: dict[str, str] = {}
        self._log = log
        self._post = post
        self._taken = taken
        self._nvml: Nvml | None = None
        self._sampler: Sampler | None = None
        self._loop = asyncio.get_running_loop()

    async def find(self, configured: tuple[GpuConfig, ...] | None) -> tuple[Gpu, ...]:
        """Return the host's GPUs; with NVML, wait for it for as long as it takes."""
        if configured is not None:
            self.gpus = tuple(Gpu(gpu.uuid, gpu.total_bytes) for gpu in configured)
            self.state = "ok"
            return self.gpus
        self._nvml = Nvml()
        while True:
            found = await asyncio.to_thread(_identify, self._nvml)
            if isinstance(found, list):
                return self._found(found)
            if self.state != found:
                self.state = found
                self._log.error("nvml_unavailable", reason=found)
            await asyncio.sleep(RETRY_SECONDS)

    def _found(self, found: list[GpuIdentity]) -> tuple[Gpu, ...]:
        self.gpus = tuple(Gpu(gpu.uuid, gpu.total_bytes) for gpu in found)
        self.names = {gpu.uuid: gpu.name for gpu in found}
        self.state = "ok"
        for gpu in found:
            self._log.info("gpu", index=gpu.index, uuid=gpu.uuid, name=gpu.name, total_bytes=gpu.total_bytes)
        return self.gpus

    def start(self) -> None:
        """Begin to sample."""
        if self._nvml is not None:
            self._sampler = Sampler(self._nvml, self._hand_over)
            self._sampler.start()
        else:
            self.hurry(fast=False)

    def stop(self) -> None:
        """Stop sampling."""
        if self._sampler is not None:
            self._sampler.stop()
        if self._nvml is not None:
            self._nvml.close()

    def hurry(self, fast: bool) -> None:
        """Sample fast while something waits for memory. Configured GPUs are reckoned on every tick."""
        if self._sampler is not None:
            self._sampler.hurry(fast)
            self._check_age()
        elif self._nvml is None and self.gpus:
            gpus = {
                gpu.uuid: GpuMemory(gpu.total_bytes, max(0, gpu.total_bytes - self._taken(gpu.uuid)))
                for gpu in self.gpus
            }
            self._observe(gpus, time.monotonic())

    async def processes(self, uuids: Iterable[str]) -> dict[int, int]:
        """Return what each process takes on these GPUs; empty where that isn't known, or NVML hangs."""
        if self._nvml is None:
            return {}
        try:
            return await asyncio.wait_for(
                asyncio.to_thread(self._nvml.processes, tuple(uuids)), PROCESSES_SECONDS
            )
        except asyncio.TimeoutError:
            return {}

    def _hand_over(self, sample: Sample) -> None:
        # Called from the sampler's thread; the loop may be closed already at the very end.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, sample)

    def _take(self, sample: Sample) -> None:
        for uuid, fault in sample.faults.items():
            if self.faults.get(uuid) != fault:
                self._log.error("gpu_fault", gpu=uuid, reason=fault)
        for uuid in self.faults.keys() - sample.faults.keys():
            self._log.info("gpu_back", gpu=uuid)
        self.faults = dict(sample.faults)
        gpus = {}
        for uuid, reading in sample.gpus.items():
            foreign = reading.total_bytes - reading.free_bytes - self._taken(uuid)
            gpus[uuid] = GpuMemory(reading.total_bytes, reading.free_bytes, max(0, foreign))
        for uuid in sample.faults:
            # Nothing can be put on a GPU that doesn't answer.
            total = next((gpu.total_bytes for gpu in self.gpus if gpu.uuid == uuid), 0)
            gpus[uuid] = GpuMemory(total, 0, 0)
        self._observe(gpus, sample.began_at)

    def _observe(self, gpus: dict[str, GpuMemory], at: float) -> None:
        self.latest = gpus
        self.latest_at = at
        if self.state != "ok":
            self._log.info("nvml_back")
            self.state = "ok"
        self._post(MemoryObserved(gpus, sampled_at=at))

    def _check_age(self) -> None:
        age = time.monotonic() - self.latest_at
        if self.latest_at and age > STALE_SECONDS and self.state == "ok":
            self.state = f"NVML has not answered for {age:.0f} s: the driver may hang (see `dmesg`)"
            self._log.error("nvml_hangs", reason=self.state)


def _identify(nvml: Nvml) -> list[GpuIdentity] | str:
    try:
        return nvml.identify()
    except NvmlUnavailable as error:
        return str(error)
