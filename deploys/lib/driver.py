"""NVIDIA's driver: package names, whether what is loaded is what is installed, and how to get there."""

from __future__ import annotations

from dataclasses import dataclass

from pyinfra import host
from pyinfra.api import StringCommand, operation

from deploys.lib import operations
from deploys.lib.facts import Machine, MachineFact, Probe
from deploys.lib.operations import Commands
from deploys.lib.reboot import reboot_commands

# Distribution -> flavour -> packages of a driver without a display, in NVIDIA's own repository.
PACKAGES = {
    name: {
        "open": ("nvidia-driver-cuda", "nvidia-kernel-open-dkms"),
        "proprietary": ("nvidia-driver-cuda", "nvidia-kernel-dkms"),
    }
    for name in ("debian12", "debian13")
}
# Packages that may not stay beside NVIDIA's: the distribution's own builds of the same driver.
FOREIGN = ("nvidia-driver", "nvidia-kernel-open", "nvidia-tesla", "nvidia-legacy", "nvidia-smi", "libcuda1")

# A process that holds a device file keeps the module loaded; the persistence daemon is stopped by ourselves.
IN_USE = (
    'for f in /proc/[0-9]*/fd/*; do case $(readlink "$f" 2>/dev/null) in /dev/nvidia*) echo "$f";; esac; '
    "done "
    "| grep -q ."
)
UNLOAD = (
    'export PATH="$PATH:/usr/sbin:/sbin"; '
    "for m in nvidia_uvm nvidia_drm nvidia_modeset nvidia_peermem nvidia; do "
    'if [ -d "/sys/module/$m" ]; then rmmod "$m" || true; fi; done'
)
LOAD = 'export PATH="$PATH:/usr/sbin:/sbin"; modprobe nvidia && modprobe nvidia-uvm'


@dataclass(frozen=True, slots=True)
class Plan:
    """What must be done so that the loaded driver is the installed one."""

    action: str  # nothing, load, replace, broken
    why: str


def plan(machine: Machine, flavour: str) -> Plan:
    """Compare module on disk, module in the kernel, library and flavour."""
    return _broken(machine, flavour) or _difference(machine, flavour)


def _broken(machine: Machine, flavour: str) -> Plan | None:
    """Return what is wrong with what is installed; neither loading nor rebooting would mend it."""
    disk, library = machine.module_version, machine.library_version
    if not disk:
        return Plan(
            "broken",
            f"no kernel module was built for the running kernel {machine.kernel} (apt succeeds even so). "
            f"Next: dkms status; apt-get install linux-headers-{machine.kernel}",
        )
    if library and library != disk:
        return Plan(
            "broken", f"the kernel module is {disk} but the library is {library}. Next: dpkg -l '*nvidia*'"
        )
    if machine.module_flavour and machine.module_flavour != flavour:
        return Plan("broken", f"the module on disk is {machine.module_flavour}, {flavour} was installed")
    return None


def _difference(machine: Machine, flavour: str) -> Plan:
    """Return what lies between the installed driver and the loaded one."""
    disk, loaded = machine.module_version, machine.loaded_version
    if not loaded:
        why = "nouveau holds the GPUs" if "nouveau" in machine.modules else "no driver is loaded"
        return Plan("replace" if "nouveau" in machine.modules else "load", why)
    if loaded != disk:
        return Plan("replace", f"driver {loaded} is loaded, {disk} is installed")
    if machine.loaded_flavour and machine.loaded_flavour != flavour:
        return Plan(
            "replace", f"the {machine.loaded_flavour} modules are loaded, the {flavour} ones are installed"
        )
    return Plan("nothing", f"driver {loaded} is loaded and installed")


@operation()
def load_driver(flavour: str, reboot: bool, reboot_timeout_seconds: int) -> Commands:
    """Get the installed driver into the kernel: load it, replace an unused one, or reboot when it is in use.

    + flavour: open or proprietary, as installed
    + reboot: whether the host may be rebooted
    + reboot_timeout_seconds: how long that may take
    """
    machine = host.get_fact(MachineFact)
    todo = plan(machine, flavour)
    if todo.action == "nothing":
        host.noop(todo.why)
        return
    if todo.action == "broken":
        yield operations.refusal(todo.why)
        return
    if todo.action == "replace":
        yield from _replace(machine, todo, reboot=reboot, timeout_seconds=reboot_timeout_seconds)
        machine = host.get_fact(MachineFact)
        todo = plan(machine, flavour)
        if todo.action in {"replace", "broken"}:
            yield operations.refusal(todo.why)
            return
    if todo.action == "load":
        yield StringCommand(LOAD)


def _replace(machine: Machine, todo: Plan, *, reboot: bool, timeout_seconds: int) -> Commands:
    """Yield what takes the old driver out: unload it when nothing uses it, otherwise reboot."""
    yield StringCommand("systemctl stop nvidia-persistenced.service 2>/dev/null || true")
    if "nouveau" not in machine.modules and not host.get_fact(Probe, probe=IN_USE):
        yield StringCommand(UNLOAD)
        if not host.get_fact(Probe, probe="[ -d /sys/module/nvidia ]"):
            return
    if not reboot:
        yield operations.refusal(
            f"{todo.why}; the GPUs are in use, so only a reboot helps, and nvidia_driver_reboot is false. "
            "Next: stop what uses the GPUs, or reboot the host, then run again"
        )
        return
    yield from reboot_commands(machine.boot_id, timeout_seconds)


@operation()
def verify_driver(flavour: str, gpus: int, version: str) -> Commands:
    """Prove that the driver works: one version everywhere, the right flavour, every GPU of the bus answering.

    + flavour: open or proprietary
    + gpus: how many GPUs the PCI bus shows
    + version: the branch or exact version that is pinned
    """
    found = host.get_fact(MachineFact)
    complaint = complaint_of(found, flavour, version)
    if complaint:
        yield operations.refusal(complaint)
        return
    probe = (
        f"[ \"$(timeout 30 nvidia-smi -L | grep -c '^GPU ')\" -eq {gpus} ] && [ -c /dev/nvidiactl ] && "
        f"[ -c /dev/nvidia-uvm ] && for i in $(seq 0 {gpus - 1}); do [ -c /dev/nvidia$i ] || exit 1; done"
    )
    if host.get_fact(Probe, probe=probe):
        host.noop("the driver works")
        return
    yield operations.script(
        f"nvidia-smi -L >&2; ls -l /dev/nvidia* >&2; {probe} || "
        f"{{ echo 'The PCI bus shows {gpus} GPU(s), but not all answer. Next: dmesg | grep -i nvrm' >&2; "
        "exit 1; }"
    )


def complaint_of(machine: Machine, flavour: str, version: str) -> str:
    """Return what is wrong with the versions and the flavour, '' when nothing is."""
    todo = plan(machine, flavour)
    if todo.action != "nothing":
        return f"The driver isn't what was installed: {todo.why}"
    if not machine.loaded_version.startswith(version):
        return f"The loaded driver is {machine.loaded_version}, pinned is {version}"
    return ""
