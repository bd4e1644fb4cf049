"""What the server believes free on its GPUs: from its runners' own books, which are partly wrong.

As long as some GPU carries no runner, the server asks the driver, which is right. After that it asks its
runners, in no order, each for the GPUs that it works on and nobody has spoken for yet. A runner answers with
what it saw at its load less what it takes itself, so whoever else was there then is counted for good, and who
came later isn't. The sum of what all take bounds that. On every GPU but the first a runner that has it for
itself calls it by another name than the server does, and finds none of its own memory there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from lab.ollama.gpus import Gpu
from lab.ollama.memory import CUDA_CONTEXT_BYTES
from lab.ollama.process import Runner


def reported_bytes(runner: Runner, position: int, index: int) -> int:
    """What a runner says it takes of a GPU, which is at `position` in the server's list."""
    placed = runner.placement
    if index not in placed.gpu_bytes or list(placed.gpu_bytes).index(index) != position:
        return 0
    buffers = {gpu: size - CUDA_CONTEXT_BYTES for gpu, size in placed.gpu_bytes.items()}
    whole = sum(buffers.values())
    return placed.size_vram_bytes * buffers[index] // whole if whole else 0


def believed(gpus: Sequence[Gpu], runners: Sequence[Runner]) -> list[Gpu]:
    """The GPUs with the memory that the server believes free."""
    positions = {gpu.index: position for position, gpu in enumerate(gpus)}
    totals = {gpu.index: gpu.total_bytes for gpu in gpus}
    free: dict[int, int] = {}
    for runner in random.sample(list(runners), len(runners)):
        mine = [index for index in runner.placement.gpu_bytes if index in positions]
        if all(index in free for index in mine):
            continue
        for index in mine:
            taken = reported_bytes(runner, positions[index], index)
            left = totals[index] - taken
            if positions[index] == 0:  # the only one whose line in the log is read
                left = min(left, runner.free_at_load.get(index, left + taken) - taken)
            free[index] = max(0, left)
    if any(gpu.index not in free for gpu in gpus):
        free = {gpu.index: gpu.free_bytes for gpu in gpus}
    for gpu in gpus:
        taken = sum(reported_bytes(runner, positions[gpu.index], gpu.index) for runner in runners)
        free[gpu.index] = min(free[gpu.index], max(0, gpu.total_bytes - taken))
    return [replace(gpu, free_bytes=free[gpu.index]) for gpu in gpus]
