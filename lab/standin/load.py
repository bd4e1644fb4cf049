"""Loading a model: how its layers fall, the memory taken, and the log lines that Ollama adds up."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lab.gpu.state import edit
from lab.ollama import gguf
from lab.ollama.gpus import Gpu, state_path
from lab.ollama.memory import (
    CUDA_CONTEXT_BYTES,
    KV_ELEMENT_BYTES,
    Footprint,
    OutOfMemoryError,
    Placement,
    Shape,
    footprint,
    place,
)
from lab.standin.devices import mebibytes, say


@dataclass(frozen=True)
class Loaded:
    """A model that stands ready."""

    path: Path
    header: gguf.Header
    placement: Placement
    slots: int
    context: int

    @property
    def name(self) -> str:
        """The model's own name."""
        return str(self.header.keys.get("general.name", self.path.name))

    @property
    def cpu_part(self) -> float:
        """How much of it runs on the CPU."""
        return 1.0 - self.placement.gpu_layers / self.placement.layers


def fail(*lines: str) -> NoReturn:
    """End as llama-server does when a model can't be loaded."""
    for line in lines:
        say(line)
    sys.stderr.flush()
    os._exit(1)


def _shape(arguments: dict[str, str]) -> Shape:
    slots = int(arguments.get("-np", "1"))
    kv_type = arguments.get("--cache-type-k", "f16")
    if kv_type not in KV_ELEMENT_BYTES:
        fail(f"error: Unsupported cache type: {kv_type}")
    flash = arguments.get("--flash-attn", "auto") != "off"
    if kv_type.startswith("q") and not flash:
        fail("llama_init_from_model: V cache quantization requires flash_attn",
             "error: failed to create context with model")  # fmt: skip
    return Shape(
        int(arguments.get("-c", "4096")) // slots, slots, kv_type, int(arguments.get("-ub", "512")), flash
    )


def load(arguments: dict[str, str], gpus: list[Gpu]) -> Loaded:
    """Take the memory for the model that the arguments name, and say what llama.cpp would say."""
    path = Path(arguments["--model"])
    shape = _shape(arguments)
    header = gguf.read(path)
    if not header.number("block_count"):
        fail(f"llama_model_load: error loading model: unknown model architecture: '{header.architecture}'",
             "error: failed to load model")  # fmt: skip
    if arguments.get("--split-mode") == "none" and gpus:
        main = int(arguments.get("--main-gpu", "0"))
        if main >= len(gpus):
            fail(f"error: invalid value for main_gpu: {main} (available devices: {len(gpus)})",
                 "error: failed to load model")  # fmt: skip
        gpus = [gpus[main]]
    need = footprint(header, shape, path.stat().st_size)
    names = {gpu.index: f"CUDA{position}" for position, gpu in enumerate(gpus)}
    for gpu in gpus:
        say(
            f"llama_model_load_from_file_impl: using device {names[gpu.index]} ({gpu.name}) "
            f"(0000:{gpu.index + 1:02x}:00.0) - {mebibytes(gpu.free_bytes)} MiB free"
        )
    forced = int(arguments.get("-ngl", "-1"))
    inside = header if arguments.get("--mmproj") == arguments["--model"] else None
    try:
        placement = _take(need, gpus, forced, _projector_bytes(inside))
    except OutOfMemoryError as error:
        fail(f"ggml_backend_cuda_buffer_type_alloc_buffer: {error}",
             "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
             f"error: failed to load model '{path}'")  # fmt: skip
    _report(need, placement, names)
    return Loaded(path, header, placement, shape.slots, shape.context)


def _projector_bytes(header: gguf.Header | None) -> int:
    """What a projector takes that is in the model's own file."""
    tensors = header.tensors if header is not None else ()
    return sum(tensor.size_bytes for tensor in tensors if tensor.name.startswith(("v.", "mm.", "a.")))


def _take(need: Footprint, gpus: list[Gpu], forced: int, projector_bytes: int) -> Placement:
    """Take memory for as many layers as fit.

    Ollama lets room be left for a projector, which is loaded last; here it is among the weights already.
    """
    target = int(os.environ.get("LLAMA_ARG_FIT_TARGET", "1024").partition(",")[0]) << 20
    target = max(min(target, 1 << 30), target - projector_bytes)
    if not gpus or forced == 0:
        return place(need, {}, -1, target)
    with edit(state_path()) as state:
        free = {gpu.index: gpu.free_bytes() for gpu in state.gpus if gpu.index in {g.index for g in gpus}}
        placement = place(need, free, forced, target)
        for gpu in state.gpus:
            gpu.forget_the_dead()
            if size := placement.gpu_bytes.get(gpu.index, 0):
                gpu.procs[os.getpid()] = size
    return placement


def _report(need: Footprint, placement: Placement, names: dict[int, str]) -> None:
    """The lines from which Ollama learns how much went where."""
    on_gpu, layers = placement.gpu_layers, placement.layers
    say(f"load_tensors: offloading {max(0, on_gpu - 1)} repeating layers to GPU")
    say(f"load_tensors: offloaded {on_gpu}/{layers} layers to GPU")

    def buffer(component: str, backend: str, kind: str, size: float) -> None:
        say(f"{component}: {backend:>12} {kind} buffer size = {size / (1 << 20):8.2f} MiB")

    weights_part = need.weights_bytes / (need.weights_bytes + need.kv_bytes)
    for index, size in placement.gpu_bytes.items():
        layered = size - need.compute_bytes - CUDA_CONTEXT_BYTES
        buffer("load_tensors", names[index], "model", layered * weights_part)
        cache = layered * (1 - weights_part)
        if need.kv_overwritten_bytes:  # two caches, two lines of the same name: Ollama keeps the second
            whole = cache * need.kv_overwritten_bytes / need.kv_bytes
            buffer("llama_kv_cache", names[index], "KV", whole)
            cache -= whole
        buffer("llama_kv_cache", names[index], "KV", cache)
        buffer("llama_context", names[index], "compute", need.compute_bytes)
    left = (layers - on_gpu) / layers
    buffer("load_tensors", "CPU_Mapped", "model", max(need.weights_bytes * left, 1 << 19))
    if left:
        buffer("llama_kv_cache", "CPU", "KV", (need.kv_bytes - need.kv_overwritten_bytes) * left)
    buffer("llama_context", "CUDA_Host" if names else "CPU", "compute", 20 << 20)
