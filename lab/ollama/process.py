"""Starting, watching and killing the runner process of one loaded model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.gpu.state import StateError, release
from lab.ollama import log
from lab.ollama.config import Habits
from lab.ollama.gpus import Gpu, state_path, visible
from lab.ollama.memory import Placement, Shape
from lab.ollama.store import Stored


class LoadError(Exception):
    """A model could not be loaded; the text is what the client is told."""

    def __init__(self, text: str, status: int = 500) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Wanted:
    """What a request asks of the runner."""

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int = -1
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int = 0
    shift: bool = True


@dataclass(frozen=True)
class RunnerOptions:
    """The options that a runner is started with; a change of one means a reload."""

    num_ctx: int
    num_batch: int
    num_gpu: int = -1
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int = 0
    shift: bool = True


@dataclass
class Runner:
    """A model with its process."""

    model: Stored
    options: RunnerOptions
    slots_total: int
    placement: Placement
    process: asyncio.subprocess.Process
    free_at_load: dict[int, int]
    session_seconds: float = 0.0
    expires_at: float = 0.0
    last_used: float = 0.0
    references: int = 0
    timer: asyncio.TimerHandle | None = None
    unloading: bool = False
    batch_automatic: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.slots_total)

    @property
    def pid(self) -> int:
        """The runner's process id."""
        return self.process.pid

    @property
    def cpu_part(self) -> float:
        """How much of it runs on the CPU."""
        return 1.0 - self.placement.gpu_layers / self.placement.layers

    def state(self) -> str:
        """The process's state as /proc tells it: `T` stopped; empty when it is gone."""
        if self.process.returncode is not None:
            return ""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return ""
        state = stat.rpartition(")")[2].split()[0]
        return "" if state in "ZX" else state

    def stop_timer(self) -> None:
        """Forget the time at which it would have been unloaded."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    async def kill(self, late_seconds: float) -> None:
        """End the process as Ollama does, without asking."""
        if late_seconds > 0:
            for index in self.placement.gpu_bytes:
                with contextlib.suppress(OSError, StateError):
                    release(state_path(), index, self.pid, late_seconds)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


def _command(job: str) -> tuple[list[str], dict[str, str]]:
    """How to start ourselves again as a runner: from a zip archive (a release) or from the source tree."""
    import lab  # noqa: PLC0415 - only to find out where it was loaded from

    root = Path(str(next(iter(lab.__path__)))).parent
    environment = dict(os.environ)
    if zipfile.is_zipfile(root):
        return [sys.executable, "-S", str(root), "runner", job], environment
    environment["PYTHONPATH"] = str(root)
    return [sys.executable, "-S", "-m", "lab.ollama", "runner", job], environment


def _died(code: int, stderr: str) -> LoadError:
    if code < 0:
        names = {9: "killed", 11: "segmentation fault", 6: "aborted", 15: "terminated"}
        how = f"signal: {names.get(-code, signal.strsignal(-code) or str(-code)).lower()}"
    else:
        how = f"exit status {code}"
    told = "\n".join(
        line for line in stderr.splitlines() if line.startswith("error") or "out of memory" in line
    )
    return LoadError(f"llama-server process has terminated: {how}" + (f": {told}" if told else ""))


async def spawn(
    model: Stored,
    options: RunnerOptions,
    shape: Shape,
    gpus: list[Gpu],
    fit_target_bytes: int,
    habits: Habits,
) -> Runner:
    """Start a runner and wait until it has its memory; LoadError when it dies over it."""
    job = {
        "model": str(model.blob),
        "shape": asdict(shape),
        "gpus": [gpu.index for gpu in gpus],
        "num_gpu": options.num_gpu,
        "fit_target_bytes": fit_target_bytes,
        "silent_spill": habits.silent_spill,
        "windowed_underreport": habits.windowed_underreport,
    }
    shown = {gpu.index: gpu.free_bytes for gpu in visible(os.environ.get("CUDA_VISIBLE_DEVICES"))}
    command, environment = _command(json.dumps(job))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = await process.stdout.readline()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if not line:
        stderr = (await process.stderr.read()).decode(errors="replace")
        sys.stderr.write(stderr)
        raise _died(await process.wait(), stderr)
    told = (await process.stderr.readline()).decode(errors="replace")
    sys.stderr.write(told)
    data = json.loads(line)
    data["gpu_bytes"] = {int(index): size for index, size in data["gpu_bytes"].items()}
    log.debug("starting runner", source="llama_server.go:446", pid=process.pid, model=model.blob)
    return Runner(
        model=model,
        options=options,
        slots_total=shape.slots,
        placement=Placement(**data),
        process=process,
        free_at_load={gpu.index: shown.get(gpu.index, gpu.free_bytes) for gpu in gpus},
    )
