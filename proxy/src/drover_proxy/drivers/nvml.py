"""NVML: who the GPUs are and what is free on them, read in one thread that may hang without harm.

Only cheap calls run at an interval (memory, about 12 µs a GPU). The list of processes costs milliseconds and
a lock of the whole driver, so it is read only around a load. GPUs are known by UUID: indexes may move at a
reboot.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml

STATES = {
    4: "no permission to read the GPUs (NVML error 4): see the groups of the service's user",
    9: "the NVIDIA driver is not loaded (NVML error 9): see `dmesg`, `modprobe nvidia`",
    12: "libnvidia-ml.so.1 is not installed (NVML error 12): install the driver",
    15: "a GPU has fallen off the bus (NVML error 15): see `dmesg` for its Xid; a reboot is needed",
    16: "a GPU needs a reset (NVML error 16): see `nvidia-smi -q` for the recovery action",
    18: "driver and library differ in version (NVML error 18): reboot, or restart drover-proxy",
}
FAST_SECONDS = 0.2
"""Between samples while something waits for memory."""
SLOW_SECONDS = 1.0
REOPEN_SECONDS = 5.0
"""How often NVML is begun anew while no GPU answers."""
STALE_SECONDS = 5.0
"""A sample older than this says that NVML hangs."""


class NvmlUnavailable(Exception):  # noqa: N818 - a state rather than a fault
    """NVML can't be asked; the message says why and what to look at."""


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """One GPU as NVML knows it."""

    index: int
    uuid: str
    name: str
    total_bytes: int


@dataclass(frozen=True, slots=True)
class GpuReading:
    """Memory of one GPU at one moment."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory of all GPUs that answered, and what is wrong with those that didn't."""

    began_at: float
    gpus: Mapping[str, GpuReading]
    faults: Mapping[str, str]


def _why(error: Exception) -> str:
    code = int(getattr(error, "value", 0))
    return STATES.get(code, f"NVML error {code}: {error}")


class Nvml:
    """The host's GPUs through nvidia-ml-py. Every method blocks: call it from a thread."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._opened_at = 0.0

    def identify(self) -> list[GpuIdentity]:
        """Start NVML and list the GPUs; NvmlUnavailable where that can't be done yet."""
        with self._lock:
            try:
                pynvml.nvmlInit()
                found = []
                for index in range(pynvml.nvmlDeviceGetCount()):
                    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                    uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
                    total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
                    self._handles[uuid] = handle
                    found.append(GpuIdentity(index, uuid, _text(pynvml.nvmlDeviceGetName(handle)), total))
            except pynvml.NVMLError as error:
                raise NvmlUnavailable(_why(error)) from error
            except (OSError, AttributeError) as error:
                raise NvmlUnavailable(f"NVML can't be used: {error}") from error
            return found

    def sample(self) -> Sample:
        """Read the memory of every GPU; a GPU that fails doesn't hide the others."""
        began_at = time.monotonic()
        gpus: dict[str, GpuReading] = {}
        faults: dict[str, str] = {}
        for uuid, handle in self._handles.items():
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                gpus[uuid] = GpuReading(int(memory.total), int(memory.free))
            except pynvml.NVMLError as error:  # noqa: PERF203 - each GPU fails by itself
                faults[uuid] = _why(error)
        if faults and not gpus and began_at - self._opened_at >= REOPEN_SECONDS:
            self._opened_at = began_at
            self._reopen()
        return Sample(began_at, gpus, faults)

    def _reopen(self) -> None:
        """Begin anew where no GPU answers any more: the driver may have been taken away and come back."""
        with self._lock, contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
        with contextlib.suppress(NvmlUnavailable):
            self.identify()

    def processes(self, uuids: tuple[str, ...]) -> dict[int, int]:
        """Return what each process takes on these GPUs together; empty where NVML won't say."""
        taken: dict[int, int] = {}
        for uuid in uuids:
            try:
                running = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handles[uuid])
            except (pynvml.NVMLError, KeyError):
                return {}
            for process in running:
                if process.usedGpuMemory is None:
                    return {}
                taken[int(process.pid)] = taken.get(int(process.pid), 0) + int(process.usedGpuMemory)
        return taken

    def close(self) -> None:
        """Give NVML back."""
        with self._lock, contextlib.suppress(pynvml.NVMLError):
            if self._handles:
                pynvml.nvmlShutdown()
            self._handles.clear()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class Sampler(threading.Thread):
    """Reads the memory at an interval and hands each sample over."""

    def __init__(self, nvml: Nvml, hand_over: Callable[[Sample], None]) -> None:
        super().__init__(name="nvml", daemon=True)  # a call that hangs in the driver must not hold the exit
        self._nvml = nvml
        self._hand_over = hand_over
        self._wake = threading.Event()
        self._ended = False
        self._fast = False

    def hurry(self, fast: bool) -> None:
        """Sample fast while something waits for memory."""
        if fast and not self._fast:
            self._wake.set()
        self._fast = fast

    def run(self) -> None:
        """Sample until stopped."""
        while not self._ended:
            self._hand_over(self._nvml.sample())
            self._wake.wait(FAST_SECONDS if self._fast else SLOW_SECONDS)
            self._wake.clear()

    def stop(self) -> None:
        """End the thread, without waiting for a call that hangs."""
        self._ended = True
        self._wake.set()
        self.join(timeout=1.0)


def grown(before: Mapping[int, int], after: Mapping[int, int]) -> int | None:
    """Tell what a load took: the memory of the processes that are new, else None.

    Other processes may have grown or shrunk meanwhile; a runner is always a process of its own.
    """
    new = sum(size for pid, size in after.items() if pid not in before)
    return new or None
