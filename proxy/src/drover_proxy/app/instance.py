"""One Ollama instance: whether it answers, which runners it has, and its loads and unloads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from drover_proxy.app.catalogue import Catalogue
from drover_proxy.app.runtime import Runtime
from drover_proxy.config.model import InstanceConfig
from drover_proxy.core.commands import Load, Unload
from drover_proxy.core.events import (
    InstanceDown,
    InstanceUp,
    LoadFailed,
    LoadFinished,
    RunnerSeen,
    RunnersObserved,
    UnloadFailed,
    UnloadObserved,
)
from drover_proxy.dialect.names import NameProblem, canonical
from drover_proxy.drivers.ending import end
from drover_proxy.drivers.nvml import grown
from drover_proxy.drivers.ollama import OllamaClient, OllamaError, load_fault
from drover_proxy.wire import Upstream

PROBE_UP_SECONDS = 1.0
PROBE_DOWN_SECONDS = 0.3
SILENT_PROBES = 5
"""An instance that is busy may be slow to answer; one that refuses connections is down at once."""
OBSERVE_SECONDS = 2.0
GONE_POLL_SECONDS = 0.05

Processes = Callable[[tuple[str, ...]], Awaitable[dict[int, int]]]


class Instance:
    """Drives one instance and reports to the runtime."""

    def __init__(
        self, config: InstanceConfig, runtime: Runtime, catalogue: Catalogue, processes: Processes
    ) -> None:
        self.config = config
        self.name = config.name
        self.label = config.name.encode("ascii")
        self.client = OllamaClient(config.name, config.url)
        self.upstream = Upstream(
            config.name, config.host, config.port, host_header=f"localhost:{config.port}".encode()
        )
        self.gpu_uuids: tuple[str, ...] = ()
        self.up = False
        self.reason = "not asked yet"
        self.version = ""
        self.listed: list[dict[str, Any]] = []
        """The last answer of /api/ps, for whom it is slow."""
        self._runtime = runtime
        self._catalogue = catalogue
        self._processes = processes
        self._measured: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._probe_now = asyncio.Event()
        self._announced = False
        self._silent = 0
        self._observed_at = 0.0

    def start(self) -> None:
        """Begin to watch it."""
        self._spawn(self._watch())

    async def stop(self) -> None:
        """Stop watching. Ollama aborts a load under way when the call that asked for it goes."""
        await end(self._tasks)
        self.upstream.close()

    def suspect(self) -> None:
        """Ask at once whether it still answers: a request has failed there."""
        self._probe_now.set()

    def announce(self) -> None:
        """Tell the core anew what is known: it has just begun, or begun again."""
        self._announced = False
        self._probe_now.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        while True:
            try:
                await self._probe()
            except Exception as error:  # noqa: BLE001 - an instance that nobody watches would be lost for good
                self._runtime.metrics.alerts["watch_error"] += 1
                self._runtime.log.write("error", "watch_error", instance=self.name, error=repr(error))
            self._probe_now.clear()
            pause = PROBE_UP_SECONDS if self.up else PROBE_DOWN_SECONDS
            try:
                await asyncio.wait_for(self._probe_now.wait(), pause)
            except asyncio.TimeoutError:
                continue

    async def _probe(self) -> None:
        try:
            self.version = await self.client.version()
        except OllamaError as error:
            self._silent += 1
            if error.refused or self._silent >= SILENT_PROBES or not self.up:
                self._went_down(error.message)
            return
        self._silent = 0
        if not self._announced or time.monotonic() - self._observed_at >= OBSERVE_SECONDS:
            self._observed_at = time.monotonic()
            await self._seen_up()

    async def _seen_up(self) -> None:
        if not self.up:
            self.up = True
            self.reason = ""
            self._runtime.log.info("instance_up", instance=self.name, version=self.version)
            await self._catalogue.look_again()  # the core must know a model before its runner
        if self._catalogue.read_at is None and not await self._catalogue.refresh():
            return
        if not self._announced and self._runtime.core is not None:
            self._announced = True
            self._runtime.post(InstanceUp(self.name, self.version))
        await self.observe()

    def _went_down(self, reason: str) -> None:
        if self.up:
            self._runtime.log.warning("instance_down", instance=self.name, reason=reason)
        self.reason = reason
        if self.up or self._announced:
            self.up = False
            self._announced = False
            self.listed = []
            self._measured.clear()
            self._runtime.post(InstanceDown(self.name, reason))

    async def observe(self) -> bool:
        """Read /api/ps and tell the core; False when it didn't answer, and the last list stays in force."""
        began_at = time.monotonic()
        try:
            self.listed = await self.client.ps()
        except OllamaError:
            return False
        runners = tuple(self._runner(entry) for entry in self.listed)
        self._runtime.post(RunnersObserved(self.name, runners, sampled_at=began_at))
        return True

    def _runner(self, entry: dict[str, Any]) -> RunnerSeen:
        model = self._catalogue.shown(_canonical(str(entry.get("name", ""))))
        return RunnerSeen(
            model=model,
            size_bytes=int(entry.get("size") or 0),
            size_vram_bytes=int(entry.get("size_vram") or 0),
            context=int(entry.get("context_length") or 0),
            measured_bytes=self._measured.get(self._catalogue.blob(model)),
        )

    def taken_bytes(self) -> int:
        """Return what its runners take on its GPUs: measured, else as /api/ps says."""
        taken = 0
        for entry in self.listed:
            blob = self._catalogue.blob(_canonical(str(entry.get("name", ""))))
            taken += self._measured.get(blob) or int(entry.get("size_vram") or 0)
        return taken

    def _find(self, model: str) -> dict[str, Any] | None:
        blob = self._catalogue.blob(model)
        for entry in self.listed:
            name = _canonical(str(entry.get("name", "")))
            if name == model or self._catalogue.blob(name) == blob:
                return entry
        return None

    def load(self, command: Load) -> None:
        """Begin a load that nobody's leaving can abort."""
        self._runtime.hurry(True)  # noqa: FBT003 - the callback's only argument
        self._spawn(self._load(command))

    async def _load(self, command: Load) -> None:
        runtime = self._runtime
        began_at = time.monotonic()
        runtime.busy_loaders += 1
        try:
            before = await self._processes(self.gpu_uuids)
            await self.client.load(
                command.model,
                command.options,
                embedding_only=command.embedding_only,
                timeout_seconds=command.timeout_seconds,
            )
            seen = await self._loaded(command, before)
        except OllamaError as error:
            fault = load_fault(error)
            runtime.metrics.loads[self.name, fault.reason] += 1
            runtime.log.write(
                "error",
                "load_failed",
                instance=self.name,
                model=command.model,
                reason=fault.reason,
                error=fault.message,
            )
            runtime.post(LoadFailed(self.name, command.model, fault.reason, fault.message, fault.retryable))
            return
        except Exception as bug:  # noqa: BLE001 - whoever waits for this load must hear of its end
            runtime.log.write("error", "load_error", instance=self.name, model=command.model, error=repr(bug))
            message = "the proxy failed in this load; see its log"
            runtime.post(LoadFailed(self.name, command.model, "internal", message, retryable=False))
            return
        finally:
            runtime.busy_loaders -= 1
        seconds = time.monotonic() - began_at
        runtime.metrics.loads[self.name, "ok"] += 1
        runtime.metrics.load_duration.observe(seconds)
        runtime.log.info(
            "load_finished",
            instance=self.name,
            model=command.model,
            seconds=round(seconds, 3),
            size_bytes=seen.size_bytes,
            size_vram_bytes=seen.size_vram_bytes,
            measured_bytes=seen.measured_bytes,
            context=seen.context,
        )
        runtime.post(LoadFinished(self.name, command.model, seen))

    async def _loaded(self, command: Load, before: dict[int, int]) -> RunnerSeen:
        measured = grown(before, await self._processes(self.gpu_uuids))
        if measured is not None:
            self._measured[self._catalogue.blob(command.model)] = measured
        try:
            self.listed = await self.client.ps()
        except OllamaError:
            entry = None
        else:
            entry = self._find(command.model)
        if entry is None:
            # Ollama said that it is loaded; the next observation will tell whether it was so.
            size = command.predicted_bytes
            return RunnerSeen(command.model, size, size, command.context, measured)
        seen = self._runner(entry)
        return RunnerSeen(command.model, seen.size_bytes, seen.size_vram_bytes, seen.context, measured)

    def unload(self, command: Unload) -> None:
        """Begin an unload."""
        self._runtime.hurry(True)  # noqa: FBT003 - as above
        self._spawn(self._unload(command))

    async def _unload(self, command: Unload) -> None:
        runtime = self._runtime
        runtime.busy_loaders += 1
        limit = runtime.config.loads.unload_timeout_seconds if runtime.config else 30.0
        deadline = time.monotonic() + limit
        message = f"still listed by /api/ps after {limit:g} s"
        try:
            await self.client.unload(command.model)
            while time.monotonic() < deadline:
                self.listed = await self.client.ps()
                if self._find(command.model) is None:
                    self._measured.pop(self._catalogue.blob(command.model), None)
                    runtime.metrics.unloads[self.name, "ok"] += 1
                    runtime.post(UnloadObserved(self.name, command.model))
                    return
                await asyncio.sleep(GONE_POLL_SECONDS)
        except OllamaError as error:
            message = error.message
        except Exception as bug:  # noqa: BLE001 - as for a load
            message = repr(bug)
        finally:
            runtime.busy_loaders -= 1
        runtime.metrics.unloads[self.name, "failed"] += 1
        runtime.log.write("error", "unload_failed", instance=self.name, model=command.model, error=message)
        runtime.post(UnloadFailed(self.name, command.model, message))


def _canonical(name: str) -> str:
    try:
        return canonical(name)
    except NameProblem:
        return name.casefold()
