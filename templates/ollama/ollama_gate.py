#!/usr/bin/python3
"""Wait until the GPUs of this instance answer, but not for ever; then say in one line what is missing.

Runs before each start of an instance, inside its sandbox: what this can't see, Ollama couldn't use.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm")
NVSWITCH = "/dev/nvidia-nvswitchctl"


def smi(*arguments: str) -> tuple[str, str]:
    """Return what nvidia-smi prints and what it complains about."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except FileNotFoundError:
        return "", "nvidia-smi isn't installed"
    except subprocess.TimeoutExpired:
        return "", "nvidia-smi doesn't answer"
    return done.stdout, "" if done.returncode == 0 else (done.stdout + done.stderr).strip().partition("\n")[0]


def missing(gpus: list[str]) -> str:
    """Return what keeps the instance from starting, '' when all is there."""
    if absent := [node for node in NODES if not Path(node).exists()]:
        return f"{' and '.join(absent)} missing, so the driver is not loaded"
    listing, complaint = smi("-L")
    if absent := [gpu for gpu in gpus if gpu not in listing]:
        return f"{', '.join(absent)} not among the GPUs that answer" + (
            f" ({complaint})" if complaint else ""
        )
    if Path(NVSWITCH).exists():
        states, _ = smi("--query-gpu=fabric.state", "--format=csv,noheader")
        if any(state.strip() == "In Progress" for state in states.splitlines()):
            return "the NVSwitch fabric isn't ready; nvidia-fabricmanager looks after it"
    return ""


def main() -> int:
    """Wait, within bounds."""
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    bound_seconds = float(os.environ.get("DROVER_GATE_SECONDS", "60"))
    late = not Path(NODES[0]).exists()
    end = time.monotonic() + bound_seconds
    while problem := missing(gpus):
        if late and Path(NODES[0]).exists():
            # The sandbox knows only the devices that were there when it was made: start over at once.
            print("ollama_gate: the driver came after the sandbox; starting over", file=sys.stderr)
            return 1
        if time.monotonic() >= end:
            print(f"ollama_gate: after {bound_seconds:g} s: {problem}. Next: nvidia-smi -L", file=sys.stderr)
            return 1
        time.sleep(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
