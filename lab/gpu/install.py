"""Lays the simulated GPUs into a host's root folder, before the host boots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab.gpu.profile import host_gpus

HERE = Path(__file__).parent
HOST_FILES = ("state.py", "initial.py", "faults.py", "kernel.py", "kmod.py")
UNIT = """\
# Plays the kernel of a host with simulated GPUs: PCI devices, the nvidia module, device nodes.
[Unit]
Description=Simulated GPUs of a lab host
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup-dev.service
Before=sysinit.target systemd-modules-load.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 -BES /usr/lib/labgpu/kernel.py boot

[Install]
WantedBy=sysinit.target
"""
STAND_INS = {
    "modprobe": "usr/sbin/modprobe",
    "rmmod": "usr/sbin/rmmod",
    "insmod": "usr/sbin/insmod",
    "modinfo": "usr/sbin/modinfo",
    "lsmod": "usr/bin/lsmod",
    "dmesg": "usr/local/bin/dmesg",
    "fault": "usr/local/sbin/labgpu-fault",
}


def into(root: Path, gpus: Iterable[Mapping[str, Any]], *, lab: str, host: str) -> None:
    """Lay the programs, the unit and this host's GPUs (as its profile writes them) into a root folder."""
    programs(root)
    profile = {"lab": lab, "host": host, "gpus": host_gpus(gpus, lab=lab, host=host)}
    place = root / "etc/labgpu/profile.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(profile, indent=2) + "\n", encoding="utf-8")


def programs(root: Path) -> None:
    """Lay what is the same on every host: it may go into the base image."""
    library = root / "usr/lib/labgpu"
    library.mkdir(parents=True, exist_ok=True)
    for name in HOST_FILES:
        shutil.copyfile(HERE / name, library / name)
    units = root / "etc/systemd/system"
    (units / "sysinit.target.wants").mkdir(parents=True, exist_ok=True)
    (units / "labgpu.service").write_text(UNIT, encoding="utf-8")
    wants = units / "sysinit.target.wants/labgpu.service"
    wants.unlink(missing_ok=True)
    wants.symlink_to("/etc/systemd/system/labgpu.service")
    for program, place in STAND_INS.items():
        _script(root / place, f'exec /usr/bin/python3 -BES /usr/lib/labgpu/kmod.py {program} "$@"')
    # Debian has lsmod in both places.
    _script(root / "usr/sbin/lsmod", "exec /usr/bin/lsmod")


def _script(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a link to kmod: the link is replaced, not what it points to
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)
