"""What Ollama asks of `llama-server` about GPUs: a banner, and `--list-devices`."""

from __future__ import annotations

import os
import sys
import time

from lab.ollama.gpus import Gpu, visible

ARCHITECTURES = "750,800,860,890,900,1000,1030,1100,1200,1210"
DISCOVERY_SECONDS = 30.0


def say(line: str) -> None:
    """A line for Ollama's log reader: whole and at once."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def seen() -> list[Gpu]:
    """The GPUs that the CUDA backend shows; without the backend there is only the CPU."""
    if "cuda" not in os.path.basename(os.environ.get("GGML_BACKEND_PATH", "")):  # noqa: PTH119 - a plain string
        return []
    return visible(os.environ.get("CUDA_VISIBLE_DEVICES"))


def mebibytes(size_bytes: int) -> int:
    """Whole MiB."""
    return size_bytes >> 20


def banner() -> list[Gpu]:
    """Say which GPUs there are, in llama.cpp's words."""
    gpus = seen()
    if gpus:
        total = sum(mebibytes(gpu.total_bytes) for gpu in gpus)
        say(f"ggml_cuda_init: found {len(gpus)} CUDA devices (Total VRAM: {total} MiB):")
        for position, gpu in enumerate(gpus):
            say(
                f"  Device {position}: {gpu.name}, compute capability {gpu.compute_capability}, VMM: yes, "
                f"VRAM: {mebibytes(gpu.total_bytes)} MiB"
            )
    cuda = f"CUDA : ARCHS = {ARCHITECTURES} | USE_GRAPHS = 1 | " if gpus else ""
    say(f"system_info: n_threads = 1 (n_threads_batch = 1) / 2 | {cuda}CPU : SSE3 = 1 | AVX2 = 1 |")
    return gpus


def discover() -> None:
    """Run without a model: Ollama reads up to `system_info` and kills us."""
    banner()
    time.sleep(DISCOVERY_SECONDS)


def list_devices() -> None:
    """`--list-devices`."""
    print("Available devices:")
    for position, gpu in enumerate(seen()):
        free = mebibytes(gpu.free_bytes)
        print(f"  CUDA{position}: {gpu.name} ({mebibytes(gpu.total_bytes)} MiB, {free} MiB free)")
