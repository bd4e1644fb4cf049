"""NVIDIA's driver: pinned to a branch, of the flavour that the GPUs need, loaded, and checked.

pyinfra -y inventories/FLEET/inventory.py deploys/nvidia_driver.py
"""

from __future__ import annotations

from typing import Any

from pyinfra import host

from deploys.lib import apt, operations
from deploys.lib.driver import FOREIGN, PACKAGES, load_driver, verify_driver
from deploys.lib.facts import Machine, MachineFact
from deploys.lib.gpus import UnsupportedError, choose_flavour
from deploys.lib.stage import Context, Layer, SkipLayerError

PERSISTENCED = "nvidia-persistenced"
PERSISTENCE_MODE = "timeout 30 nvidia-smi --query-gpu=persistence_mode --format=csv,noheader"


def preflight(ctx: Context) -> None:
    """Refuse a host on which the driver can't work, before anything is touched."""
    if not ctx.vars["nvidia_driver_enabled"]:
        raise SkipLayerError
    machine = ctx.machine
    if machine.distribution not in PACKAGES:
        ctx.refuse(
            f"{machine.distribution or 'an unknown system'} isn't supported; "
            f"supported are {', '.join(PACKAGES)}"
        )
    if not machine.gpus:
        ctx.refuse(
            "no NVIDIA GPU on the PCI bus. Next: lspci -d 10de: on the host, or set "
            "nvidia_driver_enabled: false for it"
        )
    try:
        flavour = choose_flavour(
            machine.gpus, ctx.vars["nvidia_driver_flavour"], int(ctx.vars["nvidia_driver_branch"])
        )
    except UnsupportedError as error:
        ctx.refuse(str(error))
    ctx.notes["flavour"] = flavour
    ctx.notes["source"] = apt.resolve(ctx)
    _refuse_foreign(ctx)
    _refuse_secure_boot(ctx)
    _refuse_full_disk(ctx, flavour)


def _refuse_foreign(ctx: Context) -> None:
    """Refuse beside the distribution's own build of the driver: two owners of the same files."""
    ours = {name for names in PACKAGES[ctx.machine.distribution].values() for name in names}
    foreign = [name for name in ctx.machine.packages if name.startswith(FOREIGN) and name not in ours]
    foreign = [name for name in foreign if not name.startswith("nvidia-driver-pinning-")]
    if foreign and not ours & set(ctx.machine.packages):
        ctx.refuse(
            f"the distribution's own driver is installed ({', '.join(sorted(foreign))}); "
            f"NVIDIA's can't lie beside it. Next: apt-get purge {' '.join(sorted(foreign))}"
        )


def _refuse_secure_boot(ctx: Context) -> None:
    """Refuse where the kernel would reject the module: enrolling a key needs a person at the console."""
    if ctx.machine.secure_boot and not ctx.machine.mok_enrolled:
        ctx.refuse(
            "Secure Boot is on and DKMS's key isn't enrolled, so the kernel would reject the driver. Next: "
            "on the host, mokutil --import /var/lib/dkms/mok.pub, reboot and confirm at the console; or "
            "switch Secure Boot off"
        )


def _refuse_full_disk(ctx: Context, flavour: str) -> None:
    wanted = ctx.vars["nvidia_driver_min_free_mib"]
    have_driver = set(PACKAGES[ctx.machine.distribution][flavour]) <= set(ctx.machine.packages)
    if ctx.machine.free_mib < wanted and not have_driver:
        ctx.refuse(
            f"/usr has {ctx.machine.free_mib} MiB free, the driver needs {wanted} "
            "(nvidia_driver_min_free_mib). Next: make room, or lower it"
        )


def install(ctx: Context) -> None:
    """Pin first, then the kernel's headers, then the driver."""
    machine, values = ctx.machine, ctx.vars
    apt.lay_repository(ctx.notes["source"])
    branch, exact = values["nvidia_driver_branch"], values["nvidia_driver_version"]
    pinning = f"nvidia-driver-pinning-{exact or branch}"
    others = [
        name for name in machine.packages if name.startswith("nvidia-driver-pinning-") and name != pinning
    ]
    pref = "/etc/apt/preferences.d/drover-nvidia-driver.pref"
    if exact:
        operations.place(name="Pin the exact version", dest=pref, content=ctx.render("driver.pref.j2"))
    else:
        operations.absent(name="Pin no exact version", path=pref)
    apt.packages(name="Install the pin of the branch", wanted={pinning: ""}, purge=others)
    headers = values["nvidia_driver_headers_package"] or f"linux-headers-{machine.kernel}"
    if headers != "none":
        apt.packages(name="Install the running kernel's headers", wanted={headers: ""})
    names = PACKAGES[machine.distribution][ctx.notes["flavour"]]
    wanted = dict.fromkeys(names, exact or branch)
    other = {name for group in PACKAGES[machine.distribution].values() for name in group} - set(names)
    apt.packages(name="Install the driver", wanted=wanted, purge=sorted(other))
    apt.packages(name="Install the persistence daemon", wanted={PERSISTENCED: exact or branch})
    operations.gate(
        name="See that a module was built for the running kernel",
        probe='PATH="$PATH:/usr/sbin:/sbin"; modinfo nvidia-current || modinfo nvidia',
        message="No NVIDIA module exists for the running kernel (apt succeeds even so). Next: dkms status",
        timeout_seconds=1,
    )


