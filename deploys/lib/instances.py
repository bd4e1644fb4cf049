"""The Ollama instances of a host: the one truth that the layers ollama, models and proxy share.

Their names and ports follow from the variables and from the GPUs on the PCI bus, so that they are known on a
bare host; the UUIDs of the GPUs are asked of the driver when an operation runs, after it was installed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pyinfra.api import FactBase

from deploys.lib.stage import Context

SPREAD = "spread"
SPREAD_PORTS_ABOVE = 99


@dataclass(frozen=True, slots=True)
class Instance:
    """One `ollama serve`: its GPUs are UUIDs, or indexes that stand for them."""

    name: str
    port: int
    gpus: tuple[str, ...]

    @property
    def unit(self) -> str:
        """Return the name of its unit."""
        return f"ollama@{self.name}.service"

    @property
    def env_file(self) -> str:
        """Return the file of its settings."""
        return f"/etc/drover/ollama/{self.name}.env"

    @property
    def url(self) -> str:
        """Return where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def for_template(self) -> dict[str, Any]:
        """Return what templates see."""
        return {**asdict(self), "gpus": list(self.gpus)}


class GpuUuids(FactBase[list[str]]):
    """The UUIDs of the GPUs in nvidia-smi's order; none without a working driver."""

    default = list

    def command(self) -> str:
        """Return the command, bounded in time."""
        return "timeout 60 nvidia-smi --query-gpu=uuid --format=csv,noheader 2>/dev/null || true"

    def process(self, output: list[str]) -> list[str]:
        """Keep what are UUIDs."""
        return [line.strip() for line in output if line.strip().startswith("GPU-")]


def planned(ctx: Context) -> tuple[Instance, ...]:
    """Return the instances that this host shall have, before their GPUs' UUIDs are known."""
    values = ctx.vars
    if by_hand := values["ollama_instances"]:
        found = [Instance(entry["name"], entry["port"], tuple(entry["gpus"])) for entry in by_hand]
    else:
        count = len(ctx.machine.gpus)
        found = [
            Instance(f"gpu{index}", values["ollama_port"] + index, (str(index),)) for index in range(count)
        ]
    if values["ollama_spread"]:
        every = tuple(str(index) for index in range(len(ctx.machine.gpus)))
        found.append(Instance(SPREAD, values["ollama_port"] + SPREAD_PORTS_ABOVE, every))
    return tuple(found)


class UnknownGpuError(ValueError):
    """An instance names a GPU that the driver doesn't show."""


def bound(instances: tuple[Instance, ...], uuids: list[str]) -> tuple[Instance, ...]:
    """Return the instances with the UUIDs of their GPUs."""
    return tuple(
        Instance(one.name, one.port, tuple(_uuid(one, gpu, uuids) for gpu in one.gpus)) for one in instances
    )


def _uuid(instance: Instance, gpu: str, uuids: list[str]) -> str:
    if gpu.isdigit() and int(gpu) < len(uuids):
        return uuids[int(gpu)]
    if gpu in uuids:
        return gpu
    raise UnknownGpuError(
        f"instance {instance.name} needs GPU {gpu}, but the driver shows "
        f"{', '.join(uuids) or 'none'}. Next: nvidia-smi -L on the host"
    )
