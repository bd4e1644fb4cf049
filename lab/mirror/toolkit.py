"""The stand-in packages of NVIDIA's container toolkit: four, all at one version."""

from __future__ import annotations

from collections.abc import Iterator

from lab.mirror.debs import Package, payload
from lab.mirror.driver import DISABLE, ENABLE

VERSIONS = ("1.19.1-1", "1.20.0-1")


def packages(architecture: str) -> Iterator[Package]:
    """The four packages of every version."""
    for version in VERSIONS:
        yield from _version(version, architecture)


def _version(version: str, architecture: str) -> Iterator[Package]:
    same = f"(= {version})"
    depends = {
        "libnvidia-container1": "libc6",
        "libnvidia-container-tools": f"libnvidia-container1 {same}",
        "nvidia-container-toolkit": f"nvidia-container-toolkit-base {same}, libnvidia-container-tools {same}",
    }
    for name, wanted in depends.items():
        yield Package(
            name,
            version,
            "NVIDIA's container toolkit",
            architecture=architecture,
            fields={"Depends": wanted},
        )
    unit = "nvidia-cdi-refresh.path"
    yield Package(
        "nvidia-container-toolkit-base",
        version,
        "nvidia-ctk, which describes GPUs to container engines",
        architecture=architecture,
        fields={"Depends": "python3"},
        files={
            "usr/bin/nvidia-ctk": payload("nvidia-ctk", 0o755, VERSION=version.partition("-")[0]),
            f"lib/systemd/system/{unit}": payload(unit),
            "lib/systemd/system/nvidia-cdi-refresh.service": payload("nvidia-cdi-refresh.service"),
        },
        scripts={"postinst": ENABLE.format(unit=unit, verb="start"), "prerm": DISABLE.format(unit=unit)},
    )