def configure(ctx: Context) -> None:
    """Keep nouveau away, load the modules at boot, keep the GPUs awake, keep unattended upgrades off."""
    nouveau = operations.place(
        name="Keep nouveau from the GPUs",
        dest="/etc/modprobe.d/drover-nouveau.conf",
        content=ctx.render("nouveau.conf.j2"),
    )
    operations.guarded(
        name="Tell the initramfs about nouveau",
        commands="update-initramfs -u -k all",
        only_if="command -v update-initramfs && ls /boot/initrd.img-*",
        _if=nouveau.did_change,
    )
    operations.place(
        name="Load the modules at boot",
        dest="/etc/modules-load.d/drover-nvidia.conf",
        content=ctx.render("modules-load.conf.j2"),
    )
    operations.place(
        name="Keep unattended upgrades off the driver",
        dest="/etc/apt/apt.conf.d/91drover-nvidia",
        content=ctx.render("unattended-upgrades.conf.j2"),
    )
    operations.place(
        name="Keep the GPUs awake",
        dest=f"/etc/systemd/system/{PERSISTENCED}.service.d/10-drover.conf",
        content=ctx.render("persistenced.conf.j2"),
    )


def activate(ctx: Context) -> None:
    """Get the installed driver into the kernel, by a reboot when nothing else helps."""
    load_driver(
        name="Load the installed driver",
        flavour=ctx.notes["flavour"],
        reboot=ctx.vars["nvidia_driver_reboot"],
        reboot_timeout_seconds=ctx.vars["nvidia_driver_reboot_timeout_seconds"],
    )
    # The package starts the daemon too early, until systemd gives up, and without our settings.
    operations.guarded(
        name="Run the persistence daemon under its settings",
        commands=[
            "systemctl daemon-reload",
            f"systemctl reset-failed {PERSISTENCED}.service",
            f"systemctl enable --quiet {PERSISTENCED}.service",
            f"systemctl restart {PERSISTENCED}.service",
        ],
        unless=(
            f"systemctl is-active --quiet {PERSISTENCED} && systemctl is-enabled --quiet {PERSISTENCED} && "
            f'[ "$(systemctl show -P NeedDaemonReload {PERSISTENCED}.service)" = no ] && '
            f"! {PERSISTENCE_MODE} | grep -q Disabled"
        ),
    )


def verify(ctx: Context) -> None:
    """Prove it: one version on disk, in the kernel and in the library, and every GPU of the bus answering."""
    verify_driver(
        name="See that every GPU answers under the pinned driver",
        flavour=ctx.notes["flavour"],
        gpus=len(ctx.machine.gpus),
        version=ctx.vars["nvidia_driver_version"] or ctx.vars["nvidia_driver_branch"],
    )
    operations.gate(
        name="See that the GPUs stay awake",
        probe=f"{PERSISTENCE_MODE} | grep -q Enabled && ! {PERSISTENCE_MODE} | grep -q Disabled",
        message=f"Persistence mode is off: uses wait for the GPU. Next: systemctl status {PERSISTENCED}",
        timeout_seconds=10,
    )


def record(ctx: Context) -> None:
    """Write down versions and flavour."""
    flavour = ctx.notes["flavour"]

    def values() -> dict[str, Any]:
        now: Machine = host.get_fact(MachineFact)
        return {
            "branch": ctx.vars["nvidia_driver_branch"],
            "version": now.loaded_version,
            "flavour": flavour,
            "gpus": len(now.gpus),
            "kernel": now.kernel,
        }

    operations.record(name="Record what is there", layer=ctx.layer, values=values)


LAYER = Layer("nvidia_driver", preflight, install, configure, activate, verify, record)
LAYER.run_if_main(__file__)
