"""What the tests of simulated GPUs share: a compiled library, a state file, programs run over them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.gpu import build, faults
from lab.gpu.initial import initial_state
from lab.gpu.profile import host_gpus

DRIVER = "580.159.03"
PROJECT = Path(__file__).resolve().parents[3]
needs_compiler = pytest.mark.skipif(
    not (shutil.which("gcc") or shutil.which("cc")),
    reason="libnvidia-ml.so.1 is compiled here, and there is no gcc: apt-get install gcc libc6-dev",
)


@dataclass(frozen=True)
class Box:
    """A machine with simulated GPUs, as programs on it see them."""

    library: Path
    state: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment in which programs find library and state."""
        return {**os.environ, "LABGPU_STATE": str(self.state), "LD_LIBRARY_PATH": str(self.library)}

    def nvml(self, code: str, *, timeout: float = 20) -> Any:
        """Run code over the real nvidia-ml-py; what it puts into `answer`, through JSON."""
        script = f"import json\nimport pynvml as n\nanswer = None\n{code}\nprint(json.dumps(answer))"
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def error(self, code: str) -> int:
        """Run code over nvidia-ml-py that must fail; NVML's number of the error."""
        lines = "\n".join(f"    {line}" for line in code.splitlines())
        caught = f"try:\n{lines}\n    answer = 0\nexcept n.NVMLError as error:\n    answer = error.value"
        return self.nvml(caught)

    def smi(self, *words: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
        """Run the stand-in of nvidia-smi."""
        command = [sys.executable, "-BES", str(PROJECT / "lab/gpu/smi.py"), *words]
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )

    def fault(self, target: str, kind: str) -> None:
        """Inject a fault."""
        faults.inject(self.state, target, kind)


def make_box(library: Path, folder: Path, *models: str) -> Box:
    """Make a machine with GPUs of these models."""
    gpus = host_gpus([{"model": model} for model in models], lab="unit", host="a")
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state"
    initial_state({"gpus": gpus}, DRIVER).save(state)
    return Box(library, state)


def build_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library once for the session."""
    return build.build(tmp_path_factory.getbasetemp() / "nvml").parent
