"""The state that a driver leaves when it has just been loaded, from the host's profile.json.

Standard library only: this file is also copied onto lab hosts, as /usr/lib/labgpu/initial.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

try:
    from lab.gpu.state import Gpu, GpuState
except ImportError:  # on a lab host the files lie side by side
    from state import Gpu, GpuState  # type: ignore[import-not-found,no-redef]

MIB = 1024 * 1024
CUDA_VERSIONS = {"535": 12020, "570": 12080, "580": 13000, "595": 13020, "610": 13030}


def cuda_version(driver_version: str) -> int:
    """The CUDA version that a driver's branch speaks, in NVML's form."""
    return CUDA_VERSIONS.get(driver_version.split(".", 1)[0], 13000)


def gpu_state(spec: Mapping[str, Any]) -> Gpu:
    """One GPU, idle, as its profile describes it."""
    return Gpu(
        index=int(spec["index"]),
        uuid=spec["uuid"],
        name=spec["name"],
        arch=spec["arch"],
        compute_capability=str(spec["compute_capability"]),
        memory_total_bytes=int(spec["memory_mib"]) * MIB,
        memory_reserved_bytes=int(spec.get("memory_reserved_mib", 0)) * MIB,
        pci_bus_id=spec["pci_bus_id"],
        pci_device_id=spec["pci_device_id"],
        temperature_c=38 + int(spec["index"]) % 5,
        power_mw=int(spec["power_idle_w"]) * 1000,
        power_limit_mw=int(spec["power_limit_w"]) * 1000,
        extra={
            "ecc": str(int(bool(spec.get("ecc")))),
            "minor": str(spec["index"]),
            "pci_subsystem_id": spec["pci_subsystem_id"],
            "serial": str(spec["serial"]),
        },
    )


def initial_state(profile: Mapping[str, Any], driver_version: str) -> GpuState:
    """All of a host's GPUs under a driver that has just been loaded."""
    return GpuState(
        driver_version=driver_version,
        cuda_version=cuda_version(driver_version),
        loaded=1,
        gpus=[gpu_state(spec) for spec in profile.get("gpus", [])],
    )
