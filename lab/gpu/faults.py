"""Faults of a simulated GPU, set in the state file."""

from __future__ import annotations

import re

try:
    from lab.gpu.state import Gpu, StatePath, edit
except ImportError:  # on a lab host the files lie side by side
    from state import Gpu, StatePath, edit  # type: ignore[import-not-found,no-redef]

# NVIDIA's catalogue: what the recovery action field says after an XID.
RECOVERY_ACTIONS = {46: 1, 48: 1, 62: 1, 64: 1, 79: 2, 94: 0, 95: 1, 109: 1, 119: 1, 120: 1, 140: 1, 143: 1}


class FaultError(Exception):
    """No such fault, or no such GPU."""


def inject(path: StatePath, target: str, fault: str) -> None:
    """Set a fault: lost, hang, clear, mismatch, xid=N; the target is gpuN, or all."""
    match = re.fullmatch(r"gpu(\d+)|all", target)
    if match is None:
        raise FaultError(f"{target!r} is no GPU: write gpu0, gpu1 ... or all")
    with edit(path) as state:
        gpus = [gpu for gpu in state.gpus if match[1] is None or gpu.index == int(match[1])]
        if not gpus:
            raise FaultError(f"{target} isn't in the state, which has {len(state.gpus)} GPU(s)")
        if fault == "mismatch":
            state.library_version = "999.99"
        elif fault == "clear":
            state.library_version = ""
        for gpu in gpus:
            _set(gpu, fault)


def _set(gpu: Gpu, fault: str) -> None:
    if fault in {"lost", "hang"}:
        gpu.fault = fault
        if fault == "lost":
            _raise_xid(gpu, 79)
    elif fault == "clear":
        gpu.fault = ""
        gpu.xid = 0
        gpu.recovery_action = 0
    elif match := re.fullmatch(r"xid=(\d+)", fault):
        _raise_xid(gpu, int(match[1]))
    elif fault != "mismatch":
        raise FaultError(f"{fault!r} is no fault: write lost, hang, xid=N, mismatch or clear")


def _raise_xid(gpu: Gpu, xid: int) -> None:
    gpu.xid = xid
    gpu.xid_count += 1
    gpu.recovery_action = max(gpu.recovery_action, RECOVERY_ACTIONS.get(xid, 0))
