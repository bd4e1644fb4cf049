"""The GPUs that this instance sees: the simulated state, narrowed by CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lab.gpu.state import DEFAULT_PATH, GpuState, StateError


@dataclass(frozen=True)
class Gpu:
    """One visible GPU: `index` is the host's, its place in the list is CUDA's number."""

    index: int
    filter_id: str  # the token of CUDA_VISIBLE_DEVICES that chose it
    name: str
    compute_capability: str
    total_bytes: int
    free_bytes: int


def state_path() -> Path:
    """Where the state file is."""
    return Path(os.environ.get("LABGPU_STATE") or DEFAULT_PATH)


def driver_version() -> str:
    """The CUDA version that the loaded driver supports, as `13.0`; empty without a driver."""
    try:
        cuda = GpuState.load(state_path()).cuda_version
    except StateError:
        return ""
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def visible(selection: str | None) -> list[Gpu]:
    """The GPUs that CUDA would show; the list ends at the first token that fits none."""
    try:
        state = GpuState.load(state_path())
    except StateError:
        return []
    mismatch = state.library_version not in {"", state.driver_version}
    if not state.loaded or mismatch:
        return []
    healthy = [gpu for gpu in state.gpus if gpu.fault != "lost"]
    tokens = [str(position) for position in range(len(healthy))]
    if selection is not None:
        tokens = [token.strip() for token in selection.split(",")]
    found: list[Gpu] = []
    for token in tokens:
        if token.isdigit():
            matching = [healthy[int(token)]] if int(token) < len(healthy) else []
        else:
            matching = [gpu for gpu in healthy if token.startswith("GPU-") and gpu.uuid.startswith(token)]
        if len(matching) != 1 or any(gpu.index == matching[0].index for gpu in found):
            break
        gpu = matching[0]
        filter_id = "" if selection is None else token
        found.append(
            Gpu(
                index=gpu.index,
                filter_id=filter_id or str(gpu.index),
                name=gpu.name,
                compute_capability=gpu.compute_capability,
                total_bytes=gpu.memory_total_bytes - gpu.memory_reserved_bytes,
                free_bytes=gpu.free_bytes(),
            )
        )
    return found
