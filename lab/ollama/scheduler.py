"""Which models are loaded, and who waits for what: Ollama's scheduler with its real habits.

One load at a time, in the order of arrival; what isn't loaded waits behind it, what is loaded is served at
once. Room is made by evicting the model with the shortest keep_alive, and nothing is certain about memory.
Each habit stands in `config.Habits` and can be switched off.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

from lab.ollama import books, log, placement
from lab.ollama import gpus as gpu_state
from lab.ollama.config import Knobs, Settings
from lab.ollama.gotext import gibibytes
from lab.ollama.gpus import Gpu
from lab.ollama.http import Gone
from lab.ollama.memory import Shape, predicted_bytes
from lab.ollama.process import LoadError, Runner, RunnerOptions, Wanted, spawn
from lab.ollama.store import Stored

BUSY = "server busy, please try again.  maximum pending requests exceeded"
ABORTED = "client connection closed before llama-server finished loading, aborting load"
RECOVERY_SECONDS = 5.0
MODELS_PER_GPU = 3
DEFAULT_BATCH = 512


@dataclass(eq=False)
class _Pending:
    model: Stored
    wanted: Wanted
    keep_alive_seconds: float | None
    gone: asyncio.Event
    answer: asyncio.Future[Runner]
    oom_retried: bool = False


class Scheduler:
    """All runners of one server."""

    def __init__(self, settings: Settings, knobs: Knobs) -> None:
        self.settings = settings
        self.knobs = knobs
        self.loaded: dict[str, Runner] = {}
        self.default_context = 4096
        self._max_loaded = settings.max_loaded_models
        self._pending: deque[_Pending] = deque()
        self._arrived = asyncio.Event()
        self._unloaded = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Look at the GPUs once, and begin to serve loads."""
        total = sum(gpu.total_bytes for gpu in self.visible()) - self.settings.gpu_overhead_bytes
        total %= 1 << 64  # unsigned, as the original's: more overhead than memory gives the largest tier
        self.default_context = 262144 if total >= 47 << 30 else 32768 if total >= 23 << 30 else 4096
        log.info("vram-based default context", source="routes.go:2071", total_vram=gibibytes(total),
                 default_num_ctx=self.default_context)  # fmt: skip
        self._spawn(self._serve_pending())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def visible(self) -> list[Gpu]:
        """The GPUs as they are now."""
        if self.settings.llm_library not in {"", "cuda_v12", "cuda_v13"}:
            return []
        return gpu_state.visible(self.settings.cuda_visible_devices)

    # -- what a request sees

    async def acquire(
        self, model: Stored, wanted: Wanted, keep_alive_seconds: float | None, gone: asyncio.Event
    ) -> Runner:
        """A ready runner for a request; the caller gives it back with `done`."""
        runner = self.loaded.get(model.key)
        usable = (
            runner is not None and not gone.is_set() and not await self._needs_reload(runner, model, wanted)
        )
        if runner is not None and usable and self.loaded.get(model.key) is runner:
            return self._use(runner, keep_alive_seconds)
        if len(self._pending) >= self.settings.max_queue:
            raise LoadError(BUSY, 503)
        answer: asyncio.Future[Runner] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(model, wanted, keep_alive_seconds, gone, answer))
        self._arrived.set()
        return await answer

    def done(self, runner: Runner) -> None:
        """A request has ended: start the clock of an idle runner, or unload it."""
        runner.references -= 1
        runner.last_used = time.time()
        if runner.references > 0:
            return
        runner.stop_timer()
        if runner.session_seconds <= 0:
            self._spawn(self._expire(runner))
            return
        runner.expires_at = time.time() + runner.session_seconds
        loop = asyncio.get_running_loop()
        delay = min(runner.session_seconds, 30 * 86400.0)
        runner.timer = loop.call_later(delay, lambda: self._spawn(self._expire(runner)))

    def unload(self, model: Stored) -> None:
        """What keep_alive 0 without a prompt asks for: answered at once, done when idle."""
        runner = self.loaded.get(model.key)
        if runner is None:
            return
        runner.stop_timer()
        runner.expires_at = time.time()
        runner.session_seconds = 0.0
        if runner.references <= 0:
            self._spawn(self._expire(runner))

    async def stop(self) -> None:
        """Kill all runners, as a stopping server does."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in list(self.loaded.values()):
            await runner.kill(self.knobs.habits.late_memory_seconds)
        self.loaded.clear()

    def expire_all(self) -> None:
        """Memory ran out while a model worked: everything idle goes."""
        for runner in list(self.loaded.values()):
            self.unload(runner.model)

    def slots_for(self, model: Stored) -> int:
        """How many requests a model serves at once."""
        return 1 if "completion" not in model.capabilities else self.settings.num_parallel

    # -- inside

    def _use(self, runner: Runner, keep_alive_seconds: float | None) -> Runner:
        runner.references += 1
        runner.stop_timer()
        if keep_alive_seconds is not None:
            runner.session_seconds = keep_alive_seconds
        return runner

    def options(self, model: Stored, wanted: Wanted) -> RunnerOptions:
        """The options that a load would get."""
        context = wanted.num_ctx if wanted.num_ctx is not None else self.settings.context_length
        context = max(4, context or self.default_context)
        if "vision" in model.capabilities:
            context = max(context, 2048)
        trained = model.header.number("context_length")
        if trained and context > trained:
            if wanted.num_ctx is not None or self.settings.context_length:
                log.warn("requested context size too large for model", source="llama_server.go:215",
                         num_ctx=context, n_ctx_train=trained)  # fmt: skip
            context = trained
        batch = wanted.num_batch or DEFAULT_BATCH
        if "embedding" in model.capabilities:
            batch = max(batch, context)
        return RunnerOptions(
            context, batch, wanted.num_gpu, wanted.main_gpu, wanted.use_mmap, wanted.num_thread, wanted.shift
        )

    async def _needs_reload(self, runner: Runner, model: Stored, wanted: Wanted) -> bool:
        if runner.unloading or not await self._ping(runner):
            return True
        if not self.knobs.habits.reload:
            return False
        new = self.options(model, wanted)
        if new.num_gpu < 0 and self.knobs.habits.sticky_num_gpu:
            new = replace(new, num_gpu=runner.options.num_gpu)
        if wanted.num_batch is None and runner.batch_automatic:
            new = replace(new, num_batch=runner.options.num_batch)
        return new != runner.options

    async def _ping(self, runner: Runner) -> bool:
        """Whether the runner answers; a stopped one holds everybody up for a while."""
        if runner.state() == "T":
            async with runner.lock:
                for _ in range(100):
                    await asyncio.sleep(self.knobs.hung_runner_seconds / 100)
                    if runner.state() != "T":
                        break
        return runner.state() not in {"", "T"}

    async def _serve_pending(self) -> None:
        while True:
            while not self._pending:
                self._arrived.clear()
                await self._arrived.wait()
            pending = self._pending.popleft()
            if pending.gone.is_set():
                if not self.knobs.habits.leaked_waiters and not pending.answer.done():
                    pending.answer.set_exception(Gone())
                continue  # the original forgets it here, with its connection, for good
            try:
                runner = await self._schedule(pending)
            except (LoadError, Gone) as problem:
                if not pending.answer.done():
                    pending.answer.set_exception(problem)
                continue
            except Exception as problem:  # noqa: BLE001 - one bad model must not end all loading
                log.error(f"load failed: {problem!r}", source="sched.go:500")
                if not pending.answer.done():
                    pending.answer.set_exception(LoadError(str(problem)))
                continue
            if pending.answer.done():
                runner.references += 1
                self.done(runner)
            else:
                pending.answer.set_result(self._use(runner, pending.keep_alive_seconds))

    async def _schedule(self, pending: _Pending) -> Runner:
        while True:
            runner = self.loaded.get(pending.model.key)
            if runner is not None:
                if not await self._needs_reload(runner, pending.model, pending.wanted):
                    return runner
                log.debug("reloading", source="sched.go:240", runner=runner.model.name.full)
                victim: Runner | None = runner
            elif self._max_loaded and len(self.loaded) >= self._max_loaded:
                log.debug("max runners achieved, unloading one to make room", runner_count=len(self.loaded))
                victim = self._victim()
            else:
                chosen = self._choose(pending)
                if chosen is not None:
                    try:
                        return await self._load(pending, *chosen)
                    except LoadError as error:
                        if "out of memory" not in str(error) or pending.oom_retried or not self.loaded:
                            raise
                        pending.oom_retried = True
                        for other in list(self.loaded.values()):
                            await self._evict(other)
                        continue
                victim = self._victim()
            if victim is None:
                await asyncio.sleep(0.01)  # all are on their way out
            else:
                await self._evict(victim)

    def _victim(self) -> Runner | None:
        runners = [runner for runner in self.loaded.values() if not runner.unloading]
        if not runners:
            return None
        if self.knobs.habits.eviction_order == "lru":
            runners.sort(key=lambda runner: runner.last_used)
        else:
            runners.sort(key=lambda runner: (runner.session_seconds, runner.model.key))
        return next((runner for runner in runners if runner.references <= 0), runners[0])

    async def _evict(self, runner: Runner) -> None:
        """Mark a runner to go, and wait until something has gone: without bound while it is busy."""
        runner.stop_timer()
        runner.session_seconds = 0.0
        self._unloaded.clear()
        if runner.references <= 0:
            self._spawn(self._expire(runner))
        await self._unloaded.wait()

    async def _expire(self, runner: Runner) -> None:
        while runner.references > 0:
            if self.loaded.get(runner.model.key) is not runner or runner.session_seconds > 0:
                return
            await asyncio.sleep(0.01)
        if runner.unloading or self.loaded.get(runner.model.key) is not runner:
            return
        runner.unloading = True
        runner.stop_timer()
        await runner.kill(self.knobs.habits.late_memory_seconds)
        if self.loaded.get(runner.model.key) is runner:
            del self.loaded[runner.model.key]
        if not self.knobs.habits.stale_accounting:
            await self._recovered(runner)
        self._unloaded.set()

    async def _recovered(self, runner: Runner) -> None:
        """Wait until most of a runner's memory is back; with the real accounting this ends at once."""
        wanted = {index: runner.free_at_load.get(index, 0) for index in runner.placement.gpu_bytes}
        deadline = time.monotonic() + RECOVERY_SECONDS
        while time.monotonic() < deadline:
            free = {gpu.index: gpu.free_bytes for gpu in self.visible()}
            others = {
                index: sum(r.placement.gpu_bytes.get(index, 0) for r in self.loaded.values())
                for index in wanted
            }
            if all(free.get(i, 0) + others[i] >= 0.75 * size for i, size in wanted.items()):
                return
            await asyncio.sleep(0.25)

    def _seen(self) -> list[Gpu]:
        """The GPUs with the memory that is free, or that the server believes free."""
        gpus = self.visible()
        return (
            books.believed(gpus, list(self.loaded.values())) if self.knobs.habits.stale_accounting else gpus
        )

    def _choose(self, pending: _Pending) -> tuple[list[Gpu], RunnerOptions] | None:
        """GPUs and options for a load; None when something has to go first."""
        gpus = [] if pending.wanted.num_gpu == 0 else self._seen()
        if not self._max_loaded:
            self._max_loaded = MODELS_PER_GPU * max(1, len(self.visible()))
        model, wanted = pending.model, pending.wanted
        if wanted.main_gpu is not None and len(gpus) > 1 and not 0 <= wanted.main_gpu < len(gpus):
            raise LoadError(
                "llama-server process has terminated: exit status 1: error: invalid value for main_gpu: "
                f"{wanted.main_gpu} (available devices: {len(gpus)})\nerror: failed to load model"
            )
        options, slots = self.options(model, wanted), self.slots_for(model)
        size = model.blob.stat().st_size if model.blob.exists() else 0
        predicted = predicted_bytes(model.header, options.num_ctx, slots, size)
        chosen = placement.select(gpus, predicted, wanted.main_gpu, spread=self.settings.sched_spread)
        if "completion" in model.capabilities:
            if wanted.num_batch is None:
                flash, cells = self.settings.flash_attention != "off", options.num_ctx * slots
                batch = placement.automatic_batch(cells, predicted, chosen, flash_attention=flash)
                options = replace(options, num_batch=batch)
            predicted += placement.surcharge_bytes(options.num_batch)
        partial = 0 < wanted.num_gpu <= model.header.number("block_count", 1)
        if not self.loaded or not chosen or partial:
            return chosen, options
        told = {
            "predicted": gibibytes(predicted),
            "predicted_num_ctx": options.num_ctx * slots,
            "num_batch": options.num_batch,
            "available": gibibytes(placement.available_bytes(chosen)),
        }
        if not placement.fits(predicted, chosen):
            log.info(
                "llama-server model predicted to exceed available memory, evicting",
                source="sched.go:551",
                **told,
            )
            return None
        log.info("llama-server model fits alongside existing models", source="sched.go:563", **told)
        return chosen, options

    async def _load(self, pending: _Pending, gpus: list[Gpu], options: RunnerOptions) -> Runner:
        """Start the runner and wait for it, unless the client who asked for it leaves."""
        work = asyncio.get_running_loop().create_task(self._start_runner(pending, gpus, options))
        left = asyncio.get_running_loop().create_task(pending.gone.wait())
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            if not work.done():
                work.cancel()
        if not work.done() or work.cancelled():
            with contextlib.suppress(asyncio.CancelledError, LoadError):
                await work
            log.warn(ABORTED, source="llama_server.go:1503")
            raise Gone
        runner = work.result()
        self.loaded[pending.model.key] = runner
        return runner

    async def _start_runner(self, pending: _Pending, gpus: list[Gpu], options: RunnerOptions) -> Runner:
        flash, slots = self.settings.flash_attention != "off", self.slots_for(pending.model)
        shape = Shape(options.num_ctx, slots, self.settings.kv_cache_type, options.num_batch, flash)
        faults = self.knobs.models.get(pending.model.name.shortest, {})
        habits = self.knobs.habits
        runner = await spawn(pending.model, options, shape, gpus, self.settings.fit_target_bytes, habits)
        size = pending.model.blob.stat().st_size
        seconds = max(self.knobs.load_seconds_min, size / self.knobs.disk_bytes_per_second)
        try:
            if faults.get("load_hang"):
                await asyncio.sleep(self.settings.load_timeout_seconds)
                raise LoadError("timed out waiting for llama-server to start - ")  # noqa: TRY301
            await asyncio.wait({asyncio.ensure_future(runner.process.wait())},
                               timeout=float(faults.get("load_seconds", seconds)))  # fmt: skip
            if faults.get("load_error"):
                raise LoadError(f"llama-server process has terminated: {faults['load_error']}")  # noqa: TRY301
            if runner.process.returncode is not None:
                raise LoadError("llama-server process has terminated: signal: killed")  # noqa: TRY301
        except BaseException:
            await runner.kill(self.knobs.habits.late_memory_seconds)
            raise
        runner.batch_automatic = pending.wanted.num_batch is None
        runner.session_seconds = self.settings.keep_alive_seconds
        log.info(f"llama-server started in {seconds:.2f} seconds", source="llama_server.go:1531")
        return runner
