"""One booted host: the command that boots it, and how it is stopped."""

from __future__ import annotations

import os
from pathlib import Path

from lab.hosts import processes
from lab.hosts.spec import HostSpec, LabSpec

# What systemd-nspawn exits with when the host inside asked for a reboot and it is not to loop by itself.
REBOOT_CODE = 133
SYSTEMD_HERE = Path("/run/systemd/system")


def boot_command(spec: LabSpec, host: HostSpec, root: Path, *, under_systemd: bool) -> list[str]:
    """Return the command that boots a host and runs until it is off.

    Where systemd runs this machine, it is asked for a scope, so that the host has a control group of its own;
    elsewhere the supervisor has made one (see cgroups.py). Either way nspawn stays in the group it is in.
    """
    nspawn = [
        "systemd-nspawn",
        "--quiet",
        "--settings=no",
        "--boot",
        "--register=no",
        "--keep-unit",
        f"--directory={root}",
        f"--machine={host.name}",
        f"--hostname={host.name}",
        f"--uuid={host.machine_id}",
        f"--network-namespace-path=/run/netns/{spec.namespace(host)}",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--console=read-only",
        # systemd in the host enforces DevicePolicy= and IPAddressDeny= with BPF programs on its groups.
        "--system-call-filter=bpf",
    ]
    if not under_systemd:
        return nspawn
    return [
        "systemd-run",
        "--scope",
        "--quiet",
        "--collect",
        # No --unit: the scope of the boot before may still be going when a host reboots.
        f"--description=Lab host {host.name}",
        "--property=Delegate=yes",
        *nspawn,
    ]


def boot_environment() -> dict[str, str]:
    """Return the environment for the boot command.

    The host gets control groups of version 2, also where this machine still mounts both versions: version 1
    would be read-only inside, and what a unit says of devices would be ignored in silence.
    """
    has_version_2 = " cgroup2 " in Path("/proc/mounts").read_text()
    return {**os.environ, **({"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"} if has_version_2 else {})}


def is_boot_of(host: str, root: Path, arguments: list[str]) -> bool:
    """Whether a command line is that of the nspawn which runs this host of ours."""
    return (
        bool(arguments)
        and Path(arguments[0]).name == "systemd-nspawn"
        and f"--directory={root}" in arguments
        and f"--machine={host}" in arguments
    )


def find(host: str, root: Path) -> list[processes.ProcessRecord]:
    """Return the nspawn processes that run this host: one, or none."""
    candidates = processes.find(f"--directory={root}", f"--machine={host}")
    return [one for one in candidates if is_boot_of(host, root, processes.command_line(one.pid))]


def pull_the_plug(nspawn: processes.ProcessRecord) -> None:
    """Stop a host at once: its first process is killed, so that nspawn still tidies up after itself."""
    leaders = processes.children(nspawn.pid) if nspawn.alive else []
    for pid in leaders:
        if leader := processes.record(pid):
            processes.kill(leader)
    if not leaders or not processes.gone([nspawn], within_seconds=5):
        processes.kill(nspawn)
        processes.gone([nspawn], within_seconds=5)
