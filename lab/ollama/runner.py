"""The child process of a loaded model: it holds the model's memory on the GPUs until it is killed.

It reads its job from the command line, takes the memory under its own pid, says in one line of JSON what
came of it, and then does nothing. Killing `ollama serve` with SIGKILL leaves it an orphan that keeps the
memory, as a real runner does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from lab.gpu.state import StateError, edit
from lab.ollama import gguf
from lab.ollama.gpus import state_path
from lab.ollama.memory import (
    KV_ELEMENT_BYTES,
    Footprint,
    OutOfMemoryError,
    Placement,
    Shape,
    footprint,
    place,
    underreported,
)


def _fail(*lines: str) -> NoReturn:
    for line in lines:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()
    sys.exit(1)


def load(job: dict[str, object]) -> Placement:
    """Take the memory that a job needs; ends the process when it can't be had."""
    blob = Path(str(job["model"]))
    shape = Shape(**job["shape"])  # type: ignore[arg-type]
    if shape.kv_type not in KV_ELEMENT_BYTES:
        _fail(f"error: Unsupported cache type: {shape.kv_type}")
    if shape.kv_type.startswith("q") and not shape.flash_attention:
        _fail("error: quantized V cache requires flash_attn to be enabled", "error: failed to load model")
    try:
        header = gguf.read(blob)
    except (OSError, gguf.NotGgufError):
        header = gguf.Header({}, ())
    if not header.tensors:
        _fail(f"error loading model: unknown model architecture: '{header.architecture}'",
              "error: failed to load model")  # fmt: skip
    need = footprint(header, shape, blob.stat().st_size)
    wanted = [int(index) for index in job["gpus"]]  # type: ignore[attr-defined]
    num_gpu, target = int(str(job["num_gpu"])), int(str(job["fit_target_bytes"]))
    if not wanted or num_gpu == 0:
        return _told(job, place(need, {}, -1, target), need)
    try:
        with edit(state_path()) as state:
            free = {gpu.index: gpu.free_bytes() for gpu in state.gpus if gpu.index in wanted}
            placement = place(need, free, num_gpu, target)
            if placement.gpu_layers < placement.layers and not job["silent_spill"]:
                _fail("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory")
            for gpu in state.gpus:
                gpu.forget_the_dead()
                if size := placement.gpu_bytes.get(gpu.index, 0):
                    gpu.procs[os.getpid()] = size
    except OutOfMemoryError as error:
        _fail(f"ggml_backend_cuda_buffer_type_alloc_buffer: {error}", "error: failed to load model")
    except (OSError, StateError) as error:
        _fail(
            f"error: the simulated GPUs in {state_path()} can't be used: {error}. "
            "Ollama's unit must be allowed to write to that folder (ReadWritePaths=)."
        )
    return _told(job, placement, need)


def _told(job: dict[str, object], placement: Placement, need: Footprint) -> Placement:
    return underreported(placement, need) if job["windowed_underreport"] else placement


def main(arguments: list[str]) -> None:
    """`ollama runner JOB`."""
    os.setpgrp()  # Ctrl-C in the terminal is for the server, which then kills its runners
    placement = load(json.loads(arguments[0]))
    sys.stderr.write(f"load_tensors: offloaded {placement.gpu_layers}/{placement.layers} layers to GPU\n")
    sys.stdout.write(json.dumps(asdict(placement)) + "\n")
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)  # an orphan must not hold its parent's pipes open
    while True:
        signal.pause()
