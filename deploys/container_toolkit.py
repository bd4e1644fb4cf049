"""NVIDIA's container toolkit: four packages at one version, the GPUs described to container engines (CDI).

pyinfra -y inventories/FLEET/inventory.py deploys/container_toolkit.py
"""

from __future__ import annotations

from typing import Any

from pyinfra.operations import systemd

from deploys.lib import apt, operations
from deploys.lib.stage import Context, Layer, SkipLayerError

PACKAGES = (
    "libnvidia-container-tools",
    "libnvidia-container1",
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
)
# The description lists device nodes and library paths: it is stale when it differs from one made now.
# nvidia-ctk warns on stderr; only what it writes counts.
CURRENT = 'test -s "{file}" && nvidia-ctk cdi generate 2>/dev/null | cmp -s - "{file}"'
GENERATE = (
    'set -eu; umask 022; mkdir -p "{folder}"; new=$(mktemp "{folder}/.drover.XXXXXX"); '
    'trap \'rm -f "$new"\' EXIT; nvidia-ctk cdi generate > "$new"; test -s "$new"; '
    'chmod 0644 "$new"; mv -f "$new" "{file}"'
)


def preflight(ctx: Context) -> None:
    """Refuse a host without a GPU, and a repository that can't be trusted."""
    if not ctx.vars["container_toolkit_enabled"]:
        raise SkipLayerError
    if not ctx.machine.gpus:
        ctx.refuse("no NVIDIA GPU on the PCI bus. Next: set container_toolkit_enabled: false for this host")
    ctx.notes["source"] = apt.resolve(ctx)


def install(ctx: Context) -> None:
    """Pin the version, then install the four packages together."""
    apt.lay_repository(ctx.notes["source"])
    operations.place(
        name="Pin the four packages to one version",
        dest="/etc/apt/preferences.d/drover-container-toolkit.pref",
        content=ctx.render("toolkit.pref.j2"),
    )
    apt.packages(
        name="Install the four packages",
        wanted=dict.fromkeys(PACKAGES, ctx.vars["container_toolkit_version"]),
    )


def configure(ctx: Context) -> None:
    """Nothing to configure: engines find the description by its folder."""


def activate(ctx: Context) -> None:
    """Describe the GPUs, again whenever the description is stale."""
    folder = ctx.vars["container_toolkit_cdi_dir"]
    words = {"folder": folder, "file": f"{folder}/nvidia.yaml"}
    operations.guarded(
        name="Describe the GPUs to container engines",
        commands=GENERATE.format(**words),
        unless=CURRENT.format(**words),
    )
    # Its folder is gone after a boot, and the package enables only what looks for a new driver.
    systemd.service(
        name="Describe the GPUs again at each boot",
        service="nvidia-cdi-refresh.service",
        running=None,
        enabled=True,
    )


def verify(ctx: Context) -> None:
    """See that the description names every GPU."""
    count = len(ctx.machine.gpus)
    operations.gate(
        name="See that every GPU is described",
        probe=f"test \"$(nvidia-ctk cdi list 2>/dev/null | grep -Ec '^nvidia.com/gpu=[0-9]+$')\" -eq {count}",
        message=f"nvidia-ctk cdi list doesn't show {count} GPU(s). Next: nvidia-ctk cdi list; nvidia-smi -L",
        timeout_seconds=5,
    )


def record(ctx: Context) -> None:
    """Write down the versions."""

    def values() -> dict[str, Any]:
        return {"packages": apt.installed(list(PACKAGES)), "cdi_dir": ctx.vars["container_toolkit_cdi_dir"]}

    operations.record(name="Record what is there", layer=ctx.layer, values=values)


LAYER = Layer("container_toolkit", preflight, install, configure, activate, verify, record)
LAYER.run_if_main(__file__)
